//! Stands in for `tls.rs` where the feature is off: a session that nobody can have.

use crate::error::TlsError;
use crate::net::wire::Opened;
use crate::reactor::lease::Lease;
use crate::reactor::timer_wheel::TimerKey;

pub(crate) struct Session {
    pub(crate) fresh: bool,
    pub(crate) socket_ended: bool,
    pub(crate) truncated: bool,
    pub(crate) queued: bool,
    pub(crate) has_place: bool,
    pub(crate) deadline: Option<TimerKey>,
    never: Never,
}

/// Which side of a handshake nobody can take.
#[derive(Clone, Debug)]
pub(crate) struct TlsRole {
    never: Never,
}

#[derive(Clone, Debug)]
enum Never {}

impl From<&TlsServerConfig> for TlsRole {
    fn from(config: &TlsServerConfig) -> Self {
        match *config {}
    }
}

impl From<(&TlsClientConfig, &str)> for TlsRole {
    fn from((config, _): (&TlsClientConfig, &str)) -> Self {
        match *config {}
    }
}

impl TlsRole {
    pub(crate) fn session(&self) -> Result<Box<Session>, TlsError> {
        match self.never {}
    }
}

impl Session {
    pub(crate) fn is_handshaking(&self) -> bool {
        match self.never {}
    }
    pub(crate) fn is_server(&self) -> bool {
        match self.never {}
    }
    pub(crate) fn has_failed(&self) -> bool {
        match self.never {}
    }
    pub(crate) fn peer_has_finished(&self) -> bool {
        match self.never {}
    }
    pub(crate) fn pending_bytes(&self) -> usize {
        match self.never {}
    }
    pub(crate) fn has_unopened(&self) -> bool {
        match self.never {}
    }
    pub(crate) fn has_outgoing(&self) -> bool {
        match self.never {}
    }
    pub(crate) fn queue(&mut self, _plain: &[u8]) {
        match self.never {}
    }
    pub(crate) fn discard_pending(&mut self) -> usize {
        match self.never {}
    }
    pub(crate) fn keep(&mut self, _bytes: &[u8]) {
        match self.never {}
    }
    pub(crate) fn fail(&mut self) {
        match self.never {}
    }
    pub(crate) fn open(&mut self, _: Option<&mut Lease>, _: &mut [u8], _: &mut usize) -> Opened {
        match self.never {}
    }
    pub(crate) fn seal(&mut self, _: &mut Vec<u8>, _: bool, _: &mut Vec<u8>) -> Result<(), TlsError> {
        match self.never {}
    }
    pub(crate) fn seal_straight(&mut self, _: &[u8], _: &mut Vec<u8>) -> Result<(), TlsError> {
        match self.never {}
    }
}

#[derive(Clone, Debug)]
pub(crate) enum TlsServerConfig {}

#[derive(Clone, Debug)]
pub(crate) enum TlsClientConfig {}

pub(crate) mod loading {
    use std::io;
    use std::path::Path;

    use super::{TlsClientConfig, TlsServerConfig};
    use crate::net::endpoint::TlsIdentity;

    pub(crate) fn server(_: &TlsIdentity, _: Option<&Path>) -> io::Result<TlsServerConfig> {
        Err(without_tls())
    }

    pub(crate) fn client(_: Option<&TlsIdentity>, _: Option<&Path>) -> io::Result<TlsClientConfig> {
        Err(without_tls())
    }

    fn without_tls() -> io::Error {
        io::Error::new(io::ErrorKind::Unsupported, "this program was built without TLS")
    }
}
