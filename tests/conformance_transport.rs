//! TCP transports: writing, closing, half-closing, pausing, failing. Each test's name is a promise kept on every driver.

mod common;

#[path = "conformance_transport/back_pressure.rs"]
mod back_pressure;
#[path = "conformance_transport/closing.rs"]
mod closing;
#[path = "conformance_transport/deadlines.rs"]
mod deadlines;
#[path = "conformance_transport/failing.rs"]
mod failing;
#[path = "conformance_transport/half_close.rs"]
mod half_close;
#[path = "conformance_transport/load.rs"]
mod load;
#[path = "conformance_transport/reading.rs"]
mod reading;
#[path = "conformance_transport/streams.rs"]
mod streams;
#[path = "conformance_transport/writing.rs"]
mod writing;
