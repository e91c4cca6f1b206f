//! Trust in visitors' certificates, of one generation of the files that an entry of the edge's file names.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use crate::tls::{
    self,
    callers::{CallerError, Shown},
};

/// Authorities, and what was found out about certificates under them.
#[derive(Debug)]
pub(super) struct Trust {
    anchors: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Trust {
    pub(super) fn new(anchors: Vec<CertificateDer<'static>>) -> Result<Self, tls::Error> {
        let mut roots = RootCertStore::empty();
        for anchor in &anchors {
            roots.add(anchor.clone())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self { anchors, verifier })
    }

    pub(super) fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// Whether the certificate is borne out now.
    pub(super) fn check(&self, shown: &Shown) -> Result<(), CallerError> {
        let verified = self.verifier.verify_client_cert(&shown.leaf, &shown.chain, UnixTime::now());
        verified.map(drop).map_err(|_| CallerError::ValidationFailed)
    }
}
