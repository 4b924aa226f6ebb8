//! The simulated driver: an in-memory network and a virtual clock. Drivers of one [`World`] are stepped by a
//! runner, on one thread; this file adapts the world to the [`Driver`] trait and decides nothing.
//!
//! What it does as Linux does, and what a real driver may do at any time but seldom does:
//! * bytes that had arrived before a reset are received before `Failed` while receiving is on; with receiving off
//!   `Failed` comes at once and they are lost;
//! * a reset may destroy bytes that are still under way ([`Faults::lossy_reset`]);
//! * closing a listener resets what waits at it, also what `accept_queue` has taken and `next` has not yet told;
//! * `PeerFinished` is told only while receiving is on;
//! * a dropped handshake is tried again after 1, 2, 4, ... seconds, and fails with `TimedOut` after the seventh.

mod chance;
mod events;
mod network;
mod options;
mod sources;
mod world;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use self::events::ReadBuffers;
use self::network::EndId;
pub(crate) use self::options::SimOptions;
pub(crate) use self::world::World;
use super::datagrams::{DatagramDriver, DatagramOption, DatagramSpec, SentSegments};
use super::unix::{UnixDriver, UnixListenSpec};
use super::watching::{Wanted, WatchDriver, Watched};
use super::{
    Census, CloseKind, ConnectSpec, DetachedSocket, Driver, Emptied, Event, ListenSpec, SocketOption,
    Submitted,
};
use crate::addr::{Addr, UnixAddr};
use crate::reactor::buffer::Output;
use crate::reactor::token::Token;
use crate::reactor::waker::DriverWaker;
use crate::sys::socket::{PeerCredentials, Socket};
use crate::sys::unix::BindHow;

/// One shard's view of a [`World`]. Dropping it closes all its sources, as the end of a process does.
pub(crate) struct SimDriver {
    world: World,
    shard: usize,
    buffers: ReadBuffers,
    now: Instant,
    waker: Arc<sources::WokenFlag>,
}

/// A connected socket that no driver holds. Dropping it closes the connection.
pub(crate) struct SimSocket {
    world: World,
    /// `Some` until adopted.
    end: Option<EndId>,
}

impl SimDriver {
    fn new(world: World, shard: usize, options: &SimOptions) -> Self {
        let waker = world.with(|network| Arc::clone(&network.shards[shard].waker));
        let now = world.now();
        SimDriver { world, shard, buffers: ReadBuffers::new(options), now, waker }
    }
}

impl Driver for SimDriver {
    fn waker(&self) -> DriverWaker {
        Arc::clone(&self.waker) as DriverWaker
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn read_clock(&mut self) -> Instant {
        self.now = self.world.now();
        self.now
    }

    fn listen(&mut self, spec: &ListenSpec) -> io::Result<(Token, SocketAddr)> {
        self.world.with(|network| network.listen(self.shard, spec))
    }

    fn share_port(&mut self, listener: Token) -> io::Result<()> {
        self.world.with(|network| network.share_port(self.shard, listener))
    }

    fn accept(&mut self, listener: Token, on: bool) {
        self.world.with(|network| network.accept(self.shard, listener, on));
    }

    fn refuse_handshakes(&mut self, listener: Token) -> io::Result<()> {
        self.world.with(|network| network.refuse_handshakes(self.shard, listener))
    }

    fn accept_queue(&mut self, listener: Token) -> Emptied {
        self.world.with(|network| network.accept_queue(self.shard, listener))
    }

    fn connect(&mut self, spec: &ConnectSpec) -> io::Result<Token> {
        self.world.with(|network| network.connect(self.shard, spec))
    }

    fn adopt(&mut self, socket: DetachedSocket) -> io::Result<Token> {
        let DetachedSocket::Sim(mut socket) = socket else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a socket of the kernel, not of this world",
            ));
        };
        if !socket.world.is(&self.world) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket of another world"));
        }
        let end = socket.end.take().expect("a socket has its end until it is adopted");
        Ok(self.world.with(|network| network.adopt(self.shard, end)))
    }

    fn release(&mut self, token: Token) -> Option<DetachedSocket> {
        let end = self.world.with(|network| network.release(self.shard, token))?;
        Some(DetachedSocket::Sim(SimSocket { world: self.world.clone(), end: Some(end) }))
    }

    fn receive(&mut self, token: Token, on: bool) {
        self.world.with(|network| network.receive(self.shard, token, on));
    }

    fn try_send(&mut self, token: Token, bytes: &[u8]) -> io::Result<usize> {
        self.world.with(|network| network.send(self.shard, token, bytes))
    }

    fn submit(&mut self, token: Token, output: &mut Output) -> io::Result<Submitted> {
        self.world.with(|network| network.submit(self.shard, token, output))
    }

    fn shutdown_write(&mut self, token: Token) -> io::Result<()> {
        self.world.with(|network| network.shutdown_write(self.shard, token))
    }

    fn close(&mut self, token: Token, kind: CloseKind) {
        self.world.with(|network| network.close(self.shard, token, kind));
    }

    fn local_addr(&self, token: Token) -> io::Result<Addr> {
        self.world.with(|network| {
            let side = &network.shards[self.shard];
            if let Some(listener) = side.listener(token) {
                return Ok(network.name_of(listener.addr));
            }
            if let Ok(addr) = network.datagram_addr(self.shard, token) {
                return Ok(addr.into());
            }
            let stream = side.stream(token).ok_or(Errno::NOTCONN)?;
            Ok(network.name_of(network.ends[&stream.end].local))
        })
    }

    fn set_option(&mut self, token: Token, _option: SocketOption) -> io::Result<()> {
        // No option changes what a simulated connection does.
        self.world.with(|network| match network.shards[self.shard].stream(token) {
            Some(_) => Ok(()),
            None => Err(Errno::NOTCONN.into()),
        })
    }

    fn random(&mut self) -> u64 {
        self.world.with(|network| network.application.bits())
    }

    fn wait(&mut self, _timeout: Option<Duration>) -> io::Result<()> {
        // Never sleeps: when this shard is due again is the runner's knowledge.
        self.waker.take();
        let clock = self.world.with(|network| {
            network.begin_turn(self.shard);
            network.clock
        });
        self.now = self.world.instant(clock);
        Ok(())
    }

    fn has_ready(&self) -> bool {
        self.world.has_events(self.shard)
    }

    fn next(&mut self) -> Option<Event> {
        self.world.with(|network| network.next_event(self.shard, &self.buffers))
    }

    fn longest_rest(&self, wanted: Option<Duration>) -> Option<Duration> {
        wanted
    }

    /// # Errors
    /// `Unsupported`: there is no kernel here.
    fn news_fd(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn census(&self) -> Census {
        self.world.with(|network| {
            let side = &network.shards[self.shard];
            Census {
                listeners: side.listeners,
                connections: side.sources.len() - side.listeners,
                leases: self.buffers.on_loan(),
            }
        })
    }
}

impl DatagramDriver for SimDriver {
    fn bind_datagram(&mut self, spec: &DatagramSpec) -> io::Result<(Token, SocketAddr)> {
        self.world.with(|network| network.bind_datagram(self.shard, spec))
    }

    fn adopt_datagram(&mut self, _socket: Socket, _spec: &DatagramSpec) -> io::Result<(Token, SocketAddr)> {
        Err(real_world("adopt sockets"))
    }

    fn connect_datagram(&mut self, token: Token, peer: SocketAddr) -> io::Result<()> {
        self.world.with(|network| network.connect_datagram(self.shard, token, peer))
    }

    fn discard_datagrams(&mut self, token: Token) {
        self.world.with(|network| network.discard_datagrams(self.shard, token));
    }

    fn send_datagram(&mut self, token: Token, bytes: &[u8], to: Option<SocketAddr>) -> io::Result<()> {
        self.world.with(|network| network.send_datagram(self.shard, token, bytes, to))
    }

    fn send_segments(
        &mut self,
        token: Token,
        bytes: &[u8],
        segment_bytes: u16,
        to: Option<SocketAddr>,
    ) -> SentSegments {
        let mut sent_bytes = 0;
        for part in bytes.chunks(segment_bytes.max(1).into()) {
            if let Err(error) = self.send_datagram(token, part, to) {
                return SentSegments { sent_bytes, stopped_by: Some(error) };
            }
            sent_bytes += part.len();
        }
        SentSegments { sent_bytes, stopped_by: None }
    }

    fn set_datagram_option(&mut self, token: Token, option: DatagramOption) -> io::Result<()> {
        self.world.with(|network| network.set_datagram_option(self.shard, token, option))
    }

    fn datagram_option(&self, token: Token, which: DatagramOption) -> io::Result<DatagramOption> {
        self.world.with(|network| network.datagram_option(self.shard, token, which))
    }
}

impl UnixDriver for SimDriver {
    fn listen_unix(&mut self, spec: &UnixListenSpec) -> io::Result<Token> {
        self.world.with(|network| network.listen_unix(self.shard, spec))
    }

    fn connect_unix(&mut self, name: &UnixAddr) -> io::Result<Token> {
        self.world.with(|network| network.connect_unix(self.shard, name))
    }

    fn send_descriptors(&mut self, token: Token, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
        self.world.with(|network| network.send_descriptors(self.shard, token, bytes, descriptors))
    }

    fn receive_descriptors(&mut self, token: Token, on: bool) {
        self.world.with(|network| {
            if let Some(stream) = network.shards[self.shard].stream_mut(token) {
                stream.takes_descriptors = on;
            }
        });
    }

    fn bind_unix_datagram(
        &mut self,
        _name: &UnixAddr,
        _how: BindHow,
        _spec: &DatagramSpec,
    ) -> io::Result<Token> {
        Err(real_world("bind UNIX datagram sockets"))
    }

    fn connect_unix_datagram(&mut self, _token: Token, _peer: &UnixAddr) -> io::Result<()> {
        Err(Errno::NOTCONN.into())
    }

    fn send_datagram_to_name(&mut self, _token: Token, _bytes: &[u8], _to: &UnixAddr) -> io::Result<()> {
        Err(Errno::NOTCONN.into())
    }

    /// All ends of a world live in one process: this one.
    fn peer_credentials(&self, token: Token) -> io::Result<PeerCredentials> {
        match self.local_addr(token)? {
            Addr::Unix(_) => Ok(PeerCredentials::own()),
            Addr::Ip(_) => Err(Errno::OPNOTSUPP.into()),
        }
    }

    fn peer_pidfd(&self, _token: Token) -> io::Result<OwnedFd> {
        Err(real_world("have a process at its other end"))
    }

    fn adopt_unix_datagram(&mut self, _socket: Socket, _spec: &DatagramSpec) -> io::Result<Token> {
        Err(real_world("adopt sockets"))
    }

    fn adopt_listener(&mut self, _socket: Socket, _accepts_per_turn: usize) -> io::Result<(Token, Addr)> {
        Err(real_world("adopt sockets"))
    }
}

fn real_world(verb: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("a simulation cannot {verb}: that is of the real world"),
    )
}

impl WatchDriver for SimDriver {
    fn watch(&mut self, _fd: BorrowedFd<'_>) -> io::Result<Watched> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a simulation cannot watch descriptors: they are of the real world",
        ))
    }

    fn arm(&mut self, _token: Token, _wanted: Wanted) -> io::Result<()> {
        Err(Errno::NOTCONN.into())
    }
}

impl Drop for SimDriver {
    fn drop(&mut self) {
        self.world.with(|network| {
            for token in network.shards[self.shard].sources.tokens() {
                network.close(self.shard, token, CloseKind::Orderly);
            }
            let side = &mut network.shards[self.shard];
            side.ready.clear();
            side.batch.clear();
            side.driven = false;
        });
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            self.world.with(|network| network.close_end(end, CloseKind::Orderly));
        }
    }
}

/// How long a listener that failed to accept stays paused.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
