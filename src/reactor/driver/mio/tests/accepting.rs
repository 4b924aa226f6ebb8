//! The driver's listeners against the real kernel: budgets, queues handed over, descriptors running out.

use super::super::listener::RETRY_INTERVAL;
use super::*;

#[test]
fn accepting_is_capped_per_turn_and_nobody_is_lost() {
    let mut bench = bench();
    let (listener, addr) = bench.driver.listen(&ListenSpec { accepts_per_turn: 2, ..any_port() }).unwrap();
    let _peers: Vec<_> = (0..5).map(|_| peer(addr)).collect();
    bench.settle();
    assert_eq!(bench.names(), [""; 0], "not switched on yet");
    bench.driver.accept(listener, true);
    let mut per_turn = Vec::new();
    while per_turn.iter().sum::<usize>() < 5 {
        bench.turn(PATIENCE);
        per_turn.push(bench.told.drain(..).count());
    }
    assert_eq!(per_turn, [2, 2, 1]);
}

#[test]
fn a_connection_that_came_while_accepting_was_off_is_accepted_later() {
    let mut bench = bench();
    let (listener, addr) = bench.listener();
    let _first = peer(addr);
    bench.accepted();
    bench.driver.accept(listener, false);
    let second = peer(addr);
    bench.settle();
    assert_eq!(bench.names(), [""; 0]);
    bench.driver.accept(listener, true);
    bench.until("Accepted", |event| match event {
        Event::Accepted { peer, .. } => (*peer == second.local_addr().unwrap()).then_some(()),
        _ => None,
    });
}

#[test]
fn accepted_connections_have_nodelay_and_keepalive() {
    let mut bench = bench();
    let (token, _peer) = bench.pair();
    let socket = bench.driver.sources.get(token).unwrap().socket().unwrap();
    use rustix::net::sockopt;
    assert!(sockopt::tcp_nodelay(socket).unwrap());
    assert!(sockopt::socket_keepalive(socket).unwrap());
    assert_eq!(sockopt::tcp_keepidle(socket).unwrap(), Duration::from_secs(60));
    assert_eq!(sockopt::tcp_keepintvl(socket).unwrap(), Duration::from_secs(10));
    assert_eq!(sockopt::tcp_keepcnt(socket).unwrap(), 6);
    assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), 90_000);
    bench.driver.set_option(token, SocketOption::NoDelay(false)).unwrap();
    bench.driver.set_option(token, SocketOption::KeepAlive(false)).unwrap();
    let socket = bench.driver.sources.get(token).unwrap().socket().unwrap();
    assert!(!sockopt::tcp_nodelay(socket).unwrap());
    assert!(!sockopt::socket_keepalive(socket).unwrap());
}

#[test]
fn a_member_that_closes_after_its_queue_was_accepted_resets_nobody() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let mut leaving = bench();
        let mut staying = bench();
        let spec = ListenSpec { addr: host.parse().unwrap(), ..any_port() };
        let (first, addr) = leaving.driver.listen(&spec).unwrap();
        leaving.driver.share_port(first).unwrap();
        let (second, _) = staying.driver.listen(&ListenSpec { addr, join: true, ..spec }).unwrap();
        let mut peers: Vec<_> = (0..60).map(|_| peer(addr)).collect();
        for peer in &mut peers {
            peer.write_all(b"?").unwrap();
        }

        leaving.driver.refuse_handshakes(first).unwrap();
        let taken = leaving.driver.accept_queue(first).accepted;
        leaving.driver.close(first, CloseKind::Orderly);
        staying.driver.accept(second, true);

        let mut of_leaving = Vec::new();
        for (bench, count, tokens) in
            [(&mut leaving, taken, &mut of_leaving), (&mut staying, 60 - taken, &mut Vec::new())]
        {
            for _ in 0..count {
                let token = bench.accepted();
                bench.driver.receive(token, true);
                assert_eq!(bench.received(token, 1), b"?");
                assert_eq!(bench.driver.try_send(token, b"!").unwrap(), 1);
                tokens.push(token);
            }
        }
        for peer in &mut peers {
            let mut answer = [0];
            peer.read_exact(&mut answer).unwrap();
        }
        assert!(taken > 0 && taken < 60, "both members had their share: {taken} of 60");
        assert_eq!(of_leaving.len(), taken);
    }
}

#[test]
fn out_of_descriptors_nobody_is_lost_and_nothing_spins() {
    // The limit is the process's, and other tests run in this one: do it in a child.
    const IN_CHILD: &str = "SHARDWISE_TEST_OUT_OF_DESCRIPTORS";
    if std::env::var_os(IN_CHILD).is_none() {
        let module = module_path!().split_once("::").unwrap().1;
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .arg("--exact")
            .arg(format!("{module}::out_of_descriptors_nobody_is_lost_and_nothing_spins"))
            .env(IN_CHILD, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
        return;
    }
    let mut bench = bench();
    let (listener, addr) = bench.driver.listen(&any_port()).unwrap();
    let mut peers: Vec<_> = (0..3).map(|_| peer(addr)).collect();
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(64);
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut ballast: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();

    bench.driver.accept(listener, true);
    let begin = Instant::now();
    for _ in 0..6 {
        // One turn makes one futile call at most, and sleeps until the retry.
        bench.turn(PATIENCE);
    }
    assert!(begin.elapsed() >= Duration::from_millis(450), "six tries in {:?}", begin.elapsed());
    let told = bench.names();
    assert!(told.iter().all(|name| *name == "AcceptFailed"), "{told:?}");
    assert!(!told.is_empty() && told.len() as u64 <= 1 + begin.elapsed().as_secs(), "once a second");
    let failed_at = |bench: &Bench| bench.driver.shortage.times.as_ref().unwrap().failed_at;
    let last_try = failed_at(&bench);
    while bench.driver.now() < last_try + Duration::from_millis(50) {
        bench.turn(Duration::ZERO);
        let is_early = bench.driver.now() < last_try + RETRY_INTERVAL;
        assert!(!is_early || failed_at(&bench) == last_try, "a busy shard does not try in every turn");
    }
    bench.told.clear();

    // Freed behind the driver's back: the retry finds out.
    ballast.pop();
    let first = bench.accepted();
    bench.settle();
    // Closed by the driver: it tries again at once. The third is served after the second.
    bench.driver.close(first, CloseKind::Orderly);
    let second = bench.accepted();
    bench.driver.close(second, CloseKind::Orderly);
    let third = bench.accepted();
    bench.told.clear();
    for _ in 0..2 {
        bench.turn(Duration::from_millis(120));
    }
    assert_eq!(bench.names(), [""; 0], "still none free, but nobody waits");
    assert!(bench.driver.shortage.listeners.is_empty(), "so there is nothing to try again");
    assert_eq!(bench.driver.try_send(third, b"!").unwrap(), 1);
    let answers: Vec<_> = peers.iter_mut().map(|peer| peer.read(&mut [0; 2]).unwrap()).collect();
    assert_eq!(answers, [0, 0, 1]);
}
