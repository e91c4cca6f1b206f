//! Private-network TCP, SOCKS5 and event streams: their limits, their ends, and what a drain leaves them.

use std::{net::SocketAddr, sync::Arc};

use futures_util::SinkExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, oneshot},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::{
    harness::{
        LIMIT, Lab, Over, background, eventually, over_both,
        peer::{Peer, scripted},
        rule,
    },
    websocket::{next, open},
};

async fn echo() -> SocketAddr {
    scripted(|mut peer| async move {
        loop {
            let bytes = peer.some().await;
            if bytes.is_empty() || !peer.send(&bytes).await {
                return;
            }
        }
    })
    .await
}

async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A local connection that the edge forwards to `dest`; the second value tells how it ended.
pub(crate) async fn forward(lab: &Lab, dest: SocketAddr) -> (TcpStream, oneshot::Receiver<Result<(), String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (edge, tunnel, local) = (lab.edge.clone(), lab.token.tunnel, far.unwrap().0);
    let (told, outcome) = oneshot::channel();
    background(async move {
        let _ = told.send(edge.forward_tcp(tunnel, dest, local).await);
    });
    (near.unwrap(), outcome)
}

async fn service_ends(over: Over) {
    let service = scripted(|mut peer| async move {
        peer.send("banner").await;
    });
    let lab = Lab::start(over, &rule("http_status:404")).await;
    let (mut stream, outcome) = forward(&lab, service.await).await;
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.expect("no end").unwrap();
    assert_eq!(answer, "banner");
    drop(stream);
    outcome.await.unwrap().unwrap();
    lab.finish().await;
}

/// The service has said everything and listens on; the visitor ends later. Then the other way round.
async fn half_closed(over: Over) {
    let (heard, mut hearing) = mpsc::channel(2);
    let service = scripted(move |mut peer| {
        let heard = heard.clone();
        async move {
            if peer.some().await == b"you first" {
                peer.send("all I have").await;
                peer.io.shutdown().await.unwrap();
                heard.send(peer.rest().await).await.unwrap();
            } else {
                heard.send(peer.rest().await).await.unwrap();
                peer.send("all I have").await;
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule("http_status:404")).await;

    let (mut stream, outcome) = forward(&lab, service).await;
    stream.write_all(b"you first").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.expect("no end").unwrap();
    assert_eq!(answer, "all I have");
    let more = vec![7; 3 << 20];
    stream.write_all(&more).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(hearing.recv().await.unwrap() == more, "bytes after the service's end changed");
    outcome.await.unwrap().unwrap();

    let (mut stream, outcome) = forward(&lab, service).await;
    stream.write_all(b"I first").await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(hearing.recv().await.unwrap().is_empty());
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.expect("no end").unwrap();
    assert_eq!(answer, "all I have");
    outcome.await.unwrap().unwrap();
    lab.finish().await;
}

/// A service that closed altogether says so when it is written to, and a visitor who left is told of to the service.
async fn wholly_closed(over: Over) {
    let (left, mut leaving) = mpsc::channel(1);
    let service = scripted(move |mut peer| {
        let left = left.clone();
        async move {
            if peer.some().await == b"go" {
                return;
            }
            peer.io.shutdown().await.unwrap();
            peer.ended().await;
            left.send(()).await.unwrap();
        }
    })
    .await;
    let lab = Lab::start(over, &rule("http_status:404")).await;
    let (mut stream, mut outcome) = forward(&lab, service).await;
    stream.write_all(b"go").await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    // The first bytes are answered with a reset by the service's machine; the stream ends with those after it.
    while outcome.try_recv().is_err() {
        let _ = stream.write_all(b"more").await;
        tokio::task::yield_now().await;
    }

    let (mut stream, outcome) = forward(&lab, service).await;
    stream.write_all(b"stay").await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    stream.set_zero_linger().unwrap();
    drop(stream);
    leaving.recv().await.unwrap();
    outcome.await.unwrap().unwrap();
    lab.finish().await;
}

async fn refused(over: Over) {
    let lab = Lab::start(over, &rule("http_status:404")).await;
    let (_stream, outcome) = forward(&lab, nobody().await).await;
    let error = outcome.await.unwrap().unwrap_err();
    // Over HTTP/2 the wire has no place for a reason.
    assert!(error.contains(if over == Over::Quic { "unable to dial" } else { "status 502" }), "{error}");
    let (_stream, outcome) = forward(&lab, lab.admin).await;
    outcome.await.unwrap().unwrap_err();
    lab.finish().await;
}

/// Whether a forwarded connection carries bytes.
pub(crate) async fn works(stream: &mut TcpStream) -> bool {
    let mut back = [0; 4];
    stream.write_all(b"ping").await.is_ok() && stream.read_exact(&mut back).await.is_ok()
}

async fn flow_limit(over: Over) {
    // Flows are counted for the whole process, so other tests' flows count here too: at most three, perhaps fewer.
    let yaml = format!("warp-routing:\n  maxActiveFlows: 3\n{}", rule("http_status:404"));
    let lab = Lab::start(over, &yaml).await;
    let service = echo().await;
    let (mut open, mut refusals) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let (mut stream, outcome) = forward(&lab, service).await;
        if works(&mut stream).await {
            open.push((stream, outcome));
        } else {
            refusals.push(outcome.await.unwrap().unwrap_err());
        }
    }
    assert!(open.len() <= 3 && refusals.len() >= 2, "{} flows of at most three", open.len());
    if over == Over::Quic {
        assert!(refusals.iter().all(|error| error.contains("rate limiting")), "{refusals:?}");
    }
    drop(open);
    eventually("a flow has its place again", async || works(&mut forward(&lab, service).await.0).await).await;
    lab.finish().await;
}

/// SOCKS5 as far as the answer to the request; the reply's code, and the stream.
pub(crate) async fn socks(lab: &Lab, request: &[u8]) -> (u8, WebSocketStream<TcpStream>) {
    let (mut socket, _) = open(lab).await.unwrap();
    socket.send(Message::binary(&b"\x05\x01\x00"[..])).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(Message::binary(&b"\x05\x00"[..])));
    socket.send(Message::binary(request.to_vec())).await.unwrap();
    let Some(Message::Binary(reply)) = next(&mut socket).await else { panic!("no reply") };
    assert_eq!((reply[0], &reply[2..]), (5, &[0, 1, 0, 0, 0, 0, 0, 0][..]));
    (reply[1], socket)
}

pub(crate) fn to_address(command: u8, addr: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(addr) = addr else { panic!("not IPv4") };
    [&[5, command, 0, 1][..], &addr.ip().octets(), &addr.port().to_be_bytes()].concat()
}

pub(crate) fn to_name(name: &str, port: u16) -> Vec<u8> {
    [&[5, 1, 0, 3, name.len() as u8][..], name.as_bytes(), &port.to_be_bytes()].concat()
}

const OPEN_PROXY: &str = "    originRequest: {ipRules: [{prefix: 127.0.0.0/8, allow: true}]}\n";

async fn socks_names(over: Over) {
    let service = echo().await;
    let lab = Lab::start(over, &format!("{}{OPEN_PROXY}", rule("socks-proxy"))).await;
    for name in ["localhost", "127.0.0.1"] {
        let (reply, mut socket) = socks(&lab, &to_name(name, service.port())).await;
        assert_eq!(reply, 0, "{name}");
        socket.send(Message::binary(&b"there"[..])).await.unwrap();
        assert_eq!(next(&mut socket).await, Some(Message::binary(&b"there"[..])));
    }
    lab.finish().await;
    // Rules at the top hold for a rule that has none.
    let inherited =
        format!("originRequest: {{ipRules: [{{prefix: 127.0.0.0/8, allow: true}}]}}\n{}", rule("socks-proxy"));
    let lab = Lab::start(over, &inherited).await;
    assert_eq!(socks(&lab, &to_address(1, service)).await.0, 0);
    lab.finish().await;
    let elsewhere = format!(
        "{}    originRequest: {{ipRules: [{{prefix: 127.0.0.0/8, ports: [1], allow: true}}]}}\n",
        rule("socks-proxy")
    );
    let lab = Lab::start(over, &elsewhere).await;
    for request in [to_address(1, service), to_name("localhost", service.port())] {
        assert_eq!(socks(&lab, &request).await.0, 2);
    }
    lab.finish().await;
}

async fn socks_failures(over: Over) {
    let gone = nobody().await;
    let lab = Lab::start(over, &format!("{}{OPEN_PROXY}", rule("socks-proxy"))).await;
    assert_eq!(socks(&lab, &to_address(1, gone)).await.0, 5);
    assert_eq!(socks(&lab, &to_name("nope.invalid", 1)).await.0, 2);
    assert_eq!(socks(&lab, &to_address(2, gone)).await.0, 7);
    assert_eq!(socks(&lab, &to_address(1, lab.admin)).await.0, 2);
    // Only a password is offered.
    let (mut socket, _) = open(&lab).await.unwrap();
    socket.send(Message::binary(&b"\x05\x01\x02"[..])).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(Message::binary(&b"\x05\xff"[..])));
    lab.finish().await;
}

async fn fixed_socks(over: Over) {
    let service = echo().await;
    let yaml = format!("{}    originRequest: {{proxyType: socks}}\n", rule(format!("tcp://{service}")));
    let lab = Lab::start(over, &yaml).await;
    // Whatever is asked for, the rule's own destination answers.
    let (reply, mut socket) = socks(&lab, &to_name("elsewhere.invalid", 1)).await;
    assert_eq!(reply, 0);
    socket.send(Message::binary(&b"here"[..])).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(Message::binary(&b"here"[..])));
    drop(socket);
    lab.finish().await;
}

async fn unregistered(lab: &Lab) {
    eventually("the edge lets go", async || lab.edge.registry().of(lab.token.tunnel).is_empty()).await;
}

async fn stream_drains(over: Over) {
    let mut lab = Lab::start(over, &rule(format!("tcp://{}", echo().await))).await;
    lab.admin_says("/readyz", 200).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    let (mut flow, _outcome) = forward(&lab, echo().await).await;
    assert!(works(&mut flow).await);
    lab.tasks.drain();
    unregistered(&lab).await;
    for _ in 0..3 {
        socket.send(Message::binary(&b"during"[..])).await.unwrap();
        assert_eq!(next(&mut socket).await, Some(Message::binary(&b"during"[..])));
        assert!(works(&mut flow).await);
    }
    drop((socket, flow));
    lab.connector_ended().await;
    lab.finish().await;
}

async fn second_signal(over: Over) {
    let (arrived, mut arrival) = mpsc::channel(1);
    let service = scripted(move |mut peer| {
        let arrived = arrived.clone();
        async move {
            peer.head().await;
            let _ = arrived.send(()).await;
            peer.ended().await;
        }
    });
    let mut lab = Lab::start(over, &rule(format!("http://{}", service.await))).await;
    lab.admin_says("/readyz", 200).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send("GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
    arrival.recv().await.unwrap();
    lab.tasks.drain();
    unregistered(&lab).await;
    lab.tasks.kill();
    let answer = visitor.answer_head().await;
    assert_eq!((answer.status, answer.code()), (502, Some("connector-failed")));
    lab.connector_ended().await;
    lab.finish().await;
}

/// Each piece is sent only after the visitor has seen the one before.
async fn pieces(over: Over, head: &'static str) {
    let seen = Arc::new(Notify::new());
    let go_on = seen.clone();
    let service = scripted(move |mut peer| {
        let go_on = go_on.clone();
        async move {
            peer.head().await;
            peer.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n")).await;
            for n in 0..5 {
                go_on.notified().await;
                peer.send(format!("data: {n}\n\n")).await;
            }
            go_on.notified().await;
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send("GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(visitor.answer_head().await.status, 200);
    let mut text = String::new();
    for n in 0..5 {
        seen.notify_one();
        while !text.contains(&format!("data: {n}\n\n")) {
            let more = visitor.some().await;
            assert!(!more.is_empty(), "ended after {text:?}");
            text.push_str(&String::from_utf8(more).unwrap());
        }
    }
    seen.notify_one();
    let end = visitor.rest().await;
    assert!(end.is_empty() || end == b"0\r\n\r\n", "{end:?}");
    lab.finish().await;
}

async fn until_close(over: Over) {
    pieces(over, "Content-Type: text/event-stream\r\n").await;
}

async fn with_length(over: Over) {
    pieces(over, "Content-Type: application/octet-stream\r\nContent-Length: 45\r\n").await;
}

over_both! {
    the_end_of_the_service_ends_a_private_stream => service_ends,
    a_private_destination_that_cannot_be_dialled_is_an_error => refused,
    a_private_stream_is_half_closed_by_either_end => half_closed,
    a_private_stream_ends_with_whoever_is_gone_altogether => wholly_closed,
    more_flows_than_allowed_are_refused_and_a_place_is_given_back => flow_limit,
    a_socks_proxy_judges_names_by_their_addresses_and_inherits_rules => socks_names,
    a_socks_proxy_says_why_it_could_not_connect => socks_failures,
    a_tcp_service_behind_socks_ignores_the_wish => fixed_socks,
    byte_streams_run_on_while_the_connector_drains => stream_drains,
    a_second_signal_ends_it_at_once => second_signal,
    a_piece_of_an_answer_that_ends_with_its_connection_arrives_at_once => until_close,
    a_piece_of_an_answer_with_a_length_arrives_at_once => with_length,
}
