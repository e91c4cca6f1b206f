//! Reading a file: where mistakes stand, what is a mistake and what a warning, what cannot hurt.

use adit::config::{
    Allowlist, Flags, Loaded, Mistakes, RemoteConfigMode, SecretSource, Service, Source, load, parse_file,
};
use proptest::prelude::*;

fn read(yaml: &str) -> Result<Loaded, Mistakes> {
    parse_file("t.yml", yaml, &Flags::default(), |_| None)
}

fn mistakes(yaml: &str) -> String {
    read(yaml).expect_err(yaml).to_string()
}

fn warnings(yaml: &str) -> String {
    let loaded = read(yaml).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    loaded.warnings.iter().map(|warning| format!("{warning}\n")).collect()
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_places() {
    let yaml = "\
protocol: quick
retries: many
grace-period: 30
ingress:
  - hostname: a.com:80
    service: htpp://localhost
    originRequest:
      noTlsVerify: true
  - hostname: b.com
    path: '('
    service: http://localhost/x
";
    assert_eq!(
        mistakes(yaml).lines().collect::<Vec<_>>(),
        [
            "t.yml:1:11: protocol: must be auto, quic or http2",
            "t.yml:2:10: retries: must be a whole number, this is a text",
            "t.yml:3:15: grace-period: a duration needs a unit: 30s, 1m30s, 250ms",
            "t.yml:5:15: ingress[0].hostname: a host name has no port and no scheme; rules match the name alone",
            "t.yml:6:14: ingress[0].service: unknown scheme `htpp`; there are http, https, h2c, ws, wss, tcp, ssh, rdp, smb, unix: and unix+tls:",
            "t.yml:8:7: ingress[0].originRequest.noTlsVerify: unknown key, did you mean `noTLSVerify`?",
            "t.yml:10:11: ingress[1].path: not a regular expression: unclosed group",
            "t.yml:11:14: ingress[1].service: a service has no path, not even `/`: the path of the request is passed on",
        ]
    );
}

#[test]
fn a_quoted_true_is_text_not_a_boolean() {
    let rule = "ingress: [{service: 'https://x', originRequest: {noTLSVerify: VALUE}}]";
    for (value, wanted) in [("true", true), ("yes", true), ("off", false), ("False", false)] {
        let loaded = read(&rule.replace("VALUE", value)).unwrap();
        assert_eq!(loaded.config.ingress.unwrap().rules[0].origin.no_tls_verify, wanted, "{value}");
    }
    let refused = mistakes(&rule.replace("VALUE", "\"true\""));
    assert!(refused.contains("because of its quotes"), "{refused}");
    assert!(mistakes("post-quantum: 'true'").contains("because of its quotes"));
    assert!(mistakes("retries: '5'").contains("whole number"));
}

#[test]
fn unknown_keys_are_mistakes_under_rules_and_warnings_at_the_top() {
    assert!(warnings("extraKey: 1\n").contains("t.yml:1:1: extraKey: unknown key, ignored"));
    let ingress = "ingress: [{service: 'http://x', extraKey: 1}]";
    assert!(mistakes(ingress).contains("ingress[0].extraKey: unknown key"));
    assert!(mistakes("originRequest: {extraKey: 1}").contains("originRequest.extraKey"));
    assert!(warnings("warp-routing: {extraKey: 1}").contains("warp-routing.extraKey"));
}

#[test]
fn an_unknown_key_is_shown_with_its_nearest_neighbour() {
    assert!(warnings("logLevel: debug\n").contains("did you mean `loglevel`?"));
    assert!(warnings("ingres: []\n").contains("did you mean `ingress`?"));
    assert!(warnings("Ingress: []\n").contains("did you mean `ingress`?"));
    assert!(!warnings("completely-different: 1\n").contains("did you mean"));
}

#[test]
fn a_misspelt_section_of_adits_own_is_a_mistake() {
    for (key, meant) in [
        ("inner-hop", "innerHop"),
        ("innerhop", "innerHop"),
        ("inerHop", "innerHop"),
        ("guards", "guard"),
        ("valt", "vault"),
        ("remote_config", "remoteConfig"),
        ("strict-permissions", "strictPermissions"),
        ("Limits", "limits"),
        ("egressProxi", "egressProxy"),
    ] {
        let refused = mistakes(&format!("{key}: 1\n"));
        assert!(refused.contains(&format!("did you mean `{meant}`?")), "{key}: {refused}");
    }
}

#[test]
fn lenient_turns_unknown_keys_into_warnings_but_not_adits_own() {
    let lenient = Flags::default().with("lenient", "true");
    let read = |yaml: &str| parse_file("t.yml", yaml, &lenient, |_| None);
    let yaml = "ingress: [{service: 'http://x', extraKey: 1, originRequest: {noTlsVerify: true}}]";
    let warnings = read(yaml).unwrap().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let unclear = Flags::default().with("lenient", "perhaps");
    let refused = parse_file("t.yml", yaml, &unclear, |_| None).unwrap_err();
    assert!(refused.to_string().contains("--lenient: must be true or false"));
    assert!(read("inner-hop: {}\n").is_err());
    for section in ["innerHop", "limits"] {
        assert!(read(&format!("{section}: {{extraKey: 1}}\n")).is_err(), "{section}");
    }
    assert!(read("guard: [{extraKey: 1}]\n").unwrap_err().to_string().contains("guard[0].extraKey: unknown key"));
    let inline = "ingress: [{service: 'http://localhost', innerHop: {extraKey: 1}}]";
    assert!(read(inline).unwrap_err().to_string().contains("ingress[0].innerHop.extraKey: unknown key"));
    assert!(read("token: {flie: /x}\n").is_err());
}

#[test]
fn what_comes_with_later_releases_is_refused_not_ignored() {
    for section in ["vault", "egressProxy", "strictPermissions"] {
        let refused = mistakes(&format!("{section}: {{}}\n"));
        assert!(refused.contains(&format!("{section}: not supported by this version")), "{refused}");
    }
    let refused = mistakes("innerHop: {identities: {a: {vaultPki: {mount: pki}}}, originTrust: [{vault: x, key: y}]}");
    for key in ["identities.a.vaultPki", "originTrust[0].vault"] {
        assert!(refused.contains(&format!("innerHop.{key}: not supported by this version")), "{refused}");
    }
    assert!(mistakes("token: {vault: secret/x, key: y}\n").contains("token.vault: not supported"));
}

#[test]
fn pushed_configurations_can_be_ignored() {
    assert_eq!(read("").unwrap().config.remote_config, RemoteConfigMode::Accept);
    let loaded = read("remoteConfig: ignore\n").unwrap();
    assert_eq!(loaded.config.remote_config, RemoteConfigMode::Ignore);
    let loaded = read("remoteConfig: {mode: ignore}\n").unwrap();
    assert_eq!(loaded.config.remote_config, RemoteConfigMode::Ignore);
    assert!(mistakes("remoteConfig: ignroe\n").contains("must be accept or ignore"));
}

#[test]
fn an_allowlist_says_where_pushed_rules_may_lead() {
    let loaded = read("remoteConfig:\n  mode: allowlist\n  services: ['https://*.my-ns.svc:*', 'unix:/run/app/*']\n");
    let RemoteConfigMode::Allowlist(list) = loaded.unwrap().config.remote_config else { panic!("no allowlist") };
    let allows = |service: &str| list.allows(&Service::parse(service).unwrap());
    assert!(allows("https://a.my-ns.svc:8443") && allows("unix:/run/app/a.sock") && allows("http_status:404"));
    assert!(!allows("https://my-ns.svc:8443") && !allows("http://a.my-ns.svc") && !allows("bastion"));
    // An empty list lets nothing but adit's own answers through.
    let loaded = read("remoteConfig: {mode: allowlist, services: []}\n").unwrap();
    assert!(matches!(loaded.config.remote_config, RemoteConfigMode::Allowlist(list) if list == Allowlist::default()));
    for (yaml, why) in [
        ("remoteConfig:\n", "remoteConfig: must be accept or ignore, this is nothing"),
        ("remoteConfig: ~\n", "remoteConfig: must be accept or ignore, this is nothing"),
        ("remoteConfig: allowlist\n", "t.yml:1:15: remoteConfig: an allowlist is {"),
        ("remoteConfig: {mode: allowlist}\n", "remoteConfig: an allowlist needs `services`"),
        ("remoteConfig: {mode: allowlist, services: 'http://a'}\n", "remoteConfig.services: must be a list"),
        ("remoteConfig: {mode: accept, services: []}\n", "remoteConfig.services: has no effect"),
        ("remoteConfig: {mode: allow, services: []}\n", "remoteConfig.mode: must be accept, ignore or allowlist"),
        ("remoteConfig: {services: []}\n", "remoteConfig: needs `mode`"),
        ("remoteConfig: {mode: allowlist, service: []}\n", "did you mean `services`?"),
        (
            "remoteConfig:\n  mode: allowlist\n  services:\n    - http://a\n    - 'x*://b'\n",
            "t.yml:5:7: remoteConfig.services[1]",
        ),
        ("remoteConfig:\n  mode: allowlist\n  services: [~]\n", "services[0]: this entry is empty"),
    ] {
        assert!(mistakes(yaml).contains(why), "{yaml}: {}", mistakes(yaml));
    }
    // Not even for a migration is a key of this section passed over.
    let lenient = Flags::default().with("lenient", "true");
    assert!(parse_file("t.yml", "remoteConfig: {mode: ignore, sevices: []}\n", &lenient, |_| None).is_err());
}

#[test]
fn options_without_effect_on_their_service_are_warned_about() {
    let plain = warnings("ingress: [{service: 'http://x', originRequest: {noTLSVerify: true, http2Origin: true}}]");
    assert!(plain.contains("noTLSVerify: has no effect on http://x"), "{plain}");
    assert!(plain.contains("h2c:// is HTTP/2"), "{plain}");
    assert_eq!(warnings("ingress: [{service: 'https://x', originRequest: {noTLSVerify: true}}]"), "");
    let rules = "originRequest: {ipRules: [{prefix: 10.0.0.0/8}]}";
    assert!(warnings(&format!("ingress: [{{service: 'http://x', {rules}}}]")).contains("ipRules: has no effect"));
    assert_eq!(warnings(&format!("ingress: [{{service: socks-proxy, {rules}}}]")), "");
}

#[test]
fn a_rule_that_demands_access_tokens_says_that_it_refuses_everything() {
    let yaml = "originRequest: {access: {required: true, teamName: t, audTag: [x]}}\ningress: [{service: 'http://x'}]";
    assert!(warnings(yaml).contains("every request to this rule is refused (403)"));
    let bad = "originRequest: {access: {required: true, audTag: [x]}}\ningress: [{service: 'http://x'}]";
    assert!(mistakes(bad).contains("originRequest.access: `teamName` is missing"));
}

#[test]
fn the_second_document_is_ignored_with_a_warning() {
    let yaml = "ingress: [{service: 'http://x'}]\n---\nbad: [\n";
    assert!(warnings(yaml).contains("t.yml:2:1: only the first document is read"));
}

#[test]
fn a_key_may_be_given_once() {
    let refused = mistakes("protocol: quic\nretries: 1\nprotocol: http2\n");
    assert_eq!(refused, "t.yml:3:1: protocol: this key is already there; each may be given once");
}

#[test]
fn anchors_work_and_are_bounded() {
    let yaml = "x: &o {connectTimeout: 5s}\noriginRequest: *o\ningress: [{service: 'http://x'}]";
    let rule = read(yaml).unwrap().config.ingress.unwrap().rules.remove(0);
    assert_eq!(rule.origin.connect_timeout.as_secs(), 5);
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    assert!(mistakes(&laughs).contains("aliases counted in full"));
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 1000].join(", "));
    assert!(mistakes(&long).contains("aliases counted in full"));
    assert!(read("a: &a [*a]\n").is_err());
    assert!(read("a: *nothing\n").is_err());
    assert!(mistakes("<<: {a: 1}\n").contains("merge keys"));
}

#[test]
fn deep_nesting_ends_in_a_mistake_not_in_a_crash() {
    assert!(read(&format!("a: {}", "[".repeat(100_000))).is_err());
    assert!(read(&format!("a: {}1{}", "[".repeat(100), "]".repeat(100))).is_err());
    let block: String = (0..2000).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    assert!(read(&block).is_err());
}

#[test]
fn a_file_that_is_wrong_everywhere_is_read_in_bounded_time() {
    let keys: String = (0..60_000).map(|at| format!("unknown-key-number-{at}: 1\n")).collect();
    assert!(read(&keys).unwrap().warnings.len() <= 200);
}

#[test]
fn tabs_tags_and_an_unquoted_star_are_explained() {
    assert!(mistakes("ingress:\n\t- service: x\n").contains("t.yml:2"));
    assert!(mistakes("ingress:\n- hostname: *\n  service: x\n").contains("must be quoted"));
    assert!(mistakes("a: !include x\n").contains("tags such as"));
    assert!(mistakes("- a\n").contains("a mapping of keys to values"));
    assert!(mistakes("? [a]\n: b\n").contains("a key must be a plain word"));
}

#[test]
fn a_byte_order_mark_and_an_empty_file_are_harmless() {
    assert_eq!(read("\u{feff}retries: 7\n").unwrap().config.retries, 7);
    assert_eq!(read("").unwrap().config.ingress, None);
    assert_eq!(read("# nothing\n").unwrap().config.secret, SecretSource::Missing);
    assert_eq!(read("---\n").unwrap().config.ingress, None);
}

#[test]
fn no_mistake_repeats_a_password() {
    for service in ["http://user:hush@host", "hush@localhost", "user:hush@host:80/x", "x://u:hush@h"] {
        let refused = mistakes(&format!("ingress: [{{service: '{service}'}}]"));
        assert!(!refused.contains("hush"), "{refused}");
    }
}

#[test]
fn the_examples_are_valid_and_without_warnings() {
    for (name, text) in [
        ("callers.yml", include_str!("../../config/callers.yml")),
        ("minimal.yml", include_str!("../../config/minimal.yml")),
        ("example.yml", include_str!("../../config/example.yml")),
        ("single-origin.yml", include_str!("../../config/single-origin.yml")),
    ] {
        let loaded = read(text).unwrap_or_else(|mistakes| panic!("{name}: {mistakes}"));
        assert_eq!(loaded.warnings, [], "{name}");
        assert!(loaded.config.ingress.is_some(), "{name}");
    }
}

#[test]
fn the_first_file_in_the_search_path_is_read_and_named() {
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let search = [first.path().to_owned(), second.path().to_owned()];
    std::fs::write(second.path().join("config.yaml"), "retries: 1\n").unwrap();
    let loaded = load(&Flags::default(), |_| None, &search).unwrap();
    assert_eq!(loaded.config.retries, 1);
    std::fs::write(second.path().join("config.yml"), "retries: 2\n").unwrap();
    let loaded = load(&Flags::default(), |_| None, &search).unwrap();
    assert_eq!(loaded.config.retries, 2);
    assert_eq!(loaded.file, Some(second.path().join("config.yml")));
    let named = first.path().join("other.yml");
    std::fs::write(&named, "retries: x\n").unwrap();
    let flags = Flags::default().with("config", named.to_str().unwrap());
    let refused = load(&flags, |_| None, &search).unwrap_err().to_string();
    assert!(refused.starts_with(&format!("{}:1:10: retries:", named.display())), "{refused}");
}

#[test]
fn a_named_file_that_is_not_there_is_a_mistake() {
    let flags = Flags::default().with("config", "/nonexistent/adit.yml");
    let refused = load(&flags, |_| None, &[]).unwrap_err().to_string();
    assert!(refused.starts_with("/nonexistent/adit.yml: cannot be opened"), "{refused}");
}

proptest! {
    #[test]
    fn no_yaml_like_text_makes_the_reader_panic(
        text in "(ingress|service|token|a|- |: |:\n|\n|  |\t|\\[|\\]|\\{|\\}|,|#|&a|\\*a|!t|\\||>|'|\"|%|@|\\?|~|<<|---\n|\\.\\.\\.|\u{feff}|é|0){0,40}",
    ) {
        let _ = read(&text);
        let _ = read(&format!("ingress:\n{text}"));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,80}") {
        let _ = read(&text);
    }
}

#[test]
fn what_needs_a_restart_is_named_with_what_is_running_and_without_secrets() {
    let config = |yaml: &str| read(yaml).unwrap().config;
    let secret = "c2VjcmV0LXNlY3JldA";
    let running = config(&format!("token: {secret}\nha-connections: 2\nedge: ['a:1', 'b:2']\n"));
    let live = "ingress: [{service: 'http://x'}]\nremoteConfig: ignore\nloglevel: debug\ngrace-period: 5s\n\
                tag: [a=b]\nwarp-routing: {connectTimeout: 1s}\n";
    let same = config(&format!("token: {secret}\nha-connections: 2\nedge: ['a:1', 'b:2']\n{live}"));
    assert!(running.needs_restart(&same).is_empty(), "{:?}", running.needs_restart(&same));
    let other = config("token-file: /other\nha-connections: 3\nprotocol: quic\nmetrics: 127.0.0.1:1\npidfile: /x\n");
    let keys = running.needs_restart(&other);
    let wanted = [
        "the source of the token (running with a token given in clear)",
        "protocol (running with auto)",
        "edge (running with a:1, b:2)",
        "ha-connections (running with 2)",
        "metrics (running with the default)",
        "pidfile (running with none)",
    ];
    assert_eq!(keys, wanted);
    // And back.
    assert!(other.needs_restart(&running).iter().all(|key| !key.contains(secret)));
}

#[test]
fn a_file_that_is_read_again_must_be_there_and_hold_something() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yml");
    let source = Source { flags: Flags::default(), env: |_| None, search: vec![dir.path().to_owned()] };
    // Without a file one is looked for each time.
    assert_eq!(source.reload(None).unwrap().file, None);
    std::fs::write(&file, "").unwrap();
    assert_eq!(source.load().unwrap().file.as_deref(), Some(&*file));
    assert!(source.reload(Some(&file)).unwrap_err().to_string().contains("config.yml: is empty"));
    std::fs::write(&file, "# nothing yet\n").unwrap();
    assert!(source.reload(Some(&file)).is_ok());
    std::fs::remove_file(&file).unwrap();
    assert!(source.reload(Some(&file)).unwrap_err().to_string().contains("cannot be opened"));
}
