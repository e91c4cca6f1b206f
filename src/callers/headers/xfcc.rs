//! One element of `X-Forwarded-Client-Cert`, as Envoy writes it.

use std::fmt::Write as _;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;

use super::{super::Caller, dn};

/// Most certificate bytes in it; services bound their headers, too.
const MOST_DER: usize = 16 << 10;

/// `Hash`, `Cert`, `Chain`, `Subject`, and `URI` and `DNS` for each name. What cannot stand in a header is left out.
pub(super) fn element(caller: &Caller) -> Option<HeaderValue> {
    let certificate = caller.certificate.as_ref()?;
    let mut element = String::from("Hash=");
    for byte in certificate.fingerprint.0 {
        let _ = write!(element, "{byte:02x}");
    }
    let leaf = &caller.shown.leaf;
    let rest = &caller.chain;
    if leaf.len() <= MOST_DER {
        let _ = write!(element, ";Cert=\"{}\"", pem(leaf));
    }
    if caller.issuer_key.is_some() && leaf.len() + rest.iter().map(|der| der.len()).sum::<usize>() <= MOST_DER {
        let _ = write!(element, ";Chain=\"{}", pem(leaf));
        for der in rest.iter() {
            element.push_str(&pem(der));
        }
        element.push('"');
    }
    // What could end the quotes is escaped in it as two digits.
    if let Some(subject) = dn::rfc4514(&certificate.subject) {
        let _ = write!(element, ";Subject=\"{subject}\"");
    }
    let names = [("URI", &certificate.uris), ("DNS", &certificate.dns_names)];
    for (key, name) in names.iter().flat_map(|(key, names)| names.iter().map(move |name| (key, name))) {
        if !name.is_empty() && name.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:/*@".contains(&byte));
            let _ = if plain {
                write!(element, ";{key}={name}")
            } else {
                write!(element, ";{key}=\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
            };
        }
    }
    HeaderValue::try_from(element).ok()
}

/// PEM (RFC 7468 §3: 64 signs a line), and everything in it that is no letter, digit or hyphen in percent form.
fn pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let mut text = String::with_capacity(base64.len() + base64.len() / 8);
    let mut line = |line: &str| {
        for byte in line.bytes() {
            match byte {
                b'+' => text.push_str("%2B"),
                b'/' => text.push_str("%2F"),
                b'=' => text.push_str("%3D"),
                b' ' => text.push_str("%20"),
                byte => text.push(char::from(byte)),
            }
        }
        text.push_str("%0A");
    };
    line("-----BEGIN CERTIFICATE-----");
    let mut rest = &base64[..];
    while !rest.is_empty() {
        let (first, after) = rest.split_at(rest.len().min(64));
        line(first);
        rest = after;
    }
    line("-----END CERTIFICATE-----");
    text
}
