//! The receiving half of a framed body over QUIC (see [`framing`](crate::wire::framing)).

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use super::StreamError;
use crate::wire::framing::Decoder;

/// A QUIC stream whose bytes are frames.
#[derive(Debug)]
pub(super) struct Framed {
    stream: quinn::RecvStream,
    /// Received, not taken apart yet.
    input: Bytes,
    decoder: Decoder,
}

impl Framed {
    /// Frames that begin with `first`.
    pub(super) fn new(first: Bytes, stream: quinn::RecvStream) -> Self {
        Self { stream, input: first, decoder: Decoder::default() }
    }

    /// The next bytes of the body, `None` once it has ended and the stream with it. Never empty. No copy.
    pub(super) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        loop {
            match self.decoder.next(&mut self.input) {
                Ok(Some(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
            match ready!(poll_quic(&mut self.stream, cx)) {
                Some(Ok(bytes)) => self.input = bytes,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(self.decoder.ended().err().map(|error| Err(error.into()))),
            }
        }
    }

    /// The trailers, after the end.
    pub(super) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.decoder.take_trailers()
    }
}

/// The next bytes of a stream as they came.
pub(super) fn poll_quic(
    stream: &mut quinn::RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, StreamError>>> {
    // Keeps no state between polls, so a fresh future each time is as good as one kept.
    let read = std::pin::pin!(stream.read_chunk(usize::MAX, true));
    Poll::Ready(match ready!(read.poll(cx)) {
        Ok(Some(chunk)) => Some(Ok(chunk.bytes)),
        Ok(None) => None,
        Err(error) => Some(Err(error.into())),
    })
}
