//! Sockets and raw calls: the only place, with the drivers, that talks to the kernel.

pub(crate) mod adopted;
#[allow(unsafe_code, reason = "recvmmsg, and sendmsg with UDP_SEGMENT, which rustix does not offer")]
pub(crate) mod datagram;
#[allow(unsafe_code, reason = "setsockopt with options that no library wraps; descriptors known by number")]
pub(crate) mod linux;
#[allow(unsafe_code, reason = "the return predictor is filled by calls that do not return")]
pub(crate) mod return_stack;
#[allow(unsafe_code, reason = "sigaction and its handler; no library restores dispositions")]
pub(crate) mod signals;
pub(crate) mod socket;
pub(crate) mod unix;
