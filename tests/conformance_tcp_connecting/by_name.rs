//! Connecting to a name: its addresses race as RFC 8305 says, with one outcome.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{CountingFactory, poll_once};
use crate::common::{Echo, Log, Probe, let_others_go_on, round_trip};
use rustix::net::listen;
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{
    Addr, Config, ConnectError, ConnectOptions, ConnectTarget, ListenError, Listener, ResolveError, Result,
    TcpStream,
};

const V6: &str = "::1";
const V4: &str = "127.0.0.1";

/// Echo servers at these addresses, on one port that is free at `unused` too.
async fn servers(env: &Env, used: &[&str], unused: &[&str]) -> Result<(u16, Vec<Listener>)> {
    for _ in 0..50 {
        let mut listeners: Vec<Listener> = Vec::new();
        let mut taken = false;
        let mut free = Vec::new();
        for (number, ip) in used.iter().chain(unused).enumerate() {
            let port = listeners.first().map_or(0, |first| first.local_addr().port());
            match env.shard().listen_tcp(SocketAddr::new(ip.parse()?, port), || Echo) {
                Ok(listener) if number < used.len() => listeners.push(listener),
                Ok(listener) => free.push(listener),
                // Somebody else has that port at another address.
                Err(ListenError::AddressInUse { .. }) => taken = true,
                Err(error) => return Err(error.into()),
            }
        }
        for listener in free {
            listener.close().await;
        }
        if !taken {
            return Ok((listeners[0].local_addr().port(), listeners));
        }
        for listener in listeners {
            listener.close().await;
        }
    }
    Err("no port is free at all of these addresses".into())
}

/// An address with a port that answers nothing.
enum BlackHole {
    /// Nobody has it.
    Nowhere(SocketAddr),
    /// A listener whose queue is full.
    Full { listener: std::net::TcpListener, _queued: std::net::TcpStream },
}

impl BlackHole {
    fn new(env: &Env, ip: &str, port: u16) -> io::Result<Self> {
        let ip: IpAddr = ip.parse().expect("an IP address");
        if env.is_simulated() {
            let ip = if ip.is_ipv6() { "2001:db8::1" } else { "192.0.2.1" };
            return Ok(BlackHole::Nowhere(SocketAddr::new(ip.parse().expect("an IP address"), port)));
        }
        let listener = std::net::TcpListener::bind((ip, port))?;
        // Room for one (`listen(2)`: the kernel adds it), which is taken; the next SYN is dropped.
        listen(&listener, 0)?;
        let queued = std::net::TcpStream::connect(listener.local_addr()?)?;
        Ok(BlackHole::Full { listener, _queued: queued })
    }

    fn ip(&self) -> String {
        match self {
            BlackHole::Nowhere(addr) => addr.ip().to_string(),
            BlackHole::Full { listener, .. } => listener.local_addr().unwrap().ip().to_string(),
        }
    }
}

/// An echo server at `used`, and at `silent` on the same port nobody who answers.
async fn beside_a_black_hole(env: &Env, used: &str, silent: &str) -> Result<(u16, Listener, BlackHole)> {
    for _ in 0..50 {
        let (port, mut listeners) = servers(env, &[used], &[silent]).await?;
        let listener = listeners.remove(0);
        match BlackHole::new(env, silent, port) {
            Ok(hole) => return Ok((port, listener, hole)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => listener.close().await,
            Err(error) => return Err(error.into()),
        }
    }
    Err("no port is free at both addresses".into())
}

/// A wait that is over only at its end.
fn endless(delay: Duration) -> Config {
    let mut config = Config::default();
    config.connect_attempt_delay = delay;
    config
}

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

#[test]
fn a_name_leads_to_its_server_however_it_is_written() {
    on_every_driver(async |env| {
        let (port, _listeners) = servers(&env, &[V4], &[]).await?;
        env.names().insert("server.test", &[V4]);
        round_trip(&mut TcpStream::connect(format!("server.test:{port}")).await?, b"text").await?;
        round_trip(&mut TcpStream::connect(("server.test", port)).await?, b"a pair").await?;
        let attempt = env.shard().connect_tcp(("Server.test", port), || Echo);
        assert!(matches!(attempt.destination(), Some(ConnectTarget::Name { host, port: told })
            if host.as_str() == "server.test" && *told == port));
        let transport = attempt.await?;
        assert_eq!(transport.peer_addr(), Some(SocketAddr::new(V4.parse()?, port)));
        assert_eq!(env.names().asked(), 3);
        transport.close();
        Ok(())
    });
}

#[test]
fn an_address_asks_nobody() {
    on_every_driver(async |env| {
        let (port, _listeners) = servers(&env, &[V4], &[]).await?;
        TcpStream::connect((V4, port)).await?;
        TcpStream::connect(format!("{V4}:{port}")).await?;
        assert_eq!(env.names().asked(), 0);
        Ok(())
    });
}

#[test]
fn ipv6_is_tried_first() {
    on_every_driver_with(2, endless(HOUR), async |env| {
        let (port, _listeners) = servers(&env, &[V4, V6], &[]).await?;
        env.names().insert("both.test", &[V4, V6]);
        let stream = TcpStream::connect(("both.test", port)).await?;
        assert_eq!(stream.peer_addr()?, SocketAddr::new(V6.parse()?, port));
        Ok(())
    });
}

#[test]
fn an_address_that_refuses_is_followed_by_the_next_at_once() {
    // Whoever waits here waits in vain.
    on_every_driver_with(2, endless(HOUR), async |env| {
        let (port, _listeners) = servers(&env, &[V4], &[V6, "127.0.0.2"]).await?;
        env.names().insert("half.test", &[V6, "127.0.0.2", V4]);
        let (factory, made, dropped) = CountingFactory::new();
        let transport = env.shard().connect_tcp(("half.test", port), factory.into_closure()).await?;
        assert_eq!(transport.peer_addr(), Some(SocketAddr::new(V4.parse()?, port)));
        assert_eq!((made.get(), dropped.get()), (1, 1), "one protocol, for the connection that stands");
        transport.close();
        Ok(())
    });
}

#[test]
fn an_address_that_is_silent_is_joined_by_the_next_after_the_delay() {
    on_every_driver(async |env| {
        let (port, _listener, hole) = beside_a_black_hole(&env, V4, V6).await?;
        env.names().insert("half.test", &[&hole.ip(), V4]);
        let begun = env.shard().now();
        let mut stream = TcpStream::connect(("half.test", port)).await?;
        assert_eq!(stream.peer_addr()?.ip(), V4.parse::<IpAddr>()?);
        let took = env.shard().now() - begun;
        let delay = Config::default().connect_attempt_delay;
        assert_eq!(delay, 250 * MS);
        assert!(took >= delay, "{took:?}");
        // A lookup takes up to 5 ms there, a handshake one.
        assert!(!env.is_simulated() || took < delay + 7 * MS, "{took:?}");
        // What was silent has been closed; the look for leaks at the end counts it.
        round_trip(&mut stream, b"the winner lives").await?;
        Ok(())
    });
}

/// Only a simulated listener can come up between a SYN and its repetition on time.
#[test]
fn a_silent_address_that_answers_late_still_wins() {
    on_every_driver(async |env| {
        if !env.is_simulated() {
            return Ok(());
        }
        env.names().insert("slow.test", &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        env.names().keep_order();
        let begun = env.shard().now();
        let attempt = env.shard().connect_tcp("slow.test:700", || Echo);
        // All three are under way by then, and their kernel repeats the first one's SYN after a second.
        env.shard().sleep(700 * MS).await;
        let log = Log::new();
        let probe = log.clone();
        let late = env.shard().listen_tcp("192.0.2.1:700", move || Probe::new(&probe, |_, _| None))?;
        let transport = attempt.await?;
        assert_eq!(transport.peer_addr(), Some(late.local_addr()));
        let took = env.shard().now() - begun;
        assert!(took >= 1000 * MS && took < 1010 * MS, "{took:?}");
        log.saw("connected").await;
        transport.close();
        log.ended().await;
        Ok(())
    });
}

#[test]
fn all_addresses_that_failed_are_reported_with_their_causes() {
    on_every_driver_with(2, endless(HOUR), async |env| {
        let (port, listeners) = servers(&env, &[V4], &[V6]).await?;
        for listener in listeners {
            listener.close().await;
        }
        env.names().insert("dead.test", &[V4, V6]);
        let (factory, made, dropped) = CountingFactory::new();
        let error = env.shard().connect_tcp(("dead.test", port), factory.into_closure()).await.unwrap_err();
        assert_eq!((made.get(), dropped.get()), (0, 1));
        let text = error.to_string();
        let ConnectError::AllFailed { target, causes } = error else { panic!("{error:?}") };
        assert_eq!(target, format!("dead.test:{port}"));
        let [
            ConnectError::Refused { addr: v6, source: first },
            ConnectError::Refused { addr: v4, source: last },
        ] = &causes[..]
        else {
            panic!("{causes:?}")
        };
        let is_v6 = [v6, v4].map(|addr| addr.as_ip().unwrap().is_ipv6());
        assert_eq!(is_v6, [true, false], "{causes:?}");
        assert_eq!(
            text,
            format!(
                "cannot connect to dead.test:{port}: cannot connect to [::1]:{port}: {first}; \
                 cannot connect to 127.0.0.1:{port}: {last}"
            )
        );
        Ok(())
    });
}

#[test]
fn a_name_that_is_not_found_or_none_is_an_outcome() {
    on_every_driver(async |env| {
        let error = TcpStream::connect("nobody.test:80").await.unwrap_err();
        assert!(matches!(error, ConnectError::Resolve(ResolveError::NotFound { .. })), "{error:?}");
        assert_eq!(error.to_string(), "cannot connect: `nobody.test` has no address");
        let error = env.shard().connect_tcp("a..b:80", || Echo).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot connect: `a..b:80` is not a target: `a..b` is not a host name: it has an empty label"
        );
        let log = Log::new();
        let noted = log.clone();
        env.shard().connect_tcp("nobody.test:80", || Echo).on_failure(move |_, error| {
            assert!(matches!(error, ConnectError::Resolve(_)), "{error:?}");
            noted.note("failed");
        });
        assert!(log.seen().is_empty(), "reported before the call returned");
        log.saw("failed").await;
        assert_eq!(log.count("failed"), 1);
        Ok(())
    });
}

#[test]
fn the_time_limit_covers_the_lookup() {
    on_every_driver(async |env| {
        env.names().silence("silent.test");
        let after = 30 * MS;
        let options = ConnectOptions::new().timeout(after);
        let begun = env.shard().now();
        let error = TcpStream::connect_with("silent.test:80", &options).await.unwrap_err();
        assert!(env.shard().now() - begun >= after);
        assert_eq!(
            error.to_string(),
            "cannot connect: the address of `silent.test` was not found within 30ms"
        );
        Ok(())
    });
}

#[test]
fn the_time_limit_covers_all_addresses_and_says_who_was_silent() {
    on_every_driver_with(2, endless(10 * MS), async |env| {
        let (port, listener, hole) = beside_a_black_hole(&env, V4, V6).await?;
        listener.close().await;
        env.names().insert("half.test", &[V4, &hole.ip()]);
        let after = 100 * MS;
        let options = ConnectOptions::new().timeout(after);
        let begun = env.shard().now();
        let error = env.shard().connect_tcp_with(("half.test", port), &options, || Echo).await.unwrap_err();
        let took = env.shard().now() - begun;
        assert!(took >= after, "{took:?}");
        let ConnectError::AllFailed { causes, .. } = error else { panic!("{error:?}") };
        let host = |addr: &Addr| addr.as_ip().unwrap().ip().to_string();
        assert!(
            matches!(&causes[..], [ConnectError::Refused { addr, .. }, ConnectError::TimedOut { addr: silent, after: told }]
                if host(addr) == V4 && host(silent) == hole.ip() && *told <= took),
            "{causes:?}"
        );
        Ok(())
    });
}

#[test]
fn an_address_to_connect_from_chooses_the_family() {
    on_every_driver_with(2, endless(HOUR), async |env| {
        let (port, _listeners) = servers(&env, &[V4, V6], &[]).await?;
        env.names().insert("both.test", &[V4, V6]);
        let from = |addrs: &[&str]| {
            addrs.iter().fold(ConnectOptions::new(), |options, addr| options.bind(addr.parse().unwrap()))
        };
        for (options, expected) in [
            (from(&["0.0.0.0:0"]), V4),
            (from(&["127.0.0.1:0"]), V4),
            (from(&["[::1]:0"]), V6),
            (from(&["127.0.0.1:0", "[::1]:0"]), V6),
        ] {
            let stream = TcpStream::connect_with(("both.test", port), &options).await?;
            assert_eq!(stream.peer_addr()?.ip().to_string(), expected);
            assert_eq!(stream.local_addr()?.ip().to_string(), expected);
        }
        env.names().insert("four.test", &[V4]);
        let error = TcpStream::connect_with(("four.test", port), &from(&["[::1]:0"])).await.unwrap_err();
        let ConnectError::AllFailed { causes, .. } = error else { panic!("{error:?}") };
        assert!(matches!(causes[..], [ConnectError::Os { .. }]), "the kernel says why: {causes:?}");
        Ok(())
    });
}

#[test]
fn no_more_addresses_are_tried_than_allowed() {
    let mut config = endless(HOUR);
    config.connect_addresses_max = 3;
    on_every_driver_with(2, config, async |env| {
        let (port, listeners) = servers(&env, &[V4], &["127.0.0.2", "127.0.0.3", "127.0.0.4"]).await?;
        for listener in listeners {
            listener.close().await;
        }
        env.names().insert("many.test", &[V4, "127.0.0.2", "127.0.0.3", "127.0.0.4"]);
        let error = TcpStream::connect(("many.test", port)).await.unwrap_err();
        let ConnectError::AllFailed { causes, .. } = error else { panic!("{error:?}") };
        assert_eq!(causes.len(), 3);
        Ok(())
    });
}

#[test]
fn an_attempt_can_be_given_up_wherever_it_is_and_leaves_nothing() {
    on_every_driver_with(2, endless(10 * MS), async |env| {
        let (port, listener, hole) = beside_a_black_hole(&env, V4, V6).await?;
        env.names().insert("half.test", &[&hole.ip(), V4]);
        // The lookup takes up to 5 ms, the first address the 10 ms after it.
        for drops in [false, true] {
            for waited in [0, 1, 3, 5, 8, 11, 15, 20] {
                let (factory, made, dropped) = CountingFactory::new();
                let mut attempt = env.shard().connect_tcp(("half.test", port), factory.into_closure());
                env.shard().sleep(waited * MS).await;
                if let Some(outcome) = poll_once(&mut attempt).await {
                    outcome?.close();
                    assert_eq!((made.get(), dropped.get()), (1, 1));
                    continue;
                }
                if drops {
                    drop(attempt);
                } else {
                    attempt.cancel();
                    attempt.cancel();
                    assert!(matches!(attempt.await, Err(ConnectError::Cancelled)));
                }
                assert_eq!((made.get(), dropped.get()), (0, 1));
            }
        }
        // And a stream's, whose outcome nobody fetches.
        for waited in [0, 3, 11, 30] {
            let mut attempt = Box::pin(TcpStream::connect(("half.test", port)));
            let early = poll_once(&mut attempt).await;
            assert!(early.is_none(), "connected before the call returned");
            env.shard().sleep(waited * MS).await;
            drop(attempt);
        }
        let_others_go_on(&env).await?;
        drop(listener);
        Ok(())
    });
}

#[test]
fn a_stop_ends_the_lookup_and_the_race_with_one_outcome() {
    on_every_driver_with(2, endless(10 * MS), async |env| {
        let (port, listener, hole) = beside_a_black_hole(&env, V4, V6).await?;
        listener.close().await;
        env.names().silence("silent.test");
        env.names().insert("hole.test", &[&hole.ip()]);
        let resolving = env.shard().connect_tcp("silent.test:80", || Echo);
        let racing = env.shard().connect_tcp(("hole.test", port), || Echo);
        env.shard().sleep(20 * MS).await;
        env.shard().stop()?;
        for attempt in [resolving, racing] {
            let error = attempt.await.unwrap_err();
            assert!(matches!(error, ConnectError::Stopping), "{error:?}");
        }
        Ok(())
    });
}

#[test]
fn many_attempts_by_name_all_have_their_outcome() {
    on_every_driver(async |env| {
        let (port, _listeners) = servers(&env, &[V4], &[V6]).await?;
        env.names().insert("half.test", &[V4, V6]);
        let attempts: Vec<_> = (0..100_u32)
            .map(|_| env.shard().spawn(async move { TcpStream::connect(("half.test", port)).await }))
            .collect();
        for (number, attempt) in attempts.into_iter().enumerate() {
            round_trip(&mut attempt.await??, &number.to_be_bytes()).await?;
        }
        Ok(())
    });
}
