//! What all shards and handles of one runtime share. Nothing here is touched per event.

use std::sync::Arc;

use crate::config::Config;
use crate::cross_shard::Mesh;
use crate::net::resolver::Resolver;
use crate::shard::Shard;
use crate::shard::groups::Groups;
use crate::shard::lifecycle::Lifecycle;
use crate::shard::stats::ShardStats;

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) mesh: Arc<Mesh<Shard>>,
    pub(crate) groups: Groups,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) stats: Box<[Arc<ShardStats>]>,
    /// The CPU each shard is pinned to, if it is.
    pub(crate) cpus: Box<[Option<usize>]>,
    /// Whether shards may poll before they park: pinned, and no two on one CPU.
    pub(crate) may_poll: bool,
}
