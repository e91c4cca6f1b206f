//! One request: hostname → tunnel → connection → stream, and the answer back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Busy, Visitor,
    body::{FrontBody, Source, Streamed, Upload, poll_upload},
    caller, cut_upgraded,
    head::{Refusal, refusal_of, request_head},
};
use crate::{
    edge::{
        Shared,
        fate::Fate,
        registry::Registry,
        relay::{self, Outcome},
        session::{InFlight, OpenError, Opened, Session},
    },
    metrics::edge::Bound,
    transport::{Recv, Send},
    wire::{
        BodyLength, Head, ResponseHead, connect,
        connect::Answer,
        direct::{host_of, is_upgrade, strip_hop_by_hop, strip_port},
    },
};

/// The reason of an answer that the edge or a connector made up.
const ADIT_ERROR: HeaderName = HeaderName::from_static("adit-error");
/// Connections that one request is offered to, the first included.
const MOST_TRIES: usize = 4;
/// For all offers of one request, until one connection has taken it.
const OFFER_LIMIT: Duration = Duration::from_secs(10);
/// For one offer while there are other connections; the last one gets what is left.
const ONE_OFFER: Duration = Duration::from_secs(2);

/// Bytes of a connector's own words that are worth a line in the log.
const MOST_WORDS: usize = 1 << 10;

const NO_CONNECTION: Refusal = (StatusCode::SERVICE_UNAVAILABLE, "no-connection");
const CONNECTOR_FAILED: Refusal = (StatusCode::BAD_GATEWAY, "connector-failed");

/// Answers a request, whatever happens.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    visitor: &Arc<Visitor>,
    request: Request<Incoming>,
) -> Response<FrontBody> {
    let in_http1 = request.version() < Version::HTTP_2;
    let mut nonsense = false;
    let mut response = match exchange(shared, visitor, request).await {
        Ok(response) => response,
        Err((status, code)) => {
            nonsense = matches!(status, StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED);
            shared.metrics.refused(code);
            refusal(status, code)
        }
    };
    shared.metrics.answered(response.status());
    let draining = shared.tasks.draining().is_cancelled() && response.status() != StatusCode::SWITCHING_PROTOCOLS;
    // Told while draining, so that nobody sends a request into a connection that is about to be closed; and where a
    // request made no sense or was a CONNECT, since nobody knows what the bytes behind it are.
    if in_http1 && (draining || nonsense) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An answer of the edge itself.
fn refusal(status: StatusCode, code: &'static str) -> Response<FrontBody> {
    let mut response = Response::new(FrontBody::Text(Some(Bytes::from(format!("{code}\n")))));
    *response.status_mut() = status;
    response.headers_mut().insert(ADIT_ERROR, HeaderValue::from_static(code));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

async fn exchange(
    shared: &Arc<Shared>,
    visitor: &Arc<Visitor>,
    mut request: Request<Incoming>,
) -> Result<Response<FrontBody>, Refusal> {
    let Some(busy) = Busy::enter(shared, visitor) else {
        shared.metrics.overloaded(Bound::Requests);
        return Err((StatusCode::SERVICE_UNAVAILABLE, "overloaded"));
    };
    let host = host_of(&request).map_err(refusal_of)?;
    let name = strip_port(&host);
    let tunnels = shared.tunnels.borrow().for_host(name);
    if tunnels.is_empty() {
        return Err((StatusCode::NOT_FOUND, "hostname-unknown"));
    }
    let certificate = caller::certificate(shared, visitor, name)?;
    let over_h2 = request.version() == Version::HTTP_2;
    let upgrade = is_upgrade(&request, over_h2).map_err(refusal_of)?;
    let upgraded = upgrade.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let head = request_head(parts, &body, &host, upgrade, visitor, certificate).map_err(refusal_of)?;
    let method = head.method.clone();
    let empty = matches!(head.body, BodyLength::None | BodyLength::Known(0));
    let source = (!upgrade && head.body != BodyLength::None).then(|| Source::new(body));
    let repeatable = !upgrade && empty && is_idempotent(&method);
    let offer = Offer { shared, tunnels: &tunnels, host: name, repeatable };
    let taken = offer.make(&Head::Request(head), source).await?;
    let Taken { in_flight, head, recv, upload, mut kept } = taken;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(upgraded), Some(send)) = (upgraded, kept.take()) else { return Err(CONNECTOR_FAILED) };
        shared.tasks.spawn(async move {
            let _counted = (in_flight, busy);
            if let Ok(io) = upgraded.await
                && let Outcome::Cut(io) = relay::splice(TokioIo::new(io), send, recv, relay::Ends::Together).await
            {
                cut_upgraded(io.into_inner());
            }
        });
        return Ok(switching(head, over_h2));
    }
    let ResponseHead { status, mut headers } = head;
    strip_hop_by_hop(&mut headers);
    let length = connect::content_length(&headers).ok().flatten();
    let bodiless = method == Method::HEAD || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let body = if bodiless || length == Some(0) || recv.is_end() {
        FrontBody::Text(None)
    } else {
        let counted = Streamed { recv, upload, length, ended: false, _kept: kept, _in_flight: in_flight, _busy: busy };
        FrontBody::Stream(Box::new(counted))
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// What may be done twice as well as once, and has no body here (RFC 9110 §9.2.2).
fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE].contains(method)
}

/// A request that looks for a connection that takes it.
struct Offer<'a> {
    shared: &'a Arc<Shared>,
    tunnels: &'a [Uuid],
    host: &'a str,
    /// Whether it may be sent again although it may have been done.
    repeatable: bool,
}

/// A request that got the head of its answer.
struct Taken {
    in_flight: InFlight,
    head: ResponseHead,
    recv: Recv,
    /// The rest of the visitor's body.
    upload: Option<Upload>,
    /// The sending half, where there is no body.
    kept: Option<Send>,
}

impl Offer<'_> {
    /// Offers the request to one connection after the other, each at most once. Nobody waits for a connection to come.
    async fn make(&self, head: &Head, source: Option<super::body::Shared>) -> Result<Taken, Refusal> {
        let deadline = Instant::now() + OFFER_LIMIT;
        let mut tried: Vec<Arc<Session>> = Vec::new();
        // The truth when the only connections there were are gone: nobody was asked.
        let mut refusal = NO_CONNECTION;
        while let Some(in_flight) = self.registry().pick(self.tunnels, &tried) {
            let session = in_flight.session().clone();
            let (error, fate) = match self.to_one(in_flight, head, source.as_ref(), deadline).await {
                Ok(taken) => return Ok(taken),
                Err(failure) => failure,
            };
            if source.as_ref().is_some_and(Source::is_broken) {
                return Err((StatusCode::BAD_REQUEST, "request-invalid"));
            }
            tracing::warn!(
                host = self.host, tunnel = %session.tunnel(), connector = %session.connector(), %error, ?fate,
                "a connector did not answer"
            );
            let may = match fate {
                Fate::Unsent => true,
                Fate::Unanswered => self.repeatable,
                Fate::Done => false,
            };
            let again = may && source.as_ref().is_none_or(Source::rewind);
            if fate != Fate::Unsent {
                refusal = CONNECTOR_FAILED;
            }
            tried.push(session);
            if !again || !self.shared.retry || tried.len() == MOST_TRIES || Instant::now() >= deadline {
                return Err(CONNECTOR_FAILED);
            }
            self.shared.metrics.retried();
        }
        Err(refusal)
    }

    fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    async fn to_one(
        &self,
        in_flight: InFlight,
        head: &Head,
        source: Option<&super::body::Shared>,
        deadline: Instant,
    ) -> Result<Taken, (OpenError, Fate)> {
        let others = self.tunnels.iter().map(|tunnel| self.registry().of(*tunnel).len()).sum::<usize>() > 1;
        let until = if others { deadline.min(Instant::now() + ONE_OFFER) } else { deadline };
        let opened = tokio::time::timeout_at(until, in_flight.session().open(head)).await;
        let Opened { send, answer } = opened.unwrap_or(Err(OpenError::NoStream)).map_err(|error| {
            let fate = error.fate_of_opening();
            (error, fate)
        })?;
        let (mut upload, kept) = match source {
            Some(source) => (Some(Upload::new(send, source.clone())), None),
            None => (None, Some(send)),
        };
        let mut answer = std::pin::pin!(answer.answer());
        let answered = std::future::poll_fn(|cx| {
            poll_upload(&mut upload, cx);
            answer.as_mut().poll(cx)
        });
        let failed = |error: String| (OpenError::Failed(error), Fate::Done);
        match answered.await {
            Ok((Answer::Response(head), recv)) => {
                if let Some(upload) = &upload {
                    upload.settle();
                }
                Ok(Taken { in_flight, head, recv, upload, kept })
            }
            Ok((Answer::Connected, _)) => Err(failed("an acknowledgement instead of an answer".into())),
            Ok((Answer::Failed { error, .. }, _)) => Err(failed(shortened(error))),
            Err(error) => {
                let fate = error.fate_of_waiting();
                Err((error, fate))
            }
        }
    }
}

/// A connector may say up to 4 MiB; nobody reads as much in a log.
fn shortened(mut error: String) -> String {
    if error.len() > MOST_WORDS {
        let end = (0..=MOST_WORDS).rev().find(|end| error.is_char_boundary(*end)).unwrap_or(0);
        error.truncate(end);
        error.push_str(" ...");
    }
    error
}

fn switching(head: ResponseHead, over_h2: bool) -> Response<FrontBody> {
    let mut response = Response::new(FrontBody::Text(None));
    let mut headers = head.headers;
    if over_h2 {
        // RFC 8441 §5: 200, and no key to answer.
        for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
            headers.remove(name);
        }
    } else {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connectors_long_words_are_cut_between_characters() {
        assert_eq!(shortened("short".into()), "short");
        let long = shortened(format!("x{}", "ö".repeat(MOST_WORDS)));
        assert_eq!((long.len(), long.ends_with("ö ...")), (MOST_WORDS - 1 + 4, true));
    }
}
