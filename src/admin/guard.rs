//! What the admin address of guards alone shows.

use std::{fmt::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use tokio::sync::watch;

use super::{drain::Progress, health, metrics_text, secrets_page, text};
use crate::{guard::GuardsHandle, metrics::Metrics, shutdown::Tasks, tls::keyring::Keyring};

/// Guards as the admin address sees them.
#[derive(Clone, Debug)]
pub struct GuardView {
    /// The guards.
    pub guards: GuardsHandle,
    /// Identities and trust of the generation in use.
    pub keyring: watch::Receiver<Arc<Keyring>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// For the count of panics, and to drain them.
    pub tasks: Tasks,
    /// Whether configuration and secrets are loaded.
    pub started: watch::Receiver<bool>,
    /// Bound on draining.
    pub grace: watch::Receiver<Duration>,
    /// Whether a drain has come to its end.
    pub drained: watch::Receiver<bool>,
}

impl GuardView {
    pub(super) fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        match path {
            "/startupz" => health(*self.started.borrow(), "waiting for secrets\n"),
            "/readyz" if self.tasks.draining().is_cancelled() => health(false, "draining\n"),
            // Their sockets were bound before anybody could ask.
            "/readyz" => health(*self.started.borrow(), "waiting for secrets\n"),
            "/metrics" => {
                self.metrics.set_panics(self.tasks.panics() + self.guards.panics());
                metrics_text(self.metrics.expose())
            }
            "/" => text(StatusCode::OK, self.page()),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    pub(super) fn progress(&self, grace_left_ms: u64) -> Progress {
        Progress {
            drained: *self.drained.borrow(),
            connections: self.guards.connections(),
            in_flight: self.guards.in_flight() as u64,
            cut: self.guards.cut(),
            grace_left_ms,
        }
    }

    fn page(&self) -> String {
        let mut page = format!("adit guard {}\n\n", env!("CARGO_PKG_VERSION"));
        guards_page(&mut page, &self.guards);
        secrets_page(&mut page, &self.keyring.borrow().clone());
        let _ = writeln!(page, "\n{}", figures(&self.guards));
        page
    }
}

/// Every guard of the start.
pub(super) fn guards_page(page: &mut String, guards: &GuardsHandle) {
    for guard in guards.listeners() {
        let closed = if guard.is_closed() { "  closed" } else { "" };
        let _ = writeln!(page, "guard {} -> {}{closed}", guard.address, guard.service);
    }
}

pub(super) fn figures(guards: &GuardsHandle) -> String {
    format!("connections: {}, requests in flight: {}", guards.connections(), guards.in_flight())
}
