//! HTTP/2 towards an edge (protocol.md §6): we dial TCP and TLS, then *serve* HTTP/2 on it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, header, request::Parts};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Error, HeadError, Incoming, Recv, Responder,
    pulse::{Counted, Heard, Pulse},
    stream::StreamError,
};
use crate::wire::{
    self, BodyLength, H2_SERVER_NAME, Head, RequestHead,
    connect::content_length,
    headers::{TCP_SOURCE, TRACE_ID, UPGRADE, UPGRADE_CONFIGURE, UPGRADE_CONTROL, UPGRADE_WEBSOCKET},
    parse_target,
};

/// A connection to an edge over HTTP/2.
pub struct Http2Session {
    connection: h2::server::Connection<TlsStream<Counted<TcpStream>>, Bytes>,
    ping: Option<h2::PingPong>,
    heard: Heard,
    local: SocketAddr,
    remote: SocketAddr,
}

impl std::fmt::Debug for Http2Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http2Session").field("remote", &self.remote).finish_non_exhaustive()
    }
}

/// Settings of the connector's side (§6.2).
fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .max_frame_size(1 << 20)
        .max_header_list_size(1_048_896)
        .max_concurrent_streams(u32::MAX)
        // Per stream, not per connection: 1,000 slow readers hold 64 MiB at most.
        .max_send_buffer_size(64 << 10)
        // One connection carries everybody's visitors, who leave when they like and may send nonsense: with the usual
        // limits (20 and 1,024) a few of them would end it for all. Four thousand at once hold 4 MiB; a stream that
        // made no sense costs that stream.
        .max_pending_accept_reset_streams(4_096)
        .max_local_error_reset_streams(None)
        // Small WebSocket messages to a slow service must not end the connection for everybody.
        .data_frame_budget(16 << 20);
    builder
}

impl Http2Session {
    /// Dials `edge`; TCP and TLS together may take `limit`.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn dial(
        edge: SocketAddr,
        bind: Option<IpAddr>,
        tls: Arc<rustls::ClientConfig>,
        limit: Duration,
    ) -> Result<Self, Error> {
        let heard = Heard::default();
        let dial = async {
            let socket = if edge.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
            if let Some(ip) = bind {
                socket.bind(SocketAddr::new(ip, 0))?;
            }
            socket.set_keepalive(true)?;
            let tcp = socket.connect(edge).await?;
            tcp.set_nodelay(true)?;
            let (local, remote) = (tcp.local_addr()?, tcp.peer_addr()?);
            let name = rustls::pki_types::ServerName::try_from(H2_SERVER_NAME)
                .map_err(|error| Error::Io(std::io::Error::other(error)))?;
            let counted = Counted::new(tcp, heard.clone());
            let tls = TlsConnector::from(tls).connect(name, counted).await?;
            let mut connection = builder().handshake(tls).await?;
            let ping = connection.ping_pong();
            Ok(Self { connection, ping, heard: heard.clone(), local, remote })
        };
        let silent = || {
            let heard = heard.bytes() > 0;
            Err(Error::TimedOut { what: "TCP connection, TLS and HTTP/2 handshake", limit, heard })
        };
        tokio::time::timeout(limit, dial).await.unwrap_or_else(|_| silent())
    }

    /// Our address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The edge's address.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Feels whether the connection is alive; h2 gives out its PINGs once.
    pub fn pulse(&mut self) -> Pulse {
        Pulse::http2(self.heard.clone(), self.ping.take())
    }

    /// The next request; drives the connection.
    ///
    /// # Errors
    ///
    /// When the connection is over.
    pub async fn accept(&mut self) -> Result<Announced, Error> {
        match self.connection.accept().await {
            Some(Ok((request, respond))) => Ok(Announced { request, respond }),
            Some(Err(error)) => Err(error.into()),
            None => Err(Error::Closed),
        }
    }

    /// Says GOAWAY, first without and a round trip later with the last stream that is served (RFC 9113 §6.8): what the
    /// edge sends after that was never looked at, and may be sent elsewhere. Idempotent.
    pub fn say_goodbye(&mut self) {
        self.connection.graceful_shutdown();
    }

    /// Sends GOAWAY and closes the socket once that is written.
    pub async fn close(mut self) {
        self.connection.abrupt_shutdown(h2::Reason::NO_ERROR);
        let goodbye = std::future::poll_fn(|cx| self.connection.poll_closed(cx));
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }
}

/// A request with its head.
#[derive(Debug)]
pub struct Announced {
    request: Request<h2::RecvStream>,
    respond: SendResponse<Bytes>,
}

impl Announced {
    /// Sorts the request by kind (§6.3).
    pub(super) fn into_incoming(self) -> Result<Incoming, HeadError> {
        let Self { request, respond } = self;
        let (parts, body) = request.into_parts();
        let upgrade = parts.headers.get(UPGRADE).map(HeaderValue::as_bytes);
        let recv = Recv::http2(body);
        let responder = Responder::http2(respond);
        if upgrade == Some(UPGRADE_CONFIGURE) {
            return Ok(Incoming::Configure { recv, responder });
        }
        let websocket = upgrade == Some(UPGRADE_WEBSOCKET);
        if !websocket {
            if parts.headers.get(TCP_SOURCE).is_some_and(|source| !source.is_empty()) {
                return tcp(&parts, recv, responder);
            }
            if upgrade == Some(UPGRADE_CONTROL) {
                let send = responder.bare("application/octet-stream")?;
                return Ok(Incoming::Control { recv, send });
            }
        }
        let head = request_head(parts, websocket, recv.is_end())?;
        Ok(Incoming::Visitor { head: Head::Request(head), responder, recv })
    }
}

fn tcp(parts: &Parts, recv: Recv, responder: Responder) -> Result<Incoming, HeadError> {
    let dest = parts.uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    match dest.parse::<SocketAddr>() {
        Ok(dest) => Ok(Incoming::Visitor { head: Head::Tcp(dest), responder, recv }),
        // Dropping the responder would reset; §6.6 wants 502.
        Err(_) => Err(HeadError::Stream(refuse(responder))),
    }
}

/// Answers 502 in the peer's form without waiting: the head is small and HTTP/2 buffers it.
fn refuse(responder: Responder) -> StreamError {
    use futures_util::FutureExt;
    let _ = responder.fail("the destination is not ip:port", false).now_or_never();
    StreamError::Closed
}

/// What an HTTP/2 request asks for (protocol.md §6.3); `ended` says that it has no body.
///
/// # Errors
///
/// [`HeadError::Wire`] for a host, path, cookie or length that HTTP/1.1 could not say.
pub fn request_head(parts: Parts, websocket: bool, ended: bool) -> Result<RequestHead, HeadError> {
    let Parts { method, uri, mut headers, .. } = parts;
    let host = match (uri.authority(), headers.remove(header::HOST)) {
        (Some(authority), _) => HeaderValue::from_str(authority.as_str()).map_err(|_| wire::Error::Http("host"))?,
        (None, Some(host)) => host,
        (None, None) => HeaderValue::from_static(""),
    };
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let target = parse_target(if target.is_empty() { b"/" } else { target.as_bytes() })?;
    headers.remove(UPGRADE);
    headers.remove(TRACE_ID);
    // Ends here, as with the peer (protocol.md §6.3); over QUIC it reaches the service, whose 100 is swallowed.
    headers.remove(header::EXPECT);
    join_cookies(&mut headers)?;
    let body = if websocket {
        BodyLength::None
    } else {
        match content_length(&headers)? {
            Some(length) => BodyLength::Known(length),
            None if ended => BodyLength::None,
            None => BodyLength::Unknown,
        }
    };
    Ok(RequestHead { websocket, method, host, target, headers, body })
}

/// HTTP/2 may split the cookie field; HTTP/1 wants one (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Result<(), wire::Error> {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    if let (Some(first), Some(_)) = (cookies.next(), cookies.next()) {
        let mut joined = first.as_bytes().to_vec();
        for cookie in headers.get_all(header::COOKIE).iter().skip(1) {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(cookie.as_bytes());
        }
        let joined = HeaderValue::from_bytes(&joined).map_err(|_| wire::Error::Http("cookie"))?;
        headers.insert(header::COOKIE, joined);
    }
    Ok(())
}
