//! Staged and queued output on its way to the driver, and the steps of a connection's end that wait for it.

use std::time::Duration;

use crate::error::CloseReason;
use crate::net::connection::{Crossing, EndKind, Flushed, Phase, ReadHalf, WriteHalf};
use crate::net::wire::Tls;
use crate::reactor::driver::CloseKind;
use crate::reactor::timer_wheel::deadline_after;
use crate::reactor::token::Token;
use crate::shard::connections::{Handler, Slot};
use crate::shard::producers::Producing;
use crate::shard::{Inner, Shard, Timer};

/// A staging buffer that had to grow beyond this gives its memory back.
const STAGED_KEEP_BYTES: usize = 128 * 1024;

/// How often a connection looks whether fewer descriptors are under way: nothing tells.
const FLIGHTS_RETRY: Duration = Duration::from_millis(10);

/// What a handler, or its producer, has to be told after a flush.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    Paused,
    Resumed,
    WriteFinished,
    /// A pull producer may write its next chunk.
    Pull,
}

impl Inner {
    /// Makes `token` the connection whose callback runs: its small writes are staged.
    #[inline]
    pub(super) fn activate(&self, token: Token, slot: &Slot) {
        debug_assert!(self.active.get() == Token::NOBODY, "callbacks do not nest");
        self.active.set(token);
        self.dry.begin();
        let connection = &slot.connection;
        let straight = connection.may_write() && !connection.has_output() && !slot.marks.watched.logs();
        self.staged_room.set(if straight { self.shared.config.watermarks.cap_bytes } else { 0 });
    }

    #[inline]
    pub(super) fn deactivate(&self) {
        debug_assert!(self.staged.borrow().is_empty(), "staged output belongs to one connection");
        self.active.set(Token::NOBODY);
    }

    /// Throws away what the connection whose callback runs has written in it.
    pub(super) fn discard_staged(&self) {
        let mut staged = self.staged.borrow_mut();
        self.stats.unsent_bytes_dropped.add(staged.len() as u64);
        staged.clear();
    }

    pub(crate) fn mark_unsettled(&self, token: Token) {
        if let Some(slot) = self.connections.borrow_mut().get_mut(token) {
            self.mark_slot_unsettled(token, slot);
        }
    }

    pub(crate) fn mark_slot_unsettled(&self, token: Token, slot: &mut Slot) {
        if !slot.marks.unsettled {
            slot.marks.unsettled = true;
            self.unsettled.borrow_mut().push(token);
        }
    }

    pub(super) fn mark_ending(&self, token: Token, slot: &mut Slot, reason: CloseReason, kind: EndKind) {
        let reason = match std::mem::replace(&mut slot.connection.phase, Phase::Open) {
            Phase::Ending(reason, kind) => {
                slot.connection.phase = Phase::Ending(reason, kind);
                return;
            }
            // What the application said first stays the reason; it is the application's value, too, and must not be
            // dropped here, under a borrow.
            Phase::Flushing(first) if !first.is_clean() => first,
            Phase::Flushing(_) | Phase::Open | Phase::Lingering { .. } => Box::new(reason),
        };
        slot.connection.phase = Phase::Ending(reason, kind);
        slot.connection.update_receiving(&mut **self.driver.borrow_mut(), token);
        if !slot.marks.ending {
            slot.marks.ending = true;
            self.ending.borrow_mut().push(token);
        }
    }

    /// The connection is over here, and so is what it waits for.
    pub(super) fn stop_timers(&self, slot: &mut Slot) {
        self.leave_handshake(&mut slot.connection);
        let mut timers = self.timers.borrow_mut();
        for key in [slot.deadline.take(), slot.guard.take()].into_iter().flatten() {
            timers.cancel(key);
        }
    }

    /// Hands staged and queued output to the driver, and moves the connection on. At most one notice at a time.
    #[inline]
    pub(super) fn flush(&self, token: Token, slot: &mut Slot) -> Option<Notice> {
        let mut staged = self.staged.borrow_mut();
        if slot.connection.wire.is_tls() {
            self.seal(token, slot, &mut staged);
        }
        if staged.is_empty() && !slot.connection.has_output() {
            if slot.connection.is_open() && slot.connection.write == WriteHalf::Open {
                return self.crossing(token, slot);
            }
            return self.output_is_out(token, slot);
        }
        // What was queued before was noted when it was written.
        if !staged.is_empty() {
            slot.note_written();
        }
        let flushed = if slot.marks.watched.is_any() {
            self.flush_policed(token, slot, &staged)
        } else {
            slot.connection.flush(&mut **self.driver.borrow_mut(), token, &staged)
        };
        staged.clear();
        if staged.capacity() > STAGED_KEEP_BYTES {
            staged.shrink_to(STAGED_KEEP_BYTES);
        }
        drop(staged);
        match flushed {
            Err(source) => {
                self.stats.unsent_bytes_dropped.add(slot.connection.discard_output() as u64);
                let reason = CloseReason::Os { call: "send", source };
                self.mark_ending(token, slot, reason, EndKind::Close(CloseKind::Orderly));
                None
            }
            Ok(Flushed::All) => {
                if let Some(key) = slot.guard.take() {
                    self.timers.borrow_mut().cancel(key);
                }
                if slot.connection.is_open() && slot.connection.write == WriteHalf::Open {
                    self.crossing(token, slot)
                } else {
                    self.output_is_out(token, slot)
                }
            }
            Ok(Flushed::Waits) => {
                if let Some(key) = slot.guard.take() {
                    self.timers.borrow_mut().cancel(key);
                }
                self.staged_room.set(0);
                self.crossing(token, slot)
            }
            Ok(progress) => {
                if progress == Flushed::Later {
                    self.flush_later(token, slot);
                }
                // Whoever writes next queues behind what is left.
                self.staged_room.set(0);
                let now = self.driver.borrow_mut().read_clock();
                let mut timers = self.timers.borrow_mut();
                let deadline = deadline_after(now, self.shared.config.write_timeout);
                match slot.guard {
                    None => {
                        slot.guard = Some(
                            timers.insert(deadline, Timer::new(move |shard: &Shard| shard.on_guard(token))),
                        )
                    }
                    Some(key) if progress == Flushed::Some => {
                        timers.reset(key, deadline);
                    }
                    Some(_) => {}
                }
                drop(timers);
                self.crossing(token, slot)
            }
        }
    }

    /// Plaintext out, ciphertext in its place.
    #[inline(never)]
    fn seal(&self, token: Token, slot: &mut Slot, staged: &mut Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        match slot.connection.seal(staged, &mut spare) {
            Ok(lost) => self.stats.unsent_bytes_dropped.add(lost as u64),
            Err(reason) => {
                staged.clear();
                self.stats.panics.add(u64::from(matches!(reason, CloseReason::Panicked(_))));
                self.stats.unsent_bytes_dropped.add(slot.connection.discard_output() as u64);
                self.mark_ending(token, slot, reason, EndKind::Close(CloseKind::Orderly));
            }
        }
        if slot.connection.is_handshaking() {
            // What waits for the handshake keeps a connection that is being closed reading until then.
            slot.connection.update_receiving(&mut **self.driver.borrow_mut(), token);
        }
    }

    /// Descriptors wait until fewer are under way.
    #[cold]
    fn flush_later(&self, token: Token, slot: &mut Slot) {
        let Some(descriptors) = slot.connection.descriptors_mut() else { return };
        if std::mem::replace(&mut descriptors.retrying, true) {
            return;
        }
        let again_at = deadline_after(self.now.get(), FLIGHTS_RETRY);
        let again = move |shard: &Shard| {
            if let Some(slot) = shard.inner.connections.borrow_mut().get_mut(token)
                && let Some(descriptors) = slot.connection.descriptors_mut()
            {
                descriptors.retrying = false;
                shard.inner.mark_slot_unsettled(token, slot);
            }
        };
        self.timers.borrow_mut().insert(again_at, Timer::new(again));
    }

    #[inline]
    fn crossing(&self, token: Token, slot: &mut Slot) -> Option<Notice> {
        let Some(crossing) = slot.connection.crossing(&self.shared.config.watermarks) else {
            return if slot.marks.producing == Producing::PullOwed { self.room_to_pull(slot) } else { None };
        };
        match crossing {
            // A connection that is being closed is asked for nothing more.
            _ if !slot.connection.is_open() => None,
            Crossing::Paused => Some(Notice::Paused),
            Crossing::Resumed => {
                self.output_has_room(token, slot);
                Some(Notice::Resumed)
            }
        }
    }

    /// Reading goes on, if output has held it.
    #[cold]
    #[inline(never)]
    fn output_has_room(&self, token: Token, slot: &mut Slot) {
        if slot.connection.release_reading() {
            self.read_on(token, slot);
        }
    }

    /// Receives again, unless something else holds reading. What was kept, or a FIN behind it, is delivered in the next
    /// turn.
    pub(super) fn read_on(&self, token: Token, slot: &mut Slot) {
        slot.connection.update_receiving(&mut **self.driver.borrow_mut(), token);
        let kept = match &slot.handler {
            Handler::Stream(stream) => stream.owes_reader(),
            _ => {
                let bytes = !slot.connection.input.is_empty() && !slot.marks.left_whole;
                bytes || slot.connection.has_unread_descriptors()
            }
        };
        let unopened = slot.connection.tls().is_some_and(Tls::has_unopened);
        if kept || unopened || slot.connection.read == ReadHalf::FinishPending {
            self.mark_slot_resumed(token, slot);
        }
    }

    pub(super) fn mark_slot_resumed(&self, token: Token, slot: &mut Slot) {
        if !slot.marks.resumed {
            slot.marks.resumed = true;
            self.resumed.borrow_mut().push(token);
        }
    }

    /// All output is with the kernel, and we have finished, or begun to: FIN goes out, or the connection ends.
    fn output_is_out(&self, token: Token, slot: &mut Slot) -> Option<Notice> {
        let connection = &mut slot.connection;
        if connection.waits_for_handshake() {
            return None;
        }
        let closing = match connection.phase {
            Phase::Flushing(_) => true,
            Phase::Open => false,
            Phase::Ending(..) | Phase::Lingering { .. } => return None,
        };
        let peer_finished = connection.read != ReadHalf::Open;
        if connection.write != WriteHalf::Finished && !(closing && peer_finished) {
            if connection.write == WriteHalf::Open && !closing {
                return None;
            }
            let shut = self.driver.borrow_mut().shutdown_write(token);
            connection.write = WriteHalf::Finished;
            if let Err(source) = shut
                && !closing
                && source.kind() != std::io::ErrorKind::NotConnected
            {
                let reason = CloseReason::Os { call: "shutdown", source };
                self.mark_ending(token, slot, reason, EndKind::Close(CloseKind::Orderly));
                return None;
            }
            if !closing {
                if connection.read == ReadHalf::Finished {
                    connection.phase = Phase::Flushing(Box::new(CloseReason::PeerFinished));
                    self.mark_slot_unsettled(token, slot);
                }
                self.output_has_room(token, slot);
                return Some(Notice::WriteFinished);
            }
        }
        if closing {
            let phase = std::mem::replace(&mut slot.connection.phase, Phase::Open);
            let Phase::Flushing(reason) = phase else { unreachable!("matched above") };
            let kind = if peer_finished { EndKind::Close(CloseKind::Orderly) } else { EndKind::Linger };
            self.mark_ending(token, slot, *reason, kind);
        }
        None
    }
}
