//! Connections to services that close, die and come back.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::net::TcpListener;

use crate::harness::{
    Lab, Over, background, over_both,
    peer::{Peer, replying, scripted},
    rule,
};

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

over_both! {
    a_service_that_asks_to_close_is_not_asked_again_there => asked_to_close,
    a_get_on_a_connection_that_died_is_sent_again => stale,
    a_post_on_a_connection_that_died_is_not_sent_again => stale_post,
    a_service_that_comes_back_is_served_at_once => comes_back,
}
