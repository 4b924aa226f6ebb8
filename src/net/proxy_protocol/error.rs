//! What is wrong with a header.

use std::error::Error;
use std::fmt;

/// Why bytes are no PROXY protocol header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseError {
    /// The bytes begin like neither version: a client that was not sent by a proxy.
    NoHeader {
        /// The first byte that does not fit, from 0.
        position: usize,
    },
    /// Version 1: no CRLF within 107 bytes.
    LineTooLong,
    /// Version 1: a CR or LF alone.
    BareLineEnd {
        /// Where, from 0.
        position: usize,
    },
    /// Version 1: the protocol is none of `TCP4`, `TCP6` and `UNKNOWN`.
    UnknownProtocol,
    /// Version 1: a field is missing, or is not what it should be.
    Field {
        /// What should be there.
        expected: &'static str,
        /// Where it should begin, from 0.
        position: usize,
    },
    /// Version 1: something follows the last field.
    TooManyFields {
        /// Where, from 0.
        position: usize,
    },
    /// Version 2: another version behind the signature.
    UnknownVersion(u8),
    /// Version 2: the command is neither LOCAL nor PROXY.
    UnknownCommand(u8),
    /// Version 2: the byte of family and protocol is none that is assigned.
    UnknownFamily(u8),
    /// Version 2: a longer header is announced than is taken.
    TooLong {
        /// The announced length of the whole header, in bytes.
        declared_bytes: usize,
        /// The limit, in bytes.
        limit_bytes: usize,
    },
    /// Version 2: the announced length has no room for the addresses.
    NoRoomForAddresses {
        /// The announced length of what follows the first 16 bytes.
        declared_bytes: usize,
        /// What the addresses need.
        needed_bytes: usize,
    },
    /// Version 2: a TLV does not end where the header does.
    TruncatedTlv {
        /// Where in the header it begins, from 0.
        position: usize,
    },
    /// Version 2: a checksum that is not four bytes long, or a second one.
    MalformedChecksum,
    /// Version 2: the header was changed on its way.
    WrongChecksum {
        /// The one in the header.
        declared: u32,
        /// The one of the header.
        computed: u32,
    },
}

impl fmt::Display for ParseError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PROXY protocol: ")?;
        match self {
            ParseError::NoHeader { position } => {
                write!(formatter, "the connection does not begin with a header (byte {position})")
            }
            ParseError::LineTooLong => {
                write!(formatter, "no end of line within {} bytes", super::V1_BYTES_MAX)
            }
            ParseError::BareLineEnd { position } => {
                write!(formatter, "CR or LF alone at position {position}")
            }
            ParseError::UnknownProtocol => {
                formatter.write_str("the protocol is none of TCP4, TCP6 and UNKNOWN")
            }
            ParseError::Field { expected, position } => {
                write!(formatter, "expected {expected} at position {position}")
            }
            ParseError::TooManyFields { position } => {
                write!(formatter, "something follows the last port, at position {position}")
            }
            ParseError::UnknownVersion(version) => write!(formatter, "unknown version {version}"),
            ParseError::UnknownCommand(command) => write!(formatter, "unknown command {command}"),
            ParseError::UnknownFamily(family) => {
                write!(formatter, "unknown family and protocol {family:#04x}")
            }
            ParseError::TooLong { declared_bytes, limit_bytes } => {
                write!(
                    formatter,
                    "a header of {declared_bytes} bytes was announced, and {limit_bytes} are allowed"
                )
            }
            ParseError::NoRoomForAddresses { declared_bytes, needed_bytes } => {
                write!(
                    formatter,
                    "{declared_bytes} bytes were announced, and the addresses need {needed_bytes}"
                )
            }
            ParseError::TruncatedTlv { position } => {
                write!(formatter, "a TLV at position {position} goes beyond the header")
            }
            ParseError::MalformedChecksum => {
                formatter.write_str("the checksum is not four bytes long, or is there twice")
            }
            ParseError::WrongChecksum { declared, computed } => {
                write!(formatter, "the checksum is {declared:#010x} and should be {computed:#010x}")
            }
        }
    }
}

impl Error for ParseError {}

/// Why a header cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// A UNIX path is longer than 108 bytes.
    PathTooLong {
        /// Its length, in bytes.
        path_bytes: usize,
    },
    /// Addresses and TLVs together are longer than 65,535 bytes.
    TooLong {
        /// Their length, in bytes.
        header_bytes: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::PathTooLong { path_bytes } => {
                write!(formatter, "a PROXY protocol header has no room for a path of {path_bytes} bytes")
            }
            EncodeError::TooLong { header_bytes } => {
                write!(formatter, "a PROXY protocol header cannot be {header_bytes} bytes long")
            }
        }
    }
}

impl Error for EncodeError {}
