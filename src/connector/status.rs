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
    /// The edge's id of it.
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
    /// How many there are to be.
    planned: usize,
}

impl Status {
    pub(super) fn new(count: usize) -> Self {
        Self { connections: vec![None; count], planned: count }
    }

    /// A connection registered; it takes the place of the one before it.
    pub(super) fn registered(&mut self, index: u8, state: ConnectionState) {
        let index = usize::from(index);
        if self.connections.len() <= index {
            self.connections.resize(index + 1, None);
        }
        self.connections[index] = Some(state);
    }

    /// There are to be so many. One that is still finishing its requests stays until then.
    pub(super) fn plan(&mut self, count: usize) {
        self.planned = count;
        if self.connections.len() < count {
            self.connections.resize(count, None);
        }
        while self.connections.len() > count && self.connections.last().is_some_and(Option::is_none) {
            self.connections.pop();
        }
    }

    /// A connection told the edge to send nothing new. One that was replaced has no say any more.
    pub(super) fn unregistered(&mut self, index: u8, id: Uuid) {
        if let Some(Some(state)) = self.connections.get_mut(usize::from(index))
            && state.id == id
        {
            state.unregistered = true;
        }
    }

    /// A connection ended.
    pub(super) fn ended(&mut self, index: u8, id: Uuid) {
        if let Some(slot) = self.connections.get_mut(usize::from(index))
            && slot.as_ref().is_some_and(|state| state.id == id)
        {
            *slot = None;
        }
        self.plan(self.planned);
    }

    /// Connections that take requests.
    pub fn ready(&self) -> usize {
        self.connections.iter().flatten().filter(|state| !state.unregistered).count()
    }
}
