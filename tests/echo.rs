//! The smallest server, both styles, over every driver.

use shardwise::testing::on_every_driver;
use shardwise::{Input, Protocol, Result, TcpStream, Transport};

struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }
}

async fn round_trip(client: &mut TcpStream, len: usize) -> Result<()> {
    let sent: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
    let mut answer = vec![0; len];
    client.write_all(&sent).await?;
    client.read_exact(&mut answer).await?;
    assert!(answer == sent, "the echo differs");
    Ok(())
}

#[test]
fn a_protocol_echoes() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        for len in [1, 64, 5000, 16 * 1024] {
            round_trip(&mut client, len).await?;
        }
        Ok(())
    });
}

#[test]
fn an_async_handler_echoes() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        for len in [1, 64, 5000, 16 * 1024] {
            round_trip(&mut client, len).await?;
        }
        Ok(())
    });
}

#[test]
fn a_call_runs_on_the_other_shard() {
    on_every_driver(async |env| {
        let ids = env.handle().call_all(|shard| shard.id()).await;
        let ids: Vec<_> = ids.into_iter().map(|id| id.unwrap().index()).collect();
        assert_eq!(ids, [0, 1]);
        Ok(())
    });
}
