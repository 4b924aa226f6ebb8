//! Listening and connecting by endpoints.

use std::time::Duration;

use shardwise::proxy_protocol::{Addresses, Version};
use shardwise::testing::on_every_driver;
use shardwise::{
    Addr, ClientService, ConnectError, Incoming, ListenError, Listener, LoadedServer, Result, Shard,
    TcpStream,
};

use crate::common::{Echo, Log, Probe, on_the_kernel, round_trip};
use crate::tls_kit::Authority;
use crate::{Folder, at, client, client_of, server};

/// An echo in either style.
fn echoes(shard: &Shard, server: &LoadedServer, as_task: bool) -> Result<Listener<Addr>> {
    if !as_task {
        return Ok(shard.listen(server, || Echo)?);
    }
    Ok(shard.serve(server, async |mut stream: TcpStream| {
        while let Some(chunk) = stream.read_chunk().await? {
            stream.write_all(&chunk).await?;
        }
        Ok(())
    })?)
}

#[test]
fn every_kind_of_endpoint_that_can_be_listened_on_serves_both_styles() {
    on_every_driver(async |env| {
        let folder = Folder::new();
        let authority = Authority::new();
        let identity = folder.put_identity(&authority.issue(&["localhost", "127.0.0.1"]));
        let roots = folder.put_roots(&authority);
        for (listens, connects) in [
            ("127.0.0.1:0".to_string(), "tcp:127.0.0.1:PORT".to_string()),
            ("localhost:0".to_string(), "localhost:PORT".to_string()),
            ("tcp:0:interface=127.0.0.1:backlog=7".to_string(), "127.0.0.1:PORT".to_string()),
            ("tcp6:0:interface=[::1]".to_string(), "tcp:[::1]:PORT".to_string()),
            (format!("tls:0:{identity}:interface=127.0.0.1"), format!("tls:127.0.0.1:PORT:{roots}")),
            (
                format!("ssl:0:{identity}:interface=127.0.0.1"),
                format!(r"tls:localhost:endpoint=tcp\:127.0.0.1\:PORT:{roots}"),
            ),
        ] {
            let server = server(&listens)?;
            for as_task in [false, true] {
                let listener = echoes(env.shard(), &server, as_task)?;
                let port = at(&listener).port().to_string();
                let client = client(&connects.replace("PORT", &port))?;
                let mut stream = TcpStream::connect_to(&client).await?;
                round_trip(&mut stream, b"by text").await?;
                assert_eq!(stream.transport().is_tls(), listens.contains("key.pem"));
                drop(stream);

                let log = Log::new();
                let probe = log.clone();
                let transport = env.shard().connect(&client, move || Probe::new(&probe, |_, _| None)).await?;
                transport.write(b"by text")?;
                log.until(|state| state.received == b"by text").await;
                transport.close();
                log.ended().await;
                listener.close().await;
            }
        }
        Ok(())
    });
}

#[test]
fn shards_that_listen_with_one_loaded_endpoint_share_its_address_and_its_sessions() {
    on_every_driver(async |env| {
        let folder = Folder::new();
        let authority = Authority::new();
        let identity = folder.put_identity(&authority.issue(&["localhost"]));
        let server = server(&format!("tls:0:{identity}:interface=127.0.0.1"))?;
        let on_all = server.clone();
        let listened = env
            .shard()
            .call_all(move |shard| shard.listen(&on_all, || Echo).map(|listener| at(&listener)))
            .await;
        let mut addrs = Vec::new();
        for addr in listened {
            addrs.push(addr??);
        }
        assert!(addrs.len() == 2 && addrs[0] == addrs[1], "{addrs:?}");
        let error = env.shard().listen(&server.clone(), || Echo).map(|listener| at(&listener).port());
        assert!(error.is_ok(), "port 0 is another one each time");
        let roots = folder.put_roots(&authority);
        let client = client(&format!(r"tls:localhost:endpoint=tcp\:127.0.0.1\:{}:{roots}", addrs[0].port()))?;
        for visit in 0..8 {
            let mut stream = TcpStream::connect_to(&client).await?;
            round_trip(&mut stream, b"hello").await?;
            assert_eq!(stream.tls_info().unwrap().resumed, visit > 0, "visit {visit}");
        }
        Ok(())
    });
}

#[test]
fn an_endpoint_in_use_is_an_error_that_names_the_address() {
    on_every_driver(async |env| {
        let first = env.shard().listen(&server("127.0.0.1:0")?, || Echo)?;
        let taken = first.local_addr();
        let error = env.shard().listen(&server(&taken.to_string())?, || Echo).unwrap_err();
        assert!(matches!(&error, ListenError::AddressInUse { addr } if *addr == taken), "{error}");
        Ok(())
    });
}

#[test]
fn the_timeout_and_the_address_to_connect_from_are_the_endpoints() {
    on_every_driver(async |env| {
        env.names().silence("silent.example");
        let began = env.shard().now();
        let error = TcpStream::connect_to(&client("tcp:silent.example:80:timeout=0.25")?).await.unwrap_err();
        let took = env.shard().now() - began;
        assert!(matches!(error, ConnectError::Resolve(_)), "{error}");
        assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(4), "{took:?}");

        let (log, seen) = (Log::new(), std::rc::Rc::new(std::cell::Cell::new(None)));
        let (probe, note) = (log.clone(), seen.clone());
        let listener = env.shard().listen(&server("127.0.0.1:0")?, move |incoming: &Incoming<'_>| {
            note.set(Some(incoming.peer_addr().unwrap().ip()));
            Probe::new(&probe, |_, _| None)
        })?;
        let port = at(&listener).port();
        let stream =
            TcpStream::connect_to(&client(&format!("tcp:127.0.0.1:{port}:bindAddress=127.0.0.2"))?).await?;
        log.saw("connected").await;
        assert_eq!(seen.get(), Some([127, 0, 0, 2].into()));
        drop(stream);
        log.ended().await;
        Ok(())
    });
}

#[test]
fn an_attempt_can_be_cancelled_and_a_factory_may_refuse() {
    on_every_driver(async |env| {
        let listener = env.shard().listen(&server("127.0.0.1:0")?, || Echo)?;
        let client = client_of(at(&listener));
        let attempt = env.shard().connect(&client, || Echo);
        attempt.cancel();
        assert!(matches!(attempt.await, Err(ConnectError::Cancelled)));
        let refused = env.shard().connect(&client, || None::<Echo>).await;
        assert!(matches!(refused, Err(ConnectError::NoProtocol)));
        Ok(())
    });
}

#[test]
fn tls_of_the_applications_own_takes_the_place_of_the_endpoints() {
    on_every_driver(async |env| {
        let authority = Authority::new();
        let tls = authority.server_builder().alpn(["line"]).build()?;
        let listener = env.shard().serve(&server("127.0.0.1:0")?.with_tls(&tls), async |mut stream| {
            let Some(chunk) = stream.read_chunk().await? else { return Ok(()) };
            stream.write_all(&chunk).await?;
            Ok(())
        })?;
        let tls = authority.client_builder().alpn(["line"]).build()?;
        let client = client_of(at(&listener)).with_tls(&tls, "localhost");
        let mut stream = TcpStream::connect_to(&client).await?;
        round_trip(&mut stream, b"hello").await?;
        assert_eq!(stream.tls_info().unwrap().alpn.as_deref(), Some(&b"line"[..]));
        Ok(())
    });
}

#[test]
fn a_server_that_is_not_who_its_client_wants_is_refused() {
    on_every_driver(async |env| {
        let folder = Folder::new();
        let authority = Authority::new();
        let identity = folder.put_identity(&authority.issue(&["other.example"]));
        let listener =
            env.shard().listen(&server(&format!("tls:0:{identity}:interface=127.0.0.1"))?, || Echo)?;
        let (port, roots) = (at(&listener).port(), folder.put_roots(&authority));
        for (name, whole) in [
            ("localhost", "the peer's certificate is not for `localhost` but for"),
            ("127.0.0.1", "the peer's certificate is not for `127.0.0.1` but for"),
        ] {
            let client = client(&format!(r"tls:{name}:endpoint=tcp\:127.0.0.1\:{port}:{roots}"))?;
            let error = TcpStream::connect_to(&client).await.unwrap_err().to_string();
            assert!(error.contains(whole), "{error}");
        }
        Ok(())
    });
}

#[test]
fn a_client_service_keeps_a_connection_up_to_an_endpoint_with_tls() {
    on_every_driver(async |env| {
        let folder = Folder::new();
        let authority = Authority::new();
        let identity = folder.put_identity(&authority.issue(&["localhost"]));
        let server = server(&format!("tls:0:{identity}:interface=127.0.0.1"))?;
        let log = Log::new();
        let probe = log.clone();
        let listener = env.shard().listen(&server, move || Probe::new(&probe, |_, _| None))?;
        let (port, roots) = (at(&listener).port(), folder.put_roots(&authority));
        let client = client(&format!(r"tls:localhost:endpoint=tcp\:127.0.0.1\:{port}:{roots}"))?;
        let service = ClientService::builder_for(&client)
            .handler(async |mut stream: TcpStream| {
                assert!(stream.tls_info().is_some());
                stream.write_all(b"from the service").await?;
                while stream.read_chunk().await?.is_some() {}
                Ok(())
            })
            .start(env.shard());
        log.until(|state| state.received == b"from the service").await;
        service.stop().await;
        log.ended().await;
        Ok(())
    });
}

#[test]
fn an_endpoint_at_a_unix_socket_serves_both_styles_and_is_locked() {
    // There are no lock files in a simulation.
    on_the_kernel(1, async |shard| {
        let folder = Folder::new();
        let path = folder.path.join("socket").display().to_string();
        for (listens, connects) in [
            (format!("unix:{path}:mode=660:backlog=7"), format!("unix:{path}:lockfile=1:timeout=5")),
            (format!("unix:{path}:lockfile=0"), format!("unix:{path}")),
            (format!("unix:@{path}"), format!("unix:@{path}:lockfile=1")),
        ] {
            let (server, client) = (server(&listens)?, client(&connects)?);
            for as_task in [false, true] {
                let listener = echoes(shard, &server, as_task)?;
                let mut stream = TcpStream::connect_to(&client).await?;
                round_trip(&mut stream, b"by text").await?;
                assert_eq!(stream.transport().peer(), Some(listener.local_addr()));
                drop(stream);
                listener.close().await;
                let error = TcpStream::connect_to(&client).await.unwrap_err();
                let is_expected = match error {
                    ConnectError::NoOwner { .. } => connects.ends_with("timeout=5"),
                    ConnectError::Os { .. } | ConnectError::Refused { .. } => true,
                    _ => false,
                };
                assert!(is_expected, "{connects}: {error}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_proxy_at_a_unix_socket_tells_whose_its_connections_are() {
    on_every_driver(async |env| {
        let folder = Folder::new();
        let path = folder.path.join("proxied").display().to_string();
        let server = server(&format!("haproxy:unix:{path}"))?;
        let listener = echoes(env.shard(), &server, true)?;
        let addresses = Addresses::tcp("192.0.2.7:4000".parse()?, "198.51.100.1:443".parse()?);
        let client = client(&format!("unix:{path}"))?.announcing(Version::V2, &addresses, &[])?;
        let mut stream = TcpStream::connect_to(&client).await?;
        round_trip(&mut stream, b"behind a header").await?;
        listener.close().await;
        Ok(())
    });
}
