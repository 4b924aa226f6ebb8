//! Addresses as callers write them. Resolves no names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use super::proxy_protocol::ProxyHeader;
use crate::addr::{Addr, UnixAddr};
use crate::error::{AddressFault, InvalidAddress, Wanted};

/// What [`Shard::listen_tcp`](crate::Shard::listen_tcp) takes as an address: a [`SocketAddr`], an `(IP address, port)`
/// pair, or text such as `127.0.0.1:7000` and `[::1]:7000`. Names are for [`ToTarget`](crate::ToTarget).
pub trait ToAddr {
    /// The address.
    ///
    /// # Errors
    /// [`InvalidAddress`], holding the text, when it is none.
    fn to_addr(&self) -> Result<SocketAddr, InvalidAddress>;
}

impl ToAddr for SocketAddr {
    fn to_addr(&self) -> Result<SocketAddr, InvalidAddress> {
        Ok(*self)
    }
}

impl ToAddr for SocketAddrV4 {
    fn to_addr(&self) -> Result<SocketAddr, InvalidAddress> {
        Ok((*self).into())
    }
}

impl ToAddr for SocketAddrV6 {
    fn to_addr(&self) -> Result<SocketAddr, InvalidAddress> {
        Ok((*self).into())
    }
}

macro_rules! host_and_port {
    ($($host:ty),*) => {$(
        impl ToAddr for ($host, u16) {
            fn to_addr(&self) -> Result<SocketAddr, InvalidAddress> {
                Ok(SocketAddr::new(self.0.into(), self.1))
            }
        }
    )*};
}

host_and_port!(IpAddr, Ipv4Addr, Ipv6Addr, [u8; 4]);

impl ToAddr for (&str, u16) {
    fn to_addr(&self) -> Result<SocketAddr, InvalidAddress> {
        let (host, port) = *self;
        match host.parse::<IpAddr>() {
            Ok(ip) => Ok(SocketAddr::new(ip, port)),
            Err(_) => Err(no_address(format!("{host}:{port}"), AddressFault::NotIp)),
        }
    }
}

impl ToAddr for str {
    fn to_addr(&self) -> Result<SocketAddr, InvalidAddress> {
        self.parse().map_err(|_| {
            let fault = split(self).err().unwrap_or(AddressFault::NotIp);
            no_address(self.to_string(), fault)
        })
    }
}

impl ToAddr for String {
    fn to_addr(&self) -> Result<SocketAddr, InvalidAddress> {
        self.as_str().to_addr()
    }
}

impl<T: ToAddr + ?Sized> ToAddr for &T {
    fn to_addr(&self) -> Result<SocketAddr, InvalidAddress> {
        (**self).to_addr()
    }
}

fn no_address(text: String, fault: AddressFault) -> InvalidAddress {
    InvalidAddress { text, wanted: Wanted::Address, fault }
}

/// The host and the port of `text`, or what keeps it from having both.
pub(super) fn split(text: &str) -> Result<(&str, u16), AddressFault> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(AddressFault::Bare);
    }
    let whole = text.rsplit_once(':').filter(|_| !text.ends_with(']'));
    let (host, port) = whole.ok_or(AddressFault::NoPort)?;
    // A port is digits alone: `parse` would take a sign as well.
    let digits = port.bytes().all(|digit| digit.is_ascii_digit());
    let port = port.parse().ok().filter(|_| digits).ok_or(AddressFault::Port)?;
    if host.is_empty() {
        return Err(AddressFault::NoHost);
    }
    if host.parse::<Ipv6Addr>().is_ok() {
        return Err(AddressFault::Bare);
    }
    Ok((host, port))
}

/// A peer's address as ten thousand connections keep it: half of an [`Addr`], which has room for IPv6.
///
/// Whatever else only UNIX connections have is kept beside their names, so that the others are not larger for it.
pub(crate) enum SmallAddr<T> {
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
    /// As nearly all clients of UNIX sockets are.
    Unnamed,
    Unix(Box<(UnixAddr, Option<T>)>),
    /// Behind a proxy, which says who it is.
    Proxied(Arc<ProxyHeader>),
}

impl<T> SmallAddr<T> {
    /// What is kept beside the name of a UNIX socket.
    #[inline]
    pub(crate) fn beside(&self) -> Option<&T> {
        match self {
            SmallAddr::Unix(unix) => unix.1.as_ref(),
            _ => None,
        }
    }

    pub(crate) fn beside_mut(&mut self) -> Option<&mut T> {
        self.place().and_then(Option::as_mut)
    }

    /// Where it is kept, if this is the name of a UNIX socket.
    pub(crate) fn place(&mut self) -> Option<&mut Option<T>> {
        if matches!(self, SmallAddr::Unnamed) {
            *self = SmallAddr::Unix(Box::new((UnixAddr::UNNAMED, None)));
        }
        match self {
            SmallAddr::Unix(unix) => Some(&mut unix.1),
            _ => None,
        }
    }

    pub(crate) fn ip(&self) -> Option<SocketAddr> {
        match self {
            SmallAddr::V4(addr) => Some(SocketAddr::V4(*addr)),
            SmallAddr::V6(addr) => Some(SocketAddr::V6(**addr)),
            SmallAddr::Unnamed | SmallAddr::Unix(_) => None,
            SmallAddr::Proxied(header) => header.peer().as_ip(),
        }
    }

    /// The other end of the socket, whoever stands behind it.
    pub(crate) fn of_socket(&self) -> Addr {
        match self {
            SmallAddr::Proxied(header) => header.proxy.clone(),
            direct => direct.into(),
        }
    }
}

impl<T> From<Addr> for SmallAddr<T> {
    fn from(addr: Addr) -> Self {
        match addr {
            Addr::Ip(SocketAddr::V4(addr)) => SmallAddr::V4(addr),
            Addr::Ip(SocketAddr::V6(addr)) => SmallAddr::V6(Box::new(addr)),
            Addr::Unix(name) if name.is_unnamed() => SmallAddr::Unnamed,
            Addr::Unix(name) => SmallAddr::Unix(Box::new((name, None))),
        }
    }
}

impl<T> From<&SmallAddr<T>> for Addr {
    fn from(addr: &SmallAddr<T>) -> Self {
        match addr {
            SmallAddr::V4(addr) => Addr::Ip(SocketAddr::V4(*addr)),
            SmallAddr::V6(addr) => Addr::Ip(SocketAddr::V6(**addr)),
            SmallAddr::Unnamed => Addr::Unix(UnixAddr::UNNAMED),
            SmallAddr::Unix(unix) => Addr::Unix(unix.0.clone()),
            SmallAddr::Proxied(header) => header.peer(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_in_several_spellings() {
        let expected: SocketAddr = "127.0.0.1:80".parse().unwrap();
        assert_eq!("127.0.0.1:80".to_addr(), Ok(expected));
        assert_eq!((Ipv4Addr::LOCALHOST, 80).to_addr(), Ok(expected));
        assert_eq!(expected.to_addr(), Ok(expected));
        assert_eq!(("127.0.0.1", 80).to_addr(), Ok(expected));
    }

    #[test]
    fn text_that_is_no_address_is_told_which_part_is_wrong() {
        for (text, expected) in [
            ("127.0.0.1", "there is no port, as in 127.0.0.1:7000 or [::1]:7000"),
            ("", "there is no port, as in 127.0.0.1:7000 or [::1]:7000"),
            ("[::1]", "there is no port, as in 127.0.0.1:7000 or [::1]:7000"),
            ("127.0.0.1:65536", "the port `65536` is not a number from 0 to 65535"),
            ("127.0.0.1:http", "the port `http` is not a number from 0 to 65535"),
            ("127.0.0.1:+80", "the port `+80` is not a number from 0 to 65535"),
            ("127.0.0.1:", "the port `` is not a number from 0 to 65535"),
            (":80", "there is no address before the port; 0.0.0.0 and [::] are all of this host"),
            ("localhost:80", "`localhost` is not an IP address, and names are not resolved here"),
            ("127.0.0.256:80", "`127.0.0.256` is not an IP address, and names are not resolved here"),
            ("[::g]:80", "`[::g]` is not an IP address, and names are not resolved here"),
            ("::1", "an IPv6 address stands in brackets before its port, as in [::1]:7000"),
            (
                "::ffff:1.2.3.4:80",
                "an IPv6 address stands in brackets before its port, as in [::ffff:1.2.3.4]:80",
            ),
        ] {
            let message = text.to_addr().unwrap_err().to_string();
            assert_eq!(message, format!("`{text}` is not an address: {expected}"));
        }
        let message = ("localhost", 80).to_addr().unwrap_err().to_string();
        let expected = "`localhost` is not an IP address, and names are not resolved here";
        assert_eq!(message, format!("`localhost:80` is not an address: {expected}"));
        let message = "two\nlines:80".to_addr().unwrap_err().to_string();
        assert!(message.starts_with("`two\\nlines:80` is not an address: `two\\nlines` is"), "{message}");
    }
}
