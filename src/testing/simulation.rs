//! A whole runtime on one thread: its shards are stepped in an order drawn from a seed, in virtual time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ShardId;
use crate::config::Config;
use crate::error::RunError;
use crate::reactor::driver::Driver;
use crate::reactor::driver::sim::{SimOptions, World};
use crate::runtime::app::App;
use crate::runtime::{new_shared, prepare};
use crate::shard::Shard;
use crate::shard::lifecycle::ShardPhase;
use crate::shard::turn::Rest;

/// A runtime whose kernel, network and clock are simulated. The same seed gives the same run, step by step, as long as
/// the application takes nothing from outside: wall clock, threads, random numbers, the order of a `HashMap`.
///
/// `thread_local!` values are shared by all shards, since all run on one thread: keep what belongs to a shard in what
/// belongs to the shard.
///
/// ```
/// use shardwise::testing::Simulation;
/// use shardwise::Shard;
/// use std::time::Duration;
///
/// Simulation::new(7).shards(3).run(async |shard: Shard| {
///     shard.sleep(Duration::from_secs(3600)).await; // an hour that takes no time
///     let _ = shard.stop();
///     Ok(())
/// }).unwrap();
/// ```
#[derive(Clone, Debug)]
#[must_use = "a simulation does nothing until it is run"]
pub struct Simulation {
    seed: u64,
    shards: usize,
    config: Config,
    kind_network: bool,
    #[cfg(test)]
    failing_accepts: usize,
}

/// More turns than this mean that the simulated application goes round in circles.
const TURNS_MAX: u64 = 50_000_000;
/// Work takes no virtual time, but who never rests would keep the clock, and thus every deadline and every byte under
/// way, from ever coming: so many turns in a row take this long.
const TURNS_PER_STEP: u32 = 16;
const STEP: Duration = Duration::from_micros(100);

impl Simulation {
    /// Two shards, and a network that is slow and unkind in ways drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Simulation {
            seed,
            shards: 2,
            config: Config::default(),
            kind_network: false,
            #[cfg(test)]
            failing_accepts: 0,
        }
    }

    /// How many shards; at least one.
    pub fn shards(mut self, count: usize) -> Self {
        self.shards = count.clamp(1, 256);
        self
    }

    /// Limits and times.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// A network without latency, where every byte arrives at once and whole.
    pub fn kind_network(mut self) -> Self {
        self.kind_network = true;
        self
    }

    /// Runs `app` until it is stopped.
    ///
    /// # Errors
    /// As [`Runtime::run`](crate::Runtime::run).
    /// # Panics
    /// When nothing can ever happen any more, and nobody has stopped the runtime; names the seed.
    pub fn run<A: App>(self, app: A) -> Result<(), RunError> {
        self.config.check().map_err(RunError::Config)?;
        let options = SimOptions {
            read_buffer_bytes: self.config.read_buffer_bytes,
            ..if self.kind_network { SimOptions::calm() } else { SimOptions::default() }
        };
        let world = World::new(self.seed, options);
        #[cfg(test)]
        world.withhold_descriptors(self.failing_accepts);
        let drivers: Vec<_> = (0..self.shards).map(|number| world.driver(number)).collect();
        let wakers = drivers.iter().map(|driver| driver.waker()).collect();
        let shared = new_shared(self.config.clone(), wakers, vec![None; self.shards], false);
        let app = Arc::new(app);
        prepare(&*app, &shared)?;
        let mut shards: Vec<Option<Shard>> = Vec::new();
        for (number, driver) in drivers.into_iter().enumerate() {
            let shard = Shard::new(ShardId::new(number as u16), Arc::clone(&shared), Box::new(driver));
            shard.begin(Arc::clone(&app));
            shards.push(Some(shard));
        }
        let mut turns_in_a_row = 0;
        for _ in 0..TURNS_MAX {
            if shards.iter().all(Option::is_none) {
                return shared.lifecycle.take_error().map_or(Ok(()), Err);
            }
            let ready =
                |number: &usize| shards[*number].as_ref().is_some_and(|shard| is_ready(shard, &world));
            let candidates: Vec<usize> = (0..shards.len()).filter(ready).collect();
            if candidates.is_empty() {
                self.advance(&world, &shards);
                turns_in_a_row = 0;
                continue;
            }
            turns_in_a_row += 1;
            if turns_in_a_row == TURNS_PER_STEP {
                turns_in_a_row = 0;
                world.advance_to(world.now() + STEP);
            }
            let chosen = candidates[(world.random() % candidates.len() as u64) as usize];
            self.step(&mut shards[chosen]);
        }
        panic!("simulation with seed {}: still running after {TURNS_MAX} turns", self.seed);
    }

    fn step(&self, place: &mut Option<Shard>) {
        let Some(shard) = place else { return };
        // A simulated driver's wait does not fail; it has no kernel to fail it.
        shard.turn(None).expect("the simulated driver waits without errors");
        if shard.inner.phase.get() == ShardPhase::Stopped {
            let shared = Arc::clone(&shard.inner.shared);
            shard.shut();
            *place = None;
            shared.shard_ended();
        }
    }

    /// Moves the clock to when something happens next.
    fn advance(&self, world: &World, shards: &[Option<Shard>]) {
        let deadlines = shards.iter().flatten().filter_map(|shard| match shard.inner.rest.get() {
            Rest::None => None,
            Rest::Until(deadline) => deadline,
        });
        match deadlines.chain(world.next_delivery()).min() {
            Some(next) => world.advance_to(next),
            None => panic!(
                "simulation with seed {}: nothing can happen any more after {:?}, and nobody has stopped it",
                self.seed,
                world.elapsed()
            ),
        }
    }
}

/// Whether a turn of this shard would not sleep.
fn is_ready(shard: &Shard, world: &World) -> bool {
    let number = shard.inner.id.index();
    let due = |deadline: Instant| deadline <= world.now();
    match shard.inner.rest.get() {
        Rest::None => true,
        Rest::Until(deadline) => {
            deadline.is_some_and(due) || world.is_woken(number) || world.has_events(number)
        }
    }
}

/// Virtual time passes without cost, but never without end.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::TcpStream;

    #[test]
    fn an_hour_takes_no_time() {
        let begun = Instant::now();
        Simulation::new(1)
            .run(async |shard: Shard| {
                let before = shard.now();
                shard.sleep(Duration::from_secs(3600)).await;
                assert!(shard.now() - before >= Duration::from_secs(3600));
                let _ = shard.stop();
                Ok(())
            })
            .unwrap();
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    /// It closed, and reset who had waited. The test with a real kernel is in `tests/faults_descriptors.rs`.
    #[test]
    fn a_closing_listener_waits_for_descriptors_and_then_serves_its_queue() {
        const FAILS: usize = 12;
        let serves = async |mut stream: TcpStream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        };
        for (fails, waits) in [(FAILS, true), (usize::MAX, false)] {
            for seed in 0..20 {
                let mut simulation = Simulation::new(seed).shards(1);
                simulation.failing_accepts = fails;
                simulation.config.drain_timeout = Duration::from_secs(2);
                let app = async move |shard: Shard| {
                    let addr = shard.serve_tcp("127.0.0.1:0", serves)?.local_addr();
                    shard.call_when_running(move |shard| {
                        drop(shard.spawn(async move {
                            let mut client = TcpStream::connect(addr).await.unwrap();
                            client.set_ends_on_drain(false);
                            client.write_all(b"wait").await.unwrap();
                            Shard::current().stop().unwrap();
                            let mut answer = [0; 4];
                            let read = client.read_exact(&mut answer).await;
                            assert_eq!(read.is_ok(), waits, "seed {seed}: {read:?}");
                            let end = client.read_chunk().await;
                            assert_eq!(end.is_ok(), waits, "seed {seed}");
                        }));
                    });
                    Ok(())
                };
                let outcome = simulation.run(app);
                // The client's end is what is left at the deadline, if it comes to that.
                assert_eq!(outcome.is_ok(), waits, "seed {seed}: {outcome:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "seed 5: nothing can happen any more")]
    fn a_runtime_that_nobody_stops_is_noticed() {
        let _ = Simulation::new(5).run(async |_shard: Shard| Ok(()));
    }
}
