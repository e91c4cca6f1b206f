//! How a connector comes back: what it waits for, what it gives up, and which transport it takes.

use std::time::{Duration, Instant};

use adit::wire::registration::{EdgeCall, Refusal};

use crate::{
    harness::eventually,
    raw_edge::{RawEdge, Udp, accept, registered, soon, upgrade},
    raw_service::rules,
};

fn refusal(cause: &str, retry_after: Duration) -> Refusal {
    Refusal { cause: cause.into(), retry_after, should_retry: true }
}

#[tokio::test]
async fn an_edge_that_closes_before_the_registration_is_asked_again_over_quic() {
    let edge = RawEdge::new().await;
    let connector = edge.connector("quic", &rules().await).await;
    let first = edge.accept_quic().await;
    first.close(0u32.into(), b"");
    let second = edge.accept_quic().await;
    let (send, recv) = soon("the control stream", second.accept_bi()).await.unwrap();
    drop((send, recv));
    second.close(1u32.into(), b"with words");
    let third = edge.accept_quic().await;
    let (send, recv) = soon("the control stream", third.accept_bi()).await.unwrap();
    let mut calls = edge.control(recv, send);
    let Some(EdgeCall::Register(..)) = soon("a registration", calls.recv()).await else { panic!() };
    third.close(0u32.into(), b"");
    let peer = edge.quic_peer().await;
    peer.serves("three failures").await;
    assert!(peer.registration.previous_attempts >= 3, "{}", peer.registration.previous_attempts);
    assert!(!connector.ended.is_finished());
}

#[tokio::test]
async fn an_edge_that_closes_before_the_registration_is_asked_again_over_http2() {
    let edge = RawEdge::new().await;
    let connector = edge.connector("http2", &rules().await).await;
    drop(soon("a connection", edge.tcp.accept()).await.unwrap());
    drop(edge.accept_tls().await);
    let (mut sender, _end) = edge.h2().await;
    let mut calls = edge.h2_control(&mut sender).await;
    let call = soon("a registration", calls.recv()).await;
    // Closing before answering makes a freshly started cloudflared exit.
    drop((call, calls));
    let peer = edge.h2_peer().await;
    peer.serves("three failures").await;
    assert!(!connector.ended.is_finished());
}

#[tokio::test]
async fn a_reconnect_over_quic_keeps_its_local_port() {
    let edge = RawEdge::new().await;
    let _connector = edge.connector("quic", &rules().await).await;
    let first = edge.quic_peer().await;
    first.serves("registering").await;
    let before = first.connection.remote_address();
    first.connection.close(0u32.into(), b"");
    let second = edge.quic_peer().await;
    assert_eq!(second.connection.remote_address(), before);
    assert_eq!(second.registration.connector, first.registration.connector);
    second.serves("a reconnect").await;
}

/// Refuses twice, then accepts; the waits between are the edge's.
async fn waits_as_asked(protocol: &str) {
    let edge = RawEdge::new().await;
    let connector = edge.connector(protocol, &rules().await).await;
    // More than the back-off could draw by itself: its first bound is two seconds.
    let wait = Duration::from_millis(2500);
    let mut refused: Option<Instant> = None;
    let waited = |refused: Option<Instant>| {
        if let Some(refused) = refused {
            let waited = refused.elapsed();
            assert!(waited >= wait - Duration::from_millis(100), "{waited:?}");
        }
    };
    for cause in ["come back later", "Unauthorized: not yet known"] {
        if protocol == "quic" {
            let connection = edge.accept_quic().await;
            waited(refused);
            let (send, recv) = soon("the control stream", connection.accept_bi()).await.unwrap();
            accept(&mut edge.control(recv, send), Err(refusal(cause, wait))).await;
            refused = Some(Instant::now());
            soon("the connector closes", connection.closed()).await;
        } else {
            let (mut sender, end) = edge.h2().await;
            waited(refused);
            accept(&mut edge.h2_control(&mut sender).await, Err(refusal(cause, wait))).await;
            refused = Some(Instant::now());
            let _ = soon("the end of the socket", end).await;
        }
    }
    let registration = if protocol == "quic" {
        let peer = edge.quic_peer().await;
        waited(refused);
        peer.serves("two refusals").await;
        peer.registration
    } else {
        let peer = edge.h2_peer().await;
        waited(refused);
        peer.serves("two refusals").await;
        peer.registration
    };
    assert_eq!(registration.previous_attempts, 2);
    assert!(!connector.ended.is_finished());
}

#[tokio::test]
async fn a_connector_refused_over_quic_waits_as_asked_and_never_exits() {
    waits_as_asked("quic").await;
}

#[tokio::test]
async fn a_connector_refused_over_http2_waits_as_asked_and_never_exits() {
    waits_as_asked("http2").await;
}

#[tokio::test]
async fn where_udp_is_swallowed_auto_registers_over_http2_in_about_a_second() {
    let edge = RawEdge::without_quic().await;
    let _connector = edge.connector("auto", &rules().await).await;
    let Udp::Silent(socket) = &edge.udp else { panic!() };
    let mut packet = [0; 2048];
    let length = soon("the first packet", socket.recv(&mut packet)).await.unwrap();
    let dialled = Instant::now();
    assert_eq!(length, 1232, "the first packets towards an IPv4 edge");
    // Long header, fixed bit, Initial; version 1.
    assert_eq!((packet[0] & 0xf0, &packet[1..5]), (0xc0, &[0, 0, 0, 1][..]));
    // Destination id, then the length of the source id, which is zero.
    assert_eq!(packet[6 + usize::from(packet[5])], 0);
    let peer = edge.h2_peer().await;
    let took = dialled.elapsed();
    assert!(took >= Duration::from_millis(900), "QUIC had no chance: {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    peer.serves("falling back").await;
}

#[tokio::test]
async fn while_quic_registers_in_time_auto_never_registers_over_http2() {
    let edge = RawEdge::new().await;
    let _connector = edge.connector("auto", &rules().await).await;
    let connection = edge.accept_quic().await;
    let (send, recv) = soon("the control stream", connection.accept_bi()).await.unwrap();
    let mut calls = edge.control(recv, send);
    let Some(EdgeCall::Register(_, reply)) = soon("a registration", calls.recv()).await else { panic!() };
    // QUIC takes its time, so HTTP/2 is dialled; it must not register before its moment.
    let (mut sender, end) = edge.h2().await;
    let (control, _send) = sender.send_request(upgrade("GET", "control-stream"), false).unwrap();
    reply.send(Ok(registered(true))).unwrap();
    let _ = soon("the end of the loser", end).await;
    assert!(control.await.is_err(), "a control stream over HTTP/2");
    // Nor does it come back while QUIC lives.
    let again = tokio::time::timeout(Duration::from_millis(1500), edge.tcp.accept()).await;
    assert!(again.is_err(), "another connection over TCP");
    assert!(connection.close_reason().is_none());
}

#[tokio::test]
async fn auto_falls_back_when_quic_fails_and_tries_it_first_the_next_time() {
    let edge = RawEdge::new().await;
    let _connector = edge.connector("auto", &rules().await).await;
    edge.accept_quic().await.close(2u32.into(), b"not today");
    edge.h2_peer().await.serves("a failure of QUIC").await;
    edge.cut.cancel();
    let peer = edge.quic_peer().await;
    peer.serves("the loss of the fallback").await;
}

#[tokio::test]
async fn an_edge_that_knows_the_connection_already_is_left_for_another() {
    let (one, two) = (RawEdge::new().await, RawEdge::new().await);
    one.vouch_for(&two);
    let yaml = rules().await;
    let _connector = one.connector_with("quic", &yaml, |flags| flags.with("edge", &two.addr.to_string())).await;
    let (known, other, connection) = tokio::select! {
        connection = one.accept_quic() => (&one, &two, connection),
        connection = two.accept_quic() => (&two, &one, connection),
    };
    let (send, recv) = soon("the control stream", connection.accept_bi()).await.unwrap();
    accept(&mut known.control(recv, send), Err(refusal("EDUPCONN", Duration::ZERO))).await;
    tokio::select! {
        peer = other.quic_peer() => peer.serves("a duplicate").await,
        _ = known.accept_quic() => panic!("the same edge again"),
    }
}

/// Counts what an edge does to every connection until there were twelve.
async fn twelve_attempts(what: &str, protocol: &str, edge: &RawEdge, each: impl AsyncFn()) {
    let _connector = edge.connector(protocol, &rules().await).await;
    let started = Instant::now();
    for _ in 0..12 {
        each().await;
    }
    // The waits are drawn from a quarter, a half and then whole seconds: five in the mean.
    assert!(started.elapsed() > Duration::from_secs(1), "{what}: twelve attempts in {:?}", started.elapsed());
}

#[tokio::test]
async fn in_no_state_does_a_connector_try_in_a_tight_loop() {
    let closing = async {
        let edge = RawEdge::new().await;
        let close = async || drop(soon("a dial", edge.tcp.accept()).await.unwrap());
        twelve_attempts("closed at once", "http2", &edge, close).await;
    };
    let speechless = async {
        let edge = RawEdge::new().await;
        twelve_attempts("closed after TLS", "http2", &edge, async || drop(edge.accept_tls().await)).await;
    };
    let fickle = async {
        // A registration alone does not make a connection a good one.
        let edge = RawEdge::new().await;
        let close = async || edge.quic_peer().await.connection.close(0u32.into(), b"");
        twelve_attempts("closed after the registration", "quic", &edge, close).await;
    };
    let garbage = async {
        let edge = RawEdge::new().await;
        twelve_attempts("no TLS", "http2", &edge, async || {
            let (mut tcp, _) = soon("a dial", edge.tcp.accept()).await.unwrap();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut tcp, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        })
        .await;
    };
    tokio::join!(closing, speechless, fickle, garbage);
}

#[tokio::test]
async fn two_transports_that_register_at_once_both_finish_what_they_were_sent() {
    let edge = RawEdge::new().await;
    let connector = edge.connector("auto", &rules().await).await;
    let (quic, answer) = edge.quic_asked().await;
    let mut http2 = edge.h2_peer().await;
    // The edge took both. Whichever answer came last, what was sent over either is answered, and one of them leaves.
    assert!(answer.send(Ok(registered(true))).is_ok());
    let mut quic = quic;
    tokio::join!(quic.serves("registering at once"), http2.serves("registering at once"));
    tokio::select! {
        call = soon("an unregistration", quic.calls.recv()) => {
            assert!(matches!(call, Some(EdgeCall::Unregister(_))));
            http2.serves("the other's leave").await;
        }
        call = soon("an unregistration", http2.calls.recv()) => {
            assert!(matches!(call, Some(EdgeCall::Unregister(_))));
            quic.serves("the other's leave").await;
        }
    } // The one that stays is the one that counts.
    eventually("one leaves", async || connector.metrics.expose().contains("cloudflared_tunnel_ha_connections 1")).await;
    let ready = connector.page("/ready").await;
    assert!(ready.0 == 200 && ready.1.contains("\"readyConnections\":1"), "{ready:?}");
}
