//! Linux calls that no library wraps for us.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Leaves the choice of the local port to `connect`, which may then use one port for several destinations.
/// Without it a `bind` to port 0 takes a port of its own, and a source address ends after some 28,000
/// connections.
pub(crate) fn set_bind_address_no_port(socket: BorrowedFd<'_>) -> io::Result<()> {
    switch_on(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)
}

/// Has the kernel tell with each datagram how many it has dropped at this socket for want of room (`socket(7)`).
pub(crate) fn set_receive_overflow(socket: BorrowedFd<'_>) -> io::Result<()> {
    switch_on(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL)
}

/// Lets the kernel join datagrams of one sender into one message, and tell their length (`udp(7)`).
pub(crate) fn set_udp_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    switch_on(socket, libc::SOL_UDP, libc::UDP_GRO)
}

/// A descriptor of the process that connected a UNIX socket, or made the pair (Linux 6.5, `SO_PEERPIDFD`).
///
/// # Errors
/// `ENOPROTOOPT` from an older kernel.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes at most `len` bytes to `pidfd`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    assert!(pidfd >= 0, "the kernel has made a descriptor");
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// `asm-generic/socket.h`; libc has no name for it on every target.
const SO_PEERPIDFD: libc::c_int = 77;

fn switch_on(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel only reads
    // `size_of::<c_int>()` bytes from `on`, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Another descriptor of the same open file, for an owner that only tells its number.
pub(crate) fn duplicate(file: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes plain numbers and touches no memory.
    let copy = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// One instruction of a classic BPF program.
#[derive(Clone, Copy)]
pub(crate) struct BpfInstruction {
    pub(crate) code: u16,
    pub(crate) jump_if_true: u8,
    pub(crate) jump_if_false: u8,
    pub(crate) operand: u32,
}

/// A socket filter that drops TCP segments which ask for a new connection (SYN without ACK) and passes all
/// others. On a TCP listener a filter sees a segment from its TCP header on, over IPv4 and IPv6 alike.
///
/// Accepted sockets inherit it, where it changes nothing: an established connection has no use for such a
/// segment.
pub(crate) const DROP_NEW_HANDSHAKES: [BpfInstruction; 5] = [
    // The flags are the byte at offset 13 of the header (RFC 9293 §3.1).
    bpf(BPF_LOAD_BYTE, 0, 0, 13),
    bpf(BPF_AND, 0, 0, TCP_SYN | TCP_ACK),
    bpf(BPF_JUMP_IF_EQUAL, 0, 1, TCP_SYN),
    bpf(BPF_RETURN, 0, 0, 0),
    bpf(BPF_RETURN, 0, 0, u32::MAX),
];

const fn bpf(code: u16, jump_if_true: u8, jump_if_false: u8, operand: u32) -> BpfInstruction {
    BpfInstruction { code, jump_if_true, jump_if_false, operand }
}

const TCP_SYN: u32 = 0x02;
const TCP_ACK: u32 = 0x10;

const BPF_LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const BPF_AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const BPF_JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const BPF_RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// A seed from the kernel's random bits (`getrandom(2)`).
pub(crate) fn random_seed() -> io::Result<u64> {
    let mut bytes = [0; size_of::<u64>()];
    // Up to 256 bytes come whole, unless a signal ends the wait for the kernel's pool early in its boot.
    rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The CPUs that a thread may run on (`sched_setaffinity(2)`).
pub(crate) struct CpuMask {
    cpus: rustix::thread::CpuSet,
}

impl CpuMask {
    pub(crate) fn of_this_thread() -> io::Result<CpuMask> {
        Ok(CpuMask { cpus: rustix::thread::sched_getaffinity(None)? })
    }

    pub(crate) fn apply_to_this_thread(&self) -> io::Result<()> {
        Ok(rustix::thread::sched_setaffinity(None, &self.cpus)?)
    }
}
