//! Where the edge is: given addresses, or SRV records of two regions (protocol.md §1).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::rr::{RData, RecordType},
};

use crate::{config::IpVersion, wire::EDGE_PORT};

/// How long the system's resolver may take. It goes on in a thread of its own; a fresh look-up has better chances when
/// the network is back.
const GIVEN_LIMIT: Duration = Duration::from_secs(3);
/// How long the DNS-over-TLS fallback may take (§1.1).
const FALLBACK_LIMIT: Duration = Duration::from_secs(15);
/// The fallback's server and the name its certificate must have.
const FALLBACK: (IpAddr, &str) = (IpAddr::V4(std::net::Ipv4Addr::new(1, 1, 1, 1)), "cloudflare-dns.com");

/// How the edge is found.
#[derive(Clone, Debug)]
pub enum EdgeSource {
    /// `--edge`: hosts or addresses, with or without port.
    Given(Vec<String>),
    /// SRV records.
    Discover {
        /// `--region`, or the token's endpoint.
        region: Option<String>,
        /// Which family.
        family: IpVersion,
        /// Asked instead of the system's servers; for tests and laboratories.
        servers: Option<Vec<SocketAddr>>,
    },
}

/// Why the edge was not found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name of `--edge` has no address, and neither has any other.
    #[error("no --edge address can be resolved: {0}")]
    Given(String),
    /// No SRV record, directly and by DNS over TLS.
    #[error("cannot look up {name}: {direct}; over TLS: {fallback}")]
    Srv {
        /// The name.
        name: String,
        /// The system's resolver.
        direct: String,
        /// DNS over TLS.
        fallback: String,
    },
    /// A record is there but leads nowhere.
    #[error("{name} names {target}, which has no usable address")]
    Target {
        /// The SRV name.
        name: String,
        /// The host.
        target: String,
    },
}

/// The SRV name of a region (§1.1).
pub fn srv_name(region: Option<&str>) -> String {
    match region.filter(|region| !region.is_empty()) {
        Some(region) => format!("_{region}-v2-origintunneld._tcp.argotunnel.com"),
        None => "_v2-origintunneld._tcp.argotunnel.com".into(),
    }
}

impl EdgeSource {
    /// Whether the operator named the edge: then each address is one of its replicas, and only then it is told that adit
    /// has ways of its own.
    pub(super) fn is_given(&self) -> bool {
        matches!(self, Self::Given(_))
    }

    /// Whether asking again may give another answer, without anything having failed.
    pub(super) fn names(&self) -> bool {
        match self {
            Self::Given(given) => given.iter().any(|entry| host_and_port(entry).0.parse::<IpAddr>().is_err()),
            // Discovered addresses are asked for anew when one fails (protocol.md §1).
            Self::Discover { .. } => false,
        }
    }
}

/// What a look-up found.
#[derive(Debug)]
pub(super) struct Found {
    /// By region; addresses given with `--edge` are spread over both.
    pub(super) regions: [Vec<SocketAddr>; 2],
    /// Whether every name was answered. If not, an address that is not here may still be there.
    pub(super) complete: bool,
}

/// The addresses of an edge.
///
/// # Errors
///
/// [`Error`], when there is none.
pub(super) async fn look_up(source: &EdgeSource) -> Result<Found, Error> {
    match source {
        EdgeSource::Given(given) => resolve_given(given).await,
        EdgeSource::Discover { region, family, servers } => {
            let resolver = match servers {
                Some(servers) => asking(servers),
                None => TokioResolver::builder_tokio().and_then(|builder| builder.build()),
            };
            let regions = discover(resolver.map_err(|error| error.to_string()), region.as_deref(), *family).await?;
            Ok(Found { regions, complete: true })
        }
    }
}

/// Every address of every entry; entries alternate between the regions, and so do the addresses of a single one.
async fn resolve_given(given: &[String]) -> Result<Found, Error> {
    let look_ups = given.iter().map(|entry| async move {
        let found = tokio::net::lookup_host(host_and_port(entry));
        match tokio::time::timeout(GIVEN_LIMIT, found).await {
            Ok(Ok(found)) => Ok(found.collect::<Vec<_>>()),
            Ok(Err(error)) => Err(format!("{entry}: {error}")),
            Err(_) => Err(format!("{entry}: no answer within {GIVEN_LIMIT:?}")),
        }
    });
    let mut found = Found { regions: Default::default(), complete: true };
    let mut failures = Vec::new();
    for (at, outcome) in join_all(look_ups).await.into_iter().enumerate() {
        match outcome {
            Ok(addresses) => {
                for (n, address) in addresses.into_iter().enumerate() {
                    let region = if given.len() == 1 { n % 2 } else { at % 2 };
                    if !found.regions.iter().flatten().any(|known| *known == address) {
                        found.regions[region].push(address);
                    }
                }
            }
            Err(failure) => failures.push(failure),
        }
    }
    if found.regions.iter().all(Vec::is_empty) {
        return Err(Error::Given(failures.join("; ")));
    }
    found.complete = failures.is_empty();
    Ok(found)
}

/// `host`, `host:port`, `ip`, `ip:port`, `[ip6]`, `[ip6]:port`, `ip6`.
fn host_and_port(entry: &str) -> (&str, u16) {
    if let Some(rest) = entry.strip_prefix('[')
        && let Some((ip, rest)) = rest.split_once(']')
    {
        return (ip, rest.strip_prefix(':').and_then(|port| port.parse().ok()).unwrap_or(EDGE_PORT));
    }
    match entry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => match port.parse() {
            Ok(port) => (host, port),
            Err(_) => (entry, EDGE_PORT),
        },
        _ => (entry, EDGE_PORT),
    }
}

type Built = Result<TokioResolver, hickory_resolver::net::NetError>;

fn asking(servers: &[SocketAddr]) -> Built {
    let servers = servers
        .iter()
        .map(|server| {
            let mut config = NameServerConfig::udp(server.ip());
            for connection in &mut config.connections {
                connection.port = server.port();
            }
            config
        })
        .collect();
    let config = ResolverConfig::from_name_servers(servers);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build()
}

fn over_tls() -> Built {
    let config = ResolverConfig::from_name_servers(vec![NameServerConfig::tls(FALLBACK.0, Arc::from(FALLBACK.1))]);
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let tls = rustls::ClientConfig::builder_with_provider(crate::tls::provider()).with_safe_default_protocol_versions();
    match tls {
        Ok(tls) => builder
            .with_tls_config(tls.with_root_certificates(crate::tls::system_roots()).with_no_client_auth())
            .build(),
        Err(_) => builder.build(),
    }
}

async fn discover(
    resolver: Result<TokioResolver, String>,
    region: Option<&str>,
    family: IpVersion,
) -> Result<[Vec<SocketAddr>; 2], Error> {
    let name = srv_name(region);
    let direct = match &resolver {
        Ok(resolver) => lookup_srv(resolver, &name).await,
        Err(error) => Err(error.clone()),
    };
    let (records, resolver) = match (direct, resolver) {
        (Ok(records), Ok(resolver)) => (records, resolver),
        (direct, _) => {
            let direct = direct.err().unwrap_or_default();
            tracing::warn!(name, error = direct, "SRV look-up failed, asking over TLS");
            let fallback = async {
                let resolver = over_tls().map_err(|error| error.to_string())?;
                let records = lookup_srv(&resolver, &name).await?;
                Ok((records, resolver))
            };
            tokio::time::timeout(FALLBACK_LIMIT, fallback)
                .await
                .unwrap_or_else(|_| Err("no answer in time".to_owned()))
                .map_err(|fallback| Error::Srv { name: name.clone(), direct, fallback })?
        }
    };
    let mut regions = [Vec::new(), Vec::new()];
    for (at, (target, port)) in records.iter().take(2).enumerate() {
        let found = resolver.lookup_ip(target.as_str()).await;
        let addresses: Vec<_> = found.iter().flat_map(|found| found.iter()).collect();
        // The family of the first address is preferred, the other used only when there is none (§1.3).
        let wants_v6 = match family {
            IpVersion::V4 => false,
            IpVersion::V6 => true,
            IpVersion::Auto => addresses.first().is_some_and(IpAddr::is_ipv6),
        };
        regions[at] =
            addresses.into_iter().filter(|ip| ip.is_ipv6() == wants_v6).map(|ip| SocketAddr::new(ip, *port)).collect();
        if regions[at].is_empty() {
            return Err(Error::Target { name, target: target.clone() });
        }
    }
    Ok(regions)
}

/// Targets and ports by priority.
async fn lookup_srv(resolver: &TokioResolver, name: &str) -> Result<Vec<(String, u16)>, String> {
    let found = resolver.lookup(format!("{name}."), RecordType::SRV).await.map_err(|error| error.to_string())?;
    let mut records: Vec<_> = found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some((srv.priority, srv.target.to_utf8(), srv.port)),
            _ => None,
        })
        .collect();
    if records.is_empty() {
        return Err("no SRV record".into());
    }
    records.sort_by_key(|record| record.0);
    Ok(records.into_iter().map(|(_, target, port)| (target, port)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_a_port_means_7844() {
        for (entry, expected) in [
            ("edge.example", ("edge.example", 7844)),
            ("edge.example:1", ("edge.example", 1)),
            ("[::1]:2", ("::1", 2)),
            ("[::1]", ("::1", 7844)),
            ("::1", ("::1", 7844)),
            ("10.0.0.1", ("10.0.0.1", 7844)),
        ] {
            assert_eq!(host_and_port(entry), expected, "{entry}");
        }
    }

    #[test]
    fn a_region_stands_before_the_service_name() {
        assert_eq!(srv_name(None), "_v2-origintunneld._tcp.argotunnel.com");
        assert_eq!(srv_name(Some("")), "_v2-origintunneld._tcp.argotunnel.com");
        assert_eq!(srv_name(Some("pt")), "_pt-v2-origintunneld._tcp.argotunnel.com");
    }
}
