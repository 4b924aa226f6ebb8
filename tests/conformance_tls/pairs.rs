//! Two ends with TLS between them, as most tests begin.

use crate::common::{Call, Log, Probe, listen_options};
use crate::tls_kit::Authority;
use shardwise::testing::Env;
use shardwise::{Listener, Result, TcpStream, TlsServerConfig, Transport};

/// Listens on shard 0 alone; every connection is a probe of `log` with its own copy of `hook`.
pub(crate) fn listen<H>(env: &Env, tls: &TlsServerConfig, log: &Log, hook: H) -> Result<Listener>
where
    H: FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + Clone + 'static,
{
    let log = log.clone();
    let (options, make) = (listen_options(), move || Probe::new(&log, hook.clone()));
    Ok(env.shard().listen_tls_with("127.0.0.1:0", tls, &options, make)?)
}

/// A probe as server, and a stream as client, with TLS between them.
pub(crate) async fn pair<H>(env: &Env, hook: H) -> Result<(Log, TcpStream)>
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
