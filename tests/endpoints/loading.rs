//! What keeps an endpoint from being used is told before anything runs.

use shardwise::endpoint::{LoadProblem, quote};
use shardwise::{ClientEndpoint, LoadedClient, LoadedServer, ServerEndpoint};

use crate::tls_kit::Authority;
use crate::{Folder, at, client, server};

#[test]
fn what_is_wrong_with_an_endpoint_is_told_with_its_text_in_one_line() {
    let folder = Folder::new();
    let authority = Authority::new();
    let key = quote(&folder.put("key.pem", &authority.issue(&["a"]).key)).into_owned();
    let certificate = quote(&folder.put("cert.pem", &authority.issue(&["a"]).certificate)).into_owned();
    let empty = quote(&folder.put("empty.pem", "")).into_owned();
    let folder = quote(&folder.path.display().to_string()).into_owned();
    for (text, wrong) in [
        (format!("tls:0:privateKey={folder}/none.pem"), "none.pem: No such file"),
        (format!("tls:0:privateKey={empty}:certKey={certificate}"), "there is no private key in PEM"),
        (format!("tls:0:privateKey={key}:certKey={empty}"), "there is no certificate in PEM"),
        (
            format!("tls:0:privateKey={key}:certKey={certificate}"),
            "the private key belongs to another certificate",
        ),
        (
            format!("tls:0:privateKey={key}:certKey={certificate}:extraCertChain={empty}"),
            "empty.pem: there is no certificate",
        ),
        ("haproxy:tcp:0:interface=-a".to_string(), "`-a` is not a host name"),
        (format!("tcp:0:interface={}", "x".repeat(64)), "a label longer than 63"),
    ] {
        let endpoint: ServerEndpoint = text.parse().unwrap();
        let error = endpoint.load().unwrap_err();
        let line = error.to_string();
        assert!(line.contains(wrong) && !line.contains('\n'), "{text}: {line}");
        assert!(
            line.starts_with(&format!("cannot use the endpoint `{}`: ", endpoint.to_string().escape_debug()))
        );
        assert_eq!(error.endpoint(), endpoint.to_string());
    }
    for (text, wrong) in [
        (format!("tls:a:1:trustRoots={folder}/none.pem"), "none.pem: No such file"),
        (format!("tls:a:1:trustRoots={empty}"), "there is no certificate in PEM"),
        (format!("tls:a:1:trustRoots={folder}"), "there is no certificate in PEM"),
        (
            format!("tls:a:1:certificate={certificate}:privateKey={key}"),
            "the private key belongs to another certificate",
        ),
        (r"tls:a:endpoint=tls\:b\:1".to_string(), "TLS within TLS is not spoken"),
        ("tcp:127.1:80".to_string(), "four numbers"),
        ("tcp:a..b:80".to_string(), "empty label"),
    ] {
        let error = match text.parse::<ClientEndpoint>() {
            Ok(endpoint) => endpoint.load().unwrap_err().to_string(),
            Err(error) => error.message(),
        };
        assert!(error.contains(wrong), "{text}: {error}");
    }
}

#[test]
fn what_cannot_be_listened_on_says_so() {
    for text in ["stdio:", "haproxy:stdio:"] {
        let error = text.parse::<ServerEndpoint>().unwrap().load().unwrap_err();
        assert!(matches!(error.problem(), LoadProblem::Unsupported(_)), "{error}");
    }
    let error = "fd:2147483647".parse::<ServerEndpoint>().unwrap().load().unwrap_err();
    assert!(matches!(error.problem(), LoadProblem::Descriptor { number: i32::MAX, .. }), "{error}");
    let error = "systemd:index=0".parse::<ServerEndpoint>().unwrap().load().unwrap_err();
    assert!(matches!(error.problem(), LoadProblem::NotPassed(_)), "{error}");
}

#[test]
fn a_loaded_endpoint_may_go_to_any_shard_and_tells_where_it_listens() {
    fn is_shared<T: Clone + Send + Sync>(_: &T) {}
    let loaded: LoadedServer = server("tcp:0:interface=127.0.0.1").unwrap();
    is_shared(&loaded);
    assert_eq!(loaded.addr(), Some(([127, 0, 0, 1], 0).into()));
    assert!(loaded.is_plain() && !server("haproxy:127.0.0.1:0").unwrap().is_plain());
    let loaded: LoadedClient = client("localhost:1").unwrap();
    is_shared(&loaded);
    assert!(
        server("localhost:7").unwrap().addr().is_some_and(|addr| addr.ip().is_loopback() && addr.port() == 7)
    );
}

#[test]
fn a_scope_is_part_of_the_address() {
    let Some(std::net::SocketAddr::V6(addr)) = server("tcp6:7:interface=[fe80::1%lo]").unwrap().addr() else {
        panic!("an IPv6 address");
    };
    assert!(addr.scope_id() > 0, "{addr}");
}

#[test]
fn a_chain_of_its_own_leads_to_the_issuer() {
    // Whoever knows the root alone finds the way by it.
    let folder = Folder::new();
    let root = Authority::new();
    let middle = root.subordinate();
    let issued = middle.issue(&["localhost"]);
    let identity = folder.put_identity(&issued);
    let chain = quote(&folder.put("chain.pem", &middle.pem())).into_owned();
    let roots = folder.put_roots(&root);
    shardwise::testing::on_every_driver(async move |env| {
        for (chain, works) in [(String::new(), false), (format!(":extraCertChain={chain}"), true)] {
            let server = server(&format!("tls:0:{identity}{chain}:interface=127.0.0.1"))?;
            let listener = env.shard().listen(&server, || crate::common::Echo)?;
            let port = at(&listener).port();
            let client = client(&format!(r"tls:localhost:endpoint=tcp\:127.0.0.1\:{port}:{roots}"))?;
            let connected = shardwise::TcpStream::connect_to(&client).await;
            assert_eq!(connected.is_ok(), works, "{connected:?}");
            server.tls().expect("it has TLS").reload()?;
            let connected = shardwise::TcpStream::connect_to(&client).await;
            assert_eq!(connected.is_ok(), works, "after reading it again: {connected:?}");
        }
        Ok(())
    });
    drop(folder);
}

#[test]
fn roots_may_be_a_folder() {
    let folder = Folder::new();
    let (authority, other) = (Authority::new(), Authority::new());
    let issued = authority.issue(&["localhost"]);
    let identity = folder.put_identity(&issued);
    let roots = Folder::new();
    roots.put("one.pem", &other.pem());
    roots.put("two.pem", &authority.pem());
    roots.put("README", "no certificate at all");
    let trust = quote(&roots.path.display().to_string()).into_owned();
    shardwise::testing::on_every_driver(async move |env| {
        let listener = env
            .shard()
            .listen(&server(&format!("tls:0:{identity}:interface=127.0.0.1"))?, || crate::common::Echo)?;
        let port = at(&listener).port();
        let client = client(&format!(r"tls:localhost:endpoint=tcp\:127.0.0.1\:{port}:trustRoots={trust}"))?;
        shardwise::TcpStream::connect_to(&client).await?;
        Ok(())
    });
    let bare = Folder::new();
    bare.put("README", "");
    let error =
        client(&format!("tls:a:1:trustRoots={}", quote(&bare.path.display().to_string()))).unwrap_err();
    assert!(error.to_string().ends_with("the folder has no file whose name ends in .pem"), "{error}");
    drop((folder, roots));
}
