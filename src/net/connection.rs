//! One connection's bytes: its two buffers, and how far each half has come. Decides nothing about protocols.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::addr::Addr;
use crate::config::Watermarks;
use crate::error::{CloseReason, WriteError};
use crate::net::addr::SmallAddr;
use crate::net::descriptors::{Descriptors, Sent};
use crate::net::kept::Kept;
use crate::net::proxy_protocol::ProxyHeader;
use crate::net::wire::{SEALED_PIECE_BYTES, SealBuffer, Tls, Wire};
use crate::reactor::buffer::Output;
use crate::reactor::driver::{CloseKind, Driver};
use crate::reactor::token::Token;

/// Writes of this size and more go straight to the kernel when nothing waits before them: copying them first costs
/// an eighth of the whole request at 16 KiB.
pub(crate) const STRAIGHT_BYTES: usize = 8 * 1024;

/// Unsent descriptors that pause whoever writes, and those at which it goes on.
pub(crate) const DESCRIPTORS_HIGH: usize = 64;
pub(crate) const DESCRIPTORS_LOW: usize = 16;

/// The bytes of one connection and the state of its halves. An idle one owns no memory beyond itself.
pub(crate) struct Connection {
    /// With the descriptors of those that pass some.
    peer_addr: SmallAddr<Descriptors>,
    output: Output,
    /// What happens to the bytes on their way: above `output`, below `input`.
    pub(crate) wire: Wire,
    /// Received and not yet consumed by the application.
    pub(crate) input: Kept,
    pub(crate) phase: Phase,
    pub(crate) read: ReadHalf,
    pub(crate) write: WriteHalf,
    /// How many wishes there are not to read: the protocol's own pause, every hold, and output above the high watermark
    /// count one each.
    pub(crate) read_holds: u16,
    pub(crate) paused_by_protocol: bool,
    above_high_reading: AboveHighReading,
    /// Whether the driver has been told to receive.
    receiving: bool,
    mark: Mark,
}

/// Where output is, as its writer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Below,
    /// A writer was told that it is above high. It is owed a `Resumed`, also if the kernel has taken everything since.
    ToldAbove,
    /// Above the high watermark, and not yet back at low.
    AboveHigh,
}

/// What output above the high watermark does to reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AboveHighReading {
    /// Nothing.
    GoesOn,
    /// It will stop it.
    Stops,
    /// It has stopped it: one of the holds is its own.
    Stopped,
}

/// Where a connection is in its life.
#[derive(Debug)]
pub(crate) enum Phase {
    Open,
    /// We have finished: what is queued goes out, then the connection ends for this reason.
    Flushing(Box<CloseReason>),
    /// To be closed at the end of the turn.
    Ending(Box<CloseReason>, EndKind),
    /// Closed for the application. The socket waits for the peer's FIN, so that no answer is destroyed on its way.
    Lingering {
        discarded_bytes: usize,
        /// Not beyond the limit: then the peer is left to wait.
        reading: bool,
    },
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndKind {
    /// The socket is closed.
    Close(CloseKind),
    /// The socket waits for the peer's FIN first.
    Linger,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadHalf {
    Open,
    /// FIN has come and waits behind input that has not been delivered.
    FinishPending,
    /// FIN has come, and the application knows.
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteHalf {
    Open,
    /// FIN goes out after the queued output.
    Finishing,
    /// FIN is out.
    Finished,
}

/// What a flush has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// The kernel has it all.
    All,
    /// The kernel took some, and the rest waits.
    Some,
    /// The kernel took nothing, and the rest waits.
    Nothing,
    /// The rest waits for something that nobody tells of: it has to be tried again.
    Later,
    /// The rest waits for its turn, of which a timer tells: the peer is not to blame.
    Waits,
}

/// A crossing of a watermark that the writer has to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crossing {
    Paused,
    Resumed,
}

impl Connection {
    pub(crate) fn new(peer_addr: Addr) -> Self {
        Connection {
            peer_addr: peer_addr.into(),
            output: Output::new(),
            wire: Wire::Plain,
            input: Kept::new(),
            phase: Phase::Open,
            read: ReadHalf::Open,
            write: WriteHalf::Open,
            read_holds: 0,
            paused_by_protocol: false,
            above_high_reading: AboveHighReading::GoesOn,
            receiving: false,
            mark: Mark::Below,
        }
    }

    /// The other end, as a proxy has reported it if one has; if it has an IP address.
    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer_addr.ip()
    }

    pub(crate) fn peer(&self) -> Addr {
        (&self.peer_addr).into()
    }

    /// The other end of the socket.
    pub(crate) fn socket_peer(&self) -> Addr {
        self.peer_addr.of_socket()
    }

    /// What a proxy has said about it.
    pub(crate) fn proxy_header(&self) -> Option<&Arc<ProxyHeader>> {
        match &self.peer_addr {
            SmallAddr::Proxied(header) => Some(header),
            _ => None,
        }
    }

    pub(crate) fn set_proxy_header(&mut self, header: Arc<ProxyHeader>) {
        self.peer_addr = SmallAddr::Proxied(header);
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Whether the application may be given input now.
    pub(crate) fn may_read(&self) -> bool {
        self.is_open() && self.read_holds == 0
    }

    /// Whether the application may write.
    #[inline]
    pub(crate) fn may_write(&self) -> bool {
        self.is_open() && self.write == WriteHalf::Open
    }

    /// Bytes written and not taken by the kernel, as they are now: sealed, or not yet.
    #[inline]
    pub(crate) fn queued_bytes(&self) -> usize {
        self.output.len() + self.pending_bytes()
    }

    #[inline]
    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty() || self.pending_bytes() > 0
    }

    /// Plaintext that is not sealed yet.
    #[inline]
    fn pending_bytes(&self) -> usize {
        self.tls().map_or(0, Tls::pending_bytes)
    }

    #[inline]
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.wire.tls()
    }

    #[inline]
    pub(crate) fn tls_mut(&mut self) -> Option<&mut Tls> {
        self.wire.tls_mut()
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls().is_some_and(Tls::is_handshaking)
    }

    /// Whether output, or the end of it, waits for a handshake before it can go anywhere. A connection that is closed with
    /// nothing to send waits for none.
    pub(crate) fn waits_for_handshake(&self) -> bool {
        self.is_handshaking() && (self.pending_bytes() > 0 || self.is_open())
    }

    /// Puts the ciphertext of `staged`, and of what waits before it, in its place; with that the end of all that is
    /// written, once we have finished. `spare` lends its memory. Says how much was thrown away, since nothing more can be
    /// sealed.
    pub(crate) fn seal(
        &mut self,
        staged: &mut Vec<u8>,
        spare: &mut SealBuffer,
    ) -> Result<usize, CloseReason> {
        let finish = match &self.phase {
            Phase::Open => self.write == WriteHalf::Finishing,
            // Only what is complete is called so: else the peer is to see that the end may be missing. Who was idle had
            // said all that it meant to say.
            Phase::Flushing(reason) => reason.is_clean() || matches!(**reason, CloseReason::Idle { .. }),
            Phase::Ending(..) | Phase::Lingering { .. } => return Ok(0),
        };
        match self.wire.tls_mut() {
            Some(tls) => tls.seal(staged, finish, spare),
            None => Ok(0),
        }
    }

    /// Checks that `len` more bytes may be written while `staged` bytes wait to be flushed.
    pub(crate) fn check_write(
        &self,
        staged: usize,
        len: usize,
        marks: &Watermarks,
    ) -> Result<(), WriteError> {
        if !self.may_write() {
            return Err(WriteError::Closed);
        }
        if self.queued_bytes() + staged + len > marks.cap_bytes {
            return Err(WriteError::Full);
        }
        Ok(())
    }

    /// Writes `bytes` straight to the kernel if that is cheaper than copying them, and says how many it took.
    /// Nothing may be staged. What is to be sealed is taken whole, also where it has to wait behind what was sealed before;
    /// `spare` lends its memory for it.
    pub(crate) fn send_straight(
        &mut self,
        driver: &mut dyn Driver,
        token: Token,
        bytes: &[u8],
        spare: &mut SealBuffer,
    ) -> Result<usize, CloseReason> {
        if bytes.len() < STRAIGHT_BYTES || self.descriptors().is_some() {
            return Ok(0);
        }
        let not_sent = |source| CloseReason::Os { call: "send", source };
        let Some(tls) = self.wire.tls_mut() else {
            let waits = !self.output.is_empty();
            return if waits { Ok(0) } else { driver.try_send(token, bytes).map_err(not_sent) };
        };
        if !tls.seals_straight() {
            return Ok(0);
        }
        for piece in bytes.chunks(SEALED_PIECE_BYTES) {
            tls.seal_straight(piece, spare)?;
            let sealed = spare.filled();
            let waits = !self.output.is_empty();
            let sent = if waits { 0 } else { driver.try_send(token, sealed).map_err(not_sent)? };
            self.output.push(&sealed[sent..]);
        }
        spare.clear();
        Ok(bytes.len())
    }

    /// Queues `bytes` behind what waits.
    pub(crate) fn queue(&mut self, bytes: &[u8]) {
        match self.wire.tls_mut() {
            None => self.output.push(bytes),
            Some(tls) => tls.queue(bytes),
        }
    }

    /// Queues bytes that are as the peer is to have them.
    pub(crate) fn queue_sealed(&mut self, bytes: &[u8]) {
        self.output.push(bytes);
    }

    /// Hands `staged`, and what waits before it, to the driver.
    #[inline]
    pub(crate) fn flush(
        &mut self,
        driver: &mut dyn Driver,
        token: Token,
        staged: &[u8],
    ) -> io::Result<Flushed> {
        let before = self.output.len() + staged.len();
        if self.descriptors().is_some() {
            return self.flush_with_descriptors(driver, token, staged);
        }
        if self.output.is_empty() {
            if staged.is_empty() {
                return Ok(Flushed::All);
            }
            let sent = driver.try_send(token, staged)?;
            if sent == staged.len() {
                return Ok(Flushed::All);
            }
            self.output.push(&staged[sent..]);
        } else {
            self.output.push(staged);
        }
        driver.submit(token, &mut self.output)?;
        Ok(self.flushed(before))
    }

    fn flushed(&self, before: usize) -> Flushed {
        match self.output.len() {
            0 => Flushed::All,
            after if after < before => Flushed::Some,
            _ => Flushed::Nothing,
        }
    }

    #[cold]
    fn flush_with_descriptors(
        &mut self,
        driver: &mut dyn Driver,
        token: Token,
        staged: &[u8],
    ) -> io::Result<Flushed> {
        self.output.push(staged);
        let before = self.output.len();
        let Some(descriptors) = self.peer_addr.beside_mut() else { unreachable!("looked at by the caller") };
        match descriptors.submit(driver, token, &mut self.output)? {
            Sent::Offered => Ok(self.flushed(before)),
            Sent::TooManyUnderWay => Ok(Flushed::Later),
        }
    }

    /// Queues a descriptor: it travels with the next byte that is written. What is staged has been queued before.
    pub(crate) fn queue_descriptor(&mut self, descriptor: OwnedFd) {
        let bytes = self.output.len();
        if let Some(descriptors) = self.make_descriptors() {
            descriptors.push(bytes, descriptor);
        }
    }

    #[inline]
    pub(crate) fn descriptors(&self) -> Option<&Descriptors> {
        self.peer_addr.beside()
    }

    pub(crate) fn descriptors_mut(&mut self) -> Option<&mut Descriptors> {
        if self.peer_addr.beside().is_some() { self.peer_addr.beside_mut() } else { None }
    }

    /// As `descriptors_mut`, made if there are none yet; `None` for a connection that can pass none.
    pub(crate) fn make_descriptors(&mut self) -> Option<&mut Descriptors> {
        self.peer_addr.place().map(Option::get_or_insert_default)
    }

    pub(crate) fn take_descriptors(&mut self) -> Option<Descriptors> {
        if self.peer_addr.beside().is_some() { self.peer_addr.place().and_then(Option::take) } else { None }
    }

    pub(crate) fn set_descriptors(&mut self, descriptors: Descriptors) {
        if let Some(place) = self.peer_addr.place() {
            *place = Some(descriptors);
        }
    }

    /// Whether descriptors have come that nobody has taken. Bytes that came with them wait as well.
    pub(crate) fn has_unread_descriptors(&self) -> bool {
        self.descriptors().is_some_and(|descriptors| !descriptors.unread.is_empty())
    }

    /// Descriptors that have not been sent.
    pub(crate) fn unsent_descriptors(&self) -> usize {
        self.descriptors().map_or(0, |descriptors| descriptors.unsent())
    }

    /// Bytes that are as the peer is to have them, and not taken by the kernel.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.output.len()
    }

    /// Hands the first bytes of what waits to the driver, at most `limit_bytes`. Says how many it was offered, and how many
    /// it took.
    pub(crate) fn send_first(
        &mut self,
        driver: &mut dyn Driver,
        token: Token,
        limit_bytes: usize,
    ) -> io::Result<(usize, usize)> {
        let mut first = [io::IoSlice::new(&[])];
        self.output.slices(&mut first);
        let offered = &first[0][..limit_bytes.min(first[0].len())];
        let (offered_bytes, sent) = (offered.len(), driver.try_send(token, offered)?);
        self.output.advance(sent);
        Ok((offered_bytes, sent))
    }

    /// Throws unsent output away; says how much it was. With TLS nothing can be sent after that: a record is missing.
    pub(crate) fn discard_output(&mut self) -> usize {
        let mut bytes = self.output.len();
        self.output = Output::new();
        if let Some(tls) = self.tls_mut() {
            bytes += tls.discard_pending();
            tls.cut_off();
        }
        drop(self.take_descriptors());
        bytes
    }

    /// A writer is told now that it is above the high watermark. Reading may be held from here on until
    /// [`Connection::release_reading`].
    pub(crate) fn tell_above_high(&mut self) {
        if self.mark == Mark::Below {
            self.mark = Mark::ToldAbove;
        }
        self.hold_reading();
    }

    fn hold_reading(&mut self) {
        if self.above_high_reading == AboveHighReading::Stops {
            self.above_high_reading = AboveHighReading::Stopped;
            self.read_holds += 1;
        }
    }

    /// Output no longer holds reading. Says whether it did.
    pub(crate) fn release_reading(&mut self) -> bool {
        let held = self.above_high_reading == AboveHighReading::Stopped;
        if held {
            self.above_high_reading = AboveHighReading::Stops;
            self.read_holds -= 1;
        }
        held
    }

    /// Whether reading goes on while output is above the high watermark. Says whether that has ended a hold.
    pub(crate) fn set_reads_above_high(&mut self, on: bool) -> bool {
        if on {
            let released = self.release_reading();
            self.above_high_reading = AboveHighReading::GoesOn;
            return released;
        }
        if self.above_high_reading == AboveHighReading::GoesOn {
            self.above_high_reading = AboveHighReading::Stops;
        }
        // Once FIN is out there is no output that could end a hold.
        if self.mark != Mark::Below && self.write != WriteHalf::Finished {
            self.hold_reading();
        }
        false
    }

    /// Whether the writer was told that output is above high, and not yet that it is back at low.
    pub(crate) fn is_above_high(&self) -> bool {
        self.mark == Mark::AboveHigh
    }

    /// Looks whether the watermark was crossed since the last look.
    #[inline]
    pub(crate) fn crossing(&mut self, marks: &Watermarks) -> Option<Crossing> {
        let queued = self.queued_bytes();
        match self.mark {
            // Whoever has queued too many descriptors was told so.
            Mark::Below if queued <= marks.high_bytes => None,
            Mark::Below | Mark::ToldAbove => {
                self.mark = Mark::AboveHigh;
                Some(Crossing::Paused)
            }
            Mark::AboveHigh if queued <= marks.low_bytes && self.unsent_descriptors() <= DESCRIPTORS_LOW => {
                self.mark = Mark::Below;
                Some(Crossing::Resumed)
            }
            Mark::AboveHigh => None,
        }
    }

    /// Tells the driver whether to receive, if it does not know yet.
    #[inline]
    pub(crate) fn update_receiving(&mut self, driver: &mut dyn Driver, token: Token) {
        let wanted = match self.phase {
            Phase::Open => self.read == ReadHalf::Open && self.wants_input(),
            Phase::Flushing(_) if self.waits_for_handshake() => self.wants_input(),
            Phase::Lingering { reading, .. } => reading,
            Phase::Flushing(_) | Phase::Ending(..) => false,
        };
        if wanted != self.receiving {
            self.receiving = wanted;
            driver.receive(token, wanted);
        }
    }

    /// Whether input is to come while it may: what the application holds does not hold a handshake.
    #[inline]
    fn wants_input(&self) -> bool {
        match self.tls() {
            Some(tls) if tls.is_handshaking() => !tls.queued,
            _ => self.read_holds == 0,
        }
    }

    /// All that waits to be sent, for a connection that moves elsewhere.
    pub(crate) fn unsent(&self) -> Vec<u8> {
        self.output.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        let bytes = size_of::<Connection>();
        assert!(bytes <= 64, "{bytes} bytes");
    }

    #[test]
    fn a_watermark_is_crossed_once_each_way() {
        let marks = Watermarks { high_bytes: 10, low_bytes: 4, cap_bytes: 20 };
        let mut connection = Connection::new(SocketAddr::from(([127, 0, 0, 1], 1)).into());
        connection.queue(&[0; 11]);
        assert_eq!(connection.crossing(&marks), Some(Crossing::Paused));
        connection.queue(&[0; 5]);
        assert_eq!(connection.crossing(&marks), None);
        assert_eq!(connection.check_write(0, 5, &marks), Err(WriteError::Full));
        connection.output.advance(11);
        assert_eq!(connection.crossing(&marks), None, "not yet at low");
        connection.output.advance(1);
        assert_eq!(connection.crossing(&marks), Some(Crossing::Resumed));
        assert_eq!(connection.crossing(&marks), None);
    }

    #[test]
    fn output_holds_reading_once_and_beside_the_other_holds() {
        let mut connection = Connection::new(SocketAddr::from(([127, 0, 0, 1], 1)).into());
        connection.tell_above_high();
        assert!(connection.may_read(), "nobody has asked for it");
        assert!(!connection.set_reads_above_high(false));
        assert!(!connection.may_read(), "it is above high already");
        connection.tell_above_high();
        connection.read_holds += 1;
        assert!(connection.release_reading());
        assert!(!connection.release_reading());
        assert_eq!(connection.read_holds, 1, "the other hold is still there");
        connection.tell_above_high();
        assert!(connection.set_reads_above_high(true));
        connection.tell_above_high();
        assert_eq!(connection.read_holds, 1);
    }

    #[test]
    fn a_crossing_that_a_writer_was_told_of_counts_though_the_kernel_took_everything() {
        let marks = Watermarks { high_bytes: 10, low_bytes: 4, cap_bytes: 20 };
        let mut connection = Connection::new(SocketAddr::from(([127, 0, 0, 1], 1)).into());
        connection.tell_above_high();
        assert_eq!(connection.crossing(&marks), Some(Crossing::Paused));
        connection.tell_above_high();
        assert_eq!(connection.crossing(&marks), Some(Crossing::Resumed));
        assert_eq!(connection.crossing(&marks), None);
    }
}
