//! What an edge says of a visitor's certificate, in the one form that is believed.
//!
//! Read before the headers that speak of certificates are taken away. Whose word it is, and whether that is to be
//! believed, is decided by whoever calls: a form is as safe as the edge's own removal of what visitors send in it.

mod xfcc;

use std::borrow::Cow;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderValue};
use rustls::pki_types::CertificateDer;

use super::Relayed;
use crate::{config::RelayedBy, tls::callers::Shown};

/// Most bytes of leaf and chain together. A chain of eight with RSA 4096 and many names takes a third of it.
const MOST_BYTES: usize = 64 << 10;

/// Most bytes of the headers before anything is decoded: percent signs make three of one.
const MOST_ENCODED: usize = 2 * MOST_BYTES;

/// Most certificates that are read. Whoever verifies is stricter, and says so in words of its own.
const MOST_CERTIFICATES: usize = 32;

/// Padding may be missing and its bits may be anything (RFC 9651 §4.2.7).
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// It cannot be read.
struct Unreadable;

type Read<T> = Result<T, Unreadable>;

/// What the headers say in this form. Where something stands that cannot be read in exactly one way, it is
/// [`Relayed::Malformed`]: a certificate, and an invalid one.
pub fn read(headers: &HeaderMap, form: RelayedBy) -> Relayed {
    let read = match form {
        RelayedBy::AditEdge | RelayedBy::Rfc9440 => rfc9440(headers),
        RelayedBy::Cloudflare => cloudflare(headers),
        RelayedBy::Xfcc => xfcc::read(headers),
    };
    match read {
        Ok(Some(shown)) => Relayed::Shown(shown),
        Ok(None) => Relayed::Nothing,
        Err(Unreadable) => Relayed::Malformed,
    }
}

/// Leaf first.
fn shown(mut certificates: Vec<CertificateDer<'static>>) -> Read<Option<Shown>> {
    let bytes: usize = certificates.iter().map(|der| der.len()).sum();
    if certificates.is_empty() || bytes > MOST_BYTES || certificates.iter().any(|der| der.is_empty()) {
        return Err(Unreadable);
    }
    let leaf = certificates.remove(0);
    Ok(Some(Shown { leaf, chain: certificates.into() }))
}

/// The lines of a header, none of which holds a sign beyond ASCII, and all of which together are not too long.
fn lines<'a>(headers: &'a HeaderMap, name: &str) -> Read<Vec<&'a str>> {
    let values = headers.get_all(name);
    let bytes: usize = values.iter().map(HeaderValue::len).sum();
    if bytes > MOST_ENCODED || values.iter().count() > MOST_CERTIFICATES {
        return Err(Unreadable);
    }
    values.iter().map(|value| value.to_str().map_err(|_| Unreadable)).collect()
}

/// The only line of a header; an empty one says nothing.
fn line<'a>(headers: &'a HeaderMap, name: &str) -> Read<Option<&'a str>> {
    match &lines(headers, name)?[..] {
        [] => Ok(None),
        [only] => Ok(Some(only.trim_matches([' ', '\t'])).filter(|line| !line.is_empty())),
        _ => Err(Unreadable),
    }
}

fn rfc9440(headers: &HeaderMap) -> Read<Option<Shown>> {
    let leaf = line(headers, "client-cert")?;
    let mut chain = Vec::new();
    for line in lines(headers, "client-cert-chain")? {
        // An empty line of a list adds nothing (RFC 9651 §4.2).
        if !line.trim_matches([' ', '\t']).is_empty() {
            for item in line.split(',') {
                chain.push(item);
            }
        }
    }
    let Some(leaf) = leaf else {
        // A chain of nobody.
        return if chain.is_empty() { Ok(None) } else { Err(Unreadable) };
    };
    if chain.len() >= MOST_CERTIFICATES {
        return Err(Unreadable);
    }
    let certificates = std::iter::once(leaf).chain(chain).map(byte_sequence).collect::<Read<_>>()?;
    shown(certificates)
}

/// `:BASE64:` (RFC 9651 §3.3.5), without parameters, since RFC 9440 defines none.
fn byte_sequence(item: &str) -> Read<CertificateDer<'static>> {
    let inner = item.trim_matches([' ', '\t']).strip_prefix(':').and_then(|rest| rest.strip_suffix(':'));
    decode(inner.ok_or(Unreadable)?)
}

fn decode(base64: &str) -> Read<CertificateDer<'static>> {
    BASE64.decode(base64).map(CertificateDer::from).map_err(|_| Unreadable)
}

/// The leaf alone; the chain is for the configured intermediates.
fn cloudflare(headers: &HeaderMap) -> Read<Option<Shown>> {
    match line(headers, "cf-client-cert-der-base64")? {
        None => Ok(None),
        Some(base64) => shown(vec![decode(base64)?]),
    }
}

/// `%2B` and its like. A `+` is itself.
fn percent_decoded(text: &str) -> Read<Cow<'_, [u8]>> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text.as_bytes()));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or(Unreadable);
            decoded.push(u8::try_from(digit()? << 4 | digit()?).map_err(|_| Unreadable)?);
        } else {
            decoded.push(byte);
        }
    }
    Ok(Cow::Owned(decoded))
}
