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
mod secured;
pub mod services;

use std::{io as std_io, sync::Arc};

use crate::{
    code::Code,
    config::{Hop, MutualTls, Rule, Service},
    metrics::{HopFailure, Metrics},
    tls::{
        self,
        keyring::Keyring,
        roots::Roots,
        service::{Failure, ServiceTls},
    },
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
    /// Exempt from proofs as loopback, and led elsewhere.
    #[error("{0} is not on this machine, and proves nothing")]
    NotLoopback(std::net::SocketAddr),
    /// There is no TLS, or none that proves enough.
    #[error("TLS: {0}")]
    Tls(#[source] Failure),
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
            Self::Forbidden(_) | Self::NotLoopback(_) | Self::Unreachable(_) => Code::OriginUnreachable,
            Self::TimedOut(_) => Code::OriginTimeout,
            Self::Tls(failure) => failure.code(),
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
    /// What is counted of it where hops are counted.
    fn cause(&self) -> Option<HopFailure> {
        match self {
            Self::NotLoopback(_) => Some(HopFailure::NotLoopback),
            Self::ServerName(_) => Some(HopFailure::WrongIdentity),
            Self::Tls(failure) => Some(failure.cause()),
            _ => None,
        }
    }

    /// Whether the service is to blame, so that it counts against its health.
    fn is_of_service(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut(_) | Self::Broken(_) | Self::NotLoopback(_) => true,
            Self::Tls(failure) => failure.is_of_service(),
            // Said by the service, or found in what it said; the rest is what h2 would not send for us.
            Self::Http2(error) => error.is_io() || error.is_remote() || error.is_library(),
            // hyper tells of the request's body in its own words, with ours behind.
            Self::Http(error) => !std::error::Error::source(error).is_some_and(|cause| cause.is::<BodyError>()),
            Self::Forbidden(_) | Self::ServerName(_) | Self::Body(_) | Self::Authority(_) => false,
        }
    }
}

/// What origins are made with, whatever the rules say.
#[derive(Clone, Copy, Debug)]
pub struct Means<'a> {
    /// Counters.
    pub metrics: &'a Metrics,
    /// Addresses that no rule may dial.
    pub forbidden: &'a Arc<[std::net::SocketAddr]>,
    /// Identities and trust of one generation.
    pub keyring: &'a Keyring,
    /// Those that no secret takes the place of.
    pub roots: &'a Roots,
}

/// The configuration refuses it before it gets here.
const NO_TLS: &str = "mutual TLS is demanded, and this service is spoken to without TLS";

impl Origin {
    /// Prepares what the services of `rule` need on one hop: their TLS, pools and state. Dials nothing. What is unusable
    /// in the keyring fails the requests that need it.
    ///
    /// # Errors
    ///
    /// When a root file cannot be used, or the services cannot prove what is demanded.
    pub fn new(rule: &Rule, hop: &Hop, means: Means<'_>) -> Result<Self, tls::Error> {
        let Means { metrics, forbidden, keyring, roots } = means;
        let options = &rule.origin;
        let dialer = |service| Dialer {
            connect_timeout: dial::limit(options.connect_timeout),
            keep_alive: options.tcp_keep_alive,
            race: !options.no_happy_eyeballs,
            forbidden: forbidden.clone(),
            loopback_only: hop.must_stay_local(service),
            resolver: Resolver::System,
        };
        let handles = |service| metrics.handles_of_origin(rule.position, service);
        let balance = || Balance::new(rule.services().map(|(_, spelling)| spelling), rule.health.as_ref(), handles);
        Ok(match &rule.service {
            Service::Http { .. } | Service::Unix { .. } => {
                let mut tls = None;
                let services = rule.services().enumerate().map(|(index, (service, _))| {
                    let (target, use_tls, h2c) = http_target(service);
                    let demanded = hop.demands(service);
                    let handshakes = if use_tls {
                        let tls = match &tls {
                            Some(tls) => tls,
                            None => tls.insert(ServiceTls::new(hop, options, keyring, roots)?),
                        };
                        Some(tls.handshakes(demanded)?)
                    } else {
                        if demanded || hop.mode == MutualTls::Passthrough {
                            return Err(tls::Error::Unsatisfiable(NO_TLS));
                        }
                        None
                    };
                    let host = options.http_host_header.clone().unwrap_or_else(|| target.authority());
                    // One that is no header is refused where the rule is made ready for visitors.
                    let host = HeaderValue::from_str(&host).unwrap_or(HeaderValue::from_static("localhost"));
                    let origin = HttpOrigin::new(dialer(service), target, handshakes, h2c, options, handles(index));
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
                let targets: Vec<_> = targets.collect();
                if rule.services().any(|(service, _)| hop.demands(service)) {
                    return Err(tls::Error::Unsatisfiable(NO_TLS));
                }
                // Where nothing is demanded and the mode demands something, all of them are local.
                let dialer = dialer(&rule.service);
                let targets = Targets { targets, balance: balance(), metrics: handles(0) };
                Self::Stream(dialer, Destination::Fixed(Box::new(targets)))
            }
            Service::Status(status) => {
                Self::Status(::http::StatusCode::from_u16(*status).unwrap_or(::http::StatusCode::BAD_GATEWAY))
            }
            Service::HelloWorld => Self::Hello,
            service @ (Service::Bastion | Service::SocksProxy) if hop.demands(service) => {
                return Err(tls::Error::Unsatisfiable(NO_TLS));
            }
            service @ Service::Bastion => Self::Stream(dialer(service), Destination::Header),
            service @ Service::SocksProxy => Self::Stream(dialer(service), Destination::Socks),
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
