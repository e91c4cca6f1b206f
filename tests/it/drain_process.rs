//! Stopping the program as a supervisor does: signals, exit status, `POST /drain`, `adit drain`, sd_notify.

use std::{net::SocketAddr, os::linux::net::SocketAddrExt, process::Stdio};

use adit::admin::drain::Progress;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixDatagram,
    process::Command,
    sync::mpsc,
};

use crate::harness::{
    LIMIT, Lab, Over, eventually, free_port, over_both,
    peer::{Peer, scripted},
    process::{Connector, Process, adit, run},
    rule,
};

const ASK: &str = "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n";

/// A service that begins an event stream for every request and never ends it; told of each.
async fn events() -> (SocketAddr, mpsc::Receiver<()>) {
    let (begun, begins) = mpsc::channel(8);
    let addr = scripted(move |mut peer| {
        let begun = begun.clone();
        async move {
            peer.head().await;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            peer.send(format!("{head}9\r\ndata: 0\n\n\r\n")).await;
            let _ = begun.send(()).await;
            peer.ended().await;
        }
    });
    (addr.await, begins)
}

/// A connector in the middle of an event stream, and the visitor who listens to it.
async fn in_the_middle(over: Over, args: &[&str]) -> (Process, Peer) {
    let (addr, mut begins) = events().await;
    let rules = rule(format!("http://{addr}"));
    let process = Process::with(over, &rules, |command| command.args(args)).await;
    let mut visitor = Peer::visit(process.lab.http).await;
    visitor.send(ASK).await;
    assert_eq!(visitor.answer_head().await.status, 200);
    assert_eq!(visitor.exact(14).await, b"9\r\ndata: 0\n\n\r\n");
    begins.recv().await.unwrap();
    (process, visitor)
}

async fn unregistered(lab: &Lab) {
    eventually("unregistered", async || lab.edge.registry().of(lab.token.tunnel).is_empty()).await;
}

async fn idle(over: Over) {
    // Three minutes: whoever waits for the grace does not pass.
    for signal in ["TERM", "INT"] {
        let rules = rule("http_status:200");
        let process = Process::with(over, &rules, |command| command.args(["--grace-period", "3m"])).await;
        process.connector.signal(signal).await;
        let (status, log) = process.connector.ended().await;
        assert_eq!(status.code(), Some(0), "{signal}: {log}");
    }
}

async fn grace_cuts(over: Over) {
    for grace in ["0s", "2s"] {
        let (process, mut visitor) = in_the_middle(over, &["--grace-period", grace]).await;
        process.connector.signal("TERM").await;
        let (status, log) = process.connector.ended().await;
        // Stopped as configured: a supervisor must not take it for a failure. The log says what it cost.
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("the grace period is over: open streams are cut"), "{log}");
        assert_eq!(visitor.rest().await, b"", "half an event stream must not look whole");
    }
}

async fn second_signal(over: Over) {
    let (process, mut visitor) = in_the_middle(over, &["--grace-period", "3m"]).await;
    process.connector.signal("TERM").await;
    unregistered(&process.lab).await;
    process.connector.signal("TERM").await;
    let (status, log) = process.connector.ended().await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(visitor.rest().await, b"");
}

async fn asked(over: Over) {
    let admin = free_port().await;
    let (address, metrics) = (admin.to_string(), format!("--metrics={admin}"));
    let (process, visitor) = in_the_middle(over, &["--grace-period", "3m", &metrics]).await;
    let ask = async |request: &str| {
        let mut peer = Peer::visit(admin).await;
        peer.send(format!("{request}Host: admin\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")).await;
        peer.answer().await
    };
    // Neither of these drains.
    for method in ["GET", "PUT", "DELETE"] {
        let answer = ask(&format!("{method} /drain HTTP/1.1\r\n")).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{method}");
    }
    assert_eq!(ask("POST /drain HTTP/1.1\r\nOrigin: https://page.example\r\n").await.status, 403);
    assert_eq!(ask("GET /readyz HTTP/1.1\r\n").await.status, 200);

    let progress = async || {
        let answer = ask("POST /drain HTTP/1.1\r\n").await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        serde_json::from_slice::<Progress>(&answer.body).unwrap()
    };
    let first = progress().await;
    assert!(!first.drained && first.in_flight == 1 && first.cut == 0, "{first:?}");
    assert!((1..=180_000).contains(&first.grace_left_ms), "{first:?}");
    assert_eq!(ask("GET /readyz HTTP/1.1\r\n").await.status, 503);
    assert_eq!(ask("GET /ready HTTP/1.1\r\n").await.status, 503);
    assert_eq!(ask("GET /livez HTTP/1.1\r\n").await.status, 200);
    unregistered(&process.lab).await;
    assert!(!progress().await.drained, "a stream is open");
    drop(visitor.io);
    eventually("drained", async || progress().await.drained).await;
    let last = progress().await;
    assert_eq!((last.connections, last.in_flight, last.cut), (0, 0, 0));
    assert!(last.grace_left_ms < first.grace_left_ms, "the grace counts from the first call");
    // The command asks in the same way, and it is done already.
    assert_eq!(run(&["drain", "--metrics", &address]).await, (0, "drained\n".into(), String::new()));
    // It stays until a signal, which then has nothing to wait for.
    assert_eq!(ask("GET /livez HTTP/1.1\r\n").await.status, 200);
    process.connector.signal("TERM").await;
    let (status, log) = process.connector.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

async fn drain_then_signal(over: Over) {
    let admin = free_port().await;
    let (process, mut visitor) = in_the_middle(over, &["--grace-period", "3s", &format!("--metrics={admin}")]).await;
    // What is still open when the grace ends is cut, and the command says so.
    let address = admin.to_string();
    let (status, _, error) = run(&["drain", "--metrics", &address]).await;
    assert_eq!(status, 1, "{error}");
    assert!(error.contains("1 streams cut"), "{error}");
    assert_eq!(visitor.rest().await, b"");
    process.connector.signal("TERM").await;
    assert_eq!(process.connector.ended().await.0.code(), Some(0));
    let (status, _, error) = run(&["drain", "--metrics", &address]).await;
    assert_eq!(status, 1);
    assert!(error.contains("nobody listens"), "{error}");
}

/// Every message of one start and stop.
async fn told(socket: &UnixDatagram, process: Process) -> Vec<String> {
    process.lab.get("/").await;
    process.connector.signal("TERM").await;
    let (status, log) = process.connector.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("systemd cannot be told"), "{log}");
    let mut messages = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length) = socket.try_recv(&mut buffer) {
        messages.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
    }
    messages
}

#[tokio::test]
async fn systemd_hears_of_the_start_the_connections_and_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let name = format!("adit-test-{}", uuid::Uuid::new_v4());
    let named = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let by_name = std::os::unix::net::UnixDatagram::bind_addr(&named).unwrap();
    by_name.set_nonblocking(true).unwrap();
    let sockets = [
        (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned()),
        (UnixDatagram::from_std(by_name).unwrap(), format!("@{name}")),
    ];
    for (socket, variable) in sockets {
        let rules = rule("http_status:200");
        let process = Process::with(Over::Quic, &rules, |command| command.env("NOTIFY_SOCKET", &variable)).await;
        let messages = told(&socket, process).await;
        let place = |text: &str| messages.iter().position(|message| message.lines().any(|line| line == text));
        assert_eq!(place("READY=1"), Some(0), "{messages:?}");
        let connected = place("STATUS=1 of 1 connections, over quic").expect("no word of the connection");
        let draining = place("STATUS=draining: unregistered, requests in flight finish").expect("no word of the drain");
        let stopping = place("STOPPING=1").expect("no word of the stop");
        assert!(connected < draining && draining < stopping, "{messages:?}");
        assert_eq!(messages.iter().filter(|message| message.contains("STOPPING")).count(), 1);
    }
}

#[tokio::test]
async fn ready_means_configuration_and_secrets_whatever_the_edge_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut lab = Lab::edge_only().await;
    // Nobody listens there.
    lab.connectors = free_port().await;
    let connector =
        Connector::spawn(&lab, Over::Http2, &rule("http_status:200"), |command| command.env("NOTIFY_SOCKET", &path));
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(LIMIT, socket.recv(&mut buffer)).await.expect("not ready").unwrap();
    assert!(buffer[..length].starts_with(b"READY=1\n"));
    connector.signal("TERM").await;
    assert_eq!(connector.ended().await.0.code(), Some(0));
}

#[tokio::test]
async fn the_demo_drains_on_a_signal() {
    let mut demo = adit().arg("demo").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut said = async || tokio::time::timeout(LIMIT, lines.next_line()).await.expect("the demo is silent").unwrap();
    while !said().await.expect("the demo ended").starts_with("Ctrl-C") {}
    let pid = demo.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    assert_eq!(said().await.as_deref(), Some("draining"));
    let status = tokio::time::timeout(LIMIT, demo.wait()).await.expect("does not end").unwrap();
    assert_eq!(status.code(), Some(0));
}

over_both! {
    an_idle_connector_ends_with_zero_long_before_the_grace => idle,
    the_end_of_the_grace_cuts_an_event_stream_and_ends_with_zero => grace_cuts,
    a_second_signal_ends_the_process_at_once_with_one => second_signal,
    a_drain_by_request_leaves_the_process_there_until_a_signal => asked,
    the_drain_command_says_what_the_grace_cut => drain_then_signal,
}
