//! Requests through the connector, looked at from both ends: by the service, and by the edge on the wire.

use adit::{
    config::{Flags, parse_file},
    wire::{
        connect::{Answer, Collector, decode_response},
        headers::{self, put_canonical},
    },
};
use bytes::Bytes;
use http::{HeaderMap, Request};
use serde_json::{Map, Value, json};

use super::{Verdict, Verdicts, judged, list, roundtrip_lab::RoundTrips, same, text};
use crate::{
    harness::Over,
    raw_edge::{H2Peer, QuicPeer, soon},
    wire_craft::{on_a_stream, request},
};

/// As many bytes of a body as are looked at; of longer ones only the length counts.
const LOOKED_AT: usize = 1 << 20;

enum Peer {
    Quic(QuicPeer),
    Http2(Box<H2Peer>),
}

/// Both transports at once, the cases of each one after the other over one connection.
pub(super) async fn http_roundtrip(cases: Vec<Value>) -> Verdicts {
    let (quic, http2): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case["transport"] == "quic");
    assert!(http2.iter().all(|case| case["transport"] == "http2"));
    let (mut verdicts, others) = tokio::join!(over(Over::Quic, quic), over(Over::Http2, http2));
    verdicts.extend(others);
    verdicts
}

async fn over(over: Over, cases: Vec<Value>) -> Verdicts {
    let mut lab = RoundTrips::start(over).await;
    let peer = match over {
        Over::Quic => Peer::Quic(lab.edge.quic_peer().await),
        Over::Http2 => Peer::Http2(Box::new(lab.edge.h2_peer().await)),
    };
    let mut verdicts = Vec::new();
    for case in &cases {
        verdicts.push(judged(case, verdict(&mut lab, &peer, case)).await);
    }
    verdicts
}

async fn verdict(lab: &mut RoundTrips, peer: &Peer, case: &Value) -> Verdict {
    let asked = &case["request"];
    if let Some(service) = refused_service(text(asked, "host")) {
        let yaml = format!("ingress: [{{service: '{service}'}}]");
        let outcome = parse_file("t.yml", &yaml, &Flags::default(), |_| None);
        return same(&json!({ "refused": outcome.is_err() }), &case["expect"]);
    }
    while lab.seen.try_recv().is_ok() {}
    let mut seen = match peer {
        Peer::Quic(peer) => over_quic(peer, lab, asked).await,
        Peer::Http2(peer) => over_http2(peer, lab, asked).await,
    };
    let body = std::mem::take(&mut seen.body);
    let mut observed = json!({
        "result": seen.result,
        "headers": seen.headers,
        "trailers": seen.trailers,
        "body_len": seen.length,
        "complete": seen.complete,
    });
    if let Ok(mut saw) = lab.seen.try_recv() {
        // The echo was written before these were made comparable.
        if !body.is_empty() && body == saw.to_string().as_bytes() {
            observed["body_len"] = json!("<echo>");
            observed["headers"]["Content-Length"] = json!(["<echo>"]);
        }
        if let Some(id) = saw.pointer_mut("/headers/Cf-Warp-Tag-Id") {
            assert_eq!(*id, json!([lab.connector.id.to_string()]));
            *id = json!(["<connector-uuid>"]);
        }
        saw.get_mut("headers").into_iter().for_each(shorten);
        observed["origin_saw"] = saw;
    }
    shorten(&mut observed["headers"]);
    if observed["headers"]["Content-Length"] == json!(["0"]) {
        // Where nothing is sent, the record does not tell who said so.
        observed["headers"].as_object_mut().unwrap().remove("Content-Length");
    }
    same(&observed, &case["expect"])
}

/// Services that the record's rules name and adit's do not, since adit refuses them when it reads the file.
fn refused_service(host: &str) -> Option<&'static str> {
    match host {
        "query.example.com" => Some("http://127.0.0.1:18081?ignored=1"),
        "userinfo.example.com" => Some("http://u:p@127.0.0.1:18081"),
        _ => None,
    }
}

/// Headers as the record keeps them: by name, each with its values in order.
pub(super) fn by_name(headers: impl Iterator<Item = (String, String)>) -> Value {
    let mut map = Map::new();
    for (name, value) in headers {
        map.entry(name).or_insert_with(|| json!([])).as_array_mut().unwrap().push(value.into());
    }
    map.into()
}

fn of_map(headers: &HeaderMap) -> Value {
    let canonical = |name: &http::HeaderName| {
        let mut canonical = Vec::new();
        put_canonical(name.as_str(), &mut canonical);
        String::from_utf8(canonical).unwrap()
    };
    by_name(headers.iter().map(|(name, value)| (canonical(name), value.to_str().unwrap().to_owned())))
}

/// Long values are recorded by their length.
fn shorten(headers: &mut Value) {
    for values in headers.as_object_mut().into_iter().flat_map(Map::values_mut) {
        for value in values.as_array_mut().unwrap() {
            let length = value.as_str().unwrap().len();
            if length >= 1 << 16 {
                *value = format!("<{length} bytes>").into();
            }
        }
    }
}

/// The headers of a request, long ones made.
fn given(asked: &Value) -> Vec<(String, String)> {
    let value = |text: &str| match text.strip_prefix('<').and_then(|rest| rest.strip_suffix(" bytes>")) {
        Some(length) => "x".repeat(length.parse().unwrap()),
        None => text.to_owned(),
    };
    let pairs = list(asked, "headers").iter();
    pairs.map(|pair| (pair[0].as_str().unwrap().to_owned(), value(pair[1].as_str().unwrap()))).collect()
}

/// What came back on the wire.
struct Back {
    result: Value,
    headers: Value,
    trailers: Value,
    body: Vec<u8>,
    length: usize,
    complete: bool,
}

impl Back {
    fn new(result: Value) -> Self {
        Self { result, headers: json!({}), trailers: json!({}), body: Vec::new(), length: 0, complete: true }
    }

    fn chunk(&mut self, lab: &RoundTrips, path: &str, chunk: &[u8]) {
        self.length += chunk.len();
        let room = LOOKED_AT.saturating_sub(self.body.len());
        self.body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if path.starts_with("/die") && self.length == 7 {
            lab.may_die.notify_one();
        }
    }
}

async fn over_quic(peer: &QuicPeer, lab: &RoundTrips, asked: &Value) -> Back {
    let (host, path) = (text(asked, "host"), text(asked, "path"));
    let length = usize::try_from(asked["body_len"].as_u64().unwrap()).unwrap();
    let mut metadata = vec![("HttpMethod".to_owned(), text(asked, "method").to_owned())];
    metadata.push(("HttpHost".to_owned(), host.to_owned()));
    metadata.extend(given(asked).into_iter().map(|(name, value)| (format!("HttpHeader:{name}"), value)));
    match text(asked, "framing") {
        "content-length" => metadata.push(("HttpHeader:Content-Length".into(), length.to_string())),
        "chunked" => metadata.push(("HttpHeader:Transfer-Encoding".into(), "chunked".into())),
        _ => {}
    }
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let mut sent = on_a_stream(&request(0, &format!("http://{host}{path}"), &metadata)).to_vec();
    sent.resize(sent.len() + length, b'b');
    let (_send, mut recv) = peer.open(&sent, true).await;

    let mut collector = Collector::default();
    let mut back: Option<Back> = None;
    loop {
        let chunk = match soon("an answer", recv.read_chunk(1 << 20, true)).await {
            Ok(Some(chunk)) => chunk.bytes,
            Ok(None) => break,
            Err(_) => {
                let mut back = back.unwrap_or_else(|| Back::new(json!({ "stream_reset": true })));
                back.complete = false;
                return back;
            }
        };
        if let Some(back) = &mut back {
            back.chunk(lab, path, &chunk);
            continue;
        }
        collector.push(chunk);
        let Some((message, rest)) = collector.message().unwrap() else { continue };
        let mut begun = match decode_response(&message).unwrap() {
            Answer::Response(head) => {
                let mut begun = Back::new(json!({ "status": head.status.as_u16() }));
                begun.headers = of_map(&head.headers);
                begun
            }
            Answer::Failed { .. } => Back::new(json!({ "connect_error": true })),
            other => panic!("{other:?}"),
        };
        begun.chunk(lab, path, &rest);
        back = Some(begun);
    }
    back.expect("an answer")
}

async fn over_http2(peer: &H2Peer, lab: &RoundTrips, asked: &Value) -> Back {
    let path = text(asked, "path");
    let length = usize::try_from(asked["body_len"].as_u64().unwrap()).unwrap();
    let mut request = Request::builder()
        .method(text(asked, "method"))
        .uri(format!("https://{}{path}", text(asked, "host")))
        .body(())
        .unwrap();
    for (name, value) in given(asked) {
        request.headers_mut().append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    if text(asked, "framing") == "content-length" {
        request.headers_mut().insert("content-length", length.into());
    }
    let mut sender = soon("a stream", peer.sender.clone().ready()).await.unwrap();
    let (response, mut send) = sender.send_request(request, length == 0).unwrap();
    if length > 0 {
        send.send_data(vec![b'b'; length].into(), true).unwrap();
    }
    let Ok(response) = soon("an answer", response).await else {
        let mut back = Back::new(json!({ "stream_reset": true }));
        back.complete = false;
        return back;
    };
    let (head, mut body) = response.into_parts();
    let meta: Value = serde_json::from_slice(head.headers[headers::RESPONSE_META].as_bytes()).unwrap();
    let mut back = Back::new(json!({ "status": head.status.as_u16(), "src": meta["src"] }));
    if let Some(packed) = head.headers.get(headers::RESPONSE_HEADERS) {
        let pairs = packed.as_bytes().split(|&byte| byte == b';').filter(|pair| !pair.is_empty());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        back.headers = by_name(pairs.map(|pair| {
            let (name, value) = headers::split_pair(pair).unwrap();
            (text(name), text(value))
        }));
    }
    while let Some(chunk) = soon("the body", body.data()).await {
        let Ok(chunk): Result<Bytes, _> = chunk else {
            back.complete = false;
            return back;
        };
        body.flow_control().release_capacity(chunk.len()).unwrap();
        back.chunk(lab, path, &chunk);
    }
    match soon("the trailers", body.trailers()).await {
        Ok(trailers) => back.trailers = trailers.map_or(json!({}), |trailers| of_map(&trailers)),
        Err(_) => back.complete = false,
    }
    back
}
