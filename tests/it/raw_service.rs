//! The service behind the connector in the raw tests, and requests to it.

use std::net::SocketAddr;

use adit::wire::{
    BodyLength, Head, RequestHead,
    connect::{Answer, encode_request},
};
use http::{HeaderMap, HeaderValue, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    harness::{read_head, service},
    raw_edge::{H2Peer, QuicPeer, Reply, Running},
};

/// Nobody listens there: the port below every other.
pub(crate) const NOBODY: &str = "127.0.0.1:1";

/// Answers by path; where nothing else is said, with the head and the raw body of the request.
pub(crate) async fn origin() -> SocketAddr {
    service(|mut stream| async move {
        while let Some((head, mut body)) = read_head(&mut stream).await {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let answer = match path.as_str() {
                "/abort" => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
                    return;
                }
                "/trailers" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n\
                     4\r\nbody\r\n0\r\nX-T: tv\r\n\r\n"
                    .to_owned(),
                "/204" => "HTTP/1.1 204 No Content\r\nDate: then\r\n\r\n".to_owned(),
                "/ws" => {
                    let key = head.lines().find(|line| line.to_lowercase().starts_with("sec-websocket-key: "));
                    let key = &key.unwrap_or_else(|| panic!("no key in {head}"))["sec-websocket-key: ".len()..];
                    let accept = adit::proxy::frames::accept_key(key.as_bytes());
                    let answer = format!(
                        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Accept: {}\r\n\r\n",
                        accept.as_str()
                    );
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    return;
                }
                _ => {
                    let lower = head.to_lowercase();
                    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
                    let length = length.map_or(0, |length| length.parse::<usize>().unwrap());
                    let chunked = lower.contains("transfer-encoding: chunked");
                    while body.len() < length || chunked && !body.ends_with(b"0\r\n\r\n") {
                        if !matches!(stream.read_buf(&mut body).await, Ok(n) if n > 0) {
                            return;
                        }
                    }
                    let seen = format!("{head}{}", String::from_utf8_lossy(&body));
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}", seen.len())
                }
            };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// What goes in comes out.
pub(crate) async fn echo() -> SocketAddr {
    service(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// `app.example.com` is [`origin`], `down.example.com` is [`NOBODY`], `teapot.example.com` a status.
pub(crate) async fn rules() -> String {
    format!(
        "ingress:\n  - hostname: app.example.com\n    service: http://{}\n  - hostname: down.example.com\n    \
         service: http://{NOBODY}\n  - hostname: teapot.example.com\n    service: http_status:418\n  \
         - service: http_status:404\n",
        origin().await
    )
}

/// A request as an honest edge sends it over QUIC.
pub(crate) fn get(host: &str, path: &str) -> Vec<u8> {
    let head = RequestHead {
        websocket: false,
        method: http::Method::GET,
        host: HeaderValue::from_str(host).unwrap(),
        target: path.parse().unwrap(),
        headers: HeaderMap::new(),
        body: BodyLength::None,
    };
    encode_request(&Head::Request(head)).to_vec()
}

/// The same over HTTP/2.
pub(crate) fn h2_get(host: &str, path: &str) -> Request<()> {
    Request::builder().uri(format!("https://{host}{path}")).body(()).unwrap()
}

impl QuicPeer {
    /// The connection is as good as new.
    pub(crate) async fn serves(&self, after: &str) {
        match self.ask(&get("app.example.com", "/good?x")).await {
            Reply::Answered(Answer::Response(head), body) if head.status == 200 => {
                assert!(body.starts_with(b"GET /good?x HTTP/1.1\r\n"), "after {after}");
            }
            other => panic!("after {after}: {other:?}"),
        }
    }
}

impl H2Peer {
    /// The connection is as good as new.
    pub(crate) async fn serves(&self, after: &str) {
        let answer = self.ask(h2_get("app.example.com", "/good?x"), "").await;
        let answer = answer.unwrap_or_else(|error| panic!("after {after}: {error}"));
        assert_eq!(answer.head.status, 200, "after {after}");
        assert!(answer.body.starts_with("GET /good?x HTTP/1.1\r\n"), "after {after}");
    }
}

impl Running {
    /// Status and body of a page of the admin address.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        let answer = crate::harness::Answer::parse(&bytes);
        (answer.status, answer.text())
    }
}
