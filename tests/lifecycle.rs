//! Stopping in order on every driver: queues are emptied, connections come to an end, signals ask for it, and an idle
//! runtime sleeps.
//!
//! What needs real sockets of client threads, signals or `/proc` runs on the real kernel alone.

use std::future::{Future, poll_fn};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use shardwise::testing::{Simulation, on_every_driver, on_every_driver_with};
use shardwise::{
    App, CloseReason, Config, Handle, Input, NotRunning, Protocol, Result, RunError, Runtime, Shard, ShardId,
    TcpStream, Transport, yield_now,
};

const MS: Duration = Duration::from_millis(1);

fn shard_id(number: u16) -> ShardId {
    ShardId::new(number)
}

struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }
}

/// Answers requests of four bytes, whole: what came of one is no reason to end, all of it is.
struct Answers;

impl Protocol for Answers {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        while input.len() >= 4 {
            transport.write(&input.bytes()[..4])?;
            input.consume(4);
        }
        Ok(())
    }
}

/// Echoes, and goes on when it is asked to come to an end.
struct Stubborn {
    draining: Option<Box<dyn FnOnce()>>,
}

impl Protocol for Stubborn {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }

    fn draining(&mut self, _: &Transport) -> Result<()> {
        if let Some(call) = self.draining.take() {
            call();
        }
        Ok(())
    }
}

/// A client that is not told of the stop: it ends when its server does.
async fn client(addr: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_ends_on_drain(false);
    Ok(stream)
}

async fn ask(client: &mut TcpStream) -> Result<()> {
    let mut answer = [0; 4];
    client.write_all(b"ping").await?;
    client.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

/// Both shards listen on one address.
async fn listen_everywhere<P: Protocol>(shard: &Shard, make: fn() -> P) -> Result<SocketAddr> {
    let addr = shard.listen_tcp("127.0.0.1:0", make)?.local_addr();
    for id in shard.handle().shard_ids().filter(|id| *id != shard.id()) {
        shard
            .call(id, move |shard| {
                shard.listen_tcp(addr, make).map(|_| ()).map_err(|error| error.to_string())
            })
            .await??;
    }
    Ok(addr)
}

#[test]
fn idle_connections_end_at_once_when_the_runtime_stops() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let addr = listen_everywhere(shard, || Echo).await?;
        let mut clients = Vec::new();
        for _ in 0..200 {
            let mut client = client(addr).await?;
            ask(&mut client).await?;
            clients.push(client);
        }
        let begun = shard.now();
        shard.stop()?;
        for mut client in clients {
            assert!(client.read_chunk().await?.is_none(), "an orderly end");
        }
        assert!(shard.now() - begun < Duration::from_secs(1), "it took {:?}", shard.now() - begun);
        Ok(())
    });
}

/// Mio alone: the clients are threads' sockets, which do nothing at all.
#[test]
fn two_hundred_idle_clients_that_never_close_do_not_hold_up_the_stop() {
    let addr = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&addr);
    let running = Runtime::new()
        .shards(2)
        .pin(false)
        .start(async move |shard: Shard| {
            *kept.lock().unwrap() = Some(shard.listen_tcp("127.0.0.1:0", || Echo)?.local_addr());
            Ok(())
        })
        .unwrap();
    let addr = addr.lock().unwrap().unwrap();
    let mut clients = Vec::new();
    for _ in 0..200 {
        let mut client = std::net::TcpStream::connect(addr).unwrap();
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        clients.push(client);
    }
    let begun = Instant::now();
    running.stop().unwrap();
    running.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
}

#[test]
fn a_busy_connection_finishes_what_it_does_and_a_second_stop_does_not_hurry_it() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let listener = shard.serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            stream.set_ends_on_drain(false);
            let mut request = [0; 4];
            stream.read_exact(&mut request).await?;
            shardwise::sleep(MS * 50).await;
            stream.write_all(&vec![7; 300_000]).await?;
            Ok(())
        })?;
        let mut client = client(listener.local_addr()).await?;
        client.write_all(b"slow").await?;
        shard.sleep(MS * 20).await;
        shard.stop()?;
        shard.sleep(MS).await;
        assert_eq!(shard.stop(), Err(NotRunning));
        let mut received = 0;
        while let Some(chunk) = client.read_chunk().await? {
            assert!(chunk.iter().all(|byte| *byte == 7));
            received += chunk.len();
        }
        assert_eq!(received, 300_000);
        Ok(())
    });
}

#[test]
fn what_a_connection_had_written_before_the_stop_arrives() {
    struct Flood;
    impl Protocol for Flood {
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            input.take();
            transport.write(&vec![3; 800_000])?;
            transport.shard().stop()?;
            Ok(())
        }
    }
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Flood)?;
        let mut client = client(listener.local_addr()).await?;
        client.write_all(b"go").await?;
        let mut received = 0;
        while let Some(chunk) = client.read_chunk().await? {
            received += chunk.len();
        }
        assert_eq!(received, 800_000);
        Ok(())
    });
}

#[test]
fn a_new_connection_is_refused_once_the_listeners_have_closed() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let addr = listen_everywhere(shard, || Stubborn { draining: None }).await?;
        let mut first = client(addr).await?;
        ask(&mut first).await?;
        shard.stop()?;
        let begun = shard.now();
        loop {
            // The stubborn one keeps the runtime draining meanwhile, and is served.
            ask(&mut first).await?;
            match TcpStream::connect(addr).await {
                Err(_) => break,
                Ok(stream) => drop(stream),
            }
            assert!(shard.now() - begun < Duration::from_secs(5), "it still listens");
            shard.sleep(MS).await;
        }
        first.close();
        Ok(())
    });
}

/// Two stubborn connections, and who tells how they ended.
struct Forced {
    config_says: Duration,
    reasons: Arc<Mutex<Vec<String>>>,
    handle: Arc<Mutex<Option<Handle>>>,
}

/// More than the kernel, real or simulated, takes for a peer that does not read.
const UNSENT_BYTES: usize = 20_000_000;

struct Reporting(Arc<Mutex<Vec<String>>>);

impl Protocol for Reporting {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }

    fn draining(&mut self, _: &Transport) -> Result<()> {
        Ok(())
    }

    fn disconnected(&mut self, reason: CloseReason) {
        assert!(matches!(reason, CloseReason::Stopped), "{reason}");
        self.0.lock().unwrap().push(reason.to_string());
    }
}

impl App for Forced {
    fn prepare(&self, handle: &Handle) -> Result<()> {
        *self.handle.lock().unwrap() = Some(handle.clone());
        Ok(())
    }

    async fn start(&self, shard: Shard) -> Result<()> {
        if shard.id() != shard_id(0) {
            return Ok(());
        }
        let reasons = Arc::clone(&self.reasons);
        let addr = shard.listen_tcp("127.0.0.1:0", move || Reporting(Arc::clone(&reasons)))?.local_addr();
        let config_says = self.config_says;
        shard.call_when_running(move |shard| {
            drop(shard.spawn(async move {
                let shard = Shard::current();
                let mut clients = [client(addr).await.unwrap(), client(addr).await.unwrap()];
                for client in &mut clients {
                    ask(client).await.unwrap();
                }
                // The server is held back by its own unsent answers, and takes no more than a part.
                clients[0].transport().write(&vec![0; UNSENT_BYTES]).unwrap();
                let _hold = clients[0].transport().hold_reading();
                let begun = shard.now();
                shard.stop().unwrap();
                // The clients are connections of this shard's too, and stubborn; the reset ends them.
                for client in &mut clients {
                    assert!(client.read_chunk().await.is_err(), "reset at the deadline");
                    assert!(shard.now() - begun >= config_says, "not before");
                }
            }));
        });
        Ok(())
    }
}

#[test]
fn what_is_open_at_the_drain_deadline_is_aborted_and_counted() {
    let mut config = Config::default();
    config.drain_timeout = MS * 100;
    config.watermarks.cap_bytes = UNSENT_BYTES;
    let reasons: Arc<Mutex<Vec<String>>> = Arc::default();
    let handle: Arc<Mutex<Option<Handle>>> = Arc::default();
    let check = |driver: &str, outcome: std::result::Result<(), RunError>| {
        let error = outcome.expect_err(driver);
        let RunError::Forced { connections, signal: None } = &error else { panic!("{driver}: {error}") };
        assert_eq!(*connections, 4, "{driver}: two connections with both ends here");
        let reports = handle.lock().unwrap().take().unwrap().report();
        assert_eq!(reports.iter().map(|shard| shard.aborted).collect::<Vec<_>>(), [4, 0], "{driver}");
        let dropped = reports[0].unsent_bytes_dropped;
        assert!((1..=2 * UNSENT_BYTES as u64).contains(&dropped), "{driver}: {dropped} bytes were unsent");
        assert!(error.to_string().contains("4 connections"), "{error}");
        assert_eq!(std::mem::take(&mut *reasons.lock().unwrap()).len(), 2, "{driver}");
    };
    let app = || Forced { config_says: MS * 100, reasons: Arc::clone(&reasons), handle: Arc::clone(&handle) };
    let outcome =
        Runtime::new().shards(2).pin(false).config(config.clone()).start(app()).and_then(|r| r.join());
    check("mio", outcome);
    for seed in 0..5 {
        check(&format!("sim {seed}"), Simulation::new(seed).config(config.clone()).run(app()));
    }
}

#[test]
fn a_handler_that_never_ends_is_given_up_at_the_drain_deadline() {
    let mut config = Config::default();
    config.drain_timeout = MS * 50;
    let app = || {
        async |shard: Shard| {
            if shard.id() != shard_id(0) {
                return Ok(());
            }
            let listener = shard.serve_tcp("127.0.0.1:0", async |stream: TcpStream| {
                drop(stream);
                Shard::current().stop()?;
                std::future::pending().await
            })?;
            let addr = listener.local_addr();
            drop(shard.spawn(async move {
                let mut client = TcpStream::connect(addr).await.unwrap();
                let _ = client.read_chunk().await;
            }));
            Ok(())
        }
    };
    let check = |driver: &str, outcome: std::result::Result<(), RunError>| {
        let error = outcome.expect_err(driver);
        assert!(matches!(error, RunError::Forced { connections: 0, .. }), "{driver}: {error}");
    };
    check(
        "mio",
        Runtime::new().shards(2).pin(false).config(config.clone()).start(app()).and_then(|r| r.join()),
    );
    for seed in 0..5 {
        check(&format!("sim {seed}"), Simulation::new(seed).config(config.clone()).run(app()));
    }
}

const QUEUED: usize = 60;

/// Mio alone: a blocking callback and client threads need real threads.
#[test]
fn sixty_clients_in_the_accept_queues_of_two_blocked_shards_are_all_served_before_the_stop_ends() {
    let addr = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&addr);
    let running = Runtime::new()
        .shards(2)
        .pin(false)
        .start(async move |shard: Shard| {
            *kept.lock().unwrap() = Some(shard.listen_tcp("127.0.0.1:0", || Echo)?.local_addr());
            Ok(())
        })
        .unwrap();
    let addr = addr.lock().unwrap().unwrap();
    let (blocked, both_blocked) = mpsc::channel();
    let mut releases = Vec::new();
    for id in running.handle().shard_ids() {
        let (release, released) = mpsc::channel::<()>();
        let blocked = blocked.clone();
        let block = move |_: &Shard| {
            blocked.send(()).unwrap();
            let _ = released.recv();
        };
        running.handle().call_from_thread(id, block).unwrap();
        releases.push(release);
    }
    both_blocked.recv().unwrap();
    both_blocked.recv().unwrap();
    let (connected, all_connected) = mpsc::channel();
    let clients: Vec<_> = (0..QUEUED)
        .map(|number| {
            let connected = connected.clone();
            thread::spawn(move || {
                let mut client = std::net::TcpStream::connect(addr).unwrap();
                // Half of them have asked already; the others do when the stop has begun.
                let asks_early = number % 2 == 0;
                if asks_early {
                    client.write_all(b"ping").unwrap();
                }
                connected.send(()).unwrap();
                if !asks_early {
                    client.write_all(b"ping")?;
                }
                let mut answer = Vec::new();
                client.read_to_end(&mut answer)?;
                Ok::<_, std::io::Error>(answer)
            })
        })
        .collect();
    for _ in 0..QUEUED {
        all_connected.recv().unwrap();
    }
    assert_eq!(running.handle().report().iter().map(|shard| shard.accepted).sum::<u64>(), 0);
    running.stop().unwrap();
    drop(releases);
    for (number, client) in clients.into_iter().enumerate() {
        let answer = client.join().unwrap();
        assert_eq!(
            answer.unwrap_or_else(|error| panic!("client {number}: {error}")),
            b"ping",
            "client {number}"
        );
    }
    let handle = running.handle();
    running.join().unwrap();
    let accepted: Vec<_> = handle.report().iter().map(|shard| shard.accepted).collect();
    assert_eq!(accepted.iter().sum::<u64>(), QUEUED as u64);
    assert!(accepted.iter().all(|count| *count > 0), "both queues had some: {accepted:?}");
}

/// Shard 1 keeps the start barrier closed, so that its clients wait in the queues of both shards, and ends that: by a stop,
/// or by closing its listener.
struct EndsBeforeAccepting {
    by_stop: bool,
    addr: Mutex<Option<SocketAddr>>,
    turned_away: Arc<AtomicUsize>,
    handle: Arc<Mutex<Option<Handle>>>,
}

impl App for EndsBeforeAccepting {
    fn prepare(&self, handle: &Handle) -> Result<()> {
        *self.handle.lock().unwrap() = Some(handle.clone());
        Ok(())
    }

    async fn start(&self, shard: Shard) -> Result<()> {
        let listener =
            shard.listen_tcp("127.0.0.1:0", || -> Answers { panic!("a connection was accepted") })?;
        let addr = listener.local_addr();
        if shard.id() == shard_id(0) {
            *self.addr.lock().unwrap() = Some(addr);
            return Ok(());
        }
        while self.addr.lock().unwrap().is_none() {
            yield_now().await;
        }
        let mut clients = Vec::new();
        for _ in 0..QUEUED {
            let mut client = client(addr).await?;
            client.write_all(b"ping").await?;
            clients.push(client);
        }
        if self.by_stop {
            shard.stop()?;
        } else {
            // Not by the stop's deadline, nor by the barrier: start is still pending.
            shard.timeout(Duration::from_secs(5), listener.close()).await?;
        }
        for mut client in clients {
            // An error of `start` while the runtime stops would be none of the runtime's.
            let error = client.read_chunk().await.expect_err("nobody serves it");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            self.turned_away.fetch_add(1, SeqCst);
        }
        if !self.by_stop {
            shard.stop()?;
        }
        Ok(())
    }
}

/// They were accepted and served by an application that had not started.
#[test]
fn a_runtime_that_has_not_started_accepts_nobody_and_turns_away_who_waits() {
    for by_stop in [true, false] {
        let (turned_away, handle) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
        let app = || EndsBeforeAccepting {
            by_stop,
            addr: Mutex::default(),
            turned_away: Arc::clone(&turned_away),
            handle: Arc::clone(&handle),
        };
        let check = |driver: &str, outcome: std::result::Result<(), RunError>| {
            assert!(outcome.is_ok(), "{driver}: {outcome:?}");
            assert_eq!(turned_away.swap(0, SeqCst), QUEUED, "{driver}");
            let handle: Handle = handle.lock().unwrap().take().unwrap();
            let accepted = handle.report().iter().map(|shard| shard.accepted).sum::<u64>();
            assert_eq!(accepted, 0, "{driver}, stopped: {by_stop}");
        };
        check("mio", Runtime::new().shards(2).pin(false).start(app()).and_then(|running| running.join()));
        for seed in 0..10 {
            check(&format!("sim {seed}"), Simulation::new(seed).run(app()));
        }
    }
}

#[test]
fn no_client_that_has_connected_when_the_runtime_stops_is_reset_wherever_it_is() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let addr = listen_everywhere(shard, || Answers).await?;
        let mut attempts: Vec<Pin<Box<dyn Future<Output = _>>>> = Vec::new();
        for _ in 0..QUEUED {
            attempts.push(Box::pin(client(addr)));
        }
        let mut clients = Vec::new();
        // Side by side, and the stop comes the moment the last one stands: some are accepted by then, some not.
        poll_fn(|context| {
            attempts.retain_mut(|attempt| match attempt.as_mut().poll(context) {
                Poll::Ready(client) => {
                    clients.push(client.unwrap());
                    false
                }
                Poll::Pending => true,
            });
            if attempts.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        for client in &mut clients {
            client.write_all(b"ping").await?;
            client.flush().await?;
        }
        shard.stop()?;
        for (number, client) in clients.iter_mut().enumerate() {
            let mut answer = Vec::new();
            let mut chunk = [0; 16];
            loop {
                match client.read(&mut chunk).await.map_err(|error| format!("client {number}: {error}"))? {
                    0 => break,
                    count => answer.extend_from_slice(&chunk[..count]),
                }
            }
            // A connection whose request is still under way counts as idle, and may be told to end; what the kernel
            // has, it has: there every request has come.
            if !answer.is_empty() || !env.is_simulated() {
                assert_eq!(answer, b"ping", "client {number}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_drain_deadline_that_never_comes_waits_for_the_last_connection() {
    let mut config = Config::default();
    config.drain_timeout = Duration::MAX;
    on_every_driver_with(2, config, async |env| {
        let addr = listen_everywhere(env.shard(), || Stubborn { draining: None }).await?;
        let mut client = client(addr).await?;
        ask(&mut client).await?;
        env.shard().stop()?;
        for _ in 0..10 {
            env.shard().sleep(MS * 10).await;
            ask(&mut client).await?;
        }
        client.close();
        Ok(())
    });
}

// Child processes: a test that runs itself again with a role.

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
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
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
    let begun = Instant::now();
    child.signal(Signal::TERM);
    assert_eq!(child.wait_for("ended "), "Err(stopped by force with 1 connections still open)");
    assert!(begun.elapsed() < Duration::from_secs(5), "it did not wait for the drain deadline");
    assert_eq!(child.wait_for("forced "), "1 Some(15)");
    assert_eq!(child.wait_for("restored "), "true");
    assert!(client.read(&mut [0; 2]).is_err(), "reset");
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
