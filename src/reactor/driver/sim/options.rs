//! What a simulated world is like: how slow and how unkind.

use std::time::Duration;

/// The make of a simulated network.
#[derive(Clone, Debug)]
pub(crate) struct SimOptions {
    pub(crate) faults: Faults,
    /// The longest a packet is under way, in virtual time. Zero: everything arrives at once.
    pub(crate) latency_max: Duration,
    /// How many bytes one direction of a connection holds, under way and unread together: drawn between these two
    /// for each direction.
    pub(crate) pipe_bytes_min: usize,
    pub(crate) pipe_bytes_max: usize,
    /// The most bytes one `Received` carries.
    pub(crate) read_buffer_bytes: usize,
}

/// How often things happen that a kernel may do and rarely does: probabilities from 0.0 to 1.0.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    /// A `Received` carries less than has come, down to one byte.
    pub(crate) short_read: f64,
    /// A send takes a part of what there is room for.
    pub(crate) short_send: f64,
    /// A send takes nothing, though there is room.
    pub(crate) refused_send: f64,
    /// A batch of events comes in another order (never within one source), and a source stops before its budget.
    pub(crate) shuffle: f64,
    /// One more `Received` follows a `receive(off)` when bytes have come.
    pub(crate) late_received: f64,
    /// A `wait` returns without its events; the next one brings them.
    pub(crate) empty_wait: f64,
    /// A datagram does not arrive.
    pub(crate) lost_datagram: f64,
    /// A datagram arrives twice.
    pub(crate) doubled_datagram: f64,
    /// A reset destroys the bytes that are under way.
    pub(crate) lossy_reset: f64,
}

impl SimOptions {
    /// No latency and no faults: whatever happens, happens at once and whole.
    pub(crate) fn calm() -> Self {
        SimOptions { faults: Faults::none(), latency_max: Duration::ZERO, ..SimOptions::default() }
    }
}

impl Default for SimOptions {
    fn default() -> Self {
        SimOptions {
            faults: Faults::default(),
            latency_max: Duration::from_micros(200),
            pipe_bytes_min: 64 * 1024,
            pipe_bytes_max: 256 * 1024,
            read_buffer_bytes: 64 * 1024,
        }
    }
}

impl Faults {
    pub(crate) const fn none() -> Self {
        Faults {
            short_read: 0.0,
            short_send: 0.0,
            refused_send: 0.0,
            shuffle: 0.0,
            late_received: 0.0,
            empty_wait: 0.0,
            lost_datagram: 0.0,
            doubled_datagram: 0.0,
            lossy_reset: 0.0,
        }
    }
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            short_read: 0.25,
            short_send: 0.1,
            refused_send: 0.05,
            shuffle: 0.5,
            late_received: 0.25,
            empty_wait: 0.05,
            lost_datagram: 0.05,
            doubled_datagram: 0.05,
            lossy_reset: 0.5,
        }
    }
}
