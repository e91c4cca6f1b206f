//! What only adit's rules say about a request: its limits, what the service hears of the visitor's address, and the
//! PROXY header.

use std::time::Duration;

use serde_json::{Map, Value as Json};

use super::duration;
use super::reader::{Dialect, Reader, join};
use super::tree::{Node, Value};

/// `limits`: all off unless given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// From the last byte of the request to the head of the answer.
    pub header_timeout: Option<Duration>,
    /// From the first byte of the request to the last one of the answer.
    pub request_timeout: Option<Duration>,
    /// Requests of the rule at a time, streams and WebSockets included.
    pub max_concurrent: Option<u64>,
    /// Bytes of a request's body.
    pub max_body_bytes: Option<u64>,
}

/// `forwarded`: what becomes of `X-Forwarded-*`, `Forwarded` (RFC 7239) and `X-Real-IP`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarded {
    /// As they came; what the edge and the visitor said reaches the service.
    #[default]
    Keep,
    /// None of them.
    Strip,
    /// As they came, with the visitor's address at the end.
    Append,
    /// What the edge knows, and nothing that the visitor sent.
    Replace,
}

/// `proxyProtocol`: the header before the first byte of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Every key of `limits`.
pub(crate) const KEYS: [&str; 4] = ["headerTimeout", "maxBodyBytes", "maxConcurrent", "requestTimeout"];

const WORDS: [(&str, Forwarded); 4] = [
    ("keep", Forwarded::Keep),
    ("strip", Forwarded::Strip),
    ("append", Forwarded::Append),
    ("replace", Forwarded::Replace),
];

const VERSIONS: [(&str, ProxyProtocol); 2] = [("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)];

impl Limits {
    /// These, and where they say nothing the inherited ones.
    #[must_use]
    pub fn over(self, inherited: Self) -> Self {
        Self {
            header_timeout: self.header_timeout.or(inherited.header_timeout),
            request_timeout: self.request_timeout.or(inherited.request_timeout),
            max_concurrent: self.max_concurrent.or(inherited.max_concurrent),
            max_body_bytes: self.max_body_bytes.or(inherited.max_body_bytes),
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>, node: &Node, path: &str) -> Self {
        let mut limits = Self::default();
        // A limit that is misspelt and ignored is no limit, so `--lenient` does not reach here.
        let lenient = std::mem::replace(&mut reader.lenient, false);
        for entry in reader.map(node, path).unwrap_or_default() {
            let Some(key) = reader.known(entry, path, &KEYS) else { continue };
            let path = &join(path, key);
            let node = &entry.node;
            match key {
                "headerTimeout" => limits.header_timeout = time(reader, node, path),
                "maxBodyBytes" => {
                    let size = reader.size(node, path);
                    limits.max_body_bytes = above_zero(reader, node, path, size);
                }
                "maxConcurrent" => {
                    let count = reader.integer(node, path, 0..=1_000_000_000).map(i64::unsigned_abs);
                    limits.max_concurrent = above_zero(reader, node, path, count);
                }
                _ => limits.request_timeout = time(reader, node, path),
            }
        }
        reader.lenient = lenient;
        limits
    }

    /// Under their names in the configuration, those that are on.
    pub(crate) fn json(self) -> Option<Json> {
        let time = |time| Json::from(duration::text(time));
        let values = [
            ("headerTimeout", self.header_timeout.map(time)),
            ("requestTimeout", self.request_timeout.map(time)),
            ("maxConcurrent", self.max_concurrent.map(Json::from)),
            ("maxBodyBytes", self.max_body_bytes.map(Json::from)),
        ];
        let on: Map<_, _> = values.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        (!on.is_empty()).then_some(Json::Object(on))
    }
}

impl Forwarded {
    pub(crate) fn read(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Self> {
        reader.word(node, path, &WORDS, "keep, strip, append or replace")
    }

    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        WORDS.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }
}

impl ProxyProtocol {
    pub(crate) fn read(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Self> {
        reader.word(node, path, &VERSIONS, "v1 or v2")
    }

    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        VERSIONS.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }
}

fn time(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Duration> {
    let time = reader.own_duration(node, path)?;
    // Shorter ones are units mistaken, and the timer's own grain is 1 ms.
    if time < Duration::from_millis(1) {
        reader.report.mistake(node.place, path, "must be at least 1ms; leave the key out for no limit");
        return None;
    }
    Some(time)
}

/// Nothing is a limit of nothing: 0 would be read as "none" by some and as "off" by others.
fn above_zero(reader: &mut Reader<'_>, node: &Node, path: &str, value: Option<u64>) -> Option<u64> {
    if value == Some(0) {
        reader.report.mistake(node.place, path, "must be above 0; leave the key out for no limit");
    }
    value.filter(|value| *value > 0)
}

/// Bytes: a number, or one with a unit (`KiB`, `MiB`, `GiB` are powers of 1024, `kB`, `MB`, `GB` of 1000).
fn bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim_start_matches(' ') {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

impl Reader<'_> {
    /// A duration of adit's own sections: `d` is known, and pushed JSON may spell it as a file does.
    pub(crate) fn own_duration(&mut self, node: &Node, path: &str) -> Option<Duration> {
        let text = match (&node.value, self.dialect) {
            (Value::Plain(text) | Value::Text(text), _) => text,
            (_, Dialect::File | Dialect::Pushed) => return self.duration(node, path),
        };
        match duration::parse_with_days(text) {
            Ok(duration) => Some(duration),
            Err(error) => {
                self.report.mistake(node.place, path, error.to_string());
                None
            }
        }
    }

    /// A number of bytes.
    pub(crate) fn size(&mut self, node: &Node, path: &str) -> Option<u64> {
        let size = match &node.value {
            Value::Null => return None,
            Value::Plain(text) | Value::Text(text) | Value::Number(text) => bytes(text),
            Value::Bool(_) | Value::List(_) | Value::Map(_) => None,
        };
        if size.is_none() {
            self.report.mistake(node.place, path, "must be a number of bytes such as 1000000, 512KiB or 100MiB");
        }
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_both_kinds_and_no_fractions() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1048576", Some(1 << 20)),
            ("100MiB", Some(100 << 20)),
            ("100 MiB", Some(100 << 20)),
            ("5kB", Some(5000)),
            ("2GB", Some(2_000_000_000)),
            ("7B", Some(7)),
            ("", None),
            ("MiB", None),
            ("1.5MiB", None),
            ("-1", None),
            ("1M", None),
            ("1mib", None),
            ("99999999999GiB", None),
        ] {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn limits_are_inherited_key_by_key() {
        let own = Limits { max_concurrent: Some(1), ..Limits::default() };
        let all = Limits { max_concurrent: Some(9), max_body_bytes: Some(9), ..Limits::default() };
        assert_eq!(own.over(all), Limits { max_concurrent: Some(1), max_body_bytes: Some(9), ..Limits::default() });
    }
}
