//! The keyring: every identity and every trust of one generation, parsed and checked.
//!
//! A generation never changes. What is in it was usable when it was read; whether it has expired since is asked when it
//! is used.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{RootCertStore, sign::CertifiedKey};
use tokio::time::Instant;

use super::callers::CallerTrust;
use crate::{
    config::{Callers, IdentitySource, SecretRef},
    identity::Certificate,
};

/// A certificate with its chain and key, fit to be presented.
pub struct Identity {
    /// For rustls.
    pub key: Arc<CertifiedKey>,
    /// What the leaf says.
    pub certificate: Certificate,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.certificate.fingerprint).finish_non_exhaustive()
    }
}

impl Identity {
    /// Whether it may be presented at this time.
    ///
    /// # Errors
    ///
    /// [`Unusable::Expired`], [`Unusable::NotYetValid`].
    pub fn check(&self, now: SystemTime) -> Result<(), Unusable> {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let now = i64::try_from(seconds).unwrap_or(i64::MAX);
        if now > self.certificate.not_after {
            Err(Unusable::Expired)
        } else if now < self.certificate.not_before {
            Err(Unusable::NotYetValid)
        } else {
            Ok(())
        }
    }
}

/// Trust in services.
#[derive(Clone, Debug)]
pub struct OriginTrust {
    /// The set in force.
    pub current: Arc<RootCertStore>,
    /// The set before, and until when it still counts for new handshakes.
    pub previous: Option<(Arc<RootCertStore>, Instant)>,
}

/// Why something is not there to be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// Its time is still to come.
    #[error("not yet valid")]
    NotYetValid,
    /// Nothing was read that could be used; the text says what and why, never the content.
    #[error("{0}")]
    Unread(Arc<str>),
}

/// Where callers' trust comes from; equal sources share one trust.
pub(super) type CallerSources = [Vec<SecretRef>; 4];

/// One generation of identities and trust.
#[derive(Debug, Default)]
pub struct Keyring {
    /// Counted from 0; each change of content has its own.
    pub generation: u64,
    pub(super) identities: BTreeMap<IdentitySource, Result<Arc<Identity>, Unusable>>,
    pub(super) origin_trust: BTreeMap<Vec<SecretRef>, Result<Arc<OriginTrust>, Unusable>>,
    pub(super) caller_trust: BTreeMap<CallerSources, Result<Arc<CallerTrust>, Unusable>>,
}

impl Keyring {
    /// What is presented from this source.
    ///
    /// # Errors
    ///
    /// [`Unusable::Unread`]; whether its time is right is [`Identity::check`]'s to say.
    pub fn identity(&self, source: &IdentitySource) -> Result<Arc<Identity>, Unusable> {
        self.identities.get(source).cloned().unwrap_or_else(|| Err(not_asked_for()))
    }

    /// Trust in services from these sources together.
    ///
    /// # Errors
    ///
    /// [`Unusable::Unread`].
    pub fn origin_trust(&self, sources: &[SecretRef]) -> Result<Arc<OriginTrust>, Unusable> {
        self.origin_trust.get(sources).cloned().unwrap_or_else(|| Err(not_asked_for()))
    }

    /// Trust in callers.
    ///
    /// # Errors
    ///
    /// [`Unusable::Unread`].
    pub fn caller_trust(&self, callers: &Callers) -> Result<Arc<CallerTrust>, Unusable> {
        self.caller_trust.get(&sources_of(callers)).cloned().unwrap_or_else(|| Err(not_asked_for()))
    }
}

pub(super) fn sources_of(callers: &Callers) -> CallerSources {
    let Callers { trust_anchors, intermediates, allowlisted, crls, .. } = callers;
    [trust_anchors.clone(), intermediates.clone(), allowlisted.clone(), crls.clone()]
}

/// The keyring is made for the configuration, so this is said of one that was made for another.
fn not_asked_for() -> Unusable {
    Unusable::Unread("is not loaded".into())
}
