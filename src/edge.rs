//! The self-hosted edge: connectors on 7844 over QUIC and HTTP/2, visitors on HTTP and HTTPS.
//!
//! [`Edge::bind`] takes every socket first, so that a test or `demo` knows the addresses; [`Edge::run`] serves until
//! it is told to stop. Shares the wire with the connector and nothing else.

pub mod certificates;
mod control;
mod fate;
mod follow;
mod front;
mod leaf;
pub mod limits;
mod listen;
pub mod registry;
mod relay;
pub mod session;
pub mod state;
mod trust;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    metrics::edge::EdgeMetrics,
    shutdown::Tasks,
    tls,
    transport::Transport,
    wire::{H2_SERVER_NAME, Head, PROBE_SERVER_NAME, QUIC_SERVER_NAME, connect::Answer, rpc::RpcThread},
};
use certificates::Certificates;
use front::Door;
use leaf::Leaf;
use limits::{Limits, Places};
use registry::Registry;
use relay::Outcome;
use state::{StateDir, Tunnels};

/// How long an edge that is asked to stop still accepts visitors, unready: whoever chooses doors by `/readyz` needs a
/// moment to see it.
pub const UNREADY: Duration = Duration::from_secs(2);
/// Visitors who connected before the listeners closed have this long to say what they want.
const LAST_HEADS: Duration = Duration::from_secs(3);

/// What an edge is told.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// Its state.
    pub state: StateDir,
    /// For connectors, UDP and TCP; port 0 takes a free one, the same for both.
    pub listen: SocketAddr,
    /// For visitors in clear.
    pub http: Option<SocketAddr>,
    /// For visitors over TLS.
    pub https: Option<SocketAddr>,
    /// Visitors' TLS: certificates from files, and what visitors are asked for.
    pub certificates: Vec<certificates::FileCertificate>,
    /// What registration tells connectors about the place.
    pub location: String,
    /// Bounds on what strangers can grow.
    pub limits: Limits,
    /// Whether a request that was not sent yet, or that may be sent twice, tries another connection.
    pub retry: bool,
    /// How long visitors are still accepted once the edge drains, [`UNREADY`] by default.
    pub unready: Duration,
}

impl EdgeConfig {
    /// An edge on loopback with free ports, which has no balancer in front and so closes its doors at once.
    pub fn loopback(state: StateDir) -> Self {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Self {
            state,
            listen: any,
            http: Some(any),
            https: Some(any),
            certificates: Vec::new(),
            location: "loopback".into(),
            limits: Limits::default(),
            retry: true,
            unready: Duration::ZERO,
        }
    }
}

/// Why an edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its state.
    #[error("{0}")]
    State(#[from] state::Error),
    /// Visitors' certificates, or trust in theirs.
    #[error("certificates: {0}")]
    Certificates(#[from] certificates::Error),
    /// A certificate.
    #[error("{0}")]
    Tls(#[from] tls::Error),
    /// A socket.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Following the state or the visitors' certificates.
    #[error("cannot follow files: {0}")]
    Follow(#[source] io::Error),
}

/// What all tasks of an edge share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: StateDir,
    pub(crate) tunnels: watch::Sender<Arc<Tunnels>>,
    /// As last read, which may be newer, and half written: only to let in who is in it.
    newest: watch::Sender<Arc<Tunnels>>,
    reading: Mutex<follow::Reading>,
    pub(crate) registry: Registry,
    certificates: Arc<Certificates>,
    pub(crate) rules: Mutex<HashMap<Uuid, follow::Rules>>,
    pub(crate) rpc: RpcThread,
    pub(crate) tasks: Tasks,
    pub(crate) location: String,
    pub(crate) limits: Limits,
    pub(crate) retry: bool,
    pub(crate) metrics: EdgeMetrics,
    /// Visitors' connections.
    visitors: Arc<Places>,
    /// Visitors' requests in flight.
    requests: Arc<Places>,
    /// Connectors that have not registered yet.
    arrivals: Arc<Places>,
    /// Cancelled when the visitors' doors close, some time after the drain began.
    pub(crate) closing: CancellationToken,
    /// Cancelled when connectors are let go, once no visitor can ask any more.
    pub(crate) moving: CancellationToken,
}

/// A bound edge.
#[derive(Debug)]
pub struct Edge {
    shared: Arc<Shared>,
    quic: quinn::Endpoint,
    tcp: TcpListener,
    connector_tls: Arc<rustls::ServerConfig>,
    http: Option<TcpListener>,
    https: Option<TcpListener>,
    unready: Duration,
}

/// A view on a running edge, for its admin address, `demo` and tests.
#[derive(Clone, Debug)]
pub struct EdgeHandle(Arc<Shared>);

impl Edge {
    /// Reads the state, makes its certificates and binds every socket.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn bind(config: EdgeConfig, tasks: Tasks) -> Result<Self, Error> {
        let (authority, tunnels) = config.state.open()?;
        let authority = Arc::new(authority);
        let names = [QUIC_SERVER_NAME, H2_SERVER_NAME, PROBE_SERVER_NAME];
        let leaf = Arc::new(Leaf::new(authority.clone(), &names, SystemTime::now)?);
        let (tunnels, known) = watch::channel(Arc::new(tunnels));
        let newest = watch::Sender::new(known.borrow().clone());
        let certificates = Arc::new(Certificates::new(config.certificates, authority, known, SystemTime::now)?);
        let (quic, tcp) = listen::bind_pair(config.listen, leaf.clone()).await?;
        let connector_tls = listen::connector_tls(leaf)?;
        let http = listen::bind_optional(config.http).await?;
        let https = listen::bind_optional(config.https).await?;
        let shared = Arc::new(Shared {
            state: config.state,
            newest,
            reading: Mutex::default(),
            tunnels,
            registry: Registry::default(),
            certificates,
            rules: Mutex::default(),
            rpc: RpcThread::new(),
            tasks,
            location: config.location,
            retry: config.retry,
            metrics: EdgeMetrics::new(),
            visitors: Places::new(config.limits.connections, config.limits.connections_per_address),
            requests: Places::new(config.limits.requests, config.limits.requests_per_address()),
            arrivals: Places::new(config.limits.arrivals, config.limits.arrivals_per_address),
            limits: config.limits,
            closing: CancellationToken::new(),
            moving: CancellationToken::new(),
        });
        Ok(Self { shared, quic, tcp, connector_tls, http, https, unready: config.unready })
    }

    /// Where connectors find it.
    pub fn connector_addr(&self) -> SocketAddr {
        self.tcp.local_addr().unwrap_or_else(|_| unreachable_addr())
    }

    /// Where visitors find it in clear.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Where visitors find it over TLS.
    pub fn https_addr(&self) -> Option<SocketAddr> {
        self.https.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// A view that outlives [`Edge::run`].
    pub fn handle(&self) -> EdgeHandle {
        EdgeHandle(self.shared.clone())
    }

    /// Serves until its tasks are drained and every connection has ended in good order: visitors are served for the
    /// time in [`EdgeConfig::unready`] as if nothing were, then their doors close and their connections end with what
    /// they have; then connectors are let go as they become idle. Who waits for this sets the limit.
    ///
    /// # Errors
    ///
    /// When the state cannot be watched.
    pub async fn run(self) -> Result<(), Error> {
        let Self { shared, quic, tcp, connector_tls, http, https, unready } = self;
        let tasks = shared.tasks.clone();
        follow::start(&shared).map_err(Error::Follow)?;
        follow::start_certificates(&shared).map_err(Error::Follow)?;
        tasks.attend(listen::accept_quic(shared.clone(), quic.clone()));
        tasks.spawn(listen::accept_tcp(shared.clone(), tcp, connector_tls));
        if let Some(listener) = http {
            tasks.spawn(front::serve(shared.clone(), listener, Door::Clear));
        }
        if let Some(listener) = https {
            tasks.spawn(front::serve(shared.clone(), listener, Door::Tls));
        }
        tasks.draining().cancelled().await;
        tracing::info!(for_ = ?unready, "the edge is unready and still accepts visitors");
        tokio::time::sleep(unready).await;
        shared.closing.cancel();
        // Whoever comes through the doors in the last moment has still to find connectors behind them.
        let _ = tokio::time::timeout(LAST_HEADS, shared.visitors.empty()).await;
        shared.moving.cancel();
        quic.wait_idle().await;
        Ok(())
    }
}

fn unreachable_addr() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)
}

impl EdgeHandle {
    /// Whether it takes part: not draining.
    pub fn is_draining(&self) -> bool {
        self.0.tasks.draining().is_cancelled()
    }

    /// Its metrics as text, with what is counted elsewhere taken over now.
    pub fn metrics(&self) -> String {
        let shared = &self.0;
        let tunnels = self.tunnels();
        let counts = tunnels.iter().flat_map(|tunnel| {
            let sessions = shared.registry.of(tunnel.id);
            [Transport::Quic, Transport::Http2].map(|transport| {
                let count = sessions.iter().filter(|session| session.transport() == transport).count();
                (tunnel.id.to_string(), transport.as_str(), count)
            })
        });
        shared.metrics.set_connections(counts);
        shared.metrics.set_certificates(shared.certificates.ends());
        let (visitors, arrivals) = (shared.visitors.taken(), shared.arrivals.taken());
        shared.metrics.set_gauges(visitors, arrivals, self.is_draining(), shared.tasks.panics());
        shared.metrics.expose()
    }

    /// The live connections.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// The tunnels of its state, as last read.
    pub fn tunnels(&self) -> Arc<Tunnels> {
        self.0.tunnels.borrow().clone()
    }

    /// Reads the state again at once, and pushes what has changed. Visitors' certificates are read again in a task, once
    /// their files have settled.
    pub fn reread(&self) {
        let shared = self.0.clone();
        self.0.tasks.attend(async move { follow::reload_certificates(&shared).await });
        follow::reread(&self.0);
        follow::push_changes(&self.0);
    }

    /// Follows the tunnels of its state.
    pub fn tunnels_changed(&self) -> watch::Receiver<Arc<Tunnels>> {
        self.0.tunnels.subscribe()
    }

    /// Waits until `count` connections of `tunnel` are registered.
    ///
    /// # Errors
    ///
    /// When `limit` passes first; with the number reached.
    pub async fn registered(&self, tunnel: Uuid, count: usize, limit: Duration) -> Result<(), usize> {
        let mut changes = self.0.registry.changes();
        let reached = async {
            while self.0.registry.of(tunnel).len() < count {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::time::timeout(limit, reached).await.map_err(|_| self.0.registry.of(tunnel).len())
    }

    /// Copies a local TCP connection to `dest` behind a connector of `tunnel`: private-network TCP (protocol.md §8.5).
    ///
    /// # Errors
    ///
    /// With the reason why it could not be connected.
    pub async fn forward_tcp(&self, tunnel: Uuid, dest: SocketAddr, local: TcpStream) -> Result<(), String> {
        let in_flight = self.0.registry.pick(&[tunnel], &[]).ok_or("no connection")?;
        let opened = in_flight.session().open(&Head::Tcp(dest)).await.map_err(|error| error.to_string())?;
        let (answer, recv) = opened.answer.answer().await.map_err(|error| error.to_string())?;
        match answer {
            Answer::Connected | Answer::Response(_) => {
                let own = in_flight.session().is_own();
                let ends = if own { relay::Ends::Apart } else { relay::Ends::Together };
                if let Outcome::Cut(local) = relay::splice(local, opened.send, recv, ends).await {
                    relay::cut(&local);
                }
                Ok(())
            }
            Answer::Failed { error, .. } => Err(error),
        }
    }
}
