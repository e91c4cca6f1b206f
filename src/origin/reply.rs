//! What a service answered, over whichever version of HTTP.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::Frame;

use super::{Error, balance::InFlight, http1::Driven, http2::H2Body, io::OriginIo};

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
        /// Counts as in flight as long as it is held.
        in_flight: Option<InFlight>,
    },
}

/// The body of an answer.
#[derive(Debug)]
pub struct ReplyBody {
    over: Over,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
enum Over {
    Http1(Box<Driven>),
    Http2(Box<H2Body>),
}

impl ReplyBody {
    pub(super) fn http1(body: Driven) -> Self {
        Self { over: Over::Http1(Box::new(body)), in_flight: None }
    }

    pub(super) fn http2(body: H2Body) -> Self {
        Self { over: Over::Http2(Box::new(body)), in_flight: None }
    }

    /// Whether nothing is to come. A connection that became free is back in its pool then.
    pub fn is_end(&mut self) -> bool {
        match &mut self.over {
            Over::Http1(driven) => driven.is_end(),
            Over::Http2(body) => body.is_end(),
        }
    }

    /// The next bytes or trailers. Drives the connection, or what is left of the request.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.over {
            Over::Http1(driven) => driven.poll_frame(cx).map_err(Error::Http),
            Over::Http2(body) => body.poll_frame(cx),
        }
    }

    /// The next bytes or trailers, `None` at the end. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the service died in the middle.
    pub async fn frame(&mut self) -> Result<Option<Frame<Bytes>>, Error> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await.transpose()
    }
}

impl ReplyBody {
    /// Sends on what is left of the request while the visitor does not take the answer; never ends. Without it a
    /// visitor who reads when everything is written would wait for ever.
    pub async fn send_on(&mut self) {
        std::future::poll_fn(|cx| {
            match &mut self.over {
                Over::Http1(driven) => driven.poll_upload(cx),
                Over::Http2(body) => body.poll_upload(cx),
            }
            Poll::<()>::Pending
        })
        .await;
    }
}

impl Reply {
    /// Counts as in flight as long as the answer is held.
    pub(super) fn holding(mut self, guard: InFlight) -> Self {
        match &mut self {
            Self::Response(response) => response.body_mut().in_flight = Some(guard),
            Self::Upgraded { in_flight, .. } => *in_flight = Some(guard),
        }
        self
    }
}
