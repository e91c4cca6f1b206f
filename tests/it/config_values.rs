//! Services, host names, durations, and the answer to "which rule is it?".

use std::path::PathBuf;
use std::time::Duration;

use adit::config::{Flags, Hostname, HostnameError, Ingress, Service, ServiceError, TcpScheme, explain, parse_file};

fn http(tls: bool, h2c: bool, host: &str, port: u16) -> Service {
    Service::Http { tls, h2c, host: host.to_owned(), port }
}

fn tcp(scheme: TcpScheme, host: &str, port: u16) -> Service {
    Service::Tcp { scheme, host: host.to_owned(), port }
}

fn ingress(yaml: &str) -> Ingress {
    let loaded = parse_file("t.yml", yaml, &Flags::default(), |_| None);
    loaded.unwrap_or_else(|mistakes| panic!("{mistakes}")).config.ingress.unwrap()
}

#[test]
fn every_kind_of_service_is_read_with_its_default_port() {
    for (text, wanted) in [
        ("http://a", http(false, false, "a", 80)),
        ("https://a", http(true, false, "a", 443)),
        ("ws://a", http(false, false, "a", 80)),
        ("wss://a:1", http(true, false, "a", 1)),
        ("h2c://a", http(false, true, "a", 80)),
        ("HTTPS://A.Example.COM", http(true, false, "a.example.com", 443)),
        ("http://[::1]:81", http(false, false, "::1", 81)),
        ("http://bücher.example", http(false, false, "xn--bcher-kva.example", 80)),
        ("tcp://a", tcp(TcpScheme::Tcp, "a", 7864)),
        ("ssh://a", tcp(TcpScheme::Ssh, "a", 22)),
        ("rdp://a", tcp(TcpScheme::Rdp, "a", 3389)),
        ("smb://a", tcp(TcpScheme::Smb, "a", 445)),
        ("unix:/run/x.sock", Service::Unix { path: PathBuf::from("/run/x.sock"), tls: false }),
        ("unix+tls:x", Service::Unix { path: PathBuf::from("x"), tls: true }),
        ("http_status:404", Service::Status(404)),
        ("http_status:999", Service::Status(999)),
        ("hello-world", Service::HelloWorld),
        ("bastion", Service::Bastion),
        ("socks-proxy", Service::SocksProxy),
    ] {
        assert_eq!(Service::parse(text), Ok(wanted), "{text}");
    }
}

#[test]
fn what_cannot_be_a_service_is_refused_for_its_own_reason() {
    for (text, wanted) in [
        ("", ServiceError::Missing),
        ("http://a/", ServiceError::Path),
        ("http://a/b", ServiceError::Path),
        ("http://a?b", ServiceError::Query),
        ("http://a#b", ServiceError::Fragment),
        ("http://u@a", ServiceError::UserInformation),
        ("http://u:p@a", ServiceError::UserInformation),
        ("http://a:0", ServiceError::Port),
        ("http://a:65536", ServiceError::Port),
        ("http://a:", ServiceError::Port),
        ("http://a:x", ServiceError::Port),
        ("http://[::1]x", ServiceError::Port),
        ("unix:", ServiceError::EmptySocket),
        ("http_status:+404", ServiceError::StatusNotNumber),
        ("http_status:103", ServiceError::StatusRange("103".to_owned())),
        ("htpp://a", ServiceError::UnknownScheme { scheme: "htpp".to_owned() }),
    ] {
        assert_eq!(Service::parse(text), Err(wanted), "{text}");
    }
    assert!(matches!(Service::parse("http://[x]"), Err(ServiceError::Host(_))));
}

#[test]
fn a_missing_scheme_is_answered_with_the_right_one() {
    let hint = |text: &str| Service::parse(text).unwrap_err().to_string();
    assert!(hint("localhost:8000").ends_with("http://localhost:8000"));
    assert!(hint("//localhost:80").ends_with("http://localhost:80"));
}

#[test]
fn services_are_shown_without_their_default_port() {
    for text in ["http://a", "https://a:8443", "h2c://[::1]", "tcp://a:7864", "unix+tls:/x", "http_status:503"] {
        assert_eq!(Service::parse(text).unwrap().to_string(), text);
    }
    assert_eq!(Service::parse("wss://a:443").unwrap().to_string(), "https://a");
}

#[test]
fn rules_keep_the_configured_spelling() {
    let ingress = ingress("ingress: [{hostname: a.com, service: 'wss://A:443'}, {service: hello-world}]");
    assert_eq!(ingress.rules[0].spelling, "wss://A:443");
    assert_eq!(ingress.rules[1].spelling, "hello_world");
}

#[test]
fn host_names_are_checked_by_syntax() {
    assert_eq!(Hostname::parse("*"), Ok(None));
    for fine in ["a.com", "*.a.com", "a_b.com", "-a.com", "10.0.0.1", "::1", "[::1]", "a.com.", "*.bücher.example"] {
        assert!(Hostname::parse(fine).is_ok(), "{fine}");
    }
    for (text, wanted) in [
        ("*a.com", HostnameError::Wildcard),
        ("a.*.com", HostnameError::Wildcard),
        ("*.", HostnameError::EmptyLabel),
        ("a b.com", HostnameError::Character(' ')),
        ("a/b", HostnameError::Character('/')),
        ("a..b", HostnameError::EmptyLabel),
        ("[::1]:80", HostnameError::Port),
        ("*.a.com:80", HostnameError::Port),
    ] {
        assert_eq!(Hostname::parse(text), Err(wanted), "{text}");
    }
    assert_eq!(Hostname::parse(&"a".repeat(64)), Err(HostnameError::LabelTooLong));
    assert_eq!(Hostname::parse(&"a.".repeat(150)), Err(HostnameError::TooLong));
}

#[test]
fn durations_are_written_as_in_go() {
    let read = |text: &str| {
        let yaml = format!("rpc-timeout: {text}\n");
        parse_file("t.yml", &yaml, &Flags::default(), |_| None).map(|loaded| loaded.config.rpc_timeout)
    };
    for (text, millis) in [
        ("30s", 30_000),
        ("1m30.5s", 90_500),
        ("1h", 3_600_000),
        ("250ms", 250),
        ("1.5s", 1500),
        (".5s", 500),
        ("0", 0),
        ("0s", 0),
        ("1000000us", 1000),
        ("1000000µs", 1000),
        ("+2s", 2000),
    ] {
        assert_eq!(read(text).unwrap(), Duration::from_millis(millis), "{text}");
    }
    for wrong in ["30", "\"30\"", "1d", "-1s", "s", "1.2.3s", "1s2", "99999999h", "''", "[1s]"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn bastion_mode_takes_the_place_of_what_would_be_dialled() {
    let ingress = ingress(
        "originRequest: {bastionMode: true}\ningress: [{hostname: a.com, service: 'http://x'}, {hostname: b.com, service: 'unix:/x'}, {hostname: c.com, service: 'tcp://x', originRequest: {bastionMode: false}}, {service: http_status:404}]",
    );
    let services: Vec<_> = ingress.rules.iter().map(|rule| rule.spelling.as_str()).collect();
    assert_eq!(services, ["bastion", "unix:/x", "tcp://x:7864", "http_status:404"]);
}

#[test]
fn a_url_is_explained_by_the_rule_it_meets() {
    let ingress =
        ingress("ingress: [{hostname: a.example.com, path: ^/api, service: 'http://x'}, {service: http_status:404}]");
    assert_eq!(
        explain(&ingress, "https://A.example.com:8443/api/x?y#z").unwrap(),
        "Matched rule #0\n\thostname: a.example.com\n\tpath: ^/api\n\tservice: http://x\n"
    );
    assert_eq!(explain(&ingress, "https://a.example.com").unwrap(), "Matched rule #1\n\tservice: http_status:404\n");
}

#[test]
fn a_url_without_a_scheme_is_refused_with_the_right_one() {
    let ingress = ingress("ingress: [{service: http_status:404}]");
    for url in ["a.example.com/api", "a.example.com:80/api"] {
        let error = explain(&ingress, url).unwrap_err().to_string();
        assert!(error.ends_with(&format!("https://{url}")), "{error}");
    }
    assert!(explain(&ingress, "https://").is_err());
    assert!(explain(&ingress, "https:///x").is_err());
}

#[test]
fn blocks_of_one_family_do_not_cover_the_other() {
    let yaml = "ingress:\n- service: socks-proxy\n  originRequest:\n    ipRules: [{prefix: 0.0.0.0/0, allow: true}, {prefix: '::ffff:10.0.0.0/104', allow: false}]\n";
    let ingress = ingress(yaml);
    let rules = &ingress.rules[0].origin.ip_rules;
    assert!(rules.decide("1.2.3.4".parse().unwrap(), 1));
    assert!(rules.decide("::ffff:1.2.3.4".parse().unwrap(), 1));
    assert!(!rules.decide("2001::1".parse().unwrap(), 1));
    assert!(!adit::config::IpRules::default().decide("127.0.0.1".parse().unwrap(), 1));
}
