//! When: which token has news, which deadlines have passed, and the bytes on loan that came with the news.
//! Knows nothing of what bytes mean, of shards, or of TLS.

pub(crate) mod buffer;
pub(crate) mod datagrams;
pub(crate) mod driver;
pub(crate) mod lease;
pub(crate) mod registry;
pub(crate) mod timer_wheel;
pub(crate) mod token;
pub(crate) mod waker;
