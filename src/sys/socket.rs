//! Sockets: the one door to socket2.

pub(crate) struct Socket;
