//! Writing: order, size, watermarks, the cap, and a peer that takes nothing.

use std::cell::Cell;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use crate::common::{
    Call, Log, Probe, assert_same_bytes, let_others_go_on, listen, megabytes, pair, pattern, read_to_end,
};
use shardwise::testing::{on_every_driver, on_every_driver_with};
use shardwise::{Config, Flow, Result, TcpStream, Transport, WriteError};

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
fn a_protocol_without_half_close_flushes_everything_to_a_slow_reader_first() {
    let mut config = Config::default();
    config.watermarks.cap_bytes = 32 * 1024 * 1024;
    on_every_driver_with(2, config, async |env| {
        let len = megabytes(&env, 20);
        let (log, mut client) = pair(&env, move |call, transport| match call {
            Call::Connected => {
                // So that the FIN is told while the output waits.
                transport.set_reads_above_high(true);
                Some(Ok(()))
            }
            Call::Data(input) => {
                input.take();
                Some(transport.write(&pattern(len)).map(drop).map_err(Into::into))
            }
            _ => None,
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
        // More than an unkind driver may yet deliver to whoever has just paused.
        while transport.buffered() <= 900 * 1024 {
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
