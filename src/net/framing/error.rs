//! What can be wrong with a frame, and whose fault it is.

use std::error::Error;
use std::fmt;
use std::io;

/// What a peer did wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// A line has more bytes than it may. How many is not known: its end has not been looked for.
    LineTooLong {
        /// The limit, in bytes without the delimiter.
        limit_bytes: usize,
    },
    /// A frame was announced that is longer than it may be.
    TooLong {
        /// The length that was announced, in bytes; of a netstring, what the digits up to the one too many say.
        declared_bytes: u64,
        /// The limit, in bytes without framing.
        limit_bytes: usize,
    },
    /// A netstring does not begin with decimal digits and a colon.
    NotALength {
        /// Where in the netstring, from 0.
        position: usize,
        /// The byte that is neither a digit nor, after digits, a colon.
        found: u8,
    },
    /// The length of a netstring has a zero before other digits.
    LeadingZero,
    /// A netstring has another byte in the place of its closing comma.
    NoComma {
        /// The length that it announced, in bytes.
        declared_bytes: usize,
        /// The byte in the comma's place.
        found: u8,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::LineTooLong { limit_bytes } => {
                write!(formatter, "a line is longer than {limit_bytes} bytes")
            }
            FrameError::TooLong { declared_bytes, limit_bytes } => {
                write!(
                    formatter,
                    "a frame of {declared_bytes} bytes was announced, and {limit_bytes} are allowed"
                )
            }
            FrameError::NotALength { position, found } => {
                let found = found.escape_ascii();
                write!(
                    formatter,
                    "a netstring has '{found}' at position {position}, where its length should be"
                )
            }
            FrameError::LeadingZero => formatter.write_str("the length of a netstring begins with 0"),
            FrameError::NoComma { declared_bytes, found } => {
                let found = found.escape_ascii();
                write!(
                    formatter,
                    "a netstring of {declared_bytes} bytes ends with '{found}' in the place of a comma"
                )
            }
        }
    }
}

impl Error for FrameError {}

/// Why a frame of ours cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// It is longer than the codec allows, or than its length field can say.
    TooLong {
        /// Its length, in bytes.
        frame_bytes: usize,
        /// The limit, in bytes.
        limit_bytes: usize,
    },
    /// The peer would see its end too early.
    HoldsDelimiter {
        /// Where in the line the delimiter begins.
        position: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::TooLong { frame_bytes, limit_bytes } => {
                write!(formatter, "a frame of {frame_bytes} bytes cannot be sent: {limit_bytes} are allowed")
            }
            EncodeError::HoldsDelimiter { position } => {
                write!(formatter, "a line cannot be sent: its delimiter is in it, at position {position}")
            }
        }
    }
}

impl Error for EncodeError {}

/// Why [`Framed`](super::Framed) gives no frame. `E` is the decoder's error.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReceiveError<E> {
    /// The peer sent something that is no frame.
    Frame(E),
    /// The input ended inside a frame.
    Incomplete {
        /// How many bytes there are of it.
        unread_bytes: usize,
    },
    /// The decoder asks for more than the most it says a frame can have.
    Undecided {
        /// [`Decoder::frame_bytes_max`](super::Decoder::frame_bytes_max).
        limit_bytes: usize,
    },
    /// The stream broke.
    Io(io::Error),
}

impl<E: fmt::Display> fmt::Display for ReceiveError<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReceiveError::Frame(error) => write!(formatter, "{error}"),
            ReceiveError::Incomplete { unread_bytes } => {
                write!(formatter, "the input ended inside a frame, after {unread_bytes} bytes of it")
            }
            ReceiveError::Undecided { limit_bytes } => {
                write!(formatter, "no frame was found in {limit_bytes} bytes")
            }
            ReceiveError::Io(error) => write!(formatter, "{error}"),
        }
    }
}

impl<E: Error + 'static> Error for ReceiveError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ReceiveError::Frame(error) => error.source(),
            ReceiveError::Io(error) => error.source(),
            ReceiveError::Incomplete { .. } | ReceiveError::Undecided { .. } => None,
        }
    }
}

/// Why [`Framed`](super::Framed) did not send a frame. `E` is the encoder's error.
#[derive(Debug)]
#[non_exhaustive]
pub enum SendError<E> {
    /// The frame cannot be written. Nothing of it was sent, and the stream is as it was.
    Frame(E),
    /// The stream is closed for writing, or broke.
    Io(io::Error),
}

impl<E: fmt::Display> fmt::Display for SendError<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::Frame(error) => write!(formatter, "{error}"),
            SendError::Io(error) => write!(formatter, "{error}"),
        }
    }
}

impl<E: Error + 'static> Error for SendError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            SendError::Frame(error) => error.source(),
            SendError::Io(error) => error.source(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_was_found_and_what_is_allowed() {
        let told: [(FrameError, &str); 5] = [
            (FrameError::LineTooLong { limit_bytes: 16_384 }, "a line is longer than 16384 bytes"),
            (
                FrameError::TooLong { declared_bytes: 100_000, limit_bytes: 99_999 },
                "a frame of 100000 bytes was announced, and 99999 are allowed",
            ),
            (
                FrameError::NotALength { position: 2, found: b'\n' },
                "a netstring has '\\n' at position 2, where its length should be",
            ),
            (FrameError::LeadingZero, "the length of a netstring begins with 0"),
            (
                FrameError::NoComma { declared_bytes: 5, found: b';' },
                "a netstring of 5 bytes ends with ';' in the place of a comma",
            ),
        ];
        for (error, text) in told {
            assert_eq!(error.to_string(), text);
            assert_eq!(ReceiveError::Frame(error).to_string(), text);
        }
    }

    #[test]
    fn a_printed_chain_says_nothing_twice() {
        let failed = || io::Error::new(io::ErrorKind::BrokenPipe, "the pipe broke");
        // `E` is an error with a cause of its own: its text is in ours, and its cause is ours.
        type Outer = ReceiveError<FrameError>;
        let outer =
            || ReceiveError::Frame(Outer::Io(io::Error::other(SendError::<FrameError>::Io(failed()))));
        assert_eq!(outer().to_string(), "the pipe broke");
        assert!(outer().source().is_none() && Outer::Io(failed()).source().is_none());
        assert!(ReceiveError::Frame(FrameError::LeadingZero).source().is_none());
        assert!(SendError::Frame(FrameError::LeadingZero).source().is_none());
        assert!(SendError::<FrameError>::Io(failed()).source().is_none());
    }
}
