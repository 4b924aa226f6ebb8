//! Bytes of strangers where TLS is expected: to our server, and as the answer to our client. Nothing panics, nothing is
//! delivered, what we answer is made of TLS records, and the end is an error that says why.
//!
//! `cargo +nightly fuzz run tls_bytes`. The first byte of a case chooses the side and the length of the pieces.

#![no_main]

use std::cell::RefCell;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shardwise::testing::Simulation;
use shardwise::{
    CloseReason, ConnectError, Input, Protocol, Result, Shard, TcpStream, TlsClientConfig, TlsServerConfig,
    Transport,
};

static CONFIGS: LazyLock<(TlsServerConfig, TlsClientConfig)> = LazyLock::new(|| {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("it can be made");
    let (certificate, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    let loaded = shardwise::TlsCertificate::from_pem(certificate.as_bytes(), key.as_bytes());
    let server = TlsServerConfig::builder().certificate(loaded.expect("it is good")).build();
    let client = TlsClientConfig::builder().roots_pem(certificate.as_bytes()).build();
    (server.expect("it has a certificate"), client.expect("it has a root"))
});

thread_local! {
    static ENDS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Suspicious;

impl Protocol for Suspicious {
    fn handshake_completed(&mut self, _: &Transport) -> Result<()> {
        panic!("a stranger without keys has completed a handshake");
    }
    fn data_received(&mut self, _: &Transport, _: &mut Input<'_>) -> Result<()> {
        panic!("bytes that nobody sealed were delivered");
    }
    fn disconnected(&mut self, reason: CloseReason) {
        assert!(matches!(reason, CloseReason::Tls(_) | CloseReason::Os { .. }), "{reason}");
        ENDS.with_borrow_mut(|ends| ends.push(reason.to_string()));
    }
}

/// Sends `bytes` piece by piece, then FIN; gives what came back.
async fn tell(mut stream: TcpStream, bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut answer = Vec::new();
    for piece in bytes.chunks(piece) {
        if stream.write_all(piece).await.is_err() {
            break;
        }
    }
    stream.shutdown_write();
    while let Ok(Some(chunk)) = stream.read_chunk().await {
        answer.extend_from_slice(&chunk);
    }
    answer
}

/// Whole records, and nothing else.
fn check_records(mut bytes: &[u8]) {
    while let [kind, major, _, high, low, rest @ ..] = bytes {
        assert!((20..=23).contains(kind) && *major == 3, "no record: {bytes:?}");
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        assert!(len <= rest.len(), "a record cut short");
        bytes = &rest[len..];
    }
    assert!(bytes.is_empty(), "{bytes:?}");
}

async fn perform(shard: &Shard, bytes: &[u8], to_server: bool, piece: usize) -> Result<()> {
    let (server, client) = &*CONFIGS;
    if to_server {
        let listener = shard.listen_tls("127.0.0.1:0", server, || Suspicious)?;
        let stream = TcpStream::connect(listener.local_addr()).await?;
        let answer = tell(stream, bytes, piece).await;
        check_records(&answer);
    } else {
        let bytes = bytes.to_vec();
        let listener = shard.serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
            // Cut off in the middle of a record it may be, by a reset.
            let answer = tell(stream, &bytes, piece).await;
            assert!(answer.first().is_none_or(|kind| *kind == 22), "the hello comes first: {answer:?}");
            Ok(())
        })?;
        let attempt = shard.connect_tls(listener.local_addr(), client, "localhost", || Suspicious);
        let error = attempt.await.expect_err("a stranger without keys was trusted");
        assert!(matches!(error, ConnectError::Tls { .. } | ConnectError::Os { .. }), "{error}");
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let (to_server, piece) = (first & 1 == 0, usize::from(first >> 1) + 1);
    // A piece of 128 stands for all at once.
    let piece = if piece == 128 { usize::MAX } else { piece };
    let bytes = bytes.to_vec();
    drop(ENDS.take());
    Simulation::new(u64::from(*first))
        .shards(1)
        .run(async move |shard: Shard| {
            let bytes = bytes.clone();
            shard.call_when_running(move |shard| {
                let home = shard.clone();
                drop(shard.spawn(async move {
                    perform(&home, &bytes, to_server, piece).await.expect("nothing of this may fail");
                    home.stop().expect("nobody has stopped it");
                }));
            });
            Ok(())
        })
        .expect("it stops in order");
    assert_eq!(ENDS.take().len(), 1, "it is told of its end, once");
});
