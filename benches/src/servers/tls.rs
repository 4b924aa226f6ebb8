//! The TLS servers: tokio-rustls, and the library, each as an echo and as a mover of bulk. Does not measure.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::Result;

/// What all servers here speak TLS with: TLS 1.3 and 1.2, a P-256 certificate of their own, two stateless tickets.
fn config() -> Result<Arc<ServerConfig>> {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)?;
    config.ticketer = Ticketer::new()?;
    Ok(Arc::new(config))
}

/// What a bulk client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bulk {
    /// So much is to come from the server, in writes of so much.
    Download { bytes: u32, write_bytes: u32 },
    /// So much follows, and is acknowledged with one byte.
    Upload { bytes: u32 },
}

impl Bulk {
    pub(crate) const REQUEST_BYTES: usize = 9;
    pub(crate) const ACKNOWLEDGED: u8 = b'.';

    pub(crate) fn encode(self) -> [u8; Self::REQUEST_BYTES] {
        let (kind, bytes, write_bytes) = match self {
            Bulk::Download { bytes, write_bytes } => (b'd', bytes, write_bytes),
            Bulk::Upload { bytes } => (b'u', bytes, 0),
        };
        let mut request = [kind; Self::REQUEST_BYTES];
        request[1..5].copy_from_slice(&bytes.to_le_bytes());
        request[5..].copy_from_slice(&write_bytes.to_le_bytes());
        request
    }

    fn decode(request: &[u8; Self::REQUEST_BYTES]) -> Option<Self> {
        let [kind, a, b, c, d, e, f, g, h] = *request;
        let (bytes, write_bytes) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        match kind {
            b'd' if (1..=WRITE_BYTES_MAX).contains(&write_bytes) => {
                Some(Bulk::Download { bytes, write_bytes })
            }
            b'u' => Some(Bulk::Upload { bytes }),
            _ => None,
        }
    }
}

pub(super) fn serve_tokio(listener: std::net::TcpListener, buffer_bytes: usize) -> Result<()> {
    serve_on_tokio(listener, move |stream| echo(stream, buffer_bytes))
}

pub(super) fn serve_bulk_tokio(listener: std::net::TcpListener) -> Result<()> {
    serve_on_tokio(listener, move_bulk)
}

async fn echo(mut stream: TlsStream<TcpStream>, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    loop {
        let received = stream.read(&mut buffer).await?;
        if received == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..received]).await?;
        stream.flush().await?;
    }
}

async fn move_bulk(mut stream: TlsStream<TcpStream>) -> io::Result<()> {
    let mut buffer = vec![0; BULK_BUFFER_BYTES];
    let mut request = [0; Bulk::REQUEST_BYTES];
    loop {
        stream.read_exact(&mut request).await?;
        match Bulk::decode(&request).ok_or(io::ErrorKind::InvalidData)? {
            Bulk::Download { bytes, write_bytes } => {
                let mut left = bytes as usize;
                while left > 0 {
                    let count = left.min(write_bytes as usize);
                    stream.write_all(&WRITTEN[..count]).await?;
                    left -= count;
                }
            }
            Bulk::Upload { bytes } => {
                let mut left = bytes as usize;
                while left > 0 {
                    let room = left.min(buffer.len());
                    match stream.read(&mut buffer[..room]).await? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        received => left -= received,
                    }
                }
                stream.write_all(&[Bulk::ACKNOWLEDGED]).await?;
            }
        }
        stream.flush().await?;
    }
}

fn serve_on_tokio<S, F>(listener: std::net::TcpListener, serve: S) -> Result<()>
where
    S: FnOnce(TlsStream<TcpStream>) -> F + Clone + Send + 'static,
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(config()?);
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            tokio::spawn(async move { serve(acceptor.accept(stream).await?).await });
        }
    })
}

#[cfg(feature = "ours")]
pub(super) mod ours {
    use ::shardwise::{Config, Flow, Input, Protocol, Runtime, Shard, TcpStream, TlsServerConfig, Transport};

    use super::{Bulk, WRITE_BYTES_MAX, WRITTEN, config};
    use crate::Result;
    use crate::servers::shardwise::Echo;

    pub(in crate::servers) fn serve_protocol(port: u16, shards: usize) -> Result<()> {
        let tls = TlsServerConfig::from_rustls(config()?);
        Runtime::new().shards(shards).run(async move |shard: Shard| {
            shard.listen_tls(("127.0.0.1", port), &tls, || Echo)?;
            Ok(())
        })?;
        Ok(())
    }

    pub(in crate::servers) fn serve_async(port: u16, shards: usize) -> Result<()> {
        let tls = TlsServerConfig::from_rustls(config()?);
        Runtime::new().shards(shards).run(async move |shard: Shard| {
            shard.serve_tls(("127.0.0.1", port), &tls, async |mut stream| {
                while let Some(chunk) = stream.read_chunk().await? {
                    stream.write_all(&chunk).await?;
                }
                Ok(())
            })?;
            Ok(())
        })?;
        Ok(())
    }

    /// The largest write has to fit behind what is left below the low watermark.
    fn bulk_limits() -> Config {
        let mut config = Config::default();
        config.watermarks.cap_bytes = 2 * WRITE_BYTES_MAX as usize;
        config
    }

    pub(in crate::servers) fn serve_bulk_protocol(port: u16, shards: usize) -> Result<()> {
        let tls = TlsServerConfig::from_rustls(config()?);
        Runtime::new().shards(shards).config(bulk_limits()).run(async move |shard: Shard| {
            shard.listen_tls(("127.0.0.1", port), &tls, Mover::default)?;
            Ok(())
        })?;
        Ok(())
    }

    /// What is still to be moved; nothing of either between requests.
    #[derive(Default)]
    struct Mover {
        to_send: usize,
        write_bytes: usize,
        to_receive: usize,
    }

    impl Mover {
        fn send(&mut self, transport: &Transport) -> ::shardwise::Result<()> {
            while self.to_send > 0 {
                let count = self.to_send.min(self.write_bytes);
                let flow = transport.write(&WRITTEN[..count])?;
                self.to_send -= count;
                if flow == Flow::AboveHigh {
                    break;
                }
            }
            Ok(())
        }
    }

    impl Protocol for Mover {
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> ::shardwise::Result<()> {
            if self.to_receive == 0 {
                let Some(request) = input.bytes().first_chunk() else { return Ok(()) };
                match Bulk::decode(request).ok_or("not a request")? {
                    Bulk::Download { bytes, write_bytes } => {
                        self.to_send = bytes as usize;
                        self.write_bytes = write_bytes as usize;
                    }
                    Bulk::Upload { bytes } => self.to_receive = bytes as usize,
                }
                input.consume(Bulk::REQUEST_BYTES);
                self.send(transport)?;
            }
            let count = self.to_receive.min(input.len());
            input.consume(count);
            self.to_receive -= count;
            if count > 0 && self.to_receive == 0 {
                transport.write(&[Bulk::ACKNOWLEDGED])?;
            }
            Ok(())
        }

        fn write_resumed(&mut self, transport: &Transport) -> ::shardwise::Result<()> {
            self.send(transport)
        }
    }

    pub(in crate::servers) fn serve_bulk_async(port: u16, shards: usize) -> Result<()> {
        let tls = TlsServerConfig::from_rustls(config()?);
        Runtime::new().shards(shards).config(bulk_limits()).run(async move |shard: Shard| {
            shard.serve_tls(("127.0.0.1", port), &tls, move_bulk)?;
            Ok(())
        })?;
        Ok(())
    }

    async fn move_bulk(mut stream: TcpStream) -> ::shardwise::Result<()> {
        let mut request = [0; Bulk::REQUEST_BYTES];
        loop {
            stream.read_exact(&mut request).await?;
            match Bulk::decode(&request).ok_or("not a request")? {
                Bulk::Download { bytes, write_bytes } => {
                    let mut left = bytes as usize;
                    while left > 0 {
                        let count = left.min(write_bytes as usize);
                        stream.write_all(&WRITTEN[..count]).await?;
                        left -= count;
                    }
                }
                Bulk::Upload { bytes } => {
                    let mut left = bytes as usize;
                    while left > 0 {
                        // A client waits for its answer before it sends more.
                        let chunk = stream.read_chunk().await?.ok_or("cut short")?;
                        left -= chunk.len();
                    }
                    stream.write_all(&[Bulk::ACKNOWLEDGED]).await?;
                }
            }
        }
    }
}

const WRITE_BYTES_MAX: u32 = 1024 * 1024;
/// More than a record, which is what both libraries hand on at a time.
const BULK_BUFFER_BYTES: usize = 64 * 1024;
/// What downloads consist of.
pub(crate) const PAYLOAD: u8 = 0x5a;
static WRITTEN: [u8; WRITE_BYTES_MAX as usize] = [PAYLOAD; WRITE_BYTES_MAX as usize];
