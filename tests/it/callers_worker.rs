//! Workers that may write or only read, through an edge that asks for certificates: `config/callers.yml` at work, and
//! what becomes of everything that is open when one of them is revoked.

use std::{path::PathBuf, sync::Arc, time::Duration};

use adit::{
    edge::{
        EdgeConfig,
        certificates::{ClientAuth, FileCertificate},
    },
    tls::issue::{self, Authority, Leaf, NewLeaf},
};
use rustls::{
    ClientConfig, HandshakeKind,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{
    Answer, LIMIT, Lab, Over, eventually,
    hop::{Hop, counted},
    over_both,
    peer::{Peer, ok, scripted},
};

const CONFIG: &str = include_str!("../../config/callers.yml");
const ENTRY_OF_A: &str = "          - { id: \"spiffe://example.org/worker/a\" }\n";
/// `1008`, unmasked.
const VIOLATION: [u8; 4] = [0x88, 2, 0x03, 0xf0];
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

type Visitor = Peer<TlsStream<TcpStream>>;

/// Workers with their authority, an edge that asks for certificates, and a connector under `config/callers.yml`.
struct Records {
    lab: Lab,
    /// Where what the configuration names is.
    secrets: tempfile::TempDir,
    authority: Authority,
    yaml: String,
    /// The service's end of each WebSocket.
    sockets: mpsc::Receiver<Peer>,
}

fn worker(authority: &Authority, name: &str) -> NewLeaf {
    let id = format!("spiffe://example.org/worker/{name}").parse().unwrap();
    let leaf = Leaf { name, dns: &[], uris: &[id], lifetime: Duration::from_secs(3600) };
    authority.issue_leaf(&leaf).unwrap()
}

impl Records {
    async fn start(over: Over, change: impl FnOnce(String) -> String) -> Self {
        let secrets = tempfile::tempdir().unwrap();
        let laboratory = issue::new_laboratory("workers").unwrap();
        let intermediate = &laboratory.intermediate;
        let authority = Authority::from_pem(&intermediate.certificate_pem, &intermediate.key_pem).unwrap();
        for (name, text) in [
            ("root.pem", &laboratory.root.certificate_pem),
            ("intermediate.pem", &intermediate.certificate_pem),
            ("crl.pem", &authority.revocation_list(None, &[]).unwrap().pem),
        ] {
            std::fs::write(secrets.path().join(name), text).unwrap();
        }
        let (given, sockets) = mpsc::channel(8);
        let service = scripted(move |mut peer| {
            let given = given.clone();
            async move {
                while let Some((head, _)) = peer.request().await {
                    if head.header("upgrade").is_some() {
                        peer.send(ACCEPT).await;
                        let _ = given.send(peer).await;
                        return;
                    }
                    if head.target() == "/download" {
                        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
                        return peer.ended().await;
                    }
                    let seen = [
                        head.header("x-client-cert-spiffe-id"),
                        head.header("x-client-cert-chain-verified"),
                        head.header("client-cert"),
                    ];
                    if !peer.send(ok(format!("{} {seen:?}", head.line))).await {
                        return;
                    }
                }
            }
        })
        .await;
        let yaml = CONFIG
            .replace("/vault/secrets", &secrets.path().display().to_string())
            .replace("records.example.com", "web.test")
            .replace("127.0.0.1:8080", &service.to_string());
        let yaml: String = yaml
            .lines()
            .filter(|line| !line.starts_with("token-file"))
            .fold(String::new(), |all, line| all + line + "\n");
        let yaml = change(yaml);
        assert!(yaml.contains(ENTRY_OF_A));
        let asked = FileCertificate {
            hostnames: vec!["web.test".into()],
            material: None,
            client_auth: ClientAuth::Optional,
            trust: Vec::new(),
        };
        let mut lab = Lab::edge_with(|config| EdgeConfig { certificates: vec![asked], ..config }).await;
        lab.connect_following(over, &yaml, |flags| flags).await;
        lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.expect("the connector did not register");
        Self { lab, secrets, authority, yaml, sockets }
    }

    fn tls(&self, worker: Option<&NewLeaf>) -> TlsConnector {
        let builder = ClientConfig::builder_with_provider(adit::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(adit::tls::roots_from_file(&self.lab.state.ca_path()).unwrap());
        let config = match worker {
            Some(worker) => {
                let key = PrivateKeyDer::from_pem_slice(worker.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![der(worker)], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        TlsConnector::from(Arc::new(config))
    }

    async fn visit(&self, tls: &TlsConnector) -> Visitor {
        let tcp = TcpStream::connect(self.lab.https).await.unwrap();
        Peer::new(tls.connect("web.test".try_into().unwrap(), tcp).await.unwrap(), 0)
    }

    async fn ask(&self, tls: &TlsConnector, method: &str) -> (u16, Option<String>, String) {
        told(&ask(&mut self.visit(tls).await, method).await)
    }

    /// Both ends of a WebSocket, a message through.
    async fn socket(&mut self, tls: &TlsConnector) -> (Visitor, Peer) {
        let mut visitor = self.visit(tls).await;
        visitor.send(format!("GET /ws HTTP/1.1\r\nHost: web.test\r\n{UPGRADE}\r\n")).await;
        assert_eq!(visitor.answer_head().await.status, 101);
        let mut service = tokio::time::timeout(LIMIT, self.sockets.recv()).await.unwrap().unwrap();
        passes(&mut visitor, &mut service).await;
        (visitor, service)
    }

    fn revoke(&self, worker: &NewLeaf) {
        let list = self.authority.revocation_list(None, &[der(worker)]).unwrap();
        std::fs::write(self.path("crl.pem"), list.pem).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.secrets.path().join(name)
    }

    fn metric(&self, series: &str) -> u64 {
        let text = self.lab.metrics.expose();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }
}

fn der(worker: &NewLeaf) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(worker.certificate_pem.as_bytes()).unwrap()
}

async fn ask(visitor: &mut Visitor, method: &str) -> Answer {
    visitor.send(format!("{method} /x HTTP/1.1\r\nHost: web.test\r\nContent-Length: 0\r\n\r\n")).await;
    if method == "HEAD" { visitor.answer_head().await } else { visitor.answer().await }
}

fn told(answer: &Answer) -> (u16, Option<String>, String) {
    (answer.status, answer.code().map(str::to_owned), answer.text())
}

fn refused(code: &str) -> (u16, Option<String>, String) {
    (403, Some(code.to_owned()), String::new())
}

/// A masked message, with a mask of zeros.
async fn passes(visitor: &mut Visitor, service: &mut Peer) {
    visitor.send(b"\x82\x83\0\0\0\0abc").await;
    assert_eq!(tokio::time::timeout(LIMIT, service.exact(9)).await.unwrap(), b"\x82\x83\0\0\0\0abc");
    service.send(b"\x82\x03def").await;
    assert_eq!(tokio::time::timeout(LIMIT, visitor.exact(5)).await.unwrap(), b"\x82\x03def");
}

async fn roles(over: Over) {
    let records = Records::start(over, |yaml| yaml).await;
    let [a, b, c] = ["a", "b", "c"].map(|name| worker(&records.authority, name));
    let stranger = issue::new_authority("other").unwrap();
    let stranger = worker(&Authority::from_pem(&stranger.certificate_pem, &stranger.key_pem).unwrap(), "a");
    let unlisted = worker(&records.authority, "d");
    for (who, may_read, may_write) in [
        (Some(&a), None, None),
        (Some(&b), None, None),
        (Some(&c), None, Some("caller-not-allowed")),
        (Some(&unlisted), Some("caller-not-allowed"), Some("caller-not-allowed")),
        (Some(&stranger), Some("caller-invalid"), Some("caller-invalid")),
        (None, Some("caller-missing"), Some("caller-missing")),
    ] {
        let tls = records.tls(who);
        for (method, refusal) in [("GET", may_read), ("HEAD", may_read), ("PUT", may_write), ("DELETE", may_write)] {
            let (status, code, text) = records.ask(&tls, method).await;
            assert_eq!((status, code.as_deref()), (if refusal.is_some() { 403 } else { 200 }, refusal), "{method}");
            if status == 200 && method != "HEAD" {
                assert!(text.contains("Some(\"spiffe://example.org/worker/"), "{text}");
                assert!(text.ends_with("Some(\"true\"), None]"), "{text}");
            }
        }
    }
    assert_eq!(records.metric("adit_caller_decisions_total{outcome=\"missing\",cause=\"\"}"), 4);
    assert_eq!(records.metric("adit_caller_decisions_total{outcome=\"not-allowed\",cause=\"\"}"), 6);
    assert_eq!(records.metric("adit_caller_decisions_total{outcome=\"invalid\",cause=\"unknown-issuer\"}"), 4);
    assert_eq!(records.metric("adit_caller_decisions_total{outcome=\"allowed\",cause=\"\"}"), 10);
    records.lab.finish().await;
}

#[derive(Clone, Copy)]
enum Revoked {
    ByList,
    ByPolicy,
}

async fn revoked(over: Over, how: Revoked) {
    let mut records = Records::start(over, |yaml| yaml).await;
    let [a, b, c] = ["a", "b", "c"].map(|name| worker(&records.authority, name));
    let [tls_a, tls_b, tls_c] = [&a, &b, &c].map(|worker| records.tls(Some(worker)));
    let mut kept_a = records.visit(&tls_a).await;
    let mut kept_b = records.visit(&tls_b).await;
    for kept in [&mut kept_a, &mut kept_b] {
        assert_eq!(ask(kept, "PUT").await.status, 200);
    }
    let (mut answers, mut answers_service) = records.socket(&tls_a).await;
    let (mut is_silent, mut silent_service) = records.socket(&tls_a).await;
    let (mut stays, mut stays_service) = records.socket(&tls_b).await;
    let mut download = records.visit(&tls_a).await;
    download.send("GET /download HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    assert_eq!(download.answer_head().await.status, 200);
    assert_eq!(download.exact(4).await, b"half");

    let code = match how {
        Revoked::ByPolicy => {
            records.lab.configure(&records.yaml.replace(ENTRY_OF_A, ""));
            "caller-not-allowed"
        }
        Revoked::ByList => {
            records.revoke(&a);
            "caller-invalid"
        }
    };
    // Both ends hear why, and say goodbye.
    assert_eq!(tokio::time::timeout(LIMIT, answers.exact(4)).await.unwrap(), VIOLATION);
    let close = tokio::time::timeout(LIMIT, answers_service.exact(8)).await.unwrap();
    assert_eq!((close[0], close[6] ^ close[2], close[7] ^ close[3]), (0x88, 0x03, 0xf0));
    answers.send(b"\x88\x82\0\0\0\0\x03\xf0").await;
    answers_service.send(VIOLATION).await;
    assert_eq!(answers.rest().await, b"");
    assert_eq!(answers_service.rest().await, b"");
    // What says nothing is cut after a second.
    assert_eq!(is_silent.exact(4).await, VIOLATION);
    assert_eq!(silent_service.exact(8).await[0], 0x88);
    tokio::time::timeout(LIMIT, is_silent.ended()).await.expect("a silent WebSocket outlives its caller");
    tokio::time::timeout(LIMIT, silent_service.ended()).await.expect("the service's end outlives its caller");
    assert_eq!(tokio::time::timeout(LIMIT, download.rest()).await.unwrap(), b"", "half a download is cut");

    // No restart, and not one request more, whatever connection it comes over.
    assert_eq!(told(&ask(&mut kept_a, "PUT").await), refused(code), "over an open connection");
    let mut resumed = records.visit(&tls_a).await;
    assert_eq!(resumed.io.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(told(&ask(&mut resumed, "GET").await), refused(code), "over a resumed session");
    let mut fresh = records.visit(&records.tls(Some(&a))).await;
    assert_eq!(fresh.io.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(told(&ask(&mut fresh, "GET").await), refused(code), "over a new handshake");

    // Nobody else noticed.
    passes(&mut stays, &mut stays_service).await;
    assert_eq!(ask(&mut kept_b, "PUT").await.status, 200);
    assert_eq!(records.ask(&tls_c, "GET").await.0, 200);
    assert_eq!(records.metric("adit_caller_decisions_total{outcome=\"withdrawn\",cause=\"\"}"), 3);
    drop(stays_service);
    records.lab.finish().await;
}

async fn revoked_in_a_drain(over: Over) {
    let records = Records::start(over, |yaml| yaml).await;
    let a = worker(&records.authority, "a");
    let mut download = records.visit(&records.tls(Some(&a))).await;
    download.send("GET /download HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    assert_eq!(download.answer_head().await.status, 200);
    assert_eq!(download.exact(4).await, b"half");
    records.lab.tasks.drain_and_stay();
    records.lab.admin_says("/readyz", 503).await;
    records.revoke(&a);
    assert_eq!(tokio::time::timeout(LIMIT, download.rest()).await.expect("his stream goes on"), b"");
    assert_eq!(records.metric("adit_caller_decisions_total{outcome=\"withdrawn\",cause=\"\"}"), 1);
    records.lab.finish().await;
}

/// Of another rule, which keeps the roots it had, generation after generation.
async fn unreadable_roots(over: Over) {
    let hop = Hop::new();
    let acceptor = hop.acceptor(&hop.ca.leaf(&["127.0.0.1"]), &[&rustls::version::TLS13], false);
    let service = counted(acceptor, false).await;
    let (pool, port) = (hop.path("ca.pem"), service.port);
    let rules = format!(
        "  - hostname: web.test\n    path: ^/other\n    service: https://127.0.0.1:{port}\n    \
         originRequest: {{ caPool: {} }}\n  - hostname: web.test\n",
        pool.display()
    );
    let records = Records::start(over, |yaml| yaml.replacen("  - hostname: web.test\n", &rules, 1)).await;
    let [a, b, c] = ["a", "b", "c"].map(|name| worker(&records.authority, name));
    let tls_b = records.tls(Some(&b));
    let other = async || {
        let mut visitor = records.visit(&tls_b).await;
        visitor.send("GET /other HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
        visitor.answer().await.status
    };
    assert_eq!(other().await, 200);
    std::fs::remove_file(pool).unwrap();
    for revoked in [&a, &c] {
        let tls = records.tls(Some(revoked));
        assert_eq!(records.ask(&tls, "GET").await.0, 200);
        records.revoke(revoked);
        eventually("the list is in force", async || records.ask(&tls, "GET").await == refused("caller-invalid")).await;
        assert_eq!(other().await, 200);
    }
    records.lab.finish().await;
}

/// A second rule keeps referring to the workers' trust.
fn with_another_rule(yaml: String) -> String {
    yaml.replace(
        "  - service: http_status:404",
        "  - hostname: other.web.test\n    service: http://127.0.0.1:1\n  - service: http_status:404",
    )
}

async fn gone(over: Over) {
    let mut records = Records::start(over, with_another_rule).await;
    let a = worker(&records.authority, "a");
    let tls = records.tls(Some(&a));
    let (mut visitor, mut service) = records.socket(&tls).await;
    let serves = async |status: u16| {
        eventually(&format!("{status} is served"), async || records.ask(&tls, "GET").await.0 == status).await;
    };
    // The rule is gone, then another stands in its place, which would not have let this request in.
    let gone = records.yaml.replace("hostname: web.test", "hostname: gone.web.test");
    records.lab.configure(&gone);
    serves(404).await;
    passes(&mut visitor, &mut service).await;
    let other = gone.replace(
        "  - hostname: gone",
        "  - hostname: web.test\n    path: ^/x\n    service: http://127.0.0.1:1\n    innerHop: { callers: { allow: [] } }\n  \
         - hostname: gone",
    );
    records.lab.configure(&other);
    serves(403).await;
    passes(&mut visitor, &mut service).await;
    // Another service under the same rule changes nothing either.
    let moved = records.yaml.replacen("service: http://", "service: http://127.0.0.1:1 # ", 1);
    records.lab.configure(&moved);
    serves(502).await;
    passes(&mut visitor, &mut service).await;
    records.lab.configure(&other);
    serves(403).await;
    // Its trust still counts.
    records.revoke(&a);
    assert_eq!(tokio::time::timeout(LIMIT, visitor.exact(4)).await.unwrap(), VIOLATION);
    drop((visitor, service));
    records.lab.finish().await;
}

over_both! {
    workers_write_and_read_as_the_list_says => roles,
    a_worker_that_is_taken_off_the_list_is_out_at_once => async |over| Box::pin(revoked(over, Revoked::ByPolicy)).await,
    a_worker_whose_certificate_is_revoked_is_out_at_once => async |over| Box::pin(revoked(over, Revoked::ByList)).await,
    a_worker_who_is_revoked_during_a_drain_is_out_as_well => revoked_in_a_drain,
    a_file_of_roots_that_is_gone_keeps_no_revoked_worker_in => unreadable_roots,
    a_rule_that_is_gone_leaves_its_streams_to_their_trust => gone,
}
