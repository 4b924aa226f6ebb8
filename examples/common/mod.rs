//! What every example shares: its flags, where its lines go, and how it ends. Knows nothing of what one serves.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each example is a crate of its own and uses its own part of this"
)]

pub mod output;
pub mod runtime;

use std::fmt::{self, Display};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Command, FromArgMatches, ValueEnum};

pub use output::say;
pub use runtime::{announce, announce_addr, serve};

/// The flags of every example.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Where to listen. HOST is a name, an IPv4 address or an IPv6 address in brackets; PORT is 0 to 65535, and with
    /// 0 the system picks a free one. The address in use is printed as "listening on ADDRESS"
    #[arg(long, value_name = "HOST:PORT", value_parser = HostPort::from_str)]
    pub listen: HostPort,

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

/// An address as somebody wrote it: not looked up yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

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

    /// The address to listen at. Ends the process with code 1 if the host has none.
    pub fn listen_addr_or_exit(&self) -> SocketAddr {
        resolve_or_exit(&self.listen)
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

/// Resolves an address or ends the process with code 1 and one line that says which address, and why.
pub fn resolve_or_exit(address: &HostPort) -> SocketAddr {
    // P8: an example listens, or has failed, within 3 s; name servers may take longer to give up.
    address
        .resolve(Duration::from_secs(2))
        .unwrap_or_else(|error| Ending { code: 1, text: format!("cannot use {address}: {error}") }.exit())
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

impl HostPort {
    /// Looks the host up, for at most `patience`; the first address counts.
    pub fn resolve(&self, patience: Duration) -> io::Result<SocketAddr> {
        if let Ok(ip) = self.host.parse() {
            return Ok(SocketAddr::new(ip, self.port));
        }
        let (host, port) = (self.host.clone(), self.port);
        let (answer, answered) = mpsc::channel();
        // The look-up cannot be cancelled, so it is left behind when patience ends.
        thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            let found = (host.as_str(), port).to_socket_addrs();
            let first = found.and_then(|mut found| {
                found.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))
            });
            // Nobody listens any more when patience has ended.
            let _ = answer.send(first);
        })?;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}"));
        answered.recv_timeout(patience).map_err(late)?
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPort, String> {
        let (host, port) = text.rsplit_once(':').ok_or("not of the form HOST:PORT, like 127.0.0.1:8080")?;
        let port = port.parse().map_err(|_| format!("port '{port}' is not a number from 0 to 65535"))?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(bare) if bare.parse::<std::net::Ipv6Addr>().is_ok() => bare,
            Some(bare) => return Err(format!("'{bare}' is not an IPv6 address")),
            None if host.is_empty() => {
                return Err("no host before the port: 127.0.0.1, localhost or [::1]".into());
            }
            None if host.contains(':') => return Err(format!("an IPv6 address needs brackets: [{host}]")),
            None if host.chars().any(|c| c.is_whitespace() || c.is_control()) => {
                return Err("a host has no blanks".into());
            }
            None => host,
        };
        Ok(HostPort { host: host.to_owned(), port })
    }
}

impl Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostPort { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
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
