//! Signal dispositions: taken for a while, then given back as they were. Says that a signal came; what is done
//! about it is decided elsewhere.
//!
//! A handler writes the signal's number to a pipe, the one thing it may safely do (signal-safety(7)), and a
//! thread that waits reads it there.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// Catches signals until it is dropped. One at a time per process, since dispositions belong to the process.
///
/// SIGINT that was ignored when the guard was installed stays ignored: that is how a shell without job control
/// starts a background job that the terminal's Ctrl-C is not meant for (POSIX.1-2024, Shell §2.12). SIGTERM is
/// caught in any case: it is the way to stop us.
pub(crate) struct SignalGuard {
    pipe: Arc<Pipe>,
    /// What to restore, the last one first.
    saved: Vec<(Signal, libc::sigaction)>,
}

/// A signal that can be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: what service managers send.
    Terminate,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    Signal(Signal),
    /// Somebody called [`Notifier::notify`].
    Notified,
}

/// Ends a [`SignalGuard::wait`] from another thread. Does nothing once the guard is gone.
#[derive(Clone)]
pub(crate) struct Notifier {
    pipe: Arc<Pipe>,
}

impl SignalGuard {
    /// Catches `signals` from now on.
    ///
    /// # Errors
    /// `AlreadyExists` while another guard lives, or what the kernel says; nothing has changed then.
    pub(crate) fn install(signals: &[Signal]) -> io::Result<Self> {
        // Acquire: pairs with the Release in `drop`, which comes after the other guard has left everything.
        if IS_INSTALLED.swap(true, Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "signals are caught already: only one runtime of a process can do that at a time",
            ));
        }
        let pipe = match Pipe::new() {
            Ok(pipe) => Arc::new(pipe),
            Err(error) => {
                // Release: pairs with the Acquire above.
                IS_INSTALLED.store(false, Ordering::Release);
                return Err(error);
            }
        };
        // SeqCst: pairs with the load in `on_signal`.
        WRITE_END.store(pipe.write_end.as_raw_fd(), Ordering::SeqCst);
        // From here on `drop` undoes what was done, also after an error.
        let mut guard = SignalGuard { pipe, saved: Vec::with_capacity(signals.len()) };
        for &signal in signals {
            let before = disposition(signal.number())?;
            if signal == Signal::Interrupt && before.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            set_disposition(signal.number(), &catching())?;
            guard.saved.push((signal, before));
        }
        Ok(guard)
    }

    /// Sleeps until a signal comes or somebody notifies. Every signal caught since the last wait ends one, but
    /// for equal ones that the kernel has merged.
    ///
    /// # Errors
    /// What the kernel says about polling a pipe; none is expected.
    pub(crate) fn wait(&self) -> io::Result<Notice> {
        loop {
            if let Some(notice) = self.pipe.take_notice()? {
                return Ok(notice);
            }
            let mut ready = [PollFd::new(&self.pipe.read_end, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(crate) fn notifier(&self) -> Notifier {
        Notifier { pipe: Arc::clone(&self.pipe) }
    }
}

impl Drop for SignalGuard {
    fn drop(&mut self) {
        for (signal, before) in self.saved.drain(..).rev() {
            // Cannot fail: the same call with the same signal has succeeded.
            let _ = set_disposition(signal.number(), &before);
        }
        // Handlers may still be running on other threads, and must be done before the pipe's number can become
        // somebody else's. SeqCst, both: either the handler sees that the pipe is gone, or this sees the handler;
        // they pair with the first two steps of `on_signal`.
        WRITE_END.store(NO_PIPE, Ordering::SeqCst);
        while HANDLERS_RUNNING.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        // Release: pairs with the Acquire in `install`.
        IS_INSTALLED.store(false, Ordering::Release);
    }
}

impl Notifier {
    pub(crate) fn notify(&self) {
        // Release: pairs with the Acquire in `take_notice`. The flag, not the byte, is the message: a pipe full of
        // signals takes no byte.
        self.pipe.is_notified.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.pipe.write_end, &[NOTIFIED]);
    }
}

impl Signal {
    /// The number, as in the exit status 128 + number.
    pub(crate) fn number(self) -> i32 {
        match self {
            Signal::Interrupt => libc::SIGINT,
            Signal::Terminate => libc::SIGTERM,
        }
    }
}

/// Where handlers write and waiters read. Both ends live as long as any notifier: a late one raises no SIGPIPE.
struct Pipe {
    read_end: OwnedFd,
    write_end: OwnedFd,
    is_notified: AtomicBool,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Pipe { read_end, write_end, is_notified: AtomicBool::new(false) })
    }

    fn take_notice(&self) -> io::Result<Option<Notice>> {
        loop {
            // Acquire: pairs with the Release in `notify`.
            if self.is_notified.swap(false, Ordering::Acquire) {
                return Ok(Some(Notice::Notified));
            }
            let mut byte = [NOTIFIED];
            match rustix::io::read(&self.read_end, &mut byte) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(None),
                Ok(_) => {
                    let is_caught = |signal: &Signal| signal.number() == i32::from(byte[0]);
                    let signal = [Signal::Interrupt, Signal::Terminate].into_iter().find(is_caught);
                    if let Some(signal) = signal {
                        return Ok(Some(Notice::Signal(signal)));
                    }
                    // The byte of a notifier: look at the flag again.
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Runs in the middle of anything: atomics, one write, errno as it was, and nothing else.
extern "C" fn on_signal(number: libc::c_int) {
    // SeqCst, both: pairs with the two steps in `SignalGuard::drop`.
    HANDLERS_RUNNING.fetch_add(1, Ordering::SeqCst);
    let write_end = WRITE_END.load(Ordering::SeqCst);
    if write_end != NO_PIPE {
        keeping_errno(|| {
            // SAFETY: the pipe stays open while `HANDLERS_RUNNING` counts us.
            let write_end = unsafe { BorrowedFd::borrow_raw(write_end) };
            // A full pipe refuses, which is fine: there is plenty to read.
            let _ = rustix::io::write(write_end, &[number as u8]);
        });
    }
    // SeqCst: pairs with the load in `SignalGuard::drop`.
    HANDLERS_RUNNING.fetch_sub(1, Ordering::SeqCst);
}

/// Runs `step` and leaves errno as it was: a handler interrupts code that may be about to read it.
pub(crate) fn keeping_errno(step: impl FnOnce()) {
    let errno = errno_location();
    // SAFETY: errno is this thread's own, and always there.
    let before = unsafe { *errno };
    step();
    // SAFETY: as above.
    unsafe { *errno = before };
}

fn errno_location() -> *mut libc::c_int {
    // SAFETY: a plain call, without conditions.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::__errno_location()
    }
    // SAFETY: a plain call, without conditions.
    #[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd", target_os = "dragonfly"))]
    unsafe {
        libc::__error()
    }
    // SAFETY: a plain call, without conditions.
    #[cfg(any(target_os = "netbsd", target_os = "openbsd", target_os = "android"))]
    unsafe {
        libc::__errno()
    }
}

fn catching() -> libc::sigaction {
    with_handler(on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t)
}

fn with_handler(handler: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: all zeroes is a valid `sigaction`: default action, no flags, no mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    // System calls of other threads are not to fail because of us.
    action.sa_flags = libc::SA_RESTART;
    action
}

fn disposition(number: i32) -> io::Result<libc::sigaction> {
    let mut action = MaybeUninit::uninit();
    // SAFETY: reads the disposition into room for one.
    if unsafe { libc::sigaction(number, ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded, so it filled it.
    Ok(unsafe { action.assume_init() })
}

fn set_disposition(number: i32, action: &libc::sigaction) -> io::Result<()> {
    // SAFETY: `action` is a disposition read before or made by `with_handler`; our handler is signal-safe.
    if unsafe { libc::sigaction(number, action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

static IS_INSTALLED: AtomicBool = AtomicBool::new(false);
static HANDLERS_RUNNING: AtomicU32 = AtomicU32::new(0);
static WRITE_END: AtomicI32 = AtomicI32::new(NO_PIPE);
const NO_PIPE: i32 = -1;
/// No signal has this number.
const NOTIFIED: u8 = 0;

#[cfg(test)]
mod tests {
    use std::process::{Command, ExitStatus};

    use super::*;

    const BOTH: [Signal; 2] = [Signal::Interrupt, Signal::Terminate];

    /// Runs `body` in a process of its own: dispositions are shared by all tests of this one. The process is this
    /// test binary, told to run the calling test alone.
    fn in_child(test: &str, body: impl FnOnce()) -> ExitStatus {
        const VARIABLE: &str = "SHARDWISE_SIGNAL_TEST";
        if std::env::var(VARIABLE).is_ok_and(|running| running == test) {
            body();
            std::process::exit(CHILD_DONE);
        }
        let name = format!("sys::signals::tests::{test}");
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([&name, "--exact", "--nocapture"]).env(VARIABLE, test);
        child
            .output()
            .map(|output| {
                println!("{}", String::from_utf8_lossy(&output.stdout));
                println!("{}", String::from_utf8_lossy(&output.stderr));
                output.status
            })
            .unwrap()
    }

    /// Not 0, which a binary that runs no test at all would give.
    const CHILD_DONE: i32 = 42;

    fn raise(number: i32) {
        // SAFETY: a plain call; the handler has run when it returns.
        assert_eq!(unsafe { libc::raise(number) }, 0);
    }

    #[test]
    fn a_signal_is_noticed_and_then_handled_as_before() {
        static HANDLED: AtomicU32 = AtomicU32::new(0);
        extern "C" fn handler_before(_: libc::c_int) {
            // Relaxed: raised and read on one thread.
            HANDLED.fetch_add(1, Ordering::Relaxed);
        }
        let status = in_child("a_signal_is_noticed_and_then_handled_as_before", || {
            let mut before = with_handler(handler_before as extern "C" fn(libc::c_int) as libc::sighandler_t);
            before.sa_flags = libc::SA_NODEFER;
            set_disposition(libc::SIGTERM, &before).unwrap();
            set_disposition(libc::SIGINT, &with_handler(libc::SIG_DFL)).unwrap();
            // Twice, and with a signal named twice.
            for _ in 0..2 {
                let guard = SignalGuard::install(&[BOTH[0], BOTH[1], BOTH[1]]).unwrap();
                raise(libc::SIGTERM);
                raise(libc::SIGINT);
                assert_eq!(guard.wait().unwrap(), Notice::Signal(Signal::Terminate));
                assert_eq!(guard.wait().unwrap(), Notice::Signal(Signal::Interrupt));
            }
            assert_eq!(HANDLED.load(Ordering::Relaxed), 0);
            raise(libc::SIGTERM);
            assert_eq!(HANDLED.load(Ordering::Relaxed), 1);
            let after = disposition(libc::SIGTERM).unwrap();
            assert_eq!(after.sa_flags & libc::SA_NODEFER, libc::SA_NODEFER, "flags come back too");
            assert_eq!(disposition(libc::SIGINT).unwrap().sa_sigaction, libc::SIG_DFL);
        });
        assert_eq!(status.code(), Some(CHILD_DONE));
    }

    #[test]
    fn a_second_guard_is_refused_until_the_first_is_gone() {
        let status = in_child("a_second_guard_is_refused_until_the_first_is_gone", || {
            let first = SignalGuard::install(&BOTH).unwrap();
            let refused = SignalGuard::install(&BOTH).err().unwrap();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            raise(libc::SIGTERM);
            assert_eq!(
                first.wait().unwrap(),
                Notice::Signal(Signal::Terminate),
                "the refusal changed nothing"
            );
            drop(first);
            drop(SignalGuard::install(&BOTH).unwrap());
        });
        assert_eq!(status.code(), Some(CHILD_DONE));
    }

    #[test]
    fn a_notifier_ends_a_wait_before_during_and_harmlessly_after() {
        let status = in_child("a_notifier_ends_a_wait_before_during_and_harmlessly_after", || {
            let guard = SignalGuard::install(&[]).unwrap();
            let notifier = guard.notifier();
            notifier.notify();
            assert_eq!(guard.wait().unwrap(), Notice::Notified);
            let from_elsewhere = notifier.clone();
            let thread = thread::spawn(move || from_elsewhere.notify());
            assert_eq!(guard.wait().unwrap(), Notice::Notified);
            thread.join().unwrap();
            drop(guard);
            // Would end this process if the reading end were closed and SIGPIPE at its default.
            set_disposition(libc::SIGPIPE, &with_handler(libc::SIG_DFL)).unwrap();
            notifier.notify();
        });
        assert_eq!(status.code(), Some(CHILD_DONE));
    }

    #[test]
    fn a_storm_neither_blocks_nor_hides_a_notification() {
        let status = in_child("a_storm_neither_blocks_nor_hides_a_notification", || {
            let guard = SignalGuard::install(&BOTH).unwrap();
            let read_end = &guard.pipe.read_end;
            let mut raised = 0;
            // Until the pipe is full, and on.
            while raised < 100_000 {
                raise(libc::SIGINT);
                raised += 1;
            }
            assert!(rustix::io::ioctl_fionread(read_end).unwrap() < raised, "the pipe has refused some");
            guard.notifier().notify();
            let mut notices = (0, 0);
            // Not `wait`, which sleeps when all that is left is the notifier's own byte, for which there may have been
            // room.
            while let Some(notice) = guard.pipe.take_notice().unwrap() {
                match notice {
                    Notice::Signal(signal) => {
                        assert_eq!(signal, Signal::Interrupt);
                        notices.0 += 1;
                    }
                    Notice::Notified => notices.1 += 1,
                }
            }
            assert_eq!(notices.1, 1);
            assert!(notices.0 > 0);
        });
        assert_eq!(status.code(), Some(CHILD_DONE));
    }

    #[test]
    fn an_ignored_interrupt_stays_ignored_but_terminate_is_caught() {
        let status = in_child("an_ignored_interrupt_stays_ignored_but_terminate_is_caught", || {
            for signal in BOTH {
                set_disposition(signal.number(), &with_handler(libc::SIG_IGN)).unwrap();
            }
            let guard = SignalGuard::install(&BOTH).unwrap();
            raise(libc::SIGINT);
            raise(libc::SIGTERM);
            assert_eq!(guard.wait().unwrap(), Notice::Signal(Signal::Terminate));
            assert_eq!(disposition(libc::SIGINT).unwrap().sa_sigaction, libc::SIG_IGN);
            drop(guard);
            assert_eq!(disposition(libc::SIGTERM).unwrap().sa_sigaction, libc::SIG_IGN);
        });
        assert_eq!(status.code(), Some(CHILD_DONE));
    }

    #[test]
    fn the_handler_leaves_errno_alone_even_when_the_pipe_is_full() {
        let status = in_child("the_handler_leaves_errno_alone_even_when_the_pipe_is_full", || {
            let guard = SignalGuard::install(&BOTH).unwrap();
            while rustix::io::write(&guard.pipe.write_end, &[NOTIFIED; 512]).is_ok() {}
            while rustix::io::write(&guard.pipe.write_end, &[NOTIFIED]).is_ok() {}
            // SAFETY: this thread's own errno.
            unsafe { *errno_location() = libc::EXDEV };
            raise(libc::SIGTERM);
            assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EXDEV));
        });
        assert_eq!(status.code(), Some(CHILD_DONE));
    }
}
