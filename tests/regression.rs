//! Bugs that were found and fixed, each with its story. The name says what holds since then.

use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::net;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use shardwise::testing::{on_every_driver, on_every_driver_with};
use shardwise::{
    CloseReason, Config, Datagram, DatagramProtocol, DetachedTcpStream, Flow, Input, Layer, Producer,
    ProducerKind, Protocol, Result, Runtime, Shard, TcpStream, Transport, UdpSocket, UdpTransport,
    WriteError, copy_bidirectional,
};

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

/// Input that a protocol left was copied to a new allocation with each further read, so a large frame that came in
/// small segments cost its square: a peer could hold a shard with a few bytes at a time.
#[test]
fn input_that_is_left_stays_where_it_is() {
    const FRAME_BYTES: usize = 8 * 1024;
    /// Takes nothing before all has come; counts how often what it had left lies elsewhere.
    struct Whole {
        at: *const u8,
        moves: Rc<Cell<usize>>,
        calls: Rc<Cell<usize>>,
    }
    impl Protocol for Whole {
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            self.calls.set(self.calls.get() + 1);
            if self.at != input.bytes().as_ptr() {
                self.at = input.bytes().as_ptr();
                self.moves.set(self.moves.get() + 1);
            }
            if input.len() == FRAME_BYTES {
                transport.write(input.take())?;
            }
            Ok(())
        }
    }
    on_every_driver(async |env| {
        let (moves, calls) = (Rc::<Cell<usize>>::default(), Rc::<Cell<usize>>::default());
        let made = RefCell::new(Some(Whole {
            at: std::ptr::null(),
            moves: Rc::clone(&moves),
            calls: Rc::clone(&calls),
        }));
        let listener = env.shard().listen_tcp("127.0.0.1:0", move || made.borrow_mut().take())?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        let frame: Vec<u8> = (0..FRAME_BYTES).map(|index| (index % 251) as u8).collect();
        for piece in frame.chunks(32) {
            client.write_all(piece).await?;
            client.flush().await?;
            shardwise::yield_now().await;
        }
        let mut answer = vec![0; FRAME_BYTES];
        client.read_exact(&mut answer).await?;
        assert!(answer == frame, "the frame came back otherwise");
        // The read buffer, the first copy, and then at most each time the allocation doubles.
        assert!(moves.get() <= 16, "{} of {} calls found the input elsewhere", moves.get(), calls.get());
        Ok(())
    });
}

/// A large write goes straight to the kernel. When the kernel refused it, since the peer had reset the connection and
/// the shard did not know yet, the driver was still borrowed while the connection was ended: the protocol panicked,
/// and its connection stayed half ended for ever.
#[test]
fn a_large_write_to_a_peer_that_has_reset_ends_the_connection() {
    thread_local! {
        static SERVER: RefCell<Option<Transport>> = const { RefCell::new(None) };
        static ENDS: RefCell<Vec<CloseReason>> = const { RefCell::new(Vec::new()) };
    }
    struct Told;
    impl Protocol for Told {
        fn connected(&mut self, transport: &Transport) -> Result<()> {
            SERVER.set(Some(transport.clone()));
            Ok(())
        }
        fn data_received(&mut self, _: &Transport, _: &mut Input<'_>) -> Result<()> {
            Ok(())
        }
        fn disconnected(&mut self, reason: CloseReason) {
            ENDS.with_borrow_mut(|ends| ends.push(reason));
        }
    }
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Told)?;
        let client = TcpStream::connect(listener.local_addr()).await?;
        while SERVER.with_borrow(Option::is_none) {
            env.shard().sleep(Duration::from_millis(1)).await;
        }
        client.abort();
        // Messages run before events: here the kernel knows of the reset, and the shard does not.
        let taken = env.handle().call_from_thread(env.shard().id(), |_| {
            let server = SERVER.take().unwrap();
            let mut outcome = Ok(());
            for _ in 0..3 {
                outcome = server.write(&[0; 16 * 1024]).map(|_| ());
            }
            // In a simulation the reset may still be on its way.
            assert!(matches!(outcome, Ok(()) | Err(WriteError::Closed)));
        });
        assert!(taken.is_ok());
        while ENDS.with_borrow(Vec::is_empty) {
            env.shard().sleep(Duration::from_millis(1)).await;
        }
        let ends = ENDS.take();
        assert!(matches!(ends[..], [CloseReason::Os { .. }]), "{ends:?}");
        assert_eq!(env.handle().report()[0].panics, 0);
        Ok(())
    });
}

/// A write said `AboveHigh` while its bytes were only staged. When the kernel then took them all, no watermark had been
/// crossed where it was looked at, and `write_resumed`, which the writer was told to wait for, never came.
#[test]
fn a_writer_told_to_stop_is_always_told_to_go_on() {
    const CHUNKS: usize = 40;
    struct Pours {
        left: usize,
        paused: bool,
    }
    impl Pours {
        fn pour(&mut self, transport: &Transport) -> Result<()> {
            while self.left > 0 {
                self.left -= 1;
                if transport.write(&[7; 600])? == Flow::AboveHigh {
                    return Ok(());
                }
            }
            transport.close();
            Ok(())
        }
    }
    impl Protocol for Pours {
        fn connected(&mut self, transport: &Transport) -> Result<()> {
            self.pour(transport)
        }
        fn data_received(&mut self, _: &Transport, _: &mut Input<'_>) -> Result<()> {
            Ok(())
        }
        fn write_paused(&mut self, _: &Transport) -> Result<()> {
            assert!(!std::mem::replace(&mut self.paused, true), "paused twice");
            Ok(())
        }
        fn write_resumed(&mut self, transport: &Transport) -> Result<()> {
            assert!(std::mem::take(&mut self.paused), "resumed without a pause");
            self.pour(transport)
        }
    }
    let mut config = Config::default();
    config.watermarks.high_bytes = 1000;
    config.watermarks.low_bytes = 100;
    on_every_driver_with(2, config, async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Pours { left: CHUNKS, paused: false })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        let mut received = vec![0; CHUNKS * 600];
        env.shard().timeout(Duration::from_secs(20), client.read_exact(&mut received)).await??;
        assert_eq!(client.read(&mut [0]).await?, 0);
        assert_eq!(env.handle().report()[0].panics, 0);
        Ok(())
    });
}

/// A waker that panics when a stream wakes it ended the whole runtime: it was called bare.
#[test]
fn a_waker_that_panics_costs_only_itself() {
    struct Bomb;
    impl std::task::Wake for Bomb {
        fn wake(self: std::sync::Arc<Self>) {
            panic!("a waker of the application");
        }
    }
    on_every_driver(async |env| {
        let listener = env.shard().serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            while let Some(chunk) = stream.read_chunk().await? {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        })?;
        let mut first = TcpStream::connect(listener.local_addr()).await?;
        first.write_all(b"wakes the bomb").await?;
        let waker = std::task::Waker::from(std::sync::Arc::new(Bomb));
        let polled = first.poll_read_chunk(&mut std::task::Context::from_waker(&waker));
        assert!(polled.is_pending(), "nothing can have come back yet");
        // The runtime goes on, and a second connection is served.
        let mut second = TcpStream::connect(listener.local_addr()).await?;
        second.write_all(b"hello").await?;
        let mut answer = [0; 5];
        second.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"hello");
        Ok(())
    });
}

/// An error whose text panics, and whose destructor does when it is not formatting that has failed.
#[derive(Debug)]
struct Unspeakable {
    drops_badly: bool,
}

impl std::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("an error without words");
    }
}

impl std::error::Error for Unspeakable {}

impl Drop for Unspeakable {
    fn drop(&mut self) {
        assert!(!self.drops_badly, "an error that does not go quietly");
    }
}

struct FailsUnspeakably {
    drops_badly: bool,
}

impl Protocol for FailsUnspeakably {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        if input.take() == b"twice" {
            // Closed by then: nobody takes the error.
            transport.close();
        }
        Err(Unspeakable { drops_badly: self.drops_badly }.into())
    }
}

/// The text of an application's error was made while it was logged, outside all that catches panics: a `Display` that
/// panicked took its shard, and with it the runtime. So did an error's destructor.
#[test]
fn an_error_that_panics_when_it_is_formatted_or_dropped_costs_its_connection_alone() {
    // Formats everything, and shows nothing. For the whole process, since shards have threads of their own.
    let everything =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(std::io::sink);
    let _ = everything.try_init();
    on_every_driver(async |env| {
        let shard = env.shard();
        let panics = || env.handle().report().iter().map(|report| report.panics).sum::<u64>();
        let before = panics();
        for drops_badly in [false, true] {
            for word in [&b"once"[..], b"twice"] {
                let listener = shard.listen_tcp("127.0.0.1:0", move || FailsUnspeakably { drops_badly })?;
                let serving = shard.serve_tcp("127.0.0.1:0", async move |mut stream: TcpStream| {
                    stream.read_chunk().await?;
                    Err(Unspeakable { drops_badly }.into())
                })?;
                for addr in [listener.local_addr(), serving.local_addr()] {
                    let mut client = TcpStream::connect(addr).await?;
                    client.write_all(word).await?;
                    let end = shard.timeout(Duration::from_secs(20), client.read_chunk()).await?;
                    assert!(!matches!(end, Ok(Some(_))), "it was closed");
                }
                listener.close().await;
                serving.close().await;
            }
        }
        assert!(panics() >= before + 8, "each is counted");
        Ok(())
    });
}

/// Answers what is not `fail`.
struct FailsNowAndThen;

impl DatagramProtocol for FailsNowAndThen {
    fn datagram_received(&mut self, transport: &UdpTransport, datagram: Datagram<'_>) -> Result<()> {
        if datagram.bytes() == b"fail" {
            return Err(Unspeakable { drops_badly: false }.into());
        }
        transport.try_send_to(datagram.bytes(), datagram.source())?;
        Ok(())
    }
}

/// What was mended for streams was done wrong again for datagrams.
#[test]
fn a_datagram_protocols_error_that_panics_when_it_is_formatted_costs_nothing() {
    let everything =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(std::io::sink);
    let _ = everything.try_init();
    on_every_driver(async |env| {
        let shard = env.shard();
        let server = shard.listen_udp("127.0.0.1:0", FailsNowAndThen)?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        client.connect(server.local_addr()?)?;
        let mut answer = [0; 8];
        // Datagrams may be lost, on either kind of network.
        for attempt in 0.. {
            assert!(attempt < 100, "no answer");
            client.send(b"fail").await?;
            client.send(b"well").await?;
            let received = shard.timeout(Duration::from_millis(200), client.recv_from(&mut answer)).await;
            if received.is_ok_and(|received| received.is_ok()) {
                break;
            }
        }
        assert_eq!(&answer[..4], b"well");
        server.close().await;
        Ok(())
    });
}

/// A value that does not go quietly.
struct DropsBadly;

impl Drop for DropsBadly {
    fn drop(&mut self) {
        panic!("as it should");
    }
}

/// The call is dropped when the attempt succeeds. That happened outside all that catches panics, and took the shard.
#[test]
fn a_failure_call_that_panics_when_it_is_dropped_costs_nothing_but_itself() {
    on_every_driver(async |env| {
        let shard = env.shard();
        let panics = || env.handle().report().iter().map(|report| report.panics).sum::<u64>();
        let before = panics();
        let listener = shard.serve_tcp("127.0.0.1:0", async |mut stream: TcpStream| {
            stream.read_chunk().await?;
            Ok(())
        })?;
        let made = std::rc::Rc::new(std::cell::Cell::new(false));
        let (noted, bad) = (std::rc::Rc::clone(&made), DropsBadly);
        let factory = move || {
            noted.set(true);
            Closes
        };
        shard.connect_tcp(listener.local_addr(), factory).on_failure(move |_, _| drop(bad));
        while panics() == before {
            shard.sleep(Duration::from_millis(1)).await;
        }
        assert!(made.get(), "it succeeded");
        Ok(())
    });
}

/// Closes what it is connected to.
struct Closes;

impl Protocol for Closes {
    fn connected(&mut self, transport: &Transport) -> Result<()> {
        transport.close();
        Ok(())
    }

    fn data_received(&mut self, _: &Transport, _: &mut Input<'_>) -> Result<()> {
        Ok(())
    }
}

/// Layers that looked at the length of the input before and after counted all of it as taken when it had run dry.
#[test]
fn a_layer_can_count_what_was_taken_though_the_input_has_run_dry() {
    /// Takes three bytes, and pauses.
    struct Pausing;
    impl Protocol for Pausing {
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            if input.len() >= 3 {
                input.consume(3);
                transport.pause_reading();
            }
            Ok(())
        }
    }
    struct Counting(Pausing, Rc<Cell<usize>>);
    impl Layer for Counting {
        fn inner(&mut self) -> &mut dyn Protocol {
            &mut self.0
        }
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            let before = input.consumed();
            let outcome = self.0.data_received(transport, input);
            self.1.set(self.1.get() + input.consumed() - before);
            outcome
        }
    }
    on_every_driver(async |env| {
        let taken = Rc::new(Cell::new(0));
        let counts = Rc::clone(&taken);
        let make = move || Counting(Pausing, Rc::clone(&counts));
        let listener = env.shard().listen_tcp("127.0.0.1:0", make)?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"three and more").await?;
        env.shard().timeout(Duration::from_secs(20), until(|| taken.get() > 0)).await?;
        assert_eq!(taken.get(), 3);
        Ok(())
    });
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        shardwise::yield_now().await;
    }
}

/// A pull producer that detached the stream it produces for, in its own callback, was dropped without having been stopped.
#[test]
fn a_producer_that_detaches_its_own_connection_is_stopped() {
    type Moved = Rc<RefCell<Option<DetachedTcpStream>>>;
    struct Detaching(Option<TcpStream>, Moved, Rc<RefCell<Vec<&'static str>>>);
    impl Producer for Detaching {
        fn resume_producing(&mut self, _consumer: &Transport) -> Result<()> {
            let detached = std::pin::pin!(self.0.take().expect("asked once").detach());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let std::task::Poll::Ready(detached) = detached.poll(&mut context) else {
                return Err("it was not detached at once".into());
            };
            *self.1.borrow_mut() = Some(detached?);
            self.2.borrow_mut().push("detached");
            Ok(())
        }
        fn stop_producing(&mut self) {
            self.2.borrow_mut().push("stopped");
        }
    }
    impl Drop for Detaching {
        fn drop(&mut self) {
            self.2.borrow_mut().push("dropped");
        }
    }
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Lines { between: |_: &Transport| {} })?;
        let (moved, seen) = (Moved::default(), Rc::default());
        let stream = TcpStream::connect(listener.local_addr()).await?;
        let transport = stream.transport().clone();
        let producer = Detaching(Some(stream), Rc::clone(&moved), Rc::clone(&seen));
        transport.register_producer(producer, ProducerKind::Pull)?;
        assert_eq!(*seen.borrow(), ["detached", "stopped", "dropped"]);
        let detached = moved.borrow_mut().take().expect("it was detached");
        let mut stream = detached.attach(env.shard())?;
        stream.write_all(b"goes on\n").await?;
        stream.read_exact(&mut [0; 8]).await?;
        Ok(())
    });
}

/// More than the high watermark, in pieces that go to the kernel together.
fn write_much(transport: &Transport) -> Result<Flow> {
    let mut flow = Flow::Open;
    for _ in 0..20 {
        flow = transport.write(&[1; 4000])?;
    }
    Ok(flow)
}

/// A protocol that left its input whole and wrote more than the high watermark was shown the same bytes again each time that
/// output had drained, and wrote again: for ever.
#[test]
fn input_that_was_left_whole_comes_again_with_new_bytes_only() {
    /// Answers at length, and takes nothing.
    struct Garrulous(Rc<RefCell<Vec<usize>>>);
    impl Protocol for Garrulous {
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            self.0.borrow_mut().push(input.len());
            assert_eq!(write_much(transport)?, Flow::AboveHigh);
            Ok(())
        }
    }
    on_every_driver(async |env| {
        let shown = Rc::new(RefCell::new(Vec::new()));
        let shows = Rc::clone(&shown);
        let listener = env.shard().listen_tcp("127.0.0.1:0", move || Garrulous(Rc::clone(&shows)))?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        for round in 1..=3 {
            client.write_all(b"?").await?;
            client.read_exact(&mut vec![0; 80_000]).await?;
            let silence = env.shard().timeout(Duration::from_millis(20), client.read_chunk()).await;
            assert!(silence.is_err(), "it was shown the same again");
            assert_eq!(*shown.borrow(), (1..=round).collect::<Vec<_>>());
        }
        Ok(())
    });
}

/// The other side of it: who has written too much before it looked has not been shown anything.
#[test]
fn input_that_ran_dry_before_it_was_looked_at_comes_again_by_itself() {
    /// Greets at length, then takes what there is.
    struct Greeting {
        greeted: bool,
    }
    impl Protocol for Greeting {
        fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            if !std::mem::replace(&mut self.greeted, true) {
                assert_eq!(write_much(transport)?, Flow::AboveHigh);
            }
            transport.write(input.take())?;
            Ok(())
        }
    }
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Greeting { greeted: false })?;
        let mut client = TcpStream::connect(listener.local_addr()).await?;
        client.write_all(b"hello").await?;
        client.read_exact(&mut vec![0; 80_000]).await?;
        let mut echo = [0; 5];
        env.shard().timeout(Duration::from_secs(20), client.read_exact(&mut echo)).await??;
        assert_eq!(&echo, b"hello");
        Ok(())
    });
}

/// A drain ended the input of a stream that was being copied, and the copy passed that end on: half an upload came to an
/// orderly end upstream.
#[test]
fn a_drain_does_not_make_half_of_what_is_copied_look_whole() {
    let upstream = net::TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream_addr = upstream.local_addr().unwrap();
    let (sender, addr) = mpsc::channel();
    let mut config = Config::default();
    config.drain_timeout = Duration::from_millis(300);
    let app = async move |shard: Shard| {
        let proxy = shard.serve_tcp("127.0.0.1:0", async move |mut client: TcpStream| {
            let mut up = TcpStream::connect(upstream_addr).await?;
            copy_bidirectional(&mut client, &mut up).await?;
            Ok(())
        })?;
        sender.send(proxy.local_addr())?;
        Ok(())
    };
    let running = Runtime::new().shards(1).pin(false).config(config).start(app).unwrap();
    let mut client = net::TcpStream::connect(addr.recv().unwrap()).unwrap();
    client.write_all(b"half").unwrap();
    let (mut up, _) = upstream.accept().unwrap();
    let mut half = [0; 4];
    up.read_exact(&mut half).unwrap();
    running.stop().unwrap();
    // At the drain's deadline, since the client has not finished.
    let end = up.read(&mut [0; 8]);
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(running.join().is_err(), "two connections were aborted");
}
