//! From the common flags to a runtime. Does not know what it will run.

use super::{Driver, Flags};

impl Flags {
    /// A runtime as the flags ask for it.
    pub fn runtime(&self) -> shardwise::Runtime {
        let mut runtime = shardwise::Runtime::new();
        if let Some(shards) = self.shards {
            runtime = runtime.shards(shards);
        }
        if let Some(cpus) = &self.cpus {
            runtime = runtime.cpus(&cpus.0);
        }
        match self.driver {
            Driver::Auto => runtime,
            Driver::Mio => runtime.driver(shardwise::DriverKind::Mio),
        }
    }
}
