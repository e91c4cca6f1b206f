//! What a service hears of its caller.
//!
//! Everything here is written by adit: digits, hexadecimal, Base64 and names whose characters were checked. Nothing of
//! a certificate gets into a header as it stands.

mod dn;
mod values;
mod xfcc;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};

pub(super) use values::Values;

use super::MaybeCaller;
use crate::config::{CallerHeaders, Callers};

/// The fourteen names behind the prefix, in the order of [`Values::fourteen`].
const NAMES: [&str; 14] = [
    "present",
    "chain-verified",
    "error",
    "sha256-fingerprint",
    "serial-number",
    "spiffe-id",
    "uri-sans",
    "dnsname-sans",
    "valid-not-before",
    "valid-not-after",
    "issuer-dn",
    "subject-dn",
    "leaf",
    "chain",
];

/// What a service wants to hear, ready to be written for many requests.
#[derive(Clone, Debug)]
pub struct Writer {
    fourteen: Option<Box<[HeaderName; 14]>>,
    rfc9440: bool,
    xfcc: bool,
}

const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

impl Writer {
    /// For services behind these callers.
    pub fn new(callers: &Callers) -> Self {
        let wants = |form| callers.headers.contains(&form);
        let fourteen = wants(CallerHeaders::XClientCert).then(|| Box::new(names(&callers.header_prefix)));
        Self { fourteen, rfc9440: wants(CallerHeaders::Rfc9440), xfcc: wants(CallerHeaders::Xfcc) }
    }

    /// Writes it, and overwrites what was there under these names; that nothing else speaks of certificates is the
    /// business of [`super::families`]. The fourteen are written always, the others only of a caller who is verified,
    /// because they cannot say that one is not.
    pub fn write(&self, headers: &mut HeaderMap, caller: &MaybeCaller) {
        if let Some(names) = &self.fourteen {
            let values = match caller {
                Some(caller) => caller.values.fourteen(caller),
                None => &values::NOBODY,
            };
            for (name, value) in names.iter().zip(values) {
                headers.insert(name.clone(), value.clone());
            }
        }
        let verified = caller.as_ref().filter(|caller| caller.verdict.is_ok());
        if self.rfc9440 {
            let [leaf, chain] = verified.map_or_else(|| &[None, None], |caller| caller.values.rfc9440(caller));
            set(headers, CLIENT_CERT, leaf.as_ref());
            set(headers, CLIENT_CERT_CHAIN, chain.as_ref());
        }
        if self.xfcc {
            set(headers, XFCC, verified.and_then(|caller| caller.values.xfcc(caller)));
        }
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<&HeaderValue>) {
    match value {
        Some(value) => drop(headers.insert(name, value.clone())),
        None => drop(headers.remove(name)),
    }
}

/// The names with their prefix. A prefix that makes no name of a header is refused when the configuration is read; here
/// it is as if there were none.
fn names(prefix: &str) -> [HeaderName; 14] {
    let named = |prefix: &str| {
        let name = |suffix| HeaderName::try_from(format!("{prefix}{suffix}").to_ascii_lowercase()).ok();
        NAMES.map(name).into_iter().collect::<Option<Vec<_>>>()?.try_into().ok()
    };
    const DEFAULT: [HeaderName; 14] = [
        HeaderName::from_static("x-client-cert-present"),
        HeaderName::from_static("x-client-cert-chain-verified"),
        HeaderName::from_static("x-client-cert-error"),
        HeaderName::from_static("x-client-cert-sha256-fingerprint"),
        HeaderName::from_static("x-client-cert-serial-number"),
        HeaderName::from_static("x-client-cert-spiffe-id"),
        HeaderName::from_static("x-client-cert-uri-sans"),
        HeaderName::from_static("x-client-cert-dnsname-sans"),
        HeaderName::from_static("x-client-cert-valid-not-before"),
        HeaderName::from_static("x-client-cert-valid-not-after"),
        HeaderName::from_static("x-client-cert-issuer-dn"),
        HeaderName::from_static("x-client-cert-subject-dn"),
        HeaderName::from_static("x-client-cert-leaf"),
        HeaderName::from_static("x-client-cert-chain"),
    ];
    named(prefix).unwrap_or(DEFAULT)
}

/// A byte sequence (RFC 9651 §4.1.8).
pub(super) fn byte_sequence(der: &[u8], to: &mut String) {
    to.push(':');
    STANDARD.encode_string(der, to);
    to.push(':');
}
