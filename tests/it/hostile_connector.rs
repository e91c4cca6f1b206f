//! A connector that holds a tunnel's secret and attacks its edge. Visitors get an error, or what can be made of the
//! answer; the edge, and an honest connector beside, serve on.

use adit::{
    transport,
    wire::{
        H2_SERVER_NAME,
        connect::{RPC_SIGNATURE, encode_connected, encode_failure},
        registration::{self, Registered},
        rpc::RpcThread,
        schema::metadata_capnp::connect_response,
    },
};
use bytes::Bytes;
use http::{HeaderValue, Response};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    harness::{Answer, LIMIT, Lab, Over, background, eventually, in_time, mirror, rule},
    raw_connector::{claims, register_quic, tls},
    raw_edge::soon,
    wire_craft::{far, on_a_stream, segments, to_list, to_struct},
};

/// A `ConnectResponse` with any metadata, as it stands on a stream.
fn response(error: &str, metadata: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    let mut root = message.init_root::<connect_response::Builder<'_>>();
    root.set_error(error);
    let mut list = root.init_metadata(metadata.len() as u32);
    for (at, (key, value)) in metadata.iter().enumerate() {
        list.reborrow().get(at as u32).set_key(capnp::text::Reader(key));
        list.reborrow().get(at as u32).set_val(capnp::text::Reader(value));
    }
    on_a_stream(&capnp::serialize::write_message_to_words(&message))
}

/// What an answer is, and whether a visitor may see something other than 502 because of it.
fn answers() -> Vec<(&'static str, Vec<u8>, bool)> {
    let status = |status: &'static [u8]| response("", &[(b"HttpStatus", status)]);
    let ok: (&[u8], &[u8]) = (b"HttpStatus", b"200");
    let large = vec![b'a'; 1 << 20];
    let many: Vec<(&[u8], &[u8])> = std::iter::repeat_n((&b"HttpHeader:X-A"[..], &b"1"[..]), 8_200).collect();
    vec![
        ("nothing", Vec::new(), false),
        ("half a signature", vec![0x0a, 0x36], false),
        ("an unknown signature", vec![0x55; 64], false),
        ("a call for an answer", [&RPC_SIGNATURE[..], &[0; 64]].concat(), false),
        ("2^32 segments", on_a_stream(&[0xff; 64]), false),
        ("4 GiB", on_a_stream(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x1f]), false),
        ("an empty first segment", on_a_stream(&[0; 16]), false),
        ("a circle", on_a_stream(&segments(&[&[far(1, 0)], &[far(0, 0)]])), false),
        (
            "2^28 headers of no size",
            on_a_stream(&segments(&[&[to_struct(0, 0, 2), 0, to_list(0, 7, 0), (1 << 30) - 4]])),
            false,
        ),
        ("status 0", status(b"0"), false),
        ("status 99", status(b"99"), false),
        ("status 1000", status(b"1000"), false),
        ("status -1", status(b"-1"), false),
        ("a status of letters", status(b"abc"), false),
        ("status 999", status(b"999"), true),
        ("status 101 without a wish for it", status(b"101"), false),
        ("status 100", status(b"100"), true),
        ("a line end in a value", response("", &[ok, (b"HttpHeader:X", b"a\r\nX-Evil: b")]), false),
        ("a NUL in a value", response("", &[ok, (b"HttpHeader:X", b"a\0")]), false),
        ("a line end in a name", response("", &[ok, (b"HttpHeader:X\r\nX-Evil", b"b")]), false),
        ("two colons", response("", &[ok, (b"HttpHeader:A:B", b"b")]), false),
        (
            "two lengths",
            response("", &[ok, (b"HttpHeader:Content-Length", b"1"), (b"HttpHeader:Content-Length", b"2")]),
            true,
        ),
        (
            "a length and chunks",
            response("", &[ok, (b"HttpHeader:Content-Length", b"0"), (b"HttpHeader:Transfer-Encoding", b"chunked")]),
            true,
        ),
        ("a length of letters", response("", &[ok, (b"HttpHeader:Content-Length", b"x")]), true),
        (
            "chunks of its own",
            [&response("", &[ok, (b"HttpHeader:Transfer-Encoding", b"gzip, chunked")])[..], b"5\r\nhello"].concat(),
            true,
        ),
        (
            "more bytes than its length",
            [&response("", &[ok, (b"HttpHeader:Content-Length", b"2")])[..], &[b'x'; 4096]].concat(),
            true,
        ),
        (
            "fewer bytes than its length",
            [&response("", &[ok, (b"HttpHeader:Content-Length", b"9")])[..], b"x"].concat(),
            true,
        ),
        ("8,200 headers", response("", &many), false),
        ("a header of 1 MiB", response("", &[ok, (b"HttpHeader:X", &large)]), true),
        (
            "3 MiB of headers",
            response("", &[ok, (b"HttpHeader:X", &large), (b"HttpHeader:Y", &large), (b"HttpHeader:Z", &large)]),
            true,
        ),
        ("5 MiB of headers", response("", &[(&b"HttpHeader:X"[..], &large[..]); 5]), false),
        ("a word that TCP alone gets", encode_connected().to_vec(), false),
        ("an error of 1 MiB", encode_failure(&"x".repeat(1 << 20), false).to_vec(), false),
        ("an error with line ends", encode_failure("a\r\nX-Evil: b\u{1b}[2J", true).to_vec(), false),
    ]
}

/// Sends a visitor's request and reads to the end, whatever comes.
async fn visit(lab: &Lab) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(lab.http).await.unwrap();
    stream.write_all(b"GET /hostile HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    // A cut connection is an answer too: half of one must not look whole.
    let _ = soon("an answer or an end", stream.read_to_end(&mut bytes)).await;
    bytes
}

fn judge(what: &str, bytes: &[u8], may_pass: bool) {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(2_000)]).into_owned();
    assert!(!text.contains("\r\nX-Evil") && !text.contains("\r\nx-evil"), "{what}: {text}");
    if may_pass {
        // Whole and in order, or visibly cut.
        if bytes.windows(4).any(|w| w == b"\r\n\r\n") {
            let answer = Answer::parse(bytes);
            assert!(answer.all("content-length").len() + answer.all("transfer-encoding").len() <= 1, "{what}: {text}");
        }
        return;
    }
    let answer = Answer::parse(bytes);
    assert_eq!(
        (answer.status, answer.code(), answer.complete),
        (502, Some("connector-failed"), true),
        "{what}: {text}"
    );
}

/// The edge has noticed that the hostile connector is gone.
async fn gone(lab: &Lab) {
    eventually("nobody is registered", async || lab.edge.registry().all().is_empty()).await;
}

/// An honest connector of the same tunnel serves.
async fn serves(lab: &mut Lab, over: Over) {
    lab.connect(over, &rule(format!("http://{}", mirror().await)), |flags| flags).await;
    lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.unwrap();
    let answer = lab.get("/honest").await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().starts_with("GET /honest HTTP/1.1\r\n"));
}

#[tokio::test]
async fn answers_over_quic_that_are_none() {
    in_time(async {
        let mut lab = Lab::edge_only().await;
        let hostile = register_quic(&lab, claims(&lab, 0)).await;
        let _control = hostile.outcome.unwrap();
        lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.unwrap();
        for (what, answer, may_pass) in answers() {
            let answered = async {
                let (mut send, mut recv) = soon("a request", hostile.connection.accept_bi()).await.unwrap();
                // Before it has read a byte of the request.
                let _ = send.write_all(&answer).await;
                let _ = send.finish();
                let _ = recv.read_to_end(1 << 20).await;
            };
            let (bytes, ()) = tokio::join!(visit(&lab), answered);
            judge(what, &bytes, may_pass);
        }
        // Reset in the middle of a head, stopped before one.
        for part in [0, 20] {
            let head = response("", &[(b"HttpStatus", b"200")]);
            let answered = async {
                let (mut send, mut recv) = soon("a request", hostile.connection.accept_bi()).await.unwrap();
                let _ = recv.stop(7u32.into());
                let _ = send.write_all(&head[..part]).await;
                let _ = send.reset(9u32.into());
            };
            let (bytes, ()) = tokio::join!(visit(&lab), answered);
            judge("a reset", &bytes, false);
        }
        // Streams that nobody asked for, and datagrams.
        for _ in 0..200 {
            if let Ok(Ok(mut uni)) = tokio::time::timeout(LIMIT / 100, hostile.connection.open_uni()).await {
                let _ = uni.write_all(&[0x55; 1024]).await;
                let _ = uni.reset(0u32.into());
            }
            let _ = hostile.connection.send_datagram(vec![0; 1_000].into());
        }
        hostile.connection.close(3u32.into(), &[0xff; 200]);
        gone(&lab).await;
        serves(&mut lab, Over::Quic).await;
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn control_streams_of_garbage_cost_their_connection_alone() {
    in_time(async {
        let mut lab = Lab::edge_only().await;
        for bytes in [
            vec![0x55; 4_096],
            vec![0; 8],
            vec![0xff; 64],
            vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
            RPC_SIGNATURE.to_vec(),
            Vec::new(),
        ] {
            let (_endpoint, connection) = crate::raw_connector::dial_as(&lab, adit::wire::QUIC_SERVER_NAME).await;
            let (mut send, _recv) = connection.open_bi().await.unwrap();
            let _ = send.write_all(&bytes).await;
            let _ = send.finish();
            soon("the end of a garbled connection", connection.closed()).await;
        }
        assert!(lab.edge.registry().all().is_empty());
        serves(&mut lab, Over::Quic).await;
        lab.finish().await;
    })
    .await;
}

/// Answers over HTTP/2; status and headers are what the library lets through, so the packed headers carry the rest.
#[tokio::test]
async fn answers_over_http2_that_are_none() {
    in_time(Box::pin(async {
        let mut lab = Lab::edge_only().await;
        let tcp = TcpStream::connect(lab.connectors).await.unwrap();
        let name = H2_SERVER_NAME.try_into().unwrap();
        let stream = TlsConnector::from(tls(&lab).http2).connect(name, tcp).await.unwrap();
        let mut builder = h2::server::Builder::new();
        builder.max_frame_size(1 << 20).max_header_list_size(16 << 20);
        let mut connection = soon("HTTP/2", builder.handshake::<_, Bytes>(stream)).await.unwrap();
        let (request, mut respond) = soon("the control stream", connection.accept()).await.unwrap().unwrap();
        let send = respond.send_response(Response::new(()), false).unwrap();
        let (recv, send) = (transport::Recv::http2(request.into_body()), transport::Send::http2(send));
        let (requests, mut incoming) = tokio::sync::mpsc::channel(4);
        background(async move {
            while let Some(Ok(request)) = connection.accept().await {
                if requests.send(request).await.is_err() {
                    return;
                }
            }
        });
        let rpc = RpcThread::new();
        let registration = registration::register(&rpc, recv, send, claims(&lab, 0), LIMIT);
        let (Registered { .. }, _control) = soon("the registration", registration).await.unwrap();
        lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.unwrap();
        let list = "cf-cloudflared-response-headers";
        // `X: a\r\nX-Evil: b`, `X\r\nX-Evil: b`, two lengths, half a pair, no base64.
        let evil = ["WA:YQ0KWC1FdmlsOiBi", "WA0KWC1FdmlsOg:Yg", "WA:YQ;WA", "WA:YQ==", "%%%:%%%", ":::", "WA:YQB="];
        let mut heads: Vec<(String, Response<()>, bool)> = Vec::new();
        for value in evil {
            let head = Response::builder().header(list, value).body(()).unwrap();
            heads.push((value.to_owned(), head, false));
        }
        for status in [100, 101, 199, 204, 304, 600, 999] {
            let head = Response::builder().status(status).header(list, "").body(()).unwrap();
            heads.push((format!("status {status}"), head, true));
        }
        heads.push(("no list".into(), Response::new(()), false));
        let many = vec!["WA:YQ"; 100_000].join(";");
        heads.push((
            "100,000 headers in a list".into(),
            Response::builder().header(list, many).body(()).unwrap(),
            true,
        ));
        for (what, head, may_pass) in heads {
            let answered = async {
                let (_request, mut respond): (_, h2::server::SendResponse<Bytes>) =
                    soon("a request", incoming.recv()).await.expect("the connection goes on");
                // What the library refuses to send is reset.
                let _ = respond.send_response(head, true);
            };
            let (bytes, ()) = tokio::join!(visit(&lab), answered);
            judge(&what, &bytes, may_pass);
        }
        for reset in [h2::Reason::ENHANCE_YOUR_CALM, h2::Reason::REFUSED_STREAM] {
            let answered = async {
                // A request that was refused may be tried again, elsewhere or here.
                while let Ok(Some((_request, mut respond))) = tokio::time::timeout(LIMIT / 20, incoming.recv()).await {
                    respond.send_reset(reset);
                }
            };
            let (bytes, ()) = tokio::join!(visit(&lab), answered);
            assert!((500..504).contains(&Answer::parse(&bytes).status), "{reset:?}");
        }
        let trailer = HeaderValue::from_static("x");
        let answered = async {
            let (_request, mut respond) = soon("a request", incoming.recv()).await.unwrap();
            let head = Response::builder().header(list, "").body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            let mut trailers = http::HeaderMap::new();
            for name in ["content-length", "host", "x-kept"] {
                trailers.insert(http::HeaderName::from_static(name), trailer.clone());
            }
            send.send_trailers(trailers).unwrap();
        };
        let (bytes, ()) = tokio::join!(visit(&lab), answered);
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        assert!(!text.contains("\r\ncontent-length: x") && !text.contains("\r\nhost: x"), "{text}");
        drop(incoming);
        // Whatever became of that connection, an honest one serves beside or after it.
        drop(_control);
        gone(&lab).await;
        serves(&mut lab, Over::Http2).await;
        lab.finish().await;
    }))
    .await;
}
