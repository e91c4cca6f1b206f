//! Where a visitor of a `bastion` service wants to go: the value of `Cf-Access-Jump-Destination`.
//!
//! cloudflared takes anything and lets the dial fail; here what could not be dialled is an error that says why. One
//! thing that it dials is refused too: `:22`, which to Go means the connector's own host.

use std::net::Ipv6Addr;

use thiserror::Error;

/// The longest host name (RFC 1035 §2.3.4), with a final dot.
const MAX_HOST: usize = 254;

/// Why a destination cannot be dialled. No text of the visitor's is in it.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Error {
    /// The header is absent or empty: cloudflared's client was started without `--destination`.
    #[error("no destination was given; the visitor's client names it with --destination HOST:PORT")]
    Absent,
    /// Neither a name nor an address.
    #[error("the destination's host is neither a name nor an address; IPv6 addresses stand in brackets")]
    Host,
    /// Only a scheme, a path or a port.
    #[error("the destination has no host; it must be HOST:PORT")]
    HostMissing,
    /// Not 1 to 65535.
    #[error("the destination's port is not a number from 1 to 65535")]
    Port,
    /// cloudflared has no default ports here either.
    #[error("the destination has no port; it must be HOST:PORT")]
    PortMissing,
    /// `user@` is understood only behind a scheme, as with cloudflared.
    #[error("the destination holds a user name; it must be HOST:PORT")]
    User,
}

/// The host (IPv6 without brackets) and port in a header's value. A scheme is removed, and with it user information,
/// path, query and fragment; without a scheme only a path is.
pub fn destination(header_value: &str) -> Result<(String, u16), Error> {
    let value = header_value.trim_ascii();
    if value.is_empty() {
        return Err(Error::Absent);
    }
    let authority = behind_scheme(value).unwrap_or_else(|| before(value, &['/']));
    if authority.contains('@') {
        return Err(Error::User);
    }
    let (host, port) = split_port(authority)?;
    // `+22` parses as a number too.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::Port);
    }
    let port = port.parse().ok().filter(|port| *port != 0).ok_or(Error::Port)?;
    Ok((host.to_owned(), port))
}

/// The authority of a URL, without user information (RFC 3986 §3.2). `None` if the value has no scheme (§3.1): then it
/// is read as `HOST:PORT/PATH`.
fn behind_scheme(value: &str) -> Option<&str> {
    let (scheme, rest) = value.split_once("//")?;
    let scheme = match scheme {
        // A URL reference without a scheme, which Go's parser takes as well.
        "" => "tcp",
        scheme => scheme.strip_suffix(':')?,
    };
    let lawful = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let authority = before(rest, &['/', '?', '#']);
    let host = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
    lawful.then_some(host)
}

fn before<'a>(text: &'a str, ends: &[char]) -> &'a str {
    text.split(ends).next().unwrap_or(text)
}

/// Host and port apart, neither empty, the host checked.
fn split_port(authority: &str) -> Result<(&str, &str), Error> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').ok_or(Error::Host)?;
        // No zones: a link of the connector's host is nothing a visitor could know.
        host.parse::<Ipv6Addr>().map_err(|_| Error::Host)?;
        return match rest.strip_prefix(':') {
            Some("") => Err(Error::PortMissing),
            Some(port) => Ok((host, port)),
            None if rest.is_empty() => Err(Error::PortMissing),
            None => Err(Error::Host),
        };
    }
    let (host, port) = match authority.split_once(':') {
        None => (authority, None),
        Some((host, port)) => (host, Some(port)),
    };
    // An IPv6 address without brackets would be read as a host and a strange port.
    let lawful = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if !lawful || host.len() > MAX_HOST || port.is_some_and(|port| port.contains(':')) {
        return Err(Error::Host);
    }
    match port {
        _ if host.is_empty() => Err(Error::HostMissing),
        None | Some("") => Err(Error::PortMissing),
        Some(port) => Ok((host, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_destination_names_the_flag_that_was_forgotten() {
        for empty in ["", " ", "\t"] {
            let error = destination(empty).unwrap_err();
            assert_eq!(error, Error::Absent);
            assert!(error.to_string().contains("--destination"));
        }
    }

    #[test]
    fn a_missing_port_is_told_from_a_bad_one() {
        for value in ["host", "host:", "ssh://host", "ssh://host:/path", "[::1]", "[::1]:", "127.0.0.1"] {
            assert_eq!(destination(value), Err(Error::PortMissing), "{value}");
        }
        for value in ["host:0", "host:65536", "host:+22", "host:ssh", "host:-1", "host: 22", "[::1]:x", "host:٢٢"] {
            assert_eq!(destination(value), Err(Error::Port), "{value}");
        }
    }

    #[test]
    fn a_destination_without_a_host_never_means_the_connector_itself() {
        for value in [":22", ":", "ssh://", "ssh://:22", "ssh:///host:22", "/", "//", "/host:22", "ssh://user@"] {
            assert_eq!(destination(value), Err(Error::HostMissing), "{value}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for value in [
            "::1:22",
            "ssh://::1:22",
            "[::1:22",
            "[fe80::1%eth0]:22",
            "[::1]22",
            "[host]:22",
            "a b:22",
            "host%20:22",
            "a\\b:22",
            "a\0b:22",
            "höst:22",
            &format!("{}:22", "a".repeat(255)),
        ] {
            assert_eq!(destination(value), Err(Error::Host), "{value}");
        }
    }

    #[test]
    fn behind_a_scheme_only_host_and_port_remain() {
        for value in [
            "ssh://host:22/path",
            "ssh://host:22?query",
            "ssh://host:22#fragment",
            "ssh://user:pass@host:22",
            "ssh://a@b@host:22",
            "svn+ssh://host:22/a//b",
            "//host:22/path",
            " host:22 ",
            "host:22//path",
        ] {
            assert_eq!(destination(value), Ok(("host".to_owned(), 22)), "{value}");
        }
        assert_eq!(destination("tcp://[2001:db8::1]:443/"), Ok(("2001:db8::1".to_owned(), 443)));
    }
}
