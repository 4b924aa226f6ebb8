//! The connections of a shard: what the driver reports becomes calls of protocols, and what protocols did becomes
//! calls of the driver. The bytes themselves are `net`'s.

use std::any::Any;
use std::cell::RefMut;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use crate::error::{CloseReason, Result, TlsError};
use crate::net::connection::{Connection, DESCRIPTORS_LOW, EndKind, Phase, ReadHalf, WriteHalf};
use crate::net::input::Input;
use crate::net::kept::Kept;
use crate::net::wire::Wire;
use crate::reactor::driver::CloseKind;
use crate::reactor::lease::Lease;
use crate::reactor::timer_wheel::{TimerKey, deadline_after};
use crate::reactor::token::Token;
use crate::shard::flushing::Notice;
use crate::shard::handles::stream_core::StreamCore;
use crate::shard::handles::transport::Transport;
use crate::shard::lifecycle::ShardPhase;
use crate::shard::policies::{Watched, Way};
use crate::shard::producers::{EndsAfterProducer, Producing};
use crate::shard::protocol::Protocol;
use crate::shard::{Shard, Timer};

/// A connection and what belongs to it.
pub(crate) struct Slot {
    pub(crate) connection: Connection,
    pub(crate) handler: Handler,
    /// The application's deadline.
    pub(crate) deadline: Option<TimerKey>,
    /// Set while output waits for the peer, or while we wait for its FIN.
    pub(crate) guard: Option<TimerKey>,
    pub(crate) marks: Marks,
}

/// Who gets a connection's bytes.
pub(crate) enum Handler {
    Protocol(Box<dyn Protocol>),
    Stream(Rc<StreamCore>),
    /// Its callback runs now.
    Busy,
    /// Told of the end.
    Gone,
}

/// On which of the shard's lists a connection stands, and what it has been told.
#[derive(Clone, Copy, Default)]
pub(crate) struct Marks {
    pub(crate) unsettled: bool,
    pub(crate) resumed: bool,
    pub(crate) ending: bool,
    pub(crate) draining: Draining,
    pub(crate) producing: Producing,
    pub(crate) ends_after_producer: EndsAfterProducer,
    /// The protocol has looked at all that is kept of its input, and took nothing: it is shown again with the next bytes,
    /// or when it asks to read on.
    pub(crate) left_whole: bool,
    pub(crate) watched: Watched,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Draining {
    #[default]
    No,
    /// It came in while the shard was draining already: it is served once before it is told.
    Later,
    Told,
}

/// A handler asked for more than this many notices in a row goes on in the next turn.
const NOTICES_PER_SETTLE: usize = 8;
/// Kept input may have this much room around it, in bytes; beyond it, four times its own length.
const KEPT_SLACK_BYTES: usize = 4096;
/// While the shard drains, peers have this long to close after we have.
pub(super) const DRAINING_LINGER: Duration = Duration::from_millis(500);

type Outcome = std::result::Result<Result<()>, Box<dyn Any + Send>>;

impl Shard {
    /// Gives a new connection its slot and tells the handler.
    pub(crate) fn open_connection(&self, token: Token, connection: Connection, handler: Handler) {
        let inner = &self.inner;
        let is_protocol = matches!(handler, Handler::Protocol(_));
        let draining = if inner.phase.get() == ShardPhase::Draining {
            self.plan_late_drain();
            Draining::Later
        } else {
            Draining::No
        };
        let marks = Marks { draining, watched: self.begin_policing(token), ..Marks::default() };
        let mut slot = Slot { connection, handler, deadline: None, guard: None, marks };
        slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
        if slot.connection.wire.is_tls() {
            self.begin_handshake(token, &mut slot);
        }
        let is_tls = slot.connection.wire.is_tls();
        inner.connections.borrow_mut().insert_at(token, slot);
        inner.stats.open.add(1);
        if is_protocol {
            self.call_protocol(token, |protocol, transport| protocol.connected(transport));
        }
        if is_tls {
            self.inner.mark_unsettled(token);
        }
    }

    /// Bytes came.
    #[inline]
    pub(crate) fn on_received(&self, token: Token, lease: Lease) {
        let inner = &*self.inner;
        inner.stats.receives.add(1);
        inner.stats.received_bytes.add(lease.len() as u64);
        let connections = inner.connections.borrow_mut();
        let Ok(slot) = RefMut::filter_map(connections, |connections| connections.get_mut(token)) else {
            return;
        };
        let watched = slot.marks.watched;
        if watched.is_any() | slot.connection.wire.is_tls() {
            drop(slot);
            return self.on_received_watched(token, watched, lease);
        }
        self.give(token, slot, lease);
    }

    /// As `hand_over`, for bytes that nobody has logged yet.
    pub(super) fn hand_over_logged(&self, token: Token, lease: Lease) {
        self.log_received(token, &lease);
        self.hand_over(token, lease);
    }

    /// Logs what has come for the application, if that is to be logged.
    pub(super) fn log_received(&self, token: Token, bytes: &[u8]) {
        if self.inner.connections.borrow().get(token).is_some_and(|slot| slot.marks.watched.logs()) {
            self.log_traffic(token, Way::Received, bytes);
        }
    }

    /// Gives bytes, as the application is to see them, to whoever handles the connection.
    pub(super) fn hand_over(&self, token: Token, lease: Lease) {
        let connections = self.inner.connections.borrow_mut();
        if let Ok(slot) = RefMut::filter_map(connections, |connections| connections.get_mut(token)) {
            self.give(token, slot, lease);
        }
    }

    /// Gives bytes, as the application is to see them, to whoever handles the connection.
    #[inline]
    fn give(&self, token: Token, mut slot: RefMut<'_, Slot>, lease: Lease) {
        let inner = &*self.inner;
        if !slot.connection.may_read() {
            drop(slot);
            return self.received_unasked(token, &lease);
        }
        match std::mem::replace(&mut slot.handler, Handler::Busy) {
            Handler::Protocol(protocol) => {
                inner.activate(token, &slot);
                let kept = slot.connection.input.take();
                if kept.is_empty() {
                    drop(slot);
                    self.deliver(token, protocol, &lease);
                } else if slot.connection.has_unread_descriptors() {
                    // Those that it was not given yet, since it had paused, come first.
                    slot.connection.input.set(kept);
                    slot.handler = Handler::Protocol(protocol);
                    drop(slot);
                    inner.deactivate();
                    return self.received_behind_descriptors(token, lease);
                } else {
                    drop(slot);
                    let mut bytes = kept;
                    bytes.extend_from_slice(&lease);
                    drop(lease);
                    self.deliver_kept(token, protocol, bytes);
                }
                inner.deactivate();
            }
            Handler::Stream(stream) => {
                slot.handler = Handler::Stream(Rc::clone(&stream));
                drop(slot);
                self.with_active(token, || stream.on_received(self, token, lease));
            }
            // Its own callback cannot be running: nothing re-enters.
            other @ (Handler::Busy | Handler::Gone) => {
                slot.handler = other;
                drop(slot);
            }
        }
        if inner.phase.get() == ShardPhase::Draining {
            self.tell_draining_if_served(token);
        }
    }

    /// Bytes came that the application cannot be given now, or ever.
    #[cold]
    pub(super) fn received_unasked(&self, token: Token, bytes: &[u8]) {
        let mut connections = self.inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        match (&mut slot.connection.phase, &slot.handler) {
            (Phase::Open, Handler::Stream(stream)) => {
                stream.keep(bytes);
                // Whoever waits for a descriptor, and has not taken those that hold reading, is not left waiting.
                if slot.connection.descriptors().is_some_and(|descriptors| descriptors.holds_reading) {
                    let stream = Rc::clone(stream);
                    drop(connections);
                    self.with_active(token, || stream.on_resumed(self));
                }
            }
            (Phase::Open, _) => {
                slot.marks.left_whole = false;
                slot.connection.input.push(bytes);
            }
            (Phase::Flushing(_) | Phase::Ending(..), _) => {}
            (Phase::Lingering { discarded_bytes, reading }, _) => {
                *discarded_bytes += bytes.len();
                // A reset now would destroy the answer on its way: beyond the limit the peer waits until the guard.
                *reading = *discarded_bytes <= self.inner.shared.config.linger_bytes_max;
                slot.connection.update_receiving(&mut **self.inner.driver.borrow_mut(), token);
            }
        }
    }

    /// Lends `bytes` to the protocol, keeps a copy of what it leaves, and sends what it wrote.
    #[inline]
    fn deliver(&self, token: Token, mut protocol: Box<dyn Protocol>, bytes: &[u8]) {
        let (outcome, consumed) = self.show(token, &mut *protocol, bytes);
        let rest = &bytes[consumed..];
        self.callback_done(token, protocol, outcome, rest.len(), || (rest.to_vec(), consumed > 0));
    }

    /// As `deliver`, for bytes that were kept before: what the protocol leaves stays where it is. Copied each time, a
    /// large frame in small segments would cost its square. Says whether the protocol was shown all of it, and took nothing.
    fn deliver_kept(&self, token: Token, mut protocol: Box<dyn Protocol>, mut kept: Vec<u8>) -> bool {
        let (outcome, consumed) = self.show(token, &mut *protocol, &kept);
        let left_all = consumed == 0 && !self.inner.dry.get();
        self.callback_done(token, protocol, outcome, kept.len() - consumed, || {
            kept.drain(..consumed);
            if kept.capacity() > KEPT_SLACK_BYTES.max(4 * kept.len()) {
                kept.shrink_to_fit();
            }
            (kept, consumed > 0)
        });
        left_all
    }

    /// Shows `bytes` to the protocol; says how many it has used.
    #[inline]
    fn show(&self, token: Token, protocol: &mut dyn Protocol, bytes: &[u8]) -> (Outcome, usize) {
        let transport = Transport::new(self.clone(), token);
        let mut input = Input::new(bytes, &self.inner.dry);
        let outcome = catch_unwind(AssertUnwindSafe(|| protocol.data_received(&transport, &mut input)));
        (outcome, input.consumed())
    }

    /// Puts the protocol back, keeps what it left of its input, and settles the connection: one look at its slot for
    /// all three. `rest` gives what it left, and whether it has used anything.
    #[inline]
    fn callback_done(
        &self,
        token: Token,
        protocol: Box<dyn Protocol>,
        outcome: Outcome,
        rest_len: usize,
        rest: impl FnOnce() -> (Vec<u8>, bool),
    ) {
        let inner = &*self.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else {
            drop(connections);
            return self.drop_contained(protocol);
        };
        slot.handler = Handler::Protocol(protocol);
        if !matches!(outcome, Ok(Ok(()))) {
            drop(connections);
            self.callback_failed(token, outcome);
            return self.settle(token);
        }
        if slot.connection.tls().is_some_and(|tls| tls.fresh) {
            // It has begun TLS in this callback: not a byte after that is plain.
            let (handshake, _) = rest();
            self.inner.keep_handshake(token, slot, &handshake);
        } else if rest_len > 0 && slot.connection.is_open() {
            // Whatever came before was lent together with what has come now.
            let (rest, has_used) = rest();
            slot.connection.input.set(rest);
            slot.marks.left_whole = !has_used && inner.dry.was_seen();
            // A paused protocol leaves what it has not been shown; only one that reads and does not take is at fault.
            let limit_bytes = inner.shared.config.input_bytes_max;
            if rest_len > limit_bytes && slot.connection.read_holds == 0 {
                drop(connections);
                self.begin_close(token, CloseReason::InputTooLong { limit_bytes });
                return self.settle(token);
            }
        }
        if let Some(notice) = inner.flush(token, slot) {
            drop(connections);
            self.give_notice(token, notice);
            self.settle(token);
        }
    }

    /// No more input will come.
    pub(super) fn input_ended(&self, token: Token) {
        let mut connections = self.inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        match slot.connection.phase {
            Phase::Lingering { .. } => {
                drop(connections);
                self.end(token, CloseReason::Closed, EndKind::Close(CloseKind::Orderly));
            }
            Phase::Ending(..) => {}
            Phase::Flushing(_) => slot.connection.read = ReadHalf::Finished,
            // Input that waits to be delivered again comes before the end of it.
            Phase::Open if slot.connection.may_read() && !slot.marks.resumed => {
                drop(connections);
                self.finish_reading(token);
            }
            Phase::Open => slot.connection.read = ReadHalf::FinishPending,
        }
    }

    /// Tells the handler of the peer's FIN.
    fn finish_reading(&self, token: Token) {
        let mut connections = self.inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        slot.connection.read = ReadHalf::Finished;
        if slot.connection.wire.is_tls() {
            // The peer may have finished within TLS alone, and send on.
            slot.connection.update_receiving(&mut **self.inner.driver.borrow_mut(), token);
        }
        if slot.connection.tls().is_some_and(|tls| tls.truncated) {
            drop(connections);
            return self.begin_close(token, CloseReason::Tls(TlsError::Truncated));
        }
        let both_finished = slot.connection.write == WriteHalf::Finished;
        if let Handler::Stream(stream) = &slot.handler {
            let stream = Rc::clone(stream);
            drop(connections);
            self.with_active(token, || stream.on_finished(self));
        } else {
            drop(connections);
            self.call_protocol(token, |protocol, transport| protocol.read_finished(transport));
        }
        if both_finished {
            self.begin_close(token, CloseReason::PeerFinished);
        }
    }

    /// There is room for output again.
    pub(crate) fn on_sent(&self, token: Token) {
        self.with_active(token, || {});
        self.stream_progress(token);
    }

    /// The connection is broken.
    pub(crate) fn on_failed(&self, token: Token, source: std::io::Error) {
        self.end(token, CloseReason::Os { call: "receive", source }, EndKind::Close(CloseKind::Orderly));
    }

    /// The application's deadline has passed.
    pub(crate) fn on_deadline(&self, token: Token) {
        let stream = {
            let mut connections = self.inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token) else { return };
            slot.deadline = None;
            if !slot.connection.is_open() {
                return;
            }
            matches!(slot.handler, Handler::Stream(_)).then(|| slot.connection.has_output())
        };
        if let Some(output_is_stuck) = stream {
            if output_is_stuck {
                self.end(token, CloseReason::DeadlineReached, EndKind::Close(CloseKind::Reset));
            } else {
                self.begin_close(token, CloseReason::DeadlineReached);
            }
        } else {
            self.call_protocol(token, |protocol, transport| protocol.deadline_reached(transport));
        }
    }

    /// The peer has taken nothing for too long, or has not finished after we have.
    pub(crate) fn on_guard(&self, token: Token) {
        let mut connections = self.inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        slot.guard = None;
        let lingering = matches!(slot.connection.phase, Phase::Lingering { .. });
        drop(connections);
        let reason = if lingering {
            CloseReason::Closed
        } else {
            CloseReason::WriteStalled { after: self.inner.shared.config.write_timeout }
        };
        let kind = if lingering { CloseKind::Orderly } else { CloseKind::Reset };
        self.end(token, reason, EndKind::Close(kind));
    }

    /// Calls the protocol, then sends what it wrote.
    pub(super) fn call_protocol(
        &self,
        token: Token,
        call: impl FnOnce(&mut dyn Protocol, &Transport) -> Result<()>,
    ) {
        self.with_active(token, || self.invoke(token, call));
    }

    /// Runs `body` with `token` as the connection whose small writes are staged, then settles it.
    pub(super) fn with_active(&self, token: Token, body: impl FnOnce()) {
        match self.inner.connections.borrow().get(token) {
            Some(slot) => self.inner.activate(token, slot),
            None => return,
        }
        body();
        self.settle(token);
        self.inner.deactivate();
    }

    /// Takes the protocol out of its slot, calls it, and puts it back: no borrow is held meanwhile.
    fn invoke(&self, token: Token, call: impl FnOnce(&mut dyn Protocol, &Transport) -> Result<()>) {
        let Some(mut protocol) = self.take_protocol(token) else { return };
        let transport = Transport::new(self.clone(), token);
        let outcome = catch_unwind(AssertUnwindSafe(|| call(&mut *protocol, &transport)));
        self.put_protocol_back(token, protocol);
        if !matches!(outcome, Ok(Ok(()))) {
            self.callback_failed(token, outcome);
        }
    }

    fn take_protocol(&self, token: Token) -> Option<Box<dyn Protocol>> {
        let mut connections = self.inner.connections.borrow_mut();
        let slot = connections.get_mut(token)?;
        match std::mem::replace(&mut slot.handler, Handler::Busy) {
            Handler::Protocol(protocol) => Some(protocol),
            other => {
                slot.handler = other;
                None
            }
        }
    }

    fn put_protocol_back(&self, token: Token, protocol: Box<dyn Protocol>) {
        let mut connections = self.inner.connections.borrow_mut();
        match connections.get_mut(token) {
            Some(slot) => slot.handler = Handler::Protocol(protocol),
            None => {
                drop(connections);
                self.drop_contained(protocol);
            }
        }
    }

    #[cold]
    pub(super) fn callback_failed(&self, token: Token, outcome: Outcome) {
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.close_failed(token, CloseReason::Protocol(error));
            }
            Err(payload) => {
                let message = self.panicked("a protocol", payload);
                // A frame may be half written: nothing more of it goes out.
                if self.inner.active.get() == token {
                    self.inner.discard_staged();
                }
                if let Some(slot) = self.inner.connections.borrow_mut().get_mut(token) {
                    let dropped = slot.connection.discard_output();
                    self.inner.stats.unsent_bytes_dropped.add(dropped as u64);
                }
                self.close_failed(token, CloseReason::Panicked(message));
            }
        }
    }

    /// Closes for the failure of a callback. One that has aborted before it failed tells more by its failure.
    fn close_failed(&self, token: Token, failure: CloseReason) {
        if let Some(slot) = self.inner.connections.borrow_mut().get_mut(token)
            && let Phase::Ending(reason, _) = &mut slot.connection.phase
            && matches!(**reason, CloseReason::Aborted)
        {
            **reason = failure;
            return;
        }
        self.begin_close(token, failure);
    }

    /// Sends what was written, and follows what that brings about.
    pub(crate) fn settle(&self, token: Token) {
        for _ in 0..NOTICES_PER_SETTLE {
            let notice = {
                let mut connections = self.inner.connections.borrow_mut();
                let Some(slot) = connections.get_mut(token) else {
                    self.inner.staged.borrow_mut().clear();
                    return;
                };
                self.inner.flush(token, slot)
            };
            match notice {
                None => return,
                Some(notice) => self.give_notice(token, notice),
            }
        }
        // The last notice may have written: nothing may be left where the next connection writes.
        let mut connections = self.inner.connections.borrow_mut();
        let mut staged = self.inner.staged.borrow_mut();
        if let Some(slot) = connections.get_mut(token) {
            if !staged.is_empty() {
                slot.note_written();
            }
            slot.connection.queue(&staged);
            self.inner.mark_slot_unsettled(token, slot);
        }
        staged.clear();
    }

    fn give_notice(&self, token: Token, notice: Notice) {
        self.invoke(token, |protocol, transport| match notice {
            Notice::Paused => protocol.write_paused(transport),
            Notice::Resumed => protocol.write_resumed(transport),
            Notice::WriteFinished => protocol.write_finished(transport),
            Notice::Pull => Ok(()),
        });
        let producing = self.inner.connections.borrow().get(token).map(|slot| slot.marks.producing);
        match producing {
            None | Some(Producing::Nobody) => {}
            Some(Producing::Push) => self.tell_producer(token, notice),
            // Asked by `Pull` alone: the watermarks are not its business.
            Some(_) if notice == Notice::Pull => self.tell_producer(token, notice),
            Some(_) => {}
        }
    }

    /// Tells a stream's waiting writer how far its output has come.
    fn stream_progress(&self, token: Token) {
        let (stream, queued_bytes, is_crowded) = {
            let connections = self.inner.connections.borrow();
            let Some(slot) = connections.get(token) else { return };
            let Handler::Stream(stream) = &slot.handler else { return };
            let is_crowded = slot.connection.unsent_descriptors() > DESCRIPTORS_LOW;
            (Rc::clone(stream), slot.connection.queued_bytes(), is_crowded)
        };
        let marks = &self.inner.shared.config.watermarks;
        let has_room = queued_bytes <= marks.low_bytes && queued_bytes < marks.cap_bytes && !is_crowded;
        stream.on_progress(queued_bytes, has_room);
    }

    /// Closes after what is queued has been sent. Only the first reason counts.
    pub(crate) fn begin_close(&self, token: Token, reason: CloseReason) {
        let inner = &self.inner;
        let mut kept = Kept::new();
        {
            let mut connections = inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token).filter(|slot| slot.connection.is_open()) else {
                drop(connections);
                // It may hold the application's error.
                self.drop_contained(reason);
                return;
            };
            let reason = match reason {
                CloseReason::Closed if slot.connection.read == ReadHalf::Finished => {
                    CloseReason::PeerFinished
                }
                reason => reason,
            };
            slot.connection.phase = Phase::Flushing(Box::new(reason));
            std::mem::swap(&mut kept, &mut slot.connection.input);
            slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
        }
        if inner.active.get() == token {
            inner.dry.set(true);
            inner.staged_room.set(0);
        } else {
            inner.mark_unsettled(token);
        }
    }

    /// Ends a connection with this turn. Unsent output is lost.
    pub(crate) fn end(&self, token: Token, reason: CloseReason, kind: EndKind) {
        let inner = &self.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        let dropped = slot.connection.discard_output();
        inner.stats.unsent_bytes_dropped.add(dropped as u64);
        slot.connection.input = Kept::new();
        inner.mark_ending(token, slot, reason, kind);
        drop(connections);
        if inner.active.get() == token {
            inner.discard_staged();
            inner.staged_room.set(0);
            inner.dry.set(true);
        }
    }

    /// Kept input may be delivered again: in the next turn, never from within the call that asks for it.
    pub(crate) fn read_resumed(&self, token: Token) {
        let inner = &self.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        slot.marks.left_whole = false;
        inner.read_on(token, slot);
        // What the callback that runs now leaves is not kept yet, and it may not have been shown all of it.
        if inner.active.get() == token {
            if slot.connection.may_read() {
                inner.dry.set(false);
            }
            inner.mark_slot_resumed(token, slot);
        }
    }

    /// The protocol has been shown what it left, and left it again: showing it once more would go on for ever.
    fn forget_resumed(&self, token: Token) {
        if let Some(slot) = self.inner.connections.borrow_mut().get_mut(token) {
            slot.marks.resumed = false;
        }
    }

    /// Delivers what was kept while reading was paused.
    pub(crate) fn deliver_resumed(&self) {
        if self.inner.resumed.borrow().is_empty() {
            return;
        }
        let tokens = std::mem::take(&mut *self.inner.resumed.borrow_mut());
        for token in tokens {
            self.deliver_kept_descriptors(token);
            let (kept, stream) = {
                let mut connections = self.inner.connections.borrow_mut();
                let Some(slot) = connections.get_mut(token) else { continue };
                if !std::mem::take(&mut slot.marks.resumed) || !slot.connection.may_read() {
                    continue;
                }
                let stream = match &slot.handler {
                    Handler::Stream(stream) => Some(Rc::clone(stream)),
                    _ => None,
                };
                let kept = if slot.marks.left_whole { Vec::new() } else { slot.connection.input.take() };
                (kept, stream)
            };

            if let Some(stream) = stream {
                self.with_active(token, || stream.on_resumed(self));
            }
            if !kept.is_empty()
                && let Some(protocol) = self.take_protocol(token)
            {
                if let Some(slot) = self.inner.connections.borrow().get(token) {
                    self.inner.activate(token, slot);
                }
                let left_all = self.deliver_kept(token, protocol, kept);
                self.inner.deactivate();
                if left_all {
                    self.forget_resumed(token);
                }
            }
            self.open_resumed(token);
            let finish = self.inner.connections.borrow().get(token).is_some_and(|slot| {
                let reads_on = slot.connection.may_read() && !slot.marks.resumed;
                slot.connection.read == ReadHalf::FinishPending && reads_on
            });
            if finish {
                self.finish_reading(token);
            }
        }
    }

    /// Sends what timers, tasks and other connections wrote.
    pub(crate) fn settle_unsettled(&self) {
        // What a notice writes to others is settled in this same phase; what comes after that, in the next turn.
        for _ in 0..2 {
            if self.inner.unsettled.borrow().is_empty() {
                return;
            }
            let tokens = std::mem::take(&mut *self.inner.unsettled.borrow_mut());
            for token in &tokens {
                match self.inner.connections.borrow_mut().get_mut(*token) {
                    Some(slot) => slot.marks.unsettled = false,
                    None => continue,
                }
                self.with_active(*token, || {});
                self.stream_progress(*token);
            }
        }
    }

    /// Closes what has ended, and tells its protocol: the last thing a turn does.
    pub(crate) fn retire_ended(&self) {
        loop {
            let Some(token) = self.inner.ending.borrow_mut().pop() else { break };
            self.retire(token);
        }
    }

    fn retire(&self, token: Token) {
        let inner = &self.inner;
        let (handler, reason, peer, produced, wire) = {
            let mut connections = inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token) else { return };
            slot.marks.ending = false;
            let phase = std::mem::replace(
                &mut slot.connection.phase,
                Phase::Lingering { discarded_bytes: 0, reading: true },
            );
            let Phase::Ending(reason, kind) = phase else {
                slot.connection.phase = phase;
                return;
            };
            let produced = std::mem::take(&mut slot.marks.producing) != Producing::Nobody;
            let handler = std::mem::replace(&mut slot.handler, Handler::Gone);
            let peer = slot.connection.peer();
            inner.stop_timers(slot);
            let wire = std::mem::replace(&mut slot.connection.wire, Wire::Plain);
            drop(slot.connection.take_descriptors());
            let mut driver = inner.driver.borrow_mut();
            match kind {
                EndKind::Linger => {
                    slot.connection.update_receiving(&mut **driver, token);
                    let draining = inner.phase.get() != ShardPhase::Running;
                    let limit = inner.shared.config.linger_timeout;
                    let limit = if draining { limit.min(DRAINING_LINGER) } else { limit };
                    let deadline = deadline_after(inner.now.get(), limit);
                    let late = Timer::new(move |shard: &Shard| shard.on_guard(token));
                    slot.guard = Some(inner.timers.borrow_mut().insert(deadline, late));
                }
                EndKind::Close(kind) => {
                    driver.close(token, kind);
                    connections.remove(token);
                    inner.stats.open.subtract(1);
                }
            }
            (handler, *reason, peer, produced, wire)
        };
        self.handshake_ended(token, &reason);
        self.end_policing(token, &reason);
        if wire.is_tls() {
            // With it goes what the application has configured it with, whose code may fill the token's place anew.
            self.drop_contained(wire);
        }
        if !reason.is_clean() {
            self.log_end(&reason, &peer);
        }
        if produced {
            self.stop_producer(token);
        }
        match handler {
            Handler::Protocol(mut protocol) => {
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| protocol.disconnected(reason))) {
                    self.panicked("a protocol", payload);
                }
                self.drop_contained(protocol);
            }
            Handler::Stream(stream) => stream.on_ended(reason),
            Handler::Busy | Handler::Gone => self.drop_contained(reason),
        }
        self.unregister_consumers_of(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shard_keeps_of_an_idle_connection_is_small() {
        let bytes = size_of::<Slot>();
        assert!(bytes <= 112, "{bytes} bytes");
    }
}
