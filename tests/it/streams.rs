//! Byte streams inside WebSockets, the built-in pages, the admin address, and draining.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};

use crate::harness::{LIMIT, Lab, Over, mirror, over_both, read_head, rule, service};

async fn echo() -> SocketAddr {
    service(|mut stream| async move {
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await
}

async fn websocket(lab: &Lab, path: &str, header: Option<(&'static str, String)>) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(lab.http).await.unwrap();
    let mut request = format!("ws://web.test{path}").into_client_request().unwrap();
    if let Some((name, value)) = header {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    tokio_tungstenite::client_async(request, stream).await.expect("no WebSocket").0
}

/// Reads binary messages until `len` bytes are here.
async fn bytes(socket: &mut WebSocketStream<TcpStream>, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        match tokio::time::timeout(LIMIT, socket.next()).await.expect("bytes are missing").unwrap().unwrap() {
            Message::Binary(data) => all.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
    }
    all
}

async fn tcp_in_messages(over: Over) {
    let lab = Lab::start(over, &rule(format!("tcp://{}", echo().await))).await;
    let mut socket = websocket(&lab, "/", None).await;
    for len in [1usize, 1000, 16_384, 16_385, 20_000, 1 << 20] {
        let sent: Vec<u8> = (0..len).map(|n| (n % 253) as u8).collect();
        socket.send(Message::binary(sent.clone())).await.unwrap();
        assert!(bytes(&mut socket, len).await == sent, "{len} bytes changed on the way");
    }
    socket.send(Message::text("text")).await.unwrap();
    assert_eq!(bytes(&mut socket, 4).await, b"text");
    socket.send(Message::Ping(bytes::Bytes::from_static(b"payload"))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong(bytes::Bytes::from_static(b"payload")));
    socket.close(None).await.unwrap();
    let Some(Ok(Message::Close(frame))) = socket.next().await else { panic!("no close frame") };
    assert!(frame.is_none_or(|frame| frame.code == CloseCode::Normal));
    lab.finish().await;
}

async fn no_websocket_no_bytes(over: Over) {
    let lab = Lab::start(over, &rule(format!("tcp://{}", echo().await))).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (400, Some("request-invalid")));
    lab.finish().await;
}

async fn jump_host(over: Over) {
    let lab = Lab::start(over, &rule("bastion")).await;
    let destination = ("cf-access-jump-destination", echo().await.to_string());
    let mut socket = websocket(&lab, "/", Some(destination)).await;
    socket.send(Message::binary(&b"there and back"[..])).await.unwrap();
    assert_eq!(bytes(&mut socket, 14).await, b"there and back");
    let stream = TcpStream::connect(lab.http).await.unwrap();
    assert!(tokio_tungstenite::client_async("ws://web.test/", stream).await.is_err(), "a bastion without destination");
    drop(socket);
    lab.finish().await;
}

/// SOCKS5 CONNECT to `to`; the reply code, and the stream for more.
async fn socks(lab: &Lab, to: SocketAddr) -> (u8, WebSocketStream<TcpStream>) {
    let mut socket = websocket(lab, "/", None).await;
    socket.send(Message::binary(&[5u8, 1, 0][..])).await.unwrap();
    assert_eq!(bytes(&mut socket, 2).await, [5, 0]);
    let SocketAddr::V4(to) = to else { panic!("IPv4 only here") };
    let mut request = vec![5, 1, 0, 1];
    request.extend_from_slice(&to.ip().octets());
    request.extend_from_slice(&to.port().to_be_bytes());
    socket.send(Message::binary(request)).await.unwrap();
    (bytes(&mut socket, 10).await[1], socket)
}

async fn socks_proxy(over: Over) {
    let (allowed, denied) = (echo().await, echo().await);
    let rules = format!(
        "{}    originRequest: {{ ipRules: [ {{ prefix: 127.0.0.0/8, ports: [{}], allow: true }} ] }}\n",
        rule("socks-proxy"),
        allowed.port()
    );
    let lab = Lab::start(over, &rules).await;
    let (reply, mut socket) = socks(&lab, allowed).await;
    assert_eq!(reply, 0);
    socket.send(Message::binary(&b"through"[..])).await.unwrap();
    assert_eq!(bytes(&mut socket, 7).await, b"through");
    assert_eq!(socks(&lab, denied).await.0, 2);
    drop(socket);
    lab.finish().await;
    let lab = Lab::start(over, &rule("socks-proxy")).await;
    assert_eq!(socks(&lab, allowed).await.0, 2, "without rules nothing is allowed");
    lab.finish().await;
}

async fn builtin_pages(over: Over) {
    let lab = Lab::start(over, &rule("hello_world")).await;
    assert_eq!((lab.get("/_health").await.status, lab.get("/_health").await.text().as_str()), (200, "ok"));
    assert!(lab.get("/").await.text().contains("The tunnel works."));
    assert!(lab.get("/uptime").await.text().starts_with("{\"uptime\":"));
    assert_eq!(lab.get("/elsewhere").await.status, 404);
    let mut socket = websocket(&lab, "/ws", None).await;
    socket.send(Message::text("echo")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("echo"));
    let mut stream = TcpStream::connect(lab.http).await.unwrap();
    stream.write_all(b"GET /sse?freq=20 HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    let mut seen = String::new();
    while !seen.contains("2\n\n") {
        let mut buffer = [0; 512];
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(n > 0);
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    assert!(seen.to_lowercase().contains("content-type: text/event-stream"), "{seen}");
    drop((socket, stream));
    lab.finish().await;
}

async fn admin_pages(over: Over) {
    let lab = Lab::start(over, &rule("http_status:418")).await;
    assert_eq!(lab.get("/").await.status, 418);
    for path in ["/livez", "/readyz", "/startupz", "/healthcheck", "/"] {
        assert_eq!(lab.admin(path).await.status, 200, "{path}");
    }
    let ready = lab.admin("/ready").await;
    // The peer's keys as the peer writes them; what follows is ours.
    let start =
        format!("{{\"status\":200,\"readyConnections\":1,\"connectorId\":\"{}\",\"connections\":[", lab.connector_id);
    assert!(ready.text().starts_with(&start), "{}", ready.text());
    let metrics = lab.admin("/metrics").await.text();
    for line in [
        "cloudflared_tunnel_ha_connections 1".to_owned(),
        "cloudflared_tunnel_response_by_code{status_code=\"418\"} 1".to_owned(),
        "adit_requests_total{rule=\"0\"} 1".to_owned(),
        format!("adit_connections{{connection=\"0\",transport=\"{}\"}} 1", over.as_str()),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    let config: serde_json::Value = serde_json::from_slice(&lab.admin("/config").await.body).unwrap();
    assert_eq!(
        (&config["version"], &config["config"]["ingress"][0]["service"]),
        (&(-1).into(), &"http_status:418".into())
    );
    assert_eq!(lab.admin("/elsewhere").await.status, 404);
    lab.finish().await;
}

async fn own_admin_address(over: Over) {
    // The port is known only after the start, so the rule names a port that the connector is told to take.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let rules = rule(format!("http://{free}"));
    let lab = Lab::with(over, &rules, |flags| flags.with("metrics", &free.to_string())).await;
    let answer = lab.get("/metrics").await;
    assert_eq!((answer.status, answer.code()), (502, Some("origin-unreachable")));
    lab.finish().await;
}

/// A service that answers once it is told to.
async fn gated(begun: tokio::sync::mpsc::Sender<()>, gate: Arc<tokio::sync::Notify>) -> SocketAddr {
    service(move |mut stream| {
        let (begun, gate) = (begun.clone(), gate.clone());
        async move {
            read_head(&mut stream).await;
            let go = gate.notified();
            begun.send(()).await.unwrap();
            go.await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
        }
    })
    .await
}

async fn drain_lets_requests_finish(over: Over) {
    let (begun, mut begins) = tokio::sync::mpsc::channel(1);
    let gate = Arc::new(tokio::sync::Notify::new());
    let mut lab = Lab::start(over, &rule(format!("http://{}", gated(begun, gate.clone()).await))).await;
    let request = lab.get("/slow");
    let drained = async {
        begins.recv().await.unwrap();
        lab.tasks.drain();
        // The edge hears of it: nothing new comes here.
        let mut changes = lab.edge.registry().changes();
        while !lab.edge.registry().of(lab.token.tunnel).is_empty() {
            changes.changed().await.unwrap();
        }
        assert_eq!(lab.admin("/readyz").await.status, 503);
        assert_eq!(lab.admin("/livez").await.status, 200);
        gate.notify_one();
    };
    let (answer, ()) = tokio::join!(request, drained);
    assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
    let started = tokio::time::Instant::now();
    lab.connector_ended().await;
    assert!(started.elapsed() < Duration::from_secs(10), "the grace is 30 s and nothing was left to do");
    lab.finish().await;
}

async fn grace_is_the_end(over: Over) {
    let (begun, mut begins) = tokio::sync::mpsc::channel(1);
    let gate = Arc::new(tokio::sync::Notify::new());
    let rules = rule(format!("http://{}", gated(begun, gate).await));
    let mut lab = Lab::with(over, &rules, |flags| flags.with("grace-period", "1s")).await;
    let mut visitor = TcpStream::connect(lab.http).await.unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    begins.recv().await.unwrap();
    lab.tasks.drain();
    let started = tokio::time::Instant::now();
    lab.connector_ended().await;
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(900), "an open request is given the grace: {took:?}");
    assert!(took < Duration::from_secs(8), "an open request does not hold the connector past it: {took:?}");
    lab.finish().await;
}

async fn wrong_secret(over: Over) {
    let mut lab = Lab::edge_only().await;
    let mut token = lab.token.clone();
    token.secret = adit::credentials::Secret::new(vec![1; 32]);
    let right = std::mem::replace(&mut lab.token, token);
    lab.connect(over, "{}", |flags| flags.with("retries", "1")).await;
    let metrics = lab.metrics.clone();
    let refused = async {
        while !metrics.expose().contains("cloudflared_tunnel_tunnel_register_fail{error=\"server_error\"") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, refused).await.expect("no refusal");
    assert!(lab.edge.registry().of(right.tunnel).is_empty());
    assert_eq!(lab.admin("/readyz").await.status, 503);
    assert_eq!(lab.admin("/livez").await.status, 200, "a refusal does not end the process");
    lab.finish().await;
}

async fn removed_secret(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    assert_eq!(lab.get("/").await.status, 200);
    std::fs::write(lab.state.path().join("tunnels.yml"), "[]\n").unwrap();
    let mut changes = lab.edge.registry().changes();
    let gone = async {
        while !lab.edge.registry().of(lab.token.tunnel).is_empty() {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("the connection stays although its secret is gone");
    assert_eq!(lab.get("/").await.status, 404);
    lab.finish().await;
}

async fn forged_headers(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    let request = "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nCf-Connecting-Ip: 6.6.6.6\r\n\
                   Client_Cert: x\r\nX-Forwarded-Client-Cert: x\r\nX-Client-Cert-Present: true\r\n\
                   X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nTe: gzip\r\n\r\n";
    let seen = lab.raw(request).await.text().to_lowercase();
    for gone in ["6.6.6.6", "client_cert", "client-cert", "x-hop", "te: gzip", "proto: https"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
    assert!(seen.contains("x-forwarded-for: 9.9.9.9\r\nx-forwarded-for: 127.0.0.1"), "{seen}");
    assert!(seen.contains("cf-connecting-ip: 127.0.0.1"), "{seen}");
    lab.finish().await;
}

over_both! {
    tcp_passes_in_messages_of_any_size_and_kind => tcp_in_messages,
    a_plain_request_to_a_byte_service_is_refused => no_websocket_no_bytes,
    a_bastion_goes_where_the_visitor_says => jump_host,
    a_socks_proxy_obeys_its_rules_and_denies_without => socks_proxy,
    the_built_in_pages_answer => builtin_pages,
    the_admin_address_tells_health_metrics_and_rules => admin_pages,
    no_rule_reaches_our_own_admin_address => own_admin_address,
    a_drain_lets_requests_finish_and_then_ends => drain_lets_requests_finish,
    the_grace_period_is_the_end_of_a_drain => grace_is_the_end,
    a_wrong_secret_is_refused_and_ends_nothing => wrong_secret,
    a_secret_that_is_removed_retires_its_connection => removed_secret,
    headers_that_only_an_edge_may_set_are_taken_from_visitors => forged_headers,
}
