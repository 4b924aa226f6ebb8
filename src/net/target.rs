//! What callers connect to, as they write it: an address, or a name and a port. Resolves no names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::host_name::{Host, HostName};
use crate::error::{AddressFault, InvalidAddress};

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
            Err(error) => {
                let text = format!("{host}:{port}");
                Err(InvalidAddress { text, fault: AddressFault::Name(error.fault) })
            }
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
        let invalid = |fault| InvalidAddress { text: self.to_string(), fault };
        let Some((host, port)) = self.rsplit_once(':') else { return Err(invalid(AddressFault::NoTarget)) };
        // A port is digits alone: `parse` would take a sign as well.
        let digits = port.bytes().all(|digit| digit.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits).ok_or_else(|| invalid(AddressFault::Port))?;
        if host.contains([':', '[', ']']) {
            return Err(invalid(AddressFault::NoTarget));
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
        let message = |text: &str| text.to_target().unwrap_err().to_string();
        let like = "is not a target such as example.org:443, 127.0.0.1:7000 or [::1]:7000";
        assert_eq!(message("nowhere"), format!("`nowhere` {like}"));
        assert_eq!(message("::1:80"), format!("`::1:80` {like}"));
        assert_eq!(message("[::1]"), "`[::1]` has no port from 0 to 65535 at its end");
        assert_eq!(message("host:http"), "`host:http` has no port from 0 to 65535 at its end");
        assert_eq!(message("host:+80"), "`host:+80` has no port from 0 to 65535 at its end");
        assert_eq!(message("host:65536"), "`host:65536` has no port from 0 to 65535 at its end");
        assert_eq!(message("host:"), "`host:` has no port from 0 to 65535 at its end");
        assert_eq!(message(":80"), "`:80` names no host: it is empty");
        assert_eq!(message("a..b:80"), "`a..b:80` names no host: it has an empty label");
    }
}
