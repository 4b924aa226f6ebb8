//! rustls's one door: a connection's TLS as a transformation of bytes, and what it is configured with. Knows neither
//! sockets nor protocols.

mod certificates;
mod client;
pub(crate) mod loading;
mod roots;
mod server;
mod session;
mod validity;

pub use certificates::{TlsCertificate, TlsConfigError};
pub use client::{TlsClientConfig, TlsClientConfigBuilder};
pub use server::{ClientCertificates, TlsServerConfig, TlsServerConfigBuilder};
pub(crate) use session::Session;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::error::{CertificateProblem, TlsError};

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2, RFC 5246.
    V1_2,
    /// TLS 1.3, RFC 8446.
    V1_3,
}

/// What two peers have agreed on, known once the handshake is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsInfo {
    /// The version spoken.
    pub version: TlsVersion,
    /// The cipher suite, by its registered name, such as `TLS_AES_256_GCM_SHA384`.
    pub cipher_suite: String,
    /// The application protocol agreed on (ALPN, RFC 7301), such as `h2`.
    pub alpn: Option<Vec<u8>>,
    /// The name that the client asked for (SNI, RFC 6066 section 3). For the client, the name that the server had to be: an IP
    /// address is one as well, though it is not sent.
    pub server_name: Option<String>,
    /// The peer's certificate, and those that lead from it to its issuer, in DER. Empty if it showed none.
    pub peer_certificates: Vec<Vec<u8>>,
    /// Whether an earlier session was resumed, which saves both sides most of the work.
    pub resumed: bool,
}

/// Which side of the handshake to take, and with what: from `&TlsServerConfig`, or from `(&TlsClientConfig, "name")`.
#[derive(Clone, Debug)]
pub struct TlsRole {
    side: Side,
}

#[derive(Clone, Debug)]
enum Side {
    Server(TlsServerConfig),
    Client(TlsClientConfig, String),
}

impl From<&TlsServerConfig> for TlsRole {
    fn from(config: &TlsServerConfig) -> Self {
        TlsRole { side: Side::Server(config.clone()) }
    }
}

impl From<(&TlsClientConfig, &str)> for TlsRole {
    fn from((config, name): (&TlsClientConfig, &str)) -> Self {
        TlsRole { side: Side::Client(config.clone(), name.to_string()) }
    }
}

impl TlsRole {
    /// Whether a session can begin this way, as far as that is known before.
    pub(crate) fn check(&self) -> Result<(), TlsError> {
        match &self.side {
            Side::Server(_) => Ok(()),
            Side::Client(_, name) => session::server_name(name).map(drop),
        }
    }

    /// A session that begins this way.
    pub(crate) fn session(&self) -> Result<Box<Session>, TlsError> {
        match &self.side {
            Side::Server(config) => Session::server(config),
            Side::Client(config, name) => Session::client(config, name),
        }
    }
}

/// The process's own provider of cryptography if it has installed one, else the one compiled in.
fn provider() -> Result<Arc<CryptoProvider>, TlsConfigError> {
    if let Some(installed) = CryptoProvider::get_default() {
        return Ok(Arc::clone(installed));
    }
    compiled_in().map(Arc::new).ok_or(TlsConfigError::NoCryptography)
}

#[cfg(feature = "tls-aws-lc-rs")]
fn compiled_in() -> Option<CryptoProvider> {
    Some(rustls::crypto::aws_lc_rs::default_provider())
}

#[cfg(all(feature = "tls-ring", not(feature = "tls-aws-lc-rs")))]
fn compiled_in() -> Option<CryptoProvider> {
    Some(rustls::crypto::ring::default_provider())
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs")))]
fn compiled_in() -> Option<CryptoProvider> {
    None
}

/// Keys of session tickets, new every six hours; a ticket is good for twelve. `None` without a provider that has some.
fn ticketer() -> Result<Option<Arc<dyn rustls::server::ProducesTickets>>, TlsConfigError> {
    #[cfg(feature = "tls-aws-lc-rs")]
    return rustls::crypto::aws_lc_rs::Ticketer::new().map(Some).map_err(TlsConfigError::rejected);
    #[cfg(all(feature = "tls-ring", not(feature = "tls-aws-lc-rs")))]
    return rustls::crypto::ring::Ticketer::new().map(Some).map_err(TlsConfigError::rejected);
    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs")))]
    Ok(None)
}

/// What rustls says, in our words.
fn explain(error: &rustls::Error) -> TlsError {
    use rustls::CertificateError as Bad;
    use rustls::Error as Said;
    match error {
        Said::AlertReceived(alert) => {
            let name = alert.as_str().map_or_else(|| format!("{}", u8::from(*alert)), snake_case);
            TlsError::AlertReceived { alert: name }
        }
        Said::InvalidCertificate(bad) => TlsError::Certificate(match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => CertificateProblem::Expired,
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => CertificateProblem::NotValidYet,
            Bad::UnknownIssuer => CertificateProblem::UnknownIssuer,
            Bad::Revoked => CertificateProblem::Revoked,
            Bad::NotValidForName => {
                CertificateProblem::WrongName { expected: String::new(), presented: Vec::new() }
            }
            Bad::NotValidForNameContext { expected, presented } => CertificateProblem::WrongName {
                expected: expected.to_str().into_owned(),
                presented: presented.clone(),
            },
            other => CertificateProblem::Other(other.to_string()),
        }),
        Said::NoCertificatesPresented => TlsError::Certificate(CertificateProblem::Missing),
        Said::PeerIncompatible(why) => TlsError::Incompatible(snake_case(&format!("{why:?}"))),
        Said::NoApplicationProtocol => TlsError::Incompatible("no_application_protocol".to_string()),
        other => TlsError::Protocol(other.to_string()),
    }
}

/// `UnknownCA` as the standards write it: `unknown_ca`.
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    let mut before_lower = false;
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && before_lower {
            text.push('_');
        }
        before_lower = letter.is_ascii_lowercase() || letter.is_ascii_digit();
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_named_as_in_the_standard() {
        let said = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
        assert_eq!(
            explain(&said).to_string(),
            "the peer refused the handshake or the data: alert unknown_ca"
        );
        let said = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
        assert!(explain(&said).to_string().ends_with("alert bad_record_mac"));
    }
}
