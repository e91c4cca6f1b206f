//! An edge that is asked to stop: unready, doors still open, doors closed, connectors let go; nothing in flight is cut.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use adit::{
    admin::{self, View},
    config::MetricsAddress,
    edge::EdgeConfig,
    transport::{self, Incoming, http2::Http2Session},
    wire::{QUIC_SERVER_NAME, registration, rpc::RpcThread},
};
use http::Request;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::Command,
    sync::{Notify, mpsc},
};

use crate::{
    harness::{
        LIMIT, Lab, Over, background, eventually, in_time, mirror, over_both,
        peer::{Peer, scripted},
        rule,
        tls::h2_body,
    },
    raw_connector::{claims, dial_as, register_quic, registered, tls},
    raw_edge::soon,
};

/// A service whose answers wait, and what it says when it is asked.
async fn waiting() -> (SocketAddr, mpsc::Receiver<()>, Arc<Notify>) {
    let (arrived, arrival) = mpsc::channel(8);
    let release = Arc::new(Notify::new());
    let released = release.clone();
    let addr = scripted(move |mut peer: Peer| {
        let (arrived, released) = (arrived.clone(), released.clone());
        async move {
            while peer.head().await.is_some() {
                let _ = arrived.send(()).await;
                released.notified().await;
                peer.ok("finished").await;
            }
        }
    })
    .await;
    (addr, arrival, release)
}

/// The edge's own admin address.
async fn admin_of(lab: &Lab) -> SocketAddr {
    let listener = admin::bind(&MetricsAddress::Fixed("127.0.0.1:0".into())).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let view = View::Edge { edge: lab.edge.clone(), started: tokio::time::Instant::now() };
    lab.edge_tasks.attend(admin::serve(listener, view, lab.edge_tasks.clone()));
    addr
}

async fn ask(addr: SocketAddr, path: &str) -> crate::harness::Answer {
    let mut visitor = Peer::visit(addr).await;
    visitor.send(format!("GET {path} HTTP/1.1\r\nHost: web.test\r\n\r\n")).await;
    visitor.answer().await
}

async fn refuses(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).await.is_err()
}

async fn drained(over: Over) {
    let (service, mut arrival, release) = waiting().await;
    let yaml = format!(
        "ingress:\n  - path: ^/slow\n    hostname: web.test\n    service: http://{service}\n  - service: http://{}\n",
        mirror().await
    );
    // Long enough for all that is asked meanwhile on a busy machine; the doors are seen to close, not timed.
    let unready = Duration::from_secs(2);
    let mut lab = Lab::edge_with(|config| EdgeConfig { unready, ..config }).await;
    lab.connect(over, &yaml, |flags| flags).await;
    registered(&lab, 1).await;
    let admin = admin_of(&lab).await;
    for (path, status) in [("/livez", 200), ("/startupz", 200), ("/readyz", 200)] {
        assert_eq!(ask(admin, path).await.status, status, "{path}");
    }
    let (mut slow, mut kept, mut idle) =
        (Peer::visit(lab.http).await, Peer::visit(lab.http).await, Peer::visit(lab.http).await);
    slow.send("GET /slow HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    arrival.recv().await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n";
    for visitor in [&mut kept, &mut idle] {
        visitor.send(request).await;
        assert_eq!(visitor.answer().await.header("connection"), None);
    }
    let mut h2 = lab.h2().await;
    let slow_h2 = Request::get("https://web.test/slow").body(()).unwrap();
    let (slow_h2, _) = h2.send_request(slow_h2, true).unwrap();
    arrival.recv().await.unwrap();

    lab.edge_tasks.drain();
    // At once unready, and alive.
    for (path, status) in [("/readyz", 503), ("/livez", 200)] {
        assert_eq!(ask(admin, path).await.status, status, "{path}");
    }
    assert!(ask(admin, "/metrics").await.text().contains("adit_edge_draining 1"));
    // Who comes still is served, and told to come elsewhere next time.
    kept.send(request).await;
    for answer in [kept.answer().await, ask(lab.http, "/").await] {
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    }
    let late = Request::get("https://web.test/").body(()).unwrap();
    assert_eq!(soon("a late request", h2.send_request(late, true).unwrap().0).await.unwrap().status(), 200);
    // Connectors are not.
    eventually("no connector gets in", async || refuses(lab.connectors).await).await;

    eventually("the doors close", async || refuses(lab.http).await && refuses(lab.https).await).await;
    assert!(soon("an idle visitor is closed", idle.rest()).await.is_empty());
    // Those in flight are not cut, whatever they came over, and their connector is not sent away.
    assert_eq!(lab.edge.registry().all().len(), 1);
    release.notify_waiters();
    assert_eq!(slow.answer().await.text(), "finished");
    assert!(soon("its connection ends", slow.rest()).await.is_empty());
    let (text, _) = h2_body(soon("the answer", slow_h2).await.unwrap().into_body()).await;
    assert_eq!(text, "finished");
    eventually(
        "its connection ends in good order",
        async || matches!(h2.clone().ready().await, Err(error) if !error.is_io()),
    )
    .await;
    eventually("the connector is let go", async || lab.edge.registry().all().is_empty()).await;
    assert!(lab.edge_tasks.finish(LIMIT).await, "something was cut");
    lab.finish().await;
}

async fn doors_open(over: Over) {
    let mut lab = Lab::edge_with(|config| EdgeConfig { unready: LIMIT * 3, ..config }).await;
    lab.connect(over, &rule(format!("http://{}", mirror().await)), |flags| flags).await;
    registered(&lab, 1).await;
    lab.edge_tasks.drain();
    // Between these the connector is idle, and still it is needed.
    for n in 0..20 {
        assert_eq!(lab.get("/").await.status, 200, "visitor {n} of an edge that is unready");
    }
    lab.edge_tasks.kill();
    lab.finish().await;
}

/// Visitors who use a door while it is ready, and edges that are stopped in turn under load.
#[allow(clippy::print_stdout, reason = "the figures are the proof")]
async fn rolling(over: Over) {
    let yaml = rule(format!("http://{}", mirror().await));
    let settings = |config| EdgeConfig { unready: Duration::from_millis(500), retry: false, ..config };
    let mut edges = vec![Lab::edge_with(settings).await];
    edges.push(Lab::replica(&edges[0], settings).await);
    for edge in &mut edges {
        edge.connect(over, &yaml, |flags| flags).await;
        registered(edge, 1).await;
    }
    let doors: Arc<Vec<_>> = Arc::new(edges.iter().map(|edge| (edge.http, edge.edge.clone())).collect());
    let (done, asked, failed) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
    let mut visitors = Vec::new();
    for n in 0..8 {
        let (doors, done) = (doors.clone(), done.clone());
        let (asked, failed): (Arc<AtomicUsize>, Arc<AtomicUsize>) = (Arc::clone(&asked), Arc::clone(&failed));
        let (ended, end) = tokio::sync::oneshot::channel();
        background(async move {
            let (post, mut kept) = (n % 2 == 0, None);
            while !done.load(Ordering::SeqCst) {
                let Some((door, _)) = doors.iter().find(|(_, edge)| !edge.is_draining()) else { break };
                let mut visitor = match kept.take() {
                    Some((at, visitor)) if at == *door => visitor,
                    _ => Peer::visit(*door).await,
                };
                asked.fetch_add(1, Ordering::SeqCst);
                let request = if post {
                    "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 0\r\n\r\n"
                } else {
                    "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"
                };
                visitor.send(request).await;
                let answer = visitor.answer().await;
                if answer.status != 200 || !answer.complete {
                    failed.fetch_add(1, Ordering::SeqCst);
                }
                if answer.header("connection").is_none() {
                    kept = Some((*door, visitor));
                }
            }
            let _ = ended.send(());
        });
        visitors.push(end);
    }
    eventually("there is load", async || asked.load(Ordering::SeqCst) > 100).await;
    let first = edges.remove(0);
    assert!(first.edge_tasks.finish(LIMIT).await, "something was cut");
    let then = asked.load(Ordering::SeqCst);
    eventually("the load goes on", async || asked.load(Ordering::SeqCst) > then + 100).await;
    done.store(true, Ordering::SeqCst);
    for visitor in visitors {
        soon("a visitor's end", visitor).await.unwrap();
    }
    let (asked, failed) = (asked.load(Ordering::SeqCst), failed.load(Ordering::SeqCst));
    println!("an edge drained over {}: {asked} requests, half of them POST, no retry: {failed} failed", over.as_str());
    assert_eq!(failed, 0, "of {asked}");
    first.finish().await;
    for edge in edges {
        edge.finish().await;
    }
}

over_both! {
    a_draining_edge_is_unready_and_serves_on_then_closes_its_doors_and_finishes_what_it_has => drained,
    no_request_fails_when_an_edge_is_drained_under_load => rolling,
    as_long_as_the_doors_are_open_an_idle_connector_stays => doors_open,
}

#[tokio::test]
async fn connectors_are_let_go_in_good_order_and_newcomers_refused() {
    in_time(async {
        let lab = Lab::edge_with(|config| EdgeConfig { unready: Duration::from_millis(300), ..config }).await;
        let quic = register_quic(&lab, claims(&lab, 0)).await;
        let (_, _control) = quic.outcome.unwrap();
        let dial = Http2Session::dial(lab.connectors, None, tls(&lab).http2, LIMIT);
        let mut session = transport::Session::Http2(Box::new(dial.await.unwrap()));
        let control = soon("the control stream", session.accept()).await.unwrap().read().await.unwrap();
        let Incoming::Control { recv, send } = control else { panic!("{control:?}") };
        let rpc = RpcThread::new();
        let register = registration::register(&rpc, recv, send, claims(&lab, 1), LIMIT);
        let mut register = std::pin::pin!(register);
        let (_, http2_control) = tokio::select! {
            outcome = &mut register => outcome.unwrap(),
            next = session.accept() => panic!("{next:?} before the answer"),
        };
        registered(&lab, 2).await;
        lab.edge_tasks.drain();
        // While visitors still come, connections stay and no new one gets in.
        let (endpoint, config) = (quic_endpoint(), quinn::ClientConfig::new(tls(&lab).quic));
        let newcomer =
            soon("an answer", endpoint.connect_with(config, lab.connectors, QUIC_SERVER_NAME).unwrap()).await;
        assert!(matches!(newcomer, Err(quinn::ConnectionError::ConnectionClosed(_))), "{newcomer:?}");
        let end = soon("QUIC closes", quic.connection.closed()).await;
        assert!(
            matches!(&end, quinn::ConnectionError::ApplicationClosed(close) if close.error_code == 0u32.into()),
            "{end:?}"
        );
        let end = soon("HTTP/2 ends", session.accept()).await;
        // GOAWAY and the end, not a socket that broke.
        assert!(matches!(end, Err(transport::Error::Closed)), "{end:?}");
        soon("its control stream ended", http2_control.closed()).await;
        assert!(lab.edge_tasks.finish(LIMIT).await);
        lab.finish().await;
    })
    .await;
}

fn quic_endpoint() -> quinn::Endpoint {
    transport::quic::bind("127.0.0.1:0".parse().unwrap(), None).unwrap()
}

#[tokio::test]
async fn a_connector_in_the_middle_of_its_arrival_is_told_that_the_edge_stops() {
    in_time(async {
        let lab = Lab::edge_with(|config| EdgeConfig { unready: LIMIT, ..config }).await;
        let (_endpoint, connection) = dial_as(&lab, QUIC_SERVER_NAME).await;
        // The handshake is over on both sides when a stream was answered, so that the drain comes after it.
        let (send, recv) = connection.open_bi().await.unwrap();
        eventually("it arrived", async || lab.edge_metric("adit_edge_arrivals") == 1).await;
        lab.edge_tasks.drain();
        let outcome = registration::register(&RpcThread::new(), recv, send, claims(&lab, 0), LIMIT).await;
        assert!(
            matches!(
                &outcome,
                Err(registration::RegistrationError::Refused { should_retry: true, retry_after: Some(_), .. })
            ),
            "{outcome:?}"
        );
        assert_eq!(lab.edge_metric("adit_edge_registrations_total{outcome=\"draining\"}"), 1);
        lab.edge_tasks.kill();
    })
    .await;
}

/// The program: SIGTERM, a request in flight, status 0; and a second signal.
#[tokio::test]
async fn the_program_ends_with_zero_after_its_requests_and_at_once_on_a_second_signal() {
    in_time(async {
        let dir = tempfile::tempdir().unwrap();
        let state = adit::edge::state::StateDir::new(dir.path());
        let token = state.new_token(&["web.test".to_owned()], None).unwrap();
        for second in [false, true] {
            let mut child = Command::new(env!("CARGO_BIN_EXE_adit"))
                .args([
                    "edge",
                    "--listen",
                    "127.0.0.1:0",
                    "--http",
                    "127.0.0.1:0",
                    "--metrics",
                    "127.0.0.1:0",
                    "--state",
                ])
                .arg(dir.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let line = soon("its addresses", lines.next_line()).await.unwrap().unwrap();
            let words: Vec<_> = line.split_whitespace().collect();
            let at = |name: &str| -> SocketAddr {
                let place = words.iter().position(|word| *word == name).unwrap();
                words[place + 1].parse().unwrap()
            };
            let (service, mut arrival, release) = waiting().await;
            let mut lab = Lab::edge_only().await;
            (lab.connectors, lab.state, lab.token) = (at("connectors"), state.clone(), token.clone());
            lab.connect(Over::Quic, &rule(format!("http://{service}")), |flags| flags).await;
            eventually("it is ready", async || ask(at("admin"), "/readyz").await.status == 200).await;
            let mut visitor = Peer::visit(at("http")).await;
            visitor.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
            arrival.recv().await.unwrap();
            let pid = child.id().unwrap().to_string();
            let terminate = async || Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
            terminate().await;
            eventually("it is unready", async || ask(at("admin"), "/readyz").await.status == 503).await;
            if second {
                terminate().await;
                let status = soon("the end", child.wait()).await.unwrap();
                assert_ne!(status.code(), Some(0));
            } else {
                eventually("the door closes", async || refuses(at("http")).await).await;
                release.notify_waiters();
                assert_eq!(visitor.answer().await.text(), "finished");
                let status = soon("the end", child.wait()).await.unwrap();
                assert_eq!(status.code(), Some(0));
            }
            lab.tasks.drain();
            lab.connector_ended().await;
            lab.edge_tasks.finish(Duration::ZERO).await;
        }
    })
    .await;
}
