//! Connections of a simulated world: how they end, and how bytes move.

use super::*;

// The end of a connection.

#[test]
fn fin_comes_after_all_bytes_once_and_each_direction_ends_alone() {
    for seed in 0..50 {
        let mut bench = rough(seed);
        let Ends { client, server } = bench.connected();
        let question: Vec<u8> = (0..100_000u32).map(|byte| byte as u8).collect();
        bench.send_all(CLIENT, client, &question);
        bench.drivers[CLIENT].shutdown_write(client).unwrap();
        bench.drivers[CLIENT].shutdown_write(client).expect("shutting down twice is no error");
        assert_eq!(kind(bench.drivers[CLIENT].try_send(client, b"more")), io::ErrorKind::BrokenPipe);
        bench.run();
        assert!(bench.received(SERVER, server) == question, "seed {seed}");
        assert_eq!(bench.saw(SERVER, &Told::PeerFinished(server)), 1);
        let last = bench
            .told
            .iter()
            .rposition(|(_, told)| matches!(told, Told::Received(token, _) if *token == server));
        let fin = bench.told.iter().position(|(_, told)| *told == Told::PeerFinished(server));
        assert!(last < fin, "seed {seed}: bytes after FIN");

        bench.send_all(SERVER, server, b"the answer to a half-closed peer");
        bench.drivers[SERVER].close(server, CloseKind::Orderly);
        bench.run();
        assert_eq!(bench.received(CLIENT, client), b"the answer to a half-closed peer");
        assert_eq!(bench.saw(CLIENT, &Told::PeerFinished(client)), 1);
        assert_eq!(bench.failures(CLIENT, client), []);
        bench.drivers[CLIENT].close(client, CloseKind::Orderly);
        assert_eq!(
            bench.world.census(),
            WorldCensus { packets: bench.world.census().packets, ..Default::default() }
        );
        bench.finish();
    }
}

#[test]
fn an_orderly_close_with_nothing_unread_is_fin_and_with_something_unread_is_reset() {
    for unread in [false, true] {
        let mut bench = Bench::calm();
        let Ends { client, server } = bench.connected();
        bench.drivers[SERVER].receive(server, false);
        if unread {
            bench.send_all(CLIENT, client, b"never read");
        }
        bench.drivers[SERVER].close(server, CloseKind::Orderly);
        bench.run();
        assert_eq!(bench.saw(CLIENT, &Told::PeerFinished(client)), usize::from(!unread));
        let expected = if unread { vec![io::ErrorKind::ConnectionReset] } else { vec![] };
        assert_eq!(bench.failures(CLIENT, client), expected);
        bench.finish();
    }
}

#[test]
fn a_reset_is_told_once_whether_receiving_is_on_or_off() {
    for receiving in [true, false] {
        let mut bench = rough(8);
        let Ends { client, server } = bench.connected();
        bench.drivers[CLIENT].receive(client, receiving);
        bench.drivers[SERVER].close(server, CloseKind::Reset);
        bench.run();
        assert_eq!(bench.told, [(CLIENT, Told::Failed(client, io::ErrorKind::ConnectionReset))]);
        assert_eq!(kind(bench.drivers[CLIENT].try_send(client, b"x")), io::ErrorKind::ConnectionReset);
        assert_eq!(kind(bench.drivers[CLIENT].try_send(client, b"x")), io::ErrorKind::BrokenPipe);
        assert_eq!(kind(bench.drivers[CLIENT].shutdown_write(client)), io::ErrorKind::NotConnected);
        bench.drivers[CLIENT].receive(client, !receiving);
        bench.run();
        assert_eq!(bench.told.len(), 1, "silent until it is closed");
        bench.finish();
    }
}

#[test]
fn bytes_that_came_before_a_reset_are_received_first_unless_receiving_is_off() {
    for receiving in [true, false] {
        let mut bench = Bench::calm();
        let Ends { client, server } = bench.connected();
        bench.drivers[CLIENT].receive(client, receiving);
        bench.send_all(SERVER, server, b"last words");
        bench.drivers[SERVER].close(server, CloseKind::Reset);
        bench.run();
        assert_eq!(bench.received(CLIENT, client), if receiving { &b"last words"[..] } else { b"" });
        assert_eq!(bench.failures(CLIENT, client), [io::ErrorKind::ConnectionReset]);
        bench.finish();
    }
}

#[test]
fn writing_to_a_peer_that_has_closed_is_answered_with_a_reset() {
    let mut bench = Bench::calm();
    let Ends { client, server } = bench.connected();
    bench.drivers[SERVER].close(server, CloseKind::Orderly);
    bench.run();
    assert_eq!(bench.drivers[CLIENT].try_send(client, b"anybody there?").unwrap(), 14);
    bench.run();
    assert_eq!(
        bench.told,
        [(CLIENT, Told::PeerFinished(client)), (CLIENT, Told::Failed(client, io::ErrorKind::BrokenPipe)),]
    );
    bench.finish();
}

#[test]
fn a_lossy_reset_destroys_bytes_under_way_and_never_tells_a_fin_after_them() {
    let mut lost = 0;
    for seed in 0..200 {
        let mut bench = rough(seed);
        let Ends { client, server } = bench.connected();
        let taken = bench.drivers[SERVER].try_send(server, &[7; 10_000]).unwrap();
        bench.drivers[SERVER].shutdown_write(server).unwrap();
        bench.drivers[SERVER].close(server, CloseKind::Reset);
        bench.run();
        let received = bench.received(CLIENT, client).len();
        let finished = bench.saw(CLIENT, &Told::PeerFinished(client)) == 1;
        assert!(received == taken || !finished, "seed {seed}: a FIN after {received} of {taken} bytes");
        assert_eq!(bench.failures(CLIENT, client).len(), 1, "seed {seed}");
        lost += usize::from(received < taken);
        bench.finish();
    }
    assert!((20..180).contains(&lost), "{lost} of 200 resets lost bytes");
}

// Sending and receiving.

#[test]
fn a_full_pipe_takes_a_part_and_sent_follows_when_it_is_read() {
    let mut bench = Bench::calm();
    let Ends { client, server } = bench.connected();
    bench.drivers[SERVER].receive(server, false);
    let bytes = vec![9; 1 << 20];
    let taken = bench.drivers[CLIENT].try_send(client, &bytes).unwrap();
    assert!((64 << 10..=256 << 10).contains(&taken), "{taken}");
    assert_eq!(bench.drivers[CLIENT].try_send(client, &bytes).unwrap(), 0);
    bench.run();
    assert_eq!(bench.told, [], "still full");
    bench.drivers[SERVER].receive(server, true);
    bench.run();
    assert_eq!(bench.saw(CLIENT, &Told::Sent(client)), 1);
    assert!(bench.drivers[CLIENT].try_send(client, &bytes).unwrap() > 0);
    bench.finish();
}

#[test]
fn receiving_off_stops_bytes_and_fin_but_for_one_late_chunk() {
    let mut late = 0;
    for seed in 0..200 {
        let mut bench = rough(seed);
        let Ends { client, server } = bench.connected();
        bench.send_all(CLIENT, client, &[3; 5_000]);
        bench.drivers[CLIENT].shutdown_write(client).unwrap();
        bench.world.advance_to(bench.world.now() + Duration::from_millis(1));
        bench.drivers[SERVER].receive(server, false);
        bench.told.clear();
        bench.run();
        let events = bench.told.iter().filter(|(shard, _)| *shard == SERVER).count();
        assert!(events <= 1, "seed {seed}: {:?}", bench.told);
        assert!(!bench.world.has_events(SERVER));
        late += events;
        bench.drivers[SERVER].receive(server, true);
        bench.run();
        assert_eq!(bench.received(SERVER, server), [3; 5_000], "seed {seed}");
        assert_eq!(bench.saw(SERVER, &Told::PeerFinished(server)), 1, "seed {seed}");
        bench.finish();
    }
    assert!((10..120).contains(&late), "{late} late chunks in 200 runs");
}

#[test]
fn short_sends_are_always_followed_by_sent() {
    let faults = Faults { short_send: 0.5, refused_send: 0.4, ..Faults::default() };
    let mut bench = Bench::new(12, SimOptions { faults, ..SimOptions::default() });
    let Ends { client, server } = bench.connected();
    let mut sent = Vec::new();
    for round in 0..300u32 {
        let bytes = vec![round as u8; 1 + round as usize * 17 % 900];
        bench.send_all(CLIENT, client, &bytes);
        sent.extend(bytes);
    }
    bench.run();
    assert!(bench.received(SERVER, server) == sent);
    bench.finish();
}

#[test]
fn a_lease_that_is_held_counts_until_it_is_dropped() {
    let mut bench = Bench::calm();
    let Ends { client, server } = bench.connected();
    for bytes in [&b"small"[..], &[5; 50_000]] {
        bench.send_all(CLIENT, client, bytes);
        bench.drivers[SERVER].wait(None).unwrap();
        let Some(Event::Received { token, bytes: held }) = bench.drivers[SERVER].next() else {
            panic!("bytes came")
        };
        let held: Lease = held;
        assert_eq!(token, server);
        assert_eq!(bench.drivers[SERVER].census().leases, 1);
        bench.send_all(CLIENT, client, b"overwrites nothing");
        bench.run();
        assert_eq!(&*held, bytes);
        drop(held);
        assert_eq!(bench.drivers[SERVER].census().leases, 0);
    }
    bench.finish();
}

#[test]
fn tokens_of_closed_sources_find_nothing() {
    let mut bench = Bench::calm();
    let Ends { client, server } = bench.connected();
    bench.send_all(SERVER, server, b"on its way");
    let driver = &mut bench.drivers[CLIENT];
    driver.close(client, CloseKind::Orderly);
    driver.close(client, CloseKind::Orderly);
    driver.receive(client, true);
    assert_eq!(kind(driver.try_send(client, b"x")), io::ErrorKind::NotConnected);
    assert_eq!(kind(driver.submit(client, &mut Output::new())), io::ErrorKind::NotConnected);
    assert_eq!(kind(driver.shutdown_write(client)), io::ErrorKind::NotConnected);
    assert_eq!(kind(driver.local_addr(client)), io::ErrorKind::NotConnected);
    assert_eq!(kind(driver.share_port(client)), io::ErrorKind::NotConnected);
    assert_eq!(kind(driver.set_option(client, SocketOption::NoDelay(true))), io::ErrorKind::NotConnected);
    assert_eq!(driver.accept_queue(client).accepted, 0);
    assert!(driver.release(client).is_none());
    bench.run();
    assert!(bench.told.iter().all(|(shard, _)| *shard == SERVER), "{:?}", bench.told);
    bench.finish();
}
