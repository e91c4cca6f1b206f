//! The `service` of a rule: where a request goes.

use std::fmt;
use std::path::PathBuf;

use super::hostname::domain;

/// A closed set: what cloudflared knows, and `h2c`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Whatever destination the visitor names (`bastion`).
    Bastion,
    /// The built-in page (`hello_world`).
    HelloWorld,
    /// An HTTP service; carries WebSockets too.
    Http {
        /// TLS towards the service (`https`, `wss`).
        tls: bool,
        /// HTTP/2 with prior knowledge (RFC 9113 section 3.3).
        h2c: bool,
        /// Name or address, IPv6 without brackets.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// A SOCKS5 proxy bounded by the rule's `ipRules` (`socks-proxy`).
    SocksProxy,
    /// An answer without a body (`http_status:404`); 200 to 999.
    Status(u16),
    /// A TCP service, reached through a WebSocket.
    Tcp {
        /// The scheme, which only decides the port when none is given.
        scheme: TcpScheme,
        /// Name or address, IPv6 without brackets.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// HTTP over a unix socket (`unix:PATH`, `unix+tls:PATH`).
    Unix {
        /// Never empty; may be relative to the working directory.
        path: PathBuf,
        /// TLS over the socket.
        tls: bool,
    },
}

/// Schemes of TCP services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpScheme {
    /// Remote desktop, port 3389.
    Rdp,
    /// File sharing, port 445.
    Smb,
    /// Secure shell, port 22.
    Ssh,
    /// Anything, port 7864.
    Tcp,
}

impl TcpScheme {
    /// The scheme as written in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rdp => "rdp",
            Self::Smb => "smb",
            Self::Ssh => "ssh",
            Self::Tcp => "tcp",
        }
    }

    /// The port when a URL names none.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Rdp => 3389,
            Self::Smb => 445,
            Self::Ssh => 22,
            Self::Tcp => 7864,
        }
    }
}

/// Why a text is no service. No variant repeats more than a scheme or a host: the text may hold a
/// password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// `unix:` without a path.
    #[error("the path of the socket is missing")]
    EmptySocket,
    /// A `#`.
    #[error("a service has no fragment (`#`)")]
    Fragment,
    /// The host is no name and no address.
    #[error("the host is not valid: {0}")]
    Host(String),
    /// Nothing at all.
    #[error("the service is missing; it looks like http://localhost:8080")]
    Missing,
    /// No scheme, or no host.
    #[error("a service needs a scheme and a host; it looks like {hint}")]
    NoScheme {
        /// What was probably meant.
        hint: String,
    },
    /// Anything behind the authority, a lone `/` included.
    #[error("a service has no path, not even `/`: the path of the request is passed on")]
    Path,
    /// Not 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// A `?`.
    #[error("a service has no query (`?`)")]
    Query,
    /// `http_status:` and no number.
    #[error("`http_status:` is followed by three digits")]
    StatusNotNumber,
    /// A status that cannot end an exchange (RFC 9110 section 15.2).
    #[error("status {0} cannot be a final answer; 200 to 999 can")]
    StatusRange(String),
    /// A scheme that adit does not know.
    #[error("unknown scheme `{scheme}`; there are http, https, h2c, ws, wss, tcp, ssh, rdp, smb, unix: and unix+tls:")]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// `user@` or `user:password@`.
    #[error("a service has no user information (before `@`)")]
    UserInformation,
}

impl Service {
    /// Reads a service.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub fn parse(text: &str) -> Result<Self, ServiceError> {
        match text {
            "" => return Err(ServiceError::Missing),
            "bastion" => return Ok(Self::Bastion),
            "hello_world" | "hello-world" => return Ok(Self::HelloWorld),
            "socks-proxy" => return Ok(Self::SocksProxy),
            _ => {}
        }
        for (prefix, tls) in [("unix:", false), ("unix+tls:", true)] {
            if let Some(path) = text.strip_prefix(prefix) {
                if path.is_empty() {
                    return Err(ServiceError::EmptySocket);
                }
                return Ok(Self::Unix { path: PathBuf::from(path), tls });
            }
        }
        if let Some(status) = text.strip_prefix("http_status:") {
            return status_of(status).map(Self::Status);
        }
        url(text)
    }

    /// The host of what is dialled by name or address.
    pub(crate) fn host(&self) -> Option<&str> {
        match self {
            Self::Http { host, .. } | Self::Tcp { host, .. } => Some(host),
            _ => None,
        }
    }

    /// The service and the spelling under which it is shown and exported: as configured, except
    /// that cloudflared adds the port to TCP services and knows one name for the built-in page.
    pub(crate) fn spelled(text: &str) -> Result<(Self, String), ServiceError> {
        let service = Self::parse(text)?;
        let spelling = match &service {
            Self::Http { .. } | Self::Unix { .. } => text.to_owned(),
            other => other.to_string(),
        };
        Ok((service, spelling))
    }
}

/// A canonical spelling; the configured one is kept by the rule.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bastion => f.write_str("bastion"),
            Self::HelloWorld => f.write_str("hello_world"),
            Self::Http { tls, h2c, host, port } => {
                let (scheme, default) = match (tls, h2c) {
                    (true, _) => ("https", 443),
                    (false, true) => ("h2c", 80),
                    (false, false) => ("http", 80),
                };
                write!(f, "{scheme}://{}", Bracketed(host))?;
                if *port == default { Ok(()) } else { write!(f, ":{port}") }
            }
            Self::SocksProxy => f.write_str("socks-proxy"),
            Self::Status(status) => write!(f, "http_status:{status}"),
            Self::Tcp { scheme, host, port } => {
                write!(f, "{}://{}:{port}", scheme.as_str(), Bracketed(host))
            }
            Self::Unix { path, tls: false } => write!(f, "unix:{}", path.display()),
            Self::Unix { path, tls: true } => write!(f, "unix+tls:{}", path.display()),
        }
    }
}

/// A host as it stands in a URL.
struct Bracketed<'a>(&'a str);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(self.0) }
    }
}

fn status_of(text: &str) -> Result<u16, ServiceError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) || text.starts_with('0') {
        return Err(ServiceError::StatusNotNumber);
    }
    match text.parse::<u16>() {
        Ok(status @ 200..=999) => Ok(status),
        _ => Err(ServiceError::StatusRange(text.chars().take(6).collect())),
    }
}

fn url(text: &str) -> Result<Service, ServiceError> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(ServiceError::NoScheme { hint: hint(text) });
    };
    let scheme = scheme.to_ascii_lowercase();
    let kind = match &*scheme {
        "http" | "ws" => Kind::Http { tls: false, h2c: false },
        "https" | "wss" => Kind::Http { tls: true, h2c: false },
        "h2c" => Kind::Http { tls: false, h2c: true },
        "rdp" => Kind::Tcp(TcpScheme::Rdp),
        "smb" => Kind::Tcp(TcpScheme::Smb),
        "ssh" => Kind::Tcp(TcpScheme::Ssh),
        "tcp" => Kind::Tcp(TcpScheme::Tcp),
        _ if scheme.is_empty() => return Err(ServiceError::NoScheme { hint: hint(rest) }),
        _ => {
            let scheme = scheme.chars().take(20).collect();
            return Err(ServiceError::UnknownScheme { scheme });
        }
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    if authority.contains('@') {
        return Err(ServiceError::UserInformation);
    }
    match behind.bytes().next() {
        Some(b'/') => return Err(ServiceError::Path),
        Some(b'?') => return Err(ServiceError::Query),
        Some(_) => return Err(ServiceError::Fragment),
        None => {}
    }
    let default = match kind {
        Kind::Http { tls: false, .. } => 80,
        Kind::Http { tls: true, .. } => 443,
        Kind::Tcp(scheme) => scheme.default_port(),
    };
    let (host, port) = host_and_port(authority)?;
    let port = port.unwrap_or(default);
    Ok(match kind {
        Kind::Http { tls, h2c } => Service::Http { tls, h2c, host, port },
        Kind::Tcp(scheme) => Service::Tcp { scheme, host, port },
    })
}

#[derive(Clone, Copy)]
enum Kind {
    Http { tls: bool, h2c: bool },
    Tcp(TcpScheme),
}

/// Host and port of an authority (RFC 3986 section 3.2), the host without brackets.
pub(crate) fn host_and_port(authority: &str) -> Result<(String, Option<u16>), ServiceError> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (literal, rest) =
            rest.split_once(']').ok_or_else(|| ServiceError::Host("a bracket is not closed".to_owned()))?;
        // The zone of a link-local address is written with an escaped percent sign (RFC 6874).
        let literal = literal.replacen("%25", "%", 1);
        let address = literal.split_once('%').map_or(&*literal, |(address, _)| address);
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(ServiceError::Host("not an IPv6 address between the brackets".to_owned()));
        }
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or(ServiceError::Port)?),
        };
        (literal, port)
    } else {
        let (host, port) = match authority.split_once(':') {
            None => (authority, None),
            Some((host, port)) => (host, Some(port)),
        };
        if host.is_empty() {
            return Err(ServiceError::NoScheme { hint: "http://localhost:8080".to_owned() });
        }
        (domain(host).map_err(|error| ServiceError::Host(error.to_string()))?, port)
    };
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => match digits.parse() {
            Ok(port @ 1..) => Some(port),
            _ => return Err(ServiceError::Port),
        },
        Some(_) => return Err(ServiceError::Port),
    };
    Ok((host, port))
}

/// What `localhost:8000` or `unix/tmp/x` was probably meant to be. Nothing that may hold a password
/// is repeated.
fn hint(text: &str) -> String {
    let text = text.trim_start_matches('/');
    match host_and_port(text) {
        Ok(_) => format!("http://{text}"),
        Err(_) => "http://localhost:8080".to_owned(),
    }
}
