//! A thousand rotations of identity, trust and server certificate under traffic, over both transports at once.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use adit::identity::Certificate;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::rename;
use crate::harness::{
    LIMIT, Lab, Over, background, eventually,
    load::Load,
    peer::{Peer, ok},
    process::{Connector, memory_of},
    report,
    tls::{Ca, Leaf},
};

/// With `ADIT_FULL=1`.
const ROTATIONS: usize = 1000;
/// Of the whole, in CI.
const SHARE: usize = 20;
/// Visitors of each transport.
const VISITORS: usize = 4;
/// Rotations until the process has its size.
const WARM: usize = 10;

/// A service that demands a certificate. Two of them may share what they prove and trust.
struct Service {
    addr: SocketAddr,
    /// Serials of the leaves that were shown.
    seen: Arc<Mutex<HashSet<Vec<u8>>>>,
}

/// What services prove and trust, for new connections.
type Shared = Arc<Mutex<Arc<ServerConfig>>>;

fn config(leaf: &Leaf, callers: &[&Ca]) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    for ca in callers {
        roots.add(ca.der()).unwrap();
    }
    let provider = adit::tls::provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_client_cert_verifier(verifier);
    Arc::new(config.with_single_cert(leaf.chain(), leaf.private_key()).unwrap())
}

impl Service {
    async fn start(shared: &Shared) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<HashSet<_>>>::default();
        let (shared, seen_) = (shared.clone(), seen.clone());
        background(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, seen) = (shared.clone(), seen_.clone());
                background(async move {
                    let config = shared.lock().unwrap().clone();
                    let Ok(tls) = TlsAcceptor::from(config).accept(stream).await else { return };
                    let leaf = tls.get_ref().1.peer_certificates().expect("a certificate is demanded")[0].clone();
                    seen.lock().unwrap().insert(Certificate::parse(&leaf).unwrap().serial);
                    let mut peer = Peer::new(tls, 0);
                    while let Some((head, body)) = peer.request().await {
                        if !peer.send(ok(format!("{} {}", head.line, body.len()))).await {
                            return;
                        }
                    }
                });
            }
        });
        Self { addr, seen }
    }

    fn saw(&self, serial: &[u8]) -> bool {
        self.seen.lock().unwrap().contains(serial)
    }
}

/// Files as agents write them.
struct Files<'a> {
    dir: &'a Path,
}

impl Files<'_> {
    fn write(&self, rotation: usize, leaf: &Leaf, trust: &Ca) {
        let at = |name: &str| self.dir.join(name);
        let (certificate, key, ca) = (at("w.crt"), at("w.key"), at("ca.pem"));
        match rotation % 3 {
            // Renamed, one after the other.
            0 => {
                rename(&ca, &trust.pem);
                rename(&certificate, &leaf.certificate);
                rename(&key, &leaf.key);
            }
            // In place.
            1 => {
                std::fs::write(&key, &leaf.key).unwrap();
                std::fs::write(&certificate, &leaf.certificate).unwrap();
                std::fs::write(&ca, &trust.pem).unwrap();
            }
            // A folder behind a link.
            _ => {
                let folder = at(&format!("..{rotation}"));
                std::fs::create_dir(&folder).unwrap();
                std::fs::write(folder.join("w.crt"), &leaf.certificate).unwrap();
                std::fs::write(folder.join("w.key"), &leaf.key).unwrap();
                for (name, file) in [("w.crt", &certificate), ("w.key", &key)] {
                    std::os::unix::fs::symlink(folder.join(name), at("link")).unwrap();
                    std::fs::rename(at("link"), file).unwrap();
                }
                rename(&ca, &trust.pem);
            }
        }
    }
}

/// A connector of one transport with the visitors of its edge.
struct Side {
    over: Over,
    lab: Lab,
    connector: Connector,
    service: Service,
    load: Load,
    /// KiB, once warm.
    warm: u64,
}

#[tokio::test]
async fn rotations_fail_no_request() {
    let full = std::env::var_os("ADIT_FULL").is_some_and(|full| full == "1");
    let rotations = if full { ROTATIONS } else { ROTATIONS / SHARE };
    // A rotation takes a twentieth of a second; a machine with other work gets twenty times as long.
    let limit = LIMIT + Duration::from_secs(rotations as u64);
    tokio::time::timeout(limit, rotate(rotations)).await.expect("the test hangs");
}

async fn rotate(rotations: usize) {
    let dir = tempfile::tempdir().unwrap();
    let files = Files { dir: dir.path() };
    let (mut callers, mut services) = (Ca::new("callers 0"), Ca::new("services 0"));
    files.write(1, &callers.leaf(&["adit.test"]), &services);
    let mut proves = services.leaf(&["localhost"]);
    let shared: Shared = Arc::new(Mutex::new(config(&proves, &[&callers])));
    let mut sides = Vec::new();
    for over in [Over::Quic, Over::Http2] {
        let service = Service::start(&shared).await;
        let yaml = format!(
            "innerHop:\n  mutualTls: always\n  identities: {{ default: {{ certificate: {0}/w.crt, key: {0}/w.key }} }}\n  \
             originTrust: [ {0}/ca.pem ]\ningress:\n  - service: https://localhost:{1}\n",
            dir.path().display(),
            service.addr.port()
        );
        let lab = Lab::edge_only().await;
        let connector = Connector::spawn(&lab, over, &yaml, |command| command.args(["--secrets-settle", "20"]));
        lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.expect("the connector did not register");
        let load = Load::start(lab.http, VISITORS);
        load.more(4 * VISITORS).await;
        sides.push(Side { over, lab, connector, service, load, warm: 0 });
    }
    for rotation in 0..rotations {
        let before = callers;
        callers = Ca::new(&format!("callers {}", rotation + 1));
        services = Ca::new(&format!("services {}", rotation + 1));
        let leaf = callers.leaf(&["adit.test"]);
        let serial = Certificate::parse(&leaf.chain()[0]).unwrap().serial;
        // A service knows the next authority of its callers before they have its certificates.
        *shared.lock().unwrap() = config(&proves, &[&before, &callers]);
        files.write(rotation, &leaf, &services);
        for side in &sides {
            let saw = async || side.service.saw(&serial);
            eventually(&format!("rotation {rotation} is seen over {:?}", side.over), saw).await;
        }
        // It renews its own a moment after its authority: once nobody dials by the old trust alone any more.
        for side in &sides {
            side.load.more(2 * VISITORS).await;
        }
        proves = services.leaf(&["localhost"]);
        *shared.lock().unwrap() = config(&proves, &[&before, &callers]);
        if rotation + 1 == WARM {
            for side in &mut sides {
                side.warm = memory_of(side.connector.pid(), "VmHWM");
            }
        }
    }
    for Side { over, lab, connector, load, warm, .. } in sides {
        let served = load.stop().await;
        let most = memory_of(connector.pid(), "VmHWM");
        report(format!(
            "over {over:?}: {rotations} rotations, {} requests, failed: {:?}, at most {most} KiB, {} KiB more than after {WARM}",
            served.requests,
            served.failed,
            most - warm
        ));
        assert!(served.failed.is_empty(), "{:?}", served.failed);
        assert!(most - warm < 16 << 10, "{} KiB more after {rotations} rotations", most - warm);
        connector.signal("TERM").await;
        let (status, log) = connector.ended().await;
        assert!(status.success(), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        lab.finish().await;
    }
}
