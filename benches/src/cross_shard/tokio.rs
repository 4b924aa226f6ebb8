//! tokio between two current_thread runtimes: an unbounded mpsc there, a oneshot back. It sleeps at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use std::{future::Future, io};

use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::{Burst, Counter, Load, Sample, TRIPS_PER_CLOCK_READ};
use crate::client::latencies;
use crate::{Result, machine};

struct Question {
    word: u64,
    answer: oneshot::Sender<u64>,
}

pub(super) fn between_runtimes(load: Load) -> Result<Sample> {
    with_answering_runtime(load, |questions| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        load.measure(|slice| runtime.block_on(ask(load, slice, questions)))
    })
}

/// A plain thread asks, and blocks for the answer.
pub(super) fn from_thread(load: Load) -> Result<Sample> {
    with_answering_runtime(load, |questions| {
        load.measure(|slice| {
            let mut counter = Counter::start(1, slice);
            loop {
                let (answer, answered) = oneshot::channel();
                questions.send(Question { word: 0, answer }).map_err(|_| GONE)?;
                answered.blocking_recv()?;
                if !counter.trip() {
                    return Ok(counter.finish());
                }
            }
        })
    })
}

fn with_answering_runtime(
    load: Load,
    ask: impl FnOnce(&mpsc::UnboundedSender<Question>) -> Result<Sample> + Send,
) -> Result<Sample> {
    let (questions, mut asked) = mpsc::unbounded_channel::<Question>();
    thread::scope(|scope| {
        let answering = scope.spawn(move || {
            block_on_pinned(load.target_cpu, async move {
                while let Some(question) = asked.recv().await {
                    // The asking side awaits every answer: the error cannot happen.
                    let _ = question.answer.send(question.word ^ 1);
                }
            })
        });
        let asking = scope.spawn(move || {
            machine::pin(&[load.origin_cpu])?;
            ask(&questions)
        });
        let sample = asking.join().expect("the asking side does not panic");
        answering.join().expect("the answering side does not panic")?;
        sample
    })
}

fn block_on_pinned(cpu: usize, future: impl Future<Output = ()>) -> io::Result<()> {
    machine::pin(&[cpu])?;
    Builder::new_current_thread().enable_all().build()?.block_on(future);
    Ok(())
}

async fn ask(load: Load, slice: Duration, questions: &mpsc::UnboundedSender<Question>) -> Result<Burst> {
    if load.in_flight == 1 {
        let mut counter = Counter::start(1, slice);
        while {
            round_trip(questions).await?;
            counter.trip()
        } {}
        return Ok(counter.finish());
    }
    let shared = Arc::new(Shared { trips: AtomicU64::new(0), over: AtomicBool::new(false) });
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..load.in_flight {
        let (questions, shared) = (questions.clone(), Arc::clone(&shared));
        tasks.spawn(async move {
            while !shared.over.load(Relaxed) {
                round_trip(&questions).await?;
                let trips = shared.trips.load(Relaxed) + 1;
                shared.trips.store(trips, Relaxed);
                if trips.is_multiple_of(TRIPS_PER_CLOCK_READ) && started.elapsed() >= slice {
                    shared.over.store(true, Relaxed);
                }
            }
            Result::Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(Burst { trips: shared.trips.load(Relaxed), elapsed: started.elapsed(), latencies: latencies() })
}

/// What the asking tasks share. Relaxed: written and read on one thread; atomics only because tasks are `Send`.
struct Shared {
    trips: AtomicU64,
    over: AtomicBool,
}

async fn round_trip(questions: &mpsc::UnboundedSender<Question>) -> Result<()> {
    let (answer, answered) = oneshot::channel();
    questions.send(Question { word: 0, answer }).map_err(|_| GONE)?;
    answered.await?;
    Ok(())
}

const GONE: &str = "the answering side has gone";
