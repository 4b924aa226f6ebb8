//! Certificates, keys and roots as files may hold them: damaged, cut short, or something else. Nothing panics, and what is
//! refused says why. The first byte of a case chooses what its bytes are.
//!
//! `cargo +nightly fuzz run certificate`

#![no_main]

use libfuzzer_sys::fuzz_target;
use shardwise::{ClientCertificates, TlsCertificate, TlsClientConfig, TlsConfigError, TlsServerConfig};

use std::sync::LazyLock;

static GOOD: LazyLock<(String, String)> = LazyLock::new(|| {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("it can be made");
    (issued.cert.pem(), issued.signing_key.serialize_pem())
});

/// RFC 7468, with whatever inside.
fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n").into_bytes();
    for (index, group) in der.chunks(3).enumerate() {
        let bits =
            group.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= group.len() { digit } else { b'=' });
        }
        if index % 16 == 15 {
            text.push(b'\n');
        }
    }
    text.extend_from_slice(format!("\n-----END {label}-----\n").as_bytes());
    text
}

fn explained<T>(outcome: Result<T, TlsConfigError>) -> Option<T> {
    outcome.map_err(|error| assert!(!error.to_string().is_empty())).ok()
}

fn use_it(certificate: TlsCertificate) {
    for name in certificate.names() {
        assert_eq!(*name, name.to_ascii_lowercase());
    }
    explained(TlsServerConfig::builder().certificate(certificate).build());
}

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let (certificate, key) = &*GOOD;
    match first % 6 {
        0 => {
            explained(TlsCertificate::from_pem(&pem("CERTIFICATE", bytes), key.as_bytes())).map_or((), use_it)
        }
        1 => explained(TlsCertificate::from_pem(bytes, key.as_bytes())).map_or((), use_it),
        2 => explained(TlsCertificate::from_pem(certificate.as_bytes(), bytes)).map_or((), use_it),
        3 => explained(TlsCertificate::from_pem(certificate.as_bytes(), &pem("PRIVATE KEY", bytes)))
            .map_or((), use_it),
        4 => drop(explained(TlsClientConfig::builder().roots_pem(&pem("CERTIFICATE", bytes)).build())),
        _ => drop(explained(ClientCertificates::required(bytes))),
    }
});
