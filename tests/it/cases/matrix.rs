//! Every kind of visitor at every kind of service, and rules that are told apart by host and path.

use adit::{proxy::frames::accept_key, wire::connect::Answer};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, protocol::Role},
};

use super::{Verdict, Verdicts, list, same, text, together};
use crate::{
    flows::{forward, works},
    harness::{
        Lab, Over, canned,
        peer::{Peer, scripted},
        rule,
    },
    raw_edge::{RawEdge, Reply},
    raw_service::{echo, get, h2_get},
    websocket::next,
    wire_craft::{on_a_stream, request},
};

/// A WebSocket service that puts `echo-` before each message, and refuses an origin that is not its own.
async fn websocket_service() -> std::net::SocketAddr {
    scripted(|mut peer: Peer| async move {
        let head = peer.head().await.unwrap();
        if head.header("origin").is_some() {
            peer.send(
                "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nSec-Websocket-Version: 13\r\n\
                 X-Content-Type-Options: nosniff\r\nContent-Length: 10\r\n\r\nForbidden\n",
            )
            .await;
            return;
        }
        let accept = accept_key(head.header("sec-websocket-key").unwrap().as_bytes());
        let own = head
            .header("test-cloudflared-echo")
            .map_or(String::new(), |text| format!("Test-Cloudflared-Echo: {text}\r\n"));
        let upgraded = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
        peer.send(format!("{upgraded}Sec-Websocket-Accept: {accept}\r\n{own}\r\n")).await;
        let mut socket = WebSocketStream::from_raw_socket(peer.io, Role::Server, None).await;
        while let Some(Ok(Message::Text(message))) = socket.next().await {
            if socket.send(Message::text(format!("echo-{message}"))).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// A TCP service that does the same with the first bytes it gets.
async fn tcp_service() -> std::net::SocketAddr {
    scripted(|mut peer| async move {
        let bytes = peer.some().await;
        peer.send([b"echo-", &bytes[..]].concat()).await;
        peer.ended().await;
    })
    .await
}

pub(super) async fn connections_matrix(cases: Vec<Value>) -> Verdicts {
    together(&cases, async |case| {
        let (quic, http2) = tokio::join!(connected(Over::Quic, &case), connected(Over::Http2, &case));
        quic.and(http2)
    })
    .await
}

async fn connected(over: Over, case: &Value) -> Verdict {
    let id = text(case, "id");
    let mut seen = match id {
        "conn:ws-ws" | "conn:ws-origin-refuses" => websocket_visitor(over, case).await,
        "conn:tcp-tcp" | "conn:tcp-ws" => tcp_visitor(over, case).await,
        "conn:tcp-origin-down" | "conn:tcp-rate-limited" => tcp_failure(over, case).await,
        _ => panic!("no such visitor: {case}"),
    };
    // What the record says nothing about is not compared.
    seen.retain(|key, _| case.get(key).is_some());
    let wanted: Map<_, _> = ["recv", "resp_headers", "error"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), case.get(key)?.clone())))
        .collect();
    same(&seen.into(), &wanted.into()).map_err(|why| format!("over {}: {why}", over.as_str()))
}

async fn websocket_visitor(over: Over, case: &Value) -> Map<String, Value> {
    let lab = Lab::start(over, &rule(format!("ws://{}", websocket_service().await))).await;
    let mut visitor = Peer::visit(lab.http).await;
    let own = case["headers_in"].as_object().unwrap().iter();
    let own: String = own.map(|(name, value)| format!("{name}: {}\r\n", value.as_str().unwrap())).collect();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    visitor.send(format!("GET / HTTP/1.1\r\nHost: web.test\r\n{upgrade}{own}\r\n")).await;
    let mut answer = visitor.answer_head().await;
    let recv = if answer.status == 101 {
        let mut socket = WebSocketStream::from_raw_socket(visitor.io, Role::Client, None).await;
        socket.send(Message::text(text(case, "send"))).await.unwrap();
        next(&mut socket).await.map(|message| message.into_text().unwrap().to_string())
    } else {
        assert_eq!(answer.status, 403);
        Some(String::from_utf8(visitor.exact(10).await).unwrap())
    };
    // The edge's own, and none of the connector's business.
    answer.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("date"));
    let wanted = case["resp_headers"].as_object().unwrap();
    let spelled = |name: &str| wanted.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned();
    let headers: Map<_, _> =
        answer.headers.into_iter().map(|(name, value)| (spelled(&name).unwrap_or(name), Value::from(value))).collect();
    lab.finish().await;
    Map::from_iter([
        ("recv".to_owned(), json!(recv)),
        ("resp_headers".to_owned(), headers.into()),
        ("error".to_owned(), false.into()),
    ])
}

async fn tcp_visitor(over: Over, case: &Value) -> Map<String, Value> {
    let lab = Lab::start(over, &rule("http_status:404")).await;
    let websocket = case["carries"] == "websocket handshake";
    let service = if websocket { websocket_service().await } else { tcp_service().await };
    let (mut stream, _outcome) = forward(&lab, service).await;
    let recv = if websocket {
        let (mut socket, _) = client_async("ws://web.test/", stream).await.unwrap();
        socket.send(Message::text(text(case, "send"))).await.unwrap();
        next(&mut socket).await.unwrap().into_text().unwrap().to_string()
    } else {
        stream.write_all(text(case, "send").as_bytes()).await.unwrap();
        let mut back = vec![0; text(case, "recv").len()];
        stream.read_exact(&mut back).await.unwrap();
        String::from_utf8(back).unwrap()
    };
    // A TCP stream that was connected has no headers of a service to carry.
    Map::from_iter([("recv".to_owned(), recv.into()), ("resp_headers".to_owned(), json!({}))])
}

async fn tcp_failure(over: Over, case: &Value) -> Map<String, Value> {
    let limited = case["flow_limit_reached"] == true;
    let limit = if limited { "warp-routing: {maxActiveFlows: 1}\n" } else { "" };
    let lab = Lab::start(over, &format!("{limit}{}", rule("http_status:404"))).await;
    let first: Option<(TcpStream, _)> = if limited {
        let (mut stream, outcome) = forward(&lab, echo().await).await;
        assert!(works(&mut stream).await);
        Some((stream, outcome))
    } else {
        None
    };
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (_stream, outcome) = forward(&lab, if limited { echo().await } else { gone }).await;
    let failed = outcome.await.unwrap().is_err();
    drop(first);
    Map::from_iter([("error".to_owned(), failed.into())])
}

/// Status and body of a `GET`, over either transport.
async fn asked(edge: &RawEdge, over: Over, urls: &[(&str, &str)]) -> Vec<(u16, String)> {
    let mut answers = Vec::new();
    match over {
        Over::Quic => {
            let peer = edge.quic_peer().await;
            for (host, path) in urls {
                match peer.ask(&get(host, path)).await {
                    Reply::Answered(Answer::Response(head), body) => {
                        answers.push((head.status.as_u16(), String::from_utf8(body).unwrap()));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        Over::Http2 => {
            let peer = edge.h2_peer().await;
            for (host, path) in urls {
                let answer = peer.ask(h2_get(host, path), "").await.unwrap();
                answers.push((answer.head.status.as_u16(), answer.body));
            }
        }
    }
    answers
}

pub(super) async fn multi_origin_routing(cases: Vec<Value>) -> Verdicts {
    together(&cases, async |case| {
        let created = canned("HTTP/1.1 201 Created\r\nContent-Length: 7\r\n\r\nCreated");
        let rules = case["rules"].to_string().replace("<created>", &format!("http://{}", created.await));
        for over in [Over::Quic, Over::Http2] {
            let edge = RawEdge::new().await;
            let _connector = edge.connector(over.as_str(), &format!("{{\"ingress\": {rules}}}")).await;
            let split = |asked: &Value| {
                let url = text(asked, "url").strip_prefix("http://").unwrap().to_owned();
                let (host, path) = url.split_at(url.find('/').unwrap_or(url.len()));
                (host.to_owned(), if path.is_empty() { "/".to_owned() } else { path.to_owned() })
            };
            let urls: Vec<_> = list(&case, "cases").iter().map(split).collect();
            let urls: Vec<_> = urls.iter().map(|(host, path)| (host.as_str(), path.as_str())).collect();
            let answers = asked(&edge, over, &urls).await;
            for (wanted, (status, body)) in list(&case, "cases").iter().zip(answers) {
                same(&json!({ "url": wanted["url"], "status": status, "body": body }), wanted)?;
            }
        }
        Ok(())
    })
    .await
}

/// Requests to a rule that demands Access, with the tokens of the record, which nobody signed.
pub(super) async fn access_jwt(cases: Vec<Value>) -> Verdicts {
    async fn statuses(audiences: &Value, token: Option<&str>) -> (Option<u16>, u16) {
        let options = json!({ "access": { "required": true, "teamName": "t", "audTag": audiences } });
        let yaml = json!({ "ingress": [{ "service": "http_status:200", "originRequest": options }] }).to_string();
        let edge = RawEdge::new().await;
        let _quic = edge.connector("quic", &yaml).await;
        let peer = edge.quic_peer().await;
        let mut metadata = vec![("HttpMethod", "GET"), ("HttpHost", "a.test")];
        metadata.extend(token.map(|token| ("HttpHeader:Cf-Access-Jwt-Assertion", token)));
        let over_quic = match peer.ask(&on_a_stream(&request(0, "http://a.test/", &metadata))).await {
            Reply::Answered(Answer::Response(head), _) => Some(head.status.as_u16()),
            _ => None,
        };
        let _http2 = edge.connector("http2", &yaml).await;
        let mut asked = h2_get("a.test", "/");
        if let Some(token) = token {
            asked.headers_mut().insert("cf-access-jwt-assertion", token.parse().unwrap());
        }
        let over_http2 = edge.h2_peer().await.ask(asked, "").await.unwrap();
        (over_quic, over_http2.head.status.as_u16())
    }
    together(&cases, async |case| {
        if !case["status"].is_null() {
            let (quic, http2) = statuses(&json!(["A"]), None).await;
            return same(&json!([quic, http2]), &json!([case["status"], case["status"]]));
        }
        if !case["status_http2"].is_null() {
            let (quic, http2) = statuses(&json!(["A"]), Some("abc")).await;
            let quic = quic.map_or(json!("connect error"), |status| json!(status));
            return same(&json!([quic, http2]), &json!([case["quic"], case["status_http2"]]));
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = json!({ "aud": case["token_aud"], "iss": "https://t.cloudflareaccess.com" });
        let token = format!("{}.{}.c2lnbmF0dXJl", part(&json!({ "alg": "RS256" })), part(&claims));
        let (quic, http2) = statuses(&case["configured"], Some(&token)).await;
        same(&json!([quic == Some(403), http2 == 403]), &json!([case["reject"], case["reject"]]))
    })
    .await
}
