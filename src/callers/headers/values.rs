//! The values: their encodings, their limits, and what is said where a limit is passed.

use std::{fmt::Write as _, sync::OnceLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use time::OffsetDateTime;

use super::{super::Caller, byte_sequence};
use crate::identity::Certificate;

const EMPTY: HeaderValue = HeaderValue::from_static("");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const FALSE: HeaderValue = HeaderValue::from_static("false");

/// Of somebody who showed nothing.
pub(super) static NOBODY: [HeaderValue; 14] = [
    FALSE,
    FALSE,
    HeaderValue::from_static("client_cert_not_provided"),
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
];

/// Most bytes of a value (Google's load balancers' figures, which services are made for).
const MOST_SERIAL: usize = 50;
const MOST_SPIFFE_ID: usize = 2048;
const MOST_NAMES: usize = 512;

/// Most bytes of a leaf, and of leaf and chain together, before Base64.
const MOST_DER: usize = 16 << 10;

/// What is said of one caller, written down when it is first needed.
#[derive(Default)]
pub(in crate::callers) struct Values {
    fourteen: OnceLock<Box<[HeaderValue; 14]>>,
    rfc9440: OnceLock<[Option<HeaderValue>; 2]>,
    xfcc: OnceLock<Option<HeaderValue>>,
}

/// They follow from the caller, so they are never what two callers differ in, and a copy may write them anew.
impl Clone for Values {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Values {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Values {}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Values")
    }
}

impl Values {
    pub(super) fn fourteen(&self, caller: &Caller) -> &[HeaderValue; 14] {
        self.fourteen.get_or_init(|| Box::new(fourteen(caller)))
    }

    /// Client-Cert and Client-Cert-Chain of a verified caller; no leaf, no chain.
    pub(super) fn rfc9440(&self, caller: &Caller) -> &[Option<HeaderValue>; 2] {
        self.rfc9440.get_or_init(|| {
            let [leaf, chain] = leaf_and_chain(caller, &mut Vec::new());
            let said = |text: String| (!text.is_empty()).then(|| visible(text));
            [said(leaf), said(chain)]
        })
    }

    /// X-Forwarded-Client-Cert of a verified caller.
    pub(super) fn xfcc(&self, caller: &Caller) -> Option<&HeaderValue> {
        self.xfcc.get_or_init(|| super::xfcc::element(caller)).as_ref()
    }
}

/// What was written here can be nothing but visible ASCII; if it were otherwise, nothing is said.
fn visible(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(EMPTY)
}

fn fourteen(caller: &Caller) -> [HeaderValue; 14] {
    let mut errors: Vec<String> = Vec::new();
    let verified = caller.verdict.is_ok();
    if let Err(error) = &caller.verdict {
        errors.push(error.to_string());
    }
    let facts = caller.certificate.as_ref().map(|certificate| facts(certificate, &mut errors));
    let [fingerprint, serial, id, uris, dns, not_before, not_after, issuer, subject] = facts.unwrap_or_default();
    let [leaf, chain] = leaf_and_chain(caller, &mut errors);
    let errors = errors.join(",");
    [
        TRUE,
        if verified { TRUE } else { FALSE },
        visible(errors),
        visible(fingerprint),
        visible(serial),
        visible(id),
        visible(uris),
        visible(dns),
        visible(not_before),
        visible(not_after),
        visible(issuer),
        visible(subject),
        visible(leaf),
        visible(chain),
    ]
}

/// Nothing, and its error, where a value is too long.
fn bounded(value: String, most: usize, name: &str, errors: &mut Vec<String>) -> String {
    if value.len() <= most {
        return value;
    }
    errors.push(format!("client_cert_{name}_exceeded_size_limit"));
    String::new()
}

fn facts(certificate: &Certificate, errors: &mut Vec<String>) -> [String; 9] {
    let mut serial = String::with_capacity(2 * certificate.serial.len());
    for byte in &certificate.serial {
        // Cannot fail: it is a String.
        let _ = write!(serial, "{byte:02x}");
    }
    // Zero is a number, too.
    let serial = match serial.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    };
    let serial = bounded(serial, MOST_SERIAL, "serial_number", errors);
    // One URI name alone can be a SPIFFE ID; one that is too long is none, but meant to be.
    let id = match (&certificate.spiffe_id, &certificate.uris[..]) {
        (Some(id), _) => Some(id.as_str()),
        (None, [only]) if only.len() > MOST_SPIFFE_ID && only.starts_with("spiffe://") => Some(only.as_str()),
        _ => None,
    };
    let uris: &[String] = if id.is_some() { &[] } else { &certificate.uris };
    let id = bounded(id.unwrap_or_default().to_owned(), MOST_SPIFFE_ID, "spiffe_id", errors);
    let uris = bounded(list(uris), MOST_NAMES, "uri_sans", errors);
    let dns = bounded(list(&certificate.dns_names), MOST_NAMES, "dnsname_sans", errors);
    let issuer = bounded(STANDARD.encode(&certificate.issuer), MOST_NAMES, "issuer_dn", errors);
    let subject = bounded(STANDARD.encode(&certificate.subject), MOST_NAMES, "subject_dn", errors);
    let fingerprint = STANDARD.encode(certificate.fingerprint.0);
    [fingerprint, serial, id, uris, dns, date(certificate.not_before), date(certificate.not_after), issuer, subject]
}

/// Each in Base64, so that a comma in a name is none between names.
fn list(names: &[String]) -> String {
    let mut list = String::new();
    for name in names {
        if !list.is_empty() {
            list.push(',');
        }
        STANDARD.encode_string(name, &mut list);
    }
    list
}

/// RFC 3339, with the offset in digits.
fn date(seconds: i64) -> String {
    let Ok(time) = OffsetDateTime::from_unix_timestamp(seconds) else { return String::new() };
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+00:00", u8::from(month))
}

/// As byte sequences, and only if verified. The chain is the one that was verified, so there is none of a certificate
/// that is valid by itself.
fn leaf_and_chain(caller: &Caller, errors: &mut Vec<String>) -> [String; 2] {
    let (mut leaf, mut chain) = (String::new(), String::new());
    if caller.verdict.is_err() {
        return [leaf, chain];
    }
    let (leaf_der, rest) = (&caller.shown.leaf, &caller.chain);
    if leaf_der.len() > MOST_DER {
        errors.push("client_cert_validated_leaf_exceeded_size_limit".to_owned());
    } else {
        byte_sequence(leaf_der, &mut leaf);
    }
    if caller.issuer_key.is_none() {
        return [leaf, chain];
    }
    if leaf_der.len() + rest.iter().map(|der| der.len()).sum::<usize>() > MOST_DER {
        errors.push("client_cert_validated_chain_exceeded_size_limit".to_owned());
    } else {
        for der in rest.iter() {
            if !chain.is_empty() {
                chain.push(',');
            }
            byte_sequence(der, &mut chain);
        }
    }
    [leaf, chain]
}
