//! One turn of a shard's loop, and what it does before it sleeps.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::reactor::driver::Event;
use crate::shard::Shard;
use crate::shard::lifecycle::ShardPhase;

/// What the next `wait` may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// There is work: look for more, do not sleep.
    None,
    /// Nothing is left to do before this time, or before something happens.
    Until(Option<Instant>),
}

/// Whether a shard looks for messages for a while before it sleeps.
///
/// Sleeping and being woken is the dearest thing a runtime does, so a shard that waits for replies, or has lately been
/// called, polls for about the price of it. Several misses in a row switch that off for longer and longer; the first
/// hit switches it on again.
pub(crate) struct AdaptivePoll {
    /// Zero where polling would only take the CPU from others.
    bound: Duration,
    misses: Cell<u32>,
    /// Parks still to go through without polling.
    skips: Cell<u32>,
    skips_next: Cell<u32>,
    /// Messages have come, and not too many polls have ended without one since.
    called: Cell<bool>,
    /// Polls that ended with an event of the kernel, which a sleep would have ended as well.
    interrupted: Cell<u32>,
}

/// How a shard goes on after a turn.
enum Next {
    /// With another turn.
    Turn,
    /// With one that has nothing but messages, which have come already.
    Messages,
}

/// What ended a poll.
enum Polled {
    /// A message; the time is that of the last look at the clock.
    Mail(Instant),
    Event,
    Nothing,
}

const MISSES_BEFORE_BACK_OFF: u32 = 8;
const SKIPS_MAX: u32 = 32;
/// Looks at the inbox between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 32;
/// How often the kernel is asked by a shard that does not sleep in between.
const KERNEL_EVERY: Duration = Duration::from_micros(5);

impl AdaptivePoll {
    pub(crate) fn new(bound: Duration) -> Self {
        AdaptivePoll {
            bound,
            misses: Cell::new(0),
            skips: Cell::new(0),
            skips_next: Cell::new(1),
            called: Cell::new(false),
            interrupted: Cell::new(0),
        }
    }

    /// Whether to poll before this park.
    fn wanted(&self, awaits_replies: bool) -> bool {
        if self.bound.is_zero() || !(awaits_replies || self.called.get()) {
            return false;
        }
        if self.skips.get() > 0 {
            self.skips.set(self.skips.get() - 1);
            return false;
        }
        true
    }

    fn hit(&self) {
        self.misses.set(0);
        self.interrupted.set(0);
        self.skips.set(0);
        self.skips_next.set(1);
    }

    /// A shard that lives on I/O would poll for ever, an empty call of the kernel for each batch of events.
    fn interrupted(&self) {
        self.interrupted.set(self.interrupted.get() + 1);
        if self.interrupted.get() >= MISSES_BEFORE_BACK_OFF {
            self.interrupted.set(0);
            self.called.set(false);
        }
    }

    fn miss(&self) {
        self.misses.set(self.misses.get() + 1);
        if self.misses.get() >= MISSES_BEFORE_BACK_OFF {
            self.skips.set(self.skips_next.get());
            self.skips_next.set((self.skips_next.get() * 2).min(SKIPS_MAX));
            self.called.set(false);
        }
    }
}

impl Shard {
    /// Runs one turn. The order is load-bearing: see ARCHITECTURE.md, "A turn".
    ///
    /// `cap` bounds the sleep, for whoever turns the shard in a loop of its own.
    ///
    /// # Panics
    /// When called from within a turn of the same shard.
    pub(crate) fn turn(&self, cap: Option<Duration>) -> io::Result<()> {
        assert!(!self.inner.turning.replace(true), "a turn was begun within a turn");
        let current = self.enter();
        let entered = self.inner.executor.enter();
        let outcome = self.phases(cap);
        drop(entered);
        drop(current);
        self.inner.turning.set(false);
        outcome
    }

    /// Calls `f` on this shard between two turns. The next one does not begin with a sleep: what `f` has asked for may be
    /// due earlier than anything else was.
    pub(crate) fn between_turns<T>(&self, f: impl FnOnce(&Shard) -> T) -> T {
        if let Rest::Until(_) = self.inner.rest.replace(Rest::None) {
            self.inner.endpoint.finish_sleep();
        }
        let _current = self.enter();
        let _entered = self.inner.executor.enter();
        f(self)
    }

    fn phases(&self, cap: Option<Duration>) -> io::Result<()> {
        self.wait_for_events(cap)?;
        // What the last turn resumed: before its events, which came after what was kept.
        self.deliver_resumed();
        let messages_left = self.deliver_messages();
        let events_left = self.dispatch_events();
        let handshakes_left = self.run_handshakes();
        let timers_left = self.expire_timers();
        let mut busy = messages_left || events_left || handshakes_left || timers_left;
        loop {
            busy |= self.finish_turn();
            match self.choose_rest(busy)? {
                Next::Turn => return Ok(()),
                // A turn with no event and no timer: the phases of those two have nothing to do.
                Next::Messages => busy = self.deliver_messages(),
            }
        }
    }

    /// The phases that follow up what the others have brought. Says whether work is left.
    fn finish_turn(&self) -> bool {
        let tasks_left = self.run_tasks();
        self.settle_unsettled();
        self.inner.endpoint.publish();
        self.retire_ended();
        self.retire_datagrams();
        self.retire_watches();
        if self.inner.phase.get() == ShardPhase::Draining {
            self.check_drained();
        }
        if self.inner.shared.is_stop_asked() {
            self.inner.shared.stop_as_asked();
        }
        tasks_left || self.has_work()
    }

    /// Sleeps only when no work is left. The clock is read once, here.
    ///
    /// A turn that follows another one at once, since messages or tasks keep coming, asks the kernel only every few
    /// microseconds: that call costs as much as many messages.
    fn wait_for_events(&self, cap: Option<Duration>) -> io::Result<()> {
        let inner = &self.inner;
        let mut driver = inner.driver.borrow_mut();
        let slept = match inner.rest.get() {
            Rest::None => {
                let now = driver.read_clock();
                let lately = now.saturating_duration_since(inner.kernel_asked.get()) < KERNEL_EVERY;
                if !lately || driver.has_ready() {
                    driver.wait(Some(Duration::ZERO))?;
                    inner.kernel_asked.set(now);
                }
                false
            }
            Rest::Until(None) => {
                driver.wait(cap)?;
                true
            }
            Rest::Until(Some(deadline)) => {
                let timeout = deadline.saturating_duration_since(driver.now());
                driver.wait(Some(cap.map_or(timeout, |cap| cap.min(timeout))))?;
                true
            }
        };
        let now = driver.now();
        drop(driver);
        if slept {
            inner.endpoint.finish_sleep();
            inner.stats.parks.add(1);
            // The time before the sleep was counted when that was decided.
            inner.stats.turns.add(1);
            inner.now.set(now);
        } else {
            self.begin_turn(now);
        }
        Ok(())
    }

    /// Inbox → application.
    fn deliver_messages(&self) -> bool {
        let delivered = self.inner.endpoint.deliver(self, self.inner.shared.config.messages_per_turn);
        if delivered.count > 0 {
            self.inner.poll.called.set(true);
        }
        delivered.more
    }

    /// Driver → connection → application → that connection's output → driver.
    fn dispatch_events(&self) -> bool {
        for _ in 0..self.inner.shared.config.events_per_turn {
            let event = self.inner.driver.borrow_mut().next();
            let Some(event) = event else { return false };
            match event {
                Event::Received { token, bytes } => self.on_received(token, bytes),
                Event::Sent { token } => self.on_sent(token),
                Event::Accepted { listener, token, peer } => self.on_accepted(listener, token, peer),
                Event::PeerFinished { token } => self.on_peer_finished(token),
                Event::Descriptors { token, descriptors } => self.on_descriptors(token, descriptors),
                Event::Connected { token } => self.on_connected(token),
                Event::Failed { token, error } => {
                    let error = self.attempt_failed(token, error);
                    let error = error.and_then(|error| self.listener_failed(token, error));
                    if let Some(error) = error {
                        self.on_failed(token, error);
                    }
                }
                Event::AcceptFailed { listener, error } => self.on_accept_failed(listener, error),
                Event::Datagram { token, event } => self.on_datagram_event(token, event),
                Event::Ready { token, ready } => self.on_ready(token, ready),
            }
        }
        true
    }

    /// Timer wheel → application. What is due is settled at the beginning: a timer set by a timer waits its turn.
    fn expire_timers(&self) -> bool {
        let inner = &self.inner;
        inner.timers.borrow_mut().begin_expiry(inner.now.get());
        for _ in 0..inner.shared.config.timers_per_turn {
            let timer = inner.timers.borrow_mut().pop_expired();
            let Some(timer) = timer else { return false };
            // The application may have made it.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| timer.call(self))) {
                self.panicked("a delayed call", payload);
            }
        }
        true
    }

    /// Run queue → application.
    fn run_tasks(&self) -> bool {
        let inner = &self.inner;
        if !inner.executor.has_ready() {
            return false;
        }
        let config = &inner.shared.config;
        let mut until = None;
        // Asked every few polls, so that the clock is not read for each of many small tasks.
        inner.executor.run(config.tasks_per_turn, || {
            let now = inner.driver.borrow_mut().read_clock();
            now > *until.get_or_insert(now + config.task_time_per_turn)
        })
    }

    /// Whether something waits that no event, timer or message will announce.
    fn has_work(&self) -> bool {
        let inner = &self.inner;
        inner.executor.has_ready()
            || !inner.unsettled.borrow().is_empty()
            || !inner.resumed.borrow().is_empty()
            || !inner.ending.borrow().is_empty()
            || inner.handshakes.has_work(inner.shared.config.handshakes_max)
            || self.datagrams_end()
            || self.watches_end()
            || inner.phase.get() == ShardPhase::Stopped
    }

    /// Decides how to go on, and whether the next turn may begin with a sleep; if it may, marks the shard as sleeping.
    fn choose_rest(&self, busy: bool) -> io::Result<Next> {
        let inner = &self.inner;
        inner.rest.set(Rest::None);
        if busy {
            return Ok(Next::Turn);
        }
        let deadline = inner.timers.borrow_mut().next_deadline();
        if deadline.is_some_and(|deadline| deadline <= inner.now.get()) {
            return Ok(Next::Turn);
        }
        if inner.poll.wanted(inner.endpoint.awaits_replies()) {
            match self.poll_for_work(deadline)? {
                Polled::Mail(now) => {
                    inner.poll.hit();
                    return Ok(self.after_mail(now, deadline));
                }
                Polled::Event => {
                    inner.poll.interrupted();
                    return Ok(Next::Turn);
                }
                Polled::Nothing => inner.poll.miss(),
            }
        }
        if inner.endpoint.prepare_sleep() {
            // A signal handler leaves no message; from here on it wakes.
            if inner.shared.is_stop_asked() {
                inner.endpoint.finish_sleep();
                return Ok(Next::Turn);
            }
            let now = inner.driver.borrow_mut().read_clock();
            inner.stats.busy_nanos.add(now.saturating_duration_since(inner.now.get()).as_nanos() as u64);
            inner.rest.set(Rest::Until(deadline));
        }
        Ok(Next::Turn)
    }

    /// Messages came at `now`, while the shard polled: as long as they are all that comes, a turn is made of them
    /// alone. Not for longer than the kernel may be left alone, and not beyond a timer.
    fn after_mail(&self, now: Instant, deadline: Option<Instant>) -> Next {
        let inner = &self.inner;
        let is_due = deadline.is_some_and(|deadline| deadline <= now);
        if is_due || now.saturating_duration_since(inner.kernel_asked.get()) >= KERNEL_EVERY {
            return Next::Turn;
        }
        self.begin_turn(now);
        Next::Messages
    }

    /// A turn that follows another one without a sleep.
    fn begin_turn(&self, now: Instant) {
        let inner = &self.inner;
        inner.stats.busy_nanos.add(now.saturating_duration_since(inner.now.get()).as_nanos() as u64);
        inner.stats.turns.add(1);
        inner.now.set(now);
    }

    /// Looks for messages, and now and then for events, for as long as a sleep and a wake would take. The shard counts
    /// as awake meanwhile, so nobody pays for waking it.
    fn poll_for_work(&self, deadline: Option<Instant>) -> io::Result<Polled> {
        let inner = &self.inner;
        let begun = inner.driver.borrow_mut().read_clock();
        let end = begun + inner.poll.bound;
        let end = deadline.map_or(end, |deadline| deadline.min(end));
        let mut kernel_at = begun + KERNEL_EVERY;
        let mut now = begun;
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                if inner.endpoint.has_mail() {
                    return Ok(Polled::Mail(now));
                }
                std::hint::spin_loop();
            }
            let mut driver = inner.driver.borrow_mut();
            now = driver.read_clock();
            if now >= kernel_at {
                driver.wait(Some(Duration::ZERO))?;
                inner.kernel_asked.set(now);
                if driver.has_ready() {
                    return Ok(Polled::Event);
                }
                kernel_at = now + KERNEL_EVERY;
            }
            if now >= end {
                return Ok(Polled::Nothing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_lives_on_events_stops_polling() {
        let poll = AdaptivePoll::new(Duration::from_micros(50));
        poll.called.set(true);
        for _ in 0..MISSES_BEFORE_BACK_OFF {
            assert!(poll.wanted(false));
            poll.interrupted();
        }
        assert!(!poll.wanted(false), "nobody has called since");
        assert!(poll.wanted(true), "replies are worth waiting for");
        poll.called.set(true);
        poll.hit();
        assert!(poll.wanted(false));
    }

    #[test]
    fn misses_in_a_row_switch_polling_off_for_longer_and_longer() {
        let poll = AdaptivePoll::new(Duration::from_micros(50));
        for _ in 0..MISSES_BEFORE_BACK_OFF {
            assert!(poll.wanted(true));
            poll.miss();
        }
        assert!(!poll.wanted(true), "one park is skipped");
        assert!(poll.wanted(true));
        poll.miss();
        assert!(!poll.wanted(true) && !poll.wanted(true), "then two");
        assert!(poll.wanted(true));
        poll.hit();
        assert!(poll.wanted(true), "a hit switches it on again");
    }
}
