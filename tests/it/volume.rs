//! Amounts: large bodies, many requests, long messages, slow readers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};

use crate::harness::{LIMIT, Lab, Over, in_time, mirror, over_both, process::Program, read_head, rule, service};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8 ^ (n >> 13) as u8).collect()
}

/// Answers a request with its own body.
async fn body_mirror() -> std::net::SocketAddr {
    service(|mut stream| async move {
        while let Some((head, mut body)) = read_head(&mut stream).await {
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let length: usize = length.unwrap_or(0);
            while body.len() < length {
                let mut buffer = vec![0; 64 << 10];
                match stream.read(&mut buffer).await {
                    Ok(n) if n > 0 => body.extend_from_slice(&buffer[..n]),
                    _ => return,
                }
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() || stream.write_all(&body).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn sixteen_mebibytes(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", body_mirror().await))).await;
    let body = pattern(16 << 20);
    let answer = lab.send("POST", "/", "", &body).await;
    assert_eq!((answer.status, answer.body.len()), (200, body.len()));
    assert!(answer.body == body, "the body changed on the way");
    lab.finish().await;
}

async fn a_thousand_at_once(over: Over) {
    // Nobody is answered before all have arrived.
    let (arrived, everybody) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Notify::new()));
    let service = service(move |mut stream| {
        let (arrived, everybody) = (arrived.clone(), everybody.clone());
        async move {
            let Some((head, _)) = read_head(&mut stream).await else { return };
            let wait = everybody.notified();
            let mut wait = std::pin::pin!(wait);
            wait.as_mut().enable();
            if arrived.fetch_add(1, Ordering::SeqCst) == 999 {
                everybody.notify_waiters();
            } else {
                wait.await;
            }
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let requests = (0..1000).map(|n| {
        let lab = &lab;
        async move {
            let path = format!("/{n}");
            let answer = lab.get(&path).await;
            assert_eq!((answer.status, answer.text()), (200, path));
        }
    });
    futures_util::future::join_all(requests).await;
    lab.finish().await;
}

/// Echoes WebSocket messages.
async fn websocket_echo() -> std::net::SocketAddr {
    service(|stream| async move {
        let config = WebSocketConfig::default().max_frame_size(Some(64 << 20));
        let Ok(mut socket) = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn messages_of_every_size(over: Over) {
    let lab = Lab::start(over, &rule(format!("ws://{}", websocket_echo().await))).await;
    let stream = TcpStream::connect(lab.http).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://web.test/ws", stream).await.unwrap();
    for len in [1, 125, 126, 65_535, 65_536, 1 << 20] {
        let sent = pattern(len);
        socket.send(Message::binary(sent.clone())).await.unwrap();
        let back = socket.next().await.unwrap().unwrap().into_data();
        assert!(back == sent, "{len} bytes changed on the way");
    }
    socket.send(Message::text("grüße")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("grüße"));
    drop(socket);
    lab.finish().await;
}

/// Each event is produced only once the one before has been seen.
async fn events_arrive_one_by_one(over: Over) {
    let (seen, next) = tokio::sync::mpsc::channel::<()>(1);
    let next = Arc::new(tokio::sync::Mutex::new(next));
    let service = service(move |mut stream| {
        let next = next.clone();
        async move {
            read_head(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut next = next.lock().await;
            for n in 0..5 {
                let event = format!("data: {n}\n\n");
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                stream.write_all(chunk.as_bytes()).await.unwrap();
                next.recv().await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let mut stream = TcpStream::connect(lab.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    let mut received = String::new();
    for n in 0..5 {
        while !received.contains(&format!("data: {n}\n\n")) {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0);
            received.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        seen.send(()).await.unwrap();
    }
    lab.finish().await;
}

async fn tcp_both_ways_with_half_close(over: Over) {
    // Answers only after the visitor's end: the sum of what was sent.
    let service = service(|mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        let answer = format!("{} bytes", all.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut visitor = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (local, _) = listener.accept().await.unwrap();
    let talk = async {
        visitor.write_all(&pattern(300_000)).await.unwrap();
        visitor.shutdown().await.unwrap();
        let mut answer = String::new();
        visitor.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (forwarded, answer) = tokio::join!(lab.edge.forward_tcp(lab.token.tunnel, service, local), talk);
    assert_eq!((forwarded, answer.as_str()), (Ok(()), "300000 bytes"));
    lab.finish().await;
}

/// The connector as a process of its own.
struct Process {
    program: Program,
    lab: Lab,
}

impl Process {
    async fn start(over: Over, rules: &str) -> Self {
        let lab = Lab::edge_only().await;
        let (config, token) = (lab.dir.path().join("config.yml"), lab.dir.path().join("token"));
        std::fs::write(&config, rules).unwrap();
        std::fs::write(&token, lab.token.encode().as_bytes()).unwrap();
        let program = Program::start(|command| {
            command.args(["run", "--metrics", "127.0.0.1:0", "--protocol", over.as_str(), "--ha-connections", "1"]);
            command.arg("--edge").arg(lab.connectors.to_string()).arg("--edge-ca").arg(lab.state.ca_path());
            command.arg("--config").arg(&config).arg("--token-file").arg(&token)
        });
        lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.expect("the connector did not register");
        Self { program, lab }
    }

    /// Some traffic first, so that what is measured afterwards is growth and not start-up.
    async fn warm_up(&self, path: &str) {
        for _ in 0..20 {
            self.lab.get(path).await;
        }
    }
}

async fn slow_visitor(over: Over) {
    let written = Arc::new(AtomicU64::new(0));
    let counter = written.clone();
    let service = service(move |mut stream| {
        let written = counter.clone();
        async move {
            let Some((head, _)) = read_head(&mut stream).await else { return };
            if head.starts_with("GET /small") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
                return;
            }
            let length = 256u64 << 20;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let block = vec![0; 64 << 10];
            while stream.write_all(&block).await.is_ok() {
                written.fetch_add(block.len() as u64, Ordering::SeqCst);
            }
        }
    })
    .await;
    let process = Process::start(over, &rule(format!("http://{service}"))).await;
    process.warm_up("/small").await;
    let before = process.program.memory("VmRSS");
    let mut visitor = TcpStream::connect(process.lab.http).await.unwrap();
    visitor.write_all(b"GET /large HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    // Everything in between is full once the service makes no progress for a whole second.
    let mut last = (0, tokio::time::Instant::now());
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    while last.0 == 0 || last.1.elapsed() < Duration::from_secs(1) {
        tick.tick().await;
        let now = written.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, tokio::time::Instant::now());
        }
    }
    let growth = process.program.memory("VmHWM").saturating_sub(before);
    assert!(growth < 16 << 10, "{growth} KiB for one slow visitor");
    assert!(last.0 < 64 << 20, "{} bytes left the service although nobody read them", last.0);
    drop(visitor);
}

/// One WebSocket message of 1 GiB, of which the service sees every byte.
async fn one_gibibyte_in_one_message(over: Over) {
    const LENGTH: u64 = 1 << 30;
    let (done, mut all) = tokio::sync::mpsc::channel::<u64>(1);
    let service = service(move |mut stream| {
        let done = done.clone();
        async move {
            let mut buffer = vec![0; 256 << 10];
            let mut count = 0;
            let mut sum = 0u64;
            while let Ok(n) = stream.read(&mut buffer).await
                && n > 0
            {
                count += n as u64;
                sum += buffer[..n].iter().map(|byte| u64::from(*byte)).sum::<u64>();
                if count == LENGTH {
                    done.send(sum).await.unwrap();
                }
            }
        }
    })
    .await;
    let process = Process::start(over, &rule(format!("tcp://{service}"))).await;
    let mut visitor = TcpStream::connect(process.lab.http).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    visitor.write_all(request.as_bytes()).await.unwrap();
    let (head, _) = read_head(&mut visitor).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    // A binary frame, masked with zeros: payload bytes go as they are.
    let mut header = vec![0x82, 0xff];
    header.extend_from_slice(&LENGTH.to_be_bytes());
    header.extend_from_slice(&[0; 4]);
    visitor.write_all(&header).await.unwrap();
    let block = vec![1; 1 << 20];
    // The first sixteenth fills every buffer on the way; what comes after must not grow anything.
    for _ in 0..64 {
        visitor.write_all(&block).await.unwrap();
    }
    let before = process.program.memory("VmHWM");
    for _ in 64..1024 {
        visitor.write_all(&block).await.unwrap();
    }
    let sum = tokio::time::timeout(LIMIT * 2, all.recv()).await.expect("bytes are missing");
    assert_eq!(sum, Some(LENGTH), "bytes changed on the way");
    let growth = process.program.memory("VmHWM").saturating_sub(before);
    assert!(growth < 4 << 10, "{growth} KiB of growth");
}

over_both! {
    sixteen_mebibytes_go_up_and_down_intact => sixteen_mebibytes,
    a_thousand_concurrent_requests_are_all_answered => a_thousand_at_once,
    websocket_messages_of_one_byte_to_one_mebibyte_pass => messages_of_every_size,
    each_event_of_a_stream_arrives_before_the_next_is_produced => events_arrive_one_by_one,
    tcp_flows_both_ways_and_half_closes => tcp_both_ways_with_half_close,
    a_slow_visitor_costs_the_connector_little => slow_visitor,
}

#[tokio::test]
#[ignore = "moves 1 GiB through a debug build, a minute each; .ci/run runs it"]
async fn a_message_of_one_gibibyte_is_streamed_over_quic() {
    in_time(one_gibibyte_in_one_message(Over::Quic)).await;
}

#[tokio::test]
#[ignore = "moves 1 GiB through a debug build, a minute each; .ci/run runs it"]
async fn a_message_of_one_gibibyte_is_streamed_over_http2() {
    in_time(one_gibibyte_in_one_message(Over::Http2)).await;
}
