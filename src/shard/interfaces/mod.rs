//! The interface set, a file per interface of the reactor overview: thin methods of `Shard` that delegate.

pub(crate) mod core;
pub(crate) mod endpoint;
pub(crate) mod fd_set;
pub(crate) mod socket;
pub(crate) mod tcp;
pub(crate) mod threads;
pub(crate) mod time;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod udp;
pub(crate) mod unix;
pub(crate) mod unix_datagram;
