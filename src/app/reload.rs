//! Reading the configuration again: when its file has changed, and when SIGHUP asks for it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use http::{HeaderName, HeaderValue};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use uuid::Uuid;

use crate::{
    config::{Config, Loaded, Mistakes, Source, Warning, local_push},
    connector::rules,
    follow::Followed,
    metrics::{Metrics, Outcome},
    proxy::Tags,
    shutdown::Tasks,
    telemetry,
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
}

impl Live {
    pub(super) fn new(config: &Config, connector: Uuid) -> anyhow::Result<Self> {
        Ok(Self {
            tags: watch::Sender::new(tags(config, connector)?),
            grace: watch::Sender::new(config.grace_period),
            local_rules: watch::Sender::new(Some(told_to_edge(config))),
        })
    }
}

pub(super) struct Reload {
    pub(super) reloading: Reloading,
    /// Of the start: what differs from it and is not followed needs a restart.
    pub(super) started: Config,
    pub(super) connector: Uuid,
    pub(super) live: Live,
    pub(super) rules: mpsc::Sender<rules::Reload>,
    pub(super) metrics: Arc<Metrics>,
}

impl Reload {
    pub(super) async fn run(self, tasks: Tasks) {
        let Self { reloading, .. } = &self;
        let mut file = reloading.file.clone();
        let mut files = Followed::new(file.iter().cloned().collect(), SETTLE)
            .inspect_err(|error| tracing::error!(%error, "the configuration is only read again on SIGHUP"))
            .ok();
        let draining = tasks.draining();
        let mut state = State { current: self.started.clone(), refused: None };
        // The first time for what changed while the process started.
        let mut why = Why::Start;
        loop {
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
            let changed = async {
                match &mut files {
                    Some(files) => files.changed().await,
                    None => std::future::pending().await,
                }
            };
            why = tokio::select! {
                () = changed => Why::Changed,
                () = reloading.hangup.notified() => Why::Asked,
                () = draining.cancelled() => return,
            };
        }
    }

    async fn judge(&self, state: &mut State, why: Why, read: Result<Loaded, Mistakes>) {
        let outcome = match read {
            // After a mistake was taken back, the file is as it is in force.
            Ok(Loaded { config, .. }) if config == state.current => {
                if why == Why::Asked || state.refused.is_some() {
                    tracing::info!("the configuration is the one in force");
                }
                state.refused = None;
                Outcome::Unchanged
            }
            Ok(Loaded { config, warnings, .. }) => match self.apply(&state.current, &config, &warnings).await {
                Ok(()) => {
                    *state = State { current: config, refused: None };
                    Outcome::Applied
                }
                Err(error) => state.refuse(why, vec![format!("{error:#}")]),
            },
            Err(mistakes) => state.refuse(why, mistakes.0.iter().map(ToString::to_string).collect()),
        };
        if why != Why::Start || outcome != Outcome::Unchanged {
            self.metrics.configuration.reloaded(outcome);
        }
    }

    /// The rules first: they alone can still be refused, and then nothing has changed.
    async fn apply(&self, current: &Config, new: &Config, warnings: &[Warning]) -> anyhow::Result<()> {
        let tags = tags(new, self.connector)?;
        let (reply, answer) = oneshot::channel();
        let stopping = || anyhow!("the connector is stopping");
        self.rules.send(rules::Reload { local: new.into(), reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?.map_err(|error| anyhow!(error))?;
        // The change itself is told at the more talkative of both levels.
        let level = new.loglevel.as_tracing();
        telemetry::set_level(level.max(current.loglevel.as_tracing()));
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.live.tags.send_replace(tags);
        self.live.grace.send_replace(new.grace_period);
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
    Changed,
    Asked,
}

struct State {
    current: Config,
    /// The mistakes told last.
    refused: Option<Vec<String>>,
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
