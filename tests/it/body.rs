//! Bodies: both ways at once, after a 100, and no faster than the service reads.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use crate::harness::{
    Lab, Over, background, in_time, over_both,
    peer::{Peer, ok, pattern, replying, scripted},
    rule,
};

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

async fn expect_continue(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", measuring().await))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send("POST / HTTP/1.1\r\nHost: web.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    assert_eq!(visitor.answer_head().await.status, 100);
    visitor.send(pattern(5)).await;
    assert_eq!(visitor.answer().await.text(), "5 - 5 true");
    lab.finish().await;
}

/// Waits for the 100 far longer than the test may take.
async fn curl(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", measuring().await))).await;
    let body = lab.dir.path().join("body");
    std::fs::write(&body, pattern(1 << 20)).unwrap();
    let mut command = tokio::process::Command::new("curl");
    command.args(["-sS", "-H", "Host: web.test", "-H", "Expect: 100-continue", "--expect100-timeout", "600"]);
    command.arg("--data-binary").arg(format!("@{}", body.display())).arg(format!("http://{}/", lab.http));
    let said = command.kill_on_drop(true).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "1048576 - 1048576 true", "{said:?}");
    lab.finish().await;
}

#[tokio::test]
#[ignore = "needs curl in the PATH; .ci/run installs and runs it"]
async fn curl_uploads_a_mebibyte_after_a_100() {
    for over in [Over::Quic, Over::Http2] {
        in_time(curl(over)).await;
    }
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
    a_visitor_that_waits_for_100_is_told_to_continue => expect_continue,
    bodies_flow_in_both_directions_at_once => echoed,
    a_service_that_does_not_read_stops_the_visitor => slow_service,
}
