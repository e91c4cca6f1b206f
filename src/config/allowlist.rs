//! Where pushed rules may lead.

use std::fmt;
use std::net::IpAddr;
use std::path::{Component, Path};

use super::service::{Service, ServiceError};

/// Services that pushed rules may name. It bounds where they lead, not how: their `originRequest` is not looked at.
/// Streams without a rule are none of its business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowlist(pub(super) Vec<ServicePattern>);

impl Allowlist {
    /// Whether a rule may lead there. What adit answers by itself (`http_status`, `hello_world`) leads nowhere and is
    /// always allowed: every set of rules ends with such an answer.
    pub fn allows(&self, service: &Service) -> bool {
        matches!(service, Service::Status(_) | Service::HelloWorld)
            || self.0.iter().any(|pattern| pattern.matches(service))
    }
}

/// One entry of an [`Allowlist`]: a service as rules spell it, in which
///
/// * `*` in the host is one or more whole labels (`https://*.my-ns.svc:*`), and alone any host at all;
/// * `:*` is any port; no port is the scheme's own;
/// * a last `*` in the path of a socket is anything below that folder (`unix:/run/app/*`).
///
/// An address is matched whole, never by labels; names are not resolved, links are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePattern {
    /// With the host `star` in place of every `*`, and port 1 for `:*`.
    like: Service,
    host: Vec<Label>,
    any_port: bool,
    below: bool,
    /// As configured.
    text: String,
}

impl fmt::Display for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Label {
    Star,
    Text(String),
}

/// Why a text is no pattern.
#[derive(Debug, thiserror::Error)]
pub(super) enum PatternError {
    #[error("{0}")]
    Service(#[from] ServiceError),
    #[error("`*` stands for whole labels of a host, such as in https://*.my-ns.svc:*")]
    PartOfLabel,
    #[error("an address is matched whole: `*` cannot stand for a part of it")]
    PartOfAddress,
    #[error("`*` can only be the last piece of a socket's path")]
    InsidePath,
    #[error("a socket's path in a pattern has no `..`")]
    Upwards,
}

impl ServicePattern {
    /// This service and no other.
    pub(super) fn exact(service: &Service) -> Self {
        Self { like: service.clone(), host: Vec::new(), any_port: false, below: false, text: service.to_string() }
    }

    /// A service of the kind that is meant; its host and its port are only an example.
    pub(super) fn like(&self) -> &Service {
        &self.like
    }

    pub(super) fn parse(text: &str) -> Result<Self, PatternError> {
        let written = text;
        let plain =
            |like: Service| Self { like, host: Vec::new(), any_port: false, below: false, text: written.to_owned() };
        if text.starts_with("unix") {
            return Self::socket(text, plain);
        }
        let Some((scheme, authority)) = text.split_once("://") else {
            // `http_status:*` is allowed like every other status.
            let text = if text == "http_status:*" { "http_status:200" } else { text };
            return Ok(plain(Service::parse(text)?));
        };
        if authority.contains(['/', '?', '#', '@']) {
            // Never a service, whatever stands before.
            Service::parse(&text.replace('*', "star"))?;
        }
        let (authority, any_port) = match authority.strip_suffix(":*") {
            Some(host) => (host, true),
            None => (authority, false),
        };
        let host_end =
            if authority.starts_with('[') { authority.len() } else { authority.find(':').unwrap_or(authority.len()) };
        let (host, port) = authority.split_at(host_end);
        let labels: Vec<&str> = if host.contains('*') { host.split('.').collect() } else { Vec::new() };
        if labels.iter().any(|label| label.contains('*') && *label != "*") {
            return Err(PatternError::PartOfLabel);
        }
        let numeric = |label: &&str| *label == "*" || label.bytes().all(|byte| byte.is_ascii_digit());
        if labels.len() > 1 && labels.iter().all(numeric) && labels.iter().any(|label| *label != "*") {
            return Err(PatternError::PartOfAddress);
        }
        let host = if labels.is_empty() { host.to_owned() } else { host.replace('*', "star") };
        let port = if any_port { ":1" } else { port };
        let like = Service::parse(&format!("{scheme}://{host}{port}"))?;
        // The host in its normal form, in which services have theirs.
        let normal = like.host().map(str::to_owned).unwrap_or_default();
        let label =
            |(text, given): (&str, &&str)| if *given == "*" { Label::Star } else { Label::Text(text.to_owned()) };
        let host = normal.split('.').zip(&labels).map(label).collect();
        Ok(Self { host, any_port, ..plain(like) })
    }

    fn socket(text: &str, plain: impl Fn(Service) -> Self) -> Result<Self, PatternError> {
        let (text, below) = match text.strip_suffix("/*") {
            Some("unix:" | "unix+tls:") => (text.trim_end_matches('*'), true),
            Some(folder) => (folder, true),
            None => (text, false),
        };
        if text.contains('*') {
            return Err(PatternError::InsidePath);
        }
        let like = Service::parse(text)?;
        if let Service::Unix { path, .. } = &like
            && upwards(path)
        {
            return Err(PatternError::Upwards);
        }
        Ok(Self { below, ..plain(like) })
    }

    /// Whether a service is meant.
    pub fn matches(&self, service: &Service) -> bool {
        match (&self.like, service) {
            (Service::Http { tls, h2c, port, .. }, Service::Http { tls: tls_, h2c: h2c_, host, port: port_ }) => {
                (tls, h2c) == (tls_, h2c_) && (self.any_port || port == port_) && self.host_matches(host)
            }
            (Service::Tcp { scheme, port, .. }, Service::Tcp { scheme: scheme_, host, port: port_ }) => {
                scheme == scheme_ && (self.any_port || port == port_) && self.host_matches(host)
            }
            (Service::Unix { path, tls }, Service::Unix { path: path_, tls: tls_ }) => {
                let below = self.below && path_ != path && path_.starts_with(path);
                // A path that climbs may lead anywhere.
                tls == tls_ && !upwards(path_) && (below || (!self.below && path_ == path))
            }
            (like, service) => like == service,
        }
    }

    fn host_matches(&self, host: &str) -> bool {
        match &self.host[..] {
            [] => self.like.host() == Some(host),
            [Label::Star] => true,
            labels => !is_address(host) && labels_match(labels, &host.split('.').collect::<Vec<_>>()),
        }
    }
}

/// Whether a resolver may take the host for an address, however it is spelt: `fe80::1%zone`, where anything may stand
/// in the zone, and what `inet_aton` reads, such as `127.1`, `0x7f.0.0.1` and `2130706433`. No top-level domain is a
/// number (RFC 3696 section 2).
fn is_address(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    host.parse::<IpAddr>().is_ok()
        || host.contains([':', '%'])
        || last.bytes().all(|byte| byte.is_ascii_digit())
        || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Row by row, so that many stars cost no more than labels times labels.
fn labels_match(pattern: &[Label], host: &[&str]) -> bool {
    // reached[n]: the pattern so far matches the first n labels.
    let mut reached = vec![false; host.len() + 1];
    reached[0] = true;
    for label in pattern {
        let mut next = vec![false; host.len() + 1];
        for n in 1..=host.len() {
            next[n] = match label {
                Label::Star => reached[n - 1] || next[n - 1],
                Label::Text(text) => reached[n - 1] && text == host[n - 1],
            };
        }
        reached = next;
    }
    reached[host.len()]
}

fn upwards(path: &Path) -> bool {
    path.components().any(|piece| piece == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, service: &str) -> bool {
        let pattern = ServicePattern::parse(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        Allowlist(vec![pattern]).allows(&Service::parse(service).unwrap())
    }

    #[test]
    fn a_pattern_lets_through_what_it_says_and_nothing_else() {
        let both = [
            (
                "https://*.my-ns.svc:*",
                &["https://a.my-ns.svc", "wss://a.b.my-ns.svc:8443", "https://A.My-Ns.Svc.:1"][..],
                &[
                    "http://a.my-ns.svc",
                    "https://my-ns.svc",
                    "https://a.my-ns.svc.evil.com",
                    "https://xmy-ns.svc",
                    "tcp://a.my-ns.svc:1",
                    "h2c://a.my-ns.svc",
                    "https://10.0.0.1",
                ][..],
            ),
            (
                "http://web",
                &["http://web", "ws://web:80", "http://WEB"],
                &["http://web:81", "https://web", "http://a.web"],
            ),
            ("http://web:*", &["http://web:81"], &["http://web2:81"]),
            (
                "http://a.*.c.*.e",
                &["http://a.b.c.d.e", "http://a.c.c.c.c.e", "http://a.b.b.c.d.d.e"],
                &["http://a.c.d.e", "http://a.b.c.e"],
            ),
            ("http://*", &["http://a.b", "http://10.0.0.1", "http://[::1]"], &["http://a:81"]),
            ("http://10.0.0.1", &["http://10.0.0.1"], &["http://10.0.0.2"]),
            ("http://[::1]:*", &["http://[::1]:8080"], &["http://[::2]"]),
            ("http://*.10.svc", &["http://a.10.svc"], &[]),
            ("http://*.*", &["http://a.b"], &["http://a", "http://10.0.0.1"]),
            ("ssh://*.svc", &["ssh://a.svc", "ssh://a.svc:22"], &["tcp://a.svc:22", "ssh://a.svc:23"]),
            (
                "unix:/run/app/*",
                &["unix:/run/app/a.sock", "unix:/run/app//b/./c"],
                &["unix:/run/app", "unix:/run/application", "unix:/run/app/../x", "unix+tls:/run/app/a.sock"],
            ),
            ("unix:/run/app.sock", &["unix:/run/app.sock", "unix:/run//app.sock"], &["unix:/run/app.sock/x"]),
            ("unix:/*", &["unix:/a"], &["unix:a", "unix:/../a"]),
            ("bastion", &["bastion"], &["socks-proxy"]),
            ("socks-proxy", &["socks-proxy"], &["bastion", "tcp://a:1080"]),
            ("http_status:*", &["http_status:404"], &["http://a"]),
        ];
        for (pattern, allowed, refused) in both {
            for service in allowed {
                assert!(allows(pattern, service), "{pattern} refuses {service}");
            }
            for service in refused {
                assert!(!allows(pattern, service), "{pattern} allows {service}");
            }
        }
    }

    #[test]
    fn labels_never_match_an_address_however_it_is_spelt() {
        let pattern = ServicePattern::parse("https://*.my-ns.svc").unwrap();
        for host in ["fe80::1%x.my-ns.svc", "::1%.my-ns.svc", "fe80::1%25x.my-ns.svc"] {
            assert!(!pattern.host_matches(host), "{host}");
        }
        // Where the parser lets such a host through, too.
        for spelling in ["https://[fe80::1%25x.my-ns.svc]", "https://[fe80::1%x.my-ns.svc]"] {
            let allowed = Service::parse(spelling).is_ok_and(|service| pattern.matches(&service));
            assert!(!allowed, "{spelling}");
        }
        let any_two = ServicePattern::parse("http://*.*").unwrap();
        for host in ["127.1", "127.0.1", "10.0x1", "0x7f.0.0.1", "0x7f.0x0.0x0.0X1", "a.0x", "a.1."] {
            assert!(!any_two.host_matches(host), "{host}");
        }
        for host in ["2130706433", "0x7f000001"] {
            assert!(is_address(host), "{host}");
        }
        for host in ["a.b", "1.2.3.4.svc", "a.0xg", "0x.svc", "a.x1"] {
            assert!(any_two.host_matches(host), "{host}");
        }
    }

    #[test]
    fn answers_of_adit_itself_are_always_allowed() {
        for service in ["http_status:404", "http_status:503", "hello_world"] {
            assert!(Allowlist::default().allows(&Service::parse(service).unwrap()), "{service}");
        }
        for service in ["bastion", "socks-proxy", "http://localhost", "unix:/x"] {
            assert!(!Allowlist::default().allows(&Service::parse(service).unwrap()), "{service}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        for (text, why) in [
            ("https://a*.svc", "whole labels"),
            ("http://10.0.0.*", "matched whole"),
            ("http://*.1", "matched whole"),
            ("unix:/run/*/a", "last piece"),
            ("unix:/run/../*", "no `..`"),
            ("ftp://*", "unknown scheme"),
            ("*", "scheme and a host"),
            ("*://web", "unknown scheme"),
            ("http://web/*", "no path"),
            ("http://web:8*", "port"),
            ("", "missing"),
        ] {
            let error = ServicePattern::parse(text).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn many_stars_cost_little() {
        let pattern = format!("http://{}x", "*.".repeat(40));
        let host = format!("http://{}y", "a.".repeat(100));
        assert!(!allows(&pattern, &host));
    }
}
