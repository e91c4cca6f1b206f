//! Guards in the file of a connector: they follow it, and its drain and its admin address tell of them.

use std::net::SocketAddr;

use adit::admin::drain::Progress;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{
    LIMIT, Lab, Over, eventually,
    guard::{A, ID, NAME, peer_of},
    in_time,
    peer::{Peer, scripted},
    program::free,
    tls::{Ca, Leaf},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: guard.test\r\n\r\n";
const HOLD: &str = "GET /hold HTTP/1.1\r\nHost: guard.test\r\n\r\n";

async fn visit(guard: SocketAddr, ca: &Ca, leaf: &Leaf) -> Peer<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(guard).await.unwrap();
    let connector = TlsConnector::from(peer_of(&ca.pem, Some(leaf), &[]));
    Peer::new(connector.connect(ServerName::try_from(NAME).unwrap(), tcp).await.unwrap(), 0)
}

async fn progress(admin: SocketAddr) -> Progress {
    let mut peer = Peer::visit(admin).await;
    peer.send("POST /drain HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    serde_json::from_slice(&peer.answer().await.body).unwrap()
}

#[tokio::test]
async fn a_guard_beside_a_connector_follows_its_file_and_its_requests_hold_up_the_drain() {
    in_time(async {
        let release = tokio::sync::watch::Sender::new(false);
        let released = release.subscribe();
        let service = scripted(move |mut peer: Peer| {
            let mut released = released.clone();
            async move {
                while let Some(head) = peer.head().await {
                    if head.target() == "/hold" {
                        let _ = released.wait_for(|released| *released).await;
                    }
                    peer.ok("done").await;
                }
            }
        })
        .await;
        let (dir, ca, listen) = (tempfile::tempdir().unwrap(), Ca::new("guards"), free());
        let (own, a) = (ca.workload(ID, &[NAME]), ca.workload(A, &[]));
        std::fs::write(dir.path().join("guard.pem"), own.certificate + &own.key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), &ca.pem).unwrap();
        let yaml = |id: &str| {
            format!(
                "grace-period: 60s\ningress: [ {{ service: \"http_status:204\" }} ]\nguard:\n  - listen: {listen}\n    \
                 certificate: {dir}/guard.pem\n    service: http://{service}\n    \
                 callers: {{ trustAnchors: [ {dir}/ca.pem ], allow: [ {{ id: \"{id}\" }} ] }}\n",
                dir = dir.path().display()
            )
        };
        let lab = Lab::following(Over::Quic, &yaml(A)).await;
        let mut kept = visit(listen, &ca, &a).await;
        kept.send(GET).await;
        assert_eq!(kept.answer().await.status, 200);
        let page = lab.admin("/").await.text();
        assert!(page.contains(&format!("guard {listen} -> http://")), "{page}");
        assert!(page.contains("at guards: connections: 1,"), "{page}");

        lab.configure(&yaml("spiffe://example.org/others"));
        let asked = async || {
            let mut peer = visit(listen, &ca, &a).await;
            peer.send(GET).await;
            peer.answer().await
        };
        eventually("the list is in force", async || asked().await.status == 403).await;
        kept.send(GET).await;
        assert_eq!(kept.answer().await.code(), Some("caller-not-allowed"));
        lab.configure(&yaml(A));
        eventually("he is back", async || asked().await.status == 200).await;

        kept.send(HOLD).await;
        eventually("it is in flight", async || lab.metrics.expose().contains("adit_guard_in_flight{guard=\"0\"} 1\n"))
            .await;
        assert!(!progress(lab.admin).await.drained);
        eventually("unregistered", async || lab.edge.registry().of(lab.token.tunnel).is_empty()).await;
        eventually("the door is closed", async || TcpStream::connect(listen).await.is_err()).await;
        eventually("only the request is left", async || {
            let Progress { drained, connections, in_flight, cut, .. } = progress(lab.admin).await;
            (drained, connections, in_flight, cut) == (false, 1, 1, 0)
        })
        .await;
        release.send_replace(true);
        let answer = tokio::time::timeout(LIMIT, kept.answer()).await.expect("no answer");
        assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
        eventually("drained", async || {
            let Progress { drained, connections, in_flight, cut, .. } = progress(lab.admin).await;
            (drained, connections, in_flight, cut) == (true, 0, 0, 0)
        })
        .await;
        lab.finish().await;
    })
    .await;
}
