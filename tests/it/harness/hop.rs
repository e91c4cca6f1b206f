//! Both ends of the hop to a service: files for adit, and services with TLS that count what reaches them.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use rustls::{
    HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use super::{
    service,
    tls::{Ca, Leaf},
};

/// An authority, adit's identities below it, and the files that a configuration names.
pub(crate) struct Hop {
    pub(crate) ca: Ca,
    dir: tempfile::TempDir,
}

impl Hop {
    /// Identities `reader` and `writer`, and one of a stranger.
    pub(crate) fn new() -> Self {
        let hop = Self { ca: Ca::new("root"), dir: tempfile::tempdir().unwrap() };
        hop.write("ca.pem", &hop.ca.pem);
        for name in ["reader", "writer"] {
            hop.identity(name, &hop.ca.leaf(&[&format!("{name}.adit.test")]));
        }
        hop.identity("stranger", &Ca::new("elsewhere").leaf(&["stranger.adit.test"]));
        hop
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Writes a bundle that the configuration knows by this name.
    pub(crate) fn identity(&self, name: &str, leaf: &Leaf) {
        self.write(&format!("{name}.pem"), &format!("{}{}", leaf.certificate, leaf.key));
    }

    /// A configuration: `always`, `writer` presented, these rules.
    pub(crate) fn config(&self, names: &[&str], more: &str, rules: &str) -> String {
        let at = self.dir.path().display();
        let identities: Vec<_> =
            names.iter().map(|name| format!("    {name}: {{ certificate: {at}/{name}.pem }}\n")).collect();
        format!(
            "innerHop:\n  mutualTls: always\n  originTrust: [ {at}/ca.pem ]\n{more}  identities:\n{}ingress:\n{rules}",
            identities.concat()
        )
    }

    /// `config` with one rule for this service and this identity.
    pub(crate) fn rule(&self, present: &str, service: impl std::fmt::Display, options: &str) -> String {
        let inline = format!("    innerHop: {{ present: {present} }}\n");
        let rule = format!("  - service: {service}\n{inline}    originRequest: {{ {options} }}\n");
        self.config(&[present], "", &rule)
    }

    /// A server's TLS with this certificate; `asks`: a client needs one, too.
    pub(crate) fn acceptor(
        &self,
        leaf: &Leaf,
        versions: &[&'static SupportedProtocolVersion],
        asks: bool,
    ) -> TlsAcceptor {
        self.acceptor_of(rustls::crypto::aws_lc_rs::default_provider(), leaf, versions, asks)
    }

    /// The same, with other cryptography.
    pub(crate) fn acceptor_of(
        &self,
        provider: CryptoProvider,
        leaf: &Leaf,
        versions: &[&'static SupportedProtocolVersion],
        asks: bool,
    ) -> TlsAcceptor {
        let provider = Arc::new(provider);
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(versions).unwrap();
        let builder = if asks {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(self.ca.pem.as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let mut config = builder.with_single_cert(leaf.chain(), key).unwrap();
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What one connection was, as its service saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `None`: there was no handshake.
    pub(crate) kind: Option<HandshakeKind>,
    /// The serial of the certificate that was presented, from the DER.
    pub(crate) peer: Option<Vec<u8>>,
    /// Bytes inside of TLS.
    pub(crate) bytes: usize,
}

/// A service that counts.
pub(crate) struct Counted {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Counted {
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Inside of TLS, over all connections.
    pub(crate) fn bytes(&self) -> usize {
        self.seen().iter().map(|seen| seen.bytes).sum()
    }
}

/// A service with this TLS that answers 200 once per connection and closes it, or keeps it (`keeps`).
pub(crate) async fn counted(acceptor: TlsAcceptor, keeps: bool) -> Counted {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seen_ = seen.clone();
    let addr = service(move |stream: TcpStream| {
        let (acceptor, seen) = (acceptor.clone(), seen_.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                seen.lock().unwrap().push(Seen { kind: None, peer: None, bytes: 0 });
                return;
            };
            let tls = stream.get_ref().1;
            let peer = tls.peer_certificates().map(|chain| chain[0].to_vec());
            let place = {
                let mut seen = seen.lock().unwrap();
                seen.push(Seen { kind: tls.handshake_kind(), peer, bytes: 0 });
                seen.len() - 1
            };
            let mut head = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let Ok(read @ 1..) = stream.read(&mut buffer).await else { return };
                seen.lock().unwrap()[place].bytes += read;
                head.extend_from_slice(&buffer[..read]);
                if !head.ends_with(b"\r\n\r\n") {
                    continue;
                }
                head.clear();
                let connection = if keeps { "" } else { "Connection: close\r\n" };
                let answer = format!("HTTP/1.1 200 OK\r\n{connection}Content-Length: 2\r\n\r\nok");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                if !keeps {
                    let _ = stream.shutdown().await;
                    return;
                }
            }
        }
    })
    .await;
    Counted { port: addr.port(), seen }
}
