//! Sessions that are resumed and files that change: what was shown once counts by what is trusted now.

use std::{path::PathBuf, sync::Arc};

use adit::{
    config::{IdentitySource, SecretRef},
    edge::certificates::{ClientAuth, FileCertificate},
};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::{Papers, ask, connect, connect_with, entry, heard, item, lab, lab_with, own_certificate, visitor};
use crate::harness::{Lab, Over, eventually, over_both, peer::Peer, read_head, rule, service, tls::Leaf};

const HOST: &str = "required.web.test";

/// What the edge says of files that changed.
fn reloads(lab: &Lab, outcome: &str) -> u64 {
    lab.edge_metric(&format!("adit_edge_certificate_reloads_total{{outcome=\"{outcome}\"}}"))
}

async fn resumed(over: Over) {
    let papers = Papers::new();
    let leaf = papers.trusted.leaf(&["caller.test"]);
    let lab = lab(
        over,
        vec![
            entry(&[HOST, "same.web.test"], ClientAuth::Required, papers.trust()),
            entry(&["optional.web.test"], ClientAuth::Optional, papers.trust()),
        ],
    )
    .await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = rustls::ClientConfig::builder_with_provider(adit::tls::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(adit::tls::roots_from_file(&lab.state.ca_path()).unwrap())
            .with_client_cert_resolver(visitor(&lab, &papers, Some(&leaf), "").client_auth_cert_resolver);
        let connector = TlsConnector::from(Arc::new(config));
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let stream = connect_with(&lab, &connector, HOST).await.unwrap();
            kinds.push(stream.get_ref().1.handshake_kind().unwrap());
            let answer = ask(stream, HOST).await;
            assert_eq!((answer.status, heard(&answer.text(), "client-cert")), (200, Some(&*item(&leaf.chain()[0]))));
        }
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed], "{version:?}");
    }
    lab.finish().await;
}

async fn trust_changes(over: Over) {
    let papers = Papers::new();
    let leaf = papers.trusted.leaf(&["caller.test"]);
    let newcomer = papers.strange.leaf(&["newcomer.test"]);
    let lab = lab(over, vec![entry(&[HOST], ClientAuth::Required, papers.trust())]).await;
    let connector = TlsConnector::from(Arc::new(visitor(&lab, &papers, Some(&leaf), "http/1.1")));
    let mut kept = Peer::new(connect_with(&lab, &connector, HOST).await.unwrap(), 0);
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut status = async || {
        kept.io.write_all(request.as_bytes()).await.unwrap();
        kept.answer().await.status
    };
    assert_eq!(status().await, 200);
    // Nonsense, an empty file and none: what was trusted stays.
    for text in ["", "-----BEGIN CERTIFICATE-----\nnot whole", "words"] {
        let before = reloads(&lab, "refused");
        papers.write("trusted.pem", text);
        eventually("it is told", async || reloads(&lab, "refused") == before + 1).await;
        assert_eq!(status().await, 200, "{text}");
    }
    assert_eq!(reloads(&lab, "replaced"), 0);
    // Another authority, by rename.
    papers.write("next.pem", &papers.strange.pem);
    std::fs::rename(papers.path("next.pem"), papers.path("trusted.pem")).unwrap();
    eventually("the trust changed", async || reloads(&lab, "replaced") == 1).await;
    assert_eq!(status().await, 403, "the connection was kept, the trust was not");
    let stream = connect_with(&lab, &connector, HOST).await.unwrap();
    assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    let answer = ask(stream, HOST).await;
    assert_eq!((answer.status, answer.code()), (403, Some("caller-invalid")), "a session is no verdict");
    let stream = connect(&lab, visitor(&lab, &papers, Some(&newcomer), "http/1.1"), HOST).await.unwrap();
    assert_eq!(ask(stream, HOST).await.status, 200);
    lab.finish().await;
}

async fn certificate_changes(over: Over) {
    let papers = Papers::new();
    let material = own_certificate(&papers, HOST);
    let lab = lab(over, vec![FileCertificate { material, ..entry(&[HOST], ClientAuth::Off, vec![]) }]).await;
    let shown = async || {
        let stream = connect(&lab, visitor(&lab, &papers, None, "http/1.1"), HOST).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let first = shown().await;
    let (certificate, key): (PathBuf, PathBuf) = (papers.path("server.pem"), papers.path("server.key"));
    let next = papers.trusted.leaf(&[HOST]);
    // The key first: it does not fit, and the pair is used only once it does.
    std::fs::write(&key, &next.key).unwrap();
    eventually("the pair is refused", async || reloads(&lab, "refused") == 1).await;
    assert_eq!(shown().await, first);
    std::fs::write(&certificate, &next.certificate).unwrap();
    eventually("the pair is used", async || reloads(&lab, "replaced") == 1).await;
    assert_eq!(shown().await, next.chain()[0]);
    let now = time::OffsetDateTime::now_utc();
    let old_key = rcgen::KeyPair::generate().unwrap();
    let expired = papers.trusted.leaf_with(&[HOST], &old_key, |params| {
        params.not_before = now - time::Duration::days(2);
        params.not_after = now - time::Duration::days(1);
    });
    std::fs::write(&key, &expired.key).unwrap();
    std::fs::write(&certificate, &expired.certificate).unwrap();
    eventually("it is refused", async || reloads(&lab, "refused") >= 2).await;
    assert_eq!(shown().await, next.chain()[0]);
    lab.finish().await;
}

async fn strangers(over: Over) {
    let papers = Papers::new();
    let bundle = |leaf: &Leaf, more: &str| {
        papers.write("next.pem", &format!("{}{more}{}", leaf.certificate, leaf.key));
        std::fs::rename(papers.path("next.pem"), papers.path("server.pem")).unwrap();
    };
    bundle(&papers.trusted.leaf(&[HOST]), "");
    let material = Some(IdentitySource { certificate: SecretRef::File(papers.path("server.pem")), key: None });
    let lab = lab(over, vec![FileCertificate { material, ..entry(&[HOST], ClientAuth::Off, vec![]) }]).await;
    let ends = || lab.edge_metric("adit_edge_certificate_not_after_seconds{entry=\"0\"}");
    let first = ends();
    bundle(&papers.trusted.leaf(&[HOST]), &papers.strange.pem);
    eventually("the stranger is refused", async || reloads(&lab, "refused") == 1).await;
    assert_eq!(reloads(&lab, "replaced"), 0);
    let end = time::OffsetDateTime::now_utc() + time::Duration::days(3);
    let key = rcgen::KeyPair::generate().unwrap();
    bundle(&papers.trusted.leaf_with(&[HOST], &key, |params| params.not_after = end), &papers.trusted.pem);
    eventually("the whole chain is used", async || reloads(&lab, "replaced") == 1).await;
    assert!(first > ends() && ends() == end.unix_timestamp() as u64);
    lab.finish().await;
}

async fn websocket(over: Over) {
    let papers = Papers::new();
    let leaf = papers.trusted.leaf(&["caller.test"]);
    let switching = service(|mut stream| async move {
        let Some((head, _)) = read_head(&mut stream).await else { return };
        let certificate = heard(&head, "client-cert").unwrap_or("none");
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: x\r\nHeard: {certificate}\r\n\r\n"
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let entries = vec![entry(&[HOST], ClientAuth::Required, papers.trust())];
    let lab = lab_with(over, entries, &rule(format!("http://{switching}"))).await;
    let upgrade = format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nClient-Cert: :Zm9yZ2Vk:\r\n\r\n"
    );
    for (leaf, status) in [(None, 403), (Some(&leaf), 101)] {
        let stream = connect(&lab, visitor(&lab, &papers, leaf, "http/1.1"), HOST).await.unwrap();
        let mut peer = Peer::new(stream, 0);
        peer.io.write_all(upgrade.as_bytes()).await.unwrap();
        let answer = peer.answer_head().await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("heard"), leaf.map(|leaf| item(&leaf.chain()[0])).as_deref());
    }
    lab.finish().await;
}

over_both! {
    a_resumed_session_relays_what_was_shown_in_its_first_handshake => resumed,
    changed_trust_counts_for_kept_connections_and_resumed_sessions => trust_changes,
    a_changed_certificate_is_used_once_it_is_whole_and_fits => certificate_changes,
    a_chain_with_a_certificate_of_another_is_not_used => strangers,
    a_websocket_is_a_request_like_any_other => websocket,
}
