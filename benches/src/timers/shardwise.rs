//! The library's `call_later`, on its only shard.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use ::shardwise::{Handle, Runtime, Shard, ShardId, yield_now};

use super::{Lateness, Load, Meter, Sample, all_scheduled_in_time};
use crate::Result;

/// The calling thread is pinned, so the shard is placed on the same CPU; this thread only waits.
pub(super) fn delayed_calls(load: &Arc<Load>) -> Result<Sample> {
    let running = Runtime::new().shards(1).start(async |_: Shard| Ok(()))?;
    sample(&running.handle(), load, cancel, fire)
}

/// `sleep`, polled by hand for cancelling and in a task of its own for firing.
pub(super) fn sleeps(load: &Arc<Load>) -> Result<Sample> {
    let running = Runtime::new().shards(1).start(async |_: Shard| Ok(()))?;
    sample(&running.handle(), load, cancel_sleeps, fire_sleeps)
}

type Work<T> = fn(&Shard, &Load, Sender<T>);

fn sample(handle: &Handle, load: &Arc<Load>, cancel: Work<(f64, f64)>, fire: Work<Fired>) -> Result<Sample> {
    let (cancel_at_once_ns, cancel_later_ns) = on_shard(handle, load, cancel)?;
    let (schedule_ns, fire_ns, lateness) = on_shard(handle, load, fire)??;
    let [late_p50_ms, late_p99_ms, late_max_ms] = lateness.milliseconds();
    Ok(Sample {
        cancel_at_once_ns,
        cancel_later_ns,
        schedule_ns,
        fire_ns,
        late_p50_ms,
        late_p99_ms,
        late_max_ms,
    })
}

/// Runs `work` on the shard and waits for what it, or something it left behind, sends.
fn on_shard<T: Send + 'static>(handle: &Handle, load: &Arc<Load>, work: Work<T>) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    let load = Arc::clone(load);
    let asked = handle.call_from_thread(ShardId::new(0), move |shard: &Shard| work(shard, &load, sender));
    asked.map_err(|_| "the shard has stopped")?;
    Ok(receiver.recv()?)
}

fn cancel(shard: &Shard, load: &Load, answer: Sender<(f64, f64)>) {
    let mut meter = Meter::start(load);
    for &delay in &load.far {
        let _ = shard.call_later(delay, move |_: &Shard| never(delay)).cancel();
    }
    let cancel_at_once_ns = meter.lap_ns();
    let calls: Vec<_> =
        load.far.iter().map(|&delay| shard.call_later(delay, move |_: &Shard| never(delay))).collect();
    for call in calls {
        let _ = call.cancel();
    }
    answer.send((cancel_at_once_ns, meter.lap_ns())).expect("the measuring thread waits");
}

/// As most calls, it takes something along.
fn never(delay: Duration) {
    panic!("a call that was cancelled ran after {delay:?}");
}

fn cancel_sleeps(shard: &Shard, load: &Load, answer: Sender<(f64, f64)>) {
    let mut context = Context::from_waker(Waker::noop());
    let mut meter = Meter::start(load);
    for &delay in &load.far {
        assert!(pin!(shard.sleep(delay)).poll(&mut context).is_pending());
    }
    let cancel_at_once_ns = meter.lap_ns();
    let mut scheduled = Vec::with_capacity(load.far.len());
    for &delay in &load.far {
        let mut sleep = Box::pin(shard.sleep(delay));
        assert!(sleep.as_mut().poll(&mut context).is_pending());
        scheduled.push(sleep);
    }
    drop(scheduled);
    answer.send((cancel_at_once_ns, meter.lap_ns())).expect("the measuring thread waits");
}

fn fire_sleeps(shard: &Shard, load: &Load, answer: Sender<Fired>) {
    let meter = Meter::start(load);
    let lateness = Lateness::expect(load.near.len());
    let base = Instant::now() + load.lead;
    SCHEDULED.set(0);
    for &delay in &load.near {
        let (shard_too, deadline) = (shard.clone(), base + delay);
        drop(shard.spawn(async move {
            SCHEDULED.set(SCHEDULED.get() + 1);
            shard_too.sleep_until(deadline).await;
            take_down(deadline);
        }));
    }
    let timers = load.near.len();
    drop(shard.spawn(async move {
        while SCHEDULED.get() < timers {
            yield_now().await;
        }
        begin_firing(base, lateness, meter, answer);
    }));
}

fn begin_firing(base: Instant, lateness: Lateness, mut meter: Meter, answer: Sender<Fired>) {
    let schedule_ns = meter.lap_ns();
    match all_scheduled_in_time(base) {
        Ok(()) => FIRING.set(Some(Firing { lateness, meter, schedule_ns, answer })),
        Err(error) => answer.send(Err(error)).expect("the measuring thread waits"),
    }
}

type Fired = Result<(f64, f64, Lateness)>;

fn fire(shard: &Shard, load: &Load, answer: Sender<Fired>) {
    let meter = Meter::start(load);
    let lateness = Lateness::expect(load.near.len());
    let base = Instant::now() + load.lead;
    for &delay in &load.near {
        let deadline = base + delay;
        // A delay counts from the call, not from the first one: what scheduling takes is no lateness.
        let left = deadline.saturating_duration_since(Instant::now());
        drop(shard.call_later(left, move |_: &Shard| take_down(deadline))); // it goes on
    }
    begin_firing(base, lateness, meter, answer);
}

struct Firing {
    lateness: Lateness,
    meter: Meter,
    schedule_ns: f64,
    answer: Sender<Fired>,
}

fn take_down(deadline: Instant) {
    let last =
        FIRING.with_borrow_mut(|firing| firing.as_mut().is_some_and(|all| all.lateness.fired(deadline)));
    if last && let Some(mut firing) = FIRING.take() {
        let fired = (firing.schedule_ns, firing.meter.lap_ns(), firing.lateness);
        firing.answer.send(Ok(fired)).expect("the measuring thread waits");
    }
}

thread_local! {
    static SCHEDULED: Cell<usize> = const { Cell::new(0) };
    static FIRING: RefCell<Option<Firing>> = const { RefCell::new(None) };
}
