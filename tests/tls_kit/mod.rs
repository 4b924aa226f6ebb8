//! Certificates for tests, made on the spot, and configurations with them.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SignatureAlgorithm,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{RootCertStore, SignatureScheme};
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
        self.issue_key(names, KeyPair::generate().unwrap(), change)
    }

    /// With a key of this kind.
    pub(crate) fn issue_for(&self, names: &[&str], kind: &'static SignatureAlgorithm) -> Issued {
        self.issue_key(names, KeyPair::generate_for(kind).unwrap(), |_| {})
    }

    fn issue_key(&self, names: &[&str], key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
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

    /// A client that trusts this authority, and understands servers' signatures of one kind alone.
    pub(crate) fn client_that_understands(&self, scheme: SignatureScheme) -> TlsClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap()).unwrap();
        let mut provider = aws_lc_rs::default_provider();
        let known = &mut provider.signature_verification_algorithms;
        let mapping: Vec<_> = known.mapping.iter().copied().filter(|(known, _)| *known == scheme).collect();
        known.mapping = mapping.leak();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsClientConfig::from_rustls(Arc::new(config))
    }

    /// Both ends.
    pub(crate) fn both(&self) -> (TlsServerConfig, TlsClientConfig) {
        (self.server(), self.client())
    }
}

pub(crate) fn is_tls(reason: &CloseReason) -> bool {
    matches!(reason, CloseReason::Tls(_))
}
