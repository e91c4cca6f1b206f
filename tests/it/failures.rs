//! Services that are down, slow, die in the middle or lie: for each the documented answer, one count and one line.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};
use tracing::Level;

use crate::{
    harness::{
        Answer, LIMIT, Lab, Over, eventually,
        log::{Line, Log},
        over_both,
        peer::scripted,
    },
    http_errors::full_listener,
    raw_service::NOBODY,
};

/// What a service does after a request's head; then it closes.
#[derive(Clone, Copy)]
enum Step {
    Send(&'static str),
    /// Again and again, until nobody takes it.
    Flood(&'static str),
    /// Until the visitor has seen the answer begin.
    Seen,
    /// For ever.
    Hang,
}
use Step::{Flood, Hang, Seen, Send};

/// What comes of it.
struct Outcome {
    status: u16,
    /// In `Adit-Error` while no head was sent, in the access event always.
    code: &'static str,
    /// Whether the answer is whole, as the visitor sees it.
    complete: bool,
    body: &'static str,
}

const fn refused(status: u16, code: &'static str) -> Outcome {
    Outcome { status, code, complete: true, body: "" }
}

const fn cut(code: &'static str, body: &'static str) -> Outcome {
    Outcome { status: 200, code, complete: false, body }
}

const fn whole(body: &'static str) -> Outcome {
    Outcome { status: 200, code: "", complete: true, body }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
const HEADER_TIMEOUT: &str = "limits: { headerTimeout: 300ms }";
/// Long enough that the head is through by then on any machine.
const REQUEST_TIMEOUT: &str = "limits: { requestTimeout: 3s }";

/// Name, the service's steps, further keys of the rule, what comes of it.
const SCRIPTS: &[(&str, &[Step], &str, Outcome)] = &[
    ("hangs up before its head", &[], "", refused(502, "origin-protocol")),
    ("dies in its head", &[Send("HTTP/1.1 200 OK\r\nX-A: ")], "", refused(502, "origin-protocol")),
    ("speaks something else", &[Send("SSH-2.0-OpenSSH_9.9\r\n\r\n")], "", refused(502, "origin-protocol")),
    ("never answers", &[Hang], HEADER_TIMEOUT, refused(504, "origin-timeout")),
    (
        "is slower than the request may take",
        &[Hang],
        "limits: { requestTimeout: 300ms }",
        refused(504, "origin-timeout"),
    ),
    ("stops in its head", &[Send("HTTP/1.1 200 OK\r\nX-A: "), Hang], HEADER_TIMEOUT, refused(504, "origin-timeout")),
    ("says 103 for ever", &[Flood("HTTP/1.1 103 Early Hints\r\n\r\n")], HEADER_TIMEOUT, refused(504, "origin-timeout")),
    (
        "has a head without end",
        &[Send("HTTP/1.1 200 OK\r\n"), Flood("X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")],
        "",
        refused(502, "origin-protocol"),
    ),
    (
        "has a header without end",
        &[
            Send("HTTP/1.1 200 OK\r\nX-A: "),
            Flood(
                "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ),
        ],
        "",
        refused(502, "origin-protocol"),
    ),
    (
        "upgrades unasked",
        &[Send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), Hang],
        "",
        refused(502, "origin-protocol"),
    ),
    (
        "has a negative length",
        &[Send("HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok")],
        "",
        refused(502, "origin-protocol"),
    ),
    (
        "has a length of words",
        &[Send("HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok")],
        "",
        refused(502, "origin-protocol"),
    ),
    (
        "has two lengths",
        &[Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!")],
        "",
        refused(502, "origin-protocol"),
    ),
    (
        "dies in a body with a length",
        &[Send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), Seen],
        "",
        cut("origin-protocol", "abc"),
    ),
    ("dies between chunks", &[Send(CHUNKED), Seen], "", cut("origin-protocol", "abc")),
    ("dies in a chunk", &[Send(CHUNKED), Seen, Send("5\r\nab")], "", cut("origin-protocol", "abc")),
    ("sends a chunk of no size", &[Send(CHUNKED), Seen, Send("zz\r\n")], "", cut("origin-protocol", "abc")),
    ("dies in its trailers", &[Send(CHUNKED), Seen, Send("0\r\nX-T: a")], "", cut("origin-protocol", "abc")),
    (
        "stops after its head",
        &[Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"), Seen, Hang],
        REQUEST_TIMEOUT,
        cut("origin-timeout", ""),
    ),
    (
        "answers without end",
        &[Send(CHUNKED), Seen, Flood("1\r\nx\r\n")],
        REQUEST_TIMEOUT,
        cut("origin-timeout", "abcx"),
    ),
    ("says more than its length", &[Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more")], "", whole("ok")),
    (
        "has a length and chunks",
        &[Send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")],
        "",
        whole("ok"),
    ),
    (
        "says 100 and 103 first",
        &[Send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), Send(OK)],
        "",
        whole("ok"),
    ),
    (
        "is slow, but not too slow",
        &[Send(OK), Hang],
        "limits: { headerTimeout: 10s, requestTimeout: 20s }",
        whole("ok"),
    ),
];

/// A visitor who tells the service when the answer has begun.
async fn visit(lab: &Lab, path: &str, seen: &Notify) -> Answer {
    let mut visitor = TcpStream::connect(lab.http).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n");
    visitor.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let reading = async {
        // A reset is as good as an end: what counts is what came before.
        while matches!(visitor.read_buf(&mut bytes).await, Ok(n) if n > 0) {
            if bytes.windows(4).any(|end| end == b"\r\n\r\n") {
                seen.notify_one();
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await.expect("the visitor still waits");
    Answer::parse(&bytes)
}

/// Whether the one line about a request says what it must.
fn check_line(name: &str, lines: &[Line], outcome: &Outcome) {
    let [line] = lines else { panic!("{name}: {} lines: {lines:#?}", lines.len()) };
    assert_eq!((line.target.as_str(), line.field("code")), ("access", outcome.code), "{name}: {line:?}");
    let end = if outcome.complete { "" } else { "cut" };
    assert_eq!((line.field("end"), line.field("status")), (end, outcome.status.to_string().as_str()), "{name}");
    let failed = !outcome.code.is_empty();
    assert_eq!(line.level, if failed { Level::WARN } else { Level::INFO }, "{name}");
    assert_eq!(line.field("cause").is_empty(), !failed, "{name}: {line:?}");
}

/// Asks once, and compares answer, line, count and what is left behind.
async fn check(lab: &Lab, log: &Log, seen: &Notify, (path, name, outcome): (&str, &str, &Outcome)) {
    // What the visitor before this one saw does not count.
    let _ = tokio::time::timeout(Duration::ZERO, seen.notified()).await;
    let (lines, refusals) = (log.lines().len(), lab.refusals());
    let answer = visit(lab, path, seen).await;
    let begun = answer.body.starts_with(outcome.body.as_bytes());
    assert_eq!((answer.status, answer.complete, begun), (outcome.status, outcome.complete, true), "{name}: {answer:?}");
    if outcome.complete {
        assert_eq!(answer.text(), outcome.body, "{name}");
        assert_eq!(answer.code().unwrap_or_default(), outcome.code, "{name}");
    }
    lab.idle().await;
    eventually(name, async || log.lines().len() > lines).await;
    check_line(name, &log.lines()[lines..], outcome);
    assert_eq!(lab.refusals() - refusals, u64::from(!outcome.code.is_empty()), "{name}");
}

async fn scripts(over: Over) {
    let seen = Arc::new(Notify::new());
    let told = seen.clone();
    let service = scripted(move |mut peer| {
        let seen = told.clone();
        async move {
            let Some(head) = peer.head().await else { return };
            let number: usize = head.target()[1..].parse().unwrap();
            for step in SCRIPTS[number].1 {
                match step {
                    Send(text) => drop(peer.send(text).await),
                    Flood(text) => while peer.send(text.repeat(100)).await {},
                    Seen => seen.notified().await,
                    Hang => peer.ended().await,
                }
            }
        }
    })
    .await;
    let rule = |(number, row): (usize, &(_, _, &str, _))| {
        let more = if row.2.is_empty() { String::new() } else { format!(", {}", row.2) };
        format!("  - {{ path: '^/{number}$', service: 'http://{service}'{more} }}\n")
    };
    let rules: String = SCRIPTS.iter().enumerate().map(rule).collect();
    let log = Log::start();
    let lab = Lab::start(over, &format!("ingress:\n{rules}  - service: http_status:404\n")).await;
    for (number, (name, _, _, outcome)) in SCRIPTS.iter().enumerate() {
        check(&lab, &log, &seen, (&format!("/{number}"), name, outcome)).await;
    }
    lab.finish().await;
}

async fn addresses(over: Over) {
    let (_listener, _waiting, full) = full_listener().await;
    let yaml = format!(
        "ingress:\n  - {{ path: ^/down$, service: 'http://{NOBODY}' }}\n  \
         - {{ path: ^/nowhere$, service: 'http://nowhere.invalid' }}\n  \
         - {{ path: ^/full$, service: 'http://{full}', originRequest: {{ connectTimeout: 500ms }} }}\n  \
         - {{ path: ^/socket$, service: 'unix:/nonexistent/socket' }}\n  - service: http_status:404\n"
    );
    let log = Log::start();
    let lab = Lab::start(over, &yaml).await;
    for (path, outcome) in [
        ("/down", refused(502, "origin-unreachable")),
        ("/nowhere", refused(502, "origin-unreachable")),
        ("/full", refused(504, "origin-timeout")),
        ("/socket", refused(502, "origin-unreachable")),
    ] {
        check(&lab, &log, &Notify::new(), (path, path, &outcome)).await;
    }
    lab.finish().await;
}

/// The same in HTTP/2: a stream that is reset is a service that died.
async fn http2(over: Over) {
    let seen = Arc::new(Notify::new());
    let told = seen.clone();
    let service = scripted(move |peer| {
        let seen = told.clone();
        async move {
            let mut connection = h2::server::handshake(peer.io).await.unwrap();
            let Some(Ok((request, mut respond))) = connection.accept().await else { return };
            let path = request.uri().path().to_owned();
            let answering = async {
                if path == "/reset" {
                    respond.send_reset(h2::Reason::INTERNAL_ERROR);
                    return;
                }
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                send.send_data("abc".into(), false).unwrap();
                seen.notified().await;
                if path == "/cut" {
                    send.send_reset(h2::Reason::INTERNAL_ERROR);
                }
                // Else the connection goes as a whole.
            };
            let gone = std::pin::pin!(answering);
            tokio::select! {
                () = gone => {}
                _ = std::future::poll_fn(|cx| connection.poll_closed(cx)) => return,
            }
            if path != "/die" {
                let _ = std::future::poll_fn(|cx| connection.poll_closed(cx)).await;
            }
        }
    })
    .await;
    let log = Log::start();
    let lab = Lab::start(over, &format!("ingress:\n  - service: h2c://{service}\n")).await;
    for (path, outcome) in [("/die", cut("origin-protocol", "abc")), ("/reset", refused(502, "origin-protocol"))] {
        check(&lab, &log, &seen, (path, path, &outcome)).await;
    }
    lab.finish().await;
    let lab = Lab::start(over, &format!("ingress:\n  - service: h2c://{service}\n")).await;
    check(&lab, &log, &seen, ("/cut", "/cut", &cut("origin-protocol", "abc"))).await;
    lab.finish().await;
}

over_both! {
    every_failure_of_a_service_has_its_answer_its_count_and_its_line => scripts,
    a_service_that_cannot_be_reached_has_its_answer_its_count_and_its_line => addresses,
    a_service_in_http2_that_dies_has_its_answer_its_count_and_its_line => http2,
}
