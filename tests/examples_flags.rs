//! What the examples make of their command line, and that nobody's reading, or not reading, of their output can
//! stop them. Does not run them: `scripts/smoke-examples.sh` does.

#[path = "../examples/common/mod.rs"]
mod common;

use std::io::{Read, pipe};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use common::output::Sink;
use common::{CpuList, Driver, Ending, Flags, NoMore};
use shardwise::{ClientEndpoint, ServerEndpoint};

fn flags(arguments: &[&str]) -> Result<Flags, Ending> {
    common::parse::<NoMore>("Says back what it hears.", 7000, ["echo"].iter().chain(arguments))
        .map(|(flags, NoMore {})| flags)
}

/// The text of a refusal, which must have exit code 2.
fn refused(arguments: &[&str]) -> String {
    let ending = flags(arguments).map(|flags| panic!("{arguments:?} was taken for {flags:?}")).unwrap_err();
    assert_eq!(ending.code, 2, "{arguments:?}: {}", ending.text);
    ending.text
}

#[test]
fn without_arguments_an_example_listens_on_loopback() {
    let flags = flags(&[]).unwrap();
    assert_eq!(Ok(flags.listen), "127.0.0.1:7000".parse());
    assert_eq!((flags.shards, flags.cpus, flags.driver), (None, None, Driver::Auto));
}

#[test]
fn every_flag_is_read_in_both_spellings() {
    for arguments in [
        &["--listen", "[::1]:0", "--shards", "3", "--cpus", "7,0-2", "--driver", "mio"][..],
        &["--listen=[::1]:0", "--shards=3", "--cpus=7,0-2", "--driver=mio"][..],
    ] {
        let flags = flags(arguments).unwrap();
        assert_eq!(Ok(flags.listen), "[::1]:0".parse());
        assert_eq!(flags.shards, Some(3));
        assert_eq!(flags.cpus, Some(CpuList(vec![0, 1, 2, 7])));
        assert_eq!(flags.driver, Driver::Mio);
    }
}

#[test]
fn a_wrong_value_is_refused_with_the_option_and_its_range() {
    let huge = "99999999999999999999999";
    for (option, value, range) in [
        ("--shards", "0", "1 to 256"),
        ("--shards", "-1", "1 to 256"),
        ("--shards", "257", "1 to 256"),
        ("--shards", huge, "1 to 256"),
        ("--shards", "many", "1 to 256"),
        ("--shards", "", "1 to 256"),
        ("--cpus", "", "0 to 1023"),
        ("--cpus", "0,,1", "0 to 1023"),
        ("--cpus", "-1", "0 to 1023"),
        ("--cpus", "1024", "0 to 1023"),
        ("--cpus", "0-1-2", "0 to 1023"),
        ("--cpus", huge, "0 to 1023"),
        ("--cpus", "3-1", "backwards"),
        ("--cpus", "0-2,1", "CPU 1 is named twice"),
        ("--driver", "iocp", "auto, mio"),
        ("--listen", "7000", "HOST:PORT"),
        ("--listen", ":7000", "HOST:PORT"),
        ("--listen", "127.0.0.1:", "0 to 65535"),
        ("--listen", "127.0.0.1:65536", "0 to 65535"),
        ("--listen", "127.0.0.1:-1", "0 to 65535"),
        ("--listen", "::1:7000", "brackets"),
        ("--listen", "[::g]:7000", "brackets"),
        ("--listen", "[127.0.0.1]:7000", "brackets"),
        ("--listen", "a b:7000", "a host"),
        ("--listen", "tcp:x:interface=[::1]", "0 to 65535"),
        ("--listen", "tls:7000", "privateKey"),
        ("--listen", "haproxy:haproxy:tcp:1", "one proxy header"),
    ] {
        let text = refused(&[option, value]);
        assert!(text.contains(option) && text.contains(range), "{option} {value:?} gave: {text}");
    }
}

#[test]
fn an_unknown_option_or_argument_is_refused_by_name() {
    assert!(refused(&["--prot", "7000"]).contains("--prot"));
    assert!(refused(&["-x"]).contains("-x"));
    assert!(refused(&["stray"]).contains("stray"));
    assert!(refused(&["--shards", "1", "--shards", "2"]).contains("--shards"), "twice is once too often");
}

#[test]
fn help_explains_every_flag_and_is_no_failure() {
    let ending = flags(&["--help"]).unwrap_err();
    assert_eq!(ending.code, 0);
    let said = [
        "Says back what it hears.",
        "--listen",
        "127.0.0.1:7000",
        "--shards",
        "--cpus",
        "0-3,7",
        "--driver",
        "auto",
        "mio",
        "SIGTERM",
        "Exit codes",
    ];
    for word in said {
        assert!(ending.text.contains(word), "the help does not mention {word}:\n{}", ending.text);
    }
}

#[test]
fn an_example_may_have_flags_of_its_own() {
    #[derive(clap::Args, Debug)]
    struct Upstream {
        /// Where to connect to
        #[arg(long)]
        upstream: ClientEndpoint,
    }
    let arguments = ["proxy", "--upstream", "localhost:9", "--shards", "2"];
    let (flags, more) = common::parse::<Upstream>("Passes bytes on.", 7000, arguments).unwrap();
    assert_eq!((flags.shards, more.upstream.to_string()), (Some(2), "tcp:localhost:9".to_owned()));
    let missing = common::parse::<Upstream>("Passes bytes on.", 7000, ["proxy"]).unwrap_err();
    assert!(missing.code == 2 && missing.text.contains("--upstream"), "{}", missing.text);
}

#[test]
fn a_mistake_in_an_endpoint_is_shown_at_its_place() {
    let text = refused(&["--listen", "tcp:70x0:interface=127.0.0.1"]);
    let lines: Vec<&str> = text.lines().collect();
    let shown =
        lines.iter().position(|line| line.trim() == "tcp:70x0:interface=127.0.0.1").expect("it is shown");
    let mark = lines[shown + 1];
    assert_eq!(mark.trim(), "^^^^", "{text}");
    assert_eq!(mark.find('^'), lines[shown].find("70x0"), "{text}");
}

#[test]
fn every_kind_of_endpoint_is_taken() {
    for text in ["localhost:80", "tcp6:80", "tls:443:privateKey=k", "haproxy:tcp:80", "unix:/run/x", "fd:3"] {
        let flags = flags(&["--listen", text]).unwrap();
        assert_eq!(flags.listen, text.parse::<ServerEndpoint>().unwrap());
    }
}

#[test]
fn a_host_is_an_address_or_a_name() {
    let addr = |text: &str| -> SocketAddr {
        flags(&["--listen", text]).unwrap().listen.load().unwrap().addr().unwrap()
    };
    assert_eq!(addr("127.0.0.1:80").to_string(), "127.0.0.1:80");
    assert_eq!(addr("[::1]:80").to_string(), "[::1]:80");
    let localhost = addr("localhost:80");
    assert!(localhost.ip().is_loopback() && localhost.port() == 80, "{localhost}");
}

#[test]
fn what_an_endpoint_names_and_cannot_be_used_is_told_with_the_option() {
    // A label may have 63 octets (RFC 1035 §2.3.4), so no name server is asked for this one.
    for (text, code) in [
        (format!("{}:80", "x".repeat(64)), 2),
        ("tls:443:privateKey=/nowhere/key.pem".to_owned(), 2),
        ("tcp:80:interface=nobody.invalid".to_owned(), 1),
    ] {
        let error = flags(&["--listen", &text]).unwrap().listen.load().unwrap_err();
        let ending = common::unusable("--listen", &error);
        assert_eq!(ending.code, code, "{}", ending.text);
        assert!(ending.text.starts_with("error: --listen: cannot use the endpoint `"), "{}", ending.text);
        assert!(!ending.text.contains('\n'), "{}", ending.text);
    }
}

#[test]
fn the_end_of_a_run_is_its_exit_code() {
    assert_eq!(common::exit_with(Ok::<(), String>(())), ExitCode::SUCCESS);
    assert_eq!(common::exit_with(Err::<(), _>("address\nin use\x1b[2J")), ExitCode::from(1));
}

#[test]
fn lines_arrive_whole_and_in_order() {
    let (mut reader, writer) = pipe().unwrap();
    let sink = Sink::over(&writer);
    drop(writer);
    for number in 0..100 {
        sink.line(format!("line {number}\n"));
    }
    sink.finish(Duration::from_secs(30));
    drop(sink);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let expected: String = (0..100).map(|number| format!("line {number}\n")).collect();
    assert_eq!(text, expected);
}

#[test]
fn a_reader_that_does_not_read_blocks_nobody_and_learns_how_much_it_missed() {
    let (mut reader, writer) = pipe().unwrap();
    let sink = Sink::over(&writer);
    drop(writer);
    let sent = 100_000;
    for number in 0..sent {
        sink.line(format!("{number:0>63}\n"));
    }
    let dropped = sink.dropped();
    assert!(dropped > 0, "6 MB cannot fit into a pipe and a queue of 64 KB each");
    sink.finish(Duration::ZERO);
    drop(sink);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let lines = text.lines().filter(|line| line.len() == 63).count() as u64;
    let missing: u64 =
        text.lines().filter_map(|line| line.strip_prefix('(')?.split(' ').next()?.parse::<u64>().ok()).sum();
    assert_eq!(lines + missing, sent, "every line arrives or is counted");
}

#[test]
fn a_reader_that_has_gone_harms_nobody() {
    let (reader, writer) = pipe().unwrap();
    let sink = Sink::over(&writer);
    drop((reader, writer));
    for _ in 0..10 {
        sink.line("unheard\n".to_owned());
        sink.finish(Duration::from_secs(30));
    }
}
