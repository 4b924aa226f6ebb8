//! One half finished: what the other may still do, and when both are.

use std::time::Duration;

use crate::common::{Call, assert_same_bytes, let_others_go_on, pair, pattern, read_to_end};
use shardwise::WriteError;
use shardwise::testing::on_every_driver;

#[test]
fn after_the_peers_fin_we_may_still_answer() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| match call {
            Call::ReadFinished => {
                // Later, from a timer, as a slow answer would come.
                let later = transport.clone();
                transport.shard().call_later(Duration::from_millis(2), move |_| {
                    later.write(&pattern(300_000)).unwrap();
                    later.close();
                });
                Some(Ok(()))
            }
            _ => None,
        })
        .await?;
        client.write_all(b"a question").await?;
        client.shutdown_write();
        assert!(client.write_all(b"more").await.is_err(), "written after FIN");
        assert_same_bytes(&read_to_end(&mut client).await?, &pattern(300_000));
        assert_eq!(log.ended().await, "PeerFinished");
        assert_eq!(log.received(), b"a question");
        assert_eq!(log.seen(), ["connected", "data", "read_finished", "disconnected", "dropped"]);
        Ok(())
    });
}

#[test]
fn after_our_fin_we_still_receive() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| match call {
            Call::Connected => {
                transport.write(b"all I have").unwrap();
                transport.shutdown_write();
                transport.shutdown_write();
                assert_eq!(transport.write(b"more"), Err(WriteError::Closed));
                Some(Ok(()))
            }
            _ => None,
        })
        .await?;
        assert_eq!(read_to_end(&mut client).await?, b"all I have");
        log.saw("write_finished").await;
        client.write_all(&pattern(1024 * 1024)).await?;
        client.flush().await?;
        drop(client);
        assert_eq!(log.ended().await, "PeerFinished");
        assert_same_bytes(&log.received(), &pattern(1024 * 1024));
        assert_eq!(log.count("write_finished"), 1);
        assert_eq!(log.count("read_finished"), 1);
        Ok(())
    });
}

#[test]
fn a_connection_with_both_halves_finished_ends_by_itself_in_either_order() {
    on_every_driver(async |env| {
        for we_finish_first in [true, false] {
            let (log, mut client) = pair(&env, move |call, transport| match call {
                Call::Connected if we_finish_first => {
                    transport.shutdown_write();
                    Some(Ok(()))
                }
                Call::ReadFinished => {
                    if !we_finish_first {
                        transport.shutdown_write();
                    }
                    Some(Ok(()))
                }
                _ => None,
            })
            .await?;
            if we_finish_first {
                assert!(read_to_end(&mut client).await?.is_empty());
            }
            client.shutdown_write();
            assert_eq!(log.ended().await, "PeerFinished");
            assert_eq!((log.count("read_finished"), log.count("write_finished")), (1, 1));
            assert!(read_to_end(&mut client).await?.is_empty());
        }
        Ok(())
    });
}

#[test]
fn close_from_write_finished_is_a_clean_end() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |call, transport| match call {
            Call::Connected => {
                transport.shutdown_write();
                Some(Ok(()))
            }
            Call::WriteFinished => {
                transport.close();
                Some(Ok(()))
            }
            _ => None,
        })
        .await?;
        assert!(read_to_end(&mut client).await?.is_empty());
        assert_eq!(log.ended().await, "Closed");
        Ok(())
    });
}

#[test]
fn shutting_the_write_half_of_a_connection_the_peer_has_reset_passes_silently() {
    on_every_driver(async |env| {
        let (log, client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        client.abort();
        assert_eq!(log.ended().await, "Os(ConnectionReset)");
        transport.shutdown_write();
        let_others_go_on(&env).await?;
        assert_eq!(log.count("write_finished"), 0);
        Ok(())
    });
}
