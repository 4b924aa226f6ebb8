//! IReactorCore: running, stopping, and tasks.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::NotRunning;
use crate::net::host_name::HostName;
use crate::shard::Shard;
use crate::shard::handles::handle::Handle;
use crate::shard::handles::resolving::Resolving;
use crate::shard::lifecycle::ShardPhase;
use crate::tasks::JoinHandle;

impl Shard {
    /// Whether the runtime runs: every shard has started, and this one has not yet ended its connections.
    pub fn running(&self) -> bool {
        matches!(self.inner.phase.get(), ShardPhase::Running | ShardPhase::Draining)
    }

    /// The runtime this shard belongs to, as seen from anywhere.
    pub fn handle(&self) -> Handle {
        Handle::new(self.inner.shared.clone())
    }

    /// Stops the whole runtime in order. Returns at once; nothing is stopped before the next turn.
    ///
    /// # Errors
    /// [`NotRunning`] when it was stopped before.
    pub fn stop(&self) -> Result<(), NotRunning> {
        self.inner.shared.stop()
    }

    /// Calls `call` once every shard has started, in the order these calls were made; in the next turn if they have.
    /// Never before this returns. Dropped uncalled if the runtime never runs.
    pub fn call_when_running(&self, call: impl FnOnce(&Shard) + 'static) {
        if self.inner.phase.get() == ShardPhase::Starting {
            self.inner.when_running.borrow_mut().push(Box::new(call));
        } else {
            self.call_later(std::time::Duration::ZERO, call);
        }
    }

    /// Looks up the addresses of `host`, of every family, each with `port`; the better ones first, as the resolver has them
    /// (for the system's: RFC 6724). An IP address is its own answer, and asks nobody.
    ///
    /// The runtime's [`Resolver`](crate::Resolver) is asked when the future is first polled. Nothing is remembered: a cache
    /// is the resolver's business.
    ///
    /// # Errors
    /// [`ResolveError`](crate::ResolveError) names the host: it is no name, has no address, or there was no answer within
    /// [`Config::resolve_timeout`](crate::Config::resolve_timeout).
    /// # Cancel safety
    /// Dropping the future gives the lookup up; an answer that comes later is discarded.
    pub fn resolve(&self, host: &str, port: u16) -> Resolving {
        Resolving::new(self, host, port)
    }

    pub(crate) fn resolve_name(&self, name: HostName, port: u16) -> Resolving {
        Resolving::of_name(self, name, port)
    }

    /// Random bits, for spreading things out: retries, samples. Not for secrets. In a simulation they repeat with its seed.
    pub fn random(&self) -> u64 {
        self.inner.driver.borrow_mut().random()
    }

    /// Runs `future` as a task of this shard. The handle gives its result; dropping the handle lets it go on.
    ///
    /// The future is polled and dropped on this shard only, whoever wakes it. A panic in it ends that task alone, and is
    /// an error of its handle. When the shard stops, tasks are dropped where they are.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
    {
        self.inner.executor.spawn(future)
    }

    /// Whether a task that has run for a while should let others run, by [`yield_now`](crate::yield_now): this turn has
    /// used up its time for tasks.
    pub fn should_yield(&self) -> bool {
        let spent = self.read_clock().saturating_duration_since(self.inner.now.get());
        spent > self.inner.shared.config.task_time_per_turn
    }

    /// Calls application code; a panic of it goes no further.
    pub(crate) fn call_contained(&self, who: &str, call: impl FnOnce(&Shard)) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| call(self))) {
            self.panicked(who, payload);
        }
    }
}
