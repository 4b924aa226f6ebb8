//! IReactorFDSet: descriptors that the application reads and writes itself.

use std::io;
use std::os::fd::AsFd;

use crate::error::{CloseReason, Result};
use crate::reactor::driver::watching::Wanted;
use crate::shard::Shard;
use crate::shard::handles::fd::{Fd, FdGuard};

/// Something with a descriptor, which it reads and writes itself when told that it can: a pipe, a terminal, a socket of
/// another library, an inotify or timer descriptor.
///
/// The descriptor it shows by [`AsFd`] must stay the same, and open, for as long as it is watched; that is natural for
/// a handler that owns it. It should be non-blocking: a read that waits stops the shard.
///
/// An error of a callback ends the watching, with it as the reason; so does a panic.
#[allow(unused_variables, reason = "the names tell what the arguments are")]
pub trait FdHandler: AsFd + 'static {
    /// A read would not wait: there are bytes, an end, or an error to find. Called again, turn after turn, while that is
    /// so: whoever does not want more yet takes it back by [`Shard::remove_reader`].
    fn readable(&mut self, fd: &Fd) -> Result<()> {
        Ok(())
    }

    /// A write would not wait. Called again while that is so: whoever has nothing to write takes it back by
    /// [`Shard::remove_writer`].
    fn writable(&mut self, fd: &Fd) -> Result<()> {
        Ok(())
    }

    /// The watching has ended: the guard was dropped, a callback failed, the other side hung up with nothing left to
    /// read, or the shard stops. Called once, last; the handler is dropped right after.
    fn ended(&mut self, reason: CloseReason) {}
}

impl Shard {
    /// Gets to know a descriptor. Its handler is called for what [`Shard::add_reader`] and [`Shard::add_writer`] ask for.
    ///
    /// ```
    /// # use shardwise::{Fd, FdGuard, FdHandler, Result, Shard};
    /// use std::io::{PipeReader, Read};
    /// use std::os::fd::{AsFd, BorrowedFd};
    ///
    /// struct Lines(PipeReader); // non-blocking
    ///
    /// impl AsFd for Lines {
    ///     fn as_fd(&self) -> BorrowedFd<'_> {
    ///         self.0.as_fd()
    ///     }
    /// }
    ///
    /// impl FdHandler for Lines {
    ///     fn readable(&mut self, fd: &Fd) -> Result<()> {
    ///         let mut buffer = [0; 4096];
    ///         match self.0.read(&mut buffer)? {
    ///             0 => fd.shard().remove_reader(fd),
    ///             count => println!("{count} bytes"),
    ///         }
    ///         Ok(())
    ///     }
    /// }
    ///
    /// fn watch(shard: &Shard, pipe: PipeReader) -> Result<FdGuard> {
    ///     let guard = shard.watch(Lines(pipe))?;
    ///     shard.add_reader(&guard)?;
    ///     Ok(guard)
    /// }
    /// ```
    ///
    /// # Errors
    /// What the operating system says; the handler is dropped. In a simulation there are no descriptors: `Unsupported`.
    pub fn watch<H: FdHandler>(&self, handler: H) -> io::Result<FdGuard> {
        let core = self.watch_descriptor(handler.as_fd(), true)?;
        core.set_handler(Box::new(handler));
        Ok(FdGuard::new(Fd::new(self.clone(), core)))
    }

    /// Has the handler called while a read would not wait. No-op if it is already.
    ///
    /// A regular file, which never waits and which epoll therefore refuses, is served a thousand times a second: as
    /// often as possible would take a whole CPU. A task with an [`AsyncFd`](crate::AsyncFd) reads it as quickly as it
    /// can, and no more often than it wants.
    ///
    /// # Errors
    /// `NotConnected` after the end; what the operating system says, such as `AlreadyExists` for a descriptor that is
    /// watched under another name.
    pub fn add_reader(&self, fd: &Fd) -> io::Result<()> {
        self.want(fd.core(), Wanted { readable: true, ..fd.core().wanted() })
    }

    /// Has the handler called while a write would not wait. As [`Shard::add_reader`] in all else.
    ///
    /// # Errors
    /// As [`Shard::add_reader`].
    pub fn add_writer(&self, fd: &Fd) -> io::Result<()> {
        self.want(fd.core(), Wanted { writable: true, ..fd.core().wanted() })
    }

    /// Does not have the handler called for reading any more, from now on. No-op if it is not.
    pub fn remove_reader(&self, fd: &Fd) {
        self.want_less(fd, Wanted { readable: false, ..fd.core().wanted() });
    }

    /// Does not have the handler called for writing any more, from now on. No-op if it is not.
    pub fn remove_writer(&self, fd: &Fd) {
        self.want_less(fd, Wanted { writable: false, ..fd.core().wanted() });
    }

    fn want_less(&self, fd: &Fd, wanted: Wanted) {
        if fd.is_open()
            && let Err(source) = self.want(fd.core(), wanted)
        {
            // Its descriptor was closed behind our back.
            self.end_watch(fd.core(), CloseReason::Os { call: "epoll_ctl", source });
        }
    }

    /// Removes all readers and writers, and gives them, each once. They stay registered. What the shard watches for
    /// itself is not among them.
    pub fn remove_all(&self) -> Vec<Fd> {
        let all = self.watched_for(|wanted| wanted != Wanted::NOTHING);
        for fd in &all {
            self.want_less(fd, Wanted::NOTHING);
        }
        all
    }

    /// The descriptors whose handlers are called for reading.
    pub fn readers(&self) -> Vec<Fd> {
        self.watched_for(|wanted| wanted.readable)
    }

    /// The descriptors whose handlers are called for writing.
    pub fn writers(&self) -> Vec<Fd> {
        self.watched_for(|wanted| wanted.writable)
    }
}
