//! Messages: owned values from one shard to another, in order. Knows neither sockets nor bytes, and what a
//! message runs on only as a context `C`.
//!
//! ```text
//! Endpoint::call ─▶ outbox ─▶ publish ─▶ the target's inbox ─▶ deliver: runs
//!       Call ◀─ deliver: results ◀─ the origin's inbox ◀─ the same batch
//! ```
//!
//! * `envelope` is what travels: a closure or its result in a slot of 32 or 64 bytes, slots in a batch
//!   (`batch`).
//! * `inbox` is where it arrives, and who wakes whom; `queue` is the lock-free queue below.
//! * `outbox` is what a shard has staged; `calls` what it waits for; `credit` how much of that it may have.
//! * `endpoint` is what one shard owns of all this (`local` is how it sends, `delivery` how it runs what
//!   arrives), `mesh` what everybody shares; `foreign` answers threads that are no shard, and `reply` async
//!   calls.
//!
//! Messages from one shard to another start in the order they were sent. Nothing is promised between
//! different senders, nor between a reply and a message.

mod batch;
#[allow(unsafe_code, reason = "opens what came of a call as the type its closure returned")]
mod calls;
mod counters;
mod credit;
mod delivery;
mod endpoint;
#[allow(unsafe_code, reason = "closures and results lie type-erased in the slots of a batch")]
mod envelope;
mod error;
mod foreign;
mod inbox;
mod local;
mod mesh;
#[cfg(all(test, loom))]
#[allow(unsafe_code, reason = "values whose every use is checked are made of raw cells")]
mod models;
mod outbox;
#[allow(unsafe_code, reason = "a prefetch takes a raw address")]
mod prefetch;
#[cfg_attr(loom, allow(unsafe_code, reason = "the queue that models run on is made of raw nodes"))]
mod queue;
mod reply;
mod route;
#[cfg(all(test, not(loom)))]
mod stress;
#[cfg(all(test, not(loom)))]
mod test_kit;
mod withdrawal;

pub(crate) use calls::Call;
pub(crate) use credit::{Acquire, Credit};
pub(crate) use endpoint::Endpoint;
pub use error::{CallError, Panic, Stopped};
pub(crate) use foreign::{Answer, ForeignCall, Overdue, pair as answer_pair};
pub(crate) use mesh::Mesh;
pub(crate) use reply::Reply;
pub use route::Route;
