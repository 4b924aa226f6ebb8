//! The datagram echoes: by hand on epoll, on tokio, and with the library. Does not measure.

use std::io;
use std::net::UdpSocket;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use super::READ_BUFFER_BYTES;

/// Level-triggered epoll on one socket; each time, datagrams until there are none, or 64.
pub(super) fn serve_raw(socket: UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &socket, EventData::new_u64(0), EventFlags::IN)?;
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut events = Vec::with_capacity(1);
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for _ in 0..DATAGRAMS_PER_TURN {
            let (received, source) = match recvfrom(&socket, &mut *buffer, RecvFlags::empty()) {
                Ok((received, _, Some(source))) => (received, source),
                Ok((_, _, None)) | Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            };
            match sendto(&socket, &buffer[..received], SendFlags::NOSIGNAL, &source) {
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

pub(super) fn serve_tokio(socket: UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        loop {
            let (received, source) = socket.recv_from(&mut buffer).await?;
            socket.send_to(&buffer[..received], source).await?;
        }
    })
}

#[cfg(feature = "ours")]
pub(super) mod ours {
    use ::shardwise::{Datagram, DatagramProtocol, Runtime, Shard, UdpOptions, UdpSocket, UdpTransport};

    use crate::Result;

    struct Echo;

    impl DatagramProtocol for Echo {
        fn datagram_received(
            &mut self,
            transport: &UdpTransport,
            datagram: Datagram<'_>,
        ) -> ::shardwise::Result<()> {
            transport.try_send_to(datagram.bytes(), datagram.source())?;
            Ok(())
        }
    }

    pub(in crate::servers) fn serve_protocol(port: u16, shards: usize) -> Result<()> {
        Runtime::new().shards(shards).run(async move |shard: Shard| {
            shard.listen_udp(("127.0.0.1", port), Echo)?;
            Ok(())
        })?;
        Ok(())
    }

    pub(in crate::servers) fn serve_async(port: u16, shards: usize) -> Result<()> {
        Runtime::new().shards(shards).run(async move |shard: Shard| {
            let options = UdpOptions::new().shared(true);
            let socket = UdpSocket::bind_with(("127.0.0.1", port), &options)?;
            drop(shard.spawn(async move {
                let mut buffer = vec![0; super::READ_BUFFER_BYTES];
                while let Ok(received) = socket.recv_from(&mut buffer).await {
                    let _ = socket.send_to(&buffer[..received.len], received.source).await;
                }
            }));
            Ok(())
        })?;
        Ok(())
    }
}

const DATAGRAMS_PER_TURN: usize = 64;
