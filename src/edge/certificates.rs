//! Visitors' TLS by hostname: the edge's certificate, from a file or of its own authority, and what visitors are asked
//! for in return.

mod entry;
mod own;
mod sessions;

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig,
    server::{ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::sync::watch;

pub(super) use entry::Entry;
use own::Own;
use sessions::Sessions;

use super::{leaf::Clock, state::Tunnels};
use crate::{
    config::{IdentitySource, SecretRef},
    secrets::ReadError,
    tls::{
        self,
        callers::CallerTrustError,
        issue::Authority,
        keyring::{IdentityError, Unusable},
        pem::PemError,
    },
};

/// Whether visitors of a hostname are asked for a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientAuth {
    /// No.
    #[default]
    Off,
    /// Yes, and who has none is served, too. With trust, one that it does not bear out is refused.
    Optional,
    /// Yes, and nobody is served without; with trust, nobody without one that it bears out.
    Required,
}

/// One entry of the edge file's `certificates`.
#[derive(Clone, Debug, Default)]
pub struct FileCertificate {
    /// Hostnames it is for, lower case. `*.` is allowed: a certificate stands for one label there, a demand for any
    /// number.
    pub hostnames: Vec<String>,
    /// Chain, leaf first, and key, PEM. `None`: a leaf of the edge's own authority.
    pub material: Option<IdentitySource>,
    /// What visitors are asked for.
    pub client_auth: ClientAuth,
    /// Authorities of visitors' certificates, PEM; empty: any certificate whose key the visitor has.
    pub trust: Vec<SecretRef>,
}

/// Why an entry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A source cannot be read.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// A source does not hold what it should.
    #[error("{origin}: {source}")]
    Pem {
        /// Which one.
        origin: String,
        /// Why.
        source: PemError,
    },
    /// A certificate of a chain is outside its validity.
    #[error("{origin}: {why}")]
    Time {
        /// Which one.
        origin: String,
        /// In which way.
        why: Unusable,
    },
    /// Certificates and key are none that visitors can be shown.
    #[error("{origin}: {source}")]
    Identity {
        /// Which one.
        origin: String,
        /// Why.
        source: IdentityError,
    },
    /// Nobody can be trusted so.
    #[error("trust: {0}")]
    Trust(#[from] CallerTrustError),
    /// The edge's own leaf cannot be made.
    #[error("{0}")]
    Tls(#[from] tls::Error),
}

/// Chooses by hostname.
#[derive(Debug)]
pub(super) struct Certificates {
    entries: Vec<Arc<Entry>>,
    /// For all other names, and for none.
    others: Arc<ServerConfig>,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// When one cannot be read, or a key does not fit its certificate.
    pub(super) fn new(
        files: Vec<FileCertificate>,
        authority: Arc<Authority>,
        tunnels: watch::Receiver<Arc<Tunnels>>,
        clock: Clock,
    ) -> Result<Self, Error> {
        let own = Arc::new(Own::new(authority, tunnels, clock)?);
        let entries =
            files.into_iter().map(|file| Entry::new(file, own.clone()).map(Arc::new)).collect::<Result<_, Error>>()?;
        let nobody_is_asked = WebPkiClientVerifier::no_client_auth();
        let others = server_config(own, nobody_is_asked, Sessions::new())?;
        Ok(Self { entries, others })
    }

    /// What holds for a name in lower case without a final dot: the entry that names it, else the one with the longest
    /// `*.` above it, wherever they stand in the file. Tunnels are chosen the same way, and their `*.` stands for any
    /// number of labels, so a demand holds as deep as they serve. What a connection was asked and what a request demands
    /// are both found here: they cannot differ for one name.
    pub(super) fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        let named = self.entries.iter().find(|entry| entry.names(name));
        named.or_else(|| {
            let above = self.entries.iter().filter_map(|entry| Some((entry.is_above(name)?, entry)));
            // Of equals the first.
            above.rev().max_by_key(|(length, _)| *length).map(|(_, entry)| entry)
        })
    }

    /// The configuration for a connection, by the entry of its server name.
    pub(super) fn server_config(&self, entry: Option<&Arc<Entry>>) -> Arc<ServerConfig> {
        entry.map_or_else(|| self.others.clone(), |entry| entry.server_config())
    }

    /// The files that are followed.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.entries.iter().flat_map(|entry| entry.files()).collect()
    }

    /// When each certificate from a file ends, with the place of its entry.
    pub(super) fn ends(&self) -> impl Iterator<Item = (usize, i64)> {
        self.entries.iter().enumerate().filter_map(|(at, entry)| Some((at, entry.not_after()?)))
    }

    /// Reads the files again and takes over what is whole and fits together; the rest stays as it was. Returns how many
    /// certificates and sets of trust were replaced, and how many were kept because of an error that was told now.
    /// Blocks, also until files have settled; who comes second waits, so that nobody publishes what is older.
    pub(super) fn reload(&self) -> (usize, usize) {
        self.entries.iter().map(|entry| entry.reload()).fold((0, 0), |(new, old), (n, o)| (new + n, old + o))
    }
}

/// TLS 1.2 and 1.3, h2 and HTTP/1.1.
fn server_config(
    resolver: Arc<dyn ResolvesServerCert>,
    verifier: Arc<dyn ClientCertVerifier>,
    sessions: Arc<Sessions>,
) -> Result<Arc<ServerConfig>, tls::Error> {
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = sessions;
    Ok(Arc::new(config))
}
