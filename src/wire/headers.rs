//! HTTP/2 spelling of a tunnel: control headers, and user headers packed into one (protocol.md §6.3 to §6.6).

use std::borrow::Cow;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::general_purpose::{GeneralPurpose, NO_PAD, STANDARD_NO_PAD},
};
use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Error, connect::MAX_HEADERS};

/// Tells what kind of stream a request opens (§6.3).
pub const UPGRADE: HeaderName = HeaderName::from_static("cf-cloudflared-proxy-connection-upgrade");
/// Present on TCP streams.
pub const TCP_SOURCE: HeaderName = HeaderName::from_static("cf-cloudflared-proxy-src");
/// The packed user headers of a response.
pub const RESPONSE_HEADERS: HeaderName = HeaderName::from_static("cf-cloudflared-response-headers");
/// Who produced a response.
pub const RESPONSE_META: HeaderName = HeaderName::from_static("cf-cloudflared-response-meta");
/// Trace context, consumed by the connector (§9.2).
pub const TRACE_ID: HeaderName = HeaderName::from_static("cf-trace-id");

/// [`RESPONSE_META`] of an answer that a service gave.
pub const META_ORIGIN: HeaderValue = HeaderValue::from_static(r#"{"src":"origin"}"#);
/// [`RESPONSE_META`] of a failure of the connector.
pub const META_CONNECTOR: HeaderValue = HeaderValue::from_static(r#"{"src":"cloudflared"}"#);
/// [`RESPONSE_META`] of a refusal by the flow limiter.
pub const META_RATE_LIMITED: HeaderValue =
    HeaderValue::from_static(r#"{"src":"cloudflared","flow_rate_limited":true}"#);

/// Values of [`UPGRADE`].
pub const UPGRADE_WEBSOCKET: &[u8] = b"websocket";
/// The edge's request that carries the control stream.
pub const UPGRADE_CONTROL: &[u8] = b"control-stream";
/// The edge's request that carries a configuration.
pub const UPGRADE_CONFIGURE: &[u8] = b"update-configuration";

/// Whether a response header belongs to the tunnel and must not be taken from a service (lower-case name).
pub fn is_control(name: &str) -> bool {
    name.starts_with(':')
        || name.starts_with("cf-int-")
        || name.starts_with("cf-cloudflared-")
        || name.starts_with("cf-proxy-")
}

/// Writes `name` the way Go spells header names: `x-foo` becomes `X-Foo` (§12.1 item 14).
pub fn put_canonical(name: &str, out: &mut impl BufMut) {
    let mut start_of_word = true;
    for byte in name.bytes() {
        out.put_u8(if start_of_word { byte.to_ascii_uppercase() } else { byte });
        start_of_word = byte == b'-';
    }
}

/// Go's decoder does not look at the bits behind the last byte.
const FORGIVING: GeneralPurpose = GeneralPurpose::new(&STANDARD, NO_PAD.with_decode_allow_trailing_bits(true));

/// Packs headers into one value: `base64(name):base64(value)` joined by `;`, one pair per value (§6.5).
pub fn pack<'a>(headers: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>) -> HeaderValue {
    let mut packed = BytesMut::with_capacity(512);
    let mut canonical = Vec::with_capacity(32);
    for (name, value) in headers {
        if !packed.is_empty() {
            packed.put_u8(b';');
        }
        canonical.clear();
        put_canonical(name.as_str(), &mut canonical);
        put_base64(&canonical, &mut packed);
        packed.put_u8(b':');
        put_base64(value.as_bytes(), &mut packed);
    }
    // Base64, `:` and `;` are always a legal header value.
    HeaderValue::from_maybe_shared(packed.freeze()).unwrap_or(HeaderValue::from_static(""))
}

fn put_base64(bytes: &[u8], out: &mut BytesMut) {
    let start = out.len();
    let len = bytes.len().div_ceil(3) * 4;
    out.resize(start + len, 0);
    let written = STANDARD_NO_PAD.encode_slice(bytes, &mut out[start..]).unwrap_or(0);
    out.truncate(start + written);
}

/// Unpacks what [`pack`] or a peer packed; order and repeats are kept.
///
/// # Errors
///
/// [`Error::PackedHeaders`] for what is not strict base64 pairs, [`Error::Http`] for names or values HTTP forbids,
/// [`Error::TooManyHeaders`] above [`MAX_HEADERS`], as on QUIC.
pub fn unpack(packed: &[u8]) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    // Values under one name do not count towards the map's own limit, and whoever takes a long row of them out again
    // one by one needs a time that grows with its square: 100,000 of them stood still for minutes.
    let pairs = packed.split(|&b| b == b';').filter(|pair| !pair.is_empty());
    if pairs.clone().take(MAX_HEADERS + 1).count() > MAX_HEADERS {
        return Err(Error::TooManyHeaders);
    }
    for pair in pairs {
        let (name, value) = split_pair(pair)?;
        if name.is_empty() {
            continue;
        }
        let name = HeaderName::from_bytes(&name).map_err(|_| Error::Http("header name"))?;
        let value =
            HeaderValue::from_maybe_shared(bytes::Bytes::from(value)).map_err(|_| Error::Http("header value"))?;
        headers.try_append(name, value).map_err(|_| Error::TooManyHeaders)?;
    }
    Ok(headers)
}

/// One `name:value` pair, decoded.
///
/// # Errors
///
/// [`Error::PackedHeaders`] unless there is exactly one `:` between two pieces of strict base64.
pub fn split_pair(pair: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let mut pieces = pair.split(|&b| b == b':');
    let (Some(name), Some(value), None) = (pieces.next(), pieces.next(), pieces.next()) else {
        return Err(Error::PackedHeaders);
    };
    let decode = |piece: &[u8]| FORGIVING.decode(strip_line_ends(piece)).map_err(|_| Error::PackedHeaders);
    Ok((decode(name)?, decode(value)?))
}

/// Go's decoder skips CR and LF wherever they stand.
fn strip_line_ends(piece: &[u8]) -> Cow<'_, [u8]> {
    if piece.iter().any(|b| matches!(b, b'\r' | b'\n')) {
        Cow::Owned(piece.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect())
    } else {
        Cow::Borrowed(piece)
    }
}
