//! Received bytes that wait for their reader. Empty, it is one word and owns nothing.

/// A queue of bytes.
#[derive(Default)]
pub(crate) struct Kept {
    bytes: Option<Box<Bytes>>,
}

struct Bytes {
    bytes: Vec<u8>,
    /// How many of them have been read.
    read: usize,
}

impl Kept {
    pub(crate) const fn new() -> Self {
        Kept { bytes: None }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_none()
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.as_ref().map_or(0, |kept| kept.bytes.len() - kept.read)
    }

    /// Appends a copy of `bytes`.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        match &mut self.bytes {
            Some(kept) => kept.bytes.extend_from_slice(bytes),
            None => self.set(bytes.to_vec()),
        }
    }

    /// Replaces what is kept.
    pub(crate) fn set(&mut self, bytes: Vec<u8>) {
        self.bytes = if bytes.is_empty() { None } else { Some(Box::new(Bytes { bytes, read: 0 })) };
    }

    /// All of it, in order; nothing is left.
    #[inline]
    pub(crate) fn take(&mut self) -> Vec<u8> {
        match self.bytes.take() {
            None => Vec::new(),
            Some(kept) => kept.unread(),
        }
    }

    /// Moves the first bytes into `buffer`, as many as fit, and says how many.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        let Some(kept) = &mut self.bytes else { return 0 };
        let count = buffer.len().min(kept.bytes.len() - kept.read);
        buffer[..count].copy_from_slice(&kept.bytes[kept.read..kept.read + count]);
        kept.read += count;
        if kept.read == kept.bytes.len() {
            self.bytes = None;
        } else if kept.read >= SLACK_BYTES && kept.read >= kept.bytes.len() / 2 {
            // A reader that never quite catches up must not keep all it has read. Halves: each byte moves once or so.
            kept.bytes.drain(..kept.read);
            kept.read = 0;
        }
        count
    }
}

impl Bytes {
    #[cold]
    fn unread(mut self) -> Vec<u8> {
        self.bytes.drain(..self.read);
        self.bytes
    }
}

/// Bytes already read that may lie in front of the rest.
const SLACK_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_never_catches_up_does_not_keep_what_it_has_read() {
        let mut kept = Kept::new();
        kept.push(&[0; 1000]);
        for _ in 0..10_000 {
            kept.push(&[1; 1000]);
            kept.read(&mut [0; 1000]);
            assert_eq!(kept.len(), 1000);
        }
        let held = kept.bytes.as_ref().unwrap().bytes.len();
        assert!(held < 3 * SLACK_BYTES, "{held} bytes");
    }

    #[test]
    fn bytes_come_out_in_the_order_they_went_in() {
        let mut kept = Kept::new();
        kept.push(b"abc");
        kept.push(b"def");
        let mut buffer = [0; 4];
        assert_eq!(kept.read(&mut buffer), 4);
        assert_eq!(&buffer, b"abcd");
        kept.push(b"g");
        assert_eq!(kept.len(), 3);
        assert_eq!(kept.take(), b"efg");
        assert!(kept.is_empty());
    }

    #[test]
    fn empty_it_owns_nothing() {
        let mut kept = Kept::new();
        kept.push(b"ab");
        kept.read(&mut [0; 2]);
        assert!(kept.bytes.is_none());
        kept.set(Vec::new());
        assert!(kept.is_empty());
        assert_eq!(size_of::<Kept>(), size_of::<usize>());
    }
}
