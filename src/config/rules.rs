//! `ingress`: the ordered rules, each checked, all mistakes reported together.

use std::sync::Arc;

use super::health::{self, Health};
use super::hostname::Hostname;
use super::inner_hop::{Hop, Hops, Inline, Scope, ServiceAt};
use super::limits::{Forwarded, Limits};
use super::mistakes::Place;
use super::origin::{self, OriginOptions, OriginPatch, ProxyType};
use super::own::Own;
use super::path::PathPattern;
use super::reader::{Dialect, Reader, join};
use super::service::Service;
use super::services::{self, Spelled, Texts};
use super::tree::{Entry, Node, Value};

/// The rules in order. The last one matches everything, no other one does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// Never empty.
    pub rules: Vec<Rule>,
    /// The top-level `originRequest` over the built-in defaults.
    pub defaults: OriginOptions,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `None`: any host.
    pub hostname: Option<Hostname>,
    /// `None`: any path.
    pub path: Option<PathPattern>,
    /// Where requests go.
    pub service: Service,
    /// The service as configured, for people and for exports; holds no user information.
    pub spelling: String,
    /// The other services of a list, each with its spelling.
    pub others: Vec<(Service, String)>,
    /// How the services are judged, if the rule says so.
    pub health: Option<Health>,
    /// The settled options: the rule's over the top level's over the defaults.
    pub origin: OriginOptions,
    /// Bounds on each request, the rule's over the top level's.
    pub limits: Limits,
    /// What the service hears of the visitor's address.
    pub forwarded: Forwarded,
    /// What holds between adit and the services.
    pub hops: Hops,
    /// Index in the list, counted from 0.
    pub position: usize,
}

impl Rule {
    /// Whether the rule matches everything.
    pub fn is_catch_all(&self) -> bool {
        self.hostname.is_none() && self.path.is_none()
    }

    /// Every service of the rule with its spelling; the first is [`Rule::service`].
    pub fn services(&self) -> impl Iterator<Item = (&Service, &str)> {
        let others = self.others.iter().map(|(service, spelling)| (service, spelling.as_str()));
        std::iter::once((&self.service, self.spelling.as_str())).chain(others)
    }

    /// Whether the rule is for this request; `host` in normal form, `path` decoded.
    pub fn matches(&self, normal_host: &str, decoded_path: &[u8]) -> bool {
        self.hostname.as_ref().is_none_or(|hostname| hostname.matches(normal_host))
            && self.path.as_ref().is_none_or(|path| path.is_match(decoded_path))
    }
}

impl Ingress {
    /// What a connector without rules answers: 503 for everything.
    pub fn unconfigured() -> Self {
        Self::single(Service::Status(503), "http_status:503".to_owned(), OriginOptions::default())
    }

    pub(crate) fn single(service: Service, spelling: String, origin: OriginOptions) -> Self {
        let rule = Rule {
            hostname: None,
            path: None,
            service,
            spelling,
            others: Vec::new(),
            health: None,
            origin: origin.clone(),
            limits: Limits::default(),
            forwarded: Forwarded::default(),
            hops: Hops::always(Arc::default()),
            position: 0,
        };
        Self { rules: vec![rule], defaults: origin }
    }
}

impl Ingress {
    /// The same rules, with these limits where a rule has none of its own.
    #[must_use]
    pub fn limited(mut self, inherited: Limits) -> Self {
        let answered_by_adit = |rule: &Rule| matches!(rule.service, Service::Status(_) | Service::HelloWorld);
        for rule in self.rules.iter_mut().filter(|rule| !answered_by_adit(rule)) {
            rule.limits = rule.limits.over(inherited);
        }
        self
    }
}

// What a push can cost is bounded: rules here, and the size of each compiled pattern.
const MAX_RULES: usize = 10_000;
const MAX_PATTERNS: usize = 1_000;

/// How many of [`ALL`] cloudflared knows.
const FOREIGN: usize = 4;
/// All keys of a rule, adit's own last.
const ALL: [&str; 9] =
    ["hostname", "originRequest", "path", "service", "forwarded", "health", "innerHop", "limits", "proxyProtocol"];

/// Reads the list of rules. `None` when there is none, or when a mistake was reported.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    node: &Node,
    defaults: &OriginOptions,
    scope: &mut Scope<'_>,
) -> Option<Ingress> {
    let items = reader.list(node, "ingress")?;
    if items.is_empty() {
        return None;
    }
    if items.len() > MAX_RULES {
        let message = format!("more than {MAX_RULES} rules");
        reader.report.mistake(node.place, "ingress", message);
        return None;
    }
    let before = reader.report.mistakes.len();
    let last = items.len() - 1;
    let mut patterns = 0;
    let mut rules = Vec::with_capacity(items.len());
    for (position, item) in items.iter().enumerate() {
        let path = format!("ingress[{position}]");
        let Some(raw) = raw_rule(reader, item, &path) else {
            continue;
        };
        let hostname = hostname(reader, &raw, &path);
        let pattern = pattern(reader, &raw, &path);
        patterns += usize::from(matches!(pattern, Some(Some(_))));
        if patterns > MAX_PATTERNS {
            let message = format!("more than {MAX_PATTERNS} rules with a path");
            reader.report.mistake(node.place, "ingress", message);
            return None;
        }
        let origin = defaults.patched(&raw.patch);
        let service = service(reader, &raw, &origin, &path);
        // A rule whose host or path cannot be read is not taken for a catch-all.
        if let (Some(hostname), Some(pattern)) = (&hostname, &pattern) {
            catch_all(reader, item, &path, hostname.is_none() && pattern.is_none(), position == last);
        }
        let (Some(hostname), Some(pattern), Some(((service, spelling), others))) = (hostname, pattern, service) else {
            continue;
        };
        let health = raw
            .health
            .as_ref()
            .map(|given| health::of_services(reader, &join(&path, "health"), given, &service, !others.is_empty()));
        let mut origin = origin;
        origin.bastion_mode |= service == Service::Bastion;
        origin.proxy_protocol = raw.own.proxy_protocol;
        let Own { limits, forwarded, .. } = raw.own;
        let mut rule = Rule {
            hostname,
            path: pattern,
            service,
            spelling,
            others,
            health,
            origin,
            limits,
            forwarded,
            hops: Hops::always(Arc::default()),
            position,
        };
        let at = ServiceAt { place: raw.service_place(), path: &join(&path, "service") };
        rule.hops = scope.hops(reader, &rule, at, raw.inline.as_ref());
        remarks(reader, &raw, &rule, &path);
        raw.own.check(reader, &rule, &path);
        rules.push(rule);
    }
    (reader.report.mistakes.len() == before && !rules.is_empty()).then(|| Ingress { rules, defaults: defaults.clone() })
}

/// The texts of a rule and where they stand.
#[derive(Default)]
struct RawRule {
    place: Place,
    hostname: Option<(Place, String)>,
    path: Option<(Place, String)>,
    service: Texts,
    health: Option<health::Given>,
    origin_place: Place,
    patch: OriginPatch,
    /// The keys of the rule's own `originRequest`.
    given: Vec<(Place, String)>,
    own: Own,
    inline: Option<Inline>,
    unreadable: bool,
}

impl RawRule {
    /// Where the service stands, or the rule that has none.
    fn service_place(&self) -> Place {
        self.service.items.first().map_or(self.place, |(place, _)| *place)
    }
}

fn raw_rule(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<RawRule> {
    let mut raw = RawRule { place: node.place, ..RawRule::default() };
    if matches!(node.value, Value::Null) {
        reader.report.mistake(node.place, path, "this rule is empty");
        return None;
    }
    for entry in reader.map(node, path)? {
        if reader.dialect == Dialect::Pushed && local_only(reader, entry, path) {
            raw.unreadable = true;
            continue;
        }
        let known = if reader.own_keys { &ALL[..] } else { &ALL[..FOREIGN] };
        let Some(key) = reader.known(entry, path, known) else {
            continue;
        };
        let path = &join(path, key);
        let node = &entry.node;
        match key {
            "health" => raw.health = health::read(reader, node, path),
            "hostname" => raw.hostname = reader.text(node, path).map(|text| (node.place, text)),
            "path" => raw.path = reader.text(node, path).map(|text| (node.place, text)),
            "service" if matches!(node.value, Value::List(_)) && reader.own_keys => {
                match services::texts(reader, node, path) {
                    Some(texts) => raw.service = texts,
                    None => raw.unreadable = true,
                }
            }
            "service" => {
                let before = reader.report.mistakes.len();
                let text = reader.text(node, path).map(|text| (node.place, text));
                raw.service = Texts { items: text.into_iter().collect(), list: false };
                raw.unreadable |= reader.report.mistakes.len() > before;
            }
            "innerHop" => raw.inline = Some(Inline::read(reader, node, entry.place, path)),
            "forwarded" | "limits" | "proxyProtocol" => raw.own.read(reader, key, entry, path),
            _ => {
                raw.patch = origin::read(reader, node, path);
                raw.origin_place = node.place;
                if let Value::Map(entries) = &node.value {
                    raw.given = entries.iter().map(|entry| (entry.place, entry.key.clone())).collect();
                }
            }
        }
    }
    Some(raw)
}

/// What every refusal of a key to come says.
pub(crate) const NOT_YET: &str = "not supported by this version";

/// Refuses what only the file says, from any edge: to ignore it would be to let through what it was written to stop.
pub(crate) fn local_only(reader: &mut Reader<'_>, entry: &Entry, path: &str) -> bool {
    let found = entry.key.eq_ignore_ascii_case("innerHop");
    if found {
        let message = "only the connector's own file says what is proven on the inner hop";
        reader.report.mistake(entry.place, &join(path, &entry.key), message);
    }
    found
}

/// `Some(None)`: any host. `None`: reported.
fn hostname(reader: &mut Reader<'_>, raw: &RawRule, path: &str) -> Option<Option<Hostname>> {
    let Some((place, text)) = &raw.hostname else {
        return Some(None);
    };
    match Hostname::parse(text) {
        Ok(hostname) => Some(hostname),
        Err(error) => {
            reader.report.mistake(*place, &join(path, "hostname"), error.to_string());
            None
        }
    }
}

/// `Some(None)`: any path. `None`: reported.
fn pattern(reader: &mut Reader<'_>, raw: &RawRule, path: &str) -> Option<Option<PathPattern>> {
    let Some((place, text)) = &raw.path else {
        return Some(None);
    };
    match PathPattern::parse(text) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            let message = format!("not a regular expression: {error}");
            reader.report.mistake(*place, &join(path, "path"), message);
            None
        }
    }
}

/// The first service and the others of a list.
fn service(
    reader: &mut Reader<'_>,
    raw: &RawRule,
    origin: &OriginOptions,
    path: &str,
) -> Option<(Spelled, Vec<Spelled>)> {
    if raw.unreadable {
        return None;
    }
    if raw.service.list {
        let mut services = services::list(reader, &raw.service, origin, &join(path, "service"))?.into_iter();
        return Some((services.next()?, services.collect()));
    }
    single(reader, raw, origin, path).map(|service| (service, Vec::new()))
}

fn single(reader: &mut Reader<'_>, raw: &RawRule, origin: &OriginOptions, path: &str) -> Option<Spelled> {
    let place = raw.service_place();
    let text = raw.service.items.first().map_or("", |(_, text)| text.as_str());
    let parsed = Service::spelled(text);
    // Bastion mode takes the place of whatever would be dialled, even of what cannot be read.
    let dialled = match &parsed {
        Ok((service, _)) => matches!(service, Service::Http { .. } | Service::Tcp { .. }),
        Err(_) => !text.starts_with("unix") && !text.starts_with("http_status"),
    };
    let parsed =
        if origin.bastion_mode && dialled { Ok((Service::Bastion, Service::Bastion.to_string())) } else { parsed };
    match parsed {
        Ok(parsed) => {
            // Other mistakes of this rule are still looked for: the answer names every reason.
            reader.admit(&parsed.0, place, &join(path, "service"));
            Some(parsed)
        }
        Err(error) => {
            reader.report.mistake(place, &join(path, "service"), error.to_string());
            None
        }
    }
}

fn catch_all(reader: &mut Reader<'_>, node: &Node, path: &str, all: bool, last: bool) {
    if last && !all {
        let message = "the last rule must match everything: it has neither hostname nor path";
        reader.report.mistake(node.place, path, message);
    }
    if !last && all {
        let message = "matches everything, so that the rules after it are never reached";
        reader.report.mistake(node.place, path, message);
    }
}

/// Warnings about what is accepted and will not do what its author hopes.
fn remarks(reader: &mut Reader<'_>, raw: &RawRule, rule: &Rule, path: &str) {
    if reader.dialect == Dialect::File {
        let base = join(path, "originRequest");
        for (place, key) in &raw.given {
            if let Some(why) = no_effect(key, rule) {
                reader.report.warning(*place, &join(&base, key), why);
            }
        }
    }
    if rule.origin.access.required {
        let place = if raw.patch.access.is_some() { raw.origin_place } else { raw.place };
        let message = "`access.required`: tokens are not checked by this version, so every request \
                       to this rule is refused (403)";
        reader.report.warning(place, path, message);
    }
    if let Service::Status(600..) = rule.service {
        let place = raw.service_place();
        let message = "statuses above 599 are undefined (RFC 9110 section 15)";
        reader.report.warning(place, &join(path, "service"), message);
    }
}

fn no_effect(key: &str, rule: &Rule) -> Option<String> {
    let service = &rule.service;
    let http = matches!(service, Service::Http { .. } | Service::Unix { .. });
    let tls = matches!(service, Service::Http { tls: true, .. } | Service::Unix { tls: true, .. });
    let tcp = matches!(service, Service::Tcp { .. } | Service::Bastion | Service::SocksProxy);
    let trusted = |hop: &Arc<Hop>| hop.origin_trust.is_some();
    let effect = match key {
        "caPool" if tls && rule.hops.each().all(trusted) => {
            return Some("has no effect: `originTrust` takes its place on the inner hop".to_owned());
        }
        "http2Origin" if matches!(service, Service::Http { tls: false, h2c: false, .. }) => {
            return Some("has no effect on http://, which stays HTTP/1.1; h2c:// is HTTP/2".to_owned());
        }
        "caPool" | "http2Origin" | "matchSNItoHost" | "noTLSVerify" | "originServerName" | "tlsTimeout" => tls,
        "disableChunkedEncoding" | "httpHostHeader" | "keepAliveConnections" | "keepAliveTimeout" => http,
        "connectTimeout" | "noHappyEyeballs" | "tcpKeepAlive" => http || tcp,
        "ipRules" => *service == Service::SocksProxy,
        "proxyType" => tcp || rule.origin.proxy_type == ProxyType::Direct,
        "proxyAddress" | "proxyPort" => false,
        _ => true,
    };
    (!effect).then(|| format!("has no effect on {service}"))
}
