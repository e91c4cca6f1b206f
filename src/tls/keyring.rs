//! The keyring: every identity and every trust of one generation, parsed and checked.
//!
//! A generation never changes. What is in it was usable when it was read; whether it has expired since is asked when it
//! is used.

mod identity;
mod load;
mod wanted;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::RootCertStore;
use tokio::time::Instant;

pub use self::{
    identity::{Identity, IdentityError},
    load::{Fault, Loaded, OVERLAP, Reread, Trouble},
    wanted::Wanted,
};
use super::callers::CallerTrust;
use crate::{
    config::{Callers, Guard, IdentitySource, SecretRef},
    identity::Digest,
};

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
type CallerSources = [Vec<SecretRef>; 4];

/// One generation of identities and trust.
#[derive(Debug, Default)]
pub struct Keyring {
    /// Counted from 0, where there is nothing; each change of content has its own.
    pub generation: u64,
    wanted: Arc<Wanted>,
    identities: BTreeMap<IdentitySource, Kept<Identity>>,
    origin_trust: BTreeMap<Vec<SecretRef>, Kept<OriginTrust>>,
    caller_trust: BTreeMap<CallerSources, Kept<CallerTrust>>,
}

/// Something of a generation, with what tells whether it is the same as in the next.
#[derive(Debug)]
struct Kept<T> {
    value: Result<Arc<T>, Unusable>,
    /// Of everything that was read for it; `None`: nothing could be used.
    content: Option<Digest>,
    /// When it can be used, the last second included.
    valid: (i64, i64),
    /// When the first certificate of it is over.
    not_after: Option<i64>,
    /// When time alone changes it next, as of when it was made.
    next: Option<i64>,
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        let Self { value, content, valid, not_after, next } = self;
        Self { value: value.clone(), content: *content, valid: *valid, not_after: *not_after, next: *next }
    }
}

impl<T> Kept<T> {
    fn unusable(why: Unusable) -> Self {
        Self { value: Err(why), content: None, valid: (i64::MIN, i64::MAX), not_after: None, next: None }
    }

    fn is_in_time(&self, now: i64) -> bool {
        (self.valid.0..=self.valid.1).contains(&now)
    }

    fn same_as(&self, other: &Self) -> bool {
        self.content == other.content && self.value.as_ref().err() == other.value.as_ref().err()
    }

    fn shown(&self, kind: Kind, name: Arc<str>, now: i64) -> Shown {
        Shown { kind, name, not_after: self.not_after, lists_end: None, unusable: self.check(now).err() }
    }

    fn check(&self, now: i64) -> Result<(), Unusable> {
        match &self.value {
            Err(why) => Err(why.clone()),
            Ok(_) if now > self.valid.1 => Err(Unusable::Expired),
            Ok(_) if now < self.valid.0 => Err(Unusable::NotYetValid),
            Ok(_) => Ok(()),
        }
    }
}

/// An identity or a trust as it is shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What it is.
    pub kind: Kind,
    /// The name rules know an identity by, or where a trust comes from.
    pub name: Arc<str>,
    /// When the first certificate of it is over, seconds since 1970.
    pub not_after: Option<i64>,
    /// When the first revocation list of it is no longer current, seconds since 1970. Lists live for hours or days, where
    /// anchors live for years.
    pub lists_end: Option<i64>,
    /// Why it cannot be used.
    pub unusable: Option<Unusable>,
}

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something to present.
    Identity,
    /// Trust in callers.
    CallerTrust,
    /// Trust in services.
    OriginTrust,
}

impl Keyring {
    /// An empty one.
    #[cfg(test)]
    pub(crate) fn of_generation(generation: u64) -> Self {
        Self { generation, ..Self::default() }
    }

    /// What is presented from this source.
    ///
    /// # Errors
    ///
    /// [`Unusable::Unread`]; whether its time is right is [`Identity::check`]'s to say.
    pub fn identity(&self, source: &IdentitySource) -> Result<Arc<Identity>, Unusable> {
        of(self.identities.get(source))
    }

    /// Trust in services from these sources together.
    ///
    /// # Errors
    ///
    /// [`Unusable`].
    pub fn origin_trust(&self, sources: &[SecretRef]) -> Result<Arc<OriginTrust>, Unusable> {
        of(self.origin_trust.get(sources))
    }

    /// Trust in callers.
    ///
    /// # Errors
    ///
    /// [`Unusable`].
    pub fn caller_trust(&self, callers: &Callers) -> Result<Arc<CallerTrust>, Unusable> {
        of(self.caller_trust.get(&sources_of(callers)))
    }

    /// Whether it was made for a configuration with this guard's secrets, usable or not: its own, and those of the hop
    /// to its service.
    pub fn is_for(&self, guard: &Guard) -> bool {
        let wanted = Wanted::of_guard(guard);
        wanted.identities.keys().all(|source| self.identities.contains_key(source))
            && wanted.origin_trust.iter().all(|sources| self.origin_trust.contains_key(sources))
            && wanted.caller_trust.iter().all(|sources| self.caller_trust.contains_key(sources))
    }

    /// Everything in it, as of this time.
    pub fn shown(&self, now: SystemTime) -> Vec<Shown> {
        let now = seconds(now);
        let identities = self.identities.iter().flat_map(|(source, kept)| {
            let names = self.wanted.identities.get(source).into_iter().flatten();
            names.map(move |name| kept.shown(Kind::Identity, name.clone(), now))
        });
        let origin_trust = self
            .origin_trust
            .iter()
            .map(|(sources, kept)| kept.shown(Kind::OriginTrust, load::shown(sources).into(), now));
        let caller_trust = self.caller_trust.iter().map(|(sources, kept)| {
            let lists_end = kept.value.as_ref().ok().and_then(|trust| trust.revocation_ends());
            let name = load::shown(sources.iter().flatten()).into();
            Shown { lists_end, ..kept.shown(Kind::CallerTrust, name, now) }
        });
        identities.chain(origin_trust).chain(caller_trust).collect()
    }

    /// Whether everything that is wanted can be used at this time.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        let now = seconds(now);
        self.identities.values().all(|kept| kept.check(now).is_ok())
            && self.origin_trust.values().all(|kept| kept.check(now).is_ok())
            && self.caller_trust.values().all(|kept| kept.check(now).is_ok())
    }
}

fn of<T>(kept: Option<&Kept<T>>) -> Result<Arc<T>, Unusable> {
    // The keyring is made for the configuration, so this is said of one that was made for another.
    kept.map_or_else(|| Err(Unusable::Unread("is not loaded".into())), |kept| kept.value.clone())
}

fn sources_of(callers: &Callers) -> CallerSources {
    let Callers { trust_anchors, intermediates, allowlisted, crls, .. } = callers;
    [trust_anchors.clone(), intermediates.clone(), allowlisted.clone(), crls.clone()]
}

/// Since 1970.
fn seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
