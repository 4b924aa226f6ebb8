//! Whom a client connects to.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::error::{EndpointError, Problem, Wrong};
use super::grammar::{self, Arguments, Names, Source, quote};
use super::values::{self, Host, Seconds, TlsIdentity, UnixName, write_path};

/// Whom a client connects to, as text says it: see [the grammar](crate::endpoint).
///
/// ```
/// use shardwise::ClientEndpoint;
///
/// for text in ["tcp:example.com:80:timeout=2.5", "tls:[2001:db8::1]:443", "unix:@name"] {
///     let client: ClientEndpoint = text.parse()?;
///     assert_eq!(client.to_string(), text);
/// }
/// # Ok::<(), shardwise::endpoint::EndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClientEndpoint {
    /// TCP.
    Tcp(TcpClient),
    /// TLS over another endpoint.
    Tls(TlsClient),
    /// A UNIX stream socket.
    Unix(UnixClient),
}

/// A TCP client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TcpClient {
    /// Whom to connect to.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// How long connecting may take; [`Config::connect_timeout`](crate::Config::connect_timeout) unless given.
    pub timeout: Option<Duration>,
    /// The address to connect from; the system's choice unless given.
    pub bind_address: Option<IpAddr>,
}

/// A TLS client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TlsClient {
    /// Whom the server has to be, by its certificate.
    pub name: Host,
    /// The connection that is encrypted. In text it is TCP to the host of that name, unless `endpoint` says otherwise.
    pub over: Box<ClientEndpoint>,
    /// Whom the client says it is; nobody unless given.
    pub identity: Option<TlsIdentity>,
    /// A PEM file, or a folder of files `*.pem`, with the roots that are trusted; those of the platform unless given.
    pub trust_roots: Option<PathBuf>,
}

/// A client of a UNIX stream socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct UnixClient {
    /// The name of the socket.
    pub path: UnixName,
    /// How long connecting may take; [`Config::connect_timeout`](crate::Config::connect_timeout) unless given.
    pub timeout: Option<Duration>,
    /// Whether to look at the server's lock first, and to refuse if nobody holds it; false unless given.
    pub lockfile: bool,
}

impl TcpClient {
    /// TCP to this host and port.
    pub fn new(host: impl Into<Host>, port: u16) -> Self {
        TcpClient { host: host.into(), port, timeout: None, bind_address: None }
    }
}

impl TlsClient {
    /// TLS with the server of this name, over TCP or something else.
    pub fn new(name: impl Into<Host>, over: ClientEndpoint) -> Self {
        TlsClient { name: name.into(), over: Box::new(over), identity: None, trust_roots: None }
    }
}

impl UnixClient {
    /// The UNIX socket of this name.
    pub fn new(path: UnixName) -> Self {
        UnixClient { path, timeout: None, lockfile: false }
    }
}

impl FromStr for ClientEndpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        grammar::parse(text, read)
    }
}

fn read(source: Source<'_>) -> Result<ClientEndpoint, Wrong> {
    let mut arguments = source.split()?;
    let kind = arguments[0].value.text();
    let names = match kind.as_str() {
        _ if arguments[0].keyword.is_some() => None,
        "tcp" => Some(TCP),
        "tls" => Some(TLS),
        "ssl" => Some(Names { aliases: &[("certKey", "certificate"), ("caCertsDir", "trustRoots")], ..TLS }),
        "unix" => Some(UNIX),
        _ => None,
    };
    let Some(names) = names else {
        let (host, port) = values::bare_host_and_port(&arguments, KNOWN)?;
        return Ok(ClientEndpoint::Tcp(TcpClient::new(host, port)));
    };
    arguments.remove(0);
    let mut arguments = Arguments::read(arguments, names, source.end)?;
    Ok(match kind.as_str() {
        "tcp" => ClientEndpoint::Tcp(tcp(&mut arguments)?),
        "unix" => ClientEndpoint::Unix(unix(&mut arguments)?),
        _ => ClientEndpoint::Tls(tls(&mut arguments)?),
    })
}

fn tcp(arguments: &mut Arguments) -> Result<TcpClient, Wrong> {
    Ok(TcpClient {
        host: values::host(&arguments.need("host", "a host name or an address")?)?,
        port: values::port(&arguments.need("port", "a port from 0 to 65535")?)?,
        timeout: arguments.take("timeout").map(|word| values::seconds(&word)).transpose()?,
        bind_address: arguments.take("bindAddress").map(|word| values::ip(&word)).transpose()?,
    })
}

fn tls(arguments: &mut Arguments) -> Result<TlsClient, Wrong> {
    let (certificate, key) = (arguments.take("certificate"), arguments.take("privateKey"));
    let identity = values::identity(certificate.as_ref(), key.as_ref())?;
    let trust_roots = arguments.take("trustRoots").map(|word| values::path(&word)).transpose()?;
    let (name, over) = match arguments.take("endpoint") {
        None => {
            let tcp = tcp(arguments)?;
            (tcp.host.clone(), ClientEndpoint::Tcp(tcp))
        }
        Some(endpoint) => {
            let name = values::host(&arguments.need("host", "the name of the server")?)?;
            for other in ["port", "timeout", "bindAddress"] {
                if let Some(word) = arguments.take(other) {
                    return Err(word.wrong(Problem::Instead(
                        "this belongs into `endpoint`, with a backslash before each colon there",
                    )));
                }
            }
            (name, read(endpoint.source())?)
        }
    };
    Ok(TlsClient { name, over: Box::new(over), identity, trust_roots })
}

fn unix(arguments: &mut Arguments) -> Result<UnixClient, Wrong> {
    Ok(UnixClient {
        path: values::unix_name(&arguments.need("path", "a path, or @ and a name")?)?,
        timeout: arguments.take("timeout").map(|word| values::seconds(&word)).transpose()?,
        lockfile: arguments.take("lockfile").map(|word| values::switch(&word)).transpose()?.unwrap_or(false),
    })
}

impl fmt::Display for ClientEndpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientEndpoint::Tcp(tcp) => {
                formatter.write_str("tcp")?;
                write_tcp(formatter, tcp)
            }
            ClientEndpoint::Tls(tls) => {
                formatter.write_str("tls")?;
                match &*tls.over {
                    ClientEndpoint::Tcp(tcp) if tcp.host == tls.name => write_tcp(formatter, tcp)?,
                    over => write!(formatter, ":{}:endpoint={}", tls.name, quote(&over.to_string()))?,
                }
                if let Some(TlsIdentity { certificate, private_key }) = &tls.identity {
                    write_path(formatter, "certificate", certificate)?;
                    if private_key != certificate {
                        write_path(formatter, "privateKey", private_key)?;
                    }
                }
                match &tls.trust_roots {
                    Some(roots) => write_path(formatter, "trustRoots", roots),
                    None => Ok(()),
                }
            }
            ClientEndpoint::Unix(unix) => {
                write!(formatter, "unix:{}", unix.path)?;
                write_timeout(formatter, unix.timeout)?;
                if unix.lockfile { formatter.write_str(":lockfile=1") } else { Ok(()) }
            }
        }
    }
}

/// What follows the kind.
fn write_tcp(formatter: &mut fmt::Formatter<'_>, tcp: &TcpClient) -> fmt::Result {
    write!(formatter, ":{}:{}", tcp.host, tcp.port)?;
    write_timeout(formatter, tcp.timeout)?;
    match tcp.bind_address {
        Some(ip) => write!(formatter, ":bindAddress={}", Host::Ip(ip)),
        None => Ok(()),
    }
}

fn write_timeout(formatter: &mut fmt::Formatter<'_>, timeout: Option<Duration>) -> fmt::Result {
    match timeout {
        Some(timeout) => write!(formatter, ":timeout={}", Seconds(timeout)),
        None => Ok(()),
    }
}

const TCP: Names =
    Names { in_order: &["host", "port", "timeout", "bindAddress"], by_keyword: &[], aliases: &[] };
const TLS: Names = Names {
    in_order: &["host", "port", "timeout", "bindAddress"],
    by_keyword: &["certificate", "privateKey", "trustRoots", "endpoint"],
    aliases: &[],
};
const UNIX: Names = Names { in_order: &["path", "timeout", "lockfile"], by_keyword: &[], aliases: &[] };

const KNOWN: &str = "tcp, tls, ssl, unix";
