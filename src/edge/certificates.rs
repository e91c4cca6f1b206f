//! Visitors' certificates: from files by hostname, else leaves of the edge's own authority for its hostnames.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;

use super::{
    leaf::{Clock, Issued, Leaf, certified},
    state::Tunnels,
};
use crate::tls::{self, issue::Authority, material::Material};

/// Names whose leaves are kept; a stranger can ask for as many names as he likes.
const KEPT: usize = 1024;

/// One entry of the edge file's `certificates`.
#[derive(Clone, Debug)]
pub struct FileCertificate {
    /// Hostnames it is for, `*.` allowed.
    pub hostnames: Vec<String>,
    /// Chain, PEM, leaf first.
    pub certificate: PathBuf,
    /// Key, PEM.
    pub key: PathBuf,
}

/// Chooses a certificate by server name.
pub struct Certificates {
    files: Vec<(Vec<String>, Arc<CertifiedKey>)>,
    authority: Arc<Authority>,
    tunnels: watch::Receiver<Arc<Tunnels>>,
    issued: Mutex<HashMap<String, Issued>>,
    fallback: Leaf,
    clock: Clock,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Certificates({} from files)", self.files.len())
    }
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// When one cannot be read, or a key does not fit its certificate.
    pub(super) fn new(
        files: &[FileCertificate],
        authority: Arc<Authority>,
        tunnels: watch::Receiver<Arc<Tunnels>>,
        clock: Clock,
    ) -> Result<Self, tls::Error> {
        let files = files
            .iter()
            .map(|file| {
                let material = Material::from_files(&file.certificate, &file.key)?;
                Ok((file.hostnames.clone(), certified(material)?))
            })
            .collect::<Result<_, tls::Error>>()?;
        let fallback = Leaf::new(authority.clone(), &["localhost", "127.0.0.1"], clock)?;
        Ok(Self { files, authority, tunnels, issued: Mutex::default(), fallback, clock })
    }

    /// The configuration for visitors: h2 and HTTP/1.1, TLS 1.2 and 1.3.
    ///
    /// # Errors
    ///
    /// Never with our provider.
    pub fn server_config(self) -> Result<Arc<ServerConfig>, tls::Error> {
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn for_name(&self, name: &str) -> Arc<CertifiedKey> {
        let from_file = self.files.iter().find(|(patterns, _)| patterns.iter().any(|p| matches(p, name)));
        if let Some((_, key)) = from_file {
            return key.clone();
        }
        if self.tunnels.borrow().for_host(name).is_empty() {
            return self.fallback.current();
        }
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = issued.get(name)
            && !known.is_old(self.clock)
        {
            return known.key.clone();
        }
        match Issued::new(&self.authority, &[name.to_owned()], self.clock) {
            Ok(made) => {
                if issued.len() >= KEPT {
                    issued.clear();
                }
                issued.insert(name.to_owned(), made.clone());
                made.key
            }
            Err(error) => {
                tracing::warn!(name, %error, "cannot issue a visitor's certificate");
                self.fallback.current()
            }
        }
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        // A wildcard in a certificate stands for one label (RFC 9525 §6.3).
        Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest == parent),
        None => pattern == name,
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(match hello.server_name() {
            Some(name) => self.for_name(&name.to_lowercase()),
            None => self.fallback.current(),
        })
    }
}
