//! From a caller's certificate to an anchor.

use std::{
    cell::Cell,
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, VerifiedPath};
use x509_parser::{
    certificate::X509Certificate, extensions::ParsedExtension, oid_registry::OID_X509_EXT_NAME_CONSTRAINTS,
    prelude::FromDer,
};

use super::{CallerError, CallerTrust, MOST_SENT, Shown, Verified, crl, key, seconds};
use crate::identity::{Certificate, Digest};

/// Certificates looked at before a search is given up: without a bound, ten certificates that could each have issued
/// the others make 150,000 ways.
const MOST_EXAMINED: usize = 100;

/// Certificates of one authority (subject and key), and constraints in one certificate.
const MOST_ALIKE: usize = 10;

const CLIENT_AUTH: KeyPurposeId<'_> = KeyPurposeId::new(&[0x2b, 6, 1, 5, 5, 7, 3, 2]);
const ANY_PURPOSE: KeyPurposeId<'_> = KeyPurposeId::new(&[0x55, 0x1d, 0x25, 0]);

/// What it means that a certificate states no purposes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    Allows,
    Forbids,
}

/// Whether a certificate's purposes (extended key usage, RFC 5280 §4.2.1.12) include authentication of callers.
pub(super) fn may_authenticate(read: &X509Certificate<'_>, silence: Silence) -> bool {
    match read.extended_key_usage() {
        Ok(Some(purposes)) => purposes.value.client_auth || silence == Silence::Allows && purposes.value.any,
        Ok(None) => silence == Silence::Allows,
        Err(_) => false,
    }
}

/// Whether a certificate may issue others.
pub(super) fn is_authority(read: &X509Certificate<'_>) -> bool {
    let authority = matches!(read.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca);
    let signs = match read.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    authority && signs
}

/// Subject and key.
pub(super) fn authority(read: &X509Certificate<'_>) -> Digest {
    Digest::of(&[read.subject().as_raw(), read.public_key().raw].concat())
}

/// Purposes of issuers, and the count of certificates examined: every one passes here.
struct Examined(Cell<usize>);

impl ExtendedKeyUsageValidator for Examined {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        self.0.set(self.0.get() + 1);
        if self.0.get() > MOST_EXAMINED {
            // One of the errors that end a search.
            return Err(Error::MaximumPathBuildCallsExceeded);
        }
        let mut silent = true;
        for purpose in purposes {
            let purpose = purpose?;
            if purpose == CLIENT_AUTH || purpose == ANY_PURPOSE {
                return Ok(());
            }
            silent = false;
        }
        if silent { Ok(()) } else { Err(Error::EmptyEkuExtension) }
    }
}

impl CallerTrust {
    pub(super) fn search(&self, shown: &Shown, now: SystemTime) -> Result<Verified, CallerError> {
        // What cannot be read is no certificate, whatever else holds.
        Certificate::parse(&shown.leaf).map_err(|_| CallerError::Malformed)?;
        let Ok((_, leaf)) = X509Certificate::from_der(&shown.leaf) else { return Err(CallerError::Malformed) };
        if self.anchors.is_empty() {
            let nothing = self.allowlisted.is_empty();
            return Err(if nothing { CallerError::NotPerformed } else { CallerError::UnknownIssuer });
        }
        if shown.chain.len() > MOST_SENT {
            return Err(CallerError::ChainTooLong);
        }
        key::check(leaf.public_key())?;
        match leaf.basic_constraints() {
            Ok(Some(constraints)) if constraints.value.ca => return Err(CallerError::IsAuthority),
            Ok(_) => {}
            Err(_) => return Err(CallerError::Malformed),
        }
        if !may_authenticate(&leaf, Silence::Forbids) {
            return Err(CallerError::Purpose);
        }
        self.count_alike(shown)?;

        let sent = shown.chain.iter();
        let known = self.intermediates.iter().map(|intermediate| &intermediate.der);
        let candidates: Vec<CertificateDer<'_>> =
            sent.chain(known).map(|der| CertificateDer::from(der.as_ref())).collect();
        let at = seconds(now);
        let anchors: Vec<_> =
            self.anchors.iter().filter(|anchor| anchor.is_valid(at)).map(|anchor| anchor.trusted.clone()).collect();
        let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        // What was wrong with a chain that is otherwise good; another may be better.
        let refused = Cell::new(None);
        let last_check = |path: &VerifiedPath<'_>| {
            self.check_path(&leaf, path, at).map_err(|why| {
                refused.set(Some(why));
                Error::UnknownIssuer
            })
        };
        let entity = EndEntityCert::try_from(&shown.leaf).map_err(|error| reason(&error))?;
        let examined = Examined(Cell::new(0));
        entity
            .verify_for_usage(key::SIGNATURES, &anchors, &candidates, time, &examined, None, Some(&last_check))
            .map(|path| Verified {
                issuer_key: Some(Digest::of(&path.issuer_spki())),
                chain: path.intermediate_certificates().map(|issuer| issuer.der().into_owned()).collect(),
            })
            .map_err(|error| match (refused.get(), reason(&error)) {
                (Some(why), _) => why,
                (None, why @ (CallerError::ValidationFailed | CallerError::UnknownIssuer)) => {
                    self.weak_key_sent(shown).unwrap_or_else(|| self.ended_anchor(&leaf, at).unwrap_or(why))
                }
                (None, why) => why,
            })
    }

    /// What is asked of a chain besides signatures, names and times.
    fn check_path(&self, leaf: &X509Certificate<'_>, path: &VerifiedPath<'_>, now: i64) -> Result<(), CallerError> {
        let anchor = path.anchor();
        let known = self.anchors.iter().find(|known| known.trusted == *anchor);
        if !known.is_some_and(|anchor| anchor.for_callers) {
            return Err(CallerError::Purpose);
        }
        let ders: Vec<_> = path.intermediate_certificates().map(|issuer| issuer.der()).collect();
        let mut below = leaf.clone();
        for der in &ders {
            let Ok((_, issuer)) = X509Certificate::from_der(der) else { return Err(CallerError::Malformed) };
            key::check(issuer.public_key())?;
            if !is_authority(&issuer) {
                return Err(CallerError::ValidationFailed);
            }
            if constraints(&issuer) > MOST_ALIKE {
                return Err(CallerError::TooManyNameConstraints);
            }
            crl::check(&self.crls, &below, &issuer.public_key().raw.into(), now)?;
            below = issuer;
        }
        crl::check(&self.crls, &below, &webpki::spki_for_anchor(anchor), now)
    }

    fn count_alike(&self, shown: &Shown) -> Result<(), CallerError> {
        let mut counts: HashMap<Digest, usize> = HashMap::new();
        let sent = shown.chain.iter().filter_map(|der| Some(authority(&X509Certificate::from_der(der).ok()?.1)));
        for one in sent.chain(self.intermediates.iter().map(|known| known.authority)) {
            let count = counts.entry(one).or_default();
            *count += 1;
            if *count > MOST_ALIKE {
                return Err(CallerError::PkiTooLarge);
            }
        }
        Ok(())
    }

    /// A better word for a chain that leads nowhere: one of those sent could never have helped.
    fn weak_key_sent(&self, shown: &Shown) -> Option<CallerError> {
        shown.chain.iter().find_map(|der| {
            let (_, read) = X509Certificate::from_der(der).ok()?;
            key::check(read.public_key()).err()
        })
    }

    /// Another: it would have led to an anchor whose time is over or to come.
    fn ended_anchor(&self, leaf: &X509Certificate<'_>, now: i64) -> Option<CallerError> {
        let direct = |anchor: &&super::Anchor| leaf.issuer().as_raw().ends_with(anchor.trusted.subject.as_ref());
        let anchor = self.anchors.iter().filter(direct).find(|anchor| !anchor.is_valid(now))?;
        Some(if now > anchor.not_after { CallerError::Expired } else { CallerError::NotYetValid })
    }
}

fn constraints(read: &X509Certificate<'_>) -> usize {
    let of = |trees: &Option<Vec<_>>| trees.as_ref().map_or(0, Vec::len);
    match read.get_extension_unique(&OID_X509_EXT_NAME_CONSTRAINTS).ok().flatten().map(|it| it.parsed_extension()) {
        Some(ParsedExtension::NameConstraints(names)) => of(&names.permitted_subtrees) + of(&names.excluded_subtrees),
        _ => 0,
    }
}

fn reason(error: &Error) -> CallerError {
    match error {
        Error::CertExpired { .. } => CallerError::Expired,
        Error::CertNotValidYet { .. } => CallerError::NotYetValid,
        Error::CaUsedAsEndEntity => CallerError::IsAuthority,
        Error::EmptyEkuExtension | Error::RequiredEkuNotFoundContext(_) => CallerError::Purpose,
        Error::NameConstraintViolation => CallerError::NameConstraints,
        Error::MaximumPathDepthExceeded => CallerError::ChainTooLong,
        Error::MaximumSignatureChecksExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => CallerError::SearchLimit,
        Error::UnknownIssuer => CallerError::UnknownIssuer,
        Error::BadDer | Error::BadDerTime | Error::MalformedExtensions | Error::TrailingData(_) => {
            CallerError::Malformed
        }
        _ => CallerError::ValidationFailed,
    }
}
