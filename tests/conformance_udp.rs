//! UDP and multicast: each test's name is a promise of the contract, kept on every driver that can.
//!
//! The simulated network loses a datagram out of twenty and doubles another, so whoever asks asks again.

#[path = "conformance_udp/binding.rs"]
mod binding;
#[path = "conformance_udp/multicast.rs"]
mod multicast;
#[path = "conformance_udp/receiving.rs"]
mod receiving;
#[path = "conformance_udp/sending.rs"]
mod sending;

#[path = "common/notes.rs"]
mod notes;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use notes::Notes;
use shardwise::testing::Env;
use shardwise::{CloseReason, Datagram, DatagramProtocol, Received, Result, UdpSocket, UdpTransport};

/// What a [`Talk`] is told.
enum Said<'a> {
    Started,
    Datagram(Datagram<'a>),
    Refused,
    Sendable,
}

type Hook = dyn FnMut(Said<'_>, &UdpTransport) -> Result<()>;

/// A protocol that keeps notes and does what a test says.
struct Talk {
    notes: Notes,
    hook: Box<Hook>,
}

impl Talk {
    fn new(notes: &Notes, hook: impl FnMut(Said<'_>, &UdpTransport) -> Result<()> + 'static) -> Self {
        Talk { notes: notes.clone(), hook: Box::new(hook) }
    }
}

impl DatagramProtocol for Talk {
    fn started(&mut self, transport: &UdpTransport) -> Result<()> {
        self.notes.add("started");
        (self.hook)(Said::Started, transport)
    }

    fn datagram_received(&mut self, transport: &UdpTransport, datagram: Datagram<'_>) -> Result<()> {
        self.notes.add(String::from_utf8_lossy(datagram.bytes()));
        (self.hook)(Said::Datagram(datagram), transport)
    }

    fn refused(&mut self, transport: &UdpTransport) -> Result<()> {
        self.notes.add("refused");
        (self.hook)(Said::Refused, transport)
    }

    fn sendable(&mut self, transport: &UdpTransport) -> Result<()> {
        self.notes.add("sendable");
        (self.hook)(Said::Sendable, transport)
    }

    fn stopped(&mut self, reason: CloseReason) {
        self.notes.add(format!("stopped: {reason}"));
    }
}

/// Sends back what comes.
struct Echo;

impl DatagramProtocol for Echo {
    fn datagram_received(&mut self, transport: &UdpTransport, datagram: Datagram<'_>) -> Result<()> {
        // The simulation sometimes finds no room; the client asks again.
        let _ = transport.try_send_to(datagram.bytes(), datagram.source());
        Ok(())
    }
}

/// How long an answer is waited for before the question is asked again: longer than anything is under way.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Sends until that very answer comes: datagrams get lost, and answers to earlier questions come late.
async fn ask(
    env: &Env,
    socket: &UdpSocket,
    to: Option<SocketAddr>,
    question: &[u8],
    answer: &[u8],
) -> Result<Received> {
    let mut buffer = vec![0; 70_000];
    for _ in 0..200 {
        match to {
            Some(to) => socket.send_to(question, to).await?,
            None => socket.send(question).await?,
        }
        let answered = env.shard().timeout(ASK_AGAIN, async {
            loop {
                let received = socket.recv_from(&mut buffer).await?;
                if buffer[..received.len] == *answer {
                    return Ok::<_, std::io::Error>(received);
                }
            }
        });
        if let Ok(received) = answered.await {
            return Ok(received?);
        }
    }
    panic!("asked 200 times without an answer");
}

/// Asks an echo.
async fn echoed(env: &Env, socket: &UdpSocket, to: Option<SocketAddr>, bytes: &[u8]) -> Result<Received> {
    ask(env, socket, to, bytes, bytes).await
}
