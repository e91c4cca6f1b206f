//! What the program says about a configuration that changes, and SIGHUP as people send it.

use std::{process::Stdio, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::Mutex,
};

use crate::harness::{LIMIT, Lab, background, eventually, in_time, process::adit};

/// The program with its log.
struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Program {
    async fn start(lab: &Lab, args: &[&str]) -> Self {
        let mut child = adit()
            .args(["run", "--config", lab.config_file().to_str().unwrap()])
            .args(args)
            .env("TUNNEL_EDGE", lab.connectors.to_string())
            .env("TUNNEL_CACERT", lab.state.ca_path())
            .env("TUNNEL_METRICS", "127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let log_ = log.clone();
        background(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log_.lock().await.push(line);
            }
        });
        lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.expect("the program does not register");
        Self { child, log }
    }

    async fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
    }

    /// The lines so far that hold all of these.
    async fn lines(&self, texts: &[&str]) -> Vec<String> {
        let log = self.log.lock().await;
        log.iter().filter(|line| texts.iter().all(|text| line.contains(text))).cloned().collect()
    }

    async fn says(&self, count: usize, texts: &[&str]) {
        let said = async || self.lines(texts).await.len() >= count;
        eventually(&format!("{texts:?} in the log, {count} times"), said).await;
    }
}

#[tokio::test]
async fn a_changed_file_and_its_mistakes_are_told_and_the_level_of_the_log_follows() {
    in_time(async {
        let lab = Lab::edge_only().await;
        let token = lab.token.encode();
        let yaml = |more: &str| {
            format!("token: {}\nha-connections: 1\n{more}\ningress:\n  - service: http_status:204\n", *token)
        };
        lab.configure(&yaml(""));
        let mut program = Program::start(&lab, &["--retries", "3"]).await;
        assert_eq!(lab.get("/first").await.status, 204);
        program.says(1, &["access", "/first"]).await;

        // Every mistake with its place, once; and once more for who asks.
        lab.configure(&yaml("").replace("http_status:204", "nonsense\n    servise: x"));
        let place = "config.yml:5:14: ingress[0].service: ";
        program.says(1, &["ERROR", "refused, the one before stays", "mistakes=2"]).await;
        assert_eq!(program.lines(&["ERROR", place]).await.len(), 1);
        assert_eq!(program.lines(&["ERROR", "config.yml:6:5: ingress[0].servise: unknown key"]).await.len(), 1);
        program.signal("-HUP").await;
        program.says(2, &["ERROR", place]).await;
        assert_eq!(lab.get("/still").await.status, 204);

        // What needs a restart stands in one line; the flag wins, so that its key is not there.
        lab.configure(&yaml("protocol: http2\nretries: 9\nno-such-key: 1\nloglevel: error"));
        program.says(1, &["the changed configuration is in force"]).await;
        let restart = ["WARN", "only in force after a restart", "protocol (running with auto)"];
        program.says(1, &restart).await;
        assert!(program.lines(&["after a restart", "retries"]).await.is_empty());
        program.says(1, &["WARN", "config.yml:5:1: no-such-key: unknown key"]).await;
        assert_eq!(lab.get("/second").await.status, 204);
        // The level again; what needs a restart is not said twice.
        lab.configure(&yaml("protocol: http2"));
        program.says(2, &["the changed configuration is in force"]).await;
        assert_eq!(lab.get("/third").await.status, 204);
        program.says(1, &["access", "/third"]).await;
        assert!(program.lines(&["/second"]).await.is_empty(), "the level was error then");
        assert_eq!(program.lines(&restart).await.len(), 1);

        program.signal("-TERM").await;
        let status = tokio::time::timeout(LIMIT, program.child.wait()).await.expect("does not end").unwrap();
        assert!(status.success());
        assert!(program.lines(&[&token]).await.is_empty(), "the token is in the log");
    })
    .await;
}
