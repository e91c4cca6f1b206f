//! The two halves of a stream, and the one answer it gets. The same for both transports, and for both ends of one.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    direct::{DirectRecv, DirectResponder, DirectSend},
    framed::{Framed, poll_quic},
};
use crate::wire::{
    ResponseHead, connect, framing,
    headers::{self, META_CONNECTOR, META_ORIGIN, META_RATE_LIMITED, RESPONSE_HEADERS, RESPONSE_META},
    hop,
};

/// The only error code on streams (protocol.md §3.4).
pub const CODE: quinn::VarInt = quinn::VarInt::from_u32(0);

/// A stream that broke.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Reading over QUIC.
    #[error("{0}")]
    QuicRead(#[from] quinn::ReadError),
    /// Writing over QUIC.
    #[error("{0}")]
    QuicWrite(#[from] quinn::WriteError),
    /// HTTP/2.
    #[error("{0}")]
    Http2(#[from] h2::Error),
    /// A body that a visitor sends us himself.
    #[error("{0}")]
    Visitor(#[from] hyper::Error),
    /// A visitor's own connection.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A body in frames that make no sense, or end too early.
    #[error("{0}")]
    Framing(#[from] framing::Error),
    /// The peer does not want the rest.
    #[error("the peer stopped listening")]
    Stopped,
    /// The stream was finished or reset before.
    #[error("the stream is closed")]
    Closed,
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, error)
    }
}

/// The receiving half. Dropping it unread tells the peer to stop sending.
#[derive(Debug)]
pub struct Recv {
    /// Bytes that came with the head.
    first: Bytes,
    inner: RecvInner,
}

#[derive(Debug)]
enum RecvInner {
    Direct(DirectRecv),
    Quic(quinn::RecvStream),
    Framed(Box<Framed>),
    Ended,
    Http2(h2::RecvStream),
}

impl Recv {
    /// A half that still has `first` to deliver.
    pub fn quic(first: Bytes, stream: quinn::RecvStream) -> Self {
        Self { first, inner: RecvInner::Quic(stream) }
    }

    /// A half whose bytes, `first` among them, are frames.
    pub fn framed(first: Bytes, stream: quinn::RecvStream) -> Self {
        Self { first: Bytes::new(), inner: RecvInner::Framed(Box::new(Framed::new(first, stream))) }
    }

    /// A half on which nothing is to come.
    pub fn ended() -> Self {
        Self { first: Bytes::new(), inner: RecvInner::Ended }
    }

    /// The receiving half of an HTTP/2 stream.
    pub fn http2(stream: h2::RecvStream) -> Self {
        Self { first: Bytes::new(), inner: RecvInner::Http2(stream) }
    }

    /// The half of a visitor who came without a tunnel.
    pub(super) fn direct(recv: DirectRecv) -> Self {
        Self { first: Bytes::new(), inner: RecvInner::Direct(recv) }
    }

    /// The next bytes, `None` at the end of the stream. Never empty. No copy.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.first))));
        }
        match &mut self.inner {
            RecvInner::Direct(direct) => direct.poll_chunk(cx),
            RecvInner::Quic(stream) => poll_quic(stream, cx),
            RecvInner::Framed(framed) => framed.poll_chunk(cx),
            RecvInner::Ended => Poll::Ready(None),
            RecvInner::Http2(stream) => loop {
                match ready!(stream.poll_data(cx)) {
                    Some(Ok(bytes)) => {
                        // Whoever polls holds at most this chunk, so its window is given back at once.
                        let _ = stream.flow_control().release_capacity(bytes.len());
                        if !bytes.is_empty() {
                            return Poll::Ready(Some(Ok(bytes)));
                        }
                    }
                    Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                    None => return Poll::Ready(None),
                }
            },
        }
    }

    /// The next bytes, `None` at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the peer reset the stream or the connection broke.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, StreamError> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await.transpose()
    }

    /// Trailers after the end of the data, without what has no business there; HTTP/2 has them, and framed bodies.
    ///
    /// # Errors
    ///
    /// When the stream broke.
    pub async fn trailers(&mut self) -> Result<Option<HeaderMap>, StreamError> {
        let trailers = match &mut self.inner {
            RecvInner::Quic(_) | RecvInner::Ended => None,
            RecvInner::Direct(direct) => direct.take_trailers(),
            RecvInner::Framed(framed) => framed.take_trailers(),
            RecvInner::Http2(stream) => std::future::poll_fn(|cx| stream.poll_trailers(cx)).await?,
        };
        Ok(trailers.map(hop::clean_trailers))
    }

    /// Whether nothing more can come.
    pub fn is_end(&self) -> bool {
        self.first.is_empty()
            && match &self.inner {
                RecvInner::Quic(_) | RecvInner::Framed(_) => false,
                RecvInner::Direct(direct) => direct.is_end(),
                RecvInner::Ended => true,
                RecvInner::Http2(stream) => stream.is_end_stream(),
            }
    }
}

impl AsyncRead for Recv {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            match ready!(self.poll_chunk(cx)) {
                Some(Ok(bytes)) => self.first = bytes,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..n]);
        self.first.advance(n);
        Poll::Ready(Ok(()))
    }
}

/// The sending half. Dropping it before [`Send::finish`] resets the stream: half an answer must not look whole.
#[derive(Debug)]
pub struct Send {
    inner: SendInner,
    open: bool,
    /// Whether what is written is a framed body whose end frame is still to come.
    framed: bool,
}

#[derive(Debug)]
enum SendInner {
    Direct(DirectSend),
    Quic(quinn::SendStream),
    Http2(h2::SendStream<Bytes>),
}

impl Send {
    /// The sending half of a QUIC stream.
    pub fn quic(stream: quinn::SendStream) -> Self {
        Self { inner: SendInner::Quic(stream), open: true, framed: false }
    }

    /// The sending half of an HTTP/2 stream.
    pub fn http2(stream: h2::SendStream<Bytes>) -> Self {
        Self { inner: SendInner::Http2(stream), open: true, framed: false }
    }

    /// The sending half of a visitor who came without a tunnel.
    pub(super) fn direct(send: DirectSend) -> Self {
        Self { inner: SendInner::Direct(send), open: true, framed: false }
    }

    /// What is written from now on is a framed body; only over QUIC, after the head.
    pub fn begin_frames(&mut self) {
        self.framed = self.open && matches!(self.inner, SendInner::Quic(_));
    }

    /// Sends bytes, waiting for the peer's window. With `last` the stream is finished along with them.
    ///
    /// # Errors
    ///
    /// When the peer does not want more or the connection broke.
    pub async fn write(&mut self, mut bytes: Bytes, last: bool) -> Result<(), StreamError> {
        if !self.open {
            return Err(StreamError::Closed);
        }
        match &mut self.inner {
            SendInner::Direct(direct) => {
                direct.write(bytes).await?;
                if last {
                    direct.end().await?;
                }
            }
            SendInner::Quic(stream) if self.framed => {
                while !bytes.is_empty() {
                    let payload = bytes.split_to(bytes.len().min(framing::MAX_PAYLOAD));
                    write_chunks(stream, &mut [framing::data(payload.len()), payload]).await?;
                }
                if last {
                    write_chunks(stream, &mut [framing::LAST]).await?;
                    self.framed = false;
                }
            }
            SendInner::Quic(stream) => {
                if !bytes.is_empty() {
                    write_chunks(stream, &mut [bytes]).await?;
                }
            }
            SendInner::Http2(stream) => {
                while !bytes.is_empty() {
                    stream.reserve_capacity(bytes.len());
                    let capacity = std::future::poll_fn(|cx| poll_capacity(stream, cx)).await?;
                    let piece = bytes.split_to(capacity.min(bytes.len()));
                    let end = last && bytes.is_empty();
                    stream.send_data(piece, end)?;
                    if end {
                        self.open = false;
                        return Ok(());
                    }
                }
            }
        }
        if last {
            self.finish();
        }
        Ok(())
    }

    /// Ends the stream in good order. Idempotent. A framed body is cut by it: that ends with [`Send::end`].
    pub fn finish(&mut self) {
        if self.framed {
            return self.reset();
        }
        if std::mem::take(&mut self.open) {
            match &mut self.inner {
                SendInner::Direct(direct) => direct.finish(),
                SendInner::Quic(stream) => {
                    let _ = stream.finish();
                }
                SendInner::Http2(stream) => {
                    let _ = stream.send_data(Bytes::new(), true);
                }
            }
        }
    }

    /// Ends a body in good order, framed or not.
    ///
    /// # Errors
    ///
    /// When nobody listens any more, and [`StreamError::Closed`] when it has ended.
    pub async fn end(&mut self) -> Result<(), StreamError> {
        self.write(Bytes::new(), true).await
    }

    /// Ends a body with trailers, where the stream has a place for them; else just ends it. What has no business in
    /// trailers stays behind.
    ///
    /// # Errors
    ///
    /// As [`Send::end`], and for trailers above 1 MiB; the stream is cut then.
    pub async fn end_with(&mut self, trailers: HeaderMap) -> Result<(), StreamError> {
        let trailers = hop::clean_trailers(trailers);
        match &mut self.inner {
            SendInner::Direct(direct) => direct.end_with(trailers).await?,
            SendInner::Quic(stream) if self.framed => {
                write_chunks(stream, &mut [framing::end(&trailers)?]).await?;
                self.framed = false;
            }
            SendInner::Http2(stream) if self.open && !trailers.is_empty() => {
                self.open = false;
                stream.send_trailers(trailers)?;
            }
            _ => {}
        }
        self.finish();
        Ok(())
    }

    /// Cuts the stream (RESET_STREAM 0, or RST_STREAM INTERNAL_ERROR; protocol.md §3.4, §6.6).
    pub fn reset(&mut self) {
        if std::mem::take(&mut self.open) {
            match &mut self.inner {
                SendInner::Direct(direct) => direct.reset(),
                SendInner::Quic(stream) => {
                    let _ = stream.reset(CODE);
                }
                SendInner::Http2(stream) => stream.send_reset(h2::Reason::INTERNAL_ERROR),
            }
        }
    }

    /// Completes when the peer does not want more, or the connection is gone.
    pub async fn stopped(&mut self) {
        match &mut self.inner {
            SendInner::Direct(direct) => direct.stopped().await,
            SendInner::Quic(stream) => {
                let _ = stream.stopped().await;
            }
            SendInner::Http2(stream) => {
                let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            }
        }
    }
}

async fn write_chunks(stream: &mut quinn::SendStream, chunks: &mut [Bytes]) -> Result<(), StreamError> {
    // A writer that waits for the connection's window is not woken by STOP_SENDING: watch both.
    let stopped = stream.stopped();
    tokio::select! {
        biased;
        written = stream.write_all_chunks(chunks) => Ok(written?),
        _ = stopped => Err(StreamError::Stopped),
    }
}

fn poll_capacity(stream: &mut h2::SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
    loop {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(0)) => {}
            Some(Ok(capacity)) => return Poll::Ready(Ok(capacity)),
            Some(Err(error)) => return Poll::Ready(Err(error.into())),
            None => return Poll::Ready(Err(StreamError::Closed)),
        }
    }
}

impl Drop for Send {
    fn drop(&mut self) {
        self.reset();
    }
}

impl AsyncWrite for Send {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.open {
            return Poll::Ready(Err(StreamError::Closed.into()));
        }
        if self.framed {
            // A frame must be written whole, which this cannot promise; bodies are written with `write`.
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        match &mut self.inner {
            // What is written there is written with `write`.
            SendInner::Direct(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
            SendInner::Quic(stream) => Pin::new(stream).poll_write(cx, buf).map_err(|e| StreamError::from(e).into()),
            SendInner::Http2(stream) => {
                if buf.is_empty() {
                    return Poll::Ready(Ok(0));
                }
                stream.reserve_capacity(buf.len());
                let n = ready!(poll_capacity(stream, cx)).map_err(io::Error::from)?.min(buf.len());
                stream
                    .send_data(Bytes::copy_from_slice(&buf[..n]), false)
                    .map_err(|error| io::Error::from(StreamError::from(error)))?;
                Poll::Ready(Ok(n))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

/// Takes the one answer of a stream. Dropping it unanswered resets the stream.
#[derive(Debug)]
pub struct Responder(ResponderInner);

#[derive(Debug)]
enum ResponderInner {
    Direct(DirectResponder),
    Quic {
        send: Send,
        /// Whether the edge takes a framed body.
        may_frame: bool,
    },
    Http2(h2::server::SendResponse<Bytes>),
}

impl Responder {
    /// For a data stream over QUIC. With `may_frame` the body of the answer is framed if it can have trailers.
    pub fn quic(stream: quinn::SendStream, may_frame: bool) -> Self {
        Self(ResponderInner::Quic { send: Send::quic(stream), may_frame })
    }

    /// For a visitor who came without a tunnel.
    pub(super) fn direct(direct: DirectResponder) -> Self {
        Self(ResponderInner::Direct(direct))
    }

    /// For a request over HTTP/2.
    pub fn http2(respond: h2::server::SendResponse<Bytes>) -> Self {
        Self(ResponderInner::Http2(respond))
    }

    /// Completes when nobody waits for the answer any more. Cancel-safe.
    pub async fn gone(&mut self) {
        match &mut self.0 {
            ResponderInner::Direct(direct) => direct.gone().await,
            ResponderInner::Quic { send, .. } => send.stopped().await,
            ResponderInner::Http2(respond) => {
                let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            }
        }
    }

    /// Sends the head of an HTTP answer; with `end` there is no body.
    ///
    /// Headers of the tunnel itself are taken out: a service must not speak for the connector.
    ///
    /// # Errors
    ///
    /// When nobody listens any more.
    pub async fn respond(self, mut head: ResponseHead, end: bool) -> Result<Send, StreamError> {
        if head.headers.keys().any(|name| headers::is_control(name.as_str())) {
            let control: Vec<_> = head.headers.keys().filter(|n| headers::is_control(n.as_str())).cloned().collect();
            for name in control {
                head.headers.remove(name);
            }
        }
        match self.0 {
            ResponderInner::Direct(direct) => direct.respond(head, end).await,
            ResponderInner::Quic { mut send, may_frame } => {
                if may_frame && !end && head.can_have_trailers() {
                    send.write(connect::encode_framed_response(&head), false).await?;
                    send.begin_frames();
                } else {
                    send.write(connect::encode_response(&head), end).await?;
                }
                Ok(send)
            }
            ResponderInner::Http2(respond) => {
                // There is no 101 in HTTP/2; the packed headers tell (§6.5).
                let status = if head.status == StatusCode::SWITCHING_PROTOCOLS { StatusCode::OK } else { head.status };
                let packed = headers::pack(head.headers.iter());
                let length = head.headers.remove(header::CONTENT_LENGTH);
                send_head(respond, status, Some(packed), META_ORIGIN, length, end)
            }
        }
    }

    /// Acknowledges a TCP stream.
    ///
    /// # Errors
    ///
    /// When nobody listens any more.
    pub async fn connected(self) -> Result<Send, StreamError> {
        match self.0 {
            // Bytes alone need no word in front.
            ResponderInner::Direct(_) => Err(StreamError::Closed),
            ResponderInner::Quic { mut send, .. } => {
                send.write(connect::encode_connected(), false).await?;
                Ok(send)
            }
            ResponderInner::Http2(respond) => {
                let packed = Some(HeaderValue::from_static(""));
                send_head(respond, StatusCode::OK, packed, META_ORIGIN, None, false)
            }
        }
    }

    /// Answers with a failure in the peer's own form (§3.6, §6.6): for TCP streams and what cannot be parsed.
    pub async fn fail(self, error: &str, rate_limited: bool) {
        match self.0 {
            // Dropped, and so cut.
            ResponderInner::Direct(_) => {}
            ResponderInner::Quic { mut send, .. } => {
                let _ = send.write(connect::encode_failure(error, rate_limited), true).await;
            }
            ResponderInner::Http2(respond) => {
                let meta = if rate_limited { META_RATE_LIMITED } else { META_CONNECTOR };
                let length = Some(HeaderValue::from_static("0"));
                let _ = send_head(respond, StatusCode::BAD_GATEWAY, None, meta, length, true);
            }
        }
    }

    /// A bare answer without any header of the tunnel: configuration and control streams over HTTP/2 (§6.4, §6.7).
    ///
    /// # Errors
    ///
    /// When nobody listens any more, and on QUIC, which has no such streams.
    pub fn bare(self, content_type: &'static str) -> Result<Send, StreamError> {
        match self.0 {
            ResponderInner::Direct(_) | ResponderInner::Quic { .. } => Err(StreamError::Closed),
            ResponderInner::Http2(mut respond) => {
                let mut response = http::Response::new(());
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
                Ok(Send::http2(respond.send_response(response, false)?))
            }
        }
    }
}

fn send_head(
    mut respond: h2::server::SendResponse<Bytes>,
    status: StatusCode,
    packed: Option<HeaderValue>,
    meta: HeaderValue,
    length: Option<HeaderValue>,
    end: bool,
) -> Result<Send, StreamError> {
    let mut response = http::Response::new(());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(packed) = packed {
        headers.insert(RESPONSE_HEADERS, packed);
    }
    headers.insert(RESPONSE_META, meta);
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    let stream = respond.send_response(response, end)?;
    Ok(Send { inner: SendInner::Http2(stream), open: !end, framed: false })
}
