//! Lists of revoked certificates (RFC 5280 §5): whole ones of one issuer each.
//!
//! Whoever is on a list that his issuer signed is refused; of an issuer's several lists (one for each part of its
//! certificates, say) all are asked. An issuer without a list has revoked nobody. With a list, one of them must be
//! signed by the issuer's key, and all of these current: past its `nextUpdate` a list would hide who was revoked since.

use std::collections::{HashMap, HashSet};

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

/// A list, read.
#[derive(Debug)]
pub(super) struct Crl {
    /// The issuer's name, DER.
    issuer: Vec<u8>,
    signed: Vec<u8>,
    signature: Vec<u8>,
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
            signature: list.signature_value.data.to_vec(),
            revoked,
            this_update: list.last_update().timestamp(),
            next_update: list.next_update().map(|time| time.timestamp()),
            scope,
        })
    }

    /// Without those that a newer one of the same issuer, key and part has replaced.
    pub(super) fn newest(lists: Vec<Self>) -> Vec<Self> {
        let mut newest: HashMap<(Vec<u8>, [Vec<u8>; 2]), Self> = HashMap::new();
        for list in lists {
            let place = (list.issuer.clone(), list.scope.clone());
            if newest.get(&place).is_none_or(|known| known.this_update <= list.this_update) {
                newest.insert(place, list);
            }
        }
        newest.into_values().collect()
    }

    /// The first second at which it is no longer current, if it says so.
    pub(super) fn ends(&self) -> Option<i64> {
        self.next_update.map(|time| time.saturating_add(1))
    }

    fn is_signed_by(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        webpki::RawPublicKeyEntity::try_from(key).is_ok_and(|key| {
            key::SIGNATURES
                .iter()
                .any(|algorithm| key.verify_signature(*algorithm, &self.signed, &self.signature).is_ok())
        })
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
    let (mut named, mut signed) = (false, false);
    for list in lists.iter().filter(|list| list.issuer == name) {
        named = true;
        // The key may be another one under the same name.
        if !list.is_signed_by(issuer_key) {
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
