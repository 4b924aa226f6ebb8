//! What a connection costs while nothing happens on it. Kernel memory is not counted.

use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::child::{Process, RunningServer, Server, ServerOptions};
use crate::machine::{self, Facts};
use crate::report::{self, NOT_BUILT, Table, figure};
use crate::servers::Implementation;

#[derive(Args)]
pub(crate) struct MemoryArgs {
    #[arg(long, value_parser = crate::positive, default_value_t = 10_000)]
    connections: usize,
    /// Opened and used before the base line is drawn, and kept open.
    #[arg(long, default_value_t = 200)]
    warm_up: usize,
    #[arg(long, value_delimiter = ',', default_values = ["raw-epoll", "raw-mio", "tokio", "shardwise-protocol", "shardwise-async", "shardwise-async-copied"])]
    servers: Vec<Implementation>,
    /// Another server: NAME='command {cpu} {port}'. No allocator bytes for it. May be given again.
    #[arg(long, value_parser = Server::parse_foreign)]
    add: Vec<Server>,
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct HoldArgs {
    #[arg(long)]
    port: u16,
}

#[derive(Serialize)]
struct Row {
    server: String,
    connections: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<&'static str>,
    /// Bytes per connection that has never carried a byte.
    fresh: Option<Bytes>,
    /// Bytes per connection that has echoed 64 bytes once.
    used: Option<Bytes>,
}

/// Per connection.
#[derive(Serialize)]
struct Bytes {
    /// Asked of the allocator and not given back; own servers only.
    allocated: Option<f64>,
    /// Anonymous pages that are resident: what the allocator really took, its overhead included.
    resident: f64,
}

struct Reading {
    allocated: Option<i64>,
    resident: u64,
}

pub(crate) fn run(args: &MemoryArgs) -> Result<()> {
    let facts = Facts::collect();
    facts.print();
    let limit = machine::raise_descriptor_limit()?;
    let needed = (args.connections + args.warm_up) as u64 + SPARE_DESCRIPTORS;
    if needed > limit {
        return Err(format!("{needed} descriptors are needed, the hard limit is {limit} (ulimit -Hn)").into());
    }
    let own = args.servers.iter().copied().map(Server::Own);
    let mut rows = Vec::new();
    for server in own.chain(args.add.iter().cloned()) {
        rows.push(measure(args, &server).map_err(|error| format!("{}: {error}", server.name()))?);
    }
    print(&rows);
    Ok(report::finish(args.json.as_deref(), &facts, &rows)?)
}

fn measure(args: &MemoryArgs, server: &Server) -> Result<Row> {
    let mut row =
        Row { server: server.name(), connections: args.connections, absent: None, fresh: None, used: None };
    if !server.is_built() {
        row.absent = Some(NOT_BUILT);
        return Ok(row);
    }
    let own = matches!(server, Server::Own(_));
    let mut running = server.start(ServerOptions { cpu: 0, shards: 1, count_allocations: own })?;
    let mut holder = Command::new(std::env::current_exe()?);
    let mut holder = Process::spawn(holder.args(["hold", "--port", &running.port().to_string()]))?;

    let idle_descriptors = running.open_descriptors()?;
    demand(&mut holder, &format!("open {}", args.warm_up))?;
    demand(&mut holder, "echo")?;
    let base = settled(&mut running, own, idle_descriptors + args.warm_up)?;
    demand(&mut holder, &format!("open {}", args.connections))?;
    let accepted = idle_descriptors + args.warm_up + args.connections;
    let fresh = settled(&mut running, own, accepted)?;
    demand(&mut holder, "echo")?;
    let used = settled(&mut running, own, accepted)?;

    row.fresh = Some(difference(&base, &fresh, args.connections));
    row.used = Some(difference(&base, &used, args.connections));
    Ok(row)
}

fn demand(holder: &mut Process, word: &str) -> Result<()> {
    match holder.ask(word)?.as_str() {
        "ok" => Ok(()),
        answer => Err(format!("the holder of connections: {answer}").into()),
    }
}

/// Waits until the server has accepted everything and two readings in a row agree.
#[expect(clippy::disallowed_methods, reason = "polls another process, from a thread of its own")]
fn settled(server: &mut RunningServer, own: bool, descriptors: usize) -> Result<Reading> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    let mut last = None;
    loop {
        thread::sleep(Duration::from_millis(50));
        let open = server.open_descriptors()?;
        let resident = server.anonymous_bytes()?;
        let allocated = if own { Some(server.live_bytes()?) } else { None };
        if open >= descriptors && last == Some((open, resident, allocated)) {
            return Ok(Reading { allocated, resident });
        }
        if Instant::now() > deadline {
            return Err(format!("{open} of {descriptors} descriptors open, or not at rest").into());
        }
        last = Some((open, resident, allocated));
    }
}

fn difference(base: &Reading, reading: &Reading, connections: usize) -> Bytes {
    let connections = connections as f64;
    Bytes {
        allocated: base.allocated.zip(reading.allocated).map(|(base, now)| (now - base) as f64 / connections),
        resident: (reading.resident as f64 - base.resident as f64) / connections,
    }
}

fn print(rows: &[Row]) {
    println!("\nbytes per idle connection");
    let mut table =
        Table::new(&["server", "allocated, fresh", "resident, fresh", "allocated, used", "resident, used"]);
    for row in rows {
        let cells = |bytes: &Bytes| [bytes.allocated.map_or("–".to_owned(), figure), figure(bytes.resident)];
        match (&row.fresh, &row.used) {
            (Some(fresh), Some(used)) => {
                let mut cells_of_row = vec![row.server.clone()];
                cells_of_row.extend(cells(fresh));
                cells_of_row.extend(cells(used));
                table.row(cells_of_row);
            }
            _ => table.absent(&row.server, row.absent.unwrap_or_default()),
        }
    }
    table.print();
}

/// Opens and holds connections as the words on standard input say: `open N`, `echo`; each answered by `ok`.
pub(crate) fn hold(args: &HoldArgs) -> Result<()> {
    machine::raise_descriptor_limit()?;
    let mut streams = Vec::new();
    for line in io::stdin().lock().lines() {
        let answer = match obey(line?.trim(), args.port, &mut streams) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    Ok(())
}

fn obey(word: &str, port: u16, streams: &mut Vec<TcpStream>) -> Result<()> {
    if let Some(count) = word.strip_prefix("open ") {
        for _ in 0..count.parse()? {
            streams.push(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?);
        }
        return Ok(());
    }
    if word != "echo" {
        return Err(format!("unknown word {word:?}").into());
    }
    let (message, mut reply) = ([7; 64], [0; 64]);
    for stream in streams {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&message)?;
        stream.read_exact(&mut reply)?;
        if reply != message {
            return Err("an echo differs".into());
        }
    }
    Ok(())
}

const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
const SPARE_DESCRIPTORS: u64 = 100;
