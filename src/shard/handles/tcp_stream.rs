//! The async face of a connection: the same machinery, with a task in the protocol's place.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{CloseReason, ConnectError};
use crate::net::addr::ToAddr;
use crate::net::connection::{Connection, EndKind, Phase, ReadHalf, WriteHalf};
use crate::reactor::driver::DetachedSocket;
use crate::reactor::lease::Lease;
use crate::reactor::token::Token;
use crate::shard::Shard;
use crate::shard::connections::Handler;
use crate::shard::handles::transport::Transport;

/// Received bytes that nobody has read yet are copied and kept; above this many the stream stops receiving.
const QUEUED_BYTES_MAX: usize = 64 * 1024;
/// Read buffers that tasks of one shard may hold at a time. Beyond it they are given copies.
const LEASES_HELD_MAX: usize = 32;

/// A connection as a task sees it: read, write, and the rest in order.
///
/// Dropping the stream closes the connection: what was written is sent, then FIN.
///
/// When the shard drains, a stream with nothing left to read reports the end of input, so that an idle handler comes
/// to its end by itself; see [`TcpStream::set_ends_on_drain`].
///
/// # Threads
/// `!Send`: it stays on its shard; [`TcpStream::detach`] gives a form that travels.
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<shardwise::TcpStream>();
/// ```
pub struct TcpStream {
    core: Rc<StreamCore>,
    transport: Transport,
}

/// What the stream and its connection's slot share.
pub(crate) struct StreamCore {
    state: RefCell<StreamState>,
}

struct StreamState {
    /// Received just now and still in the driver's buffer: only while its event is dispatched.
    lent: Option<Lease>,
    /// Received, and copied because no task was waiting.
    queued: Vec<u8>,
    end: End,
    ends_on_drain: bool,
    /// The stream has stopped receiving, since nobody reads.
    full: bool,
    reader: Option<Waker>,
    /// Waits for room below the watermark.
    writer: Option<Waker>,
    /// Waits until nothing is unsent.
    flusher: Option<Waker>,
    told_draining: bool,
}

enum End {
    Open,
    /// No more input: the peer has finished, or the shard drains.
    Finished,
    Broken(io::ErrorKind, String),
}

impl StreamCore {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(StreamCore {
            state: RefCell::new(StreamState {
                lent: None,
                queued: Vec::new(),
                end: End::Open,
                ends_on_drain: true,
                full: false,
                reader: None,
                writer: None,
                flusher: None,
                told_draining: false,
            }),
        })
    }

    /// Offers the bytes to the waiting task, which runs at once while they are on loan; what it leaves is copied.
    #[inline]
    pub(crate) fn on_received(&self, shard: &Shard, token: Token, lease: Lease) {
        let reader = {
            let mut state = self.state.borrow_mut();
            if state.queued.is_empty() {
                state.lent = Some(lease);
            } else {
                state.queued.extend_from_slice(&lease);
            }
            state.reader.take()
        };
        if let Some(reader) = reader {
            shard.inner.executor.run_woken(|| reader.wake());
        }
        let full = {
            let mut state = self.state.borrow_mut();
            if let Some(rest) = state.lent.take() {
                state.queued.extend_from_slice(&rest);
            }
            let full = state.queued.len() >= QUEUED_BYTES_MAX && !state.full;
            state.full |= full;
            full
        };
        if full {
            hold(shard, token, true);
        }
    }

    pub(crate) fn on_finished(&self, shard: &Shard) {
        self.finish(shard);
    }

    pub(crate) fn on_draining(&self, shard: &Shard) {
        let ends = {
            let mut state = self.state.borrow_mut();
            state.told_draining = true;
            state.ends_on_drain
        };
        if ends {
            self.finish(shard);
        }
    }

    fn finish(&self, shard: &Shard) {
        let reader = {
            let mut state = self.state.borrow_mut();
            if matches!(state.end, End::Open) {
                state.end = End::Finished;
            }
            state.reader.take()
        };
        if let Some(reader) = reader {
            shard.inner.executor.run_woken(|| reader.wake());
        }
    }

    /// Output went out; `queued_bytes` are left, and `has_room` says whether that is at or below the low watermark.
    pub(crate) fn on_progress(&self, queued_bytes: usize, has_room: bool) {
        let (writer, flusher) = {
            let mut state = self.state.borrow_mut();
            let writer = if has_room { state.writer.take() } else { None };
            (writer, if queued_bytes == 0 { state.flusher.take() } else { None })
        };
        for waker in [writer, flusher].into_iter().flatten() {
            waker.wake();
        }
    }

    pub(crate) fn on_ended(&self, reason: CloseReason) {
        let wakers = {
            let mut state = self.state.borrow_mut();
            let kind = match &reason {
                CloseReason::Os { source, .. } => Some(source.kind()),
                CloseReason::Closed | CloseReason::PeerFinished | CloseReason::HandedOff => None,
                CloseReason::WriteStalled { .. } | CloseReason::DeadlineReached => {
                    Some(io::ErrorKind::TimedOut)
                }
                _ => Some(io::ErrorKind::ConnectionAborted),
            };
            match kind {
                Some(kind) => state.end = End::Broken(kind, reason.to_string()),
                None if matches!(state.end, End::Open) => state.end = End::Finished,
                None => {}
            }
            [state.reader.take(), state.writer.take(), state.flusher.take()]
        };
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
    }
}

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

impl TcpStream {
    pub(crate) fn new(shard: Shard, token: Token, core: Rc<StreamCore>) -> Self {
        TcpStream { core, transport: Transport::new(shard, token) }
    }

    /// Connects to `addr`, from the shard this is called on.
    ///
    /// # Errors
    /// [`ConnectError`]; after [`Config::connect_timeout`](crate::Config::connect_timeout) it is `TimedOut`.
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    /// # Panics
    /// When no shard is current on this thread.
    pub async fn connect(addr: impl ToAddr) -> Result<TcpStream, ConnectError> {
        let shard = Shard::current();
        let core = StreamCore::new();
        let attempt = shard.connect_with(addr.to_addr(), None, Handler::Stream(Rc::clone(&core)));
        let transport = attempt.await?;
        Ok(TcpStream { core, transport })
    }

    /// The next bytes as they came, without a copy where that is possible: while the task waits here it owns no
    /// buffer. `None` is the end of input.
    ///
    /// A [`Chunk`] may lie in the shard's read buffer, so it should be dropped soon.
    ///
    /// # Errors
    /// The connection broke; bytes received before that are delivered first.
    /// # Cancel safety
    /// No bytes are lost when the future is dropped.
    pub async fn read_chunk(&mut self) -> io::Result<Option<Chunk>> {
        poll_fn(|context| self.poll_read_chunk(context)).await
    }

    /// The poll form of [`TcpStream::read_chunk`].
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_read_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        let mut state = self.core.state.borrow_mut();
        if let Some(lease) = state.lent.take() {
            drop(state);
            return Poll::Ready(Ok(Some(Chunk::from_lease(lease))));
        }
        if !state.queued.is_empty() {
            let bytes = std::mem::take(&mut state.queued);
            drop(state);
            self.made_room();
            return Poll::Ready(Ok(Some(Chunk { bytes: Bytes::Owned(bytes) })));
        }
        drop(state);
        self.core.poll_end(context).map_ok(|()| None)
    }

    /// Reads into `buffer` what there is, and says how much; 0 is the end of input.
    ///
    /// # Errors
    /// The connection broke; bytes received before that are delivered first.
    /// # Cancel safety
    /// No bytes are lost when the future is dropped.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|context| self.poll_read(context, buffer)).await
    }

    /// The poll form of [`TcpStream::read`].
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.core.state.borrow_mut();
        if let Some(mut lease) = state.lent.take() {
            let count = lease.len().min(buffer.len());
            buffer[..count].copy_from_slice(&lease[..count]);
            lease.advance(count);
            if !lease.is_empty() {
                state.lent = Some(lease);
            }
            return Poll::Ready(Ok(count));
        }
        if !state.queued.is_empty() {
            let count = state.queued.len().min(buffer.len());
            buffer[..count].copy_from_slice(&state.queued[..count]);
            if count == state.queued.len() {
                state.queued = Vec::new();
            } else {
                state.queued.drain(..count);
            }
            drop(state);
            self.made_room();
            return Poll::Ready(Ok(count));
        }
        drop(state);
        self.core.poll_end(context).map_ok(|()| 0)
    }

    /// Reads until `buffer` is full.
    ///
    /// # Errors
    /// `UnexpectedEof` when the input ends before; the connection broke.
    /// # Cancel safety
    /// Not cancel safe: bytes read so far are in `buffer` and do not come again.
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    fn made_room(&self) {
        let mut state = self.core.state.borrow_mut();
        if state.full && state.queued.len() < QUEUED_BYTES_MAX / 2 {
            state.full = false;
            drop(state);
            hold(self.transport.shard(), self.transport.token(), false);
        }
    }

    /// Writes all of `bytes`; waits while more than the high watermark is unsent. Ready means taken, not yet sent.
    ///
    /// # Errors
    /// The connection is closed for writing, or broke.
    /// # Cancel safety
    /// Not cancel safe: some of the bytes may have been taken.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        poll_fn(|context| {
            while !rest.is_empty() {
                match self.poll_write(context, rest) {
                    Poll::Ready(Ok(count)) => rest = &rest[count..],
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Writes the first bytes of `bytes` once there is room below the high watermark, and says how many were taken.
    ///
    /// # Errors
    /// The connection is closed for writing, or broke.
    #[inline]
    pub fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let inner = &self.transport.shard().inner;
        let marks = &inner.shared.config.watermarks;
        let buffered = self.transport.buffered();
        if buffered > marks.high_bytes || buffered >= marks.cap_bytes {
            self.core.check_broken()?;
            self.core.keep(|state| &mut state.writer, context);
            inner.mark_unsettled(self.transport.token());
            return Poll::Pending;
        }
        // At most one watermark's worth at a time, so that one big write does not bypass the limit.
        let count = bytes.len().min(marks.high_bytes.max(1)).min(marks.cap_bytes - buffered);
        match self.transport.write(&bytes[..count]) {
            Ok(_) => Poll::Ready(Ok(count)),
            Err(error) => {
                self.core.check_broken()?;
                Poll::Ready(Err(error.into()))
            }
        }
    }

    /// Waits until the kernel has taken everything written.
    ///
    /// # Errors
    /// The connection broke.
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|context| {
            self.core.check_broken()?;
            if self.transport.buffered() == 0 {
                return Poll::Ready(Ok(()));
            }
            self.core.keep(|state| &mut state.flusher, context);
            self.transport.shard().inner.mark_unsettled(self.transport.token());
            Poll::Pending
        })
        .await
    }

    /// Sends what was written, then FIN; reading goes on.
    pub fn shutdown_write(&mut self) {
        self.transport.shutdown_write();
    }

    /// Sends what was written, then closes. The same as dropping the stream.
    pub fn close(self) {}

    /// Ends the connection now: unsent output is lost, the peer sees a reset.
    pub fn abort(self) {
        self.transport.abort();
    }

    /// Whether a drain of the shard ends the input of this stream once nothing is left to read; true unless switched
    /// off. Switch it off while a request is half received, and on between requests.
    pub fn set_ends_on_drain(&mut self, on: bool) {
        let mut state = self.core.state.borrow_mut();
        state.ends_on_drain = on;
        if on && state.told_draining && matches!(state.end, End::Open) {
            state.end = End::Finished;
        }
    }

    /// The other end's address.
    ///
    /// # Errors
    /// `NotConnected` after the connection has ended.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.transport.peer_addr().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Our end's address.
    ///
    /// # Errors
    /// `NotConnected` after the connection has ended.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.transport.local_addr()
    }

    /// TCP_NODELAY; on unless switched off.
    ///
    /// # Errors
    /// What the operating system says; `NotConnected` after the end.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        self.transport.set_nodelay(on)
    }

    /// Closes the connection `after` from now unless changed before; reads and writes then fail with `TimedOut`.
    pub fn set_deadline(&self, after: Option<Duration>) {
        self.transport.set_deadline(after);
    }

    /// The connection's transport: for what a stream has no method of its own.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Takes the connection off its shard: unread and unsent bytes travel along.
    ///
    /// # Errors
    /// The connection is closed, closing or broken.
    /// # Cancel safety
    /// Dropping the future before it is ready closes the connection.
    pub async fn detach(self) -> io::Result<DetachedTcpStream> {
        // A shard's own callback may be the one that detaches: what it staged goes first.
        while self.transport.shard().inner.active.get() == Some(self.transport.token())
            && !self.transport.shard().inner.staged.borrow().is_empty()
        {
            crate::tasks::yield_now().await;
        }
        self.detach_now()
    }

    fn detach_now(&self) -> io::Result<DetachedTcpStream> {
        let shard = self.transport.shard();
        let inner = &shard.inner;
        let token = self.transport.token();
        let mut connections = inner.connections.borrow_mut();
        let not_connected = || io::Error::from(io::ErrorKind::NotConnected);
        let slot = connections.get_mut(token).ok_or_else(not_connected)?;
        if !slot.connection.is_open() || slot.connection.write != WriteHalf::Open {
            return Err(not_connected());
        }
        let unsent = slot.connection.unsent();
        let finished = slot.connection.read != ReadHalf::Open;
        let mut unread = Vec::new();
        {
            let mut state = self.core.state.borrow_mut();
            if let Some(lease) = state.lent.take() {
                unread.extend_from_slice(&lease);
            }
            unread.append(&mut state.queued);
        }
        unread.append(&mut slot.connection.input);
        let peer_addr = slot.connection.peer_addr;
        slot.connection.discard_output();
        let socket = inner.driver.borrow_mut().release(token).ok_or_else(not_connected)?;
        slot.connection.phase = Phase::Ending(Box::new(CloseReason::HandedOff), EndKind::Released);
        if !slot.marks.ending {
            slot.marks.ending = true;
            inner.ending.borrow_mut().push(token);
        }
        Ok(DetachedTcpStream { socket, peer_addr, unread, unsent, finished })
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.transport.close();
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TcpStream").field("peer", &self.transport.peer_addr()).finish()
    }
}

impl StreamCore {
    fn poll_end(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        self.check_broken()?;
        if matches!(self.state.borrow().end, End::Finished) {
            return Poll::Ready(Ok(()));
        }
        self.keep(|state| &mut state.reader, context);
        Poll::Pending
    }

    fn check_broken(&self) -> io::Result<()> {
        match &self.state.borrow().end {
            End::Broken(kind, message) => Err(io::Error::new(*kind, message.clone())),
            End::Open | End::Finished => Ok(()),
        }
    }

    /// Remembers whom to wake. The waker it replaces may run foreign code when it is dropped, so that happens outside
    /// of the borrow.
    fn keep(&self, place: impl Fn(&mut StreamState) -> &mut Option<Waker>, context: &Context<'_>) {
        let mut state = self.state.borrow_mut();
        let kept = place(&mut state);
        if kept.as_ref().is_some_and(|kept| kept.will_wake(context.waker())) {
            return;
        }
        let replaced = kept.replace(context.waker().clone());
        drop(state);
        drop(replaced);
    }
}

/// A connection on its way from one shard to another, with all bytes that belong to it. `Send`; dropping it closes the
/// connection.
pub struct DetachedTcpStream {
    socket: DetachedSocket,
    peer_addr: SocketAddr,
    unread: Vec<u8>,
    unsent: Vec<u8>,
    /// The peer's FIN was seen already.
    finished: bool,
}

impl DetachedTcpStream {
    /// The other end's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    /// Makes it a connection of `shard`: unread bytes are read first, unsent ones are sent first.
    ///
    /// # Errors
    /// The shard's driver cannot take it: no descriptor is left, or it came from a runtime with another driver. The
    /// connection is closed then.
    pub fn attach(self, shard: &Shard) -> io::Result<TcpStream> {
        let token = shard.inner.driver.borrow_mut().adopt(self.socket)?;
        let core = StreamCore::new();
        core.state.borrow_mut().queued = self.unread;
        let mut connection = Connection::new(self.peer_addr);
        connection.queue(&self.unsent);
        if self.finished {
            connection.read = ReadHalf::Finished;
            core.state.borrow_mut().end = End::Finished;
        }
        shard.open_connection(token, connection, Handler::Stream(Rc::clone(&core)));
        shard.inner.mark_unsettled(token);
        Ok(TcpStream::new(shard.clone(), token, core))
    }
}

impl fmt::Debug for DetachedTcpStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DetachedTcpStream").field("peer", &self.peer_addr).finish()
    }
}

/// Received bytes, owned by whoever holds the chunk. May keep a read buffer of the shard busy: drop it soon.
pub struct Chunk {
    bytes: Bytes,
}

enum Bytes {
    Lent(Lease),
    Owned(Vec<u8>),
}

impl Chunk {
    #[inline]
    fn from_lease(lease: Lease) -> Self {
        // A bounded number of buffers may be out; whoever comes later is given a copy.
        let bytes = if lease.pool_on_loan() > LEASES_HELD_MAX {
            Bytes::Owned(lease.to_vec())
        } else {
            Bytes::Lent(lease)
        };
        Chunk { bytes }
    }
}

impl Deref for Chunk {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Lent(lease) => lease,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Chunk({} bytes)", self.len())
    }
}
