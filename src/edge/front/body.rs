//! Bodies: a visitor's on its way to a connector, and what a visitor receives.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{Busy, head::strip_names_of_others};
use crate::{
    edge::session::InFlight,
    transport::{Recv, Send, StreamError},
};

/// A body that was read so far is kept up to here, in case its request was refused unseen and goes elsewhere.
const KEPT: usize = 16 << 10;
/// And in so many pieces at most: each holds on to the buffer that it was read into, which may be far larger.
const KEPT_CHUNKS: usize = 64;

/// A visitor's body, which can be sent again as long as what was read of it is still here.
#[derive(Debug)]
pub(super) struct Source {
    body: Incoming,
    read: Vec<Bytes>,
    bytes: usize,
    /// The next of `read` to send.
    at: usize,
    /// Whether more is kept: not once the answer began, or more came than is kept.
    keeping: bool,
    /// The visitor left in the middle, or sent what is no body.
    broken: bool,
}

/// A source that its sender and its request share; both are polled by one task.
pub(super) type Shared = Arc<Mutex<Source>>;

impl Source {
    pub(super) fn new(body: Incoming) -> Shared {
        Arc::new(Mutex::new(Self { body, read: Vec::new(), bytes: 0, at: 0, keeping: true, broken: false }))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(again) = self.read.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(again.clone()))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.broken |= matches!(frame, Some(Err(_)));
        if self.keeping
            && let Some(Ok(frame)) = &frame
        {
            match frame.data_ref() {
                Some(data) if self.bytes + data.len() <= KEPT && self.read.len() < KEPT_CHUNKS => {
                    self.bytes += data.len();
                    self.read.push(data.clone());
                    self.at = self.read.len();
                }
                _ => self.forget(),
            }
        }
        Poll::Ready(frame)
    }

    fn forget(&mut self) {
        self.keeping = false;
        self.read = Vec::new();
        self.at = 0;
    }

    /// Whether the visitor, and nobody behind him, spoiled the request.
    pub(super) fn is_broken(source: &Shared) -> bool {
        source.lock().unwrap_or_else(PoisonError::into_inner).broken
    }

    /// Goes back to the start, if that is still here.
    pub(super) fn rewind(source: &Shared) -> bool {
        let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
        source.at = 0;
        source.keeping
    }
}

/// Sends a visitor's body on; polled along with the answer, so that both directions flow in one task.
pub(super) struct Upload {
    sending: Pin<Box<dyn Future<Output = ()> + std::marker::Send>>,
    source: Shared,
}

impl Upload {
    pub(super) fn new(mut send: Send, source: Shared) -> Self {
        let body = source.clone();
        let next = move |cx: &mut Context<'_>| body.lock().unwrap_or_else(PoisonError::into_inner).poll(cx);
        let sending = Box::pin(async move {
            while let Some(frame) = std::future::poll_fn(&next).await {
                // A visitor who leaves in the middle resets the stream: dropping `send` does.
                let Ok(frame) = frame else { return };
                match frame.into_data() {
                    Ok(data) if !data.is_empty() => {
                        if send.write(data, false).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(frame) => {
                        if let Ok(mut trailers) = frame.into_trailers() {
                            strip_names_of_others(&mut trailers);
                            // An end that could not be said resets the stream.
                            let _ = send.end_with(trailers).await;
                            return;
                        }
                    }
                }
            }
            let _ = send.end().await;
        });
        Self { sending, source }
    }

    /// The answer began: the body is never sent again.
    pub(super) fn settle(&self) {
        self.source.lock().unwrap_or_else(PoisonError::into_inner).forget();
    }
}

pub(super) fn poll_upload(upload: &mut Option<Upload>, cx: &mut Context<'_>) {
    if let Some(running) = upload
        && running.sending.as_mut().poll(cx).is_ready()
    {
        *upload = None;
    }
}

/// What visitors receive.
pub(super) enum FrontBody {
    Text(Option<Bytes>),
    Stream(Box<Streamed>),
}

pub(super) struct Streamed {
    pub(super) recv: Recv,
    pub(super) upload: Option<Upload>,
    pub(super) length: Option<u64>,
    pub(super) ended: bool,
    pub(super) _kept: Option<Send>,
    pub(super) _in_flight: InFlight,
    pub(super) _busy: Busy,
}

impl Body for FrontBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let streamed = match self.get_mut() {
            Self::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Stream(streamed) => streamed,
        };
        if streamed.ended {
            return Poll::Ready(None);
        }
        poll_upload(&mut streamed.upload, cx);
        match ready!(streamed.recv.poll_chunk(cx)) {
            Some(Ok(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let mut trailers = std::pin::pin!(streamed.recv.trailers());
                let trailers = ready!(trailers.as_mut().poll(cx));
                streamed.ended = true;
                match trailers {
                    Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                    Ok(None) => Poll::Ready(None),
                    Err(error) => Poll::Ready(Some(Err(error))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Stream(streamed) => streamed.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Stream(streamed) => streamed.length.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
