//! The service behind the tunnel: HTTP/1.1 on one thread, answers of known size, uploads counted, WebSockets
//! echoed. Knows nothing of tunnels.

use std::convert::Infallible;
use std::io::Read;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context as TaskContext, Poll};

use anyhow::Result;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

pub(crate) const ROLE: &str = "--role-service";

/// Prints its port, serves until stdin closes.
pub(crate) fn main() -> Result<ExitCode> {
    std::thread::spawn(|| {
        // Held open by the benchmark: its end, however violent, is ours.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            while connections.try_join_next().is_some() {}
            connections.spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer));
                // A connector may cut a connection at any time; what that costs shows at the load generator.
                let _ = connection.with_upgrades().await;
            });
        }
    })
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Repeat>, Infallible> {
    let path = request.uri().path();
    if let Some(length) = path.strip_prefix("/down/").and_then(|length| length.parse().ok()) {
        return Ok(Response::new(Repeat(length)));
    }
    Ok(match path {
        "/k10" => Response::new(Repeat(10 << 10)),
        "/s100" => Response::new(Repeat(100)),
        "/up" => upload(request.body_mut()).await,
        "/ws" => upgrade(request),
        _ => status(StatusCode::NOT_FOUND),
    })
}

/// 200 if all that was announced arrived: a connector must not cut a body silently.
async fn upload(body: &mut Incoming) -> Response<Repeat> {
    let announced = body.size_hint().exact();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return status(StatusCode::BAD_REQUEST);
        };
        received += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    let complete = announced.is_none_or(|announced| announced == received);
    let mut response = status(if complete { StatusCode::OK } else { StatusCode::BAD_REQUEST });
    response.headers_mut().insert(RECEIVED, received.into());
    response
}

fn upgrade(mut request: Request<Incoming>) -> Response<Repeat> {
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY) else {
        return status(StatusCode::BAD_REQUEST);
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgraded = hyper::upgrade::on(&mut request);
    #[allow(clippy::disallowed_methods, reason = "ends with its connection; the process is ended from outside")]
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_binary() && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .body(Repeat(0))
        .expect("every part is valid")
}

fn status(status: StatusCode) -> Response<Repeat> {
    let mut response = Response::new(Repeat(0));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_LENGTH, 0.into());
    response
}

/// So many bytes from one static chunk: producing them costs nothing.
struct Repeat(u64);

impl Body for Repeat {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.0 == 0 {
            return Poll::Ready(None);
        }
        let length = self.0.min(CHUNK.len() as u64);
        self.0 -= length;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK[..length as usize])))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

static CHUNK: [u8; 64 << 10] = [b'x'; 64 << 10];
/// What `/up` got, for the eyes of the load generator.
pub(crate) const RECEIVED: &str = "x-received";
