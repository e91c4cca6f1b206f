//! Requests that two parsers may read differently (`tests/data/smuggling.json`). Whatever a visitor sends, a service
//! sees it as at most one request, and as one that no parser can read in two ways.

use std::sync::{Arc, Mutex};

use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    harness::{LIMIT, Lab, Over, over_both, rule, service},
    raw_edge::soon,
    raw_frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, block, frame},
};

#[derive(Deserialize)]
struct Cases {
    http1: Vec<Http1>,
    http2: Vec<Http2>,
}

#[derive(Deserialize)]
struct Http1 {
    name: String,
    /// A character below 256 is a byte.
    send: String,
    see: See,
}

#[derive(Deserialize)]
struct Http2 {
    name: String,
    fields: Vec<(String, String)>,
    body: Option<String>,
    see: See,
}

/// What the service may see of a case.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum See {
    /// Its one request, or nothing.
    Any,
    /// The same, and perhaps an honest second request behind it.
    Any2,
    /// Nothing.
    None,
    /// Its one request.
    One,
    /// Its one request, and the honest second behind it.
    One2,
}

fn cases() -> Cases {
    let cases: Cases = serde_json::from_str(include_str!("../data/smuggling.json")).unwrap();
    assert!(cases.http1.len() >= 80 && cases.http2.len() >= 30);
    cases
}

/// Everything that arrived at the service: request targets, and whatever no strict reader takes.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Vec<Result<String, String>>>>);

impl Record {
    async fn service(&self) -> std::net::SocketAddr {
        let record = self.clone();
        service(move |stream| record.clone().serve(stream)).await
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            let (target, used) = match strict(&bytes) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    if !stream.read_buf(&mut bytes).await.is_ok_and(|n| n > 0) {
                        return;
                    }
                    continue;
                }
                Err(why) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    return self.0.lock().unwrap().push(Err(format!("{why}: {text:?}")));
                }
            };
            bytes.drain(..used);
            self.0.lock().unwrap().push(Ok(target.clone()));
            let head = target.starts_with("HEAD ");
            let body = if head { "" } else { &*target };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", target.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    /// How often the service saw a target with this in it.
    fn count(&self, path: &str) -> usize {
        self.0.lock().unwrap().iter().flatten().filter(|seen| seen.contains(path)).count()
    }

    /// What is wrong with everything that was seen.
    fn complaints(&self) -> Vec<String> {
        let seen = self.0.lock().unwrap();
        let wrong = seen.iter().filter_map(|seen| match seen {
            Ok(_) => None,
            Err(why) => Some(why.clone()),
        });
        wrong.collect()
    }
}

/// Method and target of the request that these bytes begin with, and its length; refuses whatever RFC 9112 leaves room
/// for.
fn strict(bytes: &[u8]) -> Result<Option<(String, usize)>, &'static str> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return if bytes.len() > 1 << 20 { Err("a head without end") } else { Ok(None) };
    };
    let head = &bytes[..end];
    let lines: Vec<&[u8]> = head.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    if head.windows(2).any(|w| w[1] == b'\n' && w[0] != b'\r' || w[0] == b'\r' && w[1] != b'\n') {
        return Err("a bare CR or LF");
    }
    if head.iter().any(|b| *b < b' ' && !b"\r\n\t".contains(b) || *b == 127) {
        return Err("a control character");
    }
    let line: Vec<_> = lines[0].split(|b| *b == b' ').collect();
    let [method, target, b"HTTP/1.1"] = line[..] else { return Err("a strange request line") };
    if method.is_empty() || target.first().is_none_or(|b| *b != b'/' && *b != b'*') || target.contains(&b'#') {
        return Err("a strange target");
    }
    let (mut lengths, mut chunked, mut hosts) = (Vec::new(), 0, 0);
    for line in &lines[1..] {
        let colon = line.iter().position(|b| *b == b':').ok_or("a header without a colon")?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        if name.is_empty() || !name.iter().all(token) {
            return Err("a strange header name");
        }
        match &name.to_ascii_lowercase()[..] {
            b"content-length" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => lengths.push(value),
            b"content-length" => return Err("a strange length"),
            b"transfer-encoding" if value == b"chunked" => chunked += 1,
            b"transfer-encoding" => return Err("a strange encoding"),
            b"host" if value.iter().all(|b| b.is_ascii_alphanumeric() || b".-:".contains(b)) => hosts += 1,
            b"host" => return Err("a strange host"),
            name if name.starts_with(b"cf-cloudflared-") => return Err("a control header of the tunnel"),
            _ => {}
        }
    }
    if hosts != 1 || lengths.len() + chunked > 1 {
        return Err("more than one framing, or not one host");
    }
    let body = &bytes[end + 4..];
    let found = format!("{} {}", String::from_utf8_lossy(method), String::from_utf8_lossy(target));
    if chunked == 1 {
        return Ok(chunks(body)?.map(|used| (found, end + 4 + used)));
    }
    let length = lengths.first().map_or(Some(0), |text| std::str::from_utf8(text).ok()?.parse::<usize>().ok());
    let length = length.ok_or("a strange length")?;
    Ok((body.len() >= length).then_some((found, end + 4 + length)))
}

/// The length of a whole chunked body.
fn chunks(body: &[u8]) -> Result<Option<usize>, &'static str> {
    let mut at = 0;
    loop {
        let Some(line) = body[at..].windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
        let size = &body[at..at + line];
        if size.is_empty() || size.len() > 8 || !size.iter().all(u8::is_ascii_hexdigit) {
            return Err("a strange chunk size");
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).unwrap(), 16).unwrap();
        at += line + 2;
        if size == 0 {
            let Some(trailers) = body[at..].windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
            if trailers == 0 {
                return Ok(Some(at + 2));
            }
            let Some(end) = body[at..].windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
            let trailers = String::from_utf8_lossy(&body[at..at + end]).to_lowercase();
            let framing = ["content-length:", "transfer-encoding:", "host:"];
            if trailers.lines().any(|line| framing.iter().any(|name| line.starts_with(name))) {
                return Err("a trailer that frames or routes");
            }
            return Ok(Some(at + end + 4));
        }
        if body.len() < at + size + 2 {
            return Ok(None);
        }
        if &body[at + size..at + size + 2] != b"\r\n" {
            return Err("a chunk that does not end");
        }
        at += size + 2;
    }
}

fn raw(text: &str) -> Vec<u8> {
    let mut raw = Vec::new();
    for c in text.chars() {
        match u8::try_from(u32::from(c)) {
            Ok(byte) => raw.push(byte),
            Err(_) => raw.extend(c.to_string().bytes()),
        }
    }
    raw
}

/// Paths end in three zeros, in whose place the number of the case comes: lengths stay true.
fn numbered(text: &str, at: usize) -> String {
    text.replace("-000", &format!("-{at:03}"))
}

/// Whether what the service saw of `/case-N` is what it may see; `status` is the visitor's.
fn judge(record: &Record, at: usize, name: &str, see: See, status: Option<u16>) -> Option<String> {
    let of = |path: &str| record.count(&format!("/{path}-{at:03}"));
    let (seen, second, smuggled) = (of("case"), of("second"), of("smuggled"));
    let fits = match see {
        See::Any => seen <= 1 && second == 0,
        See::Any2 => seen <= 1 && second <= 1,
        See::None => seen == 0 && second == 0,
        See::One => seen == 1 && second == 0,
        See::One2 => seen == 1 && second == 1,
    };
    // Refused, or right; a connection that is closed without a word is a refusal too. Other forms of a target have no
    // path to count.
    let answered = match status {
        None => true,
        Some(200 | 101) => seen == 1 || name.ends_with(" for GET"),
        Some(status) => (400..500).contains(&status) || status == 501 || status == 505,
    };
    let told = format!(
        "{name}: seen {seen} times, the second {second}, what it hides {smuggled}, answered {status:?}, may be {see:?}"
    );
    (!fits || !answered || smuggled > 0).then_some(told)
}

/// Sends a case and an honest request behind it that makes the edge close; the status of the first answer.
async fn send_http1(mut io: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Option<u16> {
    let canary = b"GET /canary HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n";
    // The edge may have closed already.
    let _ = io.write_all(bytes).await;
    let _ = io.write_all(canary).await;
    let _ = io.flush().await;
    let mut answer = Vec::new();
    // What waits for more than was sent is answered by nobody; the end of the connection is what it gets.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), io.read_to_end(&mut answer)).await;
    let text = String::from_utf8_lossy(&answer);
    let mut statuses = text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok());
    statuses.find(|status| *status >= 200 || *status == 101)
}

async fn over_http1(over: Over, tls: bool) {
    let record = Record::default();
    let lab = Lab::start(over, &rule(format!("http://{}", record.service().await))).await;
    let cases = cases().http1;
    let mut statuses = Vec::new();
    for (group, some) in cases.chunks(32).enumerate() {
        let sent = some.iter().enumerate().map(|(at, case)| {
            let (lab, at) = (&lab, group * 32 + at);
            async move {
                let bytes = raw(&numbered(&case.send, at));
                if tls {
                    send_http1(lab.tls(&["http/1.1"]).await, &bytes).await
                } else {
                    send_http1(TcpStream::connect(lab.http).await.unwrap(), &bytes).await
                }
            }
        });
        statuses.extend(futures_util::future::join_all(sent).await);
    }
    let mut wrong = record.complaints();
    for (at, (case, status)) in cases.iter().zip(statuses).enumerate() {
        wrong.extend(judge(&record, at, &case.name, case.see, status));
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    lab.finish().await;
}

async fn over_http2(over: Over, tls: bool) {
    let record = Record::default();
    let lab = Lab::start(over, &rule(format!("http://{}", record.service().await))).await;
    let cases = cases().http2;
    let mut statuses = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        let sent = async {
            if tls {
                send_http2(lab.tls(&["h2"]).await, case, at).await
            } else {
                send_http2(TcpStream::connect(lab.http).await.unwrap(), case, at).await
            }
        };
        statuses.push(soon(&case.name, sent).await);
    }
    let mut wrong = record.complaints();
    for (at, (case, served)) in cases.iter().zip(statuses).enumerate() {
        wrong.extend(judge(&record, at, &case.name, case.see, served));
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    lab.finish().await;
}

/// The status of the answer, as far as it says whether the service gave it; `None` for a reset or an end.
async fn send_http2<S>(io: S, case: &Http2, at: usize) -> Option<u16>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let frames = Frames::start(io).await;
    let fields: Vec<_> = case.fields.iter().map(|(name, value)| (&**name, numbered(value, at))).collect();
    let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, &**value)).collect();
    let end = if case.body.is_none() { END_STREAM } else { 0 };
    frames.send(&frame(HEADERS, END_HEADERS | end, 1, &block(&fields))).await;
    if let Some(body) = &case.body {
        frames.send(&frame(DATA, END_STREAM, 1, numbered(body, at).as_bytes())).await;
    }
    let answer = frames.answer(1).await?;
    // The service answers with the target it saw; its head is packed with a table that nobody keeps here.
    Some(if String::from_utf8_lossy(&answer.body).contains(&format!("/case-{at:03}")) { 200 } else { 400 })
}

async fn http1_in_clear(over: Over) {
    over_http1(over, false).await;
}

async fn http1_over_tls(over: Over) {
    over_http1(over, true).await;
}

async fn http2_in_clear(over: Over) {
    over_http2(over, false).await;
}

async fn http2_over_tls(over: Over) {
    over_http2(over, true).await;
}

over_both! {
    nothing_is_smuggled_in_clear => http1_in_clear,
    nothing_is_smuggled_over_tls => http1_over_tls,
    nothing_is_smuggled_over_http2_in_clear => http2_in_clear,
    nothing_is_smuggled_over_http2_and_tls => http2_over_tls,
}

#[test]
fn the_reader_of_these_tests_takes_no_second_meaning() {
    let ok = b"POST /a HTTP/1.1\r\nHost: web.test\r\nContent-Length: 2\r\n\r\nab";
    assert_eq!(strict(ok).unwrap(), Some(("POST /a".into(), ok.len())));
    assert_eq!(strict(&ok[..ok.len() - 1]).unwrap(), None);
    for wrong in [
        "GET /a HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET /a HTTP/1.1\nHost: a\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 1\r\n\r\n",
    ] {
        assert!(strict(wrong.as_bytes()).is_err(), "{wrong:?}");
    }
    assert!(LIMIT.as_secs() > 2, "the wait for answers is shorter than the limit of a test");
}
