//! Hosts that a test makes up: a resolver in memory, as slow and as fickle as name servers are, by the seed.

use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::ResolveError;
use crate::net::host_name::HostName;
use crate::net::resolver::{Lookup, Resolver};
use crate::shard::Shard;

/// A [`Resolver`] that knows the hosts it is told, and `localhost`. Clones know the same.
///
/// An answer takes up to 5 ms of the shard's time, and the addresses come in any order (see [`Names::keep_order`]); both
/// are drawn from the shard's random bits, so in a simulation they repeat with its seed.
#[derive(Clone)]
pub struct Names {
    state: Arc<Mutex<State>>,
}

struct State {
    hosts: BTreeMap<String, Vec<IpAddr>>,
    silent: Vec<String>,
    keeps_order: bool,
    asked: usize,
}

/// The longest an answer takes.
const LATENCY_MAX: Duration = Duration::from_millis(5);

impl Default for Names {
    fn default() -> Self {
        Names::new()
    }
}

impl Names {
    /// Knows `localhost` alone (RFC 6761 §6.3).
    pub fn new() -> Self {
        let localhost = vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
        let hosts = BTreeMap::from([("localhost".to_string(), localhost)]);
        let state = State { hosts, silent: Vec::new(), keeps_order: false, asked: 0 };
        Names { state: Arc::new(Mutex::new(state)) }
    }

    /// From now on `host` has these addresses, and no others. With none it is not found.
    ///
    /// # Panics
    /// When `host` is no name, and when an address is none: that is a bug in the test.
    pub fn insert(&self, host: &str, addrs: &[&str]) {
        let addrs = addrs.iter().map(|addr| addr.parse().expect("an IP address")).collect();
        self.lock().hosts.insert(key(&HostName::new(host).expect("a host name")), addrs);
    }

    /// From now on nobody answers for `host`.
    ///
    /// # Panics
    /// When `host` is no name: that is a bug in the test.
    pub fn silence(&self, host: &str) {
        self.lock().silent.push(key(&HostName::new(host).expect("a host name")));
    }

    /// From now on addresses come in the order they were given.
    pub fn keep_order(&self) {
        self.lock().keeps_order = true;
    }

    /// How many lookups there have been.
    pub fn asked(&self) -> usize {
        self.lock().asked
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A dot at the end changes nothing here.
fn key(name: &HostName) -> String {
    name.as_str().trim_end_matches('.').to_string()
}

impl Resolver for Names {
    fn lookup(&self, name: &HostName, port: u16) -> Lookup {
        let shard = Shard::current();
        let (mut addrs, silent) = {
            let mut state = self.lock();
            state.asked += 1;
            let mut addrs = state.hosts.get(&key(name)).cloned().unwrap_or_default();
            if !state.keeps_order {
                // Fisher and Yates.
                for last in (1..addrs.len()).rev() {
                    addrs.swap(last, (shard.random() % (last as u64 + 1)) as usize);
                }
            }
            (addrs, state.silent.contains(&key(name)))
        };
        let latency = Duration::from_nanos(shard.random() % LATENCY_MAX.as_nanos() as u64);
        let name = name.to_string();
        Box::pin(async move {
            if silent {
                pending::<()>().await;
            }
            shard.sleep(latency).await;
            if addrs.is_empty() {
                return Err(ResolveError::NotFound { name });
            }
            Ok(addrs.drain(..).map(|ip| SocketAddr::new(ip, port)).collect())
        })
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Names").field("hosts", &self.lock().hosts).finish()
    }
}
