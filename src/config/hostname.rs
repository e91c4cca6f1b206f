//! Host names of rules and of requests, in one normal form: lower case, ASCII, no final dot, no
//! port, no brackets.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;

/// The hosts that a rule is for. Matching is case-insensitive, as names in the DNS are (RFC 4343).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hostname {
    text: String,
    normal: String,
    wildcard: bool,
}

/// Why a text is no host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostnameError {
    /// A character that no host name has.
    #[error("`{0}` cannot stand in a host name")]
    Character(char),
    /// Two dots in a row, or one at the start.
    #[error("a part between two dots is empty")]
    EmptyLabel,
    /// Not convertible by IDNA (UTS 46).
    #[error("it has no valid ASCII (punycode) form")]
    Idna,
    /// A part of more than 63 bytes (RFC 1035 section 2.3.4).
    #[error("a part between two dots is longer than 63 bytes")]
    LabelTooLong,
    /// A port, or a whole URL.
    #[error("a host name has no port and no scheme; rules match the name alone")]
    Port,
    /// More than 253 bytes.
    #[error("it is longer than 253 bytes")]
    TooLong,
    /// A `*` that does not stand for leading labels.
    #[error("`*` may only stand at the start and before a dot, as in \"*.example.com\"")]
    Wildcard,
}

impl Hostname {
    /// Checks a rule's host name. `Ok(None)` for the empty text and `*`: any host.
    ///
    /// # Errors
    /// [`HostnameError`].
    pub fn parse(text: &str) -> Result<Option<Self>, HostnameError> {
        if text.is_empty() || text == "*" {
            return Ok(None);
        }
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if name.contains('*') {
            return Err(HostnameError::Wildcard);
        }
        let normal = if wildcard { domain(name)? } else { address(name).map_or_else(|| domain(name), Ok)? };
        let normal = if wildcard { format!(".{normal}") } else { normal };
        Ok(Some(Self { text: text.to_owned(), normal, wildcard }))
    }

    /// Whether a host in normal form ([`normal_host`]) is meant. A wildcard covers any number of
    /// labels but not the name after it.
    pub fn matches(&self, normal_host: &str) -> bool {
        if self.wildcard {
            normal_host.len() > self.normal.len() && normal_host.ends_with(&self.normal)
        } else {
            normal_host == self.normal
        }
    }

    /// Whether every host that the other one is for is meant, too.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self.wildcard, other.wildcard) {
            (_, false) => self.matches(&other.normal),
            (true, true) => other.normal.ends_with(&self.normal),
            (false, true) => false,
        }
    }

    /// Whether there is a host that both are for. Names are a tree, so that one covers the other then.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The exact name in normal form; `None` for a wildcard.
    pub fn exact(&self) -> Option<&str> {
        (!self.wildcard).then_some(&*self.normal)
    }

    /// The spelling in the configuration.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A request's host in the normal form that [`Hostname::matches`] expects: the port, brackets and
/// one final dot removed, lower case, punycode. Borrowed when it is in that form already.
pub fn normal_host(host: &str) -> Cow<'_, str> {
    if let Some(literal) = host.strip_prefix('[') {
        let literal = literal.split_once(']').map_or(literal, |(inside, _)| inside);
        return ipv6(literal);
    }
    let name = match host.split_once(':') {
        None => host,
        Some((_, rest)) if rest.contains(':') => return ipv6(host),
        Some((name, _)) => name,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if !name.is_ascii() {
        return idna::domain_to_ascii(name).map_or(Cow::Borrowed(name), Cow::Owned);
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Owned(name.to_ascii_lowercase());
    }
    Cow::Borrowed(name)
}

/// A DNS name in normal form, syntax checked.
pub(crate) fn domain(name: &str) -> Result<String, HostnameError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let ascii = if name.is_ascii() {
        name.to_ascii_lowercase()
    } else {
        idna::domain_to_ascii(name).map_err(|_| HostnameError::Idna)?
    };
    if ascii.contains(':') {
        return Err(HostnameError::Port);
    }
    // Underscores and outer hyphens are no host name by the book, but occur in names of services.
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(other) = ascii.chars().find(|c| !allowed(*c)) {
        return Err(HostnameError::Character(other));
    }
    if ascii.len() > 253 {
        return Err(HostnameError::TooLong);
    }
    for label in ascii.split('.') {
        if label.is_empty() {
            return Err(HostnameError::EmptyLabel);
        }
        if label.len() > 63 {
            return Err(HostnameError::LabelTooLong);
        }
    }
    Ok(ascii)
}

/// A literal IPv6 address with or without brackets, in its canonical text (RFC 5952).
fn address(text: &str) -> Option<String> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    inner.parse::<Ipv6Addr>().ok().map(|address| address.to_string())
}

fn ipv6(literal: &str) -> Cow<'_, str> {
    match literal.parse::<Ipv6Addr>() {
        Ok(address) => {
            let canonical = address.to_string();
            if canonical == literal { Cow::Borrowed(literal) } else { Cow::Owned(canonical) }
        }
        Err(_) => Cow::Borrowed(literal),
    }
}
