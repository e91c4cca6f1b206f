//! The configuration: cloudflared's file, flags and environment, read into checked types.
//!
//! A value that exists is valid. Names of secrets stand here, and a token where cloudflared's file
//! may hold one in clear; sockets, TLS and the clock do not.

mod allowlist;
mod change;
pub(crate) mod duration;
mod explain;
mod export;
mod flags;
mod guard;
mod health;
mod hostname;
mod inner_hop;
mod ip_rules;
mod json;
mod layers;
mod limits;
mod load;
mod mistakes;
mod normal_path;
mod origin;
mod own;
mod path;
mod reader;
mod remote;
mod remote_mode;
mod rules;
mod secret_ref;
mod secret_source;
mod service;
mod services;
mod settings;
mod settle;
mod single;
mod table;
mod tree;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::allowlist::{Allowlist, ServicePattern};
pub use self::explain::{ExplainError, explain};
pub use self::export::{adit_push, config_view, local_push};
pub use self::flags::Flags;
pub use self::guard::Guard;
pub use self::health::{Health, HealthCheck};
pub use self::hostname::{Hostname, HostnameError, normal_host};
pub use self::inner_hop::{
    Allow, CallerHeaders, Callers, Hop, HopEntry, Hops, IdentitySource, InnerHop, MutualTls, NamedIdentity, RelayedBy,
    SecretRef,
};
pub use self::ip_rules::{IpRule, IpRules, Prefix};
pub use self::limits::{Forwarded, Limits, ProxyProtocol};
pub use self::load::{Loaded, Source, load, parse_file, search_directories};
pub use self::mistakes::{Mistake, Mistakes, Place, Warning};
pub use self::normal_path::{AmbiguousPath, NormalPath};
pub use self::origin::{Access, OriginOptions, ProxyType, WarpRouting};
pub use self::path::{PathPattern, decoded_path};
pub use self::remote::{PushedBy, Refused, RemoteConfig};
pub use self::remote_mode::RemoteConfigMode;
pub use self::rules::{Ingress, Rule};
pub use self::service::{Service, ServiceError, TcpScheme};
use crate::credentials::{Secret, tunnel_id};

/// Everything that flags, environment and file settle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Tunnel by UUID or name (`tunnel:`, or the argument of `run`).
    pub tunnel: Option<String>,
    /// Where the token or the credentials come from.
    pub secret: SecretSource,
    /// Transport towards the edge.
    pub protocol: Protocol,
    /// Edge addresses as given (`--edge`); empty: discovery.
    pub edge: Vec<String>,
    /// Trust for the edge, instead of the system's (`--edge-ca`, `--cacert`).
    pub edge_ca: Option<PathBuf>,
    /// Edge region. See [`Config::region_for`].
    pub region: Option<String>,
    /// Family of edge addresses; already settled by the bind address if there is one.
    pub edge_ip_version: IpVersion,
    /// Local address for connections to the edge.
    pub edge_bind_address: Option<IpAddr>,
    /// Number of connections, never 0.
    pub ha_connections: u8,
    /// Cap of the exponent of waits after refused registrations.
    pub retries: u8,
    /// Limit for a registration call.
    pub rpc_timeout: Duration,
    /// How long a drain may take.
    pub grace_period: Duration,
    /// The admin address.
    pub metrics: MetricsAddress,
    /// Lowest level that is logged.
    pub loglevel: LogLevel,
    /// Log file.
    pub logfile: Option<PathBuf>,
    /// Directory of log files.
    pub log_directory: Option<PathBuf>,
    /// Form of log lines on the console.
    pub output: LogFormat,
    /// Written after the first registration.
    pub pidfile: Option<PathBuf>,
    /// Only post-quantum key exchange towards the edge.
    pub post_quantum: bool,
    /// Feature strings to announce beside the usual ones.
    pub features: Vec<String>,
    /// `NAME=VALUE` pairs, sent to services as `Cf-Warp-Tag-NAME`.
    pub tags: Vec<(String, String)>,
    /// Cap of private-network flows; wins over a pushed one.
    pub max_active_flows: Option<u64>,
    /// QUIC settings.
    pub quic: QuicOptions,
    /// Host name of the management service.
    pub management_hostname: String,
    /// What happens to configurations that the edge pushes.
    pub remote_config: RemoteConfigMode,
    /// Limits of every rule, pushed ones included, that sets none of its own; already in [`Config::ingress`].
    pub limits: Limits,
    /// `None`: neither the file nor the single-origin flags name a service.
    pub ingress: Option<Ingress>,
    /// What is proven and demanded between adit and services.
    pub inner_hop: Arc<InnerHop>,
    /// Listeners in front of services that cannot do mutual TLS.
    pub guards: Vec<Guard>,
    /// Settings of private-network traffic.
    pub warp_routing: WarpRouting,
    /// The settings reported to the edge with local rules, as `(name, value)` (protocol.md section
    /// 5.5): only what was given, never a secret.
    pub reported: Vec<(String, String)>,
}

impl Config {
    /// The region to ask for, given the endpoint inside the token or the credentials.
    ///
    /// # Errors
    /// [`RegionConflict`] when both name one and they differ (protocol.md section 1.2).
    pub fn region_for<'a>(&'a self, endpoint: Option<&'a str>) -> Result<Option<&'a str>, RegionConflict> {
        match (self.region.as_deref(), endpoint.filter(|endpoint| !endpoint.is_empty())) {
            (Some(region), Some(endpoint)) if region != endpoint => Err(RegionConflict),
            (region, endpoint) => Ok(region.or(endpoint)),
        }
    }

    /// The files to try for [`SecretSource::SearchCredentials`], in order.
    pub fn credentials_candidates(&self, directories: &[PathBuf]) -> Vec<PathBuf> {
        let name = self.tunnel.as_deref().and_then(tunnel_id).map(|id| format!("{id}.json"));
        let files = name.iter().flat_map(|name| directories.iter().map(move |place| place.join(name)));
        files.collect()
    }
}

/// `--region` and the token's endpoint disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a region is given, but the token names another one; leave `region` out")]
pub struct RegionConflict;

/// Transport towards the edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// QUIC first, HTTP/2 when it does not get through.
    #[default]
    Auto,
    /// HTTP/2 only.
    Http2,
    /// QUIC only.
    Quic,
}

/// Family of edge addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpVersion {
    /// Both, the resolver's first answer preferred.
    #[default]
    Auto,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// The admin address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MetricsAddress {
    /// The first free port of [`MetricsAddress::PORTS`] on localhost, else any.
    #[default]
    Default,
    /// This `host:port` or none.
    Fixed(String),
}

impl MetricsAddress {
    /// Where `adit status` and cloudflared's tools look.
    pub const PORTS: std::ops::RangeInclusive<u16> = 20_241..=20_245;
}

/// Lowest level that is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Per frame and per connection.
    Debug,
    /// Somebody must act now.
    Error,
    /// The process ends.
    Fatal,
    /// Lifecycle.
    #[default]
    Info,
    /// Degraded.
    Warn,
}

impl LogLevel {
    /// The same for `tracing`, which has nothing above an error.
    pub fn as_tracing(self) -> tracing::Level {
        match self {
            Self::Debug => tracing::Level::DEBUG,
            Self::Info => tracing::Level::INFO,
            Self::Warn => tracing::Level::WARN,
            Self::Error | Self::Fatal => tracing::Level::ERROR,
        }
    }
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Text,
}

/// QUIC settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuicOptions {
    /// No search for a larger packet size.
    pub disable_pmtu_discovery: bool,
    /// Flow-control window of a connection, in bytes.
    pub connection_window: u64,
    /// Flow-control window of a stream, in bytes. It does not grow by itself, so it is what one slow service can cost:
    /// 2 MiB, where cloudflared starts with 512 KiB and grows to 6 MiB.
    pub stream_window: u64,
}

impl Default for QuicOptions {
    fn default() -> Self {
        Self { disable_pmtu_discovery: false, connection_window: 30 << 20, stream_window: 2 << 20 }
    }
}

/// Where the token or the credentials come from. Reading them is somebody else's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// `$CREDENTIALS_DIRECTORY/NAME`, systemd's.
    Credential(String),
    /// Credentials in JSON, inline.
    CredentialsContents(Secret),
    /// A credentials file.
    CredentialsFile(PathBuf),
    /// An environment variable, read once.
    Env(String),
    /// One key, a dotted path, of a JSON or YAML file.
    FileKey {
        /// The file.
        file: PathBuf,
        /// The dotted path.
        key: String,
    },
    /// Nothing was given: an error for `run`, fine for `ingress validate`.
    Missing,
    /// `TUNNEL-ID.json` in the usual directories, for the tunnel in [`Config::tunnel`].
    SearchCredentials,
    /// A token in clear.
    Token(Secret),
    /// A file with a token, in any form that a token source may have.
    TokenFile(PathBuf),
}
