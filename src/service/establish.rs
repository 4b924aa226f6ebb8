//! How a service's connection comes to stand, event style or async style: connect, prepare, hand over.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::backoff::Backoff;
use super::client::ClientService;
use super::client_error::ClientFailure;
use crate::error::{InvalidAddress, Result};
use crate::net::endpoint::LoadedClient;
use crate::net::target::ToTarget;
use crate::shard::handles::tcp_stream::TcpStream;
use crate::shard::handles::transport::Transport;
use crate::shard::interfaces::tcp::ConnectOptions;
use crate::shard::layer::Layer;
use crate::shard::protocol::{Factory, Incoming, Protocol};
use crate::shard::{Shard, wake_contained};

/// A [`ClientService`] that is being described: where it connects to, and what becomes of its connections.
///
/// `S` is what the description has so far: [`ClientUnset`], [`ClientEvents`] or [`ClientStreams`].
#[must_use = "nothing is connected before it is started"]
pub struct ClientBuilder<S> {
    aim: Aim,
    backoff: Backoff,
    style: S,
}

/// Where to connect to, and how.
#[derive(Clone)]
pub(super) struct Aim {
    goal: LoadedClient,
    options: ConnectOptions,
}

/// Nothing is said yet about what becomes of the connections.
pub struct ClientUnset(());

/// A protocol is made for each connection.
pub struct ClientEvents {
    factory: Rc<Shelf<Box<MakeProtocol>>>,
    prepare: Option<Rc<PrepareTransport>>,
}

/// A task is run for each connection.
pub struct ClientStreams {
    handler: Rc<dyn HandleStream>,
    prepare: Option<Rc<dyn PrepareStream>>,
}

type MakeProtocol = dyn FnMut(&Incoming<'_>) -> Option<Box<dyn Protocol>>;
type PrepareTransport = dyn Fn(Transport) -> Pin<Box<dyn Future<Output = Result<()>>>>;

trait HandleStream {
    fn handle(self: Rc<Self>, stream: TcpStream) -> Pin<Box<dyn Future<Output = Result<()>>>>;
}

impl<H: AsyncFn(TcpStream) -> Result<()> + 'static> HandleStream for H {
    fn handle(self: Rc<Self>, stream: TcpStream) -> Pin<Box<dyn Future<Output = Result<()>>>> {
        Box::pin(async move { self(stream).await })
    }
}

trait PrepareStream {
    fn prepare<'a>(&'a self, stream: &'a mut TcpStream) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;
}

impl<P: AsyncFn(&mut TcpStream) -> Result<()>> PrepareStream for P {
    fn prepare<'a>(&'a self, stream: &'a mut TcpStream) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>> {
        Box::pin(self(stream))
    }
}

impl ClientBuilder<ClientUnset> {
    pub(super) fn new(target: impl ToTarget) -> std::result::Result<Self, InvalidAddress> {
        Ok(Self::to(LoadedClient::plain(target.to_target()?)))
    }

    pub(super) fn to(goal: LoadedClient) -> Self {
        let aim = Aim { goal, options: ConnectOptions::default() };
        ClientBuilder { aim, backoff: Backoff::default(), style: ClientUnset(()) }
    }

    /// Makes a protocol for each connection.
    pub fn factory<M>(self, mut factory: impl Factory<M>) -> ClientBuilder<ClientEvents> {
        let factory: Box<MakeProtocol> = Box::new(move |incoming| factory.build(incoming));
        let style = ClientEvents { factory: Rc::new(Shelf::new(factory)), prepare: None };
        ClientBuilder { aim: self.aim, backoff: self.backoff, style }
    }

    /// Runs `handler` as a task for each connection, which has ended when the task has.
    pub fn handler<H>(self, handler: H) -> ClientBuilder<ClientStreams>
    where
        H: AsyncFn(TcpStream) -> Result<()> + 'static,
    {
        let style = ClientStreams { handler: Rc::new(handler), prepare: None };
        ClientBuilder { aim: self.aim, backoff: self.backoff, style }
    }
}

impl<S> ClientBuilder<S> {
    /// How to connect.
    pub fn options(mut self, options: &ConnectOptions) -> Self {
        self.aim.options = options.clone();
        self
    }

    /// How long to wait before trying again.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }
}

impl ClientBuilder<ClientEvents> {
    /// Awaits `prepare` for each connection before it counts as one: a login, say. If it fails, or takes longer than
    /// connecting may, the connection is closed and the attempt has failed.
    pub fn prepare<P>(mut self, prepare: P) -> Self
    where
        P: AsyncFn(Transport) -> Result<()> + 'static,
    {
        let prepare = Rc::new(prepare);
        self.style.prepare = Some(Rc::new(move |transport| {
            let prepare = Rc::clone(&prepare);
            Box::pin(async move { prepare(transport).await })
        }));
        self
    }

    /// Begins to connect, on `shard`.
    pub fn start(self, shard: &Shard) -> ClientService {
        ClientService::begin(shard, self.aim, self.backoff, Box::new(self.style))
    }
}

impl ClientBuilder<ClientStreams> {
    /// Awaits `prepare` for each connection before it counts as one, and before its handler is called: a login, say. If
    /// it fails, or takes longer than connecting may, the connection is closed and the attempt has failed.
    pub fn prepare<P>(mut self, prepare: P) -> Self
    where
        P: AsyncFn(&mut TcpStream) -> Result<()> + 'static,
    {
        self.style.prepare = Some(Rc::new(prepare));
        self
    }

    /// Begins to connect, on `shard`.
    pub fn start(self, shard: &Shard) -> ClientService {
        ClientService::begin(shard, self.aim, self.backoff, Box::new(self.style))
    }
}

/// A connection that stands.
pub(super) struct Link {
    pub(super) transport: Transport,
    /// Ready when it has ended.
    pub(super) ended: Pin<Box<dyn Future<Output = ()>>>,
}

/// An attempt to bring a connection up. Dropping it gives it up, wherever it is.
pub(super) type Establishing = Pin<Box<dyn Future<Output = std::result::Result<Link, ClientFailure>>>>;

/// What the two styles do differently.
pub(super) trait Style {
    /// `end` is told of the protocol's.
    fn establish(&self, shard: &Shard, aim: &Aim, end: &Rc<End>) -> Establishing;
}

impl Style for ClientEvents {
    fn establish(&self, shard: &Shard, aim: &Aim, end: &Rc<End>) -> Establishing {
        let (shard, aim, end) = (shard.clone(), aim.clone(), Rc::clone(end));
        let (factory, prepare) = (Rc::clone(&self.factory), self.prepare.clone());
        Box::pin(async move {
            let guarded = Rc::clone(&end);
            let make = move |incoming: &Incoming<'_>| {
                let inner = factory.with(|make| make(incoming))??;
                Some(Watched { inner, _end: EndGuard::new(&guarded) })
            };
            let transport = shard.connect_with(&aim.goal, &aim.options, make).await?;
            let open = ClosedOnDrop { transport: Some(transport.clone()) };
            if let Some(prepare) = prepare {
                let mut prepared = pin!(within(&shard, &aim, prepare(transport)));
                poll_fn(|context| match prepared.as_mut().poll(context) {
                    Poll::Pending if end.poll(context).is_ready() => Poll::Ready(Err(ClientFailure::Lost)),
                    polled => polled,
                })
                .await?;
            }
            Ok(Link { transport: open.keep(), ended: Box::pin(poll_fn(move |context| end.poll(context))) })
        })
    }
}

impl Style for ClientStreams {
    fn establish(&self, shard: &Shard, aim: &Aim, _end: &Rc<End>) -> Establishing {
        let (shard, aim) = (shard.clone(), aim.clone());
        let (handler, prepare) = (Rc::clone(&self.handler), self.prepare.clone());
        Box::pin(async move {
            let mut stream = TcpStream::connect_to_with(&aim.goal, &aim.options).await?;
            if let Some(prepare) = prepare {
                within(&shard, &aim, prepare.prepare(&mut stream)).await?;
            }
            let transport = stream.transport().clone();
            let task = shard.spawn(handler.handle(stream));
            let ended = async move {
                match task.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        shard.log_failure(&*error, "a client's handler failed");
                        shard.drop_contained(error);
                    }
                    Err(error) => {
                        shard.log_failure(&error, "a client's handler did not finish");
                        shard.drop_contained(error);
                    }
                }
            };
            Ok(Link { transport, ended: Box::pin(ended) })
        })
    }
}

/// Prepares a connection for at most as long as connecting may take.
async fn within(
    shard: &Shard,
    aim: &Aim,
    prepare: Pin<Box<dyn Future<Output = Result<()>> + '_>>,
) -> std::result::Result<(), ClientFailure> {
    let timeout = aim.goal.timeout().or(aim.options.how().timeout);
    let after: Duration = timeout.unwrap_or(shard.inner.shared.config.connect_timeout);
    match shard.timeout(after, prepare).await {
        Ok(outcome) => outcome.map_err(ClientFailure::Prepare),
        Err(_) => Err(ClientFailure::PrepareTimedOut { after }),
    }
}

/// A protocol whose end is noticed.
struct Watched {
    inner: Box<dyn Protocol>,
    /// Dropped after the protocol.
    _end: EndGuard,
}

impl Layer for Watched {
    fn inner(&mut self) -> &mut dyn Protocol {
        &mut *self.inner
    }
}

/// Whether the protocols of a service have ended, and who waits for that.
#[derive(Default)]
pub(super) struct End {
    alive: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

impl End {
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.alive.get() == 0 {
            return Poll::Ready(());
        }
        let waker = context.waker().clone();
        let replaced = self.waker.borrow_mut().replace(waker);
        drop(replaced);
        Poll::Pending
    }
}

struct EndGuard {
    end: Rc<End>,
}

impl EndGuard {
    fn new(end: &Rc<End>) -> Self {
        end.alive.set(end.alive.get() + 1);
        EndGuard { end: Rc::clone(end) }
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.end.alive.set(self.end.alive.get() - 1);
        let waker = self.end.waker.borrow_mut().take();
        if let Some(waker) = waker {
            wake_contained(waker);
        }
    }
}

/// A connection that nobody wants unless it is kept.
struct ClosedOnDrop {
    transport: Option<Transport>,
}

impl ClosedOnDrop {
    fn keep(mut self) -> Transport {
        self.transport.take().expect("kept once")
    }
}

impl Drop for ClosedOnDrop {
    fn drop(&mut self) {
        if let Some(transport) = self.transport.take() {
            transport.close();
        }
    }
}

/// Holds what is taken out while it is used, so that no borrow lasts over application code.
struct Shelf<T> {
    place: Cell<Option<T>>,
}

impl<T> Shelf<T> {
    fn new(value: T) -> Self {
        Shelf { place: Cell::new(Some(value)) }
    }

    /// `None` while it is in use already.
    fn with<R>(&self, with: impl FnOnce(&mut T) -> R) -> Option<R> {
        /// Puts the value back, also when what used it panics.
        struct PutBack<'a, T>(&'a Shelf<T>, Option<T>);
        impl<T> Drop for PutBack<'_, T> {
            fn drop(&mut self) {
                self.0.place.set(self.1.take());
            }
        }
        let mut taken = PutBack(self, Some(self.place.take()?));
        taken.1.as_mut().map(with)
    }
}
