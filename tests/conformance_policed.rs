//! Policies are not felt: the suites of transports, producers and TLS once more, with every policy at once on what is accepted.
//! Whatever a connection can do – half-close, pause and hold, produce, wait for deadlines, move to another shard, abort, speak
//! TLS from the beginning or later, tell its peer – it can do under policies.

mod common;
mod tls_kit;

#[path = "conformance_transport/back_pressure.rs"]
mod back_pressure;
#[path = "conformance_tls/bytes.rs"]
mod bytes;
#[path = "conformance_transport/closing.rs"]
mod closing;
#[path = "conformance_transport/deadlines.rs"]
mod deadlines;
#[path = "conformance_tls/ends.rs"]
mod ends;
#[path = "conformance_transport/failing.rs"]
mod failing;
#[path = "conformance_transport/half_close.rs"]
mod half_close;
#[path = "conformance_tls/handshakes.rs"]
mod handshakes;
#[path = "conformance_tls/limits.rs"]
mod limits;
#[path = "conformance_tls/pairs.rs"]
mod pairs;
#[path = "conformance_producers/producing.rs"]
mod producing;
#[path = "conformance_transport/reading.rs"]
mod reading;
#[path = "conformance_tls/relay.rs"]
mod relay;
#[path = "conformance_tls/sessions.rs"]
mod sessions;
#[path = "conformance_transport/streams.rs"]
mod streams;
#[path = "conformance_tls/upgrades.rs"]
mod upgrades;
#[path = "conformance_transport/writing.rs"]
mod writing;

use pairs::{listen, pair};
use shardwise::testing::on_every_driver;

#[test]
fn the_connections_of_this_suite_are_really_held_to_policies() {
    on_every_driver(async |env| {
        let (_log, _client) = common::pair(&env, |_, _| None).await?;
        assert!(common::EVERY_CONNECTION.connections() > 0);
        assert!(tracing::enabled!(target: "shardwise::traffic", tracing::Level::TRACE));
        Ok(())
    });
}
