//! Byte vectors of the wire, decoded and encoded (protocol.md §14).

use adit::{
    edge::state::StateDir,
    wire::{
        BodyLength, Head,
        connect::{self, Answer, Collector, Signature},
        headers,
    },
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

const VECTORS: &str = include_str!("../data/wire_vectors.json");

pub(crate) fn group(name: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    all[name].as_array().unwrap().clone()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// The message of a stream, whatever pieces it comes in.
fn collect(bytes: &[u8], piece: usize) -> (Bytes, Bytes) {
    let mut collector = Collector::default();
    for chunk in bytes.chunks(piece) {
        collector.push(Bytes::copy_from_slice(chunk));
        if let Some(signature) = collector.signature().unwrap() {
            assert_eq!(signature, Signature::Data);
        }
    }
    collector.message().unwrap().expect("the message is whole")
}

/// `HttpHeader:` entries of a vector as headers, with those the decoder takes out left out.
fn metadata_headers(vector: &Value) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for entry in vector["decoded"]["metadata"].as_array().unwrap() {
        let (key, value) = (entry[0].as_str().unwrap(), entry[1].as_str().unwrap());
        if let Some(name) = key.strip_prefix("HttpHeader:") {
            let name = name.to_lowercase();
            if name != "cf-cloudflared-proxy-connection-upgrade" && name != "cf-trace-id" {
                pairs.push((name, value.to_owned()));
            }
        }
    }
    pairs
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers.iter().map(|(n, v)| (n.to_string(), String::from_utf8(v.as_bytes().to_vec()).unwrap())).collect()
}

fn scalar<'a>(vector: &'a Value, key: &str) -> Option<&'a str> {
    let entries = vector["decoded"]["metadata"].as_array().unwrap();
    entries.iter().rfind(|entry| entry[0] == key).and_then(|entry| entry[1].as_str())
}

#[test]
fn connect_requests_decode_to_what_was_encoded_in_pieces_of_any_size() {
    let vectors = group("quic.connect_request");
    assert_eq!(vectors.len(), 9);
    for vector in vectors {
        let name = text(&vector, "name");
        let bytes = unhex(text(&vector, "hex"));
        for piece in [bytes.len(), 1, 7] {
            let (message, rest) = collect(&bytes, piece);
            assert!(rest.is_empty(), "{name}");
            assert_eq!(message, unhex(text(&vector, "capnp_hex")), "{name}");
            let dest = text(&vector["decoded"], "dest");
            match connect::decode_request(&message).unwrap_or_else(|error| panic!("{name}: {error}")) {
                Head::Tcp(found) => assert_eq!(found.to_string(), dest, "{name}"),
                Head::Request(head) => {
                    assert_eq!(head.websocket, vector["decoded"]["type"] == 1, "{name}");
                    assert_eq!(head.method.as_str(), scalar(&vector, "HttpMethod").unwrap_or("GET"), "{name}");
                    assert_eq!(head.host.to_str().unwrap(), scalar(&vector, "HttpHost").unwrap_or(""), "{name}");
                    assert_eq!(pairs(&head.headers), metadata_headers(&vector), "{name}");
                    let path = dest.split("://").last().unwrap();
                    let path = path.find('/').map_or("/", |at| &path[at..]);
                    // What no request line may hold is escaped.
                    assert_eq!(head.target.as_str(), path.replace('é', "%C3%A9"), "{name}");
                }
            }
        }
    }
}

#[test]
fn connect_requests_survive_encoding_and_decoding() {
    for vector in group("quic.connect_request") {
        let name = text(&vector, "name");
        let (message, _) = collect(&unhex(text(&vector, "hex")), usize::MAX);
        let head = connect::decode_request(&message).unwrap();
        let encoded = connect::encode_request(&head);
        assert_eq!(encoded[..8], unhex("0a36cd12a13e3031"), "{name}");
        let (again, rest) = collect(&encoded, usize::MAX);
        assert!(rest.is_empty(), "{name}");
        match (head, connect::decode_request(&again).unwrap()) {
            (Head::Tcp(before), Head::Tcp(after)) => assert_eq!(before, after, "{name}"),
            (Head::Request(before), Head::Request(after)) => {
                assert_eq!(before.headers, after.headers, "{name}");
                assert_eq!(
                    (before.method, before.host, before.target, before.websocket, before.body),
                    (after.method, after.host, after.target, after.websocket, after.body),
                    "{name}"
                );
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn bodies_are_delimited_as_the_metadata_says() {
    for (vector, expected) in
        group("quic.behaviour").iter().zip([BodyLength::None, BodyLength::Known(4), BodyLength::Unknown])
    {
        let name = text(vector, "name");
        assert!(name.starts_with("http_"), "{name}");
        let mut headers = HeaderMap::new();
        for entry in vector["request"]["metadata"].as_array().unwrap() {
            if let Some(header) = entry[0].as_str().unwrap().strip_prefix("HttpHeader:") {
                let name = HeaderName::from_bytes(header.as_bytes()).unwrap();
                headers.append(name, HeaderValue::from_str(entry[1].as_str().unwrap()).unwrap());
            }
        }
        let head = Head::Request(adit::wire::RequestHead {
            websocket: false,
            method: http::Method::POST,
            host: HeaderValue::from_static("app.example.com"),
            target: connect::root_target(),
            headers,
            body: BodyLength::None,
        });
        let (message, _) = collect(&connect::encode_request(&head), usize::MAX);
        let Head::Request(decoded) = connect::decode_request(&message).unwrap() else { panic!("{name}") };
        assert_eq!(decoded.body, expected, "{name}");
    }
}

#[test]
fn connect_responses_decode_and_encode() {
    let vectors = group("quic.connect_response");
    assert_eq!(vectors.len(), 7);
    for vector in vectors {
        let name = text(&vector, "name");
        let (message, _) = collect(&unhex(text(&vector, "hex")), 3);
        let encoded = match connect::decode_response(&message).unwrap() {
            Answer::Response(head) => {
                assert_eq!(head.status.as_str(), scalar(&vector, "HttpStatus").unwrap(), "{name}");
                assert_eq!(pairs(&head.headers), metadata_headers(&vector), "{name}");
                connect::encode_response(&head)
            }
            Answer::Connected => {
                assert!(name.starts_with("tcp_ack"), "{name}");
                connect::encode_connected()
            }
            Answer::Failed { error, rate_limited } => {
                assert_eq!(error, text(&vector["decoded"], "error"), "{name}");
                assert_eq!(rate_limited, name == "error_rate_limited", "{name}");
                connect::encode_failure(&error, rate_limited)
            }
        };
        let (again, _) = collect(&encoded, usize::MAX);
        let (before, after) = (connect::decode_response(&message).unwrap(), connect::decode_response(&again).unwrap());
        assert_eq!(format!("{before:?}"), format!("{after:?}"), "{name}");
    }
}

#[test]
fn header_names_go_out_as_the_peer_spells_them() {
    let mut headers = HeaderMap::new();
    headers.insert("www-authenticate", HeaderValue::from_static("x"));
    let encoded = connect::encode_response(&adit::wire::ResponseHead { status: http::StatusCode::OK, headers });
    let needle = b"HttpHeader:Www-Authenticate";
    assert!(encoded.windows(needle.len()).any(|window| window == needle));
}

#[test]
fn packed_headers_are_byte_for_byte_the_peers() {
    for vector in group("h2.serialized_headers") {
        let name = text(&vector, "name");
        let packed = text(&vector, "serialized");
        let unpacked = headers::unpack(packed.as_bytes()).unwrap();
        let expected = vector["headers_name_value_valuehex"].as_array().unwrap();
        let found: Vec<_> = unpacked.iter().map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec())).collect();
        let wanted: Vec<_> = expected
            .iter()
            .map(|entry| (entry[0].as_str().unwrap().to_lowercase(), unhex(entry[2].as_str().unwrap())))
            .collect();
        assert_eq!(found, wanted, "{name}");
        // Names always go out in the usual spelling, so one written in lower case by hand is the exception.
        if name != "lowercase_name" {
            assert_eq!(headers::pack(unpacked.iter()).to_str().unwrap(), packed, "{name}");
        }
    }
}

#[test]
fn malformed_packed_headers_are_refused() {
    for vector in group("h2.serialized_headers.invalid") {
        let packed = text(&vector, "serialized");
        assert!(headers::unpack(packed.as_bytes()).is_err(), "{packed}");
    }
}

#[test]
fn packed_headers_with_empty_pieces_are_forgiven() {
    for vector in group("h2.serialized_headers.lenient") {
        let packed = text(&vector, "serialized");
        // An empty name is no header; the peer carries it, we drop it.
        let wanted: Vec<_> = vector["decoded"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|pair| pair[0] != "")
            .map(|pair| (pair[0].as_str().unwrap().to_lowercase(), pair[1].as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(pairs(&headers::unpack(packed.as_bytes()).unwrap()), wanted, "{packed}");
    }
}

#[test]
fn response_meta_has_the_three_known_values() {
    let ours = [headers::META_CONNECTOR, headers::META_RATE_LIMITED, headers::META_ORIGIN];
    let ours: Vec<_> = ours.iter().map(|value| value.to_str().unwrap()).collect();
    let vector = &group("h2.response_meta")[0];
    let known: Vec<_> = vector["values"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert_eq!(ours, known);
}

#[test]
fn the_websocket_accept_key_is_the_rfcs() {
    let vector = &group("websocket")[0];
    let accept = adit::proxy::frames::accept_key(text(vector, "key").as_bytes());
    assert_eq!(vector["response_headers"]["Sec-Websocket-Accept"][0], accept.as_str());
}

#[test]
fn a_connect_message_that_could_hurt_is_refused_before_anything_is_read() {
    let refused = |bytes: &[u8], why: &str| {
        assert!(connect::message_len(bytes).is_err(), "{why}");
    };
    refused(&[0, 0, 0, 0, 0, 0, 0, 0], "a first segment without a word");
    refused(&[0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0], "2^32 segments");
    refused(&[0, 0, 0, 0, 0, 0, 0x7e, 0], "63 MiB announced");
    assert_eq!(connect::message_len(&[0, 0, 0]).unwrap(), None);
    assert_eq!(connect::message_len(&[0, 0, 0, 0, 2, 0, 0, 0]).unwrap(), Some(24));
}

#[test]
fn a_type_above_two_and_keys_with_two_colons_cost_only_their_stream() {
    let vectors = group("quic.connect_request");
    let mut bytes = unhex(text(&vectors[0], "capnp_hex"));
    bytes[16] = 3;
    assert!(matches!(connect::decode_request(&Bytes::from(bytes)), Err(adit::wire::Error::ConnectionType(3))));
    let mut bytes = unhex(text(&vectors[0], "capnp_hex"));
    let at = bytes.windows(6).position(|window| window == b"Accept").unwrap();
    bytes[at + 3] = b':';
    assert!(matches!(connect::decode_request(&Bytes::from(bytes)), Err(adit::wire::Error::HeaderKey)));
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_a_decoder(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
        let _ = connect::message_len(&bytes);
        let message = Bytes::from(bytes);
        let _ = connect::decode_request(&message);
        let _ = connect::decode_response(&message);
        let _ = headers::unpack(&message);
        let _ = connect::signature(&message);
    }

    #[test]
    fn one_flipped_byte_never_panics_a_decoder(at in 0usize..500, byte in proptest::num::u8::ANY) {
        for vector in group("quic.connect_request") {
            let mut bytes = unhex(text(&vector, "capnp_hex"));
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(Some(len)) = connect::message_len(&bytes) && len <= bytes.len() {
                let _ = connect::decode_request(&Bytes::from(bytes));
            }
        }
    }
}

#[tokio::test]
async fn the_client_hello_over_tcp_names_server_and_groups_and_no_protocol() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path());
    state.open().unwrap();
    for (vector, strict) in [("http2", false), ("quic_post_quantum_strict", true)] {
        let vectors = group("tls.client_hello");
        let vector = vectors.iter().find(|v| v["name"] == vector).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tls = adit::tls::EdgeTls::new(Some(&state.ca_path()), strict).unwrap();
        let dial = adit::transport::http2::Http2Session::dial(addr, None, tls.http2, std::time::Duration::from_secs(5));
        let hello = async {
            let (stream, _) = listener.accept().await.unwrap();
            let start =
                tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await.unwrap();
            let hello = start.client_hello();
            assert_eq!(hello.server_name(), Some("h2.cftunnel.com"));
            assert!(hello.alpn().is_none());
            let groups: Vec<_> =
                hello.named_groups().unwrap().iter().map(|group| format!("{:#06x}", u16::from(*group))).collect();
            let wanted: Vec<_> = vector["groups"]
                .as_array()
                .unwrap()
                .iter()
                .map(|group| group.as_str().unwrap().split(['(', ')']).nth(1).unwrap().to_owned())
                .collect();
            assert_eq!(groups, wanted);
        };
        let (dialled, ()) = tokio::join!(dial, hello);
        assert!(dialled.is_err());
    }
}
