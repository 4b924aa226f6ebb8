//! The datagram sockets of a shard: what the driver reports becomes calls of protocols, or wakes tasks. A socket of
//! either style is the same object.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::addr::{Addr, UnixAddr};
use crate::error::{CloseReason, ListenError, Result, SendError, log_contained};
use crate::net::udp::family_fits;
use crate::reactor::datagrams::{Batch, Lent};
use crate::reactor::driver::CloseKind;
use crate::reactor::driver::datagrams::{DatagramEvent, DatagramSpec};
use crate::reactor::registry::Registry;
use crate::reactor::token::Token;
use crate::shard::groups::{Group, Net};
use crate::shard::handles::udp_transport::UdpTransport;
use crate::shard::interfaces::udp::{Datagram, DatagramProtocol, UdpOptions};
use crate::shard::interfaces::unix_datagram::UnixDatagramOptions;
use crate::shard::lifecycle::ShardPhase;
use crate::shard::listening::listen_error;
use crate::shard::{Shard, wake_contained};
use crate::sys::datagram::{DATAGRAM_BYTES_MAX, SendFailure};
use crate::sys::socket::{Reuse, Socket};
use crate::sys::unix::NO_IP;

/// The datagram sockets of one shard.
#[derive(Default)]
pub(crate) struct Datagrams {
    table: RefCell<Registry<Rc<UdpCore>>>,
    /// Those that end with this turn.
    ending: RefCell<Vec<Rc<UdpCore>>>,
    has_ending: Cell<bool>,
    /// Open ones that serve whoever comes: a drain waits for their end.
    listening: Cell<usize>,
}

/// One socket, as the shard and all its handles see it.
pub(crate) struct UdpCore {
    pub(crate) token: Token,
    /// One of its own when it shares its address with no other shard.
    pub(crate) group: Arc<Group>,
    pub(crate) is_ipv6: bool,
    /// Whom a UNIX socket is connected to.
    pub(crate) unix_peer: RefCell<Option<UnixAddr>>,
    /// It serves whoever comes, and ends when the shard drains.
    listens: bool,
    style: Style,
    pub(crate) open: Cell<bool>,
    pub(crate) peer: Cell<Option<SocketAddr>>,
    receiving: Cell<bool>,
    /// Absent while its callback runs, and after its end.
    protocol: RefCell<Option<Box<dyn DatagramProtocol>>>,
    /// What has just come, while tasks may take it.
    lent: RefCell<Option<Batch>>,
    /// What they left: one batch at the most, since nothing is received meanwhile.
    kept: RefCell<VecDeque<Kept>>,
    complaint: RefCell<Option<io::Error>>,
    readers: RefCell<Vec<Waker>>,
    writers: RefCell<Vec<Waker>>,
    /// A time has been set at which senders try again.
    retrying: Cell<bool>,
    /// Batches received so far.
    batches: Cell<u64>,
    reason: RefCell<Option<CloseReason>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Protocol,
    Tasks,
}

/// A datagram that nobody waited for.
struct Kept {
    bytes: Box<[u8]>,
    source: SocketAddr,
    name: Option<UnixAddr>,
    truncated: bool,
}

/// Why a UNIX datagram socket was not made.
pub(crate) enum NotBound {
    Stopping,
    Bind(io::Error),
    Connect(io::Error),
}

/// How a socket is bound.
pub(crate) struct Binding<'a> {
    pub(crate) addr: SocketAddr,
    pub(crate) options: &'a UdpOptions,
    /// Whether it shares the address with the other shards, unless the options say something.
    pub(crate) shared: bool,
    pub(crate) listens: bool,
}

/// A kernel without memory says nothing when it has some again.
const NO_BUFFERS_RETRY: Duration = Duration::from_millis(1);
/// Turns in which a socket that drains may still find something in its queue.
const DRAIN_TURNS_MAX: usize = 64;

impl Shard {
    /// Binds a socket, alone or as a member of its address's group.
    pub(crate) fn bind_datagram(
        &self,
        binding: Binding<'_>,
        protocol: Option<Box<dyn DatagramProtocol>>,
    ) -> std::result::Result<UdpTransport, ListenError> {
        let inner = &self.inner;
        let phase = inner.phase.get();
        let too_late = if binding.listens { ShardPhase::Draining } else { ShardPhase::Drained };
        if phase as u8 >= too_late as u8 {
            return Err(ListenError::Stopping);
        }
        let Binding { addr, options, shared, listens } = binding;
        let config = &inner.shared.config;
        let spec = |addr, reuse| DatagramSpec {
            addr,
            reuse,
            datagram_bytes_max: options.datagram_bytes_max,
            joined: options.receive_joined,
            receive_buffer_bytes: options.receive_buffer_bytes,
            send_buffer_bytes: options.send_buffer_bytes,
            datagrams_per_turn: config.datagrams_per_turn,
            bytes_per_turn: config.datagram_bytes_per_turn,
        };
        let (token, group) = if !options.multiple && options.shared.unwrap_or(shared) {
            self.bind_in_group(Net::Udp, addr, |driver, addr, join| {
                let reuse = if join || options.share_port { Reuse::Port } else { Reuse::No };
                driver.bind_datagram(&spec(addr, reuse))
            })?
        } else {
            let reuse = match options {
                UdpOptions { multiple: true, .. } => Reuse::AddrAndPort,
                UdpOptions { share_port: true, .. } => Reuse::Port,
                _ => Reuse::No,
            };
            let bound = inner.driver.borrow_mut().bind_datagram(&spec(addr, reuse));
            let (token, bound) = bound.map_err(|source| listen_error(addr.into(), source))?;
            (token, Arc::new(Group::of_one(bound.into(), inner.id)))
        };
        Ok(self.open_datagram(token, group, listens, protocol, None))
    }

    /// Gives a socket to its protocol, or to tasks.
    fn open_datagram(
        &self,
        token: Token,
        group: Arc<Group>,
        listens: bool,
        protocol: Option<Box<dyn DatagramProtocol>>,
        peer: Option<Addr>,
    ) -> UdpTransport {
        let inner = &self.inner;
        let ip_peer = peer.as_ref().and_then(Addr::as_ip);
        let unix_peer = peer.and_then(|peer| peer.as_unix().cloned());
        let phase = inner.phase.get();
        let core = Rc::new(UdpCore {
            token,
            unix_peer: RefCell::new(unix_peer),
            is_ipv6: group.addr.as_ip().is_some_and(|addr| addr.is_ipv6()),
            group,
            listens,
            style: if protocol.is_some() { Style::Protocol } else { Style::Tasks },
            open: Cell::new(true),
            peer: Cell::new(ip_peer),
            receiving: Cell::new(false),
            protocol: RefCell::new(protocol),
            lent: RefCell::default(),
            kept: RefCell::default(),
            complaint: RefCell::default(),
            readers: RefCell::default(),
            writers: RefCell::default(),
            retrying: Cell::new(false),
            batches: Cell::new(0),
            reason: RefCell::default(),
        });
        inner.datagrams.table.borrow_mut().insert_at(token, Rc::clone(&core));
        inner.datagrams.listening.set(inner.datagrams.listening.get() + usize::from(listens));
        if core.style == Style::Protocol {
            let transport = UdpTransport::new(self.clone(), Rc::clone(&core));
            let outcome = self.call_datagram_protocol(&core, |protocol| protocol.started(&transport));
            if let Some(Err(reason)) = outcome {
                self.end_datagram(&core, reason);
            }
            // Nothing is taken before every shard has started.
            if !listens || phase == ShardPhase::Running {
                self.receive_datagrams(&core, true);
            }
        }
        UdpTransport::new(self.clone(), core)
    }

    /// Binds a datagram socket to a name, or to none, for this shard alone; connects it to `peer`.
    pub(crate) fn bind_unix_datagram(
        &self,
        name: &UnixAddr,
        peer: Option<&UnixAddr>,
        options: &UnixDatagramOptions,
        protocol: Option<Box<dyn DatagramProtocol>>,
    ) -> std::result::Result<UdpTransport, NotBound> {
        let listens = peer.is_none() && protocol.is_some();
        let too_late = if listens { ShardPhase::Draining } else { ShardPhase::Drained };
        if self.inner.phase.get() as u8 >= too_late as u8 {
            return Err(NotBound::Stopping);
        }
        let spec = self.plain_spec(NO_IP, options.datagram_bytes_max);
        let mut driver = self.inner.driver.borrow_mut();
        let token = driver.bind_unix_datagram(name, options.how, &spec).map_err(NotBound::Bind)?;
        if let Some(peer) = peer
            && let Err(source) = driver.connect_unix_datagram(token, peer)
        {
            driver.close(token, CloseKind::Orderly);
            return Err(NotBound::Connect(source));
        }
        drop(driver);
        let group = Arc::new(Group::of_one(Addr::from(name.clone()), self.inner.id));
        Ok(self.open_datagram(token, group, listens, protocol, peer.cloned().map(Addr::from)))
    }

    fn plain_spec(&self, addr: SocketAddr, datagram_bytes_max: usize) -> DatagramSpec {
        let config = &self.inner.shared.config;
        DatagramSpec {
            addr,
            reuse: Reuse::No,
            datagram_bytes_max,
            joined: false,
            receive_buffer_bytes: None,
            send_buffer_bytes: None,
            datagrams_per_turn: config.datagrams_per_turn,
            bytes_per_turn: config.datagram_bytes_per_turn,
        }
    }

    /// A UNIX receiver's queue was full. The kernel says nothing when it has room, unless the two are connected.
    pub(crate) fn retry_later(&self, core: &Rc<UdpCore>) {
        if !core.retrying.replace(true) {
            let core = Rc::clone(core);
            self.call_later(NO_BUFFERS_RETRY, move |shard| {
                core.retrying.set(false);
                shard.on_room(&core);
            });
        }
    }

    /// Takes over a datagram socket that is bound, and perhaps connected, already.
    pub(crate) fn adopt_datagram(
        &self,
        socket: Socket,
        protocol: Box<dyn DatagramProtocol>,
    ) -> io::Result<UdpTransport> {
        let peer = socket.peer().ok();
        let local = socket.local()?;
        let spec = self.plain_spec(local.as_ip().unwrap_or(NO_IP), DATAGRAM_BYTES_MAX);
        let mut driver = self.inner.driver.borrow_mut();
        let token = match local {
            Addr::Ip(_) => driver.adopt_datagram(socket, &spec)?.0,
            Addr::Unix(_) => driver.adopt_unix_datagram(socket, &spec)?,
        };
        drop(driver);
        let group = Arc::new(Group::of_one(local, self.inner.id));
        Ok(self.open_datagram(token, group, true, Some(protocol), peer))
    }

    /// The start barrier is open.
    pub(crate) fn begin_receiving_datagrams(&self) {
        for core in self.datagram_sockets() {
            if core.style == Style::Protocol {
                self.receive_datagrams(&core, true);
            }
        }
    }

    fn receive_datagrams(&self, core: &UdpCore, on: bool) {
        if core.open.get() && core.receiving.replace(on) != on {
            self.inner.driver.borrow_mut().receive(core.token, on);
        }
    }

    fn datagram_sockets(&self) -> Vec<Rc<UdpCore>> {
        let table = self.inner.datagrams.table.borrow();
        table.tokens().into_iter().filter_map(|token| table.get(token).cloned()).collect()
    }

    pub(crate) fn on_datagram_event(&self, token: Token, event: DatagramEvent) {
        let core = self.inner.datagrams.table.borrow().get(token).cloned();
        let Some(core) = core else { return };
        match event {
            DatagramEvent::Received(batch) => self.on_batch(&core, batch),
            DatagramEvent::Room => self.on_room(&core),
            DatagramEvent::Complaint(error) => self.on_complaint(&core, error),
            DatagramEvent::Broken(source) => {
                let (shard, addr) = (self.inner.id.index(), &core.group.addr);
                log_contained(
                    || tracing::error!(shard, %addr, error = %source, "a datagram socket broke; nothing is received here any more"),
                );
                self.end_datagram(&core, CloseReason::Os { call: "receive", source });
            }
        }
    }

    fn on_batch(&self, core: &Rc<UdpCore>, batch: Batch) {
        let stats = &self.inner.stats;
        stats.datagrams_received.add(batch.len() as u64);
        stats.received_bytes.add(batch.bytes() as u64);
        stats.datagrams_dropped.add(batch.dropped().into());
        stats.datagrams_truncated.add(batch.truncated() as u64);
        core.batches.set(core.batches.get() + 1);
        match core.style {
            Style::Protocol => self.deliver_batch(core, batch),
            Style::Tasks => self.lend_batch(core, batch),
        }
    }

    /// Shows the datagrams to the protocol one by one, until it closes its socket.
    fn deliver_batch(&self, core: &Rc<UdpCore>, mut batch: Batch) {
        let Some(mut protocol) = core.protocol.take() else { return };
        let transport = UdpTransport::new(self.clone(), Rc::clone(core));
        while core.open.get() {
            let Some(Lent { bytes, source, name, truncated }) = batch.take() else { break };
            let datagram = Datagram::new(bytes, source, name, truncated);
            let outcome = catch_unwind(AssertUnwindSafe(|| protocol.datagram_received(&transport, datagram)));
            if !matches!(outcome, Ok(Ok(()))) {
                // One datagram is not worth a socket: whoever sent it could take it from all others.
                let _ = self.datagram_callback_failed(outcome);
            }
        }
        *core.protocol.borrow_mut() = Some(protocol);
    }

    /// Lets the waiting tasks run at once, while the datagrams are on loan; what they leave is copied.
    fn lend_batch(&self, core: &Rc<UdpCore>, batch: Batch) {
        *core.lent.borrow_mut() = Some(batch);
        let readers = std::mem::take(&mut *core.readers.borrow_mut());
        if !readers.is_empty() {
            self.inner.executor.run_woken(|| readers.into_iter().for_each(wake_contained));
        }
        let rest = core.lent.take();
        let Some(mut rest) = rest.filter(|rest| rest.len() > 0) else { return };
        if !core.open.get() {
            return;
        }
        self.receive_datagrams(core, false);
        let mut kept = core.kept.borrow_mut();
        while let Some(Lent { bytes, source, name, truncated }) = rest.take() {
            kept.push_back(Kept { bytes: bytes.into(), source, name: name.cloned(), truncated });
        }
    }

    fn on_room(&self, core: &Rc<UdpCore>) {
        let writers = std::mem::take(&mut *core.writers.borrow_mut());
        writers.into_iter().for_each(wake_contained);
        if core.style == Style::Protocol {
            let transport = UdpTransport::new(self.clone(), Rc::clone(core));
            let _ = self.call_datagram_protocol(core, |protocol| protocol.sendable(&transport));
        }
    }

    fn on_complaint(&self, core: &Rc<UdpCore>, error: io::Error) {
        let refused = error.kind() == io::ErrorKind::ConnectionRefused;
        match core.style {
            // A socket without a peer cannot know whom it is about, and does not care.
            _ if core.peer.get().is_none() && core.unix_peer.borrow().is_none() => {
                log_contained(
                    || tracing::debug!(shard = self.inner.id.index(), %error, "about a datagram sent earlier"),
                );
            }
            Style::Protocol if refused => {
                let transport = UdpTransport::new(self.clone(), Rc::clone(core));
                let _ = self.call_datagram_protocol(core, |protocol| protocol.refused(&transport));
            }
            Style::Protocol => {
                log_contained(
                    || tracing::warn!(shard = self.inner.id.index(), %error, "about a datagram sent earlier"),
                );
            }
            Style::Tasks => {
                *core.complaint.borrow_mut() = Some(error);
                core.wake_readers();
            }
        }
    }

    /// Calls the protocol, if it is there: not while another callback of it runs, and not after the end. What went
    /// wrong is told as the reason it would be to end for.
    fn call_datagram_protocol(
        &self,
        core: &UdpCore,
        call: impl FnOnce(&mut dyn DatagramProtocol) -> Result<()>,
    ) -> Option<std::result::Result<(), CloseReason>> {
        let mut protocol = core.protocol.take()?;
        let outcome = catch_unwind(AssertUnwindSafe(|| call(&mut *protocol)));
        *core.protocol.borrow_mut() = Some(protocol);
        Some(self.datagram_callback_failed(outcome))
    }

    fn datagram_callback_failed(
        &self,
        outcome: std::thread::Result<Result<()>>,
    ) -> std::result::Result<(), CloseReason> {
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.inner.stats.datagrams_failed.add(1);
                self.log_failure(&*error, "a datagram protocol failed");
                Err(CloseReason::Protocol(error))
            }
            Err(payload) => {
                self.inner.stats.datagrams_failed.add(1);
                Err(CloseReason::Panicked(self.panicked("a datagram protocol", payload)))
            }
        }
    }

    /// Ends a socket on every shard of its group.
    pub(crate) fn close_datagram(&self, core: &Rc<UdpCore>, reason: CloseReason) {
        let others = core.group.begin_close().unwrap_or_default();
        self.end_datagram(core, reason);
        for member in others.into_iter().filter(|member| *member != self.inner.id) {
            let group = Arc::clone(&core.group);
            let sent = self.inner.endpoint.post(member, move |shard: &Shard| {
                let cores = shard.datagram_sockets();
                if let Some(core) = cores.iter().find(|core| Arc::ptr_eq(&core.group, &group)) {
                    shard.end_datagram(core, CloseReason::Closed);
                }
            });
            if sent.is_err() {
                self.member_left(&core.group, member);
            }
        }
    }

    /// Ends one member with this turn. Nothing more is received from now on.
    fn end_datagram(&self, core: &Rc<UdpCore>, reason: CloseReason) {
        self.receive_datagrams(core, false);
        if !core.open.replace(false) {
            return;
        }
        *core.reason.borrow_mut() = Some(reason);
        core.kept.take();
        self.inner.datagrams.ending.borrow_mut().push(Rc::clone(core));
        self.inner.datagrams.has_ending.set(true);
        core.wake_readers();
        let writers = std::mem::take(&mut *core.writers.borrow_mut());
        writers.into_iter().for_each(wake_contained);
    }

    pub(crate) fn datagrams_end(&self) -> bool {
        self.inner.datagrams.has_ending.get()
    }

    /// Closes what has ended, and tells its protocol: the last thing a turn does.
    pub(crate) fn retire_datagrams(&self) {
        let datagrams = &self.inner.datagrams;
        while datagrams.has_ending.get() {
            let next = datagrams.ending.borrow_mut().pop();
            let Some(core) = next else {
                datagrams.has_ending.set(false);
                break;
            };
            self.inner.driver.borrow_mut().close(core.token, CloseKind::Orderly);
            let removed = datagrams.table.borrow_mut().remove(core.token);
            drop(removed);
            let reason = core.reason.take().unwrap_or(CloseReason::Closed);
            if let Some(mut protocol) = core.protocol.take() {
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| protocol.stopped(reason))) {
                    self.panicked("a datagram protocol", payload);
                }
                self.drop_contained(protocol);
            }
            datagrams.listening.set(datagrams.listening.get() - usize::from(core.listens));
            self.member_left(&core.group, self.inner.id);
            if core.listens {
                self.check_drained();
            }
        }
    }

    /// Whether a drain waits for a socket.
    pub(crate) fn listens_for_datagrams(&self) -> bool {
        self.inner.datagrams.listening.get() > 0
    }

    /// The shard drains: what has come by now is still delivered, then sockets that serve whoever comes are closed.
    pub(crate) fn drain_datagrams(&self) {
        let seen = self.datagram_sockets().into_iter().filter(|core| core.listens && core.open.get());
        let seen = seen.map(|core| (core, u64::MAX)).collect();
        self.drain_datagrams_once_more(seen, DRAIN_TURNS_MAX);
    }

    fn drain_datagrams_once_more(&self, seen: Vec<(Rc<UdpCore>, u64)>, turns_left: usize) {
        let mut still = Vec::new();
        for (core, batches) in seen {
            let now = core.batches.get();
            if now == batches || turns_left == 0 {
                self.close_datagram(&core, CloseReason::Stopped);
            } else {
                still.push((core, now));
            }
        }
        if !still.is_empty() {
            self.call_later(Duration::ZERO, move |shard| {
                shard.drain_datagrams_once_more(still, turns_left.saturating_sub(1));
            });
        }
    }

    /// Ends all sockets of this shard at once; with `listening`, only those that serve whoever comes.
    pub(crate) fn drop_datagrams(&self, listening: bool) {
        for core in self.datagram_sockets() {
            if core.listens || !listening {
                core.group.begin_close();
                self.end_datagram(&core, CloseReason::Stopped);
            }
        }
        self.retire_datagrams();
    }

    /// What a failed send means.
    #[cold]
    pub(crate) fn send_failed(&self, core: &Rc<UdpCore>, error: io::Error, bytes: usize) -> SendError {
        match SendFailure::of(&error) {
            SendFailure::TooLong => SendError::TooLong { bytes },
            SendFailure::NoBuffers => {
                self.retry_later(core);
                SendError::NoRoom
            }
            SendFailure::NoRoom => SendError::NoRoom,
            SendFailure::Other => SendError::Os(error),
        }
    }
}

impl UdpCore {
    /// Whether it may send there now, and whether the kernel has to be told where.
    #[inline]
    pub(crate) fn check_destination(
        &self,
        to: Option<SocketAddr>,
    ) -> std::result::Result<Option<SocketAddr>, SendError> {
        if !self.open.get() {
            return Err(SendError::Closed);
        }
        if let Some(peer) = &*self.unix_peer.borrow() {
            return if to.is_none() {
                Ok(None)
            } else {
                Err(SendError::ConnectedUnix { peer: peer.clone() })
            };
        }
        match (self.peer.get(), to) {
            (None, None) => Err(SendError::NotConnected),
            (None, Some(to)) if family_fits(self.is_ipv6, to) => Ok(Some(to)),
            (None, Some(to)) => Err(SendError::WrongFamily { to }),
            (Some(peer), Some(to)) if to != peer => Err(SendError::Connected { peer }),
            (Some(_), _) => Ok(None),
        }
    }

    /// Gives the next datagram to `take`, if there is one.
    fn next_datagram<T>(&self, shard: &Shard, take: impl FnOnce(Lent<'_>) -> T) -> Option<T> {
        let kept = self.kept.borrow_mut().pop_front();
        if let Some(Kept { bytes, source, name, truncated }) = kept {
            if self.kept.borrow().is_empty() {
                self.kept.take();
                shard.receive_datagrams(self, !self.readers.borrow().is_empty());
            }
            return Some(take(Lent { bytes: &bytes, source, name: name.as_ref(), truncated }));
        }
        let mut lent = self.lent.borrow_mut();
        lent.as_mut()?.take().map(take)
    }

    /// As [`UdpCore::next_datagram`], and waits for one.
    pub(crate) fn poll_datagram<T>(
        &self,
        shard: &Shard,
        context: &Context<'_>,
        take: impl FnOnce(Lent<'_>) -> T,
    ) -> Poll<io::Result<T>> {
        if let Some(received) = self.next_datagram(shard, take) {
            return Poll::Ready(Ok(received));
        }
        if let Some(error) = self.complaint.take() {
            return Poll::Ready(Err(error));
        }
        if !self.open.get() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::NotConnected, "the socket is closed")));
        }
        self.wait_to_receive(shard, context);
        Poll::Pending
    }

    /// Waits for something to receive. Receiving goes on from now on.
    fn wait_to_receive(&self, shard: &Shard, context: &Context<'_>) {
        keep(&self.readers, context);
        shard.receive_datagrams(self, true);
    }

    pub(crate) fn wait_to_send(&self, context: &Context<'_>) {
        keep(&self.writers, context);
    }

    fn wake_readers(&self) {
        let readers = std::mem::take(&mut *self.readers.borrow_mut());
        readers.into_iter().for_each(wake_contained);
    }
}

/// Adds the waker of whoever asks, unless it is there.
fn keep(place: &RefCell<Vec<Waker>>, context: &Context<'_>) {
    let mut wakers = place.borrow_mut();
    if !wakers.iter().any(|kept| kept.will_wake(context.waker())) {
        wakers.push(context.waker().clone());
    }
}
