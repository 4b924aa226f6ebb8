//! The values that endpoints are made of: how each is read and printed.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Problem, Wrong};
use super::grammar::{Word, quote};

/// A host: an address, or a name that somebody else looks up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// An IPv6 address and the network it is in, as in `fe80::1%eth0` (RFC 4007 §11).
    Scoped {
        /// The address.
        ip: Ipv6Addr,
        /// The name or number of an interface.
        zone: String,
    },
    /// A host name.
    Name(String),
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Host::Ip(ip)
    }
}

impl fmt::Display for Host {
    /// As before a port: IPv6 in brackets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(IpAddr::V4(ip)) => write!(formatter, "{ip}"),
            Host::Ip(IpAddr::V6(ip)) => write!(formatter, "[{ip}]"),
            Host::Scoped { ip, zone } => write!(formatter, "[{ip}%{zone}]"),
            Host::Name(name) => formatter.write_str(&quote(name)),
        }
    }
}

/// The name of a UNIX socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnixName {
    /// A file.
    Path(PathBuf),
    /// A name in the abstract namespace (`unix(7)`), without its leading zero; written `@name`.
    Abstract(String),
}

impl fmt::Display for UnixName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnixName::Path(path) => formatter.write_str(&quote(&path.to_string_lossy())),
            UnixName::Abstract(name) => write!(formatter, "@{}", quote(name)),
        }
    }
}

/// Where a certificate and its key lie: PEM files, or one file for both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TlsIdentity {
    /// The certificate, perhaps with its chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub private_key: PathBuf,
}

impl TlsIdentity {
    /// An identity in these files.
    pub fn new(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        TlsIdentity { certificate: certificate.into(), private_key: private_key.into() }
    }
}

pub(super) fn host(word: &Word) -> Result<Host, Wrong> {
    let text = word.text();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if bare.is_none()
        && let Ok(ip) = text.parse()
    {
        return Ok(Host::Ip(ip));
    }
    let address = bare.unwrap_or(&text);
    if let Ok(ip) = address.parse() {
        return Ok(Host::Ip(IpAddr::V6(ip)));
    }
    if let Some((ip, zone)) = address.split_once('%')
        && let Ok(ip) = ip.parse()
        && !zone.is_empty()
        && zone.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    {
        return Ok(Host::Scoped { ip, zone: zone.to_owned() });
    }
    if bare.is_some() {
        return Err(word.expected("an IPv6 address between the brackets"));
    }
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(word.expected("an IPv4 address of four numbers from 0 to 255"));
    }
    let sayable = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.chars().all(sayable) {
        return Err(word.expected("a host: a name, an IPv4 address, or an IPv6 address in brackets"));
    }
    Ok(Host::Name(text))
}

pub(super) fn ip(word: &Word) -> Result<IpAddr, Wrong> {
    match host(word) {
        Ok(Host::Ip(ip)) => Ok(ip),
        _ => Err(word.expected("an IP address")),
    }
}

pub(super) fn port(word: &Word) -> Result<u16, Wrong> {
    number(word, u16::MAX.into())
        .and_then(|port| u16::try_from(port).ok())
        .ok_or_else(|| word.expected("a port from 0 to 65535"))
}

pub(super) fn backlog(word: &Word) -> Result<u32, Wrong> {
    number(word, i32::MAX as u32)
        .filter(|backlog| *backlog > 0)
        .ok_or_else(|| word.expected("a number of waiting connections from 1 on"))
}

/// A decimal number without a sign.
pub(super) fn number(word: &Word, most: u32) -> Option<u32> {
    let text = word.text();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok().filter(|number| *number <= most) } else { None }
}

pub(super) fn mode(word: &Word) -> Result<u32, Wrong> {
    let text = word.text();
    let octal = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = if octal { u32::from_str_radix(&text, 8).ok() } else { None };
    mode.filter(|mode| *mode <= 0o777).ok_or_else(|| word.expected("an octal mode from 000 to 777"))
}

pub(super) fn switch(word: &Word) -> Result<bool, Wrong> {
    match word.text().as_str() {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(word.expected("0 or 1")),
    }
}

pub(super) fn seconds(word: &Word) -> Result<Duration, Wrong> {
    let text = word.text();
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let duration = if digits(whole) && digits(fraction) && fraction.len() <= 9 {
        let nanos = format!("{fraction:0<9}").parse().ok();
        whole.parse::<u32>().ok().zip(nanos).map(|(whole, nanos)| Duration::new(whole.into(), nanos))
    } else {
        None
    };
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| word.expected("a number of seconds above 0, such as 30 or 0.5"))
}

/// The form that [`seconds`] reads.
pub(super) struct Seconds(pub(super) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if nanos == 0 {
            write!(formatter, "{whole}")
        } else {
            let fraction = format!("{nanos:09}");
            write!(formatter, "{whole}.{}", fraction.trim_end_matches('0'))
        }
    }
}

pub(super) fn path(word: &Word) -> Result<PathBuf, Wrong> {
    let text = word.text();
    if text.is_empty() || text.contains('\0') { Err(word.expected("a path")) } else { Ok(text.into()) }
}

pub(super) fn unix_name(word: &Word) -> Result<UnixName, Wrong> {
    let text = word.text();
    if text.is_empty() || text.contains('\0') {
        return Err(word.expected("a path, or @ and a name"));
    }
    let marked = if word.starts_escaped { None } else { text.strip_prefix('@') };
    if marked.unwrap_or(&text).len() > SUN_PATH_BYTES_MAX {
        return Err(word.expected("a path or name of at most 107 bytes"));
    }
    match marked {
        Some("") => Err(word.expected("a name behind the @")),
        Some(name) => Ok(UnixName::Abstract(name.to_owned())),
        None => Ok(UnixName::Path(text.into())),
    }
}

/// The identity in one file or two.
pub(super) fn identity(certificate: Option<&Word>, key: Option<&Word>) -> Result<Option<TlsIdentity>, Wrong> {
    let both = match (certificate, key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => [certificate, key],
        (Some(one), None) | (None, Some(one)) => [one, one],
    };
    Ok(Some(TlsIdentity::new(path(both[0])?, path(both[1])?)))
}

/// Prints `:name=path`.
pub(super) fn write_path(formatter: &mut fmt::Formatter<'_>, name: &str, path: &Path) -> fmt::Result {
    write!(formatter, ":{name}={}", quote(&path.to_string_lossy()))
}

/// What is wrong with a text whose first word is no kind.
pub(super) fn bare_host_and_port(
    arguments: &[super::grammar::Argument],
    known: &'static str,
) -> Result<(Host, u16), Wrong> {
    let first = &arguments[0].value;
    let last = &arguments[arguments.len() - 1].value;
    if let Some(keyword) = &arguments[0].keyword {
        let at = keyword.at.start..first.at.end;
        return Err(Wrong { at, problem: Problem::UnknownKind(known) });
    }
    if arguments.iter().any(|argument| argument.keyword.is_some()) {
        return Err(first.wrong(Problem::UnknownKind(known)));
    }
    match arguments {
        [host_word, port_word] if !host_word.value.is_empty() => {
            if port_word.value.text().starts_with(|c: char| c.is_ascii_digit()) {
                Ok((host(&host_word.value)?, port(&port_word.value)?))
            } else if host(&host_word.value).is_ok_and(|host| !matches!(host, Host::Name(_))) {
                Err(port_word.value.expected("a port from 0 to 65535"))
            } else {
                Err(first.wrong(Problem::UnknownKind(known)))
            }
        }
        _ => {
            let parts: Vec<String> = arguments.iter().map(|argument| argument.value.text()).collect();
            let before_port = parts[..parts.len() - 1].join(":");
            if [before_port, parts.join(":")].iter().any(|text| text.parse::<Ipv6Addr>().is_ok()) {
                let at = first.at.start..last.at.end;
                return Err(Wrong { at, problem: Problem::NeedsBrackets });
            }
            Err(first.wrong(Problem::UnknownKind(known)))
        }
    }
}

/// RFC 1035 §2.3.4.
const NAME_BYTES_MAX: usize = 253;

/// `sun_path` without its closing zero, or without the leading one of an abstract name.
const SUN_PATH_BYTES_MAX: usize = 107;
