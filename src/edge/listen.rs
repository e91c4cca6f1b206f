//! Connectors arriving: QUIC and TCP on the same port.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request};
use quinn::{ServerConfig, VarInt, crypto::rustls::QuicServerConfig};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Error, Shared, control, session::Link};
use crate::{
    tls::{self, material::Material},
    transport::{Recv, Send, quic},
    wire::{PROBE_SERVER_NAME, QUIC_ALPN, headers::UPGRADE},
};

/// A stranger has this long from his first packet to his control stream.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(10);

fn rustls_server(leaf: &Material, alpn: Vec<Vec<u8>>) -> Result<rustls::ServerConfig, tls::Error> {
    let key = match &leaf.key {
        PrivateKeyDer::Pkcs8(key) => PrivateKeyDer::Pkcs8(key.secret_pkcs8_der().to_vec().into()),
        other => other.clone_key(),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(leaf.chain.clone(), key)?;
    config.alpn_protocols = alpn;
    Ok(config)
}

/// TLS for connectors over TCP: no ALPN.
pub(super) fn connector_tls(leaf: &Material) -> Result<Arc<rustls::ServerConfig>, tls::Error> {
    Ok(Arc::new(rustls_server(leaf, Vec::new())?))
}

/// Binds UDP and TCP on one port. With port 0 a free port of UDP may be taken on TCP, so a few are tried.
pub(super) async fn bind_pair(addr: SocketAddr, leaf: &Material) -> Result<(quinn::Endpoint, TcpListener), Error> {
    let tls = QuicServerConfig::try_from(rustls_server(leaf, vec![QUIC_ALPN.to_vec()])?).map_err(tls::Error::from)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    let mut transport = quic::transport_config(addr.is_ipv6(), true);
    // Wide, so that one slow visitor does not hold up the others of a connection; narrow per stream, since that is
    // what a connector's memory for him is bounded by.
    transport.receive_window(VarInt::from_u32(1 << 30)).stream_receive_window(VarInt::from_u32(4 << 20));
    config.transport_config(Arc::new(transport));
    let mut tries = 20;
    loop {
        let quic = quic::bind(addr, Some(config.clone())).map_err(|source| Error::Listen { addr, source })?;
        let bound = quic.local_addr().map_err(|source| Error::Listen { addr, source })?;
        match TcpListener::bind(bound).await {
            Ok(tcp) => return Ok((quic, tcp)),
            Err(source) => {
                tries -= 1;
                if addr.port() != 0 || tries == 0 {
                    return Err(Error::Listen { addr: bound, source });
                }
            }
        }
    }
}

/// Binds a visitors' listener.
pub(super) async fn bind_optional(addr: Option<SocketAddr>) -> Result<Option<TcpListener>, Error> {
    let Some(addr) = addr else { return Ok(None) };
    TcpListener::bind(addr).await.map(Some).map_err(|source| Error::Listen { addr, source })
}

/// Accepts connectors over QUIC.
pub(super) async fn accept_quic(shared: Arc<Shared>, endpoint: quinn::Endpoint) {
    let draining = shared.tasks.draining();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = draining.cancelled() => return,
        };
        let Some(incoming) = incoming else { return };
        let shared_ = shared.clone();
        shared.tasks.spawn(async move {
            if let Err(error) = arrive_quic(shared_, incoming).await {
                tracing::debug!(error, "a QUIC connection did not become a connector");
            }
        });
    }
}

async fn arrive_quic(shared: Arc<Shared>, incoming: quinn::Incoming) -> Result<(), String> {
    let text = |error: quinn::ConnectionError| error.to_string();
    let connection = tokio::time::timeout(ARRIVAL_LIMIT, incoming)
        .await
        .map_err(|_| "no handshake in time".to_owned())?
        .map_err(text)?;
    let name = connection
        .handshake_data()
        .and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
        .and_then(|data| data.server_name);
    if name.as_deref() == Some(PROBE_SERVER_NAME) {
        // It closes by itself; its idle time-out is the bound.
        connection.closed().await;
        return Ok(());
    }
    let (send, recv) = tokio::time::timeout(ARRIVAL_LIMIT, connection.accept_bi())
        .await
        .map_err(|_| "no control stream in time".to_owned())?
        .map_err(text)?;
    let closed = CancellationToken::new();
    let ended = closed.clone();
    let watched = connection.clone();
    shared.tasks.spawn(async move {
        // Later streams of a connector report ended UDP sessions; there are none here, so they are reset.
        while let Ok((send, recv)) = watched.accept_bi().await {
            drop((Send::quic(send), recv));
        }
        watched.closed().await;
        ended.cancel();
    });
    let link = Link::Quic(connection);
    control::serve(shared, link, Recv::quic(Bytes::new(), recv), Send::quic(send), closed).await;
    Ok(())
}

/// Accepts connectors over TCP.
pub(super) async fn accept_tcp(shared: Arc<Shared>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
    let draining = shared.tasks.draining();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = draining.cancelled() => return,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connector");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (shared_, tls) = (shared.clone(), tls.clone());
        shared.tasks.spawn(async move {
            if let Err(error) = arrive_tcp(shared_, tcp, tls).await {
                tracing::debug!(error, "a TCP connection did not become a connector");
            }
        });
    }
}

async fn arrive_tcp(shared: Arc<Shared>, tcp: TcpStream, tls: Arc<rustls::ServerConfig>) -> Result<(), String> {
    let _ = tcp.set_nodelay(true);
    let handshake = async {
        let stream = TlsAcceptor::from(tls).accept(tcp).await.map_err(|error| error.to_string())?;
        if stream.get_ref().1.server_name() == Some(PROBE_SERVER_NAME) {
            return Ok(None);
        }
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 30)
            .max_frame_size(1 << 20)
            .max_header_list_size(8 << 20)
            .max_send_buffer_size(256 << 10)
            .initial_max_send_streams(100);
        builder.handshake::<_, Bytes>(stream).await.map(Some).map_err(|error| error.to_string())
    };
    let connected =
        tokio::time::timeout(ARRIVAL_LIMIT, handshake).await.map_err(|_| "no handshake in time".to_owned())??;
    let Some((sender, connection)) = connected else { return Ok(()) };
    let closed = CancellationToken::new();
    let ended = closed.clone();
    shared.tasks.spawn(async move {
        tokio::select! {
            outcome = connection => if let Err(error) = outcome {
                tracing::debug!(%error, "a connector's connection ended");
            },
            () = ended.cancelled() => {}
        }
        ended.cancel();
    });
    let control = async {
        let request = Request::builder()
            .uri("https://localhost/")
            .header(UPGRADE, HeaderValue::from_static("control-stream"))
            .body(())
            .map_err(|error| error.to_string())?;
        let mut ready = sender.clone().ready().await.map_err(|error| error.to_string())?;
        let (response, send) = ready.send_request(request, false).map_err(|error| error.to_string())?;
        let body = response.await.map_err(|error| error.to_string())?.into_body();
        Ok::<_, String>((Recv::http2(body), Send::http2(send)))
    };
    let control = tokio::time::timeout(ARRIVAL_LIMIT, control).await;
    match control.unwrap_or_else(|_| Err("no control stream in time".into())) {
        Ok((recv, send)) => control::serve(shared, Link::Http2(sender), recv, send, closed).await,
        Err(error) => {
            closed.cancel();
            return Err(error);
        }
    }
    Ok(())
}
