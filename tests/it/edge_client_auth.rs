//! Visitors who are asked for certificates by hostname: who is served, what is relayed, and on which connection.

mod hot;
mod programs;

use std::{path::Path, sync::Arc};

use adit::{
    config::{IdentitySource, SecretRef},
    edge::certificates::{ClientAuth, FileCertificate},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::Request;
use rcgen::KeyPair;
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{
    Answer, LIMIT, Lab, Over, background, mirror, over_both, rule,
    tls::{Ca, Leaf, client_config, h2_body},
};

/// Authorities, and files of them.
struct Papers {
    dir: tempfile::TempDir,
    trusted: Ca,
    /// Of nobody we know.
    strange: Ca,
}

impl Papers {
    fn new() -> Self {
        let papers =
            Self { dir: tempfile::tempdir().unwrap(), trusted: Ca::new("trusted"), strange: Ca::new("strange") };
        papers.write("trusted.pem", &papers.trusted.pem);
        papers
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn trust(&self) -> Vec<SecretRef> {
        vec![SecretRef::File(self.path("trusted.pem"))]
    }
}

fn entry(hostnames: &[&str], client_auth: ClientAuth, trust: Vec<SecretRef>) -> FileCertificate {
    let hostnames = hostnames.iter().map(|&name| name.to_owned()).collect();
    FileCertificate { hostnames, material: None, client_auth, trust }
}

fn from_files(certificate: &Path, key: &Path) -> Option<IdentitySource> {
    let (certificate, key) = (SecretRef::File(certificate.into()), Some(SecretRef::File(key.into())));
    Some(IdentitySource { certificate, key })
}

/// An edge with these entries, and a connector whose service says what it heard.
async fn lab(over: Over, entries: Vec<FileCertificate>) -> Lab {
    lab_with(over, entries, &rule(format!("http://{}", mirror().await))).await
}

async fn lab_with(over: Over, entries: Vec<FileCertificate>, yaml: &str) -> Lab {
    let mut lab = Lab::edge_with(|config| adit::edge::EdgeConfig { certificates: entries, ..config }).await;
    lab.connect(over, yaml, |flags| flags).await;
    lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.expect("the connector did not register");
    lab
}

/// A visitor's TLS, with a certificate or without. Trusts the edge's authority and that of [`own_certificate`].
fn visitor(lab: &Lab, papers: &Papers, leaf: Option<&Leaf>, alpn: &str) -> ClientConfig {
    let mut roots = adit::tls::roots_from_file(&lab.state.ca_path()).unwrap();
    roots.add(CertificateDer::from_pem_slice(papers.trusted.pem.as_bytes()).unwrap()).unwrap();
    client_config(roots, leaf, &[alpn], rustls::DEFAULT_VERSIONS)
}

async fn connect(lab: &Lab, config: ClientConfig, sni: &str) -> std::io::Result<TlsStream<TcpStream>> {
    connect_with(lab, &TlsConnector::from(Arc::new(config)), sni).await
}

async fn connect_with(lab: &Lab, connector: &TlsConnector, sni: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(lab.https).await.unwrap();
    connector.connect(sni.to_owned().try_into().unwrap(), tcp).await
}

/// One request in HTTP/1.1, and the end of the connection.
async fn ask(mut stream: TlsStream<TcpStream>, host: &str) -> Answer {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await.expect("no answer in time");
    Answer::parse(&bytes)
}

/// Requests for these hosts on one HTTP/2 connection: status, code, and what the service heard.
async fn ask_h2(stream: TlsStream<TcpStream>, hosts: &[&str]) -> Vec<(u16, Option<String>, String)> {
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    background(async move {
        let _ = connection.await;
    });
    let mut answers = Vec::new();
    for host in hosts {
        let mut sender = sender.clone().ready().await.unwrap();
        let request = Request::get(format!("https://{host}/")).body(()).unwrap();
        let answer = sender.send_request(request, true).unwrap().0.await.unwrap();
        let code = answer.headers().get("adit-error").map(|code| code.to_str().unwrap().to_owned());
        answers.push((answer.status().as_u16(), code, h2_body(answer.into_body()).await.0));
    }
    answers
}

/// The value of a header in a request that the service sent back.
fn heard<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
}

fn item(der: &CertificateDer<'_>) -> String {
    format!(":{}:", STANDARD.encode(der))
}

/// What a visitor shows, and what becomes of it under an entry.
async fn matrix(over: Over) {
    let papers = Papers::new();
    let under = papers.trusted.under("intermediate");
    let mut valid = under.leaf(&["caller.test"]);
    valid.certificate.push_str(&under.pem);
    let stranger = papers.strange.leaf(&["caller.test"]);
    let (off, optional, required) = (ClientAuth::Off, ClientAuth::Optional, ClientAuth::Required);
    let lab = lab(
        over,
        vec![
            FileCertificate {
                material: own_certificate(&papers, "off.web.test"),
                ..entry(&["off.web.test"], off, vec![])
            },
            entry(&["optional.web.test"], optional, papers.trust()),
            entry(&["any.web.test"], optional, vec![]),
            entry(&["required.web.test"], required, papers.trust()),
            entry(&["some.web.test"], required, vec![]),
        ],
    )
    .await;
    let (missing, invalid) = (Some("caller-missing"), Some("caller-invalid"));
    let served = None;
    for (host, nobody, by_valid, by_stranger) in [
        ("web.test", served, served, served),
        ("off.web.test", served, served, served),
        ("optional.web.test", served, served, invalid),
        ("any.web.test", served, served, served),
        ("required.web.test", missing, served, invalid),
        ("some.web.test", missing, served, served),
    ] {
        let asked = !["web.test", "off.web.test"].contains(&host);
        for (leaf, expected) in [(None, nobody), (Some(&valid), by_valid), (Some(&stranger), by_stranger)] {
            let stream = connect(&lab, visitor(&lab, &papers, leaf, "http/1.1"), host).await.unwrap();
            let answer = ask(stream, host).await;
            let stream = connect(&lab, visitor(&lab, &papers, leaf, "h2"), host).await.unwrap();
            let over_h2 = ask_h2(stream, &[host]).await.remove(0);
            let over_h1 = (answer.status, answer.code().map(str::to_owned), answer.text());
            for (status, code, text) in [over_h1, over_h2] {
                let case = format!("{host} {:?} {text}", leaf.map(|leaf| leaf.chain().len()));
                assert_eq!((status, code.as_deref()), (if expected.is_some() { 403 } else { 200 }, expected), "{case}");
                if expected.is_none() {
                    let chain = leaf.filter(|_| asked).map(Leaf::chain).unwrap_or_default();
                    assert_eq!(heard(&text, "client-cert"), chain.first().map(item).as_deref(), "{case}");
                    assert_eq!(heard(&text, "client-cert-chain"), chain.get(1).map(item).as_deref(), "{case}");
                }
            }
        }
    }
    assert_eq!(lab.edge_metric("adit_edge_refusals_total{code=\"caller-missing\"}"), 4);
    assert_eq!(lab.edge_metric("adit_edge_refusals_total{code=\"caller-invalid\"}"), 4);
    lab.finish().await;
}

/// A certificate of the file, from the authority that visitors of these tests trust as well.
fn own_certificate(papers: &Papers, name: &str) -> Option<IdentitySource> {
    let leaf = papers.trusted.leaf(&[name]);
    papers.write("server.pem", &leaf.certificate);
    papers.write("server.key", &leaf.key);
    from_files(&papers.path("server.pem"), &papers.path("server.key"))
}

/// A connection that was asked for one hostname, and requests for others.
async fn wrong_connection(over: Over) {
    let papers = Papers::new();
    let leaf = papers.trusted.leaf(&["caller.test"]);
    papers.write("other.pem", &papers.strange.pem);
    let other = vec![SecretRef::File(papers.path("other.pem"))];
    let lab = lab(
        over,
        vec![
            entry(&["optional.web.test"], ClientAuth::Optional, papers.trust()),
            entry(&["any.web.test"], ClientAuth::Optional, vec![]),
            entry(&["required.web.test", "same.web.test", "*.deep.web.test"], ClientAuth::Required, papers.trust()),
            entry(&["other.web.test"], ClientAuth::Required, other),
        ],
    )
    .await;
    let (good, wrong) = ((200, None), (421, Some("wrong-connection")));
    for (sni, host, expected) in [
        ("web.test", "required.web.test", wrong),
        ("web.test", "REQUIRED.web.test.:443", wrong),
        ("web.test", "optional.web.test", wrong),
        ("web.test", "a.web.test", good),
        ("optional.web.test", "required.web.test", wrong),
        ("optional.web.test", "any.web.test", good),
        ("any.web.test", "optional.web.test", wrong),
        ("required.web.test", "optional.web.test", good),
        ("required.web.test", "same.web.test", good),
        ("required.web.test", "web.test", good),
        ("required.web.test", "other.web.test", wrong),
        ("required.web.test", "a.b.deep.web.test", good),
        ("web.test", "a.deep.web.test", wrong),
        // The tunnel serves any number of labels, so the demand holds as deep.
        ("web.test", "a.b.deep.web.test", wrong),
        ("a.b.deep.web.test", "a.b.deep.web.test", good),
    ] {
        let stream = connect(&lab, visitor(&lab, &papers, Some(&leaf), "http/1.1"), sni).await.unwrap();
        let answer = ask(stream, host).await;
        assert_eq!((answer.status, answer.code()), expected, "{sni} {host}");
        let asked = !["web.test", "a.web.test"].contains(&host);
        let relayed = heard(&answer.text(), "client-cert").is_some();
        assert_eq!(relayed, asked && expected == good, "{sni} {host}: {}", answer.text());
        // Coalesced: the connection's own name first, then the other, and its own again.
        let stream = connect(&lab, visitor(&lab, &papers, Some(&leaf), "h2"), sni).await.unwrap();
        let answers = ask_h2(stream, &[sni, host.trim_end_matches(":443"), sni]).await;
        let told: Vec<_> = answers.iter().map(|(status, code, _)| (*status, code.as_deref())).collect();
        assert_eq!(told, [good, expected, good], "{sni} {host}");
    }
    // Nobody said whom he wants.
    for (host, expected) in [("required.web.test", wrong), ("optional.web.test", wrong), ("web.test", good)] {
        let mut config = visitor(&lab, &papers, Some(&leaf), "http/1.1");
        config.enable_sni = false;
        let stream = connect(&lab, config, "localhost").await.unwrap();
        let answer = ask(stream, host).await;
        assert_eq!((answer.status, answer.code()), expected, "{host}");
    }
    lab.finish().await;
}

/// A name goes before any `*.`, and a longer `*.` before a shorter one, wherever they stand in the file.
async fn order(over: Over) {
    let papers = Papers::new();
    let leaf = papers.trusted.leaf(&["caller.test"]);
    let mut entries = vec![
        entry(&["*.web.test"], ClientAuth::Off, vec![]),
        entry(&["admin.web.test"], ClientAuth::Required, papers.trust()),
        entry(&["*.deep.web.test"], ClientAuth::Required, papers.trust()),
        entry(&["open.deep.web.test"], ClientAuth::Off, vec![]),
    ];
    for _ in 0..2 {
        let lab = lab(over, entries.clone()).await;
        for (host, demanded) in [
            ("a.web.test", false),
            ("admin.web.test", true),
            ("a.deep.web.test", true),
            ("a.b.deep.web.test", true),
            ("open.deep.web.test", false),
        ] {
            for leaf in [None, Some(&leaf)] {
                let stream = connect(&lab, visitor(&lab, &papers, leaf, "http/1.1"), host).await.unwrap();
                let answer = ask(stream, host).await;
                let expected = if demanded && leaf.is_none() { Some("caller-missing") } else { None };
                assert_eq!(answer.code(), expected, "{host}");
                assert_eq!(heard(&answer.text(), "client-cert").is_some(), demanded && leaf.is_some(), "{host}");
            }
        }
        lab.finish().await;
        entries.reverse();
    }
}

/// In clear nobody can show a certificate, whatever he says.
async fn in_clear(over: Over) {
    let papers = Papers::new();
    let lab = lab(
        over,
        vec![
            entry(&["required.web.test"], ClientAuth::Required, vec![]),
            entry(&["optional.web.test"], ClientAuth::Optional, papers.trust()),
        ],
    )
    .await;
    let forged = item(&papers.trusted.leaf(&["caller.test"]).chain()[0]);
    let ask = async |host: &str| {
        lab.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nClient-Cert: {forged}\r\nConnection: close\r\n\r\n")).await
    };
    let answer = ask("required.web.test").await;
    assert_eq!((answer.status, answer.code()), (403, Some("caller-missing")));
    let answer = ask("optional.web.test").await;
    assert_eq!((answer.status, heard(&answer.text(), "client-cert")), (200, None));
    lab.finish().await;
}

/// What is too large is not relayed, and is not nothing either.
async fn too_large(over: Over) {
    let papers = Papers::new();
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = (0..600).map(|n| format!("a-rather-long-name-{n:04}.caller.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let large = papers.trusted.leaf_with(&names, &key, |_| {});
    let fitting = papers.trusted.leaf_with(&names[..380], &key, |_| {});
    assert!(large.chain()[0].len() > 16 << 10 && (12 << 10..16 << 10).contains(&fitting.chain()[0].len()));
    let lab = lab(
        over,
        vec![
            entry(&["any.web.test"], ClientAuth::Optional, vec![]),
            entry(&["trusting.web.test"], ClientAuth::Optional, papers.trust()),
            entry(&["some.web.test"], ClientAuth::Required, vec![]),
        ],
    )
    .await;
    for (host, expected) in [("any.web.test", None), ("trusting.web.test", Some(403)), ("some.web.test", Some(403))] {
        let stream = connect(&lab, visitor(&lab, &papers, Some(&large), "http/1.1"), host).await.unwrap();
        let answer = ask(stream, host).await;
        assert_eq!(answer.status, expected.unwrap_or(200), "{host}");
        match expected {
            Some(_) => assert_eq!(answer.code(), Some("caller-invalid"), "{host}"),
            None => assert_eq!(heard(&answer.text(), "client-cert"), Some("::"), "{host}"),
        }
        let stream = connect(&lab, visitor(&lab, &papers, Some(&fitting), "http/1.1"), host).await.unwrap();
        let answer = ask(stream, host).await;
        let whole = item(&fitting.chain()[0]);
        assert_eq!((answer.status, heard(&answer.text(), "client-cert")), (200, Some(&*whole)), "{host}");
    }
    lab.finish().await;
}

/// A certificate that anybody can copy, shown by somebody without its key.
async fn without_key(over: Over) {
    let papers = Papers::new();
    let leaf = papers.trusted.leaf(&["caller.test"]);
    let lab = lab(over, vec![entry(&["any.web.test"], ClientAuth::Optional, vec![])]).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let other = KeyPair::generate().unwrap().serialize_der();
        let key = adit::tls::provider().key_provider.load_private_key(PrivateKeyDer::try_from(other).unwrap()).unwrap();
        let certified = Arc::new(rustls::sign::CertifiedKey::new(leaf.chain(), key));
        let roots = adit::tls::roots_from_file(&lab.state.ca_path()).unwrap();
        let config = ClientConfig::builder_with_provider(adit::tls::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        let failed = match connect(&lab, config, "any.web.test").await {
            Err(error) => error.to_string(),
            // In TLS 1.3 the client is done before its proof is looked at.
            Ok(mut stream) => {
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: any.web.test\r\n\r\n").await;
                stream.read(&mut [0]).await.unwrap_err().to_string()
            }
        };
        assert!(failed.contains("alert"), "{version:?}: {failed}");
    }
    lab.finish().await;
}

over_both! {
    visitors_are_served_and_relayed_as_their_hostname_asks => matrix,
    a_hostname_that_demands_more_than_the_connection_was_asked_for_is_misdirected => wrong_connection,
    the_order_of_entries_takes_no_demand_away => order,
    nobody_has_a_certificate_in_clear => in_clear,
    a_chain_that_is_too_large_is_no_valid_one_and_not_none => too_large,
    a_certificate_without_its_key_ends_the_handshake => without_key,
}
