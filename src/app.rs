//! The composition root: binds everything, runs it, drains it. The only place that knows everybody.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use http::{HeaderName, HeaderValue};
use tokio::{net::TcpListener, sync::watch};
use uuid::Uuid;

use crate::{
    admin::{self, ConnectorView, View},
    config::{Config, WarpRouting, local_push},
    connector::{Connector, ConnectorConfig, Parts, Status, discovery::EdgeSource, rules::Rules},
    credentials::Token,
    metrics::Metrics,
    proxy::{Flows, Proxy, Routes},
    secrets,
    shutdown::Tasks,
    tls::EdgeTls,
    transport::quic::QuicOptions,
};

/// A connector with its admin address bound and nothing running.
#[derive(Debug)]
pub struct ConnectorApp {
    config: Config,
    search: Vec<PathBuf>,
    admin: TcpListener,
    connector: Uuid,
    metrics: Arc<Metrics>,
    tls: EdgeTls,
    routes: watch::Sender<Arc<Routes>>,
    forbidden: Arc<[SocketAddr]>,
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
        let warp: WarpRouting = config.warp_routing.clone().limited(config.max_active_flows);
        let routes = Routes::new(config.ingress.clone(), warp, -1, &metrics, &forbidden)
            .map_err(|error| anyhow::anyhow!(error))?;
        let (routes, _) = watch::channel(Arc::new(routes));
        let connector = Uuid::new_v4();
        Ok(Self { config, search, admin, connector, metrics, tls, routes, forbidden, tasks })
    }

    /// Where the admin address is.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn admin_addr(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// The connector id.
    pub fn connector_id(&self) -> Uuid {
        self.connector
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Waits for the token, connects, and stays connected until the tasks are drained.
    ///
    /// # Errors
    ///
    /// When the token cannot be used.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { config, search, admin, connector, metrics, tls, routes, forbidden, tasks } = self;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"), %connector, admin = admin::shown(&admin),
            rules = config.ingress.as_ref().map_or(0, |ingress| ingress.rules.len()), "starting"
        );
        let (started, status) = watch::channel(None::<watch::Receiver<Status>>);
        let (tunnel, tunnel_seen) = watch::channel(None);
        let view = ConnectorView {
            connector,
            status,
            routes: routes.subscribe(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            tunnel: tunnel_seen,
        };
        // Outlives the drain: a draining process still answers its probes.
        let admin_tasks = Tasks::new();
        admin_tasks.attend(admin::serve(admin, View::Connector(view), admin_tasks.clone()));
        let draining = tasks.draining();
        let token = tokio::select! {
            token = secrets::token(&config.secret, config.tunnel.as_deref(), &search) => token?,
            () = draining.cancelled() => return Ok(()),
        };
        let known = token.borrow().clone();
        tunnel.send_replace(Some(known.tunnel));
        let edge = edge_source(&config, &known)?;
        let local_rules = local_push(config.ingress.as_ref(), &config.warp_routing, &config.reported);
        let (_local, local_rules) = watch::channel(Some(Arc::from(local_rules)));
        let proxy = Arc::new(Proxy {
            routes: routes.subscribe(),
            metrics: metrics.clone(),
            tags: tags(&config, connector)?,
            management_hostname: config.management_hostname.to_lowercase(),
            flows: Flows::default(),
        });
        let rules = Rules {
            routes,
            mode: config.remote_config,
            limits: config.limits,
            max_active_flows: config.max_active_flows,
            metrics: metrics.clone(),
            forbidden,
        };
        let pushes = rules.start(&tasks);
        let running = Connector::new(Parts {
            config: connector_config(&config, edge, tls),
            connector,
            token,
            proxy,
            metrics,
            pushes,
            local_rules,
            tasks: tasks.clone(),
        });
        tracing::info!(tunnel = %known.tunnel, "the token is loaded");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        write_pidfile_when_registered(&config, running.status(), &tasks);
        started.send_replace(Some(running.status()));
        running.run().await;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
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

fn connector_config(config: &Config, edge: EdgeSource, tls: EdgeTls) -> ConnectorConfig {
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
        grace: config.grace_period,
        features: config.features.clone(),
        post_quantum: config.post_quantum,
    }
}

/// `Cf-Warp-Tag-*`: the connector's id, and the user's own (protocol.md §9.1).
fn tags(config: &Config, connector: Uuid) -> anyhow::Result<Vec<(HeaderName, HeaderValue)>> {
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
