//! Listener groups: one address, several shards. A group is made, shared and closed as one object.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::ShardId;
use crate::addr::Addr;
use crate::reactor::driver::datagrams::MulticastInterface;
use crate::shard::wake_contained;
use crate::shard::waker_list::{WaitKey, WakerList};

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
    waiters: WakerList,
    /// Which member has joined a multicast group, at which interface, for all of them.
    multicast: Vec<(Multicast, ShardId)>,
}

/// A multicast group at an interface.
pub(crate) type Multicast = (IpAddr, MulticastInterface);

/// Who owns a multicast group, seen from the member that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It does, from now on.
    New,
    /// It did before.
    Already,
    Another,
}

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

    /// A member has closed, or could not join after all, or its shard is gone. With the last one the group ends: that is
    /// decided under the table's lock, so that nobody joins one that is forgotten. Wakes who waits for the end.
    pub(crate) fn leave(&self, group: &Arc<Group>, member: ShardId) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiters) = group.leave(member) else { return };
        table.retain(|_, kept| !Arc::ptr_eq(kept, group));
        drop(table);
        waiters.into_iter().for_each(wake_contained);
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

    /// Makes `member` the owner of a multicast group unless there is one; says who is.
    pub(crate) fn own_multicast(&self, multicast: Multicast, member: ShardId) -> Owner {
        let mut state = self.lock();
        match state.multicast.iter().find(|(held, _)| *held == multicast) {
            Some((_, owner)) if *owner == member => Owner::Already,
            Some(_) => Owner::Another,
            None => {
                state.multicast.push((multicast, member));
                Owner::New
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

    /// Takes a member out. When nobody is left the group has closed, and who waits for that is given.
    fn leave(&self, member: ShardId) -> Option<Vec<Waker>> {
        let mut state = self.lock();
        state.members.retain(|kept| *kept != member);
        state.multicast.retain(|(_, owner)| *owner != member);
        if !state.members.is_empty() {
            return None;
        }
        state.closed = true;
        Some(state.waiters.take())
    }

    /// Whether its members are closing.
    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
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

    /// Whether all members have closed; if not, `waker` is woken when they have.
    pub(crate) fn poll_closed(&self, key: &mut WaitKey, waker: &Waker) -> bool {
        let state = self.lock();
        if state.closed || state.waiters.has(key, waker) {
            return state.closed;
        }
        drop(state);
        let waker = waker.clone();
        let mut state = self.lock();
        let closed = state.closed;
        let unneeded = if closed { Some(waker) } else { state.waiters.keep(key, waker) };
        drop(state);
        drop(unneeded);
        closed
    }

    /// Nobody waits under that key any more.
    pub(crate) fn forget_wait(&self, key: &WaitKey) {
        let removed = self.lock().waiters.remove(key);
        drop(removed);
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
        groups.leave(&group, shard(0));
        assert!(matches!(groups.enter(GroupKey::Addr(Net::Tcp, at(4000)), shard(0)), Role::Joins(_)));
        for member in [0, 1, 2] {
            groups.leave(&group, shard(member));
        }
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
        assert!(group.leave(shard(1)).is_none());
        assert!(group.leave(shard(0)).is_some(), "the last one closes the group");
    }

    /// It was a member already, and so kept the closing of the others waiting for ever.
    #[test]
    fn a_joiner_that_cannot_bind_after_all_ends_a_group_that_the_others_have_left_meanwhile() {
        let groups = Groups::default();
        let key = GroupKey::Addr(Net::Udp, at(4004));
        let Role::First(first) = groups.enter(key.clone(), shard(0)) else {
            panic!("nobody was there before")
        };
        let group = first.bound(at(4004));
        assert!(matches!(groups.enter(key.clone(), shard(1)), Role::Joins(_)));
        assert_eq!(group.begin_close().map(|members| members.len()), Some(2));
        let mut wait = WaitKey::default();
        groups.leave(&group, shard(0));
        assert!(!group.poll_closed(&mut wait, Waker::noop()));
        groups.leave(&group, shard(1));
        assert!(group.poll_closed(&mut wait, Waker::noop()));
        assert!(matches!(groups.enter(key, shard(2)), Role::First(_)), "the address is free");
    }

    #[test]
    fn waits_for_the_end_that_are_given_up_leave_nothing_behind() {
        let group = Group::of_one(at(4005), shard(0));
        for _ in 0..100 {
            let mut wait = WaitKey::default();
            assert!(!group.poll_closed(&mut wait, Waker::noop()));
            group.forget_wait(&wait);
        }
        assert!(group.leave(shard(0)).is_some_and(|waiters| waiters.is_empty()));
    }

    #[test]
    fn a_multicast_group_has_one_owner_until_it_leaves() {
        let multicast = ("239.1.2.3".parse().unwrap(), MulticastInterface::Any);
        let group = Group::of_one(at(4002), shard(0));
        assert_eq!(group.own_multicast(multicast, shard(0)), Owner::New);
        assert_eq!(group.own_multicast(multicast, shard(0)), Owner::Already, "again is no harm");
        assert_eq!(group.own_multicast(multicast, shard(1)), Owner::Another);
        assert!(!group.disown_multicast(multicast, shard(1)));
        assert!(group.disown_multicast(multicast, shard(0)));
        assert_eq!(group.own_multicast(multicast, shard(1)), Owner::New);
        group.leave(shard(1));
        assert_eq!(group.own_multicast(multicast, shard(0)), Owner::New, "whoever leaves owns nothing");
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
        assert!(group.leave(shard(1)).is_none());
        assert_eq!(group.members(), [shard(0)]);
        assert!(group.leave(shard(0)).is_some());
    }
}
