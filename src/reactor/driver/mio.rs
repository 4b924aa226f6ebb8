//! The readiness driver: epoll or kqueue, through mio, whose one door this is. It imitates completions, and
//! decides nothing about what bytes mean or whom to serve.
//!
//! # Edges
//! A source is registered once, edge-triggered, for both directions, and never touched again. An edge is told
//! once, so what it promised is remembered in the source (`unread`) until the kernel has said that there is no
//! more: by a short read, or by `EAGAIN`. Four rules keep that sound:
//! * A short read ends a connection's turn without the call that would only find `EAGAIN` (`epoll(7)`, Q9), unless
//!   the edge came with a hang-up, an error or urgent data: then reading goes on to the end. (A read stops at the
//!   urgent mark with more behind it.)
//! * What stops on its budget is carried into the next turn, and the next `wait` does not sleep.
//! * An edge whose first read finds nothing is looked at once more before it is believed.
//! * An edge for a token of an older generation is dropped: its source was closed earlier in the same batch.
//!
//! # Out of descriptors
//! When `accept4` says EMFILE, ENFILE, ENOBUFS, ENOMEM or EPERM while a peer waits, that peer stays in the kernel's queue, where it
//! loses nothing; [`Event::AcceptFailed`] tells, at most once a second and listener. Accepting pauses for all
//! listeners of this driver – the shortage is the process's – and is tried again after 100 ms, or 20 ms after the
//! failure once this driver has closed a descriptor: at most 50 futile calls a second. There is no reserved descriptor: one could only serve to hang
//! up on peers that a moment's patience would serve.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use rustix::io::Errno;

use super::{
    Census, CloseKind, ConnectSpec, DetachedSocket, Discarded, Driver, DriverConfig, Event, KernelKind,
    ListenSpec, SocketOption, Submitted,
};
use crate::reactor::buffer::Output;
use crate::reactor::lease::LeasePool;
use crate::reactor::registry::Registry;
use crate::reactor::token::Token;
use crate::reactor::waker::{DriverWaker, Wake};
use crate::sys::socket::{ListenerRole, Socket};

/// A [`Driver`] over `mio::Poll`. See the head of this file for its rules.
pub(crate) struct MioDriver {
    poll: Poll,
    events: Events,
    waker: Arc<MioWaker>,
    sources: Registry<Source>,
    listener_count: usize,
    /// What has news. Copied out of `events`, whose iterator cannot be resumed.
    ready: Vec<News>,
    /// The first of `ready` that is not served yet, and how often it was read or accepted from in this turn.
    head: usize,
    served: usize,
    /// What stopped on its budget: news of the next turn.
    carried: Vec<Token>,
    /// What `accept_queue` took, and `next` has not told yet.
    accepted: VecDeque<Event>,
    shortage: Shortage,
    pool: Rc<LeasePool>,
    now: Instant,
    random_state: u64,
}

impl MioDriver {
    /// A driver without sources.
    ///
    /// # Errors
    /// When the kernel has no descriptors left for the poll or the waker.
    /// # Panics
    /// When a size in `config` is 0.
    pub(crate) fn new(config: DriverConfig) -> io::Result<Self> {
        assert!(config.events_per_wait > 0, "a wait must be able to tell something");
        let poll = Poll::new()?;
        let waker = Arc::new(MioWaker(mio::Waker::new(poll.registry(), WAKER)?));
        Ok(MioDriver {
            poll,
            events: Events::with_capacity(config.events_per_wait),
            waker,
            sources: Registry::new(),
            listener_count: 0,
            ready: Vec::with_capacity(config.events_per_wait),
            head: 0,
            served: 0,
            carried: Vec::new(),
            accepted: VecDeque::new(),
            shortage: Shortage::none(),
            pool: LeasePool::new(config.read_buffer_bytes),
            now: Instant::now(),
            random_state: std::hash::RandomState::new().build_hasher().finish(),
        })
    }

    /// Gives `source` a slot and registers it, for good.
    fn add(&mut self, source: Source) -> io::Result<Token> {
        let interest = match source {
            Source::Listener(_) => Interest::READABLE,
            Source::Connection(_) => connection_interest(),
        };
        let fd = source.socket().as_fd().as_raw_fd();
        let token = self.sources.insert(source);
        let name = mio::Token(token.to_bits() as usize);
        match self.poll.registry().register(&mut SourceFd(&fd), name, interest) {
            Ok(()) => Ok(token),
            Err(error) => {
                self.sources.remove(token);
                Err(error)
            }
        }
    }

    fn source(&self, token: Token) -> io::Result<&Source> {
        self.sources.get(token).ok_or_else(not_connected)
    }

    #[inline]
    fn connection_mut(&mut self, token: Token) -> io::Result<&mut Connection> {
        match self.sources.get_mut(token) {
            Some(Source::Connection(connection)) => Ok(connection),
            _ => Err(not_connected()),
        }
    }

    #[inline]
    fn connected_mut(&mut self, token: Token) -> io::Result<&mut Connection> {
        match self.sources.get_mut(token) {
            Some(Source::Connection(connection)) if connection.phase != Phase::Connecting => Ok(connection),
            _ => Err(not_connected()),
        }
    }

    fn listener_mut(&mut self, token: Token) -> io::Result<&mut Listener> {
        match self.sources.get_mut(token) {
            Some(Source::Listener(listener)) => Ok(listener),
            _ => Err(not_connected()),
        }
    }

    /// Done, for this turn, with what is at the head.
    #[inline]
    fn pass_head(&mut self) {
        self.head += 1;
        self.served = 0;
    }

    /// Serves the connection at the head once. It stays there if it may have more to tell in this turn.
    #[inline]
    fn serve_connection(&mut self, token: Token, readiness: Readiness) -> Option<Event> {
        let Ok(connection) = self.connection_mut(token) else { return None };
        connection.note(readiness);
        if connection.phase == Phase::Connecting {
            match connect_outcome(&connection.socket) {
                None => {
                    self.pass_head();
                    return None;
                }
                Some(Ok(())) => {
                    connection.phase = Phase::Open;
                    return Some(Event::Connected { token });
                }
                Some(Err(error)) => {
                    connection.phase = Phase::Failed;
                    self.pass_head();
                    return Some(Event::Failed { token, error });
                }
            }
        }
        if connection.blocked && readiness.has(Readiness::WRITABLE) && connection.phase != Phase::Failed {
            connection.blocked = false;
            return Some(Event::Sent { token });
        }
        let reads = connection.receiving && connection.phase == Phase::Open;
        if connection.errored && !reads && connection.phase != Phase::Failed {
            // Nobody reads, who would meet the error behind the last byte: ask for it.
            connection.errored = false;
            if let Some(error) = stored_error(&connection.socket) {
                connection.phase = Phase::Failed;
                self.pass_head();
                return Some(Event::Failed { token, error });
            }
        }
        // What is carried already has had its share of this turn.
        if reads && connection.unread && !connection.carried {
            return self.read(token);
        }
        self.pass_head();
        None
    }

    /// One read from the connection at the head, which is open and has something, or may have.
    #[inline]
    fn read(&mut self, token: Token) -> Option<Event> {
        let Some(Source::Connection(connection)) = self.sources.get_mut(token) else { return None };
        if self.served == READS_PER_TURN {
            // Bounded: a fast sender would otherwise keep this loop for itself.
            connection.carried = true;
            self.carried.push(token);
            self.pass_head();
            return None;
        }
        self.served += 1;
        let mut buffer = self.pool.take();
        match connection.socket.recv(&mut buffer) {
            Ok(0) => {
                connection.phase = Phase::PeerFinished;
                connection.unread = false;
                self.pool.give_back(buffer);
                Some(Event::PeerFinished { token })
            }
            Ok(received_bytes) => {
                connection.doubtful = false;
                if received_bytes < buffer.len() && !connection.to_the_end {
                    connection.unread = false;
                    self.pass_head();
                }
                Some(Event::Received { token, bytes: self.pool.lend(buffer, received_bytes) })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if connection.doubtful {
                    connection.doubtful = false;
                    connection.carried = true;
                    self.carried.push(token);
                } else {
                    connection.unread = false;
                    connection.to_the_end = false;
                }
                self.pool.give_back(buffer);
                self.pass_head();
                None
            }
            Err(error) => {
                connection.phase = Phase::Failed;
                self.pool.give_back(buffer);
                self.pass_head();
                Some(Event::Failed { token, error })
            }
        }
    }

    /// Accepts one connection from the listener at the head. It stays there while it may have more for this turn.
    fn serve_listener(&mut self, token: Token, readiness: Readiness) -> Option<Event> {
        let short_of_descriptors = self.shortage.lasts_at(self.now);
        let Ok(listener) = self.listener_mut(token) else { return None };
        if readiness.has(Readiness::READABLE) {
            listener.unread = true;
        }
        if !listener.accepting || !listener.unread || listener.carried || listener.paused {
            self.pass_head();
            return None;
        }
        if short_of_descriptors {
            listener.paused = true;
            self.shortage.listeners.push(token);
            self.pass_head();
            return None;
        }
        // Bounded: in a reconnect storm endless accepting starves open connections until they time out and
        // reconnect too, which feeds the storm.
        while self.served < self.listener_mut(token).ok()?.accepts_per_turn {
            self.served += 1;
            match self.accept_one(token) {
                Accept::One(event) => return Some(event),
                Accept::Again => {}
                Accept::Nothing => {
                    self.pass_head();
                    return None;
                }
                Accept::Ended(event) => {
                    self.pass_head();
                    return Some(event);
                }
                Accept::Paused(report) => {
                    self.pass_head();
                    return report;
                }
            }
        }
        self.listener_mut(token).ok()?.carried = true;
        self.carried.push(token);
        self.pass_head();
        None
    }

    /// One `accept4`, and what it means for the listener.
    fn accept_one(&mut self, listener_token: Token) -> Accept {
        let now = self.now;
        let Ok(listener) = self.listener_mut(listener_token) else { return Accept::Nothing };
        let error = match listener.socket.accept() {
            Ok((socket, peer)) => match self.add(Source::Connection(Connection::new(socket, Phase::Open))) {
                Ok(token) => return Accept::One(Event::Accepted { listener: listener_token, token, peer }),
                // Too many are watched: the same shortage, only that this peer has been hung up on.
                Err(error) => error,
            },
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => {
                    listener.unread = false;
                    return Accept::Nothing;
                }
                Some(errno) if CONNECTION_WAS_BAD.contains(&errno) => return Accept::Again,
                Some(errno) if SHORTAGES.contains(&errno) => error,
                _ => {
                    // The listener itself is broken: trying again would spin.
                    listener.accepting = false;
                    return Accept::Ended(Event::Failed { token: listener_token, error });
                }
            },
        };
        let Ok(listener) = self.listener_mut(listener_token) else { return Accept::Nothing };
        if !listener.socket.has_waiting_peer() {
            // The kernel looks for a descriptor before it looks into the queue. Nobody waits, so nothing is wrong.
            listener.unread = false;
            return Accept::Nothing;
        }
        let is_due = listener.reported_at.is_none_or(|reported| now - reported >= ACCEPT_REPORT_INTERVAL);
        if is_due {
            listener.reported_at = Some(now);
        }
        if !listener.paused {
            listener.paused = true;
            self.shortage.listeners.push(listener_token);
        }
        self.shortage.begin(now);
        Accept::Paused(is_due.then_some(Event::AcceptFailed { listener: listener_token, error }))
    }

    /// Puts the listeners that wait for descriptors back on the list, if it is time.
    fn end_shortage(&mut self) {
        if self.shortage.listeners.is_empty() || self.shortage.lasts_at(self.now) {
            return;
        }
        while let Some(token) = self.shortage.listeners.pop() {
            if let Ok(listener) = self.listener_mut(token) {
                listener.paused = false;
                self.ready.push(News { token, readiness: Readiness::NONE });
            }
        }
    }
}

impl Driver for MioDriver {
    fn kind(&self) -> KernelKind {
        KernelKind::Mio
    }

    fn waker(&self) -> DriverWaker {
        Arc::clone(&self.waker) as DriverWaker
    }

    #[inline]
    fn now(&self) -> Instant {
        self.now
    }

    fn read_clock(&mut self) -> Instant {
        self.now = Instant::now();
        self.now
    }

    /// SplitMix64 (Steele, Lea, Flood 2014), seeded by the system. Not for secrets.
    fn random(&mut self) -> u64 {
        self.random_state = self.random_state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.random_state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    fn listen(&mut self, spec: &ListenSpec) -> io::Result<(Token, SocketAddr)> {
        let role = if spec.join { ListenerRole::Joiner } else { ListenerRole::First };
        let socket = Socket::bind_listener(spec.addr, spec.backlog, role)?;
        // Accepted sockets inherit both, which saves six calls for each of them.
        socket.set_nodelay(true)?;
        socket.set_keepalive(true)?;
        let addr = socket.local_addr()?;
        let listener = Listener::new(socket, spec.accepts_per_turn.max(1));
        let token = self.add(Source::Listener(Box::new(listener)))?;
        self.listener_count += 1;
        Ok((token, addr))
    }

    fn share_port(&mut self, listener: Token) -> io::Result<()> {
        self.listener_mut(listener)?.socket.share_port()
    }

    fn accept(&mut self, token: Token, on: bool) {
        let Ok(listener) = self.listener_mut(token) else { return };
        listener.accepting = on;
        if on && listener.unread && !listener.carried && !listener.paused {
            listener.carried = true;
            self.carried.push(token);
        }
    }

    fn refuse_handshakes(&mut self, listener: Token) -> io::Result<()> {
        self.listener_mut(listener)?.socket.refuse_handshakes()
    }

    /// Stops early, with an [`Event::AcceptFailed`], when descriptors run out. What it took is told by `next` even
    /// if the listener is closed before.
    fn accept_queue(&mut self, listener: Token) -> usize {
        let mut count = 0;
        let mut bad_in_a_row = 0;
        while bad_in_a_row < BAD_CONNECTIONS_IN_A_ROW_MAX {
            match self.accept_one(listener) {
                Accept::One(event) => {
                    self.accepted.push_back(event);
                    count += 1;
                    bad_in_a_row = 0;
                }
                Accept::Again => bad_in_a_row += 1,
                Accept::Nothing => break,
                Accept::Ended(event) => {
                    self.accepted.push_back(event);
                    break;
                }
                Accept::Paused(report) => {
                    self.accepted.extend(report);
                    break;
                }
            }
        }
        count
    }

    /// # Errors
    /// What the kernel knows at once: no such local address, no route, no descriptors.
    fn connect(&mut self, spec: &ConnectSpec) -> io::Result<Token> {
        let socket = Socket::connect(spec.addr, spec.bind_addr)?;
        socket.set_nodelay(true)?;
        socket.set_keepalive(true)?;
        self.add(Source::Connection(Connection::new(socket, Phase::Connecting)))
    }

    /// Makes the socket non-blocking; its options stay as they are.
    ///
    /// # Errors
    /// `InvalidInput` for a socket of another kind of driver.
    fn adopt(&mut self, socket: DetachedSocket) -> io::Result<Token> {
        let DetachedSocket::Os(socket) = socket else { return Err(io::ErrorKind::InvalidInput.into()) };
        socket.make_nonblocking()?;
        self.add(Source::Connection(Connection::new(socket, Phase::Open)))
    }

    fn release(&mut self, token: Token) -> Option<DetachedSocket> {
        match self.sources.get(token)? {
            Source::Connection(connection) if connection.phase != Phase::Connecting => {
                // Only a descriptor that is not watched may be given away; if the kernel does not know it, all is well.
                let _ =
                    self.poll.registry().deregister(&mut SourceFd(&connection.socket.as_fd().as_raw_fd()));
            }
            _ => return None,
        }
        let Some(Source::Connection(connection)) = self.sources.remove(token) else {
            unreachable!("looked up above")
        };
        Some(DetachedSocket::Os(connection.socket))
    }

    fn receive(&mut self, token: Token, on: bool) {
        let Ok(connection) = self.connection_mut(token) else { return };
        connection.receiving = on;
        // The edges came while nobody looked, and will not come again. A connection that has just been registered has none yet:
        // its first edge is still to come.
        let has_news = if on { connection.unread } else { connection.errored };
        let can_tell = connection.phase == Phase::Open && !connection.carried;
        if has_news && can_tell {
            connection.carried = true;
            self.carried.push(token);
        }
    }

    #[inline]
    fn try_send(&mut self, token: Token, bytes: &[u8]) -> io::Result<usize> {
        let connection = self.connected_mut(token)?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let sent_bytes = none_if_full(connection.socket.send(bytes))?;
        connection.blocked = sent_bytes < bytes.len();
        Ok(sent_bytes)
    }

    fn submit(&mut self, token: Token, output: &mut Output) -> io::Result<Submitted> {
        let connection = self.connected_mut(token)?;
        while !output.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_PER_SEND];
            let count = output.slices(&mut slices);
            let offered = &slices[..count];
            let offered_bytes: usize = offered.iter().map(|slice| slice.len()).sum();
            let sent_bytes = none_if_full(match offered {
                [only] => connection.socket.send(only),
                _ => connection.socket.send_vectored(offered),
            })?;
            output.advance(sent_bytes);
            connection.blocked = sent_bytes < offered_bytes;
            if connection.blocked {
                return Ok(Submitted::Blocked);
            }
        }
        Ok(Submitted::Done)
    }

    fn shutdown_write(&mut self, token: Token) -> io::Result<()> {
        self.connected_mut(token)?.socket.shutdown_write()
    }

    fn close(&mut self, token: Token, kind: CloseKind) {
        let Some(source) = self.sources.remove(token) else { return };
        match &source {
            Source::Listener(_) => self.listener_count -= 1,
            // Best effort: a socket that cannot be told is reset or finished already.
            Source::Connection(connection) if kind == CloseKind::Reset => {
                let _ = connection.socket.set_reset_on_close();
            }
            Source::Connection(_) => {}
        }
        // Closing takes the descriptor out of the kernel's interest list: one call less than deregistering first.
        drop(source);
        self.shortage.descriptor_closed();
    }

    fn discard(&mut self, token: Token, limit_bytes: usize) -> io::Result<Discarded> {
        let Some(Source::Connection(connection)) = self.sources.get_mut(token) else {
            return Err(not_connected());
        };
        match connection.phase {
            Phase::Open => {}
            Phase::PeerFinished => return Ok(Discarded::PeerFinished),
            Phase::Connecting | Phase::Failed => return Err(not_connected()),
        }
        let mut buffer = self.pool.take();
        let mut bytes = 0;
        let result = loop {
            let room = buffer.len().min(limit_bytes - bytes);
            if room == 0 {
                connection.unread = true;
                break Ok(Discarded::Waiting { bytes });
            }
            match connection.socket.recv(&mut buffer[..room]) {
                Ok(0) => {
                    connection.phase = Phase::PeerFinished;
                    break Ok(Discarded::PeerFinished);
                }
                Ok(received_bytes) => bytes += received_bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.unread = false;
                    break Ok(Discarded::Waiting { bytes });
                }
                Err(error) => {
                    connection.phase = Phase::Failed;
                    break Err(error);
                }
            }
        };
        let has_more = connection.unread && connection.receiving && !connection.carried;
        if has_more && connection.phase == Phase::Open {
            connection.carried = true;
            self.carried.push(token);
        }
        self.pool.give_back(buffer);
        result
    }

    fn local_addr(&self, token: Token) -> io::Result<SocketAddr> {
        self.source(token)?.socket().local_addr()
    }

    fn peer_addr(&self, token: Token) -> io::Result<SocketAddr> {
        self.source(token)?.socket().peer_addr()
    }

    fn set_option(&mut self, token: Token, option: SocketOption) -> io::Result<()> {
        let socket = self.source(token)?.socket();
        match option {
            SocketOption::NoDelay(on) => socket.set_nodelay(on),
            SocketOption::KeepAlive(on) => socket.set_keepalive(on),
        }
    }

    /// A sleep is rounded up to whole milliseconds. It may end early, without news, to look whether descriptors
    /// are to be had again.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.ready.drain(..self.head);
        self.head = 0;
        self.served = 0;
        // A shard that serves less than what comes still has all of the last batch: more would only pile up.
        let may_poll = self.ready.len() < self.events.capacity();
        for token in self.carried.drain(..) {
            match self.sources.get_mut(token) {
                Some(Source::Connection(connection)) => connection.carried = false,
                Some(Source::Listener(listener)) => listener.carried = false,
                None => continue,
            }
            self.ready.push(News { token, readiness: Readiness::NONE });
        }
        let has_work = !self.ready.is_empty() || !self.accepted.is_empty();
        let timeout = if has_work { Some(Duration::ZERO) } else { self.shortage.clamp(timeout) };
        let polled = if may_poll {
            self.poll.poll(&mut self.events, timeout)
        } else {
            self.events.clear();
            Ok(())
        };
        for event in &self.events {
            if event.token() != WAKER {
                let token = Token::from_bits(event.token().0 as u64);
                self.ready.push(News { token, readiness: Readiness::of(event) });
            }
        }
        self.now = Instant::now();
        self.end_shortage();
        match polled {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    #[inline]
    fn has_ready(&self) -> bool {
        self.head < self.ready.len() || !self.accepted.is_empty()
    }

    fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.accepted.pop_front() {
            return Some(event);
        }
        while let Some(news) = self.ready.get_mut(self.head) {
            let token = news.token;
            // Taken, because an edge is told once: a connection that blocks while it is at the head waits for a new edge.
            let readiness = std::mem::replace(&mut news.readiness, Readiness::NONE);
            let event = match self.sources.get(token) {
                Some(Source::Connection(_)) => self.serve_connection(token, readiness),
                Some(Source::Listener(_)) => self.serve_listener(token, readiness),
                None => {
                    self.pass_head();
                    None
                }
            };
            if event.is_some() {
                return event;
            }
        }
        None
    }

    fn census(&self) -> Census {
        Census {
            listeners: self.listener_count,
            connections: self.sources.len() - self.listener_count,
            leases: self.pool.on_loan(),
        }
    }
}

enum Source {
    /// Few, and large: boxed, so that the many are small.
    Listener(Box<Listener>),
    Connection(Connection),
}

impl Source {
    fn socket(&self) -> &Socket {
        match self {
            Source::Listener(listener) => &listener.socket,
            Source::Connection(connection) => &connection.socket,
        }
    }
}

struct Listener {
    socket: Socket,
    accepts_per_turn: usize,
    accepting: bool,
    /// Peers wait in the queue, or may.
    unread: bool,
    /// It is on the driver's carry list.
    carried: bool,
    /// It is on the list of those that wait for descriptors.
    paused: bool,
    /// When [`Event::AcceptFailed`] was last told.
    reported_at: Option<Instant>,
}

impl Listener {
    fn new(socket: Socket, accepts_per_turn: usize) -> Self {
        Listener {
            socket,
            accepts_per_turn,
            accepting: false,
            unread: false,
            carried: false,
            paused: false,
            reported_at: None,
        }
    }
}

struct Connection {
    socket: Socket,
    phase: Phase,
    receiving: bool,
    /// The kernel has bytes or a FIN for us, or may have: an edge told so, and no read has disproved it.
    unread: bool,
    /// A short read proves nothing now: read until FIN, error or nothing.
    to_the_end: bool,
    /// An edge came and nothing has been read since.
    doubtful: bool,
    /// An edge told of an error that nobody has asked for yet.
    errored: bool,
    /// A send came short: tell when there is room.
    blocked: bool,
    /// It is on the driver's carry list.
    carried: bool,
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Open,
    /// FIN was told: no more reads.
    PeerFinished,
    /// The error was told: no more events.
    Failed,
}

impl Connection {
    fn new(socket: Socket, phase: Phase) -> Self {
        Connection {
            socket,
            phase,
            receiving: false,
            unread: false,
            to_the_end: false,
            doubtful: false,
            errored: false,
            blocked: false,
            carried: false,
        }
    }

    /// Remembers what an edge told.
    #[inline]
    fn note(&mut self, readiness: Readiness) {
        if readiness.has(Readiness::READABLE) {
            self.unread = true;
            self.doubtful = true;
        }
        if readiness.has(Readiness::TO_THE_END) {
            self.unread = true;
            self.to_the_end = true;
        }
        if readiness.has(Readiness::ERROR) {
            self.errored = true;
        }
    }
}

/// A source and what its edge told.
struct News {
    token: Token,
    readiness: Readiness,
}

#[derive(Clone, Copy)]
struct Readiness(u8);

impl Readiness {
    const NONE: Readiness = Readiness(0);
    const READABLE: Readiness = Readiness(1);
    const WRITABLE: Readiness = Readiness(2);
    /// Hung up, failed, or urgent data: a short read is not the end.
    const TO_THE_END: Readiness = Readiness(4);
    const ERROR: Readiness = Readiness(8);

    #[inline]
    fn of(event: &mio::event::Event) -> Self {
        let mut bits = 0;
        if event.is_readable() {
            bits |= Self::READABLE.0;
        }
        if event.is_writable() {
            bits |= Self::WRITABLE.0;
        }
        if event.is_read_closed() || event.is_priority() {
            bits |= Self::TO_THE_END.0;
        }
        if event.is_error() {
            bits |= Self::TO_THE_END.0 | Self::ERROR.0;
        }
        Readiness(bits)
    }

    #[inline]
    fn has(self, other: Readiness) -> bool {
        self.0 & other.0 != 0
    }
}

/// What one `accept4` came to.
enum Accept {
    One(Event),
    /// That connection had gone bad in the queue; the next may be good.
    Again,
    /// Nobody waits.
    Nothing,
    /// Out of descriptors or memory. The report is left out if the last one is recent.
    Paused(Option<Event>),
    /// The listener is broken.
    Ended(Event),
}

/// A time without descriptors, and the listeners that wait for its end.
struct Shortage {
    listeners: Vec<Token>,
    times: Option<ShortageTimes>,
}

struct ShortageTimes {
    failed_at: Instant,
    retry_at: Instant,
}

impl Shortage {
    fn none() -> Self {
        Shortage { listeners: Vec::new(), times: None }
    }

    fn begin(&mut self, now: Instant) {
        self.times = Some(ShortageTimes { failed_at: now, retry_at: now + RETRY_INTERVAL });
    }

    fn lasts_at(&self, now: Instant) -> bool {
        self.times.as_ref().is_some_and(|times| now < times.retry_at)
    }

    fn descriptor_closed(&mut self) {
        if let Some(times) = &mut self.times {
            times.retry_at = times.retry_at.min(times.failed_at + RETRY_AFTER_CLOSE);
        }
    }

    /// The shorter of `timeout` and what is left until the retry.
    fn clamp(&self, timeout: Option<Duration>) -> Option<Duration> {
        match &self.times {
            Some(times) if !self.listeners.is_empty() => {
                let left = times.retry_at.saturating_duration_since(Instant::now());
                Some(timeout.map_or(left, |timeout| timeout.min(left)))
            }
            _ => timeout,
        }
    }
}

/// Shares ownership of the eventfd with the driver, so that a late wake writes to nobody else's descriptor.
struct MioWaker(mio::Waker);

impl Wake for MioWaker {
    fn wake(&self) {
        // One `write(2)`; a full counter is already a wake, and any other failure means that nobody can be woken.
        let _ = self.0.wake();
    }
}

fn connection_interest() -> Interest {
    let interest = Interest::READABLE | Interest::WRITABLE;
    // Urgent data costs nothing until it comes, and then must be known: see "Edges".
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let interest = interest | Interest::PRIORITY;
    interest
}

/// How an attempt to connect ended; `None` if it goes on.
fn connect_outcome(socket: &Socket) -> Option<io::Result<()>> {
    if let Some(error) = stored_error(socket) {
        return Some(Err(error));
    }
    match (socket.local_addr(), socket.peer_addr()) {
        (Ok(local), Ok(peer)) if local == peer => {
            // Simultaneous open with itself (RFC 9293 §3.5): the kernel gave us the very port we asked for.
            let reason = format!("connected to itself: nobody listens at {peer}");
            Some(Err(io::Error::new(io::ErrorKind::ConnectionRefused, reason)))
        }
        (Err(error), _) => Some(Err(error)),
        (Ok(_), Err(error)) if error.kind() == io::ErrorKind::NotConnected => None,
        (Ok(_), Err(error)) => Some(Err(error)),
        (Ok(_), Ok(_)) => Some(Ok(())),
    }
}

fn stored_error(socket: &Socket) -> Option<io::Error> {
    match socket.take_error() {
        Ok(stored) => stored,
        Err(error) => Some(error),
    }
}

#[inline]
fn none_if_full(sent: io::Result<usize>) -> io::Result<usize> {
    match sent {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        sent => sent,
    }
}

fn not_connected() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

/// With 64 KiB buffers: 256 KiB per connection and turn.
const READS_PER_TURN: usize = 4;
const SLICES_PER_SEND: usize = 64;
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
const RETRY_AFTER_CLOSE: Duration = Duration::from_millis(20);
const ACCEPT_REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Ends `accept_queue`, which has no budget, should the kernel do nothing but complain.
const BAD_CONNECTIONS_IN_A_ROW_MAX: usize = 1024;

/// `accept(2)`: these tell of the connection at the head of the queue, not of the listener.
const CONNECTION_WAS_BAD: [Errno; 9] = [
    Errno::CONNABORTED,
    Errno::PROTO,
    Errno::NETDOWN,
    Errno::NETUNREACH,
    Errno::NONET,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
    Errno::OPNOTSUPP,
    Errno::NOPROTOOPT,
];
/// Descriptors or memory, or permission: a security module that says no leaves the connection in the queue.
const SHORTAGES: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::PERM];

/// No source has this name: slot numbers end below `u32::MAX`.
const WAKER: mio::Token = mio::Token(usize::MAX);
const _: () = assert!(size_of::<usize>() >= size_of::<u64>(), "a token fits the word that epoll carries");

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    /// A driver and, in order, what it told that no test has taken yet.
    struct Bench {
        driver: MioDriver,
        told: Vec<Event>,
    }

    /// Longer than any step takes: a guard, not a measure.
    const PATIENCE: Duration = Duration::from_secs(10);

    fn bench() -> Bench {
        bench_with(DriverConfig::default())
    }

    fn bench_with(config: DriverConfig) -> Bench {
        Bench { driver: MioDriver::new(config).unwrap(), told: Vec::new() }
    }

    fn any_port() -> ListenSpec {
        ListenSpec { addr: "127.0.0.1:0".parse().unwrap(), backlog: 128, join: false, accepts_per_turn: 32 }
    }

    impl Bench {
        /// One turn: waits at most `timeout` and takes all there is.
        fn turn(&mut self, timeout: Duration) {
            self.driver.wait(Some(timeout)).unwrap();
            while let Some(event) = self.driver.next() {
                self.told.push(event);
            }
        }

        /// Turns until `wanted` picks an event, which is taken out.
        fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let found =
                    self.told.iter().enumerate().find_map(|(index, event)| Some((index, wanted(event)?)));
                if let Some((index, value)) = found {
                    self.told.remove(index);
                    return value;
                }
                assert!(Instant::now() < deadline, "no {what}, but {:?}", self.names());
                self.turn(Duration::from_millis(50));
            }
        }

        fn accepted(&mut self) -> Token {
            self.until("Accepted", |event| match event {
                Event::Accepted { token, .. } => Some(*token),
                _ => None,
            })
        }

        fn connected(&mut self) -> Token {
            self.until("Connected", |event| match event {
                Event::Connected { token } => Some(*token),
                _ => None,
            })
        }

        fn failed(&mut self) -> (Token, io::Error) {
            self.until("Failed", |event| match event {
                Event::Failed { token, error } => Some((*token, io::Error::from(error.kind()))),
                _ => None,
            })
        }

        fn peer_finished(&mut self) -> Token {
            self.until("PeerFinished", |event| match event {
                Event::PeerFinished { token } => Some(*token),
                _ => None,
            })
        }

        fn sent(&mut self) -> Token {
            self.until("Sent", |event| match event {
                Event::Sent { token } => Some(*token),
                _ => None,
            })
        }

        /// Turns until `token` has received `length_bytes` in all, which are taken.
        fn received(&mut self, token: Token, length_bytes: usize) -> Vec<u8> {
            let mut bytes = Vec::new();
            while bytes.len() < length_bytes {
                bytes.extend(self.until("Received", |event| match event {
                    Event::Received { token: from, bytes } if *from == token => Some(bytes.to_vec()),
                    _ => None,
                }));
            }
            bytes
        }

        /// What was told and not taken.
        fn names(&self) -> Vec<&'static str> {
            self.told.iter().map(name).collect()
        }

        /// Lets the driver say whatever it still has to say: two turns that bring nothing.
        fn settle(&mut self) {
            let mut quiet = 0;
            while quiet < 2 {
                let before = self.told.len();
                self.turn(Duration::from_millis(5));
                quiet = if self.told.len() == before { quiet + 1 } else { 0 };
            }
        }

        fn listener(&mut self) -> (Token, SocketAddr) {
            let (token, addr) = self.driver.listen(&any_port()).unwrap();
            self.driver.accept(token, true);
            (token, addr)
        }

        /// A connection and the peer's end of it, receiving.
        fn pair(&mut self) -> (Token, TcpStream) {
            let (listener, addr) = self.listener();
            let peer = peer(addr);
            let token = self.accepted();
            self.driver.close(listener, CloseKind::Orderly);
            self.driver.receive(token, true);
            (token, peer)
        }
    }

    fn name(event: &Event) -> &'static str {
        match event {
            Event::Accepted { .. } => "Accepted",
            Event::Connected { .. } => "Connected",
            Event::Received { .. } => "Received",
            Event::PeerFinished { .. } => "PeerFinished",
            Event::Sent { .. } => "Sent",
            Event::Failed { .. } => "Failed",
            Event::AcceptFailed { .. } => "AcceptFailed",
        }
    }

    fn peer(addr: SocketAddr) -> TcpStream {
        let peer = TcpStream::connect(addr).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.set_write_timeout(Some(PATIENCE)).unwrap();
        peer
    }

    fn reset(peer: TcpStream) {
        Socket::from(std::os::fd::OwnedFd::from(peer)).set_reset_on_close().unwrap();
    }

    #[test]
    fn a_byte_goes_in_and_out() {
        let mut bench = bench();
        let (token, mut peer) = bench.pair();
        peer.write_all(b"ping").unwrap();
        assert_eq!(bench.received(token, 4), b"ping");
        assert_eq!(bench.driver.try_send(token, b"pong").unwrap(), 4);
        let mut answer = [0; 4];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"pong");
    }

    #[test]
    fn bytes_come_before_the_fin_that_followed_them() {
        let mut bench = bench();
        for round in 0..20 {
            let (token, mut peer) = bench.pair();
            let sent: Vec<u8> = (0..100_000).map(|index| (index * 31 + round) as u8).collect();
            peer.write_all(&sent).unwrap();
            drop(peer);
            assert!(bench.received(token, sent.len()) == sent, "round {round}");
            assert_eq!(bench.names().iter().filter(|name| **name != "PeerFinished").count(), 0);
            assert_eq!(bench.peer_finished(), token);
            bench.settle();
            assert_eq!(bench.names(), [""; 0], "nothing follows the FIN");
            bench.driver.close(token, CloseKind::Orderly);
        }
    }

    #[test]
    fn an_edge_for_a_source_closed_in_the_same_batch_is_dropped() {
        let mut bench = bench();
        let (first, mut first_peer) = bench.pair();
        let (second, mut second_peer) = bench.pair();
        bench.settle();
        first_peer.write_all(b"1").unwrap();
        second_peer.write_all(b"2").unwrap();
        let deadline = Instant::now() + PATIENCE;
        while bench.driver.ready.len() < 2 && Instant::now() < deadline {
            bench.driver.wait(Some(Duration::from_millis(50))).unwrap();
        }
        let Some(Event::Received { token, .. }) = bench.driver.next() else { panic!("both have bytes") };
        let other = if token == first { second } else { first };
        bench.driver.close(other, CloseKind::Orderly);
        let (newcomer, _newcomer_peer) = detached_pair();
        let newcomer = bench.driver.adopt(newcomer).unwrap();
        assert_eq!(newcomer.index(), other.index(), "the slot is used again");
        bench.driver.receive(newcomer, true);
        assert!(bench.driver.next().is_none(), "the old edge means nothing to the new source");
    }

    /// A connected socket on its way to a driver, and its peer.
    fn detached_pair() -> (DetachedSocket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = peer(listener.local_addr().unwrap());
        let (socket, _) = listener.accept().unwrap();
        (DetachedSocket::Os(Socket::from(std::os::fd::OwnedFd::from(socket))), peer)
    }

    #[test]
    fn full_reads_stop_on_their_budget_and_go_on_without_sleeping() {
        let mut bench = bench_with(DriverConfig { read_buffer_bytes: 1024, ..DriverConfig::default() });
        let (token, mut peer) = bench.pair();
        bench.settle();
        bench.driver.receive(token, false);
        let sent: Vec<u8> = (0..10_500).map(|index| (index / 7) as u8).collect();
        peer.write_all(&sent).unwrap();
        wait_for_bytes(&bench.driver, token, sent.len());
        bench.settle();
        bench.driver.receive(token, true);
        let mut received = Vec::new();
        let begin = Instant::now();
        for expected in [4, 4, 3, 0] {
            bench.turn(if expected == 0 { Duration::ZERO } else { PATIENCE });
            assert_eq!(bench.told.len(), expected);
            for event in bench.told.drain(..) {
                let Event::Received { bytes, .. } = event else { panic!("only bytes were sent") };
                received.extend_from_slice(&bytes);
            }
        }
        assert!(begin.elapsed() < PATIENCE, "work was carried: no wait slept");
        assert!(received == sent);
    }

    /// Until the kernel has `count` bytes for `token`.
    fn wait_for_bytes(driver: &MioDriver, token: Token, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        let socket = driver.sources.get(token).unwrap().socket();
        while rustix::io::ioctl_fionread(socket).unwrap() < count as u64 {
            assert!(Instant::now() < deadline, "the bytes never came");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_a_turn_leaves_is_there_in_the_next_one() {
        let mut bench = bench();
        let pairs: Vec<_> = (0..8).map(|_| bench.pair()).collect();
        bench.settle();
        for (_, peer) in &pairs {
            (&*peer).write_all(b"x").unwrap();
        }
        let mut seen = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while seen.len() < pairs.len() {
            assert!(Instant::now() < deadline, "only {seen:?}");
            bench.driver.wait(Some(Duration::from_millis(50))).unwrap();
            // A shard that is out of time fetches one event only.
            if let Some(Event::Received { token, .. }) = bench.driver.next() {
                seen.push(token);
            }
        }
        seen.sort();
        let mut expected: Vec<_> = pairs.iter().map(|(token, _)| *token).collect();
        expected.sort();
        assert_eq!(seen, expected);
    }

    #[test]
    fn nothing_is_read_while_receiving_is_off_and_nothing_is_lost() {
        let mut bench = bench();
        let (token, mut peer) = bench.pair();
        bench.driver.receive(token, false);
        peer.write_all(b"kept ").unwrap();
        wait_for_bytes(&bench.driver, token, 5);
        bench.settle();
        assert_eq!(bench.names(), [""; 0]);
        peer.write_all(b"back").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        bench.settle();
        assert_eq!(bench.names(), [""; 0], "not even the FIN, which is behind bytes");
        bench.driver.receive(token, true);
        assert_eq!(bench.received(token, 9), b"kept back");
        assert_eq!(bench.peer_finished(), token);
    }

    #[test]
    fn pausing_between_two_reads_of_one_turn_holds_the_rest_back() {
        let mut bench = bench_with(DriverConfig { read_buffer_bytes: 4, ..DriverConfig::default() });
        let (token, mut peer) = bench.pair();
        peer.write_all(b"12345678901234").unwrap();
        wait_for_bytes(&bench.driver, token, 14);
        let mut received = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while received.len() < 14 {
            assert!(Instant::now() < deadline, "stopped after {received:?}");
            bench.driver.wait(Some(Duration::from_millis(50))).unwrap();
            if let Some(Event::Received { bytes, .. }) = bench.driver.next() {
                received.extend_from_slice(&bytes);
                bench.driver.receive(token, false);
                assert!(bench.driver.next().is_none(), "paused: the rest stays in the kernel");
                bench.driver.receive(token, true);
                assert!(bench.driver.next().is_none(), "resumed: the rest is the next turn's");
            }
        }
        assert_eq!(received, b"12345678901234");
    }

    #[test]
    fn a_reset_is_told_while_receiving_is_off_and_ends_all_events() {
        for unread in [&b""[..], b"never read"] {
            let mut bench = bench();
            let (token, mut peer) = bench.pair();
            bench.driver.receive(token, false);
            peer.write_all(unread).unwrap();
            bench.settle();
            reset(peer);
            let (failed, error) = bench.failed();
            assert_eq!((failed, error.kind()), (token, io::ErrorKind::ConnectionReset));
            bench.driver.receive(token, true);
            bench.settle();
            assert_eq!(bench.names(), [""; 0], "a failed source is silent");
            assert_eq!(bench.driver.census().connections, 1, "and open until closed");
        }
    }

    #[test]
    fn a_reset_comes_after_the_bytes_that_arrived_before_it() {
        let mut bench = bench();
        let (token, mut peer) = bench.pair();
        peer.write_all(b"last words").unwrap();
        wait_for_bytes(&bench.driver, token, 10);
        reset(peer);
        assert_eq!(bench.received(token, 10), b"last words");
        let (failed, error) = bench.failed();
        assert_eq!((failed, error.kind()), (token, io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn a_reset_after_the_fin_is_told_as_well() {
        let mut bench = bench();
        let (token, peer) = bench.pair();
        drop(peer);
        assert_eq!(bench.peer_finished(), token);
        assert_eq!(bench.driver.try_send(token, b"to nobody").unwrap(), 9);
        let (failed, error) = bench.failed();
        assert_eq!((failed, error.kind()), (token, io::ErrorKind::BrokenPipe));
        assert_eq!(bench.driver.try_send(token, b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_short_send_is_followed_by_sent_and_a_full_one_is_not() {
        let mut bench = bench();
        let (token, mut peer) = bench.pair();
        assert_eq!(bench.driver.try_send(token, b"all of it").unwrap(), 9);
        bench.settle();
        assert_eq!(bench.names(), [""; 0]);
        peer.read_exact(&mut [0; 9]).unwrap();

        let block: Vec<u8> = (0..1_000_000).map(|index| (index / 3) as u8).collect();
        let mut taken = 0;
        // What fits into the kernel's buffers first; then what the peer makes room for.
        loop {
            let sent_bytes = bench.driver.try_send(token, &block[taken % block.len()..]).unwrap();
            taken += sent_bytes;
            if sent_bytes == 0 {
                break;
            }
        }
        bench.settle();
        assert_eq!(bench.names(), [""; 0], "the peer has read nothing");
        let mut read = vec![0; taken];
        peer.read_exact(&mut read).unwrap();
        assert!(read.iter().enumerate().all(|(index, byte)| *byte == block[index % block.len()]));
        assert_eq!(bench.sent(), token);
        bench.settle();
        assert_eq!(bench.names(), [""; 0], "told once");
    }

    #[test]
    fn queued_output_goes_out_in_order_across_many_short_sends() {
        let mut bench = bench();
        let (token, mut peer) = bench.pair();
        let mut output = Output::new();
        let mut expected = Vec::new();
        for index in 0..600_usize {
            let piece: Vec<u8> = (0..20_000 - index * 7).map(|offset| (index + offset) as u8).collect();
            output.push(&piece);
            expected.extend(piece);
        }
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            peer.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut blocked = 0;
        while bench.driver.submit(token, &mut output).unwrap() == Submitted::Blocked {
            blocked += 1;
            assert_eq!(bench.sent(), token);
        }
        assert!(output.is_empty() && blocked > 0, "11 MB do not fit into a socket");
        bench.driver.shutdown_write(token).unwrap();
        assert!(reader.join().unwrap() == expected);
        assert_eq!(bench.peer_finished(), token);
    }

    #[test]
    fn bytes_behind_urgent_data_are_not_forgotten() {
        let mut bench = bench();
        let (token, mut peer) = bench.pair();
        bench.settle();
        bench.driver.receive(token, false);
        peer.write_all(b"before ").unwrap();
        rustix::net::send(&peer, b"!", rustix::net::SendFlags::OOB).unwrap();
        peer.write_all(b"after").unwrap();
        wait_for_bytes(&bench.driver, token, 7);
        bench.settle();
        bench.driver.receive(token, true);
        assert_eq!(bench.received(token, 12), b"before after", "the urgent byte itself is ignored");
        peer.write_all(b".").unwrap();
        assert_eq!(bench.received(token, 1), b".");
    }

    #[test]
    fn accepting_is_capped_per_turn_and_nobody_is_lost() {
        let mut bench = bench();
        let (listener, addr) =
            bench.driver.listen(&ListenSpec { accepts_per_turn: 2, ..any_port() }).unwrap();
        let _peers: Vec<_> = (0..5).map(|_| peer(addr)).collect();
        bench.settle();
        assert_eq!(bench.names(), [""; 0], "not switched on yet");
        bench.driver.accept(listener, true);
        let mut per_turn = Vec::new();
        while per_turn.iter().sum::<usize>() < 5 {
            bench.turn(PATIENCE);
            per_turn.push(bench.told.drain(..).count());
        }
        assert_eq!(per_turn, [2, 2, 1]);
    }

    #[test]
    fn a_connection_that_came_while_accepting_was_off_is_accepted_later() {
        let mut bench = bench();
        let (listener, addr) = bench.listener();
        let _first = peer(addr);
        bench.accepted();
        bench.driver.accept(listener, false);
        let second = peer(addr);
        bench.settle();
        assert_eq!(bench.names(), [""; 0]);
        bench.driver.accept(listener, true);
        bench.until("Accepted", |event| match event {
            Event::Accepted { peer, .. } => (*peer == second.local_addr().unwrap()).then_some(()),
            _ => None,
        });
    }

    #[test]
    fn accepted_connections_have_nodelay_and_keepalive() {
        let mut bench = bench();
        let (token, _peer) = bench.pair();
        let socket = bench.driver.sources.get(token).unwrap().socket();
        use rustix::net::sockopt;
        assert!(sockopt::tcp_nodelay(socket).unwrap());
        assert!(sockopt::socket_keepalive(socket).unwrap());
        assert_eq!(sockopt::tcp_keepidle(socket).unwrap(), Duration::from_secs(60));
        assert_eq!(sockopt::tcp_keepintvl(socket).unwrap(), Duration::from_secs(10));
        assert_eq!(sockopt::tcp_keepcnt(socket).unwrap(), 6);
        assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), 90_000);
        bench.driver.set_option(token, SocketOption::NoDelay(false)).unwrap();
        bench.driver.set_option(token, SocketOption::KeepAlive(false)).unwrap();
        let socket = bench.driver.sources.get(token).unwrap().socket();
        assert!(!sockopt::tcp_nodelay(socket).unwrap());
        assert!(!sockopt::socket_keepalive(socket).unwrap());
    }

    #[test]
    fn a_member_that_closes_after_its_queue_was_accepted_resets_nobody() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let mut leaving = bench();
            let mut staying = bench();
            let spec = ListenSpec { addr: host.parse().unwrap(), ..any_port() };
            let (first, addr) = leaving.driver.listen(&spec).unwrap();
            leaving.driver.share_port(first).unwrap();
            let (second, _) = staying.driver.listen(&ListenSpec { addr, join: true, ..spec }).unwrap();
            let mut peers: Vec<_> = (0..60).map(|_| peer(addr)).collect();
            for peer in &mut peers {
                peer.write_all(b"?").unwrap();
            }

            leaving.driver.refuse_handshakes(first).unwrap();
            let taken = leaving.driver.accept_queue(first);
            leaving.driver.close(first, CloseKind::Orderly);
            staying.driver.accept(second, true);

            let mut of_leaving = Vec::new();
            for (bench, count, tokens) in
                [(&mut leaving, taken, &mut of_leaving), (&mut staying, 60 - taken, &mut Vec::new())]
            {
                for _ in 0..count {
                    let token = bench.accepted();
                    bench.driver.receive(token, true);
                    assert_eq!(bench.received(token, 1), b"?");
                    assert_eq!(bench.driver.try_send(token, b"!").unwrap(), 1);
                    tokens.push(token);
                }
            }
            for peer in &mut peers {
                let mut answer = [0];
                peer.read_exact(&mut answer).unwrap();
            }
            assert!(taken > 0 && taken < 60, "both members had their share: {taken} of 60");
            assert_eq!(of_leaving.len(), taken);
        }
    }

    #[test]
    fn out_of_descriptors_nobody_is_lost_and_nothing_spins() {
        // The limit is the process's, and other tests run in this one: do it in a child.
        const IN_CHILD: &str = "SHARDWISE_TEST_OUT_OF_DESCRIPTORS";
        if std::env::var_os(IN_CHILD).is_none() {
            let module = module_path!().split_once("::").unwrap().1;
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .arg("--exact")
                .arg(format!("{module}::out_of_descriptors_nobody_is_lost_and_nothing_spins"))
                .env(IN_CHILD, "1")
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && told.contains("1 passed"), "{told}");
            return;
        }
        let mut bench = bench();
        let (listener, addr) = bench.driver.listen(&any_port()).unwrap();
        let mut peers: Vec<_> = (0..3).map(|_| peer(addr)).collect();
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = Some(64);
        setrlimit(Resource::Nofile, limit).unwrap();
        let mut ballast: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();

        bench.driver.accept(listener, true);
        let begin = Instant::now();
        for _ in 0..6 {
            // One turn makes one futile call at most, and sleeps until the retry.
            bench.turn(PATIENCE);
        }
        assert!(begin.elapsed() >= Duration::from_millis(450), "six tries in {:?}", begin.elapsed());
        assert_eq!(bench.names(), ["AcceptFailed"], "told once a second");
        bench.told.clear();

        // Freed behind the driver's back: the retry finds out.
        ballast.pop();
        let first = bench.accepted();
        bench.settle();
        // Closed by the driver: it tries again at once. The third is served after the second.
        bench.driver.close(first, CloseKind::Orderly);
        let second = bench.accepted();
        bench.driver.close(second, CloseKind::Orderly);
        let third = bench.accepted();
        bench.told.clear();
        for _ in 0..2 {
            bench.turn(Duration::from_millis(120));
        }
        assert_eq!(bench.names(), [""; 0], "still none free, but nobody waits");
        assert_eq!(bench.driver.try_send(third, b"!").unwrap(), 1);
        let answers: Vec<_> = peers.iter_mut().map(|peer| peer.read(&mut [0; 2]).unwrap()).collect();
        assert_eq!(answers, [0, 0, 1]);
    }

    #[test]
    fn a_connection_is_made_and_what_came_with_it_is_received() {
        let mut bench = bench();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let bind_addr = Some("127.0.0.2:0".parse().unwrap());
        let token = bench.driver.connect(&ConnectSpec { addr, bind_addr }).unwrap();
        assert_eq!(bench.driver.try_send(token, b"early").unwrap_err().kind(), io::ErrorKind::NotConnected);
        let (mut peer, from) = listener.accept().unwrap();
        assert_eq!(from.ip().to_string(), "127.0.0.2");
        peer.write_all(b"welcome").unwrap();
        wait_for_bytes(&bench.driver, token, 7);
        assert_eq!(bench.connected(), token);
        assert_eq!(bench.driver.local_addr(token).unwrap(), from);
        assert_eq!(bench.driver.peer_addr(token).unwrap(), addr);
        bench.driver.receive(token, true);
        assert_eq!(bench.received(token, 7), b"welcome");
    }

    #[test]
    fn a_refused_connection_fails_by_event_and_stays_silent() {
        let mut bench = bench();
        let unused = unused_addr();
        let token = bench.driver.connect(&ConnectSpec { addr: unused, bind_addr: None }).unwrap();
        let (failed, error) = bench.failed();
        assert_eq!((failed, error.kind()), (token, io::ErrorKind::ConnectionRefused));
        bench.settle();
        assert_eq!(bench.names(), [""; 0]);
        bench.driver.close(token, CloseKind::Orderly);
        assert_eq!(bench.driver.census(), Census::default());
    }

    /// Nobody listens there: the host address is these tests' own, and the kernel spreads the ports it picks.
    fn unused_addr() -> SocketAddr {
        TcpListener::bind("127.99.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn a_connection_to_itself_is_a_refusal() {
        let mut bench = bench();
        let addr = unused_addr();
        let token = bench.driver.connect(&ConnectSpec { addr, bind_addr: Some(addr) }).unwrap();
        let reason = bench.until("Failed", |event| match event {
            Event::Failed { token: failed, error } if *failed == token => Some(error.to_string()),
            _ => None,
        });
        assert_eq!(reason, format!("connected to itself: nobody listens at {addr}"));
    }

    #[test]
    fn a_released_connection_goes_on_under_another_driver() {
        let mut old_home = bench();
        let mut new_home = bench();
        let (token, mut peer) = old_home.pair();
        old_home.driver.receive(token, false);
        peer.write_all(b"on the way").unwrap();
        wait_for_bytes(&old_home.driver, token, 10);
        old_home.settle();
        let detached = old_home.driver.release(token).unwrap();
        let moved = new_home.driver.adopt(detached).unwrap();
        assert!(old_home.driver.release(token).is_none());
        new_home.driver.receive(moved, true);
        assert_eq!(new_home.received(moved, 10), b"on the way");
        peer.write_all(b"more").unwrap();
        assert_eq!(new_home.received(moved, 4), b"more");
        old_home.settle();
        assert_eq!(old_home.names(), [""; 0], "the old home hears no more of it");
        assert_eq!(old_home.driver.census(), Census::default());
    }

    #[test]
    fn discarding_counts_up_to_its_limit_and_sees_the_fin() {
        let mut bench = bench();
        let (token, mut peer) = bench.pair();
        bench.driver.receive(token, false);
        assert_eq!(bench.driver.discard(token, 100).unwrap(), Discarded::Waiting { bytes: 0 });
        peer.write_all(&[7; 150]).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        wait_for_bytes(&bench.driver, token, 150);
        assert_eq!(bench.driver.discard(token, 100).unwrap(), Discarded::Waiting { bytes: 100 });
        let deadline = Instant::now() + PATIENCE;
        while bench.driver.discard(token, 100).unwrap() != Discarded::PeerFinished {
            assert!(Instant::now() < deadline, "the FIN was never seen");
        }
        bench.driver.receive(token, true);
        bench.settle();
        assert_eq!(bench.names(), [""; 0], "the FIN was told by the discarding");
    }

    #[test]
    fn an_orderly_close_sends_fin_and_the_other_kind_a_reset() {
        let mut bench = bench();
        let (token, mut peer) = bench.pair();
        bench.driver.close(token, CloseKind::Orderly);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        let (token, mut peer) = bench.pair();
        bench.driver.close(token, CloseKind::Reset);
        assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_token_whose_source_is_gone_is_harmless() {
        let mut bench = bench();
        let (token, _peer) = bench.pair();
        bench.driver.close(token, CloseKind::Orderly);
        let driver = &mut bench.driver;
        driver.close(token, CloseKind::Reset);
        driver.receive(token, true);
        driver.accept(token, true);
        assert_eq!(driver.accept_queue(token), 0);
        assert!(driver.release(token).is_none());
        let refusals = [
            driver.try_send(token, b"x").map(drop),
            driver.submit(token, &mut Output::new()).map(drop),
            driver.shutdown_write(token),
            driver.discard(token, 1).map(drop),
            driver.share_port(token),
            driver.refuse_handshakes(token),
            driver.set_option(token, SocketOption::NoDelay(true)),
            driver.local_addr(token).map(drop),
            driver.peer_addr(token).map(drop),
        ];
        for refusal in refusals {
            assert_eq!(refusal.unwrap_err().kind(), io::ErrorKind::NotConnected);
        }
        assert_eq!(driver.census(), Census::default());
    }

    #[test]
    fn a_wake_ends_the_wait_it_meets_or_the_next_one() {
        let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
        let waker = driver.waker();
        waker.wake();
        driver.wait(None).unwrap();
        let from_elsewhere = Arc::clone(&waker);
        let other = std::thread::spawn(move || from_elsewhere.wake());
        driver.wait(None).unwrap();
        other.join().unwrap();
        assert!(driver.next().is_none(), "a wake is no event");
        drop(driver);
        waker.wake();
        assert_eq!(Arc::strong_count(&waker), 1, "the eventfd lives for the handle alone now");
    }

    #[test]
    fn a_timeout_below_a_millisecond_sleeps_and_zero_does_not() {
        let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
        let timeout = Duration::from_micros(300);
        let begin = Instant::now();
        driver.wait(Some(timeout)).unwrap();
        assert!(begin.elapsed() >= timeout);
        assert!(driver.now() >= begin + timeout, "the clock was read at the end");
        let before = driver.now();
        driver.wait(Some(Duration::ZERO)).unwrap();
        assert!(driver.now() > before && driver.read_clock() >= before);
    }

    #[test]
    fn leases_are_counted_until_they_are_dropped() {
        let mut bench = bench();
        let (token, mut peer) = bench.pair();
        peer.write_all(b"x").unwrap();
        assert_eq!(bench.received(token, 1), b"x");
        assert_eq!(bench.driver.census(), Census { listeners: 0, connections: 1, leases: 0 });
        peer.write_all(b"y").unwrap();
        while bench.told.is_empty() {
            bench.turn(PATIENCE);
        }
        assert_eq!(bench.driver.census().leases, 1);
        bench.told.clear();
        assert_eq!(bench.driver.census().leases, 0);
        bench.driver.close(token, CloseKind::Orderly);
    }

    #[test]
    fn random_bits_do_not_repeat() {
        let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
        let mut other = MioDriver::new(DriverConfig::default()).unwrap();
        let bits: std::collections::HashSet<_> =
            (0..100).flat_map(|_| [driver.random(), other.random()]).collect();
        assert_eq!(bits.len(), 200);
    }

    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Source>() <= 16, "{}", size_of::<Source>());
    }
}
