//! A shard's listeners: joining their groups, accepting, and closing without losing a queue.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::addr::Addr;
use crate::error::{ListenError, TlsError, log_contained};
use crate::net::connection::Connection;
use crate::net::tls::{Session, TlsRole};
use crate::net::wire::{Tls, Wire};
use crate::reactor::driver::{CloseKind, Driver, Emptied, ListenSpec};
use crate::reactor::timer_wheel::deadline_after;
use crate::reactor::token::Token;
use crate::shard::Shard;
use crate::shard::connections::Handler;
use crate::shard::groups::{Group, GroupKey, Net, Role};
use crate::shard::handles::stream_core::StreamCore;
use crate::shard::lifecycle::ShardPhase;
use crate::shard::policies::Policies;
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
    /// Its connections tell of descriptors.
    takes_descriptors: bool,
    opener: RefCell<Option<Opener>>,
    pub(super) header: Option<HeaderGate>,
    /// Makes the TLS of each connection, if they begin with it.
    secure: Option<Box<SessionMaker>>,
    pub(super) policies: Option<Arc<Policies>>,
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

pub(crate) type SessionMaker = dyn Fn() -> Result<Box<Session>, TlsError>;

/// What the application makes of a connection.
pub(crate) enum Answer {
    Protocol(Box<dyn Protocol>),
    Stream(Rc<StreamServer>),
}

/// How the connections of a listener begin.
pub(crate) struct Opening {
    pub(crate) opener: Opener,
    /// Who has to say first whose they are, if a proxy hands them on.
    pub(crate) header: Option<HeaderGate>,
    /// Makes the TLS of each connection, if they begin with it.
    pub(crate) secure: Option<Box<SessionMaker>>,
    /// They tell of descriptors.
    pub(crate) takes_descriptors: bool,
    /// What they are held to.
    pub(crate) policies: Option<Arc<Policies>>,
}

impl From<Opener> for Opening {
    fn from(opener: Opener) -> Self {
        Opening { opener, header: None, secure: None, takes_descriptors: false, policies: None }
    }
}

pub(crate) fn session_maker(role: TlsRole) -> Box<SessionMaker> {
    Box::new(move || role.session())
}

/// How a listener is opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListenHow {
    pub(crate) backlog: Option<u32>,
    pub(crate) share_port: bool,
    pub(crate) policies: Option<Arc<Policies>>,
}

/// Handshakes on loopback are done within the client's own system call, but that may be running right now.
const LOOPBACK_GRACE: Duration = Duration::from_millis(2);

/// How often a closing listener asks for descriptors: well below the rate at which futile calls would cost anything.
const SHORTAGE_RETRY: Duration = Duration::from_millis(50);

/// Why an address could not be bound.
pub(crate) fn listen_error(addr: Addr, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::AddressInUse { addr },
        _ => ListenError::Os { addr, source },
    }
}

impl Listeners {
    fn find(&self, token: Token) -> Option<Rc<Listening>> {
        self.open.borrow().iter().find(|listening| listening.token == token).cloned()
    }

    pub(super) fn find_group(&self, group: &Arc<Group>) -> Option<Rc<Listening>> {
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
        opening: Opening,
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
        let opening = Opening { policies: how.policies, ..opening };
        self.begin_listening(token, Arc::clone(&group), opening);
        Ok(group)
    }

    /// Serves what comes in at `token`, or is handed over by the group's acceptor.
    pub(super) fn begin_listening(&self, token: Token, group: Arc<Group>, opening: Opening) {
        let Opening { opener, header, secure, takes_descriptors, policies } = opening;
        let listening = Listening {
            token,
            group,
            takes_descriptors,
            opener: RefCell::new(Some(opener)),
            header,
            secure,
            policies,
            undispatched: Cell::new(0),
            awaited_headers: Cell::new(0),
            closed: Cell::new(false),
        };
        self.inner.listeners.open.borrow_mut().push(Rc::new(listening));
        if self.inner.phase.get() == ShardPhase::Running {
            self.inner.driver.borrow_mut().accept(token, true);
        }
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
            GroupKey::Addr(net, addr.into())
        };
        match inner.shared.groups.enter(key, inner.id) {
            Role::Twice(group) => Err(ListenError::AddressInUse { addr: group.addr.clone() }),
            Role::First(first) => {
                let mut driver = inner.driver.borrow_mut();
                let (token, bound) =
                    bind(&mut **driver, addr, false).map_err(|source| listen_error(addr.into(), source))?;
                if let Err(source) = driver.share_port(token) {
                    driver.close(token, CloseKind::Orderly);
                    return Err(listen_error(addr.into(), source));
                }
                Ok((token, first.bound(bound.into())))
            }
            Role::Joins(group) => {
                let shared = group.addr.as_ip().expect("found by an IP address");
                let bound = bind(&mut **inner.driver.borrow_mut(), shared, true);
                match bound {
                    Ok((token, _)) => Ok((token, group)),
                    Err(source) => {
                        self.member_left(&group, inner.id);
                        Err(listen_error(group.addr.clone(), source))
                    }
                }
            }
        }
    }

    /// The start barrier is open.
    pub(crate) fn begin_accepting(&self) {
        for listening in self.inner.listeners.all() {
            self.inner.driver.borrow_mut().accept(listening.token, true);
        }
    }

    /// A connection came in.
    pub(crate) fn on_accepted(&self, listener: Token, token: Token, peer: Addr) {
        let Some(listening) = self.inner.listeners.find(listener) else {
            self.inner.driver.borrow_mut().close(token, CloseKind::Orderly);
            return;
        };
        listening.undispatched.set(listening.undispatched.get().saturating_sub(1));
        if listening.group.acceptor.is_some() {
            self.hand_out(&listening, token, peer);
        } else {
            self.open_accepted(&listening, token, peer);
        }
    }

    /// Gives an accepted connection to the factory.
    pub(super) fn open_accepted(&self, listening: &Rc<Listening>, token: Token, peer: Addr) {
        let inner = &self.inner;
        if listening.header.is_some() {
            return self.await_header(listening, token, peer);
        }
        if !self.admit(token, listening.policies.as_ref(), &peer) {
            // Before anything is done for it, and so that nothing of it is left: see `ConnectionLimit`.
            inner.driver.borrow_mut().close(token, CloseKind::Reset);
            return;
        }
        let mut connection = Connection::new(peer.clone());
        let Ok(session) = self.make_session(listening) else {
            return self.turn_away(token, CloseKind::Orderly);
        };
        if let Some(session) = session {
            connection.wire = Wire::Tls(Tls::new(session, inner.shared.config.handshake_timeout));
        }
        inner.stats.accepted.add(1);
        if listening.takes_descriptors {
            inner.take_descriptors(token, &mut connection, true);
        }
        let local = &listening.group.addr;
        let incoming = Incoming { peer: &peer, local, shard: inner.id, proxy_header: None };
        match self.ask_application(listening, &incoming) {
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
            None => {
                self.turn_away(token, CloseKind::Orderly);
                // Its TLS may be the last to hold what the application has configured it with.
                self.drop_contained(connection);
            }
        }
    }

    /// The TLS of a connection that is to begin with it. An error was logged.
    pub(super) fn make_session(&self, listening: &Listening) -> Result<Option<Box<Session>>, TlsError> {
        let session = listening.secure.as_ref().map(|secure| secure()).transpose();
        if let Err(error) = &session {
            let shard = self.inner.id.index();
            log_contained(|| tracing::error!(shard, %error, "a TLS session cannot be made"));
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
        let addr = self.inner.listeners.find(listener).map(|listening| listening.group.addr.to_string());
        let shard = self.inner.id.index();
        log_contained(|| tracing::warn!(shard, addr, %error, "accepting failed; it is tried again"));
    }

    /// Whether the failure was a listener's; if so it is told. The other shards of its group go on accepting, unless this
    /// one accepted for all: then nobody does, and the group closes.
    pub(crate) fn listener_failed(&self, token: Token, error: io::Error) -> Option<io::Error> {
        let Some(listening) = self.inner.listeners.find(token) else { return Some(error) };
        if listening.group.is_closing() {
            // The last look at its queue meets the same once more.
            return None;
        }
        self.inner.stats.accept_failures.add(1);
        let addr = &listening.group.addr;
        let shard = self.inner.id.index();
        log_contained(
            || tracing::error!(shard, %addr, %error, "a listener broke; nothing is accepted here any more"),
        );
        if listening.group.acceptor.is_some() {
            self.close_group(&listening.group);
        }
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
                self.release_members(group, member);
            }
        }
    }

    fn fence_listener(&self, group: &Arc<Group>) {
        if let Some(listening) = self.inner.listeners.find_group(group) {
            let refused = self.inner.driver.borrow_mut().refuse_handshakes(listening.token);
            if let Err(error) = refused {
                let shard = self.inner.id.index();
                log_contained(|| tracing::debug!(shard, %error, "new handshakes cannot be turned away"));
            }
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
                self.release_members(group, member);
            }
        }
    }

    /// Accepts what is queued, and once more after handshakes under way had time to finish.
    fn empty_listener(&self, group: &Arc<Group>) {
        let Some(listening) = self.inner.listeners.find_group(group) else {
            self.member_closed(group);
            return;
        };
        if self.inner.phase.get() == ShardPhase::Starting {
            // Nobody is accepted before the start barrier: who waits is turned away.
            self.remove_listener(&listening);
            self.member_closed(group);
            return;
        }
        // From here on only what is asked for is accepted, so that it can be counted.
        self.inner.driver.borrow_mut().accept(listening.token, false);
        self.accept_queue(&listening);
        let give_up_at = deadline_after(self.read_clock(), self.inner.shared.config.drain_timeout);
        let grace = match group.addr.as_ip() {
            // Nobody is half connected.
            None => Duration::ZERO,
            Some(addr) if addr.ip().is_loopback() => LOOPBACK_GRACE,
            Some(_) => self.inner.shared.config.handshake_grace,
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
            let addr = &listening.group.addr;
            let shard = self.inner.id.index();
            log_contained(
                || tracing::warn!(shard, %addr, "no descriptors for who waits at a closing listener"),
            );
        }
        self.remove_listener(&listening);
        self.member_closed(&listening.group);
    }

    /// This shard has nothing of the group any more.
    fn member_closed(&self, group: &Arc<Group>) {
        self.member_left(group, self.inner.id);
        self.release_members(group, self.inner.id);
    }

    /// Closes the socket and drops the factory.
    pub(super) fn remove_listener(&self, listening: &Rc<Listening>) {
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
        self.inner.shared.groups.leave(group, member);
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
