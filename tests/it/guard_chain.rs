//! Both ends of an inner hop: a connector with an identity, a guard, and a service that knows nothing of it.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{
    Lab, Over, background,
    guard::{GuardLab, ID, NAME},
    mirror, over_both,
    peer::scripted,
};

const CONNECTOR: &str = "spiffe://example.org/adit/one";

/// The file of a connector that presents an identity, in front of the guard.
fn connector(guard: &GuardLab, id: &str, expect: &str) -> String {
    let leaf = guard.ca.workload(id, &[]);
    guard.write("adit.pem", &(leaf.certificate + &leaf.key));
    format!(
        "innerHop:\n  mutualTls: always\n  identities: {{ default: {{ certificate: {dir}/adit.pem }} }}\n  \
         originTrust: [ {dir}/ca.pem ]\ningress:\n  - service: https://{}\n    \
         innerHop: {{ expect: [ \"{expect}\" ] }}\n",
        guard.addr,
        dir = guard.dir.path().display()
    )
}

async fn proven_on_both_sides(over: Over) {
    let callers = format!("allow: [ {{ id: \"{CONNECTOR}\" }} ]");
    let guard = GuardLab::start(format!("http://{}", mirror().await), &callers).await;
    let lab = Lab::start(over, &connector(&guard, CONNECTOR, ID)).await;
    for _ in 0..3 {
        let answer = lab.get("/through").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let seen = answer.text().to_lowercase();
        assert!(seen.contains(&format!("x-client-cert-spiffe-id: {CONNECTOR}\r\n")), "{seen}");
    }
    lab.finish().await;
    // Another identity: the guard refuses, and its word passes as a guard's.
    let lab = Lab::start(over, &connector(&guard, "spiffe://example.org/adit/two", ID)).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (403, Some("guard-caller-not-allowed")));
    lab.finish().await;
    // Another guard than expected: no byte of the request leaves.
    let lab = Lab::start(over, &connector(&guard, CONNECTOR, "spiffe://example.org/other")).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (526, Some("origin-identity")));
    lab.finish().await;
}

async fn end_to_end(over: Over) {
    let echo = scripted(|mut peer| async move {
        loop {
            let some = peer.some().await;
            if some.is_empty() || !peer.send(some).await {
                return;
            }
        }
    })
    .await;
    let guard = GuardLab::start(format!("tcp://{echo}"), "").await;
    let yaml = format!(
        "innerHop: {{ mutualTls: always }}\ningress:\n  - service: tcp://{}\n    \
         innerHop: {{ mutualTls: passthrough }}\n",
        guard.addr
    );
    let lab = Lab::start(over, &yaml).await;
    // The visitor's own TLS, inside of a WebSocket through the edge.
    let tcp = through(lab.http).await;
    let name = ServerName::try_from(NAME).unwrap();
    let tls = TlsConnector::from(guard.peer(Some(&guard.a), &[])).connect(name, tcp).await;
    let mut tls = tls.expect("the edge reads along");
    let shown = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    assert!(adit::identity::Certificate::parse(&shown).unwrap().spiffe_id.is_some_and(|id| id.as_str() == ID));
    tls.write_all(b"private").await.unwrap();
    let mut heard = [0; 7];
    tls.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"private");
    drop(tls);
    lab.finish().await;
}

/// A connection to a `tcp://` rule, as `cloudflared access` makes one.
async fn through(edge: SocketAddr) -> tokio::io::DuplexStream {
    let tcp = TcpStream::connect(edge).await.unwrap();
    let (socket, _) = tokio_tungstenite::client_async("ws://web.test/", tcp).await.unwrap();
    let (mut sink, mut source) = socket.split();
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (mut read, mut write) = tokio::io::split(theirs);
    background(async move {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            if sink.send(Message::binary(buffer[..n].to_vec())).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    background(async move {
        while let Some(Ok(message)) = source.next().await {
            if write.write_all(&message.into_data()).await.is_err() {
                return;
            }
        }
    });
    ours
}

over_both! {
    a_request_is_proven_on_both_sides_of_the_hop => proven_on_both_sides,
    a_visitors_own_tls_passes_the_edge_unread => end_to_end,
}
