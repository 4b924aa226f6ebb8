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
            ClientFailure::Connect(error) => Some(error),
            ClientFailure::Prepare(error) => Some(&**error),
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
            ClientError::Failed { last, .. } => Some(&**last),
            ClientError::Stopped => None,
        }
    }
}
