//! `remoteConfig`: whether the edge's rules are welcome.

use std::fmt;

use super::allowlist::{Allowlist, ServicePattern};
use super::reader::Reader;
use super::tree::{Node, Value};

/// What happens to configurations that the edge pushes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RemoteConfigMode {
    /// They replace the file's rules, as with cloudflared.
    #[default]
    Accept,
    /// They are refused.
    Ignore,
    /// They replace the file's rules if each of their services is on this list.
    Allowlist(Allowlist),
}

impl RemoteConfigMode {
    pub(crate) fn allowlist(&self) -> Option<&Allowlist> {
        match self {
            Self::Allowlist(list) => Some(list),
            Self::Accept | Self::Ignore => None,
        }
    }
}

impl fmt::Display for RemoteConfigMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Ignore => "ignore",
            Self::Allowlist(_) => "allowlist",
        })
    }
}

/// Reads `remoteConfig`. What cannot be read lets nothing through.
pub(crate) fn read(reader: &mut Reader<'_>, node: &Node) -> RemoteConfigMode {
    let path = "remoteConfig";
    const FORM: &str = "an allowlist is { mode: allowlist, services: [\"https://*.my-ns.svc:*\"] }";
    if !matches!(node.value, Value::Map(_)) {
        return match reader.text(node, path).as_deref() {
            Some("accept") => RemoteConfigMode::Accept,
            None => {
                // Another kind of value is reported already.
                if matches!(node.value, Value::Null) {
                    let message = format!("must be accept or ignore, this is nothing; {FORM}");
                    reader.report.mistake(node.place, path, message);
                }
                RemoteConfigMode::Ignore
            }
            Some("ignore") => RemoteConfigMode::Ignore,
            Some("allowlist") => {
                reader.report.mistake(node.place, path, FORM);
                RemoteConfigMode::Ignore
            }
            Some(_) => {
                reader.report.mistake(node.place, path, format!("must be accept or ignore; {FORM}"));
                RemoteConfigMode::Ignore
            }
        };
    }
    let (mut mode, mut services) = (None, None);
    // Of a section of adit's own no unknown key is let through, `--lenient` or not.
    let lenient = std::mem::replace(&mut reader.lenient, false);
    for entry in reader.map(node, path).unwrap_or_default() {
        match reader.known(entry, path, &["mode", "services"]) {
            Some("mode") => mode = reader.text(&entry.node, "remoteConfig.mode").map(|text| (entry.node.place, text)),
            Some(_) => services = Some(&entry.node),
            None => {}
        }
    }
    reader.lenient = lenient;
    let list = services.map(|node| (node, list(reader, node)));
    match (mode.as_ref().map(|(place, text)| (*place, text.as_str())), list) {
        (Some((_, "allowlist")), Some((_, list))) => return RemoteConfigMode::Allowlist(list),
        (Some((_, "allowlist")), None) => reader.report.mistake(node.place, path, "an allowlist needs `services`"),
        (Some((_, mode @ ("accept" | "ignore"))), Some((node, _))) => {
            reader.report.mistake(node.place, "remoteConfig.services", format!("has no effect with `mode: {mode}`"));
        }
        (Some((_, "accept")), None) => return RemoteConfigMode::Accept,
        (Some((_, "ignore")), None) => return RemoteConfigMode::Ignore,
        (Some((place, _)), _) => {
            reader.report.mistake(place, "remoteConfig.mode", "must be accept, ignore or allowlist")
        }
        (None, _) => reader.report.mistake(node.place, path, format!("needs `mode`; {FORM}")),
    }
    RemoteConfigMode::Ignore
}

fn list(reader: &mut Reader<'_>, node: &Node) -> Allowlist {
    let path = "remoteConfig.services";
    let mut patterns = Vec::new();
    for (position, item) in reader.list(node, path).unwrap_or_default().iter().enumerate() {
        let path = format!("{path}[{position}]");
        let Some(text) = reader.text(item, &path) else {
            if matches!(item.value, Value::Null) {
                reader.report.mistake(item.place, &path, "this entry is empty");
            }
            continue;
        };
        match ServicePattern::parse(&text) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => reader.report.mistake(item.place, &path, error.to_string()),
        }
    }
    Allowlist(patterns)
}
