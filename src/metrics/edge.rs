//! What an edge counts. Labels are closed sets and the tunnels of its own state, never what a visitor said.

use http::StatusCode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::IntGauge;

/// Why a visitor got an answer of the edge itself.
pub const REFUSALS: [&str; 10] = [
    "caller-invalid",
    "caller-missing",
    "host-missing",
    "request-invalid",
    "hostname-unknown",
    "no-connection",
    "connector-failed",
    "overloaded",
    "method-not-allowed",
    "wrong-connection",
];

/// Which bound was met by what was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Visitors' connections.
    Connections,
    /// Those of one address.
    ConnectionsPerAddress,
    /// Requests in flight.
    Requests,
    /// Connectors that have not registered.
    Arrivals,
    /// Those of one address.
    ArrivalsPerAddress,
}

impl Bound {
    const ALL: [Self; 5] =
        [Self::Connections, Self::ConnectionsPerAddress, Self::Requests, Self::Arrivals, Self::ArrivalsPerAddress];

    /// The key under `limits`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerAddress => "connectionsPerAddress",
            Self::Requests => "requests",
            Self::Arrivals => "arrivals",
            Self::ArrivalsPerAddress => "arrivalsPerAddress",
        }
    }
}

/// How a registration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registering {
    /// Accepted.
    Accepted,
    /// Accepted, and another connection lost its place to it.
    TookOver,
    /// Unknown tunnel or wrong secret.
    Refused,
    /// The edge is stopping.
    Draining,
    /// A connector that said nothing, or nonsense, until its time was over.
    NotInTime,
}

impl Registering {
    const ALL: [Self; 5] = [Self::Accepted, Self::TookOver, Self::Refused, Self::Draining, Self::NotInTime];

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::TookOver => "took-over",
            Self::Refused => "refused",
            Self::Draining => "draining",
            Self::NotInTime => "not-in-time",
        }
    }
}

/// How a pushed configuration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// In force.
    Accepted,
    /// The connector refused it.
    Refused,
    /// It could not be said.
    Failed,
}

impl Pushed {
    const ALL: [Self; 3] = [Self::Accepted, Self::Refused, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TunnelLabel {
    tunnel: String,
    transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EntryLabel {
    entry: usize,
}

/// The metrics of an edge.
#[derive(Debug)]
pub struct EdgeMetrics {
    registry: Registry,
    connections: Family<TunnelLabel, IntGauge>,
    visitors: IntGauge,
    arrivals: IntGauge,
    in_flight: IntGauge,
    draining: IntGauge,
    panics: IntGauge,
    requests: [Counter; 5],
    retries: Counter,
    validations: Counter,
    refusals: Family<CodeLabel, Counter>,
    overloads: Family<LimitLabel, Counter>,
    registrations: Family<OutcomeLabel, Counter>,
    pushes: Family<OutcomeLabel, Counter>,
    reloads: Family<OutcomeLabel, Counter>,
    not_after: Family<EntryLabel, IntGauge>,
}

/// A changed certificate or set of trust is in force, or cannot be used.
const RELOADS: [&str; 2] = ["replaced", "refused"];

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Default for EdgeMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl EdgeMetrics {
    /// Everything at zero, and every series of a closed set there from the start.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        let classes: Family<ClassLabel, Counter> = Family::default();
        let requests = CLASSES.map(|class| classes.get_or_create_owned(&ClassLabel { class }));
        let metrics = Self {
            connections: Family::default(),
            visitors: IntGauge::default(),
            arrivals: IntGauge::default(),
            in_flight: IntGauge::default(),
            draining: IntGauge::default(),
            panics: IntGauge::default(),
            requests,
            retries: Counter::default(),
            validations: Counter::default(),
            refusals: Family::default(),
            overloads: Family::default(),
            registrations: Family::default(),
            pushes: Family::default(),
            reloads: Family::default(),
            not_after: Family::default(),
            registry: Registry::default(),
        };
        for code in REFUSALS {
            drop(metrics.refusals.get_or_create(&CodeLabel { code }));
        }
        for bound in Bound::ALL {
            drop(metrics.overloads.get_or_create(&LimitLabel { limit: bound.as_str() }));
        }
        for outcome in Registering::ALL {
            drop(metrics.registrations.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }));
        }
        for outcome in Pushed::ALL {
            drop(metrics.pushes.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }));
        }
        for outcome in RELOADS {
            drop(metrics.reloads.get_or_create(&OutcomeLabel { outcome }));
        }
        r.register("adit_edge_connections", "Registered connections", metrics.connections.clone());
        r.register("adit_edge_visitors", "Visitors' connections", metrics.visitors.clone());
        r.register("adit_edge_arrivals", "Connectors that have not registered yet", metrics.arrivals.clone());
        r.register("adit_edge_requests_in_flight", "Requests in flight", metrics.in_flight.clone());
        r.register("adit_edge_draining", "1 while the edge stops", metrics.draining.clone());
        r.register("adit_edge_task_panics", "Panics that ended one task each", metrics.panics.clone());
        r.register("adit_edge_requests", "Answers to visitors, by class of their status", classes);
        r.register("adit_edge_retries", "Requests sent again on another connection", metrics.retries.clone());
        r.register(
            "adit_edge_address_validations",
            "Connectors told to prove their address",
            metrics.validations.clone(),
        );
        r.register("adit_edge_refusals", "Answers of the edge itself, by code", metrics.refusals.clone());
        r.register("adit_edge_overloads", "What was turned away, by the limit it met", metrics.overloads.clone());
        r.register("adit_edge_registrations", "Registrations, by outcome", metrics.registrations.clone());
        r.register("adit_edge_pushes", "Pushed configurations, by outcome", metrics.pushes.clone());
        r.register(
            "adit_edge_certificate_reloads",
            "Changed files of visitors' TLS, by what became of them",
            metrics.reloads.clone(),
        );
        r.register(
            "adit_edge_certificate_not_after_seconds",
            "When a certificate from a file or one of its chain expires, since 1970, by the entry's place in the file",
            metrics.not_after.clone(),
        );
        Self { registry, ..metrics }
    }

    /// The text format.
    pub fn expose(&self) -> String {
        let mut text = String::with_capacity(4 << 10);
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// Takes over the number of connections of every tunnel of the state, by transport; others are forgotten.
    pub fn set_connections(&self, counts: impl Iterator<Item = (String, &'static str, usize)>) {
        self.connections.clear();
        for (tunnel, transport, count) in counts {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.connections.get_or_create(&TunnelLabel { tunnel, transport }).set(count);
        }
    }

    /// Takes over when certificates from files end, with their entries' places, counted from 0.
    pub fn set_certificates(&self, ends: impl Iterator<Item = (usize, i64)>) {
        for (entry, end) in ends {
            self.not_after.get_or_create(&EntryLabel { entry }).set(end);
        }
    }

    /// Takes over what others count.
    pub fn set_gauges(&self, visitors: usize, arrivals: usize, draining: bool, panics: u64) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.visitors.set(gauge(visitors));
        self.arrivals.set(gauge(arrivals));
        self.draining.set(draining.into());
        self.panics.set(i64::try_from(panics).unwrap_or(i64::MAX));
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// A request began.
    pub fn request_started(&self) {
        self.in_flight.inc();
    }

    /// A request ended, however.
    pub fn request_ended(&self) {
        self.in_flight.dec();
    }

    /// A visitor got an answer.
    pub fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len());
        self.requests[class - 1].inc();
    }

    /// The edge answered itself.
    pub fn refused(&self, code: &'static str) {
        self.refusals.get_or_create(&CodeLabel { code }).inc();
    }

    /// A request goes to another connection.
    pub fn retried(&self) {
        self.retries.inc();
    }

    /// Requests sent again so far.
    pub fn retries(&self) -> u64 {
        self.retries.get()
    }

    /// A connector has to prove its address first.
    pub fn validated(&self) {
        self.validations.inc();
    }

    /// Something was turned away.
    pub fn overloaded(&self, bound: Bound) {
        self.overloads.get_or_create(&LimitLabel { limit: bound.as_str() }).inc();
    }

    /// A registration ended.
    pub fn registered(&self, outcome: Registering) {
        self.registrations.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
    }

    /// Files of visitors' TLS were read again.
    pub fn certificates_reloaded(&self, replaced: usize, refused: usize) {
        for (outcome, count) in RELOADS.into_iter().zip([replaced, refused]) {
            self.reloads.get_or_create(&OutcomeLabel { outcome }).inc_by(count as u64);
        }
    }

    /// A push ended.
    pub fn pushed(&self, outcome: Pushed) {
        self.pushes.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_of_a_closed_set_is_there_before_it_happens() {
        let metrics = EdgeMetrics::new();
        metrics.answered(StatusCode::NOT_FOUND);
        metrics.overloaded(Bound::Arrivals);
        let text = metrics.expose();
        for line in [
            "adit_edge_requests_total{class=\"2xx\"} 0",
            "adit_edge_requests_total{class=\"4xx\"} 1",
            "adit_edge_refusals_total{code=\"no-connection\"} 0",
            "adit_edge_overloads_total{limit=\"arrivals\"} 1",
            "adit_edge_registrations_total{outcome=\"took-over\"} 0",
            "adit_edge_pushes_total{outcome=\"refused\"} 0",
            "adit_edge_retries_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_tunnel_that_left_the_state_leaves_the_metrics() {
        let metrics = EdgeMetrics::new();
        metrics.set_connections([("a".to_owned(), "quic", 2)].into_iter());
        assert!(metrics.expose().contains("adit_edge_connections{tunnel=\"a\",transport=\"quic\"} 2"));
        metrics.set_connections([("b".to_owned(), "http2", 0)].into_iter());
        let text = metrics.expose();
        assert!(!text.contains("\"a\"") && text.contains("tunnel=\"b\""), "{text}");
    }
}
