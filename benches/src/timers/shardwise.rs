//! The library's `call_later`, on its only shard.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Instant;

use ::shardwise::{Handle, Runtime, Shard, ShardId};

use super::{Lateness, Load, Meter, Sample, all_scheduled_in_time};
use crate::Result;

/// The calling thread is pinned, so the shard is placed on the same CPU; this thread only waits.
pub(super) fn delayed_calls(load: &Arc<Load>) -> Result<Sample> {
    let running = Runtime::new().shards(1).start(async |_: Shard| Ok(()))?;
    let handle = running.handle();
    let (cancel_at_once_ns, cancel_later_ns) = on_shard(&handle, load, cancel)?;
    let (schedule_ns, fire_ns, lateness) = on_shard(&handle, load, fire)??;
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
fn on_shard<T: Send + 'static>(
    handle: &Handle,
    load: &Arc<Load>,
    work: fn(&Shard, &Load, Sender<T>),
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    let load = Arc::clone(load);
    let asked = handle.call_from_thread(ShardId::new(0), move |shard: &Shard| work(shard, &load, sender));
    asked.map_err(|_| "the shard has stopped")?;
    Ok(receiver.recv()?)
}

fn cancel(shard: &Shard, load: &Load, answer: Sender<(f64, f64)>) {
    let mut meter = Meter::start(load);
    for &delay in &load.far {
        let _ = shard.call_later(delay, |_: &Shard| never()).cancel();
    }
    let cancel_at_once_ns = meter.lap_ns();
    let calls: Vec<_> = load.far.iter().map(|&delay| shard.call_later(delay, |_: &Shard| never())).collect();
    for call in calls {
        let _ = call.cancel();
    }
    answer.send((cancel_at_once_ns, meter.lap_ns())).expect("the measuring thread waits");
}

fn never() {
    panic!("a cancelled call ran");
}

type Fired = Result<(f64, f64, Lateness)>;

fn fire(shard: &Shard, load: &Load, answer: Sender<Fired>) {
    let mut meter = Meter::start(load);
    let lateness = Lateness::expect(load.near.len());
    let base = Instant::now() + load.lead;
    for &delay in &load.near {
        let deadline = base + delay;
        // A delay counts from the call, not from the first one: what scheduling takes is no lateness.
        let left = deadline.saturating_duration_since(Instant::now());
        drop(shard.call_later(left, move |_: &Shard| take_down(deadline))); // it goes on
    }
    let schedule_ns = meter.lap_ns();
    match all_scheduled_in_time(base) {
        Ok(()) => FIRING.set(Some(Firing { lateness, meter, schedule_ns, answer })),
        Err(error) => answer.send(Err(error)).expect("the measuring thread waits"),
    }
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
    static FIRING: RefCell<Option<Firing>> = const { RefCell::new(None) };
}
