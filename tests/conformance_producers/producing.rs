//! Registering, pausing, pulling, stopping, and closes that wait for producers.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::common::{
    Call, Log, assert_same_bytes, echo_server, let_others_go_on, listen, megabytes, pair, pattern,
    read_to_end, round_trip,
};
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{
    Config, Flow, Producer, ProducerKind, Result, TcpStream, Transport, WriteError, copy, copy_bidirectional,
};

/// Notes what it is told; `resume` is what it does when it may write.
struct Noting {
    log: Log,
    resume: Box<Resume>,
}

type Resume = dyn FnMut(&Transport) -> Result<()>;

impl Noting {
    fn new(log: &Log, resume: impl FnMut(&Transport) -> Result<()> + 'static) -> Self {
        Noting { log: log.clone(), resume: Box::new(resume) }
    }

    fn idle(log: &Log) -> Self {
        Noting::new(log, |_| Ok(()))
    }
}

impl Producer for Noting {
    fn resume_producing(&mut self, consumer: &Transport) -> Result<()> {
        self.log.note("resume");
        (self.resume)(consumer)
    }
    fn pause_producing(&mut self, _consumer: &Transport) -> Result<()> {
        self.log.note("pause");
        Ok(())
    }
    fn stop_producing(&mut self) {
        self.log.note("stop");
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        self.log.note("gone");
    }
}

fn small_marks() -> Config {
    let mut config = Config::default();
    config.watermarks.high_bytes = 1000;
    config.watermarks.low_bytes = 100;
    config
}

/// Writes far above high, to a peer that does not read.
async fn fill(transport: &Transport) -> Result<usize> {
    let mut bytes = 0;
    while transport.buffered() < 300_000 {
        for _ in 0..10 {
            transport.write(&[b'f'; 5000])?;
            bytes += 5000;
        }
        shardwise::yield_now().await;
        assert!(bytes < 100_000_000, "the kernel takes everything");
    }
    Ok(bytes)
}

#[test]
fn a_second_producer_is_refused_by_name_and_the_first_kept() {
    on_every_driver(async |env| {
        let (log, _client) = pair(&env, |_, _| None).await?;
        let server = log.transport().await;
        server.register_producer(Noting::idle(&log), ProducerKind::Pull)?;
        assert_eq!(log.count("resume"), 1, "asked at once");
        let error = server.register_producer(server.clone(), ProducerKind::Push).unwrap_err();
        assert!(error.kept.contains("Noting") && error.refused.contains("Transport"), "{error}");
        assert!(error.to_string().contains(error.kept) && error.to_string().contains(error.refused));
        assert_eq!(log.count("gone"), 0, "the first is kept");
        server.unregister_producer();
        assert_eq!([log.count("gone"), log.count("stop")], [1, 0], "forgotten without being called");
        server.register_producer(Noting::idle(&log), ProducerKind::Push)?;
        server.abort();
        log.ended().await;
        assert_eq!(log.count("stop"), 1);
        Ok(())
    });
}

#[test]
fn registering_on_a_lost_connection_stops_the_producer_at_once_and_keeps_nothing() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let server = log.transport().await;
        client.shutdown_write();
        log.ended().await;
        read_to_end(&mut client).await?;
        for kind in [ProducerKind::Push, ProducerKind::Pull] {
            let noted = Log::new();
            server.register_producer(Noting::idle(&noted), kind)?;
            assert_eq!(noted.seen(), ["stop", "gone"]);
        }
        Ok(())
    });
}

#[test]
fn a_push_producer_sees_exactly_pause_and_resume_however_many_writes_follow() {
    on_every_driver_with(2, small_marks(), async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let noted = Log::new();
        let server = log.transport().await;
        server.register_producer(Noting::idle(&noted), ProducerKind::Push)?;
        let hold = client.transport().hold_reading();
        let written = fill(&server).await?;
        noted.saw("pause").await;
        // Until the kernel was full it has taken everything, now and then.
        let before = noted.seen();
        assert_eq!(before.last(), Some(&"pause"));
        for _ in 0..5 {
            server.write(b"more")?;
            shardwise::yield_now().await;
        }
        drop(hold);
        let mut bytes = vec![0; written + 20];
        client.read_exact(&mut bytes).await?;
        noted.until(|state| state.seen.len() > before.len()).await;
        assert_eq!(noted.seen()[before.len()..], ["resume"]);
        server.abort();
        log.ended().await;
        assert_eq!(noted.seen()[before.len()..], ["resume", "stop", "gone"], "stopped once, at the loss");
        let told = &noted.seen()[..=before.len()];
        assert!(told.chunks(2).all(|pair| pair == ["pause", "resume"]), "strictly in turn: {told:?}");
        Ok(())
    });
}

#[test]
fn a_push_producer_that_comes_above_high_is_paused_before_register_returns() {
    on_every_driver_with(2, small_marks(), async |env| {
        let (log, client) = pair(&env, |_, _| None).await?;
        let _hold = client.transport().hold_reading();
        let server = log.transport().await;
        fill(&server).await?;
        log.saw("paused").await;
        let noted = Log::new();
        server.register_producer(Noting::idle(&noted), ProducerKind::Push)?;
        assert_eq!(noted.seen(), ["pause"]);
        server.abort();
        Ok(())
    });
}

#[test]
fn a_write_inside_resume_does_not_lose_the_pause() {
    on_every_driver_with(2, small_marks(), async |env| {
        let (log, client) = pair(&env, |_, _| None).await?;
        let (noted, server) = (Log::new(), log.transport().await);
        let producer = Noting::new(&noted, |consumer| {
            // More than any kernel takes at once here.
            while consumer.buffered() <= 500_000 && consumer.write(&[1; 7000])? == Flow::Open {}
            Ok(())
        });
        server.register_producer(producer, ProducerKind::Push)?;
        fill(&server).await?;
        noted.saw("pause").await;
        let mut reader = client;
        let drained = env.shard().spawn(async move {
            let mut bytes = 0;
            while let Some(chunk) = reader.read_chunk().await? {
                bytes += chunk.len();
            }
            Ok::<_, std::io::Error>(bytes)
        });
        let again = noted.until(|state| state.seen.iter().filter(|name| **name == "resume").count() >= 5);
        env.shard().timeout(Duration::from_secs(20), again).await?;
        server.close();
        server.unregister_producer();
        drained.await??;
        let seen = noted.seen();
        let told: Vec<_> = seen.iter().filter(|name| ["pause", "resume"].contains(name)).collect();
        for (index, name) in told.iter().enumerate() {
            assert_eq!(**name, ["pause", "resume"][index % 2], "strictly in turn: {seen:?}");
        }
        Ok(())
    });
}

/// Writes `bytes` in chunks, one for each time it is asked, then unregisters.
fn pulled(log: &Log, bytes: Rc<Vec<u8>>, chunk_bytes: usize) -> Noting {
    let mut written = 0;
    Noting::new(log, move |consumer| {
        let end = (written + chunk_bytes).min(bytes.len());
        consumer.write(&bytes[written..end])?;
        written = end;
        if written == bytes.len() {
            consumer.unregister_producer();
        }
        Ok(())
    })
}

#[test]
fn a_pull_producer_is_asked_for_a_chunk_each_time_there_is_room_and_is_never_paused() {
    // Below what is copied, and above, and above the high watermark.
    for chunk_bytes in [500, 10_000, 200_000] {
        on_every_driver(async move |env| {
            let bytes = Rc::new(pattern(1_000_000));
            let (log, noted) = (Log::new(), Log::new());
            let (told, all) = (noted.clone(), Rc::clone(&bytes));
            let listener = listen(&env, &log, move |call, transport| match call {
                Call::Connected => {
                    let producer = pulled(&told, Rc::clone(&all), chunk_bytes);
                    transport.register_producer(producer, ProducerKind::Pull).expect("the first");
                    // Waits for it.
                    transport.close();
                    Some(Ok(()))
                }
                _ => None,
            })?;
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            assert_same_bytes(&read_to_end(&mut client).await?, &bytes);
            assert_eq!(noted.count("resume"), bytes.len().div_ceil(chunk_bytes));
            assert_eq!([noted.count("pause"), noted.count("stop"), noted.count("gone")], [0, 0, 1]);
            Ok(())
        });
    }
}

#[test]
fn a_pull_producer_does_not_run_ahead_of_a_peer_that_reads_nothing() {
    on_every_driver_with(2, small_marks(), async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let hold = client.transport().hold_reading();
        let (noted, server) = (Log::new(), log.transport().await);
        let bytes = Rc::new(pattern(40_000_000));
        server.register_producer(pulled(&noted, Rc::clone(&bytes), 100_000), ProducerKind::Pull)?;
        while server.buffered() == 0 {
            shardwise::yield_now().await;
        }
        let_others_go_on(&env).await?;
        let asked = noted.count("resume");
        let_others_go_on(&env).await?;
        assert_eq!(noted.count("resume"), asked, "it waits");
        assert!(server.buffered() <= 100_100, "one chunk at most: {}", server.buffered());
        drop(hold);
        let mut some = vec![0; 100_000 * asked];
        client.read_exact(&mut some).await?;
        noted.until(|state| state.seen.len() > asked).await;
        server.abort();
        log.ended().await;
        assert_eq!(noted.count("stop"), 1);
        Ok(())
    });
}

#[test]
fn a_pull_producer_with_nothing_to_give_is_not_asked_for_ever() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let (noted, server) = (Log::new(), log.transport().await);
        server.register_producer(Noting::idle(&noted), ProducerKind::Pull)?;
        let_others_go_on(&env).await?;
        assert_eq!(noted.count("resume"), 1);
        server.write(b"somebody else")?;
        client.read_exact(&mut [0; 13]).await?;
        let_others_go_on(&env).await?;
        assert_eq!(noted.count("resume"), 2, "asked again after a write");
        server.unregister_producer();
        Ok(())
    });
}

#[test]
fn close_waits_for_the_producer_to_unregister_and_reads_no_more() {
    for kind in [ProducerKind::Push, ProducerKind::Pull] {
        on_every_driver(async move |env| {
            let (log, mut client) = pair(&env, |_, _| None).await?;
            let (noted, server) = (Log::new(), log.transport().await);
            server.register_producer(Noting::idle(&noted), kind)?;
            server.close();
            assert!(!server.is_open(), "it is closing");
            client.write_all(b"too late").await?;
            let_others_go_on(&env).await?;
            assert!(log.received().is_empty() && log.count("disconnected") == 0);
            server.resume_reading();
            server.write(b"written after close")?;
            let_others_go_on(&env).await?;
            server.unregister_producer();
            assert_eq!(server.write(b"!"), Err(WriteError::Closed));
            assert_eq!(read_to_end(&mut client).await?, b"written after close");
            drop(client);
            log.ended().await;
            assert!(log.received().is_empty(), "nothing is read after close");
            assert_eq!(noted.count("stop"), 0);
            Ok(())
        });
    }
}

#[test]
fn shutdown_write_waits_for_the_producer_and_reading_goes_on() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let (noted, server) = (Log::new(), log.transport().await);
        server.register_producer(Noting::idle(&noted), ProducerKind::Push)?;
        server.shutdown_write();
        server.write(b"last words")?;
        client.write_all(b"heard").await?;
        log.until(|state| state.received == b"heard").await;
        assert_eq!(log.count("write_finished"), 0);
        server.unregister_producer();
        assert_eq!(read_to_end(&mut client).await?, b"last words");
        assert_eq!(log.count("write_finished"), 1);
        Ok(())
    });
}

#[test]
fn abort_from_inside_resume_disconnects_without_reentrancy_and_stops_once() {
    on_every_driver(async |env| {
        let (log, _client) = pair(&env, |_, _| None).await?;
        let server = log.transport().await;
        let told = log.clone();
        let producer = Noting::new(&log, move |consumer| {
            consumer.abort();
            assert_eq!(told.count("disconnected") + told.count("stop"), 0, "nothing re-enters");
            Ok(())
        });
        server.register_producer(producer, ProducerKind::Pull)?;
        assert_eq!(log.count("disconnected"), 0);
        assert_eq!(log.ended().await, "Aborted");
        let seen = log.seen();
        assert_eq!(seen, ["connected", "resume", "stop", "gone", "disconnected", "dropped"]);
        Ok(())
    });
}

#[test]
fn a_failing_producer_costs_its_connection_alone_and_is_dropped() {
    on_every_driver(async |env| {
        let echo = echo_server(&env)?;
        for panics in [false, true] {
            let (log, mut client) = pair(&env, |_, _| None).await?;
            let server = log.transport().await;
            let noted = Log::new();
            let producer = Noting::new(&noted, move |_| {
                assert!(!panics, "on purpose");
                Err("no more paper".into())
            });
            server.register_producer(producer, ProducerKind::Pull)?;
            read_to_end(&mut client).await?;
            drop(client);
            let expected = if panics { "Panicked(on purpose)" } else { "Protocol(no more paper)" };
            assert_eq!(log.ended().await, expected);
            assert_eq!([noted.count("resume"), noted.count("gone")], [1, 1]);
            round_trip(&mut TcpStream::connect(echo).await?, b"still here").await?;
        }
        Ok(())
    });
}

#[test]
fn two_connections_joined_as_each_others_producers_hold_each_other_back() {
    on_every_driver_with(2, small_marks(), async |env| {
        // client -> [front | back] -> sink, where the sink does not read at first.
        let (front_log, back_log) = (Log::new(), Log::new());
        let onward = Rc::<RefCell<Option<Transport>>>::default();
        let to_back = Rc::clone(&onward);
        let front = listen(&env, &front_log, move |call, transport| match call {
            Call::Connected => {
                transport.pause_reading();
                Some(Ok(()))
            }
            Call::Data(input) => {
                let back = to_back.borrow().clone().expect("set before reading");
                Some(back.write(input.take()).map(drop).map_err(Into::into))
            }
            Call::ReadFinished => {
                to_back.borrow().as_ref().expect("set before reading").unregister_producer();
                to_back.borrow().as_ref().expect("set before reading").close();
                None
            }
            _ => None,
        })?;
        let back = listen(&env, &back_log, |_, _| None)?;
        let mut sink = TcpStream::connect(back.local_addr()).await?;
        let mut client = TcpStream::connect(front.local_addr()).await?;
        let (source, target) = (front_log.transport().await, back_log.transport().await);
        *onward.borrow_mut() = Some(target.clone());
        target.register_producer(source.clone(), ProducerKind::Push)?;
        source.resume_reading();

        let hold = sink.transport().hold_reading();
        let bytes = Rc::new(pattern(megabytes(&env, 20)));
        let sent = Rc::clone(&bytes);
        let writes = env.shard().spawn(async move {
            client.write_all(&sent).await?;
            client.shutdown_write();
            read_to_end(&mut client).await
        });
        back_log.saw("paused").await;
        let_others_go_on(&env).await?;
        assert!(target.buffered() < 200_000, "held back: {}", target.buffered());
        drop(hold);
        assert_same_bytes(&read_to_end(&mut sink).await?, &bytes);
        writes.await??;
        onward.borrow_mut().take();
        Ok(())
    });
}

#[test]
fn copying_both_ways_keeps_every_byte_and_passes_each_end_on() {
    on_every_driver(async |env| {
        let echo = echo_server(&env)?;
        let proxy = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream| {
            let mut upstream = TcpStream::connect(echo).await?;
            let (there, back) = copy_bidirectional(&mut stream, &mut upstream).await?;
            assert_eq!(there, back);
            Ok(())
        })?;
        let bytes = Rc::new(pattern(megabytes(&env, 4)));
        let client = TcpStream::connect(proxy.local_addr()).await?;
        let (mut client, sent) = (client, Rc::clone(&bytes));
        // One task writes all before it reads: more than fits in between must not be needed.
        let mut read = Vec::new();
        for piece in sent.chunks(30_000) {
            client.write_all(piece).await?;
            let mut answer = vec![0; piece.len()];
            client.read_exact(&mut answer).await?;
            read.extend_from_slice(&answer);
        }
        client.shutdown_write();
        assert!(read_to_end(&mut client).await?.is_empty());
        assert_same_bytes(&read, &bytes);
        Ok(())
    });
}

#[test]
fn copy_holds_its_source_back_while_the_target_does_not_take() {
    on_every_driver(async |env| {
        // Through the middle: a copier between two pairs.
        let (end_log, middle_out) = pair(&env, |_, _| None).await?;
        let end = end_log.transport().await;
        end.pause_reading();
        let (feed_log, middle_in) = pair(&env, |_, _| None).await?;
        let feed = feed_log.transport().await;
        let copier = env.shard().spawn(async move {
            let (mut from, mut to) = (middle_in, middle_out);
            let copied = copy(&mut from, &mut to).await;
            drop(to);
            copied
        });
        let mut fed = 0;
        while feed.buffered() < 300_000 {
            fed += 5000;
            feed.write(&[7; 5000])?;
            shardwise::yield_now().await;
            assert!(fed < 100_000_000, "the copier takes everything");
        }
        assert!(end_log.received().is_empty());
        end.resume_reading();
        feed.close();
        assert_eq!(copier.await??, fed as u64);
        end_log.until(|state| state.received.len() == fed).await;
        Ok(())
    });
}

/// Two connections of ours, and the far ends of both.
async fn two_pairs(env: &Env) -> Result<([TcpStream; 2], [TcpStream; 2])> {
    let far: Rc<RefCell<Vec<TcpStream>>> = Rc::default();
    let accepted = Rc::clone(&far);
    let listener = env.shard().serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
        accepted.borrow_mut().push(stream);
        Ok(())
    })?;
    let near =
        [TcpStream::connect(listener.local_addr()).await?, TcpStream::connect(listener.local_addr()).await?];
    while far.borrow().len() < 2 {
        let_others_go_on(env).await?;
    }
    listener.close().await;
    let mut ends = far.take();
    if ends[0].peer_addr()? != near[0].local_addr()? {
        ends.reverse();
    }
    let [first, second] = <[TcpStream; 2]>::try_from(ends).expect("two were accepted");
    Ok((near, [first, second]))
}

#[test]
fn copy_tells_that_its_target_broke_while_its_source_is_silent() {
    on_every_driver_with(1, Config::default(), async |env| {
        let ([mut from, mut to], [_silent, far]) = two_pairs(&env).await?;
        let copying = env.shard().spawn(async move { copy(&mut from, &mut to).await });
        let_others_go_on(&env).await?;
        far.abort();
        assert!(copying.await?.is_err());
        Ok(())
    });
}

#[test]
fn copying_both_ways_tells_a_reset_that_follows_the_end_of_that_sides_input() {
    on_every_driver_with(1, Config::default(), async |env| {
        let ([mut first, mut second], [mut silent, mut far]) = two_pairs(&env).await?;
        let copying = env.shard().spawn(async move { copy_bidirectional(&mut first, &mut second).await });
        far.shutdown_write();
        assert!(silent.read_chunk().await?.is_none(), "the end was passed on");
        far.abort();
        assert!(copying.await?.is_err());
        Ok(())
    });
}
