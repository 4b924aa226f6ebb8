//! Descriptors on their way through a UNIX connection: with which byte each one leaves, and those that came and are not
//! taken yet. Only connections that pass some have one of these.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use crate::reactor::buffer::Output;
use crate::reactor::driver::Driver;
use crate::reactor::token::Token;
use crate::sys::unix::{DESCRIPTORS_PER_MESSAGE, is_short_of_flights};

/// What one connection has of them. Dropping it closes them.
#[derive(Default)]
pub(crate) struct Descriptors {
    /// To be sent: each with the number of bytes that leave before it, counted from the first that waits.
    unsent: VecDeque<(usize, OwnedFd)>,
    /// Received, and not taken.
    pub(crate) unread: VecDeque<OwnedFd>,
    /// The driver has been asked to tell of those that come.
    pub(crate) received: bool,
    /// A time is set at which sending is tried again.
    pub(crate) retrying: bool,
    /// So many have come that reading is held.
    pub(crate) holds_reading: bool,
}

/// What sending has come to.
pub(crate) enum Sent {
    /// The kernel has taken what it wants for now.
    Offered,
    /// Too many descriptors of this user are under way. Nothing tells when that ends.
    TooManyUnderWay,
}

impl Descriptors {
    pub(crate) fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Queues one behind `bytes` that wait to be sent: it leaves with the next one that is written.
    pub(crate) fn push(&mut self, bytes: usize, descriptor: OwnedFd) {
        self.unsent.push_back((bytes, descriptor));
    }

    /// Offers `output` to the driver, each descriptor with its byte. One whose byte has not been written waits.
    pub(crate) fn submit(
        &mut self,
        driver: &mut dyn Driver,
        token: Token,
        output: &mut Output,
    ) -> io::Result<Sent> {
        while !output.is_empty() {
            let Some((bytes_before, _)) = self.unsent.front() else {
                driver.submit(token, output)?;
                return Ok(Sent::Offered);
            };
            let bytes_before = *bytes_before;
            let mut slices = [IoSlice::new(&[])];
            output.slices(&mut slices);
            let offered: &[u8] = &slices[0];
            let (offered_bytes, sent_bytes) = if bytes_before > 0 {
                let offered = &offered[..offered.len().min(bytes_before)];
                (offered.len(), driver.try_send(token, offered)?)
            } else {
                // All that are due at this byte, and only bytes before the next ones.
                let due = self.unsent.iter().take_while(|(bytes, _)| *bytes == 0);
                let count = due.count().min(DESCRIPTORS_PER_MESSAGE);
                let until = match self.unsent.get(count) {
                    // More than one message takes: they need a byte of their own.
                    Some((0, _)) => 1,
                    Some((bytes, _)) => *bytes,
                    None => offered.len(),
                };
                let offered = &offered[..offered.len().min(until)];
                let batch: Vec<OwnedFd> =
                    self.unsent.drain(..count).map(|(_, descriptor)| descriptor).collect();
                let sent = driver.send_descriptors(token, offered, &batch);
                if !matches!(sent, Ok(1..)) {
                    for descriptor in batch.into_iter().rev() {
                        self.unsent.push_front((0, descriptor));
                    }
                }
                match sent {
                    Err(error) if is_short_of_flights(&error) => return Ok(Sent::TooManyUnderWay),
                    sent => (offered.len(), sent?),
                }
            };
            output.advance(sent_bytes);
            for (bytes, _) in &mut self.unsent {
                *bytes = bytes.saturating_sub(sent_bytes);
            }
            if sent_bytes < offered_bytes {
                return Ok(Sent::Offered);
            }
        }
        Ok(Sent::Offered)
    }
}
