//! What is sent to a service as the body of a request.

use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::transport::{Recv, StreamError};

/// What is sent to a service.
#[derive(Debug)]
pub enum RequestBody {
    /// Nothing.
    Empty,
    /// The visitor's bytes: exactly `remaining` of them, or until the end if that is unknown.
    Stream {
        /// Where they come from.
        recv: Recv,
        /// How many are still to come.
        remaining: Option<u64>,
    },
    /// A body of which a part was read for a service that then did not take the request.
    Again {
        /// That part.
        first: VecDeque<Bytes>,
        /// The rest.
        rest: Box<Self>,
    },
}

impl RequestBody {
    /// Puts what was read from it in front again.
    pub(super) fn unread(self, read: VecDeque<Bytes>) -> Self {
        if read.is_empty() { self } else { Self::Again { first: read, rest: Box::new(self) } }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let (recv, remaining) = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Again { first, rest } => {
                return match first.pop_front() {
                    Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                    None => Pin::new(rest.as_mut()).poll_frame(cx),
                };
            }
            Self::Stream { recv, remaining } => (recv, remaining),
        };
        if *remaining == Some(0) {
            return Poll::Ready(None);
        }
        match std::task::ready!(recv.poll_chunk(cx)) {
            Some(Ok(mut bytes)) => {
                if let Some(left) = remaining {
                    // More than was announced would be read as the next request.
                    bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= bytes.len() as u64;
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None if remaining.is_some() => Poll::Ready(Some(Err(StreamError::Closed))),
            None => {
                let trailers = pin!(recv.trailers());
                match std::task::ready!(trailers.poll(cx)) {
                    Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(of_visitor(trailers))))),
                    Ok(None) => Poll::Ready(None),
                    Err(error) => Poll::Ready(Some(Err(error))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Stream { remaining: Some(0), .. } => true,
            Self::Stream { .. } => false,
            Self::Again { first, rest } => first.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream { remaining: Some(length), .. } => SizeHint::with_exact(*length),
            Self::Stream { remaining: None, .. } => SizeHint::default(),
            Self::Again { first, rest } => {
                let read: u64 = first.iter().map(|bytes| bytes.len() as u64).sum();
                rest.size_hint().exact().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(read + rest))
            }
        }
    }
}

/// A visitor's trailers without what only an edge or a connector may say: some services merge trailers into heads.
fn of_visitor(mut trailers: HeaderMap) -> HeaderMap {
    let forged: Vec<_> = trailers.keys().filter(|name| name.as_str().starts_with("cf-")).cloned().collect();
    for name in forged {
        trailers.remove(name);
    }
    trailers
}
