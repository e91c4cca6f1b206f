//! A visitor's request head: what is refused because it can be read in two ways, what is taken away, what is added.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::body::Incoming;

use super::{Visitor, caller::Relay};
use crate::wire::{
    RequestHead,
    direct::{self, Refused},
};

/// Headers whose sender is believed further down, so a visitor must not be that sender.
const PREFIXES_OF_OTHERS: [&str; 6] =
    ["cf-", "x-client-cert-", "x-client-runway-cc-", "x-ssl-client-", "ssl-client-", "x-amzn-mtls-"];
const NAMES_OF_OTHERS: [&str; 5] =
    ["client-cert", "client-cert-chain", "x-forwarded-client-cert", "x-client-cert", "adit-error"];

/// Why a head is refused.
pub(super) type Refusal = (StatusCode, &'static str);

/// A head that nobody could read in one way only.
pub(super) fn refusal_of(refused: Refused) -> Refusal {
    match refused {
        Refused::HostMissing => (StatusCode::BAD_REQUEST, "host-missing"),
        Refused::Invalid => (StatusCode::BAD_REQUEST, "request-invalid"),
        Refused::Method => (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed"),
    }
}

pub(super) fn request_head(
    parts: http::request::Parts,
    body: &Incoming,
    host: &str,
    upgrade: bool,
    visitor: &Visitor,
    certificate: Option<&Relay>,
) -> Result<RequestHead, Refused> {
    let mut head = direct::request_head(parts, body, host, upgrade)?;
    let headers = &mut head.headers;
    strip_names_of_others(headers);
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| Refused::Invalid);
    let address = value(&visitor.peer.ip().to_canonical().to_string())?;
    headers.append("x-forwarded-for", address.clone());
    let secure = visitor.handshake.is_some();
    headers.insert("x-forwarded-proto", HeaderValue::from_static(if secure { "https" } else { "http" }));
    if let Some(certificate) = certificate {
        certificate.write(headers);
    }
    headers.insert("cf-connecting-ip", address);
    headers.insert("cf-ray", value(&format!("{:016x}-ADIT", rand::random::<u64>()))?);
    Ok(head)
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
