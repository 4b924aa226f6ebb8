//! Descriptors that travel with the bytes of UNIX connections: from the driver to protocols and tasks.

use std::os::fd::OwnedFd;

use crate::net::connection::Connection;
use crate::net::descriptors::Descriptors;
use crate::reactor::lease::Lease;
use crate::reactor::token::Token;
use crate::shard::connections::{Handler, Slot};
use crate::shard::{Inner, Shard};

/// Received descriptors that a stream's task may leave untaken: one message's. Beyond it nothing is read, until half of
/// them are taken.
const UNREAD_MAX: usize = 253;

impl Inner {
    /// Whether descriptors that come with the connection's bytes are told, or closed unseen.
    pub(crate) fn take_descriptors(&self, token: Token, connection: &mut Connection, on: bool) {
        let descriptors = if on { connection.make_descriptors() } else { connection.descriptors_mut() };
        if let Some(descriptors) = descriptors {
            descriptors.received = on;
            self.driver.borrow_mut().receive_descriptors(token, on);
        }
    }

    /// Goes on with what a connection has brought from another shard.
    pub(crate) fn bring_descriptors(
        &self,
        token: Token,
        connection: &mut Connection,
        descriptors: Option<Descriptors>,
    ) {
        let Some(mut descriptors) = descriptors else { return };
        descriptors.retrying = false;
        if descriptors.received {
            self.driver.borrow_mut().receive_descriptors(token, true);
        }
        connection.read_holds += u16::from(descriptors.holds_reading);
        connection.set_descriptors(descriptors);
    }
}

impl Shard {
    /// Descriptors came; bytes they travelled with follow.
    pub(crate) fn on_descriptors(&self, token: Token, came: Vec<OwnedFd>) {
        let inner = &self.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        if !slot.connection.is_open() {
            return;
        }
        let Some(descriptors) = slot.connection.make_descriptors() else { return };
        descriptors.unread.extend(came);
        if !matches!(slot.handler, Handler::Stream(_)) {
            drop(connections);
            return self.deliver_descriptors(token);
        }
        // The task is woken by the bytes, unless those wait.
        if descriptors.unread.len() >= UNREAD_MAX && !descriptors.holds_reading {
            descriptors.holds_reading = true;
            slot.connection.read_holds += 1;
            slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
            let Handler::Stream(stream) = &slot.handler else { unreachable!("looked at above") };
            let stream = std::rc::Rc::clone(stream);
            drop(connections);
            // The bytes may not come before some descriptors are taken.
            stream.wake_reader_later();
        }
    }

    /// Gives the protocol those that wait, as long as it reads.
    pub(super) fn deliver_descriptors(&self, token: Token) {
        loop {
            let next = {
                let mut connections = self.inner.connections.borrow_mut();
                let Some(slot) = connections.get_mut(token) else { return };
                if !slot.connection.may_read() {
                    return;
                }
                slot.connection.descriptors_mut().and_then(|descriptors| descriptors.unread.pop_front())
            };
            let Some(descriptor) = next else { return };
            self.call_protocol(token, |protocol, transport| {
                protocol.descriptor_received(transport, descriptor)
            });
        }
    }

    /// Reading goes on: before the bytes that were kept come the descriptors that were.
    pub(super) fn deliver_kept_descriptors(&self, token: Token) {
        let has_some = |slot: &Slot| {
            let is_due = slot.marks.resumed && matches!(slot.handler, Handler::Protocol(_));
            is_due && slot.connection.has_unread_descriptors()
        };
        if self.inner.connections.borrow().get(token).is_some_and(has_some) {
            self.deliver_descriptors(token);
        }
    }

    /// Bytes came, and descriptors that the protocol was not given yet, since it had paused.
    #[cold]
    pub(super) fn received_behind_descriptors(&self, token: Token, lease: Lease) {
        self.deliver_descriptors(token);
        let is_left = |slot: &Slot| slot.connection.has_unread_descriptors();
        if self.inner.connections.borrow().get(token).is_some_and(is_left) {
            return self.received_unasked(token, &lease);
        }
        self.hand_over(token, lease);
    }

    /// Takes the next one of a stream.
    pub(super) fn next_descriptor(&self, token: Token) -> Option<OwnedFd> {
        let (descriptor, goes_on) = {
            let mut connections = self.inner.connections.borrow_mut();
            let slot = connections.get_mut(token)?;
            let descriptors = slot.connection.descriptors_mut()?;
            let descriptor = descriptors.unread.pop_front()?;
            let goes_on = descriptors.holds_reading && descriptors.unread.len() <= UNREAD_MAX / 2;
            if goes_on {
                descriptors.holds_reading = false;
                slot.connection.read_holds -= 1;
            }
            (descriptor, goes_on)
        };
        if goes_on {
            self.read_resumed(token);
        }
        Some(descriptor)
    }
}
