//! Where a server listens.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use super::error::{EndpointError, Problem, Wrong};
use super::grammar::{self, Argument, Arguments, Names, Source, Word, quote};
use super::values::{self, Host, TlsIdentity, UnixName, write_path};

/// Where a server listens, as text says it: see [the grammar](crate::endpoint).
///
/// ```
/// use shardwise::ServerEndpoint;
///
/// for text in ["tcp:80", "tcp6:80:interface=[::1]", "unix:/run/x:mode=660", "systemd:index=0", "fd:3", "stdio:"] {
///     let server: ServerEndpoint = text.parse()?;
///     assert_eq!(server.to_string(), text);
/// }
/// # Ok::<(), shardwise::endpoint::EndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServerEndpoint {
    /// TCP.
    Tcp(TcpServer),
    /// TLS over TCP.
    Tls(TlsServer),
    /// A UNIX stream socket.
    Unix(UnixServer),
    /// A listening socket that systemd has opened (`sd_listen_fds(3)`), as with [`ServerEndpoint::Fd`].
    Systemd(SystemdServer),
    /// A listening socket that whoever started the process has opened: its descriptor, from 0 on. What is listened on is a
    /// duplicate. The descriptor itself stays open, like that of whoever opened it, so who connects after the listener has
    /// closed waits for the next one that listens there.
    Fd(i32),
    /// Standard input and output as one connection.
    Stdio,
    /// Another server, before whose bytes a proxy puts a [header](crate::proxy_protocol).
    Haproxy(Box<ServerEndpoint>),
}

/// A TCP server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TcpServer {
    /// The address to listen on, or a name of it.
    pub interface: Host,
    /// The port; 0 lets the system choose.
    pub port: u16,
    /// Finished handshakes that may wait; [`Config::backlog`](crate::Config::backlog) unless given.
    pub backlog: Option<u32>,
}

/// A TLS server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TlsServer {
    /// Where it listens.
    pub tcp: TcpServer,
    /// Whom it says it is.
    pub identity: TlsIdentity,
    /// Certificates between that one and its root, if they are not in its file.
    pub extra_chain: Option<PathBuf>,
}

/// A server on a UNIX stream socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct UnixServer {
    /// Its name.
    pub address: UnixName,
    /// The permission bits of the file, as `chmod(2)` has them; 0600 unless given: the user alone may connect.
    pub mode: Option<u32>,
    /// Connections that may wait; [`Config::backlog`](crate::Config::backlog) unless given.
    pub backlog: Option<u32>,
    /// Whether a lock beside the file says that somebody listens, so that a stale file can be told; true unless given.
    pub lockfile: bool,
}

/// A listening socket from systemd.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SystemdServer {
    /// Which of the sockets.
    pub socket: SystemdSocket,
    /// What kind of socket it has to be; any unless given.
    pub domain: Option<SystemdDomain>,
}

/// Which of the sockets that systemd passes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SystemdSocket {
    /// By number, from 0 on.
    Index(u32),
    /// By its `FileDescriptorName=`.
    Name(String),
}

/// A kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SystemdDomain {
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
    /// UNIX.
    Unix,
}

impl TcpServer {
    /// TCP on this address and port.
    pub fn new(interface: impl Into<Host>, port: u16) -> Self {
        TcpServer { interface: interface.into(), port, backlog: None }
    }
}

impl TlsServer {
    /// TLS on this address and port.
    pub fn new(tcp: TcpServer, identity: TlsIdentity) -> Self {
        TlsServer { tcp, identity, extra_chain: None }
    }
}

impl UnixServer {
    /// A UNIX socket of this name.
    pub fn new(address: UnixName) -> Self {
        UnixServer { address, mode: None, backlog: None, lockfile: true }
    }
}

impl FromStr for ServerEndpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        grammar::parse(text, read)
    }
}

fn read(source: Source<'_>) -> Result<ServerEndpoint, Wrong> {
    let mut arguments = source.split()?;
    let first = &arguments[0];
    let kind = first.value.text();
    if first.keyword.is_none() && kind == "haproxy" {
        let inner = source.behind(first);
        return match read(inner)? {
            ServerEndpoint::Haproxy(_) => {
                let at = inner.offset(0)..inner.end;
                Err(Wrong { at, problem: Problem::Instead("a connection has one proxy header at most") })
            }
            server => Ok(ServerEndpoint::Haproxy(Box::new(server))),
        };
    }
    let known = first.keyword.is_none() && KINDS.iter().any(|(name, _)| *name == kind);
    if !known {
        let (host, port) = values::bare_host_and_port(&arguments, KNOWN)?;
        return Ok(ServerEndpoint::Tcp(TcpServer::new(host, port)));
    }
    let names = KINDS.iter().find(|(name, _)| *name == kind).expect("looked up above").1;
    arguments.remove(0);
    // A colon behind the kind begins nothing, if nothing has to follow.
    if let [Argument { keyword: None, value }] = &arguments[..]
        && names.in_order.is_empty()
        && value.is_empty()
    {
        arguments.clear();
    }
    let mut arguments = Arguments::read(arguments, names, source.end)?;
    Ok(match kind.as_str() {
        "tcp" => ServerEndpoint::Tcp(tcp(&mut arguments, Ipv4Addr::UNSPECIFIED.into())?),
        "tcp6" => ServerEndpoint::Tcp(tcp6(&mut arguments)?),
        "tls" | "ssl" => ServerEndpoint::Tls(tls(&mut arguments)?),
        "unix" => ServerEndpoint::Unix(unix(&mut arguments)?),
        "systemd" => ServerEndpoint::Systemd(systemd(&mut arguments, source.end)?),
        "fd" => ServerEndpoint::Fd(fd(&arguments.need("fd", "the number of a descriptor")?)?),
        _ => ServerEndpoint::Stdio,
    })
}

fn tcp(arguments: &mut Arguments, interface: IpAddr) -> Result<TcpServer, Wrong> {
    Ok(TcpServer {
        port: values::port(&arguments.need("port", "a port from 0 to 65535")?)?,
        interface: arguments
            .take("interface")
            .map(|word| values::host(&word))
            .transpose()?
            .unwrap_or(Host::Ip(interface)),
        backlog: arguments.take("backlog").map(|word| values::backlog(&word)).transpose()?,
    })
}

fn tcp6(arguments: &mut Arguments) -> Result<TcpServer, Wrong> {
    let interface = arguments.take("interface");
    let mut server = tcp(arguments, Ipv6Addr::UNSPECIFIED.into())?;
    if let Some(word) = interface {
        server.interface = match values::host(&word) {
            Ok(host @ (Host::Ip(IpAddr::V6(_)) | Host::Scoped { .. })) => host,
            _ => return Err(word.expected("an IPv6 address")),
        };
    }
    Ok(server)
}

fn tls(arguments: &mut Arguments) -> Result<TlsServer, Wrong> {
    let key = arguments.take("privateKey");
    let certificate = arguments.take("certKey");
    let tcp = tcp(arguments, Ipv4Addr::UNSPECIFIED.into())?;
    let Some(identity) = values::identity(certificate.as_ref(), key.as_ref())? else {
        return Err(arguments.need("privateKey", "the path of a PEM file").expect_err("it is not there"));
    };
    let extra_chain = arguments.take("extraCertChain").map(|word| values::path(&word)).transpose()?;
    Ok(TlsServer { tcp, identity, extra_chain })
}

fn unix(arguments: &mut Arguments) -> Result<UnixServer, Wrong> {
    Ok(UnixServer {
        address: values::unix_name(&arguments.need("address", "a path, or @ and a name")?)?,
        mode: arguments.take("mode").map(|word| values::mode(&word)).transpose()?,
        backlog: arguments.take("backlog").map(|word| values::backlog(&word)).transpose()?,
        lockfile: arguments.take("lockfile").map(|word| values::switch(&word)).transpose()?.unwrap_or(true),
    })
}

fn systemd(arguments: &mut Arguments, end: usize) -> Result<SystemdServer, Wrong> {
    let domain = arguments.take("domain").map(|word| match word.text().as_str() {
        "INET" => Ok(SystemdDomain::Inet),
        "INET6" => Ok(SystemdDomain::Inet6),
        "UNIX" => Ok(SystemdDomain::Unix),
        _ => Err(word.expected("INET, INET6 or UNIX")),
    });
    let domain = domain.transpose()?;
    let socket = match (arguments.take("index"), arguments.take("name")) {
        (Some(index), None) => {
            let number = values::number(&index, i32::MAX as u32);
            SystemdSocket::Index(number.ok_or_else(|| index.expected("a number from 0 on"))?)
        }
        (None, Some(name)) if name.is_empty() => return Err(name.expected("the name of a socket")),
        (None, Some(name)) => SystemdSocket::Name(name.text()),
        (Some(_), Some(name)) => {
            return Err(name.wrong(Problem::Instead("expected `index` or `name`, not both")));
        }
        (None, None) => {
            let problem = Problem::Instead("expected `index=NUMBER` or `name=NAME`");
            return Err(Wrong { at: end..end, problem });
        }
    };
    Ok(SystemdServer { socket, domain })
}

fn fd(word: &Word) -> Result<i32, Wrong> {
    let number = values::number(word, i32::MAX as u32).and_then(|fd| i32::try_from(fd).ok());
    number.ok_or_else(|| word.expected("the number of a descriptor"))
}

impl fmt::Display for ServerEndpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerEndpoint::Tcp(tcp) => match tcp.interface {
                Host::Ip(IpAddr::V6(ip)) => {
                    write!(formatter, "tcp6:{}", tcp.port)?;
                    write_rest(formatter, tcp, ip.is_unspecified())
                }
                _ => write_tcp(formatter, "tcp", tcp),
            },
            ServerEndpoint::Tls(tls) => {
                let TlsIdentity { certificate, private_key } = &tls.identity;
                write!(formatter, "tls:{}", tls.tcp.port)?;
                write_path(formatter, "privateKey", private_key)?;
                if certificate != private_key {
                    write_path(formatter, "certKey", certificate)?;
                }
                if let Some(chain) = &tls.extra_chain {
                    write_path(formatter, "extraCertChain", chain)?;
                }
                write_rest(formatter, &tls.tcp, tls.tcp.interface == Host::Ip(Ipv4Addr::UNSPECIFIED.into()))
            }
            ServerEndpoint::Unix(unix) => {
                write!(formatter, "unix:{}", unix.address)?;
                if let Some(mode) = unix.mode {
                    write!(formatter, ":mode={mode:03o}")?;
                }
                if let Some(backlog) = unix.backlog {
                    write!(formatter, ":backlog={backlog}")?;
                }
                if unix.lockfile { Ok(()) } else { formatter.write_str(":lockfile=0") }
            }
            ServerEndpoint::Systemd(systemd) => {
                formatter.write_str("systemd")?;
                match systemd.domain {
                    None => {}
                    Some(SystemdDomain::Inet) => formatter.write_str(":domain=INET")?,
                    Some(SystemdDomain::Inet6) => formatter.write_str(":domain=INET6")?,
                    Some(SystemdDomain::Unix) => formatter.write_str(":domain=UNIX")?,
                }
                match &systemd.socket {
                    SystemdSocket::Index(index) => write!(formatter, ":index={index}"),
                    SystemdSocket::Name(name) => write!(formatter, ":name={}", quote(name)),
                }
            }
            ServerEndpoint::Fd(fd) => write!(formatter, "fd:{fd}"),
            ServerEndpoint::Stdio => formatter.write_str("stdio:"),
            ServerEndpoint::Haproxy(inner) => write!(formatter, "haproxy:{inner}"),
        }
    }
}

fn write_tcp(formatter: &mut fmt::Formatter<'_>, kind: &str, tcp: &TcpServer) -> fmt::Result {
    write!(formatter, "{kind}:{}", tcp.port)?;
    write_rest(formatter, tcp, tcp.interface == Host::Ip(Ipv4Addr::UNSPECIFIED.into()))
}

/// What follows the port.
fn write_rest(formatter: &mut fmt::Formatter<'_>, tcp: &TcpServer, everywhere: bool) -> fmt::Result {
    if !everywhere {
        write!(formatter, ":interface={}", tcp.interface)?;
    }
    match tcp.backlog {
        Some(backlog) => write!(formatter, ":backlog={backlog}"),
        None => Ok(()),
    }
}

const TCP: Names = Names { in_order: &["port", "interface", "backlog"], by_keyword: &[], aliases: &[] };
const TLS: Names = Names {
    in_order: &["port", "privateKey", "certKey"],
    by_keyword: &["extraCertChain", "interface", "backlog"],
    aliases: &[],
};

/// The kinds but `haproxy`, and the names of their arguments.
const KINDS: &[(&str, Names)] = &[
    ("tcp", TCP),
    ("tcp6", TCP),
    ("tls", TLS),
    ("ssl", TLS),
    ("unix", Names { in_order: &["address", "mode", "backlog", "lockfile"], by_keyword: &[], aliases: &[] }),
    ("systemd", Names { in_order: &["domain", "index"], by_keyword: &["name"], aliases: &[] }),
    ("fd", Names { in_order: &["fd"], by_keyword: &[], aliases: &[] }),
    ("stdio", Names { in_order: &[], by_keyword: &[], aliases: &[] }),
];

const KNOWN: &str = "tcp, tcp6, tls, ssl, unix, systemd, fd, stdio, haproxy";
