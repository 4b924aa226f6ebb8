//! A shard that its caller turns: IReactorCore's `iterate`. On mio: a simulation turns its shards itself.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::TcpStream as StdStream;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use shardwise::{Config, Embedded, RunError, Runtime, RuntimeState, Shard, ShardId, TcpStream};

/// Longer than any test takes.
const FAR: Duration = Duration::from_secs(3600);

fn idle() -> Embedded {
    Runtime::new().embed(async |_shard: Shard| Ok(())).unwrap()
}

fn turn_until(embedded: &mut Embedded, wanted: RuntimeState) {
    for _ in 0..10_000 {
        if embedded.turn(Some(Duration::ZERO)).unwrap() == wanted {
            return;
        }
    }
    panic!("still not {wanted:?} after 10,000 turns");
}

/// Waits, as a loop around this one does, until a turn has something to do.
fn wait_for_news(embedded: &Embedded) -> bool {
    let limit = Duration::from_secs(30);
    let rest = embedded.rest().unwrap_or(limit).min(limit);
    let timeout = rustix::event::Timespec::try_from(rest).unwrap();
    let mut fds = [PollFd::new(embedded, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).unwrap() == 1
}

#[test]
fn a_turn_of_no_time_returns_at_once_though_a_timer_is_set_also_before_anything_has_run() {
    let begun = Instant::now();
    let mut embedded = idle();
    let made = Rc::new(Cell::new(false));
    let makes = Rc::clone(&made);
    drop(embedded.with_shard(|shard| shard.call_later(FAR, move |_| makes.set(true))));
    for _ in 0..100 {
        embedded.turn(Some(Duration::ZERO)).unwrap();
    }
    assert!(begun.elapsed() < FAR && !made.get());
    let rest = embedded.rest().expect("a timer is set");
    assert!(rest > FAR / 2 && rest <= FAR, "{rest:?}");
}

#[test]
fn a_turn_waits_for_as_long_as_it_may_and_no_longer_than_the_next_timer() {
    let mut embedded = idle();
    turn_until(&mut embedded, RuntimeState::Running);
    while embedded.rest() == Some(Duration::ZERO) {
        embedded.turn(Some(Duration::ZERO)).unwrap();
    }
    let begun = Instant::now();
    embedded.turn(Some(Duration::from_millis(30))).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(30), "nothing else could end it");
    let made = Rc::new(Cell::new(false));
    let makes = Rc::clone(&made);
    drop(embedded.with_shard(|shard| shard.call_later(Duration::from_millis(5), move |_| makes.set(true))));
    while !made.get() {
        embedded.turn(None).unwrap();
    }
}

/// A timer set between two turns, when the shard has already chosen to sleep for long.
#[test]
fn what_is_asked_for_between_turns_is_not_slept_over() {
    let mut embedded = idle();
    drop(embedded.with_shard(|shard| shard.call_later(FAR, |_| {})));
    turn_until(&mut embedded, RuntimeState::Running);
    while embedded.rest() == Some(Duration::ZERO) {
        embedded.turn(Some(Duration::ZERO)).unwrap();
    }
    let ran = Rc::new(RefCell::new(Vec::new()));
    let (by_timer, by_task) = (Rc::clone(&ran), Rc::clone(&ran));
    embedded.with_shard(|shard| {
        drop(shard.call_later(Duration::ZERO, move |_| by_timer.borrow_mut().push("timer")));
        drop(shard.spawn(async move { by_task.borrow_mut().push("task") }));
    });
    assert_eq!(embedded.rest(), Some(Duration::ZERO));
    while ran.borrow().len() < 2 {
        embedded.turn(None).unwrap();
    }
}

#[test]
fn a_call_from_another_thread_ends_the_wait_and_makes_the_descriptor_readable() {
    let mut embedded = idle();
    turn_until(&mut embedded, RuntimeState::Running);
    while embedded.rest() == Some(Duration::ZERO) {
        embedded.turn(Some(Duration::ZERO)).unwrap();
    }
    assert_eq!(embedded.rest(), None, "only news can bring work");
    let handle = embedded.handle();
    let (sender, receiver) = mpsc::channel();
    let caller = thread::spawn(move || {
        let home = handle.blocking_call_from_thread(ShardId::new(0), |_shard: &Shard| thread::current().id());
        sender.send(home.unwrap()).unwrap();
    });
    assert!(wait_for_news(&embedded), "the descriptor has not become readable");
    let home = loop {
        embedded.turn(Some(Duration::from_millis(1))).unwrap();
        if let Ok(home) = receiver.try_recv() {
            break home;
        }
    };
    assert_eq!(home, thread::current().id());
    caller.join().unwrap();
}

#[test]
fn a_loop_around_it_serves_connections_by_its_descriptor() {
    let addr = Rc::new(Cell::new(None));
    let tells = Rc::clone(&addr);
    let mut embedded = idle();
    embedded.with_shard(|shard| {
        let listener = shard.serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        });
        tells.set(Some(listener.unwrap().local_addr()));
    });
    let addr = addr.get().unwrap();
    let client = thread::spawn(move || {
        let mut stream = StdStream::connect(addr).unwrap();
        for round in 0..100u8 {
            stream.write_all(&[round; 10]).unwrap();
            let mut answer = [0; 10];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [round; 10]);
        }
    });
    while !client.is_finished() {
        if embedded.rest() != Some(Duration::ZERO) {
            let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            let _ = poll(&mut [PollFd::new(&embedded.as_fd(), PollFlags::IN)], Some(&timeout)).unwrap();
        }
        embedded.turn(Some(Duration::ZERO)).unwrap();
    }
    client.join().unwrap();
}

#[test]
fn it_ends_by_stop_and_tells_an_error_once() {
    let mut embedded = idle();
    turn_until(&mut embedded, RuntimeState::Running);
    embedded.handle().stop().unwrap();
    turn_until(&mut embedded, RuntimeState::Stopped);
    assert_eq!(embedded.turn(None).unwrap(), RuntimeState::Stopped, "and does not wait");
    assert!(embedded.with_shard(|_| ()).is_none());

    let mut embedded = Runtime::new().embed(async |_shard: Shard| Err("no luck".into())).unwrap();
    let error = loop {
        match embedded.turn(None) {
            Ok(state) => assert_ne!(state, RuntimeState::Stopped, "the error was lost"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.to_string(), "shard 0 failed to start: no luck");
    assert_eq!(embedded.turn(None).unwrap(), RuntimeState::Stopped);
}

#[test]
fn dropping_it_stops_in_order_and_one_that_never_turned_leaves_nothing_behind() {
    let dropped = Rc::new(());
    let held = Rc::clone(&dropped);
    let mut embedded = idle();
    embedded.with_shard(|shard| {
        drop(shard.spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        }));
    });
    drop(embedded);
    assert_eq!(Rc::strong_count(&dropped), 1, "its task is gone");
}

#[test]
fn what_an_embedded_shard_cannot_have_is_refused() {
    let refused = |runtime: Runtime| match runtime.embed(async |_shard: Shard| Ok(())) {
        Err(RunError::Placement(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(Runtime::new().shards(2)), "an embedded runtime has one shard, not 2");
    assert_eq!(refused(Runtime::new().shards(0)), "an embedded runtime has one shard, not 0");
    let no_cpu = "an embedded shard runs where its caller does: it takes no CPU";
    assert_eq!(refused(Runtime::new().cpus([0])), no_cpu);
    assert_eq!(refused(Runtime::new().pin(true)), no_cpu);
    drop(Runtime::new().shards(1).pin(false).embed(async |_shard: Shard| Ok(())).unwrap());
}

#[test]
fn a_shards_own_thread_cannot_embed_another() {
    let mut embedded = idle();
    let inner = embedded.with_shard(|_| Runtime::new().embed(async |_shard: Shard| Ok(())));
    assert!(matches!(inner, Some(Err(RunError::OnShardThread))));
}

/// What stops on the budget of a turn is no news to the kernel any more: a loop that waited for the descriptor would wait
/// for ever.
#[test]
fn what_a_turn_has_left_over_is_not_waited_for() {
    let mut config = Config::default();
    config.accepts_per_turn = 4;
    let mut embedded = Runtime::new().config(config).embed(async |_shard: Shard| Ok(())).unwrap();
    turn_until(&mut embedded, RuntimeState::Running);
    let served = Rc::new(Cell::new((0, 0)));
    let counts = Rc::clone(&served);
    let addr = embedded.with_shard(|shard| {
        let listener = shard.serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            counts.set((counts.get().0 + 1, counts.get().1));
            while let Some(chunk) = stream.read_chunk().await? {
                counts.set((counts.get().0, counts.get().1 + chunk.len()));
            }
            Ok(())
        });
        listener.unwrap().local_addr()
    });
    const CLIENTS: usize = 30;
    const BYTES: usize = 1_000_000;
    let addr = addr.unwrap();
    let clients: Vec<_> = (0..CLIENTS).map(|_| StdStream::connect(addr).unwrap()).collect();
    let writer = thread::spawn(move || {
        (&clients[0]).write_all(&vec![7; BYTES]).unwrap();
        clients
    });
    let begun = Instant::now();
    while served.get() != (CLIENTS, BYTES) {
        assert!(begun.elapsed() < Duration::from_secs(30), "it stands still at {:?}", served.get());
        if embedded.rest() != Some(Duration::ZERO) {
            wait_for_news(&embedded);
        }
        embedded.turn(Some(Duration::ZERO)).unwrap();
    }
    drop(writer.join().unwrap());
}

#[test]
fn a_turn_after_a_long_absence_sleeps_no_longer_than_until_the_next_timer() {
    let mut embedded = idle();
    turn_until(&mut embedded, RuntimeState::Running);
    let delay = Duration::from_millis(400);
    let made = Rc::new(Cell::new(None));
    let makes = Rc::clone(&made);
    let set = Instant::now();
    drop(embedded.with_shard(|shard| shard.call_later(delay, move |_| makes.set(Some(Instant::now())))));
    while embedded.rest() == Some(Duration::ZERO) {
        embedded.turn(Some(Duration::ZERO)).unwrap();
    }
    // The caller's own work.
    while set.elapsed() < delay * 3 / 4 {
        std::hint::spin_loop();
    }
    let begun = Instant::now();
    embedded.turn(None).unwrap();
    let slept = begun.elapsed();
    while made.get().is_none() {
        embedded.turn(None).unwrap();
    }
    assert!(slept < delay * 3 / 4 || begun - set > delay, "{slept:?} of the {delay:?} were slept once more");
}
