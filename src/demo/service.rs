//! The demo's service: it speaks to nobody who does not prove to be a workload, and says what it saw.

use std::{
    collections::VecDeque,
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::net::{UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use x509_parser::{prelude::FromDer, x509::X509Name};

use super::laboratory::Laboratory;
use crate::{
    identity::Certificate,
    shutdown::Tasks,
    tls::{self, material::Material},
};

/// Requests that are remembered; the demo's own checks need the last three.
const KEPT: usize = 16;

/// One request, as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    /// Who the handshake proved, `CN=connector, spiffe://…`.
    pub(super) peer: Peer,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
}

/// A client by its certificate.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// The subject's name, RFC 4514.
    pub(super) subject: String,
    pub(super) id: String,
}

/// What the service saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) arrived: VecDeque<Arrived>,
    /// Handshakes that it refused.
    pub(super) refused: usize,
}

pub(super) type SharedSeen = Arc<Mutex<Seen>>;

/// Runs it until its tasks are killed.
pub(super) fn start(
    listener: UnixListener,
    laboratory: &Laboratory,
    seen: SharedSeen,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let acceptor = acceptor(&laboratory.workloads, &laboratory.service).context("the service's certificates")?;
    let (each, killed) = (tasks.clone(), tasks.killed());
    tasks.attend(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = killed.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => each.spawn(serve(stream, acceptor.clone(), seen.clone())),
                // Out of descriptors, which nobody gives back at once.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    Ok(())
}

fn acceptor(trust: &Path, bundle: &Path) -> Result<TlsAcceptor, tls::Error> {
    let roots = Arc::new(tls::roots_from_file(trust)?);
    let Material { chain, key } = Material::from_files(bundle, bundle)?;
    let demanded = WebPkiClientVerifier::builder_with_provider(roots, tls::provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(demanded)
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(stream: UnixStream, acceptor: TlsAcceptor, seen: SharedSeen) {
    let Ok(stream) = acceptor.accept(stream).await else {
        lock(&seen).refused += 1;
        return;
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = leaf.and_then(|leaf| Certificate::parse(leaf).ok()).map(|leaf| Peer::of(&leaf)).unwrap_or_default();
    let service = service_fn(move |request: Request<Incoming>| {
        let page = page(&request, &peer, &seen);
        async move { Ok::<_, Infallible>(page) }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Peer {
    fn of(leaf: &Certificate) -> Self {
        let subject = X509Name::from_der(&leaf.subject).map(|(_, name)| name.to_string()).unwrap_or_default();
        Self { subject, id: leaf.spiffe_id.as_ref().map(ToString::to_string).unwrap_or_default() }
    }
}

fn page(request: &Request<Incoming>, peer: &Peer, seen: &SharedSeen) -> Response<Full<Bytes>> {
    use std::fmt::Write;
    let mut body = format!(
        "This service has no port, and speaks to nobody without a certificate. It spoke to\n\n{}, {}\n\n{} {}\n",
        peer.subject,
        peer.id,
        request.method(),
        request.uri()
    );
    for (name, value) in request.headers() {
        let _ = writeln!(body, "{name}: {}", value.to_str().unwrap_or("?"));
    }
    let mut seen = lock(seen);
    if seen.arrived.len() == KEPT {
        seen.arrived.pop_front();
    }
    let (path, headers) = (request.uri().path().to_owned(), request.headers().clone());
    seen.arrived.push_back(Arrived { peer: peer.clone(), path, headers });
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Nobody panics with it; what was seen is whole.
pub(super) fn lock(seen: &SharedSeen) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
