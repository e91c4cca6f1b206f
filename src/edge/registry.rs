//! Which connections are alive, by tunnel, and which of them takes the next request.

use std::{
    collections::HashMap,
    sync::{
        Arc, RwLock,
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
}

impl Registry {
    /// Adds a connection. One with the same connector id and index loses its place: it gets nothing new. Says whether
    /// there was one.
    pub fn add(&self, session: Arc<Session>) -> bool {
        let mut took_over = false;
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
        let mut tunnels = self.tunnels.write().unwrap_or_else(std::sync::PoisonError::into_inner);
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
        let tunnels = self.tunnels.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        tunnels.get(&tunnel).cloned().unwrap_or_else(|| Arc::from([]))
    }

    /// Every connection.
    pub fn all(&self) -> Vec<Arc<Session>> {
        let tunnels = self.tunnels.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        tunnels.values().flat_map(|list| list.iter().cloned()).collect()
    }

    /// The connection with the fewest requests in flight among those of `tunnels`, in turn among equals, but none of
    /// `tried`. The request is counted before anybody can remove the connection: whoever removes it and then finds
    /// nothing in flight may close it.
    pub fn pick(&self, tunnels: &[Uuid], tried: &[Arc<Session>]) -> Option<InFlight> {
        // A turn a request, not a try: else a connection that refuses everything would be the first choice of all.
        let turn = self.turn.fetch_add(usize::from(tried.is_empty()), Ordering::Relaxed);
        let known = self.tunnels.read().unwrap_or_else(std::sync::PoisonError::into_inner);
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
