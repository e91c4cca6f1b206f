//! Requests and answers through the whole tunnel.

use std::net::SocketAddr;

use crate::harness::{Lab, Over, canned, mirror, over_both, rule};

fn http(service: SocketAddr) -> String {
    format!("http://{service}")
}

async fn get_is_served(over: Over) {
    let lab = Lab::start(over, &rule(http(mirror().await))).await;
    let answer = lab.get("/a//b/../c;d?x=%zz&y").await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().starts_with("GET /a//b/../c;d?x=%zz&y HTTP/1.1\r\n"), "{}", answer.text());
    lab.finish().await;
}

async fn forged_tags_are_replaced(over: Over) {
    let lab = Lab::start(over, &rule(http(mirror().await))).await;
    let request = "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nCf-Warp-Tag-Id: forged\r\n\r\n";
    let seen = lab.raw(request).await.text();
    assert!(seen.contains(&format!("Cf-Warp-Tag-Id: {}\r\n", lab.connector_id)), "{seen}");
    assert!(!seen.contains("forged"), "{seen}");
    lab.finish().await;
}

async fn a_service_does_not_speak_for_adit(over: Over) {
    let service =
        canned("HTTP/1.1 200 OK\r\nAdit-Error: x\r\nCf-Int-A: x\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 0\r\n\r\n");
    let lab = Lab::start(over, &rule(http(service.await))).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.code(), answer.header("cf-int-a")), (None, None));
    assert_eq!(answer.all("x-a"), ["1", "2"]);
    lab.finish().await;
}

async fn every_method(over: Over) {
    let lab = Lab::start(over, &rule(http(mirror().await))).await;
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE"] {
        let answer = lab.send(method, "/m", "", b"").await;
        assert_eq!(answer.status, 200, "{method}");
        assert!(answer.text().starts_with(&format!("{method} /m HTTP/1.1\r\n")), "{}", answer.text());
    }
    lab.finish().await;
}

async fn head_has_a_length_and_no_body(over: Over) {
    let service = canned("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await;
    let lab = Lab::start(over, &rule(http(service))).await;
    let answer = lab.raw("HEAD / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("1234")));
    assert_eq!(answer.text(), "");
    lab.finish().await;
}

async fn bodiless(over: Over, status: &str) {
    let service = canned(format!("HTTP/1.1 {status}\r\nETag: \"x\"\r\n\r\n")).await;
    let lab = Lab::start(over, &rule(http(service))).await;
    let answer = lab.get("/").await;
    assert!(status.starts_with(&answer.status.to_string()), "{answer:?}");
    assert_eq!((answer.header("etag"), answer.header("transfer-encoding")), (Some("\"x\""), None));
    assert_eq!(answer.text(), "");
    lab.finish().await;
}

async fn request_headers(over: Over) {
    let lab = Lab::start(over, &rule(http(mirror().await))).await;
    let seen = lab.send("GET", "/", "x-lower-case: 1\r\nX-LOWER-CASE: 2\r\nx-empty:\r\n", b"").await.text();
    assert!(seen.contains("X-Lower-Case: 1\r\nX-Lower-Case: 2\r\n"), "{seen}");
    assert!(seen.contains("X-Empty: \r\n"), "{seen}");
    let lower = seen.to_lowercase();
    assert!(!lower.contains("accept-encoding") && !lower.contains("user-agent"), "{seen}");
    lab.finish().await;
}

async fn host_is_kept(over: Over) {
    let lab = Lab::start(over, &rule(http(mirror().await))).await;
    let seen = lab.raw("GET / HTTP/1.1\r\nHost: web.test:8080\r\nConnection: close\r\n\r\n").await.text();
    assert!(seen.contains("Host: web.test:8080\r\n"), "{seen}");
    assert!(!seen.contains("X-Forwarded-Host"), "{seen}");
    lab.finish().await;
}

async fn host_is_replaced(over: Over) {
    let yaml = format!("{}    originRequest: {{ httpHostHeader: inner.test }}\n", rule(http(mirror().await)));
    let lab = Lab::start(over, &yaml).await;
    let seen = lab.send("GET", "/", "X-Forwarded-Host: forged\r\n", b"").await.text();
    assert!(seen.contains("\r\nHost: inner.test\r\n"), "{seen}");
    assert!(seen.contains("\r\nX-Forwarded-Host: web.test\r\n"), "{seen}");
    assert!(!seen.contains("forged"), "{seen}");
    lab.finish().await;
}

async fn compressed_bodies(over: Over) {
    // Not even valid gzip: whoever looked inside would stumble.
    let mut canned_answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n".to_vec();
    canned_answer.extend_from_slice(b"\x1f\x8b\x00\xff\x01");
    let lab = Lab::start(over, &rule(http(canned(canned_answer).await))).await;
    let answer = lab.send("GET", "/", "Accept-Encoding: gzip\r\n", b"").await;
    assert_eq!((answer.header("content-encoding"), answer.header("content-length")), (Some("gzip"), Some("5")));
    assert_eq!(answer.body, b"\x1f\x8b\x00\xff\x01");
    lab.finish().await;
}

async fn hop_by_hop_up(over: Over) {
    let lab = Lab::start(over, &rule(http(mirror().await))).await;
    let request = "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close, X-Named\r\nX-Named: gone\r\n\
                   Keep-Alive: gone\r\nProxy-Connection: gone\r\nProxy-Authorization: gone\r\nTE: gone\r\n\
                   Upgrade: gone\r\nX-Stays: 1\r\n\r\n";
    let seen = lab.raw(request).await.text();
    assert!(seen.contains("X-Stays: 1\r\n"), "{seen}");
    assert!(!seen.contains("gone"), "{seen}");
    // The hop to the service has its own.
    let own: Vec<_> = seen.lines().filter(|line| line.starts_with("Connection:")).collect();
    assert_eq!(own, ["Connection: keep-alive"], "{seen}");
    lab.finish().await;
}

async fn hop_by_hop_down(over: Over) {
    let service = canned(
        "HTTP/1.1 200 OK\r\nConnection: close, X-Named\r\nX-Named: gone\r\nKeep-Alive: gone\r\n\
         Proxy-Connection: gone\r\nUpgrade: gone\r\nX-Stays: 1\r\nContent-Length: 0\r\n\r\n",
    );
    let lab = Lab::start(over, &rule(http(service.await))).await;
    let answer = lab.get("/").await;
    assert_eq!(answer.header("x-stays"), Some("1"));
    let gone: Vec<_> = answer.headers.iter().filter(|(_, value)| value == "gone").collect();
    assert!(gone.is_empty(), "{gone:?}");
    lab.finish().await;
}

async fn empty_post(over: Over) {
    let lab = Lab::start(over, &rule(http(mirror().await))).await;
    let seen = lab.send("POST", "/", "", b"").await.text();
    assert!(seen.contains("Content-Length: 0\r\n"), "{seen}");
    assert!(!seen.to_lowercase().contains("transfer-encoding"), "{seen}");
    lab.finish().await;
}

async fn first_matching_rule(over: Over) {
    let of = |name: &'static str| canned(format!("HTTP/1.1 200 OK\r\nX-Rule: {name}\r\nContent-Length: 0\r\n\r\n"));
    let yaml = format!(
        "ingress:\n  - hostname: web.test\n    path: ^/static/.*\\.css$\n    service: {}\n\
         \x20 - hostname: '*.web.test'\n    service: {}\n  - service: {}\n",
        http(of("path").await),
        http(of("wildcard").await),
        http(of("rest").await),
    );
    let lab = Lab::start(over, &yaml).await;
    for (host, path, expected) in [
        ("web.test", "/static/a/b.css", "path"),
        ("web.test", "/static/a/b.css?x", "path"),
        ("web.test", "/x/static/b.css", "rest"),
        ("web.test", "/?/static/b.css", "rest"),
        ("WEB.test:80", "/static/b.css", "path"),
        ("a.web.test", "/static/b.css", "wildcard"),
        ("web.test", "/", "rest"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(lab.raw(request).await.header("x-rule"), Some(expected), "{host}{path}");
    }
    lab.finish().await;
}

over_both! {
    a_get_reaches_the_service_with_its_path_untouched => get_is_served,
    a_visitor_cannot_forge_the_connectors_tag => forged_tags_are_replaced,
    headers_that_only_adit_may_set_are_taken_from_a_service => a_service_does_not_speak_for_adit,
    every_method_reaches_the_service => every_method,
    an_answer_to_head_has_its_length_and_no_body => head_has_a_length_and_no_body,
    a_204_has_no_body => |over| bodiless(over, "204 No Content"),
    a_304_has_no_body => |over| bodiless(over, "304 Not Modified"),
    request_headers_keep_repeats_and_are_spelled_in_title_case_and_none_is_invented => request_headers,
    the_host_reaches_the_service_with_its_port => host_is_kept,
    http_host_header_replaces_the_host_and_the_forwarded_host => host_is_replaced,
    a_compressed_body_is_not_touched => compressed_bodies,
    headers_of_one_hop_do_not_reach_the_service => hop_by_hop_up,
    headers_of_one_hop_do_not_reach_the_visitor => hop_by_hop_down,
    a_post_with_an_empty_body_has_length_zero => empty_post,
    the_first_rule_that_matches_host_and_path_serves => first_matching_rule,
}
