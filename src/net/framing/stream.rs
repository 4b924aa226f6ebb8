//! What `Framed` asks of a stream: the next bytes, and to take some.

use std::io;
use std::ops::Deref;
use std::task::{Context, Poll};

/// A stream that gives its bytes as they come.
pub trait ReadChunks {
    /// Received bytes, perhaps on loan.
    type Chunk: Deref<Target = [u8]>;

    /// The next bytes, at least one; `None` is the end of input.
    ///
    /// # Errors
    /// The stream broke.
    fn poll_read_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Self::Chunk>>>;

    /// Whether bytes that it gave wait for the rest of their frame: then a stream that would report the end of its input
    /// because its shard drains goes on until the rest has come.
    fn set_within_frame(&mut self, within: bool) {
        let _ = within;
    }
}

/// A stream that takes bytes.
pub trait WriteBytes {
    /// Takes the first bytes of `bytes`, which are not empty, and says how many: at least one.
    ///
    /// # Errors
    /// The stream is closed for writing, or broke.
    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
}
