//! Rates: kept in both directions, alone and together, and not felt otherwise.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::common::{Call, Log, Probe, assert_same_bytes, pattern, read_to_end};
use crate::tls_kit::Authority;
use crate::{MS, assert_took, options, pair};
use shardwise::policies::{Policies, Rate, Throttle};
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{
    Config, ConnectOptions, DetachedTcpStream, Producer, ProducerKind, Result, Shard, ShardId, TcpStream,
    Transport,
};

/// A megabyte a second, a tenth of it at once.
const RATE: Rate = Rate::bytes_per_second(1_000_000).burst(100_000);
/// What takes 300 ms at that rate.
const LEN: usize = 400_000;
const TIME: Duration = Duration::from_millis(300);
/// Bytes are under way for some time, and timers have ticks of a millisecond.
const SLACK: Duration = Duration::from_millis(15);

fn writes() -> Policies {
    Policies::new().write_rate(RATE)
}

fn reads() -> Policies {
    Policies::new().read_rate(RATE)
}

/// Of received bytes one read buffer may be above the rate at any time.
fn time_read(env: &Env) -> Duration {
    if env.is_simulated() { TIME } else { TIME - 66 * MS }
}

#[test]
fn a_protocol_sends_at_its_rate_and_every_byte() {
    on_every_driver(async |env| {
        let begun = env.shard().now();
        let (log, mut client) = pair(&env, &writes(), |call, transport| {
            if let Call::Connected = call {
                transport.write(&pattern(LEN)).unwrap();
                transport.close();
            }
            None
        })
        .await?;
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(LEN));
        assert_took(&env, begun, TIME, SLACK);
        assert_eq!(log.ended().await, "Closed", "a close waits for what was written before");
        Ok(())
    });
}

#[test]
fn at_any_moment_no_more_has_come_than_the_rate_allows() {
    on_every_driver(async |env| {
        let begun = env.shard().now();
        let (_log, mut client) = pair(&env, &writes(), |call, transport| {
            if let Call::Connected = call {
                transport.write(&pattern(LEN)).unwrap();
                transport.close();
            }
            None
        })
        .await?;
        let mut received = 0;
        while let Some(chunk) = client.read_chunk().await? {
            received += chunk.len();
            let passed = env.shard().now() - begun;
            let allowed = 100_000.0 + passed.as_secs_f64() * 1e6;
            assert!(received as f64 <= allowed, "{received} after {passed:?}");
        }
        assert_eq!(received, LEN);
        Ok(())
    });
}

#[test]
fn a_protocol_is_given_bytes_at_its_rate_and_the_peer_feels_it() {
    on_every_driver(async |env| {
        let begun = env.shard().now();
        let (log, mut client) = pair(&env, &reads(), |_, _| None).await?;
        client.write_all(&pattern(LEN)).await?;
        client.shutdown_write();
        log.saw("read_finished").await;
        assert_took(&env, begun, time_read(&env), SLACK);
        assert_same_bytes(&log.received(), &pattern(LEN));
        log.ended().await;
        // So slow that what the kernel and the peer may keep is used up.
        let slow = Policies::new().read_rate(Rate::bytes_per_second(100_000));
        let (log, mut client) = pair(&env, &slow, |_, _| None).await?;
        let writes = env.shard().timeout(200 * MS, client.write_all(&[1; 20_000_000])).await;
        assert!(writes.is_err(), "nobody takes that much");
        assert!(log.received().len() <= 20_000 + 10_000 + 66_000, "{}", log.received().len());
        client.abort();
        log.ended().await;
        Ok(())
    });
}

#[test]
fn a_stream_is_held_to_both_rates_and_waits_where_it_always_does() {
    on_every_driver(async |env| {
        let policies = reads().write_rate(RATE);
        let echo = async |mut stream: TcpStream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
                assert!(stream.transport().buffered() <= 64 * 1024 * 2 + 1, "more than the watermark waits");
            }
            Ok(())
        };
        let begun = env.shard().now();
        let listener = env.shard().serve_tcp_with("127.0.0.1:0", &options(&policies), echo)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(&pattern(LEN / 2)).await?;
        client.write_all(&pattern(LEN / 2)).await?;
        client.shutdown_write();
        let echoed = read_to_end(&mut client).await?;
        assert_took(&env, begun, TIME, TIME);
        assert_same_bytes(&echoed, &[pattern(LEN / 2), pattern(LEN / 2)].concat());
        Ok(())
    });
}

#[test]
fn outgoing_connections_are_held_to_them_as_well() {
    on_every_driver(async |env| {
        let log = Log::new();
        let made = log.clone();
        let server = env.shard().listen_tcp("127.0.0.1:0", move || Probe::new(&made, |_, _| None))?;
        let begun = env.shard().now();
        let how = ConnectOptions::new().policies(&writes());
        let mut stream = TcpStream::connect_with(server.local_addr(), &how).await?;
        stream.write_all(&pattern(LEN)).await?;
        stream.flush().await?;
        assert_took(&env, begun, TIME, SLACK);
        drop(stream);
        log.ended().await;
        assert_same_bytes(&log.received(), &pattern(LEN));
        Ok(())
    });
}

#[test]
fn over_tls_both_rates_are_kept() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let policies = reads().write_rate(RATE);
        let serve = async |mut stream: TcpStream| {
            let request = read_to_end(&mut stream).await?;
            stream.write_all(&request).await?;
            Ok(())
        };
        let listener = env.shard().serve_tls_with("127.0.0.1:0", &server, &options(&policies), serve)?;
        let begun = env.shard().now();
        let how = ConnectOptions::new().policies(&Policies::new().idle_timeout(10 * TIME));
        let mut client = TcpStream::connect_tls_with(listener.local_addr(), &tls, "localhost", &how).await?;
        client.write_all(&pattern(LEN)).await?;
        client.shutdown_write();
        let mut answer = vec![0; 1];
        client.read_exact(&mut answer).await?;
        // The end of the request comes together with its last bytes, which are held after they were given.
        let least = TIME - 66 * MS;
        assert_took(&env, begun, least, 66 * MS + 2 * SLACK);
        answer.extend(read_to_end(&mut client).await?);
        assert_took(&env, begun, least + TIME, 66 * MS + 3 * SLACK);
        assert_same_bytes(&answer, &pattern(LEN));
        Ok(())
    });
}

#[test]
fn half_closing_works_while_either_direction_waits() {
    on_every_driver(async |env| {
        let policies = reads().write_rate(RATE);
        // It sends, and has finished, before it has been given half of what comes.
        let (log, mut client) = pair(&env, &policies, |call, transport| {
            match call {
                Call::Connected => {
                    // The peer writes all before it reads.
                    transport.set_reads_above_high(true);
                    transport.write(&pattern(LEN)).unwrap();
                    transport.shutdown_write();
                    return None;
                }
                Call::ReadFinished => {}
                _ => return None,
            }
            Some(Ok(()))
        })
        .await?;
        client.write_all(&pattern(LEN)).await?;
        client.shutdown_write();
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(LEN));
        assert_eq!(log.ended().await, "PeerFinished");
        assert_same_bytes(&log.received(), &pattern(LEN));
        assert_eq!((log.count("write_finished"), log.count("read_finished")), (1, 1));
        Ok(())
    });
}

#[test]
fn a_pause_of_the_protocol_and_the_rate_hold_reading_independently() {
    on_every_driver(async |env| {
        let slow = Policies::new().read_rate(Rate::bytes_per_second(10_000).burst(1000));
        let (log, mut client) = pair(&env, &slow, |_, _| None).await?;
        let transport = log.transport().await;
        let begun = env.shard().now();
        client.write_all(&[1; 2000]).await?;
        log.until(|state| state.received.len() == 2000).await;
        client.write_all(b"x").await?;
        transport.pause_reading();
        transport.resume_reading();
        log.until(|state| state.received.len() == 2001).await;
        assert_took(&env, begun, 100 * MS, SLACK);
        // And the other way round.
        transport.pause_reading();
        client.write_all(b"y").await?;
        env.shard().sleep(200 * MS).await;
        assert_eq!(log.received().len(), 2001, "the rate would let it come; the protocol does not");
        transport.resume_reading();
        log.until(|state| state.received.len() == 2002).await;
        Ok(())
    });
}

#[test]
fn what_was_kept_whole_is_not_shown_again_when_the_rate_allows_more() {
    on_every_driver(async |env| {
        let slow = Policies::new().read_rate(Rate::bytes_per_second(10_000).burst(100));
        let (log, mut client) = pair(&env, &slow, |call, _| match call {
            Call::Data(input) => {
                assert!(!input.is_empty());
                Some(Ok(()))
            }
            _ => None,
        })
        .await?;
        client.write_all(&[1; 600]).await?;
        log.until(|state| state.deliveries > 0).await;
        env.shard().sleep(150 * MS).await;
        let shown = log.look(|state| state.deliveries);
        client.write_all(b"more").await?;
        log.until(|state| state.deliveries > shown).await;
        env.shard().sleep(50 * MS).await;
        assert!(log.look(|state| state.deliveries) <= shown + 4, "once for each segment");
        Ok(())
    });
}

/// Ten chunks.
struct Chunks {
    left: usize,
    asked: Rc<Cell<usize>>,
}

impl Producer for Chunks {
    fn resume_producing(&mut self, consumer: &Transport) -> Result<()> {
        self.asked.set(self.asked.get() + 1);
        self.left -= 1;
        consumer.write(&pattern(LEN / 10))?;
        if self.left == 0 {
            consumer.unregister_producer();
        }
        Ok(())
    }
    fn stop_producing(&mut self) {
        panic!("it has finished");
    }
}

#[test]
fn a_pull_producer_is_asked_at_the_pace_of_the_rate() {
    on_every_driver(async |env| {
        let asked = Rc::new(Cell::new(0));
        let begun = env.shard().now();
        let (log, mut client) = pair(&env, &writes(), |_, _| None).await?;
        let transport = log.transport().await;
        transport.register_producer(Chunks { left: 10, asked: Rc::clone(&asked) }, ProducerKind::Pull)?;
        transport.close();
        let (mut received, mut early) = (Vec::new(), 0);
        while let Some(chunk) = client.read_chunk().await? {
            received.extend_from_slice(&chunk);
            if received.len() < LEN / 2 {
                early = early.max(asked.get());
            }
        }
        assert!(early <= 7, "{early} chunks were asked for in the first half");
        assert_same_bytes(&received, &pattern(LEN / 10).repeat(10));
        assert_took(&env, begun, TIME, SLACK);
        log.ended().await;
        Ok(())
    });
}

#[test]
fn a_push_producer_is_paused_and_resumed_by_it() {
    /// Notes only.
    struct Noting(Log);
    impl Producer for Noting {
        fn resume_producing(&mut self, _consumer: &Transport) -> Result<()> {
            self.0.note("producer resumed");
            Ok(())
        }
        fn pause_producing(&mut self, _consumer: &Transport) -> Result<()> {
            self.0.note("producer paused");
            Ok(())
        }
        fn stop_producing(&mut self) {}
    }
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, &writes(), |_, _| None).await?;
        let transport = log.transport().await;
        transport.register_producer(Noting(log.clone()), ProducerKind::Push)?;
        let begun = env.shard().now();
        transport.write(&pattern(LEN))?;
        let reads = env.shard().spawn(async move { read_to_end(&mut client).await });
        log.saw("producer paused").await;
        log.saw("producer resumed").await;
        // At the low watermark.
        assert_took(&env, begun, TIME - 17 * MS, SLACK + 17 * MS);
        assert_eq!(
            log.seen()[..5],
            ["connected", "paused", "producer paused", "resumed", "producer resumed"]
        );
        transport.unregister_producer();
        transport.close();
        assert_eq!(reads.await??.len(), LEN);
        Ok(())
    });
}

#[test]
fn waiting_for_its_turn_is_no_stall_of_the_peer() {
    let mut config = Config::default();
    config.write_timeout = 40 * MS;
    on_every_driver_with(2, config, async |env| {
        let slow = Policies::new().write_rate(Rate::bytes_per_second(1000).burst(100));
        let (log, mut client) = pair(&env, &slow, |call, transport| {
            if let Call::Connected = call {
                transport.write(&pattern(350)).unwrap();
                transport.close();
            }
            None
        })
        .await?;
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(350));
        assert_eq!(log.ended().await, "Closed");
        Ok(())
    });
}

#[test]
fn a_peer_that_takes_nothing_stalls_under_a_rate_as_without() {
    let mut config = Config::default();
    config.write_timeout = 60 * MS;
    on_every_driver_with(2, config, async |env| {
        let fast = Policies::new().write_rate(Rate::bytes_per_second(1 << 30).burst(64 << 20));
        let (log, client) = pair(&env, &fast, |_, _| None).await?;
        let _hold = client.transport().hold_reading();
        let transport = log.transport().await;
        while transport.is_open() && transport.buffered() < 700_000 {
            let _ = transport.write(&[7; 50_000]);
            shardwise::yield_now().await;
        }
        assert_eq!(log.ended().await, "WriteStalled");
        Ok(())
    });
}

/// Downloads from `addr` to the end; says how long after `begun` it came.
async fn download(shard: Shard, addr: std::net::SocketAddr, begun: Instant) -> Result<(usize, Duration)> {
    let mut stream = TcpStream::connect(addr).await?;
    let len = read_to_end(&mut stream).await?.len();
    Ok((len, shard.now() - begun))
}

#[test]
fn a_throttle_holds_for_all_shards_together_and_serves_in_turns() {
    on_every_driver(async |env| {
        let throttle = Throttle::new(RATE.burst(10_000));
        let policies = Policies::new().throttle_writes(&throttle);
        let mut addrs = Vec::new();
        for id in env.handle().shard_ids() {
            let policies = policies.clone();
            let addr = env.shard().call(id, move |shard| {
                let serve = async |mut stream: TcpStream| {
                    stream.write_all(&pattern(LEN / 4)).await?;
                    stream.flush().await?;
                    Ok(())
                };
                let listener = shard.serve_tcp_with("127.0.0.1:0", &options(&policies), serve);
                listener.map(|listener| listener.local_addr())
            });
            addrs.push(addr.await??);
        }
        let begun = env.shard().now();
        let downloads: Vec<_> = (0..4)
            .map(|number| env.shard().spawn(download(env.shard().clone(), addrs[number % 2], begun)))
            .collect();
        let mut times = Vec::new();
        for task in downloads {
            let (len, time) = task.await??;
            assert_eq!(len, LEN / 4);
            times.push(time);
        }
        assert_took(&env, begun, 390 * MS, SLACK);
        // In turns: nobody is done long before the others.
        let first = times.iter().min().unwrap();
        assert!(*first >= TIME / 2, "{times:?}");
        Ok(())
    });
}

#[test]
fn a_connection_that_ends_while_it_waits_gives_its_turn_to_others() {
    on_every_driver(async |env| {
        let throttle = Throttle::new(Rate::bytes_per_second(10_000).burst(1000));
        let policies = Policies::new().throttle_writes(&throttle);
        let (first, _client) = pair(&env, &policies, |_, _| None).await?;
        first.transport().await.write(&[1; 10_000])?;
        let mut waiting = Vec::new();
        for _ in 0..20 {
            let (log, client) = pair(&env, &policies, |_, _| None).await?;
            log.transport().await.write(&[1; 10_000])?;
            waiting.push((log, client));
        }
        first.transport().await.abort();
        for (log, client) in waiting {
            log.transport().await.abort();
            log.ended().await;
            drop(client);
        }
        // Two seconds' worth was charged by those.
        let begun = env.shard().now();
        let (log, mut client) = pair(&env, &policies, |_, _| None).await?;
        log.transport().await.write(&[1; 1000])?;
        client.read_exact(&mut [0; 1000]).await?;
        assert!(env.shard().now() - begun < 500 * MS, "{:?}", env.shard().now() - begun);
        Ok(())
    });
}

#[test]
fn a_detached_stream_takes_its_rate_along_and_loses_no_byte() {
    on_every_driver(async |env| {
        let serve = async |mut stream: TcpStream| {
            let home = stream.transport().shard().clone();
            stream.write_all(&pattern(LEN / 4)).await?;
            stream.write_all(&pattern(LEN / 4)).await?;
            let detached: DetachedTcpStream = stream.detach().await?;
            let moved = home.call_async(ShardId::new(1), async move |shard: Shard| -> Result<()> {
                let mut stream = detached.attach(&shard)?;
                stream.write_all(&pattern(LEN / 2)).await?;
                stream.flush().await?;
                Ok(())
            });
            moved.await?
        };
        let begun = env.shard().now();
        let listener = env.shard().serve_tcp_with("127.0.0.1:0", &options(&writes()), serve)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        let received = read_to_end(&mut client).await?;
        assert_took(&env, begun, TIME, SLACK);
        assert_same_bytes(&received, &[pattern(LEN / 4), pattern(LEN / 4), pattern(LEN / 2)].concat());
        Ok(())
    });
}
