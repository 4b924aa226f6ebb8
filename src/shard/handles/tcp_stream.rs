//! The async face of a connection: the same machinery, with a task in the protocol's place.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::addr::Addr;
use crate::error::ConnectError;
use crate::net::connection::{Connection, ReadHalf};
use crate::net::descriptors::Descriptors;
use crate::net::framing::{ReadChunks, WriteBytes};
use crate::net::proxy_protocol::ProxyHeader;
use crate::net::target::ToTarget;
use crate::net::wire::{Tls, Wire};
use crate::reactor::driver::DetachedSocket;
use crate::reactor::lease::Lease;
use crate::reactor::token::Token;
use crate::shard::Shard;
use crate::shard::connecting::{ConnectHow, Goal, Preamble, Target};
use crate::shard::connections::{Handler, Slot};
use crate::shard::handles::stream_core::{Found, StreamCore, WritesAfter};
use crate::shard::handles::transport::Transport;
use crate::shard::interfaces::tcp::ConnectOptions;
use crate::shard::policies::Policed;
use crate::shard::producers::{EndsAfterProducer, Producing};
use crate::shard::shared::InTransit;

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

impl TcpStream {
    pub(crate) fn new(shard: Shard, token: Token, core: Rc<StreamCore>) -> Self {
        TcpStream { core, transport: Transport::new(shard, token) }
    }

    pub(super) fn core(&self) -> &Rc<StreamCore> {
        &self.core
    }

    /// Waits until the TLS handshake is complete.
    pub(crate) async fn secured(&mut self) -> io::Result<()> {
        poll_fn(|context| {
            self.core().check_broken()?;
            // Closed meanwhile, it may be there yet, and wait for the peer's end, without TLS.
            let is_handshaking = |slot: &Slot| Some(slot.connection.tls()?.is_handshaking());
            match self.transport().look(is_handshaking).flatten() {
                Some(true) => {
                    self.core().wait_secured(context);
                    Poll::Pending
                }
                Some(false) => Poll::Ready(Ok(())),
                None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            }
        })
        .await
    }

    /// Connects to `target`, from the shard this is called on; see [`Shard::connect_tcp`].
    ///
    /// # Errors
    /// [`ConnectError`]; after [`Config::connect_timeout`](crate::Config::connect_timeout) it says who has not answered.
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    /// # Panics
    /// When no shard is current on this thread.
    pub async fn connect(target: impl ToTarget) -> Result<TcpStream, ConnectError> {
        TcpStream::connect_with(target, &ConnectOptions::default()).await
    }

    /// As [`TcpStream::connect`], with options.
    ///
    /// # Errors
    /// As [`TcpStream::connect`].
    /// # Cancel safety
    /// As [`TcpStream::connect`].
    /// # Panics
    /// As [`TcpStream::connect`].
    pub async fn connect_with(
        target: impl ToTarget,
        options: &ConnectOptions,
    ) -> Result<TcpStream, ConnectError> {
        TcpStream::established(Goal::of_target(target.to_target()), options.how(), Preamble::default()).await
    }

    /// Connects from the current shard.
    pub(in crate::shard) async fn established(
        goal: Result<Goal, ConnectError>,
        how: ConnectHow,
        preamble: Preamble,
    ) -> Result<TcpStream, ConnectError> {
        let core = StreamCore::new();
        let becomes = Target::Handler(Handler::Stream(Rc::clone(&core)));
        let transport = Shard::current().connect_to(goal, how, becomes, preamble).await?;
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
    pub fn read_chunk(&mut self) -> ReadChunk<'_> {
        ReadChunk { stream: self }
    }

    /// The poll form of [`TcpStream::read_chunk`].
    ///
    /// # Errors
    /// The connection broke.
    #[inline]
    pub fn poll_read_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        let (shard, token) = (self.transport.shard(), self.transport.token());
        match self.core.find(shard, token) {
            Found::Lent(lease) => Poll::Ready(Ok(Some(Chunk::from_lease(lease)))),
            Found::Queued => {
                let bytes = Lease::owned(self.core.take_queued(shard, token));
                Poll::Ready(Ok(Some(Chunk { bytes })))
            }
            Found::Nothing => self.core.poll_end(context).map_ok(|()| None),
        }
    }

    /// Reads into `buffer` what there is, and says how much; 0 is the end of input.
    ///
    /// # Errors
    /// The connection broke; bytes received before that are delivered first.
    /// # Cancel safety
    /// No bytes are lost when the future is dropped.
    pub fn read<'a>(&'a mut self, buffer: &'a mut [u8]) -> Read<'a> {
        Read { stream: self, buffer }
    }

    /// The poll form of [`TcpStream::read`].
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let (shard, token) = (self.transport.shard(), self.transport.token());
        match self.core.find(shard, token) {
            Found::Lent(mut lease) => {
                let count = lease.len().min(buffer.len());
                buffer[..count].copy_from_slice(&lease[..count]);
                lease.advance(count);
                if !lease.is_empty() {
                    shard.inner.lent.set(Some(lease));
                }
                Poll::Ready(Ok(count))
            }
            Found::Queued => Poll::Ready(Ok(self.core.read_queued(shard, token, buffer))),
            Found::Nothing => self.core.poll_end(context).map_ok(|()| 0),
        }
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

    /// Writes all of `bytes`; waits while more than the high watermark is unsent. Ready means taken, not yet sent.
    ///
    /// # Errors
    /// The connection is closed for writing, or broke.
    /// # Cancel safety
    /// Not cancel safe: some of the bytes may have been taken.
    pub fn write_all<'a>(&'a mut self, bytes: &'a [u8]) -> WriteAll<'a> {
        WriteAll { stream: self, rest: bytes }
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
            self.core.wait_to_write(context, WritesAfter::Room);
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
            self.core.wait_to_write(context, WritesAfter::AllSent);
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

    /// Ends the connection now: unsent output is lost, the peer sees a reset; see [`Transport::abort`], also for what a
    /// UNIX socket tells.
    pub fn abort(self) {
        self.transport.abort();
    }

    /// Whether a drain of the shard ends the input of this stream once nothing is left to read; true unless switched
    /// off. Switch it off while a request is half received, and on between requests.
    pub fn set_ends_on_drain(&mut self, on: bool) {
        self.core.set_ends_on_drain(on);
    }

    /// The other end's address.
    ///
    /// # Errors
    /// `NotConnected` after the connection has ended; `Unsupported` for a UNIX connection, whose address
    /// [`Transport::peer`] gives.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self.transport.peer() {
            Some(Addr::Ip(addr)) => Ok(addr),
            Some(Addr::Unix(_)) => Err(io::ErrorKind::Unsupported.into()),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
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

    /// Takes the connection off its shard: unread and unsent bytes, the deadline and [`TcpStream::set_ends_on_drain`]
    /// travel along, and so do its [policies](crate::policies). Pauses and holds of its transport do not.
    ///
    /// # Errors
    /// The connection is closed, closing or broken. `ResourceBusy` from within what its own TLS calls, such as the resolver
    /// of a certificate.
    /// # Cancel safety
    /// Dropping the future before it is ready closes the connection.
    pub async fn detach(self) -> io::Result<DetachedTcpStream> {
        // A shard's own callback may be the one that detaches: what it staged goes first.
        while self.transport.shard().inner.active.get() == self.transport.token()
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
        let slot = connections.get(token).ok_or_else(not_connected)?;
        let ends = slot.marks.ends_after_producer != EndsAfterProducer::Nothing;
        if !slot.connection.may_write() || ends {
            return Err(not_connected());
        }
        if slot.connection.tls().is_some_and(Tls::is_away) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let socket = inner.driver.borrow_mut().release(token).ok_or_else(not_connected)?;
        // Before it is no connection of this shard any more: a drain sees the one or the other.
        let in_transit = InTransit::begin(&inner.shared);
        // Not at the end of the turn: the driver may give the token's slot to another at once.
        let mut slot = connections.remove(token).expect("looked up above");
        drop(connections);
        if inner.active.get() == token
            && let Some(lease) = inner.unopened.take()
        {
            slot.connection.tls_mut().into_iter().for_each(|tls| tls.keep(&lease));
        }
        inner.stats.open.subtract(1);
        let deadline = slot.deadline.and_then(|key| inner.timers.borrow().deadline(key));
        inner.stop_timers(&mut slot);
        // Before application code runs, which may fill the token's place anew.
        let policed = inner.take_policed(token);
        if slot.marks.producing != Producing::Nobody {
            shard.stop_producer(token);
        }
        shard.unregister_consumers_of(token);
        let unsent = slot.connection.unsent();
        // An end that was not announced is found again by whoever goes on.
        let truncated = slot.connection.tls_mut().is_some_and(|tls| std::mem::take(&mut tls.truncated));
        let finished = slot.connection.read != ReadHalf::Open && !truncated;
        let wire = std::mem::replace(&mut slot.connection.wire, Wire::Plain);
        let mut unread = match self.core.find(shard, token) {
            Found::Lent(lease) => lease.to_vec(),
            Found::Queued | Found::Nothing => self.core.take_queued(shard, token),
        };
        unread.append(&mut slot.connection.input.take());
        let peer = slot.connection.socket_peer();
        let proxy_header = slot.connection.proxy_header().cloned();
        let descriptors = slot.connection.take_descriptors();
        let ends_on_drain = self.core.ends_on_drain();
        Ok(DetachedTcpStream {
            socket,
            peer,
            proxy_header,
            unread,
            unsent,
            descriptors,
            wire,
            finished,
            ends_on_drain,
            deadline,
            policed,
            in_transit,
        })
    }
}

impl ReadChunks for TcpStream {
    type Chunk = Chunk;

    #[inline]
    fn poll_read_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        TcpStream::poll_read_chunk(self, context)
    }

    fn set_within_frame(&mut self, within: bool) {
        self.core.set_within_frame(within);
    }
}

impl WriteBytes for TcpStream {
    #[inline]
    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        TcpStream::poll_write(self, context, bytes)
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.transport.close();
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TcpStream").field("peer", &self.transport.peer()).finish()
    }
}

/// A future of the next bytes of a stream; made by [`TcpStream::read_chunk`].
#[must_use = "nothing is read unless this is awaited"]
pub struct ReadChunk<'a> {
    stream: &'a mut TcpStream,
}

impl Future for ReadChunk<'_> {
    type Output = io::Result<Option<Chunk>>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.stream.poll_read_chunk(context)
    }
}

/// A future of bytes in a buffer; made by [`TcpStream::read`].
#[must_use = "nothing is read unless this is awaited"]
pub struct Read<'a> {
    stream: &'a mut TcpStream,
    buffer: &'a mut [u8],
}

impl Future for Read<'_> {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.stream.poll_read(context, this.buffer)
    }
}

/// A future that is ready when all bytes have been taken; made by [`TcpStream::write_all`].
#[must_use = "nothing is written unless this is awaited"]
pub struct WriteAll<'a> {
    stream: &'a mut TcpStream,
    rest: &'a [u8],
}

impl Future for WriteAll<'_> {
    type Output = io::Result<()>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        while !this.rest.is_empty() {
            let count = std::task::ready!(this.stream.poll_write(context, this.rest))?;
            this.rest = &this.rest[count..];
        }
        Poll::Ready(Ok(()))
    }
}

/// A connection on its way from one shard to another, with all bytes that belong to it. `Send`; dropping it closes the
/// connection. While its runtime drains it counts as open: the drain waits for it, and at the deadline gives it up and
/// counts it among the aborted ones.
pub struct DetachedTcpStream {
    socket: DetachedSocket,
    /// The socket's other end.
    peer: Addr,
    proxy_header: Option<Arc<ProxyHeader>>,
    unread: Vec<u8>,
    /// As it goes out: sealed, where there is TLS.
    unsent: Vec<u8>,
    wire: Wire,
    /// Those of a UNIX connection that are unread or unsent.
    descriptors: Option<Descriptors>,
    /// The peer's FIN was seen already.
    finished: bool,
    ends_on_drain: bool,
    deadline: Option<Instant>,
    policed: Option<Box<Policed>>,
    /// Last: told when all else has gone.
    in_transit: InTransit,
}

impl DetachedTcpStream {
    /// The other end, as a proxy has reported it if one has.
    pub fn peer(&self) -> Addr {
        self.proxy_header.as_ref().map_or_else(|| self.peer.clone(), |header| header.peer())
    }

    /// Makes it a connection of `shard`: unread bytes are read first, unsent ones are sent first. A deadline that was set
    /// stays where it was in time; if it passed on the way, it takes effect in the next turn.
    ///
    /// # Errors
    /// The shard's driver cannot take it: no descriptor is left, or it came from a runtime with another driver. The
    /// connection is closed then.
    pub fn attach(self, shard: &Shard) -> io::Result<TcpStream> {
        if !shard.may_attach() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the shard has stopped"));
        }
        let token = shard.inner.driver.borrow_mut().adopt(self.socket)?;
        let core = StreamCore::new();
        core.begin_with(self.unread, self.finished, self.ends_on_drain);
        let mut connection = Connection::new(self.peer);
        if let Some(header) = self.proxy_header {
            connection.set_proxy_header(header);
        }
        connection.queue_sealed(&self.unsent);
        connection.wire = self.wire;
        shard.inner.bring_descriptors(token, &mut connection, self.descriptors);
        if self.finished {
            connection.read = ReadHalf::Finished;
        }
        if let Some(policed) = self.policed {
            shard.inner.policing.prepare(token, policed);
        }
        shard.open_connection(token, connection, Handler::Stream(Rc::clone(&core)));
        shard.inner.mark_unsettled(token);
        drop(self.in_transit);
        let stream = TcpStream::new(shard.clone(), token, core);
        if let Some(deadline) = self.deadline {
            stream.transport.set_deadline_at(deadline);
        }
        Ok(stream)
    }
}

impl fmt::Debug for DetachedTcpStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DetachedTcpStream").field("peer", &self.peer()).finish()
    }
}

/// Received bytes, owned by whoever holds the chunk. May keep a read buffer of the shard busy: drop it soon.
pub struct Chunk {
    bytes: Lease,
}

impl Chunk {
    #[inline]
    fn from_lease(lease: Lease) -> Self {
        // A bounded number of buffers may be out; whoever comes later is given a copy.
        let bytes = if lease.pool_on_loan() > LEASES_HELD_MAX { Lease::owned(lease.to_vec()) } else { lease };
        Chunk { bytes }
    }
}

impl Deref for Chunk {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand idle connections are ten thousand of these, beside a constant of the task's own.
    #[test]
    fn a_handler_that_waits_for_bytes_has_a_small_future() {
        async fn echo(mut stream: TcpStream) -> crate::Result<()> {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        }
        fn size<F>(_: impl FnOnce(TcpStream) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(echo);
        assert!(bytes <= 120, "{bytes} bytes");
        assert_eq!(size_of::<Chunk>(), size_of::<usize>());
    }
}
