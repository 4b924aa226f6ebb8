//! Whoever wants to know when this shard begins to stop.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::shard::{RunningCall, Shard};

/// What is to be called, in the order it was asked for.
#[derive(Default)]
pub(crate) struct DrainCalls {
    calls: RefCell<BTreeMap<u64, RunningCall>>,
    last: Cell<u64>,
}

/// A call that is made when the shard begins to drain. Dropping this prevents it.
pub(crate) struct WhenDraining {
    shard: Shard,
    number: u64,
}

impl Shard {
    /// Calls `call` when this shard begins to stop, in order or by force; never, if it has already.
    pub(crate) fn when_draining(&self, call: impl FnOnce(&Shard) + 'static) -> WhenDraining {
        let calls = &self.inner.drain_calls;
        let number = calls.last.get() + 1;
        calls.last.set(number);
        calls.calls.borrow_mut().insert(number, Box::new(call));
        WhenDraining { shard: self.clone(), number }
    }

    pub(crate) fn call_drain_calls(&self) {
        loop {
            let first = self.inner.drain_calls.calls.borrow_mut().pop_first();
            let Some((_, call)) = first else { break };
            self.call_contained("a call at the drain", call);
        }
    }
}

impl Drop for WhenDraining {
    fn drop(&mut self) {
        let call = self.shard.inner.drain_calls.calls.borrow_mut().remove(&self.number);
        self.shard.drop_contained(call);
    }
}
