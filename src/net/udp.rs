//! Rules of datagrams that need no socket: where one may go, and how much may be answered to whom.

use std::net::{IpAddr, SocketAddr};

/// Whether a socket of this family can send there. An IPv6 socket sends no IPv4, also not in IPv6's clothes.
pub(crate) fn family_fits(is_ipv6: bool, to: SocketAddr) -> bool {
    match to.ip() {
        IpAddr::V4(_) => !is_ipv6,
        IpAddr::V6(ip) => is_ipv6 && ip.to_ipv4_mapped().is_none(),
    }
}

/// How much may be sent to an address that has not proved to be its owner's.
///
/// The source of a datagram is easily forged, so a server that answers more than it was sent can be used to flood
/// somebody else. Until the peer has shown that it gets what is sent to it – by repeating something unguessable – it is
/// sent three times as many bytes as came from it, at the most (RFC 9000 §8.1). Keep one of these for each peer.
///
/// ```
/// use shardwise::AmplificationLimit;
///
/// let mut limit = AmplificationLimit::new();
/// limit.received(100);
/// assert!(limit.try_send(300));
/// assert!(!limit.try_send(1), "nothing is counted as sent then");
/// limit.validate();
/// assert!(limit.try_send(1_000_000));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AmplificationLimit {
    room_bytes: u64,
    validated: bool,
}

impl AmplificationLimit {
    /// For a peer that has sent nothing yet: nothing may be sent to it.
    pub fn new() -> Self {
        AmplificationLimit::default()
    }

    /// So many bytes came from the address.
    pub fn received(&mut self, bytes: usize) {
        self.room_bytes = self.room_bytes.saturating_add((bytes as u64).saturating_mul(FACTOR));
    }

    /// Whether so many bytes may be sent now; if so, they count as sent.
    #[must_use = "only `true` allows to send"]
    pub fn try_send(&mut self, bytes: usize) -> bool {
        if self.validated {
            return true;
        }
        let left = self.room_bytes.checked_sub(bytes as u64);
        self.room_bytes = left.unwrap_or(self.room_bytes);
        left.is_some()
    }

    /// The address is its owner's: no limit any more.
    pub fn validate(&mut self) {
        self.validated = true;
    }
}

/// RFC 9000 §8.1.
const FACTOR: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unproved_peer_is_sent_three_times_what_it_sent_and_not_a_byte_more() {
        let mut limit = AmplificationLimit::new();
        assert!(!limit.try_send(1), "nothing has come");
        assert!(limit.try_send(0));
        for round in 0..10 {
            limit.received(40);
            assert!(limit.try_send(100), "round {round}");
            assert!(limit.try_send(20), "round {round}");
            assert!(!limit.try_send(1), "round {round}");
        }
        limit.received(usize::MAX);
        limit.received(usize::MAX);
        assert!(limit.try_send(usize::MAX), "it counts up to the end and not around it");
    }

    #[test]
    fn a_proved_peer_has_no_limit() {
        let mut limit = AmplificationLimit::new();
        limit.validate();
        assert!(limit.try_send(1 << 30));
    }

    #[test]
    fn families_are_told_apart_also_when_dressed_up() {
        let fits = |is_ipv6, text: &str| family_fits(is_ipv6, text.parse().unwrap());
        assert!(fits(false, "127.0.0.1:1") && fits(true, "[::1]:1"));
        assert!(!fits(true, "127.0.0.1:1") && !fits(false, "[::1]:1") && !fits(true, "[::ffff:127.0.0.1]:1"));
    }
}
