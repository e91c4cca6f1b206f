//! What a certificate says, read once.

use std::str::FromStr;

use x509_parser::{extensions::GeneralName, prelude::FromDer};

use super::{Digest, SpiffeId};

/// The facts of a certificate that adit reads; none of them is proven by being here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Of the whole DER.
    pub fingerprint: Digest,
    /// Of the public key's DER (SubjectPublicKeyInfo).
    pub key_digest: Digest,
    /// Big-endian, without leading zeros.
    pub serial: Vec<u8>,
    /// The only URI name, if it is a SPIFFE ID: with several URI names there is none (X509-SVID §2).
    pub spiffe_id: Option<SpiffeId>,
    /// Every URI name, the SPIFFE ID too.
    pub uris: Vec<String>,
    /// Every DNS name.
    pub dns_names: Vec<String>,
    /// The issuer's name, DER.
    pub issuer: Vec<u8>,
    /// The subject's name, DER.
    pub subject: Vec<u8>,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// The bytes are no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a certificate (DER)")]
pub struct CertificateParseError;

impl Certificate {
    /// Reads a DER certificate; bytes behind it make it none.
    ///
    /// # Errors
    ///
    /// [`CertificateParseError`].
    pub fn parse(der: &[u8]) -> Result<Self, CertificateParseError> {
        let (rest, read) =
            x509_parser::certificate::X509Certificate::from_der(der).map_err(|_| CertificateParseError)?;
        if !rest.is_empty() {
            return Err(CertificateParseError);
        }
        let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
        // A repeated or malformed extension is no certificate of ours.
        let names = read.subject_alternative_name().map_err(|_| CertificateParseError)?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                _ => {}
            }
        }
        let spiffe_id = match &uris[..] {
            [only] => SpiffeId::from_str(only).ok(),
            _ => None,
        };
        let raw_serial = read.raw_serial();
        let zeros = raw_serial.iter().take_while(|byte| **byte == 0).count();
        Ok(Self {
            fingerprint: Digest::of(der),
            key_digest: Digest::of(read.public_key().raw),
            serial: raw_serial[zeros..].to_vec(),
            spiffe_id,
            uris,
            dns_names,
            issuer: read.issuer().as_raw().to_vec(),
            subject: read.subject().as_raw().to_vec(),
            not_before: read.validity().not_before.timestamp(),
            not_after: read.validity().not_after.timestamp(),
        })
    }
}
