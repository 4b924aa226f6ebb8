//! What is wrong with an endpoint's text, and where.

use std::error::Error;
use std::fmt;
use std::ops::Range;

/// Why text is no endpoint. Prints the text with a mark below the place; [`EndpointError::message`] is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointError {
    text: String,
    wrong: Wrong,
}

impl EndpointError {
    pub(super) fn new(text: &str, wrong: Wrong) -> Self {
        let shown_bytes = if wrong.problem == Problem::TooLong { 60 } else { text.len() };
        EndpointError { text: text[..text.floor_char_boundary(shown_bytes)].to_owned(), wrong }
    }

    /// Where in the text the mistake begins, in bytes from 0. The length of the text if something is missing at its
    /// end.
    pub fn position(&self) -> usize {
        self.wrong.at.start
    }

    /// What was expected there.
    pub fn message(&self) -> String {
        self.wrong.problem.to_string()
    }
}

impl fmt::Display for EndpointError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.wrong.at;
        // What goes to a terminal or a log does not move its cursor.
        let shown: String = self.text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let columns = |bytes: &str| bytes.chars().count();
        // A text that is too long is cut before the place.
        let before = columns(self.text.get(..start).unwrap_or(&self.text));
        let marked = columns(self.text.get(start..end).unwrap_or_default()).max(1);
        let message = &self.wrong.problem;
        writeln!(formatter, "endpoint: {message}, at byte {start}")?;
        writeln!(formatter, "  {shown}")?;
        write!(formatter, "  {:before$}{:^<marked$}", "", "")
    }
}

impl Error for EndpointError {}

/// A mistake, and the bytes of the text that make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) at: Range<usize>,
    pub(super) problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    Expected(&'static str),
    Missing { name: &'static str, what: &'static str },
    UnknownKind(&'static str),
    UnknownKeyword { known: String },
    Twice(&'static str),
    TooManyValues { most: usize },
    NothingEscaped,
    NeedsBrackets,
    Instead(&'static str),
    TooLong,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Expected(what) => write!(formatter, "expected {what}"),
            Problem::Missing { name, what } => write!(formatter, "expected `{name}`: {what}"),
            Problem::UnknownKind(known) => write!(formatter, "expected one of {known}, or HOST:PORT"),
            Problem::UnknownKeyword { known } if known.is_empty() => {
                formatter.write_str("expected no keyword")
            }
            Problem::UnknownKeyword { known } => write!(formatter, "expected one of the keywords {known}"),
            Problem::Twice(name) => write!(formatter, "`{name}` is given twice"),
            Problem::TooManyValues { most: 0 } => formatter.write_str("expected nothing more"),
            Problem::TooManyValues { most } => {
                write!(formatter, "expected no more than {most} values without a keyword")
            }
            Problem::NothingEscaped => formatter.write_str("expected a character behind the backslash"),
            Problem::NeedsBrackets => formatter.write_str("an IPv6 address needs brackets, as in [::1]:7000"),
            Problem::Instead(what) => formatter.write_str(what),
            Problem::TooLong => write!(formatter, "longer than {TEXT_BYTES_MAX} bytes"),
        }
    }
}

/// Nobody types more. It also bounds how deep endpoints can lie in each other, since each level doubles its escapes.
pub(super) const TEXT_BYTES_MAX: usize = 4096;
