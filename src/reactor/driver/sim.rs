//! The simulated driver.

pub(crate) struct SimSocket;
