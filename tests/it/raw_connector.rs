//! Our edge, faced with connectors that lie, dawdle, repeat themselves or say nothing.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use adit::{
    edge::registry::Registry,
    tls::EdgeTls,
    transport::{self, Incoming, http2::Http2Session, quic},
    wire::{
        PROBE_SERVER_NAME, QUIC_ALPN, QUIC_SERVER_NAME,
        connect::message_len,
        registration::{self, Control, Registered, Registration, RegistrationError},
        rpc::RpcThread,
    },
};
use rustls::pki_types::ServerName;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::{io::AsyncReadExt, net::TcpStream};
use uuid::Uuid;

use crate::{
    harness::{LIMIT, Lab},
    raw_edge::soon,
    wire_vectors::{group, unhex},
};

pub(crate) fn claims(lab: &Lab, index: u8) -> Registration {
    Registration {
        account: lab.token.account.clone(),
        secret: lab.token.secret.expose().to_vec().into(),
        tunnel: lab.token.tunnel,
        index,
        connector: Uuid::from_u128(1),
        features: vec!["serialized_headers".into()],
        version: "raw".into(),
        arch: "linux_amd64".into(),
        local_ip: None,
        previous_attempts: 0,
    }
}

pub(crate) fn tls(lab: &Lab) -> EdgeTls {
    EdgeTls::new(Some(&lab.state.ca_path()), false).unwrap()
}

/// A connection over QUIC with this server name; nothing is opened on it.
pub(crate) async fn dial_as(lab: &Lab, name: &str) -> (quinn::Endpoint, quinn::Connection) {
    let endpoint = quic::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let config = quinn::ClientConfig::new(tls(lab).quic);
    let connecting = endpoint.connect_with(config, lab.connectors, name).unwrap();
    let connection = soon("a handshake", connecting).await.unwrap();
    (endpoint, connection)
}

pub(crate) struct RawQuic {
    _endpoint: quinn::Endpoint,
    pub(crate) connection: quinn::Connection,
    pub(crate) outcome: Result<(Registered, Control), RegistrationError>,
}

pub(crate) async fn register_quic(lab: &Lab, registration: Registration) -> RawQuic {
    let (endpoint, connection) = dial_as(lab, QUIC_SERVER_NAME).await;
    let (send, recv) = connection.open_bi().await.unwrap();
    let outcome = registration::register(&RpcThread::new(), recv, send, registration, LIMIT).await;
    RawQuic { _endpoint: endpoint, connection, outcome }
}

/// Registers over HTTP/2 and goes on until the edge closes the connection.
async fn register_http2(lab: &Lab, registration: Registration) -> Result<(), RegistrationError> {
    let dial = Http2Session::dial(lab.connectors, None, tls(lab).http2, LIMIT);
    let mut session = transport::Session::Http2(Box::new(dial.await.unwrap()));
    let control = soon("the control stream", session.accept()).await.unwrap().read().await.unwrap();
    let Incoming::Control { recv, send } = control else { panic!("{control:?}") };
    let rpc = RpcThread::new();
    let register = registration::register(&rpc, recv, send, registration, LIMIT);
    let mut register = std::pin::pin!(register);
    let outcome = tokio::select! {
        outcome = &mut register => outcome,
        next = session.accept() => panic!("{next:?} before the answer"),
    };
    let end = soon("the end of the connection", session.accept()).await;
    assert!(end.is_err(), "{end:?}");
    outcome.map(drop)
}

async fn registered(lab: &Lab, count: usize) {
    lab.edge.registered(lab.token.tunnel, count, LIMIT).await.unwrap();
}

fn connections(registry: &Registry) -> usize {
    registry.all().len()
}

fn is_unauthorized(error: &RegistrationError) -> bool {
    matches!(error, RegistrationError::Refused { cause, .. } if cause.starts_with("Unauthorized"))
}

#[tokio::test]
async fn a_wrong_secret_and_an_unknown_tunnel_are_refused_alike_and_the_connection_closed() {
    let lab = Lab::edge_only().await;
    let wrong = Registration { secret: vec![0; 32].into(), ..claims(&lab, 0) };
    let prefix = Registration { secret: lab.token.secret.expose()[..31].to_vec().into(), ..claims(&lab, 0) };
    let empty = Registration { secret: Vec::new().into(), ..claims(&lab, 0) };
    let unknown = Registration { tunnel: Uuid::nil(), ..claims(&lab, 0) };
    let mut causes = Vec::new();
    for claim in [wrong, prefix, empty, unknown] {
        let refused = register_quic(&lab, claim.clone()).await;
        let error = refused.outcome.unwrap_err();
        assert!(is_unauthorized(&error), "{error}");
        causes.push(error.to_string());
        soon("the edge closes", refused.connection.closed()).await;
        // A cloudflared that is refused over HTTP/2 leaves it to the edge to close.
        let error = register_http2(&lab, claim).await.unwrap_err();
        assert!(is_unauthorized(&error), "{error}");
    }
    causes.dedup();
    assert_eq!(causes.len(), 1, "an answer must not tell which of the two was wrong: {causes:?}");
    assert_eq!(connections(lab.edge.registry()), 0);
    lab.finish().await;
}

#[tokio::test]
async fn the_same_connection_of_the_same_connector_takes_its_place_over() {
    let lab = Lab::edge_only().await;
    let first = register_quic(&lab, claims(&lab, 0)).await;
    let (_, first_control) = first.outcome.unwrap();
    registered(&lab, 1).await;
    // Others stay: another index, another connector.
    let other = register_quic(&lab, claims(&lab, 1)).await;
    let stranger = register_quic(&lab, Registration { connector: Uuid::from_u128(2), ..claims(&lab, 0) }).await;
    registered(&lab, 3).await;
    let second = register_quic(&lab, claims(&lab, 0)).await;
    let (answer, _second_control) = second.outcome.unwrap();
    assert_eq!(answer.location, "loopback");
    soon("the loser is closed", first.connection.closed()).await;
    soon("its control stream ends", first_control.closed()).await;
    assert_eq!(connections(lab.edge.registry()), 3);
    for alive in [&second.connection, &other.connection, &stranger.connection] {
        assert!(alive.close_reason().is_none());
    }
    lab.finish().await;
}

#[tokio::test]
async fn later_streams_of_a_connector_are_reset_and_its_control_stream_goes_on() {
    let lab = Lab::edge_only().await;
    let first = register_quic(&lab, claims(&lab, 0)).await;
    let (_registered, control) = first.outcome.unwrap();
    // A stream of the connector's own later on: what an older one says when a UDP session has ended.
    let (mut send, mut recv) = first.connection.open_bi().await.unwrap();
    let ended = &group("rpc.session_manager_to_edge")[0];
    send.write_all(&unhex(ended["stream_preamble_hex"].as_str().unwrap())).await.unwrap();
    for message in ended["call_phase"]["cloudflared_messages_hex"].as_array().unwrap() {
        let _ = send.write_all(&unhex(message.as_str().unwrap())).await;
    }
    let end = soon("its end", recv.read_to_end(1 << 16)).await;
    assert!(end.is_err() || end.unwrap().is_empty());
    registered(&lab, 1).await;
    assert!(first.connection.close_reason().is_none());
    control.update_local_configuration(b"{}".to_vec(), LIMIT).await.unwrap();
    control.unregister(LIMIT).await.unwrap();
    assert_eq!(connections(lab.edge.registry()), 0);
    soon("the edge closes an idle connection that unregistered", first.connection.closed()).await;
    lab.finish().await;
}

#[tokio::test]
async fn the_very_bytes_of_a_real_connector_register_and_unregister() {
    let lab = Lab::edge_only().await;
    for vector in group("rpc.registration").iter().filter(|vector| vector["unregister_phase"].is_object()) {
        let name = vector["name"].as_str().unwrap();
        let auth = &vector["input"]["auth"];
        let hash = Sha256::digest(unhex(auth["tunnelSecret_hex"].as_str().unwrap()));
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let tunnel: Uuid = vector["input"]["tunnelId"].as_str().unwrap().parse().unwrap();
        // Nobody is told: the state is read again before anybody is refused.
        let entry = format!("- id: {tunnel}\n  name: real\n  secretSha256: [\"{hash}\"]\n");
        std::fs::write(lab.state.path().join("tunnels.yml"), entry).unwrap();
        let (_endpoint, connection) = dial_as(&lab, QUIC_SERVER_NAME).await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        for phase in ["register_phase", "update_local_configuration_phase", "unregister_phase"] {
            let (mut sent, mut answers) = (vector[phase]["client_messages_hex"].as_array().unwrap().iter(), 0);
            let wanted = vector[phase]["server_messages_hex"].as_array().unwrap().len();
            // A Finish must not overtake the answer it is for.
            let mut next = sent.next();
            while answers < wanted || next.is_some() {
                while let Some(message) = next.take_if(|hex| answers == wanted || !is_finish(hex)) {
                    send.write_all(&unhex(message.as_str().unwrap())).await.unwrap();
                    next = sent.next();
                }
                if answers < wanted {
                    soon(name, read_message(&mut recv)).await;
                    answers += 1;
                    if let Some(finish) = next.take() {
                        send.write_all(&unhex(finish.as_str().unwrap())).await.unwrap();
                        next = sent.next();
                    }
                }
            }
            let alive = lab.edge.registry().of(tunnel);
            if phase == "update_local_configuration_phase" {
                assert_eq!((alive.len(), alive[0].version(), alive[0].index()), (1, "2026.8.2", 0), "{name}");
                assert_eq!(hash, alive[0].secret_hash().iter().map(|b| format!("{b:02x}")).collect::<String>());
            } else if phase == "unregister_phase" {
                assert!(alive.is_empty(), "{name}");
            }
        }
        for message in vector["close_phase"]["client_messages_hex"].as_array().unwrap() {
            let _ = send.write_all(&unhex(message.as_str().unwrap())).await;
        }
        let _ = send.finish();
        soon("the edge closes", connection.closed()).await;
    }
    lab.finish().await;
}

/// Framing, root pointer, then the tag of the message union; 4 is Finish.
fn is_finish(hex: &Value) -> bool {
    unhex(hex.as_str().unwrap())[16] == 4
}

async fn read_message(recv: &mut quinn::RecvStream) {
    let mut message = Vec::new();
    while message_len(&message).unwrap().is_none_or(|len| message.len() < len) {
        let mut word = [0; 8];
        recv.read_exact(&mut word).await.unwrap();
        message.extend(word);
    }
}

#[tokio::test]
async fn a_probe_is_answered_and_never_taken_for_a_connector() {
    let lab = Lab::edge_only().await;
    let (_endpoint, probe) = dial_as(&lab, PROBE_SERVER_NAME).await;
    let connector = tokio_rustls::TlsConnector::from(tls(&lab).http2);
    let tcp = TcpStream::connect(lab.connectors).await.unwrap();
    let mut tcp = soon("TLS", connector.connect(ServerName::try_from(PROBE_SERVER_NAME).unwrap(), tcp)).await.unwrap();
    let mut said = Vec::new();
    let _ = soon("the end", tcp.read_to_end(&mut said)).await;
    assert!(said.is_empty(), "an HTTP/2 preface towards a probe: {said:?}");
    // Another connection afterwards, which is one, shows that the edge is past the probe.
    let real = register_quic(&lab, claims(&lab, 0)).await;
    assert!(real.outcome.is_ok());
    registered(&lab, 1).await;
    let opened = tokio::time::timeout(Duration::ZERO, probe.accept_bi()).await;
    assert!(opened.is_err(), "a stream towards a probe");
    lab.finish().await;
}

#[tokio::test]
async fn a_connector_without_the_right_protocol_is_turned_away() {
    let lab = Lab::edge_only().await;
    let roots = adit::tls::roots_from_file(&lab.state.ca_path()).unwrap();
    for alpn in [&b"h3"[..], b""] {
        let mut config = rustls::ClientConfig::builder_with_provider(adit::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = if alpn.is_empty() { Vec::new() } else { vec![alpn.to_vec()] };
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let endpoint = quic::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let connecting = endpoint.connect_with(config, lab.connectors, QUIC_SERVER_NAME).unwrap();
        let outcome = soon("an end of the handshake", connecting).await;
        assert!(outcome.is_err(), "{:?} is not {:?}", alpn, QUIC_ALPN);
    }
    lab.finish().await;
}

#[tokio::test]
async fn noise_on_the_control_stream_ends_that_connection_and_no_other() {
    let lab = Lab::edge_only().await;
    let good = register_quic(&lab, claims(&lab, 0)).await;
    let (_, control) = good.outcome.unwrap();
    let huge = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    for noise in [&[0; 8][..], &[0xff; 64], &huge, b"GET / HTTP/1.1\r\n\r\n", &adit::wire::connect::DATA_SIGNATURE] {
        let (_endpoint, connection) = dial_as(&lab, QUIC_SERVER_NAME).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(noise).await.unwrap();
        send.finish().unwrap();
        soon("the edge closes", connection.closed()).await;
    }
    control.update_local_configuration(b"{}".to_vec(), LIMIT).await.unwrap();
    assert_eq!(connections(lab.edge.registry()), 1);
    assert_eq!(lab.edge_tasks.panics(), 0);
    lab.finish().await;
}

/// Slow on purpose: the edge's patience is ten seconds, and a real socket has no paused clock.
#[tokio::test]
async fn those_who_say_nothing_are_let_go_in_bounded_time() {
    let lab = Lab::edge_only().await;
    let started = std::time::Instant::now();
    let opens_nothing = async {
        let (_endpoint, connection) = dial_as(&lab, QUIC_SERVER_NAME).await;
        soon("a connection without a stream", connection.closed()).await;
    };
    let says_nothing = async {
        let (_endpoint, connection) = dial_as(&lab, QUIC_SERVER_NAME).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let bootstrap = &group("rpc.registration")[0]["register_phase"]["client_messages_hex"][0];
        send.write_all(&unhex(bootstrap.as_str().unwrap())).await.unwrap();
        soon("a bootstrap without a registration", connection.closed()).await;
    };
    let tcp_only = silent_tcp(lab.connectors);
    let tls_only = async {
        let connector = tokio_rustls::TlsConnector::from(tls(&lab).http2);
        let tcp = TcpStream::connect(lab.connectors).await.unwrap();
        let name = ServerName::try_from("h2.cftunnel.com").unwrap();
        let mut stream = soon("TLS", connector.connect(name, tcp)).await.unwrap();
        // The edge's preface and settings, its request, then the end.
        let _ = soon("TLS without HTTP/2", stream.read_to_end(&mut Vec::new())).await;
    };
    let http2_only = async {
        let dial = Http2Session::dial(lab.connectors, None, tls(&lab).http2, LIMIT);
        let mut session = transport::Session::Http2(Box::new(dial.await.unwrap()));
        let _control = soon("the control stream", session.accept()).await.unwrap().read().await.unwrap();
        let end = soon("a control stream without a word", session.accept()).await;
        assert!(end.is_err(), "{end:?}");
    };
    tokio::join!(opens_nothing, says_nothing, tcp_only, tls_only, http2_only);
    assert!(started.elapsed() < Duration::from_secs(16), "{:?}", started.elapsed());
    assert_eq!(connections(lab.edge.registry()), 0);
    lab.finish().await;
}

async fn silent_tcp(addr: SocketAddr) {
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    let _ = soon("TCP without TLS", tcp.read_to_end(&mut Vec::new())).await;
}
