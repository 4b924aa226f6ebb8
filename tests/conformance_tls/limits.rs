//! Limits: handshakes at a time, and what a peer may send before it has a name.

use std::cell::Cell;
use std::rc::Rc;

use crate::common::{Log, read_to_end, round_trip};
use crate::listen;
use crate::tls_kit::Authority;
use shardwise::testing::{on_every_driver, on_every_driver_with};
use shardwise::{Config, TcpStream};

#[test]
fn handshakes_beyond_the_limit_wait_for_their_turn_and_all_are_served() {
    let mut config = Config::default();
    config.handshakes_max = 2;
    on_every_driver_with(2, config, async |env| {
        let (server, tls) = Authority::new().both();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
            let rest = read_to_end(&mut stream).await?;
            stream.write_all(&rest).await?;
            Ok(())
        })?;
        let addr = listener.local_addr();
        // Silent ones cost nothing, and take no place.
        let mut silent = Vec::new();
        for _ in 0..5 {
            silent.push(TcpStream::connect(addr).await?);
        }
        let done = Log::new();
        for client in 0..20 {
            let (tls, done) = (tls.clone(), done.clone());
            drop(env.shard().spawn(async move {
                let mut stream = TcpStream::connect_tls(addr, &tls, "localhost").await.unwrap();
                stream.write_all(b"hello").await.unwrap();
                stream.shutdown_write();
                assert_eq!(read_to_end(&mut stream).await.unwrap(), b"hello", "{client}");
                done.note("served");
            }));
        }
        done.until(|state| state.seen.len() == 20).await;
        Ok(())
    });
}

/// Fault 48, without a clock: with no time for handshakes each turn goes one step on with one of them, so what counts is how
/// many were completed while a connection that stands waited for its answer.
#[test]
fn a_connection_that_stands_waits_for_a_few_handshakes_at_most_in_the_middle_of_a_flood() {
    const FLOOD: usize = 60;
    let mut config = Config::default();
    config.handshake_time_per_turn = std::time::Duration::ZERO;
    on_every_driver_with(1, config, async |env| {
        let (server, tls) = Authority::new().both();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        })?;
        let addr = listener.local_addr();
        let mut canary = TcpStream::connect_tls(addr, &tls, "localhost").await?;
        let (fresh, refused) = (Authority::new().client(), Rc::new(Cell::new(0)));
        for _ in 0..FLOOD {
            let (tls, refused) = (fresh.clone(), Rc::clone(&refused));
            drop(env.shard().spawn(async move {
                // They do not trust the server: the handshake costs all the same.
                assert!(TcpStream::connect_tls(addr, &tls, "localhost").await.is_err());
                refused.set(refused.get() + 1);
            }));
        }
        let turns = || env.handle().report()[0].turns;
        let (mut waits, mut before) = (Vec::new(), (0, turns()));
        while refused.get() < FLOOD {
            round_trip(&mut canary, b"ping").await?;
            let now = (refused.get(), turns());
            // Each handshake takes more than one step, and no turn makes more than one.
            assert!((now.0 - before.0) as u64 <= now.1 - before.1, "{before:?} {now:?}");
            waits.push(now.0 - before.0);
            before = now;
        }
        waits.sort_unstable();
        // There and back is a few turns; in the simulation the flood goes on while the ping is under way.
        if !env.is_simulated() {
            let p99 = waits[waits.len() * 99 / 100];
            assert!(p99 <= 8, "a ping waited for {p99} handshakes: {waits:?}");
            assert!(waits.len() >= FLOOD / 8, "{waits:?}");
        }
        Ok(())
    });
}

#[test]
fn garbage_of_any_kind_ends_the_connection_and_nothing_else() {
    on_every_driver(async |env| {
        let (server, tls) = Authority::new().both();
        let hello = |rest: &[u8]| [&[22, 3, 1, 0, rest.len() as u8][..], rest].concat();
        let long = [&[22, 3, 3, 0xff, 0xff][..], &[0; 70_000]].concat();
        let empty_records = [23, 3, 3, 0, 0].repeat(5000);
        let empty_handshake = [22, 3, 3, 0, 0].repeat(5000);
        let changes = [20, 3, 3, 0, 1, 1].repeat(5000);
        let tiny = [22, 3, 3, 0, 1, 1].repeat(100_000);
        let cases: &[&[u8]] = &[
            b"\0\0\0\0\0\0\0\0",
            b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", // SSLv2
            &[21, 3, 3, 0, 2, 1, 0],                         // close_notify
            &[21, 3, 3, 0, 2, 2, 80],                        // internal_error
            &[23, 3, 3, 0, 5, 1, 2, 3, 4, 5],                // data
            &hello(&[1, 0, 0, 2, 3, 3]),
            &hello(&[20, 0, 0, 0]),
            &long,
            &empty_records,
            &empty_handshake,
            &changes,
            &tiny,
        ];
        for (number, case) in cases.iter().enumerate() {
            let log = Log::new();
            let listener = listen(&env, &server, &log, |_, _| None)?;
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            let _ = client.write_all(case).await;
            client.shutdown_write();
            let _ = read_to_end(&mut client).await;
            drop(client);
            let reason = log.ended().await;
            assert!(reason.starts_with("Tls(") || reason.starts_with("Os("), "case {number}: {reason}");
            assert_eq!(log.seen(), ["connected", "disconnected", "dropped"], "case {number}");
            let stream = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
            drop(stream);
        }
        assert_eq!(env.handle().report()[0].panics, 0);
        Ok(())
    });
}
