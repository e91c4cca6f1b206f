//! Certificates with keys, from PEM.

use std::path::Path;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::Error;

/// A chain, leaf first, and its key.
pub struct Material {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Material({} certificates)", self.chain.len())
    }
}

impl Material {
    /// Reads a chain from one file and its key from another, or the same.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or lacks what it should hold.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| Error::Read { path: path.display().to_string(), source })
        };
        let shown = certificate.display().to_string();
        let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| Error::Pem { path: shown.clone(), source })?;
        if chain.is_empty() {
            return Err(Error::NoCertificate(shown));
        }
        let key_pem = zeroize::Zeroizing::new(read(key)?);
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| Error::NoKey(key.display().to_string()))?;
        Ok(Self { chain, key })
    }
}
