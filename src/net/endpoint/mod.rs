//! Endpoints as text: where a server listens and whom a client connects to, as somebody writes it on a command line or
//! in a configuration. Plain data: opens nothing and looks nothing up.
//!
//! The grammar is Twisted's: `:` separates, `=` marks a keyword, `\` takes the special meaning of the character behind
//! it. The first word says the kind; what follows may be given in order or by keyword. An IPv6 address may stand in
//! brackets instead of having its colons escaped. `HOST:PORT` alone is TCP.
//!
//! | server | what follows, in order; then by keyword only |
//! |---|---|
//! | `tcp:` | `port` `interface` (0.0.0.0; also a host name) `backlog` |
//! | `tcp6:` | `port` `interface` (`::`) `backlog` |
//! | `tls:` or `ssl:` | `port` `privateKey` `certKey` (in the same file); `extraCertChain` `interface` `backlog` |
//! | `unix:` | `address` (`@name` is abstract) `mode` (octal; 600) `backlog` `lockfile` (1) |
//! | `systemd:` | `domain` (`INET`, `INET6`, `UNIX`), `index` or `name` |
//! | `fd:` | `fd` |
//! | `stdio:` | (cannot be listened on) |
//! | `haproxy:` | another server, before whose bytes a proxy puts a [header](crate::proxy_protocol) |
//!
//! | client | what follows, in order; then by keyword only |
//! |---|---|
//! | `tcp:` | `host` `port` `timeout` (seconds) `bindAddress` |
//! | `tls:` or `ssl:` | the same; `certificate` `privateKey` `trustRoots` `endpoint` (another client, instead of `port`, `timeout` and `bindAddress`) |
//! | `unix:` | `path` `timeout` `lockfile` (0) |
//!
//! `ssl:` clients also take `certKey` and `caCertsDir`, Twisted's words for `certificate` and `trustRoots`; unlike
//! there, the server's name is verified.
//!
//! Values print as text that reads as the same value again. Paths that are no UTF-8 cannot be written and print with
//! replacement characters. Text has at most 4,096 bytes.
//!
//! ```
//! use shardwise::endpoint::quote;
//! use shardwise::{ClientEndpoint, ServerEndpoint};
//!
//! let server: ServerEndpoint = "tcp:8080:interface=127.0.0.1".parse()?;
//! assert_eq!("127.0.0.1:8080".parse(), Ok(server));
//!
//! let path = "/run/a:b";
//! let server: ServerEndpoint = format!("haproxy:unix:{}:mode=660", quote(path)).parse()?;
//! assert_eq!(server.to_string(), r"haproxy:unix:/run/a\:b:mode=660");
//!
//! let client: ClientEndpoint = r"tls:example.com:endpoint=unix\:/run/proxy".parse()?;
//! assert!(matches!(client, ClientEndpoint::Tls(_)));
//!
//! let error = "tcp:80x80:backlog=9".parse::<ServerEndpoint>().unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "\
//! endpoint: expected a port from 0 to 65535, at byte 4
//!   tcp:80x80:backlog=9
//!       ^^^^^"
//! );
//! # Ok::<(), shardwise::endpoint::EndpointError>(())
//! ```

mod client;
mod error;
mod grammar;
mod inherited;
mod loading;
mod server;
mod values;

pub use self::client::{ClientEndpoint, TcpClient, TlsClient, UnixClient};
pub use self::error::EndpointError;
pub use self::grammar::quote;
pub(crate) use self::inherited::Inherited;
pub(crate) use self::loading::{ClientPlace, HeaderRule, ServerPlace};
pub use self::loading::{LoadError, LoadProblem, LoadedClient, LoadedServer};
pub use self::server::{
    ServerEndpoint, SystemdDomain, SystemdServer, SystemdSocket, TcpServer, TlsServer, UnixServer,
};
pub use self::values::{Host, TlsIdentity, UnixName};

#[cfg(test)]
mod tests;
