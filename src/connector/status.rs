//! What the connections are doing, for `/ready`, `/diag/tunnel` and the status page.

use std::net::SocketAddr;

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
    /// It told the edge to send nothing new.
    pub unregistered: bool,
}

/// All connections of a connector, by index.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// `None` while not registered.
    pub connections: Vec<Option<ConnectionState>>,
}

impl Status {
    pub(super) fn new(count: u8) -> Self {
        Self { connections: vec![None; usize::from(count)] }
    }

    pub(super) fn set(&mut self, index: u8, state: Option<ConnectionState>) {
        if let Some(slot) = self.connections.get_mut(usize::from(index)) {
            *slot = state;
        }
    }

    pub(super) fn unregistered(&mut self, index: u8) {
        if let Some(Some(state)) = self.connections.get_mut(usize::from(index)) {
            state.unregistered = true;
        }
    }

    /// Connections that take requests.
    pub fn ready(&self) -> usize {
        self.connections.iter().flatten().filter(|state| !state.unregistered).count()
    }
}
