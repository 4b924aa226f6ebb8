//! What becomes of the files: modes, stale ones, locks, removal. Over the kernel's own driver, since a simulation has no
//! file system.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream as StdStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use shardwise::{ConnectError, ListenError, Shard, UnixConnectOptions, UnixListenOptions, UnixStream};

use crate::common::{Echo, round_trip};
use crate::{Directory, is_there, on_a_shard};

fn mode_of(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_file_has_the_mode_that_was_asked_for_and_0600_unless_one_was() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("default");
        shard.listen_unix(&path, || Echo)?;
        assert_eq!(mode_of(&path), 0o600);
        for mode in [0o666, 0o660, 0o777, 0o700, 0o000] {
            let path = directory.join(&format!("{mode:o}"));
            shard.listen_unix_with(&path, &UnixListenOptions::new().mode(mode), || Echo)?;
            assert_eq!(mode_of(&path), mode, "whatever the umask");
        }
        Ok(())
    });
}

/// Faults, row 72: with `bind` alone the file is there with the umask's permissions first. Somebody looks all the time.
#[test]
fn the_file_never_has_more_permissions_than_were_asked_for() {
    let directory = Arc::new(Directory::new());
    let path = directory.join("window");
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(AtomicUsize::new(0));
    let watcher = std::thread::spawn({
        let (path, over, seen) = (path.clone(), Arc::clone(&over), Arc::clone(&seen));
        move || {
            while !over.load(Ordering::Relaxed) {
                if let Ok(found) = std::fs::symlink_metadata(&path)
                    && found.file_type().is_socket()
                {
                    let mode = found.permissions().mode() & 0o777;
                    assert_eq!(mode & !0o600, 0, "{mode:o}");
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    let watched = path.clone();
    on_a_shard(async move |shard| {
        for _ in 0..300 {
            shard.listen_unix(&watched, || Echo)?.close().await;
        }
        Ok(())
    });
    over.store(true, Ordering::Relaxed);
    watcher.join().expect("the mode was never too wide");
    assert!(seen.load(Ordering::Relaxed) > 0, "it was looked at");
}

#[test]
fn the_file_is_removed_at_the_close_unless_another_one_is_there() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("socket");
        let listener = shard.listen_unix(&path, || Echo)?;
        listener.close().await;
        assert!(directory.names().is_empty(), "{:?}", directory.names());

        let listener = shard.listen_unix(&path, || Echo)?;
        std::fs::remove_file(&path)?;
        let successor = UnixListener::bind(&path)?;
        listener.close().await;
        assert!(is_there(&path), "it is not ours");
        drop(successor);

        std::fs::remove_file(&path)?;
        let listener = shard.listen_unix(&path, || Echo)?;
        std::fs::remove_file(&path)?;
        std::fs::write(&path, "a file")?;
        listener.close().await;
        assert_eq!(std::fs::read(&path)?, b"a file");
        Ok(())
    });
}

#[test]
fn a_stop_removes_the_file_and_the_lock() {
    let directory = Arc::new(Directory::new());
    let inside = Arc::clone(&directory);
    on_a_shard(async move |shard| {
        let options = UnixListenOptions::new().lock(true);
        shard.listen_unix_with(inside.join("socket"), &options, || Echo)?;
        assert_eq!(inside.names(), ["socket", "socket.lock"]);
        Ok(())
    });
    assert!(directory.names().is_empty(), "{:?}", directory.names());
}

/// Faults, row 69.
#[test]
fn what_a_dead_process_has_left_is_cleared_away() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        for lock in [false, true] {
            let path = directory.join("stale");
            drop(UnixListener::bind(&path)?);
            if lock {
                std::fs::write(directory.join("stale.lock"), "4194305\n")?;
            }
            assert!(StdStream::connect(&path).is_err(), "nobody is there");
            let listener = shard.listen_unix_with(&path, &UnixListenOptions::new().lock(lock), || Echo)?;
            round_trip(&mut UnixStream::connect_unix(&path).await?, b"taken over").await?;
            listener.close().await;
            assert!(directory.names().is_empty(), "{:?}", directory.names());
        }
        Ok(())
    });
}

/// `Cargo` at `Cargo.lock`, a pipe that never opens, a link planted by somebody else: emptied, waited for, or removed at the
/// end, if nobody looked.
#[test]
fn what_lies_where_the_lock_should_be_and_is_none_is_left_alone() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let lock = UnixListenOptions::new().lock(true);
        let refused = |name: &str| {
            let error = shard.listen_unix_with(directory.join(name), &lock, || Echo).unwrap_err();
            assert!(error.to_string().contains("is no lock file"), "{error}");
        };
        std::fs::write(directory.join("text.lock"), "version = 4\n")?;
        refused("text");
        assert_eq!(std::fs::read_to_string(directory.join("text.lock"))?, "version = 4\n");

        std::fs::write(directory.join("number"), "17\n")?;
        std::fs::hard_link(directory.join("number"), directory.join("linked.lock"))?;
        refused("linked");
        assert_eq!(std::fs::read_to_string(directory.join("number"))?, "17\n");

        assert!(Command::new("mkfifo").arg(directory.join("pipe.lock")).status()?.success());
        refused("pipe");
        let check = UnixConnectOptions::new().check(true);
        let nobody = UnixStream::connect_unix_with(directory.join("pipe"), &check).await.unwrap_err();
        assert!(matches!(nobody, ConnectError::NoOwner { .. }), "{nobody}");
        Ok(())
    });
}

/// Faults, row 70.
#[test]
fn a_live_owner_is_never_disturbed() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("live");
        let owner = UnixListener::bind(&path)?;
        let before = std::fs::symlink_metadata(&path)?.ino();
        for lock in [false, true] {
            let options = UnixListenOptions::new().lock(lock);
            let error = shard.listen_unix_with(&path, &options, || Echo).unwrap_err();
            assert!(matches!(&error, ListenError::AddressInUse { .. }), "{error}");
            assert!(error.to_string().ends_with("live: address in use"), "{error}");
        }
        assert_eq!(std::fs::symlink_metadata(&path)?.ino(), before);
        assert!(!is_there(&directory.join("live.lock")), "nothing is left of the attempt");
        drop(owner);
        std::fs::remove_file(&path)?;

        let _owner = UnixDatagram::bind(&path)?;
        let error = shard.listen_unix(&path, || Echo).unwrap_err();
        assert!(matches!(&error, ListenError::AddressInUse { .. }), "one of the other kind: {error}");
        Ok(())
    });
}

/// Faults, row 71.
#[test]
fn what_is_no_socket_is_refused_and_left_alone() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("taken");
        let refusal = |what: &str| {
            let error = shard.listen_unix(&path, || Echo).unwrap_err().to_string();
            assert!(error.ends_with(&format!("there is {what}, which is left alone")), "{error}");
        };
        std::fs::write(&path, "a file")?;
        refusal("a regular file");
        assert_eq!(std::fs::read(&path)?, b"a file");
        std::fs::remove_file(&path)?;
        std::fs::create_dir(&path)?;
        refusal("a directory");
        std::fs::remove_dir(&path)?;
        // One that points to a stale socket, too: whoever made it meant something by it.
        let stale = directory.join("stale");
        drop(UnixListener::bind(&stale)?);
        symlink(&stale, &path)?;
        refusal("a symbolic link");
        assert!(is_there(&path) && is_there(&stale));
        Ok(())
    });
}

#[test]
fn a_missing_directory_is_told() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("missing").join("socket");
        let error = shard.listen_unix(&path, || Echo).unwrap_err();
        let ListenError::Os { addr, source } = &error else { panic!("{error}") };
        assert_eq!(
            (addr.as_unix().and_then(|name| name.path()), source.kind()),
            (Some(&*path), std::io::ErrorKind::NotFound)
        );
        let error = UnixStream::connect_unix(&path).await.unwrap_err();
        assert!(matches!(&error, ConnectError::Os { .. }), "{error}");
        Ok(())
    });
}

#[test]
fn a_second_server_is_refused_by_the_lock_alone() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("locked");
        let options = UnixListenOptions::new().lock(true);
        let listener = shard.listen_unix_with(&path, &options, || Echo)?;
        let pid = std::fs::read_to_string(directory.join("locked.lock"))?;
        assert_eq!(pid.trim(), std::process::id().to_string(), "it says whose it is");
        // Another process, which finds nothing at the path: the lock says no all the same.
        std::fs::remove_file(&path)?;
        let status = Command::new("flock")
            .args(["--nonblock", "--conflict-exit-code", "42"])
            .arg(directory.join("locked.lock"))
            .arg("true")
            .stdin(Stdio::null())
            .status()?;
        assert_eq!(status.code(), Some(42));
        listener.close().await;
        assert!(directory.names().is_empty(), "{:?}", directory.names());

        let holder = std::fs::File::create(directory.join("locked.lock"))?;
        holder.lock()?;
        let error = shard.listen_unix_with(&path, &options, || Echo).unwrap_err();
        assert!(matches!(&error, ListenError::AddressInUse { .. }), "{error}");
        assert!(!is_there(&path), "nothing was bound");
        drop(holder);
        shard.listen_unix_with(&path, &options, || Echo)?.close().await;
        Ok(())
    });
}

#[test]
fn a_checked_connection_is_not_tried_without_a_live_lock() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("checked");
        let check = UnixConnectOptions::new().check(true);
        let no_owner = async |shard: &Shard| {
            let attempt = shard.connect_unix_with(&path, &check, || -> Echo { panic!("no connection") });
            let error = attempt.await.unwrap_err();
            assert!(matches!(&error, ConnectError::NoOwner { .. }), "{error}");
        };
        // A listener without a lock would answer; it is not asked.
        let listener = UnixListener::bind(&path)?;
        no_owner(shard).await;
        std::fs::write(directory.join("checked.lock"), "1\n")?;
        no_owner(shard).await;
        listener.set_nonblocking(true)?;
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock,
            "nothing was tried"
        );
        drop(listener);

        let options = UnixListenOptions::new().lock(true);
        let listener = shard.listen_unix_with(&path, &options, || Echo)?;
        let transport = shard.connect_unix_with(&path, &check, || Echo).await?;
        transport.close();
        listener.close().await;
        no_owner(shard).await;
        Ok(())
    });
}

#[test]
fn two_runtimes_that_start_at_once_agree_on_one_owner() {
    for _ in 0..20 {
        let directory = Directory::new();
        let path = directory.join("race");
        drop(UnixListener::bind(&path).unwrap());
        let gate = std::sync::Barrier::new(2);
        let listeners: Vec<bool> = std::thread::scope(|scope| {
            let starters: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let path = path.clone();
                        gate.wait();
                        let start = async move |shard: Shard| {
                            shard.listen_unix(&path, || Echo)?;
                            Ok(())
                        };
                        let running = shardwise::Runtime::new().shards(1).pin(false).start(start);
                        gate.wait();
                        let won = running.is_ok();
                        if let Ok(running) = running {
                            running.stop().unwrap();
                            running.join().unwrap();
                        }
                        won
                    })
                })
                .collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        assert_eq!(listeners.iter().filter(|won| **won).count(), 1, "{listeners:?}");
    }
}
