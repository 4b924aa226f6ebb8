//! Cuts a stream of bytes into frames, for protocols and for tasks. Does not know what a frame says.
//!
//! A codec is an incremental [`Decoder`] and an [`Encoder`]. The decoder looks at the bytes that have come and says
//! where the first frame lies and how many bytes it used, or that it needs more; it holds no bytes itself, so a frame
//! is lent from where it was received. The same decoder serves both styles:
//!
//! | style | frames come from | what is left unread |
//! |---|---|---|
//! | [`Protocol`](crate::Protocol) | [`Decoder::next`] on its [`Input`] | stays in the connection |
//! | task | [`Framed::next`] on any [`ReadChunks`] | stays in the [`Framed`] |
//!
//! | codec | a frame | limit unless changed |
//! |---|---|---|
//! | [`Lines`] | ends with CRLF, or LF, or any delimiter | 16,384 bytes |
//! | [`Netstrings`] | `5:hello,` | 99,999 bytes |
//! | [`LengthPrefixed`] | 1, 2 or 4 bytes of length, then the frame | 99,999 bytes |
//!
//! A frame over the limit is an error as soon as that is certain: a declared length is refused before any byte of the
//! frame has come, and nothing is ever allocated for one. After an error the decoder stands still and says the same
//! again; close the connection, as a [`Protocol`](crate::Protocol) does by returning it.
//!
//! # Raw bytes
//! There is no raw mode to switch: whoever wants the next bytes as they are, in the middle of a buffer too, asks for
//! them with [`Decoder::take_raw`] or [`Framed::next_raw`], and for a frame after that.
//!
//! # Pausing
//! A protocol that pauses reading or closes in the middle of a buffer gets no further frame, since its input runs dry;
//! once it resumes, the rest comes as if it had just been received.
//!
//! # Drain
//! When the shard drains, a [`Framed`] that has half a frame waits for the rest, until the drain deadline at the most; it
//! does not wait for raw bytes, see [`Framed::next_raw`].
//!
//! A protocol is closed by [`Protocol::draining`](crate::Protocol::draining) unless it overrides that: whole frames that
//! had come are served, and half a frame at the end is thrown away. One that is to serve it stays open until it has:
//! ```
//! use shardwise::framing::{Decoder, Lines};
//! use shardwise::{Input, Protocol, Result, Transport};
//!
//! #[derive(Default)]
//! struct Finishing {
//!     lines: Lines,
//!     /// Half a line has come.
//!     within_frame: bool,
//!     draining: bool,
//! }
//!
//! impl Protocol for Finishing {
//!     fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
//!         while let Some(line) = self.lines.next(input)? {
//!             transport.write(line)?;
//!         }
//!         self.within_frame = !input.bytes().is_empty();
//!         if self.draining && !self.within_frame {
//!             transport.close();
//!         }
//!         Ok(())
//!     }
//!
//!     fn draining(&mut self, transport: &Transport) -> Result<()> {
//!         self.draining = true;
//!         if !self.within_frame {
//!             transport.close();
//!         }
//!         Ok(())
//!     }
//! }
//! ```
//! An input that was paused shows nothing, so a protocol that pauses in the middle counts that as within a frame, too.
//!
//! # Examples
//! A line protocol:
//! ```
//! use shardwise::framing::{Decoder, Encoder, Lines};
//! use shardwise::{Input, Protocol, Result, Transport};
//!
//! #[derive(Default)]
//! struct Greeter {
//!     lines: Lines,
//! }
//!
//! impl Protocol for Greeter {
//!     fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
//!         while let Some(name) = self.lines.next(input)? {
//!             let mut answer = Vec::new();
//!             self.lines.encode(&[b"hello, ", name].concat(), &mut answer)?;
//!             transport.write(&answer)?;
//!         }
//!         Ok(())
//!     }
//! }
//! ```
//! The same as a task:
//! ```
//! use shardwise::framing::{Framed, Lines};
//! use shardwise::{Result, TcpStream};
//!
//! async fn greet(stream: TcpStream) -> Result<()> {
//!     let mut lines = Framed::new(stream, Lines::default());
//!     while let Some(name) = lines.next().await? {
//!         let answer = [b"hello, ", name].concat();
//!         lines.send(&answer).await?;
//!     }
//!     Ok(())
//! }
//! ```

mod error;
mod framed;
mod length_prefixed;
mod lines;
mod netstrings;
mod stream;
#[cfg(test)]
mod test_kit;

use std::error::Error;
use std::ops::Range;

pub use self::error::{EncodeError, FrameError, ReceiveError, SendError};
pub use self::framed::{Framed, FramedParts};
pub use self::length_prefixed::LengthPrefixed;
pub use self::lines::Lines;
pub use self::netstrings::Netstrings;
pub use self::stream::{ReadChunks, WriteBytes};
use crate::net::input::Input;

/// Where the first frame lies among the bytes that a decoder was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The frame itself, without its framing.
    pub frame: Range<usize>,
    /// How many bytes, from the first on, belong to it and its framing; at least 1.
    pub used: usize,
}

/// Finds the borders of frames.
///
/// What it finds depends on the bytes alone, not on the pieces in which they come.
pub trait Decoder {
    /// What a peer can do wrong.
    type Error: Error + Send + Sync + 'static;

    /// Looks for the first frame in `bytes`: all that has come and is not used, oldest first. `None` needs more.
    ///
    /// After `None` it is shown the same bytes again with more behind them, so it may remember how far it has looked,
    /// until [`Decoder::restart`]. After a frame it is shown what follows the used bytes.
    ///
    /// # Errors
    /// The bytes are no frame, or one that is too long. The bytes count as not used.
    fn decode(&mut self, bytes: &[u8]) -> Result<Option<Found>, Self::Error>;

    /// The most bytes of one frame with its framing. Shown as many, `decode` does not ask for more: this bounds what
    /// is kept for a connection.
    fn frame_bytes_max(&self) -> usize;

    /// Others have taken bytes: what comes next begins elsewhere.
    fn restart(&mut self) {}

    /// Takes the next whole frame out of `input`, lent from there; `None` leaves what there is of one.
    ///
    /// Whoever consumes bytes of the input by other means than this and [`Decoder::take_raw`] calls
    /// [`Decoder::restart`].
    ///
    /// # Errors
    /// The peer sent something that is no frame, or one that is too long. Nothing is consumed.
    fn next<'a>(&mut self, input: &mut Input<'a>) -> Result<Option<&'a [u8]>, Self::Error> {
        let bytes = input.bytes();
        // An input that ran dry shows nothing, though its bytes will come again.
        if bytes.is_empty() {
            return Ok(None);
        }
        let Some(found) = self.decode(bytes)? else { return Ok(None) };
        assert!(found.used > 0, "a frame uses at least one byte");
        input.consume(found.used);
        Ok(Some(&bytes[found.frame]))
    }

    /// Takes bytes out of `input` as they are: all there are, or the first `at_most`.
    fn take_raw<'a>(&mut self, input: &mut Input<'a>, at_most: usize) -> &'a [u8] {
        let bytes = input.bytes();
        let bytes = &bytes[..bytes.len().min(at_most)];
        if !bytes.is_empty() {
            self.restart();
            input.consume(bytes.len());
        }
        bytes
    }
}

/// Writes frames.
pub trait Encoder {
    /// Why a frame cannot be written.
    type Error: Error + Send + Sync + 'static;

    /// Appends `frame`, with its framing, to `output`.
    ///
    /// # Errors
    /// The frame cannot be written so that the peer reads the same: it is too long, or holds its own end. `output` is
    /// as it was.
    fn encode(&self, frame: &[u8], output: &mut Vec<u8>) -> Result<(), Self::Error>;
}

/// The most bytes of a frame whose length is announced, unless changed: as Twisted has it, and small enough that a
/// thousand peers which announce much and send slowly cost 100 MB, not more.
const LENGTH_BYTES_MAX: usize = 99_999;
