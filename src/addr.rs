//! Addresses of sockets: IP ones, and the names of UNIX sockets. Opens and resolves nothing.

use std::error::Error;
use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The address of one end of a connection, or of a listener, whatever it is made of.
///
/// Where only TCP can be meant, plain [`SocketAddr`]s are used: as in [`Transport::peer_addr`](crate::Transport::peer_addr).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Addr {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// The name of a UNIX socket.
    Unix(UnixAddr),
}

impl Addr {
    /// The IP address and port, if it is one.
    pub fn as_ip(&self) -> Option<SocketAddr> {
        match self {
            Addr::Ip(addr) => Some(*addr),
            Addr::Unix(_) => None,
        }
    }

    /// The name of the UNIX socket, if it is one.
    pub fn as_unix(&self) -> Option<&UnixAddr> {
        match self {
            Addr::Ip(_) => None,
            Addr::Unix(addr) => Some(addr),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Ip(addr) => write!(formatter, "{addr}"),
            Addr::Unix(addr) => write!(formatter, "{addr}"),
        }
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Addr::Ip(addr)
    }
}

impl From<UnixAddr> for Addr {
    fn from(addr: UnixAddr) -> Self {
        Addr::Unix(addr)
    }
}

impl PartialEq<SocketAddr> for Addr {
    fn eq(&self, other: &SocketAddr) -> bool {
        self.as_ip() == Some(*other)
    }
}

/// The name of a UNIX socket: a path, an abstract name, or none. `unix(7)`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnixAddr {
    name: Name,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Name {
    Unnamed,
    Path(Box<Path>),
    Abstract(Box<[u8]>),
}

/// What `sockaddr_un` has room for, less the zero at the end of a path or at the beginning of an abstract name.
pub(crate) const NAME_BYTES_MAX: usize = 107;

impl UnixAddr {
    /// No name: what a client has that did not ask for one.
    pub const UNNAMED: UnixAddr = UnixAddr { name: Name::Unnamed };

    /// A path of the file system.
    ///
    /// # Errors
    /// [`InvalidPath`] when it is empty, longer than 107 bytes, or holds a zero byte.
    pub fn from_path(path: impl AsRef<Path>) -> Result<UnixAddr, InvalidPath> {
        let path = path.as_ref();
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.len() > NAME_BYTES_MAX || bytes.contains(&0) {
            return Err(InvalidPath { path: path.to_owned() });
        }
        Ok(UnixAddr { name: Name::Path(path.into()) })
    }

    /// A name of Linux's abstract namespace, without the leading zero byte: it is no file, anybody in the same network
    /// namespace may connect, and it vanishes with its socket.
    ///
    /// # Errors
    /// [`InvalidPath`] when it is empty or longer than 107 bytes.
    pub fn from_abstract(name: impl AsRef<[u8]>) -> Result<UnixAddr, InvalidPath> {
        let name = name.as_ref();
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            let path = [b"@", name].concat();
            return Err(InvalidPath { path: PathBuf::from(OsStr::from_bytes(&path)) });
        }
        Ok(UnixAddr { name: Name::Abstract(name.into()) })
    }

    /// The path, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.name {
            Name::Path(path) => Some(path),
            Name::Unnamed | Name::Abstract(_) => None,
        }
    }

    /// The abstract name, if it is one, without the leading zero byte.
    pub fn abstract_name(&self) -> Option<&[u8]> {
        match &self.name {
            Name::Abstract(name) => Some(name),
            Name::Unnamed | Name::Path(_) => None,
        }
    }

    /// Whether it is none.
    pub fn is_unnamed(&self) -> bool {
        matches!(self.name, Name::Unnamed)
    }
}

impl fmt::Display for UnixAddr {
    /// As endpoints are written: `unix:/run/x`, `unix:@name`; `unix:unnamed` for none.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Name::Unnamed => formatter.write_str("unix:unnamed"),
            Name::Path(path) => write!(formatter, "unix:{}", path.display()),
            Name::Abstract(name) => write!(formatter, "unix:@{}", name.escape_ascii()),
        }
    }
}

impl fmt::Debug for UnixAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// What [`Shard::listen_unix`](crate::Shard::listen_unix) and [`Shard::connect_unix`](crate::Shard::connect_unix) take:
/// a path, or a [`UnixAddr`]. A name that begins with `@`, or with a zero byte, is an abstract one; write `./@name`
/// for such a file.
pub trait ToUnixAddr {
    /// The name.
    ///
    /// # Errors
    /// [`InvalidPath`] says what is wrong with it.
    fn to_unix_addr(&self) -> Result<UnixAddr, InvalidPath>;
}

impl ToUnixAddr for UnixAddr {
    fn to_unix_addr(&self) -> Result<UnixAddr, InvalidPath> {
        Ok(self.clone())
    }
}

impl ToUnixAddr for Path {
    fn to_unix_addr(&self) -> Result<UnixAddr, InvalidPath> {
        match self.as_os_str().as_bytes() {
            [b'@' | 0, name @ ..] => UnixAddr::from_abstract(name),
            _ => UnixAddr::from_path(self),
        }
    }
}

impl ToUnixAddr for PathBuf {
    fn to_unix_addr(&self) -> Result<UnixAddr, InvalidPath> {
        self.as_path().to_unix_addr()
    }
}

impl ToUnixAddr for str {
    fn to_unix_addr(&self) -> Result<UnixAddr, InvalidPath> {
        Path::new(self).to_unix_addr()
    }
}

impl ToUnixAddr for String {
    fn to_unix_addr(&self) -> Result<UnixAddr, InvalidPath> {
        self.as_str().to_unix_addr()
    }
}

impl<T: ToUnixAddr + ?Sized> ToUnixAddr for &T {
    fn to_unix_addr(&self) -> Result<UnixAddr, InvalidPath> {
        (**self).to_unix_addr()
    }
}

/// A name that no UNIX socket can have. Says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPath {
    pub(crate) path: PathBuf,
}

impl fmt::Display for InvalidPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.path.as_os_str().as_bytes();
        let (name, what) = match bytes {
            [b'@', name @ ..] => (name, "name"),
            name => (name, "path"),
        };
        write!(formatter, "`{}` names no UNIX socket: ", self.path.display())?;
        if name.is_empty() {
            write!(formatter, "the {what} is empty")
        } else if name.len() > NAME_BYTES_MAX {
            let most = NAME_BYTES_MAX;
            write!(formatter, "it has {} bytes, and a socket's name at most {most}", name.len())
        } else {
            write!(formatter, "it holds a zero byte")
        }
    }
}

impl Error for InvalidPath {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_by_their_first_byte() {
        assert_eq!("/run/x".to_unix_addr().unwrap().path(), Some(Path::new("/run/x")));
        assert_eq!("@x".to_unix_addr().unwrap().abstract_name(), Some(&b"x"[..]));
        assert_eq!("\0x".to_unix_addr().unwrap(), "@x".to_unix_addr().unwrap());
        assert_eq!("./@x".to_unix_addr().unwrap().path(), Some(Path::new("./@x")));
        assert_eq!(PathBuf::from("@x").to_unix_addr().unwrap().to_string(), "unix:@x");
        assert_eq!(UnixAddr::UNNAMED.to_string(), "unix:unnamed");
    }

    #[test]
    fn a_name_that_no_socket_can_have_is_told_with_its_length() {
        assert!("a".repeat(107).to_unix_addr().is_ok());
        let long = "a".repeat(108).to_unix_addr().unwrap_err();
        assert!(long.to_string().ends_with("it has 108 bytes, and a socket's name at most 107"), "{long}");
        assert!(format!("@{}", "a".repeat(107)).to_unix_addr().is_ok());
        assert!(format!("@{}", "a".repeat(108)).to_unix_addr().is_err());
        for bad in ["", "@", "a\0b"] {
            assert!(bad.to_unix_addr().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_address_is_no_larger_than_an_ip_address() {
        assert!(size_of::<Addr>() <= size_of::<SocketAddr>().next_multiple_of(8), "{}", size_of::<Addr>());
    }
}
