//! QUIC spelling of a tunnel: stream signatures, `ConnectRequest` and `ConnectResponse` (protocol.md §3.5, §3.6).
//!
//! Decoding borrows: header values are slices of the received message, not copies.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use capnp::{
    message::{Builder, HeapAllocator, ReaderOptions},
    serialize::{self, NoAllocSliceSegments},
    text,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::PathAndQuery};

use super::{
    BodyLength, Error, Head, Kind, RequestHead, ResponseHead, framing,
    headers::{TRACE_ID, UPGRADE, put_canonical},
    parse_target,
    schema::metadata_capnp::{ConnectionType, connect_request, connect_response, metadata},
};

/// First bytes of a data stream, before the version.
pub const DATA_SIGNATURE: [u8; 6] = [0x0a, 0x36, 0xcd, 0x12, 0xa1, 0x3e];
/// First bytes of an RPC stream; no version follows.
pub const RPC_SIGNATURE: [u8; 6] = [0x52, 0xbb, 0x82, 0x5c, 0xdb, 0x65];
/// Version of a data stream: two ASCII digits, ignored by readers.
pub const VERSION: [u8; 2] = *b"01";
/// Signature and version.
pub const PREAMBLE_LEN: usize = 8;

/// Largest message accepted or held, in bytes. The peer's own header limit is about 1 MiB; four leave room.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Most headers in one message; `HeaderMap` itself ends at 32,768.
pub const MAX_HEADERS: usize = 8192;
/// The peer's own bound on segments.
const MAX_SEGMENTS: u32 = 513;

const HEADER_PREFIX: &[u8] = b"HttpHeader:";

/// What a stream's first six bytes announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// A visitor's stream.
    Data,
    /// A call to the connector.
    Rpc,
}

/// Reads the signature, `None` while bytes are missing.
///
/// # Errors
///
/// [`Error::Signature`] as soon as the bytes cannot become one.
pub fn signature(bytes: &[u8]) -> Result<Option<Signature>, Error> {
    let n = bytes.len().min(6);
    let (data, rpc) = (bytes[..n] == DATA_SIGNATURE[..n], bytes[..n] == RPC_SIGNATURE[..n]);
    match (data, rpc, n) {
        (false, false, _) => Err(Error::Signature),
        (true, _, 6) => Ok(Some(Signature::Data)),
        (_, true, 6) => Ok(Some(Signature::Rpc)),
        _ => Ok(None),
    }
}

/// Length in bytes of the framed message that `bytes` begins with, `None` while its segment table is incomplete.
///
/// # Errors
///
/// For more segments or bytes than the bound; nothing is reserved before the bytes are here.
pub fn message_len(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some(word) = bytes.first_chunk::<4>() else { return Ok(None) };
    let segments = u32::from_le_bytes(*word).saturating_add(1);
    if segments > MAX_SEGMENTS {
        return Err(Error::TooLarge(u64::from(segments) * 8));
    }
    let table = (4 + 4 * segments as usize).next_multiple_of(8);
    let Some(lengths) = bytes.get(4..4 + 4 * segments as usize) else { return Ok(None) };
    let words: u64 = lengths
        .chunks_exact(4)
        .filter_map(|chunk| chunk.first_chunk::<4>())
        .map(|chunk| u64::from(u32::from_le_bytes(*chunk)))
        .sum();
    let total = table as u64 + words * 8;
    if total > MAX_MESSAGE as u64 {
        return Err(Error::TooLarge(total));
    }
    // A first segment without a word has no root; readers must not look for one (protocol.md §15.1 item 1).
    if lengths[..4] == [0; 4] {
        return Err(capnp::Error::failed("the first segment is empty".into()).into());
    }
    Ok(Some(total as usize))
}

fn reader(message: &Bytes) -> Result<capnp::message::Reader<NoAllocSliceSegments<'_>>, Error> {
    // Each text is read once, so a message that refers to the same bytes again and again runs into this limit.
    let words = message.len() / 8;
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(words * 2 + 64));
    Ok(serialize::read_message_from_flat_slice_no_alloc(&mut &message[..], options)?)
}

fn text_bytes(text: capnp::Result<text::Reader<'_>>) -> Result<&[u8], Error> {
    Ok(text?.as_bytes())
}

/// Whether a body is framed, by the value of its key.
fn framed(value: &[u8]) -> Result<bool, Error> {
    if value == framing::VALUE { Ok(true) } else { Err(Error::Framing) }
}

/// Decodes a `ConnectRequest` (without signature and version) of an edge with which no framing was agreed on.
///
/// # Errors
///
/// For everything malformed; the stream is answered with the error, the connection lives on. [`Error::Framing`] too:
/// frames that are not understood would reach the service as its body.
pub fn decode_request(message: &Bytes) -> Result<Head, Error> {
    match decode_request_of_own(message)? {
        (head, false) => Ok(head),
        (_, true) => Err(Error::Framing),
    }
}

/// Decodes a `ConnectRequest` of our own edge, and says whether the answer may be framed; the body is then, if its
/// length is unknown.
///
/// # Errors
///
/// For everything malformed.
pub fn decode_request_of_own(message: &Bytes) -> Result<(Head, bool), Error> {
    let reader = reader(message)?;
    let request = reader.get_root::<connect_request::Reader<'_>>()?;
    let dest = text_bytes(request.get_dest())?;
    let kind = match request.get_type() {
        Ok(ConnectionType::Http) => Kind::Http,
        Ok(ConnectionType::Websocket) => Kind::WebSocket,
        Ok(ConnectionType::Tcp) => Kind::Tcp,
        Err(capnp::NotInSchema(value)) => return Err(Error::ConnectionType(value)),
    };
    if kind == Kind::Tcp {
        let dest = std::str::from_utf8(dest).map_err(|_| Error::Destination)?;
        let dest = dest.parse::<SocketAddr>().map_err(|_| Error::Destination)?;
        return Ok((Head::Tcp(dest), false));
    }
    let list = request.get_metadata()?;
    if list.len() as usize > MAX_HEADERS {
        return Err(Error::TooManyHeaders);
    }
    let mut method = Method::GET;
    let mut host = None;
    let mut framing = false;
    let mut headers = HeaderMap::with_capacity(list.len() as usize);
    for entry in list {
        let key = text_bytes(entry.get_key())?;
        let value = text_bytes(entry.get_val())?;
        match key {
            b"HttpMethod" if value.is_empty() => method = Method::GET,
            b"HttpMethod" => method = Method::from_bytes(value).map_err(|_| Error::Http("method"))?,
            b"HttpHost" => host = Some(shared_value(message, value, "host")?),
            framing::KEY if kind == Kind::Http => framing = framed(value)?,
            framing::KEY => return Err(Error::Framing),
            _ => {
                if let Some(name) = header_name(key)? {
                    let value = shared_value(message, value, "header value")?;
                    headers.try_append(name, value).map_err(|_| Error::TooManyHeaders)?;
                }
            }
        }
    }
    let (authority, target) = split_url(dest);
    let host = match host {
        Some(host) => host,
        None => shared_value(message, authority, "host")?,
    };
    let target = parse_target(if target.is_empty() { b"/" } else { target })?;
    headers.remove(UPGRADE);
    headers.remove(TRACE_ID);
    let body = if kind == Kind::WebSocket { BodyLength::None } else { body_length(&headers)? };
    let head = RequestHead { websocket: kind == Kind::WebSocket, method, host, target, headers, body };
    Ok((Head::Request(head), framing))
}

fn shared_value(message: &Bytes, value: &[u8], what: &'static str) -> Result<HeaderValue, Error> {
    HeaderValue::from_maybe_shared(message.slice_ref(value)).map_err(|_| Error::Http(what))
}

/// A key speaks of a header when it contains `HttpHeader`; it must then be exactly two pieces around one `:`.
fn header_name(key: &[u8]) -> Result<Option<HeaderName>, Error> {
    let name = match key.strip_prefix(HEADER_PREFIX) {
        Some(name) if !name.contains(&b':') => name,
        Some(_) => return Err(Error::HeaderKey),
        None if key.windows(10).any(|w| w == b"HttpHeader") => {
            let mut pieces = key.split(|&b| b == b':');
            match (pieces.next(), pieces.next(), pieces.next()) {
                (Some(_), Some(name), None) => name,
                _ => return Err(Error::HeaderKey),
            }
        }
        None => return Ok(None),
    };
    HeaderName::from_bytes(name).map(Some).map_err(|_| Error::Http("header name"))
}

/// Splits `https://host/path?q` or `/path?q` into authority and target; scheme and user information are ignored.
fn split_url(dest: &[u8]) -> (&[u8], &[u8]) {
    let Some(scheme_end) = dest.windows(3).position(|w| w == b"://") else { return (b"", dest) };
    if dest[..scheme_end].contains(&b'/') {
        return (b"", dest);
    }
    let rest = &dest[scheme_end + 3..];
    let path = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let authority = &rest[..path];
    let host = authority.iter().rposition(|&b| b == b'@').map_or(authority, |at| &authority[at + 1..]);
    (host, &rest[path..])
}

/// The delimitation rule of §3.6: without a length above zero and without `chunked` the body is dropped.
fn body_length(headers: &HeaderMap) -> Result<BodyLength, Error> {
    let chunked = headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .any(|value| value.as_bytes().windows(7).any(|w| w.eq_ignore_ascii_case(b"chunked")));
    if chunked {
        return Ok(BodyLength::Unknown);
    }
    Ok(match content_length(headers)? {
        None => BodyLength::None,
        Some(length) => BodyLength::Known(length),
    })
}

/// The one length that every `Content-Length` agrees on.
///
/// # Errors
///
/// [`Error::Http`] for anything but digits and for values that disagree (RFC 9112 §6.3): guessing is how requests are
/// smuggled.
pub fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let text = value.as_bytes();
        let parsed = std::str::from_utf8(text)
            .ok()
            .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|text| text.parse::<u64>().ok())
            .ok_or(Error::Http("content-length"))?;
        if length.is_some_and(|known| known != parsed) {
            return Err(Error::Http("content-length"));
        }
        length = Some(parsed);
    }
    Ok(length)
}

/// Encodes a `ConnectRequest` with signature and version, as an edge sends it to any connector.
///
/// `TE` stays behind: there are no trailers to be welcomed.
pub fn encode_request(head: &Head) -> Bytes {
    encode_request_for(head, false)
}

/// As [`encode_request`], for a connector with which framing was agreed on: its answer may be framed, and the body
/// that follows is, if its length is unknown.
pub fn encode_request_of_own(head: &Head) -> Bytes {
    encode_request_for(head, true)
}

fn encode_request_for(head: &Head, own: bool) -> Bytes {
    let mut message = builder(match head {
        Head::Request(request) => estimate(&request.headers) + request.target.as_str().len(),
        Head::Tcp(_) => 64,
    });
    let mut root = message.init_root::<connect_request::Builder<'_>>();
    match head {
        Head::Tcp(dest) => {
            root.set_dest(dest.to_string());
            root.set_type(ConnectionType::Tcp);
        }
        Head::Request(request) => {
            root.set_type(if request.websocket { ConnectionType::Websocket } else { ConnectionType::Http });
            root.set_dest(request.target.as_str());
            let length = match request.body {
                BodyLength::None => None,
                BodyLength::Known(n) if !request.headers.contains_key(header::CONTENT_LENGTH) => {
                    Some(("HttpHeader:Content-Length", n.to_string()))
                }
                BodyLength::Unknown if !request.headers.contains_key(header::TRANSFER_ENCODING) => {
                    Some(("HttpHeader:Transfer-Encoding", "chunked".to_owned()))
                }
                BodyLength::Known(_) | BodyLength::Unknown => None,
            };
            let framed = own && !request.websocket;
            let passing = || request.headers.iter().filter(|(name, _)| framed || **name != header::TE);
            let mut list =
                root.init_metadata((2 + passing().count()) as u32 + u32::from(framed) + u32::from(length.is_some()));
            set(list.reborrow().get(0), b"HttpMethod", request.method.as_str().as_bytes());
            set(list.reborrow().get(1), b"HttpHost", request.host.as_bytes());
            let mut at = 2;
            if let Some((key, value)) = &length {
                set(list.reborrow().get(at), key.as_bytes(), value.as_bytes());
                at += 1;
            }
            if framed {
                set(list.reborrow().get(at), framing::KEY, framing::VALUE);
                at += 1;
            }
            set_headers(list, at, passing());
        }
    }
    finish(&message)
}

/// What a connector answered.
#[derive(Debug)]
pub enum Answer {
    /// An HTTP answer, a 101 included.
    Response(ResponseHead),
    /// A TCP stream is connected.
    Connected,
    /// The connector could not answer for the service.
    Failed {
        /// The connector's words; they may name internal addresses and are for logs only.
        error: String,
        /// Whether its flow limiter refused.
        rate_limited: bool,
    },
}

/// Encodes an HTTP answer with signature and version.
pub fn encode_response(head: &ResponseHead) -> Bytes {
    encode_response_as(head, false)
}

/// As [`encode_response`], for an answer whose body is framed; only for a request that allowed it.
pub fn encode_framed_response(head: &ResponseHead) -> Bytes {
    encode_response_as(head, true)
}

fn encode_response_as(head: &ResponseHead, framed: bool) -> Bytes {
    let mut message = builder(estimate(&head.headers));
    let root = message.init_root::<connect_response::Builder<'_>>();
    let first = 1 + u32::from(framed);
    let mut list = root.init_metadata(head.headers.len() as u32 + first);
    set(list.reborrow().get(0), b"HttpStatus", head.status.as_str().as_bytes());
    if framed {
        set(list.reborrow().get(1), framing::KEY, framing::VALUE);
    }
    set_headers(list, first, head.headers.iter());
    finish(&message)
}

/// Encodes the acknowledgement of a TCP stream.
pub fn encode_connected() -> Bytes {
    let mut message = builder(0);
    message.init_root::<connect_response::Builder<'_>>();
    finish(&message)
}

/// Encodes a failure.
pub fn encode_failure(error: &str, rate_limited: bool) -> Bytes {
    let mut message = builder(error.len() + 64);
    let mut root = message.init_root::<connect_response::Builder<'_>>();
    root.set_error(error);
    if rate_limited {
        let list = root.init_metadata(1);
        set(list.get(0), b"FlowConnectRateLimited", b"true");
    }
    finish(&message)
}

/// Decodes a `ConnectResponse` (without signature and version) to a request that allowed no framing.
///
/// # Errors
///
/// For everything malformed, a status that is no number included, and [`Error::Framing`].
pub fn decode_response(message: &Bytes) -> Result<Answer, Error> {
    match decode_response_of_own(message)? {
        (answer, false) => Ok(answer),
        (_, true) => Err(Error::Framing),
    }
}

/// Decodes a `ConnectResponse` to a request that allowed framing, and says whether the body is framed.
///
/// # Errors
///
/// For everything malformed.
pub fn decode_response_of_own(message: &Bytes) -> Result<(Answer, bool), Error> {
    let reader = reader(message)?;
    let response = reader.get_root::<connect_response::Reader<'_>>()?;
    let error = text_bytes(response.get_error())?;
    let list = response.get_metadata()?;
    if list.len() as usize > MAX_HEADERS {
        return Err(Error::TooManyHeaders);
    }
    let mut rate_limited = false;
    let mut status = None;
    let mut framing = false;
    let mut headers = HeaderMap::with_capacity(list.len() as usize);
    for entry in list {
        let key = text_bytes(entry.get_key())?;
        let value = text_bytes(entry.get_val())?;
        match key {
            framing::KEY => framing = framed(value)?,
            b"HttpStatus" => status = Some(StatusCode::from_bytes(value).map_err(|_| Error::Http("status"))?),
            b"FlowConnectRateLimited" => rate_limited = value == b"true",
            _ => {
                if let Some(name) = header_name(key)? {
                    let value = shared_value(message, value, "header value")?;
                    headers.try_append(name, value).map_err(|_| Error::TooManyHeaders)?;
                }
            }
        }
    }
    if !error.is_empty() {
        return Ok((Answer::Failed { error: String::from_utf8_lossy(error).into_owned(), rate_limited }, false));
    }
    match status {
        Some(StatusCode::SWITCHING_PROTOCOLS) if framing => Err(Error::Framing),
        Some(status) => Ok((Answer::Response(ResponseHead { status, headers }), framing)),
        None => Ok((Answer::Connected, false)),
    }
}

/// A path and query for requests that have none.
pub fn root_target() -> PathAndQuery {
    PathAndQuery::from_static("/")
}

fn builder(text_bytes: usize) -> Builder<HeapAllocator> {
    let words = (text_bytes / 8 + 24) as u32;
    Builder::new(HeapAllocator::new().first_segment_words(words))
}

/// Room for the texts and the list of one message: two padded texts with their terminators and two pointers each.
fn estimate(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 48).sum::<usize>() + 128
}

fn set(mut entry: metadata::Builder<'_>, key: &[u8], value: &[u8]) {
    entry.set_key(text::Reader(key));
    entry.set_val(text::Reader(value));
}

fn set_headers<'a>(
    mut list: capnp::struct_list::Builder<'_, metadata::Owned>,
    from: u32,
    headers: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) {
    let mut key = Vec::with_capacity(64);
    for (at, (name, value)) in (from..).zip(headers) {
        key.clear();
        key.extend_from_slice(HEADER_PREFIX);
        put_canonical(name.as_str(), &mut key);
        set(list.reborrow().get(at), &key, value.as_bytes());
    }
}

fn finish(message: &Builder<HeapAllocator>) -> Bytes {
    let words = serialize::compute_serialized_size_in_words(message);
    let mut out = Vec::with_capacity(PREAMBLE_LEN + words * 8);
    out.extend_from_slice(&DATA_SIGNATURE);
    out.extend_from_slice(&VERSION);
    // Writing to a Vec cannot fail.
    let _ = serialize::write_message(&mut out, message);
    Bytes::from(out)
}

/// Collects a stream's first bytes until the message is whole.
#[derive(Debug, Default)]
pub struct Collector {
    bytes: BytesMut,
    first: Bytes,
}

impl Collector {
    /// Adds received bytes. The usual case, everything in the first chunk, copies nothing.
    pub fn push(&mut self, chunk: Bytes) {
        if self.first.is_empty() && self.bytes.is_empty() {
            self.first = chunk;
        } else {
            if self.bytes.is_empty() {
                self.bytes.extend_from_slice(&self.first);
                self.first = Bytes::new();
            }
            self.bytes.extend_from_slice(&chunk);
        }
    }

    /// Whether nothing was received.
    pub fn is_empty(&self) -> bool {
        self.seen().is_empty()
    }

    fn seen(&self) -> &[u8] {
        if self.bytes.is_empty() { &self.first } else { &self.bytes }
    }

    /// The signature, once it is here.
    ///
    /// # Errors
    ///
    /// [`Error::Signature`].
    pub fn signature(&self) -> Result<Option<Signature>, Error> {
        signature(self.seen())
    }

    /// Takes what was received beyond `skip` bytes, for a stream that goes on without a message.
    pub fn into_rest(self, skip: usize) -> Bytes {
        let mut all = if self.bytes.is_empty() { self.first } else { self.bytes.freeze() };
        all.split_off(skip.min(all.len()))
    }

    /// The message after the preamble and the bytes beyond it, once the message is whole.
    ///
    /// # Errors
    ///
    /// Those of [`message_len`].
    pub fn message(&mut self) -> Result<Option<(Bytes, Bytes)>, Error> {
        let Some(rest) = self.seen().get(PREAMBLE_LEN..) else { return Ok(None) };
        let Some(len) = message_len(rest)? else { return Ok(None) };
        if rest.len() < len {
            return Ok(None);
        }
        let mut all = if self.bytes.is_empty() { std::mem::take(&mut self.first) } else { self.bytes.split().freeze() };
        let body = all.split_off(PREAMBLE_LEN + len);
        Ok(Some((all.split_off(PREAMBLE_LEN), body)))
    }
}
