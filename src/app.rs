//! The composition root: binds everything, runs it, drains it. The only place that knows everybody.

mod guard;
mod keys;
mod notify;
mod reload;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};
use uuid::Uuid;

use crate::{
    admin::{self, ConnectorView, View},
    config::Config,
    connector::{Connector, ConnectorConfig, Parts, Status, discovery::EdgeSource, rules::Rules},
    credentials::Token,
    guard::Guards,
    metrics::Metrics,
    proxy::{Flows, Ground, Proxy},
    secrets,
    shutdown::Tasks,
    tls::EdgeTls,
    transport::quic::QuicOptions,
};
pub use guard::GuardApp;
use keys::Keys;
pub use keys::SETTLE;
pub use reload::Reloading;
use reload::{Live, Reload};

/// A connector with its admin address bound and nothing running.
#[derive(Debug)]
pub struct ConnectorApp {
    config: Config,
    search: Vec<PathBuf>,
    admin: TcpListener,
    connector: Uuid,
    metrics: Arc<Metrics>,
    tls: EdgeTls,
    rules: Rules,
    live: Live,
    reloading: Option<Reloading>,
    keys: Keys,
    guards: Option<Guards>,
    tasks: Tasks,
}

impl ConnectorApp {
    /// Binds the admin address and makes ready whatever needs no secret.
    ///
    /// # Errors
    ///
    /// With what could not be used, and where it was named.
    pub async fn bind(config: Config, search: Vec<PathBuf>, tasks: Tasks) -> anyhow::Result<Self> {
        let admin = admin::bind(&config.metrics).await.context("cannot bind the admin address (--metrics)")?;
        let forbidden: Arc<[SocketAddr]> = admin.local_addr().into_iter().collect();
        let tls =
            EdgeTls::new(config.edge_ca.as_deref(), config.post_quantum).context("trust for the edge (--cacert)")?;
        let metrics = Arc::new(Metrics::new());
        let guards = guard::bind(&config, &metrics, &forbidden).await?;
        let ground = Ground { metrics: metrics.clone(), forbidden, keyring: Arc::default() };
        if config.edge_ca.is_none() && config.inner_hop.believes_own_edge() {
            tracing::warn!(
                "callers are relayed by adit-edge (relayedBy), but without --edge-ca no edge is proven to be one: no \
                 visitor's certificate is believed"
            );
        }
        let rules = Rules::new((&config).into(), ground).map_err(|error| anyhow::anyhow!(error))?;
        let connector = Uuid::new_v4();
        let live = Live::new(&config, connector)?;
        let keys = Keys::new(&config, SETTLE, metrics.clone());
        Ok(Self { config, search, admin, connector, metrics, tls, rules, live, reloading: None, keys, guards, tasks })
    }

    /// Reads the configuration again while it runs.
    #[must_use]
    pub fn reloading(self, reloading: Reloading) -> Self {
        Self { reloading: Some(reloading), ..self }
    }

    /// Secrets have settled after so much silence, instead of [`SETTLE`].
    #[must_use]
    pub fn settling(self, settle: Duration) -> Self {
        Self { keys: Keys::new(&self.config, settle, self.metrics.clone()), ..self }
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
    pub fn guard_addresses(&self) -> Vec<SocketAddr> {
        self.guards.as_ref().map(Guards::addresses).unwrap_or_default()
    }

    /// The connector id.
    pub fn connector_id(&self) -> Uuid {
        self.connector
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Waits for the token and other secrets, connects, and stays connected until the tasks are drained; returns once they are and the
    /// process is to end.
    ///
    /// # Errors
    ///
    /// When the token, an identity or a trust cannot be used.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { config, search, admin, connector, metrics, tls, rules, live, reloading, keys, guards, tasks } = self;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"), %connector, admin = admin::shown(&admin),
            rules = config.ingress.as_ref().map_or(0, |ingress| ingress.rules.len()), "starting"
        );
        let (started, status) = watch::channel(None::<watch::Receiver<Status>>);
        let (tunnel, tunnel_seen) = watch::channel(None);
        let (drained, drained_seen) = watch::channel(false);
        let leaving = tasks.leaving();
        let view = ConnectorView {
            connector,
            status,
            routes: rules.routes(),
            keyring: keys.keyring(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            tunnel: tunnel_seen,
            grace: live.grace.subscribe(),
            drained: drained_seen,
            guards: guards.as_ref().map(Guards::handle),
        };
        // Outlives the drain: a draining process still answers its probes.
        let admin_tasks = Tasks::new();
        admin_tasks.attend(admin::serve(admin, View::Connector(view), admin_tasks.clone()));
        let proxy = Arc::new(Proxy {
            routes: rules.routes(),
            metrics: metrics.clone(),
            tags: live.tags.subscribe(),
            management_hostname: config.management_hostname.to_lowercase(),
            flows: Flows::default(),
            draining: tasks.draining(),
        });
        let (grace, local_rules) = (live.grace.subscribe(), live.local_rules.subscribe());
        let inbox = rules.start(&tasks);
        let (keyring, guards_grace, of_file) = (keys.keyring(), live.grace.subscribe(), live.guards.subscribe());
        let (ready, loaded) = oneshot::channel();
        let (started_, metrics_, rules) = (config.clone(), metrics.clone(), inbox.reloads.clone());
        let ready = Some(ready);
        let reload = Reload {
            reloading,
            part: std::convert::identity,
            started: started_,
            connector,
            live,
            rules,
            metrics: metrics_,
            keys,
            ready,
        };
        tasks.attend(reload.run(tasks.clone()));
        let draining = tasks.draining();
        let secrets = async {
            let token = async { Ok(secrets::token(&config.secret, config.tunnel.as_deref(), &search).await?) };
            let loaded = async { loaded.await.context("the connector is stopping")?.context("secrets") };
            tokio::try_join!(token, loaded)
        };
        let token = tokio::select! {
            biased;
            () = draining.cancelled() => {
                drained.send_replace(true);
                leaving.cancelled().await;
                return Ok(());
            }
            secrets = secrets => secrets?.0,
        };
        let known = token.borrow().clone();
        tunnel.send_replace(Some(known.tunnel));
        let edge = edge_source(&config, &known)?;
        let running = Connector::new(Parts {
            config: connector_config(&config, edge, tls, grace),
            connector,
            token,
            proxy,
            metrics,
            pushes: inbox.pushes,
            local_rules,
            tasks: tasks.clone(),
        });
        tracing::info!(tunnel = %known.tunnel, "the token is loaded");
        let guarding = async {
            match guards {
                Some(guards) => guards.run(of_file, keyring, guards_grace, tasks.clone()).await,
                None => Ok(()),
            }
        };
        notify::started();
        notify::follow(running.status(), &tasks);
        write_pidfile_when_registered(&config, running.status(), &tasks);
        started.send_replace(Some(running.status()));
        // Callers of guards have their own grace, whatever becomes of the tunnel.
        let running = async {
            running.run().await;
            Ok(())
        };
        tokio::try_join!(guarding, running)?;
        drained.send_replace(true);
        // Drained by request: still there for whoever asks how it went.
        leaving.cancelled().await;
        admin_tasks.finish(Duration::from_secs(1)).await;
        Ok(())
    }
}

fn edge_source(config: &Config, token: &Token) -> anyhow::Result<EdgeSource> {
    let region = config.region_for(token.endpoint.as_deref())?.map(str::to_owned);
    Ok(if config.edge.is_empty() {
        EdgeSource::Discover { region, family: config.edge_ip_version, servers: None }
    } else {
        EdgeSource::Given(config.edge.clone())
    })
}

fn connector_config(
    config: &Config,
    edge: EdgeSource,
    tls: EdgeTls,
    grace: watch::Receiver<Duration>,
) -> ConnectorConfig {
    ConnectorConfig {
        connections: config.ha_connections,
        protocol: config.protocol,
        edge,
        tls,
        quic: QuicOptions {
            bind: config.edge_bind_address,
            port: 0,
            discover_mtu: !config.quic.disable_pmtu_discovery,
            connection_window: config.quic.connection_window,
            stream_window: config.quic.stream_window,
        },
        rpc_timeout: config.rpc_timeout,
        retries: config.retries,
        grace,
        features: config.features.clone(),
        post_quantum: config.post_quantum,
    }
}

fn write_pidfile_when_registered(config: &Config, mut status: watch::Receiver<Status>, tasks: &Tasks) {
    let Some(path) = config.pidfile.clone() else { return };
    let draining = tasks.draining();
    tasks.spawn(async move {
        tokio::select! {
            registered = status.wait_for(|status| status.ready() > 0) => if registered.is_err() { return },
            () = draining.cancelled() => return,
        }
        if let Err(error) = std::fs::write(&path, format!("{}\n", std::process::id())) {
            tracing::error!(path = %path.display(), %error, "cannot write the pid file");
        }
        draining.cancelled().await;
        let _ = std::fs::remove_file(&path);
    });
}
