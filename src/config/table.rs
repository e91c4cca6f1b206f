//! The table of settings, and the conditions on their texts.

use super::settings::Kind::{self, Bool, Duration, Int, List, Path, Secret, Text};
use super::settings::Role::{self, Command, NoEffect, Origin, Setting as InForce};
use super::settings::Setting;

/// All of them, the ones that matter most first: this is the order of the help text.
#[rustfmt::skip]
pub(crate) static SETTINGS: &[Setting] = &[
    plain("config", Path, Command, &[], "Configuration file, instead of the first one found"),
    plain("token-file", Path, InForce, &["TUNNEL_TOKEN_FILE"], "File with the tunnel token; waited for if missing"),
    plain("token", Secret, InForce, &["TUNNEL_TOKEN"], "Tunnel token (visible to every user of the machine; prefer --token-file)"),
    plain("credentials-file", Path, InForce, &["TUNNEL_CRED_FILE"], "Tunnel credentials in JSON").or(&["cred-file"]),
    plain("credentials-contents", Secret, InForce, &["TUNNEL_CRED_CONTENTS"], "Tunnel credentials in JSON, inline"),
    plain("protocol", Text(protocol), InForce, &["TUNNEL_TRANSPORT_PROTOCOL"], "Transport: auto, quic or http2").short('p'),
    plain("edge", List(edge_address), InForce, &["TUNNEL_EDGE"], "Edge address, instead of discovery; may be repeated"),
    plain("cacert", Path, InForce, &["TUNNEL_CACERT"], "Certificates trusted for the edge, instead of the system's").or(&["edge-ca"]),
    plain("metrics", Text(listen_address), InForce, &["TUNNEL_METRICS"], "Admin address, HOST:PORT"),
    plain("grace-period", Duration, InForce, &["TUNNEL_GRACE_PERIOD"], "Time for requests in flight when stopping"),
    plain("loglevel", TEXT, InForce, &["TUNNEL_LOGLEVEL"], "debug, info, warn, error or fatal"),
    plain("output", Text(output), InForce, &["TUNNEL_MANAGEMENT_OUTPUT", "TUNNEL_LOG_OUTPUT"], "Form of log lines: default or json"),
    plain("lenient", Bool, Command, &[], "Unknown keys of the file are warnings"),
    plain("url", TEXT, Origin, &["TUNNEL_URL"], "Service for everything, when the file has no rules"),
    plain("post-quantum", Bool, InForce, &["TUNNEL_POST_QUANTUM"], "Only post-quantum key exchange towards the edge").or(&["pq"]),
    plain("region", TEXT, InForce, &["TUNNEL_REGION"], "Edge region"),
    plain("edge-ip-version", Text(ip_version), InForce, &["TUNNEL_EDGE_IP_VERSION"], "Family of edge addresses: auto, 4 or 6"),
    plain("edge-bind-address", Text(ip_address), InForce, &["TUNNEL_EDGE_BIND_ADDRESS"], "Local address for connections to the edge"),
    plain("label", TEXT, NoEffect, &[], "Name of this connector on a dashboard"),
    plain("pidfile", Path, InForce, &["TUNNEL_PIDFILE"], "Written after the first registration"),
    plain("logfile", Path, InForce, &["TUNNEL_LOGFILE"], "Log file"),
    plain("log-directory", Path, InForce, &["TUNNEL_LOGDIRECTORY"], "Directory of log files"),
    plain("retries", BYTE, InForce, &["TUNNEL_RETRIES"], "Cap of the exponent of waits after refusals"),
    plain("tag", List(tag), InForce, &["TUNNEL_TAG"], "NAME=VALUE, sent to services; may be repeated"),
    plain("features", LIST, InForce, &[], "Feature string to announce; may be repeated").short('F'),
    plain("ha-connections", Int(1, 32), InForce, &[], "Number of connections to the edge, at most 32"),
    plain("max-edge-addr-retries", BYTE, NoEffect, &[], "Failed addresses before the other transport is tried"),
    plain("rpc-timeout", Duration, InForce, &[], "Limit for a registration call"),
    plain("write-stream-timeout", Duration, NoEffect, &["TUNNEL_STREAM_WRITE_TIMEOUT"], "Deadline for a write on a stream; 0s is none"),
    plain("quic-disable-pmtu-discovery", Bool, InForce, &["TUNNEL_DISABLE_QUIC_PMTU"], "No search for a larger packet size"),
    plain("quic-connection-level-flow-control-limit", Int(1, u32::MAX as i64), InForce, &["TUNNEL_QUIC_CONN_LEVEL_FLOW_CONTROL_LIMIT"], "Window of a QUIC connection in bytes"),
    plain("quic-stream-level-flow-control-limit", Int(1, u32::MAX as i64), InForce, &["TUNNEL_QUIC_STREAM_LEVEL_FLOW_CONTROL_LIMIT"], "Window of a QUIC stream in bytes"),
    plain("management-hostname", TEXT, InForce, &["TUNNEL_MANAGEMENT_HOSTNAME"], "Host name of the management service"),
    plain("max-active-flows", INT, InForce, &["TUNNEL_MAX_ACTIVE_FLOWS"], "Cap of private-network flows"),
    plain("unix-socket", Path, Origin, &["TUNNEL_UNIX_SOCKET"], "Unix socket for everything, when the file has no rules"),
    plain("hello-world", Bool, Origin, &["TUNNEL_HELLO_WORLD"], "Built-in page for everything, when the file has no rules"),
    plain("bastion", Bool, Origin, &["TUNNEL_BASTION"], "The visitor names the destination"),
    plain("socks5", Bool, Origin, &["TUNNEL_SOCKS"], "SOCKS in front of the TCP service"),
    plain("proxy-connect-timeout", Duration, Origin, &[], "Limit for a dial of the service"),
    plain("proxy-tls-timeout", Duration, Origin, &[], "Limit for a TLS handshake with the service"),
    plain("proxy-tcp-keepalive", Duration, Origin, &[], "Period of TCP keep-alives"),
    plain("proxy-no-happy-eyeballs", Bool, Origin, &[], "No racing of IPv6 against IPv4"),
    plain("proxy-keepalive-connections", Int(0, 1_000_000), Origin, &[], "Idle connections kept"),
    plain("proxy-keepalive-timeout", Duration, Origin, &[], "How long an idle connection is kept"),
    plain("http-host-header", TEXT, Origin, &["TUNNEL_HTTP_HOST_HEADER"], "Host sent to the service"),
    plain("origin-server-name", TEXT, Origin, &["TUNNEL_ORIGIN_SERVER_NAME"], "Name verified in the service's certificate"),
    plain("origin-ca-pool", Path, Origin, &["TUNNEL_ORIGIN_CA_POOL"], "Certificates trusted for the service"),
    plain("no-tls-verify", Bool, Origin, &["NO_TLS_VERIFY"], "No verification of the service's certificate"),
    plain("no-chunked-encoding", Bool, Origin, &["TUNNEL_NO_CHUNKED_ENCODING"], "No chunked request bodies"),
    plain("http2-origin", Bool, Origin, &["TUNNEL_ORIGIN_ENABLE_HTTP2"], "HTTP/2 towards the service"),
    plain("match-sni-to-host", Bool, Origin, &[], "The name in TLS is the request's host"),
    plain("proxy-address", TEXT, Origin, &["TUNNEL_PROXY_ADDRESS"], "Without effect"),
    plain("proxy-port", Int(0, 65_535), Origin, &["TUNNEL_PROXY_PORT"], "Without effect"),
    plain("origincert", Path, NoEffect, &["TUNNEL_ORIGIN_CERT"], ""),
    plain("dial-edge-timeout", Duration, NoEffect, &["DIAL_EDGE_TIMEOUT"], ""),
    plain("metrics-update-freq", Duration, NoEffect, &["TUNNEL_METRICS_UPDATE_FREQ"], ""),
    plain("transport-loglevel", TEXT, NoEffect, &["TUNNEL_PROTO_LOGLEVEL", "TUNNEL_TRANSPORT_LOGLEVEL"], "").or(&["proto-loglevel"]),
    plain("management-diagnostics", Bool, NoEffect, &["TUNNEL_MANAGEMENT_DIAGNOSTICS"], ""),
    plain("icmpv4-src", TEXT, NoEffect, &["TUNNEL_ICMPV4_SRC"], ""),
    plain("icmpv6-src", TEXT, NoEffect, &["TUNNEL_ICMPV6_SRC"], ""),
    plain("dns-resolver-addrs", List(resolver), NoEffect, &["TUNNEL_DNS_RESOLVER_ADDRS"], ""),
    plain("no-prechecks", Bool, NoEffect, &["TUNNEL_NO_PRECHECKS"], ""),
    plain("autoupdate-freq", Duration, NoEffect, &[], ""),
    plain("no-autoupdate", Bool, NoEffect, &["NO_AUTOUPDATE"], ""),
    plain("is-autoupdated", Bool, NoEffect, &[], ""),
    plain("stdin-control", Bool, NoEffect, &["STDIN_CONTROL"], ""),
    plain("proxy-connection-timeout", Duration, NoEffect, &[], ""),
    plain("proxy-expect-continue-timeout", Duration, NoEffect, &[], ""),
    plain("compression-quality", INT, NoEffect, &["TUNNEL_COMPRESSION_LEVEL"], ""),
    plain("use-reconnect-token", Bool, NoEffect, &["TUNNEL_USE_RECONNECT_TOKEN"], ""),
    plain("heartbeat-interval", Duration, NoEffect, &[], ""),
    plain("heartbeat-count", INT, NoEffect, &[], ""),
    plain("ui", Bool, NoEffect, &[], ""),
    plain("id", TEXT, NoEffect, &["TUNNEL_ID"], ""),
    plain("api-key", Secret, NoEffect, &["TUNNEL_API_KEY"], ""),
    plain("api-email", TEXT, NoEffect, &["TUNNEL_API_EMAIL"], ""),
    plain("api-ca-key", Secret, NoEffect, &["TUNNEL_API_CA_KEY"], ""),
    plain("proxy-dns", Bool, NoEffect, &["TUNNEL_DNS"], ""),
    plain("proxy-dns-port", INT, NoEffect, &["TUNNEL_DNS_PORT"], ""),
    plain("proxy-dns-address", TEXT, NoEffect, &["TUNNEL_DNS_ADDRESS"], ""),
    plain("proxy-dns-upstream", LIST, NoEffect, &["TUNNEL_DNS_UPSTREAM"], ""),
    plain("proxy-dns-max-upstream-conns", INT, NoEffect, &["TUNNEL_DNS_MAX_UPSTREAM_CONNS"], ""),
    plain("proxy-dns-bootstrap", LIST, NoEffect, &["TUNNEL_DNS_BOOTSTRAP"], ""),
    plain("local-ssh-port", TEXT, NoEffect, &[], ""),
    plain("ssh-idle-timeout", Duration, NoEffect, &[], ""),
    plain("ssh-max-timeout", Duration, NoEffect, &[], ""),
    plain("bucket-name", TEXT, NoEffect, &[], ""),
    plain("region-name", TEXT, NoEffect, &[], ""),
    plain("secret-id", Secret, NoEffect, &[], ""),
    plain("access-key-id", Secret, NoEffect, &[], ""),
    plain("session-token", Secret, NoEffect, &[], ""),
    plain("s3-url-host", TEXT, NoEffect, &[], ""),
    plain("host-key-path", Path, NoEffect, &[], ""),
];

const INT: Kind = Int(0, i64::MAX);
const BYTE: Kind = Int(0, 255);
const TEXT: Kind = Text(any);
const LIST: Kind = List(any);

const fn plain(key: &'static str, kind: Kind, role: Role, env: &'static [&'static str], help: &'static str) -> Setting {
    Setting { key, kind, role, env, aliases: &[], short: None, help }
}

impl Setting {
    const fn or(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn short(mut self, short: char) -> Self {
        self.short = Some(short);
        self
    }
}

fn any(_: &str) -> Result<(), String> {
    Ok(())
}

fn protocol(text: &str) -> Result<(), String> {
    match text {
        "auto" | "quic" | "http2" | "h2mux" => Ok(()),
        _ => Err("must be auto, quic or http2".to_owned()),
    }
}

fn ip_version(text: &str) -> Result<(), String> {
    match text {
        "auto" | "4" | "6" => Ok(()),
        _ => Err("must be auto, 4 or 6".to_owned()),
    }
}

fn ip_address(text: &str) -> Result<(), String> {
    text.parse::<std::net::IpAddr>().map(|_| ()).map_err(|_| "must be an IP address".to_owned())
}

fn output(text: &str) -> Result<(), String> {
    match text {
        "default" | "text" | "json" => Ok(()),
        _ => Err("must be default or json".to_owned()),
    }
}

/// `HOST:PORT`; without a host on all addresses, port 0 for any.
fn listen_address(text: &str) -> Result<(), String> {
    let (host, port) = text.rsplit_once(':').ok_or("must be HOST:PORT")?;
    port.parse::<u16>().map_err(|_| "the port must be 0 to 65535")?;
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let fine = match literal {
        Some(literal) => literal.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.is_empty() || super::hostname::domain(host).is_ok(),
    };
    if fine { Ok(()) } else { Err("must be HOST:PORT, an IPv6 address in brackets".to_owned()) }
}

/// `HOST`, `HOST:PORT`; no port means 7844.
fn edge_address(text: &str) -> Result<(), String> {
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok(());
    }
    super::service::host_and_port(text).map(|_| ()).map_err(|_| "must be HOST or HOST:PORT".to_owned())
}

/// `NAME=VALUE`, the name being a header's (RFC 9110 section 5.6.2).
fn tag(text: &str) -> Result<(), String> {
    let wrong = || "must be NAME=VALUE; a name has letters, digits, `-` and `_`".to_owned();
    let (name, value) = text.split_once('=').ok_or_else(wrong)?;
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let printable = |byte: u8| byte >= b' ' && byte != 0x7f;
    if name.is_empty() || value.is_empty() || !name.bytes().all(word) || !value.bytes().all(printable) {
        return Err(wrong());
    }
    Ok(())
}

fn resolver(text: &str) -> Result<(), String> {
    text.parse::<std::net::SocketAddr>().map(|_| ()).map_err(|_| "must be IP:PORT".to_owned())
}
