//! Sending: errors are told at the call and say what is wrong; no room is waited for.

use std::io::{ErrorKind, IoSlice};

use shardwise::testing::on_every_driver;
use shardwise::{SendError, UdpOptions};

use super::*;

#[test]
fn a_destination_that_cannot_be_is_told_at_the_call() {
    on_every_driver(async |env| {
        let four = env.shard().listen_udp("127.0.0.1:0", Echo)?;
        let six = env.shard().listen_udp("[::1]:0", Echo)?;
        let (four_addr, six_addr) = (four.local_addr()?, six.local_addr()?);
        for name in ["localhost:80", "example.invalid:80", "127.0.0.1"] {
            assert!(matches!(four.try_send_to(b"x", name), Err(SendError::InvalidAddress(_))), "{name}");
            assert!(matches!(four.send_to(b"x", name).await, Err(SendError::InvalidAddress(_))), "{name}");
        }
        let wrong = |outcome, addr| matches!(outcome, Err(SendError::WrongFamily { to }) if to == addr);
        assert!(wrong(four.try_send_to(b"x", six_addr), six_addr));
        assert!(wrong(six.try_send_to(b"x", four_addr), four_addr));
        let mapped = "[::ffff:127.0.0.1]:80".parse::<SocketAddr>()?;
        assert!(wrong(six.try_send_to(b"x", mapped), mapped));
        assert!(matches!(four.try_send(b"x"), Err(SendError::NotConnected)));
        Ok(())
    });
}

#[test]
fn a_socket_is_connected_to_an_address_and_once() {
    on_every_driver(async |env| {
        let addr = env.shard().listen_udp("127.0.0.1:0", Echo)?.local_addr()?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        assert!(matches!(socket.connect("localhost:80"), Err(SendError::InvalidAddress(_))));
        assert!(matches!(socket.connect("[::1]:80"), Err(SendError::WrongFamily { .. })));
        socket.connect(addr)?;
        let again = socket.connect(addr).unwrap_err();
        assert!(matches!(again, SendError::Connected { peer } if peer == addr));
        let other = socket.transport().try_send_to(b"x", "127.0.0.1:9").unwrap_err();
        assert!(matches!(other, SendError::Connected { peer } if peer == addr));
        echoed(&env, &socket, Some(addr), b"its peer may be named").await?;
        Ok(())
    });
}

#[test]
fn a_connected_socket_gets_its_peers_datagrams_alone() {
    on_every_driver(async |env| {
        let peer = UdpSocket::bind("127.0.0.1:0")?;
        let stranger = UdpSocket::bind("127.0.0.1:0")?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(peer.local_addr()?)?;
        let addr = socket.local_addr()?;
        let mut buffer = [0; 16];
        for _ in 0..10 {
            stranger.send_to(b"not for you", addr).await?;
            peer.send_to(b"for you", addr).await?;
            if let Ok(received) = env.shard().timeout(ASK_AGAIN, socket.recv_from(&mut buffer)).await {
                assert_eq!(received?.source, peer.local_addr()?);
            }
        }
        Ok(())
    });
}

/// The protocol could send before, and strangers could answer. On both drivers, but a simulation delivers nothing while a
/// callback runs.
#[test]
fn a_protocol_that_is_connected_is_started_when_it_is_and_hears_nobody_else() {
    on_every_driver(async |env| {
        let peer = UdpSocket::bind("127.0.0.1:0")?;
        let stranger = UdpSocket::bind("127.0.0.1:0")?;
        let (sends, peer_addr) = (stranger.transport().clone(), peer.local_addr()?);
        let notes = Notes::default();
        let talk = Talk::new(&notes, move |said, transport| {
            match said {
                Said::Started => {
                    assert_eq!(transport.peer_addr(), Some(peer_addr));
                    let _ = sends.try_send_to(b"forged", transport.local_addr()?);
                }
                Said::Datagram(datagram) => assert_eq!(datagram.source(), peer_addr),
                _ => {}
            }
            Ok(())
        });
        let transport = env.shard().connect_udp(peer_addr, talk)?;
        while notes.count("true") == 0 {
            peer.send_to(b"true", transport.local_addr()?).await?;
            env.shard().sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(notes.count("forged"), 0);
        Ok(())
    });
}

#[test]
fn the_pieces_of_a_vectored_send_leave_as_one_datagram() {
    on_every_driver(async |env| {
        let addr = env.shard().listen_udp("127.0.0.1:0", Echo)?.local_addr()?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        let mut buffer = [0; 16];
        let received = loop {
            let pieces = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"datagram")];
            let _ = client.transport().try_send_vectored(&pieces, Some(addr));
            if let Ok(received) = env.shard().timeout(ASK_AGAIN, client.recv_from(&mut buffer)).await {
                break received?;
            }
        };
        assert_eq!(&buffer[..received.len], b"one datagram");
        Ok(())
    });
}

#[test]
fn a_datagram_that_is_too_long_says_so_and_the_socket_goes_on() {
    on_every_driver(async |env| {
        let addr = env.shard().listen_udp("127.0.0.1:0", Echo)?.local_addr()?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        let bytes = vec![0; 65_508];
        for outcome in [client.transport().try_send_to(&bytes, addr), client.send_to(&bytes, addr).await] {
            assert!(matches!(outcome, Err(SendError::TooLong { bytes: 65_508 })), "{outcome:?}");
        }
        echoed(&env, &client, Some(addr), b"short").await?;
        Ok(())
    });
}

/// In the simulation, whose kernel says so at random; over a real loopback a datagram leaves its sender at once.
#[test]
fn no_room_is_told_and_awaited_and_never_an_unexpected_error() {
    on_every_driver(async |env| {
        let addr = env.shard().listen_udp("127.0.0.1:0", Echo)?.local_addr()?;
        let notes = Notes::default();
        let transport = env.shard().connect_udp(addr, Talk::new(&notes, |_, _| Ok(())))?;
        let mut found_none = 0;
        for _ in 0..500 {
            match transport.try_send(b"x") {
                Ok(()) => {}
                Err(SendError::NoRoom) => {
                    found_none += 1;
                    notes.until("sendable", 1).await;
                }
                Err(other) => panic!("{other}"),
            }
            transport.send(b"y").await?;
        }
        assert_eq!(found_none > 0, env.is_simulated());
        Ok(())
    });
}

#[test]
fn segments_arrive_as_datagrams_of_their_size() {
    on_every_driver(async |env| {
        for joined in [false, true] {
            let options = UdpOptions::new().receive_joined(joined);
            let receiver = UdpSocket::bind_with("127.0.0.1:0", &options)?;
            let to = receiver.local_addr()?;
            let sender = UdpSocket::bind("127.0.0.1:0")?;
            // More than one call of the kernel carries, and a last one that is shorter.
            let bytes: Vec<u8> = (0..100_050u32).map(|index| (index % 251) as u8).collect();
            let mut sent_bytes = 0;
            while sent_bytes < bytes.len() {
                match sender.transport().try_send_segments(&bytes[sent_bytes..], 1000, Some(to)) {
                    Ok(count) => {
                        assert!(count > 0 && (count % 1000 == 0 || sent_bytes + count == bytes.len()));
                        sent_bytes += count;
                    }
                    Err(SendError::NoRoom) => env.shard().sleep(Duration::from_millis(1)).await,
                    Err(other) => panic!("{other}"),
                }
                if !env.is_simulated() {
                    // What has been sent is read before there is more than the kernel keeps.
                    shardwise::yield_now().await;
                }
            }
            let mut buffer = [0; 2000];
            let mut came = Vec::new();
            while let Ok(received) = env.shard().timeout(ASK_AGAIN, receiver.recv_from(&mut buffer)).await {
                let len = received?.len;
                assert!(len == 1000 || len == 50, "{len}");
                came.extend_from_slice(&buffer[..len]);
            }
            if !env.is_simulated() {
                assert!(came == bytes, "{} of {} bytes", came.len(), bytes.len());
            }
            assert!(came.len() > 50_000);
        }
        Ok(())
    });
}

/// In the simulation; a real kernel has to be made to refuse: `tests/faults_udp.rs`.
#[test]
fn after_a_batch_that_was_sent_in_part_it_is_told_when_there_is_room() {
    on_every_driver(async |env| {
        let addr = env.shard().listen_udp("127.0.0.1:0", Echo)?.local_addr()?;
        let notes = Notes::default();
        let transport = env.shard().connect_udp(addr, Talk::new(&notes, |_, _| Ok(())))?;
        let mut in_part = 0;
        for _ in 0..100 {
            let told = notes.count("sendable");
            match transport.try_send_segments(&[b's'; 20], 1, None) {
                Ok(20) => continue,
                Ok(count) => in_part += usize::from(count > 0),
                Err(SendError::NoRoom) => {}
                Err(other) => panic!("{other}"),
            }
            let until = notes.until("sendable", told + 1);
            env.shard().timeout(Duration::from_secs(20), until).await.expect("told");
        }
        assert_eq!(in_part > 0, env.is_simulated());
        Ok(())
    });
}

/// On mio alone: a simulation has no broadcast.
#[test]
fn broadcast_is_off_until_it_is_allowed() {
    on_every_driver(async |env| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let transport = socket.transport();
        assert!(!transport.broadcast()?, "the default");
        if !env.is_simulated() {
            let receiver = UdpSocket::bind("0.0.0.0:0")?;
            // The loopback network's.
            let to = SocketAddr::from(([127, 255, 255, 255], receiver.local_addr()?.port()));
            match transport.try_send_to(b"all", to) {
                Err(SendError::Os(error)) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
                other => panic!("{other:?}"),
            }
            transport.set_broadcast(true)?;
            transport.try_send_to(b"all", to)?;
            assert_eq!(receiver.recv_from(&mut [0; 8]).await?.len, 3);
            // `<broadcast>` by its number: the address is taken, whether or not there is a way.
            match transport.try_send_to(b"all", "255.255.255.255:9") {
                Ok(()) | Err(SendError::Os(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        transport.set_broadcast(true)?;
        assert!(transport.broadcast()?);
        transport.set_broadcast(false)?;
        assert!(!transport.broadcast()?);
        Ok(())
    });
}
