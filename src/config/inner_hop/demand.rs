//! What a hop demands of a service, and whether the service can be held to it.

use std::net::IpAddr;

use super::{Hop, MutualTls};
use crate::config::origin::OriginOptions;
use crate::config::service::Service;

impl Service {
    /// A unix socket, or what is spelled as loopback: a literal of 127.0.0.0/8, `::1`, or `localhost`. A name may lead
    /// elsewhere, so the address that is dialled has to be loopback too where that matters
    /// ([`Hop::must_stay_local`]).
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix { .. } => true,
            Self::Http { host, .. } | Self::Tcp { host, .. } => match host.parse::<IpAddr>() {
                Ok(address) => address.is_loopback(),
                Err(_) => host == "localhost",
            },
            Self::Bastion | Self::HelloWorld | Self::SocksProxy | Self::Status(_) => false,
        }
    }

    /// Whether adit speaks TLS to it.
    pub fn has_tls(&self) -> bool {
        matches!(self, Self::Http { tls: true, .. } | Self::Unix { tls: true, .. })
    }

    /// Whether there is anything behind adit: `http_status` and `hello_world` are its own answers.
    pub fn has_hop(&self) -> bool {
        !matches!(self, Self::Status(_) | Self::HelloWorld)
    }
}

impl MutualTls {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Optional => "optional",
            Self::Passthrough => "passthrough",
            Self::Remote => "remote",
        }
    }
}

impl Hop {
    /// Whether mutual TLS must be proven on this service before a byte of a request leaves: it asked for a certificate,
    /// got one, and is who it must be. A service that carries no TLS can then not be used at all; no configuration
    /// that was accepted has one.
    ///
    /// Of `bastion` and `socks-proxy` under `privateNetwork: allow` nothing is demanded: their hops are settled as
    /// `optional`.
    pub fn demands(&self, service: &Service) -> bool {
        match self.mode {
            MutualTls::Always => service.has_hop(),
            MutualTls::Remote => service.has_hop() && !service.is_local(),
            MutualTls::Optional | MutualTls::Passthrough => false,
        }
    }

    /// Whether nothing is demanded only because the service is spelled as loopback: an address that is dialled for it
    /// must be loopback, or must not be dialled. True of unix sockets, too, which have no address.
    pub fn must_stay_local(&self, service: &Service) -> bool {
        self.mode == MutualTls::Remote && service.is_local()
    }

    /// Why this service cannot be held to the hop, each reason as the end of a sentence that begins with the place.
    /// Empty: it can.
    pub(crate) fn unsatisfied(&self, service: &Service, options: &OriginOptions) -> Vec<String> {
        let mode = self.mode.as_str();
        let mut reasons = Vec::new();
        if self.mode == MutualTls::Passthrough && !matches!(service, Service::Tcp { .. }) {
            reasons.push(match service {
                Service::Bastion | Service::SocksProxy => {
                    format!("{service} leads wherever the visitor says: `innerHop.privateNetwork: allow` opens it, not `passthrough`")
                }
                _ => format!("`mutualTls: passthrough` is for tcp, ssh, rdp and smb, which carry no TLS of adit's; not for {service}"),
            });
        }
        let demands = self.demands(service);
        match service {
            _ if service.has_tls() => {
                if demands && self.present.is_none() {
                    reasons.push(format!(
                        "`mutualTls: {mode}` demands that adit presents a certificate to {service}, and there is none: \
                         name one of `innerHop.identities` with `present`, or call one `default`"
                    ));
                }
                if demands && options.no_tls_verify {
                    reasons.push(format!(
                        "`mutualTls: {mode}` demands that {service} is verified, and `noTLSVerify` forbids it"
                    ));
                } else if options.no_tls_verify && !self.expect.is_empty() {
                    reasons.push(format!("`expect` has no effect on {service}, which `noTLSVerify` leaves unverified"));
                }
            }
            _ if !demands => {}
            Service::Bastion | Service::SocksProxy => reasons.push(format!(
                "`mutualTls: {mode}` refuses {service}, which leads wherever the visitor says; \
                 `innerHop.privateNetwork: allow` opens it"
            )),
            Service::Tcp { .. } => reasons.push(format!(
                "`mutualTls: {mode}` demands proof of both sides, and {service} carries no TLS of adit's; if its other \
                 end does the TLS, say so on the rule: innerHop: {{ mutualTls: passthrough }}"
            )),
            _ => reasons.push(format!(
                "`mutualTls: {mode}` demands TLS with a certificate of both sides, and {service} has none; it takes \
                 https:// or unix+tls:{}",
                if self.mode == MutualTls::Remote { ", or a service on loopback or a unix socket" } else { "" }
            )),
        }
        reasons
    }
}
