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

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Digest;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        headers
    }

    fn shown(leaf: &[u8], chain: &[&[u8]]) -> Relayed {
        let chain = chain.iter().map(|der| der.to_vec().into()).collect();
        Relayed::Shown(Shown { leaf: leaf.to_vec().into(), chain })
    }

    #[test]
    fn byte_sequences_are_read_with_their_chain_on_several_lines() {
        // `leaf`, `one`, `two`, `three`; padding may be missing, white space around them be any.
        let leaf = ("client-cert", " :bGVhZg==:\t");
        let chain = ("client-cert-chain", ":b25l: , :dHdv:");
        for form in [RelayedBy::AditEdge, RelayedBy::Rfc9440] {
            let said = |lines: &[(&str, &str)]| read(&headers(lines), form);
            assert_eq!(said(&[leaf]), shown(b"leaf", &[]));
            assert_eq!(said(&[("client-cert", ":bGVhZg:")]), shown(b"leaf", &[]));
            let more = [leaf, chain, ("client-cert-chain", ""), ("client-cert-chain", ":dGhyZWU=:")];
            assert_eq!(said(&more), shown(b"leaf", &[b"one", b"two", b"three"]));
            assert_eq!(said(&[]), Relayed::Nothing);
            assert_eq!(said(&[("client-cert", ""), ("client-cert-chain", " ")]), Relayed::Nothing);
            assert_eq!(said(&[("cf-client-cert-der-base64", "bGVhZg==")]), Relayed::Nothing);
            for wrong in [
                &[leaf, leaf][..],
                &[("client-cert", ""), leaf],
                &[chain],
                &[("client-cert", ""), chain],
                &[("client-cert", ":bGVhZg==:, :bGVhZg==:")],
                &[("client-cert", ":bGVhZg==:;a=1")],
                &[("client-cert", "bGVhZg==")],
                &[("client-cert", "::")],
                &[("client-cert", ":")],
                &[("client-cert", ":bGV hZg==:")],
                &[("client-cert", ":bGVhZg-_:")],
                &[leaf, ("client-cert-chain", ":b25l:,")],
                &[leaf, ("client-cert-chain", ":b25l:,,:dHdv:")],
                &[leaf, ("client-cert-chain", "::")],
                &[leaf, ("client-cert-chain", ":b25l: :dHdv:")],
            ] {
                assert_eq!(said(wrong), Relayed::Malformed, "{wrong:?}");
            }
        }
    }

    #[test]
    fn what_is_too_large_or_too_much_is_not_decoded() {
        let large = |bytes: usize| format!(":{}:", BASE64.encode(vec![7; bytes]));
        let leaf = |bytes| read(&headers(&[("client-cert", &large(bytes))]), RelayedBy::AditEdge);
        assert!(matches!(leaf(MOST_BYTES), Relayed::Shown(_)));
        assert_eq!(leaf(MOST_BYTES + 1), Relayed::Malformed);
        assert_eq!(leaf(4 * MOST_BYTES), Relayed::Malformed);
        let chain = |items| {
            let chain = vec![":b25l:"; items].join(",");
            read(&headers(&[("client-cert", ":bGVhZg==:"), ("client-cert-chain", &chain)]), RelayedBy::AditEdge)
        };
        assert!(matches!(chain(MOST_CERTIFICATES - 1), Relayed::Shown(_)));
        assert_eq!(chain(MOST_CERTIFICATES), Relayed::Malformed);
        assert_eq!(
            read(&headers(&[("client-cert", ":bGVhZg==:")].repeat(100)), RelayedBy::AditEdge),
            Relayed::Malformed
        );
    }

    #[test]
    fn cloudflares_header_holds_the_leaf_alone() {
        let said = |lines: &[(&str, &str)]| read(&headers(lines), RelayedBy::Cloudflare);
        let leaf = ("cf-client-cert-der-base64", "bGVhZg==");
        assert_eq!(said(&[leaf]), shown(b"leaf", &[]));
        assert_eq!(said(&[leaf, ("client-cert-chain", ":b25l:")]), shown(b"leaf", &[]));
        assert_eq!(said(&[("client-cert", ":bGVhZg==:")]), Relayed::Nothing);
        assert_eq!(said(&[("cf-client-cert-der-base64", "")]), Relayed::Nothing);
        assert_eq!(said(&[leaf, leaf]), Relayed::Malformed);
        assert_eq!(said(&[("cf-client-cert-der-base64", ":bGVhZg==:")]), Relayed::Malformed);
    }

    /// `leaf` and `one` in PEM, in percent form.
    const LEAF: &str = "-----BEGIN%20CERTIFICATE-----%0AbGVhZg==%0A-----END%20CERTIFICATE-----%0A";
    const ONE: &str = "-----BEGIN CERTIFICATE-----%0Ab25l%0A-----END CERTIFICATE-----%0A";

    fn xfcc(lines: &[&str]) -> Relayed {
        read(
            &headers(&lines.iter().map(|line| ("x-forwarded-client-cert", *line)).collect::<Vec<_>>()),
            RelayedBy::Xfcc,
        )
    }

    #[test]
    fn of_envoys_header_the_last_element_is_believed_and_no_other() {
        let hash = Digest::of(b"leaf").to_string().replace("sha256:", "");
        let good =
            format!("By=spiffe://a/b;Hash={hash};Cert=\"{LEAF}\";Subject=\"CN=\\\"a\\\",O=b;c\";URI=spiffe://a/c");
        let spoofed = format!("Cert=\"{ONE}\"");
        assert_eq!(xfcc(&[&good]), shown(b"leaf", &[]));
        assert_eq!(xfcc(&[&format!("{spoofed},{good}")]), shown(b"leaf", &[]));
        assert_eq!(xfcc(&[&spoofed, &good]), shown(b"leaf", &[]));
        assert_eq!(xfcc(&[&good, &spoofed]), shown(b"one", &[]));
        assert_eq!(xfcc(&[&good, ""]), shown(b"leaf", &[]), "an empty line adds no element");
        assert_eq!(xfcc(&[]), Relayed::Nothing);
        assert_eq!(xfcc(&[""]), Relayed::Nothing);
        for chain in [format!("{LEAF}{ONE}"), ONE.to_owned()] {
            assert_eq!(xfcc(&[&format!("cert=\"{LEAF}\"; CHAIN=\"{chain}\"")]), shown(b"leaf", &[b"one"]));
        }
        assert_eq!(xfcc(&[&format!("Chain=\"{LEAF}{ONE}\"")]), shown(b"leaf", &[b"one"]));
    }

    #[test]
    fn nothing_in_front_reaches_into_the_last_element() {
        let good = format!("By=spiffe://a/b;Cert=\"{LEAF}\";Subject=\"CN=a\"");
        for before in [
            format!("Cert=\"{ONE}\";Subject=\""),
            format!("Cert=\"{ONE}\";Subject=\"\\"),
            format!("Cert=\"{ONE}\";Subject"),
            format!("Cert=\"{ONE}\";X=\"a\"b"),
            format!("Cert={ONE}\""),
            "\"".to_owned(),
            ",".to_owned(),
        ] {
            assert_eq!(xfcc(&[&format!("{before},{good}")]), Relayed::Malformed, "{before}");
        }
    }

    #[test]
    fn an_element_without_a_certificate_or_with_two_is_an_invalid_caller() {
        for wrong in [
            "Hash=00;Subject=\"CN=a\"",
            "By=spiffe://a/b",
            "Cert=",
            "Cert=\"\"",
            "Cert=\"%\"",
            "Cert=\"%2\"",
            "Cert=\"%zz\"",
            "nonsense",
            &format!("Cert=\"{LEAF}{ONE}\""),
            &format!("Cert=\"{LEAF}\";Cert=\"{LEAF}\""),
            &format!("Hash=00;Cert=\"{LEAF}\""),
            &format!("Cert=\"{LEAF}\"x"),
            &format!("Cert=\"{LEAF}\";"),
            &format!("Cert=\"{LEAF}\","),
            &format!("Cert=\"{LEAF}"),
            &format!("Cert=\"{LEAF}\"{}", ";URI=a".repeat(300)),
        ] {
            assert_eq!(xfcc(&[wrong]), Relayed::Malformed, "{wrong}");
        }
    }

    fn ders() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..600), 1..9)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_the_chain_is_cut_into_lines(
            ders in ders(), cuts in proptest::collection::vec(any::<bool>(), 8), space in "[ \t]{0,2}",
        ) {
            let mut headers = HeaderMap::new();
            let item = |der: &Vec<u8>| format!("{space}:{}:{space}", BASE64.encode(der));
            headers.insert("client-cert", item(&ders[0]).try_into().unwrap());
            let mut line = String::new();
            for (der, cut) in ders[1..].iter().zip(cuts) {
                if cut && !line.is_empty() {
                    headers.append("client-cert-chain", std::mem::take(&mut line).try_into().unwrap());
                }
                line.push_str(if line.is_empty() { "" } else { "," });
                line.push_str(&item(der));
            }
            headers.append("client-cert-chain", line.try_into().unwrap());
            headers.insert("cf-client-cert-der-base64", BASE64.encode(&ders[0]).try_into().unwrap());
            let chain: Vec<_> = ders[1..].iter().map(Vec::as_slice).collect();
            prop_assert_eq!(read(&headers, RelayedBy::Rfc9440), shown(&ders[0], &chain));
            prop_assert_eq!(read(&headers, RelayedBy::Cloudflare), shown(&ders[0], &[]));
        }

        #[test]
        fn any_text_is_read_in_one_of_three_ways_and_the_same_each_time(text in "[\\x20-\\x7e]{0,300}") {
            for name in ["client-cert", "client-cert-chain", "cf-client-cert-der-base64", "x-forwarded-client-cert"] {
                let headers = headers(&[(name, &text)]);
                for form in [RelayedBy::Rfc9440, RelayedBy::Cloudflare, RelayedBy::Xfcc] {
                    prop_assert_eq!(read(&headers, form), read(&headers, form));
                }
            }
        }
    }
}
