//! Making a keyring: what is new is checked before it takes the place of what is there.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, CertificateRevocationListDer},
};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{CallerSources, Identity, IdentityError, Kept, Keyring, OriginTrust, Unusable, Wanted, seconds};
use crate::{
    config::{IdentitySource, SecretRef},
    identity::{Certificate, Digest},
    secrets::ReadError,
    tls::{
        callers::{CallerTrust, CallerTrustError},
        pem::{self, PemError},
    },
};

/// How long the trust in services before a change still counts: a service may renew a moment after its authority.
pub const OVERLAP: Duration = Duration::from_secs(30);

/// Why something cannot be used. No text holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The trust is none that callers can be held against.
    #[error("{0}")]
    CallerTrust(#[from] CallerTrustError),
    /// Its time is over.
    #[error("has expired")]
    Expired,
    /// Key and certificates are no identity.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// A certificate that no trust can begin with.
    #[error("{0}: holds a certificate that is malformed")]
    Malformed(String),
    /// Its time is still to come.
    #[error("is not yet valid")]
    NotYetValid,
    /// It is not the PEM it should be.
    #[error("{origin}: {source}")]
    Pem {
        /// Where it is from.
        origin: String,
        /// Why.
        source: PemError,
    },
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] ReadError),
}

impl Fault {
    /// Whether somebody may be about to write it.
    pub fn may_come(&self) -> bool {
        matches!(self, Self::Read(error) if error.may_come())
    }

    /// Whether nothing is wrong but the time.
    pub fn is_of_time(&self) -> bool {
        matches!(self, Self::Expired | Self::NotYetValid)
    }
}

impl From<&Fault> for Unusable {
    fn from(fault: &Fault) -> Self {
        match fault {
            Fault::Expired => Self::Expired,
            Fault::NotYetValid => Self::NotYetValid,
            other => Self::Unread(other.to_string().into()),
        }
    }
}

/// Something that cannot be used as it stands now.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}{}", if *.kept { ", the one before stays" } else { "" })]
pub struct Trouble {
    /// For people: what it is, and where it comes from.
    pub what: String,
    /// Why.
    pub why: Fault,
    /// What was there before stays in use.
    pub kept: bool,
}

/// What came of loading.
#[derive(Debug)]
pub struct Loaded {
    /// The generation to use from now on; the one before if nothing differs.
    pub keyring: Arc<Keyring>,
    /// Everything that cannot be used as it stands.
    pub troubles: Vec<Trouble>,
    /// When time alone makes a difference next; seconds since 1970.
    pub look_again: Option<i64>,
}

/// Which of the secrets are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reread {
    /// All.
    All,
    /// Those that there is nothing usable for yet.
    Unknown,
}

impl Keyring {
    /// Loads everything that is wanted and nothing else. What is new is used if it is complete and right; else what
    /// `before` has from the same sources stays, if its time is not over. Blocks where `read` does, and for the
    /// signatures of chains.
    pub fn load(
        wanted: &Arc<Wanted>,
        read: impl Fn(&SecretRef) -> Result<Zeroizing<Vec<u8>>, ReadError>,
        reread: Reread,
        before: &Arc<Self>,
        now: SystemTime,
    ) -> Loaded {
        let mut loading = Loading { read: &read, reread, now: seconds(now), troubles: Vec::new(), look_again: None };
        let identities = wanted.identities.iter().map(|(source, names)| {
            let what = || {
                let names = names.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
                format!("identity {names} ({})", shown(std::iter::once(&source.certificate).chain(&source.key)))
            };
            let old = before.identities.get(source);
            (source.clone(), loading.settle(what, old, |loading| loading.identity(source)))
        });
        let identities = identities.collect();
        let origin_trust = wanted.origin_trust.iter().map(|sources| {
            let what = || format!("trust in services ({})", shown(sources));
            let old = before.origin_trust.get(sources);
            let mut kept = loading.settle(what, old, |loading| loading.origin_trust(sources));
            if let (Ok(trust), Some(old)) = (&mut kept.value, old)
                && kept.content != old.content
                && let Ok(old_trust) = &old.value
                && old.is_in_time(loading.now)
            {
                let previous = Some((old_trust.current.clone(), Instant::now() + OVERLAP));
                *trust = Arc::new(OriginTrust { current: trust.current.clone(), previous });
            }
            (sources.clone(), kept)
        });
        let origin_trust = origin_trust.collect();
        let caller_trust = wanted.caller_trust.iter().map(|sources| {
            let what = || format!("trust in callers ({})", shown(sources.iter().flatten()));
            let old = before.caller_trust.get(sources);
            let kept = loading.settle(what, old, |loading| loading.caller_trust(sources));
            if let Ok(trust) = &kept.value
                && old.is_none_or(|old| old.content != kept.content)
                && trust.lists_of_nobody() > 0
            {
                tracing::warn!(
                    lists = trust.lists_of_nobody(),
                    "{}: neither an anchor nor an intermediate signed a revocation list; it counts only for an issuer \
                     of exactly its name that callers send",
                    what()
                );
            }
            (sources.clone(), kept)
        });
        let caller_trust = caller_trust.collect();
        let Loading { troubles, look_again, .. } = loading;
        let keyring =
            Self { generation: before.generation + 1, wanted: wanted.clone(), identities, origin_trust, caller_trust };
        let keyring = if keyring.same_as(before) { before.clone() } else { Arc::new(keyring) };
        Loaded { keyring, troubles, look_again }
    }

    fn same_as(&self, other: &Self) -> bool {
        fn same<K: PartialEq, T>(one: &BTreeMap<K, Kept<T>>, other: &BTreeMap<K, Kept<T>>) -> bool {
            one.len() == other.len()
                && one.iter().zip(other).all(|(one, other)| one.0 == other.0 && one.1.same_as(other.1))
        }
        self.wanted == other.wanted
            && same(&self.identities, &other.identities)
            && same(&self.origin_trust, &other.origin_trust)
            && same(&self.caller_trust, &other.caller_trust)
    }
}

pub(super) fn shown<'a>(sources: impl IntoIterator<Item = &'a SecretRef>) -> String {
    sources.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

struct Loading<'a, R> {
    read: &'a R,
    reread: Reread,
    now: i64,
    troubles: Vec<Trouble>,
    look_again: Option<i64>,
}

impl<R: Fn(&SecretRef) -> Result<Zeroizing<Vec<u8>>, ReadError>> Loading<'_, R> {
    /// What is used from now on.
    fn settle<T>(
        &mut self,
        what: impl Fn() -> String,
        old: Option<&Kept<T>>,
        make: impl FnOnce(&Self) -> Result<Kept<T>, Fault>,
    ) -> Kept<T> {
        let usable = old.filter(|old| old.value.is_ok());
        if let Some(old) = usable
            && self.reread == Reread::Unknown
        {
            self.look_at(old.next);
            return old.clone();
        }
        let usable_now = usable.filter(|old| old.is_in_time(self.now));
        let (new, fault) = match make(self) {
            Ok(new) => {
                self.look_at(new.next);
                let fault = match new.valid {
                    (from, _) if self.now < from => Some(Fault::NotYetValid),
                    (_, until) if self.now > until => Some(Fault::Expired),
                    _ => None,
                };
                (Some(new), fault)
            }
            Err(fault) => (None, Some(fault)),
        };
        // The same bytes are the same value, with whatever others remember of it.
        let same = usable.filter(|old| new.as_ref().is_some_and(|new| new.content == old.content));
        let Some(why) = fault else {
            return same.cloned().or(new).unwrap_or_else(|| Kept::unusable(Unusable::Expired));
        };
        let (kept, chosen) = match (same, usable_now) {
            (Some(same), _) => (false, same.clone()),
            (None, Some(old)) => {
                self.look_at(old.next);
                (true, old.clone())
            }
            (None, None) => (false, new.unwrap_or_else(|| Kept::unusable((&why).into()))),
        };
        self.troubles.push(Trouble { what: what(), why, kept });
        chosen
    }

    fn look_at(&mut self, time: Option<i64>) {
        let time = time.filter(|time| *time > self.now);
        self.look_again = self.look_again.into_iter().chain(time).min();
    }

    fn identity(&self, source: &IdentitySource) -> Result<Kept<Identity>, Fault> {
        let certificates = (self.read)(&source.certificate)?;
        let of = |origin: &SecretRef| {
            let origin = origin.to_string();
            move |source| Fault::Pem { origin, source }
        };
        let chain = pem::certificates(&certificates).map_err(of(&source.certificate))?;
        let key = match &source.key {
            Some(key) => pem::key(&(self.read)(key)?).map_err(of(key))?,
            None => pem::key(&certificates).map_err(of(&source.certificate))?,
        };
        let identity = Identity::new(chain, key)?;
        let (from, until) = identity.valid();
        // The key is the leaf's, so the certificates say it all.
        let content = content_of(identity.key.cert.iter().map(AsRef::as_ref));
        Ok(Kept {
            value: Ok(Arc::new(identity)),
            content: Some(content),
            valid: (from, until),
            not_after: Some(until),
            next: self.next([from, until.saturating_add(1)]),
        })
    }

    fn origin_trust(&self, sources: &[SecretRef]) -> Result<Kept<OriginTrust>, Fault> {
        let anchors = self.anchors(sources)?;
        if anchors.living.is_empty() {
            return Err(anchors.why_none());
        }
        let mut roots = RootCertStore::empty();
        for (origin, anchor) in &anchors.living {
            roots.add(anchor.clone()).map_err(|_| Fault::Malformed(origin.to_string()))?;
        }
        let content = content_of(anchors.living.iter().map(|(_, anchor)| anchor.as_ref()));
        Ok(anchors.kept(self, OriginTrust { current: Arc::new(roots), previous: None }, content))
    }

    fn caller_trust(&self, sources: &CallerSources) -> Result<Kept<CallerTrust>, Fault> {
        let [anchors, intermediates, allowlisted, crls] = sources;
        let anchors = self.anchors(anchors)?;
        let intermediates = self.certificates(intermediates)?;
        let allowlisted = self.certificates(allowlisted)?;
        let crls = self.lists(crls)?;
        if anchors.living.is_empty() && allowlisted.is_empty() {
            return Err(anchors.why_none());
        }
        let living = || anchors.living.iter().map(|(_, anchor)| anchor);
        // Lists of lists: where one ends and the next begins is part of what they say.
        let content = [
            content_of(living().map(AsRef::as_ref)),
            content_of(intermediates.iter().map(AsRef::as_ref)),
            content_of(allowlisted.iter().map(AsRef::as_ref)),
            content_of(crls.iter().map(AsRef::as_ref)),
        ];
        let content = content_of(content.iter().map(|digest| &digest.0[..]));
        let trust =
            CallerTrust::beside(&anchors.others, living().cloned().collect(), intermediates, allowlisted, crls)?;
        Ok(anchors.kept(self, trust, content))
    }

    fn anchors<'a>(&self, sources: &'a [SecretRef]) -> Result<Anchors<'a>, Fault> {
        let mut anchors = Anchors::default();
        for origin in sources {
            for anchor in self.certificates(std::slice::from_ref(origin))? {
                let read = Certificate::parse(&anchor).map_err(|_| Fault::Malformed(origin.to_string()))?;
                anchors.times.extend([read.not_before, read.not_after.saturating_add(1)]);
                if (read.not_before..=read.not_after).contains(&self.now) {
                    anchors.ends.push(read.not_after);
                    anchors.living.push((origin, anchor));
                } else {
                    anchors.expired |= self.now > read.not_after;
                    anchors.others.push(anchor);
                }
            }
        }
        Ok(anchors)
    }

    fn certificates(&self, sources: &[SecretRef]) -> Result<Vec<CertificateDer<'static>>, Fault> {
        let mut all = Vec::new();
        for origin in sources {
            let found = pem::certificates(&(self.read)(origin)?);
            all.extend(found.map_err(|source| Fault::Pem { origin: origin.to_string(), source })?);
        }
        Ok(all)
    }

    fn lists(&self, sources: &[SecretRef]) -> Result<Vec<CertificateRevocationListDer<'static>>, Fault> {
        let mut all = Vec::new();
        for origin in sources {
            let found = pem::revocation_lists(&(self.read)(origin)?);
            all.extend(found.map_err(|source| Fault::Pem { origin: origin.to_string(), source })?);
        }
        Ok(all)
    }

    /// The first of these times that is still to come.
    fn next(&self, times: impl IntoIterator<Item = i64>) -> Option<i64> {
        times.into_iter().filter(|time| *time > self.now).min()
    }
}

/// Anchors whose time is now: those who verify do not ask again how old an anchor is.
#[derive(Default)]
struct Anchors<'a> {
    living: Vec<(&'a SecretRef, CertificateDer<'static>)>,
    /// Those whose time is over or to come.
    others: Vec<CertificateDer<'static>>,
    /// When those end.
    ends: Vec<i64>,
    /// When the set of the living changes, past and to come.
    times: Vec<i64>,
    /// Some are over.
    expired: bool,
}

impl Anchors<'_> {
    fn why_none(&self) -> Fault {
        if self.expired { Fault::Expired } else { Fault::NotYetValid }
    }

    fn kept<T, R>(&self, loading: &Loading<'_, R>, value: T, content: Digest) -> Kept<T> {
        let times = self.times.iter().copied().filter(|time| *time > loading.now);
        Kept {
            value: Ok(Arc::new(value)),
            content: Some(content),
            // Without an anchor there are certificates that are valid by themselves, whatever their time.
            valid: (i64::MIN, self.ends.iter().copied().max().unwrap_or(i64::MAX)),
            not_after: self.ends.iter().copied().min(),
            next: times.min(),
        }
    }
}

/// Of several byte strings, each with its length.
fn content_of<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Digest {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(&(part.len() as u64).to_be_bytes());
        all.extend_from_slice(part);
    }
    Digest::of(&all)
}
