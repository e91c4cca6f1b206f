//! Rules as JSON: for the edge, and for people who ask the admin address.

use serde_json::{Map, Value, json};

use super::duration::seconds;
use super::health;
use super::inner_hop::{self, InnerHop};
use super::ip_rules::IpRules;
use super::limits::Forwarded;
use super::origin::{Access, OriginOptions, ProxyType, WarpRouting};
use super::rules::{Ingress, Rule};

/// The local configuration as pushed to the edge (protocol.md section 5.5): the merged options of
/// each rule, but only those that are not the defaults. Without rules it is what cloudflared sends
/// for its built-in 503.
///
/// Of a list of services the first one is told, and adit's own keys are not: an edge that knows only
/// cloudflared's rules reads a `service` as a text, and would refuse the whole otherwise.
pub fn local_push(ingress: Option<&Ingress>, warp_routing: &WarpRouting, reported: &[(String, String)]) -> String {
    push(ingress, warp_routing, reported, pushed_rule)
}

/// Rules for a peer that is known to read adit's own keys: [`local_push`] with them and with lists.
pub fn adit_push(ingress: &Ingress, warp_routing: &WarpRouting) -> String {
    push(Some(ingress), warp_routing, &[], |rule| {
        let mut out = pushed_rule(rule);
        if !rule.others.is_empty() {
            out["service"] = services(rule);
        }
        own_keys(rule, &mut out);
        out
    })
}

fn push(
    ingress: Option<&Ingress>,
    warp_routing: &WarpRouting,
    reported: &[(String, String)],
    rule: fn(&Rule) -> Value,
) -> String {
    let mut push = Map::new();
    if !reported.is_empty() {
        let flags = reported.iter().map(|(name, value)| (name.clone(), value.clone().into()));
        push.insert("__configuration_flags".to_owned(), Value::Object(flags.collect()));
    }
    let rules = match ingress {
        Some(ingress) => ingress.rules.iter().map(rule).collect(),
        None => vec![json!({
            "service": "http_status:503",
            "originRequest": {
                "connectTimeout": 0, "tlsTimeout": 0, "tcpKeepAlive": 0, "keepAliveConnections": 0,
                "keepAliveTimeout": 0, "proxyAddress": "",
            },
        })],
    };
    push.insert("ingress".to_owned(), rules.into());
    push.insert("warp-routing".to_owned(), Value::Object(changed_routing(warp_routing)));
    Value::Object(push).to_string()
}

/// The keys that only adit has, where they are not the defaults.
fn own_keys(rule: &Rule, out: &mut Value) {
    if let Some(health) = &rule.health {
        out["health"] = health::exported(health, !rule.others.is_empty());
    }
    if let Some(limits) = rule.limits.json() {
        out["limits"] = limits;
    }
    if rule.forwarded != Forwarded::default() {
        out["forwarded"] = rule.forwarded.as_str().into();
    }
    if let Some(version) = rule.origin.proxy_protocol {
        out["proxyProtocol"] = version.as_str().into();
    }
}

/// The `/config` document (protocol.md section 10.2): every option of every rule. The version is -1
/// until the edge pushed one. No secret can be in it: services have no user information, and of what is proven on the
/// inner hop only names are known.
pub fn config_view(version: i32, ingress: &Ingress, warp_routing: &WarpRouting, inner_hop: &InnerHop) -> String {
    let rules: Vec<Value> = ingress
        .rules
        .iter()
        .map(|rule| {
            let mut shown = json!({
                "hostname": hostname(rule),
                "path": rule.path.as_ref().map(|path| path.as_str()),
                "service": rule.spelling,
                "Handlers": null,
                "originRequest": every_option(&rule.origin),
            });
            // Beside cloudflared's keys, whose types stay: its readers ignore what they do not know.
            if !rule.others.is_empty() {
                shown["services"] = services(rule);
            }
            own_keys(rule, &mut shown);
            if let Some(hops) = inner_hop::of_rule(rule) {
                shown["innerHop"] = hops;
            }
            shown
        })
        .collect();
    let mut view = json!({
        "version": version,
        "config": {
            "ingress": rules,
            "warp-routing": changed_routing(warp_routing),
            "originRequest": every_option(&ingress.defaults),
        },
    });
    if let Some(inner_hop) = inner_hop::view(inner_hop) {
        view["config"]["innerHop"] = inner_hop;
    }
    view.to_string()
}

fn hostname(rule: &Rule) -> &str {
    rule.hostname.as_ref().map_or("", |hostname| hostname.as_str())
}

fn services(rule: &Rule) -> Value {
    rule.services().map(|(_, spelling)| spelling).collect()
}

fn pushed_rule(rule: &Rule) -> Value {
    let mut out = Map::new();
    if rule.hostname.is_some() {
        out.insert("hostname".to_owned(), hostname(rule).into());
    }
    if let Some(path) = &rule.path {
        out.insert("path".to_owned(), path.as_str().into());
    }
    out.insert("service".to_owned(), rule.spelling.clone().into());
    out.insert("originRequest".to_owned(), Value::Object(changed_options(&rule.origin)));
    Value::Object(out)
}

/// The options that are not the defaults.
pub(crate) fn changed_options(options: &OriginOptions) -> Map<String, Value> {
    let Value::Object(mut given) = every_option(options) else {
        return Map::new();
    };
    if let Value::Object(defaults) = every_option(&OriginOptions::default()) {
        given.retain(|key, value| defaults.get(key) != Some(value));
    }
    given
}

fn changed_routing(routing: &WarpRouting) -> Map<String, Value> {
    let defaults = WarpRouting::default();
    let mut out = Map::new();
    if routing.connect_timeout != defaults.connect_timeout {
        out.insert("connectTimeout".to_owned(), seconds(routing.connect_timeout));
    }
    if routing.max_active_flows != defaults.max_active_flows {
        out.insert("maxActiveFlows".to_owned(), routing.max_active_flows.into());
    }
    if routing.tcp_keep_alive != defaults.tcp_keep_alive {
        out.insert("tcpKeepAlive".to_owned(), seconds(routing.tcp_keep_alive));
    }
    out
}

/// Every option under its name in the configuration; durations in seconds.
pub(crate) fn every_option(options: &OriginOptions) -> Value {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    json!({
        "connectTimeout": seconds(options.connect_timeout),
        "tlsTimeout": seconds(options.tls_timeout),
        "tcpKeepAlive": seconds(options.tcp_keep_alive),
        "noHappyEyeballs": options.no_happy_eyeballs,
        "keepAliveTimeout": seconds(options.keep_alive_timeout),
        "keepAliveConnections": options.keep_alive_connections,
        "httpHostHeader": text(&options.http_host_header),
        "originServerName": text(&options.origin_server_name),
        "matchSNItoHost": options.match_sni_to_host,
        "caPool": options.ca_pool.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        "noTLSVerify": options.no_tls_verify,
        "disableChunkedEncoding": options.disable_chunked_encoding,
        "bastionMode": options.bastion_mode,
        "proxyAddress": options.proxy_address,
        "proxyPort": options.proxy_port,
        "proxyType": match options.proxy_type {
            ProxyType::Direct => "",
            ProxyType::Socks => "socks",
        },
        "ipRules": ip_rules(&options.ip_rules),
        "http2Origin": options.http2_origin,
        "access": access(&options.access),
    })
}

fn ip_rules(rules: &IpRules) -> Value {
    if rules.0.is_empty() {
        return Value::Null;
    }
    let rule = |rule: &super::ip_rules::IpRule| {
        let ports = (!rule.ports.is_empty()).then_some(&rule.ports);
        json!({ "prefix": rule.prefix.as_str(), "ports": ports, "allow": rule.allow })
    };
    rules.0.iter().map(rule).collect()
}

fn access(access: &Access) -> Value {
    let mut out = Map::new();
    if access.required {
        out.insert("required".to_owned(), true.into());
    }
    out.insert("teamName".to_owned(), access.team_name.clone().into());
    let audiences = (!access.aud_tag.is_empty()).then_some(&access.aud_tag);
    out.insert("audTag".to_owned(), json!(audiences));
    if !access.environment.is_empty() {
        out.insert("environment".to_owned(), access.environment.clone().into());
    }
    Value::Object(out)
}
