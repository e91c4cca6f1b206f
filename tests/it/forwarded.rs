//! What a service hears of the visitor's address, through the whole tunnel.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Answer, Lab, Over, mirror, over_both, rule};

const FORGED: &str = "X-Forwarded-For: 192.0.2.1\r\nx_forwarded_for: 192.0.2.1\r\nX-Forwarded-Host: forged\r\n\
                      X-Forwarded-Proto: gopher\r\nX-Forwarded-Port: 1\r\nForwarded: for=192.0.2.1\r\n\
                      X-Real-IP: 192.0.2.1\r\nX-Forwarded-Prefix: /forged\r\n";

/// What the service sees of the family when a visitor sends [`FORGED`].
async fn seen(over: Over, keys: &str) -> Vec<String> {
    let yaml = format!("{}    {keys}\n", rule(format!("http://{}", mirror().await)));
    let lab = Lab::start(over, &yaml).await;
    let head = lab.send("GET", "/", FORGED, b"").await.text();
    lab.finish().await;
    of_the_family(&head)
}

fn of_the_family(head: &str) -> Vec<String> {
    let lines = head.lines().map(str::to_lowercase).filter(|line| {
        ["forwarded", "x-forwarded", "x_forwarded", "x-real-ip"].iter().any(|name| line.starts_with(name))
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}

async fn keep(over: Over) {
    let kept = seen(over, "forwarded: keep").await;
    assert_eq!(kept, seen(over, "path: ''").await, "keep is the default");
    for line in [
        "forwarded: for=192.0.2.1",
        "x-forwarded-host: forged",
        "x-forwarded-port: 1",
        "x-forwarded-prefix: /forged",
        "x-forwarded-proto: http",
        "x-real-ip: 192.0.2.1",
        "x_forwarded_for: 192.0.2.1",
    ] {
        assert!(kept.contains(&line.to_owned()), "{line} is not in {kept:?}");
    }
}

async fn strip(over: Over) {
    assert_eq!(seen(over, "forwarded: strip").await, [""; 0]);
    let with_host = "forwarded: strip\n    originRequest: { httpHostHeader: inner.test }";
    assert_eq!(seen(over, with_host).await, [""; 0]);
}

async fn append(over: Over) {
    let seen = seen(over, "forwarded: append\n    originRequest: { httpHostHeader: inner.test }").await;
    for line in [
        "forwarded: for=192.0.2.1, for=127.0.0.1;host=web.test;proto=http",
        "x-forwarded-for: 192.0.2.1, 127.0.0.1",
        "x-forwarded-host: web.test",
        "x-forwarded-proto: http",
    ] {
        assert!(seen.contains(&line.to_owned()), "{line} is not in {seen:?}");
    }
}

async fn replace(over: Over) {
    let expected = [
        "forwarded: for=127.0.0.1;host=web.test;proto=http",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: web.test",
        "x-forwarded-port: 80",
        "x-forwarded-proto: http",
        "x-real-ip: 127.0.0.1",
    ];
    assert_eq!(seen(over, "forwarded: replace").await, expected);
    let with_host = "forwarded: replace\n    originRequest: { httpHostHeader: inner.test }";
    assert_eq!(seen(over, with_host).await, expected);
}

async fn replace_over_tls(over: Over) {
    let yaml = format!("{}    forwarded: replace\n", rule(format!("http://{}", mirror().await)));
    let lab = Lab::start(over, &yaml).await;
    let mut visitor = lab.tls(&["http/1.1"]).await;
    let request = format!("GET / HTTP/1.1\r\nHost: web.test:8443\r\nConnection: close\r\n{FORGED}\r\n");
    visitor.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    visitor.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(
        of_the_family(&Answer::parse(&bytes).text()),
        [
            "forwarded: for=127.0.0.1;host=\"web.test:8443\";proto=https",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: web.test:8443",
            "x-forwarded-port: 8443",
            "x-forwarded-proto: https",
            "x-real-ip: 127.0.0.1",
        ]
    );
    lab.finish().await;
}

over_both! {
    keep_passes_on_what_visitor_and_edge_said => keep,
    strip_takes_the_whole_family_away => strip,
    append_adds_the_visitor_to_what_came => append,
    replace_says_only_what_the_edge_knows => replace,
    replace_knows_scheme_and_port_of_a_visitor_over_tls => replace_over_tls,
}
