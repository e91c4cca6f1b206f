//! Visitors: hostname → tunnel → connection → stream, and the answer back.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    Shared, relay,
    session::{InFlight, Opened},
};
use crate::{
    transport::{Recv, Send, StreamError},
    wire::{BodyLength, Head, RequestHead, ResponseHead, connect, connect::Answer, hop},
};

/// The reason of an answer that the edge or a connector made up.
const ADIT_ERROR: HeaderName = HeaderName::from_static("adit-error");
/// A visitor has this long for TLS, and for each request head.
const HEAD_LIMIT: Duration = Duration::from_secs(15);

/// Headers whose sender is believed further down, so a visitor must not be that sender.
const PREFIXES_OF_OTHERS: [&str; 6] =
    ["cf-", "x-client-cert-", "x-client-runway-cc-", "x-ssl-client-", "ssl-client-", "x-amzn-mtls-"];
const NAMES_OF_OTHERS: [&str; 5] =
    ["client-cert", "client-cert-chain", "x-forwarded-client-cert", "x-client-cert", "adit-error"];

/// Accepts visitors.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>) {
    let draining = shared.tasks.draining();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = draining.cancelled() => return,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a visitor");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (shared_, tls) = (shared.clone(), tls.clone());
        shared.tasks.spawn(visitor(shared_, tcp, peer, tls));
    }
}

async fn visitor(shared: Arc<Shared>, tcp: TcpStream, peer: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) {
    let _ = tcp.set_nodelay(true);
    let secure = tls.is_some();
    let service = {
        let shared = shared.clone();
        service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, std::convert::Infallible>(answer(&shared, request, peer, secure).await) }
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).title_case_headers(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .enable_connect_protocol()
        .max_header_list_size(1 << 20);
    let draining = shared.tasks.draining();
    match tls {
        Some(tls) => {
            let accepted = tokio::time::timeout(HEAD_LIMIT, TlsAcceptor::from(tls).accept(tcp)).await;
            if let Ok(Ok(stream)) = accepted {
                until_drained(builder.serve_connection_with_upgrades(TokioIo::new(stream), service), &draining).await;
            }
        }
        None => until_drained(builder.serve_connection_with_upgrades(TokioIo::new(tcp), service), &draining).await,
    }
}

/// Serves a connection; once draining, it takes nothing new and ends with what it has.
async fn until_drained<I, S>(
    connection: auto::UpgradeableConnection<'_, I, S, TokioExecutor>,
    draining: &CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<FrontBody>>,
    S::Error: Into<Box<dyn std::error::Error + std::marker::Send + Sync>>,
    S::Future: 'static,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + std::marker::Send + 'static,
    TokioExecutor: hyper::rt::bounds::Http2ServerConnExec<S::Future, FrontBody>,
{
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = &mut connection => {}
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// An answer of the edge itself.
fn refuse(status: StatusCode, code: &'static str) -> Response<FrontBody> {
    let mut response = Response::new(FrontBody::Text(Some(Bytes::from(format!("{code}\n")))));
    *response.status_mut() = status;
    response.headers_mut().insert(ADIT_ERROR, HeaderValue::from_static(code));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

async fn answer(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    peer: SocketAddr,
    secure: bool,
) -> Response<FrontBody> {
    let Some(host) = host_of(&request) else { return refuse(StatusCode::BAD_REQUEST, "host-missing") };
    let name = strip_port(&host).to_owned();
    let tunnels = shared.tunnels.borrow().for_host(&name);
    if tunnels.is_empty() {
        return refuse(StatusCode::NOT_FOUND, "hostname-unknown");
    }
    let Some(session) = shared.registry.pick(&tunnels) else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "no-connection");
    };
    let over_h2 = request.version() == http::Version::HTTP_2;
    let upgrade = match upgrade_kind(&request, over_h2) {
        Ok(upgrade) => upgrade,
        Err(status) => return refuse(status, "request-invalid"),
    };
    let in_flight = session.enter();
    let upgraded = upgrade.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let Ok(head) = request_head(parts, &body, &host, upgrade, peer, secure) else {
        return refuse(StatusCode::BAD_REQUEST, "request-invalid");
    };
    let has_body = !upgrade && head.body != BodyLength::None;
    let method = head.method.clone();
    let opened = match session.open(&Head::Request(head)).await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(host = name, tunnel = %session.tunnel(), %error, "a connector took no request");
            return refuse(StatusCode::BAD_GATEWAY, "connector-failed");
        }
    };
    let Opened { send, answer } = opened;
    let (mut upload, mut kept) = if has_body { (Some(Upload::new(send, body)), None) } else { (None, Some(send)) };
    let mut answer = std::pin::pin!(answer.answer());
    let answered = std::future::poll_fn(|cx| {
        poll_upload(&mut upload, cx);
        answer.as_mut().poll(cx)
    })
    .await;
    let (head, recv) = match answered {
        Ok((Answer::Response(head), recv)) => (head, recv),
        Ok((Answer::Connected, _)) => return refuse(StatusCode::BAD_GATEWAY, "connector-failed"),
        Ok((Answer::Failed { error, .. }, _)) => {
            tracing::warn!(host = name, tunnel = %session.tunnel(), error, "a connector failed");
            return refuse(StatusCode::BAD_GATEWAY, "connector-failed");
        }
        Err(error) => {
            tracing::warn!(host = name, tunnel = %session.tunnel(), %error, "a connector failed");
            return refuse(StatusCode::BAD_GATEWAY, "connector-failed");
        }
    };
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(upgraded), Some(send)) = (upgraded, kept.take()) else {
            return refuse(StatusCode::BAD_GATEWAY, "connector-failed");
        };
        shared.tasks.spawn(async move {
            let _in_flight = in_flight;
            if let Ok(io) = upgraded.await {
                relay::splice(TokioIo::new(io), send, recv, relay::Ends::Together).await;
            }
        });
        return switching(head, over_h2);
    }
    let ResponseHead { status, mut headers } = head;
    strip_hop_by_hop(&mut headers);
    let length = connect::content_length(&headers).ok().flatten();
    let bodiless = method == Method::HEAD || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let body = if bodiless || length == Some(0) || recv.is_end() {
        FrontBody::Text(None)
    } else {
        FrontBody::Stream(Box::new(Streamed { recv, upload, length, ended: false, _kept: kept, _in_flight: in_flight }))
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn switching(head: ResponseHead, over_h2: bool) -> Response<FrontBody> {
    let mut response = Response::new(FrontBody::Text(None));
    let mut headers = head.headers;
    if over_h2 {
        // RFC 8441 §5: 200, and no key to answer.
        for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
            headers.remove(name);
        }
    } else {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    *response.headers_mut() = headers;
    response
}

/// Authority of the request line (HTTP/2, absolute form) or Host, lower case.
fn host_of(request: &Request<Incoming>) -> Option<String> {
    let host = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(header::HOST)?.to_str().ok()?,
    };
    (!host.is_empty() && !host.contains('@')).then(|| host.to_lowercase())
}

fn strip_port(host: &str) -> &str {
    let bare = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    bare.trim_end_matches('.')
}

/// Whether the visitor asks for a WebSocket, in HTTP/1.1 or by extended CONNECT.
fn upgrade_kind(request: &Request<Incoming>, over_h2: bool) -> Result<bool, StatusCode> {
    if request.method() == Method::CONNECT {
        let websocket = request.extensions().get::<hyper::ext::Protocol>().is_some_and(|p| p.as_str() == "websocket");
        return if over_h2 && websocket { Ok(true) } else { Err(StatusCode::METHOD_NOT_ALLOWED) };
    }
    Ok(!over_h2
        && request.method() == Method::GET
        && hop::tokens(request.headers(), &header::UPGRADE).any(|token| token.eq_ignore_ascii_case("websocket"))
        && hop::tokens(request.headers(), &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")))
}

fn request_head(
    parts: http::request::Parts,
    body: &Incoming,
    host: &str,
    upgrade: bool,
    peer: SocketAddr,
    secure: bool,
) -> Result<RequestHead, http::Error> {
    let http::request::Parts { mut method, uri, mut headers, .. } = parts;
    let length = connect::content_length(&headers).ok().flatten();
    let body = if upgrade || body.is_end_stream() && length.unwrap_or(0) == 0 {
        if !upgrade && length == Some(0) { BodyLength::Known(0) } else { BodyLength::None }
    } else {
        body.size_hint().exact().map_or(BodyLength::Unknown, BodyLength::Known)
    };
    let trailers_welcome = hop::tokens(&headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(&mut headers);
    if trailers_welcome && !upgrade {
        // Each hop says so anew (RFC 9110 §10.1.4), and gRPC services answer nobody who does not.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    headers.remove(header::HOST);
    headers.remove(header::CONTENT_LENGTH);
    strip_names_of_others(&mut headers);
    if upgrade {
        method = Method::GET;
        headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        if !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
            let key = STANDARD.encode(rand::random::<[u8; 16]>());
            headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key)?);
        }
    }
    let address = HeaderValue::from_str(&peer.ip().to_canonical().to_string())?;
    headers.append("x-forwarded-for", address.clone());
    headers.insert("x-forwarded-proto", HeaderValue::from_static(if secure { "https" } else { "http" }));
    headers.insert("cf-connecting-ip", address);
    headers.insert("cf-ray", HeaderValue::from_str(&format!("{:016x}-ADIT", rand::random::<u64>()))?);
    Ok(RequestHead {
        websocket: upgrade,
        method,
        host: HeaderValue::from_str(host)?,
        target: uri.path_and_query().cloned().unwrap_or_else(connect::root_target),
        headers,
        body,
    })
}

/// Headers of one hop; the visitor's proxy credentials are for nobody behind an edge either.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    hop::strip(headers, &[]);
    headers.remove(header::PROXY_AUTHORIZATION);
}

/// A visitor's own wish: where `cloudflared access tcp --destination` wants to go behind a bastion.
const JUMP_DESTINATION: HeaderName = HeaderName::from_static("cf-access-jump-destination");

/// `_` and `-` are one to many services, so both spellings go.
fn strip_names_of_others(headers: &mut HeaderMap) {
    let spoofed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| **name != JUMP_DESTINATION)
        .filter(|name| {
            let name = name.as_str().replace('_', "-");
            PREFIXES_OF_OTHERS.iter().any(|prefix| name.starts_with(prefix)) || NAMES_OF_OTHERS.contains(&name.as_str())
        })
        .cloned()
        .collect();
    for name in spoofed {
        headers.remove(name);
    }
}

/// Sends a visitor's body on; polled along with the answer, so that both directions flow in one task.
struct Upload(Pin<Box<dyn Future<Output = ()> + std::marker::Send>>);

impl Upload {
    fn new(mut send: Send, mut body: Incoming) -> Self {
        Self(Box::pin(async move {
            while let Some(frame) = body.frame().await {
                // A visitor who leaves in the middle resets the stream: dropping `send` does.
                let Ok(frame) = frame else { return };
                match frame.into_data() {
                    Ok(data) if !data.is_empty() => {
                        if send.write(data, false).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(frame) => {
                        if let Ok(mut trailers) = frame.into_trailers() {
                            strip_names_of_others(&mut trailers);
                            // An end that could not be said resets the stream.
                            let _ = send.end_with(trailers).await;
                            return;
                        }
                    }
                }
            }
            let _ = send.end().await;
        }))
    }
}

fn poll_upload(upload: &mut Option<Upload>, cx: &mut Context<'_>) {
    if let Some(running) = upload
        && running.0.as_mut().poll(cx).is_ready()
    {
        *upload = None;
    }
}

/// What visitors receive.
enum FrontBody {
    Text(Option<Bytes>),
    Stream(Box<Streamed>),
}

struct Streamed {
    recv: Recv,
    upload: Option<Upload>,
    length: Option<u64>,
    ended: bool,
    _kept: Option<Send>,
    _in_flight: InFlight,
}

impl Body for FrontBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let streamed = match self.get_mut() {
            Self::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Stream(streamed) => streamed,
        };
        if streamed.ended {
            return Poll::Ready(None);
        }
        poll_upload(&mut streamed.upload, cx);
        match std::task::ready!(streamed.recv.poll_chunk(cx)) {
            Some(Ok(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let mut trailers = std::pin::pin!(streamed.recv.trailers());
                let trailers = std::task::ready!(trailers.as_mut().poll(cx));
                streamed.ended = true;
                match trailers {
                    Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                    Ok(None) => Poll::Ready(None),
                    Err(error) => Poll::Ready(Some(Err(error))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Stream(streamed) => streamed.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Stream(streamed) => streamed.length.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
