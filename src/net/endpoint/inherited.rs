//! Listening sockets that whoever started the process has opened: known by number, or passed by systemd
//! (`sd_listen_fds(3)`). Listens on none.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::loading::LoadProblem;
use super::server::{SystemdDomain, SystemdServer, SystemdSocket};
use crate::addr::Addr;
use crate::sys::adopted::{self, Family, Kind};
use crate::sys::linux::duplicate;

/// A socket that listens already. The descriptor is a duplicate.
#[derive(Clone, Debug)]
pub(crate) struct Inherited {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) addr: Addr,
    /// The same for all descriptors of one socket.
    pub(crate) inode: (u64, u64),
}

/// The socket at descriptor `number`, which stays as it is.
pub(super) fn at(number: i32, domain: Option<SystemdDomain>) -> Result<Inherited, LoadProblem> {
    look(number, domain).map_err(|source| LoadProblem::Descriptor { number, source })
}

pub(super) fn from_systemd(server: &SystemdServer) -> Result<Inherited, LoadProblem> {
    let passed = |name: &str| std::env::var(name).ok();
    let number = number_of(&server.socket, std::process::id(), passed).map_err(LoadProblem::NotPassed)?;
    at(number, server.domain)
}

fn look(number: i32, domain: Option<SystemdDomain>) -> io::Result<Inherited> {
    let socket = duplicate(&number)?;
    let nature = adopted::look(&socket)?;
    let is_wanted = match domain {
        None => matches!(nature.family, Family::V4 | Family::V6 | Family::Unix),
        Some(SystemdDomain::Inet) => nature.family == Family::V4,
        Some(SystemdDomain::Inet6) => nature.family == Family::V6,
        Some(SystemdDomain::Unix) => nature.family == Family::Unix,
    };
    let wrong = match (is_wanted, nature.kind == Kind::Stream, nature.listens) {
        (true, true, true) => None,
        (false, ..) => Some("it is a socket of another address family"),
        (_, false, _) => Some("it is no stream socket"),
        (_, _, false) => Some("it is a stream socket that does not listen"),
    };
    if let Some(wrong) = wrong {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
    }
    let addr = adopted::local(&socket)?;
    Ok(Inherited { socket: Arc::new(socket), addr, inode: nature.inode })
}

/// The number of a socket's descriptor, by what systemd has put into the environment; else what it has not passed.
fn number_of(
    socket: &SystemdSocket,
    pid: u32,
    passed: impl Fn(&str) -> Option<String>,
) -> Result<i32, String> {
    let is_for_us = passed("LISTEN_PID").and_then(|text| text.parse().ok()) == Some(pid);
    let count: Option<i32> = passed("LISTEN_FDS").and_then(|text| text.parse().ok());
    let Some(count) = count.filter(|count| is_for_us && *count > 0) else {
        return Err("systemd has passed no sockets to this process".to_string());
    };
    let index = match socket {
        SystemdSocket::Index(index) => i32::try_from(*index).ok().filter(|index| *index < count),
        SystemdSocket::Name(name) => {
            let names = passed("LISTEN_FDNAMES").unwrap_or_default();
            let index = names.split(':').position(|other| other == name);
            index.and_then(|index| i32::try_from(index).ok()).filter(|index| *index < count)
        }
    };
    let number = index.and_then(|index| index.checked_add(FIRST));
    number.ok_or_else(|| match socket {
        SystemdSocket::Index(index) => {
            format!("systemd has passed {count} sockets, and none of index {index}")
        }
        SystemdSocket::Name(name) => format!("systemd has passed no socket named `{}`", name.escape_debug()),
    })
}

/// `SD_LISTEN_FDS_START`
const FIRST: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn find(socket: SystemdSocket, variables: &[(&str, &str)]) -> Result<i32, String> {
        let value = |name: &str| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_string())
        };
        number_of(&socket, 77, value)
    }

    #[test]
    fn sockets_from_systemd_are_found_by_index_and_by_name() {
        let passed = [("LISTEN_PID", "77"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web:admin:late")];
        assert_eq!(find(SystemdSocket::Index(0), &passed), Ok(3));
        assert_eq!(find(SystemdSocket::Index(1), &passed), Ok(4));
        assert_eq!(find(SystemdSocket::Name("admin".into()), &passed), Ok(4));
        assert_eq!(
            find(SystemdSocket::Index(2), &passed).unwrap_err(),
            "systemd has passed 2 sockets, and none of index 2"
        );
        for name in ["late", "none"] {
            let error = find(SystemdSocket::Name(name.into()), &passed).unwrap_err();
            assert_eq!(error, format!("systemd has passed no socket named `{name}`"));
        }
    }

    #[test]
    fn what_systemd_has_passed_to_another_process_is_not_ours() {
        for passed in [
            &[][..],
            &[("LISTEN_PID", "78"), ("LISTEN_FDS", "1")],
            &[("LISTEN_FDS", "1")],
            &[("LISTEN_PID", "77")],
            &[("LISTEN_PID", "77"), ("LISTEN_FDS", "0")],
            &[("LISTEN_PID", "77"), ("LISTEN_FDS", "-1")],
            &[("LISTEN_PID", "77"), ("LISTEN_FDS", "many")],
        ] {
            let error = find(SystemdSocket::Index(0), passed).unwrap_err();
            assert_eq!(error, "systemd has passed no sockets to this process", "{passed:?}");
        }
    }

    #[test]
    fn a_descriptor_that_cannot_be_listened_on_is_told_what_it_is() {
        use std::os::fd::AsRawFd;
        let message = |number: i32, domain| match at(number, domain) {
            Err(LoadProblem::Descriptor { source, .. }) => source.to_string(),
            other => panic!("{other:?}"),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.as_raw_fd();
        assert_eq!(at(number, None).unwrap().addr, listener.local_addr().unwrap());
        assert!(at(number, Some(SystemdDomain::Inet)).is_ok());
        assert_eq!(message(number, Some(SystemdDomain::Unix)), "it is a socket of another address family");
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(message(datagrams.as_raw_fd(), None), "it is no stream socket");
        let (connected, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(message(connected.as_raw_fd(), None), "it is a stream socket that does not listen");
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(message(file.as_raw_fd(), None).contains("non-socket"));
        assert!(message(i32::MAX, None).contains("Bad file descriptor"));
    }
}
