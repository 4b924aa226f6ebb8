//! The built examples as their users meet them: as processes, with curl and plain sockets at the other end. What the
//! `http` example makes of each request is the business of `http_example.rs`.

mod example_server;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use example_server::{PATIENCE, Server, refused};

const ALL: &[&str] = &["echo", "http", "cross_shard", "quickstart"];

#[test]
fn an_address_in_use_is_named_and_ends_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for name in ALL {
        let (status, text) = refused(name, &["--listen", &addr]);
        assert_eq!(status.code(), Some(1), "{name}: {text}");
        let last = text.lines().last().unwrap();
        assert!(last.contains(&addr) && last.contains("in use"), "{name}: {text}");
    }
}

#[test]
fn a_wrong_option_is_named_with_its_range() {
    for (name, arguments, words) in [
        ("echo", &["--style", "loud"][..], ["--style", "protocol, async"]),
        ("http", &["--shards", "0"], ["--shards", "1 to 256"]),
        ("http", &["--cpus", "1023"], ["--cpus", "1023"]),
        ("cross_shard", &["--listen", "127.0.0.1:65536"], ["--listen", "0 to 65535"]),
        ("quickstart", &["--seconds", "0"], ["--seconds", "1 to 3600"]),
        ("quickstart", &["--connections", "-1"], ["--connections", "1 to 10000"]),
    ] {
        let (status, text) = refused(name, arguments);
        assert_eq!(status.code(), Some(2), "{name} {arguments:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{name} {arguments:?}: {text}");
    }
}

#[test]
fn sigterm_ends_a_server_in_order_though_a_connection_is_open() {
    for (name, arguments) in [
        ("echo", &[][..]),
        ("echo", &["--style", "async"]),
        ("http", &[]),
        ("cross_shard", &[]),
        ("quickstart", &["--seconds", "60"]),
    ] {
        let server = Server::start(name, arguments);
        let mut idle = server.connect();
        server.signal();
        assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "{name} finishes the connection");
        drop(idle);
        server.ends_with(0);
    }
}

#[test]
fn a_second_sigterm_ends_a_server_that_waits_for_a_peer() {
    let server = Server::start("http", &[]);
    let mut stream = server.connect();
    // Begun, so that the first signal does not end it; and answered, so that the server has seen it.
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n").unwrap();
    stream.read_exact(&mut [0; 97]).unwrap();
    server.signal();
    wait_until_refused(server.addr);
    server.signal();
    server.ends_with(128 + 15);
}

#[test]
fn a_request_that_has_begun_is_answered_while_the_server_drains() {
    let server = Server::start("http", &[]);
    let mut stream = server.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n").unwrap();
    stream.read_exact(&mut [0; 97]).unwrap();
    server.signal();
    wait_until_refused(server.addr);
    stream.write_all(b"Host: a\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\nConnection: close\r\n"),
        "{answer}"
    );
    drop(stream);
    server.ends_with(0);
}

/// A server that drains has closed its listener.
fn wait_until_refused(addr: SocketAddr) {
    let began = Instant::now();
    while TcpStream::connect(addr).is_ok() {
        assert!(began.elapsed() < PATIENCE, "{addr} still listens");
        thread::yield_now();
    }
}

#[test]
fn curl_gets_the_page_over_one_connection() {
    let server = Server::start("http", &[]);
    let page = format!("http://{}/", server.addr);
    let plaintext = format!("http://{}/plaintext", server.addr);
    let ask = |arguments: &[&str]| {
        let format = "|%{http_code} %{content_type} %{num_connects}\\n";
        let curl = Command::new("curl")
            .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20", "--write-out", format])
            .args(arguments)
            .output()
            .expect("curl is installed");
        assert!(curl.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&curl.stderr));
        String::from_utf8(curl.stdout).unwrap()
    };
    assert_eq!(ask(&[&page, &plaintext]), "Hello, World!|200 text/plain 1\nHello, World!|200 text/plain 0\n");
    assert_eq!(ask(&["--http1.0", &page]), "Hello, World!|200 text/plain 1\n");
    assert!(ask(&["--head", &page]).ends_with("\r\n\r\n|200 text/plain 1\n"));
    assert!(ask(&[&format!("{page}missing")]).contains("|404 "));
    assert!(ask(&["--request", "DELETE", &page]).contains("|405 "));
    let body = "b".repeat(100_000);
    assert!(ask(&["--data", &body, "--header", "Expect: 100-continue", &page]).contains("|405 "));
    assert!(ask(&["--data", &body, "--header", "Transfer-Encoding: chunked", &page]).contains("|405 "));
    assert!(ask(&["--header", "Content-Length: 1048577", "--request", "POST", &page]).contains("|413 "));
}

#[test]
fn pipelined_requests_come_back_in_order() {
    let server = Server::start("http", &[]);
    let requests: String = (0..5000)
        .map(|number| {
            let path = if number % 3 == 0 { "missing" } else { "" };
            format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n")
        })
        .collect();
    let answers = String::from_utf8(server.exchange(requests.as_bytes())).unwrap();
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|line| &line[..3]).collect();
    let expected: Vec<&str> = (0..5000).map(|number| if number % 3 == 0 { "404" } else { "200" }).collect();
    assert!(statuses == expected, "{} replies, or in another order", statuses.len());
}

#[test]
fn endless_pipelining_without_reading_costs_bounded_memory() {
    let server = Server::start("http", &[]);
    let mut stream = server.connect();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let batch = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(10_000);
    // 270 MB would be through: the server has to have stopped reading long before.
    let blocked = (0..1000).any(|_| stream.write_all(batch.as_bytes()).is_err());
    assert!(blocked, "the server goes on reading");
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 64 * 1024, "{kib} KiB resident");
    assert!(server.exchange(b"GET / HTTP/1.0\r\n\r\n").ends_with(b"Hello, World!"), "others are served");
}

#[test]
fn an_echo_is_what_was_sent_in_both_styles() {
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    for style in ["protocol", "async"] {
        let server = Server::start("echo", &["--style", style]);
        assert!(server.exchange(&sent) == sent, "the echo of style {style} differs");
    }
}

#[test]
fn counters_count_by_key_whoever_asks() {
    let server = Server::start("cross_shard", &[]);
    let increments: String = (0..600).map(|number| format!("INCR key-{}\n", number % 3)).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let answers = String::from_utf8(server.exchange(increments.as_bytes())).unwrap();
                let numbers: Vec<u64> = answers.lines().map(|line| line.parse().unwrap()).collect();
                assert_eq!(numbers.len(), 600);
                let own = |key: usize| numbers.iter().skip(key).step_by(3);
                assert!(
                    (0..3).all(|key| own(key).is_sorted_by(|one, next| one < next)),
                    "a counter went back"
                );
            });
        }
    });
    let answers = server.exchange(b"GET key-0\nGET key-1\r\nGET key-2\nGET nobody\nSUM\n");
    assert_eq!(answers, b"800\n800\n800\n0\n2400\n");
}

#[test]
fn a_wrong_line_is_answered_and_the_next_one_too() {
    let server = Server::start("cross_shard", &[]);
    let answers = server.exchange(b"COUNT a\nINCR\nGET a b\nSUM a\n\nGET \xff\nGET a\n");
    let answers = String::from_utf8(answers).unwrap();
    let lines: Vec<&str> = answers.lines().collect();
    assert_eq!(lines.len(), 7, "{answers}");
    assert!(lines[..6].iter().all(|line| line.starts_with("ERR ")) && lines[6] == "0", "{answers}");
    let long = format!("GET {}\nGET a\n", "k".repeat(2000));
    assert_eq!(server.exchange(long.as_bytes()), b"ERR the line is longer than 1024 bytes\n");
}

#[test]
fn a_first_look_ends_by_itself_with_a_table() {
    let server = Server::start("quickstart", &["--seconds", "1", "--connections", "8"]);
    let output = server.wait();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let rows = text.lines().filter(|line| line.ends_with(" %")).count();
    assert_eq!(rows, 2, "a row for each shard: {text}");
    for word in ["requests/s", "p99", "imbalance", "client on the same cores"] {
        assert!(text.contains(word), "{word} is missing in {text}");
    }
    assert!(!text.contains("not every client"), "{text}");
}

#[test]
fn a_first_look_survives_that_nobody_looks() {
    let mut server = Server::start("quickstart", &["--seconds", "1", "--connections", "2"]);
    drop(server.stdout.take());
    server.ends_with(0);
}
