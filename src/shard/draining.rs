//! Whoever has to know that this shard begins to stop: who asked to be told, and the connections.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::error::CloseReason;
use crate::net::connection::Phase;
use crate::reactor::timer_wheel::deadline_after;
use crate::reactor::token::Token;
use crate::shard::connections::{DRAINING_LINGER, Draining, Handler};
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
    /// Asks the handler to come to an end.
    pub(crate) fn tell_draining(&self, token: Token) {
        let mut connections = self.inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        if slot.marks.draining == Draining::Told {
            return;
        }
        slot.marks.draining = Draining::Told;
        if !slot.connection.is_open() {
            // Its peer is given less time now.
            let lingering = matches!(slot.connection.phase, Phase::Lingering { .. });
            if let (true, Some(guard)) = (lingering, slot.guard) {
                let deadline = deadline_after(self.inner.now.get(), DRAINING_LINGER);
                let mut timers = self.inner.timers.borrow_mut();
                if timers.deadline(guard).is_some_and(|old| old > deadline) {
                    timers.reset(guard, deadline);
                }
            }
            return;
        }
        if let Handler::Stream(stream) = &slot.handler {
            // Its handler waits for a handshake that has not begun.
            let is_idle = slot.connection.tls().is_some_and(|tls| tls.is_server() && tls.is_silent());
            let stream = Rc::clone(stream);
            drop(connections);
            if is_idle {
                return self.begin_close(token, CloseReason::Closed);
            }
            self.with_active(token, || stream.on_draining(self));
        } else {
            drop(connections);
            self.call_protocol(token, |protocol, transport| protocol.draining(transport));
        }
    }

    /// One that came in late has now been served.
    pub(super) fn tell_draining_if_served(&self, token: Token) {
        let late =
            self.inner.connections.borrow().get(token).is_some_and(|slot| {
                slot.marks.draining == Draining::Later && slot.connection.input.is_empty()
            });
        if late {
            self.tell_draining(token);
        }
    }

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
