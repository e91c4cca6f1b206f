//! `X-Forwarded-Client-Cert`: a list, in which each proxy on the way may append an element about its own peer.
//!
//! The last element is believed and no other: it is about whoever connected to the edge in front of us, and everything
//! before it is what that peer said. Quotes are read strictly, so that nothing that stands before can reach into it: an
//! odd quote makes all of it unreadable. Of the element, `Cert` and `Chain` are used, because only a certificate can be
//! verified; `Hash` must fit.

use http::HeaderMap;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{MOST_CERTIFICATES, Read, Shown, Unreadable, lines, percent_decoded, shown};
use crate::identity::Digest;

/// Most pairs of one element: a URI or DNS pair for each name of a certificate.
const MOST_PAIRS: usize = 256;

pub(super) fn read(headers: &HeaderMap) -> Read<Option<Shown>> {
    let lines = lines(headers, "x-forwarded-client-cert")?;
    let mut last = None;
    for line in lines.iter().filter(|line| !line.trim_matches([' ', '\t']).is_empty()) {
        last = last_element(line)?;
    }
    match last {
        None => Ok(None),
        Some(element) => certificates(&element).and_then(shown),
    }
}

/// What one element says that is of use.
#[derive(Default)]
struct Element {
    hash: Option<String>,
    leaf: Option<String>,
    chain: Option<String>,
}

/// Keys and values of the last element of a line.
fn last_element(line: &str) -> Read<Option<Element>> {
    let mut element = Element::default();
    let (mut rest, mut pairs) = (line, 0);
    loop {
        let (key, after) = rest.split_once('=').ok_or(Unreadable)?;
        // A separator in a key: the pair before had no value.
        if key.contains(['"', ',', ';']) {
            return Err(Unreadable);
        }
        let (value, after) = value(after)?;
        pairs += 1;
        let place = match key.trim_matches([' ', '\t']).to_ascii_lowercase().as_str() {
            "" => return Err(Unreadable),
            "cert" => Some(&mut element.leaf),
            "chain" => Some(&mut element.chain),
            "hash" => Some(&mut element.hash),
            _ => None,
        };
        if pairs > MOST_PAIRS || place.is_some_and(|place| place.replace(value).is_some()) {
            return Err(Unreadable);
        }
        match after.split_at_checked(1) {
            None => return Ok(Some(element)),
            Some((";", after)) => rest = after,
            Some((_, after)) => (rest, element, pairs) = (after, Element::default(), 0),
        }
    }
}

/// A value, and what follows it: nothing, or `;` or `,` and more.
fn value(text: &str) -> Read<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',']).unwrap_or(text.len());
        let (value, after) = text.split_at(end);
        return if value.contains('"') { Err(Unreadable) } else { Ok((value.trim_end().to_owned(), after)) };
    };
    let mut value = String::new();
    let mut signs = quoted.char_indices();
    while let Some((at, sign)) = signs.next() {
        match sign {
            '\\' => value.push(signs.next().ok_or(Unreadable)?.1),
            '"' => {
                let after = quoted[at + 1..].trim_start_matches([' ', '\t']);
                return if after.is_empty() || after.starts_with([';', ',']) {
                    Ok((value, after))
                } else {
                    Err(Unreadable)
                };
            }
            sign => value.push(sign),
        }
    }
    Err(Unreadable)
}

/// Leaf first.
fn certificates(element: &Element) -> Read<Vec<CertificateDer<'static>>> {
    let pem = |text: &Option<String>| match text {
        None => Ok(Vec::new()),
        Some(text) => {
            let pem = percent_decoded(text)?;
            let read = CertificateDer::pem_slice_iter(&pem).take(MOST_CERTIFICATES + 1).collect::<Result<Vec<_>, _>>();
            read.ok().filter(|read| (1..=MOST_CERTIFICATES).contains(&read.len())).ok_or(Unreadable)
        }
    };
    let (mut leaf, mut chain) = (pem(&element.leaf)?, pem(&element.chain)?);
    match (leaf.len(), chain.first()) {
        // The chain begins with the leaf.
        (0, _) => leaf = chain,
        (1, None) => {}
        (1, Some(first)) if *first == leaf[0] => leaf = chain,
        // Without it, as some proxies write it.
        (1, Some(_)) => leaf.append(&mut chain),
        _ => return Err(Unreadable),
    }
    let fits = |hash: &String| {
        let of_leaf = leaf.first().map(|der| Digest::of(der).to_string());
        of_leaf.is_some_and(|digest| digest.strip_prefix("sha256:").is_some_and(|hex| hex.eq_ignore_ascii_case(hash)))
    };
    if element.hash.as_ref().is_none_or(fits) { Ok(leaf) } else { Err(Unreadable) }
}
