//! The pages beside the configurations, as an operator would follow them: their commands are run, their configurations
//! loaded, their nginx is a real one. Only places and addresses are exchanged for the test's own.

use std::{net::SocketAddr, path::Path, process::Stdio, sync::Arc};

use adit::{
    config::{Flags, parse_file},
    tls::{material::Material, provider, roots_from_file},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::harness::{
    Answer, LIMIT, Lab, Over, eventually, over_both,
    process::adit,
    program::{Program, free},
    real::{Server, nginx},
};

const PULLS: [&str; 2] = [
    include_str!("../../config/authenticated-origin-pulls.md"),
    include_str!("../../config/authenticated-origin-pulls.yml"),
];
const KONG: [&str; 2] =
    [include_str!("../../config/kong-nginx-behind-adit.md"), include_str!("../../config/kong-nginx-behind-adit.yml")];
const KONG_EDGE: &str = include_str!("../../config/kong-nginx-behind-adit.edge.yml");
const READER_WRITER: [&str; 2] =
    [include_str!("../../config/reader-writer.md"), include_str!("../../config/reader-writer.yml")];

/// What every configuration begins with; a lab's token comes by flag.
const TOKEN: &str = "token-file: /vault/secrets/tunnel\n";

/// A page that is followed, in a folder that takes the place of `/vault/secrets`.
struct Page {
    dir: tempfile::TempDir,
    text: &'static str,
    config: &'static str,
}

impl Page {
    /// Runs every `adit pki` of the page, and puts the results where its configurations look.
    async fn follow([text, config]: [&'static str; 2], copies: &[(&str, &str)]) -> Self {
        let page = Self { dir: tempfile::tempdir().unwrap(), text, config };
        let mut ran = 0;
        for line in block(text, "").lines().map(str::trim).filter(|line| line.starts_with("adit pki ")) {
            let words: Vec<_> = line.split_whitespace().skip(1).collect();
            let output = adit().args(&words).current_dir(page.path()).output().await.unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            ran += 1;
        }
        assert!(ran > 2, "the page has no commands");
        for (from, to) in copies {
            std::fs::copy(page.path().join(from), page.path().join(to)).unwrap();
        }
        page
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn copy(&self, from: &str, to: &str) {
        std::fs::copy(self.path().join(from), self.path().join(to)).unwrap();
    }

    /// The page's nginx, listening on an address of its own.
    async fn nginx(&self) -> Server {
        let told = self.moved(&block(self.text, "nginx"));
        nginx(|addr, _| exchanged(&told, "listen 8443 ssl;", &format!("listen {addr} ssl;"))).await
    }

    /// The page's configuration for a service there, for the hostnames of a lab.
    fn config(&self, service: &str, addr: SocketAddr, hostnames: &[(&str, &str)]) -> String {
        let mut config = self.moved(&exchanged(self.config, TOKEN, ""));
        config = exchanged(&config, service, &addr.to_string());
        for (from, to) in hostnames {
            config = exchanged(&config, from, to);
        }
        config
    }

    fn moved(&self, text: &str) -> String {
        text.replace("/vault/secrets", self.path().to_str().unwrap())
    }
}

/// The first fenced block of a language; one that is not there is a mistake of the page.
fn block(page: &str, language: &str) -> String {
    let fence = format!("```{language}\n");
    let mut blocks = page.split("```").skip(1).step_by(2);
    let is = |block: &&str| {
        let (first, rest) = block.split_once('\n').unwrap_or_default();
        first == language && (!language.is_empty() || rest.contains("adit pki"))
    };
    let found = blocks.find(is).unwrap_or_else(|| panic!("no block {fence}"));
    found.split_once('\n').unwrap().1.to_owned()
}

/// A page that no longer says what is exchanged would be tested in another form than it is read in.
fn exchanged(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from:?} in\n{text}");
    text.replace(from, to)
}

async fn get(lab: &Lab, method: &str, host: &str) -> Answer {
    lab.raw(format!("{method} / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")).await
}

#[test]
fn the_configurations_of_the_pages_are_valid_and_without_warnings() {
    for (name, text) in [("pulls", PULLS[1]), ("kong", KONG[1]), ("reader-writer", READER_WRITER[1])] {
        let loaded = parse_file(name, text, &Flags::default(), |_| None).unwrap_or_else(|m| panic!("{name}: {m}"));
        assert_eq!(loaded.warnings, [], "{name}");
        assert!(text.contains(TOKEN), "{name}");
    }
    let readme = include_str!("../../README.md");
    let hop = readme.split("```yaml\n").map(|rest| rest.split("```").next().unwrap());
    let hop = hop.filter(|yaml| yaml.starts_with("innerHop:")).collect::<Vec<_>>();
    let loaded = parse_file("README.md", hop[0], &Flags::default(), |_| None).unwrap_or_else(|m| panic!("{m}"));
    assert_eq!(loaded.warnings, [], "README.md");
}

async fn pulls(over: Over) {
    let page = Page::follow(
        PULLS,
        &[("pki/root.pem", "ca.pem"), ("pki/adit.pem", "adit.pem"), ("pki/nginx.pem", "nginx.pem")],
    )
    .await;
    let server = page.nginx().await;
    let config = page.config("nginx.my-ns.svc:8443", server.addr, &[("app.example.com", "web.test")]);
    let lab = Lab::start(over, &config).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "SUCCESS CN=adit\n"), "{answer:?}");
    lab.finish().await;

    // An authority that nginx does not know: it answers itself, and that reaches the visitor as it is.
    run_pki(&page, "init strangers").await;
    run_pki(&page, "issue --dir strangers --name stranger --uri spiffe://example.org/stranger").await;
    page.copy("strangers/stranger.pem", "adit.pem");
    let lab = Lab::start(over, &config).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (400, None), "{answer:?}");
    lab.finish().await;

    // Another name than expected, and an authority that adit does not know.
    page.copy("pki/adit.pem", "adit.pem");
    let wrong = exchanged(&config, "dns:nginx.my-ns.svc", "dns:other.my-ns.svc");
    let lab = Lab::start(over, &wrong).await;
    assert_eq!(lab.get("/").await.code(), Some("origin-identity"));
    lab.finish().await;
    page.copy("strangers/root.pem", "ca.pem");
    let lab = Lab::start(over, &config).await;
    assert_eq!(lab.get("/").await.code(), Some("origin-untrusted"));
    lab.finish().await;

    // A server that forgot to ask.
    page.copy("pki/root.pem", "ca.pem");
    let careless = exchanged(&page.moved(&block(page.text, "nginx")), "ssl_verify_client       on;", "");
    let server = nginx(|addr, _| exchanged(&careless, "listen 8443 ssl;", &format!("listen {addr} ssl;"))).await;
    let config = page.config("nginx.my-ns.svc:8443", server.addr, &[("app.example.com", "web.test")]);
    let lab = Lab::start(over, &config).await;
    for _ in 0..3 {
        let answer = lab.get("/").await;
        assert_eq!((answer.status, answer.code()), (525, Some("origin-not-asking")));
    }
    lab.finish().await;
}

async fn run_pki(page: &Page, words: &str) {
    let output = adit().arg("pki").args(words.split(' ')).current_dir(page.path()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn reader_writer(over: Over) {
    let copies = ["root.pem ca.pem", "crl.pem crl.pem", "records.pem records.pem", "reader.pem reader.pem"]
        .map(|copy| copy.split_once(' ').unwrap())
        .map(|(from, to)| (format!("pki/{from}"), to));
    let copies: Vec<_> = copies.iter().map(|(from, to)| (from.as_str(), *to)).collect();
    let page = Page::follow(READER_WRITER, &copies).await;
    let server = page.nginx().await;
    let hosts = [("read.example.com", "read.web.test"), ("write.example.com", "write.web.test")];
    let lab = Lab::start(over, &page.config("records.my-ns.svc:8443", server.addr, &hosts)).await;
    let says = async |method: &str, host: &str, status: u16, text: &str| {
        let answer = get(&lab, method, host).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, text), "{method} {host}");
    };
    for _ in 0..2 {
        says("GET", "read.web.test", 200, "GET as CN=reader\n").await;
        says("POST", "write.web.test", 200, "POST as CN=writer\n").await;
        says("POST", "read.web.test", 403, "not as CN=reader\n").await;
    }
    lab.finish().await;

    // Revoked at the service: the writer is refused, the reader is not. The page reloads nginx, which replaces the
    // processes that hold old connections; here it is started anew.
    run_pki(&page, "revoke --dir pki writer.crt").await;
    page.copy("pki/crl.pem", "crl.pem");
    drop(server);
    let server = page.nginx().await;
    let lab = Lab::start(over, &page.config("records.my-ns.svc:8443", server.addr, &hosts)).await;
    let (writer, reader) = (get(&lab, "POST", "write.web.test").await, get(&lab, "GET", "read.web.test").await);
    assert_eq!((writer.status, writer.code()), (400, None), "{writer:?}");
    assert_eq!((reader.status, reader.text().as_str()), (200, "GET as CN=reader\n"));
    lab.finish().await;

    // A rule that forgets whose certificate it presents is refused when the file is read.
    let forgotten = exchanged(page.config, "present: reader, ", "");
    let refused = parse_file("reader-writer", &forgotten, &Flags::default(), |_| None).unwrap_err().to_string();
    assert!(refused.contains("ingress[0]"), "{refused}");
}

/// A visitor of `api.example.com`, with the certificate in a bundle.
async fn visit(page: &Page, https: SocketAddr, bundle: Option<&str>, head: &str) -> Answer {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots_from_file(&page.path().join("pki/root.pem")).unwrap());
    let config = match bundle.map(|bundle| page.path().join(bundle)) {
        Some(bundle) => {
            let Material { chain, key } = Material::from_files(&bundle, &bundle).unwrap();
            // The leaf alone: the connector knows the intermediates.
            config.with_client_auth_cert(chain[..1].to_vec(), key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let stream = TcpStream::connect(https).await.unwrap();
    let name = "api.example.com".try_into().unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let request = format!("{head}Host: api.example.com\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await.expect("no answer");
    Answer::parse(&bytes)
}

async fn kong(over: Over) {
    let copies = [
        ("pki/root.pem", "ca.pem"),
        ("pki/adit.pem", "adit.pem"),
        ("pki/kong.pem", "kong.pem"),
        ("primary/root.pem", "primary.pem"),
        ("backup/root.pem", "backup.pem"),
        ("primary/intermediate.pem", "primary-int.pem"),
        ("backup/intermediate.pem", "backup-int.pem"),
        ("primary/crl.pem", "primary-crl.pem"),
        ("backup/crl.pem", "backup-crl.pem"),
    ];
    let page = Page::follow(KONG, &copies).await;
    let server = page.nginx().await;
    let file = |name: &str, content: String| {
        let path = page.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let config = page.moved(KONG[1]);
    let config = file("config.yml", exchanged(&config, "kong.my-ns.svc:8443", &server.addr.to_string()));
    let edge_config = file("edge.yml", exchanged(KONG_EDGE, "/etc/adit", page.path().to_str().unwrap()));
    let (state, token) = (page.path().join("state"), page.path().join("tunnel"));
    let (state, token) = (state.to_str().unwrap(), token.to_str().unwrap());
    let made = adit()
        .args(["token", "new", "--state", state, "--hostname", "api.example.com", "--out", token])
        .stdout(Stdio::null())
        .status()
        .await;
    assert!(made.unwrap().success());
    let (connectors, https) = (free(), free());
    let (at, for_visitors) = (connectors.to_string(), https.to_string());
    let edge = Program::start(
        page.path(),
        "edge",
        &[
            "edge",
            "--config",
            &edge_config,
            "--state",
            state,
            "--listen",
            &at,
            "--https",
            &for_visitors,
            "--metrics",
            "127.0.0.1:0",
        ],
    );
    eventually("the edge listens", async || TcpStream::connect(https).await.is_ok()).await;
    let ca = format!("{state}/ca.pem");
    let connector = Program::start(
        page.path(),
        "connector",
        &[
            "run",
            "--config",
            &config,
            "--edge",
            &at,
            "--edge-ca",
            &ca,
            "--protocol",
            over.as_str(),
            "--metrics",
            "127.0.0.1:0",
        ],
    );
    let get = "GET / HTTP/1.1\r\n";
    let post = "POST / HTTP/1.1\r\n";
    eventually("the connector serves", async || {
        let answer = visit(&page, https, Some("primary/client.pem"), get).await;
        answer.code() != Some("no-connection")
    })
    .await;
    let forged = "POST / HTTP/1.1\r\nX-Client-Runway-Cc-Spiffe-Id: spiffe://example.org/admin\r\n\
                  x_client_runway_cc_spiffe_id: spiffe://example.org/admin\r\n";
    let client = "spiffe://example.org/ns/shop/sa/client by CN=adit\n";
    let reader = "spiffe://example.org/ns/audit/sa/reader by CN=adit\n";
    for (bundle, head, status, code, text) in [
        (Some("primary/client.pem"), get, 200, None, client),
        (Some("primary/client.pem"), forged, 200, None, client),
        (Some("backup/reader.pem"), get, 200, None, reader),
        (Some("backup/reader.pem"), post, 403, Some("caller-not-allowed"), ""),
        (Some("primary/other.pem"), get, 403, Some("caller-not-allowed"), ""),
        (Some("primary/gone.pem"), get, 403, Some("caller-invalid"), ""),
        (Some("pki/adit.pem"), get, 403, Some("caller-invalid"), ""),
        (None, get, 403, Some("caller-missing"), ""),
        (None, forged, 403, Some("caller-missing"), ""),
    ] {
        let answer = visit(&page, https, bundle, head).await;
        let log = || format!("{bundle:?}: {answer:?}\n{}\n{}", edge.log(), connector.log());
        assert_eq!((answer.status, answer.code()), (status, code), "{}", log());
        assert!(answer.text().starts_with(text), "{}", log());
    }
}

over_both! {
    #[ignore = "needs nginx in the PATH; .ci/run installs and runs it"]
    authenticated_origin_pulls_are_replaced_at_nginx => pulls,
    #[ignore = "needs nginx in the PATH; .ci/run installs and runs it"]
    callers_are_told_to_kong_or_nginx => kong,
    #[ignore = "needs nginx in the PATH; .ci/run installs and runs it"]
    a_reader_stays_at_nginx_when_the_writer_goes => reader_writer,
}
