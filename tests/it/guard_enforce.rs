//! What was decided about a caller is decided anew: when lists change, when certificates are renewed, when a guard stops.

use std::time::Duration;

use adit::config::{Allow, Callers, Service};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{
    LIMIT, eventually,
    guard::{GuardLab, ID, NAME, peer_with},
    in_time, mirror,
    peer::{Peer, scripted},
    tls::Ca,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: guard.test\r\n\r\n";

#[tokio::test]
async fn revocation_counts_for_the_next_request_on_a_kept_connection_a_resumed_and_a_new_one() {
    in_time(Box::pin(async {
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let lab = GuardLab::start(format!("http://{}", mirror().await), "").await;
            let config = peer_with(&lab.ca.pem, Some(&lab.a), &[], &[version]);
            let mut kept = Peer::new(lab.tls(&config).await.unwrap(), 0);
            kept.send(GET).await;
            assert_eq!(kept.answer().await.status, 200);
            // While the list is as it was, the session is good.
            let mut resumed = Peer::new(lab.tls(&config).await.unwrap(), 0);
            resumed.send(GET).await;
            assert_eq!(resumed.answer().await.status, 200);
            assert_eq!(resumed.io.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
            lab.write("crl.pem", &lab.ca.revoked(&[&lab.a]));
            lab.reload();
            eventually("the list is in force", async || lab.get(Some(&lab.a)).await.status == 403).await;
            kept.send(GET).await;
            let answer = kept.answer().await;
            assert_eq!((answer.status, answer.code()), (403, Some("caller-invalid")), "kept");
            let mut resumed = Peer::new(lab.tls(&config).await.unwrap(), 0);
            assert_eq!(resumed.io.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
            resumed.send(GET).await;
            let answer = resumed.answer().await;
            assert_eq!((answer.status, answer.code()), (403, Some("caller-invalid")), "resumed");
        }
    }))
    .await;
}

/// A service that accepts a WebSocket and sends back what it hears; its number of connections does not matter.
async fn websocket() -> std::net::SocketAddr {
    scripted(|mut peer: Peer| async move {
        let Some(head) = peer.head().await else { return };
        assert_eq!(head.header("upgrade").map(str::to_lowercase).as_deref(), Some("websocket"));
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        loop {
            let some = peer.some().await;
            if some.is_empty() || !peer.send(some).await {
                return;
            }
        }
    })
    .await
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: guard.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn an_open_websocket_of_a_revoked_caller_is_closed_with_1008() {
    in_time(async {
        let lab = GuardLab::start(format!("http://{}", websocket().await), "").await;
        let mut peer = lab.visit(Some(&lab.a)).await;
        peer.send(UPGRADE).await;
        assert_eq!(peer.answer_head().await.status, 101);
        // As a server would send it, since it comes back: unmasked frames break nothing here.
        peer.send(b"\x82\x01x").await;
        assert_eq!(peer.exact(3).await, b"\x82\x01x");
        lab.write("crl.pem", &lab.ca.revoked(&[&lab.a]));
        lab.reload();
        let close = tokio::time::timeout(LIMIT, peer.exact(4)).await.expect("it goes on");
        assert_eq!(close, [0x88, 2, 3, 0xf0], "Close 1008");
    })
    .await;
}

#[tokio::test]
async fn a_websocket_passes_over_http2_too() {
    in_time(async {
        let lab = GuardLab::start(format!("http://{}", websocket().await), "").await;
        let mut sender = lab.h2(Some(&lab.a)).await;
        eventually("extended CONNECT is offered", async || sender.is_extended_connect_protocol_enabled()).await;
        let mut request = Request::builder().method("CONNECT").uri(format!("https://{NAME}/ws")).body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, mut send) = sender.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        send.send_data("\u{2}echo".into(), false).unwrap();
        let mut body = response.into_body();
        let mut heard = Vec::new();
        while heard.len() < 5 {
            heard.extend_from_slice(&body.data().await.unwrap().unwrap());
        }
        assert_eq!(heard, b"\x02echo");
        // Revoked: the stream ends, the connection stays and says why to the next request.
        lab.write("crl.pem", &lab.ca.revoked(&[&lab.a]));
        lab.reload();
        let ended = async { while let Some(Ok(_)) = body.data().await {} };
        tokio::time::timeout(LIMIT, ended).await.expect("it goes on");
        let request = Request::get(format!("https://{NAME}/")).body(()).unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), 403);
    })
    .await;
}

#[tokio::test]
async fn a_renewed_certificate_of_the_guard_is_shown_at_once_and_old_connections_go_on() {
    in_time(async {
        let lab = GuardLab::start(format!("http://{}", mirror().await), "").await;
        let config = lab.peer(Some(&lab.a), &[]);
        let mut old = Peer::new(lab.tls(&config).await.unwrap(), 0);
        let shown = |peer: &Peer<_>| -> Vec<u8> {
            let peer: &Peer<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> = peer;
            peer.io.get_ref().1.peer_certificates().unwrap()[0].to_vec()
        };
        let before = shown(&old);
        old.send(GET).await;
        assert_eq!(old.answer().await.status, 200);
        let renewed = lab.ca.workload(ID, &[NAME]);
        let expected = renewed.chain()[0].to_vec();
        assert_ne!(before, expected);
        lab.write("guard.pem", &(renewed.certificate + &renewed.key));
        lab.reload();
        eventually("the new one is shown", async || {
            let peer = Peer::new(lab.tls(&config).await.unwrap(), 0);
            // Even to a peer with a session of before.
            shown(&peer) == expected
        })
        .await;
        old.send(GET).await;
        assert_eq!(old.answer().await.status, 200);
        // One that does not fit changes nothing.
        lab.write("guard.pem", "nonsense");
        lab.reload();
        assert_eq!(lab.get(Some(&lab.a)).await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn trust_whose_file_breaks_stays_and_a_guard_without_a_valid_certificate_lets_nobody_in() {
    in_time(async {
        let lab = GuardLab::start(format!("http://{}", mirror().await), "").await;
        lab.write("ca.pem", "nonsense");
        lab.reload();
        assert_eq!(lab.get(Some(&lab.a)).await.status, 200);
        let expired = |ca: &Ca| {
            let key = rcgen::KeyPair::generate().unwrap();
            ca.leaf_with(&[NAME], &key, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
        };
        let lab = GuardLab::proving(expired, format!("http://{}", mirror().await), "", |_| {}).await;
        let refused = lab.tls(&lab.peer(Some(&lab.a), &[])).await.unwrap_err();
        assert!(refused.to_string().contains("alert"), "{refused}");
        eventually("it is counted", async || {
            lab.counted("adit_guard_handshakes_total{guard=\"0\",outcome=\"unusable\"}") == 1
        })
        .await;
        // And recovers by itself.
        let own = lab.ca.workload(ID, &[NAME]);
        lab.write("guard.pem", &(own.certificate + &own.key));
        lab.reload();
        eventually("it shows the new one", async || lab.tls(&lab.peer(Some(&lab.a), &[])).await.is_ok()).await;
        assert_eq!(lab.get(Some(&lab.a)).await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn a_changed_list_of_the_file_is_in_force_at_once_for_whoever_is_connected() {
    in_time(async {
        let lab = GuardLab::start(format!("http://{}", mirror().await), "").await;
        let mut kept = lab.visit(Some(&lab.a)).await;
        kept.send(GET).await;
        assert_eq!(kept.answer().await.status, 200);
        let other = mirror().await;
        lab.reconfigure(|guard| {
            let allow = Some(vec![Allow { methods: Some(vec![http::Method::GET]), ..Allow::default() }]);
            guard.callers = Callers { allow, ..Callers::clone(&guard.callers) }.into();
            guard.service = Service::Http { tls: false, h2c: false, host: "127.0.0.1".into(), port: other.port() };
        });
        let line = "PUT /";
        eventually("the list is in force", async || lab.send(Some(&lab.a), line, "").await.status == 403).await;
        kept.send(GET).await;
        assert_eq!(kept.answer().await.status, 200);
        kept.send(GET.replace("GET", "PUT")).await;
        assert_eq!(kept.answer().await.code(), Some("caller-not-allowed"));
    })
    .await;
}

#[tokio::test]
async fn a_guard_that_stops_takes_nobody_new_and_finishes_what_it_has() {
    in_time(async {
        let (release, released) = tokio::sync::watch::channel(false);
        let service = scripted(move |mut peer: Peer| {
            let mut released = released.clone();
            async move {
                while peer.head().await.is_some() {
                    let _ = released.wait_for(|released| *released).await;
                    peer.ok("done").await;
                }
            }
        })
        .await;
        let mut lab = GuardLab::start(format!("http://{service}"), "").await;
        let mut idle = lab.visit(Some(&lab.a)).await;
        let mut busy = lab.visit(Some(&lab.a)).await;
        busy.send(GET).await;
        eventually("it is in flight", async || lab.counted("adit_guard_in_flight{guard=\"0\"}") == 1).await;
        lab.tasks.drain();
        tokio::time::timeout(LIMIT, idle.ended()).await.expect("an idle connection stays");
        eventually("nobody new", async || tokio::net::TcpStream::connect(lab.addr).await.is_err()).await;
        release.send_replace(true);
        let answer = busy.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
        assert_eq!(answer.header("connection"), Some("close"));
        busy.ended().await;
        lab.ended().await;
    })
    .await;
}

#[tokio::test]
async fn a_guard_still_accepts_for_a_while_once_it_drains() {
    in_time(async {
        let service = mirror().await;
        let lab = GuardLab::with(format!("http://{service}"), "", |guards| guards.unready = LIMIT).await;
        lab.tasks.drain();
        assert_eq!(lab.get(Some(&lab.a)).await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn strangers_are_bounded_in_time_and_bytes() {
    in_time(Box::pin(async {
        // Says nothing: the handshake is bounded.
        let service = format!("http://{}", mirror().await);
        let short = Duration::from_millis(200);
        let lab = GuardLab::with(&service, "", |guards| guards.limits.tls_time = short).await;
        let mut silent = tokio::net::TcpStream::connect(lab.addr).await.unwrap();
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
        eventually("it is counted", async || {
            lab.counted("adit_guard_handshakes_total{guard=\"0\",outcome=\"timed-out\"}") == 1
        })
        .await;
        // Half a head: so is that. Handshakes have the usual time here, since they are to succeed.
        let lab = GuardLab::with(&service, "", |guards| {
            guards.limits.bounds.header_time = short;
            guards.limits.bounds.last_heads = short;
        })
        .await;
        let mut slow = lab.visit(Some(&lab.a)).await;
        slow.send("GET / HTTP/1.1\r\nHost:").await;
        tokio::time::timeout(LIMIT, slow.ended()).await.expect("half a head holds a place for ever");
        // A head that is too large.
        let lab = GuardLab::with(&service, "", |guards| guards.limits.bounds.header_bytes = 16 << 10).await;
        let bomb = format!("X-Bomb: {}\r\n", "x".repeat(32 << 10));
        let answer = lab.send(Some(&lab.a), "GET /", &bomb).await;
        assert_eq!(answer.status, 431);
    }))
    .await;
}

#[tokio::test]
async fn connections_above_the_bound_are_refused_until_others_go() {
    in_time(async {
        let lab = GuardLab::with(format!("http://{}", mirror().await), "", |guards| {
            guards.limits.connections = 4;
            guards.limits.connections_per_address = 4;
            // Whoever is silent holds his place to the end of the test.
            guards.limits.tls_time = LIMIT * 10;
        })
        .await;
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(tokio::net::TcpStream::connect(lab.addr).await.unwrap());
        }
        let mut fifth = tokio::net::TcpStream::connect(lab.addr).await.unwrap();
        let _ = fifth.write_all(b"x").await;
        assert_eq!(fifth.read(&mut [0; 1]).await.unwrap_or(0), 0);
        assert_eq!(lab.counted("adit_guard_handshakes_total{guard=\"0\",outcome=\"overloaded\"}"), 1);
        drop(held);
        eventually("others come in again", async || lab.tls(&lab.peer(Some(&lab.a), &[])).await.is_ok()).await;
    })
    .await;
}

#[tokio::test]
async fn requests_above_the_bound_are_refused_at_once() {
    in_time(async {
        let service = scripted(|mut peer: Peer| async move {
            peer.head().await;
            std::future::pending::<()>().await;
        })
        .await;
        let lab = GuardLab::with(format!("http://{service}"), "", |guards| guards.limits.requests = 1).await;
        let mut first = lab.visit(Some(&lab.a)).await;
        first.send(GET).await;
        eventually("it is in flight", async || lab.counted("adit_guard_in_flight{guard=\"0\"}") == 1).await;
        let answer = lab.get(Some(&lab.a)).await;
        assert_eq!((answer.status, answer.code()), (503, Some("overloaded")));
        drop(first);
        eventually("the caller's place is free again", async || lab.counted("adit_guard_in_flight{guard=\"0\"}") == 0)
            .await;
    })
    .await;
}
