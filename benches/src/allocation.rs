//! The counting allocator: how many bytes this process holds. Does not know who asks.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering::Relaxed};

/// The system's allocator, and a count of live bytes while [`start_counting`] is in force.
pub(crate) struct Counting;

/// Counts from now on. Off by default, so that timed servers pay one predicted branch and no atomic.
pub(crate) fn start_counting() {
    COUNTING.store(true, Relaxed);
}

/// Bytes allocated and not freed since counting began, by every thread.
///
/// What was allocated before and freed since counts as negative: only differences mean something.
pub(crate) fn live_bytes() -> isize {
    LIVE_BYTES.load(Relaxed)
}

// Relaxed throughout: a statistic that orders nothing. Readers ask while the server is idle.
static COUNTING: AtomicBool = AtomicBool::new(false);
static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

fn count(change_bytes: isize) {
    if COUNTING.load(Relaxed) {
        LIVE_BYTES.fetch_add(change_bytes, Relaxed);
    }
}

// SAFETY: every call is passed on unchanged to `System`, which upholds the contract; counting touches
// two atomics and neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise about `layout` is the one `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `block` came from `System`, for every allocation does, with this `layout`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as isize - layout.size() as isize);
        // SAFETY: as in `dealloc`; `new_size` is the caller's promise.
        unsafe { System.realloc(block, layout, new_size) }
    }
}
