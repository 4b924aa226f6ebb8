//! UNIX sockets: each test's name is a promise of the contract. What needs no file system runs on every driver; modes,
//! locks and stale files are the real world's, so those tests run on mio alone.

mod common;
#[path = "faults/mod.rs"]
mod faults;

#[path = "conformance_unix/datagrams.rs"]
mod datagrams;
#[path = "conformance_unix/descriptors.rs"]
mod descriptors;
#[path = "conformance_unix/files.rs"]
mod files;
#[path = "conformance_unix/limits.rs"]
mod limits;
#[path = "conformance_unix/peers.rs"]
mod peers;
#[path = "conformance_unix/streams.rs"]
mod streams;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use shardwise::{Result, Shard};

/// A directory of its own, removed at the end.
struct Directory {
    path: PathBuf,
}

impl Directory {
    fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("shardwise-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("nobody else has this name");
        Directory { path }
    }

    fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names of what is there.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A name that no other test uses: an abstract one, which both drivers know.
fn unique_name(what: &str) -> String {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    format!("@shardwise-{}-{what}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))
}

/// Runs `body` on one shard over the kernel's own driver.
fn on_a_shard<F>(body: F)
where
    F: AsyncFn(&Shard) -> Result<()> + Send + Sync + 'static,
{
    common::on_the_kernel(1, body);
}

fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}
