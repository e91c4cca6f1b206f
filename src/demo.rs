//! `adit demo`: edge, service and connector on loopback, and proof of what each hop did.
//!
//! The same parts as in production, in one process. The service listens on a unix socket: no port of it exists that
//! anybody could reach past the tunnel.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixListener};

use crate::{
    app::ConnectorApp,
    config::{Flags, parse_file},
    edge::{Edge, EdgeConfig, state::StateDir},
    shutdown::Tasks,
};

/// Everything is on this machine; what takes longer is broken.
const LIMIT: Duration = Duration::from_secs(15);

/// What the service saw of the last request.
type Seen = Arc<Mutex<Option<HeaderMap>>>;

/// Runs the demo; with `once`, makes one request and returns whether everything was proven.
///
/// # Errors
///
/// When a part cannot start.
pub async fn run(protocol: &str, once: bool, say: fn(&str), tasks: &Tasks) -> anyhow::Result<bool> {
    let dir = std::env::temp_dir().join(format!("adit-demo-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let outcome = in_folder(&dir, protocol, once, say, tasks).await;
    let _ = std::fs::remove_dir_all(&dir);
    outcome
}

async fn in_folder(dir: &Path, protocol: &str, once: bool, say: fn(&str), tasks: &Tasks) -> anyhow::Result<bool> {
    let seen = Seen::default();
    let socket = dir.join("service.sock");
    let listener = UnixListener::bind(&socket).context("the service's socket")?;
    tasks.attend(service(listener, seen.clone(), tasks.clone()));

    // The edge has its own tasks: it goes after the connector has drained.
    let edge_tasks = Tasks::new();
    let state = StateDir::new(dir.join("edge"));
    let token = state.new_token(&["localhost".into(), "127.0.0.1".into()], None)?;
    let tunnel = token.tunnel;
    let edge = Edge::bind(EdgeConfig::loopback(state.clone()), edge_tasks.clone()).await?;
    let http = edge.http_addr().context("the edge has no visitors' address")?;
    let connectors = edge.connector_addr();
    let handle = edge.handle();
    let edge_tasks_ = edge_tasks.clone();
    edge_tasks.spawn(async move {
        if let Err(error) = edge.run().await {
            tracing::error!(%error, "the edge stopped");
            edge_tasks_.drain();
        }
    });

    let flags = Flags::default()
        .with("edge", &connectors.to_string())
        .with("edge-ca", &state.ca_path().display().to_string())
        .with("protocol", protocol)
        .with("token", &token.encode())
        .with("metrics", "127.0.0.1:0")
        .with("unix-socket", &socket.display().to_string());
    let loaded = parse_file("demo", "", &flags, |_| None)?;
    let app = ConnectorApp::bind(loaded.config, Vec::new(), tasks.clone()).await?;
    let (connector, admin) = (app.connector_id(), app.admin_addr()?);
    let (ended, connector_ended) = tokio::sync::oneshot::channel();
    tasks.spawn(async move {
        let _ = ended.send(app.run().await);
    });
    if let Err(reached) = handle.registered(tunnel, 4, LIMIT).await {
        bail!("only {reached} of 4 connections registered within {LIMIT:?}");
    }
    let transport = handle.registry().of(tunnel).first().map_or("?", |session| session.transport().as_str());

    say(&format!("edge       {connectors} (UDP and TCP) for connectors, http://{http} for visitors"));
    say(&format!("connector  4 connections over {transport}, dialled outward; admin http://{admin}"));
    say(&format!("service    {} and no port at all", socket.display()));
    let proven = prove(http, &seen, &connector.to_string(), say).await?;
    if once {
        say(if proven { "proven" } else { "NOT proven" });
        tasks.drain();
    } else {
        say(&format!("\nOpen http://{http}/ in a browser, or: curl http://{http}/hello\nCtrl-C drains and ends."));
        tasks.draining().cancelled().await;
        say("draining");
    }
    if let Ok(Err(error)) = connector_ended.await {
        bail!(error);
    }
    edge_tasks.finish(Duration::from_secs(2)).await;
    tasks.finish(Duration::from_secs(2)).await;
    Ok(proven)
}

/// One request, and a check of every hop.
async fn prove(http: SocketAddr, seen: &Seen, connector: &str, say: fn(&str)) -> anyhow::Result<bool> {
    let nonce = uuid::Uuid::new_v4().to_string();
    let request = async {
        let stream = TcpStream::connect(http).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .uri(format!("/proof/{nonce}"))
            .header(header::HOST, http.to_string())
            .header("cf-warp-tag-id", "forged")
            .body(Empty::<Bytes>::new())?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, body))
        };
        tokio::select! {
            outcome = exchange => outcome,
            outcome = connection => { outcome?; bail!("the edge hung up") }
        }
    };
    let (status, body) = tokio::time::timeout(LIMIT, request).await.context("no answer")??;
    let headers = seen.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let checks = [
        ("hop 1, visitor to edge", status.is_success(), format!("GET /proof/... answered {status}")),
        ("hop 2, the tunnel", text("cf-ray").ends_with("-ADIT"), format!("the edge's ray {} arrived", text("cf-ray"))),
        (
            "hop 3, connector to service",
            text("cf-warp-tag-id") == connector,
            "the connector's id arrived, a forged one did not".to_owned(),
        ),
        (
            "the answer back",
            body.windows(nonce.len()).any(|window| window == nonce.as_bytes()),
            "it holds this request's nonce".to_owned(),
        ),
    ];
    for (hop, ok, what) in &checks {
        say(&format!("{} {hop}: {what}", if *ok { "ok  " } else { "FAIL" }));
    }
    Ok(checks.iter().all(|(_, ok, _)| *ok))
}

/// The demo's service: says what it saw.
async fn service(listener: UnixListener, seen: Seen, tasks: Tasks) {
    let draining = tasks.killed();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = draining.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let seen = seen.clone();
        tasks.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move { Ok::<_, Infallible>(page(&request, &seen)) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.await;
        });
    }
}

fn page(request: &Request<Incoming>, seen: &Seen) -> Response<Full<Bytes>> {
    use std::fmt::Write;
    let mut body = format!(
        "This service has no port. Your request came through the tunnel:\n\n{} {}\n",
        request.method(),
        request.uri()
    );
    for (name, value) in request.headers() {
        let _ = writeln!(body, "{name}: {}", value.to_str().unwrap_or("?"));
    }
    *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(request.headers().clone());
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
