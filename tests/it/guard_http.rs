//! HTTP at a guard: who is let through, and what the service hears of him.

use adit::tls::possession::{LARGEST, Possession};
use http::Request;
use rustls::{
    AlertDescription,
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};
use tokio::io::AsyncReadExt;

use crate::harness::{
    background, eventually,
    guard::{A, GuardLab, NAME, peer_with, upload},
    in_time, mirror,
    peer::{Peer, pattern, replying, scripted},
    tls::{Ca, Leaf, h2_body},
};

#[test]
fn certificates_of_more_than_16_kib_are_answered_certificate_unknown() {
    let verifier = Possession::verifier(Vec::new(), Some(LARGEST));
    let sized = |bytes: usize| CertificateDer::from(vec![0; bytes]);
    let verify = |leaf: usize, chain: &[usize]| {
        let chain: Vec<_> = chain.iter().map(|bytes| sized(*bytes)).collect();
        verifier.verify_client_cert(&sized(leaf), &chain, UnixTime::now()).map(|_| ())
    };
    assert_eq!(verify(LARGEST, &[]), Ok(()));
    assert_eq!(verify(1 << 10, &[7 << 10, 8 << 10]), Ok(()));
    for error in [verify(LARGEST + 1, &[]), verify(1 << 10, &[7 << 10, (8 << 10) + 1])] {
        let rustls::Error::InvalidCertificate(error) = error.unwrap_err() else { panic!("another alert") };
        assert_eq!(AlertDescription::from(error), AlertDescription::CertificateUnknown);
    }
}

/// They are kept as long as the connection, and strangers can make any number of them.
#[tokio::test]
async fn certificates_of_more_than_16_kib_get_an_alert_whether_in_the_leaf_or_behind_it() {
    in_time(async {
        for service in ["http", "tcp"] {
            let lab = GuardLab::start(format!("{service}://{}", mirror().await), "").await;
            let sized = |bytes: usize| {
                lab.ca.leaf_with(&["a.test"], &rcgen::KeyPair::generate().unwrap(), |leaf| {
                    let filling =
                        rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![0; bytes]);
                    leaf.custom_extensions = vec![filling];
                })
            };
            let mut long = lab.a.clone();
            long.certificate += &sized(8 << 10).certificate.repeat(2);
            let handshakes = "adit_guard_handshakes_total{guard=\"0\",outcome=\"refused\"}";
            let mut refused = 0;
            for leaf in [&sized(17 << 10), &long] {
                for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
                    let config = peer_with(&lab.ca.pem, Some(leaf), &[], &[version]);
                    let error = async {
                        let mut tls = lab.tls(&config).await?;
                        tls.read_u8().await
                    };
                    // Who still sends may hear of the closed connection before he hears the alert.
                    assert!(error.await.is_err(), "{service}");
                    refused += 1;
                    eventually("it is counted", async || lab.counted(handshakes) == refused).await;
                }
            }
            if service == "http" {
                assert_eq!(lab.get(Some(&sized(15 << 10))).await.status, 200);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_caller_with_a_valid_certificate_reaches_the_service_which_hears_who_it_is() {
    in_time(async {
        let lab = GuardLab::start(format!("http://{}", mirror().await), "").await;
        let forged = "X-Client-Cert-Spiffe-Id: spiffe://example.org/admin\r\nx_client_cert_present: false\r\n\
                      Client-Cert: :AAAA:\r\nX-Forwarded-Client-Cert: Hash=0\r\nX-Kept: 1\r\n";
        let answer = lab.send(Some(&lab.a), "GET /path?q", forged).await;
        assert_eq!(answer.status, 200);
        let seen = answer.text().to_lowercase();
        assert!(seen.starts_with("get /path?q "), "{seen}");
        for line in
            ["x-client-cert-present: true", "x-client-cert-chain-verified: true", "x-kept: 1", "host: guard.test"]
        {
            assert!(seen.contains(&format!("\r\n{line}\r\n")), "{line}: {seen}");
        }
        assert!(seen.contains(&format!("\r\nx-client-cert-spiffe-id: {A}\r\n")), "{seen}");
        for gone in ["admin", "x_client_cert", "aaaa", "hash=0"] {
            assert!(!seen.contains(gone), "{gone}: {seen}");
        }
        assert_eq!(lab.counted("adit_guard_requests_total{guard=\"0\",status_code=\"200\"}"), 1);
        assert_eq!(lab.counted("cloudflared_tunnel_total_requests"), 0, "no request of a tunnel");
    })
    .await;
}

#[tokio::test]
async fn who_shows_nothing_or_something_bad_is_answered_with_the_reason() {
    in_time(async {
        let lab = GuardLab::start(format!("http://{}", mirror().await), "").await;
        let expired = {
            let key = rcgen::KeyPair::generate().unwrap();
            lab.ca.leaf_with(&["old.test"], &key, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
        };
        let stranger = Ca::new("others").workload(A, &[]);
        let none: Option<&Leaf> = None;
        for (leaf, code) in
            [(none, "caller-missing"), (Some(&expired), "caller-invalid"), (Some(&stranger), "caller-invalid")]
        {
            let answer = lab.get(leaf).await;
            assert_eq!((answer.status, answer.code()), (403, Some(code)));
        }
        assert_eq!(lab.counted("adit_guard_refusals_total{guard=\"0\",code=\"caller-invalid\"}"), 2);
        assert_eq!(lab.counted("adit_guard_refusals_total{guard=\"0\",code=\"caller-missing\"}"), 1);
        // A lenient guard passes them on and says what they are.
        let lab = GuardLab::start(format!("http://{}", mirror().await), "allowInvalidOrMissingCert: true").await;
        for (leaf, present) in [(None, "false"), (Some(&stranger), "true")] {
            let answer = lab.get(leaf).await;
            assert_eq!(answer.status, 200);
            let seen = answer.text().to_lowercase();
            assert!(seen.contains(&format!("x-client-cert-present: {present}\r\n")), "{seen}");
            assert!(seen.contains("x-client-cert-chain-verified: false\r\n"), "{seen}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_allowed_depends_on_caller_method_and_path() {
    in_time(async {
        let allow = "allow: [ { id: \"spiffe://example.org/worker/a\", methods: [GET], paths: [/v1] }, \
                     { id: \"spiffe://example.org/admin\" } ]";
        let lab = GuardLab::start(format!("http://{}", mirror().await), allow).await;
        let admin = lab.ca.workload("spiffe://example.org/admin", &[]);
        for (leaf, line, expected) in [
            (&lab.a, "GET /v1/x", (200, None)),
            (&lab.a, "DELETE /v1/x", (403, Some("caller-not-allowed"))),
            (&lab.a, "GET /v2", (403, Some("caller-not-allowed"))),
            (&lab.a, "GET /v1/%2e%2e/v2", (400, Some("path-ambiguous"))),
            (&admin, "DELETE /v1/%2e%2e/v2", (200, None)),
        ] {
            let answer = lab.send(Some(leaf), line, "").await;
            assert_eq!((answer.status, answer.code()), expected, "{line}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_on_the_list_speaks_for_the_visitor_behind_it_and_nobody_else_does() {
    in_time(async {
        let callers = "keepHeadersFrom: [ \"spiffe://example.org/adit/*\" ]";
        let lab = GuardLab::start(format!("http://{}", mirror().await), callers).await;
        let said = "X-Client-Cert-Spiffe-Id: spiffe://example.org/visitor\r\nX-Client-Cert-Present: true\r\n";
        let connector = lab.ca.workload("spiffe://example.org/adit/one", &[]);
        let seen = lab.send(Some(&connector), "GET /", said).await.text().to_lowercase();
        assert!(seen.contains("x-client-cert-spiffe-id: spiffe://example.org/visitor\r\n"), "{seen}");
        assert!(!seen.contains("adit/one"), "{seen}");
        let seen = lab.send(Some(&lab.a), "GET /", said).await.text().to_lowercase();
        assert!(seen.contains(&format!("x-client-cert-spiffe-id: {A}\r\n")) && !seen.contains("visitor"), "{seen}");
        // The name alone proves nothing.
        let forged = Ca::new("others").workload("spiffe://example.org/adit/one", &[]);
        assert_eq!(lab.send(Some(&forged), "GET /", said).await.code(), Some("caller-invalid"));
    })
    .await;
}

#[tokio::test]
async fn bodies_are_streamed_both_ways_in_http1_and_http2() {
    in_time(async {
        let (service, _) = replying(|_, body| crate::harness::peer::ok(body)).await;
        let lab = GuardLab::start(format!("http://{service}"), "").await;
        let sent = pattern(3 << 20);
        let mut peer = lab.visit(Some(&lab.a)).await;
        let head = format!("POST /up HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {}\r\n\r\n", sent.len());
        peer.send([head.as_bytes(), &sent].concat()).await;
        let answer = peer.answer().await;
        assert!(answer.status == 200 && answer.body == sent && answer.complete);
        // The connection is kept.
        peer.send(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n")).await;
        assert_eq!(peer.answer().await.status, 200);
        let mut sender = lab.h2(Some(&lab.a)).await;
        let request = Request::post(format!("https://{NAME}/up")).body(()).unwrap();
        let (response, send) = sender.send_request(request, false).unwrap();
        background(upload(send, sent.clone()));
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut received = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            received.extend_from_slice(&chunk);
        }
        assert!(received == sent);
    })
    .await;
}

#[tokio::test]
async fn half_an_answer_does_not_look_whole() {
    in_time(async {
        let service = scripted(|mut peer: Peer| async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
        })
        .await;
        let lab = GuardLab::start(format!("http://{service}"), "").await;
        let answer = lab.get(Some(&lab.a)).await;
        assert_eq!((answer.status, answer.complete), (200, false));
        let mut sender = lab.h2(Some(&lab.a)).await;
        let request = Request::get(format!("https://{NAME}/")).body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let ended = loop {
            match body.data().await {
                Some(Ok(_)) => {}
                ended => break ended,
            }
        };
        assert!(ended.is_some_and(|ended| ended.unwrap_err().is_reset()));
    })
    .await;
}

#[tokio::test]
async fn a_grpc_call_keeps_its_trailers() {
    in_time(async {
        let service = crate::harness::service(|stream| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.headers().get("te").unwrap(), "trailers");
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                send.send_data("said".into(), false).unwrap();
                let trailers = [("grpc-status".parse().unwrap(), "7".parse().unwrap())];
                send.send_trailers(trailers.into_iter().collect()).unwrap();
            }
        })
        .await;
        let lab = GuardLab::start(format!("h2c://{service}"), "").await;
        let mut sender = lab.h2(Some(&lab.a)).await;
        let request = Request::post(format!("https://{NAME}/s/M")).header("te", "trailers").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let (said, trailers) = h2_body(response.await.unwrap().into_body()).await;
        assert_eq!((said.as_str(), trailers.unwrap()["grpc-status"].to_str().unwrap()), ("said", "7"));
    })
    .await;
}

#[tokio::test]
#[ignore = "needs curl in the PATH; .ci/run installs and runs it"]
async fn curl_is_let_in_with_its_certificate_and_told_why_without() {
    in_time(async {
        let lab = GuardLab::start(format!("http://{}", mirror().await), "").await;
        lab.write("a.crt", &lab.a.certificate);
        lab.write("a.key", &lab.a.key);
        let dir = lab.dir.path().display();
        let url = format!("https://{NAME}:{}/", lab.addr.port());
        let resolve = format!("{NAME}:{}:127.0.0.1", lab.addr.port());
        let ca = format!("{dir}/ca.pem");
        let (certificate, key) = (format!("{dir}/a.crt"), format!("{dir}/a.key"));
        let shown = ["--cert", &certificate, "--key", &key];
        for (version, certificate, expected) in [
            ("--http1.1", &shown[..], "200 1.1"),
            ("--http2", &shown[..], "200 2"),
            ("--http1.1", &[][..], "403 1.1"),
            ("--http2", &[][..], "403 2"),
        ] {
            let mut curl = tokio::process::Command::new("curl");
            curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", version, "--cacert", &ca]);
            curl.args(["--resolve", &resolve, &url]).args(certificate);
            let output = curl.output().await.expect("curl");
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{version} {certificate:?} {output:?}");
        }
    })
    .await;
}
