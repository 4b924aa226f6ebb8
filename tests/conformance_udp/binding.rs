//! Binding, starting and stopping; sharing an address.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, LazyLock, Mutex};

use shardwise::testing::{on_every_driver, on_every_driver_with};
use shardwise::{
    Config, ConnectError, Datagram, DatagramProtocol, ListenError, Result, Runtime, Shard, ShardId,
    UdpOptions, UdpSocket, UdpTransport,
};

use super::*;

#[test]
fn a_protocol_is_started_by_listening_and_stopped_after_closing_and_started_again_the_next_time() {
    on_every_driver(async |env| {
        let notes = Notes::default();
        let talk = || Talk::new(&notes, |_, _| Ok(()));
        let transport = env.shard().listen_udp("127.0.0.1:0", talk())?;
        assert_eq!(notes.all(), ["started"], "before the call returned");
        let addr = transport.local_addr()?;
        let closing = transport.close();
        assert_eq!(notes.all(), ["started"], "nothing is called from within close");
        assert!(!transport.is_open());
        drop(transport.close());
        closing.await;
        assert_eq!(notes.all(), ["started", "stopped: closed"]);
        assert!(transport.local_addr().is_err());

        let again = env.shard().listen_udp(addr, talk())?;
        assert_eq!(again.local_addr()?, addr, "the address is free again");
        again.close().await;
        assert_eq!(notes.count("started"), 2);
        assert_eq!(notes.count("stopped: closed"), 2, "told once each: {:?}", notes.all());
        Ok(())
    });
}

#[test]
fn a_protocol_that_fails_to_start_fails_the_call_and_ends_its_socket_with_that_reason() {
    on_every_driver(async |env| {
        let peer = UdpSocket::bind("127.0.0.1:0")?;
        for panics in [false, true] {
            let notes = Notes::default();
            let kept = Rc::new(RefCell::new(Vec::new()));
            let talk = || {
                let keeps = Rc::clone(&kept);
                Talk::new(&notes, move |said, transport| {
                    let Said::Started = said else { return Ok(()) };
                    keeps.borrow_mut().push(transport.clone());
                    assert!(!panics, "no");
                    Err("no".into())
                })
            };
            let listened = env.shard().listen_udp("127.0.0.1:0", talk()).unwrap_err();
            assert!(matches!(listened, ListenError::NotStarted { .. }), "{listened:?}");
            let connected = env.shard().connect_udp(peer.local_addr()?, talk()).unwrap_err();
            assert!(matches!(connected, ConnectError::NotStarted { .. }), "{connected:?}");
            for text in [listened.to_string(), connected.to_string()] {
                assert!(text.ends_with(": no"), "{text}");
            }
            notes
                .until(
                    if panics {
                        "stopped: the protocol panicked: no"
                    } else {
                        "stopped: the protocol failed: no"
                    },
                    2,
                )
                .await;
            for transport in kept.borrow().iter() {
                assert!(!transport.is_open());
                let sent = transport.try_send_to(b"x", peer.local_addr()?);
                assert!(matches!(sent, Err(shardwise::SendError::Closed)));
            }
        }
        Ok(())
    });
}

#[test]
fn an_address_in_use_and_text_that_is_none_are_told_at_the_call() {
    on_every_driver(async |env| {
        let first = env.shard().listen_udp("127.0.0.1:0", Echo)?;
        let addr = first.local_addr()?;
        let in_use =
            |error: ListenError| matches!(error, ListenError::AddressInUse { addr: told } if told == addr);
        assert!(in_use(env.shard().listen_udp(addr, Echo).unwrap_err()), "twice on one shard");
        assert!(in_use(UdpSocket::bind(addr).unwrap_err()), "a socket of its own");
        for text in ["localhost:80", "127.0.0.1", "eth0:80", ""] {
            let error = env.shard().listen_udp(text, Echo).unwrap_err();
            assert!(matches!(error, ListenError::InvalidAddress(_)), "{text}: {error:?}");
        }
        let client = UdpSocket::bind("127.0.0.1:0")?;
        echoed(&env, &client, Some(addr), b"the first one is unharmed").await?;
        Ok(())
    });
}

/// On mio alone: two simulations share no network. UDP has no listening that would stop a second socket with
/// SO_REUSEADDR, so this is where a server would lose its datagrams silently.
#[test]
fn a_second_runtime_is_told_that_the_address_is_in_use_also_by_a_group() {
    static ADDR: Mutex<Option<SocketAddr>> = Mutex::new(None);
    let listen = |addr: SocketAddr| {
        Runtime::new().shards(2).pin(false).start(async move |shard: Shard| {
            let transport = shard.listen_udp(addr, Echo)?;
            *ADDR.lock().unwrap() = Some(transport.local_addr()?);
            Ok(())
        })
    };
    let running = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = ADDR.lock().unwrap().unwrap();
    let message = listen(addr).unwrap_err().to_string();
    assert!(message.contains("address in use") && message.contains(&addr.to_string()), "{message}");
    running.stop().unwrap();
    running.join().unwrap();
}

/// Answers with the number of its shard.
struct WhereAmI;

impl DatagramProtocol for WhereAmI {
    fn datagram_received(&mut self, transport: &UdpTransport, datagram: Datagram<'_>) -> Result<()> {
        let shard = transport.shard().id();
        assert_eq!(Shard::current().id(), shard);
        let _ = transport.try_send_to(&[shard.index() as u8], datagram.source());
        Ok(())
    }
}

#[test]
fn port_zero_is_resolved_once_for_both_shards_and_each_of_a_hundred_flows_keeps_its_shard() {
    on_every_driver(async |env| {
        let here = env.shard().listen_udp("127.0.0.1:0", WhereAmI)?.local_addr()?;
        let there = env
            .handle()
            .call(ShardId::new(1), |shard: &Shard| {
                shard.listen_udp("127.0.0.1:0", WhereAmI).map(|transport| transport.local_addr())
            })
            .await???;
        assert_eq!(here, there);
        let flows = if env.is_simulated() { 20 } else { 100 };
        let mut met = BTreeMap::new();
        for _ in 0..flows {
            let client = UdpSocket::bind("127.0.0.1:0")?;
            client.connect(here)?;
            let mut shard = None;
            for round in 0..3u8 {
                let mut answer = [9];
                let answered = loop {
                    client.send(&[round]).await?;
                    match env.shard().timeout(ASK_AGAIN, client.recv_from(&mut answer)).await {
                        Ok(received) => break received?,
                        Err(_) => continue,
                    }
                };
                assert_eq!((answered.len, answered.source), (1, here));
                assert_eq!(*shard.get_or_insert(answer[0]), answer[0], "a flow keeps its shard");
            }
            *met.entry(shard).or_insert(0) += 1;
        }
        // By a hash of the ports: all on one side happens once in half a million runs of the simulation.
        assert_eq!(met.len(), 2, "both shards are met: {met:?}");
        Ok(())
    });
}

#[test]
fn closing_a_member_closes_the_group_on_every_shard() {
    on_every_driver(async |env| {
        static STOPPED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
        STOPPED.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        struct Counting;
        impl DatagramProtocol for Counting {
            fn datagram_received(&mut self, _: &UdpTransport, _: Datagram<'_>) -> Result<()> {
                Ok(())
            }
            fn stopped(&mut self, _: CloseReason) {
                STOPPED[Shard::current().id().index()].fetch_add(1, Ordering::Relaxed);
            }
        }
        let here = env.shard().listen_udp("127.0.0.1:0", Counting)?;
        let addr = here.local_addr()?;
        env.handle()
            .call(ShardId::new(1), move |shard: &Shard| shard.listen_udp(addr, Counting).map(drop))
            .await??;
        here.close().await;
        assert_eq!(STOPPED.each_ref().map(|count| count.load(Ordering::Relaxed)), [1, 1]);
        UdpSocket::bind(addr)?;
        Ok(())
    });
}

#[test]
fn ports_of_tcp_and_udp_are_numbered_apart() {
    on_every_driver(async |env| {
        let socket = env.shard().listen_udp("127.0.0.1:0", Echo)?;
        struct Nothing;
        impl shardwise::Protocol for Nothing {
            fn data_received(
                &mut self,
                _: &shardwise::Transport,
                _: &mut shardwise::Input<'_>,
            ) -> Result<()> {
                Ok(())
            }
        }
        match env.shard().listen_tcp(socket.local_addr()?, || Nothing) {
            Ok(listener) => assert_eq!(listener.local_addr(), socket.local_addr()?),
            // Somebody else's, on a real kernel.
            Err(error) => assert!(matches!(error, ListenError::AddressInUse { .. }) && !env.is_simulated()),
        }
        Ok(())
    });
}

#[test]
fn nothing_is_delivered_before_every_shard_has_started() {
    static EARLY: AtomicUsize = AtomicUsize::new(0);
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    struct Late;
    impl DatagramProtocol for Late {
        fn datagram_received(&mut self, transport: &UdpTransport, datagram: Datagram<'_>) -> Result<()> {
            if STARTED.load(Ordering::SeqCst) < 2 {
                EARLY.fetch_add(1, Ordering::SeqCst);
            }
            assert_eq!(datagram.bytes(), b"early");
            let _ = transport.shard().stop();
            Ok(())
        }
    }
    // On mio, where what comes early waits in the kernel.
    let runtime = Runtime::new().shards(2).pin(false);
    runtime
        .start(async |shard: Shard| {
            if shard.id().index() == 0 {
                let transport = shard.listen_udp("127.0.0.1:0", Late)?;
                let client = UdpSocket::bind("127.0.0.1:0")?;
                client.send_to(b"early", transport.local_addr()?).await?;
                // Turns go by.
                shard.sleep(Duration::from_millis(20)).await;
            }
            STARTED.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(EARLY.load(Ordering::SeqCst), 0);
}

#[test]
fn dropping_a_socket_frees_its_address() {
    on_every_driver(async |env| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let addr = socket.local_addr()?;
        drop(socket);
        shardwise::yield_now().await;
        let again = env.shard().listen_udp_with(addr, &UdpOptions::new().shared(false), Echo)?;
        assert_eq!(again.local_addr()?, addr);
        Ok(())
    });
}

#[test]
fn a_shared_socket_that_is_dropped_leaves_those_of_other_shards_open_and_one_that_is_closed_does_not() {
    on_every_driver(async |env| {
        let options = UdpOptions::new().shared(true);
        let here = UdpSocket::bind_with("127.0.0.1:0", &options)?;
        let addr = here.local_addr()?;
        static BOUND: AtomicUsize = AtomicUsize::new(0);
        let before = BOUND.load(Ordering::SeqCst);
        let echo = env.handle().call_async(ShardId::new(1), async move |_: Shard| -> std::io::Result<()> {
            let socket = UdpSocket::bind_with(addr, &UdpOptions::new().shared(true)).expect("shared");
            BOUND.fetch_add(1, Ordering::SeqCst);
            let mut buffer = [0; 16];
            loop {
                let received = socket.recv_from(&mut buffer).await?;
                if buffer[..received.len] == *b"close" {
                    drop(socket.transport().close());
                }
                let _ = socket.send_to(&buffer[..received.len], received.source).await;
            }
        });
        let echo = env.shard().spawn(echo);
        while BOUND.load(Ordering::SeqCst) == before {
            env.shard().sleep(Duration::from_millis(1)).await;
        }
        drop(here);
        shardwise::yield_now().await;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        echoed(&env, &client, Some(addr), b"left alone").await?;
        let again = UdpSocket::bind_with(addr, &options)?;
        assert_eq!(again.local_addr()?, addr, "whoever left may come again");
        again.transport().close().await;
        assert_eq!(echo.await??.unwrap_err().kind(), std::io::ErrorKind::NotConnected);
        Ok(())
    });
}

/// On mio alone: what has come when a simulation is stopped is a matter of its clock.
#[test]
fn a_stop_still_delivers_what_has_come_and_then_closes() {
    let mut config = Config::default();
    config.datagrams_per_turn = 4;
    on_every_driver_with(1, config, async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let notes = Notes::default();
        let talk = Talk::new(&notes, |_, _| Ok(()));
        let addr = env.shard().listen_udp("127.0.0.1:0", talk)?.local_addr()?;
        let client = std::net::UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..50 {
            client.send_to(b"waits", addr)?;
        }
        env.shard().stop()?;
        notes.until("stopped: still open when the runtime stopped", 1).await;
        assert_eq!(notes.count("waits"), 50);
        Ok(())
    });
}

/// Counts what comes to its shard; shard 1 waits within the callback for `wait`.
struct Counts {
    probed: &'static [AtomicUsize; 2],
    came: &'static [AtomicUsize; 2],
    stopped: &'static [AtomicUsize; 2],
    gate: &'static Barrier,
}

impl DatagramProtocol for Counts {
    fn datagram_received(&mut self, transport: &UdpTransport, datagram: Datagram<'_>) -> Result<()> {
        let shard = transport.shard().id().index();
        match datagram.bytes() {
            b"probe" => drop(self.probed[shard].fetch_add(1, Ordering::SeqCst)),
            b"wait" => {
                self.gate.wait();
                self.gate.wait();
            }
            _ => drop(self.came[shard].fetch_add(1, Ordering::SeqCst)),
        }
        Ok(())
    }

    fn stopped(&mut self, _: CloseReason) {
        self.stopped[Shard::current().id().index()].fetch_add(1, Ordering::SeqCst);
    }
}

/// The first shard whose own socket is quiet must not end those of the others. On mio alone: it takes two threads, one of
/// which stands still.
#[test]
fn a_stop_delivers_what_waits_at_the_socket_of_a_busy_shard_after_another_shard_has_closed_its_own() {
    static PROBED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    static CAME: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    static STOPPED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    static GATE: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(2));
    static ADDR: Mutex<Option<SocketAddr>> = Mutex::new(None);
    let running = Runtime::new().shards(2).pin(false).start(async |shard: Shard| {
        let counts = Counts { probed: &PROBED, came: &CAME, stopped: &STOPPED, gate: &GATE };
        let transport = shard.listen_udp("127.0.0.1:0", counts)?;
        *ADDR.lock().unwrap() = Some(transport.local_addr()?);
        Ok(())
    });
    let running = running.unwrap();
    let addr = ADDR.lock().unwrap().unwrap();
    let at = |counts: &[AtomicUsize; 2], shard: usize| counts[shard].load(Ordering::SeqCst);
    // A client whose datagrams go to shard 1.
    let client = loop {
        let before = at(&PROBED, 0) + at(&PROBED, 1);
        let before_there = at(&PROBED, 1);
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"probe", addr).unwrap();
        while at(&PROBED, 0) + at(&PROBED, 1) == before {
            std::thread::yield_now();
        }
        if at(&PROBED, 1) > before_there {
            break client;
        }
    };
    client.send_to(b"wait", addr).unwrap();
    GATE.wait();
    for _ in 0..100 {
        client.send_to(b"waits", addr).unwrap();
    }
    running.handle().stop().unwrap();
    while at(&STOPPED, 0) == 0 {
        std::thread::yield_now();
    }
    GATE.wait();
    running.join().unwrap();
    assert_eq!((at(&CAME, 1), at(&STOPPED, 1)), (100, 1));
}
