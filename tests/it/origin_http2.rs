//! Bodies over HTTP/2 to a service, both ways at once.

use std::net::SocketAddr;

use adit::wire::{
    BodyLength, Head, RequestHead,
    connect::{encode_request, root_target},
};
use bytes::Bytes;
use h2::{RecvStream, SendStream, server};
use http::{HeaderMap, HeaderValue, Method, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use crate::{
    harness::{Answer, LIMIT, Lab, Over, background, over_both, peer::pattern, rule, service},
    raw_edge::{RawEdge, soon},
};

const BIG: usize = 8 << 20;

/// A service that gives the two halves of each request to `serve`.
async fn both_halves<F>(
    serve: impl Fn(RecvStream, SendStream<Bytes>) -> F + Clone + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    service(move |stream| {
        let serve = serve.clone();
        async move {
            let mut connection = server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let send = respond.send_response(Response::new(()), false).unwrap();
                background(serve(request.into_body(), send));
            }
        }
    })
    .await
}

async fn send_all(send: &mut SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        send.send_data(bytes.split_to(room.min(bytes.len())), false).unwrap();
    }
}

async fn receive(recv: &mut RecvStream) -> Option<Bytes> {
    let chunk = recv.data().await?.unwrap();
    recv.flow_control().release_capacity(chunk.len()).unwrap();
    Some(chunk)
}

fn head(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")
}

async fn echo(over: Over) {
    let addr = both_halves(|mut recv, mut send| async move {
        while let Some(chunk) = receive(&mut recv).await {
            send_all(&mut send, chunk).await;
        }
        send.send_data(Bytes::new(), true).unwrap();
    })
    .await;
    let lab = Lab::start(over, &rule(format!("h2c://{addr}"))).await;
    let body = pattern(BIG);
    let (mut reader, mut writer) = TcpStream::connect(lab.http).await.unwrap().into_split();
    let write = async {
        writer.write_all(head(BIG).as_bytes()).await.unwrap();
        writer.write_all(&body).await.unwrap();
    };
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LIMIT * 2, reader.read_to_end(&mut answer));
    let ((), read) = tokio::join!(write, read);
    read.expect("no answer in time").unwrap();
    let answer = Answer::parse(&answer);
    assert!(answer.complete && answer.body == body, "{} bytes came back", answer.body.len());
    lab.finish().await;
}

/// The visitor never reads; the service writes all the time, and reads.
#[tokio::test]
async fn an_answer_that_nobody_reads_does_not_stop_the_upload() {
    let (counted, count) = mpsc::unbounded_channel();
    let addr = both_halves(move |mut recv, mut send| {
        let counted = counted.clone();
        async move {
            let count = async {
                let mut count = 0;
                while let Some(chunk) = receive(&mut recv).await {
                    count += chunk.len();
                }
                counted.send(count).unwrap();
            };
            tokio::select! {
                () = send_all(&mut send, Bytes::from(vec![b'.'; 128 << 20])) => {}
                () = count => {}
            }
        }
    })
    .await;
    upload_beside(format!("h2c://{addr}"), count).await;
}

/// As before, over HTTP/1.1.
#[tokio::test]
async fn an_answer_over_http1_that_nobody_reads_does_not_stop_the_upload() {
    let (counted, count) = mpsc::unbounded_channel();
    let addr = service(move |stream| {
        let counted = counted.clone();
        async move {
            let (mut reader, mut writer) = stream.into_split();
            let count = async {
                let mut bytes = vec![0; 64 << 10];
                let (mut head, mut count) = (Vec::new(), None);
                // The head's length is not known before.
                while count != Some(UPLOAD) {
                    let n = reader.read(&mut bytes).await.unwrap();
                    assert!(n > 0, "the upload ended");
                    if let Some(count) = &mut count {
                        *count += n;
                        continue;
                    }
                    head.extend_from_slice(&bytes[..n]);
                    count = head.windows(4).position(|end| end == b"\r\n\r\n").map(|end| head.len() - end - 4);
                }
                counted.send(UPLOAD).unwrap();
            };
            let write = async {
                writer.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                while writer.write_all(&[b'.'; 64 << 10]).await.is_ok() {}
            };
            tokio::join!(count, write);
        }
    })
    .await;
    upload_beside(format!("http://{addr}"), count).await;
}

/// More than all buffers on the way hold.
const UPLOAD: usize = 4 * BIG;

async fn upload_beside(service: String, mut count: mpsc::UnboundedReceiver<usize>) {
    let edge = RawEdge::new().await;
    let _connector = edge.connector("quic", &rule(service)).await;
    let peer = edge.quic_peer().await;
    let head = RequestHead {
        websocket: false,
        method: Method::POST,
        host: HeaderValue::from_static("web.test"),
        target: root_target(),
        headers: HeaderMap::new(),
        body: BodyLength::Known(UPLOAD as u64),
    };
    let (mut send, _recv) = peer.connection.open_bi().await.unwrap();
    let write = async {
        send.write_all(&encode_request(&Head::Request(head))).await.unwrap();
        send.write_all(&pattern(UPLOAD)).await.unwrap();
        count.recv().await
    };
    assert_eq!(soon("the upload, beside the download", write).await, Some(UPLOAD));
}

/// Visitors of an ordinary service on one shared connection: ten take nothing of what they are sent.
async fn others_read_nothing(over: Over) {
    const VISITORS: usize = 10;
    let (stalled, mut stalls) = mpsc::unbounded_channel();
    let counter = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let addr = both_halves(move |_, mut send| {
        let stalled = stalled.clone();
        let nth = counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            if nth >= VISITORS {
                send.send_data(Bytes::from_static(b"answered"), true).unwrap();
                return;
            }
            loop {
                send.reserve_capacity(64 << 10);
                let room = std::future::poll_fn(|cx| send.poll_capacity(cx));
                // Who takes nothing for so long has no more room.
                match tokio::time::timeout(std::time::Duration::from_millis(300), room).await {
                    Ok(Some(Ok(room))) => send.send_data(Bytes::from(vec![b'.'; room]), false).unwrap(),
                    Ok(_) => return,
                    Err(_) => break,
                }
            }
            stalled.send(()).unwrap();
            std::future::pending().await
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("h2c://{addr}"))).await;
    let mut visitors = Vec::new();
    for _ in 0..VISITORS {
        let mut visitor = TcpStream::connect(lab.http).await.unwrap();
        visitor.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
        visitors.push(visitor);
    }
    for _ in 0..VISITORS {
        soon("a visitor's answer to stall", stalls.recv()).await.unwrap();
    }
    assert_eq!(lab.get("/").await.text(), "answered");
    drop(visitors);
    lab.finish().await;
}

over_both! {
    visitors_who_read_nothing_do_not_stop_the_answers_of_others => others_read_nothing,
    eight_mebibytes_are_echoed_intact_while_they_come => echo,
}
