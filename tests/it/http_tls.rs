//! Services behind TLS, behind unix sockets, and in HTTP/2.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use adit::{shutdown::Tasks, tls};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{HeaderMap, Request, Response, body::Frame, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UnixListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    edge_front::visit_h2,
    harness::{Answer, Lab, Over, over_both, rule, service},
};

/// Keys of a service and the file of the authority that vouches for it.
pub(crate) struct Identity {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) ca: PathBuf,
    _dir: tempfile::TempDir,
}

pub(crate) fn identity(names: &[&str], expired: bool, alpn: &[&str]) -> Identity {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
    let now = OffsetDateTime::now_utc();
    leaf.not_before = now - Duration::days(2);
    leaf.not_after = if expired { now - Duration::days(1) } else { now + Duration::days(1) };
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, ca_pem).unwrap();
    Identity { acceptor: TlsAcceptor::from(Arc::new(config)), ca: path, _dir: dir }
}

/// Answers in whatever version it is asked, and says in headers what it saw. Ends with a trailer.
async fn speak(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, sni: Option<String>) {
    let answering = service_fn(move |request: Request<Incoming>| {
        let host = request.headers().get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
        let host = host.or_else(|| request.uri().authority().map(ToString::to_string)).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-trailer", "end".parse().unwrap());
        let frames = [Frame::data(Bytes::from_static(b"hello")), Frame::trailers(trailers)];
        let mut response = Response::new(StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>))));
        let headers = response.headers_mut();
        headers.insert("x-version", format!("{:?}", request.version()).parse().unwrap());
        headers.insert("x-host", host.parse().unwrap());
        headers.insert("x-sni", sni.as_deref().unwrap_or("none").parse().unwrap());
        async move {
            request.into_body().collect().await.unwrap();
            Ok::<_, Infallible>(response)
        }
    });
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), answering).await;
}

pub(crate) async fn speak_tls(acceptor: &TlsAcceptor, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    if let Ok(stream) = acceptor.accept(io).await {
        let sni = stream.get_ref().1.server_name().map(str::to_owned);
        speak(stream, sni).await;
    }
}

/// A service with TLS: its port, and how many handshakes succeeded.
async fn secure(identity: &Identity) -> (u16, Arc<AtomicUsize>) {
    let handshakes = Arc::new(AtomicUsize::new(0));
    let (acceptor, counted) = (identity.acceptor.clone(), handshakes.clone());
    let addr = service(move |stream| {
        let (acceptor, counted) = (acceptor.clone(), counted.clone());
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            speak_tls(&acceptor, stream).await;
        }
    });
    (addr.await.port(), handshakes)
}

async fn ask(over: Over, service: impl std::fmt::Display, options: &str) -> Answer {
    let lab = Lab::start(over, &format!("{}    originRequest: {{ {options} }}\n", rule(service))).await;
    let answer = lab.get("/").await;
    lab.finish().await;
    answer
}

fn pool(ca: &Path) -> String {
    format!("caPool: {}", ca.display())
}

async fn untrusted(over: Over) {
    let identity = identity(&["127.0.0.1"], false, &[]);
    let answer = ask(over, format!("https://127.0.0.1:{}", secure(&identity).await.0), "").await;
    assert_eq!((answer.status, answer.code()), (526, Some("origin-untrusted")));
}

async fn wrong_name(over: Over) {
    let identity = identity(&["other.test"], false, &[]);
    let answer = ask(over, format!("https://127.0.0.1:{}", secure(&identity).await.0), &pool(&identity.ca)).await;
    assert_eq!((answer.status, answer.code()), (526, Some("origin-identity")));
}

async fn expired(over: Over) {
    let identity = identity(&["127.0.0.1"], true, &[]);
    let answer = ask(over, format!("https://127.0.0.1:{}", secure(&identity).await.0), &pool(&identity.ca)).await;
    assert_eq!((answer.status, answer.code()), (526, Some("origin-expired")));
}

async fn plain(over: Over) {
    let plain = service(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    });
    let answer = ask(over, format!("https://{}", plain.await), "").await;
    assert_eq!((answer.status, answer.code()), (525, Some("origin-tls-refused")));
}

async fn trusted_by_pool(over: Over) {
    let identity = identity(&["127.0.0.1"], false, &["h2", "http/1.1"]);
    let answer = ask(over, format!("https://127.0.0.1:{}", secure(&identity).await.0), &pool(&identity.ca)).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
    // HTTP/2 is spoken only where http2Origin asks for it.
    assert_eq!((answer.header("x-version"), answer.header("x-host")), (Some("HTTP/1.1"), Some("web.test")));
}

async fn unverified(over: Over) {
    let identity = identity(&["other.test"], true, &[]);
    let answer = ask(over, format!("https://127.0.0.1:{}", secure(&identity).await.0), "noTLSVerify: true").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
}

async fn server_name(over: Over) {
    let identity = identity(&["inner.test"], false, &[]);
    let options = format!("{}, originServerName: inner.test", pool(&identity.ca));
    let answer = ask(over, format!("https://127.0.0.1:{}", secure(&identity).await.0), &options).await;
    assert_eq!((answer.status, answer.header("x-sni")), (200, Some("inner.test")));
}

async fn sni_of_host(over: Over, alpn: &[&str], more: &str) {
    let identity = identity(&["web.test", "*.web.test"], false, alpn);
    let (port, handshakes) = secure(&identity).await;
    let options = format!("{}, matchSNItoHost: true{more}", pool(&identity.ca));
    let yaml = format!("{}    originRequest: {{ {options} }}\n", rule(format!("https://127.0.0.1:{port}")));
    let lab = Lab::start(over, &yaml).await;
    for (host, sni, connections) in [
        ("web.test", "web.test", 1),
        ("a.web.test", "a.web.test", 2),
        ("web.test:8443", "web.test", 2),
        ("b.web.test", "b.web.test", 3),
        ("a.web.test", "a.web.test", 3),
    ] {
        let answer = lab.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!((answer.header("x-sni"), answer.header("x-host")), (Some(sni), Some(host)), "{answer:?}");
        assert_eq!(handshakes.load(Ordering::SeqCst), connections, "{host}");
    }
    // A name the certificate is not for.
    let answer = lab.raw("GET / HTTP/1.1\r\nHost: a.b.web.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, answer.code()), (526, Some("origin-identity")));
    lab.finish().await;
}

async fn on_socket(over: Over, identity: Option<Identity>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let tasks = Tasks::new();
    let secure = identity.as_ref().map(|identity| identity.acceptor.clone());
    let each = tasks.clone();
    tasks.attend(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let secure = secure.clone();
            each.attend(async move {
                match secure {
                    Some(acceptor) => speak_tls(&acceptor, stream).await,
                    None => speak(stream, None).await,
                }
            });
        }
    });
    let (scheme, options, sni) = match &identity {
        Some(identity) => ("unix+tls", format!("{}, originServerName: inner.test", pool(&identity.ca)), "inner.test"),
        None => ("unix", String::new(), "none"),
    };
    let answer = ask(over, format!("{scheme}:{}", path.display()), &options).await;
    assert_eq!((answer.status, answer.text().as_str(), answer.header("x-sni")), (200, "hello", Some(sni)));
    assert_eq!(answer.header("x-host"), Some("web.test"));
}

/// A visitor in HTTP/2 sees the service's trailers, over QUIC too.
async fn spoken_to_in_h2(over: Over, yaml: String) {
    let lab = Lab::start(over, &yaml).await;
    for _ in 0..2 {
        let request = Request::get("https://web.test/").body(String::new()).unwrap();
        let (head, body, trailers) = visit_h2(&lab, request).await;
        assert_eq!(head.headers.get("x-version").unwrap(), "HTTP/2.0");
        assert_eq!(head.headers.get("x-host").unwrap(), "web.test");
        assert_eq!(body, "hello");
        assert_eq!(trailers.unwrap()["x-trailer"], "end");
    }
    // A visitor in HTTP/1.1 gets the body whole.
    let answer = lab.get("/").await;
    assert_eq!((answer.header("x-version"), answer.text().as_str()), (Some("HTTP/2.0"), "hello"));
    assert!(answer.complete);
    lab.finish().await;
}

async fn h2_by_alpn(over: Over) {
    let identity = identity(&["127.0.0.1"], false, &["h2", "http/1.1"]);
    let (port, handshakes) = secure(&identity).await;
    let options = format!("{}, http2Origin: true", pool(&identity.ca));
    let service = rule(format!("https://127.0.0.1:{port}"));
    spoken_to_in_h2(over, format!("{service}    originRequest: {{ {options} }}\n")).await;
    assert_eq!(handshakes.load(Ordering::SeqCst), 1);
}

async fn without_limits(over: Over) {
    let identity = identity(&["127.0.0.1"], false, &[]);
    let options = format!("{}, connectTimeout: 0s, tlsTimeout: 0s", pool(&identity.ca));
    let answer = ask(over, format!("https://127.0.0.1:{}", secure(&identity).await.0), &options).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
}

async fn h2_declined(over: Over) {
    let identity = identity(&["127.0.0.1"], false, &["http/1.1"]);
    let options = format!("{}, http2Origin: true", pool(&identity.ca));
    let answer = ask(over, format!("https://127.0.0.1:{}", secure(&identity).await.0), &options).await;
    assert_eq!((answer.status, answer.header("x-version")), (200, Some("HTTP/1.1")));
}

async fn h2_with_prior_knowledge(over: Over) {
    let addr = service(|stream| speak(stream, None)).await;
    spoken_to_in_h2(over, rule(format!("h2c://{addr}"))).await;
}

over_both! {
    a_time_limit_of_zero_is_none => without_limits,
    a_certificate_of_an_unknown_authority_is_untrusted => untrusted,
    a_certificate_for_another_name_is_an_identity_failure => wrong_name,
    a_certificate_past_its_time_is_expired => expired,
    a_plain_service_under_https_refuses_tls => plain,
    ca_pool_makes_a_private_authority_trusted => trusted_by_pool,
    no_tls_verify_accepts_any_certificate => unverified,
    origin_server_name_is_sent_and_verified => server_name,
    match_sni_to_host_keeps_a_connection_for_each_name => |over| sni_of_host(over, &[], ""),
    match_sni_to_host_keeps_an_http2_connection_for_each_name => |over| sni_of_host(over, &["h2"], ", http2Origin: true"),
    a_service_on_a_unix_socket_answers => |over| on_socket(over, None),
    a_service_with_tls_on_a_unix_socket_answers =>
        |over| on_socket(over, Some(identity(&["inner.test"], false, &[]))),
    http2_origin_speaks_http2_over_one_connection_and_passes_trailers_on => h2_by_alpn,
    http2_origin_settles_for_http1 => h2_declined,
    h2c_speaks_http2_and_passes_trailers_on => h2_with_prior_knowledge,
}
