//! Models of everything here that two threads decide together, explored by loom: every interleaving within
//! the preemption bound, and every value that a load may return under our orderings.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib cross_shard::models`
//!
//! `scripts/weaken.py` checks that these models are worth something: it weakens one ordering or step after
//! the other and wants a model to fail for each.

use super::{Call, CallError, Endpoint, Mesh, Reply};
use crate::ShardId;
use crate::reactor::waker::{DriverWaker, Wake};
use loom::cell::UnsafeCell;
use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Preemptions per execution. Two find every mistake that `scripts/weaken.py` makes; set
/// `LOOM_MAX_PREEMPTIONS` for more.
const PREEMPTIONS: usize = 2;

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(f);
}

/// A driver that can only sleep and be woken. A shard that sleeps with nobody left to wake it is a deadlock,
/// which loom reports.
struct Driver {
    notify: Notify,
    /// On std's atomics: they are compared once all threads are joined.
    writes: std::sync::atomic::AtomicUsize,
}

impl Wake for Driver {
    fn wake(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.notify.notify();
    }
}

/// What messages run on: one shard, with its driver.
struct Shard {
    endpoint: Endpoint<Shard>,
    driver: Arc<Driver>,
    ran: Cell<usize>,
    marks: Cell<usize>,
}

impl Shard {
    fn run(&self) {
        self.ran.set(self.ran.get() + 1);
    }

    /// A turn that sleeps if it finds nothing to do.
    fn turn(&self) {
        self.turn_unless(|| false);
    }

    fn turn_unless(&self, news: impl Fn() -> bool) {
        let delivered = self.endpoint.deliver(self, usize::MAX);
        self.endpoint.publish();
        if delivered.count > 0 {
            return;
        }
        self.marks.set(self.marks.get() + 1);
        if self.endpoint.prepare_sleep() {
            if !news() {
                self.driver.notify.wait();
            }
            self.endpoint.finish_sleep();
        }
    }

    /// Turns until the call is answered.
    fn wait<T>(&self, mut call: Call<T>) -> Result<T, CallError> {
        loop {
            if let Poll::Ready(result) = poll(&mut call) {
                return result;
            }
            self.turn();
        }
    }

    /// With all senders gone: nobody was woken twice from one sleep, and now that the shard is awake nobody
    /// wakes it at all.
    fn check_wakes(&self) {
        let writes = self.driver.writes.load(Ordering::Relaxed);
        assert!(writes <= self.marks.get(), "two writes for one sleep");
        assert!(self.endpoint.mesh().post(self.endpoint.id(), Shard::run).is_ok());
        assert_eq!(self.driver.writes.load(Ordering::Relaxed), writes, "a write to a shard that is awake");
    }
}

impl Drop for Shard {
    /// Panics are caught where messages are run, also those by which loom and the models speak.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.endpoint.counters().panics, 0, "a panic was caught: see above");
        }
    }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

struct Setting {
    mesh: Arc<Mesh<Shard>>,
    drivers: Vec<Arc<Driver>>,
}

impl Setting {
    fn new(shards: usize) -> Self {
        let driver = |_| Arc::new(Driver { notify: Notify::new(), writes: Default::default() });
        let drivers: Vec<_> = (0..shards).map(driver).collect();
        let mesh = Mesh::new(drivers.iter().map(|driver| Arc::clone(driver) as DriverWaker).collect());
        Setting { mesh, drivers }
    }

    fn shard(&self, number: u16) -> Shard {
        let driver = Arc::clone(&self.drivers[usize::from(number)]);
        Shard { endpoint: self.mesh.endpoint(id(number)), driver, ran: Cell::new(0), marks: Cell::new(0) }
    }

    /// Runs `f` as shard 1, beside this thread, and then drops the shard there.
    fn beside<R: 'static>(&self, f: impl FnOnce(&Shard) -> R + 'static) -> thread::JoinHandle<R> {
        let (mesh, driver) = (Arc::clone(&self.mesh), Arc::clone(&self.drivers[1]));
        thread::spawn(move || {
            let endpoint = mesh.endpoint(id(1));
            f(&Shard { endpoint, driver, ran: Cell::new(0), marks: Cell::new(0) })
        })
    }
}

const fn id(number: u16) -> ShardId {
    ShardId::new(number)
}

/// A value whose every use loom checks: used by two threads without order between them, it fails the model.
struct Tracked(UnsafeCell<usize>);

impl Tracked {
    fn new(value: usize) -> Self {
        Tracked(UnsafeCell::new(value))
    }

    fn add(&mut self, more: usize) {
        // SAFETY: a mutable reference; what loom checks is that it was handed over properly.
        self.0.with_mut(|value| unsafe { *value += more });
    }

    fn get(&self) -> usize {
        // SAFETY: a shared reference, and nothing writes through one.
        self.0.with(|value| unsafe { *value })
    }
}

// SAFETY: it is used through references that follow the usual rules, which is what the models check.
unsafe impl Send for Tracked {}

#[test]
fn a_shard_that_goes_to_sleep_hears_of_a_message() {
    model(|| {
        let setting = Setting::new(1);
        let mesh = Arc::clone(&setting.mesh);
        let sender = thread::spawn(move || {
            let mut value = Tracked::new(1);
            let posted = mesh.post(id(0), move |shard: &Shard| {
                value.add(1);
                shard.run();
            });
            assert!(posted.is_ok());
        });
        let shard = setting.shard(0);
        while shard.ran.get() < 1 {
            shard.turn();
        }
        sender.join().unwrap();
        shard.check_wakes();
    });
}

#[test]
fn a_shard_that_goes_to_sleep_hears_of_two_senders_and_is_woken_once() {
    model(|| {
        let setting = Setting::new(1);
        let senders = [(); 2].map(|()| {
            let mesh = Arc::clone(&setting.mesh);
            thread::spawn(move || assert!(mesh.post(id(0), Shard::run).is_ok()))
        });
        let shard = setting.shard(0);
        while shard.ran.get() < 2 {
            shard.turn();
        }
        for sender in senders {
            sender.join().unwrap();
        }
        shard.check_wakes();
    });
}

#[test]
fn a_shard_that_goes_to_sleep_hears_of_news_that_lie_elsewhere() {
    model(|| {
        let setting = Setting::new(1);
        let news = Arc::new(AtomicBool::new(false));
        let (mesh, told) = (Arc::clone(&setting.mesh), Arc::clone(&news));
        let teller = thread::spawn(move || {
            told.store(true, Ordering::Relaxed);
            mesh.wake(id(0));
        });
        let shard = setting.shard(0);
        while !news.load(Ordering::Relaxed) {
            shard.turn_unless(|| news.load(Ordering::Relaxed));
        }
        teller.join().unwrap();
        shard.check_wakes();
    });
}

#[test]
fn messages_of_one_sender_stay_in_order_through_sleep() {
    model(|| {
        let setting = Setting::new(1);
        let mesh = Arc::clone(&setting.mesh);
        let sender = thread::spawn(move || {
            for number in 0..2 {
                let posted = mesh.post(id(0), move |shard: &Shard| {
                    assert_eq!(shard.ran.get(), number);
                    shard.run();
                });
                assert!(posted.is_ok());
            }
        });
        let shard = setting.shard(0);
        while shard.ran.get() < 2 {
            shard.turn();
        }
        sender.join().unwrap();
        shard.check_wakes();
    });
}

#[test]
fn of_a_post_that_races_with_the_close_exactly_one_happens_run_or_returned() {
    model(|| {
        let setting = Setting::new(1);
        let senders = [(); 2].map(|()| {
            let mesh = Arc::clone(&setting.mesh);
            thread::spawn(move || {
                let mut value = Tracked::new(1);
                let posted = mesh.post(id(0), move |shard: &Shard| {
                    value.add(1);
                    shard.run();
                });
                usize::from(posted.is_err())
            })
        });
        let shard = setting.shard(0);
        shard.endpoint.deliver(&shard, usize::MAX);
        shard.endpoint.close(&shard);
        let ran = shard.ran.get();
        let returned: usize = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
        assert_eq!(shard.endpoint.deliver(&shard, usize::MAX).count, 0, "taken, but not by the final drain");
        assert_eq!(ran + returned, 2);
        assert!(setting.mesh.post(id(0), Shard::run).is_err(), "closed for good");
    });
}

#[test]
fn a_close_wakes_nobody_twice_and_loses_nobody_who_sees_it_asleep() {
    model(|| {
        let setting = Setting::new(1);
        let mesh = Arc::clone(&setting.mesh);
        let sender = thread::spawn(move || usize::from(mesh.post(id(0), Shard::run).is_err()));
        let shard = setting.shard(0);
        // As a shard that is told to stop while it is about to sleep.
        shard.marks.set(1);
        shard.endpoint.prepare_sleep();
        shard.endpoint.close(&shard);
        shard.endpoint.finish_sleep();
        assert_eq!(shard.ran.get() + sender.join().unwrap(), 1);
        assert!(shard.driver.writes.load(Ordering::Relaxed) <= 1, "two writes for one sleep");
    });
}

#[test]
fn a_call_is_answered_while_both_shards_go_to_sleep() {
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|shard| {
            while shard.ran.get() < 1 {
                shard.turn();
            }
        });
        let shard = setting.shard(0);
        let mut value = Tracked::new(1);
        let call = shard.endpoint.call(id(1), move |target: &Shard| {
            target.run();
            value.add(1);
            value
        });
        shard.endpoint.publish();
        assert_eq!(shard.wait(call).unwrap().get(), 2);
        target.join().unwrap();
        shard.check_wakes();
    });
}

/// Notes on which thread it was dropped.
struct Noted {
    value: Tracked,
    dropped_by: Arc<std::sync::Mutex<Option<thread::ThreadId>>>,
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.value.add(1);
        let before = self.dropped_by.lock().unwrap().replace(thread::current().id());
        assert_eq!(before, None, "dropped twice");
    }
}

#[test]
fn a_call_withdrawn_while_it_is_about_to_start_runs_or_not_and_is_dropped_at_home() {
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|shard| {
            while shard.endpoint.counters().envelopes == 0 {
                shard.turn();
            }
            shard.ran.get()
        });
        let shard = setting.shard(0);
        let dropped_by = Arc::default();
        let noted = Noted { value: Tracked::new(0), dropped_by: Arc::clone(&dropped_by) };
        let call = shard.endpoint.call(id(1), move |target: &Shard| {
            target.run();
            noted
        });
        shard.endpoint.publish();
        drop(call);
        while shard.endpoint.counters().envelopes == 0 {
            shard.turn();
        }
        // Not started: the closure came home. Started: its result did. Both hold the same value.
        assert_eq!(*dropped_by.lock().unwrap(), Some(thread::current().id()));
        assert!(target.join().unwrap() <= 1);

        let next = shard.endpoint.call(id(0), Shard::run);
        assert!(shard.wait(next).is_ok(), "the flag of the last call does not stop the next");
    });
}

#[test]
fn a_call_withdrawn_before_it_can_start_never_runs() {
    model(|| {
        let setting = Setting::new(2);
        let shard = setting.shard(0);
        let call = shard.endpoint.call(id(1), Shard::run);
        shard.endpoint.publish();
        drop(call);
        // What follows the spawn happens after the withdrawal.
        let target = setting.beside(|shard| {
            while shard.endpoint.counters().envelopes == 0 {
                shard.turn();
            }
            shard.ran.get()
        });
        assert_eq!(target.join().unwrap(), 0);
    });
}

#[test]
fn a_call_to_a_shard_that_stops_is_answered() {
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|shard| {
            shard.endpoint.close(shard);
            shard.ran.get()
        });
        let shard = setting.shard(0);
        let call = shard.endpoint.call(id(1), Shard::run);
        shard.endpoint.publish();
        let answered = shard.wait(call);
        let ran = target.join().unwrap();
        assert_eq!(ran, usize::from(answered.is_ok()));
    });
}

#[test]
fn a_call_to_a_shard_that_is_lost_is_answered() {
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|_| {});
        let shard = setting.shard(0);
        let call = shard.endpoint.call(id(1), Shard::run);
        shard.endpoint.publish();
        assert!(matches!(shard.wait(call), Err(CallError::Stopped)));
        target.join().unwrap();
    });
}

#[test]
fn two_shards_that_call_each_other_and_stop_at_once_both_end() {
    fn call_and_stop(shard: &Shard, other: ShardId) {
        let mut call = shard.endpoint.call(other, Shard::run);
        shard.endpoint.publish();
        shard.endpoint.close(shard);
        assert!(poll(&mut call).is_ready());
    }
    model(|| {
        let setting = Setting::new(2);
        let other = setting.beside(|shard| call_and_stop(shard, id(0)));
        call_and_stop(&setting.shard(0), id(1));
        other.join().unwrap();
    });
}

#[test]
fn an_async_call_is_answered_by_a_message_of_its_own() {
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|shard| {
            while shard.ran.get() < 1 {
                shard.turn();
            }
        });
        let shard = setting.shard(0);
        let call = shard.endpoint.call_async(id(1), |target: &Shard, reply: Reply<usize, Shard>| {
            target.run();
            reply.send(Ok(7));
        });
        shard.endpoint.publish();
        assert_eq!(shard.wait(call).unwrap(), 7);
        target.join().unwrap();
    });
}

#[test]
fn two_shards_with_one_credit_each_that_call_each_other_make_progress() {
    /// Two calls with one credit: the second waits for the answer of the first.
    fn call_twice(shard: &Shard, other: ShardId) {
        for _ in 0..2 {
            let mut credit = shard.endpoint.credit(other);
            let credit = loop {
                match poll(&mut credit) {
                    Poll::Ready(credit) => break credit.unwrap(),
                    Poll::Pending => shard.turn(),
                }
            };
            let call = shard.endpoint.call(other, Shard::run).holding(credit);
            shard.endpoint.publish();
            shard.wait(call).unwrap();
        }
        while shard.ran.get() < 2 {
            shard.turn();
        }
    }
    model(|| {
        let setting = Setting::new(2);
        let other = setting.beside(|shard| call_twice(shard, id(0)));
        call_twice(&setting.shard(0), id(1));
        other.join().unwrap();
    });
}

#[test]
fn a_thread_that_waits_for_its_answer_is_woken() {
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|shard| {
            while shard.ran.get() < 1 {
                shard.turn();
            }
        });
        let mut value = Tracked::new(1);
        let call = setting.mesh.call_from_thread(id(1), move |shard: &Shard| {
            shard.run();
            value.add(1);
            value
        });
        assert_eq!(call.wait_blocking().unwrap().get(), 2);
        target.join().unwrap();
    });
}

#[test]
fn a_thread_that_waits_for_a_shard_that_stops_is_told() {
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|shard| {
            shard.endpoint.close(shard);
            shard.ran.get()
        });
        let answered = setting.mesh.call_from_thread(id(1), Shard::run).wait_blocking();
        assert_eq!(usize::from(answered.is_ok()), target.join().unwrap());
    });
}

#[test]
fn a_thread_that_waits_for_a_shard_that_is_lost_is_told() {
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|_| {});
        let answered = setting.mesh.call_from_thread(id(1), Shard::run).wait_blocking();
        assert!(matches!(answered, Err(CallError::Stopped)));
        target.join().unwrap();
    });
}

#[test]
fn a_foreign_call_dropped_at_any_moment_drops_its_result_once() {
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|shard| {
            shard.turn();
            shard.endpoint.close(shard);
        });
        let dropped_by: Arc<std::sync::Mutex<_>> = Arc::default();
        let noted = Noted { value: Tracked::new(0), dropped_by: Arc::clone(&dropped_by) };
        let call = setting.mesh.call_from_thread(id(1), move |_: &Shard| noted);
        drop(call);
        target.join().unwrap();
        assert!(dropped_by.lock().unwrap().is_some());
    });
}

#[test]
fn a_task_that_awaits_a_foreign_call_is_woken() {
    struct Flag(AtomicUsize);
    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Release);
        }
    }
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|shard| {
            while shard.ran.get() < 1 {
                shard.turn();
            }
        });
        let mut call = setting.mesh.call_from_thread(id(1), Shard::run);
        let flag = Arc::new(Flag(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&flag));
        let first = Pin::new(&mut call).poll(&mut Context::from_waker(&waker));
        target.join().unwrap();
        if first.is_pending() {
            assert_eq!(flag.0.load(Ordering::Acquire), 1, "the one waker that was left");
            assert!(poll(&mut call).is_ready());
        }
    });
}

#[test]
fn who_watches_a_foreign_call_hears_of_its_end_whether_it_was_answered_or_dropped() {
    struct Flag(AtomicUsize);
    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Release);
        }
    }
    for drops in [false, true] {
        model(move || {
            let setting = Setting::new(2);
            let target = setting.beside(|shard| {
                while shard.ran.get() < 1 {
                    shard.turn();
                }
            });
            let call = setting.mesh.call_from_thread(id(1), Shard::run);
            let (mut overdue, flag) = (call.overdue(), Arc::new(Flag(AtomicUsize::new(0))));
            let waker = Waker::from(Arc::clone(&flag));
            let first = Pin::new(&mut overdue).poll(&mut Context::from_waker(&waker));
            if drops {
                drop(call);
                // In its stead, for the target to end, unless it has run and the target has ended.
                let _ = setting.mesh.post(id(1), Shard::run);
            } else {
                drop(call.wait_blocking());
            }
            target.join().unwrap();
            if first.is_pending() {
                assert_eq!(flag.0.load(Ordering::Acquire), 1, "heard once");
            }
            assert!(poll(&mut overdue).is_ready());
        });
    }
}

#[test]
fn a_foreign_call_whose_time_is_over_while_it_is_answered_has_one_outcome() {
    model(|| {
        let setting = Setting::new(2);
        let target = setting.beside(|shard| {
            shard.turn();
            shard.endpoint.close(shard);
            shard.ran.get()
        });
        let call = setting.mesh.call_from_thread(id(1), Shard::run);
        call.overdue().give_up();
        let outcome = call.wait_blocking();
        let ran = target.join().unwrap();
        assert!(ran == 1 || outcome.is_err(), "answered by nobody");
        assert!(
            matches!(outcome, Ok(()) | Err(CallError::DeadlineExceeded | CallError::Stopped)),
            "{outcome:?}"
        );
    });
}
