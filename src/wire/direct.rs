//! A request head as a visitor says it to us by himself: what is refused because it can be read in two ways, and what
//! is for one hop alone.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, Request, header, request::Parts};
use http_body::Body;

use super::{BodyLength, RequestHead, connect, hop};

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nothing says what the request is for.
    #[error("there is no host")]
    HostMissing,
    /// It can be read in two ways, or not at all.
    #[error("the head is no head")]
    Invalid,
    /// CONNECT, but for a WebSocket over HTTP/2.
    #[error("there is nothing to connect to")]
    Method,
}

/// What the request is for, lower case: authority of the request line (HTTP/2, absolute form) or Host. Where both are
/// there they must agree, and there is one Host at most: whoever stands behind may look at the other (RFC 9112 §3.2).
///
/// # Errors
///
/// [`Refused::HostMissing`], [`Refused::Invalid`].
pub fn host_of<B>(request: &Request<B>) -> Result<String, Refused> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let named = hosts.next();
    if hosts.next().is_some() {
        return Err(Refused::Invalid);
    }
    let named = named.map(|host| host.to_str().map_err(|_| Refused::Invalid)).transpose()?;
    let host = match (request.uri().authority(), named) {
        (Some(authority), named) => {
            let authority = authority.as_str();
            if named.is_some_and(|named| !agree(named, authority)) {
                return Err(Refused::Invalid);
            }
            authority
        }
        (None, Some(named)) => named,
        (None, None) => return Err(Refused::HostMissing),
    };
    if host.is_empty() {
        return Err(Refused::HostMissing);
    }
    // What RFC 3986 allows in a host and a port, and nothing that ends a line, a path or a list somewhere.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&b);
    if !host.bytes().all(allowed) || host.contains("..") {
        return Err(Refused::Invalid);
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

/// A host without its port and its final dot.
pub fn strip_port(host: &str) -> &str {
    let bare = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    bare.trim_end_matches('.')
}

/// Whether the visitor asks for a WebSocket, in HTTP/1.1 or by extended CONNECT (RFC 8441).
///
/// # Errors
///
/// [`Refused::Method`].
pub fn is_upgrade<B>(request: &Request<B>, over_h2: bool) -> Result<bool, Refused> {
    if request.method() == Method::CONNECT {
        let websocket = request.extensions().get::<hyper::ext::Protocol>().is_some_and(|p| p.as_str() == "websocket");
        return if over_h2 && websocket { Ok(true) } else { Err(Refused::Method) };
    }
    Ok(!over_h2
        && request.method() == Method::GET
        && hop::tokens(request.headers(), &header::UPGRADE).any(|token| token.eq_ignore_ascii_case("websocket"))
        && hop::tokens(request.headers(), &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")))
}

/// The head in the shape it has whatever carried it, without what was said for this hop.
///
/// # Errors
///
/// [`Refused::Invalid`].
pub fn request_head(parts: Parts, body: &impl Body, host: &str, upgrade: bool) -> Result<RequestHead, Refused> {
    let Parts { mut method, uri, mut headers, .. } = parts;
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
    if upgrade {
        method = Method::GET;
        headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        if !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
            let key = STANDARD.encode(rand::random::<[u8; 16]>());
            headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).map_err(|_| Refused::Invalid)?);
        }
    }
    Ok(RequestHead {
        websocket: upgrade,
        method,
        host: HeaderValue::from_str(host).map_err(|_| Refused::Invalid)?,
        target: uri.path_and_query().cloned().unwrap_or_else(connect::root_target),
        headers,
        body,
    })
}

/// Headers of one hop; the visitor's proxy credentials are for nobody behind us either.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    hop::strip(headers, &[]);
    headers.remove(header::PROXY_AUTHORIZATION);
}
