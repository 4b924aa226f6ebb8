//! The floor: what two threads cost that know nothing but each other.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst, fence};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};

use super::{Burst, Counter, Load, Sample};
use crate::{Result, machine};

/// One side's inbox. On a cache line of its own: the other side writes it.
#[repr(align(128))]
struct Inbox {
    words: ArrayQueue<u64>,
    state: AtomicU8,
    bell: OwnedFd,
}

impl Inbox {
    fn new(capacity_words: usize) -> io::Result<Self> {
        let words = ArrayQueue::new(capacity_words);
        Ok(Inbox { words, state: AtomicU8::new(AWAKE), bell: eventfd(0, EventfdFlags::CLOEXEC)? })
    }

    fn push(&self, word: u64) {
        self.words.push(word).expect("there is room for all that is in flight");
    }

    /// Wakes the owner if it sleeps: once per turn, after the pushes.
    fn wake(&self) {
        // SeqCst pairs with the fence in `wait`: either the sleeper sees the words or we see SLEEPING.
        fence(SeqCst);
        if self.state.load(SeqCst) == SLEEPING && self.state.swap(AWAKE, SeqCst) == SLEEPING {
            ring(&self.bell);
        }
    }

    /// Returns when there is something to pop: polls first, then sleeps.
    fn wait(&self, poll: Duration) {
        if !poll.is_zero() && self.poll(poll) {
            return;
        }
        self.state.store(SLEEPING, SeqCst);
        // SeqCst pairs with the fence in `wake`.
        fence(SeqCst);
        if self.words.is_empty() {
            hear(&self.bell);
        } else if self.state.swap(AWAKE, SeqCst) == AWAKE {
            hear(&self.bell); // rung between the store and the swap: take it, or the next sleep ends at once
        }
    }

    fn poll(&self, limit: Duration) -> bool {
        let started = Instant::now();
        loop {
            for _ in 0..SPINS_PER_CLOCK_READ {
                if !self.words.is_empty() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if started.elapsed() >= limit {
                return false;
            }
        }
    }
}

fn ring(bell: &OwnedFd) {
    write(bell, &1_u64.to_ne_bytes()).expect("an eventfd takes a one");
}

fn hear(bell: &OwnedFd) {
    let mut count = [0; 8];
    while read(bell, &mut count) == Err(Errno::INTR) {}
}

/// Takes up to `words_per_turn` words before it wakes the other side: all that are in flight, or just one.
pub(super) fn queues(load: Load, words_per_turn: usize) -> Result<Sample> {
    let capacity = load.in_flight + 1; // and the word that stops
    let origin = Arc::new(Inbox::new(capacity)?);
    let target = Arc::new(Inbox::new(capacity)?);
    let answering = thread::spawn({
        let (origin, target) = (Arc::clone(&origin), Arc::clone(&target));
        move || answer_words(load, words_per_turn, &origin, &target)
    });
    let asking = thread::spawn(move || {
        machine::pin(&[load.origin_cpu])?;
        let sample = load.measure(|slice| Ok(ask_words(load, words_per_turn, slice, &origin, &target)));
        target.push(STOP);
        target.wake();
        sample
    });
    let sample = asking.join().expect("the asking side does not panic");
    answering.join().expect("the answering side does not panic")?;
    sample
}

fn ask_words(load: Load, words_per_turn: usize, slice: Duration, origin: &Inbox, target: &Inbox) -> Burst {
    let mut counter = Counter::start(load.in_flight, slice);
    for word in 0..load.in_flight as u64 {
        target.push(word);
    }
    target.wake();
    let mut in_flight = load.in_flight;
    while in_flight > 0 {
        let mut asked = false;
        // Bounded: with both sides busy the queue may never run dry, and a turn must end to wake the other.
        for _ in 0..words_per_turn {
            let Some(word) = origin.words.pop() else { break };
            if counter.trip() {
                target.push(word);
                asked = true;
            } else {
                in_flight -= 1;
            }
        }
        if asked {
            target.wake();
        }
        if in_flight > 0 && origin.words.is_empty() {
            origin.wait(load.poll);
        }
    }
    counter.finish()
}

fn answer_words(load: Load, words_per_turn: usize, origin: &Inbox, target: &Inbox) -> io::Result<()> {
    machine::pin(&[load.target_cpu])?;
    loop {
        let mut answered = false;
        for _ in 0..words_per_turn {
            match target.words.pop() {
                Some(STOP) => return Ok(()),
                Some(word) => origin.push(word ^ 1),
                None => break,
            }
            answered = true;
        }
        if answered {
            origin.wake();
        }
        if target.words.is_empty() {
            target.wait(load.poll);
        }
    }
}

/// How a side waits for its eventfd.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hearing {
    /// A read that blocks.
    Read,
    /// `epoll_wait` for an edge, and no read: as a reactor does, which has more to wait for.
    Epoll,
}

/// An eventfd and how its owner waits for it.
struct Bell {
    descriptor: OwnedFd,
    epoll: Option<OwnedFd>,
}

impl Bell {
    fn new(hearing: Hearing) -> io::Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC)?;
        let epoll = match hearing {
            Hearing::Read => None,
            Hearing::Epoll => {
                let epoll = epoll::create(CreateFlags::CLOEXEC)?;
                epoll::add(&epoll, &descriptor, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?;
                Some(epoll)
            }
        };
        Ok(Bell { descriptor, epoll })
    }

    fn ring(&self) {
        ring(&self.descriptor);
    }

    fn hear(&self) {
        let Some(epoll) = &self.epoll else { return hear(&self.descriptor) };
        let mut events = [MaybeUninit::uninit(); EVENTS_PER_WAIT];
        while matches!(epoll::wait(epoll, &mut events, None), Err(Errno::INTR)) {}
    }
}

/// One in flight, both asleep: nothing but the price of waking.
pub(super) fn eventfds(load: Load, hearing: Hearing) -> Result<Sample> {
    let ask = Arc::new(Bell::new(hearing)?);
    let answer = Arc::new(Bell::new(hearing)?);
    let answering = thread::spawn({
        let (ask, answer) = (Arc::clone(&ask), Arc::clone(&answer));
        move || -> io::Result<()> {
            machine::pin(&[load.target_cpu])?;
            // The asking side lets go of its end when it is done, after a last ring.
            loop {
                ask.hear();
                if Arc::strong_count(&answer) == 1 {
                    return Ok(());
                }
                answer.ring();
            }
        }
    });
    let asking = thread::spawn(move || {
        machine::pin(&[load.origin_cpu])?;
        let sample = load.measure(|slice| {
            let mut counter = Counter::start(1, slice);
            loop {
                ask.ring();
                answer.hear();
                if !counter.trip() {
                    return Ok(counter.finish());
                }
            }
        });
        drop(answer);
        ask.ring();
        sample
    });
    let sample = asking.join().expect("the asking side does not panic");
    answering.join().expect("the answering side does not panic")?;
    sample
}

/// As many as a reactor takes at a time.
const EVENTS_PER_WAIT: usize = 64;
const AWAKE: u8 = 0;
const SLEEPING: u8 = 1;
const STOP: u64 = u64::MAX;
const SPINS_PER_CLOCK_READ: usize = 32;
