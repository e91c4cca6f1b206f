//! Following the state: who may register, and the rules that tunnels' connectors are to have.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use notify::Watcher;
use tokio::sync::mpsc;

use super::{Shared, session::Session, state::Tunnel};
use crate::config;

/// Changes settle for this long: an editor writes in several steps.
const SETTLE: Duration = Duration::from_millis(200);
/// inotify can miss things, and volumes of Kubernetes are links to links.
const POLL: Duration = Duration::from_secs(5);

/// Starts watching.
pub(super) fn start(shared: &Arc<Shared>) -> Result<(), notify::Error> {
    let (events, mut changed) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = events.try_send(());
        }
    })?;
    watcher.watch(shared.state.path(), notify::RecursiveMode::NonRecursive)?;
    let shared_ = shared.clone();
    shared.tasks.spawn(async move {
        let _watcher = watcher;
        let draining = shared_.tasks.draining();
        let mut rules = RulesSeen::default();
        rules.push_changes(&shared_);
        loop {
            tokio::select! {
                Some(()) = changed.recv() => {
                    while tokio::time::timeout(SETTLE, changed.recv()).await.is_ok() {}
                }
                () = tokio::time::sleep(POLL) => {}
                () = draining.cancelled() => return,
            }
            reread(&shared_);
            rules.push_changes(&shared_);
        }
    });
    Ok(())
}

/// Reads the tunnels again; a file that cannot be read changes nothing.
pub(super) fn reread(shared: &Shared) {
    match shared.state.tunnels() {
        Ok(tunnels) => {
            let changed = shared.tunnels.send_if_modified(|known| {
                let changed = **known != tunnels;
                if changed {
                    *known = Arc::new(tunnels);
                }
                changed
            });
            if changed {
                tracing::info!(tunnels = shared.tunnels.borrow().iter().count(), "the state changed");
                retire_strangers(shared);
            }
        }
        Err(error) => tracing::error!(%error, "the state cannot be read, the last good one stays"),
    }
}

/// A connection whose tunnel or secret is gone gets nothing new.
fn retire_strangers(shared: &Shared) {
    let tunnels = shared.tunnels.borrow().clone();
    for session in shared.registry.all() {
        let known = tunnels.get(session.tunnel()).is_some_and(|tunnel| tunnel.secrets.contains(session.secret_hash()));
        if !known {
            session.retire();
        }
    }
}

/// The rules of a tunnel with their version.
struct Rules {
    version: i32,
    json: Bytes,
}

/// Reads a tunnel's rules. The version is the file's modification time in seconds, so that replicas of an edge agree
/// without talking, and a later file has a higher one.
fn read_rules(shared: &Shared, file: &Path) -> Result<Rules, String> {
    let path = shared.state.path().join(file);
    let shown = path.display();
    let modified =
        std::fs::metadata(&path).and_then(|meta| meta.modified()).map_err(|error| format!("{shown}: {error}"))?;
    let seconds = modified.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{shown}: {error}"))?;
    let json = if path.extension().is_some_and(|ext| ext == "json") {
        serde_json::from_str::<serde_json::Value>(&text).map_err(|error| format!("{shown}: {error}"))?;
        text.into_bytes()
    } else {
        rules_to_json(&path.display().to_string(), &text)?
    };
    Ok(Rules { version: i32::try_from(seconds).unwrap_or(i32::MAX), json: Bytes::from(json) })
}

/// A file in the connector's own format, as the JSON that is pushed (protocol.md §5.6).
fn rules_to_json(name: &str, text: &str) -> Result<Vec<u8>, String> {
    let loaded = config::parse_file(name, text, &config::Flags::default(), |_| None).map_err(|m| m.to_string())?;
    let ingress = loaded.config.ingress.ok_or_else(|| format!("{name}: no ingress rules"))?;
    Ok(config::local_push(Some(&ingress), &loaded.config.warp_routing, &[]).into_bytes())
}

/// What was pushed last, by tunnel.
#[derive(Default)]
struct RulesSeen(std::collections::HashMap<uuid::Uuid, (i32, Bytes)>);

impl RulesSeen {
    fn push_changes(&mut self, shared: &Arc<Shared>) {
        let tunnels = shared.tunnels.borrow().clone();
        for tunnel in tunnels.iter() {
            let Some(file) = &tunnel.config else { continue };
            match read_rules(shared, file) {
                Ok(rules) => {
                    let before = self.0.insert(tunnel.id, (rules.version, rules.json.clone()));
                    if before.is_some_and(|(_, json)| json != rules.json) {
                        for session in shared.registry.of(tunnel.id).iter() {
                            push_to(shared, tunnel, session);
                        }
                    }
                }
                Err(error) => tracing::error!(tunnel = %tunnel.id, error, "the rules cannot be read"),
            }
        }
    }
}

/// Pushes a tunnel's rules to one connection, in a task of its own.
pub(super) fn push_to(shared: &Arc<Shared>, tunnel: &Tunnel, session: &Arc<Session>) {
    let Some(file) = &tunnel.config else { return };
    let rules = match read_rules(shared, file) {
        Ok(rules) => rules,
        Err(error) => {
            tracing::error!(tunnel = %tunnel.id, error, "the rules cannot be read");
            return;
        }
    };
    let (rpc, session) = (shared.rpc.clone(), session.clone());
    shared.tasks.spawn(async move {
        let (tunnel, index) = (session.tunnel(), session.index());
        match session.push(&rpc, rules.version, rules.json).await {
            Ok(applied) if applied.error.is_empty() => {
                tracing::info!(%tunnel, index, version = applied.version, "rules pushed");
            }
            Ok(applied) => {
                tracing::error!(
                    %tunnel, index, version = applied.version, error = applied.error,
                    "the connector refused the rules"
                );
            }
            Err(error) => tracing::warn!(%tunnel, index, error, "the rules could not be pushed"),
        }
    });
}
