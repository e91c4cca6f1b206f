//! Whatever is demanded, by whatever kind of rule, of whatever service: no byte of a request passes a hop that did not
//! prove it. All combinations, not a sample of them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use adit::config::{Flags, parse_file};
use rustls::version::{TLS12, TLS13};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::harness::{Lab, Over, background, hop::Hop, over_both, report, tls::Ca};

const KINDS: [&str; 5] = ["https", "http", "tcp", "bastion", "socks-proxy"];
const MODES: [&str; 4] = ["always", "remote", "optional", "passthrough"];
const BEHAVIOURS: [&str; 5] = ["asks", "does not ask", "wrong authority", "wrong name", "no TLS"];

/// An address of this machine that is not loopback, if it has one: what `remote` does not exempt.
fn outward() -> IpAddr {
    let found = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
        // Nothing is sent.
        socket.connect("198.51.100.1:9").ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    found().unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

/// Everything that all services heard, in clear or inside of TLS.
type Heard = Arc<Mutex<Vec<u8>>>;

fn has_heard(heard: &Heard, what: &str) -> bool {
    heard.lock().unwrap().windows(what.len()).any(|window| window == what.as_bytes())
}

async fn listen(mut io: impl AsyncRead + AsyncWrite + Unpin, heard: &Heard) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = io.read(&mut buffer).await {
        heard.lock().unwrap().extend_from_slice(&buffer[..read]);
        let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
        if io.write_all(answer).await.is_err() {
            return;
        }
    }
}

/// A service; `None`: in clear.
async fn service(acceptor: Option<TlsAcceptor>, heard: &Heard) -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = heard.clone();
    background(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, heard) = (acceptor.clone(), heard.clone());
            background(async move {
                let Some(acceptor) = acceptor else { return listen(stream, &heard).await };
                // What is no TLS is heard, too.
                let mut first = [0; 4096];
                let read = stream.peek(&mut first).await.unwrap_or(0);
                heard.lock().unwrap().extend_from_slice(&first[..read]);
                if let Ok(stream) = acceptor.accept(stream).await {
                    listen(stream, &heard).await;
                }
            });
        }
    });
    port
}

/// A frame of a visitor, with a mask of zeros.
fn frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

struct Case {
    name: String,
    kind: &'static str,
    demanded: bool,
    proves: bool,
    to: SocketAddr,
}

/// Asks, says something that is told from everything else, and returns the status.
async fn ask(lab: &Lab, case: &Case) -> u16 {
    let (name, to) = (&case.name, case.to);
    let upgrade = match case.kind {
        "https" | "http" => "Connection: close\r\n".to_owned(),
        _ => format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nCf-Access-Jump-Destination: {to}\r\n"
        ),
    };
    let mut stream = TcpStream::connect(lab.http).await.unwrap();
    let head = format!("GET /marker-{name}. HTTP/1.1\r\nHost: {name}.web.test\r\n{upgrade}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = [0; 12];
    stream.read_exact(&mut bytes).await.unwrap();
    let status = std::str::from_utf8(&bytes[9..]).unwrap().parse().unwrap();
    if status == 101 {
        if case.kind == "socks-proxy" {
            let IpAddr::V4(ip) = to.ip() else { panic!("IPv4 only here") };
            let mut connect = vec![5, 1, 0, 1];
            connect.extend(ip.octets());
            connect.extend(to.port().to_be_bytes());
            stream.write_all(&[frame(&[5, 1, 0]), frame(&connect)].concat()).await.unwrap();
        }
        let mut end = vec![0x88, 0x82, 0, 0, 0, 0];
        end.extend(1000u16.to_be_bytes());
        stream.write_all(&[frame(format!("marker-{name}.").as_bytes()), end].concat()).await.unwrap();
    }
    // When the visitor's end is over, whatever was to be sent has been.
    let _ = tokio::time::timeout(crate::harness::LIMIT, stream.read_to_end(&mut Vec::new())).await;
    status
}

async fn every_combination(over: Over, private_network: &str) {
    let (hop, ip, heard) = (Hop::new(), outward(), Heard::default());
    let elsewhere = Ca::new("elsewhere");
    let mut rules = Vec::new();
    for versions in [&TLS12, &TLS13] {
        for behaviour in BEHAVIOURS {
            let ip_text = ip.to_string();
            let leaf = match behaviour {
                "wrong authority" => elsewhere.leaf(&[&ip_text]),
                "wrong name" => hop.ca.leaf(&["other.test"]),
                _ => hop.ca.leaf(&[&ip_text]),
            };
            let asks = behaviour != "does not ask";
            let acceptor = (behaviour != "no TLS").then(|| hop.acceptor(&leaf, &[versions], asks));
            let to = SocketAddr::new(ip, service(acceptor, &heard).await);
            for (kind, mode) in KINDS.iter().flat_map(|kind| MODES.map(|mode| (*kind, mode))) {
                let case = Case {
                    name: format!("r{}", rules.len()),
                    kind,
                    demanded: mode == "always" || (mode == "remote" && !ip.is_loopback()),
                    proves: kind == "https" && behaviour == "asks",
                    to,
                };
                let service = match kind {
                    "https" | "http" | "tcp" => format!("{kind}://{to}"),
                    _ => kind.to_owned(),
                };
                let rule = format!(
                    "  - hostname: {}.web.test\n    service: {service}\n    innerHop: {{ mutualTls: {mode} }}\n    \
                     originRequest: {{ ipRules: [ {{ prefix: 0.0.0.0/0, allow: true }} ] }}\n",
                    case.name
                );
                rules.push((case, rule));
            }
        }
    }
    let config = |rules: &str| {
        let more = format!("  privateNetwork: {private_network}\n  present: writer\n");
        hop.config(&["writer"], &more, &format!("{rules}  - service: http_status:404\n"))
    };
    let all = rules.len();
    rules.retain(|(_, rule)| parse_file("f", &config(rule), &Flags::default(), |_| None).is_ok());
    let accepted = rules.len();
    let yaml: String = rules.iter().map(|(_, rule)| rule.as_str()).collect();
    let lab = Lab::start(over, &config(&yaml)).await;
    let mut passed = [0, 0];
    for (case, rule) in &rules {
        let status = ask(&lab, case).await;
        let delivered = has_heard(&heard, &format!("marker-{}.", case.name));
        let opened = matches!(case.kind, "bastion" | "socks-proxy") && private_network == "allow";
        if case.demanded && !case.proves && !opened {
            assert!(!delivered && !matches!(status, 101 | 200), "{status}, delivered: {delivered}\n{rule}");
        }
        if case.proves {
            assert!(delivered && status == 200, "{status}\n{rule}");
        }
        passed[usize::from(case.demanded)] += usize::from(delivered);
    }
    lab.finish().await;
    report(format_args!(
        "{all} rules, {accepted} accepted, {passed:?} passed where nothing and something was demanded"
    ));
    assert!(all == 200 && accepted > 50 && passed[0] > 20 && passed[1] >= 2, "{accepted} {passed:?}");
}

over_both! {
    nothing_passes_a_hop_that_proved_nothing => |over| every_combination(over, "refuse"),
    nothing_but_what_private_network_opens_passes => |over| every_combination(over, "allow"),
}
