//! IReactorTCP: listening and connecting.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{ListenError, Result};
use crate::net::addr::ToAddr;
use crate::net::target::ToTarget;
use crate::shard::Shard;
use crate::shard::connecting::{ConnectHow, Goal, Preamble, Target};
use crate::shard::handles::connecting::Connecting;
use crate::shard::handles::listener::Listener;
use crate::shard::handles::tcp_stream::TcpStream;
use crate::shard::listening::{ListenHow, Opener};
use crate::shard::policies::Policies;
use crate::shard::protocol::Factory;

/// How to listen, where the defaults do not do.
#[derive(Clone, Debug, Default)]
pub struct ListenOptions {
    how: ListenHow,
}

impl ListenOptions {
    /// The defaults.
    pub fn new() -> Self {
        ListenOptions::default()
    }

    pub(crate) fn how(&self) -> ListenHow {
        self.how.clone()
    }

    /// What the connections that come in are held to.
    pub fn policies(mut self, policies: &Policies) -> Self {
        self.how.policies = Some(Arc::new(policies.clone()));
        self
    }

    /// Finished handshakes that may wait, per shard. The kernel cuts it down to `net.core.somaxconn`.
    pub fn backlog(mut self, connections: u32) -> Self {
        self.how.backlog = Some(connections.max(1));
        self
    }

    /// Shares the address with other processes of the same user that do the same; then a second server is not told that
    /// the address is in use, it silently gets its share of the connections. Off by default.
    pub fn share_port(mut self, on: bool) -> Self {
        self.how.share_port = on;
        self
    }
}

/// How to connect, where the defaults do not do.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    how: ConnectHow,
}

impl ConnectOptions {
    /// The defaults.
    pub fn new() -> Self {
        ConnectOptions::default()
    }

    /// Connects from this address; port 0 lets the kernel choose.
    ///
    /// One for each family may be given. With one alone, only addresses of its family are tried: `0.0.0.0:0` stands for
    /// "over IPv4, from anywhere".
    pub fn bind(mut self, addr: SocketAddr) -> Self {
        match addr {
            SocketAddr::V4(_) => self.how.bind_v4 = Some(addr),
            SocketAddr::V6(_) => self.how.bind_v6 = Some(addr),
        }
        self
    }

    /// Gives up after this long, the lookup of a name included, instead of
    /// [`Config::connect_timeout`](crate::Config::connect_timeout). With TLS it covers the handshake, too, which otherwise
    /// has [`Config::handshake_timeout`](crate::Config::handshake_timeout) of its own, and has no more than that in any case.
    pub fn timeout(mut self, after: Duration) -> Self {
        self.how.timeout = Some(after);
        self
    }

    /// What the connection is held to.
    pub fn policies(mut self, policies: &Policies) -> Self {
        self.how.policies = Some(Arc::new(policies.clone()));
        self
    }

    pub(crate) fn how(&self) -> ConnectHow {
        self.how.clone()
    }
}

impl Shard {
    /// Listens on `addr`, and makes a protocol for each connection that comes in here.
    ///
    /// The socket is bound, and listens, when this returns; connections are accepted once every shard has started, never
    /// before: see [`Handle::stop`](crate::Handle::stop) for what a stop does until then.
    /// Shards that listen on the same address share it: the kernel spreads connections over them (`SO_REUSEPORT`). The
    /// first one binds alone, so a server that runs already is noticed. With port 0 the kernel chooses once: the n-th
    /// such call of each shard is the same listener.
    ///
    /// # Errors
    /// [`ListenError`] names the address and the cause.
    pub fn listen_tcp<M>(
        &self,
        addr: impl ToAddr,
        factory: impl Factory<M>,
    ) -> std::result::Result<Listener, ListenError> {
        self.listen_tcp_with(addr, &ListenOptions::default(), factory)
    }

    /// As [`Shard::listen_tcp`], with options.
    ///
    /// # Errors
    /// As [`Shard::listen_tcp`].
    pub fn listen_tcp_with<M>(
        &self,
        addr: impl ToAddr,
        options: &ListenOptions,
        mut factory: impl Factory<M>,
    ) -> std::result::Result<Listener, ListenError> {
        let opener = Opener::Protocols(Box::new(move |incoming| factory.build(incoming)));
        let group = self.open_listener(addr.to_addr()?, options.how(), opener.into())?;
        Ok(Listener::tcp(self.clone(), group))
    }

    /// Listens on `addr`, and runs `handler` as a task for each connection that comes in here. A handler that returns an
    /// error, or panics, ends its own connection alone.
    ///
    /// Otherwise as [`Shard::listen_tcp`].
    ///
    /// # Errors
    /// As [`Shard::listen_tcp`].
    pub fn serve_tcp<H>(&self, addr: impl ToAddr, handler: H) -> std::result::Result<Listener, ListenError>
    where
        H: AsyncFn(TcpStream) -> Result<()> + 'static,
    {
        self.serve_tcp_with(addr, &ListenOptions::default(), handler)
    }

    /// As [`Shard::serve_tcp`], with options.
    ///
    /// # Errors
    /// As [`Shard::listen_tcp`].
    pub fn serve_tcp_with<H>(
        &self,
        addr: impl ToAddr,
        options: &ListenOptions,
        handler: H,
    ) -> std::result::Result<Listener, ListenError>
    where
        H: AsyncFn(TcpStream) -> Result<()> + 'static,
    {
        let group = self.open_listener(addr.to_addr()?, options.how(), Opener::serving(handler).into())?;
        Ok(Listener::tcp(self.clone(), group))
    }

    /// Connects to `target`, and makes the connection's protocol when it stands.
    ///
    /// A name is looked up by the runtime's [`Resolver`](crate::Resolver), and its addresses are tried as RFC 8305 says:
    /// families take turns, IPv6 first; the next address is begun when the last one has been silent for
    /// [`Config::connect_attempt_delay`](crate::Config::connect_attempt_delay), or at once when it has failed. The first
    /// one that stands is the connection, and the others are given up.
    ///
    /// # Errors
    /// None here: whatever goes wrong is the outcome of the attempt.
    pub fn connect_tcp<M>(&self, target: impl ToTarget, factory: impl Factory<M>) -> Connecting {
        self.connect_tcp_with(target, &ConnectOptions::default(), factory)
    }

    /// As [`Shard::connect_tcp`], with options.
    pub fn connect_tcp_with<M>(
        &self,
        target: impl ToTarget,
        options: &ConnectOptions,
        mut factory: impl Factory<M>,
    ) -> Connecting {
        let becomes = Target::Protocol(Box::new(move |incoming| factory.build(incoming)));
        let goal = Goal::of_target(target.to_target());
        Connecting::new(self.connect_to(goal, options.how(), becomes, Preamble::default()))
    }
}
