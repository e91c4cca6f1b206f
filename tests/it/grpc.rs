//! A gRPC service and gRPC visitors of grpcio, through the tunnel. Run with
//! `ADIT_TEST_PYTHON=PATH cargo test -- --ignored grpc`, the path of a Python that has grpcio.

use std::{ffi::OsStr, process::Stdio};

use rcgen::{CertificateParams, KeyPair};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::harness::{LIMIT, Lab, Over, in_time, rule};

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/grpc_peer.py");

fn python() -> Command {
    let python = std::env::var_os("ADIT_TEST_PYTHON").expect("ADIT_TEST_PYTHON names no Python");
    let mut command = Command::new(python);
    command.arg(PEER).kill_on_drop(true);
    command
}

/// A service on loopback; it ends with the value.
struct Service {
    _child: Child,
    port: u16,
}

impl Service {
    async fn start(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let mut command = python();
        let mut child =
            command.arg("serve").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = tokio::time::timeout(LIMIT, said.next_line()).await.expect("no service").unwrap().expect("no port");
        Self { _child: child, port: port.parse().unwrap() }
    }

    async fn in_clear() -> Self {
        Self::start([""; 0]).await
    }

    async fn with_tls(dir: &std::path::Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let (certificate, secret) = (dir.join("service.pem"), dir.join("service.key"));
        std::fs::write(&certificate, leaf.pem()).unwrap();
        std::fs::write(&secret, key.serialize_pem()).unwrap();
        Self::start([&certificate, &secret]).await
    }
}

/// Every check of the visitor, over TLS and in clear.
async fn everything_holds(over: Over, rules: &str) {
    let lab = Lab::start(over, rules).await;
    let ca = lab.state.ca_path();
    for (target, authority) in [(lab.https, Some(ca.as_os_str())), (lab.http, None)] {
        let mut visitor = python();
        let output = visitor.arg("visit").arg(target.to_string()).args(authority).stdin(Stdio::null()).output();
        let output = output.await.unwrap();
        let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let all = output.status.success() && said.ends_with("everything holds\n");
        assert!(all, "TLS {}: {said}{wrong}", authority.is_some());
    }
    lab.finish().await;
}

async fn to_h2c(over: Over) {
    let service = Service::in_clear().await;
    everything_holds(over, &rule(format!("h2c://127.0.0.1:{}", service.port))).await;
}

async fn to_https(over: Over) {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::with_tls(dir.path()).await;
    let options = "    originRequest: { http2Origin: true, noTLSVerify: true }\n";
    everything_holds(over, &format!("{}{options}", rule(format!("https://127.0.0.1:{}", service.port)))).await;
}

#[tokio::test]
#[ignore = "needs ADIT_TEST_PYTHON=PATH, a Python with grpcio"]
async fn every_kind_of_grpc_call_works_over_quic_to_an_h2c_service() {
    in_time(to_h2c(Over::Quic)).await;
}

#[tokio::test]
#[ignore = "needs ADIT_TEST_PYTHON=PATH, a Python with grpcio"]
async fn every_kind_of_grpc_call_works_over_http2_to_an_h2c_service() {
    in_time(to_h2c(Over::Http2)).await;
}

#[tokio::test]
#[ignore = "needs ADIT_TEST_PYTHON=PATH, a Python with grpcio"]
async fn every_kind_of_grpc_call_works_over_quic_to_an_https_service() {
    in_time(to_https(Over::Quic)).await;
}

#[tokio::test]
#[ignore = "needs ADIT_TEST_PYTHON=PATH, a Python with grpcio"]
async fn every_kind_of_grpc_call_works_over_http2_to_an_https_service() {
    in_time(to_https(Over::Http2)).await;
}
