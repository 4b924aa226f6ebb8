//! How a server is told to count and to exit: by signals. A thread for it would make glibc treat the
//! process as threaded, which costs every system call through it some 50 instructions.

use std::io;

use libc::c_int;

use crate::allocation;

/// Asks for a line with the live allocator bytes on standard output.
pub(crate) const TELL_BYTES: rustix::process::Signal = rustix::process::Signal::USR1;
/// Asks for a clean exit. Not SIGTERM, which the library's `run` takes for itself.
pub(crate) const EXIT: rustix::process::Signal = rustix::process::Signal::USR2;

/// From now on obeys [`TELL_BYTES`] and [`EXIT`], on whichever thread the kernel picks.
pub(super) fn obey() -> io::Result<()> {
    install(TELL_BYTES.as_raw(), tell_bytes)?;
    install(EXIT.as_raw(), exit)
}

fn install(signal: c_int, handler: extern "C" fn(c_int)) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sigaction: an empty mask, no flags, no restorer.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialised, both handlers make async-signal-safe calls only, and no old
    // action is asked for.
    match unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Formats on the stack and writes with a raw system call: no allocation, no lock, errno left alone.
extern "C" fn tell_bytes(_: c_int) {
    let bytes = allocation::live_bytes();
    let mut line = [b'\n'; 24];
    let mut start = line.len() - 1; // the last one stays the line's end
    let mut rest = bytes.unsigned_abs();
    loop {
        start -= 1;
        line[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if bytes < 0 {
        start -= 1;
        line[start] = b'-';
    }
    // A reader that has gone needs no answer.
    let _ = rustix::io::write(rustix::stdio::stdout(), &line[start..]);
}

extern "C" fn exit(_: c_int) {
    // SAFETY: `_exit` is async-signal-safe and does not return. Nothing here needs destructors.
    unsafe { libc::_exit(0) }
}
