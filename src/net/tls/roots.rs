//! Whom to trust: root certificates, given or the system's.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;

use super::TlsConfigError;
use super::certificates::{certificates, read};

/// Where systems keep the certificates that they trust, in one file.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// Roots from PEM. Each has to be usable, since it was named.
pub(super) fn add_pem(store: &mut RootCertStore, pem: &[u8], place: &str) -> Result<(), TlsConfigError> {
    for certificate in certificates(pem, place)? {
        store.add(certificate).map_err(|error| TlsConfigError::Pem {
            place: place.to_string(),
            problem: format!("not a root certificate: {error}"),
        })?;
    }
    Ok(())
}

/// Those in a file, or in the files of a folder whose names end in `.pem`.
pub(super) fn add_file(store: &mut RootCertStore, path: &Path) -> Result<(), TlsConfigError> {
    if !path.is_dir() {
        return add_pem(store, &read(path)?, &path.display().to_string());
    }
    let unreadable = |source| TlsConfigError::File { path: path.to_path_buf(), source };
    let entries = std::fs::read_dir(path).map_err(unreadable)?;
    let files: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut files = files.map_err(unreadable)?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "pem"));
    if files.is_empty() {
        let problem = "the folder has no file whose name ends in .pem".to_string();
        return Err(TlsConfigError::Pem { place: path.display().to_string(), problem });
    }
    files.iter().try_for_each(|file| add_pem(store, &read(file)?, &file.display().to_string()))
}

/// The system's roots: `SSL_CERT_FILE` in the environment, or the usual places. Those that cannot be used are left out.
pub(super) fn add_system(store: &mut RootCertStore) -> Result<(), TlsConfigError> {
    let usual = || SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|path| path.exists());
    let path = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).or_else(usual);
    let path = path.ok_or(TlsConfigError::NoRoots)?;
    let (added, _) =
        store.add_parsable_certificates(certificates(&read(&path)?, &path.display().to_string())?);
    if added == 0 { Err(TlsConfigError::NoRoots) } else { Ok(()) }
}
