//! From the state of sources to events: what is due at each, and in which order a shard is told.

use std::rc::Rc;

use super::network::{Network, Packet, Phase};
use super::options::SimOptions;
use super::sources::{Room, SourceKind};
use crate::reactor::datagrams::BatchPool;
use crate::reactor::driver::Event;
use crate::reactor::lease::{Lease, LeasePool};
use crate::reactor::token::Token;

/// Where one driver's read buffers come from: small ones, so that a held byte does not keep a whole buffer busy.
pub(super) struct ReadBuffers {
    small: Rc<LeasePool>,
    normal: Rc<LeasePool>,
    batches: Rc<BatchPool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Accepted,
    Connected,
    Descriptors,
    Received,
    PeerFinished,
    Sent,
    Failed,
    Datagram,
}

impl Network {
    /// Begins a turn: what is ready becomes its batch.
    pub(super) fn begin_turn(&mut self, shard: usize) {
        let faults = &self.options.faults;
        let side = &mut self.shards[shard];
        side.turn += 1;
        if self.chance.hits(faults.empty_wait) {
            return;
        }
        side.batch.extend(side.ready.drain(..));
        if self.chance.hits(faults.shuffle) {
            for last in (1..side.batch.len()).rev() {
                side.batch.swap(last, self.chance.below(last + 1));
            }
        }
    }

    /// The next event of the batch, if there is one.
    pub(super) fn next_event(&mut self, shard: usize, buffers: &ReadBuffers) -> Option<Event> {
        loop {
            let side = &mut self.shards[shard];
            let token = side.batch.pop_front()?;
            let turn = side.turn;
            let Some(source) = side.sources.get_mut(token) else { continue };
            source.listed = false;
            source.events = if source.turn == turn { source.events + 1 } else { 1 };
            source.turn = turn;
            let Some(due) = self.due(shard, token) else { continue };
            let event = self.tell(shard, token, due, buffers);
            self.list_again(shard, token);
            return Some(event);
        }
    }

    pub(super) fn has_events(&self, shard: usize) -> bool {
        let Some(side) = self.shards.get(shard) else { return false };
        side.batch.iter().chain(&side.ready).any(|token| self.due(shard, *token).is_some())
    }

    /// What a source has to tell next.
    fn due(&self, shard: usize, token: Token) -> Option<Due> {
        let stream = match &self.shards[shard].sources.get(token)?.kind {
            SourceKind::Listener(listener) => {
                let accepts = listener.accepting && !listener.paused && !listener.queue.is_empty();
                return (accepts || !listener.taken.is_empty()).then_some(Due::Accepted);
            }
            SourceKind::Stream(stream) => stream,
            SourceKind::Datagram(source) => return source.has_news().then_some(Due::Datagram),
        };
        if stream.failure_told {
            return None;
        }
        let end = &self.ends[&stream.end];
        let broken = matches!(end.phase, Phase::Broken { .. });
        if !stream.announced {
            return match end.phase {
                Phase::Connecting => None,
                Phase::Open => Some(Due::Connected),
                Phase::Broken { .. } => Some(Due::Failed),
            };
        }
        if end.arrived > 0 && (stream.receiving || stream.late) {
            let has_descriptors = stream.takes_descriptors && end.bytes_before_descriptors() == Some(0);
            return Some(if has_descriptors { Due::Descriptors } else { Due::Received });
        }
        if end.finished && !stream.finish_told && stream.receiving {
            return Some(Due::PeerFinished);
        }
        if broken {
            return Some(Due::Failed);
        }
        self.sent_is_due(shard, token).then_some(Due::Sent)
    }

    fn sent_is_due(&self, shard: usize, token: Token) -> bool {
        let Some(stream) = self.shards[shard].stream(token) else { return false };
        match stream.room {
            Room::NotWanted | Room::WhenGranted => false,
            Room::WhenRead => self.has_room(stream.end),
            Room::Granted => true,
        }
    }

    fn tell(&mut self, shard: usize, token: Token, due: Due, buffers: &ReadBuffers) -> Event {
        // Bytes and room have no order between them.
        let swap = due == Due::Received && self.sent_is_due(shard, token) && self.chance.hits(0.5);
        let due = if swap { Due::Sent } else { due };
        match due {
            Due::Accepted => return self.tell_accepted(shard, token),
            Due::Datagram => {
                let event = self.tell_datagram(shard, token, &buffers.batches);
                return Event::Datagram { token, event };
            }
            _ => {}
        }
        let stream = self.shards[shard].stream_mut(token).expect("only a listener accepts");
        let id = stream.end;
        match due {
            Due::Accepted | Due::Datagram => unreachable!("told above"),
            Due::Descriptors => {
                let end = self.ends.get_mut(&id).expect("an open source has an end");
                Event::Descriptors { token, descriptors: end.take_descriptors() }
            }
            Due::Connected => {
                stream.announced = true;
                Event::Connected { token }
            }
            Due::Received => {
                stream.late = false;
                let takes_descriptors = stream.takes_descriptors;
                let end = &self.ends[&id];
                // As on Linux, a read ends where the next descriptors are.
                let readable = end.bytes_before_descriptors().filter(|_| takes_descriptors);
                let arrived =
                    end.arrived.min(readable.unwrap_or(usize::MAX)).min(self.options.read_buffer_bytes);
                let count = self.chunk_bytes(arrived);
                let bytes = buffers.lend(count, |buffer| self.read(id, buffer));
                Event::Received { token, bytes }
            }
            Due::PeerFinished => {
                stream.finish_told = true;
                Event::PeerFinished { token }
            }
            Due::Sent => {
                stream.room = Room::NotWanted;
                Event::Sent { token }
            }
            Due::Failed => {
                stream.failure_told = true;
                let Phase::Broken { cause, .. } = self.ends[&id].phase else {
                    unreachable!("only what is broken fails")
                };
                Event::Failed { token, error: cause.into() }
            }
        }
    }

    fn tell_accepted(&mut self, shard: usize, listener: Token) -> Event {
        let state = self.shards[shard].listener_mut(listener).expect("only a listener accepts");
        if state.taken.is_empty()
            && let Some((fault, count)) = self.accept_faults
        {
            self.accept_faults = (count > 1).then_some((fault, count - 1));
            state.paused = true;
            let again = self.clock + super::ACCEPT_RETRY;
            self.post_at(again, Packet::AcceptAgain { shard, token: listener });
            return Event::AcceptFailed { listener, error: fault.into() };
        }
        let id = state.taken.pop_front().or_else(|| state.queue.pop_front()).expect("an accept is due");
        let (token, peer) = self.own(shard, id);
        Event::Accepted { listener, token, peer }
    }

    /// How much of `arrived` bytes one event carries.
    fn chunk_bytes(&mut self, arrived: usize) -> usize {
        if !self.chance.hits(self.options.faults.short_read) {
            return arrived;
        }
        match self.chance.below(3) {
            0 => 1,
            1 => self.chance.between(1, arrived.min(64)),
            _ => self.chance.between(1, arrived),
        }
    }

    /// Lists a source that has more to tell: for this turn while its budget lasts, else for the next one.
    fn list_again(&mut self, shard: usize, token: Token) {
        if self.due(shard, token).is_none() {
            return;
        }
        let side = &mut self.shards[shard];
        let source = side.sources.get_mut(token).expect("something is due there");
        if std::mem::replace(&mut source.listed, true) {
            // What it just told has put it on the ready list.
            return;
        }
        let budget = match &source.kind {
            SourceKind::Listener(listener) if listener.taken.is_empty() => listener.accepts_per_turn,
            SourceKind::Listener(_) => usize::MAX,
            SourceKind::Stream(_) => EVENTS_PER_TURN,
            SourceKind::Datagram(source) => EVENTS_PER_TURN.min(source.datagrams_per_turn),
        };
        let shuffles = self.chance.hits(self.options.faults.shuffle);
        let stops_early = shuffles && self.chance.below(2) == 0;
        if source.events >= budget || stops_early {
            side.ready.push(token);
            return;
        }
        side.batch.push_back(token);
        if shuffles {
            let last = side.batch.len() - 1;
            side.batch.swap(last, self.chance.below(last + 1));
        }
    }
}

impl ReadBuffers {
    pub(super) fn new(options: &SimOptions) -> Self {
        ReadBuffers {
            small: LeasePool::new(SMALL_BUFFER_BYTES.min(options.read_buffer_bytes)),
            normal: LeasePool::new(options.read_buffer_bytes),
            batches: BatchPool::new(),
        }
    }

    pub(super) fn on_loan(&self) -> usize {
        self.small.on_loan() + self.normal.on_loan() + self.batches.on_loan()
    }

    fn lend(&self, count: usize, fill: impl FnOnce(&mut [u8])) -> Lease {
        let pool = if count <= SMALL_BUFFER_BYTES { &self.small } else { &self.normal };
        let mut buffer = pool.take();
        fill(&mut buffer[..count]);
        pool.lend(buffer, count)
    }
}

/// Events of one connection per turn; then the others' turn comes.
const EVENTS_PER_TURN: usize = 4;

const SMALL_BUFFER_BYTES: usize = 2 * 1024;
