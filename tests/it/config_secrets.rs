//! Where the token comes from.

use std::path::{Path, PathBuf};

use adit::config::{Config, Flags, SecretSource, parse_file, search_directories};
use adit::credentials::Secret;

fn config(yaml: &str, env: &[(&str, &str)], flags: Flags) -> Config {
    let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    parse_file("t.yml", yaml, &flags, env).unwrap_or_else(|mistakes| panic!("{mistakes}")).config
}

fn source(yaml: &str, env: &[(&str, &str)], flags: Flags) -> SecretSource {
    config(yaml, env, flags).secret
}

fn token(text: &str) -> SecretSource {
    SecretSource::Token(Secret::new(text))
}

#[test]
fn a_token_wins_over_a_token_file_wins_over_credentials() {
    let yaml = "token: in-file\ntoken-file: /t\ncredentials-contents: '{}'\ncredentials-file: /c\ntunnel: lab\n";
    let env = [("TUNNEL_TOKEN", "in-env")];
    assert_eq!(source(yaml, &env, Flags::default().with("token", "in-flag")), token("in-flag"));
    assert_eq!(source(yaml, &env, Flags::default()), token("in-env"));
    assert_eq!(source(yaml, &[], Flags::default()), token("in-file"));
    let yaml = &yaml[yaml.find("token-file").unwrap()..];
    assert_eq!(source(yaml, &[], Flags::default()), SecretSource::TokenFile("/t".into()));
    let file = Flags::default().with("token-file", "/other");
    assert_eq!(source(yaml, &[], file), SecretSource::TokenFile("/other".into()));
    let yaml = &yaml[yaml.find("credentials-contents").unwrap()..];
    let contents = SecretSource::CredentialsContents(Secret::new("{}"));
    assert_eq!(source(yaml, &[], Flags::default()), contents);
    let yaml = &yaml[yaml.find("credentials-file").unwrap()..];
    assert_eq!(source(yaml, &[], Flags::default()), SecretSource::CredentialsFile("/c".into()));
    assert_eq!(source("tunnel: lab\n", &[], Flags::default()), SecretSource::SearchCredentials);
    assert_eq!(source("", &[], Flags::default()), SecretSource::Missing);
}

#[test]
fn a_token_may_be_a_reference() {
    let read = |yaml: &str| source(yaml, &[], Flags::default());
    let key = SecretSource::FileKey { file: PathBuf::from("/f.json"), key: "a.b".to_owned() };
    assert_eq!(read("token: {file: /f.json, key: a.b}\n"), key);
    assert_eq!(read("token-file: {file: /f.json, key: a.b}\n"), key);
    assert_eq!(read("token: {file: /f}\n"), SecretSource::TokenFile("/f".into()));
    assert_eq!(read("token: /vault/secrets/tunnel\n"), SecretSource::TokenFile("/vault/secrets/tunnel".into()));
    assert_eq!(read("token: {env: MY_TOKEN}\n"), SecretSource::Env("MY_TOKEN".to_owned()));
    assert_eq!(read("token: {credential: tunnel}\n"), SecretSource::Credential("tunnel".to_owned()));
}

#[test]
fn a_reference_has_exactly_one_form() {
    for wrong in [
        "{file: /f, env: X}",
        "{key: x}",
        "{env: X, key: y}",
        "{}",
        "{credential: ../x}",
        "{file: [x]}",
        "{fil: /f}",
        "[x]",
    ] {
        let outcome = parse_file("t.yml", &format!("token: {wrong}\n"), &Flags::default(), |_| None);
        assert!(outcome.is_err(), "{wrong}");
    }
}

#[test]
fn the_tunnel_argument_wins_over_the_files() {
    let mut flags = Flags::default();
    flags.tunnel = Some("from-argument".to_owned());
    assert_eq!(config("tunnel: from-file\n", &[], flags).tunnel.as_deref(), Some("from-argument"));
    let file = config("tunnel: from-file\n", &[], Flags::default());
    assert_eq!(file.tunnel.as_deref(), Some("from-file"));
}

#[test]
fn secrets_are_not_in_the_debug_text_of_a_configuration() {
    let flags = Flags::default().with("token", "hush-hush");
    assert!(!format!("{flags:?}").contains("hush"));
    assert!(!format!("{:?}", config("", &[], flags)).contains("hush"));
    let contents = "credentials-contents: '{\"TunnelSecret\": \"hush\"}'\n";
    assert!(!format!("{:?}", config(contents, &[], Flags::default())).contains("hush"));
}

#[test]
fn a_token_on_the_command_line_is_warned_about() {
    let flags = Flags::default().with("token", "x");
    let loaded = parse_file("t.yml", "", &flags, |_| None).unwrap();
    assert!(loaded.warnings[0].to_string().contains("use --token-file"));
    let env = |name: &str| (name == "TUNNEL_TOKEN").then(|| "x".to_owned());
    assert!(parse_file("t.yml", "", &Flags::default(), env).unwrap().warnings.is_empty());
}

#[test]
fn credentials_are_searched_where_cloudflared_searches() {
    let directories = search_directories(Some(Path::new("/home/u")));
    assert_eq!(
        directories,
        [
            "/home/u/.cloudflared",
            "/home/u/.cloudflare-warp",
            "/home/u/cloudflare-warp",
            "/etc/cloudflared",
            "/usr/local/etc/cloudflared",
        ]
        .map(PathBuf::from)
    );
    let id = "df5ed608-b8b4-4109-89f3-9f2cf199df64";
    let config = config(&format!("tunnel: {}\n", id.to_uppercase()), &[], Flags::default());
    let candidates = config.credentials_candidates(&directories[3..]);
    assert_eq!(candidates[0], PathBuf::from(format!("/etc/cloudflared/{id}.json")));
    assert_eq!(candidates.len(), 2);
}

#[test]
fn a_region_and_a_different_endpoint_in_the_token_conflict() {
    let us = config("region: us\n", &[], Flags::default());
    assert!(us.region_for(Some("fed")).is_err());
    assert_eq!(us.region_for(Some("us")), Ok(Some("us")));
    assert_eq!(us.region_for(None), Ok(Some("us")));
    let none = config("", &[], Flags::default());
    assert_eq!(none.region_for(Some("fed")), Ok(Some("fed")));
    assert_eq!(none.region_for(Some("")), Ok(None));
}
