//! Bugs that were found and fixed, each with its story. The name says what holds since then.

use std::time::Duration;

use shardwise::testing::on_every_driver;
use shardwise::{Input, Protocol, Result, TcpStream, Transport};

/// Answers every line with itself; what it does between two lines is the test's.
struct Lines<F> {
    between: F,
}

impl<F: FnMut(&Transport) + 'static> Protocol for Lines<F> {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        while let Some(end) = input.bytes().iter().position(|byte| *byte == b'\n') {
            transport.write(&input.bytes()[..=end])?;
            input.consume(end + 1);
            (self.between)(transport);
        }
        Ok(())
    }
}

/// A protocol that paused and resumed within one callback was never shown the rest of its input: the pause had
/// made the input run dry, and the resume had found nothing kept yet. The connection hung until the peer sent more.
#[test]
fn a_pause_that_ends_within_its_callback_loses_no_input() {
    type Between = fn(&Transport);
    let pauses: [Between; 2] = [
        |transport| {
            transport.pause_reading();
            transport.resume_reading();
        },
        |transport| drop(transport.hold_reading()),
    ];
    on_every_driver(async move |env| {
        for between in pauses {
            let listener = env.shard().listen_tcp("127.0.0.1:0", move || Lines { between })?;
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.write_all(b"one\ntwo\nthree\n").await?;
            let mut answer = [0; 14];
            env.shard().timeout(Duration::from_secs(20), client.read_exact(&mut answer)).await??;
            assert_eq!(&answer, b"one\ntwo\nthree\n");
        }
        Ok(())
    });
}

/// The driver gave a detached stream's slot away at once, the shard only at the end of the turn: whatever took the
/// driver's slot in between met the old connection in the shard's.
#[test]
fn a_detached_stream_can_be_attached_in_the_same_turn() {
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            for _ in 0..10 {
                let shard = stream.transport().shard().clone();
                stream = stream.detach().await?.attach(&shard)?;
            }
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        })?;
        for _ in 0..3 {
            let mut client = TcpStream::connect(listener.local_addr()).await?;
            client.write_all(b"hello").await?;
            let mut answer = [0; 5];
            env.shard().timeout(Duration::from_secs(20), client.read_exact(&mut answer)).await??;
            assert_eq!(&answer, b"hello");
        }
        Ok(())
    });
}

/// Panics of tasks and of routed calls were counted by the parts that caught them, and reported by nobody.
#[test]
fn every_panic_of_application_code_is_reported() {
    on_every_driver(async |env| {
        let panics = || env.handle().report().iter().map(|report| report.panics).collect::<Vec<_>>();
        assert_eq!(panics(), [0, 0]);
        assert!(env.shard().spawn(async { panic!("a task, as the test wants it") }).await.is_err());
        assert_eq!(panics(), [1, 0]);
        let other = env.handle().shard_ids().nth(1).unwrap();
        let call = env.shard().call(other, |_| panic!("a call, as the test wants it"));
        assert!(call.await.is_err());
        assert_eq!(panics(), [1, 1]);
        let call = env.shard().call_async(other, async |_| panic!("an async call, as the test wants it"));
        assert!(call.await.is_err());
        assert_eq!(panics(), [1, 2]);
        let posted = env.handle().call_from_thread(other, |_| panic!("a post, as the test wants it"));
        assert!(posted.is_ok());
        // Calls to one shard run in the order they were made.
        env.shard().call(other, |_| ()).await?;
        assert_eq!(panics(), [1, 3]);
        Ok(())
    });
}
