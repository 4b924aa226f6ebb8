//! Multicast, over loopback. On mio alone: a simulation has no interfaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use shardwise::testing::on_every_driver;
use shardwise::{MulticastError, MulticastInterface, Shard, ShardId, UdpOptions};

use super::*;

const LOOPBACK: MulticastInterface = MulticastInterface::Addr(Ipv4Addr::LOCALHOST);

/// Of the block for documentation (RFC 5771 §9.2), a different one for each test: they run side by side.
fn group(number: u8) -> IpAddr {
    Ipv4Addr::new(233, 252, 0, number).into()
}

fn sender() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.transport().set_multicast_interface(LOOPBACK)?;
    Ok(socket)
}

/// What comes within a while, which is long for loopback.
async fn receives(env: &Env, socket: &UdpSocket) -> bool {
    env.shard().timeout(ASK_AGAIN, socket.recv_from(&mut [0; 16])).await.is_ok()
}

#[test]
fn hops_loop_and_interface_are_as_they_were_set() {
    on_every_driver(async |env| {
        if env.is_simulated() {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            let error = socket.transport().multicast_hops().unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
            return Ok(());
        }
        for host in ["0.0.0.0:0", "[::]:0"] {
            let socket = UdpSocket::bind(host)?;
            let transport = socket.transport();
            assert_eq!(transport.multicast_hops()?, 1, "the default");
            transport.set_multicast_hops(7)?;
            assert_eq!(transport.multicast_hops()?, 7);
            assert!(transport.multicast_loop()?, "the default");
            transport.set_multicast_loop(false)?;
            assert!(!transport.multicast_loop()?);
            assert_eq!(transport.multicast_interface()?, MulticastInterface::Any);
            let (own, other) = (LOOPBACK, MulticastInterface::Index(1));
            let (own, other) = if host.starts_with('[') { (other, own) } else { (own, other) };
            transport.set_multicast_interface(own)?;
            assert_eq!(transport.multicast_interface()?, own);
            let error = transport.set_multicast_interface(other).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        }
        Ok(())
    });
}

#[test]
fn a_member_gets_what_is_sent_to_the_group_until_it_leaves() {
    on_every_driver(async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let receiver = UdpSocket::bind("0.0.0.0:0")?;
        let to = SocketAddr::new(group(1), receiver.local_addr()?.port());
        let sender = sender()?;
        sender.send_to(b"early", to).await?;
        assert!(!receives(&env, &receiver).await, "it has not joined");
        assert!(receiver.transport().join_group(group(1), LOOPBACK)?);
        sender.send_to(b"now", to).await?;
        assert!(receives(&env, &receiver).await);
        receiver.transport().leave_group(group(1), LOOPBACK)?;
        sender.send_to(b"late", to).await?;
        assert!(!receives(&env, &receiver).await, "it has left");
        let again = receiver.transport().leave_group(group(1), LOOPBACK);
        assert!(matches!(again, Err(MulticastError::Os(_))), "{again:?}");
        Ok(())
    });
}

/// Loopback has no way for IPv6 multicast on many a machine; what is sent to an interface-local group (RFC 4291 §2.7)
/// leaves the host by none. Where no interface has a way, only joining and leaving is tested.
#[test]
fn over_v6_too() {
    on_every_driver(async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        // For documentation (RFC 6676).
        let group: IpAddr = Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0xdb8, 1).into();
        let receiver = UdpSocket::bind("[::]:0")?;
        let sender = UdpSocket::bind("[::]:0")?;
        let to = SocketAddr::new(group, receiver.local_addr()?.port());
        let mut joined = 0;
        for interface in (1..16).map(MulticastInterface::Index) {
            if receiver.transport().join_group(group, interface).is_err() {
                continue;
            }
            joined += 1;
            sender.transport().set_multicast_interface(interface)?;
            if sender.send_to(b"six", to).await.is_ok() {
                assert!(receives(&env, &receiver).await);
                receiver.transport().leave_group(group, interface)?;
                sender.send_to(b"six", to).await?;
                assert!(!receives(&env, &receiver).await, "it has left");
                return Ok(());
            }
            receiver.transport().leave_group(group, interface)?;
        }
        assert!(joined > 0, "loopback at least can be joined at");
        eprintln!("no interface has a way for IPv6 multicast: nothing was sent");
        Ok(())
    });
}

#[test]
fn joining_what_is_no_group_fails_and_says_why() {
    on_every_driver(async |env| {
        let four = UdpSocket::bind("127.0.0.1:0")?;
        let join = |addr: &str| four.transport().join_group(addr.parse().unwrap(), MulticastInterface::Any);
        assert!(matches!(join("127.0.0.1"), Err(MulticastError::NotMulticast { .. })));
        assert!(matches!(join("ff01::1"), Err(MulticastError::WrongFamily { .. })));
        assert!(matches!(join("::1"), Err(MulticastError::NotMulticast { .. })));
        if !env.is_simulated() {
            let nowhere = MulticastInterface::Addr(Ipv4Addr::new(192, 0, 2, 1));
            let outcome = four.transport().join_group(group(2), nowhere);
            assert!(matches!(outcome, Err(MulticastError::Os(_))), "{outcome:?}");
            assert!(four.transport().join_group(group(2), LOOPBACK)?, "the failure has left no owner");
        }
        drop(four.transport().close());
        assert!(matches!(four.transport().join_group(group(2), LOOPBACK), Err(MulticastError::Closed)));
        Ok(())
    });
}

#[test]
fn two_sockets_bound_together_both_get_every_datagram() {
    on_every_driver(async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let options = UdpOptions::new().multiple(true);
        let first = UdpSocket::bind_with("0.0.0.0:0", &options)?;
        let addr = first.local_addr()?;
        let second = UdpSocket::bind_with(addr, &options)?;
        for socket in [&first, &second] {
            assert!(socket.transport().join_group(group(3), LOOPBACK)?);
        }
        let sender = sender()?;
        for _ in 0..5 {
            sender.send_to(b"both", SocketAddr::new(group(3), addr.port())).await?;
            assert!(receives(&env, &first).await && receives(&env, &second).await);
        }
        Ok(())
    });
}

/// Counts on which shard datagrams came.
struct Counting(&'static [AtomicUsize; 2]);

impl DatagramProtocol for Counting {
    fn datagram_received(&mut self, transport: &UdpTransport, _: Datagram<'_>) -> Result<()> {
        self.0[transport.shard().id().index()].fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Linux fact 5: every member socket gets a copy.
#[test]
fn of_the_shards_that_join_one_owns_the_group_and_gets_each_datagram_once() {
    static CAME: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    on_every_driver(async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let here = env.shard().listen_udp("0.0.0.0:0", Counting(&CAME))?;
        let addr = here.local_addr()?;
        assert!(here.join_group(group(4), LOOPBACK)?, "the first is the owner");
        let there = |as_well: bool| {
            env.handle().call(ShardId::new(1), move |shard: &Shard| -> Result<bool> {
                thread_local! {
                    static SOCKET: RefCell<Option<UdpTransport>> = const { RefCell::new(None) };
                }
                let socket = SOCKET.take();
                let socket = match socket {
                    Some(socket) => socket,
                    None => shard.listen_udp(addr, Counting(&CAME))?,
                };
                SOCKET.set(Some(socket.clone()));
                if as_well {
                    socket.join_group_as_well(group(4), LOOPBACK)?;
                    SOCKET.take();
                    return Ok(true);
                }
                Ok(socket.join_group(group(4), LOOPBACK)?)
            })
        };
        assert!(!there(false).await??, "it has an owner");
        let sender = sender()?;
        let to = SocketAddr::new(group(4), addr.port());
        let came = async |expected: [usize; 2]| {
            for _ in 0..5 {
                sender.send_to(b"once", to).await?;
            }
            env.shard().sleep(ASK_AGAIN).await;
            assert_eq!(CAME.each_ref().map(|count| count.load(Ordering::SeqCst)), expected);
            Ok::<_, shardwise::SendError>(())
        };
        came([5, 0]).await?;
        there(true).await??;
        came([10, 5]).await?;
        Ok(())
    });
}

#[test]
fn joining_again_keeps_the_group_with_its_owner() {
    on_every_driver(async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let here = env.shard().listen_udp("0.0.0.0:0", Echo)?;
        let addr = here.local_addr()?;
        for _ in 0..3 {
            assert!(here.join_group(group(5), LOOPBACK)?);
        }
        here.join_group_as_well(group(5), LOOPBACK)?;
        let there = env.handle().call(ShardId::new(1), move |shard: &Shard| -> Result<bool> {
            let socket = shard.listen_udp(addr, Echo)?;
            let owner = socket.join_group(group(5), LOOPBACK)?;
            // Twice, without being the owner.
            socket.join_group_as_well(group(5), LOOPBACK)?;
            socket.join_group_as_well(group(5), LOOPBACK)?;
            Ok(owner)
        });
        assert!(!there.await??, "each datagram would be delivered twice");
        Ok(())
    });
}

#[test]
fn a_join_as_well_that_fails_makes_nobody_the_owner() {
    on_every_driver(async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let nowhere = MulticastInterface::Addr(Ipv4Addr::new(203, 0, 113, 9));
        let here = env.shard().listen_udp("0.0.0.0:0", Echo)?;
        let addr = here.local_addr()?;
        let outcome = here.join_group_as_well(group(6), nowhere);
        assert!(matches!(outcome, Err(MulticastError::Os(_))), "{outcome:?}");
        let there = env.handle().call(ShardId::new(1), move |shard: &Shard| {
            let socket = shard.listen_udp(addr, Echo).expect("shared");
            socket.join_group(group(6), nowhere)
        });
        // Not "another one is the owner".
        assert!(matches!(there.await?, Err(MulticastError::Os(_))));
        Ok(())
    });
}
