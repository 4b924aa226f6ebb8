//! TLS with peers that others wrote: openssl, curl, socat and Python, as clients and as servers, over real sockets.
#![cfg(feature = "tls-aws-lc-rs")]

mod faults;
mod tls_kit;

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
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

/// Runs a script, and gives what it printed.
fn python(script: &str, arguments: &[&str]) -> String {
    let output =
        Command::new("python3").args(["-c", script]).args(arguments).output().expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Its `ssl` checks the name, wants close_notify in answer to its own, and an end without one is an error to it.
#[test]
fn python_as_client_speaks_both_versions_and_ends_in_order() {
    let folder = Folder::new("python");
    let authority = Authority::new();
    let ca = folder.put("ca.pem", &authority.pem());
    let server = tells(&authority.server_builder().alpn(["line"]).build().unwrap(), 2);
    let script = r#"
import socket, ssl, sys
host, port, ca = "127.0.0.1", int(sys.argv[1]), sys.argv[2]
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["line"])
    session = None
    for visit in range(2):
        with socket.create_connection((host, port), timeout=30) as plain:
            with context.wrap_socket(plain, server_hostname="localhost", session=session,
                                     suppress_ragged_eofs=False) as stream:
                stream.sendall(b"hello\n")
                heard = b""
                while chunk := stream.recv(4096):
                    heard += chunk
                session = stream.session
                print(stream.version(), stream.session_reused, stream.selected_alpn_protocol(), heard.decode().strip())
                stream.unwrap().close()
# Another name than the certificate's.
try:
    with socket.create_connection((host, port), timeout=30) as plain:
        ssl.create_default_context(cafile=ca).wrap_socket(plain, server_hostname="example.org")
except ssl.SSLCertVerificationError as error:
    print("refused", error.verify_code)
"#;
    let said = python(script, &[&server.addr.port().to_string(), &ca]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 5, "{said}");
    for (line, (version, reused)) in
        lines.iter().zip([("TLSv1.2", false), ("TLSv1.2", true), ("TLSv1.3", false), ("TLSv1.3", true)])
    {
        let (begins, resumed) = (
            format!("{version} {} line", if reused { "True" } else { "False" }),
            format!("resumed={reused}"),
        );
        assert!(line.starts_with(&begins) && line.ends_with(&resumed), "{said}");
    }
    // X509_V_ERR_HOSTNAME_MISMATCH.
    assert_eq!(lines[4], "refused 62");
    server.stop();
}

/// Clients of another make that come anew for each request, and clients that stay, while certificates are replaced.
#[test]
fn python_clients_see_no_request_fail_while_certificates_are_replaced() {
    let folder = Folder::new("swap");
    let authority = Authority::new();
    let ca = folder.put("ca.pem", &authority.pem());
    let (certificate, key) = folder.put_issued(&authority.issue(&["localhost"]));
    let tls = TlsServerConfig::from_files(&certificate, &key).unwrap();
    let echo_tls = tls.clone();
    let server = Server::start(2, Config::default(), move |shard| {
        Ok(shard.serve_tls("127.0.0.1:0", &echo_tls, async |mut stream: TcpStream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        })?)
    });
    let script = r#"
import hashlib, socket, ssl, sys, threading
port, ca = int(sys.argv[1]), sys.argv[2]
context = ssl.create_default_context(cafile=ca)
seen, failures, requests, lock = set(), [], [0], threading.Lock()
def ask(stream, text):
    stream.sendall(text)
    heard = b""
    while len(heard) < len(text):
        chunk = stream.recv(4096)
        if not chunk:
            raise EOFError(heard)
        heard += chunk
    assert heard == text, heard
    with lock:
        seen.add(hashlib.sha256(stream.getpeercert(True)).digest())
        requests[0] += 1
def come():
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    return context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
def visit(number, stays):
    try:
        stream = come()
        for request in range(60):
            ask(stream, b"request %d" % request)
            if not stays:
                stream.unwrap().close()
                stream = come()
        stream.unwrap().close()
    except Exception as error:
        failures.append((number, repr(error)))
threads = [threading.Thread(target=visit, args=(number, number % 3 == 0)) for number in range(6)]
print("ready", flush=True)
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(failures), len(seen), requests[0], failures[:3])
"#;
    let mut child = Command::new("python3")
        .args(["-c", script, &server.addr.port().to_string(), &ca])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let mut swaps = 0;
    let replaced_at = |count: u64| server.sum(|report| report.handshakes) >= 30 * count;
    while child.try_wait().unwrap().is_none() {
        if replaced_at(swaps) {
            folder.put_issued(&authority.issue(&["localhost"]));
            tls.reload().unwrap();
            swaps += 1;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(1));
    }
    let said = lines.next().unwrap().unwrap();
    let numbers: Vec<usize> = said.split(' ').take(3).map(|number| number.parse().unwrap()).collect();
    let [failed, certificates, requests] = numbers[..] else { panic!("{said}") };
    assert_eq!((failed, requests), (0, 360), "{said}");
    assert!(swaps >= 4 && certificates >= 3, "{swaps} swaps, {certificates} certificates");
    assert_eq!(server.sum(|report| report.tls_failures), 0);
    server.stop();
}

#[test]
fn socat_is_served_and_spoken_to() {
    let folder = Folder::new("socat");
    let authority = Authority::new();
    let ca = folder.put("ca.pem", &authority.pem());
    let server = tells(&authority.server(), 1);
    let target = format!(
        "OPENSSL:127.0.0.1:{},cafile={ca},commonname=localhost,snihost=localhost",
        server.addr.port()
    );
    let mut child = Command::new("socat")
        .args(["-t", "30", "STDIO", &target])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("socat is installed");
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.starts_with("heard hello V1_3 name=Some(\"localhost\")"),
        "{said}"
    );
    server.stop();

    let (certificate, key) = folder.put_issued(&authority.issue(&["localhost"]));
    // `-d -d` so that it tells the port it was given.
    let mut child = Command::new("socat")
        .args(["-d", "-d"])
        .arg(format!("OPENSSL-LISTEN:0,bind=127.0.0.1,cert={certificate},key={key},verify=0"))
        .arg("EXEC:cat")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let addr: SocketAddr = loop {
        let line = lines.next().expect("it says where it listens").unwrap();
        if let Some((_, addr)) = line.split_once("listening on AF=2 ") {
            break addr.parse().unwrap();
        }
    };
    std::thread::spawn(move || lines.for_each(drop));
    let tls = authority.client();
    let answer = on_a_shard(async move || {
        let mut stream = TcpStream::connect_tls(addr, &tls, "localhost").await.unwrap();
        let mut answer = vec![0; 300_000];
        stream.write_all(&faults::pattern(300_000, 3)).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        answer
    });
    assert!(answer == faults::pattern(300_000, 3));
    let _ = child.kill();
    let _ = child.wait();
}

/// Fault 53: the peer asks for new keys, again and again, and goes on to speak.
#[test]
fn new_keys_that_a_peer_asks_for_are_used_by_both_from_the_next_byte_on() {
    let server = Server::start(1, Config::default(), {
        let tls = Authority::new().server();
        move |shard| {
            Ok(shard.serve_tls("127.0.0.1:0", &tls, async |mut stream: TcpStream| {
                while let Some(chunk) = stream.read_chunk().await? {
                    stream.write_all(&chunk).await?;
                }
                Ok(())
            })?)
        }
    });
    let mut client = Asking::start(server.addr);
    for round in 0..5 {
        assert!(client.asks_for_new_keys());
        let line = format!("line {round}\n");
        client.input.write_all(line.as_bytes()).unwrap();
        client.hears(&line);
    }
    drop(client.input);
    // What it says itself comes through a buffer, at its end.
    client.output.read_to_end(&mut client.said).unwrap();
    let said = String::from_utf8_lossy(&client.said);
    client.child.wait().unwrap();
    let answers = said.lines().filter(|line| line.starts_with("<<<") && line.ends_with("KeyUpdate")).count();
    assert_eq!(answers, 5, "the server's own new keys: {said}");
    server.wait_open(0);
    assert_eq!(server.sum(|report| report.tls_failures), 0);

    // Without end, and without a byte of data, it is a flood (fault 47): refused, and the others go on.
    let mut client = Asking::start(server.addr);
    let asked = (0..1000).take_while(|_| client.asks_for_new_keys()).count();
    assert!(asked < 1000, "it takes any number");
    let _ = client.child.kill();
    let _ = client.child.wait();
    server.wait_open(0);
    assert_eq!(server.sum(|report| report.tls_failures), 1, "after {asked}");
    let mut client = Asking::start(server.addr);
    client.input.write_all(b"others go on\n").unwrap();
    client.hears("others go on\n");
    let _ = client.child.kill();
    let _ = client.child.wait();
    server.wait_open(0);
    server.stop();
}

/// `openssl s_client`, which asks for new keys when it is told to.
struct Asking {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    said: Vec<u8>,
    notes: Lines<BufReader<ChildStderr>>,
}

impl Asking {
    fn start(addr: SocketAddr) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &addr.to_string(), "-tls1_3", "-msg"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is installed");
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let notes = BufReader::new(child.stderr.take().unwrap()).lines();
        Asking { child, input, output, said: Vec::new(), notes }
    }

    fn hears(&mut self, text: &str) {
        let mut byte = [0];
        while !self.said.ends_with(text.as_bytes()) {
            self.output.read_exact(&mut byte).expect("it is still connected");
            self.said.push(byte[0]);
        }
    }

    /// New keys in both directions. Says whether it is still connected.
    fn asks_for_new_keys(&mut self) -> bool {
        // A command has to come in a read of its own: not before the one before it was obeyed.
        let told = self.input.write_all(b"K\n").is_ok();
        told && self.notes.by_ref().map_while(std::io::Result::ok).any(|line| line == "KEYUPDATE")
    }
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
