//! STARTTLS, on either side, in either role, and what lies between the plain bytes and the others.

use crate::common::{Call, Log, Probe, listen as listen_plain, pair as plain_pair, pattern, read_to_end};
use crate::tls_kit::Authority;
use shardwise::testing::on_every_driver;
use shardwise::{TcpStream, TlsError, WriteError};

#[test]
fn a_connection_is_upgraded_in_place_and_plain_bytes_written_before_go_first() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen_plain(&env, &log, move |call, transport| {
            let Call::Data(input) = call else { return None };
            if !transport.is_tls() {
                if input.len() < 9 {
                    return Some(Ok(()));
                }
                assert_eq!(input.take(), b"STARTTLS\n");
                transport.write(b"ready\n").unwrap();
                transport.start_tls(&server).unwrap();
                assert!(transport.is_tls());
                assert_eq!(transport.start_tls(&server), Err(TlsError::AlreadyTls));
                transport.write(b"sealed: ").unwrap();
            } else {
                transport.write(input.take()).unwrap();
            }
            Some(Ok(()))
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        assert!(!client.transport().is_tls());
        client.write_all(b"STARTTLS\n").await?;
        let mut ready = [0; 6];
        client.read_exact(&mut ready).await?;
        assert_eq!(&ready, b"ready\n");
        client.start_tls((&tls, "localhost")).await?;
        client.write_all(b"secret").await?;
        client.shutdown_write();
        assert_eq!(read_to_end(&mut client).await?, b"sealed: secret");
        assert_eq!(log.ended().await, "PeerFinished");
        assert_eq!(log.seen()[..4], ["connected", "data", "handshake", "data"]);
        Ok(())
    });
}

/// CVE-2011-0411: who slips plain commands in behind STARTTLS must not have them taken for the other side's.
#[test]
fn no_plaintext_after_an_upgrade_is_ever_parsed() {
    on_every_driver(async |env| {
        let server = Authority::new().server();
        for takes_all in [false, true] {
            let tls = server.clone();
            let (log, mut client) = plain_pair(&env, move |call, transport| {
                let Call::Data(input) = call else { return None };
                assert!(!transport.is_tls(), "it was parsed: {:?}", input.bytes());
                if input.len() < 23 {
                    return Some(Ok(()));
                }
                if takes_all {
                    let _ = input.take();
                } else {
                    input.consume(9)
                }
                transport.write(b"ok").unwrap();
                transport.start_tls(&tls).unwrap();
                assert!(input.is_empty(), "the input runs dry");
                assert_eq!(input.take(), b"");
                Some(Ok(()))
            })
            .await?;
            client.write_all(b"STARTTLS\nDELETE ALL; \n\n").await?;
            client.read_exact(&mut [0; 2]).await?;
            if takes_all {
                // The protocol has swallowed it: then TLS begins with what comes next.
                client.write_all(b"DELETE AGAIN\n").await?;
            }
            let _ = read_to_end(&mut client).await?;
            drop(client);
            let reason = log.ended().await;
            assert!(reason.contains("NotTls") && reason.contains("began_with: \"D"), "{reason}");
            assert_eq!(log.received(), b"");
        }
        Ok(())
    });
}

#[test]
fn a_hello_sent_along_with_the_request_to_upgrade_is_the_handshakes() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen_plain(&env, &log, move |call, transport| {
            let Call::Data(input) = call else { return None };
            if !transport.is_tls() {
                if input.len() < 2 {
                    return Some(Ok(()));
                }
                input.consume(2);
                transport.start_tls(&server).unwrap();
            } else {
                transport.write(input.take()).unwrap();
            }
            Some(Ok(()))
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.transport().write(b"TL")?;
        client.start_tls((&tls, "localhost")).await?;
        client.write_all(b"echo").await?;
        client.shutdown_write();
        assert_eq!(read_to_end(&mut client).await?, b"echo");
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}

#[test]
fn whoever_opened_the_connection_may_be_the_tls_server() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen_plain(&env, &log, move |call, transport| {
            match call {
                Call::Connected => transport.start_tls((&tls, "localhost")).unwrap(),
                Call::HandshakeCompleted => drop(transport.write(&pattern(100_000)).unwrap()),
                _ => return None,
            }
            Some(Ok(()))
        })?;
        let mut stream = TcpStream::connect(listener.local_addr()).await?;
        stream.start_tls(&server).await?;
        assert_eq!(stream.tls_info().unwrap().server_name.as_deref(), Some("localhost"));
        let mut received = vec![0; 100_000];
        stream.read_exact(&mut received).await?;
        assert_eq!(received, pattern(100_000));
        stream.close();
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}

#[test]
fn an_upgrade_that_cannot_work_fails_at_once_and_changes_nothing() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let (log, mut client) = plain_pair(&env, |_, _| None).await?;
        let refused = client.transport().start_tls((&tls, "no name!"));
        assert!(matches!(refused, Err(TlsError::InvalidServerName { .. })), "{refused:?}");
        assert!(!client.transport().is_tls());
        client.write_all(b"plain").await?;
        client.shutdown_write();
        let refused = client.start_tls(&server).await.unwrap_err();
        assert!(refused.to_string().contains("closed"), "{refused}");
        assert_eq!(log.ended().await, "PeerFinished");
        assert_eq!(log.received(), b"plain");
        let transport = log.transport().await;
        assert_eq!(transport.start_tls(&server), Err(TlsError::NotConnected));
        assert_eq!(transport.write(b""), Err(WriteError::Closed));
        Ok(())
    });
}

#[test]
fn an_upgrade_from_a_task_takes_along_what_a_paused_protocol_was_not_shown() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let (log, probe) = (Log::new(), Log::new());
        let listener = listen_plain(&env, &log, |call, transport| {
            if let Call::Connected = call {
                transport.pause_reading();
            }
            None
        })?;
        let made = probe.clone();
        env.shard()
            .connect_tcp(listener.local_addr(), move || {
                let tls = tls.clone();
                Probe::new(&made, move |call, transport| {
                    match call {
                        Call::Connected => transport.start_tls((&tls, "localhost")).unwrap(),
                        Call::HandshakeCompleted => drop(transport.write(b"through").unwrap()),
                        _ => return None,
                    }
                    Some(Ok(()))
                })
            })
            .await?;
        let transport = log.transport().await;
        crate::common::let_others_go_on(&env).await?;
        transport.start_tls(&server)?;
        // A handshake is not held by what the protocol holds; its input is.
        probe.saw("handshake").await;
        crate::common::let_others_go_on(&env).await?;
        assert_eq!(log.received(), b"");
        transport.resume_reading();
        log.until(|state| state.received == b"through").await;
        transport.close();
        assert_eq!(probe.ended().await, "PeerFinished");
        Ok(())
    });
}

#[test]
fn an_upgrade_of_a_stream_that_is_closed_meanwhile_is_an_error() {
    on_every_driver(async |env| {
        let server = Authority::new().server();
        let outcome = Log::new();
        let noted = outcome.clone();
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            let transport = stream.transport().clone();
            let after = std::time::Duration::from_millis(5);
            drop(transport.shard().clone().call_later(after, move |_| transport.close()));
            let error = stream.start_tls(&server).await.expect_err("no handshake was made");
            assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
            assert!(stream.tls_info().is_none());
            noted.note("told");
            Ok(())
        })?;
        let client = TcpStream::connect(listener.local_addr()).await?;
        outcome.saw("told").await;
        client.close();
        Ok(())
    });
}
