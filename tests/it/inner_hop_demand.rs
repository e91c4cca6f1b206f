//! What the hop demands of services: that they ask for a certificate, on every dial, before a byte is sent.

use rustls::{
    HandshakeKind, SignatureScheme, SupportedProtocolVersion,
    crypto::WebPkiSupportedAlgorithms,
    version::{TLS12, TLS13},
};

use crate::harness::{
    Lab, Over,
    hop::{Counted, Hop, counted},
    over_both,
    peer::scripted,
};

const BOTH: [&[&SupportedProtocolVersion]; 2] = [&[&TLS12], &[&TLS13]];

async fn service(hop: &Hop, versions: &[&'static SupportedProtocolVersion], asks: bool, keeps: bool) -> Counted {
    counted(hop.acceptor(&hop.ca.leaf(&["127.0.0.1"]), versions, asks), keeps).await
}

fn url(service: &Counted) -> String {
    format!("https://127.0.0.1:{}", service.port)
}

async fn not_asking(over: Over) {
    for versions in BOTH {
        let hop = Hop::new();
        let service = service(&hop, versions, false, true).await;
        let lab = Lab::start(over, &hop.rule("writer", url(&service), "")).await;
        for number in 1..=10 {
            let answer = lab.get("/").await;
            assert_eq!((answer.status, answer.code()), (525, Some("origin-not-asking")), "dial {number}");
        }
        assert!(lab.metrics.expose().contains("adit_inner_hop_failures_total{cause=\"not-asking\"} 10"));
        lab.finish().await;
        let seen = service.seen();
        assert_eq!((seen.len(), service.bytes()), (10, 0), "{seen:?}");
        assert!(seen.iter().all(|seen| seen.kind != Some(HandshakeKind::Resumed)), "{seen:?}");
    }
}

async fn asking(over: Over) {
    for versions in BOTH {
        let hop = Hop::new();
        let service = service(&hop, versions, true, false).await;
        let lab = Lab::start(over, &hop.rule("writer", url(&service), "")).await;
        for number in 1..=3 {
            assert_eq!(lab.get("/").await.status, 200, "dial {number}");
        }
        lab.finish().await;
        let resumed: Vec<_> = service.seen().iter().map(|seen| seen.kind == Some(HandshakeKind::Resumed)).collect();
        assert_eq!(resumed, [false, true, true]);
    }
}

async fn two_identities(over: Over, keeps: bool) {
    for versions in BOTH {
        let hop = Hop::new();
        let service = service(&hop, versions, true, keeps).await;
        let url = url(&service);
        let rules = format!(
            "  - {{ hostname: web.test, service: '{url}', innerHop: {{ present: reader }} }}\n  \
             - {{ service: '{url}', innerHop: {{ present: writer }} }}\n"
        );
        let lab = Lab::start(over, &hop.config(&["reader", "writer"], "", &rules)).await;
        for host in ["web.test", "a.web.test", "web.test", "a.web.test"] {
            let answer = lab.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            assert_eq!(answer.status, 200, "{host}");
        }
        lab.finish().await;
        let seen = service.seen();
        let kinds: Vec<_> = seen.iter().map(|seen| seen.kind == Some(HandshakeKind::Resumed)).collect();
        if keeps {
            assert_eq!(kinds, [false, false], "each has a connection of its own");
        } else {
            assert_eq!(kinds, [false, false, true, true], "each resumes its own session");
            assert_eq!((&seen[0].peer, &seen[1].peer), (&seen[2].peer, &seen[3].peer));
        }
        assert_ne!(seen[0].peer, seen[1].peer);
    }
}

async fn one_that_accepts_no_signature_of_ours(over: Over) {
    // An Ed25519 key, and a service that verifies ECDSA alone.
    let hop = Hop::new();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    hop.identity("writer", &hop.ca.leaf_with(&["writer.adit.test"], &key, |_| {}));
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    let known = provider.signature_verification_algorithms;
    let ecdsa = known.mapping.iter().position(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256);
    let ecdsa = ecdsa.unwrap();
    provider.signature_verification_algorithms =
        WebPkiSupportedAlgorithms { mapping: &known.mapping[ecdsa..=ecdsa], ..known };
    let acceptor = hop.acceptor_of(provider, &hop.ca.leaf(&["127.0.0.1"]), &[&TLS13], true);
    let service = counted(acceptor, true).await;
    let lab = Lab::start(over, &hop.rule("writer", url(&service), "")).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (525, Some("origin-tls-refused")));
    assert!(lab.metrics.expose().contains("adit_inner_hop_failures_total{cause=\"no-common-scheme\"} 1"));
    lab.finish().await;
    assert_eq!(service.bytes(), 0);
}

async fn an_expired_identity(over: Over) {
    let hop = Hop::new();
    let service = service(&hop, &[&TLS13], true, true).await;
    let past = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
    let old = hop.ca.leaf_with(&["old.test"], &rcgen::KeyPair::generate().unwrap(), |params| params.not_after = past);
    hop.identity("old", &old);
    let lab = Lab::start(over, &hop.rule("old", url(&service), "")).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (525, Some("origin-tls-refused")));
    assert!(lab.metrics.expose().contains("adit_inner_hop_failures_total{cause=\"own-identity-unusable\"} 1"));
    lab.finish().await;
    assert!(service.seen().is_empty(), "nothing is dialled: {:?}", service.seen());
}

async fn plain_and_local(over: Over) {
    let service = scripted(|mut peer| async move {
        while peer.request().await.is_some() {
            let head = "HTTP/1.1 403 Forbidden\r\nAdit-Error: caller-missing\r\nContent-Length: 0\r\n\r\n";
            if !peer.send(head).await {
                return;
            }
        }
    })
    .await;
    let inherited = "innerHop:\n  mutualTls: remote\n  expect: [ \"spiffe://example.org/backend\" ]\n";
    let lab = Lab::start(over, &format!("{inherited}ingress:\n  - service: http://{service}\n")).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (403, None), "it has proven nothing");
    lab.finish().await;
}

over_both! {
    a_plain_service_that_inherits_what_is_expected_is_no_guard => plain_and_local,
    a_service_that_does_not_ask_is_refused_on_dials_one_to_ten_and_sees_no_byte => not_asking,
    a_service_that_asks_resumes_on_the_second_dial => asking,
    two_identities_to_one_address_share_no_connection => |over| two_identities(over, true),
    two_identities_to_one_address_share_no_session => |over| two_identities(over, false),
    a_service_that_asks_for_another_kind_of_key_is_not_one_that_does_not_ask => one_that_accepts_no_signature_of_ours,
    an_expired_identity_dials_nothing => an_expired_identity,
}
