//! Lookups that block, such as the system's, on threads of their own; answers come home as any call's do.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use crate::config::Config;
use crate::cross_shard::{Answer, answer_pair};
use crate::error::ResolveError;
use crate::net::host_name::HostName;
use crate::net::lookup_threads::{Job, Limits, LookupThreads, Refusal};
use crate::net::resolver::{Lookup, Resolver};

/// A [`Resolver`] that calls a function which may block, on a few threads of its own.
///
/// The default of every runtime is [`BlockingResolver::system`]. The threads start when there is work, up to
/// [`Config::resolver_threads_max`], and end after [`Config::resolver_thread_idle`] without; they run on any CPU the process
/// may use, no shard waits for one, and the end of a runtime does not either: a lookup that hangs ends when it does. A
/// lookup that is dropped before its turn does not run.
pub struct BlockingResolver {
    look_up: Arc<LookUp>,
    threads: LookupThreads,
}

type LookUp = dyn Fn(&HostName, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

impl BlockingResolver {
    /// The system's resolver, `getaddrinfo(3)`: addresses of all families, in the order of RFC 6724.
    pub fn system(config: &Config) -> Self {
        BlockingResolver::new(config, |name, port| Ok((name.as_str(), port).to_socket_addrs()?.collect()))
    }

    /// Calls `look_up`. A panic of it fails that lookup alone.
    pub fn new(
        config: &Config,
        look_up: impl Fn(&HostName, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        let limits = Limits {
            threads_max: config.resolver_threads_max.max(1),
            queue_max: config.resolver_queue_max.max(1),
            idle: config.resolver_thread_idle,
        };
        BlockingResolver { look_up: Arc::new(look_up), threads: LookupThreads::new(limits) }
    }
}

impl Resolver for BlockingResolver {
    fn lookup(&self, name: &HostName, port: u16) -> Lookup {
        let (answer, call) = answer_pair();
        let job = Question { look_up: Arc::clone(&self.look_up), name: name.clone(), port, answer };
        let refused = self.threads.submit(Box::new(job)).err();
        let name = name.to_string();
        Box::pin(async move {
            match refused {
                Some(Refusal::Full(waiting)) => return Err(ResolveError::Busy { name, waiting }),
                Some(Refusal::NoThread(source)) => return Err(ResolveError::Failed { name, source }),
                None => {}
            }
            match call.await {
                Ok(outcome) => outcome.map_err(|source| ResolveError::Failed { name, source }),
                Err(_) => {
                    let source = io::Error::other("the lookup panicked");
                    Err(ResolveError::Failed { name, source })
                }
            }
        })
    }
}

impl fmt::Debug for BlockingResolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BlockingResolver")
    }
}

/// One lookup on its way to a thread.
struct Question {
    look_up: Arc<LookUp>,
    name: HostName,
    port: u16,
    answer: Answer<io::Result<Vec<SocketAddr>>>,
}

impl Job for Question {
    fn is_wanted(&self) -> bool {
        self.answer.is_wanted()
    }

    fn run(self: Box<Self>) {
        let outcome = (self.look_up)(&self.name, self.port);
        self.answer.send(Ok(outcome));
    }
}
