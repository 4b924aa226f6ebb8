//! Ranges of IP addresses, as they are written with a prefix length.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// All IP addresses that begin with the same bits, such as `10.0.0.0/8` or `2001:db8::/32` (RFC 4632, RFC 4291 §2.3). An
/// address alone is a network of one.
///
/// ```
/// use shardwise::IpNetwork;
///
/// let network: IpNetwork = "192.0.2.0/24".parse()?;
/// assert!(network.contains("192.0.2.7".parse()?) && !network.contains("192.0.3.7".parse()?));
/// // As a socket that listens on both families says it.
/// assert!(network.contains("::ffff:192.0.2.7".parse()?));
/// assert_eq!("::1".parse::<IpNetwork>()?.to_string(), "::1/128");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpNetwork {
    ip: IpAddr,
    prefix: u8,
}

/// Text that is no [`IpNetwork`], and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidNetwork {
    text: String,
    fault: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    NoIp,
    Prefix { most: u8 },
    BitsBehindPrefix { network: IpNetwork },
}

impl IpNetwork {
    /// The network of those that share their first `prefix` bits with `ip`.
    ///
    /// # Errors
    /// [`InvalidNetwork`]: an address has fewer bits, or `ip` has bits that are set behind them.
    pub fn new(ip: IpAddr, prefix: u8) -> Result<IpNetwork, InvalidNetwork> {
        IpNetwork::checked(ip, prefix)
            .map_err(|fault| InvalidNetwork { text: format!("{ip}/{prefix}"), fault })
    }

    fn checked(ip: IpAddr, prefix: u8) -> Result<IpNetwork, Fault> {
        let most = if ip.is_ipv4() { 32 } else { 128 };
        if prefix > most {
            return Err(Fault::Prefix { most });
        }
        let first = first_of(ip, prefix);
        let network = IpNetwork { ip: first, prefix };
        if first == ip { Ok(network) } else { Err(Fault::BitsBehindPrefix { network }) }
    }

    /// Whether `ip` belongs to it. An IPv4 address that is mapped into IPv6 counts as what it is.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.ip.is_ipv4() && first_of(ip, self.prefix) == self.ip
    }
}

/// `ip` without the bits behind its first `prefix` ones.
fn first_of(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(ip) & mask))
        }
    }
}

impl FromStr for IpNetwork {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<IpNetwork, InvalidNetwork> {
        let wrong = |fault| InvalidNetwork { text: text.to_string(), fault };
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| wrong(Fault::NoIp))?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| wrong(Fault::Prefix { most }))?
            }
            Some(_) => return Err(wrong(Fault::Prefix { most })),
        };
        IpNetwork::checked(ip, prefix).map_err(wrong)
    }
}

impl From<IpAddr> for IpNetwork {
    fn from(ip: IpAddr) -> Self {
        IpNetwork { ip, prefix: if ip.is_ipv4() { 32 } else { 128 } }
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.ip, self.prefix)
    }
}

impl fmt::Display for InvalidNetwork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` is not a network: ", self.text.escape_debug())?;
        match &self.fault {
            Fault::NoIp => write!(formatter, "it begins with no IP address, as 10.0.0.0/8 and ::1 do"),
            Fault::Prefix { most } => {
                write!(formatter, "behind the slash there is no number from 0 to {most}")
            }
            Fault::BitsBehindPrefix { network } => {
                write!(formatter, "the address has bits behind its prefix, as {network} has not")
            }
        }
    }
}

impl Error for InvalidNetwork {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_its_first_bits() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "2001:db8::1", "127.0.0.1"),
            ("192.0.2.128/25", "192.0.2.255", "192.0.2.127"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
            ("::1", "::1", "::2"),
        ] {
            let network: IpNetwork = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network} has {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{network} has not {outside}");
            assert_eq!(network.to_string().parse(), Ok(network));
        }
    }

    #[test]
    fn text_that_is_no_network_says_why() {
        for (text, why) in [
            ("", "begins with no IP address"),
            ("localhost/8", "begins with no IP address"),
            ("10.0.0.0/", "from 0 to 32"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("10.1.0.0/8", "as 10.0.0.0/8 has not"),
            ("::1/64", "as ::/64 has not"),
        ] {
            let error = text.parse::<IpNetwork>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{text}` is not a network: ")) && error.contains(why),
                "{error}"
            );
        }
        assert!(IpNetwork::new("10.0.0.0".parse().unwrap(), 33).is_err());
    }
}
