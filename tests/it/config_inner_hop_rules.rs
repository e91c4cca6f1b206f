//! `innerHop` and rules: entries by host and service, and the floor under what the edge pushes.

use adit::config::{
    Hops, Ingress, Loaded, MutualTls, PushedBy, Refused, RemoteConfig, RemoteConfigMode, Service, TcpScheme,
    config_view,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::config_inner_hop::{loaded, read};

fn push(local: &Loaded, rules: &Value) -> Result<Ingress, Refused> {
    let json = json!({ "ingress": rules }).to_string();
    let mode = RemoteConfigMode::Accept;
    let pushed = RemoteConfig::judge(json.as_bytes(), PushedBy::AditEdge, &mode, &local.config.inner_hop);
    pushed.map(|pushed| pushed.ingress)
}

/// Which hop a host meets, told by what it expects; `-` is a refusal, `0` a hop that expects nothing.
fn meets(hops: &Hops, host: &str) -> String {
    let choice = hops.choices.iter().find(|(hostname, _)| hostname.as_ref().is_none_or(|name| name.matches(host)));
    match choice.map(|(_, hop)| hop).or(hops.otherwise.as_ref()) {
        Some(hop) => hop.expect.first().map_or_else(|| "0".to_owned(), |expect| expect.to_string().replace("dns:", "")),
        None => "-".to_owned(),
    }
}

const ENTRIES: &str = "\
innerHop:
  mutualTls: optional
  rules:
    - { hostname: a.example.com, service: 'https://*.svc:*', expect: ['dns:one'] }
    - { hostname: '*.example.com', service: 'https://*.svc:*', expect: ['dns:two'] }
    - { hostname: b.example.com, service: 'https://*.svc:*', expect: ['dns:never'] }
    - { service: 'https://web.svc', expect: ['dns:three'] }
";

#[test]
fn the_first_entry_for_host_and_service_holds() {
    let rules = json!([
        { "hostname": "a.example.com", "service": "https://x.svc" },
        { "hostname": "*.example.com", "service": "https://x.svc" },
        { "hostname": "other.test", "service": "https://x.svc" },
        { "hostname": "c.example.com", "service": "https://web.svc" },
        { "hostname": "d.example.com", "service": "https://elsewhere" },
        { "hostname": "e.example.com", "service": "https://web.svc:444" },
        { "hostname": "*.b.example.com", "service": "https://x.svc" },
        { "service": "https://web.svc" },
    ]);
    let hosts = ["a.example.com", "b.example.com", "c.example.com", "x.y.example.com", "other.test"];
    // By rule, in the order of the hosts; of the file the top level is what is left, of a push nothing.
    let expected: [(&str, &str); 8] = [
        ("one one one one one", "one one one one one"),
        ("one two two two two", "one two two two two"),
        ("0 0 0 0 0", "- - - - -"),
        ("two two two two two", "two two two two two"),
        ("0 0 0 0 0", "- - - - -"),
        ("two two two two two", "two two two two two"),
        ("two two two two two", "two two two two two"),
        ("one two two two three", "one two two two three"),
    ];
    let local = loaded(ENTRIES);
    let pushed = push(&local, &rules).unwrap();
    let own = loaded(&format!("{ENTRIES}ingress: {rules}\n")).config.ingress.unwrap();
    for (at, (of_file, of_edge)) in expected.iter().enumerate() {
        let met = |ingress: &Ingress| {
            let hops = &ingress.rules[at].hops;
            hosts.map(|host| meets(hops, host)).join(" ")
        };
        assert_eq!((&*met(&own), &*met(&pushed)), (*of_file, *of_edge), "rule {at}");
    }
    // No way is made for a host that another one is for.
    assert_eq!(own.rules[1].hops.choices.len(), 1);
    assert_eq!(own.rules[7].hops.choices.len(), 2);
    assert!(own.rules[0].hops.choices.is_empty() && own.rules[2].hops.choices.is_empty());
}

#[test]
fn an_entry_is_for_all_services_of_a_list_or_for_none() {
    let rules = |last: &str| json!([{ "service": ["https://one.svc", "https://two.svc", last] }]);
    let local = loaded(ENTRIES);
    assert!(push(&local, &rules("https://three.svc")).is_ok());
    let refused = push(&local, &rules("https://elsewhere")).unwrap_err();
    let all = refused.mistakes.to_string();
    assert!(all.contains("ingress[0].service: `innerHop.rules[0]` is for some of these services and not"), "{all}");
    assert_eq!(all.lines().count(), 3, "{all}");
    let own = format!("{ENTRIES}ingress: {}\n", rules("https://elsewhere"));
    assert!(read(&own).unwrap_err().to_string().contains("`innerHop.rules[1]` is for some"));
    // An entry for other hosts has nothing to say here.
    let elsewhere = json!([
        { "hostname": "other.test", "service": ["https://one.svc", "https://elsewhere"] },
        { "service": "http_status:404" },
    ]);
    assert!(push(&local, &elsewhere).is_ok());
    // An inline one of a list is for each of its services, and for a list of some of them.
    let inline = loaded(
        "innerHop: { identities: { default: { certificate: /d } } }\n\
         ingress: [ { service: ['https://a', 'https://b'], innerHop: { expect: ['dns:in'] } } ]",
    );
    for services in [json!("https://b"), json!(["https://b"]), json!(["https://b", "https://a"])] {
        let pushed = push(&inline, &json!([{ "service": services }])).unwrap();
        assert_eq!(meets(&pushed.rules[0].hops, "x"), "in");
    }
    let refused = push(&inline, &json!([{ "service": ["https://b", "https://c"] }])).unwrap_err();
    assert!(refused.mistakes.to_string().contains("an inline `innerHop` of the file is for some of these"));
}

#[test]
fn inline_hops_of_the_file_stand_first_after_a_push() {
    let local = loaded(
        "\
innerHop:
  mutualTls: always
  identities: { default: { certificate: /d } }
  rules: [ { service: 'https://*:*', expect: ['dns:entry'] }, { service: 'tcp://db', mutualTls: passthrough } ]
ingress:
  - { hostname: a.test, path: ^/v1/, service: 'https://s', innerHop: { expect: ['dns:inline'] } }
  - { hostname: b.test, service: 'https://s' }
  - { service: 'http_status:404' }
",
    );
    let rules = json!([
        { "hostname": "a.test", "service": "https://s" },
        { "hostname": "b.test", "service": "https://s" },
        { "hostname": "a.test", "path": "x", "service": "https://t" },
        { "hostname": "db.test", "service": "tcp://db" },
        { "hostname": "h.test", "service": "hello_world" },
        { "service": "https://s" },
    ]);
    let pushed = push(&local, &rules).unwrap();
    let met = |rule: usize, host: &str| meets(&pushed.rules[rule].hops, host);
    assert_eq!(met(0, "a.test"), "inline");
    assert_eq!(met(1, "b.test"), "entry");
    assert_eq!(met(2, "a.test"), "entry");
    assert_eq!(pushed.rules[3].hops.otherwise.as_ref().unwrap().mode, MutualTls::Passthrough);
    // What adit answers itself has no hop, and is not refused for want of an entry.
    assert_eq!(pushed.rules[4].hops, Hops::always(Default::default()));
    assert_eq!((met(5, "a.test"), met(5, "b.test")), ("inline".into(), "entry".into()));
}

#[test]
fn a_push_below_the_floor_is_refused_whole_with_every_reason() {
    let local = loaded("innerHop: { identities: { default: { certificate: /d } } }");
    let rules = json!([
        { "hostname": "a.test", "service": "http://a.svc" },
        { "hostname": "b.test", "service": "https://b.svc", "originRequest": { "noTLSVerify": true } },
        { "hostname": "c.test", "service": "tcp://c.svc:1" },
        { "hostname": "d.test", "service": "http://d", "originRequest": { "bastionMode": true } },
        { "hostname": "e.test", "service": ["http://localhost", "http://e"] },
        { "hostname": "f.test", "service": "https://f.svc" },
        { "hostname": "g.test", "service": "unix:/g" },
        { "service": "http_status:404" },
    ]);
    let refused = push(&local, &rules).unwrap_err();
    let reasons = refused.mistakes.to_string();
    for (at, reason) in [
        "ingress[0].service: `mutualTls: remote` demands TLS with a certificate of both sides, and http://a.svc has",
        "ingress[1].service: `mutualTls: remote` demands that https://b.svc is verified, and `noTLSVerify`",
        "ingress[2].service: `mutualTls: remote` demands proof of both sides, and tcp://c.svc:1 carries no TLS",
        "ingress[3].service: `mutualTls: remote` refuses bastion",
        "ingress[4].service: `mutualTls: remote` demands TLS with a certificate of both sides, and http://e has none",
    ]
    .iter()
    .enumerate()
    {
        let line = reasons.lines().nth(at).unwrap_or_default();
        assert!(line.contains(reason), "{reason}\n{reasons}");
    }
    assert_eq!(reasons.lines().count(), 5, "{reasons}");
    // Another `innerHop` would let it in, so that it is kept for when the file says so.
    assert!(refused.held);
    assert!(push(&loaded("innerHop: { mutualTls: optional }"), &rules).is_ok());
    for carried in
        [json!([{ "service": "http_status:404", "InnerHop": null }]), json!([{ "service": "", "innerHop": {} }])]
    {
        let refused = push(&loaded(""), &carried).unwrap_err();
        assert!(refused.mistakes.to_string().contains("only the connector's own file says"), "{}", refused.mistakes);
        assert!(!refused.held);
    }
    let own = br#"{ "innerhop": {}, "ingress": [] }"#;
    for by in [PushedBy::AnyEdge, PushedBy::AditEdge] {
        assert!(RemoteConfig::parse_from(own, by).unwrap_err().to_string().contains("innerhop: only the connector's"));
    }
}

#[test]
fn what_is_odd_is_warned_of() {
    let warnings = |yaml: &str| loaded(yaml).warnings.iter().map(|warning| format!("{warning}\n")).collect::<String>();
    let unused = "innerHop: { identities: { a: { certificate: /a }, b: { certificate: /b }, default: { certificate: /c } }, \
                  present: a, rules: [ { service: 'https://x', present: b } ] }";
    assert_eq!(warnings(unused), "t.yml:1:75: innerHop.identities.default: nothing presents this identity\n");
    let inline = "innerHop: { identities: { a: { certificate: /a } } }\n\
                  ingress: [ { service: 'https://x', innerHop: { present: a } } ]";
    assert_eq!(warnings(inline), "");
    let nobody = "innerHop: { callers: { headers: none } }\ningress: [ { service: 'http://localhost' } ]";
    assert!(warnings(nobody).starts_with("t.yml:2:23: ingress[0].service: neither `trustAnchors` nor `allowlisted`"));
    assert_eq!(warnings(&nobody.replace("headers: none", "allowInvalidOrMissingCert: true")), "");
    let twice = "ingress: [ { path: a, service: 'http://localhost', innerHop: {} },\n  \
                 { path: b, service: 'http://localhost', innerHop: { mutualTls: optional } }, { service: http_status:404 } ]";
    assert!(warnings(twice).starts_with("t.yml:2:43: ingress[1].innerHop: the `innerHop` of an earlier rule holds"));
    assert_eq!(warnings(&twice.replace("mutualTls: optional", "")), "");
    let useless = "innerHop: { mutualTls: optional, privateNetwork: refuse }";
    assert!(warnings(useless).contains("privateNetwork: has no effect under `mutualTls: optional`"));
}

#[test]
fn the_view_names_what_holds_and_holds_no_secret() {
    let local = loaded(&format!(
        "{ENTRIES}  identities: {{ default: {{ certificate: /d.pem, key: {{ env: KEY }} }} }}\n  \
         callers: {{ trustAnchors: [ {{ credential: root }} ], allow: [ {{ id: 'spiffe://a/b', methods: [GET] }} ] }}\n\
         ingress: [ {{ hostname: x.test, service: 'https://x', innerHop: {{ mutualTls: always }} }}, \
         {{ hostname: '*.example.com', service: 'https://a.svc' }}, {{ service: http_status:404 }} ]\n"
    ));
    let config = &local.config;
    let shown = |ingress: &Ingress| {
        let view = config_view(-1, ingress, &config.warp_routing, &config.inner_hop);
        serde_json::from_str::<Value>(&view).unwrap()["config"].clone()
    };
    let view = shown(config.ingress.as_ref().unwrap());
    let top = &view["innerHop"];
    assert_eq!(top["mutualTls"], "optional");
    assert_eq!(top["present"], "default");
    assert_eq!(top["identities"]["default"], json!({ "certificate": "/d.pem", "key": { "env": "KEY" } }));
    assert_eq!(top["callers"]["trustAnchors"], json!([{ "credential": "root" }]));
    assert_eq!(top["callers"]["allow"], json!([{ "id": "spiffe://a/b", "methods": ["GET"] }]));
    assert_eq!(top["rules"][0]["services"], json!(["https://*.svc:*"]));
    assert_eq!(top["inline"][0]["hostname"], "x.test");
    let rules = &view["ingress"];
    assert_eq!(rules[0]["innerHop"]["mutualTls"], "always");
    assert_eq!(rules[1]["innerHop"][0]["hostname"], "a.example.com");
    assert_eq!(rules[1]["innerHop"][2]["expect"], Value::Null);
    assert_eq!(rules[2]["innerHop"], Value::Null);
    let pushed = push(&local, &json!([{ "service": "https://nowhere" }])).unwrap();
    assert_eq!(shown(&pushed)["ingress"][0]["innerHop"], json!([{}, "refused"]).get(1).unwrap().clone());
    let plain = loaded("ingress: [ { service: 'https://x' } ]").config;
    let view = config_view(-1, plain.ingress.as_ref().unwrap(), &plain.warp_routing, &plain.inner_hop);
    assert!(!view.contains("innerHop"), "{view}");
}

/// A service, whether it has TLS of adit's, whether it is exempt under `remote`.
#[derive(Clone, Copy, Debug)]
struct Kind {
    service: &'static str,
    tls: bool,
    local: bool,
}

const KINDS: [Kind; 24] = [
    Kind { service: "http://x", tls: false, local: false },
    Kind { service: "http://10.0.0.1:80", tls: false, local: false },
    Kind { service: "http://127.1", tls: false, local: false },
    Kind { service: "http://localhost", tls: false, local: true },
    Kind { service: "http://127.0.0.1:8080", tls: false, local: true },
    Kind { service: "ws://[::1]", tls: false, local: true },
    Kind { service: "h2c://x", tls: false, local: false },
    Kind { service: "h2c://localhost", tls: false, local: true },
    Kind { service: "https://x", tls: true, local: false },
    Kind { service: "wss://x:8443", tls: true, local: false },
    Kind { service: "https://localhost.x", tls: true, local: false },
    Kind { service: "https://localhost", tls: true, local: true },
    Kind { service: "https://127.3.2.1", tls: true, local: true },
    Kind { service: "unix:/s", tls: false, local: true },
    Kind { service: "unix+tls:/s", tls: true, local: true },
    Kind { service: "tcp://x:1", tls: false, local: false },
    Kind { service: "ssh://localhost", tls: false, local: true },
    Kind { service: "rdp://127.0.0.1", tls: false, local: true },
    Kind { service: "smb://x", tls: false, local: false },
    Kind { service: "tcp://[::2]:1", tls: false, local: false },
    Kind { service: "bastion", tls: false, local: false },
    Kind { service: "socks-proxy", tls: false, local: false },
    Kind { service: "http_status:404", tls: false, local: false },
    Kind { service: "hello_world", tls: false, local: false },
];

/// What the contract demands of a rule, worked out apart from the code: whether mutual TLS has to be proven, and
/// whether the rule may stand.
fn contract(mode: &str, kind: Kind, identity: bool, no_verify: bool, private: bool) -> (bool, bool) {
    let answered = kind.service.starts_with("http_status") || kind.service == "hello_world";
    let anywhere = kind.service == "bastion" || kind.service == "socks-proxy";
    let bytes = ["tcp://", "ssh://", "rdp://", "smb://"].iter().any(|scheme| kind.service.starts_with(scheme));
    let demanded = match mode {
        _ if answered => false,
        "always" => !(anywhere && private),
        "remote" => !(kind.local || anywhere && private),
        "passthrough" if bytes => false,
        "passthrough" => return (false, false),
        _ => false,
    };
    (demanded, !demanded || (kind.tls && identity && !no_verify))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_rule_stands_that_leaves_a_demanding_hop_unproven(
        top in prop::option::of(prop::sample::select(vec!["", "always", "remote", "optional"])),
        own in prop::option::of(prop::sample::select(vec!["", "always", "remote", "optional", "passthrough"])),
        // The rule's own, or that of an entry for its service.
        inline in any::<bool>(),
        kind in prop::sample::select(KINDS.to_vec()),
        identity in any::<bool>(),
        no_verify in any::<bool>(),
        private in prop::option::of(any::<bool>()),
        pushed_no_verify in any::<bool>(),
        by_host in any::<bool>(),
    ) {
        let mode = |mode: &str| if mode.is_empty() { String::new() } else { format!("mutualTls: {mode}") };
        let top_mode = match top {
            None => "absent",
            Some("") => "remote",
            Some(mode) => mode,
        };
        // Without a section at the top there is no place for entries and identities.
        let inline = inline || top.is_none();
        let effective = match own {
            None => top_mode,
            Some("") if top.is_none() => "remote",
            Some("") => top_mode,
            Some(mode) => mode,
        };
        let (identity, private_) = (identity && top.is_some(), private == Some(true) && top.is_some());
        let answered = kind.service.starts_with("http_status") || kind.service == "hello_world";
        let mut yaml = String::new();
        if let Some(top) = top {
            let mut keys = vec![mode(top)];
            keys.extend(private.map(|allow| format!("privateNetwork: {}", if allow { "allow" } else { "refuse" })));
            keys.extend(identity.then(|| "identities: { default: { certificate: /d } }".to_owned()));
            let host = if by_host { "hostname: a.test, " } else { "" };
            keys.extend(own.filter(|_| !inline).map(|own| format!("rules: [ {{ {host}service: '{}', {} }} ]", kind.service, mode(own))));
            keys.retain(|key| !key.is_empty());
            yaml += &format!("innerHop: {{ {} }}\n", keys.join(", "));
        }
        let head = yaml.clone();
        let own_inline = own.filter(|_| inline).map(|own| format!(", innerHop: {{ {} }}", mode(own))).unwrap_or_default();
        yaml += &format!(
            "ingress: [ {{ service: '{}', originRequest: {{ noTLSVerify: {no_verify} }}{own_inline} }} ]\n",
            kind.service
        );

        // With an entry for one host only, the top level stays for the others.
        let both = by_host && !inline && own.is_some();
        let (demanded, stands) = contract(effective, kind, identity, no_verify, private_);
        let top_stands = !both || contract(top_mode, kind, identity, no_verify, private_).1;
        let stands = stands && top_stands && !(own.is_some() && answered);
        let read = read(&yaml);
        prop_assert_eq!(read.is_ok(), stands, "{}{:?}", yaml, read.err().map(|mistakes| mistakes.to_string()));
        if let Ok(loaded) = &read {
            let rule = &loaded.config.ingress.as_ref().unwrap().rules[0];
            let hop = rule.hops.choices.first().map(|(_, hop)| hop).or(rule.hops.otherwise.as_ref()).unwrap();
            prop_assert_eq!(hop.demands(&rule.service), demanded, "{}", yaml);
            let exempt = effective == "remote" && kind.local && !answered;
            prop_assert_eq!(hop.must_stay_local(&rule.service), exempt, "{}", yaml);
            for hop in rule.hops.each().filter(|hop| hop.demands(&rule.service)) {
                prop_assert!(hop.present.is_some() && rule.service.has_tls() && !rule.origin.no_tls_verify, "{}", yaml);
            }
        }

        // The same rule, pushed: the floor is the same, whatever the file's own rule says of verification.
        let base = if inline && own.is_some() {
            read.ok()
        } else {
            self::read(&head).ok()
        };
        let Some(local) = base else { return Ok(()) };
        let rule = json!([{ "service": kind.service, "originRequest": { "noTLSVerify": pushed_no_verify } }]);
        let pushed = push(&local, &rule);
        let (demanded, stands) = contract(effective, kind, identity, pushed_no_verify, private_);
        prop_assert_eq!(pushed.is_ok(), stands, "{} {}", yaml, rule);
        if let Ok(ingress) = pushed {
            let rule = &ingress.rules[0];
            for hop in rule.hops.each() {
                prop_assert_eq!(hop.demands(&rule.service), demanded, "{} {:?}", yaml, rule);
            }
            if both && !answered {
                prop_assert!(rule.hops.otherwise.is_none(), "{} {:?}", yaml, rule);
            }
        }
    }
}

#[test]
fn the_kinds_are_what_the_table_says() {
    for kind in KINDS {
        let service = Service::parse(kind.service).unwrap();
        assert_eq!((service.has_tls(), service.is_local()), (kind.tls, kind.local), "{}", kind.service);
    }
    assert_eq!(TcpScheme::Tcp.as_str(), "tcp");
}
