//! What callers connect to, as they write it: an address, or a name and a port. Resolves no names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::addr::split;
use super::host_name::{Host, HostName};
use crate::error::{AddressFault, InvalidAddress, Wanted};

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConnectTarget {
    /// This address.
    Addr(SocketAddr),
    /// One of the addresses of a host.
    Name {
        /// The host.
        host: HostName,
        /// The port.
        port: u16,
    },
}

impl ConnectTarget {
    fn new(host: &str, port: u16) -> Result<ConnectTarget, InvalidAddress> {
        match Host::new(host) {
            Ok(Host::Ip(ip)) => Ok(ConnectTarget::Addr(SocketAddr::new(ip, port))),
            Ok(Host::Name(host)) => Ok(ConnectTarget::Name { host, port }),
            Err(_) if host.is_empty() => Err(no_target(format!("{host}:{port}"), AddressFault::NoHost)),
            Err(error) => Err(no_target(format!("{host}:{port}"), AddressFault::Name(error.fault))),
        }
    }
}

impl fmt::Display for ConnectTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectTarget::Addr(addr) => write!(formatter, "{addr}"),
            ConnectTarget::Name { host, port } => write!(formatter, "{host}:{port}"),
        }
    }
}

impl From<SocketAddr> for ConnectTarget {
    fn from(addr: SocketAddr) -> Self {
        ConnectTarget::Addr(addr)
    }
}

/// What [`Shard::connect_tcp`](crate::Shard::connect_tcp) and [`TcpStream::connect`](crate::TcpStream::connect) take: a
/// [`SocketAddr`], an `(IP address, port)` or `(host, port)` pair, or text such as `example.org:443`, `127.0.0.1:7000` and
/// `[::1]:7000`.
pub trait ToTarget {
    /// The target.
    ///
    /// # Errors
    /// [`InvalidAddress`], holding the text and saying what is wrong with it.
    fn to_target(&self) -> Result<ConnectTarget, InvalidAddress>;
}

macro_rules! addresses {
    ($($addr:ty),*) => {$(
        impl ToTarget for $addr {
            fn to_target(&self) -> Result<ConnectTarget, InvalidAddress> {
                Ok(ConnectTarget::Addr((*self).into()))
            }
        }
    )*};
}

addresses!(
    SocketAddr,
    SocketAddrV4,
    SocketAddrV6,
    (IpAddr, u16),
    (Ipv4Addr, u16),
    (Ipv6Addr, u16),
    ([u8; 4], u16)
);

impl ToTarget for ConnectTarget {
    fn to_target(&self) -> Result<ConnectTarget, InvalidAddress> {
        Ok(self.clone())
    }
}

impl ToTarget for (&str, u16) {
    fn to_target(&self) -> Result<ConnectTarget, InvalidAddress> {
        ConnectTarget::new(self.0, self.1)
    }
}

impl ToTarget for (String, u16) {
    fn to_target(&self) -> Result<ConnectTarget, InvalidAddress> {
        ConnectTarget::new(&self.0, self.1)
    }
}

impl ToTarget for str {
    fn to_target(&self) -> Result<ConnectTarget, InvalidAddress> {
        if let Ok(addr) = self.parse() {
            return Ok(ConnectTarget::Addr(addr));
        }
        let (host, port) = split(self).map_err(|fault| no_target(self.to_string(), fault))?;
        if host.starts_with('[') {
            return Err(no_target(self.to_string(), AddressFault::NotIp));
        }
        ConnectTarget::new(host, port)
    }
}

impl ToTarget for String {
    fn to_target(&self) -> Result<ConnectTarget, InvalidAddress> {
        self.as_str().to_target()
    }
}

impl<T: ToTarget + ?Sized> ToTarget for &T {
    fn to_target(&self) -> Result<ConnectTarget, InvalidAddress> {
        (**self).to_target()
    }
}

fn no_target(text: String, fault: AddressFault) -> InvalidAddress {
    InvalidAddress { text, wanted: Wanted::Target, fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_address_or_a_name_with_a_port() {
        let addr: SocketAddr = "127.0.0.1:80".parse().unwrap();
        for target in [&"127.0.0.1:80" as &dyn ToTarget, &("127.0.0.1", 80), &addr, &([127, 0, 0, 1], 80)] {
            assert_eq!(target.to_target(), Ok(ConnectTarget::Addr(addr)));
        }
        let named = ConnectTarget::Name { host: HostName::new("example.org").unwrap(), port: 80 };
        for target in
            [&"example.org:80" as &dyn ToTarget, &("example.org", 80), &"Example.Org:80".to_string(), &named]
        {
            assert_eq!(target.to_target(), Ok(named.clone()));
        }
        assert_eq!(named.to_string(), "example.org:80");
        assert_eq!("[::1]:80".to_target().unwrap().to_string(), "[::1]:80");
        assert_eq!(("::1", 80).to_target().unwrap().to_string(), "[::1]:80");
    }

    #[test]
    fn text_that_is_no_target_says_why() {
        let no_port = "there is no port, as in example.org:443, 127.0.0.1:7000 or [::1]:7000";
        for (text, expected) in [
            ("nowhere", no_port),
            ("", no_port),
            ("[::1]", no_port),
            ("::1", "an IPv6 address stands in brackets before its port, as in [::1]:7000"),
            (
                "::ffff:1.2.3.4:80",
                "an IPv6 address stands in brackets before its port, as in [::ffff:1.2.3.4]:80",
            ),
            ("[::g]:80", "`[::g]` is not an IP address"),
            ("host:http", "the port `http` is not a number from 0 to 65535"),
            ("host:+80", "the port `+80` is not a number from 0 to 65535"),
            ("host:65536", "the port `65536` is not a number from 0 to 65535"),
            ("host:", "the port `` is not a number from 0 to 65535"),
            (":80", "there is no host before the port"),
            ("a..b:80", "`a..b` is not a host name: it has an empty label"),
            ("a:b:80", "`a:b` is not a host name: it may not contain ':'"),
            (
                "127.0.0.256:80",
                "`127.0.0.256` is not a host name: its last label is a number, and it is no address",
            ),
        ] {
            let message = text.to_target().unwrap_err().to_string();
            assert_eq!(message, format!("`{text}` is not a target: {expected}"));
        }
        let message = ("", 80).to_target().unwrap_err().to_string();
        assert_eq!(message, "`:80` is not a target: there is no host before the port");
        let message = ("[::1]", 80).to_target().unwrap_err().to_string();
        assert_eq!(message, "`[::1]:80` is not a target: `[::1]` is not a host name: it may not contain '['");
    }
}
