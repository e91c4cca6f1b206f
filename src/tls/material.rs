//! Certificates with keys, from PEM.

use std::path::Path;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Error, pem};

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
        let wrong = |path: &Path| {
            let path = path.display().to_string();
            move |source| Error::Pem { path, source }
        };
        let chain = pem::certificates(&read(certificate)?).map_err(wrong(certificate))?;
        let key = pem::key(&zeroize::Zeroizing::new(read(key)?)).map_err(wrong(key))?;
        Ok(Self { chain, key })
    }
}
