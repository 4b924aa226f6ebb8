//! TLS with peers that others wrote: openssl and curl, as clients and as servers, over real sockets.
#![cfg(feature = "tls-aws-lc-rs")]

mod faults;
mod tls_kit;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use faults::{Canary, Server, connect};
use shardwise::{
    CertificateProblem, ClientCertificates, Config, ConnectError, Result, Runtime, Shard, TcpStream,
    TlsClientConfig, TlsError, TlsServerConfig, TlsVersion,
};
use tls_kit::{Authority, Issued};

/// A folder of this test's own.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shardwise-tls-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder { path }
    }

    fn put(&self, name: &str, content: &str) -> String {
        std::fs::write(self.path.join(name), content).unwrap();
        self.at(name)
    }

    fn at(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    fn put_issued(&self, issued: &Issued) -> (String, String) {
        (self.put("cert.pem", &issued.certificate), self.put("key.pem", &issued.key))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Answers each connection's first line with what was agreed on, and closes.
fn tells(tls: &TlsServerConfig, shards: usize) -> Server {
    let tls = tls.clone();
    Server::start(shards, Config::default(), move |shard| {
        Ok(shard.serve_tls("127.0.0.1:0", &tls, async |mut stream: TcpStream| {
            let mut line = Vec::new();
            while !line.ends_with(b"\n") {
                let Some(chunk) = stream.read_chunk().await? else { return Ok(()) };
                line.extend_from_slice(&chunk);
            }
            let info = stream.tls_info().expect("the handshake is complete");
            let alpn = info.alpn.map(|alpn| String::from_utf8_lossy(&alpn).into_owned());
            let answer = format!(
                "heard {} {:?} name={:?} alpn={alpn:?} certificates={} resumed={}\n",
                String::from_utf8_lossy(&line).trim_end(),
                info.version,
                info.server_name,
                info.peer_certificates.len(),
                info.resumed,
            );
            stream.write_all(answer.as_bytes()).await?;
            Ok(())
        })?)
    })
}

/// Runs `openssl s_client`, gives it a line, and what it and the server said.
fn s_client(addr: SocketAddr, arguments: &[&str]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &addr.to_string(), "-ign_eof"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn openssl_as_client_speaks_both_versions_with_names_protocols_and_certificates() {
    let folder = Folder::new("client");
    let authority = Authority::new();
    let ca = folder.put("ca.pem", &authority.pem());
    let (certificate, key) = folder.put_issued(&authority.issue(&["a client"]));
    let asked = ClientCertificates::optional(authority.pem().as_bytes()).unwrap();
    let tls = authority.server_builder().client_certificates(asked).alpn(["line"]).build().unwrap();
    let server = tells(&tls, 2);
    let common = ["-CAfile", &ca, "-verify_return_error", "-servername", "localhost"];
    for (version, name) in [("-tls1_2", "V1_2"), ("-tls1_3", "V1_3")] {
        let said = s_client(server.addr, &[&common[..], &[version]].concat());
        let heard =
            format!("heard hello {name} name=Some(\"localhost\") alpn=None certificates=0 resumed=false");
        assert!(said.contains(&heard), "{said}");
        let more = [version, "-alpn", "line", "-cert", &certificate, "-key", &key];
        let said = s_client(server.addr, &[&common[..], &more].concat());
        // It sends what it finds of the chain along.
        assert!(
            said.contains("alpn=Some(\"line\") certificates=") && !said.contains("certificates=0"),
            "{said}"
        );
        assert!(said.contains("Verification: OK"), "{said}");
    }
    // Ciphers without forward secrecy, or without authenticated encryption, find nobody.
    for cipher in ["AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-SHA256"] {
        let said = s_client(server.addr, &["-tls1_2", "-cipher", cipher]);
        assert!(said.contains("alert handshake failure") && !said.contains("heard"), "{said}");
    }
    let said = s_client(server.addr, &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(!said.contains("heard"), "{said}");
    server.stop();
}

#[test]
fn openssl_resumes_its_session_twenty_times_of_twenty_on_either_shard() {
    let folder = Folder::new("resumption");
    let server = tells(&Authority::new().server(), 2);
    for version in ["-tls1_2", "-tls1_3"] {
        let session = folder.at("session");
        let said = s_client(server.addr, &[version, "-sess_out", &session]);
        assert!(said.contains("resumed=false"), "{said}");
        for visit in 0..20 {
            let said = s_client(server.addr, &[version, "-sess_in", &session, "-sess_out", &session]);
            assert!(said.contains("resumed=true") && said.contains("Reused, TLSv1."), "{visit}: {said}");
        }
    }
    let accepted: Vec<u64> = server.handle().report().iter().map(|report| report.accepted).collect();
    assert!(accepted.iter().all(|count| *count > 0), "both shards have been visited: {accepted:?}");
    server.stop();
}

#[test]
fn early_data_is_not_taken_and_renegotiation_is_refused() {
    let folder = Folder::new("refusals");
    let server = tells(&Authority::new().server(), 1);
    let session = folder.at("session");
    s_client(server.addr, &["-tls1_3", "-sess_out", &session]);
    let early = folder.put("early", "early\n");
    let said = s_client(server.addr, &["-tls1_3", "-sess_in", &session, "-early_data", &early]);
    assert!(said.contains("Early data was not sent") && !said.contains("heard early"), "{said}");

    // `R` asks for a new handshake.
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &server.addr.to_string(), "-tls1_2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"R\n").unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    drop(input);
    child.wait().unwrap();
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    assert!(s_client(server.addr, &[]).contains("heard hello"));
    server.stop();
}

#[test]
fn curl_is_served() {
    let folder = Folder::new("curl");
    let authority = Authority::new();
    let ca = folder.put("ca.pem", &authority.pem());
    let tls = authority.server_builder().alpn(["http/1.1"]).build().unwrap();
    let server = Server::start(2, Config::default(), move |shard| {
        Ok(shard.serve_tls("127.0.0.1:0", &tls, async |mut stream: TcpStream| {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Some(chunk) = stream.read_chunk().await? else { return Ok(()) };
                head.extend_from_slice(&chunk);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n").await?;
            stream.write_all(&vec![b'x'; 3_000_000]).await?;
            Ok(())
        })?)
    });
    for version in ["--tlsv1.3", "--tlsv1.2"] {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--max-time", "30", version, "--cacert", &ca])
            .args(["--resolve", &format!("localhost:{}:127.0.0.1", server.addr.port())])
            .arg(format!("https://localhost:{}/", server.addr.port()))
            .output()
            .expect("curl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.len() == 3_000_000 && output.stdout.iter().all(|byte| *byte == b'x'));
    }
    server.stop();
}

#[test]
fn other_things_than_tls_disturb_nobody() {
    let authority = Authority::new();
    let tls = authority.server();
    let echo = Server::start(1, Config::default(), |shard| faults::echo(shard, faults::Style::Protocol));
    let server = tells(&tls, 1);
    let mut canary = Canary::new(echo.addr);
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x80\x2e\x01\x00\x02", &[0; 3000], b"SSH-2.0-x\r\n"] {
        let mut stream = connect(server.addr);
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer[0] == 21, "at most an alert: {answer:?}");
        canary.ping();
    }
    assert!(s_client(server.addr, &[]).contains("heard hello"));
    assert_eq!(server.sum(|report| report.panics), 0);
    drop(canary);
    echo.stop();
    server.stop();
}

/// `openssl s_server`, which reverses each line.
struct Reverser {
    child: Child,
    addr: SocketAddr,
}

impl Reverser {
    fn start(folder: &Folder, issued: &Issued, arguments: &[&str]) -> Self {
        let (certificate, key) = folder.put_issued(issued);
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-rev", "-cert", &certificate, "-key", &key])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = loop {
            let line = lines.next().expect("it says where it listens").unwrap();
            if let Some(addr) = line.strip_prefix("ACCEPT ") {
                break addr.parse().unwrap();
            }
        };
        // It goes on talking.
        std::thread::spawn(move || lines.for_each(drop));
        Reverser { child, addr }
    }
}

impl Drop for Reverser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `body` on a shard.
fn on_a_shard<T: Send + 'static>(body: impl AsyncFn() -> T + Send + Sync + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let app = async move |shard: Shard| -> Result<()> {
        let outcome = body().await;
        sender.send(outcome).unwrap();
        let _ = shard.stop();
        Ok(())
    };
    let running = Runtime::new().shards(1).pin(false).start(app).unwrap();
    let outcome = receiver.recv().unwrap();
    running.join().unwrap();
    outcome
}

#[test]
fn openssl_as_server_is_spoken_to_in_both_versions() {
    let folder = Folder::new("server");
    let authority = Authority::new();
    let ca = folder.put("ca.pem", &authority.pem());
    for (version, expected) in [("-tls1_2", TlsVersion::V1_2), ("-tls1_3", TlsVersion::V1_3)] {
        let arguments = [version, "-alpn", "line", "-Verify", "1", "-CAfile", &ca, "-verify_return_error"];
        let server = Reverser::start(&folder, &authority.issue(&["localhost"]), &arguments);
        let addr = server.addr;
        let tls = authority
            .client_builder()
            .alpn(["line"])
            .certificate(authority.issue(&["me"]).load())
            .build()
            .unwrap();
        let (info, answer) = on_a_shard(async move || {
            let mut stream = TcpStream::connect_tls(addr, &tls, "localhost").await.unwrap();
            stream.write_all(b"drawer\n").await.unwrap();
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).await.unwrap();
            (stream.tls_info().unwrap(), answer)
        });
        assert_eq!(&answer, b"reward\n");
        assert_eq!((info.version, info.alpn.as_deref()), (expected, Some(&b"line"[..])));
    }
}

#[test]
fn an_expired_certificate_of_a_server_is_named_as_such() {
    let folder = Folder::new("expired");
    let authority = Authority::new();
    let expired = authority.issue_with(&["localhost"], |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let server = Reverser::start(&folder, &expired, &[]);
    let (addr, tls) = (server.addr, authority.client());
    let error = on_a_shard(async move || TcpStream::connect_tls(addr, &tls, "localhost").await.map(drop));
    let Err(ConnectError::Tls { source, .. }) = error else { panic!("{error:?}") };
    assert_eq!(source, TlsError::Certificate(CertificateProblem::Expired));
}

#[test]
fn roots_come_from_a_file_too() {
    let folder = Folder::new("roots");
    let authority = Authority::new();
    let ca = folder.put("ca.pem", &authority.pem());
    let server = Reverser::start(&folder, &authority.issue(&["localhost"]), &[]);
    let (addr, tls) = (server.addr, TlsClientConfig::builder().roots_file(&ca).build().unwrap());
    on_a_shard(async move || TcpStream::connect_tls(addr, &tls, "localhost").await.map(drop)).unwrap();
}
