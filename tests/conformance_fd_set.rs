//! Descriptors of the application: each test's name is a promise of the contract. On mio alone, but for the first: a
//! simulation has no descriptors.

#[path = "common/notes.rs"]
mod notes;

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use notes::Notes;
use shardwise::testing::{Env, on_every_driver, on_every_driver_with};
use shardwise::{AsyncFd, CloseReason, Config, Fd, FdGuard, FdHandler, Result, Runtime, Shard};

type Hook<T> = dyn FnMut(&str, &mut T, &Fd) -> Result<()>;

/// A handler that keeps notes, and does what a test says.
struct Probe<T> {
    source: T,
    notes: Notes,
    hook: Box<Hook<T>>,
}

impl<T: AsFd> AsFd for Probe<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

impl<T: AsFd + 'static> FdHandler for Probe<T> {
    fn readable(&mut self, fd: &Fd) -> Result<()> {
        self.notes.add("readable");
        (self.hook)("readable", &mut self.source, fd)
    }

    fn writable(&mut self, fd: &Fd) -> Result<()> {
        self.notes.add("writable");
        (self.hook)("writable", &mut self.source, fd)
    }

    fn ended(&mut self, reason: CloseReason) {
        self.notes.add(format!("ended: {reason}"));
    }
}

impl<T> Drop for Probe<T> {
    fn drop(&mut self) {
        self.notes.add("dropped");
    }
}

fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    Ok((ours, theirs))
}

fn watch<T: AsFd + 'static>(
    env: &Env,
    notes: &Notes,
    source: T,
    hook: impl FnMut(&str, &mut T, &Fd) -> Result<()> + 'static,
) -> Result<FdGuard> {
    Ok(env.shard().watch(Probe { source, notes: notes.clone(), hook: Box::new(hook) })?)
}

/// Runs `body` on mio.
fn on_mio(body: impl AsyncFn(Env) -> Result<()> + Send + Sync + 'static) {
    on_every_driver_with(
        1,
        Config::default(),
        async move |env| {
            if env.is_simulated() { Ok(()) } else { body(env).await }
        },
    );
}

/// Turns go by, in which whatever is ready is told.
async fn turns(env: &Env) {
    for _ in 0..5 {
        env.shard().sleep(Duration::from_millis(1)).await;
    }
}

/// Reads one byte.
fn one_byte(stream: &mut UnixStream) -> Result<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

#[test]
fn a_simulation_says_that_it_has_no_descriptors() {
    on_every_driver(async |env| {
        if env.is_simulated() {
            let notes = Notes::default();
            let probe = Probe { source: pair()?.0, notes: notes.clone(), hook: Box::new(|_, _, _| Ok(())) };
            let error = env.shard().watch(probe).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(notes.all(), ["dropped"], "what never began does not end");
            assert_eq!(AsyncFd::new(pair()?.0).unwrap_err().kind(), ErrorKind::Unsupported);
        }
        Ok(())
    });
}

#[test]
fn a_reader_is_called_when_bytes_arrive_and_again_while_some_are_left() {
    on_mio(async |env| {
        let (ours, mut theirs) = pair()?;
        let notes = Notes::default();
        let log = notes.clone();
        let guard = watch(&env, &notes, ours, move |_, stream, _| {
            log.add(format!("{}", one_byte(stream)? as char));
            Ok(())
        })?;
        env.shard().add_reader(&guard)?;
        turns(&env).await;
        assert_eq!(notes.count("readable"), 0, "nothing has come");
        theirs.write_all(b"abc")?;
        notes.until("c", 1).await;
        theirs.write_all(b"d")?;
        notes.until("d", 1).await;
        turns(&env).await;
        assert_eq!(
            notes.all(),
            ["readable", "a", "readable", "b", "readable", "c", "readable", "d"],
            "once for each byte, and never for nothing"
        );
        Ok(())
    });
}

#[test]
fn bytes_that_came_before_the_reader_was_added_are_told() {
    on_mio(async |env| {
        let (ours, mut theirs) = pair()?;
        theirs.write_all(b"early")?;
        let notes = Notes::default();
        let guard = watch(&env, &notes, ours, |_, stream, _| {
            let _ = stream.read(&mut [0; 9])?;
            Ok(())
        })?;
        turns(&env).await;
        assert_eq!(notes.all().len(), 0, "nobody has asked");
        env.shard().add_reader(&guard)?;
        notes.until("readable", 1).await;
        Ok(())
    });
}

#[test]
fn a_writer_is_called_while_there_is_room_and_waits_quietly_when_the_kernel_is_full() {
    on_mio(async |env| {
        let (ours, mut theirs) = pair()?;
        let notes = Notes::default();
        let sent = Rc::new(Cell::new(0));
        let counted = Rc::clone(&sent);
        let guard = watch(&env, &notes, ours, move |_, stream, _| {
            match stream.write(&[7; 100_000]) {
                Ok(count) => counted.set(counted.get() + count),
                // 0 bytes are taken: no error, and it goes on waiting.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            Ok(())
        })?;
        env.shard().add_writer(&guard)?;
        notes.until("writable", 1).await;
        turns(&env).await;
        let (calls, full) = (notes.count("writable"), sent.get());
        assert!(full > 0);
        turns(&env).await;
        assert_eq!(notes.count("writable"), calls, "it is not called while there is no room");
        let mut taken = vec![0; full];
        theirs.read_exact(&mut taken)?;
        notes.until("writable", calls + 1).await;
        assert!(sent.get() > full && guard.is_open());
        Ok(())
    });
}

#[test]
fn what_was_removed_in_its_own_callback_is_not_called_again() {
    on_mio(async |env| {
        let (ours, mut theirs) = pair()?;
        theirs.write_all(b"stays unread")?;
        let notes = Notes::default();
        let guard = watch(&env, &notes, ours, |what, _, fd| {
            match what {
                // The writer is ready, too, and in the same event.
                "readable" => {
                    fd.shard().remove_reader(fd);
                    fd.shard().remove_writer(fd);
                }
                _ => panic!("it was removed"),
            }
            Ok(())
        })?;
        env.shard().add_reader(&guard)?;
        env.shard().add_writer(&guard)?;
        notes.until("readable", 1).await;
        turns(&env).await;
        assert_eq!(notes.all(), ["readable"]);
        env.shard().add_reader(&guard)?;
        notes.until("readable", 2).await;
        turns(&env).await;
        assert_eq!(notes.count("readable"), 2, "adding it again works, once more");
        Ok(())
    });
}

#[test]
fn what_was_removed_from_outside_is_not_called_again() {
    on_mio(async |env| {
        let (ours, mut theirs) = pair()?;
        let notes = Notes::default();
        let guard = watch(&env, &notes, ours, |_, _, _| Ok(()))?;
        env.shard().add_reader(&guard)?;
        theirs.write_all(b"x")?;
        // Its edge may be on its way already.
        env.shard().remove_reader(&guard);
        turns(&env).await;
        assert_eq!(notes.all().len(), 0);
        Ok(())
    });
}

#[test]
fn readers_and_writers_follow_what_is_added_and_removed() {
    on_mio(async |env| {
        let shard = env.shard();
        assert_eq!((shard.readers().len(), shard.writers().len()), (0, 0), "the shard's own are not told");
        let notes = Notes::default();
        let make = || -> Result<FdGuard> {
            watch(&env, &notes, pair()?.0, |_, _, fd| {
                fd.shard().remove_writer(fd);
                Ok(())
            })
        };
        let (one, two) = (make()?, make()?);
        shard.add_reader(&one)?;
        shard.add_writer(&one)?;
        shard.add_reader(&two)?;
        // Twice is once.
        shard.add_reader(&two)?;
        assert_eq!(shard.readers(), [(*one).clone(), (*two).clone()]);
        assert_eq!(shard.writers(), [(*one).clone()]);
        shard.remove_reader(&one);
        shard.remove_reader(&one);
        shard.remove_writer(&two);
        assert_eq!(shard.readers(), [(*two).clone()]);
        assert_eq!(shard.writers(), [(*one).clone()]);
        let all = shard.remove_all();
        assert_eq!(all, [(*one).clone(), (*two).clone()], "the union, each once");
        assert_eq!((shard.readers().len(), shard.writers().len()), (0, 0));
        assert!(shard.remove_all().is_empty());
        assert!(one.is_open(), "it may be added again");
        shard.add_reader(&one)?;
        assert_eq!(shard.readers().len(), 1);
        Ok(())
    });
}

#[test]
fn dropping_the_guard_ends_it_once_and_frees_the_descriptor() {
    on_mio(async |env| {
        let (ours, mut theirs) = pair()?;
        let notes = Notes::default();
        let guard = watch(&env, &notes, ours, |_, _, _| Ok(()))?;
        env.shard().add_reader(&guard)?;
        let fd = (*guard).clone();
        drop(guard);
        assert!(!fd.is_open());
        assert_eq!(env.shard().add_reader(&fd).unwrap_err().kind(), ErrorKind::NotConnected);
        env.shard().remove_reader(&fd);
        notes.until("dropped", 1).await;
        assert_eq!(notes.all(), ["ended: closed", "dropped"]);
        assert_eq!(theirs.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe, "it is closed");
        assert!(env.shard().readers().is_empty());
        Ok(())
    });
}

#[test]
fn a_failing_callback_ends_its_descriptor_alone_with_it_as_the_reason() {
    on_mio(async |env| {
        let notes = Notes::default();
        let panics = Notes::default();
        let others = Notes::default();
        let (ours, mut theirs) = pair()?;
        let (panicking, mut wakes) = pair()?;
        let (other, mut asks) = pair()?;
        let guard = watch(&env, &notes, ours, |_, _, _| Err("enough".into()))?;
        let bad = watch(&env, &panics, panicking, |_, _, _| panic!("too much"))?;
        let good = watch(&env, &others, other, |_, stream, _| one_byte(stream).map(drop))?;
        for guard in [&guard, &bad, &good] {
            env.shard().add_reader(guard)?;
        }
        for stream in [&mut theirs, &mut wakes, &mut asks] {
            stream.write_all(b"x")?;
        }
        notes.until("dropped", 1).await;
        panics.until("dropped", 1).await;
        assert_eq!(notes.all(), ["readable", "ended: the protocol failed: enough", "dropped"]);
        assert_eq!(panics.all(), ["readable", "ended: the protocol panicked: too much", "dropped"]);
        asks.write_all(b"y")?;
        others.until("readable", 2).await;
        assert!(good.is_open() && !guard.is_open() && !bad.is_open());
        drop(guard);
        turns(&env).await;
        assert_eq!(notes.count("dropped"), 1, "its guard has nothing more to end");
        Ok(())
    });
}

#[test]
fn a_hang_up_with_nothing_left_to_read_ends_it() {
    on_mio(async |env| {
        let (reader, writer) = io::pipe()?;
        let notes = Notes::default();
        let guard = watch(&env, &notes, reader, |_, _, _| Ok(()))?;
        env.shard().add_reader(&guard)?;
        drop(writer);
        notes.until("dropped", 1).await;
        assert_eq!(notes.all(), ["ended: the peer finished", "dropped"]);
        Ok(())
    });
}

/// The kernel tells of bytes only to who asks to read: who holds its reading back is not to lose them.
#[test]
fn a_hang_up_does_not_end_it_while_only_writing_is_asked_for() {
    on_mio(async |env| {
        let (ours, theirs) = pair()?;
        (&theirs).write_all(b"last words")?;
        drop(theirs);
        let notes = Notes::default();
        let log = notes.clone();
        let guard = watch(&env, &notes, ours, move |call, stream, fd| {
            if call == "writable" {
                assert_eq!(stream.write(b"?").unwrap_err().kind(), ErrorKind::BrokenPipe);
                fd.shard().remove_writer(fd);
                fd.shard().add_reader(fd)?;
            } else {
                log.add(format!("read {}", stream.read(&mut [0; 64])?));
            }
            Ok(())
        })?;
        env.shard().add_writer(&guard)?;
        // A socket's end stays readable.
        notes.until("read 0", 1).await;
        assert_eq!(notes.all()[..5], ["writable", "readable", "read 10", "readable", "read 0"]);
        Ok(())
    });
}

#[test]
fn what_was_left_to_read_is_read_before_the_hang_up() {
    on_mio(async |env| {
        let (reader, mut writer) = io::pipe()?;
        let notes = Notes::default();
        let log = notes.clone();
        let guard = watch(&env, &notes, reader, move |_, pipe, _| {
            let mut byte = [0];
            let count = pipe.read(&mut byte)?;
            log.add(format!("read {count}"));
            Ok(())
        })?;
        writer.write_all(b"abc")?;
        drop(writer);
        env.shard().add_reader(&guard)?;
        notes.until("dropped", 1).await;
        assert_eq!(notes.count("read 1"), 3);
        assert_eq!(notes.count("ended: the peer finished"), 1);
        Ok(())
    });
}

#[test]
fn a_stop_tells_every_descriptor_once_whatever_one_of_them_does() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&told);
    Runtime::new()
        .shards(1)
        .pin(false)
        .start(async move |shard: Shard| {
            struct Told {
                stream: UnixStream,
                told: Arc<Mutex<Vec<String>>>,
                panics: bool,
            }
            impl AsFd for Told {
                fn as_fd(&self) -> BorrowedFd<'_> {
                    self.stream.as_fd()
                }
            }
            impl FdHandler for Told {
                fn ended(&mut self, reason: CloseReason) {
                    self.told.lock().unwrap().push(reason.to_string());
                    assert!(!self.panics, "one of them panics");
                }
            }
            for panics in [false, true, false] {
                let (stream, theirs) = pair()?;
                let guard = shard.watch(Told { stream, told: Arc::clone(&seen), panics })?;
                shard.add_reader(&guard)?;
                // Both are kept beyond the stop.
                std::mem::forget((guard, theirs));
            }
            shard.call_when_running(|shard| shard.stop().unwrap());
            Ok(())
        })
        .unwrap()
        .join()
        .unwrap();
    let told = told.lock().unwrap();
    assert_eq!(*told, ["still open when the runtime stopped"; 3]);
}

/// How much time this thread has spent on a CPU, by the scheduler's own count.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells it");
    let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("a number of nanoseconds"))
}

#[test]
fn a_regular_file_is_served_to_handlers_at_a_bounded_rate_until_the_last_is_removed() {
    on_mio(async |env| {
        let path = std::env::temp_dir().join(format!("shardwise-fd-{}", std::process::id()));
        std::fs::write(&path, vec![7; 10_000])?;
        let file = std::fs::OpenOptions::new().read(true).append(true).open(&path)?;
        std::fs::remove_file(&path)?;
        let notes = Notes::default();
        let guard = watch(&env, &notes, file, |what, file, _| {
            let count = match what {
                "readable" => file.read(&mut [0; 1000])?,
                _ => file.write(b"more")?,
            };
            assert!(what == "readable" || count == 4);
            Ok(())
        })?;
        assert!(guard.is_always_ready());
        env.shard().add_reader(&guard)?;
        env.shard().add_writer(&guard)?;
        let (begun, cpu) = (std::time::Instant::now(), cpu_time());
        env.shard().sleep(Duration::from_millis(200)).await;
        let (calls, spent) = (notes.count("readable"), cpu_time() - cpu);
        let most = begun.elapsed().as_millis() as usize + 1;
        assert!(calls >= 11 && calls <= most, "{calls} calls, at most one a millisecond");
        assert_eq!(notes.count("writable"), calls);
        assert!(spent < Duration::from_millis(100), "half a CPU: {spent:?} in {:?}", begun.elapsed());
        env.shard().remove_reader(&guard);
        env.shard().remove_writer(&guard);
        assert_eq!(env.shard().delayed_calls().len(), 1, "the body's own guard is all that is left to come");
        turns(&env).await;
        assert_eq!(notes.count("readable"), calls);
        // And its end is told as any other's.
        drop(guard);
        notes.until("dropped", 1).await;
        Ok(())
    });
}

#[test]
fn a_regular_file_is_ready_for_tasks_whenever_they_ask_and_lets_others_run() {
    on_mio(async |env| {
        let mut file = AsyncFd::new(std::fs::File::open("/proc/self/exe")?)?;
        let others = Rc::new(Cell::new(0));
        let counted = Rc::clone(&others);
        let other = env.shard().spawn(async move {
            loop {
                counted.set(counted.get() + 1);
                shardwise::yield_now().await;
            }
        });
        let mut total = 0;
        for _ in 0..20 {
            file.readable().await?;
            total += file.get_mut().read(&mut [0; 4096])?;
        }
        assert_eq!(total, 20 * 4096);
        assert!(others.get() >= 19, "the other task had {} turns", others.get());
        other.cancel();
        let cpu = cpu_time();
        env.shard().sleep(Duration::from_millis(100)).await;
        assert!(cpu_time() - cpu < Duration::from_millis(50), "nobody asks, and nothing is done");
        Ok(())
    });
}

#[test]
fn a_task_reads_and_writes_a_pipe_by_waiting_for_it() {
    on_mio(async |env| {
        let (ours, theirs) = pair()?;
        let mut writer = AsyncFd::new(theirs)?;
        let task = env.shard().spawn(async move {
            let mut rest: &[u8] = &[5; 3_000_000];
            while !rest.is_empty() {
                match writer.get_mut().write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => writer.writable().await?,
                    Err(error) => return Err(error),
                }
            }
            Ok(writer.into_inner())
        });
        let mut reader = AsyncFd::new(ours)?;
        let mut total = 0;
        let mut buffer = vec![0; 65_536];
        while total < 3_000_000 {
            match reader.get_mut().read(&mut buffer) {
                Ok(count) => total += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => reader.readable().await?,
                Err(error) => return Err(error.into()),
            }
        }
        let theirs = task.await??;
        // Waiting tells how things are now: nothing is there.
        let waits = env.shard().timeout(Duration::from_millis(5), reader.readable()).await;
        assert!(waits.is_err());
        // An end is something to read.
        drop(theirs);
        reader.readable().await?;
        assert_eq!(reader.get_mut().read(&mut buffer)?, 0);
        Ok(())
    });
}

#[test]
fn a_descriptor_may_be_waited_for_both_ways_at_once_and_given_up() {
    on_mio(async |env| {
        let (ours, mut theirs) = pair()?;
        let fd = Rc::new(AsyncFd::new(ours)?);
        let reading = Rc::clone(&fd);
        let task = env.shard().spawn(async move { reading.readable().await });
        fd.writable().await?;
        for _ in 0..3 {
            let given_up = env.shard().timeout(Duration::from_millis(1), fd.readable()).await;
            assert!(given_up.is_err());
        }
        fd.writable().await?;
        theirs.write_all(b"x")?;
        task.await??;
        Ok(())
    });
}

#[test]
fn the_same_descriptor_under_two_names_is_refused() {
    on_mio(async |env| {
        let (ours, _theirs) = pair()?;
        let ours: Rc<OwnedFd> = Rc::new(ours.into());
        let notes = Notes::default();
        let one = watch(&env, &notes, Rc::clone(&ours), |_, _, _| Ok(()))?;
        let two = watch(&env, &notes, Rc::clone(&ours), |_, _, _| Ok(()))?;
        env.shard().add_reader(&one)?;
        assert_eq!(env.shard().add_reader(&two).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(env.shard().readers() == [(*one).clone()], "the refused one is no reader");
        Ok(())
    });
}
