//! Whether a caller's certificate proves anything: the chain, its purpose, its time, its keys and its revocation.
//!
//! Pure but for the cryptography: no socket, no clock. Whoever shows a certificate has proven elsewhere that its key is
//! his.

mod crl;
mod error;
mod key;
mod search;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

pub use error::{CallerError, CallerTrustError};

use crate::identity::{Certificate, Digest};
use crl::Crl;

/// Most certificates that a caller may send besides its own (identity of load balancers: 10).
const MOST_SENT: usize = 10;

/// Trust in callers, of one generation.
///
/// An anchor counts as long as its own certificate is valid, so that an old root ends by itself. A certificate on
/// `allowlisted` is valid by itself: neither chain, time, key, purpose nor revocation is asked of it. Taking it back
/// means taking it off the list.
#[derive(Debug, Default)]
pub struct CallerTrust {
    anchors: Vec<Anchor>,
    intermediates: Vec<Intermediate>,
    allowlisted: HashSet<Digest>,
    crls: Vec<Crl>,
    /// When the answer of [`CallerTrust::verify`] may change by itself; sorted.
    edges: Vec<i64>,
}

#[derive(Debug)]
struct Anchor {
    trusted: TrustAnchor<'static>,
    /// Extended key usage allows client authentication, or nothing is said of it.
    for_callers: bool,
    not_before: i64,
    not_after: i64,
}

#[derive(Debug)]
struct Intermediate {
    der: CertificateDer<'static>,
    /// Of subject and public key: what several certificates of one authority have in common.
    authority: Digest,
}

/// A certificate and what came with it, leaf apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The caller's own.
    pub leaf: CertificateDer<'static>,
    /// The rest, in the order it came.
    pub chain: Arc<[CertificateDer<'static>]>,
}

/// What is proven of a caller besides that its certificate is valid. The default is for one that is valid by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The digest of the public key that signed the leaf; `None` if the certificate is valid by itself.
    pub issuer_key: Option<Digest>,
    /// What stands between leaf and anchor, the leaf's issuer first, whether it was sent or known. A caller may send
    /// anything else beside it: nothing is proven of that.
    pub chain: Arc<[CertificateDer<'static>]>,
}

impl CallerTrust {
    /// Trust that begins at each of `anchors`; `intermediates` are for callers who do not send them.
    ///
    /// # Errors
    ///
    /// When any of it cannot be used as what it is given for: half a trust is none.
    pub fn new(
        anchors: Vec<CertificateDer<'static>>,
        intermediates: Vec<CertificateDer<'static>>,
        allowlisted: Vec<CertificateDer<'static>>,
        crls: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, CallerTrustError> {
        Self::beside(&[], anchors, intermediates, allowlisted, crls)
    }

    /// The same beside anchors whose time is not now: nothing begins at them, but their lists are no mistake.
    ///
    /// # Errors
    ///
    /// Those of [`CallerTrust::new`].
    pub fn beside(
        others: &[CertificateDer<'_>],
        anchors: Vec<CertificateDer<'static>>,
        intermediates: Vec<CertificateDer<'static>>,
        allowlisted: Vec<CertificateDer<'static>>,
        crls: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, CallerTrustError> {
        let all = others.iter().chain(&anchors).chain(&intermediates);
        let issuers: Vec<_> =
            all.filter_map(|der| Some(crl::Authority::new(&X509Certificate::from_der(der).ok()?.1))).collect();
        let mut edges = Vec::new();
        let anchors = anchors.iter().map(|der| Anchor::new(der, &mut edges)).collect::<Result<_, _>>()?;
        let intermediates =
            intermediates.into_iter().map(|der| Intermediate::new(der, &mut edges)).collect::<Result<_, _>>()?;
        for der in &allowlisted {
            Certificate::parse(der).map_err(|_| CallerTrustError::Malformed("allow-listed certificate"))?;
        }
        let crls = crls.iter().map(|der| Crl::new(der)).collect::<Result<_, _>>()?;
        let crls = Crl::of_issuers(crls, &issuers)?;
        edges.extend(crls.iter().filter_map(Crl::ends));
        edges.sort_unstable();
        edges.dedup();
        let allowlisted = allowlisted.iter().map(|der| Digest::of(der)).collect();
        Ok(Self { anchors, intermediates, allowlisted, crls, edges })
    }

    /// Whether the certificate proves who the caller is, at this time.
    ///
    /// # Errors
    ///
    /// [`CallerError`].
    pub fn verify(&self, shown: &Shown, now: SystemTime) -> Result<Verified, CallerError> {
        let searched = self.search(shown, now);
        match searched {
            Err(_) if self.allowlisted.contains(&Digest::of(&shown.leaf)) => Ok(Verified::default()),
            other => other,
        }
    }

    /// Until when, exclusively, what [`CallerTrust::verify`] says at `now` holds, if nothing but time changes: the next
    /// moment at which a certificate or a list involved begins or ends. Seconds since 1970.
    pub fn holds_until(&self, shown: &Shown, now: SystemTime) -> i64 {
        let now = seconds(now);
        let own = self.edges.get(self.edges.partition_point(|edge| *edge <= now)).copied();
        let shown = std::iter::once(&shown.leaf).chain(shown.chain.iter()).filter_map(|der| {
            let (_, read) = X509Certificate::from_der(der).ok()?;
            edges_of(&read).into_iter().filter(|edge| *edge > now).min()
        });
        shown.chain(own).min().unwrap_or(i64::MAX)
    }

    /// How many revocation lists neither an anchor nor a known intermediate signed. They count only for issuers of
    /// exactly their names that callers send.
    pub fn lists_of_nobody(&self) -> usize {
        self.crls.iter().filter(|list| list.is_of_nobody()).count()
    }

    /// When the first of the revocation lists is no longer current; from then on callers of its issuer are refused.
    /// Seconds since 1970.
    pub fn revocation_ends(&self) -> Option<i64> {
        self.crls.iter().filter_map(Crl::ends).min()
    }

    /// When the last anchor ends; then nobody is trusted but who is allow-listed. Seconds since 1970.
    pub fn anchors_end(&self) -> Option<i64> {
        self.anchors.iter().map(|anchor| anchor.not_after).max()
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The first second of a certificate, and the first after it.
fn edges_of(read: &X509Certificate<'_>) -> [i64; 2] {
    let validity = read.validity();
    [validity.not_before.timestamp(), validity.not_after.timestamp().saturating_add(1)]
}

fn parse<'a>(der: &'a [u8], what: &'static str) -> Result<X509Certificate<'a>, CallerTrustError> {
    match X509Certificate::from_der(der) {
        Ok(([], read)) => Ok(read),
        _ => Err(CallerTrustError::Malformed(what)),
    }
}

impl Anchor {
    fn new(der: &CertificateDer<'static>, edges: &mut Vec<i64>) -> Result<Self, CallerTrustError> {
        let read = parse(der, "trust anchor")?;
        let trusted = webpki::anchor_from_trusted_cert(der).map_err(|_| CallerTrustError::Malformed("trust anchor"))?;
        // Otherwise the key of a single caller could make others.
        if !search::is_authority(&read) {
            return Err(CallerTrustError::NoAuthority("trust anchor"));
        }
        key::check(read.public_key()).map_err(|why| CallerTrustError::Key("trust anchor", why))?;
        edges.extend(edges_of(&read));
        Ok(Self {
            trusted: trusted.to_owned(),
            for_callers: search::may_authenticate(&read, search::Silence::Allows),
            not_before: read.validity().not_before.timestamp(),
            not_after: read.validity().not_after.timestamp(),
        })
    }

    fn is_valid(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

impl Intermediate {
    fn new(der: CertificateDer<'static>, edges: &mut Vec<i64>) -> Result<Self, CallerTrustError> {
        let read = parse(&der, "intermediate certificate")?;
        if !search::is_authority(&read) {
            return Err(CallerTrustError::NoAuthority("intermediate certificate"));
        }
        key::check(read.public_key()).map_err(|why| CallerTrustError::Key("intermediate certificate", why))?;
        edges.extend(edges_of(&read));
        let authority = search::authority(&read);
        Ok(Self { authority, der })
    }
}
