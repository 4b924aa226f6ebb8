//! A descriptor of the application: registered while something is asked of it, and told once each time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use mio::Interest;
use mio::unix::SourceFd;
use rustix::io::Errno;

use super::turn::Readiness;
use super::{MioDriver, Source, not_connected};
use crate::reactor::driver::Event;
use crate::reactor::driver::watching::{Ready, Wanted, WatchDriver, Watched};
use crate::reactor::token::Token;

pub(super) struct WatchedFd {
    /// Open for as long as it is watched: whoever asked for it owes us that.
    fd: RawFd,
    wanted: Wanted,
    /// Whether the kernel knows it.
    registered: bool,
}

impl WatchDriver for MioDriver {
    fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<Watched> {
        let fd = fd.as_raw_fd();
        let watched = WatchedFd { fd, wanted: Wanted::NOTHING, registered: false };
        let token = self.sources.insert(Source::Watched(Box::new(watched)));
        let name = mio::Token(token.to_bits() as usize);
        // To learn now what would else fail later, and whether the kernel can watch it at all.
        let tried = self.poll.registry().register(&mut SourceFd(&fd), name, Interest::READABLE);
        match tried.and_then(|()| self.poll.registry().deregister(&mut SourceFd(&fd))) {
            Ok(()) => Ok(Watched { token, always_ready: false }),
            // `epoll_ctl(2)`: "The target file fd does not support epoll", as regular files and directories.
            Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                Ok(Watched { token, always_ready: true })
            }
            Err(error) => {
                self.sources.remove(token);
                Err(error)
            }
        }
    }

    fn arm(&mut self, token: Token, wanted: Wanted) -> io::Result<()> {
        let Some(Source::Watched(watched)) = self.sources.get_mut(token) else { return Err(not_connected()) };
        let registry = self.poll.registry();
        let fd = watched.fd;
        let interest = match wanted {
            Wanted { readable: true, writable: true } => Interest::READABLE | Interest::WRITABLE,
            Wanted { readable: true, writable: false } => Interest::READABLE,
            Wanted { readable: false, writable: true } => Interest::WRITABLE,
            Wanted::NOTHING => {
                watched.wanted = wanted;
                if std::mem::take(&mut watched.registered) {
                    registry.deregister(&mut SourceFd(&fd))?;
                }
                return Ok(());
            }
        };
        let name = mio::Token(token.to_bits() as usize);
        // Registering anew also has the kernel tell anew what is so already: that makes of its edges a level.
        if watched.registered {
            registry.reregister(&mut SourceFd(&fd), name, interest)?;
        } else {
            registry.register(&mut SourceFd(&fd), name, interest)?;
            watched.registered = true;
        }
        watched.wanted = wanted;
        Ok(())
    }
}

impl MioDriver {
    /// Tells what an edge told, if it is what was asked for.
    pub(super) fn serve_watched(&mut self, token: Token, readiness: Readiness) -> Option<Event> {
        self.turn.pass_head();
        let Some(Source::Watched(watched)) = self.sources.get_mut(token) else { return None };
        let unusual = readiness.is_unusual();
        let readable = readiness.has(Readiness::READABLE) || unusual;
        let writable = readiness.has(Readiness::WRITABLE) || unusual;
        let wanted = watched.wanted;
        if !(wanted.readable && readable || wanted.writable && writable) {
            return None;
        }
        // Once: what is still wanted is asked for again.
        watched.wanted = Wanted::NOTHING;
        // The kernel tells of bytes only to who asks to read: a writer learns of a hang-up by writing.
        let silent = !readiness.has(Readiness::READABLE) && !readiness.has(Readiness::ERROR);
        let hung_up = wanted.readable && unusual && silent;
        let ready =
            Ready { readable: wanted.readable && readable, writable: wanted.writable && writable, hung_up };
        Some(Event::Ready { token, ready })
    }

    /// Takes it out of the kernel's list; it stays open.
    pub(super) fn unwatch(&mut self, watched: &WatchedFd) {
        if watched.registered {
            // If it is closed already, the kernel has forgotten it.
            let _ = self.poll.registry().deregister(&mut SourceFd(&watched.fd));
        }
    }
}
