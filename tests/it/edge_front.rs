//! The edge as visitors meet it: what it takes from them, what it adds, and its TLS.

use std::sync::Arc;

use adit::{shutdown::Tasks, tls};
use http_body_util::BodyExt;
use hyper::{HeaderMap, Request, http::response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{Answer, Lab, Over, mirror, over_both, rule};

/// A visitor's TLS connection that trusts the edge's authority and nothing else.
async fn connect(lab: &Lab, name: &str, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(lab.state.ca_path()).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(lab.https).await.unwrap()).await
}

/// One request over TLS and HTTP/2: head, body and trailers of the answer.
pub(crate) async fn visit_h2(lab: &Lab, request: Request<String>) -> (response::Parts, String, Option<HeaderMap>) {
    let stream = connect(lab, "web.test", &["h2"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let http2 = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = http2.handshake(TokioIo::new(stream)).await.unwrap();
    let tasks = Tasks::new();
    tasks.attend(async move {
        let _ = connection.await;
    });
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned();
    (head, String::from_utf8(body.to_bytes().to_vec()).unwrap(), trailers)
}

async fn forged_headers(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    let names = [
        "Cf-Connecting-Ip",
        "CF-Access-Jwt-Assertion",
        "cf_connecting_ip",
        "Cf-Anything",
        "Client-Cert",
        "client_cert",
        "Client-Cert-Chain",
        "X-Forwarded-Client-Cert",
        "X_Forwarded_Client_Cert",
        "x-forwarded_client-cert",
        "X-Client-Cert-Present",
        "X-Client-Cert",
        "X-SSL-Client-Verify",
        "Ssl-Client-Subject-Dn",
        "X-Amzn-Mtls-Clientcert",
        "Adit-Error",
    ];
    let forged: String = names.iter().map(|name| format!("{name}: forged\r\n")).collect();
    let seen = lab.send("GET", "/", &format!("{forged}X-Client-Claim: kept\r\n"), b"").await.text();
    assert!(!seen.contains("forged"), "{seen}");
    assert!(seen.contains("X-Client-Claim: kept\r\n"), "{seen}");
    assert!(seen.contains("Cf-Connecting-Ip: 127.0.0.1\r\n"), "{seen}");
    lab.finish().await;
}

async fn forwarded(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    let seen = lab.send("GET", "/", "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n", b"").await.text();
    let of = |name: &str| -> Vec<_> { seen.lines().filter_map(|line| line.strip_prefix(name)).collect() };
    assert_eq!(of("X-Forwarded-For: ").join(", "), "192.0.2.1, 127.0.0.1");
    assert_eq!(of("X-Forwarded-Proto: "), ["http"]);
    lab.finish().await;
}

async fn https_in_http1(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    for name in ["web.test", "a.web.test"] {
        let mut stream = connect(&lab, name, &["http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        let seen = Answer::parse(&bytes).text();
        assert!(seen.contains(&format!("Host: {name}\r\n")), "{seen}");
        assert!(seen.contains("X-Forwarded-Proto: https\r\n"), "{seen}");
    }
    lab.finish().await;
}

async fn https_in_http2(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    let request = Request::get("https://web.test/a?b").header("cf-forged", "forged").header("x-kept", "1");
    let (head, seen, trailers) = visit_h2(&lab, request.body(String::new()).unwrap()).await;
    assert_eq!((head.status.as_u16(), trailers), (200, None));
    assert!(seen.starts_with("GET /a?b HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("Host: web.test\r\n") && seen.contains("X-Kept: 1\r\n"), "{seen}");
    assert!(seen.contains("X-Forwarded-Proto: https\r\n") && !seen.contains("forged"), "{seen}");
    lab.finish().await;
}

async fn foreign_name(over: Over) {
    let lab = Lab::start(over, &rule("http_status:200")).await;
    let refused = connect(&lab, "other.test", &["http/1.1"]).await;
    assert!(refused.is_err(), "the edge has a certificate for a name of no tunnel");
    lab.finish().await;
}

async fn without_a_host(over: Over) {
    let lab = Lab::start(over, &rule("http_status:200")).await;
    let answer = lab.raw("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!((answer.status, answer.code()), (400, Some("host-missing")));
    lab.finish().await;
}

over_both! {
    forged_headers_of_the_edge_and_of_certificates_are_taken_from_visitors => forged_headers,
    the_visitors_address_is_appended_and_the_scheme_is_set => forwarded,
    a_visitor_over_tls_in_http1_is_served_with_a_certificate_for_the_name => https_in_http1,
    a_visitor_over_tls_in_http2_is_served => https_in_http2,
    the_edge_vouches_for_no_foreign_name => foreign_name,
    a_request_without_a_host_is_refused => without_a_host,
}
