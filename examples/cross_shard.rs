//! Counters, each at home on one shard: whoever asks for a key, its shard counts. Speaks lines: `INCR key`,
//! `GET key`, `SUM`; answers with a number or with `ERR` and why.

mod common;

use std::cell::RefCell;
use std::collections::HashMap;
use std::process::ExitCode;

use shardwise::{CallError, Result, Route, Shard, TcpStream};

fn main() -> ExitCode {
    let flags = common::Flags::parse_or_exit("Counts by key, each key on a shard of its own.", 7001);
    let server = flags.server_or_exit();
    common::serve(flags.runtime(), async move |shard: Shard| {
        let listener = shard.serve(&server, serve)?;
        common::announce(&shard, &listener);
        Ok(())
    })
}

/// The counters of one shard. Only its own thread sees them, so nothing is locked.
#[derive(Default)]
struct Counters {
    by_key: HashMap<String, u64>,
    sum: u64,
}

thread_local! {
    static COUNTERS: RefCell<Counters> = RefCell::default();
}

/// Answers one connection's lines in their order.
async fn serve(mut stream: TcpStream) -> Result<()> {
    let shard = Shard::current();
    let mut received = Vec::new();
    while let Some(chunk) = stream.read_chunk().await? {
        received.extend_from_slice(&chunk);
        // It may lie in the read buffer of the shard, and answering takes time.
        drop(chunk);
        let mut answered = 0;
        while let Some(len) = received[answered..].iter().position(|byte| *byte == b'\n') {
            let line = &received[answered..answered + len];
            if len > LINE_BYTES_MAX {
                return refuse_line(stream).await;
            }
            let reply = match Command::parse(line) {
                Ok(command) => command.run(&shard).await.unwrap_or_else(|error| format!("ERR {error}\n")),
                Err(reason) => format!("ERR {reason}\n"),
            };
            stream.write_all(reply.as_bytes()).await?;
            answered += len + 1;
        }
        received.drain(..answered);
        if received.len() > LINE_BYTES_MAX {
            return refuse_line(stream).await;
        }
    }
    Ok(())
}

/// Where a line that is too long would end is not worth finding out: the connection ends here.
async fn refuse_line(mut stream: TcpStream) -> Result<()> {
    stream.write_all(format!("ERR the line is longer than {LINE_BYTES_MAX} bytes\n").as_bytes()).await?;
    Ok(())
}

enum Command {
    Increment(String),
    Get(String),
    Sum,
}

impl Command {
    fn parse(line: &[u8]) -> std::result::Result<Command, &'static str> {
        let line = std::str::from_utf8(line).map_err(|_| "the line is not UTF-8")?;
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("INCR"), Some(key), None) => Ok(Command::Increment(key.to_owned())),
            (Some("GET"), Some(key), None) => Ok(Command::Get(key.to_owned())),
            (Some("SUM"), None, None) => Ok(Command::Sum),
            (Some("INCR" | "GET"), ..) => Err("it takes one key"),
            (Some("SUM"), ..) => Err("it takes no key"),
            _ => Err("unknown command: INCR key, GET key or SUM"),
        }
    }

    /// Has the key's shard do it, or all shards. The closures run there, next to their counters.
    async fn run(self, shard: &Shard) -> std::result::Result<String, CallError> {
        let answer = match self {
            Command::Increment(key) => {
                let home = Route::key(&key);
                shard
                    .call(home, |_: &Shard| COUNTERS.with_borrow_mut(|counters| counters.increment(key)))
                    .await?
            }
            Command::Get(key) => {
                let home = Route::key(&key);
                Ok(shard
                    .call(home, move |_: &Shard| COUNTERS.with_borrow(|counters| counters.get(&key)))
                    .await?)
            }
            Command::Sum => {
                let sums = shard.call_all(|_| COUNTERS.with_borrow(|counters| counters.sum)).await;
                sums.into_iter().try_fold(0_u64, |total, sum| Ok(total.saturating_add(sum?))).map(Ok)?
            }
        };
        Ok(match answer {
            Ok(number) => format!("{number}\n"),
            Err(reason) => format!("ERR {reason}\n"),
        })
    }
}

impl Counters {
    fn increment(&mut self, key: String) -> std::result::Result<u64, &'static str> {
        if self.by_key.len() >= KEYS_MAX && !self.by_key.contains_key(&key) {
            return Err("too many keys");
        }
        let counter = self.by_key.entry(key).or_default();
        *counter = counter.saturating_add(1);
        self.sum = self.sum.saturating_add(1);
        Ok(*counter)
    }

    fn get(&self, key: &str) -> u64 {
        self.by_key.get(key).copied().unwrap_or(0)
    }
}

const LINE_BYTES_MAX: usize = 1024;

/// Per shard: at 100 bytes each, 100 MB.
const KEYS_MAX: usize = 1_000_000;
