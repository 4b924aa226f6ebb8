//! Descriptors beyond what the process, or its user, may have. Each in a process of its own, whose limits it changes.

use std::cell::RefCell;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as Theirs;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Uid, set_capabilities, set_thread_res_uid};
use shardwise::{CloseReason, Input, Protocol, Result, Transport};

use crate::faults::{in_a_child, open_descriptors};
use crate::on_a_shard;

/// Sends one byte with all of `descriptors`; waits for room, and until fewer are under way.
fn send(socket: &Theirs, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    socket.set_write_timeout(Some(crate::faults::PATIENCE))?;
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        match sendmsg(socket, &[IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::TOOMANYREFS) => std::thread::yield_now(),
            sent => return sent.map(drop).map_err(std::io::Error::from),
        }
    }
}

fn limit_open_descriptors(count: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum }).unwrap();
}

/// Makes this thread, and those it starts, another user's, of whom nothing is under way, if it may; without capabilities.
fn become_nobody_else() {
    let uid = Uid::from_raw(50_000 + std::process::id() % 10_000);
    let _ = set_thread_res_uid(uid, uid, uid);
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).unwrap();
}

/// Counts bytes, and tells why it ended. It never takes a descriptor.
#[derive(Clone, Default)]
struct Sink {
    bytes: Rc<RefCell<usize>>,
    descriptors: Rc<RefCell<usize>>,
    ended: Rc<RefCell<Option<CloseReason>>>,
}

impl Protocol for Sink {
    fn descriptor_received(&mut self, _: &Transport, _: std::os::fd::OwnedFd) -> Result<()> {
        *self.descriptors.borrow_mut() += 1;
        Ok(())
    }

    fn data_received(&mut self, _: &Transport, input: &mut Input<'_>) -> Result<()> {
        *self.bytes.borrow_mut() += input.take().len();
        Ok(())
    }

    fn disconnected(&mut self, reason: CloseReason) {
        *self.ended.borrow_mut() = Some(reason);
    }
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        shardwise::sleep(Duration::from_millis(1)).await;
    }
}

/// Faults, row 76, at its full size.
#[test]
fn ten_thousand_messages_of_253_descriptors_that_nobody_asked_for_leave_the_table_flat() {
    let name = "limits::ten_thousand_messages_of_253_descriptors_that_nobody_asked_for_leave_the_table_flat";
    in_a_child(name, || {
        on_a_shard(async |shard| {
            const MESSAGES: usize = 10_000;
            let (ours, theirs) = Theirs::pair()?;
            let sink = Sink::default();
            let made = sink.clone();
            shard.adopt_stream_connection(ours.into(), move || made.clone())?;
            let before = open_descriptors();
            let flood = std::thread::spawn(move || {
                let stdin = std::io::stdin();
                let descriptors = [stdin.as_fd(); 253];
                (0..MESSAGES).try_for_each(|_| send(&theirs, &descriptors))
            });
            let mut most = 0;
            while *sink.bytes.borrow() < MESSAGES && sink.ended.borrow().is_none() {
                shardwise::sleep(Duration::from_millis(1)).await;
                most = most.max(open_descriptors());
            }
            flood.join().expect("it does not panic")?;
            assert_eq!(*sink.bytes.borrow(), MESSAGES);
            assert!(most <= before, "{most} open, {before} before");
            assert_eq!(*sink.descriptors.borrow(), 0);
            until(|| sink.ended.borrow().is_some()).await;
            assert!(matches!(*sink.ended.borrow(), Some(CloseReason::PeerFinished)), "{:?}", sink.ended);
            Ok(())
        })
    });
}

/// MSG_CTRUNC: the kernel has closed those that did not fit, so that what came is not what was sent.
#[test]
fn descriptors_for_which_the_process_has_no_room_end_the_connection_and_none_is_kept() {
    let name = "limits::descriptors_for_which_the_process_has_no_room_end_the_connection_and_none_is_kept";
    in_a_child(name, || {
        on_a_shard(async |shard| {
            let (ours, theirs) = Theirs::pair()?;
            let (spared, mut spares) = Theirs::pair()?;
            let (sink, other) = (Sink::default(), Sink::default());
            let (made, made_too) = (sink.clone(), other.clone());
            let transport =
                shard.adopt_stream_connection(ours.into(), move || made.clone())?.expect("it is made");
            shard.adopt_stream_connection(spared.into(), move || made_too.clone())?;
            transport.set_takes_descriptors(true);
            let before = open_descriptors();
            limit_open_descriptors(before as u64 + 20);
            send(&theirs, &[std::io::stdin().as_fd(); 64])?;
            until(|| sink.ended.borrow().is_some()).await;
            let ended = sink.ended.take().expect("looked at above");
            let CloseReason::Os { source, .. } = &ended else { panic!("{ended:?}") };
            assert_eq!(source.kind(), std::io::ErrorKind::InvalidData, "{ended}");
            assert!(source.to_string().contains("MSG_CTRUNC"), "{ended}");
            assert_eq!((*sink.bytes.borrow(), *sink.descriptors.borrow()), (0, 0), "nothing half is told");
            assert!(open_descriptors() <= before, "{} open, {before} before", open_descriptors());
            spares.write_all(b"the others go on")?;
            until(|| *other.bytes.borrow() == 16).await;
            Ok(())
        })
    });
}

/// Faults, row 77: so many of this user's descriptors are under way that the kernel takes no more (`ETOOMANYREFS`).
/// `CAP_SYS_RESOURCE` would lift that limit, so the process gives its capabilities up; and the
/// limit is a user's, so it becomes another one.
#[test]
fn too_many_descriptors_under_way_make_sending_wait_and_the_connection_is_kept() {
    let name = "limits::too_many_descriptors_under_way_make_sending_wait_and_the_connection_is_kept";
    in_a_child(name, || {
        let limit = open_descriptors() + 60;
        become_nobody_else();
        on_a_shard(async move |shard| {
            let (ours, mut theirs) = Theirs::pair()?;
            // The socket goes through itself: each of these keeps its own queue alive.
            let itself = ours.try_clone()?;
            let sink = Sink::default();
            let made = sink.clone();
            let transport =
                shard.adopt_stream_connection(ours.into(), move || made.clone())?.expect("it is made");
            limit_open_descriptors(limit as u64);
            let mut sent = 0;
            while transport.buffered() == 0 {
                transport.send_descriptor(itself.try_clone()?.into())?;
                transport.write(b"x")?;
                sent += 1;
                for _ in 0..50 {
                    if transport.buffered() == 0 {
                        break;
                    }
                    shardwise::sleep(Duration::from_millis(1)).await;
                }
                assert!(sent <= limit + 8, "the kernel never says no");
            }
            transport.write(b"behind it")?;
            shardwise::sleep(Duration::from_millis(50)).await;
            assert!(transport.is_open(), "{:?}", sink.ended);
            assert_eq!(transport.buffered(), 1 + 9, "nothing overtakes the byte it travels with");
            // Plain reading closes them, and with that there is room.
            let mut came = vec![0; sent + 9];
            let reader = std::thread::spawn(move || {
                theirs
                    .set_read_timeout(Some(crate::faults::PATIENCE))
                    .and_then(|()| theirs.read_exact(&mut came))?;
                std::io::Result::Ok((theirs, came))
            });
            until(|| transport.buffered() == 0 || !transport.is_open()).await;
            let (mut theirs, came) = reader.join().expect("it does not panic")?;
            assert!(came.ends_with(b"behind it"));
            theirs.write_all(b"still here")?;
            until(|| *sink.bytes.borrow() == 10).await;
            assert!(transport.is_open());
            Ok(())
        })
    });
}
