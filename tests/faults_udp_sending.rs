//! Datagrams that the kernel refuses for a while, or cannot cut: made to by `strace`, in a child.

mod faults;

use std::net::UdpSocket as Plain;

use faults::traced::Traced;
use faults::{PATIENCE, is_child, may_trace};
use shardwise::{Handle, Runtime, Shard, UdpSocket};

const SEGMENT_BYTES: usize = 100;
const SEGMENTS: usize = 12;

/// The child's side: echoes, and answers a datagram that begins with `!` with many, cut by the kernel if it can.
fn serve_until_told() {
    let app = async move |shard: Shard| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        println!("\nlistening {}", socket.local_addr().unwrap());
        drop(shard.spawn(async move {
            let mut buffer = [0; 2000];
            loop {
                let received = socket.recv_from(&mut buffer).await.unwrap();
                let bytes = &buffer[..received.len];
                if bytes.starts_with(b"!") {
                    let all = segments();
                    let sent = socket.transport().try_send_segments(
                        &all,
                        SEGMENT_BYTES as u16,
                        Some(received.source),
                    );
                    assert_eq!(sent.unwrap(), all.len());
                } else {
                    // Waits for room.
                    socket.send_to(bytes, received.source).await.unwrap();
                }
            }
        }));
        Ok(())
    };
    let running = Runtime::new().shards(1).pin(false).start(app).unwrap();
    let handle: Handle = running.handle();
    std::io::stdin().read_line(&mut String::new()).unwrap();
    running.stop().unwrap();
    running.join().unwrap();
    assert_eq!(handle.report()[0].panics, 0);
}

fn segments() -> Vec<u8> {
    (0..SEGMENTS).flat_map(|number| [number as u8; SEGMENT_BYTES]).collect()
}

fn client(traced: &Traced) -> Plain {
    let client = Plain::bind("127.0.0.1:0").unwrap();
    client.connect(traced.addr).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Fault 67: ENOBUFS is waited for, EAGAIN with room and EINTR are asked again at once; none reaches who sends.
#[test]
fn a_sending_task_is_not_told_of_refusals_that_pass() {
    if is_child() {
        return serve_until_told();
    }
    if !may_trace() {
        return;
    }
    for inject in ["error=ENOBUFS:when=1+3", "error=EAGAIN:when=1+2", "error=EINTR:when=1+2"] {
        let traced = Traced::start("a_sending_task_is_not_told_of_refusals_that_pass", "sendto", inject);
        let client = client(&traced);
        for number in 0..30u8 {
            client.send(&[number; 33]).unwrap();
            let mut answer = [0; 64];
            let len = client.recv(&mut answer).unwrap_or_else(|error| panic!("{inject}, {number}: {error}"));
            assert_eq!(&answer[..len], [number; 33], "{inject}");
        }
        let (calls, injected) = traced.end();
        assert!(injected >= 10, "sendto was called {calls} times, and failed {injected} times with {inject}");
    }
}

/// Fault 67: EIO is what a device without checksum offload says. It is asked once, and the datagrams go one by one.
#[test]
fn what_the_kernel_cannot_cut_is_sent_one_by_one_and_it_is_not_asked_again() {
    if is_child() {
        return serve_until_told();
    }
    if !may_trace() {
        return;
    }
    for error in ["EIO", "EOPNOTSUPP"] {
        let traced = Traced::start(
            "what_the_kernel_cannot_cut_is_sent_one_by_one_and_it_is_not_asked_again",
            "sendmsg",
            &format!("error={error}:when=1"),
        );
        let client = client(&traced);
        for burst in 0..3 {
            client.send(b"!").unwrap();
            let mut received = Vec::new();
            for _ in 0..SEGMENTS {
                let mut datagram = [0; 200];
                let len = client.recv(&mut datagram).unwrap();
                assert_eq!(len, SEGMENT_BYTES, "burst {burst}");
                received.extend_from_slice(&datagram[..len]);
            }
            assert!(received == segments(), "burst {burst}");
        }
        let (calls, injected) = traced.end();
        assert_eq!((calls, injected), (1, 1), "{error}");
    }
}
