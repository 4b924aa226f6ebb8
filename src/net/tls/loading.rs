//! From what endpoints say of TLS to how it is spoken: reads the files.

use std::path::Path;

use super::{TlsCertificate, TlsClientConfig, TlsConfigError, TlsServerConfig};
use crate::net::endpoint::{LoadedClient, LoadedServer, TlsIdentity};

pub(crate) fn server(
    identity: &TlsIdentity,
    extra_chain: Option<&Path>,
) -> Result<TlsServerConfig, TlsConfigError> {
    let TlsIdentity { certificate, private_key } = identity;
    let certificate = match extra_chain {
        None => TlsCertificate::from_files(certificate, private_key)?,
        Some(chain) => TlsCertificate::from_files_and_chain(certificate, chain, private_key)?,
    };
    TlsServerConfig::builder().certificate(certificate).build()
}

pub(crate) fn client(
    identity: Option<&TlsIdentity>,
    trust_roots: Option<&Path>,
) -> Result<TlsClientConfig, TlsConfigError> {
    let mut builder = match trust_roots {
        None => TlsClientConfig::builder().system_roots(),
        Some(roots) => TlsClientConfig::builder().roots_file(roots),
    };
    if let Some(TlsIdentity { certificate, private_key }) = identity {
        builder = builder.certificate(TlsCertificate::from_files(certificate, private_key)?);
    }
    builder.build()
}

impl LoadedServer {
    /// The same place, with TLS as `tls` has it: instead of the endpoint's own, or of none.
    pub fn with_tls(mut self, tls: &TlsServerConfig) -> Self {
        self.tls = Some(tls.clone());
        self
    }

    /// How it speaks TLS, if it does. [`TlsServerConfig::reload`] reads its files again, for all that listen with it.
    pub fn tls(&self) -> Option<&TlsServerConfig> {
        self.tls.as_ref()
    }
}

impl LoadedClient {
    /// The same server, spoken to by TLS as `tls` has it, where it has to be `name`: instead of the endpoint's own TLS, or
    /// of none.
    pub fn with_tls(mut self, tls: &TlsClientConfig, name: &str) -> Self {
        self.tls = Some((tls.clone(), name.into()));
        self
    }
}
