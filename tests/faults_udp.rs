//! Datagrams whose system calls fail, by `strace`. Each of these tests runs itself again in a child under it.

mod faults;

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc;

use faults::{PATIENCE, is_child, itself, may_trace};
use shardwise::{CloseReason, Datagram, DatagramProtocol, Result, Runtime, SendError, Shard, UdpTransport};

/// Runs `body` in a child, with `inject` done to its system calls. It counts them for each thread.
fn with_faults(test: &str, call: &str, inject: &str, body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    if !may_trace() {
        return;
    }
    let mut program = Command::new("strace");
    program.args(["-f", "--seccomp-bpf", "-qq", "-e", &format!("trace={call}")]);
    program.args(["-e", &format!("inject={call}:{inject}"), "-o", "/dev/null"]);
    program.arg(std::env::current_exe().unwrap());
    itself(&mut program, test);
    let output = program.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the child: {}\n{}\n{text}", output.status, {
        String::from_utf8_lossy(&output.stdout)
    });
}

/// Tells the test what it is told.
struct Tells(mpsc::Sender<String>);

impl DatagramProtocol for Tells {
    fn datagram_received(&mut self, _: &UdpTransport, datagram: Datagram<'_>) -> Result<()> {
        self.0.send(String::from_utf8_lossy(datagram.bytes()).into_owned())?;
        Ok(())
    }

    fn sendable(&mut self, _: &UdpTransport) -> Result<()> {
        self.0.send("sendable".into())?;
        Ok(())
    }

    fn stopped(&mut self, reason: CloseReason) {
        let _ = self.0.send(format!("stopped: {reason}"));
    }
}

/// Runs `start` on one shard; gives what it returned, what it is told from now on, and the runtime.
fn on_a_shard<T: Send + 'static>(
    start: impl Fn(&Shard, Tells) -> T + Send + Sync + 'static,
) -> (T, mpsc::Receiver<String>, shardwise::Running) {
    let (told, tells) = mpsc::channel();
    let (give, result) = mpsc::channel();
    let app = async move |shard: Shard| {
        let _ = give.send(start(&shard, Tells(told.clone())));
        Ok(())
    };
    let running = Runtime::new().shards(1).pin(false).start(app).unwrap();
    (result.recv().unwrap(), tells, running)
}

#[test]
fn a_batch_that_was_sent_in_part_is_followed_by_word_of_room() {
    let test = "a_batch_that_was_sent_in_part_is_followed_by_word_of_room";
    // No memory, and a filter that says no: either way there is somebody who sends the rest.
    for error in ["ENOBUFS", "EPERM"] {
        with_faults(test, "sendmsg", &format!("error={error}:when=2"), || {
            let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
            let addr = peer.local_addr().unwrap();
            let (sent, told, running) = on_a_shard(move |shard, tells| {
                let transport = shard.connect_udp(addr, tells).unwrap();
                transport.try_send_segments(&[7; 200], 1, None).unwrap()
            });
            assert_eq!(sent, 64, "as many as the kernel cuts from one call");
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "sendable");
            running.stop().unwrap();
            running.join().unwrap();
        });
    }
}

/// What UNIX sockets do for real when the receiver's queue is full.
#[test]
fn a_kernel_that_has_room_and_refuses_all_the_same_is_asked_again_later() {
    let test = "a_kernel_that_has_room_and_refuses_all_the_same_is_asked_again_later";
    with_faults(test, "sendto", "error=EAGAIN:when=1..8", || {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = peer.local_addr().unwrap();
        let (sent, told, running) = on_a_shard(move |shard, tells| {
            let transport = shard.connect_udp(addr, tells).unwrap();
            transport.try_send(b"x").map_err(|error| error.to_string())
        });
        assert_eq!(sent, Err(SendError::NoRoom.to_string()));
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "sendable");
        running.stop().unwrap();
        running.join().unwrap();
    });
}

fn listening() -> (SocketAddr, mpsc::Receiver<String>, shardwise::Running) {
    on_a_shard(|shard, tells| shard.listen_udp("127.0.0.1:0", tells).unwrap().local_addr().unwrap())
}

#[test]
fn a_socket_that_may_not_receive_is_given_up_and_does_not_spin() {
    let test = "a_socket_that_may_not_receive_is_given_up_and_does_not_spin";
    with_faults(test, "recvmmsg", "error=EPERM", || {
        let (addr, told, running) = listening();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"never seen", addr).unwrap();
        let end = told.recv_timeout(PATIENCE).unwrap();
        assert!(end.starts_with("stopped: ") && end.contains("receive"), "{end}");
        assert!(running.handle().report()[0].turns < 1000);
        running.stop().unwrap();
        running.join().unwrap();
    });
}

#[test]
fn a_receive_that_fails_for_a_while_costs_nothing() {
    let test = "a_receive_that_fails_for_a_while_costs_nothing";
    for inject in ["error=EPERM:when=1..10", "error=ENOMEM:when=1..100", "error=EHOSTUNREACH:when=1..100"] {
        with_faults(test, "recvmmsg", inject, || {
            let (addr, told, running) = listening();
            UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"late", addr).unwrap();
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "late");
            running.stop().unwrap();
            running.join().unwrap();
        });
    }
}
