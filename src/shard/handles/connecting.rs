//! A connection being established, for whoever asked for it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::addr::UnixAddr;
use crate::error::ConnectError;
use crate::net::target::ConnectTarget;
use crate::shard::Shard;
use crate::shard::connecting::{Goal, PendingAttempt};
use crate::shard::handles::transport::Transport;

/// An attempt begun by [`Shard::connect_tcp`] or [`Shard::connect_unix`]: a future of the connection's [`Transport`].
///
/// Exactly one of the outcomes comes true: the protocol is made and connected, or the attempt fails. Neither happens
/// before that call has returned. Dropping this gives the attempt up; to let it go on by itself, say what is to
/// happen when it fails with [`Connecting::on_failure`].
#[must_use = "dropping it gives the attempt up"]
pub struct Connecting {
    attempt: PendingAttempt,
}

impl Connecting {
    pub(crate) fn new(attempt: PendingAttempt) -> Self {
        Connecting { attempt }
    }

    /// What is aimed at, as it was asked for; `None` when that was no target, or is a UNIX socket.
    pub fn destination(&self) -> Option<&ConnectTarget> {
        match self.attempt.goal() {
            Some(Goal::Ip(target)) => Some(target),
            _ => None,
        }
    }

    /// The UNIX socket that is aimed at; `None` when it is none, or the name was none.
    pub fn unix_destination(&self) -> Option<&UnixAddr> {
        match self.attempt.goal() {
            Some(Goal::Unix(name)) => Some(name),
            _ => None,
        }
    }

    /// Gives the attempt up, however far it is: it fails with [`ConnectError::Cancelled`]. Without effect once there is an outcome.
    pub fn cancel(&self) {
        self.attempt.cancel();
    }

    /// Lets the attempt go on by itself, and calls `call` in a later turn if it fails.
    pub fn on_failure(self, call: impl FnOnce(&Shard, ConnectError) + 'static) {
        self.attempt.on_failure(Box::new(call));
    }
}

impl Future for Connecting {
    type Output = Result<Transport, ConnectError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.attempt).poll(context)
    }
}

impl fmt::Debug for Connecting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let destination = self.attempt.goal().map(Goal::to_string);
        formatter.debug_struct("Connecting").field("destination", &destination).finish()
    }
}
