//! TLS over UNIX sockets: the same machinery, over names.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{Call, Log, Probe, read_to_end, round_trip};
use crate::tls_kit::Authority;
use shardwise::testing::on_every_driver;
use shardwise::{
    ConnectError, DescriptorRefusal, Shard, ShardId, TlsError, UnixConnectOptions, UnixListenOptions,
    UnixStream,
};

/// An abstract name that no other test uses: both drivers know those.
fn unique_name() -> String {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    format!("@shardwise-tls-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))
}

async fn echo(mut stream: UnixStream) -> shardwise::Result<()> {
    while let Some(chunk) = stream.read_chunk().await? {
        stream.write_all(&chunk).await?;
    }
    Ok(())
}

#[test]
fn a_unix_listener_speaks_tls_in_event_style() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let (log, name) = (Log::new(), unique_name());
        let probes = log.clone();
        env.shard().listen_unix_with(&name, &UnixListenOptions::new().tls(&server), move || {
            Probe::new(&probes, |call, transport| {
                let Call::Data(input) = call else { return None };
                transport.write(input.take()).unwrap();
                Some(Ok(()))
            })
        })?;
        let log_of_client = Log::new();
        let probe = log_of_client.clone();
        let options = UnixConnectOptions::new().tls(&tls, "localhost");
        let transport =
            env.shard().connect_unix_with(&name, &options, move || Probe::new(&probe, |_, _| None)).await?;
        assert_eq!(transport.tls_info().expect("it is complete").server_name.as_deref(), Some("localhost"));
        transport.write(b"sealed")?;
        log_of_client.until(|state| state.received == b"sealed").await;
        transport.close();
        assert_eq!(log.ended().await, "PeerFinished");
        assert_eq!(log.seen()[..3], ["connected", "handshake", "data"]);
        assert_eq!(log_of_client.seen()[..2], ["connected", "handshake"]);
        Ok(())
    });
}

#[test]
fn a_unix_listener_speaks_tls_in_async_style_on_every_shard() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let name = unique_name();
        let (at, options) = (name.clone(), UnixListenOptions::new().tls(&server));
        env.handle()
            .call_all(move |shard| {
                shard.serve_unix_with(&at, &options, echo).map(drop).map_err(|e| e.to_string())
            })
            .await
            .into_iter()
            .for_each(|listens| listens.unwrap().unwrap());
        let options = UnixConnectOptions::new().tls(&tls, "localhost");
        for _ in 0..8 {
            let mut stream = UnixStream::connect_unix_with(&name, &options).await?;
            assert!(stream.transport().is_tls());
            round_trip(&mut stream, b"sealed").await?;
            round_trip(&mut stream, &[7; 100_000]).await?;
            stream.shutdown_write();
            assert_eq!(read_to_end(&mut stream).await?, b"", "close_notify comes back");
        }
        Ok(())
    });
}

#[test]
fn a_unix_connection_is_upgraded_in_place_and_moves_to_another_shard() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let name = unique_name();
        env.shard().serve_unix(&name, async move |mut stream| {
            stream.write_all(b"ready").await?;
            stream.start_tls(&server).await?;
            echo(stream).await
        })?;
        let mut stream = UnixStream::connect_unix(&name).await?;
        stream.read_exact(&mut [0; 5]).await?;
        stream.start_tls((&tls, "localhost")).await?;
        round_trip(&mut stream, b"here").await?;
        let detached = stream.detach().await?;
        let there = env.handle().call_async(ShardId::new(1), async move |shard: Shard| {
            let mut stream = detached.attach(&shard)?;
            assert!(stream.transport().is_tls());
            round_trip(&mut stream, b"there").await
        });
        there.await??;
        Ok(())
    });
}

#[test]
fn a_unix_server_that_is_not_who_it_should_be_is_refused() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let name = unique_name();
        env.shard().serve_unix_with(&name, &UnixListenOptions::new().tls(&server), echo)?;
        let options = UnixConnectOptions::new().tls(&tls, "elsewhere.test");
        let error = UnixStream::connect_unix_with(&name, &options).await.unwrap_err();
        let ConnectError::Tls { target, source } = &error else { panic!("{error:?}") };
        assert_eq!(*target, format!("unix:{name}"));
        assert!(matches!(source, TlsError::Certificate(_)), "{source:?}");
        Ok(())
    });
}

#[test]
fn a_connection_that_speaks_tls_passes_no_descriptors() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let name = unique_name();
        env.shard().serve_unix_with(&name, &UnixListenOptions::new().tls(&server), echo)?;
        let options = UnixConnectOptions::new().tls(&tls, "localhost");
        let mut stream = UnixStream::connect_unix_with(&name, &options).await?;
        let (_, writer) = std::io::pipe()?;
        let refused = stream.transport().send_descriptor(writer.into()).unwrap_err();
        assert_eq!(refused.reason(), DescriptorRefusal::Tls);
        round_trip(&mut stream, b"nothing is wrong").await?;
        Ok(())
    });
}
