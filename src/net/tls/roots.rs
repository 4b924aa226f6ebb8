//! Whom to trust: root certificates, given or the system's.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

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
    if add_usable(store, &read(&path)?) == 0 { Err(TlsConfigError::NoRoots) } else { Ok(()) }
}

/// Those roots in `pem` that can be used; says how many.
fn add_usable(store: &mut RootCertStore, pem: &[u8]) -> usize {
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok)).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_of_the_system_is_used_though_one_of_it_is_broken() {
        let issuer = || {
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
        };
        let block = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        let bundle = [
            issuer(),
            block("no base64!"),
            issuer(),
            block("AAAA"),
            issuer(),
            block("cut").replace("END", "E"),
        ];
        let mut store = RootCertStore::empty();
        assert_eq!(add_usable(&mut store, bundle.concat().as_bytes()), 3);
        // What was named has to be usable.
        assert!(add_pem(&mut store, bundle.concat().as_bytes(), "the roots").is_err());
    }
}
