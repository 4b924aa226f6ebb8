//! Output waiting for the kernel: a queue of chunks that drivers take from the front.

use std::collections::VecDeque;
use std::io::IoSlice;

/// Bytes a connection has written and the kernel has not taken. Empty, it owns no memory.
///
/// A readiness driver writes from [`Output::slices`] and calls [`Output::advance`]; a completion driver moves
/// whole chunks out with [`Output::take_chunk`].
#[derive(Default)]
pub(crate) struct Output {
    queue: Option<Box<Queue>>,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that are already gone.
    sent_bytes: usize,
    len_bytes: usize,
}

/// A chunk is filled up to this size before another one is begun. Larger writes get a chunk of their own size.
const CHUNK_BYTES: usize = 16 * 1024;

impl Output {
    pub(crate) const fn new() -> Self {
        Output { queue: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_none()
    }

    /// Bytes waiting.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.len_bytes)
    }

    /// Appends a copy of `bytes`.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let queue = self.queue.get_or_insert_default();
        queue.len_bytes += bytes.len();
        match queue.chunks.back_mut() {
            Some(last) if last.len() + bytes.len() <= CHUNK_BYTES.max(last.capacity()) => {
                last.extend_from_slice(bytes);
            }
            _ => queue.chunks.push_back(bytes.to_vec()),
        }
    }

    /// The first chunks, for a vectored write: as many as fit into `slices`. Returns how many were set.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let Some(queue) = &self.queue else { return 0 };
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&queue.chunks) {
            let skip = if count == 0 { queue.sent_bytes } else { 0 };
            *slice = IoSlice::new(&chunk[skip..]);
            count += 1;
        }
        count
    }

    /// Forgets the first `count` bytes, which the kernel has taken.
    pub(crate) fn advance(&mut self, count: usize) {
        let Some(queue) = &mut self.queue else {
            assert_eq!(count, 0, "advanced past the end of the output");
            return;
        };
        assert!(count <= queue.len_bytes, "advanced past the end of the output");
        queue.len_bytes -= count;
        queue.sent_bytes += count;
        while let Some(first) = queue.chunks.front() {
            if queue.sent_bytes < first.len() {
                break;
            }
            queue.sent_bytes -= first.len();
            queue.chunks.pop_front();
        }
        if queue.len_bytes == 0 {
            self.queue = None;
        }
    }

    /// All that waits, in order.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        if let Some(queue) = &self.queue {
            for (index, chunk) in queue.chunks.iter().enumerate() {
                bytes.extend_from_slice(&chunk[if index == 0 { queue.sent_bytes } else { 0 }..]);
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_output_owns_nothing() {
        let mut output = Output::new();
        output.push(b"abc");
        output.advance(3);
        assert!(output.is_empty() && output.queue.is_none());
    }

    proptest! {
        #[test]
        fn whatever_the_sizes_the_bytes_come_out_in_order(
            writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 0..8),
            takes in prop::collection::vec(1usize..50_000, 0..40),
        ) {
            let mut output = Output::new();
            let mut expected = Vec::new();
            let mut seen = Vec::new();
            let mut takes = takes.into_iter();
            for write in &writes {
                output.push(write);
                expected.extend_from_slice(write);
                if let Some(take) = takes.next() {
                    let mut slices = [IoSlice::new(&[]); 3];
                    let count = output.slices(&mut slices);
                    let offered: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                    let take = take.min(offered.len());
                    seen.extend_from_slice(&offered[..take]);
                    output.advance(take);
                }
                prop_assert_eq!(output.len() + seen.len(), expected.len());
            }
            seen.extend(output.to_vec());
            prop_assert_eq!(seen, expected);
        }
    }
}
