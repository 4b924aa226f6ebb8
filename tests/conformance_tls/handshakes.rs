//! Who is told what, when, and why a handshake fails.

use std::time::Duration;

use crate::common::{Call, Log, Probe, let_others_go_on, read_to_end};
use crate::tls_kit::Authority;
use crate::{listen, pair};
use rustls::SignatureScheme;
use shardwise::testing::{on_every_driver, on_every_driver_with};
use shardwise::{
    CertificateProblem, ClientCertificates, Config, ConnectError, ConnectOptions, TcpStream, TlsError,
    TlsServerConfig, TlsVersion,
};

#[test]
fn handshake_completed_is_called_before_any_byte_comes_and_knows_the_peer() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let issued = authority.issue(&["a client"]);
        let roots = ClientCertificates::required(authority.pem().as_bytes())?;
        let server = authority.server_builder().client_certificates(roots).alpn(["h2", "echo"]).build()?;
        let client = authority.client_builder().certificate(issued.load()).alpn(["echo"]).build()?;
        let log = Log::new();
        let listener = listen(&env, &server, &log, |call, transport| {
            match call {
                Call::Connected => assert!(transport.is_tls() && transport.tls_info().is_none()),
                Call::HandshakeCompleted => {
                    let info = transport.tls_info().expect("it is complete");
                    assert_eq!(info.version, TlsVersion::V1_3);
                    assert_eq!(info.server_name.as_deref(), Some("localhost"));
                    assert_eq!(info.alpn.as_deref(), Some(&b"echo"[..]));
                    assert_eq!(info.cipher_suite, "TLS_AES_256_GCM_SHA384");
                    assert!(!info.peer_certificates.is_empty());
                }
                _ => {}
            }
            None
        })?;
        let mut stream = TcpStream::connect_tls(listener.local_addr(), &client, "localhost").await?;
        let info = stream.tls_info().expect("it is complete");
        assert_eq!((info.server_name.as_deref(), info.resumed), (Some("localhost"), false));
        assert_eq!(info.peer_certificates.len(), 1);
        stream.write_all(b"hello").await?;
        stream.shutdown_write();
        assert_eq!(log.ended().await, "PeerFinished");
        assert_eq!(
            log.seen(),
            ["connected", "handshake", "data", "read_finished", "disconnected", "dropped"]
        );
        assert_eq!(log.received(), b"hello");
        Ok(())
    });
}

#[test]
fn who_aborts_in_handshake_completed_is_given_no_byte() {
    on_every_driver(async |env| {
        for aborts in [true, false] {
            let (log, mut client) = pair(&env, move |call, transport| {
                if let Call::HandshakeCompleted = call {
                    if aborts { transport.abort() } else { transport.close() }
                }
                None
            })
            .await?;
            let _ = client.write_all(b"too late").await;
            assert_eq!(log.ended().await, if aborts { "Aborted" } else { "Closed" });
            assert_eq!(log.seen(), ["connected", "handshake", "disconnected", "dropped"]);
            assert_eq!(client.read_chunk().await.is_ok_and(|chunk| chunk.is_none()), !aborts);
        }
        Ok(())
    });
}

#[test]
fn a_server_that_is_not_who_it_should_be_is_refused_and_both_ends_are_told_why() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let (server, client) = authority.both();
        let stranger = Authority::new().client();
        let cases =
            [(&client, "example.org", "alert bad_certificate"), (&stranger, "localhost", "alert unknown_ca")];
        for (client, name, alert) in cases {
            let (log, probe) = (Log::new(), Log::new());
            let listener = listen(&env, &server, &log, |_, _| None)?;
            let made = probe.clone();
            let connecting = env
                .shard()
                .connect_tls(listener.local_addr(), client, name, move || Probe::new(&made, |_, _| None));
            let error = connecting.await.unwrap_err();
            let ConnectError::Tls { source: TlsError::Certificate(problem), .. } = &error else {
                panic!("{error}")
            };
            match problem {
                CertificateProblem::WrongName { expected, presented } => {
                    assert_eq!(expected, "example.org");
                    assert!(presented[0].contains("localhost"), "{presented:?}");
                }
                problem => assert_eq!(*problem, CertificateProblem::UnknownIssuer),
            }
            assert!(probe.ended().await.contains("Certificate"));
            assert_eq!(probe.seen(), ["connected", "disconnected", "dropped"]);
            let told = log.ended().await;
            assert!(told.contains(alert.split_once(' ').unwrap().1), "{told}");
            assert_eq!(log.seen(), ["connected", "disconnected", "dropped"]);
        }
        assert!(env.handle().report()[0].tls_failures >= 4);
        Ok(())
    });
}

#[test]
fn a_name_that_no_server_can_have_is_refused_before_anything_is_sent() {
    on_every_driver(async |_env| {
        let client = Authority::new().client();
        let error = TcpStream::connect_tls("127.0.0.1:1", &client, "no name!").await.unwrap_err();
        assert!(error.to_string().ends_with("`no name!` is neither a DNS name nor an IP address"), "{error}");
        Ok(())
    });
}

#[test]
fn a_client_without_the_certificate_asked_for_is_refused_and_optional_ones_may_be_missing() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let stranger = Authority::new().issue(&["a stranger"]);
        let required = ClientCertificates::required(authority.pem().as_bytes())?;
        let optional = ClientCertificates::optional(authority.pem().as_bytes())?;
        for (asked, refuses_none) in [(required, true), (optional, false)] {
            let server = authority.server_builder().client_certificates(asked).build()?;
            for certificate in [None, Some(&stranger)] {
                let log = Log::new();
                let listener = listen(&env, &server, &log, |_, _| None)?;
                let mut client = authority.client_builder();
                if let Some(certificate) = certificate {
                    client = client.certificate(certificate.load());
                }
                let client = client.build()?;
                // With TLS 1.3 the client has finished before the server looks.
                let mut stream = TcpStream::connect_tls(listener.local_addr(), &client, "localhost").await?;
                if certificate.is_none() && !refuses_none {
                    log.saw("handshake").await;
                    assert!(log.transport().await.tls_info().unwrap().peer_certificates.is_empty());
                    continue;
                }
                let reason = log.ended().await;
                let expected = if certificate.is_none() { "Missing" } else { "UnknownIssuer" };
                assert!(reason.contains(expected), "{reason}");
                let error = stream.read_chunk().await.unwrap_err();
                assert!(error.to_string().contains("alert "), "{error}");
                assert!(matches!(
                    error.get_ref().and_then(|error| error.downcast_ref::<TlsError>()),
                    Some(TlsError::AlertReceived { .. })
                ));
            }
        }
        Ok(())
    });
}

#[test]
fn peers_without_a_common_protocol_or_version_do_not_meet() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = authority.server_builder().alpn(["h2"]).build()?;
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let client = authority.client_builder().alpn(["smtp"]).build()?;
        let error = TcpStream::connect_tls(listener.local_addr(), &client, "localhost").await.unwrap_err();
        assert!(error.to_string().contains("no_application_protocol"), "{error}");
        assert!(log.ended().await.contains("no_application_protocol"));
        Ok(())
    });
}

#[test]
fn the_certificate_is_the_one_for_the_name_asked_for() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = |strict| {
            TlsServerConfig::builder()
                .certificate(authority.issue(&["one.example"]).load())
                .certificate(authority.issue(&["*.two.example", "two.example"]).load())
                .refuse_unknown_names(strict)
                .build()
        };
        let (lenient, strict) = (server(false)?, server(true)?);
        let client = authority.client();
        let listener = env.shard().serve_tls("127.0.0.1:0", &lenient, async |_| Ok(()))?;
        for name in ["one.example", "ONE.example", "two.example", "www.two.example"] {
            TcpStream::connect_tls(listener.local_addr(), &client, name).await?;
        }
        let error =
            TcpStream::connect_tls(listener.local_addr(), &client, "three.example").await.unwrap_err();
        let ConnectError::Tls {
            source: TlsError::Certificate(CertificateProblem::WrongName { presented, .. }),
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert!(presented[0].contains("one.example"), "the first one is shown: {presented:?}");
        let listener = env.shard().serve_tls("127.0.0.1:0", &strict, async |_| Ok(()))?;
        TcpStream::connect_tls(listener.local_addr(), &client, "a.two.example").await?;
        let error =
            TcpStream::connect_tls(listener.local_addr(), &client, "three.example").await.unwrap_err();
        assert!(error.to_string().contains("alert access_denied"), "{error}");
        Ok(())
    });
}

#[test]
fn of_two_certificates_for_a_name_the_client_is_shown_one_that_it_understands() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        // Keys of another kind than the authority's others.
        let other_kind = || authority.issue_for(&["localhost"], &rcgen::PKCS_ED25519).load();
        let one_kind = || authority.issue(&["localhost"]).load();
        let orders = [[one_kind(), other_kind()], [other_kind(), one_kind()]];
        for certificates in orders {
            let mut server = TlsServerConfig::builder();
            for certificate in certificates {
                server = server.certificate(certificate);
            }
            let listener = env.shard().serve_tls("127.0.0.1:0", &server.build()?, async |_| Ok(()))?;
            for scheme in [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519] {
                let tls = authority.client_that_understands(scheme);
                // With SNI, and without a name.
                for name in ["localhost", "127.0.0.1"] {
                    let outcome = TcpStream::connect_tls(listener.local_addr(), &tls, name).await;
                    match outcome {
                        Ok(_) => assert_eq!(name, "localhost"),
                        Err(ConnectError::Tls { source: TlsError::Certificate(problem), .. }) => {
                            assert!(matches!(problem, CertificateProblem::WrongName { .. }), "{problem}");
                            assert_eq!(name, "127.0.0.1");
                        }
                        Err(error) => panic!("{scheme:?}, {name}: {error}"),
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn an_attempt_that_its_own_protocol_ends_is_not_blamed_on_the_peer() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |_| Ok(()))?;
        for panics in [false, true] {
            let probe = Log::new();
            let made = probe.clone();
            let attempt = env.shard().connect_tls(listener.local_addr(), &tls, "localhost", move || {
                Probe::new(&made, move |call, _| match call {
                    Call::Connected if panics => panic!("not today"),
                    Call::Connected => Some(Err("not today".into())),
                    _ => None,
                })
            });
            let error = attempt.await.unwrap_err();
            assert!(matches!(error, ConnectError::Cancelled), "{error}");
            let reason = if panics { "Panicked(not today)" } else { "Protocol(not today)" };
            assert_eq!(probe.ended().await, reason);
        }
        Ok(())
    });
}

#[test]
fn who_does_not_speak_tls_is_told_so_by_both_ends() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let (server, tls) = authority.both();
        // A client that speaks HTTP.
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        let alert = read_to_end(&mut client).await?;
        assert_eq!(alert.first(), Some(&21), "an alert: {alert:?}");
        drop(client);
        let reason = log.ended().await;
        assert!(reason.contains("NotTls") && reason.contains("began_with: \"G"), "{reason}");
        assert_eq!(log.seen(), ["connected", "disconnected", "dropped"]);
        // A server that does.
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            stream.read_chunk().await?;
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
            Ok(())
        })?;
        let error = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await.unwrap_err();
        assert!(error.to_string().contains("the peer does not speak TLS: it began with `H"), "{error}");
        Ok(())
    });
}

#[test]
fn a_peer_that_leaves_in_the_handshake_is_no_clean_end() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let before = env.handle().report()[0].open_connections;
        drop(TcpStream::connect(listener.local_addr()).await?);
        assert_eq!(log.ended().await, "Tls(ClosedInHandshake)");
        // Nothing of it lingers: that would be five seconds.
        let begun = env.shard().now();
        while env.handle().report()[0].open_connections > before {
            shardwise::yield_now().await;
            env.shard().sleep(Duration::from_millis(1)).await;
        }
        assert!(env.shard().now() - begun < Config::default().linger_timeout / 2);
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |stream: TcpStream| {
            stream.close();
            Ok(())
        })?;
        let error = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await.unwrap_err();
        assert!(
            matches!(
                error,
                ConnectError::Tls { source: TlsError::ClosedInHandshake, .. } | ConnectError::Os { .. }
            ),
            "{error}"
        );
        Ok(())
    });
}

#[test]
fn a_handshake_has_its_time_however_it_trickles() {
    let mut config = Config::default();
    config.handshake_timeout = Duration::from_millis(60);
    on_every_driver_with(2, config, async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let begun = env.shard().now();
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        // The beginning of a record of a handshake, then one byte of it after the other.
        client.write_all(&[22, 3, 1, 2, 0, 1]).await?;
        while client.write_all(&[0]).await.is_ok() && log.count("dropped") == 0 {
            env.shard().sleep(Duration::from_millis(7)).await;
        }
        assert_eq!(log.ended().await, "Tls(HandshakeTimedOut { after: 60ms })");
        assert!(env.shard().now() - begun >= Duration::from_millis(60), "too early");
        // A silent server.
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            read_to_end(&mut stream).await?;
            Ok(())
        })?;
        let error = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await.unwrap_err();
        assert!(
            matches!(error, ConnectError::Tls { source: TlsError::HandshakeTimedOut { .. }, .. }),
            "{error}"
        );
        // One that is complete is not ended by it.
        let (log, mut client) = pair(&env, |_, _| None).await?;
        env.shard().sleep(Duration::from_millis(100)).await;
        client.write_all(b"still here").await?;
        client.close();
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}

#[test]
fn a_timeout_that_the_caller_gives_covers_the_handshake() {
    on_every_driver(async |env| {
        let tls = Authority::new().client();
        let silent = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            read_to_end(&mut stream).await?;
            Ok(())
        })?;
        let begun = env.shard().now();
        let options = ConnectOptions::new().timeout(Duration::from_millis(50));
        let attempt = env.shard().connect_tls_with(silent.local_addr(), &tls, "localhost", &options, || {
            Probe::new(&Log::new(), |_, _| None)
        });
        let error = attempt.await.unwrap_err();
        let took = env.shard().now() - begun;
        let ConnectError::Tls { source: TlsError::HandshakeTimedOut { after }, .. } = error else {
            panic!("{error}")
        };
        assert!(after <= Duration::from_millis(50), "{after:?}");
        assert!(took >= Duration::from_millis(50) && took < Duration::from_secs(5), "{took:?}");
        Ok(())
    });
}

#[test]
fn an_attempt_that_is_given_up_in_the_handshake_leaves_nothing() {
    on_every_driver(async |env| {
        let tls = Authority::new().client();
        let peer = Log::new();
        let noted = peer.clone();
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            stream.read_chunk().await?;
            noted.note("hello");
            let _ = read_to_end(&mut stream).await;
            noted.note("gone");
            Ok(())
        })?;
        let probe = Log::new();
        let made = probe.clone();
        let connecting = env
            .shard()
            .connect_tls(listener.local_addr(), &tls, "localhost", move || Probe::new(&made, |_, _| None));
        peer.saw("hello").await;
        connecting.cancel();
        assert!(matches!(connecting.await, Err(ConnectError::Cancelled)));
        peer.saw("gone").await;
        assert_eq!(probe.ended().await, "Aborted");
        let_others_go_on(&env).await?;
        Ok(())
    });
}

#[test]
fn a_handshake_completed_that_fails_or_panics_ends_that_connection_alone_with_its_error() {
    on_every_driver(async |env| {
        for panics in [false, true] {
            let (log, mut client) = pair(&env, move |call, _| match call {
                Call::HandshakeCompleted if panics => panic!("not you"),
                Call::HandshakeCompleted => Some(Err("not you".into())),
                _ => None,
            })
            .await?;
            let _ = client.write_all(b"hello").await;
            let _ = read_to_end(&mut client).await;
            drop(client);
            let expected = if panics { "Panicked(not you)" } else { "Protocol(not you)" };
            assert_eq!(log.ended().await, expected);
            assert_eq!(log.seen(), ["connected", "handshake", "disconnected", "dropped"]);
        }
        Ok(())
    });
}
