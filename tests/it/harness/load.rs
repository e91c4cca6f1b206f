//! Visitors who ask one thing after another over connections they keep, never twice, and count what they get.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::mpsc;

use super::{
    LIMIT, background, eventually,
    peer::{Peer, ok, pattern, replying},
};
use crate::websocket::ASK;

/// Visitors at work until [`Load::stop`].
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    visitors: usize,
    ended: mpsc::Receiver<Result<(), String>>,
}

/// What visitors got.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) requests: usize,
    /// One line for each visitor who got something else than the answer.
    pub(crate) failed: Vec<String>,
}

impl Load {
    /// A service that such visitors are content with.
    pub(crate) async fn service() -> SocketAddr {
        replying(|head, body| ok(format!("{} {}", head.line, body.len()))).await.0
    }

    /// Every fourth request is a POST of 1 KiB.
    pub(crate) fn start(addr: SocketAddr, visitors: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicUsize::new(0));
        let (end, ended) = mpsc::channel(visitors);
        for visitor in 0..visitors {
            let (stop, asked, end) = (stop.clone(), asked.clone(), end.clone());
            background(async move {
                let mut peer = Peer::visit(addr).await;
                while !stop.load(Ordering::Relaxed) {
                    let n = asked.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = ask(&mut peer, visitor, n).await {
                        let _ = end.send(Err(error)).await;
                        return;
                    }
                }
                let _ = end.send(Ok(())).await;
            });
        }
        Self { stop, asked, visitors, ended }
    }

    /// Requests begun so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits until so many more requests were begun.
    pub(crate) async fn more(&self, requests: usize) {
        let until = self.asked() + requests;
        eventually("visitors go on", async || self.asked() >= until).await;
    }

    /// Lets every visitor finish what it asked.
    pub(crate) async fn stop(mut self) -> Served {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for _ in 0..self.visitors {
            match tokio::time::timeout(LIMIT, self.ended.recv()).await.expect("a visitor waits for ever") {
                Some(Ok(())) => {}
                Some(Err(error)) => failed.push(error),
                // A panic of the parser: the connection was cut in the middle of an answer.
                None => failed.push("a visitor's connection was cut".into()),
            }
        }
        Served { requests: self.asked(), failed }
    }
}

/// A visitor in the middle of a WebSocket message of 1 MiB to a service that echoes.
pub(crate) struct HalfMessage {
    peer: Peer,
    payload: Vec<u8>,
}

impl HalfMessage {
    /// Opens the WebSocket and sends the first half.
    pub(crate) async fn begin(addr: SocketAddr) -> Self {
        let mut peer = Peer::visit(addr).await;
        peer.send(ASK).await;
        assert_eq!(peer.answer_head().await.status, 101);
        let payload = pattern(1 << 20);
        // Masked with zeros, so that what is sent is the payload itself (RFC 6455 §5.3).
        peer.send([&[0x82, 0x80 | 127], &length(&payload)[..], &[0; 4]].concat()).await;
        peer.send(&payload[..payload.len() / 2]).await;
        Self { peer, payload }
    }

    /// Sends the second half, and compares what comes back.
    pub(crate) async fn end(mut self) {
        self.peer.send(&self.payload[self.payload.len() / 2..]).await;
        let head = [&[0x82, 127], &length(&self.payload)[..]].concat();
        assert_eq!(self.peer.exact(head.len()).await, head);
        assert!(self.peer.exact(self.payload.len()).await == self.payload, "another message came back");
    }
}

fn length(payload: &[u8]) -> [u8; 8] {
    (payload.len() as u64).to_be_bytes()
}

async fn ask(peer: &mut Peer, visitor: usize, n: usize) -> Result<(), String> {
    let (method, body) = if n.is_multiple_of(4) { ("POST", "x".repeat(1024)) } else { ("GET", String::new()) };
    let line = format!("{method} /{visitor}/{n} HTTP/1.1");
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    peer.send(format!("{line}\r\nHost: web.test\r\n{length}\r\n{body}")).await;
    let answer = peer.answer().await;
    let wanted = format!("{line} {}", body.len());
    if answer.status == 200 && answer.complete && answer.text() == wanted {
        Ok(())
    } else {
        Err(format!("{line}: {} {:?} {:?}", answer.status, answer.code(), answer.text()))
    }
}
