//! One generation of rules, ready to serve: swapped whole, never changed.

use std::{net::SocketAddr, sync::Arc};

use ::http::HeaderValue;

use super::limits::Limiter;
use crate::{
    config::{Forwarded, Ingress, IpRules, ProxyProtocol, ProxyType, WarpRouting},
    ingress::{Pattern, Table},
    metrics::{Generation, Metrics, RuleMetrics},
    origin::{
        Origin,
        dial::{Dialer, limit},
        resolve::Resolver,
    },
    tls,
};

/// A rule with its service.
#[derive(Debug)]
pub struct Route {
    /// What answers.
    pub origin: Origin,
    /// Counters of this rule.
    pub metrics: RuleMetrics,
    /// What the service sees as Host, if not the visitor's.
    pub host_header: Option<HeaderValue>,
    /// An Access token is demanded, which cannot be checked yet: everything is refused.
    pub access_required: bool,
    /// Bounds on its requests.
    pub limiter: Limiter,
    /// What the service hears of the visitor's address.
    pub forwarded: Forwarded,
    /// Connections begin with a PROXY header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Bodies must have a length.
    pub no_chunks: bool,
    /// SOCKS5 is spoken inside the stream although the destination is fixed.
    pub socks: bool,
    /// Destinations that a SOCKS5 visitor may reach.
    pub ip_rules: IpRules,
}

/// All rules of one version.
#[derive(Debug)]
pub struct Routes {
    table: Option<Table<Route>>,
    /// The checked rules they were made from, for `/config` and the edge.
    pub ingress: Ingress,
    /// Version of a pushed configuration, −1 for the file's.
    pub version: i32,
    /// How streams without a rule are dialled.
    pub warp_dialer: Dialer,
    /// Settings of streams without a rule.
    pub warp: WarpRouting,
    _alive: Generation,
}

impl Routes {
    /// Makes every service ready; dials nothing.
    ///
    /// # Errors
    ///
    /// When a rule's root file cannot be used, with the rule's number.
    pub fn new(
        ingress: Option<Ingress>,
        warp: WarpRouting,
        version: i32,
        metrics: &Metrics,
        forbidden: &Arc<[SocketAddr]>,
    ) -> Result<Self, String> {
        let system = tls::SystemRoots::default();
        let mut rows = Vec::new();
        let mut mistakes = Vec::new();
        for rule in ingress.iter().flat_map(|ingress| &ingress.rules) {
            match Route::new(rule, metrics, forbidden, &system) {
                Ok(route) => rows.push((Pattern::from(rule), route)),
                Err(error) => mistakes.push(format!("rule {}: {error}", rule.position)),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes.join("; "));
        }
        Ok(Self {
            table: Table::new(rows),
            ingress: ingress.unwrap_or_else(Ingress::unconfigured),
            version,
            warp_dialer: Dialer {
                connect_timeout: limit(warp.connect_timeout),
                keep_alive: warp.tcp_keep_alive,
                race: false,
                forbidden: forbidden.clone(),
                resolver: Resolver::System,
            },
            warp,
            _alive: metrics.configuration.generation(),
        })
    }

    /// Whether requests would be served the same.
    pub fn same_as(&self, other: &Self) -> bool {
        let asked = |routes: &Self| (routes.version, routes.table.is_some());
        asked(self) == asked(other) && self.ingress == other.ingress && self.warp == other.warp
    }

    /// The rule for a request; `None` while there are no rules at all.
    pub fn find(&self, host: &str, path: &str) -> Option<(usize, &Route)> {
        self.table.as_ref().map(|table| table.find(host, path))
    }

    /// Every rule's service, in order.
    pub(super) fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.rows().map(|(_, route)| &route.origin)
    }

    /// Every rule, in order.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&Pattern, &Route)> {
        self.table.iter().flat_map(Table::rows)
    }
}

impl Route {
    fn new(
        rule: &crate::config::Rule,
        metrics: &Metrics,
        forbidden: &Arc<[SocketAddr]>,
        system: &tls::SystemRoots,
    ) -> Result<Self, RouteError> {
        let options = &rule.origin;
        if options.access.required {
            tracing::warn!(
                rule = rule.position,
                "access is required but tokens are not checked by this version: every request of this rule is refused"
            );
        }
        if options.no_tls_verify {
            tracing::warn!(rule = rule.position, service = rule.spelling, "noTLSVerify: the service is not verified");
        }
        let host_header = options
            .http_host_header
            .as_deref()
            .map(|host| HeaderValue::from_str(host).map_err(|_| RouteError::HostHeader))
            .transpose()?;
        Ok(Self {
            origin: Origin::new(rule, metrics, forbidden, system)?,
            metrics: metrics.handles_of_rule(rule.position),
            host_header,
            access_required: options.access.required,
            limiter: Limiter::new(rule.limits),
            forwarded: rule.forwarded,
            proxy_protocol: options.proxy_protocol,
            no_chunks: options.disable_chunked_encoding,
            socks: options.proxy_type == ProxyType::Socks,
            ip_rules: options.ip_rules.clone(),
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum RouteError {
    #[error("{0}")]
    Tls(#[from] tls::Error),
    #[error("httpHostHeader is no header value")]
    HostHeader,
}
