//! What happens to a connection's bytes between the driver and the application: nothing, or TLS.

use crate::error::TlsError;
use crate::net::tls::Session;

/// The transformation of one connection's bytes. A plain one is one word and owns nothing.
pub(crate) enum Wire {
    Plain,
    Tls(Box<Session>),
}

/// What the opening of ciphertext has come to.
pub(crate) enum Opened {
    /// More has to come.
    Drained,
    /// A piece of plaintext is there, and more is left.
    Full,
    /// The handshake is complete. More may be left.
    Secured,
    /// The peer has sent close_notify. Nothing after it counts.
    PeerFinished,
    /// The peer broke the rules, was refused, or refuses us. An alert may wait to be sent.
    Failed(TlsError),
}

/// Plaintext is handed on in pieces of this size, which is also the most that a record may hold: so no more is decrypted
/// ahead of a reader than that (RUSTSEC-2020-0019).
pub(crate) const PIECE_BYTES: usize = 16 * 1024;

/// So much plaintext is sealed at a time, and offered to the kernel before more is: a long write is not driven out of the
/// caches by its own ciphertext, and needs no memory of its length. Whole records.
pub(crate) const SEALED_PIECE_BYTES: usize = 64 * 1024;

/// Where a shard's ciphertext is made: memory that is initialised once and used again and again.
#[derive(Default)]
pub(crate) struct SealBuffer {
    bytes: Vec<u8>,
    filled: usize,
}

/// Memory beyond this is given back. A piece, and what its records are longer.
const SEAL_BUFFER_KEEP_BYTES: usize = SEALED_PIECE_BYTES + 8 * 1024;

impl SealBuffer {
    /// What has been put into it.
    #[inline]
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    pub(crate) fn clear(&mut self) {
        self.filled = 0;
        if self.bytes.len() > SEAL_BUFFER_KEEP_BYTES {
            self.bytes = Vec::new();
        }
    }

    /// Room for `len` bytes or more behind what is there; [`SealBuffer::fill`] tells how many of them count.
    #[inline]
    pub(crate) fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.filled + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.filled..]
    }

    #[inline]
    pub(crate) fn fill(&mut self, len: usize) {
        debug_assert!(self.filled + len <= self.bytes.len());
        self.filled += len;
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }
}

impl Wire {
    #[inline]
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Wire::Tls(_))
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        match self {
            Wire::Plain => None,
            Wire::Tls(session) => Some(session),
        }
    }

    pub(crate) fn session_mut(&mut self) -> Option<&mut Session> {
        match self {
            Wire::Plain => None,
            Wire::Tls(session) => Some(session),
        }
    }
}
