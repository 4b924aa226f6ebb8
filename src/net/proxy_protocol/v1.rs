//! Version 1: `PROXY TCP4 192.0.2.7 198.51.100.1 40000 443` and CRLF (section 2.1).

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::str::FromStr;

use super::{Addresses, Header, ParseError, Tlvs, V1_BYTES_MAX, Version, begins_with, v6};

pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header<'_>>, ParseError> {
    if !begins_with(bytes, b"PROXY ")? {
        return Ok(None);
    }
    let window = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = window.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if window.len() < V1_BYTES_MAX { Ok(None) } else { Err(ParseError::LineTooLong) };
    };
    match (window[end], window.get(end + 1)) {
        (b'\r', Some(b'\n')) => {}
        (b'\r', None) if window.len() < V1_BYTES_MAX => return Ok(None),
        (b'\r', None) => return Err(ParseError::LineTooLong),
        _ => return Err(ParseError::BareLineEnd { position: end }),
    }
    let mut fields = Fields { line: &bytes[..end], position: b"PROXY ".len() };
    let (protocol, _) = fields.next();
    let addresses = match protocol {
        // Whatever follows is to be ignored.
        b"UNKNOWN" => Addresses::Unknown,
        b"TCP4" => {
            let [source, destination] = fields.addresses("an IPv4 address", parse_v4)?;
            let [source_port, destination_port] = fields.ports()?;
            Addresses::Tcp4 {
                source: SocketAddrV4::new(source, source_port),
                destination: SocketAddrV4::new(destination, destination_port),
            }
        }
        b"TCP6" => {
            let [source, destination] = fields.addresses("an IPv6 address", parse_v6)?;
            let [source_port, destination_port] = fields.ports()?;
            Addresses::Tcp6 {
                source: v6(source, source_port),
                destination: v6(destination, destination_port),
            }
        }
        _ => return Err(ParseError::UnknownProtocol),
    };
    Ok(Some(Header { version: Version::V1, addresses, tlvs: Tlvs::none(), used: end + 2 }))
}

pub(super) fn encode(addresses: &Addresses<'_>, output: &mut Vec<u8>) {
    let written = match addresses {
        Addresses::Tcp4 { source, destination } => {
            let (from, to) = (source.ip(), destination.ip());
            write!(output, "PROXY TCP4 {from} {to} {} {}\r\n", source.port(), destination.port())
        }
        Addresses::Tcp6 { source, destination } => {
            let (from, to) = (source.ip(), destination.ip());
            write!(output, "PROXY TCP6 {from} {to} {} {}\r\n", source.port(), destination.port())
        }
        _ => write!(output, "PROXY UNKNOWN\r\n"),
    };
    written.expect("a vector takes everything");
}

/// What stands between single spaces.
struct Fields<'a> {
    line: &'a [u8],
    /// Where the next one begins: behind the end of the line once there is none.
    position: usize,
}

impl<'a> Fields<'a> {
    /// The next field, empty if there is none, and where it begins.
    fn next(&mut self) -> (&'a [u8], usize) {
        let begin = self.position.min(self.line.len());
        let rest = &self.line[begin..];
        let field = &rest[..rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len())];
        self.position = begin + field.len() + 1;
        (field, begin)
    }

    fn addresses<A>(
        &mut self,
        expected: &'static str,
        parse: impl Fn(&[u8]) -> Option<A>,
    ) -> Result<[A; 2], ParseError> {
        let mut one = || {
            let (field, position) = self.next();
            parse(field).ok_or(ParseError::Field { expected, position })
        };
        Ok([one()?, one()?])
    }

    /// The two ports, with which the line ends.
    fn ports(&mut self) -> Result<[u16; 2], ParseError> {
        let ports = self.addresses("a port from 0 to 65535", parse_port)?;
        // A space behind the last port begins another field, be it empty.
        if self.position <= self.line.len() {
            return Err(ParseError::TooManyFields { position: self.position - 1 });
        }
        Ok(ports)
    }
}

/// Leading zeros, which might be octal, are refused by the standard library as the specification wants it.
fn parse_v4(field: &[u8]) -> Option<Ipv4Addr> {
    Ipv4Addr::from_str(std::str::from_utf8(field).ok()?).ok()
}

/// Without `::ffff:192.0.2.1` and its like: the specification has colons and hexadecimal digits. Some proxies send them
/// all the same, and there is no harm in them.
fn parse_v6(field: &[u8]) -> Option<Ipv6Addr> {
    Ipv6Addr::from_str(std::str::from_utf8(field).ok()?).ok()
}

fn parse_port(field: &[u8]) -> Option<u16> {
    let digits = field.iter().all(u8::is_ascii_digit) && (field.len() == 1 || field.first() != Some(&b'0'));
    if digits { std::str::from_utf8(field).ok()?.parse().ok() } else { None }
}
