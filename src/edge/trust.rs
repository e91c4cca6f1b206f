//! Trust in visitors' certificates, of one generation of the files that an entry of the edge's file names.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use crate::{
    callers::{Relayed, check::Check},
    tls::callers::{CallerError, CallerTrust, CallerTrustError, Shown},
};

/// Authorities, and what was found out about certificates under them.
#[derive(Debug)]
pub(super) struct Trust {
    anchors: Vec<CertificateDer<'static>>,
    check: Check,
}

impl Trust {
    pub(super) fn new(anchors: Vec<CertificateDer<'static>>) -> Result<Self, CallerTrustError> {
        let trust = CallerTrust::new(anchors.clone(), Vec::new(), Vec::new(), Vec::new())?;
        Ok(Self { anchors, check: Check::new(Arc::new(trust)) })
    }

    pub(super) fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// Whether the certificate is borne out now.
    pub(super) fn check(&self, shown: &Shown) -> Result<(), CallerError> {
        let caller = self.check.caller(Relayed::Shown(shown.clone()));
        caller.map_or(Err(CallerError::Malformed), |caller| caller.verdict)
    }
}
