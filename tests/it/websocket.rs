//! WebSockets passed through to HTTP services, and byte streams, beyond their messages: control, ends, refusals.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error, Message,
        handshake::client::Response,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use crate::harness::{
    LIMIT, Lab, Over, background, canned, over_both,
    peer::{Peer, scripted},
    rule, service,
};

pub(crate) const ASK: &str = "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: chat\r\n\r\n";

/// A visitor's WebSocket to `web.test`.
pub(crate) async fn open(lab: &Lab) -> Result<(WebSocketStream<TcpStream>, Response), Error> {
    let tcp = TcpStream::connect(lab.http).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tokio::time::timeout(LIMIT, client_async("ws://web.test/", tcp)).await.expect("no handshake in time")
}

/// The next message, in time.
pub(crate) async fn next(socket: &mut WebSocketStream<TcpStream>) -> Option<Message> {
    let message = tokio::time::timeout(LIMIT, socket.next()).await.expect("no message in time");
    message.and_then(Result::ok)
}

/// A WebSocket service that echoes messages.
pub(crate) async fn echo() -> std::net::SocketAddr {
    scripted(|peer| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(peer.io).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn handshake(over: Over) {
    let service = canned(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Own: 1\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n\x82\x05first"
            .to_vec(),
    );
    let lab = Lab::start(over, &rule(format!("ws://{}", service.await))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send(ASK).await;
    let answer = visitor.answer_head().await;
    assert_eq!((answer.status, answer.header("x-own")), (101, Some("1")));
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(answer.header("sec-websocket-protocol"), Some("chat"));
    assert_eq!(visitor.rest().await, b"\x82\x05first");
    lab.finish().await;
}

async fn control(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", echo().await))).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    socket.send(Message::Ping("are you there".into())).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(Message::Pong("are you there".into())));
    let close = CloseFrame { code: CloseCode::Library(4321), reason: "done".into() };
    socket.send(Message::Close(Some(close.clone()))).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(Message::Close(Some(close))));
    assert_eq!(next(&mut socket).await, None);
    lab.finish().await;
}

/// A service that speaks HTTP/2 to whoever offers it, and WebSocket to everybody else.
async fn beside_http2(over: Over) {
    let identity = crate::http_tls::identity(&["127.0.0.1"], false, &["h2", "http/1.1"]);
    let acceptor = identity.acceptor.clone();
    let addr = service(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let _ = h2::server::handshake(stream).await;
                return;
            }
            let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
            while let Some(Ok(message)) = socket.next().await {
                let _ = socket.send(message).await;
            }
        }
    })
    .await;
    let options = format!("http2Origin: true, caPool: {}", identity.ca.display());
    let yaml = format!("{}    originRequest: {{ {options} }}\n", rule(format!("https://{addr}")));
    let lab = Lab::start(over, &yaml).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(Message::text("hello")));
    drop(socket);
    lab.finish().await;
}

async fn refused(over: Over) {
    let service = scripted(|mut peer| async move {
        while peer.request().await.is_some() {
            peer.send("HTTP/1.1 403 Forbidden\r\nX-Why: no\r\nContent-Length: 10\r\n\r\nForbidden\n").await;
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    for _ in 0..2 {
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send(ASK).await;
        let answer = visitor.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (403, "Forbidden\n"));
        assert_eq!((answer.header("x-why"), answer.code()), (Some("no"), None));
    }
    lab.finish().await;
}

async fn visitor_vanishes(over: Over) {
    for scheme in ["http", "tcp"] {
        let (told, mut ended) = tokio::sync::mpsc::channel(1);
        let service = scripted(move |mut peer| {
            let told = told.clone();
            async move {
                if scheme == "http" {
                    peer.head().await;
                    let accept = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n";
                    peer.send(format!("HTTP/1.1 101 Switching Protocols\r\n{accept}\r\n")).await;
                }
                peer.ended().await;
                let _ = told.send(()).await;
            }
        })
        .await;
        let lab = Lab::start(over, &rule(format!("{scheme}://{service}"))).await;
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send(ASK).await;
        assert_eq!(visitor.answer_head().await.status, 101);
        drop(visitor);
        tokio::time::timeout(LIMIT, ended.recv()).await.expect("the service still waits").unwrap();
        lab.finish().await;
    }
}

async fn service_vanishes(over: Over) {
    let service = scripted(|peer| async move {
        let mut socket = tokio_tungstenite::accept_async(peer.io).await.unwrap();
        socket.next().await;
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    socket.send(Message::text("x")).await.unwrap();
    assert_eq!(next(&mut socket).await, None);
    lab.finish().await;
}

async fn byte_service_ends(over: Over) {
    let service = scripted(|mut peer| async move {
        peer.send("goodbye").await;
    });
    let lab = Lab::start(over, &rule(format!("tcp://{}", service.await))).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(Message::binary(&b"goodbye"[..])));
    let Some(Message::Close(Some(close))) = next(&mut socket).await else { panic!("no close frame") };
    assert_eq!(close.code, CloseCode::Normal);
    lab.finish().await;
}

async fn byte_service_breaks(over: Over) {
    let service = scripted(|mut peer| async move {
        peer.some().await;
        // Without lingering a close is a reset.
        socket2::SockRef::from(&peer.io).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    });
    let lab = Lab::start(over, &rule(format!("tcp://{}", service.await))).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    socket.send(Message::binary(&b"break"[..])).await.unwrap();
    let Some(Message::Close(Some(close))) = next(&mut socket).await else { panic!("no close frame") };
    assert_eq!(close.code, CloseCode::Error);
    lab.finish().await;
}

async fn last_words(over: Over) {
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    let service = scripted(move |mut peer| {
        let told = told.clone();
        async move {
            let _ = told.send(peer.rest().await).await;
        }
    });
    let lab = Lab::start(over, &rule(format!("tcp://{}", service.await))).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    socket.send(Message::binary(&b"last words"[..])).await.unwrap();
    socket.send(Message::Close(None)).await.unwrap();
    assert!(matches!(next(&mut socket).await, Some(Message::Close(_))));
    assert_eq!(heard.recv().await.unwrap(), b"last words");
    lab.finish().await;
}

async fn unmasked(over: Over) {
    let service = scripted(|mut peer| async move { peer.ended().await }).await;
    let lab = Lab::start(over, &rule(format!("tcp://{service}"))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send(ASK).await;
    assert_eq!(visitor.answer_head().await.status, 101);
    visitor.send(b"\x02\x01x").await;
    // Close 1002, and the end.
    assert_eq!(visitor.rest().await, [0x88, 2, 0x03, 0xea]);
    lab.finish().await;
}

async fn down(over: Over) {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for scheme in ["ws", "tcp"] {
        let lab = Lab::start(over, &rule(format!("{scheme}://{gone}"))).await;
        let Err(Error::Http(response)) = open(&lab).await else { panic!("a WebSocket to nobody") };
        assert_eq!(response.status().as_u16(), 502);
        assert_eq!(response.headers()["adit-error"], "origin-unreachable");
        lab.finish().await;
    }
}

async fn many(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", echo().await))).await;
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(open(&lab).await.unwrap().0);
    }
    let (done, mut all) = tokio::sync::mpsc::channel(100);
    for (n, mut socket) in sockets.into_iter().enumerate() {
        let done = done.clone();
        background(async move {
            for round in 0..10 {
                let message = Message::text(format!("{n} {round}"));
                socket.send(message.clone()).await.unwrap();
                assert_eq!(next(&mut socket).await, Some(message));
            }
            let _ = done.send(n).await;
        });
    }
    drop(done);
    let mut count = 0;
    while all.recv().await.is_some() {
        count += 1;
    }
    assert_eq!(count, 100);
    lab.finish().await;
}

async fn over_h2(over: Over) {
    // Echoes raw bytes after the handshake: frames pass untouched.
    let service = scripted(|mut peer| async move {
        let head = peer.head().await.unwrap();
        assert_eq!((head.method(), head.header("upgrade")), ("GET", Some("websocket")));
        assert!(head.header("sec-websocket-key").is_some() && head.header("sec-websocket-version") == Some("13"));
        assert_eq!(head.header("connection"), Some("Upgrade"));
        let accept = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
        peer.send(accept).await;
        loop {
            let bytes = peer.some().await;
            if bytes.is_empty() || !peer.send(&bytes).await {
                return;
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let (mut sender, mut connection) = h2::client::handshake(lab.tls(&["h2"]).await).await.unwrap();
    // Whether extended CONNECT is allowed is in the edge's first settings.
    std::future::poll_fn(|cx| {
        let _ = std::pin::Pin::new(&mut connection).poll(cx);
        if sender.is_extended_connect_protocol_enabled() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    background(async move {
        let _ = connection.await;
    });
    let mut request = Request::builder().method("CONNECT").uri("https://web.test/chat").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    let (answer, mut send) = sender.send_request(request, false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
    assert!(!answer.headers().contains_key("sec-websocket-accept"));
    let mut body = answer.into_body();
    for piece in ["first", "second"] {
        send.send_data(Bytes::from(piece), false).unwrap();
        let mut echoed = Vec::new();
        while echoed.len() < piece.len() {
            let chunk = body.data().await.unwrap().unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            echoed.extend_from_slice(&chunk);
        }
        assert_eq!(echoed, piece.as_bytes());
    }
    send.send_data(Bytes::new(), true).unwrap();
    assert!(body.data().await.is_none_or(|end| end.is_ok_and(|bytes| bytes.is_empty())));
    lab.finish().await;
}

over_both! {
    a_reset_by_a_byte_service_closes_the_websocket_with_an_error => byte_service_breaks,
    a_websocket_opens_where_the_service_prefers_http2 => beside_http2,
    the_handshake_is_the_services_own_and_nothing_behind_it_is_lost => handshake,
    pings_and_close_frames_pass_both_ways => control,
    a_refusal_of_the_service_passes_with_its_body => refused,
    a_service_learns_that_the_visitor_vanished => visitor_vanishes,
    a_visitor_learns_that_the_service_vanished => service_vanishes,
    the_end_of_a_byte_service_closes_the_websocket => byte_service_ends,
    what_came_before_a_close_reaches_the_byte_service => last_words,
    a_frame_without_a_mask_is_a_protocol_error => unmasked,
    a_websocket_to_a_service_that_is_down_is_unreachable => down,
    a_hundred_websockets_do_not_mix => many,
    a_websocket_over_http_2_reaches_a_service_as_an_upgrade => over_h2,
}
