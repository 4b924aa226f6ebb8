//! Code of the application inside TLS: it may use the shard, and may fail.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{Call, Log, Probe, let_others_go_on, read_to_end, round_trip};
use crate::listen;
use crate::tls_kit::Authority;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use shardwise::testing::on_every_driver;
use shardwise::{ConnectError, Shard, TcpStream, TlsClientConfig, TlsServerConfig, Transport, WriteError};

thread_local! {
    /// The connection whose handshake is under way, for a resolver that wants to know.
    static OURS: RefCell<Option<Transport>> = const { RefCell::new(None) };
}

/// Chooses the only certificate there is, and does something else as well.
#[derive(Debug)]
struct Eager {
    inner: SingleCertAndKey,
    resolving: fn(&Transport),
    dropping: fn(&Shard),
}

impl ResolvesServerCert for Eager {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let ours = OURS.with_borrow(Clone::clone);
        ours.iter().for_each(self.resolving);
        self.inner.resolve(hello)
    }
}

impl Drop for Eager {
    fn drop(&mut self) {
        Shard::try_current().iter().for_each(self.dropping);
    }
}

fn server(authority: &Authority, resolving: fn(&Transport), dropping: fn(&Shard)) -> TlsServerConfig {
    let issued = authority.issue(&["localhost"]);
    let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = provider.key_provider.load_private_key(key).unwrap();
    let inner = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Eager { inner, resolving, dropping }));
    TlsServerConfig::from_rustls(Arc::new(config))
}

fn note_ours(call: &mut Call<'_, '_>, transport: &Transport) -> Option<shardwise::Result<()>> {
    if let Call::Connected = call {
        OURS.set(Some(transport.clone()));
    }
    None
}

#[test]
fn a_resolver_that_panics_costs_its_connection_alone() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = server(&authority, |_| panic!("no certificate today"), |_| {});
        let log = Log::new();
        let listener = listen(&env, &server, &log, note_ours)?;
        let outcome = TcpStream::connect_tls(listener.local_addr(), &authority.client(), "localhost").await;
        assert!(outcome.is_err());
        assert_eq!(log.ended().await, "Panicked(no certificate today)");
        assert_eq!(log.seen(), ["connected", "disconnected", "dropped"]);
        let_others_go_on(&env).await?;
        let report = env.handle().report();
        assert_eq!((report[0].panics, report[0].tls_failures >= 1), (1, true));
        OURS.take();
        Ok(())
    });
}

#[test]
fn a_resolver_may_use_its_connection_and_the_shard() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = server(
            &authority,
            |transport| {
                assert!(transport.is_open() && transport.is_tls() && transport.tls_info().is_none());
                transport.write(b"written by the resolver").unwrap();
                assert_eq!(transport.buffered(), 23);
                drop(transport.shard().call_later(Duration::ZERO, |_| {}));
            },
            |_| {},
        );
        let log = Log::new();
        let listener = listen(&env, &server, &log, note_ours)?;
        let mut client =
            TcpStream::connect_tls(listener.local_addr(), &authority.client(), "localhost").await?;
        let mut received = [0; 23];
        client.read_exact(&mut received).await?;
        assert_eq!(&received, b"written by the resolver");
        OURS.take();
        client.close();
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}

#[test]
fn a_resolver_may_end_its_connection() {
    on_every_driver(async |env| {
        for aborts in [false, true] {
            let authority = Authority::new();
            let abort = |transport: &Transport| {
                transport.write(b"never sent").unwrap();
                transport.abort();
                assert_eq!(transport.write(b"more"), Err(WriteError::Closed));
            };
            let server = server(&authority, if aborts { abort } else { Transport::close }, |_| {});
            let log = Log::new();
            let listener = listen(&env, &server, &log, note_ours)?;
            let outcome =
                TcpStream::connect_tls(listener.local_addr(), &authority.client(), "localhost").await;
            // The peer may have all it needs by then.
            if let Ok(mut client) = outcome {
                let _ = read_to_end(&mut client).await;
            }
            assert_eq!(log.ended().await, if aborts { "Aborted" } else { "Closed" });
            OURS.take();
        }
        Ok(())
    });
}

#[test]
fn what_a_session_is_the_last_to_hold_may_use_the_shard_when_it_is_dropped_and_may_panic() {
    on_every_driver(async |env| {
        for panics in [false, true] {
            let authority = Authority::new();
            let use_shard = |shard: &Shard| drop(shard.call_later(Duration::ZERO, |_| {}));
            let dropping = if panics { |_: &Shard| panic!("not me") } else { use_shard };
            let server = server(&authority, |_| {}, dropping);
            let log = Log::new();
            let listener = listen(&env, &server, &log, |_, _| None)?;
            let before = env.handle().report()[0].panics;
            // Once its handshake is complete a session holds nothing of the application's.
            let client = TcpStream::connect(listener.local_addr()).await?;
            log.saw("connected").await;
            listener.close().await;
            drop(server);
            let_others_go_on(&env).await?;
            client.close();
            assert_eq!(log.ended().await, "Tls(ClosedInHandshake)");
            let_others_go_on(&env).await?;
            assert_eq!(env.handle().report()[0].panics - before, u64::from(panics));
        }
        let mut other = TcpStream::connect(crate::common::echo_server(&env)?).await?;
        round_trip(&mut other, b"the shard goes on").await
    });
}

/// Keeps no session, and does something when it is asked for one, or given one.
#[derive(Debug)]
struct Store {
    asked: AtomicUsize,
    asking: fn(),
    keeping: fn(),
}

impl ClientSessionStore for Store {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        (self.keeping)();
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        (self.asking)();
        None
    }
}

fn client(authority: &Authority, asking: fn(), keeping: fn()) -> (TlsClientConfig, Arc<Store>) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let store = Arc::new(Store { asked: AtomicUsize::new(0), asking, keeping });
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::store(Arc::clone(&store) as _);
    (TlsClientConfig::from_rustls(Arc::new(config)), store)
}

#[test]
fn a_session_is_asked_for_once_a_connection_stands() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let (tls, store) = client(&authority, || {}, || {});
        let listener = env.shard().serve_tls("127.0.0.1:0", &authority.server(), async |_| Ok(()))?;
        let addr = listener.local_addr();
        TcpStream::connect_tls(addr, &tls, "localhost").await?;
        assert_eq!(store.asked.load(Ordering::Relaxed), 1);
        listener.close().await;
        let refused = TcpStream::connect_tls(addr, &tls, "localhost").await.unwrap_err();
        assert!(matches!(refused, ConnectError::Refused { .. }), "{refused}");
        assert_eq!(store.asked.load(Ordering::Relaxed), 1);
        Ok(())
    });
}

#[test]
fn a_store_of_sessions_that_panics_costs_its_connection_alone() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let listener =
            env.shard().serve_tls("127.0.0.1:0", &authority.server(), async |mut stream: TcpStream| {
                stream.write_all(b"hello").await?;
                read_to_end(&mut stream).await?;
                Ok(())
            })?;
        let (tls, _) = client(&authority, || panic!("no session today"), || {});
        let error = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await.unwrap_err();
        assert!(matches!(error, ConnectError::Cancelled), "{error}");
        let (tls, _) = client(&authority, || {}, || panic!("no room today"));
        // Tickets come after the handshake.
        let outcome = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await;
        if let Ok(mut stream) = outcome {
            let error = read_to_end(&mut stream).await.unwrap_err();
            assert!(error.to_string().contains("no room today"), "{error}");
        }
        assert_eq!(env.handle().report()[0].panics, 2);
        Ok(())
    });
}

#[test]
fn a_store_of_sessions_may_use_the_shard_and_a_connection_that_gets_its_ticket() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let server = authority.server();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let keeping = || {
            let ours = OURS.with_borrow(Clone::clone);
            if let Some(transport) = ours {
                // Long enough to be sealed and sent at once, if that could be.
                transport.write(&[7; 10_000]).unwrap();
            }
        };
        let (tls, _) = client(&authority, || {}, keeping);
        let probe = Log::new();
        let made = probe.clone();
        env.shard()
            .connect_tls(listener.local_addr(), &tls, "localhost", move || Probe::new(&made, note_ours))
            .await?;
        // Two tickets, unless the server is told otherwise.
        log.until(|state| state.received.len() == 20_000).await;
        OURS.take();
        probe.transport().await.close();
        assert_eq!(log.ended().await, "PeerFinished");
        Ok(())
    });
}
