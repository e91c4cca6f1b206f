//! Heads through the whole tunnel: odd methods, targets and statuses, many and large headers.

use crate::harness::{
    Lab, Over, canned, mirror, over_both,
    peer::{Peer, Seen, ok, replying},
    rule,
};

/// One rule for a service that answers with the head it saw.
async fn mirrored(over: Over, options: &str) -> Lab {
    let yaml = format!("{}    originRequest: {{{options}}}\n", rule(format!("http://{}", mirror().await)));
    Lab::start(over, &yaml).await
}

/// What the service saw of a request whose header lines are these.
async fn seen(lab: &Lab, lines: &str) -> String {
    lab.raw(format!("GET /x HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n{lines}\r\n")).await.text()
}

async fn answered(over: Over, answer: impl Into<Vec<u8>>) -> crate::harness::Answer {
    let lab = Lab::start(over, &rule(format!("http://{}", canned(answer).await))).await;
    let answer = lab.get("/").await;
    lab.finish().await;
    answer
}

async fn every_method(over: Over) {
    let (service, _) = replying(|head, body| ok(format!("{} {}", head.line, body.len()))).await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"] {
        let request = format!("{method} /m?q HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n");
        let answer = lab.raw(request).await;
        assert_eq!((answer.status, answer.text()), (200, format!("{method} /m?q HTTP/1.1 0")));
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "GET"] {
        let answer = lab.send(method, "/", "", b"12345").await;
        assert_eq!((answer.status, answer.text()), (200, format!("{method} / HTTP/1.1 5")));
    }
    lab.finish().await;
}

async fn statuses(over: Over) {
    let (service, _) = replying(|head, _| {
        let status = head.target().trim_start_matches('/');
        let (length, body) = if matches!(status, "204" | "304") { ("", "") } else { ("Content-Length: 1\r\n", "x") };
        format!("HTTP/1.1 {status} Reason\r\nX-A: 1\r\nLocation: http://localhost:9/x\r\n{length}\r\n{body}")
            .into_bytes()
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let mut visitor = Peer::visit(lab.http).await;
    for status in [200, 201, 204, 206, 302, 304, 400, 401, 404, 418, 500, 503, 599, 999] {
        visitor.send(format!("GET /{status} HTTP/1.1\r\nHost: web.test\r\n\r\n")).await;
        let answer = visitor.answer().await;
        assert_eq!((answer.status, answer.header("x-a"), answer.code()), (status, Some("1"), None));
        assert_eq!(answer.header("location"), Some("http://localhost:9/x"));
        assert_eq!(answer.text(), if matches!(status, 204 | 304) { "" } else { "x" }, "{status}");
    }
    lab.finish().await;
}

async fn early_hints(over: Over) {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let answer = answered(over, hints).await;
    assert_eq!((answer.status, answer.text().as_str(), answer.header("link")), (200, "ok", None));
}

async fn targets(over: Over) {
    let lab = mirrored(over, "").await;
    for target in [
        "/a//b/../c;d?x=%zz&y",
        "/a%2Fb/../c//d;x=1/%E2%82%AC?q=%2F",
        "/a?b=c&d=%20e",
        "/a?",
        "/?",
        "/??&&==",
        "//",
        "/./",
        "/%00%0a",
        "/~!$&'()*+,;=:@/[]_",
        "/?q=a|b",
    ] {
        let answer = lab.get(target).await;
        let text = answer.text();
        assert!(text.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{target}: {} {text}", answer.status);
    }
    lab.finish().await;
}

async fn repeated_headers(over: Over) {
    let cookies = "Set-Cookie: a=1\r\nX-A: 1\r\nSet-Cookie: b=2\r\nX-A: 2\r\n";
    let answer = answered(over, format!("HTTP/1.1 200 OK\r\n{cookies}Content-Length: 0\r\n\r\n")).await;
    assert_eq!((answer.all("set-cookie"), answer.all("x-a")), (vec!["a=1", "b=2"], vec!["1", "2"]));
    let lab = mirrored(over, "").await;
    let text = seen(&lab, "X-A: 1\r\nCookie: a=1\r\nX-A: 2\r\nX-Empty:\r\nX-Bytes: caf\u{e9}\r\n").await;
    for line in ["X-A: 1", "X-A: 2", "Cookie: a=1", "X-Empty: ", "X-Bytes: caf\u{e9}"] {
        assert!(text.contains(&format!("\r\n{line}\r\n")), "{line} in {text}");
    }
    lab.finish().await;
}

async fn forged_tags(over: Over) {
    let yaml = format!("tag: [\"env=lab\"]\n{}", rule(format!("http://{}", mirror().await)));
    let lab = Lab::start(over, &yaml).await;
    let text = seen(&lab, "Cf-Warp-Tag-Id: forged\r\nCf-Warp-Tag-Env: forged\r\n").await;
    assert!(text.contains(&format!("Cf-Warp-Tag-Id: {}\r\n", lab.connector_id)), "{text}");
    assert!(text.contains("Cf-Warp-Tag-Env: lab\r\n") && !text.contains("forged"), "{text}");
    lab.finish().await;
}

async fn a_service_does_not_speak_for_adit(over: Over) {
    let forged = "HTTP/1.1 200 OK\r\nAdit-Error: x\r\nCf-Int-A: x\r\nCf-Cloudflared-Response-Meta: x\r\n\
                  Cf-Proxy-B: x\r\nCf-Other: kept\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 0\r\n\r\n";
    let answer = answered(over, forged).await;
    assert_eq!((answer.status, answer.code(), answer.all("x-a")), (200, None, vec!["1", "2"]));
    for name in ["cf-int-a", "cf-cloudflared-response-meta", "cf-proxy-b"] {
        assert_eq!(answer.header(name), None, "{answer:?}");
    }
    assert_eq!(answer.header("cf-other"), Some("kept"));
}

async fn large_request_header(over: Over) {
    let (service, _) = replying(|head: &Seen, _| ok(head.header("x-big").unwrap_or_default().len().to_string())).await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let text = seen(&lab, &format!("X-Big: {}\r\n", "b".repeat(65_536))).await;
    assert_eq!(text, "65536");
    lab.finish().await;
}

async fn old_service(over: Over) {
    let answer = answered(over, "HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "until the end", true));
}

over_both! {
    every_method_reaches_the_service_with_and_without_a_body => every_method,
    every_status_passes_and_redirects_are_not_followed => statuses,
    early_hints_are_dropped_and_the_answer_is_not => early_hints,
    path_and_query_reach_the_service_byte_for_byte => targets,
    repeated_headers_stay_apart_in_both_directions => repeated_headers,
    a_visitor_cannot_forge_a_tag => forged_tags,
    headers_that_only_adit_may_set_are_taken_from_a_service => a_service_does_not_speak_for_adit,
    a_request_header_of_64_kib_passes => large_request_header,
    an_answer_that_ends_with_its_connection_passes => old_service,
}
