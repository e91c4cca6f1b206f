//! Streams of visitors who come by HTTP or TLS themselves, without a tunnel: the same halves and the one answer, over a
//! connection that hyper or nobody drives.

use std::{
    fmt, io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::{mpsc, oneshot},
};
use tokio_rustls::server::TlsStream;

use super::{Recv, Responder, Send, StreamError};
use crate::wire::{ResponseHead, connect};

/// One read of a visitor's connection.
const READ: usize = 16 << 10;

/// An answer on its way to a visitor.
#[derive(Debug)]
pub struct Answer {
    /// Its head; 101 stands for an accepted WebSocket in every version of HTTP.
    pub head: ResponseHead,
    /// What follows.
    pub body: AnswerBody,
}

/// The halves of a request that hyper read, and the place where its answer appears; nothing, if none is given.
pub fn request(body: Incoming) -> (Responder, Recv, oneshot::Receiver<Answer>) {
    let (answer, answered) = oneshot::channel();
    let recv = if body.is_end_stream() { Recv::ended() } else { Recv::direct(DirectRecv::Body(Box::new(body), None)) };
    (Responder::direct(DirectResponder { answer, upgrade: None }), recv, answered)
}

/// The same for a request that wants to be a WebSocket.
pub fn upgrade(on: OnUpgrade) -> (Responder, Recv, oneshot::Receiver<Answer>) {
    let (answer, answered) = oneshot::channel();
    let (half, halved) = oneshot::channel();
    let upgrade = Some((on, half));
    let recv = Recv::direct(DirectRecv::Upgrading(halved));
    (Responder::direct(DirectResponder { answer, upgrade }), recv, answered)
}

/// The halves of a visitor's own TLS connection.
pub fn halves(tls: TlsStream<TcpStream>) -> (Send, Recv) {
    let half = Half::new(Io::Tls(Box::new(tls)));
    (Send::direct(DirectSend::Io(half.clone())), Recv::direct(DirectRecv::Io(half, BytesMut::new())))
}

/// A visitor's connection, apart from HTTP.
enum Io {
    Tls(Box<TlsStream<TcpStream>>),
    /// One stream of an HTTP/2 connection.
    Upgraded(TokioIo<Upgraded>),
}

/// What hyper read behind the head comes back with it.
fn taken_back(upgraded: Upgraded) -> (Io, Bytes) {
    match upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>() {
        Ok(parts) => (Io::Tls(Box::new(parts.io.into_inner())), parts.read_buf),
        Err(upgraded) => (Io::Upgraded(TokioIo::new(upgraded)), Bytes::new()),
    }
}

/// Both directions of one connection share it, and are polled by one task.
#[derive(Clone)]
pub(super) struct Half(Arc<Mutex<Io>>);

impl fmt::Debug for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Half")
    }
}

macro_rules! each {
    ($half:expr, $io:ident => $call:expr) => {
        match &mut *$half.lock() {
            Io::Tls($io) => {
                let $io = Pin::new($io.as_mut());
                $call
            }
            Io::Upgraded($io) => {
                let $io = Pin::new($io);
                $call
            }
        }
    };
}

impl Half {
    fn new(io: Io) -> Self {
        Self(Arc::new(Mutex::new(io)))
    }

    fn lock(&self) -> MutexGuard<'_, Io> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of the connection ends in a reset: an end in good order would make half a transfer look whole. Of
    /// an HTTP/2 connection nothing more than the stream could be cut, so there it just ends.
    fn cut(&self) {
        if let Io::Tls(tls) = &*self.lock() {
            let _ = SockRef::from(tls.get_ref().0).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Half {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }
}

/// The visitor's direction.
#[derive(Debug)]
pub(super) enum DirectRecv {
    /// A body that hyper reads, and its trailers once they came.
    Body(Box<Incoming>, Option<Box<HeaderMap>>),
    Io(Half, BytesMut),
    /// Becomes `Io` once hyper is done with the connection; with what it had read already.
    Upgrading(oneshot::Receiver<(Half, Bytes)>),
}

impl DirectRecv {
    pub(super) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        loop {
            match self {
                Self::Body(body, trailers) => match ready!(Pin::new(body.as_mut()).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) if !data.is_empty() => return Poll::Ready(Some(Ok(data))),
                        Ok(_) => {}
                        Err(frame) => *trailers = frame.into_trailers().ok().map(Box::new),
                    },
                    Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                    None => return Poll::Ready(None),
                },
                Self::Io(half, buffer) => {
                    buffer.reserve(READ);
                    // Holds nothing between two polls.
                    let read = ready!(pin!(half.read_buf(buffer)).poll(cx));
                    return Poll::Ready(match read {
                        Ok(0) => None,
                        Ok(_) => Some(Ok(buffer.split().freeze())),
                        Err(error) => Some(Err(error.into())),
                    });
                }
                Self::Upgrading(halved) => {
                    let Ok((half, first)) = ready!(Pin::new(halved).poll(cx)) else {
                        return Poll::Ready(Some(Err(StreamError::Closed)));
                    };
                    *self = Self::Io(half, BytesMut::new());
                    if !first.is_empty() {
                        return Poll::Ready(Some(Ok(first)));
                    }
                }
            }
        }
    }

    pub(super) fn take_trailers(&mut self) -> Option<HeaderMap> {
        match self {
            Self::Body(_, trailers) => trailers.take().map(|trailers| *trailers),
            Self::Io(..) | Self::Upgrading(_) => None,
        }
    }

    pub(super) fn is_end(&self) -> bool {
        matches!(self, Self::Body(body, None) if body.is_end_stream())
    }
}

#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// The visitor's answer, or what follows the head of a WebSocket.
#[derive(Debug)]
pub(super) enum DirectSend {
    /// Two pieces are on their way at most: one here, one with hyper.
    Body(mpsc::Sender<Piece>, Arc<AtomicBool>),
    Io(Half),
}

impl DirectSend {
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        if bytes.is_empty() {
            return Ok(());
        }
        match self {
            Self::Body(pieces, _) => pieces.send(Piece::Data(bytes)).await.map_err(|_| StreamError::Stopped),
            Self::Io(half) => {
                half.write_all(&bytes).await?;
                // TLS takes bytes before the socket does.
                Ok(half.flush().await?)
            }
        }
    }

    /// In good order, as far as that can be said without waiting.
    pub(super) fn finish(&mut self) {
        match self {
            Self::Body(_, ended) => ended.store(true, Ordering::Release),
            Self::Io(half) => {
                let _ = half.shutdown().now_or_never();
            }
        }
    }

    pub(super) async fn end(&mut self) -> Result<(), StreamError> {
        match self {
            Self::Body(_, ended) => ended.store(true, Ordering::Release),
            Self::Io(half) => half.shutdown().await?,
        }
        Ok(())
    }

    pub(super) async fn end_with(&mut self, trailers: HeaderMap) -> Result<(), StreamError> {
        if let Self::Body(pieces, _) = self
            && !trailers.is_empty()
        {
            pieces.send(Piece::Trailers(trailers)).await.map_err(|_| StreamError::Stopped)?;
        }
        self.end().await
    }

    pub(super) fn reset(&mut self) {
        if let Self::Io(half) = self {
            half.cut();
        }
    }

    /// Over a connection of its own there is no such word but its end, which whoever reads sees.
    pub(super) async fn stopped(&self) {
        match self {
            Self::Body(pieces, _) => pieces.closed().await,
            Self::Io(_) => std::future::pending().await,
        }
    }
}

/// The body of an answer: what is written to its [`Send`], as it comes. A [`Send`] that is dropped in the middle cuts it.
#[derive(Debug)]
pub struct AnswerBody(Option<Pieces>);

#[derive(Debug)]
struct Pieces {
    pieces: mpsc::Receiver<Piece>,
    ended: Arc<AtomicBool>,
    length: Option<u64>,
    /// The cut was seen once.
    cut: bool,
}

impl AnswerBody {
    /// Nothing.
    pub fn empty() -> Self {
        Self(None)
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let piece = ready!(body.pieces.poll_recv(cx));
        let cut = piece.is_none() && !body.ended.load(Ordering::Acquire);
        if cut && !std::mem::replace(&mut body.cut, true) {
            // hyper drops an HTTP/1.1 connection at once, with what it has not flushed: it gets a turn first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let (Some(Piece::Data(data)), Some(length)) = (&piece, &mut body.length) {
            *length = length.saturating_sub(data.len() as u64);
        }
        Poll::Ready(match piece {
            Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            None => {
                self.0 = None;
                cut.then_some(Err(StreamError::Closed))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.0.as_ref().map_or(Some(0), |body| body.length);
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Where the one answer goes.
#[derive(Debug)]
pub(super) struct DirectResponder {
    answer: oneshot::Sender<Answer>,
    upgrade: Option<(OnUpgrade, oneshot::Sender<(Half, Bytes)>)>,
}

impl DirectResponder {
    /// Completes when nobody waits for the answer any more.
    pub(super) async fn gone(&mut self) {
        self.answer.closed().await;
    }

    pub(super) async fn respond(self, head: ResponseHead, end: bool) -> Result<Send, StreamError> {
        let upgraded = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let (pieces, received) = mpsc::channel(1);
        let ended = Arc::new(AtomicBool::new(end));
        let body = if end || upgraded {
            AnswerBody::empty()
        } else {
            let length = connect::content_length(&head.headers).ok().flatten();
            AnswerBody(Some(Pieces { pieces: received, ended: ended.clone(), length, cut: false }))
        };
        self.answer.send(Answer { head, body }).map_err(|_| StreamError::Stopped)?;
        if !upgraded {
            return Ok(Send::direct(DirectSend::Body(pieces, ended)));
        }
        let (on, halved) = self.upgrade.ok_or(StreamError::Closed)?;
        let (io, first) = taken_back(on.await?);
        let half = Half::new(io);
        // Nobody reads the visitor's direction: then there is no need for it.
        let _ = halved.send((half.clone(), first));
        Ok(Send::direct(DirectSend::Io(half)))
    }
}
