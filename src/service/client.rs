//! A connection that is kept up: brought up, watched, and brought up again after a while.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::backoff::Backoff;
use super::client_error::{ClientError, ClientFailure};
use super::establish::{Aim, ClientBuilder, ClientUnset, End, Establishing, Link, Style};
use crate::error::InvalidAddress;
use crate::net::endpoint::LoadedClient;
use crate::net::target::ToTarget;
use crate::shard::draining::WhenDraining;
use crate::shard::handles::transport::Transport;
use crate::shard::waker_list::{WaitKey, Waiters};
use crate::shard::{Shard, wake_contained};

/// Keeps one connection up, on one shard: connects, prepares the connection, and when it has failed or ended does so again,
/// after a wait that grows with the failures in a row ([`Backoff`]). Cheap to clone; a clone is the same service.
///
/// What becomes of the connection is said in either style:
///
/// ```no_run
/// use shardwise::{Backoff, ClientService, Result, Shard, TcpStream, Transport};
/// # struct Feed;
/// # impl shardwise::Protocol for Feed {
/// #     fn data_received(&mut self, _: &Transport, _: &mut shardwise::Input<'_>) -> Result<()> { Ok(()) }
/// # }
///
/// # async fn example(shard: &Shard) -> Result<()> {
/// // A protocol for each connection:
/// let feed = ClientService::builder("feed.example:7000")?.factory(|| Feed).start(shard);
/// feed.when_connected(3).await?.write(b"subscribe\n")?;
///
/// // Or a task, after a login that must succeed:
/// let worker = ClientService::builder("jobs.example:7001")?
///     .backoff(Backoff::default().factor(1.5))
///     .handler(async |mut stream: TcpStream| {
///         while let Some(job) = stream.read_chunk().await? {
///             println!("{} bytes of work", job.len());
///         }
///         Ok(())
///     })
///     .prepare(async |stream: &mut TcpStream| Ok(stream.write_all(b"login\n").await?))
///     .start(shard);
///
/// worker.stop().await;
/// # Ok(())
/// # }
/// ```
///
/// Dropping the service changes nothing: it goes on until it, or its runtime, is stopped. A drain ends it: the connection
/// is told as any other, and not brought up again.
///
/// # Threads
/// `!Send`: it stays on its shard.
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<shardwise::ClientService>();
/// ```
pub struct ClientService {
    core: Rc<Core>,
}

/// Where a [`ClientService`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientState {
    /// The connection is being established, or prepared.
    Connecting,
    /// It failed, or has ended; a while later it is tried again.
    Waiting,
    /// It stands.
    Connected,
    /// The service was stopped, and waits for the connection to end.
    Disconnecting,
    /// It was started again before that.
    Restarting,
    /// Nothing happens until it is started again.
    Stopped,
}

/// What the handles and the task of one service share.
struct Core {
    shard: Shard,
    aim: Aim,
    backoff: Backoff,
    style: Box<dyn Style>,
    state: Cell<ClientState>,
    /// Attempts in a row that have failed.
    failures: Cell<u32>,
    /// Whether it is to run; `stop` says no, `start` yes.
    wanted: Cell<bool>,
    /// Whether the shard is stopping: then nothing begins any more.
    draining: Cell<bool>,
    transport: RefCell<Option<Transport>>,
    /// Of the protocols it has made.
    end: Rc<End>,
    /// The service's task, while it waits.
    driver: RefCell<Option<Waker>>,
    waiters: RefCell<Vec<Weak<Waiter>>>,
    /// Who waits for a stop, and how many have come to their end.
    stoppers: Waiters,
    stops_ended: Cell<u64>,
}

/// Somebody who waits for the connection.
struct Waiter {
    /// Failures it will still put up with.
    left: Cell<Option<u32>>,
    failures: Cell<u32>,
    outcome: RefCell<Option<Result<Transport, ClientError>>>,
    waker: RefCell<Option<Waker>>,
}

impl ClientService {
    /// Describes a service that connects to `target`.
    ///
    /// # Errors
    /// [`InvalidAddress`], when that is no target.
    pub fn builder(target: impl ToTarget) -> Result<ClientBuilder<ClientUnset>, InvalidAddress> {
        ClientBuilder::new(target)
    }

    /// As [`ClientService::builder`], for an endpoint: with TLS and the endpoint's timeout, if it has them.
    pub fn builder_for(client: &LoadedClient) -> ClientBuilder<ClientUnset> {
        ClientBuilder::to(client.clone())
    }

    pub(super) fn begin(shard: &Shard, aim: Aim, backoff: Backoff, style: Box<dyn Style>) -> Self {
        let core = Rc::new(Core {
            shard: shard.clone(),
            aim,
            backoff,
            style,
            state: Cell::new(ClientState::Stopped),
            failures: Cell::new(0),
            wanted: Cell::new(false),
            draining: Cell::new(false),
            transport: RefCell::default(),
            end: Rc::default(),
            driver: RefCell::default(),
            waiters: RefCell::default(),
            stoppers: Waiters::default(),
            stops_ended: Cell::new(0),
        });
        let service = ClientService { core };
        service.start();
        service
    }

    /// Begins to connect, if the service has stopped. One that is about to stop begins again when its connection has
    /// ended. Without effect on one that runs, and while the shard is stopping.
    pub fn start(&self) {
        let stops = !self.core.wanted.replace(true) && self.core.state.get() != ClientState::Stopped;
        if stops && self.core.state.get() != ClientState::Disconnecting {
            // It had not come to it yet.
            self.core.stop_ended();
        }
        match self.core.state.get() {
            ClientState::Stopped => {
                self.core.failures.set(0);
                self.core.state.set(ClientState::Connecting);
                drop(self.core.shard.spawn(drive(Running::new(&self.core))));
            }
            ClientState::Disconnecting => self.core.state.set(ClientState::Restarting),
            _ => {}
        }
    }

    /// Stops: an attempt or a wait is given up, a connection is closed. The future is ready when that has ended; it need
    /// not be awaited. A task that handles the connection finds it closed, and is waited for.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing: the service stops all the same.
    pub fn stop(&self) -> ClientStopping {
        self.core.wanted.set(false);
        if self.core.state.get() == ClientState::Restarting {
            self.core.state.set(ClientState::Disconnecting);
        }
        self.core.wake_driver();
        let (core, stops_ended) = (Rc::clone(&self.core), self.core.stops_ended.get());
        ClientStopping { core, key: WaitKey::default(), stops_ended }
    }

    /// The connection: the one that stands, or the next one to. Fails once `fail_after` more attempts in a row have failed
    /// (at least one; `None`: never), or when the service stops.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub fn when_connected(&self, fail_after: impl Into<Option<u32>>) -> WhenConnected {
        let connected = self.core.transport.borrow().clone().map(Ok);
        let outcome = match self.core.state.get() {
            ClientState::Connected => connected,
            ClientState::Stopped | ClientState::Disconnecting => Some(Err(ClientError::Stopped)),
            ClientState::Connecting | ClientState::Waiting | ClientState::Restarting => None,
        };
        let waiter = Rc::new(Waiter {
            left: Cell::new(fail_after.into().map(|failures| failures.max(1))),
            failures: Cell::new(0),
            outcome: RefCell::new(outcome),
            waker: RefCell::default(),
        });
        let mut waiters = self.core.waiters.borrow_mut();
        // Those who no longer wait make room for those who do.
        waiters.retain(|waiter| waiter.strong_count() > 0);
        waiters.push(Rc::downgrade(&waiter));
        drop(waiters);
        WhenConnected { waiter }
    }

    /// Where it is.
    pub fn state(&self) -> ClientState {
        self.core.state.get()
    }

    /// How many attempts in a row have failed.
    pub fn failures(&self) -> u32 {
        self.core.failures.get()
    }
}

impl Clone for ClientService {
    fn clone(&self) -> Self {
        ClientService { core: Rc::clone(&self.core) }
    }
}

impl fmt::Debug for ClientService {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("ClientService");
        debug.field("state", &self.state()).field("failures", &self.failures()).finish()
    }
}

/// The time of a service's task. Its end, whatever brought it about, is the service's.
struct Running {
    core: Rc<Core>,
    _draining: WhenDraining,
}

impl Running {
    fn new(core: &Rc<Core>) -> Self {
        let weak = Rc::downgrade(core);
        let draining = core.shard.when_draining(move |_| {
            if let Some(core) = weak.upgrade() {
                core.draining.set(true);
                core.wake_driver();
            }
        });
        core.draining.set(core.shard.is_stopping());
        Running { core: Rc::clone(core), _draining: draining }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.core.state.set(ClientState::Stopped);
        let transport = self.core.transport.borrow_mut().take();
        drop(transport);
        self.core.tell_waiters(|_| Some(Err(ClientError::Stopped)));
        self.core.stop_ended();
    }
}

/// The service's task.
async fn drive(running: Running) {
    let core = &*running.core;
    while core.goes_on() {
        core.state.set(ClientState::Connecting);
        match core.establish().await {
            None => {
                core.given_up().await;
                continue;
            }
            Some(Ok(link)) => core.connected(link).await,
            Some(Err(failure)) => core.failed(failure),
        }
        if core.state.get() != ClientState::Restarting {
            core.pause().await;
        }
    }
}

impl Core {
    fn goes_on(&self) -> bool {
        self.wanted.get() && !self.draining.get()
    }

    /// One attempt; `None` when it was given up since the service is to stop.
    async fn establish(&self) -> Option<Result<Link, ClientFailure>> {
        let mut attempt = self.style.establish(&self.shard, &self.aim, &self.end);
        let outcome = poll_fn(|context| {
            if !self.goes_on() {
                return Poll::Ready(None);
            }
            self.set_driver(context);
            self.poll_contained(&mut attempt, context).map(Some)
        })
        .await;
        // Its hooks are the application's.
        self.shard.drop_contained(attempt);
        outcome
    }

    /// Waits for the end of a connection that was given up before it was the service's.
    async fn given_up(&self) {
        self.state.set(ClientState::Disconnecting);
        poll_fn(|context| self.end.poll(context)).await;
        if self.wanted.get() {
            self.stop_ended();
        }
    }

    fn poll_contained(
        &self,
        attempt: &mut Establishing,
        context: &mut Context<'_>,
    ) -> Poll<Result<Link, ClientFailure>> {
        match catch_unwind(AssertUnwindSafe(|| attempt.as_mut().poll(context))) {
            Ok(polled) => polled,
            Err(payload) => {
                Poll::Ready(Err(ClientFailure::Panicked(self.shard.panicked("a client's prepare", payload))))
            }
        }
    }

    /// Watches a connection to its end, or brings that about.
    async fn connected(&self, link: Link) {
        let Link { transport, mut ended } = link;
        self.failures.set(0);
        self.state.set(ClientState::Connected);
        *self.transport.borrow_mut() = Some(transport.clone());
        self.tell_waiters(|_| Some(Ok(transport.clone())));
        let ended_by_itself = poll_fn(|context| {
            self.set_driver(context);
            match ended.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(true),
                Poll::Pending if self.wanted.get() => Poll::Pending,
                Poll::Pending => Poll::Ready(false),
            }
        })
        .await;
        let held = self.transport.borrow_mut().take();
        drop(held);
        if !ended_by_itself {
            self.state.set(ClientState::Disconnecting);
            self.tell_waiters(|_| Some(Err(ClientError::Stopped)));
            transport.close();
            ended.await;
            if self.wanted.get() {
                self.stop_ended();
            }
        }
    }

    fn stop_ended(&self) {
        self.stops_ended.set(self.stops_ended.get() + 1);
        self.stoppers.wake_all();
    }

    fn failed(&self, failure: ClientFailure) {
        self.failures.set(self.failures.get().saturating_add(1));
        self.shard.log_failure(&failure, "a client is not connected");
        let last = Arc::new(failure);
        self.tell_waiters(|waiter| {
            let failures = waiter.failures.get().saturating_add(1);
            waiter.failures.set(failures);
            let enough = waiter.left.get().is_some_and(|most| failures >= most);
            enough.then(|| Err(ClientError::Failed { failures, last: Arc::clone(&last) }))
        });
        // In it may be an error of the application's.
        self.shard.drop_contained(last);
    }

    /// Waits before the next attempt.
    async fn pause(&self) {
        if !self.goes_on() {
            return;
        }
        self.state.set(ClientState::Waiting);
        let delay = self.backoff.delay(self.failures.get(), self.shard.random());
        let mut sleep = self.shard.sleep(delay);
        poll_fn(|context| {
            if !self.goes_on() {
                return Poll::Ready(());
            }
            self.set_driver(context);
            Pin::new(&mut sleep).poll(context)
        })
        .await;
    }

    fn set_driver(&self, context: &mut Context<'_>) {
        let waker = context.waker().clone();
        let replaced = self.driver.borrow_mut().replace(waker);
        drop(replaced);
    }

    fn wake_driver(&self) {
        let waker = self.driver.borrow_mut().take();
        if let Some(waker) = waker {
            wake_contained(waker);
        }
    }

    /// Gives each waiter the outcome that `tell` has for it, if it has one.
    fn tell_waiters(&self, tell: impl Fn(&Waiter) -> Option<Result<Transport, ClientError>>) {
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        for weak in waiters {
            let Some(waiter) = weak.upgrade() else { continue };
            if waiter.outcome.borrow().is_some() {
                continue;
            }
            let Some(outcome) = tell(&waiter) else {
                self.waiters.borrow_mut().push(weak);
                continue;
            };
            *waiter.outcome.borrow_mut() = Some(outcome);
            let waker = waiter.waker.borrow_mut().take();
            if let Some(waker) = waker {
                wake_contained(waker);
            }
        }
    }
}

/// A future of a service's connection, made by [`ClientService::when_connected`].
#[must_use = "it waits when it is awaited"]
pub struct WhenConnected {
    waiter: Rc<Waiter>,
}

impl Future for WhenConnected {
    type Output = Result<Transport, ClientError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Cloned, so that it can be asked again.
        if let Some(outcome) = &*self.waiter.outcome.borrow() {
            return Poll::Ready(outcome.clone());
        }
        let waker = context.waker().clone();
        let replaced = self.waiter.waker.borrow_mut().replace(waker);
        drop(replaced);
        Poll::Pending
    }
}

impl fmt::Debug for WhenConnected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("WhenConnected")
    }
}

/// Ready when a service has stopped, or would have if it had not been started again; made by [`ClientService::stop`].
pub struct ClientStopping {
    core: Rc<Core>,
    key: WaitKey,
    stops_ended: u64,
}

impl Future for ClientStopping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let ended = self.core.stops_ended.get() > self.stops_ended;
        if ended || self.core.state.get() == ClientState::Stopped {
            return Poll::Ready(());
        }
        let ClientStopping { core, key, .. } = &mut *self;
        core.stoppers.keep(key, context);
        Poll::Pending
    }
}

impl Drop for ClientStopping {
    fn drop(&mut self) {
        self.core.stoppers.forget(&self.key);
    }
}

impl fmt::Debug for ClientStopping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ClientStopping")
    }
}
