//! `limits`, `forwarded` and `proxyProtocol` in a configuration: what they may say, and where they count.

use std::time::Duration;

use adit::config::{
    Flags, Forwarded, Ingress, Limits, Loaded, Mistakes, ProxyProtocol, PushedBy, RemoteConfig, Rule, WarpRouting,
    adit_push, config_view, local_push, parse_file,
};
use serde_json::{Value, json};

fn read(yaml: &str) -> Result<Loaded, Mistakes> {
    parse_file("c.yml", yaml, &Flags::default(), |_| None)
}

fn rules(yaml: &str) -> Vec<Rule> {
    read(yaml).unwrap_or_else(|mistakes| panic!("{yaml}: {mistakes}")).config.ingress.unwrap().rules
}

/// One rule to `http://x` with these keys.
fn rule(keys: &str) -> Rule {
    rules(&format!("ingress: [{{service: 'http://x', {keys}}}]")).remove(0)
}

fn mistakes(yaml: &str) -> String {
    read(yaml).expect_err(yaml).to_string()
}

#[test]
fn every_limit_is_read_with_its_unit_and_is_off_by_default() {
    assert_eq!(rule("path: ''").limits, Limits::default());
    let all = "limits: {headerTimeout: 10s, requestTimeout: 5m, maxConcurrent: 500, maxBodyBytes: 100MiB}";
    let expected = Limits {
        header_timeout: Some(Duration::from_secs(10)),
        request_timeout: Some(Duration::from_secs(300)),
        max_concurrent: Some(500),
        max_body_bytes: Some(100 << 20),
    };
    assert_eq!(rule(all).limits, expected);
    assert_eq!(rule("limits: {requestTimeout: 1d}").limits.request_timeout, Some(Duration::from_secs(86_400)));
    assert_eq!(rule("limits: {maxBodyBytes: 1000000}").limits.max_body_bytes, Some(1_000_000));
    assert_eq!(rule("limits: {maxBodyBytes: '5 kB'}").limits.max_body_bytes, Some(5000));
}

#[test]
fn a_rules_own_limit_wins_over_the_top_levels_key_by_key_wherever_that_stands() {
    let rules = rules(
        "ingress:\n  - { hostname: a.test, service: 'http://x', limits: { maxConcurrent: 1 } }\n  \
         - { hostname: b.test, service: 'tcp://x' }\n  - service: http_status:404\n\
         limits: { maxConcurrent: 9, headerTimeout: 1s }\n",
    );
    let of = |max_concurrent, header_timeout: Option<u64>| Limits {
        max_concurrent,
        header_timeout: header_timeout.map(Duration::from_secs),
        ..Limits::default()
    };
    assert_eq!(rules[0].limits, of(Some(1), Some(1)));
    assert_eq!(rules[1].limits, of(Some(9), Some(1)));
    assert_eq!(rules[2].limits, Limits::default(), "adit answers that one itself");
    let single = parse_file("c", "limits: {maxConcurrent: 9}", &Flags::default().with("url", "http://x"), |_| None);
    assert_eq!(single.unwrap().config.ingress.unwrap().rules[0].limits, of(Some(9), None));
    assert_eq!(read("limits: {maxConcurrent: 9}").unwrap().config.limits, of(Some(9), None), "for pushed rules");
}

#[test]
fn every_mistake_in_a_limit_is_told_with_its_place() {
    let yaml = "ingress:\n  - service: http://x\n    limits:\n      headerTimeout: 10\n      requestTimeout: 0s\n      \
                maxConcurrent: 0\n      maxBodyBytes: 100MB/s\n      maxConcurent: 3\n    forwarded: drop\n    \
                proxyProtocol: 2\n";
    assert_eq!(
        mistakes(yaml),
        "c.yml:4:22: ingress[0].limits.headerTimeout: a duration needs a unit: 30s, 1m30s, 250ms\n\
         c.yml:5:23: ingress[0].limits.requestTimeout: must be at least 1ms; leave the key out for no limit\n\
         c.yml:6:22: ingress[0].limits.maxConcurrent: must be above 0; leave the key out for no limit\n\
         c.yml:7:21: ingress[0].limits.maxBodyBytes: must be a number of bytes such as 1000000, 512KiB or 100MiB\n\
         c.yml:8:7: ingress[0].limits.maxConcurent: unknown key, did you mean `maxConcurrent`?\n\
         c.yml:9:16: ingress[0].forwarded: must be keep, strip, append or replace\n\
         c.yml:10:20: ingress[0].proxyProtocol: must be v1 or v2"
    );
    for (yaml, expected) in [
        ("limits: 5\n", "c.yml:1:9: limits: must be a mapping, this is a text"),
        ("limits: {maxBodyBytes: 0}\n", "c.yml:1:24: limits.maxBodyBytes: must be above 0"),
        ("limits: {maxConcurrent: many}\n", "c.yml:1:25: limits.maxConcurrent: must be a whole number"),
        ("limits: {maxConcurrent: -1}\n", "c.yml:1:25: limits.maxConcurrent: must be 0 to"),
        ("limits: {headerTimeout: -1s}\n", "c.yml:1:25: limits.headerTimeout: a negative duration"),
        ("ingress: [{service: 'http://x', limit: {}}]", "did you mean `limits`?"),
        ("ingress: [{service: 'http://x', Forwarded: keep}]", "did you mean `forwarded`?"),
        ("ingress: [{service: 'http://x', proxy-protocol: v1}]", "did you mean `proxyProtocol`?"),
    ] {
        assert!(mistakes(yaml).contains(expected), "{yaml}: {}", mistakes(yaml));
    }
    // Not even `--lenient` lets a limit go that is misspelt.
    let lenient = Flags::default().with("lenient", "true");
    assert!(parse_file("c.yml", "limits: {maxBody: 1}", &lenient, |_| None).is_err());
}

#[test]
fn an_own_key_without_effect_is_a_mistake() {
    for (service, key, fine) in [
        ("http://x", "limits: {headerTimeout: 1s}", true),
        ("unix:/x", "forwarded: strip", true),
        ("unix:/x", "proxyProtocol: v2", true),
        ("ssh://x", "proxyProtocol: v2", true),
        ("tcp://x", "limits: {maxConcurrent: 1}", true),
        ("bastion", "limits: {maxConcurrent: 1}", true),
        ("tcp://x", "limits: {headerTimeout: 1s}", false),
        ("tcp://x", "limits: {requestTimeout: 1s}", false),
        ("tcp://x", "limits: {maxBodyBytes: 1}", false),
        ("tcp://x", "forwarded: strip", false),
        ("socks-proxy", "proxyProtocol: v1", false),
        ("bastion", "proxyProtocol: v1", false),
        ("hello_world", "limits: {maxConcurrent: 1}", false),
        ("http_status:404", "limits: {maxConcurrent: 1}", false),
        ("http_status:404", "forwarded: keep", false),
    ] {
        let yaml = format!("ingress: [{{service: '{service}', {key}}}]");
        match read(&yaml) {
            Ok(_) => assert!(fine, "{yaml}"),
            Err(mistakes) => {
                assert!(!fine, "{yaml}: {mistakes}");
                assert!(mistakes.to_string().contains(&format!("has no effect on {service}")), "{yaml}: {mistakes}");
            }
        }
    }
}

#[test]
fn a_proxy_header_goes_with_http1_alone() {
    for (service, options, fine) in [
        ("https://x", "", true),
        ("http://x", "http2Origin: true", true),
        ("https://x", "http2Origin: true", false),
        ("unix+tls:/x", "http2Origin: true", false),
        ("h2c://x", "", false),
    ] {
        let yaml = format!("ingress: [{{service: '{service}', proxyProtocol: v1, originRequest: {{{options}}}}}]");
        let read = read(&yaml);
        assert_eq!(read.is_ok(), fine, "{yaml}: {read:?}");
        if let Err(mistakes) = read {
            assert!(mistakes.to_string().contains("one HTTP/2 connection carries many visitors"), "{mistakes}");
        }
    }
}

#[test]
fn words_are_read() {
    for (word, expected) in [
        ("keep", Forwarded::Keep),
        ("strip", Forwarded::Strip),
        ("append", Forwarded::Append),
        ("replace", Forwarded::Replace),
    ] {
        assert_eq!(rule(&format!("forwarded: {word}")).forwarded, expected);
        assert_eq!(expected.as_str(), word);
    }
    assert_eq!(rule("path: ''").forwarded, Forwarded::Keep);
    assert_eq!(rule("proxyProtocol: v1").origin.proxy_protocol, Some(ProxyProtocol::V1));
    assert_eq!(rule("proxyProtocol: v2").origin.proxy_protocol, Some(ProxyProtocol::V2));
    assert_eq!(rule("path: ''").origin.proxy_protocol, None);
}

const PUSHED: &str = r#"{"ingress": [{"service": "http://x", "limits": {"headerTimeout": 7, "maxBodyBytes": "1MiB"},
    "forwarded": "strip", "proxyProtocol": "v2"}], "limits": {"maxConcurrent": 3, "headerTimeout": "1h"}}"#;

#[test]
fn pushed_keys_of_adits_own_count_only_from_an_edge_that_is_adits() {
    let foreign = RemoteConfig::parse(PUSHED.as_bytes()).unwrap();
    let rule = &foreign.ingress.rules[0];
    assert_eq!((rule.limits, rule.forwarded, rule.origin.proxy_protocol), (Limits::default(), Forwarded::Keep, None));
    assert_eq!(foreign.ignored_keys, 4);

    let own = RemoteConfig::parse_from(PUSHED.as_bytes(), PushedBy::AditEdge).unwrap();
    let rule = &own.ingress.rules[0];
    let limits = Limits {
        header_timeout: Some(Duration::from_secs(7)),
        max_body_bytes: Some(1 << 20),
        max_concurrent: Some(3),
        request_timeout: None,
    };
    assert_eq!((rule.limits, rule.forwarded), (limits, Forwarded::Strip));
    assert_eq!((rule.origin.proxy_protocol, own.ignored_keys), (Some(ProxyProtocol::V2), 0));

    let wrong = r#"{"ingress": [{"service": "http://x", "limits": {"maxConcurrent": 0}}]}"#;
    assert!(RemoteConfig::parse(wrong.as_bytes()).is_ok());
    assert!(RemoteConfig::parse_from(wrong.as_bytes(), PushedBy::AditEdge).is_err());
}

#[test]
fn adits_edge_pushes_what_its_file_says_and_the_edge_of_others_is_not_told() {
    let yaml = "ingress: [{service: ['http://x', 'http://y'], health: {path: /h}, forwarded: append, proxyProtocol: v1, \
                limits: {requestTimeout: 1m30s, maxConcurrent: 2, headerTimeout: 1500us, maxBodyBytes: 1GiB}}]";
    let ingress: Ingress = read(yaml).unwrap().config.ingress.unwrap();
    let warp = WarpRouting::default();
    let pushed = RemoteConfig::parse_from(adit_push(&ingress, &warp).as_bytes(), PushedBy::AditEdge).unwrap();
    assert_eq!(pushed.ingress.rules, ingress.rules);
    let told = local_push(Some(&ingress), &warp, &[]);
    let keys = ["limits", "forwarded", "proxyProtocol", "health", "http://y"];
    assert!(keys.iter().all(|key| !told.contains(key)), "{told}");
    assert_eq!(pushed.ignored_keys, 0);
    let view: Value = serde_json::from_str(&config_view(-1, &ingress, &warp, &Default::default())).unwrap();
    let shown = &view["config"]["ingress"][0];
    assert_eq!((&shown["forwarded"], &shown["proxyProtocol"]), (&json!("append"), &json!("v1")));
    assert_eq!(shown["limits"]["maxConcurrent"], 2);
}
