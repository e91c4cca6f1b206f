//! Keeps connections to an edge: the first takes the token, the rest follow at once, each comes back for ever.
//!
//! Knows how to reach and register with an edge, and hands every stream to [`crate::proxy`].

mod addresses;
mod attempt;
mod choice;
mod connection;
pub mod discovery;
mod drain;
mod keep;
mod liveness;
mod network;
pub mod rules;
mod status;

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::{
    config::Protocol,
    credentials::Token,
    metrics::Metrics,
    proxy::Proxy,
    shutdown::Tasks,
    tls::EdgeTls,
    transport::quic::QuicOptions,
    wire::{calls::Push, rpc::RpcThread},
};
use addresses::Addresses;
use choice::Choice;
use discovery::EdgeSource;
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
    /// Bound on draining, as it is when the drain begins.
    pub grace: watch::Receiver<Duration>,
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
    addresses: Arc<Addresses>,
    choice: Choice,
    /// Connections that were replaced and finish what they have.
    retired: TaskTracker,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) tasks: Tasks,
}

impl Shared {
    /// Whether what is still open now is cut.
    fn grace_is_over(&self) -> bool {
        self.tasks.drained_at().is_some_and(|began| began.elapsed() >= *self.config.grace.borrow())
    }
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
        let addresses = Arc::new(Addresses::new(config.edge.clone(), config.connections));
        let choice = Choice::new(config.protocol);
        let (status, _) = watch::channel(Status::new(addresses.count()));
        let (rpc, retired) = (RpcThread::new(), TaskTracker::new());
        let shared = Shared {
            config,
            connector,
            token,
            proxy,
            metrics,
            rpc,
            pushes,
            local_rules,
            addresses,
            choice,
            retired,
            status,
            tasks,
        };
        Self { shared: Arc::new(shared) }
    }

    /// What its connections are doing.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Connects and stays connected until the tasks are drained; returns when every connection has ended.
    pub async fn run(self) {
        let shared = self.shared;
        shared.addresses.follow(&shared.tasks);
        let (first_up, first) = watch::channel(false);
        let keepers = TaskTracker::new();
        let start = |index: u8| {
            let first_up = (index == 0).then(|| first_up.clone());
            let (shared_, mut first) = (shared.clone(), first.clone());
            shared.tasks.spawn(keepers.track_future(async move {
                if index > 0 {
                    // The first connection proves that the edge is there and takes the token.
                    let draining = shared_.tasks.draining();
                    tokio::select! {
                        up = first.wait_for(|up| *up) => if up.is_err() { return },
                        () = draining.cancelled() => return,
                    }
                }
                keep::keep(shared_, index, first_up).await;
            }));
        };
        let mut changes = shared.addresses.changes();
        let draining = shared.tasks.draining();
        let mut started = 0;
        loop {
            changes.borrow_and_update();
            let count = shared.addresses.count();
            for index in started..count {
                start(u8::try_from(index).unwrap_or(u8::MAX));
            }
            started = started.max(count);
            shared.status.send_if_modified(|status| {
                let before = status.connections.len();
                status.plan(count);
                status.connections.len() != before
            });
            shared.choice.keep_only(|address| shared.addresses.knows(*address));
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { break },
                () = draining.cancelled() => break,
            }
        }
        keepers.close();
        keepers.wait().await;
        shared.retired.close();
        shared.retired.wait().await;
    }
}
