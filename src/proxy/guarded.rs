//! Requests and streams of callers who came to a guard: the caller is the peer of the handshake, and no edge is in
//! between. The rest of the story is the same.

use std::net::SocketAddr;

use ::http::{HeaderValue, Method};
use bytes::Bytes;

use super::{
    Came, Proxy, Routes, live,
    live::Leave,
    pipe::{self, Ends},
    record::Record,
    request,
};
use crate::{
    callers::{Caller, Denied, MaybeCaller, Policy, Relayed},
    code::Code,
    identity::SpiffePattern,
    metrics::guard::GuardMetrics,
    origin::{Destination, Origin},
    telemetry::Chain,
    tls::callers::Shown,
    transport::{Recv, Responder, Send},
    wire::{BodyLength, RequestHead, connect::root_target},
};

/// How somebody came to a guard.
#[derive(Clone, Copy, Debug)]
pub struct Guarded<'a> {
    /// Where the guard listens.
    pub listen: SocketAddr,
    /// What the handshake proved the key of.
    pub shown: &'a Relayed,
    /// Peers whose headers of certificates pass unchanged.
    pub keep_headers_from: &'a [SpiffePattern],
    /// Counters.
    pub metrics: &'a GuardMetrics,
    /// The version of HTTP, or `tcp`.
    pub over: &'static str,
}

impl Guarded<'_> {
    /// Whether this peer speaks for somebody else: then what he says of certificates passes as it is.
    pub(super) fn keeps_headers(&self, caller: &MaybeCaller) -> bool {
        let proven = caller.as_deref().filter(|caller| caller.verdict.is_ok());
        let id = proven.and_then(|Caller { certificate, .. }| certificate.as_ref()?.spiffe_id.as_ref());
        id.is_some_and(|id| self.keep_headers_from.iter().any(|pattern| pattern.matches(id)))
    }
}

/// Serves one request to its end.
pub async fn guarded(proxy: &Proxy, guarded: Guarded<'_>, head: RequestHead, responder: Responder, recv: Recv) {
    let routes = proxy.routes.borrow().clone();
    let mut record = Record::new(&proxy.metrics, Came::Guard(guarded), &head);
    request(proxy, &routes, &mut record, head, responder, recv).await;
}

/// Serves one stream to its end. A caller who has no leave, or loses it, sees a reset.
pub async fn guarded_stream(proxy: &Proxy, guarded: Guarded<'_>, send: Send, recv: Recv) {
    let routes = proxy.routes.borrow().clone();
    let head = RequestHead {
        websocket: false,
        method: stream_method(),
        host: HeaderValue::from_str(&guarded.listen.to_string()).unwrap_or(HeaderValue::from_static("guard")),
        target: root_target(),
        headers: ::http::HeaderMap::new(),
        body: BodyLength::None,
    };
    let mut record = Record::new(&proxy.metrics, Came::Guard(guarded), &head);
    let Some((index, route)) = routes.find("", "/") else { return record.refused(Code::NoConfiguration) };
    record.matched(index, &route.metrics);
    let (Some(pattern), Some(way)) = (routes.pattern(index), route.way("")) else {
        return record.refused(Code::NoConfiguration);
    };
    let caller = way.policy.identify(guarded.shown.clone());
    record.caller.clone_from(&caller);
    let permit = match way.policy.admit(caller, &head.method, "/") {
        Ok(permit) => permit,
        Err(denied) => {
            record.denied(denied, way.policy.unusable());
            return record.refused(denied.code());
        }
    };
    let Origin::Stream(dialer, Destination::Fixed(targets)) = way.open(&permit) else {
        return record.refused(Code::NoConfiguration);
    };
    let asked = live::Asked {
        routes: &routes,
        pattern,
        policy: &way.policy,
        caller: permit.caller().clone(),
        method: head.method,
        host: String::new(),
        target: head.target,
    };
    let leave = Leave::default();
    let serving = async {
        let (io, _in_flight) = match targets.connect(dialer, None).await {
            Ok(connected) => connected,
            Err(error) => {
                record.because(Chain(&error));
                return record.refused(error.code());
            }
        };
        let copied = pipe::both(io, Bytes::new(), send, recv, Ends::Apart).await;
        record.sent = copied.down;
        record.received = copied.up;
    };
    let served = Box::pin(asked.attend(proxy.routes.clone(), &leave, serving)).await;
    if let Err(denied) = served {
        record.withdrawn(denied);
    }
}

/// What stands for the method of a stream in the access event; no entry of `allow` that names methods has it.
fn stream_method() -> Method {
    Method::from_bytes(b"TCP").unwrap_or(Method::CONNECT)
}

impl Routes {
    /// Whether whoever shows this may open a stream of the only rule.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub fn admits(&self, shown: &Shown) -> Result<(), Denied> {
        let policy = self.only_policy().ok_or(Denied::NotAllowed)?;
        let caller = policy.identify(Relayed::Shown(shown.clone()));
        policy.admit(caller, &stream_method(), "/").map(drop)
    }

    /// Whether somebody who shows nothing may open one.
    pub fn admits_strangers(&self) -> bool {
        self.only_policy().is_some_and(|policy| policy.admit(None, &stream_method(), "/").is_ok())
    }

    fn only_policy(&self) -> Option<&Policy> {
        let (_, route) = self.find("", "/")?;
        route.way("").map(|way| &way.policy)
    }
}
