//! Lists of revoked certificates (RFC 5280 §5): whole ones of one issuer each.
//!
//! Whoever is on a list that his issuer signed is refused; of an issuer's several lists (one for each part of its
//! certificates, say) all are asked. An issuer without a list has revoked nobody. With a list, one of them must be
//! signed by the issuer's key, and all of these current: past its `nextUpdate` a list would hide who was revoked since.
//!
//! A list is its signer's, whatever name stands on it: one name has several encodings. Whose key signed it is found
//! when it is loaded. An issuer that callers send and nobody configured is known by its name alone, until its
//! key is seen.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use rustls::pki_types::SubjectPublicKeyInfoDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::ParsedExtension,
    oid_registry::{
        OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_DELTA_CRL_INDICATOR, OID_X509_EXT_ISSUER_DISTRIBUTION_POINT,
    },
    prelude::FromDer,
    revocation_list::CertificateRevocationList,
};

use super::{CallerError, CallerTrustError, key};
use crate::identity::Digest;

/// Keys remembered of those that did not sign a list. All of them belong to issuers below an anchor.
const MOST_REMEMBERED: usize = 16;

/// A list, read.
#[derive(Debug)]
pub(super) struct Crl {
    /// The issuer's name, DER.
    issuer: Vec<u8>,
    signed: Vec<u8>,
    /// The object identifier of the signature's algorithm, DER.
    algorithm: Vec<u8>,
    signature: Vec<u8>,
    signer: Mutex<Signer>,
    /// Big-endian, without leading zeros.
    revoked: HashSet<Vec<u8>>,
    this_update: i64,
    next_update: Option<i64>,
    /// Which key and which part of its certificates this is about: the newest of equals counts.
    scope: [Vec<u8>; 2],
}

impl Crl {
    pub(super) fn new(der: &[u8]) -> Result<Self, CallerTrustError> {
        let Ok(([], list)) = CertificateRevocationList::from_der(der) else {
            return Err(CallerTrustError::Malformed("revocation list"));
        };
        let mut scope = [Vec::new(), Vec::new()];
        for extension in list.extensions() {
            if extension.oid == OID_X509_EXT_DELTA_CRL_INDICATOR {
                return Err(CallerTrustError::Crl("it says only what changed"));
            }
            match extension.parsed_extension() {
                ParsedExtension::IssuingDistributionPoint(point) => {
                    if point.indirect_crl {
                        return Err(CallerTrustError::Crl("it speaks of other issuers' certificates"));
                    }
                    if point.only_some_reasons.is_some() {
                        return Err(CallerTrustError::Crl("it knows some reasons only"));
                    }
                }
                ParsedExtension::AuthorityKeyIdentifier(_) | ParsedExtension::CRLNumber(_) => {}
                ParsedExtension::ParseError { .. } => return Err(CallerTrustError::Malformed("revocation list")),
                _ if extension.critical => return Err(CallerTrustError::Crl("it has a critical extension")),
                _ => {}
            }
            if extension.oid == OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER {
                scope[0] = extension.value.to_vec();
            } else if extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT {
                scope[1] = extension.value.to_vec();
            }
        }
        let mut revoked = HashSet::new();
        for entry in list.iter_revoked_certificates() {
            if entry.extensions().iter().any(|extension| extension.critical) {
                return Err(CallerTrustError::Crl("an entry has a critical extension"));
            }
            revoked.insert(without_zeros(entry.raw_serial()).to_vec());
        }
        Ok(Self {
            issuer: list.issuer().as_raw().to_vec(),
            signed: list.tbs_cert_list.as_ref().to_vec(),
            algorithm: {
                let oid = list.signature_algorithm.algorithm.as_bytes();
                [&[6, u8::try_from(oid.len()).unwrap_or(u8::MAX)], oid].concat()
            },
            signature: list.signature_value.data.to_vec(),
            signer: Mutex::default(),
            revoked,
            this_update: list.last_update().timestamp(),
            next_update: list.next_update().map(|time| time.timestamp()),
            scope,
        })
    }

    /// Lists whose signers are known as far as `issuers` go, without those that a newer one of the same signer, name
    /// and part has replaced: one key may be that of two authorities.
    pub(super) fn of_issuers(lists: Vec<Self>, issuers: &[Authority]) -> Result<Vec<Self>, CallerTrustError> {
        let mut newest: HashMap<_, Self> = HashMap::new();
        for list in lists {
            let named = |issuer: &&Authority| issuer.name == list.issuer;
            // Those of its name first: it is theirs nearly always.
            let mut likely = issuers.iter().filter(named).chain(issuers.iter().filter(|issuer| !named(issuer)));
            let known = likely.any(|issuer| list.is_of(&issuer.key, &Digest::of(&issuer.key)));
            if !known && issuers.iter().any(|issuer| named(&issuer)) {
                return Err(CallerTrustError::CrlSignature);
            }
            // Room for those that callers send.
            list.memory().others.clear();
            let place = (list.memory().known, list.issuer.clone(), list.scope.clone());
            if newest.get(&place).is_none_or(|known| known.this_update <= list.this_update) {
                newest.insert(place, list);
            }
        }
        Ok(newest.into_values().collect())
    }

    /// Whether nobody is known who signed it.
    pub(super) fn is_of_nobody(&self) -> bool {
        self.memory().known.is_none()
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Signer> {
        self.signer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this key signed it; found out once per key.
    fn is_of(&self, key: &[u8], digest: &Digest) -> bool {
        {
            let signer = self.memory();
            if let Some(known) = &signer.known {
                return known == digest;
            }
            if signer.others.contains(digest) {
                return false;
            }
        }
        // Not under the lock: a list may be of megabytes. Two at once come to the same answer.
        let signed = self.is_signed_by(&key.into());
        let mut signer = self.memory();
        if signed {
            signer.known = Some(*digest);
        } else if signer.others.len() < MOST_REMEMBERED {
            signer.others.push(*digest);
        }
        signed
    }

    /// The first second at which it is no longer current, if it says so.
    pub(super) fn ends(&self) -> Option<i64> {
        self.next_update.map(|time| time.saturating_add(1))
    }

    fn is_signed_by(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        webpki::RawPublicKeyEntity::try_from(key).is_ok_and(|key| {
            key::SIGNATURES
                .iter()
                .filter(|algorithm| algorithm.signature_alg_id().starts_with(&self.algorithm))
                .any(|algorithm| key.verify_signature(*algorithm, &self.signed, &self.signature).is_ok())
        })
    }
}

/// Who signed a list.
#[derive(Debug, Default)]
struct Signer {
    /// The digest of the public key.
    known: Option<Digest>,
    /// Those of keys that did not.
    others: Vec<Digest>,
}

/// Somebody who may sign lists.
#[derive(Debug)]
pub(super) struct Authority {
    /// DER.
    name: Vec<u8>,
    /// The public key with its algorithm, DER.
    key: Vec<u8>,
}

impl Authority {
    pub(super) fn new(read: &X509Certificate<'_>) -> Self {
        Self { name: read.subject().as_raw().to_vec(), key: read.public_key().raw.to_vec() }
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}

/// Whether the issuer, by its key, has revoked this certificate.
pub(super) fn check(
    lists: &[Crl],
    certificate: &X509Certificate<'_>,
    issuer_key: &SubjectPublicKeyInfoDer<'_>,
    now: i64,
) -> Result<(), CallerError> {
    let name = certificate.issuer().as_raw();
    let mut digest = None;
    let (mut named, mut signed) = (false, false);
    for list in lists {
        let is_named = list.issuer == name;
        named |= is_named;
        if !is_named && list.is_of_nobody() {
            continue;
        }
        // The key may be another one under the same name, and the name another encoding of the same.
        if !list.is_of(issuer_key, digest.get_or_insert_with(|| Digest::of(issuer_key))) {
            continue;
        }
        signed = true;
        if list.revoked.contains(without_zeros(certificate.raw_serial())) {
            return Err(CallerError::Revoked);
        }
        if list.ends().is_some_and(|end| now >= end) {
            return Err(CallerError::RevocationUnknown);
        }
    }
    if named && !signed { Err(CallerError::RevocationUnknown) } else { Ok(()) }
}
