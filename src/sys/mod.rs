//! Sockets and raw calls: the only place, with the drivers, that talks to the kernel.

pub(crate) mod linux;
pub(crate) mod signals;
pub(crate) mod socket;
