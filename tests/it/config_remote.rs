//! What the edge pushes, and what it is told.

use adit::config::{Flags, Ingress, Mistakes, RemoteConfig, Service, WarpRouting, config_view, local_push, parse_file};
use proptest::prelude::*;
use serde_json::{Value, json};

fn vectors(group: &str) -> Vec<Value> {
    let vectors: Value = serde_json::from_str(include_str!("../data/protocol_vectors.json")).unwrap();
    vectors[group].as_array().unwrap().clone()
}

fn refused(json: &str) -> String {
    parse(json).expect_err(json).to_string().to_lowercase()
}

fn parse(json: &str) -> Result<RemoteConfig, Mistakes> {
    RemoteConfig::parse(json.as_bytes())
}

#[test]
fn pushes_are_judged_and_resolved_like_in_the_vectors() {
    for case in vectors("config.remote") {
        let name = case["name"].as_str().unwrap();
        let outcome = parse(case["json"].as_str().unwrap());
        // Read here, since not only the dashboard writes rules.
        let forgiven = ["fractional_duration", "string_duration"].contains(&name);
        assert_eq!(outcome.is_ok(), case["accepted"] == true || forgiven, "{name}: {outcome:?}");
        let Ok(config) = outcome else { continue };
        if forgiven {
            continue;
        }
        let view: Value =
            serde_json::from_str(&config_view(1, &config.ingress, &config.warp_routing, &Default::default())).unwrap();
        assert_eq!(view["config"]["originRequest"], case["defaults_effective"], "{name}");
        let wanted = case["rules_effective"].as_array().unwrap();
        for (at, wanted) in wanted.iter().enumerate() {
            let mut wanted = wanted.clone();
            // A stray key of cloudflared's, whose content means nothing here.
            wanted["Handlers"] = Value::Null;
            if wanted["originRequest"]["ipRules"] == json!([{}]) {
                // cloudflared prints each rule as an empty object; adit prints what is in force.
                let shown = &view["config"]["ingress"][at]["originRequest"]["ipRules"];
                wanted["originRequest"]["ipRules"] = shown.clone();
            }
            assert_eq!(view["config"]["ingress"][at], wanted, "{name}[{at}]");
        }
        let routing = &case["warp_routing_effective"];
        assert_eq!(config.warp_routing.connect_timeout.as_secs(), routing["connectTimeout_s"], "{name}");
        assert_eq!(config.warp_routing.tcp_keep_alive.as_secs(), routing["tcpKeepAlive_s"], "{name}");
        assert_eq!(config.warp_routing.max_active_flows, routing["maxActiveFlows"], "{name}");
    }
}

#[test]
fn a_push_is_refused_with_every_reason() {
    let refused = parse(
        r#"{"ingress":[{"hostname":"a.com:1","service":"foo://x"},{"path":"(","service":"http://y/z"}],"originRequest":{"connectTimeout":true,"noTLSVerify":"true"}}"#,
    );
    let refused = refused.unwrap_err().to_string();
    for wanted in [
        "ingress[0].hostname:",
        "ingress[0].service: unknown scheme",
        "ingress[1].path:",
        "ingress[1].service: a service has no path",
        "originRequest.connectTimeout: must be seconds",
        "originRequest.noTLSVerify: this is a text because of its quotes",
    ] {
        assert!(refused.contains(wanted), "{wanted}\n{refused}");
    }
    assert!(refused.lines().all(|line| line.starts_with("pushed configuration")), "{refused}");
}

#[test]
fn keys_match_in_any_letter_case_and_unknown_ones_are_counted() {
    let config = parse(
        r#"{"INGRESS":[{"Service":"https://x","ORIGINREQUEST":{"NOTLSVERIFY":true,"who":1},"health":{}}],"other":2,"Warp-Routing":{"enabled":true}}"#,
    )
    .unwrap();
    assert!(config.ingress.rules[0].origin.no_tls_verify);
    assert_eq!(config.ignored_keys, 4);
}

#[test]
fn a_push_that_carries_inner_hop_is_refused() {
    for json in [
        r#"{"ingress":[{"service":"https://x","innerHop":{}}]}"#,
        r#"{"ingress":[{"service":"https://x","INNERHOP":null}]}"#,
        r#"{"innerHop":{}}"#,
    ] {
        assert!(refused(json).contains("innerhop"), "{json}");
    }
}

#[test]
fn a_push_without_rules_answers_503() {
    for json in ["{}", "null", r#"{"ingress":[]}"#, r#"{"ingress":null,"originRequest":{"tlsTimeout":1}}"#] {
        let config = parse(json).unwrap();
        assert_eq!(config.ingress.rules.len(), 1, "{json}");
        assert_eq!(config.ingress.rules[0].service, Service::Status(503), "{json}");
        assert!(config.ingress.rules[0].is_catch_all());
    }
}

#[test]
fn trailing_data_and_broken_json_are_refused() {
    for json in ["{} {}", "{", "", "[]", "1", r#"{"originRequest":}"#, "\u{feff}{}"] {
        assert!(parse(json).is_err(), "{json}");
    }
    assert!(RemoteConfig::parse(b"\xff").is_err());
    assert!(parse(&"[".repeat(100_000)).is_err());
}

#[test]
fn of_two_spellings_of_a_key_the_last_one_counts() {
    let config = parse(r#"{"ingress":[{"service":"http://a","Service":"http://b"}]}"#).unwrap();
    assert_eq!(config.ingress.rules[0].spelling, "http://b");
    let config = parse(r#"{"ingress":[{"Service":"http://b","service":"http://a"}]}"#).unwrap();
    assert_eq!(config.ingress.rules[0].spelling, "http://a");
}

#[test]
fn inherited_access_and_address_rules_are_in_force() {
    let config = parse(
        r#"{"originRequest":{"access":{"required":true,"teamName":"t","audTag":["x"]},"ipRules":[{"prefix":"10.0.0.0/8","allow":true}]},"ingress":[{"hostname":"a.com","service":"socks-proxy","originRequest":{"access":{"required":false}}},{"service":"socks-proxy"}]}"#,
    )
    .unwrap();
    let [own, inherited] = &config.ingress.rules[..] else { panic!("two rules") };
    assert!(!own.origin.access.required && own.origin.access.team_name.is_empty());
    assert!(inherited.origin.access.required);
    assert!(inherited.origin.ip_rules.decide("10.1.1.1".parse().unwrap(), 1));
    assert!(!inherited.origin.ip_rules.decide("11.1.1.1".parse().unwrap(), 1));
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
}

#[test]
fn the_local_flow_limit_wins_over_a_pushed_one() {
    let config = parse(r#"{"warp-routing":{"maxActiveFlows":500}}"#).unwrap();
    assert_eq!(config.warp_routing.clone().limited(Some(100)).max_active_flows, 100);
    assert_eq!(config.warp_routing.limited(None).max_active_flows, 500);
}

#[test]
fn more_rules_than_anybody_has_are_refused() {
    let rule = json!({ "hostname": "a.com", "path": "x", "service": "http://x" });
    let json = json!({ "ingress": vec![rule; 1100] }).to_string();
    assert!(parse(&json).unwrap_err().to_string().contains("more than 1000 rules with a path"));
    let rule = json!({ "hostname": "a.com", "service": "http://x" });
    let json = json!({ "ingress": vec![rule; 10_001] }).to_string();
    assert!(parse(&json).unwrap_err().to_string().contains("more than 10000 rules"));
}

#[test]
fn a_connector_without_rules_tells_the_edge_what_cloudflared_tells() {
    let vector = &vectors("json.local_configuration")[0];
    let wanted: Value = serde_json::from_str(vector["body"].as_str().unwrap()).unwrap();
    let flags = wanted["__configuration_flags"].as_object().unwrap();
    let flags: Vec<_> = flags.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    let pushed: Value = serde_json::from_str(&local_push(None, &WarpRouting::default(), &flags)).unwrap();
    assert_eq!(pushed, wanted);
}

#[test]
fn local_rules_are_told_with_their_merged_options() {
    let yaml = "originRequest: {connectTimeout: 1500ms}\ningress: [{hostname: a.com, path: ^/x, service: 'ssh://h'}, {service: http_status:404, originRequest: {connectTimeout: 30s}}]";
    let config = parse_file("t.yml", yaml, &Flags::default(), |_| None).unwrap().config;
    let pushed: Value = serde_json::from_str(&local_push(config.ingress.as_ref(), &config.warp_routing, &[])).unwrap();
    assert_eq!(
        pushed,
        json!({
            "ingress": [
                { "hostname": "a.com", "path": "^/x", "service": "ssh://h:22", "originRequest": { "connectTimeout": 1.5 } },
                { "service": "http_status:404", "originRequest": {} },
            ],
            "warp-routing": {},
        })
    );
}

#[test]
fn the_view_before_any_push_has_version_minus_one() {
    let vector = &vectors("json.config")[0];
    let wanted: Value = serde_json::from_str(vector["body"].as_str().unwrap()).unwrap();
    let ingress = Ingress::unconfigured();
    let view: Value =
        serde_json::from_str(&config_view(-1, &ingress, &WarpRouting::default(), &Default::default())).unwrap();
    assert_eq!(view["version"], -1);
    assert_eq!(view["config"]["originRequest"], wanted["config"]["originRequest"]);
    // cloudflared's built-in rule carries zeros in place of options; adit's carries the defaults.
    assert_eq!(view["config"]["ingress"][0]["service"], wanted["config"]["ingress"][0]["service"]);
    let keys = |rule: &Value| rule.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&view["config"]["ingress"][0]), keys(&wanted["config"]["ingress"][0]));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = RemoteConfig::parse(&bytes);
    }

    #[test]
    fn no_text_in_a_rule_makes_the_reader_panic(
        hostname in "\\PC{0,30}",
        path in "\\PC{0,30}",
        service in "(http|tcp|unix|http_status|h2c)?:?/{0,3}[\\[\\]a-z0-9:@%?#é.]{0,20}",
    ) {
        let json = json!({ "ingress": [
            { "hostname": hostname, "path": path, "service": service }, { "service": service },
        ] });
        if let Ok(config) = parse(&json.to_string()) {
            // What is accepted can be told to the edge and read back.
            let told = local_push(Some(&config.ingress), &config.warp_routing, &[]);
            prop_assert_eq!(parse(&told).unwrap().ingress, config.ingress);
        }
    }
}

#[test]
fn pushed_durations_are_seconds_with_fractions_or_texts_with_units() {
    let timeout = |value: &str| {
        let push = format!(r#"{{"originRequest":{{"connectTimeout":{value}}},"ingress":[{{"service":"http://a"}}]}}"#);
        parse(&push).map(|config| config.ingress.rules[0].origin.connect_timeout)
    };
    for (value, millis) in [
        ("30", 30_000),
        ("0", 0),
        ("null", 30_000),
        ("1.5", 1_500),
        ("1e2", 100_000),
        (r#""30s""#, 30_000),
        (r#""1m250ms""#, 60_250),
    ] {
        assert_eq!(timeout(value).unwrap().as_millis(), millis, "{value}");
    }
    for (value, why) in [
        ("-1", "negative"),
        ("-0.5", "negative"),
        ("1e300", "290 years"),
        ("99999999999999999999", "290 years"),
        ("9223372036854775807", "290 years"),
        (r#""30""#, "needs a unit"),
        ("true", "must be seconds"),
    ] {
        let refused = timeout(value).unwrap_err().to_string();
        assert!(refused.contains(why), "{value}: {refused}");
    }
}
