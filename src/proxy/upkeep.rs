//! What the rules in force need beside requests: checks of services, and pools without old or lost connections.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::sync::watch;

use super::{Route, Routes};
use crate::{
    ingress::Pattern,
    metrics::Metrics,
    origin::{Origin, balance::Balance, services::HttpServices},
};

/// How often idle connections are looked through; the shortest `keepAliveTimeout` worth having.
const SWEEP: Duration = Duration::from_secs(15);
/// How often names of services with waiting connections are looked up. The system's resolver tells no TTL.
const FOLLOW: Duration = Duration::from_secs(30);
/// Look-ups at a time.
const LOOK_UPS: usize = 4;

/// Attends to one generation of rules after the other, until nobody publishes any more. The checks of a generation end
/// with it; what they found lives on in the next one.
pub async fn upkeep(mut published: watch::Receiver<Arc<Routes>>, metrics: Arc<Metrics>) {
    let mut before: Option<Arc<Routes>> = None;
    loop {
        let routes = published.borrow_and_update().clone();
        metrics.forget_origins();
        let old = before.take();
        tell_closed(&routes, old.as_deref());
        succeed(&routes, old.as_deref());
        // A long stream may hold the old rules for days: their connections, of an old identity perhaps, do not wait for
        // it.
        if let Some(old) = old {
            http_services(&old).for_each(HttpServices::retire);
        }
        tokio::select! {
            () = attend(&routes) => {}
            changed = published.changed() => if changed.is_err() { return },
        }
        before = Some(routes);
    }
}

fn http_services(routes: &Routes) -> impl Iterator<Item = &HttpServices> {
    routes.origins().filter_map(|origin| match origin {
        Origin::Http(services) => Some(&**services),
        _ => None,
    })
}

/// Attends to a guard's only rule, which has no checks, in one generation after the other.
pub async fn attend_to(mut published: watch::Receiver<Arc<Routes>>) {
    loop {
        let routes = published.borrow_and_update().clone();
        tokio::select! {
            () = attend(&routes) => {}
            changed = published.changed() => if changed.is_err() { return },
        }
        http_services(&routes).for_each(HttpServices::retire);
    }
}

/// Rules that let nobody pass are told once, not again with every change of something else.
fn tell_closed(routes: &Routes, before: Option<&Routes>) {
    // Nobody is let in before secrets were read once.
    if routes.secrets() == 0 {
        return;
    }
    let told: HashSet<_> = before.into_iter().flat_map(Routes::closed).collect();
    for (rule, reason) in routes.closed().filter(|closed| !told.contains(closed)) {
        tracing::error!(rule, reason, "the trust in callers cannot be used: every request of this rule is refused");
    }
}

/// What is known of services is handed on where the same hosts and paths lead to them.
fn succeed(routes: &Routes, before: Option<&Routes>) {
    let mut known: HashMap<String, &Balance> = HashMap::new();
    for (key, balance) in before.into_iter().flat_map(judged) {
        balance.retire();
        known.insert(key, balance);
    }
    for (key, balance) in judged(routes) {
        if let Some(old) = known.get(&key) {
            balance.succeed(old);
        }
        balance.show();
    }
}

fn judged(routes: &Routes) -> impl Iterator<Item = (String, &Balance)> {
    routes.rows().flat_map(|(pattern, route)| judged_of(pattern, route))
}

fn judged_of<'a>(pattern: &'a Pattern, route: &'a Route) -> impl Iterator<Item = (String, &'a Balance)> {
    route.origins().enumerate().filter_map(|(at, origin)| {
        let balance = origin.balance().filter(|balance| balance.is_judged())?;
        let hostname = pattern.hostname.as_ref().map_or("", |hostname| hostname.as_str());
        // A host name has no blank.
        Some((format!("{hostname} {at} {}", pattern.path.as_ref().map_or("", |path| path.as_str())), balance))
    })
}

/// Never ends.
async fn attend(routes: &Routes) {
    let services = || http_services(routes);
    let checks: FuturesUnordered<_> = services().filter(|services| services.is_checked()).map(|s| s.check()).collect();
    let checks = checks.for_each(|()| std::future::ready(())).then(|()| std::future::pending::<()>());
    let sweep = async {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tick.tick().await;
            for services in services() {
                services.sweep();
            }
            for (_, balance) in judged(routes) {
                balance.show();
            }
        }
    };
    let follow = async {
        let mut tick = tokio::time::interval(FOLLOW);
        loop {
            tick.tick().await;
            futures_util::stream::iter(services()).for_each_concurrent(LOOK_UPS, |s| s.follow_names()).await;
        }
    };
    tokio::select! {
        () = checks => {}
        () = sweep => {}
        () = follow => {}
    }
}
