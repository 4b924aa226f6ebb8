//! IReactorSocket: sockets that others have made, by systemd, a parent process or the application itself.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use crate::addr::Addr;
use crate::error::Result;
use crate::net::connection::Connection;
use crate::reactor::driver::DetachedSocket;
use crate::reactor::token::Token;
use crate::shard::Shard;
use crate::shard::connections::{Draining, Handler};
use crate::shard::groups::GroupKey;
use crate::shard::handing_out::NotJoined;
use crate::shard::handles::listener::Listener;
use crate::shard::handles::stream_core::StreamCore;
use crate::shard::handles::tcp_stream::TcpStream;
use crate::shard::handles::transport::Transport;
use crate::shard::handles::udp_transport::UdpTransport;
use crate::shard::interfaces::udp::DatagramProtocol;
use crate::shard::lifecycle::ShardPhase;
use crate::shard::listening::Opener;
use crate::shard::protocol::{Factory, Incoming};
use crate::sys::adopted::{self, Family, Kind, Nature};
use crate::sys::socket::Socket;

/// Why a descriptor was not adopted; it is closed. The text names its number and what it is.
#[derive(Debug)]
pub struct AdoptError {
    descriptor: RawFd,
    reason: AdoptReason,
}

/// What is wrong with a descriptor.
#[derive(Debug)]
#[non_exhaustive]
pub enum AdoptReason {
    /// It is no socket, or the operating system refused something else.
    Os(io::Error),
    /// Its address family is none of IPv4, IPv6 and UNIX; this is its number.
    UnsupportedFamily(u16),
    /// It is a socket, but not of the kind that was to be adopted.
    WrongKind {
        /// What it is.
        is: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// This shard has adopted that socket already, or it is being closed.
    Twice,
    /// The shard is stopping.
    Stopping,
}

impl AdoptError {
    /// What is wrong.
    pub fn reason(&self) -> &AdoptReason {
        &self.reason
    }

    /// The number that the descriptor had.
    pub fn descriptor(&self) -> RawFd {
        self.descriptor
    }
}

impl fmt::Display for AdoptError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot adopt descriptor {}: ", self.descriptor)?;
        match &self.reason {
            AdoptReason::Os(source) => write!(formatter, "{source}"),
            AdoptReason::UnsupportedFamily(number) => {
                write!(formatter, "its address family, number {number}, is neither IPv4, IPv6 nor UNIX")
            }
            AdoptReason::WrongKind { is, wanted } => write!(formatter, "it is {is}, not {wanted}"),
            AdoptReason::Twice => write!(formatter, "this shard has adopted its socket already"),
            AdoptReason::Stopping => write!(formatter, "the shard is stopping"),
        }
    }
}

impl std::error::Error for AdoptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            AdoptReason::Os(source) => source.source(),
            _ => None,
        }
    }
}

impl Shard {
    /// Accepts at a stream socket that listens already, TCP or UNIX, and makes a protocol for each connection that comes to
    /// this shard. It need not be non-blocking, nor closed on exec: it is made so.
    ///
    /// Shards that adopt the same socket, each with a descriptor of its own (`try_clone`), are one group: the first one
    /// accepts, and hands the connections out to all in turn. Closing the listener accepts what waits in the queue and
    /// closes the descriptors; the socket is never shut down, and no file removed, since other processes may have it.
    ///
    /// # Errors
    /// [`AdoptError`] names the descriptor and what it is.
    pub fn adopt_stream_port<M>(
        &self,
        descriptor: OwnedFd,
        mut factory: impl Factory<M>,
    ) -> std::result::Result<Listener<Addr>, AdoptError> {
        self.adopt_port(descriptor, Opener::Protocols(Box::new(move |incoming| factory.build(incoming))))
    }

    /// As [`Shard::adopt_stream_port`], with a task for each connection: see [`Shard::serve_tcp`].
    ///
    /// # Errors
    /// As [`Shard::adopt_stream_port`].
    pub fn serve_adopted_port<H>(
        &self,
        descriptor: OwnedFd,
        handler: H,
    ) -> std::result::Result<Listener<Addr>, AdoptError>
    where
        H: AsyncFn(TcpStream) -> Result<()> + 'static,
    {
        self.adopt_port(descriptor, Opener::serving(handler))
    }

    fn adopt_port(
        &self,
        descriptor: OwnedFd,
        opener: Opener,
    ) -> std::result::Result<Listener<Addr>, AdoptError> {
        let number = descriptor.as_raw_fd();
        let refused = |reason| AdoptError { descriptor: number, reason };
        let nature = look(&descriptor).map_err(refused)?;
        if nature.kind != Kind::Stream || !nature.listens {
            let is = describe(&nature);
            return Err(refused(AdoptReason::WrongKind { is, wanted: "a stream socket that listens" }));
        }
        let (device, inode) = nature.inode;
        let accepts_per_turn = self.inner.shared.config.accepts_per_turn;
        let key = GroupKey::Adopted(device, inode);
        let joined = self.listen_handing_out(key, opener.into(), |driver| {
            driver.adopt_listener(Socket::from(descriptor), accepts_per_turn)
        });
        match joined {
            Ok(group) => Ok(Listener::any(self.clone(), group)),
            Err(NotJoined::Stopping) => Err(refused(AdoptReason::Stopping)),
            Err(NotJoined::Twice(_)) => Err(refused(AdoptReason::Twice)),
            Err(NotJoined::Os(source)) => Err(refused(AdoptReason::Os(source))),
        }
    }

    /// Makes a connected stream socket, TCP or UNIX, a connection of this shard, like one that was accepted. The factory is
    /// called at once; if it refuses, the descriptor is closed and `None` returned.
    /// [`Protocol::connected`](crate::Protocol::connected) is called later, never before this returns.
    ///
    /// # Errors
    /// [`AdoptError`] names the descriptor and what it is.
    pub fn adopt_stream_connection<M>(
        &self,
        descriptor: OwnedFd,
        mut factory: impl Factory<M>,
    ) -> std::result::Result<Option<Transport>, AdoptError> {
        let (socket, peer, local) =
            self.inspect_connection(&descriptor).map(|ends| (descriptor, ends.0, ends.1))?;
        let number = socket.as_raw_fd();
        let incoming = Incoming { peer: &peer, local: &local, shard: self.inner.id, proxy_header: None };
        let protocol = match catch_unwind(AssertUnwindSafe(|| factory.build(&incoming))) {
            Ok(protocol) => protocol,
            Err(payload) => {
                self.panicked("a factory", payload);
                None
            }
        };
        self.drop_contained(factory);
        let Some(protocol) = protocol else { return Ok(None) };
        let token = self.adopt_socket(socket, number)?;
        let mut connection = Connection::new(peer);
        connection.set_reads_above_high(false);
        // Nothing is read before the protocol knows of its connection.
        connection.read_holds += 1;
        self.open_connection(token, connection, Handler::Gone);
        self.call_later(Duration::ZERO, move |shard| shard.begin_adopted(token, Handler::Protocol(protocol)));
        Ok(Some(Transport::new(self.clone(), token)))
    }

    /// Makes a connected stream socket, TCP or UNIX, a stream of this shard.
    ///
    /// # Errors
    /// [`AdoptError`] names the descriptor and what it is.
    pub fn adopt_stream(&self, descriptor: OwnedFd) -> std::result::Result<TcpStream, AdoptError> {
        let (peer, _) = self.inspect_connection(&descriptor)?;
        let number = descriptor.as_raw_fd();
        let token = self.adopt_socket(descriptor, number)?;
        let core = StreamCore::new();
        self.open_connection(token, Connection::new(peer), Handler::Stream(Rc::clone(&core)));
        Ok(TcpStream::new(self.clone(), token, core))
    }

    /// Gives the datagrams of a bound socket, IPv4, IPv6 or UNIX, to `protocol`, which is started before this returns; also
    /// those of one that is connected, or of a `socketpair(2)`. Closing it only closes the descriptor: no file is removed.
    /// Otherwise as [`Shard::listen_udp`] or [`Shard::listen_unix_datagram`], for this shard alone.
    ///
    /// # Errors
    /// [`AdoptError`] names the descriptor and what it is.
    pub fn adopt_datagram_port(
        &self,
        descriptor: OwnedFd,
        protocol: impl DatagramProtocol,
    ) -> std::result::Result<UdpTransport, AdoptError> {
        let number = descriptor.as_raw_fd();
        let refused = |reason| AdoptError { descriptor: number, reason };
        let nature = look(&descriptor).map_err(refused)?;
        if nature.kind != Kind::Datagram {
            return Err(refused(AdoptReason::WrongKind {
                is: describe(&nature),
                wanted: "a datagram socket",
            }));
        }
        if !matches!(self.inner.phase.get(), ShardPhase::Starting | ShardPhase::Running) {
            return Err(refused(AdoptReason::Stopping));
        }
        let adopted = self.adopt_datagram(Socket::from(descriptor), Box::new(protocol));
        adopted.map_err(|source| refused(AdoptReason::Os(source)))
    }

    /// The two ends of a connected stream socket.
    fn inspect_connection(&self, descriptor: &OwnedFd) -> std::result::Result<(Addr, Addr), AdoptError> {
        let refused = |reason| AdoptError { descriptor: descriptor.as_raw_fd(), reason };
        if matches!(self.inner.phase.get(), ShardPhase::Drained | ShardPhase::Stopped) {
            return Err(refused(AdoptReason::Stopping));
        }
        let nature = look(descriptor).map_err(refused)?;
        let wanted = "a stream socket that is connected";
        if nature.kind != Kind::Stream || nature.listens {
            return Err(refused(AdoptReason::WrongKind { is: describe(&nature), wanted }));
        }
        match adopted::ends(descriptor) {
            Ok(ends) => Ok(ends),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                Err(refused(AdoptReason::WrongKind { is: "a stream socket that is not connected", wanted }))
            }
            Err(error) => Err(refused(AdoptReason::Os(error))),
        }
    }

    fn adopt_socket(&self, socket: OwnedFd, number: RawFd) -> std::result::Result<Token, AdoptError> {
        let socket = DetachedSocket::Os(Socket::from(socket));
        let adopted = self.inner.driver.borrow_mut().adopt(socket);
        adopted.map_err(|source| AdoptError { descriptor: number, reason: AdoptReason::Os(source) })
    }

    /// Gives an adopted connection its protocol, unless it has ended meanwhile.
    fn begin_adopted(&self, token: Token, handler: Handler) {
        let mut connections = self.inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token).filter(|slot| slot.connection.is_open()) else {
            drop(connections);
            return self.drop_contained(handler);
        };
        slot.handler = handler;
        let was_told = slot.marks.draining == Draining::Told;
        drop(connections);
        self.call_protocol(token, |protocol, transport| protocol.connected(transport));
        if was_told {
            // There was nobody to tell.
            self.call_protocol(token, |protocol, transport| protocol.draining(transport));
        }
        if let Some(slot) = self.inner.connections.borrow_mut().get_mut(token) {
            slot.connection.read_holds -= 1;
        }
        self.read_resumed(token);
    }
}

fn look(descriptor: &OwnedFd) -> std::result::Result<Nature, AdoptReason> {
    let nature = adopted::look(descriptor).map_err(AdoptReason::Os)?;
    match nature.family {
        Family::Other(number) => Err(AdoptReason::UnsupportedFamily(number)),
        _ => Ok(nature),
    }
}

fn describe(nature: &Nature) -> &'static str {
    match (nature.kind, nature.listens) {
        (Kind::Stream, true) => "a stream socket that listens",
        (Kind::Stream, false) => "a stream socket that does not listen",
        (Kind::Datagram, _) => "a datagram socket",
        (Kind::Other, _) => "a socket of another kind",
    }
}
