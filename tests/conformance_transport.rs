//! TCP transports: writing, closing, half-closing, pausing, failing. Each test's name is a promise kept on every driver.

mod common;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use common::{
    Call, Echo, Log, Probe, assert_same_bytes, echo_server, let_others_go_on, listen, pair, pattern,
    read_to_end, round_trip,
};
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{
    Config, DetachedTcpStream, Flow, Input, Protocol, Result, Shard, ShardId, TcpStream, Transport,
    WriteError,
};

/// So many on a real kernel. The simulated one buffers less, and is run several times: a tenth, but a million at least.
fn megabytes(env: &Env, count: usize) -> usize {
    if env.is_simulated() { (count * 100_000).max(1_000_000) } else { count * 1_000_000 }
}

/// Writes in which small and large ones follow each other: some are copied, some go straight to the kernel.
fn write_all_sizes(transport: &Transport) -> Result<Vec<u8>> {
    let sizes = [1, 100, 9000, 0, 20_000, 3, 8191, 8192, 70_000, 5, 30_000];
    let bytes = pattern(sizes.iter().sum());
    let mut rest = &bytes[..];
    for size in sizes {
        let (piece, after) = rest.split_at(size);
        if size % 2 == 0 {
            let (first, second) = piece.split_at(size / 3);
            transport.write_vectored(&[IoSlice::new(first), IoSlice::new(&[]), IoSlice::new(second)])?;
        } else {
            transport.write(piece)?;
        }
        rest = after;
    }
    Ok(bytes)
}

#[test]
fn writes_arrive_in_order_wherever_they_are_made() {
    on_every_driver(async |env| {
        // In a callback of the connection, then from a task.
        let (log, mut client) = pair(&env, |call, transport| match call {
            Call::Connected => Some(write_all_sizes(transport).map(drop)),
            _ => None,
        })
        .await?;
        let transport = log.transport().await;
        let expected = write_all_sizes(&transport)?.repeat(2);
        let mut received = vec![0; expected.len()];
        client.read_exact(&mut received).await?;
        assert_same_bytes(&received, &expected);
        Ok(())
    });
}

#[test]
fn a_vectored_write_of_three_thousand_pieces_is_one_write() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let bytes = pattern(9000);
        let pieces: Vec<_> = bytes.chunks(3).map(IoSlice::new).collect();
        log.transport().await.write_vectored(&pieces)?;
        let mut received = vec![0; bytes.len()];
        client.read_exact(&mut received).await?;
        assert_same_bytes(&received, &bytes);
        Ok(())
    });
}

#[test]
fn five_megabytes_through_write_all_arrive_whole() {
    on_every_driver(async |env| {
        let len = megabytes(&env, 5);
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            stream.write_all(&pattern(len)).await?;
            stream.flush().await?;
            assert_eq!(stream.transport().buffered(), 0);
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(len));
        Ok(())
    });
}

/// Writes `bytes` in pieces of `piece_bytes`, as a protocol should: until told to stop, on when told to go on.
#[derive(Clone)]
struct Pump {
    bytes: Rc<Vec<u8>>,
    piece_bytes: usize,
    written: usize,
}

impl Pump {
    fn new(len: usize, piece_bytes: usize) -> Self {
        Pump { bytes: Rc::new(pattern(len)), piece_bytes, written: 0 }
    }

    fn go_on(&mut self, transport: &Transport) -> Result<()> {
        while self.written < self.bytes.len() {
            let end = (self.written + self.piece_bytes).min(self.bytes.len());
            let flow = transport.write(&self.bytes[self.written..end])?;
            self.written = end;
            if flow == Flow::AboveHigh {
                return Ok(());
            }
        }
        transport.close();
        Ok(())
    }
}

#[test]
fn a_protocol_that_heeds_the_flow_gets_five_megabytes_through() {
    on_every_driver(async |env| {
        for piece_bytes in [1000, 50_000] {
            let mut pump = Pump::new(megabytes(&env, 5), piece_bytes);
            let expected = Rc::clone(&pump.bytes);
            let (log, mut client) = pair(&env, move |call, transport| match call {
                Call::Connected | Call::Resumed => Some(pump.go_on(transport)),
                _ => None,
            })
            .await?;
            assert_same_bytes(&read_to_end(&mut client).await?, &expected);
            let seen = log.seen();
            let told = seen.iter().filter(|name| ["paused", "resumed"].contains(name));
            for (index, name) in told.enumerate() {
                assert_eq!(*name, ["paused", "resumed"][index % 2], "{seen:?}");
            }
            drop(client);
            assert_eq!(log.ended().await, "Closed");
        }
        Ok(())
    });
}

#[test]
fn whoever_is_told_above_high_is_told_to_go_on_later() {
    on_every_driver(async |env| {
        // From a callback and from a task; the kernel has room for all of it.
        for in_callback in [true, false] {
            let fill = |transport: &Transport| {
                let mut written = 0;
                while transport.write(&[7; 1000])? == Flow::Open {
                    written += 1;
                    assert!(written < 10_000, "never above high");
                }
                Ok(())
            };
            let (log, mut client) = pair(&env, move |call, transport| match call {
                Call::Connected if in_callback => Some(fill(transport)),
                _ => None,
            })
            .await?;
            if !in_callback {
                fill(&log.transport().await)?;
            }
            let reader = env.shard().spawn(async move { read_to_end(&mut client).await });
            log.saw("resumed").await;
            assert_eq!((log.count("paused"), log.count("resumed")), (1, 1));
            log.transport().await.close();
            reader.await??;
        }
        Ok(())
    });
}

#[test]
fn pause_and_resume_come_once_per_crossing_however_many_writes_follow() {
    let mut config = Config::default();
    config.watermarks.cap_bytes = 32 * 1024 * 1024;
    on_every_driver_with(2, config, async |env| {
        // More than any kernel buffers, so that the peer decides when there is room.
        let pieces = if env.is_simulated() { 10 } else { 160 };
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        for round in 1..=2 {
            let hold = client.transport().hold_reading();
            for _ in 0..pieces {
                transport.write(&[1; 100_000])?;
            }
            for _ in 0..5 {
                shardwise::yield_now().await;
                assert_eq!(transport.write(&[2; 1000]), Ok(Flow::AboveHigh));
            }
            log.until(|state| state.seen.iter().filter(|name| **name == "paused").count() == round).await;
            let_others_go_on(&env).await?;
            assert_eq!((log.count("paused"), log.count("resumed")), (round, round - 1));
            drop(hold);
            let mut received = vec![0; pieces * 100_000 + 5000];
            client.read_exact(&mut received).await?;
            log.until(|state| state.seen.iter().filter(|name| **name == "resumed").count() == round).await;
            assert_eq!((log.count("paused"), log.count("resumed")), (round, round));
        }
        Ok(())
    });
}

#[test]
fn a_write_beyond_the_cap_is_refused_whole_and_the_connection_stays_open() {
    let mut config = Config::default();
    config.watermarks.cap_bytes = 100_000;
    on_every_driver_with(2, config, async |env| {
        let taken = Rc::new(Cell::new(0));
        let counted = Rc::clone(&taken);
        let (log, mut client) = pair(&env, move |call, transport| {
            let Call::Connected = call else { return None };
            // Small writes of a callback wait for its end, so that the kernel cannot take them meanwhile.
            loop {
                match transport.write(&[3; 999]) {
                    Ok(_) => counted.set(counted.get() + 999),
                    Err(error) => {
                        assert_eq!(error, WriteError::Full);
                        break;
                    }
                }
            }
            let before = transport.buffered();
            assert_eq!(before, 100 * 999);
            let half = IoSlice::new(&[4; 99]);
            assert_eq!(transport.write_vectored(&[half, half]), Err(WriteError::Full));
            assert_eq!(transport.buffered(), before, "nothing was taken");
            assert!(transport.is_open());
            transport.write(&[3; 100]).expect("there is room for a hundred");
            assert_eq!(transport.write(&[3; 1]), Err(WriteError::Full));
            assert_eq!(transport.write(&[]), Ok(Flow::AboveHigh), "nothing fits");
            Some(Ok(()))
        })
        .await?;
        let mut received = vec![0; 100_000];
        client.read_exact(&mut received).await?;
        assert!(received.iter().all(|byte| *byte == 3), "a refused write has left a trace");
        log.transport().await.write(b"on")?;
        client.read_exact(&mut received[..2]).await?;
        assert_eq!(&received[..2], b"on");
        assert!(log.count("disconnected") == 0 && taken.get() == 100 * 999);
        Ok(())
    });
}

#[test]
fn writes_after_close_are_refused_and_send_nothing() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Data(input) = call else { return None };
            input.take();
            transport.write(b"before").unwrap();
            transport.close();
            assert!(!transport.is_open());
            assert_eq!(transport.write(b"after"), Err(WriteError::Closed));
            assert_eq!(transport.write_vectored(&[IoSlice::new(b"after")]), Err(WriteError::Closed));
            Some(Ok(()))
        })
        .await?;
        client.write_all(b"go").await?;
        assert_eq!(read_to_end(&mut client).await?, b"before");
        let transport = log.transport().await;
        assert_eq!(transport.write(b"closing"), Err(WriteError::Closed));
        drop(client);
        assert_eq!(log.ended().await, "Closed");
        assert_eq!(transport.write(b"gone"), Err(WriteError::Closed));
        assert_eq!(transport.write(b""), Err(WriteError::Closed));
        assert_eq!(env.handle().report()[0].panics, 0);
        Ok(())
    });
}

#[test]
fn close_sends_what_was_written_before() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Connected = call else { return None };
            transport.write(&pattern(1_000_000)).unwrap();
            transport.close();
            Some(Ok(()))
        })
        .await?;
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(1_000_000));
        drop(client);
        assert_eq!(log.ended().await, "Closed");
        Ok(())
    });
}

#[test]
fn close_is_idempotent_and_the_end_is_told_once_and_not_from_within() {
    on_every_driver(async |env| {
        // From a callback.
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Data(input) = call else { return None };
            input.take();
            for _ in 0..3 {
                transport.close();
            }
            Some(Ok(()))
        })
        .await?;
        client.write_all(b"go").await?;
        assert_eq!(log.ended().await, "Closed");
        assert_eq!(log.seen(), ["connected", "data", "disconnected", "dropped"]);
        log.transport().await.close();
        // From a task.
        let (log, _client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        transport.close();
        transport.close();
        assert_eq!(log.seen(), ["connected"], "told before close returned");
        assert_eq!(log.ended().await, "Closed");
        transport.close();
        transport.abort();
        let_others_go_on(&env).await?;
        assert_eq!(log.seen(), ["connected", "disconnected", "dropped"]);
        Ok(())
    });
}

#[test]
fn close_from_both_ends_at_once_is_clean_on_both() {
    on_every_driver(async |env| {
        let (server, client) = (Log::new(), Log::new());
        let listener = listen(&env, &server, |_, _| None)?;
        let probe = client.clone();
        env.shard().connect_tcp(listener.local_addr(), move || Probe::new(&probe, |_, _| None)).await?;
        server.transport().await.close();
        client.transport().await.close();
        for log in [server, client] {
            let reason = log.ended().await;
            assert!(reason == "Closed" || reason == "PeerFinished", "{reason}");
        }
        Ok(())
    });
}

#[test]
fn abort_resets_the_peer_and_delivers_nothing_more() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Data(input) = call else { return None };
            transport.write(b"lost").unwrap();
            transport.abort();
            assert!(input.is_empty() && !transport.is_open());
            assert_eq!(transport.write(b"more"), Err(WriteError::Closed));
            assert_eq!(transport.buffered(), 0);
            Some(Ok(()))
        })
        .await?;
        let sent = client.write_all(&[5; 300_000]).await;
        let read = read_to_end(&mut client).await;
        let error = sent.and(read.map(drop)).unwrap_err();
        let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        assert_eq!(log.ended().await, "Aborted");
        assert_eq!(log.look(|state| state.deliveries), 1);
        Ok(())
    });
}

#[test]
fn abort_twice_or_with_close_is_harmless_on_either_side() {
    on_every_driver(async |env| {
        for pattern in ["abort abort", "abort close", "close abort"] {
            for server_side in [true, false] {
                let (server, client) = (Log::new(), Log::new());
                let listener = listen(&env, &server, |_, _| None)?;
                let probe = client.clone();
                let attempt =
                    env.shard().connect_tcp(listener.local_addr(), move || Probe::new(&probe, |_, _| None));
                attempt.await?;
                let (ours, theirs) = if server_side { (server, client) } else { (client, server) };
                let transport = ours.transport().await;
                theirs.saw("connected").await;
                for verb in pattern.split(' ') {
                    if verb == "abort" { transport.abort() } else { transport.close() }
                }
                assert_eq!(ours.seen(), ["connected"], "told from within");
                assert_eq!(ours.ended().await, "Aborted", "{pattern}");
                assert_eq!(theirs.ended().await, "Os(ConnectionReset)", "{pattern}");
            }
        }
        Ok(())
    });
}

/// The callbacks in which something can go wrong.
const CALLBACKS: [&str; 8] =
    ["connected", "data", "read_finished", "write_finished", "paused", "resumed", "deadline", "draining"];

fn name(call: &Call<'_, '_>) -> &'static str {
    match call {
        Call::Connected => "connected",
        Call::Data(_) => "data",
        Call::ReadFinished => "read_finished",
        Call::WriteFinished => "write_finished",
        Call::Paused => "paused",
        Call::Resumed => "resumed",
        Call::Deadline => "deadline",
        Call::Draining => "draining",
        Call::Disconnected => "disconnected",
    }
}

/// A probe that does `action` in the callback `wanted`, and otherwise what leads there.
async fn provoke(env: &Env, wanted: &'static str, action: fn(&Transport) -> Result<()>) -> Result<Log> {
    let (log, mut client) = pair(env, move |call, transport| {
        if name(call) == wanted {
            if let Call::Data(input) = call {
                input.take();
            }
            return Some(action(transport));
        }
        let Call::Data(input) = call else { return None };
        input.take();
        match wanted {
            "write_finished" => transport.shutdown_write(),
            "paused" | "resumed" => {
                for _ in 0..70 {
                    transport.write(&[6; 1000]).unwrap();
                }
            }
            "deadline" => transport.set_deadline(Some(Duration::from_millis(1))),
            "draining" => env_stop(transport),
            _ => {}
        }
        Some(Ok(()))
    })
    .await?;
    // Refused where the server has ended it already.
    let _ = client.write_all(b"go").await;
    if wanted == "read_finished" {
        client.shutdown_write();
    }
    let _ = read_to_end(&mut client).await;
    drop(client);
    Ok(log)
}

fn env_stop(transport: &Transport) {
    // The first of several deliveries has stopped it.
    let _ = transport.shard().stop();
}

#[test]
fn abort_in_any_callback_ends_the_connection_once() {
    on_every_driver(async |env| {
        for wanted in CALLBACKS {
            let log = provoke(&env, wanted, |transport| {
                transport.abort();
                Ok(())
            })
            .await?;
            assert_eq!(log.ended().await, "Aborted", "in {wanted}");
            let seen = log.seen();
            assert_eq!(seen[seen.len() - 3], wanted, "nothing came after: {seen:?}");
        }
        Ok(())
    });
}

#[test]
fn close_in_any_callback_ends_the_connection_once() {
    on_every_driver(async |env| {
        for wanted in CALLBACKS {
            let log = provoke(&env, wanted, |transport| {
                transport.close();
                Ok(())
            })
            .await?;
            let reason = log.ended().await;
            let expected = if wanted == "read_finished" { "PeerFinished" } else { "Closed" };
            assert_eq!(reason, expected, "in {wanted}");
            assert_eq!(log.count(wanted), 1);
        }
        Ok(())
    });
}

#[test]
fn a_callback_that_fails_ends_that_connection_alone_with_its_error() {
    on_every_driver(async |env| {
        let mut bystander = TcpStream::connect(echo_server(&env)?).await?;
        for wanted in CALLBACKS {
            if wanted != "draining" {
                round_trip(&mut bystander, b"before").await?;
            }
            let log = provoke(&env, wanted, |_| Err("out of luck".into())).await?;
            assert_eq!(log.ended().await, "Protocol(out of luck)", "in {wanted}");
            assert_eq!(log.count(wanted), 1);
            if wanted != "draining" {
                round_trip(&mut bystander, b"after").await?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_callback_that_panics_ends_that_connection_alone_with_its_message() {
    on_every_driver(async |env| {
        let mut bystander = TcpStream::connect(echo_server(&env)?).await?;
        for (index, wanted) in CALLBACKS.into_iter().enumerate() {
            let log = provoke(&env, wanted, |transport| {
                // Perhaps half a frame: it must not be sent.
                let _ = transport.write(b"half");
                panic!("out of luck");
            })
            .await?;
            assert_eq!(log.ended().await, "Panicked(out of luck)", "in {wanted}");
            assert_eq!(log.count(wanted), 1);
            assert_eq!(env.handle().report()[0].panics, index as u64 + 1);
            if wanted != "draining" {
                round_trip(&mut bystander, b"after").await?;
            }
        }
        Ok(())
    });
}

#[test]
fn what_a_failing_callback_wrote_is_sent_and_what_a_panicking_one_wrote_is_not() {
    on_every_driver(async |env| {
        for panics in [false, true] {
            let (_log, mut client) = pair(&env, move |call, transport| {
                let Call::Data(input) = call else { return None };
                input.take();
                transport.write(b"sorry").unwrap();
                assert!(!panics, "as the test wants it");
                Some(Err("as the test wants it".into()))
            })
            .await?;
            client.write_all(b"go").await?;
            let answer = read_to_end(&mut client).await?;
            assert_eq!(answer, if panics { &b""[..] } else { b"sorry" });
        }
        Ok(())
    });
}

#[test]
fn a_panic_in_disconnected_or_in_the_destructor_harms_nobody() {
    struct Trap {
        log: Log,
        in_destructor: bool,
    }
    impl Protocol for Trap {
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            input.take();
            transport.close();
            Ok(())
        }
        fn disconnected(&mut self, _reason: shardwise::CloseReason) {
            self.log.note("disconnected");
            assert!(self.in_destructor, "as the test wants it");
        }
    }
    impl Drop for Trap {
        fn drop(&mut self) {
            self.log.note("dropped");
            assert!(!self.in_destructor, "as the test wants it");
        }
    }
    on_every_driver(async |env| {
        let mut bystander = TcpStream::connect(echo_server(&env)?).await?;
        for in_destructor in [false, true] {
            let log = Log::new();
            let trap = log.clone();
            let listener =
                env.shard().listen_tcp("127.0.0.1:0", move || Trap { log: trap.clone(), in_destructor })?;
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.write_all(b"go").await?;
            assert!(read_to_end(&mut client).await?.is_empty());
            log.saw("dropped").await;
            assert_eq!(log.seen(), ["disconnected", "dropped"]);
            round_trip(&mut bystander, b"unharmed").await?;
        }
        assert_eq!(env.handle().report()[0].panics, 2);
        Ok(())
    });
}

#[test]
fn a_handler_that_fails_or_panics_ends_its_own_connection_alone() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            let mut verb = [0];
            while stream.read(&mut verb).await? == 1 {
                match verb[0] {
                    b'f' => return Err("out of luck".into()),
                    b'p' => panic!("out of luck"),
                    _ => stream.write_all(&verb).await?,
                }
            }
            Ok(())
        })?;
        let mut bystander = TcpStream::connect(listener.local_addr()).await?;
        for verb in [b"f", b"p"] {
            let mut unlucky = TcpStream::connect(listener.local_addr()).await?;
            round_trip(&mut unlucky, b"hello").await?;
            unlucky.write_all(verb).await?;
            assert!(read_to_end(&mut unlucky).await?.is_empty());
            round_trip(&mut bystander, b"hello").await?;
        }
        Ok(())
    });
}

#[test]
fn after_the_peers_fin_we_may_still_answer() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| match call {
            Call::ReadFinished => {
                // Later, from a timer, as a slow answer would come.
                let later = transport.clone();
                transport.shard().call_later(Duration::from_millis(2), move |_| {
                    later.write(&pattern(300_000)).unwrap();
                    later.close();
                });
                Some(Ok(()))
            }
            _ => None,
        })
        .await?;
        client.write_all(b"a question").await?;
        client.shutdown_write();
        assert!(client.write_all(b"more").await.is_err(), "written after FIN");
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(300_000));
        assert_eq!(log.ended().await, "PeerFinished");
        assert_eq!(log.received(), b"a question");
        assert_eq!(log.seen(), ["connected", "data", "read_finished", "disconnected", "dropped"]);
        Ok(())
    });
}

#[test]
fn after_our_fin_we_still_receive() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| match call {
            Call::Connected => {
                transport.write(b"all I have").unwrap();
                transport.shutdown_write();
                transport.shutdown_write();
                assert_eq!(transport.write(b"more"), Err(WriteError::Closed));
                Some(Ok(()))
            }
            _ => None,
        })
        .await?;
        assert_eq!(read_to_end(&mut client).await?, b"all I have");
        log.saw("write_finished").await;
        client.write_all(&pattern(1024 * 1024)).await?;
        client.flush().await?;
        drop(client);
        assert_eq!(log.ended().await, "PeerFinished");
        assert_same_bytes(&log.received(), &pattern(1024 * 1024));
        assert_eq!(log.count("write_finished"), 1);
        assert_eq!(log.count("read_finished"), 1);
        Ok(())
    });
}

#[test]
fn a_connection_with_both_halves_finished_ends_by_itself_in_either_order() {
    on_every_driver(async |env| {
        for we_finish_first in [true, false] {
            let (log, mut client) = pair(&env, move |call, transport| match call {
                Call::Connected if we_finish_first => {
                    transport.shutdown_write();
                    Some(Ok(()))
                }
                Call::ReadFinished => {
                    if !we_finish_first {
                        transport.shutdown_write();
                    }
                    Some(Ok(()))
                }
                _ => None,
            })
            .await?;
            if we_finish_first {
                assert!(read_to_end(&mut client).await?.is_empty());
            }
            client.shutdown_write();
            assert_eq!(log.ended().await, "PeerFinished");
            assert_eq!((log.count("read_finished"), log.count("write_finished")), (1, 1));
            assert!(read_to_end(&mut client).await?.is_empty());
        }
        Ok(())
    });
}

#[test]
fn close_from_write_finished_is_a_clean_end() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| match call {
            Call::Connected => {
                transport.shutdown_write();
                Some(Ok(()))
            }
            Call::WriteFinished => {
                transport.close();
                Some(Ok(()))
            }
            _ => None,
        })
        .await?;
        assert!(read_to_end(&mut client).await?.is_empty());
        assert_eq!(log.ended().await, "Closed");
        Ok(())
    });
}

#[test]
fn shutting_the_write_half_of_a_connection_the_peer_has_reset_passes_silently() {
    on_every_driver(async |env| {
        let (log, client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        client.abort();
        assert_eq!(log.ended().await, "Os(ConnectionReset)");
        transport.shutdown_write();
        let_others_go_on(&env).await?;
        assert_eq!(log.count("write_finished"), 0);
        Ok(())
    });
}

#[test]
fn a_protocol_without_half_close_flushes_everything_to_a_slow_reader_first() {
    let mut config = Config::default();
    config.watermarks.cap_bytes = 32 * 1024 * 1024;
    on_every_driver_with(2, config, async |env| {
        let len = megabytes(&env, 20);
        let (log, mut client) = pair(&env, move |call, transport| {
            let Call::Data(input) = call else { return None };
            input.take();
            Some(transport.write(&pattern(len)).map(drop).map_err(Into::into))
        })
        .await?;
        client.write_all(b"x").await?;
        client.shutdown_write();
        log.saw("read_finished").await;
        let_others_go_on(&env).await?;
        assert!(log.look(|state| state.reason.is_none()), "it has ended before its output was sent");
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(len));
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}

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

#[test]
fn a_deadline_closes_by_default_and_can_be_set_moved_and_removed() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        assert_eq!(transport.deadline(), None);
        let now = env.shard().now();
        transport.set_deadline(Some(Duration::from_secs(3600)));
        assert!(transport.deadline().unwrap() >= now + Duration::from_secs(3600));
        transport.set_deadline(Some(Duration::from_millis(3)));
        assert!(transport.deadline().unwrap() < now + Duration::from_secs(3600));
        transport.set_deadline(None);
        assert_eq!(transport.deadline(), None);
        env.shard().sleep(Duration::from_millis(10)).await;
        assert_eq!(log.count("deadline"), 0, "it was removed");
        let begun = env.shard().now();
        transport.set_deadline(Some(Duration::from_secs(3600)));
        transport.set_deadline(Some(Duration::from_millis(5)));
        assert!(read_to_end(&mut client).await?.is_empty());
        assert!(env.shard().now() - begun >= Duration::from_millis(5), "too early");
        assert_eq!(log.ended().await, "DeadlineReached");
        assert_eq!(log.count("deadline"), 1);
        transport.set_deadline(Some(Duration::from_millis(1)));
        assert_eq!(transport.deadline(), None, "it has ended");
        Ok(())
    });
}

#[test]
fn a_protocol_may_outlive_its_deadline_and_set_the_next_one() {
    on_every_driver(async |env| {
        let mut left = 3;
        let (log, _client) = pair(&env, move |call, transport| match call {
            Call::Connected | Call::Deadline => {
                left -= 1;
                if left >= 0 {
                    transport.set_deadline(Some(Duration::from_millis(2)));
                }
                Some(Ok(()))
            }
            _ => None,
        })
        .await?;
        log.until(|state| state.seen.iter().filter(|name| **name == "deadline").count() == 3).await;
        env.shard().sleep(Duration::from_millis(10)).await;
        assert_eq!(log.count("deadline"), 3, "each one comes once");
        assert!(log.transport().await.is_open());
        Ok(())
    });
}

#[test]
fn a_streams_deadline_fails_its_reads_with_timed_out() {
    on_every_driver(async |env| {
        let mut client = TcpStream::connect(echo_server(&env)?).await?;
        client.set_deadline(Some(Duration::from_millis(3)));
        let error = client.read_chunk().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = client.write_all(b"late").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        Ok(())
    });
}

#[test]
fn options_can_be_set_until_the_end() {
    on_every_driver(async |env| {
        let (log, client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        for on in [false, true] {
            transport.set_nodelay(on)?;
            transport.set_keepalive(on)?;
            client.set_nodelay(on)?;
        }
        client.abort();
        log.ended().await;
        assert_eq!(transport.set_nodelay(true).unwrap_err().kind(), io::ErrorKind::NotConnected);
        assert_eq!(transport.local_addr().unwrap_err().kind(), io::ErrorKind::NotConnected);
        assert_eq!(transport.peer_addr(), None);
        Ok(())
    });
}

#[test]
fn a_stream_moves_to_another_shard_with_its_unread_and_unsent_bytes() {
    let mut config = Config::default();
    config.watermarks.cap_bytes = 32 * 1024 * 1024;
    on_every_driver_with(2, config, async |env| {
        let len = megabytes(&env, 16);
        let moves = Log::new();
        let noted = moves.clone();
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
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
                assert_eq!(stream.transport().shard().id(), ShardId::new(1));
                let mut rest = [0; 5];
                stream.read_exact(&mut rest).await?;
                assert_eq!(&rest, b"moved");
                stream.write_all(b"the end").await?;
                assert!(read_to_end(&mut stream).await?.is_empty());
                Ok(())
            });
            moved.await?
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
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
fn a_stream_whose_peer_has_finished_moves_with_that() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            let mut start = [0; 4];
            stream.read_exact(&mut start).await?;
            let home = stream.transport().shard().clone();
            home.sleep(Duration::from_millis(5)).await;
            let detached = stream.detach().await?;
            let moved = home.call_async(ShardId::new(1), async move |shard: Shard| -> Result<()> {
                let mut stream = detached.attach(&shard)?;
                let rest = read_to_end(&mut stream).await?;
                stream.write_all(&rest).await?;
                Ok(())
            });
            moved.await?
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"stayand go").await?;
        client.shutdown_write();
        assert_eq!(read_to_end(&mut client).await?, b"and go");
        Ok(())
    });
}

#[test]
fn a_detached_stream_that_is_dropped_is_closed() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
            drop(stream.detach().await?);
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        assert!(read_to_end(&mut client).await?.is_empty());
        Ok(())
    });
}

#[test]
fn reads_give_what_there_is_and_then_the_end_again_and_again() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            stream.write_all(b"abcdefgh").await?;
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        assert_eq!(client.read(&mut []).await?, 0, "nothing was asked for");
        let mut three = [0; 3];
        client.read_exact(&mut three).await?;
        assert_eq!(&three, b"abc");
        let mut rest = Vec::new();
        loop {
            let mut two = [0; 2];
            let count = client.read(&mut two).await?;
            if count == 0 {
                break;
            }
            rest.extend_from_slice(&two[..count]);
        }
        assert_eq!(rest, b"defgh");
        for _ in 0..3 {
            assert_eq!(client.read(&mut three).await?, 0);
            assert!(client.read_chunk().await?.is_none());
        }
        let error = client.read_exact(&mut three).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        Ok(())
    });
}

#[test]
fn a_read_that_is_dropped_loses_nothing() {
    on_every_driver(async |env| {
        let mut client = TcpStream::connect(echo_server(&env)?).await?;
        let sent = pattern(3000);
        let mut received = Vec::new();
        for piece in sent.chunks(30) {
            client.write_all(piece).await?;
            let mut wanted = piece.len();
            while wanted > 0 {
                let mut buffer = [0; 7];
                let polled = {
                    let mut read = pin!(client.read(&mut buffer));
                    poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await
                };
                if let Poll::Ready(count) = polled {
                    let count = count?;
                    received.extend_from_slice(&buffer[..count]);
                    wanted -= count;
                    continue;
                }
                let chunk = client.read_chunk().await?.expect("the echo goes on");
                received.extend_from_slice(&chunk);
                wanted -= chunk.len();
            }
        }
        assert_same_bytes(&received, &sent);
        Ok(())
    });
}

#[test]
fn bytes_received_before_a_reset_are_read_first() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            stream.write_all(b"first").await?;
            stream.flush().await?;
            let mut go = [0];
            stream.read_exact(&mut go).await?;
            stream.abort();
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        let_others_go_on(&env).await?;
        client.write_all(b"!").await?;
        let_others_go_on(&env).await?;
        let mut first = [0; 5];
        client.read_exact(&mut first).await?;
        assert_eq!(&first, b"first");
        let error = client.read_chunk().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(client.read_chunk().await.is_err(), "it stays broken");
        assert!(client.write_all(b"more").await.is_err());
        assert!(client.flush().await.is_err());
        Ok(())
    });
}

#[test]
fn dropping_a_stream_sends_what_was_written_and_finishes() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let sent = pattern(60_000);
        client.write_all(&sent).await?;
        drop(client);
        assert_eq!(log.ended().await, "PeerFinished");
        assert_same_bytes(&log.received(), &sent);
        Ok(())
    });
}

#[test]
fn a_stream_that_nobody_reads_stops_the_peer() {
    on_every_driver(async |env| {
        let release = Log::new();
        let waits = release.clone();
        let (waits, release_count) = (Rc::new(RefCell::new(Some(waits))), Rc::new(Cell::new(0)));
        let counted = Rc::clone(&release_count);
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            let waits = waits.borrow_mut().take().expect("one connection");
            waits.saw("go").await;
            counted.set(read_to_end(&mut stream).await?.len());
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
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
        assert_eq!(release_count.get(), written);
        Ok(())
    });
}

#[test]
fn callbacks_may_write_to_close_and_abort_others_and_themselves() {
    on_every_driver(async |env| {
        let logs: Rc<RefCell<Vec<Log>>> = Rc::default();
        let listener = {
            let logs = Rc::clone(&logs);
            env.shard().listen_tcp("127.0.0.1:0", move || {
                let log = Log::new();
                let number = logs.borrow().len();
                logs.borrow_mut().push(log.clone());
                let logs = Rc::clone(&logs);
                Probe::new(&log, move |call, transport| {
                    let others: Vec<Transport> = logs
                        .borrow()
                        .iter()
                        .filter_map(|log| log.look(|state| state.transport.clone()))
                        .collect();
                    match call {
                        Call::Data(input) => {
                            input.take();
                            for other in &others {
                                let _ = other.write(b"hi");
                            }
                            others[1].close();
                            others[2].abort();
                            assert_eq!(others[1].write(b"x"), Err(WriteError::Closed));
                            assert_eq!(others[2].write(b"x"), Err(WriteError::Closed));
                            transport.close();
                            others[0].write(b"closed").expect_err("that is us");
                            Some(Ok(()))
                        }
                        // The end of one ends another, which ends others that have ended.
                        Call::Disconnected => {
                            for other in &others {
                                other.close();
                                other.abort();
                            }
                            assert!(number < 4);
                            Some(Ok(()))
                        }
                        _ => None,
                    }
                })
            })?
        };
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(TcpStream::connect(listener.local_addr()).await?);
            let expected = clients.len();
            while logs.borrow().len() < expected {
                shardwise::sleep(Duration::from_millis(1)).await;
            }
            let last = logs.borrow().last().cloned().expect("just made");
            last.saw("connected").await;
        }
        clients[0].write_all(b"go").await?;
        let mut reasons = Vec::new();
        let logs: Vec<Log> = logs.borrow().clone();
        for log in &logs {
            reasons.push(log.ended().await);
        }
        assert!(clients[2].read_chunk().await.is_err(), "reset");
        assert_eq!(reasons[2], "Aborted");
        assert_eq!(reasons[3], "Aborted");
        for log in &logs {
            assert_eq!(log.count("disconnected"), 1);
        }
        Ok(())
    });
}

#[test]
fn a_write_that_fails_in_the_middle_ends_the_connection_once() {
    on_every_driver(async |env| {
        let (log, client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        client.abort();
        let mut refused = false;
        for _ in 0..2000 {
            if transport.write(&[0; 20_000]) == Err(WriteError::Closed) {
                refused = true;
                break;
            }
            env.shard().sleep(Duration::from_millis(1)).await;
        }
        assert!(refused, "it goes on for ever");
        let reason = log.ended().await;
        assert!(reason == "Os(ConnectionReset)" || reason == "Os(BrokenPipe)", "{reason}");
        Ok(())
    });
}

#[test]
fn an_answer_given_before_the_request_was_read_arrives_whole() {
    on_every_driver(async |env| {
        let rounds = if env.is_simulated() { 10 } else { 50 };
        let expected = pattern(30_000);
        let answer = expected.clone();
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            let mut first = [0; 1];
            stream.read_exact(&mut first).await?;
            stream.write_all(&answer).await?;
            Ok(())
        })?;
        for round in 0..rounds {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            let transport = client.transport().clone();
            let sender = env.shard().spawn(async move {
                for _ in 0..64 {
                    while transport.buffered() > 0 {
                        if !transport.is_open() {
                            return;
                        }
                        shardwise::sleep(Duration::from_micros(100)).await;
                    }
                    if transport.write(&[0; 16 * 1024]).is_err() {
                        return;
                    }
                }
            });
            let received = read_to_end(&mut client).await;
            assert_same_bytes(&received.unwrap_or_else(|error| panic!("round {round}: {error}")), &expected);
            drop(client);
            sender.await?;
        }
        Ok(())
    });
}

#[test]
fn data_and_fin_in_one_go_are_both_delivered() {
    on_every_driver(async |env| {
        let rounds = if env.is_simulated() { 60 } else { 1000 };
        let log = Log::new();
        let listener = {
            let log = log.clone();
            env.shard().listen_tcp("127.0.0.1:0", move || Sink { log: log.clone(), received: 0 })?
        };
        for round in 1..=rounds {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.write_all(&[8; 20_000]).await?;
            drop(client);
            log.until(|state| state.seen.len() == round).await;
        }
        assert!(log.seen().iter().all(|name| *name == "whole"), "{:?}", log.seen());
        Ok(())
    });
}

/// Says whether all of 20,000 bytes have come when the peer finishes.
struct Sink {
    log: Log,
    received: usize,
}

impl Protocol for Sink {
    fn data_received(&mut self, _transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        self.received += input.take().len();
        Ok(())
    }

    fn disconnected(&mut self, reason: shardwise::CloseReason) {
        let whole = self.received == 20_000 && matches!(reason, shardwise::CloseReason::PeerFinished);
        self.log.note(if whole { "whole" } else { "cut" });
    }
}

#[test]
fn an_error_after_an_abort_in_the_same_callback_is_the_reason() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Data(input) = call else { return None };
            input.take();
            transport.abort();
            Some(Err("worse".into()))
        })
        .await?;
        client.write_all(b"go").await?;
        assert_eq!(log.ended().await, "Protocol(worse)");
        let error = client.read_chunk().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        Ok(())
    });
}

#[test]
fn a_peer_that_takes_nothing_is_given_up_after_the_write_timeout() {
    let mut config = Config::default();
    config.write_timeout = Duration::from_millis(50);
    on_every_driver_with(2, config, async |env| {
        let log = Log::new();
        let listener = listen(&env, &log, |_, _| None)?;
        let idle = |call: &mut Call<'_, '_>, transport: &Transport| match call {
            Call::Connected => {
                transport.pause_reading();
                Some(Ok(()))
            }
            _ => None,
        };
        let client = Log::new();
        let probe = client.clone();
        env.shard().connect_tcp(listener.local_addr(), move || Probe::new(&probe, idle)).await?;
        let transport = log.transport().await;
        let mut written = 0;
        while transport.buffered() <= 64 * 1024 {
            transport.write(&[0; 30_000])?;
            written += 30_000;
            shardwise::yield_now().await;
            assert!(written < 100_000_000, "the kernel takes everything");
        }
        assert_eq!(log.ended().await, "WriteStalled");
        assert_eq!(client.ended().await, "Os(ConnectionReset)");
        Ok(())
    });
}

#[test]
fn write_all_waits_where_the_high_mark_is_the_cap() {
    let mut config = Config::default();
    config.watermarks.high_bytes = 64 * 1024;
    config.watermarks.cap_bytes = 64 * 1024;
    on_every_driver_with(2, config, async |env| {
        let len = megabytes(&env, 6);
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            stream.write_all(&pattern(len)).await?;
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        let_others_go_on(&env).await?;
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(len));
        Ok(())
    });
}

#[test]
fn an_echo_of_everything_at_once_survives_two_hundred_connections() {
    on_every_driver(async |env| {
        let addr = env.shard().listen_tcp("127.0.0.1:0", || Echo)?.local_addr();
        let clients: Vec<_> = (0..200)
            .map(|number: usize| {
                env.shard().spawn(async move {
                    let mut stream = TcpStream::connect(addr).await?;
                    for round in 0..3 {
                        round_trip(&mut stream, &pattern(1 + (number * 97 + round * 13) % 3000)).await?;
                    }
                    if number % 3 == 0 {
                        stream.abort();
                    }
                    Result::<()>::Ok(())
                })
            })
            .collect();
        for client in clients {
            client.await??;
        }
        Ok(())
    });
}
