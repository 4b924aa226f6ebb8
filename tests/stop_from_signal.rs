//! `Handle::stop_from_signal`, called by a real signal handler. In a process of its own: dispositions belong to the
//! process, and an allocator that watches handlers does, too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use shardwise::{Handle, NotRunning, Runtime, RuntimeState, Shard, ShardId};

/// Notes whoever allocates while a handler runs on the same thread.
struct Watching;

thread_local! {
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATED_IN_HANDLER: AtomicUsize = AtomicUsize::new(0);
static HANDLED: AtomicUsize = AtomicUsize::new(0);
static HANDLE: OnceLock<Handle> = OnceLock::new();

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn watch() {
    if IN_HANDLER.try_with(Cell::get).unwrap_or(false) {
        ALLOCATED_IN_HANDLER.fetch_add(1, SeqCst);
    }
}

// SAFETY: passes everything on to the system's allocator.
#[allow(unsafe_code, reason = "an allocator that watches")]
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        watch();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        watch();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

extern "C" fn on_signal(_number: libc::c_int) {
    IN_HANDLER.set(true);
    if let Some(handle) = HANDLE.get() {
        handle.stop_from_signal();
    }
    IN_HANDLER.set(false);
    HANDLED.fetch_add(1, SeqCst);
}

#[allow(unsafe_code, reason = "the standard library installs no handlers")]
fn catch(signal: libc::c_int) {
    // SAFETY: the handler does what is safe in one, which is what this file tests.
    let before =
        unsafe { libc::signal(signal, on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    assert_ne!(before, libc::SIG_ERR);
}

#[allow(unsafe_code, reason = "the standard library raises no signals")]
fn raise(signal: libc::c_int) {
    // SAFETY: a plain call; the handler runs on this thread before it returns.
    assert_eq!(unsafe { libc::raise(signal) }, 0);
}

#[allow(unsafe_code, reason = "the standard library does not set errno")]
fn errno() -> *mut libc::c_int {
    // SAFETY: a plain call, without conditions.
    unsafe { libc::__errno_location() }
}

/// How many threads that are shards sleep right now, by the kernel's word: proc(5), `/proc/pid/task/tid/stat`.
fn sleeping_shards() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let stats =
        threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).ok());
    stats.filter(|stat| stat.contains("(shard-") && stat.contains(") S ")).count()
}

/// One test, since all of it is about the process.
#[test]
#[allow(unsafe_code, reason = "errno")]
fn a_signal_handler_stops_the_runtime_without_allocating_and_wakes_it_from_its_sleep() {
    let running = Runtime::new().shards(2).pin(false).start(async |_: Shard| Ok(())).unwrap();
    let handle = running.handle();
    HANDLE.set(handle.clone()).expect("this test is alone");
    catch(libc::SIGUSR1);

    // All sleep, for there is nothing else that they could do.
    let begun = Instant::now();
    while sleeping_shards() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(30), "a shard does not go to sleep");
        std::thread::yield_now();
    }
    // SAFETY: errno is this thread's own.
    unsafe { *errno() = libc::EXDEV };
    raise(libc::SIGUSR1);
    // SAFETY: as above.
    assert_eq!(unsafe { *errno() }, libc::EXDEV, "errno is as it was");
    running.join().unwrap();
    assert_eq!((HANDLED.load(SeqCst), ALLOCATED_IN_HANDLER.load(SeqCst)), (1, 0));
    assert_eq!(handle.state(), RuntimeState::Stopped);
    assert!(matches!(handle.stop(), Err(NotRunning)));

    // Harmless after the end.
    raise(libc::SIGUSR1);
    assert_eq!(HANDLED.load(SeqCst), 2);

    // From a handler that interrupts a shard in the middle of its own work, with another runtime.
    let running = Runtime::new().shards(1).pin(false).start(async |_: Shard| Ok(())).unwrap();
    let other = running.handle();
    let interrupted = other.blocking_call_from_thread(ShardId::new(0), |shard: &Shard| {
        let handle = shard.handle();
        handle.stop_from_signal();
        handle.state()
    });
    assert_eq!(interrupted.unwrap(), RuntimeState::Running, "the next turn does it");
    running.join().unwrap();
}
