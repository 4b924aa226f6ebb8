//! UNIX sockets and sockets from elsewhere: listening, knocking at full queues, and descriptors beside bytes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::connection::{Connection, Phase, Rights, send_again};
use super::listener::{Listener, ListenerKind};
use super::{MioDriver, Source};
use crate::addr::{Addr, UnixAddr};
use crate::reactor::driver::Event;
use crate::reactor::driver::datagrams::DatagramSpec;
use crate::reactor::driver::unix::{UnixDriver, UnixListenSpec};
use crate::reactor::token::Token;
use crate::sys::socket::{PeerCredentials, Socket};
use crate::sys::unix::{self, BindHow};

/// Clients that found the queue of a listener full. The kernel does not tell when it has room again, so they knock.
#[derive(Default)]
pub(super) struct Knocking {
    clients: Vec<Knock>,
}

struct Knock {
    token: Token,
    name: UnixAddr,
    interval: Duration,
    again_at: Instant,
}

impl Knocking {
    /// The shorter of `timeout` and what is left until somebody knocks again.
    pub(super) fn clamp(&self, timeout: Option<Duration>) -> Option<Duration> {
        let Some(again_at) = self.clients.iter().map(|knock| knock.again_at).min() else { return timeout };
        let left = again_at.saturating_duration_since(Instant::now());
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }
}

impl UnixDriver for MioDriver {
    fn listen_unix(&mut self, spec: &UnixListenSpec) -> io::Result<Token> {
        let (socket, bound) = unix::listen(&spec.name, spec.backlog, spec.how)?;
        let kind = ListenerKind::Unix { bound, shut: false };
        self.add_listener(Listener::new(socket, kind, spec.accepts_per_turn))
    }

    /// # Errors
    /// What the kernel knows at once, which is all but whether a full queue will have room.
    fn connect_unix(&mut self, name: &UnixAddr) -> io::Result<Token> {
        let socket = unix::stream_socket()?;
        let phase = match unix::connect(&socket, name) {
            Ok(()) => Phase::Connected,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Phase::Knocking,
            Err(error) => return Err(error),
        };
        let token = self.add(Source::Connection(Connection::unix(socket, phase)))?;
        if phase == Phase::Knocking {
            let interval = KNOCK_FIRST;
            let again_at = self.now + interval;
            self.knocking.clients.push(Knock { token, name: name.clone(), interval, again_at });
        } else {
            self.tell_connected(token);
        }
        Ok(token)
    }

    fn send_descriptors(&mut self, token: Token, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
        let connection = self.connected_mut(token)?;
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let send = |socket: &Socket| unix::send(socket, bytes, &descriptors);
        let sent_bytes = match send(&connection.socket) {
            Ok(sent_bytes) => sent_bytes,
            Err(error) => send_again(&connection.socket, error, send)?,
        };
        connection.blocked = sent_bytes < bytes.len();
        Ok(sent_bytes)
    }

    fn receive_descriptors(&mut self, token: Token, on: bool) {
        if let Ok(connection) = self.connected_mut(token)
            && connection.rights != Rights::Never
        {
            connection.rights = if on { Rights::Told } else { Rights::Closed };
        }
    }

    fn bind_unix_datagram(
        &mut self,
        name: &UnixAddr,
        how: BindHow,
        spec: &DatagramSpec,
    ) -> io::Result<Token> {
        let (socket, bound) = unix::bind_datagram(name, how)?;
        self.add_unix_datagram(socket, bound, spec)
    }

    fn connect_unix_datagram(&mut self, token: Token, peer: &UnixAddr) -> io::Result<()> {
        unix::connect(self.source(token)?.socket()?, peer)
    }

    fn send_datagram_to_name(&mut self, token: Token, bytes: &[u8], to: &UnixAddr) -> io::Result<()> {
        unix::send_datagram(self.source(token)?.socket()?, bytes, to)
    }

    fn peer_credentials(&self, token: Token) -> io::Result<PeerCredentials> {
        self.source(token)?.socket()?.peer_credentials()
    }

    fn peer_pidfd(&self, token: Token) -> io::Result<OwnedFd> {
        self.source(token)?.socket()?.peer_pidfd()
    }

    fn adopt_unix_datagram(&mut self, socket: Socket, spec: &DatagramSpec) -> io::Result<Token> {
        socket.make_nonblocking()?;
        self.add_unix_datagram(socket, None, spec)
    }

    fn adopt_listener(&mut self, socket: Socket, accepts_per_turn: usize) -> io::Result<(Token, Addr)> {
        socket.make_nonblocking()?;
        let addr = socket.local()?;
        let kind = ListenerKind::Adopted { is_unix: addr.as_unix().is_some() };
        let token = self.add_listener(Listener::new(socket, kind, accepts_per_turn))?;
        Ok((token, addr))
    }
}

impl MioDriver {
    fn tell_connected(&mut self, token: Token) {
        if let Some(Source::Connection(connection)) = self.sources.get_mut(token) {
            connection.phase = Phase::Connected;
            if !connection.carried {
                connection.carry(token, &mut self.turn);
            }
        }
    }

    /// Lets those knock whose time it is.
    pub(super) fn knock_again(&mut self) {
        if self.knocking.clients.is_empty() {
            return;
        }
        for mut knock in std::mem::take(&mut self.knocking.clients) {
            let Some(Source::Connection(connection)) = self.sources.get_mut(knock.token) else { continue };
            if self.now < knock.again_at {
                self.knocking.clients.push(knock);
                continue;
            }
            match unix::connect(&connection.socket, &knock.name) {
                Ok(()) => self.tell_connected(knock.token),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    knock.interval = (knock.interval * 2).min(KNOCK_MOST);
                    knock.again_at = self.now + knock.interval;
                    self.knocking.clients.push(knock);
                }
                Err(error) => {
                    connection.phase = Phase::Failed;
                    self.turn.happened.push_back(Event::Failed { token: knock.token, error });
                }
            }
        }
    }
}

const KNOCK_FIRST: Duration = Duration::from_millis(1);
const KNOCK_MOST: Duration = Duration::from_millis(50);
