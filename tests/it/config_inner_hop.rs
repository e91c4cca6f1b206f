//! `innerHop`: what is read, what is inherited, what is refused and where.

use adit::config::{
    CallerHeaders, Flags, Hop, IdentitySource, InnerHop, Loaded, Mistakes, MutualTls, RelayedBy, SecretRef, parse_file,
};

pub(crate) fn read(yaml: &str) -> Result<Loaded, Mistakes> {
    parse_file("t.yml", yaml, &Flags::default(), |_| None)
}

pub(crate) fn loaded(yaml: &str) -> Loaded {
    read(yaml).unwrap_or_else(|mistakes| panic!("{mistakes}\n{yaml}"))
}

pub(crate) fn mistakes(yaml: &str) -> String {
    read(yaml).expect_err(yaml).to_string()
}

/// The hop of a rule that has one for every host.
fn hop(loaded: &Loaded, rule: usize) -> Hop {
    let hops = &loaded.config.ingress.as_ref().unwrap().rules[rule].hops;
    assert!(hops.choices.is_empty(), "{hops:?}");
    (**hops.otherwise.as_ref().unwrap()).clone()
}

pub(crate) fn file(path: &str) -> SecretRef {
    SecretRef::File(path.into())
}

/// The contract's example, without what comes from Vault.
const EXAMPLE: &str = r#"
innerHop:
  mutualTls: remote
  privateNetwork: refuse
  identities:
    default: { certificate: /vault/secrets/adit.pem }
    writer:  { certificate: /vault/secrets/w.crt, key: { file: /vault/all.json, key: tls.key } }
  originTrust: [ /vault/secrets/ca.pem ]
  callers:
    trustAnchors: [ { credential: root }, { env: BACKUP_ROOT } ]
    intermediates: [ /vault/secrets/intermediate.pem ]
    allowlisted: []
    crls: []
    allowInvalidOrMissingCert: false
    relayedBy: adit-edge
    headers: x-client-cert
    headerPrefix: X-Client-Runway-Cc-
  rules:
    - { hostname: "*.example.com", service: "https://*.my-ns.svc:*", expect: ["dns:*.my-ns.svc"] }
guard:
  - listen: 0.0.0.0:8443
    certificate: /vault/secrets/guard.pem
    service: http://127.0.0.1:8080
    callers:
      trustAnchors: [ /vault/secrets/ca.pem ]
      keepHeadersFrom: []
      allow: [ { id: "spiffe://example.org/ns/my-ns/sa/adit" } ]
ingress:
  - hostname: api.example.com
    path: ^/v1/
    service: https://backend.my-ns.svc:8443
    innerHop:
      present: writer
      expect: [ "spiffe://example.org/ns/my-ns/sa/backend" ]
      callers:
        allow:
          - { id: "spiffe://example.org/worker/a" }
          - { id: "spiffe://example.org/worker/c", methods: [GET, HEAD] }
  - hostname: shop.example.com
    service: https://shop.my-ns.svc:8443
  - service: http_status:404
"#;

#[test]
fn the_contracts_example_is_read() {
    let loaded = loaded(EXAMPLE);
    assert_eq!(loaded.warnings, [], "{:?}", loaded.warnings);
    let InnerHop { strips, top, entries, inline, identities, private_network, prefixes } = &*loaded.config.inner_hop;
    // The guard's are among them, and it has the same.
    assert_eq!((&prefixes[..], prefixes), (&["X-Client-Runway-Cc-".to_owned()][..], &loaded.config.guards[0].prefixes));
    assert!(*strips && !private_network);
    let writer = IdentitySource {
        certificate: file("/vault/secrets/w.crt"),
        key: Some(SecretRef::FileKey { file: "/vault/all.json".into(), key: "tls.key".into() }),
    };
    assert_eq!(identities["writer"], writer);
    let top = top.as_ref().unwrap();
    assert_eq!(top.mode, MutualTls::Remote);
    assert_eq!(top.present.as_ref().unwrap().name, "default");
    assert_eq!(top.origin_trust, Some(vec![file("/vault/secrets/ca.pem")]));
    let callers = top.callers.as_ref().unwrap();
    assert_eq!(callers.trust_anchors, [SecretRef::Credential("root".into()), SecretRef::Env("BACKUP_ROOT".into())]);
    assert_eq!(callers.relayed_by, RelayedBy::AditEdge);
    assert_eq!(callers.headers, [CallerHeaders::XClientCert]);
    assert_eq!(callers.header_prefix, "X-Client-Runway-Cc-");
    assert_eq!(callers.allow, None);
    assert_eq!(entries.len(), 1);
    assert_eq!(inline.len(), 1);

    let api = hop(&loaded, 0);
    assert_eq!(api.mode, MutualTls::Remote);
    assert_eq!(api.present.as_ref().unwrap().source, writer);
    assert_eq!(api.expect[0].to_string(), "spiffe://example.org/ns/my-ns/sa/backend");
    assert_eq!(api.origin_trust, top.origin_trust);
    let own = api.callers.as_ref().unwrap();
    assert_eq!(own.allow.as_ref().unwrap().len(), 2);
    assert_eq!((&own.trust_anchors, &own.header_prefix), (&callers.trust_anchors, &callers.header_prefix));

    // The entry covers all hosts of the rule, so there is no choice left for requests.
    let shop = hop(&loaded, 1);
    assert_eq!(shop.expect[0].to_string(), "dns:*.my-ns.svc");
    assert_eq!(shop.callers, top.callers);
    assert_eq!(hop(&loaded, 2), Hop::default());

    let guard = &loaded.config.guards[0];
    assert_eq!(guard.listen, "0.0.0.0:8443".parse().unwrap());
    assert_eq!(guard.certificate, IdentitySource { certificate: file("/vault/secrets/guard.pem"), key: None });
    assert_eq!(guard.callers.trust_anchors, [file("/vault/secrets/ca.pem")]);
    assert_eq!(guard.callers.intermediates, callers.intermediates);
    assert_eq!(guard.callers.header_prefix, "X-Client-Runway-Cc-");
    assert_eq!(guard.callers.allow.as_ref().unwrap().len(), 1);
    assert_eq!(guard.hop.callers, None);
    assert!(!guard.hop.demands(&guard.service));
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place() {
    let yaml = "\
innerHop:
  mutualTls: allways
  privateNetwork: yes
  present: writr
  identities:
    writer: { certificate: /w.pem, kee: /w.key }
    reader: { key: /r.key }
    'a b': { certificate: '-----BEGIN PRIVATE KEY-----' }
  originTrust: []
  expect: [ 'example.com', 'dns:*.*.x', 'spiffe://example.org/*', 'sha256:00' ]
  callers:
    trustAnchor: [ /ca.pem ]
    trustAnchors: [ { vault: secret/x, key: y }, { file: /x, env: Y } ]
    intermediates:
    relayedBy: nginx
    headers: [ x-client-cert, none, xfcc, xfcc ]
    headerPrefix: X-
    allowInvalidOrMissingCert: 'false'
  rules:
    - { hostname: 'a*.b', service: 'https://10.0.*.1', presnt: writer }
    - { mutualTls: passthrough }
    - { service: 'http://x', expect: [ 'dns:x' ] }
    - { service: 'http_status:404' }
ingress:
  - { hostname: h.test, service: 'https://x', innerHop: { identities: {}, present: nobody } }
  - { hostname: i.test, service: 'https://x', innerHop: }
  - { service: 'http_status:404', innerHop: { mutualTls: optional } }
";
    assert_eq!(
        mistakes(yaml).lines().collect::<Vec<_>>(),
        [
            "t.yml:2:14: innerHop.mutualTls: must be always, remote or optional (inline: or passthrough)",
            "t.yml:3:19: innerHop.privateNetwork: must be refuse or allow",
            "t.yml:4:12: innerHop.present: is no name among `innerHop.identities`, did you mean `writer`?",
            "t.yml:6:36: innerHop.identities.writer.kee: unknown key",
            "t.yml:7:13: innerHop.identities.reader: `certificate` is missing: a PEM file with leaf, chain and key, or \
             without the key and `key` beside it",
            "t.yml:8:5: innerHop.identities.a b: the name of an identity has 1 to 64 letters, digits, `-`, `_` and `.`",
            "t.yml:8:27: innerHop.identities.a b.certificate: a secret or a certificate does not stand in the file \
             itself; name the file that holds it",
            "t.yml:9:16: innerHop.originTrust: an empty list trusts nobody; leave the key out",
            "t.yml:10:13: innerHop.expect[0]: must begin with `spiffe://`, `dns:` or `sha256:`",
            "t.yml:10:28: innerHop.expect[1]: \"*.*.x\" is no DNS name; `*.` may stand for its first label",
            "t.yml:10:41: innerHop.expect[2]: \"spiffe://example.org/*\" holds a character that no SPIFFE ID has",
            "t.yml:10:67: innerHop.expect[3]: a digest is `sha256:` and 64 hexadecimal digits",
            "t.yml:12:5: innerHop.callers.trustAnchor: unknown key, did you mean `trustAnchors`?",
            "t.yml:13:23: innerHop.callers.trustAnchors[0].vault: not supported by this version",
            "t.yml:13:50: innerHop.callers.trustAnchors[1]: must be one of `file` (with or without `key`), `env` and \
             `credential`",
            "t.yml:14:5: innerHop.callers.intermediates: there is nothing here; leave the key out or give it a value",
            "t.yml:15:16: innerHop.callers.relayedBy: must be adit-edge, cloudflare, rfc9440 or xfcc",
            "t.yml:16:31: innerHop.callers.headers[1]: must be x-client-cert, rfc9440 or xfcc; `none` stands alone",
            "t.yml:16:43: innerHop.callers.headers[3]: is already in the list",
            "t.yml:17:19: innerHop.callers.headerPrefix: is too wide: headers that begin with it are removed from \
             requests, and x-amzn-trace-id does",
            "t.yml:18:32: innerHop.callers.allowInvalidOrMissingCert: this is a text because of its quotes; write true \
             or false without",
            "t.yml:20:19: innerHop.rules[0].hostname: `*` may only stand at the start and before a dot, as in \
             \"*.example.com\"",
            "t.yml:20:36: innerHop.rules[0].service: an address is matched whole: `*` cannot stand for a part of it",
            "t.yml:20:56: innerHop.rules[0].presnt: unknown key, did you mean `present`?",
            "t.yml:21:20: innerHop.rules[1].mutualTls: `passthrough` is for tcp, ssh, rdp and smb; the entry needs a \
             `service` of that kind",
            "t.yml:22:30: innerHop.rules[2].expect: has no effect on http://x, to which adit speaks no TLS",
            "t.yml:23:18: innerHop.rules[3].service: has no effect on http_status:404, which adit answers itself",
            "t.yml:25:59: ingress[0].innerHop.identities: unknown key",
            "t.yml:25:84: ingress[0].innerHop.present: is no name among `innerHop.identities`",
            "t.yml:26:47: ingress[1].innerHop: there is nothing here; leave the key out or give it a value",
            "t.yml:27:35: ingress[2].innerHop: has no effect on http_status:404, which adit answers itself",
        ]
    );
}

#[test]
fn what_may_be_allowed_is_read_and_what_could_never_match_is_refused() {
    let yaml = |list: &str| {
        format!(
            "innerHop: {{ callers: {{ trustAnchors: [/ca], allow: {list} }} }}\n\
             ingress: [ {{ service: 'http://localhost' }} ]"
        )
    };
    let digest = format!("sha256:{}", "0a".repeat(32));
    let full = format!(
        "[ {{ id: 'spiffe://example.org/ns/*/sa/a', dns: '*.example.org', fingerprint: '{digest}', issuer: '{digest}', \
         methods: [GET, PURGE], paths: [/v1, '/a b/'] }}, {{ methods: [GET] }} ]"
    );
    let loaded = loaded(&yaml(&full));
    let callers = hop(&loaded, 0).callers.unwrap();
    let [first, second] = callers.allow.as_deref().unwrap() else { panic!("{callers:?}") };
    assert_eq!(first.id.as_ref().unwrap().as_str(), "spiffe://example.org/ns/*/sa/a");
    assert_eq!(first.dns.as_ref().unwrap().as_str(), "*.example.org");
    assert_eq!((first.fingerprint, first.issuer), (Some(digest.parse().unwrap()), Some(digest.parse().unwrap())));
    assert_eq!(first.methods.as_ref().unwrap().len(), 2);
    assert_eq!(first.paths.as_ref().unwrap(), &["/v1", "/a b/"]);
    assert!(second.id.is_none() && second.methods.is_some());
    assert_eq!(hop(&self::loaded(&yaml("[]")), 0).callers.as_ref().unwrap().allow, Some(Vec::new()));
    for (list, wanted) in [
        ("", "allow: there is nothing here"),
        ("{ id: 'spiffe://a/b' }", "allow: must be a list"),
        ("[ {} ]", "allow[0]: says nothing, so that it would allow everything"),
        ("[ ~ ]", "allow[0]: there is nothing here"),
        ("[ { id: 'spiffe://*/a' } ]", "allow[0].id: "),
        ("[ { id: } ]", "allow[0].id: there is nothing here"),
        ("[ { idd: 'spiffe://a/b' } ]", "allow[0].idd: unknown key"),
        ("[ { dns: 'a..b' } ]", "allow[0].dns: "),
        ("[ { fingerprint: 'ab:cd' } ]", "allow[0].fingerprint: a digest is"),
        ("[ { issuer: 'sha1:00' } ]", "allow[0].issuer: a digest is"),
        ("[ { methods: [] } ]", "allow[0].methods: an empty list matches nothing"),
        ("[ { methods: [get] } ]", "allow[0].methods[0]: methods are told apart by letter case"),
        ("[ { methods: ['G T'] } ]", "allow[0].methods[0]: is no method"),
        ("[ { paths: [] } ]", "allow[0].paths: an empty list matches nothing"),
        ("[ { paths: [v1] } ]", "allow[0].paths[0]: is no beginning of a path"),
        ("[ { paths: [/a, /a/../b] } ]", "allow[0].paths[1]: is no beginning of a path"),
        ("[ { paths: ['/a%20b'] } ]", "allow[0].paths[0]: is no beginning of a path"),
        ("[ { paths: [//a] } ]", "allow[0].paths[0]: is no beginning of a path"),
    ] {
        let refused = mistakes(&yaml(list));
        assert!(refused.contains(&format!("innerHop.callers.{wanted}")), "{list}: {refused}");
        assert_eq!(refused.lines().count(), 1, "{list}: {refused}");
    }
}

#[test]
fn a_list_of_callers_needs_somebody_who_can_be_known() {
    let alone = "t.yml:1:34: innerHop.callers.allow: `allow` needs `trustAnchors` or `allowlisted`";
    assert!(
        mistakes("innerHop: { callers: { allow: [ { id: 'spiffe://a/b' } ] } }").contains(&alone.replace("34", "31"))
    );
    for (key, ok) in [("trustAnchors: [/ca]", true), ("allowlisted: [/leaf]", true), ("trustAnchors: []", false)] {
        let yaml = format!("innerHop: {{ callers: {{ {key}, allow: [] }} }}");
        assert_eq!(read(&yaml).is_ok(), ok, "{yaml}");
    }
    // What is inherited counts, and what is taken away does not.
    let inline = |callers: &str| {
        format!(
            "innerHop: {{ callers: {{ trustAnchors: [/ca] }} }}\n\
             ingress: [ {{ service: 'http://localhost', innerHop: {{ callers: {callers} }} }} ]"
        )
    };
    assert!(read(&inline("{ allow: [] }")).is_ok());
    let refused = mistakes(&inline("{ allow: [], trustAnchors: [] }"));
    assert!(refused.contains("ingress[0].innerHop.callers.allow: `allow` needs"), "{refused}");
    for (key, wanted) in [("crls", "crls"), ("intermediates", "intermediates")] {
        let refused = mistakes(&inline(&format!("{{ trustAnchors: [], allowlisted: [/a], {key}: [/x] }}")));
        assert!(refused.contains(&format!("{wanted}: has no effect without `trustAnchors`")), "{refused}");
    }
    let refused = mistakes(&inline("{ headers: none, headerPrefix: X-Caller- }"));
    assert!(refused.contains("headerPrefix: has no effect without `headers: x-client-cert`"), "{refused}");
}

#[test]
fn a_prefix_of_headers_is_the_beginning_of_a_name_and_takes_in_nothing_else() {
    let yaml = |prefix: &str| format!("innerHop: {{ callers: {{ trustAnchors: [/ca], headerPrefix: '{prefix}' }} }}");
    for prefix in ["X-Client-Runway-Cc-", "Mtls-", "x-peer-"] {
        assert!(read(&yaml(prefix)).is_ok(), "{prefix}");
    }
    for prefix in ["", "-", "X-Client-Cert", "X Client-", "X-\u{e9}-", "X_Client_Cert-", "X-", "Cf-", "Client-", "sec-"]
    {
        assert!(mistakes(&yaml(prefix)).contains("innerHop.callers.headerPrefix: "), "{prefix}");
    }
}

/// Keys of innerHop as the file has them, over and under each other: (top, inline, what holds).
#[test]
fn what_is_not_said_is_inherited_key_by_key() {
    let yaml = |top: &str, inline: &str| {
        let top = format!(
            "innerHop: {{ identities: {{ default: {{ certificate: /d }}, w: {{ certificate: /w }} }}, {top} }}\n"
        );
        let inline = if inline.is_empty() { String::new() } else { format!(", innerHop: {{ {inline} }}") };
        format!("{top}ingress: [ {{ service: 'https://x'{inline} }} ]")
    };
    let held = |top: &str, inline: &str| hop(&loaded(&yaml(top, inline)), 0);
    let name = |hop: &Hop| hop.present.as_ref().map(|identity| identity.name.clone());

    assert_eq!(held("", "").mode, MutualTls::Remote);
    assert_eq!(name(&held("", "")).as_deref(), Some("default"));
    for (top, inline, mode) in [
        ("mutualTls: always", "", MutualTls::Always),
        ("mutualTls: optional", "", MutualTls::Optional),
        ("mutualTls: optional", "present: w", MutualTls::Optional),
        ("mutualTls: optional", "mutualTls: always", MutualTls::Always),
        ("", "mutualTls: optional", MutualTls::Optional),
    ] {
        assert_eq!(held(top, inline).mode, mode, "{top} / {inline}");
    }
    for (top, inline, present) in [
        ("present: w", "", "w"),
        ("", "present: w", "w"),
        ("present: w", "present: default", "default"),
        ("present: w", "mutualTls: always", "w"),
    ] {
        assert_eq!(name(&held(top, inline)).as_deref(), Some(present), "{top} / {inline}");
    }
    for (top, inline, expected) in [
        ("expect: ['dns:a']", "", vec!["dns:a"]),
        ("expect: ['dns:a']", "expect: ['dns:b', 'dns:c']", vec!["dns:b", "dns:c"]),
        ("expect: ['dns:a']", "expect: []", vec![]),
        ("", "expect: ['dns:b']", vec!["dns:b"]),
    ] {
        let hop = held(top, inline);
        assert_eq!(hop.expect.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{top} / {inline}");
    }
    assert_eq!(held("", "").origin_trust, None);
    assert_eq!(held("originTrust: [/a]", "").origin_trust, Some(vec![file("/a")]));
    assert_eq!(held("originTrust: [/a]", "originTrust: [/b, /c]").origin_trust, Some(vec![file("/b"), file("/c")]));
    assert_eq!(held("", "").callers, None);

    // Each key of callers, set at the top, and set again on the rule.
    let keys = [
        ("trustAnchors: [/t]", "trustAnchors: [/t2]"),
        ("intermediates: [/i]", "intermediates: [/i2]"),
        ("allowlisted: [/a]", "allowlisted: [/a2]"),
        ("crls: [/c]", "crls: [/c2]"),
        ("allowInvalidOrMissingCert: true", "allowInvalidOrMissingCert: false"),
        ("relayedBy: xfcc", "relayedBy: cloudflare"),
        ("headers: [x-client-cert, rfc9440]", "headers: [xfcc, x-client-cert]"),
        ("headerPrefix: X-One-", "headerPrefix: X-Two-"),
        ("allow: []", "allow: [ { dns: a } ]"),
    ];
    let all =
        |pick: fn(&(&'static str, &'static str)) -> &'static str| keys.iter().map(pick).collect::<Vec<_>>().join(", ");
    let (firsts, seconds) = (all(|key| key.0), all(|key| key.1));
    let callers = |top: &str, inline: &str| {
        let inline = if inline.is_empty() { String::new() } else { format!("callers: {{ {inline} }}") };
        held(&format!("callers: {{ {top} }}"), &inline).callers.unwrap()
    };
    let (first, second) = (callers(&firsts, ""), callers(&firsts, &seconds));
    assert_eq!(*second, *callers(&seconds, ""));
    for (_, inline) in keys {
        let mixed = callers(&firsts, inline);
        assert_ne!(*mixed, *first, "{inline} is not seen");
        let mut back = (*mixed).clone();
        // Whatever was not said on the rule is the top's: putting back the one key gives the top again.
        match inline.split(':').next().unwrap() {
            "trustAnchors" => back.trust_anchors = first.trust_anchors.clone(),
            "intermediates" => back.intermediates = first.intermediates.clone(),
            "allowlisted" => back.allowlisted = first.allowlisted.clone(),
            "crls" => back.crls = first.crls.clone(),
            "allowInvalidOrMissingCert" => back.allow_invalid_or_missing = first.allow_invalid_or_missing,
            "relayedBy" => back.relayed_by = first.relayed_by,
            "headers" => back.headers = first.headers.clone(),
            "headerPrefix" => back.header_prefix = first.header_prefix.clone(),
            _ => back.allow = first.allow.clone(),
        }
        assert_eq!(back, *first, "{inline} changes another key");
    }
    // Entries inherit in the same way; inline takes the place of a matching entry whole.
    let yaml = "\
innerHop: { mutualTls: optional, expect: ['dns:top'], rules: [ { service: 'https://x', mutualTls: remote, originTrust: [/e] } ] }
ingress:
  - { hostname: a.test, service: 'https://x', innerHop: { mutualTls: optional } }
  - { hostname: b.test, service: 'https://y' }
  - { service: http_status:404 }
";
    let loaded = loaded(yaml);
    let inline = hop(&loaded, 0);
    assert_eq!((inline.mode, inline.origin_trust), (MutualTls::Optional, None));
    let entry = &loaded.config.inner_hop.entries[0].hop;
    assert_eq!((entry.mode, entry.expect.len(), entry.origin_trust.is_some()), (MutualTls::Remote, 1, true));
    assert_eq!(hop(&loaded, 1), **loaded.config.inner_hop.top.as_ref().unwrap());
}

#[test]
fn without_a_section_at_the_top_only_the_inline_ones_hold() {
    let yaml = "ingress: [ { hostname: a.test, service: 'http://127.0.0.1', innerHop: {} }, { service: 'http://x' } ]";
    let loaded = loaded(yaml);
    assert_eq!(hop(&loaded, 0).mode, MutualTls::Remote);
    assert_eq!(hop(&loaded, 1), Hop::default());
    assert!(loaded.config.inner_hop.top.is_none() && loaded.config.inner_hop.strips);
    assert!(mistakes(&yaml.replace("127.0.0.1", "x")).contains("ingress[0].service: `mutualTls: remote` demands TLS"));
    let plain = self::loaded("ingress: [ { service: 'http://x' } ]");
    assert!(!plain.config.inner_hop.strips);
    assert_eq!(*plain.config.inner_hop, InnerHop::default());
}

#[test]
fn a_service_that_cannot_be_held_to_its_hop_is_refused_where_it_stands() {
    let yaml = |top: &str, service: &str, more: &str| {
        format!("innerHop: {{ {top} }}\ningress:\n  - service: {service}\n{more}")
    };
    let identity = "identities: { default: { certificate: /d } }";
    let unverified = "    originRequest: { noTLSVerify: true }\n";
    let passthrough = "    innerHop: { mutualTls: passthrough }\n";
    let cases: [(&str, &str, &str, Option<&str>); 36] = [
        (
            "",
            "http://x",
            "",
            Some("`mutualTls: remote` demands TLS with a certificate of both sides, and http://x has"),
        ),
        ("", "h2c://x", "", Some("and h2c://x has none")),
        ("", "https://x", "", Some("`mutualTls: remote` demands that adit presents a certificate to https://x")),
        (identity, "https://x", "", None),
        (identity, "https://x", unverified, Some("demands that https://x is verified, and `noTLSVerify` forbids it")),
        ("mutualTls: optional", "https://x", unverified, None),
        ("", "https://127.0.0.1", unverified, None),
        ("", "http://localhost:8080", "", None),
        ("", "http://LOCALHOST.", "", None),
        ("", "http://127.9.9.9", "", None),
        ("", "http://[::1]:80", "", None),
        ("", "http://[::ffff:127.0.0.1]", "", Some("demands TLS")),
        ("", "http://127.1", "", Some("demands TLS")),
        ("", "http://localhost.localdomain", "", Some("demands TLS")),
        ("", "http://0.0.0.0", "", Some("demands TLS")),
        ("", "unix:/s", "", None),
        ("", "h2c://localhost", "", None),
        ("", "tcp://x:1", "", Some("carries no TLS of adit's; if its other end does the TLS, say so on the rule")),
        ("", "ssh://localhost", "", None),
        ("", "rdp://x", passthrough, None),
        ("", "smb://x", passthrough, None),
        ("mutualTls: always", "tcp://x:1", passthrough, None),
        ("mutualTls: always", "tcp://localhost:1", "", Some("carries no TLS")),
        ("mutualTls: always", "http://localhost", "", Some("`mutualTls: always` demands TLS")),
        ("mutualTls: always", "unix:/s", "", Some("it takes https:// or unix+tls:")),
        ("mutualTls: always", "unix+tls:/s", "", Some("presents a certificate to unix+tls:/s")),
        ("mutualTls: always", "http_status:204", "", None),
        ("mutualTls: always", "hello_world", "", None),
        ("", "bastion", "", Some("refuses bastion, which leads wherever the visitor says")),
        ("", "socks-proxy", "", Some("`innerHop.privateNetwork: allow` opens it")),
        ("privateNetwork: allow, mutualTls: always", "socks-proxy", "", None),
        ("privateNetwork: allow", "bastion", "", None),
        ("mutualTls: optional", "bastion", "", None),
        ("", "bastion", passthrough, Some("`innerHop.privateNetwork: allow` opens it, not `passthrough`")),
        ("", "https://x", passthrough, Some("carry no TLS of adit's; not for https://x")),
        ("", "http://localhost", "    originRequest: { bastionMode: true }\n", Some("refuses bastion")),
    ];
    for (top, service, more, refused) in cases {
        let yaml = yaml(top, service, more);
        match refused {
            None => drop(loaded(&yaml)),
            Some(wanted) => {
                let refused = mistakes(&yaml);
                assert!(refused.starts_with("t.yml:3:14: ingress[0].service: "), "{yaml}{refused}");
                assert!(refused.contains(wanted) && refused.lines().count() == 1, "{yaml}{refused}");
            }
        }
    }
    // The one service of the flags stands under the file's word, too.
    let flags = Flags::default().with("url", "http://x");
    let refused = parse_file("t.yml", "innerHop: {}", &flags, |_| None).unwrap_err().to_string();
    assert!(refused.contains("`mutualTls: remote` demands TLS"), "{refused}");
    let refused = mistakes("innerHop: { mutualTls: passthrough }");
    assert!(refused.starts_with("t.yml:1:24: innerHop.mutualTls: `passthrough` is said of one service"), "{refused}");
}

#[test]
fn what_an_inline_key_cannot_do_on_its_service_is_an_error() {
    let yaml = |service: &str, inline: &str, more: &str| {
        format!(
            "innerHop: {{ mutualTls: optional, identities: {{ default: {{ certificate: /d }} }}, originTrust: [/t] }}\n\
             ingress:\n  - service: {service}\n    innerHop: {{ {inline} }}\n{more}"
        )
    };
    for key in ["present: default", "expect: ['dns:x']", "originTrust: [/o]"] {
        let name = key.split(':').next().unwrap();
        for service in ["http://x", "h2c://x", "unix:/s", "tcp://x:1", "bastion", "socks-proxy"] {
            let refused = mistakes(&yaml(service, key, ""));
            assert!(
                refused.starts_with("t.yml:4:")
                    && refused.contains(&format!(": ingress[0].innerHop.{name}: has no effect on ")),
                "{refused}"
            );
        }
        for service in ["https://x", "unix+tls:/s"] {
            loaded(&yaml(service, key, ""));
        }
    }
    let unverified = "    originRequest: { noTLSVerify: true }\n";
    let refused = mistakes(&yaml("https://x", "originTrust: [/o]", unverified));
    assert!(refused.contains("originTrust: has no effect beside `noTLSVerify`"), "{refused}");
    let refused = mistakes(&yaml("https://x", "expect: ['dns:x']", unverified));
    assert!(
        refused.contains("`expect` has no effect on https://x, which `noTLSVerify` leaves unverified"),
        "{refused}"
    );
    // What is inherited is not said of this service.
    loaded(&yaml("http://x", "callers: { trustAnchors: [/c] }", ""));
    let pool = loaded(&yaml("https://x", "present: default", "    originRequest: { caPool: /p }\n")).warnings;
    assert!(pool[0].to_string().contains("caPool: has no effect: `originTrust` takes its place"), "{pool:?}");
}
