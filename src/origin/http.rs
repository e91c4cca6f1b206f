//! HTTP to a service: one request, one answer, over a pooled connection that the request's own task drives.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio_rustls::TlsConnector;

use super::{
    Error,
    dial::{Dialer, Target},
    http2::Shared,
    io::OriginIo,
    pool::Pool,
    proxy_protocol,
    request_body::RequestBody,
};
use crate::config::{OriginOptions, ProxyProtocol};

/// Bytes of a response head that are accepted; 2 MB heads exist (hyper's own default is 400 KiB).
const MAX_HEAD: usize = 4 << 20;
/// Header lines of a response that are accepted; hyper's own default is 100.
const MAX_HEADERS: usize = 512;

/// An HTTP service.
#[derive(Debug)]
pub struct HttpOrigin {
    dialer: Dialer,
    target: Target,
    tls: Option<Tls>,
    h2c: bool,
    pool: Arc<Pool>,
    shared: Shared,
    proxy_protocol: Option<ProxyProtocol>,
}

#[derive(Debug)]
struct Tls {
    config: Arc<ClientConfig>,
    timeout: std::time::Duration,
    name: NameRule,
}

/// Where the server name comes from.
#[derive(Debug)]
enum NameRule {
    Fixed(Name),
    /// The host of each request.
    OfRequest,
}

/// What a service answered.
#[derive(Debug)]
pub enum Reply {
    /// An ordinary answer.
    Response(Response<ReplyBody>),
    /// The connection is a WebSocket now.
    Upgraded {
        /// The 101.
        head: Response<()>,
        /// The connection.
        io: OriginIo,
        /// What the service sent along with its head.
        first: Bytes,
    },
}

impl HttpOrigin {
    /// A service that is dialled when it is first asked.
    pub fn new(
        dialer: Dialer,
        target: Target,
        tls: Option<Arc<ClientConfig>>,
        h2c: bool,
        options: &OriginOptions,
    ) -> Self {
        let name = match (&options.origin_server_name, &target) {
            _ if options.match_sni_to_host => NameRule::OfRequest,
            (Some(name), _) => NameRule::Fixed(parse_name(name)),
            (None, Target::Tcp { host, .. }) => NameRule::Fixed(parse_name(host)),
            (None, Target::Unix(_)) => NameRule::Fixed(parse_name("localhost")),
        };
        // A connection that says whom it is for serves nobody else.
        let keep_alive_connections = if options.proxy_protocol.is_some() { 0 } else { options.keep_alive_connections };
        Self {
            dialer,
            target,
            tls: tls.map(|config| Tls { config, timeout: options.tls_timeout, name }),
            h2c,
            pool: Arc::new(Pool::new(keep_alive_connections, options.keep_alive_timeout)),
            shared: Shared::default(),
            proxy_protocol: options.proxy_protocol,
        }
    }

    /// Whether the service may be spoken to in HTTP/2, where `te: trailers` has a meaning.
    pub fn may_speak_h2(&self) -> bool {
        self.h2c || self.tls.as_ref().is_some_and(|tls| !tls.config.alpn_protocols.is_empty())
    }

    /// Drops idle connections that are too old.
    pub fn sweep(&self) {
        self.pool.sweep();
    }

    /// Sends a request. `host` is what the service sees as Host, for `matchSNItoHost`.
    ///
    /// A request that was not sent, or that is idempotent and has no body, is sent once more when a pooled connection
    /// turns out to be dead (RFC 9110 §9.2.2).
    ///
    /// # Errors
    ///
    /// [`Error`]; no answer was begun.
    pub async fn send(&self, request: Request<RequestBody>, host: &str, websocket: bool) -> Result<Reply, Error> {
        let name = self.server_name(host)?;
        if !websocket
            && self.may_speak_h2()
            && let Some(reply) = self.shared.existing(name.as_ref())
        {
            return Ok(Reply::Response(reply.send(request).await?.map(ReplyBody::Http2)));
        }
        let mut request = request;
        while let Some(connection) = self.pool.take(name.as_ref()) {
            let spare = spare(&request);
            match connection.exchange(request, websocket, self.give_back(&name)).await {
                Ok(reply) => return Ok(reply),
                Err((_, Some(unsent))) => request = unsent,
                Err((error, None)) => match spare {
                    Some(spare) if !error.is_timeout() => request = spare,
                    _ => return Err(error.into()),
                },
            }
        }
        let source = request.extensions().get::<proxy_protocol::Source>().copied();
        let io = self.dial(name.as_ref(), source).await?;
        if io.is_h2() || (self.h2c && !websocket) {
            let connection = self.shared.connect(io, name.as_ref()).await?;
            return Ok(Reply::Response(connection.send(request).await?.map(ReplyBody::Http2)));
        }
        let connection = H1::handshake(io).await?;
        connection.exchange(request, websocket, self.give_back(&name)).await.map_err(|(error, _)| error.into())
    }

    fn give_back(&self, name: &Option<ServerName<'static>>) -> GiveBack {
        GiveBack { pool: self.pool.clone(), name: name.clone() }
    }

    fn server_name(&self, host: &str) -> Result<Option<ServerName<'static>>, Error> {
        let Some(tls) = &self.tls else { return Ok(None) };
        let name = match &tls.name {
            NameRule::Fixed(name) => name.clone(),
            NameRule::OfRequest => parse_name(without_port(host)),
        };
        name.map(Some).map_err(Error::ServerName)
    }

    async fn dial(
        &self,
        name: Option<&ServerName<'static>>,
        source: Option<proxy_protocol::Source>,
    ) -> Result<OriginIo, Error> {
        let mut io = self.dialer.connect(&self.target).await?;
        if let Some(version) = self.proxy_protocol {
            let peer = io.peer();
            proxy_protocol::send(&mut io, version, source, peer).await.map_err(Error::Unreachable)?;
        }
        let (Some(tls), Some(name)) = (&self.tls, name) else { return Ok(io) };
        let connector = TlsConnector::from(tls.config.clone());
        let handshake = async {
            Ok(match io {
                OriginIo::Tcp(tcp) => OriginIo::TcpTls(Box::new(connector.connect(name.clone(), tcp).await?)),
                OriginIo::Unix(unix) => OriginIo::UnixTls(Box::new(connector.connect(name.clone(), unix).await?)),
                done => done,
            })
        };
        match tokio::time::timeout(tls.timeout, handshake).await {
            Ok(outcome) => outcome.map_err(Error::Tls),
            Err(_) => Err(Error::TimedOut("TLS handshake")),
        }
    }
}

/// A server name, or the text that cannot be one.
type Name = Result<ServerName<'static>, String>;

fn parse_name(name: &str) -> Name {
    ServerName::try_from(name.to_owned()).map_err(|_| name.to_owned())
}

/// `[::1]:80`, `[::1]`, `host:80` or `host`, without the port and the brackets.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(ip, _)| ip);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// A copy of a request that may be sent twice.
fn spare(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let repeatable = matches!(request.body(), RequestBody::Empty | RequestBody::Watched(_))
        && matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
        );
    repeatable.then(|| {
        let mut copy = Request::new(RequestBody::Empty);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        if let Some(source) = request.extensions().get::<proxy_protocol::Source>() {
            copy.extensions_mut().insert(*source);
        }
        copy
    })
}

/// Where a connection goes after its answer.
#[derive(Debug)]
struct GiveBack {
    pool: Arc<Pool>,
    name: Option<ServerName<'static>>,
}

/// One HTTP/1.1 connection: hyper's two halves, both polled here.
#[derive(Debug)]
pub(super) struct H1 {
    sender: http1::SendRequest<RequestBody>,
    connection: http1::Connection<TokioIo<OriginIo>, RequestBody>,
}

type Unsent = (hyper::Error, Option<Request<RequestBody>>);

impl H1 {
    async fn handshake(io: OriginIo) -> Result<Box<Self>, Error> {
        let (sender, connection) = http1::Builder::new()
            .title_case_headers(true)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(io))
            .await?;
        Ok(Box::new(Self { sender, connection }))
    }

    async fn exchange(
        mut self: Box<Self>,
        request: Request<RequestBody>,
        websocket: bool,
        give_back: GiveBack,
    ) -> Result<Reply, Unsent> {
        let mut sent = pin!(self.sender.try_send_request(request));
        let mut this = Some(self);
        let mut broken = None;
        let response = std::future::poll_fn(|cx| {
            if let Poll::Ready(outcome) = sent.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            if let Some(h1) = &mut this
                && let Poll::Ready(outcome) = h1.connection.poll_without_shutdown(cx)
            {
                if let Poll::Ready(outcome) = sent.as_mut().poll(cx) {
                    return Poll::Ready(outcome);
                }
                // A request that waits in a connection that ended while idle is given back when that is dropped.
                broken = outcome.err();
                this = None;
            }
            sent.as_mut().poll(cx)
        })
        .await
        .map_err(|mut error: TrySendError<_>| {
            let unsent = error.take_message();
            let cause = broken.take().unwrap_or_else(|| error.into_error());
            (cause, unsent)
        })?;
        if websocket
            && response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(mut h1) = this.take()
        {
            std::future::poll_fn(|cx| h1.connection.poll_without_shutdown(cx)).await.map_err(|error| (error, None))?;
            let (parts, _) = response.into_parts();
            let http1::Parts { io, read_buf, .. } = h1.connection.into_parts();
            return Ok(Reply::Upgraded { head: Response::from_parts(parts, ()), io: io.into_inner(), first: read_buf });
        }
        Ok(Reply::Response(response.map(|incoming| {
            ReplyBody::Http1(Box::new(Driven { incoming, connection: this, give_back, ended: false }))
        })))
    }
}

/// The body of an answer.
#[derive(Debug)]
pub enum ReplyBody {
    /// Drives its connection.
    Http1(Box<Driven>),
    /// A task drives the connection.
    Http2(Incoming),
}

/// A body together with the connection it comes over.
#[derive(Debug)]
pub struct Driven {
    incoming: Incoming,
    connection: Option<Box<H1>>,
    give_back: GiveBack,
    ended: bool,
}

impl ReplyBody {
    /// Whether nothing is to come. A connection that became free is back in its pool then.
    pub fn is_end(&mut self) -> bool {
        match self {
            Self::Http1(driven) => {
                let end = driven.incoming.is_end_stream();
                if end && !driven.ended {
                    driven.ended = true;
                    driven.finish();
                }
                end
            }
            Self::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    /// The next bytes or trailers.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self {
            Self::Http1(driven) => driven.poll_frame(cx),
            Self::Http2(incoming) => Pin::new(incoming).poll_frame(cx),
        }
    }

    /// The next bytes or trailers, `None` at the end. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the service died in the middle.
    pub async fn frame(&mut self) -> Result<Option<Frame<Bytes>>, hyper::Error> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await.transpose()
    }
}

impl Driven {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // The body asks for data first, so that the connection, polled second, sees the wish and fills it.
        let mut frame = Pin::new(&mut self.incoming).poll_frame(cx);
        if frame.is_pending()
            && let Some(connection) = &mut self.connection
        {
            if let Poll::Ready(outcome) = connection.connection.poll_without_shutdown(cx) {
                self.connection = None;
                if let Err(error) = outcome {
                    return Poll::Ready(Some(Err(error)));
                }
            }
            frame = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        if let Poll::Ready(None) = frame
            && !self.ended
        {
            self.ended = true;
            self.finish();
        }
        frame
    }

    /// Puts the connection into the pool if it is ready for another request.
    fn finish(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        // One more poll lets hyper close the books on this exchange. No waker: if it is not ready now, for instance
        // because the request is still being sent, the connection is not worth keeping.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if connection.connection.poll_without_shutdown(&mut cx).is_pending() && connection.sender.is_ready() {
            let GiveBack { pool, name } = &self.give_back;
            pool.put(connection, name.clone());
        }
    }
}

/// Trailers of an answer as they may be passed on: control names are not the service's to set.
pub fn clean_trailers(mut trailers: HeaderMap) -> HeaderMap {
    let control: Vec<_> =
        trailers.keys().filter(|name| crate::wire::headers::is_control(name.as_str())).cloned().collect();
    for name in control {
        trailers.remove(name);
    }
    trailers
}
