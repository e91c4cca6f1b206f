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
            let read = std::fs::read(path).map(zeroize::Zeroizing::new);
            read.map_err(|source| Error::Read { path: path.display().to_string(), source })
        };
        let (certificates, secret) = (read(certificate)?, read(key)?);
        Self::from_pem((&certificate.display().to_string(), &certificates), (&key.display().to_string(), &secret))
    }

    /// The same of what was read already; each with the name of its file.
    ///
    /// # Errors
    ///
    /// When one of them lacks what it should hold.
    pub fn from_pem(certificate: (&str, &[u8]), key: (&str, &[u8])) -> Result<Self, Error> {
        let wrong = |path: &str| {
            let path = path.to_owned();
            move |source| Error::Pem { path, source }
        };
        let chain = pem::certificates(certificate.1).map_err(wrong(certificate.0))?;
        let key = pem::key(key.1).map_err(wrong(key.0))?;
        Ok(Self { chain, key })
    }
}
