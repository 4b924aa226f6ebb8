//! Datagram sockets and watched descriptors at the seam: what the driver alone can be seen to do.

use std::os::unix::net::UnixStream;

use super::*;
use crate::reactor::driver::datagrams::{DatagramDriver, DatagramEvent, DatagramSpec, SentSegments};
use crate::reactor::driver::watching::{Ready, Wanted, WatchDriver};
use crate::sys::socket::Reuse;

fn spec(datagrams_per_turn: usize) -> DatagramSpec {
    DatagramSpec {
        addr: "127.0.0.1:0".parse().unwrap(),
        reuse: Reuse::No,
        datagram_bytes_max: 2000,
        joined: false,
        receive_buffer_bytes: None,
        send_buffer_bytes: None,
        datagrams_per_turn,
        bytes_per_turn: 1 << 20,
    }
}

/// The sizes of the batches of one turn.
fn batches(driver: &mut MioDriver) -> Vec<usize> {
    driver.wait(Some(Duration::ZERO)).unwrap();
    let mut sizes = Vec::new();
    while let Some(event) = driver.next() {
        let Event::Datagram { event: DatagramEvent::Received(batch), .. } = event else {
            panic!("{}", name(&event))
        };
        sizes.push(batch.len());
    }
    sizes
}

#[test]
fn an_event_is_no_larger_for_the_sake_of_datagrams() {
    assert!(size_of::<Event>() <= 56, "{} bytes", size_of::<Event>());
    assert!(size_of::<DatagramEvent>() <= 24, "{} bytes", size_of::<DatagramEvent>());
}

#[test]
fn datagrams_come_in_growing_batches_within_the_budget_and_what_is_left_in_the_next_turn() {
    let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
    let (token, addr) = driver.bind_datagram(&spec(20)).unwrap();
    driver.receive(token, true);
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..50 {
        client.send_to(b"x", addr).unwrap();
    }
    assert_eq!(batches(&mut driver), [2, 4, 8, 6]);
    assert_eq!(batches(&mut driver), [16, 4]);
    assert_eq!(batches(&mut driver), [10], "a short one is the end, without another call");
    assert_eq!(batches(&mut driver).len(), 0);
    assert_eq!(driver.census().leases, 0);
    driver.close(token, CloseKind::Orderly);
    assert_eq!(driver.census().connections, 0);
}

/// Asked for writability, epoll would tell after every datagram that has left.
#[test]
fn sending_wakes_nobody() {
    let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
    let (token, _) = driver.bind_datagram(&spec(20)).unwrap();
    driver.receive(token, true);
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    driver.wait(Some(Duration::ZERO)).unwrap();
    while driver.next().is_some() {}
    for _ in 0..3 {
        driver.send_datagram(token, b"x", Some(nobody.local_addr().unwrap())).unwrap();
        driver.wait(Some(Duration::ZERO)).unwrap();
        assert!(!driver.has_ready());
    }
}

#[test]
fn an_armed_descriptor_is_told_once_and_at_once_when_it_is_armed_again() {
    let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let watched = driver.watch(ours.as_fd()).unwrap();
    assert!(!watched.always_ready);
    let reading = Wanted { readable: true, writable: false };
    driver.arm(watched.token, reading).unwrap();
    std::io::Write::write_all(&mut theirs, b"x").unwrap();
    let told = |driver: &mut MioDriver| {
        driver.wait(Some(Duration::ZERO)).unwrap();
        driver.next().map(|event| match event {
            Event::Ready { ready, .. } => ready,
            other => panic!("{}", name(&other)),
        })
    };
    let readable = Ready { readable: true, writable: false, hung_up: false };
    assert_eq!(told(&mut driver), Some(readable));
    std::io::Write::write_all(&mut theirs, b"y").unwrap();
    assert_eq!(told(&mut driver), None, "it has not been armed again");
    driver.arm(watched.token, reading).unwrap();
    assert_eq!(told(&mut driver), Some(readable));
    driver.arm(watched.token, reading).unwrap();
    driver.arm(watched.token, Wanted::NOTHING).unwrap();
    assert_eq!(told(&mut driver), None);
    driver.close(watched.token, CloseKind::Orderly);
    assert_eq!(driver.census().connections, 0);
}

#[test]
fn a_regular_file_is_known_to_be_always_ready() {
    let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let watched = driver.watch(file.as_fd()).unwrap();
    assert!(watched.always_ready);
    driver.close(watched.token, CloseKind::Orderly);
}

#[test]
fn a_send_to_an_address_that_is_none_says_so_and_the_kernel_goes_on_cutting() {
    let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
    let (token, _) = driver.bind_datagram(&spec(20)).unwrap();
    let nowhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let SentSegments { sent_bytes, stopped_by } = driver.send_segments(token, &[0; 300], 100, Some(nowhere));
    assert_eq!((sent_bytes, stopped_by.unwrap().kind()), (0, io::ErrorKind::InvalidInput));
    let Some(Source::Datagram(source)) = driver.sources.get(token) else { panic!("it is there") };
    assert!(!source.cannot_segment);
    driver.close(token, CloseKind::Orderly);
}

#[test]
fn joined_datagrams_count_one_by_one_in_a_turn() {
    let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
    let (token, addr) = driver.bind_datagram(&DatagramSpec { joined: true, ..spec(20) }).unwrap();
    driver.receive(token, true);
    let (sender, _) = driver.bind_datagram(&spec(20)).unwrap();
    for _ in 0..10 {
        let sent = driver.send_segments(sender, &[7; 12], 1, Some(addr));
        assert_eq!(sent.sent_bytes, 12);
    }
    for _ in 0..10 {
        assert_eq!(batches(&mut driver), [12], "a second message could go beyond 20");
    }
    assert_eq!(batches(&mut driver).len(), 0);
    for socket in [token, sender] {
        driver.close(socket, CloseKind::Orderly);
    }
}

#[test]
fn what_strangers_sent_before_a_socket_was_connected_can_be_dropped() {
    let mut driver = MioDriver::new(DriverConfig::default()).unwrap();
    let (token, addr) = driver.bind_datagram(&spec(20)).unwrap();
    let (stranger, peer) = [0, 1].map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).into();
    for bytes in [&b"forged"[..], b"", b"forged, too"] {
        stranger.send_to(bytes, addr).unwrap();
    }
    driver.connect_datagram(token, peer.local_addr().unwrap()).unwrap();
    driver.discard_datagrams(token);
    stranger.send_to(b"forged again", addr).unwrap();
    driver.receive(token, true);
    assert_eq!(batches(&mut driver).len(), 0);
    peer.send_to(b"true", addr).unwrap();
    assert_eq!(batches(&mut driver), [1]);
    driver.close(token, CloseKind::Orderly);
}
