//! A man in the middle who cuts, adds, changes and delays, and cannot read.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use shardwise::testing::Env;
use shardwise::{Result, TcpStream};

/// What becomes of the bytes from the server to the client.
#[derive(Clone, Copy)]
pub(crate) enum Fate {
    /// Each in a write of its own, both ways.
    OneByOne,
    /// Those after the first so many are lost, and the connection ends in order.
    CutAfter(usize),
    /// They come as they are.
    Passed,
    /// So much follows when the server has finished.
    ThenGarbage(&'static [u8]),
}

/// What is done to the next records from the server, once.
#[derive(Clone, Default)]
pub(crate) struct Harm {
    harm: Rc<RefCell<Option<Box<Change>>>>,
    /// Until they are whole.
    held: Rc<RefCell<Vec<u8>>>,
}

type Change = dyn FnOnce(&mut Vec<u8>);

impl Harm {
    /// To be told between two records: after a round trip there is nothing else.
    pub(crate) fn next(&self, harm: impl FnOnce(&mut Vec<u8>) + 'static) {
        *self.harm.borrow_mut() = Some(Box::new(harm));
    }

    /// What is to be passed on of `bytes`, and of those that were held before.
    fn apply(&self, bytes: &[u8]) -> Vec<u8> {
        let mut held = self.held.borrow_mut();
        held.extend_from_slice(bytes);
        if self.harm.borrow().is_some() && !are_whole_records(&held) {
            return Vec::new();
        }
        let mut bytes = std::mem::take(&mut *held);
        if let Some(harm) = self.harm.take() {
            harm(&mut bytes);
        }
        bytes
    }
}

fn are_whole_records(mut bytes: &[u8]) -> bool {
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let Some(next) = rest.get(usize::from(u16::from_be_bytes([*high, *low]))..) else { return false };
        bytes = next;
    }
    bytes.is_empty()
}

/// Listens where clients may come; what they say goes to `server`.
pub(crate) fn relay(env: &Env, server: SocketAddr, fate: Fate) -> Result<SocketAddr> {
    relay_with(env, server, fate, &Harm::default())
}

/// As [`relay`], with what is done to the next bytes.
pub(crate) fn relay_with(env: &Env, server: SocketAddr, fate: Fate, harm: &Harm) -> Result<SocketAddr> {
    let harm = harm.clone();
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
                _ => send(&mut client, &harm.apply(&buffers.1[..count]), fate).await?,
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
