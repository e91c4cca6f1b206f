//! Following the state, who may register and the rules that tunnels' connectors are to have, and visitors' certificates.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    Shared,
    session::Session,
    state::{Stamp, Tunnel, Tunnels},
};
use crate::{config, follow::Followed, metrics::edge::Pushed};

/// Changes settle for this long: an editor writes in several steps.
const SETTLE: Duration = Duration::from_millis(200);

/// Starts following `tunnels.yml` and every file of rules that it names.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let mut files = Followed::new(files(shared), SETTLE)?;
    let shared_ = shared.clone();
    shared.tasks.spawn(async move {
        let draining = shared_.tasks.draining();
        loop {
            // The first time for what changed after the sockets were bound and before the files were followed.
            reread(&shared_);
            push_changes(&shared_);
            files.replace(self::files(&shared_));
            tokio::select! {
                () = files.changed() => {}
                () = draining.cancelled() => return,
            }
        }
    });
    Ok(())
}

/// Starts following the files of visitors' certificates and of trust in theirs, to the very end: whoever is served while
/// the edge drains is held against what is trusted then.
pub(super) fn start_certificates(shared: &Arc<Shared>) -> io::Result<()> {
    let files = shared.certificates.files();
    if files.is_empty() {
        return Ok(());
    }
    let mut files = Followed::new(files, SETTLE)?;
    let shared_ = shared.clone();
    shared.tasks.attend(async move {
        loop {
            // The first time for what changed after it was read and before it was followed.
            reload_certificates(&shared_).await;
            files.changed().await;
        }
    });
    Ok(())
}

/// Reads them again; what cannot be used changes nothing.
pub(super) async fn reload_certificates(shared: &Arc<Shared>) {
    let certificates = shared.certificates.clone();
    match tokio::task::spawn_blocking(move || certificates.reload()).await {
        Ok((replaced, refused)) => shared.metrics.certificates_reloaded(replaced, refused),
        Err(error) => tracing::error!(%error, "reading visitors' certificates"),
    }
}

fn files(shared: &Shared) -> Vec<PathBuf> {
    let state = shared.state.path();
    let tunnels = shared.tunnels.borrow().clone();
    let rules = tunnels.iter().filter_map(|tunnel| tunnel.config.as_ref()).map(|file| state.join(file));
    std::iter::once(state.join("tunnels.yml")).chain(rules).collect()
}

/// Who reads the state or a file of rules, one after the other, so that nobody publishes what is older than what is
/// published; with what the tunnels' file was when it was last read.
#[derive(Debug, Default)]
pub(crate) struct Reading(Option<Stamp>);

/// Reads the tunnels again; a file that cannot be read changes nothing.
pub(super) fn reread(shared: &Shared) {
    let mut reading = shared.reading.lock().unwrap_or_else(PoisonError::into_inner);
    // Before the file: what is written in between is seen as a change.
    reading.0 = shared.state.stamp();
    let tunnels = match shared.state.tunnels() {
        Ok(tunnels) => Arc::new(tunnels),
        Err(error) => return tracing::error!(%error, "the state cannot be read, the last good one stays"),
    };
    shared.newest.send_replace(tunnels.clone());
    let changed = shared.tunnels.send_if_modified(|known| {
        let changed = **known != *tunnels;
        if changed {
            *known = tunnels;
        }
        changed
    });
    drop(reading);
    if changed {
        tracing::info!(tunnels = shared.tunnels.borrow().iter().count(), "the state changed");
    }
    // Also if nothing changed: somebody may have come with what was written and taken back before it settled.
    retire_strangers(shared);
}

/// The tunnels as they are on disk now, for somebody whom the published ones do not know. Nothing is published: the file
/// may be half written, and everybody else waits until it has settled. A file that was read before is not read again,
/// whoever knocks how often. `None` when the edge ends.
pub(super) async fn newest(shared: &Arc<Shared>) -> Option<Arc<Tunnels>> {
    let shared = shared.clone();
    let look = move || {
        let mut reading = shared.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = shared.state.stamp();
        if stamp.is_none() || reading.0 != stamp {
            reading.0 = stamp;
            match shared.state.tunnels() {
                Ok(tunnels) => drop(shared.newest.send_replace(Arc::new(tunnels))),
                // The follower says so louder, should it still be so when the file has settled.
                Err(error) => tracing::debug!(%error, "the state cannot be read now"),
            }
        }
        shared.newest.borrow().clone()
    };
    tokio::task::spawn_blocking(look).await.ok()
}

/// A connection whose tunnel or secret is gone gets nothing new, and soon ends; also one that has lost its place before.
fn retire_strangers(shared: &Shared) {
    for session in shared.registry.living() {
        if !is_known(shared, &session) {
            session.revoke();
            shared.registry.remove(&session);
        }
    }
}

/// Whether the tunnel of a connection, and the secret it came with, are in the state: as published, or as last read.
pub(super) fn is_known(shared: &Shared, session: &Session) -> bool {
    has(&shared.tunnels.borrow(), session) || has(&shared.newest.borrow(), session)
}

fn has(tunnels: &Tunnels, session: &Session) -> bool {
    tunnels.get(session.tunnel()).is_some_and(|tunnel| tunnel.secrets.contains(session.secret_hash()))
}

/// The rules of a tunnel as they were last read, with their version.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    version: i32,
    /// For connectors of adit's own.
    json: Bytes,
    /// For any other: without what only adit reads. It follows from `json`.
    plain: Bytes,
}

/// Reads a tunnel's rules, and says whether they differ from those read before. The version is the file's
/// modification time in seconds, so that replicas of an edge agree without talking; rules that change within a second,
/// or into an older file, still get a higher one, since connectors take nothing else.
fn read_rules(shared: &Shared, tunnel: Uuid, file: &Path) -> Result<(Rules, bool), String> {
    let _turn = shared.reading.lock().unwrap_or_else(PoisonError::into_inner);
    let path = shared.state.path().join(file);
    let shown = path.display();
    let modified =
        std::fs::metadata(&path).and_then(|meta| meta.modified()).map_err(|error| format!("{shown}: {error}"))?;
    let seconds = modified.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{shown}: {error}"))?;
    let (json, plain) = if path.extension().is_some_and(|ext| ext == "json") {
        serde_json::from_str::<serde_json::Value>(&text).map_err(|error| format!("{shown}: {error}"))?;
        // Pushed as it is, to whomever.
        let json = Bytes::from(text);
        (json.clone(), json)
    } else {
        rules_to_json(&path.display().to_string(), &text)?
    };
    let mut seen = shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
    let mut version = i32::try_from(seconds).unwrap_or(i32::MAX);
    if let Some(before) = seen.get(&tunnel) {
        if before.json == json {
            return Ok((before.clone(), false));
        }
        version = version.max(before.version.saturating_add(1));
    }
    let rules = Rules { version, json, plain };
    seen.insert(tunnel, rules.clone());
    Ok((rules, true))
}

/// A file in the connector's own format, as the JSON that is pushed (protocol.md §5.6): to adit, and to others.
fn rules_to_json(name: &str, text: &str) -> Result<(Bytes, Bytes), String> {
    let loaded = config::parse_file(name, text, &config::Flags::default(), |_| None).map_err(|m| m.to_string())?;
    // A connector takes it from nobody but its own file, so that here it would be a promise that nobody keeps.
    if loaded.config.inner_hop.strips {
        return Err(format!(
            "{name}: `innerHop` and `guard` stand in the file of the connector, not in what it is pushed"
        ));
    }
    let ingress = loaded.config.ingress.ok_or_else(|| format!("{name}: no ingress rules"))?;
    let warp = &loaded.config.warp_routing;
    Ok((config::adit_push(&ingress, warp).into(), config::local_push(Some(&ingress), warp, &[]).into()))
}

pub(super) fn push_changes(shared: &Arc<Shared>) {
    let tunnels = shared.tunnels.borrow().clone();
    for tunnel in tunnels.iter() {
        push_rules(shared, tunnel, None);
    }
}

/// Pushes a tunnel's rules: to all its connections when they changed, else to the one that is new. Who is new gets those
/// read before, if there are any: the file may be half written, and whoever follows it pushes what is newer.
pub(super) fn push_rules(shared: &Arc<Shared>, tunnel: &Tunnel, newcomer: Option<&Arc<Session>>) {
    let Some(file) = &tunnel.config else { return };
    if let Some(session) = newcomer
        && let Some(rules) = latest(shared, tunnel.id)
    {
        return push(shared, session, rules);
    }
    match read_rules(shared, tunnel.id, file) {
        Ok((rules, true)) => {
            for session in shared.registry.of(tunnel.id).iter() {
                push(shared, session, rules.clone());
            }
        }
        Ok((rules, false)) => {
            if let Some(session) = newcomer {
                push(shared, session, rules);
            }
        }
        Err(error) => tracing::error!(tunnel = %tunnel.id, error, "the rules cannot be read"),
    }
}

/// Pushes to one connection, in a task of its own, one after the other.
fn push(shared: &Arc<Shared>, session: &Arc<Session>, rules: Rules) {
    let (shared_, session) = (shared.clone(), session.clone());
    shared.tasks.spawn(async move {
        let _turn = session.turn_to_push().await;
        // Rules that changed again while this waited are pushed by who comes next.
        if latest(&shared_, session.tunnel()).is_none_or(|latest| latest.version <= rules.version) {
            push_now(&shared_, &session, rules).await;
        }
    });
}

fn latest(shared: &Shared, tunnel: Uuid) -> Option<Rules> {
    shared.rules.lock().unwrap_or_else(PoisonError::into_inner).get(&tunnel).cloned()
}

async fn push_now(shared: &Arc<Shared>, session: &Arc<Session>, rules: Rules) {
    let (tunnel, index) = (session.tunnel(), session.index());
    let Rules { version, json, plain } = rules;
    let json = if session.is_own() { json } else { plain };
    let outcome = match session.push(&shared.rpc, version, json).await {
        Ok(applied) if applied.version > version => {
            tracing::warn!(
                %tunnel, index, version, theirs = applied.version,
                "the connector has a higher version, of a file that was newer: ours is pushed above it"
            );
            raise(shared, tunnel, version, applied.version);
            Pushed::Refused
        }
        Ok(applied) if applied.error.is_empty() => {
            tracing::info!(%tunnel, index, version = applied.version, "rules pushed");
            Pushed::Accepted
        }
        Ok(applied) => {
            tracing::error!(
                %tunnel, index, version = applied.version, error = applied.error,
                "the connector refused the rules"
            );
            Pushed::Refused
        }
        Err(error) => {
            tracing::warn!(%tunnel, index, error, "the rules could not be pushed");
            Pushed::Failed
        }
    };
    shared.metrics.pushed(outcome);
}

/// The rules of a tunnel get a version above `theirs`, and go to all its connections anew. Happens when an edge starts
/// with an older file than the one its predecessor pushed: connectors ignore what is not above what they have.
fn raise(shared: &Arc<Shared>, tunnel: Uuid, pushed: i32, theirs: i32) {
    let raised = {
        let mut seen = shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rules) = seen.get_mut(&tunnel).filter(|rules| rules.version == pushed) else {
            // Another connection said so before, or the file changed.
            return;
        };
        let Some(above) = theirs.checked_add(1) else {
            tracing::error!(%tunnel, "the connector has the highest version there is; restart it");
            return;
        };
        rules.version = above;
        rules.clone()
    };
    for session in shared.registry.of(tunnel).iter() {
        push(shared, session, raised.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_that_no_connector_would_keep_is_not_pushed_without_it() {
        let rule = "ingress: [ { service: 'http://localhost' } ]\n";
        assert!(rules_to_json("f", rule).is_ok());
        let guard = "guard: [ { listen: '0.0.0.0:1', certificate: /g, service: 'unix:/s', callers: { trustAnchors: [/c] } } ]\n";
        for more in ["innerHop: {}\n", guard] {
            let refused = rules_to_json("f", &format!("{more}{rule}")).unwrap_err();
            assert!(refused.contains("stand in the file of the connector"), "{refused}");
        }
        let inline = rules_to_json("f", "ingress: [ { service: 'http://localhost', innerHop: {} } ]\n");
        assert!(inline.is_err());
    }
}
