//! Atomics and locks, from std or, under `cfg(loom)`, from loom.
