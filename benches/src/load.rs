//! What a server is given to do, by the name that tables write it with. Knows neither bytes nor keys.

use std::str::FromStr;

use hdrhistogram::Histogram;

use crate::Result;
use crate::client::{Crowd, Done, Until, Workload};
use crate::tls_client::{TlsCrowd, TlsWorkload};

/// A workload of any kind.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    Plain(Workload),
    Tls(TlsWorkload),
}

impl FromStr for Load {
    type Err = String;

    /// As [`Workload`], or behind `tls` as [`TlsWorkload`].
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.strip_prefix("tls") {
            Some(rest) => Ok(Load::Tls(rest.parse()?)),
            None => Ok(Load::Plain(text.parse()?)),
        }
    }
}

impl Load {
    /// Opens its connections to the server at `port`.
    pub(crate) fn connect(self, port: u16) -> Result<Connected> {
        Ok(match self {
            Load::Plain(workload) => Connected::Plain(Crowd::connect(port, workload)?),
            Load::Tls(workload) => Connected::Tls(Box::new(TlsCrowd::connect(port, workload)?)),
        })
    }
}

/// The connections to one server.
pub(crate) enum Connected {
    Plain(Crowd),
    Tls(Box<TlsCrowd>),
}

impl Connected {
    /// As [`Crowd::run`].
    pub(crate) fn run(&mut self, until: Until, latencies: &mut Histogram<u64>) -> Result<Done> {
        match self {
            Connected::Plain(crowd) => crowd.run(until, latencies),
            Connected::Tls(crowd) => crowd.run(until, latencies),
        }
    }
}
