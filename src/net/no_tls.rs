//! Stands in for `tls.rs` where the feature is off: a session that nobody can have.

use crate::error::TlsError;
use crate::net::wire::{Opened, SealBuffer};
use crate::reactor::lease::Lease;

pub(crate) enum Session {}

pub(crate) enum TlsInfo {}

/// Which side of a handshake nobody can take.
#[derive(Clone, Debug)]
pub(crate) enum TlsRole {}

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
    pub(crate) fn check(&self) -> Result<(), TlsError> {
        match *self {}
    }
    pub(crate) fn session(&self) -> Result<Box<Session>, TlsError> {
        match *self {}
    }
}

impl Session {
    pub(crate) fn is_handshaking(&self) -> bool {
        match *self {}
    }
    pub(crate) fn is_server(&self) -> bool {
        match *self {}
    }
    pub(crate) fn is_silent(&self) -> bool {
        match *self {}
    }
    pub(crate) fn has_failed(&self) -> bool {
        match *self {}
    }
    pub(crate) fn has_finished(&self) -> bool {
        match *self {}
    }
    pub(crate) fn peer_has_finished(&self) -> bool {
        match *self {}
    }
    pub(crate) fn has_unopened(&self) -> bool {
        match *self {}
    }
    pub(crate) fn kept_bytes(&self) -> usize {
        match *self {}
    }
    pub(crate) fn has_outgoing(&self) -> bool {
        match *self {}
    }
    pub(crate) fn take_outgoing(&mut self, _sealed: &mut Vec<u8>) {
        match *self {}
    }
    pub(crate) fn info(&self) -> Option<TlsInfo> {
        match *self {}
    }
    pub(crate) fn keep(&mut self, _bytes: &[u8]) {
        match *self {}
    }
    pub(crate) fn fail(&mut self) {
        match *self {}
    }
    pub(crate) fn cut_off(&mut self) {
        match *self {}
    }
    pub(crate) fn open(&mut self, _: Option<&mut Lease>, _: &mut [u8], _: &mut usize) -> Opened {
        match *self {}
    }
    pub(crate) fn seal(&mut self, _: &[u8], _: bool, _: &mut SealBuffer) -> Result<(), TlsError> {
        match *self {}
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
