//! Ten thousand WebSockets at once. Edge, connector, service and visitors are processes of their own: each has as many
//! sockets as a process may usually open.

use std::{
    io::Write,
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use adit::{edge::state::StateDir, proxy::frames::accept_key};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

use crate::harness::{
    HOSTS, Over,
    program::{Program, free, says},
    read_head,
};

const COUNT: usize = 10_000;
const IDLE: Duration = Duration::from_secs(60);
/// Handshakes at once; more would be a test of the kernel's queue.
const AT_ONCE: usize = 64;

/// Another process of this test program, which plays one of the parts below.
struct Part {
    child: Child,
    orders: ChildStdin,
    words: std::io::Lines<std::io::BufReader<ChildStdout>>,
}

impl Part {
    fn start(part: &str, address: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "many::part", "--nocapture", "--quiet"]);
        command.env("ADIT_TEST_PART", part).env("ADIT_TEST_ADDRESS", address);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let words = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        Self { orders: child.stdin.take().unwrap(), words, child }
    }

    /// The number that it says next to `word`.
    fn says(&mut self, word: &str) -> usize {
        loop {
            let line = self.words.next().unwrap_or_else(|| panic!("gone before it said {word}")).unwrap();
            if let Some((_, number)) = line.split_once(&format!("{word}=")) {
                return number.trim().parse().unwrap();
            }
        }
    }

    fn go_on(&mut self) {
        self.orders.write_all(b"\n").unwrap();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Run by another test in a process of its own; does nothing otherwise.
#[tokio::test]
#[ignore = "a part of another test"]
async fn part() {
    let address = std::env::var("ADIT_TEST_ADDRESS").unwrap_or_default();
    match std::env::var("ADIT_TEST_PART").as_deref() {
        Ok("service") => echo().await,
        Ok("visitors") => visitors(address.parse().unwrap()).await,
        _ => {}
    }
}

fn say(word: &str, number: usize) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word}={number}").unwrap();
    out.flush().unwrap();
}

/// Accepts WebSockets and sends every short message back.
async fn echo() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    say("port", listener.local_addr().unwrap().port().into());
    let mut streams = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        streams.spawn(async move {
            let (head, _) = read_head(&mut stream).await?;
            let key = head.lines().find(|line| line.to_lowercase().starts_with("sec-websocket-key:"));
            let key = accept_key(key?.split_once(':')?.1.trim().as_bytes());
            let accepted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
            stream.write_all(format!("{accepted}Sec-WebSocket-Accept: {key}\r\n\r\n").as_bytes()).await.ok()?;
            loop {
                let mut frame = [0; 6 + 4];
                stream.read_exact(&mut frame).await.ok()?;
                let (mask, text) = (&frame[2..6], &frame[6..]);
                let text: Vec<u8> = text.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
                stream.write_all(&[&[0x81, 4][..], &text].concat()).await.ok()?;
            }
            #[allow(unreachable_code, reason = "gives the block its type")]
            Some(())
        });
    }
}

async fn open(edge: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(edge).await?;
    let request = "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let (head, _) = read_head(&mut stream).await.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let accepted = head.starts_with("HTTP/1.1 101") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    if accepted { Ok(stream) } else { Err(std::io::Error::other(head)) }
}

async fn answers(stream: &mut TcpStream, n: usize) -> bool {
    let text = (n as u32).to_be_bytes();
    let frame = [&[0x81, 0x84, 0, 0, 0, 0][..], &text].concat();
    let mut answer = [0; 6];
    stream.write_all(&frame).await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && answer == *[&[0x81, 4][..], &text].concat()
}

async fn visitors(edge: SocketAddr) {
    let mut streams = Vec::with_capacity(COUNT);
    let mut opening = JoinSet::new();
    let mut failed = 0;
    for n in 0..COUNT + AT_ONCE {
        if n < COUNT {
            opening.spawn(open(edge));
        }
        if n >= AT_ONCE {
            match opening.join_next().await.unwrap().unwrap() {
                Ok(stream) => streams.push(stream),
                Err(error) => {
                    failed += 1;
                    eprintln!("{error}");
                }
            }
        }
    }
    say("failed", failed);
    say("open", streams.len());
    // Nothing else is to happen here meanwhile.
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let mut asking = JoinSet::new();
    for (n, mut stream) in streams.into_iter().enumerate() {
        asking.spawn(async move { answers(&mut stream, n).await });
    }
    let answered = asking.join_all().await.into_iter().filter(|answered| *answered).count();
    say("answered", answered);
}

async fn ten_thousand(over: Over) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path().join("state"));
    let token = state.new_token(&HOSTS.map(str::to_owned), None).unwrap();
    let mut service = Part::start("service", "");
    let port = service.says("port");
    let (config, token_file) = (dir.path().join("config.yml"), dir.path().join("token"));
    std::fs::write(&config, format!("ingress:\n  - service: http://127.0.0.1:{port}\n")).unwrap();
    std::fs::write(&token_file, token.encode().as_bytes()).unwrap();
    let [listen, door, metrics] = [free(), free(), free()].map(|address| address.to_string());
    let [ca, state, config, token_file] =
        [state.ca_path(), state.path().to_owned(), config, token_file].map(|path| path.display().to_string());
    let args = ["edge", "--state", &state, "--listen", &listen, "--http", &door, "--metrics", "127.0.0.1:0"];
    let edge = Program::start(dir.path(), "edge", &args);
    let args = ["run", "--config", &config, "--token-file", &token_file, "--edge", &listen, "--edge-ca", &ca];
    let args = [&args[..], &["--metrics", &metrics, "--protocol", over.as_str()]].concat();
    let connector = Program::start(dir.path(), "connector", &args);
    says(metrics.parse().unwrap(), "/readyz", 200).await;

    let before = [&edge, &connector].map(|program| program.memory("VmRSS"));
    let started = Instant::now();
    let mut visitors = Part::start("visitors", &door);
    let (mut visitors, failed, open) = tokio::task::spawn_blocking(move || {
        let (failed, open) = (visitors.says("failed"), visitors.says("open"));
        (visitors, failed, open)
    })
    .await
    .unwrap();
    let opening = started.elapsed();
    assert_eq!((failed, open), (0, COUNT), "{}\n{}", edge.log(), connector.log());
    tokio::time::sleep(IDLE).await;
    let grown = [&edge, &connector].map(|program| program.memory("VmRSS"));
    visitors.go_on();
    let answered = tokio::task::spawn_blocking(move || visitors.says("answered")).await.unwrap();
    eprintln!(
        "{}: {open} WebSockets opened in {:.1} s, idle for {} s, {answered} answered; KiB each: edge {:.1}, connector {:.1}",
        over.as_str(),
        opening.as_secs_f64(),
        IDLE.as_secs(),
        (grown[0] - before[0]) as f64 / COUNT as f64,
        (grown[1] - before[1]) as f64 / COUNT as f64,
    );
    assert_eq!(answered, COUNT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "holds ten thousand sockets in each of four processes for a minute"]
async fn ten_thousand_idle_websockets_all_answer_over_quic() {
    ten_thousand(Over::Quic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "holds ten thousand sockets in each of four processes for a minute"]
async fn ten_thousand_idle_websockets_all_answer_over_http2() {
    ten_thousand(Over::Http2).await;
}
