//! What every example shares: its flags, where its lines go, and how it ends. Knows nothing of what one serves.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each example is a crate of its own and uses its own part of this"
)]

pub mod output;
pub mod runtime;

use std::fmt::Display;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Command, FromArgMatches, ValueEnum};
use shardwise::endpoint::{LoadError, LoadProblem};
use shardwise::{LoadedServer, ServerEndpoint};

pub use output::say;
pub use runtime::{announce, announce_addr, serve};

/// The flags of every example.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Where to listen: HOST:PORT, or an endpoint such as tls:7443:privateKey=key.pem:certKey=cert.pem, or
    /// unix:/run/example.sock, or systemd:index=0 and fd:3 for a socket that is there already, or haproxy:127.0.0.1:7000
    /// behind a proxy that sends PROXY protocol headers. HOST is a name, an IPv4 address or an
    /// IPv6 address in brackets; PORT is 0 to 65535, and with 0 the system picks a free one. The address in use is
    /// printed as "listening on ADDRESS"
    #[arg(long, value_name = "ENDPOINT")]
    pub listen: ServerEndpoint,

    /// How many shards, 1 to 256. Without it: one for each CPU that this process may use
    #[arg(long, value_name = "N", value_parser = parse_shards, allow_negative_numbers = true)]
    pub shards: Option<usize>,

    /// Which CPUs the shards are pinned to, as numbers and ranges: 0,1 or 0-3,7. Without it: those that this process
    /// may use
    #[arg(long, value_name = "LIST", value_parser = parse_cpus, allow_negative_numbers = true)]
    pub cpus: Option<CpuList>,

    /// What the shards ask the kernel through
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Driver::Auto)]
    pub driver: Driver,
}

/// Flags that an example has no more of than all the others.
#[derive(Args, Clone, Debug)]
pub struct NoMore {}

/// Which driver the shards run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Driver {
    /// The best that works here
    Auto,
    /// epoll
    Mio,
}

/// CPU numbers in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// Why an example ends before it has begun, or that it was only asked for help.
#[derive(Debug)]
pub struct Ending {
    pub code: u8,
    pub text: String,
}

impl Flags {
    /// Reads the command line. Ends the process with code 2 if it is wrong, with 0 after `--help`.
    pub fn parse_or_exit(about: &'static str, default_port: u16) -> Flags {
        parse_or_exit::<NoMore>(about, default_port).0
    }

    /// Where to listen. Ends the process with code 1 if the host has no address, or the descriptor does not listen;
    /// with 2 if something else is wrong.
    pub fn server_or_exit(&self) -> LoadedServer {
        self.listen.load().unwrap_or_else(|error| unusable("--listen", &error).exit())
    }

    /// The address to listen at, where nothing but a plain one will do: `what` says for what.
    pub fn addr_or_exit(&self, what: &str) -> SocketAddr {
        let ServerEndpoint::Tcp(_) = &self.listen else {
            let text = format!("error: --listen: {what}: write HOST:PORT, not `{}`", self.listen);
            Ending { code: 2, text: one_line(&text) }.exit()
        };
        self.server_or_exit().addr().expect("a TCP endpoint has one")
    }
}

/// Reads the command line of an example that has flags of its own beside the common ones.
pub fn parse_or_exit<More: Args>(about: &'static str, default_port: u16) -> (Flags, More) {
    parse(about, default_port, std::env::args_os()).unwrap_or_else(|ending| ending.exit())
}

/// Reads `arguments`, the first of which is the program's name.
pub fn parse<More: Args>(
    about: &'static str,
    default_port: u16,
    arguments: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
) -> Result<(Flags, More), Ending> {
    let ends = "It runs in the foreground, logs to stderr, and on SIGTERM or SIGINT finishes what it has begun.\n\
                Exit codes: 0 after a clean end, 1 if it cannot start, 2 if an option is wrong.";
    // The texts come last: `augment_args` puts the doc comment of the flags' struct in their place.
    let command = More::augment_args(Flags::augment_args(Command::new("example")))
        .about(about)
        .long_about(about)
        .after_help(ends)
        .mut_arg("listen", |listen| {
            listen.required(false).default_value(format!("127.0.0.1:{default_port}"))
        });
    let matches = command.try_get_matches_from(arguments)?;
    Ok((Flags::from_arg_matches(&matches)?, More::from_arg_matches(&matches)?))
}

/// How a program ends that cannot use the endpoint of `option`.
pub fn unusable(option: &str, error: &LoadError) -> Ending {
    let code = match error.problem() {
        // Not the option is wrong, but what is found there.
        LoadProblem::Host(_) | LoadProblem::Descriptor { .. } | LoadProblem::NotPassed(_) => 1,
        _ => 2,
    };
    Ending { code, text: one_line(&format!("error: {option}: {error}")) }
}

/// How a program ends: in silence after `Ok`, else with one line on stderr and exit code 1.
pub fn exit_with(result: Result<(), impl Display>) -> ExitCode {
    match result {
        Ok(()) => {
            output::finish();
            ExitCode::SUCCESS
        }
        Err(error) => Ending { code: 1, text: one_line(&error.to_string()) }.into(),
    }
}

fn parse_shards(text: &str) -> Result<usize, String> {
    let shards = text.parse().ok().filter(|shards| (1..=MOST_SHARDS).contains(shards));
    shards.ok_or_else(|| format!("not a number from 1 to {MOST_SHARDS}"))
}

fn parse_cpus(text: &str) -> Result<CpuList, String> {
    let wrong = |part: &str| {
        format!("'{part}' is neither a CPU number from 0 to {MOST_CPU} nor a range of them like 0-3")
    };
    let cpu = |part: &str| part.parse().ok().filter(|cpu: &usize| *cpu <= MOST_CPU);
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (cpu(first), cpu(last)) else { return Err(wrong(part)) };
        if first > last {
            return Err(format!("the range '{part}' runs backwards"));
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    match cpus.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("CPU {} is named twice", pair[0])),
        None => Ok(CpuList(cpus)),
    }
}

impl Ending {
    /// Says why and ends the process.
    pub fn exit(self) -> ! {
        let code = self.code;
        self.tell();
        std::process::exit(code.into())
    }

    fn tell(self) {
        match self.code {
            0 => say(self.text.trim_end()),
            _ => output::complain(self.text.trim_end()),
        }
        output::finish();
    }
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> ExitCode {
        let code = ending.code;
        ending.tell();
        code.into()
    }
}

impl From<clap::Error> for Ending {
    fn from(error: clap::Error) -> Ending {
        let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        Ending { code: if asked { 0 } else { 2 }, text: error.render().to_string() }
    }
}

/// What an error says, without the line breaks and control characters that a peer or a path may have put into it.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

const MOST_SHARDS: usize = 256;

/// What `sched_setaffinity(2)` can name without a larger set.
const MOST_CPU: usize = 1023;
