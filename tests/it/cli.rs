//! The program as people start it.

use std::process::{Output, Stdio};

use tokio::process::Command;

use crate::harness::{LIMIT, Lab, mirror};

fn adit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    // Nothing of the machine's own environment or home decides.
    command.env_clear().env("HOME", "/nonexistent").kill_on_drop(true);
    command
}

async fn run(args: &[&str]) -> (i32, String, String) {
    let output = tokio::time::timeout(LIMIT, adit().args(args).output()).await.expect("does not end").unwrap();
    let Output { status, stdout, stderr } = output;
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn the_help_fits_a_screen() {
    let (status, help, _) = run(&["--help"]).await;
    assert_eq!(status, 0);
    assert!(help.lines().count() <= 24, "{help}");
    assert!(help.lines().all(|line| line.len() <= 100), "{help}");
}

#[tokio::test]
async fn the_help_of_run_and_a_missing_token_name_the_file_forms_first() {
    let (_, help, _) = run(&["run", "--help"]).await;
    assert!(help.find("--token-file").unwrap() < help.find("--token ").unwrap(), "{help}");
    let (status, _, error) = run(&["run"]).await;
    assert_eq!(status, 2);
    assert!(
        error.find("--token-file").unwrap() < error.find("--token are").or(error.find("TUNNEL_TOKEN or")).unwrap(),
        "{error}"
    );
}

#[tokio::test]
async fn wrong_usage_exits_with_two_before_and_after_run() {
    for args in [
        &["run", "--no-such-flag"][..],
        &["tunnel", "--no-such-flag", "run"],
        &["tunnel", "run", "--no-such-flag"],
        &["tunnel", "run", "a", "b"],
        &["tunnel", "run", "--loglevel", "debug", "--protocol", "carrier-pigeon", "--token", "x"],
        &["run", "--token", "abc"],
    ] {
        let (status, _, error) = run(args).await;
        assert_eq!(status, 2, "{args:?}: {error}");
        assert!(!error.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn a_malformed_token_is_refused_without_being_printed() {
    let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQ";
    let (status, out, error) = run(&["run", "--metrics", "127.0.0.1:0", "--token", secret]).await;
    assert_eq!(status, 2);
    assert!(!out.contains(secret) && !error.contains(secret), "{out}{error}");
    assert!(error.contains("token"), "{error}");
}

#[tokio::test]
async fn rules_are_checked_and_looked_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yml");
    let file = path.to_str().unwrap();
    std::fs::write(
        &path,
        "ingress:\n  - hostname: a.example\n    service: http://localhost:1\n  - service: http_status:404\n",
    )
    .unwrap();
    let (status, out, _) = run(&["tunnel", "--config", file, "ingress", "validate"]).await;
    assert_eq!((status, out.lines().last()), (0, Some("OK")));
    let (status, out, _) = run(&["ingress", "--config", file, "rule", "https://a.example/x"]).await;
    assert_eq!(status, 0);
    assert!(out.contains("Matched rule #0"), "{out}");
    let (status, _, _) = run(&["ingress", "--config", file, "rule", "a.example/x"]).await;
    assert_eq!(status, 2, "a URL without scheme");
    std::fs::write(&path, "ingress:\n  - hostname: a.example\n    servise: http://localhost:1\n").unwrap();
    let (status, _, error) = run(&["ingress", "--config", file, "validate"]).await;
    assert_eq!(status, 2);
    assert!(error.contains(":3:") && error.contains("service"), "line and suggestion: {error}");
}

#[tokio::test]
async fn a_token_is_made_for_an_edge_and_shown_without_its_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (state, out) = (dir.path().join("state"), dir.path().join("token"));
    let (state, out) = (state.to_str().unwrap(), out.to_str().unwrap());
    let (status, printed, error) =
        run(&["token", "new", "--state", state, "--hostname", "app.example", "--out", out]).await;
    assert_eq!((status, printed.as_str()), (0, ""), "{error}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(out).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let (status, shown, _) = run(&["token", "show", out]).await;
    assert_eq!(status, 0);
    let token = adit::credentials::Token::parse(std::fs::read_to_string(out).unwrap().trim()).unwrap();
    assert!(shown.contains(&token.tunnel.to_string()), "{shown}");
    let tunnels = std::fs::read_to_string(dir.path().join("state/tunnels.yml")).unwrap();
    for text in [&shown, &tunnels] {
        let hex: String = token.secret.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!text.contains(&hex), "{text}");
    }
}

#[tokio::test]
async fn the_demo_proves_itself_over_both_transports() {
    for transport in ["quic", "http2"] {
        let (status, out, error) = run(&["demo", "--once", "--protocol", transport]).await;
        assert_eq!(status, 0, "{out}{error}");
        assert!(out.contains(&format!("4 connections over {transport}")) && out.ends_with("proven\n"), "{out}");
    }
}

#[tokio::test]
async fn an_existing_manifest_starts_registers_takes_its_rules_from_the_edge_and_serves() {
    let lab = Lab::edge_only().await;
    // What Vault's agent renders: only the token. The rules come from the edge.
    let config = lab.dir.path().join("cloudflared_config.yml");
    std::fs::write(&config, format!("token: {}\n", *lab.token.encode())).unwrap();
    let rules = lab.state.path().join("rules.yml");
    std::fs::write(&rules, format!("ingress:\n  - service: http://{}\n", mirror().await)).unwrap();
    let tunnels = lab.state.path().join("tunnels.yml");
    let known = std::fs::read_to_string(&tunnels).unwrap();
    std::fs::write(&tunnels, format!("{known}  config: rules.yml\n")).unwrap();
    let mut state = lab.edge.tunnels_changed();
    let configured = state.wait_for(|tunnels| tunnels.iter().any(|tunnel| tunnel.config.is_some()));
    tokio::time::timeout(LIMIT, configured).await.unwrap().unwrap();

    let mut connector = adit()
        .args(["tunnel", "--config", config.to_str().unwrap(), "run"])
        .env("TUNNEL_EDGE", lab.connectors.to_string())
        .env("TUNNEL_CACERT", lab.state.ca_path())
        .env("TUNNEL_METRICS", "127.0.0.1:0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    lab.edge.registered(lab.token.tunnel, 4, LIMIT).await.expect("4 connections");
    let served = async {
        loop {
            let answer = lab.get("/through").await;
            if answer.status == 200 {
                return answer;
            }
            // The push is on its way.
            assert_eq!(answer.code(), Some("no-configuration"), "{answer:?}");
        }
    };
    let answer = tokio::time::timeout(LIMIT, served).await.expect("the rules do not arrive");
    assert!(answer.text().starts_with("GET /through HTTP/1.1"), "{}", answer.text());

    // SIGTERM ends it in good order and soon.
    let pid = connector.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let output = tokio::time::timeout(LIMIT, connector.wait()).await.expect("does not end").unwrap();
    assert!(output.success());
    let mut log = String::new();
    tokio::io::AsyncReadExt::read_to_string(connector.stderr.as_mut().unwrap(), &mut log).await.unwrap();
    assert!(log.contains("rules of the edge are in force") && !log.contains(&*lab.token.encode()), "{log}");
    lab.finish().await;
}
