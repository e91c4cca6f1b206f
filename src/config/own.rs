//! The keys of a rule that only adit has: read, and refused where they would do nothing.

use super::limits::{self, Forwarded, Limits, ProxyProtocol};
use super::mistakes::Place;
use super::reader::{Reader, join};
use super::rules::Rule;
use super::service::Service;
use super::tree::Entry;

/// What a rule says under these keys.
#[derive(Default)]
pub(crate) struct Own {
    pub(crate) limits: Limits,
    pub(crate) forwarded: Forwarded,
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    /// The keys that were given; limits one by one.
    given: Vec<(Place, &'static str)>,
}

impl Own {
    /// Reads one of `forwarded`, `limits` and `proxyProtocol`.
    pub(crate) fn read(&mut self, reader: &mut Reader<'_>, key: &'static str, entry: &Entry, path: &str) {
        let node = &entry.node;
        match key {
            "forwarded" => self.forwarded = Forwarded::read(reader, node, path).unwrap_or_default(),
            "proxyProtocol" => self.proxy_protocol = ProxyProtocol::read(reader, node, path),
            _ => {
                self.limits = Limits::read(reader, node, path);
                if let super::tree::Value::Map(entries) = &node.value {
                    let known = |entry: &Entry| {
                        let key = limits::KEYS.iter().find(|key| key.eq_ignore_ascii_case(&entry.key));
                        key.map(|key| (entry.place, *key))
                    };
                    self.given.extend(entries.iter().filter_map(known));
                }
                return;
            }
        }
        self.given.push((entry.place, key));
    }

    /// A key of adit's own that does nothing is a mistake: whoever wrote it counts on it.
    pub(crate) fn check(&self, reader: &mut Reader<'_>, rule: &Rule, path: &str) {
        // The services of a list are of one kind.
        let service = &rule.service;
        let http = matches!(service, Service::Http { .. } | Service::Unix { .. });
        let stream = matches!(service, Service::Tcp { .. } | Service::Bastion | Service::SocksProxy);
        let tls = matches!(service, Service::Http { tls: true, .. } | Service::Unix { tls: true, .. });
        let http2 = matches!(service, Service::Http { h2c: true, .. }) || tls && rule.origin.http2_origin;
        for (place, key) in &self.given {
            let (path, effect) = match *key {
                "forwarded" => (join(path, key), http),
                // Behind the other two stands whatever the visitor names, which expects no such header.
                "proxyProtocol" => (join(path, key), http || matches!(service, Service::Tcp { .. })),
                "maxConcurrent" => (join(&join(path, "limits"), key), http || stream),
                _ => (join(&join(path, "limits"), key), http),
            };
            if !effect {
                reader.report.mistake(*place, &path, format!("has no effect on {service}"));
            }
            if *key == "proxyProtocol" && http2 {
                let message = "one HTTP/2 connection carries many visitors, and the header names one: \
                               it goes with HTTP/1.1 alone (no h2c, `http2Origin: false`)";
                reader.report.mistake(*place, &path, message);
            }
        }
    }
}
