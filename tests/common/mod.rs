//! What the conformance tests share: a protocol that writes down what happens to it, and streams read to their end.
//! Waits by being woken, never by sleeping, so that simulated time is free to pass.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{LazyLock, Once};
use std::task::{Poll, Waker};
use std::time::Duration;

use shardwise::policies::{ConnectionLimit, Policies, Rate, Throttle, TrafficLog};
use shardwise::testing::Env;
use shardwise::{
    CloseReason, Input, ListenOptions, Listener, Protocol, Result, Runtime, Shard, ShardId, TcpStream,
    Transport,
};

/// What happened to a [`Probe`], in order. Clones are one log.
#[derive(Clone, Default)]
pub(crate) struct Log {
    state: Rc<RefCell<LogState>>,
}

/// What a log holds.
#[derive(Default)]
pub(crate) struct LogState {
    /// The names of the callbacks; `data` in a row stands for any number of them.
    pub(crate) seen: Vec<&'static str>,
    /// What the probe has taken.
    pub(crate) received: Vec<u8>,
    /// Calls of `data_received`.
    pub(crate) deliveries: usize,
    /// Why the connection ended.
    pub(crate) reason: Option<String>,
    pub(crate) transport: Option<Transport>,
    /// Rules broken by whoever called the probe.
    violations: Vec<String>,
    inside: bool,
    wakers: Vec<Waker>,
}

impl Log {
    pub(crate) fn new() -> Self {
        Log::default()
    }

    /// Waits until `is_so`, which is asked again after every callback.
    pub(crate) async fn until(&self, is_so: impl Fn(&LogState) -> bool) {
        poll_fn(|context| {
            self.check();
            let mut state = self.state.borrow_mut();
            if is_so(&state) {
                return Poll::Ready(());
            }
            state.wakers.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Waits until the callback `name` has been called.
    pub(crate) async fn saw(&self, name: &'static str) {
        self.until(|state| state.seen.contains(&name)).await;
    }

    /// Waits until the protocol has been dropped; gives the reason of the end.
    pub(crate) async fn ended(&self) -> String {
        self.saw("dropped").await;
        assert_eq!(self.count("disconnected"), 1, "exactly one end: {:?}", self.seen());
        let seen = self.seen();
        assert_eq!(seen[seen.len() - 2..], ["disconnected", "dropped"], "the end comes last");
        self.look(|state| state.reason.clone()).expect("it was disconnected")
    }

    /// The connection's transport, once it is connected.
    pub(crate) async fn transport(&self) -> Transport {
        self.until(|state| state.transport.is_some()).await;
        self.look(|state| state.transport.clone()).expect("waited for")
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&LogState) -> T) -> T {
        look(&self.state.borrow())
    }

    pub(crate) fn seen(&self) -> Vec<&'static str> {
        self.check();
        self.look(|state| state.seen.clone())
    }

    pub(crate) fn received(&self) -> Vec<u8> {
        self.look(|state| state.received.clone())
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.look(|state| state.seen.iter().filter(|seen| **seen == name).count())
    }

    /// Writes down an event of the test's own.
    pub(crate) fn note(&self, name: &'static str) {
        let wakers = {
            let mut state = self.state.borrow_mut();
            state.seen.push(name);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes all of `input`.
    pub(crate) fn take(&self, input: &mut Input<'_>) {
        self.state.borrow_mut().received.extend_from_slice(input.take());
    }

    pub(crate) fn push(&self, bytes: &[u8]) {
        self.state.borrow_mut().received.extend_from_slice(bytes);
    }

    fn check(&self) {
        self.look(|state| assert!(state.violations.is_empty(), "{:?}", state.violations));
    }

    fn enter(&self, name: &'static str) -> Inside {
        let mut state = self.state.borrow_mut();
        let place = format!("{name} after {:?}", state.seen);
        if state.inside {
            state.violations.push(format!("re-entered: {place}"));
        }
        if state.seen.contains(&"disconnected") {
            state.violations.push(format!("called after the end: {place}"));
        }
        if (name == "connected") == state.seen.contains(&"connected") {
            state.violations.push(format!("connected is not the first call, once: {place}"));
        }
        state.inside = true;
        if name == "data" {
            state.deliveries += 1;
        }
        if name != "data" || state.seen.last() != Some(&"data") {
            state.seen.push(name);
        }
        Inside { log: self.clone() }
    }
}

/// The time of one callback.
struct Inside {
    log: Log,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let wakers = {
            let mut state = self.log.state.borrow_mut();
            state.inside = false;
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A callback of a protocol.
pub(crate) enum Call<'a, 'b> {
    Connected,
    HandshakeCompleted,
    Data(&'a mut Input<'b>),
    ReadFinished,
    WriteFinished,
    Paused,
    Resumed,
    Deadline,
    Draining,
    Disconnected,
}

/// What a test has a probe do: `None` leaves a callback to the default of [`Protocol`], and takes data.
pub(crate) type Hook = dyn FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>>;

/// A protocol that keeps a [`Log`] of its callbacks, and does in them what a test says.
pub(crate) struct Probe {
    log: Log,
    hook: Box<Hook>,
}

/// Every callback's default.
struct Defaults;

impl Protocol for Defaults {
    fn data_received(&mut self, _transport: &Transport, _input: &mut Input<'_>) -> Result<()> {
        Ok(())
    }
}

impl Probe {
    pub(crate) fn new(
        log: &Log,
        hook: impl FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + 'static,
    ) -> Self {
        Probe { log: log.clone(), hook: Box::new(hook) }
    }

    fn call(
        &mut self,
        name: &'static str,
        mut call: Call<'_, '_>,
        transport: &Transport,
        default: impl FnOnce(&mut Defaults, &Transport) -> Result<()>,
    ) -> Result<()> {
        let _inside = self.log.enter(name);
        (self.hook)(&mut call, transport).unwrap_or_else(|| default(&mut Defaults, transport))
    }
}

impl Protocol for Probe {
    fn connected(&mut self, transport: &Transport) -> Result<()> {
        self.log.state.borrow_mut().transport = Some(transport.clone());
        self.call("connected", Call::Connected, transport, Defaults::connected)
    }

    fn handshake_completed(&mut self, transport: &Transport) -> Result<()> {
        self.call("handshake", Call::HandshakeCompleted, transport, Defaults::handshake_completed)
    }

    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        let _inside = self.log.enter("data");
        if let Some(outcome) = (self.hook)(&mut Call::Data(input), transport) {
            return outcome;
        }
        self.log.take(input);
        Ok(())
    }

    fn read_finished(&mut self, transport: &Transport) -> Result<()> {
        self.call("read_finished", Call::ReadFinished, transport, Defaults::read_finished)
    }

    fn write_finished(&mut self, transport: &Transport) -> Result<()> {
        self.call("write_finished", Call::WriteFinished, transport, Defaults::write_finished)
    }

    fn write_paused(&mut self, transport: &Transport) -> Result<()> {
        self.call("paused", Call::Paused, transport, Defaults::write_paused)
    }

    fn write_resumed(&mut self, transport: &Transport) -> Result<()> {
        self.call("resumed", Call::Resumed, transport, Defaults::write_resumed)
    }

    fn deadline_reached(&mut self, transport: &Transport) -> Result<()> {
        self.call("deadline", Call::Deadline, transport, Defaults::deadline_reached)
    }

    fn draining(&mut self, transport: &Transport) -> Result<()> {
        self.call("draining", Call::Draining, transport, Defaults::draining)
    }

    fn disconnected(&mut self, reason: CloseReason) {
        let _inside = self.log.enter("disconnected");
        self.log.state.borrow_mut().reason = Some(describe(&reason));
        let transport = self.log.look(|state| state.transport.clone()).expect("connected came first");
        let _ = (self.hook)(&mut Call::Disconnected, &transport);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.log.note("dropped");
    }
}

/// A reason in a form that tests can compare.
pub(crate) fn describe(reason: &CloseReason) -> String {
    match reason {
        CloseReason::Os { source, .. } => format!("Os({:?})", source.kind()),
        CloseReason::Protocol(error) => format!("Protocol({error})"),
        CloseReason::Panicked(message) => format!("Panicked({message})"),
        CloseReason::InputTooLong { .. } => "InputTooLong".to_string(),
        CloseReason::WriteStalled { .. } => "WriteStalled".to_string(),
        other => format!("{other:?}"),
    }
}

/// Listens on shard 0 alone; every connection is a probe of `log` with its own copy of `hook`.
pub(crate) fn listen<H>(env: &Env, log: &Log, hook: H) -> Result<Listener>
where
    H: FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + Clone + 'static,
{
    let log = log.clone();
    let options = listen_options();
    Ok(env.shard().listen_tcp_with("127.0.0.1:0", &options, move || Probe::new(&log, hook.clone()))?)
}

/// The defaults; in the suite that shows that policies are not felt, all of them at once.
pub(crate) fn listen_options() -> ListenOptions {
    if module_path!().starts_with("conformance_policed") {
        return ListenOptions::new().policies(&every_policy());
    }
    ListenOptions::new()
}

/// Counts the connections that all policies are for.
pub(crate) static EVERY_CONNECTION: LazyLock<ConnectionLimit> =
    LazyLock::new(|| ConnectionLimit::new().total(100_000).per_peer(100_000));

/// Every policy, none of which is ever in the way.
fn every_policy() -> Policies {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(|| {
        // Traffic is logged where somebody listens only. Another copy of this module may have been quicker.
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
        let _ = log.with_writer(std::io::sink).try_init();
    });
    let fast = Rate::bytes_per_second(1 << 40).burst(1 << 40);
    Policies::new()
        .idle_timeout(Duration::from_secs(3600))
        .limit_connections(&EVERY_CONNECTION)
        .read_rate(fast)
        .write_rate(fast)
        .throttle_reads(&Throttle::new(fast))
        .throttle_writes(&Throttle::new(fast))
        .log_traffic(TrafficLog::new("every").show_hex(16))
}

/// A probe as server, and a stream as client, connected.
pub(crate) async fn pair<H>(env: &Env, hook: H) -> Result<(Log, TcpStream)>
where
    H: FnMut(&mut Call<'_, '_>, &Transport) -> Option<Result<()>> + Clone + 'static,
{
    let log = Log::new();
    let listener = listen(env, &log, hook)?;
    let client = TcpStream::connect(listener.local_addr()).await?;
    log.saw("connected").await;
    Ok((log, client))
}

/// Sends back what comes.
pub(crate) struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }
}

/// An echo server on shard 0.
pub(crate) fn echo_server(env: &Env) -> Result<SocketAddr> {
    Ok(env.shard().listen_tcp_with("127.0.0.1:0", &listen_options(), || Echo)?.local_addr())
}

/// Sends `bytes` to an echo server and waits for them.
pub(crate) async fn round_trip(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).await?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).await?;
    assert!(answer == bytes, "the echo differs");
    Ok(())
}

/// Lets everything that is under way come to its end, by some round trips of another connection.
pub(crate) async fn let_others_go_on(env: &Env) -> Result<()> {
    let mut stream = TcpStream::connect(echo_server(env)?).await?;
    for _ in 0..5 {
        round_trip(&mut stream, b"are you done?").await?;
    }
    if env.is_simulated() {
        // Longer than any packet is under way there.
        env.shard().sleep(std::time::Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Reads to the end of input.
pub(crate) async fn read_to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.read_chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Bytes in which every shift and every gap shows.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    // Copied block by block, since the tests are not optimised; the length of a block divides no buffer's.
    let block: Vec<u8> =
        (0..65_521u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut bytes = Vec::with_capacity(len + block.len());
    while bytes.len() < len {
        bytes.extend_from_slice(&block);
    }
    bytes.truncate(len);
    bytes
}

/// Compares without printing megabytes.
pub(crate) fn assert_same_bytes(left: &[u8], right: &[u8]) {
    assert_eq!(left.len(), right.len(), "another number of bytes");
    if left != right {
        let differs = left.iter().zip(right).position(|(left, right)| left != right);
        panic!("the bytes differ from {differs:?} on");
    }
}

/// So many on a real kernel. The simulated one buffers less, and is run several times: a tenth, but a million at least.
pub(crate) fn megabytes(env: &Env, count: usize) -> usize {
    if env.is_simulated() { (count * 100_000).max(1_000_000) } else { count * 1_000_000 }
}

/// Runs `body` on shard 0 of a running runtime of so many shards, over the kernel's own driver, then stops it: for what a
/// simulation does not have.
pub(crate) fn on_the_kernel<F>(shards: usize, body: F)
where
    F: AsyncFn(&Shard) -> Result<()> + Send + Sync + 'static,
{
    let running = Runtime::new().shards(shards).pin(false).start(async |_: Shard| Ok(())).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let begin = move |shard: &Shard| {
        let shard = shard.clone();
        drop(shard.clone().spawn(async move {
            let outcome = body(&shard).await;
            let _ = tell.send(outcome.map_err(|error| error.to_string()));
        }));
    };
    assert!(running.handle().call_from_thread(ShardId::new(0), begin).is_ok(), "it runs");
    // A body that panics sends nothing.
    let outcome = told.recv_timeout(std::time::Duration::from_secs(60));
    running.stop().unwrap();
    outcome.expect("the body ended in time, and without a panic").unwrap();
    running.join().unwrap();
}
