//! Two drivers of one world, stepped by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::network::test_kit::WorldCensus;
use super::options::Faults;
use super::*;
use crate::reactor::lease::Lease;

/// Steps the drivers of a world until nothing is left to happen, and keeps what they told.
struct Bench {
    world: World,
    drivers: Vec<SimDriver>,
    told: Vec<(usize, Told)>,
    /// All bytes received, by shard and token.
    bytes: BTreeMap<(usize, Token), Vec<u8>>,
}

/// An event without its lease, so that it can be kept and compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Accepted { listener: Token, token: Token, peer: SocketAddr },
    Connected(Token),
    Received(Token, usize),
    PeerFinished(Token),
    Sent(Token),
    Failed(Token, io::ErrorKind),
    AcceptFailed(Token, Option<i32>),
}

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
struct Ends {
    client: Token,
    server: Token,
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

impl Bench {
    fn new(seed: u64, options: SimOptions) -> Self {
        let world = World::new(seed, options);
        let drivers = (0..2).map(|shard| world.driver(shard)).collect();
        Bench { world, drivers, told: Vec::new(), bytes: BTreeMap::new() }
    }

    fn calm() -> Self {
        Bench::new(1, SimOptions::calm())
    }

    fn listen(&mut self, shard: usize, addr: &str) -> (Token, SocketAddr) {
        let (token, addr) = self.drivers[shard].listen(&listen_spec(addr.parse().unwrap(), false)).unwrap();
        self.drivers[shard].accept(token, true);
        (token, addr)
    }

    fn connect(&mut self, shard: usize, addr: SocketAddr) -> Token {
        self.drivers[shard].connect(&ConnectSpec { addr, bind_addr: None }).unwrap()
    }

    /// One turn of one shard.
    fn step(&mut self, shard: usize) {
        self.drivers[shard].wait(Some(Duration::ZERO)).unwrap();
        while let Some(event) = self.drivers[shard].next() {
            self.keep(shard, event);
        }
    }

    fn keep(&mut self, shard: usize, event: Event) {
        let told = match event {
            Event::Accepted { listener, token, peer } => {
                Told::Accepted { listener, token, peer: peer.as_ip().expect("only TCP here") }
            }
            Event::Connected { token } => Told::Connected(token),
            Event::Received { token, bytes } => {
                assert!(!bytes.is_empty(), "an empty Received");
                self.bytes.entry((shard, token)).or_default().extend_from_slice(&bytes);
                Told::Received(token, bytes.len())
            }
            Event::PeerFinished { token } => Told::PeerFinished(token),
            Event::Sent { token } => Told::Sent(token),
            Event::Failed { token, error } => Told::Failed(token, error.kind()),
            Event::Datagram { .. } | Event::Ready { .. } | Event::Descriptors { .. } => {
                unreachable!("no such sources here")
            }
            Event::AcceptFailed { listener, error } => Told::AcceptFailed(listener, error.raw_os_error()),
        };
        self.told.push((shard, told));
    }

    /// Steps, in an order drawn from the seed, until this instant has nothing more to tell.
    fn run_now(&mut self) {
        for _ in 0..100_000 {
            let ready: Vec<_> =
                (0..self.drivers.len()).filter(|shard| self.world.has_events(*shard)).collect();
            if ready.is_empty() {
                return;
            }
            let choice = self.world.random() as usize % ready.len();
            self.step(ready[choice]);
        }
        panic!("the world does not come to rest");
    }

    /// Runs until nothing is under way any more, or `limit` of virtual time has passed.
    fn run_for(&mut self, limit: Duration) {
        let end = self.world.now() + limit;
        loop {
            self.run_now();
            match self.world.next_delivery() {
                Some(due) if due <= end => self.world.advance_to(due),
                _ => break,
            }
        }
        self.world.advance_to(end);
    }

    fn run(&mut self) {
        self.run_for(Duration::from_millis(10));
    }

    /// A connection from `CLIENT` to `SERVER`, receiving on both sides.
    fn connected(&mut self) -> Ends {
        let (listener, addr) = self.listen(SERVER, "127.0.0.1:0");
        let client = self.connect(CLIENT, addr);
        self.run();
        let server = self.accepted_at(listener)[0];
        self.drivers[CLIENT].receive(client, true);
        self.drivers[SERVER].receive(server, true);
        self.drivers[SERVER].close(listener, CloseKind::Orderly);
        self.told.clear();
        Ends { client, server }
    }

    fn accepted_at(&self, wanted: Token) -> Vec<Token> {
        let token = |(_, told): &(usize, Told)| match told {
            Told::Accepted { listener, token, .. } if *listener == wanted => Some(*token),
            _ => None,
        };
        self.told.iter().filter_map(token).collect()
    }

    fn saw(&self, shard: usize, told: &Told) -> usize {
        self.told.iter().filter(|(at, seen)| *at == shard && seen == told).count()
    }

    fn failures(&self, shard: usize, token: Token) -> Vec<io::ErrorKind> {
        let kind = |(at, told): &(usize, Told)| match told {
            Told::Failed(seen, kind) if *at == shard && *seen == token => Some(*kind),
            _ => None,
        };
        self.told.iter().filter_map(kind).collect()
    }

    fn received(&self, shard: usize, token: Token) -> &[u8] {
        self.bytes.get(&(shard, token)).map_or(&[], Vec::as_slice)
    }

    /// Sends all of `bytes`, stepping the world while the pipe is full.
    fn send_all(&mut self, shard: usize, token: Token, bytes: &[u8]) {
        let mut output = Output::new();
        output.push(bytes);
        while self.drivers[shard].submit(token, &mut output).unwrap() == Submitted::Blocked {
            let before = self.told.len();
            self.run();
            let sent = (shard, Told::Sent(token));
            assert!(self.told[before..].contains(&sent), "blocked, and Sent never came");
        }
    }

    /// Closes what is left and checks that nothing leaked.
    fn finish(mut self) {
        self.run();
        let drivers = std::mem::take(&mut self.drivers);
        assert!(drivers.iter().all(|driver| driver.census().leases == 0));
        drop(drivers);
        self.world.advance_to(self.world.now() + Duration::from_secs(200));
        assert_eq!(self.world.census(), WorldCensus::default());
    }
}

fn listen_spec(addr: SocketAddr, join: bool) -> ListenSpec {
    ListenSpec { addr, backlog: 128, join, accepts_per_turn: 32 }
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    result.err().expect("an error").kind()
}

/// Adversity at its default rates, with a seed of its own.
fn rough(seed: u64) -> Bench {
    Bench::new(seed, SimOptions::default())
}

mod connections;

// Connecting, listening.

#[test]
fn a_connection_echoes_and_both_ends_know_the_addresses() {
    for (seed, addr) in [(1, "127.0.0.1:0"), (2, "[::1]:0"), (3, "0.0.0.0:0"), (4, "[::]:0")] {
        let mut bench = rough(seed);
        let (listener, addr) = bench.listen(SERVER, addr);
        assert!(addr.port() >= 40_000);
        let client = bench.connect(CLIENT, addr);
        bench.run();
        assert_eq!(bench.saw(CLIENT, &Told::Connected(client)), 1, "seed {seed}");
        let server = bench.accepted_at(listener)[0];
        let local = bench.drivers[CLIENT].local_addr(client).unwrap().as_ip().unwrap();
        assert_eq!(bench.saw(SERVER, &Told::Accepted { listener, token: server, peer: local }), 1);
        let dialled = bench.drivers[SERVER].local_addr(server).unwrap().as_ip().unwrap();
        assert!(dialled.ip().is_loopback() && dialled.port() == addr.port());

        bench.send_all(CLIENT, client, b"hello");
        bench.run();
        assert_eq!(bench.received(SERVER, server), b"", "receiving is off until asked for");
        bench.drivers[SERVER].receive(server, true);
        bench.drivers[CLIENT].receive(client, true);
        bench.run();
        assert_eq!(bench.received(SERVER, server), b"hello");
        bench.send_all(SERVER, server, b"hello to you");
        bench.run();
        assert_eq!(bench.received(CLIENT, client), b"hello to you");
        bench.finish();
    }
}

#[test]
fn connecting_where_nobody_listens_is_refused_and_never_before_connect_returns() {
    let mut bench = Bench::calm();
    let client = bench.connect(CLIENT, "127.0.0.1:9".parse().unwrap());
    assert_eq!(kind(bench.drivers[CLIENT].try_send(client, b"early")), io::ErrorKind::NotConnected);
    bench.run();
    assert_eq!(bench.told, [(CLIENT, Told::Failed(client, io::ErrorKind::ConnectionRefused))]);
    assert_eq!(bench.drivers[CLIENT].census().connections, 1, "open, and silent, until it is closed");
    bench.drivers[CLIENT].close(client, CloseKind::Orderly);
    assert_eq!(bench.drivers[CLIENT].census(), Census::default());
    bench.finish();
}

#[test]
fn a_scheduled_refusal_hides_a_listener_until_it_is_taken_back() {
    let mut bench = rough(5);
    let (_, addr) = bench.listen(SERVER, "127.0.0.1:0");
    bench.world.refuse_connects(addr);
    let first = bench.connect(CLIENT, addr);
    bench.run();
    assert_eq!(bench.failures(CLIENT, first), [io::ErrorKind::ConnectionRefused]);
    bench.world.allow_connects(addr);
    let second = bench.connect(CLIENT, addr);
    bench.run();
    assert_eq!(bench.saw(CLIENT, &Told::Connected(second)), 1);
    bench.finish();
}

#[test]
fn an_address_in_use_is_joined_only_after_it_is_shared_and_only_by_who_asks() {
    let mut bench = Bench::calm();
    let (first, addr) = bench.drivers[0].listen(&listen_spec("127.0.0.1:0".parse().unwrap(), false)).unwrap();
    let any: SocketAddr = SocketAddr::new("0.0.0.0".parse().unwrap(), addr.port());
    let six: SocketAddr = SocketAddr::new("::".parse().unwrap(), addr.port());
    assert_eq!(kind(bench.drivers[1].listen(&listen_spec(addr, true))), io::ErrorKind::AddrInUse);
    bench.drivers[0].share_port(first).unwrap();
    assert_eq!(kind(bench.drivers[1].listen(&listen_spec(addr, false))), io::ErrorKind::AddrInUse);
    assert_eq!(kind(bench.drivers[1].listen(&listen_spec(any, false))), io::ErrorKind::AddrInUse);
    bench.drivers[1].listen(&listen_spec(six, false)).unwrap();
    let (second, joined) = bench.drivers[1].listen(&listen_spec(addr, true)).unwrap();
    assert_eq!(joined, addr);

    bench.drivers[0].accept(first, true);
    bench.drivers[1].accept(second, true);
    for _ in 0..100 {
        bench.connect(CLIENT, addr);
    }
    bench.run();
    let at = [first, second].map(|_| 0);
    let counts = bench.told.iter().fold(at, |mut counts, (shard, told)| {
        counts[*shard] += usize::from(matches!(told, Told::Accepted { .. }));
        counts
    });
    assert_eq!(counts[0] + counts[1], 100);
    assert!(counts.iter().all(|count| *count > 25), "{counts:?} of 100: one hash, two members");

    bench.drivers[0].close(first, CloseKind::Orderly);
    assert_eq!(kind(bench.drivers[0].listen(&listen_spec(addr, false))), io::ErrorKind::AddrInUse);
    bench.drivers[1].close(second, CloseKind::Orderly);
    bench.drivers[0].listen(&listen_spec(addr, false)).expect("the last member has left");
    bench.finish();
}

#[test]
fn connecting_from_an_address_uses_it_and_refuses_one_that_is_taken() {
    let mut bench = Bench::calm();
    let (_, addr) = bench.listen(SERVER, "127.0.0.1:0");
    let from: SocketAddr = "127.0.0.9:1234".parse().unwrap();
    let spec = ConnectSpec { addr, bind_addr: Some(from) };
    let client = bench.drivers[CLIENT].connect(&spec).unwrap();
    assert_eq!(bench.drivers[CLIENT].local_addr(client).unwrap(), from);
    assert_eq!(kind(bench.drivers[CLIENT].connect(&spec)), io::ErrorKind::AddrInUse);
    bench.drivers[CLIENT].close(client, CloseKind::Orderly);
    bench.drivers[CLIENT].connect(&spec).expect("the address is free again");
    bench.finish();
}

#[test]
fn a_full_backlog_keeps_a_connect_pending_until_there_is_room_or_tcp_gives_up() {
    let mut bench = Bench::calm();
    let spec = ListenSpec { backlog: 2, ..listen_spec("127.0.0.1:0".parse().unwrap(), false) };
    let (listener, addr) = bench.drivers[SERVER].listen(&spec).unwrap();
    let clients: Vec<_> = (0..4).map(|_| bench.connect(CLIENT, addr)).collect();
    bench.run();
    let connected = |bench: &Bench| {
        clients.iter().filter(|client| bench.saw(CLIENT, &Told::Connected(**client)) == 1).count()
    };
    assert_eq!(connected(&bench), 2);
    bench.drivers[CLIENT].close(clients[3], CloseKind::Orderly);
    bench.drivers[SERVER].accept(listener, true);
    bench.run_for(Duration::from_secs(2));
    assert_eq!(connected(&bench), 3, "the handshake was tried again");
    assert_eq!(bench.accepted_at(listener).len(), 3, "the connect that was closed left no trace");

    bench.drivers[SERVER].accept(listener, false);
    let late: Vec<_> = (0..3).map(|_| bench.connect(CLIENT, addr)).collect();
    bench.run_for(Duration::from_secs(130));
    assert_eq!(bench.failures(CLIENT, late[2]), [io::ErrorKind::TimedOut]);
    bench.finish();
}

#[test]
fn refused_handshakes_stay_pending_and_what_had_come_is_accepted_to_the_last() {
    for seed in 0..20 {
        let mut bench = rough(seed);
        let (listener, addr) = bench.listen(SERVER, "127.0.0.1:0");
        bench.drivers[SERVER].accept(listener, false);
        let early: Vec<_> = (0..40).map(|_| bench.connect(CLIENT, addr)).collect();
        bench.run();
        bench.drivers[SERVER].refuse_handshakes(listener).unwrap();
        let late = bench.connect(CLIENT, addr);
        bench.run_for(Duration::from_millis(500));
        assert_eq!(bench.drivers[SERVER].accept_queue(listener).accepted, early.len());
        bench.run();
        assert_eq!(
            bench.accepted_at(listener).len(),
            early.len(),
            "without a cap, and though accepting is off"
        );
        bench.drivers[SERVER].close(listener, CloseKind::Orderly);
        assert_eq!(bench.failures(CLIENT, late), [], "its handshake was dropped, not refused");
        bench.run_for(Duration::from_secs(1));
        assert_eq!(bench.failures(CLIENT, late), [io::ErrorKind::ConnectionRefused], "seed {seed}");
        assert!(early.iter().all(|client| bench.failures(CLIENT, *client).is_empty()));
        bench.finish();
    }
}

#[test]
fn a_handshake_that_has_begun_arrives_after_handshakes_are_refused() {
    let mut bench = Bench::new(3, SimOptions { latency_max: Duration::from_millis(5), ..SimOptions::calm() });
    let (listener, addr) = bench.listen(SERVER, "127.0.0.1:0");
    let client = bench.connect(CLIENT, addr);
    while bench.world.census().waiting == 0 {
        bench.world.advance_to(bench.world.next_delivery().expect("the handshake is under way"));
    }
    bench.drivers[SERVER].refuse_handshakes(listener).unwrap();
    bench.run_for(Duration::from_millis(50));
    assert_eq!(bench.saw(CLIENT, &Told::Connected(client)), 1);
    assert_eq!(bench.accepted_at(listener).len(), 1);
    bench.finish();
}

#[test]
fn a_client_that_gives_up_in_the_middle_of_its_handshake_is_never_accepted() {
    let mut in_the_middle = 0;
    for seed in 0..20 {
        let latency_max = Duration::from_millis(5);
        let mut bench = Bench::new(seed, SimOptions { latency_max, ..SimOptions::calm() });
        let (listener, addr) = bench.listen(SERVER, "127.0.0.1:0");
        let client = bench.connect(CLIENT, addr);
        while bench.world.census().waiting == 0 {
            bench.world.advance_to(bench.world.next_delivery().expect("the handshake is under way"));
        }
        if bench.world.is_connecting(CLIENT, client) {
            in_the_middle += 1;
            bench.drivers[CLIENT].close(client, CloseKind::Orderly);
            bench.run_for(Duration::from_millis(50));
            assert_eq!(bench.accepted_at(listener), [], "seed {seed}");
            let census = bench.world.census();
            assert_eq!(census, WorldCensus { listeners: 1, ..Default::default() }, "seed {seed}");
        }
        bench.finish();
    }
    assert!(in_the_middle > 5, "{in_the_middle} of 20");
}

#[test]
fn closing_a_listener_resets_what_waits_at_it() {
    let mut bench = Bench::calm();
    let (listener, addr) = bench.listen(SERVER, "127.0.0.1:0");
    bench.drivers[SERVER].accept(listener, false);
    let clients: Vec<_> = (0..3).map(|_| bench.connect(CLIENT, addr)).collect();
    bench.run();
    bench.drivers[SERVER].accept_queue(listener);
    bench.drivers[SERVER].close(listener, CloseKind::Orderly);
    bench.run();
    for client in clients {
        assert_eq!(bench.failures(CLIENT, client), [io::ErrorKind::ConnectionReset]);
    }
    assert_eq!(bench.accepted_at(listener), [], "no event for a closed token");
    bench.finish();
}

#[test]
fn a_peer_that_resets_while_it_waits_is_accepted_broken() {
    let mut bench = Bench::calm();
    let (listener, addr) = bench.listen(SERVER, "127.0.0.1:0");
    bench.drivers[SERVER].accept(listener, false);
    let client = bench.connect(CLIENT, addr);
    bench.run();
    bench.drivers[CLIENT].close(client, CloseKind::Reset);
    bench.drivers[SERVER].accept(listener, true);
    bench.run();
    let server = bench.accepted_at(listener)[0];
    assert_eq!(bench.failures(SERVER, server), [io::ErrorKind::ConnectionReset], "though receiving is off");
    bench.finish();
}

#[test]
fn failing_accepts_pause_the_listener_and_go_on_by_themselves() {
    let mut bench = rough(6);
    let (listener, addr) = bench.listen(SERVER, "127.0.0.1:0");
    bench.world.fail_accepts(Errno::MFILE, 2);
    let began = bench.world.elapsed();
    bench.connect(CLIENT, addr);
    bench.run_for(Duration::from_millis(90));
    let failed = Told::AcceptFailed(listener, Some(Errno::MFILE.raw_os_error()));
    assert_eq!(bench.saw(SERVER, &failed), 1, "paused");
    bench.run_for(Duration::from_millis(90));
    assert_eq!((bench.saw(SERVER, &failed), bench.accepted_at(listener).len()), (2, 0));
    bench.run_for(Duration::from_millis(90));
    assert_eq!(bench.accepted_at(listener).len(), 1);
    assert!(bench.world.elapsed() - began >= Duration::from_millis(200));
    bench.finish();
}

#[test]
fn a_listener_accepts_no_more_than_its_share_in_one_turn() {
    let mut bench = Bench::calm();
    let spec = ListenSpec { accepts_per_turn: 5, ..listen_spec("127.0.0.1:0".parse().unwrap(), false) };
    let (listener, addr) = bench.drivers[SERVER].listen(&spec).unwrap();
    bench.drivers[SERVER].accept(listener, true);
    for _ in 0..12 {
        bench.connect(CLIENT, addr);
    }
    bench.step(CLIENT);
    for expected in [5, 10, 12] {
        bench.step(SERVER);
        assert_eq!(bench.accepted_at(listener).len(), expected);
    }
    bench.finish();
}

// Moving, waking, time.

#[test]
fn a_connection_moves_between_drivers_with_its_unread_bytes() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    for seed in 0..50 {
        let mut bench = rough(seed);
        let Ends { client, mut server } = bench.connected();
        let mut at = SERVER;
        let mut sent = Vec::new();
        let mut received = Vec::new();
        for round in 0..6u8 {
            let bytes = vec![round; 3_000];
            bench.send_all(CLIENT, client, &bytes);
            sent.extend(bytes);
            bench.step(at);
            received.extend(bench.bytes.remove(&(at, server)).unwrap_or_default());
            let socket = is_send(bench.drivers[at].release(server).expect("it is connected"));
            assert_eq!(kind(bench.drivers[at].try_send(server, b"x")), io::ErrorKind::NotConnected);
            assert_eq!(bench.world.census().detached, 1);
            at = 1 - at;
            server = bench.drivers[at].adopt(socket).unwrap();
            bench.drivers[at].receive(server, true);
        }
        bench.drivers[CLIENT].shutdown_write(client).unwrap();
        bench.run();
        received.extend(bench.bytes.remove(&(at, server)).unwrap_or_default());
        assert!(received == sent, "seed {seed}");
        assert_eq!(bench.saw(at, &Told::PeerFinished(server)), 1, "seed {seed}");
        bench.send_all(at, server, b"from the new home");
        bench.run();
        assert_eq!(bench.received(CLIENT, client), b"from the new home");
        bench.finish();
    }
}

#[test]
fn a_socket_that_nobody_adopts_is_closed_by_its_drop() {
    let mut bench = Bench::calm();
    let Ends { client, server } = bench.connected();
    let socket = bench.drivers[SERVER].release(server);
    assert!(!bench.told.contains(&(CLIENT, Told::PeerFinished(client))));
    drop(socket);
    bench.run();
    assert_eq!(bench.saw(CLIENT, &Told::PeerFinished(client)), 1);
    let elsewhere = Bench::calm();
    let foreign = bench.drivers[CLIENT].release(client).unwrap();
    let mut drivers = elsewhere.drivers;
    assert_eq!(kind(drivers[0].adopt(foreign)), io::ErrorKind::InvalidInput);
    assert_eq!(bench.world.census(), WorldCensus::default());
}

#[test]
fn a_driver_that_goes_away_closes_its_sources_and_may_be_made_again() {
    let mut bench = Bench::calm();
    let Ends { client, .. } = bench.connected();
    let (_, addr) = bench.listen(SERVER, "127.0.0.1:0");
    drop(bench.drivers.pop());
    bench.run();
    assert_eq!(bench.saw(CLIENT, &Told::PeerFinished(client)), 1);
    bench.drivers.push(bench.world.driver(SERVER));
    assert_eq!(bench.drivers[SERVER].census(), Census::default());
    bench.drivers[SERVER].listen(&listen_spec(addr, false)).expect("its address is free");
    bench.finish();
}

#[test]
fn a_wake_is_seen_until_the_next_wait_also_after_the_driver_is_gone() {
    let mut bench = Bench::calm();
    let waker = bench.drivers[0].waker();
    assert!(!bench.world.is_woken(0));
    std::thread::scope(|scope| scope.spawn(|| waker.wake()).join()).unwrap();
    assert!(bench.world.is_woken(0) && !bench.world.is_woken(1));
    bench.drivers[0].wait(None).unwrap();
    assert!(!bench.world.is_woken(0));
    bench.drivers.clear();
    waker.wake();
    assert!(bench.world.is_woken(0), "a waker outlives its driver");
}

#[test]
fn the_clock_moves_only_when_told_and_never_back() {
    let mut bench = Bench::calm();
    let began = bench.world.now();
    bench.drivers[0].wait(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(bench.drivers[0].now(), began);
    bench.world.advance_to(began + Duration::from_secs(60));
    assert_eq!(bench.drivers[0].now(), began, "as of the last wait");
    assert_eq!(bench.drivers[0].read_clock(), began + Duration::from_secs(60));
    bench.world.advance_to(began);
    assert_eq!(bench.world.elapsed(), Duration::from_secs(60));
}

// The whole.

/// A busy minute: connections come, talk, half-close, reset. Everything in it follows from `seed`.
fn busy_minute(seed: u64, connections: usize) -> (Vec<(Duration, usize, Told)>, WorldCensus) {
    let mut bench = rough(seed);
    let (listener, addr) = bench.listen(SERVER, "127.0.0.1:0");
    let mut trace = Vec::new();
    let clients: Vec<_> = (0..connections).map(|_| bench.connect(CLIENT, addr)).collect();
    for second in 0..60 {
        bench.run_for(Duration::from_secs(1));
        let elapsed = bench.world.elapsed();
        for (shard, told) in std::mem::take(&mut bench.told) {
            match &told {
                Told::Accepted { token, .. } => bench.drivers[shard].receive(*token, true),
                Told::Connected(token) => bench.drivers[shard].receive(*token, true),
                Told::Received(token, _) if shard == SERVER => {
                    let bytes = bench.bytes.remove(&(shard, *token)).unwrap_or_default();
                    let _ = bench.drivers[shard].try_send(*token, &bytes);
                }
                _ => {}
            }
            trace.push((elapsed, shard, told));
        }
        for client in &clients {
            let driver = &mut bench.drivers[CLIENT];
            match bench.world.random() % 64 {
                0 if second > 30 => driver.close(*client, CloseKind::Reset),
                1 if second > 30 => drop(driver.shutdown_write(*client)),
                _ => drop(driver.try_send(*client, &[second; 300])),
            }
        }
    }
    bench.drivers[SERVER].close(listener, CloseKind::Orderly);
    bench.drivers.clear();
    bench.world.advance_to(bench.world.now() + Duration::from_secs(200));
    (trace, bench.world.census())
}

#[test]
fn one_seed_gives_one_trace_and_another_seed_another() {
    let (first, census) = busy_minute(42, 50);
    assert!(first.len() > 5_000, "{} events", first.len());
    assert_eq!(census, WorldCensus::default());
    assert!(first == busy_minute(42, 50).0);
    assert!(first != busy_minute(43, 50).0);
}

#[test]
fn calm_worlds_have_no_faults_and_swarms_have_some() {
    let rates = |faults: Faults| {
        [
            faults.short_read,
            faults.short_send,
            faults.refused_send,
            faults.shuffle,
            faults.late_received,
            faults.empty_wait,
            faults.lossy_reset,
        ]
    };
    assert_eq!(rates(SimOptions::calm().faults), [0.0; 7]);
    let swarms: Vec<_> = (0..100).map(|seed| rates(Faults::swarm(seed))).collect();
    for fault in 0..7 {
        let on = swarms.iter().filter(|rates| rates[fault] > 0.0).count();
        assert!((25..75).contains(&on), "fault {fault} is on in {on} of 100 swarms");
    }
    assert!(swarms.iter().flatten().all(|rate| *rate < 0.9), "nothing always fails, so all comes to rest");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_written_in_whatever_chunks_arrives_byte_exact(
        seed in any::<u64>(),
        swarm in any::<bool>(),
        pipe_bytes in 16usize..5_000,
        writes in prop::collection::vec((any::<bool>(), 0usize..6_000, any::<bool>()), 1..12),
    ) {
        let faults = if swarm { Faults::swarm(seed) } else { Faults::default() };
        let options = SimOptions {
            faults,
            pipe_bytes_min: pipe_bytes,
            pipe_bytes_max: pipe_bytes * 2,
            read_buffer_bytes: 1 + (seed as usize % 3_000),
            ..SimOptions::default()
        };
        let mut bench = Bench::new(seed, options);
        let Ends { client, server } = bench.connected();
        let mut sent = [Vec::new(), Vec::new()];
        for (number, (from_client, length, run)) in writes.into_iter().enumerate() {
            let (shard, token) = if from_client { (CLIENT, client) } else { (SERVER, server) };
            let bytes: Vec<u8> = (0..length).map(|byte| (byte * 7 + number) as u8).collect();
            bench.send_all(shard, token, &bytes);
            sent[shard].extend(bytes);
            if run {
                bench.run();
            }
        }
        bench.drivers[CLIENT].shutdown_write(client).unwrap();
        bench.drivers[SERVER].shutdown_write(server).unwrap();
        bench.run();
        prop_assert!(bench.received(SERVER, server) == sent[CLIENT]);
        prop_assert!(bench.received(CLIENT, client) == sent[SERVER]);
        prop_assert_eq!(bench.saw(SERVER, &Told::PeerFinished(server)), 1);
        prop_assert_eq!(bench.saw(CLIENT, &Told::PeerFinished(client)), 1);
        bench.finish();
    }
}

#[test]
fn random_bits_repeat_with_the_seed_and_leave_the_network_as_it_was() {
    let run = |seed, draws| {
        let mut bench = Bench::new(seed, SimOptions::default());
        let drawn: Vec<_> = (0..draws).map(|_| bench.drivers[CLIENT].random()).collect();
        let (_, addr) = bench.listen(SERVER, "127.0.0.1:0");
        bench.connect(CLIENT, addr);
        bench.run();
        (drawn, bench.told.len(), bench.world.elapsed())
    };
    let (drawn, told, elapsed) = run(7, 3);
    assert_eq!(run(7, 3).0, drawn);
    assert_ne!(run(8, 3).0, drawn);
    let undisturbed = run(7, 0);
    assert_eq!((undisturbed.1, undisturbed.2), (told, elapsed));
}

#[test]
fn an_address_of_documents_answers_nothing() {
    for addr in ["192.0.2.1:9", "[2001:db8::1]:9"] {
        let mut bench = Bench::calm();
        let token = bench.connect(CLIENT, addr.parse().unwrap());
        bench.run_for(Duration::from_secs(200));
        assert_eq!(bench.told, [(CLIENT, Told::Failed(token, io::ErrorKind::TimedOut))]);
        assert!(bench.world.elapsed() > Duration::from_secs(60), "{:?}", bench.world.elapsed());
    }
}
