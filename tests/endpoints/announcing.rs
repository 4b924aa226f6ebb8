//! Headers that we send.

use shardwise::proxy_protocol::{Addresses, Tlv, Version, tlv_kind};
use shardwise::testing::on_every_driver;
use shardwise::{Result, TcpStream};

use crate::common::{Echo, read_to_end, round_trip};
use crate::tls_kit::Authority;
use crate::{Folder, at, client, client_of, server};

fn addresses() -> Addresses<'static> {
    Addresses::tcp("192.0.2.7:40000".parse().unwrap(), "198.51.100.1:443".parse().unwrap())
}

#[test]
fn a_header_goes_out_before_everything_in_either_version() {
    on_every_driver(async |env| {
        let listener = env.shard().serve(&server("127.0.0.1:0")?, async |mut stream: TcpStream| {
            let received = read_to_end(&mut stream).await?;
            stream.write_all(&received).await?;
            Ok(())
        })?;
        let client = client_of(at(&listener));
        let mut v2 = Vec::new();
        let tlvs = [Tlv { kind: tlv_kind::AUTHORITY, value: b"example.org" }];
        addresses().encode_v2(&tlvs, &mut v2)?;
        let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n".to_vec();
        for (version, header) in [(Version::V1, v1), (Version::V2, v2)] {
            let announcing = client.clone().announcing(version, &addresses(), &tlvs)?;
            let mut stream = TcpStream::connect_to(&announcing).await?;
            stream.write_all(b"then this").await?;
            stream.shutdown_write();
            let came = read_to_end(&mut stream).await?;
            assert_eq!(came, [&header[..], b"then this"].concat());

            // Also when nothing is written after it.
            let mut stream = TcpStream::connect_to(&announcing).await?;
            stream.shutdown_write();
            assert_eq!(read_to_end(&mut stream).await?, header);
        }
        Ok(())
    });
}

#[test]
fn a_header_that_is_announced_is_what_a_server_behind_it_is_told_through_tls_too() {
    on_every_driver(async |env| {
        let folder = Folder::new();
        let authority = Authority::new();
        let identity = folder.put_identity(&authority.issue(&["localhost"]));
        let roots = folder.put_roots(&authority);
        for (listens, connects) in [
            ("haproxy:127.0.0.1:0".to_string(), "127.0.0.1:PORT".to_string()),
            (
                format!("haproxy:tls:0:{identity}:interface=127.0.0.1"),
                format!(r"tls:localhost:endpoint=tcp\:127.0.0.1\:PORT:{roots}"),
            ),
        ] {
            let listener = env.shard().serve(&server(&listens)?, tells)?;
            let port = at(&listener).port();
            let client = client(&connects.replace("PORT", &port.to_string()))?;
            for version in [Version::V1, Version::V2] {
                let announcing = client.clone().announcing(version, &addresses(), &[])?;
                let mut stream = TcpStream::connect_to(&announcing).await?;
                stream.write_all(b"?").await?;
                let told = String::from_utf8(read_to_end(&mut stream).await?)?;
                assert_eq!(told, format!("192.0.2.7:40000 198.51.100.1:443 {version:?}"));
            }
        }
        Ok(())
    });
}

/// Answers with what the stream says of its addresses.
async fn tells(mut stream: TcpStream) -> Result<()> {
    stream.read_exact(&mut [0]).await?;
    let header = stream.transport().proxy_header().expect("there was one");
    let told = format!("{} {} {:?}", stream.peer_addr()?, stream.local_addr()?, header.version);
    stream.write_all(told.as_bytes()).await?;
    Ok(())
}

#[test]
fn a_proxy_of_two_hops_passes_the_first_client_on() {
    on_every_driver(async |env| {
        let last = env.shard().serve(&server("haproxy:127.0.0.1:0")?, tells)?;
        let upstream = client_of(at(&last));
        let first =
            env.shard().serve(&server("haproxy:127.0.0.1:0")?, async move |mut stream: TcpStream| {
                let addresses = Addresses::tcp(stream.peer_addr()?, stream.local_addr()?);
                let upstream = upstream.clone().announcing(Version::V2, &addresses, &[])?;
                let mut upstream = TcpStream::connect_to(&upstream).await?;
                shardwise::copy_bidirectional(&mut stream, &mut upstream).await?;
                Ok(())
            })?;
        let client = client_of(at(&first)).announcing(Version::V1, &addresses(), &[])?;
        let mut stream = TcpStream::connect_to(&client).await?;
        stream.write_all(b"?").await?;
        stream.shutdown_write();
        let told = String::from_utf8(read_to_end(&mut stream).await?)?;
        assert_eq!(told, "192.0.2.7:40000 198.51.100.1:443 V2");
        Ok(())
    });
}

#[test]
fn a_protocol_may_announce_as_well() {
    on_every_driver(async |env| {
        let listener = env.shard().listen(&server("haproxy:127.0.0.1:0")?, || Echo)?;
        let client = client_of(at(&listener)).announcing(Version::V2, &Addresses::Local, &[])?;
        let log = crate::common::Log::new();
        let probe = log.clone();
        let transport = env
            .shard()
            .connect(&client, move || {
                crate::common::Probe::new(&probe, |call, transport| match call {
                    crate::common::Call::Connected => {
                        Some(transport.write(b"first").map(drop).map_err(Into::into))
                    }
                    _ => None,
                })
            })
            .await?;
        log.until(|state| state.received == b"first").await;
        transport.close();
        log.ended().await;
        let mut stream = TcpStream::connect_to(&client).await?;
        round_trip(&mut stream, b"and a stream").await?;
        Ok(())
    });
}
