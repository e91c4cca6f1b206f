//! Asking a client for a certificate without judging it: whoever shows one proves that he has its key, and no more.
//!
//! What a certificate is worth is decided for every request, under the trust of that moment: a verdict of the handshake
//! would live on in sessions and in connections that are kept.

use std::sync::Arc;

use rustls::{
    CertificateError, DistinguishedName, OtherError,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::{proof_of_key, provider};

/// Most bytes of leaf and chain together that anything is proven of: 22 KiB as headers, and kept as long as the
/// connection. Load balancers have the same bound.
pub const LARGEST: usize = 16 << 10;

/// More was shown than is taken.
#[derive(Debug, thiserror::Error)]
#[error("leaf and chain of more than {0} bytes")]
struct TooLarge(usize);

/// Asks, accepts that there is none, and takes any that comes with the proof of its key (RFC 8446 §4.4.3, RFC 5246
/// §7.4.8). A client that cannot prove it gets an alert.
#[derive(Debug)]
pub struct Possession {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    hints: Vec<DistinguishedName>,
    most: Option<usize>,
}

impl Possession {
    /// Tells the client these names of authorities, so that one with several certificates chooses well. An empty list
    /// says nothing.
    ///
    /// Who shows a leaf and a chain of more than `most` bytes together gets the alert certificate_unknown (RFC 8446
    /// §6.2): rustls keeps up to 64 KiB for as long as the connection. Without `most` the caller of this deals with
    /// those himself.
    pub fn verifier(hints: Vec<DistinguishedName>, most: Option<usize>) -> Arc<Self> {
        Arc::new(Self { algorithms: provider().signature_verification_algorithms, hints, most })
    }
}

/// Of leaf and chain together, in bytes.
pub fn size(leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> usize {
    leaf.len() + chain.iter().map(|der| der.len()).sum::<usize>()
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
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let size = size(leaf, chain);
        if let Some(most) = self.most.filter(|most| size > *most) {
            return Err(CertificateError::Other(OtherError(Arc::new(TooLarge(most)))).into());
        }
        Ok(ClientCertVerified::assertion())
    }

    proof_of_key!(algorithms);
}
