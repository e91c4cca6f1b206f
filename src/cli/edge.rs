//! `edge` and `token`.

mod file;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};
use tokio::sync::oneshot;
use tracing::Level;
use uuid::Uuid;

use super::{Outcome, complain, run, say};
use crate::{
    admin::{self, View},
    config::MetricsAddress,
    credentials::Token,
    edge::{Edge, EdgeConfig, UNREADY, state::StateDir},
    shutdown::Tasks,
    telemetry::{self, LogOptions},
    wire::EDGE_PORT,
};

/// What requests in flight get when nobody says.
const GRACE: Duration = Duration::from_secs(30);
const EVERYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

#[derive(Debug, Args)]
pub(super) struct EdgeArgs {
    /// File with `certificates: [ { hostnames, certificate, key, clientAuth, trust } ]`, `limits`, `retry`, `gracePeriod`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder with ca.pem, ca.key and tunnels.yml; what is missing is created
    #[arg(long, value_name = "DIR", default_value = "/var/lib/adit-edge")]
    state: PathBuf,
    /// For connectors, UDP and TCP
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::new(EVERYWHERE, EDGE_PORT))]
    listen: SocketAddr,
    /// For visitors in clear; 0.0.0.0:8080 if neither this nor --https is given
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// For visitors over TLS
    #[arg(long, value_name = "ADDR")]
    https: Option<SocketAddr>,
    /// Admin address
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// What connectors are told about the place
    #[arg(long, value_name = "TEXT", default_value = "adit")]
    location: String,
    /// debug, info, warn or error
    #[arg(long, default_value = "info", value_parser = ["debug", "info", "warn", "error"])]
    loglevel: String,
    /// How long requests in flight may go on when stopping, in seconds; else the file's, else 30
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a tunnel, or a further secret for one, and print its token once
    New {
        /// The edge's state
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// A hostname of the tunnel, `*.example.com` included; may be repeated
        #[arg(long, required_unless_present = "id")]
        hostname: Vec<String>,
        /// The tunnel that gets another secret
        #[arg(long)]
        id: Option<Uuid>,
        /// Write the token there (0600) instead of printing it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Say what a token says, but for its secret
    Show {
        /// A file with a token
        file: PathBuf,
    },
}

pub(super) fn run(args: EdgeArgs) -> Outcome {
    let level = match args.loglevel.as_str() {
        "debug" => Level::DEBUG,
        "warn" => Level::WARN,
        "error" => Level::ERROR,
        _ => Level::INFO,
    };
    let _guard = telemetry::init(&LogOptions { level, json: false, file: None });
    let http = match (args.http, args.https) {
        (None, None) => Some(SocketAddr::new(EVERYWHERE, 8080)),
        (http, _) => http,
    };
    let file = match args.config.as_deref().map(file::read).transpose() {
        Ok(file) => file.unwrap_or_default(),
        Err(error) => {
            complain(&format!("adit edge: {error}"));
            return Outcome::Usage;
        }
    };
    let grace = args.grace_period.map(Duration::from_secs).or(file.grace_period).unwrap_or(GRACE);
    let config = EdgeConfig {
        state: StateDir::new(args.state),
        listen: args.listen,
        http,
        https: args.https,
        certificates: file.certificates,
        location: args.location,
        limits: file.limits,
        retry: file.retry,
        // A short grace period is mostly for what is in flight.
        unready: UNREADY.min(grace / 2),
    };
    let metrics = args.metrics.map_or(MetricsAddress::Default, MetricsAddress::Fixed);
    run::with_runtime(None, async move {
        let tasks = Tasks::new();
        let hangup = run::on_signals(&tasks);
        let bound = async {
            let listener =
                admin::bind(&metrics).await.map_err(|error| format!("cannot bind the admin address: {error}"))?;
            let edge = Edge::bind(config, tasks.clone()).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((listener, edge))
        };
        let (listener, edge) = match bound.await {
            Ok(bound) => bound,
            Err(error) => {
                complain(&format!("adit edge: {error}"));
                return Outcome::Usage;
            }
        };
        let shown = |addr: Option<SocketAddr>| addr.map_or_else(|| "-".to_owned(), |addr| addr.to_string());
        say(&format!(
            "edge: connectors {}  http {}  https {}  admin {}",
            edge.connector_addr(),
            shown(edge.http_addr()),
            shown(edge.https_addr()),
            admin::shown(&listener)
        ));
        let handle = edge.handle();
        tasks.attend(async move {
            loop {
                hangup.notified().await;
                handle.reread();
            }
        });
        let view = View::Edge { edge: edge.handle(), started: tokio::time::Instant::now() };
        tasks.attend(admin::serve(listener, view, tasks.clone()));
        let (failed, mut failure) = oneshot::channel();
        let tasks_ = tasks.clone();
        tasks.spawn(async move {
            if let Err(error) = edge.run().await {
                let _ = failed.send(error);
                tasks_.drain();
            }
        });
        tasks.draining().cancelled().await;
        if !tasks.finish(grace).await {
            tracing::warn!(?grace, "the grace period is over: what was still in flight is cut");
        }
        match failure.try_recv() {
            Ok(error) => {
                complain(&format!("adit edge: {error}"));
                Outcome::Failed
            }
            Err(_) => Outcome::Done,
        }
    })
}

pub(super) fn token(command: TokenCommand) -> Outcome {
    let result = match command {
        TokenCommand::New { state, hostname, id, out } => new_token(&StateDir::new(state), &hostname, id, out),
        TokenCommand::Show { file } => show_token(&file),
    };
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => {
            complain(&format!("adit token: {error:#}"));
            Outcome::Usage
        }
    }
}

fn new_token(state: &StateDir, hostnames: &[String], id: Option<Uuid>, out: Option<PathBuf>) -> anyhow::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    // The file first: a token that cannot be written would be lost, as it is kept nowhere.
    let file = match &out {
        Some(path) => {
            let opened = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
            Some(opened.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?)
        }
        None => None,
    };
    let token = state.new_token(hostnames, id)?;
    match file {
        Some(mut file) => writeln!(file, "{}", *token.encode())?,
        None => say(&token.encode()),
    }
    Ok(())
}

fn show_token(file: &std::path::Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
    let token = Token::from_source(&text)?;
    say(&format!("tunnel    {}", token.tunnel));
    say(&format!("account   {}", token.account));
    say(&format!("secret    {} bytes, not shown", token.secret.expose().len()));
    if let Some(endpoint) = &token.endpoint {
        say(&format!("endpoint  {endpoint}"));
    }
    Ok(())
}
