//! The async face: reading, dropping, and moving to another shard.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::common::{
    Log, assert_same_bytes, echo_server, let_others_go_on, megabytes, pair, pattern, read_to_end,
};
use shardwise::testing::{on_every_driver, on_every_driver_with};
use shardwise::{Config, DetachedTcpStream, Result, Shard, ShardId, TcpStream};

#[test]
fn a_stream_moves_to_another_shard_with_its_unread_and_unsent_bytes() {
    let mut config = Config::default();
    config.watermarks.cap_bytes = 32 * 1024 * 1024;
    on_every_driver_with(2, config, async |env| {
        let len = megabytes(&env, 16);
        let moves = Log::new();
        let noted = moves.clone();
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            let mut start = [0; 4];
            stream.read_exact(&mut start).await?;
            assert_eq!(&start, b"stay");
            stream.transport().write(&pattern(len))?;
            let home = stream.transport().shard().clone();
            // So that bytes lie unread here.
            home.sleep(Duration::from_millis(5)).await;
            assert!(stream.transport().buffered() > 0, "the kernel has taken everything");
            let detached: DetachedTcpStream = stream.detach().await?;
            noted.note("detached");
            let moved = home.call_async(ShardId::new(1), async move |shard: Shard| -> Result<()> {
                let mut stream = detached.attach(&shard)?;
                assert_eq!(stream.transport().shard().id(), ShardId::new(1));
                let mut rest = [0; 5];
                stream.read_exact(&mut rest).await?;
                assert_eq!(&rest, b"moved");
                stream.write_all(b"the end").await?;
                assert!(read_to_end(&mut stream).await?.is_empty());
                Ok(())
            });
            moved.await?
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"staymoved").await?;
        client.flush().await?;
        moves.saw("detached").await;
        let mut received = vec![0; len + 7];
        client.read_exact(&mut received).await?;
        assert_same_bytes(&received[..len], &pattern(len));
        assert_eq!(&received[len..], b"the end");
        client.shutdown_write();
        assert!(read_to_end(&mut client).await?.is_empty());
        Ok(())
    });
}

#[test]
fn a_stream_whose_peer_has_finished_moves_with_that() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            let mut start = [0; 4];
            stream.read_exact(&mut start).await?;
            let home = stream.transport().shard().clone();
            home.sleep(Duration::from_millis(5)).await;
            let detached = stream.detach().await?;
            let moved = home.call_async(ShardId::new(1), async move |shard: Shard| -> Result<()> {
                let mut stream = detached.attach(&shard)?;
                let rest = read_to_end(&mut stream).await?;
                stream.write_all(&rest).await?;
                Ok(())
            });
            moved.await?
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"stayand go").await?;
        client.shutdown_write();
        assert_eq!(read_to_end(&mut client).await?, b"and go");
        Ok(())
    });
}

/// It stayed behind, and a moved connection that said nothing was never closed.
#[test]
fn a_deadline_moves_along_to_another_shard() {
    const AFTER: Duration = Duration::from_millis(20);
    on_every_driver(async |env| {
        let client = TcpStream::connect(echo_server(&env)?).await?;
        client.set_deadline(Some(AFTER));
        let deadline = client.transport().deadline().expect("it was set");
        let detached = client.detach().await?;
        let (kept, ended, kind) = env
            .shard()
            .call_async(ShardId::new(1), async move |shard: Shard| {
                let mut stream = detached.attach(&shard).unwrap();
                let kept = stream.transport().deadline();
                let end = shard.timeout(Duration::from_secs(5), stream.read_chunk()).await;
                (kept, shard.now(), end.expect("it never ends").unwrap_err().kind())
            })
            .await?;
        assert_eq!((kept, kind), (Some(deadline), io::ErrorKind::TimedOut));
        assert!(ended >= deadline, "too early");

        // One that passes on the way counts as well, and one that was removed does not.
        let client = TcpStream::connect(echo_server(&env)?).await?;
        client.set_deadline(Some(Duration::from_millis(1)));
        let detached = client.detach().await?;
        env.shard().sleep(AFTER).await;
        let mut client = detached.attach(env.shard())?;
        assert_eq!(client.read_chunk().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        client = TcpStream::connect(echo_server(&env)?).await?;
        client.set_deadline(Some(AFTER));
        client.set_deadline(None);
        let client = client.detach().await?.attach(env.shard())?;
        assert_eq!(client.transport().deadline(), None);
        Ok(())
    });
}

#[test]
fn a_detached_stream_that_is_dropped_is_closed() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
            drop(stream.detach().await?);
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        assert!(read_to_end(&mut client).await?.is_empty());
        Ok(())
    });
}

#[test]
fn reads_give_what_there_is_and_then_the_end_again_and_again() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            stream.write_all(b"abcdefgh").await?;
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        assert_eq!(client.read(&mut []).await?, 0, "nothing was asked for");
        let mut three = [0; 3];
        client.read_exact(&mut three).await?;
        assert_eq!(&three, b"abc");
        let mut rest = Vec::new();
        loop {
            let mut two = [0; 2];
            let count = client.read(&mut two).await?;
            if count == 0 {
                break;
            }
            rest.extend_from_slice(&two[..count]);
        }
        assert_eq!(rest, b"defgh");
        for _ in 0..3 {
            assert_eq!(client.read(&mut three).await?, 0);
            assert!(client.read_chunk().await?.is_none());
        }
        let error = client.read_exact(&mut three).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        Ok(())
    });
}

#[test]
fn a_read_that_is_dropped_loses_nothing() {
    on_every_driver(async |env| {
        let mut client = TcpStream::connect(echo_server(&env)?).await?;
        let sent = pattern(3000);
        let mut received = Vec::new();
        for piece in sent.chunks(30) {
            client.write_all(piece).await?;
            let mut wanted = piece.len();
            while wanted > 0 {
                let mut buffer = [0; 7];
                let polled = {
                    let mut read = pin!(client.read(&mut buffer));
                    poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await
                };
                if let Poll::Ready(count) = polled {
                    let count = count?;
                    received.extend_from_slice(&buffer[..count]);
                    wanted -= count;
                    continue;
                }
                let chunk = client.read_chunk().await?.expect("the echo goes on");
                received.extend_from_slice(&chunk);
                wanted -= chunk.len();
            }
        }
        assert_same_bytes(&received, &sent);
        Ok(())
    });
}

#[test]
fn bytes_received_before_a_reset_are_read_first() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            stream.write_all(b"first").await?;
            stream.flush().await?;
            let mut go = [0];
            stream.read_exact(&mut go).await?;
            stream.abort();
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        let_others_go_on(&env).await?;
        client.write_all(b"!").await?;
        let_others_go_on(&env).await?;
        let mut first = [0; 5];
        client.read_exact(&mut first).await?;
        assert_eq!(&first, b"first");
        let error = client.read_chunk().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(client.read_chunk().await.is_err(), "it stays broken");
        assert!(client.write_all(b"more").await.is_err());
        assert!(client.flush().await.is_err());
        Ok(())
    });
}

#[test]
fn dropping_a_stream_sends_what_was_written_and_finishes() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let sent = pattern(60_000);
        client.write_all(&sent).await?;
        drop(client);
        assert_eq!(log.ended().await, "PeerFinished");
        assert_same_bytes(&log.received(), &sent);
        Ok(())
    });
}

#[test]
fn a_stream_that_nobody_reads_stops_the_peer() {
    on_every_driver(async |env| {
        let release = Log::new();
        let waits = release.clone();
        let (waits, release_count) = (Rc::new(RefCell::new(Some(waits))), Rc::new(Cell::new(0)));
        let counted = Rc::clone(&release_count);
        let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
            let waits = waits.borrow_mut().take().expect("one connection");
            waits.saw("go").await;
            counted.set(read_to_end(&mut stream).await?.len());
            Ok(())
        })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        let mut written = 0;
        while client.transport().buffered() <= 64 * 1024 {
            written += client.transport().write(&[0; 30_000]).map(|_| 30_000)?;
            shardwise::yield_now().await;
            assert!(written < 100_000_000, "it receives without end");
        }
        release.note("go");
        client.flush().await?;
        client.shutdown_write();
        assert!(read_to_end(&mut client).await?.is_empty());
        assert_eq!(release_count.get(), written);
        Ok(())
    });
}
