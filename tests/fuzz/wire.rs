//! What an edge or a connector sends: heads of streams in both spellings.

use std::{
    pin::Pin,
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll},
};

use adit::wire::{
    BodyLength, Error, Head, ResponseHead,
    announced::Announced,
    connect::{self, Answer, Collector, MAX_HEADERS, MAX_MESSAGE, PREAMBLE_LEN, Signature},
    framing, headers, parse_target,
};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header, request::Parts};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::engine::{about, gist, seen};

pub(super) const CAPNP: &[&[u8]] = &[
    &connect::DATA_SIGNATURE,
    &connect::RPC_SIGNATURE,
    b"01",
    b"HttpHeader:",
    b"HttpHost",
    b"HttpMethod",
    b"HttpStatus",
    b"Content-Length",
    b"Transfer-Encoding",
    b"chunked",
    b"FlowConnectRateLimited",
    b"https://",
    b"127.0.0.1:1",
    &[0; 8],
    &[0xff; 8],
    // One segment of a word; two segments; a capability; a far pointer to itself; a list of 2^28 structs of no size.
    &[0, 0, 0, 0, 1, 0, 0, 0],
    &[1, 0, 0, 0, 1, 0, 0, 0],
    &[3, 0, 0, 0, 0, 0, 0, 0],
    &[2, 0, 0, 0, 0, 0, 0, 0],
    &[1, 0, 0, 0, 7, 0, 0, 0x80],
];
pub(super) const PACKED: &[&[u8]] =
    &[b";", b":", b"=", b"==", b"\r\n", b"Q29udGVudC1MZW5ndGg", b"dGV4dC9odG1s", b"Og", b"AA"];
pub(super) const HEADS: &[&[u8]] = &[
    b"\n",
    b": ",
    b"GET",
    b"CONNECT",
    b"host: ",
    b"content-length: ",
    b"transfer-encoding: chunked",
    b"cookie: a=b",
    b"cf-cloudflared-proxy-connection-upgrade: websocket",
    b"https://",
    b"%0d%0a",
    b"//",
    b"@",
    b"?",
    b"#",
];

/// Nothing in a name or value can end a line, or begin a header of its own.
fn is_tame(headers: &HeaderMap) {
    for (name, value) in headers {
        assert!(name.as_str().bytes().all(|b| b > b' ' && b != b':' && b < 127), "{name:?}");
        assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)), "{name}: {value:?}");
    }
}

fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

fn kind(error: &Error) -> u64 {
    let detail = match error {
        Error::Http(what) => (*what).to_owned(),
        Error::Message(error) => gist(&format!("{:?}", error.kind)),
        _ => String::new(),
    };
    seen((std::mem::discriminant(error), detail))
}

/// What a collector says once everything is in, for bytes in pieces of one length.
fn collect(input: &[u8], piece: usize) -> Result<Option<(Signature, Bytes, usize)>, u64> {
    let mut collector = Collector::default();
    let mut pieces = input.chunks(piece);
    let mut taken = 0;
    loop {
        let Some(chunk) = pieces.next() else { return Ok(None) };
        taken += chunk.len();
        collector.push(Bytes::copy_from_slice(chunk));
        match collector.signature().map_err(|error| kind(&error))? {
            None => {}
            Some(Signature::Rpc) => {
                let rest = collector.into_rest(connect::RPC_SIGNATURE.len());
                let mut all = rest.to_vec();
                all.extend(pieces.flatten());
                return Ok(Some((Signature::Rpc, all.into(), 0)));
            }
            Some(Signature::Data) => {
                if let Some((message, rest)) = collector.message().map_err(|error| kind(&error))? {
                    return Ok(Some((Signature::Data, message, input.len() - taken + rest.len())));
                }
            }
        }
    }
}

/// A stream says the same however it is cut, and its head is where the bytes say.
pub(super) fn preamble(input: &[u8]) -> u64 {
    let whole = collect(input, input.len().max(1));
    for piece in [1, 3, 7, 8, 64] {
        // Byte by byte through a large message is quadratic for the test alone.
        if piece > 7 || input.len() < 2_000 {
            assert_eq!(collect(input, piece), whole, "in pieces of {piece}");
        }
    }
    match whole {
        Ok(Some((Signature::Data, message, rest))) => {
            assert_eq!(PREAMBLE_LEN + message.len() + rest, input.len());
            assert_eq!(message, input[PREAMBLE_LEN..PREAMBLE_LEN + message.len()]);
            assert!(message.len() <= MAX_MESSAGE);
            let head = connect::decode_request(&message).map(drop).map_err(|error| kind(&error));
            let answer = connect::decode_response(&message).map(drop).map_err(|error| kind(&error));
            seen((head, answer, about(rest)))
        }
        other => seen(other.map(|found| found.map(|(_, _, rest)| rest))),
    }
}

/// A request that was understood is bounded by its bytes, tame, and the same after another journey.
pub(super) fn connect_request(input: &[u8]) -> u64 {
    let message = Bytes::copy_from_slice(input);
    let head = match connect::decode_request(&message) {
        Err(error) => return kind(&error),
        Ok(Head::Tcp(dest)) => {
            let again = connect::encode_request(&Head::Tcp(dest)).slice(PREAMBLE_LEN..);
            assert!(matches!(connect::decode_request(&again), Ok(Head::Tcp(found)) if found == dest));
            return seen(dest.is_ipv6());
        }
        Ok(Head::Request(head)) => head,
    };
    is_tame(&head.headers);
    assert!(head.headers.len() <= MAX_HEADERS);
    // Each text may be read twice, as the traversal limit has it.
    assert!(size(&head.headers) <= 2 * input.len() + 512, "{} of {}", size(&head.headers), input.len());
    let target = head.target.as_str();
    assert!(target == "*" || target.starts_with('/'), "{target:?}");
    assert!(!target.bytes().any(|b| b <= b' ' || b >= 127), "{target:?}");
    let again = connect::encode_request(&Head::Request(head.clone())).slice(PREAMBLE_LEN..);
    let Ok(Head::Request(again)) = connect::decode_request(&again) else { panic!("not a second time") };
    assert_eq!(
        (&again.method, &again.host, &again.target, again.websocket, again.body),
        (&head.method, &head.host, &head.target, head.websocket, head.body)
    );
    assert_eq!(again.headers, head.headers);
    seen((head.websocket, about(head.headers.len()), std::mem::discriminant(&head.body), head.host.is_empty()))
}

/// The same for an answer.
pub(super) fn connect_response(input: &[u8]) -> u64 {
    match connect::decode_response(&Bytes::copy_from_slice(input)) {
        Err(error) => kind(&error),
        Ok(Answer::Connected) => 1,
        Ok(Answer::Failed { error, rate_limited }) => {
            // A byte that is no UTF-8 becomes three.
            assert!(error.len() <= 3 * input.len());
            let again = connect::encode_failure(&error, rate_limited).slice(PREAMBLE_LEN..);
            let Ok(Answer::Failed { error: text, rate_limited: limited }) = connect::decode_response(&again) else {
                panic!("not a second time")
            };
            assert_eq!((text, limited), (error, rate_limited));
            seen(rate_limited)
        }
        Ok(Answer::Response(head)) => {
            is_tame(&head.headers);
            assert!(size(&head.headers) <= 2 * input.len() + 512);
            let again = connect::encode_response(&head).slice(PREAMBLE_LEN..);
            let Ok(Answer::Response(again)) = connect::decode_response(&again) else { panic!("not a second time") };
            assert_eq!((again.status, &again.headers), (head.status, &head.headers));
            seen((head.status.as_u16() / 100, about(head.headers.len())))
        }
    }
}

/// Packed headers decode to no more than was packed, and to the same after another journey.
pub(super) fn packed_headers(input: &[u8]) -> u64 {
    match headers::unpack(input) {
        Err(error) => kind(&error),
        Ok(found) => {
            is_tame(&found);
            assert!(size(&found) <= input.len());
            let packed = headers::pack(found.iter());
            assert_eq!(headers::unpack(packed.as_bytes()).unwrap(), found);
            let answer = ResponseHead { status: http::StatusCode::OK, headers: found };
            seen((about(answer.headers.len()), answer.headers.contains_key(header::CONTENT_LENGTH)))
        }
    }
}

/// A request as the HTTP/2 library hands it over: method, authority and path on a line each, then headers.
fn parts(input: &[u8]) -> Option<Parts> {
    let mut lines = input.split(|b| *b == b'\n');
    let mut request = Request::builder().method(lines.next()?);
    let (authority, path) = (lines.next()?, lines.next()?);
    let uri = http::Uri::builder();
    let uri = if authority.is_empty() { uri } else { uri.scheme("https").authority(authority) };
    request = request.uri(uri.path_and_query(path).build().ok()?);
    let mut parts = request.body(()).ok()?.into_parts().0;
    for line in lines {
        let (name, value) = line.split_at(line.iter().position(|b| *b == b':')?);
        let name = HeaderName::from_bytes(name).ok()?;
        parts.headers.try_append(name, HeaderValue::from_bytes(value.get(2..)?).ok()?).ok()?;
    }
    Some(parts)
}

/// A head over HTTP/2 is one that QUIC and HTTP/1.1 can say as well.
pub(super) fn http2_head(input: &[u8]) -> u64 {
    let Some(parts) = parts(input) else { return 0 };
    for (websocket, ended) in [(false, false), (false, true), (true, false)] {
        let Ok(head) = adit::transport::http2::request_head(parts.clone(), websocket, ended) else { continue };
        is_tame(&head.headers);
        assert!(!head.headers.contains_key(header::HOST) && !head.headers.contains_key(headers::UPGRADE));
        assert!(head.headers.get_all(header::COOKIE).iter().count() <= 1);
        let lengths: Vec<_> = head.headers.get_all(header::CONTENT_LENGTH).iter().collect();
        if let (BodyLength::Known(length), false) = (head.body, websocket) {
            assert!(lengths.iter().all(|value| value.to_str().unwrap().parse::<u64>().unwrap() == length));
        }
        let said = connect::encode_request(&Head::Request(head.clone())).slice(PREAMBLE_LEN..);
        let Ok(Head::Request(again)) = connect::decode_request(&said) else { panic!("QUIC cannot say it") };
        assert_eq!((&again.method, &again.host, &again.target), (&head.method, &head.host, &head.target));
    }
    let length = connect::content_length(&parts.headers).map_err(|error| kind(&error));
    seen((length.map(|length| length.map(|n| n == 0)), about(parts.headers.len()), parts.uri.authority().is_some()))
}

/// A path is refused or becomes one that a request line can hold, and that is left alone the next time.
pub(super) fn target_path(input: &[u8]) -> u64 {
    match parse_target(input) {
        Err(error) => kind(&error),
        Ok(target) => {
            let text = target.as_str();
            assert!(text == "*" || text.starts_with('/'), "{text:?}");
            assert!(!text.bytes().any(|b| b <= b' ' || b >= 127 || b == b'#'), "{text:?}");
            assert!(text.len() <= 3 * input.len() + 1);
            assert_eq!(parse_target(text.as_bytes()).unwrap(), target);
            seen((text.len() == input.len(), target.query().is_some()))
        }
    }
}

/// The body, whether it ended, and its trailers; or why not.
fn unframe(input: &[u8], piece: usize) -> Result<(Vec<u8>, bool, Option<HeaderMap>), framing::Error> {
    let mut decoder = framing::Decoder::default();
    let mut body = Vec::new();
    for piece in input.chunks(piece.max(1)) {
        let mut piece = Bytes::copy_from_slice(piece);
        while let Some(bytes) = decoder.next(&mut piece)? {
            assert!(!bytes.is_empty());
            body.extend_from_slice(&bytes);
        }
    }
    Ok((body, decoder.ended().is_ok(), decoder.take_trailers()))
}

/// A framed body says the same however it is cut, and its trailers survive another journey.
pub(super) fn framed_body(input: &[u8]) -> u64 {
    let whole = unframe(input, input.len());
    for piece in [1, 3, 4, 5, 64] {
        assert_eq!(unframe(input, piece), whole, "in pieces of {piece}");
    }
    let Ok((body, ended, trailers)) = whole else { return seen(whole.map(drop).map_err(|error| error.to_string())) };
    assert!(body.len() <= input.len());
    if let Some(trailers) = &trailers {
        is_tame(trailers);
        let end = framing::end(trailers).unwrap();
        assert_eq!(unframe(&end, end.len()), Ok((Vec::new(), true, Some(trailers.clone()))));
    }
    seen((about(body.len()), ended, trailers.map(|trailers| about(trailers.len()))))
}

/// Messages pass unchanged up to one that announces too much, however they are cut, and nothing is held of them.
pub(super) fn announced(input: &[u8]) -> u64 {
    const BOUND: usize = 64 << 10;
    let pass = |piece: usize| {
        let mut passed = Vec::new();
        let mut reader = Announced::new(Pieces { input, piece }, Arc::new(AtomicUsize::new(BOUND)));
        let outcome = reader.read_to_end(&mut passed).now_or_never().expect("it never waits");
        (passed, outcome.is_ok())
    };
    let (whole, fine) = pass(input.len().max(1));
    assert!(input.starts_with(&whole) && (!fine || whole.len() == input.len()));
    for piece in [1, 3, 8, 64] {
        let (passed, same) = pass(piece);
        assert_eq!(same, fine, "in pieces of {piece}");
        assert!(input.starts_with(&passed));
    }
    seen((fine, about(whole.len())))
}

/// Gives at most `piece` bytes with each read.
struct Pieces<'a> {
    input: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let length = self.piece.min(self.input.len()).min(buf.remaining());
        let (now, later) = self.input.split_at(length);
        buf.put_slice(now);
        self.input = later;
        Poll::Ready(Ok(()))
    }
}
