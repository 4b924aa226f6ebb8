//! A shard on its caller's thread, turned by hand.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::ShardId;
use crate::error::RunError;
use crate::runtime::app::App;
use crate::runtime::{Runtime, prepare, thread};
use crate::shard::Shard;
use crate::shard::handles::handle::Handle;
use crate::shard::lifecycle::{RuntimeState, ShardPhase};
use crate::shard::placement::Pin;
use crate::shard::shared::Shared;
use crate::shard::turn::Rest;

/// A runtime of one shard that turns when its owner says so: made by [`Runtime::embed`].
///
/// A loop that has nothing else to do is `while embedded.turn(None)? != RuntimeState::Stopped {}`. A loop with work of its
/// own waits for [`Embedded::as_fd`] to become readable, for at most [`Embedded::rest`], and then calls
/// `turn(Some(Duration::ZERO))`.
///
/// Dropping it stops the runtime in order and turns until that is done; while the thread panics, it stops by force.
///
/// ```
/// use shardwise::{Runtime, RuntimeState, Shard};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), shardwise::RunError> {
/// let mut embedded = Runtime::new().embed(async |shard: Shard| {
///     shard.call_later(Duration::from_millis(5), |shard| drop(shard.stop()));
///     Ok(())
/// })?;
/// while embedded.turn(Some(Duration::from_millis(1)))? != RuntimeState::Stopped {
///     // Whatever else there is to do.
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Threads
/// It stays on the thread that made it; [`Embedded::handle`] reaches it from others.
#[must_use = "the runtime stops when this is dropped"]
pub struct Embedded {
    /// Until it has stopped.
    shard: Option<Shard>,
    shared: Arc<Shared>,
    news: OwnedFd,
}

pub(super) fn embed<A: App>(runtime: Runtime, app: A) -> Result<Embedded, RunError> {
    if Shard::try_current().is_some() {
        return Err(RunError::OnShardThread);
    }
    runtime.config.check().map_err(RunError::Config)?;
    if let Some(count) = runtime.request.shards
        && count != 1
    {
        return Err(RunError::Placement(format!("an embedded runtime has one shard, not {count}").into()));
    }
    if runtime.request.cpus.is_some() || runtime.request.pin == Pin::Always {
        return Err(RunError::Placement(
            "an embedded shard runs where its caller does: it takes no CPU".into(),
        ));
    }
    let id = ShardId::new(0);
    let broken = |action| move |source| RunError::Os { shard: id, action, source };
    let driver = thread::make_driver(runtime.driver, &runtime.config).map_err(broken("making its driver"))?;
    let news = driver.news_fd().map_err(broken("duplicating the descriptor of its driver"))?;
    tracing::info!("one shard, on its caller's thread, which turns it");
    runtime.announce_means();
    let shared = runtime.share(vec![driver.waker()], vec![None], false);
    let app = Arc::new(app);
    prepare(&*app, &shared)?;
    let shard = Shard::new(id, Arc::clone(&shared), driver);
    shard.begin(app);
    Ok(Embedded { shard: Some(shard), shared, news })
}

impl Embedded {
    /// Runs one turn: waits for something to happen, for at most `timeout` (`None`: for ever), and does what is due, within
    /// the limits that [`Config`](crate::Config) sets to a turn. Zero never waits; other times are rounded up to whole
    /// milliseconds. Says where the runtime is now. After it has stopped, a turn does nothing.
    ///
    /// # Errors
    /// [`RunError`], once, by the turn in which the runtime has stopped: what kept it from starting or from ending in order.
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<RuntimeState, RunError> {
        let Some(shard) = self.shard.take() else { return Ok(self.shared.lifecycle.state()) };
        // The caller may have been away for long: a sleep is counted from now.
        shard.inner.driver.borrow_mut().read_clock();
        let turned = catch_unwind(AssertUnwindSafe(|| shard.turn(timeout)));
        if matches!(turned, Ok(Ok(()))) && shard.inner.phase.get() != ShardPhase::Stopped {
            self.shard = Some(shard);
            return Ok(self.shared.lifecycle.state());
        }
        thread::end(shard, turned);
        self.shared.lifecycle.take_error().map_or_else(|| Ok(self.shared.lifecycle.state()), Err)
    }

    /// How long a loop around this one may wait for [`Embedded::as_fd`] before it calls [`Embedded::turn`]: zero while work
    /// is left from the last turn, `None` when only news from outside can bring any.
    pub fn rest(&self) -> Option<Duration> {
        let shard = self.shard.as_ref()?;
        match shard.inner.rest.get() {
            Rest::None => Some(Duration::ZERO),
            Rest::Until(deadline) => {
                let mut driver = shard.inner.driver.borrow_mut();
                let now = driver.read_clock();
                driver.longest_rest(deadline.map(|deadline| deadline.saturating_duration_since(now)))
            }
        }
    }

    /// Calls `f` as if from within a turn: [`Shard::current`] is this shard. `None` after the runtime has stopped. What it
    /// asks for is begun in the next turn.
    pub fn with_shard<T>(&mut self, f: impl FnOnce(&Shard) -> T) -> Option<T> {
        self.shard.as_ref().map(|shard| shard.between_turns(f))
    }

    /// The runtime, as seen from anywhere.
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }
}

/// A descriptor that is readable (`poll(2)`) while the kernel has news for the shard. It is the driver's: wait for it, and
/// leave the rest to [`Embedded::turn`].
impl AsFd for Embedded {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if self.shard.is_none() {
            return;
        }
        // Stopped already is as good.
        let _ = self.shared.stop();
        if std::thread::panicking() {
            self.shared.abort();
        }
        // What went wrong has nobody to be told to, as when a `Running` is dropped.
        while self.shard.is_some() {
            let _ = self.turn(None);
        }
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Embedded").field("handle", &self.handle()).finish()
    }
}
