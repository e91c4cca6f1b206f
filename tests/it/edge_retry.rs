//! Which connection of several gets a request, and what becomes of one whose connection is lost.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use adit::{
    edge::EdgeConfig,
    transport,
    wire::{
        connect,
        registration::{self, Control, Registration},
        rpc::RpcThread,
    },
};
use bytes::Bytes;
use http::{Response, StatusCode};
use rustls::pki_types::ServerName;
use tokio::{io::AsyncReadExt, net::TcpStream, sync::Notify};
use uuid::Uuid;

use crate::{
    harness::{
        LIMIT, Lab, Over, background, eventually, in_time, over_both,
        peer::{Peer, ok, replying, scripted},
        rule,
    },
    raw_connector::{claims, register_quic, registered, tls},
    raw_edge::soon,
};

/// What a connector of bare h2 does with a request.
#[derive(Clone, Copy, Debug)]
enum With {
    /// RST_STREAM REFUSED_STREAM.
    Refusal,
    /// RST_STREAM CANCEL: it may have begun.
    Reset,
    /// The connection is cut.
    Cut,
}

/// Registers over HTTP/2 and treats every request as told; counts them.
async fn odd_http2(lab: &Lab, with: With) -> (Arc<AtomicUsize>, Control) {
    let tcp = TcpStream::connect(lab.connectors).await.unwrap();
    let name = ServerName::try_from("h2.cftunnel.com").unwrap();
    let stream = tokio_rustls::TlsConnector::from(tls(lab).http2).connect(name, tcp).await.unwrap();
    let mut connection: h2::server::Connection<_, Bytes> = h2::server::handshake(stream).await.unwrap();
    let (request, mut respond) = soon("the control stream", connection.accept()).await.unwrap().unwrap();
    let send = transport::Send::http2(respond.send_response(Response::new(()), false).unwrap());
    let recv = transport::Recv::http2(request.into_body());
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    background(async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            match with {
                With::Refusal => respond.send_reset(h2::Reason::REFUSED_STREAM),
                With::Reset => respond.send_reset(h2::Reason::CANCEL),
                With::Cut => return,
            }
        }
    });
    let odd = Registration { connector: Uuid::from_u128(0x0dd), ..claims(lab, 0) };
    let (_, control) = registration::register(&RpcThread::new(), recv, send, odd, LIMIT).await.unwrap();
    (seen, control)
}

/// An edge with a good connector whose service says what it was sent.
async fn with_echo(retry: bool) -> Lab {
    let (service, _) = replying(|head, body| ok([head.method().as_bytes(), b" ", &body].concat())).await;
    let mut lab = Lab::edge_with(|config| EdgeConfig { retry, ..config }).await;
    lab.connect(Over::Quic, &rule(format!("http://{service}")), |flags| flags).await;
    registered(&lab, 1).await;
    lab
}

#[tokio::test]
async fn a_refused_request_goes_elsewhere_whatever_its_method_with_its_whole_body() {
    in_time(async {
        let lab = with_echo(true).await;
        let (seen, _control) = odd_http2(&lab, With::Refusal).await;
        registered(&lab, 2).await;
        let body = crate::harness::peer::pattern(8 << 10);
        for n in 0..20 {
            let method = if n % 2 == 0 { "POST" } else { "PATCH" };
            let answer = lab.send(method, "/", "", &body).await;
            assert_eq!((answer.status, answer.body == [method.as_bytes(), b" ", &body].concat()), (200, true), "{n}");
        }
        let seen = seen.load(Ordering::SeqCst) as u64;
        println!("20 requests with bodies, {seen} refused by one connection, 0 failed");
        assert!(seen > 0 && lab.edge_metric("adit_edge_retries_total") == seen);
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn with_the_retry_switched_off_a_refused_request_fails() {
    in_time(async {
        let lab = with_echo(false).await;
        let (seen, _control) = odd_http2(&lab, With::Refusal).await;
        registered(&lab, 2).await;
        let mut failed = 0;
        for _ in 0..20 {
            let answer = lab.get("/").await;
            if answer.status != 200 {
                assert_eq!((answer.status, answer.code()), (502, Some("connector-failed")));
                failed += 1;
            }
        }
        assert!(failed > 0 && failed == seen.load(Ordering::SeqCst));
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_request_that_may_have_begun_is_sent_again_only_if_it_may_be_done_twice() {
    in_time(async {
        let lab = with_echo(true).await;
        // Each cut ends a connection, so each request meets a new one.
        for (method, body, again) in
            [("GET", "", true), ("DELETE", "", true), ("POST", "", false), ("POST", "x", false), ("PUT", "x", false)]
        {
            let (mut met, mut refused) = (0, 0);
            while met == 0 {
                let (seen, _control) = odd_http2(&lab, With::Cut).await;
                registered(&lab, 2).await;
                for _ in 0..2 {
                    let answer = lab.send(method, "/", "", body.as_bytes()).await;
                    refused += usize::from(answer.status == 502);
                    assert!(matches!(answer.status, 200 | 502), "{answer:?}");
                }
                met = seen.load(Ordering::SeqCst);
                eventually("the cut is noticed", async || lab.edge.registry().of(lab.token.tunnel).len() == 1).await;
            }
            assert_eq!((met, refused), (1, usize::from(!again)), "{method} {body:?}");
        }
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_its_connector_reset_is_not_sent_again() {
    in_time(async {
        let lab = with_echo(true).await;
        let (seen, _control) = odd_http2(&lab, With::Reset).await;
        registered(&lab, 2).await;
        let mut failed = 0;
        for _ in 0..10 {
            failed += usize::from(lab.get("/").await.status == 502);
        }
        assert!(failed > 0 && failed == seen.load(Ordering::SeqCst), "a request was done twice");
        assert_eq!(lab.edge_metric("adit_edge_retries_total"), 0);
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_lost_quic_connection_costs_no_request_that_may_be_done_twice() {
    in_time(async {
        let lab = with_echo(true).await;
        for (method, again) in [("GET", true), ("POST", false)] {
            let odd = register_quic(&lab, Registration { connector: Uuid::from_u128(0x0dd), ..claims(&lab, 0) }).await;
            assert!(odd.outcome.is_ok());
            registered(&lab, 2).await;
            let meets = async {
                // Not before its head is here: an edge that could not send it would be right to try again.
                let _send = odd.asked().await;
                odd.connection.close(0u32.into(), b"");
            };
            let asks = async {
                let mut statuses = Vec::new();
                for _ in 0..2 {
                    statuses.push(lab.send(method, "/", "", b"").await.status);
                }
                statuses
            };
            let ((), statuses) = tokio::join!(soon("the odd one is asked", meets), asks);
            let failed = statuses.iter().filter(|status| **status == 502).count();
            assert_eq!(failed, usize::from(!again), "{method}: {statuses:?}");
            eventually("the loss is noticed", async || lab.edge.registry().of(lab.token.tunnel).len() == 1).await;
        }
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn nobody_waits_for_a_connection_to_come() {
    let lab = Lab::edge_only().await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (503, Some("no-connection")));
    assert_eq!(lab.edge_metric("adit_edge_refusals_total{code=\"no-connection\"}"), 1);
    lab.finish().await;
}

/// Three connectors of two tunnels with the same name, and requests that stay.
async fn least_in_flight(over: Over) {
    let release = Arc::new(Notify::new());
    let released = release.clone();
    let service = scripted(move |mut peer: Peer| {
        let released = released.clone();
        async move {
            if peer.head().await.is_some() {
                released.notified().await;
                peer.ok("at last").await;
            }
        }
    })
    .await;
    let yaml = rule(format!("http://{service}"));
    let lab = Lab::start(over, &yaml).await;
    let (mut second, mut third) = (Lab::beside(&lab), Lab::beside(&lab));
    second.connect(over, &yaml, |flags| flags).await;
    third.token = lab.state.new_token(&["web.test".into()], None).unwrap();
    lab.edge.reread();
    third.connect(over, &yaml, |flags| flags).await;
    registered(&lab, 2).await;
    lab.edge.registered(third.token.tunnel, 1, LIMIT).await.unwrap();
    let loads = || {
        let mut loads: Vec<_> = lab.edge.registry().all().iter().map(|session| session.in_flight()).collect();
        loads.sort_unstable();
        loads
    };
    let mut visitors = Vec::new();
    for n in 1..=9 {
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send("GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
        eventually("it is in flight", async || loads().iter().sum::<usize>() == n).await;
        assert_eq!(loads(), [n / 3, n.div_ceil(3) - usize::from(n % 3 == 1), n.div_ceil(3)], "{n} requests");
        visitors.push(visitor);
    }
    // A connector that unregistered gets nothing new, and finishes what it has.
    second.tasks.drain();
    eventually("it unregistered", async || lab.edge.registry().of(lab.token.tunnel).len() == 1).await;
    for n in 10..=12 {
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send("GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
        eventually("it is in flight elsewhere", async || loads().iter().sum::<usize>() == n - 3).await;
        visitors.push(visitor);
    }
    let releasing = async {
        loop {
            release.notify_waiters();
            tokio::task::yield_now().await;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let answers = async {
        for mut visitor in visitors {
            assert_eq!(visitor.answer().await.status, 200);
        }
        second.connector_ended().await;
    };
    tokio::select! {
        () = answers => {}
        () = releasing => {}
    }
    third.tasks.drain();
    third.connector_ended().await;
    lab.finish().await;
}

/// A WebSocket whose connector breaks off: nothing that looks like an end.
#[tokio::test]
async fn a_visitor_sees_a_cut_where_his_connector_was_cut() {
    in_time(async {
        let lab = Lab::edge_only().await;
        let raw = register_quic(&lab, claims(&lab, 0)).await;
        let _control = raw.outcome.unwrap();
        registered(&lab, 1).await;
        for (ends_well, tls_too) in [(true, false), (false, false), (true, true), (false, true)] {
            let ask = "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
            let answers = async {
                let (mut send, mut recv) = raw.connection.accept_bi().await.unwrap();
                recv.read_chunk(usize::MAX, true).await.unwrap();
                let head =
                    adit::wire::ResponseHead { status: StatusCode::SWITCHING_PROTOCOLS, headers: <_>::default() };
                send.write_all(&connect::encode_response(&head)).await.unwrap();
                send.write_all(b"half").await.unwrap();
                (send, recv)
            };
            let end = |send: &mut quinn::SendStream| {
                if ends_well {
                    send.finish().unwrap();
                } else {
                    send.reset(0u32.into()).unwrap();
                }
            };
            let said = if tls_too {
                let mut visitor = Peer::new(lab.tls(&["http/1.1"]).await, 0);
                visitor.send(ask).await;
                let (mut send, _recv) = soon("the request", answers).await;
                assert_eq!(visitor.answer_head().await.status, 101);
                assert_eq!(visitor.exact(4).await, b"half");
                end(&mut send);
                soon("the end", visitor.io.read(&mut [0; 16])).await
            } else {
                let mut visitor = Peer::visit(lab.http).await;
                visitor.send(ask).await;
                let (mut send, _recv) = soon("the request", answers).await;
                assert_eq!(visitor.answer_head().await.status, 101);
                assert_eq!(visitor.exact(4).await, b"half");
                end(&mut send);
                soon("the end", visitor.io.read(&mut [0; 16])).await
            };
            assert_eq!(said.is_ok(), ends_well, "{said:?} over TLS: {tls_too}");
        }
        lab.finish().await;
    })
    .await;
}

over_both! {
    the_connection_with_the_fewest_requests_gets_the_next_one_over_all_connectors_and_tunnels => least_in_flight,
}
