//! A connector on the wire over QUIC, driven by an edge that is strict, careless or hostile.

use std::time::Duration;

use adit::{
    metrics::Metrics,
    wire::{
        connect::{Answer, DATA_SIGNATURE, RPC_SIGNATURE, encode_request},
        registration::EdgeCall,
    },
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    raw_edge::{Hello, QuicPeer, RawEdge, Reply, Running, accept, registered, reply, soon},
    raw_service::{NOBODY, echo, get, rules},
    wire_craft::{on_a_stream, request, segments},
    wire_vectors::{group, unhex},
};

async fn start() -> (RawEdge, Running, QuicPeer) {
    let edge = RawEdge::new().await;
    let connector = edge.connector("quic", &rules().await).await;
    let peer = edge.quic_peer().await;
    (edge, connector, peer)
}

fn malformed(metrics: &Metrics) -> u64 {
    let exposed = metrics.expose();
    let line = exposed.lines().find(|line| !line.starts_with('#') && line.contains("malformed"));
    line.expect("a count of malformed streams").rsplit(' ').next().unwrap().parse().unwrap()
}

/// The request of a `quic.behaviour` vector.
fn behaviour(vector: &Value) -> Vec<u8> {
    let asked = &vector["request"];
    if let Some(bytes) = asked["bytes_hex"].as_str() {
        return unhex(bytes);
    }
    let entries = asked["metadata"].as_array().cloned().unwrap_or_default();
    let mut metadata: Vec<_> =
        entries.iter().map(|entry| (entry[0].as_str().unwrap(), entry[1].as_str().unwrap())).collect();
    let name = vector["name"].as_str().unwrap();
    match name {
        "origin_down" => metadata.push(("HttpHost", "down.example.com")),
        "origin_aborts_after_headers" => metadata.push(("HttpHost", "app.example.com")),
        _ => {}
    }
    let path = if name == "origin_aborts_after_headers" { "/abort" } else { "/echo" };
    let dest = asked["dest"].as_str().unwrap_or(path);
    let message = request(if asked["type"] == "tcp" { 2 } else { 0 }, dest, &metadata);
    [on_a_stream(&message), asked["body"].as_str().unwrap_or_default().into()].concat()
}

#[tokio::test]
async fn a_connector_reacts_as_cloudflared_was_seen_to() {
    let (_edge, _connector, peer) = start().await;
    let vectors = group("quic.behaviour");
    assert_eq!(vectors.len(), 9);
    for vector in vectors {
        let name = vector["name"].as_str().unwrap();
        let expected = vector["expect"]["connect_response"]["error"].as_str().unwrap_or_default();
        let got = peer.ask(&behaviour(&vector)).await;
        let seen = |body: &[u8]| String::from_utf8(body.to_vec()).unwrap().to_lowercase();
        match (name, &got) {
            ("http_no_length_drops_body", Reply::Answered(Answer::Response(head), body)) => {
                assert_eq!(head.status, 200, "{name}");
                let seen = seen(body);
                assert!(seen.ends_with("\r\n\r\n") && !seen.contains("transfer-encoding"), "{name}: {seen}");
            }
            ("http_content_length", Reply::Answered(Answer::Response(_), body)) => {
                let seen = seen(body);
                assert!(seen.contains("\r\ncontent-length: 4\r\n") && seen.ends_with("\r\n\r\nbody"), "{name}: {seen}");
            }
            ("http_chunked", Reply::Answered(Answer::Response(_), body)) => {
                let seen = seen(body);
                assert!(seen.contains("\r\ntransfer-encoding: chunked\r\n"), "{name}: {seen}");
                assert!(seen.ends_with("\r\n\r\n4\r\nbody\r\n0\r\n\r\n"), "{name}: {seen}");
            }
            // adit tells the visitor's status and its reason where cloudflared tells the edge a text.
            ("origin_down", Reply::Answered(Answer::Response(head), body)) => {
                assert_eq!(
                    (head.status.as_u16(), &head.headers["adit-error"]),
                    (502, &"origin-unreachable".parse().unwrap())
                );
                assert!(body.is_empty());
            }
            ("origin_aborts_after_headers" | "unknown_signature", Reply::Reset(0)) => {}
            ("header_key_with_two_colons", Reply::Answered(Answer::Failed { error, .. }, _)) => {
                assert!(expected.ends_with("malformed") && error.ends_with("malformed"), "{error}");
            }
            ("tcp_refused", Reply::Answered(Answer::Failed { error, rate_limited }, _)) => {
                let start = "unable to dial tcp to origin 127.0.0.1:1: ";
                assert!(expected.starts_with(start) && error.starts_with(start) && !rate_limited, "{error}");
            }
            ("tcp_hostname_dest", Reply::Answered(Answer::Failed { error, .. }, _)) => assert!(!error.is_empty()),
            _ => panic!("{name}: {got:?}"),
        }
        peer.serves(name).await;
    }
}

#[tokio::test]
async fn an_unknown_signature_is_both_reset_and_stopped_with_code_zero() {
    let (_edge, connector, peer) = start().await;
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], &[0x0a, 0x36, 0xcd, 0x12, 0xa1, 0x3f], &[0x52, 0], &[0; 4096]] {
        let (send, mut recv) = peer.open(bytes, false).await;
        assert_eq!(soon("STOP_SENDING", send.stopped()).await.unwrap(), Some(0u32.into()), "{bytes:02x?}");
        let mut buffer = [0; 16];
        match soon("RESET_STREAM", recv.read(&mut buffer)).await {
            Err(quinn::ReadError::Reset(code)) => assert_eq!(code.into_inner(), 0, "{bytes:02x?}"),
            other => panic!("{bytes:02x?}: {other:?}"),
        }
    }
    peer.serves("unknown signatures").await;
    assert_eq!(malformed(&connector.metrics), 4);
}

#[tokio::test]
async fn hostile_heads_cost_their_stream_and_nothing_else() {
    let (_edge, _connector, peer) = start().await;
    let host = ("HttpHost", "app.example.com");
    let many = vec![("HttpHeader:X-A", "1"); 9000];
    let data = |bytes: &[u8]| on_a_stream(bytes);
    for (what, stream) in [
        ("a first segment without a word", data(&[0; 8])),
        ("an empty and a full segment", data(&segments(&[&[], &[0; 4]]))),
        ("2^32 segments", data(&[0xff; 64])),
        ("63 MiB", data(&[&[0, 0, 0, 0][..], &(63u32 << 17).to_le_bytes(), &[1; 4096]].concat())),
        ("a root that is a list", data(&segments(&[&[1, 0, 0]]))),
        ("a far pointer to itself", data(&segments(&[&[2]]))),
        ("type 3", data(&request(3, "/", &[host]))),
        ("type 65535", data(&request(u16::MAX, "/", &[host]))),
        ("9000 headers", data(&request(0, "/", &many))),
        (
            "two lengths",
            data(&request(0, "/", &[host, ("HttpHeader:Content-Length", "1"), ("HttpHeader:Content-Length", "2")])),
        ),
        ("a line end in a value", data(&request(0, "/", &[host, ("HttpHeader:A", "b\r\nc")]))),
        ("a line end in the path", data(&request(0, "/ HTTP/1.1\r\n\r\n", &[host]))),
        ("no method at all", data(&request(0, "/", &[host, ("HttpMethod", "\0")]))),
        ("nothing", Vec::new()),
        ("an end inside the signature", DATA_SIGNATURE[..3].to_vec()),
        ("an end inside the message", get("app.example.com", "/")[..30].to_vec()),
        ("an end after the RPC signature", RPC_SIGNATURE.to_vec()),
        ("an RPC message without a word", [&RPC_SIGNATURE[..], &[0; 8]].concat()),
        ("an RPC message of 32 GiB", [&RPC_SIGNATURE[..], &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]].concat()),
        ("noise as RPC", [&RPC_SIGNATURE[..], &[0x55; 4096]].concat()),
    ] {
        let (_send, recv) = peer.open(&stream, true).await;
        if what.contains("RPC") {
            // An end in good order or a reset: either is an end.
            let mut recv = recv;
            let _ = soon(what, recv.read_to_end(1 << 20)).await;
        } else {
            match reply(recv).await {
                Reply::Reset(0) | Reply::Answered(Answer::Failed { .. }, _) => {}
                other => panic!("{what}: {other:?}"),
            }
        }
        peer.serves(what).await;
    }
}

#[tokio::test]
async fn streams_that_stop_inside_their_head_hold_up_nobody() {
    let (_edge, _connector, peer) = start().await;
    let head = get("app.example.com", "/");
    let mut open = Vec::new();
    for cut in [1, 5, 6, 7, 8, 11, 12, 15, 16, 40, head.len() - 1] {
        open.push(peer.open(&head[..cut], false).await);
    }
    peer.serves("stopped streams").await;
    // Each of them can still go on.
    for ((mut send, recv), cut) in open.into_iter().zip([1, 5, 6, 7, 8, 11, 12, 15, 16, 40, head.len() - 1]) {
        send.write_all(&head[cut..]).await.unwrap();
        send.finish().unwrap();
        let Reply::Answered(Answer::Response(answer), _) = reply(recv).await else { panic!("cut at {cut}") };
        assert_eq!(answer.status, 200, "cut at {cut}");
    }
}

#[tokio::test]
async fn the_control_stream_is_the_first_one_and_has_no_signature() {
    let edge = RawEdge::new().await;
    let connector = edge.connector("quic", &rules().await).await;
    let connection = edge.accept_quic().await;
    let (send, mut recv) = soon("the control stream", connection.accept_bi()).await.unwrap();
    assert_eq!((recv.id().index(), recv.id().initiator()), (0, quinn::Side::Client));
    // One segment of five words: the Bootstrap, to the byte as in the vectors.
    let bootstrap = unhex(group("rpc.registration")[0]["register_phase"]["client_messages_hex"][0].as_str().unwrap());
    let mut first = vec![0; bootstrap.len()];
    soon("the bootstrap", recv.read_exact(&mut first)).await.unwrap();
    assert_eq!(first[8..20], bootstrap[8..20], "{first:02x?}");
    let mut calls = edge.control(std::io::Cursor::new(first).chain(recv), send);
    let registration = accept(&mut calls, Ok(registered(false))).await;
    assert_eq!((registration.account.as_str(), &registration.secret[..]), ("account", &[7; 32][..]));
    assert_eq!((registration.tunnel, registration.index), (uuid::Uuid::from_u128(7), 0));
    assert_eq!((registration.connector, registration.previous_attempts), (connector.id, 0));
    assert_eq!(registration.local_ip, Some(edge.addr.ip()), "on QUIC the edge's own address");
    assert!(registration.features.contains(&"serialized_headers".to_owned()), "{:?}", registration.features);
    assert!(!registration.features.iter().any(|feature| feature.contains("v3")), "{:?}", registration.features);
    // A tunnel without pushed rules hears the local ones from connection 0, once.
    let Some(EdgeCall::LocalConfiguration(json)) = soon("the local rules", calls.recv()).await else { panic!() };
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["ingress"].as_array().unwrap().len(), 4);
    assert_eq!(json["ingress"][2]["service"], "http_status:418");
}

#[tokio::test]
async fn the_client_hello_over_quic_is_the_peers() {
    for name in ["quic", "quic_post_quantum_strict"] {
        let mut edge = RawEdge::new().await;
        let strict = if name == "quic" { "false" } else { "true" };
        let yaml = rules().await;
        let _connector = edge.connector_with("quic", &yaml, |flags| flags.with("post-quantum", strict)).await;
        let peer = edge.quic_peer().await;
        let Hello { server_name, alpn, groups, suites } = soon("a hello", edge.hellos.recv()).await.unwrap();
        let vector = group("tls.client_hello").into_iter().find(|vector| vector["name"] == name).unwrap();
        assert_eq!(server_name.as_deref(), vector["sni"].as_str());
        assert_eq!(alpn, [b"argotunnel"]);
        let groups: Vec<_> = groups.iter().map(|group| format!("({group:#06x})")).collect();
        for (group, wanted) in groups.iter().zip(vector["groups"].as_array().unwrap()) {
            assert!(wanted.as_str().unwrap().ends_with(group), "{groups:?}");
        }
        assert_eq!(groups.len(), vector["groups"].as_array().unwrap().len(), "{groups:?}");
        let mut suites: Vec<_> = suites.iter().map(|suite| format!("{suite:04x}")).filter(|s| s != "00ff").collect();
        suites.sort();
        assert_eq!(Value::from(suites), vector["cipher_suites_hex"], "{name}");
        assert_eq!(peer.registration.features.contains(&"postquantum".to_owned()), name != "quic");
    }
}

#[tokio::test]
async fn datagrams_are_welcome_and_dropped_and_other_streams_do_no_harm() {
    let (_edge, _connector, peer) = start().await;
    assert!(peer.connection.max_datagram_size().is_some(), "the peer of a UDP session needs datagrams");
    for bytes in [&b""[..], &[3], &[0; 17], &[0xff; 1000]] {
        peer.connection.send_datagram(bytes.to_vec().into()).unwrap();
    }
    let mut one_way = soon("a unidirectional stream", peer.connection.open_uni()).await.unwrap();
    one_way.write_all(&DATA_SIGNATURE).await.unwrap();
    one_way.finish().unwrap();
    peer.serves("datagrams").await;
}

#[tokio::test]
async fn a_tcp_stream_carries_bytes_both_ways_and_ends_with_them() {
    let (_edge, _connector, peer) = start().await;
    let dest = echo().await;
    let head = encode_request(&adit::wire::Head::Tcp(dest));
    let (mut send, mut recv) = peer.open(&[&head[..], b"early"].concat(), false).await;
    let connected = adit::wire::connect::encode_connected();
    let mut answer = vec![0; connected.len() + 5];
    soon("an echo", recv.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, [&connected[..], b"early"].concat());
    send.write_all(b"late").await.unwrap();
    send.shutdown().await.unwrap();
    assert_eq!(soon("the end", recv.read_to_end(64)).await.unwrap(), b"late");
    assert_ne!(dest.to_string(), NOBODY);
}

#[tokio::test]
async fn pushed_rules_are_applied_or_refused_whole() {
    let (_edge, connector, peer) = start().await;
    let teapot = r#"{"ingress":[{"service":"http_status:418"}],"warp-routing":{"enabled":true}}"#;
    let bad = r#"{"ingress":[{"hostname":"a","service":"http://x"}]}"#;
    let status = async || match peer.ask(&get("app.example.com", "/")).await {
        Reply::Answered(Answer::Response(head), _) => head.status.as_u16(),
        other => panic!("{other:?}"),
    };
    let applied = peer.push(5, bad).await.unwrap();
    assert_eq!(applied.version, -1);
    assert!(applied.error.contains("last"), "{}", applied.error);
    assert_eq!(status().await, 200);
    let applied = peer.push(5, "nope").await.unwrap();
    assert!(applied.version == -1 && !applied.error.is_empty(), "{applied:?}");
    // The first version above -1 is good enough.
    for (version, now) in [(0, 0), (5, 5), (2, 5), (5, 5)] {
        let applied = peer.push(version, teapot).await.unwrap();
        assert_eq!((applied.version, applied.error.as_str()), (now, ""), "{version}");
        assert_eq!(status().await, 418, "{version}");
    }
    // An older version is not even looked at.
    assert_eq!(peer.push(4, "nope").await.unwrap().error, "");
    assert_eq!(connector.tasks.panics(), 0);
}

#[tokio::test]
async fn a_drained_connector_unregisters_and_serves_until_the_edge_closes() {
    let (_edge, mut connector, mut peer) = start().await;
    peer.serves("registering").await;
    let ready = connector.page("/ready").await;
    let vectors = group("json.ready");
    let vector = vectors.iter().find(|vector| vector["name"] == "ready").unwrap();
    let wanted =
        vector["body"].as_str().unwrap().replace("1705c20c-bdc6-4233-a706-6d6acd5dca39", &connector.id.to_string());
    // The peer's keys as the peer writes them; what follows is ours.
    let start = format!("{},\"connections\":[", wanted.strip_suffix('}').unwrap());
    assert!(ready.0 == 200 && ready.1.starts_with(&start), "{ready:?}");
    connector.tasks.drain();
    let Some(EdgeCall::Unregister(reply)) = soon("the unregistration", peer.calls.recv()).await else { panic!() };
    peer.serves("the call").await;
    reply.send(()).unwrap();
    peer.serves("the answer").await;
    assert_eq!(connector.page("/ready").await.0, 503);
    peer.connection.close(0u32.into(), b"");
    tokio::time::timeout(Duration::from_secs(3), &mut connector.ended).await.expect("ends at once").unwrap().unwrap();
}

#[tokio::test]
async fn a_connector_closes_with_code_zero_and_no_words() {
    let (_edge, connector, mut peer) = start().await;
    peer.serves("registering").await;
    connector.tasks.drain();
    let Some(EdgeCall::Unregister(reply)) = soon("the unregistration", peer.calls.recv()).await else { panic!() };
    reply.send(()).unwrap();
    // This edge does not close, so an idle connector does.
    match soon("the close", peer.connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!((close.error_code.into_inner(), &close.reason[..]), (0, &b""[..]));
        }
        other => panic!("{other}"),
    }
}
