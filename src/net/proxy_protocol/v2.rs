//! Version 2: binary, with TLVs and perhaps a checksum (section 2.2).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use super::checksum::crc32c;
use super::{Addresses, EncodeError, Header, ParseError, V2_BYTES_MAX, Version, begins_with, v6};

/// One piece of what a proxy says about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tlv<'a> {
    /// What it is about: see [`tlv_kind`].
    pub kind: u8,
    /// What it says.
    pub value: &'a [u8],
}

/// The kinds of [`Tlv`] that the specification names (section 2.2).
pub mod tlv_kind {
    /// The application's protocol, as TLS negotiated it (RFC 7301).
    pub const ALPN: u8 = 0x01;
    /// The host name that the client asked for: SNI in TLS. UTF-8.
    pub const AUTHORITY: u8 = 0x02;
    /// The checksum of the header: checked where it is there.
    pub const CRC32C: u8 = 0x03;
    /// Nothing, to fill up.
    pub const NOOP: u8 = 0x04;
    /// A name for the connection, of up to 128 bytes.
    pub const UNIQUE_ID: u8 = 0x05;
    /// The client's TLS session: flags, the result of its verification, and TLVs.
    pub const SSL: u8 = 0x20;
    /// The name of the network namespace.
    pub const NETNS: u8 = 0x30;
}

/// The TLVs of a header, in their order. All of them are within its bounds.
#[derive(Clone, PartialEq, Eq)]
pub struct Tlvs<'a> {
    bytes: &'a [u8],
}

impl<'a> Tlvs<'a> {
    pub(super) fn none() -> Self {
        Tlvs { bytes: &[] }
    }

    /// The value of the first one of this kind.
    pub fn first_of(&self, kind: u8) -> Option<&'a [u8]> {
        self.clone().find(|tlv| tlv.kind == kind).map(|tlv| tlv.value)
    }
}

impl<'a> Iterator for Tlvs<'a> {
    type Item = Tlv<'a>;

    fn next(&mut self) -> Option<Tlv<'a>> {
        let (head, rest) = self.bytes.split_first_chunk::<TLV_HEAD_BYTES>()?;
        let value = rest.get(..u16::from_be_bytes([head[1], head[2]]).into())?;
        self.bytes = &rest[value.len()..];
        Some(Tlv { kind: head[0], value })
    }
}

impl fmt::Debug for Tlvs<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.clone()).finish()
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header<'_>>, ParseError> {
    if !begins_with(bytes, SIGNATURE)? {
        return Ok(None);
    }
    let head = &bytes[SIGNATURE.len()..];
    let Some(version_and_command) = head.first() else { return Ok(None) };
    let local = match (version_and_command >> 4, version_and_command & 0x0f) {
        (2, LOCAL) => true,
        (2, PROXY) => false,
        (2, command) => return Err(ParseError::UnknownCommand(command)),
        (version, _) => return Err(ParseError::UnknownVersion(version)),
    };
    let Some(family) = head.get(1) else { return Ok(None) };
    let needed_bytes = match family {
        // The family of a connection of the proxy's own is to be ignored.
        _ if local => 0,
        0x11 | 0x12 => 2 * 4 + 2 * 2,
        0x21 | 0x22 => 2 * 16 + 2 * 2,
        0x31 | 0x32 => 2 * PATH_BYTES,
        // One of the two is unspecified: the addresses are to be ignored.
        0x00..=0x02 | 0x10 | 0x20 | 0x30 => 0,
        family => return Err(ParseError::UnknownFamily(*family)),
    };
    let Some(length) = head.get(2..4) else { return Ok(None) };
    let declared_bytes = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let used = HEAD_BYTES + declared_bytes;
    if used > V2_BYTES_MAX {
        return Err(ParseError::TooLong { declared_bytes: used, limit_bytes: V2_BYTES_MAX });
    }
    if declared_bytes < needed_bytes {
        return Err(ParseError::NoRoomForAddresses { declared_bytes, needed_bytes });
    }
    let Some(header) = bytes.get(..used) else { return Ok(None) };
    let (addresses, tlvs) = header[HEAD_BYTES..].split_at(needed_bytes);
    // How long unspecified addresses are is not known, so what follows them cannot be found.
    let (addresses, tlvs) = if local {
        (Addresses::Local, Tlvs::none())
    } else if let Some(addresses) = addresses_of(*family, addresses) {
        check_tlvs(header, HEAD_BYTES + needed_bytes)?;
        (addresses, Tlvs { bytes: tlvs })
    } else {
        (Addresses::Unknown, Tlvs::none())
    };
    Ok(Some(Header { version: Version::V2, addresses, tlvs, used }))
}

/// Reads `bytes`, which are as many as the family needs.
fn addresses_of(family: u8, bytes: &[u8]) -> Option<Addresses<'_>> {
    Some(match family {
        0x11 | 0x12 => {
            let (ips, ports) = bytes.split_at(8);
            let [source_port, destination_port] = ports_of(ports);
            let ip = |at: usize| Ipv4Addr::new(ips[at], ips[at + 1], ips[at + 2], ips[at + 3]);
            let source = SocketAddrV4::new(ip(0), source_port);
            let destination = SocketAddrV4::new(ip(4), destination_port);
            match family {
                0x11 => Addresses::Tcp4 { source, destination },
                _ => Addresses::Udp4 { source, destination },
            }
        }
        0x21 | 0x22 => {
            let (ips, ports) = bytes.split_at(32);
            let [source_port, destination_port] = ports_of(ports);
            let ip = |at: usize| {
                let octets: [u8; 16] = ips[at..at + 16].try_into().expect("as long as the slice");
                Ipv6Addr::from(octets)
            };
            let source = v6(ip(0), source_port);
            let destination = v6(ip(16), destination_port);
            match family {
                0x21 => Addresses::Tcp6 { source, destination },
                _ => Addresses::Udp6 { source, destination },
            }
        }
        0x31 | 0x32 => {
            let (source, destination) = bytes.split_at(PATH_BYTES);
            let (source, destination) = (path_of(source), path_of(destination));
            match family {
                0x31 => Addresses::UnixStream { source, destination },
                _ => Addresses::UnixDatagram { source, destination },
            }
        }
        _ => return None,
    })
}

fn ports_of(bytes: &[u8]) -> [u16; 2] {
    [u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])]
}

/// A path ends at its first zero; an abstract name, which begins with one, at the zeros that fill it up.
fn path_of(bytes: &[u8]) -> &[u8] {
    let end = match bytes.first() {
        Some(0) => bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1),
        _ => bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()),
    };
    &bytes[..end]
}

/// Checks that the TLVs from `begin` on fill the header, and its checksum if there is one.
fn check_tlvs(header: &[u8], begin: usize) -> Result<(), ParseError> {
    let mut rest = Tlvs { bytes: &header[begin..] };
    let mut checksum_at = None;
    while !rest.bytes.is_empty() {
        let position = header.len() - rest.bytes.len();
        let tlv = rest.next().ok_or(ParseError::TruncatedTlv { position })?;
        if tlv.kind == tlv_kind::CRC32C {
            if tlv.value.len() != 4 || checksum_at.is_some() {
                return Err(ParseError::MalformedChecksum);
            }
            checksum_at = Some(position + TLV_HEAD_BYTES);
        }
    }
    let Some(at) = checksum_at else { return Ok(()) };
    let declared = u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let computed = crc32c(&[&header[..at], &[0; 4], &header[at + 4..]]);
    if declared == computed { Ok(()) } else { Err(ParseError::WrongChecksum { declared, computed }) }
}

pub(super) fn encode(
    addresses: &Addresses<'_>,
    tlvs: &[Tlv<'_>],
    output: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let begin = output.len();
    let written = write(addresses, tlvs, output);
    if written.is_err() {
        output.truncate(begin);
    }
    written
}

fn write(addresses: &Addresses<'_>, tlvs: &[Tlv<'_>], output: &mut Vec<u8>) -> Result<(), EncodeError> {
    let begin = output.len();
    output.extend_from_slice(SIGNATURE);
    let (command, family) = match addresses {
        Addresses::Local => (LOCAL, 0x00),
        Addresses::Unknown => (PROXY, 0x00),
        Addresses::Tcp4 { .. } => (PROXY, 0x11),
        Addresses::Udp4 { .. } => (PROXY, 0x12),
        Addresses::Tcp6 { .. } => (PROXY, 0x21),
        Addresses::Udp6 { .. } => (PROXY, 0x22),
        Addresses::UnixStream { .. } => (PROXY, 0x31),
        Addresses::UnixDatagram { .. } => (PROXY, 0x32),
    };
    output.extend_from_slice(&[2 << 4 | command, family, 0, 0]);
    write_addresses(addresses, output)?;
    let mut checksum = false;
    for tlv in tlvs {
        if tlv.kind == tlv_kind::CRC32C {
            checksum = true;
            continue;
        }
        write_tlv(*tlv, output)?;
    }
    if checksum {
        write_tlv(Tlv { kind: tlv_kind::CRC32C, value: &[0; 4] }, output)?;
    }
    let header_bytes = output.len() - begin;
    let length =
        u16::try_from(header_bytes - HEAD_BYTES).map_err(|_| EncodeError::TooLong { header_bytes })?;
    output[begin + HEAD_BYTES - 2..begin + HEAD_BYTES].copy_from_slice(&length.to_be_bytes());
    if checksum {
        let crc = crc32c(&[&output[begin..]]);
        let at = output.len() - 4;
        output[at..].copy_from_slice(&crc.to_be_bytes());
    }
    Ok(())
}

fn write_addresses(addresses: &Addresses<'_>, output: &mut Vec<u8>) -> Result<(), EncodeError> {
    match addresses {
        Addresses::Local | Addresses::Unknown => {}
        Addresses::Tcp4 { source, destination } | Addresses::Udp4 { source, destination } => {
            let octets = |addr: &SocketAddrV4| addr.ip().octets();
            output.extend_from_slice(&[octets(source), octets(destination)].concat());
            output
                .extend_from_slice(&[source.port().to_be_bytes(), destination.port().to_be_bytes()].concat());
        }
        Addresses::Tcp6 { source, destination } | Addresses::Udp6 { source, destination } => {
            let octets = |addr: &SocketAddrV6| addr.ip().octets();
            output.extend_from_slice(&[octets(source), octets(destination)].concat());
            output
                .extend_from_slice(&[source.port().to_be_bytes(), destination.port().to_be_bytes()].concat());
        }
        Addresses::UnixStream { source, destination } | Addresses::UnixDatagram { source, destination } => {
            for path in [source, destination] {
                if path.len() > PATH_BYTES {
                    return Err(EncodeError::PathTooLong { path_bytes: path.len() });
                }
                output.extend_from_slice(path);
                output.resize(output.len() + PATH_BYTES - path.len(), 0);
            }
        }
    }
    Ok(())
}

fn write_tlv(tlv: Tlv<'_>, output: &mut Vec<u8>) -> Result<(), EncodeError> {
    let header_bytes = tlv.value.len();
    let length = u16::try_from(header_bytes).map_err(|_| EncodeError::TooLong { header_bytes })?;
    output.push(tlv.kind);
    output.extend_from_slice(&length.to_be_bytes());
    output.extend_from_slice(tlv.value);
    Ok(())
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const LOCAL: u8 = 0;
const PROXY: u8 = 1;

/// Before the addresses: signature, version and command, family, length.
const HEAD_BYTES: usize = 16;

/// `sun_path` of `unix(7)`.
const PATH_BYTES: usize = 108;

/// Before the value: kind and length.
const TLV_HEAD_BYTES: usize = 3;
