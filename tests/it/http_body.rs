//! Bodies up and down, and the connections to the service that carry them.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use adit::shutdown::Tasks;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc},
};

use crate::harness::{
    Answer, LIMIT, Lab, Over, canned, mirror, over_both,
    peer::{ok, replying},
    read_head, rule, service,
};

const BIG: usize = 16 << 20;

/// Bytes in which every four can be told from all others.
fn pattern(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 3);
    for word in 0..u32::try_from(length.div_ceil(4)).unwrap() {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Length and checksum; quick without optimisation, and sensitive to order.
fn sum(bytes: &[u8]) -> String {
    let sum = bytes.chunks(8).fold(0_u64, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3).rotate_left(17)
    });
    format!("{} {sum:016x}", bytes.len())
}

/// Connections accepted and requests read by a service.
#[derive(Clone, Default)]
struct Counts {
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Counts {
    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Answers with length and checksum of each request's body, and says how the length was told.
async fn sums() -> (SocketAddr, Counts) {
    let counts = Counts::default();
    let counted = counts.clone();
    let answer = |counts: Counts| {
        service_fn(move |request: Request<Incoming>| {
            counts.requests.fetch_add(1, Ordering::SeqCst);
            async move {
                let chunked = request.headers().contains_key("transfer-encoding");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut response = Response::new(Full::new(Bytes::from(sum(&body))));
                let framing = if chunked { "chunks" } else { "length" };
                response.headers_mut().insert("x-framing", framing.parse().unwrap());
                Ok::<_, Infallible>(response)
            }
        })
    };
    let addr = service(move |stream| {
        counted.connections.fetch_add(1, Ordering::SeqCst);
        let answering = answer(counted.clone());
        async move {
            let http1 = hyper::server::conn::http1::Builder::new();
            let _ = http1.serve_connection(TokioIo::new(stream), answering).await;
        }
    });
    (addr.await, counts)
}

fn http(service: SocketAddr) -> String {
    rule(format!("http://{service}"))
}

async fn big_upload(over: Over) {
    let lab = Lab::start(over, &http(sums().await.0)).await;
    let body = pattern(BIG);
    let answer = lab.send("POST", "/", "", &body).await;
    assert_eq!((answer.header("x-framing"), answer.text()), (Some("length"), sum(&body)));
    lab.finish().await;
}

async fn big_chunked_upload(over: Over) {
    let lab = Lab::start(over, &http(sums().await.0)).await;
    let body = pattern(BIG);
    let mut request =
        b"POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(100_003) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let answer = lab.raw(request).await;
    assert_eq!((answer.header("x-framing"), answer.text()), (Some("chunks"), sum(&body)));
    lab.finish().await;
}

async fn big_download(over: Over, framing: &'static str) {
    let body = pattern(BIG);
    let mut answer = format!("HTTP/1.1 200 OK\r\n{framing}\r\n").into_bytes();
    if framing.starts_with("Transfer") {
        for chunk in body.chunks(100_003) {
            answer.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            answer.extend_from_slice(chunk);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"0\r\n\r\n");
    } else {
        answer.extend_from_slice(&body);
    }
    let lab = Lab::start(over, &http(canned(answer).await)).await;
    let answer = lab.get("/").await;
    assert!(answer.complete);
    assert_eq!(sum(&answer.body), sum(&body));
    let known = framing.starts_with("Content-Length");
    assert_eq!(answer.header("content-length").is_some(), known);
    lab.finish().await;
}

/// A body that nothing announces but its chunks, with methods that hardly ever have one.
async fn unannounced(over: Over) {
    let (addr, _) = replying(|head, body| {
        ok(format!("{} {:?} {}", head.method(), head.header("transfer-encoding"), String::from_utf8(body).unwrap()))
    })
    .await;
    for forbidden in [false, true] {
        let options = format!("    originRequest: {{ disableChunkedEncoding: {forbidden} }}\n");
        let lab = Lab::start(over, &format!("{}{options}", rule(format!("http://{addr}")))).await;
        let ask = async |method: &str, chunks: &str| {
            let head = "HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n";
            lab.raw(format!("{method} / {head}\r\n{chunks}0\r\n\r\n")).await
        };
        assert_eq!(ask("GET", "").await.text(), "GET None ");
        let answer = ask("GET", "4\r\nbody\r\n").await;
        if forbidden {
            assert_eq!((answer.status, answer.code()), (411, Some("length-required")));
        } else {
            assert_eq!(answer.text(), "GET Some(\"chunked\") body");
        }
        assert_eq!(ask("HEAD", "").await.status, 200);
        lab.finish().await;
    }
}

async fn early_answer(over: Over) {
    let eager = service(|mut stream| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge").await.unwrap();
        // The rest of the upload is not of interest, but a reset would destroy the answer.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let lab = Lab::start(over, &http(eager.await)).await;
    let mut visitor = TcpStream::connect(lab.http).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: {BIG}\r\n\r\nonly the beginning");
    visitor.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"large") {
        let read = tokio::time::timeout(LIMIT, visitor.read_buf(&mut bytes)).await.expect("no answer while uploading");
        assert_ne!(read.unwrap(), 0, "{}", String::from_utf8_lossy(&bytes));
    }
    assert_eq!(Answer::parse(&bytes).status, 413);
    drop(visitor);
    lab.finish().await;
}

async fn reuse(over: Over) {
    let (addr, counts) = sums().await;
    let lab = Lab::start(over, &http(addr)).await;
    for _ in 0..5 {
        assert_eq!(lab.send("POST", "/", "", b"abc").await.text(), sum(b"abc"));
    }
    assert_eq!((counts.requests(), counts.connections()), (5, 1));
    lab.finish().await;
}

async fn no_reuse(over: Over) {
    let (addr, counts) = sums().await;
    let yaml = format!("{}    originRequest: {{ keepAliveConnections: 0 }}\n", http(addr));
    let lab = Lab::start(over, &yaml).await;
    for _ in 0..3 {
        assert_eq!(lab.get("/").await.status, 200);
    }
    assert_eq!((counts.requests(), counts.connections()), (3, 3));
    lab.finish().await;
}

/// The service answers one request of each connection, keeps it open, and closes it when told.
async fn closed_while_idle(over: Over) {
    let counts = Counts::default();
    let (close, (closed, mut was_closed)) = (Arc::new(Notify::new()), mpsc::channel(8));
    let (counted, told) = (counts.clone(), close.clone());
    let fickle = service(move |mut stream| {
        counted.connections.fetch_add(1, Ordering::SeqCst);
        let (told, closed) = (told.clone(), closed.clone());
        async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            told.notified().await;
            drop(stream);
            closed.send(()).await.unwrap();
        }
    });
    let lab = Lab::start(over, &http(fickle.await)).await;
    for nth in 1..=3 {
        let answer = lab.get("/").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{answer:?}");
        assert_eq!(counts.connections(), nth);
        close.notify_one();
        was_closed.recv().await.unwrap();
    }
    lab.finish().await;
}

async fn many_headers(over: Over) {
    let mut head = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n".to_owned();
    for n in 0..300 {
        head.push_str(&format!("X-Header-{n}: {n}\r\n"));
    }
    let lab = Lab::start(over, &http(canned(head + "\r\n").await)).await;
    let answer = lab.get("/").await;
    assert_eq!(answer.status, 200);
    for n in 0..300 {
        assert_eq!(answer.header(&format!("x-header-{n}")), Some(n.to_string().as_str()));
    }
    lab.finish().await;
}

async fn big_header(over: Over) {
    let value = "v".repeat(1 << 20);
    let head = format!("HTTP/1.1 200 OK\r\nX-Big: {value}\r\nContent-Length: 2\r\n\r\nok");
    let lab = Lab::start(over, &http(canned(head).await)).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{:?}", answer.code());
    assert!(answer.header("x-big") == Some(value.as_str()));
    lab.finish().await;
}

async fn pipelined(over: Over) {
    let (addr, counts) = sums().await;
    let lab = Lab::start(over, &http(addr)).await;
    let mut stream = TcpStream::connect(lab.http).await.unwrap();
    let inner = "GET /inner HTTP/1.1\r\nHost: web.test\r\n\r\n";
    // The first body is the text of a request; the second is a real one behind it.
    let request = format!(
        "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: {}\r\n\r\n{inner}\
         POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
        inner.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains(&sum(inner.as_bytes())) && text.ends_with(&sum(b"abc")), "{text}");
    assert_eq!((text.matches("HTTP/1.1 200 OK").count(), counts.requests()), (2, 2));
    lab.finish().await;
}

/// Two lengths, or a length and chunks: what one reader takes for a body the next takes for a request.
async fn ambiguous_lengths(over: Over) {
    let (addr, counts) = sums().await;
    let lab = Lab::start(over, &http(addr)).await;
    let head = "POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n";
    let inner = "GET /inner HTTP/1.1\r\nHost: web.test\r\n\r\n";
    let answer = lab.raw(format!("{head}Content-Length: 3\r\nContent-Length: 40\r\n\r\nabc{inner}")).await;
    assert_eq!(answer.status, 400);
    assert_eq!(counts.requests(), 0);
    let answer =
        lab.raw(format!("{head}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}")).await;
    assert!(answer.status == 400 || answer.text() == sum(b""), "{answer:?}");
    assert!(counts.requests() <= 1);
    lab.finish().await;
}

async fn a_thousand(over: Over) {
    let lab = Arc::new(Lab::start(over, &http(mirror().await)).await);
    let tasks = Tasks::new();
    let (answered, mut answers) = mpsc::channel(1000);
    for n in 0..1000 {
        let (lab, answered) = (lab.clone(), answered.clone());
        tasks.attend(async move {
            let answer = lab.get(&format!("/{n}")).await;
            assert!(answer.text().starts_with(&format!("GET /{n} HTTP/1.1\r\n")), "{answer:?}");
            answered.send(()).await.unwrap();
        });
    }
    drop(answered);
    let mut count = 0;
    while answers.recv().await.is_some() {
        count += 1;
    }
    assert_eq!(count, 1000);
    drop(tasks);
    if let Ok(lab) = Arc::try_unwrap(lab) {
        lab.finish().await;
    }
}

over_both! {
    a_get_with_chunks_keeps_its_body_and_one_without_has_none => unannounced,
    sixteen_mebibytes_with_a_length_go_up_intact => big_upload,
    sixteen_mebibytes_in_chunks_go_up_intact => big_chunked_upload,
    sixteen_mebibytes_with_a_length_come_down_intact => |over| big_download(over, "Content-Length: 16777216\r\n"),
    sixteen_mebibytes_in_chunks_come_down_intact => |over| big_download(over, "Transfer-Encoding: chunked\r\n"),
    sixteen_mebibytes_until_the_connection_closes_come_down_intact => |over| big_download(over, ""),
    an_answer_comes_through_while_the_request_is_still_uploading => early_answer,
    a_connection_to_the_service_is_reused => reuse,
    no_connection_is_kept_where_none_may_be => no_reuse,
    a_kept_connection_that_the_service_closed_is_no_failure => closed_while_idle,
    three_hundred_response_headers_come_through => many_headers,
    a_response_header_of_a_mebibyte_comes_through => big_header,
    a_request_inside_a_body_stays_a_body_when_another_follows => pipelined,
    ambiguous_lengths_smuggle_nothing => ambiguous_lengths,
    a_thousand_concurrent_requests_are_all_answered => a_thousand,
}
