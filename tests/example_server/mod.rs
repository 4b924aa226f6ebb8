//! The built examples as processes: started, asked, and ended with the test. Does not know what they answer.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Nothing here takes so long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The binary of an example: cargo puts it next to the folder of this test.
pub(crate) fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("it lies in target/PROFILE/deps");
    let path = profile.join("examples").join(name);
    assert!(
        path.exists(),
        "{} is missing: `cargo test` builds it, or `cargo build --examples`",
        path.display()
    );
    path
}

/// A running example, ended with the test.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) stdout: Option<BufReader<ChildStdout>>,
    pub(crate) addr: SocketAddr,
}

impl Server {
    pub(crate) fn start(name: &str, arguments: &[&str]) -> Server {
        Server::start_at(name, "127.0.0.1:0", arguments)
    }

    pub(crate) fn start_at(name: &str, endpoint: &str, arguments: &[&str]) -> Server {
        let mut child = Command::new(binary(name))
            .args(["--listen", endpoint, "--shards", "2"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let addr = line.trim_end().strip_prefix("listening on ").and_then(|addr| addr.parse().ok());
        let addr = addr.unwrap_or_else(|| panic!("{name} said {line:?} instead of its address"));
        Server { child, stdout: Some(stdout), addr }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// What comes back when `bytes` are sent and nothing more.
    pub(crate) fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        let mut writer = stream.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                writer.write_all(bytes).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer
        })
    }

    pub(crate) fn signal(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Waits for the end; gives what it has said on both streams since it began to listen.
    pub(crate) fn wait(mut self) -> Output {
        let mut stderr_pipe = self.child.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            stderr_pipe.read_to_end(&mut text).unwrap();
            text
        });
        let mut stdout = Vec::new();
        if let Some(mut pipe) = self.stdout.take() {
            pipe.read_to_end(&mut stdout).unwrap();
        }
        let status = self.child.wait().unwrap();
        let stderr = errors.join().unwrap();
        assert!(!String::from_utf8_lossy(&stderr).contains("panicked at"), "{}", stderr.escape_ascii());
        Output { status, stdout, stderr }
    }

    pub(crate) fn ends_with(self, code: i32) {
        let output = self.wait();
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where the test has come to its end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs an example that should not start.
pub(crate) fn refused(name: &str, arguments: &[&str]) -> (ExitStatus, String) {
    let began = Instant::now();
    let output = Command::new(binary(name)).args(arguments).output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{name} took {:?} to give up", began.elapsed());
    assert!(output.stdout.is_empty(), "{name} said {}", output.stdout.escape_ascii());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked at"), "{name}: {text}");
    (output.status, text)
}
