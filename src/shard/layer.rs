//! Wrappers around protocols: they override what they care about and forward the rest, also what is added later.

use std::os::fd::OwnedFd;

use crate::error::{CloseReason, Result};
use crate::net::input::Input;
use crate::shard::handles::transport::Transport;
use crate::shard::protocol::Protocol;

/// A protocol around another one. Every [`Protocol`] callback has a method of the same name here which forwards to
/// [`Layer::inner`]; a wrapper overrides those it is about.
///
/// ```
/// use shardwise::{Input, Layer, Protocol, Result, Transport};
///
/// /// Counts the bytes of another protocol.
/// struct Counting<P> {
///     inner: P,
///     received_bytes: usize,
/// }
///
/// impl<P: Protocol> Layer for Counting<P> {
///     fn inner(&mut self) -> &mut dyn Protocol {
///         &mut self.inner
///     }
///     fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
///         let before = input.consumed();
///         let outcome = self.inner.data_received(transport, input);
///         self.received_bytes += input.consumed() - before;
///         outcome
///     }
/// }
/// ```
pub trait Layer: 'static {
    /// The wrapped protocol.
    fn inner(&mut self) -> &mut dyn Protocol;

    /// See [`Protocol::connected`].
    fn connected(&mut self, transport: &Transport) -> Result<()> {
        self.inner().connected(transport)
    }

    /// See [`Protocol::handshake_completed`].
    fn handshake_completed(&mut self, transport: &Transport) -> Result<()> {
        self.inner().handshake_completed(transport)
    }

    /// See [`Protocol::data_received`].
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        self.inner().data_received(transport, input)
    }

    /// See [`Protocol::descriptor_received`].
    fn descriptor_received(&mut self, transport: &Transport, descriptor: OwnedFd) -> Result<()> {
        self.inner().descriptor_received(transport, descriptor)
    }

    /// See [`Protocol::read_finished`].
    fn read_finished(&mut self, transport: &Transport) -> Result<()> {
        self.inner().read_finished(transport)
    }

    /// See [`Protocol::write_finished`].
    fn write_finished(&mut self, transport: &Transport) -> Result<()> {
        self.inner().write_finished(transport)
    }

    /// See [`Protocol::write_paused`].
    fn write_paused(&mut self, transport: &Transport) -> Result<()> {
        self.inner().write_paused(transport)
    }

    /// See [`Protocol::write_resumed`].
    fn write_resumed(&mut self, transport: &Transport) -> Result<()> {
        self.inner().write_resumed(transport)
    }

    /// See [`Protocol::deadline_reached`].
    fn deadline_reached(&mut self, transport: &Transport) -> Result<()> {
        self.inner().deadline_reached(transport)
    }

    /// See [`Protocol::draining`].
    fn draining(&mut self, transport: &Transport) -> Result<()> {
        self.inner().draining(transport)
    }

    /// See [`Protocol::disconnected`].
    fn disconnected(&mut self, reason: CloseReason) {
        self.inner().disconnected(reason)
    }
}

impl<L: Layer> Protocol for L {
    fn connected(&mut self, transport: &Transport) -> Result<()> {
        Layer::connected(self, transport)
    }

    fn handshake_completed(&mut self, transport: &Transport) -> Result<()> {
        Layer::handshake_completed(self, transport)
    }

    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        Layer::data_received(self, transport, input)
    }

    fn descriptor_received(&mut self, transport: &Transport, descriptor: OwnedFd) -> Result<()> {
        Layer::descriptor_received(self, transport, descriptor)
    }

    fn read_finished(&mut self, transport: &Transport) -> Result<()> {
        Layer::read_finished(self, transport)
    }

    fn write_finished(&mut self, transport: &Transport) -> Result<()> {
        Layer::write_finished(self, transport)
    }

    fn write_paused(&mut self, transport: &Transport) -> Result<()> {
        Layer::write_paused(self, transport)
    }

    fn write_resumed(&mut self, transport: &Transport) -> Result<()> {
        Layer::write_resumed(self, transport)
    }

    fn deadline_reached(&mut self, transport: &Transport) -> Result<()> {
        Layer::deadline_reached(self, transport)
    }

    fn draining(&mut self, transport: &Transport) -> Result<()> {
        Layer::draining(self, transport)
    }

    fn disconnected(&mut self, reason: CloseReason) {
        Layer::disconnected(self, reason)
    }
}
