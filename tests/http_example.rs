//! The protocol of the `http` example in simulated time: what it answers, however its input is cut, and how long it
//! waits.

// The example's own files, where they look for one another: at the root of the crate.
#[path = "../examples/http/body.rs"]
#[allow(unreachable_pub, reason = "written for a crate of its own")]
mod body;
#[path = "../examples/http/head.rs"]
#[allow(unreachable_pub, reason = "written for a crate of its own")]
mod head;
#[path = "../examples/http/protocol.rs"]
#[allow(unreachable_pub, reason = "written for a crate of its own")]
mod protocol;
#[path = "../examples/http/reply.rs"]
#[allow(unreachable_pub, reason = "written for a crate of its own")]
mod reply;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::Http;
use shardwise::testing::Simulation;
use shardwise::{Result, Shard, TcpStream};

/// Runs `test` as a client of the protocol, on one simulated shard.
fn simulate(test: impl AsyncFn(&Shard, SocketAddr) -> Result<()> + Send + Sync + 'static) {
    let test = Arc::new(test);
    let outcome = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&outcome);
    let app = async move |shard: Shard| {
        let addr = shard.listen_tcp("127.0.0.1:0", Http::default)?.local_addr();
        let (test, noted) = (Arc::clone(&test), Arc::clone(&noted));
        shard.call_when_running(move |shard| {
            let home = shard.clone();
            let task = shard.spawn(async move { test(&home, addr).await });
            let home = shard.clone();
            drop(shard.spawn(async move {
                let ended = task.await.map_err(|panicked| panicked.to_string());
                *noted.lock().unwrap() =
                    Some(ended.and_then(|ended| ended.map_err(|error| error.to_string())));
                home.stop().unwrap();
            }));
        });
        Ok(())
    };
    Simulation::new(1).shards(1).config(protocol::config()).kind_network().run(app).unwrap();
    let outcome = outcome.lock().unwrap().take();
    outcome.expect("the test has come to its end").unwrap();
}

/// Everything that comes back when `parts` are sent, one after the other has been received.
async fn exchange(shard: &Shard, addr: SocketAddr, parts: &[&[u8]]) -> Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    for part in parts {
        // A server that has refused what came before does not wait for the rest.
        if stream.write_all(part).await.is_err() {
            break;
        }
        shard.sleep(Duration::from_millis(1)).await;
    }
    stream.shutdown_write();
    read_to_end(&mut stream).await
}

async fn read_to_end(stream: &mut TcpStream) -> Result<String> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.read_chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8(all)?)
}

/// The status codes of the replies in `answers`.
fn statuses(answers: &str) -> Vec<u16> {
    let lines = answers.split("HTTP/1.1 ").skip(1);
    lines.map(|line| line[..3].parse().expect("a status code has three digits")).collect()
}

/// A request and the status codes of what comes back.
const CASES: &[(&str, &[u16])] = &[
    ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[200]),
    ("GET /plaintext HTTP/1.1\r\nHost: a\r\n\r\n", &[200]),
    ("GET /?a=b HTTP/1.1\r\nHost: a\r\n\r\n", &[200]),
    ("GET http://a/plaintext HTTP/1.1\r\nHost: a\r\n\r\n", &[200]),
    ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &[200]),
    ("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", &[200]),
    ("GET / HTTP/1.0\r\n\r\n", &[200]),
    ("GET /missing HTTP/1.1\r\nHost: a\r\n\r\n", &[404]),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", &[405]),
    ("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", &[405]),
    // What follows on the connection is answered, or is not.
    (
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &[200, 404, 200],
    ),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &[200]),
    ("GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n", &[200]),
    ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n", &[200, 200]),
    ("BAD\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &[400]),
    // Bodies are skipped to the byte.
    (
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nGET GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &[200, 200],
    ),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &[200, 200]),
    (
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\nA \r\n0123456789\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &[404, 200],
    ),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &[200, 200],
    ),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nabGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &[100, 200, 200],
    ),
    ("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", &[200]),
    ("GET / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab", &[200]),
    // An unfinished request has no answer.
    ("GET / HTTP/1.1\r\nHost: a\r\n", &[]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab", &[]),
    // RFC 9112 §6.3, and whatever else has smuggled requests past a proxy.
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\na", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\na", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\na", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", &[400]),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[400],
    ),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", &[501]),
    ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n 1\r\na\r\n0\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX : y\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", &[400]),
    ("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", &[400]),
    ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nExpect: the-best\r\n\r\n", &[417]),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", &[505]),
];

#[test]
fn every_request_gets_its_answer_in_order() {
    simulate(async |shard, addr| {
        for (request, expected) in CASES {
            let answers = exchange(shard, addr, &[request.as_bytes()]).await?;
            assert_eq!(statuses(&answers), *expected, "{request:?} gave {answers}");
        }
        Ok(())
    });
}

#[test]
fn the_answers_are_the_same_wherever_the_input_is_cut() {
    simulate(async |shard, addr| {
        for (request, _) in CASES {
            let request = request.as_bytes();
            let whole = exchange(shard, addr, &[request]).await?;
            for cut in 1..request.len() {
                let (first, second) = request.split_at(cut);
                let answers = exchange(shard, addr, &[first, second]).await?;
                assert_eq!(answers, whole, "{:?} | {:?}", first.escape_ascii(), second.escape_ascii());
            }
            let bytes: Vec<&[u8]> = request.chunks(1).collect();
            assert_eq!(
                exchange(shard, addr, &bytes).await?,
                whole,
                "byte by byte: {}",
                request.escape_ascii()
            );
        }
        Ok(())
    });
}

#[test]
fn what_is_too_long_is_refused_and_what_just_fits_is_not() {
    simulate(async |shard, addr| {
        let uri = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "u".repeat(len - 1));
        let head = |len: usize| {
            let rest = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(len - rest))
        };
        let headers =
            |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
        let sized = |len: usize| {
            format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n{}", "b".repeat(len))
        };
        let chunked = |count: usize| {
            let chunks = format!("10000\r\n{}\r\n", "c".repeat(0x10000)).repeat(count);
            format!("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
        };
        for (request, expected) in [
            (uri(8192), 404),
            (uri(8193), 414),
            (uri(20_000), 414),
            (head(16 * 1024), 200),
            (head(16 * 1024 + 1), 431),
            (headers(100), 200),
            (headers(101), 431),
            (sized(1024 * 1024), 200),
            (sized(1024 * 1024 + 1), 413),
            (chunked(16), 200),
            (chunked(17), 413),
        ] {
            let name = request[..request.len().min(80)].escape_debug().to_string();
            let bytes = request.as_bytes();
            assert_eq!(statuses(&exchange(shard, addr, &[bytes]).await?), [expected], "{name}");
            let pieces: Vec<&[u8]> = bytes.chunks(1000).collect();
            assert_eq!(statuses(&exchange(shard, addr, &pieces).await?), [expected], "in pieces: {name}");
        }
        Ok(())
    });
}

#[test]
fn a_reply_says_what_it_has_to() {
    simulate(async |shard, addr| {
        let ask = async |request: &str| exchange(shard, addr, &[request.as_bytes()]).await;
        let hello = ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        for line in [
            "HTTP/1.1 200 OK\r\n",
            "Server: shardwise\r\n",
            "Content-Type: text/plain\r\n",
            "Content-Length: 13\r\n",
        ] {
            assert!(hello.contains(line), "{line:?} is missing in {hello}");
        }
        assert!(hello.ends_with("\r\n\r\nHello, World!") && !hello.contains("Connection"), "{hello}");
        let head = ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        assert!(head.ends_with("\r\n\r\n") && head.contains("Content-Length: 13\r\n"), "{head}");
        assert!(ask("PUT / HTTP/1.1\r\nHost: a\r\n\r\n").await?.contains("Allow: GET, HEAD\r\n"));
        assert!(ask("BAD\r\n\r\n").await?.contains("Connection: close\r\n"));
        let kept = ask("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").await?;
        assert!(kept.contains("Connection: keep-alive\r\n"), "{kept}");
        Ok(())
    });
}

#[test]
fn a_client_that_reads_late_gets_every_reply() {
    simulate(async |shard, addr| {
        let mut stream = TcpStream::connect(addr).await?;
        let requests = 1_500;
        stream.write_all("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(requests).as_bytes()).await?;
        stream.shutdown_write();
        shard.sleep(Duration::from_secs(5)).await;
        let answers = read_to_end(&mut stream).await?;
        assert_eq!(statuses(&answers), vec![200; requests]);
        Ok(())
    });
}

#[test]
fn a_client_that_never_reads_is_not_listened_to_for_ever() {
    simulate(async |shard, addr| {
        let mut stream = TcpStream::connect(addr).await?;
        let batch = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100_000);
        let began = shard.now();
        // Nothing moves any more once all buffers are full, until one side gives up.
        stream.write_all(batch.as_bytes()).await.unwrap_err();
        let took = shard.now() - began;
        assert!(took >= Duration::from_secs(29) && took < Duration::from_secs(40), "{took:?}");
        Ok(())
    });
}

#[test]
fn a_head_has_ten_seconds_and_no_byte_prolongs_them() {
    simulate(async |shard, addr| {
        for idle_seconds in [None, Some(50)] {
            let mut stream = TcpStream::connect(addr).await?;
            if let Some(seconds) = idle_seconds {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
                stream.read_exact(&mut [0; 97]).await?;
                shard.sleep(Duration::from_secs(seconds)).await;
            }
            let began = shard.now();
            let answer = loop {
                stream.write_all(b"G").await?;
                if let Ok(chunk) = shard.timeout(Duration::from_secs(1), stream.read_chunk()).await {
                    break chunk?.map(|chunk| String::from_utf8_lossy(&chunk).into_owned());
                }
            };
            let took = shard.now() - began;
            assert_eq!(statuses(&answer.unwrap_or_default()), [408], "idle before: {idle_seconds:?}");
            assert!(took >= Duration::from_millis(9_990) && took < Duration::from_millis(10_100), "{took:?}");
            assert!(stream.read_chunk().await?.is_none(), "it is closed");
        }
        Ok(())
    });
}

#[test]
fn an_idle_connection_is_closed_after_a_minute_without_a_word() {
    simulate(async |shard, addr| {
        let mut stream = TcpStream::connect(addr).await?;
        for _ in 0..3 {
            shard.sleep(Duration::from_secs(9)).await;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
            stream.read_exact(&mut [0; 97]).await?;
        }
        let began = shard.now();
        assert!(stream.read_chunk().await?.is_none());
        let took = shard.now() - began;
        assert!(took >= Duration::from_millis(59_990) && took < Duration::from_millis(60_100), "{took:?}");
        Ok(())
    });
}

#[test]
fn a_slow_body_is_waited_for_and_a_trickle_is_not() {
    simulate(async |shard, addr| {
        for (bytes_per_second, expected) in [(300, 200), (1, 408)] {
            let mut stream = TcpStream::connect(addr).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n").await?;
            let piece = vec![b'b'; bytes_per_second];
            let answer = loop {
                stream.write_all(&piece).await?;
                if let Ok(chunk) = shard.timeout(Duration::from_secs(1), stream.read_chunk()).await {
                    break chunk?.map(|chunk| String::from_utf8_lossy(&chunk).into_owned());
                }
            };
            assert_eq!(statuses(&answer.unwrap_or_default()), [expected], "{bytes_per_second} B/s");
        }
        Ok(())
    });
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_before_the_body() {
    simulate(async |_shard, addr| {
        let mut stream = TcpStream::connect(addr).await?;
        stream
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
            .await?;
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).await?;
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"abc").await?;
        stream.shutdown_write();
        assert_eq!(statuses(&read_to_end(&mut stream).await?), [405]);
        Ok(())
    });
}
