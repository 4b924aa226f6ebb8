#![allow(unsafe_code)]
mod common;
#[path = "conformance_tls/relay.rs"]
mod relay;
mod tls_kit;

use common::{Call, Log, Probe, let_others_go_on, pattern, read_to_end, round_trip};
use relay::{Fate, relay};
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tls_kit::Authority;

fn listen<H>(env: &Env, tls: &TlsServerConfig, log: &Log, hook: H) -> Result<Listener>
where
    H: FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + Clone + 'static,
{
    let log = log.clone();
    Ok(env.shard().listen_tls("127.0.0.1:0", tls, move || Probe::new(&log, hook.clone()))?)
}

fn echo_tls(env: &Env, tls: &TlsServerConfig, keep: Rc<RefCell<Vec<Transport>>>) -> Result<Listener> {
    Ok(env.shard().serve_tls("127.0.0.1:0", tls, async move |mut stream: TcpStream| {
        keep.borrow_mut().push(stream.transport().clone());
        while let Some(chunk) = stream.read_chunk().await? {
            stream.write_all(&chunk).await?;
        }
        Ok(())
    })?)
}

struct SendBox(Box<(Transport, Rc<RefCell<Option<(bool, std::result::Result<Flow, WriteError>)>>>, Log)>);
// SAFETY: a test of one thread.
#[allow(unsafe_code)]
unsafe impl Send for SendBox {}

/// T1
#[test]
fn t01_a_failed_straight_write_does_not_poison_another_connection() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let kept = Rc::new(RefCell::new(Vec::new()));
        let listener = echo_tls(&env, &server, Rc::clone(&kept))?;
        let addr = listener.local_addr();
        let mut first = TcpStream::connect_tls(addr, &tls, "localhost").await?;
        round_trip(&mut first, b"a").await?;
        let mut second = TcpStream::connect_tls(addr, &tls, "localhost").await?;
        round_trip(&mut second, b"b").await?;
        let victim = kept.borrow()[0].clone();
        let home = env.shard().clone();
        let outcome = Rc::new(RefCell::new(None));
        let noted = Rc::clone(&outcome);
        first.abort();
        let done = Log::new();
        let told = shardwise::ShardId::new(0);
        let slots = SendBox(Box::new((victim, noted, done.clone())));
        // Runs in the next turn, before its events: the kernel knows of the reset, the shard does not.
        env.handle()
            .call_from_thread(told, move |_: &Shard| {
                let slots = slots;
                let (victim, noted, done) = *slots.0;
                let open = victim.is_open();
                *noted.borrow_mut() = Some((open, victim.write(&[7; 20_000])));
                done.note("done");
            })
            .unwrap();
        let _ = home;
        done.saw("done").await;
        println!("{} write to the reset one: {:?}", env.driver(), outcome.borrow());
        round_trip(&mut second, b"still mine").await?;
        Ok(())
    });
}

/// T2
#[test]
fn t02_detach_while_reading_loses_no_ciphertext() {
    on_every_driver_with(2, Config::default(), async |env| {
        let (server, tls) = Authority::new().both();
        let result = Log::new();
        let noted = result.clone();
        let listener =
            env.shard().serve_tls("127.0.0.1:0", &server, async move |mut stream: TcpStream| {
                let first = stream.read_chunk().await?.unwrap().len();
                let home = stream.transport().shard().clone();
                let detached = stream.detach().await?;
                let rest = home
                    .call_async(ShardId::new(1), async move |shard: Shard| -> Result<usize> {
                        let mut stream = detached.attach(&shard)?;
                        Ok(read_to_end(&mut stream).await?.len())
                    })
                    .await?;
                println!("first {first}, rest {rest:?}");
                noted.note(match rest {
                    Ok(rest) if rest + first == 60_000 => "all",
                    _ => "lost",
                });
                Ok(())
            })?;
        let mut client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        let_others_go_on(&env).await?;
        client.write_all(&pattern(60_000)).await?;
        client.shutdown_write();
        let _ = read_to_end(&mut client).await;
        result.until(|state| !state.seen.is_empty()).await;
        assert_eq!(result.seen(), ["all"]);
        Ok(())
    });
}

/// T3
#[test]
fn t03_detach_at_once_loses_no_data_that_came_with_finished() {
    on_every_driver_with(2, Config::default(), async |env| {
        let authority = Authority::new();
        let server = authority.server_builder().session_tickets(false).build()?;
        let tls = authority.client();
        let result = Log::new();
        let noted = result.clone();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async move |stream: TcpStream| {
            let home = stream.transport().shard().clone();
            let detached = stream.detach().await?;
            let got = home
                .call_async(ShardId::new(1), async move |shard: Shard| -> Result<Vec<u8>> {
                    let mut stream = detached.attach(&shard)?;
                    Ok(read_to_end(&mut stream).await?)
                })
                .await?;
            println!("got {got:?}");
            noted.note(match got {
                Ok(got) if got == b"hello" => "all",
                _ => "lost",
            });
            Ok(())
        })?;
        let probe = Log::new();
        let made = probe.clone();
        let attempt = env.shard().connect_tls(listener.local_addr(), &tls, "localhost", move || {
            Probe::new(&made, |call, transport| {
                if let Call::Connected = call {
                    transport.write(b"hello").unwrap();
                    transport.close();
                }
                None
            })
        });
        let _ = attempt.await;
        result.until(|state| !state.seen.is_empty()).await;
        assert_eq!(result.seen(), ["all"]);
        Ok(())
    });
}

/// T4
#[test]
fn t04_close_notify_right_behind_finished_is_a_clean_end() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = authority.server_builder().session_tickets(false).build()?;
        let tls = authority.client();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let probe = Log::new();
        let made = probe.clone();
        let attempt = env.shard().connect_tls(listener.local_addr(), &tls, "localhost", move || {
            Probe::new(&made, |call, transport| {
                if let Call::HandshakeCompleted = call {
                    transport.close();
                }
                None
            })
        });
        let _ = attempt.await;
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}

/// T5
#[test]
fn t05_shutdown_write_before_the_handshake_waits_for_it() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |call, transport| {
            match call {
                Call::HandshakeCompleted => drop(transport.write(b"news").unwrap()),
                Call::ReadFinished => transport.close(),
                _ => return None,
            }
            Some(Ok(()))
        })?;
        let probe = Log::new();
        let made = probe.clone();
        let attempt = env.shard().connect_tls(listener.local_addr(), &tls, "localhost", move || {
            Probe::new(&made, |call, transport| {
                if let Call::Connected = call {
                    transport.shutdown_write();
                    return Some(Ok(()));
                }
                None
            })
        });
        println!("{:?}", attempt.await.map(|_| ()));
        println!("client {} server {}", probe.ended().await, log.ended().await);
        assert_eq!(probe.received(), b"news");
        Ok(())
    });
}

#[derive(Debug)]
struct Bad {
    inner: Arc<dyn rustls::server::ResolvesServerCert>,
    how: &'static str,
}
impl rustls::server::ResolvesServerCert for Bad {
    fn resolve(&self, hello: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        match self.how {
            "panic" => panic!("the application's resolver"),
            "look" => {
                let _ = TRANSPORT.with(|t| t.borrow().as_ref().map(|t| t.is_open()));
            }
            _ => {}
        }
        self.inner.resolve(hello)
    }
}
impl Drop for Bad {
    fn drop(&mut self) {
        if self.how == "drop"
            && let Some(shard) = Shard::try_current()
        {
            drop(shard.call_later(Duration::ZERO, |_| {}));
        }
    }
}
thread_local!(static TRANSPORT: RefCell<Option<Transport>> = const { RefCell::new(None) });

fn with_resolver(authority: &Authority, how: &'static str) -> TlsServerConfig {
    use rustls::pki_types::pem::PemObject;
    let issued = authority.issue(&["localhost"]);
    let cert = rustls::pki_types::CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = provider.key_provider.load_private_key(key).unwrap();
    let inner =
        Arc::new(rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(vec![cert], key)));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Bad { inner, how }));
    TlsServerConfig::from_rustls(Arc::new(config))
}

/// T6
#[test]
fn t06_a_resolver_that_panics_costs_one_connection() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = with_resolver(&authority, "panic");
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        println!(
            "{:?}",
            TcpStream::connect_tls(listener.local_addr(), &authority.client(), "localhost").await.map(|_| ())
        );
        log.ended().await;
        Ok(())
    });
}

#[test]
fn t06b_a_resolver_may_look_at_a_transport() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = with_resolver(&authority, "look");
        let log = Log::new();
        let listener = listen(&env, &server, &log, |call, transport| {
            if let Call::Connected = call {
                TRANSPORT.with(|t| *t.borrow_mut() = Some(transport.clone()));
            }
            None
        })?;
        let outcome = TcpStream::connect_tls(listener.local_addr(), &authority.client(), "localhost").await;
        TRANSPORT.with(|t| t.borrow_mut().take());
        outcome?;
        Ok(())
    });
}

/// T7
#[test]
fn t07_a_resolver_dropped_with_the_last_session_may_use_the_shard() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = with_resolver(&authority, "drop");
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let client = TcpStream::connect_tls(listener.local_addr(), &authority.client(), "localhost").await?;
        log.saw("handshake").await;
        listener.close().await;
        drop(server);
        let_others_go_on(&env).await?;
        let_others_go_on(&env).await?;
        client.close();
        log.ended().await;
        Ok(())
    });
}

/// T8
#[test]
fn t08_output_that_a_straight_write_left_has_the_write_timeout() {
    let mut config = Config::default();
    config.write_timeout = Duration::from_millis(200);
    on_every_driver_with(1, config, async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        client.transport().pause_reading();
        let transport = log.transport().await;
        log.saw("handshake").await;
        let mut total = 0;
        while transport.buffered() == 0 {
            transport.write(&[1; 40_000])?;
            total += 40_000;
            if transport.buffered() > 0 {
                break;
            }
            shardwise::yield_now().await;
            env.shard().sleep(Duration::from_millis(1)).await;
        }
        println!("{} {total} written, {} buffered", env.driver(), transport.buffered());
        for _ in 0..10 {
            env.shard().sleep(Duration::from_millis(100)).await;
            if log.count("dropped") > 0 {
                break;
            }
        }
        println!("after 1 s: {:?}", log.seen());
        assert!(log.count("dropped") > 0, "no WriteStalled in 1 s, {} buffered", transport.buffered());
        Ok(())
    });
}

/// T9
#[test]
fn t09_one_byte_clients_do_not_lock_others_out() {
    let mut config = Config::default();
    config.handshakes_max = 4;
    config.handshake_timeout = Duration::from_secs(2);
    on_every_driver_with(1, config, async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let mut slow = Vec::new();
        for _ in 0..4 {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.write_all(&[22]).await?;
            slow.push(client);
        }
        let_others_go_on(&env).await?;
        let begun = env.shard().now();
        let outcome = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await;
        let took = env.shard().now() - begun;
        println!("{:?} after {took:?}", outcome.map(|_| ()));
        assert!(took < Duration::from_millis(500), "{took:?}");
        Ok(())
    });
}

/// T11
#[test]
fn t11_a_panic_that_discards_output_is_no_clean_end() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        for len in [1000usize, 60_000_000] {
            let log = Log::new();
            let mut config = 0;
            let _ = &mut config;
            let listener = listen(&env, &server, &log, move |call, transport| {
                let Call::Data(input) = call else { return None };
                input.take();
                if len < 2000 {
                    transport.write(&pattern(len)).unwrap();
                } else {
                    while transport.write(&pattern(30_000)).is_ok() {}
                }
                panic!("half written");
            })?;
            let mut client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
            client.write_all(b"go").await?;
            let outcome = read_to_end(&mut client).await.map(|bytes| bytes.len());
            println!("{} {len}: {outcome:?}", env.driver());
        }
        Ok(())
    });
}

/// T12
#[test]
fn t12_start_tls_of_a_stream_that_is_closed_meanwhile_is_an_error() {
    on_every_driver(async |env| {
        let server = Authority::new().server();
        let result = Log::new();
        let noted = result.clone();
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            let transport = stream.transport().clone();
            drop(transport.shard().clone().call_later(Duration::from_millis(20), move |_| transport.close()));
            let outcome = stream.start_tls(&server).await;
            println!("{outcome:?}, info {:?}", stream.tls_info());
            noted.note(if outcome.is_ok() { "ok" } else { "error" });
            Ok(())
        })?;
        let client = TcpStream::connect(listener.local_addr()).await?;
        result.until(|state| !state.seen.is_empty()).await;
        assert_eq!(result.seen(), ["error"]);
        drop(client);
        Ok(())
    });
}

/// T13
#[test]
fn t13_a_peer_that_left_in_the_handshake_is_not_lingered_for() {
    on_every_driver(async |env| {
        let server = Authority::new().server();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let plain = Log::new();
        let plain_listener = common::listen(&env, &plain, |_, _| None)?;
        drop(TcpStream::connect(plain_listener.local_addr()).await?);
        plain.ended().await;
        let_others_go_on(&env).await?;
        env.shard().sleep(Duration::from_millis(50)).await;
        let before = env.handle().report()[0].open_connections;
        drop(TcpStream::connect(listener.local_addr()).await?);
        assert_eq!(log.ended().await, "Tls(ClosedInHandshake)");
        let begun = env.shard().now();
        while env.handle().report()[0].open_connections > before {
            env.shard().sleep(Duration::from_millis(10)).await;
        }
        let took = env.shard().now() - begun;
        println!("{} gone after {took:?}", env.driver());
        assert!(took < Duration::from_secs(1), "{took:?}");
        Ok(())
    });
}

/// T26
#[test]
fn t26_truncation_is_found_again_after_a_move() {
    on_every_driver_with(2, Config::default(), async |env| {
        let (server, tls) = Authority::new().both();
        let result = Log::new();
        let noted = result.clone();
        let started = Log::new();
        let notes = started.clone();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async move |stream: TcpStream| {
            notes.note("started");
            let home = stream.transport().shard().clone();
            stream.transport().pause_reading();
            home.sleep(Duration::from_millis(200)).await;
            let detached = stream.detach().await?;
            let got = home
                .call_async(ShardId::new(1), async move |shard: Shard| -> Result<std::io::Result<Vec<u8>>> {
                    let mut stream = detached.attach(&shard)?;
                    Ok(read_to_end(&mut stream).await)
                })
                .await??;
            println!("got {got:?}");
            noted.note(if got.is_err() { "truncated" } else { "clean" });
            Ok(())
        })?;
        let addr = relay(&env, listener.local_addr(), Fate::CutAfter(usize::MAX))?;
        let mut client = TcpStream::connect_tls(addr, &tls, "localhost").await?;
        client.write_all(b"hello").await?;
        client.flush().await?;
        let_others_go_on(&env).await?;
        let_others_go_on(&env).await?;
        println!("abort, handler {}", started.count("started"));
        client.abort();
        result.until(|state| !state.seen.is_empty()).await;
        assert_eq!(result.seen(), ["truncated"]);
        Ok(())
    });
}

/// T42
#[test]
fn t42_the_timeout_of_an_attempt_includes_its_handshake() {
    let mut config = Config::default();
    config.handshake_timeout = Duration::from_secs(3);
    on_every_driver_with(1, config, async |env| {
        let tls = Authority::new().client();
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            read_to_end(&mut stream).await?;
            Ok(())
        })?;
        let begun = env.shard().now();
        let options = ConnectOptions::new().timeout(Duration::from_millis(100));
        let probe = Log::new();
        let outcome = env
            .shard()
            .connect_tls_with(listener.local_addr(), &tls, "localhost", &options, move || {
                Probe::new(&probe, |_, _| None)
            })
            .await;
        let took = env.shard().now() - begun;
        println!("{:?} after {took:?}", outcome.map(|_| ()));
        assert!(took < Duration::from_secs(1), "{took:?}");
        Ok(())
    });
}

fn rss() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn t50_a_resolver_dropped_with_an_unfinished_handshake_may_use_the_shard() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = with_resolver(&authority, "drop");
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let client = TcpStream::connect(listener.local_addr()).await?;
        log.saw("connected").await;
        listener.close().await;
        drop(server);
        let_others_go_on(&env).await?;
        client.close();
        log.ended().await;
        Ok(())
    });
}

#[test]
fn t51_handshakes_that_wait_hold_little() {
    let mut config = Config::default();
    config.handshakes_max = 1;
    on_every_driver_with(1, config, async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let server = Authority::new().server();
        let log = Log::new();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |_| Ok(()))?;
        let mut slow = Vec::new();
        let mut first = TcpStream::connect(listener.local_addr()).await?;
        first.write_all(&[22]).await?;
        slow.push(first);
        let_others_go_on(&env).await?;
        let before = rss();
        let hello = [&[22, 3, 1, 0x40, 0][..], &[1; 59_995]].concat();
        for _ in 0..600 {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.write_all(&hello).await?;
            client.flush().await?;
            slow.push(client);
        }
        let_others_go_on(&env).await?;
        let each = (rss() - before) / 600;
        println!("{each} bytes for each that waits");
        let _ = log;
        assert!(each < 16 * 1024, "{each}");
        Ok(())
    });
}

#[test]
fn t52_a_drain_does_not_wait_for_silent_connections() {
    let mut out = Vec::new();
    for streams in [false, true] {
        let server = Authority::new().server();
        let app = async move |shard: Shard| -> Result<()> {
            let listener = if streams {
                shard.serve_tls("127.0.0.1:0", &server, async |_| Ok(()))?
            } else {
                shard.listen_tls("127.0.0.1:0", &server, || common::Echo)?
            };
            let addr = listener.local_addr();
            shard.call_when_running(move |shard| {
                let home = shard.clone();
                drop(shard.spawn(async move {
                    std::thread::spawn(move || {
                        let peer = std::net::TcpStream::connect(addr).unwrap();
                        std::thread::sleep(Duration::from_secs(20));
                        drop(peer);
                    });
                    home.sleep(Duration::from_millis(200)).await;
                    let _ = home.stop();
                }));
            });
            Ok(())
        };
        let begun = std::time::Instant::now();
        let running = Runtime::new().shards(1).pin(false).start(app).unwrap();
        let outcome = running.join();
        out.push(format!("streams {streams}: {outcome:?} after {:?}", begun.elapsed()));
    }
    panic!("{out:#?}");
}

#[test]
fn t53_shutdown_write_of_a_server_in_connected() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |call, transport| {
            if let Call::Connected = call {
                transport.shutdown_write();
                return Some(Ok(()));
            }
            None
        })?;
        let mut client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        client.write_all(b"upload").await?;
        client.shutdown_write();
        assert!(read_to_end(&mut client).await?.is_empty());
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}

#[test]
fn t54_a_stream_that_detaches_in_connected_handshake_with_full_pieces() {
    // What the peer sends after close_notify is read without limit while the half-open connection stands.
    on_every_driver(async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let (server, tls) = Authority::new().both();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
            stream.shutdown_write();
            let _ = read_to_end(&mut stream).await;
            Ok(())
        })?;
        let garbage: &'static [u8] = Box::leak(vec![23u8; 40_000_000].into_boxed_slice());
        let addr = relay(&env, listener.local_addr(), Fate::ThenGarbage(garbage))?;
        let mut client = TcpStream::connect_tls(addr, &tls, "localhost").await?;
        assert!(read_to_end(&mut client).await?.is_empty());
        let before = env.handle().report()[0].received_bytes;
        env.shard().sleep(Duration::from_millis(1500)).await;
        let more = env.handle().report()[0].received_bytes - before;
        println!("{more} bytes read after close_notify");
        assert!(more < 1_000_000, "{more}");
        Ok(())
    });
}

#[test]
fn t70_stress() {
    on_every_driver_with(2, Config::default(), async |env| {
        let (server, tls) = Authority::new().both();
        let mut seed = env.seed() | 1;
        let log = Log::new();
        let listener = listen(&env, &server, &log, move |call, transport| {
            let mut next = || {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed
            };
            let Call::Data(input) = call else { return None };
            let count = (next() as usize % 9000).min(input.len()).max(1);
            transport.write(&input.bytes()[..count]).unwrap();
            input.consume(count);
            if next() % 3 == 0 || !input.is_empty() {
                transport.pause_reading();
                let again = transport.clone();
                transport
                    .shard()
                    .clone()
                    .call_later(Duration::from_micros(next() % 500), move |_| again.resume_reading());
            }
            Some(Ok(()))
        })?;
        let mut stream = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        let mut seed = env.seed() | 3;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let len = 700_000;
        let sent = pattern(len);
        let (mut written, mut received) = (0, Vec::new());
        while received.len() < len {
            if written < len && written - received.len() < 200_000 {
                let end = len.min(written + 1 + next() as usize % 30_000);
                stream.write_all(&sent[written..end]).await?;
                written = end;
                if next() % 2 == 0 {
                    continue;
                }
            }
            if next() % 8 == 0 {
                // To another shard and back.
                let home = env.shard().clone();
                let detached = stream.detach().await?;
                let back = home
                    .call_async(ShardId::new(1), async move |shard: Shard| -> Result<DetachedTcpStream> {
                        let mut stream = detached.attach(&shard)?;
                        let _ = &mut stream;
                        shard.sleep(Duration::from_micros(100)).await;
                        Ok(stream.detach().await?)
                    })
                    .await??;
                stream = back.attach(&home)?;
            }
            if written > received.len() {
                received.extend_from_slice(&stream.read_chunk().await?.expect("no end"));
            }
        }
        common::assert_same_bytes(&received, &sent);
        stream.shutdown_write();
        assert!(read_to_end(&mut stream).await?.is_empty());
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}
