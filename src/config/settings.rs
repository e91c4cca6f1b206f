//! The top-level scalar keys: one table for flags, environment variables and the file, so that the
//! three cannot drift apart.

use super::duration;
use super::mistakes::{Place, Report};
pub(crate) use super::table::SETTINGS;

/// One setting under all its names.
#[derive(Debug)]
pub(crate) struct Setting {
    /// The flag's long name and the key in the file.
    pub(crate) key: &'static str,
    pub(crate) kind: Kind,
    pub(crate) role: Role,
    /// Environment variables, the first one that is set counts.
    pub(crate) env: &'static [&'static str],
    pub(crate) aliases: &'static [&'static str],
    pub(crate) short: Option<char>,
    pub(crate) help: &'static str,
}

/// What a setting holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Bool,
    Duration,
    Int(i64, i64),
    /// Several values; separated by commas in the environment.
    List(Check),
    Path,
    /// Handled apart and never put where it could be printed.
    Secret,
    Text(Check),
}

/// A condition on a text.
type Check = fn(&str) -> Result<(), String>;

/// What a setting does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Only meaningful on the command line.
    Command,
    /// Accepted so that an existing command line works; noted once.
    NoEffect,
    /// Describes the single origin used when the file has no rules.
    Origin,
    /// In force.
    Setting,
}

/// A value as given on the command line or in the environment, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    Bool(bool),
    Int(i64),
    /// A duration, in nanoseconds; at most 290 years.
    Nanos(u64),
    Text(String),
    Texts(Vec<String>),
}

// More edge addresses or tags than anybody has.
const MAX_VALUES: usize = 1_000;

impl Given {
    /// As reported to the edge.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Nanos(nanos) => {
                format!("{}s", std::time::Duration::from_nanos(*nanos).as_secs_f64())
            }
            Self::Text(text) => text.clone(),
            Self::Texts(texts) => texts.join(","),
        }
    }
}

impl Setting {
    /// Checks texts from a flag (one per occurrence) or from a variable. An empty text is as good
    /// as none: manifests set variables to nothing when they mean that.
    pub(crate) fn given(&self, texts: &[String], report: &mut Report, name: &str) -> Option<Given> {
        let last = texts.last()?;
        let outcome = match self.kind {
            // `--url ""` and `--protocol ""` are mistakes of their own; elsewhere nothing means nothing.
            _ if texts.iter().all(String::is_empty) && self.key != "url" && name != "--protocol" => return None,
            Kind::Bool => truth(last).map(Given::Bool).ok_or_else(|| "must be true or false".to_owned()),
            Kind::Duration => duration::parse(last)
                .map(|duration| Given::Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
                .map_err(|error| error.to_string()),
            Kind::Int(low, high) => match last.parse::<i64>() {
                Ok(number) if (low..=high).contains(&number) => Ok(Given::Int(number)),
                Ok(_) => Err(format!("must be {low} to {high}")),
                Err(_) => Err("must be a whole number".to_owned()),
            },
            Kind::List(check) => {
                let texts: Vec<String> = texts
                    .iter()
                    .flat_map(|text| text.split(','))
                    .map(|text| text.trim().to_owned())
                    .filter(|text| !text.is_empty())
                    .collect();
                if texts.len() > MAX_VALUES {
                    Err(format!("more than {MAX_VALUES} values"))
                } else if self.key == "dns-resolver-addrs" && texts.len() > 10 {
                    Err("more than 10 addresses".to_owned())
                } else {
                    let checked = texts.iter().try_for_each(|text| check(text));
                    checked.map(|()| Given::Texts(texts))
                }
            }
            Kind::Path | Kind::Secret => Ok(Given::Text(last.clone())),
            Kind::Text(check) => check(last).map(|()| Given::Text(last.clone())),
        };
        outcome.map_err(|message| report.mistake(Place::default(), name, message)).ok()
    }
}

/// The setting of that name, aliases included.
pub(crate) fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key || setting.aliases.contains(&key))
}

/// Go's `strconv.ParseBool`, which cloudflared's flags go through.
pub(crate) fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
