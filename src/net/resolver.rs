//! What resolves names: the seam between a shard that asks and whoever knows the answer. Knows no addresses itself.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use super::host_name::HostName;
use crate::error::ResolveError;

/// Finds the addresses of hosts. One per runtime, installed with [`Runtime::resolver`](crate::Runtime::resolver); shared by
/// all shards.
///
/// ```
/// use shardwise::{HostName, Lookup, ResolveError, Resolver, Runtime};
/// use std::net::SocketAddr;
///
/// /// Knows one host.
/// struct OneHost;
///
/// impl Resolver for OneHost {
///     fn lookup(&self, name: &HostName, port: u16) -> Lookup {
///         let known = name.as_str() == "db.internal";
///         let name = name.to_string();
///         Box::pin(async move {
///             if known { Ok(vec![SocketAddr::from(([10, 0, 0, 7], port))]) } else { Err(ResolveError::NotFound { name }) }
///         })
///     }
/// }
///
/// let runtime = Runtime::new().resolver(OneHost);
/// ```
///
/// # Threads
/// Called on the shard that asks, and must not block it: what blocks belongs on a thread, as in
/// [`BlockingResolver`](crate::BlockingResolver). The lookup is polled on that shard only, and may be woken from anywhere.
pub trait Resolver: Send + Sync + 'static {
    /// The addresses of `name`, of any family, the better ones first, each with `port`.
    ///
    /// Dropping the lookup cancels it. A panic of it fails this lookup alone.
    fn lookup(&self, name: &HostName, port: u16) -> Lookup;
}

/// A lookup under way. No address at all counts as [`ResolveError::NotFound`].
pub type Lookup = Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>, ResolveError>>>>;

impl<R: Resolver + ?Sized> Resolver for std::sync::Arc<R> {
    fn lookup(&self, name: &HostName, port: u16) -> Lookup {
        (**self).lookup(name, port)
    }
}
