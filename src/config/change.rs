//! What a changed configuration changes while the connector runs, and what it cannot.

use super::{Config, Guard, SecretSource};

impl Config {
    /// The keys that differ in `new` and are only read at the start, each with the value that is in force.
    pub fn needs_restart(&self, new: &Self) -> Vec<String> {
        // Every field is named, so that a new one has to be put on a side.
        let Self {
            // In force at once.
            ingress: _,
            warp_routing: _,
            remote_config: _,
            limits: _,
            inner_hop: _,
            max_active_flows: _,
            tags: _,
            loglevel: _,
            grace_period: _,
            // What is told to the edge follows from the others.
            reported: _,
            tunnel,
            secret,
            protocol,
            edge,
            edge_ca,
            region,
            edge_ip_version,
            edge_bind_address,
            ha_connections,
            retries,
            rpc_timeout,
            metrics,
            logfile,
            log_directory,
            output,
            pidfile,
            post_quantum,
            features,
            quic,
            management_hostname,
            // What a guard proves, whom it lets in and where it leads is in force at once, and so is its end; sockets are
            // opened once.
            guards,
        } = self;
        let mut keys = Vec::new();
        let mut compare = |same: bool, key: &str, running: String| {
            if !same {
                keys.push(format!("{key} (running with {running})"));
            }
        };
        compare(*tunnel == new.tunnel, "tunnel", shown(tunnel.as_ref()));
        compare(*secret == new.secret, "the source of the token", source(secret).to_owned());
        compare(*protocol == new.protocol, "protocol", lower(protocol));
        compare(*edge == new.edge, "edge", if edge.is_empty() { "discovery".into() } else { edge.join(", ") });
        compare(*edge_ca == new.edge_ca, "edge-ca", shown(edge_ca.as_ref().map(|path| path.display())));
        compare(*region == new.region, "region", shown(region.as_ref()));
        compare(*edge_ip_version == new.edge_ip_version, "edge-ip-version", lower(edge_ip_version));
        compare(*edge_bind_address == new.edge_bind_address, "edge-bind-address", shown(edge_bind_address.as_ref()));
        compare(*ha_connections == new.ha_connections, "ha-connections", ha_connections.to_string());
        compare(*retries == new.retries, "retries", retries.to_string());
        compare(*rpc_timeout == new.rpc_timeout, "rpc-timeout", format!("{rpc_timeout:?}"));
        compare(
            *metrics == new.metrics,
            "metrics",
            match metrics {
                super::MetricsAddress::Default => "the default".into(),
                super::MetricsAddress::Fixed(address) => address.clone(),
            },
        );
        compare(*logfile == new.logfile, "logfile", shown(logfile.as_ref().map(|path| path.display())));
        let directory = log_directory.as_ref().map(|path| path.display());
        compare(*log_directory == new.log_directory, "log-directory", shown(directory));
        compare(*output == new.output, "output", lower(output));
        compare(*pidfile == new.pidfile, "pidfile", shown(pidfile.as_ref().map(|path| path.display())));
        compare(*post_quantum == new.post_quantum, "post-quantum", post_quantum.to_string());
        compare(*features == new.features, "features", features.join(", "));
        compare(*quic == new.quic, "the QUIC settings", "those of the start".into());
        compare(*management_hostname == new.management_hostname, "management-hostname", management_hostname.clone());
        let mut listening: Vec<_> = guards.iter().map(|guard| guard.listen).collect();
        listening.sort();
        let shown = listening.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let shown = if shown.is_empty() { "none".to_owned() } else { shown };
        let is_open = |guard: &Guard| listening.contains(&guard.listen);
        compare(new.guards.iter().all(is_open), "the addresses of `guard`", shown);
        keys
    }
}

fn shown(value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn lower(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// The kind and, where it is no secret, the name.
fn source(secret: &SecretSource) -> &'static str {
    match secret {
        SecretSource::Credential(_) => "a credential of systemd",
        SecretSource::CredentialsContents(_) => "credentials given inline",
        SecretSource::CredentialsFile(_) | SecretSource::SearchCredentials => "a credentials file",
        SecretSource::Env(_) => "a variable",
        SecretSource::FileKey { .. } => "a key of a file",
        SecretSource::Missing => "none",
        SecretSource::Token(_) => "a token given in clear",
        SecretSource::TokenFile(_) => "a token file",
    }
}
