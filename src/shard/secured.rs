//! Connections that speak TLS: handshakes in their turn, ciphertext to whoever handles the connection, and the ends.
//! The transformation itself is `net`'s.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use crate::error::{CloseReason, TlsError};
use crate::net::connection::{Connection, EndKind, Phase, ReadHalf};
use crate::net::tls::Session;
use crate::net::wire::{Opened, Wire};
use crate::reactor::driver::CloseKind;
use crate::reactor::lease::Lease;
use crate::reactor::timer_wheel::{TimerKey, deadline_after};
use crate::reactor::token::Token;
use crate::shard::connections::{Handler, Slot};
use crate::shard::{Inner, Shard, Timer};

/// The handshakes of a shard. A peer's first bytes cost us more than they cost it, so they are not dealt with as they come
/// but in order, and for a part of each turn.
#[derive(Default)]
pub(crate) struct Handshakes {
    /// Connections whose bytes wait to be opened.
    queue: RefCell<VecDeque<Token>>,
    /// Those for which there is no place among the handshakes under way.
    waiting: RefCell<VecDeque<Token>>,
    under_way: Cell<usize>,
}

impl Handshakes {
    /// Whether one of them can go on.
    pub(crate) fn has_work(&self, places: usize) -> bool {
        !self.queue.borrow().is_empty()
            || (self.under_way.get() < places && !self.waiting.borrow().is_empty())
    }

    /// The next one, the oldest first.
    fn pop(&self, places: usize) -> Option<Token> {
        if self.under_way.get() < places
            && let Some(token) = self.waiting.borrow_mut().pop_front()
        {
            return Some(token);
        }
        self.queue.borrow_mut().pop_front()
    }

    /// Its handshake is over, or goes on elsewhere. Gives its timer.
    pub(crate) fn leave(&self, connection: &mut Connection) -> Option<TimerKey> {
        let session = connection.session_mut()?;
        if std::mem::take(&mut session.has_place) {
            self.under_way.set(self.under_way.get() - 1);
        }
        session.queued = false;
        session.deadline.take()
    }
}

impl Inner {
    /// Keeps bytes of a handshake until it is this connection's turn.
    pub(super) fn keep_handshake(&self, token: Token, slot: &mut Slot, bytes: &[u8]) {
        let Some(session) = slot.connection.session_mut() else { return };
        session.fresh = false;
        session.keep(bytes);
        if session.has_unopened() && !session.queued {
            session.queued = true;
            self.handshakes.queue.borrow_mut().push_back(token);
            slot.connection.update_receiving(&mut **self.driver.borrow_mut(), token);
        }
    }
}

impl Shard {
    /// A connection begins with TLS, or has it from here on. What it has written goes out with the next flush.
    pub(super) fn begin_handshake(&self, token: Token, slot: &mut Slot) {
        let inner = &self.inner;
        if let Handler::Stream(stream) = &slot.handler {
            stream.set_secured();
        }
        let Some(session) = slot.connection.session_mut() else { return };
        if session.is_handshaking() {
            let deadline =
                deadline_after(inner.driver.borrow_mut().read_clock(), inner.shared.config.handshake_timeout);
            let late = Timer::new(move |shard: &Shard| shard.on_handshake_deadline(token));
            session.deadline = Some(inner.timers.borrow_mut().insert(deadline, late));
        }
        inner.keep_handshake(token, slot, &[]);
        slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
    }

    /// A connection that stands speaks TLS from here on. What was written goes out before it, as it is; what was received
    /// and not taken belongs to the handshake.
    pub(super) fn secure(&self, token: Token, slot: &mut Slot, session: Box<Session>) {
        let inner = &self.inner;
        let active = inner.active.get() == token;
        let connection = &mut slot.connection;
        if active {
            let mut staged = inner.staged.borrow_mut();
            connection.queue_sealed(&staged);
            staged.clear();
            inner.staged_room.set(0);
            inner.dry.set(true);
        }
        connection.wire = Wire::Tls(session);
        let mut left = connection.input.take();
        if let Handler::Stream(stream) = &slot.handler {
            let (mut unread, held) = stream.take_unread();
            connection.read_holds -= u16::from(held);
            left.append(&mut unread);
        }
        if active && let Some(lent) = inner.lent.take() {
            left.extend_from_slice(&lent);
        }
        if connection.read == ReadHalf::FinishPending {
            connection.read = ReadHalf::Open;
            connection.session_mut().into_iter().for_each(|session| session.socket_ended = true);
        }
        self.begin_handshake(token, slot);
        inner.keep_handshake(token, slot, &left);
        if let Some(session) = slot.connection.session_mut() {
            // What the callback that runs now has not consumed will be kept when it returns.
            session.fresh = active && matches!(slot.handler, Handler::Busy);
        }
        inner.mark_slot_unsettled(token, slot);
    }

    /// Ciphertext came.
    #[inline(never)]
    pub(super) fn on_received_sealed(&self, token: Token, lease: Lease) {
        let inner = &*self.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        let may_read = slot.connection.may_read();
        let handshaking = slot.connection.is_handshaking();
        match slot.connection.phase {
            Phase::Open | Phase::Flushing(_) if handshaking => inner.keep_handshake(token, slot, &lease),
            Phase::Open if may_read => {
                drop(connections);
                self.open_sealed(token, Some(lease));
            }
            Phase::Open => slot.connection.session_mut().into_iter().for_each(|session| session.keep(&lease)),
            _ => {
                drop(connections);
                self.received_unasked(token, &lease);
            }
        }
    }

    /// Handshake bytes → sessions: some each turn. Says whether more wait.
    pub(super) fn run_handshakes(&self) -> bool {
        let inner = &self.inner;
        let (places, time) =
            (inner.shared.config.handshakes_max, inner.shared.config.handshake_time_per_turn);
        if !inner.handshakes.has_work(places) {
            return false;
        }
        let until = inner.driver.borrow_mut().read_clock() + time;
        while let Some(token) = inner.handshakes.pop(places) {
            if self.take_place(token, places) {
                self.open_sealed(token, None);
                if let Some(slot) = inner.connections.borrow_mut().get_mut(token) {
                    slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
                }
                if inner.driver.borrow_mut().read_clock() > until {
                    break;
                }
            }
        }
        inner.handshakes.has_work(places)
    }

    /// Whether the handshake goes on now; else it waits, or is gone.
    fn take_place(&self, token: Token, places: usize) -> bool {
        let handshakes = &self.inner.handshakes;
        let mut connections = self.inner.connections.borrow_mut();
        let session = connections.get_mut(token).and_then(|slot| slot.connection.session_mut());
        let Some(session) = session.filter(|session| session.queued) else { return false };
        if session.is_server() && session.is_handshaking() && !session.has_place {
            if handshakes.under_way.get() >= places {
                handshakes.waiting.borrow_mut().push_back(token);
                return false;
            }
            handshakes.under_way.set(handshakes.under_way.get() + 1);
            session.has_place = true;
        }
        session.queued = false;
        true
    }

    /// What came while reading was held.
    pub(super) fn open_resumed(&self, token: Token) {
        let unopened = self.inner.connections.borrow().get(token).is_some_and(|slot| {
            let session = slot.connection.session();
            session.is_some_and(|session| !session.is_handshaking() && session.has_unopened())
        });
        if unopened {
            self.open_sealed(token, None);
        }
    }

    /// Opens what was kept, and `lease`, and hands it on piece by piece for as long as the application reads.
    fn open_sealed(&self, token: Token, mut lease: Option<Lease>) {
        loop {
            let mut plain = self.inner.plain.take();
            let mut filled = 0;
            let mut opened = self.open_piece(token, &mut lease, &mut plain, &mut filled);
            while let Some(Opened::Secured) = opened {
                self.handshake_completed(token);
                opened = self.open_piece(token, &mut lease, &mut plain, &mut filled);
            }
            if filled > 0 {
                self.hand_over(token, self.inner.plain.lend(plain, filled));
            } else {
                self.inner.plain.give_back(plain);
            }
            match opened {
                Some(Opened::Full) => continue,
                Some(Opened::PeerFinished) => self.input_ended(token),
                Some(Opened::Failed(error)) => return self.session_failed(token, error),
                Some(Opened::Drained | Opened::Secured) | None => {}
            }
            break;
        }
        self.socket_ended_if_drained(token);
        // A ticket, a key update, an answer to an alert.
        self.settle_records(token);
    }

    /// Opens some, unless the application does not read now: then what is left is kept as it came.
    fn open_piece(
        &self,
        token: Token,
        lease: &mut Option<Lease>,
        plain: &mut [u8],
        filled: &mut usize,
    ) -> Option<Opened> {
        let mut connections = self.inner.connections.borrow_mut();
        let slot = connections.get_mut(token)?;
        let goes_on = match slot.connection.phase {
            Phase::Open => slot.connection.is_handshaking() || slot.connection.may_read(),
            Phase::Flushing(_) => slot.connection.is_handshaking(),
            Phase::Ending(..) | Phase::Lingering { .. } => false,
        };
        let is_open = slot.connection.is_open();
        let session = slot.connection.session_mut()?;
        if !goes_on {
            if let Some(lease) = lease.take().filter(|_| is_open) {
                session.keep(&lease);
            }
            return None;
        }
        Some(session.open(lease.as_mut(), plain, filled))
    }

    /// Sends what the session itself has to say.
    fn settle_records(&self, token: Token) {
        let says = self
            .inner
            .connections
            .borrow()
            .get(token)
            .is_some_and(|slot| slot.connection.session().is_some_and(Session::has_outgoing));
        if says {
            self.with_active(token, || {});
        }
    }

    fn handshake_completed(&self, token: Token) {
        let inner = &self.inner;
        let stream = {
            let mut connections = inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token) else { return };
            let timer = inner.handshakes.leave(&mut slot.connection);
            if let Some(timer) = timer {
                drop(inner.timers.borrow_mut().cancel(timer));
            }
            slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
            match &slot.handler {
                Handler::Stream(stream) => Some(stream.clone()),
                _ => None,
            }
        };
        inner.stats.handshakes.add(1);
        match stream {
            Some(stream) => self.with_active(token, || stream.on_secured(self)),
            None => self.call_protocol(token, |protocol, transport| {
                if transport.is_open() { protocol.handshake_completed(transport) } else { Ok(()) }
            }),
        }
        self.attempt_secured(token);
    }

    /// Tells the peer why, and closes.
    fn session_failed(&self, token: Token, error: TlsError) {
        self.inner.stats.tls_failures.add(1);
        tracing::debug!(shard = self.inner.id.index(), %error, "TLS failed");
        {
            let mut connections = self.inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token) else { return };
            if let Some(session) = slot.connection.session_mut() {
                session.fail();
            }
            if let Phase::Flushing(reason) = &mut slot.connection.phase
                && reason.is_clean()
            {
                // What was to be sent yet is lost.
                **reason = CloseReason::Tls(error.clone());
            }
        }
        self.begin_close(token, CloseReason::Tls(error));
        self.inner.mark_unsettled(token);
    }

    /// The peer has sent FIN: below the TLS, if there is any, whatever that says.
    pub(crate) fn on_peer_finished(&self, token: Token) {
        let mut connections = self.inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        if !slot.connection.wire.is_tls()
            || matches!(slot.connection.phase, Phase::Lingering { .. } | Phase::Ending(..))
        {
            drop(connections);
            return self.input_ended(token);
        }
        if let Some(session) = slot.connection.session_mut() {
            session.socket_ended = true;
        }
        drop(connections);
        self.socket_ended_if_drained(token);
    }

    /// Acts on the end of the socket once all that came before it is opened.
    fn socket_ended_if_drained(&self, token: Token) {
        let mut connections = self.inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        let closing = !slot.connection.is_open();
        let Some(session) = slot.connection.session_mut() else { return };
        if !session.socket_ended
            || session.truncated
            || (session.has_unopened() && !closing)
            || session.queued
        {
            return;
        }
        if session.is_handshaking() {
            drop(connections);
            self.session_failed(token, TlsError::ClosedInHandshake);
        } else if closing {
            slot.connection.read = ReadHalf::Finished;
        } else if !session.peer_has_finished() && !session.has_failed() {
            session.truncated = true;
            drop(connections);
            self.input_ended(token);
        }
    }

    /// The handshake has taken too long.
    pub(super) fn on_handshake_deadline(&self, token: Token) {
        if let Some(slot) = self.inner.connections.borrow_mut().get_mut(token)
            && let Some(session) = slot.connection.session_mut()
        {
            session.deadline = None;
        }
        self.inner.stats.tls_failures.add(1);
        let after = self.inner.shared.config.handshake_timeout;
        let reason = CloseReason::Tls(TlsError::HandshakeTimedOut { after });
        self.end(token, reason, EndKind::Close(CloseKind::Orderly));
    }
}
