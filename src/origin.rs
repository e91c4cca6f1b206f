//! Services: reaching them, and speaking HTTP to them.
//!
//! An [`Origin`] is built once per rule and generation of rules. Knows no tunnel and no rule but its own.

pub mod dial;
pub mod http;
mod http2;
pub mod io;
mod pool;
pub mod proxy_protocol;
pub mod request_body;

use std::{io as std_io, sync::Arc};

use rustls::CertificateError;

use crate::{
    code::Code,
    config::{OriginOptions, Service},
    tls::{self, OriginTls, SystemRoots},
};
use dial::{Dialer, Target};
use http::HttpOrigin;

/// What answers for a rule.
#[derive(Debug)]
pub enum Origin {
    /// A built-in page.
    Hello,
    /// HTTP in any version, over TCP, TLS or a unix socket.
    Http(Box<HttpOrigin>),
    /// Always this status.
    Status(::http::StatusCode),
    /// Bytes, carried inside a WebSocket.
    Stream(Dialer, Destination),
}

/// Who names the destination of a byte stream.
#[derive(Debug)]
pub enum Destination {
    /// The rule.
    Fixed(Target),
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
    /// HTTP went wrong.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The connection broke after the answer began.
    #[error("{0}")]
    Broken(#[source] std_io::Error),
    /// A body without a length where the rule forbids chunks.
    #[error("a body of unknown length, and disableChunkedEncoding is on")]
    LengthRequired,
}

impl Error {
    /// What the visitor is told.
    pub fn code(&self) -> Code {
        match self {
            Self::Forbidden(_) | Self::Unreachable(_) => Code::OriginUnreachable,
            Self::TimedOut(_) => Code::OriginTimeout,
            Self::Tls(error) => tls_code(error),
            Self::ServerName(_) => Code::OriginIdentity,
            Self::Http(_) | Self::Broken(_) => Code::OriginProtocol,
            Self::LengthRequired => Code::LengthRequired,
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
    /// Prepares what `service` needs: its TLS configuration and its pool. Dials nothing.
    ///
    /// # Errors
    ///
    /// When a root file cannot be used.
    pub fn new(
        service: &Service,
        options: &OriginOptions,
        forbidden: &Arc<[std::net::SocketAddr]>,
        system: &SystemRoots,
    ) -> Result<Self, tls::Error> {
        let dialer = Dialer {
            connect_timeout: options.connect_timeout,
            keep_alive: options.tcp_keep_alive,
            race: !options.no_happy_eyeballs,
            forbidden: forbidden.clone(),
        };
        let http = |target, use_tls: bool, h2c: bool| -> Result<Self, tls::Error> {
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
            Ok(Self::Http(Box::new(HttpOrigin::new(dialer.clone(), target, tls, h2c, options))))
        };
        Ok(match service {
            Service::Http { tls, h2c, host, port } => {
                http(Target::Tcp { host: host.as_str().into(), port: *port }, *tls, *h2c)?
            }
            Service::Unix { path, tls } => http(Target::Unix(path.clone()), *tls, false)?,
            Service::Tcp { host, port, .. } => {
                let target = Target::Tcp { host: host.as_str().into(), port: *port };
                Self::Stream(dialer, Destination::Fixed(target))
            }
            Service::Status(status) => {
                Self::Status(::http::StatusCode::from_u16(*status).unwrap_or(::http::StatusCode::BAD_GATEWAY))
            }
            Service::HelloWorld => Self::Hello,
            Service::Bastion => Self::Stream(dialer, Destination::Header),
            Service::SocksProxy => Self::Stream(dialer, Destination::Socks),
        })
    }
}
