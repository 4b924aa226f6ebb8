//! Ends: announced, cut off, of one half only, and by a drain.

use std::io;

use crate::common::{Call, Log, Probe, let_others_go_on, megabytes, pattern, read_to_end};
use crate::relay::{Fate, relay};
use crate::tls_kit::Authority;
use crate::{listen, pair};
use shardwise::testing::{on_every_driver, on_every_driver_with};
use shardwise::{Config, Flow, Shard, ShardId, TcpStream, TlsError, WriteError};

#[test]
fn close_sends_what_was_written_and_close_notify_and_both_ends_are_clean() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            if let Call::Data(input) = call {
                input.take();
                transport.write(&pattern(100_000)).unwrap();
                for _ in 0..3 {
                    transport.close();
                }
                assert_eq!(transport.write(b"after"), Err(WriteError::Closed));
                return Some(Ok(()));
            }
            None
        })
        .await?;
        client.write_all(b"go").await?;
        assert_eq!(read_to_end(&mut client).await?, pattern(100_000));
        drop(client);
        assert_eq!(log.ended().await, "Closed");
        let transport = log.transport().await;
        transport.close();
        transport.abort();
        assert_eq!(transport.write(b"gone"), Err(WriteError::Closed));
        assert!(!transport.is_tls() && transport.tls_info().is_none());
        // The other way round: the peer is answered with close_notify, and that end is clean as well.
        let (log, client) = pair(&env, |_, _| None).await?;
        client.close();
        assert_eq!(log.ended().await, "PeerFinished");
        assert_eq!(log.seen(), ["connected", "handshake", "read_finished", "disconnected", "dropped"]);
        Ok(())
    });
}

#[test]
fn an_end_without_close_notify_is_told_as_truncation_after_what_came() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |call, transport| {
            if let Call::Data(input) = call {
                input.take();
                transport.write(&pattern(60_000)).unwrap();
                return Some(Ok(()));
            }
            None
        })?;
        // Within a record, and between two of them or so: the handshake is about 1 KB.
        for cut in [20_000, 45_678] {
            let addr = relay(&env, listener.local_addr(), Fate::CutAfter(cut))?;
            let mut client = TcpStream::connect_tls(addr, &tls, "localhost").await?;
            client.write_all(b"go").await?;
            let mut received = Vec::new();
            let error = loop {
                match client.read_chunk().await {
                    Ok(chunk) => received.extend_from_slice(&chunk.expect("that would be a clean end")),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<TlsError>());
            assert_eq!(cause, Some(&TlsError::Truncated));
            assert!(received.len() > cut / 2 && received.len() < cut, "{} of {cut}", received.len());
            assert_eq!(received, pattern(received.len()));
        }
        Ok(())
    });
}

#[test]
fn a_protocol_is_told_of_truncation_too_also_while_it_is_paused() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        for pauses in [false, true] {
            let log = Log::new();
            let listener = listen(&env, &server, &log, move |call, transport| {
                if let (Call::HandshakeCompleted, true) = (call, pauses) {
                    transport.pause_reading();
                }
                None
            })?;
            // A reset of the relay's other side: it closes this one in order, with nothing announced.
            let addr = relay(&env, listener.local_addr(), Fate::CutAfter(usize::MAX))?;
            let mut client = TcpStream::connect_tls(addr, &tls, "localhost").await?;
            client.write_all(b"partial").await?;
            client.flush().await?;
            if pauses {
                for _ in 0..5 {
                    let_others_go_on(&env).await?;
                }
            } else {
                log.until(|state| state.received == b"partial").await;
            }
            client.abort();
            if pauses {
                let_others_go_on(&env).await?;
                assert_eq!(log.seen(), ["connected", "handshake"]);
                log.transport().await.resume_reading();
            }
            assert_eq!(log.ended().await, "Tls(Truncated)");
            assert_eq!(log.received(), b"partial");
            assert_eq!(log.seen(), ["connected", "handshake", "data", "disconnected", "dropped"]);
        }
        Ok(())
    });
}

#[test]
fn a_truncation_that_nobody_was_told_of_is_found_again_after_a_move() {
    on_every_driver_with(2, Config::default(), async |env| {
        let (server, tls) = Authority::new().both();
        let outcome = Log::new();
        let noted = outcome.clone();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async move |stream: TcpStream| {
            let home = stream.transport().shard().clone();
            stream.transport().pause_reading();
            noted.note("paused");
            noted.saw("cut").await;
            let detached = stream.detach().await?;
            let read = home.call_async(ShardId::new(1), async move |shard: Shard| {
                let mut stream = detached.attach(&shard)?;
                read_to_end(&mut stream).await
            });
            let error = read.await?.expect_err("an end that was not announced");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            noted.note("told");
            Ok(())
        })?;
        let addr = relay(&env, listener.local_addr(), Fate::CutAfter(usize::MAX))?;
        let mut client = TcpStream::connect_tls(addr, &tls, "localhost").await?;
        outcome.saw("paused").await;
        client.write_all(b"hello").await?;
        client.flush().await?;
        let_others_go_on(&env).await?;
        // The relay closes its other side in order then, with nothing announced.
        client.abort();
        let_others_go_on(&env).await?;
        outcome.note("cut");
        outcome.saw("told").await;
        Ok(())
    });
}

#[test]
fn what_comes_after_close_notify_is_ignored() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
            stream.write_all(b"all").await?;
            Ok(())
        })?;
        // A well-formed record, but of nobody's keys.
        let addr = relay(&env, listener.local_addr(), Fate::ThenGarbage(&[23, 3, 3, 0, 20, 7, 7, 7, 7]))?;
        let mut client = TcpStream::connect_tls(addr, &tls, "localhost").await?;
        assert_eq!(read_to_end(&mut client).await?, b"all");
        assert!(client.read_chunk().await?.is_none(), "and it stays a clean end");
        Ok(())
    });
}

#[test]
fn close_notify_that_comes_along_with_the_handshake_is_a_clean_end() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        // Without tickets nothing is to be sent between the two.
        let server = authority.server_builder().session_tickets(false).build()?;
        let tls = authority.client();
        // Whether or not something is sealed before that end is told.
        for writes in [false, true] {
            let log = Log::new();
            let listener = listen(&env, &server, &log, move |call, transport| {
                if let (Call::HandshakeCompleted, true) = (call, writes) {
                    transport.write(b"welcome").unwrap();
                }
                None
            })?;
            let attempt = env.shard().connect_tls(listener.local_addr(), &tls, "localhost", || {
                Probe::new(&Log::new(), |call, transport| {
                    if let Call::HandshakeCompleted = call {
                        transport.close();
                    }
                    None
                })
            });
            let _ = attempt.await;
            assert_eq!(log.ended().await, "PeerFinished");
            assert_eq!(log.seen(), ["connected", "handshake", "read_finished", "disconnected", "dropped"]);
        }
        Ok(())
    });
}

#[test]
fn our_half_ends_after_the_handshake_though_it_was_shut_before() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        for server_shuts in [true, false] {
            let (log, probe) = (Log::new(), Log::new());
            let listener = listen(&env, &server, &log, move |call, transport| {
                match call {
                    Call::Connected if server_shuts => transport.shutdown_write(),
                    Call::HandshakeCompleted if !server_shuts => drop(transport.write(b"news").unwrap()),
                    _ => return None,
                }
                Some(Ok(()))
            })?;
            let made = probe.clone();
            let attempt = env.shard().connect_tls(listener.local_addr(), &tls, "localhost", move || {
                Probe::new(&made, move |call, transport| {
                    match call {
                        Call::Connected if !server_shuts => transport.shutdown_write(),
                        Call::HandshakeCompleted if server_shuts => {
                            assert_eq!(transport.write(b"news"), Ok(Flow::Open));
                        }
                        // Not closed by the end of the other half.
                        Call::ReadFinished if server_shuts => transport.close(),
                        _ => return None,
                    }
                    Some(Ok(()))
                })
            });
            attempt.await?;
            let (shuts, writes) = if server_shuts { (log, probe) } else { (probe, log) };
            assert_eq!(shuts.ended().await, "PeerFinished");
            assert_eq!(writes.ended().await, "PeerFinished");
            assert_eq!(shuts.received(), b"news");
            assert!(shuts.count("write_finished") == 1 && writes.count("read_finished") == 1);
        }
        Ok(())
    });
}

#[test]
fn an_end_by_an_error_a_panic_or_a_deadline_is_not_called_complete() {
    on_every_driver(async |env| {
        for (number, reason) in ["Protocol(", "Panicked(", "Panicked(", "DeadlineReached"].iter().enumerate()
        {
            let (log, mut client) = pair(&env, move |call, transport| {
                let Call::Data(input) = call else { return None };
                input.take();
                match number {
                    0 => {
                        transport.write(&pattern(1000)).unwrap();
                        Some(Err("half an answer".into()))
                    }
                    1 => {
                        transport.write(&pattern(1000)).unwrap();
                        panic!("half an answer");
                    }
                    // With sealed output that will not be sent.
                    2 => {
                        while transport.write(&pattern(30_000)).is_ok() {}
                        panic!("half an answer");
                    }
                    _ => unreachable!("the stream below"),
                }
            })
            .await?;
            if number == 3 {
                let (server, tls) = Authority::new().both();
                let listener =
                    env.shard().serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
                        stream.set_deadline(Some(std::time::Duration::from_millis(5)));
                        stream.write_all(b"half").await?;
                        stream.read_chunk().await?;
                        Ok(())
                    })?;
                client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
            } else {
                client.write_all(b"go").await?;
            }
            let mut received = Vec::new();
            let error = loop {
                match client.read_chunk().await {
                    Ok(chunk) => received.extend_from_slice(&chunk.expect("no clean end")),
                    Err(error) => break error,
                }
            };
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<TlsError>());
            assert_eq!(cause, Some(&TlsError::Truncated), "{reason}");
            match number {
                0 => assert_eq!(received, pattern(1000), "what was written before the error"),
                1 => assert!(received.is_empty(), "nothing of a frame that is half written"),
                3 => assert_eq!(received, b"half"),
                _ => {}
            }
            drop(client);
            if number < 3 {
                let ended = log.ended().await;
                assert!(ended.starts_with(reason), "{ended}");
            }
        }
        Ok(())
    });
}

#[test]
fn half_a_connection_can_be_closed_and_the_other_half_goes_on() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            if let Call::ReadFinished = call {
                transport.write(&pattern(200_000)).unwrap();
                transport.close();
                return Some(Ok(()));
            }
            None
        })
        .await?;
        client.write_all(b"the question").await?;
        client.shutdown_write();
        assert!(client.write_all(b"more").await.is_err());
        assert_eq!(read_to_end(&mut client).await?, pattern(200_000));
        assert_eq!(log.ended().await, "PeerFinished");
        assert_eq!(log.received(), b"the question");
        Ok(())
    });
}

#[test]
fn a_drain_ends_with_close_notify() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let streams = env.shard().serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
            read_to_end(&mut stream).await?;
            stream.write_all(b"bye").await?;
            Ok(())
        })?;
        let mut client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        let mut other = TcpStream::connect_tls(streams.local_addr(), &tls, "localhost").await?;
        client.set_ends_on_drain(false);
        other.set_ends_on_drain(false);
        log.saw("handshake").await;
        env.handle().stop()?;
        assert!(read_to_end(&mut client).await?.is_empty(), "an end without close_notify would be an error");
        assert_eq!(read_to_end(&mut other).await?, b"bye");
        drop((client, other));
        assert!(matches!(log.ended().await.as_str(), "Closed" | "PeerFinished"));
        Ok(())
    });
}

#[test]
fn a_drain_does_not_wait_for_clients_that_have_not_begun() {
    on_every_driver(async |env| {
        let server = Authority::new().server();
        let called = Log::new();
        let noted = called.clone();
        let streams = env.shard().serve_tls("127.0.0.1:0", &server, async move |_| {
            noted.note("called");
            Ok(())
        })?;
        let log = Log::new();
        let protocols = listen(&env, &server, &log, |_, _| None)?;
        let mut clients = [
            TcpStream::connect(streams.local_addr()).await?,
            TcpStream::connect(protocols.local_addr()).await?,
        ];
        log.saw("connected").await;
        let begun = env.shard().now();
        env.handle().stop()?;
        for client in &mut clients {
            client.set_ends_on_drain(false);
            assert!(read_to_end(client).await?.is_empty());
        }
        assert!(env.shard().now() - begun < Config::default().handshake_timeout / 2);
        assert_eq!(called.count("called"), 0);
        Ok(())
    });
}

#[test]
fn no_more_is_received_after_close_notify() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
            stream.shutdown_write();
            read_to_end(&mut stream).await?;
            Ok(())
        })?;
        let garbage = Box::leak(vec![23; megabytes(&env, 40)].into_boxed_slice());
        let addr = relay(&env, listener.local_addr(), Fate::ThenGarbage(garbage))?;
        let mut client = TcpStream::connect_tls(addr, &tls, "localhost").await?;
        assert!(read_to_end(&mut client).await?.is_empty());
        let before = env.handle().report()[0].received_bytes;
        for _ in 0..20 {
            let_others_go_on(&env).await?;
        }
        let more = env.handle().report()[0].received_bytes - before;
        assert!(more < 300_000, "{more} bytes");
        // Nor is it in the way of the other half.
        client.write_all(b"the end").await?;
        client.flush().await?;
        Ok(())
    });
}

/// Twisted's test_disconnectAfterWriteAfterStartTLS.
#[test]
fn an_end_comes_though_the_peer_has_vanished() {
    on_every_driver(async |env| {
        let (log, client) = pair(&env, |call, transport| {
            if let Call::Data(input) = call {
                input.take();
                transport.write(b"into the void").unwrap();
                transport.close();
                return Some(Ok(()));
            }
            None
        })
        .await?;
        client.transport().write(b"go")?;
        shardwise::yield_now().await;
        client.abort();
        let reason = log.ended().await;
        assert!(matches!(reason.as_str(), "Closed" | "Os(ConnectionReset)" | "Os(BrokenPipe)"), "{reason}");
        Ok(())
    });
}
