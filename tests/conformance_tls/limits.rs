//! Limits: handshakes at a time, and what a peer may send before it has a name.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::common::{Log, let_others_go_on, read_to_end, round_trip};
use crate::listen;
use crate::tls_kit::Authority;
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{Config, Result, TcpStream, TlsClientConfig};

/// What a client says first.
async fn hello(env: &Env, tls: &TlsClientConfig) -> Result<Vec<u8>> {
    let heard = Log::new();
    let noted = heard.clone();
    let listener = env.shard().serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
        noted.push(&stream.read_chunk().await?.expect("it says something"));
        noted.note("heard");
        Ok(())
    })?;
    assert!(TcpStream::connect_tls(listener.local_addr(), tls, "localhost").await.is_err());
    heard.saw("heard").await;
    Ok(heard.received())
}

#[test]
fn many_handshakes_at_once_have_their_turns_and_all_are_served() {
    let mut config = Config::default();
    config.handshake_time_per_turn = Duration::ZERO;
    on_every_driver_with(2, config, async |env| {
        let (server, tls) = Authority::new().both();
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
            let rest = read_to_end(&mut stream).await?;
            stream.write_all(&rest).await?;
            Ok(())
        })?;
        let addr = listener.local_addr();
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

#[test]
fn clients_that_begin_a_handshake_and_fall_silent_keep_nobody_out() {
    let mut config = Config::default();
    config.handshake_bytes_max = 64 * 1024;
    on_every_driver_with(1, config, async |env| {
        let (server, tls) = Authority::new().both();
        let logs = Rc::new(RefCell::new(Vec::new()));
        let made = Rc::clone(&logs);
        let listener = env.shard().listen_tls("127.0.0.1:0", &server, move || {
            let log = Log::new();
            made.borrow_mut().push(log.clone());
            crate::common::Probe::new(&log, |_, _| None)
        })?;
        let begun = env.shard().now();
        let mut silent = Vec::new();
        // Some with a single byte, others with a good part of a record.
        let part = [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3][..], &[7; 12_000]].concat();
        for beginning in [&part[..1], &part] {
            for _ in 0..20 {
                let mut client = TcpStream::connect(listener.local_addr()).await?;
                client.write_all(beginning).await?;
                client.flush().await?;
                silent.push(client);
            }
        }
        let_others_go_on(&env).await?;
        let mut stream = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        stream.write_all(b"in time").await?;
        assert!(env.shard().now() - begun < Config::default().handshake_timeout / 2, "it had to wait");
        let last = logs.borrow().last().expect("it was accepted").clone();
        last.until(|state| state.received == b"in time").await;
        // No more is kept than may be: those that were silent for longest had to go, the others have not.
        let crowd: Vec<_> = logs.borrow()[..40].to_vec();
        let reasons: Vec<_> = crowd.iter().map(|log| log.look(|state| state.reason.clone())).collect();
        let gone = reasons.iter().flatten().count();
        assert!((15..40).contains(&gone), "{gone} have gone");
        assert!(reasons.iter().flatten().all(|reason| reason == "Tls(TooManyHandshakes)"), "{reasons:?}");
        assert!(reasons[..15].iter().all(Option::is_some) && reasons[39].is_none(), "{reasons:?}");
        Ok(())
    });
}

/// On a real kernel alone: simulated time stands still while a shard works.
#[test]
fn the_time_that_a_client_waits_for_us_is_not_its_own() {
    let mut config = Config::default();
    config.handshake_timeout = Duration::from_millis(100);
    config.handshake_time_per_turn = Duration::ZERO;
    on_every_driver_with(1, config, async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let (server, tls) = Authority::new().both();
        let hello = hello(&env, &tls).await?;
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |_| Ok(()))?;
        let answered = Log::new();
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(TcpStream::connect(listener.local_addr()).await?);
        }
        let_others_go_on(&env).await?;
        for mut client in clients {
            let (hello, answered) = (hello.clone(), answered.clone());
            drop(env.shard().spawn(async move {
                client.write_all(&hello).await.unwrap();
                let answer = client.read_chunk().await.unwrap();
                answered.note(if answer.is_some() { "answered" } else { "given up" });
            }));
        }
        // One handshake a turn, and every turn takes a while.
        while answered.seen().len() < 20 {
            let until = env.shard().now() + Duration::from_millis(15);
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
            shardwise::yield_now().await;
        }
        assert_eq!(answered.count("answered"), 20);
        Ok(())
    });
}

#[test]
fn connections_that_stand_are_served_in_the_middle_of_a_flood_of_handshakes() {
    let mut config = Config::default();
    config.handshake_time_per_turn = Duration::ZERO;
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
        let served = Rc::new(Cell::new(0));
        let fresh = Authority::new().client();
        for _ in 0..40 {
            let (tls, served) = (fresh.clone(), Rc::clone(&served));
            drop(env.shard().spawn(async move {
                // They do not trust the server: the handshake costs all the same.
                assert!(TcpStream::connect_tls(addr, &tls, "localhost").await.is_err());
                served.set(served.get() + 1);
            }));
        }
        let mut pings = 0;
        while served.get() < 40 {
            round_trip(&mut canary, b"ping").await?;
            pings += 1;
        }
        // In the simulation a handshake takes no time.
        let least = if env.is_simulated() { 1 } else { 5 };
        assert!(pings >= least, "{pings} pings during 40 handshakes");
        Ok(())
    });
}

/// On a real kernel alone: a simulated handshake takes no time.
#[test]
fn handshakes_take_no_longer_than_all_else_whatever_they_may() {
    let mut config = Config::default();
    config.handshake_time_per_turn = Duration::from_secs(10);
    on_every_driver_with(1, config, async |env| {
        if env.is_simulated() {
            return Ok(());
        }
        let (server, tls) = Authority::new().both();
        let hello = hello(&env, &tls).await?;
        let listener = env.shard().serve_tls("127.0.0.1:0", &server, async |_| Ok(()))?;
        let mut clients = Vec::new();
        for _ in 0..30 {
            clients.push(TcpStream::connect(listener.local_addr()).await?);
        }
        let_others_go_on(&env).await?;
        // All within one turn.
        for client in &mut clients {
            client.write_all(&hello).await?;
        }
        let done = Rc::new(Cell::new(0));
        for mut client in clients {
            let done = Rc::clone(&done);
            drop(env.shard().spawn(async move {
                assert!(client.read_chunk().await.unwrap().is_some());
                done.set(done.get() + 1);
            }));
        }
        let mut turns = 0;
        while done.get() < 30 {
            shardwise::yield_now().await;
            turns += 1;
        }
        assert!(turns >= 10, "30 handshakes in {turns} turns");
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
