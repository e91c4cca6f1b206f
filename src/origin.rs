//! Services: reaching them, and speaking HTTP to them.
//!
//! An [`Origin`] is built once per rule and generation of rules. Knows no tunnel and no rule but its own.

pub mod balance;
pub mod dial;
mod health;
pub mod http;
mod http1;
mod http2;
pub mod io;
mod pool;
pub mod proxy_protocol;
mod reply;
pub mod request_body;
pub mod resolve;
pub mod services;

use std::{io as std_io, sync::Arc};

use rustls::CertificateError;

use crate::{
    code::Code,
    config::{Rule, Service},
    metrics::Metrics,
    tls::{self, OriginTls, SystemRoots},
};
use ::http::HeaderValue;
use balance::Balance;
use dial::{Dialer, Target};
use http::HttpOrigin;
use request_body::BodyError;
use resolve::Resolver;
use services::{HttpService, HttpServices, Targets};

/// What answers for a rule.
#[derive(Debug)]
pub enum Origin {
    /// A built-in page.
    Hello,
    /// HTTP in any version, over TCP, TLS or a unix socket.
    Http(Box<HttpServices>),
    /// Always this status.
    Status(::http::StatusCode),
    /// Bytes, carried inside a WebSocket.
    Stream(Dialer, Destination),
}

/// Who names the destination of a byte stream.
#[derive(Debug)]
pub enum Destination {
    /// The rule.
    Fixed(Box<Targets>),
    /// A header of each request.
    Header,
    /// SOCKS5 inside each stream.
    Socks,
}

/// Why a service gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is adit's own admin address.
    #[error("{0} is an address of adit itself")]
    Forbidden(std::net::SocketAddr),
    /// Refused, unknown name, no route.
    #[error("{0}")]
    Unreachable(#[source] std_io::Error),
    /// No connection in time.
    #[error("no {0} in time")]
    TimedOut(&'static str),
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(#[source] std_io::Error),
    /// The server name cannot be one.
    #[error("{0:?} is no server name")]
    ServerName(String),
    /// HTTP/1.1 went wrong.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// HTTP/2 went wrong.
    #[error("{0}")]
    Http2(#[from] h2::Error),
    /// The connection broke after the answer began.
    #[error("{0}")]
    Broken(#[source] std_io::Error),
    /// The request's body ended before its end: the visitor broke it off, or it is too long.
    #[error("{0}")]
    Body(#[source] BodyError),
    /// The Host cannot be the authority of a request in HTTP/2.
    #[error("{0:?} is no authority")]
    Authority(HeaderValue),
}

impl Error {
    /// What the visitor is told.
    pub fn code(&self) -> Code {
        match self {
            Self::Forbidden(_) | Self::Unreachable(_) => Code::OriginUnreachable,
            Self::TimedOut(_) => Code::OriginTimeout,
            Self::Tls(error) => tls_code(error),
            Self::ServerName(_) => Code::OriginIdentity,
            Self::Body(BodyError::TooLong) => Code::BodyTooLarge,
            // Nobody is left to be told that the visitor is gone.
            Self::Http(_) | Self::Http2(_) | Self::Broken(_) | Self::Body(BodyError::Visitor(_)) => {
                Code::OriginProtocol
            }
            Self::Authority(_) => Code::RequestInvalid,
        }
    }
}

impl Error {
    /// Whether the service is to blame, so that it counts against its health.
    fn is_of_service(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut(_) | Self::Tls(_) | Self::Broken(_) => true,
            // Said by the service, or found in what it said; the rest is what h2 would not send for us.
            Self::Http2(error) => error.is_io() || error.is_remote() || error.is_library(),
            // hyper tells of the request's body in its own words, with ours behind.
            Self::Http(error) => !std::error::Error::source(error).is_some_and(|cause| cause.is::<BodyError>()),
            Self::Forbidden(_) | Self::ServerName(_) | Self::Body(_) | Self::Authority(_) => false,
        }
    }
}

fn tls_code(error: &std_io::Error) -> Code {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(certificate)) => match certificate {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Code::OriginExpired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Code::OriginIdentity,
            _ => Code::OriginUntrusted,
        },
        _ => Code::OriginTlsRefused,
    }
}

impl Origin {
    /// Prepares what the services of `rule` need: their TLS configuration, pools and state. Dials nothing.
    ///
    /// # Errors
    ///
    /// When a root file cannot be used, or the Host is no header.
    pub fn new(
        rule: &Rule,
        metrics: &Metrics,
        forbidden: &Arc<[std::net::SocketAddr]>,
        system: &SystemRoots,
    ) -> Result<Self, tls::Error> {
        let options = &rule.origin;
        let dialer = Dialer {
            connect_timeout: dial::limit(options.connect_timeout),
            keep_alive: options.tcp_keep_alive,
            race: !options.no_happy_eyeballs,
            forbidden: forbidden.clone(),
            resolver: Resolver::System,
        };
        let handles = |service| metrics.handles_of_origin(rule.position, service);
        let balance = || Balance::new(rule.services().map(|(_, spelling)| spelling), rule.health.as_ref(), handles);
        Ok(match &rule.service {
            Service::Http { .. } | Service::Unix { .. } => {
                let services = rule.services().enumerate().map(|(index, (service, _))| {
                    let (target, use_tls, h2c) = http_target(service);
                    let tls = use_tls
                        .then(|| {
                            OriginTls {
                                ca_pool: options.ca_pool.as_deref(),
                                no_verify: options.no_tls_verify,
                                http2: options.http2_origin,
                            }
                            .client(system)
                        })
                        .transpose()?;
                    let host = options.http_host_header.clone().unwrap_or_else(|| target.authority());
                    // One that is no header is refused where the rule is made ready for visitors.
                    let host = HeaderValue::from_str(&host).unwrap_or(HeaderValue::from_static("localhost"));
                    let origin = HttpOrigin::new(dialer.clone(), target, tls, h2c, options, handles(index));
                    Ok(HttpService { origin, host })
                });
                let services = services.collect::<Result<Vec<_>, tls::Error>>()?;
                Self::Http(Box::new(HttpServices::new(services, balance(), handles(0))))
            }
            Service::Tcp { .. } => {
                let targets = rule.services().filter_map(|(service, _)| match service {
                    Service::Tcp { host, port, .. } => Some(Target::Tcp { host: host.as_str().into(), port: *port }),
                    _ => None,
                });
                let targets = Targets { targets: targets.collect(), balance: balance(), metrics: handles(0) };
                Self::Stream(dialer, Destination::Fixed(Box::new(targets)))
            }
            Service::Status(status) => {
                Self::Status(::http::StatusCode::from_u16(*status).unwrap_or(::http::StatusCode::BAD_GATEWAY))
            }
            Service::HelloWorld => Self::Hello,
            Service::Bastion => Self::Stream(dialer, Destination::Header),
            Service::SocksProxy => Self::Stream(dialer, Destination::Socks),
        })
    }

    /// Who is chosen among several, where there is a choice.
    pub fn balance(&self) -> Option<&Balance> {
        match self {
            Self::Http(services) => Some(services.balance()),
            Self::Stream(_, Destination::Fixed(targets)) => Some(targets.balance()),
            _ => None,
        }
    }
}

/// Where an HTTP service is, whether over TLS, whether in HTTP/2 from the start.
fn http_target(service: &Service) -> (Target, bool, bool) {
    match service {
        Service::Http { tls, h2c, host, port } => (Target::Tcp { host: host.as_str().into(), port: *port }, *tls, *h2c),
        Service::Unix { path, tls } => (Target::Unix(path.clone()), *tls, false),
        // Lists are of one kind.
        _ => (Target::Unix(std::path::PathBuf::new()), false, false),
    }
}
