//! Idle timeouts: never early, exact in simulated time, and put off by bytes either way.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::common::{Call, Log, Probe, pattern, read_to_end};
use crate::tls_kit::Authority;
use crate::{MS, assert_took, options, pair};
use shardwise::policies::{Policies, Rate};
use shardwise::testing::{Env, on_every_driver};
use shardwise::{ConnectOptions, DetachedTcpStream, Result, Shard, ShardId, TcpStream};

fn idle(after: Duration) -> Policies {
    Policies::new().idle_timeout(after)
}

/// The timer fires within a tick of a millisecond, and bytes are under way for some time.
const SLACK: Duration = Duration::from_millis(5);

#[test]
fn a_silent_connection_ends_after_its_timeout_and_not_before() {
    on_every_driver(async |env| {
        let begun = env.shard().now();
        let (log, mut client) = pair(&env, &idle(50 * MS), |_, _| None).await?;
        assert!(read_to_end(&mut client).await?.is_empty(), "it ends in order");
        assert_eq!(log.ended().await, "Idle { after: 50ms }");
        assert_took(&env, begun, 50 * MS, SLACK);
        Ok(())
    });
}

#[test]
fn the_time_counts_from_the_last_byte_exactly() {
    on_every_driver(async |env| {
        let last = Rc::new(Cell::new(env.shard().now()));
        let (note, shard) = (Rc::clone(&last), env.shard().clone());
        let (log, mut client) = pair(&env, &idle(200 * MS), move |call, _| {
            if let Call::Data(_) = call {
                note.set(shard.now());
            }
            None
        })
        .await?;
        // Not long before the timer looks for the first time.
        env.shard().sleep(120 * MS).await;
        client.write_all(b"still here").await?;
        log.ended().await;
        assert_took(&env, last.get(), 200 * MS, 2 * MS);
        assert_eq!(log.received(), b"still here");
        Ok(())
    });
}

/// Writes now and then, for several times the timeout.
async fn chat(env: &Env, mut write: impl AsyncFnMut(usize) -> Result<()>) -> Result<()> {
    for round in 0..14 {
        env.shard().sleep(50 * MS).await;
        // Large writes take another way to the kernel.
        write(if round % 2 == 0 { 10 } else { 20_000 }).await?;
    }
    Ok(())
}

#[test]
fn bytes_that_come_put_it_off() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, &idle(300 * MS), |_, _| None).await?;
        chat(&env, async |bytes| Ok(client.write_all(&pattern(bytes)).await?)).await?;
        assert!(log.transport().await.is_open());
        assert_eq!(log.ended().await, "Idle { after: 300ms }");
        Ok(())
    });
}

#[test]
fn bytes_that_go_put_it_off() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, &idle(300 * MS), |_, _| None).await?;
        let transport = log.transport().await;
        let reads = env.shard().spawn(async move { read_to_end(&mut client).await });
        chat(&env, async |bytes| {
            transport.write(&pattern(bytes))?;
            Ok(())
        })
        .await?;
        assert!(transport.is_open());
        assert_eq!(log.ended().await, "Idle { after: 300ms }");
        assert_eq!(reads.await??.len(), 7 * 20_010);
        Ok(())
    });
}

#[test]
fn output_that_the_peer_takes_slowly_puts_it_off_and_what_it_does_not_take_is_lost() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, &idle(300 * MS), |_, _| None).await?;
        let transport = log.transport().await;
        let begun = env.shard().now();
        while env.shard().now() - begun < 700 * MS {
            // Never all of it, and enough for its kernel to ask for more.
            while transport.buffered() < 300_000 {
                transport.write(&[7; 400_000])?;
            }
            env.shard().sleep(20 * MS).await;
            let mut read = 0;
            while read < 300_000 {
                read += client.read_chunk().await?.expect("there is more").len();
            }
        }
        assert!(transport.is_open());
        // And now it does not.
        let _hold = client.transport().hold_reading();
        while transport.buffered() < 700_000 {
            let _ = transport.write(&[7; 50_000]);
            shardwise::yield_now().await;
        }
        assert_eq!(log.ended().await, "Idle { after: 300ms }", "long before the write timeout");
        Ok(())
    });
}

#[test]
fn a_stream_is_told_by_timed_out_in_either_direction() {
    on_every_driver(async |env| {
        let serve = async |mut stream: TcpStream| {
            let failed = stream.read_chunk().await.unwrap_err();
            assert_eq!(failed.kind(), io::ErrorKind::TimedOut, "{failed}");
            assert_eq!(failed.to_string(), "idle for 40ms");
            let failed = stream.write_all(b"too late").await.unwrap_err();
            assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
            Ok(())
        };
        let begun = env.shard().now();
        let listener = env.shard().serve_tcp_with("127.0.0.1:0", &options(&idle(40 * MS)), serve)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        assert!(read_to_end(&mut client).await?.is_empty());
        assert_took(&env, begun, 40 * MS, SLACK);
        Ok(())
    });
}

#[test]
fn it_holds_for_outgoing_connections_as_well() {
    on_every_driver(async |env| {
        let server = env.shard().listen_tcp("127.0.0.1:0", || Probe::new(&Log::new(), |_, _| None))?;
        let options = ConnectOptions::new().policies(&idle(30 * MS));
        let log = Log::new();
        let made = log.clone();
        let make = move || Probe::new(&made, |_, _| None);
        env.shard().connect_tcp_with(server.local_addr(), &options, make).await?;
        assert_eq!(log.ended().await, "Idle { after: 30ms }");
        let mut stream = TcpStream::connect_with(server.local_addr(), &options).await?;
        assert_eq!(stream.read_chunk().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        Ok(())
    });
}

#[test]
fn over_tls_records_count_both_ways_and_the_end_is_announced() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let made = log.clone();
        let make = move || Probe::new(&made, |_, _| None);
        let listener =
            env.shard().listen_tls_with("127.0.0.1:0", &server, &options(&idle(300 * MS)), make)?;
        let mut client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        log.saw("handshake").await;
        let transport = log.transport().await;
        chat(&env, async |bytes| Ok(client.write_all(&pattern(bytes)).await?)).await?;
        chat(&env, async |bytes| {
            transport.write(&pattern(bytes))?;
            Ok(())
        })
        .await?;
        let begun = env.shard().now();
        assert_eq!(read_to_end(&mut client).await?.len(), 7 * 20_010, "and not TlsError::Truncated");
        assert_eq!(log.ended().await, "Idle { after: 300ms }");
        assert_took(&env, begun, 250 * MS, 70 * MS);
        Ok(())
    });
}

#[test]
fn a_handshake_that_never_comes_is_idle_too() {
    on_every_driver(async |env| {
        let (server, _) = Authority::new().both();
        let log = Log::new();
        let made = log.clone();
        let make = move || Probe::new(&made, |_, _| None);
        let listener = env.shard().listen_tls_with("127.0.0.1:0", &server, &options(&idle(30 * MS)), make)?;
        let _silent = TcpStream::connect(listener.local_addr()).await?;
        assert_eq!(log.ended().await, "Idle { after: 30ms }");
        Ok(())
    });
}

#[test]
fn it_can_be_set_changed_and_removed_for_one_connection() {
    on_every_driver(async |env| {
        let (log, _client) = pair(&env, &Policies::new(), |_, _| None).await?;
        let transport = log.transport().await;
        transport.set_idle_timeout(None);
        transport.set_idle_timeout(Some(10 * MS));
        transport.set_idle_timeout(None);
        env.shard().sleep(40 * MS).await;
        assert!(transport.is_open(), "it was removed");
        transport.set_idle_timeout(Some(Duration::MAX));
        transport.set_idle_timeout(Some(3_600_000 * MS));
        let begun = env.shard().now();
        transport.set_idle_timeout(Some(20 * MS));
        assert_eq!(log.ended().await, "Idle { after: 20ms }");
        assert_took(&env, begun, 20 * MS, 3 * MS);
        transport.set_idle_timeout(Some(20 * MS));
        Ok(())
    });
}

#[test]
fn who_waits_for_its_turn_under_a_rate_is_not_idle() {
    on_every_driver(async |env| {
        let slow = Rate::bytes_per_second(1000).burst(10);
        let policies = idle(30 * MS).read_rate(slow).write_rate(slow);
        let begun = env.shard().now();
        let (log, mut client) = pair(&env, &policies, |_, _| None).await?;
        client.write_all(&[1; 110]).await?;
        // Reading is held for a tenth of a second now, and the peer may send nothing.
        assert_eq!(log.ended().await, "Idle { after: 30ms }");
        assert_took(&env, begun, 130 * MS, SLACK);
        assert_eq!(log.received().len(), 110);

        let begun = env.shard().now();
        let (log, mut client) = pair(&env, &policies, |_, _| None).await?;
        log.transport().await.write(&[1; 110])?;
        assert_eq!(read_to_end(&mut client).await?.len(), 110);
        assert_eq!(log.ended().await, "Idle { after: 30ms }");
        assert_took(&env, begun, 130 * MS, SLACK);
        Ok(())
    });
}

#[test]
fn a_close_under_way_is_left_to_its_own_deadlines() {
    on_every_driver(async |env| {
        // It has closed, and lingers until the peer finishes, for longer than the idle timeout.
        let (log, mut client) = pair(&env, &idle(20 * MS), |call, transport| {
            if let Call::Connected = call {
                transport.write(b"all").unwrap();
                transport.close();
            }
            None
        })
        .await?;
        assert_eq!(log.ended().await, "Closed");
        env.shard().sleep(60 * MS).await;
        assert_eq!(read_to_end(&mut client).await?, b"all");
        Ok(())
    });
}

#[test]
fn a_detached_stream_takes_its_timeout_along() {
    on_every_driver(async |env| {
        let log = Log::new();
        let noted = log.clone();
        let serve = async move |stream: TcpStream| {
            let home = stream.transport().shard().clone();
            let detached: DetachedTcpStream = stream.detach().await?;
            let moved = home.call_async(ShardId::new(1), async move |shard: Shard| {
                let mut stream = detached.attach(&shard).unwrap();
                stream.read_chunk().await.unwrap_err().kind()
            });
            assert_eq!(moved.await?, io::ErrorKind::TimedOut);
            noted.note("timed out");
            Ok(())
        };
        let begun = env.shard().now();
        let listener = env.shard().serve_tcp_with("127.0.0.1:0", &options(&idle(60 * MS)), serve)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        assert!(read_to_end(&mut client).await?.is_empty());
        log.saw("timed out").await;
        assert_took(&env, begun, 60 * MS, SLACK);
        Ok(())
    });
}
