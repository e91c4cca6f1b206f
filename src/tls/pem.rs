//! Certificates, keys and lists of revoked certificates out of PEM (RFC 7468), wherever it was read.

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{self, PemObject},
};

/// Why PEM is not what it should be. No text holds any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// A section without an end, or one that is no base64: often a file that is still being written.
    #[error("a PEM section is not complete")]
    Broken,
    /// The key needs a password.
    #[error("the private key is encrypted, which cannot be used")]
    Encrypted,
    /// No certificate.
    #[error("holds no PEM certificate")]
    NoCertificate,
    /// No private key.
    #[error("holds no PEM private key")]
    NoKey,
    /// No list.
    #[error("holds no list of revoked certificates")]
    NoList,
    /// More than one private key.
    #[error("holds several private keys")]
    SeveralKeys,
}

impl From<pem::Error> for PemError {
    /// What the parser says may quote the line that it stumbled over, so it is not kept.
    fn from(_: pem::Error) -> Self {
        Self::Broken
    }
}

/// Every certificate, in order.
///
/// # Errors
///
/// When a section is broken, or there is none.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() { Err(PemError::NoCertificate) } else { Ok(found) }
}

/// The private key: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
///
/// When a section is broken, or there is not exactly one key that needs no password.
pub fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    let mut keys = PrivateKeyDer::pem_slice_iter(pem);
    let Some(key) = keys.next().transpose()? else {
        let encrypted = pem.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED);
        return Err(if encrypted { PemError::Encrypted } else { PemError::NoKey });
    };
    if keys.next().transpose()?.is_some() { Err(PemError::SeveralKeys) } else { Ok(key) }
}

const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// Lists of revoked certificates; also one in DER, which is how authorities publish them (RFC 5280 §4.2.1.13).
///
/// # Errors
///
/// When a section is broken, or there is none.
pub fn revocation_lists(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    // A SEQUENCE with a length of two bytes or more; no text begins so.
    if bytes.starts_with(&[0x30]) && bytes.get(1).is_some_and(|byte| *byte >= 0x80) {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let found = CertificateRevocationListDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() { Err(PemError::NoList) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_cut_anywhere_in_a_section_is_noticed() {
        let whole = format!("{CERTIFICATE}{KEY}");
        assert_eq!(certificates(whole.as_bytes()).unwrap().len(), 1);
        for cut in 1..KEY.len() - 1 {
            let cut = &whole[..CERTIFICATE.len() + cut];
            assert!(key(cut.as_bytes()).is_err(), "{cut:?}");
        }
    }

    #[test]
    fn exactly_one_key_that_needs_no_password() {
        assert!(key(format!("text\r\n{CERTIFICATE}{KEY}").as_bytes()).is_ok());
        assert_eq!(key(CERTIFICATE.as_bytes()), Err(PemError::NoKey));
        assert_eq!(key(format!("{KEY}{KEY}").as_bytes()), Err(PemError::SeveralKeys));
        let encrypted = KEY.replace("PRIVATE", "ENCRYPTED PRIVATE");
        assert_eq!(key(encrypted.as_bytes()), Err(PemError::Encrypted));
        assert_eq!(certificates(KEY.as_bytes()), Err(PemError::NoCertificate));
    }

    #[test]
    fn no_error_quotes_what_was_read() {
        let one_line = KEY.replace('\n', " ");
        let error = key(one_line.as_bytes()).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("AAAA"), "{error:?}");
    }
}
