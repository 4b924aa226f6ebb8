//! Connections that speak TLS: handshakes in their turn, ciphertext to whoever handles the connection, and the ends.
//! The transformation itself is `net`'s.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::error::{CloseReason, TlsError};
use crate::net::connection::{Connection, EndKind, Phase, ReadHalf};
use crate::net::tls::Session;
use crate::net::wire::{Opened, Tls, Wire};
use crate::reactor::driver::CloseKind;
use crate::reactor::lease::Lease;
use crate::reactor::timer_wheel::deadline_after;
use crate::reactor::token::Token;
use crate::shard::connections::{Handler, Slot};
use crate::shard::turn::Rest;
use crate::shard::{Inner, Shard, Timer};

/// The handshakes of a shard. A peer's first bytes cost us more than they cost it, so they are not dealt with as they come
/// but in order, and for a part of each turn; and there is a limit to what is kept of them.
#[derive(Default)]
pub(crate) struct Handshakes {
    /// Connections whose bytes wait to be opened, the oldest first.
    queue: RefCell<VecDeque<Token>>,
    /// Those that are in the middle of a message of a stranger's, in the order in which they have fallen silent.
    unfinished: RefCell<BTreeMap<u64, Token>>,
    last_place: Cell<u64>,
    /// What is kept of strangers' messages, in bytes.
    kept_bytes: Cell<usize>,
    /// When it was their turn last.
    turn_ended: Cell<Option<Instant>>,
}

impl Handshakes {
    /// Whether one of them can go on.
    pub(crate) fn has_work(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    /// Counts what it keeps now.
    fn count(&self, token: Token, tls: &mut Tls) {
        let counts = tls.is_handshaking() && tls.is_server();
        self.set_bytes(tls, if counts { tls.kept_bytes() } else { 0 });
        let waits_for_peer = tls.share.bytes > 0 && !tls.queued;
        match tls.share.place {
            None if waits_for_peer => {
                let place = self.last_place.get() + 1;
                self.last_place.set(place);
                self.unfinished.borrow_mut().insert(place, token);
                tls.share.place = Some(place);
            }
            Some(_) if !waits_for_peer => self.give_place_back(tls),
            _ => {}
        }
    }

    fn set_bytes(&self, tls: &mut Tls, bytes: usize) {
        self.kept_bytes.set(self.kept_bytes.get() - tls.share.bytes + bytes);
        tls.share.bytes = bytes;
    }

    fn give_place_back(&self, tls: &mut Tls) {
        if let Some(place) = tls.share.place.take() {
            self.unfinished.borrow_mut().remove(&place);
        }
    }

    /// Who has been silent for longest, apart from `token`.
    fn longest_silent(&self, token: Token) -> Option<Token> {
        self.unfinished.borrow().values().find(|other| **other != token).copied()
    }
}

impl Inner {
    /// Keeps bytes of a handshake until it is this connection's turn.
    pub(super) fn keep_handshake(&self, token: Token, slot: &mut Slot, bytes: &[u8]) {
        let Some(tls) = slot.connection.tls_mut() else { return };
        tls.fresh = false;
        tls.keep(bytes);
        if (tls.has_unopened() || tls.socket_ended) && !tls.queued {
            tls.queued = true;
            self.stop_clock(tls);
            self.handshakes.queue.borrow_mut().push_back(token);
        }
        self.handshakes.count(token, tls);
        slot.connection.update_receiving(&mut **self.driver.borrow_mut(), token);
    }

    /// The handshake is over, or goes on elsewhere.
    pub(super) fn leave_handshake(&self, connection: &mut Connection) {
        let Some(tls) = connection.tls_mut() else { return };
        self.stop_clock(tls);
        tls.queued = false;
        self.handshakes.set_bytes(tls, 0);
        self.handshakes.give_place_back(tls);
    }

    /// From here on the peer takes its time, if it is the peer's turn.
    fn start_clock(&self, token: Token, tls: &mut Tls) {
        if !tls.is_handshaking() || tls.queued || tls.clock.running.is_some() {
            return;
        }
        let deadline = deadline_after(self.driver.borrow_mut().read_clock(), tls.clock.left);
        let late = Timer::new(move |shard: &Shard| shard.on_handshake_deadline(token));
        tls.clock.running = Some(self.timers.borrow_mut().insert(deadline, late));
    }

    fn stop_clock(&self, tls: &mut Tls) {
        let Some(key) = tls.clock.running.take() else { return };
        let now = self.driver.borrow_mut().read_clock();
        let mut timers = self.timers.borrow_mut();
        let deadline = timers.deadline(key).unwrap_or(now);
        tls.clock.left = deadline.saturating_duration_since(now);
        timers.cancel(key);
    }
}

impl Shard {
    /// A connection begins with TLS, or has it from here on. What it has written goes out with the next flush.
    pub(super) fn begin_handshake(&self, token: Token, slot: &mut Slot) {
        let inner = &self.inner;
        if let Handler::Stream(stream) = &slot.handler {
            stream.set_secured();
        }
        let Some(tls) = slot.connection.tls_mut() else { return };
        if tls.is_handshaking() {
            inner.keep_handshake(token, slot, &[]);
            slot.connection.tls_mut().into_iter().for_each(|tls| inner.start_clock(token, tls));
        } else if tls.has_unopened() || tls.socket_ended {
            // It has come from another shard.
            inner.mark_slot_resumed(token, slot);
        }
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
        connection.wire = Wire::Tls(Tls::new(session, inner.shared.config.handshake_timeout));
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
            connection.tls_mut().into_iter().for_each(|tls| tls.socket_ended = true);
        }
        self.begin_handshake(token, slot);
        inner.keep_handshake(token, slot, &left);
        if let Some(tls) = slot.connection.tls_mut() {
            // What the callback that runs now has not consumed will be kept when it returns.
            tls.fresh = active && matches!(slot.handler, Handler::Busy);
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
            Phase::Open | Phase::Flushing(_) if handshaking => {
                inner.keep_handshake(token, slot, &lease);
                drop(connections);
                self.make_room_for_handshake(token);
            }
            Phase::Open if may_read => {
                drop(connections);
                self.open_sealed(token, Some(lease));
            }
            Phase::Open => slot.connection.tls_mut().into_iter().for_each(|tls| tls.keep(&lease)),
            _ => {
                drop(connections);
                self.received_unasked(token, &lease);
            }
        }
    }

    /// Keeps to the limit of what all handshakes keep. Who has begun a message and been silent for longest goes; if nobody
    /// has, the one that has just come.
    fn make_room_for_handshake(&self, token: Token) {
        let handshakes = &self.inner.handshakes;
        while handshakes.kept_bytes.get() > self.inner.shared.config.handshake_bytes_max {
            let last = handshakes.longest_silent(token);
            let alone = self.inner.connections.borrow().get(token).is_none_or(|slot| {
                slot.connection.tls().is_none_or(|tls| tls.share.bytes == handshakes.kept_bytes.get())
            });
            if last.is_none() && alone {
                return;
            }
            self.session_failed(last.unwrap_or(token), CloseReason::Tls(TlsError::TooManyHandshakes));
            if last.is_none() {
                return;
            }
        }
    }

    /// Handshake bytes → sessions: some each turn. Says whether more wait.
    pub(super) fn run_handshakes(&self) -> bool {
        let inner = &self.inner;
        if !inner.handshakes.has_work() {
            return false;
        }
        let until = self.handshakes_until();
        loop {
            let token = inner.handshakes.queue.borrow_mut().pop_front();
            let Some(token) = token else { break };
            if !self.take_turn(token) {
                continue;
            }
            self.open_sealed(token, None);
            if let Some(slot) = inner.connections.borrow_mut().get_mut(token) {
                if let Some(tls) = slot.connection.tls_mut() {
                    inner.handshakes.count(token, tls);
                    inner.start_clock(token, tls);
                }
                slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
            }
            if inner.driver.borrow_mut().read_clock() >= until {
                break;
            }
        }
        inner.handshakes.turn_ended.set(Some(inner.driver.borrow_mut().read_clock()));
        inner.handshakes.has_work()
    }

    /// How long they may take now: no longer than all else has since their last turn, so that half of the loop is left to
    /// the connections that stand. One is always dealt with: with less to do there is nobody who would wait for longer.
    fn handshakes_until(&self) -> Instant {
        let inner = &self.inner;
        let now = inner.driver.borrow_mut().read_clock();
        let begun = match (inner.rest.get(), inner.handshakes.turn_ended.get()) {
            // The time before this turn was slept.
            (Rest::None, Some(ended)) => ended,
            _ => inner.now.get(),
        };
        now + now.saturating_duration_since(begun).min(inner.shared.config.handshake_time_per_turn)
    }

    /// Whether the handshake goes on; else it is over, or gone.
    fn take_turn(&self, token: Token) -> bool {
        let mut connections = self.inner.connections.borrow_mut();
        let tls = connections.get_mut(token).and_then(|slot| slot.connection.tls_mut());
        tls.is_some_and(|tls| std::mem::take(&mut tls.queued))
    }

    /// What came while reading was held.
    pub(super) fn open_resumed(&self, token: Token) {
        let unopened = self.inner.connections.borrow().get(token).is_some_and(|slot| {
            slot.connection.tls().is_some_and(|tls| {
                let ends = tls.socket_ended && !tls.truncated;
                !tls.is_handshaking() && (tls.has_unopened() || ends)
            })
        });
        if unopened {
            self.open_sealed(token, None);
        }
    }

    /// Opens what was kept, and `lease`, and hands it on piece by piece for as long as the application reads.
    fn open_sealed(&self, token: Token, lease: Option<Lease>) {
        let inner = &self.inner;
        // Whoever detaches the connection has to find all that has come: while the application runs, nothing of it lies here.
        inner.unopened.set(lease);
        loop {
            let mut plain = inner.plain.take();
            let mut filled = 0;
            let mut opened = self.open_piece(token, &mut plain, &mut filled);
            while let Some(Opened::Secured) = opened {
                if self.handshake_completed(token, &plain[..filled]) {
                    filled = 0;
                }
                opened = self.open_piece(token, &mut plain, &mut filled);
            }
            if filled > 0 {
                self.hand_over_logged(token, inner.plain.lend(plain, filled));
            } else {
                inner.plain.give_back(plain);
            }
            match opened {
                Some(Opened::Full) => continue,
                Some(Opened::PeerFinished) => self.input_ended(token),
                Some(Opened::Failed(error)) => {
                    inner.unopened.set(None);
                    return self.session_failed(token, CloseReason::Tls(error));
                }
                Some(Opened::Drained | Opened::Secured) | None => {}
            }
            break;
        }
        inner.unopened.set(None);
        self.socket_ended_if_drained(token);
        // A ticket, a key update, an answer to an alert.
        self.settle_records(token);
    }

    /// Opens some, unless the application does not read now: then what is left is kept as it came.
    fn open_piece(&self, token: Token, plain: &mut [u8], filled: &mut usize) -> Option<Opened> {
        let mut lease = self.inner.unopened.take();
        let mut connections = self.inner.connections.borrow_mut();
        let slot = connections.get_mut(token)?;
        let goes_on = match slot.connection.phase {
            Phase::Open => slot.connection.is_handshaking() || slot.connection.may_read(),
            Phase::Flushing(_) => slot.connection.is_handshaking(),
            Phase::Ending(..) | Phase::Lingering { .. } => false,
        };
        let is_open = slot.connection.is_open();
        let tls = slot.connection.tls_mut()?;
        if !goes_on {
            if let Some(lease) = lease.filter(|_| is_open) {
                tls.keep(&lease);
            }
            return None;
        }
        let mut session = tls.take_session()?;
        drop(connections);
        // What chooses and verifies certificates, and keeps sessions and keys, may be the application's.
        let opened = catch_unwind(AssertUnwindSafe(|| session.open(lease.as_mut(), plain, filled)));
        self.inner.unopened.set(lease);
        if opened.is_err() {
            session.fail();
        }
        self.put_session_back(token, session);
        match opened {
            Ok(opened) => Some(opened),
            Err(payload) => {
                let message = self.panicked("code within TLS", payload);
                self.session_failed(token, CloseReason::Panicked(message));
                None
            }
        }
    }

    fn put_session_back(&self, token: Token, session: Box<Session>) {
        let mut connections = self.inner.connections.borrow_mut();
        match connections.get_mut(token).and_then(|slot| slot.connection.tls_mut()) {
            Some(tls) => tls.put_back(session),
            None => {
                drop(connections);
                self.drop_contained(session);
            }
        }
    }

    /// Sends what the session itself has to say.
    fn settle_records(&self, token: Token) {
        let says = self
            .inner
            .connections
            .borrow()
            .get(token)
            .is_some_and(|slot| slot.connection.tls().is_some_and(Tls::has_outgoing));
        if says {
            self.with_active(token, || {});
        }
    }

    /// Tells the application. `plain` has come along with the end of the handshake; says whether it is kept already.
    fn handshake_completed(&self, token: Token, plain: &[u8]) -> bool {
        let inner = &self.inner;
        let stream = {
            let mut connections = inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token) else { return false };
            inner.leave_handshake(&mut slot.connection);
            slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
            match &slot.handler {
                Handler::Stream(stream) => Some(stream.clone()),
                _ => None,
            }
        };
        inner.stats.handshakes.add(1);
        let is_stream = stream.is_some();
        match stream {
            Some(stream) => {
                if !plain.is_empty() {
                    self.log_received(token, plain);
                    stream.keep(plain);
                }
                self.with_active(token, || stream.on_secured(self));
            }
            None => self.call_protocol(token, |protocol, transport| {
                if transport.is_open() { protocol.handshake_completed(transport) } else { Ok(()) }
            }),
        }
        self.attempt_secured(token);
        is_stream
    }

    /// Tells the peer why, and closes.
    fn session_failed(&self, token: Token, reason: CloseReason) {
        self.inner.stats.tls_failures.add(1);
        let mut reason = Some(reason);
        {
            let mut connections = self.inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token) else { return };
            if let Some(tls) = slot.connection.tls_mut() {
                tls.fail();
                let lost = tls.discard_pending();
                self.inner.stats.unsent_bytes_dropped.add(lost as u64);
            }
            self.inner.leave_handshake(&mut slot.connection);
            if slot.connection.tls().is_some_and(|tls| tls.socket_ended) {
                // Nobody is there whose end could be waited for.
                slot.connection.read = ReadHalf::Finished;
            }
            if let Phase::Flushing(first) = &mut slot.connection.phase
                && first.is_clean()
                && let Some(reason) = reason.take()
            {
                // What was to be sent yet is lost.
                **first = reason;
            }
        }
        if let Some(reason) = reason {
            self.begin_close(token, reason);
        }
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
        if let Some(tls) = slot.connection.tls_mut() {
            tls.socket_ended = true;
        }
        drop(connections);
        self.socket_ended_if_drained(token);
    }

    /// Acts on the end of the socket once all that came before it is opened.
    fn socket_ended_if_drained(&self, token: Token) {
        let mut connections = self.inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        let closing = !slot.connection.is_open();
        let Some(tls) = slot.connection.tls_mut() else { return };
        if !tls.socket_ended || tls.truncated || (tls.has_unopened() && !closing) || tls.queued {
            return;
        }
        if tls.is_handshaking() {
            drop(connections);
            self.session_failed(token, CloseReason::Tls(TlsError::ClosedInHandshake));
        } else if closing {
            slot.connection.read = ReadHalf::Finished;
        } else if !tls.peer_has_finished() && !tls.has_failed() {
            tls.truncated = true;
            drop(connections);
            self.input_ended(token);
        }
    }

    /// The peer has taken too long for its part of the handshake.
    fn on_handshake_deadline(&self, token: Token) {
        let after = {
            let mut connections = self.inner.connections.borrow_mut();
            let Some(tls) = connections.get_mut(token).and_then(|slot| slot.connection.tls_mut()) else {
                return;
            };
            tls.clock.running = None;
            tls.clock.limit
        };
        self.inner.stats.tls_failures.add(1);
        let reason = CloseReason::Tls(TlsError::HandshakeTimedOut { after });
        self.end(token, reason, EndKind::Close(CloseKind::Orderly));
    }
}
