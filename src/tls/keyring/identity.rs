//! An identity: a certificate with its chain and key that fit each other, fit to be presented.

use std::{collections::VecDeque, fmt, sync::Arc, time::SystemTime};

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, error::X509Error, prelude::FromDer};

use super::{Unusable, seconds};
use crate::{identity::Certificate, tls};

/// Certificates of one identity. A chain is 10 deep at most where chains are limited at all; this leaves room for
/// cross-signed ones, and bounds the signatures that are checked.
const MOST_CERTIFICATES: usize = 16;

/// A certificate with its chain and key, fit to be presented.
pub struct Identity {
    /// For rustls.
    pub key: Arc<CertifiedKey>,
    /// What the leaf says.
    pub certificate: Certificate,
    /// When leaf and chain are all valid, seconds since 1970, the last one included.
    valid: (i64, i64),
}

/// Why a key and certificates are no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The key is none that rustls can use.
    #[error("the private key is of no kind that can be used (RSA from 2048 bits, P-256, P-384, Ed25519)")]
    Key,
    /// Bytes between the lines that are no certificate.
    #[error("certificate {0} is malformed")]
    Malformed(usize),
    /// Certificate and key were not made for each other, or only one of them has been replaced so far.
    #[error("the private key fits none of the certificates")]
    Mismatch,
    /// A certificate that did not issue any of the others.
    #[error("certificate {0} is not part of the leaf's chain")]
    Stranger(usize),
    /// More than 16.
    #[error("holds more than {MOST_CERTIFICATES} certificates")]
    TooMany,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.certificate.fingerprint).finish_non_exhaustive()
    }
}

impl Identity {
    /// Puts them together. The leaf is the certificate that the key fits, wherever it stands: agents write keys, chains
    /// and leaves in any order. It must have been issued by another one, and so on, as far as they were given; what
    /// leads nowhere belongs to another set. What is presented is in the order of TLS, each certificate once.
    ///
    /// # Errors
    ///
    /// [`IdentityError`]. Whether the time is right is not asked here.
    pub fn new(given: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, IdentityError> {
        if given.len() > MOST_CERTIFICATES {
            return Err(IdentityError::TooMany);
        }
        let key = tls::provider().key_provider.load_private_key(key).map_err(|_| IdentityError::Key)?;
        let public = key.public_key().ok_or(IdentityError::Key)?;
        let parsed = given
            .iter()
            .enumerate()
            .map(|(at, der)| match X509Certificate::from_der(der) {
                Ok(([], certificate)) => Ok(certificate),
                _ => Err(IdentityError::Malformed(at + 1)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let fits = |certificate: &X509Certificate<'_>| certificate.public_key().raw == public.as_ref();
        let leaf = parsed.iter().position(fits).ok_or(IdentityError::Mismatch)?;
        let order = chain(&given, &parsed, leaf)?;
        // A root among them is not presented to prove anything, so its time is nobody's concern.
        let dated = order.iter().map(|at| &parsed[*at]).filter(|certificate| !is_root(certificate));
        let dated = std::iter::once(&parsed[leaf]).chain(dated).map(|certificate| certificate.validity());
        let valid = dated.fold((i64::MIN, i64::MAX), |(after, before), validity| {
            (after.max(validity.not_before.timestamp()), before.min(validity.not_after.timestamp()))
        });
        let chain: Vec<_> = order.iter().map(|at| given[*at].clone()).collect();
        let certificate = Certificate::parse(&chain[0]).map_err(|_| IdentityError::Malformed(leaf + 1))?;
        Ok(Self { key: Arc::new(CertifiedKey::new(chain, key)), certificate, valid })
    }

    /// Whether it may be presented at this time.
    ///
    /// # Errors
    ///
    /// [`Unusable::Expired`], [`Unusable::NotYetValid`]: the leaf, or a certificate of its chain.
    pub fn check(&self, now: SystemTime) -> Result<(), Unusable> {
        let now = seconds(now);
        if now > self.valid.1 {
            Err(Unusable::Expired)
        } else if now < self.valid.0 {
            Err(Unusable::NotYetValid)
        } else {
            Ok(())
        }
    }

    /// When leaf and chain are all valid, seconds since 1970, the last one included.
    pub fn valid(&self) -> (i64, i64) {
        self.valid
    }
}

/// The leaf and everything that issued it, nearest first.
fn chain(
    given: &[CertificateDer<'_>],
    parsed: &[X509Certificate<'_>],
    leaf: usize,
) -> Result<Vec<usize>, IdentityError> {
    let mut order = vec![leaf];
    let mut todo = VecDeque::from([leaf]);
    while let Some(at) = todo.pop_front() {
        for issuer in 0..parsed.len() {
            let known = order.iter().any(|known| given[*known] == given[issuer]);
            if !known && has_issued(&parsed[issuer], &parsed[at]) {
                order.push(issuer);
                todo.push_back(issuer);
            }
        }
    }
    let stranger = given.iter().position(|der| !order.iter().any(|known| given[*known] == *der));
    stranger.map_or(Ok(order), |at| Err(IdentityError::Stranger(at + 1)))
}

fn has_issued(issuer: &X509Certificate<'_>, subject: &X509Certificate<'_>) -> bool {
    issuer.subject().as_raw() == subject.issuer().as_raw()
        && match subject.verify_signature(Some(issuer.public_key())) {
            // Nothing is proven here, so a kind of signature that only others can check is left to them.
            Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => true,
            Err(_) => false,
        }
}

fn is_root(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}
