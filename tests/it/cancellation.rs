//! Visitors who leave: the service hears of it at once, and nothing of the request stays behind.

use std::net::SocketAddr;

use tokio::sync::mpsc;

use crate::harness::{
    LIMIT, Lab, Over, background, over_both,
    peer::{Peer, scripted},
    rule,
};

/// What a visitor has done and seen by the time it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// Nothing is answered.
    BeforeTheHead,
    /// The service has some of a body with a length.
    InTheBody,
    /// The service has some of a body in chunks.
    InTheChunks,
    /// The service has answered while the body still comes.
    InBothBodies,
    /// The answer has begun.
    InTheAnswer,
}

impl Leaves {
    const ALL: [Self; 5] =
        [Self::BeforeTheHead, Self::InTheBody, Self::InTheChunks, Self::InBothBodies, Self::InTheAnswer];

    fn request(self) -> &'static str {
        match self {
            Self::BeforeTheHead => "GET /silent HTTP/1.1\r\nHost: web.test\r\n\r\n",
            Self::InTheBody => "POST /silent HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1000\r\n\r\nsome",
            Self::InTheChunks => {
                "POST /silent HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"
            }
            Self::InBothBodies => {
                "POST /begin HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"
            }
            Self::InTheAnswer => "GET /begin HTTP/1.1\r\nHost: web.test\r\n\r\n",
        }
    }
}

/// What a service tells the test.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Asked,
    Ended,
    /// The whole body came, which it never should.
    Whole,
}

async fn in_http1(told: mpsc::UnboundedSender<Told>) -> SocketAddr {
    scripted(move |mut peer| {
        let told = told.clone();
        async move {
            while let Some(head) = peer.head().await {
                if head.target() == "/good" {
                    peer.ok("good").await;
                    continue;
                }
                if head.method() == "POST" {
                    // As far as the body goes before the visitor leaves.
                    let chunked = head.header("transfer-encoding").is_some();
                    peer.exact(if chunked { 9 } else { 4 }).await;
                }
                if head.target() == "/begin" {
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx").await;
                }
                told.send(Told::Asked).unwrap();
                let rest = peer.rest().await;
                told.send(if rest.ends_with(b"0\r\n\r\n") { Told::Whole } else { Told::Ended }).unwrap();
                return;
            }
        }
    })
    .await
}

async fn in_http2(told: mpsc::UnboundedSender<Told>) -> SocketAddr {
    scripted(move |peer| {
        let told = told.clone();
        async move {
            let mut connection = h2::server::handshake(peer.io).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let told = told.clone();
                background(async move {
                    let (parts, mut body) = request.into_parts();
                    if parts.uri.path() == "/good" {
                        let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                        send.send_data("good".into(), true).unwrap();
                        return;
                    }
                    if parts.method == "POST" {
                        assert_eq!(body.data().await.unwrap().unwrap(), "some");
                    }
                    let mut sent = None;
                    if parts.uri.path() == "/begin" {
                        let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                        send.send_data("x".into(), false).unwrap();
                        sent = Some(send);
                    }
                    told.send(Told::Asked).unwrap();
                    let whole = match sent {
                        Some(mut send) => std::future::poll_fn(|cx| send.poll_reset(cx)).await.is_err(),
                        None => std::future::poll_fn(|cx| respond.poll_reset(cx)).await.is_err(),
                    };
                    told.send(if whole { Told::Whole } else { Told::Ended }).unwrap();
                });
            }
        }
    })
    .await
}

/// One place at a time: who leaves must give it back.
async fn leaves(over: Over, scheme: &str) {
    let (told, mut heard) = mpsc::unbounded_channel();
    let service = if scheme == "h2c" { in_http2(told).await } else { in_http1(told).await };
    let yaml = format!("{}    limits: {{ maxConcurrent: 1 }}\n", rule(format!("{scheme}://{service}")));
    let lab = Lab::start(over, &yaml).await;
    for when in Leaves::ALL {
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send(when.request()).await;
        let mut hear = async || tokio::time::timeout(LIMIT, heard.recv()).await.expect("the service waits").unwrap();
        assert_eq!(hear().await, Told::Asked, "{when:?}");
        if when.request().contains("/begin") {
            assert_eq!(visitor.answer_head().await.status, 200, "{when:?}");
        }
        drop(visitor);
        assert_eq!(hear().await, Told::Ended, "{when:?}");
        lab.idle().await;
        assert_eq!(lab.get("/good").await.text(), "good", "after {when:?}");
        lab.idle().await;
    }
    assert_eq!(lab.refusals(), 0, "a visitor who leaves is no failure of the service");
    let exposed = lab.metrics.expose();
    assert!(exposed.contains("adit_visitors_left_total 5\n"), "{exposed}");
    lab.finish().await;
}

/// The service dies while the visitor still sends.
async fn service_dies(over: Over, answer: &'static str) {
    let service = scripted(move |mut peer| async move {
        peer.head().await;
        peer.exact(1).await;
        peer.send(answer).await;
        if !answer.is_empty() {
            // Until the visitor has the head, and says so.
            peer.exact(4).await;
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send("POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nContent-Length: 100000000\r\n\r\n1").await;
    let head = if answer.is_empty() {
        visitor.answer_head().await
    } else {
        let head = visitor.answer_head().await;
        visitor.send("2345").await;
        head
    };
    let rest = tokio::time::timeout(LIMIT, visitor.rest()).await.expect("the visitor still waits");
    if answer.is_empty() {
        assert_eq!((head.status, head.code()), (502, Some("origin-protocol")));
    } else {
        assert!(!rest.ends_with(b"0\r\n\r\n"), "it looked complete");
    }
    lab.idle().await;
    assert_eq!(lab.refusals(), 1);
    lab.finish().await;
}

/// An answer that does not wait for the body: refusals come before it is sent.
async fn early_refusal(over: Over, status: u16) {
    const BODY: usize = 256 << 20;
    let service = scripted(move |mut peer| async move {
        peer.head().await;
        peer.send(format!("HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno")).await;
        // Nothing is read, and nothing closed: the visitor has to stop by itself.
        std::future::pending::<()>().await;
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let stream = tokio::net::TcpStream::connect(lab.http).await.unwrap();
    let (read, mut write) = stream.into_split();
    let (counted, mut count) = mpsc::channel(1);
    background(async move {
        use tokio::io::AsyncWriteExt;
        let head = format!(
            "POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nExpect: 100-continue\r\n\
             Content-Length: {BODY}\r\n\r\n"
        );
        write.write_all(head.as_bytes()).await.unwrap();
        let (block, mut sent) = (vec![0; 64 << 10], 0);
        while sent < BODY && write.write_all(&block).await.is_ok() {
            sent += block.len();
        }
        counted.send(sent).await.unwrap();
    });
    let mut visitor = Peer::new(tokio::io::join(read, tokio::io::sink()), 0);
    let mut answer = visitor.answer_head().await;
    if answer.status == 100 {
        answer = visitor.answer_head().await;
    }
    assert_eq!((answer.status, answer.code()), (status, None));
    assert_eq!(visitor.exact(2).await, b"no");
    drop(visitor);
    let sent = tokio::time::timeout(LIMIT, count.recv()).await.expect("the visitor still sends").unwrap();
    assert!(sent < BODY, "all of the body was taken");
    lab.finish().await;
}

over_both! {
    a_visitor_who_leaves_frees_an_http1_service_and_its_place => |over| leaves(over, "http"),
    a_visitor_who_leaves_frees_an_http2_service_and_its_place => |over| leaves(over, "h2c"),
    a_service_that_dies_during_the_upload_is_told_to_the_visitor => |over| service_dies(over, ""),
    a_service_that_dies_during_both_bodies_cuts_the_answer =>
        |over| service_dies(over, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    a_401_without_reading_the_body_reaches_the_visitor => |over| early_refusal(over, 401),
    a_417_without_reading_the_body_reaches_the_visitor => |over| early_refusal(over, 417),
}
