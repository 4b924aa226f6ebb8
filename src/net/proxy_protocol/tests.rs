//! Headers of both versions: what is read, what is written, and what is refused where.

use proptest::prelude::*;

use super::*;

/// Parses in every length from nothing to all, checks that the answer stays once it is there, and gives it.
#[track_caller]
fn parse_growing(bytes: &[u8]) -> Result<Option<Header<'_>>, ParseError> {
    let mut decided: Option<(usize, Result<Option<Header<'_>>, ParseError>)> = None;
    for len in 0..=bytes.len() {
        let outcome = parse(&bytes[..len]);
        match &decided {
            Some((at, first)) => assert_eq!(&outcome, first, "{len} bytes say something else than {at}"),
            None if outcome == Ok(None) => {}
            None => {
                if let Ok(Some(header)) = &outcome {
                    assert_eq!(header.used, len, "it was whole before");
                }
                decided = Some((len, outcome));
            }
        }
    }
    decided.map_or(Ok(None), |(_, outcome)| outcome)
}

fn v4(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn v6(text: &str) -> SocketAddrV6 {
    text.parse().unwrap()
}

#[track_caller]
fn v1(line: &str) -> Addresses<'static> {
    let bytes = format!("{line}\r\nrest");
    let header = parse_growing(bytes.as_bytes()).unwrap().unwrap();
    assert_eq!((header.version, header.used), (Version::V1, line.len() + 2));
    assert_eq!(header.tlvs.clone().count(), 0);
    match header.addresses {
        Addresses::Unknown => Addresses::Unknown,
        addresses => Addresses::tcp(addresses.source().unwrap(), addresses.destination().unwrap()),
    }
}

#[track_caller]
fn v1_error(line: &str) -> ParseError {
    parse_growing(format!("{line}\r\nrest").as_bytes()).unwrap_err()
}

fn v2_bytes(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[version_and_command, family][..], &length, rest].concat()
}

#[test]
fn a_line_of_text_names_client_and_server() {
    let (source, destination) = (v4("192.0.2.7:40000"), v4("198.51.100.1:443"));
    let tcp4 = Addresses::Tcp4 { source, destination };
    assert_eq!(v1("PROXY TCP4 192.0.2.7 198.51.100.1 40000 443"), tcp4);
    let (source, destination) = (v6("[2001:db8::7]:0"), v6("[::1]:65535"));
    let tcp6 = Addresses::Tcp6 { source, destination };
    assert_eq!(v1("PROXY TCP6 2001:db8::7 ::1 0 65535"), tcp6);
    assert_eq!(v1("PROXY TCP6 2001:0DB8:0000:0000:0000:0000:0000:0007 ::1 0 65535"), tcp6);
}

#[test]
fn what_follows_unknown_is_ignored() {
    let longest = format!("PROXY UNKNOWN {0} {0} 65535 65535", "ffff:".repeat(8).trim_end_matches(':'));
    assert_eq!(longest.len() + 2, V1_BYTES_MAX);
    for line in ["PROXY UNKNOWN", "PROXY UNKNOWN ", "PROXY UNKNOWN what\0ever  it is", &longest] {
        assert_eq!(v1(line), Addresses::Unknown);
    }
}

#[test]
fn a_line_is_refused_with_the_place_of_the_mistake() {
    let field = |expected, position| ParseError::Field { expected, position };
    let (ip4, ip6, port) = ("an IPv4 address", "an IPv6 address", "a port from 0 to 65535");
    let cases = [
        ("PROXY UDP4 1.2.3.4 5.6.7.8 1 2", ParseError::UnknownProtocol),
        ("PROXY tcp4 1.2.3.4 5.6.7.8 1 2", ParseError::UnknownProtocol),
        ("PROXY  TCP4 1.2.3.4 5.6.7.8 1 2", ParseError::UnknownProtocol),
        ("PROXY ", ParseError::UnknownProtocol),
        ("PROXY UNKNOWNS", ParseError::UnknownProtocol),
        ("PROXY TCP4", field(ip4, 10)),
        ("PROXY TCP4 1.2.3.4", field(ip4, 18)),
        ("PROXY TCP4 1.2.3.04 5.6.7.8 1 2", field(ip4, 11)),
        ("PROXY TCP4 1.2.3.4  5.6.7.8 1 2", field(ip4, 19)),
        ("PROXY TCP4 1.2.3.4 ::1 1 2", field(ip4, 19)),
        ("PROXY TCP6 1.2.3.4 ::1 1 2", field(ip6, 11)),
        ("PROXY TCP6 fe80::1%eth0 ::1 1 2", field(ip6, 11)),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1", field(port, 28)),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 01 2", field(port, 27)),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 +1 2", field(port, 27)),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 65536", field(port, 29)),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3", ParseError::TooManyFields { position: 30 }),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 ", ParseError::TooManyFields { position: 30 }),
        ("PROXY TCP4\t1.2.3.4 5.6.7.8 1 2", ParseError::UnknownProtocol),
    ];
    for (line, error) in cases {
        assert_eq!(v1_error(line), error, "{line}");
    }
}

#[test]
fn a_line_ends_with_cr_and_lf_within_107_bytes() {
    let bare = |position| ParseError::BareLineEnd { position };
    assert_eq!(parse_growing(b"PROXY UNKNOWN\nrest"), Err(bare(13)));
    assert_eq!(parse_growing(b"PROXY UNKNOWN\rrest"), Err(bare(13)));
    assert_eq!(parse_growing(b"PROXY UNKNOWN\r\r\n"), Err(bare(13)));
    assert_eq!(parse_growing(b"PROXY UNKNOWN\r"), Ok(None));
    for len in [104, 105] {
        let line = [b"PROXY UNKNOWN ", &b"x".repeat(len - 14)[..], b"\r\n"].concat();
        assert_eq!(parse_growing(&line).unwrap().unwrap().used, len + 2);
    }
    for len in [106, 107, 200] {
        let line = [b"PROXY UNKNOWN ", &b"x".repeat(len - 14)[..], b"\r\n"].concat();
        assert_eq!(parse_growing(&line), Err(ParseError::LineTooLong), "{len}");
        assert_eq!(parse(&line[..106]), Ok(None), "until it is certain");
    }
}

#[test]
fn who_speaks_something_else_is_refused_at_the_first_byte_that_differs() {
    let cases: [(&[u8], usize); 8] = [
        (b"GET / HTTP/1.1\r\n", 0),
        (b"POST / HTTP/1.1\r\n", 1),
        (b"PROXYTCP4", 5),
        (b"proxy TCP4", 0),
        (b"\x16\x03\x01", 0),
        (b"\r\nGET", 2),
        (b"\r\n\r\n\0\r\nQUIT\r", 11),
        (b"\0", 0),
    ];
    for (bytes, position) in cases {
        assert_eq!(parse_growing(bytes), Err(ParseError::NoHeader { position }), "{}", bytes.escape_ascii());
        assert_eq!(parse(&bytes[..position]), Ok(None), "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_binary_header_names_client_and_server() {
    let rest = [192, 0, 2, 7, 198, 51, 100, 1, 0x9c, 0x40, 0x01, 0xbb];
    let (source, destination) = (v4("192.0.2.7:40000"), v4("198.51.100.1:443"));
    for (family, expected) in
        [(0x11, Addresses::Tcp4 { source, destination }), (0x12, Addresses::Udp4 { source, destination })]
    {
        let bytes = [v2_bytes(0x21, family, &rest), b"rest".to_vec()].concat();
        let header = parse_growing(&bytes).unwrap().unwrap();
        assert_eq!((header.version, header.addresses, header.used), (Version::V2, expected, 28));
    }
    let (source, destination) = (v6("[2001:db8::7]:40000"), v6("[::1]:443"));
    let rest = [&source.ip().octets()[..], &destination.ip().octets(), &[0x9c, 0x40, 0x01, 0xbb]].concat();
    for (family, expected) in
        [(0x21, Addresses::Tcp6 { source, destination }), (0x22, Addresses::Udp6 { source, destination })]
    {
        let bytes = v2_bytes(0x21, family, &rest);
        assert_eq!(parse_growing(&bytes).unwrap().unwrap().addresses, expected);
    }
    let mut rest = [0; 216];
    rest[..9].copy_from_slice(b"/run/sock");
    rest[10] = b'x';
    rest[108..114].copy_from_slice(b"\0a\0bc\0");
    let bytes = v2_bytes(0x21, 0x31, &rest);
    let expected = Addresses::UnixStream { source: b"/run/sock", destination: b"\0a\0bc" };
    assert_eq!(parse_growing(&bytes).unwrap().unwrap().addresses, expected);
    let bytes = v2_bytes(0x21, 0x32, &[0; 216]);
    let unnamed = Addresses::UnixDatagram { source: b"", destination: b"" };
    assert_eq!(parse_growing(&bytes).unwrap().unwrap().addresses, unnamed);
    let full = [b'/'; 216];
    let bytes = v2_bytes(0x21, 0x31, &full);
    let expected = Addresses::UnixStream { source: &full[..108], destination: &full[..108] };
    assert_eq!(parse_growing(&bytes).unwrap().unwrap().addresses, expected);
}

#[test]
fn a_proxy_that_speaks_for_itself_is_skipped_whatever_the_rest_says() {
    for (family, rest) in [(0x00, &b""[..]), (0x11, b"short"), (0xff, b"\x03\x00\x04nope"), (0x21, &[0; 99])]
    {
        let bytes = [v2_bytes(0x20, family, rest), b"rest".to_vec()].concat();
        let header = parse_growing(&bytes).unwrap().unwrap();
        assert_eq!((header.addresses, header.used), (Addresses::Local, 16 + rest.len()));
        assert_eq!(header.tlvs.clone().count(), 0);
    }
}

#[test]
fn unspecified_addresses_are_skipped() {
    for family in [0x00, 0x01, 0x02, 0x10, 0x20, 0x30] {
        for rest in [&b""[..], b"some address", &[0; 300]] {
            let bytes = v2_bytes(0x21, family, rest);
            let header = parse_growing(&bytes).unwrap().unwrap();
            assert_eq!((header.addresses, header.used), (Addresses::Unknown, 16 + rest.len()));
        }
    }
}

#[test]
fn a_binary_header_that_is_not_as_specified_is_refused() {
    let cases = [
        (v2_bytes(0x11, 0x11, &[0; 12]), ParseError::UnknownVersion(1)),
        (v2_bytes(0x31, 0x11, &[0; 12]), ParseError::UnknownVersion(3)),
        (v2_bytes(0x22, 0x11, &[0; 12]), ParseError::UnknownCommand(2)),
        (v2_bytes(0x21, 0x13, &[0; 12]), ParseError::UnknownFamily(0x13)),
        (v2_bytes(0x21, 0x03, &[0; 12]), ParseError::UnknownFamily(0x03)),
        (v2_bytes(0x21, 0x41, &[0; 12]), ParseError::UnknownFamily(0x41)),
        (
            v2_bytes(0x21, 0x11, &[0; 11]),
            ParseError::NoRoomForAddresses { declared_bytes: 11, needed_bytes: 12 },
        ),
        (
            v2_bytes(0x21, 0x22, &[0; 35]),
            ParseError::NoRoomForAddresses { declared_bytes: 35, needed_bytes: 36 },
        ),
        (
            v2_bytes(0x21, 0x32, &[0; 215]),
            ParseError::NoRoomForAddresses { declared_bytes: 215, needed_bytes: 216 },
        ),
    ];
    for (bytes, error) in cases {
        assert_eq!(parse_growing(&bytes), Err(error));
    }
}

#[test]
fn a_header_longer_than_16_kib_is_refused_before_it_comes() {
    let most = v2_bytes(0x21, 0x00, &vec![0; V2_BYTES_MAX - 16]);
    assert_eq!(parse(&most[..16]), Ok(None));
    assert_eq!(parse(&most).unwrap().unwrap().used, V2_BYTES_MAX);
    let more = v2_bytes(0x21, 0x00, &vec![0; V2_BYTES_MAX - 15]);
    let error = ParseError::TooLong { declared_bytes: V2_BYTES_MAX + 1, limit_bytes: V2_BYTES_MAX };
    assert_eq!(parse(&more[..16]), Err(error));
}

#[test]
fn what_else_the_proxy_says_is_found_within_its_bounds() {
    let tlvs = b"\x02\0\x04host\x04\0\0\xe0\0\x01x";
    let bytes = v2_bytes(0x21, 0x11, &[&[0; 12], &tlvs[..]].concat());
    let header = parse_growing(&bytes).unwrap().unwrap();
    let expected = [
        Tlv { kind: tlv_kind::AUTHORITY, value: b"host" },
        Tlv { kind: tlv_kind::NOOP, value: b"" },
        Tlv { kind: 0xe0, value: b"x" },
    ];
    assert_eq!(header.tlvs.clone().collect::<Vec<_>>(), expected);
    assert_eq!(header.tlvs.first_of(0xe0), Some(&b"x"[..]));
    assert_eq!(header.tlvs.first_of(tlv_kind::ALPN), None);
    for (tlvs, position) in
        [(&b"\x02"[..], 28), (b"\x02\0", 28), (b"\x02\0\x02h", 28), (b"\x04\0\0\x02\xff\xff", 31)]
    {
        let bytes = v2_bytes(0x21, 0x11, &[&[0; 12], tlvs].concat());
        assert_eq!(parse_growing(&bytes), Err(ParseError::TruncatedTlv { position }));
    }
}

#[test]
fn a_checksum_is_checked_where_it_is_there() {
    let (source, destination) = (v4("192.0.2.7:40000"), v4("198.51.100.1:443"));
    let sent = [
        Tlv { kind: tlv_kind::ALPN, value: b"h2" },
        Tlv { kind: tlv_kind::CRC32C, value: b"" },
        Tlv { kind: tlv_kind::NOOP, value: b"\0\0" },
    ];
    let mut bytes = Vec::new();
    Addresses::Tcp4 { source, destination }.encode_v2(&sent, &mut bytes).unwrap();
    let header = parse(&bytes).unwrap().unwrap();
    assert_eq!(header.tlvs.first_of(tlv_kind::CRC32C).map(<[u8]>::len), Some(4));
    assert_eq!(header.tlvs.first_of(tlv_kind::ALPN), Some(&b"h2"[..]));
    let kind_of_the_checksum = bytes.len() - 7;
    assert_eq!(bytes[kind_of_the_checksum], tlv_kind::CRC32C);
    // Without the kind there is no checksum.
    for at in (16..bytes.len()).filter(|at| *at != kind_of_the_checksum) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        assert!(parse(&changed).is_err(), "byte {at} was changed");
    }
    // By hand: the field does not have to be the last one.
    let mut by_hand = v2_bytes(0x21, 0x11, b"\0\0\0\0\0\0\0\0\0\0\0\0\x03\0\x04\0\0\0\0\x04\0\0");
    let crc = checksum::crc32c(&[&by_hand]);
    by_hand[31..35].copy_from_slice(&crc.to_be_bytes());
    assert!(parse(&by_hand).is_ok());
    by_hand[34] ^= 1;
    assert_eq!(parse(&by_hand), Err(ParseError::WrongChecksum { declared: crc ^ 1, computed: crc }));
    for tlvs in [&b"\x03\0\x03abc"[..], b"\x03\0\0", b"\x03\0\x04abcd\x03\0\x04abcd"] {
        let bytes = v2_bytes(0x21, 0x11, &[&[0; 12], tlvs].concat());
        assert_eq!(parse_growing(&bytes), Err(ParseError::MalformedChecksum));
    }
}

#[test]
fn version_1_says_unknown_for_what_it_has_no_word_for() {
    let written = |addresses: Addresses<'_>| {
        let mut output = Vec::new();
        addresses.encode_v1(&mut output);
        String::from_utf8(output).unwrap()
    };
    let (source, destination) = (v4("192.0.2.7:40000"), v4("198.51.100.1:443"));
    assert_eq!(
        written(Addresses::Tcp4 { source, destination }),
        "PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n"
    );
    assert_eq!(
        written(Addresses::tcp(source.into(), v6("[::1]:443").into())),
        "PROXY TCP6 ::ffff:192.0.2.7 ::1 40000 443\r\n"
    );
    let unix = Addresses::UnixStream { source: b"", destination: b"/x" };
    for addresses in [Addresses::Local, Addresses::Unknown, Addresses::Udp4 { source, destination }, unix] {
        assert_eq!(written(addresses), "PROXY UNKNOWN\r\n");
    }
}

#[test]
fn what_has_no_room_in_a_header_is_not_written() {
    let mut output = b"before".to_vec();
    let unix = Addresses::UnixStream { source: &[b'x'; 109], destination: b"" };
    assert_eq!(unix.encode_v2(&[], &mut output), Err(EncodeError::PathTooLong { path_bytes: 109 }));
    let big = [b'x'; 40_000];
    let tlv = Tlv { kind: 0xe0, value: &big };
    let error = EncodeError::TooLong { header_bytes: 16 + 2 * 40_003 };
    assert_eq!(Addresses::Local.encode_v2(&[tlv, tlv], &mut output), Err(error));
    let huge = vec![0; 65_536];
    let tlv = Tlv { kind: 0xe0, value: &huge };
    let error = EncodeError::TooLong { header_bytes: 65_536 };
    assert_eq!(Addresses::Local.encode_v2(&[tlv], &mut output), Err(error));
    assert_eq!(output, b"before");
}

fn socket_addr() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from),
        Just("::".parse().unwrap())
    ];
    (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        source in socket_addr(),
        destination in socket_addr(),
        checksum in any::<bool>(),
        values in proptest::collection::vec((4_u8.., proptest::collection::vec(any::<u8>(), 0..20)), 0..5),
        path in proptest::collection::vec(1_u8.., 0..=108),
    ) {
        let tcp = Addresses::tcp(source, destination);
        let mut line = Vec::new();
        tcp.encode_v1(&mut line);
        prop_assert!(line.len() <= V1_BYTES_MAX);
        prop_assert_eq!(parse_growing(&line).unwrap().unwrap().addresses, tcp);

        let name = [b"\0", &path[..path.len().min(107)]].concat();
        let unix = Addresses::UnixStream { source: &path, destination: &name };
        let datagram = Addresses::UnixDatagram { source: &name[..1], destination: &path };
        let mut tlvs: Vec<Tlv<'_>> = values.iter().map(|(kind, value)| Tlv { kind: *kind, value }).collect();
        if checksum {
            tlvs.push(Tlv { kind: tlv_kind::CRC32C, value: b"" });
        }
        for addresses in [tcp, Addresses::udp(source, destination), unix, datagram] {
            let mut bytes = Vec::new();
            addresses.encode_v2(&tlvs, &mut bytes).unwrap();
            let header = parse_growing(&bytes).unwrap().unwrap();
            let read: Vec<_> = header.tlvs.clone().filter(|tlv| tlv.kind != tlv_kind::CRC32C).collect();
            prop_assert_eq!(read, &tlvs[..values.len()]);
            prop_assert_eq!(header.tlvs.first_of(tlv_kind::CRC32C).is_some(), checksum);
            match (addresses, header.addresses) {
                // An abstract name of nothing but its zero cannot be told from no name.
                (Addresses::UnixStream { source, .. }, Addresses::UnixStream { source: read, .. })
                | (Addresses::UnixDatagram { destination: source, .. },
                   Addresses::UnixDatagram { destination: read, .. }) => prop_assert_eq!(source, read),
                (written, read) => prop_assert_eq!(written, read),
            }
        }
    }

    #[test]
    fn the_pieces_make_no_difference(
        head in prop::sample::select(vec![
            &b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"[..], b"PROXY UNKNOWN", b"PROXY TCP6 ::1 ::2 3 4", b"PR",
            b"\r\n\r\n\0\r\nQUIT\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14", b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\x02", b"",
        ]),
        tail in proptest::collection::vec(prop::sample::select(&b"\r\n 1.:\0\x03\x04\x11\x21a"[..]), 0..120),
        flip in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = [head, &tail].concat();
        if let (Some((at, byte)), false) = (flip, bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = parse_growing(&bytes);
    }
}
