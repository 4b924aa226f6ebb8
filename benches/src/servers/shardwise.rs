//! The library's echo servers, written as its users write them.

use ::shardwise::{Input, Protocol, Runtime, Shard, TcpStream, Transport, UnixAddr};

use crate::Result;

pub(super) struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> ::shardwise::Result<()> {
        let bytes = input.bytes();
        transport.write(bytes)?;
        input.consume(bytes.len());
        Ok(())
    }
}

pub(super) fn serve_protocol(port: u16, shards: usize) -> Result<()> {
    Runtime::new().shards(shards).run(async move |shard: Shard| {
        shard.listen_tcp(("127.0.0.1", port), || Echo)?;
        Ok(())
    })?;
    Ok(())
}

/// Reads on lease: an idle task holds no buffer. One handler for TCP and UNIX, or the compiler would inline in neither.
async fn echo(mut stream: TcpStream) -> ::shardwise::Result<()> {
    while let Some(chunk) = stream.read_chunk().await? {
        stream.write_all(&chunk).await?;
    }
    Ok(())
}

pub(super) fn serve_leased(port: u16, shards: usize) -> Result<()> {
    Runtime::new().shards(shards).run(async move |shard: Shard| {
        shard.serve_tcp(("127.0.0.1", port), echo)?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn serve_unix_protocol(port: u16, shards: usize) -> Result<()> {
    let name = UnixAddr::from_abstract(super::name_text(port))?;
    Runtime::new().shards(shards).run(async move |shard: Shard| {
        shard.listen_unix(&name, || Echo)?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn serve_unix_leased(port: u16, shards: usize) -> Result<()> {
    let name = UnixAddr::from_abstract(super::name_text(port))?;
    Runtime::new().shards(shards).run(async move |shard: Shard| {
        shard.serve_unix(&name, echo)?;
        Ok(())
    })?;
    Ok(())
}

/// Reads copied into a buffer of the task, as code written for other runtimes does.
pub(super) fn serve_copied(port: u16, shards: usize, buffer_bytes: usize) -> Result<()> {
    Runtime::new().shards(shards).run(async move |shard: Shard| {
        shard.serve_tcp(("127.0.0.1", port), async move |mut stream| {
            let mut buffer = vec![0; buffer_bytes];
            loop {
                let received = stream.read(&mut buffer).await?;
                if received == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..received]).await?;
            }
        })?;
        Ok(())
    })?;
    Ok(())
}
