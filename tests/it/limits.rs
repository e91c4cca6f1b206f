//! The limits of a rule at work.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::SinkExt;
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    harness::{
        LIMIT, Lab, Over, background, eventually,
        log::Log,
        over_both,
        peer::{Peer, ok, replying, scripted},
        rule,
    },
    rules_pushed::{connect, edge_with},
    websocket::{next, open},
};

fn limited(service: impl std::fmt::Display, limits: &str) -> String {
    format!("{}    limits: {{ {limits} }}\n", rule(service))
}

const CLOSE: &str = "Host: web.test\r\nConnection: close\r\n";

/// A visitor's body lasts longer than the service may take afterwards; so does the answer's.
async fn slow_visitor(over: Over) {
    let service = scripted(|mut peer| async move {
        peer.request().await.unwrap();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        peer.send("ok").await;
    })
    .await;
    let lab = Lab::start(over, &limited(format!("http://{service}"), "headerTimeout: 2s")).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send(format!("POST / HTTP/1.1\r\n{CLOSE}Content-Length: 5\r\n\r\n")).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        visitor.send("x").await;
    }
    let answer = visitor.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    lab.finish().await;
}

/// The connection is known to be good, and the service is late all the same.
async fn silent_after_reuse(over: Over) {
    let service = scripted(|mut peer| async move {
        peer.request().await.unwrap();
        peer.ok("first").await;
        peer.request().await;
        peer.ended().await;
    })
    .await;
    let lab = Lab::start(over, &limited(format!("http://{service}"), "headerTimeout: 1s")).await;
    assert_eq!(lab.get("/").await.text(), "first");
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (504, Some("origin-timeout")));
    assert_eq!(lab.get("/").await.text(), "first", "on a connection of its own");
    lab.finish().await;
}

/// The body is gone when all of it was sent, and so is one that there never was.
async fn silent_http2(over: Over) {
    let service = scripted(|peer| async move {
        let mut connection = h2::server::handshake(peer.io).await.unwrap();
        let mut silent = Vec::new();
        while let Some(Ok(request)) = connection.accept().await {
            silent.push(request);
        }
    })
    .await;
    let lab = Lab::start(over, &limited(format!("h2c://{service}"), "headerTimeout: 300ms")).await;
    for answer in [lab.get("/").await, lab.send("POST", "/", "", b"body").await, lab.raw(chunked("body")).await] {
        assert_eq!((answer.status, answer.code()), (504, Some("origin-timeout")));
    }
    lab.finish().await;
}

async fn not_after_an_upgrade(over: Over) {
    let service = scripted(|peer| async move {
        use futures_util::StreamExt;
        let Ok(mut socket) = tokio_tungstenite::accept_async(peer.io).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_binary() && socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await;
    let lab = Lab::start(over, &limited(format!("http://{service}"), "headerTimeout: 1s, requestTimeout: 1s")).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    socket.send(Message::binary(&b"still here"[..])).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(Message::binary(&b"still here"[..])));
    drop(socket);
    lab.finish().await;
}

/// The visitor takes nothing, so that nothing ends by itself.
async fn visitor_who_does_not_read(over: Over) {
    let service = scripted(|mut peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
        let block = vec![0; 64 << 10];
        while peer.send(&block).await {}
    })
    .await;
    let log = Log::start();
    let lab = Lab::start(over, &limited(format!("http://{service}"), "requestTimeout: 2s")).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send(format!("GET / HTTP/1.1\r\n{CLOSE}\r\n")).await;
    eventually("the request has begun", async || lab.metrics.in_flight() == 1).await;
    lab.idle().await;
    let lines = log.lines();
    assert_eq!((lines.len(), lines[0].field("code"), lines[0].field("end")), (1, "origin-timeout", "cut"), "{lines:?}");
    assert!(lines[0].field("cause").contains("requestTimeout"), "{lines:?}");
    drop(visitor);
    lab.finish().await;
}

/// A service that counts who asks, and ends each answer when told to, but for `/good`.
async fn waiting() -> (SocketAddr, Arc<AtomicUsize>, Arc<Notify>) {
    let (asked, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, told) = (asked.clone(), go_on.clone());
    let addr = scripted(move |mut peer| {
        let (counted, told) = (counted.clone(), told.clone());
        async move {
            while let Some((head, _)) = peer.request().await {
                if head.target() == "/good" {
                    peer.ok("good").await;
                    continue;
                }
                counted.fetch_add(1, Ordering::SeqCst);
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").await;
                tokio::select! {
                    () = told.notified() => drop(peer.send("k").await),
                    () = peer.ended() => return,
                }
            }
        }
    })
    .await;
    (addr, asked, go_on)
}

async fn at_once(over: Over) {
    let (service, asked, go_on) = waiting().await;
    let lab = Lab::start(over, &limited(format!("http://{service}"), "maxConcurrent: 2")).await;
    let mut visitors = Vec::new();
    for number in 1..=2 {
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send(format!("GET / HTTP/1.1\r\n{CLOSE}\r\n")).await;
        assert_eq!(visitor.answer_head().await.status, 200);
        assert_eq!(asked.load(Ordering::SeqCst), number);
        visitors.push(visitor);
    }
    for _ in 0..3 {
        let answer = lab.get("/").await;
        assert_eq!((answer.status, answer.code()), (503, Some("overloaded")));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2, "the service was asked");
    // A place is free when the answer has ended, not when it has begun.
    go_on.notify_one();
    eventually("a place is free", async || lab.metrics.in_flight() == 1).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send(format!("GET / HTTP/1.1\r\n{CLOSE}\r\n")).await;
    assert_eq!(visitor.answer_head().await.status, 200);
    // Who leaves gives a place back too.
    drop((visitor, visitors));
    lab.idle().await;
    assert_eq!(lab.get("/good").await.text(), "good");
    lab.finish().await;
}

async fn streams_at_once(over: Over) {
    let service = scripted(|mut peer| async move { peer.ended().await }).await;
    let lab = Lab::start(over, &limited(format!("tcp://{service}"), "maxConcurrent: 1")).await;
    let (socket, _) = open(&lab).await.unwrap();
    let refused = open(&lab).await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("503"), "{refused}");
    drop(socket);
    lab.idle().await;
    drop(open(&lab).await.unwrap());
    lab.finish().await;
}

async fn announced(over: Over) {
    let (service, connections) = replying(|_, body| ok(body)).await;
    let lab = Lab::start(over, &limited(format!("http://{service}"), "maxBodyBytes: 10")).await;
    let answer = lab.send("POST", "/", "", b"eleven more").await;
    assert_eq!((answer.status, answer.code()), (413, Some("body-too-large")));
    assert_eq!(connections.load(Ordering::SeqCst), 0, "the service was opened");
    assert_eq!(lab.send("POST", "/", "", b"ten, no mo").await.text(), "ten, no mo");
    assert_eq!(lab.get("/").await.status, 200);
    lab.finish().await;
}

fn chunked(body: &str) -> String {
    format!("POST / HTTP/1.1\r\n{CLOSE}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

async fn streamed(over: Over) {
    let (told, mut bodies) = mpsc::unbounded_channel();
    let service = scripted(move |mut peer| {
        let told = told.clone();
        async move {
            loop {
                // Not even the head may have left when the body turns out too large.
                let body = match peer.head().await {
                    Some(head) => peer.body(&head).await,
                    None => None,
                };
                let whole = body.is_some();
                told.send(body).unwrap();
                if !whole || !peer.ok("ok").await {
                    return;
                }
            }
        }
    })
    .await;
    let lab = Lab::start(over, &limited(format!("http://{service}"), "maxBodyBytes: 10")).await;
    let answer = lab.raw(chunked("ten, no mo")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert_eq!(bodies.recv().await.unwrap().unwrap(), b"ten, no mo");
    let answer = lab.raw(chunked("eleven more")).await;
    assert_eq!((answer.status, answer.code()), (413, Some("body-too-large")));
    let seen = tokio::time::timeout(LIMIT, bodies.recv()).await.expect("the service still waits").unwrap();
    assert_eq!(seen, None, "it looked complete");
    lab.idle().await;
    lab.finish().await;
}

async fn streamed_after_the_head(over: Over) {
    let service = scripted(|mut peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n").await;
        peer.ended().await;
    })
    .await;
    let log = Log::start();
    let lab = Lab::start(over, &limited(format!("http://{service}"), "maxBodyBytes: 10")).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send(format!("POST / HTTP/1.1\r\n{CLOSE}Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n")).await;
    assert_eq!(visitor.answer_head().await.status, 200);
    assert_eq!(visitor.exact(10).await, b"5\r\nbegun\r\n");
    visitor.send("7\r\nseven!!\r\n0\r\n\r\n").await;
    let rest = tokio::time::timeout(LIMIT, visitor.rest()).await.expect("the visitor still waits");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it looked complete");
    lab.idle().await;
    let lines = log.lines();
    assert_eq!((lines.len(), lines[0].field("code"), lines[0].field("end")), (1, "body-too-large", "cut"), "{lines:?}");
    lab.finish().await;
}

async fn streamed_to_http2(over: Over) {
    let (told, mut bodies) = mpsc::unbounded_channel();
    let service = scripted(move |peer| {
        let told = told.clone();
        async move {
            let mut connection = h2::server::handshake(peer.io).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                let told = told.clone();
                background(async move {
                    let mut body = request.into_body();
                    let end = loop {
                        match body.data().await {
                            Some(Ok(_)) => {}
                            Some(Err(_)) => break "broken",
                            None => break "whole",
                        }
                    };
                    told.send(end).unwrap();
                    drop(respond);
                });
            }
        }
    })
    .await;
    let lab = Lab::start(over, &limited(format!("h2c://{service}"), "maxBodyBytes: 10")).await;
    let answer = lab.raw(chunked("eleven more")).await;
    assert_eq!((answer.status, answer.code()), (413, Some("body-too-large")));
    let seen = tokio::time::timeout(LIMIT, bodies.recv()).await.expect("the service still waits");
    assert_eq!(seen, Some("broken"));
    lab.finish().await;
}

async fn of_pushed_rules(over: Over) {
    let (service, _) = replying(|_, body| ok(body)).await;
    let mut lab = edge_with(&rule(format!("http://{service}"))).await;
    connect(&mut lab, over, &format!("limits: {{ maxBodyBytes: 3 }}\n{}", rule("http_status:404")), 1).await;
    eventually("the pushed rules are in force", async || lab.get("/").await.status == 200).await;
    assert_eq!(lab.send("POST", "/", "", b"abc").await.text(), "abc");
    let answer = lab.send("POST", "/", "", b"abcd").await;
    assert_eq!((answer.status, answer.code()), (413, Some("body-too-large")));
    lab.finish().await;
}

over_both! {
    the_header_timeout_counts_from_the_end_of_the_request_to_the_head_of_the_answer => slow_visitor,
    a_kept_connection_that_falls_silent_times_out_as_well => silent_after_reuse,
    an_http2_service_that_falls_silent_times_out_as_well => silent_http2,
    no_timeout_ends_a_websocket => not_after_an_upgrade,
    a_visitor_who_does_not_read_is_cut_when_the_request_took_too_long => visitor_who_does_not_read,
    a_request_above_max_concurrent_is_refused_at_once => at_once,
    a_byte_stream_takes_a_place_while_it_is_open => streams_at_once,
    an_announced_body_that_is_too_large_never_reaches_the_service => announced,
    a_body_that_turns_out_too_large_never_looks_complete_to_the_service => streamed,
    a_body_that_turns_out_too_large_after_the_head_cuts_the_answer => streamed_after_the_head,
    a_body_that_turns_out_too_large_is_refused_before_an_http2_service_too => streamed_to_http2,
    limits_of_the_file_hold_for_pushed_rules => of_pushed_rules,
}
