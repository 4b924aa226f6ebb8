//! Output above the high watermark holds reading: for protocols that answer, and only as long as it must.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::common::{
    Call, Log, Probe, assert_same_bytes, echo_server, let_others_go_on, listen, megabytes, pair, pattern,
    read_to_end,
};
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{Config, Flow, Result, Shard, TcpStream, Transport, WriteError};

const PIECE_BYTES: usize = 10_000;

/// Writes the pattern to a peer that takes it, and never reads what comes, until everything in between is full. Says how
/// much it was. Before, what was sent came back until the echo was cut off for it.
async fn pipeline(env: &Env, client: &Transport) -> Result<usize> {
    let bytes = pattern(megabytes(env, 40));
    let mut sent = 0;
    while sent < bytes.len() {
        match client.write(&bytes[sent..sent + PIECE_BYTES]) {
            Ok(_) => sent += PIECE_BYTES,
            Err(WriteError::Full) => {
                let before = client.buffered();
                let_others_go_on(env).await?;
                if client.buffered() == before {
                    return Ok(sent);
                }
            }
            Err(error) => return Err(error.into()),
        }
        shardwise::yield_now().await;
    }
    panic!("the server takes everything: {sent} bytes");
}

/// The README's echo was closed with `WriteError::Full` at 1 MiB.
#[test]
fn an_echo_that_ignores_the_flow_outlives_a_peer_that_pipelines_without_reading() {
    on_every_driver(async |env| {
        let mut client = TcpStream::connect(echo_server(&env)?).await?;
        let hold = client.transport().hold_reading();
        let sent = pipeline(&env, client.transport()).await?;
        drop(hold);
        client.shutdown_write();
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(sent));
        Ok(())
    });
}

fn small_marks() -> Config {
    let mut config = Config::default();
    config.watermarks.high_bytes = 1000;
    config.watermarks.low_bytes = 100;
    config
}

/// Answers each byte with a hundred of it; says how much it had unsent at the most.
fn amplifier(
    most: Rc<Cell<usize>>,
) -> impl FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + Clone {
    move |call, transport| {
        let Call::Data(input) = call else { return None };
        while let Some(byte) = input.bytes().first() {
            input.consume(1);
            if let Err(error) = transport.write(&[*byte; 100]) {
                return Some(Err(error.into()));
            }
            most.set(most.get().max(transport.buffered()));
        }
        Some(Ok(()))
    }
}

#[test]
fn input_runs_dry_above_high_and_the_rest_comes_after_low() {
    on_every_driver_with(2, small_marks(), async |env| {
        let most = Rc::<Cell<usize>>::default();
        let (log, mut client) = pair(&env, amplifier(Rc::clone(&most))).await?;
        let questions = pattern(5000);
        client.write_all(&questions).await?;
        client.shutdown_write();
        let answers = read_to_end(&mut client).await?;
        let expected: Vec<u8> = questions.iter().flat_map(|byte| [*byte; 100]).collect();
        assert_same_bytes(&answers, &expected);
        assert_eq!(log.ended().await, "PeerFinished", "its end came behind what was held");
        assert!((1001..=1100).contains(&most.get()), "{} bytes were unsent", most.get());
        Ok(())
    });
}

/// Fills the connection of `transport`, whose peer reads nothing, to far above high. The kernel may go on taking some of
/// it for a while.
async fn fill(env: &Env, transport: &Transport) -> Result<()> {
    const UNSENT_BYTES: usize = 500_000;
    let mut left = 10_000;
    while transport.buffered() < UNSENT_BYTES {
        while transport.buffered() < UNSENT_BYTES {
            transport.write(&[b'f'; 5000])?;
            shardwise::yield_now().await;
            left -= 1;
            assert!(left > 0, "the kernel takes everything");
        }
        let_others_go_on(env).await?;
    }
    Ok(())
}

#[test]
fn the_machinerys_hold_and_the_applications_pause_do_not_undo_each_other() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let server = log.transport().await;
        let hold = client.transport().hold_reading();
        fill(&env, &server).await?;
        log.saw("paused").await;
        client.write_all(b"held").await?;
        server.pause_reading();
        server.resume_reading();
        let_others_go_on(&env).await?;
        assert!(log.received().is_empty(), "resume_reading has undone the machinery's hold");

        server.pause_reading();
        let length = server.buffered();
        drop(hold);
        let mut client = read_until_resumed(client, &log, length).await?;
        let_others_go_on(&env).await?;
        assert!(log.received().is_empty(), "the end of the hold has undone pause_reading");
        server.resume_reading();
        log.until(|state| state.received == b"held").await;
        client.write_all(b"!").await?;
        log.until(|state| state.received == b"held!").await;
        Ok(())
    });
}

/// Reads in the background until the server has been told to go on.
async fn read_until_resumed(mut client: TcpStream, log: &Log, least: usize) -> Result<TcpStream> {
    let mut read = 0;
    while log.count("resumed") == 0 {
        let chunk = client.read_chunk().await?.expect("the server does not close");
        read += chunk.len();
    }
    assert!(read > 0 && least > 0);
    Ok(client)
}

#[test]
fn a_protocol_with_independent_directions_reads_on_above_high() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| match call {
            Call::Connected => {
                transport.set_reads_above_high(true);
                Some(Ok(()))
            }
            _ => None,
        })
        .await?;
        let server = log.transport().await;
        let _hold = client.transport().hold_reading();
        fill(&env, &server).await?;
        client.write_all(b"read").await?;
        log.until(|state| state.received == b"read").await;
        // Off and on again while it is above.
        server.set_reads_above_high(false);
        client.write_all(b" on").await?;
        let_others_go_on(&env).await?;
        assert_eq!(log.received(), b"read", "it is above high");
        server.set_reads_above_high(true);
        log.until(|state| state.received == b"read on").await;
        server.abort();
        Ok(())
    });
}

/// The bytes lay in the stream, and its task, which had waited before they came, was not woken for them. Only what is on
/// its way to the shard when reading stops comes like that, which the simulated driver does on purpose.
#[test]
fn a_task_that_waits_is_woken_for_what_came_while_reading_was_paused() {
    const ROUNDS: usize = 200;
    thread_local! {
        static TO_PAUSE: RefCell<Option<Transport>> = const { RefCell::new(None) };
    }
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let server = log.transport().await;
        let transport = client.transport().clone();
        let noted = log.clone();
        let reads = env.shard().spawn(async move {
            let mut bytes = [0; 5];
            for _ in 0..ROUNDS {
                client.read_exact(&mut bytes).await?;
                assert_eq!(&bytes, b"again");
                noted.note("read");
            }
            Ok::<_, std::io::Error>(())
        });
        for round in 0..ROUNDS {
            server.write(b"again")?;
            // A message runs before the events of its turn: now and then they have just come.
            for _ in 0..round % 50 {
                shardwise::yield_now().await;
            }
            TO_PAUSE.set(Some(transport.clone()));
            let pause = |_: &Shard| TO_PAUSE.take().expect("set before").pause_reading();
            env.shard().call(env.shard().id(), pause).await?;
            env.shard().sleep(Duration::from_millis(1)).await;
            transport.resume_reading();
            let read = log.until(|state| state.seen.iter().filter(|name| **name == "read").count() > round);
            env.shard().timeout(Duration::from_secs(1), read).await?;
        }
        reads.await??;
        Ok(())
    });
}

/// Both peers hold and release; the one that asks must not stop taking answers.
#[test]
fn a_client_protocol_that_heeds_the_flow_gets_megabytes_through_an_echo() {
    on_every_driver(async |env| {
        let bytes = Rc::new(pattern(megabytes(&env, 8)));
        let log = Log::new();
        let (probe, pumped) = (log.clone(), Rc::clone(&bytes));
        let connecting = env.shard().connect_tcp(echo_server(&env)?, move || {
            let (pumped, mut written) = (Rc::clone(&pumped), 0);
            Probe::new(&probe, move |call, transport| match call {
                Call::Connected | Call::Resumed => {
                    while written < pumped.len() {
                        let end = (written + PIECE_BYTES).min(pumped.len());
                        match transport.write(&pumped[written..end]) {
                            Ok(Flow::Open) => written = end,
                            Ok(Flow::AboveHigh) => {
                                written = end;
                                break;
                            }
                            Err(error) => return Some(Err(error.into())),
                        }
                    }
                    Some(Ok(()))
                }
                _ => None,
            })
        });
        let transport = connecting.await?;
        let wanted = bytes.len();
        let all = log.until(|state| state.received.len() == wanted);
        env.shard().timeout(Duration::from_secs(20), all).await?;
        assert_same_bytes(&log.received(), &bytes);
        transport.close();
        log.ended().await;
        Ok(())
    });
}

#[test]
fn reading_goes_on_after_the_write_half_was_shut_above_high() {
    on_every_driver_with(2, small_marks(), async |env| {
        let log = Log::new();
        let listener = listen(&env, &log, |call, transport| match call {
            Call::Connected => {
                let filled = transport.write(&[1; 5000]).map(drop).map_err(Into::into);
                transport.shutdown_write();
                Some(filled)
            }
            _ => None,
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        assert_eq!(read_to_end(&mut client).await?.len(), 5000);
        client.write_all(b"still heard").await?;
        log.until(|state| state.received == b"still heard").await;
        Ok(())
    });
}
