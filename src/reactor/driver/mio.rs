//! The readiness driver: epoll, through mio, whose one door this is. It imitates completions, and
//! decides nothing about what bytes mean or whom to serve.
//!
//! # Edges
//! A source is registered once, edge-triggered, for both directions, and never touched again. An edge is told
//! once, so what it promised is remembered in the source (`unread`) until the kernel has said that there is
//! no more: by a short read, or by `EAGAIN`. Four rules keep that sound:
//! * A short read ends a connection's turn without the call that would only find `EAGAIN` (`epoll(7)`, Q9),
//!   unless the edge came with a hang-up, an error or urgent data: then reading goes on to the end. (A read
//!   stops at the urgent mark with more behind it.)
//! * What stops on its budget is carried into the next turn, and the next `wait` does not sleep.
//! * `EAGAIN` is rare with these rules, so it is checked: if `poll(2)` disagrees, a spurious one would else
//!   wait for an edge that never comes.
//! * An edge for a token of an older generation is dropped: its source was closed earlier in the same batch.
//!
//! # Out of descriptors
//! When `accept4` says EMFILE, ENFILE, ENOBUFS or ENOMEM while a peer waits, that peer stays in the kernel's
//! queue, where it loses nothing; [`Event::AcceptFailed`] tells, at most once a second and listener.
//! Accepting pauses for all listeners of this driver – the shortage is the process's – and is tried again
//! after 100 ms, or 20 ms after the failure once this driver has closed a descriptor: at most 50 futile calls
//! a second. There is no reserved descriptor: it could only serve to hang up on peers that a moment's
//! patience would serve.

mod connection;
mod datagram;
mod listener;
mod turn;
mod unix;
mod watched;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};

use self::connection::{Connection, Phase, connection_interest, send_again};
use self::datagram::Datagram;
use self::listener::{Accept, Listener, ListenerKind, Shortage};
use self::turn::{News, Readiness, Turn};
use self::unix::Knocking;
use self::watched::WatchedFd;
use super::{
    Census, CloseKind, ConnectSpec, DetachedSocket, Driver, DriverConfig, Emptied, Event, ListenSpec,
    SocketOption, Submitted,
};
use crate::addr::Addr;
use crate::reactor::buffer::Output;
use crate::reactor::datagrams::BatchPool;
use crate::reactor::lease::LeasePool;
use crate::reactor::random::Random;
use crate::reactor::registry::Registry;
use crate::reactor::token::Token;
use crate::reactor::waker::{DriverWaker, Wake};
use crate::sys::linux;
use crate::sys::return_stack;
use crate::sys::socket::{ListenerRole, Socket};

/// A [`Driver`] over `mio::Poll`. See the head of this file for its rules.
pub(crate) struct MioDriver {
    poll: Poll,
    events: Events,
    waker: Arc<MioWaker>,
    sources: Registry<Source>,
    listener_count: usize,
    turn: Turn,
    /// Clients of UNIX listeners whose queue is full.
    knocking: Knocking,
    shortage: Shortage,
    pool: Rc<LeasePool>,
    batches: Rc<BatchPool>,
    random: Random,
    now: Instant,
}

impl MioDriver {
    /// A driver without sources.
    ///
    /// # Errors
    /// When the kernel has no descriptors left for the poll or the waker, or no random bits for a seed.
    /// # Panics
    /// When a size in `config` is 0.
    pub(crate) fn new(config: DriverConfig) -> io::Result<Self> {
        assert!(config.events_per_wait > 0, "a wait must be able to tell something");
        return_stack::detect();
        let poll = Poll::new()?;
        let waker = Arc::new(MioWaker(mio::Waker::new(poll.registry(), WAKER)?));
        Ok(MioDriver {
            poll,
            events: Events::with_capacity(config.events_per_wait),
            waker,
            sources: Registry::new(),
            listener_count: 0,
            turn: Turn {
                ready: Vec::with_capacity(config.events_per_wait),
                head: 0,
                served: 0,
                carried: Vec::new(),
                happened: VecDeque::new(),
            },
            knocking: Knocking::default(),
            shortage: Shortage::none(),
            pool: LeasePool::new(config.read_buffer_bytes),
            batches: BatchPool::new(),
            random: Random::new(linux::random_seed()?),
            now: Instant::now(),
        })
    }

    /// Gives `source` a slot and registers it, for good.
    fn add(&mut self, source: Source) -> io::Result<Token> {
        let interest = match source {
            Source::Connection(_) => connection_interest(),
            Source::Listener(_) | Source::Datagram(_) | Source::Watched(_) => Interest::READABLE,
        };
        let fd = source.socket()?.as_fd().as_raw_fd();
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

    fn add_listener(&mut self, listener: Listener) -> io::Result<Token> {
        let token = self.add(Source::Listener(Box::new(listener)))?;
        self.listener_count += 1;
        Ok(token)
    }

    fn source(&self, token: Token) -> io::Result<&Source> {
        self.sources.get(token).ok_or_else(not_connected)
    }

    #[inline]
    fn connected_mut(&mut self, token: Token) -> io::Result<&mut Connection> {
        match self.sources.get_mut(token) {
            Some(Source::Connection(connection)) if connection.phase.stands() => Ok(connection),
            _ => Err(not_connected()),
        }
    }

    fn listener_mut(&mut self, token: Token) -> io::Result<&mut Listener> {
        match self.sources.get_mut(token) {
            Some(Source::Listener(listener)) => Ok(listener),
            _ => Err(not_connected()),
        }
    }
}

impl Driver for MioDriver {
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

    fn listen(&mut self, spec: &ListenSpec) -> io::Result<(Token, SocketAddr)> {
        let role = if spec.join { ListenerRole::Joiner } else { ListenerRole::First };
        let socket = Socket::bind_listener(spec.addr, spec.backlog, role)?;
        // Accepted sockets inherit both, which saves six calls for each of them.
        socket.set_nodelay(true)?;
        socket.set_keepalive(true)?;
        let addr = socket.local_addr()?;
        let token = self.add_listener(Listener::new(socket, ListenerKind::Tcp, spec.accepts_per_turn))?;
        Ok((token, addr))
    }

    fn share_port(&mut self, listener: Token) -> io::Result<()> {
        self.source(listener)?.socket()?.share_port()
    }

    fn accept(&mut self, token: Token, on: bool) {
        let Ok(listener) = self.listener_mut(token) else { return };
        listener.accepting = on;
        if on && listener.unread && !listener.carried && !listener.paused {
            listener.carried = true;
            self.turn.carried.push(token);
        }
    }

    fn refuse_handshakes(&mut self, listener: Token) -> io::Result<()> {
        self.listener_mut(listener)?.refuse_handshakes()
    }

    /// Stops early, with an [`Event::AcceptFailed`], when descriptors run out. What it took is told by `next`
    /// even if the listener is closed before.
    fn accept_queue(&mut self, listener: Token) -> Emptied {
        let mut accepted = 0;
        let mut bad_in_a_row = 0;
        while bad_in_a_row < BAD_CONNECTIONS_IN_A_ROW_MAX {
            match self.accept_one(listener) {
                Accept::One(event) => {
                    self.turn.happened.push_back(event);
                    accepted += 1;
                    bad_in_a_row = 0;
                }
                Accept::Again => bad_in_a_row += 1,
                Accept::Nothing => return Emptied { accepted, more: false },
                Accept::Ended(event) => {
                    self.turn.happened.push_back(event);
                    return Emptied { accepted, more: false };
                }
                Accept::Paused(report) => {
                    self.turn.happened.extend(report);
                    break;
                }
            }
        }
        Emptied { accepted, more: true }
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
        let socket = socket.into_os()?;
        socket.make_nonblocking()?;
        let connection = match socket.is_unix()? {
            true => Connection::unix(socket, Phase::Open),
            false => Connection::new(socket, Phase::Open),
        };
        self.add(Source::Connection(connection))
    }

    fn release(&mut self, token: Token) -> Option<DetachedSocket> {
        match self.sources.get(token)? {
            Source::Connection(connection) if connection.phase.stands() => {
                // Only a descriptor that is not watched may be given away; if the kernel does not know it,
                // all is well.
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
        let connection = match self.sources.get_mut(token) {
            Some(Source::Connection(connection)) => connection,
            Some(Source::Datagram(source)) => {
                source.receiving = on;
                if on && source.unread {
                    source.carry(token, &mut self.turn);
                }
                return;
            }
            _ => return,
        };
        connection.receiving = on;
        // The edges came while nobody looked, and will not come again. A connection that has just been
        // registered has none yet: its first edge is still to come.
        let has_news = if on { connection.unread } else { connection.errored };
        let can_tell = connection.phase == Phase::Open && !connection.carried;
        if has_news && can_tell {
            connection.carry(token, &mut self.turn);
        }
    }

    #[inline]
    fn try_send(&mut self, token: Token, bytes: &[u8]) -> io::Result<usize> {
        let connection = self.connected_mut(token)?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let sent_bytes = match connection.socket.send(bytes) {
            Ok(sent_bytes) => sent_bytes,
            Err(error) => send_again(&connection.socket, error, |socket| socket.send(bytes))?,
        };
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
            let send = |socket: &Socket| match offered {
                [only] => socket.send(only),
                _ => socket.send_vectored(offered),
            };
            let sent_bytes = match send(&connection.socket) {
                Ok(sent_bytes) => sent_bytes,
                Err(error) => send_again(&connection.socket, error, send)?,
            };
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
            Source::Watched(watched) => self.unwatch(watched),
            Source::Connection(_) | Source::Datagram(_) => {}
        }
        // Closing takes the descriptor out of the kernel's interest list: one call less than deregistering
        // first.
        drop(source);
        self.shortage.descriptor_closed();
    }

    fn local_addr(&self, token: Token) -> io::Result<Addr> {
        self.source(token)?.socket()?.local()
    }

    fn set_option(&mut self, token: Token, option: SocketOption) -> io::Result<()> {
        let socket = self.source(token)?.socket()?;
        match option {
            SocketOption::NoDelay(on) => socket.set_nodelay(on),
            SocketOption::KeepAlive(on) => socket.set_keepalive(on),
        }
    }

    fn random(&mut self) -> u64 {
        self.random.bits()
    }

    /// A sleep is rounded up to whole milliseconds. It may end early, without news, to look whether
    /// descriptors are to be had again.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.turn.begin();
        // A shard that serves less than what comes still has all of the last batch: more would only pile up.
        let may_poll = self.turn.ready.len() < self.events.capacity();
        for token in self.turn.carried.drain(..) {
            match self.sources.get_mut(token) {
                Some(Source::Connection(connection)) => connection.carried = false,
                Some(Source::Listener(listener)) => listener.carried = false,
                Some(Source::Datagram(source)) => source.carried = false,
                Some(Source::Watched(_)) | None => continue,
            }
            self.turn.ready.push(News { token, readiness: Readiness::NONE });
        }
        let has_work = !self.turn.ready.is_empty() || !self.turn.happened.is_empty();
        let timeout = if has_work { Some(Duration::ZERO) } else { self.longest_rest(timeout) };
        let polled = if may_poll {
            self.poll.poll(&mut self.events, timeout)
        } else {
            self.events.clear();
            Ok(())
        };
        for event in &self.events {
            if event.token() != WAKER {
                let token = Token::from_bits(event.token().0 as u64);
                self.turn.ready.push(News { token, readiness: Readiness::of(event) });
            }
        }
        self.now = Instant::now();
        self.end_shortage();
        self.knock_again();
        match polled {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    #[inline]
    fn has_ready(&self) -> bool {
        self.turn.head < self.turn.ready.len() || !self.turn.happened.is_empty()
    }

    fn next(&mut self) -> Option<Event> {
        if !self.turn.happened.is_empty() {
            return self.turn.happened.pop_front();
        }
        while let Some(news) = self.turn.ready.get_mut(self.turn.head) {
            let token = news.token;
            // Taken, since an edge is told once: a connection that blocks while it is at the head waits for a
            // new one.
            let readiness = std::mem::replace(&mut news.readiness, Readiness::NONE);
            let event = match self.sources.get_mut(token) {
                Some(Source::Connection(connection)) if connection.only_reads(readiness) => {
                    match connection.read(&mut self.turn, &self.pool) {
                        Ok(bytes) => return Some(Event::Received { token, bytes }),
                        Err(end) => connection.after_read(token, end, &mut self.turn),
                    }
                }
                Some(Source::Connection(connection)) => {
                    connection.serve(token, readiness, &mut self.turn, &self.pool)
                }
                Some(Source::Listener(_)) => self.serve_listener(token, readiness),
                Some(Source::Datagram(source)) => {
                    source.serve(token, readiness, &mut self.turn, &self.batches, self.poll.registry())
                }
                Some(Source::Watched(_)) => self.serve_watched(token, readiness),
                None => {
                    self.turn.pass_head();
                    None
                }
            };
            if event.is_some() {
                return event;
            }
        }
        None
    }

    fn longest_rest(&self, wanted: Option<Duration>) -> Option<Duration> {
        if self.has_ready() || !self.turn.carried.is_empty() {
            return Some(Duration::ZERO);
        }
        self.knocking.clamp(self.shortage.clamp(wanted))
    }

    fn news_fd(&self) -> io::Result<OwnedFd> {
        linux::duplicate(&self.poll)
    }

    fn census(&self) -> Census {
        Census {
            listeners: self.listener_count,
            connections: self.sources.len() - self.listener_count,
            leases: self.pool.on_loan() + self.batches.on_loan(),
        }
    }
}

enum Source {
    /// Few, and large: boxed, so that the many are small.
    Listener(Box<Listener>),
    Connection(Connection),
    Datagram(Box<Datagram>),
    Watched(Box<WatchedFd>),
}

impl Source {
    /// # Errors
    /// For a descriptor of the application, which need not be a socket.
    fn socket(&self) -> io::Result<&Socket> {
        match self {
            Source::Listener(listener) => Ok(&listener.socket),
            Source::Connection(connection) => Ok(&connection.socket),
            Source::Datagram(source) => Ok(&source.socket),
            Source::Watched(_) => Err(not_connected()),
        }
    }
}

/// Shares ownership of the eventfd with the driver, so that a late wake writes to nobody else's descriptor.
struct MioWaker(mio::Waker);

impl Wake for MioWaker {
    fn wake(&self) {
        // One `write(2)`; a full counter is already a wake, and any other failure means that nobody can be
        // woken.
        let _ = self.0.wake();
    }
}

fn not_connected() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

const SLICES_PER_SEND: usize = 64;
/// Ends `accept_queue`, which has no budget, should the kernel do nothing but complain.
const BAD_CONNECTIONS_IN_A_ROW_MAX: usize = 1024;

/// No source has this name: slot numbers end below `u32::MAX`.
const WAKER: mio::Token = mio::Token(usize::MAX);
const _: () = assert!(size_of::<usize>() >= size_of::<u64>(), "a token fits the word that epoll carries");

#[cfg(test)]
mod tests;
