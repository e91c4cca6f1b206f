//! One generation of rules, ready to serve: swapped whole, never changed.

mod policies;

use std::{net::SocketAddr, sync::Arc};

use ::http::HeaderValue;

use super::limits::Limiter;
use crate::{
    callers::{Permit, Policy, families::Families},
    config::{
        Callers, Config, Forwarded, Hop, Hostname, Ingress, InnerHop, IpRules, ProxyProtocol, ProxyType, Rule,
        WarpRouting,
    },
    ingress::{Pattern, Table},
    metrics::{FIRST_GUARD, Generation, Metrics, RuleMetrics},
    origin::{
        Means, Origin,
        dial::{Dialer, limit},
        resolve::Resolver,
    },
    tls::{
        self,
        callers::CallerTrust,
        keyring::{Keyring, Unusable},
        roots::{Pools, Roots},
    },
};
use policies::Policies;

/// What routes are made with, whatever the rules say.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Addresses that no rule may dial.
    pub forbidden: Arc<[SocketAddr]>,
    /// Identities and trust of one generation.
    pub keyring: Arc<Keyring>,
}

impl Ground {
    /// Nothing is forbidden, nothing is secret.
    pub fn bare(metrics: Arc<Metrics>) -> Self {
        Self { metrics, forbidden: Arc::from([]), keyring: Arc::default() }
    }
}

/// What routes are made of.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The rules; `None`: there are none yet.
    pub ingress: Option<Ingress>,
    /// Settings of streams without a rule.
    pub warp: WarpRouting,
    /// What the file says of the inner hop, whoever the rules are from.
    pub inner_hop: Arc<InnerHop>,
    /// Version of a pushed configuration, −1 for the file's.
    pub version: i32,
}

impl From<&Config> for Sources {
    /// The file's own.
    fn from(config: &Config) -> Self {
        Self {
            ingress: config.ingress.clone(),
            warp: config.warp_routing.clone(),
            inner_hop: config.inner_hop.clone(),
            version: -1,
        }
    }
}

/// The way to a rule's services for some hosts: what is proven and demanded there has its own connections.
#[derive(Debug)]
pub struct Way {
    /// `None`: any host.
    hostname: Option<Hostname>,
    origin: Origin,
    /// Who may ask.
    pub policy: Policy,
    /// The service has proven who it is, so that its own `Adit-Error` is worth something.
    pub(super) is_known: bool,
}

impl Way {
    /// What answers, for whoever has leave.
    pub fn open(&self, _: &Permit) -> &Origin {
        &self.origin
    }
}

/// A rule with its services.
#[derive(Debug)]
pub struct Route {
    /// In order; a request whose host none is for is refused.
    ways: Vec<Way>,
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
    /// What the file says of the inner hop.
    pub inner_hop: Arc<InnerHop>,
    /// Headers that speak of certificates, where visitors must not say them.
    pub(super) families: Option<Arc<Families>>,
    keyring: Arc<Keyring>,
    pools: Pools,
    /// Guards have no part in it.
    _alive: Option<Generation>,
}

impl Routes {
    /// Makes every service ready; dials nothing.
    ///
    /// # Errors
    ///
    /// When a rule's root file cannot be used, with the rule's number.
    pub fn new(sources: Sources, ground: &Ground) -> Result<Self, String> {
        Self::made(sources, ground, Roots::default())
    }

    /// Makes rules that are in force again, on other ground: trust in callers must not wait for a root file that is
    /// gone. What such a file held `before` stays; without that, the services that need it are not dialled.
    ///
    /// # Errors
    ///
    /// When the rules could not be in force.
    pub fn again(sources: Sources, ground: &Ground, before: &Self) -> Result<Self, String> {
        Self::made(sources, ground, Roots::after(&before.pools))
    }

    fn made(sources: Sources, ground: &Ground, roots: Roots) -> Result<Self, String> {
        let Sources { ingress, warp, inner_hop, version } = sources;
        let mut rows = Vec::new();
        let mut mistakes = Vec::new();
        let mut policies = Policies::new(&ground.keyring, &inner_hop);
        let means =
            Means { metrics: &ground.metrics, forbidden: &ground.forbidden, keyring: &ground.keyring, roots: &roots };
        let rules = ingress.as_ref().map_or(&[][..], |ingress| &ingress.rules);
        for rule in rules {
            match Route::new(rule, means, &mut policies) {
                Ok(route) => rows.push((Pattern::from(rule), route)),
                Err(error) => mistakes.push(format!("rule {}: {error}", rule.position)),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes.join("; "));
        }
        let of_guard = rules.iter().any(|rule| rule.position >= FIRST_GUARD);
        Ok(Self {
            families: policies::families(&inner_hop, rules),
            table: Table::new(rows),
            ingress: ingress.unwrap_or_else(Ingress::unconfigured),
            version,
            warp_dialer: Dialer {
                connect_timeout: limit(warp.connect_timeout),
                keep_alive: warp.tcp_keep_alive,
                race: false,
                forbidden: ground.forbidden.clone(),
                loopback_only: false,
                resolver: Resolver::System,
            },
            warp,
            inner_hop,
            keyring: ground.keyring.clone(),
            pools: roots.into_pools(),
            _alive: (!of_guard).then(|| ground.metrics.configuration.generation()),
        })
    }

    /// Whether requests would be served the same.
    pub fn same_as(&self, other: &Self) -> bool {
        let asked = |routes: &Self| (routes.version, routes.table.is_some(), routes.secrets());
        asked(self) == asked(other)
            && self.ingress == other.ingress
            && self.warp == other.warp
            && self.inner_hop == other.inner_hop
    }

    /// The generation of identities and trust that they were made with.
    pub fn secrets(&self) -> u64 {
        self.keyring.generation
    }

    /// The rule for a request; `None` while there are no rules at all.
    pub fn find(&self, host: &str, path: &str) -> Option<(usize, &Route)> {
        self.table.as_ref().map(|table| table.find(host, path))
    }

    /// What a rule matches.
    pub(super) fn pattern(&self, index: usize) -> Option<&Pattern> {
        self.table.as_ref()?.pattern(index)
    }

    /// The first rule with the same hostname and path.
    pub(super) fn same_rule(&self, pattern: &Pattern) -> Option<&Route> {
        self.table.as_ref()?.same(pattern)
    }

    /// The newest trust in callers, if it is still referred to.
    pub(super) fn caller_trust(&self, callers: &Callers) -> Result<Arc<CallerTrust>, Unusable> {
        self.keyring.caller_trust(callers)
    }

    /// Whether streams without a rule are refused: nothing would be proven on their hop.
    pub(super) fn refuses_private_network(&self) -> bool {
        let inner = &self.inner_hop;
        // One rule that demands is enough: such a stream may lead to its service.
        !inner.private_network && inner.demands()
    }

    /// Rules whose trust in callers cannot be used, and why.
    pub(super) fn closed(&self) -> impl Iterator<Item = (usize, &str)> {
        let ways = self.rows().enumerate().flat_map(|(rule, (_, route))| route.ways.iter().map(move |way| (rule, way)));
        ways.filter_map(|(rule, way)| Some((rule, way.policy.unusable()?)))
    }

    /// Every rule's service, in order.
    pub(super) fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.rows().flat_map(|(_, route)| route.origins())
    }

    /// Every rule, in order.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&Pattern, &Route)> {
        self.table.iter().flat_map(Table::rows)
    }
}

impl Route {
    /// The way for a request's host in normal form; `None`: the request is refused.
    pub fn way(&self, normal_host: &str) -> Option<&Way> {
        self.ways.iter().find(|way| way.hostname.as_ref().is_none_or(|hostname| hostname.matches(normal_host)))
    }

    /// What answers on every way, in order; for whoever attends to services.
    pub(super) fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.ways.iter().map(|way| &way.origin)
    }

    fn new(rule: &Rule, means: Means<'_>, policies: &mut Policies<'_>) -> Result<Self, RouteError> {
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
        let choices = rule.hops.choices.iter().map(|(hostname, hop)| (hostname.clone(), hop));
        let ways = choices
            .chain(rule.hops.otherwise.iter().map(|hop| (None, hop)))
            .map(|(hostname, hop): (_, &Arc<Hop>)| {
                let policy = policies.of(rule, hop)?;
                let origin = Origin::new(rule, hop, means)?;
                // One without TLS proves nothing, whatever it inherits.
                let is_known = !hop.expect.is_empty() && rule.services().all(|(service, _)| service.has_tls());
                Ok(Way { hostname, origin, policy, is_known })
            })
            .collect::<Result<_, RouteError>>()?;
        Ok(Self {
            ways,
            metrics: means.metrics.handles_of_rule(rule.position),
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
    #[error("{0} proves nothing of what it reaches; innerHop.privateNetwork: allow lets it pass")]
    PrivateNetwork(String),
    #[error("{0}")]
    Tls(#[from] tls::Error),
    #[error("httpHostHeader is no header value")]
    HostHeader,
}
