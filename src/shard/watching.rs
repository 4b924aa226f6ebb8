//! Descriptors of the application that a shard watches: for handlers, as long as something is so (level-triggered);
//! for tasks, once for each wait.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::error::{CloseReason, Result};
use crate::reactor::driver::CloseKind;
use crate::reactor::driver::watching::{Ready, Wanted};
use crate::reactor::registry::Registry;
use crate::reactor::token::Token;
use crate::shard::handles::delayed_call::DelayedCall;
use crate::shard::handles::fd::Fd;
use crate::shard::interfaces::fd_set::FdHandler;
use crate::shard::lifecycle::ShardPhase;
use crate::shard::{Shard, wake_contained};

/// The watched descriptors of one shard.
#[derive(Default)]
pub(crate) struct Watches {
    table: RefCell<Registry<Rc<WatchCore>>>,
    /// Those that end with this turn.
    ending: RefCell<Vec<Rc<WatchCore>>>,
    has_ending: Cell<bool>,
    /// Set while there is a handler of a descriptor that is always ready.
    tick: RefCell<Option<DelayedCall>>,
}

/// One descriptor, as the shard and all its handles see it.
pub(crate) struct WatchCore {
    pub(crate) token: Token,
    /// The kernel cannot watch it, since it never has to wait.
    pub(crate) always_ready: bool,
    pub(crate) open: Cell<bool>,
    /// What the handler wants to be called for.
    wanted: Cell<Wanted>,
    /// Whether there is one: then no tasks wait.
    has_handler: bool,
    /// Absent while its callback runs, and after its end.
    handler: RefCell<Option<Box<dyn FdHandler>>>,
    reading: Waiting,
    writing: Waiting,
    reason: RefCell<Option<CloseReason>>,
}

/// The tasks that wait for one direction.
#[derive(Default)]
struct Waiting {
    wakers: RefCell<Vec<Waker>>,
    /// How often it has been found ready.
    found: Cell<u64>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Reading,
    Writing,
}

/// How often handlers of regular files are called: these are always ready, so "whenever ready" would take a whole CPU.
const ALWAYS_READY_EVERY: Duration = Duration::from_millis(1);

impl Shard {
    /// Gets to know a descriptor. Whoever asks sees to it that it stays open until the watching has ended; a handler,
    /// set right after, is kept until then.
    pub(crate) fn watch_descriptor(
        &self,
        fd: BorrowedFd<'_>,
        has_handler: bool,
    ) -> io::Result<Rc<WatchCore>> {
        let inner = &self.inner;
        if inner.phase.get() == ShardPhase::Stopped {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the shard has stopped"));
        }
        let watched = inner.driver.borrow_mut().watch(fd)?;
        let core = Rc::new(WatchCore {
            token: watched.token,
            always_ready: watched.always_ready,
            open: Cell::new(true),
            wanted: Cell::new(Wanted::NOTHING),
            has_handler,
            handler: RefCell::default(),
            reading: Waiting::default(),
            writing: Waiting::default(),
            reason: RefCell::default(),
        });
        inner.watches.table.borrow_mut().insert_at(core.token, Rc::clone(&core));
        Ok(core)
    }

    /// Changes what a handler is called for.
    pub(crate) fn want(&self, core: &WatchCore, wanted: Wanted) -> io::Result<()> {
        if !core.open.get() {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the descriptor is not watched any more",
            ));
        }
        if core.wanted.get() == wanted {
            return Ok(());
        }
        if core.always_ready {
            core.wanted.set(wanted);
            self.update_tick();
            return Ok(());
        }
        // While its callback runs, it is asked for when that is done.
        if core.handler.borrow().is_some() {
            self.inner.driver.borrow_mut().arm(core.token, wanted)?;
        }
        core.wanted.set(wanted);
        Ok(())
    }

    /// What was asked for has come about, once.
    pub(crate) fn on_ready(&self, token: Token, ready: Ready) {
        let core = self.inner.watches.table.borrow().get(token).cloned();
        let Some(core) = core else { return };
        if core.has_handler {
            self.call_handler(&core, ready);
        } else {
            if ready.readable {
                core.reading.wake();
            }
            if ready.writable {
                core.writing.wake();
            }
        }
        self.arm_again(&core);
    }

    fn call_handler(&self, core: &Rc<WatchCore>, ready: Ready) {
        if ready.hung_up {
            return self.end_watch(core, CloseReason::PeerFinished);
        }
        let fd = Fd::new(self.clone(), Rc::clone(core));
        if ready.readable && core.wanted.get().readable {
            self.call_fd(core, |handler| handler.readable(&fd));
        }
        // Its reader may have taken that back, or ended it.
        if ready.writable && core.wanted.get().writable {
            self.call_fd(core, |handler| handler.writable(&fd));
        }
    }

    fn call_fd(&self, core: &Rc<WatchCore>, call: impl FnOnce(&mut dyn FdHandler) -> Result<()>) {
        if !core.open.get() {
            return;
        }
        let Some(mut handler) = core.handler.take() else { return };
        let outcome = catch_unwind(AssertUnwindSafe(|| call(&mut *handler)));
        *core.handler.borrow_mut() = Some(handler);
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.log_failure(&*error, "a descriptor's handler failed");
                self.end_watch(core, CloseReason::Protocol(error));
            }
            Err(payload) => {
                let message = self.panicked("a descriptor's handler", payload);
                self.end_watch(core, CloseReason::Panicked(message));
            }
        }
    }

    /// Asks anew for what is still wanted. The kernel tells at once what is so already, so a handler that has read a
    /// part is called again in the next turn.
    fn arm_again(&self, core: &Rc<WatchCore>) {
        if !core.open.get() || core.always_ready {
            return;
        }
        let wanted = core.all_wanted();
        if wanted == Wanted::NOTHING && !core.has_handler {
            // A task that waits again asks again.
            return;
        }
        let armed = self.inner.driver.borrow_mut().arm(core.token, wanted);
        if let Err(source) = armed {
            // Closed behind our back: this is the last that is heard of it.
            self.end_watch(core, CloseReason::Os { call: "epoll_ctl", source });
        }
    }

    /// A task waits for one direction; gives the count that changes when it is ready.
    pub(crate) fn wait_for(
        &self,
        core: &WatchCore,
        direction: Direction,
        context: &Context<'_>,
    ) -> io::Result<u64> {
        if !core.open.get() {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the descriptor is not watched any more",
            ));
        }
        let waiting = core.waiting(direction);
        waiting.keep(context);
        self.inner.driver.borrow_mut().arm(core.token, core.all_wanted())?;
        Ok(waiting.found.get())
    }

    /// Ends a watch with this turn; its handler is told.
    pub(crate) fn end_watch(&self, core: &Rc<WatchCore>, reason: CloseReason) {
        if !core.open.replace(false) {
            return;
        }
        core.wanted.set(Wanted::NOTHING);
        *core.reason.borrow_mut() = Some(reason);
        self.inner.watches.ending.borrow_mut().push(Rc::clone(core));
        self.inner.watches.has_ending.set(true);
    }

    /// Ends a watch at once: for a descriptor without a handler, whose owner is about to close it.
    pub(crate) fn unwatch(&self, core: &Rc<WatchCore>) {
        if core.open.replace(false) {
            self.forget_watch(core);
        }
    }

    fn forget_watch(&self, core: &WatchCore) {
        self.inner.driver.borrow_mut().close(core.token, CloseKind::Orderly);
        let removed = self.inner.watches.table.borrow_mut().remove(core.token);
        drop(removed);
        core.reading.wake();
        core.writing.wake();
    }

    pub(crate) fn watches_end(&self) -> bool {
        self.inner.watches.has_ending.get()
    }

    /// Forgets what has ended, and tells its handler: the last thing a turn does.
    pub(crate) fn retire_watches(&self) {
        let watches = &self.inner.watches;
        if !watches.has_ending.get() {
            return;
        }
        loop {
            let next = watches.ending.borrow_mut().pop();
            let Some(core) = next else { break };
            self.forget_watch(&core);
            let reason = core.reason.take().unwrap_or(CloseReason::Closed);
            if let Some(mut handler) = core.handler.take() {
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| handler.ended(reason))) {
                    self.panicked("a descriptor's handler", payload);
                }
                self.drop_contained(handler);
            }
        }
        watches.has_ending.set(false);
        self.update_tick();
    }

    /// The shard stops: whatever is watched is told, once.
    pub(crate) fn drop_watches(&self) {
        for core in self.watched() {
            self.end_watch(&core, CloseReason::Stopped);
        }
        self.retire_watches();
    }

    fn watched(&self) -> Vec<Rc<WatchCore>> {
        let table = self.inner.watches.table.borrow();
        table.tokens().into_iter().filter_map(|token| table.get(token).cloned()).collect()
    }

    /// Those whose handlers want what `is_wanted` says.
    pub(crate) fn watched_for(&self, is_wanted: impl Fn(Wanted) -> bool) -> Vec<Fd> {
        let cores = self.watched().into_iter().filter(|core| core.open.get() && is_wanted(core.wanted.get()));
        cores.map(|core| Fd::new(self.clone(), core)).collect()
    }

    /// Has the timer run exactly while a handler wants a descriptor that is always ready.
    fn update_tick(&self) {
        let wanted =
            self.watched().iter().any(|core| core.always_ready && core.wanted.get() != Wanted::NOTHING);
        let tick = &self.inner.watches.tick;
        let stands = tick.borrow().is_some();
        if wanted && !stands {
            let call = self.call_later(ALWAYS_READY_EVERY, Shard::serve_always_ready);
            *tick.borrow_mut() = Some(call);
        } else if !wanted && let Some(call) = tick.take() {
            // It may be what brought us here.
            let _ = call.cancel();
        }
    }

    fn serve_always_ready(&self) {
        drop(self.inner.watches.tick.take());
        for core in self.watched() {
            let Wanted { readable, writable } = core.wanted.get();
            if core.always_ready && (readable || writable) {
                self.call_handler(&core, Ready { readable, writable, hung_up: false });
            }
        }
        self.update_tick();
    }
}

impl WatchCore {
    pub(crate) fn set_handler(&self, handler: Box<dyn FdHandler>) {
        let before = self.handler.replace(Some(handler));
        debug_assert!(before.is_none(), "a descriptor has one handler");
    }

    pub(crate) fn wanted(&self) -> Wanted {
        self.wanted.get()
    }

    fn all_wanted(&self) -> Wanted {
        let Wanted { readable, writable } = self.wanted.get();
        Wanted {
            readable: readable || self.reading.is_waited(),
            writable: writable || self.writing.is_waited(),
        }
    }

    fn waiting(&self, direction: Direction) -> &Waiting {
        match direction {
            Direction::Reading => &self.reading,
            Direction::Writing => &self.writing,
        }
    }

    /// Whether the direction has been found ready since the count was `before`; else the task waits on.
    pub(crate) fn found_since(&self, direction: Direction, before: u64, context: &Context<'_>) -> bool {
        let waiting = self.waiting(direction);
        let found = waiting.found.get() != before;
        if !found {
            waiting.keep(context);
        }
        found
    }
}

impl Waiting {
    fn is_waited(&self) -> bool {
        !self.wakers.borrow().is_empty()
    }

    fn keep(&self, context: &Context<'_>) {
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().any(|kept| kept.will_wake(context.waker())) {
            wakers.push(context.waker().clone());
        }
    }

    fn wake(&self) {
        self.found.set(self.found.get() + 1);
        let wakers = std::mem::take(&mut *self.wakers.borrow_mut());
        wakers.into_iter().for_each(wake_contained);
    }
}
