//! Why there is no connection.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::ConnectError;

/// Why one attempt to bring the connection up has failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientFailure {
    /// It was not established.
    Connect(ConnectError),
    /// It was, but preparing it failed.
    Prepare(Box<dyn Error + Send + Sync>),
    /// Preparing it took as long as connecting may.
    PrepareTimedOut {
        /// How long.
        after: Duration,
    },
    /// It ended while it was being prepared.
    Lost,
    /// Preparing it panicked, with this message.
    Panicked(String),
}

impl fmt::Display for ClientFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientFailure::Connect(error) => write!(formatter, "{error}"),
            ClientFailure::Prepare(error) => write!(formatter, "preparing the connection failed: {error}"),
            ClientFailure::PrepareTimedOut { after } => {
                write!(formatter, "preparing the connection took longer than {after:?}")
            }
            ClientFailure::Lost => formatter.write_str("the connection ended while it was being prepared"),
            ClientFailure::Panicked(message) => {
                write!(formatter, "preparing the connection panicked: {message}")
            }
        }
    }
}

impl Error for ClientFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ClientFailure::Connect(error) => error.source(),
            ClientFailure::Prepare(error) => error.source(),
            ClientFailure::PrepareTimedOut { .. } | ClientFailure::Lost | ClientFailure::Panicked(_) => None,
        }
    }
}

impl From<ConnectError> for ClientFailure {
    fn from(error: ConnectError) -> Self {
        ClientFailure::Connect(error)
    }
}

/// Why [`ClientService::when_connected`](crate::ClientService::when_connected) gave no connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// So many attempts in a row have failed since it was asked for. The service goes on.
    Failed {
        /// How many.
        failures: u32,
        /// The last one's failure.
        last: Arc<ClientFailure>,
    },
    /// The service has stopped, or its shard is stopping.
    Stopped,
}

impl fmt::Display for ClientError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Failed { failures: 1, last } => write!(formatter, "{last}"),
            ClientError::Failed { failures, last } => {
                write!(formatter, "no connection after {failures} attempts; the last one: {last}")
            }
            ClientError::Stopped => formatter.write_str("the service has stopped"),
        }
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ClientError::Failed { last, .. } => last.source(),
            ClientError::Stopped => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use std::net::SocketAddr;

    use super::*;

    /// A cause with a cause.
    #[derive(Debug)]
    struct Outer(io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("the outer one")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    fn outer() -> Outer {
        Outer(io::Error::other("the inner one"))
    }

    #[test]
    fn a_printed_chain_says_nothing_twice_and_the_first_line_tells_the_cause() {
        let failures: [fn() -> ClientFailure; 2] = [
            || ClientFailure::Prepare(Box::new(outer())),
            || {
                ConnectError::Os {
                    addr: SocketAddr::from(([127, 0, 0, 1], 80)).into(),
                    source: io::Error::other(outer()),
                }
                .into()
            },
        ];
        for failure in failures {
            let once = ClientError::Failed { failures: 1, last: Arc::new(failure()) };
            let often = ClientError::Failed { failures: 7, last: Arc::new(failure()) };
            for error in [&failure() as &dyn Error, &once, &often] {
                assert!(error.to_string().ends_with(": the outer one"), "{error}");
                assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("the inner one"));
            }
        }
        let addr = SocketAddr::from(([127, 0, 0, 1], 80)).into();
        let error = ClientFailure::from(ConnectError::TimedOut { addr, after: Duration::from_secs(1) });
        assert!(error.source().is_none());
    }
}
