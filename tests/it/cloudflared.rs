//! A real cloudflared as the connector of our edge. Run with `CLOUDFLARED=PATH cargo test -- --ignored cloudflared`.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use adit::{
    edge::{Edge, EdgeConfig, EdgeHandle, state::StateDir},
    shutdown::Tasks,
};
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);

/// An edge in this process and cloudflared beside it.
struct Pair {
    _dir: tempfile::TempDir,
    child: Child,
    http: std::net::SocketAddr,
    edge: EdgeHandle,
    tunnel: Uuid,
    tasks: Tasks,
}

impl Pair {
    async fn start(transport: &str, rules: &str) -> Self {
        let binary = PathBuf::from(std::env::var_os("CLOUDFLARED").expect("CLOUDFLARED names no binary"));
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        let token = state.new_token(&["web.test".into(), "tcp.test".into()], None).unwrap();
        let token_file = dir.path().join("token");
        std::fs::write(&token_file, token.encode().as_bytes()).unwrap();
        let config = dir.path().join("config.yml");
        std::fs::write(&config, rules).unwrap();
        let tasks = Tasks::new();
        let edge = Edge::bind(EdgeConfig::loopback(state.clone()), tasks.clone()).await.unwrap();
        let (http, connectors, handle) = (edge.http_addr().unwrap(), edge.connector_addr(), edge.handle());
        tasks.spawn(async move { edge.run().await.unwrap() });
        let child = cloudflared(&binary, transport, connectors, &state.ca_path(), &config, &token_file);
        handle.registered(token.tunnel, 1, LIMIT).await.expect("cloudflared did not register");
        let tunnel = token.tunnel;
        Self { _dir: dir, child, http, edge: handle, tunnel, tasks }
    }

    async fn request(&self, method: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        let stream = TcpStream::connect(self.http).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let request = http::Request::builder()
            .method(method)
            .uri("/some/path?q=%20")
            .header("host", "web.test")
            .body(Full::new(bytes::Bytes::from(body)))
            .unwrap();
        let exchange = async {
            let response = sender.send_request(request).await.unwrap();
            let status = response.status().as_u16();
            (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
        };
        tokio::select! {
            answer = exchange => answer,
            end = connection => panic!("the edge hung up: {end:?}"),
        }
    }

    async fn finish(mut self) {
        // SIGTERM through the shell: cloudflared must find its connections drained and leave by itself.
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        let left = tokio::time::timeout(LIMIT, self.child.wait()).await.expect("cloudflared did not drain");
        assert!(left.unwrap().success());
        self.tasks.finish(Duration::from_secs(5)).await;
    }
}

fn cloudflared(
    binary: &Path,
    transport: &str,
    edge: std::net::SocketAddr,
    ca: &Path,
    config: &Path,
    token: &Path,
) -> Child {
    let mut command = Command::new(binary);
    command.args(["tunnel", "--config"]).arg(config).arg("--cacert").arg(ca);
    // It takes one connection per address, and spins on a single one.
    command.arg("--edge").arg(edge.to_string()).arg("--edge").arg(format!("localhost:{}", edge.port()));
    command.args(["--protocol", transport, "--metrics", "127.0.0.1:0", "--no-autoupdate", "run", "--token-file"]);
    command.arg(token).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

/// Answers a GET with its request head, a POST with its body; upgrades WebSockets to echoes.
async fn web_service() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    Tasks::new().attend(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            Tasks::new().attend(async move {
                let mut peeked = vec![0; 4096];
                let n = stream.peek(&mut peeked).await.unwrap();
                if String::from_utf8_lossy(&peeked[..n]).to_lowercase().contains("upgrade: websocket") {
                    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                    while let Some(Ok(message)) = socket.next().await {
                        if message.is_close() || socket.send(message).await.is_err() {
                            break;
                        }
                    }
                    return;
                }
                let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let head = format!("{} {}", request.method(), request.uri());
                    let body = request.into_body().collect().await?.to_bytes();
                    let answer = if body.is_empty() { bytes::Bytes::from(head) } else { body };
                    Ok::<_, hyper::Error>(http::Response::new(Full::new(answer)))
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(&mut stream), service)
                    .await;
            });
        }
    });
    addr
}

async fn echo_service() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    Tasks::new().attend(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            Tasks::new().attend(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    addr
}

async fn serves_everything(transport: &str) {
    let (web, echo) = (web_service().await, echo_service().await);
    let rules = format!("ingress:\n  - hostname: tcp.test\n    service: tcp://{echo}\n  - service: http://{web}\n");
    let pair = Pair::start(transport, &rules).await;

    assert_eq!(pair.request("GET", Vec::new()).await, (200, b"GET /some/path?q=%20".to_vec()));
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    assert!(pair.request("POST", body.clone()).await == (200, body), "the body changed on the way");

    let stream = TcpStream::connect(pair.http).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://web.test/ws", stream).await.unwrap();
    socket.send(Message::binary(vec![7; 100_000])).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_data(), vec![7; 100_000]);
    socket.close(None).await.unwrap();

    // TCP inside a WebSocket.
    let stream = TcpStream::connect(pair.http).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://tcp.test/", stream).await.unwrap();
    socket.send(Message::binary(&b"over a websocket"[..])).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_data(), &b"over a websocket"[..]);
    drop(socket);

    // TCP without a rule.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut visitor = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (local, _) = listener.accept().await.unwrap();
    let (edge, tunnel) = (pair.edge.clone(), pair.tunnel);
    let forwarded = async move { edge.forward_tcp(tunnel, echo, local).await };
    let talk = async {
        visitor.write_all(b"plain").await.unwrap();
        let mut answer = [0; 5];
        visitor.read_exact(&mut answer).await.unwrap();
        drop(visitor);
        answer
    };
    let (forwarded, answer) = tokio::join!(forwarded, talk);
    assert_eq!((forwarded, &answer), (Ok(()), b"plain"));
    pair.finish().await;
}

#[tokio::test]
#[ignore = "needs CLOUDFLARED=PATH, the binary of a real cloudflared"]
async fn cloudflared_registers_over_quic_and_serves_get_post_websocket_and_tcp() {
    tokio::time::timeout(LIMIT * 2, serves_everything("quic")).await.unwrap();
}

#[tokio::test]
#[ignore = "needs CLOUDFLARED=PATH, the binary of a real cloudflared"]
async fn cloudflared_registers_over_http2_and_serves_get_post_websocket_and_tcp() {
    tokio::time::timeout(LIMIT * 2, serves_everything("http2")).await.unwrap();
}
