//! Endpoints as text: what is read, what is printed, and where mistakes are found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

#[track_caller]
fn server(text: &str) -> ServerEndpoint {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn client(text: &str) -> ClientEndpoint {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn ip(text: &str) -> Host {
    Host::Ip(text.parse().unwrap())
}

fn name(text: &str) -> Host {
    Host::Name(text.to_owned())
}

fn tcp(interface: Host, port: u16) -> ServerEndpoint {
    ServerEndpoint::Tcp(TcpServer::new(interface, port))
}

/// The text is read as `expected`, and `expected` prints as `canonical`.
#[track_caller]
fn reads(text: &str, expected: ServerEndpoint, canonical: &str) {
    assert_eq!(server(text), expected, "{text}");
    assert_eq!(expected.to_string(), canonical, "{text}");
    assert_eq!(server(canonical), expected, "{canonical}");
}

#[track_caller]
fn client_reads(text: &str, expected: ClientEndpoint, canonical: &str) {
    assert_eq!(client(text), expected, "{text}");
    assert_eq!(expected.to_string(), canonical, "{text}");
    assert_eq!(client(canonical), expected, "{canonical}");
}

#[test]
fn tcp_servers_listen_everywhere_unless_told_where() {
    reads("tcp:8080", tcp(ip("0.0.0.0"), 8080), "tcp:8080");
    reads("tcp:port=8080", tcp(ip("0.0.0.0"), 8080), "tcp:8080");
    reads("tcp6:0", tcp(ip("::"), 0), "tcp6:0");
    let local = tcp(ip("127.0.0.1"), 8080);
    reads("tcp:8080:interface=127.0.0.1", local.clone(), "tcp:8080:interface=127.0.0.1");
    reads("tcp:8080:127.0.0.1", local.clone(), "tcp:8080:interface=127.0.0.1");
    reads("tcp:interface=127.0.0.1:8080", local, "tcp:8080:interface=127.0.0.1");
    for text in
        [r"tcp:80:interface=\:\:1", "tcp:80:interface=[::1]", "tcp6:80:[::1]", r"tcp6:80:interface=\:\:1"]
    {
        reads(text, tcp(ip("::1"), 80), "tcp6:80:interface=[::1]");
    }
    let mut crowded = TcpServer::new(name("my-host.example"), 80);
    crowded.backlog = Some(7);
    let canonical = "tcp:80:interface=my-host.example:backlog=7";
    reads("tcp:80:my-host.example:7", ServerEndpoint::Tcp(crowded), canonical);
}

#[test]
fn host_and_port_alone_are_tcp() {
    reads("127.0.0.1:7000", tcp(ip("127.0.0.1"), 7000), "tcp:7000:interface=127.0.0.1");
    reads("[::1]:7000", tcp(ip("::1"), 7000), "tcp6:7000:interface=[::1]");
    reads("[::]:0", tcp(ip("::"), 0), "tcp6:0");
    reads("localhost:0", tcp(name("localhost"), 0), "tcp:0:interface=localhost");
    let scoped = Host::Scoped { ip: "fe80::1".parse().unwrap(), zone: "eth0".to_owned() };
    reads("[fe80::1%eth0]:80", tcp(scoped, 80), "tcp:80:interface=[fe80::1%eth0]");
    let there = ClientEndpoint::Tcp(TcpClient::new(ip("::1"), 7000));
    client_reads("[::1]:7000", there, "tcp:[::1]:7000");
    client_reads(
        "example.com:80",
        ClientEndpoint::Tcp(TcpClient::new(name("example.com"), 80)),
        "tcp:example.com:80",
    );
}

#[test]
fn tls_servers_name_their_files() {
    let everywhere = TcpServer::new(ip("0.0.0.0"), 443);
    let mut tls = TlsServer::new(everywhere, TlsIdentity::new("cert.pem", "key.pem"));
    let canonical = "tls:443:privateKey=key.pem:certKey=cert.pem";
    for kind in ["tls", "ssl"] {
        let expected = ServerEndpoint::Tls(tls.clone());
        reads(&format!("{kind}:443:privateKey=key.pem:certKey=cert.pem"), expected.clone(), canonical);
        reads(&format!("{kind}:443:key.pem:cert.pem"), expected, canonical);
    }
    tls.extra_chain = Some("chain.pem".into());
    tls.identity = TlsIdentity::new("both.pem", "both.pem");
    tls.tcp.interface = ip("::1");
    tls.tcp.backlog = Some(9);
    let canonical = "tls:443:privateKey=both.pem:extraCertChain=chain.pem:interface=[::1]:backlog=9";
    reads(canonical, ServerEndpoint::Tls(tls), canonical);
}

#[test]
fn unix_servers_have_a_name_a_mode_and_a_lock() {
    let mut unix = UnixServer::new(UnixName::Path("/run/x".into()));
    reads("unix:/run/x", ServerEndpoint::Unix(unix.clone()), "unix:/run/x");
    unix.mode = Some(0o660);
    reads("unix:/run/x:mode=660", ServerEndpoint::Unix(unix.clone()), "unix:/run/x:mode=660");
    reads("unix:/run/x:0660:lockfile=1", ServerEndpoint::Unix(unix.clone()), "unix:/run/x:mode=660");
    unix.lockfile = false;
    unix.backlog = Some(1);
    unix.mode = Some(0o007);
    let canonical = "unix:/run/x:mode=007:backlog=1:lockfile=0";
    reads("unix:/run/x:7:1:0", ServerEndpoint::Unix(unix), canonical);
    let abstract_name =
        |name: &str| ServerEndpoint::Unix(UnixServer::new(UnixName::Abstract(name.to_owned())));
    reads("unix:@a", abstract_name("a"), "unix:@a");
    reads(r"unix:@@a\:b", abstract_name("@a:b"), r"unix:@\@a\:b");
    let path = |path: &str| ServerEndpoint::Unix(UnixServer::new(UnixName::Path(path.into())));
    reads(r"unix:\@a", path("@a"), r"unix:\@a");
    reads(r"unix:a\=b\:c\\", path(r"a=b:c\"), r"unix:a\=b\:c\\");
    reads("unix:address=a=b", path("a=b"), r"unix:a\=b");
    reads(r"unix:[\:\:1]", path("[::1]"), r"unix:[\:\:1]");
    reads(r"unix:\x", path("x"), "unix:x");
}

#[test]
fn inherited_sockets_have_numbers_or_names() {
    let by_number = SystemdServer { socket: SystemdSocket::Index(0), domain: None };
    reads("systemd:index=0", ServerEndpoint::Systemd(by_number), "systemd:index=0");
    let domain = Some(SystemdDomain::Inet6);
    let by_number = SystemdServer { socket: SystemdSocket::Index(2), domain };
    let canonical = "systemd:domain=INET6:index=2";
    reads(canonical, ServerEndpoint::Systemd(by_number.clone()), canonical);
    reads("systemd:INET6:2", ServerEndpoint::Systemd(by_number), canonical);
    let by_name = SystemdServer { socket: SystemdSocket::Name("web=1".to_owned()), domain: None };
    reads("systemd:name=web=1", ServerEndpoint::Systemd(by_name), r"systemd:name=web\=1");
    reads("fd:3", ServerEndpoint::Fd(3), "fd:3");
    reads("stdio:", ServerEndpoint::Stdio, "stdio:");
    reads("stdio", ServerEndpoint::Stdio, "stdio:");
}

#[test]
fn a_proxy_header_wraps_another_server() {
    let wrapped = |server| ServerEndpoint::Haproxy(Box::new(server));
    reads("haproxy:tcp:80", wrapped(tcp(ip("0.0.0.0"), 80)), "haproxy:tcp:80");
    reads("haproxy:127.0.0.1:80", wrapped(tcp(ip("127.0.0.1"), 80)), "haproxy:tcp:80:interface=127.0.0.1");
    reads(r"haproxy:unix:a\:b", wrapped(server(r"unix:a\:b")), r"haproxy:unix:a\:b");
}

#[test]
fn tcp_clients_have_a_host_a_port_and_a_time_limit() {
    let mut there = TcpClient::new(name("example.com"), 80);
    client_reads("tcp:example.com:80", ClientEndpoint::Tcp(there.clone()), "tcp:example.com:80");
    client_reads("tcp:port=80:host=example.com", ClientEndpoint::Tcp(there.clone()), "tcp:example.com:80");
    there.timeout = Some(Duration::from_millis(2_500));
    there.bind_address = Some(Ipv4Addr::LOCALHOST.into());
    let canonical = "tcp:example.com:80:timeout=2.5:bindAddress=127.0.0.1";
    client_reads("tcp:example.com:80:2.50:127.0.0.1", ClientEndpoint::Tcp(there), canonical);
}

#[test]
fn tls_clients_ride_on_tcp_or_on_another_endpoint() {
    let over = ClientEndpoint::Tcp(TcpClient::new(name("example.com"), 443));
    let mut tls = TlsClient::new(name("example.com"), over);
    client_reads("tls:example.com:443", ClientEndpoint::Tls(tls.clone()), "tls:example.com:443");
    tls.identity = Some(TlsIdentity::new("me.pem", "key.pem"));
    tls.trust_roots = Some("/etc/roots".into());
    let canonical = "tls:example.com:443:certificate=me.pem:privateKey=key.pem:trustRoots=/etc/roots";
    client_reads(canonical, ClientEndpoint::Tls(tls.clone()), canonical);
    let twisted = "ssl:example.com:443:certKey=me.pem:privateKey=key.pem:caCertsDir=/etc/roots";
    client_reads(twisted, ClientEndpoint::Tls(tls), canonical);

    let unix = ClientEndpoint::Unix(UnixClient::new(UnixName::Path("/run/a:b".into())));
    let tls = ClientEndpoint::Tls(TlsClient::new(name("example.com"), unix));
    let canonical = r"tls:example.com:endpoint=unix\:/run/a\\\:b";
    client_reads(canonical, tls.clone(), canonical);
    let twice = ClientEndpoint::Tls(TlsClient::new(name("outer"), tls));
    let canonical = r"tls:outer:endpoint=tls\:example.com\:endpoint\=unix\\\:/run/a\\\\\\\:b";
    client_reads(canonical, twice, canonical);
    let elsewhere = ClientEndpoint::Tcp(TcpClient::new(ip("192.0.2.1"), 443));
    let tls = ClientEndpoint::Tls(TlsClient::new(name("example.com"), elsewhere));
    client_reads(
        r"tls:example.com:endpoint=192.0.2.1\:443",
        tls,
        r"tls:example.com:endpoint=tcp\:192.0.2.1\:443",
    );
}

#[test]
fn unix_clients_have_a_name_and_may_ask_for_the_lock() {
    let mut unix = UnixClient::new(UnixName::Abstract("a".to_owned()));
    unix.timeout = Some(Duration::new(0, 1));
    unix.lockfile = true;
    let canonical = "unix:@a:timeout=0.000000001:lockfile=1";
    client_reads(canonical, ClientEndpoint::Unix(unix), canonical);
}

/// Each text with `^` below what is wrong, and the message.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("tcp", "   ^", "expected `port`: a port from 0 to 65535"),
    ("tcp:", "    ^", "expected a port from 0 to 65535"),
    ("tcp:65536", "    ^^^^^", "expected a port from 0 to 65535"),
    ("tcp:-1", "    ^^", "expected a port from 0 to 65535"),
    ("tcp:+1", "    ^^", "expected a port from 0 to 65535"),
    ("tcp:80:", "       ^", "expected a host: a name, an IPv4 address, or an IPv6 address in brackets"),
    (
        "tcp:80:interface=1.2.3",
        "                 ^^^^^",
        "expected an IPv4 address of four numbers from 0 to 255",
    ),
    ("tcp:80:interface=[::x]", "                 ^^^^^", "expected an IPv6 address between the brackets"),
    (
        "tcp:80:interface=a b",
        "                 ^^^",
        "expected a host: a name, an IPv4 address, or an IPv6 address in brackets",
    ),
    ("tcp:80:backlog=0", "               ^", "expected a number of waiting connections from 1 on"),
    ("tcp:80:lockfile=0", "       ^^^^^^^^", "expected one of the keywords port, interface, backlog"),
    ("tcp:80:port=81", "       ^^^^", "`port` is given twice"),
    ("tcp:80:a:1:2", "           ^", "expected no more than 3 values without a keyword"),
    ("tcp6:80:interface=1.2.3.4", "                  ^^^^^^^", "expected an IPv6 address"),
    ("tcp:80\\", "      ^", "expected a character behind the backslash"),
    ("tls:443", "       ^", "expected `privateKey`: the path of a PEM file"),
    ("tls:443:privateKey=", "                   ^", "expected a path"),
    (
        "tls:443:a:sslmethod=b",
        "          ^^^^^^^^^",
        "expected one of the keywords port, privateKey, certKey, extraCertChain, interface, backlog",
    ),
    ("unix:", "     ^", "expected a path, or @ and a name"),
    ("unix:@", "     ^", "expected a name behind the @"),
    ("unix:a:mode=888", "            ^^^", "expected an octal mode from 000 to 777"),
    ("unix:a:mode=1777", "            ^^^^", "expected an octal mode from 000 to 777"),
    ("unix:a:lockfile=yes", "                ^^^", "expected 0 or 1"),
    ("systemd:", "        ^", "expected INET, INET6 or UNIX"),
    ("systemd", "       ^", "expected `index=NUMBER` or `name=NAME`"),
    ("systemd:index=0:name=a", "                     ^", "expected `index` or `name`, not both"),
    ("systemd:INET4:0", "        ^^^^^", "expected INET, INET6 or UNIX"),
    ("fd:x", "   ^", "expected the number of a descriptor"),
    ("fd:2147483648", "   ^^^^^^^^^^", "expected the number of a descriptor"),
    ("stdio:x", "      ^", "expected nothing more"),
    ("stdio:a=b", "      ^", "expected no keyword"),
    (
        "haproxy:",
        "        ^",
        "expected one of tcp, tcp6, tls, ssl, unix, systemd, fd, stdio, haproxy, or HOST:PORT",
    ),
    ("haproxy:tcp:x", "            ^", "expected a port from 0 to 65535"),
    ("haproxy:haproxy:tcp:1", "        ^^^^^^^^^^^^^", "a connection has one proxy header at most"),
    ("", "^", "expected one of tcp, tcp6, tls, ssl, unix, systemd, fd, stdio, haproxy, or HOST:PORT"),
    ("8080", "^^^^", "expected one of tcp, tcp6, tls, ssl, unix, systemd, fd, stdio, haproxy, or HOST:PORT"),
    (
        "tpc:port",
        "^^^",
        "expected one of tcp, tcp6, tls, ssl, unix, systemd, fd, stdio, haproxy, or HOST:PORT",
    ),
    (
        "tpc=1:80",
        "^^^^^",
        "expected one of tcp, tcp6, tls, ssl, unix, systemd, fd, stdio, haproxy, or HOST:PORT",
    ),
    ("::1:7000", "^^^^^^^^", "an IPv6 address needs brackets, as in [::1]:7000"),
    ("fe80::1", "^^^^^^^", "an IPv6 address needs brackets, as in [::1]:7000"),
    ("127.0.0.1:x", "          ^", "expected a port from 0 to 65535"),
    ("localhost:70000", "          ^^^^^", "expected a port from 0 to 65535"),
    (
        "tést:é:\tx",
        "^^^^",
        "expected one of tcp, tcp6, tls, ssl, unix, systemd, fd, stdio, haproxy, or HOST:PORT",
    ),
];

const CLIENT_MISTAKES: &[(&str, &str, &str)] = &[
    ("stdio:", "^^^^^", "expected one of tcp, tls, ssl, unix, or HOST:PORT"),
    ("tcp:example.com", "               ^", "expected `port`: a port from 0 to 65535"),
    ("tcp:a:1:0", "        ^", "expected a number of seconds above 0, such as 30 or 0.5"),
    ("tcp:a:1:1e3", "        ^^^", "expected a number of seconds above 0, such as 30 or 0.5"),
    ("tcp:a:1:bindAddress=b", "                    ^", "expected an IP address"),
    (
        "tls:a:1:caCertsDir=b",
        "        ^^^^^^^^^^",
        "expected one of the keywords host, port, timeout, bindAddress, certificate, privateKey, trustRoots, endpoint",
    ),
    (
        r"tls:a:1:endpoint=unix\:b",
        "      ^",
        "this belongs into `endpoint`, with a backslash before each colon there",
    ),
    (r"tls:a:endpoint=tcp\:b\:x", "                       ^", "expected a port from 0 to 65535"),
    (
        r"tls:é:endpoint=tls\:b\:endpoint\=tcp\\\:c\\\:x",
        "                                             ^",
        "expected a port from 0 to 65535",
    ),
    (r"tls:a:endpoint=tcp\:b\\", "                      ^", "expected a character behind the backslash"),
    (
        "tls:a:endpoint=tcp:b",
        "                   ^",
        "this belongs into `endpoint`, with a backslash before each colon there",
    ),
];

#[test]
fn a_mistake_is_shown_at_its_place() {
    let servers = MISTAKES.iter().map(|case| (case, case.0.parse::<ServerEndpoint>().map(drop)));
    let clients = CLIENT_MISTAKES.iter().map(|case| (case, case.0.parse::<ClientEndpoint>().map(drop)));
    for ((text, marks, message), outcome) in servers.chain(clients) {
        let error = outcome.expect_err(text);
        assert_eq!(error.message(), *message, "{text}");
        let shown = text.replace('\t', "\u{fffd}");
        let expected = format!("endpoint: {message}, at byte {}\n  {shown}\n  {marks}", error.position());
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_text_that_nobody_has_typed_is_refused_without_being_shown_whole() {
    let text = format!("unix:{}", "é".repeat(5_000));
    let error = text.parse::<ServerEndpoint>().unwrap_err();
    assert_eq!(error.message(), "longer than 4096 bytes");
    assert!(error.to_string().len() < 250, "{error}");
    assert!(format!("unix:{}", "x".repeat(108)).parse::<ServerEndpoint>().is_err(), "longer than sun_path");
    assert!(format!("unix:{}", "x".repeat(107)).parse::<ServerEndpoint>().is_ok());
}

#[test]
fn what_is_quoted_stands_for_itself() {
    assert_eq!(quote("/run/x"), "/run/x");
    assert_eq!(quote(r"a:b=c\d@"), r"a\:b\=c\\d@");
    assert_eq!(quote("@a"), r"\@a");
}

fn hosts() -> impl Strategy<Value = Host> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| Host::Ip(IpAddr::from(octets))),
        any::<[u8; 16]>().prop_map(|octets| Host::Ip(IpAddr::from(octets))),
        prop_oneof![Just(Ipv4Addr::UNSPECIFIED.into()), Just(Ipv6Addr::UNSPECIFIED.into())]
            .prop_map(Host::Ip),
        (any::<[u8; 16]>(), "[a-z0-9._-]{1,9}").prop_map(|(ip, zone)| Host::Scoped { ip: ip.into(), zone }),
        "[a-zé_-][a-z0-9.-]{0,20}".prop_map(Host::Name),
    ]
}

/// Text with whatever means something to the grammar.
fn words() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop::sample::select(&[':', '=', '\\', '@', '[', ']', 'a', '/', 'é', ' '][..]),
        1..12,
    )
    .prop_map(String::from_iter)
}

fn unix_names() -> impl Strategy<Value = UnixName> {
    prop_oneof![words().prop_map(|path| UnixName::Path(path.into())), words().prop_map(UnixName::Abstract),]
}

fn identities() -> impl Strategy<Value = TlsIdentity> {
    (words(), words(), any::<bool>())
        .prop_map(|(a, b, same)| TlsIdentity::new(&a, if same { &a } else { &b }))
}

fn tcp_servers() -> impl Strategy<Value = TcpServer> {
    (hosts(), any::<u16>(), proptest::option::of(1_u32..1 << 31))
        .prop_map(|(interface, port, backlog)| TcpServer { interface, port, backlog })
}

fn servers() -> impl Strategy<Value = ServerEndpoint> {
    let domain = prop_oneof![
        Just(None),
        Just(Some(SystemdDomain::Inet)),
        Just(Some(SystemdDomain::Inet6)),
        Just(Some(SystemdDomain::Unix)),
    ];
    let socket =
        prop_oneof![(0..1_u32 << 31).prop_map(SystemdSocket::Index), words().prop_map(SystemdSocket::Name),];
    let unix =
        (unix_names(), proptest::option::of(0..=0o777_u32), proptest::option::of(1..9_u32), any::<bool>());
    let plain = prop_oneof![
        tcp_servers().prop_map(ServerEndpoint::Tcp),
        (tcp_servers(), identities(), proptest::option::of(words())).prop_map(|(tcp, identity, chain)| {
            let extra_chain = chain.map(Into::into);
            ServerEndpoint::Tls(TlsServer { tcp, identity, extra_chain })
        }),
        unix.prop_map(|(address, mode, backlog, lockfile)| {
            ServerEndpoint::Unix(UnixServer { address, mode, backlog, lockfile })
        }),
        (socket, domain)
            .prop_map(|(socket, domain)| ServerEndpoint::Systemd(SystemdServer { socket, domain })),
        (0..=i32::MAX).prop_map(ServerEndpoint::Fd),
        Just(ServerEndpoint::Stdio),
    ];
    (plain, any::<bool>()).prop_map(
        |(plain, wrapped)| {
            if wrapped { ServerEndpoint::Haproxy(Box::new(plain)) } else { plain }
        },
    )
}

fn timeouts() -> impl Strategy<Value = Option<Duration>> {
    let nanos = prop_oneof![Just(0), 1..1_000_000_000_u32];
    proptest::option::of(
        (1..=u64::from(u32::MAX), nanos).prop_map(|(secs, nanos)| Duration::new(secs, nanos)),
    )
}

fn clients() -> impl Strategy<Value = ClientEndpoint> {
    let tcp = (hosts(), any::<u16>(), timeouts(), proptest::option::of(any::<[u8; 16]>())).prop_map(
        |(host, port, timeout, bind)| {
            let bind_address = bind.map(IpAddr::from);
            ClientEndpoint::Tcp(TcpClient { host, port, timeout, bind_address })
        },
    );
    let unix = (unix_names(), timeouts(), any::<bool>())
        .prop_map(|(path, timeout, lockfile)| ClientEndpoint::Unix(UnixClient { path, timeout, lockfile }));
    prop_oneof![tcp, unix].prop_recursive(3, 8, 1, |inner| {
        let rest =
            (hosts(), proptest::option::of(identities()), proptest::option::of(words()), any::<bool>());
        (inner, rest).prop_map(|(over, (other, identity, roots, same))| {
            let name = match &over {
                ClientEndpoint::Tcp(tcp) if same => tcp.host.clone(),
                _ => other,
            };
            let trust_roots = roots.map(Into::into);
            ClientEndpoint::Tls(TlsClient { name, over: Box::new(over), identity, trust_roots })
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_server_reads_as_it_prints(endpoint in servers()) {
        let text = endpoint.to_string();
        prop_assert_eq!(text.parse::<ServerEndpoint>(), Ok(endpoint), "{}", text);
    }

    #[test]
    fn a_client_reads_as_it_prints(endpoint in clients()) {
        let text = endpoint.to_string();
        prop_assert_eq!(text.parse::<ClientEndpoint>(), Ok(endpoint), "{}", text);
    }

    #[test]
    fn any_text_is_an_endpoint_or_has_a_place_that_is_wrong(
        kind in prop::sample::select(&["", "tcp:", "unix:", "tls:a:endpoint=", "haproxy:", "systemd:", "[::1]:"][..]),
        rest in words(),
    ) {
        let text = format!("{kind}{rest}");
        match text.parse::<ServerEndpoint>() {
            Ok(endpoint) => prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint)),
            Err(error) => prop_assert!(text.is_char_boundary(error.position()), "{error}"),
        }
        match text.parse::<ClientEndpoint>() {
            Ok(endpoint) => prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint)),
            Err(error) => prop_assert!(text.is_char_boundary(error.position()), "{error}"),
        }
    }

    #[test]
    fn what_is_quoted_is_one_value(path in words()) {
        let endpoint: ServerEndpoint = format!("unix:{}:mode=600", quote(&path)).parse().unwrap();
        let mut expected = UnixServer::new(UnixName::Path(path.into()));
        expected.mode = Some(0o600);
        prop_assert_eq!(endpoint, ServerEndpoint::Unix(expected));
    }
}
