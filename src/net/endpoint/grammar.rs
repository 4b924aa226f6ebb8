//! Words, keywords and escapes of an endpoint's text. Knows no kinds.

use std::borrow::Cow;
use std::ops::Range;

use super::error::{EndpointError, Problem, TEXT_BYTES_MAX, Wrong};

/// Escapes `value` so that it stands for itself within an endpoint's text.
pub fn quote(value: &str) -> Cow<'_, str> {
    // An unescaped @ at the beginning marks an abstract name.
    let escape = |at: usize, c: char| matches!(c, '\\' | ':' | '=') || (at == 0 && c == '@');
    if !value.char_indices().any(|(at, c)| escape(at, c)) {
        return Cow::Borrowed(value);
    }
    let mut quoted = String::with_capacity(value.len() + 8);
    for (at, c) in value.char_indices() {
        if escape(at, c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    Cow::Owned(quoted)
}

/// Characters of the text and where each of them stands in it, and where they end. The value of a word is such a piece
/// again, so that a mistake in an endpoint within an endpoint is shown at its place in the whole.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) chars: &'a [(usize, char)],
    pub(super) end: usize,
}

/// A value without its escapes.
#[derive(Clone, Debug)]
pub(super) struct Word {
    chars: Vec<(usize, char)>,
    /// Where it stands.
    pub(super) at: Range<usize>,
    /// Its first character was escaped.
    pub(super) starts_escaped: bool,
}

/// What stands between two colons.
pub(super) struct Argument {
    pub(super) keyword: Option<Word>,
    pub(super) value: Word,
}

/// Arguments by their names.
pub(super) struct Arguments {
    values: Vec<(&'static str, Word)>,
    end: usize,
}

/// The names of a kind's arguments.
#[derive(Clone, Copy)]
pub(super) struct Names {
    /// Those that may be given without their names, in this order.
    pub(super) in_order: &'static [&'static str],
    pub(super) by_keyword: &'static [&'static str],
    /// Other names, and what they stand for.
    pub(super) aliases: &'static [(&'static str, &'static str)],
}

/// Reads `text` with `read`.
pub(super) fn parse<T>(
    text: &str,
    read: impl FnOnce(Source<'_>) -> Result<T, Wrong>,
) -> Result<T, EndpointError> {
    if text.len() > TEXT_BYTES_MAX {
        let wrong = Wrong { at: TEXT_BYTES_MAX..text.len(), problem: Problem::TooLong };
        return Err(EndpointError::new(text, wrong));
    }
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    read(Source { chars: &chars, end: text.len() }).map_err(|wrong| EndpointError::new(text, wrong))
}

impl<'a> Source<'a> {
    /// Splits at the colons. There is at least one argument, be it empty.
    pub(super) fn split(self) -> Result<Vec<Argument>, Wrong> {
        let mut arguments = Vec::new();
        let mut keyword = None;
        let mut word = Word::new(self.offset(0));
        let mut index = 0;
        while let Some(&(at, c)) = self.chars.get(index) {
            index += 1;
            match c {
                '\\' => {
                    let Some(escaped) = self.chars.get(index) else {
                        return Err(Wrong { at: at..self.end, problem: Problem::NothingEscaped });
                    };
                    word.starts_escaped |= word.chars.is_empty();
                    word.chars.push(*escaped);
                    index += 1;
                }
                ':' => {
                    word.at.end = at;
                    let value = std::mem::replace(&mut word, Word::new(self.offset(index)));
                    arguments.push(Argument { keyword: keyword.take(), value });
                }
                // Behind a keyword it is a character as any other.
                '=' if keyword.is_none() => {
                    word.at.end = at;
                    keyword = Some(std::mem::replace(&mut word, Word::new(self.offset(index))));
                }
                '[' if word.chars.is_empty() => {
                    let address = bracketed(&self.chars[index - 1..]);
                    word.chars.extend_from_slice(&self.chars[index - 1..index + address]);
                    index += address;
                }
                _ => word.chars.push((at, c)),
            }
        }
        word.at.end = self.end;
        arguments.push(Argument { keyword, value: word });
        Ok(arguments)
    }

    /// What follows the first colon that is not escaped.
    pub(super) fn behind(self, first: &Argument) -> Source<'a> {
        let index = self.chars.iter().position(|(at, _)| *at > first.value.at.end);
        Source { chars: &self.chars[index.unwrap_or(self.chars.len())..], end: self.end }
    }

    /// Where that character stands; the end if there is none.
    pub(super) fn offset(self, index: usize) -> usize {
        self.chars.get(index).map_or(self.end, |(at, _)| *at)
    }
}

/// How many characters of an IPv6 address, its closing bracket included, follow the opening one. 0 if there is none.
fn bracketed(chars: &[(usize, char)]) -> usize {
    let inside = |c: char| {
        c.is_ascii_hexdigit() || c.is_ascii_alphanumeric() || matches!(c, ':' | '.' | '%' | '-' | '_')
    };
    let Some(close) = chars[1..].iter().position(|(_, c)| !inside(*c)) else { return 0 };
    let colons = chars[1..=close].iter().any(|(_, c)| *c == ':');
    if chars[close + 1].1 == ']' && colons { close + 1 } else { 0 }
}

impl Word {
    fn new(begin: usize) -> Self {
        Word { chars: Vec::new(), at: begin..begin, starts_escaped: false }
    }

    pub(super) fn text(&self) -> String {
        self.chars.iter().map(|(_, c)| *c).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chars.is_empty()
    }

    /// To be read as an endpoint of its own.
    pub(super) fn source(&self) -> Source<'_> {
        Source { chars: &self.chars, end: self.at.end }
    }

    pub(super) fn wrong(&self, problem: Problem) -> Wrong {
        Wrong { at: self.at.clone(), problem }
    }

    pub(super) fn expected(&self, what: &'static str) -> Wrong {
        self.wrong(Problem::Expected(what))
    }
}

impl Arguments {
    /// Gives each of `arguments` its name.
    pub(super) fn read(arguments: Vec<Argument>, names: Names, end: usize) -> Result<Self, Wrong> {
        let mut values: Vec<(&'static str, Word)> = Vec::new();
        let mut in_order = names.in_order.iter();
        for Argument { keyword, value } in arguments {
            let (name, at) = match &keyword {
                Some(keyword) => (names.find(keyword)?, keyword),
                None => {
                    let most = names.in_order.len();
                    let name = in_order.next().ok_or_else(|| value.wrong(Problem::TooManyValues { most }))?;
                    (*name, &value)
                }
            };
            if values.iter().any(|(known, _)| *known == name) {
                return Err(at.wrong(Problem::Twice(name)));
            }
            values.push((name, value));
        }
        Ok(Arguments { values, end })
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Word> {
        let index = self.values.iter().position(|(known, _)| *known == name)?;
        Some(self.values.swap_remove(index).1)
    }

    /// Takes what has to be there.
    pub(super) fn need(&mut self, name: &'static str, what: &'static str) -> Result<Word, Wrong> {
        let missing = Wrong { at: self.end..self.end, problem: Problem::Missing { name, what } };
        self.take(name).ok_or(missing)
    }
}

impl Names {
    fn find(self, keyword: &Word) -> Result<&'static str, Wrong> {
        let text = keyword.text();
        let alias = self.aliases.iter().find(|(alias, _)| *alias == text).map(|(_, name)| *name);
        let mut all = self.in_order.iter().chain(self.by_keyword).copied();
        alias.or_else(|| all.clone().find(|name| *name == text)).ok_or_else(|| {
            let mut known = all.next().unwrap_or_default().to_owned();
            for name in all {
                known.push_str(", ");
                known.push_str(name);
            }
            keyword.wrong(Problem::UnknownKeyword { known })
        })
    }
}
