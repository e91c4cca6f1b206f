//! A connector on the wire over HTTP/2, driven by an edge that is strict, careless or hostile.

use adit::wire::{headers, registration::Refusal};
use bytes::Bytes;
use http::{HeaderName, Request, StatusCode, header};
use serde_json::Value;

use crate::{
    raw_edge::{H2Answer, H2Peer, Hello, RawEdge, Running, accept, registered, soon, upgrade},
    raw_service::{NOBODY, echo, h2_get, rules},
    wire_vectors::group,
};

async fn start() -> (RawEdge, Running, H2Peer) {
    let edge = RawEdge::new().await;
    let connector = edge.connector("http2", &rules().await).await;
    let peer = edge.h2_peer().await;
    (edge, connector, peer)
}

fn field<'a>(answer: &'a H2Answer, name: &str) -> Option<&'a str> {
    answer.head.headers.get(name).map(|value| value.to_str().unwrap())
}

pub(crate) fn tcp(authority: &str) -> Request<()> {
    let uri = format!("https://{authority}/");
    Request::builder().uri(uri).header("cf-cloudflared-proxy-src", "1.2.3.4:5").body(()).unwrap()
}

const CONNECTOR: &str = r#"{"src":"cloudflared"}"#;
const ORIGIN: &str = r#"{"src":"origin"}"#;

/// 502, the connector's own, without a list of headers.
fn is_peers_failure(answer: &H2Answer, what: &str) {
    assert_eq!(answer.head.status, 502, "{what}");
    assert_eq!(field(answer, "cf-cloudflared-response-meta"), Some(CONNECTOR), "{what}");
    assert_eq!(field(answer, "cf-cloudflared-response-headers"), None, "{what}");
    assert_eq!((field(answer, "content-length"), answer.body.as_str()), (Some("0"), ""), "{what}");
}

/// Which headers a list packs, but for those that depend on the service: Go's dates and sniffs, ours announces.
fn names(packed: &str) -> Vec<HeaderName> {
    let mut names: Vec<_> = headers::unpack(packed.as_bytes()).unwrap().keys().cloned().collect();
    names.retain(|name| ![header::DATE, header::CONTENT_TYPE, header::TRAILER].contains(name));
    names.sort_by_key(|name| name.as_str().to_owned());
    names
}

#[tokio::test]
async fn a_connector_answers_as_cloudflared_was_seen_to() {
    let (_edge, _connector, peer) = start().await;
    let valid = r#"{"version":5,"config":{"ingress":[{"hostname":"app.example.com","service":"http://ORIGIN"},{"service":"http_status:418"}]}}"#;
    let yaml = rules().await;
    let origin = yaml.split("http://").nth(1).unwrap().split_whitespace().next().unwrap();
    let valid = valid.replace("ORIGIN", origin);
    let vectors = group("h2.responses");
    assert_eq!(vectors.len(), 12);
    for vector in vectors {
        let name = vector["name"].as_str().unwrap();
        let asked = &vector["request"];
        if ["origin_down", "websocket_101"].contains(&name) {
            // Each has a test of its own.
            continue;
        }
        let echo = echo().await.to_string();
        let request = match name {
            "http_status_rule" => h2_get("teapot.example.com", "/"),
            "origin_204" => h2_get("app.example.com", "/204"),
            "origin_aborts_body" => h2_get("app.example.com", "/abort"),
            "origin_trailers" => h2_get("app.example.com", "/trailers"),
            "tcp_ack" => tcp(&echo),
            "tcp_refused" => tcp(NOBODY),
            _ => upgrade(asked["method"].as_str().unwrap(), "update-configuration"),
        };
        let body = match name {
            // Its rules are still those of the file; later vectors see the pushed ones, which serve the same.
            "config_ok" => valid.as_str(),
            "tcp_ack" => "echo:tcp-h2",
            _ => asked["body"].as_str().unwrap_or_default(),
        };
        let outcome = peer.ask(request, body).await;
        if name == "origin_aborts_body" {
            let error = outcome.expect_err(name);
            assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR), "{error}");
            peer.serves(name).await;
            continue;
        }
        let answer = outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(Value::from(answer.head.status.as_u16()), vector["status"], "{name}");
        let meta = "cf-cloudflared-response-meta";
        assert_eq!(field(&answer, meta), vector["headers"][meta].as_str(), "{name}");
        let list = "cf-cloudflared-response-headers";
        let (ours, peers) = (field(&answer, list), vector["headers"][list].as_str());
        assert_eq!(ours.map(names), peers.map(names), "{name}");
        match name {
            // Where cloudflared loses the reason, adit says it.
            "config_rejected" => {
                let json: Value = serde_json::from_str(&answer.body).unwrap();
                assert_eq!(json["lastAppliedVersion"], 5);
                assert!(json["err"].as_str().unwrap().contains("last"), "{json}");
            }
            "config_ok" | "config_stale" => {
                let (ours, peers): (Value, Value) = (
                    serde_json::from_str(&answer.body).unwrap(),
                    serde_json::from_str(vector["body"].as_str().unwrap()).unwrap(),
                );
                assert_eq!(ours, peers, "{name}");
            }
            _ => assert_eq!(answer.body, vector["body"].as_str().unwrap(), "{name}"),
        }
        if name == "origin_trailers" {
            assert_eq!(answer.trailers.unwrap()["x-t"], "tv");
        }
        peer.serves(name).await;
    }
}

fn websocket(key: &str) -> Request<()> {
    Request::builder()
        .uri("https://app.example.com/ws")
        .header("cf-cloudflared-proxy-connection-upgrade", "websocket")
        .header("sec-websocket-key", key)
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap()
}

#[tokio::test]
async fn an_accepted_websocket_is_a_200_whose_packed_headers_tell() {
    let (_edge, _connector, peer) = start().await;
    let vectors = group("h2.responses");
    let vector = vectors.iter().find(|vector| vector["name"] == "websocket_101").unwrap();
    let key = vector["request"]["headers"]["sec-websocket-key"].as_str().unwrap();
    let mut sender = soon("a stream", peer.sender.clone().ready()).await.unwrap();
    let (response, mut send) = sender.send_request(websocket(key), false).unwrap();
    let (head, mut recv) = soon("an answer", response).await.unwrap().into_parts();
    assert_eq!(
        (head.status, head.headers["cf-cloudflared-response-meta"].as_bytes()),
        (StatusCode::OK, ORIGIN.as_bytes())
    );
    send.send_data(Bytes::from_static(b"frames"), false).unwrap();
    assert_eq!(soon("an echo", recv.data()).await.unwrap().unwrap(), "frames");
    // The visitor's end ends everything, and in good order.
    send.send_data(Bytes::new(), true).unwrap();
    while let Some(chunk) = soon("the end", recv.data()).await {
        assert_eq!(chunk.unwrap(), "");
    }
    let unpack = |packed: &str| headers::unpack(packed.as_bytes()).unwrap();
    let wanted = unpack(vector["headers"]["cf-cloudflared-response-headers"].as_str().unwrap());
    let ours = unpack(head.headers["cf-cloudflared-response-headers"].to_str().unwrap());
    for (name, value) in &wanted {
        assert_eq!(ours.get(name), Some(value), "{name}");
    }
    peer.serves("a WebSocket").await;
}

#[tokio::test]
async fn a_service_that_is_down_is_told_to_the_visitor_with_a_reason() {
    let (_edge, _connector, peer) = start().await;
    let answer = peer.ask(h2_get("down.example.com", "/"), "").await.unwrap();
    assert_eq!(answer.head.status, 502);
    // cloudflared gives no reason; adit's travels as the visitor's header, so it has the form of an answer.
    assert_eq!(field(&answer, "cf-cloudflared-response-meta"), Some(ORIGIN));
    let packed = headers::unpack(field(&answer, "cf-cloudflared-response-headers").unwrap().as_bytes()).unwrap();
    assert_eq!(packed["adit-error"], "origin-unreachable");
    peer.serves("a service that is down").await;
}

#[tokio::test]
async fn tcp_by_name_is_refused_in_the_peers_form() {
    let (_edge, _connector, peer) = start().await;
    for authority in ["localhost:80", "app.example.com", "127.0.0.1", "[::1]"] {
        let answer = peer.ask(tcp(authority), "").await.unwrap();
        is_peers_failure(&answer, authority);
        peer.serves(authority).await;
    }
}

#[tokio::test]
async fn requests_that_cannot_be_understood_get_the_peers_failure() {
    let (_edge, _connector, peer) = start().await;
    for body in ["nope", "", "[]", r#"{"config":{}}"#, r#"{"version":"5","config":{}}"#, r#"{"version":99999999999}"#] {
        let answer = peer.ask(upgrade("PUT", "update-configuration"), body).await.unwrap();
        is_peers_failure(&answer, body);
        peer.serves(body).await;
    }
}

#[tokio::test]
async fn a_request_with_two_lengths_is_reset_before_anybody_acts_on_it() {
    let (_edge, _connector, peer) = start().await;
    for lengths in [["4", "5"], ["5", "4"], ["4", "x"]] {
        let request = Request::builder().method("POST").uri("https://app.example.com/");
        let request = request.header("content-length", lengths[0]).header("content-length", lengths[1]);
        let error = peer.ask(request.body(()).unwrap(), "BODY").await.expect_err("two lengths");
        assert_eq!(error.reason(), Some(h2::Reason::PROTOCOL_ERROR), "{error}");
        peer.serves("two lengths").await;
    }
}

#[tokio::test]
async fn a_second_control_stream_does_no_harm() {
    let (_edge, _connector, mut peer) = start().await;
    let (response, mut send) = peer.sender.send_request(upgrade("GET", "control-stream"), false).unwrap();
    let _ = send.send_data(Bytes::from_static(&[0; 8]), false);
    // It is not registered over: the stream ends without a byte of RPC, in order or not.
    if let Ok(response) = soon("an answer", response).await {
        let mut body = response.into_body();
        while let Some(Ok(chunk)) = soon("the end", body.data()).await {
            assert!(chunk.is_empty(), "{chunk:?}");
        }
    }
    peer.serves("a second control stream").await;
    assert!(peer.calls.try_recv().is_err(), "nothing was said on the first one");
}

#[tokio::test]
async fn a_stream_that_an_edge_cuts_costs_only_itself() {
    let (_edge, connector, peer) = start().await;
    for reason in [h2::Reason::CANCEL, h2::Reason::NO_ERROR, h2::Reason::INTERNAL_ERROR] {
        let request = Request::builder().method("POST").uri("https://app.example.com/cut").body(()).unwrap();
        let mut sender = soon("a stream", peer.sender.clone().ready()).await.unwrap();
        let (response, mut send) = sender.send_request(request, false).unwrap();
        send.send_data(Bytes::from_static(b"half"), false).unwrap();
        send.send_reset(reason);
        drop(response);
        peer.serves("a cut stream").await;
    }
    assert_eq!(connector.tasks.panics(), 0);
}

#[tokio::test]
async fn streams_before_the_registration_wait_for_it() {
    let edge = RawEdge::new().await;
    let _connector = edge.connector("http2", &rules().await).await;
    let (mut sender, end) = edge.h2().await;
    let mut calls = edge.h2_control(&mut sender).await;
    let (early, _) = sender.send_request(h2_get("teapot.example.com", "/"), true).unwrap();
    let registration = accept(&mut calls, Ok(registered(true))).await;
    assert_eq!(soon("the early answer", early).await.unwrap().status(), 418);
    H2Peer { sender, _end: end, calls, registration }.serves("an early request").await;
}

#[tokio::test]
async fn a_refused_connector_closes_its_socket() {
    let edge = RawEdge::new().await;
    let _connector = edge.connector("http2", &rules().await).await;
    let (mut sender, end) = edge.h2().await;
    let mut calls = edge.h2_control(&mut sender).await;
    let refusal = Refusal { cause: "no".into(), retry_after: std::time::Duration::ZERO, should_retry: false };
    let registration = accept(&mut calls, Err(refusal)).await;
    assert_eq!(registration.local_ip, Some(edge.addr.ip()), "on HTTP/2 the connector's own address");
    // cloudflared leaves it open, and an edge that waits for it waits for ever.
    let _ = soon("the end of the socket", end).await.unwrap();
}

#[tokio::test]
async fn the_client_hello_over_tcp_asks_for_no_protocol() {
    let mut edge = RawEdge::new().await;
    let _connector = edge.connector("http2", &rules().await).await;
    let peer = edge.h2_peer().await;
    let Hello { server_name, alpn, .. } = soon("a hello", edge.hellos.recv()).await.unwrap();
    let vectors = group("tls.client_hello");
    let vector = vectors.iter().find(|vector| vector["name"] == "http2").unwrap();
    assert_eq!(server_name.as_deref(), vector["sni"].as_str());
    assert!(alpn.is_empty(), "{alpn:?}");
    peer.serves("a handshake without ALPN").await;
}

#[tokio::test]
async fn large_heads_and_many_streams_are_taken() {
    let (_edge, _connector, peer) = start().await;
    let large = "x".repeat(60_000);
    let request = Request::builder().uri("https://app.example.com/large").header("x-large", &large).body(()).unwrap();
    let answer = peer.ask(request, "").await.unwrap();
    assert!(answer.head.status == 200 && answer.body.contains(&large));
    let many = (0..200).map(|_| peer.ask(h2_get("teapot.example.com", "/"), ""));
    for answer in futures_util::future::join_all(many).await {
        assert_eq!(answer.unwrap().head.status, 418);
    }
}
