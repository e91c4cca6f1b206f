//! Typed reading of tree nodes: one method per kind of value, each reporting its own mistakes.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::allowlist::Allowlist;
use super::duration;
use super::mistakes::{Place, Report, nearest};
use super::service::Service;
use super::tree::{Entry, Node, Value};

/// Which of the two spellings of the same configuration is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// A file: keys match exactly, durations carry units, unknown keys are reported.
    File,
    /// What the edge pushes (protocol.md section 5.6): keys match in any letter case, durations are
    /// whole seconds, unknown keys are counted.
    Pushed,
}

/// A report, and the rules of the dialect.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) report: &'a mut Report,
    pub(crate) dialect: Dialect,
    /// Unknown keys are warnings.
    pub(crate) lenient: bool,
    /// Where rules may lead; `None`: anywhere.
    pub(crate) allowed: Option<&'a Allowlist>,
    /// Whether adit's own keys of a rule are read: in a file, and from an edge that is known to mean them.
    pub(crate) own_keys: bool,
}

impl Reader<'_> {
    /// Reports a service that an allowlist does not have.
    pub(crate) fn admit(&mut self, service: &Service, place: Place, path: &str) {
        if self.allowed.is_some_and(|allowed| !allowed.allows(service)) {
            let message = format!("{service} is not among the services that remoteConfig allows");
            self.report.disallowed(place, path, message);
        }
    }

    /// Reports what a service cannot be held to.
    pub(crate) fn floor(&mut self, place: Place, path: &str, message: &str) {
        self.report.disallowed(place, path, message);
    }

    /// The known key that an entry means; what is unknown is reported or counted.
    pub(crate) fn known(&mut self, entry: &Entry, path: &str, known: &[&'static str]) -> Option<&'static str> {
        let found = match self.dialect {
            Dialect::File => known.iter().find(|name| **name == entry.key),
            Dialect::Pushed => known.iter().find(|name| name.eq_ignore_ascii_case(&entry.key)),
        };
        if let Some(found) = found {
            return Some(found);
        }
        let path = join(path, &entry.key);
        match self.dialect {
            Dialect::Pushed => self.report.ignored += 1,
            Dialect::File => {
                let full = self.report.full();
                let nearest = if full { None } else { nearest(&entry.key, known.iter().copied()) };
                if self.lenient {
                    self.report.warning_near(entry.place, &path, "unknown key, ignored", nearest);
                } else {
                    self.report.unknown(entry.place, &path, nearest);
                }
            }
        }
        None
    }

    pub(crate) fn map<'n>(&mut self, node: &'n Node, path: &str) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Map(entries) => Some(entries),
            Value::Null => None,
            other => self.wrong(node, path, "a mapping", other),
        }
    }

    pub(crate) fn list<'n>(&mut self, node: &'n Node, path: &str) -> Option<&'n [Node]> {
        match &node.value {
            Value::List(items) => Some(items),
            Value::Null => None,
            other => self.wrong(node, path, "a list", other),
        }
    }

    pub(crate) fn text(&mut self, node: &Node, path: &str) -> Option<String> {
        match &node.value {
            Value::Plain(text) | Value::Text(text) => Some(text.clone()),
            Value::Null => None,
            other => self.wrong(node, path, "a text", other),
        }
    }

    pub(crate) fn boolean(&mut self, node: &Node, path: &str) -> Option<bool> {
        match &node.value {
            Value::Bool(value) => Some(*value),
            Value::Null => None,
            Value::Plain(text) if truth(text).is_some() => truth(text),
            Value::Text(text) if truth(text).is_some() => {
                let message = "this is a text because of its quotes; write true or false without";
                self.report.mistake(node.place, path, message);
                None
            }
            other => self.wrong(node, path, "true or false", other),
        }
    }

    pub(crate) fn integer(&mut self, node: &Node, path: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let text = match &node.value {
            Value::Plain(text) | Value::Number(text) => text,
            Value::Null => return None,
            other => return self.wrong(node, path, "a whole number", other),
        };
        match text.parse::<i64>() {
            Ok(number) if range.contains(&number) => Some(number),
            Ok(_) => {
                let message = format!("must be {} to {}", range.start(), range.end());
                self.report.mistake(node.place, path, message);
                None
            }
            Err(_) => self.wrong(node, path, "a whole number", &node.value),
        }
    }

    pub(crate) fn duration(&mut self, node: &Node, path: &str) -> Option<Duration> {
        let parsed = match (&node.value, self.dialect) {
            (Value::Null, _) => return None,
            (Value::Plain(text) | Value::Text(text), Dialect::File) => duration::parse(text),
            (Value::Text(text), Dialect::Pushed) => duration::parse(text),
            // Other writers of rules than the dashboard have them with fractions, or as the file does.
            (Value::Number(text), Dialect::Pushed) => match (text.parse::<i64>(), text.parse::<f64>()) {
                (Ok(..0), _) => Err(duration::DurationError::Negative),
                (_, Ok(..0.0)) => Err(duration::DurationError::Negative),
                (Ok(seconds), _) if seconds > i64::MAX / 1_000_000_000 => Err(duration::DurationError::TooLong),
                (Ok(seconds), _) => Ok(Duration::from_secs(seconds.unsigned_abs())),
                (_, Ok(seconds)) if seconds > 9.2e9 => Err(duration::DurationError::TooLong),
                (_, Ok(seconds)) => {
                    Duration::try_from_secs_f64(seconds).map_err(|_| duration::DurationError::NotDuration)
                }
                _ => return self.wrong(node, path, "seconds", &node.value),
            },
            (other, Dialect::File) => {
                return self.wrong(node, path, "a duration such as 30s", other);
            }
            (other, Dialect::Pushed) => {
                return self.wrong(node, path, "seconds", other);
            }
        };
        match parsed {
            Ok(duration) => Some(duration),
            Err(error) => {
                self.report.mistake(node.place, path, error.to_string());
                None
            }
        }
    }

    pub(crate) fn texts(&mut self, node: &Node, path: &str) -> Option<Vec<String>> {
        let items = self.list(node, path)?;
        let texts = items.iter().enumerate().map(|(at, item)| {
            let path = format!("{path}[{at}]");
            let text = self.text(item, &path);
            if matches!(item.value, Value::Null) {
                self.report.mistake(item.place, &path, "must be a text, this is nothing");
            }
            text
        });
        let texts: Vec<_> = texts.collect();
        texts.into_iter().collect()
    }

    /// Whether there is a value at all. In sections that decide what is let through, a key with nothing behind it is
    /// not one that was left out: somebody may have taken away the list that stood there.
    /// Nothing has no place of its own: `place` is its key's.
    pub(crate) fn filled(&mut self, node: &Node, place: Place, path: &str) -> bool {
        let nothing = matches!(node.value, Value::Null);
        if nothing {
            self.report.mistake(place, path, "there is nothing here; leave the key out or give it a value");
        }
        !nothing
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, node: &Node, path: &str, words: &[(&str, T)], expected: &str) -> Option<T> {
        let text = self.text(node, path)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            self.report.mistake(node.place, path, format!("must be {expected}"));
        }
        found
    }

    /// A text of a form of its own.
    pub(crate) fn parsed<T: FromStr<Err: Display>>(&mut self, node: &Node, path: &str) -> Option<T> {
        let parsed = self.text(node, path)?.parse();
        parsed.map_err(|error: T::Err| self.report.mistake(node.place, path, error.to_string())).ok()
    }

    fn wrong<T>(&mut self, node: &Node, path: &str, wanted: &str, found: &Value) -> Option<T> {
        let found = match found {
            Value::Bool(_) => "a truth value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Null => "nothing",
            Value::Number(_) => "a number of another kind",
            Value::Plain(_) | Value::Text(_) => "a text",
        };
        self.report.mistake(node.place, path, format!("must be {wanted}, this is {found}"));
        None
    }
}

/// The key path one level down.
pub(crate) fn join(path: &str, key: &str) -> String {
    // A key of any length may come from the edge; a message need not carry all of it.
    let key: String = key.chars().take(80).collect();
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// Truth values as cloudflared's YAML library reads them into a boolean field.
fn truth(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Some(false),
        _ => None,
    }
}
