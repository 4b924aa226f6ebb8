//! Ciphertext that the kernel does not take at once: kept in order, counted, and not for ever.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::common::{Call, Log, assert_same_bytes, let_others_go_on, pattern, read_to_end};
use crate::tls_kit::Authority;
use crate::{listen, pair};
use shardwise::testing::{on_every_driver, on_every_driver_with};
use shardwise::{Config, Flow, TcpStream, WriteError};

/// Fault 54. Sizes and pace come from the seed: small writes that are staged, long ones that are sealed straight, from a
/// task and from callbacks, to a reader that now and then stops.
#[test]
fn whatever_the_sizes_and_the_pace_all_sealed_bytes_arrive_in_order() {
    on_every_driver(async |env| {
        let mut random = Random(env.seed() | 1);
        let written = Rc::new(Cell::new(0));
        let (counted, mut in_callback) = (Rc::clone(&written), Random(env.seed() | 1));
        let all = Rc::new(pattern(4_000_000));
        let source = Rc::clone(&all);
        let (log, mut client) = pair(&env, move |call, transport| {
            let Call::Data(input) = call else { return None };
            input.take();
            for _ in 0..in_callback.below(6) {
                let begin = counted.get();
                let end = begin + in_callback.size();
                match transport.write(&source[begin..end]) {
                    Ok(_) => counted.set(end),
                    Err(error) => assert_eq!(error, WriteError::Full),
                }
            }
            Some(Ok(()))
        })
        .await?;
        let transport = log.transport().await;
        let mut received = Vec::new();
        for _ in 0..60 {
            for _ in 0..random.below(5) {
                let (begin, high) = (written.get(), Config::default().watermarks.high_bytes);
                let end = begin + random.size();
                match transport.write(&all[begin..end]) {
                    Ok(flow) => {
                        written.set(end);
                        assert_eq!(flow == Flow::AboveHigh, transport.buffered() > high);
                    }
                    Err(error) => {
                        assert_eq!(error, WriteError::Full);
                        assert!(
                            transport.buffered() + (end - begin) > Config::default().watermarks.cap_bytes
                        );
                    }
                }
            }
            match random.below(3) {
                0 => client.write_all(b"more").await?,
                1 => shardwise::yield_now().await,
                _ => {}
            }
            while received.len() < written.get() && random.below(4) > 0 {
                let chunk = client.read_chunk().await?.expect("it goes on");
                received.extend_from_slice(&chunk);
            }
        }
        transport.close();
        received.extend_from_slice(&read_to_end(&mut client).await?);
        assert_same_bytes(&received, &all[..written.get()]);
        Ok(())
    });
}

/// What draws sizes; the standard library has no random numbers.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % limit
    }

    fn size(&mut self) -> usize {
        match self.below(4) {
            0 => self.below(100),
            1 => self.below(9000),
            2 => self.below(70_000),
            _ => 16 * 1024,
        }
    }
}

#[test]
fn what_waits_counts_as_it_will_be_sent() {
    on_every_driver(async |env| {
        let (log, mut client) = pair(&env, |_, _| None).await?;
        let transport = log.transport().await;
        let hold = client.transport().hold_reading();
        // Until the kernel takes no more.
        let mut written = 0;
        while transport.buffered() == 0 {
            transport.write(&pattern(16 * 1024))?;
            written += 16 * 1024;
            let_others_go_on(&env).await?;
        }
        let before = transport.buffered();
        for _ in 0..100 {
            transport.write(b"x")?;
            // To the end of the turn, where it is sealed.
            shardwise::yield_now().await;
        }
        let_others_go_on(&env).await?;
        // A header, a byte, its kind and a tag (RFC 8446 section 5.2); a few may share a turn, and a record.
        // A real kernel may find room for more meanwhile.
        if env.is_simulated() {
            let waiting = transport.buffered() - before;
            assert!((90 * 23..=100 * 23).contains(&waiting), "{waiting}");
        }
        transport.close();
        drop(hold);
        assert_eq!(read_to_end(&mut client).await?.len(), written + 100);
        Ok(())
    });
}

#[test]
fn a_peer_that_reads_nothing_is_not_waited_for_for_ever_by_what_a_task_wrote() {
    let mut config = Config::default();
    config.write_timeout = Duration::from_millis(50);
    config.watermarks.cap_bytes = 64 * 1024 * 1024;
    config.watermarks.high_bytes = 64 * 1024 * 1024 - 1;
    config.watermarks.low_bytes = 1;
    on_every_driver_with(2, config, async |env| {
        let (server, tls) = Authority::new().both();
        let log = Log::new();
        let listener = listen(&env, &server, &log, |_, _| None)?;
        let client = TcpStream::connect_tls(listener.local_addr(), &tls, "localhost").await?;
        let hold = client.transport().hold_reading();
        let transport = log.transport().await;
        // Not above the high watermark, so that nothing else makes the shard look at it again.
        while transport.buffered() == 0 && transport.is_open() {
            transport.write(&pattern(200_000))?;
            let_others_go_on(&env).await?;
        }
        assert_eq!(log.ended().await, "WriteStalled");
        drop((hold, client));
        Ok(())
    });
}
