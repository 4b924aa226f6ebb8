//! Sockets: the one door to socket2. Every socket is non-blocking and closed on exec; what a socket is for, and
//! when to call, is decided above.

use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrAny, SocketFlags};
use socket2::{Domain, Protocol, SockFilter, SockRef, TcpKeepalive, Type};

use super::linux;

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
    /// The first at its address: fails with "address in use" if anybody listens there, of this process or another.
    First,
    /// Shares the address with a first one that has called [`Socket::share_port`].
    Joiner,
}

impl Socket {
    /// Binds to `addr` and listens; `backlog` finished handshakes may wait, or as many as `net.core.somaxconn`
    /// allows. An IPv6 socket takes no IPv4 connections, so that both families can be bound side by side.
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

    /// Turns new handshakes away: the kernel drops their first segment, and a peer that repeats it finds another
    /// member or, once this one is closed, a refusal. What is queued or half-done still arrives.
    pub(crate) fn refuse_handshakes(&self) -> io::Result<()> {
        let program = linux::DROP_NEW_HANDSHAKES
            .map(|step| SockFilter::new(step.code, step.jump_if_true, step.jump_if_false, step.operand));
        SockRef::from(&self.fd).attach_filter(&program)
    }

    /// Whether a finished handshake waits to be accepted, looked up without taking a descriptor.
    pub(crate) fn has_waiting_peer(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(retry(|| poll(&mut polled, Some(&at_once))), Ok(count) if count > 0)
    }

    /// Accepts one connection. It inherits the listener's TCP_NODELAY, keepalive and user timeout.
    #[inline]
    pub(crate) fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (fd, peer) = retry(|| rustix::net::acceptfrom_with(&self.fd, flags))?;
        // A peer that has gone meanwhile may have no address left.
        let peer = peer.ok_or(Errno::CONNABORTED)?;
        Ok((Socket { fd }, internet_addr(peer)?))
    }

    /// Begins to connect to `addr`, from `bind_addr` if given. The socket becomes writable when the outcome is
    /// known, which [`Socket::take_error`] then tells.
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
    /// seconds: the user timeout decides both cases, and keepalive makes an idle connection ask (`tcp(7)`). Off,
    /// the user timeout is the system's again.
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

fn internet_addr(addr: SocketAddrAny) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(addr)?)
}

/// Repeats a call that a signal interrupted.
#[inline]
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;
const UNANSWERED_MAX: Duration = Duration::from_secs(90);
