//! Sockets: the one door to socket2. Every socket is non-blocking and closed on exec; what a socket is for,
//! and when to call, is decided above.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrAny, SocketFlags};
use socket2::{Domain, Protocol, SockFilter, SockRef, TcpKeepalive, Type};

use super::{linux, return_stack, unix};
use crate::addr::{Addr, UnixAddr};

/// An open socket: a descriptor and nothing else. Dropping it closes it.
///
/// Bytes and accepts go straight to the kernel; what is done once per socket goes through socket2.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

/// Which place a listening socket takes at its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenerRole {
    /// The first at its address: fails with "address in use" if anybody listens there, of this process or
    /// another.
    First,
    /// Shares the address with a first one that has called [`Socket::share_port`].
    Joiner,
}

/// With whom a datagram socket shares its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// With nobody, until [`Socket::share_port`].
    No,
    /// SO_REUSEPORT: the kernel spreads the senders over all sockets there.
    Port,
    /// SO_REUSEADDR as well: any process may bind it. For multicast, which comes to each of them.
    AddrAndPort,
}

impl Socket {
    /// Binds to `addr` and listens; `backlog` finished handshakes may wait, or as many as
    /// `net.core.somaxconn` allows. An IPv6 socket takes no IPv4 connections, so that both families can be
    /// bound side by side.
    ///
    /// The first member listens *without* SO_REUSEPORT: with it, a second server of the same user would join
    /// silently and take half of the connections (`socket(7)`).
    pub(crate) fn bind_listener(addr: SocketAddr, backlog: u32, role: ListenerRole) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(addr), stream_type(), Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        if role == ListenerRole::Joiner {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(Socket { fd: socket.into() })
    }

    /// Lets joiners listen at this socket's address from now on.
    pub(crate) fn share_port(&self) -> io::Result<()> {
        SockRef::from(&self.fd).set_reuse_port(true)
    }

    /// Turns new handshakes away: the kernel drops their first segment, and a peer that repeats it (after a
    /// second) finds another member or a refusal once this one is closed. What is queued or half-done still
    /// arrives.
    pub(crate) fn refuse_handshakes(&self) -> io::Result<()> {
        let program = linux::DROP_NEW_HANDSHAKES
            .map(|step| SockFilter::new(step.code, step.jump_if_true, step.jump_if_false, step.operand));
        SockRef::from(&self.fd).attach_filter(&program)
    }

    /// Whether there is something to read or, on a listener, to accept: a look that takes nothing.
    pub(crate) fn is_readable(&self) -> bool {
        self.is_ready(PollFlags::IN)
    }

    /// Whether there is room for output.
    pub(crate) fn is_writable(&self) -> bool {
        self.is_ready(PollFlags::OUT)
    }

    fn is_ready(&self, wanted: PollFlags) -> bool {
        let mut polled = [PollFd::new(&self.fd, wanted)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(retry(|| poll(&mut polled, Some(&at_once))), Ok(count) if count > 0)
    }

    /// Accepts one connection. It inherits the listener's TCP_NODELAY, keepalive and user timeout.
    #[inline]
    pub(crate) fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        let (socket, peer) = self.accept_any()?;
        // A peer that has gone meanwhile may have no address left.
        let peer = peer.ok_or(Errno::CONNABORTED)?;
        Ok((socket, internet_addr(peer)?))
    }

    /// Accepts one connection at a UNIX socket.
    pub(crate) fn accept_unix(&self) -> io::Result<(Socket, UnixAddr)> {
        let (socket, peer) = self.accept_any()?;
        Ok((socket, unix::name_of(peer)))
    }

    #[inline]
    fn accept_any(&self) -> io::Result<(Socket, Option<SocketAddrAny>)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (fd, peer) = retry(|| rustix::net::acceptfrom_with(&self.fd, flags))?;
        Ok((Socket { fd }, peer))
    }

    /// Begins to connect to `addr`, from `bind_addr` if given. The socket becomes writable when the outcome
    /// is known, which [`Socket::take_error`] then tells.
    pub(crate) fn connect(addr: SocketAddr, bind_addr: Option<SocketAddr>) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(addr), stream_type(), Some(Protocol::TCP))?;
        if let Some(bind_addr) = bind_addr {
            if bind_addr.port() == 0 {
                linux::set_bind_address_no_port(socket.as_fd())?;
            }
            socket.bind(&bind_addr.into())?;
        }
        match socket.connect(&addr.into()) {
            Ok(()) => {}
            // An interrupted connect goes on by itself, like one that did not wait (`connect(2)`).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        Ok(Socket { fd: socket.into() })
    }

    /// A datagram socket bound to `addr`. It tells of datagrams that the kernel dropped for want of room, and gets the
    /// multicast groups that it has joined itself, no others (`ip(7)`, IP_MULTICAST_ALL).
    ///
    /// Without SO_REUSEADDR, unless asked for: on a datagram socket it would let another process take the address.
    pub(crate) fn bind_datagram(addr: SocketAddr, reuse: Reuse) -> io::Result<Self> {
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = socket2::Socket::new(Domain::for_address(addr), kind, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
            // Linux 4.20 and later; before that every group of the host arrives.
            let _ = socket.set_multicast_all_v6(false);
        } else {
            socket.set_multicast_all_v4(false)?;
        }
        if reuse != Reuse::No {
            socket.set_reuse_port(true)?;
        }
        if reuse == Reuse::AddrAndPort {
            socket.set_reuse_address(true)?;
        }
        linux::set_receive_overflow(socket.as_fd())?;
        socket.bind(&addr.into())?;
        Ok(Socket { fd: socket.into() })
    }

    /// Sends to and receives from `peer` alone, from now on.
    pub(crate) fn connect_datagram(&self, peer: SocketAddr) -> io::Result<()> {
        Ok(retry(|| rustix::net::connect(&self.fd, &peer))?)
    }

    /// Lets the kernel join datagrams of one sender.
    pub(crate) fn join_datagrams(&self) -> io::Result<()> {
        linux::set_udp_gro(self.fd.as_fd())
    }

    /// SO_RCVBUF, cut down to `net.core.rmem_max`.
    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        SockRef::from(&self.fd).set_recv_buffer_size(bytes)
    }

    /// SO_SNDBUF, cut down to `net.core.wmem_max`.
    pub(crate) fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        SockRef::from(&self.fd).set_send_buffer_size(bytes)
    }

    pub(crate) fn set_broadcast(&self, on: bool) -> io::Result<()> {
        SockRef::from(&self.fd).set_broadcast(on)
    }

    pub(crate) fn broadcast(&self) -> io::Result<bool> {
        SockRef::from(&self.fd).broadcast()
    }

    /// How many routers a multicast datagram may pass.
    pub(crate) fn set_multicast_hops(&self, is_ipv6: bool, hops: u32) -> io::Result<()> {
        let socket = SockRef::from(&self.fd);
        if is_ipv6 { socket.set_multicast_hops_v6(hops) } else { socket.set_multicast_ttl_v4(hops) }
    }

    pub(crate) fn multicast_hops(&self, is_ipv6: bool) -> io::Result<u32> {
        let socket = SockRef::from(&self.fd);
        if is_ipv6 { socket.multicast_hops_v6() } else { socket.multicast_ttl_v4() }
    }

    /// Whether this host gets what it sends to a multicast group.
    pub(crate) fn set_multicast_loop(&self, is_ipv6: bool, on: bool) -> io::Result<()> {
        let socket = SockRef::from(&self.fd);
        if is_ipv6 { socket.set_multicast_loop_v6(on) } else { socket.set_multicast_loop_v4(on) }
    }

    pub(crate) fn multicast_loop(&self, is_ipv6: bool) -> io::Result<bool> {
        let socket = SockRef::from(&self.fd);
        if is_ipv6 { socket.multicast_loop_v6() } else { socket.multicast_loop_v4() }
    }

    /// The interface that multicast datagrams leave by, over IPv4; unspecified leaves it to the system.
    pub(crate) fn set_multicast_interface_v4(&self, interface: Ipv4Addr) -> io::Result<()> {
        SockRef::from(&self.fd).set_multicast_if_v4(&interface)
    }

    pub(crate) fn multicast_interface_v4(&self) -> io::Result<Ipv4Addr> {
        SockRef::from(&self.fd).multicast_if_v4()
    }

    /// The same over IPv6, by its index; 0 leaves it to the system.
    pub(crate) fn set_multicast_interface_v6(&self, index: u32) -> io::Result<()> {
        SockRef::from(&self.fd).set_multicast_if_v6(index)
    }

    pub(crate) fn multicast_interface_v6(&self) -> io::Result<u32> {
        SockRef::from(&self.fd).multicast_if_v6()
    }

    /// Joins a multicast group at an interface, or leaves it.
    pub(crate) fn set_membership_v4(
        &self,
        group: Ipv4Addr,
        interface: Ipv4Addr,
        member: bool,
    ) -> io::Result<()> {
        let socket = SockRef::from(&self.fd);
        if member {
            socket.join_multicast_v4(&group, &interface)
        } else {
            socket.leave_multicast_v4(&group, &interface)
        }
    }

    pub(crate) fn set_membership_v6(&self, group: Ipv6Addr, index: u32, member: bool) -> io::Result<()> {
        let socket = SockRef::from(&self.fd);
        if member {
            socket.join_multicast_v6(&group, index)
        } else {
            socket.leave_multicast_v6(&group, index)
        }
    }

    /// The error the socket has stored, which it thereby forgets.
    pub(crate) fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(rustix::net::sockopt::socket_error(&self.fd)?.err().map(io::Error::from))
    }

    /// Reads what has come. 0 is the peer's FIN (or an empty `buffer`).
    #[inline]
    pub(crate) fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (received_bytes, _) = retry(|| rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::empty()))?;
        Ok(received_bytes)
    }

    /// Offers `bytes`; says how many were taken. A peer that is gone is an error, never SIGPIPE.
    #[inline]
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(retry(|| rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL))?)
    }

    /// [`Socket::send`] for bytes that lie in several places, at most 1,024 of them (IOV_MAX).
    pub(crate) fn send_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut control = SendAncillaryBuffer::default();
        Ok(retry(|| rustix::net::sendmsg(&self.fd, slices, &mut control, SendFlags::NOSIGNAL))?)
    }

    /// Sends FIN after what has been sent.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(&self.fd).shutdown(Shutdown::Write)
    }

    /// TCP_NODELAY: small writes go out at once.
    pub(crate) fn set_nodelay(&self, on: bool) -> io::Result<()> {
        SockRef::from(&self.fd).set_tcp_nodelay(on)
    }

    /// Notices a peer that vanished without a word, idle or with unanswered bytes under way, after about 90
    /// seconds: the user timeout decides both cases, and keepalive makes an idle connection ask (`tcp(7)`).
    /// Off, the user timeout is the system's again.
    pub(crate) fn set_keepalive(&self, on: bool) -> io::Result<()> {
        let socket = SockRef::from(&self.fd);
        if on {
            socket.set_tcp_keepalive(
                &TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_PROBES),
            )?;
        } else {
            socket.set_keepalive(false)?;
        }
        socket.set_tcp_user_timeout(on.then_some(UNANSWERED_MAX))
    }

    /// Closing will send RST and drop what is unsent, instead of FIN.
    pub(crate) fn set_reset_on_close(&self) -> io::Result<()> {
        SockRef::from(&self.fd).set_linger(Some(Duration::ZERO))
    }

    /// For descriptors that came from elsewhere: ours never block and never leak into a child.
    pub(crate) fn make_nonblocking(&self) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&self.fd, true)?;
        Ok(rustix::io::ioctl_fioclex(&self.fd)?)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        internet_addr(rustix::net::getsockname(&self.fd)?)
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        match rustix::net::getpeername(&self.fd)? {
            Some(addr) => internet_addr(addr),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Our end's address, whatever the socket is.
    pub(crate) fn local(&self) -> io::Result<Addr> {
        let addr = rustix::net::getsockname(&self.fd)?;
        any_addr(Some(addr), self.family()?)
    }

    pub(crate) fn is_unix(&self) -> io::Result<bool> {
        Ok(self.family()? == AddressFamily::UNIX)
    }

    /// The other end's address, whatever the socket is.
    ///
    /// # Errors
    /// `NotConnected` when there is none.
    pub(crate) fn peer(&self) -> io::Result<Addr> {
        let addr = rustix::net::getpeername(&self.fd)?;
        any_addr(addr, self.family()?)
    }

    fn family(&self) -> io::Result<AddressFamily> {
        Ok(rustix::net::sockopt::socket_domain(&self.fd)?)
    }

    /// Who connected a UNIX socket, or listened, or made the pair: the process as it was then (`unix(7)`, SO_PEERCRED).
    pub(crate) fn peer_credentials(&self) -> io::Result<PeerCredentials> {
        if self.family()? != AddressFamily::UNIX {
            return Err(Errno::OPNOTSUPP.into());
        }
        let found = rustix::net::sockopt::socket_peercred(&self.fd)?;
        let pid = u32::try_from(found.pid.as_raw_nonzero().get()).unwrap_or(0);
        Ok(PeerCredentials { pid, uid: found.uid.as_raw(), gid: found.gid.as_raw() })
    }

    /// The same process as a descriptor, which no other process can come to mean.
    pub(crate) fn peer_pidfd(&self) -> io::Result<OwnedFd> {
        linux::peer_pidfd(self.fd.as_fd())
    }
}

#[cfg(any(test, feature = "testing"))]
impl PeerCredentials {
    /// Those of this process.
    pub(crate) fn own() -> Self {
        let [uid, gid] = [rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()];
        PeerCredentials { pid: std::process::id(), uid, gid }
    }
}

/// Who is at the other end of a UNIX socket: the process that connected, or listened, or made the pair, as it was when it
/// did. Whoever it has passed the socket on to is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerCredentials {
    /// The process. It may have ended, and another one may have its number by now; see
    /// [`Transport::peer_pidfd`](crate::Transport::peer_pidfd).
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Socket { fd }
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

fn stream_type() -> Type {
    Type::STREAM.nonblocking().cloexec()
}

fn any_addr(addr: Option<SocketAddrAny>, family: AddressFamily) -> io::Result<Addr> {
    match addr {
        addr if family == AddressFamily::UNIX => Ok(unix::name_of(addr).into()),
        Some(addr) => Ok(internet_addr(addr)?.into()),
        None => Err(io::ErrorKind::NotConnected.into()),
    }
}

fn internet_addr(addr: SocketAddrAny) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(addr)?)
}

/// Repeats a call that a signal interrupted.
#[inline]
pub(super) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        let result = call();
        return_stack::refill();
        match result {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;
const UNANSWERED_MAX: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    const LOCALHOSTS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

    fn listen(addr: SocketAddr, role: ListenerRole) -> io::Result<Socket> {
        Socket::bind_listener(addr, 64, role)
    }

    /// Whether `socket` becomes ready for `flags` within `milliseconds`.
    fn becomes(socket: &Socket, flags: PollFlags, milliseconds: i64) -> bool {
        let timeout = Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 };
        poll(&mut [PollFd::new(socket, flags)], Some(&timeout)).unwrap() > 0
    }

    #[test]
    fn an_address_in_use_is_told_even_while_it_is_shared() {
        for host in LOCALHOSTS {
            let first = listen(host.parse().unwrap(), ListenerRole::First).unwrap();
            let addr = first.local_addr().unwrap();
            let in_use = |role| listen(addr, role).unwrap_err().kind() == io::ErrorKind::AddrInUse;
            assert!(in_use(ListenerRole::Joiner), "not shared yet");
            first.share_port().unwrap();
            let joiner = listen(addr, ListenerRole::Joiner).unwrap();
            assert_eq!(joiner.local_addr().unwrap(), addr);
            assert!(in_use(ListenerRole::First), "a second server");
        }
    }

    #[test]
    fn an_ipv6_listener_leaves_ipv4_alone_whatever_the_system_says() {
        // Asked, not tried: a busy machine may have no port that is free for both families.
        let listener = listen("[::]:0".parse().unwrap(), ListenerRole::First).unwrap();
        assert!(rustix::net::sockopt::ipv6_v6only(&listener).unwrap());
    }

    #[test]
    fn a_listener_that_refuses_handshakes_still_hands_out_its_queue() {
        for host in LOCALHOSTS {
            let listener = listen(host.parse().unwrap(), ListenerRole::First).unwrap();
            let addr = listener.local_addr().unwrap();
            let mut queued = TcpStream::connect(addr).unwrap();
            listener.refuse_handshakes().unwrap();
            let late = Socket::connect(addr, None).unwrap();
            assert!(!becomes(&late, PollFlags::OUT, 30), "neither connected nor refused");

            assert!(listener.is_readable());
            let (accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer, queued.local_addr().unwrap());
            assert!(!listener.is_readable());
            assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            queued.write_all(b"alive").unwrap();
            assert!(becomes(&accepted, PollFlags::IN, 10_000));
            let mut bytes = [0; 8];
            assert_eq!(accepted.recv(&mut bytes).unwrap(), 5);
            assert_eq!(accepted.send(b"too").unwrap(), 3);
            queued.read_exact(&mut bytes[..3]).unwrap();
            assert_eq!(&bytes[..3], b"too");
        }
    }

    #[test]
    fn a_member_that_refuses_handshakes_leaves_the_others_alone() {
        for host in LOCALHOSTS {
            let leaving = listen(host.parse().unwrap(), ListenerRole::First).unwrap();
            leaving.share_port().unwrap();
            let addr = leaving.local_addr().unwrap();
            let staying = listen(addr, ListenerRole::Joiner).unwrap();
            leaving.refuse_handshakes().unwrap();
            // The kernel spreads them by a hash of the ports: 32 all meet one member once in two billion
            // runs.
            let attempts: Vec<_> = (0..32).map(|_| Socket::connect(addr, None).unwrap()).collect();
            let connected = attempts.iter().filter(|attempt| becomes(attempt, PollFlags::OUT, 5)).count();
            assert!(connected > 0 && connected < 32, "{connected} of 32 met the member that stays");
            let accepted = std::iter::from_fn(|| staying.accept().ok()).count();
            assert_eq!(accepted, connected);
            assert!(!leaving.is_readable());
        }
    }

    #[test]
    fn a_connection_leaves_the_choice_of_its_port_to_connect() {
        for (host, source) in LOCALHOSTS.into_iter().zip(["127.0.0.3:0", "[::1]:0"]) {
            let listener = listen(host.parse().unwrap(), ListenerRole::First).unwrap();
            let source: SocketAddr = source.parse().unwrap();
            let socket = Socket::connect(listener.local_addr().unwrap(), Some(source)).unwrap();
            assert!(becomes(&socket, PollFlags::OUT, 10_000));
            assert!(socket.take_error().unwrap().is_none());
            assert_eq!(socket.local_addr().unwrap().ip(), source.ip());

            let bound = socket2::Socket::new(Domain::for_address(source), stream_type(), None).unwrap();
            linux::set_bind_address_no_port(bound.as_fd()).unwrap();
            bound.bind(&source.into()).unwrap();
            assert_eq!(bound.local_addr().unwrap().as_socket().unwrap().port(), 0, "none chosen yet");
        }
    }

    #[test]
    fn a_vectored_send_keeps_its_order_and_a_peer_that_is_gone_is_an_error() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), ListenerRole::First).unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let slices = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two")];
        assert_eq!(socket.send_vectored(&slices).unwrap(), 7);
        let mut bytes = [0; 7];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"one two");
        assert_eq!(socket.recv(&mut bytes).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        socket.shutdown_write().unwrap();
        assert_eq!(peer.read(&mut bytes).unwrap(), 0);
        for sent in [socket.send(b"x"), socket.send_vectored(&slices)] {
            assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::BrokenPipe, "and no SIGPIPE");
        }
    }

    #[test]
    fn a_foreign_descriptor_becomes_one_of_ours() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), ListenerRole::First).unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = Socket::from(OwnedFd::from(peer));
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
        socket.make_nonblocking().unwrap();
        assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(rustix::io::fcntl_getfd(&socket).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        drop(OwnedFd::from(socket));
    }
}
