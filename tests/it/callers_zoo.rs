//! The column `caller` of `config/certificates.md`: what comes of every certificate that a caller may show.
//!
//! Once as a whole, over HTTP, and once in pieces: what is verified, and what the service is told of who is not.

use adit::callers::{MaybeCaller, Relayed, check::Check, headers::Writer, relayed};
use adit::config::{CallerHeaders, Callers, RelayedBy};
use adit::tls::callers::Shown;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Request};
use rustls::pki_types::CertificateDer;

use crate::{
    harness::{
        in_time,
        peer::{ok, replying},
        zoo::{self, Animal, As, Zoo},
    },
    raw_edge::RawEdge,
};

fn callers(headers: Vec<CallerHeaders>) -> Callers {
    Callers {
        trust_anchors: Vec::new(),
        intermediates: Vec::new(),
        allowlisted: Vec::new(),
        crls: Vec::new(),
        allow_invalid_or_missing: true,
        relayed_by: RelayedBy::AditEdge,
        headers,
        header_prefix: "X-Client-Runway-Cc-".to_owned(),
        allow: None,
    }
}

fn told(caller: &MaybeCaller, form: CallerHeaders) -> HeaderMap {
    let mut headers = HeaderMap::new();
    Writer::new(&callers(vec![form])).write(&mut headers, caller);
    headers
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers[&format!("x-client-runway-cc-{name}")].to_str().unwrap()
}

/// What the table says of a caller that is let through to the list of those who are allowed.
fn documented(cell: &str) -> (bool, &str) {
    match cell.split(' ').collect::<Vec<_>>()[..] {
        ["200"] | ["403", "caller-not-allowed"] => (true, ""),
        ["200", error] => (true, error),
        ["403", "caller-invalid" | "caller-missing", error] => (false, error),
        _ => panic!("{cell:?} is no outcome of a caller"),
    }
}

#[test]
fn every_certificate_of_the_table_is_verified_as_documented_and_the_service_is_told() {
    let zoo = Zoo::new();
    let check = Check::new(zoo.trust());
    for row in zoo::table() {
        let name = &row.name;
        let (verified, error) = documented(&row.caller);
        let animal = zoo.make(name, As::Client);
        let relayed = animal.as_ref().map_or(Relayed::Nothing, |animal| Relayed::Shown(animal.shown()));
        let caller = check.caller(relayed);
        let said = caller.as_ref().map(|caller| caller.verdict);
        let headers = told(&caller, CallerHeaders::XClientCert);
        assert_eq!(headers.len(), 14, "{name}");
        assert_eq!(value(&headers, "present"), animal.is_some().to_string(), "{name}");
        assert_eq!(value(&headers, "chain-verified"), verified.to_string(), "{name}: {said:?}");
        assert_eq!(value(&headers, "error"), error, "{name}: {said:?}");
        assert_eq!(value(&headers, "leaf").is_empty(), !verified || error.contains("validated_leaf"), "{name}");
        for (name_of_header, form) in
            [("client-cert", CallerHeaders::Rfc9440), ("x-forwarded-client-cert", CallerHeaders::Xfcc)]
        {
            let is_told = told(&caller, form).contains_key(name_of_header);
            let told = form == CallerHeaders::Xfcc || !error.contains("validated_leaf");
            assert_eq!(is_told, verified && told, "{name}");
        }
    }
}

#[test]
fn nothing_of_the_zoo_is_valid_without_trust() {
    let zoo = Zoo::new();
    let nobody = Check::new(std::sync::Arc::default());
    for row in zoo::table() {
        let Some(animal) = zoo.make(&row.name, As::Client) else { continue };
        let caller = nobody.caller(Relayed::Shown(animal.shown())).unwrap();
        assert!(caller.verdict.is_err(), "{}", row.name);
    }
}

/// What a service is told can be read back by another adit, whose trust then says the same.
#[test]
fn what_is_told_of_a_verified_caller_is_read_back_as_it_was_shown() {
    let zoo = Zoo::new();
    let check = Check::new(zoo.trust());
    let mut read = 0;
    for row in zoo::table() {
        let (verified, error) = documented(&row.caller);
        if !verified || !error.is_empty() && error.contains("validated") {
            continue;
        }
        let animal = zoo.make(&row.name, As::Client).unwrap();
        let caller = check.caller(Relayed::Shown(animal.shown()));
        // Some come with more than was verified, or with less.
        let whole = Shown { chain: caller.as_ref().unwrap().chain.clone(), ..animal.shown() };
        for (written, form) in [(CallerHeaders::Rfc9440, RelayedBy::Rfc9440), (CallerHeaders::Xfcc, RelayedBy::Xfcc)] {
            let headers = told(&caller, written);
            assert_eq!(relayed::read(&headers, form), Relayed::Shown(whole.clone()), "{} {form:?}", row.name);
            read += 1;
        }
    }
    assert!(read > 20, "{read}");
}

/// What else was sent is a stranger's word.
#[test]
fn a_service_hears_nothing_of_certificates_that_were_sent_and_not_verified() {
    let zoo = Zoo::new();
    let check = Check::new(zoo.trust());
    let good = zoo.make("good", As::Client).unwrap().shown();
    let strangers = zoo.make("malformed", As::Client).unwrap().chain;
    let mixed = strangers.iter().chain(good.chain.iter()).chain(&strangers).cloned();
    let more = Shown { leaf: good.leaf.clone(), chain: mixed.collect() };
    let [less, more] = [good.clone(), more].map(|shown| check.caller(Relayed::Shown(shown)));
    assert_eq!(more.as_ref().unwrap().verdict, Ok(()));
    assert!(!good.chain.is_empty());
    for form in [CallerHeaders::XClientCert, CallerHeaders::Rfc9440, CallerHeaders::Xfcc] {
        assert_eq!(told(&more, form), told(&less, form), "{form:?}");
    }
    // Nor of the chain of one that is valid by itself.
    let mut alone = zoo.make("allow-listed", As::Client).unwrap().shown();
    alone.chain = strangers.into();
    let alone = check.caller(Relayed::Shown(alone));
    assert_eq!(alone.as_ref().unwrap().verdict, Ok(()));
    assert_eq!(value(&told(&alone, CallerHeaders::XClientCert), "chain"), "");
    assert!(!told(&alone, CallerHeaders::Rfc9440).contains_key("client-cert-chain"));
}

#[test]
fn values_are_encoded_as_services_of_load_balancers_know_them() {
    let zoo = Zoo::new();
    let check = Check::new(zoo.trust());
    let animal = zoo.make("good", As::Client).unwrap();
    let caller = check.caller(Relayed::Shown(animal.shown()));
    let headers = told(&caller, CallerHeaders::XClientCert);
    let facts = caller.as_ref().unwrap().certificate.as_ref().unwrap();
    assert_eq!(value(&headers, "spiffe-id"), zoo::SPIFFE_ID);
    assert_eq!(value(&headers, "uri-sans"), "", "the SPIFFE ID is not among them");
    assert_eq!(value(&headers, "dnsname-sans"), STANDARD.encode(zoo::DNS_NAME));
    assert_eq!(value(&headers, "sha256-fingerprint"), STANDARD.encode(facts.fingerprint.0));
    assert_eq!(STANDARD.decode(value(&headers, "subject-dn")).unwrap(), facts.subject);
    assert_eq!(STANDARD.decode(value(&headers, "issuer-dn")).unwrap(), facts.issuer);
    assert_eq!(value(&headers, "leaf"), format!(":{}:", STANDARD.encode(&animal.chain[0])));
    assert_eq!(value(&headers, "chain"), format!(":{}:", STANDARD.encode(&animal.chain[1])));
    let serial = value(&headers, "serial-number");
    assert!(serial.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) && !serial.starts_with('0'));
    for name in ["valid-not-before", "valid-not-after"] {
        let date = value(&headers, name);
        assert!(date.len() == 25 && date.ends_with("+00:00"), "{date}");
    }

    let two = check.caller(Relayed::Shown(zoo.make("two-uris", As::Client).unwrap().shown()));
    let headers = told(&two, CallerHeaders::XClientCert);
    assert_eq!(value(&headers, "spiffe-id"), "");
    let both = [zoo::SPIFFE_ID, "spiffe://example.org/zoo/other"].map(|uri| STANDARD.encode(uri)).join(",");
    assert_eq!(value(&headers, "uri-sans"), both);
}

#[test]
fn what_was_there_under_a_name_of_ours_is_overwritten() {
    let mut headers = HeaderMap::new();
    for name in ["x-client-runway-cc-present", "client-cert", "client-cert-chain", "x-forwarded-client-cert"] {
        headers.append(http::HeaderName::from_static(name), HeaderValue::from_static("spoofed"));
        headers.append(http::HeaderName::from_static(name), HeaderValue::from_static("twice"));
    }
    let all = vec![CallerHeaders::Rfc9440, CallerHeaders::XClientCert, CallerHeaders::Xfcc];
    Writer::new(&callers(all)).write(&mut headers, &None);
    assert_eq!(headers.len(), 14);
    assert_eq!(value(&headers, "present"), "false");
    assert_eq!(value(&headers, "error"), "client_cert_not_provided");
}

fn pem(certificates: &[CertificateDer<'static>]) -> String {
    let one = |der: &CertificateDer<'static>| {
        let base64 = STANDARD.encode(der);
        let lines = base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap());
        let lines = lines.collect::<Vec<_>>().join("\n");
        format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    };
    certificates.iter().map(one).collect()
}

/// A request as an edge over HTTP/2 sends it, with a certificate in the form of RFC 9440 if there is one.
fn request(animal: Option<&Animal>) -> Request<()> {
    let mut request = Request::get("https://web.test/").body(()).unwrap();
    if let Some(animal) = animal {
        let item =
            |der: &CertificateDer<'static>| HeaderValue::try_from(format!(":{}:", STANDARD.encode(der))).unwrap();
        request.headers_mut().insert("client-cert", item(&animal.chain[0]));
        for der in &animal.chain[1..] {
            request.headers_mut().append("client-cert-chain", item(der));
        }
    }
    request
}

#[tokio::test]
async fn every_certificate_of_the_table_is_answered_over_http_as_documented() {
    in_time(Box::pin(async {
        let zoo = Zoo::new();
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let lists = zoo
            .revocation_lists()
            .into_iter()
            .map(|list| pem(&[list.to_vec().into()]).replace("CERTIFICATE", "X509 CRL"));
        let anchors = file("anchors.pem", pem(&zoo.anchors()));
        let known = file("known.pem", pem(&zoo.intermediates()));
        let alone = file("allow-listed.pem", pem(&zoo.allow_listed()));
        let lists = file("lists.pem", lists.collect());
        // The service says what it heard.
        let (service, _) = replying(|seen, _| {
            let fourteen = seen.headers.iter().filter(|(name, _)| name.to_lowercase().starts_with("x-client-cert-"));
            let error = seen.header("x-client-cert-error").unwrap_or("no header");
            let others = seen.header("client-cert").is_some() || seen.header("client-cert-chain").is_some();
            ok(format!("{} {others} {error}", fourteen.count()))
        })
        .await;
        let edge = RawEdge::new().await;
        let yaml = format!(
            "innerHop:\n  callers:\n    trustAnchors: [{anchors}]\n    intermediates: [{known}]\n    \
             allowlisted: [{alone}]\n    crls: [{lists}]\n    relayedBy: rfc9440\n    allow: [{{ id: '{}' }}, {{ dns: \
             {} }}]\ningress:\n  - service: http://{service}\n",
            zoo::SPIFFE_ID,
            zoo::DNS_NAME
        );
        let _connector = edge.connector("http2", &yaml).await;
        let peer = edge.h2_peer().await;
        for row in zoo::table() {
            let animal = zoo.make(&row.name, As::Client);
            let answer = peer.ask(request(animal.as_ref()), "").await.unwrap();
            let headers = &answer.head.headers;
            let packed = headers.get("cf-cloudflared-response-headers").map_or(&b""[..], HeaderValue::as_bytes);
            let headers = adit::wire::headers::unpack(packed).unwrap();
            let code = headers.get("adit-error").map_or("", |code| code.to_str().unwrap());
            let said = match (answer.head.status.as_u16(), code) {
                (200, "") => {
                    let error = answer.body.strip_prefix("14 false ").unwrap_or_else(|| panic!("{}", answer.body));
                    format!("200 {error}").trim_end().to_owned()
                }
                (status, code) => format!("{status} {code}"),
            };
            // The error string of who is refused is the other test's.
            let documented: Vec<_> = row.caller.split(' ').collect();
            let documented = if documented[0] == "200" { &documented[..] } else { &documented[..2] };
            assert_eq!(said, documented.join(" "), "{}", row.name);
        }
    }))
    .await;
}
