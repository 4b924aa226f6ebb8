//! Sessions that are resumed, certificates that are replaced.

use crate::common::{Log, read_to_end, round_trip};
use crate::tls_kit::Authority;
use shardwise::testing::on_every_driver;
use shardwise::{Result, Shard, ShardId, TcpStream, TlsCertificate, TlsConfigError, TlsServerConfig};

#[test]
fn a_session_is_resumed_on_whichever_shard_the_next_connection_lands() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let mut addrs = Vec::new();
        // One listener on each shard, so that it is known where a connection lands.
        for shard in 0..2 {
            let server = server.clone();
            let listening = env.shard().call_async(ShardId::new(shard), async move |shard: Shard| {
                let listener = shard.serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
                    let rest = read_to_end(&mut stream).await?;
                    stream.write_all(&rest).await?;
                    Ok(())
                })?;
                Result::Ok(listener.local_addr())
            });
            addrs.push(listening.await??);
        }
        for visit in 0..10 {
            let mut stream = TcpStream::connect_tls(addrs[visit % 2], &tls, "localhost").await?;
            assert_eq!(stream.tls_info().unwrap().resumed, visit > 0, "visit {visit}");
            stream.write_all(b"again").await?;
            stream.shutdown_write();
            // To the end: tickets come behind the handshake.
            assert_eq!(read_to_end(&mut stream).await?, b"again");
        }
        // The client's sessions are those of all its clones, also on another shard.
        let (clone, addr) = (tls.clone(), addrs[0]);
        let resumed = env.shard().call_async(ShardId::new(1), async move |_shard: Shard| {
            let stream = TcpStream::connect_tls(addr, &clone, "localhost").await?;
            Result::Ok(stream.tls_info().unwrap().resumed)
        });
        assert!(resumed.await??);
        // Switched off on either side, there are none.
        let without = Authority::new();
        let server = without.server_builder().session_tickets(false).build()?;
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |_| Ok(()))?;
        let tls = without.client();
        for _ in 0..2 {
            let mut stream = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
            assert!(!stream.tls_info().unwrap().resumed);
            read_to_end(&mut stream).await?;
        }
        Ok(())
    });
}

#[test]
fn certificates_are_replaced_while_connections_go_on_and_a_bad_file_changes_nothing() {
    on_every_driver(async |env| {
        let folder = std::env::temp_dir().join(format!(
            "shardwise-reload-{}-{}-{:?}",
            std::process::id(),
            env.seed(),
            std::thread::current().id()
        ));
        std::fs::create_dir_all(&folder)?;
        let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        let (old, new) = (Authority::new(), Authority::new());
        let issued = old.issue(&["localhost"]);
        std::fs::write(&certificate, &issued.certificate)?;
        std::fs::write(&key, &issued.key)?;
        let server = TlsServerConfig::from_files(&certificate, &key)?;
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        })?;
        let addr = listener.local_addr();
        let (old_tls, new_tls) = (old.client(), new.client());
        let mut open = TcpStream::connect_tls(addr, &old_tls, "localhost").await?;
        round_trip(&mut open, b"before").await?;

        // A key of another certificate, garbage, and a file that is gone.
        let issued = new.issue(&["localhost"]);
        std::fs::write(&certificate, &issued.certificate)?;
        let error = server.reload().unwrap_err();
        assert!(
            matches!(&error, TlsConfigError::KeyMismatch { place } if place.ends_with("cert.pem")),
            "{error}"
        );
        std::fs::write(&key, "not a key")?;
        let error = server.reload().unwrap_err();
        assert!(error.to_string().ends_with("key.pem: there is no private key in PEM"), "{error}");
        std::fs::remove_file(&key)?;
        assert!(matches!(server.reload(), Err(TlsConfigError::File { .. })));
        let mut stream = TcpStream::connect_tls(addr, &old_tls, "localhost").await?;
        round_trip(&mut stream, b"the old one is used").await?;

        std::fs::write(&key, &issued.key)?;
        server.reload()?;
        let mut stream = TcpStream::connect_tls(addr, &new_tls, "localhost").await?;
        round_trip(&mut stream, b"the new one is used").await?;
        // One that has no session to resume.
        let stranger = old.client();
        assert!(TcpStream::connect_tls(addr, &stranger, "localhost").await.is_err());
        round_trip(&mut open, b"after").await?;

        server.replace(vec![old.issue(&["localhost"]).load()])?;
        TcpStream::connect_tls(addr, &stranger, "localhost").await?;
        assert!(matches!(server.replace(Vec::new()), Err(TlsConfigError::NoCertificate)));
        std::fs::remove_dir_all(&folder)?;
        Ok(())
    });
}

#[test]
fn a_certificate_swapped_under_load_fails_no_request() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = authority.server();
        let tls = authority.client_builder().resumption(false).build()?;
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
            let request = read_to_end(&mut stream).await?;
            stream.write_all(&request).await?;
            Ok(())
        })?;
        let addr = listener.local_addr();
        let (done, clients) = (Log::new(), 4);
        for client in 0..clients {
            let (tls, done) = (tls.clone(), done.clone());
            drop(env.shard().spawn(async move {
                for request in 0..8 {
                    let answer = async {
                        let mut stream = TcpStream::connect_tls(addr, &tls, "localhost").await?;
                        stream.write_all(b"request").await?;
                        stream.shutdown_write();
                        Result::Ok(read_to_end(&mut stream).await?)
                    };
                    let answer = answer.await.unwrap_or_else(|error| panic!("{client}.{request}: {error}"));
                    assert_eq!(answer, b"request");
                    done.note("served");
                }
            }));
        }
        let mut swaps = 0;
        while done.count("served") < clients * 8 {
            server.replace(vec![authority.issue(&["localhost"]).load()])?;
            swaps += 1;
            let served = done.count("served");
            done.until(|state| state.seen.len() > served).await;
        }
        assert!(swaps > 2, "{swaps}");
        Ok(())
    });
}

#[test]
fn what_cannot_work_is_refused_when_it_is_configured_and_named() {
    let authority = Authority::new();
    let issued = authority.issue(&["localhost"]);
    let other = authority.issue(&["localhost"]);
    let load = |certificate: &str, key: &str| {
        TlsCertificate::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err().to_string()
    };
    assert_eq!(load("", &issued.key), "the certificate: there is no certificate in PEM");
    assert_eq!(load(&issued.certificate, ""), "the private key: there is no private key in PEM");
    assert_eq!(
        load(&issued.certificate, &other.key),
        "the certificate: the private key belongs to another certificate"
    );
    let expired = authority.issue_with(&["localhost"], |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let text = load(&expired.certificate, &expired.key);
    assert!(
        text.starts_with("the certificate: the certificate expired ") && text.ends_with(" days ago"),
        "{text}"
    );
    let early = authority.issue_with(&["localhost"], |params| {
        params.not_before = rcgen::date_time_ymd(2900, 1, 1);
        params.not_after = rcgen::date_time_ymd(2901, 1, 1);
    });
    assert!(load(&early.certificate, &early.key).contains("is not valid for another "));
    let error = TlsCertificate::from_files("/nonexistent/cert.pem", "/nonexistent/key.pem").unwrap_err();
    assert!(error.to_string().starts_with("cannot read /nonexistent/cert.pem: No such file"), "{error}");
    assert!(matches!(TlsServerConfig::builder().build(), Err(TlsConfigError::NoCertificate)));
    assert!(matches!(shardwise::TlsClientConfig::builder().build(), Err(TlsConfigError::NoRoots)));
}
