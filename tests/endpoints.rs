//! Endpoints that listen and connect, and the headers of proxies before their bytes. Each test's name is a promise kept on
//! every driver. What their text may be is tested where it is read, in `net/endpoint`.

mod common;
mod tls_kit;

#[path = "endpoints/announcing.rs"]
mod announcing;
#[path = "endpoints/headers.rs"]
mod headers;
#[path = "endpoints/loading.rs"]
mod loading;
#[path = "endpoints/proxied.rs"]
mod proxied;
#[path = "endpoints/refused_headers.rs"]
mod refused_headers;
#[path = "endpoints/using.rs"]
mod using;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use shardwise::endpoint::quote;
use shardwise::{
    Addr, ClientEndpoint, Listener, LoadedClient, LoadedServer, Result, ServerEndpoint, TcpStream,
};
use tls_kit::{Authority, Issued};

fn server(text: &str) -> Result<LoadedServer> {
    Ok(text.parse::<ServerEndpoint>()?.load()?)
}

fn client(text: &str) -> Result<LoadedClient> {
    Ok(text.parse::<ClientEndpoint>()?.load()?)
}

/// A plain client of `addr`.
fn client_of(addr: SocketAddr) -> LoadedClient {
    client(&format!("tcp:{}:{}", quote(&addr.ip().to_string()), addr.port())).unwrap()
}

/// Where a listener listens.
fn at<A: Clone + Into<Addr>>(listener: &Listener<A>) -> SocketAddr {
    listener.local_addr().into().as_ip().expect("it listens at an IP address")
}

/// Writes in pieces of at most `size` bytes, each sent on its own.
async fn write_in_pieces(stream: &mut TcpStream, bytes: &[u8], size: usize) -> Result<()> {
    for piece in bytes.chunks(size) {
        stream.write_all(piece).await?;
        stream.flush().await?;
    }
    Ok(())
}

/// A folder with certificates, of one test.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("shardwise-endpoints-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder { path }
    }

    fn put(&self, name: &str, content: &str) -> String {
        let path = self.path.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// A server's certificate and key; the arguments of an endpoint that name them.
    fn put_identity(&self, issued: &Issued) -> String {
        let certificate = self.put("cert.pem", &issued.certificate);
        let key = self.put("key.pem", &issued.key);
        format!("privateKey={}:certKey={}", quote(&key), quote(&certificate))
    }

    /// An authority's certificate; the argument of an endpoint that trusts it.
    fn put_roots(&self, authority: &Authority) -> String {
        format!("trustRoots={}", quote(&self.put("roots.pem", &authority.pem())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
