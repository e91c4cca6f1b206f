//! Connections to services: pooled, found dead, over unix sockets, in HTTP/2.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_rustls::TlsAcceptor;

use crate::harness::{
    Lab, Over, background, over_both,
    peer::{Io, Peer, ok, replying, scripted, scripted_unix},
    rule,
    tls::{Ca, h2_body},
};

fn with(service: impl std::fmt::Display, options: &str) -> String {
    format!("{}    originRequest: {{{options}}}\n", rule(service))
}

async fn reused(over: Over) {
    let (service, connections) = replying(|_, body| ok(body)).await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    for n in 0..20 {
        let answer = if n % 2 == 0 { lab.get("/").await } else { lab.send("POST", "/", "", b"body").await };
        assert_eq!(answer.status, 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    lab.finish().await;
}

async fn never_reused(over: Over) {
    let (service, connections) = replying(|_, _| ok("x")).await;
    let lab = Lab::start(over, &with(format!("http://{service}"), "keepAliveConnections: 0")).await;
    for _ in 0..5 {
        assert_eq!(lab.get("/").await.status, 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 5);
    lab.finish().await;
}

async fn asked_to_close(over: Over) {
    let (service, connections) =
        replying(|_, _| b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec()).await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    for _ in 0..3 {
        assert_eq!(lab.get("/").await.status, 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
    lab.finish().await;
}

async fn stale(over: Over) {
    // The first connection serves one request, reads a second one and dies without a word.
    let service = scripted(|mut peer| async move {
        while peer.request().await.is_some() {
            peer.ok(peer.number.to_string()).await;
            if peer.number == 0 {
                peer.head().await;
                return;
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    assert_eq!(lab.get("/").await.text(), "0");
    assert_eq!(lab.get("/").await.text(), "1");
    assert_eq!(lab.send("POST", "/", "", b"x").await.text(), "1");
    lab.finish().await;
}

async fn stale_post(over: Over) {
    let posts = Arc::new(AtomicUsize::new(0));
    let counted = posts.clone();
    let service = scripted(move |mut peer| {
        let counted = counted.clone();
        async move {
            while let Some((head, _)) = peer.request().await {
                if head.method() == "POST" {
                    counted.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                peer.ok("x").await;
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    assert_eq!(lab.get("/").await.status, 200);
    let answer = lab.send("POST", "/", "", b"pay").await;
    assert_eq!((answer.status, answer.code()), (502, Some("origin-protocol")));
    assert_eq!(posts.load(Ordering::SeqCst), 1, "a POST was sent twice");
    lab.finish().await;
}

async fn closed_while_idle(over: Over) {
    let closed = Arc::new(Notify::new());
    let closing = closed.clone();
    let service = scripted(move |mut peer| {
        let closing = closing.clone();
        async move {
            while peer.request().await.is_some() {
                peer.ok(peer.number.to_string()).await;
                if peer.number == 0 {
                    drop(peer);
                    return closing.notify_one();
                }
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    assert_eq!(lab.get("/").await.text(), "0");
    closed.notified().await;
    // A POST is safe too: nothing of it went to the dead connection.
    assert_eq!(lab.send("POST", "/", "", b"x").await.text(), "1");
    lab.finish().await;
}

async fn comes_back(over: Over) {
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let lab = Lab::start(over, &rule(format!("http://{addr}"))).await;
    assert_eq!(lab.get("/").await.status, 502);
    let listener = TcpListener::bind(addr).await.unwrap();
    background(async move {
        let mut peer = Peer::new(listener.accept().await.unwrap().0, 0);
        while peer.request().await.is_some() {
            peer.ok("back").await;
        }
    });
    assert_eq!(lab.get("/").await.text(), "back");
    lab.finish().await;
}

async fn unix(over: Over) {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("plain.sock");
    scripted_unix(&path, |mut peer| async move {
        while let Some((head, _)) = peer.request().await {
            peer.ok(format!("{} {}", head.line, head.header("host").unwrap())).await;
        }
    });
    let lab = Lab::start(over, &rule(format!("unix:{}", path.display()))).await;
    assert_eq!(lab.get("/u").await.text(), "GET /u HTTP/1.1 web.test");
    lab.finish().await;

    let path = dir.path().join("tls.sock");
    let acceptor = TlsAcceptor::from(ca.server(&["localhost"], &[]));
    scripted_unix(&path, move |peer| {
        let acceptor = acceptor.clone();
        async move {
            let mut peer = Peer::new(acceptor.accept(peer.io).await.unwrap(), 0);
            while peer.request().await.is_some() {
                peer.ok("over TLS").await;
            }
        }
    });
    let trusting = format!("caPool: {}", ca.write(dir.path()));
    let lab = Lab::start(over, &with(format!("unix+tls:{}", path.display()), &trusting)).await;
    assert_eq!(lab.get("/").await.text(), "over TLS");
    lab.finish().await;
}

/// Serves HTTP/2: the request's line and body back, then a trailer.
async fn h2_service<S: Io>(io: S, connection: usize) {
    let mut serving = h2::server::handshake(io).await.unwrap();
    while let Some(Ok((request, mut respond))) = serving.accept().await {
        background(async move {
            let (parts, body) = request.into_parts();
            let te = parts.headers.get("te").map_or("none", |te| te.to_str().unwrap()).to_owned();
            let (body, _) = h2_body(body).await;
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            let line = format!("{} {} te={te} connection={connection} {body}", parts.method, parts.uri);
            send.send_data(Bytes::from(line), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            send.send_trailers(trailers).unwrap();
        });
    }
}

async fn h2_listener(tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    background(async move {
        for number in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            let tls = tls.clone();
            background(async move {
                match tls {
                    Some(tls) => h2_service(tls.accept(stream).await.unwrap(), number).await,
                    None => h2_service::<TcpStream>(stream, number).await,
                }
            });
        }
    });
    addr
}

/// A gRPC-like exchange of a visitor over HTTP/2.
async fn grpc(lab: &Lab) -> (String, Option<HeaderMap>) {
    let mut visitor = lab.h2().await;
    let request = Request::post("https://web.test/call").header("te", "trailers").body(()).unwrap();
    let (answer, mut body) = visitor.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"ask"), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    h2_body(answer.into_body()).await
}

async fn trailers_pass(over: Over, yaml: &str) {
    let lab = Lab::start(over, yaml).await;
    for _ in 0..3 {
        let (body, trailers) = grpc(&lab).await;
        // `te` is of one hop: the edge took it. Every request comes over one connection.
        assert!(body.starts_with("POST http") && body.ends_with("web.test/call te=none connection=0 ask"), "{body}");
        // Trailers between adit and its own edge on QUIC are still to come.
        if over == Over::Http2 {
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
        }
    }
    lab.finish().await;
}

async fn h2_over_tls(over: Over) {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let addr = h2_listener(Some(TlsAcceptor::from(ca.server(&["service.test"], &["h2", "http/1.1"])))).await;
    let options = format!("http2Origin: true, originServerName: service.test, caPool: {}", ca.write(dir.path()));
    trailers_pass(over, &with(format!("https://{addr}"), &options)).await;
}

async fn h2c(over: Over) {
    let addr = h2_listener(None).await;
    trailers_pass(over, &rule(format!("h2c://{addr}"))).await;
}

over_both! {
    a_connection_to_the_service_is_used_again => reused,
    without_keep_alive_each_request_has_its_own_connection => never_reused,
    a_service_that_asks_to_close_is_not_asked_again_there => asked_to_close,
    a_get_on_a_connection_that_died_is_sent_again => stale,
    a_post_on_a_connection_that_died_is_not_sent_again => stale_post,
    a_connection_closed_while_idle_costs_no_request => closed_while_idle,
    a_service_that_comes_back_is_served_at_once => comes_back,
    services_on_unix_sockets_are_reached_with_and_without_tls => unix,
    a_service_in_http_2_over_tls_shares_one_connection_and_keeps_its_trailers => h2_over_tls,
    a_service_in_http_2_without_tls_shares_one_connection_and_keeps_its_trailers => h2c,
}
