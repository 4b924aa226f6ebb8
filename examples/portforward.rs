//! Hands each connection on to another endpoint, both ways until both sides have finished. Ends TLS, or begins it, and
//! takes and sends PROXY protocol headers, as the two endpoints and `--proxy-protocol` say.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use shardwise::policies::{ConnectionLimit, Policies};
use shardwise::proxy_protocol::{Addresses, Version};
use shardwise::{
    ClientEndpoint, IpNetwork, ListenOptions, LoadedClient, Result, Shard, TcpStream, copy_bidirectional,
};

#[derive(clap::Args)]
struct Own {
    /// Whom to hand connections on to: HOST:PORT, or an endpoint such as tls:example.org:443 or
    /// tcp:10.0.0.7:80:timeout=2
    #[arg(long, value_name = "ENDPOINT")]
    connect: ClientEndpoint,

    /// Tells the other side whose connection it is, by a PROXY protocol header of this version
    #[arg(long, value_enum, value_name = "VERSION")]
    proxy_protocol: Option<Header>,

    /// Whose headers are believed where --listen is a haproxy: endpoint, as networks: 10.0.0.0/8,::1. Without it:
    /// everybody's
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',')]
    trust_proxies: Option<Vec<IpNetwork>>,

    /// Ends a connection on which no byte has gone either way for this many seconds. Without it: never
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    idle_timeout: Option<u64>,

    /// How many connections there may be, on all shards together: one too many is reset. Without it: as many as the
    /// process may have descriptors for
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections_max: Option<u32>,
}

const MOST_SECONDS: u64 = 7 * 24 * 3600;

#[derive(Clone, Copy, ValueEnum)]
enum Header {
    /// A line of text
    V1,
    /// Binary
    V2,
}

fn main() -> ExitCode {
    let (flags, own) = common::parse_or_exit::<Own>("Hands each connection on to another endpoint.", 7002);
    let mut server = flags.server_or_exit();
    if let Some(networks) = own.trust_proxies {
        server = server.trust_proxies(networks);
    }
    let upstream = match own.connect.load() {
        Ok(upstream) => upstream,
        Err(error) => return common::unusable("--connect", &error).into(),
    };
    let header = own.proxy_protocol;
    let mut policies = Policies::new();
    if let Some(seconds) = own.idle_timeout {
        policies = policies.idle_timeout(Duration::from_secs(seconds));
    }
    if let Some(connections) = own.connections_max {
        policies = policies.limit_connections(&ConnectionLimit::new().total(connections as usize));
    }
    let options = ListenOptions::new().policies(&policies);
    common::serve(flags.runtime(), async move |shard: Shard| {
        let upstream = upstream.clone();
        let handler = async move |client| forward(client, &upstream, header).await;
        let listener = shard.serve_with(&server, &options, handler)?;
        common::announce(&shard, &listener);
        Ok(())
    })
}

/// Joins one connection with one of its own to `upstream`.
async fn forward(mut client: TcpStream, upstream: &LoadedClient, header: Option<Header>) -> Result<()> {
    // What it has sent until we are connected is part of a whole, as what follows is: a stop of the runtime does not end it.
    client.set_ends_on_drain(false);
    let mut server = match connect(&client, upstream, header).await {
        Ok(server) => server,
        Err(error) => {
            tracing::warn!(%error, client = ?client.transport().peer(), "a connection cannot be handed on");
            client.abort();
            return Ok(());
        }
    };
    let joined = copy_bidirectional(&mut client, &mut server).await;
    if let Err(error) = joined {
        tracing::info!(%error, client = ?client.transport().peer(), "a connection broke");
        // What broke on one side does not end in order on the other, as if that had been all.
        client.abort();
        server.abort();
    }
    Ok(())
}

async fn connect(client: &TcpStream, upstream: &LoadedClient, header: Option<Header>) -> Result<TcpStream> {
    let Some(header) = header else { return Ok(TcpStream::connect_to(upstream).await?) };
    let addresses = match (client.peer_addr(), client.local_addr()) {
        (Ok(source), Ok(destination)) => Addresses::tcp(source, destination),
        // Of a UNIX socket's clients there is nothing to tell.
        _ => Addresses::Unknown,
    };
    let version = match header {
        Header::V1 => Version::V1,
        Header::V2 => Version::V2,
    };
    let upstream = upstream.clone().announcing(version, &addresses, &[])?;
    Ok(TcpStream::connect_to(&upstream).await?)
}
