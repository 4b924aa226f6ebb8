//! Sockets and raw calls: the only place, with the drivers, that talks to the kernel.

pub(crate) mod linux;
#[allow(unsafe_code, reason = "sigaction and its handler; no library restores dispositions")]
pub(crate) mod signals;
pub(crate) mod socket;
