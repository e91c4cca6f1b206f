//! `guard`: what is read, what is inherited, what is refused and where.

use adit::config::{CallerHeaders, Guard, IdentitySource, MutualTls, RelayedBy, SecretRef, Service};

use crate::config_inner_hop::{file, loaded, mistakes};

fn guard(yaml: &str) -> Guard {
    let mut guards = loaded(yaml).config.guards;
    assert_eq!(guards.len(), 1);
    guards.remove(0)
}

#[test]
fn a_guard_alone_needs_no_other_section() {
    let yaml = "\
guard:
  - listen: 127.0.0.1:0
    certificate: { certificate: /g.crt, key: { env: KEY } }
    service: tcp://10.0.0.1:5432
    originRequest: { connectTimeout: 3s }
    callers: { trustAnchors: [/ca], allow: [ { id: 'spiffe://a/b' } ] }
  - { listen: ':8443', certificate: { file: /all.json, key: guard }, service: 'unix:/s', callers: { allowlisted: [/l] } }
";
    let config = loaded(yaml).config;
    assert!(config.inner_hop.strips && config.inner_hop.top.is_none() && config.ingress.is_none());
    let [first, second] = &*config.guards else { panic!("{:?}", config.guards) };
    assert_eq!(first.listen, "127.0.0.1:0".parse().unwrap());
    assert_eq!(
        first.certificate,
        IdentitySource { certificate: file("/g.crt"), key: Some(SecretRef::Env("KEY".into())) }
    );
    assert!(matches!(first.service, Service::Tcp { port: 5432, .. }));
    assert_eq!(first.origin.connect_timeout.as_secs(), 3);
    assert_eq!((first.hop.mode, first.hop.callers.is_some()), (MutualTls::Optional, false));
    assert_eq!(first.callers.allow.as_ref().unwrap().len(), 1);
    assert_eq!(second.listen, "[::]:8443".parse().unwrap());
    let all = SecretRef::FileKey { file: "/all.json".into(), key: "guard".into() };
    assert_eq!(second.certificate, IdentitySource { certificate: all, key: None });
    assert_eq!(second.callers.allow, None);
    assert!(!loaded("guard: []").config.inner_hop.strips);
}

#[test]
fn a_guard_inherits_the_callers_of_inner_hop_key_by_key_but_no_relay() {
    let yaml = |callers: &str| {
        format!(
            "innerHop: {{ callers: {{ trustAnchors: [/ca], crls: [/crl], relayedBy: xfcc, headers: xfcc, allow: [] }} }}\n\
             guard: [ {{ listen: '0.0.0.0:1', certificate: /g, service: 'http://localhost'{callers} }} ]"
        )
    };
    let all = guard(&yaml(""));
    assert_eq!(all.callers.trust_anchors, [file("/ca")]);
    assert_eq!(all.callers.crls, [file("/crl")]);
    assert_eq!(all.callers.headers, [CallerHeaders::Xfcc]);
    assert_eq!(all.callers.allow, Some(Vec::new()));
    assert_eq!(all.callers.relayed_by, RelayedBy::AditEdge);
    let own = guard(&yaml(
        ", callers: { trustAnchors: [/own], keepHeadersFrom: ['spiffe://a/ns/*/sa/adit'], allow: [ { dns: b } ] }",
    ));
    assert_eq!(own.callers.trust_anchors, [file("/own")]);
    assert_eq!(own.callers.crls, [file("/crl")]);
    assert_eq!(own.callers.allow.as_ref().unwrap().len(), 1);
    assert_eq!(own.keep_headers_from[0].as_str(), "spiffe://a/ns/*/sa/adit");
    let refused = mistakes(&yaml(", callers: { relayedBy: rfc9440 }"));
    assert!(refused.contains("guard[0].callers.relayedBy: a guard believes nobody"), "{refused}");
    let refused = mistakes(&yaml("").replace(
        "guard: [ {",
        "ingress: [ { service: 'http://localhost', innerHop: \
         { callers: { keepHeadersFrom: [] } } } ]\nguard: [ {",
    ));
    assert!(refused.contains("ingress[0].innerHop.callers.keepHeadersFrom: unknown key"), "{refused}");
}

#[test]
fn the_hop_of_a_guard_is_that_of_the_top_but_for_its_own_pod() {
    let yaml = |mode: &str, service: &str, identity: bool| {
        let identity = if identity { ", identities: { default: { certificate: /d } }" } else { "" };
        format!(
            "innerHop: {{ mutualTls: {mode}, callers: {{ trustAnchors: [/ca] }}{identity} }}\n\
             guard:\n  - listen: 0.0.0.0:1\n    certificate: /g\n    service: {service}\n"
        )
    };
    for mode in ["always", "remote", "optional"] {
        for service in ["http://127.0.0.1:80", "http://localhost", "unix:/s", "https://[::1]", "tcp://localhost:1"] {
            let guard = guard(&yaml(mode, service, false));
            assert!(!guard.hop.demands(&guard.service), "{mode} {service}");
            // That the name leads to loopback is still looked at when it is dialled.
            assert_eq!(guard.hop.must_stay_local(&guard.service), mode != "optional", "{mode} {service}");
        }
    }
    for mode in ["always", "remote"] {
        for service in ["http://x", "https://x", "tcp://x:1", "h2c://10.0.0.1"] {
            let refused = mistakes(&yaml(mode, service, false));
            assert!(refused.starts_with("t.yml:5:14: guard[0].service: `mutualTls: "), "{refused}");
        }
        let guard = guard(&yaml(mode, "https://x", true));
        assert!(guard.hop.demands(&guard.service));
        assert_eq!(guard.hop.present.as_ref().unwrap().name, "default");
        let unverified = format!("{}    originRequest: {{ noTLSVerify: true }}\n", yaml(mode, "https://x", true));
        assert!(mistakes(&unverified).contains("`noTLSVerify` forbids it"));
    }
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place() {
    let yaml = "\
guard:
  - listen: localhost:8443
    certificate: { certificate: /g, vaultPki: {} }
    service: bastion
    callers: { trustAnchors: [/ca], keepHeadersFrom: [ adit ], allow: }
  - listen: 0.0.0.0:1
    certificate:
    service: http://x/y
    originRequest: { noTlsVerify: true }
    callers: { headers: none }
  - { listen: 0.0.0.0:1, certificate: /g, service: 'tcp://localhost:1', callers: { allowlisted: [/l], headers: xfcc,
      keepHeadersFrom: ['spiffe://a/b'], allow: [ { id: 'spiffe://a/b', methods: [GET] } ] } }
  - { lisen: 0.0.0.0:1 }
  - { listen: 0.0.0.0:2, certificate: /g, service: 'http://localhost' }
";
    assert_eq!(
        mistakes(yaml).lines().collect::<Vec<_>>(),
        [
            "t.yml:2:13: guard[0].listen: must be an address and a port, such as 0.0.0.0:8443 or [::]:8443",
            "t.yml:3:37: guard[0].certificate.vaultPki: unknown key",
            "t.yml:4:14: guard[0].service: a guard stands in front of one service that it dials, not of bastion",
            "t.yml:5:56: guard[0].callers.keepHeadersFrom[0]: \"adit\" does not begin with `spiffe://`",
            "t.yml:5:64: guard[0].callers.allow: there is nothing here; leave the key out or give it a value",
            "t.yml:6:11: guard[1]: a guard needs `callers` with `trustAnchors` or `allowlisted`, of its own or of \
             `innerHop`: without them nobody is known",
            "t.yml:7:5: guard[1].certificate: there is nothing here; leave the key out or give it a value",
            "t.yml:8:14: guard[1].service: a service has no path, not even `/`: the path of the request is passed on",
            "t.yml:9:22: guard[1].originRequest.noTlsVerify: unknown key, did you mean `noTLSVerify`?",
            "t.yml:11:15: guard[2].listen: another guard listens there",
            "t.yml:11:103: guard[2].callers.headers: has no effect on tcp://localhost:1, which has no headers",
            "t.yml:12:7: guard[2].callers.keepHeadersFrom: has no effect on tcp://localhost:1, which has no headers",
            "t.yml:12:49: guard[2].callers.allow: `methods` and `paths` match nothing on tcp://localhost:1, which has \
             none",
            "t.yml:13:5: guard[3]: `certificate` is missing",
            "t.yml:13:5: guard[3]: `listen` is missing",
            "t.yml:13:5: guard[3]: `service` is missing",
            "t.yml:13:5: guard[3]: a guard needs `callers` with `trustAnchors` or `allowlisted`, of its own or of \
             `innerHop`: without them nobody is known",
            "t.yml:13:7: guard[3].lisen: unknown key, did you mean `listen`?",
            "t.yml:14:5: guard[4]: a guard needs `callers` with `trustAnchors` or `allowlisted`, of its own or of \
             `innerHop`: without them nobody is known",
        ]
    );
    for (yaml, wanted) in [
        ("guard:", "guard: there is nothing here"),
        ("guard: {}", "guard: must be a list"),
        ("guard: [ ~ ]", "guard[0]: there is nothing here"),
    ] {
        assert!(mistakes(yaml).contains(wanted), "{yaml}");
    }
}

#[test]
fn only_the_addresses_of_guards_need_a_restart() {
    let yaml = |listen: &str, service: &str| {
        format!(
            "guard: [ {{ listen: '{listen}', certificate: /g, service: '{service}', callers: {{ trustAnchors: [/c] }} }} ]"
        )
    };
    let running = loaded(&yaml("127.0.0.1:1", "http://localhost")).config;
    let other = loaded(&yaml("127.0.0.1:1", "unix:/s")).config;
    assert_eq!(running.needs_restart(&other), Vec::<String>::new());
    let moved = loaded(&yaml("127.0.0.1:2", "http://localhost")).config;
    assert_eq!(running.needs_restart(&moved), ["the addresses of `guard` (running with 127.0.0.1:1)"]);
    // One that is gone closes at once.
    assert_eq!(running.needs_restart(&loaded("").config), Vec::<String>::new());
}
