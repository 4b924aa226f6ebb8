//! How a server speaks TLS: its certificates, whose it asks for, and what it offers.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};

use super::certificates::{Overheard, Resolver};
use super::{TlsCertificate, TlsConfigError, TlsVersion, provider, roots, ticketer};

/// How a server speaks TLS. Cheap to clone; clones are the same, also on other shards and threads.
///
/// Make one before the runtime starts and let all shards listen with it: sessions are resumed with the keys that belong
/// to it, so that a client that comes back to another shard is known there. The keys are new every six hours; a session
/// can be resumed for at most twelve.
///
/// TLS 1.3 and 1.2 are spoken, with suites that have forward secrecy and authenticated encryption alone. There is no
/// renegotiation, no compression and no early data.
///
/// # Threads
/// `Send` and `Sync`.
#[derive(Clone)]
pub struct TlsServerConfig {
    rustls: Arc<ServerConfig>,
    resolver: Option<Arc<Resolver>>,
}

impl TlsServerConfig {
    /// With one certificate, and the defaults.
    ///
    /// # Errors
    /// As [`TlsCertificate::from_files`].
    pub fn from_files(certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, TlsConfigError> {
        Self::builder().certificate(TlsCertificate::from_files(certificate, key)?).build()
    }

    /// Begins one.
    pub fn builder() -> TlsServerConfigBuilder {
        TlsServerConfigBuilder {
            certificates: Vec::new(),
            refuses_unknown_names: false,
            client_certificates: ClientCertificates::none(),
            alpn: Vec::new(),
            min_version: TlsVersion::V1_2,
            session_tickets: true,
        }
    }

    /// Whatever rustls can be told. Early data is switched off all the same: it may be replayed. [`Self::reload`] does
    /// nothing then.
    pub fn from_rustls(config: Arc<ServerConfig>) -> Self {
        let mut config = ServerConfig::clone(&config);
        config.max_early_data_size = 0;
        config.cert_resolver = Arc::new(Overheard(Arc::clone(&config.cert_resolver)));
        TlsServerConfig { rustls: Arc::new(config), resolver: None }
    }

    /// Reads all certificates that came from files again. The next handshake on any shard uses the new ones; open
    /// connections go on.
    ///
    /// # Errors
    /// As [`TlsCertificate::from_files`], for the first that cannot be used. Nothing has changed then.
    /// # Threads
    /// Blocks for the time of reading, so on a busy shard call it elsewhere.
    pub fn reload(&self) -> Result<(), TlsConfigError> {
        self.resolver.as_ref().map_or(Ok(()), |resolver| resolver.reload())
    }

    /// Replaces all certificates, for the next handshake on.
    ///
    /// # Errors
    /// [`TlsConfigError::NoCertificate`] when there is none, or with a config of rustls. Nothing has changed then.
    pub fn replace(&self, certificates: Vec<TlsCertificate>) -> Result<(), TlsConfigError> {
        self.resolver
            .as_ref()
            .map_or(Err(TlsConfigError::NoCertificate), |resolver| resolver.replace(certificates))
    }

    pub(super) fn rustls(&self) -> &Arc<ServerConfig> {
        &self.rustls
    }
}

impl fmt::Debug for TlsServerConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TlsServerConfig")
            .field("certificates", &self.resolver)
            .finish_non_exhaustive()
    }
}

/// Makes a [`TlsServerConfig`].
#[derive(Debug)]
#[must_use = "nothing is made before `build`"]
pub struct TlsServerConfigBuilder {
    certificates: Vec<TlsCertificate>,
    refuses_unknown_names: bool,
    client_certificates: ClientCertificates,
    alpn: Vec<Vec<u8>>,
    min_version: TlsVersion,
    session_tickets: bool,
}

impl TlsServerConfigBuilder {
    /// Adds a certificate. Of several the one that is for the name asked for (SNI) is shown; the first one is shown to
    /// clients that ask for none, or for another. Of several for one name, say with keys of different kinds, the first that
    /// the client understands is.
    pub fn certificate(mut self, certificate: TlsCertificate) -> Self {
        self.certificates.push(certificate);
        self
    }

    /// Refuses clients that ask for no name, or for one that no certificate is for. Off unless switched on.
    pub fn refuse_unknown_names(mut self, on: bool) -> Self {
        self.refuses_unknown_names = on;
        self
    }

    /// Whether clients show certificates; they do not unless this is set.
    pub fn client_certificates(mut self, whose: ClientCertificates) -> Self {
        self.client_certificates = whose;
        self
    }

    /// The application protocols spoken, the best first, such as `["h2", "http/1.1"]`. A client that offers some, and
    /// none of these, is refused. Without any, none is agreed on.
    pub fn alpn<P: AsRef<[u8]>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        self.alpn = protocols.into_iter().map(|protocol| protocol.as_ref().to_vec()).collect();
        self
    }

    /// The oldest version spoken; TLS 1.2 unless changed.
    pub fn min_version(mut self, version: TlsVersion) -> Self {
        self.min_version = version;
        self
    }

    /// Whether clients may resume sessions by tickets; on unless switched off.
    pub fn session_tickets(mut self, on: bool) -> Self {
        self.session_tickets = on;
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`TlsConfigError`]: no certificate, nobody to trust, no cryptography.
    pub fn build(self) -> Result<TlsServerConfig, TlsConfigError> {
        let provider = provider()?;
        let versions: &[_] = match self.min_version {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(TlsConfigError::rejected)?;
        let builder = match self.client_certificates.wanted {
            None => builder.with_no_client_auth(),
            Some(Wanted { roots, required }) => {
                if roots.is_empty() {
                    return Err(TlsConfigError::NoRoots);
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().map_err(TlsConfigError::rejected)?)
            }
        };
        let resolver = Arc::new(Resolver::new(self.certificates, self.refuses_unknown_names)?);
        let mut config = builder.with_cert_resolver(Arc::clone(&resolver) as _);
        config.alpn_protocols = self.alpn;
        match ticketer()?.filter(|_| self.session_tickets) {
            Some(ticketer) => config.ticketer = ticketer,
            None => config.send_tls13_tickets = 0,
        }
        if !self.session_tickets {
            config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        }
        Ok(TlsServerConfig { rustls: Arc::new(config), resolver: Some(resolver) })
    }
}

/// Whether clients show certificates, and who may have issued them.
#[derive(Debug)]
pub struct ClientCertificates {
    wanted: Option<Wanted>,
}

#[derive(Debug)]
struct Wanted {
    roots: RootCertStore,
    required: bool,
}

impl ClientCertificates {
    /// They are not asked.
    pub fn none() -> Self {
        ClientCertificates { wanted: None }
    }

    /// They are asked, and refused without a certificate of these issuers, given in PEM.
    ///
    /// # Errors
    /// [`TlsConfigError::Pem`].
    pub fn required(roots_pem: &[u8]) -> Result<Self, TlsConfigError> {
        Self::wanted(roots_pem, true)
    }

    /// They are asked, and may show none; one of another issuer is refused.
    ///
    /// # Errors
    /// [`TlsConfigError::Pem`].
    pub fn optional(roots_pem: &[u8]) -> Result<Self, TlsConfigError> {
        Self::wanted(roots_pem, false)
    }

    fn wanted(roots_pem: &[u8], required: bool) -> Result<Self, TlsConfigError> {
        let mut store = RootCertStore::empty();
        roots::add_pem(&mut store, roots_pem, "the client roots")?;
        Ok(ClientCertificates { wanted: Some(Wanted { roots: store, required }) })
    }
}
