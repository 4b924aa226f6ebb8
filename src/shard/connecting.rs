//! Outgoing connections on their way: one outcome each, never before the call that asked for it has returned.
//!
//! An attempt first finds the addresses of its target, if that is a name, then races them: the next one is begun when the
//! last one has been silent for a while, or at once when it has failed (RFC 8305 §5). The first that stands is the
//! connection.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::addr::{Addr, UnixAddr};
use crate::error::{CloseReason, ConnectError, InvalidAddress, ResolveError, TlsError};
use crate::net::connection::{Connection, EndKind};
use crate::net::connector::{Race, Runner, interleave};
use crate::net::host_name::HostName;
use crate::net::target::ConnectTarget;
use crate::net::tls::{Session, TlsRole};
use crate::net::wire::{Tls, Wire};
use crate::reactor::driver::{CloseKind, ConnectSpec};
use crate::reactor::timer_wheel::{TimerKey, deadline_after};
use crate::reactor::token::Token;
use crate::shard::connections::Handler;
use crate::shard::handles::transport::Transport;
use crate::shard::lifecycle::ShardPhase;
use crate::shard::listening::ProtocolMaker;
use crate::shard::policies::Policies;
use crate::shard::protocol::Incoming;
use crate::shard::{Shard, Timer, wake_contained};
use crate::tasks::JoinHandle;

/// The attempts under way.
#[derive(Default)]
pub(crate) struct Attempts {
    table: RefCell<BTreeMap<AttemptId, Attempt>>,
    /// Whose the sockets are that connect.
    sockets: RefCell<BTreeMap<Token, AttemptId>>,
    last: Cell<u64>,
    /// Those whose connection stands, and whose TLS handshake is under way.
    handshaking: RefCell<BTreeMap<Token, Handshaking>>,
}

struct Handshaking {
    goal: Goal,
    addr: Addr,
    outcome: Rc<OutcomeCell>,
}

/// Names one attempt; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AttemptId(u64);

/// One attempt, as the shard sees it.
struct Attempt {
    goal: Goal,
    target: Target,
    preamble: Preamble,
    how: ConnectHow,
    timer: TimerKey,
    timeout: Duration,
    begun: Instant,
    stage: Stage,
    outcome: Rc<OutcomeCell>,
}

/// What is aimed at.
#[derive(Clone)]
pub(crate) enum Goal {
    Ip(ConnectTarget),
    Unix(UnixAddr),
}

impl Goal {
    /// What callers wrote.
    pub(crate) fn of_target(target: Result<ConnectTarget, InvalidAddress>) -> Result<Goal, ConnectError> {
        Ok(Goal::Ip(target?))
    }

    /// The address, unless it has to be looked up first.
    fn addr(&self) -> Option<Addr> {
        match self {
            Goal::Ip(ConnectTarget::Addr(addr)) => Some((*addr).into()),
            Goal::Ip(ConnectTarget::Name { .. }) => None,
            Goal::Unix(name) => Some(name.clone().into()),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::Ip(target) => write!(formatter, "{target}"),
            Goal::Unix(name) => write!(formatter, "{name}"),
        }
    }
}

/// How far an attempt has come.
enum Stage {
    /// Its task asks for the addresses.
    Resolving(JoinHandle<()>),
    Racing {
        race: Race,
        /// When the next address is tried although the last one has not failed.
        next: Option<TimerKey>,
    },
}

impl Stage {
    fn race(addrs: Vec<Addr>) -> Stage {
        Stage::Racing { race: Race::new(addrs), next: None }
    }
}

/// How to connect, where the defaults do not do.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectHow {
    pub(crate) bind_v4: Option<SocketAddr>,
    pub(crate) bind_v6: Option<SocketAddr>,
    pub(crate) timeout: Option<Duration>,
    /// The connection tells of descriptors.
    pub(crate) takes_descriptors: bool,
    pub(crate) policies: Option<Arc<Policies>>,
}

impl ConnectHow {
    /// Where to connect from. The other family's address when there is no own one: the kernel says why that cannot be.
    fn bind_addr(&self, addr: SocketAddr) -> Option<SocketAddr> {
        let (own, other) =
            if addr.is_ipv6() { (self.bind_v6, self.bind_v4) } else { (self.bind_v4, self.bind_v6) };
        own.or(other)
    }

    /// Whether `addr` can be connected to from where it is wanted.
    fn suits(&self, addr: SocketAddr) -> bool {
        self.bind_addr(addr).is_none_or(|bind| bind.is_ipv6() == addr.is_ipv6())
    }
}

/// What an outgoing connection begins with: first the one, then the other.
#[derive(Default)]
pub(crate) struct Preamble {
    /// Bytes that go out before everything, as they are.
    pub(crate) announcement: Option<Arc<[u8]>>,
    /// How to speak TLS once connected, if that is wanted. The session is made then: who never connects pays for none, and
    /// uses up no ticket.
    pub(crate) secure: Option<TlsRole>,
}

impl Preamble {
    /// TLS alone, if it is to be spoken.
    pub(crate) fn tls(role: Option<&TlsRole>) -> Self {
        Preamble { announcement: None, secure: role.cloned() }
    }
}

/// What becomes of an established connection.
pub(crate) enum Target {
    Protocol(Box<ProtocolMaker>),
    Handler(Handler),
}

/// Where the outcome waits for whoever asked.
#[derive(Default)]
pub(crate) struct OutcomeCell {
    outcome: RefCell<Option<Result<Transport, ConnectError>>>,
    waker: RefCell<Option<Waker>>,
    on_failure: RefCell<Option<Box<FailureCall>>>,
    attempt: Cell<Option<AttemptId>>,
    /// The connection, while its TLS handshake is under way.
    handshaking: Cell<Option<Token>>,
    /// Nobody asks any more.
    given_up: Cell<bool>,
}

type FailureCall = dyn FnOnce(&Shard, ConnectError);

/// An attempt, as whoever asked for it sees it: the heart of `Connecting`.
pub(crate) struct PendingAttempt {
    shard: Shard,
    cell: Rc<OutcomeCell>,
    /// What is aimed at, if it is anything.
    goal: Option<Goal>,
    /// Whether dropping this gives the attempt up.
    owned: bool,
}

impl Shard {
    /// Begins an attempt. Whatever goes wrong, also right here, is the attempt's outcome.
    pub(crate) fn connect_to(
        &self,
        goal: Result<Goal, ConnectError>,
        how: ConnectHow,
        target: Target,
        preamble: Preamble,
    ) -> PendingAttempt {
        let inner = &self.inner;
        let cell = Rc::new(OutcomeCell::default());
        let mut pending =
            PendingAttempt { shard: self.clone(), cell: Rc::clone(&cell), goal: None, owned: true };
        let goal = match goal {
            Ok(goal) => goal,
            Err(error) => {
                self.drop_contained(target);
                self.resolve_attempt(&cell, Err(error));
                return pending;
            }
        };
        pending.goal = Some(goal.clone());
        if let Some(Err(source)) = preamble.secure.as_ref().map(TlsRole::check) {
            self.drop_contained(target);
            self.resolve_attempt(&cell, Err(ConnectError::Tls { target: goal.to_string(), source }));
            return pending;
        }
        if !matches!(inner.phase.get(), ShardPhase::Starting | ShardPhase::Running | ShardPhase::Draining) {
            self.drop_contained(target);
            self.resolve_attempt(&cell, Err(ConnectError::Stopping));
            return pending;
        }
        let id = AttemptId(inner.attempts.last.get() + 1);
        inner.attempts.last.set(id.0);
        cell.attempt.set(Some(id));
        let timeout = how.timeout.unwrap_or(inner.shared.config.connect_timeout);
        let begun = self.read_clock();
        let timer = Timer::new(move |shard: &Shard| shard.on_connect_timeout(id));
        let timer = inner.timers.borrow_mut().insert(deadline_after(begun, timeout), timer);
        let stage = match &goal {
            Goal::Ip(ConnectTarget::Name { host, port }) => {
                Stage::Resolving(self.look_up_for(id, host.clone(), *port))
            }
            Goal::Ip(ConnectTarget::Addr(addr)) => Stage::race(vec![(*addr).into()]),
            Goal::Unix(name) => Stage::race(vec![name.clone().into()]),
        };
        let attempt = Attempt { goal, target, preamble, how, timer, timeout, begun, stage, outcome: cell };
        inner.attempts.table.borrow_mut().insert(id, attempt);
        self.try_next_address(id);
        pending
    }

    fn look_up_for(&self, id: AttemptId, host: HostName, port: u16) -> JoinHandle<()> {
        let shard = self.clone();
        let lookup = self.resolve_name(host, port);
        self.spawn(async move {
            let found = lookup.await;
            shard.on_resolved(id, found);
        })
    }

    fn on_resolved(&self, id: AttemptId, found: Result<Vec<SocketAddr>, ResolveError>) {
        let addrs = match found {
            Ok(addrs) => addrs,
            Err(error) => return self.fail_attempt(id, error.into()),
        };
        let mut table = self.inner.attempts.table.borrow_mut();
        let Some(attempt) = table.get_mut(&id) else { return };
        let mut addrs = interleave(addrs);
        // From an address of one family only that family can be reached. With none left, the kernel says why.
        if addrs.iter().any(|addr| attempt.how.suits(*addr)) {
            addrs.retain(|addr| attempt.how.suits(*addr));
        }
        addrs.truncate(self.inner.shared.config.connect_addresses_max);
        attempt.stage = Stage::race(addrs.into_iter().map(Addr::from).collect());
        drop(table);
        self.try_next_address(id);
    }

    /// Begins to connect to the next address, when the last one has failed or been silent for a while; if that fails at once, to the one after it. With none left, and none under
    /// way, the attempt has failed.
    fn try_next_address(&self, id: AttemptId) {
        let inner = &self.inner;
        let mut table = inner.attempts.table.borrow_mut();
        let Some(attempt) = table.get_mut(&id) else { return };
        let Stage::Racing { race, next } = &mut attempt.stage else { return };
        if let Some(key) = next.take() {
            inner.timers.borrow_mut().cancel(key);
        }
        while let Some(addr) = race.next() {
            // It takes its place when it stands; there is no use in beginning when there is none.
            let policies = attempt.how.policies.as_ref();
            if policies.is_some_and(|policies| !policies.has_place(addr.as_ip())) {
                inner.stats.refused.add(1);
                race.failed(ConnectError::LimitReached { addr });
                continue;
            }
            let bind_addr = addr.as_ip().and_then(|addr| attempt.how.bind_addr(addr));
            let mut driver = inner.driver.borrow_mut();
            let begun = match &addr {
                Addr::Ip(addr) => driver.connect(&ConnectSpec { addr: *addr, bind_addr }),
                Addr::Unix(name) => driver.connect_unix(name),
            };
            match begun {
                Ok(token) => {
                    let begun = driver.read_clock();
                    race.started(Runner { token, addr, begun });
                    inner.attempts.sockets.borrow_mut().insert(token, id);
                    if race.has_waiting() {
                        let at = deadline_after(begun, inner.shared.config.connect_attempt_delay);
                        let timer = Timer::new(move |shard: &Shard| shard.try_next_address(id));
                        *next = Some(inner.timers.borrow_mut().insert(at, timer));
                    }
                    return;
                }
                Err(source) => race.failed(connect_error(addr, bind_addr, source)),
            }
        }
        if race.has_running() {
            return;
        }
        let causes = race.take_causes();
        let error = all_failed(&attempt.goal, causes);
        drop(table);
        self.fail_attempt(id, error);
    }

    /// A connection stands.
    pub(crate) fn on_connected(&self, token: Token) {
        let inner = &self.inner;
        let won =
            self.take_runner(token).and_then(|(id, runner)| Some((runner.addr, self.take_attempt(id)?)));
        let Some((addr, attempt)) = won else {
            inner.driver.borrow_mut().close(token, CloseKind::Orderly);
            return;
        };
        if matches!(inner.phase.get(), ShardPhase::Drained | ShardPhase::Stopped) {
            inner.driver.borrow_mut().close(token, CloseKind::Orderly);
            self.drop_contained((attempt.target, attempt.preamble.secure));
            self.resolve_attempt(&attempt.outcome, Err(ConnectError::Stopping));
            return;
        }
        if !self.admit(token, attempt.how.policies.as_ref(), &addr) {
            inner.driver.borrow_mut().close(token, CloseKind::Reset);
            self.drop_contained((attempt.target, attempt.preamble.secure));
            self.resolve_attempt(&attempt.outcome, Err(ConnectError::LimitReached { addr }));
            return;
        }
        inner.stats.connected.add(1);
        let session =
            match attempt.preamble.secure.map(|role| self.client_session(role, &attempt.goal)).transpose() {
                Ok(session) => session,
                Err(error) => {
                    self.turn_away(token, CloseKind::Orderly);
                    self.drop_contained(attempt.target);
                    self.resolve_attempt(&attempt.outcome, Err(error));
                    return;
                }
            };
        let handler = match attempt.target {
            Target::Handler(handler) => Some(handler),
            Target::Protocol(mut make) => {
                let local = inner.driver.borrow().local_addr(token).unwrap_or_else(|_| addr.clone());
                let incoming = Incoming { peer: &addr, local: &local, shard: inner.id, proxy_header: None };
                let made = catch_unwind(AssertUnwindSafe(|| make(&incoming)));
                self.drop_contained(make);
                match made {
                    Ok(protocol) => protocol.map(Handler::Protocol),
                    Err(payload) => {
                        self.panicked("a factory", payload);
                        None
                    }
                }
            }
        };
        let Some(handler) = handler else {
            self.drop_contained(session);
            self.turn_away(token, CloseKind::Orderly);
            self.resolve_attempt(&attempt.outcome, Err(ConnectError::NoProtocol));
            return;
        };
        let mut connection = Connection::new(addr.clone());
        if attempt.how.takes_descriptors {
            inner.take_descriptors(token, &mut connection, true);
        }
        if let Some(bytes) = &attempt.preamble.announcement {
            connection.queue_sealed(bytes);
        }
        if let Some(session) = session {
            let mut limit = inner.shared.config.handshake_timeout;
            if let Some(timeout) = attempt.how.timeout {
                // The caller's covers the handshake as well.
                let used = self.read_clock().saturating_duration_since(attempt.begun);
                limit = limit.min(timeout.saturating_sub(used));
            }
            connection.wire = Wire::Tls(Tls::new(session, limit));
            attempt.outcome.handshaking.set(Some(token));
            let handshaking = Handshaking { goal: attempt.goal, addr, outcome: attempt.outcome };
            inner.attempts.handshaking.borrow_mut().insert(token, handshaking);
            return self.open_connection(token, connection, handler);
        }
        self.open_connection(token, connection, handler);
        if attempt.preamble.announcement.is_some() {
            inner.mark_unsettled(token);
        }
        self.resolve_attempt(&attempt.outcome, Ok(Transport::new(self.clone(), token)));
    }

    /// Begins TLS, which may call code of the application's.
    fn client_session(&self, role: TlsRole, goal: &Goal) -> Result<Box<Session>, ConnectError> {
        let made = catch_unwind(AssertUnwindSafe(|| role.session()));
        self.drop_contained(role);
        match made {
            Ok(made) => made.map_err(|source| ConnectError::Tls { target: goal.to_string(), source }),
            Err(payload) => {
                self.panicked("code within TLS", payload);
                Err(ConnectError::Cancelled)
            }
        }
    }

    /// The TLS handshake is complete, perhaps of an attempt.
    pub(super) fn attempt_secured(&self, token: Token) {
        if let Some(attempt) = self.take_handshaking(token) {
            self.resolve_attempt(&attempt.outcome, Ok(Transport::new(self.clone(), token)));
        }
    }

    /// A connection has ended, perhaps before its TLS handshake was complete: then that is the attempt's outcome.
    pub(super) fn handshake_ended(&self, token: Token, reason: &CloseReason) {
        let Some(Handshaking { goal, addr, outcome }) = self.take_handshaking(token) else { return };
        let target = goal.to_string();
        let error = match reason {
            CloseReason::Tls(source) => ConnectError::Tls { target, source: source.clone() },
            CloseReason::Os { source, .. } => {
                ConnectError::Os { addr, source: io::Error::new(source.kind(), source.to_string()) }
            }
            CloseReason::Stopped => ConnectError::Stopping,
            CloseReason::WriteStalled { after } => ConnectError::TimedOut { addr, after: *after },
            CloseReason::PeerFinished => ConnectError::Tls { target, source: TlsError::ClosedInHandshake },
            // Whoever has the connection has ended it.
            _ => ConnectError::Cancelled,
        };
        self.resolve_attempt(&outcome, Err(error));
    }

    fn take_handshaking(&self, token: Token) -> Option<Handshaking> {
        let taken = self.inner.attempts.handshaking.borrow_mut().remove(&token)?;
        taken.outcome.handshaking.set(None);
        Some(taken)
    }

    /// Whether the failure was an attempt's; if so the attempt goes on with its next address, at once.
    pub(crate) fn attempt_failed(&self, token: Token, source: io::Error) -> Option<io::Error> {
        let Some((id, runner)) = self.take_runner(token) else { return Some(source) };
        self.inner.driver.borrow_mut().close(token, CloseKind::Orderly);
        if let Some(attempt) = self.inner.attempts.table.borrow_mut().get_mut(&id)
            && let Stage::Racing { race, .. } = &mut attempt.stage
        {
            race.failed(connect_error(runner.addr, None, source));
        }
        self.try_next_address(id);
        None
    }

    pub(crate) fn on_connect_timeout(&self, id: AttemptId) {
        let now = self.read_clock();
        let error = {
            let mut table = self.inner.attempts.table.borrow_mut();
            let Some(attempt) = table.get_mut(&id) else { return };
            let after = attempt.timeout;
            match (&mut attempt.stage, attempt.goal.addr()) {
                (Stage::Resolving(_), _) => {
                    let name = match &attempt.goal {
                        Goal::Ip(ConnectTarget::Name { host, .. }) => host.to_string(),
                        goal => goal.to_string(),
                    };
                    ConnectError::Resolve(ResolveError::TimedOut { name, after })
                }
                (Stage::Racing { .. }, Some(addr)) => ConnectError::TimedOut { addr, after },
                (Stage::Racing { race, .. }, None) => {
                    let mut causes = race.take_causes();
                    let silent = race.running().iter().map(|runner| ConnectError::TimedOut {
                        addr: runner.addr.clone(),
                        after: now.saturating_duration_since(runner.begun),
                    });
                    causes.extend(silent);
                    all_failed(&attempt.goal, causes)
                }
            }
        };
        self.fail_attempt(id, error);
    }

    /// The shard is stopping: what is not connected yet will not be.
    pub(crate) fn fail_attempts(&self) {
        let ids: Vec<_> = self.inner.attempts.table.borrow().keys().copied().collect();
        for id in ids {
            self.fail_attempt(id, ConnectError::Stopping);
        }
    }

    fn fail_attempt(&self, id: AttemptId, error: ConnectError) {
        let Some(attempt) = self.take_attempt(id) else { return };
        self.drop_contained((attempt.target, attempt.preamble.secure));
        self.resolve_attempt(&attempt.outcome, Err(error));
    }

    /// Whose socket this is; it no longer races then.
    fn take_runner(&self, token: Token) -> Option<(AttemptId, Runner)> {
        let attempts = &self.inner.attempts;
        let id = attempts.sockets.borrow_mut().remove(&token)?;
        let mut table = attempts.table.borrow_mut();
        let Stage::Racing { race, .. } = &mut table.get_mut(&id)?.stage else { return None };
        Some((id, race.take(token)?))
    }

    /// Ends an attempt, wherever it is: its timers, its lookup, its sockets.
    fn take_attempt(&self, id: AttemptId) -> Option<Attempt> {
        let inner = &self.inner;
        let mut attempt = inner.attempts.table.borrow_mut().remove(&id)?;
        attempt.outcome.attempt.set(None);
        inner.timers.borrow_mut().cancel(attempt.timer);
        match &mut attempt.stage {
            Stage::Resolving(lookup) => lookup.cancel(),
            Stage::Racing { race, next } => {
                if let Some(key) = next.take() {
                    inner.timers.borrow_mut().cancel(key);
                }
                for runner in race.stop() {
                    inner.attempts.sockets.borrow_mut().remove(&runner.token);
                    inner.driver.borrow_mut().close(runner.token, CloseKind::Orderly);
                }
            }
        }
        Some(attempt)
    }

    fn resolve_attempt(&self, cell: &OutcomeCell, outcome: Result<Transport, ConnectError>) {
        let on_failure = cell.on_failure.borrow_mut().take();
        match (outcome, on_failure) {
            (Err(error), Some(call)) => self.fail_later(call, error),
            // Given up in the callback that was told of it.
            (Ok(transport), _) if cell.given_up.get() => transport.close(),
            (outcome, unneeded) => {
                *cell.outcome.borrow_mut() = Some(outcome);
                // It is the application's.
                self.drop_contained(unneeded);
            }
        }
        let waker = cell.waker.borrow_mut().take();
        if let Some(waker) = waker {
            wake_contained(waker);
        }
    }

    fn fail_later(&self, call: Box<FailureCall>, error: ConnectError) {
        self.call_later(Duration::ZERO, move |shard| call(shard, error));
    }
}

/// What an attempt comes to when no address is left. Of a single address its own failure tells all.
fn all_failed(goal: &Goal, mut causes: Vec<ConnectError>) -> ConnectError {
    match goal.addr() {
        Some(_) => causes.pop().expect("the only address has failed"),
        None => ConnectError::AllFailed { target: goal.to_string(), causes },
    }
}

fn connect_error(addr: Addr, bind_addr: Option<SocketAddr>, source: io::Error) -> ConnectError {
    match (source.kind(), bind_addr) {
        (io::ErrorKind::ConnectionRefused, _) => ConnectError::Refused { addr, source },
        (io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable, Some(addr)) => {
            ConnectError::Bind { addr: addr.into(), source }
        }
        _ => ConnectError::Os { addr, source },
    }
}

impl PendingAttempt {
    pub(crate) fn cancel(&self) {
        if let Some(token) = self.cell.handshaking.get()
            && let Some(attempt) = self.shard.take_handshaking(token)
        {
            self.shard.end(token, CloseReason::Aborted, EndKind::Close(CloseKind::Orderly));
            return self.shard.resolve_attempt(&attempt.outcome, Err(ConnectError::Cancelled));
        }
        let Some(id) = self.cell.attempt.get() else { return };
        self.shard.fail_attempt(id, ConnectError::Cancelled);
    }

    pub(crate) fn goal(&self) -> Option<&Goal> {
        self.goal.as_ref()
    }

    pub(crate) fn on_failure(mut self, call: Box<FailureCall>) {
        self.owned = false;
        let outcome = self.cell.outcome.borrow_mut().take();
        match outcome {
            Some(Err(error)) => self.shard.fail_later(call, error),
            Some(Ok(_)) => {}
            None => *self.cell.on_failure.borrow_mut() = Some(call),
        }
    }
}

impl Future for PendingAttempt {
    type Output = Result<Transport, ConnectError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.cell.outcome.borrow_mut().take() {
            return Poll::Ready(outcome);
        }
        let waker = context.waker().clone();
        let replaced = self.cell.waker.borrow_mut().replace(waker);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for PendingAttempt {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        self.cell.given_up.set(true);
        self.cancel();
        let untaken = self.cell.outcome.borrow_mut().take();
        match untaken {
            Some(Ok(transport)) => transport.close(),
            // A resolver's error is the application's.
            Some(Err(error)) => self.shard.drop_contained(error),
            None => {}
        }
    }
}
