//! For this folder's tests: shards that are nothing but an endpoint and a log, stepped by hand.

use super::endpoint::Delivered;
use super::{Endpoint, Mesh};
use crate::ShardId;
use crate::reactor::waker::{DriverWaker, Wake};
use std::cell::{Cell, RefCell};
use std::ops::Index;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

/// What messages run on in tests.
pub(super) struct Shard {
    pub(super) endpoint: Endpoint<Shard>,
    pub(super) log: RefCell<Vec<u32>>,
    pub(super) wakes: Arc<CountedWakes>,
}

impl Shard {
    pub(super) fn log(&self, entry: u32) {
        self.log.borrow_mut().push(entry);
    }
}

#[derive(Default)]
pub(super) struct CountedWakes(AtomicUsize);

impl CountedWakes {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for CountedWakes {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Shards on one thread.
pub(super) struct Bed {
    pub(super) mesh: Arc<Mesh<Shard>>,
    shards: Vec<Shard>,
}

impl Bed {
    pub(super) fn new(shards: u16) -> Self {
        let wakes: Vec<Arc<CountedWakes>> = (0..shards).map(|_| Arc::default()).collect();
        let mesh = Mesh::new(wakes.iter().map(|wakes| Arc::clone(wakes) as DriverWaker).collect());
        let shard = |(number, wakes)| Shard {
            endpoint: mesh.endpoint(ShardId::new(number)),
            log: RefCell::default(),
            wakes,
        };
        let shards = (0..).zip(wakes).map(shard).collect();
        Bed { mesh, shards }
    }

    pub(super) fn deliver(&self, shard: usize) -> Delivered {
        self.deliver_some(shard, usize::MAX)
    }

    pub(super) fn deliver_some(&self, shard: usize, budget: usize) -> Delivered {
        at(shard, || self.shards[shard].endpoint.deliver(&self.shards[shard], budget))
    }

    pub(super) fn publish(&self, shard: usize) {
        at(shard, || self.shards[shard].endpoint.publish());
    }

    pub(super) fn close(&self, shard: usize) {
        at(shard, || self.shards[shard].endpoint.close(&self.shards[shard]));
    }

    /// Turns of all shards until none has anything to do.
    pub(super) fn settle(&self) {
        for _ in 0..1_000 {
            if !self.shards.iter().any(|shard| shard.endpoint.has_mail()) {
                return;
            }
            for shard in 0..self.shards.len() {
                self.deliver(shard);
                self.publish(shard);
            }
        }
        panic!("the shards do not come to rest");
    }

    pub(super) fn shard(&self, shard: usize) -> &Shard {
        &self.shards[shard]
    }

    pub(super) fn log(&self, shard: usize) -> Vec<u32> {
        self.shards[shard].log.borrow().clone()
    }

    /// Drops a shard without closing it first.
    pub(super) fn lose_last(&mut self) {
        let last = self.shards.len() - 1;
        at(last, || drop(self.shards.pop()));
    }
}

impl Index<usize> for Bed {
    type Output = Endpoint<Shard>;
    fn index(&self, shard: usize) -> &Endpoint<Shard> {
        &self.shards[shard].endpoint
    }
}

pub(super) const fn id(shard: u16) -> ShardId {
    ShardId::new(shard)
}

/// What a future has come to, polled once.
pub(super) fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// The value of a future that is ready.
pub(super) fn ready<F: Future>(future: F) -> F::Output {
    let Poll::Ready(output) = poll(future) else { panic!("not ready") };
    output
}

thread_local! {
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Runs `f` as the shard of this number.
pub(super) fn at<R>(shard: usize, f: impl FnOnce() -> R) -> R {
    let before = CURRENT.replace(Some(shard));
    let result = f();
    CURRENT.set(before);
    result
}

/// A value that notes where it is dropped: counts the drops at home, panics in others.
pub(super) struct AtHome<const BYTES: usize = 0> {
    home: usize,
    drops: Arc<AtomicUsize>,
    #[expect(dead_code, reason = "it is there to take room")]
    ballast: [u8; BYTES],
}

impl<const BYTES: usize> AtHome<BYTES> {
    pub(super) fn new(home: usize, drops: &Arc<AtomicUsize>) -> Self {
        AtHome { home, drops: Arc::clone(drops), ballast: [0; BYTES] }
    }
}

impl<const BYTES: usize> Drop for AtHome<BYTES> {
    fn drop(&mut self) {
        assert_eq!(CURRENT.get(), Some(self.home), "dropped away from home");
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}
