//! The services that the round trips of `feature_cases.json` were recorded with, and a connector in front of them.

use std::{net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use adit::tls;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    sync::{Notify, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    harness::{
        Over, background,
        peer::{Io, Peer, Seen, scripted},
    },
    raw_edge::{RawEdge, Running},
    raw_service::{NOBODY, echo},
};

/// What a service saw, once it saw a request whole; `"reached"` where it misbehaved at once.
type Log = mpsc::UnboundedSender<Value>;

/// A connector whose rules are those of the record.
pub(super) struct RoundTrips {
    pub(super) edge: RawEdge,
    pub(super) connector: Running,
    pub(super) seen: mpsc::UnboundedReceiver<Value>,
    /// A service that dies in the middle of its answer waits for this.
    pub(super) may_die: Arc<Notify>,
    _dir: tempfile::TempDir,
    _full: Full,
}

/// A port where no connection is ever accepted, nor refused: its backlog is taken.
struct Full {
    addr: SocketAddr,
    _listener: socket2::Socket,
    _waiting: Vec<socket2::Socket>,
}

impl Full {
    fn new() -> Self {
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        // A backlog of zero holds one or two, depending on the kernel; a few more keep it full.
        for _ in 0..4 {
            let visitor = socket();
            visitor.set_nonblocking(true).unwrap();
            let _ = visitor.connect(&addr);
            waiting.push(visitor);
        }
        Self { addr: addr.as_socket().unwrap(), _listener: listener, _waiting: waiting }
    }
}

impl RoundTrips {
    pub(super) async fn start(over: Over) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (log, seen) = mpsc::unbounded_channel();
        let may_die = Arc::new(Notify::new());
        let origin = Origin { log, may_die: may_die.clone() };
        let socket = dir.path().join("o.sock");
        let unix = UnixListener::bind(&socket).unwrap();
        let over_unix = origin.clone();
        background(async move {
            while let Ok((stream, _)) = unix.accept().await {
                let origin = over_unix.clone();
                background(async move { origin.serve(Peer::new(stream, 0), Value::Null, |_| ()).await });
            }
        });
        let (secure, ca) = secure(origin.clone()).await;
        let pool = dir.path().join("ca.pem");
        std::fs::write(&pool, ca).unwrap();
        let plain = scripted(move |peer| {
            let origin = origin.clone();
            async move { origin.serve(peer, Value::Null, reset).await }
        })
        .await;
        let silent = scripted(|mut peer| async move { peer.ended().await }).await;
        let full = Full::new();
        let rules = rules(&[
            ("http", format!("http://{plain}"), String::new()),
            ("host", format!("http://{plain}"), "httpHostHeader: override.local".into()),
            ("unix", format!("unix:{}", socket.display()), String::new()),
            ("h2c", format!("http://{plain}"), "http2Origin: true".into()),
            ("refused", format!("http://{NOBODY}"), String::new()),
            ("connto", format!("http://{}", full.addr), "connectTimeout: 300ms".into()),
            ("tlsbad", format!("https://{secure}"), String::new()),
            (
                "tlsok",
                format!("https://{secure}"),
                format!("caPool: {}, originServerName: origin.test", pool.display()),
            ),
            ("tlsnoverify", format!("https://{secure}"), "noTLSVerify: true".into()),
            ("plaintls", format!("http://{secure}"), String::new()),
            ("tlshang", format!("https://{silent}"), "tlsTimeout: 300ms".into()),
            ("tcp", format!("tcp://{}", echo().await), String::new()),
            ("s200", "http_status:200".into(), String::new()),
            ("s204", "http_status:204".into(), String::new()),
            ("s777", "http_status:777".into(), String::new()),
            ("access", format!("http://{plain}"), "access: {required: true, teamName: t, audTag: [abc]}".into()),
        ]);
        let by_path = format!(
            "  - {{hostname: path.example.com, path: ^/a/b, service: 'http_status:201'}}\n  \
             - {{hostname: path.example.com, path: ^/public, service: 'http://{plain}'}}\n  \
             - {{hostname: path.example.com, service: 'http_status:403'}}\n  - service: http_status:404\n"
        );
        let edge = RawEdge::new().await;
        let tagged = |flags: adit::config::Flags| flags.with("tag", "env=lab");
        let connector = edge.connector_with(over.as_str(), &format!("{rules}{by_path}"), tagged).await;
        Self { edge, connector, seen, may_die, _dir: dir, _full: full }
    }
}

fn rules(rules: &[(&str, String, String)]) -> String {
    let rule = |(name, service, options): &(&str, String, String)| {
        format!("  - {{hostname: {name}.example.com, service: '{service}', originRequest: {{{options}}}}}\n")
    };
    format!("ingress:\n{}", rules.iter().map(rule).collect::<String>())
}

/// The service behind TLS, with a certificate of its own that only its pool vouches for, as PEM.
async fn secure(origin: Origin) -> (SocketAddr, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["origin.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    background(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, origin) = (acceptor.clone(), origin.clone());
            background(async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let shown = shown(&stream);
                origin.serve(Peer::new(stream, 0), shown, |_| ()).await;
            });
        }
    });
    (addr, certificate.pem())
}

/// What a service knows of the TLS in front of it.
fn shown(stream: &TlsStream<TcpStream>) -> Value {
    let session = stream.get_ref().1;
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        other => panic!("{other:?}"),
    };
    json!({
        "version": version,
        "alpn": session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        "sni": session.server_name(),
        "client_cert": session.peer_certificates().is_some(),
    })
}

/// Makes the coming end of a connection a reset.
fn reset(stream: &TcpStream) {
    socket2::SockRef::from(&stream.as_fd()).set_linger(Some(Duration::ZERO)).unwrap();
}

#[derive(Clone)]
struct Origin {
    log: Log,
    may_die: Arc<Notify>,
}

impl Origin {
    async fn serve<S: Io>(&self, mut peer: Peer<S>, tls: Value, reset: fn(&S)) {
        while let Some((head, body)) = peer.request().await {
            let path = head.target().split('?').next().unwrap().to_owned();
            match path.as_str() {
                "/rst-before" => {
                    let _ = self.log.send(json!("reached"));
                    return reset(&peer.io);
                }
                "/garbage" => {
                    let _ = self.log.send(json!("reached"));
                    peer.send("this is not HTTP at all\r\n\r\n").await;
                    return;
                }
                _ => {}
            }
            let seen = as_recorded(&head, body.len(), &tls);
            let _ = self.log.send(seen.clone());
            if !self.answer(&mut peer, &head, &path, &seen).await {
                return;
            }
        }
    }

    /// Whether the connection may be used again.
    async fn answer<S: Io>(&self, peer: &mut Peer<S>, head: &Seen, path: &str, seen: &Value) -> bool {
        let number = || head.target().split('?').nth(1).unwrap().parse::<usize>().unwrap();
        match path {
            "/die-midbody" | "/die-midchunk" => {
                let (framing, part) = if path == "/die-midbody" {
                    ("Content-Length: 100", "1234567")
                } else {
                    ("Transfer-Encoding: chunked", "7\r\n1234567\r\n")
                };
                peer.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{part}")).await;
                self.may_die.notified().await;
                false
            }
            "/sse" => {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                peer.send(head).await;
                for n in 0..5 {
                    if !peer.send(format!("9\r\ndata: {n}\n\n\r\n")).await {
                        return false;
                    }
                    tokio::task::yield_now().await;
                }
                peer.send("0\r\n\r\n").await
            }
            "/big" => {
                let mut left = number();
                peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n")).await;
                let chunk = vec![b'x'; 256 << 10];
                while left > 0 {
                    let part = left.min(chunk.len());
                    if !peer.send(&chunk[..part]).await {
                        return false;
                    }
                    left -= part;
                }
                true
            }
            "/bighdr" => {
                let big = "x".repeat(number());
                peer.send(format!("HTTP/1.1 200 OK\r\nX-Big: {big}\r\nContent-Length: 2\r\n\r\nok")).await
            }
            "/close-delim" => {
                peer.send("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil close").await;
                false
            }
            _ => match fixed(path) {
                Some(answer) => peer.send(answer).await,
                None => {
                    let echo = seen.to_string();
                    let head = format!("Content-Type: application/json\r\nContent-Length: {}", echo.len());
                    peer.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{echo}")).await
                }
            },
        }
    }
}

/// Answers that never change.
fn fixed(path: &str) -> Option<String> {
    let rest = match path {
        "/gzip" => {
            let packed = "z".repeat(39);
            &format!(
                "200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\nContent-Length: 39\r\n\r\n{packed}"
            )
        }
        "/trailers-undeclared" => "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-U: uu\r\n\r\n",
        "/204" => "204 No Content\r\nX-A: 1\r\n\r\n",
        "/multi" => {
            "200 OK\r\nCf-Cloudflared-Foo: no\r\nCf-Int-Secret: no\r\nCf-Proxy-X: no\r\nCf-Ray: origin-ray\r\n\
             Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nServer: raw\r\n\
             Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Hop: hop\r\nx-lowercase: v\r\nX-Multi: one\r\nX-Multi: two\r\n\
             Content-Length: 2\r\n\r\nok"
        }
        "/early-hints" => {
            "103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        }
        "/500" => "500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops",
        "/status999" => "999 Odd\r\nContent-Length: 1\r\n\r\nx",
        "/head" => "200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1234\r\n\r\n",
        _ => return None,
    };
    Some(format!("HTTP/1.1 {rest}"))
}

/// A request in the shape of the record.
fn as_recorded(head: &Seen, body: usize, tls: &Value) -> Value {
    let framing = match (head.header("transfer-encoding"), head.header("content-length")) {
        (Some(_), _) => "chunked",
        (None, Some(_)) => "content-length",
        (None, None) => "none",
    };
    let headers = super::roundtrip::by_name(head.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    let mut seen = json!({ "line": head.line, "headers": headers, "body_len": body, "framing": framing });
    if !tls.is_null() {
        seen["tls"] = tls.clone();
    }
    seen
}
