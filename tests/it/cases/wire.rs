//! The wire's own pieces, and what a service's headers become on it.

use std::time::Duration;

use adit::{
    connector::discovery::srv_name,
    proxy::{bastion, frames::accept_key},
    wire::{BodyLength, Head, connect::decode_request, headers},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::{Verdict, Verdicts, list, same, text, together};
use crate::{
    harness::{
        Over,
        peer::{Peer, scripted},
        rule,
    },
    raw_edge::{RawEdge, soon, upgrade},
    raw_service::h2_get,
    wire_craft::request,
};

/// Pairs of texts.
fn pairs(case: &Value, key: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list(case, key).iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect()
}

fn headers_of(pairs: &[(String, String)]) -> Vec<(HeaderName, HeaderValue)> {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

pub(super) fn header_serialize(case: &Value) {
    let given = headers_of(&pairs(case, "headers"));
    let packed = headers::pack(given.iter().map(|(name, value)| (name, value)));
    assert_eq!(packed.to_str().unwrap(), text(case, "expect_serialized"));
    let back = headers::unpack(packed.as_bytes()).unwrap();
    let wanted: HeaderMap = headers_of(&pairs(case, "expect_roundtrip_sorted")).into_iter().collect();
    assert_eq!(back, wanted);
}

pub(super) fn header_deserialize(case: &Value) {
    let packed = text(case, "input").as_bytes();
    let outcome = headers::unpack(packed);
    assert_eq!(json!(outcome.is_ok()), case["expect"]["ok"], "{outcome:?}");
    if outcome.is_err() {
        return;
    }
    // Piece by piece, since no map of headers holds one without a name.
    let pieces = packed.split(|&byte| byte == b';').filter(|piece| !piece.is_empty());
    let seen: Vec<_> = pieces
        .map(|piece| headers::split_pair(piece).unwrap())
        .map(|(name, value)| json!([String::from_utf8(name).unwrap(), STANDARD.encode(value)]))
        .collect();
    assert_eq!(json!(seen), case["expect"]["pairs_name_valueB64"]);
}

/// The message as an edge frames it, read as the connector reads it.
pub(super) fn quic_connect_request_to_http(case: &Value) {
    let metadata = pairs(case, "metadata");
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let kind = if case["type"] == "websocket" { 1 } else { 0 };
    let decoded = decode_request(&request(kind, text(case, "dest"), &metadata));
    let expect = &case["expect"];
    assert_eq!(json!(decoded.is_ok()), expect["ok"], "{decoded:?}");
    let Ok(Head::Request(head)) = decoded else { return };
    assert_eq!(head.method.as_str(), text(expect, "method"));
    assert_eq!(head.host, text(expect, "host"));
    // Only path and query go to a service; whose they are says the host.
    let url: http::Uri = text(expect, "url").parse().unwrap();
    assert_eq!(head.target.as_str(), url.path_and_query().map_or("/", |target| target.as_str()));
    for (name, values) in expect["headers"].as_object().unwrap() {
        let seen: Vec<_> = head.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(json!(seen), *values, "{name}");
    }
    assert_eq!(head.headers.keys().count(), expect["headers"].as_object().unwrap().len(), "{:?}", head.headers);
    let length = match head.body {
        BodyLength::Known(length) => length,
        BodyLength::None | BodyLength::Unknown => 0,
    };
    assert_eq!(json!(length), expect["content_length"]);
    let has_body = head.websocket || matches!(head.body, BodyLength::Unknown | BodyLength::Known(1..));
    assert_eq!(json!(has_body), expect["has_body"]);
}

pub(super) fn bastion_destination(case: &Value) {
    let seen = match bastion::destination(text(case, "header_value")) {
        Ok((host, port)) if host.contains(':') => json!({ "ok": true, "dest": format!("[{host}]:{port}") }),
        Ok((host, port)) => json!({ "ok": true, "dest": format!("{host}:{port}") }),
        Err(error) => json!({ "ok": false, "error": format!("{error:?}") }),
    };
    assert_eq!(seen, case["expect"]);
}

pub(super) fn websocket_accept_key(case: &Value) {
    assert_eq!(accept_key(text(case, "key").as_bytes()), text(case, "accept"));
}

pub(super) fn edge_srv_name(case: &Value) {
    assert_eq!(srv_name(Some(text(case, "region"))), text(case, "srv"));
}

/// A connector over HTTP/2 whose only service runs `script`, and a WebSocket or an ordinary request to it.
async fn answer_of<F>(script: impl Fn(Peer) -> F + Send + Sync + 'static, kind: &str) -> (u16, HeaderMap)
where
    F: Future<Output = ()> + Send + 'static,
{
    let edge = RawEdge::new().await;
    let _connector = edge.connector(Over::Http2.as_str(), &rule(format!("http://{}", scripted(script).await))).await;
    let mut peer = edge.h2_peer().await;
    let mut asked = upgrade("GET", kind);
    asked.headers_mut().insert("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
    let (answer, _send) = peer.sender.send_request(asked, true).unwrap();
    let answer = soon("an answer", answer).await.unwrap();
    let packed = &answer.headers()[headers::RESPONSE_HEADERS];
    (answer.status().as_u16(), headers::unpack(packed.as_bytes()).unwrap())
}

/// A control header of a service does not reach the edge; what a WebSocket's visitor needs does, when one is accepted.
pub(super) async fn control_response_header(cases: Vec<Value>) -> Verdicts {
    async fn verdict(case: Value) -> Verdict {
        let name = text(&case, "lowercase_name").to_owned();
        let mut seen = json!({ "is_control": headers::is_control(&name) });
        // A name with a colon in it is none that a service could send, and framing is not a header to pass on.
        let sendable =
            !name.starts_with(':') && !["content-length", "transfer-encoding", "upgrade"].contains(&name.as_str());
        let line = if sendable { format!("{name}: sent\r\n") } else { String::new() };
        let ordinary = {
            let line = line.clone();
            answer_of(
                move |mut peer| {
                    let line = line.clone();
                    async move {
                        peer.head().await;
                        peer.send(format!("HTTP/1.1 200 OK\r\n{line}Content-Length: 0\r\n\r\n")).await;
                    }
                },
                "none",
            )
            .await
        };
        if sendable && ordinary.1.contains_key(&name) == (seen["is_control"] == true) {
            return Err(format!("in an ordinary answer: {:?}", ordinary.1));
        }
        let accepted = answer_of(
            |mut peer| async move {
                peer.head().await;
                let accept = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n";
                peer.send(format!("HTTP/1.1 101 Switching Protocols\r\n{accept}\r\n")).await;
                peer.ended().await;
            },
            "websocket",
        )
        .await;
        seen["is_websocket_client_header"] = json!(accepted.1.contains_key(name.trim_start_matches(':')));
        same(
            &seen,
            &json!({
                "is_control": case["is_control"],
                "is_websocket_client_header": case["is_websocket_client_header"],
            }),
        )
    }
    together(&cases, verdict).await
}

/// A service that sends its head and the first byte, and the second only when it is told to: what is flushed is seen
/// before that.
pub(super) async fn flush_decision(cases: Vec<Value>) -> Verdicts {
    async fn verdict(case: Value) -> Verdict {
        let lines: String =
            pairs(&case, "response_headers").iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let chunked = lines.contains("transfer-encoding");
        let has_length = lines.contains("content-length") && !chunked;
        let body = if has_length || chunked { "x" } else { "1\r\nx\r\n" };
        let framing = if has_length || chunked { "" } else { "transfer-encoding: chunked\r\n" };
        let head = format!("HTTP/1.1 200 OK\r\n{lines}{framing}\r\n");
        let length: usize = lines
            .split("content-length: ")
            .nth(1)
            .map_or(usize::MAX, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
        // With a length of one the byte would end the answer, and the end flushes anyway.
        let first = if length > 1 { format!("{head}{body}") } else { head };
        let edge = RawEdge::new().await;
        let service = scripted(move |mut peer| {
            let first = first.clone();
            async move {
                peer.head().await;
                peer.send(first).await;
                peer.ended().await;
            }
        });
        let _connector = edge.connector("http2", &rule(format!("http://{}", service.await))).await;
        let mut peer = edge.h2_peer().await;
        let (answer, _send) = peer.sender.send_request(h2_get("a.test", "/"), true).unwrap();
        let flushed = async {
            let answer = answer.await.map_err(|error| error.to_string())?;
            let mut body = answer.into_body();
            if length > 1 {
                body.data().await.ok_or("no data")?.map_err(|error| error.to_string())?;
            }
            Ok::<_, String>(())
        };
        // Long enough for a loaded machine, and only ever waited for when nothing is flushed.
        let seen = tokio::time::timeout(Duration::from_secs(5), flushed).await;
        same(&json!(matches!(seen, Ok(Ok(())))), &case["flush_every_write"])
    }
    together(&cases, verdict).await
}

/// What the connector takes a stream over HTTP/2 for, told by what the service or the edge then sees.
pub(super) async fn h2_stream_type(cases: Vec<Value>) -> Verdicts {
    let edge = RawEdge::new().await;
    let service = scripted(|mut peer| async move {
        while let Some((head, _)) = peer.request().await {
            let said = head.header("upgrade").unwrap_or("none");
            peer.send(format!("HTTP/1.1 200 OK\r\nX-Upgrade: {said}\r\nContent-Length: 0\r\n\r\n")).await;
        }
    });
    let _connector = edge.connector("http2", &rule(format!("http://{}", service.await))).await;
    let peer = edge.h2_peer().await;
    together(&cases, async |case| {
        let (name, value) = &pairs(&case, "headers")[0];
        let mut asked = h2_get("a.test", "/");
        *asked.method_mut() = http::Method::PUT;
        asked.headers_mut().insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        // What a configuration is, a service may have as well.
        let body = if value == "websocket" { "" } else { r#"{"version":-1,"config":{}}"# };
        let answer = peer.ask(asked, body).await.unwrap();
        let seen = match answer.head.headers.get(headers::RESPONSE_HEADERS) {
            Some(packed) => match headers::unpack(packed.as_bytes()).unwrap().get("x-upgrade") {
                Some(said) if said == "websocket" => "websocket",
                _ => "http",
            },
            None if answer.body.contains("lastAppliedVersion") => "configuration",
            None => "?",
        };
        same(&json!(seen), &case["type"])
    })
    .await
}

/// Which requests the access log marks as a load balancer's checks.
pub(super) fn lb_probe_user_agent(case: &Value) {
    let agent = text(case, "user_agent").parse().unwrap();
    assert_eq!(json!(adit::proxy::is_probe(&agent)), case["is_probe"]);
}
