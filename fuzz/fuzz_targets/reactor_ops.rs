//! Any sequence of what an application may do to its connections, on the simulated driver: nothing panics but what is
//! told to, no bytes are lost, changed or given to another, and nothing is left open.
//!
//! `cargo +nightly fuzz run reactor_ops`. The seed of the simulation is part of the input, so every finding repeats.

#![no_main]

use std::cell::RefCell;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use shardwise::testing::Simulation;
use shardwise::{
    CloseReason, Config, Flow, Input, Protocol, Result, Shard, TcpStream, Transport, WriteError,
};

#[derive(Debug)]
struct Case {
    seed: u64,
    high_bytes: u16,
    cap_bytes: u16,
    ops: Vec<Op>,
}

impl<'a> Arbitrary<'a> for Case {
    /// All bytes become operations: a derived `Vec` tosses a coin before each one, and is short.
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let (seed, high_bytes, cap_bytes) = (bytes.arbitrary()?, bytes.arbitrary()?, bytes.arbitrary()?);
        let mut ops = Vec::new();
        while !bytes.is_empty() && ops.len() < OPS_MAX {
            ops.push(bytes.arbitrary()?);
        }
        Ok(Case { seed, high_bytes, cap_bytes, ops })
    }
}

const OPS_MAX: usize = 200;

/// What a client does next, with the connection of that number.
#[derive(Arbitrary, Clone, Debug)]
enum Op {
    Connect,
    Send {
        client: u8,
        bytes: u16,
    },
    Read {
        client: u8,
    },
    Finish {
        client: u8,
    },
    Close {
        client: u8,
    },
    Abort {
        client: u8,
    },
    Detach {
        client: u8,
    },
    /// On the server's side of some connection, outside of its own callbacks.
    Server {
        connection: u8,
        act: Act,
    },
    Sleep {
        millis: u8,
    },
    Panic,
    Call,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Act {
    Pause,
    Resume,
    Hold,
    Close,
    Abort,
    Finish,
    Deadline(u8),
}

thread_local! {
    /// The server's sides, in the order they came.
    static SERVED: RefCell<Vec<Transport>> = const { RefCell::new(Vec::new()) };
    static COUNTS: RefCell<(usize, usize)> = const { RefCell::new((0, 0)) };
}

/// Echoes, and checks that the callbacks come as they are promised.
#[derive(Default)]
struct Checked {
    paused: bool,
    ended: bool,
}

impl Protocol for Checked {
    fn connected(&mut self, transport: &Transport) -> Result<()> {
        COUNTS.with_borrow_mut(|counts| counts.0 += 1);
        SERVED.with_borrow_mut(|served| served.push(transport.clone()));
        Ok(())
    }
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        while !input.is_empty() {
            let piece = &input.bytes()[..input.len().min(500)];
            match transport.write(piece) {
                Ok(Flow::Open) => input.consume(piece.len()),
                Ok(Flow::AboveHigh) => {
                    input.consume(piece.len());
                    transport.pause_reading();
                }
                Err(WriteError::Full) if transport.buffered() > 0 => transport.pause_reading(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
    fn write_paused(&mut self, _: &Transport) -> Result<()> {
        assert!(!std::mem::replace(&mut self.paused, true), "paused twice");
        Ok(())
    }
    fn write_resumed(&mut self, transport: &Transport) -> Result<()> {
        assert!(std::mem::take(&mut self.paused), "resumed without a pause");
        transport.resume_reading();
        Ok(())
    }
    fn disconnected(&mut self, reason: CloseReason) {
        assert!(!std::mem::replace(&mut self.ended, true), "told of its end twice");
        assert!(!matches!(reason, CloseReason::Panicked(_)), "{reason}");
        COUNTS.with_borrow_mut(|counts| counts.1 += 1);
    }
}

/// What a client has sent and what came back, which must be the beginning of it.
struct Client {
    stream: TcpStream,
    sent: usize,
    received: usize,
    number: usize,
}

impl Client {
    /// Different on each connection and at each place.
    fn byte(&self, place: usize) -> u8 {
        ((place * 31 + self.number * 7) % 251) as u8
    }

    async fn send(&mut self, shard: &Shard, count: usize) {
        let bytes: Vec<u8> = (self.sent..self.sent + count).map(|place| self.byte(place)).collect();
        self.sent += count;
        // Refused when the server has ended it; stuck when the server reads no more.
        let _ = shard.timeout(Duration::from_millis(20), self.stream.write_all(&bytes)).await;
    }

    async fn read(&mut self, shard: &Shard) {
        let mut buffer = [0; 4096];
        let read = shard.timeout(Duration::from_millis(20), self.stream.read(&mut buffer)).await;
        let Ok(Ok(count)) = read else { return };
        for byte in &buffer[..count] {
            assert_eq!(*byte, self.byte(self.received), "connection {} at {}", self.number, self.received);
            self.received += 1;
        }
        assert!(self.received <= self.sent, "more came back than was sent");
    }
}

fn act_on(transport: &Transport, act: Act) {
    match act {
        Act::Pause => transport.pause_reading(),
        Act::Resume => transport.resume_reading(),
        Act::Hold => drop(transport.hold_reading()),
        Act::Close => transport.close(),
        Act::Abort => transport.abort(),
        Act::Finish => transport.shutdown_write(),
        Act::Deadline(millis) => transport.set_deadline(Some(Duration::from_millis(millis.into()))),
    }
}

async fn perform(shard: &Shard, ops: &[Op]) -> Result<u64> {
    let listener = shard.listen_tcp("127.0.0.1:0", Checked::default)?;
    let mut clients: Vec<Client> = Vec::new();
    let mut panics = 0;
    let other = shard.handle().shard_ids().nth(1).expect("there are two shards");
    for op in ops {
        let pick = |number: u8, len: usize| (len > 0).then(|| number as usize % len.max(1));
        let len = clients.len();
        match *op {
            Op::Connect => {
                if let Ok(stream) = TcpStream::connect(listener.local_addr()).await {
                    clients.push(Client { stream, sent: 0, received: 0, number: clients.len() });
                }
            }
            Op::Send { client, bytes } => {
                if let Some(client) = pick(client, len) {
                    clients[client].send(shard, bytes.into()).await;
                }
            }
            Op::Read { client } => {
                if let Some(client) = pick(client, len) {
                    clients[client].read(shard).await;
                }
            }
            Op::Finish { client } => {
                if let Some(client) = pick(client, len) {
                    clients[client].stream.shutdown_write();
                }
            }
            Op::Close { client } => {
                if let Some(client) = pick(client, len) {
                    clients.swap_remove(client).stream.close();
                }
            }
            Op::Abort { client } => {
                if let Some(client) = pick(client, len) {
                    clients.swap_remove(client).stream.abort();
                }
            }
            Op::Detach { client } => {
                if let Some(client) = pick(client, len) {
                    let Client { stream, sent, received, number } = clients.swap_remove(client);
                    if let Ok(detached) = stream.detach().await {
                        let stream = detached.attach(shard)?;
                        clients.push(Client { stream, sent, received, number });
                    }
                }
            }
            Op::Server { connection, act } => {
                let served = SERVED.with_borrow(|served| {
                    pick(connection, served.len()).map(|number| served[number].clone())
                });
                if let Some(transport) = served {
                    act_on(&transport, act);
                }
            }
            Op::Sleep { millis } => shard.sleep(Duration::from_millis(millis.into())).await,
            Op::Panic => {
                panics += 1;
                assert!(shard.spawn(async { std::panic::resume_unwind(Box::new(())) }).await.is_err());
            }
            Op::Call => assert_eq!(shard.call(other, |shard| shard.id()).await?, other),
        }
    }
    drop(clients);
    Ok(panics)
}

fuzz_target!(|case: Case| {
    COUNTS.set((0, 0));
    drop(SERVED.take());
    let mut config = Config::default();
    config.watermarks.high_bytes = case.high_bytes.into();
    config.watermarks.low_bytes = usize::from(case.high_bytes) / 4;
    config.watermarks.cap_bytes = usize::from(case.high_bytes) + usize::from(case.cap_bytes) + 500;
    let ops = case.ops;
    Simulation::new(case.seed)
        .config(config)
        .run(async move |shard: Shard| {
            if shard.id().index() != 0 {
                return Ok(());
            }
            let ops = ops.clone();
            let home = shard.clone();
            shard.call_when_running(move |shard| {
                drop(shard.spawn(async move {
                    let expected = perform(&home, &ops).await.expect("nothing of this may fail");
                    for transport in SERVED.take() {
                        transport.close();
                    }
                    let panics: u64 = home.handle().report().iter().map(|report| report.panics).sum();
                    assert_eq!(panics, expected, "somebody panicked");
                    home.stop().expect("nobody has stopped it");
                }));
            });
            Ok(())
        })
        .expect("it stops in order");
    let (connected, ended) = COUNTS.take();
    assert_eq!(connected, ended, "each connection is told of its end");
});
