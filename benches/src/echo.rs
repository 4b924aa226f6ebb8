//! The slices method: servers compared inside each round, so that a noisy machine hits all alike.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::child::{RunningServer, Server, ServerOptions};
use crate::client::{Until, latencies};
use crate::load::{Connected, Load};
use crate::machine::{self, Facts};
use crate::report::{self, NOT_BUILT, Table};
use crate::servers::Implementation;
use crate::statistics::Summary;
use crate::{Result, report::figure};

#[derive(Args)]
pub(crate) struct EchoArgs {
    /// CONNECTIONSxBYTES, pipelinedDEPTH or connect; udpSOCKETSxBYTES for the servers whose names begin with udp,
    /// unixCONNECTIONSxBYTES for those with unix; tlsCONNECTIONSxBYTES, tls-full and tls-resumed for tls, tls-downloadBYTES
    /// and tls-uploadBYTES for tls-bulk.
    #[arg(long, value_delimiter = ',', default_values = ["64x64", "1000x64", "64x16384", "pipelined16", "connect"])]
    workloads: Vec<String>,
    #[arg(long, value_parser = crate::positive, default_value_t = 24)]
    rounds: usize,
    #[arg(long, default_value_t = 250)]
    slice_ms: u64,
    /// Run before each slice and not counted: the caches belong to the server before.
    #[arg(long, default_value_t = 20)]
    lead_in_ms: u64,
    /// The first one is what the others are divided by.
    #[arg(long, value_delimiter = ',', default_values = ["raw-epoll", "raw-epoll-2", "raw-mio", "tokio", "shardwise-protocol", "shardwise-async"])]
    servers: Vec<Implementation>,
    /// Another server: NAME='command {cpu} {port}'. It must echo on loopback. May be given again.
    #[arg(long, value_parser = Server::parse_foreign)]
    add: Vec<Server>,
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    #[arg(long, default_value_t = 1)]
    client_cpu: usize,
    /// Of the order of slices; printed, so that a run can be repeated.
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One server under one workload.
#[derive(Serialize)]
struct Row {
    workload: String,
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<Measured>,
}

#[derive(Serialize)]
struct Measured {
    cpu_ratio: Summary,
    rate_ratio: Summary,
    cpu_ns_per_request: Summary,
    requests_per_second: Summary,
    p50_us: f64,
    p99_us: f64,
    requests: u64,
    rounds: Vec<Slice>,
}

#[derive(Clone, Copy, Serialize)]
struct Slice {
    cpu_ns_per_request: f64,
    requests_per_second: f64,
}

/// One server with all that has been measured of it under one workload.
struct Contender {
    server: Server,
    slices: Vec<Slice>,
    latencies: Histogram<u64>,
    requests: u64,
}

pub(crate) fn run(args: &EchoArgs) -> Result<()> {
    machine::raise_descriptor_limit()?;
    let facts = Facts::collect();
    machine::pin(&[args.client_cpu])?;
    facts.print();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed} · {} rounds of {} ms slices", args.rounds, args.slice_ms);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rows = Vec::new();
    for name in &args.workloads {
        let measured =
            measure(args, name.parse()?, &mut random).map_err(|error| format!("{name}: {error}"))?;
        let workload_rows = rows_of(name, args, measured);
        print(name, &workload_rows);
        rows.extend(workload_rows);
    }
    report::finish(args.json.as_deref(), &facts, &rows)?;
    Ok(())
}

fn contenders(args: &EchoArgs) -> Vec<Server> {
    let own = args.servers.iter().copied().map(Server::Own);
    own.chain(args.add.iter().cloned()).collect()
}

fn measure(args: &EchoArgs, load: Load, random: &mut fastrand::Rng) -> Result<Vec<Contender>> {
    let mut contenders: Vec<Contender> = contenders(args)
        .into_iter()
        .filter(Server::is_built)
        .map(|server| Contender { server, slices: Vec::new(), latencies: latencies(), requests: 0 })
        .collect();
    for block in 0..BLOCKS {
        let rounds = args.rounds * (block + 1) / BLOCKS - args.rounds * block / BLOCKS;
        if rounds > 0 {
            measure_block(args, load, rounds, &mut contenders, random)?;
        }
    }
    Ok(contenders)
}

/// Starts every server anew – the luck of a memory layout should not last a whole run – and gives each a
/// slice per round, in an order of that round's own.
fn measure_block(
    args: &EchoArgs,
    load: Load,
    rounds: usize,
    contenders: &mut [Contender],
    random: &mut fastrand::Rng,
) -> Result<()> {
    let options = ServerOptions { cpu: args.server_cpu, shards: 1, count_allocations: false };
    let mut running: Vec<(RunningServer, Connected)> = Vec::new();
    for contender in &*contenders {
        let server = contender.server.start(options)?;
        let crowd = load.connect(server.port())?;
        running.push((server, crowd));
    }
    let mut order: Vec<usize> = (0..contenders.len()).collect();
    for _ in 0..rounds {
        random.shuffle(&mut order);
        for &index in &order {
            let (server, crowd) = &mut running[index];
            let contender = &mut contenders[index];
            slice(args, server, crowd, contender)
                .map_err(|error| format!("{}: {error}", contender.server.name()))?;
        }
    }
    Ok(())
}

fn slice(
    args: &EchoArgs,
    server: &RunningServer,
    crowd: &mut Connected,
    contender: &mut Contender,
) -> Result<()> {
    crowd.run(Until::Elapsed(Duration::from_millis(args.lead_in_ms)), &mut latencies())?;
    let before = server.cpu_time()?;
    let done = crowd.run(Until::Elapsed(Duration::from_millis(args.slice_ms)), &mut contender.latencies)?;
    let cpu = server.cpu_time()? - before;
    contender.requests += done.requests;
    contender.slices.push(Slice {
        cpu_ns_per_request: cpu.as_nanos() as f64 / done.requests as f64,
        requests_per_second: done.requests as f64 / done.elapsed.as_secs_f64(),
    });
    Ok(())
}

fn rows_of(workload: &str, args: &EchoArgs, mut measured: Vec<Contender>) -> Vec<Row> {
    let Some(first) = measured.first() else { return Vec::new() };
    let first = first.slices.clone();
    let row = |server: Server| {
        let name = server.name();
        let found = measured.iter().position(|contender| contender.server.name() == name);
        let contender = found.map(|index| measured.remove(index));
        let absent = contender.is_none().then_some(NOT_BUILT);
        let measured = contender.map(|contender| summarise(contender, &first));
        Row { workload: workload.to_owned(), server: name, absent, measured }
    };
    contenders(args).into_iter().map(row).collect()
}

fn summarise(contender: Contender, first: &[Slice]) -> Measured {
    let each = |figure: fn(&Slice) -> f64| {
        let values: Vec<f64> = contender.slices.iter().map(figure).collect();
        let ratios: Vec<f64> = values.iter().zip(first).map(|(value, slice)| value / figure(slice)).collect();
        (Summary::of(&values), Summary::of(&ratios))
    };
    let (cpu_ns_per_request, cpu_ratio) = each(|slice| slice.cpu_ns_per_request);
    let (requests_per_second, rate_ratio) = each(|slice| slice.requests_per_second);
    let microseconds = |quantile| contender.latencies.value_at_quantile(quantile) as f64 / 1e3;
    Measured {
        cpu_ratio,
        rate_ratio,
        cpu_ns_per_request,
        requests_per_second,
        p50_us: microseconds(0.5),
        p99_us: microseconds(0.99),
        requests: contender.requests,
        rounds: contender.slices,
    }
}

fn print(workload: &str, rows: &[Row]) {
    println!("\n{workload}");
    let mut table = Table::new(&[
        "server",
        "cpu ÷ first",
        "median (min–max)",
        "rate ÷ first",
        "cpu µs/request",
        "requests/s",
        "p50 µs",
        "p99 µs",
    ]);
    for row in rows {
        match &row.measured {
            None => table.absent(&row.server, row.absent.unwrap_or_default()),
            Some(measured) => table.row(vec![
                row.server.clone(),
                report::ratio(&measured.cpu_ratio),
                report::spread(&measured.cpu_ratio),
                report::ratio(&measured.rate_ratio),
                figure(measured.cpu_ns_per_request.trimmed_mean / 1e3),
                format!("{:.0}", measured.requests_per_second.trimmed_mean),
                figure(measured.p50_us),
                figure(measured.p99_us),
            ]),
        }
    }
    table.print();
}

/// The servers are restarted between these: twice.
const BLOCKS: usize = 3;
