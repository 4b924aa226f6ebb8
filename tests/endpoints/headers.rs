//! Headers of the PROXY protocol, good ones and bad ones.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use shardwise::proxy_protocol::{Addresses, Tlv, tlv_kind};

pub(crate) const SOURCE: &str = "192.0.2.7:40000";
pub(crate) const DESTINATION: &str = "198.51.100.1:443";

/// One in each version.
pub(crate) fn headers() -> Vec<Vec<u8>> {
    let addresses = Addresses::tcp(SOURCE.parse().unwrap(), DESTINATION.parse().unwrap());
    let (mut v1, mut v2) = (Vec::new(), Vec::new());
    addresses.encode_v1(&mut v1);
    let tlvs = [
        Tlv { kind: tlv_kind::AUTHORITY, value: b"example.org" },
        Tlv { kind: tlv_kind::CRC32C, value: &[] },
    ];
    addresses.encode_v2(&tlvs, &mut v2).unwrap();
    vec![v1, v2]
}

/// What nobody may send, and what is said of it.
pub(crate) fn malformed() -> Vec<(Vec<u8>, &'static str)> {
    let mut too_long = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    too_long.extend_from_slice(&[0xff, 0xff]);
    let mut checksum = headers()[1].clone();
    *checksum.last_mut().unwrap() ^= 1;
    vec![
        (b"GET / HTTP/1.1\r\n".to_vec(), "the connection does not begin with a header (byte 0)"),
        (b"PROXY TCP4 192.0.2.300 198.51.100.1 1 2\r\n".to_vec(), "expected an IPv4 address at position 11"),
        (b"PROXY TCP5 a b 1 2\r\n".to_vec(), "none of TCP4, TCP6 and UNKNOWN"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n".to_vec(), "something follows the last port"),
        ([b"PROXY ".to_vec(), vec![b'x'; 200]].concat(), "no end of line within 107 bytes"),
        (b"PROXY TCP4\n".to_vec(), "CR or LF alone at position 10"),
        (too_long, "a header of 65551 bytes was announced, and 16384 are allowed"),
        (b"\r\n\r\n\0\r\nQUIT\n\x31".to_vec(), "unknown version 3"),
        (checksum, "the checksum is"),
    ]
}
