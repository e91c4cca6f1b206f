//! The column `caller` of `config/certificates.md`: what comes of every certificate that a caller may show.

use adit::callers::{MaybeCaller, Relayed, check::Check, headers::Writer, relayed};
use adit::config::{CallerHeaders, Callers, RelayedBy};
use http::{HeaderMap, HeaderValue};

use crate::harness::zoo::{self, As, Zoo};

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
        let mut whole = animal.shown();
        if caller.as_ref().unwrap().issuer_key.is_none() {
            whole.chain = [].into();
        }
        for (written, form) in [(CallerHeaders::Rfc9440, RelayedBy::Rfc9440), (CallerHeaders::Xfcc, RelayedBy::Xfcc)] {
            let headers = told(&caller, written);
            assert_eq!(relayed::read(&headers, form), Relayed::Shown(whole.clone()), "{} {form:?}", row.name);
            read += 1;
        }
    }
    assert!(read > 20, "{read}");
}

#[test]
fn values_are_encoded_as_services_of_load_balancers_know_them() {
    use base64::{Engine, engine::general_purpose::STANDARD};

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
