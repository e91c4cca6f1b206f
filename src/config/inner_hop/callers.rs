//! `callers`: how visitors are known, what services hear of them and what they may do.

use std::path::PathBuf;

use http::HeaderName;

use super::{Allow, CallerHeaders, Callers, RelayedBy, allow};
use crate::config::SecretRef;
use crate::config::mistakes::Place;
use crate::config::reader::{Reader, join};
use crate::config::service::Service;
use crate::config::tree::{Node, Value};

/// What one `callers` says; what is absent is inherited.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallersPatch {
    place: Place,
    path: String,
    trust_anchors: Option<Vec<SecretRef>>,
    intermediates: Option<(Place, Vec<SecretRef>)>,
    allowlisted: Option<Vec<SecretRef>>,
    crls: Option<(Place, Vec<SecretRef>)>,
    allow_invalid_or_missing: Option<bool>,
    relayed_by: Option<(Place, RelayedBy)>,
    headers: Option<(Place, Vec<CallerHeaders>)>,
    header_prefix: Option<(Place, String)>,
    allow: Option<(Place, Vec<Allow>)>,
}

/// What belongs to guards alone, read by whoever reads a guard.
pub(crate) const GUARD_ONLY: &str = "keepHeadersFrom";

const KEYS: [&str; 10] = [
    "allow",
    "allowInvalidOrMissingCert",
    "allowlisted",
    "crls",
    "headerPrefix",
    "headers",
    "intermediates",
    "relayedBy",
    "trustAnchors",
    GUARD_ONLY,
];

const FORMS: [(&str, CallerHeaders); 3] =
    [("rfc9440", CallerHeaders::Rfc9440), ("x-client-cert", CallerHeaders::XClientCert), ("xfcc", CallerHeaders::Xfcc)];

const RELAYS: [(&str, RelayedBy); 4] = [
    ("adit-edge", RelayedBy::AditEdge),
    ("cloudflare", RelayedBy::Cloudflare),
    ("rfc9440", RelayedBy::Rfc9440),
    ("xfcc", RelayedBy::Xfcc),
];

impl CallerHeaders {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        FORMS.iter().find(|(_, form)| *form == self).map_or("", |(word, _)| word)
    }
}

impl RelayedBy {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        RELAYS.iter().find(|(_, relay)| *relay == self).map_or("", |(word, _)| word)
    }
}

impl CallersPatch {
    /// Says nothing, about what stands there.
    pub(crate) fn at(place: Place, path: &str) -> Self {
        Self { place, path: path.to_owned(), ..Self::default() }
    }

    /// Reports what does nothing where only bytes pass.
    pub(crate) fn check_bytes(&self, reader: &mut Reader<'_>, service: &Service) {
        let headers = self.headers.as_ref().filter(|(_, forms)| !forms.is_empty()).map(|(place, _)| *place);
        let prefix = self.header_prefix.as_ref().map(|(place, _)| *place);
        for (key, place) in [("headers", headers), ("headerPrefix", prefix)] {
            if let Some(place) = place {
                let message = format!("has no effect on {service}, which has no headers");
                reader.report.mistake(place, &join(&self.path, key), message);
            }
        }
        if let Some((place, list)) = &self.allow
            && list.iter().any(|allow| allow.methods.is_some() || allow.paths.is_some())
        {
            let message = format!("`methods` and `paths` match nothing on {service}, which has none");
            reader.report.mistake(*place, &join(&self.path, "allow"), message);
        }
    }

    /// Reads a section; with `guard`, one of a guard, whose own key is left to its reader.
    pub(crate) fn read(reader: &mut Reader<'_>, node: &Node, path: &str, guard: bool) -> Self {
        let mut patch = Self::at(node.place, path);
        let known = if guard { &KEYS[..] } else { &KEYS[..KEYS.len() - 1] };
        for entry in reader.map(node, path).unwrap_or_default() {
            let Some(key) = reader.known(entry, path, known) else { continue };
            let (path, node) = (&join(path, key), &entry.node);
            if key == GUARD_ONLY || !reader.filled(node, entry.place, path) {
                continue;
            }
            match key {
                "allow" => patch.allow = Some((node.place, allow::read(reader, node, path))),
                "allowInvalidOrMissingCert" => patch.allow_invalid_or_missing = reader.boolean(node, path),
                "allowlisted" => patch.allowlisted = Some(references(reader, node, path)),
                "crls" => patch.crls = Some((entry.place, references(reader, node, path))),
                "headerPrefix" => patch.header_prefix = prefix(reader, node, path).map(|text| (entry.place, text)),
                "headers" => patch.headers = headers(reader, node, path).map(|forms| (entry.place, forms)),
                "intermediates" => patch.intermediates = Some((entry.place, references(reader, node, path))),
                "relayedBy" => patch.relayed_by = relay(reader, node, path).map(|relay| (entry.place, relay)),
                _ => patch.trust_anchors = Some(references(reader, node, path)),
            }
        }
        if let (Some((_, forms)), Some((place, _))) = (&patch.headers, &patch.header_prefix)
            && !forms.contains(&CallerHeaders::XClientCert)
        {
            let message = "has no effect without `headers: x-client-cert`";
            reader.report.mistake(*place, &join(path, "headerPrefix"), message);
        }
        if let Some((place, _)) = patch.relayed_by.filter(|_| guard) {
            let message = "a guard believes nobody: it sees the caller's certificate in the handshake";
            reader.report.mistake(place, &join(path, "relayedBy"), message);
        }
        patch
    }

    /// Key by key over what is inherited, and checked as a whole.
    pub(crate) fn over(&self, inherited: &Callers, reader: &mut Reader<'_>) -> Callers {
        let list = |own: Option<&Vec<SecretRef>>, inherited: &Vec<SecretRef>| own.unwrap_or(inherited).clone();
        let settled = Callers {
            trust_anchors: list(self.trust_anchors.as_ref(), &inherited.trust_anchors),
            intermediates: list(self.intermediates.as_ref().map(|(_, list)| list), &inherited.intermediates),
            allowlisted: list(self.allowlisted.as_ref(), &inherited.allowlisted),
            crls: list(self.crls.as_ref().map(|(_, list)| list), &inherited.crls),
            allow_invalid_or_missing: self.allow_invalid_or_missing.unwrap_or(inherited.allow_invalid_or_missing),
            relayed_by: self.relayed_by.map_or(inherited.relayed_by, |(_, relay)| relay),
            headers: self.headers.as_ref().map_or_else(|| inherited.headers.clone(), |(_, forms)| forms.clone()),
            header_prefix: match &self.header_prefix {
                Some((_, prefix)) => prefix.clone(),
                None => inherited.header_prefix.clone(),
            },
            allow: match &self.allow {
                Some((_, allow)) => Some(allow.clone()),
                None => inherited.allow.clone(),
            },
        };
        self.check(&settled, reader);
        settled
    }

    fn check(&self, settled: &Callers, reader: &mut Reader<'_>) {
        let report = &mut *reader.report;
        if settled.allow.is_some() && !settled.knows_somebody() {
            let (place, path) = match &self.allow {
                Some((place, _)) => (*place, join(&self.path, "allow")),
                None => (self.place, self.path.clone()),
            };
            let message = "`allow` needs `trustAnchors` or `allowlisted`: without them nobody is known";
            report.mistake(place, &path, message);
        }
        // Both speak of chains, and chains end at an anchor.
        let of_chains = [("intermediates", &self.intermediates), ("crls", &self.crls)];
        for (key, given) in of_chains {
            if let Some((place, list)) = given
                && !list.is_empty()
                && settled.trust_anchors.is_empty()
            {
                report.mistake(*place, &join(&self.path, key), "has no effect without `trustAnchors`");
            }
        }
    }
}

impl Callers {
    /// Whether anybody can be valid.
    pub(crate) fn knows_somebody(&self) -> bool {
        !self.trust_anchors.is_empty() || !self.allowlisted.is_empty()
    }
}

/// A list of references. One that cannot be read leaves a gap that nothing can be read from: it is reported, and what
/// depends on the list being there is not reported, too.
pub(super) fn references(reader: &mut Reader<'_>, node: &Node, path: &str) -> Vec<SecretRef> {
    let items = reader.list(node, path).unwrap_or_default().iter().enumerate();
    let references = items.map(|(at, item)| {
        let path = &format!("{path}[{at}]");
        let read = if reader.filled(item, item.place, path) { SecretRef::read(reader, item, path) } else { None };
        read.unwrap_or_else(unreadable)
    });
    references.collect()
}

/// In the place of a reference that cannot be read; never in a configuration that is accepted.
pub(super) fn unreadable() -> SecretRef {
    SecretRef::File(PathBuf::new())
}

fn relay(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<RelayedBy> {
    reader.word(node, path, &RELAYS, "adit-edge, cloudflare, rfc9440 or xfcc")
}

fn headers(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Vec<CallerHeaders>> {
    const WORDS: &str = "x-client-cert, rfc9440, xfcc, a list of them, or none";
    let Value::List(items) = &node.value else {
        if matches!(&node.value, Value::Plain(text) | Value::Text(text) if text == "none") {
            return Some(Vec::new());
        }
        return reader.word(node, path, &FORMS, WORDS).map(|form| vec![form]);
    };
    if items.is_empty() {
        reader.report.mistake(node.place, path, "an empty list; services that shall hear nothing: `headers: none`");
    }
    let mut forms = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let path = &format!("{path}[{at}]");
        if !reader.filled(item, item.place, path) {
            continue;
        }
        let Some(form) = reader.word(item, path, &FORMS, "x-client-cert, rfc9440 or xfcc; `none` stands alone") else {
            continue;
        };
        if forms.contains(&form) {
            reader.report.mistake(item.place, path, "is already in the list");
        }
        forms.push(form);
    }
    Some(forms)
}

/// Longest prefix. The names made with it go out with every request.
const LONGEST_PREFIX: usize = 64;
/// What a prefix must not take in: names with the prefix are removed from every request.
const COMMON: [&str; 35] = [
    "accept-encoding",
    "access-control-request-method",
    "adit-error",
    "cache-control",
    "cdn-loop",
    "cf-connecting-ip",
    "cf-ray",
    "client-cert-chain",
    "connection",
    "content-length",
    "content-type",
    "grpc-timeout",
    "host",
    "if-none-match",
    "keep-alive",
    "last-event-id",
    "max-forwards",
    "origin",
    "proxy-authorization",
    "sec-fetch-mode",
    "sec-websocket-key",
    "set-cookie",
    "te",
    "traceparent",
    "transfer-encoding",
    "true-client-ip",
    "upgrade-insecure-requests",
    "user-agent",
    "www-authenticate",
    "x-amzn-trace-id",
    "x-b3-traceid",
    "x-csrf-token",
    "x-forwarded-for",
    "x-real-ip",
    "x-request-id",
];

fn prefix(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<String> {
    let text = reader.text(node, path)?;
    let lower = text.to_ascii_lowercase();
    let taken = COMMON.iter().find(|name| name.starts_with(&lower));
    let message = match taken {
        _ if !text.ends_with('-') || HeaderName::from_bytes(text.as_bytes()).is_err() || text.starts_with('-') => {
            "must be the beginning of a header's name and end in `-`, as in X-Client-Cert-".to_owned()
        }
        _ if text.contains('_') => "has no `_`: many services take it for the `-` of another header".to_owned(),
        _ if text.len() > LONGEST_PREFIX => format!("has at most {LONGEST_PREFIX} bytes"),
        Some(name) => format!("is too wide: headers that begin with it are removed from requests, and {name} does"),
        None => return Some(text),
    };
    reader.report.mistake(node.place, path, message);
    None
}
