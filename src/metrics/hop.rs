//! The hop to services: what its handshakes fail of, and how many services are not verified.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::IntGauge;

/// Why there is no TLS connection to a service, or none that proves enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopFailure {
    /// The certificate is malformed, for another purpose, or signed in a way that proves nothing.
    BadCertificate,
    /// The certificate is outside its validity.
    Expired,
    /// No TLS, or no proper one.
    Handshake,
    /// The service signs with nothing that the key of our identity can.
    NoCommonScheme,
    /// The service did not ask for a certificate.
    NotAsking,
    /// What is exempt as loopback led elsewhere.
    NotLoopback,
    /// Our own identity is missing or outside its validity.
    OwnIdentity,
    /// Our own trust in services could not be read.
    OwnTrust,
    /// The service sent an alert.
    RefusedByService,
    /// The chain ends at nothing that is trusted.
    UnknownIssuer,
    /// The certificate is right and somebody else's.
    WrongIdentity,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

impl HopFailure {
    /// Every cause, for metrics that show zeros.
    pub const ALL: [Self; 11] = [
        Self::BadCertificate,
        Self::Expired,
        Self::Handshake,
        Self::NoCommonScheme,
        Self::NotAsking,
        Self::NotLoopback,
        Self::OwnIdentity,
        Self::OwnTrust,
        Self::RefusedByService,
        Self::UnknownIssuer,
        Self::WrongIdentity,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadCertificate => "bad-certificate",
            Self::Expired => "expired",
            Self::Handshake => "handshake",
            Self::NoCommonScheme => "no-common-scheme",
            Self::NotAsking => "not-asking",
            Self::NotLoopback => "not-loopback",
            Self::OwnIdentity => "own-identity-unusable",
            Self::OwnTrust => "own-trust-unusable",
            Self::RefusedByService => "refused-by-service",
            Self::UnknownIssuer => "unknown-issuer",
            Self::WrongIdentity => "wrong-identity",
        }
    }

    fn label(self) -> CauseLabel {
        CauseLabel { cause: self.as_str() }
    }
}

/// The metrics of all hops together; a handle, cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct HopMetrics {
    failures: Family<CauseLabel, Counter>,
    unverified: IntGauge,
}

impl HopMetrics {
    pub(super) fn new() -> Self {
        let new = Self::default();
        for cause in HopFailure::ALL {
            drop(new.failures.get_or_create(&cause.label()));
        }
        new
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register("adit_inner_hop_failures", "Hops to services that failed, by cause", self.failures.clone());
        r.register(
            "adit_inner_hop_unverified_services",
            "Services whose certificate is not verified (noTLSVerify)",
            self.unverified.clone(),
        );
    }

    /// One failed.
    pub fn failed(&self, cause: HopFailure) {
        self.failures.get_or_create(&cause.label()).inc();
    }

    /// A service is not verified for as long as this is held.
    pub fn unverified(&self) -> Unverified {
        self.unverified.inc();
        Unverified(self.unverified.clone())
    }

    /// How many services are not verified now.
    pub fn unverified_services(&self) -> i64 {
        self.unverified.get()
    }
}

/// A service that is not verified, as a gauge.
#[must_use]
#[derive(Debug)]
pub struct Unverified(IntGauge);

impl Drop for Unverified {
    fn drop(&mut self) {
        self.0.dec();
    }
}
