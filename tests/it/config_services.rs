//! Lists of services and their health, in a file and in a push.

use std::time::Duration;

use adit::config::{
    Flags, Health, HealthCheck, Ingress, PushedBy, RemoteConfig, Rule, WarpRouting, adit_push, config_view, explain,
    local_push, parse_file,
};
use serde_json::{Value, json};

fn mistakes(yaml: &str) -> Vec<String> {
    let refused = parse_file("t.yml", yaml, &Flags::default(), |_| None).expect_err(yaml).to_string();
    refused.lines().map(str::to_owned).collect()
}

fn ingress(yaml: &str) -> Ingress {
    parse_file("t.yml", yaml, &Flags::default(), |_| None).unwrap_or_else(|m| panic!("{m}")).config.ingress.unwrap()
}

fn rule(yaml: &str) -> Rule {
    ingress(&format!("ingress: [{{ {yaml} }}]")).rules.remove(0)
}

fn spellings(rule: &Rule) -> Vec<&str> {
    rule.services().map(|(_, spelling)| spelling).collect()
}

#[test]
fn a_list_of_services_of_one_kind_is_read_in_its_order() {
    for list in [
        &["http://a", "ws://b:80", "unix:/run/s"][..],
        &["https://a", "wss://b", "unix+tls:/run/s"],
        &["h2c://a", "h2c://b"],
        &["tcp://a:1", "ssh://b:22"],
        &["http://only"],
    ] {
        let rule = rule(&format!("service: [{}]", list.join(", ")));
        assert_eq!(spellings(&rule), list);
        assert_eq!((&rule.spelling[..], rule.health), (list[0], None));
    }
}

#[test]
fn every_mistake_in_lists_is_reported_with_its_place() {
    let yaml = "\
ingress:
  - hostname: a.com
    service:
      - http://a
      - http://a/path
      - https://b
      - h2c://b
      - tcp://b:1
      - http_status:404
      - hello_world
      - bastion
      - socks-proxy
      - http://a:80
      - [http://c]
      - ~
  - hostname: b.com
    service: []
  - hostname: c.com
    service: [http://a, http://b]
    originRequest: { bastionMode: true }
  - service: [http://a, 'http://b#c']
";
    // Texts that are none are told before services are compared.
    let told = mistakes(yaml);
    assert_eq!(
        told,
        [
            "t.yml:14:9: ingress[0].service[10]: must be a text, this is a list",
            "t.yml:15:9: ingress[0].service[11]: must be a text, this is nothing",
            "t.yml:17:14: ingress[1].service: a list has 1 to 256 services",
            "t.yml:19:15: ingress[2].service[0]: `bastionMode` takes the place of a service, not of a list",
            "t.yml:19:25: ingress[2].service[1]: `bastionMode` takes the place of a service, not of a list",
            "t.yml:21:25: ingress[3].service[1]: a service has no fragment (`#`)",
        ]
    );
    let compared = mistakes(&yaml.replace("      - [http://c]\n      - ~\n", ""));
    let kind = "is of another kind than http://a; the services of a list are alike";
    let alone = "stands alone, not in a list";
    assert_eq!(
        compared[..9],
        [
            "t.yml:5:9: ingress[0].service[1]: a service has no path, not even `/`: the path of the request is passed on"
                .to_owned(),
            format!("t.yml:6:9: ingress[0].service[2]: https://b {kind}"),
            format!("t.yml:7:9: ingress[0].service[3]: h2c://b {kind}"),
            format!("t.yml:8:9: ingress[0].service[4]: tcp://b:1 {kind}"),
            format!("t.yml:9:9: ingress[0].service[5]: http_status:404 {alone}"),
            format!("t.yml:10:9: ingress[0].service[6]: hello_world {alone}"),
            format!("t.yml:11:9: ingress[0].service[7]: bastion {alone}"),
            format!("t.yml:12:9: ingress[0].service[8]: socks-proxy {alone}"),
            "t.yml:13:9: ingress[0].service[9]: http://a is already in the list".to_owned(),
        ]
    );
}

#[test]
fn health_has_defaults_and_every_key_counts() {
    let default = Health { check: None, eject_after: 5, slow_start: Duration::ZERO };
    assert_eq!(rule("service: ['http://a', 'http://b'], health: {}").health, Some(default.clone()));
    // Nothing takes the place of a single service.
    let default = Health { eject_after: 0, ..default };
    assert_eq!(rule("service: 'http://a', health: {}").health, Some(default.clone()));
    let check = HealthCheck {
        path: "/healthz".to_owned(),
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(5),
        unhealthy_after: 3,
        healthy_after: 2,
    };
    let with = |check: HealthCheck| Some(Health { check: Some(check), ..default.clone() });
    assert_eq!(rule("service: 'http://a', health: { path: /healthz }").health, with(check.clone()));
    let shorter = Duration::from_secs(1);
    let frequent = HealthCheck { interval: shorter, timeout: shorter, ..check };
    assert_eq!(rule("service: 'http://a', health: { path: /healthz, interval: 1s }").health, with(frequent));
    let all = "service: ['http://a', 'http://b'], health: { path: '/h?x=1', interval: 250ms, timeout: 2s, \
               unhealthyAfter: 4, healthyAfter: 1, ejectAfter: 0, slowStart: 30s }";
    let wanted = HealthCheck {
        path: "/h?x=1".to_owned(),
        interval: Duration::from_millis(250),
        timeout: Duration::from_secs(2),
        unhealthy_after: 4,
        healthy_after: 1,
    };
    let wanted = Health { check: Some(wanted), eject_after: 0, slow_start: Duration::from_secs(30) };
    assert_eq!(rule(all).health, Some(wanted));
    let days = rule("service: ['http://a', 'http://b'], health: { path: /h, interval: 1d, slowStart: 1d12h }");
    let days = days.health.unwrap();
    assert_eq!((days.check.unwrap().interval.as_secs(), days.slow_start.as_secs()), (86_400, 129_600));
}

#[test]
fn every_mistake_in_health_is_reported_with_its_place() {
    let yaml = "\
ingress:
  - hostname: a.com
    service: http://a
    health: { path: healthz, interval: 1ms, unhealthyAfter: 0, slowstart: 1s }
  - hostname: b.com
    service: tcp://a:1
    health: { path: /healthz }
  - hostname: c.com
    service: http_status:404
    health: { ejectAfter: 3 }
  - hostname: d.com
    service: http://a
    health: { interval: 5s }
  - hostname: e.com
    service: [http://a]
    health: { ejectAfter: 0, slowStart: 1s }
  - service: http://a
    health: [/healthz]
";
    assert_eq!(
        mistakes(yaml),
        [
            "t.yml:4:21: ingress[0].health.path: must be a path such as /healthz, percent-encoded",
            "t.yml:4:30: ingress[0].health.interval: there are no checks without a `path`",
            "t.yml:4:40: ingress[0].health.interval: must be at least 100ms",
            "t.yml:4:45: ingress[0].health.unhealthyAfter: there are no checks without a `path`",
            "t.yml:4:61: ingress[0].health.unhealthyAfter: must be 1 to 1000000",
            "t.yml:4:64: ingress[0].health.slowstart: unknown key, did you mean `slowStart`?",
            "t.yml:7:13: ingress[1].health.path: a check is an HTTP request and tcp://a:1 is a stream of bytes",
            "t.yml:10:13: ingress[2].health: http_status:404 is no service whose health could be known",
            "t.yml:13:15: ingress[3].health.interval: there are no checks without a `path`",
            "t.yml:16:15: ingress[4].health.ejectAfter: has no effect on a single service",
            "t.yml:16:30: ingress[4].health.slowStart: has no effect on a single service",
            "t.yml:18:13: ingress[5].health: must be a mapping, this is a list",
        ]
    );
}

#[test]
fn a_push_of_any_edge_has_no_lists_and_one_of_our_own_edge_has() {
    let list = br#"{"ingress":[{"service":["http://a","http://b"],"health":{"path":"/h","interval":"5s"}}]}"#;
    let refused = RemoteConfig::parse(list).unwrap_err().to_string();
    assert!(refused.contains("ingress[0].service: must be a text, this is a list"), "{refused}");
    let health = br#"{"ingress":[{"service":"http://a","health":{"path":"/h"}}]}"#;
    let ignored = RemoteConfig::parse(health).unwrap();
    assert_eq!((ignored.ignored_keys, &ignored.ingress.rules[0].health), (1, &None));
    let pushed = RemoteConfig::parse_from(list, PushedBy::AditEdge).unwrap();
    assert_eq!(spellings(&pushed.ingress.rules[0]), ["http://a", "http://b"]);
    assert!(pushed.ingress.rules[0].health.as_ref().unwrap().check.is_some());
    assert_eq!(pushed.ignored_keys, 0);
}

#[test]
fn a_pushed_health_is_read_like_the_rest_of_a_push() {
    let json = br#"{"ingress":[{"service":["http://a","http://b"],
        "health":{"PATH":"/h","Interval":3,"slowstart":"1d","later":{}}}]}"#;
    let pushed = RemoteConfig::parse_from(json, PushedBy::AditEdge).unwrap();
    let health = pushed.ingress.rules[0].health.clone().unwrap();
    assert_eq!((health.check.unwrap().interval.as_secs(), health.slow_start.as_secs()), (3, 86_400));
    assert_eq!(pushed.ignored_keys, 1);
}

#[test]
fn the_health_of_a_single_service_is_told_as_it_can_be_read() {
    let ingress = ingress("ingress: [{ service: 'http://a', health: { path: /h } }]");
    let own = adit_push(&ingress, &WarpRouting::default());
    let read = RemoteConfig::parse_from(own.as_bytes(), PushedBy::AditEdge).unwrap();
    assert_eq!((read.ingress, read.ignored_keys), (ingress, 0));
}

const BOTH: &str = "\
ingress:
  - hostname: a.com
    service: [https://a:8443, https://b]
    health: { path: /healthz, interval: 250ms, slowStart: 30s, ejectAfter: 2 }
  - service: http_status:404
";

#[test]
fn a_list_is_told_whole_to_an_edge_of_our_own_and_by_its_first_service_to_any_other() {
    let ingress = ingress(BOTH);
    let told: Value = serde_json::from_str(&local_push(Some(&ingress), &WarpRouting::default(), &[])).unwrap();
    assert_eq!(told["ingress"][0], json!({ "hostname": "a.com", "service": "https://a:8443", "originRequest": {} }));
    let own = adit_push(&ingress, &WarpRouting::default());
    let read = RemoteConfig::parse_from(own.as_bytes(), PushedBy::AditEdge).unwrap();
    assert_eq!(read.ingress, ingress);
    assert_eq!(read.ignored_keys, 0);
}

#[test]
fn lists_are_shown_to_people() {
    let ingress = ingress(BOTH);
    let view: Value =
        serde_json::from_str(&config_view(-1, &ingress, &WarpRouting::default(), &Default::default())).unwrap();
    let first = &view["config"]["ingress"][0];
    assert_eq!(first["service"], "https://a:8443");
    assert_eq!(first["services"], json!(["https://a:8443", "https://b"]));
    assert_eq!((&first["health"]["interval"], &first["health"]["slowStart"]), (&json!("250ms"), &json!("30s")));
    assert_eq!(view["config"]["ingress"][1].get("services"), None);
    let told = explain(&ingress, "https://a.com/").unwrap();
    assert!(told.contains("\tservice: https://a:8443\n\tservice: https://b\n"), "{told}");
}
