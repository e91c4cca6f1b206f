//! Connectors arriving: QUIC and TCP on the same port.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request};
use quinn::{ServerConfig, VarInt, crypto::rustls::QuicServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    Error, Shared,
    control::{self, Control},
    leaf::Leaf,
    limits::{Full, Place},
    session::Link,
};
use crate::{
    metrics::edge::Bound,
    tls,
    transport::{Recv, Send, quic},
    wire::{PROBE_SERVER_NAME, QUIC_ALPN, headers::UPGRADE},
};

/// What a connector may have in flight before it registered: it sends less than a kilobyte until then.
const FIRST_WINDOW: u32 = 1 << 20;
/// For the GOAWAY to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A connector over HTTP/2 is asked so often whether it is there, and has so long to say so.
const PING_EVERY: Duration = Duration::from_secs(5);
const PONG_LIMIT: Duration = Duration::from_secs(5);

fn rustls_server(leaf: Arc<Leaf>, alpn: Vec<Vec<u8>>) -> Result<rustls::ServerConfig, tls::Error> {
    let mut config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(leaf);
    config.alpn_protocols = alpn;
    Ok(config)
}

/// TLS for connectors over TCP: no ALPN.
pub(super) fn connector_tls(leaf: Arc<Leaf>) -> Result<Arc<rustls::ServerConfig>, tls::Error> {
    Ok(Arc::new(rustls_server(leaf, Vec::new())?))
}

/// Binds UDP and TCP on one port. With port 0 a free port of UDP may be taken on TCP, so a few are tried.
pub(super) async fn bind_pair(addr: SocketAddr, leaf: Arc<Leaf>) -> Result<(quinn::Endpoint, TcpListener), Error> {
    let tls = QuicServerConfig::try_from(rustls_server(leaf, vec![QUIC_ALPN.to_vec()])?).map_err(tls::Error::from)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    // What quinn holds before we have looked at it: first packets of 1,024 strangers, 4 MiB of them.
    config.max_incoming(1024).incoming_buffer_size_total(4 << 20).incoming_buffer_size(64 << 10);
    let mut transport = quic::transport_config(addr.is_ipv6(), true);
    // Narrow until the connector is known, and per stream, since that is what a visitor's slowness is bounded by. A
    // connector opens its control stream and now and then a call, and never a one-way stream.
    transport
        .receive_window(VarInt::from_u32(FIRST_WINDOW))
        .stream_receive_window(VarInt::from_u32(4 << 20))
        .max_concurrent_bidi_streams(VarInt::from_u32(64))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
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

/// Accepts connectors over QUIC. Once draining, newcomers are refused: they find another edge at once.
pub(super) async fn accept_quic(shared: Arc<Shared>, endpoint: quinn::Endpoint) {
    let draining = shared.tasks.draining();
    while let Some(incoming) = endpoint.accept().await {
        if draining.is_cancelled() {
            incoming.refuse();
            continue;
        }
        let place = match shared.arrivals.enter(incoming.remote_address().ip()) {
            Ok(place) => place,
            Err(full) => {
                shared.metrics.overloaded(bound_of(full));
                incoming.refuse();
                continue;
            }
        };
        // A source address costs nothing to forge until it had to answer, so that nobody can take the places of others.
        if shared.arrivals.under_load() && !incoming.remote_address_validated() && incoming.may_retry() {
            shared.metrics.validated();
            let _ = incoming.retry();
            continue;
        }
        let shared_ = shared.clone();
        shared.tasks.spawn(async move {
            if let Err(error) = arrive_quic(shared_, incoming, place).await {
                tracing::debug!(error, "a QUIC connection did not become a connector");
            }
        });
    }
}

fn bound_of(full: Full) -> Bound {
    match full {
        Full::Everywhere => Bound::Arrivals,
        Full::ForThisAddress => Bound::ArrivalsPerAddress,
    }
}

async fn arrive_quic(shared: Arc<Shared>, incoming: quinn::Incoming, place: Place) -> Result<(), String> {
    let text = |error: quinn::ConnectionError| error.to_string();
    let limit = shared.limits.arrival_time;
    let connection =
        tokio::time::timeout(limit, incoming).await.map_err(|_| "no handshake in time".to_owned())?.map_err(text)?;
    let name = connection
        .handshake_data()
        .and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
        .and_then(|data| data.server_name);
    if name.as_deref() == Some(PROBE_SERVER_NAME) {
        // It closes by itself, or is closed.
        let _ = tokio::time::timeout(limit, connection.closed()).await;
        return Ok(());
    }
    let (send, recv) = tokio::time::timeout(limit, connection.accept_bi())
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
    let control = Control { recv: Recv::quic(Bytes::new(), recv), send: Send::quic(send), closed, place };
    control::serve(shared, Link::Quic(connection), control).await;
    Ok(())
}

/// Accepts connectors over TCP, until the edge drains.
pub(super) async fn accept_tcp(shared: Arc<Shared>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
    let draining = shared.tasks.draining();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = draining.cancelled() => return,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connector");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let place = match shared.arrivals.enter(peer.ip()) {
            Ok(place) => place,
            Err(full) => {
                shared.metrics.overloaded(bound_of(full));
                continue;
            }
        };
        let (shared_, tls) = (shared.clone(), tls.clone());
        shared.tasks.spawn(async move {
            if let Err(error) = arrive_tcp(shared_, tcp, tls, place).await {
                tracing::debug!(error, "a TCP connection did not become a connector");
            }
        });
    }
}

async fn arrive_tcp(
    shared: Arc<Shared>,
    tcp: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    place: Place,
) -> Result<(), String> {
    let _ = tcp.set_nodelay(true);
    let limit = shared.limits.arrival_time;
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
    let connected = tokio::time::timeout(limit, handshake).await.map_err(|_| "no handshake in time".to_owned())??;
    let Some((sender, mut connection)) = connected else { return Ok(()) };
    let closed = CancellationToken::new();
    let ended = closed.clone();
    let ping = connection.ping_pong();
    shared.tasks.spawn(async move {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            outcome = &mut connection => if let Err(error) = outcome {
                tracing::debug!(%error, "a connector's connection ended");
            },
            () = silent(ping) => tracing::info!("a connector's connection answers no ping"),
            // Nobody holds a stream any more, so the connection says GOAWAY and closes.
            () = ended.cancelled() => drop(tokio::time::timeout(LAST_WORDS, connection).await),
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
    let control = tokio::time::timeout(limit, control).await;
    match control.unwrap_or_else(|_| Err("no control stream in time".into())) {
        Ok((recv, send)) => {
            control::serve(shared, Link::Http2(sender), Control { recv, send, closed, place }).await;
        }
        Err(error) => {
            closed.cancel();
            return Err(error);
        }
    }
    Ok(())
}

/// Completes when a ping stays unanswered: a connector that vanished would hold visitors until TCP gives up. QUIC has
/// its idle time-out for that.
async fn silent(ping: Option<h2::PingPong>) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_EVERY).await;
        match tokio::time::timeout(PONG_LIMIT, ping.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection is over, and says so itself.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
