//! What is sent to a service a second time, and what never is.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, Semaphore};

use crate::harness::{Lab, Over, h2::scripted_h2, over_both, peer::scripted, rule};

fn counter() -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let counter = Arc::new(AtomicUsize::new(0));
    (counter.clone(), counter)
}

fn retries(lab: &Lab, why: &str) -> u64 {
    let line = format!("adit_origin_retries_total{{why=\"{why}\"}} ");
    let text = lab.metrics.expose();
    text.lines().find_map(|l| l.strip_prefix(&line)).expect("no such series").parse().unwrap()
}

async fn closed_while_idle(over: Over) {
    let (seen, counted) = counter();
    let (idle, closed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (is_idle, closes) = (idle.clone(), closed.clone());
    let service = scripted(move |mut peer| {
        let (counted, is_idle, closes) = (counted.clone(), is_idle.clone(), closes.clone());
        async move {
            while let Some((_, body)) = peer.request().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let number = peer.number;
                peer.ok(format!("{number} {}", String::from_utf8_lossy(&body))).await;
                if number == 0 {
                    is_idle.notified().await;
                    drop(peer);
                    closes.notify_one();
                    return;
                }
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    assert_eq!(lab.get("/").await.text(), "0 ");
    // It is in the pool now, and closed there.
    idle.notify_one();
    closed.notified().await;
    assert_eq!(lab.send("POST", "/", "", b"pay").await.text(), "1 pay");
    assert_eq!(seen.load(Ordering::SeqCst), 2, "each request was seen once");
    assert_eq!(retries(&lab, "stale"), 1);
    lab.finish().await;
}

async fn half_a_head(over: Over) {
    let (seen, counted) = counter();
    let service = scripted(move |mut peer| {
        let counted = counted.clone();
        async move {
            while peer.request().await.is_some() {
                if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                    peer.ok("fine").await;
                } else {
                    peer.send("HTTP/1.1 200 OK\r\nX-Half: ").await;
                    return;
                }
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    assert_eq!(lab.get("/").await.text(), "fine");
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (502, Some("origin-protocol")));
    assert_eq!(seen.load(Ordering::SeqCst), 2, "a request whose answer began was sent again");
    lab.finish().await;
}

async fn never_answered(over: Over) {
    let (seen, counted) = counter();
    let service = scripted(move |mut peer| {
        let counted = counted.clone();
        async move {
            if peer.request().await.is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    assert_eq!(lab.get("/").await.status, 502);
    assert_eq!(seen.load(Ordering::SeqCst), 1, "a new connection that dies is no stale one");
    lab.finish().await;
}

/// `answer` serves the second request of the first connection; every other one is answered with its body.
async fn second_request<F>(answer: impl Fn(crate::harness::h2::H2, u32) -> F + Send + Sync + 'static) -> Served
where
    F: Future<Output = ()> + Send + 'static,
{
    let (seen, counted) = counter();
    let answer = Arc::new(answer);
    let (addr, connections) = scripted_h2(100, move |mut h2| {
        let (counted, answer) = (counted.clone(), answer.clone());
        async move {
            while let Some((stream, body)) = h2.request().await {
                counted.fetch_add(1, Ordering::SeqCst);
                if h2.number == 0 && stream > 1 {
                    return answer(h2, stream).await;
                }
                let answer = format!("{} {}", h2.number, String::from_utf8_lossy(&body));
                h2.ok(stream, answer).await;
            }
        }
    })
    .await;
    Served { rule: rule(format!("h2c://{addr}")), seen, connections }
}

struct Served {
    rule: String,
    seen: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Served {
    fn counts(&self) -> (usize, usize) {
        (self.seen.load(Ordering::SeqCst), self.connections.load(Ordering::SeqCst))
    }
}

async fn refused_stream(over: Over) {
    let served = second_request(|mut h2, stream| async move {
        h2.refuse(stream).await;
        h2.ended().await;
    })
    .await;
    let lab = Lab::start(over, &served.rule).await;
    assert_eq!(lab.send("POST", "/", "", b"a").await.text(), "0 a");
    assert_eq!(lab.send("POST", "/", "", b"pay").await.text(), "1 pay");
    assert_eq!(served.counts(), (3, 2));
    assert_eq!(retries(&lab, "refused"), 1);
    lab.finish().await;
}

async fn goaway_below(over: Over) {
    let served = second_request(|mut h2, stream| async move {
        h2.go_away(stream - 2).await;
        h2.ended().await;
    })
    .await;
    let lab = Lab::start(over, &served.rule).await;
    assert_eq!(lab.get("/").await.text(), "0 ");
    assert_eq!(lab.send("POST", "/", "", b"pay").await.text(), "1 pay");
    assert_eq!(served.counts(), (3, 2));
    // The first connection takes nothing more.
    assert_eq!(lab.send("POST", "/", "", b"b").await.text(), "1 b");
    lab.finish().await;
}

async fn goaway_including(over: Over) {
    let served = second_request(|mut h2, stream| async move { h2.go_away(stream).await }).await;
    let lab = Lab::start(over, &served.rule).await;
    assert_eq!(lab.get("/").await.text(), "0 ");
    let answer = lab.send("POST", "/", "", b"pay").await;
    assert_eq!((answer.status, answer.code()), (502, Some("origin-protocol")));
    assert_eq!(served.counts(), (2, 1), "a POST that may have been processed was sent again");
    lab.finish().await;
}

async fn goaway_while_idle(over: Over) {
    let (addr, connections) = scripted_h2(100, |mut h2| async move {
        if let Some((stream, body)) = h2.request().await {
            h2.ok(stream, body).await;
            h2.go_away(stream).await;
            h2.ended().await;
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("h2c://{addr}"))).await;
    for round in ["1", "2", "3", "4"] {
        assert_eq!(lab.send("POST", "/", "", round.as_bytes()).await.text(), round);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 4);
    lab.finish().await;
}

async fn dead_shared(over: Over) {
    let served = second_request(|_, _| async {}).await;
    let lab = Lab::start(over, &served.rule).await;
    assert_eq!(lab.get("/").await.text(), "0 ");
    assert_eq!(lab.get("/").await.text(), "1 ");
    assert_eq!(served.counts(), (3, 2));
    assert_eq!(retries(&lab, "stale"), 1);
    lab.finish().await;
}

async fn always_refused(over: Over) {
    let (seen, counted) = counter();
    let (addr, _) = scripted_h2(100, move |mut h2| {
        let counted = counted.clone();
        async move {
            while let Some((stream, _)) = h2.request().await {
                counted.fetch_add(1, Ordering::SeqCst);
                h2.refuse(stream).await;
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("h2c://{addr}"))).await;
    let answer = lab.send("POST", "/", "", b"x").await;
    assert_eq!((answer.status, answer.code()), (502, Some("origin-protocol")));
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    lab.finish().await;
}

/// A service that takes one stream a connection, and answers when told to.
async fn one_stream_each(over: Over) {
    let (seen, counted) = counter();
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let (addr, connections) = scripted_h2(1, move |mut h2| {
        let (counted, opened) = (counted.clone(), opened.clone());
        async move {
            while let Some((stream, body)) = h2.request().await {
                counted.fetch_add(1, Ordering::SeqCst);
                opened.acquire().await.unwrap().forget();
                h2.ok(stream, body).await;
            }
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("h2c://{addr}"))).await;
    gate.add_permits(1);
    assert_eq!(lab.send("POST", "/", "", b"first").await.text(), "first");
    // Eight connections at most: two of ten requests wait for their turn.
    let lab_ = &lab;
    let asked = futures_util::future::join_all((0..10_u8).map(|n| async move {
        let body = n.to_string();
        assert_eq!(lab_.send("POST", "/", "", body.as_bytes()).await.text(), body);
    }));
    let reached = async {
        crate::harness::eventually("eight requests are with the service", async || seen.load(Ordering::SeqCst) >= 9)
            .await;
        gate.add_permits(10);
    };
    tokio::join!(asked, reached);
    assert_eq!((seen.load(Ordering::SeqCst), connections.load(Ordering::SeqCst)), (11, 8));
    lab.finish().await;
}

over_both! {
    a_post_goes_to_a_new_connection_when_the_kept_one_was_closed => closed_while_idle,
    a_get_whose_answer_began_is_not_sent_again => half_a_head,
    a_get_on_a_new_connection_that_dies_is_not_sent_again => never_answered,
    a_refused_stream_is_sent_again_on_another_connection_with_its_body => refused_stream,
    a_post_above_the_last_stream_of_a_goaway_is_sent_again => goaway_below,
    a_post_that_a_goaway_includes_is_not_sent_again => goaway_including,
    a_connection_that_said_goaway_takes_no_request => goaway_while_idle,
    a_get_on_a_shared_connection_that_died_is_sent_again => dead_shared,
    a_service_that_always_refuses_is_asked_three_times => always_refused,
    a_full_connection_gets_company_up_to_eight => one_stream_each,
}
