//! The running runtime, seen from anywhere.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::ShardId;
use crate::cross_shard::{CallError, Route, Stopped};
use crate::error::NotRunning;
use crate::shard::Shard;
use crate::shard::handles::call::{AsyncClosure, Closure, Dispatch, join_all};
use crate::shard::handles::handle_call::HandleCall;
use crate::shard::lifecycle::RuntimeState;
use crate::shard::shared::Shared;

/// A running runtime, seen from anywhere: any thread, any shard, any other runtime. Cheap to clone; outlives the
/// runtime harmlessly.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Handle { shared }
    }

    /// How many shards the runtime has.
    pub fn shards(&self) -> usize {
        self.shared.mesh.len()
    }

    /// The ids of all shards.
    pub fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shared.mesh.len() as u16).map(ShardId::new)
    }

    /// Where the runtime is between start and stop.
    pub fn state(&self) -> RuntimeState {
        self.shared.lifecycle.state()
    }

    /// Stops the runtime in order: listeners close without losing their queues, connections are told to come to an end,
    /// and have [`Config::drain_timeout`](crate::Config::drain_timeout) for it. Returns at once.
    ///
    /// A runtime that is stopped before every shard has started never accepts: who waits in a listener's queue then is
    /// reset, as when the start had failed.
    ///
    /// # Errors
    /// [`NotRunning`] when it was stopped before.
    pub fn stop(&self) -> Result<(), NotRunning> {
        self.shared.stop()
    }

    /// As [`Handle::stop`], from a signal handler: async-signal-safe (signal-safety(7)). It neither allocates nor locks nor
    /// waits, and leaves errno alone; a shard that is awake, or is woken, begins the stop with its next turn. Does nothing
    /// when the runtime is being stopped already; asked for before the shards run, it stops them when they do.
    ///
    /// [`Runtime::run`](crate::Runtime::run) needs no help with SIGINT and SIGTERM: this is for handlers of one's own,
    /// which find the handle in a `static`, since making or dropping one there is not safe.
    pub fn stop_from_signal(&self) {
        self.shared.ask_for_stop();
    }

    /// Stops the runtime now: connections that are open are reset, and counted.
    pub fn abort(&self) {
        self.shared.abort_by_force();
    }

    /// Runs `f` on the routed shard, soon: fire and forget, from any thread and any shard. Calls of one thread to one
    /// shard run in the order they were made; on the routed shard itself too `f` is queued, never run at once. Calls made
    /// before the runtime runs are kept. A panic in `f` is counted and logged there.
    ///
    /// Never blocks and is never refused for want of room, but allocates: not for signal handlers.
    ///
    /// # Errors
    /// Gives `f` back inside [`Stopped`] once the shard has stopped. Of an `f` that was taken, the shard runs it.
    /// # Panics
    /// When the runtime has no such shard: that is a bug in the caller.
    pub fn call_from_thread<F>(&self, route: impl Into<Route>, f: F) -> Result<(), Stopped<F>>
    where
        F: FnOnce(&Shard) + Send + 'static,
    {
        let route = route.into();
        match self.home() {
            Some(shard) => shard.call_from_thread(route, f),
            None => self.shared.mesh.post(self.shared.mesh.resolve(route), f).map_err(Stopped::new),
        }
    }

    /// Runs `f` on the routed shard and waits for its result.
    ///
    /// # Errors
    /// [`CallError::OnShardThread`] on a thread that runs a shard, of this runtime or another: waiting would stop it.
    /// [`CallError::NotStarted`] in [`App::prepare`](crate::App::prepare), which the shards wait for; other threads may
    /// call by then, and are answered once the shards run.
    /// [`CallError::Stopped`] when the shard stops first; [`CallError::Panicked`] when `f` does.
    /// # Panics
    /// When the runtime has no such shard.
    pub fn blocking_call_from_thread<T, F>(&self, route: impl Into<Route>, f: F) -> Result<T, CallError>
    where
        F: FnOnce(&Shard) -> T + Send + 'static,
        T: Send + 'static,
    {
        self.send_and_wait(route.into(), Closure::new(f))
    }

    /// Runs the async closure `f` as a task of the routed shard and waits for its result.
    ///
    /// # Errors
    /// As [`Handle::blocking_call_from_thread`].
    /// # Panics
    /// When the runtime has no such shard.
    pub fn blocking_call_async_from_thread<T, F>(&self, route: impl Into<Route>, f: F) -> Result<T, CallError>
    where
        F: AsyncFnOnce(Shard) -> T + Send + 'static,
        T: Send + 'static,
    {
        self.send_and_wait(route.into(), AsyncClosure::new(f))
    }

    fn send_and_wait<T>(&self, route: Route, dispatch: impl Dispatch<T>) -> Result<T, CallError> {
        self.may_wait()?;
        let target = self.shared.mesh.resolve(route);
        dispatch.send_from_anywhere(&self.shared, None, target).wait_blocking()
    }

    /// Whether this thread may wait for a shard.
    fn may_wait(&self) -> Result<(), CallError> {
        if Shard::try_current().is_some() {
            return Err(CallError::OnShardThread);
        }
        if self.shared.is_prepared_here() {
            return Err(CallError::NotStarted);
        }
        Ok(())
    }

    /// Runs `f` on the routed shard and gives its result: a future for any async context, on a shard or not, of this
    /// runtime or any other. Nothing is sent before it is first polled. On a shard of this runtime it is sent with all
    /// else that the shard sends, in the same order; there [`Shard::call`] is the cheaper one.
    ///
    /// It does not wait its turn among the 1,024 of [`Shard::call`], wherever it is polled: how many are on their way is
    /// the caller's to bound.
    ///
    /// # Errors
    /// [`CallError::NotStarted`] in [`App::prepare`](crate::App::prepare); otherwise as [`Shard::call`].
    /// # Panics
    /// When polled, if the runtime has no such shard.
    /// # Cancel safety
    /// Dropped before it has started on the target, the call is withdrawn, and the closure dropped there; after that its
    /// result is discarded.
    pub fn call<T, F>(&self, route: impl Into<Route>, f: F) -> HandleCall<Closure<F>, T>
    where
        F: FnOnce(&Shard) -> T + Send + 'static,
        T: Send + 'static,
    {
        HandleCall::new(self.clone(), route.into(), Closure::new(f))
    }

    /// Runs the async closure `f` as a task of the routed shard and gives its result; in any async context. The closure
    /// travels, so it is `Send`; the future it makes need not be. Otherwise as [`Handle::call`].
    pub fn call_async<T, F>(&self, route: impl Into<Route>, f: F) -> HandleCall<AsyncClosure<F>, T>
    where
        F: AsyncFnOnce(Shard) -> T + Send + 'static,
        T: Send + 'static,
    {
        HandleCall::new(self.clone(), route.into(), AsyncClosure::new(f))
    }

    /// Runs `f` on every shard and gives the results in the order of the shards. All calls are sent before the first
    /// result is waited for. In any async context, as [`Handle::call`].
    pub async fn call_all<T, F>(&self, f: F) -> Vec<Result<T, CallError>>
    where
        F: Fn(&Shard) -> T + Send + Sync + 'static,
        T: Send + 'static,
    {
        let f = Arc::new(f);
        let call = |id| {
            let f = Arc::clone(&f);
            self.call(id, move |shard: &Shard| f(shard))
        };
        join_all(self.shard_ids().map(call).collect()).await
    }

    /// As [`Handle::call_all`], for a thread that waits.
    ///
    /// # Errors
    /// One per shard; where [`Handle::blocking_call_from_thread`] may not wait, all say why.
    pub fn call_all_from_thread<T, F>(&self, f: F) -> Vec<Result<T, CallError>>
    where
        F: Fn(&Shard) -> T + Send + Sync + 'static,
        T: Send + 'static,
    {
        let f = Arc::new(f);
        let call = |id| {
            self.may_wait()?;
            let f = Arc::clone(&f);
            Ok(self.shared.mesh.call_from_thread(id, move |shard: &Shard| f(shard)))
        };
        let calls: Vec<_> = self.shard_ids().map(call).collect();
        calls.into_iter().map(|call| call?.wait_blocking()).collect()
    }

    /// What the shards have done so far.
    pub fn report(&self) -> Vec<ShardReport> {
        self.shard_ids().map(|id| ShardReport::new(id, &self.shared)).collect()
    }

    /// The shard of this runtime that is current on this thread, if one is.
    pub(crate) fn home(&self) -> Option<Shard> {
        Shard::try_current().filter(|shard| Arc::ptr_eq(&shard.inner.shared, &self.shared))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Handle");
        debug.field("shards", &self.shards()).field("state", &self.state()).finish()
    }
}

/// What one shard has done since it started. Counters are read one by one while the shard goes on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShardReport {
    /// The shard.
    pub shard: ShardId,
    /// The CPU it is pinned to, if it is.
    pub cpu: Option<usize>,
    /// Connections accepted.
    pub accepted: u64,
    /// Outgoing connections established.
    pub connected: u64,
    /// TLS handshakes completed, in either role.
    pub handshakes: u64,
    /// Connections whose TLS failed, in the handshake or after it. Ends without close_notify are not counted.
    pub tls_failures: u64,
    /// Connections that are open now, those that wait for their peer's FIN included.
    pub open_connections: u64,
    /// Times bytes were received.
    pub receives: u64,
    /// Bytes received, in datagrams too.
    pub received_bytes: u64,
    /// Time spent awake.
    pub busy: Duration,
    /// Turns of the loop.
    pub turns: u64,
    /// Times the shard slept.
    pub parks: u64,
    /// Panics of application code.
    pub panics: u64,
    /// Times accepting failed, for want of descriptors or memory.
    pub accept_failures: u64,
    /// Connections refused since a [`ConnectionLimit`](crate::policies::ConnectionLimit) was reached, in either direction.
    pub refused: u64,
    /// Connections that ended since their PROXY protocol header was malformed, late, or not from a trusted proxy.
    pub proxy_headers_refused: u64,
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Datagrams the kernel took to send.
    pub datagrams_sent: u64,
    /// Datagrams the kernel dropped since the shard did not fetch them in time (`SO_RXQ_OVFL`). The kernel tells it with
    /// the next one that is received.
    pub datagrams_dropped: u64,
    /// Datagrams received that were longer than their socket takes.
    pub datagrams_truncated: u64,
    /// Callbacks of datagram protocols that returned an error or panicked.
    pub datagrams_failed: u64,
    /// Connections that were cut off, since they were still open at the drain deadline, or at a second signal,
    /// [`Handle::abort`] or a failed start.
    pub aborted: u64,
    /// Bytes that were written and never reached the kernel: of connections that were aborted or broke, and of protocols
    /// that panicked.
    pub unsent_bytes_dropped: u64,
    /// Messages and calls from elsewhere that it has run.
    pub messages: u64,
    /// Times the shard was woken from its sleep by a system call of a sender.
    pub wakes_written: u64,
    /// Times a sender found it awake, and saved that system call.
    pub wakes_elided: u64,
}

impl ShardReport {
    fn new(shard: ShardId, shared: &Shared) -> Self {
        let stats = &shared.stats[shard.index()];
        let inbox = shared.mesh.counters(shard);
        ShardReport {
            shard,
            cpu: shared.cpus[shard.index()],
            accepted: stats.accepted.get(),
            connected: stats.connected.get(),
            handshakes: stats.handshakes.get(),
            tls_failures: stats.tls_failures.get(),
            open_connections: stats.open.get(),
            receives: stats.receives.get(),
            received_bytes: stats.received_bytes.get(),
            busy: Duration::from_nanos(stats.busy_nanos.get()),
            turns: stats.turns.get(),
            parks: stats.parks.get(),
            panics: stats.panics.get() + inbox.panics,
            accept_failures: stats.accept_failures.get(),
            refused: stats.refused.get(),
            proxy_headers_refused: stats.proxy_headers_refused.get(),
            datagrams_received: stats.datagrams_received.get(),
            datagrams_sent: stats.datagrams_sent.get(),
            datagrams_dropped: stats.datagrams_dropped.get(),
            datagrams_truncated: stats.datagrams_truncated.get(),
            datagrams_failed: stats.datagrams_failed.get(),
            aborted: stats.aborted.get(),
            unsent_bytes_dropped: stats.unsent_bytes_dropped.get(),
            messages: inbox.messages,
            wakes_written: inbox.wakes_written,
            wakes_elided: inbox.wakes_elided,
        }
    }
}
