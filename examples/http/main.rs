//! A small web server: `GET /` and `GET /plaintext` say hello. Keep-alive, pipelining, bodies, limits and deadlines
//! are those of a big one.
#![allow(unreachable_pub, reason = "an example is a crate of its own")]

mod body;
#[path = "../common/mod.rs"]
mod common;
mod head;
mod protocol;
mod reply;

use std::process::ExitCode;

use shardwise::Shard;

use protocol::Http;

fn main() -> ExitCode {
    let flags = common::Flags::parse_or_exit("Serves a plain-text page over HTTP/1.1.", 8080);
    let server = flags.server_or_exit();
    common::serve(flags.runtime().config(protocol::config()), async move |shard: Shard| {
        let listener = shard.listen(&server, Http::default)?;
        common::announce(&shard, &listener);
        Ok(())
    })
}
