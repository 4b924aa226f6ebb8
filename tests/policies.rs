//! Policies: idle timeouts, rates, limits and the log of traffic, on protocols and streams, with and without TLS. Each test's
//! name is a promise kept on every driver. Simulated time is exact, so there both bounds of a time are checked; on a real
//! kernel, where a busy machine may come late, the lower one.

mod common;
mod tls_kit;

#[path = "policies/idle.rs"]
mod idle;
#[path = "policies/limits.rs"]
mod limits;
#[path = "policies/rates.rs"]
mod rates;
#[path = "policies/traffic.rs"]
mod traffic;

use std::time::{Duration, Instant};

use common::{Call, Log, Probe};
use shardwise::policies::Policies;
use shardwise::testing::Env;
use shardwise::{ListenOptions, Listener, Result, TcpStream, Transport};

const MS: Duration = Duration::from_millis(1);

fn options(policies: &Policies) -> ListenOptions {
    ListenOptions::new().policies(policies)
}

/// Listens on shard 0 alone; every connection is a probe of `log` with its own copy of `hook`.
fn listen<H>(env: &Env, policies: &Policies, log: &Log, hook: H) -> Result<Listener>
where
    H: FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + Clone + 'static,
{
    let log = log.clone();
    let make = move || Probe::new(&log, hook.clone());
    Ok(env.shard().listen_tcp_with("127.0.0.1:0", &options(policies), make)?)
}

/// A probe under `policies` as server, and a stream without any as client.
async fn pair<H>(env: &Env, policies: &Policies, hook: H) -> Result<(Log, TcpStream)>
where
    H: FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + Clone + 'static,
{
    let log = Log::new();
    let listener = listen(env, policies, &log, hook)?;
    let client = TcpStream::connect(listener.local_addr()).await?;
    log.saw("connected").await;
    Ok((log, client))
}

/// Checks how long something took: never less than `least`; in simulated time, no more than `slack` longer.
fn assert_took(env: &Env, since: Instant, least: Duration, slack: Duration) {
    let took = env.shard().now().saturating_duration_since(since);
    assert!(took >= least, "{took:?}, not {least:?}");
    assert!(
        !env.is_simulated() || took <= least + slack,
        "{took:?}, not {least:?} and {slack:?} at the most"
    );
}
