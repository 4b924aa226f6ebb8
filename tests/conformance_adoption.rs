//! Sockets that others have made: each test's name is a promise of the contract. Over the kernel's own driver, since a
//! simulation has none of its sockets.

mod common;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream as StdTcp, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream as StdUnix};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use common::{Echo, Log, Probe, on_the_kernel, read_to_end, round_trip};
use shardwise::{AdoptError, AdoptReason, Incoming, Protocol, Result, Runtime, Shard, TcpStream, UnixStream};

fn tcp() -> (OwnedFd, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (listener.into(), addr)
}

struct Silent;

impl shardwise::DatagramProtocol for Silent {
    fn datagram_received(&mut self, _: &shardwise::UdpTransport, _: shardwise::Datagram<'_>) -> Result<()> {
        Ok(())
    }
}

/// Sends every datagram back.
struct Mirror;

impl shardwise::DatagramProtocol for Mirror {
    fn datagram_received(
        &mut self,
        transport: &shardwise::UdpTransport,
        datagram: shardwise::Datagram<'_>,
    ) -> Result<()> {
        transport.try_send_to(datagram.bytes(), datagram.source())?;
        Ok(())
    }
}

#[test]
fn an_adopted_datagram_port_serves_and_closing_only_closes() {
    on_the_kernel(1, async |shard| {
        let theirs = UdpSocket::bind("127.0.0.1:0")?;
        let addr = theirs.local_addr()?;
        let transport = shard.adopt_datagram_port(theirs.try_clone()?.into(), Mirror)?;
        assert_eq!(transport.local_addr()?, addr);
        let client = shardwise::UdpSocket::bind("127.0.0.1:0")?;
        client.send_to(b"ping", addr).await?;
        let mut buffer = [0; 16];
        let received = client.recv_from(&mut buffer).await?;
        assert_eq!((&buffer[..received.len], received.source), (&b"ping"[..], addr));
        transport.close().await;
        client.send_to(b"theirs", addr).await?;
        theirs.set_nonblocking(false)?;
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
        assert_eq!(theirs.recv(&mut buffer)?, 6, "their copy receives on");
        Ok(())
    });
}

fn text(error: &AdoptError) -> String {
    error.to_string()
}

/// Faults, row 19: each refusal names the number and what is there.
#[test]
fn what_cannot_be_adopted_is_named_and_closed() {
    on_the_kernel(1, async |shard| {
        let (reader, writer) = std::io::pipe()?;
        let number = reader.as_raw_fd();
        let error = shard.adopt_stream_port(reader.into(), || Echo).unwrap_err();
        let AdoptReason::Os(source) = error.reason() else { panic!("{error}") };
        assert_eq!(source.raw_os_error(), Some(libc::ENOTSOCK));
        assert!(text(&error).starts_with(&format!("cannot adopt descriptor {number}: ")), "{error}");
        let mut writer = writer;
        assert!(writer.write_all(b"x").is_err(), "the reading end was closed");

        let udp: OwnedFd = UdpSocket::bind("127.0.0.1:0")?.into();
        let error = shard.adopt_stream_port(udp, || Echo).unwrap_err();
        assert!(
            text(&error).ends_with("it is a datagram socket, not a stream socket that listens"),
            "{error}"
        );
        let unix: OwnedFd = UnixDatagram::unbound()?.into();
        let error = shard.adopt_stream_connection(unix, || Echo).unwrap_err();
        assert!(
            text(&error).ends_with("it is a datagram socket, not a stream socket that is connected"),
            "{error}"
        );

        let (listener, addr) = tcp();
        let connected: OwnedFd = StdTcp::connect(addr)?.into();
        let error = shard.adopt_stream_port(connected, || Echo).unwrap_err();
        let expected = "it is a stream socket that does not listen, not a stream socket that listens";
        assert!(text(&error).ends_with(expected), "{error}");
        let error = shard.adopt_stream_connection(listener, || Echo).unwrap_err();
        let expected = "it is a stream socket that listens, not a stream socket that is connected";
        assert!(text(&error).ends_with(expected), "{error}");
        let idle: OwnedFd = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?.into();
        let error = shard.adopt_stream_connection(idle, || Echo).unwrap_err();
        assert!(text(&error).contains("a stream socket that is not connected"), "{error}");

        let netlink: OwnedFd =
            socket2::Socket::new(socket2::Domain::from(libc::AF_NETLINK), socket2::Type::DGRAM, None)?.into();
        let (stream, _) = tcp();
        let error = shard.adopt_datagram_port(stream, Silent).unwrap_err();
        assert!(
            text(&error).ends_with("it is a stream socket that listens, not a datagram socket"),
            "{error}"
        );
        for error in [
            shard.adopt_datagram_port(netlink.try_clone()?, Silent).unwrap_err(),
            shard.adopt_stream_port(netlink.try_clone()?, || Echo).unwrap_err(),
            shard.adopt_stream_connection(netlink, || Echo).unwrap_err(),
        ] {
            assert!(matches!(error.reason(), AdoptReason::UnsupportedFamily(16)), "{error}");
        }
        Ok(())
    });
}

#[test]
fn an_adopted_listener_is_made_non_blocking_and_serves() {
    on_the_kernel(1, async |shard| {
        let (tcp, addr) = tcp();
        let ours = tcp.try_clone()?;
        let listener = shard.adopt_stream_port(tcp, || Echo)?;
        assert_eq!(listener.local_addr(), addr);
        assert_eq!(
            TcpListener::from(ours.try_clone()?).accept().unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
        let mut stream = TcpStream::connect(addr).await?;
        round_trip(&mut stream, b"adopted").await?;
        assert!(matches!(shard.adopt_stream_port(ours, || Echo).unwrap_err().reason(), AdoptReason::Twice));
        Ok(())
    });
}

/// Stopping closes; it neither shuts down nor removes: the socket may be somebody else's, too.
#[test]
fn stopping_only_closes() {
    let directory = std::env::temp_dir().join(format!("shardwise-adopted-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("socket");
    let theirs = UnixListener::bind(&path).unwrap();
    let ours: OwnedFd = theirs.try_clone().unwrap().into();
    let ours = Mutex::new(Some(ours));
    let served = path.clone();
    on_the_kernel(1, async move |shard| {
        let ours = ours.lock().unwrap().take().expect("run once");
        let listener = shard.adopt_stream_port(ours, || Echo)?;
        round_trip(&mut UnixStream::connect_unix(&served).await?, b"x").await?;
        listener.close().await;
        Ok(())
    });
    assert!(std::fs::symlink_metadata(&path).is_ok(), "it is not ours to remove");
    theirs.set_nonblocking(false).unwrap();
    let mut client = StdUnix::connect(&path).unwrap();
    let (mut accepted, _) = theirs.accept().expect("it listens on");
    client.write_all(b"on").unwrap();
    let mut bytes = [0; 2];
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"on");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn one_inherited_listener_serves_every_shard_that_adopts_it() {
    let (tcp, addr) = tcp();
    let counts: Arc<Mutex<[usize; 2]>> = Arc::default();
    let counted = Arc::clone(&counts);
    let running = Runtime::new()
        .shards(2)
        .pin(false)
        .start(async move |shard: Shard| {
            let counts = Arc::clone(&counted);
            let factory = move |incoming: &Incoming<'_>| {
                assert_eq!(Shard::current().id(), incoming.shard());
                counts.lock().unwrap()[incoming.shard().index()] += 1;
                Echo
            };
            shard.adopt_stream_port(tcp.try_clone()?, factory)?;
            Ok(())
        })
        .unwrap();
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = StdTcp::connect(addr).unwrap();
        client.write_all(b"hello").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        clients.push(client);
    }
    assert_eq!(*counts.lock().unwrap(), [5, 5]);
    running.stop().unwrap();
    for mut client in clients {
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "ended in order");
    }
    running.join().unwrap();
}

#[test]
fn a_connection_is_adopted_as_if_it_had_been_accepted() {
    on_the_kernel(1, async |shard| {
        let (ours, theirs) = StdUnix::pair()?;
        let log = Log::new();
        let probe = log.clone();
        // Adopted while bytes wait already.
        (&theirs).write_all(b"early")?;
        let transport = shard
            .adopt_stream_connection(ours.into(), move || Probe::new(&probe, |_, _| None))?
            .expect("the factory takes it");
        assert!(log.seen().is_empty(), "nothing is called before it returns");
        log.until(|state| state.received == b"early").await;
        assert_eq!(log.seen()[..2], ["connected", "data"]);
        transport.write(b"answer")?;
        transport.close();
        theirs.set_nonblocking(true)?;
        let mut theirs = shard.adopt_stream(theirs.into())?;
        assert_eq!(read_to_end(&mut theirs).await?, b"answer");
        drop(theirs);
        log.ended().await;
        Ok(())
    });
}

#[test]
fn a_factory_that_refuses_gives_none_and_our_copy_is_closed() {
    on_the_kernel(1, async |shard| {
        let (ours, mut theirs) = StdUnix::pair()?;
        let asked = Rc::new(RefCell::new(0));
        let count = Rc::clone(&asked);
        let factory = move || -> Option<Echo> {
            *count.borrow_mut() += 1;
            None
        };
        assert!(shard.adopt_stream_connection(ours.into(), factory)?.is_none());
        assert_eq!(*asked.borrow(), 1);
        assert_eq!(theirs.read(&mut [0; 1])?, 0, "closed");
        Ok(())
    });
}

#[test]
fn a_protocol_may_adopt_a_connection_in_its_own_callback() {
    struct Adopter(Option<OwnedFd>);
    impl Protocol for Adopter {
        fn data_received(
            &mut self,
            transport: &shardwise::Transport,
            input: &mut shardwise::Input<'_>,
        ) -> Result<()> {
            if let Some(fd) = self.0.take() {
                transport.shard().adopt_stream_connection(fd, || Echo)?;
            }
            transport.write(input.take())?;
            Ok(())
        }
    }
    on_the_kernel(1, async |shard| {
        let (ours, theirs) = StdUnix::pair()?;
        let (first, second) = StdUnix::pair()?;
        let mut inner = Some(OwnedFd::from(first));
        shard.adopt_stream_connection(ours.into(), move || Adopter(inner.take()))?;
        let mut theirs = shard.adopt_stream(theirs.into())?;
        round_trip(&mut theirs, b"go").await?;
        let mut second = shard.adopt_stream(second.into())?;
        round_trip(&mut second, b"adopted within").await?;
        let _ = second.transport().local()?;
        Ok(())
    });
}

/// Sends every datagram back to the name it came from, or to the peer.
struct UnixMirror;

impl shardwise::DatagramProtocol for UnixMirror {
    fn datagram_received(
        &mut self,
        transport: &shardwise::UdpTransport,
        datagram: shardwise::Datagram<'_>,
    ) -> Result<()> {
        match datagram.unix_source() {
            Some(name) if !name.is_unnamed() => transport.try_send_to_name(datagram.bytes(), name)?,
            _ => transport.try_send(datagram.bytes())?,
        }
        Ok(())
    }
}

#[test]
fn an_adopted_unix_datagram_port_serves_and_its_file_stays() {
    let directory = std::env::temp_dir().join(format!("shardwise-datagrams-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("socket");
    let theirs = UnixDatagram::bind(&path).unwrap();
    let served = path.clone();
    on_the_kernel(1, async move |shard| {
        let transport = shard.adopt_datagram_port(theirs.try_clone()?.into(), UnixMirror)?;
        assert_eq!(transport.local().as_unix().and_then(|name| name.path()), Some(&*served));
        assert!(transport.local_addr().is_err(), "it has no IP address");
        let own = shardwise::UnixAddr::from_abstract(format!("shardwise-mirror-{}", std::process::id()))?;
        let client = shardwise::UnixDatagram::connect_with(&served, Some(&own), &Default::default())?;
        client.send(b"ping").await?;
        let mut buffer = [0; 16];
        let received = client.recv_from(&mut buffer).await?;
        assert_eq!((&buffer[..received.len], received.source.path()), (&b"ping"[..], Some(&*served)));
        transport.close().await;
        client.send(b"theirs").await?;
        theirs.set_nonblocking(false)?;
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
        assert_eq!(theirs.recv(&mut buffer)?, 6, "their copy receives on");
        Ok(())
    });
    assert!(path.exists(), "nothing was removed");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn one_end_of_a_pair_of_datagram_sockets_is_adopted_connected() {
    on_the_kernel(1, async |shard| {
        let (ours, theirs) = UnixDatagram::pair()?;
        let transport = shard.adopt_datagram_port(ours.into(), UnixMirror)?;
        theirs.send(b"back to me")?;
        theirs.set_nonblocking(true)?;
        let mut buffer = [0; 16];
        let len = loop {
            match theirs.recv(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    shardwise::sleep(std::time::Duration::from_millis(1)).await;
                }
                received => break received?,
            }
        };
        assert_eq!(&buffer[..len], b"back to me");
        transport.close().await;
        Ok(())
    });
}

/// Faults, row 20, for a socket that somebody else may have, too: whoever shuts it down takes it from everybody. That is
/// told, nothing more is accepted there, the shard goes on, and a close still ends.
#[test]
fn a_listener_that_somebody_else_shuts_down_is_reported_once_and_never_spins() {
    on_the_kernel(1, async |shard| {
        let unix = UnixListener::bind_addr(&{
            use std::os::linux::net::SocketAddrExt;
            std::os::unix::net::SocketAddr::from_abstract_name(format!(
                "shardwise-shut-{}",
                std::process::id()
            ))?
        })?;
        let (tcp, addr) = tcp();
        for theirs in [OwnedFd::from(unix), tcp] {
            let listener = shard.adopt_stream_port(theirs.try_clone()?, || Echo)?;
            let before = shard.handle().report().remove(0);
            rustix::net::shutdown(&theirs, rustix::net::Shutdown::Both)?;
            let failures =
                |shard: &Shard| shard.handle().report().remove(0).accept_failures - before.accept_failures;
            while failures(shard) == 0 {
                shardwise::sleep(std::time::Duration::from_millis(1)).await;
            }
            let turns = shard.handle().report().remove(0).turns;
            shardwise::sleep(std::time::Duration::from_millis(50)).await;
            let turns = shard.handle().report().remove(0).turns - turns;
            assert!(turns < 20, "{turns} turns in 50 ms");
            assert_eq!(failures(shard), 1, "it is told once");
            listener.close().await;
        }
        assert!(TcpStream::connect(addr).await.is_err());
        let others = shard.listen_tcp("127.0.0.1:0", || Echo)?;
        round_trip(&mut TcpStream::connect(others.local_addr()).await?, b"the others go on").await?;
        Ok(())
    });
}
