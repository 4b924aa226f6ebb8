//! A listener group, as whoever opened it sees it.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::addr::{Addr, UnixAddr};
use crate::shard::Shard;
use crate::shard::groups::Group;

/// A listening address of the runtime. All shards that listen there are one group: closing it on one closes it on all.
///
/// Dropping it changes nothing; it goes on listening. Its address is a [`SocketAddr`] for TCP, a [`UnixAddr`] for UNIX
/// sockets, and an [`Addr`] where it may be either.
#[derive(Clone)]
pub struct Listener<A = SocketAddr> {
    shard: Shard,
    group: Arc<Group>,
    addr: A,
}

impl Listener {
    pub(crate) fn tcp(shard: Shard, group: Arc<Group>) -> Self {
        let addr = group.addr.as_ip().expect("a TCP listener has an IP address");
        Listener { shard, group, addr }
    }
}

impl Listener<UnixAddr> {
    pub(crate) fn unix(shard: Shard, group: Arc<Group>) -> Self {
        let addr = group.addr.as_unix().expect("a UNIX listener has a name").clone();
        Listener { shard, group, addr }
    }
}

impl Listener<Addr> {
    pub(crate) fn any(shard: Shard, group: Arc<Group>) -> Self {
        let addr = group.addr.clone();
        Listener { shard, group, addr }
    }
}

impl<A: Clone> Listener<A> {
    /// The address really bound: for port 0, with the number the kernel chose.
    pub fn local_addr(&self) -> A {
        self.addr.clone()
    }
}

impl<A> Listener<A> {
    /// The same listener, for code that serves any kind.
    pub fn into_any(self) -> Listener<Addr> {
        Listener::any(self.shard, self.group)
    }

    /// Stops listening on every shard. Connections whose handshake has finished are still accepted and served, also
    /// those that wait in a queue. The future is ready when the address can be bound again; it need not be awaited.
    ///
    /// While descriptors are short, what waits goes on waiting, for at most
    /// [`Config::drain_timeout`](crate::Config::drain_timeout), until some are free. It is reset after that.
    ///
    /// Before every shard has started nothing is accepted, and what waits is reset.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing: the group closes all the same.
    pub fn close(&self) -> Closing {
        self.shard.close_group(&self.group);
        Closing::of(Arc::clone(&self.group))
    }
}

impl<A> fmt::Debug for Listener<A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Listener({})", self.group.addr)
    }
}

/// Ready when a listener group, or a group of datagram sockets, has closed on all its shards.
pub struct Closing {
    group: Arc<Group>,
}

impl Closing {
    pub(crate) fn of(group: Arc<Group>) -> Self {
        Closing { group }
    }
}

impl Future for Closing {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.group.poll_closed(context.waker()) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl fmt::Debug for Closing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Closing({})", self.group.addr)
    }
}
