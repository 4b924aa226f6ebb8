//! A test that runs itself again under `strace`, which makes its system calls fail.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::itself;

/// A server in a child under `strace`, with `inject` done to its system calls.
pub(crate) struct Traced {
    child: std::process::Child,
    pub(crate) addr: SocketAddr,
    log: std::path::PathBuf,
}

impl Traced {
    /// Runs `test` as the child. It prints `listening ADDRESS`, and goes on when it is given a line.
    pub(crate) fn start(test: &str, call: &str, inject: &str) -> Traced {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, SeqCst);
        let log = std::env::temp_dir().join(format!("shardwise-{}-{number}.strace", std::process::id()));
        let mut program = Command::new("strace");
        program.args(["-f", "--seccomp-bpf", "-qq", "-e", &format!("trace={call}")]);
        program.args(["-e", &format!("inject={call}:{inject}"), "-o"]).arg(&log);
        program.arg(std::env::current_exe().unwrap());
        itself(&mut program, test);
        program.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut traced =
            Traced { child: program.spawn().unwrap(), addr: SocketAddr::from(([127, 0, 0, 1], 0)), log };
        traced.find_address();
        traced
    }

    fn find_address(&mut self) {
        let stdout = self.child.stdout.as_mut().unwrap();
        // One byte at a time: what follows the line belongs to the next reader.
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            stdout.read_exact(&mut byte).expect("the child serves");
            if byte[0] != b'\n' {
                line.push(byte[0]);
            } else if let Some(addr) = line.strip_prefix(b"listening ") {
                self.addr = std::str::from_utf8(addr).unwrap().parse().unwrap();
                return;
            } else {
                line.clear();
            }
        }
    }

    /// Lets the child go on to its next server.
    pub(crate) fn next_style(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.find_address();
    }

    /// Ends the child; gives how many calls there were, and how many of them failed by our hand.
    pub(crate) fn end(mut self) -> (usize, usize) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
        let log = BufReader::new(std::fs::File::open(&self.log).unwrap());
        let lines: Vec<_> = log.lines().map(|line| line.unwrap()).collect();
        let _ = std::fs::remove_file(&self.log);
        (lines.len(), lines.iter().filter(|line| line.contains("(INJECTED)")).count())
    }
}
