//! The story of a request between a tunnel stream and a service.
//!
//! [`serve`] is the whole of it: look the rule up in one snapshot, open the service, answer, copy, and leave one
//! access event behind. Knows no key and no edge address.

pub mod bastion;
mod forwarded;
pub mod frames;
mod hello;
mod http;
pub mod limits;
mod over_websocket;
mod pipe;
mod record;
pub mod routes;
pub mod socks;
mod tcp;
mod upkeep;
mod websocket;

use std::sync::Arc;

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    code::{ADIT_ERROR, Code},
    config::normal_host,
    metrics::Metrics,
    origin::Origin,
    transport::{Incoming, Pending, Recv, Responder, Transport},
    wire::{Head, RequestHead, ResponseHead},
};
use record::Record;
pub use record::is_probe;
pub use routes::{Ground, Route, Routes, Sources, Way};
pub use tcp::Flows;
pub use upkeep::upkeep;

/// Headers with their values.
pub type Tags = Arc<[(HeaderName, HeaderValue)]>;

/// What every request of a connector shares.
#[derive(Debug)]
pub struct Proxy {
    /// The rules in force.
    pub routes: watch::Receiver<Arc<Routes>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Headers added to every request: `Cf-Warp-Tag-*` (protocol.md §9.1).
    pub tags: watch::Receiver<Tags>,
    /// Answered by adit itself, lower case.
    pub management_hostname: String,
    /// Streams without a rule that are open.
    pub flows: Flows,
    /// WebSockets that are passed through are closed once it is cancelled.
    pub draining: CancellationToken,
}

/// Which connection a stream came over.
#[derive(Clone, Copy, Debug)]
pub struct Via {
    /// Connection index.
    pub connection: u8,
    /// Its transport.
    pub transport: Transport,
    /// Whether its edge is ours and confirmed adit's own ways.
    pub own_edge: bool,
}

/// Serves one stream of the edge to its end.
pub async fn serve(proxy: &Proxy, via: Via, head: Head, responder: Responder, recv: Recv) {
    let routes = proxy.routes.borrow().clone();
    match head {
        Head::Tcp(dest) => tcp::serve(proxy, &routes, via, dest, responder, recv).await,
        Head::Request(head) => {
            let mut record = Record::new(&proxy.metrics, via, &head);
            request(proxy, &routes, &mut record, head, responder, recv).await;
        }
    }
}

async fn request(
    proxy: &Proxy,
    routes: &Routes,
    record: &mut Record<'_>,
    head: RequestHead,
    responder: Responder,
    recv: Recv,
) {
    let Ok(host) = head.host.to_str() else {
        return refuse(record, responder, Code::RequestInvalid).await;
    };
    if normal_host(host) == proxy.management_hostname {
        // The management service is not built; its requests must not reach a rule.
        return refuse(record, responder, Code::NotFound).await;
    }
    let Some((index, route)) = routes.find(host, head.target.path()) else {
        return refuse(record, responder, Code::NoConfiguration).await;
    };
    record.matched(index, &route.metrics);
    if route.access_required {
        return refuse(record, responder, Code::AccessRequired).await;
    }
    let Some(way) = route.way(&normal_host(host)) else {
        record.because("no entry of innerHop.rules is for this host and service");
        return refuse(record, responder, Code::CallerNotAllowed).await;
    };
    let Some(_place) = route.limiter.enter() else {
        record.because("maxConcurrent requests are in flight");
        return refuse(record, responder, Code::Overloaded).await;
    };
    let permit = match way.policy.admit(None) {
        Ok(permit) => permit,
        Err(denied) => {
            record.because(denied);
            return refuse(record, responder, denied.code()).await;
        }
    };
    match way.open(&permit) {
        Origin::Http(origin) => http::forward(proxy, route, origin, record, head, responder, recv).await,
        Origin::Status(status) => {
            record.status = *status;
            if responder.respond(ResponseHead::new(*status), true).await.is_err() {
                record.visitor_left();
            }
        }
        Origin::Hello => hello::serve(record, head, responder, recv).await,
        Origin::Stream(dialer, destination) => {
            let service = over_websocket::Service { route, dialer, destination };
            over_websocket::serve(proxy, service, record, head, responder, recv).await;
        }
    }
}

/// Answers a stream that came after the grace period; its connection is about to close.
pub async fn refuse_draining(metrics: &Metrics, pending: Pending) {
    match pending.read().await {
        Ok(Incoming::Visitor { head: Head::Request(_), responder, .. }) => {
            metrics.refused(Code::Draining);
            // Nobody left to be told is no matter.
            let _ = responder.respond(refusal(Code::Draining), true).await;
        }
        Ok(Incoming::Visitor { head: Head::Tcp(_), responder, .. } | Incoming::Configure { responder, .. }) => {
            responder.fail("the connector is stopping", false).await;
        }
        // Dropped, and so reset.
        Ok(Incoming::Rpc { .. } | Incoming::Control { .. }) | Err(_) => {}
    }
}

/// The headers that say that a stream is a WebSocket now.
fn say_upgraded(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// The head with which adit itself accepts a WebSocket (RFC 6455 §4.2.2).
fn accept_websocket(key: &HeaderValue) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::SWITCHING_PROTOCOLS);
    say_upgraded(&mut head.headers);
    if let Ok(accept) = HeaderValue::from_str(&frames::accept_key(key.as_bytes())) {
        head.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    head
}

/// Answers with a reason of our own.
async fn refuse(record: &mut Record<'_>, responder: Responder, code: Code) {
    record.refused(code);
    if responder.respond(refusal(code), true).await.is_err() {
        record.visitor_left();
    }
}

fn refusal(code: Code) -> ResponseHead {
    let mut head = ResponseHead::new(code.status());
    head.headers.insert(ADIT_ERROR, HeaderValue::from_static(code.as_str()));
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    head
}
