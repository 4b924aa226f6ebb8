//! What can be wrong with addresses and names as callers write them, and with looking names up.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::time::Duration;

/// Text that is no `ADDRESS:PORT`, or, where one may connect, no `HOST:PORT`. Says which part is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidAddress {
    pub(crate) text: String,
    pub(crate) wanted: Wanted,
    pub(crate) fault: AddressFault,
}

/// What the text should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Where only numbers will do.
    Address,
    /// Where names will do, too.
    Target,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressFault {
    NoPort,
    Port,
    NoHost,
    /// An IPv6 address without its brackets.
    Bare,
    NotIp,
    Name(NameFault),
}

impl InvalidAddress {
    fn problem(&self) -> String {
        let text = self.text.escape_debug().to_string();
        let (host, port) = text.rsplit_once(':').unwrap_or((&text, ""));
        match (self.fault, self.wanted) {
            (AddressFault::NoPort, Wanted::Address) => {
                "there is no port, as in 127.0.0.1:7000 or [::1]:7000".to_string()
            }
            (AddressFault::NoPort, Wanted::Target) => {
                "there is no port, as in example.org:443, 127.0.0.1:7000 or [::1]:7000".to_string()
            }
            (AddressFault::Port, _) => format!("the port `{port}` is not a number from 0 to 65535"),
            (AddressFault::NoHost, Wanted::Address) => {
                "there is no address before the port; 0.0.0.0 and [::] are all of this host".to_string()
            }
            (AddressFault::NoHost, Wanted::Target) => "there is no host before the port".to_string(),
            (AddressFault::Bare, _) => {
                let whole = text.parse::<Ipv6Addr>().is_ok();
                let (host, port) = if whole { (text.as_str(), "7000") } else { (host, port) };
                format!("an IPv6 address stands in brackets before its port, as in [{host}]:{port}")
            }
            (AddressFault::NotIp, Wanted::Address) => {
                format!("`{host}` is not an IP address, and names are not resolved here")
            }
            (AddressFault::NotIp, Wanted::Target) => format!("`{host}` is not an IP address"),
            (AddressFault::Name(fault), _) => format!("`{host}` is not a host name: {fault}"),
        }
    }
}

impl fmt::Display for InvalidAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.wanted {
            Wanted::Address => "an address",
            Wanted::Target => "a target",
        };
        write!(formatter, "`{}` is not {kind}: {}", self.text.escape_debug(), self.problem())
    }
}

impl Error for InvalidAddress {}

/// Text that is no name of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName {
    pub(crate) name: String,
    pub(crate) fault: NameFault,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameFault {
    Empty,
    TooLong,
    EmptyLabel,
    LongLabel,
    Hyphen,
    Symbol(char),
    Number,
}

impl fmt::Display for NameFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameFault::Empty => formatter.write_str("it is empty"),
            NameFault::TooLong => formatter.write_str("it is longer than 253 bytes"),
            NameFault::EmptyLabel => formatter.write_str("it has an empty label"),
            NameFault::LongLabel => formatter.write_str("it has a label longer than 63 bytes"),
            NameFault::Hyphen => formatter.write_str("a label begins or ends with a hyphen"),
            NameFault::Symbol(symbol) => {
                write!(formatter, "it may not contain {symbol:?}")?;
                if symbol.is_ascii() {
                    return Ok(());
                }
                formatter.write_str(" (other alphabets come encoded, as xn--…)")
            }
            NameFault::Number => formatter.write_str("its last label is a number, and it is no address"),
        }
    }
}

impl fmt::Display for InvalidName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` is not a host name: {}", self.name.escape_debug(), self.fault)
    }
}

impl Error for InvalidName {}

/// Why there is no address for a name.
#[derive(Debug)]
#[non_exhaustive]
pub enum ResolveError {
    /// It is no name, so nobody was asked.
    InvalidName(InvalidName),
    /// There is no such name, or it has no address.
    NotFound {
        /// The name.
        name: String,
    },
    /// There was no answer in time.
    TimedOut {
        /// The name.
        name: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// Too many lookups wait already: see [`Config::resolver_queue_max`](crate::Config::resolver_queue_max).
    Busy {
        /// The name.
        name: String,
        /// How many lookups wait.
        waiting: usize,
    },
    /// The lookup failed. The system's resolver says so of names that do not exist, too.
    Failed {
        /// The name.
        name: String,
        /// What the resolver said.
        source: io::Error,
    },
}

impl fmt::Display for ResolveError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResolveError::InvalidName(error) => write!(formatter, "{error}"),
            ResolveError::NotFound { name } => write!(formatter, "`{name}` has no address"),
            ResolveError::TimedOut { name, after } => {
                write!(formatter, "the address of `{name}` was not found within {after:?}")
            }
            ResolveError::Busy { name, waiting } => {
                write!(formatter, "`{name}` cannot be looked up: {waiting} lookups are waiting already")
            }
            ResolveError::Failed { name, source } => {
                write!(formatter, "`{name}` cannot be looked up: {source}")
            }
        }
    }
}

impl Error for ResolveError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ResolveError::InvalidName(error) => error.source(),
            ResolveError::Failed { source, .. } => source.source(),
            ResolveError::NotFound { .. } | ResolveError::TimedOut { .. } | ResolveError::Busy { .. } => None,
        }
    }
}

impl From<InvalidName> for ResolveError {
    fn from(error: InvalidName) -> Self {
        ResolveError::InvalidName(error)
    }
}
