//! Listeners of which there is one socket for all shards: UNIX ones, of which the kernel makes no group, and those made
//! elsewhere. The first shard accepts, and hands every connection to the member whose turn it is.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::ShardId;
use crate::addr::Addr;
use crate::error::{ListenError, log_contained};
use crate::reactor::driver::{DetachedSocket, Driver};
use crate::reactor::token::Token;
use crate::shard::Shard;
use crate::shard::groups::{Group, GroupKey, Role};
use crate::shard::lifecycle::ShardPhase;
use crate::shard::listening::{Listening, Opening, listen_error};

/// Why a shard did not become a member.
pub(crate) enum NotJoined {
    /// The shard is stopping.
    Stopping,
    /// It is a member already, or the group is closing.
    Twice(Addr),
    Os(io::Error),
}

impl NotJoined {
    /// What a listener at `addr` comes to.
    pub(crate) fn at(self, addr: Addr) -> ListenError {
        match self {
            NotJoined::Stopping => ListenError::Stopping,
            NotJoined::Twice(addr) => ListenError::AddressInUse { addr },
            NotJoined::Os(source) => listen_error(addr, source),
        }
    }
}

/// A connection on its way from the acceptor to another member.
struct Handed {
    socket: DetachedSocket,
    peer: Addr,
}

impl Shard {
    /// Becomes a member of the group at `key`; the first one opens its socket by `open`.
    pub(crate) fn listen_handing_out(
        &self,
        key: GroupKey,
        opening: Opening,
        open: impl FnOnce(&mut dyn Driver) -> io::Result<(Token, Addr)>,
    ) -> Result<Arc<Group>, NotJoined> {
        let inner = &self.inner;
        if !matches!(inner.phase.get(), ShardPhase::Starting | ShardPhase::Running) {
            return Err(NotJoined::Stopping);
        }
        let (token, group) = match inner.shared.groups.enter(key, inner.id) {
            Role::Twice(group) => return Err(NotJoined::Twice(group.addr.clone())),
            Role::Joins(group) => (Token::NOBODY, group),
            Role::First(first) => {
                let (token, addr) = open(&mut **inner.driver.borrow_mut()).map_err(NotJoined::Os)?;
                (token, first.accepts_for_all(addr))
            }
        };
        self.begin_listening(token, Arc::clone(&group), opening);
        Ok(group)
    }

    /// Gives a connection that came in here to the member whose turn it is.
    pub(super) fn hand_out(&self, listening: &Rc<Listening>, token: Token, peer: Addr) {
        let group = &listening.group;
        let member = group.next_member().unwrap_or(self.inner.id);
        if member == self.inner.id {
            return self.open_accepted(listening, token, peer);
        }
        let Some(socket) = self.inner.driver.borrow_mut().release(token) else { return };
        let handed = Handed { socket, peer };
        let posted = Arc::clone(group);
        let sent = self.inner.endpoint.post(member, move |shard: &Shard| shard.on_handed(&posted, handed));
        if let Err(call) = sent {
            // That shard has stopped; this one has not.
            call(self);
        }
    }

    fn on_handed(&self, group: &Arc<Group>, handed: Handed) {
        let Some(listening) = self.inner.listeners.find_group(group) else { return };
        let adopted = self.inner.driver.borrow_mut().adopt(handed.socket);
        match adopted {
            Ok(token) => self.open_accepted(&listening, token, handed.peer),
            Err(error) => {
                self.inner.stats.accept_failures.add(1);
                let shard = self.inner.id.index();
                log_contained(|| tracing::warn!(shard, %error, "a connection that was handed over is lost"));
            }
        }
    }

    /// The acceptor of a group has closed, or is gone: nothing more comes to the others. What it had handed to them came
    /// before this, since messages from one shard to another keep their order.
    pub(super) fn release_members(&self, group: &Arc<Group>, left: ShardId) {
        if group.acceptor != Some(left) {
            return;
        }
        for member in group.members() {
            let posted = Arc::clone(group);
            let sent = self.inner.endpoint.post(member, move |shard: &Shard| shard.leave_group(&posted));
            if sent.is_err() {
                self.member_left(group, member);
            }
        }
    }

    fn leave_group(&self, group: &Arc<Group>) {
        if let Some(listening) = self.inner.listeners.find_group(group) {
            self.remove_listener(&listening);
        }
        self.member_left(group, self.inner.id);
    }
}
