//! Reading: frames in pieces, pausing, holding, and what is kept meanwhile.

use std::cell::Cell;
use std::rc::Rc;

use crate::common::{
    Call, Log, Probe, assert_same_bytes, let_others_go_on, listen, pair, pattern, read_to_end,
};
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{Config, Input, Result, TcpStream, Transport};

/// Frames: a length, then so many bytes.
fn frames(count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..count {
        let len = (number * 7) % 23;
        bytes.push(len as u8);
        bytes.extend(std::iter::repeat_n(number as u8, len));
    }
    bytes
}

/// Takes whole frames; gives their contents to `on_frame`, and stops when that says so.
fn take_frames(input: &mut Input<'_>, mut on_frame: impl FnMut(&[u8])) {
    while let [len, rest @ ..] = input.bytes() {
        let Some(frame) = rest.get(..*len as usize) else { break };
        let used = 1 + frame.len();
        on_frame(frame);
        input.consume(used);
    }
}

#[test]
fn partial_frames_are_left_and_come_again_in_every_chunk_size() {
    on_every_driver(async |env| {
        for chunk_bytes in [1, 2, 3, 7, 22, 23, 24, 100, 1000] {
            let log = Log::new();
            let offered = Rc::new(Cell::new(0));
            let listener = {
                let (log, offered) = (log.clone(), Rc::clone(&offered));
                env.shard().listen_tcp("127.0.0.1:0", move || {
                    let (frames, offered) = (log.clone(), Rc::clone(&offered));
                    Probe::new(&log, move |call, _| {
                        let Call::Data(input) = call else { return None };
                        offered.set(frames.look(|state| state.received.len()) + input.len());
                        take_frames(input, |frame| {
                            frames.push(&[frame.len() as u8]);
                            frames.push(frame);
                        });
                        Some(Ok(()))
                    })
                })?
            };
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            let sent = frames(30);
            let mut arrived = 0;
            for chunk in sent.chunks(chunk_bytes) {
                client.write_all(chunk).await?;
                arrived += chunk.len();
                log.until(|_| offered.get() == arrived).await;
            }
            assert_eq!(log.received(), sent, "in chunks of {chunk_bytes}");
        }
        Ok(())
    });
}

#[test]
fn input_runs_dry_on_close_and_the_rest_is_never_delivered() {
    on_every_driver(async |env| {
        let log = Log::new();
        let taken = log.clone();
        let listener = listen(&env, &log, move |call, transport| {
            let Call::Data(input) = call else { return None };
            take_frames(input, |frame| {
                taken.push(frame);
                if frame == b"stop" {
                    transport.close();
                }
            });
            if !transport.is_open() {
                assert!(input.is_empty() && input.bytes().is_empty() && input.take().is_empty());
            }
            Some(Ok(()))
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"\x03one\x04stop\x05never\x05never").await?;
        assert!(read_to_end(&mut client).await?.is_empty());
        drop(client);
        assert_eq!(log.ended().await, "Closed");
        assert_eq!(log.received(), b"onestop");
        Ok(())
    });
}

/// A listener whose probes take single bytes; on `p` they pause reading.
fn pausing_listener(env: &Env, log: &Log) -> Result<shardwise::Listener> {
    let taken = log.clone();
    listen(env, log, move |call, transport| {
        let Call::Data(input) = call else { return None };
        while let Some(byte) = input.bytes().first().copied() {
            input.consume(1);
            taken.push(&[byte]);
            if byte == b'p' {
                transport.pause_reading();
                assert!(input.is_empty(), "it must run dry");
            }
        }
        Some(Ok(()))
    })
}

#[test]
fn input_runs_dry_on_pause_and_the_rest_comes_after_resume_in_a_later_call() {
    on_every_driver(async |env| {
        let log = Log::new();
        let listener = pausing_listener(&env, &log)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"abpcdpefp").await?;
        let transport = log.transport().await;
        for expected in ["abp", "abpcdp", "abpcdpefp"] {
            log.until(|state| state.received.len() >= expected.len()).await;
            let_others_go_on(&env).await?;
            assert_eq!(log.received(), expected.as_bytes());
            transport.resume_reading();
            transport.resume_reading();
            assert_eq!(log.received(), expected.as_bytes(), "delivered within resume_reading");
        }
        client.write_all(b"ghi").await?;
        log.until(|state| state.received == b"abpcdpefpghi").await;
        Ok(())
    });
}

#[test]
fn what_is_left_when_a_callback_pauses_and_resumes_is_delivered_again() {
    on_every_driver(async |env| {
        for by_hold in [false, true] {
            let log = Log::new();
            let taken = log.clone();
            let listener = listen(&env, &log, move |call, transport| {
                let Call::Data(input) = call else { return None };
                let first = input.bytes()[0];
                input.consume(1);
                taken.push(&[first]);
                if by_hold {
                    drop(transport.hold_reading());
                } else {
                    transport.pause_reading();
                    transport.resume_reading();
                }
                Some(Ok(()))
            })?;
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.write_all(b"one by one").await?;
            log.until(|state| state.received == b"one by one").await;
        }
        Ok(())
    });
}

#[test]
fn what_was_kept_comes_in_a_later_turn_than_the_resume() {
    on_every_driver(async |env| {
        let handle = env.handle();
        let turn = move || handle.report()[0].turns;
        let log = Log::new();
        let taken = log.clone();
        let listener = listen(&env, &log, move |call, transport| {
            let Call::Data(input) = call else { return None };
            // Both have come before it pauses, so that the second one is kept.
            if input.len() == 2 {
                input.consume(1);
                taken.push(b"p");
                transport.pause_reading();
            } else if !taken.received().is_empty() {
                taken.take(input);
            }
            Some(Ok(()))
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"pp").await?;
        log.until(|state| state.received == b"p").await;
        let paused = log.transport().await;
        // Resumed by a callback of another connection.
        let (resumed_in, in_callback) = (Rc::new(Cell::new(0)), turn.clone());
        let noted = Rc::clone(&resumed_in);
        let (_other, mut other_client) = pair(&env, move |call, _| {
            let Call::Data(_) = call else { return None };
            paused.resume_reading();
            noted.set(in_callback());
            Some(Ok(()))
        })
        .await?;
        let delivered_in = Rc::new(Cell::new(0));
        let noted = Rc::clone(&delivered_in);
        other_client.write_all(b"!").await?;
        log.until(move |state| {
            let delivered = state.received == b"pp";
            if delivered {
                noted.set(turn());
            }
            delivered
        })
        .await;
        assert!(resumed_in.get() > 0 && resumed_in.get() < delivered_in.get());
        Ok(())
    });
}

#[test]
fn what_was_kept_comes_before_the_fin_that_followed_it() {
    on_every_driver(async |env| {
        let log = Log::new();
        let listener = pausing_listener(&env, &log)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"abpcdpef").await?;
        client.flush().await?;
        client.shutdown_write();
        log.until(|state| state.received == b"abp").await;
        let transport = log.transport().await;
        for expected in ["abp", "abpcdp"] {
            log.until(|state| state.received.len() >= expected.len()).await;
            let_others_go_on(&env).await?;
            assert_eq!(log.received(), expected.as_bytes());
            assert_eq!(log.count("read_finished"), 0, "FIN has overtaken bytes");
            transport.resume_reading();
        }
        assert_eq!(log.ended().await, "PeerFinished");
        assert_eq!(log.received(), b"abpcdpef");
        assert_eq!(log.count("read_finished"), 1);
        Ok(())
    });
}

#[test]
fn input_that_is_left_beyond_the_limit_ends_the_connection() {
    let mut config = Config::default();
    config.input_bytes_max = 10_000;
    on_every_driver_with(2, config, async |env| {
        let most = Rc::new(Cell::new(0));
        let seen = Rc::clone(&most);
        let (log, mut client) = pair(&env, move |call, _| {
            let Call::Data(input) = call else { return None };
            seen.set(input.len());
            Some(Ok(()))
        })
        .await?;
        client.write_all(&[1; 10_000]).await?;
        log.until(|_| most.get() == 10_000).await;
        let_others_go_on(&env).await?;
        assert_eq!(log.count("disconnected"), 0, "the limit itself is allowed");
        client.write_all(&[1]).await?;
        drop(client);
        assert_eq!(log.ended().await, "InputTooLong");
        Ok(())
    });
}

#[test]
fn a_paused_protocol_is_not_blamed_for_what_it_leaves() {
    let mut config = Config::default();
    config.input_bytes_max = 1000;
    on_every_driver_with(2, config, async |env| {
        let paused = Rc::new(Cell::new(false));
        let log = Log::new();
        let taken = log.clone();
        let listener = listen(&env, &log, move |call, transport| {
            let Call::Data(input) = call else { return None };
            if !paused.replace(true) {
                transport.pause_reading();
                return Some(Ok(()));
            }
            taken.take(input);
            Some(Ok(()))
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(&pattern(50_000)).await?;
        log.saw("data").await;
        let_others_go_on(&env).await?;
        log.transport().await.resume_reading();
        log.until(|state| state.received.len() == 50_000).await;
        assert_same_bytes(&log.received(), &pattern(50_000));
        Ok(())
    });
}

#[test]
fn a_pause_in_connected_is_honoured_on_both_sides() {
    on_every_driver(async |env| {
        let hook = |call: &mut Call<'_, '_>, transport: &Transport| match call {
            Call::Connected => {
                transport.pause_reading();
                transport.write(&pattern(5000)).unwrap();
                Some(Ok(()))
            }
            _ => None,
        };
        let (server, client) = (Log::new(), Log::new());
        let listener = listen(&env, &server, hook)?;
        let probe = client.clone();
        env.shard().connect_tcp(listener.local_addr(), move || Probe::new(&probe, hook)).await?;
        let ends = [(server.transport().await, server), (client.transport().await, client)];
        let_others_go_on(&env).await?;
        for (transport, log) in &ends {
            assert_eq!(log.seen(), ["connected"]);
            transport.resume_reading();
            assert_eq!(log.seen(), ["connected"], "delivered within resume_reading");
        }
        for (_, log) in &ends {
            log.until(|state| state.received.len() == 5000).await;
            assert_same_bytes(&log.received(), &pattern(5000));
        }
        Ok(())
    });
}

#[test]
fn pausing_stops_delivery_and_resuming_restarts_it() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        let mut total = 0;
        for _ in 0..5 {
            transport.pause_reading();
            transport.pause_reading();
            client.write_all(&[1; 2000]).await?;
            let_others_go_on(&env).await?;
            assert_eq!(log.received().len(), total, "delivered while paused");
            total += 2000;
            transport.resume_reading();
            log.until(|state| state.received.len() == total).await;
        }
        Ok(())
    });
}

#[test]
fn a_reset_is_noticed_while_reading_is_paused() {
    on_every_driver(async |env| {
        for unread in [false, true] {
            let (log, mut client) = pair(&env, |call, transport| match call {
                Call::Connected => {
                    transport.pause_reading();
                    Some(Ok(()))
                }
                _ => None,
            })
            .await?;
            if unread {
                client.write_all(b"never read").await?;
                let_others_go_on(&env).await?;
            }
            client.abort();
            assert_eq!(log.ended().await, "Os(ConnectionReset)");
        }
        Ok(())
    });
}

#[test]
fn holds_are_counted_and_independent_of_pausing() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        let (first, second) = (transport.hold_reading(), transport.hold_reading());
        transport.pause_reading();
        client.write_all(b"held").await?;
        let_others_go_on(&env).await?;
        drop(first);
        transport.resume_reading();
        let_others_go_on(&env).await?;
        assert_eq!(log.seen(), ["connected"], "one hold is left");
        transport.pause_reading();
        drop(second);
        let_others_go_on(&env).await?;
        assert_eq!(log.seen(), ["connected"], "it is paused");
        transport.resume_reading();
        log.until(|state| state.received == b"held").await;
        // A hold that outlives its connection is harmless.
        let late = transport.hold_reading();
        transport.abort();
        log.ended().await;
        drop(late);
        drop(transport.hold_reading());
        Ok(())
    });
}
