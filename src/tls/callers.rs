//! Whether a caller's certificate proves anything: the chain, its purpose, its time, its keys and its revocation.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, TrustAnchor};

/// Trust in callers, of one generation.
#[derive(Debug, Default)]
pub struct CallerTrust {
    /// Where trust begins.
    pub anchors: Vec<TrustAnchor<'static>>,
    /// For callers who do not send them.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// Valid by themselves.
    pub allowlisted: Vec<CertificateDer<'static>>,
}

/// Why a caller's certificate proves nothing: the strings that services know from load balancers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CallerError {
    /// No better word.
    #[error("client_cert_validation_failed")]
    ValidationFailed,
}

/// A certificate and what came with it, leaf apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The caller's own.
    pub leaf: CertificateDer<'static>,
    /// The rest, in the order it came.
    pub chain: Arc<[CertificateDer<'static>]>,
}
