//! What is remembered of one request; its drop writes the access event and the metrics, however the request ended.

use ::http::{HeaderName, HeaderValue, StatusCode};
use tokio::time::Instant;

use super::Via;
use crate::{
    code::Code,
    metrics::{Metrics, RuleMetrics},
    wire::RequestHead,
};

const RAY: HeaderName = HeaderName::from_static("cf-ray");

/// How the user agent of Cloudflare's load balancer begins when it checks whether a service is there (protocol.md §9.1).
const PROBE: &[u8] =
    b"Mozilla/5.0 (compatible; Cloudflare-Traffic-Manager/1.0; +https://www.cloudflare.com/traffic-manager/;";

/// Whether a request with this user agent is such a check and not a visitor's; the access event says so.
pub fn is_probe(user_agent: &HeaderValue) -> bool {
    user_agent.as_bytes().starts_with(PROBE)
}

/// One request.
#[derive(Debug)]
pub(super) struct Record<'a> {
    metrics: &'a Metrics,
    rule_metrics: Option<RuleMetrics>,
    rule: i64,
    via: Via,
    started: Instant,
    method: ::http::Method,
    host: HeaderValue,
    target: ::http::uri::PathAndQuery,
    ray: Option<HeaderValue>,
    probe: bool,
    /// What the visitor was told.
    pub(super) status: StatusCode,
    code: Option<Code>,
    cause: String,
    left: bool,
    cut: bool,
    /// Body bytes to the visitor.
    pub(super) sent: u64,
    /// Bytes from the visitor, where we count them: streams.
    pub(super) received: u64,
}

impl<'a> Record<'a> {
    pub(super) fn new(metrics: &'a Metrics, via: Via, head: &RequestHead) -> Self {
        metrics.request_started();
        Self {
            metrics,
            rule_metrics: None,
            rule: -1,
            via,
            started: Instant::now(),
            method: head.method.clone(),
            host: head.host.clone(),
            target: head.target.clone(),
            ray: head.headers.get(RAY).cloned(),
            probe: head.headers.get(::http::header::USER_AGENT).is_some_and(is_probe),
            status: StatusCode::OK,
            code: None,
            cause: String::new(),
            left: false,
            cut: false,
            sent: 0,
            received: 0,
        }
    }

    pub(super) fn matched(&mut self, rule: usize, metrics: &RuleMetrics) {
        self.rule = i64::try_from(rule).unwrap_or(i64::MAX);
        self.rule_metrics = Some(metrics.clone());
    }

    /// adit answers with `code`.
    pub(super) fn refused(&mut self, code: Code) {
        self.status = code.status();
        self.code = Some(code);
        self.metrics.refused(code);
    }

    /// Why, for the log alone: it may name internal addresses.
    pub(super) fn because(&mut self, cause: impl std::fmt::Display) {
        self.cause = cause.to_string();
    }

    /// Nobody waits any more. That is the visitor's right, so it is not an error.
    pub(super) fn visitor_left(&mut self) {
        if !self.left {
            self.left = true;
            self.metrics.visitor_left();
        }
    }

    /// The service died in the middle of its answer.
    pub(super) fn cut(&mut self, cause: impl std::fmt::Display) {
        self.cut = true;
        self.code = Some(Code::OriginProtocol);
        self.metrics.refused(Code::OriginProtocol);
        self.because(cause);
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.metrics.request_ended();
        self.metrics.answered(self.status);
        self.metrics.bytes(self.received, self.sent);
        if let Some(rule) = &self.rule_metrics {
            rule.ended(took);
        }
        let text = |value: &'_ HeaderValue| value.to_str().unwrap_or("?").to_owned();
        if tracing::enabled!(target: "access", tracing::Level::INFO) {
            tracing::info!(
                target: "access",
                method = self.method.as_str(),
                host = self.host.to_str().unwrap_or("?"),
                path = self.target.path(),
                status = u64::from(self.status.as_u16()),
                rule = self.rule,
                ms = took.as_secs_f64() * 1000.0,
                sent = self.sent,
                received = self.received,
                connection = u64::from(self.via.connection),
                transport = self.via.transport.as_str(),
                ray = self.ray.as_ref().and_then(|ray| ray.to_str().ok()).unwrap_or_default(),
                probe = self.probe.then_some(true),
                code = self.code.map_or("", Code::as_str),
                cause = self.cause.as_str(),
                end = if self.left { "visitor-left" } else if self.cut { "cut" } else { "" },
            );
        }
        if self.code.is_some() && !self.cause.is_empty() && !self.left {
            tracing::warn!(
                host = text(&self.host),
                rule = self.rule,
                code = self.code.map_or("", Code::as_str),
                cause = self.cause,
                "no answer of the service"
            );
        }
    }
}
