//! Names of hosts, checked before anybody is asked about them. Resolves none.

use std::fmt;
use std::net::IpAddr;

use crate::error::{InvalidName, NameFault};

/// The name of a host, such as `example.org`, in lower case (RFC 4343).
///
/// Labels of at most 63 letters, digits, hyphens and underscores, separated by dots, at most 253 in all; a dot at the end
/// makes it absolute (RFC 1123 §2.1; underscores occur in practice). The last label is no number: `127.1` and `0x7f000001`,
/// which some system calls take for addresses, are refused. Names of other alphabets come in their encoded form
/// (`xn--…`, RFC 5891).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName {
    name: Box<str>,
}

impl HostName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`InvalidName`] says what is wrong with it. An IP address is no name.
    pub fn new(name: &str) -> Result<HostName, InvalidName> {
        match fault(name) {
            None => Ok(HostName { name: name.to_ascii_lowercase().into() }),
            Some(fault) => Err(InvalidName { name: name.to_string(), fault }),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

impl std::str::FromStr for HostName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        HostName::new(text)
    }
}

/// Whoever is meant by `host`: an address, or a host to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Ip(IpAddr),
    Name(HostName),
}

impl Host {
    pub(crate) fn new(host: &str) -> Result<Host, InvalidName> {
        match host.parse() {
            Ok(ip) => Ok(Host::Ip(ip)),
            Err(_) => HostName::new(host).map(Host::Name),
        }
    }
}

/// What keeps `name` from being one.
fn fault(name: &str) -> Option<NameFault> {
    let relative = name.strip_suffix('.').unwrap_or(name);
    if relative.is_empty() {
        return Some(NameFault::Empty);
    }
    let stranger = |symbol: &char| !(symbol.is_ascii_alphanumeric() || matches!(symbol, '-' | '_' | '.'));
    if let Some(symbol) = name.chars().find(stranger) {
        return Some(NameFault::Symbol(symbol));
    }
    if relative.len() > NAME_BYTES_MAX {
        return Some(NameFault::TooLong);
    }
    let mut last = "";
    for label in relative.split('.') {
        if label.is_empty() {
            return Some(NameFault::EmptyLabel);
        }
        if label.len() > LABEL_BYTES_MAX {
            return Some(NameFault::LongLabel);
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Some(NameFault::Hyphen);
        }
        last = label;
    }
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let is_number = match hexadecimal {
        Some(digits) => digits.bytes().all(|digit| digit.is_ascii_hexdigit()),
        None => last.bytes().all(|digit| digit.is_ascii_digit()),
    };
    is_number.then_some(NameFault::Number)
}

const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_use_are_names() {
        for name in
            ["localhost", "a", "example.org", "example.org.", "db_1", "_dns.example", "xn--bcher-kva.example"]
        {
            assert_eq!(HostName::new(name).unwrap().as_str(), name);
        }
        let label = "a".repeat(63);
        let longest = [&*label; 4].join(".");
        HostName::new(&longest[..253]).unwrap();
        assert_eq!(HostName::new("Example.ORG").unwrap().to_string(), "example.org");
    }

    #[test]
    fn what_is_no_name_says_why() {
        let message = |name: &str| HostName::new(name).unwrap_err().to_string();
        assert_eq!(message(""), "`` is not a host name: it is empty");
        assert_eq!(message("."), "`.` is not a host name: it is empty");
        assert_eq!(message("a..b"), "`a..b` is not a host name: it has an empty label");
        assert_eq!(message("a b"), "`a b` is not a host name: it may not contain ' '");
        assert_eq!(message("a\0"), "`a\\0` is not a host name: it may not contain '\\0'");
        assert_eq!(
            message("bücher.example"),
            "`bücher.example` is not a host name: it may not contain 'ü' (other alphabets come encoded, as xn--…)"
        );
        assert_eq!(message("-a.b"), "`-a.b` is not a host name: a label begins or ends with a hyphen");
        assert!(message(&"a".repeat(64)).ends_with("it has a label longer than 63 bytes"));
        HostName::new(&"a.".repeat(127)).expect("253 bytes and the dot at the end");
        assert!(message(&"ab.".repeat(90)).ends_with("it is longer than 253 bytes"));
    }

    #[test]
    fn numbers_that_some_take_for_addresses_are_refused() {
        for name in
            ["127.1", "0x7f000001", "2130706433", "1.2.3.4.5", "010.0.0.1", "0x7f.0.0.0x1", "0x", "1.2.3."]
        {
            let message = HostName::new(name).unwrap_err().to_string();
            assert!(message.ends_with("its last label is a number, and it is no address"), "{message}");
        }
        assert_eq!(Host::new("127.0.0.1").unwrap(), Host::Ip([127, 0, 0, 1].into()));
        assert_eq!(Host::new("::1").unwrap(), Host::Ip("::1".parse().unwrap()));
        HostName::new("3com.example").unwrap();
        HostName::new("0xyz").unwrap();
    }
}
