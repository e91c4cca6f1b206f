//! Flags over environment over file.

use std::time::Duration;

use adit::config::{Config, Flags, Loaded, LogFormat, LogLevel, MetricsAddress, Mistakes, Protocol, parse_file};
use clap::Parser;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Option<Run>,
}

#[derive(Debug, clap::Subcommand)]
enum Run {
    Run { name: Option<String> },
}

fn flags(line: &[&str]) -> Flags {
    Cli::try_parse_from(["adit"].iter().chain(line)).unwrap().flags
}

fn read(yaml: &str, env: &[(&str, &str)], flags: &Flags) -> Result<Loaded, Mistakes> {
    let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    parse_file("t.yml", yaml, flags, env)
}

fn config(line: &[&str]) -> Config {
    read("", &[], &flags(line)).unwrap().config
}

#[test]
fn flags_win_over_environment_wins_over_file() {
    let (yaml, env) = ("retries: 1\n", [("TUNNEL_RETRIES", "2")]);
    let none = Flags::default();
    assert_eq!(read("", &[], &none).unwrap().config.retries, 5);
    assert_eq!(read(yaml, &[], &none).unwrap().config.retries, 1);
    assert_eq!(read(yaml, &env, &none).unwrap().config.retries, 2);
    assert_eq!(read(yaml, &env, &flags(&["--retries", "3"])).unwrap().config.retries, 3);
}

#[test]
fn lists_are_replaced_not_joined() {
    let yaml = "edge: [a:1, b:2]\n";
    assert_eq!(read(yaml, &[], &Flags::default()).unwrap().config.edge, ["a:1", "b:2"]);
    let env = [("TUNNEL_EDGE", "c:3,d")];
    assert_eq!(read(yaml, &env, &Flags::default()).unwrap().config.edge, ["c:3", "d"]);
    let flags = flags(&["--edge", "e:5", "--edge", "f:6"]);
    assert_eq!(read(yaml, &env, &flags).unwrap().config.edge, ["e:5", "f:6"]);
}

#[test]
fn flags_work_before_and_after_run() {
    for line in [["--retries", "3", "run"], ["run", "--retries", "3"]] {
        let cli = Cli::try_parse_from(["adit"].iter().chain(&line)).unwrap();
        assert_eq!(read("", &[], &cli.flags).unwrap().config.retries, 3, "{line:?}");
        assert!(matches!(cli.command, Some(Run::Run { name: None })));
    }
}

#[test]
fn a_boolean_flag_does_not_swallow_the_command() {
    let cli = Cli::try_parse_from(["adit", "--no-autoupdate", "--pq", "run", "lab"]).unwrap();
    assert!(matches!(cli.command, Some(Run::Run { name: Some(name) }) if name == "lab"));
    assert!(read("", &[], &cli.flags).unwrap().config.post_quantum);
    assert!(!config(&["--post-quantum=false"]).post_quantum);
}

#[test]
fn aliases_and_short_names_mean_the_same_flag() {
    assert_eq!(config(&["-p", "http2"]).protocol, Protocol::Http2);
    assert_eq!(config(&["--edge-ca", "/x"]).edge_ca, config(&["--cacert", "/x"]).edge_ca);
    assert_eq!(config(&["-F", "a", "-F", "b"]).features, ["a", "b"]);
    assert_eq!(config(&["--cred-file", "/c"]).secret, config(&["--credentials-file", "/c"]).secret);
}

#[test]
fn defaults_are_those_of_cloudflared() {
    let config = config(&[]);
    assert_eq!(config.protocol, Protocol::Auto);
    assert_eq!((config.ha_connections, config.retries), (4, 5));
    assert_eq!(config.rpc_timeout, Duration::from_secs(5));
    assert_eq!(config.grace_period, Duration::from_secs(30));
    assert_eq!(config.metrics, MetricsAddress::Default);
    // The stream window does not grow, so it starts between the peer's first (512 KiB) and last (6 MiB) value.
    assert_eq!((config.quic.connection_window, config.quic.stream_window), (31_457_280, 2 << 20));
    assert_eq!((config.loglevel, config.output), (LogLevel::Info, LogFormat::Text));
    assert_eq!(config.management_hostname, "management.argotunnel.com");
}

#[test]
fn mistakes_in_flags_environment_and_file_come_together() {
    let refused = read(
        "ha-connections: 0\n",
        &[("TUNNEL_GRACE_PERIOD", "30"), ("TUNNEL_POST_QUANTUM", "maybe")],
        &flags(&["--edge-ip-version", "5", "--rpc-timeout", "-1s"]),
    );
    let refused = refused.unwrap_err().to_string();
    for wanted in [
        "command line: --edge-ip-version: must be auto, 4 or 6",
        "command line: --rpc-timeout: a negative duration",
        "environment: TUNNEL_GRACE_PERIOD: a duration needs a unit",
        "environment: TUNNEL_POST_QUANTUM: must be true or false",
        "t.yml:1:17: ha-connections: must be 1 to 32",
    ] {
        assert!(refused.contains(wanted), "{wanted}\n{refused}");
    }
    assert_eq!(refused.lines().count(), 5);
}

#[test]
fn more_connections_than_are_ever_planned_are_refused_in_file_and_flag() {
    for (file, flag) in [("ha-connections: 33\n", "32"), ("", "33")] {
        let refused = read(file, &[], &flags(&["--ha-connections", flag]));
        assert!(refused.unwrap_err().to_string().contains("ha-connections: must be 1 to 32"), "{file}{flag}");
    }
    assert_eq!(read("ha-connections: 32\n", &[], &Flags::default()).unwrap().config.ha_connections, 32);
}

#[test]
fn a_variable_set_to_nothing_is_not_set() {
    let env = [("TUNNEL_RETRIES", ""), ("TUNNEL_TOKEN", ""), ("TUNNEL_TRANSPORT_PROTOCOL", "")];
    let loaded = read("retries: 1\n", &env, &Flags::default()).unwrap();
    assert_eq!(loaded.config.retries, 1);
    assert_eq!(loaded.config.secret, adit::config::SecretSource::Missing);
}

#[test]
fn flags_without_effect_are_accepted_and_named_once() {
    let flags = flags(&[
        "--no-autoupdate",
        "--no-autoupdate",
        "--autoupdate-freq",
        "24h",
        "--origincert",
        "/c.pem",
        "--proxy-dns",
        "--heartbeat-count",
        "5",
        "--api-key",
        "k",
    ]);
    let loaded = read("", &[("TUNNEL_NO_PRECHECKS", "true")], &flags).unwrap();
    let notes: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(notes.len(), 7, "{notes:?}");
    assert_eq!(notes.iter().filter(|note| note.contains("--no-autoupdate: has no effect here")).count(), 1);
    assert!(notes.iter().any(|note| note == "environment: TUNNEL_NO_PRECHECKS: has no effect here"));
    assert!(!format!("{flags:?} {notes:?}").contains("\"k\""));
}

#[test]
fn flags_that_only_cloudflares_api_serves_do_not_exist() {
    for flag in ["--hostname", "--lb-pool", "--name", "--quick-service", "--trace-output", "--service-op-ip"] {
        assert!(Cli::try_parse_from(["adit", flag, "x"]).is_err(), "{flag}");
    }
}

#[test]
fn the_table_of_flags_is_consistent() {
    <Cli as clap::CommandFactory>::command().debug_assert();
}

#[test]
fn admin_addresses_are_checked() {
    let metrics =
        |text: &str| read("", &[], &Flags::default().with("metrics", text)).map(|loaded| loaded.config.metrics);
    assert_eq!(metrics("localhost:0").unwrap(), MetricsAddress::Default);
    assert_eq!(metrics(":9090").unwrap(), MetricsAddress::Fixed("[::]:9090".to_owned()));
    assert_eq!(metrics("[::1]:1").unwrap(), MetricsAddress::Fixed("[::1]:1".to_owned()));
    for wrong in ["9090", "host", "host:x", "host:70000", "[x]:1", "http://host:1"] {
        assert!(metrics(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn edge_addresses_are_kept_as_given() {
    let edge = config(&["--edge", "edge.svc", "--edge", "[::1]:7844", "--edge", "10.0.0.1:7"]).edge;
    assert_eq!(edge, ["edge.svc", "[::1]:7844", "10.0.0.1:7"]);
    assert!(read("edge: ['http://x:1']\n", &[], &Flags::default()).is_err());
}

#[test]
fn an_unknown_log_level_is_a_warning_and_becomes_info() {
    let loaded = read("loglevel: loud\n", &[], &Flags::default()).unwrap();
    assert_eq!(loaded.config.loglevel, LogLevel::Info);
    assert!(loaded.warnings[0].to_string().contains("info is used"));
    assert_eq!(read("loglevel: error\n", &[], &Flags::default()).unwrap().config.loglevel, LogLevel::Error);
}

#[test]
fn a_long_grace_is_allowed_with_a_warning() {
    let loaded = read("grace-period: 10m\n", &[], &Flags::default()).unwrap();
    assert_eq!(loaded.config.grace_period, Duration::from_secs(600));
    assert!(loaded.warnings[0].to_string().contains("longer than 3m"));
    assert!(read("grace-period: 3m\n", &[], &Flags::default()).unwrap().warnings.is_empty());
}

#[test]
fn the_local_flow_limit_wins_over_the_files() {
    let yaml = "warp-routing: {maxActiveFlows: 500}\n";
    let loaded = read(yaml, &[], &flags(&["--max-active-flows", "100"])).unwrap();
    assert_eq!(loaded.config.warp_routing.max_active_flows, 100);
    assert_eq!(read(yaml, &[], &Flags::default()).unwrap().config.warp_routing.max_active_flows, 500);
}

#[test]
fn single_origin_flags_beside_rules_are_named() {
    let yaml = "ingress: [{service: 'http://x'}]\n";
    let loaded = read(yaml, &[("TUNNEL_URL", "http://y")], &flags(&["--no-tls-verify"])).unwrap();
    assert_eq!(loaded.ineffective_origin, ["url", "no-tls-verify"]);
    assert_eq!(loaded.config.ingress.unwrap().rules[0].spelling, "http://x");
    assert!(loaded.warnings[0].to_string().contains("has ingress rules"));
}

#[test]
fn settings_told_to_the_edge_are_only_those_given() {
    let flags = flags(&["--no-autoupdate", "--token", "hush", "--metrics", "127.0.0.1:1"]);
    let loaded = read("loglevel: debug\n", &[("TUNNEL_TRANSPORT_PROTOCOL", "quic")], &flags).unwrap();
    let reported: Vec<_> = loaded.config.reported.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(reported, ["loglevel=debug", "metrics=127.0.0.1:1", "no-autoupdate=true", "protocol=quic"]);
}

#[test]
fn a_setting_that_nothing_reads_yet_is_accepted_and_said_to_be_without_effect() {
    for name in ["write-stream-timeout", "max-edge-addr-retries", "label"] {
        let flags = Flags::default().with(name, if name == "write-stream-timeout" { "5s" } else { "5" });
        let warnings = parse_file("f", "", &flags, |_| None).unwrap().warnings;
        assert!(warnings.iter().any(|warning| warning.to_string().contains(name)), "{name}: {warnings:?}");
    }
}
