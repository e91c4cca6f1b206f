//! The test stand: one edge and one service for the whole run, and the connectors between them, each with four
//! connections. Knows command lines, not measurements.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{Process, free_address, poll, role, tail};
use crate::service;

#[derive(Debug)]
pub(crate) struct Stand {
    directory: PathBuf,
    edge_for_connectors: SocketAddr,
    http: SocketAddr,
    rule: PathBuf,
    _edge: Process,
    _service: Process,
}

/// A connector that is ready.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) hostname: String,
    /// From its start to its fourth connection.
    pub(crate) ready_millis: u64,
    pub(crate) idle_kib: u64,
    process: Process,
    log: PathBuf,
}

impl Stand {
    /// The tunnels must be known before the edge starts; each name is one hostname with a token of its own.
    pub(crate) fn start(adit: &Path, directory: &Path, tunnels: &[String]) -> Result<Self> {
        let state = directory.join("state");
        for tunnel in tunnels {
            let mut token = Command::new(adit);
            token.args(["token", "new", "--hostname", &hostname(tunnel), "--state"]).arg(&state);
            token.arg("--out").arg(token_file(directory, tunnel));
            let output = token.output().context("cannot run adit")?;
            ensure!(output.status.success(), "{token:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let mut service = Process::spawn("service", &mut role(service::ROLE)?)?;
        let address = service.first_line()?;
        let rule = directory.join("config.yml");
        fs::write(&rule, format!("ingress:\n  - service: http://{address}\n"))?;
        let (edge, edge_for_connectors, http) = edge(adit, directory, &state)?;
        Ok(Self { directory: directory.to_owned(), edge_for_connectors, http, rule, _edge: edge, _service: service })
    }

    /// Where visitors go.
    pub(crate) const fn http(&self) -> SocketAddr {
        self.http
    }

    /// Starts a connector with cloudflared's command line and waits for its connections.
    pub(crate) fn connect(&self, binary: &Path, tunnel: &str, transport: &str) -> Result<Connector> {
        let log = self.directory.join(format!("{tunnel}.log"));
        let metrics = free_address()?;
        let mut command = Command::new(binary);
        command.arg("tunnel").arg("--config").arg(&self.rule);
        for _ in 0..CONNECTIONS {
            // cloudflared makes as many connections as it has addresses and does not mind equal ones.
            command.args(["--edge", &self.edge_for_connectors.to_string()]);
        }
        command.arg("--cacert").arg(self.directory.join("state/ca.pem"));
        command.args(["--protocol", transport, "--metrics", &metrics.to_string(), "--no-autoupdate", "--logfile"]);
        command.arg(&log).args(["run", "--token-file"]).arg(token_file(&self.directory, tunnel));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let start = Instant::now();
        let mut process = Process::spawn(tunnel, &mut command)?;
        let ready = poll(READY_LIMIT, || {
            if let Some(status) = process.exited()? {
                bail!("{tunnel} ended with {status} before it was ready\n{command:?}\n{}", tail(&log));
            }
            Ok((connections(metrics) == Some(CONNECTIONS)).then_some(()))
        })?;
        if ready.is_none() {
            let connections = connections(metrics);
            bail!("{tunnel} is not ready, /ready tells {connections:?} connections\n{command:?}\n{}", tail(&log));
        }
        let ready_millis = start.elapsed().as_millis() as u64;
        let (idle_kib, _) = process.memory()?;
        Ok(Connector { hostname: hostname(tunnel), ready_millis, idle_kib, process, log })
    }
}

impl Connector {
    pub(crate) fn cpu(&self) -> Result<f64> {
        self.process.cpu().with_context(|| tail(&self.log))
    }

    pub(crate) fn rss_kib(&self) -> Result<u64> {
        Ok(self.process.memory()?.0)
    }

    pub(crate) fn forget_peak(&self) {
        self.process.forget_peak();
    }

    /// Since it started or was told to forget.
    pub(crate) fn peak_kib(&self) -> Result<u64> {
        Ok(self.process.memory()?.1)
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.process.stop()
    }
}

/// Somebody else may take a port between our look and the edge's bind, hence more than one try.
fn edge(adit: &Path, directory: &Path, state: &Path) -> Result<(Process, SocketAddr, SocketAddr)> {
    let log = directory.join("edge.log");
    for _ in 0..5 {
        let (listen, http, metrics) = (free_address()?, free_address()?, free_address()?);
        let mut command = Command::new(adit);
        command.arg("edge").arg("--state").arg(state).args(["--listen", &listen.to_string()]);
        command.args(["--http", &http.to_string(), "--metrics", &metrics.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
        let mut process = Process::spawn("edge", &mut command)?;
        let accepts = poll(READY_LIMIT, || {
            if process.exited()?.is_some() {
                return Ok(Some(false));
            }
            Ok(TcpStream::connect(http).is_ok().then_some(true))
        })?;
        if accepts == Some(true) {
            return Ok((process, listen, http));
        }
    }
    bail!("the edge does not start\n{}", tail(&log))
}

/// What the connector's `/ready` says, if it says anything yet.
fn connections(metrics: SocketAddr) -> Option<usize> {
    let mut stream = TcpStream::connect(metrics).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let json = answer.get(answer.find('{')?..=answer.rfind('}')?)?;
    let json: serde_json::Value = serde_json::from_str(json).ok()?;
    json.get("readyConnections")?.as_u64().map(|count| count as usize)
}

fn hostname(tunnel: &str) -> String {
    format!("{tunnel}.bench.test")
}

fn token_file(directory: &Path, tunnel: &str) -> PathBuf {
    directory.join(format!("{tunnel}.token"))
}

const CONNECTIONS: usize = 4;
/// A connector may first wait for a name server that does not answer.
const READY_LIMIT: Duration = Duration::from_secs(60);
