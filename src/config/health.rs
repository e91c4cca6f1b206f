//! `health` of a rule: when one of its services gets no more requests, and when it gets them again.

use std::time::Duration;

use super::duration;
use super::mistakes::Place;
use super::reader::{Reader, join};
use super::service::Service;
use super::tree::Node;

/// How the services of a rule are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Active checks; `None` without a `path`.
    pub check: Option<HealthCheck>,
    /// Failed requests in a row that take a service out for a while; 0 is never, as for a service without others.
    pub eject_after: u32,
    /// How long a service that returns grows to its full share; zero is at once.
    pub slow_start: Duration,
}

/// A `GET` at intervals; an answer of 2xx or 3xx is a good one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Path and query.
    pub path: String,
    /// Between two checks of one service; spread by a tenth.
    pub interval: Duration,
    /// Limit for one check, connecting included.
    pub timeout: Duration,
    /// Failed checks in a row that make a service unhealthy.
    pub unhealthy_after: u32,
    /// Good checks in a row that make it healthy again.
    pub healthy_after: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { check: None, eject_after: 5, slow_start: Duration::ZERO }
    }
}

const KEYS: [&str; 7] = ["ejectAfter", "healthyAfter", "interval", "path", "slowStart", "timeout", "unhealthyAfter"];
/// Keys that only an active check reads.
const OF_CHECKS: [&str; 4] = ["healthyAfter", "interval", "timeout", "unhealthyAfter"];
/// Keys that choose between services.
const OF_LISTS: [&str; 2] = ["ejectAfter", "slowStart"];
/// Below it a check is a load test.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
const INTERVAL: Duration = Duration::from_secs(5);
/// Of a check that names none; a shorter interval is the limit then.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A `health` as it stands in a rule whose service is not looked at yet.
pub(crate) struct Given {
    place: Place,
    health: Health,
    /// Which of [`OF_LISTS`] it has.
    of_lists: Vec<(Place, &'static str)>,
}

/// Reads a `health`. `None`: nothing there, or a mistake was reported.
pub(crate) fn read(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Given> {
    let mut health = Health::default();
    let (place, mut of_lists) = (node.place, Vec::new());
    let (mut target, mut interval, mut timeout) = (None, None, None);
    let (mut unhealthy_after, mut healthy_after) = (None, None);
    let mut of_checks: Vec<(Place, &str)> = Vec::new();
    for entry in reader.map(node, path)? {
        let Some(key) = reader.known(entry, path, &KEYS) else { continue };
        let path = &join(path, key);
        let node = &entry.node;
        if OF_CHECKS.contains(&key) {
            of_checks.push((entry.place, key));
        }
        if OF_LISTS.contains(&key) {
            of_lists.push((entry.place, key));
        }
        match key {
            "ejectAfter" => health.eject_after = count(reader, node, path, 0).unwrap_or(health.eject_after),
            "healthyAfter" => healthy_after = count(reader, node, path, 1),
            "interval" => interval = at_least(reader, node, path, SHORTEST_INTERVAL),
            "path" => target = self::target(reader, node, path),
            "slowStart" => health.slow_start = reader.own_duration(node, path).unwrap_or_default(),
            "timeout" => timeout = at_least(reader, node, path, Duration::from_millis(1)),
            _ => unhealthy_after = count(reader, node, path, 1),
        }
    }
    match target {
        Some(path) => {
            let interval = interval.unwrap_or(INTERVAL);
            health.check = Some(HealthCheck {
                path,
                interval,
                timeout: timeout.unwrap_or_else(|| TIMEOUT.min(interval)),
                unhealthy_after: unhealthy_after.unwrap_or(3),
                healthy_after: healthy_after.unwrap_or(2),
            });
        }
        None => {
            for (place, key) in of_checks {
                let message = "there are no checks without a `path`";
                reader.report.mistake(place, &join(path, key), message);
            }
        }
    }
    Some(Given { place, health, of_lists })
}

fn count(reader: &mut Reader<'_>, node: &Node, path: &str, least: i64) -> Option<u32> {
    reader.integer(node, path, least..=1_000_000).and_then(|count| u32::try_from(count).ok())
}

fn at_least(reader: &mut Reader<'_>, node: &Node, path: &str, least: Duration) -> Option<Duration> {
    let given = reader.own_duration(node, path)?;
    if given < least {
        reader.report.mistake(node.place, path, format!("must be at least {least:?}"));
        return None;
    }
    Some(given)
}

fn target(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<String> {
    let text = reader.text(node, path)?;
    let sendable = text.starts_with('/') && text.parse::<http::uri::PathAndQuery>().is_ok() && !text.contains('#');
    if !sendable {
        reader.report.mistake(node.place, path, "must be a path such as /healthz, percent-encoded");
        return None;
    }
    Some(text)
}

/// What was given, for a service that has others beside it or none; reports what they cannot have.
pub(crate) fn of_services(
    reader: &mut Reader<'_>,
    path: &str,
    given: &Given,
    first: &Service,
    several: bool,
) -> Health {
    let Given { place, health, of_lists } = given;
    let (place, mut health) = (*place, health.clone());
    match first {
        Service::Http { .. } | Service::Unix { .. } => {}
        Service::Tcp { .. } if health.check.is_none() => {}
        Service::Tcp { .. } => {
            let message = format!("a check is an HTTP request and {first} is a stream of bytes");
            reader.report.mistake(place, &join(path, "path"), message);
        }
        other => {
            reader.report.mistake(place, path, format!("{other} is no service whose health could be known"));
            return health;
        }
    }
    if !several {
        // Nothing takes its place: it is asked whatever it is.
        (health.eject_after, health.slow_start) = (0, Duration::ZERO);
        for (place, key) in of_lists {
            reader.report.mistake(*place, &join(path, key), "has no effect on a single service");
        }
    }
    health
}

/// As it is read, of a rule with `several` services or with one.
pub(crate) fn exported(health: &Health, several: bool) -> serde_json::Value {
    let mut out = serde_json::Map::new();
    if several {
        out.insert("ejectAfter".to_owned(), health.eject_after.into());
        out.insert("slowStart".to_owned(), duration::text(health.slow_start).into());
    }
    if let Some(check) = &health.check {
        out.insert("path".to_owned(), check.path.clone().into());
        out.insert("interval".to_owned(), duration::text(check.interval).into());
        out.insert("timeout".to_owned(), duration::text(check.timeout).into());
        out.insert("unhealthyAfter".to_owned(), check.unhealthy_after.into());
        out.insert("healthyAfter".to_owned(), check.healthy_after.into());
    }
    out.into()
}
