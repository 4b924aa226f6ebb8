//! Bytes: kernel ↔ bounded buffers. Knows neither messages nor shards, nor what the bytes mean.

pub(crate) mod addr;
pub(crate) mod connection;
pub(crate) mod descriptors;
pub(crate) mod input;
pub(crate) mod kept;
pub(crate) mod udp;
