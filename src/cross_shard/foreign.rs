//! Answers to threads that are no shard: they can wait, and have no inbox. Does not send the question.

use super::error::CallError;
use crate::sync::{Arc, Condvar, Mutex, lock};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// A call made from outside: wait for it on a thread that is no shard, or await it anywhere.
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

/// No application code runs under the lock, so nobody waits for it long.
struct Cell<T> {
    phase: Mutex<Phase<T>>,
    answered: Condvar,
}

enum Phase<T> {
    Waiting(Option<Waker>),
    Answered(Result<T, CallError>),
    /// The answer has been fetched, or nobody wants it.
    Over,
}

/// The two ends of one call.
pub(crate) fn pair<T>() -> (Answer<T>, ForeignCall<T>) {
    let cell = Arc::new(Cell { phase: Mutex::new(Phase::Waiting(None)), answered: Condvar::new() });
    (Answer { cell: Some(Arc::clone(&cell)) }, ForeignCall { cell })
}

impl<T> Answer<T> {
    /// Whether anybody still waits for it.
    pub(crate) fn is_wanted(&self) -> bool {
        self.cell.as_ref().is_some_and(|cell| matches!(*lock(&cell.phase), Phase::Waiting(_)))
    }

    pub(crate) fn send(mut self, result: Result<T, CallError>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<T, CallError>) {
        let Some(cell) = self.cell.take() else { return };
        let mut phase = lock(&cell.phase);
        match std::mem::replace(&mut *phase, Phase::Over) {
            Phase::Waiting(waker) => {
                *phase = Phase::Answered(result);
                drop(phase);
                cell.answered.notify_one();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Phase::Answered(_) => unreachable!("there is one answer"),
            Phase::Over => {
                drop(phase);
                drop(result);
            }
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.finish(Err(CallError::Stopped));
    }
}

impl<T> ForeignCall<T> {
    /// Blocks this thread until the answer is there; [`CallError::Stopped`] when the target stops first.
    pub(crate) fn wait_blocking(self) -> Result<T, CallError> {
        let mut phase = lock(&self.cell.phase);
        loop {
            match std::mem::replace(&mut *phase, Phase::Over) {
                Phase::Answered(result) => return result,
                Phase::Waiting(waker) => {
                    *phase = Phase::Waiting(waker);
                    phase = self.cell.answered.wait(phase).unwrap_or_else(|poisoned| poisoned.into_inner());
                }
                Phase::Over => unreachable!("an answer is fetched once"),
            }
        }
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
            Phase::Waiting(before) => {
                *phase = Phase::Waiting(Some(waker));
                drop(phase);
                drop(before);
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
        drop(before);
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
