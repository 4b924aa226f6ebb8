//! Deadlines of connections.

use std::io;
use std::time::{Duration, Instant};

use crate::common::{Call, echo_server, pair, read_to_end};
use shardwise::TcpStream;
use shardwise::testing::on_every_driver;

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

/// It was counted from the beginning of the turn, and fired early by as much as the turn had lasted. On the real driver
/// alone, since work takes no time in a simulation.
#[test]
fn a_deadline_set_late_in_a_long_turn_is_not_early() {
    const WORK: Duration = Duration::from_millis(30);
    on_every_driver(async |env| {
        let (log, _client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        let begun = env.shard().now();
        let mut set = begun;
        while !env.is_simulated() && set - begun < WORK {
            // A callback or task that computes.
            set = Instant::now();
        }
        transport.set_deadline(Some(WORK));
        assert!(transport.deadline().unwrap() >= set + WORK, "{:?} early", set - begun);
        log.ended().await;
        assert!(env.shard().now() >= set + WORK, "it has fired early");
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
