//! Whose word on a visitor's certificate is believed, what of it reaches a service, and which paths are refused.

use adit::wire::{
    connect::Answer,
    framing::{self, FEATURE},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderMap;
use rcgen::{KeyPair, SanType};

use crate::{
    harness::{
        log::Log,
        tls::{Ca, Leaf},
    },
    raw_edge::{QuicPeer, RawEdge, Reply, Running},
    raw_service::{NOBODY, origin},
    wire_craft::{on_a_stream, request},
};

/// `a` may do everything below `/v1`, `b` everything. `open.example.com` asks nobody.
async fn rules(callers: &str, top: &str) -> String {
    let origin = origin().await;
    format!(
        "innerHop:\n  mutualTls: remote\n{top}  callers: {{ {callers} }}\ningress:\n  \
         - hostname: app.example.com\n    service: http://{origin}\n    innerHop: {{ callers: {{ allow: [\n      \
         {{ id: 'spiffe://example.org/a', paths: [/v1] }}, {{ id: 'spiffe://example.org/b' }} ] }} }}\n  \
         - hostname: lenient.example.com\n    service: http://{origin}\n    \
         innerHop: {{ callers: {{ allowInvalidOrMissingCert: true }} }}\n  - service: http_status:404\n"
    )
}

struct Circle {
    _edge: RawEdge,
    connector: Running,
    peer: QuicPeer,
    ca: Ca,
    _dir: tempfile::TempDir,
}

impl Circle {
    /// A connector of an edge that confirmed these features.
    async fn start(features: &[&str], callers: &str, top: &str) -> Self {
        let (edge, dir, ca) = (RawEdge::new().await, tempfile::tempdir().unwrap(), Ca::new("callers"));
        let anchors = dir.path().join("ca.pem");
        std::fs::write(&anchors, &ca.pem).unwrap();
        let callers = format!("trustAnchors: [ {} ]{callers}", anchors.display());
        let connector = edge.connector("quic", &rules(&callers, top).await).await;
        let peer = edge.quic_peer_confirming(features).await;
        Self { _edge: edge, connector, peer, ca, _dir: dir }
    }

    fn leaf(&self, name: &str) -> Leaf {
        leaf(&self.ca, name)
    }

    async fn ask(&self, host: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String, String) {
        ask(&self.peer, host, path, headers, body).await
    }
}

fn leaf(ca: &Ca, name: &str) -> Leaf {
    let uri = format!("spiffe://example.org/{name}");
    ca.leaf_with(&[], &KeyPair::generate().unwrap(), |params| {
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
    })
}

/// Status, code, and the text of the answer.
async fn ask(peer: &QuicPeer, host: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String, String) {
    let names: Vec<_> = headers.iter().map(|(name, value)| (format!("HttpHeader:{name}"), *value)).collect();
    let mut metadata = vec![("HttpMethod", "POST"), ("HttpHost", host)];
    metadata.extend(
        names.iter().map(|(name, value)| {
            (if name == "HttpHeader:AditFraming" { "AditFraming" } else { name.as_str() }, *value)
        }),
    );
    let reply = peer.ask(&[&on_a_stream(&request(0, path, &metadata))[..], body].concat()).await;
    let Reply::Answered(Answer::Response(head), body) = reply else { panic!("{reply:?}") };
    let code = head.headers.get("adit-error").map_or("", |code| code.to_str().unwrap());
    (head.status.as_u16(), code.to_owned(), String::from_utf8(body).unwrap())
}

fn item(leaf: &Leaf) -> String {
    format!(":{}:", STANDARD.encode(&leaf.chain()[0]))
}

/// The names in a request that the service sent back, lower case, that speak of certificates.
fn spoken(text: &str) -> Vec<(String, String)> {
    let lines = text.split("\r\n\r\n").next().unwrap().lines().filter_map(|line| line.split_once(": "));
    let lines = lines.map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    lines.filter(|(name, _)| name.contains("cert") || name.contains("ssl") || name.contains("mtls")).collect()
}

#[tokio::test]
async fn only_an_edge_of_ours_is_believed_unless_another_is_configured() {
    for (features, callers, believed) in [
        (&[][..], "", false),
        (&["something_else"], "", false),
        (&[FEATURE], "", true),
        (&[FEATURE], ", relayedBy: xfcc", false),
        (&[], ", relayedBy: rfc9440", true),
    ] {
        let circle = Circle::start(features, callers, "").await;
        let b = item(&circle.leaf("b"));
        let asked = circle.ask("app.example.com", "/", &[("Client-Cert", &b)], b"").await;
        let expected = if believed { (200, "") } else { (403, "caller-missing") };
        assert_eq!((asked.0, &*asked.1), expected, "{features:?}{callers}");
    }
}

/// The feature can be confirmed by anybody; what proves an edge to be ours is our authority.
#[tokio::test]
async fn an_edge_that_the_system_vouches_for_is_not_believed() {
    for (proven, expected) in [(true, (200, "")), (false, (403, "caller-missing"))] {
        let (edge, dir, ca) = (RawEdge::new().await, tempfile::tempdir().unwrap(), Ca::new("callers"));
        let anchors = dir.path().join("ca.pem");
        std::fs::write(&anchors, &ca.pem).unwrap();
        let rules = rules(&format!("trustAnchors: [ {} ]", anchors.display()), "").await;
        let _connector = edge.program_that_trusts("quic", &rules, |command, ca| {
            if proven { command.arg("--edge-ca").arg(ca) } else { command.env("SSL_CERT_FILE", ca) }
        });
        let peer = edge.quic_peer_confirming(&[FEATURE]).await;
        let b = item(&leaf(&ca, "b"));
        let asked = ask(&peer, "app.example.com", "/", &[("Client-Cert", &b)], b"").await;
        assert_eq!((asked.0, &*asked.1), expected, "proven: {proven}");
    }
}

/// Where methods or paths decide, no header makes another request of one; elsewhere headers pass.
#[tokio::test]
async fn what_overrides_method_or_path_passes_only_where_neither_decides() {
    let circle = Circle::start(&[FEATURE], "", "").await;
    let b = item(&circle.leaf("b"));
    let names = ["X-HTTP-Method-Override", "x_http_method", "X-Method-Override", "X-Original-URL", "X-Rewrite_Url"];
    for (host, passes) in [("app.example.com", false), ("lenient.example.com", true)] {
        let mut headers = vec![("Client-Cert", &*b)];
        headers.extend(names.map(|name| (name, "overrides")));
        let (status, _, text) = circle.ask(host, "/", &headers, b"").await;
        assert_eq!((status, text.matches("overrides").count()), (200, if passes { names.len() } else { 0 }), "{text}");
    }
}

/// A service may take them for the name without, and no rule does.
#[tokio::test]
async fn names_with_more_than_one_final_dot_reach_no_rule() {
    let circle = Circle::start(&[FEATURE], "", "").await;
    let b = item(&circle.leaf("b"));
    for (host, status) in [("app.example.com.", 200), ("app.example.com..", 400), ("app..example.com", 400)] {
        assert_eq!(circle.ask(host, "/", &[("Client-Cert", &b)], b"").await.0, status, "{host}");
    }
}

#[tokio::test]
async fn what_a_visitor_says_of_certificates_reaches_no_service() {
    let circle = Circle::start(&[FEATURE], "", "").await;
    let b = item(&circle.leaf("b"));
    let forged = [
        ("Client-Cert", &*b),
        ("X-Client-Cert-Spiffe-Id", "spiffe://example.org/forged"),
        ("x_client_cert_chain_verified", "forged"),
        ("X-Forwarded-Client-Cert", "forged"),
        ("Ssl-Client-Verify", "forged"),
        ("X-Amzn-Mtls-Clientcert", "forged"),
        // Nor can a visitor take away what we say.
        ("Connection", "x-client-cert-present, X-Client-Cert-Spiffe-Id"),
    ];
    let (status, _, text) = circle.ask("app.example.com", "/", &forged, b"").await;
    let spoken_ = spoken(&text);
    assert_eq!((status, spoken_.len()), (200, 14), "{text}");
    let value = |name: &str| spoken_.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    assert_eq!(value("x-client-cert-spiffe-id"), Some("spiffe://example.org/b"));
    assert_eq!((value("x-client-cert-present"), value("x-client-cert-chain-verified")), (Some("true"), Some("true")));
    assert!(!text.contains("forged"), "{text}");
    // The same of somebody who is not known, where that is let through.
    let (status, _, text) = circle.ask("lenient.example.com", "/", &forged[1..], b"").await;
    assert_eq!((status, spoken(&text).len(), text.contains("forged")), (200, 14, false), "{text}");
    // And in trailers.
    let mut trailers = HeaderMap::new();
    for name in ["client-cert", "x-client-cert-spiffe-id", "x-sum"] {
        trailers.insert(name, "trailed".parse().unwrap());
    }
    let frames = [b"\0\0\0\x03one", &framing::end(&trailers).unwrap()[..]].concat();
    let framed = [("Client-Cert", &*b), ("Transfer-Encoding", "chunked"), ("Trailer", "X-Sum"), ("AditFraming", "1")];
    // The service of these tests reads up to an end without trailers, so it is asked where the answer is known.
    let (status, _, _) = circle.ask("app.example.com", "/204", &framed, &frames).await;
    assert_eq!(status, 204);
    assert_eq!(circle.connector.tasks.panics(), 0);
}

#[tokio::test]
async fn an_ambiguous_path_is_refused_where_an_entry_names_paths_and_untouched_elsewhere() {
    let log = Log::start();
    let circle = Circle::start(&[FEATURE], "", "").await;
    let (a, b) = (item(&circle.leaf("a")), item(&circle.leaf("b")));
    for (path, by_a) in [
        ("/v1", 200),
        ("/v1/x?q=/../;//%2f", 200),
        ("/%761/x", 200),
        ("/v10", 403),
        ("/", 403),
        ("/v1/../x", 400),
        ("/v1/%2e%2e/x", 400),
        ("/v1/..;/x", 400),
        ("/v1//x", 400),
        ("/v1%2fx", 400),
        ("/v1/%252e%252e/x", 400),
        ("/v1/%00", 400),
        ("/v1/a\\b", 400),
    ] {
        let (status, code, _) = circle.ask("app.example.com", path, &[("Client-Cert", &a)], b"").await;
        let expected = match by_a {
            200 => "",
            400 => "path-ambiguous",
            _ => "caller-not-allowed",
        };
        assert_eq!((status, &*code), (by_a, expected), "{path}");
        let (status, _, text) = circle.ask("app.example.com", path, &[("Client-Cert", &b)], b"").await;
        assert_eq!(status, 200, "{path}");
        // `\` may not stand in a request line at all.
        assert!(text.starts_with(&format!("POST {} HTTP/1.1\r\n", path.replace('\\', "%5C"))), "{path}: {text}");
    }
    circle.ask("app.example.com", "/", &[("Client-Cert", ":nonsense:")], b"").await;
    let lines = log.lines();
    let field = |code: &str, name: &str| {
        let line = lines.iter().find(|line| line.field("code") == code);
        line.unwrap_or_else(|| panic!("no {code} in {lines:?}")).field(name).to_owned()
    };
    assert_eq!(field("path-ambiguous", "caller"), "spiffe://example.org/a");
    assert_eq!(field("caller-not-allowed", "cause"), "the caller is not allowed to do this");
    assert!(field("caller-invalid", "cause").contains("malformed"), "{}", field("caller-invalid", "cause"));
}

/// Nothing would be proven on the hop of a stream without a rule.
#[tokio::test]
async fn streams_without_a_rule_are_refused_unless_they_are_allowed() {
    for (top, refused) in [("", true), ("  privateNetwork: allow\n", false)] {
        let circle = Circle::start(&[FEATURE], "", top).await;
        let log = Log::start();
        let reply = circle.peer.ask(&on_a_stream(&request(2, NOBODY, &[]))).await;
        let Reply::Answered(Answer::Failed { error, .. }, _) = reply else { panic!("{reply:?}") };
        assert_eq!(error.contains("privateNetwork"), refused, "{error}");
        let codes: Vec<_> = log.lines().iter().map(|line| line.field("code").to_owned()).collect();
        assert_eq!(codes, [if refused { "caller-not-allowed" } else { "origin-unreachable" }]);
    }
}
