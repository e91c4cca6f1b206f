//! Callers: visitors and workloads known by their certificates, and what each of them may do.
//!
//! What an edge relays is read ([`relayed`]) before every header that speaks of certificates is taken away
//! ([`families`]); the certificate is verified ([`check`]), and the service told of it ([`headers`]). The decision is
//! made once and carried as a [`Permit`], without which no service is opened.

pub mod check;
pub mod families;
pub mod headers;
mod policy;
pub mod relayed;

use std::sync::Arc;

pub use policy::{Denied, Permit, Policy};
use rustls::pki_types::CertificateDer;

use crate::{
    identity::{Certificate, Digest},
    tls::callers::{CallerError, Shown, Verified},
};

/// A caller whose certificate was looked at, under one generation of trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What was shown; an empty leaf if that could not be read.
    pub shown: Shown,
    /// What the leaf says, if it is a certificate at all.
    pub certificate: Option<Certificate>,
    /// The digest of the public key that signed the leaf, if the chain was verified; a certificate that is valid by
    /// itself has none.
    pub issuer_key: Option<Digest>,
    /// The issuers that were verified between leaf and anchor, the leaf's own first; of what was sent only these are
    /// told to services.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// Whether any of it is proven.
    pub verdict: Result<(), CallerError>,
    /// What services are told, written down once.
    values: headers::Values,
}

impl Caller {
    /// Somebody who showed this, and what came of it.
    pub fn new(shown: Shown, verdict: Result<Verified, CallerError>) -> Self {
        let certificate = Certificate::parse(&shown.leaf).ok();
        let (verdict, Verified { issuer_key, chain }) = match verdict {
            Ok(verified) => (Ok(()), verified),
            Err(why) => (Err(why), Verified::default()),
        };
        Self { issuer_key, chain, verdict, certificate, shown, values: headers::Values::default() }
    }
}

/// Somebody, or nobody who is known.
pub type MaybeCaller = Option<Arc<Caller>>;

/// What an edge says of a visitor's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relayed {
    /// Something that cannot be read: a caller, and an invalid one.
    Malformed,
    /// There was none.
    Nothing,
    /// This.
    Shown(Shown),
}
