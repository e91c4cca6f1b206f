//! The story of a request between a tunnel stream and a service.
//!
//! [`serve`] is the whole of it: look the rule up in one snapshot, open the service, answer, copy, and leave one
//! access event behind. Knows no key and no edge address.

pub mod bastion;
mod forwarded;
pub mod frames;
mod guarded;
mod hello;
mod http;
pub mod limits;
mod live;
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
use futures_util::future::Either;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    callers::{
        Permit, Relayed,
        families::{Families, strip_overrides},
        relayed,
    },
    code::{ADIT_ERROR, Code},
    config::normal_host,
    ingress::Pattern,
    metrics::{Metrics, callers::Decision},
    origin::Origin,
    transport::{Incoming, Pending, Recv, Responder, Transport},
    wire::{Head, RequestHead, ResponseHead},
};
pub use guarded::{Guarded, guarded, guarded_stream};
use limits::Place;
use live::Leave;
use record::Record;
pub use record::is_probe;
pub use routes::{Ground, Route, Routes, Sources, Way};
pub use tcp::Flows;
pub use upkeep::{attend_to, upkeep};

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
    /// Whether it is proven to be ours, by `--edge-ca`, so that it is believed what it says of visitors' certificates.
    pub believed: bool,
}

/// How somebody's request came to us.
#[derive(Clone, Copy, Debug)]
enum Came<'a> {
    /// To a guard.
    Guard(Guarded<'a>),
    /// Through a tunnel.
    Tunnel(Via),
}

/// Serves one stream of the edge to its end.
pub async fn serve(proxy: &Proxy, via: Via, head: Head, responder: Responder, recv: Recv) {
    let routes = proxy.routes.borrow().clone();
    match head {
        Head::Tcp(dest) => tcp::serve(proxy, &routes, via, dest, responder, recv).await,
        Head::Request(head) => {
            let mut record = Record::new(&proxy.metrics, Came::Tunnel(via), &head);
            request(proxy, &routes, &mut record, head, responder, recv).await;
        }
    }
}

#[allow(clippy::manual_async_fn, reason = "an async fn holds what it is given twice: 6.2 KiB a stream instead of 6")]
fn request<'a>(
    proxy: &'a Proxy,
    routes: &'a Routes,
    record: &'a mut Record<'_>,
    mut head: RequestHead,
    responder: Responder,
    recv: Recv,
) -> impl Future<Output = ()> {
    async move {
        let granted = match grant(proxy, routes, record, &mut head) {
            Ok(granted) => granted,
            Err(code) => return refuse(record, responder, code).await,
        };
        if granted.way.policy.is_open() {
            return forward(&granted, record, head, responder, recv).await;
        }
        let asked = live::Asked {
            routes,
            pattern: granted.pattern,
            policy: &granted.way.policy,
            caller: granted.permit.caller().clone(),
            method: head.method.clone(),
            host: normal_host(head.host.to_str().unwrap_or_default()).into_owned(),
            target: head.target.clone(),
        };
        let serving = forward(&granted, record, head, responder, recv);
        let served = Box::pin(asked.attend(proxy.routes.clone(), &granted.leave, serving)).await;
        if let Err(denied) = served {
            record.withdrawn(denied);
        }
    }
}

/// A request that may go on to its service.
struct Granted<'a> {
    proxy: &'a Proxy,
    route: &'a Route,
    pattern: &'a Pattern,
    way: &'a Way,
    permit: Permit,
    leave: Leave,
    families: Option<&'a Arc<Families>>,
    /// What the head says of certificates is the word of a peer who is believed, and stays.
    keeps: bool,
    _place: Place<'a>,
}

/// Decides on a request. What an edge says of the visitor's certificate is read before it is taken out of the head,
/// and taken out of every request, whatever its rule.
fn grant<'a>(
    proxy: &'a Proxy,
    routes: &'a Routes,
    record: &mut Record<'_>,
    head: &mut RequestHead,
) -> Result<Granted<'a>, Code> {
    let host = head.host.to_str().map_err(|_| Code::RequestInvalid)?;
    let normal_host = normal_host(host);
    // A service may take a name with more final dots for the same name, and no rule that was written for it does.
    if normal_host.ends_with('.') || normal_host.contains("..") {
        return Err(Code::RequestInvalid);
    }
    if normal_host == proxy.management_hostname {
        // The management service is not built; its requests must not reach a rule.
        return Err(Code::NotFound);
    }
    let path = head.target.path();
    let (index, route) = routes.find(host, path).ok_or(Code::NoConfiguration)?;
    let pattern = routes.pattern(index).ok_or(Code::NoConfiguration)?;
    record.matched(index, &route.metrics);
    if route.access_required {
        return Err(Code::AccessRequired);
    }
    let Some(way) = route.way(&normal_host) else {
        record.because("no entry of innerHop.rules is for this host and service");
        return Err(Code::CallerNotAllowed);
    };
    let permit = if way.policy.is_open() {
        way.policy.admit(None, &head.method, path)
    } else {
        let shown = match record.came {
            Came::Guard(guarded) => guarded.shown.clone(),
            Came::Tunnel(via) => {
                let form = way.policy.believes(via.believed);
                form.map_or(Relayed::Nothing, |form| relayed::read(&head.headers, form))
            }
        };
        let caller = way.policy.identify(shown);
        record.caller.clone_from(&caller);
        way.policy.admit(caller, &head.method, path)
    };
    let permit = permit.map_err(|denied| {
        record.denied(denied, way.policy.unusable());
        denied.code()
    })?;
    if !way.policy.is_open() {
        proxy.metrics.callers.decided(Decision::Allowed);
    }
    let Some(place) = route.limiter.enter() else {
        record.because("maxConcurrent requests are in flight");
        return Err(Code::Overloaded);
    };
    let families = routes.families.as_ref();
    let keeps = matches!(record.came, Came::Guard(guarded) if guarded.keeps_headers(permit.caller()));
    if let Some(families) = families.filter(|_| !keeps) {
        families.strip(&mut head.headers);
    }
    if way.policy.decides_by_request() {
        strip_overrides(&mut head.headers);
    }
    Ok(Granted { proxy, route, pattern, way, permit, leave: Leave::default(), families, keeps, _place: place })
}

/// Not an `async fn`: that would hold head and stream a second time, beside those of whoever serves.
fn forward<'a>(
    granted: &'a Granted<'_>,
    record: &'a mut Record<'_>,
    head: RequestHead,
    responder: Responder,
    recv: Recv,
) -> impl Future<Output = ()> {
    match granted.way.open(&granted.permit) {
        Origin::Http(origin) => {
            Either::Left(Either::Left(http::forward(granted, origin, record, head, responder, recv)))
        }
        Origin::Status(status) => Either::Left(Either::Right(answer(record, *status, responder))),
        Origin::Hello => Either::Right(Either::Left(hello::serve(record, head, responder, recv))),
        Origin::Stream(dialer, destination) => {
            let service = over_websocket::Service { route: granted.route, dialer, destination };
            Either::Right(Either::Right(over_websocket::serve(granted, service, record, head, responder, recv)))
        }
    }
}

async fn answer(record: &mut Record<'_>, status: StatusCode, responder: Responder) {
    record.status = status;
    if responder.respond(ResponseHead::new(status), true).await.is_err() {
        record.visitor_left();
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
