//! Bytes through TLS: all of them, in order, whatever the pieces.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::common::{
    Call, Log, Probe, assert_same_bytes, let_others_go_on, megabytes, pattern, read_to_end, round_trip,
};
use crate::relay::{Fate, relay};
use crate::tls_kit::Authority;
use crate::{listen, pair};
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{Config, DetachedTcpStream, Result, Shard, ShardId, TcpStream, Transport, WriteError};

#[test]
fn writes_before_the_handshake_are_sent_after_it_in_order() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let (log, probe) = (Log::new(), Log::new());
        let listener = listen(&env, &server, &log, |call, transport| {
            match call {
                Call::Connected => drop(transport.write(b"server: connected, ").unwrap()),
                Call::HandshakeCompleted => drop(transport.write(b"handshake").unwrap()),
                Call::ReadFinished => transport.close(),
                _ => return None,
            }
            Some(Ok(()))
        })?;
        let made = probe.clone();
        let attempt = env.shard().connect_tls(listener.local_addr(), &tls, "localhost", move || {
            Probe::new(&made, |call, transport| {
                match call {
                    Call::Connected => {
                        transport.write(b"client: ").unwrap();
                        transport.write(&pattern(50_000)).unwrap();
                        assert_eq!(transport.buffered(), 50_008);
                    }
                    Call::HandshakeCompleted => drop(transport.write(b"!").unwrap()),
                    _ => return None,
                }
                Some(Ok(()))
            })
        });
        probe.transport().await.write(b"?")?;
        let transport = attempt.await?;
        probe.until(|state| state.received.len() == 28).await;
        transport.close();
        log.ended().await;
        let received = log.received();
        assert_eq!(&received[..8], b"client: ");
        assert_same_bytes(&received[8..50_008], &pattern(50_000));
        assert_eq!(&received[50_008..], b"?!");
        assert_eq!(probe.received(), b"server: connected, handshake");
        Ok(())
    });
}

#[test]
fn a_close_before_the_handshake_still_sends_what_was_written() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let (log, probe) = (Log::new(), Log::new());
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let made = probe.clone();
        let attempt = env.shard().connect_tls(listener.local_addr(), &tls, "localhost", move || {
            Probe::new(&made, |call, transport| {
                if let Call::Connected = call {
                    transport.write(b"last words").unwrap();
                    transport.close();
                    assert_eq!(transport.write(b"more"), Err(WriteError::Closed));
                }
                None
            })
        });
        let _ = attempt.await;
        assert_eq!(log.ended().await, "PeerFinished");
        assert_eq!(log.received(), b"last words");
        assert_eq!(probe.ended().await, "Closed");
        assert_eq!(probe.seen(), ["connected", "disconnected", "dropped"]);
        Ok(())
    });
}

#[test]
fn megabytes_both_ways_at_once_arrive_intact() {
    on_every_driver(async |env| {
        let len = megabytes(&env, 8);
        let (server, tls) = Authority::new().both();
        let listener =
            env.shard().serve_tls("127.0.0.1:0", &server, async move |mut stream: TcpStream| {
                while let Some(chunk) = stream.read_chunk().await? {
                    stream.write_all(&chunk).await?;
                }
                Ok(())
            })?;
        let stream = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        let stream = Rc::new(RefCell::new(stream));
        let sent = pattern(len);
        let mut received = Vec::with_capacity(len);
        let mut written = 0;
        std::future::poll_fn(|context| {
            use std::task::Poll::{Pending, Ready};
            let mut stream = stream.borrow_mut();
            while written < len {
                let end = len.min(written + 100_000);
                match stream.poll_write(context, &sent[written..end]) {
                    Ready(count) => written += count?,
                    Pending => break,
                }
            }
            while received.len() < len {
                match stream.poll_read_chunk(context) {
                    Ready(chunk) => received.extend_from_slice(&chunk?.expect("the echo goes on")),
                    Pending => return Pending,
                }
            }
            Ready(std::io::Result::Ok(()))
        })
        .await?;
        assert_same_bytes(&received, &sent);
        Ok(())
    });
}

#[test]
fn one_write_of_megabytes_arrives_and_what_is_over_the_cap_is_refused_whole() {
    let mut config = Config::default();
    config.watermarks.cap_bytes = 9_000_000;
    on_every_driver_with(2, config, async |env| {
        let len = megabytes(&env, 8);
        let (log, mut client) = pair(&env, move |call, transport| {
            if let Call::HandshakeCompleted = call {
                assert_eq!(transport.write(&pattern(9_000_001)), Err(WriteError::Full));
                transport.write(&pattern(len)).unwrap();
                transport.close();
            }
            None
        })
        .await?;
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(len));
        drop(client);
        assert_eq!(log.ended().await, "Closed");
        Ok(())
    });
}

#[test]
fn records_come_through_byte_by_byte() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |call, transport| {
            let Call::Data(input) = call else { return None };
            transport.write(input.take()).unwrap();
            Some(Ok(()))
        })?;
        let addr = relay(&env, listener.local_addr(), Fate::OneByOne)?;
        let mut client = TcpStream::connect_tls(addr, &tls, "localhost").await?;
        let sent = pattern(3000);
        client.write_all(&sent).await?;
        let mut received = vec![0; 3000];
        client.read_exact(&mut received).await?;
        assert_same_bytes(&received, &sent);
        client.shutdown_write();
        assert!(read_to_end(&mut client).await?.is_empty());
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}

#[test]
fn several_records_in_one_piece_are_all_delivered_and_frames_may_span_them() {
    on_every_driver(async |env| {
        // Frames of 10,007 bytes, taken whole only.
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Data(input) = call else { return None };
            while input.len() >= 10_007 {
                let frame = &input.bytes()[..10_007];
                assert!(frame.iter().all(|byte| *byte == frame[0]));
                transport.write(&frame[..1]).unwrap();
                input.consume(10_007);
            }
            Some(Ok(()))
        })
        .await?;
        for number in 0..20u8 {
            client.write_all(&vec![number; 10_007]).await?;
        }
        let mut answers = [0; 20];
        client.read_exact(&mut answers).await?;
        assert!(answers.iter().enumerate().all(|(number, answer)| number == usize::from(*answer)));
        client.close();
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}

#[test]
fn a_paused_protocol_is_given_nothing_and_the_peer_stops() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            if let Call::HandshakeCompleted = call {
                transport.pause_reading();
            }
            None
        })
        .await?;
        let mut written = 0;
        while client.transport().buffered() <= 64 * 1024 {
            client.transport().write(&pattern(30_000))?;
            written += 30_000;
            shardwise::yield_now().await;
            assert!(written < 100_000_000, "it receives without end");
        }
        assert_eq!(log.seen(), ["connected", "handshake"]);
        // Written to while it is paused: sealing needs no opening.
        log.transport().await.write(b"go on")?;
        let mut word = [0; 5];
        client.read_exact(&mut word).await?;
        log.transport().await.resume_reading();
        client.flush().await?;
        log.until(move |state| state.received.len() == written).await;
        client.close();
        assert_eq!(log.ended().await, "PeerFinished");
        for piece in log.received().chunks(30_000) {
            assert_same_bytes(piece, &pattern(30_000));
        }
        Ok(())
    });
}

/// RUSTSEC-2020-0019: what is decrypted and not read must not grow with what the peer sends.
#[test]
fn one_piece_at_most_is_decrypted_ahead_of_a_protocol_that_pauses() {
    on_every_driver(async |env| {
        let most = Rc::new(Cell::new(0));
        let seen = Rc::clone(&most);
        let (log, mut client) = pair(&env, move |call, transport| {
            let Call::Data(input) = call else { return None };
            seen.set(seen.get().max(input.len()));
            // A little at a time, and never all there is.
            input.consume(input.len().min(1000));
            transport.pause_reading();
            let transport = transport.clone();
            transport.shard().clone().call_later(Duration::ZERO, move |_| transport.resume_reading());
            Some(Ok(()))
        })
        .await?;
        client.write_all(&pattern(300_000)).await?;
        client.flush().await?;
        log.until(|_| most.get() > 0).await;
        for _ in 0..200 {
            shardwise::yield_now().await;
        }
        assert!(most.get() <= 2 * 16 * 1024, "{} bytes were decrypted", most.get());
        log.transport().await.abort();
        assert_eq!(log.ended().await, "Aborted");
        Ok(())
    });
}

#[test]
fn a_stream_moves_to_another_shard_with_its_tls() {
    let mut config = Config::default();
    config.watermarks.cap_bytes = 32 * 1024 * 1024;
    on_every_driver_with(2, config, async |env| {
        let len = megabytes(&env, 8);
        let (server, tls) = Authority::new().both();
        let moves = Log::new();
        let noted = moves.clone();
        let listener =
            env.shard().serve_tls("127.0.0.1:0", &server, async move |mut stream: TcpStream| {
                let mut start = [0; 4];
                stream.read_exact(&mut start).await?;
                assert_eq!(&start, b"stay");
                stream.transport().write(&pattern(len))?;
                let home = stream.transport().shard().clone();
                // So that bytes lie unread here.
                home.sleep(Duration::from_millis(5)).await;
                assert!(stream.transport().buffered() > 0, "the kernel has taken everything");
                let detached: DetachedTcpStream = stream.detach().await?;
                noted.note("detached");
                let moved = home.call_async(ShardId::new(1), async move |shard: Shard| -> Result<()> {
                    let mut stream = detached.attach(&shard)?;
                    assert_eq!(stream.tls_info().unwrap().server_name.as_deref(), Some("localhost"));
                    let mut rest = [0; 5];
                    stream.read_exact(&mut rest).await?;
                    assert_eq!(&rest, b"moved");
                    stream.write_all(b"the end").await?;
                    assert!(read_to_end(&mut stream).await?.is_empty());
                    Ok(())
                });
                moved.await?
            })?;
        let mut client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        client.write_all(b"staymoved").await?;
        client.flush().await?;
        moves.saw("detached").await;
        let mut received = vec![0; len + 7];
        client.read_exact(&mut received).await?;
        assert_same_bytes(&received[..len], &pattern(len));
        assert_eq!(&received[len..], b"the end");
        client.shutdown_write();
        assert!(read_to_end(&mut client).await?.is_empty());
        Ok(())
    });
}

#[test]
fn a_stream_that_nobody_reads_stops_the_peer() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let release = Log::new();
        let waits = release.clone();
        let count = Rc::new(Cell::new(0));
        let counted = Rc::clone(&count);
        let listener =
            env.shard().serve_tls("127.0.0.1:0", &server, async move |mut stream: TcpStream| {
                waits.saw("go").await;
                counted.set(read_to_end(&mut stream).await?.len());
                Ok(())
            })?;
        let mut client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        let mut written = 0;
        while client.transport().buffered() <= 64 * 1024 {
            written += client.transport().write(&[0; 30_000]).map(|_| 30_000)?;
            shardwise::yield_now().await;
            assert!(written < 100_000_000, "it receives without end");
        }
        release.note("go");
        client.flush().await?;
        client.shutdown_write();
        assert!(read_to_end(&mut client).await?.is_empty());
        assert_eq!(count.get(), written);
        Ok(())
    });
}

/// Random numbers, xorshift, from the seed of the run.
fn random(env: &Env, stream: u64) -> impl FnMut(u64) -> u64 + Clone + 'static {
    let mut state = env.seed().wrapping_add(stream) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

#[test]
fn all_bytes_arrive_while_a_protocol_pauses_and_a_stream_moves_back_and_forth() {
    on_every_driver_with(2, Config::default(), async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let mut next = random(&env, 0);
        let listener = listen(&env, &server, &log, move |call, transport| {
            let Call::Data(input) = call else { return None };
            let count = (next(9000) as usize).clamp(1, input.len());
            transport.write(&input.bytes()[..count]).unwrap();
            input.consume(count);
            if next(3) == 0 || !input.is_empty() {
                transport.pause_reading();
                let again = transport.clone();
                let after = Duration::from_micros(next(500));
                transport.shard().clone().call_later(after, move |_| again.resume_reading());
            }
            Some(Ok(()))
        })?;
        let mut stream = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        let mut next = random(&env, 2);
        let sent = pattern(400_000);
        let (mut written, mut received) = (0, Vec::new());
        while received.len() < sent.len() {
            if written < sent.len() && written - received.len() < 200_000 {
                let end = sent.len().min(written + 1 + next(30_000) as usize);
                stream.write_all(&sent[written..end]).await?;
                written = end;
                if next(2) == 0 {
                    continue;
                }
            }
            if next(8) == 0 {
                let detached = stream.detach().await?;
                let moved = env.shard().call_async(ShardId::new(1), async move |shard: Shard| {
                    let stream = detached.attach(&shard)?;
                    shard.sleep(Duration::from_micros(100)).await;
                    stream.detach().await
                });
                stream = moved.await??.attach(env.shard())?;
            }
            if written > received.len() {
                received.extend_from_slice(&stream.read_chunk().await?.expect("no end"));
            }
        }
        assert_same_bytes(&received, &sent);
        stream.shutdown_write();
        assert!(read_to_end(&mut stream).await?.is_empty());
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}

thread_local! {
    /// A connection of the shard whose thread this is, for a call that may come from any.
    static VICTIM: RefCell<Option<(Transport, Log)>> = const { RefCell::new(None) };
}

#[test]
fn a_write_that_fails_leaves_nothing_in_the_way_of_another_connection() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let kept = Rc::new(RefCell::new(Vec::new()));
        let transports = Rc::clone(&kept);
        let listener =
            env.shard().serve_tls("127.0.0.1:0", &server, async move |mut stream: TcpStream| {
                transports.borrow_mut().push(stream.transport().clone());
                while let Some(chunk) = stream.read_chunk().await? {
                    stream.write_all(&chunk).await?;
                }
                Ok(())
            })?;
        let mut first = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        round_trip(&mut first, b"a").await?;
        let mut second = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        round_trip(&mut second, b"b").await?;
        let done = Log::new();
        VICTIM.set(Some((kept.borrow()[0].clone(), done.clone())));
        first.abort();
        // Runs in the next turn, before its events: the kernel knows of the reset, the shard does not.
        env.handle().call_from_thread(env.shard().id(), |_: &Shard| {
            let (victim, done) = VICTIM.take().expect("it was left for this");
            let refused = victim.write(&pattern(20_000)).is_err();
            done.note(if refused { "refused" } else { "taken" });
        })?;
        done.until(|state| !state.seen.is_empty()).await;
        // The simulated kernel tells of a reset when it arrives, and not before.
        assert!(env.is_simulated() || done.seen() == ["refused"], "{:?}", done.seen());
        round_trip(&mut second, b"still mine").await?;
        Ok(())
    });
}

#[test]
fn a_stream_that_is_detached_while_it_reads_takes_along_what_was_not_opened() {
    on_every_driver_with(2, Config::default(), async |env| {
        let (server, tls) = Authority::new().both();
        let outcome = Log::new();
        let noted = outcome.clone();
        let listener =
            env.shard().serve_tls("127.0.0.1:0", &server, async move |mut stream: TcpStream| {
                let first = stream.read_chunk().await?.expect("there is more").to_vec();
                let home = stream.transport().shard().clone();
                let detached = stream.detach().await?;
                let rest = home.call_async(ShardId::new(1), async move |shard: Shard| -> Result<Vec<u8>> {
                    Ok(read_to_end(&mut detached.attach(&shard)?).await?)
                });
                noted.push(&[first, rest.await??].concat());
                noted.note("done");
                Ok(())
            })?;
        let mut client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        let_others_go_on(&env).await?;
        client.write_all(&pattern(60_000)).await?;
        client.shutdown_write();
        assert!(read_to_end(&mut client).await?.is_empty());
        outcome.saw("done").await;
        assert_same_bytes(&outcome.received(), &pattern(60_000));
        Ok(())
    });
}

#[test]
fn a_stream_that_is_detached_at_once_takes_along_what_came_with_the_handshake() {
    on_every_driver_with(2, Config::default(), async |env| {
        let authority = Authority::new();
        // Without tickets nothing is to be sent between the end of the handshake and the first bytes.
        let server = authority.server_builder().session_tickets(false).build()?;
        let outcome = Log::new();
        let noted = outcome.clone();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async move |stream: TcpStream| {
            let home = stream.transport().shard().clone();
            let detached = stream.detach().await?;
            let got = home.call_async(ShardId::new(1), async move |shard: Shard| -> Result<Vec<u8>> {
                Ok(read_to_end(&mut detached.attach(&shard)?).await?)
            });
            noted.push(&got.await??);
            noted.note("done");
            Ok(())
        })?;
        let attempt =
            env.shard().connect_tls(listener.local_addr(), &authority.client(), "localhost", move || {
                Probe::new(&Log::new(), |call, transport| {
                    if let Call::Connected = call {
                        transport.write(b"hello").unwrap();
                        transport.close();
                    }
                    None
                })
            });
        let _ = attempt.await;
        outcome.saw("done").await;
        assert_eq!(outcome.received(), b"hello");
        Ok(())
    });
}

#[test]
fn output_that_a_task_has_written_stalls_like_any_other() {
    let mut config = Config::default();
    config.write_timeout = Duration::from_millis(100);
    on_every_driver_with(1, config, async |env| {
        let (log, client) = pair(&env, |_, _| None).await?;
        client.transport().pause_reading();
        let transport = log.transport().await;
        // Until the peer's buffers are full; from then on nothing but time passes.
        while log.count("dropped") == 0 {
            if transport.buffered() == 0 {
                let _ = transport.write(&pattern(40_000));
            }
            env.shard().sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(log.ended().await, "WriteStalled");
        Ok(())
    });
}
