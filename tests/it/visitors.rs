//! The edge's visitors' side: hostnames, what it adds, TLS in both versions of HTTP, the management hostname.

use bytes::Bytes;
use http::{Request, header};

use crate::harness::{
    Answer, LIMIT, Lab, Over, mirror, over_both,
    peer::{ok, replying},
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
    assert_eq!((answer.status, answer.code()), (405, Some("method-not-allowed")));
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
    lab.edge.reread();
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
    visitors_over_tls_are_served_in_http_2 => tls_h2,
    the_management_hostname_reaches_no_rule_in_any_spelling => management,
}
