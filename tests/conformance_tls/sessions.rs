//! Sessions that are resumed, certificates that are replaced.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::{Log, read_to_end, round_trip};
use crate::tls_kit::{Authority, Issued};
use shardwise::testing::{Env, on_every_driver};
use shardwise::{Result, Shard, ShardId, TcpStream, TlsCertificate, TlsConfigError, TlsServerConfig};

/// A folder of this run's own.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new(env: &Env) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("shardwise-reload-{}-{}-{number}", std::process::id(), env.seed());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder { path }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn put(&self, issued: &Issued) {
        std::fs::write(self.at("cert.pem"), &issued.certificate).unwrap();
        std::fs::write(self.at("key.pem"), &issued.key).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

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
        let folder = Folder::new(&env);
        let (certificate, key) = (folder.at("cert.pem"), folder.at("key.pem"));
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
        Ok(())
    });
}

/// As after a restart: another configuration, with the same certificate, and keys that were kept, or not.
#[test]
fn sessions_outlive_a_configuration_whose_ticket_keys_are_kept() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        for keeps in [true, false] {
            let issued = authority.issue(&["localhost"]);
            let kept = rustls::crypto::aws_lc_rs::Ticketer::new()?;
            let tls = authority.client();
            for visit in 0..3 {
                let mut server = TlsServerConfig::builder().certificate(issued.load());
                if keeps {
                    server = server.ticketer(Arc::clone(&kept));
                }
                let listener = env.shard().serve_tls(
                    "127.0.0.1:0",
                    &server.build()?,
                    async |mut stream: TcpStream| {
                        let rest = read_to_end(&mut stream).await?;
                        stream.write_all(&rest).await?;
                        Ok(())
                    },
                )?;
                let mut stream = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
                assert_eq!(stream.tls_info().unwrap().resumed, keeps && visit > 0, "visit {visit}");
                stream.write_all(b"again").await?;
                stream.shutdown_write();
                // To the end: tickets come behind the handshake.
                assert_eq!(read_to_end(&mut stream).await?, b"again");
            }
        }
        Ok(())
    });
}

/// Clients that come anew for each request, and clients that stay, while the files are replaced and read again.
#[test]
fn a_certificate_swapped_under_load_fails_no_request() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let folder = Folder::new(&env);
        folder.put(&authority.issue(&["localhost"]));
        let server = TlsServerConfig::from_files(folder.at("cert.pem"), folder.at("key.pem"))?;
        let tls = authority.client_builder().resumption(false).build()?;
        let mut addrs = Vec::new();
        for shard in 0..2 {
            let server = server.clone();
            let listening = env.shard().call_async(ShardId::new(shard), async move |shard: Shard| {
                let listener = shard.serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
                    while let Some(chunk) = stream.read_chunk().await? {
                        stream.write_all(&chunk).await?;
                    }
                    Ok(())
                })?;
                Result::Ok(listener.local_addr())
            });
            addrs.push(listening.await??);
        }
        const CLIENTS: usize = 6;
        const REQUESTS: usize = 12;
        let (done, failures) = (Log::new(), Rc::new(RefCell::new(Vec::new())));
        let seen = Rc::new(RefCell::new(HashSet::new()));
        for client in 0..CLIENTS {
            let (tls, done, seen, addr) = (tls.clone(), done.clone(), Rc::clone(&seen), addrs[client % 2]);
            let failures = Rc::clone(&failures);
            let stays = client < CLIENTS / 2;
            drop(env.shard().spawn(async move {
                let mut open = None;
                for request in 0..REQUESTS {
                    let outcome = async {
                        let mut stream = match open.take() {
                            Some(stream) => stream,
                            None => TcpStream::connect_tls(addr, &tls, "localhost").await?,
                        };
                        let info = stream.tls_info().expect("it is secured");
                        seen.borrow_mut().insert(info.peer_certificates[0].clone());
                        round_trip(&mut stream, b"request").await?;
                        if stays {
                            open = Some(stream);
                        }
                        Result::Ok(())
                    };
                    if let Err(error) = outcome.await {
                        failures.borrow_mut().push(format!("{client}.{request}: {error}"));
                    }
                    done.note("served");
                }
            }));
        }
        let mut swaps = 0;
        while done.count("served") < CLIENTS * REQUESTS {
            folder.put(&authority.issue(&["localhost"]));
            server.reload()?;
            swaps += 1;
            let served = done.count("served");
            done.until(|state| state.seen.len() >= (served + 5).min(CLIENTS * REQUESTS)).await;
        }
        assert_eq!(*failures.borrow(), Vec::<String>::new());
        assert!(swaps > 5, "{swaps}");
        assert!(seen.borrow().len() > 2, "{} certificates in {swaps} swaps", seen.borrow().len());
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

/// Fault 58.
#[test]
fn a_key_that_other_users_can_read_is_used_with_a_warning_that_names_it() {
    use std::os::unix::fs::PermissionsExt;
    let warnings = Warnings::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(warnings.clone()).finish();
    let path = std::env::temp_dir().join(format!("shardwise-key-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    let folder = Folder { path };
    folder.put(&Authority::new().issue(&["localhost"]));
    tracing::subscriber::with_default(subscriber, || {
        for (mode, warns) in [(0o600, false), (0o640, false), (0o644, true), (0o602, true), (0o600, false)] {
            std::fs::set_permissions(folder.at("key.pem"), std::fs::Permissions::from_mode(mode)).unwrap();
            // Another test may have met the log line for the first time while nobody listened.
            tracing::callsite::rebuild_interest_cache();
            TlsServerConfig::from_files(folder.at("cert.pem"), folder.at("key.pem")).unwrap();
            let said = std::mem::take(&mut *warnings.text.lock().unwrap());
            let said = String::from_utf8(said).unwrap();
            let named = said.contains("WARN") && said.contains(&folder.at("key.pem").display().to_string());
            assert_eq!((named, said.is_empty()), (warns, !warns), "mode {mode:o}: {said}");
        }
    });
}

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Warnings {
    text: Arc<Mutex<Vec<u8>>>,
}

impl std::io::Write for Warnings {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.text.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Warnings {
    type Writer = Warnings;
    fn make_writer(&'a self) -> Warnings {
        self.clone()
    }
}
