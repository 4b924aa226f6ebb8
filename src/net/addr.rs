//! Addresses as callers write them. Resolves no names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::addr::{Addr, UnixAddr};
use crate::error::InvalidAddress;

/// What [`Shard::listen_tcp`](crate::Shard::listen_tcp) and
/// [`Shard::connect_tcp`](crate::Shard::connect_tcp) take as an address: a [`SocketAddr`], an `(IP address, port)`
/// pair, or text such as `127.0.0.1:7000` and `[::1]:7000`.
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
        let ip: IpAddr = host.parse().map_err(|_| InvalidAddress { text: format!("{host}:{port}") })?;
        Ok(SocketAddr::new(ip, port))
    }
}

impl ToAddr for str {
    fn to_addr(&self) -> Result<SocketAddr, InvalidAddress> {
        self.parse().map_err(|_| InvalidAddress { text: self.to_string() })
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

/// A peer's address as ten thousand connections keep it: half of an [`Addr`], which has room for IPv6.
///
/// Whatever else only UNIX connections have is kept beside their names, so that the others are not larger for it.
pub(crate) enum SmallAddr<T> {
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
    /// As nearly all clients of UNIX sockets are.
    Unnamed,
    Unix(Box<(UnixAddr, Option<T>)>),
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
    fn text_that_is_no_address_comes_back_in_the_error() {
        let message = ("localhost", 80).to_addr().unwrap_err().to_string();
        assert_eq!(
            message,
            "`localhost:80` is not an address: `localhost` is not an IP address, and names are not resolved"
        );
    }
}
