//! How a client speaks TLS: whom it trusts, who it is, and what it offers.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};

use super::{TlsCertificate, TlsConfigError, TlsVersion, provider, roots};

/// How a client speaks TLS. Cheap to clone; clones are the same, also on other shards and threads, and share the sessions
/// that can be resumed: those of the last 256 servers.
///
/// The server's certificate is verified, and has to be for the name that is asked for.
///
/// # Threads
/// `Send` and `Sync`. The sessions have one lock, taken once or twice per handshake.
#[derive(Clone)]
pub struct TlsClientConfig {
    rustls: Arc<ClientConfig>,
}

impl TlsClientConfig {
    /// Trusts those that the system trusts.
    ///
    /// # Errors
    /// [`TlsConfigError`] when the system names nobody.
    pub fn system() -> Result<Self, TlsConfigError> {
        Self::builder().system_roots().build()
    }

    /// Begins one.
    pub fn builder() -> TlsClientConfigBuilder {
        TlsClientConfigBuilder {
            roots: Vec::new(),
            certificate: None,
            alpn: Vec::new(),
            min_version: TlsVersion::V1_2,
            resumption: true,
        }
    }

    /// Whatever rustls can be told. Early data is switched off all the same: it may be replayed.
    pub fn from_rustls(config: Arc<ClientConfig>) -> Self {
        let mut config = ClientConfig::clone(&config);
        config.enable_early_data = false;
        TlsClientConfig { rustls: Arc::new(config) }
    }

    pub(super) fn rustls(&self) -> &Arc<ClientConfig> {
        &self.rustls
    }
}

impl fmt::Debug for TlsClientConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TlsClientConfig").finish_non_exhaustive()
    }
}

/// Makes a [`TlsClientConfig`].
#[derive(Debug)]
#[must_use = "nothing is made before `build`"]
pub struct TlsClientConfigBuilder {
    roots: Vec<Roots>,
    certificate: Option<TlsCertificate>,
    alpn: Vec<Vec<u8>>,
    min_version: TlsVersion,
    resumption: bool,
}

#[derive(Debug)]
enum Roots {
    Pem(Vec<u8>),
    File(PathBuf),
    System,
}

impl TlsClientConfigBuilder {
    /// Trusts these issuers, given in PEM.
    pub fn roots_pem(mut self, pem: &[u8]) -> Self {
        self.roots.push(Roots::Pem(pem.to_vec()));
        self
    }

    /// Trusts the issuers in this file, in PEM; of a folder, those in its files `*.pem`.
    pub fn roots_file(mut self, path: impl AsRef<Path>) -> Self {
        self.roots.push(Roots::File(path.as_ref().to_path_buf()));
        self
    }

    /// Trusts those that the system trusts: the file named by `SSL_CERT_FILE` in the environment, or the one in the
    /// usual place.
    pub fn system_roots(mut self) -> Self {
        self.roots.push(Roots::System);
        self
    }

    /// Shows this certificate to servers that ask for one.
    pub fn certificate(mut self, certificate: TlsCertificate) -> Self {
        self.certificate = Some(certificate);
        self
    }

    /// The application protocols offered, the best first.
    pub fn alpn<P: AsRef<[u8]>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        self.alpn = protocols.into_iter().map(|protocol| protocol.as_ref().to_vec()).collect();
        self
    }

    /// The oldest version spoken; TLS 1.2 unless changed.
    pub fn min_version(mut self, version: TlsVersion) -> Self {
        self.min_version = version;
        self
    }

    /// Whether sessions are kept, to be resumed; on unless switched off.
    pub fn resumption(mut self, on: bool) -> Self {
        self.resumption = on;
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`TlsConfigError`]: nobody to trust, a file that cannot be read, no cryptography.
    pub fn build(self) -> Result<TlsClientConfig, TlsConfigError> {
        let mut store = RootCertStore::empty();
        for source in &self.roots {
            match source {
                Roots::Pem(pem) => roots::add_pem(&mut store, pem, "the roots")?,
                Roots::File(path) => roots::add_file(&mut store, path)?,
                Roots::System => roots::add_system(&mut store)?,
            }
        }
        if store.is_empty() {
            return Err(TlsConfigError::NoRoots);
        }
        let versions: &[_] = match self.min_version {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let builder = ClientConfig::builder_with_provider(provider()?)
            .with_protocol_versions(versions)
            .map_err(TlsConfigError::rejected)?
            .with_root_certificates(store);
        let mut config = match self.certificate {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                let resolver = SingleCertAndKey::from(Arc::clone(certificate.key()));
                builder.with_client_cert_resolver(Arc::new(resolver))
            }
        };
        config.alpn_protocols = self.alpn;
        if !self.resumption {
            config.resumption = Resumption::disabled();
        }
        Ok(TlsClientConfig { rustls: Arc::new(config) })
    }
}
