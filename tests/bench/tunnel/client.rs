//! The visitor's side of one connection: HTTP/1.1 by hand, because a client library would take a share of the
//! machine that belongs to what is measured, and WebSockets. Knows neither times nor counts.

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::case::{Order, Work};
use crate::service::RECEIVED;

/// One open connection and what it does again and again.
pub(crate) enum Exchange {
    Echo(Box<WebSocketStream<TcpStream>>),
    Http(Box<Client>),
}

pub(crate) struct Client {
    stream: TcpStream,
    /// The head, and the body if it is short.
    request: Vec<u8>,
    /// The rest of the body.
    upload: u64,
    uploads: Option<u64>,
    buffer: Vec<u8>,
}

impl Exchange {
    pub(crate) async fn new(order: &Order, stream: TcpStream) -> Result<Self> {
        let host = &order.host;
        Ok(match &order.work {
            Work::Echo => {
                let (socket, _) = tokio_tungstenite::client_async(format!("ws://{host}/ws"), stream)
                    .await
                    .context("opening a WebSocket")?;
                Self::Echo(Box::new(socket))
            }
            Work::Get { path } => {
                let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
                Self::Http(Box::new(Client::new(stream, head, None)))
            }
            Work::Post { path, bytes } => {
                let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {bytes}\r\n\r\n");
                Self::Http(Box::new(Client::new(stream, head, Some(*bytes))))
            }
        })
    }

    /// Returns the bytes of bodies it moved.
    pub(crate) async fn once(&mut self) -> Result<u64> {
        match self {
            Self::Echo(socket) => {
                socket.send(Message::binary(ECHO)).await?;
                let answer = socket.next().await.context("the WebSocket was closed")??;
                ensure!(answer.is_binary() && answer.len() == ECHO.len(), "not an echo: {answer}");
                Ok(2 * ECHO.len() as u64)
            }
            Self::Http(client) => client.once().await,
        }
    }
}

impl Client {
    fn new(stream: TcpStream, head: String, uploads: Option<u64>) -> Self {
        let mut request = head.into_bytes();
        let mut upload = uploads.unwrap_or(0);
        if upload <= SHORT {
            request.resize(request.len() + upload as usize, b'x');
            upload = 0;
        }
        Self { stream, request, upload, uploads, buffer: vec![0; BUFFER] }
    }

    async fn once(&mut self) -> Result<u64> {
        self.stream.write_all(&self.request).await.context("writing a request")?;
        let mut left = self.upload;
        while left > 0 {
            let chunk = left.min(CHUNK.len() as u64);
            self.stream.write_all(&CHUNK[..chunk as usize]).await.context("writing a body")?;
            left -= chunk;
        }
        let mut filled = 0;
        let (head, length) = loop {
            ensure!(filled < self.buffer.len(), "a head longer than {BUFFER} bytes");
            let read = self.stream.read(&mut self.buffer[filled..]).await.context("reading an answer")?;
            ensure!(read > 0, "the connection was closed instead of an answer");
            filled += read;
            if let Some(end) = self.buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                break (end + 4, self.parse(end)?);
            }
        };
        let mut left = (head as u64 + length).checked_sub(filled as u64).context("more than was announced")?;
        while left > 0 {
            let most = left.min(self.buffer.len() as u64) as usize;
            let read = self.stream.read(&mut self.buffer[..most]).await.context("reading a body")?;
            ensure!(read > 0, "the body was cut, {left} bytes are missing");
            left -= read as u64;
        }
        Ok(length + self.uploads.unwrap_or(0))
    }

    /// The length of the body that follows. The service announces it, so an answer that does not was changed.
    fn parse(&self, end: usize) -> Result<u64> {
        let head = std::str::from_utf8(&self.buffer[..end]).context("a head that is not text")?;
        let (status, fields) = head.split_once("\r\n").unwrap_or((head, ""));
        if !status.starts_with("HTTP/1.1 200") {
            bail!("answered {status}");
        }
        let field = |wanted: &str| {
            fields.split("\r\n").find_map(|field| {
                let (name, value) = field.split_once(':')?;
                name.eq_ignore_ascii_case(wanted).then(|| value.trim())
            })
        };
        if let Some(sent) = self.uploads {
            let received = field(RECEIVED).and_then(|value| value.parse().ok());
            ensure!(received == Some(sent), "of {sent} bytes sent the service got {received:?}");
        }
        field("content-length").context("no content-length")?.parse().context("content-length")
    }
}

static CHUNK: [u8; 64 << 10] = [b'x'; 64 << 10];
static ECHO: &[u8] = &[b'x'; 64];
const BUFFER: usize = 64 << 10;
/// A body up to here goes out with its head in one write.
const SHORT: u64 = 16 << 10;
