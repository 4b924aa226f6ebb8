//! What can go wrong between two peers that speak TLS.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Why TLS with a peer came to nothing, or broke.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsError {
    /// The peer's certificate is not good.
    Certificate(CertificateProblem),
    /// The peer has ended it with an alert (RFC 8446 section 6.2).
    AlertReceived {
        /// The alert's name in the standard, such as `unknown_ca`.
        alert: String,
    },
    /// The peer does not speak TLS.
    NotTls {
        /// How it began, with escapes: `GET / HT` is plain HTTP.
        began_with: String,
    },
    /// There is no version, cipher suite or application protocol that both speak.
    Incompatible(String),
    /// The peer broke the rules.
    Protocol(String),
    /// The handshake was not complete in time.
    HandshakeTimedOut {
        /// How long it may take.
        after: Duration,
    },
    /// The peer has sent too much for a handshake.
    HandshakeTooLong {
        /// The limit, in bytes.
        limit_bytes: usize,
    },
    /// Too many handshakes were under way, and this one's peer had been silent for longest, or was the last to come: see
    /// [`Config::handshake_bytes_max`](crate::Config::handshake_bytes_max).
    TooManyHandshakes,
    /// The connection ended before the handshake was complete.
    ClosedInHandshake,
    /// The connection ended, and the peer had not said that it would (close_notify): the end of what it sent may be
    /// missing.
    Truncated,
    /// That is no name that a server may have.
    InvalidServerName {
        /// The name.
        name: String,
    },
    /// The connection speaks TLS already.
    AlreadyTls,
    /// The connection is closed or closing, or one of its halves is.
    NotConnected,
}

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// It is no longer valid.
    Expired,
    /// It is not valid yet.
    NotValidYet,
    /// Nobody who is trusted has issued it.
    UnknownIssuer,
    /// It was revoked.
    Revoked,
    /// It is for other names.
    WrongName {
        /// The name asked for.
        expected: String,
        /// The names it is for.
        presented: Vec<String>,
    },
    /// The peer has none, and has to have one.
    Missing,
    /// Anything else.
    Other(String),
}

impl fmt::Display for TlsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::Certificate(problem) => write!(formatter, "the peer's certificate {problem}"),
            TlsError::AlertReceived { alert } => {
                write!(formatter, "the peer refused the handshake or the data: alert {alert}")
            }
            TlsError::NotTls { began_with } => {
                write!(formatter, "the peer does not speak TLS: it began with `{began_with}`")
            }
            TlsError::Incompatible(what) => write!(formatter, "the peers have nothing in common: {what}"),
            TlsError::Protocol(what) => write!(formatter, "the peer broke the rules: {what}"),
            TlsError::HandshakeTimedOut { after } => {
                write!(formatter, "the handshake was not complete after {after:?}")
            }
            TlsError::HandshakeTooLong { limit_bytes } => {
                write!(formatter, "the handshake was not complete after {limit_bytes} bytes")
            }
            TlsError::TooManyHandshakes => formatter.write_str("too many handshakes were under way"),
            TlsError::ClosedInHandshake => {
                formatter.write_str("the connection ended before the handshake was complete")
            }
            TlsError::Truncated => {
                formatter.write_str("the connection ended without close_notify: the end may be missing")
            }
            TlsError::InvalidServerName { name } => {
                write!(formatter, "`{name}` is neither a DNS name nor an IP address")
            }
            TlsError::AlreadyTls => formatter.write_str("the connection speaks TLS already"),
            TlsError::NotConnected => formatter.write_str("the connection is closed"),
        }
    }
}

impl Error for TlsError {}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertificateProblem::Expired => formatter.write_str("has expired"),
            CertificateProblem::NotValidYet => formatter.write_str("is not valid yet"),
            CertificateProblem::UnknownIssuer => formatter.write_str("is by an unknown issuer"),
            CertificateProblem::Revoked => formatter.write_str("was revoked"),
            CertificateProblem::WrongName { expected, presented } => {
                write!(formatter, "is not for `{expected}` but for {}", presented.join(", "))
            }
            CertificateProblem::Missing => formatter.write_str("is missing"),
            CertificateProblem::Other(problem) => write!(formatter, "is not good: {problem}"),
        }
    }
}
