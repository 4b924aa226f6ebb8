//! Many connections, and many short ones.

use crate::common::{Echo, Log, pattern, round_trip};
use shardwise::testing::on_every_driver;
use shardwise::{Input, Protocol, Result, TcpStream, Transport};

#[test]
fn data_and_fin_in_one_go_are_both_delivered() {
    on_every_driver(async |env| {
        let rounds = if env.is_simulated() { 60 } else { 1000 };
        let log = Log::new();
        let listener = {
            let log = log.clone();
            env.shard().listen_tcp("127.0.0.1:0", move || Sink { log: log.clone(), received: 0 })?
        };
        for round in 1..=rounds {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.write_all(&[8; 20_000]).await?;
            drop(client);
            log.until(|state| state.seen.len() == round).await;
        }
        assert!(log.seen().iter().all(|name| *name == "whole"), "{:?}", log.seen());
        Ok(())
    });
}

/// Says whether all of 20,000 bytes have come when the peer finishes.
struct Sink {
    log: Log,
    received: usize,
}

impl Protocol for Sink {
    fn data_received(&mut self, _transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        self.received += input.take().len();
        Ok(())
    }

    fn disconnected(&mut self, reason: shardwise::CloseReason) {
        let whole = self.received == 20_000 && matches!(reason, shardwise::CloseReason::PeerFinished);
        self.log.note(if whole { "whole" } else { "cut" });
    }
}

#[test]
fn an_echo_of_everything_at_once_survives_two_hundred_connections() {
    on_every_driver(async |env| {
        let addr = env.shard().listen_tcp("127.0.0.1:0", || Echo)?.local_addr();
        let clients: Vec<_> = (0..200)
            .map(|number: usize| {
                env.shard().spawn(async move {
                    let mut stream = TcpStream::connect(addr).await?;
                    for round in 0..3 {
                        round_trip(&mut stream, &pattern(1 + (number * 97 + round * 13) % 3000)).await?;
                    }
                    if number.is_multiple_of(3) {
                        stream.abort();
                    }
                    Result::<()>::Ok(())
                })
            })
            .collect();
        for client in clients {
            client.await??;
        }
        Ok(())
    });
}
