//! A visitor's request head: what is refused because it can be read in two ways, what is taken away, what is added.

use std::net::SocketAddr;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body::Body;
use hyper::body::Incoming;

use crate::wire::{BodyLength, RequestHead, connect, hop};

/// Headers whose sender is believed further down, so a visitor must not be that sender.
const PREFIXES_OF_OTHERS: [&str; 6] =
    ["cf-", "x-client-cert-", "x-client-runway-cc-", "x-ssl-client-", "ssl-client-", "x-amzn-mtls-"];
const NAMES_OF_OTHERS: [&str; 5] =
    ["client-cert", "client-cert-chain", "x-forwarded-client-cert", "x-client-cert", "adit-error"];

/// Why a head is refused.
pub(super) type Refusal = (StatusCode, &'static str);

/// What the request is for, lower case: authority of the request line (HTTP/2, absolute form) or Host. Where both are
/// there they must agree, and there is one Host at most: whoever stands behind may look at the other (RFC 9112 §3.2).
pub(super) fn host_of(request: &Request<Incoming>) -> Result<String, Refusal> {
    let invalid = (StatusCode::BAD_REQUEST, "request-invalid");
    let missing = (StatusCode::BAD_REQUEST, "host-missing");
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let named = hosts.next();
    if hosts.next().is_some() {
        return Err(invalid);
    }
    let named = named.map(|host| host.to_str().map_err(|_| invalid)).transpose()?;
    let host = match (request.uri().authority(), named) {
        (Some(authority), named) => {
            let authority = authority.as_str();
            if named.is_some_and(|named| !agree(named, authority)) {
                return Err(invalid);
            }
            authority
        }
        (None, Some(named)) => named,
        (None, None) => return Err(missing),
    };
    if host.is_empty() {
        return Err(missing);
    }
    // What RFC 3986 allows in a host and a port, and nothing that ends a line, a path or a list somewhere.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&b);
    if !host.bytes().all(allowed) {
        return Err(invalid);
    }
    Ok(host.to_lowercase())
}

/// The same name, and the same port where both say one.
fn agree(one: &str, other: &str) -> bool {
    let (one_name, other_name) = (strip_port(one), strip_port(other));
    let port = |host: &str, name: &str| host[name.len()..].trim_start_matches('.').trim_start_matches(':').to_owned();
    let (one_port, other_port) = (port(one, one_name), port(other, other_name));
    one_name.eq_ignore_ascii_case(other_name)
        && (one_port.is_empty() || other_port.is_empty() || one_port == other_port)
}

pub(super) fn strip_port(host: &str) -> &str {
    let bare = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    bare.trim_end_matches('.')
}

const METHOD_NOT_ALLOWED: Refusal = (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed");

/// Whether the visitor asks for a WebSocket, in HTTP/1.1 or by extended CONNECT.
pub(super) fn upgrade_kind(request: &Request<Incoming>, over_h2: bool) -> Result<bool, Refusal> {
    if request.method() == Method::CONNECT {
        let websocket = request.extensions().get::<hyper::ext::Protocol>().is_some_and(|p| p.as_str() == "websocket");
        return if over_h2 && websocket { Ok(true) } else { Err(METHOD_NOT_ALLOWED) };
    }
    Ok(!over_h2
        && request.method() == Method::GET
        && hop::tokens(request.headers(), &header::UPGRADE).any(|token| token.eq_ignore_ascii_case("websocket"))
        && hop::tokens(request.headers(), &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")))
}

pub(super) fn request_head(
    parts: http::request::Parts,
    body: &Incoming,
    host: &str,
    upgrade: bool,
    peer: SocketAddr,
    secure: bool,
) -> Result<RequestHead, http::Error> {
    let http::request::Parts { mut method, uri, mut headers, .. } = parts;
    let length = connect::content_length(&headers).ok().flatten();
    let body = if upgrade || body.is_end_stream() && length.unwrap_or(0) == 0 {
        if !upgrade && length == Some(0) { BodyLength::Known(0) } else { BodyLength::None }
    } else {
        body.size_hint().exact().map_or(BodyLength::Unknown, BodyLength::Known)
    };
    let trailers_welcome = hop::tokens(&headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(&mut headers);
    if trailers_welcome && !upgrade {
        // Each hop says so anew (RFC 9110 §10.1.4), and gRPC services answer nobody who does not.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    headers.remove(header::HOST);
    headers.remove(header::CONTENT_LENGTH);
    strip_names_of_others(&mut headers);
    if upgrade {
        method = Method::GET;
        headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        if !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
            let key = STANDARD.encode(rand::random::<[u8; 16]>());
            headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key)?);
        }
    }
    let address = HeaderValue::from_str(&peer.ip().to_canonical().to_string())?;
    headers.append("x-forwarded-for", address.clone());
    headers.insert("x-forwarded-proto", HeaderValue::from_static(if secure { "https" } else { "http" }));
    headers.insert("cf-connecting-ip", address);
    headers.insert("cf-ray", HeaderValue::from_str(&format!("{:016x}-ADIT", rand::random::<u64>()))?);
    Ok(RequestHead {
        websocket: upgrade,
        method,
        host: HeaderValue::from_str(host)?,
        target: uri.path_and_query().cloned().unwrap_or_else(connect::root_target),
        headers,
        body,
    })
}

/// Headers of one hop; the visitor's proxy credentials are for nobody behind an edge either.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    hop::strip(headers, &[]);
    headers.remove(header::PROXY_AUTHORIZATION);
}

/// A visitor's own wish: where `cloudflared access tcp --destination` wants to go behind a bastion.
const JUMP_DESTINATION: HeaderName = HeaderName::from_static("cf-access-jump-destination");

/// `_` and `-` are one to many services, so both spellings go.
pub(super) fn strip_names_of_others(headers: &mut HeaderMap) {
    let spoofed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| **name != JUMP_DESTINATION)
        .filter(|name| {
            let name = name.as_str().replace('_', "-");
            PREFIXES_OF_OTHERS.iter().any(|prefix| name.starts_with(prefix)) || NAMES_OF_OTHERS.contains(&name.as_str())
        })
        .cloned()
        .collect();
    for name in spoofed {
        headers.remove(name);
    }
}
