//! Closing and aborting, from anywhere, however often.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

use crate::common::{
    Call, Log, Probe, assert_same_bytes, let_others_go_on, listen, pair, pattern, read_to_end,
};
use crate::failing::{CALLBACKS, provoke};
use shardwise::testing::on_every_driver;
use shardwise::{TcpStream, Transport, WriteError};

#[test]
fn writes_after_close_are_refused_and_send_nothing() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Data(input) = call else { return None };
            input.take();
            transport.write(b"before").unwrap();
            transport.close();
            assert!(!transport.is_open());
            assert_eq!(transport.write(b"after"), Err(WriteError::Closed));
            assert_eq!(transport.write_vectored(&[IoSlice::new(b"after")]), Err(WriteError::Closed));
            Some(Ok(()))
        })
        .await?;
        client.write_all(b"go").await?;
        assert_eq!(read_to_end(&mut client).await?, b"before");
        let transport = log.transport().await;
        assert_eq!(transport.write(b"closing"), Err(WriteError::Closed));
        drop(client);
        assert_eq!(log.ended().await, "Closed");
        assert_eq!(transport.write(b"gone"), Err(WriteError::Closed));
        assert_eq!(transport.write(b""), Err(WriteError::Closed));
        assert_eq!(env.handle().report()[0].panics, 0);
        Ok(())
    });
}

#[test]
fn close_sends_what_was_written_before() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Connected = call else { return None };
            transport.write(&pattern(1_000_000)).unwrap();
            transport.close();
            Some(Ok(()))
        })
        .await?;
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(1_000_000));
        drop(client);
        assert_eq!(log.ended().await, "Closed");
        Ok(())
    });
}

#[test]
fn close_is_idempotent_and_the_end_is_told_once_and_not_from_within() {
    on_every_driver(async |env| {
        // From a callback.
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Data(input) = call else { return None };
            input.take();
            for _ in 0..3 {
                transport.close();
            }
            Some(Ok(()))
        })
        .await?;
        client.write_all(b"go").await?;
        assert_eq!(log.ended().await, "Closed");
        assert_eq!(log.seen(), ["connected", "data", "disconnected", "dropped"]);
        log.transport().await.close();
        // From a task.
        let (log, _client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        transport.close();
        transport.close();
        assert_eq!(log.seen(), ["connected"], "told before close returned");
        assert_eq!(log.ended().await, "Closed");
        transport.close();
        transport.abort();
        let_others_go_on(&env).await?;
        assert_eq!(log.seen(), ["connected", "disconnected", "dropped"]);
        Ok(())
    });
}

#[test]
fn close_from_both_ends_at_once_is_clean_on_both() {
    on_every_driver(async |env| {
        let (server, client) = (Log::new(), Log::new());
        let listener = listen(&env, &server, |_, _| None)?;
        let probe = client.clone();
        env.shard().connect_tcp(listener.local_addr(), move || Probe::new(&probe, |_, _| None)).await?;
        server.transport().await.close();
        client.transport().await.close();
        for log in [server, client] {
            let reason = log.ended().await;
            assert!(reason == "Closed" || reason == "PeerFinished", "{reason}");
        }
        Ok(())
    });
}

#[test]
fn abort_resets_the_peer_and_delivers_nothing_more() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Data(input) = call else { return None };
            transport.write(b"lost").unwrap();
            transport.abort();
            assert!(input.is_empty() && !transport.is_open());
            assert_eq!(transport.write(b"more"), Err(WriteError::Closed));
            assert_eq!(transport.buffered(), 0);
            Some(Ok(()))
        })
        .await?;
        let sent = client.write_all(&[5; 300_000]).await;
        let read = read_to_end(&mut client).await;
        let error = sent.and(read.map(drop)).unwrap_err();
        let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        assert_eq!(log.ended().await, "Aborted");
        assert_eq!(log.look(|state| state.deliveries), 1);
        Ok(())
    });
}

#[test]
fn abort_twice_or_with_close_is_harmless_on_either_side() {
    on_every_driver(async |env| {
        for pattern in ["abort abort", "abort close", "close abort"] {
            for server_side in [true, false] {
                let (server, client) = (Log::new(), Log::new());
                let listener = listen(&env, &server, |_, _| None)?;
                let probe = client.clone();
                let attempt =
                    env.shard().connect_tcp(listener.local_addr(), move || Probe::new(&probe, |_, _| None));
                attempt.await?;
                let (ours, theirs) = if server_side { (server, client) } else { (client, server) };
                let transport = ours.transport().await;
                theirs.saw("connected").await;
                for verb in pattern.split(' ') {
                    if verb == "abort" { transport.abort() } else { transport.close() }
                }
                assert_eq!(ours.seen(), ["connected"], "told from within");
                assert_eq!(ours.ended().await, "Aborted", "{pattern}");
                assert_eq!(theirs.ended().await, "Os(ConnectionReset)", "{pattern}");
            }
        }
        Ok(())
    });
}

#[test]
fn abort_in_any_callback_ends_the_connection_once() {
    on_every_driver(async |env| {
        for wanted in CALLBACKS {
            let log = provoke(&env, wanted, |transport| {
                transport.abort();
                Ok(())
            })
            .await?;
            assert_eq!(log.ended().await, "Aborted", "in {wanted}");
            let seen = log.seen();
            assert_eq!(seen[seen.len() - 3], wanted, "nothing came after: {seen:?}");
        }
        Ok(())
    });
}

#[test]
fn close_in_any_callback_ends_the_connection_once() {
    on_every_driver(async |env| {
        for wanted in CALLBACKS {
            let log = provoke(&env, wanted, |transport| {
                transport.close();
                Ok(())
            })
            .await?;
            let reason = log.ended().await;
            let expected = if wanted == "read_finished" { "PeerFinished" } else { "Closed" };
            assert_eq!(reason, expected, "in {wanted}");
            assert_eq!(log.count(wanted), 1);
        }
        Ok(())
    });
}

#[test]
fn options_can_be_set_until_the_end() {
    on_every_driver(async |env| {
        let (log, client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        for on in [false, true] {
            transport.set_nodelay(on)?;
            transport.set_keepalive(on)?;
            client.set_nodelay(on)?;
        }
        client.abort();
        log.ended().await;
        assert_eq!(transport.set_nodelay(true).unwrap_err().kind(), io::ErrorKind::NotConnected);
        assert_eq!(transport.local_addr().unwrap_err().kind(), io::ErrorKind::NotConnected);
        assert_eq!(transport.peer_addr(), None);
        Ok(())
    });
}

#[test]
fn callbacks_may_write_to_close_and_abort_others_and_themselves() {
    on_every_driver(async |env| {
        let logs: Rc<RefCell<Vec<Log>>> = Rc::default();
        let listener = {
            let logs = Rc::clone(&logs);
            env.shard().listen_tcp("127.0.0.1:0", move || {
                let log = Log::new();
                let number = logs.borrow().len();
                logs.borrow_mut().push(log.clone());
                let logs = Rc::clone(&logs);
                Probe::new(&log, move |call, transport| {
                    let others: Vec<Transport> = logs
                        .borrow()
                        .iter()
                        .filter_map(|log| log.look(|state| state.transport.clone()))
                        .collect();
                    match call {
                        Call::Data(input) => {
                            input.take();
                            for other in &others {
                                let _ = other.write(b"hi");
                            }
                            others[1].close();
                            others[2].abort();
                            assert_eq!(others[1].write(b"x"), Err(WriteError::Closed));
                            assert_eq!(others[2].write(b"x"), Err(WriteError::Closed));
                            transport.close();
                            others[0].write(b"closed").expect_err("that is us");
                            Some(Ok(()))
                        }
                        // The end of one ends another, which ends others that have ended.
                        Call::Disconnected => {
                            for other in &others {
                                other.close();
                                other.abort();
                            }
                            assert!(number < 4);
                            Some(Ok(()))
                        }
                        _ => None,
                    }
                })
            })?
        };
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(TcpStream::connect(listener.local_addr()).await?);
            let expected = clients.len();
            while logs.borrow().len() < expected {
                shardwise::sleep(Duration::from_millis(1)).await;
            }
            let last = logs.borrow().last().cloned().expect("just made");
            last.saw("connected").await;
        }
        clients[0].write_all(b"go").await?;
        let mut reasons = Vec::new();
        let logs: Vec<Log> = logs.borrow().clone();
        for log in &logs {
            reasons.push(log.ended().await);
        }
        assert!(clients[2].read_chunk().await.is_err(), "reset");
        assert_eq!(reasons[2], "Aborted");
        assert_eq!(reasons[3], "Aborted");
        for log in &logs {
            assert_eq!(log.count("disconnected"), 1);
        }
        Ok(())
    });
}

#[test]
fn an_answer_given_before_the_request_was_read_arrives_whole() {
    on_every_driver(async |env| {
        let rounds = if env.is_simulated() { 10 } else { 50 };
        let expected = pattern(30_000);
        let answer = expected.clone();
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            let mut first = [0; 1];
            stream.read_exact(&mut first).await?;
            stream.write_all(&answer).await?;
            Ok(())
        })?;
        for round in 0..rounds {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            let transport = client.transport().clone();
            let sender = env.shard().spawn(async move {
                for _ in 0..64 {
                    while transport.buffered() > 0 {
                        if !transport.is_open() {
                            return;
                        }
                        shardwise::sleep(Duration::from_micros(100)).await;
                    }
                    if transport.write(&[0; 16 * 1024]).is_err() {
                        return;
                    }
                }
            });
            let received = read_to_end(&mut client).await;
            assert_same_bytes(&received.unwrap_or_else(|error| panic!("round {round}: {error}")), &expected);
            drop(client);
            sender.await?;
        }
        Ok(())
    });
}
