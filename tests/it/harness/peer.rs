//! One end of an HTTP/1.1 connection under a test's control: a scripted service or a visitor that keeps its connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{Answer, LIMIT, background};

/// Anything with two directions.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// A connection and what was read from it ahead.
pub(crate) struct Peer<S = TcpStream> {
    pub(crate) io: S,
    ahead: Vec<u8>,
    /// Its number among those of its listener.
    pub(crate) number: usize,
}

/// A request's head as a service sees it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) line: String,
    /// Names as they came.
    pub(crate) headers: Vec<(String, String)>,
}

impl Seen {
    fn parse(head: &str) -> Self {
        let mut lines = head.trim_end().split("\r\n");
        let line = lines.next().unwrap().to_owned();
        let headers = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        Self { line, headers }
    }

    pub(crate) fn method(&self) -> &str {
        self.line.split(' ').next().unwrap()
    }

    pub(crate) fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    fn length(&self) -> Option<usize> {
        self.header("content-length").map(|length| length.parse().unwrap())
    }

    fn chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked"))
    }
}

impl Peer {
    /// A visitor's connection.
    pub(crate) async fn visit(addr: SocketAddr) -> Self {
        Self::new(TcpStream::connect(addr).await.unwrap(), 0)
    }
}

impl<S: Io> Peer<S> {
    pub(crate) fn new(io: S, number: usize) -> Self {
        Self { io, ahead: Vec::new(), number }
    }

    /// Reads more; `false` at the end.
    async fn more(&mut self) -> bool {
        let mut buffer = vec![0; 64 << 10];
        match self.io.read(&mut buffer).await {
            Ok(n) if n > 0 => {
                self.ahead.extend_from_slice(&buffer[..n]);
                true
            }
            _ => false,
        }
    }

    async fn until_empty_line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.ahead.windows(4).position(|w| w == b"\r\n\r\n") {
                let rest = self.ahead.split_off(end + 4);
                let head = std::mem::replace(&mut self.ahead, rest);
                return Some(String::from_utf8_lossy(&head).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The next request's head, `None` when the other end closed.
    pub(crate) async fn head(&mut self) -> Option<Seen> {
        self.until_empty_line().await.map(|head| Seen::parse(&head))
    }

    /// Exactly so many bytes, or fewer at the end.
    pub(crate) async fn exact(&mut self, count: usize) -> Vec<u8> {
        while self.ahead.len() < count && self.more().await {}
        let rest = self.ahead.split_off(count.min(self.ahead.len()));
        std::mem::replace(&mut self.ahead, rest)
    }

    /// Whatever comes next, at least a byte; empty at the end.
    pub(crate) async fn some(&mut self) -> Vec<u8> {
        if self.ahead.is_empty() {
            self.more().await;
        }
        std::mem::take(&mut self.ahead)
    }

    /// A line without its end; `None` if it was cut.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.ahead.windows(2).position(|w| w == b"\r\n") {
                let line = self.exact(end + 2).await;
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// A chunked body; `None` if it was cut.
    async fn chunked(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = self.line().await?;
            let size = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16).ok()?;
            if size == 0 {
                // Trailer lines, then the empty line.
                while !self.line().await?.is_empty() {}
                return Some(body);
            }
            let chunk = self.exact(size + 2).await;
            if chunk.len() < size + 2 {
                return None;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    /// The body that belongs to a request's head; `None` if it was cut.
    pub(crate) async fn body(&mut self, head: &Seen) -> Option<Vec<u8>> {
        if head.chunked() {
            return self.chunked().await;
        }
        let length = head.length().unwrap_or(0);
        let body = self.exact(length).await;
        (body.len() == length).then_some(body)
    }

    /// A whole request.
    pub(crate) async fn request(&mut self) -> Option<(Seen, Vec<u8>)> {
        let head = self.head().await?;
        let body = self.body(&head).await?;
        Some((head, body))
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.io.write_all(bytes.as_ref()).await.is_ok() && self.io.flush().await.is_ok()
    }

    /// An ordinary answer.
    pub(crate) async fn ok(&mut self, body: impl AsRef<[u8]>) -> bool {
        self.send(ok(body)).await
    }

    /// Waits for the other end's end, reading away what still comes.
    pub(crate) async fn ended(&mut self) {
        while self.more().await {
            self.ahead.clear();
        }
    }

    /// The head of an answer to this visitor; the body follows.
    pub(crate) async fn answer_head(&mut self) -> Answer {
        let head = tokio::time::timeout(LIMIT, self.until_empty_line()).await.expect("no answer in time");
        Answer::parse(head.expect("hung up without an answer").as_bytes())
    }

    /// An answer whose body ends by its own framing.
    pub(crate) async fn answer(&mut self) -> Answer {
        let mut answer = self.answer_head().await;
        let body = tokio::time::timeout(LIMIT, async {
            if answer.header("transfer-encoding").is_some() {
                self.chunked().await
            } else {
                let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
                let body = self.exact(length).await;
                (body.len() == length).then_some(body)
            }
        });
        let body = body.await.expect("no body in time");
        answer.complete = body.is_some();
        answer.body = body.unwrap_or_default();
        answer
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.ahead)
    }
}

/// A service whose connections `script` serves.
pub(crate) async fn scripted<F>(script: impl Fn(Peer) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    background(async move {
        for number in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            stream.set_nodelay(true).unwrap();
            background(script(Peer::new(stream, number)));
        }
    });
    addr
}

/// A service that answers each request, bodies included, with what `reply` makes of it, and counts its connections.
pub(crate) async fn replying(
    reply: impl Fn(&Seen, Vec<u8>) -> Vec<u8> + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let (counted, reply) = (connections.clone(), Arc::new(reply));
    let addr = scripted(move |mut peer| {
        counted.fetch_add(1, Ordering::SeqCst);
        let reply = reply.clone();
        async move {
            while let Some((head, body)) = peer.request().await {
                if !peer.send(reply(&head, body)).await {
                    return;
                }
            }
        }
    })
    .await;
    (addr, connections)
}

/// `200` with a body.
pub(crate) fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    answer
}

/// Bytes of which no stretch looks like another.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
