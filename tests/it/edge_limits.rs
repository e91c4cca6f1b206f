//! What a stranger can grow at the edge is bounded: the one too many costs little, is told where that is possible, and
//! is counted; the others are served on.

use std::{net::SocketAddr, time::Duration};

use adit::{
    edge::{EdgeConfig, limits::Limits},
    wire::{QUIC_SERVER_NAME, registration, rpc::RpcThread},
};
use futures_util::SinkExt;
use http::Request;
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    edge_strict::{h2_headers, h2_preface},
    harness::{
        LIMIT, Lab, Over, eventually, in_time, mirror,
        peer::{Peer, scripted},
        rule,
    },
    raw_connector::{claims, dial_as, register_quic, registered},
    raw_edge::soon,
    websocket,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n";

/// An edge with these limits, and a connector whose service says what it was sent.
async fn limited(limits: Limits) -> Lab {
    let mut lab = Lab::edge_with(|config| EdgeConfig { limits, ..config }).await;
    lab.connect(Over::Quic, &rule(format!("http://{}", mirror().await)), |flags| flags).await;
    registered(&lab, 1).await;
    lab
}

/// A visitor with this address of loopback.
async fn visit_from(address: &str, to: SocketAddr) -> Peer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
    Peer::new(socket.connect(to).await.unwrap(), 0)
}

#[tokio::test]
async fn a_websocket_keeps_its_place_among_the_connections() {
    in_time(async {
        let limits = Limits { connections: 1, ..Limits::default() };
        let mut lab = Lab::edge_with(|config| EdgeConfig { limits, ..config }).await;
        lab.connect(Over::Quic, &rule(format!("http://{}", websocket::echo().await)), |flags| flags).await;
        registered(&lab, 1).await;
        let (mut socket, _) = websocket::open(&lab).await.unwrap();
        socket.send(Message::text("there")).await.unwrap();
        assert_eq!(websocket::next(&mut socket).await, Some(Message::text("there")));
        assert_eq!(lab.edge_metric("adit_edge_visitors"), 1);
        assert_eq!(lab.get("/").await.code(), Some("overloaded"));
        drop(socket);
        eventually("there is a place again", async || lab.edge_metric("adit_edge_visitors") == 0).await;
        lab.finish().await;
    })
    .await;
}

/// Completes when the edge hangs up, whatever it said before.
async fn hangs_up(what: &str, visitor: &mut Peer) -> Vec<u8> {
    soon(what, visitor.rest()).await
}

#[tokio::test]
async fn one_visitor_too_many_is_told_and_his_place_comes_back() {
    in_time(async {
        let everywhere = Limits { connections: 2, ..Limits::default() };
        let one_address = Limits { connections_per_address: 2, ..Limits::default() };
        for (limits, name) in [(everywhere, "connections"), (one_address, "connectionsPerAddress")] {
            let lab = limited(limits).await;
            let (mut first, mut second) = (Peer::visit(lab.http).await, Peer::visit(lab.http).await);
            for visitor in [&mut first, &mut second] {
                visitor.send(GET).await;
                assert_eq!(visitor.answer().await.status, 200);
            }
            let refused = lab.get("/").await;
            assert_eq!((refused.status, refused.code()), (503, Some("overloaded")), "{name}");
            assert_eq!(refused.header("retry-after"), Some("1"));
            // In TLS there is no way to say it.
            let mut tls = TcpStream::connect(lab.https).await.unwrap();
            let _ = soon("the end", tls.read_to_end(&mut Vec::new())).await;
            assert_eq!(lab.edge_metric(&format!("adit_edge_overloads_total{{limit=\"{name}\"}}")), 2);
            drop(second);
            eventually("there is a place again", async || lab.get("/").await.status == 200).await;
            first.send(GET).await;
            assert_eq!(first.answer().await.status, 200, "who had a place keeps it");
            lab.finish().await;
        }
    })
    .await;
}

#[tokio::test]
async fn one_address_has_half_of_the_requests_and_is_told_when_they_are_taken() {
    in_time(async {
        let held = scripted(|mut peer: Peer| async move {
            let _ = peer.head().await;
            peer.ended().await;
        });
        let mut lab =
            Lab::edge_with(|config| EdgeConfig { limits: Limits { requests: 4, ..<_>::default() }, ..config }).await;
        lab.connect(Over::Http2, &rule(format!("http://{}", held.await)), |flags| flags).await;
        registered(&lab, 1).await;
        let mut held = Vec::new();
        for n in 1..=2 {
            let mut visitor = Peer::visit(lab.http).await;
            visitor.send(GET).await;
            eventually("it is in flight", async || lab.edge_metric("adit_edge_requests_in_flight") == n).await;
            held.push(visitor);
        }
        let refused = lab.get("/").await;
        assert_eq!((refused.status, refused.code()), (503, Some("overloaded")));
        assert_eq!(lab.edge_metric("adit_edge_overloads_total{limit=\"requests\"}"), 1);
        // Another address still has its half: one alone must not shut out everybody.
        let mut others = Vec::new();
        for n in 3..=4 {
            let mut visitor = visit_from("127.0.0.2", lab.http).await;
            visitor.send(GET).await;
            eventually("it is in flight", async || lab.edge_metric("adit_edge_requests_in_flight") == n).await;
            others.push(visitor);
        }
        let mut late = visit_from("127.0.0.3", lab.http).await;
        late.send(GET).await;
        assert_eq!(late.answer().await.code(), Some("overloaded"), "all are taken");
        drop((held, others));
        eventually("they left", async || lab.edge_metric("adit_edge_requests_in_flight") == 0).await;
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn slow_and_silent_visitors_are_let_go() {
    in_time(async {
        let short = Duration::from_millis(300);
        let lab = limited(Limits { header_time: short, tls_time: short, idle_time: short, ..<_>::default() }).await;
        // A head that never ends, byte by byte.
        let mut slow = Peer::visit(lab.http).await;
        slow.send("GET / HTTP/1.1\r\nHost: web.test\r\n").await;
        let dripping = async {
            while slow.send("X: y\r\n").await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        soon("a slow head is cut", dripping).await;
        let mut silent = Peer::visit(lab.http).await;
        assert!(hangs_up("a visitor who says nothing", &mut silent).await.is_empty());
        let mut half = Peer::visit(lab.http).await;
        half.send("PRI").await;
        hangs_up("half a preface", &mut half).await;
        let mut no_tls = Peer::visit(lab.https).await;
        hangs_up("a visitor without TLS", &mut no_tls).await;
        let mut kept = Peer::visit(lab.http).await;
        kept.send(GET).await;
        assert_eq!(kept.answer().await.status, 200);
        assert!(hangs_up("an idle visitor", &mut kept).await.is_empty());
        let mut h2 = lab.h2().await;
        let request = Request::get("https://web.test/").body(()).unwrap();
        assert_eq!(h2.send_request(request, true).unwrap().0.await.unwrap().status(), 200);
        eventually(
            "an idle visitor over HTTP/2 is let go in good order",
            async || matches!(h2.clone().ready().await, Err(error) if !error.is_io()),
        )
        .await;
        eventually("their places come back", async || lab.edge_metric("adit_edge_visitors") == 0).await;
        lab.finish().await;
    })
    .await;
}

/// A request in flight is not idle, however long it takes.
#[tokio::test]
async fn who_waits_for_an_answer_is_not_idle() {
    in_time(async {
        let (arrived, mut arrival) = tokio::sync::mpsc::channel(1);
        let release = std::sync::Arc::new(tokio::sync::Notify::new());
        let released = release.clone();
        let service = scripted(move |mut peer: Peer| {
            let (arrived, released) = (arrived.clone(), released.clone());
            async move {
                while peer.head().await.is_some() {
                    let _ = arrived.send(()).await;
                    released.notified().await;
                    peer.ok("late").await;
                }
            }
        });
        let short = Duration::from_millis(50);
        let limits = Limits { header_time: short * 10, idle_time: short, ..<_>::default() };
        let mut lab = Lab::edge_with(|config| EdgeConfig { limits, ..config }).await;
        lab.connect(Over::Quic, &rule(format!("http://{}", service.await)), |flags| flags).await;
        registered(&lab, 1).await;
        let (mut waiting, mut idle) = (Peer::visit(lab.http).await, Peer::visit(lab.http).await);
        waiting.send(GET).await;
        arrival.recv().await.unwrap();
        // Others come, are silent and go meanwhile, one after the other.
        for _ in 0..3 {
            hangs_up("who says nothing", &mut idle).await;
            idle = Peer::visit(lab.http).await;
        }
        release.notify_one();
        assert_eq!(waiting.answer().await.text(), "late");
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn heads_are_bounded_in_bytes_and_lines() {
    in_time(async {
        let lab = limited(Limits { header_bytes: 16 << 10, header_lines: 20, ..<_>::default() }).await;
        let big = format!("X: {}\r\n", "x".repeat(20 << 10));
        for (what, headers) in [("one that is long", big), ("many", "X: y\r\n".repeat(30))] {
            assert_eq!(lab.send("GET", "/", &headers, b"").await.status, 431, "{what}");
        }
        // Without an end: not read for ever.
        let mut endless = Peer::visit(lab.http).await;
        endless.send("GET / HTTP/1.1\r\nX: ").await;
        let some = vec![b'x'; 4096];
        let flood = async { while endless.send(&some).await {} };
        soon("an endless head is refused", flood).await;
        let mut h2 = lab.h2().await;
        let request = Request::get("https://web.test/").header("x", "x".repeat(20 << 10)).body(()).unwrap();
        let outcome = h2.send_request(request, true).unwrap().0.await;
        assert!(outcome.as_ref().map_or(true, |answer| answer.status() == 431), "{outcome:?}");
        assert_eq!(lab.get("/").await.status, 200);
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn streams_of_one_visitor_are_bounded_and_a_rapid_reset_ends_his_connection_alone() {
    in_time(async {
        let lab = limited(Limits { streams_per_connection: 100, ..<_>::default() }).await;
        let mut h2 = lab.h2().await;
        let get = || Request::get("https://web.test/").body(()).unwrap();
        assert_eq!(h2.send_request(get(), true).unwrap().0.await.unwrap().status(), 200);
        assert_eq!(h2.current_max_send_streams(), 100);
        // Opened and reset in one breath, more than any visitor does by leaving pages.
        let mut flood = h2_preface();
        for stream in (1..=20_000u32).step_by(2) {
            flood.extend(h2_headers(stream, b"/", b"x"));
            flood.extend([0, 0, 4, 3, 0]);
            flood.extend(stream.to_be_bytes());
            flood.extend(8u32.to_be_bytes());
        }
        let mut flooder = Peer::new(lab.tls(&["h2"]).await, 0);
        flooder.send(flood).await;
        soon("the end of the flooder", flooder.ended()).await;
        assert_eq!(lab.get("/").await.status, 200);
        eventually("nothing of it stays", async || lab.edge_metric("adit_edge_requests_in_flight") == 0).await;
        assert_eq!(lab.edge_tasks.panics(), 0);
        lab.finish().await;
    })
    .await;
}

async fn silent(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.unwrap()
}

#[tokio::test]
async fn connectors_that_never_register_take_no_place_for_long() {
    in_time(async {
        let limits =
            Limits { arrivals: 100, arrivals_per_address: 3, arrival_time: Duration::from_secs(1), ..<_>::default() };
        let mut lab = Lab::edge_with(|config| EdgeConfig { limits, ..config }).await;
        let full = "adit_edge_overloads_total{limit=\"arrivalsPerAddress\"}";
        let mut strangers = Vec::new();
        for n in 1..=3 {
            strangers.push(silent(lab.connectors).await);
            eventually("he arrived", async || lab.edge_metric("adit_edge_arrivals") == n || n == 3).await;
        }
        let mut refused = silent(lab.connectors).await;
        let _ = soon("the fourth is closed", refused.read_to_end(&mut Vec::new())).await;
        assert!(lab.edge_metric(full) >= 1);
        // A real connector tries again until they are gone.
        lab.connect(Over::Quic, &rule("http_status:201"), |flags| flags).await;
        registered(&lab, 1).await;
        assert_eq!(lab.get("/").await.status, 201);
        drop(strangers);
        eventually("all places are free", async || lab.edge_metric("adit_edge_arrivals") == 0).await;
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn under_load_a_connector_over_quic_proves_its_address_first() {
    in_time(async {
        let lab = Lab::edge_with(|config| EdgeConfig {
            limits: Limits { arrivals: 16, arrivals_per_address: 16, ..<_>::default() },
            ..config
        })
        .await;
        let validations = "adit_edge_address_validations_total";
        let first = register_quic(&lab, claims(&lab, 0)).await;
        let _control = first.outcome.unwrap();
        assert_eq!(lab.edge_metric(validations), 0, "without load nobody waits for a round trip more");
        let mut strangers = Vec::new();
        for n in 1..=3 {
            strangers.push(silent(lab.connectors).await);
            eventually("he arrived", async || lab.edge_metric("adit_edge_arrivals") == n).await;
        }
        let second = register_quic(&lab, claims(&lab, 1)).await;
        let _control = second.outcome.unwrap();
        assert_eq!(lab.edge_metric(validations), 1);
        registered(&lab, 2).await;
        drop(strangers);
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn who_talks_without_registering_is_cut_short() {
    in_time(async {
        // Nobody's time is over in this test: only the words are bounded.
        let limits = Limits { arrival_time: LIMIT * 3, ..<_>::default() };
        let lab = Lab::edge_with(|config| EdgeConfig { limits, ..config }).await;
        // A quarter of a message of 1 MiB, as large as a configuration may be.
        let (_endpoint, connection) = dial_as(&lab, QUIC_SERVER_NAME).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let words = (128u32 << 10).to_le_bytes();
        let _ = send.write_all(&[&[0; 4], &words[..]].concat()).await;
        let _ = send.write_all(&vec![0; 256 << 10]).await;
        soon("he is cut", connection.closed()).await;
        assert_eq!(lab.edge_metric("adit_edge_registrations_total{outcome=\"not-in-time\"}"), 1);
        // One-way streams are not even allowed.
        let (_endpoint, connection) = dial_as(&lab, QUIC_SERVER_NAME).await;
        let opened = tokio::time::timeout(Duration::from_millis(200), connection.open_uni()).await;
        assert!(opened.is_err(), "{opened:?}");
        // A known one may send as large a message as a configuration is.
        let known = register_quic(&lab, claims(&lab, 0)).await;
        let (_, control) = known.outcome.unwrap();
        control.update_local_configuration(vec![b' '; 1 << 20], LIMIT).await.unwrap();
        control.unregister(LIMIT).await.unwrap();
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn calling_something_else_does_not_put_off_the_registration() {
    in_time(async {
        let limits = Limits { arrival_time: Duration::from_millis(500), ..<_>::default() };
        let lab = Lab::edge_with(|config| EdgeConfig { limits, ..config }).await;
        let wrong = registration::Registration { secret: vec![0; 32].into(), ..claims(&lab, 0) };
        // An RPC conversation that never registers: only the bootstrap.
        let (_endpoint, connection) = dial_as(&lab, QUIC_SERVER_NAME).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let bootstrap = &crate::wire_vectors::group("rpc.registration")[0]["register_phase"]["client_messages_hex"][0];
        let bootstrap = crate::wire_vectors::unhex(bootstrap.as_str().unwrap());
        let talking = async {
            while send.write_all(&bootstrap).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        soon("he is let go", talking).await;
        let (_endpoint, connection) = dial_as(&lab, QUIC_SERVER_NAME).await;
        let (send, recv) = connection.open_bi().await.unwrap();
        let refused = registration::register(&RpcThread::new(), recv, send, wrong, LIMIT).await;
        assert!(refused.is_err());
        assert_eq!(lab.edge_metric("adit_edge_registrations_total{outcome=\"refused\"}"), 1);
        lab.finish().await;
    })
    .await;
}
