//! Says back each datagram to whoever sent it, in either of the two styles: a protocol, or a task.

mod common;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::ValueEnum;
use shardwise::{Datagram, DatagramProtocol, Result, SendError, Shard, UdpOptions, UdpSocket, UdpTransport};

#[derive(clap::Args)]
struct Own {
    /// How the server is written
    #[arg(long, value_enum, value_name = "STYLE", default_value_t = Style::Protocol)]
    style: Style,
}

#[derive(Clone, Copy, ValueEnum)]
enum Style {
    /// A callback for each datagram
    Protocol,
    /// A task on each shard
    Async,
}

fn main() -> ExitCode {
    let (flags, Own { style }) = common::parse_or_exit("Says back each datagram to whoever sent it.", 7007);
    let addr = flags.addr_or_exit("datagrams have no other endpoints");
    common::serve(flags.runtime(), async move |shard: Shard| {
        let bound = match style {
            Style::Protocol => shard.listen_udp(addr, Echo)?.local_addr()?,
            Style::Async => listen(&shard, addr)?,
        };
        common::announce_addr(&shard, bound);
        Ok(())
    })
}

struct Echo;

impl DatagramProtocol for Echo {
    fn datagram_received(&mut self, transport: &UdpTransport, datagram: Datagram<'_>) -> Result<()> {
        match transport.try_send_to(datagram.bytes(), datagram.source()) {
            // As a network does when there is no room: it is lost.
            Ok(()) | Err(SendError::NoRoom) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Binds the address for a task that serves it.
fn listen(shard: &Shard, addr: SocketAddr) -> Result<SocketAddr> {
    let socket = UdpSocket::bind_with(addr, &UdpOptions::new().shared(true))?;
    let bound = socket.local_addr()?;
    drop(shard.spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok(received) = socket.recv_from(&mut buffer).await {
            if let Err(error) = socket.send_to(&buffer[..received.len], received.source).await {
                tracing::debug!(%error, to = %received.source, "an answer was not sent");
            }
        }
    }));
    Ok(bound)
}
