//! Requests that two readers could read in two ways are refused at the edge's door, or reach the service in one way only.

use std::sync::{Arc, Mutex};

use http::{HeaderName, HeaderValue, Method, Request, Uri};

use crate::{
    harness::{
        Lab, Over, in_time, over_both,
        peer::{Peer, ok, replying},
        rule,
    },
    raw_edge::soon,
};

/// What the service saw: request lines with their bodies.
type Seen = Arc<Mutex<Vec<(String, String)>>>;

async fn lab(over: Over) -> (Lab, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let (service, _) = replying(move |head, body| {
        let body = String::from_utf8_lossy(&body).into_owned();
        noted.lock().unwrap().push((format!("{} {}", head.line, head.header("host").unwrap()), body));
        ok("seen")
    })
    .await;
    (Lab::start(over, &rule(format!("http://{service}"))).await, seen)
}

async fn refused(over: Over) {
    let (lab, seen) = lab(over).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: web.test\r\n\r\n";
    let h = "Host: web.test\r\n";
    for (what, request) in [
        ("two lengths", format!("POST / HTTP/1.1\r\n{h}Content-Length: 0\r\nContent-Length: 48\r\n\r\n{smuggled}")),
        ("a list of lengths", format!("POST / HTTP/1.1\r\n{h}Content-Length: 0, 48\r\n\r\n{smuggled}")),
        ("a signed length", format!("POST / HTTP/1.1\r\n{h}Content-Length: +48\r\n\r\n{smuggled}")),
        ("a negative length", format!("POST / HTTP/1.1\r\n{h}Content-Length: -1\r\n\r\n{smuggled}")),
        ("a length in hex", format!("POST / HTTP/1.1\r\n{h}Content-Length: 0x30\r\n\r\n{smuggled}")),
        ("another coding", format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: gzip\r\n\r\n{smuggled}")),
        ("chunked not last", format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n{smuggled}")),
        ("not quite chunked", format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("chunks in 1.0", format!("POST / HTTP/1.0\r\n{h}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("a folded line", format!("GET / HTTP/1.1\r\n{h}X: a\r\n b\r\n\r\n")),
        ("a space before the colon", format!("GET / HTTP/1.1\r\n{h}Content-Length : 0\r\n\r\n")),
        ("a tab before the colon", format!("GET / HTTP/1.1\r\n{h}X\t: 0\r\n\r\n")),
        ("a line without a name", format!("GET / HTTP/1.1\r\n{h}: x\r\n\r\n")),
        ("a line without a colon", format!("GET / HTTP/1.1\r\n{h}nonsense\r\n\r\n")),
        ("a bare CR in a value", format!("GET / HTTP/1.1\r\n{h}X: a\rb\r\n\r\n")),
        ("NUL in a value", format!("GET / HTTP/1.1\r\n{h}X: a\0b\r\n\r\n")),
        ("NUL in a name", format!("GET / HTTP/1.1\r\n{h}X\0: b\r\n\r\n")),
        ("two hosts", format!("GET / HTTP/1.1\r\n{h}Host: other.test\r\n\r\n")),
        ("the same host twice", format!("GET / HTTP/1.1\r\n{h}{h}\r\n")),
        ("another host in the line", "GET http://web.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n".into()),
        ("another port in the line", "GET http://web.test:81/ HTTP/1.1\r\nHost: web.test:82\r\n\r\n".into()),
        ("user information", "GET http://a@web.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n".into()),
        ("a list of hosts", "GET / HTTP/1.1\r\nHost: web.test, other.test\r\n\r\n".into()),
        ("a path in the host", "GET / HTTP/1.1\r\nHost: web.test/x\r\n\r\n".into()),
        ("a space in the line", format!("GET /a b HTTP/1.1\r\n{h}\r\n")),
        ("an unknown version", format!("GET / HTTP/1.7\r\n{h}\r\n")),
        ("no version", format!("GET /\r\n{h}\r\n")),
    ] {
        let mut visitor = Peer::visit(lab.http).await;
        visitor.send(&request).await;
        let rest = soon(what, visitor.rest()).await;
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400"), "{what}: {}", String::from_utf8_lossy(&rest));
        assert_eq!(*seen.lock().unwrap(), [], "{what}");
    }
    lab.finish().await;
}

async fn in_one_way_only(over: Over) {
    let (lab, seen) = lab(over).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: web.test\r\n\r\n";
    // Length and chunks together: the chunks count, the length is gone, and so is the connection (RFC 9112 §6.3).
    for lines in ["Content-Length: 6\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 6"]
    {
        let mut visitor = Peer::visit(lab.http).await;
        visitor
            .send(format!("POST / HTTP/1.1\r\nHost: web.test\r\n{lines}\r\n\r\n1\r\na\r\n0\r\n\r\n{smuggled}"))
            .await;
        let said = String::from_utf8(soon("the end", visitor.rest()).await).unwrap();
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{said}");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(
            seen.len() <= 1 && seen.iter().all(|(line, body)| line == "POST / HTTP/1.1 web.test" && body == "a"),
            "{seen:?}"
        );
    }
    // What is written in two ways but means one thing arrives in the one.
    for (host, target) in
        [("web.test", "/x"), ("WEB.test:80", "http://web.test/x"), ("web.test.", "http://web.TEST:80/x")]
    {
        let answer = lab.raw(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(answer.status, 200, "{host} {target}");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(seen[0].0.starts_with("GET /x HTTP/1.1 web.test"), "{seen:?}");
    }
    lab.finish().await;
}

async fn in_http2(over: Over) {
    let (lab, seen) = lab(over).await;
    let get = || Request::get("https://web.test/").body(()).unwrap();
    for (what, name, value) in [
        ("a header of the connection", "connection", "close"),
        ("a coding", "transfer-encoding", "chunked"),
        ("an upgrade", "upgrade", "websocket"),
        ("keep-alive", "keep-alive", "1"),
        ("proxy-connection", "proxy-connection", "close"),
        ("another TE", "te", "gzip"),
        ("another host", "host", "other.test"),
    ] {
        let mut h2 = lab.h2().await;
        let mut request = get();
        request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        let outcome = match h2.send_request(request, true) {
            Ok((answer, _)) => soon(what, answer).await,
            // The client's own library does not say it at all.
            Err(_) => continue,
        };
        assert!(outcome.as_ref().map_or(true, |answer| answer.status() == 400), "{what}: {outcome:?}");
        assert_eq!(*seen.lock().unwrap(), [], "{what}");
    }
    // A body that is not as long as announced never looks whole behind.
    for (what, length, body) in [("longer", "3", "12345"), ("shorter", "9", "12345")] {
        let mut h2 = lab.h2().await;
        let request = Request::builder().method(Method::POST).uri(Uri::from_static("https://web.test/"));
        let request = request.header("content-length", length).body(()).unwrap();
        let (answer, mut send) = h2.send_request(request, false).unwrap();
        let _ = send.send_data(body.into(), true);
        let outcome = soon(what, answer).await;
        assert!(outcome.as_ref().map_or(true, |answer| answer.status().as_u16() >= 400), "{what}: {outcome:?}");
        assert_eq!(*seen.lock().unwrap(), [], "{what}");
    }
    // The connection that carries the good one is another; the edge serves on.
    let mut h2 = lab.h2().await;
    assert_eq!(soon("a good one", h2.send_request(get(), true).unwrap().0).await.unwrap().status(), 200);
    lab.finish().await;
}

over_both! {
    what_can_be_read_in_two_ways_is_refused => refused,
    what_is_served_reaches_the_service_in_one_way_only => in_one_way_only,
    http_2_brings_nothing_that_http_1_would_read_differently => in_http2,
}

/// The preface and empty settings.
pub(crate) fn h2_preface() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat()
}

/// HEADERS of a GET, with END_STREAM and END_HEADERS, and a header `x`; no part above 126 bytes.
pub(crate) fn h2_headers(stream: u32, path: &[u8], value: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (&b":method"[..], &b"GET"[..]),
        (b":scheme", b"https"),
        (b":authority", b"web.test"),
        (b":path", path),
        (b"x", value),
    ] {
        // Literal without indexing, new name (RFC 7541 §6.2.2).
        block.extend([0, u8::try_from(name.len()).unwrap()]);
        block.extend(name);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value);
    }
    let mut frame = u32::try_from(block.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([1, 5]);
    frame.extend(stream.to_be_bytes());
    frame.extend(block);
    frame
}

/// Written by hand, since no library says such things.
#[tokio::test]
async fn line_ends_in_values_and_paths_of_http_2_are_refused() {
    in_time(Box::pin(async {
        let (lab, seen) = lab(Over::Quic).await;
        for (what, path, value) in [
            ("a good one", &b"/"[..], &b"x"[..]),
            ("CRLF in a value", b"/", b"a\r\nX: smuggled"),
            ("LF in a value", b"/", b"a\nb"),
            ("NUL in a value", b"/", b"a\0b"),
            ("CRLF in the path", b"/ HTTP/1.1\r\nHost: web.test\r\n\r\n", b"x"),
            ("a space in the path", b"/a b", b"x"),
            ("an empty path", b"", b"x"),
            ("a path of something else", b"*x", b"x"),
        ] {
            let mut bytes = h2_preface();
            bytes.extend(h2_headers(1, path, value));
            let mut visitor = Peer::new(lab.tls(&["h2"]).await, 0);
            visitor.send(bytes).await;
            let said = soon(what, async {
                loop {
                    // Frames until one about stream 1, or the end.
                    let head = visitor.exact(9).await;
                    if head.len() < 9 {
                        return None;
                    }
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                    let payload = visitor.exact(length).await;
                    match (head[3], head[8]) {
                        (1, 1) => return Some(payload),
                        (3, 1) | (7, _) => return None,
                        _ => {}
                    }
                }
            })
            .await;
            let good = what == "a good one";
            let reached = std::mem::take(&mut *seen.lock().unwrap());
            assert_eq!((reached.len(), said.is_some()), (usize::from(good), good), "{what}: {reached:?} {said:?}");
        }
        lab.finish().await;
    }))
    .await;
}
