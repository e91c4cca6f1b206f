//! `allow`: who may do what.

use http::Method;

use super::Allow;
use crate::config::NormalPath;
use crate::config::reader::{Reader, join};
use crate::config::tree::{Node, Value};

const KEYS: [&str; 6] = ["dns", "fingerprint", "id", "issuer", "methods", "paths"];

pub(super) fn read(reader: &mut Reader<'_>, node: &Node, path: &str) -> Vec<Allow> {
    let items = reader.list(node, path).unwrap_or_default();
    items.iter().enumerate().map(|(at, item)| entry(reader, item, &format!("{path}[{at}]"))).collect()
}

fn entry(reader: &mut Reader<'_>, node: &Node, path: &str) -> Allow {
    let mut allow = Allow::default();
    if !reader.filled(node, node.place, path) {
        return allow;
    }
    let before = reader.report.mistakes.len();
    for entry in reader.map(node, path).unwrap_or_default() {
        let Some(key) = reader.known(entry, path, &KEYS) else { continue };
        let (path, node) = (&join(path, key), &entry.node);
        if !reader.filled(node, entry.place, path) {
            continue;
        }
        match key {
            "dns" => allow.dns = reader.parsed(node, path),
            "fingerprint" => allow.fingerprint = reader.parsed(node, path),
            "id" => allow.id = reader.parsed(node, path),
            "issuer" => allow.issuer = reader.parsed(node, path),
            "methods" => allow.methods = some(reader, node, path, method),
            _ => allow.paths = some(reader, node, path, start),
        }
    }
    if reader.report.mistakes.len() == before && allow == Allow::default() {
        let message = format!("says nothing, so that it would allow everything; it has {}", KEYS.join(", "));
        reader.report.mistake(node.place, path, message);
    }
    allow
}

/// The texts of a list that must say something: an empty one would never match.
fn some<T>(
    reader: &mut Reader<'_>,
    node: &Node,
    path: &str,
    parse: fn(&str) -> Result<T, &'static str>,
) -> Option<Vec<T>> {
    let texts = reader.texts(node, path)?;
    if texts.is_empty() {
        reader.report.mistake(node.place, path, "an empty list matches nothing; leave the key out for all");
    }
    let places = match &node.value {
        Value::List(items) => items.iter().map(|item| item.place).collect(),
        _ => Vec::new(),
    };
    let parsed = texts.iter().zip(places).enumerate().filter_map(|(at, (text, place))| match parse(text) {
        Ok(value) => Some(value),
        Err(message) => {
            reader.report.mistake(place, &format!("{path}[{at}]"), message);
            None
        }
    });
    Some(parsed.collect())
}

/// Methods are told apart by letter case (RFC 9110 section 9.1), so that `get` would never match.
fn method(text: &str) -> Result<Method, &'static str> {
    let method = Method::from_bytes(text.as_bytes()).map_err(|_| "is no method")?;
    if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err("methods are told apart by letter case; they are written in capitals");
    }
    Ok(method)
}

/// A prefix of paths; one that is not in their normal form would never match.
fn start(text: &str) -> Result<String, &'static str> {
    if !NormalPath::is_prefix(text) {
        return Err("is no beginning of a path in its normal form: a `/` first, escapes decoded, no `.`, `..`, `//`, \
                    `;`, `\\`, `?`, `#` and `%`");
    }
    Ok(text.to_owned())
}
