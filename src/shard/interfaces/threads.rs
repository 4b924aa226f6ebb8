//! IReactorThreads: calls between shards, seen from a shard.

use std::sync::Arc;

use crate::cross_shard::{Route, Stopped};
use crate::shard::Shard;
use crate::shard::handles::call::{AsyncClosure, Call, Closure, join_all};

impl Shard {
    /// Runs `f` on the routed shard, soon: fire and forget. As [`Handle::call_from_thread`](crate::Handle::call_from_thread)
    /// made here, and in one order with it, without asking first where "here" is.
    ///
    /// # Errors
    /// Gives `f` back inside [`Stopped`] once the shard has stopped. Of an `f` that was taken, the shard runs it.
    /// # Panics
    /// When the runtime has no such shard: that is a bug in the caller.
    #[inline]
    pub fn call_from_thread<F>(&self, route: impl Into<Route>, f: F) -> Result<(), Stopped<F>>
    where
        F: FnOnce(&Shard) + Send + 'static,
    {
        let endpoint = &self.inner.endpoint;
        endpoint.post(endpoint.resolve(route.into()), f).map_err(Stopped::new)
    }

    /// Runs `f` on the routed shard and gives its result. Nothing is sent before the future is first polled; calls from
    /// this shard to another start in the order they were sent.
    ///
    /// At most 1,024 calls to one shard are on their way from here; more wait for their turn. An async call is on its way
    /// until it has started: what it waits for then may be calls that come back here, to any depth.
    ///
    /// # Panics
    /// When polled, if the runtime has no such shard: a number that came from elsewhere is to be checked against
    /// [`Shard::shards`].
    /// # Cancel safety
    /// Dropped before it has started on the target, the call is withdrawn; after that its result is discarded.
    pub fn call<T, F>(&self, route: impl Into<Route>, f: F) -> Call<Closure<F>, T>
    where
        F: FnOnce(&Shard) -> T + Send + 'static,
        T: Send + 'static,
    {
        Call::new(self.clone(), route.into(), Closure::new(f))
    }

    /// Runs the async closure `f` as a task of the routed shard and gives its result. The closure travels, so it is
    /// `Send`; the future it makes need not be. Counts among the 1,024 of [`Shard::call`] until it has started.
    ///
    /// # Panics
    /// As [`Shard::call`]; and when 16,777,215 calls of this shard are without an answer: those that have started are not
    /// otherwise bounded.
    /// # Cancel safety
    /// As [`Shard::call`].
    pub fn call_async<T, F>(&self, route: impl Into<Route>, f: F) -> Call<AsyncClosure<F>, T>
    where
        F: AsyncFnOnce(Shard) -> T + Send + 'static,
        T: Send + 'static,
    {
        Call::new(self.clone(), route.into(), AsyncClosure::new(f))
    }

    /// Runs `f` on every shard, this one included, and gives the results in the order of the shards.
    pub async fn call_all<T, F>(&self, f: F) -> Vec<Result<T, crate::CallError>>
    where
        F: Fn(&Shard) -> T + Send + Sync + 'static,
        T: Send + 'static,
    {
        let f = Arc::new(f);
        let call = |id| {
            let f = Arc::clone(&f);
            self.call(id, move |shard: &Shard| f(shard))
        };
        join_all(self.handle().shard_ids().map(call).collect()).await
    }
}
