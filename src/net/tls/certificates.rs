//! Our own certificates: read, checked, chosen by name, and replaced while connections go on.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::SignatureScheme;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{provider, session, validity};

/// A certificate, those that lead from it to its issuer, and its private key: read and checked.
#[derive(Clone)]
pub struct TlsCertificate {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    /// Where it was read, if it was read from files.
    files: Option<Files>,
}

#[derive(Clone)]
struct Files {
    certificate: PathBuf,
    /// Of those between it and its issuer, if they lie elsewhere.
    chain: Option<PathBuf>,
    key: PathBuf,
}

/// Why something cannot be configured. Names the place, and what is wrong there.
#[derive(Debug)]
#[non_exhaustive]
pub enum TlsConfigError {
    /// A file cannot be read.
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What should be in the place is not there, or is no PEM (RFC 7468).
    Pem {
        /// The file, or what was given instead.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// The private key belongs to another certificate.
    KeyMismatch {
        /// The place of the certificate.
        place: String,
    },
    /// The certificate is no longer valid.
    Expired {
        /// The place of the certificate.
        place: String,
        /// For how long it has not been.
        since: Duration,
    },
    /// The certificate is not valid yet.
    NotValidYet {
        /// The place of the certificate.
        place: String,
        /// How long it will not be.
        within: Duration,
    },
    /// A server needs a certificate.
    NoCertificate,
    /// Whoever verifies its peers needs roots to trust.
    NoRoots,
    /// No provider of cryptography is compiled in (features `tls-aws-lc-rs`, `tls-ring`), and the process has installed none.
    NoCryptography,
    /// The settings do not go together.
    Rejected {
        /// Why.
        problem: String,
    },
}

impl TlsConfigError {
    pub(super) fn rejected(error: impl fmt::Display) -> Self {
        TlsConfigError::Rejected { problem: error.to_string() }
    }
}

impl fmt::Display for TlsConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsConfigError::File { path, source } => {
                write!(formatter, "cannot read {}: {source}", path.display())
            }
            TlsConfigError::Pem { place, problem } => write!(formatter, "{place}: {problem}"),
            TlsConfigError::KeyMismatch { place } => {
                write!(formatter, "{place}: the private key belongs to another certificate")
            }
            TlsConfigError::Expired { place, since } => {
                write!(formatter, "{place}: the certificate expired {} ago", days(since))
            }
            TlsConfigError::NotValidYet { place, within } => {
                write!(formatter, "{place}: the certificate is not valid for another {}", days(within))
            }
            TlsConfigError::NoCertificate => formatter.write_str("a TLS server needs a certificate"),
            TlsConfigError::NoRoots => formatter.write_str("no root certificates: there is nobody to trust"),
            TlsConfigError::NoCryptography => formatter.write_str(
                "no cryptography: switch on the feature tls-aws-lc-rs or tls-ring, or install a provider",
            ),
            TlsConfigError::Rejected { problem } => write!(formatter, "unusable TLS settings: {problem}"),
        }
    }
}

impl Error for TlsConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            TlsConfigError::File { source, .. } => source.source(),
            _ => None,
        }
    }
}

fn days(duration: &Duration) -> String {
    match duration.as_secs() {
        seconds if seconds < 2 * 3600 => format!("{seconds} s"),
        seconds if seconds < 2 * 86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

impl TlsCertificate {
    /// Reads a certificate chain, the server's own certificate first, and its private key, both in PEM.
    ///
    /// A key that other users can read is used, with a warning in the log.
    ///
    /// # Errors
    /// [`TlsConfigError`] when a file cannot be read, holds something else, the key is another certificate's, or the
    /// certificate is not valid today.
    pub fn from_files(certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, TlsConfigError> {
        Self::from(Files {
            certificate: certificate.as_ref().to_path_buf(),
            chain: None,
            key: key.as_ref().to_path_buf(),
        })
    }

    /// As [`TlsCertificate::from_files`], with the certificates that lead to the issuer in a file of their own.
    ///
    /// # Errors
    /// As [`TlsCertificate::from_files`].
    pub fn from_files_and_chain(
        certificate: impl AsRef<Path>,
        chain: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, TlsConfigError> {
        Self::from(Files {
            certificate: certificate.as_ref().to_path_buf(),
            chain: Some(chain.as_ref().to_path_buf()),
            key: key.as_ref().to_path_buf(),
        })
    }

    fn from(files: Files) -> Result<Self, TlsConfigError> {
        let (mut pem, key_pem) = (read(&files.certificate)?, read(&files.key)?);
        if is_open_to_others(&files.key) {
            tracing::warn!(file = %files.key.display(), "other users can read this private key; chmod 600 mends it");
        }
        let places = [files.certificate.display().to_string(), files.key.display().to_string()];
        if let Some(chain) = &files.chain {
            // Looked at for itself, so that the error names its file.
            certificates(&pem, &places[0])?;
            let more = read(chain)?;
            certificates(&more, &chain.display().to_string())?;
            pem.push(b'\n');
            pem.extend_from_slice(&more);
        }
        let mut made = Self::new(&pem, &key_pem, &places)?;
        made.files = Some(files);
        Ok(made)
    }

    /// As [`TlsCertificate::from_files`], from what is in such files.
    ///
    /// # Errors
    /// As [`TlsCertificate::from_files`].
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, TlsConfigError> {
        Self::new(certificate, key, &["the certificate".to_string(), "the private key".to_string()])
    }

    fn new(certificate: &[u8], key: &[u8], places: &[String; 2]) -> Result<Self, TlsConfigError> {
        let [place, key_place] = places;
        let chain = certificates(certificate, place)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
            let problem = match error {
                PemError::NoItemsFound => "there is no private key in PEM".to_string(),
                error => format!("not PEM: {error}"),
            };
            TlsConfigError::Pem { place: key_place.clone(), problem }
        })?;
        let unusable = |error: rustls::Error| TlsConfigError::Pem {
            place: key_place.clone(),
            problem: format!("unusable private key: {error}"),
        };
        let key = provider()?.key_provider.load_private_key(key).map_err(unusable)?;
        let facts = validity::facts(&chain[0]).ok_or_else(|| TlsConfigError::Pem {
            place: place.clone(),
            problem: "the first certificate is not one".to_string(),
        })?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(TlsConfigError::KeyMismatch { place: place.clone() });
            }
            Err(error) => {
                return Err(TlsConfigError::Pem { place: place.clone(), problem: error.to_string() });
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let seconds = |count: i64| Duration::from_secs(count.unsigned_abs());
        if now > facts.not_after {
            return Err(TlsConfigError::Expired {
                place: place.clone(),
                since: seconds(now - facts.not_after),
            });
        }
        if now < facts.not_before {
            let within = seconds(facts.not_before - now);
            return Err(TlsConfigError::NotValidYet { place: place.clone(), within });
        }
        Ok(TlsCertificate { key: Arc::new(key), names: facts.names, files: None })
    }

    /// The DNS names that the certificate is for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Reads it again, if it came from files.
    fn read_again(&self) -> Result<Self, TlsConfigError> {
        match &self.files {
            Some(files) => Self::from(files.clone()),
            None => Ok(self.clone()),
        }
    }
}

impl fmt::Debug for TlsCertificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TlsCertificate").field("names", &self.names).finish_non_exhaustive()
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsConfigError> {
    std::fs::read(path).map_err(|source| TlsConfigError::File { path: path.to_path_buf(), source })
}

fn is_open_to_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
}

/// All certificates in `pem`: at least one.
pub(super) fn certificates(pem: &[u8], place: &str) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let wrong = |problem: String| TlsConfigError::Pem { place: place.to_string(), problem };
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        found.push(certificate.map_err(|error| wrong(format!("not PEM: {error}")))?);
    }
    if found.is_empty() {
        return Err(wrong("there is no certificate in PEM".to_string()));
    }
    Ok(found)
}

/// Chooses the certificate for each handshake; what there is to choose from may be replaced at any time.
pub(super) struct Resolver {
    /// Locked for the time of a look, once per handshake.
    chosen_from: RwLock<Arc<Choice>>,
    refuses_unknown_names: bool,
}

struct Choice {
    certificates: Vec<TlsCertificate>,
    /// Which of them are for a name, as they were given. `*.example.org` stands as `.example.org`.
    by_name: HashMap<String, Vec<usize>>,
}

impl Choice {
    fn new(certificates: Vec<TlsCertificate>) -> Result<Arc<Self>, TlsConfigError> {
        if certificates.is_empty() {
            return Err(TlsConfigError::NoCertificate);
        }
        let mut by_name = HashMap::<_, Vec<usize>>::new();
        for (index, certificate) in certificates.iter().enumerate() {
            for name in &certificate.names {
                let name = name.strip_prefix('*').unwrap_or(name);
                by_name.entry(name.to_string()).or_default().push(index);
            }
        }
        Ok(Arc::new(Choice { certificates, by_name }))
    }

    /// The first certificate for `name` whose signatures the client understands; if it understands none, the first: the
    /// handshake then fails for that reason.
    fn find(&self, name: &str, schemes: &[SignatureScheme]) -> Option<&TlsCertificate> {
        let name = name.to_ascii_lowercase();
        let wildcard = || name.find('.').and_then(|dot| self.by_name.get(&name[dot..]));
        let indexes = self.by_name.get(&name).or_else(wildcard)?;
        self.best(indexes.iter().map(|index| &self.certificates[*index]), schemes)
    }

    fn best<'a>(
        &self,
        mut certificates: impl Iterator<Item = &'a TlsCertificate> + Clone,
        schemes: &[SignatureScheme],
    ) -> Option<&'a TlsCertificate> {
        let first = certificates.clone().next();
        certificates.find(|certificate| certificate.key.key.choose_scheme(schemes).is_some()).or(first)
    }
}

impl Resolver {
    pub(super) fn new(
        certificates: Vec<TlsCertificate>,
        refuses_unknown_names: bool,
    ) -> Result<Self, TlsConfigError> {
        Ok(Resolver { chosen_from: RwLock::new(Choice::new(certificates)?), refuses_unknown_names })
    }

    fn choice(&self) -> Arc<Choice> {
        Arc::clone(&self.chosen_from.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From the next handshake on.
    pub(super) fn replace(&self, certificates: Vec<TlsCertificate>) -> Result<(), TlsConfigError> {
        let choice = Choice::new(certificates)?;
        *self.chosen_from.write().unwrap_or_else(PoisonError::into_inner) = choice;
        Ok(())
    }

    /// Reads all files again; if one of them is bad nothing changes.
    pub(super) fn reload(&self) -> Result<(), TlsConfigError> {
        let certificates: Result<Vec<_>, _> =
            self.choice().certificates.iter().map(TlsCertificate::read_again).collect();
        self.replace(certificates?)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        session::note_server_name(hello.server_name());
        let choice = self.choice();
        let schemes = hello.signature_schemes();
        let named = hello.server_name().and_then(|name| choice.find(name, schemes));
        let certificate = match named {
            Some(certificate) => certificate,
            None if self.refuses_unknown_names => return None,
            None => choice.best(choice.certificates.iter(), schemes)?,
        };
        Some(Arc::clone(&certificate.key))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(&self.choice().certificates).finish()
    }
}

/// Another's way to choose, listened in on for the name asked for.
#[derive(Debug)]
pub(super) struct Overheard(pub(super) Arc<dyn ResolvesServerCert>);

impl ResolvesServerCert for Overheard {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        session::note_server_name(hello.server_name());
        self.0.resolve(hello)
    }

    fn only_raw_public_keys(&self) -> bool {
        self.0.only_raw_public_keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct RawKeys;

    impl ResolvesServerCert for RawKeys {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            None
        }

        fn only_raw_public_keys(&self) -> bool {
            true
        }
    }

    #[test]
    fn who_is_listened_in_on_still_says_that_it_has_raw_keys_alone() {
        assert!(Overheard(Arc::new(RawKeys)).only_raw_public_keys());
    }
}
