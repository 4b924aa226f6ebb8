//! Why a message was not taken, or a call gave no result.

use crate::sync::{Mutex, lock};
use std::any::Any;
use std::fmt;

/// Why a call to another shard gave no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The shard that was called has stopped, or the one that called has. Whether the closure ran is not
    /// known when it had already been sent.
    Stopped,
    /// The closure panicked on the shard that ran it, which goes on.
    Panicked(Panic),
    /// The deadline of the call passed first. The closure may still run.
    DeadlineExceeded,
    /// A blocking call was made on a shard's own thread, where waiting would stop that shard.
    OnShardThread,
    /// The call was made in `App::prepare`, and waited for there: the shards run once it has returned.
    NotStarted,
}

impl fmt::Display for CallError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Stopped => formatter.write_str("the shard has stopped"),
            CallError::Panicked(panic) => {
                write!(formatter, "the called closure panicked: {}", panic.message())
            }
            CallError::DeadlineExceeded => formatter.write_str("the deadline of the call has passed"),
            CallError::OnShardThread => formatter.write_str("a blocking call from a shard's own thread"),
            CallError::NotStarted => {
                formatter.write_str("a call waited for in App::prepare, before the shards run")
            }
        }
    }
}

impl std::error::Error for CallError {}

/// What a closure panicked with. In a mutex, so that errors that hold it are `Sync` and `?` works.
pub struct Panic {
    payload: Mutex<Box<dyn Any + Send>>,
}

impl Panic {
    pub(crate) fn new(payload: Box<dyn Any + Send>) -> Self {
        Panic { payload: Mutex::new(payload) }
    }

    /// The text given to `panic!`; a stand-in when the payload is no text.
    pub fn message(&self) -> String {
        message_of(&**lock(&self.payload)).to_owned()
    }

    /// The payload, as [`std::thread::JoinHandle::join`] would return it.
    pub fn into_payload(self) -> Box<dyn Any + Send> {
        self.payload.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl fmt::Debug for Panic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Panic").field(&self.message()).finish()
    }
}

/// The text of a panic's payload.
pub(super) fn message_of(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "(a payload that is no text)"
    }
}

/// The shard has stopped; what was to be sent comes back inside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stopped<F>(F);

impl<F> Stopped<F> {
    pub(crate) fn new(returned: F) -> Self {
        Stopped(returned)
    }

    /// What was not sent.
    pub fn into_inner(self) -> F {
        self.0
    }
}

impl<F> fmt::Debug for Stopped<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Stopped(..)")
    }
}

impl<F> fmt::Display for Stopped<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the shard has stopped")
    }
}

impl<F> std::error::Error for Stopped<F> {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn errors_are_send_and_sync_and_say_what_happened() {
        fn check<E: std::error::Error + Send + Sync>(error: &E) -> String {
            error.to_string()
        }
        assert_eq!(check(&CallError::Stopped), "the shard has stopped");
        let panicked = CallError::Panicked(Panic::new(Box::new("boom")));
        assert_eq!(check(&panicked), "the called closure panicked: boom");
        assert_eq!(format!("{panicked:?}"), r#"Panicked(Panic("boom"))"#);
    }

    #[test]
    fn a_panic_gives_its_payload_back() {
        let panic = Panic::new(Box::new(7_u32));
        assert_eq!(panic.message(), "(a payload that is no text)");
        assert_eq!(panic.into_payload().downcast_ref(), Some(&7_u32));
    }

    #[test]
    fn a_refusal_is_readable_whatever_was_refused() {
        struct Mute;
        let stopped = Stopped::new(Mute);
        assert_eq!(format!("{stopped:?} {stopped}"), "Stopped(..) the shard has stopped");
        let Mute = stopped.into_inner();
    }
}
