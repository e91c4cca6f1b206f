//! A request to an HTTP service and its answer back.

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use bytes::Bytes;

use super::{
    Granted, Way,
    forwarded::{self, X_FORWARDED_HOST},
    limits::Timer,
    record::Record,
    refuse, websocket,
};
use crate::{
    code::{ADIT_ERROR, Code},
    config::Forwarded,
    origin::{
        Error,
        http::{Reply, ReplyBody},
        proxy_protocol::Source,
        request_body::{BodyError, RequestBody, Told, Upload},
        services::HttpServices,
    },
    telemetry::Chain,
    transport::{Recv, Responder, Send, StreamError},
    wire::{BodyLength, RequestHead, ResponseHead, hop},
};

/// What there was not in time, when the whole request took too long.
const REQUEST_TIMEOUT: &str = "end of the request (requestTimeout)";

/// The longest word of a guard that is passed on.
const LONGEST_CODE: usize = 64;

/// A visitor must not take away what decides about the body or the host by naming it in `Connection`.
const KEPT: [HeaderName; 3] = [header::CONTENT_LENGTH, header::HOST, header::CONTENT_TYPE];

pub(super) async fn forward(
    granted: &Granted<'_>,
    origin: &HttpServices,
    record: &mut Record<'_>,
    mut head: RequestHead,
    mut responder: Responder,
    mut recv: Recv,
) {
    if head.method == Method::CONNECT {
        return refuse(record, responder, Code::RequestInvalid).await;
    }
    let route = granted.route;
    let limits = &route.limiter.limits;
    let mut overdue = Timer::start(limits.request_timeout);
    let mut first = Bytes::new();
    if is_doubtful(&head) {
        let begun = tokio::select! {
            biased;
            begun = begin(&mut recv) => begun,
            () = responder.gone() => return record.visitor_left(),
            () = &mut overdue => {
                record.because(Error::TimedOut(REQUEST_TIMEOUT));
                return refuse(record, responder, Code::OriginTimeout).await;
            }
        };
        match begun {
            Ok(Some(bytes)) => first = bytes,
            Ok(None) => head.body = BodyLength::None,
            Err(_) => return record.visitor_left(),
        }
    }
    if route.no_chunks && head.body == BodyLength::Unknown {
        // Without chunks and without a length the body would be read as the next request.
        return refuse(record, responder, Code::LengthRequired).await;
    }
    let most = limits.max_body_bytes.unwrap_or(u64::MAX);
    if matches!(head.body, BodyLength::Known(length) if length > most) {
        return refuse(record, responder, Code::BodyTooLarge).await;
    }
    let websocket = head.websocket;
    let is_head = head.method == Method::HEAD;
    let host = route.host_header.clone().unwrap_or_else(|| head.host.clone());
    let asked = host.clone();
    // The visitor's half of a WebSocket is not a body.
    let empty = || RequestBody::empty(limits.header_timeout.is_some());
    let families = || granted.families.cloned();
    let ((body, told), kept) = match head.body {
        _ if websocket => (empty(), Some(recv)),
        BodyLength::None | BodyLength::Known(0) => (empty(), None),
        BodyLength::Known(length) => {
            record.received = length;
            (RequestBody::stream(recv, Some(length), length, families()), None)
        }
        BodyLength::Unknown => {
            let Some(left) = most.checked_sub(first.len() as u64) else {
                return refuse(record, responder, Code::BodyTooLarge).await;
            };
            let (body, told) = RequestBody::stream(recv, None, left, families());
            let read = (!first.is_empty()).then_some(first);
            ((body.unread(read.into_iter().collect()), told), None)
        }
    };
    let request = Box::new(to_service(head, host, body, granted, origin.may_speak_h2()));
    let reply = {
        let late = Timer::after_request(limits.header_timeout, told.clone());
        let sending = origin.send(request, asked.to_str().unwrap_or_default(), websocket, late);
        tokio::select! {
            biased;
            reply = sending => reply,
            () = responder.gone() => {
                record.visitor_left();
                return;
            }
            () = &mut overdue => Err(Error::TimedOut(REQUEST_TIMEOUT)),
        }
    };
    match reply {
        Ok(Reply::Response(response)) if response.status().is_informational() => {
            record.because("an upgrade that nobody asked for");
            refuse(record, responder, Code::OriginProtocol).await;
        }
        Ok(Reply::Response(response)) => {
            let (parts, body) = response.into_parts();
            let head = to_visitor(parts.status, parts.headers, granted.way);
            let answering = answer(record, head, body, is_head, responder, told);
            tokio::select! {
                biased;
                () = answering => return,
                () = &mut overdue => {}
            }
            // The stream was reset when what sends the answer was dropped.
            record.cut(Code::OriginTimeout, Error::TimedOut(REQUEST_TIMEOUT));
        }
        Ok(Reply::Upgraded { head, io, first, in_flight: _in_flight }) => {
            let (parts, ()) = head.into_parts();
            record.status = parts.status;
            let Some(recv) = kept else { return };
            let send = responder.respond(upgraded(parts.headers, granted.way), false).await;
            let Ok(send) = send else { return record.visitor_left() };
            let ending = websocket::Ending { draining: &granted.proxy.draining, leave: &granted.leave };
            let copied = Box::pin(websocket::pass(io, first, send, recv, ending)).await;
            record.sent = copied.down;
            record.received = copied.up;
        }
        Err(error) => {
            match told.upload() {
                // The visitor's half broke while it was being sent on: nobody is left to be told.
                Upload::Broken => record.visitor_left(),
                Upload::TooLong => refuse(record, responder, Code::BodyTooLarge).await,
                Upload::Fine => {
                    record.because(Chain(&error));
                    refuse(record, responder, error.code()).await;
                }
            }
        }
    }
}

/// Whether there may be a body although the method hardly ever has one and nothing but the open stream says so.
fn is_doubtful(head: &RequestHead) -> bool {
    head.body == BodyLength::Unknown && !head.websocket && matches!(head.method, Method::GET | Method::HEAD)
}

/// The first bytes of a body, `None` if there are none.
async fn begin(recv: &mut Recv) -> Result<Option<Bytes>, StreamError> {
    loop {
        match recv.chunk().await {
            Ok(Some(bytes)) if bytes.is_empty() => {}
            begun => return begun,
        }
    }
}

fn to_service(
    head: RequestHead,
    host: HeaderValue,
    body: RequestBody,
    granted: &Granted<'_>,
    may_speak_h2: bool,
) -> Request<RequestBody> {
    let Granted { proxy, route, way, permit, .. } = granted;
    let RequestHead { websocket, method, host: visited, target, mut headers, body: length } = head;
    let trailers =
        may_speak_h2 && hop::tokens(&headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    hop::strip(&mut headers, &KEPT);
    headers.remove(header::PROXY_AUTHORIZATION);
    headers.remove(header::CONTENT_LENGTH);
    match length {
        BodyLength::Known(length) if !websocket => {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        // hyper takes these methods to have no body unless they say so; HTTP/2 drops it again.
        BodyLength::Unknown if !websocket && matches!(method, Method::GET | Method::HEAD) => {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        _ => {}
    }
    let source = route.proxy_protocol.and_then(|_| forwarded::visitor(&headers)).map(Source);
    if route.host_header.is_some() && matches!(route.forwarded, Forwarded::Keep | Forwarded::Append) {
        headers.insert(X_FORWARDED_HOST, visited.clone());
    }
    forwarded::apply(route.forwarded, &mut headers, &visited);
    headers.insert(header::HOST, host);
    for (name, value) in proxy.tags.borrow().iter() {
        // Replaced, not added: a visitor must not speak first under our name.
        headers.insert(name.clone(), value.clone());
    }
    if !granted.keeps {
        // Behind everything that a visitor can have removed by naming it in `Connection`.
        way.policy.tell(&mut headers, permit);
    }
    if websocket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    } else if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from(target);
    *request.headers_mut() = headers;
    if let Some(source) = source {
        request.extensions_mut().insert(source);
    }
    request
}

fn to_visitor(status: StatusCode, mut headers: HeaderMap, way: &Way) -> ResponseHead {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // The body was read as its coding says; the length beside it says something else (RFC 9112 §6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    hop::strip(&mut headers, &KEPT);
    if let Some(reason) = headers.remove(ADIT_ERROR)
        && way.is_known
        && let Some(reason) = of_guard(&reason)
    {
        headers.insert(ADIT_ERROR, reason);
    }
    ResponseHead { status, headers }
}

/// The word of another adit, marked as not ours.
fn of_guard(reason: &HeaderValue) -> Option<HeaderValue> {
    let word = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'-';
    let reason = reason
        .to_str()
        .ok()
        .filter(|reason| (1..=LONGEST_CODE).contains(&reason.len()) && reason.bytes().all(|b| word(&b)))?;
    HeaderValue::try_from(format!("guard-{reason}")).ok()
}

/// The head of an accepted WebSocket keeps the two headers that say so.
fn upgraded(headers: HeaderMap, way: &Way) -> ResponseHead {
    let mut head = to_visitor(StatusCode::SWITCHING_PROTOCOLS, headers, way);
    super::say_upgraded(&mut head.headers);
    head
}

async fn answer(
    record: &mut Record<'_>,
    head: ResponseHead,
    mut body: ReplyBody,
    is_head: bool,
    responder: Responder,
    told: Told,
) {
    record.status = head.status;
    let end = body.is_end() || is_head;
    let send = match responder.respond(head, end).await {
        Ok(send) if !end => send,
        Ok(_) => return,
        Err(_) => return record.visitor_left(),
    };
    copy(record, &mut body, send, told).await;
}

/// Sends a body on as it comes; each chunk leaves at once.
async fn copy(record: &mut Record<'_>, body: &mut ReplyBody, mut send: Send, told: Told) {
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = send.stopped() => return record.visitor_left(),
        };
        let frame = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return ended(record, send.end().await),
            Err(error) => {
                send.reset();
                return match told.upload() {
                    Upload::Broken => record.visitor_left(),
                    Upload::TooLong => record.cut(Code::BodyTooLarge, BodyError::TooLong),
                    Upload::Fine => record.cut(Code::OriginProtocol, Chain(&error)),
                };
            }
        };
        match frame.into_data() {
            Ok(data) => {
                record.sent += data.len() as u64;
                let last = body.is_end();
                let written = tokio::select! {
                    biased;
                    written = write(&mut send, data, last) => written,
                    () = body.send_on() => return,
                };
                if written.is_err() {
                    return record.visitor_left();
                }
                if last {
                    return;
                }
                // One read of the service's socket may hold a hundred thousand chunks, and QUIC takes what is small at
                // once: without a pause neither timers nor other requests get their turn.
                tokio::task::coop::consume_budget().await;
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return ended(record, send.end_with(trailers).await);
                }
            }
        }
    }
}

fn ended(record: &mut Record<'_>, outcome: Result<(), StreamError>) {
    match outcome {
        Ok(()) => {}
        // Trailers that nobody could take.
        Err(StreamError::Framing(error)) => record.cut(Code::OriginProtocol, error),
        Err(_) => record.visitor_left(),
    }
}

async fn write(send: &mut Send, data: Bytes, last: bool) -> Result<(), StreamError> {
    if data.is_empty() && !last { Ok(()) } else { send.write(data, last).await }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        config::{Flags, parse_file},
        metrics::Metrics,
        proxy::{Ground, Proxy, Routes, Via, grant},
        transport::Transport,
        wire::{connect::root_target, headers::TRACE_ID},
    };

    #[test]
    fn only_a_plain_word_of_a_guard_is_passed_on_and_marked() {
        let passed = |word: &str| of_guard(&HeaderValue::from_str(word).unwrap());
        assert_eq!(passed("caller-missing").unwrap(), "guard-caller-missing");
        assert_eq!(passed("guard-overloaded").unwrap(), "guard-guard-overloaded", "of a guard behind a guard");
        for wrong in ["", "Caller", "a b", "a,b", "é", &"a".repeat(LONGEST_CODE + 1)] {
            assert_eq!(passed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_request_leaves_with_our_tag_alone_and_without_headers_of_one_hop() {
        let file = "ingress: [ { service: \"http://localhost:1\", originRequest: { httpHostHeader: inner } } ]";
        let config = parse_file("f", file, &Flags::default(), |_| None).unwrap().config;
        let metrics = Arc::new(Metrics::new());
        let routes = Routes::new((&config).into(), &Ground::bare(metrics.clone())).unwrap();
        let routes = Arc::new(routes);
        let tag = HeaderName::from_static("cf-warp-tag-id");
        let proxy = Proxy {
            routes: watch::channel(routes.clone()).1,
            metrics,
            tags: watch::Sender::new(Arc::from([(tag.clone(), HeaderValue::from_static("ours"))])).subscribe(),
            management_hostname: String::new(),
            flows: crate::proxy::Flows::default(),
            draining: CancellationToken::new(),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("cf-warp-tag-id", "forged"), ("connection", "x-hop, host"), ("x-hop", "1"), ("te", "gzip"), ("x", "kept")]
        {
            headers.append(name, HeaderValue::from_static(value));
        }
        let mut head = RequestHead {
            websocket: false,
            method: Method::GET,
            host: HeaderValue::from_static("visited"),
            target: root_target(),
            headers,
            body: BodyLength::None,
        };
        let via = Via { connection: 0, transport: Transport::Quic, own_edge: false, believed: false };
        let mut record = Record::new(&proxy.metrics, crate::proxy::Came::Tunnel(via), &head);
        let granted = grant(&proxy, &routes, &mut record, &mut head).unwrap();
        let host = granted.route.host_header.clone().unwrap();
        let request = to_service(head, host, RequestBody::Empty, &granted, false);
        let sent = request.headers();
        assert_eq!(sent.get_all(&tag).iter().collect::<Vec<_>>(), ["ours"]);
        assert_eq!(
            (&sent["host"], &sent["x-forwarded-host"], &sent["x"]),
            (&"inner".parse().unwrap(), &"visited".parse().unwrap(), &"kept".parse().unwrap())
        );
        for gone in ["connection", "x-hop", "te", TRACE_ID.as_str()] {
            assert!(!sent.contains_key(gone), "{gone}");
        }
    }
}
