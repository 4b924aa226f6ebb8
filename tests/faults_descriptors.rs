//! A process that is out of descriptors while its listeners close. Runs itself again in a child, whose limit is lowered.

mod faults;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use faults::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shardwise::Config;

/// The last look at the queue found no descriptor, the listener closed, and all who waited were reset.
#[test]
fn a_stop_without_descriptors_serves_who_waits_as_others_end() {
    in_a_child("a_stop_without_descriptors_serves_who_waits_as_others_end", || {
        const PEERS: usize = 24;
        for style in STYLES {
            let server = Server::start(1, Config::default(), move |shard| echo(shard, style));
            // The peers' own ends are made before the limit falls; room is left for four.
            let sockets: Vec<_> = (0..PEERS)
                .map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap())
                .collect();
            let limit = getrlimit(Resource::Nofile);
            // Reading the directory takes one itself.
            let room = open_descriptors() as u64 - 1 + 4;
            setrlimit(Resource::Nofile, Rlimit { current: Some(room), maximum: limit.maximum }).unwrap();
            let clients: Vec<_> = sockets
                .into_iter()
                .map(|socket| {
                    socket.connect(&server.addr.into()).unwrap();
                    let mut client = TcpStream::from(socket);
                    client.set_read_timeout(Some(PATIENCE)).unwrap();
                    client.write_all(b"wait").unwrap();
                    client
                })
                .collect();
            eventually("the shortage is noticed", || server.sum(|report| report.accept_failures) > 0);
            let served = server.open();
            assert!(served < PEERS as u64, "{served} were accepted");
            server.running.stop().unwrap();
            let clients: Vec<_> = clients
                .into_iter()
                .map(|mut client| {
                    thread::spawn(move || {
                        let mut answer = Vec::new();
                        client.read_to_end(&mut answer).map(|_| answer)
                    })
                })
                .collect();
            for (number, client) in clients.into_iter().enumerate() {
                let answer = client.join().unwrap();
                let answer = answer.unwrap_or_else(|error| panic!("{style:?}, client {number}: {error}"));
                assert_eq!(answer, b"wait", "{style:?}, client {number}");
            }
            let handle = server.handle();
            server.running.join().unwrap();
            assert_eq!(handle.report()[0].accepted, PEERS as u64, "{style:?}");
            setrlimit(Resource::Nofile, limit).unwrap();
        }
    });
}
