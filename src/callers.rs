//! Callers: visitors and workloads known by their certificates, and what each of them may do.
//!
//! The decision is made once and carried as a [`Permit`], without which no service is opened.

mod policy;

use std::sync::Arc;

pub use policy::{Denied, Permit, Policy};

use crate::{
    identity::{Certificate, Digest},
    tls::callers::{CallerError, Shown},
};

/// A caller whose certificate was looked at, under one generation of trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What was shown.
    pub shown: Shown,
    /// What the leaf says, if it is a certificate at all.
    pub certificate: Option<Certificate>,
    /// The digest of the public key that signed the leaf, if the chain was verified.
    pub issuer_key: Option<Digest>,
    /// Whether any of it is proven.
    pub verdict: Result<(), CallerError>,
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
