//! Any text as an endpoint: it prints as text that reads as the same, or its mistake has a place.
//!
//! `cargo +nightly fuzz run endpoint`

#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use shardwise::endpoint::{EndpointError, UnixName, quote};
use shardwise::{ClientEndpoint, ServerEndpoint};

/// The first byte of a case chooses what its text begins with, so that the fuzzer need not guess it.
const BEGINNINGS: [&str; 14] = [
    "",
    "tcp:",
    "tcp6:80:interface=",
    "tls:443:privateKey=",
    "unix:",
    "systemd:",
    "fd:",
    "haproxy:",
    "[::1]",
    "tcp:host:80:timeout=",
    "tls:host:443:",
    "tls:host:endpoint=",
    "ssl:host:endpoint=tls\\:host\\:endpoint\\=",
    "localhost:",
];

fn check<T>(text: &str)
where
    T: FromStr<Err = EndpointError> + Display + Debug + PartialEq,
{
    match text.parse::<T>() {
        Ok(endpoint) => {
            let printed = endpoint.to_string();
            match printed.parse::<T>() {
                Ok(again) => assert_eq!(again, endpoint, "{printed}"),
                // Escapes and the words that were left out can make it longer.
                Err(error) => assert!(printed.len() > 4096, "{error}"),
            }
        }
        Err(error) => {
            assert!(text.is_char_boundary(error.position()), "{error}");
            assert_eq!(error.to_string().lines().count(), 3, "{error}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let rest = String::from_utf8_lossy(rest);
    let text = format!("{}{rest}", BEGINNINGS[usize::from(*first) % BEGINNINGS.len()]);
    check::<ServerEndpoint>(&text);
    check::<ClientEndpoint>(&text);
    if !rest.is_empty() && rest.len() < 100 && !rest.contains('\0') {
        let server: ServerEndpoint = format!("unix:{}:mode=600", quote(&rest)).parse().expect("it is quoted");
        let ServerEndpoint::Unix(unix) = server else { panic!("{server:?}") };
        assert_eq!(unix.address, UnixName::Path(rest.into_owned().into()));
    }
});
