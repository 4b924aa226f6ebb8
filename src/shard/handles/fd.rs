//! A watched descriptor, as whoever registered it and its handler see it.

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

use crate::error::CloseReason;
use crate::shard::Shard;
use crate::shard::watching::WatchCore;

/// Names a descriptor that a shard has got to know by [`Shard::watch`]. Cheap to clone; outlives the watching
/// harmlessly.
///
/// # Threads
/// `!Send`: it stays on its shard.
#[derive(Clone)]
pub struct Fd {
    shard: Shard,
    core: Rc<WatchCore>,
}

impl Fd {
    pub(crate) fn new(shard: Shard, core: Rc<WatchCore>) -> Self {
        Fd { shard, core }
    }

    pub(crate) fn core(&self) -> &Rc<WatchCore> {
        &self.core
    }

    /// The shard that watches it.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Whether it can be watched: not ended yet.
    pub fn is_open(&self) -> bool {
        self.core.open.get()
    }

    /// Whether the kernel cannot watch it since it is always ready: a regular file.
    pub fn is_always_ready(&self) -> bool {
        self.core.always_ready
    }
}

impl PartialEq for Fd {
    fn eq(&self, other: &Fd) -> bool {
        Rc::ptr_eq(&self.core, &other.core)
    }
}

impl Eq for Fd {}

impl fmt::Debug for Fd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Fd({})", self.core.token.index())
    }
}

/// Keeps a descriptor registered. Dropping it ends that: the handler is told in this turn
/// ([`FdHandler::ended`](crate::FdHandler::ended)), and dropped.
#[must_use = "dropping it ends the watching"]
pub struct FdGuard {
    fd: Fd,
}

impl FdGuard {
    pub(crate) fn new(fd: Fd) -> Self {
        FdGuard { fd }
    }
}

impl Deref for FdGuard {
    type Target = Fd;

    fn deref(&self) -> &Fd {
        &self.fd
    }
}

impl Drop for FdGuard {
    fn drop(&mut self) {
        self.fd.shard.end_watch(&self.fd.core, CloseReason::Closed);
    }
}

impl fmt::Debug for FdGuard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "FdGuard({})", self.fd.core.token.index())
    }
}
