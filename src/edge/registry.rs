//! Which connections are alive, by tunnel, and which of them takes the next request.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::watch;
use uuid::Uuid;

use super::session::{InFlight, Session};

/// The live connections of one edge.
#[derive(Debug, Default)]
pub struct Registry {
    tunnels: RwLock<HashMap<Uuid, Arc<[Arc<Session>]>>>,
    turn: AtomicUsize,
    changes: watch::Sender<u64>,
    living: Mutex<Living>,
}

/// Below this many the list of the living is not worth a look.
const FEW: usize = 64;

/// Every connection that still runs, those that lost their place or unregistered included. The dead are taken out
/// whenever the list has doubled, so it is never longer than twice the connections there were, and [`FEW`].
#[derive(Debug, Default)]
struct Living {
    list: Vec<Weak<Session>>,
    look_at: usize,
}

impl Living {
    fn add(&mut self, session: &Arc<Session>) {
        if self.list.len() >= self.look_at.max(FEW) {
            self.list.retain(|session| session.strong_count() > 0);
            self.look_at = self.list.len() * 2;
        }
        self.list.push(Arc::downgrade(session));
    }
}

impl Registry {
    /// Adds a connection. One with the same connector id and index loses its place: it gets nothing new. Says whether
    /// there was one.
    pub fn add(&self, session: Arc<Session>) -> bool {
        let mut took_over = false;
        self.living.lock().unwrap_or_else(PoisonError::into_inner).add(&session);
        self.change(session.tunnel(), |list| {
            list.retain(|known| {
                let same = known.connector() == session.connector() && known.index() == session.index();
                if same {
                    known.retire();
                    took_over = true;
                }
                !same
            });
            list.push(session);
        });
        took_over
    }

    /// Takes a connection out; nothing new is sent to it.
    pub fn remove(&self, session: &Arc<Session>) {
        self.change(session.tunnel(), |list| list.retain(|known| !Arc::ptr_eq(known, session)));
    }

    fn change(&self, tunnel: Uuid, change: impl FnOnce(&mut Vec<Arc<Session>>)) {
        let mut tunnels = self.tunnels.write().unwrap_or_else(PoisonError::into_inner);
        let mut list = tunnels.get(&tunnel).map(|list| list.to_vec()).unwrap_or_default();
        change(&mut list);
        if list.is_empty() {
            tunnels.remove(&tunnel);
        } else {
            tunnels.insert(tunnel, list.into());
        }
        drop(tunnels);
        self.changes.send_modify(|n| *n += 1);
    }

    /// Counts every addition and removal; for those who wait for one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The connections of a tunnel.
    pub fn of(&self, tunnel: Uuid) -> Arc<[Arc<Session>]> {
        let tunnels = self.tunnels.read().unwrap_or_else(PoisonError::into_inner);
        tunnels.get(&tunnel).cloned().unwrap_or_else(|| Arc::from([]))
    }

    /// Every connection that runs, also one that takes no requests any more but finishes those it has.
    pub fn living(&self) -> Vec<Arc<Session>> {
        let living = self.living.lock().unwrap_or_else(PoisonError::into_inner);
        living.list.iter().filter_map(Weak::upgrade).collect()
    }

    /// Every connection that takes requests.
    pub fn all(&self) -> Vec<Arc<Session>> {
        let tunnels = self.tunnels.read().unwrap_or_else(PoisonError::into_inner);
        tunnels.values().flat_map(|list| list.iter().cloned()).collect()
    }

    /// The connection with the fewest requests in flight among those of `tunnels`, in turn among equals, but none of
    /// `tried`. The request is counted before anybody can remove the connection: whoever removes it and then finds
    /// nothing in flight may close it.
    pub fn pick(&self, tunnels: &[Uuid], tried: &[Arc<Session>]) -> Option<InFlight> {
        // A turn a request, not a try: else a connection that refuses everything would be the first choice of all.
        let turn = self.turn.fetch_add(usize::from(tried.is_empty()), Ordering::Relaxed);
        let known = self.tunnels.read().unwrap_or_else(PoisonError::into_inner);
        let mut best: Option<(usize, &Arc<Session>)> = None;
        let connections = tunnels.iter().filter_map(|tunnel| known.get(tunnel)).flat_map(|list| {
            let (late, early) = list.split_at(turn % list.len());
            early.iter().chain(late)
        });
        for session in connections {
            let load = session.in_flight();
            if best.is_some_and(|(least, _)| load >= least)
                || session.is_retired()
                || tried.iter().any(|tried| Arc::ptr_eq(tried, session))
            {
                continue;
            }
            best = Some((load, session));
        }
        best.map(|(_, session)| session.enter())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{edge::session::Link, wire::registration::Registration};

    /// A connection whose other end says nothing more.
    pub(in crate::edge) async fn session(index: u8) -> Arc<Session> {
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let (_server, link) = tokio::join!(h2::server::handshake(theirs), h2::client::handshake(ours));
        let registration = Registration {
            account: "adit".into(),
            secret: vec![7; 32].into(),
            tunnel: Uuid::from_u128(1),
            index,
            connector: Uuid::from_u128(2),
            features: Vec::new(),
            version: "test".into(),
            arch: "test".into(),
            local_ip: None,
            previous_attempts: 0,
        };
        Arc::new(Session::new(&registration, Link::Http2(link.unwrap().0)))
    }

    #[tokio::test]
    async fn who_was_taken_over_or_left_is_no_stranger_but_still_known_while_it_runs() {
        let registry = Registry::default();
        let (first, second) = (session(0).await, session(0).await);
        assert!(!registry.add(first.clone()) && registry.add(second.clone()));
        assert!(first.is_retired() && !first.is_revoked(), "its place is taken, its secret is good");
        registry.remove(&second);
        assert!(registry.all().is_empty());
        assert_eq!(registry.living().len(), 2);
        drop(first);
        assert_eq!(registry.living().len(), 1, "who has ended is not kept");
        second.revoke();
        assert!(second.is_retired() && second.is_revoked());
    }

    #[tokio::test]
    async fn the_list_of_the_living_does_not_grow_with_those_who_came_and_went() {
        let registry = Registry::default();
        let stays = session(0).await;
        registry.add(stays.clone());
        for _ in 0..FEW * 3 {
            let leaves = session(1).await;
            registry.add(leaves.clone());
            registry.remove(&leaves);
        }
        assert!(registry.living.lock().unwrap().list.len() <= FEW);
        assert!(registry.living().iter().any(|living| Arc::ptr_eq(living, &stays)));
    }
}
