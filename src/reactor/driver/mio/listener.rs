//! One watched listener: accepting within a budget, and waiting while the process is out of descriptors.

use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::connection::{Connection, Phase};
use super::turn::{News, Readiness};
use super::{MioDriver, Source};
use crate::addr::Addr;
use crate::reactor::driver::Event;
use crate::reactor::token::Token;
use crate::sys::socket::Socket;
use crate::sys::unix::{self, Bound};

pub(super) struct Listener {
    /// Before the socket: a file is removed while the socket holds its number, which another one may have later.
    kind: ListenerKind,
    pub(super) socket: Socket,
    pub(super) accepts_per_turn: usize,
    pub(super) accepting: bool,
    /// Peers wait in the queue, or may.
    pub(super) unread: bool,
    /// It is on the driver's carry list.
    pub(super) carried: bool,
    /// It is on the list of those that wait for descriptors.
    pub(super) paused: bool,
    /// Shut, and that has not been told.
    pub(super) hung_up: bool,
    /// When [`Event::AcceptFailed`] was last told.
    pub(super) reported_at: Option<Instant>,
}

/// Where a listening socket comes from.
pub(super) enum ListenerKind {
    Tcp,
    /// With the file it is bound to, unless its name is an abstract one. Shut is a socket that takes nobody any more.
    Unix {
        bound: Option<Bound>,
        shut: bool,
    },
    /// Made elsewhere, where others may still have it.
    Adopted {
        is_unix: bool,
    },
}

impl Listener {
    pub(super) fn new(socket: Socket, kind: ListenerKind, accepts_per_turn: usize) -> Self {
        Listener {
            socket,
            kind,
            accepts_per_turn: accepts_per_turn.max(1),
            accepting: false,
            unread: false,
            carried: false,
            paused: false,
            hung_up: false,
            reported_at: None,
        }
    }
}

impl Listener {
    /// Takes nobody any more, if that is ours to say. Who waits can still be accepted.
    pub(super) fn refuse_handshakes(&mut self) -> io::Result<()> {
        match &mut self.kind {
            ListenerKind::Tcp => self.socket.refuse_handshakes(),
            ListenerKind::Unix { bound, shut } => {
                // The file first: who comes now finds whoever is bound there next, or nothing.
                drop(bound.take());
                *shut = true;
                unix::refuse_connections(&self.socket)
            }
            ListenerKind::Adopted { .. } => Ok(()),
        }
    }

    #[inline]
    fn accept(&self) -> io::Result<(Socket, Addr)> {
        match self.kind {
            ListenerKind::Tcp | ListenerKind::Adopted { is_unix: false } => {
                self.socket.accept().map(|(socket, peer)| (socket, peer.into()))
            }
            _ => self.socket.accept_unix().map(|(socket, peer)| (socket, peer.into())),
        }
    }

    /// Whether we have shut the socket ourselves: then there is nothing to tell.
    fn is_shut(&self) -> bool {
        matches!(self.kind, ListenerKind::Unix { shut: true, .. })
    }
}

impl MioDriver {
    /// Accepts one connection from the listener at the head. It stays there while it may have more for this
    /// turn.
    #[inline(never)]
    pub(super) fn serve_listener(&mut self, token: Token, readiness: Readiness) -> Option<Event> {
        let short_of_descriptors = self.shortage.lasts_at(self.now);
        let Ok(listener) = self.listener_mut(token) else { return None };
        // One that is shut may say that alone: only accepting tells the rest.
        if readiness.has(Readiness::READABLE) || readiness.is_unusual() {
            listener.unread = true;
        }
        listener.hung_up |= readiness.has(Readiness::TO_THE_END) && !listener.is_shut();
        if !listener.accepting || !listener.unread || listener.carried || listener.paused {
            self.turn.pass_head();
            return None;
        }
        if short_of_descriptors {
            listener.paused = true;
            self.shortage.listeners.push(token);
            self.turn.pass_head();
            return None;
        }
        // Bounded: in a reconnect storm endless accepting starves open connections until they time out and
        // reconnect too, which feeds the storm.
        while self.turn.served < self.listener_mut(token).ok()?.accepts_per_turn {
            self.turn.served += 1;
            match self.accept_one(token) {
                Accept::One(event) => return Some(event),
                Accept::Again => {}
                Accept::Nothing => {
                    self.turn.pass_head();
                    return None;
                }
                Accept::Ended(event) => {
                    self.turn.pass_head();
                    return Some(event);
                }
                Accept::Paused(report) => {
                    self.turn.pass_head();
                    return report;
                }
            }
        }
        self.listener_mut(token).ok()?.carried = true;
        self.turn.carried.push(token);
        self.turn.pass_head();
        None
    }

    /// One `accept4`, and what it means for the listener.
    pub(super) fn accept_one(&mut self, listener_token: Token) -> Accept {
        let now = self.now;
        let Ok(listener) = self.listener_mut(listener_token) else { return Accept::Nothing };
        let (error, hung_up) = match listener.accept() {
            Ok((socket, peer)) => {
                let connection = match peer {
                    Addr::Ip(_) => Connection::new(socket, Phase::Open),
                    Addr::Unix(_) => Connection::unix(socket, Phase::Open),
                };
                match self.add(Source::Connection(connection)) {
                    Ok(token) => {
                        return Accept::One(Event::Accepted { listener: listener_token, token, peer });
                    }
                    // Too many are watched: the same shortage, only that this peer has been hung up on.
                    Err(error) => (error, true),
                }
            }
            Err(error) => match Errno::from_io_error(&error) {
                // Somebody else has shut it, and nobody is left in the queue. A UNIX socket says it by its readiness alone.
                Some(Errno::AGAIN) if std::mem::take(&mut listener.hung_up) => {
                    listener.accepting = false;
                    let error = Errno::INVAL.into();
                    return Accept::Ended(Event::Failed { token: listener_token, error });
                }
                Some(Errno::AGAIN) => {
                    listener.unread = false;
                    return Accept::Nothing;
                }
                Some(Errno::INVAL) if listener.is_shut() => {
                    listener.unread = false;
                    return Accept::Nothing;
                }
                Some(errno) if CONNECTION_WAS_BAD.contains(&errno) => return Accept::Again,
                Some(errno) if SHORTAGES.contains(&errno) => (error, false),
                _ => {
                    // The listener itself is broken: trying again would spin.
                    listener.accepting = false;
                    listener.hung_up = false;
                    return Accept::Ended(Event::Failed { token: listener_token, error });
                }
            },
        };
        let Ok(listener) = self.listener_mut(listener_token) else { return Accept::Nothing };
        if !hung_up && !listener.socket.is_readable() {
            // The kernel looks for a descriptor before it looks into the queue. Nobody waits, so nothing is
            // wrong.
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
    pub(super) fn end_shortage(&mut self) {
        if self.shortage.listeners.is_empty() || self.shortage.lasts_at(self.now) {
            return;
        }
        while let Some(token) = self.shortage.listeners.pop() {
            if let Ok(listener) = self.listener_mut(token) {
                listener.paused = false;
                self.turn.ready.push(News { token, readiness: Readiness::NONE });
            }
        }
    }
}

/// What one `accept4` came to.
pub(super) enum Accept {
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
pub(super) struct Shortage {
    pub(super) listeners: Vec<Token>,
    pub(super) times: Option<ShortageTimes>,
}

pub(super) struct ShortageTimes {
    pub(super) failed_at: Instant,
    pub(super) retry_at: Instant,
}

impl Shortage {
    pub(super) fn none() -> Self {
        Shortage { listeners: Vec::new(), times: None }
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.times = Some(ShortageTimes { failed_at: now, retry_at: now + RETRY_INTERVAL });
    }

    pub(super) fn lasts_at(&self, now: Instant) -> bool {
        self.times.as_ref().is_some_and(|times| now < times.retry_at)
    }

    pub(super) fn descriptor_closed(&mut self) {
        if let Some(times) = &mut self.times {
            times.retry_at = times.retry_at.min(times.failed_at + RETRY_AFTER_CLOSE);
        }
    }

    /// The shorter of `timeout` and what is left until the retry.
    pub(super) fn clamp(&self, timeout: Option<Duration>) -> Option<Duration> {
        match &self.times {
            Some(times) if !self.listeners.is_empty() => {
                let left = times.retry_at.saturating_duration_since(Instant::now());
                Some(timeout.map_or(left, |timeout| timeout.min(left)))
            }
            _ => timeout,
        }
    }
}

pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(100);
pub(super) const RETRY_AFTER_CLOSE: Duration = Duration::from_millis(20);
pub(super) const ACCEPT_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// `accept(2)`: these tell of the connection at the head of the queue, not of the listener.
pub(super) const CONNECTION_WAS_BAD: [Errno; 9] = [
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
pub(super) const SHORTAGES: [Errno; 5] =
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::PERM];
