//! Headers that only a verifier of certificates may say, said by somebody else: every family, in every spelling that a
//! service may read as the same, at every listener of the edge and through both transports. None reaches the service.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    harness::{LIMIT, Lab, Over, over_both, report, rule, service, tls::h2_body},
    raw_edge::RawEdge,
    wire_craft::{on_a_stream, request},
};

/// Every header by which a load balancer, a proxy or an edge tells of certificates.
const NAMES: &[&str] = &[
    // RFC 9440
    "Client-Cert",
    "Client-Cert-Chain",
    // Google's load balancers, and adit's own; with both of its usual prefixes
    "X-Client-Cert",
    "X-Client-Cert-Present",
    "X-Client-Cert-Chain-Verified",
    "X-Client-Cert-Error",
    "X-Client-Cert-Hash",
    "X-Client-Cert-Sha256-Fingerprint",
    "X-Client-Cert-Serial-Number",
    "X-Client-Cert-SPIFFE",
    "X-Client-Cert-Spiffe-Id",
    "X-Client-Cert-URI-SANs",
    "X-Client-Cert-DNSName-SANs",
    "X-Client-Cert-Valid-Not-Before",
    "X-Client-Cert-Valid-Not-After",
    "X-Client-Cert-Issuer-DN",
    "X-Client-Cert-Subject-DN",
    "X-Client-Cert-Leaf",
    "X-Client-Cert-Chain",
    "X-Client-Runway-Cc-Present",
    "X-Client-Runway-Cc-Chain-Verified",
    "X-Client-Runway-Cc-Spiffe-Id",
    "X-Client-Runway-Cc-Leaf",
    // Amazon
    "X-Amzn-Mtls-Clientcert",
    "X-Amzn-Mtls-Clientcert-Serial-Number",
    "X-Amzn-Mtls-Clientcert-Issuer",
    "X-Amzn-Mtls-Clientcert-Subject",
    "X-Amzn-Mtls-Clientcert-Validity",
    "X-Amzn-Mtls-Clientcert-Leaf",
    "CloudFront-Viewer-Cert-Serial-Number",
    "CloudFront-Viewer-Cert-Subject",
    "CloudFront-Viewer-Cert-Present",
    "CloudFront-Viewer-Cert-Sha256",
    "CloudFront-Viewer-Cert-Pem",
    // Envoy
    "X-Forwarded-Client-Cert",
    // Cloudflare
    "Cf-Client-Cert-Der-Base64",
    "Cf-Client-Cert-Sha256",
    "Cf-Cert-Presented",
    "Cf-Cert-Verified",
    "Cf-Cert-Revoked",
    "Cf-Cert-Issuer-Dn",
    "Cf-Cert-Subject-Dn-Rfc2253",
    "Cf-Cert-Serial",
    "Cf-Cert-Fingerprint-Sha256",
    // nginx, ingress-nginx, Traefik
    "X-SSL-Client-Verify",
    "X-SSL-Client-S-DN",
    "X-SSL-Client-Cert",
    "Ssl-Client-Verify",
    "Ssl-Client-Subject-Dn",
    "Ssl-Client-Issuer-Dn",
    "Ssl-Client-Cert",
    "X-Forwarded-Tls-Client-Cert",
    "X-Forwarded-Tls-Client-Cert-Info",
];

/// What it is called, and how it is made of a name.
type Spelling = (&'static str, fn(&str) -> String);

/// Ways to write a name that a service may read as the same.
const SPELLINGS: &[Spelling] = &[
    ("as-written", str::to_owned),
    ("lower", str::to_lowercase),
    ("upper", str::to_uppercase),
    ("underscores", |name| name.replace('-', "_")),
    ("upper-underscores", |name| name.replace('-', "_").to_uppercase()),
    ("first-underscore", |name| name.replacen('-', "_", 1)),
    ("last-underscore", |name| {
        let (head, tail) = name.rsplit_once('-').unwrap();
        format!("{head}_{tail}").to_lowercase()
    }),
    ("every-other-letter", |name| {
        let flip = |(at, c): (usize, char)| if at % 2 == 0 { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() };
        name.chars().enumerate().map(flip).collect()
    }),
];

/// One header that must not arrive, with a value of its own.
#[derive(Clone, Debug)]
struct Attempt {
    name: String,
    value: String,
}

/// Every name in one spelling, each with a value that says where it was tried.
fn attempts(place: &str, (label, spell): Spelling) -> Vec<Attempt> {
    let attempt =
        |(at, name): (usize, &&str)| Attempt { name: spell(name), value: format!("forged/{place}/{label}/{at}/") };
    NAMES.iter().enumerate().map(attempt).collect()
}

/// Everything that reached a service, and what was tried.
#[derive(Clone, Default)]
struct Record {
    seen: Arc<Mutex<String>>,
    tried: Arc<Mutex<Vec<Attempt>>>,
}

impl Record {
    async fn service(&self) -> SocketAddr {
        let seen = self.seen.clone();
        service(move |stream| serve(stream, seen.clone())).await
    }

    /// Counts these as tried.
    fn try_all(&self, attempts: &[Attempt]) {
        self.tried.lock().unwrap().extend_from_slice(attempts);
    }

    /// How many were tried, and what of it arrived.
    fn outcome(&self) -> (usize, BTreeSet<String>) {
        let (seen, tried) = (self.seen.lock().unwrap(), self.tried.lock().unwrap());
        assert_eq!(tried.iter().map(|attempt| &attempt.value).collect::<BTreeSet<_>>().len(), tried.len());
        let arrived = tried.iter().filter(|attempt| seen.contains(&attempt.value));
        (tried.len(), arrived.map(|attempt| format!("{}: {}", attempt.name, attempt.value)).collect())
    }

    /// How many of the trailers arrived that nobody minds.
    fn honest_trailers(&self) -> usize {
        self.seen.lock().unwrap().to_lowercase().matches("\r\nx-honest: kept\r\n").count()
    }

    /// How many requests arrived: a corpus that is refused at the door shows nothing.
    fn requests(&self) -> usize {
        self.seen.lock().unwrap().matches(" HTTP/1.1\r\n").count()
    }
}

/// Keeps every byte of every request. A chunked body of these tests is `x` and trailers.
async fn serve(mut stream: TcpStream, seen: Arc<Mutex<String>>) {
    let mut bytes = Vec::new();
    while stream.read_buf(&mut bytes).await.is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        if chunked && !(body.starts_with("0\r\n") || body.contains("\r\n0\r\n"))
            || chunked && !body.ends_with("\r\n\r\n")
        {
            continue;
        }
        seen.lock().unwrap().push_str(&text);
        bytes.clear();
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.is_err() {
            return;
        }
    }
}

fn lines(attempts: &[Attempt]) -> String {
    attempts.iter().map(|Attempt { name, value }| format!("{name}: {value}\r\n")).collect()
}

/// Requests in HTTP/1.1, byte for byte, on a connection that is closed after each; their statuses.
async fn http1<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, request: &str) -> u16 {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await.expect("no answer in time");
    crate::harness::Answer::parse(&bytes).status
}

const HONEST: &str = "x-honest";

/// What the trailers will be, for those who pass on only what was announced.
fn announced(attempts: &[Attempt]) -> String {
    let names = attempts.iter().map(|attempt| &*attempt.name).chain([HONEST]);
    names.collect::<Vec<_>>().join(", ")
}

const CLOSE: &str = "Host: web.test\r\nConnection: close\r\n";
const UPGRADE: &str = "Host: web.test\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";

/// A visitor at every listener of our edge, in front of a connector that passes on what the edge lets through.
async fn at_our_edge(over: Over) {
    let record = Record::default();
    let lab = Lab::start(over, &rule(format!("http://{}", record.service().await))).await;
    let (mut expected, mut trailing_requests) = (0, 0);
    for spelling in SPELLINGS.iter().copied() {
        for secure in [false, true] {
            let place = |what: &str| format!("{}{what}", if secure { "https-" } else { "http-" });
            let send = async |request: String| {
                if secure {
                    http1(lab.tls(&["http/1.1"]).await, &request).await
                } else {
                    http1(TcpStream::connect(lab.http).await.unwrap(), &request).await
                }
            };
            for (what, fixed) in [("plain", CLOSE), ("websocket", UPGRADE)] {
                let tried = attempts(&place(what), spelling);
                record.try_all(&tried);
                assert_eq!(send(format!("GET / HTTP/1.1\r\n{fixed}{}\r\n", lines(&tried))).await, 200);
            }
            // The first line of a repeated header may look different from the second.
            for part in [0, 1] {
                let tried = attempts(&place(&format!("repeated-{part}")), spelling);
                let half: Vec<_> = tried.iter().skip(part).step_by(2).cloned().collect();
                record.try_all(&half);
                let others: Vec<_> =
                    half.iter().map(|a| Attempt { name: a.name.to_lowercase(), ..a.clone() }).collect();
                let request = format!("GET / HTTP/1.1\r\n{CLOSE}{}{}\r\n", lines(&half), lines(&others));
                assert_eq!(send(request).await, 200);
            }
            let tried = attempts(&place("trailers"), spelling);
            record.try_all(&tried);
            let announced = announced(&tried);
            let head = format!("POST / HTTP/1.1\r\n{CLOSE}Trailer: {announced}\r\nTransfer-Encoding: chunked\r\n\r\n");
            let request = format!("{head}1\r\nx\r\n0\r\n{}{HONEST}: kept\r\n\r\n", lines(&tried));
            assert_eq!(send(request).await, 200);
            trailing_requests += 1;
            expected += 5;
            // White space around a name is nobody's name: refused or taken away, but not passed on.
            let tried = attempts(&place("padded"), spelling);
            record.try_all(&tried);
            let padded: String = tried.iter().map(|a| format!("{} : {}\r\n", a.name, a.value)).collect();
            assert_eq!(send(format!("GET / HTTP/1.1\r\n{CLOSE}{padded}\r\n")).await, 400);
        }
    }
    // In HTTP/2 names are lower case (RFC 9113 §8.2.1).
    let mut visitor = lab.h2().await;
    for spelling in [1, 3, 5, 6].map(|at| SPELLINGS[at]) {
        for trailing in [false, true] {
            let tried = attempts(if trailing { "h2-trailers" } else { "h2" }, spelling);
            record.try_all(&tried);
            let (mut request, mut trailers) = (Request::post("https://web.test/").body(()).unwrap(), HeaderMap::new());
            let target = if trailing { &mut trailers } else { request.headers_mut() };
            for Attempt { name, value } in &tried {
                let name = HeaderName::from_bytes(name.to_lowercase().as_bytes()).unwrap();
                target.append(name, HeaderValue::from_str(value).unwrap());
            }
            if trailing {
                request.headers_mut().insert("trailer", announced(&tried).parse().unwrap());
            }
            let (answer, mut body) = visitor.send_request(request, false).unwrap();
            body.send_data(Bytes::from_static(b"x"), !trailing).unwrap();
            if trailing {
                trailers.insert(HONEST, HeaderValue::from_static("kept"));
                body.send_trailers(trailers).unwrap();
                trailing_requests += 1;
            }
            let answer = tokio::time::timeout(LIMIT, answer).await.unwrap().unwrap();
            assert_eq!(answer.status(), 200);
            h2_body(answer.into_body()).await;
            expected += 1;
        }
    }
    let (tried, arrived) = record.outcome();
    report(format!("spoofing at our edge over {}: {} of {tried} attempts arrived", over.as_str(), arrived.len()));
    assert!(arrived.is_empty(), "{arrived:#?}");
    assert!(tried >= 500);
    assert_eq!(record.requests(), expected, "the honest part of every request arrives");
    assert_eq!(record.honest_trailers(), trailing_requests, "and of its trailers");
    lab.finish().await;
}

/// A foreign edge that passes on whatever its visitors say.
async fn at_a_foreign_edge(over: Over, yaml: &str, record: &Record) {
    let edge = RawEdge::new().await;
    let connector = edge.connector(over.as_str(), yaml).await;
    match over {
        Over::Quic => {
            let peer = edge.quic_peer().await;
            for spelling in SPELLINGS.iter().copied() {
                for (kind, place) in [(0, "quic"), (1, "quic-websocket")] {
                    let tried = attempts(place, spelling);
                    record.try_all(&tried);
                    let keys: Vec<_> = tried.iter().map(|a| format!("HttpHeader:{}", a.name)).collect();
                    let mut metadata = vec![("HttpMethod", "GET"), ("HttpHost", "web.test")];
                    metadata.extend(keys.iter().zip(&tried).map(|(key, attempt)| (&**key, &*attempt.value)));
                    drop(peer.ask(&on_a_stream(&request(kind, "https://web.test/", &metadata))).await);
                }
            }
        }
        Over::Http2 => {
            let peer = edge.h2_peer().await;
            for spelling in [1, 3, 5, 6].map(|at| SPELLINGS[at]) {
                for (place, times) in [("http2", 1), ("http2-websocket", 1), ("http2-repeated", 2)] {
                    let tried = attempts(place, spelling);
                    record.try_all(&tried);
                    let mut request = Request::get("https://web.test/");
                    if place == "http2-websocket" {
                        request = request.header("cf-cloudflared-proxy-connection-upgrade", "websocket");
                    }
                    for Attempt { name, value } in tried.iter().flat_map(|attempt| vec![attempt; times]) {
                        request = request.header(name.to_lowercase(), value);
                    }
                    peer.ask(request.body(()).unwrap(), "").await.unwrap();
                }
                let tried = attempts("http2-trailers", spelling);
                record.try_all(&tried);
                let mut sender = peer.sender.clone().ready().await.unwrap();
                let head = Request::post("https://web.test/").header("trailer", announced(&tried)).body(()).unwrap();
                let (answer, mut body) = sender.send_request(head, false).unwrap();
                body.send_data(Bytes::from_static(b"x"), false).unwrap();
                let trailer = |a: &Attempt| {
                    (HeaderName::from_bytes(a.name.to_lowercase().as_bytes()).unwrap(), a.value.parse().unwrap())
                };
                body.send_trailers(tried.iter().map(trailer).collect()).unwrap();
                h2_body(tokio::time::timeout(LIMIT, answer).await.unwrap().unwrap().into_body()).await;
            }
        }
    }
    drop(connector);
}

async fn with_inner_hop(over: Over) {
    let record = Record::default();
    let yaml = format!("innerHop: {{}}\n{}", rule(format!("http://{}", record.service().await)));
    at_a_foreign_edge(over, &yaml, &record).await;
    let (tried, arrived) = record.outcome();
    report(format!("spoofing at a foreign edge over {}: {} of {tried} attempts arrived", over.as_str(), arrived.len()));
    assert!(arrived.is_empty(), "{arrived:#?}");
    assert!(tried >= 500);
    assert_eq!(record.requests(), tried / NAMES.len());
}

/// The control: what the tests above look for is seen where nothing is taken away.
async fn without_inner_hop(over: Over) {
    let record = Record::default();
    at_a_foreign_edge(over, &rule(format!("http://{}", record.service().await)), &record).await;
    let (tried, arrived) = record.outcome();
    report(format!("control over {}: {} of {tried} attempts arrived", over.as_str(), arrived.len()));
    assert!(arrived.len() >= 500, "{} of {tried} arrived", arrived.len());
}

over_both! {
    no_header_of_a_verifier_comes_through_our_edge_from_a_visitor => at_our_edge,
    no_header_of_a_verifier_comes_from_a_foreign_edge_where_there_is_an_inner_hop => with_inner_hop,
    every_attempt_would_arrive_where_nothing_is_taken_away => without_inner_hop,
}
