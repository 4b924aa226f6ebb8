//! What peers do to a connection: resets, half-closes, dribbles, floods and silence, on a real kernel, with blocking
//! clients on threads. Needs no process of its own; what does is in `faults_process.rs`.

mod faults;

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use faults::*;
use shardwise::{CloseReason, Config, ConnectError, ConnectOptions, Flow, Input, Protocol};
use shardwise::{Result, ShardId, Transport};

/// What the ends of connections were, by any shard.
type Ends = Arc<Mutex<Vec<CloseReason>>>;

/// Writes for as long as the peer takes it, once it has heard something.
struct Flood {
    ends: Ends,
    buffered_max: Arc<AtomicUsize>,
}

impl Flood {
    fn pour(&self, transport: &Transport) -> Result<()> {
        while transport.write(&[7; 10_000])? == Flow::Open {}
        self.buffered_max.fetch_max(transport.buffered(), SeqCst);
        Ok(())
    }
}

impl Protocol for Flood {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        input.take();
        self.pour(transport)
    }

    fn write_resumed(&mut self, transport: &Transport) -> Result<()> {
        self.pour(transport)
    }

    fn disconnected(&mut self, reason: CloseReason) {
        self.ends.lock().unwrap().push(reason);
    }
}

/// A server of one shard that floods, and an echo beside it for a canary.
struct FloodServer {
    server: Server,
    echo: SocketAddr,
    ends: Ends,
    /// Ends of async handlers.
    errors: Arc<Mutex<Vec<String>>>,
    buffered_max: Arc<AtomicUsize>,
}

fn flood_server(style: Style, config: Config) -> FloodServer {
    let (ends, errors, buffered_max) =
        (Ends::default(), Arc::<Mutex<Vec<String>>>::default(), Arc::default());
    let echo_addr = Arc::<Mutex<Option<SocketAddr>>>::default();
    let (told, ended, failed) = (Arc::clone(&echo_addr), Arc::clone(&ends), Arc::clone(&errors));
    let buffered: Arc<AtomicUsize> = Arc::clone(&buffered_max);
    let server = Server::start(1, config, move |shard| {
        *told.lock().unwrap() = Some(echo(shard, style)?.local_addr());
        let (ended, failed, buffered) = (Arc::clone(&ended), Arc::clone(&failed), Arc::clone(&buffered));
        Ok(match style {
            Style::Protocol => shard.listen_tcp("127.0.0.1:0", move || Flood {
                ends: Arc::clone(&ended),
                buffered_max: Arc::clone(&buffered),
            })?,
            Style::Async => shard.serve_tcp("127.0.0.1:0", async move |mut stream| {
                let mut byte = [0];
                let outcome = async {
                    stream.read_exact(&mut byte).await?;
                    loop {
                        stream.write_all(&[7; 10_000]).await?;
                        buffered.fetch_max(stream.transport().buffered(), SeqCst);
                    }
                };
                let outcome: std::io::Result<()> = outcome.await;
                failed.lock().unwrap().push(outcome.unwrap_err().to_string());
                Ok(())
            })?,
        })
    });
    let echo = echo_addr.lock().unwrap().unwrap();
    FloodServer { server, echo, ends, errors, buffered_max }
}

impl FloodServer {
    fn ended(&self) -> usize {
        self.ends.lock().unwrap().len() + self.errors.lock().unwrap().len()
    }
}

#[test]
fn a_reset_in_the_middle_of_our_writes_costs_that_connection_alone() {
    const CLIENTS: usize = 60;
    for style in STYLES {
        let flood = flood_server(style, Config::default());
        let mut canary = Canary::new(flood.echo);
        for number in 0..CLIENTS {
            let mut client = connect(flood.server.addr);
            client.write_all(b"!").unwrap();
            // Some die before the first byte, some when the server has long been blocked.
            let mut bytes = vec![0; number * 3000];
            client.read_exact(&mut bytes).unwrap();
            reset(client);
            canary.ping();
        }
        flood.server.wait_open(1);
        assert_eq!(flood.ended(), CLIENTS, "{style:?}: each is told of its end once");
        for reason in flood.ends.lock().unwrap().iter() {
            assert!(matches!(reason, CloseReason::Os { .. } | CloseReason::Protocol(_)), "{reason}");
        }
        canary.ping();
        assert_eq!(flood.server.sum(|report| report.panics), 0);
        drop(canary);
        flood.server.wait_open(0);
        flood.server.stop();
    }
}

#[test]
fn a_reset_while_we_read_is_told_once_with_its_reason() {
    const CLIENTS: usize = 100;
    struct Waits(Ends);
    impl Protocol for Waits {
        fn data_received(&mut self, _: &Transport, _: &mut Input<'_>) -> Result<()> {
            Ok(())
        }
        fn disconnected(&mut self, reason: CloseReason) {
            self.0.lock().unwrap().push(reason);
        }
    }
    let ends = Ends::default();
    let told = Arc::clone(&ends);
    let server = Server::start(2, Config::default(), move |shard| {
        let told = Arc::clone(&told);
        Ok(shard.listen_tcp("127.0.0.1:0", move || Waits(Arc::clone(&told)))?)
    });
    for number in 0..CLIENTS {
        let mut client = connect(server.addr);
        client.write_all(&vec![1; number * 100]).unwrap();
        reset(client);
    }
    // Also those that died in the listener's queue have been accepted.
    eventually("all accepted", || server.sum(|report| report.accepted) == CLIENTS as u64);
    server.wait_open(0);
    let ends = ends.lock().unwrap();
    assert_eq!(ends.len(), CLIENTS);
    for reason in ends.iter() {
        let CloseReason::Os { source, .. } = reason else { panic!("{reason}") };
        assert_eq!(source.kind(), ErrorKind::ConnectionReset);
    }
    drop(ends);
    server.stop();
}

#[test]
fn an_async_reader_gets_what_came_before_the_reset_or_its_error() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let server = Server::start(1, Config::default(), move |shard| {
        let tell = tell.lock().unwrap().clone();
        Ok(shard.serve_tcp("127.0.0.1:0", async move |mut stream| {
            let mut received_bytes = 0;
            let end = loop {
                match stream.read_chunk().await {
                    Ok(Some(chunk)) => received_bytes += chunk.len(),
                    Ok(None) => break None,
                    Err(error) => break Some(error.kind()),
                }
            };
            tell.send((received_bytes, end))?;
            Ok(())
        })?)
    });
    for _ in 0..50 {
        let mut client = connect(server.addr);
        client.write_all(&[1; 1000]).unwrap();
        let received = || server.sum(|report| report.received_bytes);
        let before = received();
        eventually("the bytes have been read", || received() >= before || received() % 1000 == 0);
        reset(client);
        let (received_bytes, end) = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(end, Some(ErrorKind::ConnectionReset));
        assert!(received_bytes == 0 || received_bytes == 1000, "{received_bytes}");
    }
    server.wait_open(0);
    server.stop();
}

#[test]
fn one_byte_writes_come_back_whole_and_in_order() {
    for style in STYLES {
        let server = Server::start(1, Config::default(), move |shard| echo(shard, style));
        let mut client = connect(server.addr);
        let mut reader = client.try_clone().unwrap();
        let sent = pattern(5000, 3);
        let expected = sent.clone();
        let reading = thread::spawn(move || {
            let mut answer = vec![0; expected.len()];
            reader.read_exact(&mut answer).unwrap();
            assert!(answer == expected, "{style:?}: the echo differs");
        });
        for byte in &sent {
            client.write_all(std::slice::from_ref(byte)).unwrap();
        }
        reading.join().unwrap();
        drop(client);
        server.wait_open(0);
        server.stop();
    }
}

#[test]
fn a_client_that_finishes_first_gets_the_whole_answer() {
    for style in STYLES {
        let server = Server::start(1, Config::default(), move |shard| echo(shard, style));
        for len in [1, 70_000, 600_000] {
            let mut client = connect(server.addr);
            let mut writer = client.try_clone().unwrap();
            let sent = pattern(len, len);
            let expected = sent.clone();
            let writing = thread::spawn(move || {
                writer.write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            writing.join().unwrap();
            assert!(answer == expected, "{style:?}: {} of {len} bytes came back", answer.len());
        }
        server.wait_open(0);
        server.stop();
    }
}

#[test]
fn a_server_that_finishes_first_still_gets_all_the_client_sends() {
    const LEN: usize = 1 << 20;
    struct Counts {
        received_bytes: usize,
        tell: mpsc::Sender<(usize, &'static str)>,
    }
    impl Protocol for Counts {
        fn connected(&mut self, transport: &Transport) -> Result<()> {
            transport.write(b"hello")?;
            transport.shutdown_write();
            Ok(())
        }
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            assert!(transport.write(b"late").is_err(), "its write half is shut");
            self.received_bytes += input.take().len();
            Ok(())
        }
        fn disconnected(&mut self, reason: CloseReason) {
            let end = if matches!(reason, CloseReason::PeerFinished) { "finished" } else { "otherwise" };
            self.tell.send((self.received_bytes, end)).unwrap();
        }
    }
    for style in STYLES {
        let (tell, told) = mpsc::channel();
        let tell = Mutex::new(tell);
        let server = Server::start(1, Config::default(), move |shard| {
            let tell = tell.lock().unwrap().clone();
            Ok(match style {
                Style::Protocol => shard
                    .listen_tcp("127.0.0.1:0", move || Counts { received_bytes: 0, tell: tell.clone() })?,
                Style::Async => shard.serve_tcp("127.0.0.1:0", async move |mut stream| {
                    stream.write_all(b"hello").await?;
                    stream.shutdown_write();
                    let mut received_bytes = 0;
                    while let Some(chunk) = stream.read_chunk().await? {
                        assert!(stream.write_all(b"late").await.is_err(), "its write half is shut");
                        received_bytes += chunk.len();
                    }
                    tell.send((received_bytes, "finished"))?;
                    Ok(())
                })?,
            })
        });
        for _ in 0..5 {
            let mut client = connect(server.addr);
            let mut greeting = Vec::new();
            client.read_to_end(&mut greeting).unwrap();
            assert_eq!(greeting, b"hello");
            client.write_all(&pattern(LEN, 0)).unwrap();
            drop(client);
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), (LEN, "finished"), "{style:?}");
        }
        server.wait_open(0);
        assert_eq!(server.sum(|report| report.panics), 0);
        server.stop();
    }
}

#[test]
fn data_before_a_close_is_delivered_before_it() {
    const LEN: usize = 100 * 1024;
    let runs = rounds("SHARDWISE_FAULT_ROUNDS", 100);
    struct Sums {
        bytes: Vec<u8>,
        tell: mpsc::Sender<Vec<u8>>,
    }
    impl Protocol for Sums {
        fn data_received(&mut self, _: &Transport, input: &mut Input<'_>) -> Result<()> {
            self.bytes.extend_from_slice(input.take());
            Ok(())
        }
        fn disconnected(&mut self, _: CloseReason) {
            self.tell.send(std::mem::take(&mut self.bytes)).unwrap();
        }
    }
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let server = Server::start(2, Config::default(), move |shard| {
        let tell = tell.lock().unwrap().clone();
        Ok(shard.listen_tcp("127.0.0.1:0", move || Sums { bytes: Vec::new(), tell: tell.clone() })?)
    });
    for run in 0..runs {
        let sent = pattern(LEN, run);
        connect(server.addr).write_all(&sent).unwrap();
        assert!(told.recv_timeout(PATIENCE).unwrap() == sent, "run {run}");
    }
    server.wait_open(0);
    server.stop();
}

/// The peer's window is closed for good: its socket takes what fits in the kernel, and nobody reads.
#[test]
fn a_peer_that_takes_nothing_is_closed_in_time_and_holds_bounded_memory() {
    for style in STYLES {
        let mut config = Config::default();
        config.write_timeout = Duration::from_millis(400);
        let high_bytes = config.watermarks.high_bytes;
        let flood = flood_server(style, config);
        let mut canary = Canary::new(flood.echo);
        let mut clients = Vec::new();
        for _ in 0..8 {
            let mut client = connect(flood.server.addr);
            client.write_all(b"!").unwrap();
            clients.push(client);
        }
        eventually("all are closed", || {
            canary.ping();
            flood.ended() == clients.len()
        });
        flood.server.wait_open(1);
        let buffered = flood.buffered_max.load(SeqCst);
        assert!(buffered > 0 && buffered <= high_bytes + 10_000, "{style:?}: {buffered} bytes were buffered");
        for reason in flood.ends.lock().unwrap().iter() {
            assert!(matches!(reason, CloseReason::WriteStalled { .. }), "{reason}");
        }
        for error in flood.errors.lock().unwrap().iter() {
            assert!(error.contains("took no output"), "{error}");
        }
        for mut client in clients {
            // What the kernel had is still there; then the reset, and no orderly end that would look like all of it.
            let error = client.read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        drop(canary);
        flood.server.wait_open(0);
        flood.server.stop();
    }
}

#[test]
fn a_slow_reader_is_left_alone_while_it_makes_progress() {
    let mut config = Config::default();
    config.write_timeout = Duration::from_secs(10);
    let flood = flood_server(Style::Protocol, config);
    let mut client = connect(flood.server.addr);
    client.write_all(b"!").unwrap();
    let mut bytes = vec![0; 64 * 1024];
    for _ in 0..300 {
        client.read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
    assert_eq!(flood.ended(), 0);
    assert!(flood.buffered_max.load(SeqCst) <= 64 * 1024 + 10_000);
    reset(client);
    flood.server.wait_open(0);
    flood.server.stop();
}

/// A handler that answers before it has read the request must not destroy its own answer by closing.
#[test]
fn an_early_answer_arrives_although_the_request_is_still_coming() {
    struct Hasty;
    impl Protocol for Hasty {
        fn data_received(&mut self, transport: &Transport, _: &mut Input<'_>) -> Result<()> {
            transport.write(&[9; 20_000])?;
            transport.close();
            Ok(())
        }
    }
    for style in STYLES {
        let server = Server::start(1, Config::default(), move |shard| {
            Ok(match style {
                Style::Protocol => shard.listen_tcp("127.0.0.1:0", || Hasty)?,
                Style::Async => shard.serve_tcp("127.0.0.1:0", async |mut stream| {
                    stream.read_exact(&mut [0]).await?;
                    stream.write_all(&[9; 20_000]).await?;
                    Ok(())
                })?,
            })
        });
        for round in 0..60 {
            let mut client = connect(server.addr);
            let mut writer = client.try_clone().unwrap();
            let writing = thread::spawn(move || {
                // 60 KiB, in two halves: below what is read and thrown away.
                let _ = writer.write_all(&[1; 30_000]).and_then(|()| writer.write_all(&[1; 30_000]));
            });
            let mut answer = vec![0; 20_000];
            client
                .read_exact(&mut answer)
                .unwrap_or_else(|error| panic!("{style:?}, round {round}: {error}"));
            assert!(answer.iter().all(|byte| *byte == 9));
            writing.join().unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "then FIN, and no reset");
        }
        server.wait_open(0);
        server.stop();
    }
}

/// Holds shard `id` until what is returned is dropped: everything that happens meanwhile lies in one batch.
fn hold_shard(server: &Server, id: ShardId) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (tell, held) = mpsc::channel();
    let taken = server.handle().call_from_thread(id, move |_| {
        tell.send(()).unwrap();
        let _ = released.recv();
    });
    assert!(taken.is_ok());
    held.recv_timeout(PATIENCE).unwrap();
    release
}

fn shard_ids(server: &Server) -> Vec<ShardId> {
    server.handle().shard_ids().collect()
}

/// Counted, not timed: while the shard is held, the flood fills its kernel buffers, and the canary sends its byte.
#[test]
fn a_flood_does_not_keep_the_shard_from_its_other_connections() {
    const READS_PER_TURN: usize = 4;
    const FLOODS: usize = 3;
    struct Logs {
        log: Arc<Mutex<Vec<bool>>>,
    }
    impl Protocol for Logs {
        fn data_received(&mut self, _: &Transport, input: &mut Input<'_>) -> Result<()> {
            let is_canary = input.take().len() == 1;
            self.log.lock().unwrap().push(is_canary);
            Ok(())
        }
    }
    let log = Arc::<Mutex<Vec<bool>>>::default();
    let logged = Arc::clone(&log);
    let mut config = Config::default();
    config.read_buffer_bytes = 4096;
    let server = Server::start(1, config, move |shard| {
        let log = Arc::clone(&logged);
        Ok(shard.listen_tcp("127.0.0.1:0", move || Logs { log: Arc::clone(&log) })?)
    });
    let mut floods: Vec<_> = (0..FLOODS).map(|_| connect(server.addr)).collect();
    let mut canary = connect(server.addr);
    eventually("all accepted", || server.open() == FLOODS as u64 + 1);
    let release = hold_shard(&server, shard_ids(&server)[0]);
    for flood in &mut floods {
        flood.write_all(&[1; 400_000]).unwrap();
    }
    canary.write_all(b"!").unwrap();
    drop(release);
    eventually("all is read", || server.sum(|report| report.received_bytes) == FLOODS as u64 * 400_000 + 1);
    let log = log.lock().unwrap();
    let place = log.iter().position(|is_canary| *is_canary).unwrap();
    assert!(log.len() >= FLOODS * 90, "the floods took {} reads", log.len());
    assert!(place <= FLOODS * READS_PER_TURN, "the canary came after {place} reads of the floods");
    drop((floods, canary, log));
    server.wait_open(0);
    server.stop();
}

#[test]
fn a_flood_leaves_a_canary_on_the_same_shard_alive() {
    // The async echo waits while its peer is slow to read; the other one would be refused its writes.
    let server = Server::start(1, Config::default(), |shard| echo(shard, Style::Async));
    let mut canary = Canary::new(server.addr);
    let addr = server.addr;
    let stop = Arc::new(AtomicUsize::new(0));
    let floods: Vec<_> = (0..2)
        .map(|_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut writer = connect(addr);
                let mut reader = writer.try_clone().unwrap();
                let draining = thread::spawn(move || {
                    let mut buffer = vec![0; 256 * 1024];
                    while reader.read(&mut buffer).unwrap_or(0) > 0 {}
                });
                while stop.load(SeqCst) == 0 {
                    writer.write_all(&[1; 64 * 1024]).unwrap();
                }
                writer.shutdown(Shutdown::Both).unwrap();
                draining.join().unwrap();
            })
        })
        .collect();
    eventually("the floods flow", || server.sum(|report| report.received_bytes) > 4 << 20);
    let before = server.sum(|report| report.received_bytes);
    let mut times: Vec<_> = (0..100)
        .map(|_| {
            let begun = std::time::Instant::now();
            canary.ping();
            begun.elapsed()
        })
        .collect();
    let flowed = server.sum(|report| report.received_bytes) - before;
    stop.store(1, SeqCst);
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    times.sort();
    // Both cores are the floods', the canary's and other tests': the median is what the shard is answerable for.
    assert!(times[50] < Duration::from_millis(100), "a ping took {:?}", times[50]);
    assert!(flowed > 0, "the floods stood still");
    drop(canary);
    server.wait_open(0);
    server.stop();
}

#[test]
fn urgent_data_neither_spins_nor_disturbs_the_stream() {
    let server = Server::start(1, Config::default(), |shard| echo(shard, Style::Protocol));
    let mut client = connect(server.addr);
    let turns = || server.sum(|report| report.turns);
    let before = turns();
    let mut answer = [0; 2];
    for round in 0..1000_u16 {
        socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
        let sent = round.to_be_bytes();
        client.write_all(&sent).unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, sent, "the urgent byte is no part of the stream");
    }
    // The urgent byte and the two that follow: a handful of turns each.
    let used = turns() - before;
    assert!(used < 12_000, "{used} turns for 1,000 rounds");
    socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
    let before = turns();
    let_pass(Duration::from_millis(200));
    let idle = turns() - before;
    assert!(idle < 20, "{idle} turns with an urgent byte that nobody reads");
    drop(client);
    server.wait_open(0);
    server.stop();
}

/// A source that is closed in a callback may leave events behind in the same batch, and its slot and descriptor
/// number may be taken at once by another.
#[test]
fn an_event_for_a_connection_closed_in_the_same_batch_reaches_nobody_else() {
    const CLIENTS: usize = 12;
    thread_local! {
        static OPEN: RefCell<Vec<Transport>> = const { RefCell::new(Vec::new()) };
    }
    /// The first that hears "kill" aborts all others; everything else comes back.
    struct Jealous;
    impl Protocol for Jealous {
        fn connected(&mut self, transport: &Transport) -> Result<()> {
            OPEN.with_borrow_mut(|open| open.push(transport.clone()));
            Ok(())
        }
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            if input.bytes() == b"kill" {
                for other in OPEN.take() {
                    other.abort();
                }
            } else {
                transport.write(input.bytes())?;
            }
            input.take();
            Ok(())
        }
    }
    let server =
        Server::start(1, Config::default(), |shard| Ok(shard.listen_tcp("127.0.0.1:0", || Jealous)?));
    for round in 0..20 {
        let mut old: Vec<_> = (0..CLIENTS).map(|_| connect(server.addr)).collect();
        eventually("all are open", || server.open() == CLIENTS as u64);
        let release = hold_shard(&server, shard_ids(&server)[0]);
        for client in &mut old {
            client.write_all(b"kill").unwrap();
        }
        // These wait in the queue, and are accepted in the batch in which the others die.
        let mut new: Vec<_> = (0..CLIENTS).map(|_| connect(server.addr)).collect();
        for (number, client) in new.iter_mut().enumerate() {
            client.write_all(format!("{round:03} {number:03}").as_bytes()).unwrap();
        }
        drop(release);
        for mut client in old {
            let error = client.read(&mut [0; 16]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "aborted, and told nothing");
        }
        let mut served = 0;
        for (number, mut client) in new.into_iter().enumerate() {
            // One that was accepted before the first "kill" was heard is aborted with the rest.
            let mut answer = [0; 7];
            match client.read_exact(&mut answer) {
                Ok(()) => {
                    assert_eq!(answer, *format!("{round:03} {number:03}").as_bytes());
                    served += 1;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            }
        }
        server.wait_open(0);
        OPEN.with_borrow(|open| assert!(open.is_empty(), "nothing here: the shard has its own"));
        let cleared = server.handle().blocking_call_from_thread(shard_ids(&server)[0], |_| OPEN.take().len());
        assert!(cleared.unwrap() >= served, "round {round}");
    }
    assert_eq!(server.sum(|report| report.panics), 0);
    server.stop();
}

#[test]
fn a_shard_that_is_held_keeps_only_its_own_connections_waiting() {
    let server = Server::start(2, Config::default(), |shard| echo(shard, Style::Protocol));
    let ids = shard_ids(&server);
    // The kernel spreads them by a hash of their ports: 32 all on one shard once in two billion runs.
    let mut clients: Vec<_> = (0..32).map(|_| connect(server.addr)).collect();
    eventually("all are open", || server.open() == 32);
    let on_first = server.handle().report()[0].open_connections as usize;
    assert!(on_first > 0 && on_first < 32);
    let release = hold_shard(&server, ids[0]);
    for client in &mut clients {
        client.write_all(b"?").unwrap();
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    }
    let mut answered = [false; 32];
    eventually("the other shard's connections are answered", || {
        for (client, answered) in clients.iter_mut().zip(&mut answered) {
            *answered = *answered || client.read(&mut [0]).is_ok();
        }
        answered.iter().filter(|answered| **answered).count() >= 32 - on_first
    });
    assert_eq!(answered.iter().filter(|answered| !**answered).count(), on_first);
    drop(release);
    for (client, answered) in clients.iter_mut().zip(answered) {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        if !answered {
            assert_eq!(client.read(&mut [0]).unwrap(), 1);
        }
    }
    drop(clients);
    server.wait_open(0);
    server.stop();
}

/// Faults row 7: what waits in the queue of a listener that closes was promised a connection by the kernel.
#[test]
fn a_stop_serves_what_waits_in_the_queue() {
    for style in STYLES {
        let server = Server::start(2, Config::default(), move |shard| echo(shard, style));
        let holds: Vec<_> = shard_ids(&server).into_iter().map(|id| hold_shard(&server, id)).collect();
        let mut clients: Vec<_> = (0..60).map(|_| connect(server.addr)).collect();
        for client in &mut clients {
            client.write_all(b"asked").unwrap();
        }
        server.running.stop().unwrap();
        drop(holds);
        for (number, client) in clients.iter_mut().enumerate() {
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap_or_else(|error| panic!("{style:?}, {number}: {error}"));
            assert_eq!(answer, b"asked", "{style:?}: client {number}");
        }
        drop(clients);
        server.running.join().unwrap();
    }
}

#[test]
fn soft_errors_of_connect_are_told_and_leave_nothing_open() {
    let server = Server::start(1, Config::default(), |shard| echo(shard, Style::Protocol));
    let unused = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = unused();
    let id = shard_ids(&server)[0];
    let attempt = |target: SocketAddr, from: Option<SocketAddr>| {
        let call = server.handle().blocking_call_async_from_thread(id, async move |shard| {
            let options = ConnectOptions::new().timeout(Duration::from_secs(10));
            let options = match from {
                Some(from) => options.bind(from),
                None => options,
            };
            shard.connect_tcp_with(target, &options, || Echo).await.map(|_| ())
        });
        call.unwrap().unwrap_err()
    };
    for _ in 0..20 {
        let refused = attempt(nobody, None);
        assert!(matches!(&refused, ConnectError::Refused { addr, .. } if *addr == nobody), "{refused}");
        let not_ours: SocketAddr = "192.0.2.1:0".parse().unwrap();
        for port in [0, 4711] {
            let mut from = not_ours;
            from.set_port(port);
            let unavailable = attempt(server.addr, Some(from));
            assert!(
                matches!(&unavailable, ConnectError::Bind { addr, .. } if *addr == from),
                "{unavailable}"
            );
        }
    }
    // From an address to itself: TCP's simultaneous open succeeds, with nobody at the other end.
    let own = unused();
    let itself = attempt(own, Some(own));
    assert!(matches!(&itself, ConnectError::Refused { addr, .. } if *addr == own), "{itself}");
    assert_eq!(server.sum(|report| report.connected), 0);
    server.wait_open(0);
    server.stop();
}

/// Half of them reset, half finish, from many threads, while canaries go on.
#[test]
fn a_storm_of_short_connections_leaves_no_slot_taken() {
    let per_thread = rounds("SHARDWISE_FAULT_ROUNDS", 150);
    for style in STYLES {
        let server = Server::start(2, Config::default(), move |shard| echo(shard, style));
        let mut canaries: Vec<_> = (0..4).map(|_| Canary::new(server.addr)).collect();
        let addr = server.addr;
        let clients: Vec<_> = (1..=4)
            .map(|number: u8| {
                thread::spawn(move || {
                    for round in 0..per_thread {
                        let mut client = connect_from([127, 0, 1, number], addr).unwrap();
                        let mut answer = [0; 3];
                        match round % 4 {
                            0 => reset(client),
                            1 => drop(client),
                            2 => {
                                client.write_all(b"abc").unwrap();
                                reset(client);
                            }
                            _ => {
                                client.write_all(b"abc").unwrap();
                                client.read_exact(&mut answer).unwrap();
                                assert_eq!(&answer, b"abc");
                            }
                        }
                    }
                })
            })
            .collect();
        while !clients.iter().all(|client| client.is_finished()) {
            canaries.iter_mut().for_each(Canary::ping);
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
        let expected = 4 * per_thread as u64 + 4;
        eventually("all accepted", || server.sum(|report| report.accepted) == expected);
        server.wait_open(4);
        canaries.iter_mut().for_each(Canary::ping);
        assert_eq!(server.sum(|report| report.panics), 0);
        drop(canaries);
        server.wait_open(0);
        server.stop();
    }
}
