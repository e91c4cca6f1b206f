//! Stops under load: not one request fails, although no visitor sends anything twice.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    harness::{
        LIMIT, Lab, Over, eventually, over_both,
        peer::{Peer, pattern, scripted},
        process::Connector,
        rule,
    },
    websocket::ASK,
};

#[allow(clippy::print_stderr, reason = "figures for whoever reads the test's output")]
fn say(line: &str) {
    eprintln!("{line}");
}

/// What visitors met with.
#[derive(Default)]
struct Counts {
    gets: AtomicUsize,
    posts: AtomicUsize,
    failed: AtomicUsize,
    enough: AtomicBool,
}

impl Counts {
    fn all(&self) -> usize {
        self.gets.load(Ordering::Relaxed) + self.posts.load(Ordering::Relaxed)
    }
}

/// Answers with what was sent; every other request takes a while, so that there is always something in flight.
async fn service() -> SocketAddr {
    let asked = Arc::new(AtomicUsize::new(0));
    scripted(move |mut peer| {
        let asked = asked.clone();
        async move {
            while let Some((head, body)) = peer.request().await {
                if asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let body = if head.method() == "POST" { body } else { head.target().into() };
                if !peer.ok(body).await {
                    return;
                }
            }
        }
    })
    .await
}

/// A visitor who asks one thing after the other on kept connections or fresh ones and never tries twice.
async fn visitor(edge: SocketAddr, number: usize, counts: Arc<Counts>) {
    let keeps = number.is_multiple_of(2);
    let body = pattern(20_000 * (number % 4));
    let mut kept = None;
    let mut turn = 0;
    while !counts.enough.load(Ordering::Relaxed) {
        turn += 1;
        let mut peer = match kept.take() {
            Some(peer) => peer,
            None => Peer::visit(edge).await,
        };
        let posts = (turn + number).is_multiple_of(3);
        let path = format!("/{number}/{turn}");
        let connection = if keeps { "keep-alive" } else { "close" };
        let head = format!("{path} HTTP/1.1\r\nHost: web.test\r\nConnection: {connection}\r\n");
        let wanted = if posts {
            counts.posts.fetch_add(1, Ordering::Relaxed);
            let head = format!("POST {head}Content-Length: {}\r\n\r\n", body.len());
            peer.send([head.as_bytes(), &body].concat()).await;
            body.clone()
        } else {
            counts.gets.fetch_add(1, Ordering::Relaxed);
            peer.send(format!("GET {head}\r\n")).await;
            path.into_bytes()
        };
        let answer = peer.answer().await;
        if answer.status != 200 || !answer.complete || answer.body != wanted {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            say(&format!("visitor {number}, request {turn}: {} {:?}", answer.status, answer.code()));
        }
        kept = keeps.then_some(peer);
    }
}

/// Visitors at work for as long as this lives.
struct Load {
    counts: Arc<Counts>,
    visitors: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(lab: &Lab, visitors: usize) -> Self {
        let counts = Arc::new(Counts::default());
        #[allow(clippy::disallowed_methods, reason = "their ends are awaited by hand")]
        let visitors = (0..visitors).map(|n| tokio::spawn(visitor(lab.http, n, counts.clone()))).collect();
        Self { counts, visitors }
    }

    /// Waits until so many more requests were made.
    async fn goes_on(&self, requests: usize) {
        let from = self.counts.all();
        eventually("the load goes on", async || self.counts.all() >= from + requests).await;
    }

    /// Ends it and says what it came to.
    async fn counted(self, what: &str) {
        self.counts.enough.store(true, Ordering::Relaxed);
        for visitor in self.visitors {
            tokio::time::timeout(LIMIT, visitor).await.expect("a visitor hangs").unwrap();
        }
        let Counts { gets, posts, failed, .. } = &*self.counts;
        let (gets, posts, failed) =
            (gets.load(Ordering::Relaxed), posts.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
        say(&format!("{what}: {gets} GET, {posts} POST, {failed} failed"));
        assert!(gets > 0 && posts > 0);
        assert_eq!(failed, 0, "{what}");
    }
}

/// Upgrades, takes one message of 1 MiB, and says what came behind it.
async fn large_message_service(size: usize) -> (SocketAddr, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let (heard, hears) = tokio::sync::mpsc::channel(2);
    let addr = scripted(move |mut peer| {
        let heard = heard.clone();
        async move {
            peer.head().await;
            let accept = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                          Sec-WebSocket-Accept: x\r\n\r\n";
            peer.send(accept).await;
            let _ = heard.send(peer.exact(14 + size / 2).await).await;
            let _ = heard.send(peer.exact(size - size / 2).await).await;
            let _ = heard.send(peer.exact(8).await).await;
            peer.send([0x88, 2, 0x03, 0xe9]).await;
        }
    });
    (addr.await, hears)
}

async fn one_of_two(over: Over) {
    const SIZE: usize = 1 << 20;
    let (large, mut hears) = large_message_service(SIZE).await;
    let rules = format!(
        "ingress:\n  - {{ hostname: ws.web.test, service: \"http://{large}\" }}\n  - service: http://{}\n",
        service().await
    );
    let lab = Lab::edge_only().await;
    let first = Connector::spawn(&lab, over, &rules, |command| command);
    lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.unwrap();
    // A WebSocket through the connector that is to go, in the middle of a message.
    let mut socket = Peer::visit(lab.http).await;
    socket.send(ASK.replace("Host: web.test", "Host: ws.web.test")).await;
    assert_eq!(socket.answer_head().await.status, 101);
    let message = pattern(SIZE);
    let header = [&[0x82, 0xff][..], &(SIZE as u64).to_be_bytes(), &[0; 4]].concat();
    socket.send([&header, &message[..SIZE / 2]].concat()).await;
    assert_eq!(hears.recv().await.unwrap().len(), header.len() + SIZE / 2);

    let second = Connector::spawn(&lab, over, &rules, |command| command);
    lab.edge.registered(lab.token.tunnel, 2, LIMIT).await.unwrap();
    let load = Load::start(&lab, 12);
    load.goes_on(300).await;
    first.signal("TERM").await;
    assert_eq!(socket.exact(4).await, [0x88, 2, 0x03, 0xe9]);
    load.goes_on(300).await;
    socket.send(&message[SIZE / 2..]).await;
    assert!(hears.recv().await.unwrap() == message[SIZE / 2..], "the message did not arrive whole");
    let close = hears.recv().await.unwrap();
    assert_eq!((close[0], close[6] ^ close[2], close[7] ^ close[3]), (0x88, 0x03, 0xe9));
    socket.send([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).await;
    assert_eq!(socket.rest().await, b"");
    let (status, log) = first.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    load.goes_on(100).await;
    load.counted(&format!("SIGTERM under load over {}", over.as_str())).await;
    second.signal("TERM").await;
    assert_eq!(second.ended().await.0.code(), Some(0));
}

async fn rolling_restart(over: Over) {
    let rules = rule(format!("http://{}", service().await));
    let lab = Lab::edge_only().await;
    let start = || Connector::spawn(&lab, over, &rules, |command| command);
    let mut connectors = std::collections::VecDeque::from([start(), start(), start()]);
    lab.edge.registered(lab.token.tunnel, 3, LIMIT).await.unwrap();
    let load = Load::start(&lab, 12);
    load.goes_on(200).await;
    for _ in 0..3 {
        connectors.push_back(start());
        lab.edge.registered(lab.token.tunnel, 4, LIMIT).await.unwrap();
        let old = connectors.pop_front().unwrap();
        old.signal("TERM").await;
        load.goes_on(200).await;
        let (status, log) = old.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
    }
    load.goes_on(200).await;
    load.counted(&format!("a rolling restart of three over {}", over.as_str())).await;
    for connector in connectors {
        connector.signal("TERM").await;
        assert_eq!(connector.ended().await.0.code(), Some(0));
    }
}

over_both! {
    a_connector_that_is_stopped_under_load_fails_no_request => one_of_two,
    a_rolling_restart_of_three_connectors_fails_no_request => rolling_restart,
}
