//! Tasks that end in uncommon ways: cancelled, closed, panicking.

use super::*;

#[test]
fn payloads_futures_and_results_whose_destructors_panic_are_contained() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(Fuse);
        }
    }
    /// A payload that panics in turn.
    struct Fuse;
    impl Drop for Fuse {
        fn drop(&mut self) {
            panic!("and again");
        }
    }
    let bench = Bench::new();
    bench.executor.set_panic_hook(|_| {});
    // The payload of a detached task, and of one whose error is dropped.
    drop(bench.executor.spawn(async { panic_any(Fuse) }));
    let joined_later = bench.executor.spawn(async { panic_any(Fuse) });
    bench.run();
    drop(joined::<()>(joined_later));
    assert_eq!(bench.executor.panics(), 2);
    // A future: finished, cancelled asleep, and dropped by close.
    let finished = bench.executor.spawn({
        let bomb = Bomb;
        poll_fn(move |_| {
            let _ = &bomb;
            Poll::Ready(5)
        })
    });
    let asleep = bench.executor.spawn(hold(Bomb));
    drop(bench.executor.spawn(hold(Bomb)));
    bench.run();
    assert_eq!(joined(finished).unwrap(), 5);
    asleep.cancel();
    bench.run();
    assert!(joined(asleep).unwrap_err().is_cancelled());
    // A result that nobody wants.
    drop(bench.executor.spawn(async { Bomb }));
    bench.run();
    assert_eq!(bench.executor.panics(), 5);
    // Never polled.
    drop(bench.executor.spawn(hold(Bomb)));
    bench.executor.close();
    assert_eq!(bench.executor.panics(), 7);
    drop(bench.executor.spawn(hold(Bomb)));
    assert_eq!(bench.executor.panics(), 8);
    assert_eq!(bench.executor.live(), 0);
}

#[test]
fn cancelling_drops_the_future_whether_queued_asleep_or_running() {
    let bench = Bench::new();
    let drops = Arc::new(AtomicUsize::new(0));
    let queued = bench.executor.spawn(hold(Witness::new(&drops)));
    queued.cancel();
    queued.cancel();
    assert!(bench.executor.has_ready());
    bench.run();
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    assert!(joined(queued).unwrap_err().is_cancelled());

    let asleep = bench.executor.spawn(hold(Witness::new(&drops)));
    bench.run();
    asleep.cancel();
    assert_eq!(drops.load(Ordering::Relaxed), 1, "not under the caller's feet");
    assert!(bench.executor.has_ready());
    bench.run();
    assert_eq!(drops.load(Ordering::Relaxed), 2);
    assert!(joined(asleep).unwrap_err().is_cancelled());

    let bell = Bell::default();
    let (wait, witness) = (bell.wait(), Witness::new(&drops));
    let woken = bench.executor.spawn(async move {
        wait.await;
        drop(witness);
    });
    bench.run();
    {
        let _entered = bench.executor.enter();
        bell.ring();
    }
    woken.cancel();
    bench.run();
    assert_eq!(drops.load(Ordering::Relaxed), 3);
    assert_eq!(bell.polls(), 1, "a cancelled task is not polled again");
    assert!(joined(woken).unwrap_err().is_cancelled());

    let own_handle: Rc<RefCell<Option<JoinHandle<()>>>> = Rc::default();
    let (own, witness) = (Rc::clone(&own_handle), Witness::new(&drops));
    *own_handle.borrow_mut() = Some(bench.executor.spawn(async move {
        own.borrow().as_ref().unwrap().cancel();
        pending::<()>().await;
        drop(witness);
    }));
    bench.run();
    assert_eq!(drops.load(Ordering::Relaxed), 4);
    assert!(joined(own_handle.take().unwrap()).unwrap_err().is_cancelled());

    let finishes_anyway: Rc<RefCell<Option<JoinHandle<u8>>>> = Rc::default();
    let own = Rc::clone(&finishes_anyway);
    *finishes_anyway.borrow_mut() = Some(bench.executor.spawn(async move {
        own.borrow().as_ref().unwrap().cancel();
        9
    }));
    bench.run();
    let handle = finishes_anyway.take().unwrap();
    handle.cancel();
    assert_eq!(joined(handle).unwrap(), 9);
    assert_eq!(bench.executor.live(), 0);
}

#[test]
fn a_cancelled_task_can_be_dropped_with_its_last_waker_inside() {
    // The future owns the only waker of its own task, and its own handle.
    for closes in [false, true] {
        let bench = Bench::new();
        let slot: Rc<RefCell<Option<JoinHandle<()>>>> = Rc::default();
        let mut own_wakers = Vec::new();
        let own_handle = Rc::clone(&slot);
        let executor = bench.executor.clone();
        let on_drop = OnDrop(move || {
            drop(own_handle.take());
            if closes {
                executor.close();
            }
            executor.run(10, || false);
        });
        let handle = bench.executor.spawn(poll_fn(move |context| {
            let _ = &on_drop;
            own_wakers.push(context.waker().clone());
            Poll::<()>::Pending
        }));
        bench.run();
        handle.cancel();
        *slot.borrow_mut() = Some(handle);
        bench.run();
        assert_eq!(bench.executor.live(), 0);
        assert!(slot.borrow().is_none());
        if closes {
            assert!(joined(bench.executor.spawn(async {})).unwrap_err().is_cancelled());
        }
    }
}

#[test]
fn close_survives_futures_that_wake_spawn_and_close_in_their_destructors() {
    let bench = Bench::new();
    let drops = Arc::new(AtomicUsize::new(0));
    let bells: Vec<Bell> = (0..10).map(|_| Bell::default()).collect();
    let refused = Rc::new(Cell::new(0));
    let mut handles = Vec::new();
    for number in 0..10 {
        let wait = bells[number].wait();
        let (all, executor, refused) = (bells.clone(), bench.executor.clone(), Rc::clone(&refused));
        let witness = Witness::new(&drops);
        let inner_witness_drops = Arc::clone(&drops);
        let on_drop = OnDrop(move || {
            // Each rings all the others, spawns, and closes.
            all.iter().for_each(Bell::ring);
            let handle = executor.spawn(hold(Witness::new(&inner_witness_drops)));
            if joined(handle).unwrap_err().is_cancelled() {
                refused.set(refused.get() + 1);
            }
            executor.run(10, || false);
            executor.close();
        });
        handles.push(bench.executor.spawn(async move {
            wait.await;
            pending::<()>().await;
            drop((on_drop, witness));
        }));
        if number == 6 {
            // The rest is never polled.
            bench.run();
        }
    }
    bench.executor.close();
    assert_eq!(refused.get(), 10);
    assert_eq!(drops.load(Ordering::Relaxed), 20);
    assert_eq!(bench.executor.live(), 0);
    assert!(!bench.executor.has_ready());
    for handle in handles {
        assert!(joined(handle).unwrap_err().is_cancelled());
    }
}

#[test]
fn close_from_within_a_task_drops_that_task_too() {
    let bench = Bench::new();
    let drops = Arc::new(AtomicUsize::new(0));
    drop(bench.executor.spawn(hold(Witness::new(&drops))));
    let (executor, witness, seen) = (bench.executor.clone(), Witness::new(&drops), Arc::clone(&drops));
    let handle = bench.executor.spawn(async move {
        executor.close();
        assert_eq!(seen.load(Ordering::Relaxed), 2, "the others are gone at once");
        yield_now().await;
        drop(witness);
    });
    drop(bench.executor.spawn(hold(Witness::new(&drops))));
    bench.run();
    assert_eq!(drops.load(Ordering::Relaxed), 3);
    assert!(joined(handle).unwrap_err().is_cancelled());
    assert_eq!(bench.executor.panics(), 0);
}

#[test]
fn close_wakes_those_who_join_from_elsewhere() {
    let (one, two) = (Bench::new(), Bench::new());
    let waits = two.executor.spawn(one.executor.spawn(pending::<()>()));
    two.run();
    one.executor.close();
    two.run();
    assert!(joined(waits).unwrap().unwrap_err().is_cancelled());
}

#[test]
fn dropping_the_last_handle_closes() {
    let drops = Arc::new(AtomicUsize::new(0));
    let bench = Bench::new();
    let handle = bench.executor.spawn(hold(Witness::new(&drops)));
    bench.run();
    drop(bench);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    assert!(joined(handle).unwrap_err().is_cancelled());
}

#[test]
fn a_woken_task_runs_inside_run_woken_and_only_one_does() {
    let bench = Bench::new();
    let bells = [Bell::default(), Bell::default()];
    for bell in &bells {
        drop(bench.executor.spawn(bell.wait()));
    }
    bench.run();
    assert!(bench.executor.run_woken(|| bells.iter().for_each(|bell| bell.waker().wake())));
    assert_eq!((bells[0].polls(), bells[1].polls()), (2, 1), "the second one is queued");
    assert!(!bench.executor.run_woken(|| bells[1].waker().wake()), "it was queued before");
    assert_eq!(bells[1].polls(), 1);
    assert!(!bench.executor.run_woken(|| {}));
    bench.run();
    assert_eq!((bells[0].polls(), bells[1].polls()), (2, 2));
    assert_eq!(bench.deliver(), 0);
}

#[test]
fn run_woken_within_a_poll_only_queues() {
    let bench = Bench::new();
    let bell = Bell::default();
    drop(bench.executor.spawn(bell.wait()));
    bench.run();
    let (executor, inner) = (bench.executor.clone(), bell.clone());
    let handle = bench.executor.spawn(poll_fn(move |context| {
        assert!(!executor.run_woken(|| inner.waker().wake()));
        assert!(!executor.run_woken(|| context.waker().wake_by_ref()), "it is being polled");
        assert_eq!(inner.polls(), 1);
        Poll::Ready(())
    }));
    bench.executor.run(1, || false);
    assert!(handle.is_finished());
    assert_eq!(bell.polls(), 1);
    bench.run();
    assert_eq!(bell.polls(), 2);
    joined(handle).unwrap();
}

#[test]
fn a_panic_of_the_wake_leaves_the_woken_task_queued() {
    let bench = Bench::new();
    let bell = Bell::default();
    drop(bench.executor.spawn(bell.wait()));
    bench.run();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        bench.executor.run_woken(|| {
            bell.waker().wake();
            panic!("of the waker");
        })
    }));
    assert!(caught.is_err());
    assert_eq!(bell.polls(), 1);
    bench.run();
    assert_eq!(bell.polls(), 2);
}

#[test]
fn a_run_keeps_its_budget_and_goes_on_where_it_stopped() {
    let bench = Bench::new();
    let order = Rc::new(RefCell::new(Vec::new()));
    for number in 0..20 {
        let order = Rc::clone(&order);
        drop(bench.executor.spawn(async move { order.borrow_mut().push(number) }));
    }
    assert!(bench.executor.run(5, || false));
    assert_eq!(order.borrow().len(), 5);
    assert!(bench.executor.run(100, || true));
    assert_eq!(order.borrow().len(), 13, "the time budget is asked every 8 polls");
    assert!(bench.executor.run(0, || false));
    assert!(!bench.executor.run(7, || false));
    assert_eq!(*order.borrow(), (0..20).collect::<Vec<_>>());
}

#[test]
fn a_task_that_wakes_itself_waits_for_the_next_run() {
    let bench = Bench::new();
    let rounds = Rc::new(Cell::new(0));
    let counts = Rc::clone(&rounds);
    let handle = bench.executor.spawn(async move {
        loop {
            counts.set(counts.get() + 1);
            yield_now().await;
        }
    });
    for round in 1..=5 {
        assert!(bench.executor.run(1000, || false), "it is ready again");
        assert_eq!(rounds.get(), round);
    }
    let handle: JoinHandle<()> = handle;
    handle.cancel();
    bench.run();
}

#[test]
fn a_task_woken_by_another_runs_in_the_same_run() {
    let bench = Bench::new();
    let bell = Bell::default();
    let handle = bench.executor.spawn(bell.wait());
    bench.run();
    drop(bench.executor.spawn(async move { bell.ring() }));
    assert!(!bench.executor.run(10, || false));
    assert!(handle.is_finished());
}

#[test]
fn a_handle_polled_with_changing_wakers_wakes_the_last_one() {
    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            // Relaxed: one thread.
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let bench = Bench::new();
    let mut handle = bench.executor.spawn(async { 3 });
    let (first, last) = (Arc::new(Count::default()), Arc::new(Count::default()));
    for count in [&first, &last, &last] {
        let waker = Waker::from(Arc::clone(count));
        assert!(Pin::new(&mut handle).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    assert_eq!(Arc::strong_count(&first), 1);
    bench.run();
    assert_eq!((first.0.load(Ordering::Relaxed), last.0.load(Ordering::Relaxed)), (0, 1));
    assert_eq!(poll_once(&mut handle).map(Result::unwrap), Poll::Ready(3));
    assert!(matches!(poll_once(&mut handle), Poll::Ready(Err(JoinError::Cancelled))));
}

#[test]
fn large_futures_that_async_task_boxes_are_dropped_in_place_too() {
    let bench = Bench::new();
    let drops = Arc::new(AtomicUsize::new(0));
    let bell = Bell::default();
    for _ in 0..2 {
        let (witness, wait) = (Witness::new(&drops), bell.wait());
        let handle = bench.executor.spawn(async move {
            let mut large = [1u8; 4096];
            wait.await;
            yield_now().await;
            large[0] += 1;
            hold((witness, large)).await;
        });
        bench.run();
        bell.ring();
        bench.run();
        handle.cancel();
        // The first one by cancelling, the second one by closing.
        if drops.load(Ordering::Relaxed) == 0 {
            bench.run();
            assert_eq!(drops.load(Ordering::Relaxed), 1);
        }
    }
    bench.executor.close();
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

#[test]
fn a_task_is_its_future_and_a_constant() {
    fn overhead<F: Future>(_: &F) -> usize {
        mem::size_of::<TaskFuture<F>>() - mem::size_of::<F>()
    }
    for extra in [overhead(&hold(0u8)), overhead(&hold([0u8; 1000])), overhead(&hold([0u64; 2000]))] {
        assert!(extra <= 16, "{extra} bytes more than the future itself");
    }
}
