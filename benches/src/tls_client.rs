//! The closed-loop client over TLS: echoes, handshakes and bulk on one thread, every reply checked. Does not compare
//! servers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event};
use rustix::io::Errno;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, NamedGroup, SignatureScheme,
};

use crate::Result;
use crate::client::{Done, PATIENCE, Run, SAMPLED_EVERY, STAMP_BYTES, Until, open_stream, stamp};
use crate::servers::tls::{Bulk, PAYLOAD};

/// What the connections do, with TLS 1.3 all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TlsWorkload {
    connections: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One message in flight on each connection.
    Echo { message_bytes: usize },
    /// Connect, handshake, [`GREETING_BYTES`] there and back, close_notify and FIN both ways; and again.
    Handshake { resumed: bool },
    /// [`BULK_BYTES`] from the server.
    Download { write_bytes: u32 },
    /// [`BULK_BYTES`] to the server.
    Upload { write_bytes: u32 },
}

impl FromStr for TlsWorkload {
    type Err = String;

    /// What follows on `tls`: `CONNECTIONSxBYTES`, `-full`, `-resumed`, `-downloadBYTES` or `-uploadBYTES`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || {
            format!("\"tls{text}\": expected tls64x64, tls-full, tls-resumed, tls-download16384 or the like")
        };
        let number = |number: &str| number.parse().ok().filter(|&number| number > 0).ok_or_else(wrong);
        let write = |text: &str| number(text).and_then(|bytes| u32::try_from(bytes).map_err(|_| wrong()));
        let bulk = |kind| TlsWorkload { connections: BULK_CONNECTIONS, kind };
        let handshake = |resumed| TlsWorkload { connections: 64, kind: Kind::Handshake { resumed } };
        match text {
            "-full" => return Ok(handshake(false)),
            "-resumed" => return Ok(handshake(true)),
            _ => {}
        }
        if let Some(bytes) = text.strip_prefix("-download") {
            return Ok(bulk(Kind::Download { write_bytes: write(bytes)? }));
        }
        if let Some(bytes) = text.strip_prefix("-upload") {
            return Ok(bulk(Kind::Upload { write_bytes: write(bytes)? }));
        }
        let (connections, bytes) = text.split_once('x').ok_or_else(wrong)?;
        let (connections, message_bytes): (usize, usize) = (number(connections)?, number(bytes)?);
        if message_bytes < STAMP_BYTES {
            return Err(wrong());
        }
        Ok(TlsWorkload { connections, kind: Kind::Echo { message_bytes } })
    }
}

/// The connections to one server, kept over all its slices.
pub(crate) struct TlsCrowd {
    epoll: OwnedFd,
    server: SocketAddrV4,
    workload: TlsWorkload,
    config: Arc<ClientConfig>,
    connections: Vec<Connection>,
    buffers: Buffers,
    events: Vec<Event>,
    opened: u64,
}

struct Buffers {
    /// What every message looks like behind its stamp; what uploads consist of.
    pattern: Vec<u8>,
    sealed: Vec<u8>,
    plain: Vec<u8>,
}

struct Connection {
    socket: TcpStream,
    tls: ClientConnection,
    batch: u64,
    started: Instant,
    /// Plaintext of this batch that rustls has taken, and that it has given.
    written: usize,
    received: usize,
    in_flight: bool,
    /// Its end has been announced, both ways are to be closed.
    finished: bool,
}

impl TlsCrowd {
    /// Opens the connections, with their handshakes, unless the workload opens one per message.
    pub(crate) fn connect(port: u16, workload: TlsWorkload) -> Result<Self> {
        let pattern_bytes = match workload.kind {
            Kind::Echo { message_bytes } => message_bytes,
            Kind::Handshake { .. } => GREETING_BYTES,
            Kind::Download { .. } => Bulk::REQUEST_BYTES,
            Kind::Upload { write_bytes } => write_bytes as usize,
        };
        let mut random = fastrand::Rng::with_seed(u64::from(port));
        let mut crowd = TlsCrowd {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            server: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
            workload,
            config: config(matches!(workload.kind, Kind::Handshake { resumed: true }))?,
            connections: Vec::with_capacity(workload.connections),
            buffers: Buffers {
                pattern: (0..pattern_bytes).map(|_| random.u8(..)).collect(),
                sealed: vec![0; BUFFER_BYTES],
                plain: vec![0; BUFFER_BYTES],
            },
            events: Vec::with_capacity(1024),
            opened: 0,
        };
        match workload.kind {
            Kind::Handshake { resumed: false } => {}
            Kind::Handshake { resumed: true } => {
                for _ in 0..workload.connections {
                    crowd.fetch_tickets()?;
                }
            }
            _ => {
                for key in 0..workload.connections {
                    let mut connection = crowd.open(key)?;
                    connection.socket.set_nonblocking(false)?;
                    while connection.tls.is_handshaking() {
                        connection.tls.complete_io(&mut connection.socket)?;
                    }
                    connection.socket.set_nonblocking(true)?;
                    crowd.connections.push(connection);
                }
            }
        }
        Ok(crowd)
    }

    /// A full handshake, for the two tickets that it brings.
    fn fetch_tickets(&self) -> Result<()> {
        let mut socket = TcpStream::connect(self.server)?;
        let mut tls = self.session()?;
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        stream.write_all(&self.buffers.pattern)?;
        // Tickets come before the answer.
        stream.read_exact(&mut [0; GREETING_BYTES])?;
        Ok(())
    }

    fn session(&self) -> Result<ClientConnection> {
        let mut tls = ClientConnection::new(Arc::clone(&self.config), ServerName::try_from("localhost")?)?;
        tls.set_buffer_limit(Some(SEALED_AHEAD_BYTES));
        Ok(tls)
    }

    fn open(&mut self, key: usize) -> Result<Connection> {
        self.opened += 1;
        Ok(Connection {
            socket: open_stream(&self.epoll, self.server, key, self.opened)?.into(),
            tls: self.session()?,
            batch: 0,
            started: Instant::now(),
            written: 0,
            received: 0,
            in_flight: false,
            finished: false,
        })
    }

    /// Keeps every connection busy until `until`. Adds a latency (ns) per message to `latencies`. A message is a mebibyte
    /// where bulk is moved.
    ///
    /// # Errors
    /// When a connection breaks, a reply is not what was sent, a handshake is not of the kind asked for, or nothing moves
    /// for five seconds.
    pub(crate) fn run(&mut self, until: Until, latencies: &mut Histogram<u64>) -> Result<Done> {
        let mut run = Run::new(until);
        let reconnects = matches!(self.workload.kind, Kind::Handshake { .. });
        if reconnects {
            self.connections.clear();
        }
        for key in 0..self.workload.connections {
            if !run.may_start(1) {
                break;
            }
            if reconnects {
                let connection = self.open(key)?;
                self.connections.push(connection);
            }
            self.start_batch(key, &mut run)?;
        }
        let mut events = std::mem::take(&mut self.events);
        while run.in_flight > 0 {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&PATIENCE)) {
                Ok(0) => return Err(format!("nothing moved for 5 s, {} in flight", run.in_flight).into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                let key = event.data.u64() as usize;
                self.serve(key, &mut run, latencies).map_err(|error| format!("connection {key}: {error}"))?;
            }
        }
        self.events = events;
        Ok(Done { requests: run.batches_done, elapsed: run.started.elapsed() })
    }

    fn start_batch(&mut self, key: usize, run: &mut Run) -> Result<()> {
        run.batches_started += 1;
        run.in_flight += 1;
        let connection = &mut self.connections[key];
        connection.batch += 1;
        connection.written = 0;
        connection.received = 0;
        connection.in_flight = true;
        connection.started = run.now;
        if let Some(request) = self.workload.kind.request() {
            connection.tls.writer().write_all(&request.encode())?;
        }
        connection.push(self.workload.kind, &mut self.buffers.pattern, key)
    }

    fn serve(&mut self, key: usize, run: &mut Run, latencies: &mut Histogram<u64>) -> Result<()> {
        let kind = self.workload.kind;
        let connection = &mut self.connections[key];
        let ended = connection.pull(kind, &mut self.buffers, key)?;
        if !connection.in_flight {
            let unasked = ended && !connection.finished;
            return if unasked { Err("an end that nothing asked for".into()) } else { Ok(()) };
        }
        connection.push(kind, &mut self.buffers.pattern, key)?;
        let expected = kind.answer_bytes();
        if connection.received > expected {
            return Err(format!("{} bytes came back, not {expected}", connection.received).into());
        }
        match kind {
            _ if connection.received < expected => {
                return if ended { Err("the server closed it".into()) } else { Ok(()) };
            }
            Kind::Handshake { resumed } if !connection.finished => {
                let wanted = if resumed { HandshakeKind::Resumed } else { HandshakeKind::Full };
                if connection.tls.handshake_kind() != Some(wanted) {
                    return Err(format!("a handshake of kind {:?}", connection.tls.handshake_kind()).into());
                }
                connection.finish()?;
                return Ok(());
            }
            Kind::Handshake { .. } if !ended => return Ok(()),
            _ => {}
        }
        connection.in_flight = false;
        run.now = Instant::now();
        run.batches_done += 1;
        run.in_flight -= 1;
        latencies.saturating_record((run.now - connection.started).as_nanos() as u64);
        if run.may_start(1) {
            if matches!(kind, Kind::Handshake { .. }) {
                let batch = connection.batch;
                self.connections[key] = Connection { batch, ..self.open(key)? };
            }
            self.start_batch(key, run)?;
        }
        Ok(())
    }
}

impl Kind {
    fn request(self) -> Option<Bulk> {
        match self {
            Kind::Download { write_bytes } => Some(Bulk::Download { bytes: BULK_BYTES as u32, write_bytes }),
            Kind::Upload { .. } => Some(Bulk::Upload { bytes: BULK_BYTES as u32 }),
            _ => None,
        }
    }

    /// What is sent in a batch, beside the request.
    fn question_bytes(self) -> usize {
        match self {
            Kind::Echo { message_bytes } => message_bytes,
            Kind::Handshake { .. } => GREETING_BYTES,
            Kind::Download { .. } => 0,
            Kind::Upload { .. } => BULK_BYTES,
        }
    }

    fn answer_bytes(self) -> usize {
        match self {
            Kind::Download { .. } => BULK_BYTES,
            Kind::Upload { .. } => 1,
            _ => self.question_bytes(),
        }
    }
}

impl Connection {
    /// Seals and sends, as far as the kernel takes it.
    fn push(&mut self, kind: Kind, pattern: &mut [u8], key: usize) -> Result<()> {
        let all = kind.question_bytes();
        loop {
            if self.in_flight && self.written < all {
                if matches!(kind, Kind::Echo { .. } | Kind::Handshake { .. }) {
                    pattern[..STAMP_BYTES].copy_from_slice(&stamp(key, self.batch));
                }
                // An upload goes round in the pattern.
                let place = self.written % pattern.len();
                let count = (pattern.len() - place).min(all - self.written);
                self.written += self.tls.writer().write(&pattern[place..place + count])?;
            }
            if !self.tls.wants_write() {
                return Ok(());
            }
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Not connected yet.
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives and opens all there is. Says whether the end has come.
    fn pull(&mut self, kind: Kind, buffers: &mut Buffers, key: usize) -> Result<bool> {
        loop {
            let received = match self.socket.read(&mut buffers.sealed) {
                Ok(0) => return Ok(true),
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let mut sealed = &buffers.sealed[..received];
            while !sealed.is_empty() {
                self.tls.read_tls(&mut sealed)?;
                self.tls.process_new_packets()?;
                loop {
                    match self.tls.reader().read(&mut buffers.plain) {
                        Ok(0) => break,
                        Ok(count) => self.check(kind, &buffers.plain[..count], &mut buffers.pattern, key)?,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if received < buffers.sealed.len() {
                // The next edge tells of more; of an end, too, unless it has come already.
                return self.has_ended();
            }
        }
    }

    fn has_ended(&mut self) -> Result<bool> {
        match self.socket.peek(&mut [0]) {
            Ok(0) => Ok(true),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn check(&mut self, kind: Kind, received: &[u8], pattern: &mut [u8], key: usize) -> Result<()> {
        let start = self.received;
        self.received += received.len();
        let sampled = self.batch.is_multiple_of(SAMPLED_EVERY);
        let same = match kind {
            Kind::Download { .. } if sampled => received.iter().all(|byte| *byte == PAYLOAD),
            Kind::Download { .. } => received.first() == Some(&PAYLOAD),
            Kind::Upload { .. } => received == [Bulk::ACKNOWLEDGED],
            Kind::Echo { .. } | Kind::Handshake { .. } => {
                let checked = if sampled { received.len() } else { STAMP_BYTES.saturating_sub(start) };
                let end = (start + checked.min(received.len())).min(pattern.len());
                pattern[..STAMP_BYTES].copy_from_slice(&stamp(key, self.batch));
                end <= start || received[..end - start] == pattern[start..end]
            }
        };
        if same { Ok(()) } else { Err(format!("batch {} came back changed", self.batch).into()) }
    }

    /// Announces the end, and closes the one way.
    fn finish(&mut self) -> Result<()> {
        self.finished = true;
        self.tls.send_close_notify();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(self.socket.shutdown(Shutdown::Write)?)
    }
}

fn config(resumes: bool) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.resumption =
        if resumes { Resumption::store(Arc::new(Tickets::default())) } else { Resumption::disabled() };
    Ok(Arc::new(config))
}

/// The servers make their certificates themselves. Whoever has the key of one may answer; the signature is checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Tickets of whichever connection: each handshake uses one up, and brings two.
#[derive(Debug, Default)]
struct Tickets {
    tickets: Mutex<Vec<Tls13ClientSessionValue>>,
    group: Mutex<Option<NamedGroup>>,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        *self.group.lock().unwrap_or_else(PoisonError::into_inner) = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        *self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() < TICKETS_MAX {
            tickets.push(ticket);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

const GREETING_BYTES: usize = 64;
const TICKETS_MAX: usize = 1024;
const BULK_BYTES: usize = 1024 * 1024;
const BULK_CONNECTIONS: usize = 8;
const BUFFER_BYTES: usize = 256 * 1024;
/// Ciphertext the client makes before the kernel has taken what is there.
const SEALED_AHEAD_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_read_as_the_tables_write_them() {
        let parse = |text: &str| text.parse::<TlsWorkload>();
        assert_eq!(parse("64x64").unwrap().kind, Kind::Echo { message_bytes: 64 });
        assert_eq!(parse("-resumed").unwrap().kind, Kind::Handshake { resumed: true });
        assert_eq!(parse("-upload16384").unwrap().kind, Kind::Upload { write_bytes: 16384 });
        for wrong in ["", "64", "0x64", "64x7", "-upload", "-upload0", "-download5000000000", "full"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
