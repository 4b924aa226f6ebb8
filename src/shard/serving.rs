//! A task of the application for each connection that comes in.

use std::rc::Rc;

use crate::error::Result;
use crate::reactor::token::Token;
use crate::shard::Shard;
use crate::shard::handles::stream_core::StreamCore;
use crate::shard::handles::tcp_stream::TcpStream;
use crate::shard::listening::Opener;

impl Opener {
    /// Runs `handler` as a task for each connection.
    pub(crate) fn serving<H>(handler: H) -> Opener
    where
        H: AsyncFn(TcpStream) -> Result<()> + 'static,
    {
        let handler = Rc::new(handler);
        let serve = move |shard: &Shard, token: Token, core: Rc<StreamCore>| {
            let handler = Rc::clone(&handler);
            let serving = Serving::begin(shard);
            drop(shard.spawn(async move {
                // Made here: what a task captures stays in it beside what becomes of it.
                let outcome = handler(TcpStream::new(serving.shard.clone(), token, core)).await;
                serving.end(outcome);
            }));
        };
        Opener::Streams(Rc::new(serve))
    }

    /// Runs `handler` as a task for each connection, once its TLS handshake is complete, or not at all. The task is there
    /// from the connection on.
    pub(crate) fn serving_secured<H>(handler: H) -> Opener
    where
        H: AsyncFn(TcpStream) -> Result<()> + 'static,
    {
        let handler = Rc::new(handler);
        let serve = move |shard: &Shard, token: Token, core: Rc<StreamCore>| {
            let handler = Rc::clone(&handler);
            let serving = Serving::begin(shard);
            drop(shard.spawn(async move {
                let mut stream = TcpStream::new(serving.shard.clone(), token, core);
                let outcome = match stream.secured().await {
                    Ok(()) => handler(stream).await,
                    Err(error) => Err(error.into()),
                };
                serving.end(outcome);
            }));
        };
        Opener::Streams(Rc::new(serve))
    }
}

/// Counts a handler's task for as long as it runs, so that a drain waits for it.
struct Serving {
    shard: Shard,
}

impl Serving {
    fn begin(shard: &Shard) -> Self {
        shard.inner.serving.set(shard.inner.serving.get() + 1);
        Serving { shard: shard.clone() }
    }

    fn end(self, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.shard.log_failure(&*error, "a connection's handler failed");
            self.shard.drop_contained(error);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let serving = &self.shard.inner.serving;
        serving.set(serving.get().saturating_sub(1));
    }
}
