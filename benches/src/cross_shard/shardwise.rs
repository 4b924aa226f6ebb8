//! The library's calls: shard 0 asks, shard 1 answers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use ::shardwise::{Config, Handle, Running, Runtime, Shard, ShardId};

use super::{Burst, Counter, Load, Sample};
use crate::{Result, machine};

/// Shards on the CPUs the calling thread may use, in ascending order.
fn start(shards: usize, load: Load) -> Result<Running> {
    let mut config = Config::default();
    config.poll_before_park = load.poll;
    let runtime = Runtime::new().shards(shards).config(config);
    Ok(runtime.start(async |_: Shard| Ok(()))?)
}

/// Runs `measure` on a thread whose CPUs are `cpus`, so that the runtime it starts is placed there.
fn on_cpus(cpus: &[usize], measure: impl FnOnce() -> Result<Sample> + Send) -> Result<Sample> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            machine::pin(cpus)?;
            measure()
        });
        thread.join().map_err(|_| "the measuring thread panicked")?
    })
}

/// Starts a burst on the shard that asks; it sends what it counted when it is over.
type StartBurst = fn(&Shard, Load, Duration, Sender<Result<Burst>>);

fn between_shards(load: Load, burst: StartBurst) -> Result<Sample> {
    on_cpus(&[load.origin_cpu, load.target_cpu], || {
        let running = start(2, load)?;
        let handle = running.handle();
        load.measure(|slice| {
            let (sender, receiver) = mpsc::channel();
            let asked =
                handle.call_from_thread(ORIGIN, move |shard: &Shard| burst(shard, load, slice, sender));
            asked.map_err(|_| "the asking shard has stopped")?;
            receiver.recv()?
        })
    })
}

/// `call_from_thread` there and `call_from_thread` back: the inboxes, and no future on top.
pub(super) fn posts(load: Load) -> Result<Sample> {
    between_shards(load, |shard, load, slice, done| {
        let counter = Counter::start(load.in_flight, slice);
        UNASKED.set(0);
        ASKING.set(Some(Asking { counter, in_flight: load.in_flight, done }));
        for _ in 0..load.in_flight {
            post(shard);
        }
    })
}

/// What the asking shard knows; the closures that come back carry nothing.
struct Asking {
    counter: Counter,
    in_flight: usize,
    done: Sender<Result<Burst>>,
}

fn post(shard: &Shard) {
    let asked = shard.call_from_thread(TARGET, |shard: &Shard| {
        let answered = shard.call_from_thread(ORIGIN, answered);
        assert!(answered.is_ok(), "the asking shard runs");
    });
    assert!(asked.is_ok(), "the answering shard runs");
}

/// A word that counts down is all there is to most trips, as in the raw loop: a thread-local with a destructor would
/// cost more than a message.
fn answered(shard: &Shard) {
    let unasked = UNASKED.get();
    if unasked > 0 {
        UNASKED.set(unasked - 1);
        return post(shard);
    }
    let is_over = ASKING.with_borrow_mut(|asking| {
        let state = asking.as_mut().expect("an answer follows a question");
        if state.counter.trip() {
            UNASKED.set(state.counter.take_unasked());
            post(shard);
            return false;
        }
        state.in_flight -= 1;
        state.in_flight == 0
    });
    if is_over {
        let asking = ASKING.take().expect("it was there a moment ago");
        asking.done.send(Ok(asking.counter.finish())).expect("the measuring thread waits");
    }
}

thread_local! {
    static ASKING: RefCell<Option<Asking>> = const { RefCell::new(None) };
    /// Trips to be made before the counter is asked again whether to go on.
    static UNASKED: Cell<u64> = const { Cell::new(0) };
}

/// `call(..).await`, one task for each in flight.
pub(super) fn calls(load: Load) -> Result<Sample> {
    between_shards(load, |shard, load, slice, done| {
        let asking = ask(shard.clone(), load, slice);
        drop(shard.spawn(async move {
            done.send(asking.await).expect("the measuring thread waits");
        }));
    })
}

async fn ask(shard: Shard, load: Load, slice: Duration) -> Result<Burst> {
    let counter = Rc::new(RefCell::new(Counter::start(load.in_flight, slice)));
    let mut tasks = Vec::with_capacity(load.in_flight);
    for _ in 0..load.in_flight {
        let (asking, counter) = (shard.clone(), Rc::clone(&counter));
        tasks.push(shard.spawn(async move {
            loop {
                asking.call(TARGET, |_: &Shard| ()).await?;
                if !counter.borrow_mut().trip() {
                    return Result::Ok(());
                }
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    let counter = Rc::into_inner(counter).expect("every task has ended");
    Ok(counter.into_inner().finish())
}

/// One shard on the target's CPU, asked by a plain thread on the origin's.
pub(super) fn from_thread(load: Load) -> Result<Sample> {
    on_cpus(&[load.target_cpu], || {
        let running = start(1, load)?;
        let handle = running.handle();
        machine::pin(&[load.origin_cpu])?;
        let answered = Arc::new(AtomicU64::new(0));
        let mut asked = 0;
        load.measure(|slice| {
            let mut counter = Counter::start(1, slice);
            loop {
                asked += 1;
                if load.poll.is_zero() {
                    handle.blocking_call_from_thread(ShardId::new(0), |_: &Shard| ())?;
                } else {
                    ask_and_spin(&handle, &answered, asked)?;
                }
                if !counter.trip() {
                    return Ok(counter.finish());
                }
            }
        })
    })
}

fn ask_and_spin(handle: &Handle, answered: &Arc<AtomicU64>, number: u64) -> Result<()> {
    let answer = Arc::clone(answered);
    // Release pairs with the Acquire below. It is the answer itself, so little hangs on it.
    let asked =
        handle.call_from_thread(ShardId::new(0), move |_: &Shard| answer.store(number, Ordering::Release));
    asked.map_err(|_| "the shard has stopped")?;
    while answered.load(Ordering::Acquire) != number {
        std::hint::spin_loop();
    }
    Ok(())
}

const ORIGIN: ShardId = ShardId::new(0);
const TARGET: ShardId = ShardId::new(1);
