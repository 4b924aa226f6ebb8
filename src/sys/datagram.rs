//! Datagrams in and out: several received by one call, several sent by one where the kernel can cut them, and what
//! came beside the bytes. Knows no sockets' settings and keeps nothing.
//!
//! Not quinn-udp, which is made for QUIC: it forbids fragmentation, swallows EMSGSIZE, and tells neither of a
//! truncated datagram nor of those the kernel dropped.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::return_stack;
use super::socket::retry;

/// A datagram that has come, and where in the buffer it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) source: SocketAddr,
    pub(crate) start: u32,
    pub(crate) len: u32,
    /// It was longer than its slot; the rest is lost.
    pub(crate) truncated: bool,
}

/// What one call brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Messages: as many datagrams, unless the kernel has joined some (UDP_GRO).
    pub(crate) messages: usize,
    /// How many the kernel had dropped at this socket, ever, when the last of them came. Not told while it is none.
    pub(crate) dropped: Option<u32>,
}

/// How a buffer is cut into slots for datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slots {
    /// The longest datagram.
    pub(crate) slot_bytes: usize,
    /// From the beginning of one slot to that of the next.
    pub(crate) stride_bytes: usize,
}

impl Slots {
    pub(crate) const fn new(slot_bytes: usize) -> Self {
        // Not a power of two: the heads of the slots, all that small datagrams touch, would share one cache set.
        let stride_bytes = slot_bytes.next_multiple_of(CACHE_LINE_BYTES) + CACHE_LINE_BYTES;
        Slots { slot_bytes, stride_bytes }
    }

    /// The room that `count` slots need.
    pub(crate) const fn bytes(self, count: usize) -> usize {
        self.stride_bytes * count
    }
}

/// Messages received by one call, at the most.
pub(crate) const MESSAGES_MAX: usize = 16;
/// Longer than any datagram over IP: 65,535 bytes with its headers, without jumbograms.
pub(crate) const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Datagrams that the kernel cuts from one send (UDP_MAX_SEGMENTS).
pub(crate) const SEGMENTS_MAX: usize = 64;
/// Bytes of one send that is cut: an IPv4 packet without its headers.
pub(crate) const SEGMENTED_BYTES_MAX: usize = 65_507;
const CACHE_LINE_BYTES: usize = 64;

/// Room for what comes beside the bytes: the drop counter and the length of joined datagrams.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Receives what waits, at most `wanted` messages, each into a slot of `buffer`; never waits. `arrived` tells what
/// came.
///
/// # Errors
/// What the kernel says: `WouldBlock` when nothing is there, a stored ICMP error of a connected socket.
/// # Panics
/// When `buffer` has not as many slots.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    slots: Slots,
    wanted: usize,
    arrived: &mut Vec<Arrived>,
) -> io::Result<Received> {
    assert!(wanted > 0 && wanted <= MESSAGES_MAX && buffer.len() >= slots.bytes(wanted));
    let mut names = [const { MaybeUninit::<libc::sockaddr_in6>::uninit() }; MESSAGES_MAX];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; MESSAGES_MAX];
    let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; MESSAGES_MAX];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MESSAGES_MAX];
    let base = buffer.as_mut_ptr();
    for index in 0..wanted {
        let start = index * slots.stride_bytes;
        // `wrapping_add` stays in bounds: the assert above has counted the slots.
        let piece = libc::iovec { iov_base: base.wrapping_add(start).cast(), iov_len: slots.slot_bytes };
        let piece: *mut libc::iovec = pieces[index].write(piece);
        // SAFETY: all zeroes is a valid `mmsghdr`: no name, no pieces, no control.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_name = names[index].as_mut_ptr().cast();
        header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        header.msg_hdr.msg_iov = piece;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = controls[index].as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = size_of::<Control>() as _;
        headers[index].write(header);
    }
    let messages = loop {
        // SAFETY: the first `wanted` headers are initialised, and point to names, controls and slots that live until
        // the end of this function and are as long as the headers say. Nothing else looks at them meanwhile.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr().cast(),
                wanted as _,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        return_stack::refill();
        if count >= 0 {
            break count as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let mut dropped = None;
    for (index, header) in headers.iter().enumerate().take(messages) {
        // SAFETY: initialised above, and the kernel has filled it.
        let header = unsafe { header.assume_init_ref() };
        let beside = read_control(&header.msg_hdr);
        dropped = beside.dropped.or(dropped);
        let len = (header.msg_len as usize).min(slots.slot_bytes);
        let source = internet_addr(&names[index], header.msg_hdr.msg_namelen);
        let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        let start = index * slots.stride_bytes;
        let segment_bytes = beside.segment_bytes.unwrap_or(len).max(1);
        // One that is empty is one all the same.
        let mut offset = 0;
        loop {
            let part = segment_bytes.min(len - offset);
            let is_last = offset + part == len;
            arrived.push(Arrived {
                source,
                start: (start + offset) as u32,
                len: part as u32,
                truncated: truncated && is_last,
            });
            offset += part;
            if is_last {
                break;
            }
        }
    }
    Ok(Received { messages, dropped })
}

/// Receives one datagram and forgets it; never waits.
pub(crate) fn discard(socket: BorrowedFd<'_>) -> io::Result<()> {
    retry(|| rustix::net::recv(socket, &mut [0; 0][..], RecvFlags::DONTWAIT))?;
    Ok(())
}

#[derive(Default)]
struct Beside {
    dropped: Option<u32>,
    segment_bytes: Option<usize>,
}

fn read_control(header: &libc::msghdr) -> Beside {
    let mut beside = Beside::default();
    if header.msg_controllen == 0 {
        return beside;
    }
    // SAFETY: the kernel has written `msg_controllen` bytes of well-formed control messages, into an aligned buffer.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: not null, hence a whole header within the control buffer; both messages asked for carry four bytes.
        let (level, kind, value) = unsafe {
            let value = libc::CMSG_DATA(message).cast::<u32>().read_unaligned();
            ((*message).cmsg_level, (*message).cmsg_type, value)
        };
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => beside.dropped = Some(value),
            (libc::SOL_UDP, libc::UDP_GRO) => beside.segment_bytes = Some(value as usize),
            _ => {}
        }
        // SAFETY: both belong to the same control buffer.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    beside
}

/// What the kernel wrote as the source of a datagram.
fn internet_addr(name: &MaybeUninit<libc::sockaddr_in6>, len: libc::socklen_t) -> SocketAddr {
    let len = len as usize;
    if len >= size_of::<libc::sockaddr_in>() {
        let place = name.as_ptr();
        // SAFETY: the kernel has written `len` bytes, enough for either type's family, and for all of an IPv4 address.
        unsafe {
            let family = libc::c_int::from((*place.cast::<libc::sockaddr_in>()).sin_family);
            if family == libc::AF_INET {
                let addr = *place.cast::<libc::sockaddr_in>();
                let ip = Ipv4Addr::from(u32::from_be(addr.sin_addr.s_addr));
                return SocketAddr::new(IpAddr::V4(ip), u16::from_be(addr.sin_port));
            }
            if family == libc::AF_INET6 && len >= size_of::<libc::sockaddr_in6>() {
                let addr = *place;
                let ip = Ipv6Addr::from(addr.sin6_addr.s6_addr);
                let port = u16::from_be(addr.sin6_port);
                return SocketAddrV6::new(ip, port, addr.sin6_flowinfo, addr.sin6_scope_id).into();
            }
        }
    }
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)
}

/// Sends one datagram, to the connected peer unless another is named.
#[inline]
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], to: Option<SocketAddr>) -> io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match to {
        Some(to) => retry(|| rustix::net::sendto(socket, bytes, flags, &to))?,
        None => retry(|| rustix::net::send(socket, bytes, flags))?,
    };
    Ok(())
}

/// What a failed send says about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendFailure {
    /// The socket's buffer is full: it becomes writable again.
    NoRoom,
    /// The kernel or the device has no memory, and does not tell when it has.
    NoBuffers,
    /// No datagram is that long, or the path takes none and none may be cut.
    TooLong,
    Other,
}

impl SendFailure {
    pub(crate) fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::AGAIN) => SendFailure::NoRoom,
            Some(Errno::NOBUFS | Errno::NOMEM) => SendFailure::NoBuffers,
            Some(Errno::MSGSIZE) => SendFailure::TooLong,
            _ => SendFailure::Other,
        }
    }
}

/// Sends `bytes` as datagrams of `segment_bytes`, the last of which may be shorter, in one call (UDP_SEGMENT, `udp(7)`).
///
/// # Errors
/// What the kernel says; `EIO` when the device cannot, or has no checksum offload. Nothing was sent then.
/// # Panics
/// When that is more than one call may carry.
pub(crate) fn send_segments(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    segment_bytes: u16,
    to: Option<SocketAddr>,
) -> io::Result<()> {
    assert!(segment_bytes > 0 && bytes.len() <= SEGMENTED_BYTES_MAX);
    assert!(bytes.len() <= SEGMENTS_MAX * usize::from(segment_bytes));
    let mut control = Control([0; 64]);
    let to = to.map(kernel_addr);
    let piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let pieces = [piece];
    // SAFETY: all zeroes is a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if let Some((addr, len)) = &to {
        header.msg_name = (&raw const *addr).cast_mut().cast();
        header.msg_namelen = *len;
    }
    header.msg_iov = pieces.as_ptr().cast_mut();
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: plain arithmetic.
    header.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as _;
    // SAFETY: the control buffer is aligned, and larger than one message of two bytes, whose header is set here.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(&header);
        (*message).cmsg_level = libc::SOL_UDP;
        (*message).cmsg_type = libc::UDP_SEGMENT;
        (*message).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
        libc::CMSG_DATA(message).cast::<u16>().write_unaligned(segment_bytes);
    }
    loop {
        // SAFETY: the kernel only reads what the header points to, all of which lives until the call returns.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// An address as the kernel reads it.
fn kernel_addr(addr: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: all zeroes is a valid address of no family.
    let mut place: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    match addr {
        SocketAddr::V4(addr) => {
            // SAFETY: as above.
            let mut four: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            four.sin_family = libc::AF_INET as libc::sa_family_t;
            four.sin_port = addr.port().to_be();
            four.sin_addr.s_addr = u32::from(*addr.ip()).to_be();
            // SAFETY: an IPv4 address is shorter, and wants no stricter alignment.
            unsafe { (&raw mut place).cast::<libc::sockaddr_in>().write(four) };
            (place, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        SocketAddr::V6(addr) => {
            place.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            place.sin6_port = addr.port().to_be();
            place.sin6_addr.s6_addr = addr.ip().octets();
            place.sin6_flowinfo = addr.flowinfo();
            place.sin6_scope_id = addr.scope_id();
            (place, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    const HOSTS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

    fn receive_all(
        socket: &UdpSocket,
        slot_bytes: usize,
        wanted: usize,
    ) -> (Vec<Vec<u8>>, Vec<Arrived>, Received) {
        let slots = Slots::new(slot_bytes);
        let mut buffer = vec![0; slots.bytes(wanted)];
        let mut arrived = Vec::new();
        let received = receive(socket.as_fd(), &mut buffer, slots, wanted, &mut arrived).unwrap();
        let bytes = arrived
            .iter()
            .map(|datagram| buffer[datagram.start as usize..][..datagram.len as usize].to_vec())
            .collect();
        (bytes, arrived, received)
    }

    #[test]
    fn several_come_by_one_call_in_order_with_their_source_the_empty_one_too() {
        for host in HOSTS {
            let receiver = UdpSocket::bind(host).unwrap();
            let sender = UdpSocket::bind(host).unwrap();
            let to = receiver.local_addr().unwrap();
            for bytes in [&b"one"[..], b"", b"three"] {
                send(sender.as_fd(), bytes, Some(to)).unwrap();
            }
            let (bytes, arrived, received) = receive_all(&receiver, 100, 16);
            assert_eq!(bytes, [b"one".to_vec(), Vec::new(), b"three".to_vec()]);
            assert_eq!(received, Received { messages: 3, dropped: None });
            assert!(arrived.iter().all(|one| one.source == sender.local_addr().unwrap() && !one.truncated));
            let slots = Slots::new(8);
            let nothing = receive(receiver.as_fd(), &mut [0; 128], slots, 1, &mut Vec::new());
            assert_eq!(nothing.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_datagram_longer_than_its_slot_is_marked() {
        let receiver = UdpSocket::bind(HOSTS[0]).unwrap();
        let sender = UdpSocket::bind(HOSTS[0]).unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        send(sender.as_fd(), &[7; 100], None).unwrap();
        send(sender.as_fd(), &[8; 10], None).unwrap();
        let (bytes, arrived, _) = receive_all(&receiver, 10, 4);
        assert_eq!(bytes, [vec![7; 10], vec![8; 10]]);
        assert!(arrived[0].truncated && !arrived[1].truncated);
    }

    #[test]
    fn one_send_is_cut_into_datagrams() {
        for host in HOSTS {
            let receiver = UdpSocket::bind(host).unwrap();
            let sender = UdpSocket::bind(host).unwrap();
            let bytes: Vec<u8> = (0..250u8).collect();
            send_segments(sender.as_fd(), &bytes, 100, Some(receiver.local_addr().unwrap())).unwrap();
            let (pieces, _, _) = receive_all(&receiver, 1000, 16);
            assert_eq!(pieces, [&bytes[..100], &bytes[100..200], &bytes[200..]]);
        }
    }

    #[test]
    fn joined_datagrams_come_apart_again() {
        let receiver = UdpSocket::bind(HOSTS[0]).unwrap();
        super::super::linux::set_udp_gro(receiver.as_fd()).unwrap();
        let sender = UdpSocket::bind(HOSTS[0]).unwrap();
        let bytes: Vec<u8> = (0..250u8).collect();
        send_segments(sender.as_fd(), &bytes, 100, Some(receiver.local_addr().unwrap())).unwrap();
        let (pieces, _, received) = receive_all(&receiver, DATAGRAM_BYTES_MAX, 4);
        assert_eq!(pieces, [&bytes[..100], &bytes[100..200], &bytes[200..]]);
        assert_eq!(received.messages, 1, "the kernel did not cut them");
    }
}
