//! Descriptors that travel with bytes.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

use shardwise::testing::{Env, on_every_driver};
use shardwise::{
    DescriptorRefusal, Flow, Input, Layer, Protocol, Result, Transport, UnixConnectOptions,
    UnixListenOptions, UnixStream,
};

use crate::common::round_trip;
use crate::faults::open_descriptors;
use crate::{on_a_shard, unique_name};

fn file() -> File {
    tempfile()
}

fn tempfile() -> File {
    let path = std::env::temp_dir().join(format!("shardwise-file-{}", unique_name("file")));
    let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

fn same_file(one: &impl AsFd, other: &impl AsFd) -> bool {
    let id = |fd: &dyn Fn() -> OwnedFd| {
        let found = File::from(fd()).metadata().unwrap();
        (found.dev(), found.ino())
    };
    id(&|| one.as_fd().try_clone_to_owned().unwrap()) == id(&|| other.as_fd().try_clone_to_owned().unwrap())
}

/// A connected pair of streams: ours and the server's, which takes descriptors.
async fn pair(env: &Env) -> Result<(UnixStream, UnixStream)> {
    let (sender, mut receiver) = env.shard().channel_of_streams();
    let name = unique_name("pair");
    let options = UnixListenOptions::new().descriptors(true);
    let listener = env.shard().serve_unix_with(&name, &options, move |stream| {
        let sender = sender.clone();
        async move {
            sender.put(stream);
            Ok(())
        }
    })?;
    let client = UnixStream::connect_unix(&name).await?;
    let server = receiver.take().await;
    listener.close().await;
    Ok((client, server))
}

/// A place for one stream.
trait Channel {
    fn channel_of_streams(&self) -> (Slot, Slot);
}

#[derive(Clone, Default)]
struct Slot {
    stream: Rc<RefCell<Option<UnixStream>>>,
    waker: Rc<RefCell<Option<std::task::Waker>>>,
}

impl Channel for shardwise::Shard {
    fn channel_of_streams(&self) -> (Slot, Slot) {
        let slot = Slot::default();
        (slot.clone(), slot)
    }
}

impl Slot {
    fn put(&self, stream: UnixStream) {
        *self.stream.borrow_mut() = Some(stream);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn take(&mut self) -> UnixStream {
        std::future::poll_fn(|context| match self.stream.take() {
            Some(stream) => std::task::Poll::Ready(stream),
            None => {
                *self.waker.borrow_mut() = Some(context.waker().clone());
                std::task::Poll::Pending
            }
        })
        .await
    }
}

#[test]
fn a_passed_descriptor_refers_to_the_same_open_file() {
    on_every_driver(async |env| {
        let (mut client, mut server) = pair(&env).await?;
        let mut sent = file();
        client.send_descriptor(sent.try_clone()?.into()).await?;
        client.write_all(b"!").await?;
        let mut received = File::from(server.read_descriptor().await?.expect("one was sent"));
        server.read_exact(&mut [0]).await?;
        received.write_all(b"through the other one")?;
        sent.rewind()?;
        let mut text = String::new();
        sent.read_to_string(&mut text)?;
        assert_eq!(text, "through the other one");
        let flags = rustix::io::fcntl_getfd(&received)?;
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "closed on exec");
        Ok(())
    });
}

#[test]
fn descriptors_keep_their_order_and_leave_with_the_byte_that_was_written_next() {
    on_every_driver(async |env| {
        let (mut client, mut server) = pair(&env).await?;
        let files: Vec<File> = (0..6).map(|_| file()).collect();
        // None, one, two, none, three: before each byte.
        let mut next = files.iter();
        for count in [0, 1, 2, 0, 3] {
            for file in next.by_ref().take(count) {
                client.send_descriptor(file.try_clone()?.into()).await?;
            }
            client.write_all(&[count as u8]).await?;
        }
        let mut received = Vec::new();
        for count in [0, 1, 2, 0, 3] {
            let mut byte = [0];
            server.read_exact(&mut byte).await?;
            assert_eq!(byte, [count as u8]);
            // Those of this byte are there by now; of a later one they may be.
            while let Some(descriptor) = server.try_read_descriptor() {
                received.push(descriptor);
            }
            let sent_by_now = match received.len() {
                len if count == 0 => len,
                len => len.max(1),
            };
            assert!(received.len() >= sent_by_now);
        }
        assert_eq!(received.len(), files.len());
        assert!(received.iter().zip(&files).all(|(one, other)| same_file(one, other)), "in their order");
        Ok(())
    });
}

/// Faults, row 75: one message carries 253, and that fits; more take a byte each.
#[test]
fn one_ten_and_253_descriptors_travel_with_one_byte() {
    on_every_driver(async |env| {
        let (mut client, mut server) = pair(&env).await?;
        let file = file();
        for count in [1, 10, 253, 256] {
            for _ in 0..count {
                client.send_descriptor(file.try_clone()?.into()).await?;
            }
            client.write_all(b"ab").await?;
            for number in 0..count {
                let received = server.read_descriptor().await?;
                assert!(received.is_some_and(|received| same_file(&received, &file)), "{number} of {count}");
            }
            server.read_exact(&mut [0; 2]).await?;
            assert!(server.try_read_descriptor().is_none());
        }
        Ok(())
    });
}

struct Collector {
    order: Rc<RefCell<Vec<&'static str>>>,
    descriptors: Rc<RefCell<Vec<OwnedFd>>>,
}

impl Protocol for Collector {
    fn descriptor_received(&mut self, _transport: &Transport, descriptor: OwnedFd) -> Result<()> {
        self.order.borrow_mut().push("descriptor");
        self.descriptors.borrow_mut().push(descriptor);
        Ok(())
    }

    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        self.order.borrow_mut().push("data");
        transport.write(input.take())?;
        Ok(())
    }
}

struct Wrapped<P>(P);

impl<P: Protocol> Layer for Wrapped<P> {
    fn inner(&mut self) -> &mut dyn Protocol {
        &mut self.0
    }
}

#[test]
fn a_protocol_is_given_descriptors_before_their_bytes_also_through_a_layer() {
    on_every_driver(async |env| {
        let name = unique_name("protocol");
        let (order, descriptors) = (Rc::default(), Rc::default());
        let (to_order, to_descriptors) = (Rc::clone(&order), Rc::clone(&descriptors));
        let make = move || {
            Wrapped(Collector { order: Rc::clone(&to_order), descriptors: Rc::clone(&to_descriptors) })
        };
        env.shard().listen_unix_with(&name, &UnixListenOptions::new().descriptors(true), make)?;
        let mut client = UnixStream::connect_unix(&name).await?;
        let files = [file(), file()];
        for file in &files {
            client.send_descriptor(file.try_clone()?.into()).await?;
        }
        round_trip(&mut client, b"x").await?;
        assert_eq!(*order.borrow(), ["descriptor", "descriptor", "data"]);
        let received = descriptors.take();
        assert!(received.iter().zip(&files).all(|(one, other)| same_file(one, other)));
        Ok(())
    });
}

#[test]
fn descriptors_that_came_while_paused_wait_and_come_before_the_bytes() {
    struct Pausing(Collector);
    impl Layer for Pausing {
        fn inner(&mut self) -> &mut dyn Protocol {
            &mut self.0
        }
        fn descriptor_received(&mut self, transport: &Transport, descriptor: OwnedFd) -> Result<()> {
            transport.pause_reading();
            let later = transport.clone();
            drop(
                transport
                    .shard()
                    .call_later(std::time::Duration::from_millis(1), move |_| later.resume_reading()),
            );
            self.0.descriptor_received(transport, descriptor)
        }
    }
    on_every_driver(async |env| {
        let name = unique_name("paused");
        let (order, descriptors): (Rc<RefCell<Vec<_>>>, _) = (Rc::default(), Rc::default());
        let (to_order, to_descriptors) = (Rc::clone(&order), Rc::clone(&descriptors));
        let make = move || {
            Pausing(Collector { order: Rc::clone(&to_order), descriptors: Rc::clone(&to_descriptors) })
        };
        env.shard().listen_unix_with(&name, &UnixListenOptions::new().descriptors(true), make)?;
        let mut client = UnixStream::connect_unix(&name).await?;
        for _ in 0..3 {
            client.send_descriptor(file().into()).await?;
        }
        round_trip(&mut client, b"x").await?;
        assert_eq!(*order.borrow(), ["descriptor", "descriptor", "descriptor", "data"]);
        Ok(())
    });
}

/// Conformance: queueing many descriptors pauses the writer; beyond that they are refused and given back.
#[test]
fn many_unsent_descriptors_pause_the_writer() {
    struct Writer(Rc<RefCell<Vec<&'static str>>>);
    impl Protocol for Writer {
        fn data_received(&mut self, _transport: &Transport, input: &mut Input<'_>) -> Result<()> {
            input.take();
            Ok(())
        }
        fn write_paused(&mut self, _transport: &Transport) -> Result<()> {
            self.0.borrow_mut().push("paused");
            Ok(())
        }
        fn write_resumed(&mut self, _transport: &Transport) -> Result<()> {
            self.0.borrow_mut().push("resumed");
            Ok(())
        }
    }
    on_every_driver(async |env| {
        let name = unique_name("many");
        let options = UnixListenOptions::new().descriptors(true);
        env.shard().serve_unix_with(&name, &options, async |mut stream| {
            for _ in 0..256 {
                assert!(stream.read_descriptor().await?.is_some());
            }
            stream.write_all(b"all").await?;
            Ok(())
        })?;
        let told: Rc<RefCell<Vec<&str>>> = Rc::default();
        let writer = Rc::clone(&told);
        let transport = env.shard().connect_unix(&name, move || Writer(Rc::clone(&writer))).await?;
        let file = file();
        let mut first_above = None;
        for number in 1..=256 {
            let flow = transport.send_descriptor(file.try_clone()?.into())?;
            if flow == Flow::AboveHigh {
                first_above.get_or_insert(number);
            }
        }
        assert_eq!(first_above, Some(65));
        let refused = transport.send_descriptor(file.try_clone()?.into()).unwrap_err();
        assert_eq!(refused.reason(), DescriptorRefusal::Full);
        assert!(same_file(&refused.into_inner(), &file), "given back");
        shardwise::sleep(std::time::Duration::from_millis(1)).await;
        assert_eq!(*told.borrow(), ["paused"]);
        transport.write(b"go")?;
        while told.borrow().len() < 2 {
            shardwise::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(*told.borrow(), ["paused", "resumed"]);
        transport.close();
        Ok(())
    });
}

#[test]
fn a_descriptor_is_refused_where_none_can_be_passed() {
    on_every_driver(async |env| {
        let tcp = env.shard().serve_tcp("127.0.0.1:0", async |mut stream| {
            stream.read_chunk().await?;
            Ok(())
        })?;
        let stream = UnixStream::connect(tcp.local_addr()).await?;
        let refused = stream.transport().send_descriptor(file().into()).unwrap_err();
        assert_eq!(refused.reason(), DescriptorRefusal::NotUnix);
        let (client, server) = pair(&env).await?;
        let transport = client.transport().clone();
        transport.close();
        assert_eq!(transport.send_descriptor(file().into()).unwrap_err().reason(), DescriptorRefusal::Closed);
        drop((client, server));
        Ok(())
    });
}

/// Descriptors are counted by the pipe whose writing ends they are: it ends when the last is closed.
#[test]
fn nobody_keeps_a_descriptor_that_was_not_sent_or_not_wanted() {
    on_every_driver(async |env| {
        // Never sent: no byte follows.
        let (client, server) = pair(&env).await?;
        let (mut reader, writer) = std::io::pipe()?;
        client.transport().send_descriptor(writer.into()).map_err(std::io::Error::from)?;
        drop((client, server));
        shardwise::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(reader.read(&mut [0; 8])?, 0, "closed with its connection");

        // Not wanted.
        let name = unique_name("unwanted");
        env.shard().listen_unix(&name, || crate::common::Echo)?;
        let mut client = UnixStream::connect_unix(&name).await?;
        let (mut reader, writer) = std::io::pipe()?;
        client.send_descriptor(writer.into()).await?;
        round_trip(&mut client, b"x").await?;
        assert_eq!(reader.read(&mut [0; 8])?, 0, "closed unseen");

        // Wanted, and not taken.
        let (mut client, mut server) = pair(&env).await?;
        let (mut reader, writer) = std::io::pipe()?;
        client.send_descriptor(writer.into()).await?;
        client.write_all(b"x").await?;
        server.read_exact(&mut [0]).await?;
        drop((client, server));
        shardwise::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(reader.read(&mut [0; 8])?, 0, "closed with its connection");
        Ok(())
    });
}

#[test]
fn unread_and_unsent_descriptors_move_with_their_connection() {
    on_every_driver(async |env| {
        let (mut client, mut server) = pair(&env).await?;
        let files = [file(), file()];
        client.send_descriptor(files[0].try_clone()?.into()).await?;
        client.write_all(b"xy").await?;
        server.read_exact(&mut [0]).await?;
        client.send_descriptor(files[1].try_clone()?.into()).await?;
        let (client, server) = (client.detach().await?, server.detach().await?);
        let shard = env.shard();
        let (mut client, mut server) = (client.attach(shard)?, server.attach(shard)?);
        client.write_all(b"z").await?;
        for file in &files {
            assert!(same_file(&server.read_descriptor().await?.expect("it came along"), file));
        }
        let mut rest = [0; 2];
        server.read_exact(&mut rest).await?;
        assert_eq!(&rest, b"yz");
        Ok(())
    });
}

/// Faults, row 76: a peer sends descriptors nobody asked for, and more than anybody takes.
#[test]
fn a_flood_of_descriptors_leaves_the_table_as_it_was() {
    let name = "descriptors::a_flood_of_descriptors_leaves_the_table_as_it_was";
    crate::faults::in_a_child(name, || {
        on_a_shard(async |shard| {
            for takes in [false, true] {
                let name = unique_name("flood");
                let options = UnixListenOptions::new().descriptors(takes);
                shard.serve_unix_with(&name, &options, async |mut stream| {
                    // It reads bytes alone. Where it takes descriptors, and leaves them, it comes to a halt; the stop ends that.
                    while stream.read_chunk().await?.is_some() {}
                    Ok(())
                })?;
                let options = UnixConnectOptions::new().timeout(std::time::Duration::from_secs(5));
                let transport = shard.connect_unix_with(&name, &options, || crate::common::Echo).await?;
                let before = open_descriptors();
                let mut most = 0;
                for _ in 0..if takes { 20 } else { 400 } {
                    for _ in 0..64 {
                        transport.send_descriptor(std::io::stdin().as_fd().try_clone_to_owned()?)?;
                    }
                    transport.write(b"x")?;
                    for _ in 0..20 {
                        if transport.buffered() == 0 {
                            break;
                        }
                        shardwise::sleep(std::time::Duration::from_millis(1)).await;
                    }
                    most = most.max(open_descriptors());
                    if transport.buffered() > 0 {
                        break;
                    }
                }
                // What is queued here, and one and a half messages there.
                assert!(most <= before + 64 + 2 * 253 + 8, "{takes}: {most} open, {before} before");
                transport.abort();
                while transport.is_open() {
                    shardwise::sleep(std::time::Duration::from_millis(1)).await;
                }
                for _ in 0..if takes { 0 } else { 1000 } {
                    if open_descriptors() <= before {
                        break;
                    }
                    shardwise::sleep(std::time::Duration::from_millis(1)).await;
                }
                let left = if takes { before + 2 * 253 } else { before };
                assert!(open_descriptors() <= left, "{takes}");
            }
            Ok(())
        })
    });
}
