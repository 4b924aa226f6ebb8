//! Who is at the other end: credentials, and peers that are other programs.

use std::process::{Command, Stdio};
use std::time::Duration;

use shardwise::testing::on_every_driver;
use shardwise::{Shard, UnixStream};

use crate::common::{Echo, round_trip};
use crate::{Directory, on_a_shard, unique_name};

/// Faults, row 78.
#[test]
fn both_ends_can_ask_who_the_other_is() {
    on_every_driver(async |env| {
        let name = unique_name("credentials");
        env.shard().serve_unix(&name, async |mut stream| {
            let peer = stream.transport().peer_credentials()?;
            stream.write_all(format!("{} {} {}", peer.pid, peer.uid, peer.gid).as_bytes()).await?;
            Ok(())
        })?;
        let mut stream = UnixStream::connect_unix(&name).await?;
        let peer = stream.transport().peer_credentials()?;
        let me =
            (std::process::id(), rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        assert_eq!((peer.pid, peer.uid, peer.gid), me);
        let told = crate::common::read_to_end(&mut stream).await?;
        assert_eq!(String::from_utf8(told)?, format!("{} {} {}", me.0, me.1, me.2));
        let tcp = env.shard().listen_tcp("127.0.0.1:0", || Echo)?;
        let stream = UnixStream::connect(tcp.local_addr()).await?;
        assert!(stream.transport().peer_credentials().is_err(), "TCP has none");
        Ok(())
    });
}

#[test]
fn the_peers_process_is_given_as_a_descriptor_where_the_kernel_can() {
    on_a_shard(async |shard| {
        let name = unique_name("pidfd");
        shard.listen_unix(&name, || Echo)?;
        let stream = UnixStream::connect_unix(&name).await?;
        match stream.transport().peer_pidfd() {
            Ok(pidfd) => {
                // Signal 0 of its own process always succeeds.
                let info = std::fs::read_to_string(format!(
                    "/proc/self/fdinfo/{}",
                    std::os::fd::AsRawFd::as_raw_fd(&pidfd)
                ))?;
                assert!(info.lines().any(|line| line == format!("Pid:\t{}", std::process::id())), "{info}");
                assert!(rustix::io::fcntl_getfd(&pidfd)?.contains(rustix::io::FdFlags::CLOEXEC));
            }
            // Before Linux 6.5.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "{error}"),
        }
        Ok(())
    });
}

/// Runs a program that talks to `path`, without keeping the shard from its loop; gives what it wrote.
async fn talk(shard: &Shard, program: Command, input: &'static [u8]) -> std::result::Result<Vec<u8>, String> {
    let (tell, told) = std::sync::mpsc::channel();
    let mut program = program;
    std::thread::spawn(move || {
        let outcome = (|| -> std::io::Result<Vec<u8>> {
            let mut child =
                program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
            std::io::Write::write_all(child.stdin.as_mut().expect("piped"), input)?;
            let output = child.wait_with_output()?;
            assert!(output.status.success(), "{:?}", output.status);
            Ok(output.stdout)
        })();
        let _ = tell.send(outcome.map_err(|error| error.to_string()));
    });
    loop {
        match told.try_recv() {
            Ok(outcome) => return outcome,
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return Err("the program failed".to_string()),
            Err(std::sync::mpsc::TryRecvError::Empty) => {
                let _ = shard;
                shardwise::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[test]
fn socat_and_a_python_client_are_served_and_descriptors_of_python_arrive() {
    on_a_shard(async |shard| {
        let directory = Directory::new();
        let path = directory.join("echo");
        shard.listen_unix(&path, || Echo)?;
        let mut socat = Command::new("socat");
        socat.args(["-t5", "-", &format!("UNIX-CONNECT:{}", path.display())]);
        assert_eq!(talk(shard, socat, b"hello from socat").await?, b"hello from socat");

        let name = unique_name("python");
        let options = shardwise::UnixListenOptions::new().descriptors(true);
        shard.serve_unix_with(&name, &options, async |mut stream| {
            let descriptor = stream.read_descriptor().await?.expect("python sends one");
            stream.read_exact(&mut [0]).await?;
            std::io::Write::write_all(&mut std::fs::File::from(descriptor), b"written by rust")?;
            stream.write_all(b"done").await?;
            Ok(())
        })?;
        let mut python = Command::new("python3");
        python.arg("-c").arg(
            "import socket, sys, os, array\n\
             s = socket.socket(socket.AF_UNIX)\n\
             s.connect(chr(0) + sys.argv[1])\n\
             r, w = os.pipe()\n\
             socket.send_fds(s, [b'x'], [w])\n\
             os.close(w)\n\
             assert s.recv(4) == b'done'\n\
             sys.stdout.write(os.read(r, 100).decode())\n",
        );
        python.arg(&name[1..]);
        assert_eq!(talk(shard, python, b"").await?, b"written by rust");

        // The other way round: we are the client of socat.
        let theirs = directory.join("theirs");
        let mut socat = Command::new("socat")
            .args([&format!("UNIX-LISTEN:{}", theirs.display()), "EXEC:cat"])
            .stdin(Stdio::null())
            .spawn()?;
        while !crate::is_there(&theirs) {
            shardwise::sleep(Duration::from_millis(5)).await;
        }
        let mut stream = loop {
            match UnixStream::connect_unix(&theirs).await {
                Ok(stream) => break stream,
                // It is bound, and does not listen yet.
                Err(_) => shardwise::sleep(Duration::from_millis(5)).await,
            }
        };
        round_trip(&mut stream, b"hello to socat").await?;
        drop(stream);
        while socat.try_wait()?.is_none() {
            shardwise::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    });
}
