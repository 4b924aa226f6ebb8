//! One watched connection: what its edges told, what a turn reads from it, what its sends came to.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use mio::Interest;

use super::turn::{Readiness, Turn};
use crate::reactor::driver::Event;
use crate::reactor::lease::{Lease, LeasePool};
use crate::reactor::token::Token;
use crate::sys::socket::Socket;
use crate::sys::unix;

pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) phase: Phase,
    pub(super) receiving: bool,
    /// The kernel has bytes or a FIN for us, or may have: an edge told so, and no read has disproved it.
    pub(super) unread: bool,
    /// A short read proves nothing now: read until FIN, error or nothing.
    pub(super) to_the_end: bool,
    /// An edge told of an error that nobody has asked for yet.
    pub(super) errored: bool,
    /// A send came short: tell when there is room.
    pub(super) blocked: bool,
    /// It is on the driver's carry list.
    pub(super) carried: bool,
    pub(super) rights: Rights,
}

/// What becomes of descriptors that come with the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// None can come: it is no UNIX socket.
    Never,
    /// The kernel closes them.
    Closed,
    Told,
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    /// To a UNIX listener whose queue is full: tried again by time.
    Knocking,
    /// It stands, and that is still to be told.
    Connected,
    Open,
    /// FIN was told: no more reads.
    PeerFinished,
    /// The error was told: no more events.
    Failed,
}

impl Phase {
    /// Whether there is a connection, as far as the shard knows.
    #[inline]
    pub(super) fn stands(self) -> bool {
        !matches!(self, Phase::Connecting | Phase::Knocking | Phase::Connected)
    }
}

/// Why a read brought no bytes.
pub(super) enum ReadEnd {
    /// It was not tried: this turn has read its share.
    OutOfBudget,
    PeerFinished,
    Failed(io::Error),
}

impl Connection {
    /// One over IP.
    pub(super) fn new(socket: Socket, phase: Phase) -> Self {
        Connection {
            socket,
            phase,
            receiving: false,
            unread: false,
            to_the_end: false,
            errored: false,
            blocked: false,
            carried: false,
            rights: Rights::Never,
        }
    }

    pub(super) fn unix(socket: Socket, phase: Phase) -> Self {
        Connection { rights: Rights::Closed, ..Connection::new(socket, phase) }
    }

    /// Remembers what an edge told.
    fn note(&mut self, readiness: Readiness) {
        if readiness.has(Readiness::READABLE) {
            self.unread = true;
        }
        if readiness.has(Readiness::TO_THE_END) {
            self.unread = true;
            self.to_the_end = true;
        }
        if readiness.has(Readiness::ERROR) {
            self.errored = true;
        }
    }

    #[inline]
    fn reads(&self) -> bool {
        self.receiving && self.phase == Phase::Open
    }

    /// Whether `read` is all that [`Connection::serve`] would come to: the common case, told cheaply.
    #[inline]
    pub(super) fn only_reads(&self, readiness: Readiness) -> bool {
        let has_bytes = self.unread || readiness.has(Readiness::READABLE);
        let is_unusual = self.blocked | self.carried | (self.rights != Rights::Never);
        has_bytes && self.reads() && !is_unusual && !readiness.is_unusual()
    }

    /// Serves this connection, which is at the head of the turn, once. It stays there while it may have more
    /// to tell in this turn.
    pub(super) fn serve(
        &mut self,
        token: Token,
        readiness: Readiness,
        turn: &mut Turn,
        pool: &Rc<LeasePool>,
    ) -> Option<Event> {
        self.note(readiness);
        if !self.phase.stands() {
            return self.finish_connecting(token, turn);
        }
        if self.blocked && readiness.has(Readiness::WRITABLE) && self.phase != Phase::Failed {
            self.blocked = false;
            return Some(Event::Sent { token });
        }
        if self.errored && !self.reads() && self.phase != Phase::Failed {
            // Nobody reads, who would meet the error behind the last byte: ask for it.
            self.errored = false;
            if let Some(error) = stored_error(&self.socket) {
                self.phase = Phase::Failed;
                turn.pass_head();
                return Some(Event::Failed { token, error });
            }
        }
        // What is carried already has had its share of this turn.
        if self.reads() && self.unread && !self.carried {
            if self.rights != Rights::Never {
                return self.read_unix(token, turn, pool);
            }
            return match self.read(turn, pool) {
                Ok(bytes) => Some(Event::Received { token, bytes }),
                Err(end) => self.after_read(token, end, turn),
            };
        }
        turn.pass_head();
        None
    }

    /// One read, of an open connection that has something, or may have. What brings no bytes is for
    /// [`Connection::after_read`] to interpret.
    #[inline]
    pub(super) fn read(&mut self, turn: &mut Turn, pool: &Rc<LeasePool>) -> Result<Lease, ReadEnd> {
        self.read_by(turn, pool, Socket::recv)
    }

    #[inline]
    fn read_by(
        &mut self,
        turn: &mut Turn,
        pool: &Rc<LeasePool>,
        receive: impl FnOnce(&Socket, &mut [u8]) -> io::Result<usize>,
    ) -> Result<Lease, ReadEnd> {
        // Until this read has disproved it.
        self.unread = true;
        // Bounded: a fast sender would otherwise keep the loop for itself.
        if turn.served == READS_PER_TURN {
            return Err(ReadEnd::OutOfBudget);
        }
        turn.served += 1;
        let mut buffer = pool.take();
        match receive(&self.socket, &mut buffer) {
            Ok(received_bytes) if received_bytes > 0 => {
                if received_bytes < buffer.len() && !self.to_the_end {
                    self.unread = false;
                    turn.pass_head();
                }
                Ok(pool.lend(buffer, received_bytes))
            }
            nothing => {
                pool.give_back(buffer);
                Err(nothing.map_or_else(ReadEnd::Failed, |_| ReadEnd::PeerFinished))
            }
        }
    }

    /// What a read without bytes means for this connection, which is at the head of the turn.
    #[cold]
    pub(super) fn after_read(&mut self, token: Token, end: ReadEnd, turn: &mut Turn) -> Option<Event> {
        match end {
            ReadEnd::OutOfBudget => {
                self.carry(token, turn);
                turn.pass_head();
                None
            }
            ReadEnd::PeerFinished => {
                self.phase = Phase::PeerFinished;
                self.unread = false;
                Some(Event::PeerFinished { token })
            }
            ReadEnd::Failed(error) => {
                turn.pass_head();
                self.after_failed_read(token, error, turn)
            }
        }
    }

    #[cold]
    pub(super) fn after_failed_read(
        &mut self,
        token: Token,
        error: io::Error,
        turn: &mut Turn,
    ) -> Option<Event> {
        if error.kind() != io::ErrorKind::WouldBlock {
            self.phase = Phase::Failed;
            return Some(Event::Failed { token, error });
        }
        if self.socket.is_readable() {
            self.carry(token, turn);
        } else {
            self.unread = false;
            self.to_the_end = false;
        }
        None
    }

    /// As `read` and `after_read`, for a UNIX socket. The kernel ends a read behind the bytes that carried descriptors, also
    /// where nobody wants those: after one of these a short read proves nothing.
    #[inline(never)]
    fn read_unix(&mut self, token: Token, turn: &mut Turn, pool: &Rc<LeasePool>) -> Option<Event> {
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        let mut stopped_early = false;
        let told = self.rights == Rights::Told;
        let to_the_end = std::mem::replace(&mut self.to_the_end, true);
        let outcome = self.read_by(turn, pool, |socket, buffer| {
            let wanted = told.then_some(&mut descriptors);
            let received = unix::receive(socket, buffer, wanted)?;
            stopped_early = received.with_control;
            Ok(received.bytes)
        });
        self.to_the_end = to_the_end;
        let read = match outcome {
            Ok(bytes) => {
                if !stopped_early && bytes.len() < pool.buffer_bytes() && !to_the_end {
                    self.unread = false;
                    turn.pass_head();
                }
                Some(Event::Received { token, bytes })
            }
            Err(end) => self.after_read(token, end, turn),
        };
        if descriptors.is_empty() {
            return read;
        }
        turn.happened.extend(read);
        Some(Event::Descriptors { token, descriptors })
    }

    /// Looks whether the attempt to connect has ended.
    pub(super) fn finish_connecting(&mut self, token: Token, turn: &mut Turn) -> Option<Event> {
        match self.phase {
            Phase::Connected => {
                self.phase = Phase::Open;
                return Some(Event::Connected { token });
            }
            Phase::Knocking => {
                turn.pass_head();
                return None;
            }
            _ => {}
        }
        match connect_outcome(&self.socket) {
            None => {
                turn.pass_head();
                None
            }
            Some(Ok(())) => {
                // It stays at the head: the same edge may tell of bytes or of a hang-up.
                self.phase = Phase::Open;
                Some(Event::Connected { token })
            }
            Some(Err(error)) => {
                self.phase = Phase::Failed;
                turn.pass_head();
                Some(Event::Failed { token, error })
            }
        }
    }

    pub(super) fn carry(&mut self, token: Token, turn: &mut Turn) {
        self.carried = true;
        turn.carried.push(token);
    }
}

pub(super) fn connection_interest() -> Interest {
    let interest = Interest::READABLE | Interest::WRITABLE;
    // Urgent data costs nothing until it comes, and then must be known: see "Edges".
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let interest = interest | Interest::PRIORITY;
    interest
}

/// How an attempt to connect ended; `None` if it goes on.
pub(super) fn connect_outcome(socket: &Socket) -> Option<io::Result<()>> {
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

pub(super) fn stored_error(socket: &Socket) -> Option<io::Error> {
    match socket.take_error() {
        Ok(stored) => stored,
        Err(error) => Some(error),
    }
}

/// Goes on after a `send` that failed with `error`: 0 if the kernel really has no room.
#[cold]
pub(super) fn send_again(
    socket: &Socket,
    mut error: io::Error,
    mut send: impl FnMut(&Socket) -> io::Result<usize>,
) -> io::Result<usize> {
    for _ in 1..SPURIOUS_SENDS_MAX {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        if !socket.is_writable() {
            return Ok(0);
        }
        match send(socket) {
            Err(again) => error = again,
            sent => return sent,
        }
    }
    if error.kind() == io::ErrorKind::WouldBlock { Ok(0) } else { Err(error) }
}

/// With 64 KiB buffers: 256 KiB per connection and turn.
pub(super) const READS_PER_TURN: usize = 4;
/// How often a kernel that has room may say that it has none.
pub(super) const SPURIOUS_SENDS_MAX: usize = 8;
