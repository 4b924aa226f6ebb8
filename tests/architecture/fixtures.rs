//! Sources that break a rule, and what is then said; and sources that look as if they did.

use std::collections::BTreeMap;

use super::{
    Tree, callbacks_not_forwarded, dependencies_without_door, doors_passed, misuses, modules_without_row,
    too_long, unproved, without_job,
};

const ROOT: &str = "//! Root.
mod config; mod cross_shard; mod net; mod reactor; mod shard; mod shard_id; mod sys; mod tasks;
pub use shard::{Shard, handles::Transport as Wire};
pub use shard_id::ShardId;
pub type Result<T> = std::result::Result<T, ()>;
";

fn tree(files: &[(&str, &str)]) -> Tree {
    let files = files.iter().chain([&("lib.rs", ROOT)]);
    Tree::new(files.map(|(path, source)| (path.to_string(), source.to_string())).collect::<BTreeMap<_, _>>())
}

fn misused(path: &str, source: &str) -> Vec<String> {
    misuses(&tree(&[]), path, source)
}

fn passed(path: &str, source: &str) -> Vec<String> {
    doors_passed(&tree(&[]), path, source)
}

const UPWARD: &str = "`net/tcp.rs` uses `shard`, which is not below `net` (line 1)";

#[test]
fn an_upward_import_is_named() {
    assert_eq!(misused("net/tcp.rs", "use crate::shard::Shard;"), [UPWARD]);
}

#[test]
fn an_upward_use_is_found_however_it_is_written() {
    for source in [
        "use super::super::shard::turn;",
        "use crate::{config, shard::turn};",
        "use crate::Shard;",
        "use crate::Wire as Transport;",
        "fn f(shard: &crate::shard::Shard) {}",
        "fn f() -> Vec<super::super::shard::Shard> { todo!() }",
        "fn f() { let shard = crate::Shard::current(); }",
        "fn f() { log!(\"{}\", crate::shard::NAME); }",
        "macro_rules! m { () => { $crate::shard::f() }; }",
        "macro_rules! m { () => { use crate::{config::A, shard::B}; }; }",
        "impl crate::shard::Host for Tcp {}",
        "mod inner { use super::super::super::shard::Shard; }",
        "#[crate::shard::hook] fn f() {}",
        "struct S { #[cfg(any(test, unix))] shard: crate::shard::Shard }",
        "#[cfg(not(test))] use crate::shard::Shard;",
    ] {
        assert_eq!(misused("net/tcp.rs", source), [UPWARD], "in: {source}");
    }
}

#[test]
fn a_sibling_is_not_below() {
    let said = misused("tasks/join.rs", "//! Join.\nuse crate::cross_shard::inbox::Inbox;");
    assert_eq!(said, ["`tasks/join.rs` uses `cross_shard`, which is not below `tasks` (line 2)"]);
}

#[test]
fn what_lib_rs_defines_itself_is_above_everybody() {
    let said = misused("net/tcp.rs", "fn f() -> crate::Result<()> { Ok(()) }");
    assert_eq!(said, ["`net/tcp.rs` uses `crate::Result`, which belongs to `lib.rs`, above `net` (line 1)"]);
    assert_eq!(misused("net/tcp.rs", "use crate::*;").len(), 1, "a glob of the root hides what it uses");
}

#[test]
fn downward_use_and_words_in_passing_are_fine() {
    let source = r#"//! Knows nothing of `crate::shard`.
use super::wire::Wire;
use crate::reactor::token::Token;
use crate::{ShardId, sys};
/// See [`crate::shard::Shard`].
pub(crate) fn shard(shard: usize) -> &'static str { /* crate::shard */ "use crate::shard::Shard;" }
pub(super) mod shard { pub(in crate::net) fn f() { super::shard::f(); self::f() } }
#[cfg(test)]
mod tests { use crate::shard::Shard; }
#[cfg(all(test, loom))]
mod models { fn f() { crate::shard::f() } }
#[cfg(test)]
use crate::shard::Shard;
impl Wire { #[cfg(test)] fn probe(&self) -> crate::shard::Shard { todo!() } }
"#;
    assert_eq!(misused("net/tcp.rs", source), Vec::<String>::new());
}

#[test]
fn a_module_file_declared_for_tests_may_use_anything() {
    let models = "use loom::thread; use crate::shard::Shard;";
    let tree = tree(&[
        ("cross_shard/mod.rs", "//! Messages.\n#[cfg(all(test, loom))]\nmod models;"),
        ("cross_shard/models.rs", models),
    ]);
    assert_eq!(misuses(&tree, "cross_shard/models.rs", models), Vec::<String>::new());
    assert_eq!(doors_passed(&tree, "cross_shard/models.rs", models), Vec::<String>::new());
    assert_eq!(doors_passed(&tree, "cross_shard/inbox.rs", models).len(), 1);
}

#[test]
fn a_module_without_a_row_is_named() {
    let said = modules_without_row(&tree(&[("plugins/mod.rs", "//! Plugins.")]));
    assert_eq!(said, ["`plugins` has no row in MAY_USE: say what is below it"]);
}

#[test]
fn a_dependency_beside_its_door_is_named() {
    let said =
        "`net/tcp.rs` names `mio`, whose door is `reactor/driver/mio.rs` or `reactor/driver/mio/` (line 1)";
    for source in [
        "use mio::Poll;",
        "use ::mio::Poll;",
        "use mio as poll;",
        "use {std::io, mio::net::TcpStream};",
        "extern crate mio;",
        "fn f(poll: &mio::Poll) {}",
        "fn f() { assert!(mio::Token(1) == token); }",
        "#[derive(mio::Source)] struct S;",
        "macro_rules! m { () => { ::mio::Poll::new() }; }",
    ] {
        assert_eq!(passed("net/tcp.rs", source), [said], "in: {source}");
        assert_eq!(passed("reactor/driver/mio.rs", source), Vec::<String>::new(), "in: {source}");
    }
    assert_eq!(passed("lib.rs", "pub use socket2::Socket;").len(), 1, "the root has no doors of its own");
}

#[test]
fn a_folder_is_a_door_for_what_lies_in_it() {
    assert_eq!(passed("cross_shard/inbox.rs", "use crossbeam_queue::SegQueue;"), Vec::<String>::new());
    assert_eq!(passed("reactor/driver/uring.rs", "use rustix::io;"), Vec::<String>::new());
    let said = passed("reactor/waker.rs", "use rustix::io;");
    assert_eq!(
        said,
        ["`reactor/waker.rs` names `rustix`, whose door is `sys/` or `reactor/driver/` (line 1)"]
    );
}

#[test]
fn a_local_name_is_not_a_dependency() {
    for source in [
        "mod mio; fn f() -> mio::Driver { mio::Driver::new() }",
        "use super::mio; fn f() -> mio::Driver { todo!() }",
        "use crate::reactor::driver::mio::{self, Driver}; fn f() { mio::probe() }",
        "fn f(loom: u32) -> u32 { loom }",
        "#[cfg(test)] mod tests { use mio::Poll; }",
    ] {
        assert_eq!(passed("reactor/driver/mod.rs", source), Vec::<String>::new(), "in: {source}");
    }
}

#[test]
fn a_dependency_without_a_door_is_named() {
    let manifest = "
        [dependencies]
        mio = '1'
        left-pad = '1'
        [target.'cfg(loom)'.dependencies]
        shuttle = { version = '1' }
        [dev-dependencies]
        anything = '1'
        [dependencies.right_pad]
        version = '1'
    ";
    let said = dependencies_without_door(manifest);
    let names: Vec<&str> = said.iter().map(|line| line.split('`').nth(1).unwrap_or_default()).collect();
    assert_eq!(names, ["left_pad", "right_pad", "shuttle"], "{said:?}");
}

#[test]
fn a_file_without_a_job_or_with_too_many_is_named() {
    assert_eq!(without_job("net/tcp.rs", "//! TCP. Does not know TLS.\n"), None);
    for source in ["", "//!\n//! TCP.", "use std::io;\n//! TCP.", "/// TCP.", "\n//! TCP."] {
        assert!(without_job("net/tcp.rs", source).is_some(), "in: {source:?}");
    }
    let readme = "#![doc = include_str!(\"../README.md\")]";
    assert_eq!(without_job("src/lib.rs", readme), None);
    assert!(without_job("src/net/tcp.rs", readme).is_some(), "only the crate is as large as a README");
    assert_eq!(too_long("net/tcp.rs", &"\n".repeat(800)), None);
    let said = too_long("net/tcp.rs", &"\n".repeat(801));
    assert_eq!(said.as_deref(), Some("`net/tcp.rs` has 801 lines: above 800 it holds two ideas"));
}

#[test]
fn an_unsafe_block_without_a_proof_is_named() {
    let said = ["`a.rs` line 3: `unsafe` without a `SAFETY:` comment"];
    for source in [
        "fn f() {\n\n    unsafe { g() };\n}",
        "// SAFETY: of the wrong statement.\nf();\nlet x = unsafe { g() };",
        "// SAFETY: too far away.\n\nunsafe impl Send for S {}",
        "macro_rules! m { () => {\n  f();\n  unsafe { g() }\n } }",
        "let said = \"SAFETY: not a comment\";\n\nlet x = unsafe { g(\"SAFETY:\") };",
    ] {
        assert_eq!(unproved("a.rs", source), said, "in: {source}");
    }
    for source in [
        "// SAFETY: `g` is fine.\nunsafe { g() };",
        "// SAFETY: a long proof\n// of two lines.\n#[allow(x)]\nlet x =\n    unsafe { g() };",
        "let x = unsafe { g() }; // SAFETY: `g` is fine.",
        "unsafe fn f() {}\n#[unsafe(no_mangle)]\nfn g() { \"unsafe { }\"; } // unsafe {}",
    ] {
        assert_eq!(unproved("a.rs", source), Vec::<String>::new(), "in: {source}");
    }
}

#[test]
fn a_callback_that_a_layer_swallows_is_named() {
    let protocol = "pub trait Protocol { fn connected(&mut self); fn draining(&mut self) {} }";
    let all = "pub trait Layer { fn inner(&mut self) -> &mut dyn Protocol; }
        impl<L: Layer> Protocol for L {
            fn connected(&mut self) { self.inner().connected() }
            fn draining(&mut self) { self.inner().draining() }
        }";
    assert_eq!(callbacks_not_forwarded(protocol, all), Vec::<String>::new());
    let said = ["`shard/layer.rs` does not forward `Protocol::draining`"];
    assert_eq!(callbacks_not_forwarded(protocol, &all.replace("self.inner().draining()", "")), said);
    let missing = "impl<L: Layer> Protocol for L { fn connected(&mut self) { Layer::connected(self) } }";
    assert_eq!(callbacks_not_forwarded(protocol, missing), said);
    let half = all.replace("-> &mut dyn Protocol;", "-> &mut dyn Protocol; fn connected(&mut self) {}");
    assert_eq!(callbacks_not_forwarded(protocol, &half), ["`Layer` has no `draining` to override"]);
}
