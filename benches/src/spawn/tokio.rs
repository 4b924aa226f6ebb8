//! tokio's two ways on one thread.

use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::LocalSet;

use crate::Result;
use crate::machine::thread_cpu_time;

pub(super) fn spawn(tasks: usize) -> Result<f64> {
    let runtime = Builder::new_current_thread().build()?;
    // In a task of its own, as users' code is: a woken `block_on` future is polled less often than tasks.
    runtime.block_on(async move {
        tokio::spawn(async move {
            one_after_the_other(tasks / 10, || tokio::spawn(async {})).await?;
            one_after_the_other(tasks, || tokio::spawn(async {})).await
        })
        .await?
    })
}

pub(super) fn spawn_local(tasks: usize) -> Result<f64> {
    let runtime = Builder::new_current_thread().build()?;
    LocalSet::new().block_on(&runtime, async move {
        tokio::task::spawn_local(async move {
            one_after_the_other(tasks / 10, || tokio::task::spawn_local(async {})).await?;
            one_after_the_other(tasks, || tokio::task::spawn_local(async {})).await
        })
        .await?
    })
}

async fn one_after_the_other(tasks: usize, spawn: impl Fn() -> tokio::task::JoinHandle<()>) -> Result<f64> {
    let before: Duration = thread_cpu_time();
    for _ in 0..tasks {
        spawn().await?;
    }
    Ok((thread_cpu_time() - before).as_nanos() as f64 / tasks as f64)
}
