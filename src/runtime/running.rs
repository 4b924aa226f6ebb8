//! A runtime that runs: waiting for it, stopping it, and the signals that do.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{NotRunning, RunError};
use crate::runtime::Runtime;
use crate::runtime::app::App;
use crate::shard::handles::handle::Handle;
use crate::shard::shared::Shared;
use crate::sys::signals::{Notice, Signal, SignalGuard};

/// A runtime that was started. Dropping it stops it in order, and waits for that.
#[must_use = "the runtime stops when this is dropped"]
pub struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    pub(super) fn new(shared: Arc<Shared>, threads: Vec<JoinHandle<()>>) -> Self {
        Running { shared, threads }
    }

    /// The runtime, as seen from anywhere.
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }

    /// Stops the runtime in order; see [`Handle::stop`]. Returns at once.
    ///
    /// # Errors
    /// [`NotRunning`] when it was stopped before.
    pub fn stop(&self) -> Result<(), NotRunning> {
        self.shared.stop()
    }

    /// Waits until the runtime has stopped.
    ///
    /// # Errors
    /// [`RunError`]: what kept it from ending in order.
    /// # Panics
    /// On a shard of this runtime, which could never stop then.
    pub fn join(mut self) -> Result<(), RunError> {
        self.join_threads();
        self.shared.lifecycle.take_error().map_or(Ok(()), Err)
    }

    pub(super) fn wait_until_started(&self) -> Result<(), RunError> {
        self.shared.lifecycle.wait_until_started();
        if !self.shared.lifecycle.has_failed() {
            return Ok(());
        }
        let (error, shared) = (self.shared.lifecycle.take_error(), &self.shared);
        shared.abort();
        error.map_or(Ok(()), Err)
    }

    fn join_threads(&mut self) {
        assert!(self.handle().home().is_none(), "a shard cannot wait for its own runtime");
        super::join_all(std::mem::take(&mut self.threads));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Stopped already is as good.
        let _ = self.shared.stop();
        if self.handle().home().is_none() {
            self.join_threads();
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Running").field("handle", &self.handle()).finish()
    }
}

/// Runs until stopped; signals stop.
pub(super) fn run<A: App>(runtime: Runtime, app: A) -> Result<(), RunError> {
    // Before the first thread exists, so that no signal finds the old disposition.
    let guard = match SignalGuard::install(&[Signal::Interrupt, Signal::Terminate]) {
        Ok(guard) => Some(guard),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            tracing::warn!("another runtime of this process handles signals; this one does not");
            None
        }
        Err(error) => return Err(RunError::Signals(error)),
    };
    let running = runtime.launch(app)?;
    if let Some(guard) = &guard {
        let notifier = guard.notifier();
        running.shared.lifecycle.when_ended(move || notifier.notify());
        wait_for_signals(guard, &running)?;
    }
    running.join()
}

fn wait_for_signals(guard: &SignalGuard, running: &Running) -> Result<(), RunError> {
    let mut first: Option<Instant> = None;
    loop {
        let signal = match guard.wait().map_err(RunError::Signals)? {
            Notice::Notified => return Ok(()),
            Notice::Signal(signal) => signal,
        };
        running.shared.lifecycle.note_signal(signal.number());
        match first {
            None => {
                first = Some(Instant::now());
                // The application may have stopped the runtime itself: then this changes nothing.
                let _ = running.stop();
                tracing::info!(signal = signal.number(), "stopping; a second signal stops at once");
            }
            Some(first) if first.elapsed() < SAME_REQUEST => {
                tracing::debug!(
                    signal = signal.number(),
                    "a signal right behind the first one is taken for its echo"
                );
            }
            Some(_) => {
                tracing::warn!(signal = signal.number(), "stopping by force");
                running.handle().abort();
            }
        }
    }
}

/// `timeout(1)`, and whoever else signals a process and then its group, sends one request twice.
const SAME_REQUEST: Duration = Duration::from_millis(250);
