//! The head of a request: what it asks for, or why it is refused. Reads bytes, writes none.

use std::mem::MaybeUninit;

use httparse::{Error, Request, Status};

use crate::body::{BODY_BYTES_MAX, Body};
use crate::reply::Page;

/// What matters of a request's head.
pub struct Head<'a> {
    /// How many bytes it takes, its empty line included.
    pub len: usize,
    pub method: &'a str,
    /// Without query, and without scheme and host.
    pub path: &'a str,
    /// `None` if nothing follows.
    pub body: Option<Body>,
    /// The client waits for "100 Continue" before it sends the body.
    pub expects_continue: bool,
    pub keep_alive: bool,
    /// HTTP/1.0 closes unless both sides say otherwise.
    pub is_http_1_0: bool,
}

/// The head at the front of `bytes`; `None` if it has not come to its end.
pub fn parse(bytes: &[u8]) -> Result<Option<Head<'_>>, Page> {
    // Cut off at the limit, so that the answer does not depend on how much came at a time.
    let bytes = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(bytes, &mut headers);
    let uri_bytes = match (request.path, &parsed) {
        (Some(path), _) => path.len(),
        (None, Ok(Status::Partial)) => bytes.len().saturating_sub(METHOD_BYTES_MAX),
        (None, _) => 0,
    };
    if uri_bytes > URI_BYTES_MAX {
        return Err(Page::UriTooLong);
    }
    match parsed {
        Ok(Status::Complete(len)) => understand(&request, len).map(Some),
        Ok(Status::Partial) if bytes.len() == HEAD_BYTES_MAX => Err(Page::HeadersTooLarge),
        Ok(Status::Partial) => Ok(None),
        Err(Error::TooManyHeaders) => Err(Page::HeadersTooLarge),
        Err(Error::Version) => Err(Page::VersionNotSupported),
        Err(_) => Err(Page::BadRequest),
    }
}

/// Whether `bytes`, of which the first `seen` were an unfinished head, are worth another look: a head that comes byte
/// by byte is parsed once for each line, not once for each byte.
pub fn may_have_ended(bytes: &[u8], seen: usize) -> bool {
    let passes = |limit| seen < limit && bytes.len() >= limit;
    let new = bytes.get(seen..).unwrap_or(bytes);
    seen == 0
        || new.contains(&b'\n')
        || passes(URI_BYTES_MAX + METHOD_BYTES_MAX + 1)
        || passes(HEAD_BYTES_MAX)
}

fn understand<'a>(request: &Request<'_, 'a>, len: usize) -> Result<Head<'a>, Page> {
    let (Some(method), Some(target)) = (request.method, request.path) else { return Err(Page::BadRequest) };
    let is_http_1_0 = request.version == Some(0);
    let mut hosts = 0;
    let mut length = None;
    let mut chunked = false;
    let mut keep_alive = !is_http_1_0;
    let mut expects_continue = false;
    for header in request.headers.iter() {
        let is = |name| header.name.eq_ignore_ascii_case(name);
        // Its length alone tells most headers apart.
        match header.name.len() {
            4 if is("host") => hosts += 1,
            6 if is("expect") => {
                if !header.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Page::ExpectationFailed);
                }
                expects_continue = !is_http_1_0;
            }
            10 if is("connection") => {
                let said =
                    |option: &str| options(header.value).any(|o| o.eq_ignore_ascii_case(option.as_bytes()));
                keep_alive = (keep_alive || said("keep-alive")) && !said("close");
            }
            14 if is("content-length") => {
                // Twice is once too often, even if both agree: whoever is before us may have read the other one.
                let before = length.replace(content_length(header.value)?);
                if before.is_some() {
                    return Err(Page::BadRequest);
                }
            }
            17 if is("transfer-encoding") => {
                if chunked || is_http_1_0 {
                    return Err(Page::BadRequest);
                }
                check_coding(header.value)?;
                chunked = true;
            }
            _ => {}
        }
    }
    // RFC 9112 §3.2: one in 1.1, at most one before.
    if hosts > 1 || (hosts == 0 && !is_http_1_0) {
        return Err(Page::BadRequest);
    }
    let body = match (length, chunked) {
        // RFC 9112 §6.3: a way to smuggle requests past a proxy.
        (Some(_), true) => return Err(Page::BadRequest),
        (Some(length), false) if length > BODY_BYTES_MAX => return Err(Page::ContentTooLarge),
        (Some(1..), false) => length.map(Body::sized),
        (None, true) => Some(Body::chunked()),
        (Some(0) | None, false) => None,
    };
    let expects_continue = expects_continue && body.is_some();
    Ok(Head { len, method, path: path(target), body, expects_continue, keep_alive, is_http_1_0 })
}

/// Digits and nothing else: no sign, no list.
fn content_length(value: &[u8]) -> Result<u64, Page> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|digits| digits.parse().ok()).ok_or(Page::BadRequest)
}

/// We know one coding. RFC 9112 §6.1 and §6.3: what does not end in it has no length at all.
fn check_coding(value: &[u8]) -> Result<(), Page> {
    let mut codings = options(value);
    let last_is_chunked = codings.next_back().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
    match (last_is_chunked, codings.next()) {
        (true, None) => Ok(()),
        (true, Some(_)) => Err(Page::NotImplemented),
        (false, _) => Err(Page::BadRequest),
    }
}

/// The elements of a comma-separated list.
fn options(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn path(target: &str) -> &str {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    path.split_once('?').map_or(path, |(path, _)| path)
}

const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 100;
const URI_BYTES_MAX: usize = 8 * 1024;
/// What may stand before the URI when its length is judged before its end has come.
const METHOD_BYTES_MAX: usize = 32;
