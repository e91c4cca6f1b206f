//! What a guard proves, whom it trusts and where it leads, of the newest generation of secrets and configuration: its rule
//! and its TLS are made anew with each.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Error, Shared, listener::Tls};
use crate::{
    config::{Forwarded, Guard, Hop, Hops, Ingress, InnerHop, Limits, Rule, Service, WarpRouting},
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

/// Follows the keyring and the file for one guard.
pub(super) struct Secrets {
    shared: Arc<Shared>,
    number: usize,
    guard: Guard,
    guards: watch::Receiver<Vec<Guard>>,
    keyring: watch::Receiver<Arc<Keyring>>,
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
        guards: watch::Receiver<Vec<Guard>>,
        mut keyring: watch::Receiver<Arc<Keyring>>,
    ) -> Result<Begun, Error> {
        let sources = sources(number, guard);
        let newest = keyring.borrow_and_update().clone();
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
        let new = Self { shared, number, guard, guards, keyring, routes, tls, complaint };
        Ok(Begun { secrets: new, routes: published, tls: shown })
    }

    /// Takes over each generation, until nobody publishes any more.
    pub(super) async fn follow(&mut self) {
        loop {
            // Both are there to the end of the process.
            let changed = tokio::select! {
                changed = self.keyring.changed() => changed,
                changed = self.guards.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            let newest = self.keyring.borrow_and_update().clone();
            let guard = self.newest_guard();
            // A changed configuration and its secrets come one after the other.
            if !newest.is_for(&guard.certificate, &guard.callers) {
                continue;
            }
            let (sources, ground) = (sources(self.number, &guard), self.shared.ground(&newest));
            // The system's roots are files.
            let made = tokio::task::spawn_blocking(move || Routes::new(sources, &ground)).await;
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

    /// What the file says of this guard: its address never changes.
    fn newest_guard(&mut self) -> Guard {
        let guards = self.guards.borrow_and_update();
        let same = |guard: &&Guard| guard.listen == self.guard.listen;
        let guard = guards.get(self.number).filter(same).or_else(|| guards.iter().find(same));
        guard.unwrap_or(&self.guard).clone()
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
