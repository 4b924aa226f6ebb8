//! A connection's bytes in the log. Changes nothing of them, and shows none unless told to.

use std::net::SocketAddr;
use std::sync::Arc;

use tracing::Level;

use crate::error::{CloseReason, log_contained};

/// Writes every read and every write of a connection to the log: when, which way, and how many bytes; its beginning and its
/// end, with the totals. What is in the bytes is shown only when asked for, since it may be anybody's secret.
///
/// The lines have the target `shardwise::traffic`, the level TRACE, and the fields `log` (the name given here), `shard`,
/// `peer`, `bytes` and, when asked for, `data`. Whether somebody listens is looked up when a connection begins: if nobody
/// does, it costs nothing from there on.
///
/// Bytes are logged as the application has them. Over TLS that is **plaintext**, of which the network shows nothing: then
/// the log is as secret as what is said. Handshakes are not logged. With `start_tls`, what was said before is logged as well.
///
/// ```
/// use shardwise::policies::{Policies, TrafficLog};
///
/// let sizes = Policies::new().log_traffic(TrafficLog::new("smtp"));
/// let all = Policies::new().log_traffic(TrafficLog::new("smtp").at_debug().show_text(200));
/// # let _ = (sizes, all);
/// ```
#[derive(Clone, Debug)]
pub struct TrafficLog {
    name: Arc<str>,
    at_debug: bool,
    show: Show,
}

/// How much of the bytes is shown.
#[derive(Clone, Copy, Debug)]
enum Show {
    Nothing,
    Text(usize),
    Hex(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Received,
    Written,
}

impl TrafficLog {
    /// Logs as `name`, and shows no bytes.
    pub fn new(name: &str) -> Self {
        TrafficLog { name: name.into(), at_debug: false, show: Show::Nothing }
    }

    /// At DEBUG instead of TRACE.
    pub fn at_debug(mut self) -> Self {
        self.at_debug = true;
        self
    }

    /// Shows the first `bytes` of each read and write as text, with everything but printable ASCII escaped as in Rust
    /// (`\r\n`, `\x1b`): what a peer sends cannot steer a terminal.
    pub fn show_text(mut self, bytes: usize) -> Self {
        self.show = Show::Text(bytes);
        self
    }

    /// Shows the first `bytes` of each read and write in hexadecimal digits.
    pub fn show_hex(mut self, bytes: usize) -> Self {
        self.show = Show::Hex(bytes);
        self
    }

    /// Whether somebody listens.
    pub(crate) fn is_wanted(&self) -> bool {
        let mut is_wanted = false;
        // The subscriber is the application's code.
        log_contained(|| {
            is_wanted = if self.at_debug {
                tracing::enabled!(target: "shardwise::traffic", Level::DEBUG)
            } else {
                tracing::enabled!(target: "shardwise::traffic", Level::TRACE)
            }
        });
        is_wanted
    }
}

/// What is logged of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    log: TrafficLog,
    peer: Option<SocketAddr>,
    received_bytes: u64,
    written_bytes: u64,
}

/// Both levels, since a level has to be known at the place of the call.
macro_rules! line {
    ($log:expr, $($fields:tt)*) => {{
        let log = &$log;
        log_contained(|| if log.at_debug {
            tracing::event!(target: "shardwise::traffic", Level::DEBUG, log = &*log.name, $($fields)*)
        } else {
            tracing::event!(target: "shardwise::traffic", Level::TRACE, log = &*log.name, $($fields)*)
        });
    }};
}

impl Logged {
    pub(crate) fn new(log: &TrafficLog, peer: Option<SocketAddr>) -> Self {
        Logged { log: log.clone(), peer, received_bytes: 0, written_bytes: 0 }
    }

    pub(crate) fn count(&mut self, way: Way, bytes: usize) {
        match way {
            Way::Received => self.received_bytes += bytes as u64,
            Way::Written => self.written_bytes += bytes as u64,
        }
    }

    pub(crate) fn begun(&self, shard: usize) {
        let peer = self.peer.map(tracing::field::display);
        line!(self.log, shard, peer, "connected");
    }

    pub(crate) fn moved(&self, shard: usize, way: Way, bytes: &[u8]) {
        let peer = self.peer.map(tracing::field::display);
        let data = shown(self.log.show, bytes);
        let bytes = bytes.len();
        match way {
            Way::Received => line!(self.log, shard, peer, bytes, data, "received"),
            Way::Written => line!(self.log, shard, peer, bytes, data, "written"),
        }
    }

    pub(crate) fn ended(&self, shard: usize, reason: &CloseReason) {
        let peer = self.peer.map(tracing::field::display);
        let Logged { received_bytes, written_bytes, .. } = self;
        line!(self.log, shard, peer, received_bytes, written_bytes, %reason, "ended");
    }
}

/// As much of `bytes` as is to be shown, with "…" where it was cut.
fn shown(show: Show, bytes: &[u8]) -> Option<String> {
    let (most, is_text) = match show {
        Show::Nothing => return None,
        Show::Text(most) => (most, true),
        Show::Hex(most) => (most, false),
    };
    let first = &bytes[..most.min(bytes.len())];
    let mut text = if is_text {
        first.escape_ascii().to_string()
    } else {
        let digits: Vec<String> = first.iter().map(|byte| format!("{byte:02x}")).collect();
        digits.join(" ")
    };
    if first.len() < bytes.len() {
        text.push('…');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_cut_and_harmless() {
        assert_eq!(shown(Show::Nothing, b"secret"), None);
        assert_eq!(shown(Show::Text(6), b"secret").unwrap(), "secret");
        assert_eq!(shown(Show::Text(2), b"secret").unwrap(), "se…");
        assert_eq!(shown(Show::Text(100), b"\x1b]0;x\r\n\xff").unwrap(), r"\x1b]0;x\r\n\xff");
        assert_eq!(shown(Show::Hex(3), b"\x00\xffab").unwrap(), "00 ff 61…");
        assert_eq!(shown(Show::Text(0), b"secret").unwrap(), "…");
    }
}
