//! Visitors over TLS.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client};

use super::{Lab, background};

impl Lab {
    /// A visitor's TLS connection to `web.test`, trusting the edge's authority.
    pub(crate) async fn tls(&self, alpn: &[&str]) -> client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.state.ca_path()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(adit::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let tcp = TcpStream::connect(self.https).await.unwrap();
        let name = ServerName::try_from("web.test").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    /// A visitor's HTTP/2 connection, over TLS.
    pub(crate) async fn h2(&self) -> h2::client::SendRequest<bytes::Bytes> {
        let stream = self.tls(&["h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        background(async move {
            let _ = connection.await;
        });
        sender.ready().await.unwrap()
    }
}

/// The whole body of an answer over HTTP/2, and its trailers.
pub(crate) async fn h2_body(mut body: h2::RecvStream) -> (String, Option<http::HeaderMap>) {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    (String::from_utf8(bytes).unwrap(), body.trailers().await.unwrap())
}
