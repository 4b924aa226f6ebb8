//! UNIX sockets: names bound without a window, locks beside them, and descriptors that travel with bytes. Does what it is
//! told, once, and without waiting for anybody.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType,
};

use super::datagram::{Arrived, Slots};
use super::socket::{Socket, retry};
use crate::addr::UnixAddr;

/// How a name is bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BindHow {
    /// Who may connect or send: the permissions of the file.
    pub(crate) mode: u32,
    /// Hold a lock on a file beside it.
    pub(crate) lock: bool,
}

/// The file of a bound socket, and the lock beside it. Both go when this is dropped, unless another file has taken their
/// place meanwhile.
#[derive(Debug)]
pub(crate) struct Bound {
    path: PathBuf,
    file: FileId,
    /// Let go of after the file is gone.
    _lock: Option<Lock>,
}

/// A locked file beside a path. Dropping it removes the file, then lets go of the lock.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

type FileId = (u64, u64);

/// Descriptors in one message, at the most (SCM_MAX_FD).
pub(crate) const DESCRIPTORS_PER_MESSAGE: usize = 253;

/// Binds `name` and listens.
///
/// # Errors
/// `AddrInUse` while somebody is bound there and lives, or holds the lock. What is there and is no socket is left alone.
pub(crate) fn listen(name: &UnixAddr, backlog: u32, how: BindHow) -> io::Result<(Socket, Option<Bound>)> {
    let socket = new_socket(SocketType::STREAM)?;
    bind(socket, SocketType::STREAM, name, how, |socket| {
        Ok(rustix::net::listen(socket, i32::try_from(backlog).unwrap_or(i32::MAX))?)
    })
}

/// A datagram socket, bound to `name` unless that is none.
///
/// # Errors
/// As [`listen`].
pub(crate) fn bind_datagram(name: &UnixAddr, how: BindHow) -> io::Result<(Socket, Option<Bound>)> {
    let socket = new_socket(SocketType::DGRAM)?;
    if name.is_unnamed() {
        return Ok((Socket::from(socket), None));
    }
    bind(socket, SocketType::DGRAM, name, how, |_| Ok(()))
}

/// A stream socket that is not connected yet.
pub(crate) fn stream_socket() -> io::Result<Socket> {
    Ok(Socket::from(new_socket(SocketType::STREAM)?))
}

/// Connects `socket`. That never takes a while: it stands, or not.
///
/// # Errors
/// `WouldBlock` when the listener's queue is full: nothing tells when it is not (`connect(2)`).
pub(crate) fn connect(socket: &Socket, name: &UnixAddr) -> io::Result<()> {
    Ok(retry(|| rustix::net::connect(socket.as_fd(), &kernel_name(name)?))?)
}

/// Turns away who connects from now on; who waits in the queue can still be accepted. For a listener that no other
/// process has: it is the socket that is shut, not this descriptor.
pub(crate) fn refuse_connections(listener: &Socket) -> io::Result<()> {
    Ok(rustix::net::shutdown(listener.as_fd(), Shutdown::Read)?)
}

/// What the kernel tells as the name of a socket.
pub(crate) fn name_of(addr: Option<SocketAddrAny>) -> UnixAddr {
    let name = addr.and_then(|addr| SocketAddrUnix::try_from(addr).ok());
    let Some(name) = name else { return UnixAddr::UNNAMED };
    if let Some(name) = name.abstract_name() {
        return UnixAddr::from_abstract(name).unwrap_or(UnixAddr::UNNAMED);
    }
    match name.path_bytes() {
        Some(path) => {
            let path = path.strip_suffix(&[0]).unwrap_or(path);
            let path = Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path));
            UnixAddr::from_path(path).unwrap_or(UnixAddr::UNNAMED)
        }
        None => UnixAddr::UNNAMED,
    }
}

/// Whether somebody alive holds the lock beside `path`.
pub(crate) fn lock_is_held(path: &Path) -> io::Result<bool> {
    // Not waiting for the other end of a pipe that somebody has put there.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(lock_path(path)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(false);
    }
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Offers `bytes`, of which there is at least one, with `descriptors` on their first; says how many bytes were taken. If
/// any were, all descriptors went with them.
pub(crate) fn send(socket: &Socket, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
    let slices = [IoSlice::new(bytes)];
    let sent = retry(|| {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::INVAL);
        }
        rustix::net::sendmsg(socket.as_fd(), &slices, &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(sent)
}

/// Receives datagrams that wait, at most `wanted`, each into a slot of `buffer`; never waits. `names` tells who sent each.
/// Descriptors that came along are closed.
///
/// # Errors
/// What the kernel says: `WouldBlock` when nothing is there.
pub(crate) fn receive_datagrams(
    socket: &Socket,
    buffer: &mut [u8],
    slots: Slots,
    wanted: usize,
    arrived: &mut Vec<Arrived>,
    names: &mut Vec<UnixAddr>,
) -> io::Result<usize> {
    for index in 0..wanted {
        let start = index * slots.stride_bytes;
        let slot = &mut buffer[start..start + slots.slot_bytes];
        let received = retry(|| {
            let mut slices = [IoSliceMut::new(slot)];
            let mut control = RecvAncillaryBuffer::default();
            rustix::net::recvmsg(socket.as_fd(), &mut slices, &mut control, RecvFlags::DONTWAIT)
        });
        let received = match received {
            Ok(received) => received,
            Err(_) if index > 0 => return Ok(index),
            Err(error) => return Err(error.into()),
        };
        arrived.push(Arrived {
            source: NO_IP,
            start: start as u32,
            len: received.bytes as u32,
            truncated: received.flags.contains(ReturnFlags::TRUNC),
        });
        names.push(name_of(received.address));
    }
    Ok(wanted)
}

/// Sends one datagram to `name`.
pub(crate) fn send_datagram(socket: &Socket, bytes: &[u8], name: &UnixAddr) -> io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    retry(|| rustix::net::sendto(socket.as_fd(), bytes, flags, &kernel_name(name)?))?;
    Ok(())
}

/// What stands for the IP address of whoever has none.
pub(crate) const NO_IP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Whether a send failed since too many descriptors of this user are under way: sent, and not received.
pub(crate) fn is_short_of_flights(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::TOOMANYREFS)
}

/// What a read came to.
pub(crate) struct ReceivedBytes {
    /// 0 is the peer's FIN.
    pub(crate) bytes: usize,
    /// Something came beside them. The kernel stops a read behind such bytes, so that there may be more.
    pub(crate) with_control: bool,
}

/// Reads what has come, and the descriptors that came with it; where those are not wanted, the kernel closes them.
///
/// # Errors
/// What the kernel says; `InvalidData` when wanted descriptors were lost, for want of room in the process's table.
pub(crate) fn receive(
    socket: &Socket,
    buffer: &mut [u8],
    wanted: Option<&mut Vec<OwnedFd>>,
) -> io::Result<ReceivedBytes> {
    match wanted {
        Some(descriptors) => receive_with_descriptors(socket, buffer, descriptors),
        None => {
            // Room for none: that some came is told all the same.
            let mut control = RecvAncillaryBuffer::default();
            let (bytes, lost) = receive_once(socket, buffer, &mut control)?;
            Ok(ReceivedBytes { bytes, with_control: lost })
        }
    }
}

fn receive_with_descriptors(
    socket: &Socket,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<ReceivedBytes> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let (bytes, lost) = receive_once(socket, buffer, &mut control)?;
    let mut with_control = false;
    for message in control.drain() {
        with_control = true;
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if lost {
        descriptors.clear();
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "descriptors that the peer passed are lost: the process has no room for them (MSG_CTRUNC)",
        ));
    }
    Ok(ReceivedBytes { bytes, with_control })
}

/// One `recvmsg(2)`, and whether there was no room for all that came beside the bytes.
fn receive_once(
    socket: &Socket,
    buffer: &mut [u8],
    control: &mut RecvAncillaryBuffer<'_>,
) -> io::Result<(usize, bool)> {
    let received = retry(|| {
        let mut slices = [IoSliceMut::new(buffer)];
        rustix::net::recvmsg(socket.as_fd(), &mut slices, control, RecvFlags::CMSG_CLOEXEC)
    })?;
    Ok((received.bytes, received.flags.contains(ReturnFlags::CTRUNC)))
}

fn new_socket(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

fn kernel_name(name: &UnixAddr) -> rustix::io::Result<SocketAddrUnix> {
    match (name.path(), name.abstract_name()) {
        (Some(path), _) => SocketAddrUnix::new(path),
        (_, Some(name)) => SocketAddrUnix::new_abstract_name(name),
        _ => Err(Errno::INVAL),
    }
}

fn bind(
    socket: OwnedFd,
    kind: SocketType,
    name: &UnixAddr,
    how: BindHow,
    listen: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<(Socket, Option<Bound>)> {
    let addr = kernel_name(name)?;
    let Some(path) = name.path() else {
        if how.lock {
            let reason = "an abstract name has no file, hence no lock file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        rustix::net::bind(&socket, &addr)?;
        listen(socket.as_fd())?;
        return Ok((Socket::from(socket), None));
    };
    let lock = if how.lock { Some(take_lock(path)?) } else { None };
    // Two starters at a time must not clear each other's socket away between its bind and its listen.
    let _turn = lock_directory(path)?;
    // The file that bind makes gets the permissions of the socket, less the umask: never more than was asked for. To
    // change the umask instead would change it for all threads.
    let socket = File::from(socket);
    socket.set_permissions(fs::Permissions::from_mode(how.mode & PERMISSIONS))?;
    let socket = OwnedFd::from(socket);
    for attempt in 0.. {
        match rustix::net::bind(&socket, &addr) {
            Ok(()) => break,
            Err(Errno::ADDRINUSE) if attempt < CLEARINGS_MAX => clear_stale(path, kind, &addr)?,
            Err(error) => return Err(error.into()),
        }
    }
    let made = fs::symlink_metadata(path)?;
    let bound = Bound { path: path.to_owned(), file: file_id(&made), _lock: lock };
    listen(socket.as_fd())?;
    if made.mode() & PERMISSIONS != how.mode & PERMISSIONS {
        bound.set_mode(how.mode & PERMISSIONS)?;
    }
    Ok((Socket::from(socket), Some(bound)))
}

/// Removes a socket at `path` behind which nobody is.
fn clear_stale(path: &Path, kind: SocketType, addr: &SocketAddrUnix) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.is_socket() {
        let what = match () {
            () if found.is_dir() => "a directory",
            () if found.is_symlink() => "a symbolic link",
            () if found.is_file() => "a regular file",
            () => "a special file",
        };
        let reason = format!("there is {what}, which is left alone");
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
    }
    match rustix::net::connect(new_socket(kind)?, addr) {
        Err(Errno::CONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        Err(Errno::NOENT) => Ok(()),
        // It answers, has no room, or is of the other kind: somebody is there.
        _ => Err(Errno::ADDRINUSE.into()),
    }
}

/// Takes the lock file beside `path`, made if it is not there. It is the lock that counts, not the file: one that a dead
/// process has left is taken over.
fn take_lock(path: &Path) -> io::Result<Lock> {
    let lock_path = lock_path(path);
    let mut refusals = 0;
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&lock_path)?;
        check_is_lock(&mut file, &lock_path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if refusals == LOCK_RETRIES => return Err(Errno::ADDRINUSE.into()),
            Err(TryLockError::WouldBlock) => {
                // Somebody who only looks holds it for a moment.
                refusals += 1;
                pause();
                continue;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Its last holder may have removed the file before it let go.
        let still_there =
            fs::symlink_metadata(&lock_path).is_ok_and(|found| Some(file_id(&found)) == id_of(&file));
        if still_there {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            return Ok(Lock { path: lock_path, file });
        }
    }
}

/// A file that is none of our locks is left alone, whatever its name: it would be emptied, and removed at the end.
fn check_is_lock(file: &mut File, path: &Path) -> io::Result<()> {
    let metadata = file.metadata()?;
    let mut text = Vec::new();
    let is_ours = metadata.is_file() && metadata.nlink() <= 1 && metadata.len() <= PID_BYTES_MAX && {
        file.read_to_end(&mut text)?;
        file.rewind()?;
        text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'\n')
    };
    if is_ours {
        return Ok(());
    }
    let what = format!("`{}` is no lock file, and is left alone", path.display());
    Err(io::Error::new(io::ErrorKind::AlreadyExists, what))
}

/// A lock file holds a process number and a line's end.
const PID_BYTES_MAX: u64 = 16;

/// Waits a little for whoever binds in the same directory at the same time. A directory that cannot be locked, since it
/// may not be read, is none that needs it.
fn lock_directory(path: &Path) -> io::Result<Option<File>> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Ok(directory) = File::open(directory) else { return Ok(None) };
    for _ in 0..DIRECTORY_RETRIES {
        match directory.try_lock() {
            Ok(()) => return Ok(Some(directory)),
            Err(TryLockError::WouldBlock) => pause(),
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
    // Whoever holds it so long does something else with it.
    Ok(None)
}

#[allow(clippy::disallowed_methods, reason = "bounded: milliseconds, and only while a name is bound")]
fn pause() {
    std::thread::sleep(LOCK_RETRY_INTERVAL);
}

fn lock_path(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    PathBuf::from(lock)
}

fn file_id(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

fn id_of(file: &File) -> Option<FileId> {
    file.metadata().ok().map(|metadata| file_id(&metadata))
}

impl Bound {
    /// Sets the permissions of the file by itself, not by its path, where something else may be by now.
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path)?;
        if id_of(&file) != Some(self.file) {
            return Err(Errno::ADDRINUSE.into());
        }
        let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::set_permissions(by_descriptor, fs::Permissions::from_mode(mode))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        remove_if_it_is(&self.path, Some(self.file));
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        remove_if_it_is(&self.path, id_of(&self.file));
    }
}

fn remove_if_it_is(path: &Path, id: Option<FileId>) {
    if fs::symlink_metadata(path).is_ok_and(|found| Some(file_id(&found)) == id) {
        let _ = fs::remove_file(path);
    }
}

/// How often a name that is in use may turn out to be stale.
const CLEARINGS_MAX: usize = 4;
const LOCK_RETRIES: usize = 5;
const DIRECTORY_RETRIES: usize = 20;
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(1);
const PERMISSIONS: u32 = 0o777;
