//! From the common flags to a runtime, and from its end to an exit code. Does not know what it will run.

use std::fmt::Display;
use std::process::ExitCode;

use shardwise::{App, DriverKind, Listener, RunError, Runtime, Shard};

use super::{Driver, Ending, Flags, one_line, output};

impl Flags {
    /// A runtime as the flags ask for it.
    pub fn runtime(&self) -> Runtime {
        let mut runtime = Runtime::new();
        if let Some(shards) = self.shards {
            runtime = runtime.shards(shards);
        }
        if let Some(cpus) = &self.cpus {
            runtime = runtime.cpus(cpus.0.iter().copied());
        }
        match self.driver {
            Driver::Auto => runtime,
            Driver::Mio => runtime.driver(DriverKind::Mio),
        }
    }
}

/// Runs `app` until a signal or the app itself stops it, logs to stderr, and says how it ended.
pub fn serve(runtime: Runtime, app: impl App) -> ExitCode {
    output::log_to_stderr();
    exit_code(runtime.run(app))
}

/// Prints the address, once for the whole runtime and once it is served.
pub fn announce<A: Clone + Display>(shard: &Shard, listener: &Listener<A>) {
    announce_addr(shard, listener.local_addr());
}

/// The same for what is no listener.
pub fn announce_addr(shard: &Shard, addr: impl Display) {
    let line = format!("listening on {addr}");
    if shard.id().index() == 0 {
        shard.call_when_running(move |_| output::say(line));
    }
}

/// 0 after a clean drain, 128 + signal after a forced abort, as shells count; 2 for CPUs that cannot be had, 1 for
/// everything else.
pub fn exit_code(outcome: Result<(), RunError>) -> ExitCode {
    let Err(error) = outcome else {
        output::finish();
        return ExitCode::SUCCESS;
    };
    match error {
        RunError::Forced { signal: Some(signal), .. } => {
            let code = u8::try_from(128 + signal).unwrap_or(1);
            Ending { code, text: one_line(&error.to_string()) }.into()
        }
        RunError::Placement(error) => {
            let text = one_line(&format!("error: --shards or --cpus: {error}"));
            Ending { code: 2, text }.into()
        }
        error => Ending { code: 1, text: one_line(&error.to_string()) }.into(),
    }
}
