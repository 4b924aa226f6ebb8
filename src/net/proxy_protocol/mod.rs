//! The header that a proxy puts before a connection's bytes to say whose they are. Trusts nobody and waits for nothing:
//! whoever uses it decides which peers may send one, and for how long they may take.
//!
//! Versions 1 (a line of text) and 2 (binary), by section 2 of HAProxy's
//! [specification](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt). [`parse`] looks at the bytes that have
//! come so far; a header that comes in pieces gives the same in the end as one that comes at once, and what cannot
//! become one is refused at its first wrong byte where that can be told, so that a client which speaks something else
//! need not be waited for.
//!
//! | limit | bytes | why |
//! |---|---|---|
//! | a line of version 1 with CRLF | 107 | section 2.1 |
//! | a header of version 2 | 16,384 | certificates travel in it; HAProxy takes as much |
//!
//! ```
//! use shardwise::proxy_protocol::{Addresses, Header, Version, parse};
//!
//! let bytes = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\nGET / HTTP/1.1\r\n";
//! assert!(parse(&bytes[..20])?.is_none(), "more is needed");
//!
//! let header = parse(bytes)?.expect("it is whole");
//! assert_eq!(header.addresses.source(), Some("192.0.2.7:40000".parse().unwrap()));
//! assert_eq!(&bytes[header.used..], b"GET / HTTP/1.1\r\n");
//!
//! let mut sent = Vec::new();
//! header.addresses.encode_v2(&[], &mut sent)?;
//! assert_eq!(parse(&sent)?.map(|header| header.addresses), Some(header.addresses));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checksum;
mod error;
mod received;
mod v1;
mod v2;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

pub use self::error::{EncodeError, ParseError};
pub use self::received::ProxyHeader;
pub use self::v2::{Tlv, Tlvs, tlv_kind};

/// A whole header. It borrows what it shows from the bytes it was found in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header<'a> {
    /// Which of the two formats it had.
    pub version: Version,
    /// Whose connection it is.
    pub addresses: Addresses<'a>,
    /// What else the proxy says; nothing in version 1.
    pub tlvs: Tlvs<'a>,
    /// How many bytes, from the first on, are the header. The client's own bytes follow.
    pub used: usize,
}

/// A format of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Between whom the connection is that the proxy stands in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses<'a> {
    /// The proxy speaks for itself, to check our health for one: the real addresses of the connection count.
    Local,
    /// The proxy does not say: the real addresses of the connection count.
    Unknown,
    /// TCP over IPv4.
    Tcp4 {
        /// The client.
        source: SocketAddrV4,
        /// Whom the client connected to.
        destination: SocketAddrV4,
    },
    /// TCP over IPv6.
    Tcp6 {
        /// The client.
        source: SocketAddrV6,
        /// Whom the client connected to.
        destination: SocketAddrV6,
    },
    /// UDP over IPv4.
    Udp4 {
        /// The client.
        source: SocketAddrV4,
        /// Whom the client sent to.
        destination: SocketAddrV4,
    },
    /// UDP over IPv6.
    Udp6 {
        /// The client.
        source: SocketAddrV6,
        /// Whom the client sent to.
        destination: SocketAddrV6,
    },
    /// A UNIX stream socket. Paths are as `unix(7)` has them, without the zeros that fill them up; a name in the abstract
    /// namespace begins with a zero, an unnamed socket has none.
    UnixStream {
        /// The client.
        source: &'a [u8],
        /// Whom the client connected to.
        destination: &'a [u8],
    },
    /// A UNIX datagram socket; see [`Addresses::UnixStream`].
    UnixDatagram {
        /// The client.
        source: &'a [u8],
        /// Whom the client sent to.
        destination: &'a [u8],
    },
}

impl Addresses<'_> {
    /// TCP from `source` to `destination`. If only one of them is IPv6, the other is written as IPv6 too
    /// (`::ffff:192.0.2.1`), since a header has one family.
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Addresses<'static> {
        match (source, destination) {
            (SocketAddr::V4(source), SocketAddr::V4(destination)) => Addresses::Tcp4 { source, destination },
            _ => Addresses::Tcp6 { source: to_v6(source), destination: to_v6(destination) },
        }
    }

    /// UDP from `source` to `destination`; see [`Addresses::tcp`].
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Addresses<'static> {
        match (source, destination) {
            (SocketAddr::V4(source), SocketAddr::V4(destination)) => Addresses::Udp4 { source, destination },
            _ => Addresses::Udp6 { source: to_v6(source), destination: to_v6(destination) },
        }
    }

    /// The client's address, if it has an IP address.
    pub fn source(&self) -> Option<SocketAddr> {
        self.ip_addresses().map(|(source, _)| source)
    }

    /// The address that the client meant, if it is an IP address.
    pub fn destination(&self) -> Option<SocketAddr> {
        self.ip_addresses().map(|(_, destination)| destination)
    }

    fn ip_addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        match *self {
            Addresses::Tcp4 { source, destination } | Addresses::Udp4 { source, destination } => {
                Some((source.into(), destination.into()))
            }
            Addresses::Tcp6 { source, destination } | Addresses::Udp6 { source, destination } => {
                Some((source.into(), destination.into()))
            }
            Addresses::Local
            | Addresses::Unknown
            | Addresses::UnixStream { .. }
            | Addresses::UnixDatagram { .. } => None,
        }
    }

    /// Appends a header of version 1. It can say TCP and nothing else: all other addresses become `UNKNOWN`.
    pub fn encode_v1(&self, output: &mut Vec<u8>) {
        v1::encode(self, output);
    }

    /// Appends a header of version 2 with `tlvs`. One of the kind [`tlv_kind::CRC32C`], whatever its value, asks for the
    /// checksum, which goes last. What goes with [`Addresses::Local`] and [`Addresses::Unknown`] is read by few.
    ///
    /// # Errors
    /// A UNIX path has more than 108 bytes, or all together are more than 65,535. `output` is as it was.
    pub fn encode_v2(&self, tlvs: &[Tlv<'_>], output: &mut Vec<u8>) -> Result<(), EncodeError> {
        v2::encode(self, tlvs, output)
    }
}

/// Looks for a header at the beginning of `bytes`: all that has come on the connection. `None` needs more of them.
///
/// # Errors
/// [`ParseError`]: no header can come of these bytes, whatever follows; drop the connection (section 2).
pub fn parse(bytes: &[u8]) -> Result<Option<Header<'_>>, ParseError> {
    match bytes.first() {
        None => Ok(None),
        Some(b'P') => v1::parse(bytes),
        Some(_) => v2::parse(bytes),
    }
}

/// The most bytes of a line of version 1, CRLF included.
pub const V1_BYTES_MAX: usize = 107;

/// The most bytes of a header of version 2.
pub const V2_BYTES_MAX: usize = 16 * 1024;

/// Checks as much of `expected` as has come. True if all of it is there.
fn begins_with(bytes: &[u8], expected: &[u8]) -> Result<bool, ParseError> {
    match bytes.iter().zip(expected).position(|(byte, expected)| byte != expected) {
        Some(position) => Err(ParseError::NoHeader { position }),
        None => Ok(bytes.len() >= expected.len()),
    }
}

fn to_v6(addr: SocketAddr) -> SocketAddrV6 {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    v6(ip, addr.port())
}

/// Headers know neither flows nor scopes.
fn v6(ip: Ipv6Addr, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(ip, port, 0, 0)
}

#[cfg(test)]
mod tests;
