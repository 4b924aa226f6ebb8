//! Bytes on loan: what a driver received, owned by the event until it is dropped.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// Received bytes, lying in a buffer of the driver's pool. Dropping the lease gives the buffer back.
///
/// A lease keeps a whole read buffer busy (64 KiB by default), so whoever keeps bytes for long copies them.
pub(crate) struct Lease {
    buffer: Box<[u8]>,
    start: u32,
    end: u32,
    pool: Rc<LeasePool>,
}

impl Lease {
    /// Forgets the first `count` bytes.
    ///
    /// # Panics
    /// Panics when there are fewer: the caller's arithmetic is wrong.
    pub(crate) fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "advanced past the end of a lease");
        self.start += count as u32;
    }

    /// Buffers of this lease's pool that are out now, this one included.
    #[inline]
    pub(crate) fn pool_on_loan(&self) -> usize {
        self.pool.on_loan()
    }
}

impl Deref for Lease {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.buffer[self.start as usize..self.end as usize]
    }
}

impl DerefMut for Lease {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start as usize..self.end as usize]
    }
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

/// The read buffers of one driver: one, and more only while somebody holds one.
pub(crate) struct LeasePool {
    /// The spare buffer that is taken first. Empty while it is out.
    first: Cell<Box<[u8]>>,
    /// Spare buffers beyond the first: only there once several were out at the same time.
    others: RefCell<Vec<Box<[u8]>>>,
    on_loan: Cell<usize>,
    buffer_bytes: usize,
}

/// Spare buffers kept; more are given back to the allocator.
const SPARE_BUFFERS_MAX: usize = 4;

impl LeasePool {
    pub(crate) fn new(buffer_bytes: usize) -> Rc<Self> {
        assert!(buffer_bytes > 0 && u32::try_from(buffer_bytes).is_ok());
        let first = Cell::new(Box::default());
        Rc::new(LeasePool { first, others: RefCell::new(Vec::new()), on_loan: Cell::new(0), buffer_bytes })
    }

    /// The size of each buffer.
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Buffers that are out now.
    pub(crate) fn on_loan(&self) -> usize {
        self.on_loan.get()
    }

    /// Takes a whole buffer to read into. Turn it into a lease with [`LeasePool::lend`], or give it back.
    #[inline]
    pub(crate) fn take(&self) -> Box<[u8]> {
        self.on_loan.set(self.on_loan.get() + 1);
        let first = self.first.take();
        if first.is_empty() { self.take_other() } else { first }
    }

    #[cold]
    fn take_other(&self) -> Box<[u8]> {
        let spare = self.others.borrow_mut().pop();
        spare.unwrap_or_else(|| vec![0; self.buffer_bytes].into_boxed_slice())
    }

    /// Lends the first `filled` bytes of a buffer that came from [`LeasePool::take`].
    #[inline]
    pub(crate) fn lend(self: &Rc<Self>, buffer: Box<[u8]>, filled: usize) -> Lease {
        assert!(filled <= buffer.len(), "more bytes than the buffer holds");
        Lease { buffer, start: 0, end: filled as u32, pool: Rc::clone(self) }
    }

    /// Takes back a buffer that came from [`LeasePool::take`].
    #[inline]
    pub(crate) fn give_back(&self, buffer: Box<[u8]>) {
        self.on_loan.set(self.on_loan.get() - 1);
        let before = self.first.replace(buffer);
        if !before.is_empty() {
            self.keep_other(before);
        }
    }

    #[cold]
    fn keep_other(&self, buffer: Box<[u8]>) {
        let mut others = self.others.borrow_mut();
        if others.len() + 1 < SPARE_BUFFERS_MAX {
            others.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_buffer_serves_all_reads_while_nobody_holds_one() {
        let pool = LeasePool::new(16);
        let mut buffer = pool.take();
        buffer[..3].copy_from_slice(b"abc");
        let address = buffer.as_ptr();
        let lease = pool.lend(buffer, 3);
        assert_eq!(&*lease, b"abc");
        assert_eq!(pool.on_loan(), 1);
        drop(lease);
        assert_eq!(pool.on_loan(), 0);
        let again = pool.take();
        assert_eq!(again.as_ptr(), address);
        pool.give_back(again);
    }

    #[test]
    fn a_held_lease_makes_the_pool_grow_and_keeps_its_bytes() {
        let pool = LeasePool::new(4);
        let mut first = pool.take();
        first.copy_from_slice(b"1111");
        let mut held = pool.lend(first, 4);
        let mut second = pool.take();
        second.copy_from_slice(b"2222");
        drop(pool.lend(second, 4));
        held.advance(1);
        assert_eq!(&*held, b"111");
    }

    #[test]
    fn a_crowd_of_leases_leaves_only_a_few_buffers_behind() {
        let pool = LeasePool::new(4);
        let crowd: Vec<_> = (0..10).map(|_| pool.lend(pool.take(), 4)).collect();
        assert_eq!(pool.on_loan(), 10);
        drop(crowd);
        assert_eq!(pool.on_loan(), 0);
        assert_eq!(1 + pool.others.borrow().len(), SPARE_BUFFERS_MAX);
        let again: Vec<_> = (0..SPARE_BUFFERS_MAX).map(|_| pool.take()).collect();
        assert!(again.iter().all(|buffer| buffer.len() == 4));
        assert!(pool.others.borrow().is_empty(), "they were used again");
        again.into_iter().for_each(|buffer| pool.give_back(buffer));
    }
}
