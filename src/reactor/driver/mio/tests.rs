//! The driver against the real kernel: connections, edges, sends, wakes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use rustix::io::Errno;

use super::*;

/// A driver and, in order, what it told that no test has taken yet.
struct Bench {
    driver: MioDriver,
    told: Vec<Event>,
}

/// Longer than any step takes: a guard, not a measure.
const PATIENCE: Duration = Duration::from_secs(10);

fn bench() -> Bench {
    bench_with(DriverConfig::default())
}

fn bench_with(config: DriverConfig) -> Bench {
    Bench { driver: MioDriver::new(config).unwrap(), told: Vec::new() }
}

fn any_port() -> ListenSpec {
    ListenSpec { addr: "127.0.0.1:0".parse().unwrap(), backlog: 128, join: false, accepts_per_turn: 32 }
}

impl Bench {
    /// One turn: waits at most `timeout` and takes all there is.
    fn turn(&mut self, timeout: Duration) {
        self.driver.wait(Some(timeout)).unwrap();
        while let Some(event) = self.driver.next() {
            self.told.push(event);
        }
    }

    /// Turns until `wanted` picks an event, which is taken out.
    fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.told.iter().enumerate().find_map(|(index, event)| Some((index, wanted(event)?)));
            if let Some((index, value)) = found {
                self.told.remove(index);
                return value;
            }
            assert!(Instant::now() < deadline, "no {what}, but {:?}", self.names());
            self.turn(Duration::from_millis(50));
        }
    }

    fn accepted(&mut self) -> Token {
        self.until("Accepted", |event| match event {
            Event::Accepted { token, .. } => Some(*token),
            _ => None,
        })
    }

    fn connected(&mut self) -> Token {
        self.until("Connected", |event| match event {
            Event::Connected { token } => Some(*token),
            _ => None,
        })
    }

    fn failed(&mut self) -> (Token, io::Error) {
        self.until("Failed", |event| match event {
            Event::Failed { token, error } => Some((*token, io::Error::from(error.kind()))),
            _ => None,
        })
    }

    fn peer_finished(&mut self) -> Token {
        self.until("PeerFinished", |event| match event {
            Event::PeerFinished { token } => Some(*token),
            _ => None,
        })
    }

    fn sent(&mut self) -> Token {
        self.until("Sent", |event| match event {
            Event::Sent { token } => Some(*token),
            _ => None,
        })
    }

    /// Turns until `token` has received `length_bytes` in all, which are taken.
    fn received(&mut self, token: Token, length_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length_bytes {
            bytes.extend(self.until("Received", |event| match event {
                Event::Received { token: from, bytes } if *from == token => Some(bytes.to_vec()),
                _ => None,
            }));
        }
        bytes
    }

    /// What was told and not taken.
    fn names(&self) -> Vec<&'static str> {
        self.told.iter().map(name).collect()
    }

    /// Lets the driver say whatever it still has to say: two turns that bring nothing.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 2 {
            let before = self.told.len();
            self.turn(Duration::from_millis(5));
            quiet = if self.told.len() == before { quiet + 1 } else { 0 };
        }
    }

    fn listener(&mut self) -> (Token, SocketAddr) {
        let (token, addr) = self.driver.listen(&any_port()).unwrap();
        self.driver.accept(token, true);
        (token, addr)
    }

    /// A connection and the peer's end of it, receiving.
    fn pair(&mut self) -> (Token, TcpStream) {
        let (listener, addr) = self.listener();
        let peer = peer(addr);
        let token = self.accepted();
        self.driver.close(listener, CloseKind::Orderly);
        self.driver.receive(token, true);
        (token, peer)
    }
}

fn name(event: &Event) -> &'static str {
    match event {
        Event::Accepted { .. } => "Accepted",
        Event::Connected { .. } => "Connected",
        Event::Received { .. } => "Received",
        Event::PeerFinished { .. } => "PeerFinished",
        Event::Sent { .. } => "Sent",
        Event::Failed { .. } => "Failed",
        Event::AcceptFailed { .. } => "AcceptFailed",
        Event::Datagram { .. } => "Datagram",
        Event::Ready { .. } => "Ready",
        Event::Descriptors { .. } => "Descriptors",
    }
}

fn peer(addr: SocketAddr) -> TcpStream {
    let peer = TcpStream::connect(addr).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.set_write_timeout(Some(PATIENCE)).unwrap();
    peer
}

fn reset(peer: TcpStream) {
    Socket::from(std::os::fd::OwnedFd::from(peer)).set_reset_on_close().unwrap();
}

mod accepting;
mod datagrams;

#[test]
fn a_byte_goes_in_and_out() {
    let mut bench = bench();
    let (token, mut peer) = bench.pair();
    peer.write_all(b"ping").unwrap();
    assert_eq!(bench.received(token, 4), b"ping");
    assert_eq!(bench.driver.try_send(token, b"pong").unwrap(), 4);
    let mut answer = [0; 4];
    peer.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
}

#[test]
fn bytes_come_before_the_fin_that_followed_them() {
    let mut bench = bench();
    for round in 0..20 {
        let (token, mut peer) = bench.pair();
        let sent: Vec<u8> = (0..100_000).map(|index| (index * 31 + round) as u8).collect();
        peer.write_all(&sent).unwrap();
        drop(peer);
        assert!(bench.received(token, sent.len()) == sent, "round {round}");
        assert_eq!(bench.names().iter().filter(|name| **name != "PeerFinished").count(), 0);
        assert_eq!(bench.peer_finished(), token);
        bench.settle();
        assert_eq!(bench.names(), [""; 0], "nothing follows the FIN");
        bench.driver.close(token, CloseKind::Orderly);
    }
}

#[test]
fn an_edge_for_a_source_closed_in_the_same_batch_is_dropped() {
    let mut bench = bench();
    let (first, mut first_peer) = bench.pair();
    let (second, mut second_peer) = bench.pair();
    bench.settle();
    first_peer.write_all(b"1").unwrap();
    second_peer.write_all(b"2").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while bench.driver.turn.ready.len() < 2 && Instant::now() < deadline {
        bench.driver.wait(Some(Duration::from_millis(50))).unwrap();
    }
    let Some(Event::Received { token, .. }) = bench.driver.next() else { panic!("both have bytes") };
    let other = if token == first { second } else { first };
    bench.driver.close(other, CloseKind::Orderly);
    let (newcomer, _newcomer_peer) = detached_pair();
    let newcomer = bench.driver.adopt(newcomer).unwrap();
    assert_eq!(newcomer.index(), other.index(), "the slot is used again");
    bench.driver.receive(newcomer, true);
    assert!(bench.driver.next().is_none(), "the old edge means nothing to the new source");
}

/// A connected socket on its way to a driver, and its peer.
fn detached_pair() -> (DetachedSocket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = peer(listener.local_addr().unwrap());
    let (socket, _) = listener.accept().unwrap();
    (DetachedSocket::Os(Socket::from(std::os::fd::OwnedFd::from(socket))), peer)
}

#[test]
fn full_reads_stop_on_their_budget_and_go_on_without_sleeping() {
    let mut bench = bench_with(DriverConfig { read_buffer_bytes: 1024, ..DriverConfig::default() });
    let (token, mut peer) = bench.pair();
    bench.settle();
    bench.driver.receive(token, false);
    let sent: Vec<u8> = (0..10_500).map(|index| (index / 7) as u8).collect();
    peer.write_all(&sent[..9_500]).unwrap();
    wait_for_bytes(&bench.driver, token, 9_500);
    bench.settle();
    bench.driver.receive(token, true);
    let mut received = Vec::new();
    let begin = Instant::now();
    for expected in [4, 4, 3, 0] {
        bench.turn(if expected == 0 { Duration::ZERO } else { PATIENCE });
        assert_eq!(bench.told.len(), expected);
        for event in bench.told.drain(..) {
            let Event::Received { bytes, .. } = event else { panic!("only bytes were sent") };
            received.extend_from_slice(&bytes);
        }
        if received.len() == 4 * 1024 {
            // A new edge on top of what is carried brings no second share.
            peer.write_all(&sent[9_500..]).unwrap();
            wait_for_bytes(&bench.driver, token, sent.len() - received.len());
        }
    }
    assert!(begin.elapsed() < PATIENCE, "work was carried: no wait slept");
    assert!(received == sent);
}

#[test]
fn a_spurious_eagain_is_not_believed() {
    let mut bench = bench();
    let (token, mut peer) = bench.pair();
    bench.settle();
    peer.write_all(b"here").unwrap();
    wait_for_bytes(&bench.driver, token, 4);
    // The edge is taken, and the kernel answers the read with what a fault injector would.
    bench.driver.wait(Some(PATIENCE)).unwrap();
    bench.driver.turn.ready.clear();
    let Some(Source::Connection(connection)) = bench.driver.sources.get_mut(token) else {
        panic!("it is open")
    };
    let eagain = io::Error::from(Errno::AGAIN);
    connection.unread = true;
    assert!(connection.after_failed_read(token, eagain, &mut bench.driver.turn).is_none());
    assert_eq!(bench.received(token, 4), b"here");
}

/// Until the kernel has `count` bytes for `token`.
fn wait_for_bytes(driver: &MioDriver, token: Token, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    let socket = driver.sources.get(token).unwrap().socket().unwrap();
    while rustix::io::ioctl_fionread(socket).unwrap() < count as u64 {
        assert!(Instant::now() < deadline, "the bytes never came");
        std::thread::yield_now();
    }
}

#[test]
fn what_a_turn_leaves_is_there_in_the_next_one() {
    let mut bench = bench();
    let pairs: Vec<_> = (0..8).map(|_| bench.pair()).collect();
    bench.settle();
    for (_, peer) in &pairs {
        (&*peer).write_all(b"x").unwrap();
    }
    let mut seen = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < pairs.len() {
        assert!(Instant::now() < deadline, "only {seen:?}");
        bench.driver.wait(Some(Duration::from_millis(50))).unwrap();
        // A shard that is out of time fetches one event only.
        if let Some(Event::Received { token, .. }) = bench.driver.next() {
            seen.push(token);
        }
    }
    seen.sort();
    let mut expected: Vec<_> = pairs.iter().map(|(token, _)| *token).collect();
    expected.sort();
    assert_eq!(seen, expected);
}

#[test]
fn nothing_is_read_while_receiving_is_off_and_nothing_is_lost() {
    let mut bench = bench();
    let (token, mut peer) = bench.pair();
    bench.driver.receive(token, false);
    peer.write_all(b"kept ").unwrap();
    wait_for_bytes(&bench.driver, token, 5);
    bench.settle();
    assert_eq!(bench.names(), [""; 0]);
    peer.write_all(b"back").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    bench.settle();
    assert_eq!(bench.names(), [""; 0], "not even the FIN, which is behind bytes");
    bench.driver.receive(token, true);
    assert_eq!(bench.received(token, 9), b"kept back");
    assert_eq!(bench.peer_finished(), token);
}

#[test]
fn pausing_between_two_reads_of_one_turn_holds_the_rest_back() {
    let mut bench = bench_with(DriverConfig { read_buffer_bytes: 4, ..DriverConfig::default() });
    let (token, mut peer) = bench.pair();
    peer.write_all(b"12345678901234").unwrap();
    wait_for_bytes(&bench.driver, token, 14);
    let mut received = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while received.len() < 14 {
        assert!(Instant::now() < deadline, "stopped after {received:?}");
        bench.driver.wait(Some(Duration::from_millis(50))).unwrap();
        if let Some(Event::Received { bytes, .. }) = bench.driver.next() {
            received.extend_from_slice(&bytes);
            bench.driver.receive(token, false);
            assert!(bench.driver.next().is_none(), "paused: the rest stays in the kernel");
            bench.driver.receive(token, true);
            assert!(bench.driver.next().is_none(), "resumed: the rest is the next turn's");
        }
    }
    assert_eq!(received, b"12345678901234");
}

#[test]
fn a_reset_is_told_while_receiving_is_off_and_ends_all_events() {
    for unread in [&b""[..], b"never read"] {
        let mut bench = bench();
        let (token, mut peer) = bench.pair();
        bench.driver.receive(token, false);
        peer.write_all(unread).unwrap();
        bench.settle();
        reset(peer);
        let (failed, error) = bench.failed();
        assert_eq!((failed, error.kind()), (token, io::ErrorKind::ConnectionReset));
        bench.driver.receive(token, true);
        bench.settle();
        assert_eq!(bench.names(), [""; 0], "a failed source is silent");
        assert_eq!(bench.driver.census().connections, 1, "and open until closed");
    }
}

#[test]
fn a_reset_comes_after_the_bytes_that_arrived_before_it() {
    let mut bench = bench();
    let (token, mut peer) = bench.pair();
    peer.write_all(b"last words").unwrap();
    wait_for_bytes(&bench.driver, token, 10);
    reset(peer);
    assert_eq!(bench.received(token, 10), b"last words");
    let (failed, error) = bench.failed();
    assert_eq!((failed, error.kind()), (token, io::ErrorKind::ConnectionReset));
}

#[test]
fn a_reset_after_the_fin_is_told_as_well() {
    let mut bench = bench();
    let (token, peer) = bench.pair();
    drop(peer);
    assert_eq!(bench.peer_finished(), token);
    assert_eq!(bench.driver.try_send(token, b"to nobody").unwrap(), 9);
    let (failed, error) = bench.failed();
    assert_eq!((failed, error.kind()), (token, io::ErrorKind::BrokenPipe));
    assert_eq!(bench.driver.try_send(token, b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_short_send_is_followed_by_sent_and_a_full_one_is_not() {
    let mut bench = bench();
    let (token, mut peer) = bench.pair();
    assert_eq!(bench.driver.try_send(token, b"all of it").unwrap(), 9);
    bench.settle();
    assert_eq!(bench.names(), [""; 0]);
    peer.read_exact(&mut [0; 9]).unwrap();

    let block: Vec<u8> = (0..1_000_000).map(|index| (index / 3) as u8).collect();
    let mut taken = 0;
    // What fits into the kernel's buffers first; then what the peer makes room for.
    loop {
        let sent_bytes = bench.driver.try_send(token, &block[taken % block.len()..]).unwrap();
        taken += sent_bytes;
        if sent_bytes == 0 {
            break;
        }
    }
    bench.settle();
    assert_eq!(bench.names(), [""; 0], "the peer has read nothing");
    let mut read = vec![0; taken];
    peer.read_exact(&mut read).unwrap();
    assert!(read.iter().enumerate().all(|(index, byte)| *byte == block[index % block.len()]));
    assert_eq!(bench.sent(), token);
    bench.settle();
    assert_eq!(bench.names(), [""; 0], "told once");
}

#[test]
fn queued_output_goes_out_in_order_across_many_short_sends() {
    let mut bench = bench();
    let (token, mut peer) = bench.pair();
    let mut output = Output::new();
    let mut expected = Vec::new();
    for index in 0..600_usize {
        let piece: Vec<u8> = (0..20_000 - index * 7).map(|offset| (index + offset) as u8).collect();
        output.push(&piece);
        expected.extend(piece);
    }
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let mut blocked = 0;
    while bench.driver.submit(token, &mut output).unwrap() == Submitted::Blocked {
        blocked += 1;
        assert_eq!(bench.sent(), token);
    }
    assert!(output.is_empty() && blocked > 0, "11 MB do not fit into a socket");
    bench.driver.shutdown_write(token).unwrap();
    assert!(reader.join().unwrap() == expected);
    assert_eq!(bench.peer_finished(), token);
}

#[test]
fn bytes_behind_urgent_data_are_not_forgotten() {
    let mut bench = bench();
    let (token, mut peer) = bench.pair();
    bench.settle();
    bench.driver.receive(token, false);
    peer.write_all(b"before ").unwrap();
    rustix::net::send(&peer, b"!", rustix::net::SendFlags::OOB).unwrap();
    peer.write_all(b"after").unwrap();
    wait_for_bytes(&bench.driver, token, 7);
    bench.settle();
    bench.driver.receive(token, true);
    assert_eq!(bench.received(token, 12), b"before after", "the urgent byte itself is ignored");
    peer.write_all(b".").unwrap();
    assert_eq!(bench.received(token, 1), b".");
}

#[test]
fn a_connection_is_made_and_what_came_with_it_is_received() {
    let mut bench = bench();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let bind_addr = Some("127.0.0.2:0".parse().unwrap());
    let token = bench.driver.connect(&ConnectSpec { addr, bind_addr }).unwrap();
    assert_eq!(bench.driver.try_send(token, b"early").unwrap_err().kind(), io::ErrorKind::NotConnected);
    let (mut peer, from) = listener.accept().unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.2");
    peer.write_all(b"welcome").unwrap();
    wait_for_bytes(&bench.driver, token, 7);
    assert_eq!(bench.connected(), token);
    assert_eq!(bench.driver.local_addr(token).unwrap(), from);
    bench.driver.receive(token, true);
    assert_eq!(bench.received(token, 7), b"welcome");
}

#[test]
fn a_refused_connection_fails_by_event_and_stays_silent() {
    let mut bench = bench();
    let unused = unused_addr();
    let token = bench.driver.connect(&ConnectSpec { addr: unused, bind_addr: None }).unwrap();
    let (failed, error) = bench.failed();
    assert_eq!((failed, error.kind()), (token, io::ErrorKind::ConnectionRefused));
    bench.settle();
    assert_eq!(bench.names(), [""; 0]);
    bench.driver.close(token, CloseKind::Orderly);
    assert_eq!(bench.driver.census(), Census::default());
}

/// Nobody listens there: the host address is these tests' own, and the kernel spreads the ports it picks.
fn unused_addr() -> SocketAddr {
    TcpListener::bind("127.99.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_connection_to_itself_is_a_refusal() {
    let mut bench = bench();
    let addr = unused_addr();
    let token = bench.driver.connect(&ConnectSpec { addr, bind_addr: Some(addr) }).unwrap();
    let reason = bench.until("Failed", |event| match event {
        Event::Failed { token: failed, error } if *failed == token => Some(error.to_string()),
        _ => None,
    });
    assert_eq!(reason, format!("connected to itself: nobody listens at {addr}"));
}

#[test]
fn a_released_connection_goes_on_under_another_driver() {
    let mut old_home = bench();
    let mut new_home = bench();
    let (token, mut peer) = old_home.pair();
    old_home.driver.receive(token, false);
    peer.write_all(b"on the way").unwrap();
    wait_for_bytes(&old_home.driver, token, 10);
    old_home.settle();
    let detached = old_home.driver.release(token).unwrap();
    let moved = new_home.driver.adopt(detached).unwrap();
    assert!(old_home.driver.release(token).is_none());
    new_home.driver.receive(moved, true);
    assert_eq!(new_home.received(moved, 10), b"on the way");
    peer.write_all(b"more").unwrap();
    assert_eq!(new_home.received(moved, 4), b"more");
    old_home.settle();
    assert_eq!(old_home.names(), [""; 0], "the old home hears no more of it");
    assert_eq!(old_home.driver.census(), Census::default());
}

#[test]
fn an_orderly_close_sends_fin_and_the_other_kind_a_reset() {
    let mut bench = bench();
    let (token, mut peer) = bench.pair();
    bench.driver.close(token, CloseKind::Orderly);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    let (token, mut peer) = bench.pair();
    bench.driver.close(token, CloseKind::Reset);
    assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_token_whose_source_is_gone_is_harmless() {
    let mut bench = bench();
    let (token, _peer) = bench.pair();
    bench.driver.close(token, CloseKind::Orderly);
    let driver = &mut bench.driver;
    driver.close(token, CloseKind::Reset);
    driver.receive(token, true);
    driver.accept(token, true);
    assert_eq!(driver.accept_queue(token), Emptied { accepted: 0, more: false });
    assert!(driver.release(token).is_none());
    let refusals = [
        driver.try_send(token, b"x").map(drop),
        driver.submit(token, &mut Output::new()).map(drop),
        driver.shutdown_write(token),
        driver.share_port(token),
        driver.refuse_handshakes(token),
        driver.set_option(token, SocketOption::NoDelay(true)),
        driver.local_addr(token).map(drop),
    ];
    for refusal in refusals {
        assert_eq!(refusal.unwrap_err().kind(), io::ErrorKind::NotConnected);
    }
    assert_eq!(driver.census(), Census::default());
}

#[test]
fn a_wake_ends_the_wait_it_meets_or_the_next_one() {
    let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
    let waker = driver.waker();
    waker.wake();
    driver.wait(None).unwrap();
    let from_elsewhere = Arc::clone(&waker);
    let other = std::thread::spawn(move || from_elsewhere.wake());
    driver.wait(None).unwrap();
    other.join().unwrap();
    assert!(driver.next().is_none(), "a wake is no event");
    drop(driver);
    waker.wake();
    assert_eq!(Arc::strong_count(&waker), 1, "the eventfd lives for the handle alone now");
}

#[test]
fn a_timeout_below_a_millisecond_sleeps_and_zero_does_not() {
    let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
    let timeout = Duration::from_micros(300);
    let begin = Instant::now();
    driver.wait(Some(timeout)).unwrap();
    assert!(begin.elapsed() >= timeout);
    assert!(driver.now() >= begin + timeout, "the clock was read at the end");
    let before = driver.now();
    driver.wait(Some(Duration::ZERO)).unwrap();
    assert!(driver.now() > before && driver.read_clock() >= before);
}

#[test]
fn leases_are_counted_until_they_are_dropped() {
    let mut bench = bench();
    let (token, mut peer) = bench.pair();
    peer.write_all(b"x").unwrap();
    assert_eq!(bench.received(token, 1), b"x");
    assert_eq!(bench.driver.census(), Census { listeners: 0, connections: 1, leases: 0 });
    peer.write_all(b"y").unwrap();
    while bench.told.is_empty() {
        bench.turn(PATIENCE);
    }
    assert_eq!(bench.driver.census().leases, 1);
    bench.told.clear();
    assert_eq!(bench.driver.census().leases, 0);
    bench.driver.close(token, CloseKind::Orderly);
}

#[test]
fn a_connection_is_small() {
    assert!(size_of::<Source>() <= 16, "{}", size_of::<Source>());
}

#[test]
fn two_drivers_draw_other_random_bits() {
    let mut drivers = [0; 2].map(|_| MioDriver::new(DriverConfig::default()).unwrap());
    let [first, second] = drivers.each_mut().map(|driver| [driver.random(), driver.random()]);
    assert_ne!(first, second);
    assert_ne!(first[0], first[1]);
}
