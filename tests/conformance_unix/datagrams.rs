//! Datagrams between UNIX sockets. Over the kernel's own driver: the simulation's network has none.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::Duration;

use shardwise::{
    ConnectError, Datagram, DatagramProtocol, ListenError, Result, SendError, ToUnixAddr, UdpTransport,
    UnixDatagram as AsyncDatagram, UnixDatagramOptions,
};

use crate::{Directory, is_there, on_a_shard, unique_name};

/// Keeps what comes, and answers whoever has a name.
#[derive(Clone, Default)]
struct Keeper {
    came: Rc<RefCell<Vec<Vec<u8>>>>,
    truncated: Rc<RefCell<Vec<bool>>>,
    answers: bool,
}

impl DatagramProtocol for Keeper {
    fn datagram_received(&mut self, transport: &UdpTransport, datagram: Datagram<'_>) -> Result<()> {
        self.came.borrow_mut().push(datagram.bytes().to_vec());
        self.truncated.borrow_mut().push(datagram.is_truncated());
        let source = datagram.unix_source().expect("a UNIX socket's");
        if self.answers && !source.is_unnamed() {
            transport.try_send_to_name(datagram.bytes(), source)?;
        }
        Ok(())
    }
}

impl Keeper {
    async fn has(&self, count: usize) {
        while self.came.borrow().len() < count {
            shardwise::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[test]
fn datagrams_come_and_are_answered_at_paths_and_abstract_names() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let options = UnixDatagramOptions::new();
        for (server, client) in [
            (directory.join("server").to_unix_addr()?, directory.join("client").to_unix_addr()?),
            (unique_name("server").to_unix_addr()?, unique_name("client").to_unix_addr()?),
        ] {
            let answering = Keeper { answers: true, ..Keeper::default() };
            let bound = shard.listen_unix_datagram(&server, &options, answering.clone())?;
            assert_eq!(bound.local().as_unix(), Some(&server));
            let asking = Keeper::default();
            let connected = shard.connect_unix_datagram(&server, Some(&client), &options, asking.clone())?;
            connected.try_send(b"one")?;
            connected.send(b"").await?;
            connected.send(b"three").await?;
            asking.has(3).await;
            assert_eq!(*asking.came.borrow(), [b"one".to_vec(), Vec::new(), b"three".to_vec()]);
            assert!(matches!(
                connected.try_send_to_name(b"x", &server).unwrap_err(),
                SendError::ConnectedUnix { .. }
            ));
            let unnamed = shard.connect_unix_datagram(&server, None, &options, Keeper::default())?;
            unnamed.send(b"nobody to answer").await?;
            answering.has(4).await;
            for transport in [bound, connected, unnamed] {
                transport.close().await;
            }
        }
        assert!(directory.names().is_empty(), "removed at the close: {:?}", directory.names());
        Ok(())
    });
}

#[test]
fn the_file_of_a_datagram_socket_has_its_mode_and_is_found_stale_or_live() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("socket");
        drop(UnixDatagram::bind(&path)?);
        let options = UnixDatagramOptions::new();
        let bound = shard.listen_unix_datagram(&path, &options, Keeper::default())?;
        assert_eq!(std::fs::symlink_metadata(&path)?.permissions().mode() & 0o777, 0o600);
        let error = shard.listen_unix_datagram(&path, &options, Keeper::default()).unwrap_err();
        assert!(matches!(&error, ListenError::AddressInUse { .. }), "{error}");
        bound.close().await;
        assert!(!is_there(&path));
        let bound = shard.listen_unix_datagram(&path, &options.mode(0o666), Keeper::default())?;
        assert_eq!(std::fs::symlink_metadata(&path)?.permissions().mode() & 0o777, 0o666);
        bound.close().await;
        let error = shard.connect_unix_datagram(&path, None, &options, Keeper::default()).unwrap_err();
        assert!(matches!(&error, ConnectError::Os { .. }), "{error}");
        drop(UnixDatagram::bind(&path)?);
        let error = shard.connect_unix_datagram(&path, None, &options, Keeper::default()).unwrap_err();
        assert!(matches!(&error, ConnectError::Refused { .. }), "{error}");
        Ok(())
    });
}

#[test]
fn a_full_receiver_and_a_long_datagram_are_told_and_a_send_waits_for_room() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("slow");
        let slow = UnixDatagram::bind(&path)?;
        let options = UnixDatagramOptions::new();
        let own = shard.listen_unix_datagram(unique_name("own"), &options, Keeper::default())?;
        let connected = shard.connect_unix_datagram(&path, None, &options, Keeper::default())?;
        let long = vec![0; 1 << 20];
        assert!(matches!(own.try_send_to_name(&long, &path), Err(SendError::TooLong { bytes: 1_048_576 })));
        let mut sent = 0;
        while own.try_send_to_name(&[sent as u8], &path).is_ok() {
            sent += 1;
        }
        assert!(sent > 0);
        assert!(matches!(own.try_send_to_name(b"x", &path), Err(SendError::NoRoom)));
        assert!(matches!(connected.try_send(b"x"), Err(SendError::NoRoom)));
        let waiting: Vec<_> = [own.clone(), connected.clone()]
            .into_iter()
            .enumerate()
            .map(|(number, transport)| {
                let path = path.clone();
                shard.spawn(async move {
                    match number {
                        0 => transport.send_to_name(b"waited", &path).await,
                        _ => transport.send(b"waited").await,
                    }
                })
            })
            .collect();
        shardwise::sleep(Duration::from_millis(5)).await;
        let mut buffer = [0; 16];
        for number in 0..sent {
            assert_eq!(slow.recv(&mut buffer)?, 1);
            assert_eq!(buffer[0], number as u8, "none was lost");
        }
        for task in waiting {
            task.await??;
        }
        slow.set_nonblocking(true)?;
        for _ in 0..2 {
            assert_eq!(slow.recv(&mut buffer)?, 6);
        }
        Ok(())
    });
}

#[test]
fn a_datagram_longer_than_is_taken_says_that_it_was_cut() {
    on_a_shard(async |shard| {
        let name = unique_name("cut");
        let keeper = Keeper::default();
        shard.listen_unix_datagram(
            &name,
            &UnixDatagramOptions::new().datagram_bytes_max(4),
            keeper.clone(),
        )?;
        let client =
            shard.connect_unix_datagram(&name, None, &UnixDatagramOptions::new(), Keeper::default())?;
        client.send(b"123456").await?;
        client.send(b"1234").await?;
        keeper.has(2).await;
        assert_eq!(*keeper.came.borrow(), [b"1234", b"1234"]);
        assert_eq!(*keeper.truncated.borrow(), [true, false]);
        client.close().await;
        Ok(())
    });
}

#[test]
fn a_second_datagram_socket_is_refused_by_the_lock_alone() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("socket");
        let options = UnixDatagramOptions::new().lock(true);
        let bound = shard.listen_unix_datagram(&path, &options, Keeper::default())?;
        assert_eq!(directory.names(), ["socket", "socket.lock"]);
        // The file is gone, and the owner lives.
        std::fs::remove_file(&path)?;
        let error = shard.listen_unix_datagram(&path, &options, Keeper::default()).unwrap_err();
        assert!(matches!(&error, ListenError::AddressInUse { .. }), "{error}");
        let error = AsyncDatagram::bind_with(&path, &options).unwrap_err();
        assert!(matches!(&error, ListenError::AddressInUse { .. }), "{error}");
        bound.close().await;
        assert!(directory.names().is_empty(), "{:?}", directory.names());
        drop(AsyncDatagram::bind_with(&path, &options)?);
        Ok(())
    });
}

#[test]
fn tasks_receive_and_answer_datagrams_by_name() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("server");
        let server = AsyncDatagram::bind(&path)?;
        assert_eq!(server.local().path(), Some(&*path));
        let answering = shard.spawn(async move {
            let mut buffer = [0; 8];
            let mut received = Vec::new();
            while received.len() < 3 {
                let one = server.recv_from(&mut buffer).await?;
                if !one.source.is_unnamed() {
                    server.send_to(&buffer[..one.len], &one.source).await?;
                }
                received.push(one);
            }
            shardwise::Result::Ok(received)
        });
        let own = unique_name("client").to_unix_addr()?;
        let client = AsyncDatagram::connect_with(&path, Some(&own), &UnixDatagramOptions::new())?;
        client.send(b"hello").await?;
        // Longer than the buffer over there.
        client.send(b"123456789").await?;
        let mut buffer = [0; 64];
        for expected in [&b"hello"[..], b"12345678"] {
            let one = client.recv_from(&mut buffer).await?;
            assert_eq!(
                (&buffer[..one.len], one.source.path(), one.truncated),
                (expected, Some(&*path), false)
            );
        }
        AsyncDatagram::connect(&path)?.send(b"").await?;
        let received = answering.await??;
        let told: Vec<_> = received.iter().map(|one| (one.len, one.truncated)).collect();
        assert_eq!(told, [(5, false), (8, true), (0, false)]);
        assert_eq!((&received[0].source, received[2].source.is_unnamed()), (&own, true));
        // Dropping it has removed its file, or does with this turn.
        while !directory.names().is_empty() {
            shardwise::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    });
}

/// Datagrams that come while no task waits are kept in order, with their senders, and nothing more is received meanwhile.
#[test]
fn datagrams_that_nobody_waits_for_keep_their_senders() {
    on_a_shard(async |_| {
        let name = unique_name("kept");
        let server = AsyncDatagram::bind(&name)?;
        let clients: Vec<_> = (0..3)
            .map(|_| {
                let own = unique_name("client").to_unix_addr()?;
                Ok((AsyncDatagram::connect_with(&name, Some(&own), &UnixDatagramOptions::new())?, own))
            })
            .collect::<Result<_>>()?;
        for (client, _) in &clients {
            client.send(b"x").await?;
        }
        for (_, own) in &clients {
            assert_eq!(server.recv_from(&mut [0; 8]).await?.source, *own);
        }
        Ok(())
    });
}

/// The kernel heeds no UDP_SEGMENT here: it would send everything as one datagram.
#[test]
fn segments_are_datagrams_of_their_own_on_unix_sockets_too() {
    on_a_shard(async |_| {
        let name = unique_name("segments");
        let server = AsyncDatagram::bind(&name)?;
        let client = AsyncDatagram::connect(&name)?;
        assert_eq!(client.transport().try_send_segments(b"abcdefg", 3, None)?, 7);
        let mut buffer = [0; 64];
        for expected in [&b"abc"[..], b"def", b"g"] {
            let one = server.recv_from(&mut buffer).await?;
            assert_eq!(&buffer[..one.len], expected);
        }
        Ok(())
    });
}
