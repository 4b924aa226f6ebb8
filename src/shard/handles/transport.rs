//! A connection as its protocol sees it: what to write to, and what to ask.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::addr::Addr;
use crate::error::{CloseReason, ProducerError, WriteError};
use crate::net::connection::{EndKind, STRAIGHT_BYTES};
use crate::net::proxy_protocol::{Header, ProxyHeader};
use crate::reactor::driver::{CloseKind, SocketOption};
use crate::reactor::timer_wheel::deadline_after;
use crate::reactor::token::Token;
use crate::shard::connections::Slot;
use crate::shard::policies::Way;
use crate::shard::producers::{Producer, ProducerKind, Producing};
use crate::shard::{Shard, Timer};

/// A connection's writing end, and its settings. Cheap to clone; clones may be kept by tasks and timers of the same
/// shard, and outlive the connection harmlessly.
///
/// # Threads
/// `!Send`: a transport stays on its shard.
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<shardwise::Transport>();
/// ```
#[derive(Clone)]
pub struct Transport {
    shard: Shard,
    token: Token,
}

/// Whether to write on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// There is room.
    Open,
    /// Unsent output is above the high watermark. It was taken all the same; stop writing until
    /// [`Protocol::write_resumed`](crate::Protocol::write_resumed). Reading may stop by itself meanwhile: see
    /// [`Transport::set_reads_above_high`].
    AboveHigh,
}

impl Transport {
    pub(crate) fn new(shard: Shard, token: Token) -> Self {
        Transport { shard, token }
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// The shard the connection lives on.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Writes `bytes`: never blocks, takes all or nothing, keeps the order of the writes.
    ///
    /// What is written in a callback of this connection is sent right after it, in one piece; what timers, tasks and
    /// other connections write is sent at the end of the turn.
    ///
    /// # Errors
    /// [`WriteError::Closed`] after the connection was closed or its write half shut, by either side.
    /// [`WriteError::Full`] when more than the cap of the [`Watermarks`](crate::Watermarks) would be unsent; the
    /// connection is open, and nothing was taken.
    #[inline]
    pub fn write(&self, bytes: &[u8]) -> Result<Flow, WriteError> {
        let inner = &*self.shard.inner;
        if inner.active.get() == self.token && bytes.len() < STRAIGHT_BYTES {
            let mut staged = inner.staged.borrow_mut();
            if staged.len() + bytes.len() <= inner.staged_room.get() {
                staged.extend_from_slice(bytes);
                if staged.len() <= inner.shared.config.watermarks.high_bytes {
                    return Ok(Flow::Open);
                }
                drop(staged);
                return Ok(self.above_high());
            }
        }
        self.write_checked(bytes)
    }

    /// A writer is told now that it is above the high watermark; that may hold reading.
    #[cold]
    pub(super) fn above_high(&self) -> Flow {
        self.change(|slot| slot.connection.tell_above_high());
        self.reading_held();
        Flow::AboveHigh
    }

    fn write_checked(&self, bytes: &[u8]) -> Result<Flow, WriteError> {
        let flow = self.write_unstaged(bytes)?;
        let is_policed = !self.shard.inner.policing.is_empty();
        if is_policed && self.look(|slot| slot.marks.watched.logs()) == Some(true) {
            self.shard.log_traffic(self.token, Way::Written, bytes);
        }
        Ok(flow)
    }

    fn write_unstaged(&self, bytes: &[u8]) -> Result<Flow, WriteError> {
        let inner = &self.shard.inner;
        let marks = &inner.shared.config.watermarks;
        let mut connections = inner.connections.borrow_mut();
        let slot = connections.get_mut(self.token).ok_or(WriteError::Closed)?;
        let active = inner.active.get() == self.token;
        let mut staged = inner.staged.borrow_mut();
        let staged_len = if active { staged.len() } else { 0 };
        slot.connection.check_write(staged_len, bytes.len(), marks)?;
        let mut rest = bytes;
        if staged_len == 0 && !slot.marks.watched.meters_writes() {
            let (mut driver, mut spare) = (inner.driver.borrow_mut(), inner.spare.borrow_mut());
            let sent = slot.connection.send_straight(&mut **driver, self.token, bytes, &mut spare);
            drop((driver, spare));
            match sent {
                Ok(sent) => {
                    rest = &bytes[sent..];
                    if sent > 0 && slot.marks.watched.is_any() {
                        self.shard.note_sent(self.token);
                    }
                }
                Err(reason) => {
                    drop(staged);
                    drop(connections);
                    inner.stats.panics.add(u64::from(matches!(reason, CloseReason::Panicked(_))));
                    self.shard.end(self.token, reason, EndKind::Close(CloseKind::Orderly));
                    return Err(WriteError::Closed);
                }
            }
        }
        if !bytes.is_empty() {
            slot.note_written();
        }
        let has_output = slot.connection.has_output();
        if active {
            staged.extend_from_slice(rest);
            if has_output {
                inner.staged_room.set(0);
            }
        } else if !rest.is_empty() || has_output || slot.marks.producing == Producing::PullOwed {
            // Also for what was sealed and not sent: its time runs from the next flush on.
            slot.connection.queue(rest);
            inner.mark_slot_unsettled(self.token, slot);
        }
        let queued = slot.connection.queued_bytes() + if active { staged.len() } else { 0 };
        if queued <= marks.high_bytes {
            return Ok(Flow::Open);
        }
        if !active {
            inner.mark_slot_unsettled(self.token, slot);
        }
        drop(staged);
        drop(connections);
        Ok(self.above_high())
    }

    /// Writes the pieces one after the other, like one write of all of them.
    ///
    /// # Errors
    /// As [`Transport::write`]; nothing was taken of any piece.
    pub fn write_vectored(&self, pieces: &[io::IoSlice<'_>]) -> Result<Flow, WriteError> {
        let len = pieces.iter().map(|piece| piece.len()).sum();
        {
            let inner = &self.shard.inner;
            let connections = inner.connections.borrow();
            let slot = connections.get(self.token).ok_or(WriteError::Closed)?;
            let active = inner.active.get() == self.token;
            let staged_len = if active { inner.staged.borrow().len() } else { 0 };
            slot.connection.check_write(staged_len, len, &inner.shared.config.watermarks)?;
        }
        let mut flow = Flow::Open;
        for piece in pieces {
            flow = self.write(piece)?;
        }
        Ok(flow)
    }

    /// Sends what was written, then ends the connection. Nothing more is read. Idempotent; never reported back
    /// before it returns.
    ///
    /// The peer gets FIN; until it finishes too, for at most [`Config::linger_timeout`](crate::Config::linger_timeout),
    /// what it still sends is read and thrown away, since closing the socket at once would destroy the answer on its
    /// way.
    ///
    /// While a producer is registered the close waits for [`Transport::unregister_producer`]: nothing more is read, and
    /// writes are still taken. A deadline, an error of a callback and a drain that takes too long do not wait.
    pub fn close(&self) {
        self.shard.close_after_producer(self.token);
    }

    pub(crate) fn close_because(&self, reason: CloseReason) {
        self.shard.begin_close(self.token, reason);
    }

    /// Ends the connection now: unsent output is lost, the peer sees a reset. Idempotent; never reported back before
    /// it returns.
    ///
    /// A UNIX socket has no reset of its own: the kernel tells the peer `ECONNRESET` when bytes that it had sent were not
    /// read here, and an end of input like that of an orderly close when there are none (`unix(7)`). A peer that has to tell
    /// the two apart needs a protocol that says where a message ends.
    pub fn abort(&self) {
        self.shard.end(self.token, CloseReason::Aborted, EndKind::Close(CloseKind::Reset));
    }

    /// Sends what was written, then FIN. Bytes may still come. After
    /// [`Protocol::write_finished`](crate::Protocol::write_finished) FIN is out. Waits for a producer, as
    /// [`Transport::close`] does.
    pub fn shutdown_write(&self) {
        self.shard.shutdown_after_producer(self.token);
    }

    /// Registers who writes to this connection, to be paused, resumed and stopped with it: see [`Producer`] and
    /// [`ProducerKind`]. A pull producer is asked for its first chunk before this returns; a push producer is paused before
    /// it returns if output is above the high watermark already.
    ///
    /// On a connection that is lost, closing, or shut for writing, the producer is stopped at once and not kept.
    ///
    /// # Errors
    /// [`ProducerError`], when one is registered already: that one stays, the new one is dropped and never called.
    pub fn register_producer(
        &self,
        producer: impl Producer,
        kind: ProducerKind,
    ) -> Result<(), ProducerError> {
        self.shard.register_producer(self.token, producer, kind)
    }

    /// Drops the registered producer, if there is one, without calling it. A close that waited for it goes on. May be called
    /// by the producer itself, which is then dropped when its callback returns.
    pub fn unregister_producer(&self) {
        self.shard.unregister_producer(self.token);
    }

    /// Stops reading: no input comes until [`Transport::resume_reading`]. Idempotent. A reset by the peer is noticed
    /// all the same.
    pub fn pause_reading(&self) {
        self.change(|slot| {
            if !slot.connection.paused_by_protocol {
                slot.connection.paused_by_protocol = true;
                slot.connection.read_holds += 1;
            }
        });
        self.reading_held();
    }

    /// Reads on. Input that was left, or came in the meantime, is delivered in the next turn. Idempotent, and
    /// without effect on a connection that is closing.
    pub fn resume_reading(&self) {
        let resumed = self.change(|slot| {
            let resumed = slot.connection.paused_by_protocol;
            if resumed {
                slot.connection.paused_by_protocol = false;
                slot.connection.read_holds -= 1;
            }
            resumed
        });
        if resumed == Some(true) {
            self.shard.read_resumed(self.token);
        }
    }

    /// Holds reading until the hold is dropped. Holds are counted, and independent of
    /// [`Transport::pause_reading`]: a layer and the protocol inside it do not undo each other's.
    pub fn hold_reading(&self) -> ReadHold {
        let held = self.change(|slot| slot.connection.read_holds += 1).is_some();
        self.reading_held();
        ReadHold { transport: held.then(|| self.clone()) }
    }

    /// Whether reading goes on while unsent output is above the high watermark.
    ///
    /// A connection that was accepted stops, unless this is switched on: a protocol that answers what it reads need not
    /// heed the [`Flow`], and a peer that asks without reading costs one watermark. The input of the callback that wrote
    /// too much runs dry; what is left of it comes in the turn after output is back at the low watermark. Switch it on
    /// where input does not cause the output: if both peers write and stop reading, neither takes anything, and the
    /// connection ends after [`Config::write_timeout`](crate::Config::write_timeout).
    ///
    /// A connection made by [`Shard::connect_tcp`](crate::Shard::connect_tcp) reads on, unless this is switched off: who
    /// asks has to take the answers, or the peer stops taking questions.
    ///
    /// Independent of [`Transport::pause_reading`] and of holds: none of them undoes another. Streams read on as well;
    /// their writes wait instead.
    pub fn set_reads_above_high(&self, on: bool) {
        let released = self.change(|slot| slot.connection.set_reads_above_high(on));
        if released == Some(true) {
            self.shard.read_resumed(self.token);
        } else {
            self.reading_held();
        }
    }

    /// Something may hold reading from here on.
    fn reading_held(&self) {
        let inner = &self.shard.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(self.token) else { return };
        slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), self.token);
        if inner.active.get() == self.token && !slot.connection.may_read() {
            inner.dry.set(true);
        }
    }

    /// The other end's address; `None` for a UNIX connection, and after the end. Behind a proxy that has said whose
    /// connection it is, the client's.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.look(|slot| slot.connection.peer_addr())?
    }

    /// The other end, whatever it is; `None` after the end.
    pub fn peer(&self) -> Option<Addr> {
        self.look(|slot| slot.connection.peer())
    }

    /// Our end's address. Behind a proxy that has said it, the address that the client connected to.
    ///
    /// # Errors
    /// `NotConnected` after the connection has ended; `Unsupported` for a UNIX connection.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.local()?.as_ip().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Our end, whatever it is. Behind a proxy that has said it, the address that the client connected to.
    ///
    /// # Errors
    /// `NotConnected` after the connection has ended.
    pub fn local(&self) -> io::Result<Addr> {
        let reported =
            self.look(|slot| slot.connection.proxy_header().and_then(|header| header.local_addr()));
        match reported.flatten() {
            Some(addr) => Ok(addr.into()),
            None => self.socket_local(),
        }
    }

    /// The socket's other end: a proxy, where there is one. `None` after the connection has ended.
    pub fn socket_peer(&self) -> Option<Addr> {
        self.look(|slot| slot.connection.socket_peer())
    }

    /// The socket's own end, whatever a proxy says.
    ///
    /// # Errors
    /// `NotConnected` after the connection has ended.
    pub fn socket_local(&self) -> io::Result<Addr> {
        self.shard.inner.driver.borrow().local_addr(self.token)
    }

    /// What a proxy has said about the connection by the PROXY protocol, and which proxy; `None` for connections that came
    /// in elsewhere than at a `haproxy:` [endpoint](crate::endpoint), and after the connection has ended.
    pub fn proxy_header(&self) -> Option<Arc<ProxyHeader>> {
        self.look(|slot| slot.connection.proxy_header().cloned()).flatten()
    }

    pub(crate) fn found_proxy_header(&self, header: &Header<'_>) {
        self.change(|slot| {
            let proxy = slot.connection.socket_peer();
            slot.connection.set_proxy_header(Arc::new(ProxyHeader::new(header, proxy)));
        });
    }

    /// Bytes written that the kernel has not taken.
    pub fn buffered(&self) -> usize {
        let inner = &self.shard.inner;
        let staged = if inner.active.get() == self.token { inner.staged.borrow().len() } else { 0 };
        if inner.active.get() == self.token && inner.staged_room.get() > 0 {
            return staged;
        }
        self.look(|slot| slot.connection.queued_bytes()).unwrap_or(0) + staged
    }

    /// Whether the connection is open: not closed, closing or broken.
    pub fn is_open(&self) -> bool {
        self.look(Slot::is_in_use).unwrap_or(false)
    }

    /// TCP_NODELAY; on unless switched off.
    ///
    /// # Errors
    /// What the operating system says; `NotConnected` after the end.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        self.set_option(SocketOption::NoDelay(on))
    }

    /// SO_KEEPALIVE; on unless switched off: probes after 60 s of silence, every 10 s, 6 of them.
    ///
    /// # Errors
    /// What the operating system says; `NotConnected` after the end.
    pub fn set_keepalive(&self, on: bool) -> io::Result<()> {
        self.set_option(SocketOption::KeepAlive(on))
    }

    fn set_option(&self, option: SocketOption) -> io::Result<()> {
        self.shard.inner.driver.borrow_mut().set_option(self.token, option)
    }

    /// Calls [`Protocol::deadline_reached`](crate::Protocol::deadline_reached) once, `after` from now, never earlier;
    /// replaces an earlier deadline, and `None` removes it. Without effect on a connection that is closing. Reads the
    /// clock, as all timers do: about 25 ns.
    pub fn set_deadline(&self, after: Option<Duration>) {
        match after {
            Some(after) => self.set_deadline_at(deadline_after(self.shard.read_clock(), after)),
            None => {
                if let Some(key) = self.change(|slot| slot.deadline.take()).flatten() {
                    self.shard.inner.timers.borrow_mut().cancel(key);
                }
            }
        }
    }

    pub(super) fn set_deadline_at(&self, deadline: Instant) {
        let inner = &self.shard.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(self.token).filter(|slot| slot.connection.is_open()) else {
            return;
        };
        let mut timers = inner.timers.borrow_mut();
        match slot.deadline {
            Some(key) if timers.reset(key, deadline) => {}
            _ => {
                let token = self.token;
                let reached = Timer::new(move |shard: &Shard| shard.on_deadline(token));
                slot.deadline = Some(timers.insert(deadline, reached));
            }
        }
    }

    /// When the deadline is, if one is set.
    pub fn deadline(&self) -> Option<Instant> {
        let key = self.look(|slot| slot.deadline)??;
        self.shard.inner.timers.borrow().deadline(key)
    }

    /// Ends the connection when no byte has gone either way for `after`, counted from now; replaces the timeout it has, and
    /// `None` removes it. See [`Policies::idle_timeout`](crate::policies::Policies::idle_timeout), which gives one to every
    /// connection. Without effect on a connection that is closing.
    pub fn set_idle_timeout(&self, after: Option<Duration>) {
        self.shard.set_idle_timeout(self.token, after);
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&Slot) -> T) -> Option<T> {
        self.shard.inner.connections.borrow().get(self.token).map(look)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        self.shard.inner.connections.borrow_mut().get_mut(self.token).map(change)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Transport");
        debug.field("shard", &self.shard.inner.id.index());
        debug.field("peer", &self.peer()).field("open", &self.is_open()).finish()
    }
}

/// Keeps a connection from reading until it is dropped.
#[derive(Debug)]
#[must_use = "reading goes on when the hold is dropped"]
pub struct ReadHold {
    transport: Option<Transport>,
}

impl Drop for ReadHold {
    fn drop(&mut self) {
        if let Some(transport) = self.transport.take() {
            transport.change(|slot| slot.connection.read_holds -= 1);
            transport.shard.read_resumed(transport.token);
        }
    }
}
