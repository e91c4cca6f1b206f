//! Keeps connections to an edge: the first proves the transport, the rest follow at once, each comes back for ever.
//!
//! Knows how to reach and register with an edge, and hands every stream to [`crate::proxy`].

mod attempt;
mod connection;
pub mod discovery;
pub mod rules;
mod status;

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::{
    backoff::Backoff,
    config::Protocol,
    credentials::Token,
    metrics::Metrics,
    proxy::Proxy,
    shutdown::Tasks,
    tls::EdgeTls,
    transport::{Transport, quic::QuicOptions},
    wire::{calls::Push, registration::RegistrationError, rpc::RpcThread},
};
use attempt::Fault;
use discovery::{Addresses, EdgeSource};
pub use status::{ConnectionState, Status};

/// What a connector is told.
#[derive(Clone, Debug)]
pub struct ConnectorConfig {
    /// How many connections.
    pub connections: u8,
    /// Which transports.
    pub protocol: Protocol,
    /// Where the edge is.
    pub edge: EdgeSource,
    /// Trust towards the edge.
    pub tls: EdgeTls,
    /// QUIC settings.
    pub quic: QuicOptions,
    /// Bound on the answer to a registration.
    pub rpc_timeout: Duration,
    /// Exponent of the longest wait after refused registrations.
    pub retries: u8,
    /// Bound on draining.
    pub grace: Duration,
    /// Feature strings beside the usual ones.
    pub features: Vec<String>,
    /// Whether `postquantum` is among them.
    pub post_quantum: bool,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: ConnectorConfig,
    pub(crate) connector: Uuid,
    pub(crate) token: watch::Receiver<Arc<Token>>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) rpc: RpcThread,
    pub(crate) pushes: mpsc::Sender<Push>,
    pub(crate) local_rules: watch::Receiver<Option<Arc<str>>>,
    pub(crate) addresses: Addresses,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) tasks: Tasks,
}

/// The parts that a connector is put together from.
#[derive(Debug)]
pub struct Parts {
    /// Settings.
    pub config: ConnectorConfig,
    /// Connector id.
    pub connector: Uuid,
    /// The token, which may change.
    pub token: watch::Receiver<Arc<Token>>,
    /// Serves the streams.
    pub proxy: Arc<Proxy>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Takes pushed rules.
    pub pushes: mpsc::Sender<Push>,
    /// The file's rules as told to the edge of a tunnel that is managed locally.
    pub local_rules: watch::Receiver<Option<Arc<str>>>,
    /// Where its tasks run.
    pub tasks: Tasks,
}

/// A connector, not started.
#[derive(Debug)]
pub struct Connector {
    shared: Arc<Shared>,
}

impl Connector {
    /// Puts a connector together.
    pub fn new(parts: Parts) -> Self {
        let Parts { config, connector, token, proxy, metrics, pushes, local_rules, tasks } = parts;
        let addresses = Addresses::new(config.edge.clone());
        let (status, _) = watch::channel(Status::new(config.connections));
        let rpc = RpcThread::new();
        let shared =
            Shared { config, connector, token, proxy, metrics, rpc, pushes, local_rules, addresses, status, tasks };
        Self { shared: Arc::new(shared) }
    }

    /// What its connections are doing.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Connects and stays connected until the tasks are drained; returns when every connection has ended.
    pub async fn run(self) {
        let shared = self.shared;
        let (first_up, mut first) = watch::channel(false);
        let mut finished = Vec::new();
        for index in 0..shared.config.connections {
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            finished.push(ended);
            let first_up = (index == 0).then(|| first_up.clone());
            let mut first = first.clone();
            let shared_ = shared.clone();
            shared.tasks.spawn(async move {
                let _end = end;
                if index > 0 {
                    // The first connection proves that the edge is there and takes the token.
                    let draining = shared_.tasks.draining();
                    tokio::select! {
                        up = first.wait_for(|up| *up) => if up.is_err() { return },
                        () = draining.cancelled() => return,
                    }
                }
                keep(&shared_, index, first_up).await;
            });
        }
        drop(first_up);
        first.mark_unchanged();
        for ended in finished {
            let _ = ended.await;
        }
    }
}

/// Keeps one connection until drained.
async fn keep(shared: &Arc<Shared>, index: u8, first_up: Option<watch::Sender<bool>>) {
    let draining = shared.tasks.draining();
    let mut waits = Waits { network: Backoff::of_outages(), refusal: Backoff::of_refusals(shared.config.retries) };
    let mut keeper = attempt::Keeper::new(index, shared.config.protocol, shared.config.quic.clone());
    while !draining.is_cancelled() {
        let attempts = waits.attempts();
        let attempt = tokio::select! {
            attempt = keeper.connect(shared, attempts) => attempt,
            () = draining.cancelled() => return,
        };
        let fault = match attempt {
            Ok(live) => {
                waits.reset();
                if let Some(first_up) = &first_up {
                    first_up.send_replace(true);
                }
                connection::serve(shared, index, live).await
            }
            Err(fault) => fault,
        };
        if draining.is_cancelled() {
            return;
        }
        let wait = waits.after(&fault);
        tracing::warn!(index, error = %fault, wait = ?wait, "no connection, trying again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = draining.cancelled() => return,
        }
    }
}

/// How long to wait before the next attempt. An outage of the network is short and harmless to ask about often; a
/// refusal is neither, and the edge may say how long.
struct Waits {
    network: Backoff,
    refusal: Backoff,
}

impl Waits {
    fn attempts(&self) -> u8 {
        u8::try_from(self.network.attempts().max(self.refusal.attempts()).min(255)).unwrap_or(u8::MAX)
    }

    fn reset(&mut self) {
        self.network.reset();
        self.refusal.reset();
    }

    fn after(&mut self, fault: &Fault) -> Duration {
        match fault {
            Fault::Registration(RegistrationError::Refused { retry_after, .. }) => {
                let drawn = self.refusal.next_wait();
                // A hostile or confused edge must not send a connector to sleep for a year.
                drawn.max(retry_after.unwrap_or_default().min(Duration::from_secs(300)))
            }
            _ => self.network.next_wait(),
        }
    }
}

/// Which transports an attempt may use, in order.
fn transports(protocol: Protocol) -> &'static [Transport] {
    match protocol {
        Protocol::Auto => &[Transport::Quic, Transport::Http2],
        Protocol::Quic => &[Transport::Quic],
        Protocol::Http2 => &[Transport::Http2],
    }
}
