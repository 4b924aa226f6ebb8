//! What the examples make of their command line, and that nobody's reading, or not reading, of their output can
//! stop them. Does not run them: `scripts/smoke-examples.sh` does.

#[path = "../examples/common/mod.rs"]
mod common;

use std::io::{Read, pipe};
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use common::output::Sink;
use common::{CpuList, Driver, Ending, Flags, HostPort, NoMore};

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
    assert_eq!(flags.listen, HostPort { host: "127.0.0.1".into(), port: 7000 });
    assert_eq!((flags.shards, flags.cpus, flags.driver), (None, None, Driver::Auto));
}

#[test]
fn every_flag_is_read_in_both_spellings() {
    for arguments in [
        &["--listen", "[::1]:0", "--shards", "3", "--cpus", "7,0-2", "--driver", "mio"][..],
        &["--listen=[::1]:0", "--shards=3", "--cpus=7,0-2", "--driver=mio"][..],
    ] {
        let flags = flags(arguments).unwrap();
        assert_eq!(flags.listen.to_string(), "[::1]:0");
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
        ("--listen", ":7000", "127.0.0.1, localhost or [::1]"),
        ("--listen", "127.0.0.1:", "0 to 65535"),
        ("--listen", "127.0.0.1:65536", "0 to 65535"),
        ("--listen", "127.0.0.1:-1", "0 to 65535"),
        ("--listen", "::1:7000", "brackets"),
        ("--listen", "[::g]:7000", "IPv6"),
        ("--listen", "[127.0.0.1]:7000", "IPv6"),
        ("--listen", "a b:7000", "blanks"),
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
        upstream: HostPort,
    }
    let arguments = ["proxy", "--upstream", "localhost:9", "--shards", "2"];
    let (flags, more) = common::parse::<Upstream>("Passes bytes on.", 7000, arguments).unwrap();
    assert_eq!((flags.shards, more.upstream.to_string()), (Some(2), "localhost:9".to_owned()));
    let missing = common::parse::<Upstream>("Passes bytes on.", 7000, ["proxy"]).unwrap_err();
    assert!(missing.code == 2 && missing.text.contains("--upstream"), "{}", missing.text);
}

#[test]
fn a_host_is_an_address_or_a_name() {
    let resolve = |text: &str| text.parse::<HostPort>().unwrap().resolve(Duration::from_secs(30)).unwrap();
    assert_eq!(resolve("127.0.0.1:80").to_string(), "127.0.0.1:80");
    assert_eq!(resolve("[::1]:80").to_string(), "[::1]:80");
    let localhost = resolve("localhost:80");
    assert!(localhost.ip().is_loopback() && localhost.port() == 80, "{localhost}");
    assert_eq!(resolve("0.0.0.0:0").ip(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
}

#[test]
fn a_host_without_an_address_is_an_error() {
    // A label may have 63 octets (RFC 1035 §2.3.4), so no name server is asked for this one.
    let unknown = HostPort { host: "x".repeat(64), port: 80 };
    unknown.resolve(Duration::from_secs(30)).unwrap_err();
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
