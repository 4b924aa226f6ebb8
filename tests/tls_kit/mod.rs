//! Certificates for tests, made on the spot, and configurations with them.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use shardwise::{
    CloseReason, TlsCertificate, TlsClientConfig, TlsClientConfigBuilder, TlsServerConfig,
    TlsServerConfigBuilder,
};

/// An issuer, and what it issues.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Issued {
    pub(crate) fn load(&self) -> TlsCertificate {
        TlsCertificate::from_pem(self.certificate.as_bytes(), self.key.as_bytes()).unwrap()
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // By another name than all others, or a wrong signature would be found instead of an unknown issuer.
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("authority {} for tests", MADE.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Authority { issuer }
    }

    /// Another one, certified by this one.
    pub(crate) fn subordinate(&self) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a subordinate authority for tests");
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.issuer).unwrap();
        Authority { issuer }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, |_| {})
    }

    pub(crate) fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem() }
    }

    /// A server for `localhost`, not built yet.
    pub(crate) fn server_builder(&self) -> TlsServerConfigBuilder {
        TlsServerConfig::builder().certificate(self.issue(&["localhost"]).load())
    }

    pub(crate) fn server(&self) -> TlsServerConfig {
        self.server_builder().build().unwrap()
    }

    /// A client that trusts this authority, not built yet.
    pub(crate) fn client_builder(&self) -> TlsClientConfigBuilder {
        TlsClientConfig::builder().roots_pem(self.pem().as_bytes())
    }

    pub(crate) fn client(&self) -> TlsClientConfig {
        self.client_builder().build().unwrap()
    }

    /// Both ends.
    pub(crate) fn both(&self) -> (TlsServerConfig, TlsClientConfig) {
        (self.server(), self.client())
    }
}

pub(crate) fn is_tls(reason: &CloseReason) -> bool {
    matches!(reason, CloseReason::Tls(_))
}
