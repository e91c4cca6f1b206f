//! Every metric of the process, in one place.
//!
//! Where the peer has a name for a thing, that name is used, spelled as it spells it; the rest begins with `adit_`.
//! Labels are closed sets or rule numbers, never hosts or paths. Handles of hot paths are resolved once.

pub mod callers;
mod configuration;
pub mod edge;
pub mod guard;
mod hop;
mod identity;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};

use http::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::code::Code;
pub use configuration::{Configuration, Generation, Outcome};
pub use hop::{HopFailure, HopMetrics, Unverified};
pub use identity::Identities;

/// Rules with series of their own; those beyond share one, so that a pushed configuration cannot grow the memory.
const MOST_RULES: usize = 100;
/// The position of the first guard among rules, which it counts as.
pub const FIRST_GUARD: usize = usize::MAX / 2;
/// Services of a rule with series of their own.
const MOST_SERVICES: usize = 32;

/// A counter that is exposed under exactly its name: the peer's names lack the `_total` that OpenMetrics adds.
#[derive(Clone, Debug, Default)]
pub struct PlainCounter(Arc<AtomicU64>);

impl PlainCounter {
    /// Counts one.
    pub fn inc(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl EncodeMetric for PlainCounter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&(i64::try_from(self.get()).unwrap_or(i64::MAX)))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Unknown
    }
}

impl TypedMetric for PlainCounter {
    const TYPE: MetricType = MetricType::Unknown;
}

type IntGauge = Gauge<i64, AtomicI64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status_code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabel {
    rule: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    rule: String,
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabel {
    #[prometheus(flatten)]
    name: RpcName,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RpcName;

impl EncodeLabelSet for RpcName {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>) -> fmt::Result {
        use prometheus_client::encoding::EncodeLabel;
        ("rpcName", "registerConnection").encode(encoder.encode_label())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegisterFailLabel {
    error: &'static str,
    #[prometheus(flatten)]
    name: RpcName,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LocationLabel {
    connection_id: u8,
    edge_location: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabel {
    why: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabel {
    connection: u8,
    transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    version: &'static str,
    revision: &'static str,
    r#type: &'static str,
    goversion: &'static str,
}

/// The metrics of a connector.
#[derive(Debug)]
pub struct Metrics {
    /// Decisions about callers.
    pub callers: callers::Callers,
    /// Those of the configuration.
    pub configuration: Configuration,
    /// Those of secrets.
    pub identities: Identities,
    /// Those of the hops to services.
    pub hop: HopMetrics,
    /// Those of guards.
    pub guards: guard::Guards,
    registry: Registry,
    ha_connections: IntGauge,
    total_requests: PlainCounter,
    concurrent_requests: IntGauge,
    request_errors: PlainCounter,
    response_by_code: Family<StatusLabel, PlainCounter>,
    register_success: Family<RpcLabel, PlainCounter>,
    register_fail: Family<RegisterFailLabel, PlainCounter>,
    server_locations: Family<LocationLabel, IntGauge>,
    local_config_pushes: PlainCounter,
    local_config_push_errors: PlainCounter,
    tcp_active: IntGauge,
    tcp_total: PlainCounter,
    connect_latency: Histogram,
    connect_errors: PlainCounter,
    rate_limited: PlainCounter,
    rule_requests: Family<RuleLabel, Counter>,
    rule_duration: Family<RuleLabel, Histogram, fn() -> Histogram>,
    refusals: Family<CodeLabel, Counter>,
    healthy: Family<ServiceLabel, IntGauge>,
    ejections: Family<RuleLabel, Counter>,
    retries: Family<WhyLabel, Counter>,
    connections: Family<ConnectionLabel, IntGauge>,
    connection_attempts: Family<ConnectionLabel, Counter>,
    replacements: Family<WhyLabel, Counter>,
    bytes: Family<DirectionLabel, Counter>,
    bytes_in: Counter,
    bytes_out: Counter,
    visitors_left: Counter,
    malformed_streams: Counter,
    dropped_datagrams: Counter,
    streams_cut: Counter,
    panics: IntGauge,
}

/// The handles of one rule.
#[derive(Clone, Debug)]
pub struct RuleMetrics {
    requests: Counter,
    duration: Histogram,
}

fn durations() -> Histogram {
    // 1 ms to 65 s by fours: nine buckets a rule.
    Histogram::new([0.001, 0.004, 0.016, 0.064, 0.256, 1.024, 4.096, 16.384, 65.536])
}

/// A rule's number, or a guard's.
fn shown_rule(rule: usize) -> String {
    match rule.checked_sub(FIRST_GUARD) {
        Some(guard) if guard < MOST_RULES => format!("guard-{guard}"),
        None if rule < MOST_RULES => rule.to_string(),
        _ => "more".into(),
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let mut metrics = Self::of_guards();
        metrics.register();
        metrics
    }

    /// Only what guards count is shown: they have no tunnel.
    pub fn of_guards() -> Self {
        let mut metrics = Self {
            callers: callers::Callers::default(),
            configuration: Configuration::new(),
            identities: Identities::new(),
            hop: HopMetrics::new(),
            guards: guard::Guards::new(),
            registry: Registry::default(),
            ha_connections: IntGauge::default(),
            total_requests: PlainCounter::default(),
            concurrent_requests: IntGauge::default(),
            request_errors: PlainCounter::default(),
            response_by_code: Family::default(),
            register_success: Family::default(),
            register_fail: Family::default(),
            server_locations: Family::default(),
            local_config_pushes: PlainCounter::default(),
            local_config_push_errors: PlainCounter::default(),
            tcp_active: IntGauge::default(),
            tcp_total: PlainCounter::default(),
            connect_latency: Histogram::new([1.0, 10.0, 25.0, 50.0, 100.0, 500.0, 1000.0, 5000.0]),
            connect_errors: PlainCounter::default(),
            rate_limited: PlainCounter::default(),
            rule_requests: Family::default(),
            rule_duration: Family::new_with_constructor(durations as fn() -> Histogram),
            refusals: Family::default(),
            healthy: Family::default(),
            ejections: Family::default(),
            retries: Family::default(),
            connections: Family::default(),
            connection_attempts: Family::default(),
            replacements: Family::default(),
            bytes: Family::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            visitors_left: Counter::default(),
            malformed_streams: Counter::default(),
            dropped_datagrams: Counter::default(),
            streams_cut: Counter::default(),
            panics: IntGauge::default(),
        };
        metrics.bytes_in = metrics.bytes.get_or_create_owned(&DirectionLabel { direction: "to_service" });
        metrics.bytes_out = metrics.bytes.get_or_create_owned(&DirectionLabel { direction: "to_visitor" });
        for why in Retry::ALL {
            drop(metrics.retries.get_or_create(&WhyLabel { why: why.as_str() }));
        }
        for code in Code::ALL {
            drop(metrics.refusals.get_or_create(&CodeLabel { code: code.as_str() }));
        }
        metrics.register_common();
        metrics
    }

    /// What guards have, too.
    fn register_common(&mut self) {
        let r = &mut self.registry;
        let build: Family<BuildLabel, IntGauge> = Family::default();
        let version = env!("CARGO_PKG_VERSION");
        build.get_or_create(&BuildLabel { version, revision: "", r#type: "adit", goversion: "" }).set(1);
        r.register("build_info", "The running version", build);
        self.callers.register(r);
        self.identities.register(r);
        self.hop.register(r);
        r.register("adit_requests", "Requests by rule", self.rule_requests.clone());
        r.register(
            "adit_request_duration_seconds",
            "From head to the end of the answer, by rule",
            self.rule_duration.clone(),
        );
        r.register("adit_origin_healthy", "Services that get requests, by rule and place", self.healthy.clone());
        r.register(
            "adit_origin_ejections",
            "Services taken out after failed requests, by rule",
            self.ejections.clone(),
        );
        r.register("adit_origin_retries", "Requests sent to a service once more, by reason", self.retries.clone());
        self.guards.register(r);
        r.register("adit_task_panics", "Panics that ended one stream each", self.panics.clone());
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("cloudflared_tunnel_ha_connections", "Registered connections", self.ha_connections.clone());
        r.register("cloudflared_tunnel_total_requests", "Requests and streams", self.total_requests.clone());
        r.register(
            "cloudflared_tunnel_concurrent_requests_per_tunnel",
            "Requests and streams in flight",
            self.concurrent_requests.clone(),
        );
        r.register(
            "cloudflared_tunnel_request_errors",
            "Requests without an answer of a service",
            self.request_errors.clone(),
        );
        r.register("cloudflared_tunnel_response_by_code", "Answers by status", self.response_by_code.clone());
        r.register("cloudflared_tunnel_tunnel_register_success", "Registrations", self.register_success.clone());
        r.register(
            "cloudflared_tunnel_tunnel_register_fail",
            "Refused or failed registrations",
            self.register_fail.clone(),
        );
        r.register(
            "cloudflared_tunnel_server_locations",
            "Where connections are, 1 now, 0 before",
            self.server_locations.clone(),
        );
        self.configuration.register(r);
        r.register(
            "cloudflared_config_local_config_pushes",
            "Local rules told to the edge",
            self.local_config_pushes.clone(),
        );
        r.register(
            "cloudflared_config_local_config_pushes_errors",
            "Local rules that could not be told",
            self.local_config_push_errors.clone(),
        );
        r.register("cloudflared_tcp_active_sessions", "TCP streams", self.tcp_active.clone());
        r.register("cloudflared_tcp_total_sessions", "TCP streams so far", self.tcp_total.clone());
        r.register(
            "cloudflared_proxy_connect_latency",
            "Milliseconds to connect a TCP stream",
            self.connect_latency.clone(),
        );
        r.register(
            "cloudflared_proxy_connect_streams_errors",
            "TCP streams not connected",
            self.connect_errors.clone(),
        );
        r.register(
            "flow_client_registrations_rate_limited_total",
            "Streams over the flow limit",
            self.rate_limited.clone(),
        );
        r.register("adit_refusals", "Answers of adit itself, by code", self.refusals.clone());
        r.register("adit_connections", "Registered connections by index and transport", self.connections.clone());
        r.register("adit_connection_replacements", "Connections replaced while they served", self.replacements.clone());
        r.register("adit_connection_attempts", "Dials by index and transport", self.connection_attempts.clone());
        r.register("adit_body_bytes", "Body bytes", self.bytes.clone());
        r.register("adit_visitors_left", "Visitors who left before the end", self.visitors_left.clone());
        r.register("adit_malformed_streams", "Streams of the edge that made no sense", self.malformed_streams.clone());
        r.register("adit_dropped_datagrams", "Datagrams, which are not served yet", self.dropped_datagrams.clone());
        r.register("adit_streams_cut", "Streams that outlived a grace period", self.streams_cut.clone());
    }

    /// The text format.
    pub fn expose(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// The handles of one rule, resolved when its route is built.
    pub fn handles_of_rule(&self, rule: usize) -> RuleMetrics {
        let label = RuleLabel { rule: shown_rule(rule) };
        RuleMetrics {
            requests: self.rule_requests.get_or_create_owned(&label),
            duration: self.rule_duration.get_or_create_owned(&label),
        }
    }

    /// The handles of one service of a rule.
    pub fn handles_of_origin(&self, rule: usize, service: usize) -> OriginMetrics {
        let shown = (rule < MOST_RULES && service < MOST_SERVICES)
            .then(|| ServiceLabel { rule: rule.to_string(), service: service.to_string() });
        let rule = shown_rule(rule);
        OriginMetrics {
            healthy: self.healthy.clone(),
            shown,
            ejections: self.ejections.clone(),
            rule: RuleLabel { rule },
            retries: self.retries.clone(),
            hop: self.hop.clone(),
        }
    }

    /// Forgets the services of rules that are no longer in force.
    pub fn forget_origins(&self) {
        self.healthy.clear();
    }

    /// A request began.
    pub fn request_started(&self) {
        self.total_requests.inc();
        self.concurrent_requests.inc();
    }

    /// A request ended, however.
    pub fn request_ended(&self) {
        self.concurrent_requests.dec();
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> i64 {
        self.concurrent_requests.get()
    }

    /// A visitor got an answer.
    pub fn answered(&self, status: StatusCode) {
        self.response_by_code.get_or_create(&StatusLabel { status_code: status.as_u16() }).inc();
    }

    /// adit answered for a service.
    pub fn refused(&self, code: Code) {
        self.request_errors.inc();
        self.refusals.get_or_create(&CodeLabel { code: code.as_str() }).inc();
    }

    /// A visitor left before the end.
    pub fn visitor_left(&self) {
        self.visitors_left.inc();
    }

    /// Body bytes of one request.
    pub fn bytes(&self, to_service: u64, to_visitor: u64) {
        self.bytes_in.inc_by(to_service);
        self.bytes_out.inc_by(to_visitor);
    }

    /// The edge opened a stream that makes no sense.
    pub fn malformed_stream(&self) {
        self.malformed_streams.inc();
    }

    /// A datagram was dropped.
    pub fn dropped_datagram(&self) {
        self.dropped_datagrams.inc();
    }

    /// A TCP stream was connected.
    pub fn tcp_connected(&self, took: Duration) {
        self.connect_latency.observe(took.as_secs_f64() * 1000.0);
        self.tcp_total.inc();
        self.tcp_active.inc();
    }

    /// A TCP stream ended.
    pub fn tcp_ended(&self) {
        self.tcp_active.dec();
    }

    /// A TCP stream could not be connected.
    pub fn tcp_failed(&self) {
        self.connect_errors.inc();
    }

    /// A TCP stream was over the flow limit.
    pub fn flow_refused(&self) {
        self.rate_limited.inc();
    }

    /// A dial began.
    pub fn dialling(&self, connection: u8, transport: &'static str) {
        self.connection_attempts.get_or_create(&ConnectionLabel { connection, transport }).inc();
    }

    /// A registration was refused or failed.
    pub fn register_failed(&self, duplicate: bool) {
        let error = if duplicate { "dup_edge_conn" } else { "server_error" };
        self.register_fail.get_or_create(&RegisterFailLabel { error, name: RpcName }).inc();
    }

    /// A connection registered; it counts until the guard is dropped.
    #[must_use]
    pub fn registered(self: &Arc<Self>, connection: u8, transport: &'static str, location: &str) -> ConnectionGuard {
        self.register_success.get_or_create(&RpcLabel { name: RpcName }).inc();
        self.ha_connections.inc();
        let location = LocationLabel { connection_id: connection, edge_location: location.chars().take(64).collect() };
        self.server_locations.get_or_create(&location).inc();
        let label = ConnectionLabel { connection, transport };
        // Two for a moment, while one replaces the other.
        self.connections.get_or_create(&label).inc();
        ConnectionGuard { metrics: self.clone(), label, location }
    }

    /// A connection was replaced while it served.
    pub fn replaced(&self, why: &'static str) {
        self.replacements.get_or_create(&WhyLabel { why }).inc();
    }

    /// Local rules were told to the edge, or not.
    pub fn local_rules_told(&self, ok: bool) {
        self.local_config_pushes.inc();
        if !ok {
            self.local_config_push_errors.inc();
        }
    }

    /// Streams were open when a grace period ended.
    pub fn cut(&self, streams: usize) {
        self.streams_cut.inc_by(streams as u64);
    }

    /// Streams that outlived a grace period so far.
    pub fn streams_cut(&self) -> u64 {
        self.streams_cut.get()
    }

    /// Takes over the count of panics.
    pub fn set_panics(&self, panics: u64) {
        self.panics.set(i64::try_from(panics).unwrap_or(i64::MAX));
    }
}

impl RuleMetrics {
    /// A request of this rule ended.
    pub fn ended(&self, took: Duration) {
        self.requests.inc();
        self.duration.observe(took.as_secs_f64());
    }
}

/// Why a request was sent to a service once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The service could not be reached; another one of the rule could.
    OtherService,
    /// The service said that it did nothing.
    Refused,
    /// A kept connection turned out to be dead.
    Stale,
}

impl Retry {
    const ALL: [Self; 3] = [Self::OtherService, Self::Refused, Self::Stale];

    fn as_str(self) -> &'static str {
        match self {
            Self::OtherService => "other-service",
            Self::Refused => "refused",
            Self::Stale => "stale",
        }
    }
}

/// The handles of one service. Series appear with what happens: most rules have one service and no wish to watch it.
#[derive(Clone, Debug)]
pub struct OriginMetrics {
    healthy: Family<ServiceLabel, IntGauge>,
    /// `None` beyond the bound on series.
    shown: Option<ServiceLabel>,
    ejections: Family<RuleLabel, Counter>,
    rule: RuleLabel,
    retries: Family<WhyLabel, Counter>,
    /// Those of the hop, which services share.
    pub hop: HopMetrics,
}

impl Default for OriginMetrics {
    /// Counts for nobody.
    fn default() -> Self {
        Metrics::new().handles_of_origin(0, 0)
    }
}

impl OriginMetrics {
    /// Whether the service gets requests.
    pub fn healthy(&self, healthy: bool) {
        if let Some(label) = &self.shown {
            self.healthy.get_or_create(label).set(healthy.into());
        }
    }

    /// The service was taken out after failed requests.
    pub fn ejected(&self) {
        self.ejections.get_or_create(&self.rule).inc();
    }

    /// A request was sent once more.
    pub fn retried(&self, why: Retry) {
        self.retries.get_or_create(&WhyLabel { why: why.as_str() }).inc();
    }
}

/// A registered connection, as a gauge.
#[derive(Debug)]
pub struct ConnectionGuard {
    metrics: Arc<Metrics>,
    label: ConnectionLabel,
    location: LocationLabel,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.metrics.ha_connections.dec();
        self.metrics.connections.get_or_create(&self.label).dec();
        // The edge chooses the text: a series that nobody is at must not stay.
        let left = self.metrics.server_locations.get_or_create(&self.location).dec() - 1;
        if left <= 0 {
            self.metrics.server_locations.remove(&self.location);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_peer_are_exposed_exactly() {
        let metrics = Arc::new(Metrics::new());
        metrics.request_started();
        metrics.answered(StatusCode::IM_A_TEAPOT);
        let guard = metrics.registered(2, "quic", "LIS");
        let text = metrics.expose();
        for line in [
            "cloudflared_tunnel_total_requests 1",
            "cloudflared_tunnel_concurrent_requests_per_tunnel 1",
            "cloudflared_tunnel_response_by_code{status_code=\"418\"} 1",
            "cloudflared_tunnel_ha_connections 1",
            "cloudflared_tunnel_tunnel_register_success{rpcName=\"registerConnection\"} 1",
            "cloudflared_tunnel_server_locations{connection_id=\"2\",edge_location=\"LIS\"} 1",
            "cloudflared_orchestration_config_version -1",
            "adit_connections{connection=\"2\",transport=\"quic\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        drop(guard);
        assert!(metrics.expose().contains("cloudflared_tunnel_ha_connections 0"));
    }

    #[test]
    fn a_thousand_rules_share_a_bounded_number_of_series() {
        let metrics = Metrics::new();
        for rule in 0..1000 {
            metrics.handles_of_rule(rule).ended(Duration::from_millis(5));
        }
        let series = metrics.expose().lines().filter(|line| line.starts_with("adit_requests_total{")).count();
        assert_eq!(series, MOST_RULES + 1);
    }

    #[test]
    fn every_code_is_exposed_before_it_happens() {
        let text = Metrics::new().expose();
        for code in Code::ALL {
            assert!(text.contains(&format!("adit_refusals_total{{code=\"{}\"}} 0", code.as_str())), "{code:?}");
        }
    }
}
