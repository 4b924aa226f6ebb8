//! How a sleeping driver is woken from another thread. Who is asleep is not decided here (see `cross_shard`).

use std::sync::Arc;

/// Interrupts a driver's `wait`, now or the next time it is entered.
///
/// Implementations share ownership of whatever they write to, so that a wake after the driver is gone is a
/// no-op and never a write to somebody else's descriptor. `wake` never blocks, and is async-signal-safe.
pub(crate) trait Wake: Send + Sync + 'static {
    fn wake(&self);
}

/// A shared way to wake one driver.
pub(crate) type DriverWaker = Arc<dyn Wake>;
