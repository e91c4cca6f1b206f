//! SOCKS5 and bytes inside WebSockets.

use adit::wire::connect::Answer;
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{Verdict, Verdicts, same, text, together};
use crate::{
    flows::{to_address, to_name},
    harness::{Lab, Over, peer::scripted, rule},
    raw_edge::{RawEdge, Reply, reply, soon, upgrade},
    raw_http2::tcp,
    raw_service::{NOBODY, echo},
    websocket::{next, open},
    wire_craft::{on_a_stream, request},
};

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Runs a case over both transports.
async fn over_both(case: Value, run: impl AsyncFn(Over, &Value) -> Verdict) -> Verdict {
    let (quic, http2) = tokio::join!(run(Over::Quic, &case), run(Over::Http2, &case));
    quic.map_err(|why| format!("over QUIC, {why}"))?;
    http2.map_err(|why| format!("over HTTP/2, {why}"))
}

/// A visitor's SOCKS client at a rule of its own.
pub(super) async fn socks5(cases: Vec<Value>) -> Verdicts {
    together(&cases, async |case| over_both(case, socks).await).await
}

async fn socks(over: Over, case: &Value) -> Verdict {
    let (told, mut ended) = mpsc::channel(1);
    let service = scripted(move |mut peer| {
        let told = told.clone();
        async move {
            peer.ended().await;
            let _ = told.send(()).await;
        }
    })
    .await;
    // The record's service and its closed port, where this test has them.
    let here = case.to_string().replace("18090", &service.port().to_string()).replace("127.0.0.1:1337", NOBODY);
    let case: Value = serde_json::from_str(&here).unwrap();
    let all = json!([{ "prefix": "127.0.0.0/8", "allow": true }]);
    // Cases without rules are about something else, but for the one about having none.
    let rules = match (&case["rules"], text(&case, "id")) {
        (Value::Null, "socks:denied-by-rule") => &json!([]),
        (Value::Null, _) => &all,
        (rules, _) => rules,
    };
    let mut config = json!({ "ingress": [{ "service": "socks-proxy", "originRequest": { "ipRules": rules } }] });
    if !case["toplevel_rules"].is_null() {
        config["originRequest"] = json!({ "ipRules": case["toplevel_rules"] });
    }
    let lab = Lab::start(over, &config.to_string()).await;
    let verdict = if let Some(greeting) = case["send_hex"].as_str() {
        let (mut socket, _) = open(&lab).await.unwrap();
        socket.send(Message::binary(unhex(greeting))).await.unwrap();
        same(
            &json!(next(&mut socket).await.map(|said| said.into_data().to_vec())),
            &json!(unhex(text(&case, "recv_hex"))),
        )
    } else {
        let dest = case["dest"].as_str().unwrap_or(NOBODY);
        let command = case["command"].as_u64().unwrap_or(1) as u8;
        let asked = match dest.parse() {
            Ok(addr) => to_address(command, addr),
            Err(_) => to_name(dest.split(':').next().unwrap(), service.port()),
        };
        if case["origin_connection_after_client_left"].is_null() {
            let (code, _socket) = crate::flows::socks(&lab, &asked).await;
            same(&json!(code), &case["reply"])
        } else {
            let (code, socket) = crate::flows::socks(&lab, &to_address(1, service)).await;
            assert_eq!(code, 0);
            drop(socket);
            let closed = tokio::time::timeout(std::time::Duration::from_secs(10), ended.recv()).await.is_ok();
            let seen = if closed { "closed" } else { "open" };
            same(&json!(seen), &case["origin_connection_after_client_left"])
        }
    };
    lab.finish().await;
    verdict
}

/// A visitor's WebSocket at a TCP service, and streams that are none.
pub(super) async fn tcp_over_websocket(cases: Vec<Value>) -> Verdicts {
    together(&cases, async |case| match text(&case, "id") {
        "tcpws:no-key" => without_key(&case).await,
        "tcp:half-close" => Box::pin(over_both(case, half_close)).await,
        _ => over_both(case, frames).await,
    })
    .await
}

async fn frames(over: Over, case: &Value) -> Verdict {
    let (told, mut delivered) = mpsc::channel(1);
    let service = scripted(move |mut peer| {
        let told = told.clone();
        async move {
            let bytes = peer.rest().await;
            let _ = told.send(bytes.len()).await;
        }
    });
    let lab = Lab::start(over, &rule(format!("tcp://{}", service.await))).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    let sent = &case["send"];
    let bytes = || vec![b'x'; sent["len"].as_u64().unwrap() as usize];
    let message = match text(sent, "op") {
        "binary" => Message::binary(bytes()),
        "text" => Message::text(String::from_utf8(bytes()).unwrap()),
        "ping" => Message::Ping(text(sent, "payload").to_owned().into()),
        "close" => {
            let code = CloseCode::from(sent["code"].as_u64().unwrap() as u16);
            Message::Close(Some(CloseFrame { code, reason: "".into() }))
        }
        op => panic!("{op}"),
    };
    socket.send(message).await.unwrap();
    let seen = if case["reply"].is_null() {
        socket.send(Message::Close(None)).await.unwrap();
        json!({ "delivered": soon("the service's end", delivered.recv()).await })
    } else {
        let said = match next(&mut socket).await {
            Some(Message::Pong(payload)) => json!({ "op": "pong", "payload": String::from_utf8_lossy(&payload) }),
            Some(Message::Close(Some(frame))) => json!({ "op": "close", "code": u16::from(frame.code) }),
            other => panic!("{other:?}"),
        };
        json!({ "reply": said })
    };
    let wanted = if case["reply"].is_null() { "delivered" } else { "reply" };
    drop(socket);
    lab.finish().await;
    same(&seen[wanted], &case[wanted])
}

/// A WebSocket stream of an edge whose visitor sent no key.
async fn without_key(case: &Value) -> Verdict {
    assert_eq!(case["key"], false);
    let edge = RawEdge::new().await;
    let _connector = edge.connector("http2", &rule(format!("tcp://{}", echo().await))).await;
    let peer = edge.h2_peer().await;
    let mut sender = soon("a stream", peer.sender.clone().ready()).await.unwrap();
    let (answer, _send) = sender.send_request(upgrade("GET", "websocket"), false).unwrap();
    let answer = soon("an answer", answer).await.unwrap();
    same(&json!(answer.status().as_u16()), &case["status"])
}

/// A private TCP stream whose visitor ends first, and whose service speaks after that.
async fn half_close(over: Over, case: &Value) -> Verdict {
    let service = crate::harness::service(|mut stream| async move {
        let mut all = Vec::new();
        if stream.read_to_end(&mut all).await.is_ok() && all == b"question" {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"answer").await;
        }
    })
    .await
    .to_string();
    let edge = RawEdge::new().await;
    let _connector = edge.connector(over.as_str(), &rule("http_status:404")).await;
    let answer = match over {
        Over::Quic => {
            let peer = edge.quic_peer().await;
            let asked = [on_a_stream(&request(2, &service, &[])), b"question".to_vec()].concat();
            let (_send, recv) = peer.open(&asked, true).await;
            match reply(recv).await {
                Reply::Answered(Answer::Connected, body) => body,
                other => panic!("{other:?}"),
            }
        }
        Over::Http2 => edge.h2_peer().await.ask(tcp(&service), "question").await.unwrap().body.into_bytes(),
    };
    let seen = if answer == b"answer" { "delivered" } else { "lost" };
    same(&json!(seen), &case["reply_after_half_close"])
}
