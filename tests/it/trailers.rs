//! Trailers of requests and of answers, through both transports, to services in HTTP/2 and in HTTP/1.1.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{HeaderMap, Request, Response, body::Frame, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::sync::Notify;

use crate::harness::{
    Lab, Over, canned, over_both,
    peer::{Peer, scripted},
    rule, service,
    tls::h2_body,
};

fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// Reads a request to its end, then answers with the trailers it saw as trailers, a few of its own among them.
async fn reflecting() -> SocketAddr {
    service(|stream| async move {
        let answering = service_fn(|request: Request<Incoming>| async move {
            let welcome = request.headers().get("te").is_some_and(|te| te == "trailers");
            let body = request.into_body().collect().await.unwrap();
            let mut trailers = body.trailers().cloned().unwrap_or_default();
            trailers.extend(map(&[
                ("x-service", "one"),
                ("cf-int-forged", "1"),
                ("cf-cloudflared-response-meta", "1"),
                ("content-length", "1"),
            ]));
            let frames = [Frame::data(body.to_bytes()), Frame::trailers(trailers)];
            let mut response = Response::new(StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>))));
            response.headers_mut().insert("x-welcome", welcome.to_string().parse().unwrap());
            Ok::<_, Infallible>(response)
        });
        let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answering).await;
    })
    .await
}

/// A visitor in HTTP/2 sends a body and these trailers.
async fn visit(
    lab: &Lab,
    head: http::request::Builder,
    trailers: HeaderMap,
) -> (http::response::Parts, String, HeaderMap) {
    let mut visitor = lab.h2().await;
    let (answer, mut send) = visitor.send_request(head.body(()).unwrap(), false).unwrap();
    send.send_data(Bytes::from_static(b"the body"), false).unwrap();
    send.send_trailers(trailers).unwrap();
    let (head, body) = answer.await.unwrap().into_parts();
    let (text, trailers) = h2_body(body).await;
    (head, text, trailers.unwrap_or_default())
}

async fn there_and_back(over: Over) {
    let lab = Lab::start(over, &rule(format!("h2c://{}", reflecting().await))).await;
    let sent = map(&[
        ("x-visitor", "two"),
        ("x-visitor", "words"),
        ("host", "elsewhere"),
        ("content-length", "1"),
        ("authorization", "forged"),
        ("client-cert", "forged"),
        ("x-forwarded-client-cert", "forged"),
        ("cf-connecting-ip", "192.0.2.1"),
    ]);
    let head = Request::post("https://web.test/").header("te", "trailers");
    let (head, text, mut trailers) = visit(&lab, head, sent).await;
    assert_eq!((head.status.as_u16(), text.as_str()), (200, "the body"));
    assert_eq!(head.headers["x-welcome"], "true");
    assert_eq!(trailers.get_all("x-visitor").iter().collect::<Vec<_>>(), ["two", "words"]);
    assert_eq!(trailers["x-service"], "one");
    trailers.remove("x-visitor");
    trailers.remove("x-service");
    assert!(trailers.is_empty(), "{trailers:?}");
    lab.finish().await;
}

async fn unwelcome(over: Over) {
    let lab = Lab::start(over, &rule(format!("h2c://{}", reflecting().await))).await;
    let (head, ..) = visit(&lab, Request::post("https://web.test/"), map(&[("x-visitor", "1")])).await;
    assert_eq!(head.headers["x-welcome"], "false", "a visitor who did not ask for trailers");
    lab.finish().await;
}

/// In HTTP/1.1 trailers are announced, and end the chunks.
async fn in_chunks(over: Over) {
    let service = scripted(|mut peer| async move {
        let head = peer.head().await.unwrap();
        assert_eq!((head.header("trailer"), head.header("te")), (Some("x-visitor"), None));
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            let more = peer.some().await;
            assert!(!more.is_empty(), "cut: {seen:?}");
            seen.extend(more);
        }
        let seen = String::from_utf8(seen).unwrap().to_lowercase();
        assert_eq!(seen, "8\r\nthe body\r\n0\r\nx-visitor: one\r\n\r\n");
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Service\r\n\r\n";
        peer.send(format!("{answer}3\r\nyes\r\n0\r\nX-Service: two\r\nConnection: x\r\n\r\n")).await;
        peer.ended().await;
    });
    let lab = Lab::start(over, &rule(format!("http://{}", service.await))).await;
    let head = Request::post("https://web.test/").header("trailer", "x-visitor").header("te", "trailers");
    let (_, text, trailers) = visit(&lab, head, map(&[("x-visitor", "one")])).await;
    assert_eq!((text.as_str(), trailers), ("yes", map(&[("x-service", "two")])));
    lab.finish().await;
}

/// A visitor in HTTP/1.1 gets trailers if it said that it takes them.
async fn to_http1(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", announcing().await))).await;
    for (te, end) in [
        ("TE: trailers\r\nConnection: TE, close\r\n", "0\r\nX-Service: two\r\n\r\n"),
        ("Connection: close\r\n", "0\r\n\r\n"),
    ] {
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send(format!("GET / HTTP/1.1\r\nHost: web.test\r\n{te}\r\n")).await;
        assert_eq!(visitor.answer_head().await.status, 200);
        assert_eq!(String::from_utf8(visitor.rest().await).unwrap(), format!("3\r\nyes\r\n{end}"));
    }
    lab.finish().await;
}

async fn announcing() -> SocketAddr {
    canned(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Service\r\n\r\n\
         3\r\nyes\r\n0\r\nX-Service: two\r\n\r\n",
    )
    .await
}

/// More than any trailers may be: the answer is cut, the connection is not.
async fn too_large(over: Over) {
    let seen = Arc::new(Notify::new());
    let go_on = seen.clone();
    let service = scripted(move |mut peer| {
        let go_on = go_on.clone();
        async move {
            if peer.head().await.unwrap().target() == "/good" {
                peer.ok("good").await;
                return;
            }
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
            go_on.notified().await;
            let lines: String = (0..400).map(|n| format!("X-{n}: {}\r\n", "v".repeat(4000))).collect();
            peer.send(format!("0\r\n{lines}\r\n")).await;
            peer.ended().await;
        }
    });
    let lab = Lab::start(over, &rule(format!("http://{}", service.await))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send("GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(visitor.answer_head().await.status, 200);
    assert_eq!(visitor.exact(6).await, b"1\r\nx\r\n");
    seen.notify_one();
    assert_eq!(visitor.rest().await, b"", "half an answer looks whole");
    assert_eq!(lab.get("/good").await.text(), "good");
    lab.finish().await;
}

over_both! {
    trailers_pass_both_ways_but_for_what_belongs_into_a_head => there_and_back,
    a_service_hears_that_trailers_are_welcome_from_the_visitor_alone => unwelcome,
    a_service_in_http1_gets_and_gives_trailers_in_its_chunks => in_chunks,
    a_visitor_in_http1_gets_announced_trailers_if_it_takes_them => to_http1,
    trailers_that_are_too_large_cut_the_answer_and_nothing_else => too_large,
}
