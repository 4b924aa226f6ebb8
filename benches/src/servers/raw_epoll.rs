//! The yardstick: what one would write by hand on level-triggered epoll. Nothing is abstracted.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send, sockopt};
use slab::Slab;

use super::{ACCEPTS_PER_TURN, EVENTS_PER_WAIT, READ_BUFFER_BYTES, READS_PER_TURN};

struct Connection {
    socket: OwnedFd,
    /// What the kernel refused. While there is some, only writability is watched.
    unsent: Vec<u8>,
}

enum Verdict {
    Keep,
    Close,
}

pub(super) fn serve(listener: TcpListener) -> io::Result<()> {
    serve_any(listener.into(), |socket| Ok(sockopt::set_tcp_nodelay(socket, true)?))
}

pub(super) fn serve_unix(listener: UnixListener) -> io::Result<()> {
    serve_any(listener.into(), |_| Ok(()))
}

#[inline(always)]
fn serve_any(listener: OwnedFd, prepare: impl Fn(&OwnedFd) -> io::Result<()>) -> io::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut connections: Slab<Connection> = Slab::new();
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    loop {
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events.drain(..) {
            let (flags, key) = (event.flags, event.data.u64());
            if key == LISTENER {
                accept_some(&listener, &epoll, &mut connections, &prepare)?;
                continue;
            }
            let connection = &mut connections[key as usize];
            match turn(&epoll, key, connection, flags, &mut buffer) {
                Ok(Verdict::Keep) => {}
                // Closing takes the socket off the epoll set. No event of this wait can be left for it.
                Ok(Verdict::Close) | Err(_) => drop(connections.remove(key as usize)),
            }
        }
    }
}

fn accept_some(
    listener: &OwnedFd,
    epoll: &OwnedFd,
    connections: &mut Slab<Connection>,
    prepare: impl Fn(&OwnedFd) -> io::Result<()>,
) -> io::Result<()> {
    for _ in 0..ACCEPTS_PER_TURN {
        let socket = match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(Errno::AGAIN) => break,
            Err(Errno::CONNABORTED | Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        prepare(&socket)?;
        let entry = connections.vacant_entry();
        epoll::add(epoll, &socket, EventData::new_u64(entry.key() as u64), READING)?;
        entry.insert(Connection { socket, unsent: Vec::new() });
    }
    Ok(())
}

/// A short read ends the turn; a full one reads again; a peer that has finished is read to the end.
fn turn(
    epoll: &OwnedFd,
    key: u64,
    connection: &mut Connection,
    flags: EventFlags,
    buffer: &mut [u8],
) -> io::Result<Verdict> {
    if !connection.unsent.is_empty() {
        let mut unsent = std::mem::take(&mut connection.unsent);
        unsent.drain(..send_some(connection.socket.as_fd(), &unsent)?);
        connection.unsent = unsent;
        if !connection.unsent.is_empty() {
            return Ok(Verdict::Keep);
        }
        epoll::modify(epoll, &connection.socket, EventData::new_u64(key), READING)?;
    }
    let to_the_end = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
    let mut reads_left = if to_the_end { usize::MAX } else { READS_PER_TURN };
    while reads_left > 0 {
        reads_left -= 1;
        let received = match recv(&connection.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => return Ok(Verdict::Close),
            Ok((received, _)) => received,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let sent = send_some(connection.socket.as_fd(), &buffer[..received])?;
        if sent < received {
            connection.unsent.extend_from_slice(&buffer[sent..received]);
            epoll::modify(epoll, &connection.socket, EventData::new_u64(key), EventFlags::OUT)?;
            break;
        }
        if received < buffer.len() && !to_the_end {
            break;
        }
    }
    Ok(Verdict::Keep)
}

fn send_some(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    match send(socket, bytes, SendFlags::NOSIGNAL) {
        Err(Errno::AGAIN) => Ok(0),
        result => Ok(result?),
    }
}

const LISTENER: u64 = u64::MAX;
const READING: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);
