//! TLS: handshakes, bytes, ends, upgrades and limits. Each test's name is a promise kept on every driver. The simulated
//! driver orders and cuts the bytes; their content comes from the real randomness that keys need.

mod common;
mod tls_kit;

#[path = "conformance_tls/bytes.rs"]
mod bytes;
#[path = "conformance_tls/ends.rs"]
mod ends;
#[path = "conformance_tls/handshakes.rs"]
mod handshakes;
#[path = "conformance_tls/limits.rs"]
mod limits;
#[path = "conformance_tls/pairs.rs"]
mod pairs;
#[path = "conformance_tls/relay.rs"]
mod relay;
#[path = "conformance_tls/sessions.rs"]
mod sessions;
#[path = "conformance_tls/unix.rs"]
mod unix;
#[path = "conformance_tls/upgrades.rs"]
mod upgrades;

use pairs::{listen, pair};
