//! Limits on connections: right across shards, by peer, and every place comes back.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::common::{Call, Log, Probe, let_others_go_on, read_to_end};
use crate::tls_kit::Authority;
use crate::{MS, listen, options, pair};
use shardwise::policies::{ConnectionLimit, Policies};
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{
    Config, ConnectError, ConnectOptions, DetachedTcpStream, Result, Shard, ShardId, TcpStream,
    UnixListenOptions, UnixStream,
};

fn limited(limit: &ConnectionLimit) -> Policies {
    Policies::new().limit_connections(limit)
}

/// Waits until all places are free.
async fn until_free(env: &Env, limit: &ConnectionLimit) -> Result<()> {
    let free = async {
        while limit.connections() > 0 {
            shardwise::yield_now().await;
        }
    };
    env.shard().timeout(Duration::from_secs(20), free).await.map_err(|_| format!("taken: {limit:?}"))?;
    assert_eq!(limit.connections_of("127.0.0.1".parse()?), 0);
    Ok(())
}

/// A client that was let in says so; one that was refused is reset, early or late.
async fn is_let_in(stream: std::result::Result<TcpStream, ConnectError>) -> Option<TcpStream> {
    let mut stream = stream.ok()?;
    match stream.read_exact(&mut [0; 2]).await {
        Ok(()) => Some(stream),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "RST, not FIN: {error}");
            None
        }
    }
}

/// A server on every shard under `policies`, which greets whoever is let in.
async fn greeters(env: &Env, policies: &Policies) -> Result<Vec<SocketAddr>> {
    let mut addrs = Vec::new();
    for id in env.handle().shard_ids() {
        let policies = policies.clone();
        let addr = env.shard().call(id, move |shard| {
            let make = move || {
                Probe::new(&Log::new(), |call, transport| {
                    if let Call::Connected = call {
                        transport.write(b"hi").unwrap();
                    }
                    None
                })
            };
            shard
                .listen_tcp_with("127.0.0.1:0", &options(&policies), make)
                .map(|listener| listener.local_addr())
        });
        addrs.push(addr.await??);
    }
    Ok(addrs)
}

#[test]
fn shards_that_accept_at_the_same_time_let_in_as_many_as_there_are_places() {
    on_every_driver(async |env| {
        let limit = ConnectionLimit::new().total(10);
        let addrs = greeters(&env, &limited(&limit)).await?;
        for _ in 0..3 {
            let mut knocks = Vec::new();
            for number in 0..40 {
                let addr = addrs[number % addrs.len()];
                knocks
                    .push(env.shard().spawn(async move { is_let_in(TcpStream::connect(addr).await).await }));
            }
            let mut inside = Vec::new();
            for knock in knocks {
                inside.extend(knock.await?);
            }
            assert_eq!((inside.len(), limit.connections()), (10, 10));
            drop(inside);
            until_free(&env, &limit).await?;
        }
        assert_eq!(limit.refused(), 90);
        let reports = env.handle().report();
        assert_eq!(reports.iter().map(|report| report.refused).sum::<u64>(), 90);
        assert!(reports.iter().all(|report| report.refused > 0));
        Ok(())
    });
}

#[test]
fn peers_are_limited_by_their_address_right_across_shards() {
    on_every_driver(async |env| {
        let limit = ConnectionLimit::new().per_peer(3);
        let addrs = greeters(&env, &limited(&limit)).await?;
        let mut inside = Vec::new();
        for from in ["127.0.0.2", "127.0.0.3"] {
            let how = ConnectOptions::new().bind(SocketAddr::new(from.parse()?, 0));
            for number in 0..7 {
                let stream = TcpStream::connect_with(addrs[number % addrs.len()], &how).await;
                inside.extend(is_let_in(stream).await);
            }
            assert_eq!(limit.connections_of(from.parse()?), 3);
        }
        assert_eq!((inside.len(), limit.connections(), limit.refused()), (6, 6, 8));
        // One leaves, another one comes.
        inside.remove(0).abort();
        while limit.connections() == 6 {
            shardwise::yield_now().await;
        }
        let how = ConnectOptions::new().bind("127.0.0.2:0".parse()?);
        inside.extend(is_let_in(TcpStream::connect_with(addrs[1], &how).await).await);
        assert_eq!(limit.connections_of("127.0.0.2".parse()?), 3);
        drop(inside);
        until_free(&env, &limit).await
    });
}

#[test]
fn a_refusal_costs_nobody_else_anything() {
    on_every_driver(async |env| {
        let limit = ConnectionLimit::new().total(1);
        let made = Rc::new(Cell::new(0));
        let makes = Rc::clone(&made);
        let log = Log::new();
        let noted = log.clone();
        let make = move || {
            makes.set(makes.get() + 1);
            Probe::new(&noted, |_, _| None)
        };
        let listener = env.shard().listen_tcp_with("127.0.0.1:0", &options(&limited(&limit)), make)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        log.saw("connected").await;
        for _ in 0..20 {
            assert!(is_let_in(TcpStream::connect(listener.local_addr()).await).await.is_none());
        }
        assert_eq!(made.get(), 1, "the factory is not asked");
        client.write_all(b"as ever").await?;
        log.until(|state| state.received == b"as ever").await;
        assert_eq!(limit.refused(), 20);
        Ok(())
    });
}

#[test]
fn a_place_comes_back_however_a_connection_ends() {
    let mut config = Config::default();
    config.handshake_timeout = 30 * MS;
    config.write_timeout = 30 * MS;
    on_every_driver_with(2, config, async |env| {
        type Hook = fn(&mut Call<'_, '_>, &shardwise::Transport) -> Option<Result<()>>;
        let by_server: [(&str, Hook); 7] = [
            ("Closed", |call, transport| {
                matches!(call, Call::Connected).then(|| transport.close());
                None
            }),
            ("Aborted", |call, transport| {
                matches!(call, Call::Connected).then(|| transport.abort());
                None
            }),
            ("Protocol(no)", |call, _| matches!(call, Call::Connected).then(|| Err("no".into()))),
            ("Panicked(boom)", |call, _| {
                assert!(!matches!(call, Call::Connected), "boom");
                None
            }),
            ("Idle { after: 5ms }", |call, transport| {
                matches!(call, Call::Connected).then(|| transport.set_idle_timeout(Some(5 * MS)));
                None
            }),
            ("DeadlineReached", |call, transport| {
                matches!(call, Call::Connected).then(|| transport.set_deadline(Some(5 * MS)));
                None
            }),
            ("WriteStalled", |call, transport| {
                while matches!(call, Call::Connected) && transport.write(&[0; 100_000]).is_ok() {}
                None
            }),
        ];
        let limit = ConnectionLimit::new().total(1).per_peer(1);
        for (reason, hook) in by_server {
            let log = Log::new();
            let listener = listen(&env, &limited(&limit), &log, hook)?;
            let client = TcpStream::connect(listener.local_addr()).await?;
            let _hold = client.transport().hold_reading();
            if reason == "WriteStalled" {
                // The kernel takes a part; more is written until it does not.
                let transport = log.transport().await;
                while transport.is_open() && transport.buffered() < 700_000 {
                    let _ = transport.write(&[7; 50_000]);
                    shardwise::yield_now().await;
                }
            }
            assert_eq!(log.ended().await, reason);
            drop(client);
            until_free(&env, &limit).await?;
        }
        // By the client: FIN, and a reset.
        for aborts in [false, true] {
            let (log, client) = pair(&env, &limited(&limit), |_, _| None).await?;
            assert_eq!(limit.connections(), 1);
            if aborts {
                client.abort();
            } else {
                drop(client);
            }
            log.ended().await;
            until_free(&env, &limit).await?;
        }
        assert_eq!(limit.refused(), 0);
        Ok(())
    });
}

#[test]
fn a_place_comes_back_when_no_protocol_was_made() {
    on_every_driver(async |env| {
        let limit = ConnectionLimit::new().total(1);
        let how = options(&limited(&limit));
        let refusing = env.shard().listen_tcp_with("127.0.0.1:0", &how, || None::<Probe>)?;
        let make = || -> Probe { panic!("a factory, as the test wants it") };
        let panicking = env.shard().listen_tcp_with("127.0.0.1:0", &how, make)?;
        for listener in [refusing, panicking] {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            let _ = read_to_end(&mut client).await;
            until_free(&env, &limit).await?;
        }
        assert_eq!(limit.refused(), 0);
        Ok(())
    });
}

#[test]
fn a_place_comes_back_when_a_handler_returns_fails_or_panics() {
    on_every_driver(async |env| {
        let limit = ConnectionLimit::new().total(1);
        let serve = async |mut stream: TcpStream| {
            let mut word = [0; 4];
            stream.read_exact(&mut word).await?;
            match &word {
                b"fail" => Err("as the test wants it".into()),
                b"boom" => panic!("a handler, as the test wants it"),
                _ => Ok(()),
            }
        };
        let listener = env.shard().serve_tcp_with("127.0.0.1:0", &options(&limited(&limit)), serve)?;
        for word in [&b"fail"[..], b"boom", b"quit"] {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.write_all(word).await?;
            read_to_end(&mut client).await?;
            drop(client);
            until_free(&env, &limit).await?;
        }
        Ok(())
    });
}

#[test]
fn a_place_comes_back_when_a_tls_handshake_fails_or_never_comes() {
    let mut config = Config::default();
    config.handshake_timeout = 30 * MS;
    on_every_driver_with(2, config, async |env| {
        let (server, _) = Authority::new().both();
        let stranger = Authority::new().client();
        let limit = ConnectionLimit::new().total(1);
        let make = || Probe::new(&Log::new(), |_, _| None);
        let how = options(&limited(&limit));
        let listener = env.shard().listen_tls_with("127.0.0.1:0", &server, &how, make)?;
        let addr = listener.local_addr();
        // Who does not trust it.
        assert!(TcpStream::connect_tls(addr, &stranger, "localhost").await.is_err());
        until_free(&env, &limit).await?;
        // Who does not speak it.
        let mut client = TcpStream::connect(addr).await?;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        let _ = read_to_end(&mut client).await;
        drop(client);
        until_free(&env, &limit).await?;
        // Who says nothing.
        let mut client = TcpStream::connect(addr).await?;
        let _ = read_to_end(&mut client).await;
        until_free(&env, &limit).await?;
        assert_eq!(limit.refused(), 0);
        Ok(())
    });
}

#[test]
fn a_detached_stream_keeps_its_place_and_gives_it_back_wherever_it_ends() {
    on_every_driver(async |env| {
        let limit = ConnectionLimit::new().total(1).per_peer(1);
        let steps = Log::new();
        let (noted, seen) = (steps.clone(), limit.clone());
        let serve = async move |mut stream: TcpStream| {
            let home = stream.transport().shard().clone();
            let mut word = [0; 4];
            stream.read_exact(&mut word).await?;
            let moves = &word == b"move";
            let detached: DetachedTcpStream = stream.detach().await?;
            assert_eq!(seen.connections(), 1, "on its way");
            if moves {
                let seen = seen.clone();
                let moved = home.call_async(ShardId::new(1), async move |shard: Shard| -> Result<()> {
                    let mut stream = detached.attach(&shard)?;
                    assert_eq!(seen.connections(), 1, "on another shard");
                    stream.write_all(b"here").await?;
                    read_to_end(&mut stream).await?;
                    Ok(())
                });
                noted.note("moved");
                moved.await??;
            } else {
                drop(detached);
            }
            Ok(())
        };
        let listener = env.shard().serve_tcp_with("127.0.0.1:0", &options(&limited(&limit)), serve)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"move").await?;
        steps.saw("moved").await;
        client.read_exact(&mut [0; 4]).await?;
        assert_eq!(limit.connections(), 1);
        drop(client);
        until_free(&env, &limit).await?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"drop").await?;
        let _ = read_to_end(&mut client).await;
        until_free(&env, &limit).await
    });
}

#[test]
fn a_place_is_kept_until_the_socket_is_closed() {
    on_every_driver(async |env| {
        let limit = ConnectionLimit::new().total(1);
        let (log, mut client) = pair(&env, &limited(&limit), |call, transport| {
            matches!(call, Call::Connected).then(|| transport.close());
            None
        })
        .await?;
        assert_eq!(log.ended().await, "Closed");
        assert!(read_to_end(&mut client).await?.is_empty());
        let_others_go_on(&env).await?;
        assert_eq!(limit.connections(), 1, "the peer has not finished");
        drop(client);
        until_free(&env, &limit).await
    });
}

#[test]
fn outgoing_connections_take_places_and_one_too_many_is_not_even_begun() {
    on_every_driver(async |env| {
        let limit = ConnectionLimit::new().total(2).per_peer(1);
        let log = Log::new();
        let server = crate::common::listen(&env, &log, |_, _| None)?;
        let addr = server.local_addr();
        let how = ConnectOptions::new().policies(&limited(&limit));
        let first = TcpStream::connect_with(addr, &how).await?;
        log.saw("connected").await;
        let refused = TcpStream::connect_with(addr, &how).await.unwrap_err();
        assert!(
            matches!(&refused, ConnectError::LimitReached { addr: there } if *there == addr),
            "{refused}"
        );
        let attempt = env.shard().connect_tcp_with(addr, &how, || Probe::new(&Log::new(), |_, _| None));
        assert!(matches!(attempt.await, Err(ConnectError::LimitReached { .. })));
        let_others_go_on(&env).await?;
        assert_eq!((log.count("connected"), limit.connections(), limit.refused()), (1, 1, 2));
        drop(first);
        until_free(&env, &limit).await?;
        // Several at once are begun, and one is let through.
        let attempts: Vec<_> = (0..5)
            .map(|_| {
                env.shard().spawn({
                    let how = how.clone();
                    async move { TcpStream::connect_with(addr, &how).await }
                })
            })
            .collect();
        let mut made = Vec::new();
        for attempt in attempts {
            match attempt.await? {
                Ok(stream) => made.push(stream),
                Err(ConnectError::LimitReached { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        assert_eq!((made.len(), limit.connections()), (1, 1));
        drop(made);
        until_free(&env, &limit).await?;
        // What did not come to be gives its place back.
        let none = env.shard().connect_tcp_with(addr, &how, || None::<Probe>);
        assert!(matches!(none.await, Err(ConnectError::NoProtocol)));
        until_free(&env, &limit).await
    });
}

#[test]
fn what_is_kept_for_some_cannot_be_taken_by_others() {
    on_every_driver(async |env| {
        let public = ConnectionLimit::new().total(2);
        let internal = public.clone().total(3);
        let [outside, _] = greeters(&env, &limited(&public)).await?[..] else { panic!("two shards") };
        let [inside, _] = greeters(&env, &limited(&internal)).await?[..] else { panic!("two shards") };
        let mut held = Vec::new();
        for _ in 0..4 {
            held.extend(is_let_in(TcpStream::connect(outside).await).await);
        }
        assert_eq!(held.len(), 2);
        held.extend(is_let_in(TcpStream::connect(inside).await).await);
        assert_eq!(held.len(), 3);
        assert!(is_let_in(TcpStream::connect(inside).await).await.is_none());
        Ok(())
    });
}

/// The connections of a UNIX socket have no address; they count in all.
#[test]
fn connections_of_unix_sockets_count_in_all() {
    on_every_driver(async |env| {
        let limit = ConnectionLimit::new().total(1).per_peer(100);
        let unix = UnixListenOptions::new().policies(&limited(&limit));
        let name = format!("@shardwise-limits-{}-{}", std::process::id(), env.shard().random());
        let listener = env.shard().serve_unix_with(&*name, &unix, async |mut stream: UnixStream| {
            stream.write_all(b"in").await?;
            stream.read_chunk().await?;
            Ok(())
        })?;
        let mut first = UnixStream::connect_unix(&*name).await?;
        first.read_exact(&mut [0; 2]).await?;
        // It may be reset before it has noticed that it stands.
        if let Ok(mut second) = UnixStream::connect_unix(&*name).await {
            assert!(!matches!(second.read_chunk().await, Ok(Some(_))), "one too many is told nothing");
        }
        drop(first);
        until_free(&env, &limit).await?;
        listener.close().await;
        Ok(())
    });
}
