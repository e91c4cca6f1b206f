//! The program on its command line: exit statuses, and what it says.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
};

use super::{Verdict, Verdicts, list, same, text, together};
use crate::{
    harness::{LIMIT, Lab, Over, rule},
    raw_edge::{RawEdge, soon, token},
};

/// The binary under test. Nothing of the machine's own environment or home decides.
fn adit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.env_clear().env("HOME", "/nonexistent").kill_on_drop(true);
    command
}

/// The program as a connector of a raw edge. It ends with the test.
pub(super) struct Program {
    pub(super) child: Child,
    dir: tempfile::TempDir,
}

impl Program {
    /// Starts it with a configuration file and further arguments; its log is piped.
    pub(super) fn run(edge: &RawEdge, protocol: &str, yaml: &str, further: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        std::fs::write(&config, yaml).unwrap();
        let child = adit()
            .args(["tunnel", "--config", config.to_str().unwrap(), "run", "--protocol", protocol])
            .args(["--edge", &edge.addr.to_string(), "--cacert", edge.authority().to_str().unwrap()])
            .args(["--ha-connections", "1", "--metrics", "127.0.0.1:0"])
            .args(further)
            .env("TUNNEL_TOKEN", &*token().encode())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    /// Its configuration file.
    pub(super) fn config(&self) -> PathBuf {
        self.dir.path().join("config.yml")
    }

    /// Sends a signal, by name without `SIG`.
    pub(super) async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("the program runs").to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().await.unwrap().success());
    }
}

const RULES: &str = "ingress:\n  - hostname: a.example.com\n    path: ^/api\n    service: http://localhost:1\n  - service: http_status:404\n";

/// What the record leaves out of a command line, or names by a word.
fn arguments(case: &Value, dir: &Path) -> Vec<String> {
    let path = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let rules = path("g.yml", RULES);
    let with = |file: &str, words: &[&str]| {
        [&["tunnel", "--config", file], words].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    match text(case, "id") {
        "cli:validate-bad" => {
            with(&path("bad.yml", "ingress:\n  - hostname: a.example.com\n"), &["ingress", "validate"])
        }
        "cli:validate-with-url-flag" => with(&rules, &["--url", "http://localhost:1", "ingress", "validate"]),
        "cli:rule-no-arg" => with(&rules, &["ingress", "rule"]),
        "cli:dns-failure-at-start" => {
            ["tunnel", "run", "--edge", "edge.invalid", "--metrics", "127.0.0.1:0", "--token", &token().encode()]
                .map(str::to_owned)
                .to_vec()
        }
        _ => {
            let spelled = list(case, "args").iter().map(|word| match word.as_str().unwrap() {
                "g.yml" => rules.clone(),
                "<empty>" => path("empty", ""),
                "/nope" => dir.join("nope").to_str().unwrap().to_owned(),
                "<uuid>" => uuid::Uuid::from_u128(7).to_string(),
                word => word.to_owned(),
            });
            let mut words: Vec<_> = spelled.collect();
            if words[0] == "ingress" {
                words.splice(1..1, ["--config".to_owned(), rules]);
            }
            words
        }
    }
}

pub(super) async fn cli_exit(cases: Vec<Value>) -> Verdicts {
    together(&cases, async |case| match text(&case, "id") {
        "cli:ready-200" => {
            let lab = Lab::start(Over::Quic, &rule("http_status:200")).await;
            lab.admin_says("/ready", 200).await;
            exit_of(&case, &["tunnel", "--metrics", &lab.admin.to_string(), "ready"]).await
        }
        "cli:ready-503" => {
            let edge = RawEdge::new().await;
            let connector = edge.connector("quic", &rule("http_status:200")).await;
            exit_of(&case, &["tunnel", "--metrics", &connector.admin.to_string(), "ready"]).await
        }
        "cli:ready-no-metrics-flag" => {
            // The ports that are asked by default, so that no connector of this machine's answers.
            for port in adit::config::MetricsAddress::PORTS {
                if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
                    crate::harness::background(async move { while listener.accept().await.is_ok() {} });
                }
            }
            exit_of(&case, &["tunnel", "ready"]).await
        }
        _ => {
            let dir = tempfile::tempdir().unwrap();
            let words = arguments(&case, dir.path());
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            match case["goes_on_and_says"].as_str() {
                Some(said) => goes_on(&words, said).await,
                None => exit_of(&case, &words).await,
            }
        }
    })
    .await
}

async fn exit_of(case: &Value, words: &[&str]) -> Verdict {
    let output = adit().args(words).stdin(Stdio::null()).output();
    // One that waits instead is killed, and told apart.
    let limit = if case["goes_on_and_says"].is_null() { LIMIT / 4 } else { LIMIT };
    let output = tokio::time::timeout(limit, output).await.map_err(|_| "it does not end".to_owned())?.unwrap();
    let (out, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    same(&json!(output.status.code()), &case["exit"]).map_err(|why| format!("exit status {why}; {out}{said}"))?;
    if let Some(last) = case["stdout_last"].as_str() {
        same(&json!(out.lines().last()), &json!(last))?;
    }
    for (key, stream) in [("stdout_contains", &out), ("stderr_about", &said), ("stderr_contains", &said)] {
        if let Some(words) = case[key].as_str()
            && !stream.contains(words)
        {
            return Err(format!("{key} {words:?}, but it says {stream}"));
        }
    }
    Ok(())
}

/// It says so and does not end; the second line of the kind proves that it goes on.
async fn goes_on(words: &[&str], said: &str) -> Verdict {
    let mut child = adit().args(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let heard = soon("what it waits for", async {
        let mut all = String::new();
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains(said) {
                return Ok(());
            }
            all.push_str(&line);
        }
        Err(format!("it ended: {all}"))
    });
    heard.await?;
    match child.try_wait().unwrap() {
        Some(status) => Err(format!("it ended with {status}")),
        None => Ok(()),
    }
}
