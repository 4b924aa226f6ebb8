//! Tests over every driver: the same body on a real kernel and in a simulation, with a look for leaks at the end.
//!
//! ```
//! use shardwise::testing::on_every_driver;
//! use shardwise::{Result, TcpStream};
//!
//! on_every_driver(async |env| {
//!     let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
//!         while let Some(chunk) = stream.read_chunk().await? {
//!             stream.write_all(&chunk).await?;
//!         }
//!         Ok(())
//!     })?;
//!     let mut client = TcpStream::connect(listener.local_addr()).await?;
//!     client.write_all(b"hello").await?;
//!     let mut answer = [0; 5];
//!     client.read_exact(&mut answer).await?;
//!     assert_eq!(&answer, b"hello");
//!     Ok(())
//! });
//! ```

mod every_driver;
mod names;
mod simulation;

pub use every_driver::{Env, on_every_driver, on_every_driver_with};
pub use names::Names;
pub use simulation::Simulation;
