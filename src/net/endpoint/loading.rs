//! Endpoints on their way from text to use: their files are read and the names of their own addresses looked up, once for
//! all shards. Opens no socket.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::client::{ClientEndpoint, TcpClient};
use super::inherited::{self, Inherited};
use super::server::{ServerEndpoint, TcpServer};
use super::values::{Host, UnixName};
use crate::addr::{InvalidPath, UnixAddr};
use crate::error::InvalidName;
use crate::net::host_name::HostName;
use crate::net::ip_network::IpNetwork;
use crate::net::lookup_threads::{Job, Limits, LookupThreads, Refusal};
use crate::net::proxy_protocol::{Addresses, EncodeError, Tlv, Version};
use crate::net::target::ConnectTarget;
use crate::net::tls::{self, TlsClientConfig, TlsServerConfig};

/// A [`ServerEndpoint`] to listen on with [`Shard::listen`](crate::Shard::listen) and
/// [`Shard::serve`](crate::Shard::serve); made by [`ServerEndpoint::load`]. Cheap to clone; clones are the same.
///
/// # Threads
/// `Send` and `Sync`: load it once, and let all shards listen with it. TLS sessions are then resumed on any of them.
#[derive(Clone, Debug)]
pub struct LoadedServer {
    pub(crate) place: ServerPlace,
    pub(crate) tls: Option<TlsServerConfig>,
    /// Set where a proxy's header comes first.
    pub(crate) header: Option<HeaderRule>,
}

/// Where to listen.
#[derive(Clone, Debug)]
pub(crate) enum ServerPlace {
    Tcp {
        addr: SocketAddr,
        backlog: Option<u32>,
    },
    Unix {
        name: UnixAddr,
        mode: Option<u32>,
        backlog: Option<u32>,
        lock: bool,
    },
    /// It listens already.
    Inherited(Inherited),
}

/// Who has to send a header, and by when.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeaderRule {
    /// Everybody, unless given.
    pub(crate) trusted: Option<Arc<[IpNetwork]>>,
    /// `Config::proxy_header_timeout`, unless given.
    pub(crate) timeout: Option<Duration>,
}

/// A [`ClientEndpoint`] to connect to with [`Shard::connect`](crate::Shard::connect) and
/// [`TcpStream::connect_to`](crate::TcpStream::connect_to); made by [`ClientEndpoint::load`]. Cheap to clone; clones are the
/// same.
///
/// # Threads
/// `Send` and `Sync`: load it once, and use it on all shards. TLS sessions are then resumed from any of them.
#[derive(Clone, Debug)]
pub struct LoadedClient {
    pub(crate) place: ClientPlace,
    /// With whom, by which name.
    pub(crate) tls: Option<(TlsClientConfig, Arc<str>)>,
    /// What goes out before everything.
    pub(crate) announcement: Option<Arc<[u8]>>,
}

/// Where to connect to.
#[derive(Clone, Debug)]
pub(crate) enum ClientPlace {
    Tcp { target: ConnectTarget, timeout: Option<Duration>, bind: Option<IpAddr> },
    Unix { name: UnixAddr, timeout: Option<Duration>, check: bool },
}

/// Why an endpoint cannot be used. Names the endpoint and the cause.
#[derive(Debug)]
pub struct LoadError {
    endpoint: String,
    problem: LoadProblem,
}

/// What keeps an endpoint from being used.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadProblem {
    /// No address is known by the name of its interface.
    Host(io::Error),
    /// That is no name that a host may have.
    Name(InvalidName),
    /// Its certificates, keys or roots cannot be used.
    Tls(Box<dyn Error + Send + Sync>),
    /// No UNIX socket can have that name.
    Path(InvalidPath),
    /// That descriptor is none of a stream socket that listens, or not of the family that is wanted.
    Descriptor {
        /// Its number.
        number: i32,
        /// What is wrong with it.
        source: io::Error,
    },
    /// systemd has passed no such socket; the text says what it has passed.
    NotPassed(String),
    /// What it says is not there, for this reason.
    Unsupported(&'static str),
}

impl LoadError {
    /// The endpoint, as text.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What is wrong.
    pub fn problem(&self) -> &LoadProblem {
        &self.problem
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot use the endpoint `{}`: ", self.endpoint.escape_debug())?;
        match &self.problem {
            LoadProblem::Host(source) => write!(formatter, "{source}"),
            LoadProblem::Name(source) => write!(formatter, "{source}"),
            LoadProblem::Tls(source) => write!(formatter, "{source}"),
            LoadProblem::Path(source) => write!(formatter, "{source}"),
            LoadProblem::Descriptor { number, source } => write!(formatter, "descriptor {number}: {source}"),
            LoadProblem::NotPassed(what) => formatter.write_str(what),
            LoadProblem::Unsupported(why) => formatter.write_str(why),
        }
    }
}

impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.problem {
            LoadProblem::Host(source) | LoadProblem::Descriptor { source, .. } => source.source(),
            LoadProblem::Tls(source) => source.source(),
            LoadProblem::Name(_)
            | LoadProblem::Path(_)
            | LoadProblem::NotPassed(_)
            | LoadProblem::Unsupported(_) => None,
        }
    }
}

impl ServerEndpoint {
    /// Makes it ready to be listened on: reads its certificates, and looks up the address of an interface that is given by
    /// name, and the sockets of `systemd:` and `fd:`. Do it once, before the runtime starts, and let all shards listen with what comes out.
    ///
    /// ```no_run
    /// use shardwise::{Runtime, ServerEndpoint, Shard, TcpStream};
    ///
    /// fn main() -> shardwise::Result<()> {
    ///     let text = std::env::args().nth(1).unwrap_or_else(|| "tcp:7000:interface=127.0.0.1".to_string());
    ///     let server = text.parse::<ServerEndpoint>()?.load()?;
    ///     Runtime::new().run(async move |shard: Shard| {
    ///         shard.serve(&server, async |mut stream: TcpStream| {
    ///             while let Some(chunk) = stream.read_chunk().await? {
    ///                 stream.write_all(&chunk).await?;
    ///             }
    ///             Ok(())
    ///         })?;
    ///         Ok(())
    ///     })?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`LoadError`] names the endpoint and the cause. `stdio:` cannot be listened on: standard input and output need not be
    /// sockets, and are one connection at the most.
    /// # Threads
    /// Blocks: for the reading of files, and for at most 2 s for a name, the first address of which counts.
    pub fn load(&self) -> Result<LoadedServer, LoadError> {
        self.read_in().map_err(|problem| LoadError { endpoint: self.to_string(), problem })
    }

    fn read_in(&self) -> Result<LoadedServer, LoadProblem> {
        match self {
            ServerEndpoint::Tcp(tcp) => Ok(tcp.read_in()?.into()),
            ServerEndpoint::Unix(unix) => {
                let name = unix.address.to_addr()?;
                // An abstract name has no file, hence no lock beside it.
                let lock = unix.lockfile && name.path().is_some();
                Ok(ServerPlace::Unix { name, mode: unix.mode, backlog: unix.backlog, lock }.into())
            }
            ServerEndpoint::Systemd(systemd) => {
                Ok(ServerPlace::Inherited(inherited::from_systemd(systemd)?).into())
            }
            ServerEndpoint::Fd(number) => Ok(ServerPlace::Inherited(inherited::at(*number, None)?).into()),
            ServerEndpoint::Stdio => {
                Err(LoadProblem::Unsupported("standard input and output cannot be listened on"))
            }
            ServerEndpoint::Tls(endpoint) => {
                let chain = endpoint.extra_chain.as_deref();
                let tls = tls::loading::server(&endpoint.identity, chain);
                let tls = tls.map_err(|error| LoadProblem::Tls(error.into()))?;
                Ok(LoadedServer { place: endpoint.tcp.read_in()?, tls: Some(tls), header: None })
            }
            ServerEndpoint::Haproxy(inner) => {
                Ok(LoadedServer { header: Some(HeaderRule::default()), ..inner.read_in()? })
            }
        }
    }
}

impl From<ServerPlace> for LoadedServer {
    fn from(place: ServerPlace) -> Self {
        LoadedServer { place, tls: None, header: None }
    }
}

impl UnixName {
    fn to_addr(&self) -> Result<UnixAddr, LoadProblem> {
        let name = match self {
            UnixName::Path(path) => UnixAddr::from_path(path),
            UnixName::Abstract(name) => UnixAddr::from_abstract(name.as_bytes()),
        };
        name.map_err(LoadProblem::Path)
    }
}

impl TcpServer {
    fn read_in(&self) -> Result<ServerPlace, LoadProblem> {
        let addr = match &self.interface {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port),
            Host::Scoped { ip, zone } => look_up(format!("{ip}%{zone}"), self.port)?,
            Host::Name(name) => {
                HostName::new(name).map_err(LoadProblem::Name)?;
                look_up(name.clone(), self.port)?
            }
        };
        Ok(ServerPlace::Tcp { addr, backlog: self.backlog })
    }
}

impl LoadedServer {
    /// Takes the headers of these proxies alone: the connection of anybody else ends at once, with a line in the log, and so
    /// does that of any UNIX socket, which is in no network: there the mode of the file says who is trusted. For endpoints of the kind `haproxy:`, which else believe everybody; others stay as they are.
    pub fn trust_proxies(mut self, networks: impl IntoIterator<Item = IpNetwork>) -> Self {
        if let Some(header) = &mut self.header {
            header.trusted = Some(networks.into_iter().collect());
        }
        self
    }

    /// How long a proxy's header may take, from the connection on, instead of
    /// [`Config::proxy_header_timeout`](crate::Config::proxy_header_timeout).
    pub fn proxy_header_timeout(mut self, after: Duration) -> Self {
        if let Some(header) = &mut self.header {
            header.timeout = Some(after);
        }
        self
    }

    /// The IP address and port that it is to listen on, unless it is a UNIX socket; port 0 is the system's choice.
    pub fn addr(&self) -> Option<SocketAddr> {
        match &self.place {
            ServerPlace::Tcp { addr, .. } => Some(*addr),
            ServerPlace::Inherited(inherited) => inherited.addr.as_ip(),
            ServerPlace::Unix { .. } => None,
        }
    }

    /// Whether its connections begin with something else than the application's bytes: TLS, or a proxy's header.
    pub fn is_plain(&self) -> bool {
        self.tls.is_none() && self.header.is_none()
    }
}

impl ClientEndpoint {
    /// Makes it ready to be connected to: reads its certificates and roots. The names of hosts are looked up when it is
    /// connected to, and each time anew.
    ///
    /// # Errors
    /// [`LoadError`] names the endpoint and the cause. TLS within TLS is not spoken.
    /// # Threads
    /// Blocks for the reading of files; those of the system's roots take some milliseconds.
    pub fn load(&self) -> Result<LoadedClient, LoadError> {
        self.read_in().map_err(|problem| LoadError { endpoint: self.to_string(), problem })
    }

    fn read_in(&self) -> Result<LoadedClient, LoadProblem> {
        match self {
            ClientEndpoint::Tcp(tcp) => {
                Ok(LoadedClient { place: tcp.read_in()?, tls: None, announcement: None })
            }
            ClientEndpoint::Tls(endpoint) => {
                let over = endpoint.over.read_in()?;
                if over.tls.is_some() {
                    return Err(LoadProblem::Unsupported("TLS within TLS is not spoken"));
                }
                let name = match &endpoint.name {
                    Host::Ip(ip) => ip.to_string(),
                    Host::Scoped { ip, .. } => ip.to_string(),
                    Host::Name(name) => HostName::new(name).map_err(LoadProblem::Name)?.to_string(),
                };
                let tls = tls::loading::client(endpoint.identity.as_ref(), endpoint.trust_roots.as_deref());
                let tls = tls.map_err(|error| LoadProblem::Tls(error.into()))?;
                Ok(LoadedClient { tls: Some((tls, name.into())), ..over })
            }
            ClientEndpoint::Unix(unix) => {
                let (timeout, check) = (unix.timeout, unix.lockfile);
                let place = ClientPlace::Unix { name: unix.path.to_addr()?, timeout, check };
                Ok(LoadedClient { place, tls: None, announcement: None })
            }
        }
    }
}

impl TcpClient {
    fn read_in(&self) -> Result<ClientPlace, LoadProblem> {
        let port = self.port;
        let target = match &self.host {
            Host::Ip(ip) => ConnectTarget::Addr(SocketAddr::new(*ip, port)),
            Host::Scoped { ip, zone } => ConnectTarget::Addr(look_up(format!("{ip}%{zone}"), port)?),
            Host::Name(name) => {
                ConnectTarget::Name { host: HostName::new(name).map_err(LoadProblem::Name)?, port }
            }
        };
        Ok(ClientPlace::Tcp { target, timeout: self.timeout, bind: self.bind_address })
    }
}

impl LoadedClient {
    /// TCP to this target, and nothing else.
    pub(crate) fn plain(target: ConnectTarget) -> Self {
        let place = ClientPlace::Tcp { target, timeout: None, bind: None };
        LoadedClient { place, tls: None, announcement: None }
    }

    /// How long connecting may take, if the endpoint says so.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        match &self.place {
            ClientPlace::Tcp { timeout, .. } | ClientPlace::Unix { timeout, .. } => *timeout,
        }
    }

    /// The same server, told by a PROXY protocol header whose connection it is: the header goes out before everything
    /// else, TLS included. Version 1 has no room for `tlvs`, and leaves them out.
    ///
    /// ```
    /// use shardwise::proxy_protocol::{Addresses, Version};
    /// use shardwise::{LoadedClient, Result, TcpStream};
    ///
    /// async fn forward(client: &TcpStream, upstream: &LoadedClient) -> Result<TcpStream> {
    ///     let addresses = Addresses::tcp(client.peer_addr()?, client.local_addr()?);
    ///     let upstream = upstream.clone().announcing(Version::V2, &addresses, &[])?;
    ///     Ok(TcpStream::connect_to(&upstream).await?)
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`Addresses::encode_v2`].
    pub fn announcing(
        mut self,
        version: Version,
        addresses: &Addresses<'_>,
        tlvs: &[Tlv<'_>],
    ) -> Result<Self, EncodeError> {
        let mut header = Vec::new();
        match version {
            Version::V1 => addresses.encode_v1(&mut header),
            Version::V2 => addresses.encode_v2(tlvs, &mut header)?,
        }
        self.announcement = Some(header.into());
        Ok(self)
    }
}

/// The first address of one of this host's names.
fn look_up(name: String, port: u16) -> Result<SocketAddr, LoadProblem> {
    // One thread, which ends with its job. It cannot be cancelled, so it is left behind when patience ends.
    let threads = LookupThreads::new(Limits { threads_max: 1, queue_max: 1, idle: Duration::ZERO });
    let (answer, answered) = mpsc::channel();
    threads.submit(Box::new(Question { name, port, answer })).map_err(|refusal| match refusal {
        Refusal::NoThread(error) => LoadProblem::Host(error),
        Refusal::Full(_) => unreachable!("nothing else was submitted"),
    })?;
    let silent = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {LOOKUP_PATIENCE:?}"));
    let found = answered.recv_timeout(LOOKUP_PATIENCE).map_err(|_| silent()).flatten();
    found.map_err(LoadProblem::Host)
}

struct Question {
    name: String,
    port: u16,
    answer: mpsc::Sender<io::Result<SocketAddr>>,
}

impl Job for Question {
    fn is_wanted(&self) -> bool {
        true
    }

    fn run(self: Box<Self>) {
        let found = (self.name.as_str(), self.port).to_socket_addrs();
        let first = found.and_then(|mut found| {
            found.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))
        });
        // Nobody listens any more when patience has ended.
        let _ = self.answer.send(first);
    }
}

/// Names of one's own addresses are in the hosts file; name servers may take longer to give up than a start should.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(2);
