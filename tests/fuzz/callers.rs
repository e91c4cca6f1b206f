//! Certificates of callers, what edges relay of them, and lists of revoked ones.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use adit::{
    callers::{Caller, Relayed, check::Check, families::Families, headers::Writer, relayed},
    config::{CallerHeaders, Callers, RelayedBy},
    tls::callers::{CallerError, CallerTrust, Shown, Verified},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::engine::{about, seen};

/// Made once with `openssl req -x509`, `openssl x509 -req` and `openssl ca -gencrl`, P-256, for 40,000 days; nobody has
/// the keys. Beside the root: an intermediate that may issue for `zoo.test` only, its leaf with every kind of name, and
/// another leaf that is revoked.
static ROOT: &[u8] = include_bytes!("../corpus/caller_certificate/root");
static LEAF: &[u8] = include_bytes!("../corpus/caller_certificate/leaf");
static LIST: &[u8] = include_bytes!("../corpus/revocation_list/users_only");

pub(super) const HEADERS: &[&[u8]] = &[
    b"client-cert: ",
    b"client-cert-chain: ",
    b"client_cert: ",
    b"cf-client-cert-der-base64: ",
    b"x-forwarded-client-cert: ",
    b":bGVhZg==:",
    b":b25l:",
    b", ",
    b"\n",
    b"Cert=\"",
    b"Chain=\"",
    b"Hash=",
    b";Subject=\"CN=a\\\"\"",
    b"\\",
    b"\"",
    b"%0A",
    b"%",
    b"-----BEGIN%20CERTIFICATE-----%0A",
    b"%0A-----END%20CERTIFICATE-----",
];

pub(super) const DER: &[&[u8]] = &[
    &[0x30, 0x82],
    &[0x30, 0x80],
    &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
    &[0x06, 0x03, 0x55, 0x1d, 0x11],
    &[0x06, 0x03, 0x55, 0x1d, 0x13],
    &[0x06, 0x03, 0x55, 0x1d, 0x1b],
    &[0x06, 0x03, 0x55, 0x1d, 0x1c],
    &[0x06, 0x03, 0x55, 0x1d, 0x1e],
    &[0x06, 0x03, 0x55, 0x1d, 0x25],
    &[0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 3, 2],
    &[0x01, 0x01, 0xff],
    &[0x17, 0x0d],
    &[0x18, 0x0f],
    &[0x86, 0x00],
    &[0x82, 0x7f],
    b"spiffe://example.org/",
    b"20500101000000Z",
];

fn writer(form: CallerHeaders) -> Writer {
    Writer::new(&Callers {
        trust_anchors: Vec::new(),
        intermediates: Vec::new(),
        allowlisted: Vec::new(),
        crls: Vec::new(),
        allow_invalid_or_missing: true,
        relayed_by: RelayedBy::Rfc9440,
        headers: vec![form],
        header_prefix: "X-Client-Cert-".to_owned(),
        allow: None,
    })
}

fn written(form: CallerHeaders, caller: &Caller) -> HeaderMap {
    let mut headers = HeaderMap::new();
    writer(form).write(&mut headers, &Some(caller.clone().into()));
    headers
}

/// What is read is bounded, can be written and read again, and is gone with the families.
pub(super) fn relayed(input: &[u8]) -> u64 {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(64) {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let mut all = Vec::new();
    let forms = [RelayedBy::AditEdge, RelayedBy::Rfc9440, RelayedBy::Cloudflare, RelayedBy::Xfcc];
    for form in forms {
        let Relayed::Shown(shown) = relayed::read(&headers, form) else {
            all.push((relayed::read(&headers, form) == Relayed::Nothing, 0, 0));
            continue;
        };
        let bytes = shown.leaf.len() + shown.chain.iter().map(|der| der.len()).sum::<usize>();
        assert!(bytes <= 64 << 10 && shown.chain.len() < 32 && !shown.leaf.is_empty());
        all.push((true, shown.chain.len() + 1, about(bytes)));
        let issuer_key = Some(adit::identity::Digest::of(b""));
        let caller = Caller::new(shown.clone(), Ok(Verified { issuer_key, chain: shown.chain.clone() }));
        if bytes <= 16 << 10 {
            let again = relayed::read(&written(CallerHeaders::Rfc9440, &caller), RelayedBy::Rfc9440);
            assert_eq!(again, Relayed::Shown(shown.clone()));
            if caller.certificate.is_some() {
                let again = relayed::read(&written(CallerHeaders::Xfcc, &caller), RelayedBy::Xfcc);
                assert_eq!(again, Relayed::Shown(shown));
            }
        }
    }
    let families = Families::default();
    families.strip(&mut headers);
    assert!(!headers.keys().any(|name| families.contain(name.as_str())));
    for form in forms {
        assert_eq!(relayed::read(&headers, form), Relayed::Nothing);
    }
    seen((all, headers.len()))
}

/// 2030: everything in the corpus is valid.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_893_456_000)
}

/// Certificates one behind the other, as far as their own lengths say so.
fn apart(mut input: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut all = Vec::new();
    while !input.is_empty() {
        let length = match input {
            [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => input.len(),
        };
        let (one, rest) = input.split_at(length.min(input.len()));
        all.push(one.to_vec().into());
        input = rest;
    }
    all
}

/// Nobody is verified but the leaf that was issued, and whatever is said of anybody fits into the headers.
pub(super) fn caller_certificate(input: &[u8]) -> u64 {
    static CHECK: LazyLock<Check> = LazyLock::new(|| {
        let (root, list) = (CertificateDer::from(ROOT), CertificateRevocationListDer::from(LIST));
        Check::new(CallerTrust::new(vec![root], vec![], vec![], vec![list]).unwrap().into())
    });
    let mut certificates = apart(input).into_iter();
    let Some(leaf) = certificates.next() else { return 0 };
    let shown = Shown { leaf, chain: certificates.collect() };
    let is_issued = shown.leaf.as_ref() == LEAF;
    let caller = CHECK.caller_at(Relayed::Shown(shown), now()).unwrap();
    assert!(caller.verdict.is_err() || is_issued, "somebody else was verified");
    let headers = written(CallerHeaders::XClientCert, &caller);
    assert_eq!(headers.len(), 14);
    for (name, value) in &headers {
        assert!(value.as_bytes().iter().all(u8::is_ascii_graphic), "{name}: {value:?}");
        let most = match name.as_str() {
            "x-client-cert-serial-number" => 50,
            "x-client-cert-spiffe-id" => 2048,
            "x-client-cert-leaf" | "x-client-cert-chain" => 24 << 10,
            _ => 512,
        };
        assert!(value.len() <= most, "{name} of {}", value.len());
    }
    assert!(written(CallerHeaders::Xfcc, &caller).len() <= 1);
    // Whatever a certificate says of itself, it can be told of if it was verified, too.
    let trusted = Caller::new(caller.shown.clone(), Ok(Verified::default()));
    let told = written(CallerHeaders::Xfcc, &trusted);
    assert_eq!(told.len(), usize::from(trusted.certificate.is_some()));
    let facts = caller.certificate.as_ref();
    let names = facts.map(|facts| (facts.uris.len(), facts.dns_names.len(), facts.spiffe_id.is_some()));
    seen((caller.verdict.err().map(CallerError::cause), names, caller.shown.chain.len()))
}

/// Only whole lists are taken, and none that bears an issuer's name and not its signature.
pub(super) fn revocation_list(input: &[u8]) -> u64 {
    let list = CertificateRevocationListDer::from(input.to_vec());
    let trust = CallerTrust::new(vec![ROOT.into()], vec![], vec![], vec![list]);
    let Ok(trust) = trust else { return seen(trust.map(|_| ()).unwrap_err().to_string()) };
    let whole = include_bytes!("../corpus/caller_certificate/leaf_and_issuer");
    let mut certificates = apart(whole).into_iter();
    let shown = Shown { leaf: certificates.next().unwrap(), chain: certificates.collect() };
    let verdict = trust.verify(&shown, now());
    seen((verdict.err().map(CallerError::cause), trust.revocation_ends().is_some()))
}

#[test]
fn the_corpus_holds_a_caller_who_is_verified_and_one_who_is_revoked() {
    let check = |name: &[u8]| {
        let (root, list) = (CertificateDer::from(ROOT), CertificateRevocationListDer::from(LIST));
        let trust = CallerTrust::new(vec![root], vec![], vec![], vec![list]).unwrap();
        let mut certificates = apart(name).into_iter();
        trust.verify(&Shown { leaf: certificates.next().unwrap(), chain: certificates.collect() }, now())
    };
    assert!(check(include_bytes!("../corpus/caller_certificate/leaf_and_issuer")).is_ok());
    assert_eq!(check(include_bytes!("../corpus/caller_certificate/whole")), Err(CallerError::Revoked));
}
