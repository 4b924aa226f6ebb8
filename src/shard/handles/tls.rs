//! ITLSTransport: TLS on a connection that stands, and what was agreed on.

use std::io;

use crate::error::{ConnectError, TlsError};
use crate::net::connection::{ReadHalf, WriteHalf};
use crate::net::target::ToTarget;
use crate::net::tls::{TlsClientConfig, TlsInfo, TlsRole};
use crate::net::wire::Tls;
use crate::shard::connecting::{Goal, Preamble};
use crate::shard::handles::tcp_stream::TcpStream;
use crate::shard::handles::transport::Transport;
use crate::shard::interfaces::tcp::ConnectOptions;

impl Transport {
    /// Speaks TLS from here on (STARTTLS), as the server with a `&TlsServerConfig`, as the client with
    /// `(&TlsClientConfig, "name of the server")`: whichever side opened the connection.
    ///
    /// What was written before goes out first, as it is; what is written after it waits for the handshake, whose end is
    /// [`Protocol::handshake_completed`](crate::Protocol::handshake_completed). No byte that the protocol has not consumed
    /// is taken for plaintext any more: the input runs dry, and what is left of it belongs to the handshake, so that
    /// nobody can slip a command in before it (CVE-2011-0411). A protocol has to stop parsing here, and must not have
    /// consumed more.
    ///
    /// # Errors
    /// [`TlsError`]: the name is none, the connection speaks TLS already, or is not open in both directions. Nothing has
    /// changed then.
    pub fn start_tls(&self, role: impl Into<TlsRole>) -> Result<(), TlsError> {
        let session = role.into().session()?;
        let shard = self.shard();
        let inner = &shard.inner;
        let mut connections = inner.connections.borrow_mut();
        let slot = connections.get_mut(self.token()).ok_or(TlsError::NotConnected)?;
        if slot.connection.wire.is_tls() {
            return Err(TlsError::AlreadyTls);
        }
        let connection = &slot.connection;
        if !connection.is_open()
            || connection.write != WriteHalf::Open
            || connection.read == ReadHalf::Finished
        {
            return Err(TlsError::NotConnected);
        }
        shard.secure(self.token(), slot, session);
        Ok(())
    }

    /// Whether the connection speaks TLS, from [`Transport::start_tls`] or the beginning on.
    pub fn is_tls(&self) -> bool {
        self.look(|slot| slot.connection.wire.is_tls()).unwrap_or(false)
    }

    /// What was agreed on with the peer; `None` without TLS, and before the handshake is complete. Makes copies.
    pub fn tls_info(&self) -> Option<TlsInfo> {
        self.look(|slot| slot.connection.tls().and_then(Tls::info)).flatten()
    }
}

impl TcpStream {
    /// Connects to `target`, from the shard this is called on, and speaks TLS with a server that has to be `name`. What comes
    /// out is a stream like any other; its bytes are sealed on their way.
    ///
    /// # Errors
    /// [`ConnectError`]; a handshake that fails is [`ConnectError::Tls`].
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    /// # Panics
    /// When no shard is current on this thread.
    pub async fn connect_tls(
        target: impl ToTarget,
        tls: &TlsClientConfig,
        name: &str,
    ) -> Result<TcpStream, ConnectError> {
        TcpStream::connect_tls_with(target, tls, name, &ConnectOptions::default()).await
    }

    /// As [`TcpStream::connect_tls`], with options.
    ///
    /// # Errors
    /// As [`TcpStream::connect_tls`].
    /// # Cancel safety
    /// As [`TcpStream::connect_tls`].
    /// # Panics
    /// As [`TcpStream::connect_tls`].
    pub async fn connect_tls_with(
        target: impl ToTarget,
        tls: &TlsClientConfig,
        name: &str,
        options: &ConnectOptions,
    ) -> Result<TcpStream, ConnectError> {
        let preamble = Preamble::tls(Some(&TlsRole::from((tls, name))));
        TcpStream::established(Goal::of_target(target.to_target()), options.how(), preamble).await
    }

    /// As [`Transport::start_tls`], and waits until the handshake is complete. Received bytes that were not read belong to
    /// it.
    ///
    /// # Errors
    /// An [`io::Error`] around the [`TlsError`], or the connection broke. `NotConnected` when it was closed meanwhile.
    /// # Cancel safety
    /// TLS has begun by the first poll, and goes on when the future is dropped; reads and writes work then as well.
    pub async fn start_tls(&mut self, role: impl Into<TlsRole>) -> io::Result<()> {
        self.transport()
            .start_tls(role)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.secured().await
    }

    /// What was agreed on with the peer; see [`Transport::tls_info`].
    pub fn tls_info(&self) -> Option<TlsInfo> {
        self.transport().tls_info()
    }
}
