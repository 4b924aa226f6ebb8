//! Endpoints: listening on and connecting to whatever their text says, by the interfaces that are there for each kind.

use std::net::SocketAddr;

use crate::addr::Addr;
use crate::error::{ConnectError, ListenError, Result};
use crate::net::endpoint::{ClientPlace, Inherited, LoadedClient, LoadedServer, ServerPlace};
use crate::net::tls::TlsRole;
use crate::shard::Shard;
use crate::shard::connecting::{ConnectHow, Goal, Preamble, Target};
use crate::shard::groups::GroupKey;
use crate::shard::handles::connecting::Connecting;
use crate::shard::handles::listener::Listener;
use crate::shard::handles::tcp_stream::TcpStream;
use crate::shard::interfaces::tcp::{ConnectOptions, ListenOptions};
use crate::shard::interfaces::unix::{MODE, checked};
use crate::shard::listening::{ListenHow, Opener, Opening, session_maker};
use crate::shard::protocol::Factory;
use crate::shard::proxied::HeaderGate;
use crate::sys::socket::Socket;
use crate::sys::unix::BindHow;

impl Shard {
    /// Listens where an endpoint says, and makes a protocol for each connection that comes in here: as
    /// [`Shard::listen_tcp`], [`Shard::listen_tls`], [`Shard::listen_unix`] or, for sockets that whoever started the process
    /// has opened, [`Shard::adopt_stream_port`] do, so what they say of shards that listen together, of the start and
    /// of handshakes holds.
    ///
    /// Behind `haproxy:` a connection begins with a [header](crate::proxy_protocol). The factory is called when it has
    /// come, and is told the addresses that it reports; so do [`Transport::peer_addr`](crate::Transport::peer_addr) and
    /// [`Transport::local_addr`](crate::Transport::local_addr). A header that is malformed, late
    /// ([`Config::proxy_header_timeout`](crate::Config::proxy_header_timeout)), too long, or not from a proxy that is
    /// [trusted](LoadedServer::trust_proxies) ends its connection, which no protocol has seen; DEBUG tells why, and
    /// [`ShardReport::proxy_headers_refused`](crate::ShardReport::proxy_headers_refused) counts.
    ///
    /// ```no_run
    /// use shardwise::{Input, Protocol, Result, Runtime, ServerEndpoint, Shard, Transport};
    ///
    /// struct Echo;
    /// impl Protocol for Echo {
    ///     fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
    ///         transport.write(input.take())?;
    ///         Ok(())
    ///     }
    /// }
    ///
    /// fn main() -> Result<()> {
    ///     let server = "haproxy:tls:7443:privateKey=key.pem:certKey=cert.pem".parse::<ServerEndpoint>()?.load()?;
    ///     let server = server.trust_proxies(["10.0.0.0/8".parse()?]);
    ///     Runtime::new().run(async move |shard: Shard| {
    ///         shard.listen(&server, || Echo)?;
    ///         Ok(())
    ///     })?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ListenError`] names the address and the cause.
    pub fn listen<M>(
        &self,
        server: &LoadedServer,
        factory: impl Factory<M>,
    ) -> std::result::Result<Listener<Addr>, ListenError> {
        self.listen_with(server, &ListenOptions::default(), factory)
    }

    /// As [`Shard::listen`], with options. Where the endpoint says something else, that counts.
    ///
    /// # Errors
    /// As [`Shard::listen`].
    pub fn listen_with<M>(
        &self,
        server: &LoadedServer,
        options: &ListenOptions,
        mut factory: impl Factory<M>,
    ) -> std::result::Result<Listener<Addr>, ListenError> {
        let opener = Opener::Protocols(Box::new(move |incoming| factory.build(incoming)));
        self.listen_loaded(server, options, opener)
    }

    /// As [`Shard::listen`], with a task for each connection: see [`Shard::serve_tcp`] and [`Shard::serve_tls`].
    ///
    /// # Errors
    /// As [`Shard::listen`].
    pub fn serve<H>(
        &self,
        server: &LoadedServer,
        handler: H,
    ) -> std::result::Result<Listener<Addr>, ListenError>
    where
        H: AsyncFn(TcpStream) -> Result<()> + 'static,
    {
        self.serve_with(server, &ListenOptions::default(), handler)
    }

    /// As [`Shard::serve`], with options. Where the endpoint says something else, that counts.
    ///
    /// # Errors
    /// As [`Shard::listen`].
    pub fn serve_with<H>(
        &self,
        server: &LoadedServer,
        options: &ListenOptions,
        handler: H,
    ) -> std::result::Result<Listener<Addr>, ListenError>
    where
        H: AsyncFn(TcpStream) -> Result<()> + 'static,
    {
        let opener =
            if server.tls.is_some() { Opener::serving_secured(handler) } else { Opener::serving(handler) };
        self.listen_loaded(server, options, opener)
    }

    fn listen_loaded(
        &self,
        server: &LoadedServer,
        options: &ListenOptions,
        opener: Opener,
    ) -> std::result::Result<Listener<Addr>, ListenError> {
        let default_timeout = self.inner.shared.config.proxy_header_timeout;
        let opening = Opening {
            header: server.header.as_ref().map(|rule| HeaderGate::new(rule, default_timeout)),
            secure: server.tls.as_ref().map(|tls| session_maker(TlsRole::from(tls))),
            ..opener.into()
        };
        let how = options.how();
        let accepts_per_turn = self.inner.shared.config.accepts_per_turn;
        let opening = Opening { policies: how.policies.clone(), ..opening };
        let group = match &server.place {
            ServerPlace::Tcp { addr, backlog } => {
                let how = ListenHow { backlog: backlog.or(how.backlog), ..how };
                self.open_listener(*addr, how, opening)?
            }
            ServerPlace::Unix { name, mode, backlog, lock } => {
                let bind = BindHow { mode: mode.unwrap_or(MODE), lock: *lock };
                self.open_unix_listener(name.clone(), bind, backlog.or(how.backlog), opening)?
            }
            ServerPlace::Inherited(Inherited { socket, addr, inode }) => {
                let key = GroupKey::Adopted(inode.0, inode.1);
                let joined = self.listen_handing_out(key, opening, |driver| {
                    driver.adopt_listener(Socket::from(socket.try_clone()?), accepts_per_turn)
                });
                joined.map_err(|refused| refused.at(addr.clone()))?
            }
        };
        Ok(Listener::any(self.clone(), group))
    }

    /// Connects where an endpoint says, and makes the connection's protocol when it stands: as [`Shard::connect_tcp`],
    /// [`Shard::connect_tls`] or [`Shard::connect_unix`] do.
    ///
    /// # Errors
    /// None here: whatever goes wrong is the outcome of the attempt.
    pub fn connect<M>(&self, client: &LoadedClient, factory: impl Factory<M>) -> Connecting {
        self.connect_with(client, &ConnectOptions::default(), factory)
    }

    /// As [`Shard::connect`], with options. Where the endpoint says something else, that counts.
    pub fn connect_with<M>(
        &self,
        client: &LoadedClient,
        options: &ConnectOptions,
        mut factory: impl Factory<M>,
    ) -> Connecting {
        let becomes = Target::Protocol(Box::new(move |incoming| factory.build(incoming)));
        let (goal, how, preamble) = attempt_at(client, options);
        Connecting::new(self.connect_to(goal, how, becomes, preamble))
    }
}

impl TcpStream {
    /// Connects where an endpoint says, from the shard this is called on. With TLS the stream is there once the handshake
    /// is complete.
    ///
    /// # Errors
    /// [`ConnectError`]; after the endpoint's timeout, or [`Config::connect_timeout`](crate::Config::connect_timeout), it
    /// says who has not answered.
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    /// # Panics
    /// When no shard is current on this thread.
    pub async fn connect_to(client: &LoadedClient) -> std::result::Result<TcpStream, ConnectError> {
        TcpStream::connect_to_with(client, &ConnectOptions::default()).await
    }

    /// As [`TcpStream::connect_to`], with options. Where the endpoint says something else, that counts.
    ///
    /// # Errors
    /// As [`TcpStream::connect_to`].
    /// # Cancel safety
    /// As [`TcpStream::connect_to`].
    /// # Panics
    /// As [`TcpStream::connect_to`].
    pub async fn connect_to_with(
        client: &LoadedClient,
        options: &ConnectOptions,
    ) -> std::result::Result<TcpStream, ConnectError> {
        let (goal, how, preamble) = attempt_at(client, options);
        TcpStream::established(goal, how, preamble).await
    }
}

fn attempt_at(
    client: &LoadedClient,
    options: &ConnectOptions,
) -> (std::result::Result<Goal, ConnectError>, ConnectHow, Preamble) {
    let mut how = options.how();
    how.timeout = client.timeout().or(how.timeout);
    let goal = match &client.place {
        ClientPlace::Tcp { target, bind, .. } => {
            if let Some(ip) = bind {
                // One alone, so that only its family is tried.
                let bind = Some(SocketAddr::new(*ip, 0));
                (how.bind_v4, how.bind_v6) = if ip.is_ipv4() { (bind, None) } else { (None, bind) };
            }
            Ok(Goal::Ip(target.clone()))
        }
        ClientPlace::Unix { name, check, .. } => checked(Ok(name.clone()), *check).map(Goal::Unix),
    };
    let role = client.tls.as_ref().map(|(tls, name)| TlsRole::from((tls, &**name)));
    let preamble = Preamble { announcement: client.announcement.clone(), ..Preamble::tls(role.as_ref()) };
    (goal, how, preamble)
}
