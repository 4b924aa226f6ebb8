//! Which address of a host is tried when: Happy Eyeballs (RFC 8305), as far as it is a matter of order. Opens no sockets
//! and sets no timers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use crate::addr::Addr;
use crate::error::ConnectError;
use crate::reactor::token::Token;

/// The addresses of one target on their way to one connection: the first one that stands wins.
#[derive(Debug)]
pub(crate) struct Race {
    waiting: VecDeque<Addr>,
    running: Vec<Runner>,
    causes: Vec<ConnectError>,
}

/// A socket that connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runner {
    pub(crate) token: Token,
    pub(crate) addr: Addr,
    pub(crate) begun: Instant,
}

impl Race {
    /// Nothing runs yet. The addresses are tried in this order.
    pub(crate) fn new(addrs: Vec<Addr>) -> Self {
        Race { waiting: addrs.into(), running: Vec::new(), causes: Vec::new() }
    }

    /// The address to try next.
    pub(crate) fn next(&mut self) -> Option<Addr> {
        self.waiting.pop_front()
    }

    /// Whether there is another address to try.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(crate) fn has_running(&self) -> bool {
        !self.running.is_empty()
    }

    pub(crate) fn started(&mut self, runner: Runner) {
        self.running.push(runner);
    }

    pub(crate) fn failed(&mut self, cause: ConnectError) {
        self.causes.push(cause);
    }

    /// Takes out the runner with this token.
    pub(crate) fn take(&mut self, token: Token) -> Option<Runner> {
        let place = self.running.iter().position(|runner| runner.token == token)?;
        Some(self.running.remove(place))
    }

    /// Ends the race: the sockets to close.
    pub(crate) fn stop(&mut self) -> Vec<Runner> {
        self.waiting.clear();
        std::mem::take(&mut self.running)
    }

    pub(crate) fn running(&self) -> &[Runner] {
        &self.running
    }

    /// What became of the addresses that failed.
    pub(crate) fn take_causes(&mut self) -> Vec<ConnectError> {
        std::mem::take(&mut self.causes)
    }
}

/// The order of RFC 8305 §4: families take turns, IPv6 first; within a family the resolver's order stands, which is that
/// of RFC 6724 when the system resolves. An address that comes twice is tried once.
pub(crate) fn interleave(addrs: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut unique = Vec::with_capacity(addrs.len());
    let mut seen = std::collections::BTreeSet::new();
    unique.extend(addrs.into_iter().filter(|addr| seen.insert(*addr)));
    let (v6, v4): (Vec<_>, Vec<_>) = unique.into_iter().partition(SocketAddr::is_ipv6);
    let count = v6.len() + v4.len();
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut ordered = Vec::with_capacity(count);
    while ordered.len() < count {
        ordered.extend(v6.next());
        ordered.extend(v4.next());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 80)).collect()
    }

    #[test]
    fn families_take_turns_and_ipv6_begins() {
        let given = addrs(&["10.0.0.1", "10.0.0.2", "::1", "10.0.0.3", "::2"]);
        let expected = addrs(&["::1", "10.0.0.1", "::2", "10.0.0.2", "10.0.0.3"]);
        assert_eq!(interleave(given), expected);
        assert_eq!(interleave(addrs(&["10.0.0.1"])), addrs(&["10.0.0.1"]));
        assert_eq!(interleave(addrs(&["::2", "::1"])), addrs(&["::2", "::1"]), "the resolver's order stands");
        assert!(interleave(Vec::new()).is_empty());
    }

    #[test]
    fn an_address_that_comes_twice_is_tried_once() {
        assert_eq!(interleave(addrs(&["10.0.0.1", "10.0.0.1", "::1", "::1"])), addrs(&["::1", "10.0.0.1"]));
    }

    #[test]
    fn a_race_knows_who_runs_and_what_became_of_the_others() {
        let [first, second] = addrs(&["10.0.0.1", "10.0.0.2"])[..] else { unreachable!() };
        let mut race = Race::new(vec![first.into(), second.into()]);
        assert_eq!(race.next(), Some(first.into()));
        assert!(race.has_waiting() && !race.has_running());
        let runner = Runner { token: Token::NOBODY, addr: first.into(), begun: Instant::now() };
        race.started(runner.clone());
        assert_eq!(race.take(Token::NOBODY), Some(runner.clone()));
        assert_eq!(race.take(Token::NOBODY), None);
        race.failed(ConnectError::Cancelled);
        race.started(runner.clone());
        assert_eq!(race.stop(), [runner]);
        assert_eq!((race.next(), race.has_running()), (None, false));
        assert!(matches!(race.take_causes()[..], [ConnectError::Cancelled]));
    }
}
