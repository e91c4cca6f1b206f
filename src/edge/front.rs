//! Visitors: their connections, from the place that each takes to its end in good order.

mod body;
mod caller;
mod exchange;
mod head;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::server::Acceptor;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use caller::Handshake;

use super::{
    LAST_HEADS, Shared,
    limits::{Full, Place},
    relay,
};
use crate::{
    metrics::edge::Bound,
    transport::visiting::{self, Bounds, Quiet},
    wire::direct::strip_port,
};

/// What a visitor hears for whom there is no place.
const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\
    Adit-Error: overloaded\r\nRetry-After: 1\r\nConnection: close\r\n\r\noverloaded\n";
/// For him to hear it.
const NO_PLACE_LIMIT: Duration = Duration::from_secs(1);
/// How many are told at once; the others are just closed.
const MOST_TOLD: usize = 64;
/// No method but the one of the HTTP/2 preface begins like this (RFC 9113 §3.4).
const PREFACE: &[u8; 4] = b"PRI ";
/// Between two looks at a preface that comes in pieces.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How visitors come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// In clear.
    Clear,
    /// Over TLS.
    Tls,
}

/// Accepts visitors, for a moment longer than the edge is ready.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, door: Door) {
    let told = super::limits::Places::new(MOST_TOLD, MOST_TOLD);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.closing.cancelled() => break,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a visitor");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        admit(&shared, tcp, peer, door, &told);
    }
    // Whom the kernel accepted before the door closed is in.
    while let Ok(Ok((tcp, peer))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
        admit(&shared, tcp, peer, door, &told);
    }
}

fn admit(shared: &Arc<Shared>, tcp: TcpStream, peer: SocketAddr, door: Door, told: &Arc<super::limits::Places>) {
    match shared.visitors.enter(peer.ip()) {
        Ok(place) => {
            let shared_ = shared.clone();
            shared.tasks.spawn(async move {
                arrive(shared_, tcp, peer, door, place).await;
            });
        }
        Err(full) => {
            shared.metrics.overloaded(match full {
                Full::Everywhere => Bound::Connections,
                Full::ForThisAddress => Bound::ConnectionsPerAddress,
            });
            // Before TLS there is no way to say it.
            if door == Door::Clear
                && let Ok(told) = told.enter(peer.ip())
            {
                shared.tasks.attend(async move {
                    let _told = told;
                    let _ = tokio::time::timeout(NO_PLACE_LIMIT, no_place(tcp)).await;
                });
            }
        }
    }
}

/// Says why, and reads on for a moment: closing a socket with unread bytes would take back what was said.
async fn no_place(mut tcp: TcpStream) -> std::io::Result<()> {
    tcp.write_all(NO_PLACE).await?;
    tcp.shutdown().await?;
    let mut unread = [0; 4096];
    while tcp.read(&mut unread).await? > 0 {}
    Ok(())
}

/// A visitor's connection as its requests see it.
#[derive(Debug)]
struct Visitor {
    peer: SocketAddr,
    /// What was asked and shown in the handshake, if there was one.
    handshake: Option<Handshake>,
    quiet: Quiet,
    /// Among visitors' connections. Every request holds its visitor, so a WebSocket keeps the place although hyper is
    /// done with the connection once it was upgraded.
    _place: Place,
}

impl Visitor {
    fn new(peer: SocketAddr, handshake: Option<Handshake>, place: Place) -> Arc<Self> {
        Arc::new(Self { peer, handshake, quiet: Quiet::default(), _place: place })
    }
}

/// Counts a request, from its head to the end of its answer, for its connection and for the edge.
#[derive(Debug)]
struct Busy {
    shared: Arc<Shared>,
    visitor: Arc<Visitor>,
    /// Among requests in flight.
    _place: Place,
}

impl Busy {
    /// `None` if there are too many, in all or of this address.
    fn enter(shared: &Arc<Shared>, visitor: &Arc<Visitor>) -> Option<Self> {
        visitor.quiet.asked();
        let place = shared.requests.enter(visitor.peer.ip()).ok()?;
        shared.metrics.request_started();
        visitor.quiet.enter();
        Some(Self { shared: shared.clone(), visitor: visitor.clone(), _place: place })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.shared.metrics.request_ended();
        self.visitor.quiet.leave();
    }
}

async fn arrive(shared: Arc<Shared>, tcp: TcpStream, peer: SocketAddr, door: Door, place: Place) {
    let _ = tcp.set_nodelay(true);
    match door {
        Door::Tls => {
            let accepted = tokio::time::timeout(shared.limits.tls_time, shake_hands(&shared, tcp)).await;
            if let Ok(Ok((stream, handshake))) = accepted {
                let over_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                converse(shared, Visitor::new(peer, Some(handshake), place), stream, over_h2).await;
            }
        }
        Door::Clear => {
            let told = tokio::time::timeout(shared.limits.header_time, speaks_http2(&tcp)).await;
            if let Ok(Some(over_h2)) = told {
                converse(shared, Visitor::new(peer, None, place), tcp, over_h2).await;
            }
        }
    }
}

/// A TLS handshake as the visitor's server name wants it.
async fn shake_hands(shared: &Shared, tcp: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, Handshake)> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
    let name = start.client_hello().server_name().map(str::to_lowercase);
    let entry = name.and_then(|name| shared.certificates.entry(strip_port(&name)).cloned());
    let config = shared.certificates.server_config(entry.as_ref());
    let stream = start.into_stream(config).await?;
    let handshake = Handshake::new(entry, stream.get_ref().1.peer_certificates());
    Ok((stream, handshake))
}

/// Whether a visitor in clear speaks HTTP/2 with prior knowledge; `None` when he left without a word.
async fn speaks_http2(tcp: &TcpStream) -> Option<bool> {
    let mut first = [0; PREFACE.len()];
    let mut pause = Duration::from_millis(10);
    loop {
        let seen = tcp.peek(&mut first).await.ok().filter(|seen| *seen > 0)?;
        if first[..seen] != PREFACE[..seen] {
            return Some(false);
        }
        if seen == PREFACE.len() {
            return Some(true);
        }
        // A peek does not take, so there is nothing to wait for; a preface in pieces is rare, and who
        // sends one letter and stays costs 35 looks in the time for a head.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn converse<I>(shared: Arc<Shared>, visitor: Arc<Visitor>, io: I, over_h2: bool)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &shared.limits;
    let bounds = Bounds {
        streams: limits.streams_per_connection,
        header_bytes: limits.header_bytes,
        header_lines: limits.header_lines,
        header_time: limits.header_time,
        idle_time: limits.idle_time,
        last_heads: LAST_HEADS,
    };
    let answer = {
        let (shared, visitor) = (shared.clone(), visitor.clone());
        move |request| {
            let (shared, visitor) = (shared.clone(), visitor.clone());
            async move { exchange::answer(&shared, &visitor, request).await }
        }
    };
    visiting::converse(io, over_h2, &bounds, &visitor.quiet, (&shared.tasks, &shared.closing), answer).await;
}

/// Cuts a visitor's socket whose other end broke. Over HTTP/2 only the whole connection could be cut, so there the
/// stream just ends.
fn cut_upgraded(io: hyper::upgrade::Upgraded) {
    let io = match io.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => return relay::cut(&parts.io.into_inner()),
        Err(io) => io,
    };
    if let Ok(parts) = io.downcast::<TokioIo<TlsStream<TcpStream>>>() {
        relay::cut(parts.io.into_inner().get_ref().0);
    }
}
