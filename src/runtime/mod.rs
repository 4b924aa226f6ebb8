//! How many: builds the shards, starts, pins, stops and joins them. Knows neither connections nor bytes.

pub(crate) mod app;
pub(crate) mod embedded;
pub(crate) mod running;
pub(crate) mod thread;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use crate::ShardId;
use crate::config::Config;
use crate::cross_shard::Mesh;
use crate::error::RunError;
use crate::net::resolver::Resolver;
use crate::reactor::waker::DriverWaker;
use crate::shard::Shard;
use crate::shard::blocking_resolver::BlockingResolver;
use crate::shard::groups::Groups;
use crate::shard::lifecycle::Lifecycle;
use crate::shard::placement::{self, Host, Pin, Placement, PlacementRequest};
use crate::shard::shared::{Detached, Shared};
use crate::shard::stats::ShardStats;
use app::App;
use embedded::Embedded;
use running::Running;

/// Builds a runtime: how many shards, where they run, which driver they use, what limits they have.
///
/// ```no_run
/// use shardwise::{Input, Protocol, Result, Runtime, Shard, Transport};
///
/// struct Echo;
/// impl Protocol for Echo {
///     fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
///         transport.write(input.take())?;
///         Ok(())
///     }
/// }
///
/// fn main() -> shardwise::Result<()> {
///     Runtime::new().shards(4).run(async |shard: Shard| {
///         shard.listen_tcp("127.0.0.1:7000", || Echo)?;
///         Ok(())
///     })?;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a runtime does nothing until it is run"]
pub struct Runtime {
    request: PlacementRequest,
    driver: DriverKind,
    config: Config,
    resolver: Installed,
}

/// The resolver that was installed, if one was.
#[derive(Clone, Default)]
pub(crate) struct Installed(pub(crate) Option<Arc<dyn Resolver>>);

impl fmt::Debug for Installed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() { "installed" } else { "the default" })
    }
}

/// Which kernel interface the shards use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DriverKind {
    /// The best there is here; the start-up block says which, and why.
    #[default]
    Auto,
    /// epoll, through mio.
    Mio,
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime::new()
    }
}

impl Runtime {
    /// One shard per CPU that this process may use, pinned to it.
    pub fn new() -> Self {
        Runtime {
            request: PlacementRequest { shards: None, cpus: None, pin: Pin::Auto },
            driver: DriverKind::Auto,
            config: Config::default(),
            resolver: Installed::default(),
        }
    }

    /// How many shards, 1 to 256. More than there are CPUs share them.
    pub fn shards(mut self, count: usize) -> Self {
        self.request.shards = Some(count);
        self
    }

    /// Which CPUs the shards run on, in the order of the shards. Without [`Runtime::shards`], one shard on each.
    pub fn cpus(mut self, cpus: impl IntoIterator<Item = usize>) -> Self {
        self.request.cpus = Some(cpus.into_iter().collect());
        self
    }

    /// Whether each shard is pinned to its CPU. Unless said, it is where that makes sense; the start-up block says why
    /// when it does not.
    pub fn pin(mut self, on: bool) -> Self {
        self.request.pin = if on { Pin::Always } else { Pin::Never };
        self
    }

    /// Which kernel interface to use.
    pub fn driver(mut self, kind: DriverKind) -> Self {
        self.driver = kind;
        self
    }

    /// Limits and times.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Who looks up names; the system's resolver unless said: [`BlockingResolver::system`].
    pub fn resolver(mut self, resolver: impl Resolver) -> Self {
        self.resolver = Installed(Some(Arc::new(resolver)));
        self
    }

    /// Runs `app` on every shard until it is stopped: by [`Handle::stop`](crate::Handle::stop), or by SIGINT or SIGTERM,
    /// for which handlers are installed meanwhile. A second signal ends it at once, unless it comes within 250 ms of the
    /// first: `timeout(1)` and others signal a process and then its group. A SIGINT that is ignored when this is called, as
    /// it is for a job in the background of a script, stays ignored. The calling thread only waits.
    ///
    /// # Errors
    /// [`RunError`]: what kept the runtime from starting, naming the shard, or from ending in order.
    pub fn run<A: App>(self, app: A) -> Result<(), RunError> {
        running::run(self, app)
    }

    /// Starts `app` on every shard and returns when all of them have started. Installs no signal handlers.
    ///
    /// # Errors
    /// [`RunError`]: what kept the runtime from starting, naming the shard. Nothing is left behind then.
    pub fn start<A: App>(self, app: A) -> Result<Running, RunError> {
        let running = self.launch(app)?;
        running.wait_until_started()?;
        Ok(running)
    }

    /// Makes a runtime of one shard that lives on the calling thread, and turns only when it is told to: for loops that are
    /// there already, and for tests. `app` has not started when this returns; it does so in the first turns. Installs no
    /// signal handlers.
    ///
    /// # Errors
    /// [`RunError`], as [`Runtime::start`]; also when more than one shard is asked for, or CPUs: an embedded shard runs
    /// where its caller does.
    pub fn embed<A: App>(self, app: A) -> Result<Embedded, RunError> {
        embedded::embed(self, app)
    }

    /// Starts all threads. Does not wait for `App::start`.
    fn launch<A: App>(self, app: A) -> Result<Running, RunError> {
        if Shard::try_current().is_some() {
            return Err(RunError::OnShardThread);
        }
        self.config.check().map_err(RunError::Config)?;
        let host = Host::detect();
        let placement =
            placement::plan(&self.request, &host).map_err(|error| RunError::Placement(error.into()))?;
        self.announce(&placement);
        let app = Arc::new(app);
        let (ready, made) = mpsc::channel();
        let mut threads = Vec::new();
        let mut starters = Vec::new();
        for (number, place) in placement.shards.iter().enumerate() {
            let id = ShardId::new(number as u16);
            let (go, goes) = mpsc::channel();
            let seat = thread::Seat {
                id,
                cpu: place.cpu,
                pin_required: self.request.pin == Pin::Always,
                driver: self.driver,
                config: self.config.clone(),
                ready: ready.clone(),
                goes,
            };
            let app = Arc::clone(&app);
            let spawned = std::thread::Builder::new()
                .name(format!("shard-{number}"))
                .spawn(move || thread::run(seat, app))
                .map_err(|source| RunError::Os { shard: id, action: "starting its thread", source });
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // The threads that run end when nobody tells them to go.
                    drop(starters);
                    join_all(threads);
                    return Err(error);
                }
            }
            starters.push(go);
        }
        drop(ready);
        match self.gather(&placement, made) {
            Ok(shared) => {
                if let Err(error) = prepare(&*app, &shared) {
                    drop(starters);
                    join_all(threads);
                    return Err(error);
                }
                for starter in starters {
                    // A thread that is gone has died of something worse, which joining it tells.
                    let _ = starter.send(Arc::clone(&shared));
                }
                Ok(Running::new(shared, threads))
            }
            Err(error) => {
                drop(starters);
                join_all(threads);
                Err(error)
            }
        }
    }

    /// Waits until every thread has made its driver, and joins them to one runtime.
    fn gather(
        &self,
        placement: &Placement,
        made: mpsc::Receiver<Result<thread::Made, RunError>>,
    ) -> Result<Arc<Shared>, RunError> {
        let count = placement.shards.len();
        let mut wakers: Vec<Option<DriverWaker>> = (0..count).map(|_| None).collect();
        let mut cpus = vec![None; count];
        let mut first_error = None;
        for outcome in made.iter().take(count) {
            match outcome {
                Ok(made) => {
                    cpus[made.id.index()] = made.cpu;
                    wakers[made.id.index()] = Some(made.waker);
                }
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        let wakers: Option<Vec<_>> = wakers.into_iter().collect();
        let wakers = wakers.expect("every thread reports once");
        let alone = cpus.iter().all(Option::is_some) && !placement.oversubscribed;
        Ok(self.share(wakers, cpus, alone))
    }

    /// What the shards of this runtime share. Made by the caller's thread, not by a shard: the resolver's threads run
    /// where this one may.
    fn share(&self, wakers: Vec<DriverWaker>, cpus: Vec<Option<usize>>, may_poll: bool) -> Arc<Shared> {
        let system = || Arc::new(BlockingResolver::system(&self.config)) as Arc<dyn Resolver>;
        let resolver = self.resolver.0.clone().unwrap_or_else(system);
        new_shared(self.config.clone(), wakers, cpus, may_poll, resolver)
    }

    /// The start-up block.
    fn announce(&self, placement: &Placement) {
        let shards = placement.shards.len();
        let cpus: Vec<_> = placement.shards.iter().map(|place| place.cpu).collect();
        tracing::info!(shards, ?cpus, "placing shards");
        for reason in &placement.reasons {
            tracing::info!("{reason}");
        }
        self.announce_means();
    }

    /// The part of the start-up block that does not depend on where the shards are.
    fn announce_means(&self) {
        let why = match self.driver {
            DriverKind::Auto => "the only driver of this version for real networks",
            DriverKind::Mio => "as asked",
        };
        tracing::info!(driver = "mio", why, "driver");
        tracing::info!(
            policy = "reuseport",
            why = "the kernel spreads connections by their addresses",
            "accepting"
        );
        for line in self.config.lines() {
            tracing::info!("limits of {line}");
        }
    }
}

/// Asks the application. What threads have sent to the shards by then is turned away if it refuses, or panics.
pub(crate) fn prepare<A: App>(app: &A, shared: &Arc<Shared>) -> Result<(), RunError> {
    let handle = crate::Handle::new(Arc::clone(shared));
    let preparing = shared.begin_preparing();
    let prepared = catch_unwind(AssertUnwindSafe(|| app.prepare(&handle)));
    drop(preparing);
    if !matches!(prepared, Ok(Ok(()))) {
        shared.never_ran();
    }
    match prepared {
        Ok(outcome) => outcome.map_err(RunError::Prepare),
        Err(payload) => resume_unwind(payload),
    }
}

/// What the shards of a new runtime share.
pub(crate) fn new_shared(
    config: Config,
    wakers: Vec<DriverWaker>,
    cpus: Vec<Option<usize>>,
    may_poll: bool,
    resolver: Arc<dyn Resolver>,
) -> Arc<Shared> {
    let count = wakers.len();
    Arc::new(Shared {
        config,
        mesh: Mesh::new(wakers),
        groups: Groups::default(),
        resolver,
        lifecycle: Lifecycle::new(count),
        stats: (0..count).map(|_| Arc::new(ShardStats::default())).collect(),
        cpus: cpus.into(),
        may_poll,
        stop_asked: AtomicBool::new(false),
        detached: Detached::default(),
    })
}

fn join_all(threads: Vec<std::thread::JoinHandle<()>>) {
    for thread in threads {
        // Its panic has been reported where it happened.
        let _ = thread.join();
    }
}
