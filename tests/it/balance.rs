//! Several services for one rule: who gets a request, who gets none for a while, who gets them again.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use adit::{
    config::{Flags, parse_file},
    metrics::Metrics,
    proxy::{Ground, Routes, upkeep},
    shutdown::Tasks,
};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    harness::{
        Lab, Over, background, eventually, in_time, over_both,
        peer::{Peer, Seen, ok, replying, scripted},
    },
    raw_service::echo,
    websocket,
};

fn list(services: &[String], more: &str) -> String {
    format!("ingress:\n  - service: [{}]\n{more}", services.join(", "))
}

fn url(addr: SocketAddr) -> String {
    format!("http://{addr}")
}

/// An address where nobody listens, kept from others by a socket that is bound and does not listen.
struct Closed(#[expect(dead_code, reason = "holds the port")] tokio::net::TcpSocket, SocketAddr);

fn closed() -> Closed {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    Closed(socket, addr)
}

/// A service that says its name, and how often it was asked.
async fn named(name: &'static str) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let (addr, _) = replying(move |_, body| {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut answer = name.as_bytes().to_vec();
        answer.extend_from_slice(&body);
        ok(answer)
    })
    .await;
    (url(addr), asked)
}

fn says(metrics: &Metrics, line: &str) -> bool {
    metrics.expose().lines().any(|l| l == line)
}

fn value(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.expose();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

async fn failover(over: Over) {
    let dead = closed();
    let (live, asked) = named("live ").await;
    let lab = Lab::start(over, &list(&[url(dead.1), live], "")).await;
    for n in 0..60 {
        let body = format!("{n}");
        let answer = lab.send("POST", "/", "", body.as_bytes()).await;
        assert_eq!((answer.status, answer.text()), (200, format!("live {n}")));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 60, "each request was seen once");
    // Five failures, of which the first 60 draws hold at least so many but once in a million million runs.
    assert!(value(&lab.metrics, "adit_origin_ejections_total{rule=\"0\"}") >= 1);
    assert!(value(&lab.metrics, "adit_origin_retries_total{why=\"other-service\"}") >= 5);
    lab.finish().await;
}

async fn ejected(over: Over) {
    let dead = closed();
    let (live, _) = named("live").await;
    let health = "    health: { ejectAfter: 1 }\n";
    let lab = Lab::start(over, &list(&[url(dead.1), live], health)).await;
    let out = "adit_origin_healthy{rule=\"0\",service=\"0\"} 0";
    eventually("the dead one is out", async || {
        assert_eq!(lab.get("/").await.status, 200);
        says(&lab.metrics, out)
    })
    .await;
    assert!(says(&lab.metrics, "adit_origin_healthy{rule=\"0\",service=\"1\"} 1"));
    lab.finish().await;
}

/// A service that hangs is as good as dead, if the rule says for how long one may be silent.
async fn hanging(over: Over) {
    let addr = scripted(|mut peer| async move {
        peer.request().await;
        peer.ended().await;
    })
    .await;
    let (live, _) = named("live").await;
    let more = "    health: { ejectAfter: 1 }\n    limits: { headerTimeout: 300ms }\n";
    let lab = Lab::start(over, &list(&[url(addr), live], more)).await;
    eventually("the hanging one is out", async || {
        let answer = lab.get("/").await;
        assert!(answer.status == 200 || answer.code() == Some("origin-timeout"), "{answer:?}");
        says(&lab.metrics, "adit_origin_healthy{rule=\"0\",service=\"0\"} 0")
    })
    .await;
    lab.finish().await;
}

async fn all_out(over: Over) {
    let (first, second) = (closed(), closed());
    let health = "    health: { ejectAfter: 1 }\n";
    let lab = Lab::start(over, &list(&[url(first.1), url(second.1)], health)).await;
    for _ in 0..3 {
        let answer = lab.get("/").await;
        assert_eq!((answer.status, answer.code()), (502, Some("origin-unreachable")));
    }
    for service in 0..2 {
        assert!(says(&lab.metrics, &format!("adit_origin_healthy{{rule=\"0\",service=\"{service}\"}} 0")));
    }
    let addr = second.1;
    drop(second);
    let listener = TcpListener::bind(addr).await.unwrap();
    background(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut peer = Peer::new(stream, 0);
            while peer.request().await.is_some() {
                peer.ok("back").await;
            }
        }
    });
    assert_eq!(lab.get("/").await.text(), "back", "a request failed without a try");
    assert!(says(&lab.metrics, "adit_origin_healthy{rule=\"0\",service=\"1\"} 1"), "an answer ends a time out");
    lab.finish().await;
}

async fn single(over: Over) {
    let service = closed();
    let health = "{ path: /, interval: 100ms, unhealthyAfter: 1 }";
    let yaml = format!("ingress:\n  - service: {}\n    health: {health}\n", url(service.1));
    let lab = Lab::start(over, &yaml).await;
    let out = "adit_origin_healthy{rule=\"0\",service=\"0\"} 0";
    eventually("its checks fail", async || says(&lab.metrics, out)).await;
    // More failures than take one of a list out.
    for _ in 0..6 {
        assert_eq!(lab.get("/").await.status, 502);
    }
    assert!(!says(&lab.metrics, "adit_origin_ejections_total{rule=\"0\"} 1"), "nothing takes its place");
    assert_eq!(lab.get("/").await.code(), Some("origin-unreachable"), "the only service is tried whatever it is");
    lab.finish().await;
}

/// Holds one answer back until told.
async fn slow(name: &'static str, gate: Arc<Notify>) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let addr = scripted(move |mut peer| {
        let (counted, gate) = (counted.clone(), gate.clone());
        async move {
            while let Some((head, _)) = peer.request().await {
                counted.fetch_add(1, Ordering::SeqCst);
                if head.target() == "/slow" {
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await;
                    gate.notified().await;
                    peer.send("slow").await;
                } else {
                    peer.ok(name).await;
                }
            }
        }
    })
    .await;
    (url(addr), asked)
}

async fn least_in_flight(over: Over) {
    let gate = Arc::new(Notify::new());
    let (first, asked_first) = slow("first", gate.clone()).await;
    let (second, asked_second) = slow("second", gate.clone()).await;
    let lab = Lab::start(over, &list(&[first, second], "")).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send("GET /slow HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    // The head is there, the body is not: still in flight.
    visitor.answer_head().await;
    let busy = if asked_first.load(Ordering::SeqCst) == 1 { "first" } else { "second" };
    for _ in 0..20 {
        assert_ne!(lab.get("/").await.text(), busy);
    }
    gate.notify_one();
    assert_eq!(visitor.exact(4).await, b"slow");
    eventually("the other one is asked again", async || lab.get("/").await.text() == busy).await;
    assert!(asked_first.load(Ordering::SeqCst) + asked_second.load(Ordering::SeqCst) >= 22);
    lab.finish().await;
}

/// A WebSocket service that says its name and listens until the visitor closes.
async fn greeting(name: &'static str) -> String {
    let addr = scripted(move |peer| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(peer.io).await else { return };
        let _ = socket.send(Message::text(name)).await;
        while let Some(Ok(_)) = socket.next().await {}
    });
    url(addr.await)
}

async fn websockets_count(over: Over) {
    let lab = Lab::start(over, &list(&[greeting("first").await, greeting("second").await], "")).await;
    let open = async || {
        let mut socket = websocket::open(&lab).await.unwrap().0;
        let name = websocket::next(&mut socket).await.unwrap().into_text().unwrap();
        (name.to_string(), socket)
    };
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(open().await);
    }
    let firsts = |held: &[(String, _)]| held.iter().filter(|(name, _)| name == "first").count();
    assert_eq!(firsts(&held), 2, "whoever had fewer got the next one");
    held.retain(|(name, _)| name == "second");
    eventually("two are closed", async || lab.metrics.in_flight() == 2).await;
    for _ in 0..2 {
        held.push(open().await);
    }
    assert_eq!(firsts(&held), 2, "closed ones still count");
    drop(held);
    lab.finish().await;
}

async fn byte_streams(over: Over) {
    let dead = closed();
    let services = [format!("tcp://{}", dead.1), format!("tcp://{}", echo().await)];
    let lab = Lab::start(over, &list(&services, "")).await;
    for _ in 0..10 {
        let (mut socket, _) = websocket::open(&lab).await.unwrap();
        socket.send(Message::binary(&b"bytes"[..])).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_data(), &b"bytes"[..]);
    }
    lab.finish().await;
}

/// A service whose checks pass while `well` is set.
async fn checked(name: &'static str) -> (String, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let well = Arc::new(AtomicBool::new(true));
    let checks = Arc::new(AtomicUsize::new(0));
    let (is_well, counted) = (well.clone(), checks.clone());
    let (addr, _) = replying(move |head: &Seen, _| {
        if head.target() != "/healthz?deep=1" {
            return ok(name);
        }
        counted.fetch_add(1, Ordering::SeqCst);
        assert_eq!((head.method(), head.header("host")), ("GET", Some("inner")));
        if is_well.load(Ordering::SeqCst) {
            return b"HTTP/1.1 204 No Content\r\n\r\n".to_vec();
        }
        b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno".to_vec()
    })
    .await;
    (url(addr), well, checks)
}

const CHECKS: &str =
    "    health: { path: \"/healthz?deep=1\", interval: 100ms, timeout: 10s, unhealthyAfter: 2, healthyAfter: 1 }
    originRequest: { httpHostHeader: inner }
";

async fn active_checks(over: Over) {
    let (first, well, _) = checked("first").await;
    let (second, _, _) = checked("second").await;
    let lab = Lab::start(over, &list(&[first, second], CHECKS)).await;
    let gauge = "adit_origin_healthy{rule=\"0\",service=\"0\"} ";
    well.store(false, Ordering::SeqCst);
    eventually("the first is unhealthy", async || says(&lab.metrics, &format!("{gauge}0"))).await;
    for _ in 0..20 {
        assert_eq!(lab.get("/").await.text(), "second");
    }
    well.store(true, Ordering::SeqCst);
    eventually("the first is healthy again", async || says(&lab.metrics, &format!("{gauge}1"))).await;
    eventually("the first is asked again", async || lab.get("/").await.text() == "first").await;
    lab.finish().await;
}

fn routes(yaml: &str, metrics: &Arc<Metrics>) -> Arc<Routes> {
    let config = parse_file("t.yml", yaml, &Flags::default(), |_| None).unwrap().config;
    Arc::new(Routes::new((&config).into(), &Ground::bare(metrics.clone())).unwrap())
}

#[tokio::test]
async fn checks_end_with_their_generation_of_rules_and_what_they_found_lives_on() {
    in_time(async {
        let metrics = Arc::new(Metrics::new());
        let (leaves, _, checks_of_leaving) = checked("leaves").await;
        let (stays, well, checks_of_staying) = checked("stays").await;
        well.store(false, Ordering::SeqCst);
        let (publish, published) = watch::channel(routes(&list(&[leaves, stays.clone()], CHECKS), &metrics));
        let tasks = Tasks::new();
        tasks.attend(upkeep(published, metrics.clone()));
        eventually("both are checked, one is unhealthy", async || {
            checks_of_leaving.load(Ordering::SeqCst) > 0
                && says(&metrics, "adit_origin_healthy{rule=\"0\",service=\"1\"} 0")
        })
        .await;
        // The one that stays never passes a check from here on: healthy it would be only if it had been forgotten.
        publish.send_replace(routes(&list(std::slice::from_ref(&stays), CHECKS), &metrics));
        eventually("the new rules are attended to", async || {
            !metrics.expose().contains("adit_origin_healthy{rule=\"0\",service=\"1\"}")
                && metrics.expose().contains("adit_origin_healthy{rule=\"0\",service=\"0\"}")
        })
        .await;
        assert!(says(&metrics, "adit_origin_healthy{rule=\"0\",service=\"0\"} 0"));
        let (left, stayed) = (checks_of_leaving.load(Ordering::SeqCst), checks_of_staying.load(Ordering::SeqCst));
        eventually("ten more checks", async || checks_of_staying.load(Ordering::SeqCst) >= stayed + 10).await;
        // One may have been on its way.
        assert!(checks_of_leaving.load(Ordering::SeqCst) <= left + 1);
        drop(publish);
        tasks.kill();
    })
    .await;
}

over_both! {
    a_service_that_does_not_answer_in_time_is_taken_out => hanging,
    a_request_goes_to_another_service_when_one_cannot_be_reached => failover,
    a_service_that_fails_is_taken_out_and_shown => ejected,
    when_all_services_are_out_they_are_tried => all_out,
    a_single_service_is_watched_and_still_asked => single,
    of_two_services_the_one_with_less_in_flight_is_asked => least_in_flight,
    an_open_websocket_counts_as_in_flight => websockets_count,
    a_byte_stream_goes_to_another_service_when_one_cannot_be_reached => byte_streams,
    a_service_that_fails_its_checks_gets_no_request_until_it_passes_them => active_checks,
}
