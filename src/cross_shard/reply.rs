//! The means to answer an async call. Knows nothing of who asked but the name of the call.

use super::envelope::CallKey;
use super::error::Panic;
use super::local::{Local, Starting};
use crate::ShardId;
use std::marker::PhantomData;
use std::rc::Rc;

/// The means to answer an async call, on the shard that was called. Dropped unsent, it answers `Stopped`.
pub(crate) struct Reply<T: Send + 'static, C: 'static> {
    local: Rc<Local<C>>,
    origin: ShardId,
    key: CallKey,
    sent: bool,
    result: PhantomData<fn(T)>,
}

impl<T: Send + 'static, C: 'static> Reply<T, C> {
    pub(super) fn new(local: &Rc<Local<C>>, origin: ShardId, key: CallKey) -> Self {
        Reply { local: Rc::clone(local), origin, key, sent: false, result: PhantomData }
    }

    /// Sends the result home: a message of its own, published with this turn's.
    pub(crate) fn send(mut self, result: Result<T, Panic>) {
        self.sent = true;
        self.local.stage_answer(self.origin, |slots| slots.push_answer(self.key, result));
    }

    /// Whether somebody still waits for it.
    #[cfg(test)]
    pub(crate) fn is_wanted(&self) -> bool {
        !self.local.is_withdrawn(self.origin, self.key)
    }
}

impl<T: Send + 'static, C: 'static> Drop for Reply<T, C> {
    fn drop(&mut self) {
        if self.sent {
            return;
        }
        let local = &*self.local;
        match local.starting.get() {
            // Its slot is still here and says so itself; or that the closure panicked.
            Some(starting) if (starting.origin, starting.key) == (self.origin, self.key) => {
                local.starting.set(Some(Starting { dropped: true, ..starting }));
            }
            _ => local.stage_answer(self.origin, |slots| slots.push_unanswered(self.key)),
        }
    }
}
