//! Connections that are not what a listener behind a proxy expects: each ends alone, and says precisely why.

use std::time::Duration;

use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{Config, IpNetwork, Shard, TcpStream};

use crate::common::{Log, read_to_end};
use crate::headers::{headers, malformed};
use crate::proxied::listen_with;
use crate::{at, server};

fn refused(env: &Env) -> u64 {
    env.handle().report().iter().map(|report| report.proxy_headers_refused).sum()
}

#[test]
fn a_malformed_header_ends_its_connection_alone_and_no_application_sees_it() {
    on_every_driver(async |env| {
        let log = Log::new();
        let (listener, told) = listen_with(&env, &server("haproxy:127.0.0.1:0")?, &log, |_, _| None)?;
        let mut other = TcpStream::connect(at(&listener)).await?;
        other.write_all(&headers()[0]).await?;
        log.saw("connected").await;
        for (number, (bytes, _)) in malformed().into_iter().enumerate() {
            for size in [1, 1000] {
                let mut stream = TcpStream::connect(at(&listener)).await?;
                for piece in bytes.chunks(size) {
                    // It may have ended before all of it is out.
                    if stream.write_all(piece).await.is_err() {
                        break;
                    }
                    let _ = stream.flush().await;
                }
                let answer = read_to_end(&mut stream).await.unwrap_or_default();
                assert!(answer.is_empty(), "number {number}: {answer:?}");
            }
        }
        assert_eq!(refused(&env), 2 * malformed().len() as u64);
        other.write_all(b"still here").await?;
        log.until(|state| state.received == b"still here").await;
        assert_eq!(told.borrow().len(), 1);
        drop(other);
        log.ended().await;
        Ok(())
    });
}

#[test]
fn a_header_that_takes_too_long_ends_the_connection_however_it_trickles() {
    let mut config = Config::default();
    config.proxy_header_timeout = Duration::from_millis(120);
    on_every_driver_with(2, config, async |env| {
        let log = Log::new();
        let server = server("haproxy:127.0.0.1:0")?;
        for (server, least) in
            [(server.clone(), 120), (server.proxy_header_timeout(Duration::from_millis(30)), 30)]
        {
            let (listener, told) = listen_with(&env, &server, &log, |_, _| None)?;
            let began = env.shard().now();
            let mut silent = TcpStream::connect(at(&listener)).await?;
            let mut trickles = TcpStream::connect(at(&listener)).await?;
            let task = env.shard().spawn(async move {
                for byte in headers()[0].iter().cycle().take(20) {
                    if trickles.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                    Shard::current().sleep(Duration::from_millis(10)).await;
                }
                read_to_end(&mut trickles).await.unwrap_or_default()
            });
            assert_eq!(read_to_end(&mut silent).await.unwrap_or_default(), b"");
            let took = env.shard().now() - began;
            assert!(took >= Duration::from_millis(least), "{took:?}");
            assert_eq!(task.await?, b"");
            assert!(told.borrow().is_empty());
            listener.close().await;
        }
        assert_eq!(refused(&env), 4);
        Ok(())
    });
}

#[test]
fn the_time_for_a_header_does_not_count_any_more_once_it_has_come() {
    let mut config = Config::default();
    config.proxy_header_timeout = Duration::from_millis(50);
    on_every_driver_with(2, config, async |env| {
        let log = Log::new();
        let (listener, _) = listen_with(&env, &server("haproxy:127.0.0.1:0")?, &log, |_, _| None)?;
        let mut stream = TcpStream::connect(at(&listener)).await?;
        stream.write_all(&headers()[0]).await?;
        assert_eq!(log.transport().await.deadline(), None);
        env.shard().sleep(Duration::from_millis(100)).await;
        stream.write_all(b"late").await?;
        log.until(|state| state.received == b"late").await;
        drop(stream);
        log.ended().await;
        Ok(())
    });
}

#[test]
fn a_connection_that_ends_within_its_header_is_nobodys() {
    on_every_driver(async |env| {
        let log = Log::new();
        let (listener, told) = listen_with(&env, &server("haproxy:127.0.0.1:0")?, &log, |_, _| None)?;
        for count in [0, 5] {
            let mut stream = TcpStream::connect(at(&listener)).await?;
            stream.write_all(&headers()[1][..count]).await?;
            stream.shutdown_write();
            assert_eq!(read_to_end(&mut stream).await.unwrap_or_default(), b"");
        }
        assert!(told.borrow().is_empty());
        assert_eq!(refused(&env), 2);
        Ok(())
    });
}

#[test]
fn only_proxies_that_are_trusted_are_believed() {
    on_every_driver(async |env| {
        let networks =
            |text: &[&str]| -> Vec<IpNetwork> { text.iter().map(|text| text.parse().unwrap()).collect() };
        let server = server("haproxy:127.0.0.1:0")?;
        for (trusted, believed) in [
            (networks(&["127.0.0.0/8"]), true),
            (networks(&["10.0.0.0/8", "127.0.0.1"]), true),
            (networks(&["10.0.0.0/8", "::1"]), false),
            (networks(&[]), false),
        ] {
            let log = Log::new();
            let server = server.clone().trust_proxies(trusted);
            let (listener, told) = listen_with(&env, &server, &log, |_, _| None)?;
            let mut stream = TcpStream::connect(at(&listener)).await?;
            let _ = stream.write_all(&headers()[0]).await;
            if believed {
                log.saw("connected").await;
                drop(stream);
                log.ended().await;
            } else {
                assert_eq!(read_to_end(&mut stream).await.unwrap_or_default(), b"");
                assert!(told.borrow().is_empty());
            }
        }
        assert_eq!(refused(&env), 2);
        Ok(())
    });
}
