//! Putting the pieces together: from stacked texts and numbers to the types of [`Config`].

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::layers::Stacked;
use super::limits::Limits;
use super::mistakes::{Place, Report};
use super::origin::WarpRouting;
use super::rules::Ingress;
use super::{
    Config, Guard, InnerHop, IpVersion, LogFormat, LogLevel, MetricsAddress, Protocol, QuicOptions, RemoteConfigMode,
    SecretSource,
};

/// What has been read and is put together.
pub(crate) struct Parts {
    pub(crate) stacked: Stacked,
    pub(crate) tunnel: Option<String>,
    pub(crate) secret: SecretSource,
    pub(crate) ingress: Option<Ingress>,
    pub(crate) limits: Limits,
    pub(crate) inner_hop: InnerHop,
    pub(crate) guards: Vec<Guard>,
    pub(crate) reported: Vec<(String, String)>,
}

impl Parts {
    pub(crate) fn settle(
        self,
        warp_routing: WarpRouting,
        remote_config: RemoteConfigMode,
        report: &mut Report,
    ) -> Config {
        let Self { stacked, tunnel, secret, ingress, limits, inner_hop, guards, reported } = self;
        let nanos = |nanos: Option<u64>| nanos.map(Duration::from_nanos);
        let path = |text: Option<String>| text.filter(|text| !text.is_empty()).map(PathBuf::from);
        let quic = QuicOptions::default();
        let grace_period = nanos(stacked.grace_period).unwrap_or(Duration::from_secs(30));
        if grace_period > Duration::from_secs(180) {
            let message = "longer than 3m, more than cloudflared allows; the pod's termination grace \
                           must be longer still";
            report.warning(Place::default(), "grace-period", message);
        }
        let bind: Option<IpAddr> = stacked.edge_bind_address.and_then(|text| text.parse().ok());
        let tags = stacked.tag.iter().filter_map(|tag| tag.split_once('='));
        Config {
            inner_hop: inner_hop.into(),
            guards,
            tunnel,
            secret,
            protocol: protocol(stacked.protocol.as_deref(), report),
            edge: stacked.edge,
            edge_ca: path(stacked.cacert),
            region: stacked.region.filter(|region| !region.is_empty() && region != "global"),
            edge_ip_version: ip_version(stacked.edge_ip_version.as_deref(), bind, report),
            edge_bind_address: bind,
            ha_connections: stacked.ha_connections.unwrap_or(4),
            retries: stacked.retries.unwrap_or(5),
            rpc_timeout: nanos(stacked.rpc_timeout).unwrap_or(Duration::from_secs(5)),
            grace_period,
            metrics: metrics(stacked.metrics),
            loglevel: log_level(stacked.loglevel.as_deref(), report),
            logfile: path(stacked.logfile),
            log_directory: path(stacked.log_directory),
            output: match stacked.output.as_deref() {
                Some("json") => LogFormat::Json,
                _ => LogFormat::Text,
            },
            pidfile: path(stacked.pidfile),
            post_quantum: stacked.post_quantum,
            features: stacked.features,
            tags: tags.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            max_active_flows: stacked.max_active_flows,
            quic: QuicOptions {
                disable_pmtu_discovery: stacked.quic_disable_pmtu_discovery,
                connection_window: stacked.quic_connection_level_flow_control_limit.unwrap_or(quic.connection_window),
                stream_window: stacked.quic_stream_level_flow_control_limit.unwrap_or(quic.stream_window),
            },
            management_hostname: stacked.management_hostname.unwrap_or_else(|| "management.argotunnel.com".to_owned()),
            remote_config,
            ingress,
            limits,
            warp_routing,
            reported,
        }
    }
}

fn protocol(text: Option<&str>, report: &mut Report) -> Protocol {
    match text {
        Some("quic") => Protocol::Quic,
        Some("http2") => Protocol::Http2,
        Some("h2mux") => {
            report.warning(Place::default(), "protocol", "h2mux is gone, http2 takes its place");
            Protocol::Http2
        }
        _ => Protocol::Auto,
    }
}

/// The bind address decides the family: nothing else could be dialled from it.
fn ip_version(text: Option<&str>, bind: Option<IpAddr>, report: &mut Report) -> IpVersion {
    let asked = match text {
        Some("4") => IpVersion::V4,
        Some("6") => IpVersion::V6,
        _ => IpVersion::Auto,
    };
    let Some(bind) = bind else { return asked };
    let settled = if bind.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
    if asked != IpVersion::Auto && asked != settled {
        let message = "contradicts edge-bind-address, whose family is used";
        report.warning(Place::default(), "edge-ip-version", message);
    }
    settled
}

fn metrics(text: Option<String>) -> MetricsAddress {
    match text {
        // cloudflared's own default, spelled out.
        Some(text) if text == "localhost:0" => MetricsAddress::Default,
        // Without a host: all addresses, of both families where the system lets one socket do that.
        Some(text) if text.starts_with(':') => MetricsAddress::Fixed(format!("[::]{text}")),
        Some(text) => MetricsAddress::Fixed(text),
        None => MetricsAddress::Default,
    }
}

fn log_level(text: Option<&str>, report: &mut Report) -> LogLevel {
    match text {
        None | Some("info") => LogLevel::Info,
        Some("debug" | "trace") => LogLevel::Debug,
        Some("warn") => LogLevel::Warn,
        Some("error") => LogLevel::Error,
        Some("fatal" | "panic") => LogLevel::Fatal,
        Some(_) => {
            // Not worth a pod that does not start: cloudflared goes on with info, too.
            let message = "must be debug, info, warn, error or fatal; info is used";
            report.warning(Place::default(), "loglevel", message);
            LogLevel::Info
        }
    }
}
