#![allow(unsafe_code, missing_docs, unused_imports)]
mod common;
#[path = "common/notes.rs"]
mod notes;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, PipeReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use common::{Echo, Log, Probe};
use notes::Notes;
use shardwise::testing::{Env, on_every_driver};
use shardwise::*;

const MS: Duration = Duration::from_millis(1);

fn on_mio<F: AsyncFn(Env) -> Result<()> + Send + Sync + 'static>(body: F) {
    on_every_driver(async move |env| if env.is_simulated() { Ok(()) } else { body(env).await });
}

/// An error whose destructor panics.
#[derive(Debug)]
struct Evil;
impl std::fmt::Display for Evil {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("evil")
    }
}
impl std::error::Error for Evil {}
impl Drop for Evil {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("evil drop");
        }
    }
}

struct EvilUdp(Notes);
impl DatagramProtocol for EvilUdp {
    fn datagram_received(&mut self, _: &UdpTransport, d: Datagram<'_>) -> Result<()> {
        self.0.add(String::from_utf8_lossy(d.bytes()));
        if d.bytes() == b"evil" { Err(Box::new(Evil)) } else { Ok(()) }
    }
}

#[test]
fn a1_a_datagram_error_whose_drop_panics_costs_no_shard() {
    on_mio(async |env| {
        let notes = Notes::default();
        let t = env.shard().listen_udp("127.0.0.1:0", EvilUdp(notes.clone()))?;
        let to = t.local_addr()?;
        let s = UdpSocket::bind("127.0.0.1:0")?;
        s.send_to(b"evil", to).await?;
        notes.until("evil", 1).await;
        s.send_to(b"next", to).await?;
        notes.until("next", 1).await;
        Ok(())
    });
}

struct EvilFd {
    pipe: PipeReader,
    guard: Rc<RefCell<Option<FdGuard>>>,
    notes: Notes,
}
impl AsFd for EvilFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
impl FdHandler for EvilFd {
    fn readable(&mut self, _: &Fd) -> Result<()> {
        let mut b = [0; 8];
        let _ = self.pipe.read(&mut b);
        self.guard.take();
        Err(Box::new(Evil))
    }
    fn ended(&mut self, reason: CloseReason) {
        self.notes.add(format!("ended: {reason}"));
    }
}

#[test]
fn a2_a_handler_that_ends_itself_and_fails_with_an_evil_error_costs_no_shard() {
    on_mio(async |env| {
        let (reader, writer) = io::pipe()?;
        let notes = Notes::default();
        let place = Rc::new(RefCell::new(None));
        let guard =
            env.shard().watch(EvilFd { pipe: reader, guard: Rc::clone(&place), notes: notes.clone() })?;
        env.shard().add_reader(&guard)?;
        *place.borrow_mut() = Some(guard);
        io::Write::write_all(&mut &writer, b"x")?;
        env.shard().sleep(50 * MS).await;
        assert_eq!(notes.all(), ["ended: the connection was closed"]);
        Ok(())
    });
}

const LOOPBACK: MulticastInterface = MulticastInterface::Addr(Ipv4Addr::LOCALHOST);
fn group(number: u8) -> IpAddr {
    Ipv4Addr::new(233, 252, 0, number).into()
}
struct Silent;
impl DatagramProtocol for Silent {
    fn datagram_received(&mut self, _: &UdpTransport, _: Datagram<'_>) -> Result<()> {
        Ok(())
    }
}

#[test]
fn b1_joining_twice_keeps_the_group() {
    on_mio(async |env| {
        let t = env.shard().listen_udp("0.0.0.0:0", Silent)?;
        let addr = SocketAddr::from(([0, 0, 0, 0], t.local_addr()?.port()));
        eprintln!("first {:?}", t.join_group(group(201), LOOPBACK));
        eprintln!("again {:?}", t.join_group(group(201), LOOPBACK));
        let other = env
            .handle()
            .call(ShardId::new(1), move |shard: &Shard| {
                let t = shard.listen_udp(addr, Silent).unwrap();
                t.join_group(group(201), LOOPBACK).unwrap()
            })
            .await?;
        assert!(!other, "two shards own the group: each datagram is delivered twice");
        Ok(())
    });
}

#[test]
fn b2_a_failed_join_as_well_owns_nothing() {
    on_mio(async |env| {
        let nowhere = MulticastInterface::Addr(Ipv4Addr::new(203, 0, 113, 9));
        let t = env.shard().listen_udp("0.0.0.0:0", Silent)?;
        let addr = SocketAddr::from(([0, 0, 0, 0], t.local_addr()?.port()));
        assert!(t.join_group_as_well(group(202), nowhere).is_err());
        let other = env
            .handle()
            .call(ShardId::new(1), move |shard: &Shard| {
                let t = shard.listen_udp(addr, Silent).unwrap();
                format!("{:?}", t.join_group(group(202), nowhere))
            })
            .await?;
        assert!(other.starts_with("Err"), "{other}: says another shard has joined");
        Ok(())
    });
}

struct CountWaker(Arc<AtomicUsize>);
impl Wake for CountWaker {
    fn wake(self: Arc<Self>) {}
}
impl Drop for CountWaker {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}
fn counted(alive: &Arc<AtomicUsize>) -> Waker {
    alive.fetch_add(1, SeqCst);
    Waker::from(Arc::new(CountWaker(Arc::clone(alive))))
}

#[test]
fn d1_dropped_receives_leave_nothing_behind() {
    on_mio(async |_env| {
        let s = UdpSocket::bind("127.0.0.1:0")?;
        let alive = Arc::new(AtomicUsize::new(0));
        for _ in 0..10_000 {
            let w = counted(&alive);
            let mut b = [0; 8];
            let _ = pin!(s.recv_from(&mut b)).poll(&mut Context::from_waker(&w));
        }
        assert!(alive.load(SeqCst) < 100, "{} wakers kept", alive.load(SeqCst));
        Ok(())
    });
}

#[test]
fn d2_dropped_waits_for_a_descriptor_leave_nothing_behind() {
    on_mio(async |_env| {
        let (reader, _writer) = io::pipe()?;
        let fd = AsyncFd::new(reader)?;
        let alive = Arc::new(AtomicUsize::new(0));
        for _ in 0..10_000 {
            let w = counted(&alive);
            let _ = pin!(fd.readable()).poll(&mut Context::from_waker(&w));
        }
        assert!(alive.load(SeqCst) < 100, "{} wakers kept", alive.load(SeqCst));
        Ok(())
    });
}

#[test]
fn d3_tasks_that_gave_up_are_freed() {
    on_mio(async |env| {
        let s = Rc::new(UdpSocket::bind("127.0.0.1:0")?);
        struct Big(Rc<Cell<usize>>);
        impl Drop for Big { fn drop(&mut self) { self.0.set(self.0.get() - 1) } }
        let live = Rc::new(Cell::new(0));
        for _ in 0..1000 {
            let s = Rc::clone(&s);
            live.set(live.get() + 1);
            let big = Big(Rc::clone(&live));
            let shard = env.shard().clone();
            env.shard().spawn(async move {
                let _big = big;
                let mut b = [0; 8];
                let _ = shard.timeout(MS, s.recv_from(&mut b)).await;
            }).await?;
        }
        eprintln!("futures alive {} (debug of tasks only)", live.get());
        Ok(())
    });
}

struct EvilWaker(UdpTransport);
mod evil_waker {
    use super::*;
    use std::task::{RawWaker, RawWakerVTable};
    pub fn make(t: UdpTransport) -> Waker {
        let p = Box::into_raw(Box::new(EvilWaker(t)));
        unsafe { Waker::from_raw(RawWaker::new(p as *const (), &VT)) }
    }
    static VT: RawWakerVTable = RawWakerVTable::new(
        |p| {
            let w = unsafe { &*(p as *const EvilWaker) };
            drop(w.0.close());
            RawWaker::new(p, &VT)
        },
        |_| {},
        |_| {},
        |_| {},
    );
}

#[test]
fn d4_a_waker_is_not_cloned_under_a_borrow() {
    on_mio(async |_env| {
        let s = UdpSocket::bind("127.0.0.1:0")?;
        let w = evil_waker::make(s.transport().clone());
        let mut b = [0; 8];
        let _ = pin!(s.recv_from(&mut b)).poll(&mut Context::from_waker(&w));
        Ok(())
    });
}

struct FromStrangers {
    notes: Notes,
}
impl DatagramProtocol for FromStrangers {
    fn started(&mut self, t: &UdpTransport) -> Result<()> {
        let port = t.local_addr()?.port();
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0")?;
        stranger.send_to(b"forged", ("127.0.0.1", port))?;
        Ok(())
    }
    fn datagram_received(&mut self, _: &UdpTransport, d: Datagram<'_>) -> Result<()> {
        self.notes.add(format!("{}", String::from_utf8_lossy(d.bytes())));
        Ok(())
    }
}

#[test]
fn e1_a_connected_udp_protocol_hears_its_peer_alone() {
    on_mio(async |env| {
        let peer = UdpSocket::bind("127.0.0.1:0")?;
        let notes = Notes::default();
        let t = env.shard().connect_udp(peer.local_addr()?, FromStrangers { notes: notes.clone() })?;
        env.shard().sleep(50 * MS).await;
        t.close().await;
        assert_eq!(notes.all(), Vec::<String>::new());
        Ok(())
    });
}

#[test]
fn f1_a_service_stopped_while_its_connection_comes_to_stand_closes_it() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let log = Log::new();
        let place: Rc<RefCell<Option<ClientService>>> = Rc::default();
        let (l, p) = (log.clone(), Rc::clone(&place));
        let service = ClientService::builder(listener.local_addr())?
            .factory(move || {
                let p = Rc::clone(&p);
                Probe::new(&l, move |call, _| {
                    if matches!(call, common::Call::Connected) {
                        drop(p.borrow().as_ref().unwrap().stop());
                    }
                    None
                })
            })
            .start(env.shard());
        *place.borrow_mut() = Some(service.clone());
        log.saw("connected").await;
        service.stop().await;
        let ended = env.shard().timeout(Duration::from_secs(5), log.ended()).await;
        let seen = log.seen();
        place.borrow_mut().take();
        listener.close().await;
        assert!(ended.is_ok(), "{:?}; the connection is still open: {seen:?}", service.state());
        Ok(())
    });
}

/// Joined as the docs of `Producer` say.
#[test]
fn g1_when_one_of_two_joined_connections_is_lost_the_other_one_ends() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let held: Rc<RefCell<Vec<TcpStream>>> = Rc::default();
        let h = Rc::clone(&held);
        let target = env.shard().serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
            h.borrow_mut().push(stream);
            Ok(())
        })?;
        let (la, lb) = (Log::new(), Log::new());
        let (a2, b2) = (la.clone(), lb.clone());
        let a = env.shard().connect_tcp(target.local_addr(), move || Probe::new(&a2, |_, _| None)).await?;
        let b = env.shard().connect_tcp(target.local_addr(), move || Probe::new(&b2, |_, _| None)).await?;
        a.register_producer(b.clone(), ProducerKind::Push)?;
        b.register_producer(a.clone(), ProducerKind::Push)?;
        a.abort();
        la.ended().await;
        let ended = env.shard().timeout(Duration::from_secs(30), lb.ended()).await;
        let (open, seen) = (b.is_open(), lb.seen());
        if ended.is_err() {
            b.abort();
            lb.ended().await;
        }
        held.borrow_mut().clear();
        target.close().await;
        listener.close().await;
        assert!(ended.is_ok(), "open {open} {seen:?}");
        Ok(())
    });
}

#[test]
fn h1_copying_both_ways_tells_a_reset_at_once() {
    on_every_driver(async |env| {
        let held: Rc<RefCell<Vec<TcpStream>>> = Rc::default();
        let h = Rc::clone(&held);
        let target = env.shard().serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
            h.borrow_mut().push(stream);
            Ok(())
        })?;
        let mut first = TcpStream::connect(target.local_addr()).await?;
        let mut second = TcpStream::connect(target.local_addr()).await?;
        let port = second.local_addr()?;
        while held.borrow().len() < 2 {
            env.shard().sleep(MS).await;
        }
        let shard = env.shard().clone();
        let task = env.shard().spawn(async move { copy_bidirectional(&mut first, &mut second).await });
        let at = held.borrow().iter().position(|s| s.peer_addr().ok() == Some(port)).unwrap();
        let mut far = held.borrow_mut().remove(at);
        far.shutdown_write();
        shard.sleep(100 * MS).await;
        far.abort();
        let told = shard.timeout(Duration::from_secs(10), task).await;
        held.borrow_mut().clear();
        target.close().await;
        assert!(told.is_ok(), "not told in ten seconds");
        Ok(())
    });
}

#[test]
fn a0_drain_delivers_what_has_come_on_every_shard() {
    // shard 1's callback is busy while the stop begins; its queue holds datagrams.
    struct Slow {
        got: Arc<Mutex<Vec<String>>>,
        gate: Arc<std::sync::Barrier>,
        shard: usize,
    }
    impl DatagramProtocol for Slow {
        fn datagram_received(&mut self, _: &UdpTransport, d: Datagram<'_>) -> Result<()> {
            let text = String::from_utf8_lossy(d.bytes()).into_owned();
            self.got.lock().unwrap().push(format!("{} {text}", self.shard));
            if text == "block" && self.shard == 1 {
                self.gate.wait(); // blocked
                self.gate.wait(); // go on
            }
            Ok(())
        }
        fn stopped(&mut self, reason: CloseReason) {
            self.got.lock().unwrap().push(format!("{} stopped: {reason}", self.shard));
        }
    }
    let got: Arc<Mutex<Vec<String>>> = Arc::default();
    let gate = Arc::new(std::sync::Barrier::new(2));
    let addr: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let (g, b, a) = (Arc::clone(&got), Arc::clone(&gate), Arc::clone(&addr));
    let running = Runtime::new()
        .shards(2)
        .pin(false)
        .start(async move |shard: Shard| {
            let p = Slow { got: Arc::clone(&g), gate: Arc::clone(&b), shard: shard.id().index() };
            let t = shard.listen_udp("127.0.0.1:0", p)?;
            *a.lock().unwrap() = Some(t.local_addr()?);
            Ok(())
        })
        .unwrap();
    let to = addr.lock().unwrap().unwrap();
    // Find a source that goes to shard 1.
    let sock = loop {
        let s = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        s.send_to(b"probe", to).unwrap();
        let before = std::time::Instant::now();
        let at = loop {
            if let Some(last) = got.lock().unwrap().pop() {
                break last;
            }
            assert!(before.elapsed() < Duration::from_secs(5));
            std::thread::yield_now();
        };
        if at == "1 probe" {
            break s;
        }
    };
    sock.send_to(b"block", to).unwrap();
    gate.wait(); // shard 1 is in its callback
    for n in 0..100 {
        sock.send_to(format!("n{n}").as_bytes(), to).unwrap();
    }
    // All of them are in the kernel's queue of shard 1's socket. Now stop.
    let handle = running.handle();
    handle.stop().unwrap();
    // Until shard 0 has closed its own.
    let begun = std::time::Instant::now();
    while !got.lock().unwrap().iter().any(|s| s.starts_with("0 stopped")) {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::yield_now();
    }
    gate.wait();
    let outcome = running.join();
    let got = got.lock().unwrap();
    let count = got.iter().filter(|s| s.starts_with("1 n")).count();
    eprintln!("{outcome:?} delivered {count} of 100; {:?}", got.iter().filter(|s| s.contains("stopped")).collect::<Vec<_>>());
    assert_eq!(count, 100);
}

#[test]
fn i1_a_started_that_fails_is_told_by_listen_udp() {
    struct Fails;
    impl DatagramProtocol for Fails {
        fn started(&mut self, _: &UdpTransport) -> Result<()> {
            Err("no".into())
        }
        fn datagram_received(&mut self, _: &UdpTransport, _: Datagram<'_>) -> Result<()> {
            Ok(())
        }
    }
    on_mio(async |env| {
        let bound = env.shard().listen_udp("127.0.0.1:0", Fails);
        let open = bound.as_ref().map(|t| t.is_open());
        let peer = UdpSocket::bind("127.0.0.1:0")?;
        let connected = env.shard().connect_udp(peer.local_addr()?, Fails);
        eprintln!("connect_udp: {connected:?} {}", connected.as_ref().err().map(|e| e.to_string()).unwrap_or_default());
        assert!(!matches!(open, Ok(false)), "Ok, with a socket that is closed: {open:?}");
        Ok(())
    });
}

#[test]
fn d5_a_stop_polled_often_keeps_one_waker() {
    on_mio(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let service = ClientService::builder(listener.local_addr())?
            .handler(async |_s: TcpStream| { std::future::pending::<()>().await; Ok(()) })
            .start(env.shard());
        service.when_connected(None).await?;
        let alive = Arc::new(AtomicUsize::new(0));
        let clones = Rc::new(Cell::new(0));
        let _ = &clones;
        let w = counted(&alive);
        let mut stop = pin!(service.stop());
        // One waker, polled again and again: strong counts tell the clones.
        struct Strong(Arc<()>);
        impl Wake for Strong { fn wake(self: Arc<Self>) {} }
        let strong = Arc::new(Strong(Arc::new(())));
        let _ = &strong.0;
        let w2 = Waker::from(Arc::clone(&strong));
        drop(w);
        for _ in 0..10_000 {
            let _ = stop.as_mut().poll(&mut Context::from_waker(&w2));
        }
        let kept = Arc::strong_count(&strong);
        // ends with the runtime
        listener.close().await;
        env.handle().abort();
        assert!(kept < 100, "{kept} clones of one waker");
        Ok(())
    });
}

#[test]
fn f2_a_stop_while_preparing_waits_for_the_connection_to_end() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let log = Log::new();
        let l = log.clone();
        let service = ClientService::builder(listener.local_addr())?
            .factory(move || Probe::new(&l, |_, _| None))
            .prepare(async |_t: Transport| std::future::pending().await)
            .start(env.shard());
        log.saw("connected").await;
        shardwise::yield_now().await;
        service.stop().await;
        let seen = log.seen();
        log.ended().await;
        listener.close().await;
        assert!(seen.contains(&"disconnected"), "stopped is told before the end: {seen:?}");
        Ok(())
    });
}

#[test]
fn g2_a_joined_connection_whose_other_half_is_lost_ends_when_its_peer_finishes() {
    on_every_driver(async |env| {
        let held: Rc<RefCell<Vec<TcpStream>>> = Rc::default();
        let h = Rc::clone(&held);
        let target = env.shard().serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
            h.borrow_mut().push(stream);
            Ok(())
        })?;
        let (la, lb) = (Log::new(), Log::new());
        let (a2, b2) = (la.clone(), lb.clone());
        let a = env.shard().connect_tcp(target.local_addr(), move || Probe::new(&a2, |_, _| None)).await?;
        let b = env.shard().connect_tcp(target.local_addr(), move || Probe::new(&b2, |_, _| None)).await?;
        a.register_producer(b.clone(), ProducerKind::Push)?;
        b.register_producer(a.clone(), ProducerKind::Push)?;
        while held.borrow().len() < 2 {
            env.shard().sleep(MS).await;
        }
        a.abort();
        la.ended().await;
        held.borrow_mut().clear(); // FIN from b's peer
        let ended = env.shard().timeout(Duration::from_secs(30), lb.ended()).await;
        if ended.is_err() {
            b.abort();
            lb.ended().await;
        }
        target.close().await;
        assert!(ended.is_ok(), "still there after its peer's FIN: {:?}", lb.seen());
        Ok(())
    });
}

#[test]
fn j1_a_shared_socket_dropped_on_one_shard_leaves_the_others() {
    on_mio(async |env| {
        let options = UdpOptions::new().shared(true);
        let mine = UdpSocket::bind_with("127.0.0.1:0", &options)?;
        let addr = mine.local_addr()?;
        let far = env.handle().call_async(ShardId::new(1), async move |shard: Shard| {
            let theirs = UdpSocket::bind_with(addr, &UdpOptions::new().shared(true)).unwrap();
            let mut b = [0; 8];
            shard.timeout(300 * MS, theirs.recv_from(&mut b)).await.map(|r| format!("{r:?}")).ok()
        });
        let task = env.shard().spawn(far);
        env.shard().sleep(100 * MS).await;
        drop(mine);
        let told = task.await??;
        assert_eq!(told, None);
        Ok(())
    });
}

#[test]
fn k1_the_budget_of_datagrams_counts_joined_ones() {
    struct PerTurn { count: Rc<Cell<usize>>, most: Rc<Cell<usize>>, total: Rc<Cell<usize>> }
    impl DatagramProtocol for PerTurn {
        fn datagram_received(&mut self, _: &UdpTransport, _: Datagram<'_>) -> Result<()> {
            self.count.set(self.count.get() + 1);
            self.total.set(self.total.get() + 1);
            self.most.set(self.most.get().max(self.count.get()));
            Ok(())
        }
    }
    on_mio(async |env| {
        let (count, most, total) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let p = PerTurn { count: count.clone(), most: most.clone(), total: total.clone() };
        let t = env.shard().listen_udp_with("127.0.0.1:0", &UdpOptions::new().receive_joined(true), p)?;
        let to = t.local_addr()?;
        let s = UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..100 {
            s.transport().try_send_segments(&[7; 60], 1, Some(to))?;
        }
        // Each turn begins the count anew.
        fn again(shard: &Shard, count: Rc<Cell<usize>>, left: usize) {
            count.set(0);
            if left > 0 {
                shard.call_later(Duration::ZERO, move |shard| again(shard, count, left - 1));
            }
        }
        again(env.shard(), count, 200);
        env.shard().sleep(100 * MS).await;
        assert!(most.get() <= 64, "{} datagrams in one turn, {} in all", most.get(), total.get());
        Ok(())
    });
}

#[test]
fn l1_a_task_gets_nothing_after_its_socket_was_closed() {
    on_mio(async |env| {
        let s = Rc::new(UdpSocket::bind("127.0.0.1:0")?);
        let to = s.local_addr()?;
        let c = std::net::UdpSocket::bind("127.0.0.1:0")?;
        let r = Rc::clone(&s);
        let task = env.shard().spawn(async move {
            let mut b = [0; 8];
            r.recv_from(&mut b).await.unwrap();
            drop(r.transport().close());
            r.recv_from(&mut b).await.map(|r| r.len).map_err(|e| e.kind())
        });
        shardwise::yield_now().await;
        shardwise::yield_now().await;
        c.send_to(b"a", to)?;
        c.send_to(b"b", to)?;
        c.send_to(b"c", to)?;
        assert_eq!(task.await?, Err(io::ErrorKind::NotConnected));
        Ok(())
    });
}

struct Half {
    stream: std::os::unix::net::UnixStream,
    notes: Notes,
}
impl AsFd for Half {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
impl FdHandler for Half {
    fn readable(&mut self, fd: &Fd) -> Result<()> {
        let mut b = [0; 64];
        let n = self.stream.read(&mut b)?;
        self.notes.add(format!("read {n}"));
        if n == 0 {
            fd.shard().remove_reader(fd);
        }
        Ok(())
    }
    fn writable(&mut self, fd: &Fd) -> Result<()> {
        self.notes.add("writable");
        // There is room, or nobody to write to; now read what there is.
        fd.shard().remove_writer(fd);
        fd.shard().add_reader(fd)?;
        Ok(())
    }
    fn ended(&mut self, reason: CloseReason) {
        self.notes.add(format!("ended: {reason}"));
    }
}

#[test]
fn m1_a_hang_up_does_not_take_what_is_unread_while_only_writing_is_asked_for() {
    on_mio(async |env| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        io::Write::write_all(&mut &theirs, b"last words")?;
        drop(theirs);
        let notes = Notes::default();
        let guard = env.shard().watch(Half { stream: ours, notes: notes.clone() })?;
        env.shard().add_writer(&guard)?;
        env.shard().sleep(50 * MS).await;
        assert_eq!(notes.count("read 10"), 1, "{:?}", notes.all());
        Ok(())
    });
}

#[test]
fn n1_resolver_threads_that_never_end_go_on_resolving() {
    let mut config = Config::default();
    config.resolver_thread_idle = Duration::MAX;
    config.resolve_timeout = Duration::from_secs(2);
    let resolver = BlockingResolver::new(&config, |_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]));
    let told = Arc::new(Mutex::new(Vec::new()));
    let t = Arc::clone(&told);
    let outcome = Runtime::new().shards(1).pin(false).config(config).resolver(resolver).start(async move |shard: Shard| {
        for n in 0..12 {
            if let Err(error) = shard.resolve(&format!("host{n}.example"), 80).await {
                t.lock().unwrap().push(format!("{n}: {error}"));
            }
        }
        shard.stop()?;
        Ok(())
    }).map(|r| r.join());
    eprintln!("{outcome:?}");
    assert!(told.lock().unwrap().is_empty(), "{:?}", told.lock().unwrap());
}

#[test]
fn l2_nothing_is_called_between_close_and_stopped() {
    struct P(Notes);
    impl DatagramProtocol for P {
        fn datagram_received(&mut self, _: &UdpTransport, _: Datagram<'_>) -> Result<()> { Ok(()) }
        fn refused(&mut self, _: &UdpTransport) -> Result<()> { self.0.add("refused"); Ok(()) }
        fn stopped(&mut self, _: CloseReason) { self.0.add("stopped") }
    }
    on_mio(async |env| {
        let nobody = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let notes = Notes::default();
        let t = env.shard().connect_udp(nobody, P(notes.clone()))?;
        let pipe = io::pipe()?;
        t.try_send(b"x")?;
        // Another event of the same turn, served before, closes it.
        let _ = pipe;
        let t2 = t.clone();
        let c = notes.clone();
        env.handle().call_from_thread(ShardId::new(0), |_shard: &Shard| {}).ok();
        env.shard().call_later(Duration::ZERO, move |_| { drop(t2.close()); c.add("closed"); });
        notes.until("stopped", 1).await;
        eprintln!("{:?}", notes.all());
        Ok(())
    });
}

/// A task that is woken for one direction must not be left when the list of another is shared.
#[test]
fn o1_two_tasks_wait_for_one_descriptor_each_its_own_way() {
    on_mio(async |env| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let fd = Rc::new(AsyncFd::new(ours)?);
        // A wait for reading that was given up.
        {
            let w = counted(&Arc::new(AtomicUsize::new(0)));
            let _ = pin!(fd.readable()).poll(&mut Context::from_waker(&w));
        }
        fd.writable().await?;
        io::Write::write_all(&mut &theirs, b"x")?;
        env.shard().timeout(Duration::from_secs(2), fd.readable()).await??;
        Ok(())
    });
}

/// copy in one direction: the target breaks while the source is silent.
#[test]
fn h2_copy_tells_when_its_target_breaks_while_its_source_is_silent() {
    on_every_driver(async |env| {
        let held: Rc<RefCell<Vec<TcpStream>>> = Rc::default();
        let h = Rc::clone(&held);
        let target = env.shard().serve_tcp("127.0.0.1:0", async move |stream: TcpStream| {
            h.borrow_mut().push(stream);
            Ok(())
        })?;
        let mut first = TcpStream::connect(target.local_addr()).await?;
        let mut second = TcpStream::connect(target.local_addr()).await?;
        let port = second.local_addr()?;
        while held.borrow().len() < 2 {
            env.shard().sleep(MS).await;
        }
        let task = env.shard().spawn(async move { copy(&mut first, &mut second).await });
        let at = held.borrow().iter().position(|s| s.peer_addr().ok() == Some(port)).unwrap();
        let far = held.borrow_mut().remove(at);
        far.abort();
        let told = env.shard().timeout(Duration::from_secs(5), task).await;
        held.borrow_mut().clear();
        target.close().await;
        assert!(told.is_ok(), "not told in five seconds");
        Ok(())
    });
}

/// The protocol is connected although whoever asked was told that it took too long.
#[test]
fn f3_an_attempt_that_timed_out_for_its_asker_leaves_no_connection() {
    on_every_driver(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let log = Log::new();
        let l = log.clone();
        // Dropped in the same turn in which it came to stand: what a timeout or a select does.
        let place: Rc<RefCell<Option<Connecting>>> = Rc::default();
        let p = Rc::clone(&place);
        let connecting = env.shard().connect_tcp(listener.local_addr(), move || {
            let p = Rc::clone(&p);
            Probe::new(&l, move |call, _| {
                if matches!(call, common::Call::Connected) {
                    p.borrow_mut().take();
                }
                None
            })
        });
        *place.borrow_mut() = Some(connecting);
        log.saw("connected").await;
        let ended = env.shard().timeout(Duration::from_secs(5), log.ended()).await;
        if ended.is_err() {
            log.transport().await.abort();
            log.ended().await;
        }
        listener.close().await;
        assert!(ended.is_ok(), "given up, and still connected");
        Ok(())
    });
}

/// Many names at once on one turn: more than the queue, with threads idle.
#[test]
fn n2_an_idle_pool_takes_as_many_as_its_threads_and_its_queue() {
    let mut config = Config::default();
    config.resolver_queue_max = 2;
    let resolver = BlockingResolver::new(&config, |_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]));
    let told = Arc::new(Mutex::new(Vec::new()));
    let t = Arc::clone(&told);
    let _ = Runtime::new().shards(1).pin(false).config(config).resolver(resolver).start(async move |shard: Shard| {
        let tasks: Vec<_> = (0..8).map(|n| {
            let s = shard.clone();
            shard.spawn(async move { s.resolve(&format!("h{n}.example"), 80).await.map_err(|e| e.to_string()) })
        }).collect();
        for task in tasks {
            if let Err(error) = task.await? {
                t.lock().unwrap().push(error);
            }
        }
        shard.stop()?;
        Ok(())
    }).map(|r| r.join());
    let told = told.lock().unwrap();
    assert!(told.is_empty(), "{} of 8 refused, by 8 threads without work: {:?}", told.len(), told.first());
}

#[test]
fn p1_a_partial_send_is_told_when_there_is_room() {
    struct P(Notes);
    impl DatagramProtocol for P {
        fn datagram_received(&mut self, _: &UdpTransport, _: Datagram<'_>) -> Result<()> { Ok(()) }
        fn sendable(&mut self, _: &UdpTransport) -> Result<()> { self.0.add("sendable"); Ok(()) }
    }
    on_mio(async |env| {
        let peer = std::net::UdpSocket::bind("127.0.0.1:0")?;
        let notes = Notes::default();
        let t = env.shard().connect_udp(peer.local_addr()?, P(notes.clone()))?;
        let sent = t.try_send_segments(&[7; 200], 1, None)?;
        if sent == 200 {
            eprintln!("run under strace -f -e inject=sendmsg:error=ENOBUFS:when=2");
            return Ok(());
        }
        eprintln!("sent {sent} of 200");
        let told = env.shard().timeout(Duration::from_secs(2), notes.until("sendable", 1)).await;
        assert!(told.is_ok(), "no room, and never told of any");
        Ok(())
    });
}

mod subscriber {
    use super::*;
    thread_local! { pub static SOCKET: RefCell<Option<UdpTransport>> = const { RefCell::new(None) }; }
    pub struct UsesTheShard;
    impl tracing::Subscriber for UsesTheShard {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool { true }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id { tracing::span::Id::from_u64(1) }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            // As a log over UDP does.
            let socket = SOCKET.with_borrow(|s| s.clone());
            if let Some(socket) = socket { let _ = socket.try_send_to(b"log", "127.0.0.1:9"); }
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
}

#[test]
fn p2_no_borrow_is_held_while_something_is_logged() {
    on_mio(async |_env| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        subscriber::SOCKET.with_borrow_mut(|s| *s = Some(socket.transport().clone()));
        let sent = tracing::subscriber::with_default(subscriber::UsesTheShard, || {
            // A destination that cannot be cut for: port 0.
            socket.transport().try_send_segments(&[7; 300], 100, Some("127.0.0.1:0".parse().unwrap()))
        });
        subscriber::SOCKET.with_borrow_mut(|s| s.take());
        eprintln!("{sent:?}");
        Ok(())
    });
}

/// A waker that goes back to its shard when it is cloned.
#[test]
fn d6_a_waker_of_a_service_is_not_cloned_under_a_borrow() {
    use std::task::{RawWaker, RawWakerVTable};
    static VT: RawWakerVTable = RawWakerVTable::new(
        |p| {
            let s = unsafe { &*(p as *const ClientService) };
            let _ = s.when_connected(None);
            drop(s.stop());
            let mut again = pin!(s.stop());
            let _ = again.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            RawWaker::new(p, &VT)
        },
        |_| {}, |_| {}, |_| {},
    );
    on_mio(async |env| {
        let listener = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let service = ClientService::builder(listener.local_addr())?.factory(|| Echo).start(env.shard());
        service.when_connected(None).await?;
        let w = unsafe { Waker::from_raw(RawWaker::new(&service as *const ClientService as *const (), &VT)) };
        let mut stop = pin!(service.stop());
        let _ = stop.as_mut().poll(&mut Context::from_waker(&w));
        Ok(())
    });
}

#[test]
fn h3_a_drain_does_not_make_half_an_upload_look_whole() {
    use std::io::Write;
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = upstream.local_addr().unwrap();
    let addr: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let a = Arc::clone(&addr);
    let running = Runtime::new().shards(1).pin(false).start(async move |shard: Shard| {
        let proxy = shard.serve_tcp("127.0.0.1:0", async move |mut client: TcpStream| {
            let mut up = TcpStream::connect(to).await?;
            let done = copy_bidirectional(&mut client, &mut up).await;
            eprintln!("copy: {done:?}");
            Ok(())
        })?;
        *a.lock().unwrap() = Some(proxy.local_addr());
        Ok(())
    }).unwrap();
    let mut client = std::net::TcpStream::connect(addr.lock().unwrap().unwrap()).unwrap();
    client.write_all(b"half").unwrap();
    let (mut up, _) = upstream.accept().unwrap();
    up.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut b = [0; 16];
    assert_eq!(up.read(&mut b).unwrap(), 4);
    running.handle().stop().unwrap();
    let told = up.read(&mut b);
    let _ = client.write_all(b"rest");
    drop(client);
    drop(up);
    let _ = running.join();
    assert!(!matches!(told, Ok(0)), "the upload ends in order after its half");
}
