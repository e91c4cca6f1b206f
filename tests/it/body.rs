//! Bodies: framed as they must be, streamed, never half; and connections to the service used again.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, mpsc};

use crate::harness::{
    LIMIT, Lab, Over, background, over_both,
    peer::{Peer, is_whole, ok, pattern, replying, scripted},
    rule,
};

const LARGE: usize = 16 << 20;

/// A service that answers with how a body was framed, how long it was, and whether it is the pattern.
async fn measuring() -> std::net::SocketAddr {
    replying(|head, body| {
        let length = head.header("content-length").unwrap_or("-");
        let coding = head.header("transfer-encoding").unwrap_or("-");
        ok(format!("{length} {coding} {} {}", body.len(), body == pattern(body.len())))
    })
    .await
    .0
}

fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(size) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

async fn up_chunked(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", measuring().await))).await;
    let mut request =
        b"POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    request.extend(chunked(&pattern(LARGE), 60_000));
    assert_eq!(lab.raw(request).await.text(), format!("- chunked {LARGE} true"));
    assert_eq!(lab.send("PUT", "/", "", &pattern(LARGE)).await.text(), format!("{LARGE} - {LARGE} true"));
    lab.finish().await;
}

async fn down(over: Over) {
    let (service, _) = replying(|head, _| match head.target() {
        "/length" => ok(pattern(LARGE)),
        _ => {
            let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            answer.extend(chunked(&pattern(LARGE), 50_000));
            answer
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    for path in ["/length", "/chunked"] {
        let answer = lab.get(path).await;
        assert_eq!((answer.status, answer.complete, answer.body.len()), (200, true, LARGE), "{path}");
        assert!(answer.body == pattern(LARGE), "{path}");
        assert_eq!(answer.header("content-length").is_some(), path == "/length");
    }
    lab.finish().await;
}

async fn expect_continue(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", measuring().await))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send("POST / HTTP/1.1\r\nHost: web.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    assert_eq!(visitor.answer_head().await.status, 100);
    visitor.send(pattern(5)).await;
    assert_eq!(visitor.answer().await.text(), "5 - 5 true");
    lab.finish().await;
}

async fn early_answer(over: Over) {
    let service = scripted(|mut peer| async move {
        if peer.head().await.is_some() {
            peer.send("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 6\r\n\r\nenough").await;
            peer.ended().await;
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send("POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1000000\r\n\r\nbegun").await;
    // The rest of the body is never sent.
    let answer = visitor.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (413, "enough"));
    lab.finish().await;
}

async fn echoed(over: Over) {
    let service = scripted(|mut peer| async move {
        if peer.head().await.is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            loop {
                let bytes = peer.some().await;
                if bytes.is_empty() || !peer.send(&bytes).await {
                    return;
                }
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send("POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert_eq!(visitor.answer_head().await.status, 200);
    // Each piece comes back before the next is sent.
    for piece in ["one", "two", "three"] {
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        visitor.send(&chunk).await;
        assert_eq!(visitor.exact(chunk.len()).await, chunk.as_bytes());
    }
    visitor.send("0\r\n\r\n").await;
    assert_eq!(visitor.exact(5).await, b"0\r\n\r\n");
    lab.finish().await;
}

async fn cut_after_the_head(over: Over) {
    let answers = ["Content-Length: 100\r\n\r\n7 bytes", "Transfer-Encoding: chunked\r\n\r\n7\r\n7 bytes\r\n"];
    for answer in answers {
        let die = Arc::new(Notify::new());
        let dying = die.clone();
        let service = scripted(move |mut peer| {
            let dying = dying.clone();
            async move {
                peer.head().await;
                peer.send(format!("HTTP/1.1 200 OK\r\n{answer}")).await;
                dying.notified().await;
            }
        });
        let lab = Lab::start(over, &rule(format!("http://{}", service.await))).await;
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send("GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
        let head = visitor.answer_head().await;
        assert_eq!(head.status, 200);
        die.notify_one();
        let rest = visitor.rest().await;
        match head.header("content-length") {
            Some(length) => assert!(rest.len() < length.parse().unwrap(), "{rest:?} looks whole"),
            None => assert!(!is_whole(&rest), "{rest:?} looks whole"),
        }
        lab.finish().await;
    }
}

async fn visitor_leaves_uploading(over: Over) {
    let (told, mut heard) = mpsc::channel(1);
    let begun = Arc::new(Notify::new());
    let beginning = begun.clone();
    let service = scripted(move |mut peer| {
        let (told, beginning) = (told.clone(), beginning.clone());
        async move {
            let Some(head) = peer.head().await else { return };
            beginning.notify_one();
            let _ = told.send(peer.body(&head).await.is_some()).await;
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    for framing in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send(format!("POST / HTTP/1.1\r\nHost: web.test\r\n{framing}\r\n\r\n5\r\n12345\r\n")).await;
        begun.notified().await;
        drop(visitor);
        let whole = tokio::time::timeout(LIMIT, heard.recv()).await.expect("the service still waits");
        assert_eq!(whole, Some(false), "half a body looked whole to the service ({framing})");
    }
    lab.finish().await;
}

async fn slow_service(over: Over) {
    let (release, moved) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let released = release.clone();
    let service = scripted(move |mut peer| {
        let released = released.clone();
        async move {
            peer.head().await;
            released.notified().await;
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send(format!("PUT / HTTP/1.1\r\nHost: web.test\r\nContent-Length: {}\r\n\r\n", 256 << 20)).await;
    let counted = moved.clone();
    background(async move {
        let block = vec![0; 64 << 10];
        while counted.load(Ordering::SeqCst) < 256 << 20 && visitor.send(&block).await {
            counted.fetch_add(block.len(), Ordering::SeqCst);
        }
    });
    // Nothing tells that nothing more will happen: half a second without a byte does.
    let mut before = 0;
    let stands = loop {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let now = moved.load(Ordering::SeqCst);
        if now == before && now > 0 {
            break now;
        }
        before = now;
    };
    assert!(stands < 64 << 20, "{stands} bytes were taken from the visitor and not read by the service");
    release.notify_one();
    lab.finish().await;
}

over_both! {
    sixteen_mebibytes_go_up_intact_with_and_without_a_length => up_chunked,
    sixteen_mebibytes_come_down_intact_with_and_without_a_length => down,
    a_visitor_that_waits_for_100_is_told_to_continue => expect_continue,
    an_answer_arrives_while_the_body_is_still_being_sent => early_answer,
    bodies_flow_in_both_directions_at_once => echoed,
    an_answer_that_breaks_off_after_its_head_is_cut_for_the_visitor_too => cut_after_the_head,
    half_an_upload_never_looks_whole_to_the_service => visitor_leaves_uploading,
    a_service_that_does_not_read_stops_the_visitor => slow_service,
}
