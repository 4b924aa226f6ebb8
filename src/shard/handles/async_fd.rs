//! A descriptor that tasks wait for.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::shard::Shard;
use crate::shard::waker_list::Wait;
use crate::shard::watching::{Direction, WatchCore};
use crate::tasks::yield_now;

/// Anything with a descriptor, for tasks that read and write it themselves. It should be non-blocking.
///
/// Try first, and wait when that would block: waiting costs a turn.
///
/// ```
/// # use shardwise::{AsyncFd, Result};
/// # use std::io::{ErrorKind, PipeReader, Read};
/// async fn read(pipe: &mut AsyncFd<PipeReader>, buffer: &mut [u8]) -> Result<usize> {
///     loop {
///         match pipe.get_mut().read(buffer) {
///             Err(error) if error.kind() == ErrorKind::WouldBlock => pipe.readable().await?,
///             outcome => return Ok(outcome?),
///         }
///     }
/// }
/// ```
///
/// Dropping it ends the watching, and drops the value.
///
/// # Threads
/// `!Send`: it stays on its shard.
pub struct AsyncFd<T: AsFd> {
    shard: Shard,
    core: Rc<WatchCore>,
    /// `Some` until it is taken out.
    value: Option<T>,
}

impl<T: AsFd> AsyncFd<T> {
    /// Registers the descriptor of `value` with the current shard. It must stay the same, and open, meanwhile.
    ///
    /// # Errors
    /// What the operating system says; the value is dropped. In a simulation there are no descriptors: `Unsupported`.
    /// # Panics
    /// When no shard is current on this thread.
    pub fn new(value: T) -> io::Result<AsyncFd<T>> {
        let shard = Shard::current();
        let core = shard.watch_descriptor(value.as_fd(), false)?;
        Ok(AsyncFd { shard, core, value: Some(value) })
    }

    /// The value.
    pub fn get_ref(&self) -> &T {
        self.value.as_ref().expect("taken out with the whole")
    }

    /// The value. Its descriptor must stay the same.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("taken out with the whole")
    }

    /// Ends the watching and gives the value back.
    pub fn into_inner(mut self) -> T {
        self.shard.unwatch(&self.core);
        self.value.take().expect("taken out once")
    }

    /// Waits until a read does not: there are bytes, an end, or an error to find. Tells how things are now, not what an
    /// earlier wait has missed.
    ///
    /// A regular file never waits; for it this is ready in the next turn, so that others get theirs.
    ///
    /// # Errors
    /// `NotConnected` when the shard has stopped, or what the operating system says.
    /// # Cancel safety
    /// Safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.wait(Direction::Reading).await
    }

    /// Waits until a write does not. As [`AsyncFd::readable`] in all else.
    ///
    /// # Errors
    /// As [`AsyncFd::readable`].
    /// # Cancel safety
    /// Safe.
    pub async fn writable(&self) -> io::Result<()> {
        self.wait(Direction::Writing).await
    }

    async fn wait(&self, direction: Direction) -> io::Result<()> {
        if self.core.always_ready {
            yield_now().await;
            return Ok(());
        }
        let wait = Wait::at(&self.core.waiting(direction).waiters);
        WaitReady { shard: &self.shard, core: &self.core, direction, wait, since: None }.await
    }
}

impl<T: AsFd> AsFd for AsyncFd<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get_ref().as_fd()
    }
}

impl<T: AsFd> Drop for AsyncFd<T> {
    fn drop(&mut self) {
        // Before the value, which may close the descriptor.
        self.shard.unwatch(&self.core);
    }
}

impl<T: AsFd + fmt::Debug> fmt::Debug for AsyncFd<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("AsyncFd").field(&self.value).finish()
    }
}

struct WaitReady<'a> {
    shard: &'a Shard,
    core: &'a Rc<WatchCore>,
    direction: Direction,
    wait: Wait<'a>,
    /// How often it had been found ready when the wait began.
    since: Option<u64>,
}

impl Future for WaitReady<'_> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let WaitReady { shard, core, direction, wait, since } = &mut *self;
        match since {
            Some(since) if core.found_since(*direction, *since) => Poll::Ready(Ok(())),
            Some(_) => {
                wait.keep(context);
                Poll::Pending
            }
            None => match shard.wait_for(core, *direction, wait, context) {
                Ok(found) => {
                    *since = Some(found);
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}
