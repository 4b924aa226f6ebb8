//! Child processes: servers and the holder of idle connections. Ends them by their own handle, never by name.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rustix::net::{AddressFamily, SocketType, connect, socket};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::servers::{Implementation, control, unix_name};
use crate::{Result, machine};

/// What a row of a table is measured on.
#[derive(Clone)]
pub(crate) enum Server {
    /// One of [`Implementation`], run from this binary.
    Own(Implementation),
    /// Anything else that echoes: a command with `{cpu}` and `{port}` to be filled in.
    Foreign { name: String, command: String },
}

/// How to start a server.
#[derive(Clone, Copy)]
pub(crate) struct ServerOptions {
    pub(crate) cpu: usize,
    pub(crate) shards: usize,
    pub(crate) count_allocations: bool,
}

impl Server {
    pub(crate) fn name(&self) -> String {
        match self {
            Server::Own(implementation) => implementation.name(),
            Server::Foreign { name, .. } => name.clone(),
        }
    }

    pub(crate) fn is_built(&self) -> bool {
        match self {
            Server::Own(implementation) => implementation.is_built(),
            Server::Foreign { .. } => true,
        }
    }

    /// Parses `NAME=command {cpu} {port}`.
    pub(crate) fn parse_foreign(text: &str) -> std::result::Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("expected NAME=command {cpu} {port}")?;
        if !command.contains("{port}") {
            return Err(format!("{command:?} names no {{port}}"));
        }
        Ok(Server::Foreign { name: name.to_owned(), command: command.to_owned() })
    }

    /// Starts the server on a port of its own and waits until it accepts.
    pub(crate) fn start(&self, options: ServerOptions) -> Result<RunningServer> {
        self.start_under(&[], options)
    }

    /// The same, as the arguments of another program (`valgrind --tool=…`); own servers only.
    pub(crate) fn start_under(&self, wrapper: &[String], options: ServerOptions) -> Result<RunningServer> {
        let datagrams = matches!(self, Server::Own(implementation) if implementation.is_datagram());
        let port = free_port(datagrams)?;
        let mut command = match self {
            Server::Own(implementation) => own_command(*implementation, wrapper, options, port)?,
            Server::Foreign { command, .. } => {
                let filled =
                    command.replace("{cpu}", &options.cpu.to_string()).replace("{port}", &port.to_string());
                let mut shell = Command::new("sh");
                // `exec`: the process that is measured and ended is the server, not the shell.
                shell.arg("-c").arg(format!("exec {filled}"));
                shell
            }
        };
        place_on(&mut command, options.cpu);
        let mut process = Process::spawn(&mut command)?;
        let unix = matches!(self, Server::Own(implementation) if implementation.is_unix());
        let serves = match (datagrams, unix) {
            (true, _) => echoes_datagrams,
            (_, true) => accepts_at_its_name,
            _ => accepts,
        };
        wait_until(serves, port, &mut process).map_err(|error| format!("{}: {error}", self.name()))?;
        Ok(RunningServer { process, port })
    }
}

fn own_command(
    implementation: Implementation,
    wrapper: &[String],
    options: ServerOptions,
    port: u16,
) -> Result<Command> {
    let binary = env::current_exe()?;
    let mut command = match wrapper {
        [] => Command::new(&binary),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&binary);
            command
        }
    };
    command.args(["serve", "--controlled", "--impl", &implementation.name()]);
    command.args(["--cpu", &options.cpu.to_string(), "--port", &port.to_string()]);
    command.args(["--shards", &options.shards.to_string()]);
    if options.count_allocations {
        command.arg("--count-allocations");
    }
    Ok(command)
}

/// Has the child start on `cpu`, whatever this process is pinned to; it may choose others itself.
fn place_on(command: &mut Command, cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    // SAFETY: runs between fork and exec and makes one system call: no allocation, no lock.
    unsafe {
        command.pre_exec(move || Ok(sched_setaffinity(None, &cpus)?));
    }
}

/// A server that accepts connections. Dropping it ends the process.
pub(crate) struct RunningServer {
    process: Process,
    port: u16,
}

impl RunningServer {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// CPU time of all its threads so far.
    pub(crate) fn cpu_time(&self) -> io::Result<Duration> {
        machine::cpu_time_of(self.process.child.id())
    }

    /// How many descriptors it has open.
    pub(crate) fn open_descriptors(&self) -> io::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.process.child.id()))?.count())
    }

    /// Bytes of its anonymous memory that are resident: heap and stacks, not code.
    pub(crate) fn anonymous_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.process.child.id());
        let text = fs::read_to_string(&path)?;
        let line = text.lines().find(|line| line.starts_with("Anonymous:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().nth(1)).ok_or(path)?;
        Ok(kibibytes.parse::<u64>()? * 1024)
    }

    /// What its counting allocator says. Own servers started with `count_allocations` only.
    pub(crate) fn live_bytes(&mut self) -> Result<i64> {
        self.process.signal(control::TELL_BYTES)?;
        Ok(self.process.answer("a signal")?.parse()?)
    }

    /// Waits until all its threads sleep, then stops it where it is: what is sent to it from here on, it finds as a
    /// whole when it goes on.
    pub(crate) fn pause(&self) -> Result<()> {
        self.wait_until_asleep()?;
        self.process.signal(Signal::STOP)?;
        match waitpid(Some(Pid::from_child(&self.process.child)), WaitOptions::UNTRACED)? {
            Some((_, status)) if status.stopped() => Ok(()),
            other => Err(format!("the server did not stop, but: {other:?}").into()),
        }
    }

    /// Lets it go on after `pause`.
    pub(crate) fn go_on(&self) -> Result<()> {
        Ok(self.process.signal(Signal::CONT)?)
    }

    #[expect(clippy::disallowed_methods, reason = "polls another process, from a thread of its own")]
    fn wait_until_asleep(&self) -> Result<()> {
        let deadline = Instant::now() + SLEEP_TIMEOUT;
        loop {
            // Nothing ran while the threads were looked at one after the other, so what was seen is true of one moment.
            let before = self.cpu_time()?;
            if machine::all_threads_sleep(self.process.child.id())? && self.cpu_time()? == before {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("the server does not sleep after {SLEEP_TIMEOUT:?}").into());
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Tells an own server to exit and waits for it.
    pub(crate) fn exit(mut self) -> Result<()> {
        self.process.signal(control::EXIT)?;
        let status = self.process.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the server ended with {status}").into()) }
    }
}

/// A child that is told things by words or signals, answers in lines, and dies with this process.
pub(crate) struct Process {
    child: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: runs between fork and exec and makes one system call: no allocation, no lock.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", command.get_program().to_string_lossy()))
        })?;
        let words = child.stdin.take().expect("stdin is piped");
        let answers = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Process { child, words, answers })
    }

    /// Sends a word and waits for the line that answers it.
    pub(crate) fn ask(&mut self, word: &str) -> io::Result<String> {
        writeln!(self.words, "{word}")?;
        self.words.flush()?;
        self.answer(word)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    fn answer(&mut self, question: &str) -> io::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::Error::other(format!("the child ended instead of answering {question:?}")));
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port nobody holds right now. Another process may take it first: the server then fails to bind, loudly.
fn free_port(datagrams: bool) -> io::Result<u16> {
    if datagrams {
        return Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port());
    }
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[expect(clippy::disallowed_methods, reason = "polls another process, from a thread of its own")]
fn wait_until(serves: fn(u16) -> bool, port: u16, process: &mut Process) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if serves(port) {
            return Ok(());
        }
        if let Some(status) = process.child.try_wait()? {
            return Err(format!("ended with {status} before it accepted").into());
        }
        if Instant::now() > deadline {
            return Err(format!("does not accept on port {port} after {START_TIMEOUT:?}").into());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn accepts(port: u16) -> bool {
    TcpStream::connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn accepts_at_its_name(port: u16) -> bool {
    let connect = || -> io::Result<()> {
        let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        Ok(connect(&socket, &unix_name(port)?)?)
    };
    connect().is_ok()
}

fn echoes_datagrams(port: u16) -> bool {
    let ask = || -> io::Result<bool> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.send(b"ready?")?;
        Ok(socket.recv(&mut [0; 8])? == 6)
    };
    ask().unwrap_or(false)
}

const START_TIMEOUT: Duration = Duration::from_secs(20);
const SLEEP_TIMEOUT: Duration = Duration::from_secs(20);
