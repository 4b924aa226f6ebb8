//! `Shard::spawn`, on the only shard.

use std::sync::mpsc;

use ::shardwise::{Runtime, Shard, ShardId};

use crate::Result;
use crate::machine::thread_cpu_time;

/// The calling thread is pinned, so the shard is placed on the same CPU; this thread only waits.
pub(super) fn spawn(tasks: usize) -> Result<f64> {
    let running = Runtime::new().shards(1).start(async |_: Shard| Ok(()))?;
    let (answer, answered) = mpsc::channel();
    let asked = running.handle().call_from_thread(ShardId::new(0), move |shard: &Shard| {
        let spawning = shard.clone();
        drop(shard.spawn(async move {
            let result = async {
                one_after_the_other(&spawning, tasks / 10).await?;
                one_after_the_other(&spawning, tasks).await
            };
            answer.send(result.await).expect("the measuring thread waits");
        }));
    });
    asked.map_err(|_| "the shard has stopped")?;
    answered.recv()?
}

async fn one_after_the_other(shard: &Shard, tasks: usize) -> Result<f64> {
    let before = thread_cpu_time();
    for _ in 0..tasks {
        shard.spawn(async {}).await?;
    }
    Ok((thread_cpu_time() - before).as_nanos() as f64 / tasks as f64)
}
