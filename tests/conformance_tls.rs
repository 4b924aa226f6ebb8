//! TLS: handshakes, bytes, ends, upgrades and limits. Each test's name is a promise kept on every driver. The simulated
//! driver orders and cuts the bytes; their content comes from the real randomness that keys need.

mod common;
mod tls_kit;

#[path = "conformance_tls/bytes.rs"]
mod bytes;
#[path = "conformance_tls/ends.rs"]
mod ends;
#[path = "conformance_tls/handshakes.rs"]
mod handshakes;
#[path = "conformance_tls/limits.rs"]
mod limits;
#[path = "conformance_tls/output.rs"]
mod output;
#[path = "conformance_tls/relay.rs"]
mod relay;
#[path = "conformance_tls/sessions.rs"]
mod sessions;
#[path = "conformance_tls/tampering.rs"]
mod tampering;
#[path = "conformance_tls/unix.rs"]
mod unix;
#[path = "conformance_tls/upgrades.rs"]
mod upgrades;

use common::{Call, Log, Probe};
use shardwise::testing::Env;
use shardwise::{Listener, Result, TcpStream, TlsServerConfig, Transport};
use tls_kit::Authority;

/// Listens on shard 0 alone; every connection is a probe of `log` with its own copy of `hook`.
fn listen<H>(env: &Env, tls: &TlsServerConfig, log: &Log, hook: H) -> Result<Listener>
where
    H: FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + Clone + 'static,
{
    let log = log.clone();
    Ok(env.shard().listen_tls("127.0.0.1:0", tls, move || Probe::new(&log, hook.clone()))?)
}

/// A probe as server, and a stream as client, with TLS between them.
async fn pair<H>(env: &Env, hook: H) -> Result<(Log, TcpStream)>
where
    H: FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + Clone + 'static,
{
    let (server, client) = Authority::new().both();
    let log = Log::new();
    let listener = listen(env, &server, &log, hook)?;
    let client = TcpStream::connect_tls(listener.local_addr(), &client, "localhost").await?;
    log.saw("handshake").await;
    Ok((log, client))
}
