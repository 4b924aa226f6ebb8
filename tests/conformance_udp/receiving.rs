//! Receiving: every datagram as it was sent, in bounded turns, whatever goes wrong with one of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::ErrorKind;

use shardwise::testing::{on_every_driver, on_every_driver_with};
use shardwise::{Config, UdpOptions};

use super::*;

#[test]
fn datagrams_go_round_connected_and_not_over_v4_and_v6() {
    on_every_driver(async |env| {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let addr = env.shard().listen_udp(host, Echo)?.local_addr()?;
            let client = UdpSocket::bind(host)?;
            let received = echoed(&env, &client, Some(addr), b"unconnected").await?;
            assert_eq!((received.source, received.truncated), (addr, false));
            client.connect(addr)?;
            echoed(&env, &client, None, b"connected").await?;
            assert_eq!(client.transport().peer_addr(), Some(addr));

            // The same by a protocol.
            let notes = Notes::default();
            let talk = Talk::new(&notes, |_, _| Ok(()));
            let transport = env.shard().connect_udp(addr, talk)?;
            while notes.count("event style") == 0 {
                transport.send(b"event style").await?;
                env.shard().sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    });
}

#[test]
fn an_empty_datagram_is_delivered() {
    on_every_driver(async |env| {
        let addr = env.shard().listen_udp("127.0.0.1:0", Echo)?.local_addr()?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        let received = echoed(&env, &client, Some(addr), b"").await?;
        assert_eq!(received.len, 0);
        Ok(())
    });
}

#[test]
fn the_longest_datagram_goes_round_whole() {
    on_every_driver(async |env| {
        let addr = env.shard().listen_udp("127.0.0.1:0", Echo)?.local_addr()?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        let bytes: Vec<u8> = (0..65_507u32).map(|index| (index % 251) as u8).collect();
        let received = echoed(&env, &client, Some(addr), &bytes).await?;
        assert_eq!((received.len, received.truncated), (65_507, false));
        Ok(())
    });
}

#[test]
fn what_is_cut_says_so() {
    on_every_driver(async |env| {
        let notes = Notes::default();
        let talk = Talk::new(&notes, |said, transport| {
            let Said::Datagram(datagram) = said else { return Ok(()) };
            let answer = format!("{} {}", datagram.bytes().len(), datagram.is_truncated());
            let _ = transport.try_send_to(answer.as_bytes(), datagram.source());
            Ok(())
        });
        let options = UdpOptions::new().datagram_bytes_max(10);
        let addr = env.shard().listen_udp_with("127.0.0.1:0", &options, talk)?.local_addr()?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        ask(&env, &client, Some(addr), &[b'x'; 100], b"10 true").await?;
        ask(&env, &client, Some(addr), &[b'x'; 10], b"10 false").await?;
        assert!(env.handle().report()[0].datagrams_truncated >= 1);

        // By a task's buffer.
        let sender = UdpSocket::bind("127.0.0.1:0")?;
        let to = client.local_addr()?;
        let mut small = [0; 4];
        let received = loop {
            sender.send_to(b"longer", to).await?;
            match env.shard().timeout(ASK_AGAIN, client.recv_from(&mut small)).await {
                Ok(Ok(received)) if received.source == sender.local_addr()? => break received,
                _ => continue,
            }
        };
        assert_eq!((received.len, received.truncated, &small), (4, true, b"long"));
        Ok(())
    });
}

#[test]
fn a_connected_socket_is_told_of_a_refusal_and_goes_on() {
    on_every_driver(async |env| {
        // Its port is free once it is closed.
        let gone = UdpSocket::bind("127.0.0.1:0")?;
        let addr = gone.local_addr()?;
        drop(gone);
        shardwise::yield_now().await;

        let notes = Notes::default();
        let transport = env.shard().connect_udp(addr, Talk::new(&notes, |_, _| Ok(())))?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        client.connect(addr)?;
        let mut refused = 0;
        while notes.count("refused") < 2 || refused < 2 {
            // A send says nothing about an earlier one.
            transport.send(b"anybody?").await?;
            client.send(b"anybody?").await?;
            let answer = env.shard().timeout(ASK_AGAIN, client.recv_from(&mut [0; 9])).await;
            if let Ok(answer) = answer {
                assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused);
                refused += 1;
            }
        }
        assert!(transport.is_open());
        let _back = env.shard().listen_udp(addr, Echo)?;
        loop {
            client.send(b"now").await?;
            match env.shard().timeout(ASK_AGAIN, client.recv_from(&mut [0; 9])).await {
                Ok(Ok(received)) => break assert!(received.len == 3 || received.len == 8, "an echo"),
                // Refusals of before.
                Ok(Err(error)) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
                Err(_) => {}
            }
        }
        Ok(())
    });
}

#[test]
fn an_unconnected_socket_does_not_care_about_refusals() {
    on_every_driver(async |env| {
        let gone = UdpSocket::bind("127.0.0.1:0")?;
        let nobody = gone.local_addr()?;
        drop(gone);
        shardwise::yield_now().await;
        let notes = Notes::default();
        let talk = Talk::new(&notes, |said, transport| {
            if let Said::Datagram(datagram) = said {
                let _ = transport.try_send_to(datagram.bytes(), datagram.source());
            }
            Ok(())
        });
        let server = env.shard().listen_udp("127.0.0.1:0", talk)?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..10 {
            server.send_to(b"anybody?", nobody).await?;
            client.send_to(b"anybody?", nobody).await?;
        }
        echoed(&env, &client, Some(server.local_addr()?), b"still here").await?;
        assert_eq!(notes.count("refused"), 0);
        Ok(())
    });
}

#[test]
fn a_failing_callback_costs_its_datagram_alone() {
    on_every_driver(async |env| {
        let notes = Notes::default();
        let talk = Talk::new(&notes, |said, transport| {
            let Said::Datagram(datagram) = said else { return Ok(()) };
            match datagram.bytes() {
                b"fail" => Err("as asked".into()),
                b"panic" => panic!("as asked"),
                bytes => {
                    let _ = transport.try_send_to(bytes, datagram.source());
                    Ok(())
                }
            }
        });
        let addr = env.shard().listen_udp("127.0.0.1:0", talk)?.local_addr()?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        while notes.count("fail") == 0 || notes.count("panic") == 0 {
            for bytes in [&b"fail"[..], b"panic", b"good"] {
                client.send_to(bytes, addr).await?;
            }
            env.shard().sleep(Duration::from_millis(5)).await;
        }
        echoed(&env, &client, Some(addr), b"still good").await?;
        let report = &env.handle().report()[0];
        assert_eq!(report.datagrams_failed as usize, notes.count("fail") + notes.count("panic"));
        assert_eq!(report.panics as usize, notes.count("panic"));
        Ok(())
    });
}

#[test]
fn closing_in_the_callback_stops_the_burst() {
    on_every_driver(async |env| {
        let notes = Notes::default();
        let talk = Talk::new(&notes, |said, transport| {
            if let Said::Datagram(_) = said {
                drop(transport.close());
                drop(transport.close());
            }
            Ok(())
        });
        let addr = env.shard().listen_udp("127.0.0.1:0", talk)?.local_addr()?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        while notes.count("stopped: closed") == 0 {
            for _ in 0..10 {
                client.send_to(b"burst", addr).await?;
            }
            env.shard().sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(notes.all(), ["started", "burst", "stopped: closed"]);
        Ok(())
    });
}

#[test]
fn a_socket_takes_no_more_than_its_share_of_a_turn() {
    let mut config = Config::default();
    config.datagrams_per_turn = 8;
    on_every_driver_with(1, config, async |env| {
        let turns: Rc<RefCell<BTreeMap<_, usize>>> = Rc::default();
        let notes = Notes::default();
        let seen = Rc::clone(&turns);
        let talk = Talk::new(&notes, move |said, transport| {
            if let Said::Datagram(_) = said {
                // Between turns the clock is read.
                *seen.borrow_mut().entry(transport.shard().now()).or_insert(0) += 1;
            }
            Ok(())
        });
        let addr = env.shard().listen_udp("127.0.0.1:0", talk)?.local_addr()?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..100 {
            client.send_to(b"flood", addr).await?;
        }
        // A twentieth gets lost, and as many come twice.
        let least = if env.is_simulated() { 60 } else { 100 };
        notes.until("flood", least).await;
        if !env.is_simulated() {
            // There the clock stands still while turns go by.
            let most = turns.borrow().values().copied().max();
            assert_eq!(most, Some(8), "{:?}", turns.borrow().values());
        }
        Ok(())
    });
}

#[test]
fn a_bounded_number_of_bytes_is_taken_in_a_turn() {
    let mut config = Config::default();
    config.datagram_bytes_per_turn = 10_000;
    on_every_driver_with(1, config, async |env| {
        if env.is_simulated() {
            // Its clock stands still while turns go by, so they cannot be told apart from here.
            return Ok(());
        }
        let turns: Rc<RefCell<BTreeMap<_, usize>>> = Rc::default();
        let count = Rc::new(Cell::new(0));
        let notes = Notes::default();
        let (seen, counted) = (Rc::clone(&turns), Rc::clone(&count));
        let talk = Talk::new(&notes, move |said, transport| {
            if let Said::Datagram(datagram) = said {
                *seen.borrow_mut().entry(transport.shard().now()).or_insert(0) += datagram.bytes().len();
                counted.set(counted.get() + 1);
            }
            Ok(())
        });
        let addr = env.shard().listen_udp("127.0.0.1:0", talk)?.local_addr()?;
        let client = std::net::UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..20 {
            client.send_to(&[b'x'; 4000], addr)?;
        }
        notes.until(&"x".repeat(4000), 20).await;
        // One batch is begun with room left: 16 of them at the most.
        assert!(
            turns.borrow().values().all(|bytes| *bytes <= 10_000 + 16 * 4000),
            "{:?}",
            turns.borrow().values()
        );
        assert!(turns.borrow().len() > 1);
        Ok(())
    });
}

#[test]
fn giving_up_a_receive_loses_nothing() {
    on_every_driver(async |env| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        let to = socket.local_addr()?;
        let mut buffer = [0; 8];
        for _ in 0..20 {
            let given_up = env.shard().timeout(Duration::ZERO, socket.recv_from(&mut buffer)).await;
            assert!(given_up.is_err(), "nothing was sent");
            client.send_to(b"one", to).await?;
            client.send_to(b"two", to).await?;
            env.shard().sleep(Duration::from_millis(5)).await;
            let mut came = Vec::new();
            while let Ok(received) =
                env.shard().timeout(Duration::from_millis(1), socket.recv_from(&mut buffer)).await
            {
                came.push(buffer[..received?.len].to_vec());
            }
            if !env.is_simulated() {
                assert_eq!(came, [b"one", b"two"]);
            }
        }
        Ok(())
    });
}

#[test]
fn several_tasks_may_wait_at_one_socket() {
    on_every_driver(async |env| {
        let socket = Rc::new(UdpSocket::bind("127.0.0.1:0")?);
        let addr = socket.local_addr()?;
        let notes = Notes::default();
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let (socket, notes) = (Rc::clone(&socket), notes.clone());
                env.shard().spawn(async move {
                    let received = socket.recv_from(&mut [0; 8]).await;
                    notes.add("received");
                    received.map(|received| received.len)
                })
            })
            .collect();
        let client = UdpSocket::bind("127.0.0.1:0")?;
        while notes.count("received") < 3 {
            client.send_to(b"five!", addr).await?;
            env.shard().sleep(Duration::from_millis(1)).await;
        }
        for task in tasks {
            assert_eq!(task.await??, 5);
        }
        Ok(())
    });
}

#[test]
fn a_closed_socket_wakes_who_waits_there() {
    on_every_driver(async |env| {
        let socket = Rc::new(UdpSocket::bind("127.0.0.1:0")?);
        let waiting = Rc::clone(&socket);
        let task = env.shard().spawn(async move { waiting.recv_from(&mut [0; 8]).await });
        shardwise::yield_now().await;
        drop(socket.transport().close());
        assert_eq!(task.await?.unwrap_err().kind(), ErrorKind::NotConnected);
        Ok(())
    });
}

/// On mio alone: the kernel's counter. The shard stands still while its queue is flooded.
#[test]
fn datagrams_the_kernel_had_to_drop_are_counted() {
    on_every_driver(async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let notes = Notes::default();
        let options = UdpOptions::new().receive_buffer_bytes(4096);
        let talk = Talk::new(&notes, |_, _| Ok(()));
        let addr = env.shard().listen_udp_with("127.0.0.1:0", &options, talk)?.local_addr()?;
        let client = std::net::UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..2000 {
            client.send_to(b"flood", addr)?;
        }
        notes.until("flood", 1).await;
        // The count comes with the next one that is queued.
        env.shard().sleep(Duration::from_millis(1)).await;
        client.send_to(b"last", addr)?;
        notes.until("last", 1).await;
        let report = &env.handle().report()[0];
        assert_eq!(report.datagrams_received, notes.count("flood") as u64 + 1);
        assert_eq!(report.datagrams_dropped + report.datagrams_received, 2001);
        Ok(())
    });
}

/// On mio alone, where several datagrams come together for certain.
#[test]
fn a_task_receives_nothing_after_its_socket_was_closed() {
    on_every_driver(async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let addr = socket.local_addr()?;
        let task = env.shard().spawn(async move {
            let mut buffer = [0; 8];
            socket.recv_from(&mut buffer).await?;
            // The others of its batch are here already.
            drop(socket.transport().close());
            socket.recv_from(&mut buffer).await
        });
        shardwise::yield_now().await;
        let client = std::net::UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..3 {
            client.send_to(b"together", addr)?;
        }
        assert_eq!(task.await?.unwrap_err().kind(), ErrorKind::NotConnected);
        Ok(())
    });
}

/// A datagram that is joined by the kernel costs a callback like any other one. On mio alone, which has real turns.
#[test]
fn joined_datagrams_count_one_by_one_against_the_share_of_a_turn() {
    on_every_driver_with(1, Config::default(), async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let turns: Rc<RefCell<BTreeMap<_, usize>>> = Rc::default();
        let notes = Notes::default();
        let seen = Rc::clone(&turns);
        let talk = Talk::new(&notes, move |said, transport| {
            if let Said::Datagram(_) = said {
                *seen.borrow_mut().entry(transport.shard().now()).or_insert(0) += 1;
            }
            Ok(())
        });
        let options = UdpOptions::new().receive_joined(true);
        let addr = env.shard().listen_udp_with("127.0.0.1:0", &options, talk)?.local_addr()?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..20 {
            client.transport().try_send_segments(&[b'j'; 60], 1, Some(addr))?;
        }
        notes.until("j", 20 * 60).await;
        let most = turns.borrow().values().copied().max();
        assert_eq!(most, Some(60), "64 is the share: {:?}", turns.borrow().values());
        Ok(())
    });
}
