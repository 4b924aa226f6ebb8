//! A header that has come, kept for as long as its connection.

use std::net::SocketAddr;

use super::{Addresses, Header, Version};
use crate::addr::Addr;

/// What a proxy has said about a connection, and which proxy it was.
///
/// Kept with the connection: [`Transport::proxy_header`](crate::Transport::proxy_header).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyHeader {
    /// The format it had.
    pub version: Version,
    /// The client, and whom the client connected to. `None` where the proxy speaks for itself, does not say, or stands
    /// before a UNIX socket: then the real addresses of the connection count.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// The other end of the socket: the proxy.
    pub proxy: Addr,
    /// What else the proxy says: kinds ([`tlv_kind`](super::tlv_kind)) and values, in their order.
    pub tlvs: Vec<(u8, Vec<u8>)>,
}

impl ProxyHeader {
    pub(crate) fn new(header: &Header<'_>, proxy: Addr) -> Self {
        let addresses: &Addresses<'_> = &header.addresses;
        ProxyHeader {
            version: header.version,
            addresses: addresses.source().zip(addresses.destination()),
            proxy,
            tlvs: header.tlvs.clone().map(|tlv| (tlv.kind, tlv.value.to_vec())).collect(),
        }
    }

    /// The value of the first TLV of this kind.
    pub fn tlv(&self, kind: u8) -> Option<&[u8]> {
        self.tlvs.iter().find(|(other, _)| *other == kind).map(|(_, value)| value.as_slice())
    }

    /// Whose connection it is: the client as reported, or else the proxy.
    pub(crate) fn peer(&self) -> Addr {
        self.addresses.map_or_else(|| self.proxy.clone(), |(source, _)| source.into())
    }

    /// Whom the client connected to, as reported.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.addresses.map(|(_, destination)| destination)
    }
}
