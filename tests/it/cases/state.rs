//! What the connector makes of its connections: readiness, pushed rules, waits, refusals.

use std::time::Duration;

use adit::{
    backoff::Backoff,
    config::{Ingress, OriginOptions, WarpRouting, local_push},
    wire::registration::{EdgeCall, Refusal},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::mpsc,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

use super::{Verdict, Verdicts, list, process::Program, same, text, together};
use crate::{
    harness::{Answer, LIMIT, eventually, rule},
    raw_edge::{QuicPeer, RawEdge, Running, Udp, accept, registered, soon},
    raw_service::{echo, get},
    wire_craft::{on_a_stream, request},
};

/// `/ready` as it is; a connector whose last connection is gone ends, and nobody is not ready either.
async fn ready(connector: &Running) -> Value {
    let Ok(mut stream) = TcpStream::connect(connector.admin).await else { return json!([503, 0]) };
    let mut bytes = Vec::new();
    let asked = stream.write_all(b"GET /ready HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").await;
    if asked.is_err() || stream.read_to_end(&mut bytes).await.is_err() || bytes.is_empty() {
        return json!([503, 0]);
    }
    let answer = Answer::parse(&bytes);
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["status"], answer.status);
    json!([answer.status, body["readyConnections"]])
}

/// An edge's half of connections of one connector, by index; those that nobody asked for wait unanswered.
struct Connections<'a> {
    edge: &'a RawEdge,
    waiting: Vec<(u8, quinn::Connection, mpsc::Receiver<EdgeCall>, EdgeCall)>,
    open: Vec<(u8, quinn::Connection, mpsc::Receiver<EdgeCall>)>,
}

impl Connections<'_> {
    /// The next registration of that index is answered.
    async fn connect(&mut self, index: u8) {
        loop {
            if let Some(at) = self.waiting.iter().rposition(|waiting| waiting.0 == index) {
                let (_, connection, calls, call) = self.waiting.remove(at);
                let EdgeCall::Register(_, reply) = call else { unreachable!() };
                if reply.send(Ok(registered(true))).is_ok() && connection.close_reason().is_none() {
                    return self.open.push((index, connection, calls));
                }
                continue;
            }
            self.arrive().await;
        }
    }

    async fn arrive(&mut self) {
        let connection = self.edge.accept_quic().await;
        let Ok((send, recv)) = soon("the control stream", connection.accept_bi()).await else { return };
        let mut calls = self.edge.control(recv, send);
        let Some(call) = soon("a registration", calls.recv()).await else { return };
        if let EdgeCall::Register(registration, _) = &call {
            self.waiting.push((registration.index, connection, calls, call));
        }
    }

    fn close(&mut self, index: u8) {
        self.open.retain(|(known, connection, _)| {
            if *known == index {
                connection.close(0u32.into(), b"");
            }
            *known != index
        });
    }
}

pub(super) async fn readiness(cases: Vec<Value>) -> Verdicts {
    together(&cases, async |case| match text(&case, "id") {
        "readiness:sequence" => sequence(&case).await,
        "readiness:body-shape" => body_shape(&case).await,
        _ => panic!("{case}"),
    })
    .await
}

async fn sequence(case: &Value) -> Verdict {
    let edge = RawEdge::new().await;
    let two = |flags: adit::config::Flags| flags.with("ha-connections", "2").with("grace-period", "20s");
    let connector = edge.connector_with("quic", &rule("http_status:200"), two).await;
    let mut connections = Connections { edge: &edge, waiting: Vec::new(), open: Vec::new() };
    for step in list(case, "steps") {
        let event = step["event"].as_str().unwrap_or("none#0");
        let (what, number) = event.split_once('#').unwrap();
        // Indices count from 0.
        let index = number.parse::<u8>().unwrap().wrapping_sub(1);
        match what {
            "none" => {}
            "connected" => connections.connect(index).await,
            // Lost; another attempt is on its way and not answered.
            "reconnecting" | "registering" | "disconnected" => connections.close(index),
            "unregistering" => connector.tasks.drain(),
            other => panic!("{other}"),
        }
        let wanted = json!([step["status"], step["ready"]]);
        let told = tokio::time::timeout(LIMIT, async {
            while ready(&connector).await != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if told.await.is_err() {
            return Err(format!("after {event}: {}, should be {wanted}", ready(&connector).await));
        }
    }
    Ok(())
}

async fn body_shape(case: &Value) -> Verdict {
    let edge = RawEdge::new().await;
    let connector = edge.connector("quic", &rule("http_status:200")).await;
    let mut stream = TcpStream::connect(connector.admin).await.unwrap();
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let answer = Answer::parse(&bytes);
    let body = answer.text();
    let keys = list(case, "body_keys").iter().map(|key| body.find(&format!("\"{}\":", key.as_str().unwrap())));
    let places: Vec<_> = keys.collect();
    if places.iter().any(Option::is_none) || !places.is_sorted() || top_level(&body) != places.len() {
        return Err(body);
    }
    same(&json!(answer.header("content-type")), &case["content_type"])
}

fn top_level(json: &str) -> usize {
    serde_json::from_str::<Value>(json).unwrap().as_object().unwrap().len()
}

pub(super) async fn remote_config_update(cases: Vec<Value>) -> Verdicts {
    together(&cases, async |case| match text(&case, "id") {
        "remote:older-version-noop" => versions(&case).await,
        "remote:max-active-flows-local-wins" => flow_limit(&case).await,
        "remote:local-export-empty" => empty_export(&case),
        "remote:live-streams-survive-update" => live_streams(&case).await,
        "remote:hello-server-stopped" => hello(&case).await,
        _ => panic!("{case}"),
    })
    .await
}

const NOTHING: &str = r#"{"ingress":[{"service":"http_status:404"}]}"#;

async fn versions(case: &Value) -> Verdict {
    let edge = RawEdge::new().await;
    let _connector = edge.connector("quic", &rule("http_status:200")).await;
    let peer = edge.quic_peer().await;
    for step in list(case, "steps") {
        let config = match &step["config"] {
            Value::String(text) => text.as_str(),
            // An older version is not even looked at.
            Value::Null if step.get("config").is_some() => "null",
            _ => NOTHING,
        };
        let applied = peer.push(step["version"].as_i64().unwrap() as i32, config).await.unwrap();
        let seen = json!([applied.version, !applied.error.is_empty()]);
        same(&seen, &json!([step["last_applied"], step["error"]])).map_err(|why| format!("{step}: {why}"))?;
    }
    Ok(())
}

async fn flow_limit(case: &Value) -> Verdict {
    let edge = RawEdge::new().await;
    let limit = case["local_flag"].to_string();
    let flags = |flags: adit::config::Flags| flags.with("max-active-flows", &limit);
    let yaml = format!("warp-routing: {{maxActiveFlows: {}}}\n{}", case["initial"], rule("http_status:200"));
    let connector = edge.connector_with("quic", &yaml, flags).await;
    let peer = edge.quic_peer().await;
    let pushed = json!({
        "ingress": [{ "service": "http_status:404" }],
        "warp-routing": { "maxActiveFlows": case["remote"] },
    });
    assert_eq!(peer.push(1, &pushed.to_string()).await.unwrap().error, "");
    let page: Value = serde_json::from_str(&connector.page("/config").await.1).unwrap();
    assert_eq!(page["version"], 1);
    same(&page["config"]["warp-routing"]["maxActiveFlows"], &case["effective"])
}

fn empty_export(case: &Value) -> Verdict {
    let none = Ingress { rules: Vec::new(), defaults: OriginOptions::default() };
    let zero = WarpRouting { connect_timeout: Duration::ZERO, tcp_keep_alive: Duration::ZERO, max_active_flows: 0 };
    let flags = case["flags"].as_object().unwrap().iter();
    let flags: Vec<_> = flags.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    same(&serde_json::from_str(&local_push(Some(&none), &zero, &flags)).unwrap(), &case["export"])
}

async fn status_of(peer: &QuicPeer, path: &str) -> u16 {
    match peer.ask(&get("a.test", path)).await {
        crate::raw_edge::Reply::Answered(adit::wire::connect::Answer::Response(head), _) => head.status.as_u16(),
        other => panic!("{other:?}"),
    }
}

/// Two streams that were open before their rule went, each asked for an echo after it.
async fn live_streams(case: &Value) -> Verdict {
    let websocket = crate::harness::peer::scripted(|peer| async move {
        let mut socket = tokio_tungstenite::accept_async(peer.io).await.unwrap();
        while let Some(Ok(message)) = futures_util::StreamExt::next(&mut socket).await {
            if futures_util::SinkExt::send(&mut socket, message).await.is_err() {
                return;
            }
        }
    })
    .await;
    let edge = RawEdge::new().await;
    let _connector = edge.connector("quic", &rule(format!("ws://{websocket}"))).await;
    let peer = edge.quic_peer().await;
    let key = ("HttpHeader:Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let asked = request(1, "http://a.test/", &[("HttpMethod", "GET"), ("HttpHost", "a.test"), key]);
    let (send, recv) = peer.open(&on_a_stream(&asked), false).await;
    let mut socket = established(send, recv).await;
    let (mut send, recv) = peer.open(&on_a_stream(&request(2, &echo().await.to_string(), &[])), false).await;
    let mut tcp = Established::new(recv).await;
    assert_eq!(peer.push(7, NOTHING).await.unwrap().error, "");
    eventually("the new rules are in force", async || status_of(&peer, "/").await == 404).await;
    let message = tokio_tungstenite::tungstenite::Message::text("still there");
    futures_util::SinkExt::send(&mut socket, message.clone()).await.unwrap();
    let back = soon("an echo", futures_util::StreamExt::next(&mut socket)).await;
    send.write_all(b"there").await.unwrap();
    let mut echoed = [0; 5];
    soon("an echo", tcp.read_exact(&mut echoed)).await.unwrap();
    let flows = back.is_some_and(|said| said.is_ok_and(|said| said == message)) && &echoed == b"there";
    assert_eq!(case["streams"], json!(["websocket", "tcp"]));
    same(&json!(flows), &case["flow_after_update"])
}

/// A stream whose answer has been read; what follows is its payload.
struct Established {
    recv: quinn::RecvStream,
    ahead: Vec<u8>,
}

impl Established {
    async fn new(mut recv: quinn::RecvStream) -> Self {
        let mut collector = adit::wire::connect::Collector::default();
        loop {
            let chunk = soon("an answer", recv.read_chunk(4096, true)).await.unwrap().expect("an answer");
            collector.push(chunk.bytes);
            if let Some((_, rest)) = collector.message().unwrap() {
                return Self { recv, ahead: rest.to_vec() };
            }
        }
    }

    async fn read_exact(&mut self, into: &mut [u8]) -> Result<(), quinn::ReadExactError> {
        let ahead = self.ahead.len().min(into.len());
        into[..ahead].copy_from_slice(&self.ahead[..ahead]);
        self.ahead.drain(..ahead);
        self.recv.read_exact(&mut into[ahead..]).await
    }
}

async fn established(
    send: quinn::SendStream,
    recv: quinn::RecvStream,
) -> WebSocketStream<tokio::io::Join<quinn::RecvStream, quinn::SendStream>> {
    let Established { recv, ahead } = Established::new(recv).await;
    WebSocketStream::from_partially_read(tokio::io::join(recv, send), ahead, Role::Client, None).await
}

/// The built-in page of a version that was replaced answers no more; there is no server of its own that could.
async fn hello(case: &Value) -> Verdict {
    let edge = RawEdge::new().await;
    let _connector = edge.connector("quic", &rule("http_status:200")).await;
    let peer = edge.quic_peer().await;
    assert_eq!(peer.push(1, r#"{"ingress":[{"service":"hello_world"}]}"#).await.unwrap().error, "");
    eventually("the page is there", async || status_of(&peer, "/_health").await == 200).await;
    assert_eq!(peer.push(2, NOTHING).await.unwrap().error, "");
    let seen = if status_of(&peer, "/_health").await == 404 { "gone" } else { "there" };
    same(&json!(seen), &case["hello_world_after_update"])
}

pub(super) async fn reconnect_backoff(cases: Vec<Value>) -> Verdicts {
    together(&cases, async |case| match text(&case, "id") {
        "backoff:max-wait-by-attempt" => longest_waits(&case),
        "backoff:protocol-fallback" => Box::pin(fallback(&case)).await,
        _ => panic!("{case}"),
    })
    .await
}

fn longest_waits(case: &Value) -> Verdict {
    let mut waits = Backoff::of_refusals(case["retries"].as_u64().unwrap() as u8);
    let bounds = list(case, "max_wait_s").iter().map(|_| {
        let bound = waits.bound();
        // Uniform from zero on: all of them at the top would be no jitter.
        assert!((0..64).any(|_| waits.clone().next_wait() < bound / 2) && waits.next_wait() < bound);
        bound.as_secs()
    });
    let bounds: Vec<_> = bounds.collect();
    let seen = json!({
        "max_wait_s": bounds,
        "first_max_wait_after_success_s": Backoff::of_outages().bound().as_secs_f64(),
    });
    let first = case["first_max_wait_after_success_s"].as_f64();
    same(&seen, &json!({ "max_wait_s": case["max_wait_s"], "first_max_wait_after_success_s": first }))
}

/// Towards an edge that swallows UDP: which protocols end up on TCP.
async fn fallback(case: &Value) -> Verdict {
    let over_tcp = async |protocol: &str| {
        let edge = RawEdge::without_quic().await;
        let _connector = edge.connector(protocol, &rule("http_status:200")).await;
        match protocol {
            // Longer than `auto` may take.
            "quic" => tokio::time::timeout(Duration::from_secs(3), edge.tcp.accept()).await.is_ok(),
            _ => {
                edge.h2_peer().await;
                true
            }
        }
    };
    let over_udp = async |protocol: &str| {
        let edge = RawEdge::without_quic().await;
        let _connector = edge.connector(protocol, &rule("http_status:200")).await;
        let Udp::Silent(socket) = &edge.udp else { unreachable!() };
        let mut packet = [0; 2048];
        if protocol == "http2" {
            edge.h2_peer().await;
            return socket.try_recv(&mut packet).is_ok();
        }
        soon("a packet", socket.recv(&mut packet)).await.unwrap();
        true
    };
    let (auto, quic, asks, http2) =
        tokio::join!(over_tcp("auto"), over_tcp("quic"), over_udp("auto"), over_udp("http2"));
    assert!(asks && !http2, "QUIC is asked first by `auto`, and never by `http2`");
    let other = |fell: bool| fell.then_some("http2");
    same(&json!({ "auto": other(auto), "quic": other(quic), "http2": null }), &case["fallback"])
}

/// What the program does and says about a refusal of the edge, over the transport of the case.
pub(super) async fn registration_failure(cases: Vec<Value>) -> Verdicts {
    together(&cases, async |case| {
        let kind = text(&case, "edge_error");
        let cause = match kind {
            "EDUPCONN" => "EDUPCONN",
            _ => "the words of the edge itself",
        };
        let refuse = || Refusal { cause: cause.into(), retry_after: Duration::ZERO, should_retry: kind != "permanent" };
        let edge = RawEdge::new().await;
        let mut program = Program::run(&edge, text(&case, "transport"), &rule("http_status:200"), &[]);
        let mut log = BufReader::new(program.child.stderr.take().unwrap()).lines();
        // The second attempt proves that the program neither ended nor hangs; the third, that it goes on.
        for _ in 0..2 {
            if text(&case, "transport") == "quic" {
                let connection = edge.accept_quic().await;
                let (send, recv) = soon("the control stream", connection.accept_bi()).await.unwrap();
                accept(&mut edge.control(recv, send), Err(refuse())).await;
                soon("the connector closes", connection.closed()).await;
            } else {
                let (mut sender, end) = edge.h2().await;
                accept(&mut edge.h2_control(&mut sender).await, Err(refuse())).await;
                // The edge leaves it open; a socket that nobody needs is not left hanging.
                let _ = soon("the connector closes", end).await;
            }
        }
        let logged = soon("a line about the refusal", async {
            while let Some(line) = log.next_line().await.unwrap() {
                if line.contains(cause) {
                    return true;
                }
            }
            false
        });
        let seen = json!({ "process": "retries", "reason_logged": logged.await });
        assert!(program.child.try_wait().unwrap().is_none(), "the program ended");
        same(&seen, &json!({ "process": case["process"], "reason_logged": case["reason_logged"] }))
    })
    .await
}
