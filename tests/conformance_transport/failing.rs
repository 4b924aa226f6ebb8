//! Callbacks that fail or panic, or end their connection: what else goes on, and which reason is told.

use std::io;
use std::time::Duration;

use crate::common::{Call, Log, echo_server, pair, read_to_end, round_trip};
use shardwise::testing::{Env, on_every_driver};
use shardwise::{Input, Protocol, Result, TcpStream, Transport};

/// The callbacks in which something can go wrong.
pub(crate) const CALLBACKS: [&str; 8] =
    ["connected", "data", "read_finished", "write_finished", "paused", "resumed", "deadline", "draining"];

fn name(call: &Call<'_, '_>) -> &'static str {
    match call {
        Call::Connected => "connected",
        Call::HandshakeCompleted => "handshake",
        Call::Data(_) => "data",
        Call::ReadFinished => "read_finished",
        Call::WriteFinished => "write_finished",
        Call::Paused => "paused",
        Call::Resumed => "resumed",
        Call::Deadline => "deadline",
        Call::Draining => "draining",
        Call::Disconnected => "disconnected",
    }
}

/// A probe that does `action` in the callback `wanted`, and otherwise what leads there.
pub(crate) async fn provoke(
    env: &Env,
    wanted: &'static str,
    action: fn(&Transport) -> Result<()>,
) -> Result<Log> {
    let (log, mut client) = pair(env, move |call, transport| {
        if name(call) == wanted {
            if let Call::Data(input) = call {
                input.take();
            }
            return Some(action(transport));
        }
        let Call::Data(input) = call else { return None };
        input.take();
        match wanted {
            "write_finished" => transport.shutdown_write(),
            "paused" | "resumed" => {
                for _ in 0..70 {
                    transport.write(&[6; 1000]).unwrap();
                }
            }
            "deadline" => transport.set_deadline(Some(Duration::from_millis(1))),
            "draining" => env_stop(transport),
            _ => {}
        }
        Some(Ok(()))
    })
    .await?;
    // Refused where the server has ended it already.
    let _ = client.write_all(b"go").await;
    if wanted == "read_finished" {
        client.shutdown_write();
    }
    let _ = read_to_end(&mut client).await;
    drop(client);
    Ok(log)
}

fn env_stop(transport: &Transport) {
    // The first of several deliveries has stopped it.
    let _ = transport.shard().stop();
}

#[test]
fn a_callback_that_fails_ends_that_connection_alone_with_its_error() {
    on_every_driver(async |env| {
        let mut bystander = TcpStream::connect(echo_server(&env)?).await?;
        for wanted in CALLBACKS {
            if wanted != "draining" {
                round_trip(&mut bystander, b"before").await?;
            }
            let log = provoke(&env, wanted, |_| Err("out of luck".into())).await?;
            assert_eq!(log.ended().await, "Protocol(out of luck)", "in {wanted}");
            assert_eq!(log.count(wanted), 1);
            if wanted != "draining" {
                round_trip(&mut bystander, b"after").await?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_callback_that_panics_ends_that_connection_alone_with_its_message() {
    on_every_driver(async |env| {
        let mut bystander = TcpStream::connect(echo_server(&env)?).await?;
        for (index, wanted) in CALLBACKS.into_iter().enumerate() {
            let log = provoke(&env, wanted, |transport| {
                // Perhaps half a frame: it must not be sent.
                let _ = transport.write(b"half");
                panic!("out of luck");
            })
            .await?;
            assert_eq!(log.ended().await, "Panicked(out of luck)", "in {wanted}");
            assert_eq!(log.count(wanted), 1);
            assert_eq!(env.handle().report()[0].panics, index as u64 + 1);
            if wanted != "draining" {
                round_trip(&mut bystander, b"after").await?;
            }
        }
        Ok(())
    });
}

#[test]
fn what_a_failing_callback_wrote_is_sent_and_what_a_panicking_one_wrote_is_not() {
    on_every_driver(async |env| {
        for panics in [false, true] {
            let (_log, mut client) = pair(&env, move |call, transport| {
                let Call::Data(input) = call else { return None };
                input.take();
                transport.write(b"sorry").unwrap();
                assert!(!panics, "as the test wants it");
                Some(Err("as the test wants it".into()))
            })
            .await?;
            client.write_all(b"go").await?;
            let answer = read_to_end(&mut client).await?;
            assert_eq!(answer, if panics { &b""[..] } else { b"sorry" });
        }
        Ok(())
    });
}

#[test]
fn a_panic_in_disconnected_or_in_the_destructor_harms_nobody() {
    struct Trap {
        log: Log,
        in_destructor: bool,
    }
    impl Protocol for Trap {
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            input.take();
            transport.close();
            Ok(())
        }
        fn disconnected(&mut self, _reason: shardwise::CloseReason) {
            self.log.note("disconnected");
            assert!(self.in_destructor, "as the test wants it");
        }
    }
    impl Drop for Trap {
        fn drop(&mut self) {
            self.log.note("dropped");
            assert!(!self.in_destructor, "as the test wants it");
        }
    }
    on_every_driver(async |env| {
        let mut bystander = TcpStream::connect(echo_server(&env)?).await?;
        for in_destructor in [false, true] {
            let log = Log::new();
            let trap = log.clone();
            let listener =
                env.shard().listen_tcp("127.0.0.1:0", move || Trap { log: trap.clone(), in_destructor })?;
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.write_all(b"go").await?;
            assert!(read_to_end(&mut client).await?.is_empty());
            log.saw("dropped").await;
            assert_eq!(log.seen(), ["disconnected", "dropped"]);
            round_trip(&mut bystander, b"unharmed").await?;
        }
        assert_eq!(env.handle().report()[0].panics, 2);
        Ok(())
    });
}

#[test]
fn a_handler_that_fails_or_panics_ends_its_own_connection_alone() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            let mut verb = [0];
            while stream.read(&mut verb).await? == 1 {
                match verb[0] {
                    b'f' => return Err("out of luck".into()),
                    b'p' => panic!("out of luck"),
                    _ => stream.write_all(&verb).await?,
                }
            }
            Ok(())
        })?;
        let mut bystander = TcpStream::connect(listener.local_addr()).await?;
        for verb in [b"f", b"p"] {
            let mut unlucky = TcpStream::connect(listener.local_addr()).await?;
            round_trip(&mut unlucky, b"hello").await?;
            unlucky.write_all(verb).await?;
            assert!(read_to_end(&mut unlucky).await?.is_empty());
            round_trip(&mut bystander, b"hello").await?;
        }
        Ok(())
    });
}

#[test]
fn an_error_after_an_abort_in_the_same_callback_is_the_reason() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| {
            let Call::Data(input) = call else { return None };
            input.take();
            transport.abort();
            Some(Err("worse".into()))
        })
        .await?;
        client.write_all(b"go").await?;
        assert_eq!(log.ended().await, "Protocol(worse)");
        let error = client.read_chunk().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        Ok(())
    });
}
