//! Bytes: kernel ↔ bounded buffers. Knows neither messages nor shards, nor what the bytes mean.

pub(crate) mod addr;
pub(crate) mod connection;
pub(crate) mod connector;
pub(crate) mod descriptors;
pub mod endpoint;
pub mod framing;
pub(crate) mod host_name;
pub(crate) mod input;
pub(crate) mod ip_network;
pub(crate) mod kept;
pub(crate) mod lookup_threads;
pub mod proxy_protocol;
pub(crate) mod resolver;
pub(crate) mod target;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
pub(crate) mod tls;
pub(crate) mod udp;
pub(crate) mod wire;
