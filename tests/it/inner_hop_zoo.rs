//! The columns `present` and `expect` of `config/certificates.md`: what comes of every certificate that adit presents,
//! and of every one that a service shows.

use std::{fmt::Write, process::Stdio, sync::Arc, time::SystemTime};

use adit::{
    config::{Flags, parse_file},
    tls::keyring::{Keyring, Reread, Wanted},
};
use base64::Engine;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::CertificateDer,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    net::{TcpListener, TcpStream},
    process::Command,
};
use tokio_rustls::TlsAcceptor;

use crate::harness::{
    Lab, Over, eventually,
    hop::{Counted, counted},
    over_both,
    zoo::{self, Animal, As, DNS_NAME, Row, SPIFFE_ID, Zoo},
};

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn certificates(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
}

fn bundle(animal: &Animal) -> String {
    let key = animal.key.as_ref().map(|key| pem("PRIVATE KEY", key.secret_der()));
    certificates(&animal.chain) + &key.unwrap_or_default()
}

/// Demands a certificate and verifies it as the page says.
fn demanding(zoo: &Zoo) -> Arc<dyn ClientCertVerifier> {
    let mut roots = RootCertStore::empty();
    for root in zoo.roots() {
        roots.add(root).unwrap();
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), adit::tls::provider())
        .with_crls(zoo.revocation_lists())
        .allow_unknown_revocation_status()
        .build()
        .unwrap()
}

/// A service that shows this, whatever it is worth. `None`: its key is none that rustls signs with.
async fn showing(zoo: &Zoo, animal: Animal) -> Option<Counted> {
    let key = adit::tls::provider().key_provider.load_private_key(animal.key?).ok()?;
    let config = ServerConfig::builder_with_provider(adit::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(demanding(zoo))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(animal.chain, key))));
    Some(counted(TlsAcceptor::from(Arc::new(config)), false).await)
}

/// `always`, with these identities in `dir`, and these rules.
fn config(dir: &tempfile::TempDir, zoo: &Zoo, identities: &[&str], rules: &str) -> String {
    let at = dir.path().display();
    std::fs::write(dir.path().join("roots"), certificates(&zoo.roots())).unwrap();
    let identities: String =
        identities.iter().map(|name| format!("    {name}: {{ certificate: {at}/{name} }}\n")).collect();
    format!(
        "innerHop:\n  mutualTls: always\n  originTrust: [ {at}/roots ]\n  identities:\n{identities}ingress:\n{rules}"
    )
}

async fn outcome(lab: &Lab, row: &Row) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: {}.web.test\r\nConnection: close\r\n\r\n", row.name);
    let answer = lab.raw(request).await;
    match answer.code() {
        Some(code) => format!("{} {code}", answer.status),
        None => answer.status.to_string(),
    }
}

async fn assert_column(lab: &Lab, rows: &[Row], cell: impl Fn(&Row) -> &str) {
    let mut wrong = Vec::new();
    for row in rows {
        let is = outcome(lab, row).await;
        if is != cell(row) {
            wrong.push(format!("{}: {is}, documented as {}", row.name, cell(row)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn presented(over: Over) {
    let (zoo, dir) = (Zoo::new(), tempfile::tempdir().unwrap());
    let service = showing(&zoo, zoo.make("good", As::Server).unwrap()).await.unwrap();
    let rows: Vec<_> = zoo::table().into_iter().filter(|row| !matches!(&row.present[..], "-" | "not loaded")).collect();
    let mut rules = String::new();
    for row in &rows {
        let name = &row.name;
        std::fs::write(dir.path().join(name), bundle(&zoo.make(name, As::Client).unwrap())).unwrap();
        writeln!(
            rules,
            "  - {{ hostname: {name}.web.test, service: 'https://127.0.0.1:{}', innerHop: {{ present: {name} }}, \
             originRequest: {{ originServerName: {DNS_NAME} }} }}",
            service.port
        )
        .unwrap();
    }
    rules += "  - service: http_status:404\n";
    let names: Vec<_> = rows.iter().map(|row| &row.name[..]).collect();
    let lab = Lab::start(over, &config(&dir, &zoo, &names, &rules)).await;
    assert_column(&lab, &rows, |row| &row.present).await;
    lab.finish().await;
}

#[test]
fn what_is_documented_as_not_loaded_is_not() {
    let zoo = Zoo::new();
    let rows = zoo::table();
    let rows: Vec<_> = rows.iter().filter(|row| row.present == "not loaded").collect();
    assert!(rows.len() > 3, "{rows:?}");
    for row in rows {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("it"), bundle(&zoo.make(&row.name, As::Client).unwrap())).unwrap();
        let rule = "  - { service: 'https://127.0.0.1:1', innerHop: { present: it } }\n";
        let yaml = config(&dir, &zoo, &["it"], rule);
        let config = parse_file("f", &yaml, &Flags::default(), |_| None).unwrap().config;
        let wanted = Arc::new(Wanted::of(&config));
        let loaded = Keyring::load(&wanted, adit::secrets::read, Reread::All, &Arc::default(), SystemTime::now());
        let hop = config.ingress.unwrap().rules[0].hops.otherwise.clone().unwrap();
        assert!(loaded.keyring.identity(&hop.present.as_ref().unwrap().source).is_err(), "{}", row.name);
    }
}

/// A key of 1,024 bits is shown by nobody but OpenSSL, if it is asked to forget its own bounds.
async fn openssl_showing(dir: &tempfile::TempDir, animal: &Animal) -> (u16, tokio::process::Child) {
    let path = dir.path().join("shown");
    std::fs::write(&path, bundle(animal)).unwrap();
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let child = Command::new("openssl")
        .args(["s_server", "-www", "-quiet", "-cipher", "DEFAULT@SECLEVEL=0", "-accept", &addr.to_string(), "-cert"])
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("openssl listens", async || TcpStream::connect(addr).await.is_ok()).await;
    (addr.port(), child)
}

async fn expected(over: Over) {
    let (zoo, dir) = (Zoo::new(), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("good"), bundle(&zoo.make("good", As::Client).unwrap())).unwrap();
    let rows: Vec<_> = zoo::table().into_iter().filter(|row| row.expect != "-").collect();
    let (mut rules, mut servers, mut services) = (String::new(), Vec::new(), Vec::new());
    for row in &rows {
        let name = &row.name;
        let shown = || zoo.make(name, As::Server).unwrap();
        let port = match showing(&zoo, shown()).await {
            Some(service) => {
                services.push(service);
                services.last().unwrap().port
            }
            None => {
                let (port, child) = openssl_showing(&dir, &shown()).await;
                servers.push(child);
                port
            }
        };
        let expect = if name == "wildcard-dns" { format!("dns:{DNS_NAME}") } else { SPIFFE_ID.to_owned() };
        writeln!(
            rules,
            "  - {{ hostname: {name}.web.test, service: 'https://127.0.0.1:{port}', innerHop: {{ present: good, \
             expect: [ '{expect}' ] }} }}"
        )
        .unwrap();
    }
    rules += "  - service: http_status:404\n";
    let lab = Lab::start(over, &config(&dir, &zoo, &["good"], &rules)).await;
    assert_column(&lab, &rows, |row| &row.expect).await;
    lab.finish().await;
    // A service that is refused for its certificate has seen nothing.
    for service in services {
        let seen = service.seen();
        assert!(seen.iter().all(|seen| seen.kind.is_some() || seen.bytes == 0), "{seen:?}");
    }
}

over_both! {
    every_certificate_that_is_presented_has_its_documented_outcome => presented,
    #[ignore = "needs openssl in the PATH; .ci/run installs and runs it"]
    every_certificate_of_a_service_has_its_documented_outcome_with_openssl_for_the_weak => expected,
}
