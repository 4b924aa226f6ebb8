//! Answers that may be fetched anywhere, above all by threads that are no shard: they can wait, and have no inbox. Does
//! not send the question.

use super::error::CallError;
use crate::sync::{Arc, Condvar, Mutex, lock};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// A call whose answer is fetched anywhere: wait for it on a thread that is no shard, or await it.
///
/// # Cancel safety
/// Dropping it withdraws the call: a closure that has not started is dropped on the target, unrun.
#[must_use = "a call that is dropped is withdrawn"]
pub(crate) struct ForeignCall<T> {
    cell: Arc<Cell<T>>,
}

/// The other end: dropped unsent, it says [`CallError::Stopped`].
pub(crate) struct Answer<T> {
    /// `None` once it has been sent.
    cell: Option<Arc<Cell<T>>>,
}

/// Watches a call for whoever keeps its deadline: a future that is ready once nobody waits for an answer any more.
pub(crate) struct Overdue<T> {
    cell: Arc<Cell<T>>,
}

/// No application code runs under the lock, so nobody waits for it long.
struct Cell<T> {
    phase: Mutex<Phase<T>>,
    answered: Condvar,
}

enum Phase<T> {
    Waiting {
        caller: Option<Waker>,
        watcher: Option<Waker>,
    },
    Answered(Result<T, CallError>),
    /// The answer has been fetched, or nobody wants it.
    Over,
}

/// The two ends of one call.
pub(crate) fn pair<T>() -> (Answer<T>, ForeignCall<T>) {
    let waiting = Phase::Waiting { caller: None, watcher: None };
    let cell = Arc::new(Cell { phase: Mutex::new(waiting), answered: Condvar::new() });
    (Answer { cell: Some(Arc::clone(&cell)) }, ForeignCall { cell })
}

/// A closure to post that starts `f`, unless the call was withdrawn before.
pub(super) fn starting<C, F, T>(f: F, answer: Answer<T>) -> impl FnOnce(&C) + Send + 'static
where
    F: FnOnce(&C, Answer<T>) + Send + 'static,
    T: Send + 'static,
{
    move |context: &C| {
        if answer.is_wanted() {
            f(context, answer);
        }
    }
}

impl<T> Cell<T> {
    /// Answers, unless that was done before, or nobody waits: then `result` is dropped here.
    fn finish(&self, result: Result<T, CallError>) {
        let mut phase = lock(&self.phase);
        match std::mem::replace(&mut *phase, Phase::Over) {
            Phase::Waiting { caller, watcher } => {
                *phase = Phase::Answered(result);
                drop(phase);
                self.answered.notify_one();
                // The watcher first: whoever has the answer may end all, and nothing should be left then.
                for waker in [watcher, caller].into_iter().flatten() {
                    waker.wake();
                }
            }
            before => {
                *phase = before;
                drop(phase);
                drop(result);
            }
        }
    }
}

impl<T> Answer<T> {
    /// Whether anybody still waits for it.
    pub(crate) fn is_wanted(&self) -> bool {
        self.cell.as_ref().is_some_and(|cell| matches!(*lock(&cell.phase), Phase::Waiting { .. }))
    }

    pub(crate) fn send(mut self, result: Result<T, CallError>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<T, CallError>) {
        if let Some(cell) = self.cell.take() {
            cell.finish(result);
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.finish(Err(CallError::Stopped));
    }
}

impl<T> ForeignCall<T> {
    /// For whoever keeps the call's deadline.
    pub(crate) fn overdue(&self) -> Overdue<T> {
        Overdue { cell: Arc::clone(&self.cell) }
    }

    /// Blocks this thread until the answer is there; [`CallError::Stopped`] when the target stops first.
    pub(crate) fn wait_blocking(self) -> Result<T, CallError> {
        let mut phase = lock(&self.cell.phase);
        loop {
            match std::mem::replace(&mut *phase, Phase::Over) {
                Phase::Answered(result) => return result,
                waiting @ Phase::Waiting { .. } => {
                    *phase = waiting;
                    phase = self.cell.answered.wait(phase).unwrap_or_else(|poisoned| poisoned.into_inner());
                }
                Phase::Over => unreachable!("an answer is fetched once"),
            }
        }
    }
}

impl<T> Overdue<T> {
    /// Answers the call, unless it has been: a closure that has not started does not start any more.
    pub(crate) fn give_up(self) {
        self.cell.finish(Err(CallError::DeadlineExceeded));
    }
}

impl<T> Future for Overdue<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Cloned and dropped outside the lock: a waker is other people's code.
        let waker = context.waker().clone();
        let mut phase = lock(&self.cell.phase);
        let Phase::Waiting { watcher, .. } = &mut *phase else {
            drop(phase);
            return Poll::Ready(());
        };
        let before = watcher.replace(waker);
        drop(phase);
        drop(before);
        Poll::Pending
    }
}

impl<T> Future for ForeignCall<T> {
    type Output = Result<T, CallError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Cloned and dropped outside the lock: a waker is other people's code.
        let waker = context.waker().clone();
        let mut phase = lock(&self.cell.phase);
        match std::mem::replace(&mut *phase, Phase::Over) {
            Phase::Answered(result) => {
                drop(phase);
                Poll::Ready(result)
            }
            Phase::Waiting { caller, watcher } => {
                *phase = Phase::Waiting { caller: Some(waker), watcher };
                drop(phase);
                drop(caller);
                Poll::Pending
            }
            Phase::Over => panic!("polled again after it was ready"),
        }
    }
}

impl<T> Drop for ForeignCall<T> {
    fn drop(&mut self) {
        let mut phase = lock(&self.cell.phase);
        let before = std::mem::replace(&mut *phase, Phase::Over);
        drop(phase);
        if let Phase::Waiting { caller, watcher } = before {
            drop(caller);
            if let Some(watcher) = watcher {
                watcher.wake();
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::test_kit::{AtHome, Bed, id, poll, ready};
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_thread_waits_for_its_answer() {
        let bed = Bed::new(1);
        let mesh = bed.mesh.clone();
        let thread = std::thread::spawn(move || mesh.call_from_thread(id(0), |_| 5).wait_blocking());
        while !thread.is_finished() {
            bed.deliver(0);
            std::thread::yield_now();
        }
        assert_eq!(thread.join().unwrap().unwrap(), 5);
    }

    #[test]
    fn an_answer_can_be_awaited() {
        let bed = Bed::new(1);
        let mut call = bed.mesh.call_from_thread(id(0), |_| [1_u64; 20]);
        assert!(poll(&mut call).is_pending());
        bed.deliver(0);
        assert_eq!(ready(call).unwrap(), [1; 20]);
    }

    #[test]
    fn a_panic_travels_to_the_thread_and_is_counted() {
        let bed = Bed::new(1);
        let call = bed.mesh.call_from_thread(id(0), |_| -> u32 { panic!("boom") });
        bed.deliver(0);
        let error = call.wait_blocking().unwrap_err();
        assert_eq!(error.to_string(), "the called closure panicked: boom");
        assert_eq!(bed[0].counters().panics, 1);
    }

    #[test]
    fn a_dropped_call_does_not_start() {
        let drops = std::sync::Arc::new(AtomicUsize::new(0));
        let bed = Bed::new(1);
        let held = AtHome::<8>::new(0, &drops);
        let call = bed.mesh.call_from_thread(id(0), move |shard| {
            let _held = held;
            shard.log(1);
        });
        drop(call);
        bed.deliver(0);
        assert!(bed.log(0).is_empty());
        assert_eq!(drops.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[test]
    fn a_call_to_a_stopped_shard_says_so() {
        let bed = Bed::new(1);
        let taken = bed.mesh.call_from_thread(id(0), |_| 1);
        bed.close(0);
        assert_eq!(taken.wait_blocking().unwrap(), 1, "it was taken before the end, so it ran");
        let refused = bed.mesh.call_from_thread(id(0), |_| 1);
        assert!(matches!(refused.wait_blocking(), Err(CallError::Stopped)));
    }
}
