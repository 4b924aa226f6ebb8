//! UNIX sockets in the simulated network: streams like any other, at names instead of addresses. Descriptors are real ones,
//! of this process, and are duplicated as the kernel does.
//!
//! There is no file system: a name has no mode, no lock, and nothing is stale.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;

use super::{End, Network, Packet};
use crate::addr::{Addr, UnixAddr};
use crate::reactor::driver::unix::UnixListenSpec;
use crate::reactor::driver::{ConnectSpec, ListenSpec};
use crate::reactor::token::Token;

/// At which address each name is. Addresses of a block that nobody can have (RFC 1112 §4) are given out in turn.
#[derive(Default)]
pub(super) struct Names {
    addrs: BTreeMap<UnixAddr, SocketAddr>,
    /// Names are remembered for as long as connections may ask for them, which is to the end.
    known: BTreeMap<SocketAddr, UnixAddr>,
    given: u32,
}

impl Names {
    pub(super) fn forget(&mut self, addr: SocketAddr) {
        self.addrs.retain(|_, kept| *kept != addr);
    }
}

pub(super) fn is_of_names(addr: SocketAddr) -> bool {
    matches!(addr, SocketAddr::V4(addr) if addr.ip().octets()[0] == NAMES_BLOCK)
}

impl Network {
    pub(in crate::reactor::driver::sim) fn listen_unix(
        &mut self,
        shard: usize,
        spec: &UnixListenSpec,
    ) -> io::Result<Token> {
        if self.names.addrs.contains_key(&spec.name) {
            return Err(Errno::ADDRINUSE.into());
        }
        self.names.given += 1;
        let [_, a, b, c] = self.names.given.to_be_bytes();
        let addr = SocketAddr::new(Ipv4Addr::new(NAMES_BLOCK, a, b, c).into(), 1);
        let spec_at =
            ListenSpec { addr, backlog: spec.backlog, join: false, accepts_per_turn: spec.accepts_per_turn };
        let (token, _) = self.listen(shard, &spec_at)?;
        self.names.addrs.insert(spec.name.clone(), addr);
        self.names.known.insert(addr, spec.name.clone());
        Ok(token)
    }

    pub(in crate::reactor::driver::sim) fn connect_unix(
        &mut self,
        shard: usize,
        name: &UnixAddr,
    ) -> io::Result<Token> {
        let missing = if name.path().is_some() { Errno::NOENT } else { Errno::CONNREFUSED };
        let addr = *self.names.addrs.get(name).ok_or(missing)?;
        self.connect(shard, &ConnectSpec { addr, bind_addr: None })
    }

    /// A UNIX connection stands, or not, when `connect` returns: nothing is under way.
    pub(super) fn is_instant(&self, packet: &Packet) -> bool {
        let end = match packet {
            Packet::Syn { client: end, .. }
            | Packet::SynAck { client: end, .. }
            | Packet::Ack { server: end } => end,
            _ => return false,
        };
        self.ends.get(end).is_some_and(|end| is_of_names(end.local) || is_of_names(end.remote))
    }

    /// What a socket at `addr` calls itself.
    pub(in crate::reactor::driver::sim) fn name_of(&self, addr: SocketAddr) -> Addr {
        match self.names.known.get(&addr) {
            Some(name) => name.clone().into(),
            // A client, which has an address of the block but no name.
            None if is_of_names(addr) => UnixAddr::UNNAMED.into(),
            None => addr.into(),
        }
    }

    pub(in crate::reactor::driver::sim) fn send_descriptors(
        &mut self,
        shard: usize,
        token: Token,
        bytes: &[u8],
        descriptors: &[OwnedFd],
    ) -> io::Result<usize> {
        let passed = descriptors.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>()?;
        let id = self.shards[shard].stream(token).ok_or(Errno::NOTCONN)?.end;
        let peer = self.ends[&id].peer.filter(|peer| self.ends.contains_key(peer));
        let place = peer.map(|peer| self.ends[&peer].written());
        let count = self.send(shard, token, bytes)?;
        if let (Some(peer), Some(place), true) = (peer, place, count > 0) {
            self.ends.get_mut(&peer).expect("looked up above").descriptors.push_back((place, passed));
        }
        Ok(count)
    }
}

impl End {
    /// How many bytes have been sent to it, ever.
    fn written(&self) -> u64 {
        self.consumed + self.input.len() as u64
    }

    /// How many bytes come before the next descriptors, if there are any.
    pub(in crate::reactor::driver::sim) fn bytes_before_descriptors(&self) -> Option<usize> {
        self.descriptors.front().map(|(place, _)| (place - self.consumed) as usize)
    }

    pub(in crate::reactor::driver::sim) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.descriptors.pop_front().map(|(_, descriptors)| descriptors).unwrap_or_default()
    }

    /// Their bytes have been read, and nobody wanted them.
    pub(super) fn close_passed_descriptors(&mut self) {
        while self.descriptors.front().is_some_and(|(place, _)| *place < self.consumed) {
            self.descriptors.pop_front();
        }
    }
}

const NAMES_BLOCK: u8 = 240;
/// How often a client looks whether a full queue has room.
pub(super) const KNOCK_INTERVAL: Duration = Duration::from_millis(50);
