//! The policies of a shard's connections at work: who is held to what, when it may go on, and when it is idle. A connection
//! that has none is not in the table, and its slot says so.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::addr::Addr;
use crate::error::{CloseReason, log_contained};
use crate::net::connection::{EndKind, Flushed};
use crate::reactor::driver::CloseKind;
use crate::reactor::lease::Lease;
use crate::reactor::registry::Registry;
use crate::reactor::timer_wheel::deadline_after;
use crate::reactor::token::Token;
use crate::shard::connections::Slot;
use crate::shard::policies::{ConnectionLimit, Idle, Logged, Policed, Policies, Reached, Watched, Way};
use crate::shard::{Inner, Shard, Timer};

/// What the connections of one shard are held to, those alone that are held to anything.
pub(crate) struct Policing {
    table: RefCell<Registry<Box<Policed>>>,
    len: Cell<usize>,
}

impl Policing {
    pub(crate) fn new() -> Self {
        Policing { table: RefCell::new(Registry::new()), len: Cell::new(0) }
    }

    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len.get() == 0
    }

    /// Has it ready for the connection that is about to be opened as `token`.
    pub(crate) fn prepare(&self, token: Token, policed: Box<Policed>) {
        self.table.borrow_mut().insert_at(token, policed);
        self.len.set(self.len.get() + 1);
    }

    fn remove(&self, token: Token) -> Option<Box<Policed>> {
        let removed = self.table.borrow_mut().remove(token);
        if removed.is_some() {
            self.len.set(self.len.get() - 1);
        }
        removed
    }
}

impl Inner {
    /// Takes it off the table, for a connection that is gone, or goes elsewhere. Dropping it gives its places back.
    pub(crate) fn take_policed(&self, token: Token) -> Option<Box<Policed>> {
        if self.policing.is_empty() {
            return None;
        }
        let mut policed = self.policing.remove(token)?;
        self.stop_policing(&mut policed);
        Some(policed)
    }

    fn stop_policing(&self, policed: &mut Policed) {
        let mut timers = self.timers.borrow_mut();
        policed.stop().for_each(|key| drop(timers.cancel(key)));
    }

    /// As `Connection::flush`, for a connection whose slot is watched.
    #[cold]
    #[inline(never)]
    pub(super) fn flush_policed(&self, token: Token, slot: &mut Slot, staged: &[u8]) -> io::Result<Flushed> {
        let mut table = self.policing.table.borrow_mut();
        let mut driver = self.driver.borrow_mut();
        let Some(policed) = table.get_mut(token) else {
            return slot.connection.flush(&mut **driver, token, staged);
        };
        let before = slot.connection.unsent_bytes() + staged.len();
        let flushed = if policed.writes.is_some() && slot.connection.unsent_descriptors() == 0 {
            slot.connection.queue_sealed(staged);
            drop(driver);
            self.flush_metered(token, slot, policed)
        } else {
            let flushed = slot.connection.flush(&mut **driver, token, staged);
            if let Some(writes) = &policed.writes {
                // Bytes that go with descriptors do not wait, nor are they free: what comes after them waits for both.
                writes.charge(driver.read_clock(), before - slot.connection.unsent_bytes());
            }
            drop(driver);
            flushed
        };
        if slot.connection.unsent_bytes() < before {
            policed.note_activity(|| self.driver.borrow_mut().read_clock());
        }
        flushed
    }

    /// Sends what may go now, piece by piece. Each is charged before it goes, and waits for its turn as a whole.
    fn flush_metered(&self, token: Token, slot: &mut Slot, policed: &mut Policed) -> io::Result<Flushed> {
        if policed.writes_on.is_some() {
            return Ok(Flushed::Waits);
        }
        let Some(writes) = &policed.writes else { return Ok(Flushed::All) };
        let mut driver = self.driver.borrow_mut();
        let now = driver.read_clock();
        let mut progress = Flushed::Nothing;
        while slot.connection.unsent_bytes() > 0 {
            if policed.write_credit == 0 {
                let piece = slot.connection.unsent_bytes().min(writes.piece_bytes());
                policed.write_credit = piece;
                if let Some(due) = writes.charge(now, piece) {
                    let on = Timer::new(move |shard: &Shard| shard.on_writes_due(token));
                    policed.writes_on = Some(self.timers.borrow_mut().insert(due, on));
                    return Ok(Flushed::Waits);
                }
            }
            let (offered, sent) = slot.connection.send_first(&mut **driver, token, policed.write_credit)?;
            policed.write_credit -= sent;
            if sent > 0 {
                progress = Flushed::Some;
            }
            if sent < offered {
                return Ok(progress);
            }
        }
        Ok(Flushed::All)
    }
}

impl Shard {
    /// Whether a connection may come in, or be made; if so its policies wait for it under its token. One too many is
    /// counted, and told of in the log, and the caller closes it.
    pub(super) fn admit(&self, token: Token, policies: Option<&Arc<Policies>>, peer: &Addr) -> bool {
        let Some(policies) = policies else { return true };
        self.prepare_places(token, policies, peer.as_ip(), peer)
    }

    /// As `admit`, for a connection of which a proxy has still to say whose it is: it counts in all.
    pub(super) fn admit_proxied(&self, token: Token, policies: Option<&Arc<Policies>>, proxy: &Addr) -> bool {
        let Some(policies) = policies else { return true };
        self.prepare_places(token, policies, None, proxy)
    }

    /// Whether it may go on, now that the proxy has said whose it is.
    pub(super) fn admit_peer(&self, token: Token, policies: Option<&Arc<Policies>>, peer: &Addr) -> bool {
        let (Some(policies), Some(ip)) = (policies, peer.as_ip()) else { return true };
        let admitted = match self.inner.policing.table.borrow_mut().get_mut(token) {
            Some(policed) => policies.admit_peer(policed, ip),
            None => Ok(()),
        };
        admitted.map_err(|(reached, limit)| self.refused(peer, reached, limit)).is_ok()
    }

    /// Its places, or a line about why there are none.
    #[cold]
    fn prepare_places(
        &self,
        token: Token,
        policies: &Policies,
        counted: Option<SocketAddr>,
        peer: &Addr,
    ) -> bool {
        match policies.admit(counted) {
            Ok(permits) => {
                self.inner.policing.prepare(token, Box::new(policies.police(permits, peer)));
                true
            }
            Err((reached, limit)) => {
                self.refused(peer, reached, limit);
                false
            }
        }
    }

    fn refused(&self, peer: &Addr, reached: Reached, limit: &ConnectionLimit) {
        self.inner.stats.refused.add(1);
        let now = self.inner.driver.borrow_mut().read_clock();
        if let Some(refused) = limit.line_due(now) {
            let shard = self.inner.id.index();
            log_contained(
                || tracing::warn!(shard, %peer, limit = %reached, refused, "a connection is refused"),
            );
        }
    }

    /// A connection that nobody takes.
    pub(super) fn turn_away(&self, token: Token, kind: CloseKind) {
        self.inner.driver.borrow_mut().close(token, kind);
        drop(self.inner.take_policed(token));
    }

    /// What is to be watched of a connection that begins now.
    #[inline]
    pub(super) fn begin_policing(&self, token: Token) -> Watched {
        if self.inner.policing.is_empty() { Watched::default() } else { self.begin_policing_some(token) }
    }

    #[cold]
    fn begin_policing_some(&self, token: Token) -> Watched {
        let inner = &self.inner;
        let (watched, logged) = {
            let mut table = inner.policing.table.borrow_mut();
            let Some(policed) = table.get_mut(token) else { return Watched::default() };
            if let Some(idle) = &mut policed.idle {
                let last = *idle.last.get_or_insert_with(|| inner.driver.borrow_mut().read_clock());
                idle.watch(inner, token, last);
            }
            (policed.watched(), policed.logged.clone())
        };
        if let Some(logged) = logged {
            logged.begun(inner.id.index());
        }
        watched
    }

    /// A connection has ended for its application. Its place is kept for as long as its socket is there.
    #[inline]
    pub(super) fn end_policing(&self, token: Token, reason: &CloseReason) {
        if !self.inner.policing.is_empty() {
            self.end_policing_some(token, reason);
        }
    }

    #[cold]
    fn end_policing_some(&self, token: Token, reason: &CloseReason) {
        let inner = &self.inner;
        let lingers = match inner.connections.borrow_mut().get_mut(token) {
            Some(slot) => {
                slot.marks.watched = Watched::default();
                true
            }
            None => false,
        };
        let logged = if lingers {
            let mut table = inner.policing.table.borrow_mut();
            let Some(policed) = table.get_mut(token) else { return };
            inner.stop_policing(policed);
            policed.logged.take()
        } else {
            inner.take_policed(token).and_then(|policed| policed.logged)
        };
        if let Some(logged) = logged {
            logged.ended(inner.id.index(), reason);
        }
    }

    /// As `on_received`, for a connection that is watched or speaks TLS.
    #[inline(never)]
    pub(super) fn on_received_watched(&self, token: Token, watched: Watched, lease: Lease) {
        let due = if watched.is_any() { self.note_received(token, lease.len()) } else { None };
        let is_tls =
            self.inner.connections.borrow().get(token).is_some_and(|slot| slot.connection.wire.is_tls());
        if is_tls {
            self.on_received_sealed(token, lease);
        } else {
            self.hand_over_logged(token, lease);
        }
        if let Some(due) = due {
            self.hold_reads(token, due);
        }
    }

    /// Bytes came. Says until when no more are to be read.
    fn note_received(&self, token: Token, bytes: usize) -> Option<Instant> {
        let mut table = self.inner.policing.table.borrow_mut();
        let policed = table.get_mut(token)?;
        if policed.idle.is_none() && policed.reads.is_none() {
            return None;
        }
        let now = self.inner.driver.borrow_mut().read_clock();
        policed.note_activity(|| now);
        policed.reads.as_ref()?.charge(now, bytes)
    }

    /// What has come was more than its rate allows.
    fn hold_reads(&self, token: Token, due: Instant) {
        let inner = &self.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token).filter(|slot| slot.connection.is_open()) else { return };
        let mut table = inner.policing.table.borrow_mut();
        let Some(policed) = table.get_mut(token) else { return };
        let mut timers = inner.timers.borrow_mut();
        match policed.reads_on {
            Some(key) => {
                timers.reset(key, due);
            }
            None => {
                let on = Timer::new(move |shard: &Shard| shard.on_reads_due(token));
                policed.reads_on = Some(timers.insert(due, on));
                slot.connection.read_holds += 1;
                slot.connection.update_receiving(&mut **inner.driver.borrow_mut(), token);
            }
        }
    }

    fn on_reads_due(&self, token: Token) {
        let inner = &self.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token) else { return };
        let mut table = inner.policing.table.borrow_mut();
        let Some(policed) = table.get_mut(token) else { return };
        policed.reads_on = None;
        // It could not do otherwise.
        policed.note_activity(|| inner.driver.borrow_mut().read_clock());
        drop(table);
        slot.connection.read_holds -= 1;
        inner.read_on(token, slot);
    }

    fn on_writes_due(&self, token: Token) {
        if let Some(policed) = self.inner.policing.table.borrow_mut().get_mut(token) {
            policed.writes_on = None;
            policed.note_activity(|| self.inner.driver.borrow_mut().read_clock());
        }
        self.on_sent(token);
    }

    /// Bytes were sent without being queued.
    #[cold]
    pub(super) fn note_sent(&self, token: Token) {
        if let Some(policed) = self.inner.policing.table.borrow_mut().get_mut(token) {
            policed.note_activity(|| self.inner.driver.borrow_mut().read_clock());
        }
    }

    /// Logs what the application was given, or has written.
    #[cold]
    pub(super) fn log_traffic(&self, token: Token, way: Way, bytes: &[u8]) {
        let logged: Option<Logged> = {
            let mut table = self.inner.policing.table.borrow_mut();
            let logged = table.get_mut(token).and_then(|policed| policed.logged.as_mut());
            logged.map(|logged| {
                logged.count(way, bytes.len());
                Logged::clone(logged)
            })
        };
        // The subscriber may do anything.
        if let Some(logged) = logged {
            logged.moved(self.inner.id.index(), way, bytes);
        }
    }

    pub(super) fn set_idle_timeout(&self, token: Token, after: Option<Duration>) {
        let inner = &self.inner;
        let mut connections = inner.connections.borrow_mut();
        let Some(slot) = connections.get_mut(token).filter(|slot| slot.connection.is_open()) else { return };
        if inner.policing.table.borrow_mut().get_mut(token).is_none() {
            if after.is_none() {
                return;
            }
            inner.policing.prepare(token, Box::default());
        }
        let mut table = inner.policing.table.borrow_mut();
        let Some(policed) = table.get_mut(token) else { return };
        if let Some(key) = policed.idle.take().and_then(|idle| idle.timer) {
            drop(inner.timers.borrow_mut().cancel(key));
        }
        policed.idle = after.map(|after| {
            let now = inner.driver.borrow_mut().read_clock();
            let mut idle = Idle { after, last: Some(now), timer: None };
            idle.watch(inner, token, now);
            idle
        });
        slot.marks.watched = policed.watched();
    }

    /// An idle timeout has passed since bytes went, or since it last looked.
    fn on_idle(&self, token: Token) {
        let inner = &self.inner;
        let (after, is_stuck) = {
            let mut connections = inner.connections.borrow_mut();
            let Some(slot) = connections.get_mut(token) else { return };
            let mut table = inner.policing.table.borrow_mut();
            let Some(policed) = table.get_mut(token) else { return };
            let waits = policed.waits();
            let Some(idle) = &mut policed.idle else { return };
            idle.timer = None;
            if !slot.connection.is_open() {
                // The peer has its time to take what is left, and to finish.
                return;
            }
            let now = inner.driver.borrow_mut().read_clock();
            let since = idle.last.filter(|_| !waits).unwrap_or(now);
            if deadline_after(since, idle.after) > now {
                return idle.watch(inner, token, since);
            }
            let is_stuck = slot.connection.has_output() || slot.connection.is_handshaking();
            (idle.after, is_stuck)
        };
        let reason = CloseReason::Idle { after };
        if is_stuck {
            self.end(token, reason, EndKind::Close(CloseKind::Reset));
        } else {
            self.begin_close(token, reason);
        }
    }
}

impl Idle {
    /// Looks again when it may have been idle for long enough since then.
    fn watch(&mut self, inner: &Inner, token: Token, since: Instant) {
        let look = Timer::new(move |shard: &Shard| shard.on_idle(token));
        self.timer = Some(inner.timers.borrow_mut().insert(deadline_after(since, self.after), look));
    }
}
