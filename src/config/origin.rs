//! `originRequest`: how a service is spoken to. Defaults, the top level and the rule are merged
//! field by field; a list or the `access` object replaces the inherited one whole.

use std::path::PathBuf;
use std::time::Duration;

use super::ip_rules::{IpRule, IpRules, Prefix};
use super::limits::ProxyProtocol;
use super::reader::{Dialect, Reader, join};
use super::tree::{Node, Value};

/// Everything that is settled about speaking to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginOptions {
    /// Limit for a dial, look-up included.
    pub connect_timeout: Duration,
    /// Limit for a TLS handshake.
    pub tls_timeout: Duration,
    /// Period of TCP keep-alives.
    pub tcp_keep_alive: Duration,
    /// No racing of IPv6 against IPv4 (RFC 8305).
    pub no_happy_eyeballs: bool,
    /// Idle connections kept.
    pub keep_alive_connections: usize,
    /// How long an idle connection is kept.
    pub keep_alive_timeout: Duration,
    /// Replaces `Host`; the original goes to `X-Forwarded-Host`.
    pub http_host_header: Option<String>,
    /// Name sent and verified in TLS.
    pub origin_server_name: Option<String>,
    /// The name in TLS is the request's host.
    pub match_sni_to_host: bool,
    /// Certificates trusted beside the system's.
    pub ca_pool: Option<PathBuf>,
    /// No verification of the service's certificate.
    pub no_tls_verify: bool,
    /// No chunked request bodies.
    pub disable_chunked_encoding: bool,
    /// The service is `bastion`, whatever its URL.
    pub bastion_mode: bool,
    /// Whether TCP services begin with SOCKS.
    pub proxy_type: ProxyType,
    /// What a `socks-proxy` may reach; an inherited list is enforced.
    pub ip_rules: IpRules,
    /// HTTP/2 by ALPN.
    pub http2_origin: bool,
    /// Access tokens; inherited settings are enforced.
    pub access: Access,
    /// Every connection begins with a PROXY header; no key of `originRequest` but one of the rule.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Kept for exports; nothing reads it.
    pub proxy_address: String,
    /// Kept for exports; nothing reads it.
    pub proxy_port: u16,
}

impl Default for OriginOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(30),
            tls_timeout: Duration::from_secs(10),
            tcp_keep_alive: Duration::from_secs(30),
            no_happy_eyeballs: false,
            keep_alive_connections: 100,
            keep_alive_timeout: Duration::from_secs(90),
            http_host_header: None,
            origin_server_name: None,
            match_sni_to_host: false,
            ca_pool: None,
            no_tls_verify: false,
            disable_chunked_encoding: false,
            bastion_mode: false,
            proxy_type: ProxyType::Direct,
            ip_rules: IpRules::default(),
            http2_origin: false,
            access: Access::default(),
            proxy_protocol: None,
            proxy_address: "127.0.0.1".to_owned(),
            proxy_port: 0,
        }
    }
}

/// `proxyType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyType {
    /// The stream goes to the service as it is.
    #[default]
    Direct,
    /// adit answers a SOCKS5 handshake first.
    Socks,
}

/// `access`: whose tokens a request must carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A request without a valid token is refused.
    pub required: bool,
    /// Issuer, as `https://TEAM.cloudflareaccess.com`.
    pub team_name: String,
    /// Audiences, any one of which suffices.
    pub aud_tag: Vec<String>,
    /// Another set of issuers (`fed`).
    pub environment: String,
}

/// What one `originRequest` says; `None` is inherited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OriginPatch {
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) tls_timeout: Option<Duration>,
    pub(crate) tcp_keep_alive: Option<Duration>,
    pub(crate) no_happy_eyeballs: Option<bool>,
    pub(crate) keep_alive_connections: Option<usize>,
    pub(crate) keep_alive_timeout: Option<Duration>,
    pub(crate) http_host_header: Option<String>,
    pub(crate) origin_server_name: Option<String>,
    pub(crate) match_sni_to_host: Option<bool>,
    pub(crate) ca_pool: Option<String>,
    pub(crate) no_tls_verify: Option<bool>,
    pub(crate) disable_chunked_encoding: Option<bool>,
    pub(crate) bastion_mode: Option<bool>,
    pub(crate) proxy_type: Option<ProxyType>,
    pub(crate) ip_rules: Option<IpRules>,
    pub(crate) http2_origin: Option<bool>,
    pub(crate) access: Option<Access>,
    pub(crate) proxy_address: Option<String>,
    pub(crate) proxy_port: Option<u16>,
}

impl OriginOptions {
    /// These options with what the patch says on top.
    pub(crate) fn patched(&self, patch: &OriginPatch) -> Self {
        let text = |given: &Option<String>, inherited: &Option<String>| match given {
            // An empty text resets what the top level set.
            Some(text) => (!text.is_empty()).then(|| text.clone()),
            None => inherited.clone(),
        };
        let ca_pool = match &patch.ca_pool {
            Some(text) => (!text.is_empty()).then(|| PathBuf::from(text)),
            None => self.ca_pool.clone(),
        };
        Self {
            connect_timeout: patch.connect_timeout.unwrap_or(self.connect_timeout),
            tls_timeout: patch.tls_timeout.unwrap_or(self.tls_timeout),
            tcp_keep_alive: patch.tcp_keep_alive.unwrap_or(self.tcp_keep_alive),
            no_happy_eyeballs: patch.no_happy_eyeballs.unwrap_or(self.no_happy_eyeballs),
            keep_alive_connections: patch.keep_alive_connections.unwrap_or(self.keep_alive_connections),
            keep_alive_timeout: patch.keep_alive_timeout.unwrap_or(self.keep_alive_timeout),
            http_host_header: text(&patch.http_host_header, &self.http_host_header),
            origin_server_name: text(&patch.origin_server_name, &self.origin_server_name),
            match_sni_to_host: patch.match_sni_to_host.unwrap_or(self.match_sni_to_host),
            ca_pool,
            no_tls_verify: patch.no_tls_verify.unwrap_or(self.no_tls_verify),
            disable_chunked_encoding: patch.disable_chunked_encoding.unwrap_or(self.disable_chunked_encoding),
            bastion_mode: patch.bastion_mode.unwrap_or(self.bastion_mode),
            proxy_type: patch.proxy_type.unwrap_or(self.proxy_type),
            ip_rules: patch.ip_rules.clone().unwrap_or_else(|| self.ip_rules.clone()),
            http2_origin: patch.http2_origin.unwrap_or(self.http2_origin),
            access: patch.access.clone().unwrap_or_else(|| self.access.clone()),
            proxy_protocol: self.proxy_protocol,
            proxy_address: patch.proxy_address.clone().unwrap_or_else(|| self.proxy_address.clone()),
            proxy_port: patch.proxy_port.unwrap_or(self.proxy_port),
        }
    }
}

/// Every key of `originRequest`.
pub(crate) const KEYS: [&str; 19] = [
    "access",
    "bastionMode",
    "caPool",
    "connectTimeout",
    "disableChunkedEncoding",
    "http2Origin",
    "httpHostHeader",
    "ipRules",
    "keepAliveConnections",
    "keepAliveTimeout",
    "matchSNItoHost",
    "noHappyEyeballs",
    "noTLSVerify",
    "originServerName",
    "proxyAddress",
    "proxyPort",
    "proxyType",
    "tcpKeepAlive",
    "tlsTimeout",
];

/// Reads an `originRequest`.
pub(crate) fn read(reader: &mut Reader<'_>, node: &Node, path: &str) -> OriginPatch {
    let mut patch = OriginPatch::default();
    for entry in reader.map(node, path).unwrap_or_default() {
        let Some(key) = reader.known(entry, path, &KEYS) else {
            continue;
        };
        let path = &join(path, key);
        let node = &entry.node;
        match key {
            "access" => patch.access = access(reader, node, path),
            "bastionMode" => patch.bastion_mode = reader.boolean(node, path),
            "caPool" => patch.ca_pool = reader.text(node, path),
            "connectTimeout" => patch.connect_timeout = reader.duration(node, path),
            "disableChunkedEncoding" => {
                patch.disable_chunked_encoding = reader.boolean(node, path);
            }
            "http2Origin" => patch.http2_origin = reader.boolean(node, path),
            "httpHostHeader" => patch.http_host_header = header_value(reader, node, path),
            "ipRules" => patch.ip_rules = ip_rules(reader, node, path),
            "keepAliveConnections" => {
                let count = reader.integer(node, path, 0..=1_000_000);
                patch.keep_alive_connections = count.and_then(|count| usize::try_from(count).ok());
            }
            "keepAliveTimeout" => patch.keep_alive_timeout = reader.duration(node, path),
            "matchSNItoHost" => patch.match_sni_to_host = reader.boolean(node, path),
            "noHappyEyeballs" => patch.no_happy_eyeballs = reader.boolean(node, path),
            "noTLSVerify" => patch.no_tls_verify = reader.boolean(node, path),
            "originServerName" => patch.origin_server_name = reader.text(node, path),
            "proxyAddress" => patch.proxy_address = reader.text(node, path),
            "proxyPort" => {
                let port = reader.integer(node, path, 0..=65_535);
                patch.proxy_port = port.and_then(|port| u16::try_from(port).ok());
            }
            "proxyType" => patch.proxy_type = proxy_type(reader, node, path),
            "tcpKeepAlive" => patch.tcp_keep_alive = reader.duration(node, path),
            _ => patch.tls_timeout = reader.duration(node, path),
        }
    }
    patch
}

fn header_value(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<String> {
    let text = reader.text(node, path)?;
    // A line break would smuggle further headers into every request (RFC 9110 section 5.5).
    if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        reader.report.mistake(node.place, path, "a control character cannot stand in a header");
        return None;
    }
    Some(text)
}

fn proxy_type(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<ProxyType> {
    match &*reader.text(node, path)? {
        "" => Some(ProxyType::Direct),
        "socks" => Some(ProxyType::Socks),
        _ => {
            reader.report.mistake(node.place, path, "must be `socks` or empty");
            None
        }
    }
}

fn access(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Access> {
    let mut access = Access::default();
    for entry in reader.map(node, path)? {
        let known = ["audTag", "environment", "required", "teamName"];
        let Some(key) = reader.known(entry, path, &known) else {
            continue;
        };
        let path = &join(path, key);
        let node = &entry.node;
        match key {
            "audTag" => access.aud_tag = reader.texts(node, path).unwrap_or_default(),
            "environment" => access.environment = reader.text(node, path).unwrap_or_default(),
            "required" => access.required = reader.boolean(node, path).unwrap_or_default(),
            _ => access.team_name = reader.text(node, path).unwrap_or_default(),
        }
    }
    if access.required && !access.aud_tag.is_empty() && access.team_name.is_empty() {
        let message = "`teamName` is missing: without it nobody can have issued a token for `audTag`";
        reader.report.mistake(node.place, path, message);
    }
    Some(access)
}

fn ip_rules(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<IpRules> {
    let items = reader.list(node, path)?;
    let rules: Vec<_> =
        items.iter().enumerate().filter_map(|(at, item)| ip_rule(reader, item, &format!("{path}[{at}]"))).collect();
    // As with cloudflared an empty list says nothing, so that it inherits.
    (!rules.is_empty()).then_some(IpRules(rules))
}

fn ip_rule(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<IpRule> {
    let mut prefix = None;
    let mut ports = Vec::new();
    let mut allow = false;
    if matches!(node.value, Value::Null) {
        reader.report.mistake(node.place, path, "must be a mapping with a `prefix`");
        return None;
    }
    for entry in reader.map(node, path)? {
        let Some(key) = reader.known(entry, path, &["allow", "ports", "prefix"]) else {
            continue;
        };
        let path = &join(path, key);
        let node = &entry.node;
        match key {
            "allow" => allow = reader.boolean(node, path).unwrap_or_default(),
            "ports" => {
                for (at, item) in reader.list(node, path).unwrap_or_default().iter().enumerate() {
                    let port = reader.integer(item, &format!("{path}[{at}]"), 1..=65_535);
                    // A port that could not be read must not leave "all ports" behind; the mistake
                    // just reported refuses the configuration as a whole.
                    ports.extend(port.and_then(|port| u16::try_from(port).ok()));
                }
            }
            _ => {
                let text = reader.text(node, path)?;
                prefix = Prefix::parse(&text);
                if prefix.is_none() {
                    let message = "must be an address block such as 10.0.0.0/8 or fc00::/7";
                    reader.report.mistake(node.place, path, message);
                    return None;
                }
            }
        }
    }
    if prefix.is_none() {
        reader.report.mistake(node.place, path, "`prefix` is missing");
    }
    Some(IpRule { prefix: prefix?, ports, allow })
}

/// `warp-routing`: private-network traffic, which has no rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarpRouting {
    /// Limit for a dial.
    pub connect_timeout: Duration,
    /// Period of TCP keep-alives.
    pub tcp_keep_alive: Duration,
    /// Flows at a time in the whole process; 0 is without limit.
    pub max_active_flows: u64,
}

impl Default for WarpRouting {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(5), tcp_keep_alive: Duration::from_secs(30), max_active_flows: 0 }
    }
}

impl WarpRouting {
    /// The local `--max-active-flows` wins over what the edge pushes.
    #[must_use]
    pub fn limited(mut self, local: Option<u64>) -> Self {
        self.max_active_flows = local.unwrap_or(self.max_active_flows);
        self
    }

    pub(crate) fn read(reader: &mut Reader<'_>, node: &Node, path: &str) -> Self {
        let mut routing = Self::default();
        for entry in reader.map(node, path).unwrap_or_default() {
            let known = ["connectTimeout", "enabled", "maxActiveFlows", "tcpKeepAlive"];
            // Not one of adit's sections: a key that cloudflared ignored goes on being ignored.
            let lenient = std::mem::replace(&mut reader.lenient, true);
            let key = reader.known(entry, path, &known);
            reader.lenient = lenient;
            let Some(key) = key else { continue };
            let path = &join(path, key);
            let node = &entry.node;
            match key {
                "connectTimeout" => {
                    routing.connect_timeout = reader.duration(node, path).unwrap_or(routing.connect_timeout);
                }
                "enabled" if reader.dialect == Dialect::Pushed => reader.report.ignored += 1,
                "enabled" => reader.report.warning(entry.place, path, "has no effect"),
                "maxActiveFlows" => {
                    let flows = reader.integer(node, path, 0..=i64::MAX).unwrap_or(0);
                    routing.max_active_flows = flows.unsigned_abs();
                }
                _ => {
                    routing.tcp_keep_alive = reader.duration(node, path).unwrap_or(routing.tcp_keep_alive);
                }
            }
        }
        routing
    }
}
