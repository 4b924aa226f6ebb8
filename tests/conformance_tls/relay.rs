//! A man in the middle who cuts, adds and delays, and cannot read.

use std::net::SocketAddr;

use shardwise::testing::Env;
use shardwise::{Result, TcpStream};

/// What becomes of the bytes from the server to the client.
#[derive(Clone, Copy)]
pub(crate) enum Fate {
    /// Each in a write of its own, both ways.
    OneByOne,
    /// Those after the first so many are lost, and the connection ends in order.
    CutAfter(usize),
    /// So much follows when the server has finished.
    ThenGarbage(&'static [u8]),
}

/// Listens where clients may come; what they say goes to `server`.
pub(crate) fn relay(env: &Env, server: SocketAddr, fate: Fate) -> Result<SocketAddr> {
    let listener = env.shard().serve_tcp("127.0.0.1:0", async move |client: TcpStream| {
        let (mut client, mut server) = (client, TcpStream::connect(server).await?);
        let mut from_server = 0;
        let mut buffers = ([0; 4096], [0; 4096]);
        let (mut client_done, mut server_done) = (false, false);
        while !(client_done && server_done) {
            // Whoever has something first.
            let (is_client, count) = std::future::poll_fn(|context| {
                use std::task::Poll::{Pending, Ready};
                if !client_done && let Ready(count) = client.poll_read(context, &mut buffers.0) {
                    return Ready(count.map(|count| (true, count)));
                }
                if !server_done && let Ready(count) = server.poll_read(context, &mut buffers.1) {
                    return Ready(count.map(|count| (false, count)));
                }
                Pending
            })
            .await?;
            if is_client {
                client_done = count == 0;
                send(&mut server, &buffers.0[..count], fate).await?;
                if client_done {
                    server.shutdown_write();
                }
                continue;
            }
            server_done = count == 0;
            match fate {
                Fate::CutAfter(limit) if from_server + count >= limit => {
                    client.write_all(&buffers.1[..limit - from_server]).await?;
                    client.close();
                    return Ok(());
                }
                Fate::ThenGarbage(garbage) if server_done => client.write_all(garbage).await?,
                _ => send(&mut client, &buffers.1[..count], fate).await?,
            }
            from_server += count;
            if server_done {
                client.shutdown_write();
            }
        }
        Ok(())
    })?;
    Ok(listener.local_addr())
}

async fn send(stream: &mut TcpStream, bytes: &[u8], fate: Fate) -> Result<()> {
    if let Fate::OneByOne = fate {
        for byte in bytes {
            stream.write_all(std::slice::from_ref(byte)).await?;
            stream.flush().await?;
        }
        return Ok(());
    }
    Ok(stream.write_all(bytes).await?)
}
