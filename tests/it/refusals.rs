//! What a visitor is told when a service cannot answer.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{Lab, Over, canned, mirror, over_both, read_head, rule, service};

/// An authority of its own, its certificate as PEM, and a service with a leaf of it.
struct Tls {
    ca_pem: String,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl Tls {
    fn new(name: &str, expired: bool) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
            leaf.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let certificate = leaf.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(adit::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Self { ca_pem, acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(config)) }
    }

    /// Answers with the server name that was asked for; counts nothing, closes nothing.
    async fn serve(&self) -> SocketAddr {
        let acceptor = self.acceptor.clone();
        service(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let name = stream.get_ref().1.server_name().unwrap_or("none").to_owned();
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await
    }
}

async fn refusal_of(over: Over, rules: &str) -> (u16, Option<String>) {
    let lab = Lab::start(over, rules).await;
    let answer = lab.get("/").await;
    let refusal = (answer.status, answer.code().map(str::to_owned));
    lab.finish().await;
    refusal
}

fn told(status: u16, code: &str) -> (u16, Option<String>) {
    (status, Some(code.to_owned()))
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn down(over: Over) {
    assert_eq!(refusal_of(over, &rule(format!("http://{}", nobody().await))).await, told(502, "origin-unreachable"));
    assert_eq!(refusal_of(over, &rule("unix:/nonexistent/socket")).await, told(502, "origin-unreachable"));
}

async fn garbage(over: Over) {
    let service = canned("SSH-2.0-OpenSSH_9.2\r\n").await;
    assert_eq!(refusal_of(over, &rule(format!("http://{service}"))).await, told(502, "origin-protocol"));
    let service = canned("").await;
    assert_eq!(refusal_of(over, &rule(format!("http://{service}"))).await, told(502, "origin-protocol"));
}

async fn hanging_handshake(over: Over) {
    let service = service(|mut stream| async move {
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink).await;
    })
    .await;
    let rules = format!("{}    originRequest: {{ tlsTimeout: 300ms }}\n", rule(format!("https://{service}")));
    assert_eq!(refusal_of(over, &rules).await, told(504, "origin-timeout"));
    let rules = rules.replace("tlsTimeout: 300ms", "tlsTimeout: 300ms, matchSNItoHost: true");
    assert_eq!(refusal_of(over, &rules).await, told(504, "origin-timeout"));
}

async fn tls_failures(over: Over) {
    let good = Tls::new("localhost", false);
    let port = good.serve().await.port();
    let https =
        |options: &str| format!("{}    originRequest: {{ {options} }}\n", rule(format!("https://localhost:{port}")));
    assert_eq!(refusal_of(over, &https("")).await, told(526, "origin-untrusted"));

    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("ca.pem");
    std::fs::write(&pool, &good.ca_pem).unwrap();
    let trusting = format!("caPool: {}", pool.display());
    assert_eq!(refusal_of(over, &https(&trusting)).await, (200, None));
    assert_eq!(refusal_of(over, &https("noTLSVerify: true")).await, (200, None));
    let wrong_name = format!("{trusting}, originServerName: other.test");
    assert_eq!(refusal_of(over, &https(&wrong_name)).await, told(526, "origin-identity"));

    let old = Tls::new("localhost", true);
    std::fs::write(&pool, &old.ca_pem).unwrap();
    let rules = rule(format!("https://localhost:{}", old.serve().await.port()));
    let rules = format!("{rules}    originRequest: {{ {trusting} }}\n");
    assert_eq!(refusal_of(over, &rules).await, told(526, "origin-expired"));

    let plain = service(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    })
    .await;
    assert_eq!(refusal_of(over, &rule(format!("https://{plain}"))).await, told(525, "origin-tls-refused"));
}

async fn names_are_not_mixed(over: Over) {
    let tls = Tls::new("web.test", false);
    let rules = format!(
        "{}    originRequest: {{ noTLSVerify: true, matchSNItoHost: true }}\n",
        rule(format!("https://{}", tls.serve().await))
    );
    let lab = Lab::start(over, &rules).await;
    for host in ["web.test", "a.web.test", "web.test", "b.web.test:8443"] {
        let answer = lab.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(answer.text(), host.split(':').next().unwrap());
    }
    lab.finish().await;
}

async fn death_in_the_middle(over: Over) {
    for head in ["Content-Length: 1000", "Transfer-Encoding: chunked"] {
        let lab = Lab::start(
            over,
            &rule(format!("http://{}", canned(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello")).await)),
        )
        .await;
        let mut visitor = TcpStream::connect(lab.http).await.unwrap();
        visitor.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut bytes = Vec::new();
        let outcome = visitor.read_to_end(&mut bytes).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let whole = outcome.is_ok() && text.starts_with("HTTP/1.1 200") && {
            let answer = crate::harness::Answer::parse(&bytes);
            answer.complete
        };
        assert!(!whole, "half an answer looks whole: {text}");
        lab.finish().await;
    }
}

async fn access_and_management(over: Over) {
    let rules = format!(
        "{}    originRequest: {{ access: {{ required: true, teamName: t, audTag: [a] }} }}\n",
        rule(format!("http://{}", mirror().await))
    );
    assert_eq!(refusal_of(over, &rules).await, told(403, "access-required"));
    // Inherited, it is enforced just the same.
    let top = format!(
        "originRequest:\n  access: {{ required: true, teamName: t, audTag: [a] }}\n{}",
        rule("http_status:200")
    );
    assert_eq!(refusal_of(over, &top).await, told(403, "access-required"));
    let lab = Lab::with(over, &rule(format!("http://{}", mirror().await)), |flags| {
        flags.with("management-hostname", "web.test")
    })
    .await;
    assert_eq!(lab.get("/ping").await.status, 404);
    lab.finish().await;
}

async fn no_rules_and_no_connector(over: Over) {
    assert_eq!(refusal_of(over, "{}").await, told(503, "no-configuration"));
    let lab = Lab::edge_only().await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (503, Some("no-connection")));
    let answer = lab.raw("GET / HTTP/1.1\r\nHost: elsewhere.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.code()), (404, Some("hostname-unknown")));
    lab.finish().await;
}

async fn bodies_without_length(over: Over) {
    let (seen, mut arrivals) = tokio::sync::mpsc::channel(4);
    let service = service(move |mut stream| {
        let seen = seen.clone();
        async move {
            while let Some((head, _)) = read_head(&mut stream).await {
                seen.send(head.lines().next().unwrap().to_owned()).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
        }
    })
    .await;
    let rules = format!("{}    originRequest: {{ disableChunkedEncoding: true }}\n", rule(format!("http://{service}")));
    let lab = Lab::start(over, &rules).await;
    let inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let request = format!(
        "POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n",
        inner.len()
    );
    let answer = lab.raw(request).await;
    assert_eq!((answer.status, answer.code()), (411, Some("length-required")));
    assert_eq!(lab.get("/honest").await.status, 200);
    assert_eq!(arrivals.recv().await.unwrap(), "GET /honest HTTP/1.1", "nothing before it reached the service");
    lab.finish().await;
}

async fn visitors_leave(over: Over) {
    let (left, mut seen) = tokio::sync::mpsc::channel(1);
    let (arrived, mut arrivals) = tokio::sync::mpsc::channel(1);
    let service = service(move |mut stream| {
        let (left, arrived) = (left.clone(), arrived.clone());
        async move {
            read_head(&mut stream).await;
            arrived.send(()).await.unwrap();
            let n = stream.read(&mut [0; 16]).await.unwrap_or(0);
            left.send(n).await.unwrap();
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let mut visitor = TcpStream::connect(lab.http).await.unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    arrivals.recv().await.unwrap();
    drop(visitor);
    let closed = tokio::time::timeout(Duration::from_secs(10), seen.recv()).await.expect("the request goes on");
    assert_eq!(closed, Some(0));
    lab.finish().await;
}

async fn broken_upload(over: Over) {
    let (ended, mut ends) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    let (arrived, mut arrivals) = tokio::sync::mpsc::channel::<()>(1);
    let service = service(move |mut stream| {
        let (ended, arrived) = (ended.clone(), arrived.clone());
        async move {
            let (_, mut body) = read_head(&mut stream).await.unwrap();
            while !body.windows(5).any(|window| window == b"first") {
                let mut buffer = [0; 1024];
                let n = stream.read(&mut buffer).await.unwrap();
                body.extend_from_slice(&buffer[..n]);
            }
            arrived.send(()).await.unwrap();
            let _ = stream.read_to_end(&mut body).await;
            ended.send(body).await.unwrap();
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let mut visitor = TcpStream::connect(lab.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    visitor.write_all(head.as_bytes()).await.unwrap();
    arrivals.recv().await.unwrap();
    drop(visitor);
    let body = tokio::time::timeout(Duration::from_secs(10), ends.recv()).await.expect("the request goes on").unwrap();
    assert!(!body.ends_with(b"0\r\n\r\n"), "half a body looks whole: {}", String::from_utf8_lossy(&body));
    lab.finish().await;
}

over_both! {
    an_upload_that_breaks_off_never_looks_whole => broken_upload,
    a_service_that_is_down_is_unreachable => down,
    a_service_that_speaks_no_http_is_told_apart => garbage,
    a_handshake_that_hangs_is_a_time_out => hanging_handshake,
    failures_of_tls_are_told_apart => tls_failures,
    a_connection_verified_for_one_name_serves_no_other => names_are_not_mixed,
    an_answer_that_breaks_off_never_looks_whole => death_in_the_middle,
    access_refuses_while_it_cannot_be_checked_and_management_reaches_no_rule => access_and_management,
    without_rules_or_connector_the_reason_is_told => no_rules_and_no_connector,
    a_body_without_length_is_refused_where_chunks_are_forbidden => bodies_without_length,
    a_visitor_who_leaves_cancels_the_request => visitors_leave,
}
