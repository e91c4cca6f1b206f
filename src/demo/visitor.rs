//! The demo's visitors, over TLS at the edge, and a stranger at the service's socket.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use crate::tls::{self, material::Material};

/// Somebody who asks, with a certificate or without.
pub(super) struct Visitor {
    tls: TlsConnector,
    /// What the server must prove to be.
    server: ServerName<'static>,
}

impl Visitor {
    /// Trusts `trust` alone; `bundle` is leaf, chain and key.
    pub(super) fn new(trust: &Path, bundle: Option<&Path>, server: ServerName<'static>) -> Result<Self, tls::Error> {
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(tls::roots_from_file(trust)?);
        let config = match bundle {
            Some(bundle) => {
                let Material { chain, key } = Material::from_files(bundle, bundle)?;
                config.with_client_auth_cert(chain, key)?
            }
            None => config.with_no_client_auth(),
        };
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), server })
    }

    /// `GET path` at the edge, with these headers too.
    pub(super) async fn get(
        &self,
        edge: SocketAddr,
        path: &str,
        headers: HeaderMap,
    ) -> anyhow::Result<Response<Bytes>> {
        let stream = TcpStream::connect(edge).await.context("the edge")?;
        self.ask(stream, &format!("localhost:{}", edge.port()), path, headers).await
    }

    /// `GET /` past the tunnel.
    pub(super) async fn intrude(&self, socket: &Path) -> anyhow::Result<Response<Bytes>> {
        let stream = UnixStream::connect(socket).await.context("the service's socket")?;
        self.ask(stream, "service", "/", HeaderMap::new()).await
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        host: &str,
        path: &str,
        headers: HeaderMap,
    ) -> anyhow::Result<Response<Bytes>> {
        let stream = self.tls.connect(self.server.clone(), stream).await.context("the handshake")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::builder().uri(path).header(header::HOST, host).body(Empty::<Bytes>::new())?;
        request.headers_mut().extend(headers);
        let exchange = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            anyhow::Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
        };
        tokio::select! {
            outcome = exchange => outcome,
            outcome = connection => { outcome?; bail!("hung up") }
        }
    }
}
