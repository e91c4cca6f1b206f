//! `adit demo`: visitors, edge, connector and service on loopback, each with a certificate, and proof of what each hop
//! did.
//!
//! The same parts as in production, in one process. The service listens on a unix socket: no port of it exists that
//! anybody could reach past the tunnel, and who reaches the socket is not served without a certificate.

mod laboratory;
mod proof;
mod service;
mod visitor;

use std::{path::Path, time::Duration};

use anyhow::{Context, bail};
use tokio::net::UnixListener;

use self::{
    laboratory::{FORGED, Laboratory, SERVICE},
    proof::Scene,
    service::SharedSeen,
};
use crate::{
    app::ConnectorApp,
    config::{Flags, parse_file},
    edge::{
        Edge, EdgeConfig,
        certificates::{ClientAuth, FileCertificate},
        state::StateDir,
    },
    shutdown::Tasks,
};

/// Everything is on this machine; what takes longer is broken.
const LIMIT: Duration = Duration::from_secs(15);

/// Runs the demo; with `once`, makes one request and returns whether everything was proven.
///
/// # Errors
///
/// When a part cannot start.
pub async fn run(protocol: &str, once: bool, say: fn(&str), tasks: &Tasks) -> anyhow::Result<bool> {
    let dir = std::env::temp_dir().join(format!("adit-demo-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let outcome = in_folder(&dir, protocol, once, say, tasks).await;
    let _ = std::fs::remove_dir_all(&dir);
    outcome
}

async fn in_folder(dir: &Path, protocol: &str, once: bool, say: fn(&str), tasks: &Tasks) -> anyhow::Result<bool> {
    let laboratory = Laboratory::make(dir)?;
    let seen = SharedSeen::default();
    let socket = dir.join("service.sock");
    let listener = UnixListener::bind(&socket).context("the service's socket")?;
    service::start(listener, &laboratory, seen.clone(), tasks)?;

    // The edge has its own tasks: it goes after the connector has drained.
    let edge_tasks = Tasks::new();
    let state = StateDir::new(dir.join("edge"));
    // A name and no address: visitors are asked for certificates by the name in their handshake.
    let hostnames = ["localhost".to_owned()];
    let token = state.new_token(&hostnames, None)?;
    let tunnel = token.tunnel;
    let asking = FileCertificate {
        hostnames: hostnames.to_vec(),
        client_auth: ClientAuth::Optional,
        ..FileCertificate::default()
    };
    let config = EdgeConfig { http: None, certificates: vec![asking], ..EdgeConfig::loopback(state.clone()) };
    let edge = Edge::bind(config, edge_tasks.clone()).await?;
    let https = edge.https_addr().context("the edge has no visitors' address")?;
    let url = format!("https://localhost:{}", https.port());
    let connectors = edge.connector_addr();
    let handle = edge.handle();
    let edge_tasks_ = edge_tasks.clone();
    edge_tasks.spawn(async move {
        if let Err(error) = edge.run().await {
            tracing::error!(%error, "the edge stopped");
            edge_tasks_.drain();
        }
    });

    let flags = Flags::default()
        .with("edge", &connectors.to_string())
        .with("edge-ca", &state.ca_path().display().to_string())
        .with("protocol", protocol)
        .with("token", &token.encode())
        .with("metrics", "127.0.0.1:0");
    let loaded = parse_file("demo", &rules(&laboratory, &socket), &flags, |_| None)?;
    let app = ConnectorApp::bind(loaded.config, Vec::new(), tasks.clone()).await?;
    let (connector, admin) = (app.connector_id(), app.admin_addr()?);
    let (ended, connector_ended) = tokio::sync::oneshot::channel();
    tasks.spawn(async move {
        let _ = ended.send(app.run().await);
    });
    if let Err(reached) = handle.registered(tunnel, 4, LIMIT).await {
        bail!("only {reached} of 4 connections registered within {LIMIT:?}");
    }
    let transport = handle.registry().of(tunnel).first().map_or("?", |session| session.transport().as_str());

    say(&format!("edge       {connectors} (UDP and TCP) for connectors, {url} for visitors"));
    say(&format!("connector  4 connections over {transport}, dialled outward; admin http://{admin}"));
    say(&format!("service    TLS on {}, for workloads with a certificate, and no port at all\n", socket.display()));
    let scene = Scene {
        edge: https,
        edge_ca: &state.ca_path(),
        socket: &socket,
        laboratory: &laboratory,
        seen: &seen,
        connector: &connector.to_string(),
    };
    let proven = scene.prove(say).await?;
    if once {
        say(if proven { "proven" } else { "NOT proven" });
        tasks.drain();
    } else {
        let curl = format!("curl --cacert {} {url}/hello", state.ca_path().display());
        say(&format!(
            "\nAs somebody, pretending to be somebody else, and as nobody:\n\n  \
             {curl} --cert {}\n  {curl} --cert {} -H 'X-Client-Cert-Spiffe-Id: {FORGED}'\n  {curl}\n\n\
             Ctrl-C drains and ends.",
            laboratory.visitor.display(),
            laboratory.visitor.display(),
        ));
        tasks.draining().cancelled().await;
        say("draining");
    }
    if let Ok(Err(error)) = connector_ended.await {
        bail!(error);
    }
    edge_tasks.finish(Duration::from_secs(2)).await;
    tasks.finish(Duration::from_secs(2)).await;
    Ok(proven)
}

/// The connector's configuration. On a unix socket nothing would have to be proven; `always` demands it there too.
fn rules(laboratory: &Laboratory, socket: &Path) -> String {
    let Laboratory { workloads, visitors, connector, .. } = laboratory;
    format!(
        "innerHop:\n  mutualTls: always\n  identities:\n    default: {{ certificate: \"{}\" }}\n  \
         originTrust: [ \"{}\" ]\n  callers:\n    trustAnchors: [ \"{}\" ]\n\
         ingress:\n  - service: \"unix+tls:{}\"\n    innerHop: {{ expect: [ \"{SERVICE}\" ] }}\n",
        connector.display(),
        workloads.display(),
        visitors.display(),
        socket.display()
    )
}
