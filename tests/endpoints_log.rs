//! What the log tells of connections behind a proxy that come to nothing. In a process of its own, since the log is the
//! process's.

mod common;
#[path = "endpoints/headers.rs"]
mod headers;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shardwise::testing::on_every_driver;
use shardwise::{ServerEndpoint, TcpStream};

use common::{Echo, read_to_end};
use headers::malformed;

/// What was logged and not looked at.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The next one that tells of the end of a connection with `peer`.
    fn next_end(&self, peer: &str) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        let text = String::from_utf8(bytes).unwrap();
        let mut ends = text.lines().filter(|line| line.contains("a connection ended") && line.contains(peer));
        let (end, more) = (ends.next(), ends.next());
        assert!(more.is_none(), "more than one: {text}");
        end.unwrap_or_else(|| panic!("none: {text}")).to_string()
    }
}

#[test]
fn the_log_tells_the_peer_and_what_is_wrong_with_its_header() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    on_every_driver(async move |env| {
        let server = "haproxy:127.0.0.1:0".parse::<ServerEndpoint>()?.load()?;
        let listen = |server| env.shard().listen(&server, || Echo);
        let addr = listen(server.clone())?.local_addr().as_ip().unwrap();
        let untrusting = listen(server.clone().trust_proxies([]))?.local_addr().as_ip().unwrap();
        let impatient =
            listen(server.proxy_header_timeout(Duration::from_millis(77)))?.local_addr().as_ip().unwrap();

        let mut cases = malformed();
        cases.push((b"PRO".to_vec(), "the connection ended within its header, after 3 bytes"));
        for (bytes, what) in cases {
            let mut stream = TcpStream::connect(addr).await?;
            let peer = format!("peer={} ", stream.local_addr()?);
            stream.write_all(&bytes).await?;
            stream.shutdown_write();
            let _ = read_to_end(&mut stream).await;
            let end = lines.next_end(&peer);
            assert!(end.contains(what), "{what}: {end}");
        }
        for (addr, what) in
            [(untrusting, "it is no trusted proxy"), (impatient, "no whole header within 77ms")]
        {
            let mut stream = TcpStream::connect(addr).await?;
            let peer = format!("peer={} ", stream.local_addr()?);
            let _ = read_to_end(&mut stream).await;
            let end = lines.next_end(&peer);
            assert!(end.contains(what), "{what}: {end}");
        }
        Ok(())
    });
}
