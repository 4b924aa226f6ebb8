//! Producers: who writes to a connection as fast as it takes, and the table of those that are registered. The marks of
//! `flushing.rs` decide when they are paused and resumed; nothing here looks at bytes.

use std::any::type_name;
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{CloseReason, ProducerError, Result};
use crate::net::connection::WriteHalf;
use crate::net::kept::Kept;
use crate::reactor::token::Token;
use crate::shard::connections::Slot;
use crate::shard::flushing::Notice;
use crate::shard::handles::transport::Transport;
use crate::shard::{Inner, Shard};

/// Who writes to a connection, and is told when to. Registered by [`Transport::register_producer`].
///
/// An `Err` from a callback closes the connection with the error as the reason, as an error of its
/// [`Protocol`](crate::Protocol) does, and so does a panic. No callback is made inside another one of the same producer,
/// except that [`Transport::register_producer`] may call the new one before it returns.
///
/// A [`Transport`] is a producer itself: of what its peer sends. Paused it stops reading, stopped it closes. So two
/// connections are joined, with back-pressure, by registering each with the other.
///
/// In a task nothing of this is needed: [`TcpStream::write_all`](crate::TcpStream::write_all) waits, and
/// [`copy`](crate::copy) moves all that one stream receives into another.
///
/// ```
/// use shardwise::{Producer, ProducerKind, Result, Transport};
///
/// /// The numbers up to a limit, a line each, made when there is room for them.
/// struct Numbers {
///     next: u64,
///     limit: u64,
/// }
///
/// impl Producer for Numbers {
///     fn resume_producing(&mut self, consumer: &Transport) -> Result<()> {
///         consumer.write(format!("{}\n", self.next).as_bytes())?;
///         self.next += 1;
///         if self.next == self.limit {
///             consumer.unregister_producer();
///         }
///         Ok(())
///     }
///     fn stop_producing(&mut self) {}
/// }
///
/// fn send_numbers(transport: &Transport) -> Result<()> {
///     transport.register_producer(Numbers { next: 0, limit: 1000 }, ProducerKind::Pull)?;
///     transport.close(); // once the last number is out
///     Ok(())
/// }
/// ```
pub trait Producer: 'static {
    /// There is room: a push producer goes on, a pull producer writes its next chunk.
    fn resume_producing(&mut self, consumer: &Transport) -> Result<()>;

    /// Unsent output has gone above the high watermark: write no more until resumed. Push producers only, once per
    /// crossing.
    fn pause_producing(&mut self, consumer: &Transport) -> Result<()> {
        let _ = consumer;
        Ok(())
    }

    /// The connection is lost, for whatever reason: produce no more. Called once, last, and not after
    /// [`Transport::unregister_producer`].
    fn stop_producing(&mut self);
}

/// How a producer wants to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProducerKind {
    /// It writes by itself, is paused above the high watermark and resumed at the low one.
    Push,
    /// It writes one chunk when asked to, and is asked again when what it wrote has gone out down to the low watermark. It
    /// is never paused. One that writes nothing when asked is asked again after the next write of anybody.
    Pull,
}

/// What a connection's slot knows of its producer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Producing {
    #[default]
    Nobody,
    Push,
    /// It was asked, and nothing has been written since.
    PullAsked,
    /// It is to be asked when there is room.
    PullOwed,
}

/// What was asked for while a producer was registered, and waits for it to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum EndsAfterProducer {
    #[default]
    Nothing,
    ShutdownWrite,
    Close,
}

/// The producers of one shard. A connection without one has no entry.
#[derive(Default)]
pub(crate) struct Producers {
    table: RefCell<HashMap<Token, Registered>>,
}

struct Registered {
    /// None while it is being called.
    producer: Option<Box<dyn Producer>>,
    name: &'static str,
    /// The connection was lost meanwhile: it is still to be stopped.
    is_lost: bool,
}

impl Slot {
    /// Something was written.
    #[inline]
    pub(super) fn note_written(&mut self) {
        if self.marks.producing == Producing::PullAsked {
            self.marks.producing = Producing::PullOwed;
        }
    }

    /// Open, and not asked to end once its producer has gone.
    pub(super) fn is_in_use(&self) -> bool {
        self.connection.is_open() && self.marks.ends_after_producer != EndsAfterProducer::Close
    }
}

impl Inner {
    /// Whether the pull producer is to be asked now.
    #[cold]
    pub(super) fn room_to_pull(&self, slot: &mut Slot) -> Option<Notice> {
        let marks = &self.shared.config.watermarks;
        if !slot.connection.may_write() || slot.connection.queued_bytes() > marks.low_bytes {
            return None;
        }
        slot.marks.producing = Producing::PullAsked;
        Some(Notice::Pull)
    }
}

impl Shard {
    pub(super) fn register_producer<P: Producer>(
        &self,
        token: Token,
        mut producer: P,
        kind: ProducerKind,
    ) -> std::result::Result<(), ProducerError> {
        let refused = type_name::<P>();
        let above_high = {
            let mut connections = self.inner.connections.borrow_mut();
            let mut table = self.inner.producers.table.borrow_mut();
            match connections.get_mut(token) {
                Some(_) if table.contains_key(&token) => {
                    let kept = table[&token].name;
                    return Err(ProducerError { kept, refused });
                }
                Some(slot) if slot.connection.may_write() => {
                    let registered = Registered { producer: None, name: refused, is_lost: false };
                    table.insert(token, registered);
                    slot.marks.producing = match kind {
                        ProducerKind::Push => Producing::Push,
                        ProducerKind::Pull => Producing::PullAsked,
                    };
                    Some(slot.connection.is_above_high())
                }
                _ => None,
            }
        };
        let Some(above_high) = above_high else {
            self.contain_producer(|| producer.stop_producing());
            self.drop_contained(producer);
            return Ok(());
        };
        self.put_producer_back(token, Box::new(producer));
        match kind {
            ProducerKind::Pull => self.tell_producer(token, Notice::Pull),
            ProducerKind::Push if above_high => self.tell_producer(token, Notice::Paused),
            ProducerKind::Push => {}
        }
        Ok(())
    }

    pub(super) fn unregister_producer(&self, token: Token) {
        let registered = self.inner.producers.table.borrow_mut().remove(&token);
        let ends = {
            let mut connections = self.inner.connections.borrow_mut();
            connections.get_mut(token).map(|slot| {
                slot.marks.producing = Producing::Nobody;
                std::mem::take(&mut slot.marks.ends_after_producer)
            })
        };
        match ends {
            None | Some(EndsAfterProducer::Nothing) => {}
            Some(EndsAfterProducer::ShutdownWrite) => self.begin_shutdown_write(token),
            Some(EndsAfterProducer::Close) => self.begin_close(token, CloseReason::Closed),
        }
        self.drop_contained(registered);
    }

    /// As the application asks for it: waits for a producer, unless there is none.
    pub(super) fn close_after_producer(&self, token: Token) {
        let inner = &self.inner;
        let kept = {
            let mut connections = inner.connections.borrow_mut();
            let slot = connections.get_mut(token).filter(|slot| slot.connection.is_open());
            match slot {
                Some(slot) if slot.marks.producing != Producing::Nobody => {
                    if slot.marks.ends_after_producer == EndsAfterProducer::Close {
                        return;
                    }
                    slot.marks.ends_after_producer = EndsAfterProducer::Close;
                    // Never given back: nothing is read any more.
                    slot.connection.read_holds += 1;
                    let kept = std::mem::replace(&mut slot.connection.input, Kept::new());
                    slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
                    Some(kept)
                }
                _ => None,
            }
        };
        match kept {
            None => self.begin_close(token, CloseReason::Closed),
            Some(_) if inner.active.get() == token => inner.dry.set(true),
            Some(_) => {}
        }
    }

    /// As `close_after_producer`, for our half alone.
    pub(super) fn shutdown_after_producer(&self, token: Token) {
        {
            let mut connections = self.inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token) else { return };
            if slot.marks.producing != Producing::Nobody && slot.connection.may_write() {
                if slot.marks.ends_after_producer == EndsAfterProducer::Nothing {
                    slot.marks.ends_after_producer = EndsAfterProducer::ShutdownWrite;
                }
                return;
            }
        }
        self.begin_shutdown_write(token);
    }

    fn begin_shutdown_write(&self, token: Token) {
        let inner = &self.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        if slot.connection.is_open() && slot.connection.write == WriteHalf::Open {
            slot.connection.write = WriteHalf::Finishing;
            if inner.active.get() == token {
                inner.staged_room.set(0);
            } else {
                inner.mark_slot_unsettled(token, slot);
            }
        }
    }

    /// Calls the producer for `notice`, if there is one that heeds it.
    pub(super) fn tell_producer(&self, token: Token, notice: Notice) {
        let Some(mut producer) = self.take_producer(token) else { return };
        let transport = Transport::new(self.clone(), token);
        let outcome = catch_unwind(AssertUnwindSafe(|| match notice {
            Notice::Paused => producer.pause_producing(&transport),
            Notice::Resumed | Notice::Pull => producer.resume_producing(&transport),
            Notice::WriteFinished => Ok(()),
        }));
        self.put_producer_back(token, producer);
        if !matches!(outcome, Ok(Ok(()))) {
            self.callback_failed(token, outcome);
        }
    }

    fn take_producer(&self, token: Token) -> Option<Box<dyn Producer>> {
        self.inner.producers.table.borrow_mut().get_mut(&token)?.producer.take()
    }

    /// Unless it has unregistered itself meanwhile, and perhaps registered another one; or has detached its connection.
    fn put_producer_back(&self, token: Token, producer: Box<dyn Producer>) {
        let mut unregistered = Some(producer);
        let mut is_lost = false;
        if let Some(registered) = self.inner.producers.table.borrow_mut().get_mut(&token)
            && registered.producer.is_none()
        {
            registered.producer = unregistered.take();
            is_lost = registered.is_lost;
        }
        if is_lost {
            self.stop_producer(token);
        }
        self.drop_contained(unregistered);
    }

    /// The connection is lost.
    #[cold]
    pub(super) fn stop_producer(&self, token: Token) {
        let registered = {
            let mut table = self.inner.producers.table.borrow_mut();
            match table.get_mut(&token) {
                // It runs right now, and is stopped when it returns.
                Some(running) if running.producer.is_none() => {
                    running.is_lost = true;
                    None
                }
                _ => table.remove(&token),
            }
        };
        if let Some(Registered { producer: Some(mut producer), .. }) = registered {
            self.contain_producer(|| producer.stop_producing());
            self.drop_contained(producer);
        }
    }

    fn contain_producer(&self, call: impl FnOnce()) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(call)) {
            self.panicked("a producer", payload);
        }
    }
}

impl Producer for Transport {
    fn resume_producing(&mut self, _consumer: &Transport) -> Result<()> {
        self.resume_reading();
        Ok(())
    }

    fn pause_producing(&mut self, _consumer: &Transport) -> Result<()> {
        self.pause_reading();
        Ok(())
    }

    fn stop_producing(&mut self) {
        self.close();
    }
}
