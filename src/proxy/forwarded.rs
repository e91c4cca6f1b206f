//! What a service hears of the visitor's address: `X-Forwarded-*`, `X-Real-IP` and `Forwarded` (RFC 7239).
//!
//! The edge's word on the visitor is `CF-Connecting-IP` and `X-Forwarded-Proto`: every edge overwrites what a visitor
//! sent under these names. The rest of the family may be the visitor's own invention.

use std::{fmt::Write, net::IpAddr};

use ::http::{HeaderMap, HeaderName, HeaderValue};

use crate::{config::Forwarded, origin::request_body::is_of_address};

pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const CONNECTING_IP: HeaderName = HeaderName::from_static("cf-connecting-ip");

/// The visitor's address as the edge tells it.
pub(super) fn visitor(headers: &HeaderMap) -> Option<IpAddr> {
    headers.get(CONNECTING_IP)?.to_str().ok()?.trim().parse().ok()
}

/// Applies a policy; `host` is what the visitor asked for.
pub(super) fn apply(policy: Forwarded, headers: &mut HeaderMap, host: &HeaderValue) {
    if policy == Forwarded::Keep {
        return;
    }
    let scheme = scheme(headers);
    let told = Told { address: visitor(headers), host: host.to_str().ok(), scheme };
    match policy {
        Forwarded::Keep => {}
        Forwarded::Strip => strip(headers),
        Forwarded::Append => {
            append_address(headers, told.address);
            append(headers, &FORWARDED, &told.element());
            headers.entry(X_FORWARDED_HOST).or_insert_with(|| host.clone());
        }
        Forwarded::Replace => {
            strip(headers);
            let mut set = |name, value: &str| {
                if let Ok(value) = HeaderValue::from_str(value) {
                    headers.insert(name, value);
                }
            };
            if let Some(address) = told.address {
                let address = address.to_string();
                set(X_FORWARDED_FOR, &address);
                set(X_REAL_IP, &address);
            }
            if let Some(scheme) = scheme {
                set(X_FORWARDED_PROTO, scheme);
            }
            if let Some(port) = told.port() {
                set(X_FORWARDED_PORT, port);
            }
            set(FORWARDED, &told.element());
            headers.insert(X_FORWARDED_HOST, host.clone());
        }
    }
}

/// Every name of the family.
fn strip(headers: &mut HeaderMap) {
    let family: Vec<_> = headers.keys().filter(|name| is_of_address(name)).cloned().collect();
    for name in family {
        headers.remove(name);
    }
}

/// `http` or `https`, as the edge says.
fn scheme(headers: &HeaderMap) -> Option<&'static str> {
    match headers.get(X_FORWARDED_PROTO)?.as_bytes() {
        b"http" => Some("http"),
        b"https" => Some("https"),
        _ => None,
    }
}

/// The edge has put the address at the end already; it is not said twice.
fn append_address(headers: &mut HeaderMap, address: Option<IpAddr>) {
    let Some(address) = address else { return };
    let address = address.to_string();
    let last = headers.get_all(X_FORWARDED_FOR).iter().next_back();
    let last = last.and_then(|value| value.to_str().ok()?.rsplit(',').next());
    let there = last.is_some_and(|last| last.trim() == address);
    append(headers, &X_FORWARDED_FOR, if there { "" } else { &address });
}

/// Adds a member to a list, and makes one line of several: many services read only the first.
fn append(headers: &mut HeaderMap, name: &HeaderName, member: &str) {
    let mut list = Vec::new();
    for value in headers.get_all(name).iter().map(HeaderValue::as_bytes).chain([member.as_bytes()]) {
        if !value.is_empty() {
            if !list.is_empty() {
                list.extend_from_slice(b", ");
            }
            list.extend_from_slice(value);
        }
    }
    if let Ok(list) = HeaderValue::from_bytes(&list) {
        headers.insert(name.clone(), list);
    }
}

/// What the edge told of a request.
struct Told<'a> {
    address: Option<IpAddr>,
    host: Option<&'a str>,
    scheme: Option<&'static str>,
}

impl Told<'_> {
    /// The port that the visitor connected to: named in the host, else the scheme's.
    fn port(&self) -> Option<&str> {
        let host = self.host?;
        let named = host.rsplit_once(':').map(|(_, port)| port);
        let named = named.filter(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
        let of_scheme = || Some(if self.scheme? == "https" { "443" } else { "80" });
        named.or_else(of_scheme)
    }

    /// One element of `Forwarded` (RFC 7239 §4): an IPv6 address has brackets and, as everything that is no token,
    /// quotes.
    fn element(&self) -> String {
        let mut element = String::with_capacity(64);
        let _ = match self.address {
            Some(IpAddr::V4(address)) => write!(element, "for={address}"),
            Some(IpAddr::V6(address)) => write!(element, "for=\"[{address}]\""),
            None => element.write_str("for=unknown"),
        };
        if let Some(host) = self.host {
            element.push_str(";host=");
            if !host.is_empty() && host.bytes().all(is_token) {
                element.push_str(host);
            } else {
                element.push('"');
                for letter in host.chars() {
                    if matches!(letter, '"' | '\\') {
                        element.push('\\');
                    }
                    element.push(letter);
                }
                element.push('"');
            }
        }
        if let Some(scheme) = self.scheme {
            element.push_str(";proto=");
            element.push_str(scheme);
        }
        element
    }
}

/// A character of a token (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(policy: Forwarded, host: &'static str, given: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, HeaderValue::from_static(value));
        }
        apply(policy, &mut headers, &HeaderValue::from_static(host));
        headers.remove(CONNECTING_IP);
        let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut lines: Vec<_> = headers.iter().map(line).collect();
        lines.sort();
        lines
    }

    const FORGED: [(&str, &str); 11] = [
        ("x-forwarded", "forged"),
        ("x-forwarded-for", "forged"),
        ("x_forwarded_for", "forged"),
        ("x-forwarded-for", "9.9.9.9"),
        ("x-forwarded-host", "forged"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-server", "forged"),
        ("forwarded", "for=forged"),
        ("x-real-ip", "forged"),
        ("cf-connecting-ip", "9.9.9.9"),
        ("x-forwarded-proto", "https"),
    ];

    #[test]
    fn strip_leaves_nothing_of_the_family() {
        assert_eq!(applied(Forwarded::Strip, "h", &FORGED), [""; 0]);
    }

    #[test]
    fn replace_leaves_nothing_of_the_visitors() {
        assert_eq!(
            applied(Forwarded::Replace, "h.test", &FORGED),
            [
                "forwarded: for=9.9.9.9;host=h.test;proto=https",
                "x-forwarded-for: 9.9.9.9",
                "x-forwarded-host: h.test",
                "x-forwarded-port: 443",
                "x-forwarded-proto: https",
                "x-real-ip: 9.9.9.9",
            ]
        );
    }

    #[test]
    fn append_makes_one_line_and_says_an_address_once() {
        let lines = applied(Forwarded::Append, "h.test:81", &FORGED);
        assert!(lines.contains(&"x-forwarded-for: forged, 9.9.9.9".to_owned()), "{lines:?}");
        let element = "forwarded: for=forged, for=9.9.9.9;host=\"h.test:81\";proto=https";
        assert!(lines.contains(&element.to_owned()), "{lines:?}");
        assert!(lines.contains(&"x-forwarded-host: forged".to_owned()), "{lines:?}");
        let bare = applied(Forwarded::Append, "h", &[("cf-connecting-ip", "::1"), ("x-forwarded-for", "1.1.1.1")]);
        assert_eq!(bare, ["forwarded: for=\"[::1]\";host=h", "x-forwarded-for: 1.1.1.1, ::1", "x-forwarded-host: h"]);
    }

    #[test]
    fn what_the_edge_does_not_tell_is_not_invented() {
        let lines = applied(Forwarded::Replace, "a\"b", &[("x-forwarded-proto", "gopher"), ("x-real-ip", "forged")]);
        assert_eq!(lines, ["forwarded: for=unknown;host=\"a\\\"b\"", "x-forwarded-host: a\"b"]);
    }
}
