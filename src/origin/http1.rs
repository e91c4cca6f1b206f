//! HTTP/1.1 to a service: a connection that is polled by the task of the request that uses it, and by no other.

use std::{
    future::Future,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::time::Instant;

use super::{
    Error,
    http::{BoxedRequest, Reply, ReplyBody},
    io::{Listening, OriginIo},
    pool::Pool,
    proxy_protocol,
    request_body::RequestBody,
};

/// Bytes of a response head that are accepted; 2 MB heads exist (hyper's own default is 400 KiB).
const MAX_HEAD: usize = 4 << 20;
/// Header lines of a response that are accepted; hyper's own default is 100.
const MAX_HEADERS: usize = 512;

/// Whether a request may be sent a second time although the first may have been processed (RFC 9110 §9.2.2).
pub(super) fn is_repeatable(method: &Method, body: &RequestBody) -> bool {
    matches!(body, RequestBody::Empty | RequestBody::Watched(_))
        && matches!(
            *method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
        )
}

/// A copy of a request that may be sent twice.
pub(super) fn spare(request: &Request<RequestBody>) -> Option<BoxedRequest> {
    is_repeatable(request.method(), request.body()).then(|| {
        let mut copy = Request::new(RequestBody::Empty);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        if let Some(source) = request.extensions().get::<proxy_protocol::Source>() {
            copy.extensions_mut().insert(*source);
        }
        Box::new(copy)
    })
}

/// Where a connection goes after its answer.
#[derive(Debug)]
pub(super) struct GiveBack {
    pub(super) pool: Arc<Pool>,
    /// The name it was verified for.
    pub(super) name: Option<ServerName<'static>>,
}

/// Implied in HTTP/1.1, but a service of HTTP/1.0 keeps the connection only if it is asked to.
const KEEP_ALIVE: http::HeaderValue = http::HeaderValue::from_static("keep-alive");

/// One HTTP/1.1 connection: hyper's two halves, both polled here.
#[derive(Debug)]
pub(super) struct H1 {
    sender: http1::SendRequest<RequestBody>,
    connection: http1::Connection<TokioIo<Listening>, RequestBody>,
    heard: Arc<AtomicU64>,
    peer: Option<IpAddr>,
    pub(super) until: Option<Instant>,
}

/// An exchange without an answer.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) error: hyper::Error,
    /// The request, if the service has seen nothing of it.
    pub(super) unsent: Option<BoxedRequest>,
    /// Not one byte came back.
    pub(super) silent: bool,
}

impl H1 {
    pub(super) async fn handshake(io: OriginIo) -> Result<Box<Self>, Error> {
        let (peer, until) = (io.peer().map(|addr| addr.ip().to_canonical()), io.until());
        let heard = Arc::new(AtomicU64::new(0));
        let io = Listening { io, heard: heard.clone() };
        let (sender, connection) = http1::Builder::new()
            .title_case_headers(true)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(io))
            .await?;
        Ok(Box::new(Self { sender, connection, heard, peer, until }))
    }

    /// Whether what it proved counts no more: the trust that it needed was replaced, and its time after that is over.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }

    /// The address of the service, if it has one.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    pub(super) async fn exchange(
        mut self: Box<Self>,
        mut request: BoxedRequest,
        websocket: bool,
        give_back: GiveBack,
    ) -> Result<Reply, Broken> {
        if !websocket {
            request.headers_mut().insert(http::header::CONNECTION, KEEP_ALIVE);
        }
        let heard = self.heard.clone();
        let before = heard.load(Ordering::Relaxed);
        let mut sent = pin!(self.sender.try_send_request(*request));
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
            let unsent = error.take_message().map(Box::new);
            let error = broken.take().unwrap_or_else(|| error.into_error());
            Broken { error, unsent, silent: heard.load(Ordering::Relaxed) == before }
        })?;
        if websocket
            && response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(mut h1) = this.take()
        {
            let ended = std::future::poll_fn(|cx| h1.connection.poll_without_shutdown(cx)).await;
            ended.map_err(|error| Broken { error, unsent: None, silent: false })?;
            let (parts, _) = response.into_parts();
            let http1::Parts { io, read_buf, .. } = h1.connection.into_parts();
            let head = Response::from_parts(parts, ());
            return Ok(Reply::Upgraded { head, io: io.into_inner().io, first: read_buf, in_flight: None });
        }
        Ok(Reply::Response(response.map(|incoming| {
            ReplyBody::http1(Driven { incoming, connection: this, broke: None, give_back, ended: false })
        })))
    }
}

/// A body together with the connection it comes over.
#[derive(Debug)]
pub(super) struct Driven {
    incoming: Incoming,
    connection: Option<Box<H1>>,
    /// Why it ended while nobody took the answer.
    broke: Option<hyper::Error>,
    give_back: GiveBack,
    ended: bool,
}

impl Driven {
    /// Whether nothing is to come.
    pub(super) fn is_end(&mut self) -> bool {
        let end = self.incoming.is_end_stream();
        if end && !self.ended {
            self.ended = true;
            self.finish();
        }
        end
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // The body asks for data first, so that the connection, polled second, sees the wish and fills it.
        let mut frame = Pin::new(&mut self.incoming).poll_frame(cx);
        if frame.is_pending() && self.connection.is_some() {
            self.poll_upload(cx);
            if self.broke.is_none() {
                frame = Pin::new(&mut self.incoming).poll_frame(cx);
            }
        }
        // What had arrived before it broke was told first.
        if !matches!(frame, Poll::Ready(Some(Ok(_)) | None))
            && let Some(error) = self.broke.take()
        {
            return Poll::Ready(Some(Err(error)));
        }
        if let Poll::Ready(None) = frame
            && !self.ended
        {
            self.ended = true;
            self.finish();
        }
        frame
    }

    /// Drives the connection: sends on what is left of the request. Of the answer it reads no more than one piece ahead,
    /// so that it may be polled while nobody takes that.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && let Poll::Ready(outcome) = connection.connection.poll_without_shutdown(cx)
        {
            self.connection = None;
            // Told with the next frame.
            self.broke = outcome.err();
        }
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
