//! PROXY protocol headers that grow byte by byte: an answer never changes, what was read is written and read as the
//! same, and nothing is read beyond the header.
//!
//! `cargo +nightly fuzz run proxy_protocol`

#![no_main]

use libfuzzer_sys::fuzz_target;
use shardwise::proxy_protocol::{
    Addresses, Header, Tlv, V1_BYTES_MAX, V2_BYTES_MAX, Version, parse, tlv_kind,
};

/// The first byte of a case chooses what its bytes begin with, so that the fuzzer need not guess it.
const BEGINNINGS: [&[u8]; 7] = [
    b"",
    b"PROXY ",
    b"PROXY TCP4 ",
    b"PROXY TCP6 ",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x20",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x40",
];

fn write_and_read(header: &Header<'_>) {
    let tlvs: Vec<Tlv<'_>> = header.tlvs.clone().filter(|tlv| tlv.kind != tlv_kind::CRC32C).collect();
    let mut with_checksum = tlvs.clone();
    with_checksum.push(Tlv { kind: tlv_kind::CRC32C, value: b"" });
    let mut output = Vec::new();
    header.addresses.encode_v2(&with_checksum, &mut output).expect("it came out of a header");
    if output.len() <= V2_BYTES_MAX {
        let again = parse(&output).expect("we wrote it").expect("it is whole");
        assert_eq!(again.addresses, header.addresses);
        if !matches!(header.addresses, Addresses::Local | Addresses::Unknown) {
            let read: Vec<_> = again.tlvs.clone().filter(|tlv| tlv.kind != tlv_kind::CRC32C).collect();
            assert_eq!(read, tlvs);
            assert!(again.tlvs.first_of(tlv_kind::CRC32C).is_some());
        }
    }
    let mut line = Vec::new();
    header.addresses.encode_v1(&mut line);
    assert!(line.len() <= V1_BYTES_MAX);
    let again = parse(&line).expect("we wrote it").expect("it is whole");
    match header.addresses {
        Addresses::Tcp4 { .. } | Addresses::Tcp6 { .. } => assert_eq!(again.addresses, header.addresses),
        _ => assert_eq!(again.addresses, Addresses::Unknown),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let bytes = [BEGINNINGS[usize::from(*first) % BEGINNINGS.len()], rest].concat();
    let last = parse(&bytes);
    let mut decided = false;
    for len in 0..=bytes.len().min(600) {
        let outcome = parse(&bytes[..len]);
        if decided || outcome != Ok(None) {
            assert_eq!(outcome, last, "{len} bytes of {}", bytes.len());
        }
        if let (false, Ok(Some(header))) = (decided, &outcome) {
            assert_eq!(header.used, len, "it was whole before");
        }
        decided |= outcome != Ok(None);
    }
    match last {
        Ok(Some(header)) => {
            let most = if header.version == Version::V1 { V1_BYTES_MAX } else { V2_BYTES_MAX };
            assert!(header.used <= most && header.used <= bytes.len());
            write_and_read(&header);
        }
        Ok(None) => assert!(bytes.len() < V2_BYTES_MAX, "it asks for more than the longest header"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
