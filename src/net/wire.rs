//! What happens to a connection's bytes between the driver and the application: nothing, or TLS.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::error::{CloseReason, TlsError, panic_message};
use crate::net::tls::{Session, TlsInfo};
use crate::reactor::timer_wheel::TimerKey;

/// The transformation of one connection's bytes. A plain one is one word and owns nothing.
pub(crate) enum Wire {
    Plain,
    Tls(Box<Tls>),
}

/// A connection's TLS: its session, what waits for that, and how far what is around it has come. `Send`, so that it
/// travels with a connection to another shard.
pub(crate) struct Tls {
    /// Away while it opens records, since code of the application may run then.
    session: Option<Box<Session>>,
    /// As it was when the session was here last.
    handshaking: bool,
    /// Nothing more goes out, also when the session comes back.
    cut_off: bool,
    /// Written by the application, and not sealed.
    pending: Vec<u8>,
    /// Began within a callback that has not used all of its plain input.
    pub(crate) fresh: bool,
    /// The socket's own end has come: after what the session has not opened.
    pub(crate) socket_ended: bool,
    /// Ended without close_notify.
    pub(crate) truncated: bool,
    /// Waits for its handshake to go on, and is not read meanwhile.
    pub(crate) queued: bool,
    pub(crate) clock: HandshakeClock,
    pub(crate) share: HandshakeShare,
}

/// How long the peer may take for its part of the handshake. The clock stands while the peer waits for us.
pub(crate) struct HandshakeClock {
    pub(crate) limit: Duration,
    /// What is left of it, while the clock stands.
    pub(crate) left: Duration,
    /// The timer, while it runs.
    pub(crate) running: Option<TimerKey>,
}

/// What a handshake takes of what its shard has for all of them.
#[derive(Default)]
pub(crate) struct HandshakeShare {
    pub(crate) bytes: usize,
    /// Its number among those that wait for the rest of a message.
    pub(crate) place: Option<u64>,
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

    #[inline]
    pub(crate) fn tls(&self) -> Option<&Tls> {
        match self {
            Wire::Plain => None,
            Wire::Tls(tls) => Some(tls),
        }
    }

    #[inline]
    pub(crate) fn tls_mut(&mut self) -> Option<&mut Tls> {
        match self {
            Wire::Plain => None,
            Wire::Tls(tls) => Some(tls),
        }
    }
}

impl Tls {
    /// Begins with `session`. The peer may take so long for its part of the handshake.
    pub(crate) fn new(session: Box<Session>, limit: Duration) -> Box<Self> {
        Box::new(Tls {
            session: Some(session),
            handshaking: true,
            cut_off: false,
            pending: Vec::new(),
            fresh: false,
            socket_ended: false,
            truncated: false,
            queued: false,
            clock: HandshakeClock { limit, left: limit, running: None },
            share: HandshakeShare::default(),
        })
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.handshaking
    }

    /// Whether a stranger may cause the work of its handshake.
    pub(crate) fn is_server(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_server())
    }

    /// Whether no byte has come from the peer.
    pub(crate) fn is_silent(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_silent())
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.has_failed())
    }

    pub(crate) fn peer_has_finished(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.peer_has_finished())
    }

    /// Whether there is something that was not looked at.
    pub(crate) fn has_unopened(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.has_unopened())
    }

    /// The memory that is used for ciphertext, in bytes.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.session.as_ref().map_or(0, |session| session.kept_bytes())
    }

    /// Whether the session itself has something to say.
    pub(crate) fn has_outgoing(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.has_outgoing())
    }

    /// Whether its session is at work: only seen from within a call that it makes.
    pub(crate) fn is_away(&self) -> bool {
        self.session.is_none()
    }

    /// What was agreed on; `None` while the handshake is under way.
    pub(crate) fn info(&self) -> Option<TlsInfo> {
        self.session.as_ref().and_then(|session| session.info())
    }

    /// Takes the session out, to open records where nothing is borrowed.
    pub(crate) fn take_session(&mut self) -> Option<Box<Session>> {
        self.session.take()
    }

    pub(crate) fn put_back(&mut self, mut session: Box<Session>) {
        if self.cut_off {
            session.cut_off();
        }
        self.handshaking = session.is_handshaking();
        self.session = Some(session);
    }

    /// Keeps ciphertext for later.
    pub(crate) fn keep(&mut self, bytes: &[u8]) {
        if let Some(session) = &mut self.session {
            session.keep(bytes);
        }
    }

    /// Nothing more will be opened or sealed. What the session has to say about it may yet go out.
    pub(crate) fn fail(&mut self) {
        if let Some(session) = &mut self.session {
            session.fail();
        }
        self.handshaking = false;
    }

    /// As `fail`, and nothing more goes out: something before it is missing.
    pub(crate) fn cut_off(&mut self) {
        self.cut_off = true;
        self.handshaking = false;
        if let Some(session) = &mut self.session {
            session.cut_off();
        }
    }

    /// Plaintext that is not sealed yet, in bytes.
    #[inline]
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Queues plaintext.
    pub(crate) fn queue(&mut self, plain: &[u8]) {
        self.pending.extend_from_slice(plain);
    }

    /// Throws plaintext away that has not been sealed; says how much.
    pub(crate) fn discard_pending(&mut self) -> usize {
        std::mem::take(&mut self.pending).len()
    }

    /// Seals `plain`, and what waited before it, behind what has to go out first; leaves `plain` empty. While the
    /// handshake is under way plaintext waits. With `finish`, close_notify is the last. Says how much was thrown away, since
    /// nothing is sealed any more.
    pub(crate) fn seal(
        &mut self,
        plain: &mut Vec<u8>,
        finish: bool,
        sealed: &mut Vec<u8>,
    ) -> Result<usize, CloseReason> {
        let Some(session) = &mut self.session else {
            self.pending.append(plain);
            return Ok(0);
        };
        session.take_outgoing(sealed);
        if session.has_finished() {
            let lost = plain.len() + self.discard_pending();
            plain.clear();
            return Ok(lost);
        }
        if session.is_handshaking() {
            self.pending.append(plain);
            return Ok(0);
        }
        if self.pending.is_empty() && plain.is_empty() && !finish {
            return Ok(0);
        }
        let pending = std::mem::take(&mut self.pending);
        let outcome = contained(|| session.seal([&pending, plain], finish, sealed));
        plain.clear();
        outcome.map(|()| 0)
    }

    /// Whether what is written now may be sealed at once.
    pub(crate) fn seals_straight(&self) -> bool {
        !self.handshaking
            && self.pending.is_empty()
            && self.session.as_ref().is_some_and(|session| !session.has_finished())
    }

    /// Seals `plain`, where that may be.
    pub(crate) fn seal_straight(&mut self, plain: &[u8], sealed: &mut Vec<u8>) -> Result<(), CloseReason> {
        debug_assert!(self.seals_straight());
        let Some(session) = &mut self.session else { return Ok(()) };
        session.take_outgoing(sealed);
        contained(|| session.seal([&[], plain], false, sealed))
    }
}

/// Seals where the shard is borrowed. A provider of cryptography may be the application's: if it panics, or tries to use
/// the shard, it has lost its connection.
fn contained(seal: impl FnOnce() -> Result<(), TlsError>) -> Result<(), CloseReason> {
    match catch_unwind(AssertUnwindSafe(seal)) {
        Ok(sealed) => sealed.map_err(CloseReason::Tls),
        Err(payload) => {
            let message = panic_message(&*payload);
            let reason = CloseReason::Panicked(message.to_string());
            // It may panic again when it is dropped; it is leaked instead.
            std::mem::forget(payload);
            Err(reason)
        }
    }
}
