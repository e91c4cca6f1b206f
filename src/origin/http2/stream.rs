//! One request over HTTP/2. Its body is sent by the task that waits for the answer, and copies it.

use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Request, Response, Version, header, request::Parts};
use http_body::{Body, Frame};

use super::{Place, Stream};
use crate::{
    metrics::Retry,
    origin::{
        Error,
        http::BoxedRequest,
        http1::is_repeatable,
        request_body::{BodyError, RequestBody},
    },
    tls::service::Failure,
};

/// How much of a request's body is remembered until the answer begins, so that it can be sent again. Chunks are shared
/// with what waits to be sent, not copied; gRPC calls are smaller.
const MOST_KEPT: usize = 64 << 10;
/// They mean one hop of HTTP/1.1, and are malformed here (RFC 9113 §8.2.2).
const OF_HTTP1: [HeaderName; 5] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TRANSFER_ENCODING,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A request without an answer.
#[derive(Debug)]
pub(in crate::origin) struct Unanswered {
    pub(in crate::origin) error: Error,
    /// The request, if it may be sent again.
    pub(in crate::origin) unsent: Option<BoxedRequest>,
    /// Why it may.
    pub(in crate::origin) why: Retry,
}

impl Unanswered {
    /// By a service that refused the handshake when the request was on its way already.
    fn refused(failure: Failure) -> Self {
        Self { error: Error::Tls(failure), unsent: None, why: Retry::Refused }
    }
}

impl Stream {
    /// Sends a request. `reused`: the connection has served before, so that it may be dead without our knowing.
    pub(in crate::origin) async fn send(
        self,
        request: BoxedRequest,
        reused: bool,
    ) -> Result<Response<H2Body>, Unanswered> {
        let Self { sender, mut place, turns, refusal, .. } = self;
        let (parts, body) = request.into_parts();
        let head = match head(parts.clone()) {
            Ok(head) => head,
            Err(error) => return Err(Unanswered { error, unsent: None, why: Retry::Stale }),
        };
        let end = body.is_end_stream();
        let repeatable = reused && is_repeatable(&parts.method, &body);
        place.take_turn(turns).await;
        let opened = match sender.ready().await {
            Ok(mut sender) => sender.send_request(head, end),
            Err(error) => Err(error),
        };
        let (mut response, stream) = match opened {
            Ok(opened) => opened,
            Err(_) if let Some(failure) = refusal.get() => return Err(Unanswered::refused(failure)),
            Err(error) => {
                // Nothing was sent. What is wrong with the request itself is wrong the second time.
                let again = error.is_go_away() || error.is_io();
                let unsent = again.then(|| Box::new(Request::from_parts(parts, body)));
                return Err(Unanswered { error: error.into(), unsent, why: Retry::Stale });
            }
        };
        let mut upload = Upload { body, stream, kept: Some(VecDeque::new()), size: 0, ended: false };
        if end {
            upload.end();
        }
        let answered = std::future::poll_fn(|cx| {
            if let Poll::Ready(Err(Cut::Body(error))) = upload.poll(cx) {
                return Poll::Ready(Err(Error::Body(error)));
            }
            Pin::new(&mut response).poll(cx).map_err(Error::Http2)
        })
        .await;
        let error = match answered {
            Ok(response) => {
                // From here on it cannot be sent again.
                upload.kept = None;
                return Ok(response.map(|recv| H2Body {
                    recv,
                    upload: Some(upload),
                    body_broke: None,
                    data_ended: false,
                    place,
                }));
            }
            Err(error) => error,
        };
        if let (Error::Http2(_), Some(failure)) = (&error, refusal.get()) {
            return Err(Unanswered::refused(failure));
        }
        let (again, why) = match &error {
            Error::Http2(error) if is_unprocessed(error) => (upload.into_body(), Retry::Refused),
            Error::Http2(error) if repeatable && error.is_io() => (Some(RequestBody::Empty), Retry::Stale),
            _ => (None, Retry::Stale),
        };
        let unsent = again.map(|body| Box::new(Request::from_parts(parts, body)));
        Err(Unanswered { error, unsent, why })
    }
}

/// Whether the peer promises that it did nothing (RFC 9113 §8.7): it refused the stream, or its GOAWAY names a lower
/// one as the last.
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)))
}

fn head(mut parts: Parts) -> Result<Request<()>, Error> {
    // In HTTP/2 the authority carries the host (RFC 9113 §8.3.1).
    let host = parts.headers.remove(header::HOST);
    let host = host.unwrap_or(HeaderValue::from_static("localhost"));
    let uri = http::Uri::builder().scheme("https").authority(host.as_bytes());
    let uri = match parts.uri.path_and_query().cloned() {
        Some(target) => uri.path_and_query(target),
        None => uri.path_and_query("/"),
    };
    parts.uri = uri.build().map_err(|_| Error::Authority(host))?;
    for name in OF_HTTP1 {
        parts.headers.remove(name);
    }
    parts.version = Version::HTTP_2;
    Ok(Request::from_parts(parts, ()))
}

/// A body on its way to the service.
#[derive(Debug)]
struct Upload {
    body: RequestBody,
    stream: SendStream<Bytes>,
    /// What was sent of it, while all of that is remembered.
    kept: Option<VecDeque<Bytes>>,
    size: usize,
    ended: bool,
}

enum Cut {
    /// The visitor's half broke, or said too much; the service was told.
    Body(BodyError),
    /// The service does not want the rest; its answer says why.
    Service,
}

impl Cut {
    fn of_body(self) -> Option<BodyError> {
        match self {
            Self::Body(error) => Some(error),
            Self::Service => None,
        }
    }
}

impl Upload {
    /// Sends on as long as there is room and there are bytes.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        while !self.ended {
            self.stream.reserve_capacity(1);
            if self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return self.give_up(),
                }
            }
            if self.stream.poll_reset(cx).is_ready() {
                return self.give_up();
            }
            let sent = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.keep(&data);
                        if self.body.is_end_stream() {
                            self.end();
                        }
                        if data.is_empty() && !self.ended { Ok(()) } else { self.stream.send_data(data, self.ended) }
                    }
                    Err(frame) => {
                        self.end();
                        self.kept = None;
                        self.stream.send_trailers(frame.into_trailers().unwrap_or_default())
                    }
                },
                Some(Err(error)) => {
                    self.end();
                    self.kept = None;
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(Cut::Body(error)));
                }
                None => {
                    self.end();
                    self.stream.send_data(Bytes::new(), true)
                }
            };
            if sent.is_err() {
                return self.give_up();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// All of it was read. The body goes, and with it who waits for the request to have left is told.
    fn end(&mut self) {
        self.ended = true;
        self.body = RequestBody::Empty;
    }

    /// What was not read stays: the request may be sent again.
    fn give_up(&mut self) -> Poll<Result<(), Cut>> {
        self.ended = true;
        Poll::Ready(Err(Cut::Service))
    }

    fn keep(&mut self, data: &Bytes) {
        self.size += data.len();
        if self.size > MOST_KEPT {
            self.kept = None;
        }
        if let Some(kept) = &mut self.kept {
            kept.push_back(data.clone());
        }
    }

    /// The body as it was, if no part of it is lost.
    fn into_body(self) -> Option<RequestBody> {
        let kept = self.kept?;
        Some(self.body.unread(kept))
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(in crate::origin) struct H2Body {
    recv: RecvStream,
    /// What is still being sent: both directions may run at once.
    upload: Option<Upload>,
    body_broke: Option<BodyError>,
    data_ended: bool,
    #[expect(dead_code, reason = "its drop is its use")]
    place: Place,
}

impl H2Body {
    pub(in crate::origin) fn is_end(&self) -> bool {
        self.recv.is_end_stream()
    }

    /// Sends on what is left of the request; for as long as nobody takes the answer.
    pub(in crate::origin) fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Some(upload) = &mut self.upload
            && let Poll::Ready(outcome) = upload.poll(cx)
        {
            self.upload = None;
            // Told with the next frame.
            self.body_broke = outcome.err().and_then(Cut::of_body);
        }
    }

    pub(in crate::origin) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.poll_upload(cx);
        if let Some(error) = self.body_broke.take() {
            return Poll::Ready(Some(Err(Error::Body(error))));
        }
        if !self.data_ended {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The next chunk is asked for when this one has left.
                    let _ = self.recv.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // The service has said everything and wants no more of the request (RFC 9113 §8.1).
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.data_ended = true,
            }
        }
        let trailers = pin!(self.recv.trailers());
        match ready!(trailers.poll(cx)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Code;

    #[test]
    fn a_host_that_is_no_authority_is_the_visitors_fault() {
        for (host, right) in [("web.test:81", true), ("a b", false), ("", false), ("a/b", false)] {
            let request = Request::builder().uri("/x?y").header(header::HOST, host).body(()).unwrap();
            match head(request.into_parts().0) {
                Ok(head) => assert!(right && *head.uri() == *"https://web.test:81/x?y", "{host}: {head:?}"),
                Err(error) => {
                    assert!(!right && error.code() == Code::RequestInvalid && !error.is_of_service(), "{host}")
                }
            }
        }
    }
}
