//! Says back what it hears, in either of the two styles: a protocol, or a task for each connection.

mod common;

use std::process::ExitCode;

use clap::ValueEnum;
use shardwise::{Input, Protocol, Result, Shard, TcpStream, Transport};

#[derive(clap::Args)]
struct Own {
    /// How the server is written
    #[arg(long, value_enum, value_name = "STYLE", default_value_t = Style::Protocol)]
    style: Style,
}

#[derive(Clone, Copy, ValueEnum)]
enum Style {
    /// Callbacks for each connection
    Protocol,
    /// A task for each connection
    Async,
}

fn main() -> ExitCode {
    let (flags, Own { style }) = common::parse_or_exit("Says back what it hears.", 7000);
    let server = flags.server_or_exit();
    common::serve(flags.runtime(), async move |shard: Shard| {
        let listener = match style {
            Style::Protocol => shard.listen(&server, || Echo)?,
            Style::Async => shard.serve(&server, echo)?,
        };
        common::announce(&shard, &listener);
        Ok(())
    })
}

struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }

    // Whoever does not listen is not listened to either: nothing piles up here.
    fn write_paused(&mut self, transport: &Transport) -> Result<()> {
        transport.pause_reading();
        Ok(())
    }

    fn write_resumed(&mut self, transport: &Transport) -> Result<()> {
        transport.resume_reading();
        Ok(())
    }
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    while let Some(chunk) = stream.read_chunk().await? {
        stream.write_all(&chunk).await?;
    }
    Ok(())
}
