//! tokio's sleeps, as cheaply as its users can have them, and tokio-util's DelayQueue.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep, sleep_until};
use tokio_util::time::DelayQueue;

use super::{Lateness, Load, Meter, Sample, all_scheduled_in_time};
use crate::Result;

pub(super) fn sleeps(load: &Arc<Load>) -> Result<Sample> {
    Builder::new_current_thread().enable_time().build()?.block_on(async {
        // Not through a FuturesUnordered: under the cooperative budget a million there is quadratic.
        let mut context = Context::from_waker(Waker::noop());
        let mut meter = Meter::start(load);
        for &delay in &load.far {
            assert!(pin!(sleep(delay)).poll(&mut context).is_pending());
        }
        let cancel_at_once_ns = meter.lap_ns();
        let mut scheduled: Vec<Pin<Box<Sleep>>> = Vec::with_capacity(load.far.len());
        for &delay in &load.far {
            let mut sleep = Box::pin(sleep(delay));
            assert!(sleep.as_mut().poll(&mut context).is_pending());
            scheduled.push(sleep);
        }
        drop(scheduled);
        let cancel_later_ns = meter.lap_ns();
        fire(load, cancel_at_once_ns, cancel_later_ns).await
    })
}

pub(super) fn tasks(load: &Arc<Load>) -> Result<Sample> {
    Builder::new_current_thread().enable_time().build()?.block_on(async {
        let later = |delay| {
            tokio::spawn(async move {
                sleep(delay).await;
                unreachable!("a cancelled task ran on");
            })
        };
        let mut meter = Meter::start(load);
        // Each batch is polled, and so scheduled, then cancelled, and dropped: a turn of the loop for each would be
        // all that is measured.
        for batch in load.far.chunks(BATCH) {
            let tasks: Vec<_> = batch.iter().map(|&delay| later(delay)).collect();
            yield_now().await;
            tasks.iter().for_each(|task| task.abort());
            yield_now().await;
            assert!(
                tasks.iter().all(|task| task.is_finished()),
                "a turn of the loop polls more tasks than a batch"
            );
        }
        let cancel_at_once_ns = meter.lap_ns();
        let tasks: Vec<_> = load.far.iter().map(|&delay| later(delay)).collect();
        for _ in 0..=tasks.len() / BATCH {
            yield_now().await;
        }
        tasks.iter().for_each(|task| task.abort());
        for _ in 0..=tasks.len() / BATCH {
            yield_now().await;
        }
        assert!(
            tasks.iter().all(|task| task.is_finished()),
            "a turn of the loop polls more tasks than a batch"
        );
        drop(tasks);
        let cancel_later_ns = meter.lap_ns();
        fire(load, cancel_at_once_ns, cancel_later_ns).await
    })
}

/// Fewer tasks than a turn of tokio's loop polls (61 by default).
const BATCH: usize = 32;

async fn fire(load: &Load, cancel_at_once_ns: f64, cancel_later_ns: f64) -> Result<Sample> {
    let mut meter = Meter::start(load);
    let (all_fired, fired) = oneshot::channel();
    LATENESS.set(Some(Lateness::expect(load.near.len())));
    ALL_FIRED.set(Some(all_fired));
    SCHEDULED.set(0);
    let base = Instant::now() + load.lead;
    for &delay in &load.near {
        let deadline = base + delay;
        tokio::spawn(async move {
            SCHEDULED.set(SCHEDULED.get() + 1);
            sleep_until(deadline.into()).await;
            take_down(deadline);
        });
    }
    while SCHEDULED.get() < load.near.len() {
        yield_now().await;
    }
    let schedule_ns = meter.lap_ns();
    all_scheduled_in_time(base)?;
    fired.await?;
    let fire_ns = meter.lap_ns();
    let lateness = LATENESS.take().expect("set above");
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

fn take_down(deadline: Instant) {
    let last = LATENESS.with_borrow_mut(|lateness| lateness.as_mut().is_some_and(|all| all.fired(deadline)));
    if last && let Some(all_fired) = ALL_FIRED.take() {
        let _ = all_fired.send(()); // a receiver that has gone has failed already
    }
}

// One thread measures at a time, and everything of a row runs on it.
thread_local! {
    static LATENESS: RefCell<Option<Lateness>> = const { RefCell::new(None) };
    static ALL_FIRED: RefCell<Option<oneshot::Sender<()>>> = const { RefCell::new(None) };
    static SCHEDULED: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn delay_queue(load: &Arc<Load>) -> Result<Sample> {
    Builder::new_current_thread().enable_time().build()?.block_on(async {
        let mut queue = DelayQueue::new();
        let mut meter = Meter::start(load);
        for &delay in &load.far {
            let key = queue.insert((), delay);
            queue.remove(&key);
        }
        let cancel_at_once_ns = meter.lap_ns();
        let keys: Vec<_> = load.far.iter().map(|&delay| queue.insert((), delay)).collect();
        for key in keys {
            queue.remove(&key);
        }
        let cancel_later_ns = meter.lap_ns();

        let mut queue = DelayQueue::new();
        let mut lateness = Lateness::expect(load.near.len());
        let base = Instant::now() + load.lead;
        for &delay in &load.near {
            queue.insert_at(base + delay, (base + delay).into());
        }
        let schedule_ns = meter.lap_ns();
        all_scheduled_in_time(base)?;
        while let Some(expired) = poll_fn(|context| poll_expired(&mut queue, context)).await {
            lateness.fired(expired);
        }
        let fire_ns = meter.lap_ns();
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
    })
}

fn poll_expired(queue: &mut DelayQueue<Instant>, context: &mut Context<'_>) -> Poll<Option<Instant>> {
    queue.poll_expired(context).map(|expired| expired.map(|expired| expired.into_inner()))
}
