//! HTTP at a guard: connections of callers, and each request with the caller who is judged for it.

use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use tokio::{net::TcpStream, sync::oneshot};
use tokio_rustls::server::TlsStream;

use super::listener::Visit;
use crate::{
    code::{ADIT_ERROR, Code},
    places::Place,
    proxy::{self, Guarded},
    transport::{
        direct::{self, Answer, AnswerBody},
        visiting::{self, Quiet},
    },
    wire::direct::{host_of, is_upgrade, request_head},
};

/// Serves the requests of one connection.
pub(super) async fn serve(visit: Arc<Visit>, tls: TlsStream<TcpStream>) {
    let over_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let shared = visit.post.shared.clone();
    let quiet = Arc::new(Quiet::default());
    let answer = |request| {
        let (visit, quiet) = (visit.clone(), quiet.clone());
        async move { answer(visit, quiet, request).await }
    };
    let ending = (&shared.tasks, &visit.post.closing);
    visiting::converse(tls, over_h2, &shared.limits.bounds, &quiet, ending, answer).await;
}

/// Counts a request of a connection, from its head to the end of its answer.
struct Busy {
    quiet: Arc<Quiet>,
    /// Among requests in flight.
    _place: Place,
}

impl Busy {
    /// `None` if there are too many, in all or of this address.
    fn enter(visit: &Visit, quiet: Arc<Quiet>) -> Option<Self> {
        quiet.asked();
        let place = visit.post.shared.requests.enter(visit.peer.ip()).ok()?;
        quiet.enter();
        Some(Self { quiet, _place: place })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.quiet.leave();
    }
}

async fn answer(visit: Arc<Visit>, quiet: Arc<Quiet>, request: Request<Incoming>) -> Response<AnswerBody> {
    let over_h2 = request.version() == Version::HTTP_2;
    match begin(&visit, quiet, request, over_h2) {
        Ok(answered) => match answered.await {
            Ok(Answer { head, body }) => response(head.status, head.headers, body, over_h2),
            // Whoever served it is gone without a word.
            Err(_) => refusal(&visit, Code::OriginProtocol, true, over_h2),
        },
        Err(code) => refusal(&visit, code, code == Code::RequestInvalid, over_h2),
    }
}

/// Hands the request to a task of its own, which outlives the connection's wish to wait for it.
fn begin(
    visit: &Arc<Visit>,
    quiet: Arc<Quiet>,
    mut request: Request<Incoming>,
    over_h2: bool,
) -> Result<oneshot::Receiver<Answer>, Code> {
    let busy = Busy::enter(visit, quiet).ok_or(Code::Overloaded)?;
    let host = host_of(&request).map_err(|_| Code::RequestInvalid)?;
    let upgrade = is_upgrade(&request, over_h2).map_err(|_| Code::RequestInvalid)?;
    let upgraded = upgrade.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let head = request_head(parts, &body, &host, upgrade).map_err(|_| Code::RequestInvalid)?;
    let (responder, recv, answered) = match upgraded {
        Some(upgraded) => direct::upgrade(upgraded),
        None => direct::request(body),
    };
    let visit = visit.clone();
    let tasks = visit.post.shared.tasks.clone();
    tasks.spawn(async move {
        let _busy = busy;
        let post = &visit.post;
        let keep_headers_from = post.keep_headers_from();
        let guarded = Guarded {
            listen: post.listen,
            shown: &visit.shown,
            keep_headers_from: &keep_headers_from,
            metrics: &post.metrics,
            over: if over_h2 { "h2" } else { "http/1.1" },
        };
        proxy::guarded(&post.proxy, guarded, head, responder, recv).await;
    });
    Ok(answered)
}

fn response(status: StatusCode, mut headers: http::HeaderMap, body: AnswerBody, over_h2: bool) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        if over_h2 {
            // RFC 8441 §5: 200, and no key to answer.
            *response.status_mut() = StatusCode::OK;
            for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
                headers.remove(name);
            }
        }
    }
    *response.headers_mut() = headers;
    response
}

/// An answer of the guard before there was a request to serve.
fn refusal(visit: &Visit, code: Code, nonsense: bool, over_h2: bool) -> Response<AnswerBody> {
    visit.post.metrics.refused(code);
    let mut response = Response::new(AnswerBody::empty());
    *response.status_mut() = code.status();
    response.headers_mut().insert(ADIT_ERROR, HeaderValue::from_static(code.as_str()));
    if nonsense && !over_h2 {
        // Nobody knows what the bytes behind it are.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
