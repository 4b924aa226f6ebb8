//! Shards on threads of their own that sleep in earnest: what models cannot show, because they are small.
//! Bounded in messages, not in time; a wake that got lost ends a test after `LOST`.

use super::test_kit::{AtHome, at, id};
use super::{Call, CallError, Endpoint, Mesh};
use crate::reactor::waker::{DriverWaker, Wake};
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

const LOST: Duration = Duration::from_secs(60);
const MESSAGES: usize = if cfg!(miri) { 40 } else { 2_000 };
/// Each of them costs two sleeps.
const PINGS: usize = MESSAGES / 4;
const SHARDS: usize = 3;
const FOREIGN: usize = 2;

/// A driver that sleeps on a condition variable.
#[derive(Default)]
struct Driver {
    written: Mutex<bool>,
    condition: Condvar,
}

impl Wake for Driver {
    fn wake(&self) {
        *self.written.lock().unwrap() = true;
        self.condition.notify_one();
    }
}

impl Driver {
    fn sleep(&self) {
        let written = self.written.lock().unwrap();
        let (mut written, timeout) =
            self.condition.wait_timeout_while(written, LOST, |written| !*written).unwrap();
        assert!(!timeout.timed_out(), "a wake was lost");
        *written = false;
    }
}

struct Shard {
    endpoint: Endpoint<Shard>,
    driver: Arc<Driver>,
    /// The next number expected of each sender, foreign threads after the shards.
    expected: RefCell<Vec<usize>>,
    ran: Cell<usize>,
}

impl Shard {
    fn new(mesh: &Arc<Mesh<Shard>>, drivers: &[Arc<Driver>], number: usize) -> Self {
        Shard {
            endpoint: mesh.endpoint(id(number as u16)),
            driver: Arc::clone(&drivers[number]),
            expected: RefCell::new(vec![0; SHARDS + FOREIGN]),
            ran: Cell::new(0),
        }
    }

    fn receive(&self, sender: usize, number: usize) {
        let mut expected = self.expected.borrow_mut();
        assert_eq!(expected[sender], number, "a message of sender {sender} overtook another");
        expected[sender] += 1;
        self.ran.set(self.ran.get() + 1);
    }

    fn turn(&self) {
        let delivered = self.endpoint.deliver(self, 64);
        self.endpoint.publish();
        if delivered.count == 0 && self.endpoint.prepare_sleep() {
            self.driver.sleep();
            self.endpoint.finish_sleep();
        }
    }
}

fn mesh(shards: usize) -> (Arc<Mesh<Shard>>, Vec<Arc<Driver>>) {
    let drivers: Vec<Arc<Driver>> = (0..shards).map(|_| Arc::default()).collect();
    (Mesh::new(drivers.iter().map(|driver| Arc::clone(driver) as DriverWaker).collect()), drivers)
}

/// Marsaglia's xorshift: enough to vary what a test does.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[test]
fn everything_arrives_once_in_order_and_is_dropped_at_home() {
    let (mesh, drivers) = mesh(SHARDS);
    let foreign = (SHARDS..SHARDS + FOREIGN).map(|sender| {
        let mesh = Arc::clone(&mesh);
        thread::spawn(move || {
            for number in 0..MESSAGES {
                for target in 0..SHARDS {
                    let receive = move |shard: &Shard| shard.receive(sender, number);
                    if number % 64 == 0 {
                        mesh.call_from_thread(id(target as u16), receive).wait_blocking().unwrap();
                    } else {
                        assert!(mesh.post(id(target as u16), receive).is_ok());
                    }
                }
            }
        })
    });
    let foreign: Vec<_> = foreign.collect();
    let shards = (0..SHARDS).map(|number| {
        let (mesh, drivers) = (Arc::clone(&mesh), drivers.clone());
        thread::spawn(move || at(number, || send_and_receive(&Shard::new(&mesh, &drivers, number), number)))
    });
    let shards: Vec<_> = shards.collect();
    for thread in foreign.into_iter().chain(shards) {
        thread.join().unwrap();
    }
    for number in 0..SHARDS {
        let counters = mesh.counters(id(number as u16));
        assert_eq!(counters.panics, 0);
        assert_eq!(counters.messages as usize, (SHARDS + FOREIGN) * MESSAGES);
        assert!(counters.wakes_written <= counters.sleeps + counters.wakes_spurious, "{counters:?}");
    }
}

/// Sends numbered messages of every kind to all shards, and receives what the others send.
fn send_and_receive(shard: &Shard, number: usize) {
    let mut dice = Dice(0x9e37_79b9 + number as u64);
    let drops = Arc::new(AtomicUsize::new(0));
    let mut made = 0;
    let mut calls: Vec<Call<(usize, AtHome<8>)>> = Vec::new();
    let mut large: Vec<Call<AtHome<99>>> = Vec::new();
    for sequence in 0..MESSAGES {
        for target in 0..SHARDS {
            let to = id(target as u16);
            let receive = move |shard: &Shard| shard.receive(number, sequence);
            match dice.roll(4) {
                0 => assert!(shard.endpoint.post(to, receive).is_ok()),
                1 => {
                    made += 1;
                    let kept = AtHome::new(number, &drops);
                    large.push(shard.endpoint.call(to, move |shard| {
                        receive(shard);
                        kept
                    }));
                }
                _ => {
                    made += 1;
                    let kept = AtHome::new(number, &drops);
                    calls.push(shard.endpoint.call(to, move |shard| {
                        receive(shard);
                        (sequence, kept)
                    }));
                }
            }
        }
        if dice.roll(8) == 0 {
            shard.endpoint.publish();
            shard.endpoint.deliver(shard, 50);
        }
    }
    let mut context = Context::from_waker(Waker::noop());
    let mut open = |shard: &Shard| {
        calls.retain_mut(|call| Pin::new(call).poll(&mut context).is_pending());
        large.retain_mut(|call| Pin::new(call).poll(&mut context).is_pending());
        !calls.is_empty() || !large.is_empty() || shard.ran.get() < (SHARDS + FOREIGN) * MESSAGES
    };
    while open(shard) {
        shard.turn();
    }
    assert_eq!(drops.load(Ordering::Relaxed), made);
}

#[test]
fn withdrawn_calls_run_or_not_but_are_always_dropped_at_home() {
    let (mesh, drivers) = mesh(2);
    let other = {
        let (mesh, drivers) = (Arc::clone(&mesh), drivers.clone());
        thread::spawn(move || {
            at(1, || {
                let shard = Shard::new(&mesh, &drivers, 1);
                while mesh.is_open(id(0)) {
                    shard.turn();
                }
                shard.ran.get()
            })
        })
    };
    at(0, || {
        let shard = Shard::new(&mesh, &drivers, 0);
        let drops = Arc::new(AtomicUsize::new(0));
        let mut dice = Dice(7);
        for made in 0..MESSAGES {
            let kept = AtHome::<8>::new(0, &drops);
            let call = shard.endpoint.call(id(1), move |shard| {
                shard.ran.set(shard.ran.get() + 1);
                kept
            });
            if dice.roll(4) == 0 {
                shard.endpoint.publish();
                shard.endpoint.deliver(&shard, 64);
            }
            drop(call);
            assert!(drops.load(Ordering::Relaxed) <= made + 1);
        }
        shard.endpoint.publish();
        while drops.load(Ordering::Relaxed) < MESSAGES {
            shard.turn();
        }
        shard.endpoint.close(&shard);
    });
    // The other may be asleep, and is to see that this one has closed.
    mesh.wake(id(1));
    assert!(other.join().unwrap() <= MESSAGES);
}

#[test]
fn of_posts_that_race_with_the_close_each_is_run_or_returned() {
    for round in 0..(if cfg!(miri) { 5 } else { 100 }) {
        let (mesh, drivers) = mesh(1);
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let mesh = Arc::clone(&mesh);
                thread::spawn(move || {
                    let mut taken = 0;
                    while mesh.post(id(0), |shard: &Shard| shard.ran.set(shard.ran.get() + 1)).is_ok() {
                        taken += 1;
                    }
                    taken
                })
            })
            .collect();
        let caller = {
            let mesh = Arc::clone(&mesh);
            thread::spawn(move || {
                let mut answered = 0;
                while mesh.call_from_thread(id(0), |_: &Shard| ()).wait_blocking().is_ok() {
                    answered += 1;
                }
                answered
            })
        };
        let shard = Shard::new(&mesh, &drivers, 0);
        while shard.ran.get() <= round % 7 {
            shard.turn();
        }
        shard.endpoint.close(&shard);
        let taken: usize = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
        let answered: usize = caller.join().unwrap();
        assert_eq!(shard.ran.get(), taken);
        assert_eq!(shard.endpoint.counters().messages as usize, taken + answered);
    }
}

#[test]
fn a_ping_pong_between_sleepers_loses_no_wake_and_writes_one_per_sleep_at_most() {
    let (mesh, drivers) = mesh(2);
    let other = {
        let (mesh, drivers) = (Arc::clone(&mesh), drivers.clone());
        thread::spawn(move || {
            let shard = Shard::new(&mesh, &drivers, 1);
            while shard.ran.get() < PINGS {
                shard.turn();
            }
        })
    };
    let shard = Shard::new(&mesh, &drivers, 0);
    for number in 0..PINGS {
        let mut call = shard.endpoint.call(id(1), move |shard| {
            shard.ran.set(shard.ran.get() + 1);
            number
        });
        shard.endpoint.publish();
        let result = loop {
            match Pin::new(&mut call).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => break result,
                Poll::Pending => shard.turn(),
            }
        };
        assert_eq!(result.unwrap(), number);
    }
    other.join().unwrap();
    for number in 0..2 {
        let counters = mesh.counters(id(number));
        assert!(counters.wakes_written <= counters.sleeps + counters.wakes_spurious, "{counters:?}");
        assert!(counters.wakes_written <= counters.envelopes, "{counters:?}");
    }
}

#[test]
fn calls_between_shards_that_stop_one_by_one_all_end() {
    for _ in 0..(if cfg!(miri) { 3 } else { 40 }) {
        let (mesh, drivers) = mesh(SHARDS);
        let shards = (0..SHARDS).map(|number| {
            let (mesh, drivers) = (Arc::clone(&mesh), drivers.clone());
            thread::spawn(move || {
                let shard = Shard::new(&mesh, &drivers, number);
                let mut calls: Vec<Call<usize>> = Vec::new();
                for sequence in 0..50 {
                    for target in 0..SHARDS {
                        let call = shard.endpoint.call(id(target as u16), move |_| sequence);
                        calls.push(call);
                    }
                    shard.endpoint.publish();
                    shard.endpoint.deliver(&shard, 20);
                }
                if number == 0 {
                    shard.endpoint.close(&shard);
                } else {
                    // Lost, as by a panic of its thread.
                    let endpoint = shard.endpoint;
                    drop(endpoint);
                }
                let mut context = Context::from_waker(Waker::noop());
                for mut call in calls {
                    let polled = Pin::new(&mut call).poll(&mut context);
                    assert!(matches!(polled, Poll::Ready(Ok(_) | Err(CallError::Stopped))));
                }
            })
        });
        for shard in shards.collect::<Vec<_>>() {
            shard.join().unwrap();
        }
    }
}
