//! Guards: beside a connector, or alone.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};
use uuid::Uuid;

use super::{
    SETTLE,
    keys::Keys,
    reload::{Live, Reload, Reloading},
};
use crate::{
    admin::{self, GuardView, View},
    config::{Config, InnerHop},
    connector::rules::Rules,
    guard::{GuardConfig, Guards, Limits, UNREADY},
    metrics::Metrics,
    proxy::Ground,
    shutdown::Tasks,
};

/// Binds the guards of a file, if it has any.
pub(super) async fn bind(
    config: &Config,
    metrics: &Arc<Metrics>,
    forbidden: &Arc<[SocketAddr]>,
) -> anyhow::Result<Option<Guards>> {
    if config.guards.is_empty() {
        return Ok(None);
    }
    let guards = GuardConfig {
        guards: config.guards.clone(),
        metrics: metrics.clone(),
        forbidden: forbidden.clone(),
        limits: Limits::default(),
        unready: UNREADY,
    };
    Ok(Some(Guards::bind(guards).await?))
}

/// Guards with their admin address bound and nothing running.
#[derive(Debug)]
pub struct GuardApp {
    config: Config,
    admin: TcpListener,
    forbidden: Arc<[SocketAddr]>,
    guards: Guards,
    metrics: Arc<Metrics>,
    reloading: Option<Reloading>,
    tasks: Tasks,
}

/// Without what a connector would need: its rules, and what it presents.
fn of_guards(config: Config) -> Config {
    Config { ingress: None, inner_hop: Arc::new(InnerHop::default()), ..config }
}

impl GuardApp {
    /// Binds the admin address and every guard; nothing else of the file is looked at.
    ///
    /// # Errors
    ///
    /// When there is no guard, or an address cannot be bound.
    pub async fn bind(config: Config, tasks: Tasks) -> anyhow::Result<Self> {
        let config = of_guards(config);
        let admin = admin::bind(&config.metrics).await.context("cannot bind the admin address (--metrics)")?;
        let forbidden: Arc<[SocketAddr]> = admin.local_addr().into_iter().collect();
        let metrics = Arc::new(Metrics::of_guards());
        let guards = bind(&config, &metrics, &forbidden).await?;
        let guards = guards.context("there is no guard: the file has no `guard` section")?;
        Ok(Self { config, admin, forbidden, guards, metrics, reloading: None, tasks })
    }

    /// Reads the configuration again while it runs.
    #[must_use]
    pub fn reloading(self, reloading: Reloading) -> Self {
        Self { reloading: Some(reloading), ..self }
    }

    /// Where the admin address is.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn admin_addr(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Where the guards listen, in the order of the file.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.guards.addresses()
    }

    /// Waits for the secrets and serves until the tasks are drained; returns once the process is to end.
    ///
    /// # Errors
    ///
    /// When a secret cannot be used.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { config, admin, forbidden, guards, metrics, reloading, tasks } = self;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"), admin = admin::shown(&admin), guards = ?guards.addresses(), "starting"
        );
        let keys = Keys::new(&config, SETTLE, metrics.clone());
        let keyring = keys.keyring();
        let (started, started_seen) = watch::channel(false);
        let (drained, drained_seen) = watch::channel(false);
        let connector = Uuid::nil();
        let live = Live::new(&config, connector)?;
        let (grace, of_file) = (live.grace.subscribe(), live.guards.subscribe());
        let view = GuardView {
            guards: guards.handle(),
            keyring: keyring.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            started: started_seen,
            grace: grace.clone(),
            drained: drained_seen,
        };
        // Outlives the drain: a draining process still answers its probes.
        let admin_tasks = Tasks::new();
        admin_tasks.attend(admin::serve(admin, View::Guard(view), admin_tasks.clone()));
        let ground = Ground { metrics: metrics.clone(), forbidden, keyring: Arc::default() };
        let rules = Rules::new((&config).into(), ground).map_err(|error| anyhow::anyhow!(error))?;
        let inbox = rules.start(&tasks);
        let (ready, loaded) = oneshot::channel();
        let reload = Reload {
            reloading,
            part: of_guards,
            started: config,
            connector,
            live,
            rules: inbox.reloads.clone(),
            metrics,
            keys,
            ready: Some(ready),
        };
        tasks.attend(reload.run(tasks.clone()));
        let leaving = tasks.leaving();
        let draining = tasks.draining();
        let ready = tokio::select! {
            biased;
            () = draining.cancelled() => false,
            loaded = loaded => {
                loaded.context("stopping")?.context("secrets")?;
                true
            }
        };
        if ready {
            started.send_replace(true);
            super::notify::started();
            guards.run(of_file, keyring, grace, tasks.clone()).await?;
        }
        drained.send_replace(true);
        leaving.cancelled().await;
        admin_tasks.finish(Duration::from_secs(1)).await;
        Ok(())
    }
}
