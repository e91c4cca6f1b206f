//! `innerHop`: what is read, what is inherited, what is refused and where.

use adit::config::{
    CallerHeaders, Flags, Hop, IdentitySource, InnerHop, Loaded, Mistakes, MutualTls, RelayedBy, SecretRef, parse_file,
};

fn read(yaml: &str) -> Result<Loaded, Mistakes> {
    parse_file("t.yml", yaml, &Flags::default(), |_| None)
}

fn loaded(yaml: &str) -> Loaded {
    read(yaml).unwrap_or_else(|mistakes| panic!("{mistakes}\n{yaml}"))
}

fn mistakes(yaml: &str) -> String {
    read(yaml).expect_err(yaml).to_string()
}

/// The hop of a rule that has one for every host.
fn hop(loaded: &Loaded, rule: usize) -> Hop {
    let hops = &loaded.config.ingress.as_ref().unwrap().rules[rule].hops;
    assert!(hops.choices.is_empty(), "{hops:?}");
    (**hops.otherwise.as_ref().unwrap()).clone()
}

fn file(path: &str) -> SecretRef {
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
    let InnerHop { strips, top, entries, inline, identities, private_network } = &*loaded.config.inner_hop;
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
