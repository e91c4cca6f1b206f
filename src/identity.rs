//! Who somebody is by a certificate: the names in it, and the patterns that names are held against.
//!
//! Pure: no socket, no clock, no trust. That a certificate says a name is no proof; `tls` proves.

mod certificate;
mod spiffe;

use std::{fmt, str::FromStr};

pub use certificate::{Certificate, CertificateParseError};
pub use spiffe::{SpiffeId, SpiffeIdError, SpiffePattern};

/// A SHA-256 digest of a certificate or of a public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a text is no name to hold a certificate against.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// No digest.
    #[error("a digest is `sha256:` and 64 hexadecimal digits")]
    Digest,
    /// No DNS name.
    #[error("{0:?} is no DNS name; `*.` may stand for its first label")]
    Dns(String),
    /// None of the forms.
    #[error("must begin with `spiffe://`, `dns:` or `sha256:`")]
    Form,
    /// No SPIFFE ID.
    #[error(transparent)]
    Spiffe(#[from] SpiffeIdError),
}

impl FromStr for Digest {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let hex = text.strip_prefix("sha256:").ok_or(PatternError::Digest)?;
        let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(PatternError::Digest);
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(PatternError::Digest);
        let mut digest = [0; 32];
        for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
            *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).map_err(|_| PatternError::Digest)?;
        }
        Ok(Self(digest))
    }
}

/// A DNS name, or `*.` and a name: exactly one label in front of it (RFC 9525 §6.3). Lower case, without a final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsPattern(String);

impl FromStr for DnsPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let refused = || PatternError::Dns(text.to_owned());
        let name = text.strip_suffix('.').unwrap_or(text);
        let labels = name.strip_prefix("*.").unwrap_or(name);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if labels.len() > 253 || !labels.split('.').all(label) {
            return Err(refused());
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl DnsPattern {
    /// Whether a name of a certificate is meant. A wildcard in the certificate stands for one label, too: it is meant
    /// if every name it covers is.
    pub fn matches(&self, presented: &str) -> bool {
        let presented = presented.strip_suffix('.').unwrap_or(presented).to_ascii_lowercase();
        if presented == self.0 {
            return true;
        }
        let first_label_gone = |name: &str| name.split_once('.').map(|(_, rest)| rest.to_owned());
        match (self.0.strip_prefix("*."), presented.strip_prefix("*.")) {
            // Any one label was meant, and this is one.
            (Some(parent), None) => first_label_gone(&presented).is_some_and(|rest| rest == parent),
            // The certificate covers the one name that was meant.
            (None, Some(parent)) => first_label_gone(&self.0).is_some_and(|rest| rest == parent),
            _ => false,
        }
    }

    /// The pattern as it is compared.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a service must prove to be (design: `expect`); any one of a list suffices.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    /// `dns:NAME`.
    Dns(DnsPattern),
    /// `sha256:HEX` of the public key's DER (SubjectPublicKeyInfo).
    Key(Digest),
    /// `spiffe://…`, exactly.
    Spiffe(SpiffeId),
}

impl FromStr for Expect {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.starts_with("spiffe://") {
            Ok(Self::Spiffe(text.parse()?))
        } else if let Some(name) = text.strip_prefix("dns:") {
            Ok(Self::Dns(name.parse()?))
        } else if text.starts_with("sha256:") {
            Ok(Self::Key(text.parse()?))
        } else {
            Err(PatternError::Form)
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{}", name.as_str()),
            Self::Key(digest) => digest.fmt(f),
            Self::Spiffe(id) => id.fmt(f),
        }
    }
}

impl Expect {
    /// Whether this certificate says so.
    pub fn is_met_by(&self, certificate: &Certificate) -> bool {
        match self {
            Self::Dns(name) => certificate.dns_names.iter().any(|presented| name.matches(presented)),
            Self::Key(digest) => certificate.key_digest == *digest,
            Self::Spiffe(id) => certificate.spiffe_id.as_ref() == Some(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dns_pattern_stands_for_one_label_on_either_side() {
        let matches = |pattern: &str, name: &str| pattern.parse::<DnsPattern>().unwrap().matches(name);
        assert!(matches("a.example.com", "A.Example.com."));
        assert!(matches("*.example.com", "a.example.com"));
        assert!(matches("a.example.com", "*.example.com"));
        assert!(matches("*.example.com", "*.example.com"));
        for (pattern, name) in [
            ("*.example.com", "a.b.example.com"),
            ("*.example.com", "example.com"),
            ("a.b.example.com", "*.example.com"),
            ("example.com", "*.example.com"),
            ("*.b.example.com", "*.example.com"),
            ("*.example.com", "*.b.example.com"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        for wrong in ["", "*", "a..b", "*.*.b", "a.*.b", "-a.b", "a b", "a/b", "ü.example"] {
            assert!(wrong.parse::<DnsPattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_digest_reads_what_it_writes_and_nothing_else() {
        let digest = Digest::of(b"adit");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.to_string().to_uppercase().replacen("SHA256", "sha256", 1).parse(), Ok(digest));
        let text = digest.to_string();
        for wrong in [&text[..70], &format!("{text}0"), &text.replace(':', "="), "sha256:", "sha256:gg"] {
            assert_eq!(wrong.parse::<Digest>(), Err(PatternError::Digest), "{wrong}");
        }
    }

    #[test]
    fn what_is_expected_has_three_forms() {
        for text in ["spiffe://example.org/ns/a", "dns:*.example.com", &Digest::of(b"").to_string()] {
            assert_eq!(text.parse::<Expect>().unwrap().to_string(), *text);
        }
        assert_eq!("example.com".parse::<Expect>(), Err(PatternError::Form));
        assert!("spiffe://example.org/*".parse::<Expect>().is_err());
    }
}
