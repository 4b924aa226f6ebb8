//! What a descriptor from elsewhere is: asked, never assumed. Changes nothing about it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use super::socket::Socket;
use crate::addr::Addr;
use rustix::net::{AddressFamily, SocketType, sockopt};

/// What a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nature {
    pub(crate) family: Family,
    pub(crate) kind: Kind,
    pub(crate) listens: bool,
    /// The same for all descriptors of one socket.
    pub(crate) inode: (u64, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    Unix,
    /// Its number.
    Other(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stream,
    Datagram,
    Other,
}

/// Looks at a descriptor.
///
/// # Errors
/// `ENOTSOCK` when it is none of a socket.
pub(crate) fn look(fd: &OwnedFd) -> io::Result<Nature> {
    let family = match sockopt::socket_domain(fd)? {
        AddressFamily::INET => Family::V4,
        AddressFamily::INET6 => Family::V6,
        AddressFamily::UNIX => Family::Unix,
        other => Family::Other(other.as_raw()),
    };
    let kind = match sockopt::socket_type(fd)? {
        SocketType::STREAM => Kind::Stream,
        SocketType::DGRAM => Kind::Datagram,
        _ => Kind::Other,
    };
    let listens = sockopt::socket_acceptconn(fd)?;
    let metadata = File::from(fd.as_fd().try_clone_to_owned()?).metadata()?;
    Ok(Nature { family, kind, listens, inode: (metadata.dev(), metadata.ino()) })
}

/// Where a socket listens.
pub(crate) fn local(fd: &OwnedFd) -> io::Result<Addr> {
    Socket::from(fd.as_fd().try_clone_to_owned()?).local()
}

/// The other end and ours, of a connected socket.
///
/// # Errors
/// `NotConnected` when it is none.
pub(crate) fn ends(fd: &OwnedFd) -> io::Result<(Addr, Addr)> {
    let socket = Socket::from(fd.as_fd().try_clone_to_owned()?);
    Ok((socket.peer()?, socket.local()?))
}
