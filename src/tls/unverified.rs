//! `noTLSVerify`: any certificate is accepted, but the peer still has to own its key.

use std::sync::Arc;

use rustls::{
    Error,
    client::danger::{ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::proof_of_key;

#[derive(Debug)]
struct AcceptAny(WebPkiSupportedAlgorithms);

pub(super) fn accept_any(provider: &CryptoProvider) -> Arc<dyn ServerCertVerifier> {
    Arc::new(AcceptAny(provider.signature_verification_algorithms))
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    proof_of_key!(0);
}
