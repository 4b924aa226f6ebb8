//! The built echo at UNIX sockets and at sockets that were opened before it began, with socat at the other end.

mod example_server;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use example_server::{PATIENCE, binary, refused};
use rustix::process::{Pid, Signal, kill_process};

/// A running echo, and what it said first.
struct Echo {
    child: Child,
    at: String,
}

impl Echo {
    /// The shell makes of its standard input what the example is to find as descriptor 3.
    fn start(endpoint: &str, style: &str, descriptor: Stdio, before: &str) -> Echo {
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("exec 3<&0 0</dev/null; {before} exec \"$@\""))
            .arg("sh")
            .arg(binary("echo"))
            .args(["--listen", endpoint, "--shards", "2", "--style", style])
            .stdin(descriptor)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let at = line.trim_end().strip_prefix("listening on ").map(str::to_string);
        let at = at.unwrap_or_else(|| panic!("it said {line:?} instead of its address"));
        Echo { child, at }
    }

    fn ends_in_order(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn path_of(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("shardwise-example-{}-{test}", std::process::id()))
}

#[test]
fn socat_is_answered_at_a_unix_socket_that_is_gone_after_the_end() {
    for style in ["protocol", "async"] {
        let path = path_of(style);
        let text = path.display().to_string();
        let echo = Echo::start(&format!("unix:{text}:mode=600"), style, Stdio::null(), "");
        assert_eq!(echo.at, format!("unix:{text}"));
        for round in 0..4 {
            let mut socat = Command::new("socat")
                .args(["-t20", "-", &format!("UNIX-CONNECT:{text}")])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("socat is installed");
            let sent = format!("line {round}\n").repeat(2000);
            let mut stdin = socat.stdin.take().unwrap();
            let bytes = sent.clone();
            let writer = std::thread::spawn(move || stdin.write_all(bytes.as_bytes()).unwrap());
            let output = socat.wait_with_output().unwrap();
            writer.join().unwrap();
            assert_eq!(output.stdout.len(), sent.len());
            assert!(output.stdout == sent.as_bytes() && output.status.success());
        }
        echo.ends_in_order();
        assert!(!path.exists(), "nothing is left behind");
        assert!(!PathBuf::from(format!("{text}.lock")).exists(), "nor is the lock");
    }
}

#[test]
fn a_second_server_at_a_unix_socket_is_refused_and_a_path_that_is_too_long_is_told() {
    let path = path_of("twice");
    let endpoint = format!("unix:{}", path.display());
    let echo = Echo::start(&endpoint, "protocol", Stdio::null(), "");
    let (status, said) = refused("echo", &["--listen", &endpoint]);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(&path.display().to_string()), "{said}");
    echo.ends_in_order();
    let (status, said) = refused("echo", &["--listen", &format!("unix:/tmp/{}", "x".repeat(120))]);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("at most 107 bytes"), "{said}");
}

#[test]
fn a_listening_socket_that_was_passed_on_is_served_by_all_shards() {
    for (endpoint, before) in [
        ("fd:3", ""),
        ("systemd:domain=INET:index=0", "export LISTEN_PID=$$ LISTEN_FDS=1;"),
        ("systemd:name=web", "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web;"),
    ] {
        for style in ["protocol", "async"] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let echo = Echo::start(endpoint, style, Stdio::from(OwnedFd::from(listener)), before);
            assert_eq!(echo.at, addr.to_string());
            for _ in 0..8 {
                let mut stream = TcpStream::connect(addr).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(b"passed on").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                assert_eq!(answer, b"passed on", "{endpoint}");
            }
            echo.ends_in_order();
        }
    }
}

#[test]
fn what_was_not_passed_on_is_told() {
    for (endpoint, wanted) in [
        ("fd:900", "descriptor 900: Bad file descriptor"),
        ("systemd:index=0", "systemd has passed no sockets to this process"),
    ] {
        let (status, said) = refused("echo", &["--listen", endpoint]);
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains(wanted), "{said}");
    }
}
