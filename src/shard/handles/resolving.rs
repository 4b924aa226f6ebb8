//! A lookup of a name, for whoever asked for it.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::error::ResolveError;
use crate::net::host_name::{Host, HostName};
use crate::net::resolver::Lookup;
use crate::shard::Shard;
use crate::shard::interfaces::time::Sleep;

/// A lookup begun by [`Shard::resolve`]: a lazy future of the addresses.
///
/// # Cancel safety
/// Dropping it gives the lookup up; an answer that comes later is discarded.
#[must_use = "nobody is asked unless this is awaited"]
pub struct Resolving {
    shard: Shard,
    timeout: Duration,
    state: State,
}

enum State {
    /// Nobody needs to be asked.
    Known(Result<Vec<SocketAddr>, ResolveError>),
    Unasked(HostName, u16),
    Waiting(HostName, Lookup, Sleep),
    Done,
}

impl Resolving {
    pub(crate) fn new(shard: &Shard, host: &str, port: u16) -> Self {
        let state = match Host::new(host) {
            Ok(Host::Ip(ip)) => State::Known(Ok(vec![SocketAddr::new(ip, port)])),
            Ok(Host::Name(name)) => State::Unasked(name, port),
            Err(error) => State::Known(Err(error.into())),
        };
        Resolving::with(shard, state)
    }

    pub(crate) fn of_name(shard: &Shard, name: HostName, port: u16) -> Self {
        Resolving::with(shard, State::Unasked(name, port))
    }

    fn with(shard: &Shard, state: State) -> Self {
        let timeout = shard.inner.shared.config.resolve_timeout;
        Resolving { shard: shard.clone(), timeout, state }
    }

    /// Gives up `after` the first poll, instead of after [`Config::resolve_timeout`](crate::Config::resolve_timeout).
    pub fn timeout(mut self, after: Duration) -> Self {
        self.timeout = after;
        self
    }

    /// Asks the resolver, which is application code: its panic is the lookup's failure.
    fn contained<T>(&self, name: &HostName, ask: impl FnOnce() -> T) -> Result<T, ResolveError> {
        catch_unwind(AssertUnwindSafe(ask)).map_err(|payload| {
            let message = self.shard.panicked("a resolver", payload);
            let source = io::Error::other(format!("the resolver panicked: {message}"));
            ResolveError::Failed { name: name.to_string(), source }
        })
    }

    fn poll_lookup(
        &mut self,
        name: &HostName,
        lookup: &mut Lookup,
        sleep: &mut Sleep,
        context: &mut Context<'_>,
    ) -> Poll<Result<Vec<SocketAddr>, ResolveError>> {
        match self.contained(name, || lookup.as_mut().poll(context)) {
            Err(error) => return Poll::Ready(Err(error)),
            Ok(Poll::Ready(Ok(addrs))) if addrs.is_empty() => {
                return Poll::Ready(Err(ResolveError::NotFound { name: name.to_string() }));
            }
            Ok(Poll::Ready(outcome)) => return Poll::Ready(outcome),
            Ok(Poll::Pending) => {}
        }
        Pin::new(sleep)
            .poll(context)
            .map(|()| Err(ResolveError::TimedOut { name: name.to_string(), after: self.timeout }))
    }
}

impl Future for Resolving {
    type Output = Result<Vec<SocketAddr>, ResolveError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        match std::mem::replace(&mut this.state, State::Done) {
            State::Known(outcome) => Poll::Ready(outcome),
            State::Unasked(name, port) => {
                let resolver = std::sync::Arc::clone(&this.shard.inner.shared.resolver);
                let sleep = this.shard.sleep(this.timeout);
                match this.contained(&name, || resolver.lookup(&name, port)) {
                    Ok(lookup) => {
                        this.state = State::Waiting(name, lookup, sleep);
                        self.poll(context)
                    }
                    Err(error) => Poll::Ready(Err(error)),
                }
            }
            State::Waiting(name, mut lookup, mut sleep) => {
                let polled = this.poll_lookup(&name, &mut lookup, &mut sleep, context);
                if polled.is_pending() {
                    this.state = State::Waiting(name, lookup, sleep);
                } else {
                    this.shard.drop_contained(lookup);
                }
                polled
            }
            State::Done => panic!("a lookup was polled after it had given its result"),
        }
    }
}

impl Drop for Resolving {
    fn drop(&mut self) {
        if let State::Waiting(_, lookup, _) = std::mem::replace(&mut self.state, State::Done) {
            self.shard.drop_contained(lookup);
        }
    }
}

impl fmt::Debug for Resolving {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.state {
            State::Unasked(name, _) | State::Waiting(name, ..) => Some(name),
            State::Known(_) | State::Done => None,
        };
        formatter.debug_struct("Resolving").field("name", &name).finish()
    }
}
