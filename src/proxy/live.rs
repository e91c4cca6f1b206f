//! Requests of callers in flight: decided on anew whenever rules, trust or lists of revoked certificates change.
//!
//! A new generation of routes wakes every request that was given leave by a policy that asks for callers. What decides
//! then is the policy that the new generation has for the request's own rule, which is the first one with the same
//! hostname and path as the rule that it was served by, whatever stands at its place now and whatever service it leads
//! to: the certificate is verified anew, and caller, method and path are held against the list. A policy that asks
//! nobody lets everybody stay; a rule whose hosts have no entry of `innerHop.rules` any more lets nobody.
//!
//! A rule that is gone, or has another hostname or path now, decides nothing: a request in flight stays as long as its
//! old list allows it and the newest trust of that rule's sources still knows its caller. Where nothing in the
//! configuration refers to these sources any more there is no newer trust, and the request stays.
//!
//! Who is no longer allowed is cut. What can say goodbye in order, a WebSocket, is given a moment for it first. It
//! costs a box per request, and nothing for requests of rules that do not ask.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use ::http::{Method, uri::PathAndQuery};
use tokio::sync::watch;

use super::Routes;
use crate::{
    callers::{Denied, MaybeCaller, Policy, check::Check},
    ingress::Pattern,
};

/// For a WebSocket to be closed in order.
const FAREWELL: Duration = Duration::from_secs(1);
/// RFC 6455 §7.4.1: what an endpoint says to a peer that broke its policy.
pub(super) const POLICY_VIOLATION: u16 = 1008;

/// A request's leave, as those see it who serve it. They run in the task that takes it away, so nothing is waited for.
#[derive(Debug, Default)]
pub(super) struct Leave {
    withdrawn: AtomicBool,
    farewell: AtomicBool,
}

impl Leave {
    /// Completes when it is taken away. Asked whenever the task is woken, and the task is woken then. Cancel-safe.
    pub(super) async fn withdrawn(&self) {
        let ready = |withdrawn| if withdrawn { Poll::Ready(()) } else { Poll::Pending };
        std::future::poll_fn(|_| ready(self.withdrawn.load(Ordering::Relaxed))).await;
    }

    /// From now on whoever serves the request ends it by itself when leave is taken away, in a second.
    pub(super) fn says_farewell(&self) {
        self.farewell.store(true, Ordering::Relaxed);
    }
}

/// What a request asked for, and what gave it leave.
pub(super) struct Asked<'a> {
    pub(super) routes: &'a Routes,
    pub(super) pattern: &'a Pattern,
    pub(super) policy: &'a Policy,
    pub(super) caller: MaybeCaller,
    pub(super) method: Method,
    /// In normal form.
    pub(super) host: String,
    pub(super) target: PathAndQuery,
}

impl Asked<'_> {
    /// Serves the request to its end, or to where it is no longer allowed.
    pub(super) async fn attend(
        self,
        published: watch::Receiver<Arc<Routes>>,
        leave: &Leave,
        serving: impl Future<Output = ()>,
    ) -> Result<(), Denied> {
        let mut serving = pin!(serving);
        let denied = tokio::select! {
            biased;
            denied = self.denied(published) => denied,
            () = &mut serving => return Ok(()),
        };
        leave.withdrawn.store(true, Ordering::Relaxed);
        if leave.farewell.load(Ordering::Relaxed) {
            // Whether it came to its end or is cut makes no difference to what is told of it.
            let _ = tokio::time::timeout(FAREWELL, serving).await;
        }
        Err(denied)
    }

    async fn denied(&self, mut published: watch::Receiver<Arc<Routes>>) -> Denied {
        loop {
            // The first look may find the generation that gave leave.
            let routes = match published.changed().await {
                Ok(()) => published.borrow_and_update().clone(),
                Err(_) => return std::future::pending().await,
            };
            if !std::ptr::eq(&raw const *routes, self.routes)
                && let Err(denied) = self.decide(&routes)
            {
                return denied;
            }
        }
    }

    fn decide(&self, routes: &Routes) -> Result<(), Denied> {
        let Self { method, target, caller, .. } = self;
        let decide = |policy: &Policy| policy.readmit(caller, method, target.path()).map(drop);
        if let Some(route) = routes.same_rule(self.pattern) {
            return route.way(&self.host).map_or(Err(Denied::NotAllowed), |way| decide(&way.policy));
        }
        match self.policy.callers().map(|callers| (callers, routes.caller_trust(callers))) {
            Some((callers, Ok(trust))) => decide(&Policy::new(callers, Arc::new(Check::new(trust)))),
            _ => Ok(()),
        }
    }
}
