//! From start to stop: Starting → Running → Draining → Stopped, for the runtime and for each of its shards.
//!
//! Shards are told by messages like any other, so that a simulation goes through the same steps.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ShardId;
use crate::error::{CloseReason, NotRunning, RunError, log_contained};
use crate::net::connection::{EndKind, Phase};
use crate::reactor::driver::CloseKind;
use crate::shard::Shard;
use crate::shard::connections::Draining;
use crate::shard::handles::delayed_call::DelayedCall;
use crate::shard::shared::Shared;

/// Where one shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShardPhase {
    /// Turns run, nothing is accepted.
    Starting,
    Running,
    /// Listeners close, connections come to an end.
    Draining,
    /// Nothing is open any more; calls of other shards are still answered.
    Drained,
    /// The loop ends with this turn.
    Stopped,
}

/// Connections that came in while draining, and have sent nothing, are told to end after this.
const LATE_DRAIN: Duration = Duration::from_millis(200);

/// A destructor may set another timer, but not without end.
const LAST_TIMER_ROUNDS: usize = 16;

/// Where the runtime is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RuntimeState {
    /// Shards run `App::start`; nothing is accepted yet.
    Starting,
    /// Every shard has started.
    Running,
    /// `stop` was called: connections come to an end.
    Draining,
    /// Every shard has ended.
    Stopped,
}

/// The state all shards of a runtime agree on.
pub(crate) struct Lifecycle {
    /// A copy of `Progress::state` for those who only look.
    state: AtomicU8,
    progress: Mutex<Progress>,
    changed: Condvar,
}

struct Progress {
    state: RuntimeState,
    shards: usize,
    started: usize,
    drained: usize,
    ended: usize,
    forced: bool,
    aborted_connections: usize,
    signal: Option<i32>,
    error: Option<RunError>,
    /// Called once when the last shard has ended.
    on_end: Option<Box<dyn FnOnce() + Send>>,
    leaks: Vec<(ShardId, Leaks)>,
}

/// What was still there when a shard had drained. Timers and tasks are the application's to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaks {
    pub(crate) connections: usize,
    pub(crate) listeners: usize,
    pub(crate) leases: usize,
    pub(crate) timers: usize,
    pub(crate) tasks: usize,
}

impl Lifecycle {
    pub(crate) fn new(shards: usize) -> Self {
        Lifecycle {
            state: AtomicU8::new(RuntimeState::Starting as u8),
            progress: Mutex::new(Progress {
                state: RuntimeState::Starting,
                shards,
                started: 0,
                drained: 0,
                ended: 0,
                forced: false,
                aborted_connections: 0,
                signal: None,
                error: None,
                on_end: None,
                leaks: Vec::new(),
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, progress: &mut Progress, state: RuntimeState) {
        progress.state = state;
        // SeqCst: pairs with `InTransit`, which counts itself down and then looks whether somebody drains.
        self.state.store(state as u8, Ordering::SeqCst);
        self.changed.notify_all();
    }

    pub(crate) fn state(&self) -> RuntimeState {
        // SeqCst: as in `set`; as cheap as Relaxed on most processors, and nobody asks in a hurry.
        match self.state.load(Ordering::SeqCst) {
            0 => RuntimeState::Starting,
            1 => RuntimeState::Running,
            2 => RuntimeState::Draining,
            _ => RuntimeState::Stopped,
        }
    }

    /// Waits until every shard has started, or the runtime has begun to stop.
    pub(crate) fn wait_until_started(&self) {
        let mut progress = self.lock();
        while progress.state == RuntimeState::Starting {
            progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What went wrong, for `run` to return. Taken once.
    pub(crate) fn take_error(&self) -> Option<RunError> {
        let mut progress = self.lock();
        let error = progress.error.take();
        // A second signal that found nothing to abort has forced nothing; who calls `abort` is told in any case.
        let forced = progress.forced && (progress.aborted_connections > 0 || progress.signal.is_none());
        if error.is_none() && forced {
            let connections = progress.aborted_connections;
            return Some(RunError::Forced { connections, signal: progress.signal });
        }
        error
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.lock().error.is_some()
    }

    /// Has `call` called when the last shard has ended; at once, if it has.
    pub(crate) fn when_ended(&self, call: impl FnOnce() + Send + 'static) {
        let mut progress = self.lock();
        if progress.ended == progress.shards {
            drop(progress);
            call();
        } else {
            progress.on_end = Some(Box::new(call));
        }
    }

    /// What each shard left behind, once it has ended.
    #[cfg(feature = "testing")]
    pub(crate) fn leaks(&self) -> Vec<(ShardId, Leaks)> {
        self.lock().leaks.clone()
    }

    pub(crate) fn note_signal(&self, signal: i32) {
        self.lock().signal = Some(signal);
    }
}

impl Shared {
    /// Sends a step of the lifecycle to every shard. Those that have ended already need none.
    pub(crate) fn tell_all(&self, step: fn(&Shard)) {
        for number in 0..self.mesh.len() {
            let _ = self.mesh.post(ShardId::new(number as u16), step);
        }
    }

    pub(crate) fn shard_started(&self) {
        let mut progress = self.lifecycle.lock();
        progress.started += 1;
        if progress.started == progress.shards && progress.state == RuntimeState::Starting {
            self.lifecycle.set(&mut progress, RuntimeState::Running);
            drop(progress);
            self.tell_all(Shard::on_all_started);
        }
    }

    /// The first failure stops all shards.
    pub(crate) fn shard_failed(&self, error: RunError) {
        let mut progress = self.lifecycle.lock();
        if progress.error.is_none() {
            progress.error = Some(error);
        }
        drop(progress);
        self.abort();
    }

    /// A shard's `App::start` returned an error. Once the runtime is being stopped, that may well be because it is,
    /// and is no failure.
    pub(crate) fn start_failed(&self, error: RunError) {
        if self.lifecycle.state() == RuntimeState::Starting {
            self.shard_failed(error);
        } else {
            log_contained(|| tracing::warn!(%error, "while the runtime stops"));
        }
    }

    /// The runtime ends before its shards have begun: what was sent to them is turned away.
    pub(crate) fn never_ran(&self) {
        for number in 0..self.mesh.len() {
            drop(self.mesh.endpoint(ShardId::new(number as u16)));
        }
        let mut progress = self.lifecycle.lock();
        progress.ended = progress.shards;
        self.lifecycle.set(&mut progress, RuntimeState::Stopped);
    }

    /// Begins an orderly stop.
    pub(crate) fn stop(&self) -> Result<(), NotRunning> {
        let mut progress = self.lifecycle.lock();
        let step = match progress.state {
            RuntimeState::Starting => Shard::on_stop_while_starting,
            RuntimeState::Running => Shard::on_stop,
            RuntimeState::Draining | RuntimeState::Stopped => return Err(NotRunning),
        };
        self.lifecycle.set(&mut progress, RuntimeState::Draining);
        drop(progress);
        self.tell_all(step);
        Ok(())
    }

    /// Stops without waiting for connections to end.
    pub(crate) fn abort(&self) {
        let mut progress = self.lifecycle.lock();
        if progress.state == RuntimeState::Stopped {
            return;
        }
        self.lifecycle.set(&mut progress, RuntimeState::Draining);
        drop(progress);
        self.tell_all(Shard::on_abort);
    }

    /// As [`Shared::abort`], and from here on the stop counts as a forced one.
    pub(crate) fn abort_by_force(&self) {
        let mut progress = self.lifecycle.lock();
        if progress.state == RuntimeState::Stopped {
            return;
        }
        progress.forced = true;
        drop(progress);
        self.abort();
    }

    fn connections_aborted(&self, count: usize) {
        let mut progress = self.lifecycle.lock();
        progress.forced = true;
        progress.aborted_connections += count;
    }

    fn shard_drained(&self) {
        let mut progress = self.lifecycle.lock();
        progress.drained += 1;
        if progress.drained == progress.shards {
            drop(progress);
            self.tell_all(Shard::on_all_drained);
        }
    }

    /// A shard that had drained takes a connection over. `false`: all have, and the end has been told.
    fn drain_again(&self) -> bool {
        let mut progress = self.lifecycle.lock();
        if progress.drained == progress.shards {
            return false;
        }
        progress.drained -= 1;
        true
    }

    /// A shard's loop has ended.
    pub(crate) fn shard_ended(&self) {
        let mut progress = self.lifecycle.lock();
        progress.ended += 1;
        if progress.ended == progress.shards {
            self.lifecycle.set(&mut progress, RuntimeState::Stopped);
            let on_end = progress.on_end.take();
            drop(progress);
            if let Some(on_end) = on_end {
                on_end();
            }
        }
    }

    /// A shard's loop has ended by a panic or a broken driver: the others cannot go on half alive.
    pub(crate) fn shard_broke(&self, phase: ShardPhase, error: RunError) {
        if !matches!(phase, ShardPhase::Drained | ShardPhase::Stopped) {
            self.shard_drained();
        }
        self.shard_failed(error);
    }
}

impl Shard {
    pub(crate) fn is_stopping(&self) -> bool {
        !matches!(self.inner.phase.get(), ShardPhase::Starting | ShardPhase::Running)
    }

    fn on_all_started(&self) {
        if self.inner.phase.get() != ShardPhase::Starting {
            return;
        }
        self.inner.phase.set(ShardPhase::Running);
        self.begin_accepting();
        self.begin_receiving_datagrams();
        let calls = std::mem::take(&mut *self.inner.when_running.borrow_mut());
        for call in calls {
            self.call_contained("a call_when_running", call);
        }
    }

    fn on_stop(&self) {
        // The news that all have started may come from another thread, and still be under way.
        self.on_all_started();
        if self.inner.phase.get() != ShardPhase::Running {
            return;
        }
        self.inner.phase.set(ShardPhase::Draining);
        for listening in self.inner.listeners.all() {
            self.close_group(&listening.group);
        }
        self.begin_drain();
    }

    /// Stopped before the start barrier: nothing was accepted, and nothing is. Who waits in a queue is turned away.
    fn on_stop_while_starting(&self) {
        if self.inner.phase.get() != ShardPhase::Starting {
            return;
        }
        self.inner.phase.set(ShardPhase::Draining);
        self.begin_drain();
        self.drop_listeners();
    }

    fn begin_drain(&self) {
        self.call_drain_calls();
        self.fail_attempts();
        // Input that has come by now is served first: connections are told in the next turn, after its events.
        self.call_later(Duration::ZERO, Shard::tell_old_draining);
        self.set_drain_deadline(self.inner.shared.config.drain_timeout);
    }

    fn set_drain_deadline(&self, after: Duration) {
        let deadline = self.call_later(after, |shard| {
            if shard.inner.phase.get() != ShardPhase::Draining {
                return;
            }
            let shard_number = shard.inner.id.index();
            log_contained(|| tracing::warn!(shard = shard_number, "the drain deadline has passed"));
            shard.abort_connections(true);
        });
        *self.inner.drain_deadline.borrow_mut() = Some(deadline);
    }

    /// Stops at once: the second signal, or a start that failed.
    fn on_abort(&self) {
        if matches!(self.inner.phase.get(), ShardPhase::Drained | ShardPhase::Stopped) {
            return;
        }
        self.inner.phase.set(ShardPhase::Draining);
        self.call_drain_calls();
        self.fail_attempts();
        self.drop_listeners();
        self.drop_datagrams(true);
        let count_them = !self.inner.shared.lifecycle.has_failed();
        self.abort_connections(count_them);
    }

    fn abort_connections(&self, count_them: bool) {
        // Whoever has them, they arrive nowhere now; the first shard that gives up counts them.
        let mut aborted = self.inner.shared.detached.abandon();
        let tokens = self.inner.connections.borrow().tokens();
        for token in tokens {
            let over = self.inner.connections.borrow().get(token).is_some_and(|slot| {
                matches!(slot.connection.phase, Phase::Lingering { .. } | Phase::Ending(..))
            });
            aborted += usize::from(!over);
            self.end(token, CloseReason::Stopped, EndKind::Close(CloseKind::Reset));
        }
        self.inner.stats.aborted.add(aborted as u64);
        if count_them {
            self.inner.shared.connections_aborted(aborted);
        }
        self.inner.serving.set(0);
        if !self.inner.listeners.is_empty() {
            self.drop_listeners();
        }
        self.drop_datagrams(true);
        self.check_drained();
    }

    /// A connection came in while the shard was draining. It gets a chance to be served; if it says nothing, it is
    /// told after a while.
    pub(crate) fn plan_late_drain(&self) {
        let planned = self.inner.late_drain.borrow();
        // The last to come has its time, too; listeners close soon, so that is not put off for long.
        if planned.as_ref().is_some_and(|planned| planned.reset(LATE_DRAIN).is_ok()) {
            return;
        }
        drop(planned);
        let planned = self.call_later(LATE_DRAIN, Shard::tell_all_draining);
        *self.inner.late_drain.borrow_mut() = Some(planned);
    }

    /// Tells those that were open when the drain began.
    fn tell_old_draining(&self) {
        let came_late = |token| {
            let connections = self.inner.connections.borrow();
            connections.get(token).is_some_and(|slot| slot.marks.draining == Draining::Later)
        };
        let tokens = self.inner.connections.borrow().tokens();
        for token in tokens {
            if !came_late(token) {
                self.tell_draining(token);
            }
        }
        self.drain_datagrams();
        self.check_drained();
    }

    fn tell_all_draining(&self) {
        let tokens = self.inner.connections.borrow().tokens();
        for token in tokens {
            self.tell_draining(token);
        }
        self.check_drained();
    }

    /// Looks whether this shard has come to its end.
    pub(crate) fn check_drained(&self) {
        let inner = &self.inner;
        let open = inner.connections.borrow().len() + inner.serving.get();
        let is_over = open == 0 && !inner.shared.detached.are_awaited() && !self.listens_for_datagrams();
        if inner.phase.get() == ShardPhase::Draining && inner.listeners.is_empty() && is_over {
            inner.phase.set(ShardPhase::Drained);
            let timer = inner.late_drain.borrow_mut().take();
            // It may be what brought us here. The deadline stays: a stream may come from a shard that drains yet.
            let _ = timer.map(|timer| timer.cancel());
            inner.shared.shard_drained();
        }
    }

    /// Whether a stream from another shard may become a connection here. A shard that has drained already drains again
    /// for it.
    pub(crate) fn may_attach(&self) -> bool {
        let inner = &self.inner;
        if inner.shared.detached.are_abandoned() {
            return false;
        }
        match inner.phase.get() {
            ShardPhase::Starting | ShardPhase::Running | ShardPhase::Draining => true,
            ShardPhase::Drained => {
                let drains_again = inner.shared.drain_again();
                if drains_again {
                    inner.phase.set(ShardPhase::Draining);
                    let deadline_is_ahead =
                        inner.drain_deadline.borrow().as_ref().is_some_and(DelayedCall::active);
                    if !deadline_is_ahead {
                        // The shard it comes from began to drain later. Here its time is over, and it is counted.
                        self.set_drain_deadline(Duration::ZERO);
                    }
                }
                drains_again
            }
            ShardPhase::Stopped => false,
        }
    }

    fn on_all_drained(&self) {
        self.inner.phase.set(ShardPhase::Stopped);
    }

    /// What an application, or we, should have ended before the stop.
    fn note_leaks(&self) {
        let inner = &self.inner;
        let census = inner.driver.borrow().census();
        let leaks = Leaks {
            // What connections are held to ends with them, or their places are lost.
            connections: inner.connections.borrow().len() + census.connections + inner.policing.len(),
            listeners: census.listeners,
            leases: census.leases + inner.plain.on_loan(),
            timers: inner.timers.borrow().len(),
            tasks: inner.executor.live(),
        };
        self.inner.shared.lifecycle.lock().leaks.push((inner.id, leaks));
    }

    /// Ends what is left, at home: tasks, timers, calls. The last thing a shard does.
    pub(crate) fn shut(&self) {
        let inner = &self.inner;
        // Closures that were taken are run yet, and destructors may ask where they are.
        let current = self.enter();
        let entered = inner.executor.enter();
        inner.phase.set(ShardPhase::Stopped);
        // They hold this shard, and a shard that broke while it drained has not let go of them.
        let timers = [inner.drain_deadline.borrow_mut().take(), inner.late_drain.borrow_mut().take()];
        for timer in timers.into_iter().flatten() {
            let _ = timer.cancel();
        }
        self.drop_listeners();
        let tokens = inner.connections.borrow().tokens();
        for token in tokens {
            self.end(token, CloseReason::Stopped, EndKind::Close(CloseKind::Reset));
        }
        self.retire_ended();
        self.drop_datagrams(false);
        self.drop_watches();
        self.note_leaks();
        // Attempts begun while draining; what they hold may hold this shard, and would keep it for ever.
        self.fail_attempts();
        inner.executor.close();
        // What the tasks' destructors sent to this shard was taken, so it runs.
        inner.endpoint.publish();
        inner.endpoint.close(self);
        let calls = std::mem::take(&mut *inner.when_running.borrow_mut());
        self.drop_contained(calls);
        for _ in 0..LAST_TIMER_ROUNDS {
            let timers = inner.timers.borrow_mut().drain_all();
            if timers.is_empty() {
                break;
            }
            for timer in timers {
                self.drop_contained(timer);
            }
        }
        self.retire_ended();
        drop(entered);
        drop(current);
    }
}
