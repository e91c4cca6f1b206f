//! What is remembered of one request; its drop writes the access event and the metrics, however the request ended.

use std::{borrow::Cow, net::SocketAddr};

use ::http::{HeaderName, HeaderValue, StatusCode};
use tokio::time::Instant;

use super::Came;
use crate::{
    callers::{Denied, MaybeCaller},
    code::Code,
    metrics::{Metrics, RuleMetrics, callers::Decision},
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

/// A level is a constant of its event, so that there are two of these.
macro_rules! access_event {
    ($level:ident, $record:expr, $took:expr) => {
        tracing::event!(
            target: "access",
            tracing::Level::$level,
            method = $record.method.as_str(),
            host = $record.host.to_str().unwrap_or("?"),
            path = $record.target.path(),
            status = u64::from($record.status.as_u16()),
            rule = $record.rule(),
            caller = $record.caller_name().as_deref().unwrap_or_default(),
            ms = $took.as_secs_f64() * 1000.0,
            sent = $record.sent,
            received = $record.received,
            connection = $record.connection(),
            transport = $record.transport(),
            guard = $record.guard(),
            ray = $record.ray.as_ref().and_then(|ray| ray.to_str().ok()).unwrap_or_default(),
            probe = $record.probe.then_some(true),
            code = $record.code.map_or("", Code::as_str),
            cause = $record.cause.as_str(),
            end = if $record.left { "visitor-left" } else if $record.cut { "cut" } else { "" },
        )
    };
}

/// One request.
#[derive(Debug)]
pub(super) struct Record<'a> {
    metrics: &'a Metrics,
    rule_metrics: Option<RuleMetrics>,
    rule: i64,
    /// How it came.
    pub(super) came: Came<'a>,
    /// Who asks, if somebody was asked.
    pub(super) caller: MaybeCaller,
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
    pub(super) fn new(metrics: &'a Metrics, came: Came<'a>, head: &RequestHead) -> Self {
        match came {
            Came::Guard(guarded) => guarded.metrics.started(),
            Came::Tunnel(_) => metrics.request_started(),
        }
        Self {
            metrics,
            rule_metrics: None,
            rule: -1,
            came,
            caller: None,
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
        if let Came::Tunnel(_) = self.came {
            self.rule = i64::try_from(rule).unwrap_or(i64::MAX);
        }
        self.rule_metrics = Some(metrics.clone());
    }

    /// adit answers with `code`.
    pub(super) fn refused(&mut self, code: Code) {
        self.status = code.status();
        self.code = Some(code);
        self.count(code);
    }

    fn count(&self, code: Code) {
        match self.came {
            Came::Guard(guarded) => guarded.metrics.refused(code),
            Came::Tunnel(_) => self.metrics.refused(code),
        }
    }

    /// −1 if none was found; a guard has no rules.
    fn rule(&self) -> Option<i64> {
        matches!(self.came, Came::Tunnel(_)).then_some(self.rule)
    }

    fn connection(&self) -> Option<u64> {
        match self.came {
            Came::Guard(_) => None,
            Came::Tunnel(via) => Some(via.connection.into()),
        }
    }

    fn transport(&self) -> &'static str {
        match self.came {
            Came::Guard(guarded) => guarded.over,
            Came::Tunnel(via) => via.transport.as_str(),
        }
    }

    /// Where the guard listens.
    fn guard(&self) -> Option<tracing::field::DebugValue<SocketAddr>> {
        match self.came {
            Came::Guard(guarded) => Some(tracing::field::debug(guarded.listen)),
            Came::Tunnel(_) => None,
        }
    }

    /// Why, for the log alone: it may name internal addresses.
    pub(super) fn because(&mut self, cause: impl std::fmt::Display) {
        self.cause = cause.to_string();
    }

    /// The caller has no leave.
    pub(super) fn denied(&mut self, denied: Denied, unusable: Option<&str>) {
        self.metrics.callers.decided(denied.decision());
        match unusable {
            Some(reason) => self.because(format_args!("{denied}: {reason}")),
            None => self.because(denied),
        }
    }

    /// Leave was taken away in the middle.
    pub(super) fn withdrawn(&mut self, denied: Denied) {
        self.metrics.callers.decided(Decision::Withdrawn);
        self.cut(denied.code(), format_args!("no longer allowed: {denied}"));
    }

    /// The SPIFFE ID of a caller who has proven it, else the digest of what was shown.
    fn caller_name(&self) -> Option<Cow<'_, str>> {
        let caller = self.caller.as_deref()?;
        let certificate = caller.certificate.as_ref()?;
        Some(match &certificate.spiffe_id {
            Some(id) if caller.verdict.is_ok() => Cow::Borrowed(id.as_str()),
            _ => Cow::Owned(certificate.fingerprint.to_string()),
        })
    }

    /// Nobody waits any more. That is the visitor's right, so it is not an error.
    pub(super) fn visitor_left(&mut self) {
        if !self.left {
            self.left = true;
            self.metrics.visitor_left();
        }
    }

    /// The answer ends in the middle, after the visitor was told a status.
    pub(super) fn cut(&mut self, code: Code, cause: impl std::fmt::Display) {
        self.cut = true;
        self.code = Some(code);
        self.count(code);
        self.because(cause);
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        match self.came {
            Came::Guard(guarded) => guarded.metrics.ended(self.status, self.received, self.sent),
            Came::Tunnel(_) => {
                self.metrics.request_ended();
                self.metrics.answered(self.status);
                self.metrics.bytes(self.received, self.sent);
            }
        }
        if let Some(rule) = &self.rule_metrics {
            rule.ended(took);
        }
        // One line for each request. One that failed is worth a warning, and is then seen at that level too.
        if self.code.is_some() && !self.left {
            access_event!(WARN, self, took);
        } else if tracing::enabled!(target: "access", tracing::Level::INFO) {
            access_event!(INFO, self, took);
        }
    }
}
