//! Bytes on loan: what a driver received, owned by the event until it is dropped.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

/// Received bytes, lying in a buffer of the driver's pool. Dropping the lease gives the buffer back.
///
/// A lease keeps a whole read buffer busy (64 KiB by default), so whoever keeps bytes for long copies them. It is
/// one word, since a task that waits with one in its hands, or only might, has room for it in its future.
pub(crate) struct Lease {
    /// There until the lease is dropped.
    buffer: Option<ReadBuffer>,
}

/// A buffer to read into.
pub(crate) struct ReadBuffer {
    loan: Box<Loan>,
}

struct Loan {
    bytes: Vec<u8>,
    /// What of the bytes is lent.
    lent: Range<usize>,
    /// Whose the buffer is, while it is lent.
    pool: Option<Rc<LeasePool>>,
}

impl Lease {
    /// Bytes of nobody's pool.
    pub(crate) fn owned(bytes: Vec<u8>) -> Self {
        let lent = 0..bytes.len();
        Lease { buffer: Some(ReadBuffer { loan: Box::new(Loan { bytes, lent, pool: None }) }) }
    }

    /// Forgets the first `count` bytes.
    ///
    /// # Panics
    /// Panics when there are fewer: the caller's arithmetic is wrong.
    pub(crate) fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "advanced past the end of a lease");
        self.loan_mut().lent.start += count;
    }

    /// Buffers of this lease's pool that are out now, this one included.
    #[inline]
    pub(crate) fn pool_on_loan(&self) -> usize {
        self.loan().pool.as_ref().map_or(0, |pool| pool.on_loan())
    }

    #[inline]
    fn loan(&self) -> &Loan {
        &self.buffer.as_ref().expect("a lease has its buffer until it is dropped").loan
    }

    #[inline]
    fn loan_mut(&mut self) -> &mut Loan {
        &mut self.buffer.as_mut().expect("a lease has its buffer until it is dropped").loan
    }
}

impl Deref for Lease {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        let loan = self.loan();
        &loan.bytes[loan.lent.clone()]
    }
}

impl DerefMut for Lease {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let loan = self.loan_mut();
        &mut loan.bytes[loan.lent.clone()]
    }
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        if let Some(mut buffer) = self.buffer.take()
            && let Some(pool) = buffer.loan.pool.take()
        {
            pool.give_back(buffer);
        }
    }
}

impl ReadBuffer {
    fn new(bytes: usize) -> Self {
        ReadBuffer { loan: Box::new(Loan { bytes: vec![0; bytes], lent: 0..0, pool: None }) }
    }
}

impl Deref for ReadBuffer {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.loan.bytes
    }
}

impl DerefMut for ReadBuffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.loan.bytes
    }
}

/// The read buffers of one driver: one, and more only while somebody holds one.
pub(crate) struct LeasePool {
    /// The spare buffer that is taken first. `None` before its first use, and while it is out.
    first: Cell<Option<ReadBuffer>>,
    /// Spare buffers beyond the first: only there once several were out at the same time.
    others: RefCell<Vec<ReadBuffer>>,
    on_loan: Cell<usize>,
    buffer_bytes: usize,
}

/// Spare buffers kept; more are given back to the allocator.
const SPARE_BUFFERS_MAX: usize = 4;

impl LeasePool {
    pub(crate) fn new(buffer_bytes: usize) -> Rc<Self> {
        assert!(buffer_bytes > 0);
        let others = RefCell::new(Vec::new());
        Rc::new(LeasePool { first: Cell::new(None), others, on_loan: Cell::new(0), buffer_bytes })
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
    pub(crate) fn take(&self) -> ReadBuffer {
        self.on_loan.set(self.on_loan.get() + 1);
        self.first.take().unwrap_or_else(|| self.take_other())
    }

    #[cold]
    fn take_other(&self) -> ReadBuffer {
        let spare = self.others.borrow_mut().pop();
        spare.unwrap_or_else(|| ReadBuffer::new(self.buffer_bytes))
    }

    /// Lends the first `filled` bytes of a buffer that came from [`LeasePool::take`].
    #[inline]
    pub(crate) fn lend(self: &Rc<Self>, mut buffer: ReadBuffer, filled: usize) -> Lease {
        assert!(filled <= buffer.len(), "more bytes than the buffer holds");
        buffer.loan.lent = 0..filled;
        buffer.loan.pool = Some(Rc::clone(self));
        Lease { buffer: Some(buffer) }
    }

    /// Takes back a buffer that came from [`LeasePool::take`].
    #[inline]
    pub(crate) fn give_back(&self, buffer: ReadBuffer) {
        self.on_loan.set(self.on_loan.get() - 1);
        if let Some(before) = self.first.replace(Some(buffer)) {
            self.keep_other(before);
        }
    }

    #[cold]
    fn keep_other(&self, buffer: ReadBuffer) {
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
    fn owned_bytes_are_lent_by_no_pool() {
        let mut lease = Lease::owned(b"abc".to_vec());
        lease.advance(1);
        assert_eq!((&*lease, lease.pool_on_loan()), (&b"bc"[..], 0));
    }

    #[test]
    fn a_lease_is_one_word() {
        assert_eq!(size_of::<Lease>(), size_of::<usize>());
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
