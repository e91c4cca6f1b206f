//! Asking a client for a certificate without judging it: whoever shows one proves that he has its key, and no more.
//!
//! What a certificate is worth is decided for every request, under the trust of that moment: a verdict of the handshake
//! would live on in sessions and in connections that are kept.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::provider;

/// Asks, accepts that there is none, and takes any that comes with the proof of its key (RFC 8446 §4.4.3, RFC 5246
/// §7.4.8). A client that cannot prove it gets an alert.
#[derive(Debug)]
pub struct Possession {
    provider: Arc<CryptoProvider>,
    hints: Vec<DistinguishedName>,
}

impl Possession {
    /// Tells the client these names of authorities, so that one with several certificates chooses well. An empty list
    /// says nothing.
    pub fn verifier(hints: Vec<DistinguishedName>) -> Arc<dyn ClientCertVerifier> {
        Arc::new(Self { provider: provider(), hints })
    }
}

impl ClientCertVerifier for Possession {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
