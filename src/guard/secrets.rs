//! What a guard proves, whom it trusts and where it leads, of the newest generation of secrets and configuration: its rule
//! and its TLS are made anew with each.
//!
//! Secrets that the file does not name are not read. A guard that is gone from the file would go on with the trust of
//! that day for ever, whoever is revoked, so it ends instead.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Error, Shared, listener::Tls};
use crate::{
    config::{Callers, Forwarded, Guard, Hop, Hops, Ingress, InnerHop, Limits, Rule, Service, WarpRouting},
    metrics::FIRST_GUARD,
    proxy::{Routes, Sources},
    tls::{
        self,
        guard::{Doorkeeper, TurnedAway},
        keyring::{Identity, Keyring},
    },
};

/// What is in force at the start, and what follows it.
pub(super) struct Begun {
    pub(super) secrets: Secrets,
    pub(super) routes: watch::Receiver<Arc<Routes>>,
    pub(super) tls: watch::Receiver<Tls>,
}

/// What a guard follows.
pub(super) struct Followed {
    /// Those of the file.
    pub(super) guards: watch::Receiver<Vec<Guard>>,
    pub(super) keyring: watch::Receiver<Arc<Keyring>>,
    pub(super) grace: watch::Receiver<Duration>,
}

/// Follows the keyring and the file for one guard.
pub(super) struct Secrets {
    shared: Arc<Shared>,
    number: usize,
    guard: Guard,
    followed: Followed,
    /// Closes this guard alone.
    closing: CancellationToken,
    routes: watch::Sender<Arc<Routes>>,
    tls: watch::Sender<Tls>,
    /// Said once until it changes.
    complaint: Option<String>,
}

impl Secrets {
    /// What the keyring holds now, and what follows it.
    ///
    /// # Errors
    ///
    /// When the service or TLS cannot be made ready.
    pub(super) fn begin(
        shared: &Arc<Shared>,
        number: usize,
        guard: &Guard,
        mut followed: Followed,
        closing: CancellationToken,
    ) -> Result<Begun, Error> {
        let sources = sources(number, guard);
        let newest = followed.keyring.borrow_and_update().clone();
        let service = |error| Error::Service(guard.listen, error);
        let made = Routes::new(sources, &shared.ground(&newest)).map_err(service)?;
        let (routes, published) = watch::channel(Arc::new(made));
        let identity = newest.identity(&guard.certificate);
        let complaint = identity.as_ref().err().map(ToString::to_string);
        if let Some(complaint) = &complaint {
            tracing::error!(guard = %guard.listen, "the guard's certificate cannot be used: {complaint}");
        }
        let first = tls_of(guard, identity.ok(), &published).map_err(|error| Error::Tls(guard.listen, error))?;
        let (tls, shown) = watch::channel(first);
        let (shared, guard) = (shared.clone(), guard.clone());
        let new = Self { shared, number, guard, followed, closing, routes, tls, complaint };
        Ok(Begun { secrets: new, routes: published, tls: shown })
    }

    /// Takes over each generation, until nobody publishes any more or the guard is gone from the file.
    pub(super) async fn follow(&mut self) {
        loop {
            // Both are there to the end of the process.
            let changed = tokio::select! {
                changed = self.followed.keyring.changed() => changed,
                changed = self.followed.guards.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            let newest = self.followed.keyring.borrow_and_update().clone();
            let Some(guard) = self.newest_guard() else { return self.close().await };
            // A changed configuration and its secrets come one after the other.
            if !newest.is_for(&guard) {
                continue;
            }
            let (sources, ground) = (sources(self.number, &guard), self.shared.ground(&newest));
            let before = self.routes.borrow().clone();
            // The system's roots are files.
            let made = tokio::task::spawn_blocking(move || Routes::again(sources, &ground, &before)).await;
            let listen = guard.listen;
            match made {
                Ok(Ok(routes)) => {
                    self.routes.send_replace(Arc::new(routes));
                    self.prove(&newest, guard);
                }
                Ok(Err(error)) => tracing::error!(guard = %listen, %error, "the guard stays as it was"),
                Err(error) => tracing::error!(guard = %listen, %error, "making a guard anew failed"),
            }
        }
    }

    /// What the file says of this guard: its address never changes. `None`: nothing any more.
    fn newest_guard(&mut self) -> Option<Guard> {
        let guards = self.followed.guards.borrow_and_update();
        let same = |guard: &&Guard| guard.listen == self.guard.listen;
        guards.get(self.number).filter(same).or_else(|| guards.iter().find(same)).cloned()
    }

    /// Takes nobody new, and ends whoever is there: in order, and by force after the grace period.
    async fn close(&mut self) {
        let listen = self.guard.listen;
        let grace = *self.followed.grace.borrow();
        tracing::warn!(
            guard = %listen, ?grace,
            "the guard is gone from the file: it takes nobody any more, and its callers have the grace period to end"
        );
        self.closing.cancel();
        let mut over = pin!(tokio::time::sleep(grace));
        let mut is_over = false;
        loop {
            tokio::select! {
                () = &mut over, if !is_over => {
                    is_over = true;
                    self.turn_out();
                }
                changed = self.followed.guards.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if self.newest_guard().is_some() {
                        tracing::warn!(guard = %listen, "the guard is in the file again, but only opens with a restart");
                    }
                }
            }
        }
    }

    /// Takes leave away from whoever still has it.
    fn turn_out(&mut self) {
        let newest = self.followed.keyring.borrow_and_update().clone();
        let callers = Callers { allow: Some(Vec::new()), ..Callers::clone(&self.guard.callers) };
        // Made of nothing that a file could have taken away.
        let nothing =
            Guard { service: Service::Status(503), hop: Arc::default(), callers: callers.into(), ..self.guard.clone() };
        let (sources, ground) = (sources(self.number, &nothing), self.shared.ground(&newest));
        match Routes::new(sources, &ground) {
            Ok(routes) => drop(self.routes.send_replace(Arc::new(routes))),
            Err(error) => tracing::error!(guard = %nothing.listen, %error, "callers of a closed guard stay"),
        }
    }

    /// An identity that stays the same keeps its sessions; one that cannot be used any more is not shown any more.
    fn prove(&mut self, newest: &Keyring, guard: Guard) {
        let identity = newest.identity(&guard.certificate);
        let same_terms =
            speaks_tcp(&guard) == speaks_tcp(&self.guard) && guard.keep_headers_from == self.guard.keep_headers_from;
        self.guard = guard;
        let complaint = identity.as_ref().err().map(ToString::to_string);
        if complaint != self.complaint {
            if let Some(complaint) = &complaint {
                tracing::error!(guard = %self.guard.listen, "the guard's certificate cannot be used: {complaint}");
            }
            self.complaint = complaint;
        }
        let identity = identity.ok();
        let same = match (&identity, &self.tls.borrow().identity) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        if same && same_terms {
            return;
        }
        match tls_of(&self.guard, identity, &self.routes.subscribe()) {
            Ok(tls) => {
                self.tls.send_replace(tls);
            }
            Err(error) => tracing::error!(guard = %self.guard.listen, %error, "the guard's TLS is as before"),
        }
    }
}

fn tls_of(
    guard: &Guard,
    identity: Option<Arc<Identity>>,
    routes: &watch::Receiver<Arc<Routes>>,
) -> Result<Tls, tls::Error> {
    let is_stream = speaks_tcp(guard);
    let config = |identity: Option<&Identity>| {
        if is_stream {
            tls::guard::for_streams(identity, Arc::new(Door(routes.clone())))
        } else {
            tls::guard::for_requests(identity)
        }
    };
    let keep_headers_from = guard.keep_headers_from.as_slice().into();
    Ok(Tls { config: config(identity.as_deref())?, nobody: config(None)?, identity, is_stream, keep_headers_from })
}

fn speaks_tcp(guard: &Guard) -> bool {
    matches!(guard.service, Service::Tcp { .. })
}

/// Admits to streams by the newest generation.
struct Door(watch::Receiver<Arc<Routes>>);

impl Doorkeeper for Door {
    fn takes_strangers(&self) -> bool {
        self.0.borrow().admits_strangers()
    }

    fn admit(&self, shown: &tls::callers::Shown) -> Result<(), TurnedAway> {
        let routes = self.0.borrow().clone();
        routes.admits(shown).map_err(super::streams::turned_away)
    }
}

/// A guard's service as the one rule of a table.
fn sources(number: usize, guard: &Guard) -> Sources {
    let hop = Hop { callers: Some(guard.callers.clone()), ..Hop::clone(&guard.hop) };
    let rule = Rule {
        hostname: None,
        path: None,
        service: guard.service.clone(),
        spelling: guard.spelling.clone(),
        others: Vec::new(),
        health: None,
        origin: guard.origin.clone(),
        limits: Limits::default(),
        forwarded: Forwarded::Keep,
        hops: Hops::always(Arc::new(hop)),
        position: FIRST_GUARD + number,
    };
    let ingress = Ingress { rules: vec![rule], defaults: guard.origin.clone() };
    let inner_hop = InnerHop { strips: true, prefixes: guard.prefixes.clone(), ..InnerHop::default() };
    Sources { ingress: Some(ingress), warp: WarpRouting::default(), inner_hop: Arc::new(inner_hop), version: -1 }
}
