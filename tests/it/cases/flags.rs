//! Flags, tokens and credentials files.

use adit::{
    config::{Flags, Hostname, IpVersion, Loaded, Mistakes, Protocol, parse_file},
    credentials::{Credentials, Token},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{files::told, list, text};

fn read(flags: &Flags) -> Result<Loaded, Mistakes> {
    parse_file("t.yml", "", flags, |_| None)
}

fn flag(name: &str, value: &str) -> Result<Loaded, Mistakes> {
    read(&Flags::default().with(name, value))
}

/// The service of a single rule, as it is shown.
fn service(loaded: &Loaded) -> &str {
    &loaded.config.ingress.as_ref().unwrap().rules[0].spelling
}

pub(super) fn single_origin_from_flags(case: &Value) {
    let given = case["flags"].as_object().unwrap();
    let outcome =
        read(&given.iter().fold(Flags::default(), |flags, (name, value)| flags.with(name, value.as_str().unwrap())));
    let expect = &case["expect"];
    match expect["error"].as_str() {
        Some("no_origin_from_flags") => assert_eq!(outcome.unwrap().config.ingress, None),
        Some(_) => drop(outcome.unwrap_err()),
        None => {
            let loaded = outcome.unwrap();
            assert_eq!(service(&loaded), text(expect, "service"));
            let ingress = loaded.config.ingress.unwrap();
            let mut changed = told(&ingress)["ingress"][0]["originRequest"].clone();
            // Not in the record's list, where the service already says it.
            changed.as_object_mut().unwrap().remove("bastionMode");
            assert_eq!(changed, expect["changed"]);
        }
    }
}

pub(super) fn origin_url_flag(case: &Value) {
    let outcome = flag("url", text(case, "input"));
    assert_eq!(json!(outcome.is_ok()), case["expect"]["ok"], "{outcome:?}");
    if let Ok(loaded) = outcome {
        assert_eq!(dialled(service(&loaded)), dialled(text(&case["expect"], "url")));
    }
}

/// What of a service's URL decides where a request goes: a path goes nowhere, and a name has no letter case.
fn dialled(url: &str) -> (String, String) {
    let (scheme, rest) = url.split_once("://").unwrap();
    let authority = rest.split('/').next().unwrap();
    let port = if scheme == "tcp" && !authority.contains(':') { ":7864" } else { "" };
    (scheme.to_lowercase(), format!("{}{port}", authority.to_lowercase()))
}

pub(super) fn hostname_flag(case: &Value) {
    let parsed = Hostname::parse(text(case, "input")).unwrap();
    let normal = parsed.map(|hostname| hostname.exact().unwrap().to_owned());
    assert_eq!(normal.unwrap_or_default(), text(case, "expect"));
}

pub(super) fn tag_parse(case: &Value) {
    let outcome = flag("tag", text(case, "input"));
    let expect = &case["expect"];
    assert_eq!(json!(outcome.is_ok()), expect["ok"], "{outcome:?}");
    if let Ok(loaded) = outcome {
        assert_eq!(loaded.config.tags, [(text(expect, "name").to_owned(), text(expect, "value").to_owned())]);
    }
}

pub(super) fn edge_ip_version(case: &Value) {
    let flags = Flags::default()
        .with("edge-ip-version", text(case, "flag"))
        .with("edge-bind-address", text(case, "bind_address"));
    let (outcome, expect) = (read(&flags), &case["expect"]);
    assert_eq!(json!(outcome.is_ok()), expect["ok"]);
    if let Ok(loaded) = outcome {
        let version = match loaded.config.edge_ip_version {
            IpVersion::V4 => "4",
            IpVersion::V6 => "6",
            IpVersion::Auto => "auto",
        };
        assert_eq!(version, text(expect, "version"));
        assert_eq!(json!(!loaded.warnings.is_empty()), expect["override_warning"]);
    }
}

pub(super) fn dns_resolver_addrs(case: &Value) {
    let addresses = list(case, "input").iter().map(|address| address.as_str().unwrap());
    let flags = addresses.fold(Flags::default(), |flags, address| flags.with("dns-resolver-addrs", address));
    assert_eq!(json!(read(&flags).is_ok()), case["ok"]);
}

/// `auto` is QUIC that falls back to HTTP/2; the share of accounts that a TXT record gives a protocol to has no
/// counterpart, so the threshold of the account is not looked at.
pub(super) fn protocol_selection(case: &Value) {
    let outcome = flag("protocol", text(case, "flag")).map(|loaded| loaded.config.protocol);
    let seen = match outcome {
        Ok(Protocol::Auto) => json!({ "current": "quic", "fallback": "http2" }),
        Ok(Protocol::Quic) => json!({ "current": "quic", "fallback": null }),
        Ok(Protocol::Http2) => json!({ "current": "http2", "fallback": null }),
        Err(_) => json!({ "error": true }),
    };
    let mut expect = case["expect"].clone();
    expect.as_object_mut().unwrap().remove("account_threshold");
    assert_eq!(seen, expect);
}

/// A token or credentials as the file has them, the secret included.
fn parts(account: &str, tunnel: uuid::Uuid, secret: &[u8], endpoint: Option<&str>) -> Value {
    json!({
        "ok": true,
        "account_tag": account,
        "tunnel_id": tunnel.to_string(),
        "tunnel_secret_b64": STANDARD.encode(secret),
        "endpoint": endpoint.unwrap_or_default(),
    })
}

/// The parts that both name are equal; the rest is only named by one.
fn agree(seen: &Value, expect: &Value) {
    for (key, wanted) in expect.as_object().unwrap() {
        assert_eq!(seen[key], *wanted, "{key}");
    }
}

pub(super) fn token_parse(case: &Value) {
    let outcome = Token::parse(text(case, "input"));
    assert_eq!(json!(outcome.is_ok()), case["expect"]["ok"], "{outcome:?}");
    if let Ok(token) = outcome {
        let mut seen = parts(&token.account, token.tunnel, token.secret.expose(), token.endpoint.as_deref());
        seen["reencoded"] = json!(*token.encode());
        agree(&seen, &case["expect"]);
    }
}

pub(super) fn credentials_parse(case: &Value) {
    let outcome = Credentials::parse(text(case, "input"));
    assert_eq!(json!(outcome.is_ok()), case["expect"]["ok"], "{outcome:?}");
    if let Ok(credentials) = outcome {
        let tunnel = credentials.tunnel.unwrap_or_default();
        let secret = credentials.secret.expose();
        agree(&parts(&credentials.account, tunnel, secret, credentials.endpoint.as_deref()), &case["expect"]);
    }
}
