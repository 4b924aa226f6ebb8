//! Outgoing connections on their way: one outcome each, never before the call that asked for it has returned.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{CloseReason, ConnectError, InvalidAddress, TlsError};
use crate::net::connection::{Connection, EndKind};
use crate::net::tls::Session;
use crate::net::wire::Wire;
use crate::reactor::driver::{CloseKind, ConnectSpec};
use crate::reactor::timer_wheel::{TimerKey, deadline_after};
use crate::reactor::token::Token;
use crate::shard::connections::Handler;
use crate::shard::handles::transport::Transport;
use crate::shard::lifecycle::ShardPhase;
use crate::shard::listening::ProtocolMaker;
use crate::shard::protocol::Incoming;
use crate::shard::{Shard, Timer, wake_contained};

/// The attempts under way.
#[derive(Default)]
pub(crate) struct Attempts {
    table: RefCell<BTreeMap<Token, Attempt>>,
    /// Those whose connection stands, and whose TLS handshake does not.
    handshaking: RefCell<BTreeMap<Token, (SocketAddr, Rc<OutcomeCell>)>>,
}

/// One attempt, as the shard sees it.
struct Attempt {
    addr: SocketAddr,
    target: Target,
    session: Option<Box<Session>>,
    timer: TimerKey,
    timeout: Duration,
    outcome: Rc<OutcomeCell>,
}

/// How a connection is made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConnectHow {
    pub(crate) bind_addr: Option<SocketAddr>,
    pub(crate) timeout: Option<Duration>,
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
    token: Cell<Option<Token>>,
}

type FailureCall = dyn FnOnce(&Shard, ConnectError);

/// An attempt, as whoever asked for it sees it: the heart of `Connecting`.
pub(crate) struct PendingAttempt {
    shard: Shard,
    cell: Rc<OutcomeCell>,
    /// Whether dropping this gives the attempt up.
    owned: bool,
    /// Whether nobody but the asker has the connection: then it ends with this.
    sole_owner: bool,
}

impl Shard {
    /// Begins an attempt. Whatever goes wrong, also right here, is the attempt's outcome.
    pub(crate) fn connect_to(
        &self,
        addr: Result<SocketAddr, InvalidAddress>,
        how: ConnectHow,
        target: Target,
        session: Option<Result<Box<Session>, TlsError>>,
    ) -> PendingAttempt {
        let inner = &self.inner;
        let cell = Rc::new(OutcomeCell::default());
        let sole_owner = matches!(target, Target::Handler(_));
        let pending = PendingAttempt { shard: self.clone(), cell: Rc::clone(&cell), owned: true, sole_owner };
        let bind_addr = how.bind_addr;
        let timeout = how.timeout.unwrap_or(inner.shared.config.connect_timeout);
        let addr = match addr {
            Ok(addr) => addr,
            Err(error) => {
                self.resolve_attempt(&cell, Err(error.into()));
                return pending;
            }
        };
        let session = match session.transpose() {
            Ok(session) => session,
            Err(source) => {
                self.resolve_attempt(&cell, Err(ConnectError::Tls { addr, source }));
                return pending;
            }
        };
        if !matches!(inner.phase.get(), ShardPhase::Starting | ShardPhase::Running | ShardPhase::Draining) {
            self.resolve_attempt(&cell, Err(ConnectError::Stopping));
            return pending;
        }
        let begun = inner.driver.borrow_mut().connect(&ConnectSpec { addr, bind_addr });
        match begun {
            Err(source) => {
                let error = connect_error(addr, bind_addr, source);
                self.resolve_attempt(&cell, Err(error));
            }
            Ok(token) => {
                let deadline = deadline_after(self.read_clock(), timeout);
                let timer = inner
                    .timers
                    .borrow_mut()
                    .insert(deadline, Timer::new(move |shard: &Shard| shard.on_connect_timeout(token)));
                cell.token.set(Some(token));
                let attempt = Attempt { addr, target, session, timer, timeout, outcome: cell };
                inner.attempts.table.borrow_mut().insert(token, attempt);
            }
        }
        pending
    }

    /// The connection stands.
    pub(crate) fn on_connected(&self, token: Token) {
        let inner = &self.inner;
        let Some(attempt) = self.take_attempt(token) else {
            inner.driver.borrow_mut().close(token, CloseKind::Orderly);
            return;
        };
        inner.stats.connected.add(1);
        let handler = match attempt.target {
            Target::Handler(handler) => Some(handler),
            Target::Protocol(mut make) => {
                let local_addr = inner.driver.borrow().local_addr(token).unwrap_or(attempt.addr);
                let incoming = Incoming {
                    peer_addr: attempt.addr,
                    local_addr,
                    shard: inner.id,
                    marker: std::marker::PhantomData,
                };
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
        let ended = matches!(inner.phase.get(), ShardPhase::Drained | ShardPhase::Stopped);
        let Some(handler) = handler.filter(|_| !ended) else {
            inner.driver.borrow_mut().close(token, CloseKind::Orderly);
            self.resolve_attempt(&attempt.outcome, Err(ConnectError::NoProtocol));
            return;
        };
        let mut connection = Connection::new(attempt.addr);
        if let Some(session) = attempt.session {
            connection.wire = Wire::Tls(session);
            attempt.outcome.token.set(Some(token));
            inner.attempts.handshaking.borrow_mut().insert(token, (attempt.addr, attempt.outcome));
            return self.open_connection(token, connection, handler);
        }
        self.open_connection(token, connection, handler);
        self.resolve_attempt(&attempt.outcome, Ok(Transport::new(self.clone(), token)));
    }

    /// The TLS handshake is complete, perhaps of an attempt.
    pub(super) fn attempt_secured(&self, token: Token) {
        if let Some((_, outcome)) = self.take_handshaking(token) {
            self.resolve_attempt(&outcome, Ok(Transport::new(self.clone(), token)));
        }
    }

    /// A connection has ended, perhaps before its TLS handshake was complete: then that is the attempt's outcome.
    pub(super) fn handshake_ended(&self, token: Token, reason: &CloseReason) {
        let Some((addr, outcome)) = self.take_handshaking(token) else { return };
        let error = match reason {
            CloseReason::Tls(source) => ConnectError::Tls { addr, source: source.clone() },
            CloseReason::Os { source, .. } => {
                ConnectError::Os { addr, source: io::Error::new(source.kind(), source.to_string()) }
            }
            CloseReason::Stopped => ConnectError::Stopping,
            CloseReason::Closed | CloseReason::Aborted => ConnectError::Cancelled,
            _ => ConnectError::Tls { addr, source: TlsError::ClosedInHandshake },
        };
        self.resolve_attempt(&outcome, Err(error));
    }

    fn take_handshaking(&self, token: Token) -> Option<(SocketAddr, Rc<OutcomeCell>)> {
        let taken = self.inner.attempts.handshaking.borrow_mut().remove(&token)?;
        taken.1.token.set(None);
        Some(taken)
    }

    /// Whether the failure was an attempt's; if so it is its outcome.
    pub(crate) fn attempt_failed(&self, token: Token, source: io::Error) -> Option<io::Error> {
        let Some(attempt) = self.take_attempt(token) else { return Some(source) };
        self.inner.driver.borrow_mut().close(token, CloseKind::Orderly);
        let error = connect_error(attempt.addr, None, source);
        self.resolve_attempt(&attempt.outcome, Err(error));
        self.drop_contained(attempt);
        None
    }

    pub(crate) fn on_connect_timeout(&self, token: Token) {
        let Some(attempt) = self.take_attempt(token) else { return };
        self.inner.driver.borrow_mut().close(token, CloseKind::Orderly);
        let error = ConnectError::TimedOut { addr: attempt.addr, after: attempt.timeout };
        self.resolve_attempt(&attempt.outcome, Err(error));
        self.drop_contained(attempt);
    }

    /// The shard is stopping: what is not connected yet will not be.
    pub(crate) fn fail_attempts(&self) {
        let tokens: Vec<_> = self.inner.attempts.table.borrow().keys().copied().collect();
        for token in tokens {
            let Some(attempt) = self.take_attempt(token) else { continue };
            self.inner.driver.borrow_mut().close(token, CloseKind::Orderly);
            self.resolve_attempt(&attempt.outcome, Err(ConnectError::Stopping));
            self.drop_contained(attempt);
        }
    }

    fn take_attempt(&self, token: Token) -> Option<Attempt> {
        let attempt = self.inner.attempts.table.borrow_mut().remove(&token)?;
        attempt.outcome.token.set(None);
        drop(self.inner.timers.borrow_mut().cancel(attempt.timer));
        Some(attempt)
    }

    fn resolve_attempt(&self, cell: &OutcomeCell, outcome: Result<Transport, ConnectError>) {
        let on_failure = cell.on_failure.borrow_mut().take();
        match (outcome, on_failure) {
            (Err(error), Some(call)) => self.fail_later(call, error),
            (outcome, _) => *cell.outcome.borrow_mut() = Some(outcome),
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

fn connect_error(addr: SocketAddr, bind_addr: Option<SocketAddr>, source: io::Error) -> ConnectError {
    match (source.kind(), bind_addr) {
        (io::ErrorKind::ConnectionRefused, _) => ConnectError::Refused { addr, source },
        (io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable, Some(addr)) => {
            ConnectError::Bind { addr, source }
        }
        _ => ConnectError::Os { addr, source },
    }
}

impl PendingAttempt {
    pub(crate) fn cancel(&self) {
        let Some(token) = self.cell.token.get() else { return };
        if let Some((_, outcome)) = self.shard.take_handshaking(token) {
            self.shard.end(token, CloseReason::Aborted, EndKind::Close(CloseKind::Orderly));
            return self.shard.resolve_attempt(&outcome, Err(ConnectError::Cancelled));
        }
        let Some(attempt) = self.shard.take_attempt(token) else { return };
        self.shard.inner.driver.borrow_mut().close(token, CloseKind::Orderly);
        self.shard.drop_contained(attempt.target);
        self.shard.resolve_attempt(&attempt.outcome, Err(ConnectError::Cancelled));
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
        let replaced = self.cell.waker.borrow_mut().replace(context.waker().clone());
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for PendingAttempt {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        self.cancel();
        if let (true, Some(Ok(transport))) = (self.sole_owner, self.cell.outcome.borrow_mut().take()) {
            transport.close();
        }
    }
}
