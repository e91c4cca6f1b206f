//! The body of a request on its way to a service: the visitor's half of a stream.

use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::watch;

use crate::{
    callers::families::Families,
    transport::{Recv, StreamError},
};

/// What is sent to a service.
#[derive(Debug)]
pub enum RequestBody {
    /// Nothing.
    Empty,
    /// Nothing, and somebody waits to hear that the request has left.
    Watched(watch::Sender<Upload>),
    /// The visitor's bytes: exactly `remaining` of them, or until the end if that is unknown.
    Stream {
        /// Where they come from.
        recv: Recv,
        /// How many are still to come.
        remaining: Option<u64>,
        /// How many may still come, if their number is unknown.
        allowed: u64,
        /// Headers that no trailers may say either.
        families: Option<Arc<Families>>,
        /// Dropped with the body, when all of it has been handed to the connection.
        upload: watch::Sender<Upload>,
    },
    /// A body of which a part was read for a service that then did not take the request.
    Again {
        /// That part.
        first: VecDeque<Bytes>,
        /// The rest.
        rest: Box<Self>,
    },
}

/// How the sending of a request's body goes. Told beside the errors of the exchange: over HTTP/2 these do not name
/// the body as their cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upload {
    /// Nothing is known to be wrong.
    #[default]
    Fine,
    /// The visitor's half of the stream broke.
    Broken,
    /// More came than is allowed.
    TooLong,
}

/// Tells how the sending of a body goes.
#[derive(Clone, Debug, Default)]
pub struct Told(Option<watch::Receiver<Upload>>);

impl Told {
    /// How it went so far.
    pub fn upload(&self) -> Upload {
        self.0.as_ref().map(|told| *told.borrow()).unwrap_or_default()
    }

    /// Completes when the whole request has been handed to the service's connection, or will never be.
    pub async fn left(self) {
        if let Some(mut told) = self.0 {
            while told.changed().await.is_ok() {}
        }
    }
}

/// Why a request's body ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The visitor's half of the stream broke.
    #[error("{0}")]
    Visitor(#[from] StreamError),
    /// More came than is allowed.
    #[error("the request's body is larger than maxBodyBytes")]
    TooLong,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Self::Again { first, rest } = this {
            return match first.pop_front() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Pin::new(rest.as_mut()).poll_frame(cx),
            };
        }
        let frame = std::task::ready!(this.poll_visitor(cx));
        if let (Some(Err(error)), Self::Stream { upload, .. }) = (&frame, this) {
            let fault = if matches!(error, BodyError::TooLong) { Upload::TooLong } else { Upload::Broken };
            upload.send_replace(fault);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Watched(_) | Self::Stream { remaining: Some(0), .. } => true,
            Self::Stream { .. } => false,
            Self::Again { first, rest } => first.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Watched(_) => SizeHint::with_exact(0),
            Self::Stream { remaining: Some(length), .. } => SizeHint::with_exact(*length),
            Self::Stream { remaining: None, .. } => SizeHint::default(),
            Self::Again { first, rest } => {
                let read: u64 = first.iter().map(|bytes| bytes.len() as u64).sum();
                rest.size_hint().exact().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(read + rest))
            }
        }
    }
}

impl RequestBody {
    /// No body; `watched` if somebody waits for the request to leave.
    pub fn empty(watched: bool) -> (Self, Told) {
        if !watched {
            return (Self::Empty, Told::default());
        }
        let (upload, told) = watch::channel(Upload::Fine);
        (Self::Watched(upload), Told(Some(told)))
    }

    /// The visitor's bytes: so many of them, or else at most `allowed`. What speaks of certificates where visitors must
    /// not is taken out of their trailers, too.
    pub fn stream(recv: Recv, remaining: Option<u64>, allowed: u64, families: Option<Arc<Families>>) -> (Self, Told) {
        let (upload, told) = watch::channel(Upload::Fine);
        (Self::Stream { recv, remaining, allowed, families, upload }, Told(Some(told)))
    }

    /// Puts what was read from it in front again.
    pub fn unread(self, read: VecDeque<Bytes>) -> Self {
        if read.is_empty() { self } else { Self::Again { first: read, rest: Box::new(self) } }
    }

    fn poll_visitor(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self::Stream { recv, remaining, allowed, families, .. } = self else { return Poll::Ready(None) };
        if *remaining == Some(0) {
            return Poll::Ready(None);
        }
        match std::task::ready!(recv.poll_chunk(cx)) {
            Some(Ok(mut bytes)) => {
                if let Some(left) = remaining {
                    // More than was announced would be read as the next request.
                    bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= bytes.len() as u64;
                } else {
                    let Some(left) = allowed.checked_sub(bytes.len() as u64) else {
                        return Poll::Ready(Some(Err(BodyError::TooLong)));
                    };
                    *allowed = left;
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            None if remaining.is_some() => Poll::Ready(Some(Err(StreamError::Closed.into()))),
            None => {
                let trailers = pin!(recv.trailers());
                match std::task::ready!(trailers.poll(cx)) {
                    Ok(Some(trailers)) => {
                        Poll::Ready(Some(Ok(Frame::trailers(of_visitor(trailers, families.as_deref())))))
                    }
                    Ok(None) => Poll::Ready(None),
                    Err(error) => Poll::Ready(Some(Err(error.into()))),
                }
            }
        }
    }
}

/// Whether a field tells of the visitor's address: `Forwarded`, `X-Forwarded`, `X-Forwarded-*` and `X-Real-IP`. To many
/// services `_` and `-` are one, so both spellings count.
pub fn is_of_address(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded")
}

/// A visitor's trailers without what only an edge or a connector may say: some services merge trailers into heads.
fn of_visitor(mut trailers: HeaderMap, families: Option<&Families>) -> HeaderMap {
    if let Some(families) = families {
        families.strip(&mut trailers);
    }
    let forged = |name: &&HeaderName| is_of_address(name) || name.as_str().replace('_', "-").starts_with("cf-");
    let forged: Vec<_> = trailers.keys().filter(forged).cloned().collect();
    for name in forged {
        trailers.remove(name);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_say_nothing_that_only_an_edge_may_say_in_any_spelling() {
        let mut trailers = HeaderMap::new();
        for name in [
            "cf-ray",
            "cf_connecting_ip",
            "x-forwarded-for",
            "x_forwarded-host",
            "x-forwarded",
            "x-real-ip",
            "x_real_ip",
            "forwarded",
            "x-sum",
            "cfg",
        ] {
            trailers.insert(HeaderName::from_static(name), http::HeaderValue::from_static("1"));
        }
        trailers.insert("client-cert", http::HeaderValue::from_static("1"));
        for (families, expected) in
            [(None, &["cfg", "client-cert", "x-sum"][..]), (Some(&Families::default()), &["cfg", "x-sum"])]
        {
            let left = of_visitor(trailers.clone(), families);
            let mut left: Vec<_> = left.keys().map(HeaderName::as_str).collect();
            left.sort_unstable();
            assert_eq!(left, expected);
        }
    }
}
