//! Whether a service's certificate proves who it has to be, inside the handshake.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertificateError, Error, OtherError, RootCertStore,
    client::{
        danger::{ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use tokio::time::Instant;

use super::{asked::Told, sessions::Ends};
use crate::{
    identity::{Certificate, Expect},
    tls::{keyring::OriginTrust, proof_of_key},
};

/// The certificate is right, and not of whom it has to be of.
#[derive(Debug, thiserror::Error)]
#[error("the certificate is of {presented} and proves none of {expected}")]
pub(super) struct NotExpected {
    expected: String,
    presented: String,
}

/// Verifies the chain in every case, and then any one of what is expected, or else the server name.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: OriginTrust,
    expect: Vec<Expect>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(trust: OriginTrust, expect: Vec<Expect>, provider: &CryptoProvider) -> Self {
        Self { trust, expect, algorithms: provider.signature_verification_algorithms }
    }

    fn chain(
        &self,
        leaf: &ParsedCertificate<'_>,
        chain: &[CertificateDer<'_>],
        roots: &RootCertStore,
        now: UnixTime,
    ) -> Result<(), Error> {
        verify_server_cert_signed_by_trust_anchor(leaf, roots, chain, now, self.algorithms.all)
    }

    fn is_expected(&self, certificate: &Certificate) -> Result<(), Error> {
        if self.expect.iter().any(|expect| expect.is_met_by(certificate)) {
            return Ok(());
        }
        let expected: Vec<_> = self.expect.iter().map(ToString::to_string).collect();
        let presented: Vec<_> = certificate.uris.iter().chain(&certificate.dns_names).take(8).cloned().collect();
        let presented = if presented.is_empty() { "nobody".to_owned() } else { format!("{presented:?}") };
        let why = NotExpected { expected: expected.join(", "), presented };
        Err(CertificateError::Other(OtherError(Arc::new(why))).into())
    }
}

/// A time of a certificate on the clock that sessions are kept by.
fn instant(seconds: i64) -> Option<Instant> {
    let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let left = at.duration_since(SystemTime::now()).unwrap_or_default();
    // One so far away that no clock holds it is none.
    Instant::now().checked_add(left)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let mut trusted_until = None;
        if let Err(error) = self.chain(&parsed, chain, &self.trust.current, now) {
            let previous = self.trust.previous.as_ref().filter(|(_, until)| *until > Instant::now());
            match previous {
                Some((roots, until)) if self.chain(&parsed, chain, roots, now).is_ok() => trusted_until = Some(*until),
                // What is in force says why.
                _ => return Err(error),
            }
        }
        let certificate = Certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
        if self.expect.is_empty() {
            verify_server_name(&parsed, name)?;
        } else {
            self.is_expected(&certificate)?;
        }
        let sessions = trusted_until.into_iter().chain(instant(certificate.not_after)).min();
        Told::note(|facts| facts.ends = Ends { sessions, trust: trusted_until });
        Ok(ServerCertVerified::assertion())
    }

    proof_of_key!(algorithms);
}
