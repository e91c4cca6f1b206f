//! Configuration files and pushed rules.

use adit::{
    config::{Config, Flags, Ingress, Mistakes, RemoteConfig, config_view, local_push, parse_file},
    ingress::Table,
};
use serde_json::{Value, json};

use super::{list, text};

fn file(yaml: &str) -> Result<Config, Mistakes> {
    parse_file("t.yml", yaml, &Flags::default(), |_| None).map(|loaded| loaded.config)
}

/// The rules of a case, in whichever of the two formats it has.
fn rules(case: &Value, input: &str) -> Result<Option<Ingress>, Mistakes> {
    match text(case, "format") {
        "json" => RemoteConfig::parse(input.as_bytes()).map(|config| Some(config.ingress)),
        _ => file(input).map(|config| config.ingress),
    }
}

/// What the edge is told of local rules.
pub(super) fn told(ingress: &Ingress) -> Value {
    serde_json::from_str(&local_push(Some(ingress), &Default::default(), &[])).unwrap()
}

/// What a refusal has to say; a kind that is not listed is the words themselves.
fn words(error: &str) -> &str {
    match error {
        "service_url_unparsable" => "cannot stand in a host name",
        "last_rule_not_catch_all" => "the last rule must match everything",
        "path_regex_invalid" => "not a regular expression",
        "http_status_not_integer" => "three digits",
        "http_status_out_of_range" => "cannot be a final answer",
        "service_has_path" => "a service has no path",
        "service_missing_scheme_or_host" => "needs a scheme and a host",
        "non_last_rule_is_catch_all" => "are never reached",
        "bad_wildcard_position" => "`*` may only stand at the start",
        "hostname_contains_port" => "no port and no scheme",
        "access_team_name_missing" => "`teamName` is missing",
        "ip_rule_bad_cidr" => "address block",
        "ip_rule_missing_prefix" => "`prefix` is missing",
        "ip_rule_bad_port" => "1 to 65535",
        "yaml_duplicate_key" => "already there",
        "json_duration_not_integer_seconds" => "must be seconds",
        // The message differs with the place.
        "yaml_wrong_type" | "json_wrong_type" | "yaml_syntax" => "",
        words => words,
    }
}

/// The outcome is the one that `expect` names; `Some` if it is acceptance.
fn accepted<T: std::fmt::Debug>(outcome: Result<T, Mistakes>, expect: &Value) -> Option<(T, &Value)> {
    if expect["ok"] == true {
        return Some((outcome.unwrap_or_else(|mistakes| panic!("refused: {mistakes}")), expect));
    }
    let mistakes = outcome.expect_err("accepted").to_string();
    assert!(mistakes.contains(words(text(expect, "error"))), "{mistakes}");
    None
}

pub(super) fn ingress_match(case: &Value) {
    let config = text(case, "config");
    let outcome = rules(case, config);
    if let Some(refusal) = case["refused"].as_str() {
        let mistakes = outcome.expect_err("accepted").to_string();
        return assert!(mistakes.contains(refusal), "{mistakes}");
    }
    let rules = outcome.unwrap().unwrap().rules;
    let table = Table::new(rules.iter().map(|rule| (rule.into(), rule.position))).unwrap();
    for (asked, wanted) in case["rule_of"].as_object().unwrap() {
        let (host, path) = asked.split_once('|').unwrap();
        // The file gives decoded paths; a request carries them encoded.
        let encoded = path.replace('%', "%25").replace('?', "%3F").replace('\n', "%0A");
        assert_eq!(json!(table.find(host, &encoded).1), *wanted, "{host:?} {path:?}");
    }
}

pub(super) fn ingress_validate(case: &Value) {
    let outcome = rules(case, text(case, "input"));
    let expect = &case["expect"];
    if expect["error"] == "no_ingress_rules" {
        // No mistake by itself: flags may name the service, and an edge may push rules.
        return assert_eq!(outcome.unwrap(), None);
    }
    if let Some((ingress, expect)) = accepted(outcome, expect) {
        // The record has non-ASCII hosts percent-encoded, another spelling of the same URL (RFC 3987 §3.1).
        let plain = |text: &str| match text.split_once("%C3%BC") {
            Some((before, after)) => format!("{before}ü{after}"),
            None => text.to_owned(),
        };
        let wanted: Vec<_> = list(expect, "services").iter().map(|text| plain(text.as_str().unwrap())).collect();
        let shown: Vec<_> = ingress.unwrap().rules.into_iter().map(|rule| rule.spelling).collect();
        assert_eq!(shown, wanted);
    }
    if let Some(warning) = expect["warning"].as_str() {
        let loaded = parse_file("t.yml", text(case, "input"), &Flags::default(), |_| None).unwrap();
        assert!(loaded.warnings.iter().any(|said| said.to_string().contains(warning)), "{:?}", loaded.warnings);
    }
}

pub(super) fn origin_request_merge(case: &Value) {
    let ingress = rules(case, text(case, "input")).unwrap().unwrap();
    let shown: Value =
        serde_json::from_str(&config_view(-1, &ingress, &Default::default(), &Default::default())).unwrap();
    let told = told(&ingress);
    for (at, expect) in list(case, "expect").iter().enumerate() {
        let mut effective = expect["effective"].clone();
        // No list and an empty one mean the same.
        if effective["ipRules"] == json!([]) {
            effective["ipRules"] = Value::Null;
        }
        let shown = &shown["config"]["ingress"][at];
        assert_eq!(shown["service"], expect["service"], "rule {at}");
        assert_eq!(shown["originRequest"], effective, "rule {at}");
        assert_eq!(told["ingress"][at]["originRequest"], expect["export"], "rule {at}");
    }
}

/// Rules with this list of addresses.
fn address_rules(list: &Value) -> Result<Config, Mistakes> {
    file(&json!({ "ingress": [{ "service": "socks-proxy", "originRequest": { "ipRules": list } }] }).to_string())
}

pub(super) fn ip_rule_validity(case: &Value) {
    let mut rule = json!({ "ports": case["ports"], "allow": true });
    if !case["prefix"].is_null() {
        rule["prefix"] = case["prefix"].clone();
    }
    accepted(address_rules(&json!([rule])), &case["expect"]);
}

pub(super) fn ip_policy(case: &Value) {
    let mut rules = case["rules"].clone();
    if case["default_allow"] == true {
        // The program only ever denies by default; allowing by default is two more rules.
        let everything = ["0.0.0.0/0", "::/0"].map(|block| json!({ "prefix": block, "allow": true }));
        rules.as_array_mut().unwrap().extend(everything);
    }
    let ingress = address_rules(&rules).unwrap().ingress.unwrap();
    for asked in list(case, "cases") {
        let (ip, port) = (text(asked, "ip").parse().unwrap(), u16::try_from(asked["port"].as_u64().unwrap()).unwrap());
        assert_eq!(json!(ingress.rules[0].origin.ip_rules.decide(ip, port)), asked["allowed"], "{asked}");
    }
}
