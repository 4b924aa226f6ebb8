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
