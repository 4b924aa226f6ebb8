//! Connections that a proxy hands on: first its header, which says whose they are, then everything else as ever. The
//! header's bytes are `net`'s business.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::Addr;
use crate::error::{CloseReason, Result, log_contained};
use crate::net::connection::{Connection, EndKind};
use crate::net::endpoint::HeaderRule;
use crate::net::input::Input;
use crate::net::ip_network::IpNetwork;
use crate::net::proxy_protocol::{self, ParseError};
use crate::reactor::driver::CloseKind;
use crate::reactor::token::Token;
use crate::shard::Shard;
use crate::shard::connections::{Draining, Handler};
use crate::shard::handles::stream_core::StreamCore;
use crate::shard::handles::transport::{ReadHold, Transport};
use crate::shard::lifecycle::ShardPhase;
use crate::shard::listening::{Answer, Listening};
use crate::shard::protocol::{Incoming, Protocol};

/// Who has to send a header at a listener, and by when.
pub(crate) struct HeaderGate {
    /// Everybody, unless given.
    trusted: Option<Arc<[IpNetwork]>>,
    timeout: Duration,
}

impl HeaderGate {
    pub(crate) fn new(rule: &HeaderRule, default_timeout: Duration) -> Self {
        HeaderGate { trusted: rule.trusted.clone(), timeout: rule.timeout.unwrap_or(default_timeout) }
    }

    /// A UNIX socket's peer is in no network.
    fn trusts(&self, peer: &Addr) -> bool {
        let is_in = |network: &IpNetwork| peer.as_ip().is_some_and(|peer| network.contains(peer.ip()));
        self.trusted.as_ref().is_none_or(|networks| networks.iter().any(is_in))
    }
}

/// Why a connection ended before it was anybody's.
#[derive(Debug)]
enum Refusal {
    Malformed(ParseError),
    Late { after: Duration },
    EndedBefore { received_bytes: usize },
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Malformed(error) => write!(formatter, "{error}"),
            Refusal::Late { after } => write!(formatter, "PROXY protocol: no whole header within {after:?}"),
            Refusal::EndedBefore { received_bytes } => {
                write!(
                    formatter,
                    "PROXY protocol: the connection ended within its header, after {received_bytes} bytes"
                )
            }
        }
    }
}

impl std::error::Error for Refusal {}

impl Shard {
    /// A connection came in, and its header has to come first.
    pub(super) fn await_header(&self, listening: &Rc<Listening>, token: Token, peer: Addr) {
        let Some(gate) = &listening.header else { return };
        if !gate.trusts(&peer) {
            self.inner.stats.proxy_headers_refused.add(1);
            self.inner.driver.borrow_mut().close(token, CloseKind::Orderly);
            let shard = self.inner.id.index();
            log_contained(|| {
                tracing::debug!(shard, %peer, reason = "it is no trusted proxy", "a connection ended");
            });
            return;
        }
        if !self.admit_proxied(token, listening.policies.as_ref(), &peer) {
            return self.inner.driver.borrow_mut().close(token, CloseKind::Reset);
        }
        self.inner.stats.accepted.add(1);
        listening.awaited_headers.set(listening.awaited_headers.get() + 1);
        let awaiting = Awaiting { shard: self.clone(), listening: Rc::clone(listening) };
        let header = AwaitedHeader { timeout: gate.timeout, received_bytes: 0, awaiting: Some(awaiting) };
        self.open_connection(token, Connection::new(peer), Handler::Protocol(Box::new(header)));
    }

    /// The header has come: from here on the connection is as any other. What followed the header waits in it.
    fn begin_behind_header(&self, token: Token, awaiting: &Awaiting, hold: ReadHold) {
        let inner = &self.inner;
        let listening = &awaiting.listening;
        let header = {
            let mut connections = inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token).filter(|slot| slot.connection.is_open()) else {
                return;
            };
            // Nothing more is called until there is a handler.
            let gone = std::mem::replace(&mut slot.handler, Handler::Gone);
            let header = slot.connection.proxy_header().cloned();
            drop(connections);
            self.drop_contained(gone);
            header.expect("it has come")
        };
        let peer = header.peer();
        if !self.admit_peer(token, listening.policies.as_ref(), &peer) {
            return self.end(token, CloseReason::Closed, EndKind::Close(CloseKind::Reset));
        }
        let local = header.local_addr().map_or_else(|| listening.group.addr.clone(), Addr::from);
        let incoming = Incoming { peer: &peer, local: &local, shard: inner.id, proxy_header: Some(&header) };
        let answer = self.make_session(listening).ok().and_then(|session| {
            let answer = self.ask_application(listening, &incoming)?;
            Some((session, answer))
        });
        let Some((session, answer)) = answer else {
            return self.end(token, CloseReason::Closed, EndKind::Close(CloseKind::Orderly));
        };
        let (handler, serve) = match answer {
            Answer::Protocol(protocol) => (Handler::Protocol(protocol), None),
            Answer::Stream(serve) => {
                let core = StreamCore::new();
                (Handler::Stream(Rc::clone(&core)), Some((serve, core)))
            }
        };
        let is_tls = session.is_some();
        {
            let mut connections = inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token) else {
                drop(connections);
                return self.drop_contained(handler);
            };
            if inner.phase.get() == ShardPhase::Draining {
                // Whoever was there to be told of it is not there any more.
                slot.marks.draining = Draining::Later;
            }
            slot.handler = handler;
            match (session, &serve) {
                (Some(session), _) => self.secure(token, slot, session),
                (None, Some((_, core))) => core.keep(&slot.connection.input.take()),
                (None, None) => {}
            }
            if serve.is_none() {
                slot.connection.set_reads_above_high(false);
            }
        }
        if inner.phase.get() == ShardPhase::Draining {
            self.plan_late_drain();
        }
        match serve {
            Some((serve, core)) => serve(self, token, core),
            None => self.call_protocol(token, |protocol, transport| protocol.connected(transport)),
        }
        if is_tls {
            inner.mark_unsettled(token);
        }
        drop(hold);
    }
}

/// A connection's claim to the listener it came from, whose factory is needed for it yet.
struct Awaiting {
    shard: Shard,
    listening: Rc<Listening>,
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        let awaited = &self.listening.awaited_headers;
        awaited.set(awaited.get() - 1);
        self.shard.drop_opener_if_unneeded(&self.listening);
    }
}

/// In a protocol's place until the header has come.
struct AwaitedHeader {
    timeout: Duration,
    received_bytes: usize,
    /// Taken when it has come.
    awaiting: Option<Awaiting>,
}

impl AwaitedHeader {
    fn refuse(&self, transport: &Transport, refusal: Refusal) {
        let shard = transport.shard();
        shard.inner.stats.proxy_headers_refused.add(1);
        // At once, as the specification wants it (section 2): whoever it is expects no answer of ours.
        let reason = CloseReason::Protocol(Box::new(refusal));
        shard.end(transport.token(), reason, EndKind::Close(CloseKind::Orderly));
    }
}

impl Protocol for AwaitedHeader {
    fn connected(&mut self, transport: &Transport) -> Result<()> {
        transport.set_deadline(Some(self.timeout));
        Ok(())
    }

    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        self.received_bytes = input.len();
        let header = match proxy_protocol::parse(input.bytes()) {
            Ok(Some(header)) => header,
            // It comes back with what follows.
            Ok(None) => return Ok(()),
            Err(error) => {
                self.refuse(transport, Refusal::Malformed(error));
                return Ok(());
            }
        };
        let Some(awaiting) = self.awaiting.take() else { return Ok(()) };
        transport.set_deadline(None);
        transport.found_proxy_header(&header);
        input.consume(header.used);
        // This callback is the handler's that is replaced: the next one begins in a turn of its own.
        let (token, hold) = (transport.token(), transport.hold_reading());
        drop(transport.shard().call_later(Duration::ZERO, move |shard| {
            shard.begin_behind_header(token, &awaiting, hold);
        }));
        Ok(())
    }

    fn read_finished(&mut self, transport: &Transport) -> Result<()> {
        let received_bytes = self.received_bytes;
        self.refuse(transport, Refusal::EndedBefore { received_bytes });
        Ok(())
    }

    fn deadline_reached(&mut self, transport: &Transport) -> Result<()> {
        self.refuse(transport, Refusal::Late { after: self.timeout });
        Ok(())
    }

    fn draining(&mut self, transport: &Transport) -> Result<()> {
        // Else it is about to begin, and told then.
        if self.awaiting.is_some() {
            transport.close();
        }
        Ok(())
    }
}
