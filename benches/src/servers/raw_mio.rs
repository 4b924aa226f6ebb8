//! The raw loop on mio's `Poll`: what mio alone costs. Edge-triggered, hence a carry list.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::{ACCEPTS_PER_TURN, EVENTS_PER_WAIT, READ_BUFFER_BYTES, READS_PER_TURN};

struct Connection {
    socket: TcpStream,
    /// What the kernel refused. While there is some, nothing is read.
    unsent: Vec<u8>,
}

enum Verdict {
    /// The kernel will report more.
    Keep,
    /// It stopped on its budget: the kernel will not report those bytes again.
    Carry,
    Close,
}

pub(super) fn serve(listener: std::net::TcpListener) -> io::Result<()> {
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut server = Server {
        listener,
        connections: Slab::new(),
        buffer: vec![0; READ_BUFFER_BYTES],
        carried: Vec::new(),
    };
    let mut events = Events::with_capacity(EVENTS_PER_WAIT);
    let mut resumed = Vec::new();
    loop {
        let timeout = (!server.carried.is_empty()).then_some(Duration::ZERO);
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        std::mem::swap(&mut resumed, &mut server.carried);
        for event in &events {
            match event.token() {
                LISTENER => server.accept_some(&poll)?,
                token => server.turn(token, read_to_the_end(event)),
            }
        }
        for token in resumed.drain(..) {
            match token {
                LISTENER => server.accept_some(&poll)?,
                // It may have been served, carried again or closed by its event just now: a turn is harmless.
                token if server.connections.contains(token.0) => server.turn(token, false),
                _ => {}
            }
        }
    }
}

struct Server {
    listener: TcpListener,
    connections: Slab<Connection>,
    buffer: Vec<u8>,
    carried: Vec<Token>,
}

impl Server {
    fn accept_some(&mut self, poll: &Poll) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_TURN {
            let mut socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_transient(&error) => continue,
                Err(error) => return Err(error),
            };
            socket.set_nodelay(true)?;
            let entry = self.connections.vacant_entry();
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut socket, Token(entry.key()), both)?;
            entry.insert(Connection { socket, unsent: Vec::new() });
        }
        self.carried.push(LISTENER);
        Ok(())
    }

    fn turn(&mut self, token: Token, to_the_end: bool) {
        match turn(&mut self.connections[token.0], to_the_end, &mut self.buffer) {
            Ok(Verdict::Keep) => {}
            Ok(Verdict::Carry) => self.carried.push(token),
            Ok(Verdict::Close) | Err(_) => drop(self.connections.remove(token.0)),
        }
    }
}

fn read_to_the_end(event: &Event) -> bool {
    event.is_read_closed() || event.is_error()
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted)
}

fn turn(connection: &mut Connection, to_the_end: bool, buffer: &mut [u8]) -> io::Result<Verdict> {
    if !connection.unsent.is_empty() {
        let mut unsent = std::mem::take(&mut connection.unsent);
        unsent.drain(..send_some(&mut connection.socket, &unsent)?);
        connection.unsent = unsent;
        if !connection.unsent.is_empty() {
            return Ok(Verdict::Keep);
        }
    }
    let mut reads_left = if to_the_end { usize::MAX } else { READS_PER_TURN };
    while reads_left > 0 {
        reads_left -= 1;
        let received = match connection.socket.read(buffer) {
            Ok(0) => return Ok(Verdict::Close),
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Verdict::Keep),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let sent = send_some(&mut connection.socket, &buffer[..received])?;
        if sent < received {
            connection.unsent.extend_from_slice(&buffer[sent..received]);
            return Ok(Verdict::Keep);
        }
        if received < buffer.len() && !to_the_end {
            return Ok(Verdict::Keep);
        }
    }
    Ok(Verdict::Carry)
}

fn send_some(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match socket.write(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

const LISTENER: Token = Token(usize::MAX - 1);
