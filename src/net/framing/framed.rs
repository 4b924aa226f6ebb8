//! A stream read and written by frames, for tasks. What a frame is, its codec says.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use super::{Decoder, Encoder, ReadChunks, ReceiveError, SendError, WriteBytes};

/// A stream and the codec of its frames.
///
/// Frames are lent from where they were received: from the chunk of the stream that holds them, or, when they came in
/// several, from a buffer of their own, of at most one frame and one chunk. Waiting between frames it owns no buffer.
///
/// [`Framed::next`] and [`Framed::send`] may be used in turns in a `select`, as neither loses anything when dropped.
///
/// When a shard drains, a stream that waits between frames reports the end of its input, and [`Framed::next`] is
/// `Ok(None)`; within a frame it goes on until the rest has come, or the drain deadline.
///
/// ```
/// use shardwise::framing::{Framed, LengthPrefixed};
/// use shardwise::{Result, TcpStream};
///
/// /// Gives back each message it gets.
/// async fn mirror(stream: TcpStream) -> Result<()> {
///     let mut messages = Framed::new(stream, LengthPrefixed::u32());
///     while let Some(message) = messages.next().await? {
///         let answer = message.to_vec();
///         messages.send(&answer).await?;
///     }
///     Ok(())
/// }
/// ```
pub struct Framed<S: ReadChunks, C> {
    stream: S,
    codec: C,
    unread: Unread<S::Chunk>,
    /// Encoded, and not yet taken by the stream.
    unsent: Vec<u8>,
    /// How many bytes of `unsent` the stream has taken.
    sent: usize,
}

/// What a [`Framed`] is made of.
#[non_exhaustive]
pub struct FramedParts<S, C> {
    /// The stream.
    pub stream: S,
    /// The codec.
    pub codec: C,
    /// Received, and part of no frame yet.
    pub unread: Vec<u8>,
    /// The rest of a frame whose `send` was dropped half-way.
    pub unsent: Vec<u8>,
}

/// Received bytes that are part of no frame yet.
enum Unread<C> {
    Nothing,
    /// In the chunk they came in, from `at` on.
    Lent {
        chunk: C,
        at: usize,
    },
    /// Put together from several chunks; from `at` on.
    Kept {
        bytes: Vec<u8>,
        at: usize,
    },
}

impl<S: ReadChunks, C> Framed<S, C> {
    /// Reads and writes `stream` by the frames of `codec`.
    pub fn new(stream: S, codec: C) -> Self {
        Framed { stream, codec, unread: Unread::Nothing, unsent: Vec::new(), sent: 0 }
    }

    /// The stream. Bytes that are read from it by other means are missing here.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// The stream. Bytes that are read from it by other means are missing here.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The codec.
    pub fn codec(&self) -> &C {
        &self.codec
    }

    /// The codec, to change its limits between frames.
    pub fn codec_mut(&mut self) -> &mut C {
        &mut self.codec
    }

    /// What was received and is part of no frame yet: after [`ReceiveError::Incomplete`], for one, the last line
    /// without its end.
    pub fn unread(&self) -> &[u8] {
        self.unread.bytes()
    }

    /// Goes on with other frames: what was received and is part of no frame yet is read by `codec`.
    ///
    /// After a command that asks for encryption nothing may be unread: look at [`Framed::unread`] before.
    pub fn with_codec<D>(self, codec: D) -> Framed<S, D> {
        let Framed { stream, unread, unsent, sent, .. } = self;
        Framed { stream, codec, unread, unsent, sent }
    }

    /// The stream, the codec, and the bytes on their way.
    pub fn into_parts(mut self) -> FramedParts<S, C> {
        self.unsent.drain(..self.sent);
        self.stream.set_within_frame(false);
        let unread = self.unread.bytes().to_vec();
        FramedParts { stream: self.stream, codec: self.codec, unread, unsent: self.unsent }
    }

    /// The next bytes as they are, at least one and at most `at_most`; `None` is the end of input, or that none are
    /// wanted. Frames go on behind them.
    ///
    /// A drain ends this wait, also in the middle of a body: how much of one is still to come, only the caller knows. So
    /// whoever has begun to read one, and is to have it whole, switches
    /// [`TcpStream::set_ends_on_drain`](crate::TcpStream::set_ends_on_drain) off before it, and on again behind it:
    ///
    /// ```
    /// # use shardwise::framing::{Framed, Lines};
    /// # use shardwise::{Result, TcpStream};
    /// async fn read_body(lines: &mut Framed<TcpStream, Lines>, mut left: usize) -> Result<Vec<u8>> {
    ///     let mut body = Vec::new();
    ///     lines.stream_mut().set_ends_on_drain(false);
    ///     while left > 0 {
    ///         let Some(raw) = lines.next_raw(left).await? else { return Err("half a body".into()) };
    ///         body.extend_from_slice(raw);
    ///         left -= raw.len();
    ///     }
    ///     lines.stream_mut().set_ends_on_drain(true);
    ///     Ok(body)
    /// }
    /// ```
    ///
    /// # Errors
    /// The stream broke.
    /// # Cancel safety
    /// No bytes are lost when the future is dropped.
    pub async fn next_raw(&mut self, at_most: usize) -> io::Result<Option<&[u8]>>
    where
        C: Decoder,
    {
        if at_most == 0 {
            return Ok(None);
        }
        let there = poll_fn(|context| {
            if self.unread.bytes().is_empty() {
                return self.poll_fill(context);
            }
            Poll::Ready(Ok(true))
        });
        if !there.await? {
            return Ok(None);
        }
        self.codec.restart();
        let count = self.unread.bytes().len().min(at_most);
        let taken = self.unread.advance(count);
        Ok(Some(self.unread.taken(taken..taken + count)))
    }

    /// Waits for more bytes behind those that are unread; false is the end of input.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // A lent buffer of the shard is not kept while a task waits.
        self.unread.keep();
        self.stream.set_within_frame(!self.unread.bytes().is_empty());
        let chunk = ready!(self.stream.poll_read_chunk(context))?;
        Poll::Ready(Ok(match chunk {
            Some(chunk) => {
                self.unread.push(chunk);
                true
            }
            None => false,
        }))
    }
}

impl<S: ReadChunks, C: Decoder> Framed<S, C> {
    /// The next frame, lent until the next call. `None` is the end of input behind a whole frame.
    ///
    /// # Errors
    /// [`ReceiveError`]: what the peer sent is no frame, or ended within one, or the stream broke. Asked again it says
    /// the same; [`Framed::next_raw`] still gives the bytes.
    /// # Cancel safety
    /// No bytes are lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, ReceiveError<C::Error>> {
        let frame = poll_fn(|context| self.poll_find(context)).await?;
        Ok(frame.map(|range| self.unread.taken(range)))
    }

    /// Takes the next frame and says where it lies.
    #[allow(clippy::type_complexity, reason = "the error of a codec is part of it")]
    fn poll_find(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Range<usize>>, ReceiveError<C::Error>>> {
        loop {
            let bytes = self.unread.bytes();
            if !bytes.is_empty() {
                if let Some(found) = self.codec.decode(bytes).map_err(ReceiveError::Frame)? {
                    assert!(found.used > 0, "a frame uses at least one byte");
                    let begin = self.unread.advance(found.used);
                    return Poll::Ready(Ok(Some(begin + found.frame.start..begin + found.frame.end)));
                }
                let limit_bytes = self.codec.frame_bytes_max();
                if bytes.len() >= limit_bytes {
                    return Poll::Ready(Err(ReceiveError::Undecided { limit_bytes }));
                }
            }
            if !ready!(self.poll_fill(context)).map_err(ReceiveError::Io)? {
                return Poll::Ready(match self.unread.bytes().len() {
                    0 => Ok(None),
                    unread_bytes => Err(ReceiveError::Incomplete { unread_bytes }),
                });
            }
        }
    }
}

impl<S: ReadChunks + WriteBytes, C: Encoder> Framed<S, C> {
    /// Sends `frame`; waits while the stream takes no more. Ready means taken by the stream, not yet by the peer.
    ///
    /// # Errors
    /// [`SendError::Frame`]: the codec cannot write it, and nothing was sent. [`SendError::Io`]: the stream broke.
    /// # Cancel safety
    /// No frame is torn when the future is dropped: either nothing of `frame` goes out, or what is missing goes out
    /// before the next frame, or with [`Framed::flush`].
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), SendError<C::Error>> {
        self.flush().await.map_err(SendError::Io)?;
        self.codec.encode(frame, &mut self.unsent).map_err(SendError::Frame)?;
        self.flush().await.map_err(SendError::Io)
    }
}

impl<S: ReadChunks + WriteBytes, C> Framed<S, C> {
    /// Hands to the stream what a dropped `send` has left.
    ///
    /// # Errors
    /// The stream broke.
    /// # Cancel safety
    /// Safe: what is left stays.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.unsent.len() {
            let Poll::Ready(count) = self.stream.poll_write(context, &self.unsent[self.sent..])? else {
                // A peer that reads slowly does not keep a lent buffer of the shard.
                self.unread.keep();
                return Poll::Pending;
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        // Ten thousand idle streams own ten thousand empty buffers.
        self.unsent = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: ReadChunks, C: fmt::Debug> fmt::Debug for Framed<S, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unread_bytes = self.unread.bytes().len();
        let mut shown = formatter.debug_struct("Framed");
        shown.field("codec", &self.codec).field("unread_bytes", &unread_bytes).finish_non_exhaustive()
    }
}

impl<S, C: fmt::Debug> fmt::Debug for FramedParts<S, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("FramedParts");
        shown.field("codec", &self.codec).field("unread_bytes", &self.unread.len()).finish_non_exhaustive()
    }
}

impl<C: std::ops::Deref<Target = [u8]>> Unread<C> {
    fn bytes(&self) -> &[u8] {
        match self {
            Unread::Nothing => &[],
            Unread::Lent { chunk, at } => &chunk[*at..],
            Unread::Kept { bytes, at } => &bytes[*at..],
        }
    }

    /// Marks the first `count` bytes as taken, and says where they lie for [`Unread::taken`].
    fn advance(&mut self, count: usize) -> usize {
        match self {
            Unread::Nothing => 0,
            Unread::Lent { at, .. } | Unread::Kept { at, .. } => {
                let begin = *at;
                *at += count;
                begin
            }
        }
    }

    /// Bytes that were marked as taken. They are there until more come.
    fn taken(&self, range: Range<usize>) -> &[u8] {
        match self {
            Unread::Nothing => &[],
            Unread::Lent { chunk, .. } => &chunk[range],
            Unread::Kept { bytes, .. } => &bytes[range],
        }
    }

    /// Gives a chunk back: what is unread of it is copied.
    fn keep(&mut self) {
        if self.bytes().is_empty() {
            *self = Unread::Nothing;
        } else if let Unread::Lent { .. } = self {
            *self = Unread::Kept { bytes: self.bytes().to_vec(), at: 0 };
        }
    }

    /// Puts `chunk` behind the unread bytes.
    fn push(&mut self, chunk: C) {
        match self {
            Unread::Kept { bytes, at } => {
                bytes.drain(..*at);
                *at = 0;
                bytes.extend_from_slice(&chunk);
            }
            Unread::Nothing => *self = Unread::Lent { chunk, at: 0 },
            Unread::Lent { .. } => unreachable!("a chunk is given back before the next is asked for"),
        }
    }
}

#[cfg(test)]
mod tests;
