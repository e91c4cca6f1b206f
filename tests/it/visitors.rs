//! The edge's visitors' side: hostnames, what it adds, TLS in both versions of HTTP, the management hostname.

use bytes::Bytes;
use http::{Request, header};

use crate::harness::{
    Answer, LIMIT, Lab, Over, mirror, over_both,
    peer::{Peer, ok, replying},
    rule,
    tls::h2_body,
};

async fn mirrored(over: Over) -> Lab {
    Lab::start(over, &rule(format!("http://{}", mirror().await))).await
}

async fn to_host(lab: &Lab, host: &str) -> Answer {
    lab.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
}

async fn hostnames(over: Over) {
    let lab = mirrored(over).await;
    for host in ["web.test", "WEB.test", "web.test.", "web.test:80", "a.web.test", "a.b.web.test"] {
        assert_eq!(to_host(&lab, host).await.status, 200, "{host}");
    }
    for host in ["other.test", "xweb.test", "test", ".web.test.evil", "127.0.0.1", "[::1]:80"] {
        let answer = to_host(&lab, host).await;
        assert_eq!((answer.status, answer.code()), (404, Some("hostname-unknown")), "{host}");
    }
    let answer = lab.raw("GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.code()), (400, Some("host-missing")));
    let answer = lab.raw("CONNECT web.test:443 HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.code()), (405, Some("request-invalid")));
    lab.finish().await;
}

async fn forwarded(over: Over) {
    let (service, _) = replying(|head, _| {
        let addresses = head.all("x-forwarded-for").join(", ");
        ok(format!("{addresses} {}", head.all("x-forwarded-proto").join(", ")))
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    assert_eq!(lab.get("/").await.text(), "127.0.0.1 http");
    let lines = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: gopher\r\n";
    let request = format!("GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n{lines}\r\n");
    assert_eq!(lab.raw(&request).await.text(), "192.0.2.1, 127.0.0.1 http");
    let mut visitor = Peer::new(lab.tls(&[]).await, 0);
    visitor.send(&request).await;
    assert_eq!(visitor.answer().await.text(), "192.0.2.1, 127.0.0.1 https");
    lab.finish().await;
}

async fn tls_h1(over: Over) {
    let lab = mirrored(over).await;
    for alpn in [&["http/1.1"][..], &[]] {
        let mut visitor = Peer::new(lab.tls(alpn).await, 0);
        for _ in 0..2 {
            let forged = "Client-Cert: forged\r\nCf-Client-Cert-Der-Base64: forged\r\n";
            visitor.send(format!("GET /s HTTP/1.1\r\nHost: web.test\r\n{forged}\r\n")).await;
            let text = visitor.answer().await.text();
            assert!(text.starts_with("GET /s HTTP/1.1\r\n") && !text.contains("forged"), "{text}");
        }
    }
    lab.finish().await;
}

async fn tls_h2(over: Over) {
    let (service, _) = replying(|head, body| {
        let told = format!("{} {} {}", head.line, head.header("host").unwrap(), body.len());
        ok(format!("{told} {} {:?}", head.all("cookie").join("; "), head.header("client-cert")))
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let mut visitor = lab.h2().await;
    for n in 0..10 {
        let request = Request::post(format!("https://web.test/{n}?q"))
            .header(header::COOKIE, "a=1")
            .header(header::COOKIE, "b=2")
            .header("client-cert", "forged")
            .body(())
            .unwrap();
        let (answer, mut body) = visitor.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"12345"), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        let (text, _) = h2_body(answer.into_body()).await;
        assert_eq!(text, format!("POST /{n}?q HTTP/1.1 web.test 5 a=1; b=2 None"));
    }
    lab.finish().await;
}

async fn management(over: Over) {
    let mut lab = Lab::edge_only().await;
    let id = Some(lab.token.tunnel);
    lab.token = lab.state.new_token(&["management.argotunnel.com".to_owned()], id).unwrap();
    lab.connect(over, &rule("http_status:200"), |flags| flags).await;
    lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.unwrap();
    let spellings = ["management.argotunnel.com", "MANAGEMENT.argotunnel.com"];
    for host in spellings.into_iter().chain(["management.argotunnel.com:443", "management.argotunnel.com."]) {
        let answer = to_host(&lab, host).await;
        assert_eq!((answer.status, answer.code()), (404, Some("not-found")), "{host}");
    }
    assert_eq!(lab.get("/").await.status, 200);
    lab.finish().await;
}

over_both! {
    only_the_hostnames_of_a_tunnel_are_served => hostnames,
    the_visitors_address_is_appended_to_those_before => forwarded,
    visitors_over_tls_are_served_in_http_1 => tls_h1,
    visitors_over_tls_are_served_in_http_2 => tls_h2,
    the_management_hostname_reaches_no_rule_in_any_spelling => management,
}
