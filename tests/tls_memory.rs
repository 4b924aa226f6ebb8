//! What an idle TLS connection costs. A process of its own, since it counts what the whole process allocates.
#![cfg(feature = "tls-aws-lc-rs")]
#![allow(unsafe_code, reason = "a global allocator cannot be written without")]

mod tls_kit;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

use shardwise::{Result, Runtime, Shard, TcpStream};
use tls_kit::Authority;

struct Counting;

static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is passed on unchanged to `System`, which upholds the contract; the count neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size() as isize, Relaxed);
        // SAFETY: the caller's promise about `layout` is the one `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: `block` came from `System`, for every allocation does, with this `layout`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn an_idle_tls_connection_costs_at_most_16_kib() {
    const PAIRS: usize = 200;
    let (server, client) = Authority::new().both();
    let app = async move |shard: Shard| -> Result<()> {
        let server = server.clone();
        let client = client.clone();
        shard.call_when_running(move |shard| {
            let home = shard.clone();
            drop(shard.spawn(async move {
                let listener = home
                    .serve_tls("127.0.0.1:0", &server, async |mut stream: TcpStream| {
                        while let Some(chunk) = stream.read_chunk().await? {
                            stream.write_all(&chunk).await?;
                        }
                        Ok(())
                    })
                    .unwrap();
                let mut streams = Vec::with_capacity(PAIRS);
                let mut before = 0;
                // The first ones pay for what all share.
                for number in 0..PAIRS + 20 {
                    if number == 20 {
                        before = LIVE_BYTES.load(Relaxed);
                    }
                    let mut stream =
                        TcpStream::connect_tls(listener.local_addr(), &client, "localhost").await.unwrap();
                    let mut answer = [0; 1000];
                    stream.write_all(&answer).await.unwrap();
                    stream.read_exact(&mut answer).await.unwrap();
                    streams.push(stream);
                }
                let each = (LIVE_BYTES.load(Relaxed) - before) / (2 * PAIRS as isize);
                println!("{each} bytes for each end");
                drop(streams);
                let _ = home.stop();
                assert!(each <= 16 * 1024, "{each} bytes for each end");
                assert!(each > 500, "{each} bytes: nothing was measured");
            }));
        });
        Ok(())
    };
    let running = Runtime::new().shards(1).pin(false).start(app).unwrap();
    let handle = running.handle();
    running.join().unwrap();
    assert_eq!(handle.report()[0].panics, 0, "see what the task said");
}
