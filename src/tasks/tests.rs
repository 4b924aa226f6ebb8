//! What the executor promises, tried from many threads and in every state of a task.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::mem;
use std::panic::panic_any;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};

use super::task::TaskFuture;
use super::*;

mod ends;

/// An executor and the mailbox that brings its tasks home.
struct Bench {
    executor: Executor,
    mailbox: Arc<Mailbox>,
}

/// Delivers while it is open, and lets go of tasks afterwards.
struct Mailbox {
    letters: Mutex<Option<Vec<RemoteTask>>>,
}

impl Remote for Mailbox {
    fn send_home(&self, task: RemoteTask) {
        match &mut *self.letters.lock().unwrap() {
            Some(letters) => letters.push(task),
            None => task.forget(),
        }
    }
}

impl Bench {
    fn new() -> Self {
        let mailbox = Arc::new(Mailbox { letters: Mutex::new(Some(Vec::new())) });
        Bench { executor: Executor::new(Arc::clone(&mailbox) as Arc<dyn Remote>), mailbox }
    }

    /// How many tasks came home.
    fn deliver(&self) -> usize {
        let letters = match &mut *self.mailbox.letters.lock().unwrap() {
            Some(letters) => mem::take(letters),
            None => Vec::new(),
        };
        let count = letters.len();
        letters.into_iter().for_each(|task| self.executor.accept(task));
        count
    }

    fn run(&self) {
        while self.deliver() > 0 || self.executor.has_ready() {
            self.executor.run(100, || false);
        }
    }

    fn close_mailbox(&self) {
        drop(self.mailbox.letters.lock().unwrap().take());
    }
}

/// Counts its drops and insists on the thread.
struct Witness {
    drops: Arc<AtomicUsize>,
    home: ThreadId,
}

impl Witness {
    fn new(drops: &Arc<AtomicUsize>) -> Self {
        Witness { drops: Arc::clone(drops), home: thread::current().id() }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        assert_eq!(thread::current().id(), self.home, "dropped away from home");
        // Relaxed: read after the threads were joined, or on the same thread.
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sleeps until told, and hands out its waker.
#[derive(Clone, Default)]
struct Bell(Rc<RefCell<BellState>>);

#[derive(Default)]
struct BellState {
    rung: bool,
    waker: Option<Waker>,
    polls: usize,
}

impl Bell {
    fn wait(&self) -> impl Future<Output = ()> + 'static {
        let bell = self.clone();
        poll_fn(move |context| {
            let mut state = bell.0.borrow_mut();
            state.polls += 1;
            state.waker = Some(context.waker().clone());
            if state.rung { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    fn waker(&self) -> Waker {
        self.0.borrow().waker.clone().expect("polled before")
    }

    fn ring(&self) {
        let waker = {
            let mut state = self.0.borrow_mut();
            state.rung = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn polls(&self) -> usize {
        self.0.borrow().polls
    }
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn joined<T: 'static>(mut handle: JoinHandle<T>) -> Result<T, JoinError> {
    match poll_once(&mut handle) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the task has not finished"),
    }
}

/// Runs its closure when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A future that never ends, with something to drop.
async fn hold<T>(held: T) {
    pending::<()>().await;
    drop(held);
}

#[test]
fn a_task_runs_and_its_result_reaches_whoever_joins_it() {
    let bench = Bench::new();
    let executor = bench.executor.clone();
    let outer = bench.executor.spawn(async move {
        let inner = executor.spawn(async { vec![1, 2, 3] });
        inner.await.unwrap().len()
    });
    assert!(!outer.is_finished());
    assert_eq!(bench.executor.live(), 1);
    bench.run();
    assert!(outer.is_finished());
    assert_eq!(joined(outer).unwrap(), 3);
    assert_eq!(bench.executor.live(), 0);
}

#[test]
fn a_dropped_handle_detaches_and_the_result_is_dropped_at_home() {
    let bench = Bench::new();
    let drops = Arc::new(AtomicUsize::new(0));
    for is_dropped_before in [true, false] {
        let witness = Witness::new(&drops);
        let before = drops.load(Ordering::Relaxed);
        let mut handle = Some(bench.executor.spawn(async move { witness }));
        if is_dropped_before {
            handle = None;
        }
        bench.run();
        assert_eq!(bench.executor.live(), 0);
        assert_eq!(drops.load(Ordering::Relaxed), before + usize::from(is_dropped_before));
        drop(handle);
        assert_eq!(drops.load(Ordering::Relaxed), before + 1);
    }
}

#[test]
fn a_detached_task_that_nothing_can_wake_lives_until_close() {
    let bench = Bench::new();
    let drops = Arc::new(AtomicUsize::new(0));
    drop(bench.executor.spawn(hold(Witness::new(&drops))));
    bench.run();
    assert_eq!((bench.executor.live(), drops.load(Ordering::Relaxed)), (1, 0));
    bench.executor.close();
    assert_eq!((bench.executor.live(), drops.load(Ordering::Relaxed)), (0, 1));
}

#[test]
fn a_handle_joined_from_another_executor_is_woken_there() {
    let (one, two) = (Bench::new(), Bench::new());
    let bell = Bell::default();
    let first = one.executor.spawn(bell.wait());
    let second = two.executor.spawn(first);
    one.run();
    two.run();
    bell.ring();
    one.run();
    assert!(!second.is_finished());
    two.run();
    assert!(joined(second).unwrap().is_ok());
}

#[test]
fn wakers_cloned_woken_and_dropped_by_eight_threads_bring_tasks_home_or_do_nothing() {
    const THREADS: usize = 8;
    const TASKS: usize = if cfg!(miri) { 4 } else { 50 };
    const ROUNDS: usize = if cfg!(miri) { 3 } else { 200 };
    for closes_midway in [false, true] {
        let bench = Bench::new();
        let drops = Arc::new(AtomicUsize::new(0));
        let bells: Vec<Bell> = (0..TASKS).map(|_| Bell::default()).collect();
        for (number, bell) in bells.iter().enumerate() {
            let (witness, wait) = (Witness::new(&drops), bell.wait());
            let handle = bench.executor.spawn(async move {
                wait.await;
                drop(witness);
            });
            // Some are joined, some detached.
            if number % 2 == 0 {
                drop(handle);
            } else {
                drop(bench.executor.spawn(handle));
            }
        }
        bench.run();
        let wakers: Vec<Waker> = bells.iter().map(Bell::waker).collect();
        let barrier = Barrier::new(THREADS + 1);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (mine, barrier) = (wakers.clone(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for round in 0..ROUNDS {
                        for waker in &mine {
                            match (round + thread) % 3 {
                                0 => waker.wake_by_ref(),
                                1 => {
                                    let clone = waker.clone();
                                    clone.wake();
                                }
                                _ => drop(waker.clone()),
                            }
                        }
                    }
                });
            }
            barrier.wait();
            for round in 0..ROUNDS {
                if round == ROUNDS / 2 {
                    if closes_midway {
                        bench.close_mailbox();
                        bench.executor.close();
                        assert_eq!(drops.load(Ordering::Relaxed), TASKS);
                    } else {
                        bells.iter().for_each(Bell::ring);
                    }
                }
                bench.deliver();
                bench.executor.run(20, || false);
            }
        });
        bench.run();
        assert_eq!(drops.load(Ordering::Relaxed), TASKS);
        assert_eq!(bench.executor.live(), 0);
        wakers.iter().for_each(Waker::wake_by_ref);
        assert_eq!(bench.deliver(), 0, "finished tasks are not sent anywhere");
    }
}

#[test]
fn a_wake_in_flight_while_the_executor_closes_neither_aborts_nor_leaks() {
    let bench = Bench::new();
    let drops = Arc::new(AtomicUsize::new(0));
    let bell = Bell::default();
    let (wait, witness) = (bell.wait(), Witness::new(&drops));
    drop(bench.executor.spawn(async move {
        wait.await;
        drop(witness);
    }));
    bench.run();
    let waker = bell.waker();
    thread::spawn(move || waker.wake()).join().unwrap();
    // It is in the mailbox now. Let go by another thread, before the executor closes.
    let letters = bench.mailbox.letters.lock().unwrap().take().unwrap();
    assert_eq!(letters.len(), 1);
    thread::spawn(move || drop(letters)).join().unwrap();
    assert_eq!(drops.load(Ordering::Relaxed), 0, "no future is dropped abroad");
    bench.executor.close();
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}

#[test]
fn a_task_delivered_after_close_is_only_a_shell() {
    let bench = Bench::new();
    let drops = Arc::new(AtomicUsize::new(0));
    let bells = [Bell::default(), Bell::default()];
    for bell in &bells {
        let (wait, witness) = (bell.wait(), Witness::new(&drops));
        drop(bench.executor.spawn(async move {
            wait.await;
            drop(witness);
        }));
    }
    bench.run();
    bells[0].waker().wake();
    bench.executor.close();
    assert_eq!(drops.load(Ordering::Relaxed), 2);
    assert_eq!(bench.deliver(), 1);
    assert!(!bench.executor.has_ready());
    let waker = bells[1].waker();
    bench.close_mailbox();
    thread::spawn(move || waker.wake()).join().unwrap();
    bells[0].waker().wake();
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

#[test]
fn wakers_outlive_their_executor_and_its_handles() {
    let bench = Bench::new();
    let drops = Arc::new(AtomicUsize::new(0));
    let bells: Vec<Bell> = (0..4).map(|_| Bell::default()).collect();
    let handles: Vec<_> = bells.iter().map(|bell| bench.executor.spawn(bell.wait())).collect();
    drop(bench.executor.spawn(hold(Witness::new(&drops))));
    bench.run();
    let wakers: Vec<Waker> = bells.iter().map(Bell::waker).collect();
    // One has finished, one was cancelled, one is on its way home, and one asleep.
    bells[0].ring();
    handles[1].cancel();
    bench.run();
    assert!(handles[0].is_finished() && handles[1].is_finished());
    wakers[2].wake_by_ref();
    let letters = bench.mailbox.letters.lock().unwrap().take().unwrap();
    assert_eq!(letters.len(), 1);
    drop((handles, bells, bench));
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    thread::spawn(move || {
        for waker in wakers {
            waker.wake_by_ref();
            waker.wake();
        }
        drop(letters);
    })
    .join()
    .unwrap();
}

#[test]
fn a_task_cancelled_on_its_way_home_arrives_as_a_shell() {
    let bench = Bench::new();
    let drops = Arc::new(AtomicUsize::new(0));
    let bell = Bell::default();
    let (wait, witness) = (bell.wait(), Witness::new(&drops));
    let handle = bench.executor.spawn(async move {
        wait.await;
        drop(witness);
    });
    bench.run();
    bell.waker().wake();
    handle.cancel();
    assert!(!bench.executor.run(10, || false));
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    assert_eq!(bench.deliver(), 1);
    bench.run();
    assert_eq!(bell.polls(), 1);
    assert_eq!(bench.executor.live(), 0);
    assert!(joined(handle).unwrap_err().is_cancelled());
}

#[test]
#[should_panic(expected = "not its own")]
fn a_task_is_not_accepted_by_another_home() {
    let (one, two) = (Bench::new(), Bench::new());
    let bell = Bell::default();
    let _handle = one.executor.spawn(bell.wait());
    one.run();
    bell.waker().wake();
    let letter = one.mailbox.letters.lock().unwrap().as_mut().unwrap().pop().unwrap();
    two.executor.accept(letter);
}

#[test]
fn at_home_is_the_scope_not_the_thread() {
    let (one, two) = (Bench::new(), Bench::new());
    let bell = Bell::default();
    let _handle = one.executor.spawn(bell.wait());
    one.run();
    bell.waker().wake();
    assert_eq!(one.deliver(), 1, "outside the scope a wake goes through the remote");
    one.run();
    {
        let _in_one = one.executor.enter();
        bell.waker().wake();
        assert!(one.executor.has_ready());
        one.run();
        {
            let _in_two = two.executor.enter();
            bell.waker().wake();
            assert!(!one.executor.has_ready());
        }
        assert_eq!(one.deliver(), 1);
        one.run();
        bell.waker().wake();
        assert!(one.executor.has_ready(), "the scope before is restored");
    }
}

#[test]
fn a_panic_ends_its_task_alone_and_reaches_whoever_joins_it() {
    let bench = Bench::new();
    let heard = Rc::new(RefCell::new(Vec::new()));
    let hears = Rc::clone(&heard);
    bench.executor.set_panic_hook(move |text| {
        hears.borrow_mut().push(text.to_owned());
        panic!("the hook itself");
    });
    let text = bench.executor.spawn(async { panic!("formatted {}", 1) });
    let other = bench.executor.spawn(async { panic_any(7u8) });
    let detached = bench.executor.spawn(async { panic!("unheard") });
    drop(detached);
    let fine = bench.executor.spawn(async { 1 });
    bench.run();
    assert_eq!(bench.executor.panics(), 3);
    assert_eq!(*heard.borrow(), ["formatted 1", "(a panic that carried no text)", "unheard"]);
    let error: JoinError = joined::<()>(text).unwrap_err();
    assert_eq!(error.to_string(), "the task panicked: formatted 1");
    let payload = joined::<()>(other).unwrap_err().into_panic().unwrap().into_inner();
    assert_eq!(payload.downcast_ref(), Some(&7u8));
    assert_eq!(joined(fine).unwrap(), 1);
    fn is_an_error<E: std::error::Error + Send + Sync + 'static>() {}
    is_an_error::<JoinError>();
}
