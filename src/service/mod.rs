//! What an application wants to have and not to watch: here a connection that is kept up. Uses shards as applications do.

mod backoff;
mod client;
mod client_error;
mod establish;

pub use backoff::Backoff;
pub use client::{ClientService, ClientState, ClientStopping, WhenConnected};
pub use client_error::{ClientError, ClientFailure};
pub use establish::{ClientBuilder, ClientEvents, ClientStreams, ClientUnset};
