//! What a visitor is told when there is no service to answer, or one that fails.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
};

use crate::harness::{Answer, LIMIT, Lab, Over, canned, mirror, over_both, read_head, rule, service};

fn rule_with(service: impl std::fmt::Display, options: &str) -> String {
    format!("{}    originRequest: {{ {options} }}\n", rule(service))
}

async fn refused(over: Over, yaml: String, status: u16, code: &str) {
    let lab = Lab::start(over, &yaml).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (status, Some(code)), "{answer:?}");
    lab.finish().await;
}

async fn nobody_listens(over: Over) {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    refused(over, rule(format!("http://{gone}")), 502, "origin-unreachable").await;
}

async fn no_socket(over: Over) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.sock");
    refused(over, rule(format!("unix:{}", path.display())), 502, "origin-unreachable").await;
}

async fn silent_handshake(over: Over) {
    let silent = service(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let yaml = rule_with(format!("https://{}", silent.await), "tlsTimeout: 1s");
    refused(over, yaml, 504, "origin-timeout").await;
}

async fn garbage(over: Over, bytes: &'static [u8]) {
    refused(over, rule(format!("http://{}", canned(bytes).await)), 502, "origin-protocol").await;
}

async fn dies_in_the_middle(over: Over, begun: &'static str) {
    let die = Arc::new(Notify::new());
    let told = die.clone();
    let mortal = service(move |mut stream| {
        let told = told.clone();
        async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(begun.as_bytes()).await.unwrap();
            told.notified().await;
        }
    });
    let lab = Lab::start(over, &rule(format!("http://{}", mortal.await))).await;
    let mut visitor = TcpStream::connect(lab.http).await.unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.windows(3).any(|seen| seen == b"abc") {
        assert_ne!(visitor.read_buf(&mut bytes).await.unwrap(), 0, "the answer ended before its service died");
    }
    die.notify_one();
    // A reset is as good as an end: what counts is what came before.
    let _ = tokio::time::timeout(LIMIT, visitor.read_to_end(&mut bytes)).await.expect("the visitor still waits");
    let answer = Answer::parse(&bytes);
    assert_eq!((answer.status, answer.complete), (200, false), "{answer:?}");
    lab.finish().await;
}

/// The stream may be reset before its head has left: then nothing, or the edge's own 502, but never a whole 200.
async fn dies_at_once(over: Over) {
    let lab = Lab::start(over, &rule(http_of("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await)).await;
    let mut visitor = TcpStream::connect(lab.http).await.unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(LIMIT, visitor.read_to_end(&mut bytes)).await.expect("the visitor still waits");
    if !bytes.is_empty() {
        let answer = Answer::parse(&bytes);
        assert!(answer.status == 502 || !answer.complete, "{answer:?}");
    }
    lab.finish().await;
}

async fn http_of(answer: &'static str) -> String {
    format!("http://{}", canned(answer).await)
}

async fn visitor_leaves(over: Over, answered: bool) {
    let (asked, mut was_asked) = mpsc::channel(1);
    let (closed, mut was_closed) = mpsc::channel(1);
    let slow = service(move |mut stream| {
        let (asked, closed) = (asked.clone(), closed.clone());
        async move {
            read_head(&mut stream).await.unwrap();
            if answered {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx").await.unwrap();
            }
            asked.send(()).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
            closed.send(()).await.unwrap();
        }
    });
    let lab = Lab::start(over, &rule(format!("http://{}", slow.await))).await;
    let mut visitor = TcpStream::connect(lab.http).await.unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    tokio::time::timeout(LIMIT, was_asked.recv()).await.expect("the service was not asked").unwrap();
    if answered {
        // The answer has begun on the visitor's side too.
        assert_ne!(visitor.read(&mut [0; 512]).await.unwrap(), 0);
    }
    drop(visitor);
    tokio::time::timeout(LIMIT, was_closed.recv()).await.expect("the service still waits").unwrap();
    lab.finish().await;
}

async fn length_required(over: Over) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let watched = service(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {}
    });
    let lab = Lab::start(over, &rule_with(format!("http://{}", watched.await), "disableChunkedEncoding: true")).await;
    let request = "POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n0\r\n\r\n";
    let answer = lab.raw(request).await;
    assert_eq!((answer.status, answer.code()), (411, Some("length-required")));
    assert_eq!(connections.load(Ordering::SeqCst), 0, "the service was asked");
    lab.finish().await;
}

async fn known_length_without_chunks(over: Over) {
    let yaml = rule_with(format!("http://{}", mirror().await), "disableChunkedEncoding: true");
    let lab = Lab::start(over, &yaml).await;
    let seen = lab.send("POST", "/", "", b"").await.text();
    assert!(seen.contains("Content-Length: 0\r\n"), "{seen}");
    lab.finish().await;
}

async fn fixed_status(over: Over) {
    let lab = Lab::start(over, &rule("http_status:418")).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code(), answer.body.len()), (418, None, 0));
    lab.finish().await;
}

async fn access_required(over: Over) {
    let reached = Arc::new(AtomicUsize::new(0));
    let counted = reached.clone();
    let watched = service(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {}
    });
    let access = "access: { required: true, teamName: team, audTag: [aud] }";
    refused(over, rule_with(format!("http://{}", watched.await), access), 403, "access-required").await;
    assert_eq!(reached.load(Ordering::SeqCst), 0, "the service was asked");
}

async fn management(over: Over) {
    let yaml = rule(format!("http://{}", mirror().await));
    let lab = Lab::with(over, &yaml, |flags| flags.with("management-hostname", "Management.web.test")).await;
    let answer = lab.raw("GET / HTTP/1.1\r\nHost: management.web.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.code()), (404, Some("not-found")));
    // Another name of the tunnel is served.
    assert_eq!(lab.get("/").await.status, 200);
    lab.finish().await;
}

async fn no_rules(over: Over) {
    refused(over, String::new(), 503, "no-configuration").await;
}

async fn unknown_hostname(over: Over) {
    let lab = Lab::start(over, &rule("http_status:200")).await;
    for host in ["other.test", "test", "web.test.other.test", "xweb.test"] {
        let answer = lab.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!((answer.status, answer.code()), (404, Some("hostname-unknown")), "{host}");
    }
    lab.finish().await;
}

async fn no_connector(over: Over) {
    let mut lab = Lab::edge_only().await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (503, Some("no-connection")));
    lab.connect(over, &rule("http_status:200"), |flags| flags).await;
    lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.unwrap();
    assert_eq!(lab.get("/").await.status, 200);
    lab.finish().await;
}

/// A listener whose queue is full: connections to it are neither accepted nor refused.
pub(crate) async fn full_listener() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    // The kernel's own rounding decides how many fit; one that does not connect at once proves that it is full.
    while let Ok(stream) = tokio::time::timeout(std::time::Duration::from_millis(300), TcpStream::connect(addr)).await {
        waiting.push(stream.unwrap());
        assert!(waiting.len() < 100, "the queue never fills");
    }
    (listener, waiting, addr)
}

async fn silent_address(over: Over) {
    let (_listener, _waiting, addr) = full_listener().await;
    refused(over, rule_with(format!("http://{addr}"), "connectTimeout: 1s"), 504, "origin-timeout").await;
}

over_both! {
    a_service_that_is_down_is_unreachable => nobody_listens,
    a_socket_file_that_does_not_exist_is_unreachable => no_socket,
    a_service_that_does_not_accept_within_connect_timeout_times_out => silent_address,
    a_service_that_never_answers_the_handshake_times_out => silent_handshake,
    an_answer_that_is_not_http_is_a_protocol_error => |over| garbage(over, b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
    a_service_that_hangs_up_without_an_answer_is_a_protocol_error => |over| garbage(over, b""),
    a_service_that_dies_in_its_head_is_a_protocol_error => |over| garbage(over, b"HTTP/1.1 200 OK\r\nX-A: "),
    a_body_shorter_than_its_length_never_looks_complete =>
        |over| dies_in_the_middle(over, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
    a_chunked_body_without_its_end_never_looks_complete =>
        |over| dies_in_the_middle(over, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    a_service_that_dies_at_once_never_looks_complete => dies_at_once,
    a_visitor_who_leaves_before_the_answer_closes_the_services_connection => |over| visitor_leaves(over, false),
    a_visitor_who_leaves_during_the_answer_closes_the_services_connection => |over| visitor_leaves(over, true),
    a_body_of_unknown_length_is_refused_where_chunks_are_forbidden => length_required,
    a_body_of_known_length_passes_where_chunks_are_forbidden => known_length_without_chunks,
    http_status_answers_without_a_service => fixed_status,
    a_rule_that_demands_access_refuses_everybody => access_required,
    the_management_hostname_reaches_no_rule => management,
    without_rules_there_is_no_configuration => no_rules,
    a_hostname_of_no_tunnel_is_unknown => unknown_hostname,
    a_tunnel_without_a_connector_has_no_connection => no_connector,
}
