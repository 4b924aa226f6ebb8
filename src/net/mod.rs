//! Bytes: kernel ↔ bounded buffers. Knows neither messages nor shards, nor what the bytes mean.

pub(crate) mod addr;
pub(crate) mod connection;
pub(crate) mod input;
pub(crate) mod kept;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
pub(crate) mod tls;
pub(crate) mod udp;
pub(crate) mod wire;
