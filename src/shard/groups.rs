//! Listener groups: one address, several shards. A group is made, shared and closed as one object.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::ShardId;
use crate::addr::Addr;
use crate::reactor::driver::datagrams::MulticastInterface;
use crate::shard::wake_contained;

/// All groups of a runtime. Its lock is held while a member binds, so that the first is first; never on a hot path.
#[derive(Default)]
pub(crate) struct Groups {
    table: Mutex<HashMap<GroupKey, Arc<Group>>>,
}

/// Whose addresses: each of them has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Net {
    Tcp,
    Udp,
    Unix,
}

/// What makes two listen calls mean the same listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GroupKey {
    Addr(Net, Addr),
    /// The n-th call with port 0 of each shard.
    PortZero {
        net: Net,
        ip: IpAddr,
        call: usize,
    },
    /// A socket made elsewhere, by the number of its inode: all its descriptors have the same.
    Adopted(u64, u64),
}

/// The listeners, or datagram sockets, of several shards on one address.
pub(crate) struct Group {
    pub(crate) addr: Addr,
    /// The one member that has a socket, if it accepts for all of them.
    pub(crate) acceptor: Option<ShardId>,
    state: Mutex<GroupState>,
}

#[derive(Default)]
struct GroupState {
    members: Vec<ShardId>,
    /// How many connections have been handed out.
    handed: usize,
    closing: bool,
    /// Members that still take new handshakes.
    unfenced: usize,
    closed: bool,
    waiters: Vec<Waker>,
    /// Which member has joined a multicast group, at which interface, for all of them.
    multicast: Vec<(Multicast, ShardId)>,
}

/// A multicast group at an interface.
pub(crate) type Multicast = (IpAddr, MulticastInterface);

/// What a shard that wants to listen has to do.
pub(crate) enum Role<'a> {
    /// Bind the address for the group.
    First(FirstMember<'a>),
    /// Join those that are bound.
    Joins(Arc<Group>),
    /// It is a member already.
    Twice(Arc<Group>),
}

/// The right to found a group: holds the table's lock until the address is bound, or given up.
pub(crate) struct FirstMember<'a> {
    table: MutexGuard<'a, HashMap<GroupKey, Arc<Group>>>,
    key: GroupKey,
    member: ShardId,
}

impl FirstMember<'_> {
    /// The address is bound: others may join.
    pub(crate) fn bound(self, addr: Addr) -> Arc<Group> {
        self.found(addr, None)
    }

    /// The only socket there will be is open: it accepts for those who join.
    pub(crate) fn accepts_for_all(self, addr: Addr) -> Arc<Group> {
        let acceptor = Some(self.member);
        self.found(addr, acceptor)
    }

    fn found(mut self, addr: Addr, acceptor: Option<ShardId>) -> Arc<Group> {
        let state = GroupState { members: vec![self.member], ..GroupState::default() };
        // A listener that got its number from the kernel is found under that number too.
        let number = match self.key {
            GroupKey::PortZero { net, .. } => Some(GroupKey::Addr(net, addr.clone())),
            _ => None,
        };
        let group = Arc::new(Group { addr, acceptor, state: Mutex::new(state) });
        for key in [Some(self.key), number].into_iter().flatten() {
            self.table.insert(key, Arc::clone(&group));
        }
        group
    }
}

impl Groups {
    /// Finds out what `member` has to do to listen under `key`. A joiner is counted as a member at once.
    pub(crate) fn enter(&self, key: GroupKey, member: ShardId) -> Role<'_> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = table.get(&key).cloned() {
            drop(table);
            let mut state = group.lock();
            if state.closing || state.members.contains(&member) {
                drop(state);
                return Role::Twice(group);
            }
            state.members.push(member);
            drop(state);
            return Role::Joins(group);
        }
        Role::First(FirstMember { table, key, member })
    }

    /// Forgets a group whose members have all closed.
    pub(crate) fn forget(&self, group: &Arc<Group>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, kept| !Arc::ptr_eq(kept, group));
    }
}

impl Group {
    /// A group that nobody joins.
    pub(crate) fn of_one(addr: Addr, member: ShardId) -> Group {
        let state = GroupState { members: vec![member], ..GroupState::default() };
        Group { addr, acceptor: None, state: Mutex::new(state) }
    }

    /// Whose turn it is to get a connection that the acceptor has.
    pub(crate) fn next_member(&self) -> Option<ShardId> {
        let mut state = self.lock();
        state.handed = state.handed.wrapping_add(1);
        let count = state.members.len();
        (count > 0).then(|| state.members[state.handed % count])
    }

    /// Those that are members now.
    pub(crate) fn members(&self) -> Vec<ShardId> {
        self.lock().members.clone()
    }

    /// Whether nobody is left: the last member broke, before the group was closed.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().members.is_empty()
    }

    /// Makes `member` the owner of a multicast group unless another one is; says whether it is the owner.
    pub(crate) fn own_multicast(&self, multicast: Multicast, member: ShardId) -> bool {
        let mut state = self.lock();
        match state.multicast.iter().find(|(held, _)| *held == multicast) {
            Some((_, owner)) => *owner == member,
            None => {
                state.multicast.push((multicast, member));
                true
            }
        }
    }

    /// Gives a multicast group up, if `member` owns it; says whether it did.
    pub(crate) fn disown_multicast(&self, multicast: Multicast, member: ShardId) -> bool {
        let mut state = self.lock();
        let before = state.multicast.len();
        state.multicast.retain(|held| *held != (multicast, member));
        state.multicast.len() < before
    }

    fn lock(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A member that could not join after all, or whose shard is gone. Returns whether it was the last of a closing
    /// group.
    pub(crate) fn leave(&self, member: ShardId) -> bool {
        let mut state = self.lock();
        state.members.retain(|kept| *kept != member);
        state.multicast.retain(|(_, owner)| *owner != member);
        state.closing && state.members.is_empty()
    }

    /// Begins to close: gives the members, the first time it is called.
    pub(crate) fn begin_close(&self) -> Option<Vec<ShardId>> {
        let mut state = self.lock();
        if state.closing {
            return None;
        }
        state.closing = true;
        let members = self.with_sockets(&state);
        state.unfenced = members.len();
        Some(members)
    }

    /// One member takes no new handshakes any more. When it was the last one, gives the members: only now may any of
    /// them close, since the kernel spreads new handshakes over those that are left.
    pub(crate) fn fenced(&self) -> Option<Vec<ShardId>> {
        let mut state = self.lock();
        state.unfenced = state.unfenced.saturating_sub(1);
        (state.unfenced == 0).then(|| self.with_sockets(&state))
    }

    fn with_sockets(&self, state: &GroupState) -> Vec<ShardId> {
        match self.acceptor {
            Some(acceptor) => vec![acceptor],
            None => state.members.clone(),
        }
    }

    /// All members have closed. Wakes who waits for it.
    pub(crate) fn closed(&self) {
        let waiters = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.waiters)
        };
        for waiter in waiters {
            wake_contained(waiter);
        }
    }

    /// Whether all members have closed; if not, `waker` is woken when they have.
    pub(crate) fn poll_closed(&self, waker: &Waker) -> bool {
        let mut state = self.lock();
        if !state.closed && !state.waiters.iter().any(|kept| kept.will_wake(waker)) {
            state.waiters.push(waker.clone());
        }
        state.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Addr {
        std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()
    }

    fn shard(number: u16) -> ShardId {
        ShardId::new(number)
    }

    #[test]
    fn the_first_founds_the_group_and_the_others_join_it() {
        let groups = Groups::default();
        let key = GroupKey::PortZero { net: Net::Tcp, ip: [127, 0, 0, 1].into(), call: 0 };
        let addr = at(4000);
        let Role::First(first) = groups.enter(key.clone(), shard(0)) else {
            panic!("nobody was there before")
        };
        let group = first.bound(addr.clone());
        assert!(matches!(groups.enter(key.clone(), shard(1)), Role::Joins(joined) if joined.addr == addr));
        assert!(matches!(groups.enter(key.clone(), shard(1)), Role::Twice(_)));
        let udp = GroupKey::Addr(Net::Udp, addr.clone());
        assert!(matches!(groups.enter(udp, shard(2)), Role::First(_)), "the ports of UDP are others");
        assert!(
            matches!(groups.enter(GroupKey::Addr(Net::Tcp, addr.clone()), shard(2)), Role::Joins(_)),
            "by its number too"
        );
        groups.forget(&group);
        assert!(matches!(groups.enter(GroupKey::Addr(Net::Tcp, addr), shard(2)), Role::First(_)));
    }

    #[test]
    fn nobody_closes_before_all_members_are_fenced() {
        let groups = Groups::default();
        let key = GroupKey::Addr(Net::Tcp, at(4001));
        let Role::First(first) = groups.enter(key.clone(), shard(0)) else {
            panic!("nobody was there before")
        };
        let group = first.bound(at(4001));
        assert!(matches!(groups.enter(key.clone(), shard(1)), Role::Joins(_)));
        assert_eq!(group.begin_close().unwrap().len(), 2);
        assert!(group.begin_close().is_none(), "closing begins once");
        assert!(group.fenced().is_none());
        assert_eq!(group.fenced().unwrap().len(), 2);
        assert!(!group.leave(shard(1)));
        assert!(group.leave(shard(0)), "the last one closes the group");
    }

    #[test]
    fn a_multicast_group_has_one_owner_until_it_leaves() {
        let multicast = ("239.1.2.3".parse().unwrap(), MulticastInterface::Any);
        let group = Group::of_one(at(4002), shard(0));
        assert!(group.own_multicast(multicast, shard(0)));
        assert!(group.own_multicast(multicast, shard(0)), "again is no harm");
        assert!(!group.own_multicast(multicast, shard(1)));
        assert!(!group.disown_multicast(multicast, shard(1)));
        assert!(group.disown_multicast(multicast, shard(0)));
        assert!(group.own_multicast(multicast, shard(1)));
        group.leave(shard(1));
        assert!(group.own_multicast(multicast, shard(0)), "whoever leaves owns nothing");
    }

    #[test]
    fn an_acceptor_closes_alone_and_hands_out_in_turn() {
        let groups = Groups::default();
        let key = GroupKey::Adopted(1, 2);
        let Role::First(first) = groups.enter(key.clone(), shard(1)) else {
            panic!("nobody was there before")
        };
        let group = first.accepts_for_all(at(4003));
        assert!(matches!(groups.enter(key, shard(0)), Role::Joins(_)));
        let turns: Vec<_> = (0..4).filter_map(|_| group.next_member()).collect();
        assert_eq!(turns, [shard(0), shard(1), shard(0), shard(1)]);
        assert_eq!(group.begin_close(), Some(vec![shard(1)]));
        assert_eq!(group.fenced(), Some(vec![shard(1)]));
        assert!(!group.leave(shard(1)));
        assert_eq!(group.members(), [shard(0)]);
        assert!(group.leave(shard(0)));
    }
}
