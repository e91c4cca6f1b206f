//! Guards: listeners that do mutual TLS in front of a service in the same pod.
//!
//! A guard is the other end of a connector's inner hop, or of anybody's who has a certificate. Its service is the one
//! rule of a table of its own, so a request is served as an edge's is; its caller is the peer of the handshake. Knows no
//! tunnel. What is proven is asked anew: of each request, of each stream when trust or lists change. A guard that is gone
//! from the file ends: nobody would hear any more whom its trust has lost.

mod listener;
mod requests;
mod secrets;
mod streams;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{net::TcpListener, sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    config,
    metrics::Metrics,
    places::Places,
    proxy::Ground,
    shutdown::Tasks,
    tls::{self, keyring::Keyring},
    transport::visiting::Bounds,
};
use listener::Listener;
use secrets::Followed;

/// How long a guard that is asked to stop still accepts, unready: whoever chooses doors by `/readyz` needs a moment.
pub const UNREADY: Duration = Duration::from_secs(5);

/// For tasks whose connections have ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Bounds on what strangers can grow at all guards together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub connections: usize,
    /// Of these, from one address (IPv6: from one /64).
    pub connections_per_address: usize,
    /// Requests in flight, WebSockets included; half of them, rounded up, from one address.
    pub requests: usize,
    /// Of one connection.
    pub bounds: Bounds,
    /// For a TLS handshake.
    pub tls_time: Duration,
}

impl Default for Limits {
    /// As an edge's: an idle connection costs about 20 KiB, so all of them cost 640 MiB at most. Half of the places are
    /// open to one address, since a connector is one.
    fn default() -> Self {
        Self {
            connections: 32_768,
            connections_per_address: 16_384,
            requests: 32_768,
            bounds: Bounds {
                streams: 250,
                header_bytes: 256 << 10,
                header_lines: 100,
                header_time: Duration::from_secs(15),
                idle_time: Duration::from_secs(75),
                last_heads: Duration::from_secs(3),
            },
            tls_time: Duration::from_secs(10),
        }
    }
}

/// Why a guard cannot be there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its socket.
    #[error("guard: cannot listen on {addr}: {source}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Its service, as a rule.
    #[error("guard {0}: {1}")]
    Service(SocketAddr, String),
    /// Its TLS.
    #[error("guard {0}: {1}")]
    Tls(SocketAddr, tls::Error),
}

/// What guards are made with.
#[derive(Clone, Debug)]
pub struct GuardConfig {
    /// The guards of the file, in order.
    pub guards: Vec<config::Guard>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Addresses that no guard may dial.
    pub forbidden: Arc<[SocketAddr]>,
    /// Bounds on what strangers can grow.
    pub limits: Limits,
    /// How long it still accepts once it drains, [`UNREADY`] by default; counted from the drain.
    pub unready: Duration,
}

/// What all guards of a process share.
#[derive(Debug)]
struct Shared {
    metrics: Arc<Metrics>,
    forbidden: Arc<[SocketAddr]>,
    limits: Limits,
    connections: Arc<Places>,
    requests: Arc<Places>,
    /// Of their own, so that a connector's end does not cut their requests.
    tasks: Tasks,
    /// Cancelled when doors close.
    closing: CancellationToken,
    /// What outlived the grace period.
    cut: AtomicU64,
}

impl Shared {
    fn ground(&self, keyring: &Arc<Keyring>) -> Ground {
        Ground { metrics: self.metrics.clone(), forbidden: self.forbidden.clone(), keyring: keyring.clone() }
    }
}

/// A view on guards that outlives [`Guards::run`].
#[derive(Clone, Debug)]
pub struct GuardsHandle {
    shared: Arc<Shared>,
    listeners: Arc<[Listening]>,
}

/// One guard as it is shown to people.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Where it listens.
    pub address: SocketAddr,
    /// The service as configured.
    pub service: String,
    closing: CancellationToken,
}

impl Listening {
    /// Whether it takes nobody new: the guards stop, or it is gone from the file.
    pub fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }
}

impl GuardsHandle {
    /// Callers' connections.
    pub fn connections(&self) -> usize {
        self.shared.connections.taken()
    }

    /// Requests in flight, WebSockets included.
    pub fn in_flight(&self) -> usize {
        self.shared.requests.taken()
    }

    /// Connections and requests that outlived the grace period.
    pub fn cut(&self) -> u64 {
        self.shared.cut.load(Ordering::Relaxed)
    }

    /// Panics that ended one request or connection each.
    pub fn panics(&self) -> u64 {
        self.shared.tasks.panics()
    }

    /// Each guard of the start, in the order of the file.
    pub fn listeners(&self) -> &[Listening] {
        &self.listeners
    }
}

/// Bound guards that accept nobody yet.
#[derive(Debug)]
pub struct Guards {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    unready: Duration,
}

impl Guards {
    /// Binds every socket.
    ///
    /// # Errors
    ///
    /// [`Error::Listen`].
    pub async fn bind(config: GuardConfig) -> Result<Self, Error> {
        let GuardConfig { guards, metrics, forbidden, limits, unready } = config;
        let shared = Arc::new(Shared {
            metrics,
            forbidden,
            connections: Places::new(limits.connections, limits.connections_per_address),
            requests: Places::new(limits.requests, limits.requests.div_ceil(2)),
            limits,
            tasks: Tasks::new(),
            closing: CancellationToken::new(),
            cut: AtomicU64::new(0),
        });
        let mut listeners = Vec::with_capacity(guards.len());
        for (number, guard) in guards.into_iter().enumerate() {
            let addr = guard.listen;
            let socket = TcpListener::bind(addr).await.map_err(|source| Error::Listen { addr, source })?;
            listeners.push(Listener { number, guard, socket, closing: shared.closing.child_token() });
        }
        Ok(Self { shared, listeners, unready })
    }

    /// Where they listen, in the order of the file.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let unknown = |listener: &Listener| listener.guard.listen;
        self.listeners.iter().map(|one| one.socket.local_addr().unwrap_or_else(|_| unknown(one))).collect()
    }

    /// A view on them.
    pub fn handle(&self) -> GuardsHandle {
        let listening = |(address, one): (SocketAddr, &Listener)| Listening {
            address,
            service: one.guard.spelling.clone(),
            closing: one.closing.clone(),
        };
        let listeners = self.addresses().into_iter().zip(&self.listeners).map(listening).collect();
        GuardsHandle { shared: self.shared.clone(), listeners }
    }

    /// Begins to accept with what is in the keyring, and follows it and the guards of the file, as far as they listen
    /// where they did. One whose address is gone from the file closes at once, and its callers have the grace period
    /// for what they are about. Ends when `tasks` drain and every caller has got what he had asked for, or the grace
    /// period, which counts from the beginning of the drain, is over.
    ///
    /// # Errors
    ///
    /// When a guard cannot serve with what is configured.
    pub async fn run(
        self,
        guards: watch::Receiver<Vec<config::Guard>>,
        keyring: watch::Receiver<Arc<Keyring>>,
        grace: watch::Receiver<Duration>,
        tasks: Tasks,
    ) -> Result<(), Error> {
        let Self { shared, listeners, unready } = self;
        let _end = End(shared.tasks.clone());
        for listener in listeners {
            let followed = Followed { guards: guards.clone(), keyring: keyring.clone(), grace: grace.clone() };
            listener.serve(&shared, followed)?;
        }
        tasks.draining().cancelled().await;
        let began = tasks.drained_at().unwrap_or_else(Instant::now);
        // A short grace period is mostly for what is in flight.
        let until = began + unready.min(*grace.borrow() / 2);
        tracing::info!(for_ = ?until.saturating_duration_since(Instant::now()), "guards are unready and still accept");
        tokio::time::sleep_until(until).await;
        shared.closing.cancel();
        let left = (began + *grace.borrow()).saturating_duration_since(Instant::now());
        let ended = tokio::time::timeout(left, shared.connections.empty()).await.is_ok();
        if !ended {
            let cut = shared.connections.taken() as u64;
            shared.cut.store(cut, Ordering::Relaxed);
            tracing::warn!(cut, "the grace period is over: what callers of guards still had in flight is cut");
        }
        // Whoever has no place any more may still be writing a line.
        shared.tasks.finish(if ended { LAST_WORDS } else { Duration::ZERO }).await;
        Ok(())
    }
}

/// Whoever is stopped in the middle takes his tasks with him.
struct End(Tasks);

impl Drop for End {
    fn drop(&mut self) {
        self.0.kill();
    }
}
