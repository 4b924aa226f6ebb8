//! The log of traffic, and the lines about refusals: what is in them, and what is not.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use crate::common::{Call, Log, Probe, pattern, read_to_end};
use crate::tls_kit::Authority;
use crate::{MS, options, pair};
use shardwise::policies::{ConnectionLimit, Policies, TrafficLog};
use shardwise::testing::{Env, on_every_driver};
use shardwise::{ConnectOptions, Result, TcpStream};

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Takes the lines of all tests.
struct Taken;

impl io::Write for Taken {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A name that no other run has.
fn name(env: &Env, what: &str) -> String {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(|| {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        log.with_writer(|| Taken).init();
    });
    format!("{what}-{}-{}", env.driver(), env.seed())
}

/// The lines with `text`, each without its time.
fn lines(text: &str) -> Vec<String> {
    let taken = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = String::from_utf8_lossy(&taken);
    let lines = taken.lines().filter(|line| line.contains(text));
    lines.map(|line| line.split_once(' ').expect("a time").1.trim().to_string()).collect()
}

/// The lines of a log, without what differs between runs.
fn lines_of(name: &str, client: &str) -> Vec<String> {
    lines(&format!("log=\"{name}\""))
        .iter()
        .map(|line| line.replace(name, "it").replace(client, "client").replace("shardwise::traffic: ", ""))
        .collect()
}

#[test]
fn sizes_and_totals_are_logged_and_no_byte_is_shown_unasked() {
    on_every_driver(async |env| {
        let name = name(&env, "sizes");
        let policies = Policies::new().log_traffic(TrafficLog::new(&name));
        let (log, mut client) = pair(&env, &policies, |call, transport| {
            if let Call::Data(input) = call {
                input.take();
                transport.write(b"the answer is ").unwrap();
                transport.write(b"secret").unwrap();
                return Some(Ok(()));
            }
            None
        })
        .await?;
        let address = client.local_addr()?.to_string();
        client.write_all(b"?").await?;
        client.read_exact(&mut [0; 20]).await?;
        drop(client);
        log.ended().await;
        env.shard().sleep(MS).await;
        assert_eq!(
            lines_of(&name, &address),
            [
                "TRACE connected log=\"it\" shard=0 peer=client",
                "TRACE received log=\"it\" shard=0 peer=client bytes=1",
                "TRACE written log=\"it\" shard=0 peer=client bytes=14",
                "TRACE written log=\"it\" shard=0 peer=client bytes=6",
                "TRACE ended log=\"it\" shard=0 peer=client received_bytes=1 written_bytes=20 reason=the peer finished",
            ]
        );
        Ok(())
    });
}

#[test]
fn bytes_that_are_asked_for_are_shown_cut_and_escaped() {
    on_every_driver(async |env| {
        let [text, hex] = [name(&env, "text"), name(&env, "hex")];
        for (name, log, shown) in [
            (&text, TrafficLog::new(&text).show_text(6).at_debug(), r#"data="\\x1b]0;x\\r…""#),
            (&hex, TrafficLog::new(&hex).show_hex(4), r#"data="1b 5d 30 3b…""#),
        ] {
            let (log, mut client) = pair(&env, &Policies::new().log_traffic(log), |_, _| None).await?;
            client.write_all(b"\x1b]0;x\r\n").await?;
            log.until(|state| state.received.len() == 7).await;
            let all = lines_of(name, &client.local_addr()?.to_string()).join("\n");
            // On the way it may have been cut to pieces, though not the first byte from itself.
            let first = if env.is_simulated() { &shown[..7] } else { shown };
            assert!(all.contains(first), "{all}");
            assert!(all.contains(if name == &text { "DEBUG received" } else { "TRACE received" }), "{all}");
            assert!(!all.contains('\x1b'));
        }
        Ok(())
    });
}

#[test]
fn over_tls_it_is_the_plaintext_as_the_application_has_it() {
    on_every_driver(async |env| {
        let name = name(&env, "tls");
        let (server, tls) = Authority::new().both();
        let policies = Policies::new().log_traffic(TrafficLog::new(&name).show_text(100));
        let serve = async |mut stream: TcpStream| {
            let mut request = [0; 8];
            stream.read_exact(&mut request).await?;
            stream.write_all(b"welcome").await?;
            stream.write_all(&pattern(30_000)).await?;
            Ok(())
        };
        let listener = env.shard().serve_tls_with("127.0.0.1:0", &server, &options(&policies), serve)?;
        let mut client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        let address = client.local_addr()?.to_string();
        client.write_all(b"password").await?;
        assert_eq!(read_to_end(&mut client).await?.len(), 30_007);
        drop(client);
        env.shard().sleep(20 * MS).await;
        let all = lines_of(&name, &address);
        assert!(
            all[1].contains(r#"received log="it" shard=0 peer=client bytes=8 data="password""#),
            "{all:?}"
        );
        assert!(all[2].contains(r#"bytes=7 data="welcome""#), "{all:?}");
        assert!(all.last().unwrap().contains("received_bytes=8 written_bytes=30007"), "{all:?}");
        Ok(())
    });
}

#[test]
fn every_write_is_logged_once_wherever_it_is_made() {
    on_every_driver(async |env| {
        let name = name(&env, "writes");
        let policies = Policies::new().log_traffic(TrafficLog::new(&name));
        let log = Log::new();
        let server = crate::common::listen(&env, &log, |_, _| None)?;
        let how = ConnectOptions::new().policies(&policies);
        let made = Log::new();
        let noted = made.clone();
        let connected = move || {
            Probe::new(&noted, |call, transport| {
                if let Call::Connected = call {
                    transport.write(b"1").unwrap();
                    transport.write(&pattern(20_000)).unwrap();
                    transport.write(b"1").unwrap();
                }
                None
            })
        };
        let transport = env.shard().connect_tcp_with(server.local_addr(), &how, connected).await?;
        // From a task: straight to the kernel, and queued.
        transport.write(&pattern(20_000))?;
        transport.write(b"22")?;
        transport.write_vectored(&[io::IoSlice::new(b"333"), io::IoSlice::new(b"4444")])?;
        transport.close();
        assert!(transport.write(b"too late").is_err());
        log.ended().await;
        made.ended().await;
        assert_eq!(log.received().len(), 40_011);
        let written: Vec<String> =
            lines(&format!("log=\"{name}\"")).into_iter().filter(|line| line.contains(" written ")).collect();
        let sizes: Vec<&str> = written.iter().map(|line| line.rsplit_once("bytes=").unwrap().1).collect();
        assert_eq!(sizes, ["1", "20000", "1", "20000", "2", "3", "4"]);
        Ok(())
    });
}

#[test]
fn refusals_are_told_at_most_once_a_second_with_their_number() {
    on_every_driver(async |env| -> Result<()> {
        name(&env, "refusals");
        let limit = ConnectionLimit::new().per_peer(0);
        let policies = Policies::new().limit_connections(&limit);
        let text = "limit=0 connections of one peer";
        let before = lines(text).len();
        let make = || Probe::new(&Log::new(), |_, _| None);
        let listener = env.shard().listen_tcp_with("127.0.0.1:0", &options(&policies), make)?;
        for _ in 0..30 {
            if let Ok(mut stream) = TcpStream::connect(listener.local_addr()).await {
                assert!(stream.read_chunk().await.is_err());
            }
        }
        assert_eq!(limit.refused(), 30);
        let told = &lines(text)[before..];
        assert!(!told.is_empty() && told.len() <= 2, "{told:?}");
        assert!(told[0].starts_with("WARN") && told[0].ends_with("refused=1"), "{told:?}");
        assert!(told[0].contains("a connection is refused shard=0 peer=127.0.0.1:"), "{told:?}");
        Ok(())
    });
}
