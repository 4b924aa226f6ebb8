//! One shard's thread: pins itself, makes its driver, turns until the runtime has stopped.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;

use crate::ShardId;
use crate::config::Config;
use crate::error::{Result, RunError, log_contained, panic_message};
use crate::reactor::driver::mio::MioDriver;
use crate::reactor::driver::{Driver, DriverConfig};
use crate::reactor::waker::DriverWaker;
use crate::runtime::DriverKind;
use crate::runtime::app::App;
use crate::shard::Shard;
use crate::shard::lifecycle::ShardPhase;
use crate::shard::placement;
use crate::shard::shared::Shared;
use crate::tasks::JoinError;

/// What a thread needs to become a shard.
pub(super) struct Seat {
    pub(super) id: ShardId,
    pub(super) cpu: Option<usize>,
    pub(super) pin_required: bool,
    pub(super) driver: DriverKind,
    pub(super) config: Config,
    pub(super) ready: mpsc::Sender<std::result::Result<Made, RunError>>,
    pub(super) goes: mpsc::Receiver<Arc<Shared>>,
}

/// What a thread has made.
pub(super) struct Made {
    pub(super) id: ShardId,
    /// Where it is pinned.
    pub(super) cpu: Option<usize>,
    pub(super) waker: DriverWaker,
}

/// The body of a shard's thread.
pub(super) fn run<A: App>(seat: Seat, app: Arc<A>) {
    let id = seat.id;
    let cpu = seat.cpu.and_then(|cpu| match placement::pin_current_thread(cpu) {
        Ok(()) => Some(cpu),
        Err(error) => {
            let required = seat.pin_required;
            log_contained(|| tracing::warn!(shard = id.index(), cpu, %error, required, "not pinned; the shard runs on any CPU"));
            None
        }
    });
    let driver = match make_driver(seat.driver, &seat.config) {
        Ok(driver) => driver,
        Err(source) => {
            let error = RunError::Os { shard: id, action: "making its driver", source };
            let _ = seat.ready.send(Err(error));
            return;
        }
    };
    let made = Made { id, cpu, waker: driver.waker() };
    if seat.ready.send(Ok(made)).is_err() {
        return;
    }
    // Nobody says go when another shard could not be made.
    let Ok(shared) = seat.goes.recv() else { return };
    let shard = Shard::new(id, shared, driver);
    let looped = catch_unwind(AssertUnwindSafe(|| {
        shard.begin(app);
        turn_until_stopped(&shard)
    }));
    end(shard, looped);
}

/// Lets go of a shard whose loop has ended, or broken.
pub(super) fn end(shard: Shard, looped: std::thread::Result<io::Result<()>>) {
    let id = shard.id();
    let shared = Arc::clone(&shard.inner.shared);
    let phase = shard.inner.phase.get();
    match looped {
        Ok(Ok(())) => {}
        Ok(Err(source)) => {
            shared.shard_broke(phase, RunError::Os { shard: id, action: "waiting for events", source });
        }
        Err(payload) => {
            let message = panic_message(&*payload);
            shared.shard_broke(phase, RunError::Panicked { shard: id, message });
        }
    }
    if catch_unwind(AssertUnwindSafe(|| shard.shut())).is_err() {
        log_contained(|| tracing::error!(shard = id.index(), "a shard panicked while it stopped"));
    }
    drop(shard);
    shared.shard_ended();
}

pub(super) fn make_driver(kind: DriverKind, config: &Config) -> io::Result<Box<dyn Driver>> {
    let config = DriverConfig { read_buffer_bytes: config.read_buffer_bytes, ..DriverConfig::default() };
    match kind {
        DriverKind::Auto | DriverKind::Mio => Ok(Box::new(MioDriver::new(config)?)),
    }
}

fn turn_until_stopped(shard: &Shard) -> io::Result<()> {
    while shard.inner.phase.get() != ShardPhase::Stopped {
        shard.turn(None)?;
    }
    Ok(())
}

impl Shard {
    /// Starts the application here, as a task.
    pub(crate) fn begin<A: App>(&self, app: Arc<A>) {
        let shared = Arc::clone(&self.inner.shared);
        let id = self.inner.id;
        let shard = self.clone();
        let started = self.spawn(async move { app.start(shard).await });
        drop(self.spawn(async move {
            let outcome: Result<()> = match started.await {
                Ok(outcome) => outcome,
                Err(JoinError::Cancelled) => return,
                Err(JoinError::Panicked(panic)) => {
                    shared.shard_failed(RunError::Panicked { shard: id, message: panic.message() });
                    return;
                }
            };
            match outcome {
                Ok(()) => shared.shard_started(),
                Err(source) => shared.start_failed(RunError::Start { shard: id, source }),
            }
        }));
    }
}
