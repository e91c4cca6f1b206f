//! Sessions of handshakes that proved enough, for one service on one way.
//!
//! rustls gives a session to its store before anybody could look at the handshake (TLS 1.2), or long after, from
//! whichever task reads the connection (tickets of TLS 1.3). So each dial has a store of its own in front of the shared
//! one: it knows what became of its handshake, and lets through only what that earned.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls::{
    NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::ServerName,
};
use tokio::time::Instant;

/// Names with sessions; with `matchSNItoHost` a visitor chooses the name.
const MOST_NAMES: usize = 256;
/// Tickets of one name; a service may send any number.
const MOST_TICKETS: usize = 8;

/// When what a whole handshake verified stops counting.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    /// For sessions; `None`: when rustls says so, after at most a week.
    pub(super) sessions: Option<Instant>,
    /// Of the trust it needed, if that is only the one before a change; then connections are used no more either.
    pub(super) trust: Option<Instant>,
}

impl Ends {
    fn are_over(&self) -> bool {
        self.sessions.is_some_and(|end| end <= Instant::now())
    }
}

/// The sessions that may be resumed.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    of: HashMap<ServerName<'static>, OfName>,
    /// Oldest first.
    order: VecDeque<ServerName<'static>>,
}

#[derive(Debug, Default)]
struct OfName {
    group: Option<NamedGroup>,
    tls12: Option<(Tls12ClientSessionValue, Ends)>,
    tls13: VecDeque<(Tls13ClientSessionValue, Ends)>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names, and tickets of all of them together.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        let names = self.lock();
        (names.of.len(), names.of.values().map(|of| of.tls13.len()).sum())
    }

    fn edit(&self, name: ServerName<'static>, change: impl FnOnce(&mut OfName)) {
        let mut names = self.lock();
        if !names.of.contains_key(&name) {
            if names.of.len() >= MOST_NAMES
                && let Some(oldest) = names.order.pop_front()
            {
                names.of.remove(&oldest);
            }
            names.order.push_back(name.clone());
        }
        change(names.of.entry(name).or_default());
    }
}

/// What the handshake of a dial earned.
#[derive(Debug, Default)]
enum Earned {
    /// It is still going on.
    #[default]
    Unknown,
    /// Its sessions may be resumed until then.
    Sessions(Ends),
    Nothing,
}

#[derive(Debug, Default)]
struct State {
    earned: Earned,
    /// Of the session that this dial offers.
    offered: Ends,
    /// A session of TLS 1.2 comes before the handshake is over.
    waiting: Option<(ServerName<'static>, Tls12ClientSessionValue)>,
}

/// What one dial sees of them.
#[derive(Debug)]
pub(super) struct OfDial {
    kept: Arc<Sessions>,
    state: Mutex<State>,
}

impl OfDial {
    pub(super) fn new(kept: Arc<Sessions>) -> Self {
        Self { kept, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A whole handshake proved enough; what it verified counts until then.
    pub(super) fn proved(&self, ends: Ends) {
        let mut state = self.state();
        state.earned = Earned::Sessions(ends);
        if let Some((name, session)) = state.waiting.take() {
            self.kept.edit(name, |of| of.tls12 = Some((session, ends)));
        }
    }

    /// A session was resumed: what comes of it counts as long as the handshake that it is from.
    pub(super) fn resumed(&self) -> Ends {
        let offered = self.state().offered;
        self.proved(offered);
        offered
    }

    /// The handshake proved too little.
    pub(super) fn failed(&self) {
        let mut state = self.state();
        state.earned = Earned::Nothing;
        state.waiting = None;
    }
}

impl ClientSessionStore for OfDial {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.kept.edit(name, |of| of.group = Some(group));
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept.lock().of.get(&name.to_owned())?.group
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        let mut state = self.state();
        match state.earned {
            Earned::Unknown => state.waiting = Some((name, session)),
            Earned::Sessions(ends) => self.kept.edit(name, |of| of.tls12 = Some((session, ends))),
            Earned::Nothing => {}
        }
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let (session, ends) = {
            let mut names = self.kept.lock();
            let kept = &mut names.of.get_mut(&name.to_owned())?.tls12;
            kept.take_if(|(_, ends)| ends.are_over());
            kept.clone()?
        };
        self.state().offered = ends;
        Some(session)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        if let Some(of) = self.kept.lock().of.get_mut(name) {
            of.tls12 = None;
        }
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        // Before the end of the handshake no ticket is lawful (RFC 8446 §4.6.1), and none is kept.
        let Earned::Sessions(ends) = self.state().earned else { return };
        self.kept.edit(name, |of| {
            of.tls13.push_back((ticket, ends));
            if of.tls13.len() > MOST_TICKETS {
                of.tls13.pop_front();
            }
        });
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let (ticket, ends) = {
            let mut names = self.kept.lock();
            let kept = &mut names.of.get_mut(name)?.tls13;
            kept.retain(|(_, ends)| !ends.are_over());
            kept.pop_back()?
        };
        self.state().offered = ends;
        Some(ticket)
    }
}
