//! Guards in the test's own runtime, with certificates in files, and peers that come to them.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use adit::{
    config::{Config, Flags, parse_file},
    guard::{GuardConfig, Guards, Limits},
    metrics::Metrics,
    shutdown::Tasks,
    tls::keyring::{Keyring, Reread, Wanted},
};
use bytes::Bytes;
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Answer, LIMIT, background,
    peer::Peer,
    tls::{Ca, Leaf, client_config},
};

/// The name in a guard's certificate.
pub(crate) const NAME: &str = "guard.test";
/// Its SPIFFE ID.
pub(crate) const ID: &str = "spiffe://example.org/guard";
/// Workload A of every lab.
pub(crate) const A: &str = "spiffe://example.org/worker/a";

/// Running guards, and those who may come.
pub(crate) struct GuardLab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ca: Ca,
    /// Known and in time.
    pub(crate) a: Leaf,
    pub(crate) addr: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    /// Draining these is SIGTERM to the guards.
    pub(crate) tasks: Tasks,
    /// What callers have to end, [`LIMIT`] at first.
    pub(crate) grace: watch::Sender<Duration>,
    config: std::sync::Mutex<Config>,
    guards: watch::Sender<Vec<adit::config::Guard>>,
    keyring: watch::Sender<Arc<Keyring>>,
    ended: watch::Receiver<bool>,
}

/// Within `callers`: what every lab trusts.
pub(crate) fn trust(dir: &Path) -> String {
    let dir = dir.display();
    format!("trustAnchors: [ {dir}/ca.pem ], crls: [ {dir}/crl.pem ]")
}

impl GuardLab {
    /// One guard in front of `service`; `callers` stands behind the trust that every lab has.
    pub(crate) async fn start(service: impl std::fmt::Display, callers: &str) -> Self {
        Self::with(service, callers, |_| {}).await
    }

    /// As [`GuardLab::start`], with other bounds.
    pub(crate) async fn with(
        service: impl std::fmt::Display,
        callers: &str,
        configure: impl FnOnce(&mut GuardConfig),
    ) -> Self {
        Self::proving(|ca| ca.workload(ID, &[NAME, "127.0.0.1"]), service, callers, configure).await
    }

    /// One that shows something else.
    pub(crate) async fn proving(
        own: impl FnOnce(&Ca) -> Leaf,
        service: impl std::fmt::Display,
        callers: &str,
        configure: impl FnOnce(&mut GuardConfig),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("guards");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("ca.pem", &ca.pem);
        write("crl.pem", &ca.revoked(&[]));
        let own = own(&ca);
        write("guard.pem", &(own.certificate + &own.key));
        let yaml = format!(
            "guard:\n  - listen: 127.0.0.1:0\n    certificate: {}/guard.pem\n    service: {service}\n    \
             callers: {{ {}{}{callers} }}\n",
            dir.path().display(),
            trust(dir.path()),
            if callers.is_empty() { "" } else { ", " },
        );
        let config = parse_file("guard.yml", &yaml, &Flags::default(), |_| None).unwrap_or_else(|m| panic!("{m}"));
        let config = config.config;
        let metrics = Arc::new(Metrics::new());
        let mut guards = GuardConfig {
            guards: config.guards.clone(),
            metrics: metrics.clone(),
            forbidden: Arc::from([]),
            limits: Limits::default(),
            unready: Duration::ZERO,
        };
        configure(&mut guards);
        let guards = Guards::bind(guards).await.unwrap();
        let addr = guards.addresses()[0];
        let tasks = Tasks::new();
        let keyring = watch::Sender::new(load(&config, &Arc::default()));
        let (end, ended) = watch::channel(false);
        let grace = watch::Sender::new(LIMIT);
        let of_file = watch::Sender::new(config.guards.clone());
        let running = guards.run(of_file.subscribe(), keyring.subscribe(), grace.subscribe(), tasks.clone());
        background(async move {
            running.await.unwrap();
            end.send_replace(true);
        });
        let a = ca.workload(A, &["a.example.org"]);
        Self { dir, ca, a, addr, metrics, tasks, grace, config: config.into(), guards: of_file, keyring, ended }
    }

    /// Writes a file, whole.
    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    /// Reads every secret again, as if files were followed.
    pub(crate) fn reload(&self) {
        let next = load(&self.config.lock().unwrap(), &self.keyring.borrow());
        self.keyring.send_replace(next);
    }

    /// The file says something else of the guard, as far as `change` says.
    pub(crate) fn reconfigure(&self, change: impl FnOnce(&mut adit::config::Guard)) {
        change(&mut self.config.lock().unwrap().guards[0]);
        self.reload();
        self.guards.send_replace(self.config.lock().unwrap().guards.clone());
    }

    /// The file has no guard any more, and so none of its secrets.
    pub(crate) fn remove(&self) {
        self.config.lock().unwrap().guards.clear();
        self.reload();
        self.guards.send_replace(Vec::new());
    }

    /// Waits for the guards' own end, after a drain.
    pub(crate) async fn ended(&mut self) {
        let ended = tokio::time::timeout(LIMIT, self.ended.wait_for(|ended| *ended)).await;
        assert!(*ended.expect("the guards do not end").unwrap());
    }

    /// What a peer with this certificate, or none, speaks TLS with. Sessions are kept with it.
    pub(crate) fn peer(&self, leaf: Option<&Leaf>, alpn: &[&str]) -> Arc<ClientConfig> {
        peer_of(&self.ca.pem, leaf, alpn)
    }

    /// A connection.
    pub(crate) async fn tls(&self, config: &Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.addr).await?;
        let name = ServerName::try_from(NAME).unwrap();
        TlsConnector::from(config.clone()).connect(name, tcp).await
    }

    /// A connection for requests in HTTP/1.1.
    pub(crate) async fn visit(&self, leaf: Option<&Leaf>) -> Peer<TlsStream<TcpStream>> {
        Peer::new(self.tls(&self.peer(leaf, &[])).await.unwrap(), 0)
    }

    /// A connection for requests in HTTP/2.
    pub(crate) async fn h2(&self, leaf: Option<&Leaf>) -> h2::client::SendRequest<Bytes> {
        let tls = self.tls(&self.peer(leaf, &["h2"])).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = h2::client::Builder::new().handshake(tls).await.unwrap();
        background(async move {
            let _ = connection.await;
        });
        sender.ready().await.unwrap()
    }

    /// One request on a connection of its own; `headers` are whole lines.
    pub(crate) async fn send(&self, leaf: Option<&Leaf>, line: &str, headers: &str) -> Answer {
        let mut peer = self.visit(leaf).await;
        peer.send(format!("{line} HTTP/1.1\r\nHost: {NAME}\r\n{headers}\r\n")).await;
        peer.answer().await
    }

    pub(crate) async fn get(&self, leaf: Option<&Leaf>) -> Answer {
        self.send(leaf, "GET /", "").await
    }

    /// What is counted under exactly this name and labels.
    pub(crate) fn counted(&self, series: &str) -> u64 {
        let text = self.metrics.expose();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |count| count.parse().unwrap())
    }
}

fn load(config: &Config, before: &Arc<Keyring>) -> Arc<Keyring> {
    let wanted = Arc::new(Wanted::of(config));
    let now = std::time::SystemTime::now();
    Keyring::load(&wanted, adit::secrets::read, Reread::All, before, now).keyring
}

/// A peer that trusts this authority alone.
pub(crate) fn peer_of(ca: &str, leaf: Option<&Leaf>, alpn: &[&str]) -> Arc<ClientConfig> {
    peer_with(ca, leaf, alpn, rustls::DEFAULT_VERSIONS)
}

/// The same in these versions of TLS.
pub(crate) fn peer_with(
    ca: &str,
    leaf: Option<&Leaf>,
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    Arc::new(client_config(roots, leaf, alpn, versions))
}

/// Sends a whole body, as the other end takes it.
pub(crate) async fn upload(mut send: h2::SendStream<Bytes>, body: Vec<u8>) {
    let mut body = Bytes::from(body);
    while !body.is_empty() {
        send.reserve_capacity(body.len());
        let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        let piece = body.split_to(capacity.min(body.len()));
        send.send_data(piece, body.is_empty()).unwrap();
    }
}
