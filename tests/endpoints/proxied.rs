//! Connections behind a proxy: the header first, then everything as ever.

use std::cell::RefCell;
use std::rc::Rc;

use shardwise::policies::{ConnectionLimit, Policies};
use shardwise::proxy_protocol::{Addresses, Version, tlv_kind};
use shardwise::testing::{Env, on_every_driver};
use shardwise::{
    Addr, DetachedTcpStream, Incoming, ListenOptions, Listener, LoadedServer, Result, ShardId, TcpStream,
    Transport,
};

use crate::common::{Call, Echo, Log, Probe, let_others_go_on, pattern, read_to_end, round_trip};
use crate::headers::{DESTINATION, SOURCE, headers};
use crate::tls_kit::Authority;
use crate::{Folder, at, client_of, server, write_in_pieces};

type Lines = Rc<RefCell<Vec<String>>>;

/// Listens behind a header, with probes of `log`; what factories were told goes into the list.
pub(crate) fn listen_with<H>(
    env: &Env,
    server: &LoadedServer,
    log: &Log,
    hook: H,
) -> Result<(Listener<Addr>, Lines)>
where
    H: FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + Clone + 'static,
{
    let (log, told) = (log.clone(), Rc::new(RefCell::new(Vec::new())));
    let note = told.clone();
    let listener = env.shard().listen(server, move |incoming: &Incoming<'_>| {
        let proxy = incoming.proxy_header().map(|header| header.proxy.as_ip().unwrap().ip());
        note.borrow_mut().push(format!("{} {} {proxy:?}", incoming.peer(), incoming.local()));
        Probe::new(&log, hook.clone())
    })?;
    Ok((listener, told))
}

#[test]
fn a_header_is_found_in_whatever_pieces_it_comes() {
    on_every_driver(async |env| {
        for header in headers() {
            for size in [1, 2, 7, header.len() - 1, header.len(), 1000] {
                let log = Log::new();
                let (listener, told) = listen_with(&env, &server("haproxy:127.0.0.1:0")?, &log, |_, _| None)?;
                let mut stream = TcpStream::connect(at(&listener)).await?;
                let bytes = [&header[..], b"and then the client's own"].concat();
                write_in_pieces(&mut stream, &bytes, size).await?;
                log.until(|state| state.received == b"and then the client's own").await;
                let transport = log.transport().await;
                assert_eq!(transport.peer_addr(), Some(SOURCE.parse()?));
                assert_eq!(transport.local_addr()?, DESTINATION.parse()?);
                assert_eq!(transport.socket_peer(), Some(stream.local_addr()?.into()));
                assert_eq!(transport.socket_local()?, Addr::from(at(&listener)));
                assert_eq!(*told.borrow(), [format!("{SOURCE} {DESTINATION} Some(127.0.0.1)")]);
                stream.shutdown_write();
                assert_eq!(log.ended().await, "PeerFinished");
                assert_eq!(log.seen(), ["connected", "data", "read_finished", "disconnected", "dropped"]);
                drop(stream);
                listener.close().await;
            }
        }
        Ok(())
    });
}

#[test]
fn a_stream_behind_a_header_knows_whose_it_is_and_who_handed_it_on() {
    on_every_driver(async |env| {
        let listener =
            env.shard().serve(&server("haproxy:127.0.0.1:0")?, async |mut stream: TcpStream| {
                assert_eq!(stream.peer_addr()?, SOURCE.parse()?);
                assert_eq!(stream.local_addr()?, DESTINATION.parse()?);
                let header = stream.transport().proxy_header().expect("there was one");
                let tlv = header.tlv(tlv_kind::AUTHORITY).map(<[u8]>::to_vec);
                assert_eq!(tlv.is_some(), header.version == Version::V2);
                assert!(tlv.is_none_or(|name| name == b"example.org"));
                let received = read_to_end(&mut stream).await?;
                stream.write_all(&received).await?;
                Ok(())
            })?;
        let sent = pattern(300_000);
        for header in headers() {
            for size in [1, header.len(), 400_000] {
                let mut stream = TcpStream::connect(at(&listener)).await?;
                write_in_pieces(&mut stream, &header[..header.len() - 1], size).await?;
                stream.write_all(&[&header[header.len() - 1..], &sent].concat()).await?;
                stream.shutdown_write();
                assert!(read_to_end(&mut stream).await? == sent, "the echo differs");
            }
        }
        // The end comes with the header, or right behind it.
        for header in headers() {
            let mut stream = TcpStream::connect(at(&listener)).await?;
            stream.write_all(&header).await?;
            stream.shutdown_write();
            assert_eq!(read_to_end(&mut stream).await?, b"");
        }
        Ok(())
    });
}

#[test]
fn the_real_addresses_count_where_the_header_has_none() {
    on_every_driver(async |env| {
        let unix = Addresses::UnixStream { source: b"/run/client", destination: b"/run/server" };
        for addresses in [Addresses::Local, Addresses::Unknown, unix] {
            let log = Log::new();
            let (listener, told) = listen_with(&env, &server("haproxy:127.0.0.1:0")?, &log, |_, _| None)?;
            let client = client_of(at(&listener)).announcing(Version::V2, &addresses, &[])?;
            let stream = TcpStream::connect_to(&client).await?;
            let (own, other) = (stream.local_addr()?, at(&listener));
            let transport = log.transport().await;
            assert_eq!(*told.borrow(), [format!("{own} {other} Some(127.0.0.1)")]);
            assert_eq!((transport.peer_addr(), transport.local_addr()?), (Some(own), other));
            assert_eq!(transport.proxy_header().expect("there was one").addresses, None);
            drop(stream);
            log.ended().await;
        }
        Ok(())
    });
}

#[test]
fn a_connection_elsewhere_has_no_header_however_it_begins() {
    on_every_driver(async |env| {
        let log = Log::new();
        let (listener, _) = listen_with(&env, &server("127.0.0.1:0")?, &log, |_, _| None)?;
        let mut stream = TcpStream::connect(at(&listener)).await?;
        stream.write_all(&headers()[0]).await?;
        log.until(|state| state.received == headers()[0]).await;
        let transport = log.transport().await;
        assert_eq!(transport.peer_addr(), Some(stream.local_addr()?));
        assert!(transport.proxy_header().is_none());
        drop(stream);
        log.ended().await;
        Ok(())
    });
}

#[test]
fn tls_begins_behind_the_header_whatever_lies_in_one_packet() {
    on_every_driver(async |env| {
        let folder = Folder::new();
        let authority = Authority::new();
        let identity = folder.put_identity(&authority.issue(&["localhost"]));
        let tls = authority.client();
        for header in headers() {
            let log = Log::new();
            let server = server(&format!("haproxy:tls:0:{identity}:interface=127.0.0.1"))?;
            let (listener, told) = listen_with(&env, &server, &log, |call, transport| match call {
                Call::HandshakeCompleted => {
                    assert_eq!(transport.peer_addr(), Some(SOURCE.parse().unwrap()));
                    assert!(transport.tls_info().is_some());
                    Some(transport.write(b"welcome").map(drop).map_err(Into::into))
                }
                _ => None,
            })?;
            let mut stream = TcpStream::connect(at(&listener)).await?;
            // The first packet of the handshake follows without a pause.
            stream.write_all(&header).await?;
            stream.start_tls((&tls, "localhost")).await?;
            let mut welcome = [0; 7];
            stream.read_exact(&mut welcome).await?;
            assert_eq!(&welcome, b"welcome");
            stream.write_all(b"hello").await?;
            log.until(|state| state.received == b"hello").await;
            assert_eq!(*told.borrow(), [format!("{SOURCE} {DESTINATION} Some(127.0.0.1)")]);
            drop(stream);
            assert_eq!(log.ended().await, "PeerFinished");
            assert_eq!(
                log.seen(),
                ["connected", "handshake", "data", "read_finished", "disconnected", "dropped"]
            );
            listener.close().await;
        }
        Ok(())
    });
}

#[test]
fn a_protocol_that_pauses_when_it_is_connected_is_given_nothing_before_it_reads_on() {
    on_every_driver(async |env| {
        let log = Log::new();
        let (listener, _) =
            listen_with(&env, &server("haproxy:127.0.0.1:0")?, &log, |call, transport| match call {
                Call::Connected => {
                    transport.pause_reading();
                    Some(Ok(()))
                }
                _ => None,
            })?;
        let mut stream = TcpStream::connect(at(&listener)).await?;
        stream.write_all(&[&headers()[1][..], b"kept"].concat()).await?;
        let transport = log.transport().await;
        let_others_go_on(&env).await?;
        assert_eq!(log.seen(), ["connected"]);
        transport.resume_reading();
        log.until(|state| state.received == b"kept").await;
        drop(stream);
        log.ended().await;
        Ok(())
    });
}

#[test]
fn a_factory_refuses_by_the_address_that_the_header_reports() {
    on_every_driver(async |env| {
        let log = Log::new();
        let probe = log.clone();
        let listener =
            env.shard().listen(&server("haproxy:127.0.0.1:0")?, move |incoming: &Incoming<'_>| {
                let refused = incoming.peer_addr().unwrap().ip().to_string() == "192.0.2.7";
                (!refused).then(|| Probe::new(&probe, |_, _| None))
            })?;
        let mut refused = TcpStream::connect(at(&listener)).await?;
        refused.write_all(&headers()[0]).await?;
        assert!(read_to_end(&mut refused).await.unwrap_or_default().is_empty());
        let mut taken = TcpStream::connect(at(&listener)).await?;
        taken.write_all(b"PROXY TCP4 192.0.2.8 198.51.100.1 1 2\r\nhello").await?;
        log.until(|state| state.received == b"hello").await;
        drop(taken);
        log.ended().await;
        Ok(())
    });
}

#[test]
fn a_stream_that_moves_to_another_shard_takes_its_header_along() {
    on_every_driver(async |env| {
        let listener = env.shard().serve(&server("haproxy:127.0.0.1:0")?, async |stream: TcpStream| {
            let home = stream.transport().shard().clone();
            let moved: DetachedTcpStream = stream.detach().await?;
            assert_eq!(moved.peer().as_ip(), Some(SOURCE.parse()?));
            home.call_async(ShardId::new(1), async move |shard| {
                let mut stream = moved.attach(&shard).unwrap();
                let header = stream.transport().proxy_header().expect("it came along");
                let addrs = format!(
                    "{} {} {}",
                    stream.peer_addr()?,
                    stream.local_addr()?,
                    header.proxy.as_ip().unwrap().ip()
                );
                stream.write_all(addrs.as_bytes()).await
            })
            .await??;
            Ok(())
        })?;
        let mut stream = TcpStream::connect(at(&listener)).await?;
        stream.write_all(&headers()[1]).await?;
        let told = String::from_utf8(read_to_end(&mut stream).await?)?;
        assert_eq!(told, format!("{SOURCE} {DESTINATION} 127.0.0.1"));
        Ok(())
    });
}

#[test]
fn who_has_been_accepted_is_served_although_the_listener_has_closed_meanwhile() {
    on_every_driver(async |env| {
        let listener = env.shard().listen(&server("haproxy:127.0.0.1:0")?, || Echo)?;
        let mut streams = Vec::new();
        for _ in 0..3 {
            let mut stream = TcpStream::connect(at(&listener)).await?;
            stream.write_all(&headers()[1][..5]).await?;
            streams.push(stream);
        }
        listener.close().await;
        // One of them comes to nothing, and holds nothing up.
        drop(streams.pop());
        for stream in &mut streams {
            stream.write_all(&headers()[1][5..]).await?;
            round_trip(stream, b"served").await?;
        }
        Ok(())
    });
}

#[test]
fn a_stop_ends_those_that_wait_for_a_header_and_serves_those_whose_header_came() {
    on_every_driver(async |env| {
        let log = Log::new();
        let (listener, _) = listen_with(&env, &server("haproxy:127.0.0.1:0")?, &log, |_, _| None)?;
        let mut waits = TcpStream::connect(at(&listener)).await?;
        waits.set_ends_on_drain(false);
        waits.write_all(&headers()[0][..5]).await?;
        let mut served = TcpStream::connect(at(&listener)).await?;
        served.set_ends_on_drain(false);
        served.write_all(&headers()[0]).await?;
        log.saw("connected").await;
        env.shard().stop()?;
        assert!(read_to_end(&mut waits).await.unwrap_or_default().is_empty());
        assert_eq!(read_to_end(&mut served).await?, b"");
        assert_eq!(log.ended().await, "Closed");
        assert_eq!(log.seen(), ["connected", "draining", "disconnected", "dropped"]);
        Ok(())
    });
}

#[test]
fn an_echo_of_megabytes_goes_through_behind_a_header() {
    on_every_driver(async |env| {
        let listener = env.shard().listen(&server("haproxy:127.0.0.1:0")?, || Echo)?;
        let mut stream = TcpStream::connect(at(&listener)).await?;
        stream.write_all(&headers()[1]).await?;
        for _ in 0..4 {
            round_trip(&mut stream, &pattern(60_000)).await?;
        }
        Ok(())
    });
}

#[test]
fn a_limit_by_peer_counts_whom_the_header_names() {
    on_every_driver(async |env| {
        let limit = ConnectionLimit::new().total(3).per_peer(1);
        let options = ListenOptions::new().policies(&Policies::new().limit_connections(&limit));
        let listener = env.shard().listen_with(&server("haproxy:127.0.0.1:0")?, &options, || Echo)?;
        let of = |source: &str| {
            let mut header = Vec::new();
            Addresses::tcp(source.parse().unwrap(), DESTINATION.parse().unwrap()).encode_v1(&mut header);
            header
        };
        let connect = async |header: &[u8]| -> Result<TcpStream> {
            let mut stream = TcpStream::connect(at(&listener)).await?;
            stream.write_all(header).await?;
            Ok(stream)
        };
        let mut first = connect(&of("192.0.2.7:1")).await?;
        round_trip(&mut first, b"the first of its peer").await?;
        let mut second = connect(&of("192.0.2.8:1")).await?;
        round_trip(&mut second, b"another peer, by the same proxy").await?;
        assert_eq!(limit.connections_of("192.0.2.7".parse()?), 1);
        assert_eq!(limit.connections_of("127.0.0.1".parse()?), 0, "the proxy is nobody's peer");
        // Reset early or late.
        let is_refused = async |header: &[u8]| match connect(header).await {
            Ok(mut stream) => stream.read_chunk().await.is_err(),
            Err(_) => true,
        };
        assert!(is_refused(&of("192.0.2.7:2")).await, "a second one of its peer");
        let _waits = connect(b"PROXY ").await?;
        while limit.connections() != 3 {
            let_others_go_on(&env).await?;
        }
        assert!(is_refused(&of("192.0.2.9:1")).await, "who has said nothing yet counts in all");
        assert_eq!(limit.refused(), 2);
        drop(first);
        while limit.connections_of("192.0.2.7".parse()?) != 0 {
            let_others_go_on(&env).await?;
        }
        Ok(())
    });
}
