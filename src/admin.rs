//! The admin address: health, metrics, the rules in force, and a page for people (protocol.md §10.2).
//!
//! Liveness says that the process answers, nothing more: an edge that is away must not kill a pod.

pub mod drain;
mod edge;
mod guard;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use uuid::Uuid;

use crate::{
    config::{MetricsAddress, config_view},
    connector::Status,
    edge::EdgeHandle,
    guard::GuardsHandle,
    metrics::Metrics,
    proxy::Routes,
    shutdown::Tasks,
    tls::keyring::{Keyring, Kind, Shown},
    transport::Transport,
};

/// Connections served at once; probes and scrapers are few.
const MOST_CONNECTIONS: usize = 64;
/// A request head must be here by then.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// A connection is asked to end after this long, and has [`HEAD_LIMIT`] for it: who does not read what he asked for must
/// not hold a place for ever.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// After a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub use guard::GuardView;

/// What the admin address shows.
#[derive(Clone, Debug)]
pub enum View {
    /// Of a connector.
    Connector(ConnectorView),
    /// Of an edge.
    Edge {
        /// The edge.
        edge: EdgeHandle,
        /// When it started.
        started: tokio::time::Instant,
    },
    /// Of guards alone.
    Guard(GuardView),
}

/// A connector as the admin address sees it.
#[derive(Clone, Debug)]
pub struct ConnectorView {
    /// Connector id.
    pub connector: Uuid,
    /// `None` until configuration and secrets are loaded.
    pub status: watch::Receiver<Option<watch::Receiver<Status>>>,
    /// The rules in force.
    pub routes: watch::Receiver<Arc<Routes>>,
    /// Identities and trust in use.
    pub keyring: watch::Receiver<Arc<Keyring>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// For the count of panics.
    pub tasks: Tasks,
    /// The tunnel, once known.
    pub tunnel: watch::Receiver<Option<Uuid>>,
    /// Bound on draining.
    pub grace: watch::Receiver<Duration>,
    /// Whether a drain has come to its end.
    pub drained: watch::Receiver<bool>,
    /// Guards beside it.
    pub guards: Option<GuardsHandle>,
}

/// Binds the admin address: the one asked for, or the first free one of five, or any.
///
/// # Errors
///
/// When the address asked for cannot be bound.
pub async fn bind(address: &MetricsAddress) -> io::Result<TcpListener> {
    match address {
        MetricsAddress::Fixed(address) => TcpListener::bind(address.as_str()).await,
        MetricsAddress::Default => {
            for port in MetricsAddress::PORTS {
                if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
                    return Ok(listener);
                }
            }
            TcpListener::bind(("127.0.0.1", 0)).await
        }
    }
}

/// Serves until killed: a draining process still answers its probes.
pub async fn serve(listener: TcpListener, view: View, tasks: Tasks) {
    let view = Arc::new(view);
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let ending = tasks.killed();
    loop {
        // A place before the connection: a flood waits in the kernel's queue.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ending.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly no file descriptors, which does not pass by asking again at once.
                tracing::warn!(%error, "cannot accept at the admin address");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let near = drain::is_near(&stream, peer);
        let view = view.clone();
        let ending = ending.clone();
        tasks.spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let view = view.clone();
                async move { Ok::<_, Infallible>(answer(&view, &request, near)) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
            let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                _ = &mut connection => {}
                () = ending.cancelled() => {}
                () = tokio::time::sleep(CONNECTION_LIMIT) => {
                    // In good order for a scraper that keeps its connection; a client who does not read is cut.
                    connection.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(HEAD_LIMIT, connection).await;
                }
            }
        });
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    of_type(status, body, "text/plain; charset=utf-8")
}

fn of_type(status: StatusCode, body: impl Into<Bytes>, content_type: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn health(ok: bool, why: &'static str) -> Response<Full<Bytes>> {
    if ok { text(StatusCode::OK, "ok\n") } else { text(StatusCode::SERVICE_UNAVAILABLE, why) }
}

fn answer(view: &View, request: &Request<Incoming>, near: bool) -> Response<Full<Bytes>> {
    if request.uri().path() == drain::PATH {
        match view {
            View::Connector(view) => {
                return drain::answer(&view.tasks, &view.grace, request, near, |left| view.progress(left));
            }
            View::Guard(view) => {
                return drain::answer(&view.tasks, &view.grace, request, near, |left| view.progress(left));
            }
            View::Edge { .. } => {}
        }
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/livez" => return health(true, ""),
        "/healthcheck" => return text(StatusCode::OK, "OK\n"),
        _ => {}
    }
    match view {
        View::Connector(view) => view.answer(request.uri().path()),
        View::Guard(view) => view.answer(request.uri().path()),
        View::Edge { edge: handle, started } => edge::answer(handle, *started, request.uri().path()),
    }
}

impl ConnectorView {
    fn status(&self) -> Status {
        self.status.borrow().as_ref().map(|status| status.borrow().clone()).unwrap_or_default()
    }

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let draining = self.tasks.draining().is_cancelled();
        match path {
            "/startupz" => health(self.status.borrow().is_some(), "waiting for secrets\n"),
            "/readyz" if draining => health(false, "draining\n"),
            "/readyz" if !self.keyring.borrow().is_valid(SystemTime::now()) => {
                health(false, "a secret cannot be used\n")
            }
            "/readyz" => health(self.status().ready() > 0, "no registered connection\n"),
            "/ready" => {
                let ready = if draining { 0 } else { self.status().ready() };
                let status = if ready > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                // The peer's three keys as the peer writes them, then ours.
                let body = format!(
                    "{{\"status\":{},\"readyConnections\":{ready},\"connectorId\":\"{}\",\"connections\":{}}}",
                    status.as_u16(),
                    self.connector,
                    self.connections()
                );
                text(status, body)
            }
            "/metrics" => {
                // Guards have tasks of their own.
                let of_guards = self.guards.as_ref().map_or(0, GuardsHandle::panics);
                self.metrics.set_panics(self.tasks.panics() + of_guards);
                metrics_text(self.metrics.expose())
            }
            "/config" => {
                let routes = self.routes.borrow().clone();
                let json = config_view(routes.version, &routes.ingress, &routes.warp, &routes.inner_hop);
                of_type(StatusCode::OK, json, "application/json")
            }
            "/diag/tunnel" => of_type(StatusCode::OK, self.diagnosis(), "application/json"),
            "/quicktunnel" => of_type(StatusCode::OK, "{\"hostname\":\"\"}", "application/json"),
            "/" => text(StatusCode::OK, self.page()),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// What each connection runs over, and why not over QUIC.
    fn connections(&self) -> serde_json::Value {
        let each = self.status().connections.into_iter().enumerate().map(|(index, state)| match state {
            Some(state) => serde_json::json!({
                "index": index,
                "transport": state.transport.as_str(),
                "whyNotQuic": state.why_not_quic.as_deref(),
                "edge": state.edge,
                "location": state.location,
                "unregistered": state.unregistered,
                "seconds": state.since.elapsed().as_secs(),
            }),
            None => serde_json::json!({ "index": index }),
        });
        each.collect()
    }

    /// `/diag/tunnel`, in the peer's shape: protocol 0 (HTTP/2) and index 0 are left out.
    fn diagnosis(&self) -> String {
        let connections: Vec<_> = self
            .status()
            .connections
            .iter()
            .enumerate()
            .filter_map(|(index, state)| {
                let state = state.as_ref()?;
                let mut entry = serde_json::Map::new();
                entry.insert("isConnected".into(), true.into());
                if state.transport == Transport::Quic {
                    entry.insert("protocol".into(), 1.into());
                }
                entry.insert("edgeAddress".into(), state.edge.ip().to_string().into());
                if index > 0 {
                    entry.insert("index".into(), index.into());
                }
                Some(serde_json::Value::Object(entry))
            })
            .collect();
        let tunnel = self.tunnel.borrow().unwrap_or_default();
        let (tunnel, connector) = (tunnel.to_string(), self.connector.to_string());
        serde_json::json!({ "tunnelID": tunnel, "connectorID": connector, "connections": connections }).to_string()
    }

    fn page(&self) -> String {
        use std::fmt::Write;
        let mut page = format!("adit {}  connector {}\n\n", env!("CARGO_PKG_VERSION"), self.connector);
        for (index, state) in self.status().connections.iter().enumerate() {
            let _ = match state {
                Some(state) => writeln!(
                    page,
                    "connection {index}  {:5}  {}  {}  for {} s{}{}",
                    state.transport.as_str(),
                    state.edge,
                    state.location,
                    state.since.elapsed().as_secs(),
                    if state.unregistered { "  unregistered" } else { "" },
                    state.why_not_quic.as_ref().map(|why| format!("  (not QUIC: {why})")).unwrap_or_default()
                ),
                None => writeln!(page, "connection {index}  down"),
            };
        }
        let routes = self.routes.borrow().clone();
        let _ = writeln!(page, "\nrules, version {}", routes.version);
        for rule in &routes.ingress.rules {
            let host = rule.hostname.as_ref().map_or("*", |hostname| hostname.as_str());
            let path = rule.path.as_ref().map_or("", |path| path.as_str());
            let services: Vec<_> = rule.services().map(|(_, spelling)| spelling).collect();
            let unverified = if rule.origin.no_tls_verify { "  NOT VERIFIED (noTLSVerify)" } else { "" };
            let _ = writeln!(page, "  {host} {path} -> {}{unverified}", services.join(", "));
        }
        if let Some(guards) = &self.guards {
            page.push('\n');
            guard::guards_page(&mut page, guards);
        }
        secrets_page(&mut page, &self.keyring.borrow().clone());
        let _ = writeln!(page, "\nrequests in flight: {}", self.metrics.in_flight());
        if let Some(guards) = &self.guards {
            let _ = writeln!(page, "at guards: {}", guard::figures(guards));
        }
        page
    }
}

/// Every identity and trust.
fn secrets_page(page: &mut String, keyring: &Keyring) {
    use std::fmt::Write;
    let now = SystemTime::now();
    let all = keyring.shown(now);
    if !all.is_empty() {
        let _ = writeln!(page, "\nidentities and trust, generation {}", keyring.generation);
    }
    for shown in &all {
        let _ = writeln!(page, "  {}", secret_line(shown, now));
    }
}

/// An identity or a trust, and how long it lasts.
fn secret_line(shown: &Shown, now: SystemTime) -> String {
    let kind = match shown.kind {
        Kind::Identity => "identity",
        Kind::CallerTrust => "trust in callers",
        Kind::OriginTrust => "trust in services",
    };
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let left = match (&shown.unusable, shown.not_after) {
        (Some(why), _) => format!("UNUSABLE: {why}"),
        (None, Some(not_after)) => format!("{} days left", not_after.saturating_sub(now).div_euclid(86_400)),
        (None, None) => "without an end".into(),
    };
    let lists = match shown.lists_end {
        None => String::new(),
        Some(end) if end < now => ", a revocation list is out of date".into(),
        Some(end) => format!(", revocation lists current for {} h", end.saturating_sub(now).div_euclid(3600)),
    };
    format!("{kind} {}  {left}{lists}", shown.name)
}

/// OpenMetrics, which the text exposition format of older scrapers is a subset of.
fn metrics_text(body: String) -> Response<Full<Bytes>> {
    of_type(StatusCode::OK, body, "application/openmetrics-text; version=1.0.0; charset=utf-8")
}

/// The address others on this machine may be listening on, for a message.
pub fn shown(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|error| error.to_string(), |addr: SocketAddr| addr.to_string())
}
