//! An edge of bare quinn, rustls and h2 that does what a test says, well-behaved or not, and the connector under test.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use adit::{
    app::ConnectorApp,
    config::Flags,
    credentials::{Secret, Token},
    metrics::Metrics,
    shutdown::Tasks,
    tls::{self, issue},
    transport,
    wire::{
        QUIC_ALPN,
        connect::{Answer, Collector, decode_response},
        registration::{self, EdgeCall, Refusal, Registered, Registration},
        rpc::RpcThread,
    },
};
use bytes::Bytes;
use http::{HeaderMap, Request, response::Parts};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{LIMIT, measured::Program, reloading};

/// Fails with `what` instead of hanging.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// What a ClientHello said.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) server_name: Option<String>,
    pub(crate) alpn: Vec<Vec<u8>>,
    pub(crate) groups: Vec<u16>,
    pub(crate) suites: Vec<u16>,
}

#[derive(Debug)]
struct Resolver {
    key: Arc<CertifiedKey>,
    hellos: mpsc::UnboundedSender<Hello>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let _ = self.hellos.send(Hello {
            server_name: hello.server_name().map(str::to_owned),
            alpn: hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
            groups: hello.named_groups().unwrap_or_default().iter().map(|group| u16::from(*group)).collect(),
            suites: hello.cipher_suites().iter().map(|suite| u16::from(*suite)).collect(),
        });
        Some(self.key.clone())
    }
}

/// What is on the edge's UDP port.
#[derive(Debug)]
pub(crate) enum Udp {
    Quic(quinn::Endpoint),
    /// Swallows every packet.
    Silent(UdpSocket),
}

pub(crate) struct RawEdge {
    dir: tempfile::TempDir,
    pub(crate) addr: SocketAddr,
    pub(crate) udp: Udp,
    pub(crate) tcp: TcpListener,
    tls: TlsAcceptor,
    pub(crate) hellos: mpsc::UnboundedReceiver<Hello>,
    pub(crate) rpc: RpcThread,
    /// Cancelling it cuts every connection over TCP.
    pub(crate) cut: CancellationToken,
    tasks: Tasks,
}

impl Drop for RawEdge {
    fn drop(&mut self) {
        self.tasks.kill();
    }
}

/// TCP and UDP on one free port.
async fn bind_pair() -> (TcpListener, std::net::UdpSocket) {
    for _ in 0..50 {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = std::net::UdpSocket::bind(tcp.local_addr().unwrap()) {
            udp.set_nonblocking(true).unwrap();
            return (tcp, udp);
        }
    }
    panic!("no port is free on both TCP and UDP");
}

impl RawEdge {
    pub(crate) async fn new() -> Self {
        Self::bind(true).await
    }

    /// Behind a firewall that swallows UDP.
    pub(crate) async fn without_quic() -> Self {
        Self::bind(false).await
    }

    async fn bind(quic: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = issue::new_authority("raw edge").unwrap();
        std::fs::write(dir.path().join("ca.pem"), &made.certificate_pem).unwrap();
        let authority = issue::Authority::from_pem(&made.certificate_pem, &made.key_pem).unwrap();
        let names = ["quic.cftunnel.com", "h2.cftunnel.com", "probe.cftunnel.com"].map(str::to_owned);
        let leaf = authority.issue_server(&names).unwrap();
        let key = Arc::new(CertifiedKey::from_der(leaf.chain, leaf.key, &tls::provider()).unwrap());
        let (sent, hellos) = mpsc::unbounded_channel();
        let config = |alpn: &[&[u8]]| {
            let mut config = rustls::ServerConfig::builder_with_provider(tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(Resolver { key: key.clone(), hellos: sent.clone() }));
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            config
        };
        let (tcp, udp) = bind_pair().await;
        let udp = if quic {
            let crypto = QuicServerConfig::try_from(config(&[QUIC_ALPN])).unwrap();
            let server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
            let runtime = Arc::new(quinn::TokioRuntime);
            Udp::Quic(quinn::Endpoint::new(quinn::EndpointConfig::default(), Some(server), udp, runtime).unwrap())
        } else {
            Udp::Silent(UdpSocket::from_std(udp).unwrap())
        };
        let addr = tcp.local_addr().unwrap();
        // ALPN is on offer here, so that a connector which asks for it is noticed.
        let tls = TlsAcceptor::from(Arc::new(config(&[b"h2"])));
        Self {
            dir,
            addr,
            udp,
            tcp,
            tls,
            hellos,
            rpc: RpcThread::new(),
            cut: CancellationToken::new(),
            tasks: Tasks::new(),
        }
    }

    /// Starts a connector with one connection.
    pub(crate) async fn connector(&self, protocol: &str, yaml: &str) -> Running {
        self.connector_with(protocol, yaml, |flags| flags).await
    }

    pub(crate) async fn connector_with(
        &self,
        protocol: &str,
        yaml: &str,
        flags: impl FnOnce(Flags) -> Flags,
    ) -> Running {
        let base = Flags::default()
            .with("edge", &self.addr.to_string())
            .with("cacert", &self.ca().display().to_string())
            .with("protocol", protocol)
            .with("token", &token().encode())
            .with("metrics", "127.0.0.1:0")
            .with("grace-period", "5s")
            .with("ha-connections", "1");
        // Its file is followed: a test may write it again.
        std::fs::write(self.config_file(), yaml).unwrap();
        let flags = flags(base).with("config", &self.config_file().display().to_string());
        let (reloading, config) = reloading(flags);
        let tasks = Tasks::new();
        let app = ConnectorApp::bind(config, Vec::new(), tasks.clone()).await.unwrap().reloading(reloading);
        let (admin, id, metrics) = (app.admin_addr().unwrap(), app.connector_id(), app.metrics());
        #[allow(clippy::disallowed_methods, reason = "its end is awaited by hand")]
        let ended = tokio::spawn(app.run());
        Running { tasks, admin, id, metrics, ended }
    }

    /// The same as a process.
    pub(crate) fn program(&self, protocol: &str, yaml: &str) -> Program {
        self.program_that_trusts(protocol, yaml, |command, ca| command.arg("--edge-ca").arg(ca))
    }

    /// The same, with trust in this edge from elsewhere.
    pub(crate) fn program_that_trusts(
        &self,
        protocol: &str,
        yaml: &str,
        trust: impl FnOnce(&mut Command, PathBuf) -> &mut Command,
    ) -> Program {
        let (config, token_file) = (self.dir.path().join("config.yml"), self.dir.path().join("token"));
        std::fs::write(&config, yaml).unwrap();
        std::fs::write(&token_file, token().encode().as_bytes()).unwrap();
        Program::start(|command| {
            command.args(["run", "--metrics", "127.0.0.1:0", "--protocol", protocol, "--ha-connections", "1"]);
            command.arg("--edge").arg(self.addr.to_string());
            trust(command, self.ca()).arg("--config").arg(&config).arg("--token-file").arg(&token_file)
        })
    }

    /// Connectors of this edge trust the other as well.
    pub(crate) fn vouch_for(&self, other: &Self) {
        let both = [std::fs::read(self.ca()).unwrap(), std::fs::read(other.ca()).unwrap()].concat();
        std::fs::write(self.ca(), both).unwrap();
    }

    /// The file of its connectors.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.yml")
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The file that its connectors have to trust.
    pub(crate) fn authority(&self) -> PathBuf {
        self.ca()
    }

    /// The next connection over QUIC, nothing done with it.
    pub(crate) async fn accept_quic(&self) -> quinn::Connection {
        let Udp::Quic(endpoint) = &self.udp else { panic!("QUIC is switched off") };
        soon("a QUIC connection", async { endpoint.accept().await.unwrap().await.unwrap() }).await
    }

    /// The next connection over TCP with TLS.
    pub(crate) async fn accept_tls(&self) -> TlsStream<TcpStream> {
        soon("a TLS connection", async {
            let (tcp, _) = self.tcp.accept().await.unwrap();
            self.tls.accept(tcp).await.unwrap()
        })
        .await
    }

    /// Plays the edge's half of a control stream.
    pub(crate) fn control(
        &self,
        recv: impl AsyncRead + Unpin + Send + 'static,
        send: impl AsyncWrite + Unpin + Send + 'static,
    ) -> mpsc::Receiver<EdgeCall> {
        let (calls, incoming) = mpsc::channel(4);
        let rpc = self.rpc.clone();
        self.tasks.spawn(async move { registration::serve(&rpc, recv, send, calls).await });
        incoming
    }

    /// A registered connection over QUIC.
    pub(crate) async fn quic_peer(&self) -> QuicPeer {
        self.quic_peer_confirming(&[]).await
    }

    /// The same, with features in the answer to the registration.
    pub(crate) async fn quic_peer_confirming(&self, features: &[&str]) -> QuicPeer {
        let (peer, reply) = self.quic_asked().await;
        let features = features.iter().map(|&feature| feature.to_owned()).collect();
        let _ = reply.send(Ok(Registered { features, ..registered(true) }));
        peer
    }

    /// A connection over QUIC whose registration waits for its answer.
    pub(crate) async fn quic_asked(&self) -> (QuicPeer, oneshot::Sender<Result<Registered, Refusal>>) {
        let connection = self.accept_quic().await;
        let (send, recv) = soon("the control stream", connection.accept_bi()).await.unwrap();
        let mut calls = self.control(recv, send);
        let (registration, reply) = asked(&mut calls).await;
        (QuicPeer { connection, calls, registration, rpc: self.rpc.clone() }, reply)
    }

    /// An HTTP/2 client on a fresh connection; the receiver hears how the connection ended.
    pub(crate) async fn h2(&self) -> (h2::client::SendRequest<Bytes>, oneshot::Receiver<Result<(), h2::Error>>) {
        let stream = self.accept_tls().await;
        let (sender, connection) = soon("the HTTP/2 handshake", h2::client::handshake(stream)).await.unwrap();
        let (ended, end) = oneshot::channel();
        let cut = self.cut.clone();
        self.tasks.attend(async move {
            tokio::select! {
                end = connection => drop(ended.send(end)),
                () = cut.cancelled() => {}
            }
        });
        (soon("a stream", sender.ready()).await.unwrap(), end)
    }

    /// Opens the control stream, as the edge has to on HTTP/2.
    pub(crate) async fn h2_control(&self, sender: &mut h2::client::SendRequest<Bytes>) -> mpsc::Receiver<EdgeCall> {
        let request = upgrade("GET", "control-stream");
        let (response, send) = sender.send_request(request, false).unwrap();
        let response = soon("the control stream", response).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.headers().keys().all(|name| !name.as_str().starts_with("cf-")), "{:?}", response.headers());
        self.control(transport::Recv::http2(response.into_body()), transport::Send::http2(send))
    }

    /// A registered connection over HTTP/2.
    pub(crate) async fn h2_peer(&self) -> H2Peer {
        let (peer, reply) = self.h2_asked().await;
        let _ = reply.send(Ok(registered(true)));
        peer
    }

    /// A connection over HTTP/2 whose registration waits for its answer.
    pub(crate) async fn h2_asked(&self) -> (H2Peer, oneshot::Sender<Result<Registered, Refusal>>) {
        let (mut sender, end) = self.h2().await;
        let mut calls = self.h2_control(&mut sender).await;
        let (registration, reply) = asked(&mut calls).await;
        (H2Peer { sender, _end: end, calls, registration }, reply)
    }
}

/// What every connector of a raw edge registers with.
pub(crate) fn token() -> Token {
    let secret = Secret::new(vec![7; 32]);
    Token { account: "account".into(), tunnel: Uuid::from_u128(7), secret, endpoint: None }
}

/// Waits for the registration and answers it.
pub(crate) async fn accept(calls: &mut mpsc::Receiver<EdgeCall>, answer: Result<Registered, Refusal>) -> Registration {
    let (registration, reply) = asked(calls).await;
    let _ = reply.send(answer);
    registration
}

/// Waits for the registration.
async fn asked(calls: &mut mpsc::Receiver<EdgeCall>) -> (Registration, oneshot::Sender<Result<Registered, Refusal>>) {
    let call = soon("a registration", calls.recv()).await;
    let Some(EdgeCall::Register(registration, reply)) = call else { panic!("no registration: {call:?}") };
    (*registration, reply)
}

pub(crate) fn registered(remotely_managed: bool) -> Registered {
    Registered { connection: Uuid::from_u128(9), location: "raw".into(), remotely_managed, features: Vec::new() }
}

pub(crate) fn upgrade(method: &str, kind: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .uri("https://localhost/")
        .header("cf-cloudflared-proxy-connection-upgrade", kind)
        .body(())
        .unwrap()
}

/// A connector in this process. It ends with the test.
pub(crate) struct Running {
    /// Draining these is SIGTERM.
    pub(crate) tasks: Tasks,
    pub(crate) admin: SocketAddr,
    pub(crate) id: Uuid,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ended: JoinHandle<anyhow::Result<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.kill();
        self.ended.abort();
    }
}

/// How a stream over QUIC was answered.
#[derive(Debug)]
pub(crate) enum Reply {
    Answered(Answer, Vec<u8>),
    /// RESET_STREAM with this code.
    Reset(u64),
}

/// A registered connection over QUIC, seen from the edge.
pub(crate) struct QuicPeer {
    pub(crate) connection: quinn::Connection,
    pub(crate) calls: mpsc::Receiver<EdgeCall>,
    pub(crate) registration: Registration,
    rpc: RpcThread,
}

impl QuicPeer {
    /// Opens a stream with these bytes; with `end` nothing follows.
    pub(crate) async fn open(&self, bytes: &[u8], end: bool) -> (quinn::SendStream, quinn::RecvStream) {
        let (mut send, recv) = soon("a stream", self.connection.open_bi()).await.unwrap();
        // The connector may refuse it before everything is sent.
        let _ = send.write_all(bytes).await;
        if end {
            let _ = send.finish();
        }
        (send, recv)
    }

    pub(crate) async fn ask(&self, bytes: &[u8]) -> Reply {
        let (_send, recv) = self.open(bytes, true).await;
        reply(recv).await
    }

    pub(crate) async fn push(&self, version: i32, config: &str) -> Result<adit::wire::calls::Applied, String> {
        let (send, recv) = self.open(&adit::wire::connect::RPC_SIGNATURE, false).await;
        let config = Bytes::copy_from_slice(config.as_bytes());
        soon("the answer to a push", adit::wire::calls::push(&self.rpc, recv, send, version, config)).await
    }
}

/// Reads an answer to its end.
pub(crate) async fn reply(mut recv: quinn::RecvStream) -> Reply {
    match soon("the end of an answer", recv.read_to_end(8 << 20)).await {
        Ok(bytes) => {
            let mut collector = Collector::default();
            collector.push(bytes.into());
            let (message, body) = collector.message().unwrap().expect("half an answer");
            Reply::Answered(decode_response(&message).unwrap(), body.to_vec())
        }
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => Reply::Reset(code.into_inner()),
        Err(error) => panic!("{error}"),
    }
}

/// An answer over HTTP/2.
#[derive(Debug)]
pub(crate) struct H2Answer {
    pub(crate) head: Parts,
    pub(crate) body: String,
    pub(crate) trailers: Option<HeaderMap>,
}

/// A registered connection over HTTP/2, seen from the edge.
pub(crate) struct H2Peer {
    pub(crate) sender: h2::client::SendRequest<Bytes>,
    /// Hears of the end of the connection, for whoever waits for it.
    pub(crate) _end: oneshot::Receiver<Result<(), h2::Error>>,
    pub(crate) calls: mpsc::Receiver<EdgeCall>,
    pub(crate) registration: Registration,
}

impl H2Peer {
    pub(crate) async fn ask(&self, request: Request<()>, body: &str) -> Result<H2Answer, h2::Error> {
        let mut sender = soon("a stream", self.sender.clone().ready()).await?;
        let (response, mut send) = sender.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            send.send_data(Bytes::copy_from_slice(body.as_bytes()), true)?;
        }
        let (head, mut recv) = soon("an answer", response).await?.into_parts();
        let mut bytes = Vec::new();
        while let Some(chunk) = soon("the body", recv.data()).await {
            let chunk = chunk?;
            recv.flow_control().release_capacity(chunk.len())?;
            bytes.extend_from_slice(&chunk);
        }
        let trailers = soon("the trailers", recv.trailers()).await?;
        Ok(H2Answer { head, body: String::from_utf8(bytes).unwrap(), trailers })
    }
}
