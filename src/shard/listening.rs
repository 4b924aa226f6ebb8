//! A shard's listeners: joining their groups, accepting, and closing without losing a queue.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{ListenError, TlsError, log_contained};
use crate::net::connection::Connection;
use crate::net::tls::loading::{self, SessionMaker};
use crate::net::tls::{Session, TlsServerConfig};
use crate::net::wire::Wire;
use crate::reactor::driver::{CloseKind, Driver, Emptied, ListenSpec};
use crate::reactor::timer_wheel::deadline_after;
use crate::reactor::token::Token;
use crate::shard::Shard;
use crate::shard::connections::Handler;
use crate::shard::groups::{Group, GroupKey, Net, Role};
use crate::shard::handles::stream_core::StreamCore;
use crate::shard::lifecycle::ShardPhase;
use crate::shard::protocol::{Incoming, Protocol};
use crate::shard::proxied::HeaderGate;

/// The listeners of one shard. They are few, so they are searched in order.
#[derive(Default)]
pub(crate) struct Listeners {
    open: RefCell<Vec<Rc<Listening>>>,
}

/// One member of a group.
pub(crate) struct Listening {
    pub(crate) token: Token,
    pub(crate) group: Arc<Group>,
    opener: RefCell<Option<Opener>>,
    pub(super) prelude: Prelude,
    /// Accepted by the last look and not yet dispatched.
    undispatched: Cell<usize>,
    /// Connections of which a proxy has still to say whose they are.
    pub(super) awaited_headers: Cell<usize>,
    closed: Cell<bool>,
}

/// What becomes of accepted connections.
pub(crate) enum Opener {
    Protocols(Box<ProtocolMaker>),
    Streams(Rc<StreamServer>),
}

pub(crate) type ProtocolMaker = dyn FnMut(&Incoming<'_>) -> Option<Box<dyn Protocol>>;
/// Runs the handler of a stream, once its connection is open.
pub(crate) type StreamServer = dyn Fn(&Shard, Token, Rc<StreamCore>);

/// What connections begin with, before the application's bytes: first the one, then the other.
#[derive(Default)]
pub(crate) struct Prelude {
    pub(crate) header: Option<HeaderGate>,
    /// Makes the TLS of each connection.
    pub(crate) secure: Option<Box<SessionMaker>>,
}

impl Prelude {
    pub(crate) fn tls(tls: &TlsServerConfig) -> Self {
        Prelude { header: None, secure: Some(loading::server_sessions(tls)) }
    }
}

/// What the application makes of a connection.
pub(crate) enum Answer {
    Protocol(Box<dyn Protocol>),
    Stream(Rc<StreamServer>),
}

/// How a listener is opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ListenHow {
    pub(crate) backlog: Option<u32>,
    pub(crate) share_port: bool,
}

/// Handshakes on loopback are done within the client's own system call, but that may be running right now.
const LOOPBACK_GRACE: Duration = Duration::from_millis(2);

/// Why an address could not be bound.
pub(crate) fn listen_error(addr: SocketAddr, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::AddressInUse { addr },
        _ => ListenError::Os { addr, source },
    }
}
/// How often a closing listener asks for descriptors: well below the rate at which futile calls would cost anything.
const SHORTAGE_RETRY: Duration = Duration::from_millis(50);

impl Listeners {
    fn find(&self, token: Token) -> Option<Rc<Listening>> {
        self.open.borrow().iter().find(|listening| listening.token == token).cloned()
    }

    fn find_group(&self, group: &Arc<Group>) -> Option<Rc<Listening>> {
        self.open.borrow().iter().find(|listening| Arc::ptr_eq(&listening.group, group)).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Rc<Listening>> {
        self.open.borrow().clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }
}

impl Shard {
    /// Binds, or joins whoever of this runtime listens there already.
    pub(crate) fn open_listener(
        &self,
        addr: SocketAddr,
        how: ListenHow,
        opener: Opener,
        prelude: Prelude,
    ) -> Result<Arc<Group>, ListenError> {
        let inner = &self.inner;
        if !matches!(inner.phase.get(), ShardPhase::Starting | ShardPhase::Running) {
            return Err(ListenError::Stopping);
        }
        let config = &inner.shared.config;
        let (token, group) = self.bind_in_group(Net::Tcp, addr, |driver, addr, join| {
            driver.listen(&ListenSpec {
                addr,
                backlog: how.backlog.unwrap_or(config.backlog),
                join: join || how.share_port,
                accepts_per_turn: config.accepts_per_turn,
            })
        })?;
        let listening = Listening {
            token,
            group: Arc::clone(&group),
            opener: RefCell::new(Some(opener)),
            prelude,
            undispatched: Cell::new(0),
            awaited_headers: Cell::new(0),
            closed: Cell::new(false),
        };
        inner.listeners.open.borrow_mut().push(Rc::new(listening));
        if inner.phase.get() == ShardPhase::Running {
            inner.driver.borrow_mut().accept(token, true);
        }
        Ok(group)
    }

    /// Binds `addr` by `bind`, or joins whoever of this runtime is bound there already: then `bind` is told to share
    /// it, and the number of the port.
    pub(crate) fn bind_in_group(
        &self,
        net: Net,
        addr: SocketAddr,
        bind: impl Fn(&mut dyn Driver, SocketAddr, bool) -> io::Result<(Token, SocketAddr)>,
    ) -> Result<(Token, Arc<Group>), ListenError> {
        let inner = &self.inner;
        let key = if addr.port() == 0 {
            let calls = &inner.port_zero_calls[net as usize];
            let call = calls.get();
            calls.set(call + 1);
            GroupKey::PortZero { net, ip: addr.ip(), call }
        } else {
            GroupKey::Addr(net, addr)
        };
        match inner.shared.groups.enter(key, inner.id) {
            Role::Twice(group) => Err(ListenError::AddressInUse { addr: group.addr }),
            Role::First(first) => {
                let mut driver = inner.driver.borrow_mut();
                let (token, bound) =
                    bind(&mut **driver, addr, false).map_err(|source| listen_error(addr, source))?;
                if let Err(source) = driver.share_port(token) {
                    driver.close(token, CloseKind::Orderly);
                    return Err(listen_error(addr, source));
                }
                Ok((token, first.bound(bound)))
            }
            Role::Joins(group) => match bind(&mut **inner.driver.borrow_mut(), group.addr, true) {
                Ok((token, _)) => Ok((token, group)),
                Err(source) => {
                    group.leave(inner.id);
                    Err(listen_error(group.addr, source))
                }
            },
        }
    }

    /// The start barrier is open.
    pub(crate) fn begin_accepting(&self) {
        for listening in self.inner.listeners.all() {
            self.inner.driver.borrow_mut().accept(listening.token, true);
        }
    }

    /// A connection came in.
    pub(crate) fn on_accepted(&self, listener: Token, token: Token, peer_addr: SocketAddr) {
        let inner = &self.inner;
        inner.stats.accepted.add(1);
        let Some(listening) = inner.listeners.find(listener) else {
            inner.driver.borrow_mut().close(token, CloseKind::Orderly);
            return;
        };
        listening.undispatched.set(listening.undispatched.get().saturating_sub(1));
        if listening.prelude.header.is_some() {
            return self.await_header(&listening, token, peer_addr);
        }
        let mut connection = Connection::new(peer_addr);
        let Ok(session) = self.make_session(&listening) else {
            inner.driver.borrow_mut().close(token, CloseKind::Orderly);
            return;
        };
        if let Some(session) = session {
            connection.wire = Wire::Tls(session);
        }
        let local_addr = listening.group.addr;
        let incoming = Incoming { peer_addr, local_addr, shard: inner.id, proxy_header: None };
        match self.ask_application(&listening, &incoming) {
            Some(Answer::Protocol(protocol)) => {
                // Whoever answers is not asked more while the peer does not take what there is.
                connection.set_reads_above_high(false);
                self.open_connection(token, connection, Handler::Protocol(protocol));
            }
            Some(Answer::Stream(serve)) => {
                let core = StreamCore::new();
                self.open_connection(token, connection, Handler::Stream(Rc::clone(&core)));
                serve(self, token, core);
            }
            None => inner.driver.borrow_mut().close(token, CloseKind::Orderly),
        }
    }

    /// The TLS of a connection that is to begin with it. An error was logged.
    pub(super) fn make_session(&self, listening: &Listening) -> Result<Option<Box<Session>>, TlsError> {
        let session = listening.prelude.secure.as_ref().map(|secure| secure()).transpose();
        if let Err(error) = &session {
            tracing::error!(shard = self.inner.id.index(), %error, "a TLS session cannot be made");
        }
        session
    }

    /// Asks the application for the handler of a connection. `None` refuses it.
    pub(super) fn ask_application(&self, listening: &Listening, incoming: &Incoming<'_>) -> Option<Answer> {
        let mut opener = listening.opener.borrow_mut().take();
        let answer = match &mut opener {
            None => unreachable!("factories are not called from within factories"),
            Some(Opener::Streams(serve)) => Some(Answer::Stream(Rc::clone(serve))),
            Some(Opener::Protocols(make)) => match catch_unwind(AssertUnwindSafe(|| make(incoming))) {
                Ok(protocol) => protocol.map(Answer::Protocol),
                Err(payload) => {
                    self.panicked("a factory", payload);
                    None
                }
            },
        };
        *listening.opener.borrow_mut() = opener;
        answer
    }

    /// Accepting failed for now; the driver tries again by itself.
    pub(crate) fn on_accept_failed(&self, listener: Token, error: io::Error) {
        self.inner.stats.accept_failures.add(1);
        let addr = self.inner.listeners.find(listener).map(|listening| listening.group.addr);
        let shard = self.inner.id.index();
        log_contained(|| tracing::warn!(shard, ?addr, %error, "accepting failed; it is tried again"));
    }

    /// Whether the failure was a listener's; if so it is told. The other shards of its group go on accepting.
    pub(crate) fn listener_failed(&self, token: Token, error: io::Error) -> Option<io::Error> {
        let Some(listening) = self.inner.listeners.find(token) else { return Some(error) };
        self.inner.stats.accept_failures.add(1);
        let addr = listening.group.addr;
        let shard = self.inner.id.index();
        log_contained(
            || tracing::error!(shard, %addr, %error, "a listener broke; nothing is accepted here any more"),
        );
        None
    }

    /// Closes a group on all its shards. First every member stops taking handshakes, then every member accepts what
    /// is queued, then it closes: closing one alone would reset what waits at it.
    pub(crate) fn close_group(&self, group: &Arc<Group>) {
        let Some(members) = group.begin_close() else { return };
        for member in members {
            let posted = Arc::clone(group);
            let sent = self.inner.endpoint.post(member, move |shard: &Shard| shard.fence_listener(&posted));
            if sent.is_err() {
                self.member_fenced(group);
                self.member_left(group, member);
            }
        }
    }

    fn fence_listener(&self, group: &Arc<Group>) {
        if let Some(listening) = self.inner.listeners.find_group(group)
            && let Err(error) = self.inner.driver.borrow_mut().refuse_handshakes(listening.token)
        {
            let shard = self.inner.id.index();
            log_contained(|| tracing::debug!(shard, %error, "new handshakes cannot be turned away"));
        }
        self.member_fenced(group);
    }

    fn member_fenced(&self, group: &Arc<Group>) {
        let Some(members) = group.fenced() else { return };
        for member in members {
            let posted = Arc::clone(group);
            let sent = self.inner.endpoint.post(member, move |shard: &Shard| shard.empty_listener(&posted));
            if sent.is_err() {
                self.member_left(group, member);
            }
        }
    }

    /// Accepts what is queued, and once more after handshakes under way had time to finish.
    fn empty_listener(&self, group: &Arc<Group>) {
        let Some(listening) = self.inner.listeners.find_group(group) else {
            self.member_left(group, self.inner.id);
            return;
        };
        if self.inner.phase.get() == ShardPhase::Starting {
            // Nobody is accepted before the start barrier: who waits is turned away.
            self.remove_listener(&listening);
            self.member_left(group, self.inner.id);
            return;
        }
        // From here on only what is asked for is accepted, so that it can be counted.
        self.inner.driver.borrow_mut().accept(listening.token, false);
        self.accept_queue(&listening);
        let give_up_at = deadline_after(self.read_clock(), self.inner.shared.config.drain_timeout);
        let grace = if group.addr.ip().is_loopback() {
            LOOPBACK_GRACE
        } else {
            self.inner.shared.config.handshake_grace
        };
        self.call_later(grace, move |shard| shard.close_listener_when_empty(listening, give_up_at));
    }

    fn accept_queue(&self, listening: &Listening) -> Emptied {
        let emptied = self.inner.driver.borrow_mut().accept_queue(listening.token);
        listening.undispatched.set(listening.undispatched.get() + emptied.accepted);
        emptied
    }

    /// Who waits in the queue while descriptors are short goes on waiting there, until some are free: connections end
    /// meanwhile. Closing would reset them.
    fn close_listener_when_empty(&self, listening: Rc<Listening>, give_up_at: Instant) {
        if self.inner.listeners.find(listening.token).is_none() {
            return;
        }
        let emptied = self.accept_queue(&listening);
        let again_after = if emptied.accepted > 0 || listening.undispatched.get() > 0 {
            Some(Duration::ZERO)
        } else if emptied.more && self.read_clock() < give_up_at {
            Some(SHORTAGE_RETRY)
        } else {
            None
        };
        if let Some(delay) = again_after {
            self.call_later(delay, move |shard| shard.close_listener_when_empty(listening, give_up_at));
            return;
        }
        if emptied.more {
            let addr = listening.group.addr;
            let shard = self.inner.id.index();
            log_contained(
                || tracing::warn!(shard, %addr, "no descriptors for who waits at a closing listener"),
            );
        }
        self.remove_listener(&listening);
        self.member_left(&listening.group, self.inner.id);
    }

    /// Closes the socket and drops the factory.
    fn remove_listener(&self, listening: &Rc<Listening>) {
        self.inner.driver.borrow_mut().close(listening.token, CloseKind::Orderly);
        self.inner.listeners.open.borrow_mut().retain(|kept| !Rc::ptr_eq(kept, listening));
        listening.closed.set(true);
        self.drop_opener_if_unneeded(listening);
        self.check_drained();
    }

    /// Drops the factory of a closed listener, unless connections still wait for the header that says whose they are.
    pub(super) fn drop_opener_if_unneeded(&self, listening: &Listening) {
        if listening.closed.get() && listening.awaited_headers.get() == 0 {
            let opener = listening.opener.borrow_mut().take();
            self.drop_contained(opener);
        }
    }

    pub(crate) fn member_left(&self, group: &Arc<Group>, member: crate::ShardId) {
        if group.leave(member) || group.is_empty() {
            self.inner.shared.groups.forget(group);
            group.closed();
        }
    }

    /// Closes all listeners of this shard alone, at once: the runtime failed to start, was stopped before it had, or is
    /// being aborted.
    pub(crate) fn drop_listeners(&self) {
        for listening in self.inner.listeners.all() {
            listening.group.begin_close();
            self.remove_listener(&listening);
            self.member_left(&listening.group, self.inner.id);
        }
    }
}
