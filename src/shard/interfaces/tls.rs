//! IReactorSSL: listening and connecting with TLS.

use crate::error::{ListenError, Result};
use crate::net::addr::ToAddr;
use crate::net::target::ToTarget;
use crate::net::tls::{TlsClientConfig, TlsRole, TlsServerConfig};
use crate::shard::Shard;
use crate::shard::connecting::{Goal, Preamble, Target};
use crate::shard::handles::connecting::Connecting;
use crate::shard::handles::listener::Listener;
use crate::shard::handles::tcp_stream::TcpStream;
use crate::shard::interfaces::tcp::{ConnectOptions, ListenOptions};
use crate::shard::interfaces::unix::{UnixConnectOptions, UnixListenOptions};
use crate::shard::listening::{Opener, Opening, session_maker};
use crate::shard::protocol::Factory;

impl Shard {
    /// As [`Shard::listen_tcp`], for peers that speak TLS.
    ///
    /// [`Protocol::connected`](crate::Protocol::connected) is called when the connection stands, as ever;
    /// [`Protocol::handshake_completed`](crate::Protocol::handshake_completed) when TLS does, and no byte is delivered
    /// before. What is written before is sent after it. A handshake that fails, or takes longer than
    /// [`Config::handshake_timeout`](crate::Config::handshake_timeout), ends the connection with
    /// [`CloseReason::Tls`](crate::CloseReason::Tls). A peer that ends the connection without saying so (close_notify) is
    /// reported as [`TlsError::Truncated`](crate::TlsError::Truncated). We say so where what was written is complete:
    /// after a [`Transport::close`](crate::Transport::close) or the peer's own end, and not for a reason that is not
    /// [clean](crate::CloseReason::is_clean), such as an error or a panic of the protocol, or its deadline.
    ///
    /// ```no_run
    /// use shardwise::{Input, Protocol, Result, Runtime, Shard, TlsServerConfig, Transport};
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
    ///     // One for all shards, so that sessions are resumed on any of them.
    ///     let tls = TlsServerConfig::from_files("cert.pem", "key.pem")?;
    ///     Runtime::new().run(async move |shard: Shard| {
    ///         shard.listen_tls("127.0.0.1:7443", &tls, || Echo)?;
    ///         Ok(())
    ///     })?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`Shard::listen_tcp`]. A configuration that cannot work was refused when it was made.
    pub fn listen_tls<M>(
        &self,
        addr: impl ToAddr,
        tls: &TlsServerConfig,
        factory: impl Factory<M>,
    ) -> std::result::Result<Listener, ListenError> {
        self.listen_tls_with(addr, tls, &ListenOptions::default(), factory)
    }

    /// As [`Shard::listen_tls`], with options.
    ///
    /// # Errors
    /// As [`Shard::listen_tls`].
    pub fn listen_tls_with<M>(
        &self,
        addr: impl ToAddr,
        tls: &TlsServerConfig,
        options: &ListenOptions,
        mut factory: impl Factory<M>,
    ) -> std::result::Result<Listener, ListenError> {
        let opener = Opener::Protocols(Box::new(move |incoming| factory.build(incoming)));
        let group = self.open_listener(addr.to_addr()?, options.how(), tls_opening(opener, tls))?;
        Ok(Listener::tcp(self.clone(), group))
    }

    /// As [`Shard::serve_tcp`], for peers that speak TLS. The handler's task is there from the connection on, and the
    /// handler is called once the handshake is complete, or not at all.
    ///
    /// # Errors
    /// As [`Shard::listen_tls`].
    pub fn serve_tls<H>(
        &self,
        addr: impl ToAddr,
        tls: &TlsServerConfig,
        handler: H,
    ) -> std::result::Result<Listener, ListenError>
    where
        H: AsyncFn(TcpStream) -> Result<()> + 'static,
    {
        self.serve_tls_with(addr, tls, &ListenOptions::default(), handler)
    }

    /// As [`Shard::serve_tls`], with options.
    ///
    /// # Errors
    /// As [`Shard::listen_tls`].
    pub fn serve_tls_with<H>(
        &self,
        addr: impl ToAddr,
        tls: &TlsServerConfig,
        options: &ListenOptions,
        handler: H,
    ) -> std::result::Result<Listener, ListenError>
    where
        H: AsyncFn(TcpStream) -> Result<()> + 'static,
    {
        let opening = tls_opening(Opener::serving_secured(handler), tls);
        let group = self.open_listener(addr.to_addr()?, options.how(), opening)?;
        Ok(Listener::tcp(self.clone(), group))
    }

    /// As [`Shard::connect_tcp`], then TLS with a server that has to be `name`: a DNS name, or an IP address. The attempt
    /// succeeds when the handshake is complete.
    ///
    /// # Errors
    /// None here: whatever goes wrong is the outcome of the attempt. A `name` that cannot be one is so before anything is
    /// sent, and a failed handshake is told to the protocol, too.
    pub fn connect_tls<M>(
        &self,
        target: impl ToTarget,
        tls: &TlsClientConfig,
        name: &str,
        factory: impl Factory<M>,
    ) -> Connecting {
        self.connect_tls_with(target, tls, name, &ConnectOptions::default(), factory)
    }

    /// As [`Shard::connect_tls`], with options.
    pub fn connect_tls_with<M>(
        &self,
        target: impl ToTarget,
        tls: &TlsClientConfig,
        name: &str,
        options: &ConnectOptions,
        mut factory: impl Factory<M>,
    ) -> Connecting {
        let becomes = Target::Protocol(Box::new(move |incoming| factory.build(incoming)));
        let preamble = Preamble::tls(Some(&TlsRole::from((tls, name))));
        Connecting::new(self.connect_to(
            Goal::of_target(target.to_target()),
            options.how(),
            becomes,
            preamble,
        ))
    }
}

fn tls_opening(opener: Opener, tls: &TlsServerConfig) -> Opening {
    Opening { secure: Some(session_maker(TlsRole::from(tls))), ..opener.into() }
}

impl UnixListenOptions {
    /// The connections speak TLS, as those of [`Shard::listen_tls`] do. They pass no descriptors then.
    pub fn tls(mut self, tls: &TlsServerConfig) -> Self {
        self.secure = Some(TlsRole::from(tls));
        self
    }
}

impl UnixConnectOptions {
    /// The connection speaks TLS with a server that has to be `name`, as with [`Shard::connect_tls`]: a name of the
    /// certificate, not of the socket. It passes no descriptors then.
    pub fn tls(mut self, tls: &TlsClientConfig, name: &str) -> Self {
        self.secure = Some(TlsRole::from((tls, name)));
        self
    }
}
