//! Datagrams on loan: what one receive brought, owned by the event until it is dropped. Allocates nothing per datagram.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::addr::UnixAddr;
use crate::sys::datagram::{Arrived, DATAGRAM_BYTES_MAX, MESSAGES_MAX, Slots};

/// Datagrams that came together, in order, lying in a buffer of the driver's pool.
pub(crate) struct Batch {
    /// `Some` until it is dropped.
    store: Option<Box<BatchStore>>,
    pool: Rc<BatchPool>,
}

/// What a batch is made of, used again and again.
pub(crate) struct BatchStore {
    pub(crate) buffer: Box<[u8]>,
    pub(crate) arrived: Vec<Arrived>,
    /// The first that has not been taken.
    head: usize,
    /// Who sent each, of a UNIX socket; of others there are none.
    pub(crate) names: Vec<UnixAddr>,
    /// How many the kernel has dropped at this socket since the batch before.
    pub(crate) dropped: u32,
}

/// One datagram of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lent<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) source: SocketAddr,
    /// Of a UNIX socket.
    pub(crate) name: Option<&'a UnixAddr>,
    pub(crate) truncated: bool,
}

impl Lent<'_> {
    /// Fills `buffer`; says with how much, and whether any of it was lost.
    pub(crate) fn copy_to(&self, buffer: &mut [u8]) -> (usize, bool) {
        let len = self.bytes.len().min(buffer.len());
        buffer[..len].copy_from_slice(&self.bytes[..len]);
        (len, self.truncated || len < self.bytes.len())
    }
}

impl Batch {
    /// Takes the next datagram.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Lent<'_>> {
        let store = self.store.as_mut()?;
        let arrived = *store.arrived.get(store.head)?;
        let name = store.names.get(store.head);
        store.head += 1;
        let bytes = &store.buffer[arrived.start as usize..][..arrived.len as usize];
        Some(Lent { bytes, source: arrived.source, name, truncated: arrived.truncated })
    }

    fn store(&self) -> &BatchStore {
        self.store.as_ref().expect("there until it is dropped")
    }

    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        self.store().arrived.len() - self.store().head
    }

    /// Their bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.store().arrived[self.store().head..].iter().map(|one| one.len as usize).sum()
    }

    /// How many were cut short.
    pub(crate) fn truncated(&self) -> usize {
        self.store().arrived[self.store().head..].iter().filter(|one| one.truncated).count()
    }

    pub(crate) fn dropped(&self) -> u32 {
        self.store().dropped
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            self.pool.give_back(store);
        }
    }
}

/// The buffers of one driver for datagrams: none before the first is received, then one, and more only while somebody
/// holds one.
#[derive(Default)]
pub(crate) struct BatchPool {
    spare: Cell<Option<Box<BatchStore>>>,
    on_loan: Cell<usize>,
}

impl BatchPool {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Batches that are out now.
    pub(crate) fn on_loan(&self) -> usize {
        self.on_loan.get()
    }

    /// An empty batch to receive into. Lend it with [`BatchPool::lend`], or give it back.
    #[inline]
    pub(crate) fn take(&self) -> Box<BatchStore> {
        self.on_loan.set(self.on_loan.get() + 1);
        let mut store = self.spare.take().unwrap_or_else(|| Box::new(BatchStore::new()));
        store.arrived.clear();
        store.names.clear();
        store.head = 0;
        store.dropped = 0;
        store
    }

    #[inline]
    pub(crate) fn lend(self: &Rc<Self>, store: Box<BatchStore>) -> Batch {
        Batch { store: Some(store), pool: Rc::clone(self) }
    }

    pub(crate) fn give_back(&self, store: Box<BatchStore>) {
        self.on_loan.set(self.on_loan.get() - 1);
        // One spare is enough: batches are held by callbacks, which do not nest.
        drop(self.spare.replace(Some(store)));
    }
}

impl BatchStore {
    /// Room for as many of the longest datagrams as one call receives: a megabyte of addresses, of which the kernel
    /// provides the pages that are touched.
    fn new() -> Self {
        BatchStore {
            buffer: vec![0; Slots::new(DATAGRAM_BYTES_MAX).bytes(MESSAGES_MAX)].into_boxed_slice(),
            arrived: Vec::with_capacity(MESSAGES_MAX),
            names: Vec::new(),
            head: 0,
            dropped: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_each_datagram_once_and_its_buffer_back() {
        let pool = BatchPool::new();
        let mut store = pool.take();
        let source: SocketAddr = ([127, 0, 0, 1], 9).into();
        store.buffer[..5].copy_from_slice(b"abcde");
        for (start, len, truncated) in [(0, 2, false), (2, 0, false), (2, 3, true)] {
            store.arrived.push(Arrived { source, start, len, truncated });
        }
        let address = store.buffer.as_ptr();
        let mut batch = pool.lend(store);
        assert_eq!((batch.len(), batch.bytes(), batch.truncated()), (3, 5, 1));
        assert_eq!(batch.take(), Some(Lent { bytes: b"ab", source, name: None, truncated: false }));
        assert_eq!(batch.take(), Some(Lent { bytes: b"", source, name: None, truncated: false }));
        assert_eq!(batch.len(), 1);
        assert_eq!(batch.take(), Some(Lent { bytes: b"cde", source, name: None, truncated: true }));
        assert_eq!(batch.take(), None);
        assert_eq!(pool.on_loan(), 1);
        drop(batch);
        assert_eq!(pool.on_loan(), 0);
        let again = pool.take();
        assert_eq!(again.buffer.as_ptr(), address);
        assert!(again.arrived.is_empty());
        pool.give_back(again);
    }
}
