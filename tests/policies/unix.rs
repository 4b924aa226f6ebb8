//! Policies on UNIX sockets: the same ones. What they mean for descriptors.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{self, assert_same_bytes, pattern};
use crate::{MS, assert_took};
use shardwise::policies::{Policies, Rate};
use shardwise::testing::on_every_driver;
use shardwise::{UnixConnectOptions, UnixListenOptions, UnixStream};

/// An abstract name that no other test uses.
fn unique_name(what: &str) -> String {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    format!("@shardwise-policies-{}-{what}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))
}

#[test]
fn idle_timeouts_hold_for_unix_sockets() {
    on_every_driver(async |env| {
        let policies = Policies::new().idle_timeout(50 * MS);
        let name = unique_name("idle");
        let options = UnixListenOptions::new().policies(&policies);
        let begun = env.shard().now();
        env.shard().serve_unix_with(&name, &options, async |mut stream: UnixStream| {
            assert_eq!(stream.read_chunk().await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
            Ok(())
        })?;
        let mut client = UnixStream::connect_unix(&name).await?;
        assert!(client.read_chunk().await?.is_none());
        assert_took(&env, begun, 50 * MS, 5 * MS);
        Ok(())
    });
}

#[test]
fn descriptors_pass_in_their_place_under_a_rate() {
    common::on_the_kernel(1, async |shard| {
        let slow = Policies::new().write_rate(Rate::bytes_per_second(10_000).burst(100));
        let name = unique_name("descriptors");
        let options = UnixListenOptions::new().descriptors(true).policies(&slow);
        shard.serve_unix_with(&name, &options, async |mut stream: UnixStream| {
            stream.write_all(&pattern(300)).await?;
            stream.send_descriptor(File::open("/dev/null")?.into()).await?;
            stream.write_all(&pattern(300)).await?;
            stream.flush().await?;
            Ok(())
        })?;
        let options = UnixConnectOptions::new().descriptors(true);
        let mut client = UnixStream::connect_unix_with(&name, &options).await?;
        assert!(client.read_descriptor().await?.is_some());
        let mut bytes = vec![0; 600];
        client.read_exact(&mut bytes).await?;
        assert_same_bytes(&bytes, &[pattern(300), pattern(300)].concat());
        assert!(client.read_chunk().await?.is_none());
        Ok(())
    });
}
