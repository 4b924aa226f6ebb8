//! Streams at names, on every driver.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use shardwise::testing::on_every_driver;
use shardwise::{
    Addr, ConnectError, Incoming, ListenError, Shard, ShardId, UnixAddr, UnixListenOptions, UnixStream,
};

use crate::common::{Echo, read_to_end, round_trip};
use crate::unique_name;

#[test]
fn abstract_names_work_for_listening_and_connecting() {
    on_every_driver(async |env| {
        let name = unique_name("abstract");
        let listener = env.shard().listen_unix(&name, || Echo)?;
        assert_eq!(listener.local_addr().to_string(), format!("unix:{name}"));
        let mut stream = UnixStream::connect_unix(&name).await?;
        round_trip(&mut stream, b"hello").await?;
        let large = vec![7; 100_000];
        round_trip(&mut stream, &large).await?;
        Ok(())
    });
}

#[test]
fn one_handler_serves_tcp_and_unix() {
    on_every_driver(async |env| {
        let handler = async |mut stream: UnixStream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        };
        let name = unique_name("handler");
        env.shard().serve_unix(&name, handler)?;
        let tcp = env.shard().serve_tcp("127.0.0.1:0", handler)?;
        for mut stream in
            [UnixStream::connect_unix(&name).await?, UnixStream::connect(tcp.local_addr()).await?]
        {
            round_trip(&mut stream, b"the same").await?;
            stream.shutdown_write();
            assert!(read_to_end(&mut stream).await?.is_empty(), "and the end comes back");
        }
        Ok(())
    });
}

#[test]
fn both_ends_know_the_listeners_name_and_clients_have_none() {
    on_every_driver(async |env| {
        let name = unique_name("names");
        let seen: Rc<RefCell<Vec<(Addr, Addr)>>> = Rc::default();
        let note = Rc::clone(&seen);
        let factory = move |incoming: &Incoming<'_>| {
            assert_eq!(
                (incoming.peer_addr(), incoming.local_addr()),
                (None, None),
                "they have no IP address"
            );
            note.borrow_mut().push((incoming.peer().clone(), incoming.local().clone()));
            Echo
        };
        let listener = env.shard().listen_unix(&name, factory)?;
        let mut stream = UnixStream::connect_unix(&name).await?;
        round_trip(&mut stream, b"x").await?;
        let listens = Addr::from(listener.local_addr());
        assert_eq!(*seen.borrow(), [(Addr::from(UnixAddr::UNNAMED), listens.clone())]);
        assert_eq!(stream.transport().peer(), Some(listens));
        assert_eq!(stream.transport().local()?, Addr::from(UnixAddr::UNNAMED));
        assert_eq!(stream.transport().peer_addr(), None);
        assert_eq!(stream.peer_addr().unwrap_err().kind(), std::io::ErrorKind::Unsupported);
        Ok(())
    });
}

#[test]
fn connections_are_handed_out_to_all_shards_in_turn() {
    on_every_driver(async |env| {
        let name = unique_name("turns");
        let counts: Arc<Mutex<BTreeMap<usize, usize>>> = Arc::default();
        for shard in 0..2 {
            let (name, counts) = (name.clone(), Arc::clone(&counts));
            env.handle()
                .call(ShardId::new(shard), move |shard: &Shard| {
                    let factory = move |incoming: &Incoming<'_>| {
                        assert_eq!(Shard::current().id(), incoming.shard());
                        *counts.lock().unwrap().entry(incoming.shard().index()).or_default() += 1;
                        Echo
                    };
                    shard.listen_unix(&name, factory).map(drop)
                })
                .await??;
        }
        let mut streams = Vec::new();
        for _ in 0..10 {
            let mut stream = UnixStream::connect_unix(&name).await?;
            round_trip(&mut stream, b"where am I").await?;
            streams.push(stream);
        }
        assert_eq!(*counts.lock().unwrap(), BTreeMap::from([(0, 5), (1, 5)]));
        let open: Vec<_> = env.handle().report().iter().map(|report| report.accepted).collect();
        assert_eq!(open, [5, 5], "counted where they are served");
        Ok(())
    });
}

#[test]
fn a_second_listener_of_the_same_shard_is_refused_and_a_closed_name_is_free_again() {
    on_every_driver(async |env| {
        let name = unique_name("twice");
        let listener = env.shard().listen_unix(&name, || Echo)?;
        let error = env.shard().listen_unix(&name, || Echo).unwrap_err();
        assert!(matches!(&error, ListenError::AddressInUse { .. }), "{error}");
        assert!(error.to_string().contains(&name), "{error}");
        listener.close().await;
        let error = UnixStream::connect_unix(&name).await.unwrap_err();
        assert!(matches!(&error, ConnectError::Refused { .. }), "{error}");
        env.shard().listen_unix(&name, || Echo)?;
        round_trip(&mut UnixStream::connect_unix(&name).await?, b"again").await?;
        Ok(())
    });
}

/// Those that wait in the queue, and those under way to another shard, are served before the group is closed.
#[test]
fn closing_loses_nobody_who_has_connected() {
    on_every_driver(async |env| {
        let name = unique_name("closing");
        let mut listener = None;
        for shard in [1, 0] {
            let name = name.clone();
            if shard == 0 {
                listener = Some(env.shard().listen_unix(&name, || Echo)?);
            } else {
                let id = ShardId::new(shard);
                env.handle()
                    .call(id, move |shard: &Shard| shard.listen_unix(&name, || Echo).map(drop))
                    .await??;
            }
        }
        let mut streams = Vec::new();
        for _ in 0..40 {
            streams.push(UnixStream::connect_unix(&name).await?);
        }
        let closing = listener.expect("set above").close();
        for stream in &mut streams {
            round_trip(stream, b"still here").await?;
        }
        closing.await;
        drop(streams);
        Ok(())
    });
}

#[test]
fn a_stop_serves_who_has_connected_on_every_shard() {
    on_every_driver(async |env| {
        let name = unique_name("stop");
        let served = Arc::new(Mutex::new(0));
        for shard in 0..2 {
            let (name, served) = (name.clone(), Arc::clone(&served));
            env.handle()
                .call(ShardId::new(shard), move |shard: &Shard| {
                    let handler = move |mut stream: UnixStream| {
                        let served = Arc::clone(&served);
                        async move {
                            stream.set_ends_on_drain(false);
                            stream.write_all(b"hi").await?;
                            let mut bytes = [0; 4];
                            stream.read_exact(&mut bytes).await?;
                            stream.write_all(&bytes).await?;
                            *served.lock().unwrap() += 1;
                            Ok(())
                        }
                    };
                    shard.serve_unix(&name, handler).map(drop)
                })
                .await??;
        }
        let mut streams = Vec::new();
        for _ in 0..20 {
            let mut stream = UnixStream::connect_unix(&name).await?;
            stream.set_ends_on_drain(false);
            stream.read_exact(&mut [0; 2]).await?;
            streams.push(stream);
        }
        env.handle().stop()?;
        for stream in &mut streams {
            stream.write_all(b"wait").await?;
            assert_eq!(read_to_end(stream).await?, b"wait");
        }
        assert_eq!(*served.lock().unwrap(), 20);
        Ok(())
    });
}

#[test]
fn a_connection_moves_to_another_shard_and_back() {
    on_every_driver(async |env| {
        let name = unique_name("moves");
        env.shard().listen_unix(&name, || Echo)?;
        let mut stream = UnixStream::connect_unix(&name).await?;
        round_trip(&mut stream, b"here").await?;
        let detached = stream.detach().await?;
        assert_eq!(detached.peer().to_string(), format!("unix:{name}"));
        let detached = env
            .handle()
            .call_async(ShardId::new(1), async move |shard: Shard| {
                let mut stream = detached.attach(&shard)?;
                round_trip(&mut stream, b"there").await?;
                shardwise::Result::Ok(stream.detach().await?)
            })
            .await??;
        round_trip(&mut detached.attach(env.shard())?, b"and back").await?;
        Ok(())
    });
}

#[test]
fn nobody_listens_is_refused_and_a_bad_name_is_told() {
    on_every_driver(async |env| {
        let name = unique_name("nobody");
        let error = UnixStream::connect_unix(&name).await.unwrap_err();
        assert!(matches!(&error, ConnectError::Refused { addr, .. } if addr.as_unix().is_some()), "{error}");
        let long = "x".repeat(108);
        let error = UnixStream::connect_unix(&long).await.unwrap_err();
        assert!(matches!(&error, ConnectError::InvalidPath(_)), "{error}");
        assert!(error.to_string().contains("108 bytes, and a socket's name at most 107"), "{error}");
        let error = env.shard().listen_unix(&long, || Echo).unwrap_err();
        assert!(matches!(&error, ListenError::InvalidPath(_)), "{error}");
        Ok(())
    });
}

/// Faults, row 74: the kernel says EAGAIN and never tells of room.
#[test]
fn connecting_to_a_full_queue_waits_until_there_is_room() {
    on_every_driver(async |env| {
        let name = unique_name("full");
        // Nobody is accepted before this task waits: of six one finds room.
        let options = UnixListenOptions::new().backlog(1);
        let listener = env.shard().listen_unix_with(&name, &options, || Echo)?;
        let mut attempts = Vec::new();
        for _ in 0..6 {
            let name = name.clone();
            attempts.push(env.shard().spawn(async move {
                let mut stream = UnixStream::connect_unix(&name).await?;
                round_trip(&mut stream, b"in").await?;
                shardwise::Result::Ok(())
            }));
        }
        for attempt in attempts {
            attempt.await??;
        }
        drop(listener);
        Ok(())
    });
}

/// As the kernel does it, and documented: there is no RST between UNIX sockets.
#[test]
fn an_abort_is_seen_as_a_reset_only_where_bytes_were_left_unread() {
    common_abort(false, Ok(0));
    common_abort(true, Err(std::io::ErrorKind::ConnectionReset));
}

fn common_abort(leaves_bytes: bool, expected: std::result::Result<usize, std::io::ErrorKind>) {
    crate::on_a_shard(async move |shard| {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
        let stream = shard.adopt_stream(ours.into())?;
        stream.transport().pause_reading();
        if leaves_bytes {
            std::io::Write::write_all(&mut theirs, b"unread")?;
        }
        let transport = stream.transport().clone();
        stream.abort();
        while transport.is_open() {
            shardwise::sleep(std::time::Duration::from_millis(1)).await;
        }
        theirs.set_nonblocking(true)?;
        let seen = loop {
            match std::io::Read::read(&mut theirs, &mut [0; 8]).map_err(|error| error.kind()) {
                Err(std::io::ErrorKind::WouldBlock) => {
                    shardwise::sleep(std::time::Duration::from_millis(1)).await;
                }
                seen => break seen,
            }
        };
        assert_eq!(seen, expected);
        Ok(())
    });
}
