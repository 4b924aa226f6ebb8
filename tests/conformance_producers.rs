//! Producers: registering, pausing, pulling, stopping, and closes that wait for them. Each test's name is a promise kept
//! on every driver.

mod common;

#[path = "conformance_producers/producing.rs"]
mod producing;
