//! The single origin named by flags, used when the file has no rules.

use std::path::PathBuf;
use std::time::Duration;

use super::layers::Stacked;
use super::mistakes::{Place, Report};
use super::origin::{OriginOptions, OriginPatch, ProxyType};
use super::rules::Ingress;
use super::service::Service;

/// One rule for everything; `None` when no flag names a service. As with cloudflared the built-in
/// page wins over `bastion`, over a URL, over a socket; unlike there `--hello-world=false` is a no.
pub(crate) fn origin(stacked: &Stacked, defaults: &OriginOptions, report: &mut Report) -> Option<Ingress> {
    let nanos = |nanos: Option<u64>| nanos.map(Duration::from_nanos);
    let patch = OriginPatch {
        connect_timeout: nanos(stacked.proxy_connect_timeout),
        tls_timeout: nanos(stacked.proxy_tls_timeout),
        tcp_keep_alive: nanos(stacked.proxy_tcp_keepalive),
        no_happy_eyeballs: stacked.proxy_no_happy_eyeballs,
        keep_alive_connections: stacked.proxy_keepalive_connections,
        keep_alive_timeout: nanos(stacked.proxy_keepalive_timeout),
        http_host_header: stacked.http_host_header.clone(),
        origin_server_name: stacked.origin_server_name.clone(),
        match_sni_to_host: stacked.match_sni_to_host,
        ca_pool: stacked.origin_ca_pool.clone(),
        no_tls_verify: stacked.no_tls_verify,
        disable_chunked_encoding: stacked.no_chunked_encoding,
        proxy_type: stacked.socks5.then_some(ProxyType::Socks),
        http2_origin: stacked.http2_origin,
        proxy_address: stacked.proxy_address.clone(),
        proxy_port: stacked.proxy_port,
        ..OriginPatch::default()
    };
    let mut options = defaults.patched(&patch);
    let (service, spelling) = if stacked.hello_world {
        (Service::HelloWorld, Service::HelloWorld.to_string())
    } else if stacked.bastion || options.bastion_mode {
        options.bastion_mode = true;
        (Service::Bastion, Service::Bastion.to_string())
    } else if let Some(url) = &stacked.url {
        if stacked.unix_socket.is_some() {
            report.warning(Place::default(), "--unix-socket", "has no effect beside --url");
        }
        match service_of(url) {
            Ok(service) => service,
            Err(message) => {
                report.mistake(Place::default(), "--url", message);
                return None;
            }
        }
    } else {
        let path = stacked.unix_socket.as_ref().filter(|path| !path.is_empty())?;
        let service = Service::Unix { path: PathBuf::from(path), tls: false };
        let spelling = service.to_string();
        (service, spelling)
    };
    Some(Ingress::single(service, spelling, options))
}

/// `--url`: more forgiving than a rule's service. The scheme may be missing, a path is dropped.
fn service_of(url: &str) -> Result<(Service, String), String> {
    let url = url.trim();
    if url.is_empty() {
        return Err("is empty; it looks like http://localhost:8080".to_owned());
    }
    if url.starts_with("unix:") || url.starts_with("unix+tls:") {
        return Err("is no URL; a socket is named with --unix-socket".to_owned());
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let scheme = scheme.to_ascii_lowercase();
    if !["http", "https", "h2c", "rdp", "smb", "ssh", "tcp"].contains(&&*scheme) {
        return Err("its scheme must be http, https, h2c, tcp, ssh, rdp or smb".to_owned());
    }
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    let service = Service::parse(&format!("{scheme}://{authority}")).map_err(|error| error.to_string())?;
    // The canonical spelling has the name in its ASCII form, like cloudflared's.
    let spelling = match &service {
        Service::Http { host, port, .. } if authority.ends_with(&format!(":{port}")) => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            format!("{scheme}://{host}:{port}")
        }
        other => other.to_string(),
    };
    Ok((service, spelling))
}
