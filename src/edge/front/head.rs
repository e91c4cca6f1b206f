//! A visitor's request head: what is refused because it can be read in two ways, what is taken away, what is added.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::body::Incoming;

use super::{Visitor, caller::Relay};
use crate::{
    callers::families::Families,
    wire::{
        RequestHead,
        direct::{self, Refused},
    },
};

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

/// What only an edge may say: whatever speaks of certificates, what Cloudflare's edge says of a visitor, and why an
/// answer is none of a service's. Signs are all one to many services, so every spelling goes.
pub(super) fn strip_names_of_others(headers: &mut HeaderMap) {
    static FAMILIES: LazyLock<Families> = LazyLock::new(|| Families::new(["cf-", "adit-error"].into_iter()));
    let told = |name: &&HeaderName| **name != JUMP_DESTINATION && FAMILIES.contain(name.as_str());
    let spoofed: Vec<HeaderName> = headers.keys().filter(told).cloned().collect();
    for name in spoofed {
        headers.remove(name);
    }
}
