//! The machine: its facts, pinning, limits and CPU clocks. Does not know what is measured.

use std::time::{Duration, SystemTime};
use std::{env, fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// What a reader needs to judge a figure, stored with every result.
#[derive(Serialize)]
pub(crate) struct Facts {
    kernel: String,
    cpu_model: String,
    cpus: usize,
    load_average: String,
    command: String,
    date: String,
    /// Whether the library's own rows were built.
    ours: bool,
}

impl Facts {
    pub(crate) fn collect() -> Self {
        let uname = rustix::system::uname();
        Facts {
            kernel: format!(
                "{} {} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy(),
                uname.machine().to_string_lossy()
            ),
            cpu_model: cpu_model().unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            load_average: load_average(),
            command: env::args().collect::<Vec<_>>().join(" "),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            ours: cfg!(feature = "ours"),
        }
    }

    pub(crate) fn print(&self) {
        println!("{} · {} · {} CPUs · load {}", self.kernel, self.cpu_model, self.cpus, self.load_average);
        println!("{} · {}", self.date, self.command);
    }
}

/// Runnable tasks, averaged over 1, 5 and 15 minutes: others' load is the first reason to doubt a figure.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

fn cpu_model() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Pins the calling thread, and every thread it starts later, to `cpus`.
pub(crate) fn pin(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    sched_setaffinity(None, &set)
        .map_err(|error| io::Error::other(format!("pinning to CPUs {cpus:?}: {error}")))
}

/// Raises the soft limit on open descriptors to the hard one and returns it.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// CPU time used by the calling thread.
pub(crate) fn thread_cpu_time() -> Duration {
    read(ClockId::ThreadCPUTime)
}

/// CPU time used by all threads of this process.
pub(crate) fn process_cpu_time() -> Duration {
    read(ClockId::ProcessCPUTime)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time used by all threads of another process, to the nanosecond (`/proc/PID/stat` counts in 10 ms).
///
/// # Errors
/// When there is no process `pid` (any more).
pub(crate) fn cpu_time_of(pid: u32) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is valid for writes during the call, which keeps no pointer.
    let code = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes during the call, which keeps no pointer.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Whether every thread of another process is asleep, waiting for something.
///
/// # Errors
/// When there is no process `pid` (any more).
pub(crate) fn all_threads_sleep(pid: u32) -> io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        // The name, in brackets, may hold anything; the state is the letter after it. See proc(5).
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
        if state != Some("S") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How often threads of this process have gone to sleep of their own accord, ended threads included.
pub(crate) fn sleeps() -> u64 {
    // SAFETY: all zeroes is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is valid for writes during the call, which keeps no pointer. RUSAGE_SELF cannot fail.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    usage.ru_nvcsw as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_process_read_from_outside_is_the_one_it_reads_itself() {
        let before = process_cpu_time();
        let from_outside = cpu_time_of(std::process::id()).unwrap();
        let after = process_cpu_time();
        assert!(before <= from_outside && from_outside <= after);
    }

    #[test]
    fn a_process_whose_thread_runs_is_not_asleep() {
        assert!(!all_threads_sleep(std::process::id()).unwrap(), "this thread is asking");
    }
}
