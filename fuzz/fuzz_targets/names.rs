//! Short texts that operators and peers write: names of hosts, lists of CPUs. What is accepted is written and read as the
//! same; what is refused says why.
//!
//! `cargo +nightly fuzz run names`

#![no_main]

use libfuzzer_sys::fuzz_target;
use shardwise::{HostName, parse_cpu_list};

fuzz_target!(|text: &str| {
    match HostName::new(text) {
        Ok(name) => {
            assert_eq!(name.as_str(), text.to_ascii_lowercase());
            assert!(name.as_str().len() <= 254 && name.as_str().is_ascii());
            assert_eq!(name.to_string().parse(), Ok(name.clone()));
            assert!(text.parse::<std::net::IpAddr>().is_err(), "an address is no name");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match parse_cpu_list(text) {
        Ok(cpus) => {
            let written: Vec<String> = cpus.iter().map(|cpu| cpu.to_string()).collect();
            assert_eq!(parse_cpu_list(&written.join(",")), Ok(cpus));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
