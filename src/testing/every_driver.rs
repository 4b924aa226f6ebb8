//! One test body, every driver.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::Config;
use crate::error::{Result, RunError};
use crate::runtime::Runtime;
use crate::runtime::app::App;
use crate::shard::Shard;
use crate::shard::handles::handle::Handle;
use crate::testing::names::Names;
use crate::testing::simulation::Simulation;

/// Where a test body runs.
#[derive(Clone, Debug)]
pub struct Env {
    shard: Shard,
    driver: &'static str,
    seed: u64,
    names: Names,
}

impl Env {
    /// Shard 0, on which the body runs.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The runtime; it has two shards unless the test says otherwise.
    pub fn handle(&self) -> Handle {
        self.shard.handle()
    }

    /// The driver's name: `mio` or `sim`.
    pub fn driver(&self) -> &'static str {
        self.driver
    }

    /// Whether time and network are simulated.
    pub fn is_simulated(&self) -> bool {
        self.driver == "sim"
    }

    /// The hosts that can be looked up in this run.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The seed of this run: for random choices of the test that are to be repeated with the simulation's.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

/// How many seeds a test runs with in the simulation, each time others; `SHARDWISE_SEED` in the environment fixes one.
const SEEDS: u64 = 6;
/// A body that takes longer, in its own time, hangs.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `body` on shard 0 of a runtime with two shards, over every driver: once on mio, and several times in a
/// simulation, with a new seed each time.
///
/// When the body returns, the runtime is stopped, and must have nothing left: no connection, listener, timer, task or
/// lent buffer on any shard.
///
/// # Panics
/// When the body returns an error or panics, or something is left; names the driver and the seed. With that seed in the
/// environment variable `SHARDWISE_SEED` the simulation runs the same way again.
pub fn on_every_driver<F>(body: F)
where
    F: AsyncFn(Env) -> Result<()> + Send + Sync + 'static,
{
    on_every_driver_with(2, Config::default(), body);
}

/// As [`on_every_driver`], with so many shards and this configuration.
///
/// # Panics
/// As [`on_every_driver`].
pub fn on_every_driver_with<F>(shards: usize, config: Config, body: F)
where
    F: AsyncFn(Env) -> Result<()> + Send + Sync + 'static,
{
    let body = Arc::new(body);
    let base = RandomState::new().hash_one("a seed of this run");
    let seeds: Vec<u64> = match std::env::var("SHARDWISE_SEED") {
        Ok(seed) => vec![seed.parse().expect("SHARDWISE_SEED is a number")],
        Err(_) => (0..SEEDS).map(|number| base.wrapping_add(number)).collect(),
    };
    let test = Test::new("mio", seeds[0], &body);
    // Tests run side by side: pinned, all their shards would share the first CPUs.
    let runtime =
        Runtime::new().shards(shards).pin(false).config(config.clone()).resolver(test.names.clone());
    let outcome = runtime.start(test.clone()).and_then(|running| running.join());
    test.check(outcome);
    for seed in seeds {
        let test = Test::new("sim", seed, &body);
        let simulation = Simulation::new(seed).shards(shards).config(config.clone());
        let outcome = simulation.resolver(test.names.clone()).run(test.clone());
        test.check(outcome);
    }
}

struct Test<F> {
    driver: &'static str,
    seed: u64,
    body: Arc<F>,
    names: Names,
    found: Arc<Mutex<Found>>,
}

#[derive(Default)]
struct Found {
    handle: Option<Handle>,
    /// What the body came to.
    outcome: Option<std::result::Result<(), String>>,
}

impl<F> Clone for Test<F> {
    fn clone(&self) -> Self {
        Test {
            driver: self.driver,
            seed: self.seed,
            body: Arc::clone(&self.body),
            names: self.names.clone(),
            found: Arc::clone(&self.found),
        }
    }
}

impl<F> Test<F> {
    fn new(driver: &'static str, seed: u64, body: &Arc<F>) -> Self {
        Test { driver, seed, body: Arc::clone(body), names: Names::new(), found: Arc::default() }
    }

    fn note(found: &Mutex<Found>, outcome: std::result::Result<(), String>) {
        found.lock().unwrap_or_else(PoisonError::into_inner).outcome.get_or_insert(outcome);
    }

    fn check(&self, outcome: std::result::Result<(), RunError>) {
        let place = format!("driver {}, SHARDWISE_SEED={}", self.driver, self.seed);
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match &found.outcome {
            Some(Ok(())) => {}
            Some(Err(message)) => panic!("[{place}] {message}"),
            None => panic!("[{place}] the body did not end: {outcome:?}"),
        }
        if let Err(error) = outcome {
            panic!("[{place}] the runtime ended with: {error}");
        }
        let handle = found.handle.as_ref().expect("set before any shard starts");
        for (shard, leaks) in handle.shared().lifecycle.leaks() {
            assert_eq!(leaks, Default::default(), "[{place}] left over on {shard}");
        }
    }
}

impl<F> App for Test<F>
where
    F: AsyncFn(Env) -> Result<()> + Send + Sync + 'static,
{
    fn prepare(&self, handle: &Handle) -> Result<()> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).handle = Some(handle.clone());
        Ok(())
    }

    async fn start(&self, shard: Shard) -> Result<()> {
        if shard.id().index() != 0 {
            return Ok(());
        }
        let names = self.names.clone();
        let env = Env { shard: shard.clone(), driver: self.driver, seed: self.seed, names };
        let body = Arc::clone(&self.body);
        let found = Arc::clone(&self.found);
        shard.call_when_running(move |shard| {
            let task = shard.spawn(async move { body(env).await });
            let hangs = Arc::clone(&found);
            let guard = shard.call_later(BODY_TIMEOUT, move |shard| {
                Self::note(&hangs, Err(format!("the body took longer than {BODY_TIMEOUT:?}")));
                shard.handle().abort();
            });
            let home = shard.clone();
            drop(shard.spawn(async move {
                let outcome = match task.await {
                    Ok(outcome) => outcome.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                Self::note(&found, outcome);
                let _ = guard.cancel();
                // The body may have stopped it.
                let _ = home.stop();
            }));
        });
        Ok(())
    }
}
