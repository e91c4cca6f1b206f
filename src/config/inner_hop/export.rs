//! The inner hop for people who ask `/config`: names of secrets, never what is in them.

use serde_json::{Map, Value, json};

use super::{Allow, Callers, Hop, HopEntry, Hops, IdentitySource, InnerHop};
use crate::config::SecretRef;
use crate::config::rules::Rule;

/// The section at the top, with what became of the inline ones; `None` without any of it.
pub(crate) fn view(inner_hop: &InnerHop) -> Option<Value> {
    if !inner_hop.strips {
        return None;
    }
    let mut out = inner_hop.top.as_deref().map(hop).unwrap_or_default();
    if inner_hop.top.is_some() {
        out.insert("privateNetwork".into(), if inner_hop.private_network { "allow" } else { "refuse" }.into());
    }
    let identities: Map<_, _> =
        inner_hop.identities.iter().map(|(name, source)| (name.clone(), identity(source))).collect();
    if !identities.is_empty() {
        out.insert("identities".into(), identities.into());
    }
    for (key, entries) in [("rules", &inner_hop.entries), ("inline", &inner_hop.inline)] {
        if !entries.is_empty() {
            out.insert(key.into(), entries.iter().map(entry).collect());
        }
    }
    Some(out.into())
}

/// What holds on a rule: one hop, or several by host. `None` where nothing is said of any.
pub(crate) fn of_rule(rule: &Rule) -> Option<Value> {
    let Hops { choices, otherwise } = &rule.hops;
    if choices.is_empty() {
        return match otherwise {
            Some(hop) if **hop == Hop::default() => None,
            Some(hop) => Some(self::hop(hop).into()),
            None => Some("refused".into()),
        };
    }
    let mut hops: Vec<Value> = choices
        .iter()
        .map(|(hostname, hop)| {
            let mut out = self::hop(hop);
            out.insert("hostname".into(), json!(hostname.as_ref().map(|hostname| hostname.as_str())));
            out.into()
        })
        .collect();
    hops.push(otherwise.as_deref().map_or_else(|| "refused".into(), |hop| self::hop(hop).into()));
    Some(hops.into())
}

fn entry(entry: &HopEntry) -> Value {
    let mut out = hop(&entry.hop);
    if let Some(hostname) = &entry.hostname {
        out.insert("hostname".into(), hostname.as_str().into());
    }
    if !entry.services.is_empty() {
        out.insert("services".into(), entry.services.iter().map(|pattern| pattern.to_string()).collect());
    }
    out.into()
}

fn hop(hop: &Hop) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("mutualTls".into(), hop.mode.as_str().into());
    if let Some(identity) = &hop.present {
        out.insert("present".into(), identity.name.clone().into());
    }
    if !hop.expect.is_empty() {
        out.insert("expect".into(), hop.expect.iter().map(ToString::to_string).collect());
    }
    if let Some(trust) = &hop.origin_trust {
        out.insert("originTrust".into(), trust.iter().map(reference).collect());
    }
    if let Some(callers) = &hop.callers {
        out.insert("callers".into(), self::callers(callers));
    }
    out
}

fn callers(callers: &Callers) -> Value {
    let lists = [
        ("trustAnchors", &callers.trust_anchors),
        ("intermediates", &callers.intermediates),
        ("allowlisted", &callers.allowlisted),
        ("crls", &callers.crls),
    ];
    let mut out = Map::new();
    for (key, list) in lists {
        if !list.is_empty() {
            out.insert(key.into(), list.iter().map(reference).collect());
        }
    }
    out.insert("allowInvalidOrMissingCert".into(), callers.allow_invalid_or_missing.into());
    out.insert("relayedBy".into(), callers.relayed_by.as_str().into());
    out.insert("headers".into(), callers.headers.iter().map(|form| form.as_str()).collect());
    out.insert("headerPrefix".into(), callers.header_prefix.clone().into());
    if let Some(list) = &callers.allow {
        out.insert("allow".into(), list.iter().map(allow).collect());
    }
    out.into()
}

fn allow(allow: &Allow) -> Value {
    let mut out = Map::new();
    let texts = [
        ("id", allow.id.as_ref().map(|id| id.as_str().to_owned())),
        ("dns", allow.dns.as_ref().map(|name| name.as_str().to_owned())),
        ("fingerprint", allow.fingerprint.map(|digest| digest.to_string())),
        ("issuer", allow.issuer.map(|digest| digest.to_string())),
    ];
    out.extend(texts.into_iter().filter_map(|(key, text)| Some((key.into(), text?.into()))));
    if let Some(methods) = &allow.methods {
        out.insert("methods".into(), methods.iter().map(|method| method.as_str()).collect());
    }
    if let Some(paths) = &allow.paths {
        out.insert("paths".into(), paths.iter().map(String::as_str).collect());
    }
    out.into()
}

fn identity(source: &IdentitySource) -> Value {
    let mut out = json!({ "certificate": reference(&source.certificate) });
    if let Some(key) = &source.key {
        out["key"] = reference(key);
    }
    out
}

fn reference(reference: &SecretRef) -> Value {
    match reference {
        SecretRef::Credential(name) => json!({ "credential": name }),
        SecretRef::Env(name) => json!({ "env": name }),
        SecretRef::File(path) => path.display().to_string().into(),
        SecretRef::FileKey { file, key } => json!({ "file": file.display().to_string(), "key": key }),
    }
}
