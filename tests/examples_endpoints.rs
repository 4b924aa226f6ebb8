//! The built examples at other endpoints than plain ones, with curl, openssl, socat and nginx at the other end; and
//! `portforward` between them.
#![cfg(feature = "tls-aws-lc-rs")]

mod example_server;
mod tls_kit;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use example_server::{PATIENCE, Server, refused};
use tls_kit::Authority;

/// Certificates, and what else a test needs as files.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("shardwise-forward-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let folder = Folder { path };
        let authority = Authority::new();
        let issued = authority.issue(&["localhost"]);
        folder.put("ca.pem", &authority.pem());
        folder.put("cert.pem", &issued.certificate);
        folder.put("key.pem", &issued.key);
        folder
    }

    fn put(&self, name: &str, content: &str) {
        std::fs::write(self.path.join(name), content).unwrap();
    }

    fn at(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// TLS with the certificate of this folder, at a port of the system's choice.
    fn tls_endpoint(&self) -> String {
        format!("tls:0:privateKey={}:certKey={}:interface=127.0.0.1", self.at("key.pem"), self.at("cert.pem"))
    }

    /// A client of `addr` that trusts it.
    fn tls_client(&self, addr: SocketAddr) -> String {
        format!(r"tls:localhost:endpoint=tcp\:127.0.0.1\:{}:trustRoots={}", addr.port(), self.at("ca.pem"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// `portforward` from `endpoint` to `connect`.
fn forward(endpoint: &str, connect: &str, arguments: &[&str]) -> Server {
    Server::start_at("portforward", endpoint, &[&["--connect", connect], arguments].concat())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Runs curl, and gives what it has fetched, and `LOCAL_PORT` behind it.
fn curl(arguments: &[&str]) -> String {
    let curl = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "20"])
        .args(["--write-out", "|%{local_port}"])
        .args(arguments)
        .output()
        .expect("curl is installed");
    assert!(curl.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&curl.stderr));
    String::from_utf8(curl.stdout).unwrap()
}

#[test]
fn a_server_speaks_tls_behind_a_proxy_or_not_as_its_endpoint_says() {
    let folder = Folder::new("http");
    let ca = folder.at("ca.pem");
    for endpoint in [
        folder.tls_endpoint(),
        format!("haproxy:{}", folder.tls_endpoint()),
        "haproxy:127.0.0.1:0".to_owned(),
    ] {
        let server = Server::start_at("http", &endpoint, &[]);
        let scheme = if endpoint.contains("tls:") { "https" } else { "http" };
        let page = format!("{scheme}://localhost:{}/", server.addr.port());
        let at = format!("localhost:{}:127.0.0.1", server.addr.port());
        let mut arguments = vec!["--resolve", &at, "--cacert", &ca];
        if endpoint.starts_with("haproxy:") {
            arguments.push("--haproxy-protocol");
        }
        let said = curl(&[&arguments[..], &[&page]].concat());
        assert!(said.starts_with("Hello, World!|"), "{endpoint}: {said}");
        server.signal();
        server.ends_with(0);
    }
}

#[test]
fn both_styles_of_an_echo_and_the_counters_serve_behind_a_proxy() {
    let header: &[u8] = b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n";
    for style in ["protocol", "async"] {
        let server = Server::start_at("echo", "haproxy:127.0.0.1:0", &["--style", style]);
        let sent = pattern(300_000);
        assert!(server.exchange(&[header, &sent].concat()) == sent, "the echo of style {style} differs");
    }
    let server = Server::start_at("cross_shard", "haproxy:127.0.0.1:0", &[]);
    assert_eq!(server.exchange(&[header, b"INCR a\nGET a\n"].concat()), b"1\n1\n");
}

#[test]
fn a_client_that_sends_no_header_is_sent_away_and_others_are_served() {
    let server = Server::start_at("echo", "haproxy:127.0.0.1:0", &[]);
    for bytes in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\xff"]
    {
        let mut stream = server.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        assert_eq!(answer, b"");
    }
    assert_eq!(server.exchange(b"PROXY UNKNOWN\r\nhello"), b"hello");
    server.signal();
    server.ends_with(0);
}

#[test]
fn a_tls_echo_takes_its_certificate_from_its_own_flags_at_any_endpoint() {
    let folder = Folder::new("tls-echo");
    let (certificate, key) = (folder.at("cert.pem"), folder.at("key.pem"));
    let server =
        Server::start_at("tls_echo", "haproxy:127.0.0.1:0", &["--cert", &certificate, "--key", &key]);
    let upstream = folder.tls_client(server.addr);
    let plain = forward("127.0.0.1:0", &upstream, &["--proxy-protocol", "v2"]);
    assert_eq!(plain.exchange(b"sealed on its way"), b"sealed on its way");
}

#[test]
fn what_only_plain_tcp_can_do_is_refused_at_other_endpoints() {
    for name in ["udp_echo", "quickstart"] {
        let (status, text) = refused(name, &["--listen", "haproxy:127.0.0.1:0"]);
        assert_eq!(status.code(), Some(2), "{name}: {text}");
        assert!(text.contains("--listen") && text.contains("write HOST:PORT"), "{name}: {text}");
    }
}

#[test]
fn a_forwarder_says_which_option_is_wrong() {
    for (arguments, code, words) in [
        (&[][..], 2, &["--connect"][..]),
        (&["--connect", "tcp:127.0.0.1:99999"], 2, &["--connect", "0 to 65535", "^^^^^"]),
        (&["--connect", "tls:a:1:trustRoots=/nowhere.pem"], 2, &["--connect", "/nowhere.pem"]),
        (&["--connect", "127.0.0.1:1", "--proxy-protocol", "v3"], 2, &["--proxy-protocol", "v1, v2"]),
        (&["--connect", "127.0.0.1:1", "--trust-proxies", "10.0.0.0/99"], 2, &["--trust-proxies", "0 to 32"]),
        (&["--connect", "127.0.0.1:1", "--listen", "tls:1:privateKey=/no.pem"], 2, &["--listen", "/no.pem"]),
    ] {
        let (status, text) = refused("portforward", arguments);
        assert_eq!(status.code(), Some(code), "{arguments:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{arguments:?}: {text}");
    }
}

#[test]
fn megabytes_and_a_half_close_go_through_a_chain_with_tls_and_headers_in_the_middle() {
    let folder = Folder::new("chain");
    let echo = Server::start("echo", &[]);
    let ends_tls = forward(
        &format!("haproxy:{}", folder.tls_endpoint()),
        &echo.addr.to_string(),
        &["--trust-proxies", "127.0.0.0/8"],
    );
    let begins_tls = forward("127.0.0.1:0", &folder.tls_client(ends_tls.addr), &["--proxy-protocol", "v1"]);
    let sent = pattern(3_000_000);
    // Sent whole, finished, and only then answered to its end.
    assert!(begins_tls.exchange(&sent) == sent, "the echo differs");
    thread::scope(|scope| {
        for number in 0..8 {
            let (server, sent) = (&begins_tls, &sent[..number * 10_000]);
            scope.spawn(move || assert!(server.exchange(sent) == sent, "the echo of {number} differs"));
        }
    });
    for server in [begins_tls, ends_tls, echo] {
        server.signal();
        server.ends_with(0);
    }
}

#[test]
fn openssl_and_socat_are_served_through_a_forwarder_that_ends_tls() {
    let folder = Folder::new("openssl");
    let echo = Server::start("echo", &[]);
    let server = forward(&folder.tls_endpoint(), &echo.addr.to_string(), &[]);
    let said = with_input(
        Command::new("openssl")
            .args(["s_client", "-connect", &server.addr.to_string(), "-CAfile", &folder.at("ca.pem")])
            .args(["-verify_return_error", "-servername", "localhost", "-ign_eof", "-quiet"]),
        b"hello, openssl\n",
        "hello, openssl\n",
    );
    assert!(said.contains("hello, openssl\n"), "{said}");
    let target = format!(
        "OPENSSL:127.0.0.1:{},cafile={},commonname=localhost",
        server.addr.port(),
        folder.at("ca.pem")
    );
    let socat = with_input(Command::new("socat").args(["-", &target]), b"hello, socat\n", "hello, socat\n");
    assert_eq!(socat, "hello, socat\n");
}

/// Runs `program` with `input`, which stays open until `until` was said.
fn with_input(program: &mut Command, input: &[u8], until: &str) -> String {
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it is installed");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&said).contains(until) {
        let count = stdout.read(&mut buffer).unwrap();
        assert!(count > 0, "it ended after {}", said.escape_ascii());
        said.extend_from_slice(&buffer[..count]);
    }
    drop(stdin);
    // `-ign_eof` waits for the server, and the server for its client.
    let _ = child.kill();
    child.wait().unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

/// nginx, which tells by whom it was asked as the header before the request says.
struct Nginx {
    child: Child,
    addr: SocketAddr,
}

impl Nginx {
    fn start(folder: &Folder) -> Nginx {
        // It cannot be told to choose a port by itself: somebody may be faster, then it is tried again.
        for _ in 0..5 {
            let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let home = folder.path.display();
            let config = format!(
                "daemon off; master_process off; pid {home}/pid; error_log stderr;
                 events {{}}
                 http {{
                   access_log off; client_body_temp_path {home}; proxy_temp_path {home};
                   fastcgi_temp_path {home}; uwsgi_temp_path {home}; scgi_temp_path {home};
                   server {{
                     listen {addr} proxy_protocol;
                     location / {{
                       return 200 '$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_port';
                     }}
                   }}
                 }}"
            );
            folder.put("nginx.conf", &config);
            let child = Command::new("nginx")
                .args(["-p", &folder.at(""), "-c", &folder.at("nginx.conf")])
                .stderr(Stdio::null())
                .spawn()
                .expect("nginx is installed");
            let mut nginx = Nginx { child, addr };
            let began = Instant::now();
            while began.elapsed() < PATIENCE && nginx.child.try_wait().unwrap().is_none() {
                if TcpStream::connect(addr).is_ok() {
                    return nginx;
                }
                thread::yield_now();
            }
        }
        panic!("nginx does not start");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn nginx_behind_a_forwarder_is_told_who_asks() {
    let folder = Folder::new("nginx");
    let nginx = Nginx::start(&folder);
    let expected = |local: &str, server: SocketAddr| format!("127.0.0.1:{local} {}", server.port());
    for version in ["v1", "v2"] {
        let forwarder = forward("127.0.0.1:0", &nginx.addr.to_string(), &["--proxy-protocol", version]);
        let said = curl(&[&format!("http://{}/", forwarder.addr)]);
        let (told, local) = said.split_once('|').unwrap();
        assert_eq!(told, expected(local, forwarder.addr), "{version}");

        // Two hops: what the first has been told it tells the second.
        let first = forward("haproxy:127.0.0.1:0", &nginx.addr.to_string(), &["--proxy-protocol", version]);
        let mut stream = first.connect();
        stream.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n").unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("\r\n\r\n192.0.2.7:40000 443"), "{version}: {answer}");
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_told_by_a_reset_and_others_go_on() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = forward("127.0.0.1:0", &gone.to_string(), &[]);
    for _ in 0..3 {
        let error = server.connect().read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    server.signal();
    let output = server.wait();
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("cannot be handed on") && log.contains(&gone.to_string()), "{log}");
}

#[test]
fn what_breaks_on_one_side_does_not_end_in_order_on_the_other() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = forward("127.0.0.1:0", &upstream.local_addr().unwrap().to_string(), &[]);
    let mut client = server.connect();
    client.write_all(b"a request").unwrap();
    let (mut accepted, _) = upstream.accept().unwrap();
    accepted.read_exact(&mut [0; 9]).unwrap();
    accepted.write_all(b"half of an ans").unwrap();
    client.read_exact(&mut [0; 14]).unwrap();
    // Unread bytes make it a reset.
    client.write_all(b"more").unwrap();
    let until = Instant::now() + PATIENCE;
    while accepted.peek(&mut [0; 4]).unwrap() == 0 {
        assert!(Instant::now() < until);
    }
    drop(accepted);
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// Waits until nobody listens any more. Not by connecting: what is accepted meanwhile is handed on.
fn wait_until_closed(addr: SocketAddr) {
    let listens = format!(" 0100007F:{:04X} 00000000:0000 0A ", addr.port());
    let began = Instant::now();
    while std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&listens) {
        assert!(began.elapsed() < PATIENCE, "{addr} still listens");
        thread::yield_now();
    }
}

#[test]
fn a_transfer_that_is_under_way_is_finished_before_a_forwarder_ends() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = forward("127.0.0.1:0", &upstream.local_addr().unwrap().to_string(), &[]);
    let mut client = server.connect();
    client.write_all(b"?").unwrap();
    let (mut accepted, _) = upstream.accept().unwrap();
    accepted.read_exact(&mut [0; 1]).unwrap();
    accepted.write_all(b"one ").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    server.signal();
    wait_until_closed(server.addr);
    accepted.write_all(b"and two").unwrap();
    accepted.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "and two");
    drop(client);
    server.ends_with(0);
}

#[test]
fn a_second_signal_ends_a_forwarder_whose_peers_do_not() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = forward("127.0.0.1:0", &upstream.local_addr().unwrap().to_string(), &[]);
    let mut client = server.connect();
    let mut accepted = upstream.accept().unwrap();
    // Before bytes go, a drain ends it.
    client.write_all(b"?").unwrap();
    accepted.0.read_exact(&mut [0]).unwrap();
    server.signal();
    wait_until_closed(server.addr);
    // One that comes right behind the first is taken for its echo.
    let (began, mut signalled, mut again) = (Instant::now(), Instant::now(), Duration::from_millis(300));
    while server.child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < PATIENCE, "it goes on");
        if signalled.elapsed() > again {
            // Not soon once more: one that comes when the handlers are restored would kill it.
            (signalled, again) = (Instant::now(), Duration::from_secs(5));
            server.signal();
        }
        thread::yield_now();
    }
    server.ends_with(128 + 15);
    drop((client, accepted));
}

#[test]
fn a_forwarder_resets_one_connection_too_many_and_ends_idle_ones() {
    let echo = Server::start("echo", &[]);
    let limits = ["--idle-timeout", "1", "--connections-max", "1"];
    let forwarder = forward("127.0.0.1:0", &echo.addr.to_string(), &limits);
    let mut first = forwarder.connect();
    first.write_all(b"in time").unwrap();
    let mut answer = [0; 7];
    first.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"in time");
    let second = TcpStream::connect(forwarder.addr).and_then(|mut second| second.read(&mut [0]));
    assert_eq!(second.unwrap_err().kind(), ErrorKind::ConnectionReset);
    match first.read(&mut answer) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}
