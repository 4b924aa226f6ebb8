//! What a user hands to a runtime.

use std::future::Future;

use crate::error::Result;
use crate::shard::Shard;
use crate::shard::handles::handle::Handle;

/// An application: started once per runtime, then once on each shard.
///
/// Every `async |shard: Shard| { …; Ok(()) }` is one. The type is needed there: the compiler asks for it (E0282, "type
/// annotations needed") where it is left out, since a closure is only one way to write an application.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an application",
    label = "runs on no shard",
    note = "write `async |shard: Shard| {{ …; Ok(()) }}`, whose captures are `Send + Sync + 'static`, or implement `App`"
)]
pub trait App: Send + Sync + 'static {
    /// Called once, before any shard starts, on the thread that runs the runtime.
    ///
    /// # Errors
    /// Ends the runtime before it has begun.
    fn prepare(&self, handle: &Handle) -> Result<()> {
        let _ = handle;
        Ok(())
    }

    /// Called on each shard, on its own thread. While the future is pending, timers, calls and outgoing connections work;
    /// nothing is accepted before every shard's future has returned `Ok`.
    ///
    /// # Errors
    /// The first error, or panic, stops all shards and is what [`Runtime::run`](crate::Runtime::run) returns.
    fn start(&self, shard: Shard) -> impl Future<Output = Result<()>>;
}

impl<F> App for F
where
    F: AsyncFn(Shard) -> Result<()> + Send + Sync + 'static,
{
    fn start(&self, shard: Shard) -> impl Future<Output = Result<()>> {
        self(shard)
    }
}
