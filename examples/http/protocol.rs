//! One connection: requests in, replies out, in order, and how long the peer may take. Knows no bytes of a head.

use std::time::{Duration, Instant};

use shardwise::{Config, Flow, Input, Protocol, Result, RuntimeState, Transport};

use crate::body::Body;
use crate::head::{self, Head};
use crate::reply::{self, Connection, Page, Reply};

/// The runtime's limits as this protocol wants them.
pub fn config() -> Config {
    let mut config = Config::default();
    // Whoever is still sending a body that is too large is to read why it was refused.
    config.linger_bytes_max = 8 * 1024 * 1024;
    config
}

/// One connection.
#[derive(Default)]
pub struct Http {
    stage: Stage,
    patience: Patience,
    /// Whether a slow reader keeps us from reading.
    paused: bool,
    /// The next reply is the last one.
    draining: bool,
}

/// What the peer sends next.
enum Stage {
    /// The head of a request. `begun` when some of it may be expected already; its first `seen` bytes have been looked at.
    Head { begun: bool, seen: usize },
    /// The body of a request, and what to say when that is over.
    Body { body: Body, reply: Reply, period_bytes: usize },
}

impl Default for Stage {
    fn default() -> Stage {
        // A peer that connects is about to ask.
        Stage::Head { begun: true, seen: 0 }
    }
}

impl Http {
    /// Takes a head, or what there is of a body. False when more bytes have to come first.
    fn advance(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<bool> {
        match &mut self.stage {
            Stage::Head { seen, .. } => {
                let bytes = input.bytes();
                // RFC 9112 §2.2: clients of old send an empty line after a body.
                if *seen == 0 && bytes.starts_with(b"\r\n") {
                    input.consume(2);
                    return Ok(true);
                }
                if !head::may_have_ended(bytes, *seen) {
                    return Ok(false);
                }
                match head::parse(bytes) {
                    Ok(Some(head)) => {
                        input.consume(head.len);
                        self.head_received(transport, head)?;
                        Ok(true)
                    }
                    Ok(None) => Ok(false),
                    Err(page) => self.refuse(transport, page),
                }
            }
            Stage::Body { body, reply, period_bytes } => {
                let before = input.len();
                let whole = body.discard(input);
                *period_bytes += before - input.len();
                let reply = *reply;
                match whole {
                    Ok(true) => self.answer(transport, reply).map(|()| true),
                    Ok(false) => Ok(false),
                    Err(page) => self.refuse(transport, page),
                }
            }
        }
    }

    fn head_received(&mut self, transport: &Transport, head: Head<'_>) -> Result<()> {
        let page = match (head.path, head.method) {
            ("/" | "/plaintext", "GET" | "HEAD") => Page::Hello,
            ("/" | "/plaintext", _) => Page::MethodNotAllowed,
            _ => Page::NotFound,
        };
        let connection = match (head.keep_alive, head.is_http_1_0) {
            (true, false) => Connection::Stays,
            (true, true) => Connection::StaysAsAsked,
            (false, _) => Connection::Ends,
        };
        let reply = Reply { page, with_body: head.method != "HEAD", connection };
        let Some(body) = head.body else { return self.answer(transport, reply) };
        if head.expects_continue {
            transport.write(reply::CONTINUE)?;
        }
        self.stage = Stage::Body { body, reply, period_bytes: 0 };
        self.patience.set(transport, BODY_PERIOD);
        Ok(())
    }

    fn answer(&mut self, transport: &Transport, mut reply: Reply) -> Result<()> {
        self.stage = Stage::Head { begun: false, seen: 0 };
        if self.draining {
            reply.connection = Connection::Ends;
        }
        let flow = reply.write(transport)?;
        if reply.connection == Connection::Ends {
            transport.close();
        } else if flow == Flow::AboveHigh {
            // The requests that wait are answered once the peer has taken the replies.
            self.paused = true;
            transport.pause_reading();
        }
        Ok(())
    }

    fn refuse<T: Default>(&mut self, transport: &Transport, page: Page) -> Result<T> {
        Reply::refusal(page).write(transport)?;
        transport.close();
        Ok(T::default())
    }
}

impl Protocol for Http {
    fn connected(&mut self, transport: &Transport) -> Result<()> {
        self.patience.set(transport, HEAD_TIMEOUT);
        self.draining = transport.shard().handle().state() != RuntimeState::Running;
        Ok(())
    }

    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        // The input runs dry when `advance` pauses or closes.
        while !input.is_empty() && self.advance(transport, input)? {}
        if let Stage::Head { begun, seen } = &mut self.stage {
            *seen = input.len();
            // The time for a head begins with its first byte, and no further byte prolongs it.
            if !*begun {
                *begun = *seen > 0;
                self.patience.set(transport, if *begun { HEAD_TIMEOUT } else { IDLE_TIMEOUT });
            }
        }
        Ok(())
    }

    fn write_paused(&mut self, transport: &Transport) -> Result<()> {
        self.paused = true;
        transport.pause_reading();
        Ok(())
    }

    fn write_resumed(&mut self, transport: &Transport) -> Result<()> {
        self.paused = false;
        if self.draining {
            self.patience.set(transport, LAST_REQUEST_TIMEOUT);
        }
        transport.resume_reading();
        Ok(())
    }

    fn deadline_reached(&mut self, transport: &Transport) -> Result<()> {
        if !self.patience.is_over(transport) {
            return Ok(());
        }
        match &mut self.stage {
            // The peer owes us no bytes but room for ours, and for that the library has a deadline.
            _ if self.paused => self.patience.set(transport, HEAD_TIMEOUT),
            Stage::Head { begun: false, .. } => transport.close(),
            Stage::Body { period_bytes, .. } if *period_bytes >= PERIOD_BYTES_MIN => {
                *period_bytes = 0;
                self.patience.set(transport, BODY_PERIOD);
            }
            Stage::Head { begun: true, .. } | Stage::Body { .. } => {
                return self.refuse(transport, Page::RequestTimeout);
            }
        }
        Ok(())
    }

    fn draining(&mut self, transport: &Transport) -> Result<()> {
        self.draining = true;
        if let Stage::Head { seen: 0, .. } = self.stage
            && !self.paused
        {
            transport.close();
        }
        Ok(())
    }
}

/// How long the peer may take. The timer is moved to earlier times only, and set anew when it fires too early: a busy
/// connection has no work with it.
#[derive(Default)]
struct Patience {
    ends: Option<Instant>,
    timer: Option<Instant>,
}

impl Patience {
    fn set(&mut self, transport: &Transport, limit: Duration) {
        let ends = transport.shard().now() + limit;
        self.ends = Some(ends);
        if self.timer.is_none_or(|timer| ends < timer) {
            self.timer = Some(ends);
            transport.set_deadline(Some(limit));
        }
    }

    /// To be asked when the timer has fired.
    fn is_over(&mut self, transport: &Transport) -> bool {
        self.timer = None;
        let now = transport.shard().now();
        let left = self.ends.map_or(Duration::ZERO, |ends| ends.saturating_duration_since(now));
        if !left.is_zero() {
            self.set(transport, left);
        }
        left.is_zero()
    }
}

/// From the connection, or the first byte of a request, to the end of its head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// While draining, for a request that was sent before the last replies were read.
const LAST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// In each such period of a body at least so much has to come: 240 B/s.
const BODY_PERIOD: Duration = Duration::from_secs(5);
const PERIOD_BYTES_MIN: usize = 1200;
