//! The only place that turns bytes into keys, roots and TLS configurations.
//!
//! One crypto provider (aws-lc-rs), passed explicitly. Reads no file of its own accord but those it is told.

pub mod callers;
pub mod guard;
pub mod issue;
pub mod keyring;
pub mod material;
pub mod pem;
pub mod possession;
pub mod roots;
pub mod service;
mod unverified;

use std::{path::Path, sync::Arc};

/// The methods of a rustls verifier with which a peer proves that it owns its certificate's key, by the algorithms in
/// this field. Nobody is spared that, whatever else is demanded of a certificate.
macro_rules! proof_of_key {
    ($($field:tt).+) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, leaf, signed, &self.$($field).+)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, leaf, signed, &self.$($field).+)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.$($field).+.supported_schemes()
        }
    };
}
use proof_of_key;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
};

use crate::wire::QUIC_ALPN;

/// Roots of Cloudflare's edge, beside the system's (protocol.md §3.1).
const EDGE_ROOTS: &str = include_str!("tls/cloudflare-edge-roots.pem");

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds no certificate.
    #[error("{0} holds no PEM certificate")]
    NoCertificate(String),
    /// A file is not the PEM that it should be.
    #[error("{path}: {source}")]
    Pem {
        /// Which file.
        path: String,
        /// Why.
        source: pem::PemError,
    },
    /// rustls refuses.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    /// A certificate could not be made.
    #[error("cannot issue a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// A certificate would be valid for longer than its issuer's.
    #[error("would be valid for longer than its issuer's certificate")]
    Outlives,
    /// No list of revoked certificates, or another authority's.
    #[error("no list of revoked certificates of this authority")]
    NoRevocationList,
    /// The QUIC suite is missing; cannot happen with our provider.
    #[error("{0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// A rule contradicts itself; the configuration refuses it before it gets here.
    #[error("{0}")]
    Unsatisfiable(&'static str),
}

/// The provider for everything but the edge: aws-lc-rs with its defaults, X25519MLKEM768 first.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The provider towards an edge: X25519MLKEM768, then P-256, never plain X25519 (protocol.md §3.1).
fn edge_provider(post_quantum_only: bool) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    if !post_quantum_only {
        provider.kx_groups.push(aws_lc_rs::kx_group::SECP256R1);
    }
    Arc::new(provider)
}

/// TLS towards an edge, ready for both transports.
#[derive(Clone)]
pub struct EdgeTls {
    /// For QUIC.
    pub quic: Arc<QuicClientConfig>,
    /// For HTTP/2; no ALPN.
    pub http2: Arc<ClientConfig>,
    /// Trust is in the authority that was given and in nobody else, so an edge that gets this far is proven to be its.
    pub proves_edge: bool,
}

impl std::fmt::Debug for EdgeTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EdgeTls")
    }
}

impl EdgeTls {
    /// Trusts `ca` alone, or the system's roots and Cloudflare's when there is none. TLS 1.3 only, no resumption.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn new(ca: Option<&Path>, post_quantum_only: bool) -> Result<Self, Error> {
        let roots = match ca {
            Some(path) => roots_from_file(path)?,
            None => {
                let mut roots = system_roots();
                add_pem(&mut roots, EDGE_ROOTS.as_bytes(), "the built-in edge roots")?;
                roots
            }
        };
        let config = |alpn: Vec<Vec<u8>>| -> Result<ClientConfig, Error> {
            let mut config = ClientConfig::builder_with_provider(edge_provider(post_quantum_only))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.resumption = rustls::client::Resumption::disabled();
            config.alpn_protocols = alpn;
            Ok(config)
        };
        Ok(Self {
            quic: Arc::new(QuicClientConfig::try_from(config(vec![QUIC_ALPN.to_vec()])?)?),
            http2: Arc::new(config(Vec::new())?),
            proves_edge: ca.is_some(),
        })
    }
}

/// The system's roots; those it cannot parse are skipped, which a strict verifier must do with old ones.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let (_, refused) = roots.add_parsable_certificates(native.certs);
    if !native.errors.is_empty() || refused > 0 {
        tracing::debug!(errors = native.errors.len(), refused, "some system roots were skipped");
    }
    roots
}

/// A store of exactly the certificates in `path`.
///
/// # Errors
///
/// When it cannot be read or holds none.
pub fn roots_from_file(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let shown = path.display().to_string();
    let pem = std::fs::read(path).map_err(|source| Error::Read { path: shown.clone(), source })?;
    add_pem(&mut roots, &pem, &shown)?;
    Ok(roots)
}

fn add_pem(roots: &mut RootCertStore, pem: &[u8], shown: &str) -> Result<(), Error> {
    let wrong = |source| Error::Pem { path: shown.to_owned(), source };
    for certificate in pem::certificates(pem).map_err(wrong)? {
        roots.add(certificate)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_roots_are_three_and_usable_as_anchors() {
        let mut roots = RootCertStore::empty();
        add_pem(&mut roots, EDGE_ROOTS.as_bytes(), "built in").unwrap();
        assert_eq!(roots.len(), 3);
    }

    #[test]
    fn the_edge_is_offered_the_hybrid_group_first_and_never_plain_x25519() {
        let names = |strict| edge_provider(strict).kx_groups.iter().map(|g| g.name()).collect::<Vec<_>>();
        assert_eq!(names(false), [rustls::NamedGroup::X25519MLKEM768, rustls::NamedGroup::secp256r1]);
        assert_eq!(names(true), [rustls::NamedGroup::X25519MLKEM768]);
    }

    #[test]
    fn only_quic_says_what_it_speaks() {
        let tls = EdgeTls::new(None, false).unwrap();
        assert!(tls.http2.alpn_protocols.is_empty());
    }
}
