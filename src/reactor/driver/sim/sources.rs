//! One shard's side of the network: its sources, and which of them may have news.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::network::EndId;
use super::network::datagrams::DatagramSource;
use crate::reactor::registry::Registry;
use crate::reactor::token::Token;
use crate::reactor::waker::Wake;

pub(super) struct ShardSide {
    pub(super) sources: Registry<Source>,
    pub(super) listeners: usize,
    /// Sources that may have news, for the next turn. Each source is in one of the two lists at most once.
    pub(super) ready: Vec<Token>,
    /// What is left of this turn's batch.
    pub(super) batch: VecDeque<Token>,
    pub(super) turn: u64,
    pub(super) waker: Arc<WokenFlag>,
    /// A driver stands for this shard.
    pub(super) driven: bool,
}

pub(super) struct Source {
    /// It is in `ready` or in `batch`.
    pub(super) listed: bool,
    /// The turn that `events` counts for.
    pub(super) turn: u64,
    /// What it has told in that turn.
    pub(super) events: usize,
    pub(super) kind: SourceKind,
}

pub(super) enum SourceKind {
    Listener(Box<Listener>),
    Stream(Stream),
    Datagram(Box<DatagramSource>),
}

pub(super) struct Listener {
    pub(super) addr: SocketAddr,
    pub(super) backlog: usize,
    pub(super) accepts_per_turn: usize,
    pub(super) accepting: bool,
    /// After a failure to accept, until the retry is due.
    pub(super) paused: bool,
    pub(super) refusing: bool,
    /// Connections whose handshake has not ended.
    pub(super) handshaking: Vec<EndId>,
    pub(super) queue: VecDeque<EndId>,
    /// Accepted by `accept_queue`, still to be told.
    pub(super) taken: VecDeque<EndId>,
}

/// A connection as its driver knows it. What the connection itself knows is in its `End`, and travels with it.
pub(super) struct Stream {
    pub(super) end: EndId,
    /// The shard knows that it stands.
    pub(super) announced: bool,
    pub(super) receiving: bool,
    /// One `Received` may come although receiving is off.
    pub(super) late: bool,
    pub(super) finish_told: bool,
    pub(super) failure_told: bool,
    pub(super) room: Room,
    pub(super) takes_descriptors: bool,
}

/// What a sender that came short waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    NotWanted,
    /// The pipe was full: wait for the reader.
    WhenRead,
    /// There was room, but this send was made to come short: wait for `Packet::Room`.
    WhenGranted,
    Granted,
}

impl ShardSide {
    pub(super) fn new() -> Self {
        ShardSide {
            sources: Registry::new(),
            listeners: 0,
            ready: Vec::new(),
            batch: VecDeque::new(),
            turn: 0,
            waker: Arc::new(WokenFlag(AtomicBool::new(false))),
            driven: false,
        }
    }

    pub(super) fn insert(&mut self, kind: SourceKind) -> Token {
        self.listeners += usize::from(matches!(kind, SourceKind::Listener(_)));
        self.sources.insert(Source { listed: false, turn: 0, events: 0, kind })
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<SourceKind> {
        let source = self.sources.remove(token)?;
        self.listeners -= usize::from(matches!(source.kind, SourceKind::Listener(_)));
        Some(source.kind)
    }

    /// Puts a source on the ready list: it may have news. Too often does no harm.
    pub(super) fn mark_ready(&mut self, token: Token) {
        if let Some(source) = self.sources.get_mut(token)
            && !source.listed
        {
            source.listed = true;
            self.ready.push(token);
        }
    }

    pub(super) fn stream(&self, token: Token) -> Option<&Stream> {
        match &self.sources.get(token)?.kind {
            SourceKind::Stream(stream) => Some(stream),
            SourceKind::Listener(_) | SourceKind::Datagram(_) => None,
        }
    }

    pub(super) fn stream_mut(&mut self, token: Token) -> Option<&mut Stream> {
        match &mut self.sources.get_mut(token)?.kind {
            SourceKind::Stream(stream) => Some(stream),
            SourceKind::Listener(_) | SourceKind::Datagram(_) => None,
        }
    }

    pub(super) fn listener(&self, token: Token) -> Option<&Listener> {
        match &self.sources.get(token)?.kind {
            SourceKind::Listener(listener) => Some(listener),
            SourceKind::Stream(_) | SourceKind::Datagram(_) => None,
        }
    }

    pub(super) fn listener_mut(&mut self, token: Token) -> Option<&mut Listener> {
        match &mut self.sources.get_mut(token)?.kind {
            SourceKind::Listener(listener) => Some(listener),
            SourceKind::Stream(_) | SourceKind::Datagram(_) => None,
        }
    }
}

impl Listener {
    pub(super) fn waiting(&self) -> usize {
        self.handshaking.len() + self.queue.len() + self.taken.len()
    }
}

impl Stream {
    pub(super) fn new(end: EndId, announced: bool) -> Self {
        Stream {
            end,
            announced,
            receiving: false,
            late: false,
            finish_told: false,
            failure_told: false,
            room: Room::NotWanted,
            takes_descriptors: false,
        }
    }
}

/// Set by wakers on any thread, cleared by the shard's `wait`.
pub(super) struct WokenFlag(AtomicBool);

impl WokenFlag {
    pub(super) fn is_set(&self) -> bool {
        // Pairs with the Release in `wake`: whoever sees the flag sees what was published before the wake.
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn take(&self) -> bool {
        // Acquire pairs with the Release in `wake`. Nothing is published by clearing, so no Release here.
        self.0.swap(false, Ordering::Acquire)
    }
}

impl Wake for WokenFlag {
    fn wake(&self) {
        // Pairs with the Acquire in `is_set` and `take`.
        self.0.store(true, Ordering::Release);
    }
}
