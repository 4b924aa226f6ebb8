//! Calls through a `Handle`, from any thread and in any async context.

use super::*;

fn needs_send<T: Send>(future: T) -> T {
    future
}

/// A work-stealing runtime moves a future between two polls: whoever polls it next may be any thread.
#[test]
fn calls_through_a_handle_are_futures_for_any_thread_and_may_move_between_polls() {
    let running = idle(2);
    let handle = running.handle();
    let plain = needs_send(handle.call(shard_id(1), |shard: &Shard| shard.id()));
    let spawned = needs_send(handle.call_async(shard_id(0), async |shard: Shard| {
        let not_send = Rc::new(shard.id());
        yield_now().await;
        *not_send
    }));
    let all = needs_send(handle.call_all(|shard: &Shard| shard.id().index()));
    let on_thread = |future: Pin<Box<dyn Future<Output = ShardId> + Send>>| {
        thread::spawn(|| block_on(future)).join().unwrap()
    };
    assert_eq!(on_thread(Box::pin(async { plain.await.unwrap() })), shard_id(1));
    assert_eq!(on_thread(Box::pin(async { spawned.await.unwrap() })), shard_id(0));
    let all: Vec<_> = block_on(all).into_iter().map(|result| result.unwrap()).collect();
    assert_eq!(all, [0, 1]);

    // Polled once here, and fetched on another thread.
    let (entered, left) = hold(&handle);
    let mut moving = needs_send(handle.call(shard_id(1), |_: &Shard| 5));
    entered.wait();
    assert!(Pin::new(&mut moving).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let elsewhere = thread::spawn(|| block_on(moving));
    left.wait();
    assert_eq!(elsewhere.join().unwrap().unwrap(), 5);
}

#[test]
fn a_call_through_a_handle_works_on_the_shards_too_and_home_may_be_any_of_them() {
    on_every_driver(async |env| {
        let handle = env.handle();
        let call = needs_send(handle.call(shard_id(1), |shard: &Shard| shard.id()));
        assert_eq!(call.await?, shard_id(1));
        let own = handle.call_async(shard_id(0), async |shard: Shard| shard.id());
        assert_eq!(own.await?, shard_id(0));
        // Made here, sent by the other.
        let carried = handle.call(shard_id(0), |shard: &Shard| shard.id());
        let there = env.shard().call_async(shard_id(1), async move |_: Shard| carried.await);
        assert_eq!(there.await??, shard_id(0));
        let panicked = handle.call(shard_id(1), |_: &Shard| panic!("boom")).await.unwrap_err();
        assert_eq!(panicked.to_string(), "the called closure panicked: boom");
        Ok(())
    });
}

#[test]
fn a_call_through_a_handle_is_given_up_at_its_deadline_and_leaves_no_timer() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let begun = shard.now();
        let late = env.handle().call_async(shard_id(1), async |shard: Shard| shard.sleep(MS * 400).await);
        let error = late.deadline(10 * MS).await.unwrap_err();
        assert!(matches!(error, CallError::DeadlineExceeded), "{error}");
        assert!(shard.now() - begun >= MS * 10, "not early");
        let answered = env.handle().call(shard_id(1), |_: &Shard| 3).deadline(Duration::from_secs(3600));
        assert_eq!(answered.await?, 3);
        // The task that nobody waits for ends by itself.
        shard.sleep(MS * 500).await;
        Ok(())
    });
}

/// On the real kernel alone: the thread that waits is no shard.
#[test]
fn a_deadline_holds_on_any_thread_also_when_the_called_shard_is_stuck() {
    let running = idle(2);
    let handle = running.handle();
    let (entered, left) = hold(&handle);
    entered.wait();
    let ran = Arc::new(AtomicUsize::new(0));
    let runs = Arc::clone(&ran);
    let call = handle.call(shard_id(1), move |_: &Shard| runs.fetch_add(1, SeqCst)).deadline(20 * MS);
    let error = block_on(call).unwrap_err();
    assert!(matches!(error, CallError::DeadlineExceeded), "{error}");
    left.wait();
    handle.blocking_call_from_thread(shard_id(1), |_| ()).unwrap();
    assert_eq!(ran.load(SeqCst), 0, "what has not started by then does not run");
}

#[test]
fn a_dropped_call_through_a_handle_does_not_start_plain_or_async() {
    let running = idle(2);
    let handle = running.handle();
    let (entered, left) = hold(&handle);
    entered.wait();
    let ran = Arc::new(AtomicUsize::new(0));
    let (plain, spawned) = (Arc::clone(&ran), Arc::clone(&ran));
    let mut calls = (
        handle.call(shard_id(1), move |_: &Shard| plain.fetch_add(1, SeqCst)),
        handle.call_async(shard_id(1), async move |_: Shard| spawned.fetch_add(1, SeqCst)),
    );
    let mut context = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut calls.0).poll(&mut context).is_pending());
    assert!(Pin::new(&mut calls.1).poll(&mut context).is_pending());
    drop(calls);
    left.wait();
    handle.blocking_call_async_from_thread(shard_id(1), async |_| yield_now().await).unwrap();
    assert_eq!((ran.load(SeqCst), Arc::strong_count(&ran)), (0, 1), "unrun, and dropped");
}

#[test]
fn posts_of_a_shard_run_in_one_order_whether_made_through_it_or_through_a_handle() {
    on_every_driver(async |env| {
        let (shard, handle) = (env.shard(), env.handle());
        let log: Arc<Mutex<Vec<usize>>> = Arc::default();
        for number in 0..200 {
            let log = Arc::clone(&log);
            let note = move |_: &Shard| log.lock().unwrap().push(number);
            match number % 3 {
                0 => drop(handle.call_from_thread(shard_id(1), note)),
                1 => drop(shard.call_from_thread(shard_id(1), note)),
                _ => {
                    let mut call = handle.call(shard_id(1), note);
                    assert!(Pin::new(&mut call).poll(&mut Context::from_waker(Waker::noop())).is_pending());
                    // Sent, and awaited by a task of its own.
                    drop(shard.spawn(call));
                }
            }
        }
        shard.call(shard_id(1), |_: &Shard| ()).await?;
        assert_eq!(*log.lock().unwrap(), (0..200).collect::<Vec<_>>());
        // Their tasks are woken by messages, which come after this answer's.
        handle.call(shard_id(1), |_: &Shard| ()).await?;
        shard.sleep(50 * MS).await;
        Ok(())
    });
}

/// An application that, in `prepare`, does what `prepared` says.
struct Preparing<F> {
    prepared: F,
}

impl<F: Fn(&Handle) -> Result<()> + Send + Sync + 'static> App for Preparing<F> {
    fn prepare(&self, handle: &Handle) -> Result<()> {
        (self.prepared)(handle)
    }

    async fn start(&self, _shard: Shard) -> Result<()> {
        Ok(())
    }
}

/// It waited for ever: no shard runs before `prepare` has returned.
#[test]
fn a_call_waited_for_in_prepare_says_that_nothing_runs_yet() {
    let (tell, told) = mpsc::channel();
    let elsewhere = idle(1).handle();
    let prepared = move |handle: &Handle| -> Result<()> {
        let is_early = |error: CallError| assert!(matches!(error, CallError::NotStarted), "{error}");
        is_early(handle.blocking_call_from_thread(shard_id(0), |_| ()).unwrap_err());
        is_early(handle.blocking_call_async_from_thread(Route::Any, async |_| ()).unwrap_err());
        handle.call_all_from_thread(|_| ()).into_iter().for_each(|result| is_early(result.unwrap_err()));
        is_early(block_on(handle.call(shard_id(0), |_: &Shard| ())).unwrap_err());
        // Another runtime is not the one that waits for this.
        let gone = elsewhere.blocking_call_from_thread(shard_id(0), |_| ()).unwrap_err();
        assert!(matches!(gone, CallError::Stopped), "{gone}");
        // Another thread may wait, for that does not keep the shards from running.
        let (handle, tell) = (handle.clone(), tell.clone());
        thread::spawn(move || tell.send(handle.blocking_call_from_thread(shard_id(0), |shard| shard.id())));
        Ok(())
    };
    let running = Runtime::new().shards(1).pin(false).start(Preparing { prepared }).unwrap();
    assert_eq!(told.recv().unwrap().unwrap(), shard_id(0));
    assert!(running.handle().blocking_call_from_thread(shard_id(0), |_| ()).is_ok(), "it runs by now");
}
