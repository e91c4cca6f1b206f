//! SPIFFE IDs (SPIFFE-ID §2): `spiffe://TRUST-DOMAIN/PATH`, compared byte by byte.

use std::{fmt, str::FromStr};

/// Longest ID (SPIFFE-ID §2.3).
const MOST: usize = 2048;

/// A valid SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId(String);

/// Why a text is no SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Another character than letters, digits, `.`, `-` and `_`.
    #[error("{0:?} holds a character that no SPIFFE ID has")]
    Character(String),
    /// An empty part, `.` or `..`, or a final slash.
    #[error("{0:?} holds an empty part, `.` or `..`")]
    Segment(String),
    /// No trust domain, or one of more than 255 bytes.
    #[error("{0:?} has no trust domain of 1 to 255 bytes, lower case")]
    TrustDomain(String),
    /// More than 2,048 bytes.
    #[error("a SPIFFE ID has at most 2048 bytes")]
    TooLong,
    /// No `spiffe://`.
    #[error("{0:?} does not begin with `spiffe://`")]
    Scheme(String),
}

/// Trust domain and path segments; `wild` lets a segment be `*`.
fn check(text: &str, wild: bool) -> Result<(), SpiffeIdError> {
    let shown = || text.chars().take(80).collect::<String>();
    if text.len() > MOST {
        return Err(SpiffeIdError::TooLong);
    }
    let rest = text.strip_prefix("spiffe://").ok_or_else(|| SpiffeIdError::Scheme(shown()))?;
    let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let lower = |byte: u8| plain(byte) && !byte.is_ascii_uppercase();
    if !(1..=255).contains(&domain.len()) || !domain.bytes().all(lower) {
        return Err(SpiffeIdError::TrustDomain(shown()));
    }
    for segment in path.into_iter().flat_map(|path| path.split('/')) {
        if wild && segment == "*" {
            continue;
        }
        if matches!(segment, "" | "." | "..") {
            return Err(SpiffeIdError::Segment(shown()));
        }
        if !segment.bytes().all(plain) {
            return Err(SpiffeIdError::Character(shown()));
        }
    }
    Ok(())
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        check(text, false).map(|()| Self(text.to_owned()))
    }
}

impl SpiffeId {
    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE ID in which `*` stands for exactly one path segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffePattern(String);

impl FromStr for SpiffePattern {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        check(text, true).map(|()| Self(text.to_owned()))
    }
}

impl SpiffePattern {
    /// Whether an ID is meant.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        let (mut pattern, mut segments) = (self.0.split('/'), id.0.split('/'));
        loop {
            match (pattern.next(), segments.next()) {
                (None, None) => return true,
                (Some("*"), Some(_)) => {}
                (Some(meant), Some(segment)) if meant == segment => {}
                _ => return false,
            }
        }
    }

    /// The pattern as configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_ids_are_taken() {
        for id in ["spiffe://example.org", "spiffe://example.org/ns/a/sa/b_c-d.E", "spiffe://1.2.3.4/x"] {
            assert_eq!(id.parse::<SpiffeId>().unwrap().as_str(), id);
        }
        for wrong in [
            "",
            "spiffe://",
            "spiffe:///a",
            "SPIFFE://example.org/a",
            "spiffe://Example.org/a",
            "spiffe://example.org/",
            "spiffe://example.org//a",
            "spiffe://example.org/a/",
            "spiffe://example.org/../a",
            "spiffe://example.org/./a",
            "spiffe://example.org:80/a",
            "spiffe://u@example.org/a",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://example.org/a%20b",
            "spiffe://example.org/*",
            "https://example.org/a",
            "spiffe://example.org/ä",
        ] {
            assert!(wrong.parse::<SpiffeId>().is_err(), "{wrong}");
        }
        assert_eq!(format!("spiffe://a/{}", "b".repeat(2048)).parse::<SpiffeId>(), Err(SpiffeIdError::TooLong));
    }

    #[test]
    fn a_star_is_one_segment_of_the_path() {
        let matches = |pattern: &str, id: &str| pattern.parse::<SpiffePattern>().unwrap().matches(&id.parse().unwrap());
        assert!(matches("spiffe://example.org/ns/*/sa/adit", "spiffe://example.org/ns/team-a/sa/adit"));
        assert!(!matches("spiffe://example.org/ns/*/sa/adit", "spiffe://example.org/ns/a/b/sa/adit"));
        assert!(!matches("spiffe://example.org/ns/*", "spiffe://example.org/ns"));
        assert!(!matches("spiffe://example.org/*", "spiffe://example.com/a"));
        assert!("spiffe://*/a".parse::<SpiffePattern>().is_err());
        assert!("spiffe://example.org/a*".parse::<SpiffePattern>().is_err());
    }
}
