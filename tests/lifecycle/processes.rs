//! What needs a process of its own: signals, and an idle runtime whose threads are counted. A test runs itself again with
//! a role.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use shardwise::{Handle, RunError, Runtime, Shard, TcpStream};

use super::{Echo, MS, Stubborn, shard_id};

const ROLE: &str = "SHARDWISE_TEST_ROLE";

/// Whether this process is the child of the test of that name.
fn is_child() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// A child that runs `test` alone, and what it says.
struct Role {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Role {
    fn spawn(test: &str) -> Role {
        // A script that runs these tests in its background has SIGINT ignored, children inherit that, and the runtime
        // respects it.
        let mut child = Command::new("env")
            .arg("--default-signal=INT")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("processes::{test}"), "--nocapture", "--test-threads=1"])
            .env(ROLE, "child")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Role { child, output }
    }

    /// What follows `word` in the first line that has it.
    fn wait_for(&mut self, word: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the child ended without saying {word}");
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_string();
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(what: &str) {
    println!("\n{what}");
    std::io::stdout().flush().unwrap();
}

/// The signals this process has handlers for.
fn caught_signals() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_string()
}

/// Serves until it is stopped by a signal, and tells what became of it.
fn serve_until_signalled() {
    let before = caught_signals();
    let outcome = Runtime::new().shards(2).pin(false).run(async |shard: Shard| {
        let listener =
            shard.listen_tcp("127.0.0.1:0", || Stubborn { draining: Some(Box::new(|| say("draining"))) })?;
        let addr = listener.local_addr();
        if shard.id() == shard_id(0) {
            shard.call_when_running(move |_| say(&format!("listens {addr}")));
        }
        Ok(())
    });
    say(&format!("ended {outcome:?}"));
    if let Err(RunError::Forced { connections, signal }) = outcome {
        say(&format!("forced {connections} {signal:?}"));
    }
    say(&format!("restored {}", caught_signals() == before));
}

#[test]
fn sigterm_and_sigint_stop_in_order_and_the_handlers_are_given_back() {
    if is_child() {
        return serve_until_signalled();
    }
    for signal in [Signal::TERM, Signal::INT] {
        let mut child = Role::spawn("sigterm_and_sigint_stop_in_order_and_the_handlers_are_given_back");
        let addr = child.wait_for("listens ");
        let mut client = std::net::TcpStream::connect(addr).unwrap();
        let mut answer = [0; 2];
        client.write_all(b"hi").unwrap();
        client.read_exact(&mut answer).unwrap();
        child.signal(signal);
        child.wait_for("draining");
        client.write_all(b"yo").unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"yo", "it is still served");
        drop(client);
        assert_eq!(child.wait_for("ended "), "Ok(())");
        assert_eq!(child.wait_for("restored "), "true");
        assert!(child.child.wait().unwrap().success());
    }
}

#[test]
fn a_second_signal_ends_the_runtime_at_once_and_counts_what_it_cut_off() {
    if is_child() {
        return serve_until_signalled();
    }
    let mut child = Role::spawn("a_second_signal_ends_the_runtime_at_once_and_counts_what_it_cut_off");
    let addr = child.wait_for("listens ");
    let mut client = std::net::TcpStream::connect(addr).unwrap();
    client.write_all(b"hi").unwrap();
    client.read_exact(&mut [0; 2]).unwrap();
    child.signal(Signal::TERM);
    child.wait_for("draining");
    past_the_echo_of_the_first_signal();
    let begun = Instant::now();
    child.signal(Signal::TERM);
    assert_eq!(child.wait_for("ended "), "Err(stopped by force with 1 connections still open)");
    assert!(begun.elapsed() < Duration::from_secs(5), "it did not wait for the drain deadline");
    assert_eq!(child.wait_for("forced "), "1 Some(15)");
    assert_eq!(child.wait_for("restored "), "true");
    assert!(client.read(&mut [0; 2]).is_err(), "reset");
}

#[expect(clippy::disallowed_methods, reason = "the promise is about time: `Runtime::run` says 250 ms")]
fn past_the_echo_of_the_first_signal() {
    std::thread::sleep(Duration::from_millis(300));
}

/// `timeout(1)` signals its child, then the whole group: connections were cut off although nobody had asked twice.
#[test]
fn a_request_to_stop_that_is_sent_twice_in_a_row_is_one_request() {
    if is_child() {
        return serve_until_signalled();
    }
    let mut child = Role::spawn("a_request_to_stop_that_is_sent_twice_in_a_row_is_one_request");
    let addr = child.wait_for("listens ");
    let mut client = std::net::TcpStream::connect(addr).unwrap();
    let mut answer = [0; 2];
    client.write_all(b"hi").unwrap();
    client.read_exact(&mut answer).unwrap();
    child.signal(Signal::TERM);
    child.wait_for("draining");
    child.signal(Signal::TERM);
    client.write_all(b"yo").unwrap();
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"yo", "it is still served");
    drop(client);
    assert_eq!(child.wait_for("ended "), "Ok(())");
}

/// CPU ticks and context switches of the threads named after shards.
fn effort() -> (usize, u64, u64) {
    let (mut threads, mut ticks, mut switches) = (0, 0, 0);
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
        if !read("comm").starts_with("shard-") {
            continue;
        }
        threads += 1;
        // proc_pid_stat(5): utime and stime are fields 14 and 15; the name before them is in parentheses.
        let stat = read("stat");
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        let status = read("status");
        let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
        switches +=
            counts.map(|line| line.rsplit(':').next().unwrap().trim().parse::<u64>().unwrap()).sum::<u64>();
    }
    (threads, ticks, switches)
}

/// Watches two idle shards for 2 s, which is what can be afforded here; a poll with a timeout of up to 2 s would show.
#[test]
#[expect(clippy::disallowed_methods, reason = "what is measured is that nothing happens while time passes")]
fn an_idle_runtime_uses_no_cpu_and_switches_no_context() {
    if is_child() {
        // As applications do: pinned where that is possible, with a listener, a connection and a distant timer.
        let running = Runtime::new()
            .shards(2)
            .start(async |shard: Shard| {
                let listener = shard.listen_tcp("127.0.0.1:0", || Echo)?;
                shard.call_later(Duration::from_secs(3600), |_| {});
                if shard.id() == shard_id(0) {
                    let mut client = TcpStream::connect(listener.local_addr()).await?;
                    drop(shard.spawn(async move { drop(client.read_chunk().await) }));
                }
                Ok(())
            })
            .unwrap();
        let handle: Handle = running.handle();
        handle.call_all_from_thread(|_| ());
        let turns = || handle.report().iter().map(|shard| shard.turns).collect::<Vec<_>>();
        // They have come to rest when they have made no turn for a while.
        let mut before = turns();
        loop {
            thread::sleep(MS * 50);
            let now = turns();
            if now == before {
                break;
            }
            before = now;
        }
        let (threads, ticks, switches) = effort();
        assert_eq!(threads, 2);
        thread::sleep(Duration::from_secs(2));
        let after = effort();
        say(&format!("effort {} {} {}", after.1 - ticks, after.2 - switches, turns() == before));
        return;
    }
    let mut child = Role::spawn("an_idle_runtime_uses_no_cpu_and_switches_no_context");
    assert_eq!(child.wait_for("effort "), "0 0 true", "CPU ticks, context switches, no turn was made");
}
