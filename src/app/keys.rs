//! Secrets in use: read as one set, checked, and read again when they change or their time comes.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::anyhow;
use tokio::{sync::watch, time::Instant};

use crate::{
    config::Config,
    metrics::{Metrics, Outcome},
    secrets,
    tls::keyring::{Keyring, Kind, Loaded, Reread, Trouble, Wanted},
};

/// Silence after the last write of a secret; agents write certificate and key within a few milliseconds.
pub const SETTLE: Duration = Duration::from_millis(200);
/// The secrets of a changed configuration must have settled by then.
const REST_LIMIT: Duration = Duration::from_secs(5);
/// What an attempt counts for at least, so that their number is bounded whatever [`SETTLE`] is.
const LEAST_WAIT: Duration = Duration::from_millis(10);
/// A clock that is set, or a machine that slept, moves the time without an event.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// After rules that could not be made with new secrets.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// The secrets in use, and those that are wanted.
#[derive(Debug)]
pub(super) struct Keys {
    wanted: Arc<Wanted>,
    settle: Duration,
    current: watch::Sender<Arc<Keyring>>,
    metrics: Arc<Metrics>,
    /// What was said last, so that it is said once.
    told: Vec<String>,
    /// When to look without an event.
    again: Option<Instant>,
}

impl Keys {
    /// Nothing is read yet.
    pub(super) fn new(config: &Config, settle: Duration, metrics: Arc<Metrics>) -> Self {
        let wanted = Arc::new(Wanted::of(config));
        let current = watch::Sender::new(Arc::default());
        Self { wanted, settle, current, metrics, told: Vec::new(), again: None }
    }

    /// Identities and trust of the generation in use.
    pub(super) fn keyring(&self) -> watch::Receiver<Arc<Keyring>> {
        self.current.subscribe()
    }

    pub(super) fn settle(&self) -> Duration {
        self.settle
    }

    pub(super) fn wanted(&self) -> &Arc<Wanted> {
        &self.wanted
    }

    /// Something else is wanted from now on.
    pub(super) fn want(&mut self, wanted: Arc<Wanted>) {
        self.wanted = wanted;
    }

    /// Waits until it is time to look without an event. Cancel-safe.
    pub(super) async fn due(&self) {
        match self.again {
            Some(again) => tokio::time::sleep_until(again).await,
            None => std::future::pending().await,
        }
    }

    /// Soon, for what may have changed before it was followed.
    pub(super) fn look_soon(&mut self) {
        self.again = Some(Instant::now() + self.settle);
    }

    /// Later, since what was read could not be used by everybody.
    pub(super) fn try_again(&mut self) {
        self.again = Some(Instant::now() + TRY_AGAIN);
    }

    /// Reads all of it again. `None`: somebody is writing; it is looked at again when he may be done.
    pub(super) async fn read(&mut self) -> Option<Loaded> {
        let (wanted, before, settle) = (self.wanted.clone(), self.current.borrow().clone(), self.settle);
        let read = move || {
            let load = || Keyring::load(&wanted, secrets::read, Reread::All, &before, SystemTime::now());
            secrets::settled(&wanted.files(), settle, load)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(loaded)) => {
                self.again = loaded.look_again.map(|at| Instant::now() + until(at).min(LOOK_EVERY));
                Some(loaded)
            }
            Ok(Err(left)) => {
                self.again = Some(Instant::now() + left);
                None
            }
            Err(error) => {
                tracing::error!(%error, "reading secrets failed");
                self.try_again();
                None
            }
        }
    }

    /// Reads what a changed configuration wants and this one does not; the rest is as it is in use.
    ///
    /// # Errors
    ///
    /// When any of it cannot be used, with every reason.
    pub(super) async fn read_new(&self, wanted: &Arc<Wanted>) -> anyhow::Result<Arc<Keyring>> {
        let (wanted, before, settle) = (wanted.clone(), self.current.borrow().clone(), self.settle);
        let read = move || {
            // All of them: those in use under another combination are read again, too.
            let files = wanted.files();
            let load = || Keyring::load(&wanted, secrets::read, Reread::Unknown, &before, SystemTime::now());
            let mut waited = Duration::ZERO;
            let loaded = loop {
                match secrets::settled(&files, settle, load) {
                    Ok(loaded) => break loaded,
                    Err(_) if waited > REST_LIMIT => {
                        return Err(anyhow!("a secret that it names does not come to rest"));
                    }
                    Err(left) => {
                        std::thread::sleep(left);
                        waited += left.max(LEAST_WAIT);
                    }
                }
            };
            if loaded.troubles.is_empty() {
                Ok(loaded.keyring)
            } else {
                Err(anyhow!(said(&loaded.troubles).join("; ")))
            }
        };
        tokio::task::spawn_blocking(read).await?
    }

    /// This generation is in use from now on.
    pub(super) fn put_in_force(&self, keyring: Arc<Keyring>) {
        let now = SystemTime::now();
        let all = keyring.shown(now);
        let metrics = &self.metrics.identities;
        metrics.in_force(keyring.generation, all.iter().filter(|shown| shown.unusable.is_some()).count());
        let of = |kind| all.iter().filter(move |shown| shown.kind == kind);
        let identities = of(Kind::Identity).filter_map(|shown| Some((shown.name.to_string(), shown.not_after?)));
        let services = of(Kind::OriginTrust).filter_map(|shown| Some(("services", shown.not_after?)));
        let callers = of(Kind::CallerTrust).filter_map(|shown| Some(("callers", shown.not_after?)));
        let lists = all.iter().filter_map(|shown| Some(("callers", shown.lists_end?)));
        metrics.last(identities, services.chain(callers), lists);
        let generation = keyring.generation;
        let changed = self.current.send_if_modified(|current| {
            let changed = !Arc::ptr_eq(current, &keyring);
            *current = keyring;
            changed
        });
        if changed {
            tracing::info!(generation, "identities and trust are in use");
        }
    }

    /// Tells what cannot be used, each once until it changes.
    pub(super) fn tell(&mut self, troubles: &[Trouble]) {
        let now = said(troubles);
        for (trouble, text) in troubles.iter().zip(&now) {
            if self.told.contains(text) {
                continue;
            }
            if trouble.kept || trouble.why.may_come() {
                tracing::warn!("{text}");
            } else {
                tracing::error!("{text}");
            }
        }
        if now.is_empty() && !self.told.is_empty() {
            tracing::info!("every secret can be used again");
        }
        self.told = now;
    }

    /// Counts a reading after a change.
    pub(super) fn count(&self, outcome: Outcome) {
        self.metrics.identities.reloaded(outcome);
    }
}

fn said(troubles: &[Trouble]) -> Vec<String> {
    troubles.iter().map(ToString::to_string).collect()
}

/// Until this second has begun.
fn until(seconds: i64) -> Duration {
    let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    // A little more: the second must have begun by every reading of the clock.
    at.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO) + Duration::from_millis(10)
}
