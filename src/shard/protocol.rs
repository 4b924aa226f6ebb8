//! What an application writes per connection, event style, and how it is made for each one.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::ShardId;
use crate::addr::Addr;
use crate::error::{CloseReason, Result};
use crate::net::input::Input;
use crate::net::proxy_protocol::ProxyHeader;
use crate::shard::handles::transport::Transport;

/// The meaning of one connection's bytes: callbacks that run on the connection's shard, one at a time.
///
/// Nothing re-enters: what a callback does to its transport is never reported back inside it. An `Err` closes that
/// connection, with the error as the reason and after the output written so far; a panic costs that connection
/// alone. [`Protocol::disconnected`] is called exactly once, last, after [`Protocol::connected`] was called; the
/// protocol is dropped right after.
///
/// # Threads
/// A protocol never leaves its shard, so it need not be `Send`.
///
/// ```
/// use shardwise::{Input, Protocol, Result, Transport};
///
/// struct Echo;
/// impl Protocol for Echo {
///     fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
///         transport.write(input.take())?;
///         Ok(())
///     }
/// }
/// ```
pub trait Protocol: 'static {
    /// The connection stands. Pausing here is honoured: no input comes before it is resumed.
    ///
    /// Where the connection begins with TLS its handshake has only begun. What is written here is sent after it, and no
    /// input comes before [`Protocol::handshake_completed`].
    fn connected(&mut self, transport: &Transport) -> Result<()> {
        let _ = transport;
        Ok(())
    }

    /// The TLS handshake is complete: [`Transport::tls_info`] tells with whom, and what was agreed on. Whoever does not
    /// like it aborts or closes here, and has been given no byte. Not called when the handshake fails: then
    /// [`Protocol::disconnected`] is.
    fn handshake_completed(&mut self, transport: &Transport) -> Result<()> {
        let _ = transport;
        Ok(())
    }

    /// Bytes came. Take whole frames and leave the rest; it comes back in front of the next bytes.
    ///
    /// While the unsent output of an accepted connection is above the high watermark no bytes come, and those in hand run
    /// dry: see [`Transport::set_reads_above_high`].
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()>;

    /// The peer of a UNIX connection has passed a descriptor; it is ours now, and closed on exec. Comes before the bytes it
    /// travelled with, and several in the order they were passed. Only where they are taken: see
    /// [`Transport::set_takes_descriptors`]; elsewhere they are closed unseen.
    fn descriptor_received(&mut self, transport: &Transport, descriptor: OwnedFd) -> Result<()> {
        let _ = (transport, descriptor);
        Ok(())
    }

    /// The peer has finished (FIN): no more bytes will come. Unless overridden, what is queued is sent and the
    /// connection closed. To go on writing, override it and close later.
    fn read_finished(&mut self, transport: &Transport) -> Result<()> {
        transport.close();
        Ok(())
    }

    /// Our FIN is out, after [`Transport::shutdown_write`]. Bytes may still come.
    fn write_finished(&mut self, transport: &Transport) -> Result<()> {
        let _ = transport;
        Ok(())
    }

    /// Unsent output has gone above the high watermark: stop writing. Once per crossing.
    fn write_paused(&mut self, transport: &Transport) -> Result<()> {
        let _ = transport;
        Ok(())
    }

    /// Unsent output is back at the low watermark: write on. Once per crossing.
    fn write_resumed(&mut self, transport: &Transport) -> Result<()> {
        let _ = transport;
        Ok(())
    }

    /// The deadline set by [`Transport::set_deadline`] has passed. Unless overridden, the connection is closed with
    /// [`CloseReason::DeadlineReached`].
    fn deadline_reached(&mut self, transport: &Transport) -> Result<()> {
        transport.close_because(CloseReason::DeadlineReached);
        Ok(())
    }

    /// The shard is stopping: finish what is under way, then close. Unless overridden, the connection is closed at
    /// once, after the input that had come was delivered, unless reading is held, and the answers were sent. What is still
    /// open at the drain deadline is aborted.
    fn draining(&mut self, transport: &Transport) -> Result<()> {
        transport.close();
        Ok(())
    }

    /// The connection has ended, and why. The last call.
    fn disconnected(&mut self, reason: CloseReason) {
        let _ = reason;
    }
}

/// A connection about to be given a protocol.
#[derive(Debug)]
pub struct Incoming<'a> {
    pub(crate) peer: &'a Addr,
    pub(crate) local: &'a Addr,
    pub(crate) shard: ShardId,
    pub(crate) proxy_header: Option<&'a ProxyHeader>,
}

impl Incoming<'_> {
    /// The other end, unless it is a UNIX socket; behind a proxy that has said whose connection it is, the client.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer.as_ip()
    }

    /// The other end, whatever it is. Clients of UNIX sockets seldom have a name.
    pub fn peer(&self) -> &Addr {
        self.peer
    }

    /// Our end, unless it is a UNIX socket: for a listener, the address it listens on; behind a proxy that has said it, the
    /// address that the client connected to.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local.as_ip()
    }

    /// Our end, whatever it is.
    pub fn local(&self) -> &Addr {
        self.local
    }

    /// What a proxy has said about the connection, and which proxy: see [`Transport::proxy_header`].
    pub fn proxy_header(&self) -> Option<&ProxyHeader> {
        self.proxy_header
    }

    /// The shard the connection will live on.
    pub fn shard(&self) -> ShardId {
        self.shard
    }
}

/// Makes the protocol of each connection: any `|| Echo` or `|incoming: &Incoming<'_>| Echo::new(incoming)`, or one
/// of these returning an `Option`, where `None` refuses the connection.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not make protocols",
    note = "write `|| Echo` or `|incoming: &Incoming<'_>| Echo::new(incoming)`, where the result is a `Protocol` or an `Option` of one"
)]
pub trait Factory<Marker>: 'static {
    /// Makes the protocol for `incoming`; `None` refuses the connection.
    fn build(&mut self, incoming: &Incoming<'_>) -> Option<Box<dyn Protocol>>;
}

/// Marks a factory that always accepts.
#[doc(hidden)]
pub struct Always;
/// Marks a factory that may refuse.
#[doc(hidden)]
pub struct Maybe;

impl<F, P> Factory<(Always, fn() -> P)> for F
where
    F: FnMut() -> P + 'static,
    P: Protocol,
{
    fn build(&mut self, _incoming: &Incoming<'_>) -> Option<Box<dyn Protocol>> {
        Some(Box::new(self()))
    }
}

impl<F, P> Factory<(Maybe, fn() -> P)> for F
where
    F: FnMut() -> Option<P> + 'static,
    P: Protocol,
{
    fn build(&mut self, _incoming: &Incoming<'_>) -> Option<Box<dyn Protocol>> {
        self().map(|protocol| Box::new(protocol) as Box<dyn Protocol>)
    }
}

impl<F, P> Factory<(Always, fn(&Incoming<'_>) -> P)> for F
where
    F: FnMut(&Incoming<'_>) -> P + 'static,
    P: Protocol,
{
    fn build(&mut self, incoming: &Incoming<'_>) -> Option<Box<dyn Protocol>> {
        Some(Box::new(self(incoming)))
    }
}

impl<F, P> Factory<(Maybe, fn(&Incoming<'_>) -> P)> for F
where
    F: FnMut(&Incoming<'_>) -> Option<P> + 'static,
    P: Protocol,
{
    fn build(&mut self, incoming: &Incoming<'_>) -> Option<Box<dyn Protocol>> {
        self(incoming).map(|protocol| Box::new(protocol) as Box<dyn Protocol>)
    }
}
