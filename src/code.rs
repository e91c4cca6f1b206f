//! The reasons adit answers for itself, each with its status and its word in `Adit-Error`, logs and metrics.

use http::{HeaderName, StatusCode};

/// The header that carries [`Code::as_str`].
pub const ADIT_ERROR: HeaderName = HeaderName::from_static("adit-error");

/// Why adit, and not a service, answered (the contract's table of codes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// A rule demands an Access token, which is not checked yet.
    AccessRequired,
    /// The request's body is larger than the rule allows.
    BodyTooLarge,
    /// The visitor's certificate does not prove what it says.
    CallerInvalid,
    /// The visitor has no certificate.
    CallerMissing,
    /// The visitor is known, and may not do this.
    CallerNotAllowed,
    /// The grace period is over and the connection about to close.
    Draining,
    /// The body has no length where the rule needs one.
    LengthRequired,
    /// Rules are still to come from the edge.
    NoConfiguration,
    /// No such page of a built-in service.
    NotFound,
    /// The service spoke no proper HTTP, or died in the middle.
    OriginProtocol,
    /// The service's certificate is outside its validity.
    OriginExpired,
    /// The service's certificate is for another name.
    OriginIdentity,
    /// The service did not ask for a certificate where it has to.
    OriginNotAsking,
    /// The service took too long to be reached or to answer.
    OriginTimeout,
    /// The service refused the TLS handshake.
    OriginTlsRefused,
    /// Nobody answers at the service's address.
    OriginUnreachable,
    /// The service's certificate chains to no trusted root.
    OriginUntrusted,
    /// As many requests as the rule allows are in flight.
    Overloaded,
    /// The path can be read in two ways, and what is allowed depends on it.
    PathAmbiguous,
    /// The request itself is not usable for this kind of service.
    RequestInvalid,
}

impl Code {
    /// Every code, for metrics that show zeros.
    pub const ALL: [Self; 20] = [
        Self::AccessRequired,
        Self::BodyTooLarge,
        Self::CallerInvalid,
        Self::CallerMissing,
        Self::CallerNotAllowed,
        Self::Draining,
        Self::LengthRequired,
        Self::NoConfiguration,
        Self::NotFound,
        Self::OriginProtocol,
        Self::OriginExpired,
        Self::OriginIdentity,
        Self::OriginNotAsking,
        Self::OriginTimeout,
        Self::OriginTlsRefused,
        Self::OriginUnreachable,
        Self::OriginUntrusted,
        Self::Overloaded,
        Self::PathAmbiguous,
        Self::RequestInvalid,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccessRequired => "access-required",
            Self::BodyTooLarge => "body-too-large",
            Self::CallerInvalid => "caller-invalid",
            Self::CallerMissing => "caller-missing",
            Self::CallerNotAllowed => "caller-not-allowed",
            Self::Draining => "draining",
            Self::LengthRequired => "length-required",
            Self::NoConfiguration => "no-configuration",
            Self::NotFound => "not-found",
            Self::OriginProtocol => "origin-protocol",
            Self::OriginExpired => "origin-expired",
            Self::OriginIdentity => "origin-identity",
            Self::OriginNotAsking => "origin-not-asking",
            Self::OriginTimeout => "origin-timeout",
            Self::OriginTlsRefused => "origin-tls-refused",
            Self::OriginUnreachable => "origin-unreachable",
            Self::OriginUntrusted => "origin-untrusted",
            Self::Overloaded => "overloaded",
            Self::PathAmbiguous => "path-ambiguous",
            Self::RequestInvalid => "request-invalid",
        }
    }

    /// The status a visitor sees. 525 and 526 are Cloudflare's words for TLS trouble behind an edge.
    pub fn status(self) -> StatusCode {
        let status = match self {
            Self::PathAmbiguous | Self::RequestInvalid => 400,
            Self::AccessRequired | Self::CallerInvalid | Self::CallerMissing | Self::CallerNotAllowed => 403,
            Self::NotFound => 404,
            Self::LengthRequired => 411,
            Self::BodyTooLarge => 413,
            Self::OriginProtocol | Self::OriginUnreachable => 502,
            Self::Draining | Self::NoConfiguration | Self::Overloaded => 503,
            Self::OriginTimeout => 504,
            Self::OriginNotAsking | Self::OriginTlsRefused => 525,
            Self::OriginExpired | Self::OriginIdentity | Self::OriginUntrusted => 526,
        };
        StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_of_its_family_and_a_word_of_its_own() {
        let words: std::collections::HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        assert_eq!(Code::OriginUntrusted.status().as_u16(), 526);
        assert_eq!(Code::OriginTlsRefused.status().as_u16(), 525);
        assert_eq!(Code::OriginTimeout.status().as_u16(), 504);
    }
}
