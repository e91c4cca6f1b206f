//! What a guard proves and whom it trusts, of the newest generation: its rule and its TLS are made anew with each.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Error, Shared, listener::Tls};
use crate::{
    config::{Forwarded, Guard, Hop, Hops, Ingress, InnerHop, Limits, MutualTls, Rule, Service, WarpRouting},
    metrics::FIRST_GUARD,
    proxy::{Routes, Sources},
    tls::{
        self,
        guard::{Doorkeeper, TurnedAway},
        keyring::{Identity, Keyring},
    },
};

/// Follows the keyring for one guard.
pub(super) struct Secrets {
    shared: Arc<Shared>,
    guard: Guard,
    sources: Sources,
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
    pub(super) fn new(
        shared: &Arc<Shared>,
        number: usize,
        guard: &Guard,
        mut keyring: watch::Receiver<Arc<Keyring>>,
    ) -> Result<(Self, watch::Receiver<Arc<Routes>>, watch::Receiver<Tls>), Error> {
        let sources = sources(number, guard);
        let newest = keyring.borrow_and_update().clone();
        let service = |error| Error::Service(guard.listen, error);
        let made = Routes::new(sources.clone(), &shared.ground(&newest)).map_err(service)?;
        let (routes, published) = watch::channel(Arc::new(made));
        let identity = newest.identity(&guard.certificate);
        let complaint = identity.as_ref().err().map(ToString::to_string);
        if let Some(complaint) = &complaint {
            tracing::error!(guard = %guard.listen, "the guard's certificate cannot be used: {complaint}");
        }
        let first = tls_of(guard, identity.ok(), &published).map_err(|error| Error::Tls(guard.listen, error))?;
        let (tls, shown) = watch::channel(first);
        let new = Self { shared: shared.clone(), guard: guard.clone(), sources, keyring, routes, tls, complaint };
        Ok((new, published, shown))
    }

    /// Takes over each generation, until nobody publishes any more.
    pub(super) async fn follow(&mut self) {
        while self.keyring.changed().await.is_ok() {
            let newest = self.keyring.borrow_and_update().clone();
            let (sources, ground) = (self.sources.clone(), self.shared.ground(&newest));
            // The system's roots are files.
            let made = tokio::task::spawn_blocking(move || Routes::new(sources, &ground)).await;
            match made {
                Ok(Ok(routes)) => {
                    self.routes.send_replace(Arc::new(routes));
                }
                Ok(Err(error)) => {
                    tracing::error!(guard = %self.guard.listen, %error, "the guard's service is as before")
                }
                Err(error) => tracing::error!(guard = %self.guard.listen, %error, "making a guard's service failed"),
            }
            self.prove(&newest);
        }
    }

    /// An identity that stays the same keeps its sessions; one that cannot be used any more is not shown any more.
    fn prove(&mut self, newest: &Keyring) {
        let identity = newest.identity(&self.guard.certificate);
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
        if same {
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
    let config = |identity: Option<&Identity>| match guard.service {
        Service::Tcp { .. } => tls::guard::for_streams(identity, Arc::new(Door(routes.clone()))),
        _ => tls::guard::for_requests(identity),
    };
    Ok(Tls { config: config(identity.as_deref())?, nobody: config(None)?, identity })
}

/// Admits to streams by the newest generation.
struct Door(watch::Receiver<Arc<Routes>>);

impl Doorkeeper for Door {
    fn takes_strangers(&self) -> bool {
        self.0.borrow().admits_strangers()
    }

    fn admit(&self, shown: &tls::callers::Shown) -> Result<(), TurnedAway> {
        let routes = self.0.borrow().clone();
        routes.admits(shown).map_err(|denied| super::streams::turned_away(denied))
    }
}

/// A guard's service as the one rule of a table.
fn sources(number: usize, guard: &Guard) -> Sources {
    // Its own hop to loopback or a unix socket is exempt in every mode.
    let mode = if guard.hop.mode == MutualTls::Always { MutualTls::Remote } else { guard.hop.mode };
    let hop = Hop { mode, callers: Some(guard.callers.clone()), ..Hop::clone(&guard.hop) };
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
    let inner_hop = InnerHop { strips: true, ..InnerHop::default() };
    Sources { ingress: Some(ingress), warp: WarpRouting::default(), inner_hop: Arc::new(inner_hop), version: -1 }
}
