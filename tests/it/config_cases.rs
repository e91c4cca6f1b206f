//! The ingress part of cloudflared's behaviour, case by case, with every deviation named.

use adit::config::{Config, Flags, Ingress, Mistakes, RemoteConfig, config_view, parse_file};
use serde_json::{Value, json};

fn cases(group: &str) -> Vec<Value> {
    let cases: Value = serde_json::from_str(include_str!("../data/feature_cases.json")).unwrap();
    cases[group].as_array().unwrap().clone()
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap()
}

fn file(yaml: &str) -> Result<Config, Mistakes> {
    parse_file("t.yml", yaml, &Flags::default(), |_| None).map(|loaded| loaded.config)
}

fn view(ingress: &Ingress) -> Value {
    serde_json::from_str(&config_view(-1, ingress, &Default::default())).unwrap()
}

fn pushed(ingress: &Ingress) -> Value {
    let text = adit::config::local_push(Some(ingress), &Default::default(), &[]);
    serde_json::from_str(&text).unwrap()
}

/// Accepted by cloudflared, refused by adit.
const STRICTER: [(&str, &str); 16] = [
    ("service:http_status:100", "cannot be a final answer"),
    ("service:http_status:0404", "three digits"),
    ("ftp-no-default-port", "unknown scheme `ftp`"),
    ("service:foo://h", "unknown scheme `foo`"),
    ("service:unix+tls:", "path of the socket is missing"),
    ("service:http://localhost?x=1", "no query"),
    ("service:http://localhost#frag", "no fragment"),
    ("service:http://user:pass@localhost", "no user information"),
    ("service:http://localhost:99999", "1 to 65535"),
    ("hostname:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.com", "63 bytes"),
    ("hostname:a..b", "is empty"),
    ("hostname:.a.com", "is empty"),
    ("http-iprules-ignored:bad-cidr", "address block"),
    ("http-iprules-ignored:port-65536", "1 to 65535"),
    ("yaml:duration-negative", "negative"),
    ("yaml:wrong-case-key", "did you mean `noTLSVerify`"),
];

/// What each kind of refusal says.
fn phrase(error: &str) -> &'static str {
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
        "json_duration_not_integer_seconds" => "whole number of seconds",
        // The message differs with the place.
        "yaml_wrong_type" | "json_wrong_type" | "yaml_syntax" => "",
        other => panic!("no phrase for {other}"),
    }
}

#[test]
fn rules_are_accepted_and_refused_like_cloudflareds() {
    for case in cases("ingress_validate") {
        let (id, input) = (text(&case, "id"), text(&case, "input"));
        let outcome = match text(&case, "format") {
            "json" => RemoteConfig::parse(input.as_bytes()).map(|config| Some(config.ingress)),
            _ => file(input).map(|config| config.ingress),
        };
        if let Some((_, reason)) = STRICTER.iter().find(|(name, _)| *name == id) {
            let mistakes = outcome.expect_err(id).to_string();
            assert!(mistakes.contains(reason), "{id}: {mistakes}");
            continue;
        }
        let expect = &case["expect"];
        if expect["ok"] == true {
            let ingress = outcome.unwrap_or_else(|mistakes| panic!("{id}: {mistakes}"));
            let shown: Vec<_> = ingress.unwrap().rules.into_iter().map(|rule| rule.spelling).collect();
            let wanted: Vec<_> = match id {
                // Without rules adit keeps one that says so; cloudflared adds it later.
                "json:empty-object" | "json:empty-list" | "json:null" => vec!["http_status:503"],
                // Shown as configured, not percent-encoded.
                "service:http://bücher.example" => vec!["http://bücher.example"],
                _ => expect["services"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect(),
            };
            assert_eq!(shown, wanted, "{id}");
        } else if expect["error"] == "no_ingress_rules" {
            // No mistake by itself: flags may name the service, and an edge may push rules.
            assert_eq!(outcome.unwrap(), None, "{id}");
        } else {
            let mistakes = outcome.expect_err(id).to_string();
            assert!(mistakes.contains(phrase(text(expect, "error"))), "{id}: {mistakes}");
        }
    }
}

#[test]
fn options_are_merged_and_exported_like_cloudflareds() {
    for case in cases("origin_request_merge") {
        let (id, input) = (text(&case, "id"), text(&case, "input"));
        let ingress = match text(&case, "format") {
            "json" => RemoteConfig::parse(input.as_bytes()).unwrap().ingress,
            _ => file(input).unwrap().ingress.unwrap(),
        };
        let (view, pushed) = (view(&ingress), pushed(&ingress));
        for (at, expect) in case["expect"].as_array().unwrap().iter().enumerate() {
            let mut effective = expect["effective"].clone();
            if effective["ipRules"] == json!([]) {
                effective["ipRules"] = Value::Null;
            }
            let shown = &view["config"]["ingress"][at];
            assert_eq!(shown["service"], expect["service"], "{id}[{at}]");
            assert_eq!(shown["originRequest"], effective, "{id}[{at}]");
            assert_eq!(pushed["ingress"][at]["originRequest"], expect["export"], "{id}[{at}]");
        }
    }
}

#[test]
fn address_rules_are_checked_like_cloudflareds() {
    for case in cases("ip_rule_validity") {
        let id = text(&case, "id");
        let mut rule = json!({ "ports": case["ports"], "allow": true });
        if !case["prefix"].is_null() {
            rule["prefix"] = case["prefix"].clone();
        }
        let yaml = json!({ "ingress": [
            { "service": "socks-proxy", "originRequest": { "ipRules": [rule] } },
        ] });
        let outcome = file(&yaml.to_string());
        assert_eq!(outcome.is_ok(), case["expect"]["ok"] == true, "{id}");
        if let Err(mistakes) = outcome {
            let mistakes = mistakes.to_string();
            assert!(mistakes.contains(phrase(text(&case["expect"], "error"))), "{id}: {mistakes}");
        }
    }
}

#[test]
fn address_rules_decide_like_cloudflareds() {
    for case in cases("ip_policy") {
        let id = text(&case, "id");
        // cloudflared's library has a switch for the default; its program, and adit, only deny.
        if case["default_allow"] == true {
            continue;
        }
        let yaml = json!({ "ingress": [
            { "service": "socks-proxy", "originRequest": { "ipRules": case["rules"] } },
        ] });
        let ingress = file(&yaml.to_string()).unwrap().ingress.unwrap();
        for look_up in case["cases"].as_array().unwrap() {
            let ip = text(look_up, "ip").parse().unwrap();
            let port = look_up["port"].as_u64().unwrap() as u16;
            let decided = ingress.rules[0].origin.ip_rules.decide(ip, port);
            assert_eq!(decided, look_up["allowed"].as_bool().unwrap(), "{id}: {look_up}");
        }
    }
}

#[test]
fn blocks_of_one_family_do_not_cover_the_other() {
    let yaml = "ingress:\n- service: socks-proxy\n  originRequest:\n    ipRules: [{prefix: 0.0.0.0/0, allow: true}, {prefix: '::ffff:10.0.0.0/104', allow: false}]\n";
    let ingress = file(yaml).unwrap().ingress.unwrap();
    let rules = &ingress.rules[0].origin.ip_rules;
    assert!(rules.decide("1.2.3.4".parse().unwrap(), 1));
    assert!(rules.decide("::ffff:1.2.3.4".parse().unwrap(), 1));
    assert!(!rules.decide("2001::1".parse().unwrap(), 1));
    assert!(!adit::config::IpRules::default().decide("127.0.0.1".parse().unwrap(), 1));
}

#[test]
fn flags_name_a_single_origin_like_cloudflareds() {
    for case in cases("single_origin_from_flags") {
        let id = text(&case, "id");
        let given = case["flags"].as_object().unwrap();
        let flags =
            given.iter().fold(Flags::default(), |flags, (name, value)| flags.with(name, value.as_str().unwrap()));
        let outcome = parse_file("t.yml", "", &flags, |_| None);
        let expect = &case["expect"];
        match expect["error"].as_str() {
            Some("no_origin_from_flags") => {
                assert_eq!(outcome.unwrap().config.ingress, None, "{id}")
            }
            Some(_) => assert!(outcome.is_err(), "{id}"),
            None => {
                let ingress = outcome.unwrap().config.ingress.unwrap();
                let wanted = match id {
                    // A flag set to false says no.
                    "cli:hello-false-still-set" => "http://localhost:1",
                    _ => text(expect, "service"),
                };
                assert_eq!(ingress.rules[0].spelling, wanted, "{id}");
                let mut changed = pushed(&ingress)["ingress"][0]["originRequest"].clone();
                // cloudflared sets this for its own rules, too, but not in this list.
                changed.as_object_mut().unwrap().remove("bastionMode");
                assert_eq!(changed, expect["changed"], "{id}");
            }
        }
    }
}

#[test]
fn the_url_flag_is_forgiving_like_cloudflareds() {
    for case in cases("origin_url_flag") {
        let id = text(&case, "id");
        let flags = Flags::default().with("url", text(&case, "input"));
        let outcome = parse_file("t.yml", "", &flags, |_| None);
        // cloudflared takes the socket for a host named `unix`.
        let refused = id == "url:obs:unix:/x";
        assert_eq!(outcome.is_ok(), case["expect"]["ok"] == true && !refused, "{id}: {outcome:?}");
        if let Ok(loaded) = outcome {
            let shown = loaded.config.ingress.unwrap().rules[0].spelling.clone();
            let wanted = text(&case["expect"], "url");
            // A path is dropped whether or not the scheme was written, the port of a TCP service is
            // added, and a name is shown in lower case.
            let wanted = match id {
                "url:obs:tcp://localhost" => "tcp://localhost:7864".to_owned(),
                _ => wanted.trim_end_matches("/api/").trim_end_matches("/api").trim_end_matches('/').to_lowercase(),
            };
            assert_eq!(shown, wanted, "{id}");
        }
    }
}

#[test]
fn international_names_are_taken_in_ascii() {
    for case in cases("hostname_flag") {
        let parsed = adit::config::Hostname::parse(text(&case, "input")).unwrap();
        let normal = parsed.map(|hostname| hostname.exact().unwrap().to_owned());
        assert_eq!(normal.unwrap_or_default(), text(&case, "expect"), "{}", case["id"]);
    }
}

#[test]
fn tags_are_checked_like_cloudflareds() {
    for case in cases("tag_parse") {
        let id = text(&case, "id");
        let flags = Flags::default().with("tag", text(&case, "input"));
        let outcome = parse_file("t.yml", "", &flags, |_| None);
        assert_eq!(outcome.is_ok(), case["expect"]["ok"] == true, "{id}");
        if let Ok(loaded) = outcome {
            let wanted = (text(&case["expect"], "name").to_owned(), text(&case["expect"], "value").to_owned());
            assert_eq!(loaded.config.tags, [wanted], "{id}");
        }
    }
}
