//! Where the edge is: given addresses, or SRV records of two regions (protocol.md §1).

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::rr::{RData, RecordType},
};

use crate::{config::IpVersion, wire::EDGE_PORT};

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

/// Hands out addresses to connections, spread over both regions.
#[derive(Debug)]
pub struct Addresses {
    source: EdgeSource,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    regions: [Vec<SocketAddr>; 2],
    taken: HashMap<u8, SocketAddr>,
}

impl Addresses {
    /// Nothing is looked up yet.
    pub fn new(source: EdgeSource) -> Self {
        Self { source, known: Mutex::default() }
    }

    /// The address of a connection: the one it has, or a new one. `failed` is not given again while there is another.
    ///
    /// Addresses are looked up anew for every connection that needs one; the last good ones are used when that fails.
    ///
    /// # Errors
    ///
    /// [`Error`], when nothing is known.
    pub async fn assign(&self, index: u8, failed: Option<SocketAddr>) -> Result<SocketAddr, Error> {
        if failed.is_none()
            && let Some(address) = self.lock().taken.get(&index)
        {
            return Ok(*address);
        }
        match self.resolve().await {
            Ok(regions) => self.lock().regions = regions,
            Err(error) => {
                if self.lock().regions.iter().all(Vec::is_empty) {
                    return Err(error);
                }
                tracing::warn!(%error, "edge addresses cannot be looked up, using the last ones");
            }
        }
        Ok(self.lock().choose(index, failed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resolve(&self) -> Result<[Vec<SocketAddr>; 2], Error> {
        match &self.source {
            EdgeSource::Given(given) => resolve_given(given).await,
            EdgeSource::Discover { region, family, servers } => {
                let resolver = match servers {
                    Some(servers) => asking(servers),
                    None => TokioResolver::builder_tokio().and_then(|builder| builder.build()),
                };
                discover(resolver.map_err(|error| error.to_string()), region.as_deref(), *family).await
            }
        }
    }
}

impl Known {
    /// The least used address of the region with fewer connections; at random among equals.
    fn choose(&mut self, index: u8, failed: Option<SocketAddr>) -> SocketAddr {
        self.taken.remove(&index);
        let load = |address: &SocketAddr| self.taken.values().filter(|taken| *taken == address).count();
        let by_region = |region: &Vec<SocketAddr>| region.iter().map(load).sum::<usize>();
        let mut candidates: Vec<_> = self
            .regions
            .iter()
            .flat_map(|region| region.iter().map(move |address| (region, *address)))
            .map(|(region, address)| {
                let again = failed == Some(address);
                (again, load(&address), by_region(region), rand::random::<u16>(), address)
            })
            .collect();
        candidates.sort_unstable();
        let address = candidates.first().map_or_else(
            || SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), EDGE_PORT),
            |candidate| candidate.4,
        );
        self.taken.insert(index, address);
        address
    }
}

/// Every address of every entry; entries alternate between the regions, and so do the addresses of a single one.
async fn resolve_given(given: &[String]) -> Result<[Vec<SocketAddr>; 2], Error> {
    let mut regions = [Vec::new(), Vec::new()];
    let mut failures = Vec::new();
    for (at, entry) in given.iter().enumerate() {
        let (host, port) = host_and_port(entry);
        match tokio::net::lookup_host((host, port)).await {
            Ok(found) => {
                for (n, address) in found.enumerate() {
                    let region = if given.len() == 1 { n % 2 } else { at % 2 };
                    if !regions.iter().flatten().any(|known| *known == address) {
                        regions[region].push(address);
                    }
                }
            }
            Err(error) => failures.push(format!("{entry}: {error}")),
        }
    }
    if regions.iter().all(Vec::is_empty) {
        return Err(Error::Given(failures.join("; ")));
    }
    Ok(regions)
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

    fn known(first: &[&str], second: &[&str]) -> Known {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Known { regions: [parse(first), parse(second)], taken: HashMap::new() }
    }

    #[test]
    fn four_connections_end_up_two_and_two() {
        let mut known = known(&["1.0.0.1:1", "1.0.0.2:1", "1.0.0.3:1"], &["2.0.0.1:1", "2.0.0.2:1"]);
        for index in 0..4 {
            known.choose(index, None);
        }
        let first = known.taken.values().filter(|a| known.regions[0].contains(a)).count();
        let distinct: std::collections::HashSet<_> = known.taken.values().collect();
        assert_eq!((first, distinct.len()), (2, 4));
    }

    #[test]
    fn one_address_gets_all_connections() {
        let mut known = known(&["1.0.0.1:1"], &[]);
        for index in 0..4 {
            assert_eq!(known.choose(index, None), "1.0.0.1:1".parse().unwrap());
        }
    }

    #[test]
    fn a_failed_address_is_left_while_there_is_another() {
        let mut known = known(&["1.0.0.1:1"], &["2.0.0.1:1"]);
        let failed = known.choose(0, None);
        for _ in 0..20 {
            assert_ne!(known.choose(0, Some(failed)), failed);
        }
    }

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
