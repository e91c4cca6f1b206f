//! Headers that belong to one hop of HTTP, for both ends of a tunnel (RFC 9110 §7.6.1).

use http::{HeaderMap, HeaderName, header};

use super::headers::is_control;

/// Headers of one hop whatever `Connection` says.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The comma-separated tokens of a header, all its lines together.
pub fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(',').map(str::trim))
}

/// Removes the headers of one hop and those that `Connection` names, but for `kept`: what a sender must not take away
/// from the next hop by naming it.
pub fn strip(headers: &mut HeaderMap, kept: &[HeaderName]) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            .filter(|name| !kept.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// What decides about framing, routing, authentication or the meaning of a body belongs into a head (RFC 9110 §6.5.1).
const NO_TRAILERS: [HeaderName; 15] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::FORWARDED,
    header::HOST,
    header::MAX_FORWARDS,
    header::PROXY_AUTHORIZATION,
    header::RANGE,
    header::SET_COOKIE,
    header::TRAILER,
];

/// Trailers as they may be passed on: without what belongs into a head, to one hop, or to the tunnel itself.
pub fn clean_trailers(mut trailers: HeaderMap) -> HeaderMap {
    let foreign: Vec<_> = trailers
        .keys()
        .filter(|name| NO_TRAILERS.contains(name) || HOP_BY_HOP.contains(name) || is_control(name.as_str()))
        .cloned()
        .collect();
    for name in foreign {
        trailers.remove(name);
    }
    trailers
}
