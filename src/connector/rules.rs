//! Which rules are in force: the file's, until the edge pushes others (protocol.md §5.6).
//!
//! One task takes all pushes of all connections, so that versions are decided in one place.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::{mpsc, watch};

use crate::{
    config::{Limits, RemoteConfig, RemoteConfigMode},
    metrics::Metrics,
    proxy::Routes,
    shutdown::Tasks,
    wire::calls::{Applied, Push},
};

/// Takes pushes and publishes routes.
#[derive(Debug)]
pub struct Rules {
    /// Where routes are published.
    pub routes: watch::Sender<Arc<Routes>>,
    /// Whether pushes are welcome.
    pub mode: RemoteConfigMode,
    /// Limits of rules that have none of their own.
    pub limits: Limits,
    /// A local flow limit wins over a pushed one.
    pub max_active_flows: Option<u64>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Addresses no rule may dial.
    pub forbidden: Arc<[SocketAddr]>,
}

impl Rules {
    /// Starts the task; its queue holds one push of each connection.
    pub fn start(self, tasks: &Tasks) -> mpsc::Sender<Push> {
        let (pushes, mut queue) = mpsc::channel::<Push>(8);
        let draining = tasks.killed();
        tasks.attend(async move {
            let mut sweep = tokio::time::interval(Routes::SWEEP);
            loop {
                tokio::select! {
                    push = queue.recv() => match push {
                        Some(Push { version, config, reply }) => {
                            let _ = reply.send(self.apply(version, &config));
                        }
                        None => return,
                    },
                    _ = sweep.tick() => self.routes.borrow().sweep(),
                    () = draining.cancelled() => return,
                }
            }
        });
        pushes
    }

    /// Applies a push, or refuses it whole.
    fn apply(&self, version: i32, json: &[u8]) -> Applied {
        let current = self.routes.borrow().version;
        let refused = |error: String| {
            tracing::error!(version, current, error, "the edge's rules are refused");
            Applied { version: current, error }
        };
        if version <= current {
            return Applied { version: current, error: String::new() };
        }
        match self.mode {
            RemoteConfigMode::Accept => {}
            RemoteConfigMode::Ignore => {
                return refused("refused: this connector ignores pushed configurations (remoteConfig: ignore)".into());
            }
        }
        // No edge confirms yet that it is adit's.
        let parsed = match RemoteConfig::parse_from(json, false) {
            Ok(parsed) => parsed,
            Err(mistakes) => return refused(mistakes.to_string()),
        };
        let warp = parsed.warp_routing.limited(self.max_active_flows);
        let ingress = parsed.ingress.limited(self.limits);
        match Routes::new(Some(ingress), warp, version, &self.metrics, &self.forbidden) {
            Ok(routes) => {
                self.routes.send_replace(Arc::new(routes));
                self.metrics.rules(version, parsed.ignored_keys);
                tracing::info!(version, ignored_keys = parsed.ignored_keys, "rules of the edge are in force");
                Applied { version, error: String::new() }
            }
            Err(error) => refused(error),
        }
    }
}
