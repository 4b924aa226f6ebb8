//! Moving all that one stream receives into another one, at the pace of the slower side.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::shard::handles::stream_core::{StreamCore, WritesAfter};
use crate::shard::handles::tcp_stream::{Chunk, TcpStream};

/// Writes all that `from` receives to `to`, until the end of input; says how many bytes that was. `to` stays open.
///
/// At most one chunk is in hand: while `to` has more than the high watermark unsent, `from` is not read, and its peer is
/// held back by TCP. While it waits for input it holds no buffer.
///
/// A drain of the shard does not end the input while this runs, whatever [`TcpStream::set_ends_on_drain`] said: whoever is
/// behind `to` would take half for the whole. What has not ended by the drain's deadline is reset.
///
/// ```
/// use shardwise::{Result, TcpStream, copy};
///
/// /// An echo.
/// async fn first_into_second(mut first: TcpStream, mut second: TcpStream) -> Result<u64> {
///     let bytes = copy(&mut first, &mut second).await?;
///     second.shutdown_write();
///     Ok(bytes)
/// }
/// ```
///
/// # Errors
/// Either connection broke, also while the other one is silent. What was copied before that may be unsent.
/// # Cancel safety
/// Not cancel safe: a chunk that was read and not yet written is lost.
pub async fn copy(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<u64> {
    let _whole = Whole::begin(from);
    let mut direction = Direction::default();
    poll_fn(|context| direction.poll(from, to, context)).await?;
    Ok(direction.bytes)
}

/// Joins two streams: [`copy`] both ways at once. The end of one's input becomes the end of the other's output; ready when
/// both have ended, with the number of bytes from `first` to `second` and back.
///
/// ```
/// use shardwise::{Result, TcpStream, copy_bidirectional};
///
/// async fn forward(mut client: TcpStream) -> Result<()> {
///     let mut upstream = TcpStream::connect("127.0.0.1:8080").await?;
///     copy_bidirectional(&mut client, &mut upstream).await?;
///     Ok(())
/// }
/// ```
///
/// # Errors
/// Either connection broke; the first error, at once. Dropping both streams then closes them.
/// # Cancel safety
/// As [`copy`].
pub async fn copy_bidirectional(first: &mut TcpStream, second: &mut TcpStream) -> io::Result<(u64, u64)> {
    let _whole = [Whole::begin(first), Whole::begin(second)];
    let (mut there, mut back) = (Direction::default(), Direction::default());
    poll_fn(|context| {
        let there = there.poll_to_end(first, second, context)?;
        let back = back.poll_to_end(second, first, context)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
    })
    .await?;
    Ok((there.bytes, back.bytes))
}

/// While this is there, a drain does not end the stream's input.
struct Whole {
    core: Rc<StreamCore>,
    was_within_frame: bool,
}

impl Whole {
    fn begin(stream: &TcpStream) -> Whole {
        let core = Rc::clone(stream.core());
        let was_within_frame = core.set_within_frame(true);
        Whole { core, was_within_frame }
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.core.set_within_frame(self.was_within_frame);
    }
}

/// How far one direction has come.
#[derive(Default)]
struct Direction {
    /// Read, and not yet written from this byte on.
    in_hand: Option<(Chunk, usize)>,
    bytes: u64,
    ended: bool,
}

impl Direction {
    fn poll(
        &mut self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some((chunk, written)) = &mut self.in_hand {
                while *written < chunk.len() {
                    let count = ready!(to.poll_write(context, &chunk[*written..]))?;
                    *written += count;
                    self.bytes += count as u64;
                }
                self.in_hand = None;
            }
            match from.poll_read_chunk(context)? {
                Poll::Ready(Some(chunk)) => self.in_hand = Some((chunk, 0)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    // A target that breaks is no news to a source that is silent.
                    to.core().check_broken()?;
                    to.core().wait_to_write(context, WritesAfter::TheEnd);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Passes the end on, once.
    fn poll_to_end(
        &mut self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ended {
            ready!(self.poll(from, to, context))?;
            self.ended = true;
            to.shutdown_write();
        }
        Poll::Ready(Ok(()))
    }
}
