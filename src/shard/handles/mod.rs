//! What users hold and that can reach a shard.

pub(crate) mod async_fd;
pub(crate) mod call;
pub(crate) mod connecting;
pub(crate) mod copy;
pub(crate) mod delayed_call;
pub(crate) mod fd;
pub(crate) mod handle;
pub(crate) mod handle_call;
pub(crate) mod listener;
pub(crate) mod resolving;
pub(crate) mod stream_core;
pub(crate) mod tcp_stream;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod transport;
pub(crate) mod udp_socket;
pub(crate) mod udp_transport;
pub(crate) mod unix;
pub(crate) mod unix_datagram;
