//! The program as a process of its own: for its memory, its signals and its exit status.

use std::process::{ExitStatus, Output, Stdio};

use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    task::JoinHandle,
};

use super::{LIMIT, Lab, Over};

/// The binary under test. Nothing of the machine's own environment or home decides.
pub(crate) fn adit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.env_clear().env("HOME", "/nonexistent").kill_on_drop(true);
    command
}

/// Runs a command to its end: status, standard output, standard error.
pub(crate) async fn run(args: &[&str]) -> (i32, String, String) {
    let output = tokio::time::timeout(LIMIT, adit().args(args).output()).await.expect("does not end").unwrap();
    let Output { status, stdout, stderr } = output;
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A connector of a lab's edge with one connection.
pub(crate) struct Connector {
    child: Child,
    /// What it logs. Read all the time: a pipe that nobody reads fills up, and then a log line waits for ever.
    log: JoinHandle<String>,
    /// A folder of its own.
    _dir: tempfile::TempDir,
}

impl Connector {
    /// Starts it; it may not be registered yet.
    pub(crate) fn spawn(
        lab: &Lab,
        over: Over,
        rules: &str,
        further: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (config, token) = (dir.path().join("config.yml"), dir.path().join("token"));
        std::fs::write(&config, rules).unwrap();
        std::fs::write(&token, lab.token.encode().as_bytes()).unwrap();
        let mut command = adit();
        command.args(["run", "--protocol", over.as_str(), "--ha-connections", "1"]);
        command.env("TUNNEL_METRICS", "127.0.0.1:0");
        command.arg("--edge").arg(lab.connectors.to_string()).arg("--edge-ca").arg(lab.state.ca_path());
        command.arg("--config").arg(&config).arg("--token-file").arg(&token);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        further(&mut command);
        let mut child = command.spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        #[allow(clippy::disallowed_methods, reason = "its end is awaited by hand")]
        let log = tokio::spawn(async move {
            let mut log = Vec::new();
            let _ = stderr.read_to_end(&mut log).await;
            String::from_utf8_lossy(&log).into_owned()
        });
        Self { child, log, _dir: dir }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the process has ended")
    }

    /// Sends a signal by its name.
    pub(crate) async fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Waits for its end: how, and its log.
    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await.expect("the process does not end");
        (status.unwrap(), self.log.await.unwrap())
    }
}

/// A lab whose connector is a process.
pub(crate) struct Process {
    pub(crate) connector: Connector,
    pub(crate) lab: Lab,
}

impl Process {
    /// One connection, the rules of `rules` (a whole configuration file).
    pub(crate) async fn start(over: Over, rules: &str) -> Self {
        Self::with(over, rules, |command| command).await
    }

    /// As [`Process::start`], with further arguments or variables.
    pub(crate) async fn with(over: Over, rules: &str, further: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let lab = Lab::edge_only().await;
        let connector = Connector::spawn(&lab, over, rules, further);
        lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.expect("the connector did not register");
        Self { connector, lab }
    }

    /// Resident memory in KiB: now (`VmRSS`) or at most so far (`VmHWM`).
    pub(crate) fn memory(&self, field: &str) -> u64 {
        memory_of(self.connector.pid(), field)
    }
}

/// Resident memory of a process in KiB: now (`VmRSS`) or at most so far (`VmHWM`).
pub(crate) fn memory_of(process: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").trim().parse().unwrap()
}
