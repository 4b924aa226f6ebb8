//! Bytes on loan: what a driver received, owned by the event until it is dropped.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// Received bytes, lying in a buffer of the driver's pool. Dropping the lease gives the buffer back.
///
/// A lease keeps a whole read buffer busy (64 KiB by default), so whoever keeps bytes for long copies them.
pub(crate) struct Lease {
    /// `Some` until dropped.
    buffer: Option<Box<[u8]>>,
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
        let buffer = self.buffer.as_deref().expect("a lease owns its buffer until it is dropped");
        &buffer[self.start as usize..self.end as usize]
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        let buffer = self.buffer.as_deref_mut().expect("a lease owns its buffer until it is dropped");
        &mut buffer[self.start as usize..self.end as usize]
    }
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.give_back(buffer);
        }
    }
}

/// The read buffers of one driver: one, and more only while somebody holds one.
pub(crate) struct LeasePool {
    state: RefCell<PoolState>,
    buffer_bytes: usize,
}

struct PoolState {
    spare: Vec<Box<[u8]>>,
    on_loan: usize,
}

/// Spare buffers kept beyond the one in use; more are given back to the allocator.
const SPARE_BUFFERS_MAX: usize = 4;

impl LeasePool {
    pub(crate) fn new(buffer_bytes: usize) -> Rc<Self> {
        assert!(buffer_bytes > 0 && u32::try_from(buffer_bytes).is_ok());
        let state = RefCell::new(PoolState { spare: Vec::with_capacity(SPARE_BUFFERS_MAX), on_loan: 0 });
        Rc::new(LeasePool { state, buffer_bytes })
    }

    /// Buffers that are out now.
    pub(crate) fn on_loan(&self) -> usize {
        self.state.borrow().on_loan
    }

    /// Takes a whole buffer to read into. Turn it into a lease with [`LeasePool::lend`], or give it back.
    #[inline]
    pub(crate) fn take(&self) -> Box<[u8]> {
        let mut state = self.state.borrow_mut();
        state.on_loan += 1;
        let spare = state.spare.pop();
        drop(state);
        spare.unwrap_or_else(|| vec![0; self.buffer_bytes].into_boxed_slice())
    }

    /// Lends the first `filled` bytes of a buffer that came from [`LeasePool::take`].
    #[inline]
    pub(crate) fn lend(self: &Rc<Self>, buffer: Box<[u8]>, filled: usize) -> Lease {
        assert!(filled <= buffer.len(), "more bytes than the buffer holds");
        Lease { buffer: Some(buffer), start: 0, end: filled as u32, pool: Rc::clone(self) }
    }

    /// Takes back a buffer that came from [`LeasePool::take`].
    #[inline]
    pub(crate) fn give_back(&self, buffer: Box<[u8]>) {
        let mut state = self.state.borrow_mut();
        state.on_loan -= 1;
        if state.spare.len() < SPARE_BUFFERS_MAX {
            state.spare.push(buffer);
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
}
