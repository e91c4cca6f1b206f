//! One registered connection of a connector, seen from the edge, and the streams opened on it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    transport::{Recv, Send, StreamError, Transport},
    wire::{
        self, BodyLength, Head, RequestHead, ResponseHead,
        calls::{self, Applied},
        connect::{self, Answer},
        headers::{self, RESPONSE_HEADERS, TCP_SOURCE, UPGRADE},
        registration::Registration,
        rpc::RpcThread,
    },
};

/// How long a connector may take to begin an answer is the service's affair; to grant a stream it is the
/// connector's, and this is the bound.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// The way to a connector.
#[derive(Debug)]
pub enum Link {
    /// Over QUIC.
    Quic(quinn::Connection),
    /// Over HTTP/2.
    Http2(h2::client::SendRequest<Bytes>),
}

/// A connection that registered.
#[derive(Debug)]
pub struct Session {
    tunnel: Uuid,
    connector: Uuid,
    index: u8,
    version: String,
    secret_hash: [u8; 32],
    own: bool,
    link: Link,
    in_flight: AtomicUsize,
    idle: Notify,
    retired: CancellationToken,
    revoked: CancellationToken,
    pushing: Mutex<()>,
}

/// Why a stream through a connector failed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The connector did not grant a stream in time.
    #[error("the connector granted no stream within {OPEN_LIMIT:?}")]
    NoStream,
    /// The connection broke.
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The stream broke.
    #[error("{0}")]
    Stream(#[from] StreamError),
    /// The connector answered nonsense.
    #[error("{0}")]
    Wire(#[from] wire::Error),
    /// The head cannot be said in HTTP/2.
    #[error("{0}")]
    Http(#[from] http::Error),
    /// The connector could not answer for the service.
    #[error("{0}")]
    Failed(String),
    /// The connection broke in the middle of the answer's head.
    #[error("the answer was cut: {0}")]
    Cut(StreamError),
}

/// Counts a request from its start to the end of its answer.
#[derive(Debug)]
pub struct InFlight(Arc<Session>);

impl InFlight {
    /// Where it is in flight.
    pub fn session(&self) -> &Arc<Session> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// A stream whose head was sent; the answer is still to come.
#[derive(Debug)]
pub struct Opened {
    /// Takes the visitor's bytes.
    pub send: Send,
    /// Gives the answer.
    pub answer: Awaited,
}

/// An answer on its way.
#[derive(Debug)]
pub enum Awaited {
    /// Over QUIC.
    Quic {
        /// The response side of the stream.
        recv: quinn::RecvStream,
        /// Whether the answer may be framed.
        may_frame: bool,
    },
    /// Over HTTP/2.
    Http2 {
        /// The response to come.
        response: h2::client::ResponseFuture,
        /// Whether a 200 may stand for 101.
        websocket: bool,
    },
}

impl Session {
    /// A session from an accepted registration.
    pub fn new(registration: &Registration, link: Link) -> Self {
        Self {
            tunnel: registration.tunnel,
            connector: registration.connector,
            index: registration.index,
            version: registration.version.clone(),
            secret_hash: Sha256::digest(&registration.secret[..]).into(),
            own: registration.offers_own(),
            link,
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            retired: CancellationToken::new(),
            revoked: CancellationToken::new(),
            pushing: Mutex::new(()),
        }
    }

    /// Its tunnel.
    pub fn tunnel(&self) -> Uuid {
        self.tunnel
    }

    /// Its connector's id.
    pub fn connector(&self) -> Uuid {
        self.connector
    }

    /// Its index within the connector.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The connector's version, as it said.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// SHA-256 of the secret it registered with.
    pub fn secret_hash(&self) -> &[u8; 32] {
        &self.secret_hash
    }

    /// Whether its connector is adit, and the two may have ways of their own: framed bodies, half-closed streams.
    pub fn is_own(&self) -> bool {
        self.own
    }

    /// How it is connected.
    pub fn transport(&self) -> Transport {
        match self.link {
            Link::Quic(_) => Transport::Quic,
            Link::Http2(_) => Transport::Http2,
        }
    }

    /// Requests not answered to their end yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts one more request.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(self.clone())
    }

    /// Marks the connection as one that gets nothing new. It finishes what it has, however long that takes.
    pub fn retire(&self) {
        self.retired.cancel();
    }

    /// Whether it was marked.
    pub fn is_retired(&self) -> bool {
        self.retired.is_cancelled()
    }

    /// Completes once the connection was marked.
    pub async fn retired(&self) {
        self.retired.cancelled().await;
    }

    /// Marks the connection as one whose tunnel or secret is gone: it gets nothing new, and has little time for the rest.
    pub fn revoke(&self) {
        self.retired.cancel();
        self.revoked.cancel();
    }

    /// Whether its tunnel or secret is gone.
    pub fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }

    /// Completes once its tunnel or secret is gone.
    pub async fn revoked(&self) {
        self.revoked.cancelled().await;
    }

    /// Completes when nothing is in flight.
    pub async fn idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            // Listening first: the last request may end between the look and the wait.
            idle.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Opens a stream and sends its head.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; nothing of the body was sent.
    pub async fn open(&self, head: &Head) -> Result<Opened, OpenError> {
        match &self.link {
            Link::Quic(connection) => {
                let (send, recv) =
                    tokio::time::timeout(OPEN_LIMIT, connection.open_bi()).await.map_err(|_| OpenError::NoStream)??;
                let mut send = Send::quic(send);
                let ended = matches!(head, Head::Request(RequestHead { websocket: false, body: BodyLength::None, .. }));
                let may_frame = self.own && matches!(head, Head::Request(RequestHead { websocket: false, .. }));
                if may_frame {
                    send.write(connect::encode_request_of_own(head), ended).await?;
                    if matches!(head, Head::Request(RequestHead { body: BodyLength::Unknown, .. })) {
                        send.begin_frames();
                    }
                } else {
                    send.write(connect::encode_request(head), ended).await?;
                }
                Ok(Opened { send, answer: Awaited::Quic { recv, may_frame } })
            }
            Link::Http2(sender) => {
                let (request, websocket, ended) = h2_request(head)?;
                let mut ready = tokio::time::timeout(OPEN_LIMIT, sender.clone().ready())
                    .await
                    .map_err(|_| OpenError::NoStream)?
                    .map_err(StreamError::from)?;
                let (response, send) = ready.send_request(request, ended).map_err(StreamError::from)?;
                let mut send = Send::http2(send);
                if ended {
                    send.finish();
                }
                Ok(Opened { send, answer: Awaited::Http2 { response, websocket } })
            }
        }
    }

    /// Waits until no other push is on its way.
    pub async fn turn_to_push(&self) -> MutexGuard<'_, ()> {
        self.pushing.lock().await
    }

    /// Pushes a configuration.
    ///
    /// # Errors
    ///
    /// With the reason.
    pub async fn push(&self, rpc: &RpcThread, version: i32, config: Bytes) -> Result<Applied, String> {
        match &self.link {
            Link::Quic(connection) => {
                let opening = async {
                    let (mut send, recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
                    send.write_all(&connect::RPC_SIGNATURE).await.map_err(|error| error.to_string())?;
                    Ok::<_, String>((send, recv))
                };
                let opened = tokio::time::timeout(OPEN_LIMIT, opening).await;
                let (send, recv) = opened.unwrap_or_else(|_| Err("no stream in time".into()))?;
                calls::push(rpc, Recv::quic(Bytes::new(), recv), Send::quic(send), version, config).await
            }
            Link::Http2(sender) => push_http2(sender.clone(), version, &config).await,
        }
    }
}

impl Awaited {
    /// Waits for the head of the answer.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub async fn answer(self) -> Result<(Answer, Recv), OpenError> {
        match self {
            Self::Quic { mut recv, may_frame } => {
                let mut collector = connect::Collector::default();
                loop {
                    let chunk = recv.read_chunk(usize::MAX, true).await.map_err(|error| {
                        let error = StreamError::from(error);
                        if collector.is_empty() { error.into() } else { OpenError::Cut(error) }
                    })?;
                    let Some(chunk) = chunk else { return Err(StreamError::Closed.into()) };
                    collector.push(chunk.bytes);
                    if collector.signature()? == Some(connect::Signature::Rpc) {
                        return Err(wire::Error::Signature.into());
                    }
                    if let Some((message, rest)) = collector.message()? {
                        if !may_frame {
                            return Ok((connect::decode_response(&message)?, Recv::quic(rest, recv)));
                        }
                        let (answer, framed) = connect::decode_response_of_own(&message)?;
                        let recv = match &answer {
                            _ if framed => Recv::framed(rest, recv),
                            // It would be framed if there were a body: gRPC visitors want the end with the head.
                            Answer::Response(head) if head.can_have_trailers() => Recv::ended(),
                            _ => Recv::quic(rest, recv),
                        };
                        return Ok((answer, recv));
                    }
                }
            }
            Self::Http2 { response, websocket } => {
                let (parts, body) = response.await.map_err(StreamError::from)?.into_parts();
                let recv = Recv::http2(body);
                let Some(packed) = parts.headers.get(RESPONSE_HEADERS) else {
                    let rate_limited = parts.headers.get(headers::RESPONSE_META) == Some(&headers::META_RATE_LIMITED);
                    let error = format!("status {}", parts.status.as_u16());
                    return Ok((Answer::Failed { error, rate_limited }, recv));
                };
                let mut headers = headers::unpack(packed.as_bytes())?;
                if let Some(length) = parts.headers.get(header::CONTENT_LENGTH) {
                    headers.insert(header::CONTENT_LENGTH, length.clone());
                }
                let upgraded = websocket
                    && parts.status == StatusCode::OK
                    && (headers.contains_key(header::SEC_WEBSOCKET_ACCEPT) || headers.contains_key(header::UPGRADE));
                let status = if upgraded { StatusCode::SWITCHING_PROTOCOLS } else { parts.status };
                Ok((Answer::Response(ResponseHead { status, headers }), recv))
            }
        }
    }
}

fn h2_request(head: &Head) -> Result<(Request<()>, bool, bool), OpenError> {
    match head {
        Head::Tcp(dest) => {
            let request = Request::builder()
                .uri(format!("https://{dest}/"))
                .header(TCP_SOURCE, HeaderValue::from_static("adit-edge"))
                .body(())?;
            Ok((request, false, false))
        }
        Head::Request(request) => {
            let host = request.host.to_str().map_err(|_| wire::Error::Http("host"))?;
            let uri = http::Uri::builder()
                .scheme("https")
                .authority(if host.is_empty() { "localhost" } else { host })
                .path_and_query(request.target.clone())
                .build()?;
            let mut out = Request::new(());
            *out.method_mut() = request.method.clone();
            *out.uri_mut() = uri;
            let headers = out.headers_mut();
            *headers = request.headers.clone();
            for name in [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::HOST] {
                headers.remove(name);
            }
            if request.websocket {
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            }
            if let BodyLength::Known(length) = request.body {
                headers.insert(header::CONTENT_LENGTH, length.into());
            }
            Ok((out, request.websocket, !request.websocket && request.body == BodyLength::None))
        }
    }
}

/// A configuration over HTTP/2 (protocol.md §6.7). Refusals carry no reason from a peer that loses it.
async fn push_http2(sender: h2::client::SendRequest<Bytes>, version: i32, config: &[u8]) -> Result<Applied, String> {
    let call = async {
        let request = Request::builder()
            .method("PUT")
            .uri("https://localhost/")
            .header(UPGRADE, HeaderValue::from_static("update-configuration"))
            .body(())
            .map_err(|error| error.to_string())?;
        let mut sender = sender.ready().await.map_err(|error| error.to_string())?;
        let (response, send) = sender.send_request(request, false).map_err(|error| error.to_string())?;
        let mut body = format!("{{\"version\":{version},\"config\":").into_bytes();
        body.extend_from_slice(config);
        body.push(b'}');
        Send::http2(send).write(Bytes::from(body), true).await.map_err(|error| error.to_string())?;
        let (parts, recv) = response.await.map_err(|error| error.to_string())?.into_parts();
        if parts.status != StatusCode::OK {
            return Err(format!("status {}", parts.status.as_u16()));
        }
        let mut recv = Recv::http2(recv);
        let mut answer = Vec::new();
        while let Some(chunk) = recv.chunk().await.map_err(|error| error.to_string())? {
            if answer.len() + chunk.len() > 1 << 20 {
                return Err("an answer above 1 MiB".into());
            }
            answer.extend_from_slice(&chunk);
        }
        let answer: serde_json::Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
        let version = answer["lastAppliedVersion"].as_i64().and_then(|n| i32::try_from(n).ok());
        Ok(Applied {
            version: version.ok_or("no lastAppliedVersion in the answer")?,
            error: match &answer["err"] {
                serde_json::Value::Null => String::new(),
                serde_json::Value::String(text) => text.clone(),
                _ => "refused without a reason".into(),
            },
        })
    };
    tokio::time::timeout(calls::CALL_LIMIT, call).await.unwrap_or_else(|_| Err("no answer in time".into()))
}
