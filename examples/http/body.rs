//! The body of a request: where it ends. Nobody here wants what is in it.

use httparse::Status;
use shardwise::Input;

use crate::reply::Page;

/// The rest of a body.
pub struct Body {
    stage: Stage,
    /// Of all chunks so far.
    total_bytes: u64,
}

/// What comes next.
enum Stage {
    Sized { left: u64 },
    ChunkSize,
    Chunk { left: u64 },
    ChunkEnd,
    Trailers,
}

impl Body {
    pub fn sized(bytes: u64) -> Body {
        Body { stage: Stage::Sized { left: bytes }, total_bytes: bytes }
    }

    pub fn chunked() -> Body {
        Body { stage: Stage::ChunkSize, total_bytes: 0 }
    }

    /// Consumes what has come of it; true once that was all.
    pub fn discard(&mut self, input: &mut Input<'_>) -> Result<bool, Page> {
        loop {
            match &mut self.stage {
                Stage::Sized { left } => {
                    *left -= take(input, *left);
                    return Ok(*left == 0);
                }
                Stage::Chunk { left } => {
                    *left -= take(input, *left);
                    if *left > 0 {
                        return Ok(false);
                    }
                    self.stage = Stage::ChunkEnd;
                }
                Stage::ChunkEnd => match input.bytes() {
                    [b'\r', b'\n', ..] => {
                        input.consume(2);
                        self.stage = Stage::ChunkSize;
                    }
                    [] | [b'\r'] => return Ok(false),
                    _ => return Err(Page::BadRequest),
                },
                Stage::ChunkSize => {
                    let Some((len, size)) = chunk_size(input.bytes())? else { return Ok(false) };
                    input.consume(len);
                    self.total_bytes = self.total_bytes.saturating_add(size);
                    if self.total_bytes > BODY_BYTES_MAX {
                        return Err(Page::ContentTooLarge);
                    }
                    self.stage = if size == 0 { Stage::Trailers } else { Stage::Chunk { left: size } };
                }
                Stage::Trailers => {
                    let Some(len) = trailers(input.bytes())? else { return Ok(false) };
                    input.consume(len);
                    return Ok(true);
                }
            }
        }
    }
}

/// Consumes up to `wanted` bytes; says how many there were.
fn take(input: &mut Input<'_>, wanted: u64) -> u64 {
    let count = usize::try_from(wanted).map_or(input.len(), |wanted| wanted.min(input.len()));
    input.consume(count);
    count as u64
}

/// A line such as `1f;name=value`: its length and the size it gives; `None` if it has not come to its end.
fn chunk_size(bytes: &[u8]) -> Result<Option<(usize, u64)>, Page> {
    let line = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    match httparse::parse_chunk_size(line) {
        Ok(Status::Complete((len, size))) => {
            let text = &line[..len - 2];
            let is_clean = text[..].first().is_some_and(u8::is_ascii_hexdigit)
                && !text.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t');
            if is_clean { Ok(Some((len, size))) } else { Err(Page::BadRequest) }
        }
        Ok(Status::Partial) if line.len() < LINE_BYTES_MAX => Ok(None),
        Ok(Status::Partial) | Err(_) => Err(Page::BadRequest),
    }
}

/// How long the trailers are, their empty line included; `None` if that has not come.
fn trailers(bytes: &[u8]) -> Result<Option<usize>, Page> {
    let bytes = &bytes[..bytes.len().min(TRAILER_BYTES_MAX)];
    let mut headers = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    match httparse::parse_headers(bytes, &mut headers) {
        Ok(Status::Complete((len, _))) => Ok(Some(len)),
        Ok(Status::Partial) if bytes.len() < TRAILER_BYTES_MAX => Ok(None),
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => Err(Page::HeadersTooLarge),
        Err(_) => Err(Page::BadRequest),
    }
}

pub const BODY_BYTES_MAX: u64 = 1024 * 1024;

/// Of a chunk's size with its extensions.
const LINE_BYTES_MAX: usize = 256;
const TRAILER_BYTES_MAX: usize = 1024;
const TRAILERS_MAX: usize = 16;
