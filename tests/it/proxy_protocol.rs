//! The PROXY header, byte for byte, and as real servers read it.

use std::net::SocketAddr;

use futures_util::SinkExt;
use tokio::{io::AsyncReadExt, net::UnixListener, sync::mpsc};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    harness::{
        Lab, Over, background, over_both,
        peer::{Peer, ok, scripted},
        real::{self, Server, server},
        rule,
    },
    http_tls::{identity, speak_tls},
    raw_edge::RawEdge,
    raw_service::get,
    websocket::{next, open},
};

/// A version 2 header for a visitor on 127.0.0.1.
fn v2(service: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\x00\x00".to_vec();
    header.extend_from_slice(&service.port().to_be_bytes());
    header
}

fn v1(service: SocketAddr) -> Vec<u8> {
    format!("PROXY TCP4 127.0.0.1 127.0.0.1 0 {}\r\n", service.port()).into_bytes()
}

fn expected(version: &str, service: SocketAddr) -> Vec<u8> {
    if version == "v1" { v1(service) } else { v2(service) }
}

fn yaml(service: impl std::fmt::Display, version: &str) -> String {
    format!("{}    proxyProtocol: {version}\n", rule(service))
}

/// A service that takes so many bytes for the header, hands them out, and answers requests after it.
async fn behind_a_header(length: usize) -> (SocketAddr, mpsc::UnboundedReceiver<(usize, Vec<u8>)>) {
    let (told, headers) = mpsc::unbounded_channel();
    let addr = scripted(move |mut peer| {
        let told = told.clone();
        async move {
            told.send((peer.number, peer.exact(length).await)).unwrap();
            while let Some((head, body)) = peer.request().await {
                peer.send(ok([head.line.as_bytes(), b" ", &body].concat())).await;
            }
        }
    })
    .await;
    (addr, headers)
}

async fn http(over: Over, version: &'static str) {
    let length = if version == "v1" { "PROXY TCP4 127.0.0.1 127.0.0.1 0 12345\r\n".len() } else { 28 };
    let (service, mut headers) = behind_a_header(length).await;
    assert!(service.port() > 9999, "an ephemeral port has five digits");
    let lab = Lab::start(over, &yaml(format!("http://{service}"), version)).await;
    // The service keeps its connections; another visitor must not come over one of them.
    assert_eq!(lab.get("/a").await.text(), "GET /a HTTP/1.1 ");
    assert_eq!(lab.get("/b").await.text(), "GET /b HTTP/1.1 ");
    assert_eq!(lab.send("POST", "/c", "", b"body").await.text(), "POST /c HTTP/1.1 body");
    for number in 0..3 {
        assert_eq!(headers.recv().await, Some((number, expected(version, service))));
    }
    lab.finish().await;
}

async fn before_tls(over: Over) {
    let identity = identity(&["127.0.0.1"], false, &[]);
    let acceptor = identity.acceptor.clone();
    let (told, mut headers) = mpsc::unbounded_channel();
    let service = scripted(move |mut peer| {
        let (acceptor, told) = (acceptor.clone(), told.clone());
        async move {
            // Not one byte more than the header, so that the handshake is whole.
            let mut header = vec![0; 28];
            peer.io.read_exact(&mut header).await.unwrap();
            told.send(header).unwrap();
            speak_tls(&acceptor, peer.io).await;
        }
    })
    .await;
    let options = format!("    originRequest: {{ caPool: {} }}\n", identity.ca.display());
    let lab = Lab::start(over, &format!("{}{options}", yaml(format!("https://{service}"), "v2"))).await;
    assert_eq!(lab.get("/").await.text(), "hello");
    assert_eq!(headers.recv().await, Some(v2(service)));
    lab.finish().await;
}

async fn before_a_stream(over: Over) {
    let service = scripted(|mut peer| async move {
        loop {
            let bytes = peer.some().await;
            if bytes.is_empty() || !peer.send(&bytes).await {
                return;
            }
        }
    })
    .await;
    let lab = Lab::start(over, &yaml(format!("tcp://{service}"), "v1")).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    socket.send(Message::binary(&b"payload"[..])).await.unwrap();
    let mut back = Vec::new();
    while !back.ends_with(b"payload") {
        let Some(Message::Binary(bytes)) = next(&mut socket).await else { panic!("ended after {back:?}") };
        back.extend_from_slice(&bytes);
    }
    assert_eq!(back, [v1(service), b"payload".to_vec()].concat());
    drop(socket);
    lab.finish().await;
}

async fn on_a_socket(over: Over) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let header = "PROXY TCP4 127.0.0.1 0.0.0.0 0 0\r\n";
    background(async move {
        let mut peer = Peer::new(listener.accept().await.unwrap().0, 0);
        let seen = peer.exact(header.len()).await;
        peer.head().await.unwrap();
        peer.ok(seen).await;
    });
    let lab = Lab::start(over, &yaml(format!("unix:{}", path.display()), "v1")).await;
    assert_eq!(lab.get("/").await.text(), header);
    lab.finish().await;
}

/// An edge that says nothing of the visitor.
#[tokio::test]
async fn a_visitor_whom_the_edge_does_not_tell_is_unknown() {
    for (version, expected) in [("v1", &b"PROXY UNKNOWN\r\n"[..]), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00")] {
        let (service, mut headers) = behind_a_header(expected.len()).await;
        let edge = RawEdge::new().await;
        let _connector = edge.connector("quic", &yaml(format!("http://{service}"), version)).await;
        let peer = edge.quic_peer().await;
        peer.ask(&get("app.example.com", "/")).await;
        assert_eq!(headers.recv().await, Some((0, expected.to_vec())), "{version}");
    }
}

over_both! {
    version_1_stands_before_every_request => |over| http(over, "v1"),
    version_2_stands_before_every_request => |over| http(over, "v2"),
    the_header_stands_before_the_handshake => before_tls,
    the_header_stands_before_a_byte_stream => before_a_stream,
    the_header_stands_before_requests_on_a_unix_socket => on_a_socket,
}

async fn nginx() -> Server {
    real::nginx(|addr, _| {
        format!(
            "server {{ listen {addr} proxy_protocol; location / {{\n\
             return 200 \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port\"; }} }}"
        )
    })
    .await
}

async fn haproxy() -> Server {
    server("haproxy", &["-f"], |addr, _| {
        format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
             frontend f\n  bind {addr} accept-proxy\n  \
             http-request return status 200 content-type text/plain lf-string \"%[src] %[src_port] %[dst_port]\"\n"
        )
    })
    .await
}

async fn understood(server: Server) {
    for over in [Over::Quic, Over::Http2] {
        for version in ["v1", "v2"] {
            let lab = Lab::start(over, &yaml(format!("http://{}", server.addr), version)).await;
            for _ in 0..2 {
                let answer = lab.get("/").await;
                // Both show the port 0 as none.
                let seen = format!("127.0.0.1  {}", server.addr.port());
                assert_eq!((answer.status, answer.text()), (200, seen), "{version}");
            }
            lab.finish().await;
        }
    }
}

#[tokio::test]
#[ignore = "needs nginx in the PATH; .ci/run installs and runs it"]
async fn nginx_understands_both_versions() {
    understood(nginx().await).await;
}

#[tokio::test]
#[ignore = "needs haproxy in the PATH; .ci/run installs and runs it"]
async fn haproxy_understands_both_versions() {
    understood(haproxy().await).await;
}
