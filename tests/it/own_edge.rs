//! adit's own ways between connector and edge: only where both agreed, and to the byte as everywhere else where not.

use adit::wire::{
    connect::{Answer, Collector, decode_response_of_own, encode_connected, encode_framed_response, encode_response},
    framing::{self, FEATURE},
    registration::Registration,
};
use http::HeaderMap;

use crate::{
    harness::{self, Lab, peer::Peer, service},
    raw_connector::{RawQuic, claims, register_quic},
    raw_edge::{QuicPeer, RawEdge, Reply, Running, reply, soon},
    raw_service::rules,
    rules_pushed::edge_with,
    wire_craft::{on_a_stream, request},
};

const KEY: (&str, &str) = ("AditFraming", "1");
const CHUNKED: (&str, &str) = ("HttpHeader:Transfer-Encoding", "chunked");

/// A connector whose edge answers its registration with these features.
async fn start(features: &[&str]) -> (RawEdge, Running, QuicPeer) {
    let edge = RawEdge::new().await;
    let connector = edge.connector("quic", &rules().await).await;
    let peer = edge.quic_peer_confirming(features).await;
    assert!(peer.registration.offers_own(), "an edge given by name is offered the feature");
    (edge, connector, peer)
}

/// The head of a request to the service of the raw tests.
fn head(kind: u16, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let metadata = [&[("HttpMethod", "POST"), ("HttpHost", "app.example.com")], more].concat();
    on_a_stream(&request(kind, path, &metadata))
}

/// The very bytes of an answer after its head, and whether that says that they are frames.
async fn answered(peer: &QuicPeer, bytes: &[u8]) -> (bool, Vec<u8>) {
    let (_send, mut recv) = peer.open(bytes, true).await;
    let bytes = soon("an answer", recv.read_to_end(1 << 20)).await.unwrap();
    let mut collector = Collector::default();
    collector.push(bytes.into());
    let (message, body) = collector.message().unwrap().expect("half an answer");
    let (answer, framed) = decode_response_of_own(&message).unwrap();
    assert!(matches!(&answer, Answer::Response(head) if head.status == 200), "{answer:?}");
    (framed, body.to_vec())
}

#[tokio::test]
async fn an_edge_that_confirmed_nothing_gets_bare_bodies() {
    let (_edge, _connector, peer) = start(&["something_else"]).await;
    assert_eq!(answered(&peer, &head(0, "/trailers", &[])).await, (false, b"body".to_vec()));
    let (framed, body) = answered(&peer, &[&head(0, "/", &[CHUNKED])[..], b"bare"].concat()).await;
    assert!(!framed && body.ends_with(b"\r\n\r\n4\r\nbare\r\n0\r\n\r\n"), "{}", String::from_utf8_lossy(&body));
}

#[tokio::test]
async fn an_edge_that_confirmed_gets_frames_only_where_it_asks_and_trailers_can_come() {
    let (_edge, _connector, peer) = start(&[FEATURE]).await;
    assert_eq!(answered(&peer, &head(0, "/trailers", &[])).await, (false, b"body".to_vec()));
    let mut trailers = HeaderMap::new();
    trailers.insert("x-t", "tv".parse().unwrap());
    let framed = [b"\0\0\0\x04body", &framing::end(&trailers).unwrap()[..]].concat();
    assert_eq!(answered(&peer, &head(0, "/trailers", &[KEY])).await, (true, framed));
    // A length is known, or there is no body.
    assert!(!answered(&peer, &head(0, "/", &[KEY])).await.0);
    let (_send, recv) = peer.open(&head(0, "/204", &[KEY]), true).await;
    let Reply::Answered(Answer::Response(head_), body) = reply(recv).await else { panic!() };
    assert_eq!((head_.status.as_u16(), body.as_slice()), (204, &b""[..]));
    // A request's body is framed under the same key, if its length is unknown.
    let frames = [b"\0\0\0\x03one\0\0\0\x03two", &framing::end(&trailers).unwrap()[..]].concat();
    let (_, seen) = answered(&peer, &[&head(0, "/", &[CHUNKED, KEY])[..], &frames].concat()).await;
    assert!(seen.ends_with(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"), "{}", String::from_utf8_lossy(&seen));
    let length = ("HttpHeader:Content-Length", "4");
    let (_, seen) = answered(&peer, &[&head(0, "/", &[length, KEY])[..], b"bare"].concat()).await;
    assert!(seen.ends_with(b"\r\n\r\nbare"), "{}", String::from_utf8_lossy(&seen));
    peer.serves("frames").await;
}

/// Frames taken for a body would be smuggled to the service, so it never hears of them.
#[tokio::test]
async fn frames_without_agreement_are_refused_whole() {
    for (features, kind, key) in
        [(&[][..], 0, KEY), (&[FEATURE], 0, (KEY.0, "2")), (&[FEATURE], 0, (KEY.0, "")), (&[FEATURE], 1, KEY)]
    {
        let (_edge, _connector, peer) = start(features).await;
        let asked = peer.ask(&head(kind, "/", &[CHUNKED, key])).await;
        assert!(matches!(asked, Reply::Answered(Answer::Failed { .. }, _)), "{features:?} {key:?}: {asked:?}");
        peer.serves("a refusal").await;
    }
}

#[tokio::test]
async fn frames_that_make_no_sense_cost_their_stream_alone() {
    let (_edge, connector, peer) = start(&[FEATURE]).await;
    for (what, frames) in [
        ("no end", &b"\0\0\0\x03one"[..]),
        ("half a frame", b"\0\0\0\x03on"),
        ("half a header", b"\0\0\0\x03one\x01\0"),
        ("an empty frame", b"\0\0\0\0\x01\0\0\0"),
        ("an unknown type", b"\x07\0\0\x01x\x01\0\0\0"),
        ("bytes after the end", b"\0\0\0\x03one\x01\0\0\0GET / HTTP/1.1\r\n\r\n"),
        ("no trailers", b"\0\0\0\x03one\x01\0\0\x03one"),
        ("huge trailers", b"\0\0\0\x03one\x01\xff\xff\xff"),
    ] {
        let asked = peer.ask(&[&head(0, "/", &[CHUNKED, KEY])[..], frames].concat()).await;
        assert!(matches!(asked, Reply::Reset(0)), "{what}: {asked:?}");
        peer.serves(what).await;
    }
    assert_eq!(connector.tasks.panics(), 0);
}

/// The service's end ends a stream towards an edge that knows no half-closed streams.
#[tokio::test]
async fn a_foreign_edge_sees_both_directions_end_together_and_ours_does_not() {
    let once = service(|mut stream| async move {
        use tokio::io::AsyncWriteExt;
        stream.shutdown().await.unwrap();
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    for (features, together) in [(&[][..], true), (&[FEATURE], false)] {
        let (_edge, _connector, peer) = start(features).await;
        let stream = adit::wire::connect::encode_request(&adit::wire::Head::Tcp(once));
        let (mut send, mut recv) = peer.open(&stream, false).await;
        let said = soon("the service's end", recv.read_to_end(1 << 10)).await.unwrap();
        assert_eq!(said, encode_connected());
        if together {
            assert!(soon("STOP_SENDING", send.stopped()).await.unwrap().is_some());
        } else {
            send.write_all(&vec![0; 8 << 20]).await.unwrap();
            send.finish().unwrap();
            assert_eq!(soon("everything is taken", send.stopped()).await.unwrap(), None);
        }
    }
}

/// A connector that offered these features, registered.
async fn connector(lab: &Lab, features: &[&str]) -> RawQuic {
    let features = features.iter().map(|&feature| feature.to_owned()).collect();
    let connector = register_quic(lab, Registration { features, ..claims(lab, 0) }).await;
    let (registered, _) = connector.outcome.as_ref().unwrap();
    let confirmed = lab.edge.registry().of(lab.token.tunnel)[0].is_own();
    assert_eq!(registered.features, if confirmed { vec![FEATURE] } else { Vec::new() });
    connector
}

#[tokio::test]
async fn rules_are_pushed_with_our_own_keys_to_our_own_connectors_alone() {
    let rules = "ingress: [{ service: ['http://a', 'http://b'], limits: { maxConcurrent: 1 } }]";
    for (features, own) in [(&[FEATURE][..], true), (&[][..], false)] {
        let lab = edge_with(rules).await;
        let connector = connector(&lab, features).await;
        let (_send, mut recv) = soon("a push", connector.connection.accept_bi()).await.unwrap();
        let mut seen = Vec::new();
        // The call comes with the first message, before anything is answered.
        while !contains(&seen, "warp-routing") {
            let chunk = soon("the rules", recv.read_chunk(1 << 20, true)).await.unwrap().expect("no rules");
            seen.extend_from_slice(&chunk.bytes);
        }
        assert!(contains(&seen, "http://a"));
        for key in ["http://b", "limits"] {
            assert_eq!(contains(&seen, key), own, "{key}");
        }
    }
}

/// What a visitor's `POST` of `body` without a length is on the wire, and the stream that waits for the answer.
async fn asked(lab: &Lab, connector: &RawQuic, answer: &[u8]) -> (Vec<u8>, harness::Answer) {
    let visitor = lab.raw(
        "POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
         4\r\nbody\r\n0\r\n\r\n",
    );
    let stream = async {
        let (mut send, mut recv) = soon("a request", connector.connection.accept_bi()).await.unwrap();
        let seen = soon("its end", recv.read_to_end(1 << 20)).await.unwrap();
        send.write_all(answer).await.unwrap();
        send.finish().unwrap();
        seen
    };
    tokio::join!(stream, visitor)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn ok() -> adit::wire::ResponseHead {
    adit::wire::ResponseHead::new(http::StatusCode::OK)
}

#[tokio::test]
async fn a_connector_that_offers_nothing_sees_todays_bytes() {
    let lab = Lab::edge_only().await;
    let connector = connector(&lab, &["serialized_headers", "adit_2"]).await;
    let bare = [&encode_response(&ok())[..], b"answer"].concat();
    let (seen, answer) = asked(&lab, &connector, &bare).await;
    assert!(seen.ends_with(b"body") && !contains(&seen, KEY.0) && !contains(&seen, "HttpHeader:Te"), "{seen:?}");
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "answer", true));
    // It was not asked for frames.
    let framed = [&encode_framed_response(&ok())[..], b"\0\0\0\x06answer\x01\0\0\0"].concat();
    let (_, answer) = asked(&lab, &connector, &framed).await;
    assert_eq!((answer.status, answer.code()), (502, Some("connector-failed")));
    lab.finish().await;
}

#[tokio::test]
async fn a_connector_that_offers_them_gets_and_gives_frames() {
    let lab = Lab::edge_only().await;
    let connector = connector(&lab, &[FEATURE]).await;
    let framed = [&encode_framed_response(&ok())[..], b"\0\0\0\x06answer\x01\0\0\0"].concat();
    let (seen, answer) = asked(&lab, &connector, &framed).await;
    assert!(seen.ends_with(b"\0\0\0\x04body\x01\0\0\0"), "{seen:?}");
    assert!(contains(&seen, KEY.0) && contains(&seen, "HttpHeader:Te"), "{seen:?}");
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "answer", true));
    // It may answer without frames what has a length.
    let mut head = ok();
    head.headers.insert("content-length", 6.into());
    let (_, answer) = asked(&lab, &connector, &[&encode_response(&head)[..], b"answer"].concat()).await;
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "answer", true));
    // Half an answer does not look whole, and costs nobody else anything.
    for end in [&b""[..], b"\x01\0\0\0more", b"\x09\0\0\0"] {
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send("GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
        let (mut send, _recv) = soon("a request", connector.connection.accept_bi()).await.unwrap();
        let begun = [&encode_framed_response(&ok())[..], b"\0\0\0\x06answer"].concat();
        send.write_all(&begun).await.unwrap();
        assert_eq!(visitor.answer_head().await.status, 200);
        assert_eq!(visitor.exact(11).await, b"6\r\nanswer\r\n");
        send.write_all(end).await.unwrap();
        send.finish().unwrap();
        assert_eq!(visitor.rest().await, b"", "{end:?}");
    }
    assert!(connector.connection.close_reason().is_none());
    lab.finish().await;
}
