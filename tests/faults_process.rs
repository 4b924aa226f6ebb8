//! What needs a process of its own: descriptors and memory that are counted, limits that are lowered, system calls
//! that fail by `strace`, panics by the thousand. Each of these tests runs itself again in a child.

mod faults;

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use faults::traced::Traced;
use faults::*;
use shardwise::{CallError, Config, Input, Protocol, Result, Transport};

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Panics that are wanted need not be printed: those of shards. The test's own still are.
fn quiet_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !thread::current().name().is_some_and(|name| name.starts_with("shard-")) {
            print(panic);
        }
    }));
}

/// SHARDWISE_FAULT_CONNECTIONS sets how many; 10,000 unless said.
#[test]
fn ten_thousand_connections_leave_no_descriptor_slot_or_memory_behind() {
    in_a_child("ten_thousand_connections_leave_no_descriptor_slot_or_memory_behind", || {
        let connections = rounds("SHARDWISE_FAULT_CONNECTIONS", 10_000);
        for style in STYLES {
            let server = Server::start(2, Config::default(), move |shard| echo(shard, style));
            let addr = server.addr;
            let churn = |count: usize, net: u8| {
                let clients: Vec<_> = (1..=4)
                    .map(|host| {
                        thread::spawn(move || {
                            for round in 0..count / 4 {
                                let mut client = connect_from([127, 0, net, host], addr).unwrap();
                                client.write_all(b"abc").unwrap();
                                let mut answer = [0; 3];
                                client.read_exact(&mut answer).unwrap();
                                assert_eq!(&answer, b"abc");
                                if round % 2 == 0 {
                                    reset(client);
                                }
                            }
                        })
                    })
                    .collect();
                clients.into_iter().for_each(|client| client.join().unwrap());
                server.wait_open(0);
            };
            // What is allocated once and kept, such as pages of slots, is there after the first thousand.
            churn(1000, 2);
            let (descriptors, resident) = (open_descriptors(), resident_bytes());
            churn(connections / 2, 3);
            let accepted = server.sum(|report| report.accepted);
            assert_eq!(accepted, 1000 + connections as u64 / 2);
            assert_eq!(open_descriptors(), descriptors, "{style:?}");
            let grown = resident_bytes().saturating_sub(resident);
            assert!(grown < 4 << 20, "{style:?}: {grown} bytes more are resident");
            assert_eq!(server.sum(|report| report.panics), 0);
            server.stop();
        }
    });
}

#[test]
fn without_descriptors_peers_wait_the_shard_rests_and_all_are_served_in_the_end() {
    in_a_child("without_descriptors_peers_wait_the_shard_rests_and_all_are_served_in_the_end", || {
        const PEERS: usize = 24;
        let server = Server::start(1, Config::default(), |shard| echo(shard, Style::Async));
        // The peers' own ends are made before the limit falls; room is left for four.
        let mut clients = Vec::new();
        let sockets: Vec<_> = (0..PEERS)
            .map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap())
            .collect();
        // Reading the directory takes one itself.
        let room = open_descriptors() as u64 - 1 + 4;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let lowered = rustix::process::Rlimit { current: Some(room), maximum: limit.maximum };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, lowered).unwrap();
        for socket in sockets {
            socket.connect(&server.addr.into()).unwrap();
            let mut client = TcpStream::from(socket);
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.write_all(b"wait").unwrap();
            clients.push(client);
        }
        eventually("the shortage is noticed", || server.sum(|report| report.accept_failures) > 0);
        let served = server.open();
        assert!(served < PEERS as u64, "{served} were accepted");

        let (turns, begun) = (server.sum(|report| report.turns), Instant::now());
        let_pass(Duration::from_secs(1));
        let turns = server.sum(|report| report.turns) - turns;
        let seconds = begun.elapsed().as_secs_f64();
        // Each look at the queue is a turn; there is nothing else to do.
        assert!((turns as f64) < 60.0 * seconds, "{turns} turns in {seconds:.2} s without descriptors");
        let reports = server.sum(|report| report.accept_failures);
        assert!(reports as f64 <= 2.0 + seconds, "{reports} reports in {seconds:.2} s");
        assert_eq!(server.open(), served, "the others wait, and nobody was hung up on");

        // Each one that is served and goes makes room for the next.
        let mut answer = [0; 4];
        while let Some(position) = clients.iter().position(|client| {
            client.set_nonblocking(true).unwrap();
            let answered = client.peek(&mut [0; 4]).is_ok_and(|count| count == 4);
            client.set_nonblocking(false).unwrap();
            answered
        }) {
            let mut client = clients.swap_remove(position);
            client.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"wait");
            drop(client);
            if clients.is_empty() {
                break;
            }
            eventually("the next one is answered", || {
                clients.iter().any(|client| {
                    client.set_nonblocking(true).unwrap();
                    let answered = client.peek(&mut [0; 4]).is_ok();
                    client.set_nonblocking(false).unwrap();
                    answered
                })
            });
        }
        assert!(clients.is_empty(), "{} were never served", clients.len());
        assert_eq!(server.sum(|report| report.accepted), PEERS as u64);
        server.wait_open(0);
        server.stop();
    });
}

/// The child's side: an echo of both styles on one shard, until standard input ends; then everything must be back.
fn serve_until_told() {
    for style in STYLES {
        let server = Server::start(1, Config::default(), move |shard| echo(shard, style));
        println!("\nlistening {}", server.addr);
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        server.wait_open(0);
        assert_eq!(server.sum(|report| report.panics), 0);
        server.stop();
    }
}

/// Round trips of so many connections at a time, small and large.
fn exercise(addr: SocketAddr, clients: usize) {
    let sent = pattern(50_000, 1);
    let mut clients: Vec<_> = (0..clients).map(|_| connect(addr)).collect();
    for len in [1, 100, 50_000] {
        for client in &mut clients {
            client.write_all(&sent[..len]).unwrap();
        }
        for client in &mut clients {
            let mut answer = vec![0; len];
            client.read_exact(&mut answer).unwrap();
            assert!(answer == sent[..len], "the echo differs");
        }
    }
}

fn survives(test: &str, clients: usize, faults: &[(&str, &str)]) {
    if is_child() {
        return serve_until_told();
    }
    if !may_trace() {
        return;
    }
    for (call, inject) in faults {
        let mut traced = Traced::start(test, call, inject);
        exercise(traced.addr, clients);
        traced.next_style();
        exercise(traced.addr, clients);
        let (calls, injected) = traced.end();
        assert!(injected > 0, "{call} was called {calls} times, and never failed with {inject}");
    }
}

#[test]
fn accepting_goes_on_after_every_passing_error() {
    survives(
        "accepting_goes_on_after_every_passing_error",
        8,
        &[
            ("accept4", "error=ECONNABORTED:when=1+3"),
            ("accept4", "error=EPROTO:when=1+3"),
            ("accept4", "error=EINTR:when=1+2"),
            ("accept4", "error=EPERM:when=1+3"),
            ("accept4", "error=ENOBUFS:when=1+3"),
            ("accept4", "error=ENFILE:when=1+3"),
        ],
    );
}

#[test]
fn receiving_and_sending_go_on_after_what_says_nothing() {
    survives(
        "receiving_and_sending_go_on_after_what_says_nothing",
        8,
        &[
            ("recvfrom", "error=EINTR:when=1+2"),
            ("sendto", "error=EAGAIN:when=1+2"),
            ("sendto", "error=EINTR:when=1+2"),
        ],
    );
}

/// One connection, so that no two of its reads in a row are told that there is nothing: the second one is believed.
#[test]
fn a_read_that_finds_nothing_although_there_is_something_is_made_again() {
    survives(
        "a_read_that_finds_nothing_although_there_is_something_is_made_again",
        1,
        &[("recvfrom", "error=EAGAIN:when=1+2")],
    );
}

#[test]
fn waiting_goes_on_after_a_signal() {
    survives("waiting_goes_on_after_a_signal", 8, &[("epoll_wait", "error=EINTR:when=2+2")]);
}

/// A firewall or a security module that says no to every accept leaves the connection in the queue: trying again at
/// once would spin.
#[test]
fn an_accept_that_is_forbidden_is_tried_again_but_not_at_once() {
    const TEST: &str = "an_accept_that_is_forbidden_is_tried_again_but_not_at_once";
    const FAILURES: u32 = 10;
    if is_child() {
        return serve_until_told();
    }
    if !may_trace() {
        return;
    }
    for errno in ["EPERM", "ENFILE"] {
        let mut traced = Traced::start(TEST, "accept4", &format!("error={errno}:when=1..{FAILURES}"));
        let begun = Instant::now();
        let mut client = connect(traced.addr);
        client.write_all(b"?").unwrap();
        client.read_exact(&mut [0]).unwrap();
        let waited = begun.elapsed();
        assert!(waited > FAILURES * Duration::from_millis(20), "{errno}: {FAILURES} tries in {waited:?}");
        drop(client);
        traced.next_style();
        let (_, injected) = traced.end();
        // Counted per thread: the second server's may meet some at its end.
        assert!(injected >= FAILURES as usize);
    }
}

/// SHARDWISE_FAULT_PANICS sets how many of each kind; 2,000 connections, 4,000 tasks and 4,000 calls unless said.
#[test]
fn ten_thousand_panics_cost_only_themselves() {
    struct Boom;
    impl Protocol for Boom {
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            if input.bytes() == b"!" {
                transport.write(b"half an answer")?;
                panic!("boom");
            }
            transport.write(input.take())?;
            Ok(())
        }
    }
    in_a_child("ten_thousand_panics_cost_only_themselves", || {
        quiet_panics();
        let connections = rounds("SHARDWISE_FAULT_PANICS", 2000);
        let others = rounds("SHARDWISE_FAULT_PANICS", 4000) / 2;
        let server =
            Server::start(2, Config::default(), |shard| Ok(shard.listen_tcp("127.0.0.1:0", || Boom)?));
        let panics = || server.sum(|report| report.panics);
        let mut canaries: Vec<_> = (0..4).map(|_| Canary::new(server.addr)).collect();
        let mut descriptors = 0;
        for number in 0..connections {
            let mut client = connect_from([127, 0, 4, (number % 8) as u8 + 1], server.addr).unwrap();
            client.write_all(b"!").unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            assert_eq!(answer, b"", "nothing goes out that was half written");
            drop(client);
            if number == 100 {
                server.wait_open(4);
                descriptors = open_descriptors();
            }
            if number % 50 == 0 {
                canaries.iter_mut().for_each(Canary::ping);
            }
        }
        server.wait_open(4);
        assert_eq!(open_descriptors(), descriptors);
        assert_eq!(panics(), connections as u64);

        let ids: Vec<_> = server.handle().shard_ids().collect();
        for id in &ids {
            let spawned = server.handle().blocking_call_async_from_thread(*id, async move |shard| {
                let mut failed = 0;
                for _ in 0..others {
                    failed += usize::from(shard.spawn(async { panic!("boom") }).await.is_err());
                }
                failed
            });
            assert_eq!(spawned.unwrap(), others);
        }
        assert_eq!(panics(), (connections + 2 * others) as u64);
        for number in 0..others {
            let id = ids[number % 2];
            assert!(server.handle().call_from_thread(id, |_| panic!("boom")).is_ok());
            let called = server.handle().blocking_call_from_thread(id, |_| panic!("boom"));
            assert!(matches!(called, Err(CallError::Panicked(_))));
        }
        assert_eq!(panics(), (connections + 4 * others) as u64);
        canaries.iter_mut().for_each(Canary::ping);
        assert_eq!(open_descriptors(), descriptors);
        drop(canaries);
        server.wait_open(0);
        server.stop();
    });
}

/// A panic whose payload panics when it is dropped, destructors that panic, panicking factories and last callbacks.
#[test]
fn panics_in_every_corner_are_contained() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !thread::panicking() {
                panic!("a destructor");
            }
        }
    }
    struct Corner(u8);
    impl Protocol for Corner {
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            let bytes = input.take();
            self.0 = bytes[0];
            match self.0 {
                b'p' => std::panic::panic_any(Bomb),
                b'w' => {
                    transport.shutdown_write();
                    Ok(())
                }
                b'd' => {
                    transport.set_deadline(Some(Duration::from_millis(1)));
                    Ok(())
                }
                _ => {
                    transport.write(bytes)?;
                    Ok(())
                }
            }
        }
        fn write_finished(&mut self, _: &Transport) -> Result<()> {
            panic!("write_finished")
        }
        fn deadline_reached(&mut self, _: &Transport) -> Result<()> {
            panic!("deadline_reached")
        }
        fn disconnected(&mut self, _: shardwise::CloseReason) {
            if self.0 == b'e' {
                panic!("disconnected")
            }
        }
    }
    impl Drop for Corner {
        fn drop(&mut self) {
            if self.0 == b'x' {
                panic!("a destructor");
            }
        }
    }
    in_a_child("panics_in_every_corner_are_contained", || {
        quiet_panics();
        let server = Server::start(1, Config::default(), |shard| {
            let refusing = Cell::new(0);
            Ok(shard.listen_tcp("127.0.0.1:0", move || {
                refusing.set(refusing.get() + 1);
                assert_ne!(refusing.get(), 2, "a factory");
                Corner(0)
            })?)
        });
        let mut canary = Canary::new(server.addr);
        let refused = connect(server.addr).read(&mut [0]).unwrap_or(0);
        assert_eq!(refused, 0, "its factory panicked");
        let mut expected = 1;
        for (corner, panics) in [(b'p', 2), (b'w', 1), (b'd', 1), (b'e', 1), (b'x', 1)] {
            let mut client = connect(server.addr);
            client.write_all(&[corner]).unwrap();
            if matches!(corner, b'e' | b'x') {
                client.read_exact(&mut [0]).unwrap();
            } else {
                assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
            }
            drop(client);
            expected += panics;
            let name = corner as char;
            eventually(&format!("{expected} panics after {name}"), || {
                server.sum(|report| report.panics) == expected
            });
            canary.ping();
        }
        drop(canary);
        server.wait_open(0);
        server.stop();
    });
}

#[test]
fn every_closure_sent_while_the_shards_stop_runs_once_or_comes_back() {
    const THREADS: usize = 8;
    let storms = rounds("SHARDWISE_FAULT_ROUNDS", 20);
    for storm in 0..storms {
        let server = Server::start(2, Config::default(), |shard| echo(shard, Style::Protocol));
        let runs: Arc<Vec<Vec<AtomicUsize>>> =
            Arc::new((0..THREADS).map(|_| (0..20_000).map(|_| AtomicUsize::new(0)).collect()).collect());
        let senders: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (handle, runs) = (server.handle(), Arc::clone(&runs));
                thread::spawn(move || {
                    let ids: Vec<_> = handle.shard_ids().collect();
                    let mut sent = 0;
                    for number in 0..20_000 {
                        let mine = Arc::clone(&runs);
                        let taken = handle.call_from_thread(ids[number % 2], move |_| {
                            mine[thread][number].fetch_add(1, SeqCst);
                        });
                        sent = number + 1;
                        if let Err(stopped) = taken {
                            // What came back has not run, and may be run by whoever has it.
                            assert_eq!(runs[thread][number].load(SeqCst), 0);
                            drop(stopped.into_inner());
                            runs[thread][number].store(usize::MAX, SeqCst);
                            if number % 2 == 1 {
                                break;
                            }
                        }
                    }
                    sent
                })
            })
            .collect();
        // Some storms are met by a stop early on, some in full flow.
        let ran = || server.sum(|report| report.messages);
        eventually("the storm blows", || ran() > 200 * storm as u64);
        let handle = server.handle();
        handle.stop().unwrap();
        server.running.join().unwrap();
        for (thread, sender) in senders.into_iter().enumerate() {
            let sent = sender.join().unwrap();
            for (number, runs) in runs[thread][..sent].iter().enumerate() {
                let runs = runs.load(SeqCst);
                assert!(matches!(runs, 1 | usize::MAX), "storm {storm}: {thread}/{number} ran {runs} times");
            }
        }
    }
}

#[test]
fn every_blocking_call_while_the_shards_stop_is_answered() {
    for _ in 0..20 {
        let server = Server::start(2, Config::default(), |shard| echo(shard, Style::Protocol));
        let ran = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..6)
            .map(|number| {
                let (handle, ran) = (server.handle(), Arc::clone(&ran));
                thread::spawn(move || {
                    let ids: Vec<_> = handle.shard_ids().collect();
                    let mut answered = 0;
                    loop {
                        let ran = Arc::clone(&ran);
                        let outcome = if number % 2 == 0 {
                            handle.blocking_call_from_thread(ids[answered % 2], move |_| {
                                ran.fetch_add(1, SeqCst);
                            })
                        } else {
                            handle.blocking_call_async_from_thread(ids[answered % 2], async move |_| {
                                ran.fetch_add(1, SeqCst);
                                shardwise::yield_now().await;
                            })
                        };
                        match outcome {
                            Ok(()) => answered += 1,
                            Err(CallError::Stopped) => return answered,
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        eventually("calls are made", || ran.load(SeqCst) > 300);
        server.stop();
        let answered: usize = callers.into_iter().map(|caller| caller.join().unwrap()).sum();
        let ran = ran.load(SeqCst);
        assert!(answered <= ran && ran <= answered + 6, "{ran} ran, {answered} were answered");
    }
}

/// Futures that never finish hand their wakers out; foreign threads clone, wake and drop them before, during and
/// after the end of their shards. Futures are dropped at home.
#[test]
fn wakers_may_be_used_anywhere_at_any_time() {
    struct AtHome(thread::ThreadId, Arc<AtomicUsize>);
    impl Drop for AtHome {
        fn drop(&mut self) {
            assert_eq!(thread::current().id(), self.0, "dropped on a foreign thread");
            self.1.fetch_add(1, SeqCst);
        }
    }
    const TASKS: usize = 64;
    for round in 0..15 {
        let server = Server::start(2, Config::default(), |shard| echo(shard, Style::Protocol));
        let wakers = Arc::<Mutex<Vec<Waker>>>::default();
        let (polls, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for number in 0..TASKS {
            let id = server.handle().shard_ids().nth(number % 2).unwrap();
            let (wakers, polls, dropped) = (Arc::clone(&wakers), Arc::clone(&polls), Arc::clone(&dropped));
            let taken = server.handle().call_from_thread(id, move |shard| {
                let home = AtHome(thread::current().id(), dropped);
                drop(shard.spawn(async move {
                    let _home = &home;
                    let mut told = false;
                    poll_fn(move |context| {
                        if !std::mem::replace(&mut told, true) {
                            wakers.lock().unwrap().push(context.waker().clone());
                        }
                        polls.fetch_add(1, SeqCst);
                        Poll::<()>::Pending
                    })
                    .await;
                }));
            });
            assert!(taken.is_ok());
        }
        eventually("all have been polled", || wakers.lock().unwrap().len() == TASKS);
        let stormers: Vec<_> = (0..6)
            .map(|number| {
                let wakers: Vec<_> = wakers.lock().unwrap().clone();
                let handle = server.handle();
                thread::spawn(move || {
                    let mut after_the_end = 0;
                    for turn in (number..).step_by(7) {
                        let waker = &wakers[turn % TASKS];
                        match turn % 3 {
                            0 => waker.wake_by_ref(),
                            1 => {
                                let kept = waker.clone();
                                kept.wake();
                            }
                            _ => drop(waker.clone()),
                        }
                        if handle.state() == shardwise::RuntimeState::Stopped {
                            after_the_end += 1;
                            if after_the_end > 200 {
                                break;
                            }
                        }
                    }
                })
            })
            .collect();
        eventually("wakes lead to polls", || polls.load(SeqCst) > TASKS + 500 * round);
        server.stop();
        assert_eq!(dropped.load(SeqCst), TASKS, "every future was dropped when its shard ended");
        stormers.into_iter().for_each(|stormer| stormer.join().unwrap());
        let after = polls.load(SeqCst);
        wakers.lock().unwrap().drain(..).for_each(Waker::wake);
        assert_eq!(polls.load(SeqCst), after, "nothing is polled any more");
    }
}

/// A wake writes to an eventfd. Were it closed with its shard, whoever got its number would get the wake's eight bytes.
#[test]
fn a_late_wake_writes_to_nobody_elses_descriptor() {
    in_a_child("a_late_wake_writes_to_nobody_elses_descriptor", || {
        let server = Server::start(2, Config::default(), |shard| echo(shard, Style::Protocol));
        let handle = server.handle();
        let (tell, told) = mpsc::channel();
        for id in handle.shard_ids() {
            let tell = tell.clone();
            let taken = handle.call_from_thread(id, move |shard| {
                drop(shard.spawn(poll_fn(move |context| {
                    let _ = tell.send(context.waker().clone());
                    Poll::<()>::Pending
                })));
            });
            assert!(taken.is_ok());
        }
        let wakers: Vec<_> = (0..2).map(|_| told.recv_timeout(PATIENCE).unwrap()).collect();
        server.stop();
        // These take every number that the runtime has given back.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pairs: Vec<_> = (0..16)
            .map(|_| {
                let client = connect(listener.local_addr().unwrap());
                (client, listener.accept().unwrap().0)
            })
            .collect();
        for waker in wakers {
            waker.wake_by_ref();
            waker.wake();
        }
        for id in handle.shard_ids() {
            assert!(handle.call_from_thread(id, |_| ()).is_err(), "it has stopped");
        }
        for (client, server) in &pairs {
            for end in [client, server] {
                end.set_nonblocking(true).unwrap();
                let heard = end.peek(&mut [0; 8]);
                assert!(heard.is_err(), "somebody wrote {heard:?} bytes");
            }
        }
    });
}

/// Started and stopped many times over, with connections open and half open: nothing of a runtime stays.
#[test]
fn a_runtime_that_has_stopped_leaves_nothing_behind() {
    in_a_child("a_runtime_that_has_stopped_leaves_nothing_behind", || {
        let mut descriptors = 0;
        for round in 0..40 {
            let mut config = Config::default();
            config.drain_timeout = Duration::from_millis(50);
            let style = STYLES[round % 2];
            let server = Server::start(2, config, move |shard| echo(shard, style));
            let mut clients: Vec<_> = (0..10).map(|_| connect(server.addr)).collect();
            for client in &mut clients[..5] {
                client.write_all(b"hello").unwrap();
            }
            server.handle().stop().unwrap();
            // Idle connections are told to end, and end: nothing needs force.
            for client in &mut clients {
                let mut answer = Vec::new();
                let outcome = client.read_to_end(&mut answer);
                assert!(outcome.is_ok() || answer.is_empty(), "{outcome:?} after {answer:?}");
            }
            drop(clients);
            let _ = server.running.join();
            if round == 3 {
                descriptors = open_descriptors();
            }
        }
        assert_eq!(open_descriptors(), descriptors);
        let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
        assert!(threads <= 2, "{threads} threads are left");
    });
}
