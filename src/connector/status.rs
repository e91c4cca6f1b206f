//! What the connections are doing, for `/ready`, `/diag/tunnel` and the status page.

use std::{net::SocketAddr, sync::Arc};

use tokio::time::Instant;
use uuid::Uuid;

use crate::transport::Transport;

/// One registered connection.
#[derive(Clone, Debug)]
pub struct ConnectionState {
    /// Its transport.
    pub transport: Transport,
    /// The edge's address.
    pub edge: SocketAddr,
    /// What the edge says about its place.
    pub location: String,
    /// The edge's id of it. An edge may give one twice.
    pub id: Uuid,
    /// Since when.
    pub since: Instant,
    /// Why it does not run over QUIC although it might.
    pub why_not_quic: Option<Arc<str>>,
    /// It told the edge to send nothing new.
    pub unregistered: bool,
}

/// All connections of a connector, by index.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// `None` while not registered.
    pub connections: Vec<Option<ConnectionState>>,
    /// Who has each place; as many as there are connections.
    holders: Vec<Holder>,
    last: Holder,
    /// How many there are to be.
    planned: usize,
}

/// A connection that has, or had, the place of its index: one that was replaced has no say any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holder(u64);

impl Status {
    pub(super) fn new(count: usize) -> Self {
        let mut status = Self::default();
        status.plan(count);
        status
    }

    fn resize(&mut self, count: usize) {
        self.connections.resize(count, None);
        self.holders.resize(count, Holder::default());
    }

    /// A connection registered; it takes the place of the one before it.
    pub(super) fn registered(&mut self, index: u8, state: ConnectionState) -> Holder {
        let index = usize::from(index);
        if self.connections.len() <= index {
            self.resize(index + 1);
        }
        self.last.0 += 1;
        self.connections[index] = Some(state);
        self.holders[index] = self.last;
        self.last
    }

    fn held_by(&mut self, index: u8, holder: Holder) -> Option<&mut Option<ConnectionState>> {
        let index = usize::from(index);
        self.connections.get_mut(index).filter(|_| self.holders.get(index) == Some(&holder))
    }

    /// There are to be so many. One that is still finishing its requests stays until then.
    pub(super) fn plan(&mut self, count: usize) {
        self.planned = count;
        let busy = self.connections.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.resize(count.max(busy));
    }

    /// A connection told the edge to send nothing new.
    pub(super) fn unregistered(&mut self, index: u8, holder: Holder) {
        if let Some(Some(state)) = self.held_by(index, holder) {
            state.unregistered = true;
        }
    }

    /// A connection ended.
    pub(super) fn ended(&mut self, index: u8, holder: Holder) {
        if let Some(slot) = self.held_by(index, holder) {
            *slot = None;
        }
        self.plan(self.planned);
    }

    /// Connections that take requests.
    pub fn ready(&self) -> usize {
        self.connections.iter().flatten().filter(|state| !state.unregistered).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ConnectionState {
        ConnectionState {
            transport: Transport::Quic,
            edge: "10.0.0.1:7844".parse().unwrap(),
            location: String::new(),
            id: Uuid::nil(),
            since: Instant::now(),
            why_not_quic: None,
            unregistered: false,
        }
    }

    #[tokio::test]
    async fn who_was_replaced_has_no_say_even_under_the_same_id() {
        let mut status = Status::new(1);
        let (old, new) = (status.registered(0, state()), status.registered(0, state()));
        status.unregistered(0, old);
        status.ended(0, old);
        assert_eq!(status.ready(), 1);
        status.unregistered(0, new);
        assert_eq!(status.ready(), 0);
    }

    #[tokio::test]
    async fn one_too_many_stays_until_it_has_ended() {
        let mut status = Status::new(2);
        let last = status.registered(2, state());
        status.plan(1);
        assert_eq!(status.connections.len(), 3);
        status.ended(2, last);
        assert_eq!(status.connections.len(), 1);
    }
}
