//! What was changed on its way: found, told precisely to both ends, and nobody else's business.

use crate::common::{Call, Log, read_to_end, round_trip};
use crate::listen;
use crate::relay::{Fate, Harm, relay_with};
use crate::tls_kit::Authority;
use shardwise::testing::{Env, on_every_driver};
use shardwise::{ConnectError, Result, TcpStream, TlsClientConfig, TlsError, TlsServerConfig};

/// An echo by TLS with a log for each connection, a way to it that can be harmed, and one that is not.
struct Scene {
    log: Log,
    harm: Harm,
    harmed: std::net::SocketAddr,
    tls: TlsClientConfig,
    canary: TcpStream,
}

impl Scene {
    async fn new(env: &Env) -> Result<Scene> {
        let (server, tls) = Authority::new().both();
        let canary = echo(env, &server, &Log::new())?;
        let canary = TcpStream::connect_tls(canary, &tls, "localhost").await?;
        let (log, harm) = (Log::new(), Harm::default());
        let harmed = relay_with(env, echo(env, &server, &log)?, Fate::Passed, &harm)?;
        Ok(Scene { log, harm, harmed, tls, canary })
    }

    /// What the client is told when it reads on, and the server after it.
    async fn told(&mut self, client: &mut TcpStream) -> Result<(TlsError, String)> {
        client.write_all(b"the question").await?;
        let error = client.read_exact(&mut [0; 12]).await.expect_err("it was harmed");
        let error = error.get_ref().and_then(|cause| cause.downcast_ref::<TlsError>()).cloned();
        round_trip(&mut self.canary, b"nobody else is harmed").await?;
        Ok((error.expect("it is an error of TLS"), self.log.ended().await))
    }
}

/// Protocols that echo; they are served by the same shard.
fn echo(env: &Env, server: &TlsServerConfig, log: &Log) -> Result<std::net::SocketAddr> {
    let listener = listen(env, server, log, |call, transport| {
        let Call::Data(input) = call else { return None };
        transport.write(input.take()).unwrap();
        Some(Ok(()))
    })?;
    Ok(listener.local_addr())
}

#[test]
fn a_record_changed_on_its_way_ends_that_connection_alone_and_both_ends_are_told() {
    on_every_driver(async |env| {
        // The first byte of what is sealed, the last one, which is of the tag, and the length.
        let harms: [fn(&mut Vec<u8>); 3] =
            [|bytes| bytes[5] ^= 1, |bytes| *bytes.last_mut().unwrap() ^= 0x80, |bytes| bytes[4] -= 1];
        for (number, harm) in harms.into_iter().enumerate() {
            let mut scene = Scene::new(&env).await?;
            let mut client = TcpStream::connect_tls(scene.harmed, &scene.tls, "localhost").await?;
            round_trip(&mut client, b"still whole").await?;
            scene.harm.next(harm);
            let (error, server) = scene.told(&mut client).await?;
            assert_eq!(error, TlsError::Protocol("cannot decrypt peer's message".to_string()), "{number}");
            assert_eq!(server, "Tls(AlertReceived { alert: \"bad_record_mac\" })", "{number}");
            assert_eq!(env.handle().report()[0].panics, 0);
        }
        Ok(())
    });
}

/// More than 16 KiB and 256 bytes (RFC 8446 section 5.2): refused by its header, before it has come.
#[test]
fn a_record_longer_than_the_standard_allows_is_refused_by_its_header() {
    on_every_driver(async |env| {
        let mut scene = Scene::new(&env).await?;
        let mut client = TcpStream::connect_tls(scene.harmed, &scene.tls, "localhost").await?;
        round_trip(&mut client, b"still whole").await?;
        scene.harm.next(|bytes| *bytes = [&[23, 3, 3, 0x48, 0x01][..], &[0; 50]].concat());
        let (error, server) = scene.told(&mut client).await?;
        assert!(
            matches!(&error, TlsError::Protocol(problem) if problem.contains("MessageTooLarge")),
            "{error}"
        );
        assert!(server.contains("AlertReceived"), "{server}");
        Ok(())
    });
}

#[test]
fn records_that_come_twice_or_not_at_all_or_of_another_kind_are_found() {
    on_every_driver(async |env| {
        let harms: [fn(&mut Vec<u8>); 3] = [
            |bytes| {
                bytes.drain(..bytes.len());
                bytes.extend_from_slice(&[23, 3, 3, 0, 20]);
                bytes.extend_from_slice(&[7; 20]);
            },
            // A handshake that nobody has sealed, an alert likewise.
            |bytes| bytes.splice(..0, [22, 3, 3, 0, 4, 0, 0, 0, 0]).for_each(drop),
            |bytes| bytes.splice(..0, [21, 3, 3, 0, 2, 1, 0]).for_each(drop),
        ];
        for (number, harm) in harms.into_iter().enumerate() {
            let mut scene = Scene::new(&env).await?;
            let mut client = TcpStream::connect_tls(scene.harmed, &scene.tls, "localhost").await?;
            round_trip(&mut client, b"still whole").await?;
            scene.harm.next(harm);
            let (error, server) = scene.told(&mut client).await?;
            assert!(matches!(&error, TlsError::Protocol(_)), "{number}: {error}");
            assert!(server.contains("AlertReceived"), "{number}: {server}");
        }
        // What was sealed once is opened once.
        let mut scene = Scene::new(&env).await?;
        let mut client = TcpStream::connect_tls(scene.harmed, &scene.tls, "localhost").await?;
        round_trip(&mut client, b"still whole").await?;
        scene.harm.next(|bytes| bytes.extend_from_within(..));
        round_trip(&mut client, b"once").await?;
        let (error, server) = scene.told(&mut client).await?;
        assert_eq!(error, TlsError::Protocol("cannot decrypt peer's message".to_string()));
        assert!(server.contains("bad_record_mac"), "{server}");
        Ok(())
    });
}

#[test]
fn a_handshake_changed_on_its_way_fails_and_nothing_was_delivered() {
    on_every_driver(async |env| {
        // Within the random of the server's hello; the end of its flight.
        let harms: [fn(&mut Vec<u8>); 2] = [|bytes| bytes[20] ^= 1, |bytes| *bytes.last_mut().unwrap() ^= 1];
        for (number, harm) in harms.into_iter().enumerate() {
            let mut scene = Scene::new(&env).await?;
            scene.harm.next(harm);
            let error = TcpStream::connect_tls(scene.harmed, &scene.tls, "localhost").await.unwrap_err();
            assert!(
                matches!(&error, ConnectError::Tls { source: TlsError::Protocol(_), .. }),
                "{number}: {error}"
            );
            round_trip(&mut scene.canary, b"nobody else is harmed").await?;
        }
        Ok(())
    });
}

#[test]
fn a_client_that_was_harmed_reads_what_came_whole_before() {
    on_every_driver(async |env| {
        let scene = Scene::new(&env).await?;
        let mut client = TcpStream::connect_tls(scene.harmed, &scene.tls, "localhost").await?;
        round_trip(&mut client, b"still whole").await?;
        // A record that is whole, and one that is not, in one piece.
        scene.harm.next(|bytes| {
            bytes.extend_from_slice(&[
                23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0,
            ])
        });
        client.write_all(b"the answer to this comes").await?;
        let mut answer = [0; 24];
        client.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"the answer to this comes");
        assert!(read_to_end(&mut client).await.is_err());
        assert!(scene.log.ended().await.contains("bad_record_mac"));
        Ok(())
    });
}
