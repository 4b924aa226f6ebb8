//! What a shard asks of its kernel about descriptors that are not its own.

use std::io;
use std::os::fd::BorrowedFd;

use crate::reactor::token::Token;

/// The verbs for descriptors of the application. `close` of [`Driver`](super::Driver) ends the watching, and leaves the
/// descriptor open.
pub(crate) trait WatchDriver {
    /// Gets to know a descriptor. Nothing is told of it before [`WatchDriver::arm`]. It must stay open until
    /// `close`.
    ///
    /// # Errors
    /// What the kernel says: it is no descriptor, it is watched already.
    fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<Watched>;

    /// Asks to be told once, by an [`Event::Ready`](super::Event::Ready), when one of the wanted things is so; at
    /// once if it is so now. Replaces what was asked before; asking for nothing ends it.
    fn arm(&mut self, token: Token, wanted: Wanted) -> io::Result<()>;
}

/// A descriptor a driver has got to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    pub(crate) token: Token,
    /// The kernel cannot watch it, since it never has to wait: a regular file. It must not be armed.
    pub(crate) always_ready: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

impl Wanted {
    pub(crate) const NOTHING: Wanted = Wanted { readable: false, writable: false };
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The other side is gone, and nothing is left to read. Told only to who wants to read.
    pub(crate) hung_up: bool,
}
