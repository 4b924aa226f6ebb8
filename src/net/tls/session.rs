//! One connection's TLS state: ciphertext in, plaintext out, and the other way round.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{CommonState, HandshakeKind, ProtocolVersion};

use super::{TlsClientConfig, TlsInfo, TlsServerConfig, TlsVersion, explain};
use crate::error::TlsError;
use crate::net::wire::{Opened, PIECE_BYTES};
use crate::reactor::lease::Lease;

/// The TLS state of one connection. `Send`, so that it travels with a connection to another shard.
pub(crate) struct Session {
    engine: Engine,
    /// Received, and not used up; the first `used` bytes are.
    incoming: Vec<u8>,
    used: usize,
    /// How many bytes after them rustls has been shown already: the beginning of a record, or of a handshake message.
    seen: usize,
    /// Records of the handshake, tickets and alerts that have to go out before anything else.
    outgoing: Vec<u8>,
    /// Plaintext sealed so far, as far as it matters for the size of records.
    sealed_bytes: usize,
    /// Received while the handshake was under way.
    handshake_bytes: usize,
    /// How the peer began, for those that do not speak TLS.
    first_bytes: [u8; FIRST_BYTES],
    stage: Stage,
    /// rustls has told, once as it does, that the peer has finished. To be passed on yet.
    peer_finished: bool,
    sent_close_notify: bool,
    server_name: Option<Box<str>>,
}

enum Engine {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handshaking,
    Open,
    /// The peer has sent close_notify: what follows is not looked at.
    PeerFinished,
    Failed,
}

/// What rustls had to say.
enum Step {
    Again,
    Data,
    PeerFinished,
    /// It has seen everything.
    Idle,
}

thread_local! {
    /// The name that the client hello just read asks for: rustls tells it to whoever chooses the certificate.
    static ASKED_FOR: RefCell<Option<Box<str>>> = const { RefCell::new(None) };
}

/// A peer that has sent this much and is not done with its handshake is up to no good. One message may have 64 KiB, and
/// come in tiny records.
const HANDSHAKE_BYTES_MAX: usize = 512 * 1024;
const FIRST_BYTES: usize = 8;
const HEADER_BYTES: usize = 5;
/// Until so much is sent records are short, so that the peer can use their beginning soon.
const SHORT_RECORDS_UNTIL: usize = 64 * 1024;
const SHORT_RECORD_BYTES: usize = 4 * 1024;
const RECORD_BYTES: usize = 16 * 1024;
/// More than a record is longer than what it holds.
const RECORD_OVERHEAD: usize = 64;

/// Notes the name for the session whose handshake runs now on this thread.
pub(super) fn note_server_name(name: Option<&str>) {
    ASKED_FOR.set(name.map(Box::from));
}

/// The name of a server, if it can be one.
pub(super) fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_string()).map_err(|_| TlsError::InvalidServerName { name: name.to_string() })
}

impl Session {
    pub(super) fn server(config: &TlsServerConfig) -> Result<Box<Self>, TlsError> {
        let engine = UnbufferedServerConnection::new(Arc::clone(config.rustls())).map_err(|e| explain(&e))?;
        Ok(Self::new(Engine::Server(engine)))
    }

    pub(super) fn client(config: &TlsClientConfig, name: &str) -> Result<Box<Self>, TlsError> {
        let engine = UnbufferedClientConnection::new(Arc::clone(config.rustls()), server_name(name)?)
            .map_err(|e| explain(&e))?;
        let mut session = Self::new(Engine::Client(engine));
        session.server_name = Some(name.into());
        // The hello.
        session.gather_outgoing()?;
        Ok(session)
    }

    fn new(engine: Engine) -> Box<Self> {
        Box::new(Session {
            engine,
            incoming: Vec::new(),
            used: 0,
            seen: 0,
            outgoing: Vec::new(),
            sealed_bytes: 0,
            handshake_bytes: 0,
            first_bytes: [0; FIRST_BYTES],
            stage: Stage::Handshaking,
            peer_finished: false,
            sent_close_notify: false,
            server_name: None,
        })
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.stage == Stage::Handshaking
    }

    /// Whether a stranger may cause the work of its handshake.
    pub(crate) fn is_server(&self) -> bool {
        matches!(self.engine, Engine::Server(_))
    }

    /// Whether no byte has come from the peer.
    pub(crate) fn is_silent(&self) -> bool {
        self.handshake_bytes == 0
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.stage == Stage::Failed
    }

    pub(crate) fn peer_has_finished(&self) -> bool {
        self.stage == Stage::PeerFinished
    }

    /// Whether nothing is sealed any more.
    pub(crate) fn has_finished(&self) -> bool {
        self.has_failed() || self.sent_close_notify
    }

    /// Whether there is something that was not looked at.
    pub(crate) fn has_unopened(&self) -> bool {
        self.peer_finished || self.incoming.len() > self.used + self.seen
    }

    /// The memory that is used for ciphertext, in bytes.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.incoming.capacity()
    }

    /// Whether the session itself has something to say.
    pub(crate) fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Moves what the session itself has to say behind `sealed`.
    pub(crate) fn take_outgoing(&mut self, sealed: &mut Vec<u8>) {
        if self.has_outgoing() {
            sealed.append(&mut self.outgoing);
            self.outgoing = Vec::new();
        }
    }

    /// Keeps ciphertext for later.
    pub(crate) fn keep(&mut self, bytes: &[u8]) {
        self.note_received(bytes);
        self.append(bytes);
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.used > 0 {
            self.incoming.drain(..self.used);
            self.used = 0;
        }
        self.incoming.extend_from_slice(bytes);
    }

    /// Counts what comes while the handshake is under way.
    fn note_received(&mut self, bytes: &[u8]) {
        if self.stage != Stage::Handshaking {
            return;
        }
        let known = self.handshake_bytes.min(FIRST_BYTES);
        let count = bytes.len().min(FIRST_BYTES - known);
        self.first_bytes[known..known + count].copy_from_slice(&bytes[..count]);
        self.handshake_bytes += bytes.len();
    }

    /// Opens what was kept and then `lease`, up to a piece of plaintext, which is put behind the first `filled` bytes of
    /// `plain`. There must be room for two pieces. What is left of the lease has to be kept, or offered again.
    pub(crate) fn open(
        &mut self,
        mut lease: Option<&mut Lease>,
        plain: &mut [u8],
        filled: &mut usize,
    ) -> Opened {
        if self.stage == Stage::Failed || self.stage == Stage::PeerFinished {
            self.forget_incoming();
            return Opened::Drained;
        }
        if let Some(lease) = lease.as_deref() {
            self.note_received(lease);
        }
        loop {
            if self.peer_finished {
                return self.finish_peer(lease);
            }
            let in_place = self.incoming.len() == self.used;
            if !in_place && let Some(lease) = lease.as_deref_mut() {
                self.complete_record(lease);
            }
            let Session { engine, incoming, used, outgoing, .. } = self;
            let buffer = match lease.as_deref_mut() {
                Some(lease) if in_place => &mut lease[..],
                _ => &mut incoming[*used..],
            };
            if *filled > 0 && *filled + record_len(buffer) > PIECE_BYTES {
                return Opened::Full;
            }
            let (discard, step) = engine.advance(buffer, outgoing, plain, filled);
            match lease.as_deref_mut() {
                Some(lease) if in_place => lease.advance(discard),
                _ => self.used += discard,
            }
            self.seen = 0;
            if self.stage == Stage::Handshaking {
                if let Some(name) = ASKED_FOR.take() {
                    self.server_name = Some(name);
                }
                if step.is_ok() && !self.engine.state().is_handshaking() {
                    self.stage = Stage::Open;
                    self.peer_finished = matches!(step, Ok(Step::PeerFinished));
                    return Opened::Secured;
                }
            }
            match step {
                Ok(Step::Again | Step::Data) => continue,
                Err(error) => {
                    let failure = self.explain_failure(&error);
                    self.gather_alert();
                    self.fail();
                    return Opened::Failed(failure);
                }
                Ok(Step::PeerFinished) => return self.finish_peer(lease),
                Ok(Step::Idle) => {}
            }
            if self.used == self.incoming.len() {
                self.forget_incoming();
            }
            if let Some(lease) = lease.as_deref_mut()
                && !lease.is_empty()
            {
                self.append(lease);
                lease.advance(lease.len());
                if !in_place {
                    continue;
                }
            }
            self.seen = self.incoming.len() - self.used;
            if self.stage == Stage::Handshaking && self.handshake_bytes > HANDSHAKE_BYTES_MAX {
                self.fail();
                return Opened::Failed(TlsError::HandshakeTooLong { limit_bytes: HANDSHAKE_BYTES_MAX });
            }
            return Opened::Drained;
        }
    }

    /// Nothing that follows counts.
    fn finish_peer(&mut self, lease: Option<&mut Lease>) -> Opened {
        self.peer_finished = false;
        self.stage = Stage::PeerFinished;
        self.forget_incoming();
        if let Some(lease) = lease {
            lease.advance(lease.len());
        }
        Opened::PeerFinished
    }

    /// Moves bytes from the lease behind what was kept, until its first record is complete: so the rest is opened where
    /// it lies.
    fn complete_record(&mut self, lease: &mut Lease) {
        loop {
            let have = self.incoming.len() - self.used;
            let wanted = record_len(&self.incoming[self.used..]).max(HEADER_BYTES);
            let count = wanted.saturating_sub(have).min(lease.len());
            if count == 0 {
                return;
            }
            self.incoming.extend_from_slice(&lease[..count]);
            lease.advance(count);
        }
    }

    fn forget_incoming(&mut self) {
        self.incoming = Vec::new();
        self.used = 0;
        self.seen = 0;
    }

    /// Nothing more will be sealed or opened.
    pub(crate) fn fail(&mut self) {
        self.stage = Stage::Failed;
        self.forget_incoming();
    }

    /// As `fail`, and there is nothing to say either.
    pub(crate) fn cut_off(&mut self) {
        self.fail();
        self.outgoing = Vec::new();
    }

    /// Seals `plain` behind what has to go out first; with `finish`, close_notify is the last. Only once the handshake is
    /// complete, and before it has finished.
    pub(crate) fn seal(
        &mut self,
        plain: [&[u8]; 2],
        finish: bool,
        sealed: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        debug_assert!(!self.is_handshaking() && !self.has_finished());
        self.gather_outgoing()?;
        self.take_outgoing(sealed);
        let seen = &mut self.incoming[self.used..self.used + self.seen];
        let done = self.engine.write(seen, plain, finish, &mut self.sealed_bytes, sealed);
        self.sent_close_notify |= finish;
        done
    }

    /// Takes what rustls wants to send.
    fn gather_outgoing(&mut self) -> Result<(), TlsError> {
        loop {
            // Only what it has been shown before: nothing new is opened here.
            let seen = &mut self.incoming[self.used..self.used + self.seen];
            let (discard, step) = self.engine.advance(seen, &mut self.outgoing, &mut [], &mut 0);
            self.used += discard;
            self.seen -= discard;
            match step.map_err(|error| explain(&error))? {
                Step::Again => {}
                Step::PeerFinished => self.peer_finished = true,
                Step::Data | Step::Idle => return Ok(()),
            }
        }
    }

    /// Takes the alert that tells the peer of a failure. What has failed must not be shown again.
    fn gather_alert(&mut self) {
        while self.engine.state().wants_write() {
            let (_, step) = self.engine.advance(&mut [], &mut self.outgoing, &mut [], &mut 0);
            if !matches!(step, Ok(Step::Again)) {
                return;
            }
        }
    }

    fn explain_failure(&self, error: &rustls::Error) -> TlsError {
        let first = &self.first_bytes[..self.handshake_bytes.min(FIRST_BYTES)];
        // A record of a handshake or of an alert, in any version of the protocol.
        let is_tls = matches!(first, [20..=23, 3, ..] | [20..=23] | []);
        if self.stage == Stage::Handshaking && !is_tls {
            return TlsError::NotTls { began_with: first.escape_ascii().to_string() };
        }
        explain(error)
    }

    /// What was agreed on; `None` while the handshake is under way.
    pub(crate) fn info(&self) -> Option<TlsInfo> {
        let common = self.engine.state();
        if common.is_handshaking() {
            return None;
        }
        let version = match common.protocol_version()? {
            ProtocolVersion::TLSv1_2 => TlsVersion::V1_2,
            _ => TlsVersion::V1_3,
        };
        let certificates = common.peer_certificates().unwrap_or_default();
        Some(TlsInfo {
            version,
            // rustls calls those of TLS 1.3 by a name of its own.
            cipher_suite: format!("{:?}", common.negotiated_cipher_suite()?.suite())
                .replacen("TLS13_", "TLS_", 1),
            alpn: common.alpn_protocol().map(<[u8]>::to_vec),
            server_name: self.server_name.as_ref().map(|name| name.to_string()),
            peer_certificates: certificates.iter().map(|certificate| certificate.to_vec()).collect(),
            resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
        })
    }
}

impl Engine {
    fn state(&self) -> &CommonState {
        match self {
            Engine::Client(engine) => engine,
            Engine::Server(engine) => engine,
        }
    }

    /// Shows rustls the ciphertext in `buffer`, and does what it asks for. Says how many bytes it is done with, and what to
    /// do next.
    fn advance(
        &mut self,
        buffer: &mut [u8],
        outgoing: &mut Vec<u8>,
        plain: &mut [u8],
        filled: &mut usize,
    ) -> (usize, Result<Step, rustls::Error>) {
        match self {
            Engine::Client(engine) => advance(engine.process_tls_records(buffer), outgoing, plain, filled),
            Engine::Server(engine) => advance(engine.process_tls_records(buffer), outgoing, plain, filled),
        }
    }

    /// Seals `plain`, and close_notify if it is to `finish`. `seen` is what was shown before.
    fn write(
        &mut self,
        seen: &mut [u8],
        plain: [&[u8]; 2],
        finish: bool,
        sealed_bytes: &mut usize,
        sealed: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        match self {
            Engine::Client(engine) => {
                write(engine.process_tls_records(seen), plain, finish, sealed_bytes, sealed)
            }
            Engine::Server(engine) => {
                write(engine.process_tls_records(seen), plain, finish, sealed_bytes, sealed)
            }
        }
    }
}

/// How long the first record is with its header; 0 while that is not known.
fn record_len(bytes: &[u8]) -> usize {
    match bytes {
        [_, _, _, high, low, ..] => HEADER_BYTES + usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    }
}

fn advance<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
    plain: &mut [u8],
    filled: &mut usize,
) -> (usize, Result<Step, rustls::Error>) {
    let mut discard = status.discard;
    let step = match status.state {
        Err(error) => Err(error),
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let begin = outgoing.len();
            if let Err(EncodeError::InsufficientSize(needs)) = data.encode(&mut []) {
                outgoing.resize(begin + needs.required_size, 0);
                let written = data.encode(&mut outgoing[begin..]).expect("it has the room it asked for");
                outgoing.truncate(begin + written);
            }
            Ok(Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(Step::Data),
                Some(Err(error)) => break Err(error),
                Some(Ok(record)) => {
                    let end = *filled + record.payload.len();
                    plain[*filled..end].copy_from_slice(record.payload);
                    *filled = end;
                    discard += record.discard;
                }
            }
        },
        Ok(ConnectionState::PeerClosed) => Ok(Step::PeerFinished),
        Ok(_) => Ok(Step::Idle),
    };
    (discard, step)
}

fn write<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: [&[u8]; 2],
    finish: bool,
    sealed_bytes: &mut usize,
    sealed: &mut Vec<u8>,
) -> Result<(), TlsError> {
    let mut traffic = match status.state {
        Ok(ConnectionState::WriteTraffic(traffic)) => traffic,
        // Both sides have finished.
        Ok(_) => return Ok(()),
        Err(error) => return Err(explain(&error)),
    };
    for mut rest in plain {
        while !rest.is_empty() {
            let short = *sealed_bytes < SHORT_RECORDS_UNTIL;
            let limit = if short { SHORT_RECORD_BYTES } else { RECORD_BYTES };
            let (now, later) = rest.split_at(rest.len().min(limit));
            seal_record(&mut traffic, now, sealed)?;
            if short {
                *sealed_bytes += now.len();
            }
            rest = later;
        }
    }
    if finish {
        with_room(sealed, RECORD_OVERHEAD, |room| traffic.queue_close_notify(room))?;
    }
    Ok(())
}

fn seal_record<Data>(
    traffic: &mut WriteTraffic<'_, Data>,
    plain: &[u8],
    sealed: &mut Vec<u8>,
) -> Result<(), TlsError> {
    with_room(sealed, plain.len() + RECORD_OVERHEAD, |room| traffic.encrypt(plain, room))
}

/// Lets `put` write behind `sealed`; it is asked again if it needs more room than `expected_bytes`.
fn with_room(
    sealed: &mut Vec<u8>,
    expected_bytes: usize,
    mut put: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), TlsError> {
    let begin = sealed.len();
    sealed.resize(begin + expected_bytes, 0);
    let mut written = put(&mut sealed[begin..]);
    if let Err(EncryptError::InsufficientSize(needs)) = &written {
        sealed.resize(begin + needs.required_size, 0);
        written = put(&mut sealed[begin..]);
    }
    sealed.truncate(begin + *written.as_ref().unwrap_or(&0));
    written.map(drop).map_err(|error| TlsError::Protocol(error.to_string()))
}
