//! Reading again: the configuration when its file has changed, secrets when theirs have or their time comes, and both when
//! SIGHUP asks for it. One task does all of it, so that rules and secrets change one after the other.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use http::{HeaderName, HeaderValue};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use uuid::Uuid;

use super::keys::Keys;
use crate::{
    config::{Config, Guard, Loaded, Mistakes, Source, Warning, local_push},
    connector::rules,
    follow::Followed,
    metrics::{Metrics, Outcome},
    proxy::Tags,
    shutdown::Tasks,
    telemetry,
    tls::keyring::{Keyring, Trouble, Wanted},
};

/// Silence after the last write. A changed file is to be in force within 300 ms of it; reading the file and making
/// services ready takes a few of the rest. Editors and agents write within a few milliseconds.
const SETTLE: Duration = Duration::from_millis(100);

/// How the configuration is read again.
#[derive(Clone, Debug)]
pub struct Reloading {
    /// Where it comes from.
    pub source: Source,
    /// The file it came from, if any.
    pub file: Option<PathBuf>,
    /// Told by SIGHUP.
    pub hangup: Arc<Notify>,
}

/// What follows the configuration while the connector runs, beside its rules.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) tags: watch::Sender<Tags>,
    pub(super) grace: watch::Sender<Duration>,
    pub(super) local_rules: watch::Sender<Option<Arc<str>>>,
    pub(super) guards: watch::Sender<Vec<Guard>>,
}

impl Live {
    pub(super) fn new(config: &Config, connector: Uuid) -> anyhow::Result<Self> {
        Ok(Self {
            tags: watch::Sender::new(tags(config, connector)?),
            grace: watch::Sender::new(config.grace_period),
            local_rules: watch::Sender::new(Some(told_to_edge(config))),
            guards: watch::Sender::new(config.guards.clone()),
        })
    }
}

pub(super) struct Reload {
    /// `None`: only secrets are read again.
    pub(super) reloading: Option<Reloading>,
    /// What of a file this process is about.
    pub(super) part: fn(Config) -> Config,
    /// Of the start: what differs from it and is not followed needs a restart.
    pub(super) started: Config,
    pub(super) connector: Uuid,
    pub(super) live: Live,
    pub(super) rules: mpsc::Sender<rules::Reload>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) keys: Keys,
    /// Takes what comes of the first secrets; then everything they are for is in force.
    pub(super) ready: Option<oneshot::Sender<anyhow::Result<()>>>,
}

impl Reload {
    /// Runs until it is killed. From the drain on, rules stay as they are, but secrets are still followed: streams go on
    /// until the grace period is over and guards still accept, and both only for callers who are trusted now.
    pub(super) async fn run(mut self, tasks: Tasks) {
        let reloading = self.reloading.clone();
        let mut file = reloading.as_ref().and_then(|reloading| reloading.file.clone());
        let mut files = reloading.is_some().then(|| Followed::new(file.iter().cloned().collect(), SETTLE));
        let mut files = files.take().and_then(|followed| {
            followed.inspect_err(|error| tracing::error!(%error, "the configuration is only read again on SIGHUP")).ok()
        });
        let draining = tasks.draining();
        let mut state = State { current: self.started.clone(), refused: None, lacks: Vec::new() };
        let mut secret_files = None;
        self.follow(&mut secret_files, &state);
        // The first time for what changed while the process started.
        let mut why = Why::Start;
        loop {
            // A configuration that was refused for its secrets may be right now.
            let of_configuration = why != Why::Time && (why != Why::Secrets || !state.lacks.is_empty());
            let is_draining = draining.is_cancelled();
            if of_configuration
                && !is_draining
                && let Some(reloading) = &reloading
            {
                let source = reloading.source.clone();
                let path = file.clone();
                // At the start an empty file is a configuration, later it is somebody who has not written it yet.
                let read = move || if why == Why::Start { source.load() } else { source.reload(path.as_deref()) };
                match tokio::task::spawn_blocking(read).await {
                    Ok(read) => {
                        if let Ok(Loaded { file: Some(found), .. }) = &read {
                            file = Some(found.clone());
                        }
                        self.judge(&mut state, why, read).await;
                    }
                    Err(error) => tracing::error!(%error, "reading the configuration failed"),
                }
                if let Some(files) = &files {
                    files.replace(file.iter().cloned().collect());
                }
            }
            self.follow(&mut secret_files, &state);
            if why != Why::Changed || self.ready.is_some() {
                self.secrets(why).await;
            }
            let hangup = reloading.as_ref().map(|reloading| &reloading.hangup);
            why = tokio::select! {
                () = changed(&mut files), if !is_draining => Why::Changed,
                () = changed(&mut secret_files) => Why::Secrets,
                () = self.keys.due() => Why::Time,
                () = asked(hangup) => Why::Asked,
            };
        }
    }

    /// Follows the files of the secrets in use, and of those that a refused configuration lacks.
    fn follow(&mut self, followed: &mut Option<Followed>, state: &State) {
        let mut files = self.keys.wanted().files();
        files.extend(state.lacks.iter().filter(|lack| !files.contains(lack)).cloned().collect::<Vec<_>>());
        if let Some(followed) = followed {
            followed.replace(files);
        } else if !files.is_empty() {
            match Followed::new(files, self.keys.settle()) {
                Ok(new) => *followed = Some(new),
                Err(error) => tracing::error!(%error, "secrets are only read again on SIGHUP"),
            }
            self.keys.look_soon();
        }
    }

    /// Reads the secrets again; who needs them gets what can be used.
    async fn secrets(&mut self, why: Why) {
        let Some(loaded) = self.keys.read().await else { return };
        let starting = self.ready.is_some();
        if starting {
            let wrong = |trouble: &&_| !is_waited_for(trouble) && !is_of_time(trouble);
            if loaded.troubles.iter().any(|trouble| wrong(&trouble)) {
                let reasons: Vec<_> = loaded.troubles.iter().filter(wrong).map(ToString::to_string).collect();
                if let Some(ready) = self.ready.take() {
                    let _ = ready.send(Err(anyhow!(reasons.join("; "))));
                }
                return;
            }
            if loaded.troubles.iter().any(is_waited_for) {
                self.keys.tell(&loaded.troubles);
                return;
            }
        }
        let changed = loaded.keyring.generation != self.keys.keyring().borrow().generation;
        if changed {
            let made = self.rules(None, Some(loaded.keyring.clone())).await;
            if let Err(error) = made {
                tracing::error!(error = %format!("{error:#}"), "changed secrets are not used, those before stay");
                self.keys.count(Outcome::Refused);
                self.keys.try_again();
                return;
            }
        }
        self.keys.put_in_force(loaded.keyring);
        self.keys.tell(&loaded.troubles);
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(Ok(()));
        } else if changed {
            self.keys.count(Outcome::Applied);
        } else if why != Why::Time && loaded.troubles.is_empty() {
            self.keys.count(Outcome::Unchanged);
        }
        if !loaded.troubles.is_empty() && (changed || why != Why::Time) {
            self.keys.count(Outcome::Refused);
        }
    }

    /// Has the rules made anew.
    async fn rules(&self, local: Option<rules::Local>, keyring: Option<Arc<Keyring>>) -> anyhow::Result<()> {
        let (reply, answer) = oneshot::channel();
        let stopping = || anyhow!("the connector is stopping");
        self.rules.send(rules::Reload { local, keyring, reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?.map_err(|error| anyhow!(error))
    }

    async fn judge(&mut self, state: &mut State, why: Why, read: Result<Loaded, Mistakes>) {
        let part = self.part;
        let read = read.map(|loaded| Loaded { config: part(loaded.config), ..loaded });
        let outcome = match read {
            // After a mistake was taken back, the file is as it is in force.
            Ok(Loaded { config, .. }) if config == state.current => {
                if why == Why::Asked || state.refused.is_some() {
                    tracing::info!("the configuration is the one in force");
                }
                (state.refused, state.lacks) = (None, Vec::new());
                Outcome::Unchanged
            }
            Ok(Loaded { config, warnings, .. }) => match self.apply(state, &config, &warnings).await {
                Ok(()) => {
                    *state = State { current: config, refused: None, lacks: Vec::new() };
                    Outcome::Applied
                }
                Err(error) => state.refuse(why, vec![format!("{error:#}")]),
            },
            // No secret makes that right.
            Err(Mistakes(mistakes)) => {
                state.lacks.clear();
                state.refuse(why, mistakes.iter().map(ToString::to_string).collect())
            }
        };
        if why != Why::Start || outcome != Outcome::Unchanged {
            self.metrics.configuration.reloaded(outcome);
        }
    }

    /// Secrets and rules first: they alone can still be refused, and then nothing has changed.
    async fn apply(&mut self, state: &mut State, new: &Config, warnings: &[Warning]) -> anyhow::Result<()> {
        let current = &state.current;
        let tags = tags(new, self.connector)?;
        let wanted = Arc::new(Wanted::of(new));
        state.lacks.clear();
        // Before the first secrets are there, all are read when the configuration is known.
        let keyring = if wanted == *self.keys.wanted() || self.ready.is_some() {
            None
        } else {
            // Kept if it is refused for any reason: what is written then may be all that it lacks.
            state.lacks = wanted.files();
            Some(self.keys.read_new(&wanted).await?)
        };
        self.rules(Some(new.into()), keyring.clone()).await?;
        self.keys.want(wanted);
        if let Some(keyring) = keyring {
            self.keys.put_in_force(keyring);
            // When time makes a difference to what is new is found by reading all of it.
            self.keys.look_soon();
        }
        // The change itself is told at the more talkative of both levels.
        let level = new.loglevel.as_tracing();
        telemetry::set_level(level.max(current.loglevel.as_tracing()));
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.live.tags.send_replace(tags);
        self.live.grace.send_replace(new.grace_period);
        self.live.guards.send_if_modified(|guards| {
            let changed = *guards != new.guards;
            guards.clone_from(&new.guards);
            changed
        });
        let told = told_to_edge(new);
        self.live.local_rules.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&told);
            *before = Some(told);
            changed
        });
        tracing::info!("the changed configuration is in force");
        let restart = self.started.needs_restart(new);
        if restart != self.started.needs_restart(current) && !restart.is_empty() {
            tracing::warn!(keys = restart.join("; "), "changed, but only in force after a restart");
        }
        telemetry::set_level(level);
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Start,
    /// The configuration's file.
    Changed,
    Asked,
    /// A file of secrets.
    Secrets,
    Time,
}

async fn changed(followed: &mut Option<Followed>) {
    match followed {
        Some(files) => files.changed().await,
        None => std::future::pending().await,
    }
}

async fn asked(hangup: Option<&Arc<Notify>>) {
    match hangup {
        Some(hangup) => hangup.notified().await,
        None => std::future::pending().await,
    }
}

fn is_waited_for(trouble: &Trouble) -> bool {
    trouble.why.may_come()
}

fn is_of_time(trouble: &Trouble) -> bool {
    trouble.why.is_of_time()
}

struct State {
    current: Config,
    /// The mistakes told last.
    refused: Option<Vec<String>>,
    /// Files of secrets that the refused configuration names.
    lacks: Vec<PathBuf>,
}

impl State {
    /// Tells every mistake, once until they change or somebody asks.
    fn refuse(&mut self, why: Why, mistakes: Vec<String>) -> Outcome {
        if why == Why::Asked || self.refused.as_ref() != Some(&mistakes) {
            for mistake in &mistakes {
                tracing::error!("{mistake}");
            }
            tracing::error!(mistakes = mistakes.len(), "the changed configuration is refused, the one before stays");
        }
        self.refused = Some(mistakes);
        Outcome::Refused
    }
}

fn told_to_edge(config: &Config) -> Arc<str> {
    local_push(config.ingress.as_ref(), &config.warp_routing, &config.reported).into()
}

/// `Cf-Warp-Tag-*`: the connector's id, and the user's own (protocol.md §9.1).
fn tags(config: &Config, connector: Uuid) -> anyhow::Result<Tags> {
    let id = [("ID".to_owned(), connector.to_string())];
    id.iter()
        .chain(&config.tags)
        .map(|(name, value)| {
            let header = HeaderName::from_bytes(format!("cf-warp-tag-{name}").as_bytes())
                .with_context(|| format!("tag {name}"))?;
            Ok((header, HeaderValue::from_str(value).with_context(|| format!("tag {name}"))?))
        })
        .collect()
}
