//! What a stream and its connection's slot share: bytes that nobody has read yet, and who waits for what.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::error::{CloseReason, TlsError};
use crate::net::kept::Kept;
use crate::net::wire::PIECE_BYTES;
use crate::reactor::lease::Lease;
use crate::reactor::token::Token;
use crate::shard::{Shard, wake_contained};

/// Received bytes that nobody has read yet are copied and kept; above this many the stream stops receiving.
const QUEUED_BYTES_MAX: usize = 64 * 1024;
/// The same for bytes that were decrypted: what nobody reads stays as it came.
const DECRYPTED_BYTES_MAX: usize = PIECE_BYTES;

/// The state of one stream. Small, since ten thousand idle ones are ten thousand of these.
pub(crate) struct StreamCore {
    state: RefCell<StreamState>,
}

struct StreamState {
    /// Received, and copied because no task was waiting.
    queued: Kept,
    /// No more input: the peer has finished, or the shard drains.
    finished: bool,
    ends_on_drain: bool,
    /// Half a frame has been read: a drain lets the rest come.
    within_frame: bool,
    told_draining: bool,
    /// Its bytes are decrypted.
    secured: bool,
    /// The stream has stopped receiving, since nobody reads.
    full: bool,
    writes_after: WritesAfter,
    broken: Option<Box<Broken>>,
    reader: Option<Waker>,
    /// Boxed, since few ever wait to write and many to read.
    writer: Option<Box<Waker>>,
}

/// What a task that writes waits for. The end of the connection wakes it in any case.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WritesAfter {
    /// Little enough is unsent.
    Room,
    /// Nothing is unsent.
    AllSent,
    /// It has nothing to write now.
    TheEnd,
}

/// What reads and writes say once the connection has broken.
struct Broken {
    kind: io::ErrorKind,
    cause: Cause,
}

enum Cause {
    Tls(TlsError),
    Other(String),
}

/// What a reader finds.
pub(super) enum Found {
    /// Bytes on loan, fresh from the kernel.
    Lent(Lease),
    /// There are bytes that were kept.
    Queued,
    /// Nothing now.
    Nothing,
}

impl StreamState {
    fn queued_bytes_max(&self) -> usize {
        if self.secured { DECRYPTED_BYTES_MAX } else { QUEUED_BYTES_MAX }
    }
}

impl StreamCore {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(StreamCore {
            state: RefCell::new(StreamState {
                queued: Kept::new(),
                finished: false,
                ends_on_drain: true,
                within_frame: false,
                told_draining: false,
                secured: false,
                full: false,
                writes_after: WritesAfter::Room,
                broken: None,
                reader: None,
                writer: None,
            }),
        })
    }

    /// Offers the bytes to the waiting task, which runs at once while they are on loan; what it leaves is copied.
    #[inline]
    pub(crate) fn on_received(&self, shard: &Shard, token: Token, lease: Lease) {
        let reader = {
            let mut state = self.state.borrow_mut();
            if state.queued.is_empty() {
                shard.inner.lent.set(Some(lease));
            } else {
                state.queued.push(&lease);
            }
            state.reader.take()
        };
        if let Some(reader) = reader {
            shard.inner.executor.run_woken(|| wake_contained(reader));
        }
        if let Some(rest) = shard.inner.lent.take() {
            self.keep(&rest);
        }
        let mut state = self.state.borrow_mut();
        if state.queued.len() >= state.queued_bytes_max() && !state.full {
            state.full = true;
            drop(state);
            hold(shard, token, true);
        }
    }

    /// Keeps bytes that nobody is to be shown now.
    pub(crate) fn keep(&self, bytes: &[u8]) {
        self.state.borrow_mut().queued.push(bytes);
    }

    /// Whether a task waits for bytes that are here: they came while reading was held.
    pub(crate) fn owes_reader(&self) -> bool {
        let state = self.state.borrow();
        state.reader.is_some() && !state.queued.is_empty()
    }

    /// Reading goes on.
    pub(crate) fn on_resumed(&self, shard: &Shard) {
        if self.owes_reader() {
            self.wake_reader(shard);
        }
    }

    /// From here on the stream is given decrypted bytes.
    pub(crate) fn set_secured(&self) {
        self.state.borrow_mut().secured = true;
    }

    /// The TLS handshake is complete.
    pub(crate) fn on_secured(&self, shard: &Shard) {
        self.wake_reader(shard);
    }

    /// Waits, like a reader, for the handshake.
    pub(super) fn wait_secured(&self, context: &Context<'_>) {
        let waker = context.waker().clone();
        let replaced = self.state.borrow_mut().reader.replace(waker);
        drop(replaced);
    }

    fn wake_reader(&self, shard: &Shard) {
        let reader = self.state.borrow_mut().reader.take();
        if let Some(reader) = reader {
            shard.inner.executor.run_woken(|| wake_contained(reader));
        }
    }

    /// Wakes the reader, to run with the other tasks.
    pub(crate) fn wake_reader_later(&self) {
        let reader = self.state.borrow_mut().reader.take();
        if let Some(reader) = reader {
            wake_contained(reader);
        }
    }

    pub(crate) fn on_draining(&self, shard: &Shard) {
        let ends = {
            let mut state = self.state.borrow_mut();
            state.told_draining = true;
            state.ends_on_drain && !state.within_frame
        };
        if ends {
            self.on_finished(shard);
        }
    }

    pub(crate) fn on_finished(&self, shard: &Shard) {
        self.state.borrow_mut().finished = true;
        self.wake_reader(shard);
    }

    /// Output went out; `queued_bytes` are left, and `has_room` says whether that is at or below the low watermark.
    pub(crate) fn on_progress(&self, queued_bytes: usize, has_room: bool) {
        let writer = {
            let mut state = self.state.borrow_mut();
            let satisfied = match state.writes_after {
                WritesAfter::Room => has_room,
                WritesAfter::AllSent => queued_bytes == 0,
                WritesAfter::TheEnd => false,
            };
            if satisfied { state.writer.take() } else { None }
        };
        if let Some(writer) = writer {
            wake_contained(*writer);
        }
    }

    pub(crate) fn on_ended(&self, reason: CloseReason) {
        let wakers = {
            let mut state = self.state.borrow_mut();
            let kind = match &reason {
                CloseReason::Os { source, .. } => Some(source.kind()),
                CloseReason::Closed | CloseReason::PeerFinished | CloseReason::HandedOff => None,
                CloseReason::WriteStalled { .. }
                | CloseReason::DeadlineReached
                | CloseReason::Idle { .. } => Some(io::ErrorKind::TimedOut),
                CloseReason::Tls(TlsError::Truncated) => Some(io::ErrorKind::UnexpectedEof),
                CloseReason::Tls(TlsError::HandshakeTimedOut { .. }) => Some(io::ErrorKind::TimedOut),
                CloseReason::Tls(_) => Some(io::ErrorKind::InvalidData),
                _ => Some(io::ErrorKind::ConnectionAborted),
            };
            let cause = match reason {
                CloseReason::Tls(error) => Cause::Tls(error),
                reason => Cause::Other(reason.to_string()),
            };
            match kind {
                Some(kind) => state.broken = Some(Box::new(Broken { kind, cause })),
                None => state.finished = true,
            }
            [state.reader.take(), state.writer.take().map(|writer| *writer)]
        };
        for waker in wakers.into_iter().flatten() {
            wake_contained(waker);
        }
    }

    /// What there is to read.
    #[inline]
    pub(super) fn find(&self, shard: &Shard, token: Token) -> Found {
        if shard.inner.active.get() == token
            && let Some(lease) = shard.inner.lent.take()
        {
            return Found::Lent(lease);
        }
        if !self.state.borrow().queued.is_empty() { Found::Queued } else { Found::Nothing }
    }

    /// All that was kept.
    pub(super) fn take_queued(&self, shard: &Shard, token: Token) -> Vec<u8> {
        let bytes = self.state.borrow_mut().queued.take();
        self.made_room(shard, token);
        bytes
    }

    /// All that was kept, for an upgrade: it is no plaintext any more. Says whether it was so much that reading is held.
    pub(in crate::shard) fn take_unread(&self) -> (Vec<u8>, bool) {
        let mut state = self.state.borrow_mut();
        (state.queued.take(), std::mem::take(&mut state.full))
    }

    /// Copies what was kept into `buffer`, as much as fits.
    pub(super) fn read_queued(&self, shard: &Shard, token: Token, buffer: &mut [u8]) -> usize {
        let count = self.state.borrow_mut().queued.read(buffer);
        self.made_room(shard, token);
        count
    }

    fn made_room(&self, shard: &Shard, token: Token) {
        let mut state = self.state.borrow_mut();
        if state.full && state.queued.len() < state.queued_bytes_max() / 2 {
            state.full = false;
            drop(state);
            hold(shard, token, false);
        }
    }

    /// Ready at the end of input. Cloning a waker, and dropping that of who asked before, may run foreign code, which must
    /// not happen under a borrow.
    #[inline]
    pub(super) fn poll_end(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let state = self.state.borrow();
        if state.broken.is_some() {
            drop(state);
            return Poll::Ready(self.check_broken());
        }
        if state.finished {
            return Poll::Ready(Ok(()));
        }
        let is_kept = state.reader.as_ref().is_some_and(|kept| kept.will_wake(context.waker()));
        drop(state);
        if !is_kept {
            let waker = context.waker().clone();
            let replaced = self.state.borrow_mut().reader.replace(waker);
            drop(replaced);
        }
        Poll::Pending
    }

    /// Remembers who writes, and what it waits for.
    pub(super) fn wait_to_write(&self, context: &Context<'_>, after: WritesAfter) {
        let mut state = self.state.borrow_mut();
        state.writes_after = after;
        let is_kept = state.writer.as_ref().is_some_and(|kept| kept.will_wake(context.waker()));
        drop(state);
        if !is_kept {
            let waker = Box::new(context.waker().clone());
            let replaced = self.state.borrow_mut().writer.replace(waker);
            drop(replaced);
        }
    }

    pub(super) fn check_broken(&self) -> io::Result<()> {
        match &self.state.borrow().broken {
            Some(broken) => Err(match &broken.cause {
                Cause::Tls(error) => io::Error::new(broken.kind, error.clone()),
                Cause::Other(message) => io::Error::new(broken.kind, message.clone()),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn set_ends_on_drain(&self, on: bool) {
        let mut state = self.state.borrow_mut();
        state.ends_on_drain = on;
        state.finish_if_drained();
    }

    /// Says what was set before.
    pub(super) fn set_within_frame(&self, within: bool) -> bool {
        let mut state = self.state.borrow_mut();
        let before = std::mem::replace(&mut state.within_frame, within);
        state.finish_if_drained();
        before
    }

    pub(super) fn ends_on_drain(&self) -> bool {
        self.state.borrow().ends_on_drain
    }

    /// For a stream that begins with bytes, and perhaps an end, it brought along.
    pub(super) fn begin_with(&self, unread: Vec<u8>, finished: bool, ends_on_drain: bool) {
        let mut state = self.state.borrow_mut();
        state.ends_on_drain = ends_on_drain;
        state.queued.set(unread);
        state.finished = finished;
    }
}

impl StreamState {
    /// A drain that had to wait ends the input now.
    fn finish_if_drained(&mut self) {
        if self.told_draining && self.ends_on_drain && !self.within_frame {
            self.finished = true;
        }
    }
}

/// Stops receiving, or goes on.
fn hold(shard: &Shard, token: Token, held: bool) {
    let inner = &shard.inner;
    {
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        if held {
            slot.connection.read_holds += 1;
        } else {
            slot.connection.read_holds -= 1;
        }
        slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
    }
    if !held {
        shard.read_resumed(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_stream_is_small() {
        let bytes = size_of::<StreamCore>();
        assert!(bytes <= 56, "{bytes} bytes");
    }
}
